#include "gateway/monitor.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"

enum { CHECK_MS = 2000, PROBE_MS = 5000, EVERY_MS = 1000, PROBE_AGE_MS = 2000 };

struct nk_monitor {
    nk_chain *chain;
    struct nk_monitor_handlers handlers;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool stop, doubted;
    int n_listeners;
    struct nk_waiter *waiters;
    struct nk_snapshot *latest;
    atomic_ullong progress_ns; /* when a token last went through the chain */
};

void nk__snapshot_unref(struct nk_snapshot *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    free(s->report);
    free(s);
}

static bool is_recent(uint64_t ns, uint32_t ms)
{
    return ns && nk_now_ns() - ns <= ms * 1000000ull;
}

static void rates(struct nk_snapshot *s, const struct nk_snapshot *before)
{
    for (int i = 0; i < s->report->n_workers; i++) {
        const struct nk_worker_report *now = &s->report->workers[i],
                                      *then = before ? &before->report->workers[i] : NULL;
        double ms;

        s->rows_per_second[i] = s->busy[i] = NAN;
        /* A worker that was started anew counts from zero. */
        if (!then || !now->answered || !then->answered || now->uptime_ms <= then->uptime_ms ||
            now->tokens_decoded < then->tokens_decoded || now->compute_us < then->compute_us)
            continue;
        ms = (double)(now->uptime_ms - then->uptime_ms);
        s->rows_per_second[i] = (double)(now->tokens_decoded - then->tokens_decoded) * 1000 / ms;
        s->busy[i] = fmin(1, (double)(now->compute_us - then->compute_us) / 1000 / ms);
    }
}

/* Asks the workers. NULL: no memory. */
static struct nk_snapshot *look(nk_monitor *m, bool probe, const struct nk_snapshot *before)
{
    struct nk_snapshot *s = calloc(1, sizeof *s);

    if (!s || nk_chain_check(m->chain, CHECK_MS, &s->report, NULL)) {
        free(s);
        return NULL;
    }
    atomic_init(&s->refs, 1);
    s->time_ns = nk_now_ns();
    s->ready = s->report->ok;
    s->not_ready = s->report->err;
    rates(s, before);
    if (s->ready && probe && !is_recent(m->progress_ns, PROBE_AGE_MS) &&
        !m->handlers.busy(m->handlers.user)) {
        double us;

        s->ready = !nk_chain_probe(m->chain, PROBE_MS, &us, &s->not_ready);
        if (s->ready)
            nk__monitor_progress(m);
    }
    return s;
}

static void *loop(void *arg)
{
    nk_monitor *m = arg;
    struct timespec until;
    bool first = true;

    pthread_mutex_lock(&m->mutex);
    while (!m->stop) {
        struct nk_waiter *waiters = m->waiters, *next;
        struct nk_snapshot *s, *before = m->latest;
        bool probe = false;
        uint64_t next_ns;

        if (!waiters && !m->n_listeners && !first) {
            pthread_cond_wait(&m->changed, &m->mutex);
            continue;
        }
        first = false;
        m->waiters = NULL;
        m->doubted = false;
        for (struct nk_waiter *w = waiters; w; w = w->next)
            probe = probe || w->probe;
        if (before)
            atomic_fetch_add(&before->refs, 1);
        pthread_mutex_unlock(&m->mutex);

        s = look(m, probe, before);
        if (s && (!before || before->ready != s->ready)) {
            char quoted[600];

            if (s->ready)
                nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "state=ready workers=%d", s->report->n_workers);
            else
                nk_log(NK_LOG_GATEWAY, NK_LOG_WARN, "state=not_ready reason=%s msg=%s",
                       s->not_ready.reason, nk_log_quote(quoted, sizeof quoted, s->not_ready.msg));
        }
        nk__snapshot_unref(before);
        pthread_mutex_lock(&m->mutex);
        if (s) {
            before = m->latest;
            m->latest = s;
            atomic_fetch_add(&s->refs, 1);
        } else
            before = NULL;
        pthread_mutex_unlock(&m->mutex);
        nk__snapshot_unref(before);
        if (s)
            m->handlers.published(m->handlers.user, s);
        nk__snapshot_unref(s);
        for (struct nk_waiter *w = waiters; w; w = next) {
            next = w->next;
            w->ready(w);
        }

        next_ns = nk_now_ns() + EVERY_MS * 1000000ull;
        until = (struct timespec){ .tv_sec = (time_t)(next_ns / 1000000000u),
                                   .tv_nsec = (long)(next_ns % 1000000000u) };
        pthread_mutex_lock(&m->mutex);
        while (!m->stop && !m->waiters && m->n_listeners && nk_now_ns() < next_ns)
            pthread_cond_timedwait(&m->changed, &m->mutex, &until);
    }
    while (m->waiters) {
        struct nk_waiter *w = m->waiters;

        m->waiters = w->next;
        pthread_mutex_unlock(&m->mutex);
        w->ready(w);
        pthread_mutex_lock(&m->mutex);
    }
    pthread_mutex_unlock(&m->mutex);
    return NULL;
}

int nk__monitor_start(nk_monitor **out, nk_chain *chain, const struct nk_monitor_handlers *handlers,
                      struct nk_error *err)
{
    nk_monitor *m = calloc(1, sizeof *m);
    pthread_condattr_t attr;

    *out = NULL;
    if (!m)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the monitor");
    m->chain = chain;
    m->handlers = *handlers;
    pthread_mutex_init(&m->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&m->thread, NULL, loop, m)) {
        pthread_cond_destroy(&m->changed);
        pthread_mutex_destroy(&m->mutex);
        free(m);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread",
                       "the monitor's thread could not be started");
    }
    *out = m;
    return 0;
}

void nk__monitor_stop(nk_monitor *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->mutex);
    m->stop = true;
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->mutex);
    pthread_join(m->thread, NULL);
    nk__snapshot_unref(m->latest);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

struct nk_snapshot *nk__monitor_peek(nk_monitor *m)
{
    struct nk_snapshot *s;

    pthread_mutex_lock(&m->mutex);
    s = m->latest;
    if (s)
        atomic_fetch_add(&s->refs, 1);
    pthread_mutex_unlock(&m->mutex);
    return s;
}

bool nk__monitor_want(nk_monitor *m, struct nk_waiter *w, uint32_t max_age_ms, bool probe)
{
    bool fresh;

    pthread_mutex_lock(&m->mutex);
    fresh = m->latest && !m->doubted && is_recent(m->latest->time_ns, max_age_ms) &&
            (!probe || !m->latest->ready || is_recent(m->progress_ns, max_age_ms));
    if (!fresh) {
        w->probe = probe;
        w->next = m->waiters;
        m->waiters = w;
        pthread_cond_signal(&m->changed);
    }
    pthread_mutex_unlock(&m->mutex);
    return fresh;
}

void nk__monitor_listen(nk_monitor *m, int change)
{
    pthread_mutex_lock(&m->mutex);
    m->n_listeners += change;
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->mutex);
}

void nk__monitor_progress(nk_monitor *m)
{
    atomic_store(&m->progress_ns, nk_now_ns());
}

void nk__monitor_doubt(nk_monitor *m)
{
    pthread_mutex_lock(&m->mutex);
    m->doubted = true;
    pthread_mutex_unlock(&m->mutex);
}
