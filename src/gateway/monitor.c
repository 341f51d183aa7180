#include "gateway/monitor.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/thread.h"

/* After a doubt not at once where they were just asked: who fails again and again must not make the
 * workers busy with questions. */
enum { EVERY_MS = 1000, AGAIN_MS = 250, PROBE_AGE_MS = 2000, ONE_ROW_RUNS_MIN = 2 };

LIST_HEAD(waiters, nk_waiter);

struct nk_monitor {
    struct nk_clock *clock;
    struct nk_monitor_handlers handlers;
    pthread_t thread, impatient; /* the looks; who waits no longer */
    pthread_mutex_t mutex;       /* what follows */
    pthread_cond_t changed, hurry, looked;
    bool stop, stop_impatient, doubted;
    bool probe_wanted; /* with the next look */
    uint64_t n_sets;   /* how often there was another set */
    int n_listeners;
    uint64_t looked_ns;              /* when the last one ended */
    uint64_t next_ns;                /* when the next snapshot is due for those who listen */
    struct waiters waiters, looking; /* for the next look; for the one that is under way */
    uint64_t wanted_ns, looking_ns;  /* since when; 0: not */
    struct nk_snapshot *latest;
    atomic_ullong progress_ns; /* when a token last went through the chain */
};

void nk__snapshot_unref(struct nk_snapshot *s)
{
    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    for (int i = 0; i < s->n; i++)
        free(s->views[i].report);
    free(s->views);
    nk__replicas_unref(s->set);
    free(s);
}

/* ns: 0 is never. */
static bool is_recent(nk_monitor *m, uint64_t ns, uint32_t ms)
{
    return ns && nk_clock_now_ns(m->clock) - ns <= ms * 1000000ull;
}

/* us / n of what was counted since then; what was known before where nothing was. */
static double mean_ms(uint64_t us, uint64_t us_then, uint64_t n, uint64_t n_then, double before)
{
    return n > n_then && us >= us_then ? (double)(us - us_then) / 1000 / (double)(n - n_then)
                                       : before;
}

/* then: what the worker said before; zeros when it was started since, as its counters begin there
 * too. */
static void stage_rates(struct nk_stage_rates *r, const struct nk_worker_report *now,
                        const struct nk_worker_report *then)
{
    double ms = (double)(now->uptime_ms - then->uptime_ms);

    r->compute_ms =
        mean_ms(now->compute_us, then->compute_us, now->runs, then->runs, r->compute_ms);
    r->queue_ms = mean_ms(now->queue_us, then->queue_us, now->steps, then->steps, r->queue_ms);
    if (!then->uptime_ms || ms <= 0)
        return;
    if (now->runs >= then->runs + ONE_ROW_RUNS_MIN &&
        now->tokens_prefilled == then->tokens_prefilled &&
        now->rows_in_runs - then->rows_in_runs == now->runs - then->runs)
        r->one_row_ms = r->compute_ms;
    r->rows_per_second = (double)(now->tokens_decoded - then->tokens_decoded) * 1000 / ms;
    r->prompt_rows_per_second =
        (double)(now->tokens_prefilled - then->tokens_prefilled) * 1000 / ms;
    r->busy = fmin(1, (double)(now->compute_us - then->compute_us) / 1000 / ms);
}

static void rates(struct nk_replica_view *s, const struct nk_replica_view *before)
{
    static const struct nk_worker_report none;

    for (int i = 0; i < s->report->n_workers; i++) {
        struct nk_stage_rates *r = &s->rates[i];

        *r = before ? before->rates[i]
                    : (struct nk_stage_rates){ NAN, NAN, NAN, NAN, NAN, NAN, NAN };
        r->rows_per_second = r->prompt_rows_per_second = r->busy = r->one_row_ms = NAN;
    }
    for (int i = 0; i < s->report->n_workers; i++) {
        const struct nk_worker_report *now = &s->report->workers[i],
                                      *then = before ? &before->report->workers[i] : &none;
        struct nk_stage_rates *r = &s->rates[i];

        if (!now->answered)
            continue;
        if (!then->answered || now->uptime_ms < then->uptime_ms ||
            now->tokens_decoded < then->tokens_decoded ||
            now->tokens_prefilled < then->tokens_prefilled || now->compute_us < then->compute_us)
            then = &none;
        stage_rates(r, now, then);
        /* The way to the next stage is measured here. */
        if (i + 1 < s->report->n_workers)
            r[1].wire_ms = mean_ms(now->wire_us, then->wire_us, now->wire_steps, then->wire_steps,
                                   r[1].wire_ms);
    }
}

/* Nobody wants the look that is under way any more. */
static bool is_stale(nk_monitor *m, uint64_t n_sets)
{
    bool stale;

    pthread_mutex_lock(&m->mutex);
    stale = m->stop || m->n_sets != n_sets;
    pthread_mutex_unlock(&m->mutex);
    return stale;
}

struct asking { /* the workers of one chain */
    nk_monitor *m;
    struct nk_snapshot *s;
    const struct nk_snapshot *before;
    uint64_t n_sets;
    int idx, rc;
    pthread_t thread;
    bool threaded;
};

static void *ask(void *arg)
{
    struct asking *a = arg;
    nk_monitor *m = a->m;
    struct nk_chain_report *report, *again;

    a->rc = m->handlers.check(m->handlers.user, a->s->set, a->idx, &report);
    if (a->rc)
        return NULL;
    /* Late is not gone: where all was well before, an answer that does not come is asked for once
     * more; and only once when that is for nobody. */
    if (a->before && a->before->views[a->idx].report->ok && !report->ok &&
        report->err.code == NK_E_DEADLINE && !is_stale(m, a->n_sets) &&
        !m->handlers.check(m->handlers.user, a->s->set, a->idx, &again)) {
        free(report);
        report = again;
    }
    a->s->views[a->idx].report = report;
    return NULL;
}

/* All chains at one time: one whose machine is gone keeps nobody from knowing of the others. */
static int ask_all(nk_monitor *m, struct nk_snapshot *s, const struct nk_snapshot *before,
                   uint64_t n_sets)
{
    struct asking all[NK_GATEWAY_CHAINS_MAX];
    int rc = 0;

    for (int i = s->n - 1; i >= 0; i--) {
        all[i] = (struct asking){ .m = m, .s = s, .before = before, .n_sets = n_sets, .idx = i };
        all[i].threaded = i && !nk_thread_start(&all[i].thread, ask, &all[i]);
        if (!all[i].threaded)
            ask(&all[i]);
    }
    for (int i = 0; i < s->n; i++) {
        if (all[i].threaded)
            pthread_join(all[i].thread, NULL);
        rc = rc ? rc : all[i].rc;
    }
    return rc;
}

/* Whether a request would run: one chain is enough. */
static void judge(nk_monitor *m, struct nk_snapshot *s, bool probe, uint64_t n_sets)
{
    for (int i = s->n - 1; i >= 0; i--) {
        const struct nk_chain_report *r = s->views[i].report;

        if (!r->ok && !s->ok)
            s->err = r->err;
        else if (r->ok) {
            s->ok = true;
            s->n_ctx = s->n_ctx && s->n_ctx < r->n_ctx ? s->n_ctx : r->n_ctx;
        }
    }
    if (!s->n)
        nk_fail(&s->err, NK_E_UNAVAILABLE, "not_ready", "there is no chain of workers yet");
    s->ready = s->ok;
    s->not_ready = s->err;
    if (!s->ready || !probe || is_recent(m, m->progress_ns, PROBE_AGE_MS) ||
        m->handlers.busy(m->handlers.user))
        return;
    for (int i = 0; i < s->n && !is_stale(m, n_sets); i++) {
        if (!s->views[i].report->ok)
            continue;
        s->ready = !m->handlers.probe(m->handlers.user, s->set, i, &s->not_ready);
        if (!s->ready)
            continue;
        nk__monitor_progress(m);
        return;
    }
}

/* Asks the workers. n_sets: of the set that is asked. NULL: no memory. */
static struct nk_snapshot *look(nk_monitor *m, bool probe, const struct nk_snapshot *before,
                                uint64_t n_sets)
{
    struct nk_snapshot *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    atomic_init(&s->refs, 1);
    s->begun_ns = nk_clock_now_ns(m->clock);
    s->set = m->handlers.current(m->handlers.user);
    s->views = s->set ? calloc((size_t)s->set->n, sizeof *s->views) : NULL;
    s->n = s->views ? s->set->n : 0;
    /* What was known may be of another set, whose end the caller will see. */
    before = before && before->set == s->set ? before : NULL;
    if ((s->set && !s->views) || ask_all(m, s, before, n_sets)) {
        nk__snapshot_unref(s);
        return NULL;
    }
    s->time_ns = nk_clock_now_ns(m->clock);
    for (int i = 0; i < s->n; i++)
        rates(&s->views[i], before ? &before->views[i] : NULL);
    judge(m, s, probe, n_sets);
    return s;
}

static void log_change(const struct nk_snapshot *s)
{
    char quoted[600];
    int n = 0;

    for (int i = 0; i < s->n; i++)
        n += s->views[i].report->n_workers;
    if (s->ready)
        nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "state=ready workers=%d chains=%d epoch=%llu", n, s->n,
               (unsigned long long)s->set->epoch);
    else /* that there is no chain yet is nobody's fault */
        nk_log(NK_LOG_GATEWAY, s->n ? NK_LOG_WARN : NK_LOG_INFO, "state=not_ready reason=%s msg=%s",
               s->not_ready.reason, nk_log_quote(quoted, sizeof quoted, s->not_ready.msg));
}

/* Calls one of the list that waits no longer than until end_ns. False: there is none. Under the
 * mutex, which is let go of meanwhile: what `ready` is called for is its caller's again. */
static bool wake_one(nk_monitor *m, struct waiters *list, uint64_t end_ns)
{
    struct nk_waiter *w;

    LIST_FOREACH(w, list, link)
    {
        if (w->end_ns > end_ns)
            continue;
        LIST_REMOVE(w, link);
        pthread_mutex_unlock(&m->mutex);
        w->ready(w);
        pthread_mutex_lock(&m->mutex);
        return true;
    }
    return false;
}

/* Somebody asks, or listens and the next look is due. Under the mutex. */
static bool is_wanted(nk_monitor *m)
{
    return m->wanted_ns || (m->n_listeners && nk_clock_now_ns(m->clock) >= m->next_ns);
}

/* Those who wait for the look that ended wait for the next one: it was of another set. Under the
 * mutex. */
static void wait_on(nk_monitor *m)
{
    struct nk_waiter *w;

    while ((w = LIST_FIRST(&m->looking))) {
        LIST_REMOVE(w, link);
        LIST_INSERT_HEAD(&m->waiters, w, link);
    }
}

/* A new snapshot, for those who wait for it and those who listen. Under the mutex, which is let go
 * of meanwhile. */
static void renew(nk_monitor *m)
{
    struct nk_snapshot *s, *before = m->latest;
    struct nk_waiter *w;
    bool probe = m->probe_wanted, changed, stale;
    uint64_t n_sets = m->n_sets;

    m->doubted = false;
    m->looking_ns = nk_clock_now_ns(m->clock);
    m->wanted_ns = 0;
    m->probe_wanted = false;
    while ((w = LIST_FIRST(&m->waiters))) {
        LIST_REMOVE(w, link);
        LIST_INSERT_HEAD(&m->looking, w, link);
    }
    if (before)
        atomic_fetch_add(&before->refs, 1);
    pthread_mutex_unlock(&m->mutex);

    s = look(m, probe, before, n_sets);
    changed = s && (!before || before->ready != s->ready);
    nk__snapshot_unref(before);
    pthread_mutex_lock(&m->mutex);
    m->looking_ns = 0;
    pthread_cond_broadcast(&m->looked);
    m->looked_ns = nk_clock_now_ns(m->clock);
    m->next_ns = m->looked_ns + (m->doubted ? AGAIN_MS : EVERY_MS) * 1000000ull;
    stale = m->n_sets != n_sets;
    before = NULL;
    if (stale) {
        m->probe_wanted |= probe;
        wait_on(m);
    } else if (s) {
        before = m->latest;
        m->latest = s;
        atomic_fetch_add(&s->refs, 1);
    }
    pthread_mutex_unlock(&m->mutex);
    nk__snapshot_unref(before);
    if (changed && !stale)
        log_change(s);
    if (s && !stale)
        m->handlers.published(m->handlers.user, s);
    nk__snapshot_unref(s);
    pthread_mutex_lock(&m->mutex);
    while (wake_one(m, &m->looking, UINT64_MAX))
        ;
}

static void *loop(void *arg)
{
    nk_monitor *m = arg;

    pthread_mutex_lock(&m->mutex);
    if (!m->stop)
        renew(m);
    while (!m->stop) {
        if (is_wanted(m))
            renew(m);
        else if (m->n_listeners)
            nk_clock_wait_until(m->clock, &m->changed, &m->mutex, m->next_ns);
        else
            pthread_cond_wait(&m->changed, &m->mutex);
    }
    while (wake_one(m, &m->waiters, UINT64_MAX))
        ;
    pthread_mutex_unlock(&m->mutex);
    return NULL;
}

/* Answers those whose time is over. */
static void *be_impatient(void *arg)
{
    nk_monitor *m = arg;

    pthread_mutex_lock(&m->mutex);
    while (!m->stop_impatient) {
        uint64_t now = m->stop ? UINT64_MAX : nk_clock_now_ns(m->clock), next = UINT64_MAX;
        struct nk_waiter *w;

        if (wake_one(m, &m->looking, now) || wake_one(m, &m->waiters, now))
            continue;
        LIST_FOREACH(w, &m->looking, link)
        {
            next = w->end_ns < next ? w->end_ns : next;
        }
        LIST_FOREACH(w, &m->waiters, link)
        {
            next = w->end_ns < next ? w->end_ns : next;
        }
        if (next == UINT64_MAX)
            pthread_cond_wait(&m->hurry, &m->mutex);
        else
            nk_clock_wait_until(m->clock, &m->hurry, &m->mutex, next);
    }
    pthread_mutex_unlock(&m->mutex);
    return NULL;
}

static void free_monitor(nk_monitor *m)
{
    pthread_cond_destroy(&m->changed);
    pthread_cond_destroy(&m->hurry);
    pthread_cond_destroy(&m->looked);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

static void stop_impatient(nk_monitor *m)
{
    pthread_mutex_lock(&m->mutex);
    m->stop_impatient = true;
    pthread_cond_signal(&m->hurry);
    pthread_mutex_unlock(&m->mutex);
    pthread_join(m->impatient, NULL);
}

int nk__monitor_start(nk_monitor **out, struct nk_clock *clock,
                      const struct nk_monitor_handlers *handlers, struct nk_error *err)
{
    nk_monitor *m = calloc(1, sizeof *m);

    *out = NULL;
    if (!m)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the monitor");
    m->clock = clock;
    m->handlers = *handlers;
    pthread_mutex_init(&m->mutex, NULL);
    nk_cond_init(&m->changed);
    nk_cond_init(&m->hurry);
    nk_cond_init(&m->looked);
    if (nk_thread_start(&m->impatient, be_impatient, m)) {
        free_monitor(m);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread",
                       "the monitor's thread could not be started");
    }
    if (nk_thread_start(&m->thread, loop, m)) {
        stop_impatient(m);
        free_monitor(m);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread",
                       "the monitor's thread could not be started");
    }
    *out = m;
    return 0;
}

void nk__monitor_hurry(nk_monitor *m)
{
    pthread_mutex_lock(&m->mutex);
    m->stop = true;
    pthread_cond_signal(&m->changed);
    pthread_cond_signal(&m->hurry);
    pthread_mutex_unlock(&m->mutex);
}

bool nk__monitor_quit(nk_monitor *m, uint64_t ns)
{
    bool idle;

    pthread_mutex_lock(&m->mutex);
    m->stop = true;
    pthread_cond_signal(&m->changed);
    while (m->looking_ns && (nk_clock_wait_until(m->clock, &m->looked, &m->mutex, ns) ||
                             nk_clock_now_ns(m->clock) < ns))
        ;
    idle = !m->looking_ns;
    pthread_mutex_unlock(&m->mutex);
    return idle;
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
    stop_impatient(m);
    nk__snapshot_unref(m->latest);
    free_monitor(m);
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

bool nk__monitor_want(nk_monitor *m, struct nk_waiter *w, uint32_t max_age_ms, bool probe,
                      uint32_t wait_ms)
{
    bool fresh;

    pthread_mutex_lock(&m->mutex);
    fresh = m->stop || (m->latest && !m->doubted && is_recent(m, m->latest->time_ns, max_age_ms) &&
                        (!probe || !m->latest->ready || is_recent(m, m->progress_ns, max_age_ms)));
    if (!fresh) {
        uint64_t now = nk_clock_now_ns(m->clock);

        w->end_ns = wait_ms ? now + wait_ms * 1000000ull : UINT64_MAX;
        m->wanted_ns = m->wanted_ns ? m->wanted_ns : now;
        m->probe_wanted |= probe;
        LIST_INSERT_HEAD(&m->waiters, w, link);
        pthread_cond_signal(&m->changed);
        pthread_cond_signal(&m->hurry);
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
    atomic_store(&m->progress_ns, nk_clock_now_ns(m->clock));
}

void nk__monitor_forget(nk_monitor *m)
{
    struct nk_snapshot *before;

    pthread_mutex_lock(&m->mutex);
    m->n_sets++;
    before = m->latest;
    m->latest = NULL;
    m->progress_ns = 0;
    if (!m->wanted_ns)
        m->wanted_ns = nk_clock_now_ns(m->clock);
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->mutex);
    nk__snapshot_unref(before);
}

void nk__monitor_doubt(nk_monitor *m)
{
    uint64_t again_ns;

    pthread_mutex_lock(&m->mutex);
    again_ns = m->looked_ns + AGAIN_MS * 1000000ull;
    m->doubted = true;
    if (m->next_ns > again_ns)
        m->next_ns = again_ns;
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->mutex);
}

uint64_t nk__monitor_overdue_ms(nk_monitor *m)
{
    uint64_t now = nk_clock_now_ns(m->clock), since;

    pthread_mutex_lock(&m->mutex);
    since = m->looking_ns ? m->looking_ns : m->wanted_ns;
    pthread_mutex_unlock(&m->mutex);
    return since && now > since ? (now - since) / 1000000 : 0;
}
