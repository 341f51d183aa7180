/* The architecture table: what a slice of this or that architecture needs besides the general
 * recipe, where it may be cut and what cannot be cut. The general recipe is in write.c; arch_int.h
 * says what each rule means.
 *
 * To teach it a new architecture: run the conformance test. What is exact without a row needs none.
 * A row says what was found in llama.cpp's code (llama_model::load_hparams for patterns and keys),
 * and `why` is the sentence a person reads when a cut is refused. */
#include "slice/arch_int.h"

#include <string.h>

#include "slice/model_int.h"

#define SWA   "its sliding-window and full-attention layers alternate by layer number"
#define KINDS "every slice needs at least one layer of each kind"

/* clang-format off */
static const struct nk__arch_row table[] = {
    /* arch          rule               key                                    n  why */

    /* Keys that mean the same everywhere. */
    { "*",           NK__SHIFT,         "leading_dense_block_count",           0, NULL },
    { "*",           NK__NOT_PER_LAYER, "rope.dimension_sections",             0, NULL },
    { "*",           NK__NOT_PER_LAYER, "classifier.output_labels",            0, NULL },
    { "*",           NK__NOT_PER_LAYER, "rope.scaling.*",                      0, NULL },
    { "*",           NK__KIND_KEY,      "attention.sliding_window_pattern",    0, "it has sliding-window and full-attention layers; " KINDS },
    { "*",           NK__KIND_KEY,      "attention.recurrent_layers",          0, "it has recurrent and attention layers; " KINDS },
    { "*",           NK__KIND_KEY,      "attention.head_count_kv",             0, "it has recurrent and attention layers; " KINDS },

    /* Patterns by layer number in llama.cpp's code. */
    { "gemma2",      NK__PERIOD,        NULL,                                  2, SWA },
    { "gemma3",      NK__PERIOD,        NULL,                                  6, SWA },
    { "cohere2",     NK__PERIOD,        NULL,                                  4, SWA },
    { "gpt-oss",     NK__PERIOD,        NULL,                                  2, SWA },
    { "llama4",      NK__PERIOD,        NULL,                                  4, "its chunked and full-attention layers alternate by layer number" },
    { "olmo2",       NK__PERIOD,        NULL,                                  4, SWA },

    /* Not decoders of the plain kind. */
    { "t5",          NK__REFUSE,        NULL,                                  0, "it is an encoder and a decoder, not one stack of layers" },
    { "t5encoder",   NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "clip",        NK__REFUSE,        NULL,                                  0, "it is an image or audio encoder, not a language model" },
    { "bert",        NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "modern-bert", NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "nomic-bert",  NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "nomic-bert-moe", NK__REFUSE,     NULL,                                  0, "it is an encoder: it generates nothing" },
    { "neo-bert",    NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "jina-bert-v2", NK__REFUSE,       NULL,                                  0, "it is an encoder: it generates nothing" },
    { "jina-bert-v3", NK__REFUSE,       NULL,                                  0, "it is an encoder: it generates nothing" },
    { "eurobert",    NK__REFUSE,        NULL,                                  0, "it is an encoder: it generates nothing" },
    { "gemma-embedding", NK__REFUSE,    NULL,                                  0, "it is an encoder: it generates nothing" },
    { "wavtokenizer-dec", NK__REFUSE,   NULL,                                  0, "it decodes audio, not text" },
    { "gemma3n",     NK__REFUSE,        NULL,                                  0, "its layers use inputs and keys and values of other layers" },
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

static int check_splittable(const nk_model *m, struct nk_error *err)
{
    const struct nk__arch_row *row = nk__arch_find(m->info.architecture, NK__REFUSE, NULL, NULL);

    if (row)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "cannot_split",
                       "models of architecture %s cannot be split: %s", m->info.architecture,
                       row->why);
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

int nk__arch_check_cut(const nk_model *m, int at, struct nk_error *err)
{
    static const enum nk__rule periods[] = { NK__PERIOD, NK__PERIOD_KEY };
    int rc = check_splittable(m, err);

    if (rc)
        return rc;
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

/* Is layer `layer` of the row's kind? *known is false when the model says nothing about it. */
static bool is_of_kind(const nk_model *m, const struct nk__arch_row *row, int layer, bool *known)
{
    int64_t v = 0;

    *known = true;
    switch (row->rule) {
    case NK__KIND_KEY:
        *known = nk__kv_array_int(m->kv, nk__model_key(m, row->key).text, (size_t)layer, &v);
        return v != 0;
    case NK__KIND_PERIOD:
        return layer % row->n == row->n - 1;
    case NK__KIND_TENSOR:
        for (int i = 0; i < m->n_tensors; i++)
            if (m->tensors[i].layer == layer && key_matches(row->key, m->tensors[i].rest))
                return true;
        return false;
    default:
        NK_ASSERT(false);
        return false;
    }
}

void nk__arch_learn(nk_model *m)
{
    static const enum nk__rule rules[] = { NK__KIND_KEY, NK__KIND_TENSOR, NK__KIND_PERIOD };

    for (int i = 0; i < 3; i++)
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

int nk__arch_check_range(const nk_model *m, struct nk_range range, struct nk_error *err)
{
    int rc = check_splittable(m, err);

    if (!rc && range.begin > 0)
        rc = nk__arch_check_cut(m, range.begin, err);
    if (!rc && range.end < m->info.n_layer)
        rc = nk__arch_check_cut(m, range.end, err);
    return rc ? rc : check_kinds(m, range, err);
}
