#include "gateway/reply_embed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* common_embd_normalize of llama.cpp, product for product: the same bits. */
void nk__embed_normalize(float *v, size_t n, int how)
{
    double sum = 0;
    float scale;

    if (how < 0)
        return;
    for (size_t i = 0; i < n; i++)
        if (how == 0)
            sum = sum < fabs((double)v[i]) ? fabs((double)v[i]) : sum;
        else if (how == 2)
            sum += (double)(v[i] * v[i]);
        else
            sum += pow(fabs((double)v[i]), how);
    if (how == 0)
        sum /= 32760.0;
    else
        sum = how == 2 ? sqrt(sum) : pow(sum, 1.0 / how);
    scale = sum > 0 ? (float)(1.0 / sum) : 0.0f;
    for (size_t i = 0; i < n; i++)
        v[i] *= scale;
}

int nk__base64(const void *data, size_t size, struct nk_buf *out, struct nk_error *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = data;
    size_t n = (size + 2) / 3 * 4;
    char *to;
    int rc = nk_buf_reserve(out, n, &to, err);

    for (size_t i = 0; i < size && !rc; i += 3) {
        size_t left = size - i;
        uint32_t bits = (uint32_t)in[i] << 16;

        bits |= left > 1 ? (uint32_t)in[i + 1] << 8 : 0;
        bits |= left > 2 ? in[i + 2] : 0;
        *to++ = digits[bits >> 18];
        *to++ = digits[bits >> 12 & 63];
        *to++ = left > 1 ? digits[bits >> 6 & 63] : '=';
        *to++ = left > 2 ? digits[bits & 63] : '=';
    }
    if (!rc)
        nk_buf_commit(out, n);
    return rc;
}

/* Nine digits read back as the same 32 bits. */
static int add_floats(const float *v, size_t n, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "[", err);

    for (size_t i = 0; i < n && !rc; i++)
        rc = nk_buf_addf(out, err, "%s%.9g", i ? "," : "", (double)v[i]);
    return rc ? rc : nk_buf_adds(out, "]", err);
}

static int add_base64(const float *v, size_t n, struct nk_buf *out, struct nk_error *err)
{
    unsigned char *bytes = malloc(n * 4 + 1);
    int rc = nk_buf_adds(out, "\"", err);

    if (!bytes)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply");
    for (size_t i = 0; i < n && bytes; i++) {
        uint32_t bits;

        memcpy(&bits, &v[i], sizeof bits);
        for (int k = 0; k < 4; k++)
            bytes[4 * i + (size_t)k] = (unsigned char)(bits >> 8 * k);
    }
    if (!rc)
        rc = nk__base64(bytes, n * 4, out, err);
    free(bytes);
    return rc ? rc : nk_buf_adds(out, "\"", err);
}

static int add_vector(const struct nk_embed_result *x, size_t idx, struct nk_buf *out,
                      struct nk_error *err)
{
    const float *v = x->vectors + idx * x->width;

    return x->r->base64 ? add_base64(v, x->width, out, err) : add_floats(v, x->width, out, err);
}

static int write_usage(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    return nk_buf_addf(out, err, "\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}",
                       x->n_tokens, x->n_tokens);
}

static int write_model(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "\"model\":", err);

    if (!rc)
        rc = nk_json_str(out, x->r->model, err);
    return rc ? rc : nk_buf_adds(out, ",", err);
}

static int write_openai(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "{\"object\":\"list\",", err);

    if (!rc)
        rc = write_model(x, out, err);
    if (!rc)
        rc = nk_buf_adds(out, "\"data\":[", err);
    for (size_t i = 0; i < x->r->n_inputs && !rc; i++) {
        rc = nk_buf_addf(
            out, err, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i ? "," : "", i);
        if (!rc)
            rc = add_vector(x, i, out, err);
        if (!rc)
            rc = nk_buf_adds(out, "}", err);
    }
    if (!rc)
        rc = nk_buf_adds(out, "],", err);
    if (!rc)
        rc = write_usage(x, out, err);
    return rc ? rc : nk_buf_adds(out, "}\n", err);
}

/* llama-server's own: a list of vectors for each text, which is of one. */
static int write_llama(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "[", err);

    for (size_t i = 0; i < x->r->n_inputs && !rc; i++) {
        rc = nk_buf_addf(out, err, "%s{\"index\":%zu,\"embedding\":[", i ? "," : "", i);
        if (!rc)
            rc = add_vector(x, i, out, err);
        if (!rc)
            rc = nk_buf_adds(out, "]}", err);
    }
    return rc ? rc : nk_buf_adds(out, "]\n", err);
}

static int write_ollama(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    if (x->r->api == NK_API_OLLAMA_EMBEDDINGS) {
        rc = nk_buf_adds(out, "{\"embedding\":", err);
        if (!rc)
            rc = add_floats(x->vectors, x->width, out, err);
        return rc ? rc : nk_buf_adds(out, "}\n", err);
    }
    rc = nk_buf_adds(out, "{", err);
    if (!rc)
        rc = write_model(x, out, err);
    if (!rc)
        rc = nk_buf_adds(out, "\"embeddings\":[", err);
    for (size_t i = 0; i < x->r->n_inputs && !rc; i++) {
        rc = i ? nk_buf_adds(out, ",", err) : 0;
        if (!rc)
            rc = add_floats(x->vectors + i * x->width, x->width, out, err);
    }
    return rc ? rc
              : nk_buf_addf(out, err,
                            "],\"total_duration\":%llu,\"load_duration\":0,"
                            "\"prompt_eval_count\":%zu}\n",
                            (unsigned long long)x->total_ns, x->n_tokens);
}

/* ---- ranks ---- */

struct ranked {
    size_t idx;
    float score;
};

/* The best first; equal ones as they came. */
static int compare_ranked(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;

    if (a->score != b->score)
        return a->score < b->score ? 1 : -1;
    return a->idx < b->idx ? -1 : a->idx > b->idx;
}

static int write_rank(const struct nk_embed_result *x, const struct ranked *d, struct nk_buf *out,
                      struct nk_error *err)
{
    const struct nk_request *r = x->r;
    const struct nk_prompt *text = &r->inputs[d->idx];
    int rc = nk_buf_addf(out, err, "{\"index\":%zu,\"%s\":%.9g", d->idx,
                         r->texts ? "score" : "relevance_score", (double)d->score);

    if (!rc && r->return_documents) {
        rc = nk_buf_adds(out, r->texts ? ",\"text\":" : ",\"document\":{\"text\":", err);
        if (!rc)
            rc = nk_json_strn(out, text->text, text->size, err);
        if (!rc && !r->texts)
            rc = nk_buf_adds(out, "}", err);
    }
    return rc ? rc : nk_buf_adds(out, "}", err);
}

static int write_ranks(const struct nk_embed_result *x, struct nk_buf *out, struct nk_error *err)
{
    const struct nk_request *r = x->r;
    size_t n = r->top_n && (size_t)r->top_n < r->n_inputs ? (size_t)r->top_n : r->n_inputs;
    struct ranked *ranked = calloc(r->n_inputs, sizeof *ranked);
    int rc = 0;

    if (!ranked)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply");
    for (size_t i = 0; i < r->n_inputs; i++)
        ranked[i] = (struct ranked){ i, x->vectors[i * x->width] };
    qsort(ranked, r->n_inputs, sizeof *ranked, compare_ranked);
    if (!r->texts) {
        rc = nk_buf_adds(out, "{\"object\":\"list\",", err);
        if (!rc)
            rc = write_model(x, out, err);
        if (!rc)
            rc = write_usage(x, out, err);
        if (!rc)
            rc = nk_buf_adds(out, ",\"results\":", err);
    }
    if (!rc)
        rc = nk_buf_adds(out, "[", err);
    for (size_t i = 0; i < n && !rc; i++) {
        rc = i ? nk_buf_adds(out, ",", err) : 0;
        if (!rc)
            rc = write_rank(x, &ranked[i], out, err);
    }
    free(ranked);
    return rc ? rc : nk_buf_adds(out, r->texts ? "]\n" : "]}\n", err);
}

/* ---- all ---- */

int nk__embed_too_large(size_t n, size_t width, size_t max, struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                   "%zu vectors of %zu numbers are more than a reply may hold (%zu MiB): send "
                   "fewer texts at one time",
                   n, width, max >> 20);
}

/* JSON has no word for what is no number, nor for an infinite one. */
static int check_finite(const struct nk_embed_result *x, size_t n_each, struct nk_error *err)
{
    for (size_t i = 0; i < x->r->n_inputs; i++)
        for (size_t k = 0; k < n_each; k++)
            if (!isfinite(x->vectors[i * x->width + k]))
                return nk_fail(err, NK_E_DATA_LOSS, "bad_peer",
                               "of text %zu the number at %zu is %f; a finite one is needed", i, k,
                               (double)x->vectors[i * x->width + k]);
    return 0;
}

int nk__reply_embed(const struct nk_embed_result *x, struct nk_buf *out, struct nk_request_error *e)
{
    const struct nk_request *r = x->r;
    int rc;

    e->param[0] = '\0';
    if (r->dimensions && (size_t)r->dimensions != x->width) {
        snprintf(e->param, sizeof e->param, "dimensions");
        return nk_fail(&e->err, NK_E_INVALID, "bad_value",
                       "dimensions: %d; this model's vectors have %zu, and none is cut",
                       r->dimensions, x->width);
    }
    if (r->api == NK_API_RERANK) {
        rc = check_finite(x, 1, &e->err);
        return rc ? rc : write_ranks(x, out, &e->err);
    }
    for (size_t i = 0; i < r->n_inputs; i++)
        nk__embed_normalize(x->vectors + i * x->width, x->width, r->normalize);
    rc = check_finite(x, x->width, &e->err); /* also of what became of them */
    if (rc)
        return rc;
    rc = r->api == NK_API_EMBEDDINGS        ? write_openai(x, out, &e->err)
         : r->api == NK_API_LLAMA_EMBEDDING ? write_llama(x, out, &e->err)
                                            : write_ollama(x, out, &e->err);
    if (rc == NK_E_EXHAUSTED && !strcmp(e->err.reason, "too_large"))
        nk__embed_too_large(r->n_inputs, x->width, out->max, &e->err);
    return rc;
}

int nk__reply_embed_nothing(const struct nk_request *r, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    if (r->api == NK_API_OLLAMA_EMBEDDINGS)
        return nk_buf_adds(out, "{\"embedding\":[]}\n", err);
    rc = nk_buf_adds(out, "{\"model\":", err);
    if (!rc)
        rc = nk_json_str(out, r->model, err);
    return rc ? rc : nk_buf_adds(out, ",\"embeddings\":[]}\n", err);
}
