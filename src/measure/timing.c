/* Runs of a stage against the clock. */
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "measure/measure_int.h"

enum {
    RUNS_MIN = 3,
    DEPTH = 4, /* chunks of a prompt; what is decoded then comes after it */
    IDS = 32,  /* ids that every slice knows: those of the stub vocabulary (slice/write.c) */
    STOCK = 64,
    EMBD_ROWS = 4096,
    EMBD_LOOKUPS = 1024,
    EMBD_MS = 50,
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int nk__time(struct nk_clock *clock, const struct nk__timed *t, int n_min, uint64_t end_ns,
             double *ms, struct nk_error *err)
{
    double all[NK__RUNS_MAX];
    bool warm = false;
    int n = 0;

    while (n < n_min || (n < NK__RUNS_MAX && nk_clock_now_ns(clock) < end_ns)) {
        uint64_t begin = nk_clock_now_ns(clock);
        int rc = t->run(t->arg, err);

        if (rc)
            return rc;
        if (!warm && nk_clock_now_ns(clock) < end_ns) {
            warm = true;
            continue;
        }
        all[n++] = (double)(nk_clock_now_ns(clock) - begin) / 1e6;
        if (!warm) /* so slow that once is enough */
            break;
    }
    qsort(all, (size_t)n, sizeof *all, compare);
    *ms = n % 2 ? all[n / 2] : (all[n / 2 - 1] + all[n / 2]) / 2;
    return 0;
}

/* ---- a stage ---- */

struct runs {
    nk_stage *s;
    const struct nk_stage_info *info;
    enum nk_measure_run kind;
    int n_rows;
    bool begins_again;
    int pos;              /* of the next row of each sequence; of a chunk its first */
    size_t next, n_stock; /* of the rows that come in, so that no two runs have the same */
    int32_t *ids, *positions, *seqs;
    int8_t *want;
    float *rows; /* n_stock x n_embd */
};

/* One after the other, or all in one run, as the stage can. */
static int run_batches(struct runs *r, int n_batches, struct nk_error *err)
{
    int n = r->n_rows / n_batches;
    size_t width = (size_t)r->info->n_embd;
    struct nk_stage_batch b = {
        .n_tokens = n, .ids = r->ids, .pos = r->positions, .want = r->want
    };

    for (int i = 0; i < n_batches; i++) {
        int rc;

        b.seq = r->seqs + i;
        b.rows = r->info->is_first ? NULL : r->rows + r->next * width;
        r->next = (r->next + (size_t)n) % (r->n_stock - (size_t)r->n_rows);
        rc = nk_stage_run(r->s, &b, err);
        /* Random weights may make anything; that takes as long. */
        if (rc && !(rc == NK_E_INTERNAL && !strcmp(err->reason, "not_finite")))
            return rc;
    }
    return 0;
}

static int run_once(void *arg, struct nk_error *err)
{
    struct runs *r = arg;
    struct nk_error why = { 0 };
    int share = r->info->n_ctx_seq / r->info->n_seq_max, n_batches = 1, rc;
    int step = r->kind == NK_RUN_CHUNK ? r->n_rows : 1;

    if (r->kind == NK_RUN_CHUNK && DEPTH * step < share)
        share = DEPTH * step;
    /* A run that failed left nothing that could be continued. */
    if (r->begins_again || r->pos + step > share)
        r->pos = 0;
    for (int i = 0; i < r->n_rows; i++) {
        r->ids[i] = (int32_t)((r->next + (size_t)i) * 7 %
                              (size_t)(r->info->n_vocab < IDS ? r->info->n_vocab : IDS));
        r->positions[i] = r->pos + (r->kind == NK_RUN_CHUNK ? i : 0);
        r->seqs[i] = r->kind == NK_RUN_EIGHT && !r->info->pooling ? i : 0;
        /* Of a chunk the head sees the last row only. */
        r->want[i] = r->kind != NK_RUN_CHUNK || i == r->n_rows - 1;
    }
    if (r->kind == NK_RUN_EIGHT && r->info->one_sequence_per_run)
        n_batches = r->n_rows;
    rc = run_batches(r, n_batches, &why);
    if (rc && err)
        *err = why;
    r->begins_again = why.code != 0 || r->info->pooling; /* a text is one run */
    r->pos += step;
    return rc;
}

/* A prompt first, then what follows it. */
static int time_kind(struct runs *r, enum nk_measure_run kind, int n_rows, struct nk_clock *clock,
                     uint64_t end_ns, double *ms, struct nk_error *err)
{
    const struct nk__timed t = { run_once, r };

    r->kind = kind;
    r->n_rows = n_rows;
    r->next = 0;
    if (kind == NK_RUN_EIGHT) { /* of sequences that have the same length */
        r->pos = 0;
        for (int i = 0; i < r->info->n_seq_max; i++)
            nk_stage_seq_clear(r->s, i);
    }
    return nk__time(clock, &t, kind == NK_RUN_CHUNK ? 1 : RUNS_MIN, end_ns, ms, err);
}

int nk__time_stage(nk_stage *s, const int rows[NK_RUN_KINDS], struct nk_clock *clock,
                   uint64_t end_ns, double ms[NK_RUN_KINDS], struct nk_error *err)
{
    const struct nk_stage_info *info = nk_stage_info(s);
    size_t most = (size_t)rows[NK_RUN_CHUNK], n_floats;
    uint64_t state = 0x6d656173757265u; /* any; xorshift (Marsaglia 2003) */
    struct runs r = { .s = s, .info = info };
    int rc = 0;

    for (int k = 0; k < NK_RUN_KINDS; k++)
        if ((size_t)rows[k] > most)
            most = (size_t)rows[k];
    r.n_stock = 2 * most + STOCK;
    n_floats = r.n_stock * (size_t)info->n_embd;
    r.ids = malloc(most * sizeof *r.ids);
    r.positions = malloc(most * sizeof *r.positions);
    r.seqs = malloc(most * sizeof *r.seqs);
    r.want = malloc(most);
    r.rows = malloc(n_floats * sizeof *r.rows);
    if (!r.ids || !r.positions || !r.seqs || !r.want || !r.rows) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu rows", most);
        goto out;
    }
    for (size_t i = 0; i < n_floats; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        /* Uniform, of variance 1. */
        r.rows[i] = ((float)(state >> 40) / (float)(1 << 24) - 0.5f) * 3.4641f;
    }
    for (int i = 0; i < NK_RUN_KINDS && !rc; i++) {
        static const enum nk_measure_run order[] = { NK_RUN_CHUNK, NK_RUN_ONE, NK_RUN_EIGHT };
        uint64_t now = nk_clock_now_ns(clock), left = end_ns > now ? end_ns - now : 0;

        rc = time_kind(&r, order[i], rows[order[i]], clock,
                       now + left / (uint64_t)(NK_RUN_KINDS - i), &ms[order[i]], err);
    }
out:
    free(r.ids);
    free(r.positions);
    free(r.seqs);
    free(r.want);
    free(r.rows);
    return rc;
}

/* ---- embeddings ---- */

struct lookups {
    const nk_embd *e;
    int n_rows;
    uint32_t state;
    float *row;
};

static int look_up(void *arg, struct nk_error *err)
{
    struct lookups *l = arg;

    (void)err;
    for (int i = 0; i < EMBD_LOOKUPS; i++) {
        l->state = l->state * 1664525u + 1013904223u;
        nk_embd_row(l->e, (int32_t)((l->state >> 8) % (uint32_t)l->n_rows), l->row);
    }
    return 0;
}

int nk__time_embd(const nk_model *m, struct nk_clock *clock, double *ms, struct nk_error *err)
{
    struct lookups l = { .state = 1 };
    const struct nk__timed t = { look_up, &l };
    nk_embd *e;
    int rc = nk_embd_open_random(&e, m, EMBD_ROWS, &l.n_rows, err);

    if (rc)
        return rc;
    l.e = e;
    l.row = malloc((size_t)nk_model_info(m)->n_embd * sizeof *l.row);
    rc = l.row ? nk__time(clock, &t, 1, nk_clock_now_ns(clock) + EMBD_MS * 1000000ull, ms, err)
               : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    *ms /= EMBD_LOOKUPS;
    free(l.row);
    nk_embd_close(e);
    return rc;
}
