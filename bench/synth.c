/* How a model of gigabytes is made in seconds: quantising random floats costs 50 to 500 ns per
 * weight, copying costs nothing. So per (type, magnitude) a pool of UNITS_PER_POOL quantised units
 * of 256 weights is made with ggml's own quantiser, and every row of every matrix is a random
 * sequence of these units. All blocks are thereby valid ones, no two matrices are equal, and memory
 * traffic and arithmetic are those of a real model.
 *
 * The vocabulary follows Llama 3's layout: 256 byte tokens, merged tokens, and the last 256 ids are
 * control tokens in Llama 3's order (which is what llama.cpp recognises them by). Merges are random
 * strings of letters with the letters' frequencies of English: any text can be tokenised, and
 * English gets shorter by it, but not as short as it should. */
#include "bench/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <ggml.h>
#include <gguf.h>
#include <llama.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/progress.h"

enum {
    UNIT = 256,
    UNITS_PER_POOL = 512,
    POOLS_MAX = 8,
    WRITE_BYTES = 1 << 20,
    N_BYTE_TOKENS = 256,
    N_CONTROL_TOKENS = 256,
    VOCAB_MIN = 1024,
    VOCAB_MAX = 1 << 20,
    TOKEN_BYTES_MAX = 48, /* 16 characters of at most 2 bytes, and a NUL */
    MERGED_CHARS_MAX = 12,
};

static const struct nk_synth_shape presets[] = {
    {
        .name = "llama-1b", /* 1.2 B parameters, the shape of Llama 3.2 1B */
        .n_layers = 16,
        .n_embd = 2048,
        .n_ff = 8192,
        .n_head = 32,
        .n_head_kv = 8,
        .n_vocab = 128256,
        .n_ctx = 131072,
        .type = "Q4_K",
        .embd_type = "Q6_K",
        .seed = 1,
    },
    {
        .name = "tiny", /* 0.15 B parameters, for quick runs */
        .n_layers = 16,
        .n_embd = 768,
        .n_ff = 2560,
        .n_head = 12,
        .n_head_kv = 4,
        .n_vocab = 32768,
        .n_ctx = 8192,
        .type = "Q4_K",
        .embd_type = "Q6_K",
        .seed = 1,
    },
    {
        .name = "moe", /* 0.5 B parameters, 8 experts of which 2 are used */
        .n_layers = 12,
        .n_embd = 1024,
        .n_ff = 1536,
        .n_head = 16,
        .n_head_kv = 8,
        .n_vocab = 32768,
        .n_ctx = 8192,
        .n_expert = 8,
        .n_expert_used = 2,
        .type = "Q4_K",
        .embd_type = "Q6_K",
        .seed = 1,
    },
    { .name = NULL },
};

/* The types that ggml can quantise to and compute with, and what general.file_type calls a model of
 * them. */
/* clang-format off */
#define TYPES(XX)                                                                           \
    XX(F32, ALL_F32)            XX(F16, MOSTLY_F16)         XX(BF16, MOSTLY_BF16)           \
    XX(Q4_0, MOSTLY_Q4_0)       XX(Q4_1, MOSTLY_Q4_1)       XX(Q5_0, MOSTLY_Q5_0)           \
    XX(Q5_1, MOSTLY_Q5_1)       XX(Q8_0, MOSTLY_Q8_0)       XX(Q2_K, MOSTLY_Q2_K)           \
    XX(Q3_K, MOSTLY_Q3_K_M)     XX(Q4_K, MOSTLY_Q4_K_S)     XX(Q5_K, MOSTLY_Q5_K_S)         \
    XX(Q6_K, MOSTLY_Q6_K)       XX(IQ1_S, MOSTLY_IQ1_S)     XX(IQ1_M, MOSTLY_IQ1_M)         \
    XX(IQ2_XXS, MOSTLY_IQ2_XXS) XX(IQ2_XS, MOSTLY_IQ2_XS)   XX(IQ2_S, MOSTLY_IQ2_S)         \
    XX(IQ3_XXS, MOSTLY_IQ3_XXS) XX(IQ3_S, MOSTLY_IQ3_S)     XX(IQ4_NL, MOSTLY_IQ4_NL)       \
    XX(IQ4_XS, MOSTLY_IQ4_XS)   XX(TQ1_0, MOSTLY_TQ1_0)     XX(TQ2_0, MOSTLY_TQ2_0)         \
    XX(MXFP4, MOSTLY_MXFP4_MOE)
/* clang-format on */
static const struct {
    enum ggml_type type;
    enum llama_ftype ftype;
} types[] = {
#define XX(type, ftype) { GGML_TYPE_##type, LLAMA_FTYPE_##ftype },
    TYPES(XX)
#undef XX
};
enum { N_TYPES = sizeof types / sizeof types[0] };

int nk_synth_preset(const char *name, struct nk_synth_shape *out, struct nk_error *err)
{
    char list[128] = "";

    for (int i = 0; presets[i].name; i++) {
        size_t n = strlen(list);

        if (!strcmp(presets[i].name, name)) {
            *out = presets[i];
            return 0;
        }
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", presets[i].name);
    }
    return nk_fail(err, NK_E_NOT_FOUND, "no_shape", "'%s' is no shape; there are %s", name, list);
}

/* ---- random numbers: splitmix64 (Steele, Lea, Flood 2014), integers only, so that every machine
 * draws the same ---- */

static uint64_t next64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, n), n at most 2^32. */
static uint64_t below(uint64_t *state, uint64_t n)
{
    return (next64(state) >> 32) * n >> 32;
}

/* Normal, mean 0, variance 1: the sum of 12 16-bit uniforms (Irwin-Hall); no libm, bounded by 6. */
static float normal(uint64_t *state)
{
    int64_t sum = 0;

    for (int i = 0; i < 3; i++) {
        uint64_t u = next64(state);

        sum += (int64_t)((u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48));
    }
    return (float)((double)(sum - 6 * 65535) / 65536.0);
}

/* ---- types ---- */

static int find_type(const char *name, int64_t n_per_row, const char *what, int *type_idx,
                     struct nk_error *err)
{
    char list[256] = "";

    for (int i = 0; i < N_TYPES; i++) {
        size_t n = strlen(list);

        if (!strcasecmp(ggml_type_name(types[i].type), name)) {
            int64_t block = ggml_blck_size(types[i].type);

            if (n_per_row % block)
                return nk_fail(
                    err, NK_E_INVALID, "bad_type",
                    "type %s has blocks of %lld weights; the %s of %lld is no multiple of that",
                    name, (long long)block, what, (long long)n_per_row);
            *type_idx = i;
            return 0;
        }
        snprintf(list + n, sizeof list - n, "%s%s", n ? " " : "", ggml_type_name(types[i].type));
    }
    return nk_fail(err, NK_E_INVALID, "bad_type", "'%s' is no type for weights; there are %s", name,
                   list);
}

struct pool {
    enum ggml_type type;
    int64_t fan_in;
    size_t unit_bytes;
    uint8_t *units; /* UNITS_PER_POOL x unit_bytes */
};

/* ---- a model under construction ---- */

enum fill { FILL_RANDOM, FILL_NORM, FILL_ROPE };

struct tensor {
    struct ggml_tensor *t;
    enum fill fill;
};

struct synth {
    const struct nk_synth_shape *shape;
    int type_idx, embd_type_idx;
    struct gguf_context *gguf;
    struct ggml_context *ggml; /* holds descriptions only */
    struct tensor *tensors;
    int n_tensors, n_tensors_max;
    struct pool pools[POOLS_MAX];
    int n_pools;
    struct nk_newfile file;
    uint8_t *out; /* WRITE_BYTES and one unit */
};

static int check_shape(const struct nk_synth_shape *s, struct synth *y, struct nk_error *err)
{
    const struct {
        const char *name;
        int value, min, max;
    } ranges[] = {
        { "layers", s->n_layers, 1, 1024 },
        { "width", s->n_embd, 32, 1 << 16 },
        { "feed-forward size", s->n_ff, 32, 1 << 18 },
        { "heads", s->n_head, 1, 1024 },
        { "KV heads", s->n_head_kv, 1, 1024 },
        { "vocabulary", s->n_vocab, VOCAB_MIN, VOCAB_MAX },
        { "context", s->n_ctx, 16, 1 << 24 },
        { "experts", s->n_expert, 0, 256 },
    };
    const char *embd_type = s->embd_type;
    int head_dim, rc;

    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return nk_fail(err, NK_E_INVALID, "bad_shape", "%s: %d is outside %d to %d",
                           ranges[i].name, ranges[i].value, ranges[i].min, ranges[i].max);
    if (s->n_embd % 32 || s->n_ff % 32)
        return nk_fail(err, NK_E_INVALID, "bad_shape",
                       "width %d and feed-forward size %d: both must be multiples of 32", s->n_embd,
                       s->n_ff);
    head_dim = s->n_embd / s->n_head;
    if (s->n_embd % s->n_head || head_dim % 2)
        return nk_fail(err, NK_E_INVALID, "bad_shape",
                       "width %d cannot be cut into %d heads of an even size", s->n_embd,
                       s->n_head);
    if (s->n_head % s->n_head_kv)
        return nk_fail(err, NK_E_INVALID, "bad_shape", "%d heads cannot share %d KV heads evenly",
                       s->n_head, s->n_head_kv);
    if (s->n_expert ? s->n_expert_used < 1 || s->n_expert_used > s->n_expert
                    : s->n_expert_used != 0)
        return nk_fail(err, NK_E_INVALID, "bad_shape", "%d experts cannot be used out of %d",
                       s->n_expert_used, s->n_expert);
    rc = find_type(s->type, s->n_embd, "width", &y->type_idx, err);
    if (!rc)
        rc = find_type(s->type, s->n_ff, "feed-forward size", &y->type_idx, err);
    if (rc)
        return rc;
    if (!embd_type)
        embd_type = ggml_blck_size(types[y->type_idx].type) == UNIT ? "Q6_K" : s->type;
    return find_type(embd_type, s->n_embd, "width", &y->embd_type_idx, err);
}

/* ---- vocabulary ---- */

/* A character of GPT-2's byte-level alphabet as UTF-8: printable bytes stand for themselves, the
 * others are moved to U+0100 and up in the order of their values. */
static int byte_symbol(int byte, char out[3])
{
    int code = byte;

    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
        code = 256;
        for (int b = 0; b < byte; b++)
            code += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    }
    if (code < 128) {
        out[0] = (char)code;
        out[1] = 0;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    out[2] = 0;
    return 2;
}

struct vocab {
    int n, n_merged; /* n_merged: of byte and merged tokens together */
    char (*text)[TOKEN_BYTES_MAX];
    const char **tokens; /* into text */
    int32_t *kinds;
    char (*merge_text)[TOKEN_BYTES_MAX];
    const char **merges;
    int n_merges;
    int *slots; /* open addressing: token index + 1 */
    size_t n_slots;
    int *words; /* ids of strings of letters that may stand at a merge's left or right */
    int n_words;
};

static void vocab_release(struct vocab *v)
{
    free(v->text);
    free(v->tokens);
    free(v->kinds);
    free(v->merge_text);
    free(v->merges);
    free(v->slots);
    free(v->words);
}

/* Adds text as token v->n_merged; false when it is there already. */
static bool vocab_add(struct vocab *v, const char *text)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    size_t slot;

    for (const char *p = text; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3u;
    for (slot = h % v->n_slots; v->slots[slot]; slot = (slot + 1) % v->n_slots)
        if (!strcmp(v->text[v->slots[slot] - 1], text))
            return false;
    snprintf(v->text[v->n_merged], TOKEN_BYTES_MAX, "%s", text);
    v->kinds[v->n_merged] = 1; /* LLAMA_TOKEN_TYPE_NORMAL */
    v->slots[slot] = ++v->n_merged;
    return true;
}

/* A letter or an earlier merged string; earlier ones far more often, as in a BPE that was trained
 * on text. */
static int pick_word(const struct vocab *v, uint64_t *rng)
{
    static const char letters[] =
        "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddllllcccuuu"
        "mmmwwffggyyppbbvkjxqz";
    uint64_t i;

    if (v->n_words == 0 || below(rng, 3) == 0)
        return letters[below(rng,
                             sizeof letters - 1)]; /* byte tokens have the byte's value as id */
    i = below(rng, 1 << 16);
    i = (i * i >> 16) * (uint64_t)v->n_words >> 16;
    return v->words[i];
}

static int vocab_make(struct vocab *v, const struct nk_synth_shape *s, struct nk_error *err)
{
    static const char *const control[10] = {
        "<|begin_of_text|>",   "<|end_of_text|>",   NULL,         NULL,        NULL, NULL,
        "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"
    };
    const char *space = "\xc4\xa0"; /* byte 32 in the alphabet */
    uint64_t rng = 0x766f636162u;   /* not the seed: models of one shape share their vocabulary */
    int n_text = s->n_vocab - N_CONTROL_TOKENS;
    char joined[2 * TOKEN_BYTES_MAX];

    *v = (struct vocab){ .n = s->n_vocab, .n_slots = (size_t)s->n_vocab * 2 + 1 };
    v->text = calloc((size_t)v->n, sizeof *v->text);
    v->tokens = calloc((size_t)v->n, sizeof *v->tokens);
    v->kinds = calloc((size_t)v->n, sizeof *v->kinds);
    v->merge_text = calloc((size_t)v->n, sizeof *v->merge_text);
    v->merges = calloc((size_t)v->n, sizeof *v->merges);
    v->slots = calloc(v->n_slots, sizeof *v->slots);
    v->words = calloc((size_t)v->n, sizeof *v->words);
    if (!v->text || !v->tokens || !v->kinds || !v->merge_text || !v->merges || !v->slots ||
        !v->words)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a vocabulary of %d",
                       s->n_vocab);
    for (int b = 0; b < N_BYTE_TOKENS; b++) {
        char symbol[3];

        byte_symbol(b, symbol);
        vocab_add(v, symbol);
    }
    while (v->n_merged < n_text) {
        bool spaced = below(&rng, 2);
        const char *right = v->text[pick_word(v, &rng)],
                   *left = spaced ? space : v->text[pick_word(v, &rng)];

        if (strlen(left) + strlen(right) > MERGED_CHARS_MAX)
            continue;
        snprintf(joined, sizeof joined, "%s%s", left, right);
        if (!vocab_add(v, joined))
            continue;
        snprintf(v->merge_text[v->n_merges], TOKEN_BYTES_MAX, "%s %s", left, right);
        v->n_merges++;
        if (!spaced)
            v->words[v->n_words++] = v->n_merged - 1;
    }
    for (int i = 0, n_reserved = 0; i < N_CONTROL_TOKENS; i++) {
        char *text = v->text[n_text + i];

        if (i < 10 && control[i])
            snprintf(text, TOKEN_BYTES_MAX, "%s", control[i]);
        else
            snprintf(text, TOKEN_BYTES_MAX, "<|reserved_special_token_%d|>", n_reserved++);
        v->kinds[n_text + i] = 3; /* LLAMA_TOKEN_TYPE_CONTROL */
    }
    for (int i = 0; i < v->n; i++) {
        v->tokens[i] = v->text[i];
        v->merges[i] = v->merge_text[i];
    }
    return 0;
}

static int add_vocab(struct synth *y, struct nk_error *err)
{
    static const char template[] = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ "
                                   "m['role'] }}<|end_header_id|>\n\n"
                                   "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
                                   "{% if add_generation_prompt "
                                   "%}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
    uint32_t control = (uint32_t)(y->shape->n_vocab - N_CONTROL_TOKENS);
    struct vocab v;
    int rc = vocab_make(&v, y->shape, err);

    if (!rc) {
        gguf_set_val_str(y->gguf, "tokenizer.ggml.model", "gpt2");
        gguf_set_val_str(y->gguf, "tokenizer.ggml.pre", "llama-bpe");
        gguf_set_arr_str(y->gguf, "tokenizer.ggml.tokens", v.tokens, (size_t)v.n);
        gguf_set_arr_data(y->gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, v.kinds,
                          (size_t)v.n);
        gguf_set_arr_str(y->gguf, "tokenizer.ggml.merges", v.merges, (size_t)v.n_merges);
        gguf_set_val_u32(y->gguf, "tokenizer.ggml.bos_token_id", control);
        gguf_set_val_u32(y->gguf, "tokenizer.ggml.eos_token_id", control + 9);
        gguf_set_val_bool(y->gguf, "tokenizer.ggml.add_bos_token", true);
        gguf_set_val_str(y->gguf, "tokenizer.chat_template", template);
    }
    vocab_release(&v);
    return rc;
}

/* ---- metadata and tensors ---- */

static void add_metadata(struct synth *y)
{
    const struct nk_synth_shape *s = y->shape;
    char text[128];

    gguf_set_val_str(y->gguf, "general.architecture", "llama");
    gguf_set_val_str(y->gguf, "general.type", "model");
    snprintf(text, sizeof text, "Synthetic %s", s->name);
    gguf_set_val_str(y->gguf, "general.name", text);
    snprintf(text, sizeof text, "random weights (seed %llu): for measuring, not for text",
             (unsigned long long)s->seed);
    gguf_set_val_str(y->gguf, "general.description", text);
    gguf_set_val_u32(y->gguf, "general.file_type", (uint32_t)types[y->type_idx].ftype);
    gguf_set_val_u32(y->gguf, "general.quantization_version", GGML_QNT_VERSION);
    gguf_set_val_u32(y->gguf, "llama.block_count", (uint32_t)s->n_layers);
    gguf_set_val_u32(y->gguf, "llama.context_length", (uint32_t)s->n_ctx);
    gguf_set_val_u32(y->gguf, "llama.embedding_length", (uint32_t)s->n_embd);
    gguf_set_val_u32(y->gguf, "llama.feed_forward_length", (uint32_t)s->n_ff);
    gguf_set_val_u32(y->gguf, "llama.attention.head_count", (uint32_t)s->n_head);
    gguf_set_val_u32(y->gguf, "llama.attention.head_count_kv", (uint32_t)s->n_head_kv);
    gguf_set_val_f32(y->gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_u32(y->gguf, "llama.rope.dimension_count", (uint32_t)(s->n_embd / s->n_head));
    gguf_set_val_f32(y->gguf, "llama.rope.freq_base", 500000.0f);
    gguf_set_val_u32(y->gguf, "llama.vocab_size", (uint32_t)s->n_vocab);
    if (s->n_expert) {
        gguf_set_val_u32(y->gguf, "llama.expert_count", (uint32_t)s->n_expert);
        gguf_set_val_u32(y->gguf, "llama.expert_used_count", (uint32_t)s->n_expert_used);
    }
}

static void add_tensor(struct synth *y, const char *name, enum fill fill, enum ggml_type type,
                       int64_t ne0, int64_t ne1, int64_t ne2)
{
    struct ggml_tensor *t = ne2   ? ggml_new_tensor_3d(y->ggml, type, ne0, ne1, ne2)
                            : ne1 ? ggml_new_tensor_2d(y->ggml, type, ne0, ne1)
                                  : ggml_new_tensor_1d(y->ggml, type, ne0);

    NK_ASSERT(y->n_tensors < y->n_tensors_max);
    ggml_set_name(t, name);
    gguf_add_tensor(y->gguf, t);
    y->tensors[y->n_tensors++] = (struct tensor){ t, fill };
}

static int add_tensors(struct synth *y, struct nk_error *err)
{
    const struct nk_synth_shape *s = y->shape;
    enum ggml_type type = types[y->type_idx].type, embd_type = types[y->embd_type_idx].type;
    int64_t width = s->n_embd, ff = s->n_ff, kv = (int64_t)s->n_head_kv * (s->n_embd / s->n_head);
    char name[64];

    y->n_tensors_max = 12 * s->n_layers + 4;
    y->tensors = calloc((size_t)y->n_tensors_max, sizeof *y->tensors);
    y->ggml = ggml_init((struct ggml_init_params){
        (size_t)y->n_tensors_max * ggml_tensor_overhead() + 1024, NULL, true });
    if (!y->tensors || !y->ggml)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %d tensors",
                       y->n_tensors_max);
    add_tensor(y, "token_embd.weight", FILL_RANDOM, embd_type, width, s->n_vocab, 0);
    add_tensor(y, "output_norm.weight", FILL_NORM, GGML_TYPE_F32, width, 0, 0);
    if (s->untied)
        add_tensor(y, "output.weight", FILL_RANDOM, embd_type, width, s->n_vocab, 0);
    if (!s->no_rope_freqs)
        add_tensor(y, "rope_freqs.weight", FILL_ROPE, GGML_TYPE_F32, width / s->n_head / 2, 0, 0);
    for (int i = 0; i < s->n_layers; i++) {
        int64_t experts = s->n_expert;
        const char *suffix = experts ? "_exps" : "";
        const struct {
            const char *name, *suffix;
            enum fill fill;
            int64_t ne0, ne1, ne2;
        } layer[] = {
            { "attn_norm", "", FILL_NORM, width, 0, 0 },
            { "attn_q", "", FILL_RANDOM, width, width, 0 },
            { "attn_k", "", FILL_RANDOM, width, kv, 0 },
            { "attn_v", "", FILL_RANDOM, width, kv, 0 },
            { "attn_output", "", FILL_RANDOM, width, width, 0 },
            { "ffn_norm", "", FILL_NORM, width, 0, 0 },
            { "ffn_gate", suffix, FILL_RANDOM, width, ff, experts },
            { "ffn_up", suffix, FILL_RANDOM, width, ff, experts },
            { "ffn_down", suffix, FILL_RANDOM, ff, width, experts },
        };

        for (size_t j = 0; j < sizeof layer / sizeof layer[0]; j++) {
            snprintf(name, sizeof name, "blk.%d.%s%s.weight", i, layer[j].name, layer[j].suffix);
            add_tensor(y, name, layer[j].fill, layer[j].fill == FILL_NORM ? GGML_TYPE_F32 : type,
                       layer[j].ne0, layer[j].ne1, layer[j].ne2);
        }
        if (experts) {
            snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", i);
            add_tensor(y, name, FILL_RANDOM, GGML_TYPE_F32, width, experts, 0);
        }
    }
    return 0;
}

/* ---- data ---- */

static int get_pool(struct synth *y, enum ggml_type type, int64_t fan_in, const struct pool **out,
                    struct nk_error *err)
{
    uint64_t rng = y->shape->seed ^ (uint64_t)fan_in << 20 ^ (uint64_t)type << 48;
    float sigma = 1.0f / sqrtf((float)fan_in), source[UNIT], importance[UNIT];
    struct pool *p = &y->pools[y->n_pools];

    for (int i = 0; i < y->n_pools; i++)
        if (y->pools[i].type == type && y->pools[i].fan_in == fan_in) {
            *out = &y->pools[i];
            return 0;
        }
    NK_ASSERT(y->n_pools < POOLS_MAX);
    *p = (struct pool){ .type = type, .fan_in = fan_in, .unit_bytes = ggml_row_size(type, UNIT) };
    p->units = malloc(p->unit_bytes * UNITS_PER_POOL);
    if (!p->units)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    y->n_pools++;
    for (int i = 0; i < UNIT; i++)
        importance[i] = 1.0f;
    for (size_t u = 0; u < UNITS_PER_POOL; u++) {
        for (int i = 0; i < UNIT; i++)
            source[i] = sigma * normal(&rng);
        ggml_quantize_chunk(type, source, p->units + u * p->unit_bytes, 0, 1, UNIT, importance);
    }
    *out = p;
    return 0;
}

static int write_random(struct synth *y, const struct ggml_tensor *t, uint64_t *rng,
                        struct nk_error *err)
{
    int64_t left = ggml_nelements(t);
    const struct pool *pool = NULL;
    size_t used = 0;
    int rc = get_pool(y, t->type, t->ne[0], &pool, err);

    if (rc)
        return rc;
    /* Rows of other lengths than multiples of a unit are no trouble: a tensor's bytes are its
     * blocks one after another, and a part of a unit is whole blocks, since 32 divides the width
     * and a type's block divides both. */
    while (left) {
        int64_t n = left < UNIT ? left : UNIT;

        memcpy(y->out + used, pool->units + (next64(rng) % UNITS_PER_POOL) * pool->unit_bytes,
               ggml_row_size(t->type, n));
        used += ggml_row_size(t->type, n);
        left -= n;
        if (used < WRITE_BYTES && left)
            continue;
        rc = nk_newfile_write(&y->file, y->out, used, err);
        if (rc)
            return rc;
        used = 0;
    }
    return 0;
}

/* Llama 3's scaling of RoPE by wavelength, as its configuration states it (factor 32, low 1, high
 * 4, trained with 8192): the tensor holds what llama.cpp divides each frequency by. */
static float rope_factor(int i, int head_dim)
{
    const double factor = 32, low = 1, high = 4, n_ctx = 8192;
    double wavelength = 2 * 3.14159265358979323846 * pow(500000.0, 2.0 * i / head_dim);
    double smooth = (n_ctx / wavelength - low) / (high - low);

    if (wavelength < n_ctx / high)
        return 1;
    if (wavelength > n_ctx / low)
        return (float)factor;
    return (float)(1 / ((1 - smooth) / factor + smooth));
}

static int write_tensor(struct synth *y, int idx, struct nk_error *err)
{
    static const char zeros[GGUF_DEFAULT_ALIGNMENT];
    const struct tensor *tensor = &y->tensors[idx];
    uint64_t rng = y->shape->seed * 0x2545f4914f6cdd1du + (uint64_t)idx;
    size_t size = ggml_nbytes(tensor->t),
           padding =
               (GGUF_DEFAULT_ALIGNMENT - size % GGUF_DEFAULT_ALIGNMENT) % GGUF_DEFAULT_ALIGNMENT;
    int rc = 0;

    if (tensor->fill == FILL_RANDOM) {
        rc = write_random(y, tensor->t, &rng, err);
    } else {
        int n = (int)tensor->t->ne[0];
        float *values = (float *)(void *)y->out; /* malloc'ed: aligned; at most 2^16 of them */

        for (int i = 0; i < n; i++)
            values[i] =
                tensor->fill == FILL_NORM ? 1.0f + 0.05f * normal(&rng) : rope_factor(i, 2 * n);
        rc = nk_newfile_write(&y->file, values, size, err);
    }
    return rc ? rc : nk_newfile_write(&y->file, zeros, padding, err);
}

static void count(const struct synth *y, struct nk_synth_result *r)
{
    const struct nk_synth_shape *s = y->shape;

    *r = (struct nk_synth_result){ .file_bytes = gguf_get_meta_size(y->gguf) };
    for (int i = 0; i < y->n_tensors; i++) {
        const struct ggml_tensor *t = y->tensors[i].t;
        uint64_t n = (uint64_t)ggml_nelements(t);

        r->n_params += n;
        r->n_params_active +=
            t->ne[2] > 1 ? n / (uint64_t)s->n_expert * (uint64_t)s->n_expert_used : n;
        r->file_bytes += GGML_PAD(ggml_nbytes(t), GGUF_DEFAULT_ALIGNMENT);
        if (!strncmp(t->name, "blk.0.", 6))
            r->weights_bytes_layer += ggml_nbytes(t);
    }
}

int nk_synth_write(const char *path, const struct nk_synth_shape *shape,
                   struct nk_synth_result *result, struct nk_error *err)
{
    struct synth y = { .shape = shape, .file = NK_NEWFILE_INIT };
    struct nk_synth_result counted;
    struct nk_progress progress;
    uint8_t *meta = NULL;
    size_t meta_bytes;
    int rc;

    rc = check_shape(shape, &y, err);
    if (rc)
        return rc;
    y.gguf = gguf_init_empty();
    y.out = malloc(WRITE_BYTES + UNIT * sizeof(float));
    if (!y.gguf || !y.out) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    add_metadata(&y);
    rc = add_vocab(&y, err);
    if (!rc)
        rc = add_tensors(&y, err);
    if (rc)
        goto out;
    count(&y, &counted);
    meta_bytes = gguf_get_meta_size(y.gguf);
    meta = malloc(meta_bytes);
    if (!meta) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    gguf_get_meta_data(y.gguf, meta);
    rc = nk_newfile_open(&y.file, path, err);
    if (rc)
        goto out;
    nk_progress_start(&progress, "writing", counted.file_bytes);
    rc = nk_newfile_write(&y.file, meta, meta_bytes, err);
    for (int i = 0; !rc && i < y.n_tensors; i++) {
        rc = write_tensor(&y, i, err);
        nk_progress_add(&progress, ggml_nbytes(y.tensors[i].t));
    }
    nk_progress_end(&progress);
    if (!rc)
        rc = nk_newfile_commit(&y.file, err);
    if (!rc && result)
        *result = counted;
out:
    nk_newfile_abort(&y.file);
    for (int i = 0; i < y.n_pools; i++)
        free(y.pools[i].units);
    ggml_quantize_free();
    free(meta);
    free(y.out);
    free(y.tensors);
    if (y.ggml)
        ggml_free(y.ggml);
    if (y.gguf)
        gguf_free(y.gguf);
    return rc;
}
