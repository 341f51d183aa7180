#include "bench/quality.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "bench/draw.h"
#include "rpc/rows.h"
#include "slice/slice.h"
#include "stage/difference.h"
#include "stage/stage.h"

enum { CONTEXT_MAX = 2048, CHUNK = 64 };

struct run {
    nk_stage *first, *exact, *halved; /* the last two: the same slice */
    int n_embd, n_vocab;
    float *rows;
    uint16_t *halves;
    uint64_t rng;
};

static int open_stages(struct run *r, const char *path, const char *device, int n_threads,
                       int *n_ctx, struct nk_error *err)
{
    struct nk_stage_opts o = nk_stage_opts_default();
    struct nk_range ranges[2];
    char *slices[2] = { NULL, NULL };
    nk_model *m;
    int rc = nk_model_open(&m, path, err);

    if (rc)
        return rc;
    *n_ctx = nk_model_info(m)->n_ctx_train;
    *n_ctx = *n_ctx > CONTEXT_MAX || *n_ctx < 1 ? CONTEXT_MAX : *n_ctx;
    rc = nk_ranges_balance(m, 2, ranges, err);
    for (int i = 0; !rc && i < 2; i++)
        rc = nk_slice_cached(m, ranges[i], NK_VERIFY_ONCE, &slices[i], err);
    nk_model_close(m);
    nk_stage_global_init(device);
    o.device = device;
    o.n_threads = n_threads;
    o.n_ctx = *n_ctx;
    o.n_seq_max = 1;
    if (!rc)
        rc = nk_stage_open(&r->first, slices[0], &o, err);
    if (!rc)
        rc = nk_stage_open(&r->exact, slices[1], &o, err);
    if (!rc)
        rc = nk_stage_open(&r->halved, slices[1], &o, err);
    free(slices[0]);
    free(slices[1]);
    if (rc)
        return rc;
    r->n_embd = nk_stage_info(r->first)->n_embd;
    r->n_vocab = nk_stage_info(r->first)->n_vocab;
    r->rows = malloc((size_t)CHUNK * (size_t)r->n_embd * sizeof *r->rows);
    r->halves = malloc((size_t)CHUNK * (size_t)r->n_embd * sizeof *r->halves);
    return r->rows && r->halves ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

/* A token at temperature 1: the greatest of the logits with Gumbel noise. */
static int32_t draw(struct run *r, const float *logits)
{
    double best = -INFINITY;
    int32_t token = 0;

    for (int i = 0; i < r->n_vocab; i++) {
        double v = logits[i] - log(-log(nk_draw_unit(&r->rng)));

        if (v > best) {
            best = v;
            token = i;
        }
    }
    return token;
}

/* n tokens from pos on through both chains. */
static int run_chunk(struct run *r, const int32_t *ids, int pos, int n, struct nk_difference *d,
                     struct nk_error *err)
{
    int32_t at[CHUNK], seq[CHUNK] = { 0 };
    size_t n_floats = (size_t)n * (size_t)r->n_embd;
    struct nk_stage_batch b = { .n_tokens = n, .ids = ids, .pos = at, .seq = seq };
    int rc;

    for (int i = 0; i < n; i++)
        at[i] = pos + i;
    rc = nk_stage_run(r->first, &b, err);
    if (rc)
        return rc;
    memcpy(r->rows, nk_stage_rows(r->first), n_floats * sizeof *r->rows);
    b.rows = r->rows;
    rc = nk_stage_run(r->exact, &b, err);
    if (rc)
        return rc;
    nk_f16_from_f32(r->halves, r->rows, n_floats);
    nk_f32_from_f16(r->rows, r->halves, n_floats);
    rc = nk_stage_run(r->halved, &b, err);
    for (int i = 0; !rc && i < n; i++)
        nk_difference_add(d, nk_stage_logits(r->exact, i), nk_stage_logits(r->halved, i),
                          r->n_vocab);
    return rc;
}

int nk_quality_measure(const char *model, const char *device, int n_threads, bool own_text,
                       int n_tokens, struct nk_quality *out, struct nk_error *err)
{
    struct run r = { .rng = 1 };
    struct nk_difference d = { 0 };
    int32_t ids[CHUNK];
    int n_ctx = 0, pos = 0, rc = open_stages(&r, model, device, n_threads, &n_ctx, err);

    *out = (struct nk_quality){ 0 };
    while (!rc && out->n_tokens < n_tokens) {
        int n = own_text ? 1 : CHUNK;

        if (pos + n > n_ctx)
            pos = 0; /* a new session: positions are authoritative */
        if (n > n_tokens - out->n_tokens)
            n = n_tokens - out->n_tokens;
        if (!own_text)
            nk_draw_ids(&r.rng, r.n_vocab, ids, n);
        else if (pos == 0)
            ids[0] = llama_vocab_bos(nk_stage_vocab(r.exact));
        if (own_text && ids[0] < 0)
            ids[0] = 0; /* a vocabulary without a beginning */
        rc = run_chunk(&r, ids, pos, n, &d, err);
        if (!rc && own_text)
            ids[0] = draw(&r, nk_stage_logits(r.exact, 0));
        pos += n;
        out->n_tokens += n;
    }
    if (!rc && !isfinite(d.worst_nmse))
        rc = nk_fail(err, NK_E_OUT_OF_RANGE, "not_finite",
                     "%s: logits that are no numbers: its rows do not fit f16", model);
    out->nmse_max = d.worst_nmse;
    out->top1_same_pct = d.n_rows ? 100.0 * (double)d.n_top1 / (double)d.n_rows : 0;
    if (r.halved)
        nk_stage_close(r.halved);
    if (r.exact)
        nk_stage_close(r.exact);
    if (r.first)
        nk_stage_close(r.first);
    free(r.rows);
    free(r.halves);
    return rc;
}
