/* The architecture table: what a slice of this or that architecture needs besides the general
 * recipe, where it may be cut and what cannot be cut. The general recipe is in write.c; arch_int.h
 * says what each rule means.
 *
 * To teach it a new architecture: run the conformance test. What is exact without a row needs none.
 * A row says what was found in llama.cpp's code (llama_model::load_hparams for patterns and keys),
 * and `why` is the sentence a person reads when a cut is refused. */
#include "slice/arch_int.h"

#include <gguf.h>
#include <llama.h>
#include <stdio.h>
#include <string.h>

#include "slice/model_int.h"

#define KINDS    "every slice needs at least one layer of each kind"
#define SWA      "it has sliding-window and full-attention layers, and " KINDS
#define HYBRID   "it has recurrent and attention layers, and " KINDS
#define COMPRESS "its layers compress their keys by different ratios, and " KINDS
#define DIFFUSE  "it is a diffusion model: it does not generate one token after the other"
#define ENCODER  "it is an encoder"
#define NO_ROPE  "every fourth layer is treated specially, by its number in the whole model"
#define SCALED   "every fourth layer has no rotary positions and scales its queries, and " KINDS
#define PATTERN  "attention.sliding_window_pattern"
#define RECURR   "attention.recurrent_layers"
#define INDEXERS "attention.indexer.types"
#define INDEXED  "that layer attends to what the one before it chose"
#define ATTENDS  "some of its layers have no attention, and " KINDS
#define EXPERTS  "every so many layers have experts"
#define SCALED27 "its attention is scaled as the 27B model's"
#define SIGMOID  "its experts are chosen by a sigmoid"
#define LITE     "it is DeepSeek V2 Lite"
#define DRAFT    "it is a draft model: it runs on another model's rows"

/* clang-format off */
static const struct nk__arch_row table[] = {
    /* arch, rule, key, n, from, why */

    /* Keys that mean the same everywhere. */
    { "*", NK__SHIFT,         "leading_dense_block_count", 0, NULL, NULL },
    { "*", NK__SET,           "nextn_predict_layers",      0, NULL, NULL }, /* not in the slices */
    { "*", NK__NOT_PER_LAYER, "rope.dimension_sections",   0, NULL, NULL },
    { "*", NK__NOT_PER_LAYER, "rope.scaling.*",            0, NULL, NULL },
    { "*", NK__NOT_PER_LAYER, "classifier.output_labels",  0, NULL, NULL },
    { "*", NK__PER_LAYER,     "xielu.*",                   0, NULL, NULL },
    { "*", NK__KIND_KEY,      PATTERN,                     0, NULL, SWA },
    { "*", NK__KIND_KEY,      RECURR,                      0, NULL, HYBRID },
    { "*", NK__KIND_KEY,      "attention.head_count_kv",   0, NULL, HYBRID },
    { "deepseek4", NK__KIND_KEY, "attention.compress_ratios", 4,   NULL, COMPRESS },
    { "deepseek4", NK__KIND_KEY, "attention.compress_ratios", 128, NULL, COMPRESS },
    { "*", NK__KIND_TENSOR,   "ssm_*",                     0, NULL, HYBRID },
    { "*", NK__KIND_TENSOR,   "shortconv.*",               0, NULL, HYBRID },
    { "*", NK__KIND_TENSOR,   "attn_k*",                   0, NULL, ATTENDS },

    /* Sliding windows by layer number. */
    { "gemma2",       NK__PATTERN, PATTERN,  2, PATTERN, SWA },
    { "gemma3",       NK__PATTERN, PATTERN,  6, PATTERN, SWA },
    { "cohere2",      NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "cohere2moe",   NK__PATTERN, PATTERN, -4, PATTERN, SWA },
    { "gpt-oss",      NK__PATTERN, PATTERN,  2, PATTERN, SWA },
    { "llama4",       NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "olmo2",        NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "mellum",       NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "exaone-moe",   NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "afmoe",        NK__PATTERN, PATTERN,  4, PATTERN, SWA },
    { "plamo3",       NK__PATTERN, PATTERN,  8, PATTERN, SWA },
    { "smallthinker", NK__PATTERN, PATTERN, -4, PATTERN, SWA },
    { "laguna",       NK__PATTERN, PATTERN, -4, PATTERN, SWA },
    { "muse-glimmer", NK__PATTERN, PATTERN,  4, PATTERN, SWA },

    /* Recurrent layers by layer number. */
    { "qwen3next",    NK__PATTERN, RECURR,   4, "full_attention_interval", HYBRID },
    { "qwen35",       NK__PATTERN, RECURR,   4, "full_attention_interval", HYBRID },
    { "qwen35moe",    NK__PATTERN, RECURR,   4, "full_attention_interval", HYBRID },

    /* Head sizes are the width over the first layer's heads; a recurrent layer has none. */
    { "jamba",          NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "granitehybrid",  NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "nemotron_h",     NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "nemotron_h_moe", NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "lfm2",           NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "lfm2moe",        NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "plamo2",         NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "kimi-linear",    NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "bailingmoe3",    NK__FILL_FIRST, "attention.head_count", 0, NULL, NULL },
    { "hy_v4",        NK__CUT_WHERE, INDEXERS, 0, NULL, INDEXED },
    { "glm-dsa",      NK__CUT_WHERE, INDEXERS, 0, NULL, INDEXED },
    { "glm5-next",    NK__CUT_WHERE, INDEXERS, 0, NULL, INDEXED },
    { "deci",         NK__CUT_WHERE, "attention.head_count", 0, NULL,
      "it would begin with a layer without attention" },

    /* Several sequences in one batch. Not mamba, mamba2 and deepseek4, which llama.cpp runs
     * sequence by sequence, and not plamo2, on which it stops. */
    { "bailingmoe3",    NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "falcon-h1",      NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "glm5-next",      NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "granitehybrid",  NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "jamba",          NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "kimi-linear",    NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "lfm2",           NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "lfm2moe",        NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "nemotron_h",     NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "nemotron_h_moe", NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "qwen35",         NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "qwen35moe",      NK__EQUAL_ROWS, NULL, 0, NULL, NULL },
    { "qwen3next",      NK__EQUAL_ROWS, NULL, 0, NULL, NULL },

    /* Patterns that no key can say. */
    { "llama4",       NK__PERIOD,     NULL, 4, NULL, NO_ROPE },
    { "llama4",       NK__KIND_PERIOD, NULL, 4, NULL, SCALED },
    { "llama4",       NK__PERIOD_KEY, "interleave_moe_layer_step", 0, NULL, EXPERTS },
    { "afmoe",        NK__PERIOD,     NULL, 4, NULL, NO_ROPE },
    { "smollm3",      NK__PERIOD,     NULL, 4, NULL, NO_ROPE },
    { "smallthinker", NK__PERIOD,     NULL, 4, NULL, NO_ROPE },
    { "maion-coder",  NK__PERIOD_KEY, "interleave_moe_layer_step", 0, NULL, EXPERTS },
    { "ernie4_5-moe", NK__PERIOD_KEY, "interleave_moe_layer_step", 0, NULL, EXPERTS },
    { "rwkv6",        NK__PERIOD_KEY, "rescale_every_n_layers", 0, NULL,
      "every so many layers are rescaled" },
    { "rwkv6qwen2",   NK__PERIOD_KEY, "rescale_every_n_layers", 0, NULL,
      "every so many layers are rescaled" },
    { "k2-horizon",   NK__PERIOD_KEY, "moe_every_n_layers", 0, NULL, EXPERTS },

    /* The first so many layers add an image's features (zeros, for text). */
    { "qwen3vl",      NK__SHIFT, "n_deepstack_layers", 0, NULL, NULL },
    { "qwen3vlmoe",   NK__SHIFT, "n_deepstack_layers", 0, NULL, NULL },

    /* llama.cpp recognises the model by its number of layers and computes something else for it. */
    { "gemma2",       NK__COUNT_MATTERS, NULL, 46, "27B", SCALED27 },
    { "gemma3",       NK__COUNT_MATTERS, NULL, 62, "27B", SCALED27 },
    { "smallthinker", NK__COUNT_MATTERS, NULL, 4, NULL, "every layer has rotary positions" },
    { "exaone4",      NK__COUNT_MATTERS, NULL, 64, "32B", "it has sliding windows" },
    { "deepseek2",    NK__COUNT_MATTERS, "expert_gating_func", 47, NULL, SIGMOID },
    { "deepseek2",    NK__COUNT_MATTERS, "expert_gating_func", 48, NULL, SIGMOID },
    { "baichuan",     NK__COUNT_MATTERS, NULL, 32, "7B", "it has rotary positions" },
    { "baichuan",     NK__COUNT_MATTERS, NULL, 40, "13B", "it has ALiBi positions" },

    /* ... or for a slice that happens to have that number. DeepSeek V2 Lite, which llama.cpp takes
     * a model of 26, 27 or 48 layers for, is the one without low-rank queries; its slices say
     * so. */
    { "deepseek2",    NK__COUNT_AVOID, "attention.q_lora_rank", 26, NULL, LITE },
    { "deepseek2",    NK__COUNT_AVOID, "attention.q_lora_rank", 27, NULL, LITE },
    { "deepseek2",    NK__COUNT_AVOID, "attention.q_lora_rank", 48, NULL, LITE },
    { "deepseek2",    NK__DEFAULT, "attention.q_lora_rank", 0, NULL, NULL },

    /* A scale that llama.cpp computes from the number of layers; newer files have it. */
    { "minicpm",      NK__DEFAULT_SCALE, "residual_scale", 14, NULL, NULL },

    /* More than one row leaves a layer, or layers look at other layers. */
    { "rwkv7",        NK__REFUSE, NULL, 0, NULL, "every layer uses the values of the first" },
    { "arwkv7",       NK__REFUSE, NULL, 0, NULL, "every layer uses the values of the first" },
    { "talkie",       NK__REFUSE, NULL, 0, NULL, "every layer uses the embedding again" },
    { "kimi-k3",      NK__REFUSE, NULL, 0, NULL,
      "every layer uses the outputs of all layers before it" },
    { "hrm_text",     NK__REFUSE, NULL, 0, NULL, "its layers are run several times, in stacks" },
    { "qwen4exp",     NK__REFUSE, NULL, 0, NULL,
      "some of its layers look up embeddings by the ids of several tokens" },
    { "glm-dsa",      NK__REFUSE_IF, "context_length", 1048576, INDEXERS,
      "it is a GLM 5.2 without the key attention.indexer.types, which says what layers share" },
    { "gemma4",       NK__REFUSE_IF, "embedding_length_per_layer_input", 0, NULL,
      "every layer looks up an embedding of its own" },
    { "gemma4",       NK__REFUSE_IF, "attention.shared_kv_layers", 0, NULL,
      "its last layers use keys and values of other layers" },
    { "gemma3n",      NK__REFUSE, NULL, 0, NULL,
      "its layers use inputs, keys and values of other layers" },

    /* Constants that llama.cpp computes from the model's number of layers or a layer's number. */
    { "minicpm3",     NK__REFUSE, NULL, 0, NULL,
      "llama.cpp scales every layer's output by the number of layers in the file" },
    { "minimax-01",   NK__REFUSE, NULL, 0, NULL,
      "how fast a layer forgets depends on its number and the number of layers in the file" },

    /* Not decoders of the plain kind. */
    { "dream",            NK__REFUSE, NULL, 0, NULL, DIFFUSE },
    { "llada",            NK__REFUSE, NULL, 0, NULL, DIFFUSE },
    { "llada-moe",        NK__REFUSE, NULL, 0, NULL, DIFFUSE },
    { "rnd1",             NK__REFUSE, NULL, 0, NULL, DIFFUSE },
    { "qwen3tts",         NK__REFUSE, NULL, 0, NULL,
      "it makes audio, from codes that are not its tokenizer's" },
    { "t5",               NK__REFUSE, NULL, 0, NULL,
      "it is an encoder and a decoder, not one stack of layers" },
    { "t5encoder",        NK__REFUSE, NULL, 0, NULL,
      "its layers have names of their own (enc.blk)" },
    /* Encoders, which give rows to be pooled and generate nothing. Those with 1 were tried in
     * several pieces; whole they are what they are. */
    { "bert",             NK__ENCODER, NULL, 1, NULL, ENCODER },
    { "nomic-bert",       NK__ENCODER, NULL, 1, NULL, ENCODER },
    { "modern-bert",      NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "nomic-bert-moe",   NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "neo-bert",         NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "jina-bert-v2",     NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "jina-bert-v3",     NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "eurobert",         NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "gemma-embedding",  NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "gemma-embedding2", NK__ENCODER, NULL, 0, NULL, ENCODER },
    { "llama-embed",      NK__ENCODER, NULL, 0, NULL, ENCODER },

    /* Others. */
    { "eagle3",           NK__REFUSE, NULL, 0, NULL, DRAFT },
    { "dflash",           NK__REFUSE, NULL, 0, NULL, DRAFT },
    { "gemma4-assistant", NK__REFUSE, NULL, 0, NULL, DRAFT },
    { "clef",             NK__REFUSE, NULL, 0, NULL, "it makes decisions, not text" },
    { "vllm-decision2",   NK__REFUSE, NULL, 0, NULL, "it makes decisions, not text" },
    { "clip",             NK__REFUSE, NULL, 0, NULL,
      "it is an image or audio encoder, not a language model" },
    { "wavtokenizer-dec", NK__REFUSE, NULL, 0, NULL, "it makes audio, not text" },
};
/* clang-format on */
static const int n_rows = sizeof table / sizeof table[0];

static bool key_matches(const char *pattern, const char *key)
{
    size_t n = strlen(pattern);

    return n && pattern[n - 1] == '*' ? !strncmp(pattern, key, n - 1) : !strcmp(pattern, key);
}

const struct nk__arch_row *nk__arch_find(const char *arch, enum nk__rule rule, const char *key,
                                         const struct nk__arch_row *after)
{
    /* Own rows first, then the general ones: two passes, counted as one list of 2 * n_rows. */
    int start = 0;

    if (after)
        start = (int)(after - table) + 1 + (after->arch[0] == '*' ? n_rows : 0);
    for (int i = start; i < 2 * n_rows; i++) {
        const struct nk__arch_row *r = &table[i % n_rows];
        bool general = !strcmp(r->arch, "*");

        if (r->rule != rule || general != (i >= n_rows) || (!general && strcmp(r->arch, arch) != 0))
            continue;
        if (!key || (r->key && key_matches(r->key, key)))
            return r;
    }
    return NULL;
}

static void say_nothing(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

/* llama.cpp has no function for this question, but loading a model's vocabulary answers it: the
 * smallest file that has one is loaded. It has a tensor too, since llama.cpp wants to see the data
 * begin at an aligned place. */
bool nk__arch_is_known(const char *arch)
{
    struct llama_model_params params = llama_model_default_params();
    struct ggml_tensor t = {
        .type = GGML_TYPE_F32, .ne = { 8, 1, 1, 1 }, .nb = { 4, 32, 32, 32 }, .name = "t"
    };
    struct gguf_context *g = gguf_init_empty();
    ggml_log_callback log;
    struct llama_model *m;
    char key[128], data[32] = { 0 };
    void *user;
    FILE *f = tmpfile();
    bool written;

    gguf_set_val_str(g, "general.architecture", arch);
    gguf_set_val_str(g, "tokenizer.ggml.model", "none");
    snprintf(key, sizeof key, "%s.vocab_size", arch);
    gguf_set_val_u32(g, key, 1);
    gguf_add_tensor(g, &t);
    written = f && gguf_write_to_file_ptr(g, f, true) && fwrite(data, sizeof data, 1, f) == 1 &&
              !fflush(f);
    gguf_free(g);
    if (!written) {
        if (f)
            fclose(f);
        return true;
    }
    rewind(f);
    params.vocab_only = true;
    llama_log_get(&log, &user);
    llama_log_set(say_nothing, NULL);
    m = llama_model_load_from_file_ptr(f, params);
    llama_log_set(log, user);
    llama_model_free(m);
    fclose(f);
    return m != NULL;
}

static bool has_key(const nk_model *m, const char *key)
{
    return key && gguf_find_key(m->kv, nk__model_key(m, key).text) >= 0;
}

static int check_splittable(const nk_model *m, struct nk_error *err)
{
    const struct nk__arch_row *row = nk__arch_find(m->info.architecture, NK__REFUSE, NULL, NULL);

    if (m->arch_unknown)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                       "this llama.cpp does not know the architecture '%s'", m->info.architecture);
    if (row)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                       "models of architecture %s cannot be split: %s", m->info.architecture,
                       row->why);
    row = nk__arch_find(m->info.architecture, NK__ENCODER, NULL, NULL);
    if (row && !m->info.pooling)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                       "this %s model cannot be served: %s, and the file does not say how its rows "
                       "are pooled (%s.pooling_type)",
                       m->info.architecture, row->why, m->info.architecture);
    for (row = NULL; (row = nk__arch_find(m->info.architecture, NK__REFUSE_IF, NULL, row));) {
        uint64_t v = 0;

        if (nk__kv_uint(m->kv, nk__model_key(m, row->key).text, &v) &&
            v >= (uint64_t)(row->n ? row->n : 1) &&
            (!row->from || nk__kv_array_n(m->kv, nk__model_key(m, row->from).text) < 0))
            return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                           "this %s model cannot be split: %s", m->info.architecture, row->why);
    }
    for (row = NULL; (row = nk__arch_find(m->info.architecture, NK__COUNT_MATTERS, NULL, row));)
        if (m->info.n_layer == row->n && !has_key(m, row->key))
            return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                           "%s models of %d layers%s%s%s cannot be split: llama.cpp knows them by "
                           "that number, and only then %s",
                           m->info.architecture, row->n, row->from ? " (" : "",
                           row->from ? row->from : "", row->from ? ")" : "", row->why);
    if (!nk__model_tensor(m, "token_embd.weight"))
        return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                       "a model without a tensor token_embd.weight cannot be split");
    return 0;
}

/* The row's period for this model; 0: none. */
static int period_of(const nk_model *m, const struct nk__arch_row *row)
{
    uint64_t v = 0;

    if (row->rule == NK__PERIOD_KEY && nk__kv_uint(m->kv, nk__model_key(m, row->key).text, &v) &&
        v > 0 && v <= NK_LAYERS_MAX)
        return (int)v;
    return row->n;
}

static int check_boundary(const nk_model *m, int at, struct nk_error *err)
{
    static const enum nk__rule periods[] = { NK__PERIOD, NK__PERIOD_KEY };
    const struct nk__arch_row *encoder;
    int rc = check_splittable(m, err);

    if (rc)
        return rc;
    encoder = nk__arch_find(m->info.architecture, NK__ENCODER, NULL, NULL);
    if (encoder && !encoder->n)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                       "models of architecture %s are only served whole (--into 1): %s, and pieces "
                       "of one were not tried",
                       m->info.architecture, encoder->why);
    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(m->info.architecture, NK__CUT_WHERE, NULL, row));) {
        int64_t v;

        if (nk__kv_array_int(m->kv, nk__model_key(m, row->key).text, (size_t)at, &v) && !v)
            return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                           "%s cannot be cut before layer %d: %s", m->info.architecture, at,
                           row->why);
    }
    for (int i = 0; i < 2; i++) {
        for (const struct nk__arch_row *row = NULL;
             (row = nk__arch_find(m->info.architecture, periods[i], NULL, row));) {
            int period = period_of(m, row);

            if (period > 1 && at % period)
                return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                               "%s cannot be cut before layer %d, only before multiples of %d: %s",
                               m->info.architecture, at, period, row->why);
        }
    }
    return 0;
}

bool nk__arch_pattern(const nk_model *m, const struct nk__arch_row *row, int layer, bool *value)
{
    int period = row->n < 0 ? -row->n : row->n;
    uint64_t v;

    /* A window of 0 means that there is none, and then there is no pattern. */
    if (!strcmp(row->key, PATTERN) &&
        nk__kv_uint(m->kv, nk__model_key(m, "attention.sliding_window").text, &v) && !v)
        return false;
    if (nk__kv_uint(m->kv, nk__model_key(m, row->from).text, &v) && v <= NK_LAYERS_MAX)
        period = (int)v;
    /* llama.cpp: a period of 0 is no exception at all. */
    *value = period == 0 || (row->n < 0 ? layer % period != 0 : layer % period != period - 1);
    return true;
}

/* Is layer `layer` of the row's kind? *known is false when the model says nothing about it. */
static bool is_of_kind(const nk_model *m, const struct nk__arch_row *row, int layer, bool *known)
{
    bool pattern = false;
    int64_t v = 0;

    *known = true;
    switch (row->rule) {
    case NK__KIND_KEY:
        *known = nk__kv_array_int(m->kv, nk__model_key(m, row->key).text, (size_t)layer, &v);
        return row->n ? v == row->n : v != 0;
    case NK__PATTERN:
        if (nk__kv_array_n(m->kv, nk__model_key(m, row->key).text) >= 0) {
            *known = false; /* the KIND_KEY row sees to it */
            return false;
        }
        *known = nk__arch_pattern(m, row, layer, &pattern);
        return pattern;
    case NK__KIND_TENSOR:
        for (int i = 0; i < m->n_tensors; i++)
            if (m->tensors[i].layer == layer && key_matches(row->key, m->tensors[i].rest))
                return true;
        return false;
    case NK__KIND_PERIOD:
        return layer % row->n == row->n - 1;
    default:
        NK_ASSERT(false);
        return false;
    }
}

void nk__arch_learn(nk_model *m)
{
    static const enum nk__rule rules[] = { NK__KIND_KEY, NK__KIND_TENSOR, NK__KIND_PERIOD,
                                           NK__PATTERN };

    for (int i = 0; i < 4; i++)
        for (const struct nk__arch_row *row = NULL;
             (row = nk__arch_find(m->info.architecture, rules[i], NULL, row)) &&
             m->n_kinds < NK__KINDS_MAX;) {
            bool known = true;

            for (int layer = 0; layer < m->info.n_layer && known; layer++)
                if (is_of_kind(m, row, layer, &known))
                    m->kinds[layer] |= 1u << m->n_kinds;
            if (known)
                m->kind_rows[m->n_kinds++] = row;
        }
}

/* Which kinds occur in [begin, end), and which of them are not in every layer of it, as bits. */
static void kinds_of(const nk_model *m, struct nk_range range, uint32_t *some, uint32_t *not_all)
{
    *some = *not_all = 0;
    for (int i = range.begin; i < range.end; i++) {
        *some |= m->kinds[i];
        *not_all |= ~m->kinds[i];
    }
}

static int check_kinds(const nk_model *m, struct nk_range range, struct nk_error *err)
{
    uint32_t model_some, model_not, some, not_all;

    kinds_of(m, (struct nk_range){ 0, m->info.n_layer }, &model_some, &model_not);
    kinds_of(m, range, &some, &not_all);
    for (int i = 0; i < m->n_kinds; i++) {
        uint32_t bit = 1u << i;

        if ((model_some & ~some & bit) || (model_not & ~not_all & bit))
            return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                           "layers %d-%d of this %s model cannot be a slice: %s", range.begin,
                           range.end, m->info.architecture, m->kind_rows[i]->why);
    }
    return 0;
}

/* May a slice of this model have so many layers? */
static int check_count(const nk_model *m, struct nk_range range, struct nk_error *err)
{
    static const enum nk__rule rules[] = { NK__COUNT_MATTERS, NK__COUNT_AVOID };
    int count = range.end - range.begin;

    for (int i = 0; i < 2; i++)
        for (const struct nk__arch_row *row = NULL;
             (row = nk__arch_find(m->info.architecture, rules[i], NULL, row));)
            if (count == row->n && m->info.n_layer != row->n &&
                has_key(m, row->key) == (rules[i] == NK__COUNT_AVOID))
                return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                               "layers %d-%d: a slice of exactly %d layers is not possible for "
                               "this %s model: llama.cpp "
                               "takes models of %d layers for one in which %s",
                               range.begin, range.end, row->n, m->info.architecture, row->n,
                               row->why);
    return 0;
}

int nk__arch_check_range(const nk_model *m, struct nk_range range, struct nk_error *err)
{
    int rc = check_splittable(m, err);

    if (!rc && range.begin > 0)
        rc = check_boundary(m, range.begin, err);
    if (!rc && range.end < m->info.n_layer)
        rc = check_boundary(m, range.end, err);
    if (!rc)
        rc = check_count(m, range, err);
    return rc ? rc : check_kinds(m, range, err);
}

int nk_model_cut_check(const nk_model *m, int at, struct nk_error *err)
{
    int rc;

    NK_ASSERT(at > 0 && at < m->info.n_layer);
    rc = check_boundary(m, at, err);

    /* The largest ranges on both sides: the kinds that they lack, every smaller one lacks. */
    if (!rc)
        rc = check_kinds(m, (struct nk_range){ 0, at }, err);
    return rc ? rc : check_kinds(m, (struct nk_range){ at, m->info.n_layer }, err);
}
