#include "stage/reference.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"

enum {
    SEQUENCES_MAX = NK_SCRIPT_SEQUENCES_MAX,
    BURST = 3,
    RUNS_MAX = 1 << 20,
    RUN_LOGITS_MAX = 1 << 22, /* floats; a run with more wants what serving wants, */
    ALL_LOGITS_MAX = 1 << 28, /* and so do all once so many are kept */
};

/* A run of the script: rows [begin, end) of its arrays, and what the whole model answered. */
struct run {
    int begin, end;
    float *logits; /* of the wanted rows, one after the other */
};

struct nk_reference {
    int32_t *ids, *pos, *seq;
    int8_t *want;
    int n_rows, n_vocab;
    struct run *runs;
    int n_runs;
    size_t runs_capacity;
};

/* While the script is written: each run of it is made once the one before was answered. */
struct writer {
    nk_reference *r;
    nk_stage *whole;
    const struct nk_stage_info *info;
    const struct nk_script *script;
    int n_rows_run;   /* of the rows, those that a run has had */
    int64_t n_logits; /* floats kept */
    int length[SEQUENCES_MAX], target[SEQUENCES_MAX];
    int32_t next_id[SEQUENCES_MAX]; /* the whole model's choice after the sequence's last row */
    uint64_t random;
};

/* Knuth's MMIX generator; the same ids on every machine. */
static int32_t random_id(struct writer *w)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((w->random >> 33) % (uint64_t)w->r->n_vocab);
}

static struct nk_stage_batch batch_of(const nk_reference *r, int begin, int end)
{
    return (struct nk_stage_batch){
        .n_tokens = end - begin,
        .ids = r->ids + begin,
        .pos = r->pos + begin,
        .seq = r->seq + begin,
        .want = r->want + begin,
    };
}

/* Runs rows [begin, end) of the script on the whole model and keeps what it answers. */
static int add_run(struct writer *w, int begin, int end, struct nk_error *err)
{
    nk_reference *r = w->r;
    size_t n_vocab = (size_t)r->n_vocab, n_wanted = 0;
    struct nk_stage_batch b = batch_of(r, begin, end);
    /* Every second run asks for less than all, as serving does. */
    bool all = r->n_runs % 2 == 0 && (int64_t)r->n_vocab * (end - begin) <= RUN_LOGITS_MAX &&
               w->n_logits <= ALL_LOGITS_MAX;
    struct run *run;
    int rc = nk_array_grow(r->runs, r->runs_capacity, (size_t)r->n_runs + 1, RUNS_MAX, err);

    if (rc)
        return rc;
    for (int i = begin; i < end; i++) {
        r->want[i] = all || r->pos[i] == w->target[r->seq[i]] - 1;
        n_wanted += (size_t)r->want[i];
    }
    rc = nk_stage_run(w->whole, &b, err);
    if (rc)
        return nk_wrap(rc, err, "the whole model");
    run = &r->runs[r->n_runs];
    *run = (struct run){ begin, end, malloc((n_wanted * n_vocab + 1) * sizeof(float)) };
    if (!run->logits)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the logits of %zu rows",
                       n_wanted);
    r->n_runs++;
    w->n_logits += (int64_t)(n_wanted * n_vocab);
    n_wanted = 0;
    for (int i = begin; i < end; i++) {
        const float *logits = r->want[i] ? nk_stage_logits(w->whole, i - begin) : NULL;

        if (!r->want[i])
            continue;
        if (!logits)
            return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                           "the whole model gives no logits for row %d", i);
        memcpy(run->logits + n_wanted++ * n_vocab, logits, n_vocab * sizeof(float));
        w->next_id[r->seq[i]] = nk_logits_top1(logits, r->n_vocab);
    }
    return 0;
}

/* May rows [begin, end) be one run, where runs are to have the same number of rows of each
 * sequence? (extend() puts the rows of a sequence together.) */
static bool equal_rows(const nk_reference *r, int begin, int end)
{
    int count[SEQUENCES_MAX] = { 0 }, each;

    for (int i = begin; i < end; i++)
        count[r->seq[i]]++;
    each = count[r->seq[begin]];
    for (int s = 0; s < SEQUENCES_MAX; s++)
        if (count[s] && count[s] != each)
            return false;
    return true;
}

/* The rows added since the last time as one run, or a run for each sequence where the architecture
 * wants that. */
static int flush(struct writer *w, struct nk_error *err)
{
    const nk_reference *r = w->r;
    int rc = 0;

    for (int begin = w->n_rows_run, end; !rc && begin < r->n_rows; begin = end) {
        end = r->n_rows;
        if (w->info->one_sequence_per_run ||
            (w->info->equal_rows_per_run && !equal_rows(r, begin, end)))
            for (end = begin + 1; end < r->n_rows && r->seq[end] == r->seq[begin];)
                end++;
        rc = add_run(w, begin, end, err);
    }
    w->n_rows_run = r->n_rows;
    return rc;
}

/* Adds n rows to sequence seq, which go on where it ends. id -1: random ones. */
static void extend(struct writer *w, int seq, int n, int32_t id)
{
    nk_reference *r = w->r;

    for (int i = 0; i < n; i++) {
        r->ids[r->n_rows] = id < 0 ? random_id(w) : id;
        r->pos[r->n_rows] = w->length[seq]++;
        r->seq[r->n_rows++] = seq;
    }
}

/* Extends every sequence to its target, in batches that mix all of them. */
static int prompt(struct writer *w, struct nk_error *err)
{
    int chunk = w->script->n_batch / w->script->n_sequences, rc = 0;
    bool more = true;

    while (!rc && more) {
        more = false;
        for (int s = 0; s < w->script->n_sequences; s++) {
            int left = w->target[s] - w->length[s], n = left < chunk ? left : chunk;

            extend(w, s, n, -1);
            more |= left > n;
        }
        rc = flush(w, err);
    }
    return rc;
}

/* One row for each sequence, the second time on in changing order, and every third time not for
 * all. */
static int step(struct writer *w, int k, struct nk_error *err)
{
    int n = w->script->n_sequences;

    for (int i = 0; i < n; i++) {
        int s = (i + k) % n;

        if (k % 3 == 2 && n > 1 && s % 2 != k % 2)
            continue;
        w->target[s] = w->length[s] + 1;
        extend(w, s, 1, w->next_id[s]);
    }
    return flush(w, err);
}

/* BURST rows for each sequence at once, as when drafts are checked. */
static int burst(struct writer *w, struct nk_error *err)
{
    int n = w->script->n_batch / w->script->n_sequences;

    for (int s = 0; s < w->script->n_sequences; s++) {
        extend(w, s, n < BURST ? n : BURST, -1);
        w->target[s] = w->length[s];
    }
    return flush(w, err);
}

/* Every sequence goes back and on with other tokens. A recurrent one can only start again. */
static int roll_back(struct writer *w, struct nk_error *err)
{
    for (int s = 0; s < w->script->n_sequences; s++) {
        int length = w->length[s];
        int back = w->script->n_steps / 2 + 3 * s + w->script->n_tokens / 4;

        w->length[s] = !w->info->can_rollback || back >= length ? 0 : length - back;
        w->target[s] = w->length[s] + 5 + s;
    }
    return prompt(w, err);
}

int nk_script_length_max(const struct nk_script *script)
{
    return script->n_tokens + 2 * script->n_steps + 5 + SEQUENCES_MAX + BURST;
}

static int write_script(struct writer *w, struct nk_error *err)
{
    const struct nk_script *o = w->script;
    int rc;

    for (int s = 0; s < o->n_sequences; s++)
        w->target[s] = o->n_tokens > 3 * s ? o->n_tokens - 3 * s : 1;
    rc = prompt(w, err);
    for (int k = 0; !rc && k < o->n_steps; k++)
        rc = step(w, k, err);
    if (!rc)
        rc = roll_back(w, err);
    for (int k = 0; !rc && k < o->n_steps; k++)
        rc = step(w, k, err);
    return rc ? rc : burst(w, err);
}

int nk_reference_new(nk_reference **out, nk_stage *whole, const struct nk_script *script,
                     struct nk_error *err)
{
    size_t n = (size_t)nk_script_length_max(script) * (size_t)script->n_sequences;
    const struct nk_stage_info *info = nk_stage_info(whole);
    nk_reference *r = calloc(1, sizeof *r);
    struct writer w = { .r = r, .whole = whole, .info = info, .script = script, .random = 1 };
    int rc;

    *out = NULL;
    if (!r)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    r->n_vocab = info->n_vocab;
    r->ids = malloc(n * sizeof *r->ids);
    r->pos = malloc(n * sizeof *r->pos);
    r->seq = malloc(n * sizeof *r->seq);
    r->want = malloc(n);
    rc = r->ids && r->pos && r->seq && r->want
             ? write_script(&w, err)
             : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    if (rc)
        nk_reference_free(r);
    else
        *out = r;
    return rc;
}

void nk_reference_free(nk_reference *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->n_runs; i++)
        free(r->runs[i].logits);
    free(r->runs);
    free(r->ids);
    free(r->pos);
    free(r->seq);
    free(r->want);
    free(r);
}

int nk_reference_n_runs(const nk_reference *r)
{
    return r->n_runs;
}

int nk_reference_compare(const nk_reference *r, nk_stage *const *stages, int n_stages,
                         struct nk_difference *out, struct nk_error *err)
{
    *out = (struct nk_difference){ 0 };
    for (int k = 0; k < r->n_runs; k++) {
        const struct run *run = &r->runs[k];
        const float *want = run->logits;
        struct nk_stage_batch b = batch_of(r, run->begin, run->end);

        for (int i = 0; i < n_stages; i++) {
            const struct nk_stage_info *info = nk_stage_info(stages[i]);
            int rc = nk_stage_run(stages[i], &b, err);

            if (rc)
                return nk_wrap(rc, err, "layers %d-%d", info->layer_begin, info->layer_end);
            b.rows = nk_stage_rows(stages[i]);
        }
        for (int i = run->begin; i < run->end; i++) {
            const float *got;

            if (!r->want[i])
                continue;
            got = nk_stage_logits(stages[n_stages - 1], i - run->begin);
            if (!got)
                return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                               "the chain gives no logits for row %d", i);
            nk_difference_add(out, want, got, r->n_vocab);
            want += r->n_vocab;
        }
    }
    return 0;
}
