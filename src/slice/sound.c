/* Metadata that libllama does not survive. It answers most of what is wrong in a file with an
 * error, but asserts on some, and divides or reads by others: then the process is gone, and all
 * sessions with it. What is known of that kind is refused here, with a sentence; each was tried
 * with llama.cpp 0.7.0 (tests/system/test_inspect.py tries them through `verify`).
 *
 * The file is a stranger's. Its shape has been judged already (gguf.c); here it is about values. */
#include <ggml.h>
#include <gguf.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/visible.h"
#include "slice/model_int.h"

enum {
    EXPERTS_MAX = 1024,         /* LLAMA_MAX_EXPERTS */
    TOKENS_BYTES_MAX = 1 << 28, /* of a large vocabulary they are 5 MB */
    TOKEN_TYPE_BYTE = 6,        /* LLAMA_TOKEN_TYPE_BYTE */
};

static int bad(const nk_model *m, struct nk_error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int bad(const nk_model *m, struct nk_error *err, const char *fmt, ...)
{
    char text[200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: %s", m->info.path, text);
}

/* ---- the vocabulary ---- */

/* An array of the tokenizer, as bytes of the file. data: owned. */
struct tokens_array {
    char *data;
    size_t size;
    uint32_t type;
    uint64_t n;
};

/* True: the key of h is this one, and *at is behind it, where its value's type stands. */
static bool has_key(const nk_model *m, const struct nk__heavy *h, const char *key, uint64_t *at)
{
    size_t n = strlen(key);
    uint64_t length;
    char found[64];

    if (h->end - h->begin < sizeof length + n || n > sizeof found ||
        nk__source_read(&m->shards[0].source, h->begin, &length, sizeof length, NULL) ||
        length != n || nk__source_read(&m->shards[0].source, h->begin + 8, found, n, NULL))
        return false;
    *at = h->begin + 8 + n;
    return !memcmp(found, key, n);
}

/* False in *found: there is none. */
static int read_array(const nk_model *m, const char *key, struct tokens_array *a, bool *found,
                      struct nk_error *err)
{
    struct {
        uint32_t array, type;
        uint64_t n;
    } head;
    const struct nk__gguf *g = &m->shards[0];

    *found = false;
    for (int i = 0; i < g->n_heavy; i++) {
        uint64_t at;
        int rc;

        if (!has_key(m, &g->heavy[i], key, &at))
            continue;
        _Static_assert(sizeof head == 16, "as in the file");
        rc = nk__source_read(&g->source, at, &head, sizeof head, err);
        if (rc)
            return rc;
        at += sizeof head;
        if (g->heavy[i].end - at > TOKENS_BYTES_MAX)
            return bad(m, err, "%s has %llu bytes; at most %d are possible", key,
                       (unsigned long long)(g->heavy[i].end - at), TOKENS_BYTES_MAX);
        *a = (struct tokens_array){ .size = (size_t)(g->heavy[i].end - at),
                                    .type = head.type,
                                    .n = head.n };
        a->data = malloc(a->size + 1);
        if (!a->data)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %s", key);
        *found = true;
        return nk__source_read(&g->source, at, a->data, a->size, err);
    }
    return 0;
}

struct token {
    const char *text;
    uint64_t size;
    uint64_t id;
};

static int compare_tokens(const void *a, const void *b)
{
    const struct token *x = a, *y = b;
    int c;

    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    c = memcmp(x->text, y->text, x->size);
    return c ? c : x->id < y->id ? -1 : x->id > y->id;
}

/* libllama asserts that no two are equal. (Empty ones it gives names.) */
static int check_different(const nk_model *m, const struct tokens_array *a, struct nk_error *err)
{
    struct token *tokens = malloc((size_t)(a->n ? a->n : 1) * sizeof *tokens);
    size_t at = 0;
    int rc = 0;

    if (!tokens)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the tokens");
    for (uint64_t i = 0; i < a->n; i++) {
        uint64_t size = 0;

        if (a->size - at >= sizeof size)
            memcpy(&size, a->data + at, sizeof size);
        if (a->size - at < sizeof size || size > a->size - at - sizeof size) {
            /* They did fit when the header was walked. */
            rc = nk_fail(err, NK_E_ABORTED, "file_changed", "%s: it changes while it is read",
                         m->info.path);
            goto out;
        }
        /* libllama reads it as a C string. */
        tokens[i] = (struct token){ .text = a->data + at + sizeof size, .id = i };
        tokens[i].size = strnlen((const char *)tokens[i].text, (size_t)size);
        at += sizeof size + (size_t)size;
    }
    for (uint64_t i = 0; i < a->n && !rc; i++) { /* libllama gives an empty one such a text */
        char text[32];
        unsigned long long k;
        int end = 0;

        if (tokens[i].size >= sizeof text)
            continue;
        memcpy(text, tokens[i].text, (size_t)tokens[i].size);
        text[tokens[i].size] = '\0';
        if (sscanf(text, "[EMPTY_%19llu]%n", &k, &end) == 1 && end && !text[end] && k < a->n &&
            !tokens[k].size)
            rc = bad(m, err, "token %llu is what llama.cpp calls token %llu, which is empty",
                     (unsigned long long)i, k);
    }
    qsort(tokens, (size_t)a->n, sizeof *tokens, compare_tokens);
    for (uint64_t i = 1; i < a->n && !rc; i++)
        if (tokens[i].size && tokens[i].size == tokens[i - 1].size &&
            !memcmp(tokens[i].text, tokens[i - 1].text, (size_t)tokens[i].size))
            rc = bad(m, err, "the tokens %llu and %llu are the same text; each must be another one",
                     (unsigned long long)tokens[i - 1].id, (unsigned long long)tokens[i].id);
out:
    free(tokens);
    return rc;
}

static int check_vocab(const nk_model *m, struct nk_error *err)
{
    const char *kind = nk__kv_string(m->kv, "tokenizer.ggml.model");
    struct tokens_array tokens = { 0 }, types = { 0 };
    bool has_tokens = false, has_types = false;
    int rc;

    if (!kind || !strcmp(kind, "none") || !strcmp(kind, "no_vocab"))
        return 0; /* libllama reads no tokens then */
    rc = read_array(m, "tokenizer.ggml.tokens", &tokens, &has_tokens, err);
    if (!rc && has_tokens && tokens.type == GGUF_TYPE_STRING)
        rc = check_different(m, &tokens, err);
    if (!rc && !strcmp(kind, "bert"))
        rc = read_array(m, "tokenizer.ggml.token_type", &types, &has_types, err);
    if (!rc && has_types && (types.type == GGUF_TYPE_INT32 || types.type == GGUF_TYPE_UINT32))
        for (uint64_t i = 0; i < types.n && i < types.size / sizeof(int32_t) && !rc; i++) {
            int32_t type;

            memcpy(&type, types.data + i * sizeof type, sizeof type);
            if (type == TOKEN_TYPE_BYTE)
                rc = bad(m, err,
                         "token %llu stands for a byte, which the tokenizer \"bert\" does not have",
                         (unsigned long long)i);
        }
    free(tokens.data);
    free(types.data);
    return rc;
}

/* ---- numbers ---- */

static bool kv_float(const nk_model *m, const char *key, double *value)
{
    int64_t id = gguf_find_key(m->kv, key);

    if (id < 0)
        return false;
    if (gguf_get_kv_type(m->kv, id) == GGUF_TYPE_FLOAT32)
        *value = (double)gguf_get_val_f32(m->kv, id);
    else if (gguf_get_kv_type(m->kv, id) == GGUF_TYPE_FLOAT64)
        *value = gguf_get_val_f64(m->kv, id);
    else
        return false;
    return true;
}

/* What is added under a square root, and what positions and logits are scaled by: with NaN there
 * all is NaN, and ggml asserts that an epsilon is not negative. */
static int check_floats(const nk_model *m, struct nk_error *err)
{
    static const struct {
        const char *key;
        bool may_be_negative;
    } all[] = {
        { "attention.layer_norm_rms_epsilon", false },
        { "attention.layer_norm_epsilon", false },
        { "attention.group_norm_epsilon", false },
        { "rope.freq_base", false },
        { "rope.freq_base_swa", false },
        { "rope.scaling.factor", false },
        { "rope.scale_linear", false },
        { "attention.scale", true },
        { "logit_scale", true },
        { "final_logit_softcapping", true },
        { "attn_logit_softcapping", true },
        { "attention.clamp_kqv", true },
        { "residual_scale", true },
        { "embedding_scale", true },
    };

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct nk__key k = nk__model_key(m, all[i].key);
        double v;

        if (!kv_float(m, k.text, &v))
            continue;
        if (!isfinite(v) || (v < 0 && !all[i].may_be_negative))
            return bad(m, err, "%s is %g; a finite number%s is expected", k.text, v,
                       all[i].may_be_negative ? "" : " that is not negative");
    }
    return 0;
}

/* The largest element where it is an array per layer; false: missing. */
static bool uint_or_largest(const nk_model *m, const char *key, uint64_t *value)
{
    struct nk__key k = nk__model_key(m, key);
    int64_t e;
    bool any = false;

    if (nk__kv_uint(m->kv, k.text, value))
        return true;
    *value = 0;
    for (size_t i = 0; nk__kv_array_int(m->kv, k.text, i, &e); i++) {
        any = true;
        if (e > 0 && (uint64_t)e > *value)
            *value = (uint64_t)e;
    }
    return any;
}

static int check_experts(const nk_model *m, struct nk_error *err)
{
    const char *arch = m->info.architecture;
    uint64_t n = 0, used = 0;

    uint_or_largest(m, "expert_count", &n);
    uint_or_largest(m, "expert_used_count", &used);
    if (n > EXPERTS_MAX)
        return bad(m, err, "%s.expert_count is %llu; at most %d are possible", arch,
                   (unsigned long long)n, EXPERTS_MAX);
    if (used > n || (n && !used))
        return bad(
            m, err,
            "%s.expert_used_count is %llu of %llu experts (%s.expert_count); %s are possible", arch,
            (unsigned long long)used, (unsigned long long)n, arch, n ? "1 to all" : "0 of none");
    return 0;
}

/* libllama divides the width of these by it. (Others may have the key with a 0.) */
static int check_divisors(const nk_model *m, struct nk_error *err)
{
    static const char *const archs[] = { "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7" };
    struct nk__key k = nk__model_key(m, "wkv.head_size");
    uint64_t v;

    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (!strcmp(m->info.architecture, archs[i]) && nk__kv_uint(m->kv, k.text, &v) && !v)
            return bad(m, err, "%s is 0; 1 or more is expected", k.text);
    return 0;
}

static int check_rope(const nk_model *m, struct nk_error *err)
{
    static const char *const kinds[] = { "none", "linear", "yarn", "longrope" };
    struct nk__key k = nk__model_key(m, "rope.scaling.type");
    const char *kind = nk__kv_string(m->kv, k.text);
    char shown[40];

    for (size_t i = 0; kind && i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kind, kinds[i]))
            return 0;
    if (!kind)
        return 0;
    return bad(m, err, "%s is \"%s\"; none, linear, yarn and longrope are known", k.text,
               nk_visible_line(shown, sizeof shown, kind));
}

int nk__model_check_sound(const nk_model *m, struct nk_error *err)
{
    int rc = check_floats(m, err);

    if (!rc)
        rc = check_experts(m, err);
    if (!rc)
        rc = check_divisors(m, err);
    if (!rc)
        rc = check_rope(m, err);
    return rc ? rc : check_vocab(m, err);
}
