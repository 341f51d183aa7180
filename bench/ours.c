/* Ours as a system: worker processes on free ports of 127.0.0.1 and a chain over them, asked as
 * `run` and `serve` ask. */
#include "bench/system.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/process.h"
#include "bench/draw.h"
#include "bench/machine.h"
#include "bench/meter.h"
#include "bench/ours.h"
#include "bench/quality.h"
#include "bench/stats.h"
#include "bench/steps.h"
#include "slice/slice.h"

enum {
    WORKERS_MAX = 16,
    STREAMS_MAX = 256,
    READY_MS_MAX = 300000,
    RUN_MS_MAX = 600000,
    GAP_TOKENS = 192, /* of the measured session: the other one's prompt comes meanwhile */
    ALONE_TOKENS = 9, /* before the other session's prompt comes */
    ARGS_MAX = 64,
    STEPS_SKIPPED = 8, /* a session's first steps: connections and caches are still cold */
    STOP_MS_MAX = 120000,
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
    nk_wan *wan;
    nk_meter *meter; /* between the first two workers */
    uint64_t rng;
};

/* ---- one generation, watched ---- */

struct watch {
    pthread_mutex_t mutex; /* guards the rest, which the net thread writes */
    pthread_cond_t changed;
    uint64_t begin_ns;
    uint64_t *at_ns; /* when each token came */
    int n_tokens, n_wanted, n_prompt, n_prompt_seen;
    double step_us; /* computing of one run, all stages together, on average */
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
    for (int i = 0; i < stats->n_stages; i++)
        if (stats->stages[i].runs)
            w->step_us += (double)stats->stages[i].compute_us / (double)stats->stages[i].runs;
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
    const struct nk_gen_handlers handlers = { .token = on_token, .done = on_done };
    struct nk_gen_opts opts = nk_gen_opts_default();
    int32_t *ids = malloc((size_t)n_prompt * sizeof *ids);
    int rc;

    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->mutex, NULL);
    nk_cond_init(&w->changed);
    w->n_wanted = n_predict;
    w->n_prompt = n_prompt;
    w->at_ns = calloc((size_t)n_predict, sizeof *w->at_ns);
    if (!ids || !w->at_ns) {
        free(ids);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    nk_draw_ids(&s->rng, s->opts.n_vocab, ids, n_prompt);
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
    uint64_t until_ns = nk_now_ns() + RUN_MS_MAX * 1000000ull;
    int rc;

    if (!w->gen) {
        free(w->at_ns);
        w->at_ns = NULL;
        return 0;
    }
    pthread_mutex_lock(&w->mutex);
    while (!w->done && nk_clock_wait_until(nk_clock_system(), &w->changed, &w->mutex, until_ns))
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

/* Until it has so many tokens, or is done. */
static void watch_wait(struct watch *w, int n_tokens)
{
    uint64_t until_ns = nk_now_ns() + RUN_MS_MAX * 1000000ull;

    pthread_mutex_lock(&w->mutex);
    while (!w->done && w->n_tokens < n_tokens &&
           nk_clock_wait_until(nk_clock_system(), &w->changed, &w->mutex, until_ns))
        ;
    pthread_mutex_unlock(&w->mutex);
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
    /* A second signal would cut them short, and a trace would have no end. */
    for (int i = 0; i < s->n_workers; i++) {
        if (s->workers[i].process.pid)
            nk_process_wait(&s->workers[i].process, STOP_MS_MAX);
        nk_process_stop(&s->workers[i].process, 0);
    }
    nk_meter_close(s->meter);
    nk_wan_close(s->wan);
    free(s);
}

/* Where worker i writes its steps. */
static void trace_path(const struct nk_system_opts *o, int i, char *out, size_t size)
{
    snprintf(out, size, "%s/steps.%d.jsonl", o->work_dir, i);
}

/* Starts one worker and waits until it is ready; its address is in w afterwards. Peers: the workers
 * after it. wan: it runs on host i of that network; NULL: on loopback. */
static int start_worker(const struct nk_system_opts *o, nk_wan *wan, int i, const char *slice,
                        const struct worker *peers, int n_peers, struct worker *w,
                        struct nk_error *err)
{
    char threads[16], threads_batch[16], ctx[16], sequences[16], log[4200], trace[4200], line[512],
        listen[64];
    const char *argv[ARGS_MAX] = { o->nakshatra,  "worker",    "--slice",  slice,    "--listen",
                                   listen,        "--threads", threads,    "--ctx",  ctx,
                                   "--sequences", sequences,   "--device", o->device };
    struct nk_process_opts opts = { .argv = argv, .capture_out = true, .err_path = log };
    int n = 14, rc;

    snprintf(listen, sizeof listen, "%s:0", wan ? nk_wan_address(wan, i) : "127.0.0.1");
    if (wan) {
        argv[n++] = "--insecure"; /* the network ends in this machine */
        opts.in_child = nk_wan_enter;
        opts.in_child_arg = nk_wan_host(wan, i);
    }
    snprintf(threads, sizeof threads, "%d", o->n_threads);
    snprintf(threads_batch, sizeof threads_batch, "%d", o->n_threads_whole);
    snprintf(ctx, sizeof ctx, "%d", o->n_ctx);
    snprintf(sequences, sizeof sequences, "%d", o->n_streams_max);
    snprintf(log, sizeof log, "%s/workers.log", o->work_dir);
    trace_path(o, i, trace, sizeof trace);
    if (o->trace) {
        argv[n++] = "--trace";
        argv[n++] = trace;
    }
    if (o->n_workers > 1 && !wan) { /* as `up` starts them */
        argv[n++] = "--threads-batch";
        argv[n++] = threads_batch;
        argv[n++] = "--shared-cores";
    }
    if (o->cache) {
        argv[n++] = "--cache-type-k";
        argv[n++] = o->cache;
        argv[n++] = "--cache-type-v";
        argv[n++] = o->cache;
        if (o->no_flash_attn)
            argv[n++] = "--no-flash-attn";
    }
    for (int k = 0; k < n_peers; k++) {
        argv[n++] = "--allow-peer";
        argv[n++] = peers[k].address;
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

/* Slices in the cache folder, and the cluster that the chain needs; workers are started from the
 * last to the first, since each must know those after it. */
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

        rc = nk_slice_cached(m, ranges[i], NK_VERIFY_ONCE, &slice, err);
        if (rc)
            break;
        rc = start_worker(&s->opts, s->wan, i, slice, &s->workers[i + 1], n - 1 - i, &s->workers[i],
                          err);
        free(slice);
        if (!rc && i == 1 && s->opts.meter) { /* the first worker talks to the meter */
            rc = nk_meter_open(&s->meter, s->workers[i].address, err);
            if (!rc)
                snprintf(s->workers[i].address, sizeof s->workers[i].address, "%s",
                         nk_meter_address(s->meter));
        }
        snprintf(w->id, sizeof w->id, "w%d", i);
        snprintf(w->address, sizeof w->address, "%s", s->workers[i].address);
        w->layer_begin = ranges[i].begin;
        w->layer_end = ranges[i].end;
    }
    return rc;
}

static int start_chain(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
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
    rc = nk_model_open(&m, opts->model, err);
    if (!rc && opts->wan)
        rc = opts->n_workers == NK_WAN_HOSTS
                 ? nk_wan_open(&s->wan, opts->wan, err)
                 : nk_fail(err, NK_E_INVALID, "not_run", "the network has %d hosts", NK_WAN_HOSTS);
    if (!rc)
        rc = start_workers(s, m, cluster, err);
    if (!rc)
        rc = nk_chain_open(&s->chain, cluster, NULL, err);
    if (!rc && !s->wan) /* the second host of the network is out of our sight */
        rc = nk_chain_check(s->chain, READY_MS_MAX, &report, err);
    if (!rc && report && !report->ok) {
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

nk_chain *nk_ours_chain(nk_system *ours)
{
    return ours->chain;
}

/* A trace is whole when its worker has ended: then each question starts workers of its own. */
static int start(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    nk_system *s;

    if (opts->n_workers > 0 && !opts->trace)
        return start_chain(out, opts, err);
    *out = s = calloc(1, sizeof *s);
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->opts = *opts;
    return 0;
}

/* ---- questions ---- */

/* Prompts are computed one after the other, and between two of them every session that has begun
 * gets a token at most. */
int nk_ours_decode_tokens(int n_streams, int n_predict)
{
    return n_predict + n_streams;
}

static int decode_once(nk_system *s, int n_streams, int n_depth, int n_predict, double *tok_s,
                       struct nk_error *err)
{
    struct watch *w = calloc((size_t)n_streams, sizeof *w);
    uint64_t begin_ns = 0, end_ns = UINT64_MAX;
    int rc = 0, n_counted = 0, last = nk_ours_decode_tokens(n_streams, n_predict) - 1;

    if (!w || n_streams > STREAMS_MAX) {
        free(w);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%d streams are too many", n_streams);
    }
    for (int i = 0; !rc && i < n_streams; i++)
        rc = watch_start(&w[i], s, n_depth > 0 ? n_depth : 1, last + 1, err);
    for (int i = 0; i < n_streams; i++) {
        int one = watch_finish(&w[i], rc ? NULL : err);

        rc = rc ? rc : one;
    }
    for (int i = 0; !rc && i < n_streams; i++) {
        if (w[i].at_ns[0] > begin_ns)
            begin_ns = w[i].at_ns[0];
        if (w[i].at_ns[last] < end_ns)
            end_ns = w[i].at_ns[last];
    }
    for (int i = 0; !rc && i < n_streams; i++)
        for (int t = 0; t <= last; t++)
            n_counted += w[i].at_ns[t] > begin_ns && w[i].at_ns[t] <= end_ns;
    if (!rc && (end_ns <= begin_ns || n_counted < n_streams * n_predict / 2))
        rc = nk_fail(err, NK_E_UNKNOWN, NK_TOO_LATE,
                     "%d streams decoded together for %d of %d tokens only", n_streams, n_counted,
                     n_streams * n_predict);
    if (!rc)
        *tok_s = n_counted / ((double)(end_ns - begin_ns) / 1e9);
    for (int i = 0; i < n_streams; i++)
        watch_release(&w[i]);
    free(w);
    return rc;
}

/* What counts is the time in which all streams decode. */
static int decode(nk_system *s, int n_streams, int n_depth, int n_predict, double *tok_s,
                  struct nk_error *err)
{
    uint64_t begin_ns = nk_now_ns();
    int rc;

    do
        rc = decode_once(s, n_streams, n_depth, n_predict, tok_s, err);
    while (nk_ask_again(rc, err, begin_ns));
    return rc;
}

static int after_prompt(nk_system *s, int n_prompt, int n_predict, double tok_s[2],
                        struct nk_error *err)
{
    struct watch w;
    int rc = watch_start(&w, s, n_prompt, n_predict + 1, err);

    if (!rc)
        rc = watch_finish(&w, err);
    if (!rc) {
        tok_s[0] = n_predict / ((double)(w.at_ns[n_predict] - w.at_ns[0]) / 1e9);
        tok_s[1] = n_prompt / ((double)(w.at_ns[0] - w.begin_ns) / 1e9);
    }
    watch_release(&w);
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

/* Ours has no listeners: that is the gateway's question. */
static int token(nk_system *s, int n_listeners, int n_predict, double *ms, struct nk_error *err)
{
    struct watch w;
    int rc = watch_start(&w, s, 1, n_predict, err);

    (void)n_listeners;
    if (!rc)
        rc = watch_finish(&w, err);
    if (!rc)
        *ms = (double)(w.at_ns[n_predict - 1] - w.begin_ns) / 1e6 / n_predict;
    watch_release(&w);
    return rc;
}

/* The median time between two tokens before begin_ns and after end_ns. */
static double median_step_ms(const struct watch *w, uint64_t begin_ns, uint64_t end_ns)
{
    double *ms = malloc((size_t)w->n_tokens * sizeof *ms), median;
    size_t n = 0;

    if (!ms)
        return 0;
    for (int i = 1; i < w->n_tokens; i++)
        if (w->at_ns[i] < begin_ns || w->at_ns[i - 1] > end_ns)
            ms[n++] = (double)(w->at_ns[i] - w->at_ns[i - 1]) / 1e6;
    median = nk_median(ms, n);
    free(ms);
    return median;
}

static int gap_once(nk_system *s, int n_prompt, double ms[4], struct nk_error *err)
{
    struct watch mine, other = { .gen = NULL };
    nk_system *chain = s;
    uint64_t worst = 0;
    int rc = s->opts.trace ? start_chain(&chain, &s->opts, err) : 0, one;

    if (rc)
        return rc;
    rc = watch_start(&mine, chain, 16, GAP_TOKENS, err);
    if (!rc && n_prompt) {
        watch_wait(&mine, ALONE_TOKENS);
        rc = watch_start(&other, chain, n_prompt, 2, err);
    }
    one = watch_finish(&mine, rc ? NULL : err);
    rc = rc ? rc : one;
    one = watch_finish(&other, rc ? NULL : err);
    rc = rc ? rc : one;
    if (s->opts.trace)
        stop(chain); /* now the traces are whole */
    if (!rc && n_prompt &&
        (other.at_ns[0] < mine.at_ns[0] || other.at_ns[0] > mine.at_ns[mine.n_tokens - 1]))
        rc = nk_fail(err, NK_E_UNKNOWN, NK_TOO_LATE,
                     "the prompt of %d tokens was not prefilled while the other session ran",
                     n_prompt);
    for (int i = 1; !rc && i < mine.n_tokens; i++)
        if (mine.at_ns[i] - mine.at_ns[i - 1] > worst)
            worst = mine.at_ns[i] - mine.at_ns[i - 1];
    ms[0] = (double)worst / 1e6;
    if (!rc && s->opts.trace) {
        ms[2] = 0;
        ms[3] = median_step_ms(&mine, other.begin_ns, other.at_ns[0]);
        for (int i = 0; !rc && i < s->opts.n_workers; i++) {
            struct nk_steps steps = { NULL, 0 };
            char path[4200];

            trace_path(&s->opts, i, path, sizeof path);
            rc = nk_steps_read(&steps, path, err);
            ms[2] += nk_steps_longest_chunk_ms(&steps);
            nk_steps_release(&steps);
        }
        ms[1] = ms[2] + ms[3];
    }
    watch_release(&mine);
    watch_release(&other);
    return rc;
}

static int gap(nk_system *s, int n_prompt, double ms[4], struct nk_error *err)
{
    uint64_t begin_ns = nk_now_ns();
    int rc;

    do
        rc = gap_once(s, n_prompt, ms, err);
    while (nk_ask_again(rc, err, begin_ns));
    return rc;
}

static int network(nk_system *s, int n_predict, double tok_s[2], struct nk_error *err)
{
    struct watch w;
    int rc = watch_start(&w, s, 1, n_predict + 1, err);

    if (!rc)
        rc = watch_finish(&w, err);
    if (!rc && w.step_us <= 0)
        rc =
            nk_fail(err, NK_E_UNKNOWN, "not_run", "the workers did not say how long they computed");
    if (!rc) {
        tok_s[0] = n_predict / ((double)(w.at_ns[n_predict] - w.at_ns[0]) / 1e9);
        tok_s[1] = 1e6 / (w.step_us + s->opts.wan->round_trip_ms * 1e3);
    }
    watch_release(&w);
    return rc;
}

/* The difference of two generations, one twice as long as the other: what opening and ending a
 * session takes is in both. */
static int wire(nk_system *s, int n_predict, double bytes[3], struct nk_error *err)
{
    uint64_t there[3], back[3];
    int rc = 0;

    nk_meter_read(s->meter, &there[0], &back[0]);
    for (int i = 0; !rc && i < 2; i++) {
        struct watch w;

        rc = watch_start(&w, s, 1, (i + 1) * n_predict, err);
        if (!rc)
            rc = watch_finish(&w, err);
        watch_release(&w);
        nk_meter_read(s->meter, &there[i + 1], &back[i + 1]);
    }
    bytes[0] = (double)(there[2] - 2 * there[1] + there[0]) / n_predict;
    bytes[1] = (double)(back[2] - 2 * back[1] + back[0]) / n_predict;
    bytes[2] = s->opts.n_embd * (s->opts.f16 ? 2.0 : 4.0);
    return rc;
}

static int quality(nk_system *s, bool real, int n_tokens, double value[2], struct nk_error *err)
{
    struct nk_quality q;
    int rc = nk_quality_measure(real ? s->opts.real_model : s->opts.model, s->opts.device,
                                s->opts.n_threads_whole, real, n_tokens, &q, err);

    value[0] = q.nmse_max;
    value[1] = q.top1_same_pct;
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
    int rc = start_worker(&s->opts, NULL, 0, s->opts.slice, NULL, 0, &w, err);

    *seconds = (double)(nk_now_ns() - begin_ns) / 1e9;
    nk_process_stop(&w.process, 5000);
    return rc;
}

static int hop(nk_system *s, int n_predict, double us[4], struct nk_error *err)
{
    struct nk_steps steps[2] = { { NULL, 0 }, { NULL, 0 } };
    struct nk_hop_times times;
    nk_system *chain;
    double tok_s;
    int rc = start_chain(&chain, &s->opts, err);

    if (rc)
        return rc;
    rc = decode(chain, 1, 1, n_predict, &tok_s, err);
    stop(chain); /* now the traces are whole */
    for (int i = 0; !rc && i < 2; i++) {
        char path[4200];

        trace_path(&s->opts, i, path, sizeof path);
        rc = nk_steps_read(&steps[i], path, err);
    }
    if (!rc)
        rc = nk_steps_hop(&steps[0], &steps[1], STEPS_SKIPPED, &times, err);
    if (!rc) {
        us[0] = times.both_median;
        us[1] = times.both_p99;
        us[2] = times.there_median;
        us[3] = times.back_median;
    }
    nk_steps_release(&steps[0]);
    nk_steps_release(&steps[1]);
    return rc;
}

const struct nk_system_ops nk_system_ours = {
    .name = "ours",
    .start = start,
    .stop = stop,
    .decode = decode,
    .prefill = prefill,
    .after_prompt = after_prompt,
    .ttft = ttft,
    .gap = gap,
    .memory = memory,
    .startup = startup,
    .hop = hop,
    .token = token,
    .network = network,
    .wire = wire,
    .quality = quality,
};
