/* An assignment: fetch the slice, start its worker, and start it again when it dies, with a growing
 * pause, until the assignment is taken back. */
#include "agent/agent_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/args.h"
#include "base/log.h"
#include "base/process.h"
#include "base/thread.h"
#include "pieces/shelf.h"

enum {
    POLL_MS = 200,
    READY_MS = 600000, /* a large slice from a slow disk */
    PAUSE_MS = 1000,   /* after a failure, doubled with each in a row */
    PAUSE_MAX_MS = 60000,
    /* What an assignment that was taken back still runs has so long. */
    TAKEN_BACK_MS = 300000,
    /* A worker that has served so long has not failed in a row with the failure before. */
    GOOD_MS = 60000,
    GRACE_MS = 5000, /* of a worker's end, beside what it was told */
};

static void set_state(struct nk__hold *h, enum nk_holding_state state, int port, const char *error)
{
    pthread_mutex_lock(&h->agent->mutex);
    h->state = state;
    h->port = port;
    if (state == NK_HOLDING_FAILED)
        h->failures++;
    snprintf(h->error, sizeof h->error, "%.255s", error ? error : "");
    pthread_mutex_unlock(&h->agent->mutex);
    nk__attend_changed(h->agent);
}

/* Waits ms, or until it shall end: true. */
static bool stopped(struct nk__hold *h, int ms)
{
    struct pollfd p = { h->stop[0], POLLIN, 0 };

    if (!atomic_load(&h->stopping) && ms)
        (void)poll(&p, 1, ms);
    return atomic_load(&h->stopping);
}

/* ---- the slice ---- */

static void add_sources(struct nk__hold *h, nk_fetch *f)
{
    nk_agent *a = h->agent;
    char sources[NK__SOURCES_MAX + 1][256];
    struct nk_error err;
    int n;

    nk__attend_address(a, sources[0]);
    pthread_mutex_lock(&a->mutex);
    n = a->wanted.n_sources;
    memcpy(sources[1], a->wanted.sources, sizeof a->wanted.sources);
    pthread_mutex_unlock(&a->mutex);
    for (int i = 0; i <= n; i++)
        if (sources[i][0] &&
            nk_fetch_source_add(f, i ? sources[i] : "coordinator", sources[i], &err))
            nk_log(NK_LOG_AGENT, NK_LOG_WARN, "source=%s msg=\"%s\"", sources[i], err.msg);
}

static void report_progress(struct nk__hold *h, nk_fetch *f)
{
    struct nk_fetch_progress p;
    struct nk_agent_progress out;

    nk_fetch_progress(f, &p);
    pthread_mutex_lock(&h->agent->mutex);
    h->progress = p;
    pthread_mutex_unlock(&h->agent->mutex);
    out = (struct nk_agent_progress){ h->assignment.epoch,     h->assignment.layer_begin,
                                      h->assignment.layer_end, p.bytes_done,
                                      p.bytes_total,           p.rate_bps };
    h->agent->o.progress(h->agent->o.user, &out);
}

/* How long it took, to the slice that is whole; what was on this machine already is not counted. */
static void say_fetched(struct nk__hold *h, const struct nk_fetch_progress *p)
{
    uint64_t bytes = p->bytes_done - p->bytes_kept - p->bytes_local,
             ms = p->running_ms ? p->running_ms : 1;
    char size[24], rate[24];

    nk__agent_say(h->agent, "layers %d-%d: %s came in %.1f s, %s/s", h->assignment.layer_begin,
                  h->assignment.layer_end, nk_size_format(size, bytes), (double)ms / 1000,
                  nk_size_format(rate, bytes * 1000 / ms));
}

/* *kept (closed by the caller when the worker has it open; -1: none) keeps the slice from being
 * removed by others. */
static int fetch(struct nk__hold *h, char **path, int *kept, struct nk_error *err)
{
    nk_agent *a = h->agent;
    struct nk_range range = { h->assignment.layer_begin, h->assignment.layer_end };
    struct nk_fetch_opts opts = { .net = a->net,
                                  .clock = a->o.clock,
                                  .credentials = &a->credentials,
                                  .folders = a->o.models,
                                  .n_folders = a->o.n_models };
    struct nk_fetch_progress p;
    nk_fetch *f;
    int rc;

    *kept = nk_shelf_make_room(nk_catalogue_model(h->catalogue), &range, 1);
    rc = nk_fetch_start(&f, h->catalogue, range, &opts, err);

    if (rc)
        return rc;
    if (nk_pieces_service_add_fetch(a->pieces, f, err))
        nk_log(NK_LOG_AGENT, NK_LOG_WARN, "msg=\"others cannot fetch from here: %s\"", err->msg);
    for (int i = 0;; i++) {
        if (i % 10 == 0)
            add_sources(h, f);
        nk_fetch_progress(f, &p);
        if (p.state == NK_FETCH_DONE || p.state == NK_FETCH_FAILED)
            break;
        if (stopped(h, POLL_MS)) {
            nk_fetch_cancel(f);
            break; /* nk_fetch_wait has the rest */
        }
        if (i % 5 == 4)
            report_progress(h, f);
    }
    rc = nk_fetch_wait(f, path, err);
    report_progress(h, f);
    nk_fetch_progress(f, &p);
    if (!rc && p.bytes_done > p.bytes_kept + p.bytes_local)
        say_fetched(h, &p);
    nk_fetch_free(f);
    return rc;
}

/* ---- the worker ---- */

/* "[::]:0" where there is IPv6 (it takes IPv4, too). */
static const char *any_address(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return "0.0.0.0:0";
    close(fd);
    return "[::]:0";
}

static int start_worker(struct nk__hold *h, struct nk_process *p, const char *slice,
                        struct nk_error *err)
{
    nk_agent *a = h->agent;
    char numbers[6][24], name[NK_MEMBER_NAME_SIZE];
    const char *argv[40], *env[2] = { NULL };
    int n = 0;

#define ADD(...)                                                                                   \
    do {                                                                                           \
        const char *const more[] = { __VA_ARGS__ };                                                \
        for (size_t k = 0; k < sizeof more / sizeof more[0]; k++)                                  \
            argv[n++] = more[k];                                                                   \
    } while (0)
#define NUMBER(k, v) (snprintf(numbers[k], sizeof numbers[k], "%lld", (long long)(v)), numbers[k])
    pthread_mutex_lock(&a->mutex);
    strcpy(name, a->joined.name);
    pthread_mutex_unlock(&a->mutex);
    ADD(a->o.program, "worker", "--slice", slice, "--listen", any_address(), "--id", name,
        "--identity", a->identity, "--epoch", NUMBER(0, h->assignment.epoch), "--parent-fd",
        NUMBER(1, a->life[0]), "--drain-ms", NUMBER(5, TAKEN_BACK_MS));
    if (h->how.n_ctx)
        ADD("--ctx", NUMBER(2, h->how.n_ctx));
    if (h->how.n_seq_max)
        ADD("--sequences", NUMBER(3, h->how.n_seq_max));
    if (a->o.n_threads)
        ADD("--threads", NUMBER(4, a->o.n_threads));
    if (a->o.device)
        ADD("--device", a->o.device);
    if (h->how.cache_type_k[0])
        ADD("--cache-type-k", h->how.cache_type_k);
    if (h->how.cache_type_v[0])
        ADD("--cache-type-v", h->how.cache_type_v);
    if (h->how.no_flash_attn)
        ADD("--no-flash-attn");
    if (h->how.deterministic)
        ADD("--deterministic");
    argv[n] = NULL;
#undef ADD
#undef NUMBER
    if (!getenv("NK_LOG"))
        env[0] = "NK_LOG=warn"; /* the worker's own messages are in the way of the agent's */
    return nk_process_start(
        p,
        &(struct nk_process_opts){ .argv = argv,
                                   .keep_fds = &a->life[0],
                                   .n_keep_fds = 1,
                                   .capture_out = true,
                                   .env = env[0] ? (const char *const[]){ env[0], NULL } : NULL },
        err);
}

static int ended(struct nk_process *p, struct nk_error *err)
{
    char how[96] = "closed its output";

    if (nk_process_wait(p, GRACE_MS))
        nk_process_status_format(how, sizeof how, p->status);
    return nk_fail(err, NK_E_UNAVAILABLE, "worker_ended", "its worker %s", how);
}

/* Until the worker says that it is ready: its port. */
static int wait_ready(struct nk__hold *h, struct nk_process *p, int *port, struct nk_error *err)
{
    uint64_t end = nk_clock_now_ns(h->agent->o.clock) + (uint64_t)READY_MS * 1000000;
    char line[512], address[256];
    int begin, last, of, rc;

    do {
        if (stopped(h, 0))
            return nk_fail(err, NK_E_CANCELLED, "cancelled", "cancelled");
        rc = nk_process_read_line(p, line, sizeof line, POLL_MS, err);
        if (!rc &&
            sscanf(line, "ready %255s layers %d-%d of %d", address, &begin, &last, &of) == 4 &&
            strrchr(address, ':')) {
            *port = atoi(strrchr(address, ':') + 1);
            return 0;
        }
        if (rc == NK_E_UNAVAILABLE)
            return ended(p, err);
    } while (nk_clock_now_ns(h->agent->o.clock) < end);
    return nk_fail(err, NK_E_DEADLINE, "worker_silent", "its worker is not ready after %d s",
                   READY_MS / 1000);
}

/* Until it shall end or the worker has: 0, or the latter's error. */
static int wait_end(struct nk__hold *h, struct nk_process *p, struct nk_error *err)
{
    for (;;) {
        struct pollfd fds[2] = { { h->stop[0], POLLIN, 0 }, { p->out_fd, POLLIN, 0 } };
        char rest[256];

        if (atomic_load(&h->stopping))
            return 0;
        if (poll(fds, 2, -1) < 0)
            continue;
        /* A ready worker says no more: its output ends with it. */
        if (fds[1].revents && read(p->out_fd, rest, sizeof rest) <= 0)
            return ended(p, err);
    }
}

static void let_go(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Ends the worker. What it runs ends there: for TAKEN_BACK_MS where only the assignment was taken
 * back, and for the agent's own time where that ends, too, or is in a hurry. */
static void end_worker(struct nk__hold *h, struct nk_process *p, bool good)
{
    nk_agent *a = h->agent;
    uint64_t begun = nk_clock_now_ns(a->o.clock);

    if (!p->pid)
        return;
    nk_process_terminate(p);
    while (!nk_process_wait(p, POLL_MS)) {
        uint32_t ms = !good || atomic_load(&a->hurry) ? GRACE_MS
                      : atomic_load(&a->ending)       ? a->o.drain_ms + GRACE_MS
                                                      : TAKEN_BACK_MS + GRACE_MS;

        if (nk_clock_now_ns(a->o.clock) - begun >= (uint64_t)ms * 1000000)
            break;
    }
    nk_process_stop(p, 0);
}

/* A worker of this machine that is ending has its memory still: this one would not find enough. */
static void wait_for_others(struct nk__hold *h)
{
    bool ending = true;

    while (ending && !stopped(h, 0)) {
        const struct nk__hold *o;

        ending = false;
        pthread_mutex_lock(&h->agent->mutex);
        LIST_FOREACH(o, &h->agent->holds, link)
        ending |= o != h && atomic_load(&o->stopping) && !atomic_load(&o->ended);
        pthread_mutex_unlock(&h->agent->mutex);
        if (ending)
            (void)stopped(h, POLL_MS);
    }
}

static int run_worker(struct nk__hold *h, const char *slice, int *kept, struct nk_error *err)
{
    struct nk_process p = NK_PROCESS_INIT;
    uint64_t since;
    int port = 0, rc;

    set_state(h, NK_HOLDING_LOADING, 0, NULL);
    rc = start_worker(h, &p, slice, err);
    if (!rc)
        rc = wait_ready(h, &p, &port, err);
    let_go(kept);
    if (!rc) {
        since = nk_clock_now_ns(h->agent->o.clock);
        set_state(h, NK_HOLDING_READY, port, NULL);
        nk__agent_say(h->agent, "layers %d-%d are served", h->assignment.layer_begin,
                      h->assignment.layer_end);
        rc = wait_end(h, &p, err);
        if (nk_clock_now_ns(h->agent->o.clock) - since > (uint64_t)GOOD_MS * 1000000) {
            pthread_mutex_lock(&h->agent->mutex);
            h->failures = 0;
            pthread_mutex_unlock(&h->agent->mutex);
        }
    }
    end_worker(h, &p, !rc);
    return rc;
}

/* ---- life ---- */

static void *run(void *arg)
{
    struct nk__hold *h = arg;
    struct nk_error err;
    char *slice = NULL;
    int pause_ms = PAUSE_MS, failures, kept = -1;

    while (!stopped(h, 0)) {
        int rc;

        set_state(h, NK_HOLDING_FETCHING, 0, NULL);
        rc = fetch(h, &slice, &kept, &err); /* at once, where it is there and whole */
        if (!rc)
            wait_for_others(h);
        if (!rc)
            rc = run_worker(h, slice, &kept, &err);
        let_go(&kept);
        free(slice);
        slice = NULL;
        if (stopped(h, 0) || !rc)
            break;
        set_state(h, NK_HOLDING_FAILED, 0, err.msg);
        pthread_mutex_lock(&h->agent->mutex);
        failures = h->failures;
        pthread_mutex_unlock(&h->agent->mutex);
        pause_ms = failures > 6 ? PAUSE_MAX_MS : PAUSE_MS << (failures - 1);
        nk__agent_say(h->agent, "layers %d-%d: %s; again in %d s", h->assignment.layer_begin,
                      h->assignment.layer_end, err.msg, pause_ms / 1000);
        (void)stopped(h, pause_ms);
    }
    atomic_store(&h->ended, true);
    nk__agent_wake(h->agent);
    return NULL;
}

int nk__hold_start(struct nk__hold **out, nk_agent *a, const struct nk__assignment *as,
                   const struct nk__wanted *how, nk_catalogue *catalogue, struct nk_error *err)
{
    struct nk__hold *h = calloc(1, sizeof *h);
    int rc;

    *out = NULL;
    if (!h)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (pipe2(h->stop, O_CLOEXEC) < 0) {
        free(h);
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a pipe could not be made: %s",
                       strerror(errno));
    }
    h->agent = a;
    h->assignment = *as;
    h->how = *how;
    h->catalogue = nk_catalogue_ref(catalogue);
    h->state = NK_HOLDING_FETCHING;
    rc = nk_thread_start(&h->thread, run, h);
    if (rc) {
        nk_catalogue_unref(h->catalogue);
        close(h->stop[0]);
        close(h->stop[1]);
        free(h);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "a thread could not be started: %s",
                       strerror(rc));
    }
    *out = h;
    return 0;
}

void nk__hold_stop(struct nk__hold *h)
{
    if (!atomic_exchange(&h->stopping, true) && write(h->stop[1], "", 1) < 0)
        return; /* the pipe has room for one byte */
}

void nk__hold_free(struct nk__hold *h)
{
    nk__hold_stop(h);
    pthread_join(h->thread, NULL);
    nk_catalogue_unref(h->catalogue);
    close(h->stop[0]);
    close(h->stop[1]);
    free(h);
}
