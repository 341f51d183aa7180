#include "gateway/prompt_parts.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"

/* A text with more is not tokenized only to say how many tokens are too many. */
enum { COUNTED_BYTES_MAX = 1 << 20 };

int nk__prompt_too_long(struct nk_request_error *e, const char *field, size_t n_tokens,
                        size_t n_bytes, int n_ctx)
{
    snprintf(e->param, sizeof e->param, "%s", field);
    /* Programs look for "exceeds the available context size": llama-server's words. */
    nk_fail(&e->err, NK_E_INVALID, "context_length_exceeded",
            "%s: %zu %s, which exceeds the available context size: this model's context holds %d "
            "tokens, the reply included",
            field, n_tokens ? n_tokens : n_bytes, n_tokens ? "tokens" : "bytes", n_ctx);
    e->err.n_found = (long)n_tokens;
    e->err.n_max = n_ctx;
    return e->err.code;
}

size_t nk__prompt_count(const nk_vocab *v, const char *text, size_t size, bool add_special,
                        struct nk_work *work)
{
    struct nk_tokens t = { NULL, 0 };
    int rc = size > COUNTED_BYTES_MAX;

    /* Some characters are several tokens, none is more than its bytes. */
    if (!rc)
        rc = nk_vocab_tokenize(v, text, size, add_special, true, size + 8, work, &t, NULL);
    free(t.ids);
    return rc ? 0 : t.n;
}

struct ids {
    int32_t *ids;
    size_t n, capacity;
};

static int add(struct ids *to, const int32_t *ids, size_t n, struct nk_error *err)
{
    int rc = nk_array_grow(to->ids, to->capacity, to->n + n, SIZE_MAX / sizeof *to->ids, err);

    if (!rc && n)
        memcpy(to->ids + to->n, ids, n * sizeof *ids);
    to->n += rc ? 0 : n;
    return rc;
}

int nk__prompt_mixed(const nk_vocab *v, const json_t *parts, int n_ctx, struct nk_work *work,
                     struct nk_tokens *out, struct nk_request_error *e)
{
    struct ids all = { .ids = NULL };
    const json_t *part;
    size_t i;
    int rc = 0;

    snprintf(e->param, sizeof e->param, "prompt");
    json_array_foreach((json_t *)parts, i, part)
    {
        size_t left = all.n < (size_t)n_ctx ? (size_t)n_ctx - all.n : 0, size;
        const char *text = json_string_value(part);
        struct nk_tokens t = { NULL, 0 };
        int32_t id = (int32_t)json_integer_value(part);

        size = json_string_length(part);
        if (!text) {
            rc = id < nk_vocab_size(v) ? add(&all, &id, 1, &e->err)
                                       : nk_fail(&e->err, NK_E_INVALID, "bad_value",
                                                 "prompt: token id %d; this model has 0 to %d", id,
                                                 nk_vocab_size(v) - 1);
        } else if (size) {
            rc = nk_vocab_tokenize(v, text, size, i == 0, true, left + 1, work, &t, &e->err);
            if (rc && !strcmp(e->err.reason, "too_large"))
                rc = nk__prompt_too_long(e, "prompt", 0, size, n_ctx);
            if (!rc)
                rc = add(&all, t.ids, t.n, &e->err);
            free(t.ids);
        }
        if (!rc && all.n >= (size_t)n_ctx)
            rc = nk__prompt_too_long(e, "prompt", all.n, size, n_ctx);
        if (rc)
            break;
    }
    if (rc) {
        free(all.ids);
        return rc;
    }
    e->param[0] = '\0';
    out->ids = all.ids;
    out->n = all.n;
    return 0;
}

static int put_bias(struct nk_logit_bias *to, int *n, int32_t id, float bias, int n_vocab,
                    struct nk_error *err)
{
    if (id >= n_vocab)
        return nk_fail(err, NK_E_INVALID, "bad_value",
                       "logit_bias: token id %d; this model has 0 to %d", id, n_vocab - 1);
    if (*n == NK_LOGIT_BIAS_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many",
                       "logit_bias: with the tokens of its texts more than %d entries, the most "
                       "that are possible",
                       NK_LOGIT_BIAS_MAX);
    to[(*n)++] = (struct nk_logit_bias){ .id = id, .bias = bias };
    return 0;
}

int nk__prompt_biases(const nk_vocab *v, const struct nk_request *r, struct nk_work *work,
                      struct nk_logit_bias **out, int *n, struct nk_request_error *e)
{
    struct nk_logit_bias *all;
    int rc = 0, n_vocab = nk_vocab_size(v);

    *out = NULL;
    *n = 0;
    if (!r->sampling.n_logit_bias && !r->n_text_bias)
        return 0;
    snprintf(e->param, sizeof e->param, "logit_bias");
    all = calloc(NK_LOGIT_BIAS_MAX, sizeof *all);
    if (!all)
        return nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for logit_bias");
    for (int i = 0; i < r->sampling.n_logit_bias && !rc; i++)
        rc = put_bias(all, n, r->sampling.logit_bias[i].id, r->sampling.logit_bias[i].bias, n_vocab,
                      &e->err);
    for (int i = 0; i < r->n_text_bias && !rc; i++) {
        const struct nk_text_bias *b = &r->text_bias[i];
        struct nk_tokens t = { NULL, 0 };

        /* As llama-server: with the space that the tokenizer puts before a text, and no marks. */
        rc = nk_vocab_tokenize(v, b->text, b->size, false, false, NK_LOGIT_BIAS_MAX, work, &t,
                               &e->err);
        if (rc && !strcmp(e->err.reason, "too_large"))
            rc = nk_fail(&e->err, NK_E_EXHAUSTED, "too_many",
                         "logit_bias: a text with more than %d tokens, the most that are possible",
                         NK_LOGIT_BIAS_MAX);
        for (size_t k = 0; k < t.n && !rc; k++)
            rc = put_bias(all, n, t.ids[k], b->bias, n_vocab, &e->err);
        free(t.ids);
    }
    if (rc) {
        free(all);
        *n = 0;
        return rc;
    }
    e->param[0] = '\0';
    *out = all;
    return 0;
}
