/* Weights that nobody has: what a machine needs to measure itself.
 *
 * Random bytes will not do: the scales of a quantised block could be NaN. Random floats, quantised
 * by ggml, will, but that takes up to a microsecond for each. So of each kind of tensor UNITS units
 * of 256 weights are quantised once, and a tensor is a random sequence of these units. All blocks
 * are then valid ones, and a row of experts' weights differs from the next, so that a router
 * spreads its tokens.
 *
 * Matrices have a standard deviation of 1/sqrt(inputs) and norms are close to 1, as in a model that
 * was just initialised, so that rows keep a magnitude of about 1 whatever the depth: denormals
 * would be slow, infinities refused. */
#include "slice/random_int.h"

#include <ggml.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UNIT = 256, UNITS = 256, POOLS_MAX = 64 };

enum kind { KIND_MATRIX, KIND_NORM, KIND_ONES, KIND_BIAS, KIND_DECAY };

struct pool {
    int type; /* enum ggml_type */
    enum kind kind;
    int64_t fan_in;
    size_t unit_bytes;
    uint8_t *units; /* UNITS x unit_bytes */
};

struct nk__random {
    struct pool pools[POOLS_MAX];
    int n_pools;
    uint64_t state;
};

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Normal, mean 0, variance 1: the sum of 12 16-bit uniforms. */
static float normal(uint64_t *state)
{
    int64_t sum = 0;

    for (int i = 0; i < 3; i++) {
        uint64_t u = next64(state);

        sum += (int64_t)((u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48));
    }
    return (float)((double)(sum - 6 * 65535) / 65536.0);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);

    return n >= k && !strcmp(text + n - k, end);
}

static enum kind kind_of(const struct nk__tensor *t)
{
    if (!strncmp(t->name, "rope_", 5)) /* what frequencies are divided by */
        return KIND_ONES;
    if (strstr(t->name, "norm") && ends_with(t->name, ".weight"))
        return KIND_NORM;
    if (t->rest && !strcmp(t->rest, "ssm_a")) /* how a state fades: it must */
        return KIND_DECAY;
    return t->ne[1] == 1 && t->ne[2] == 1 ? KIND_BIAS : KIND_MATRIX;
}

static float draw(enum kind kind, int64_t fan_in, uint64_t *state)
{
    float x = normal(state);

    switch (kind) {
    case KIND_NORM:
        return 1.0f + 0.05f * x;
    case KIND_ONES:
        return 1.0f;
    case KIND_BIAS:
        return 0.02f * x;
    case KIND_DECAY:
        return -0.5f - fabsf(x);
    default: /* KIND_MATRIX */
        return x / sqrtf((float)fan_in);
    }
}

/* Types whose blocks are numbers of points of a grid: ggml's quantiser needs seconds to set up its
 * search for the nearest ones. But every number is a valid point, so random ones do, with the
 * block's scale set. False: it is another type. */
static bool set_grid_scale(int type, uint8_t *block, float scale)
{
    ggml_fp16_t half = ggml_fp32_to_fp16(scale);

    switch (type) {
    case GGML_TYPE_IQ1_S:
    case GGML_TYPE_IQ2_XXS:
    case GGML_TYPE_IQ2_XS:
    case GGML_TYPE_IQ2_S:
    case GGML_TYPE_IQ3_XXS:
    case GGML_TYPE_IQ3_S:
        memcpy(block, &half, sizeof half); /* the first field of all of them */
        return true;
    case GGML_TYPE_IQ1_M: /* the top four bits of each of the last four words */
        for (int i = 0; i < 4; i++) {
            uint8_t *at = block + ggml_type_size(GGML_TYPE_IQ1_M) - 8 + 2 * i;
            uint16_t word;

            memcpy(&word, at, sizeof word);
            word = (uint16_t)((word & 0x0fff) | (half >> (4 * i) & 0xf) << 12);
            memcpy(at, &word, sizeof word);
        }
        return true;
    default:
        return false;
    }
}

/* One unit. What ggml cannot make of floats (indices; a type that a new llama.cpp adds) stays zero,
 * which is a valid block of every type. */
static void make_unit(int type, enum kind kind, int64_t fan_in, uint64_t *state, uint8_t *to)
{
    const struct ggml_type_traits *traits = ggml_get_type_traits((enum ggml_type)type);
    size_t size = ggml_row_size((enum ggml_type)type, UNIT);
    float numbers[UNIT], square = 0;

    if (set_grid_scale(type, to, 1)) {
        for (size_t i = 0; i < size; i++)
            to[i] = (uint8_t)(next64(state) >> 56);
        set_grid_scale(type, to, 1);
        traits->to_float(to, numbers, UNIT);
        for (int i = 0; i < UNIT; i++)
            square += numbers[i] * numbers[i];
        set_grid_scale(type, to, 1 / sqrtf(square / UNIT * (float)fan_in));
        return;
    }
    for (int i = 0; i < UNIT; i++)
        numbers[i] = draw(kind, fan_in, state);
    if (type == GGML_TYPE_F32)
        memcpy(to, numbers, sizeof numbers);
    else if (traits->from_float_ref)
        traits->from_float_ref(numbers, to, UNIT);
}

static const struct pool *get_pool(nk__random *r, const struct nk__tensor *t)
{
    enum kind kind = kind_of(t);
    struct pool *p = r->pools;

    for (; p < r->pools + r->n_pools; p++)
        if (p->type == t->type && p->kind == kind && p->fan_in == t->ne[0])
            return p;
    if (r->n_pools == POOLS_MAX) /* of more sizes than any model has: drawn anew */
        free(r->pools[--r->n_pools].units);
    p = &r->pools[r->n_pools];
    *p = (struct pool){ .type = t->type,
                        .kind = kind,
                        .fan_in = t->ne[0],
                        .unit_bytes = ggml_row_size((enum ggml_type)t->type, UNIT) };
    p->units = calloc(UNITS, p->unit_bytes);
    if (!p->units)
        return NULL;
    r->n_pools++;
    for (size_t u = 0; u < UNITS; u++)
        make_unit(t->type, kind, t->ne[0], &r->state, p->units + u * p->unit_bytes);
    return p;
}

int nk__random_new(nk__random **out, struct nk_error *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

void nk__random_free(nk__random *r)
{
    for (int i = 0; r && i < r->n_pools; i++)
        free(r->pools[i].units);
    free(r);
}

size_t nk__random_draw(nk__random *r, const struct nk__tensor *t, uint64_t left, uint8_t *out)
{
    const struct pool *p = get_pool(r, t);
    size_t used = 0;

    if (!p)
        return 0;
    while (left && used + p->unit_bytes <= NK__RANDOM_BYTES_MAX) {
        size_t n = left < p->unit_bytes ? (size_t)left : p->unit_bytes;

        memcpy(out + used, p->units + (next64(&r->state) % UNITS) * p->unit_bytes, n);
        used += n;
        left -= n;
    }
    return used;
}
