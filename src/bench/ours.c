/* Ours as a system: worker processes on free ports of 127.0.0.1 and a chain over them, asked as `run` and `serve` ask. */
#include "bench/system.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/process.h"
#include "bench/machine.h"
#include "chain/chain.h"
#include "slice/slice.h"

enum {
    WORKERS_MAX = 16,
    STREAMS_MAX = 256,
    READY_MS_MAX = 300000,
    RUN_MS_MAX = 600000,
    GAP_TOKENS = 48,
    ARGS_MAX = 64,
};

struct worker {
    struct nk_process process;
    char address[64];
};

struct nk_system {
    struct nk_system_opts opts;
    struct worker workers[WORKERS_MAX];
    int n_workers;
    nk_chain *chain;
    uint64_t rng;
};

/* ---- one generation, watched ---- */

struct watch {
    pthread_mutex_t mutex; /* guards the rest, which the net thread writes */
    pthread_cond_t changed;
    uint64_t begin_ns;
    uint64_t *at_ns; /* when each token came */
    int n_tokens, n_wanted, n_prompt, n_prompt_seen;
    bool done;
    int rc;
    struct nk_error err;
    nk_gen *gen;
};

static void on_token(void *user, const struct nk_gen_token *t)
{
    struct watch *w = user;
    uint64_t now = nk_now_ns();

    (void)t;
    pthread_mutex_lock(&w->mutex);
    if (w->n_tokens < w->n_wanted)
        w->at_ns[w->n_tokens++] = now;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

static void on_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct watch *w = user;

    pthread_mutex_lock(&w->mutex);
    w->done = true;
    w->n_prompt_seen = stats->n_prompt - stats->n_reused;
    if (err) {
        w->rc = err->code;
        w->err = *err;
    }
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

static int watch_start(struct watch *w, nk_system *s, int n_prompt, int n_predict,
                       struct nk_error *err)
{
    const struct nk_gen_handlers handlers = { on_token, on_done };
    struct nk_gen_opts opts = nk_gen_opts_default();
    int32_t *ids = malloc((size_t)n_prompt * sizeof *ids);
    int rc;

    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->n_wanted = n_predict;
    w->n_prompt = n_prompt;
    w->at_ns = calloc((size_t)n_predict, sizeof *w->at_ns);
    if (!ids || !w->at_ns) {
        free(ids);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    nk_random_ids(&s->rng, s->opts.n_vocab, ids, n_prompt);
    opts.ids = ids;
    opts.n_ids = (size_t)n_prompt;
    opts.n_predict = n_predict;
    opts.sampling = nk_sampling_default();
    opts.sampling.temperature = 0;
    opts.sampling.ignore_eos = true;
    opts.n_logprobs = -1;
    opts.no_reuse = true;
    w->begin_ns = nk_now_ns();
    rc = nk_gen_start(&w->gen, s->chain, &opts, &handlers, w, err);
    free(ids);
    return rc;
}

/* Waits for the end and checks that it was whole; harmless on one that was not started. */
static int watch_finish(struct watch *w, struct nk_error *err)
{
    struct timespec until;
    int rc;

    if (!w->gen) {
        free(w->at_ns);
        w->at_ns = NULL;
        return 0;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RUN_MS_MAX / 1000;
    pthread_mutex_lock(&w->mutex);
    while (!w->done && pthread_cond_timedwait(&w->changed, &w->mutex, &until) == 0)
        ;
    if (!w->done) {
        pthread_mutex_unlock(&w->mutex);
        nk_gen_cancel(w->gen);
        pthread_mutex_lock(&w->mutex);
        while (!w->done) /* comes after a cancel */
            pthread_cond_wait(&w->changed, &w->mutex);
        w->rc = nk_fail(&w->err, NK_E_DEADLINE, "timeout", "a generation did not end within %d s",
                        RUN_MS_MAX / 1000);
    }
    rc = w->rc;
    if (!rc && (w->n_tokens != w->n_wanted || w->n_prompt_seen != w->n_prompt))
        rc = nk_fail(&w->err, NK_E_UNKNOWN, "not_run",
                     "%d prompt tokens were computed and %d generated; %d and %d were asked for",
                     w->n_prompt_seen, w->n_tokens, w->n_prompt, w->n_wanted);
    pthread_mutex_unlock(&w->mutex);
    if (rc && err)
        *err = w->err;
    nk_gen_free(w->gen);
    w->gen = NULL;
    return rc;
}

static void watch_release(struct watch *w)
{
    free(w->at_ns);
    w->at_ns = NULL;
}

/* ---- workers ---- */

static void stop(nk_system *s)
{
    if (!s)
        return;
    if (s->chain)
        nk_chain_close(s->chain);
    for (int i = 0; i < s->n_workers; i++)
        nk_process_terminate(&s->workers[i].process);
    for (int i = 0; i < s->n_workers; i++)
        nk_process_stop(&s->workers[i].process, 5000);
    free(s);
}

/* Starts one worker and waits until it is ready; its address is in w afterwards. Peers: the workers after it. */
static int start_worker(const struct nk_system_opts *o, const char *slice,
                        const struct worker *peers, int n_peers, struct worker *w,
                        struct nk_error *err)
{
    char threads[16], ctx[16], sequences[16], log[4200], line[512];
    const char *argv[ARGS_MAX] = { o->self,       "worker",    "--slice",  slice,    "--listen",
                                   "127.0.0.1:0", "--threads", threads,    "--ctx",  ctx,
                                   "--sequences", sequences,   "--device", o->device };
    struct nk_process_opts opts = { .argv = argv, .capture_out = true, .err_path = log };
    int n = 14, rc;

    snprintf(threads, sizeof threads, "%d", o->n_threads);
    snprintf(ctx, sizeof ctx, "%d", o->n_ctx);
    snprintf(sequences, sizeof sequences, "%d", o->n_streams_max);
    snprintf(log, sizeof log, "%s/workers.log", o->work_dir);
    for (int i = 0; i < n_peers; i++) {
        argv[n++] = "--allow-peer";
        argv[n++] = peers[i].address;
    }
    rc = nk_process_start(&w->process, &opts, err);
    if (rc)
        return rc;
    rc = nk_process_read_line(&w->process, line, sizeof line, READY_MS_MAX, err);
    if (!rc && sscanf(line, "ready %63s", w->address) != 1)
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run", "a worker said '%s' instead of 'ready ADDRESS'",
                     line);
    return rc ? nk_wrap(rc, err, "worker of %s (%s has more)", slice, log) : 0;
}

/* Slices in the cache folder, and the cluster that the chain needs; workers are started from the last to the first, since
 * each must know those after it. */
static int start_workers(nk_system *s, nk_model *m, struct nk_cluster *cluster,
                         struct nk_error *err)
{
    struct nk_range ranges[WORKERS_MAX];
    int n = s->opts.n_workers, rc;

    if (s->opts.ranges)
        rc = nk_ranges_parse(s->opts.ranges, ranges, WORKERS_MAX, &n, err);
    else
        rc = nk_ranges_balance(m, n, ranges, err);
    if (!rc)
        rc = nk_ranges_check(m, ranges, n, true, err);
    if (!rc)
        rc = nk_model_hash(m, cluster->model_sha256, err);
    snprintf(cluster->model_id, sizeof cluster->model_id, "bench");
    cluster->f16 = s->opts.f16;
    cluster->n_workers = n;
    s->n_workers = n;
    for (int i = 0; i < n; i++)
        s->workers[i].process = (struct nk_process)NK_PROCESS_INIT;
    for (int i = n - 1; !rc && i >= 0; i--) {
        struct nk_cluster_worker *w = &cluster->workers[i];
        char *slice;

        rc = nk_slice_cached(m, ranges[i], &slice, err);
        if (rc)
            break;
        rc = start_worker(&s->opts, slice, &s->workers[i + 1], n - 1 - i, &s->workers[i], err);
        free(slice);
        snprintf(w->id, sizeof w->id, "w%d", i);
        snprintf(w->address, sizeof w->address, "%s", s->workers[i].address);
        w->layer_begin = ranges[i].begin;
        w->layer_end = ranges[i].end;
    }
    return rc;
}

static int start(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    struct nk_cluster *cluster = calloc(1, sizeof *cluster);
    struct nk_chain_report *report = NULL;
    nk_system *s = calloc(1, sizeof *s);
    nk_model *m = NULL;
    int rc = 0;

    *out = NULL;
    if (!s || !cluster || opts->n_workers > WORKERS_MAX) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%d workers are too many", opts->n_workers);
        goto out;
    }
    s->opts = *opts;
    s->rng = 1;
    if (opts->n_workers == 0) { /* nothing but `startup` will be asked */
        *out = s;
        s = NULL;
        goto out;
    }
    rc = nk_model_open(&m, opts->model, err);
    if (!rc)
        rc = start_workers(s, m, cluster, err);
    if (!rc)
        rc = nk_chain_open(&s->chain, cluster, err);
    if (!rc)
        rc = nk_chain_check(s->chain, 10000, &report, err);
    if (!rc && !report->ok) {
        *err = report->err;
        rc = report->err.code;
    }
    if (!rc) {
        *out = s;
        s = NULL;
    }
out:
    stop(s);
    free(report);
    free(cluster);
    if (m)
        nk_model_close(m);
    return rc;
}

/* ---- questions ---- */

static int decode(nk_system *s, int n_streams, int n_depth, int n_predict, double *tok_s,
                  struct nk_error *err)
{
    struct watch *w = calloc((size_t)n_streams, sizeof *w);
    uint64_t begin_ns = 0, end_ns = UINT64_MAX;
    int rc = 0, n_counted = 0;

    if (!w || n_streams > STREAMS_MAX) {
        free(w);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%d streams are too many", n_streams);
    }
    /* One token more: the first one belongs to the prefill. */
    for (int i = 0; !rc && i < n_streams; i++)
        rc = watch_start(&w[i], s, n_depth > 0 ? n_depth : 1, n_predict + 1, err);
    for (int i = 0; i < n_streams; i++) {
        int one = watch_finish(&w[i], rc ? NULL : err);

        rc = rc ? rc : one;
    }
    /* What counts is the time in which all streams were decoding. */
    for (int i = 0; !rc && i < n_streams; i++) {
        if (w[i].at_ns[0] > begin_ns)
            begin_ns = w[i].at_ns[0];
        if (w[i].at_ns[n_predict] < end_ns)
            end_ns = w[i].at_ns[n_predict];
    }
    for (int i = 0; !rc && i < n_streams; i++)
        for (int t = 0; t <= n_predict; t++)
            n_counted += w[i].at_ns[t] > begin_ns && w[i].at_ns[t] <= end_ns;
    if (!rc && (end_ns <= begin_ns || n_counted < n_streams * n_predict / 4))
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run",
                     "%d streams decoded together for %d of %d tokens only", n_streams, n_counted,
                     n_streams * n_predict);
    if (!rc)
        *tok_s = n_counted / ((double)(end_ns - begin_ns) / 1e9);
    for (int i = 0; i < n_streams; i++)
        watch_release(&w[i]);
    free(w);
    return rc;
}

static int one_prompt(nk_system *s, int n_prompt, double *seconds, struct nk_error *err)
{
    struct watch w;
    int rc = watch_start(&w, s, n_prompt, 2, err);

    if (!rc)
        rc = watch_finish(&w, err);
    if (!rc)
        *seconds = (double)(w.at_ns[0] - w.begin_ns) / 1e9;
    watch_release(&w);
    return rc;
}

static int prefill(nk_system *s, int n_prompt, double *tok_s, struct nk_error *err)
{
    double seconds = 0;
    int rc = one_prompt(s, n_prompt, &seconds, err);

    if (!rc)
        *tok_s = n_prompt / seconds;
    return rc;
}

static int ttft(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    double seconds = 0;
    int rc = one_prompt(s, n_prompt, &seconds, err);

    *ms = seconds * 1e3;
    return rc;
}

static int gap(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    struct watch mine, other = { .gen = NULL };
    uint64_t worst = 0;
    int rc = watch_start(&mine, s, 16, 4 * GAP_TOKENS, err), one;

    if (!rc && n_prompt) {
        nk_sleep_ms(500); /* the first session is decoding by then */
        rc = watch_start(&other, s, n_prompt, 2, err);
    }
    one = watch_finish(&mine, rc ? NULL : err);
    rc = rc ? rc : one;
    one = watch_finish(&other, rc ? NULL : err);
    rc = rc ? rc : one;
    if (!rc && n_prompt &&
        (other.at_ns[0] < mine.at_ns[0] || other.at_ns[0] > mine.at_ns[mine.n_tokens - 1]))
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run",
                     "the prompt of %d tokens was not prefilled while the other session ran",
                     n_prompt);
    for (int i = 1; !rc && i < mine.n_tokens; i++)
        if (mine.at_ns[i] - mine.at_ns[i - 1] > worst)
            worst = mine.at_ns[i] - mine.at_ns[i - 1];
    *ms = (double)worst / 1e6;
    watch_release(&mine);
    watch_release(&other);
    return rc;
}

static int memory(nk_system *s, double *mib, struct nk_error *err)
{
    double seconds, total = 0;
    int rc = one_prompt(s, 128, &seconds, err);

    for (int i = 0; !rc && i < s->n_workers; i++) {
        double one = (double)nk_machine_process_pss(s->workers[i].process.pid) / (1 << 20);

        if (one <= 0)
            rc = nk_fail(err, NK_E_UNIMPLEMENTED, "not_run",
                         "the kernel does not tell a process's memory");
        total += one;
    }
    *mib = total;
    return rc;
}

static int startup(nk_system *s, double *seconds, struct nk_error *err)
{
    struct worker w = { .process = NK_PROCESS_INIT };
    uint64_t begin_ns = nk_now_ns();
    int rc = start_worker(&s->opts, s->opts.slice, NULL, 0, &w, err);

    *seconds = (double)(nk_now_ns() - begin_ns) / 1e9;
    nk_process_stop(&w.process, 5000);
    return rc;
}

/* clang-format off */
const struct nk_system_ops nk_system_ours = {
    .name = "ours", .summary = "Nakshatra, one worker process per stage",
    .start = start, .stop = stop, .decode = decode, .prefill = prefill, .ttft = ttft, .gap = gap, .memory = memory,
    .startup = startup,
};
/* clang-format on */
