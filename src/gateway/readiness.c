#include "gateway/readiness.h"

#include <stdio.h>
#include <string.h>

static const char nothing_yet[] = "there is no chain of workers yet";

void nk__readiness_init(struct nk_readiness *r)
{
    *r = (struct nk_readiness){ .clock = NULL };
    atomic_init(&r->set, NULL);
    snprintf(r->waiting, sizeof r->waiting, "%s", nothing_yet);
    nk_fail(&r->why, NK_E_UNAVAILABLE, "not_ready", "%s", r->waiting);
    pthread_mutex_init(&r->mutex, NULL);
}

void nk__readiness_release(struct nk_readiness *r)
{
    nk__replicas_unref(r->set);
    pthread_mutex_destroy(&r->mutex);
}

/* ---- all static functions: under the mutex, so that what they say comes to admission and the
 * monitor in its order ---- */

static int n_replicas(const struct nk_readiness *r)
{
    const struct nk_replicas *set = r->set;

    return set ? set->n : 0;
}

static int n_ok(const struct nk_readiness *r)
{
    int n = 0;

    for (int i = 0; i < n_replicas(r); i++)
        n += r->replicas[i].ok;
    return n;
}

/* Who runs on a chain that takes nothing new, of this set or of another, takes nobody's place. */
static void tell_apart(struct nk_readiness *r)
{
    int n = r->n_places;

    for (int i = 0; i < n_replicas(r); i++)
        n -= r->replicas[i].ok ? r->replicas[i].running : 0;
    nk__admission_set_apart(r->admission, n);
}

/* Asks for looks where something is away that may come back. */
static void listen(struct nk_readiness *r)
{
    bool listens = r->paused || n_ok(r) < n_replicas(r);

    if (listens != r->listens && r->monitor) {
        nk__monitor_listen(r->monitor, listens ? 1 : -1);
        r->listens = listens;
    }
}

static void pause_for(struct nk_readiness *r, const struct nk_error *why)
{
    if (!r->away_ns)
        r->away_ns = nk_clock_now_ns(r->clock);
    r->why = *why;
    nk__admission_pause(r->admission, why);
    r->paused = true;
}

/* Some are there: what is new goes to those. */
static void go_on(struct nk_readiness *r)
{
    int n_seq = 0, n_ctx = 0;

    for (int i = 0; i < n_replicas(r); i++) {
        const struct nk_replica_state *s = &r->replicas[i];

        n_seq += s->ok ? s->n_seq : 0;
        if (s->n_ctx && (!n_ctx || s->n_ctx < n_ctx))
            n_ctx = s->n_ctx;
    }
    r->n_ctx = n_ctx;
    r->away_ns = 0;
    r->paused = false;
    nk__admission_set_capacity(r->admission, r->running_max ? r->running_max : n_seq);
}

/* What a first stage counts with where a session says no limit. */
static int share(const struct nk_worker_report *w)
{
    return w->n_seq_max > 0 ? w->n_ctx / w->n_seq_max : 0;
}

static int n_sequences(const struct nk_chain_report *report)
{
    int least = 0;

    for (int i = 0; i < report->n_workers; i++)
        if (!least || report->workers[i].n_seq_max < least)
            least = report->workers[i].n_seq_max;
    return least;
}

/* It may come back by itself. */
static bool is_away(const struct nk_error *e)
{
    return (e->code == NK_E_UNAVAILABLE || e->code == NK_E_DEADLINE) &&
           strcmp(e->reason, "asleep") != 0;
}

static void say_waiting(const struct nk_readiness *r, struct nk_error *err)
{
    nk_fail(err, NK_E_UNAVAILABLE, "not_ready", "%s", r->waiting);
}

/* ---- the set ---- */

void nk__readiness_attach(struct nk_readiness *r, nk_monitor *monitor)
{
    pthread_mutex_lock(&r->mutex);
    r->monitor = monitor;
    listen(r);
    pthread_mutex_unlock(&r->mutex);
}

int nk__readiness_set(struct nk_readiness *r, struct nk_replicas *set, uint64_t epoch,
                      struct nk_error *err)
{
    struct nk_replicas *before;
    struct nk_error why;

    pthread_mutex_lock(&r->mutex);
    if (epoch < r->epoch) {
        nk_fail(err, NK_E_PRECONDITION, "stale_epoch",
                "chains of epoch %llu; those of epoch %llu are in force already",
                (unsigned long long)epoch, (unsigned long long)r->epoch);
        pthread_mutex_unlock(&r->mutex);
        return NK_E_PRECONDITION;
    }
    r->epoch = epoch;
    before = atomic_exchange(&r->set, set);
    memset(r->replicas, 0, sizeof r->replicas);
    nk__affinity_reset(&r->affinity);
    r->unfit = false;
    if (set) {
        nk_fail(&why, NK_E_UNAVAILABLE, "not_ready", "the workers were not asked yet");
        r->away_ns = 0; /* these were not away so far */
    } else
        say_waiting(r, &why);
    if (r->n_ctx)
        pause_for(r, &why);
    else
        r->why = why;
    tell_apart(r);
    listen(r);
    if (r->monitor)
        nk__monitor_forget(r->monitor);
    pthread_mutex_unlock(&r->mutex);
    nk__replicas_unref(before);
    return 0;
}

void nk__readiness_repair(struct nk_readiness *r, const struct nk_replicas *set,
                          struct nk_replicas *repaired, uint64_t begun_ns)
{
    struct nk_replicas *before = repaired;

    pthread_mutex_lock(&r->mutex);
    if (r->set == set) {
        struct nk_replica_state *s = &r->replicas[0];

        before = atomic_exchange(&r->set, repaired);
        if (repaired != set) {
            *s = (struct nk_replica_state){ .n_ctx = s->n_ctx,
                                            .n_share = s->n_share,
                                            .n_seq = s->n_seq };
            nk__affinity_reset(&r->affinity);
            r->unfit = false;
        }
        /* Else the next look tells how many run there, or whether it is there in spite of a loss
         * since. */
        if (s->n_ctx > 0 && begun_ns >= s->lost_ns)
            s->ok = true;
        if (s->ok)
            go_on(r);
        tell_apart(r);
        listen(r);
        if (r->monitor && repaired != set)
            nk__monitor_forget(r->monitor);
    }
    pthread_mutex_unlock(&r->mutex);
    nk__replicas_unref(before);
}

void nk__readiness_set_waiting(struct nk_readiness *r, const char *text)
{
    pthread_mutex_lock(&r->mutex);
    snprintf(r->waiting, sizeof r->waiting, "%s", text && *text ? text : nothing_yet);
    if (!r->set) {
        say_waiting(r, &r->why);
        if (r->paused)
            nk__admission_pause(r->admission, &r->why);
    }
    pthread_mutex_unlock(&r->mutex);
}

struct nk_replicas *nk__readiness_current(struct nk_readiness *r)
{
    struct nk_replicas *set;

    pthread_mutex_lock(&r->mutex);
    set = nk__replicas_ref(r->set);
    pthread_mutex_unlock(&r->mutex);
    return set;
}

bool nk__readiness_none(struct nk_readiness *r, struct nk_error *err)
{
    bool none;

    pthread_mutex_lock(&r->mutex);
    none = !r->set;
    if (none)
        say_waiting(r, err);
    pthread_mutex_unlock(&r->mutex);
    return none;
}

/* ---- what is seen of it ---- */

bool nk__readiness_seen(struct nk_readiness *r, const struct nk_snapshot *s)
{
    bool in_force;

    pthread_mutex_lock(&r->mutex);
    in_force = s->set == r->set;
    if (in_force && s->set) {
        for (int i = 0; i < s->n; i++) {
            const struct nk_chain_report *report = s->views[i].report;
            struct nk_replica_state *state = &r->replicas[i];

            if (!report->ok)
                state->ok = false;
            else if (s->begun_ns > state->lost_ns) {
                state->ok = true;
                state->n_ctx = report->n_ctx;
                state->n_share = share(&report->workers[0]);
                state->n_seq = n_sequences(report);
            }
        }
        r->unfit = !s->ok && !is_away(&s->err);
        if (n_ok(r))
            go_on(r);
        else if (!s->ok && r->n_ctx)
            pause_for(r, &s->err);
        else if (!s->ok)
            r->why = s->err;
        tell_apart(r);
        listen(r);
    }
    pthread_mutex_unlock(&r->mutex);
    return in_force;
}

void nk__readiness_lost(struct nk_readiness *r, const struct nk_place *p,
                        const struct nk_error *why)
{
    bool in_force;

    pthread_mutex_lock(&r->mutex);
    in_force = p->set && p->set == r->set;
    if (in_force) {
        r->replicas[p->idx].ok = false;
        r->replicas[p->idx].lost_ns = nk_clock_now_ns(r->clock);
        if (n_ok(r))
            go_on(r);
        else
            pause_for(r, why);
        tell_apart(r);
        listen(r);
    }
    pthread_mutex_unlock(&r->mutex);
    if (in_force)
        nk__monitor_doubt(r->monitor);
}

/* ---- places ---- */

/* Free places of a replica that takes something new; may be 0 or less. */
static int n_free(const struct nk_replica_state *s)
{
    return s->n_seq - s->running;
}

/* -1: none takes anything. */
static int choose(const struct nk_readiness *r, const struct nk_prefixes *prompt)
{
    int kept = nk__affinity_find(&r->affinity, prompt), best = -1;

    if (kept >= 0 && r->replicas[kept].ok && n_free(&r->replicas[kept]) > 0)
        return kept;
    for (int i = 0; i < n_replicas(r); i++)
        if (r->replicas[i].ok && (best < 0 || n_free(&r->replicas[i]) > n_free(&r->replicas[best])))
            best = i;
    return best;
}

int nk__readiness_take(struct nk_readiness *r, const struct nk_prefixes *prompt, struct nk_place *p,
                       struct nk_error *err)
{
    int idx, rc = 0;

    *p = (struct nk_place){ .set = NULL };
    pthread_mutex_lock(&r->mutex);
    idx = choose(r, prompt);
    if (idx < 0) {
        nk_fail(err, NK_E_UNAVAILABLE, r->why.reason, "%s", r->why.msg);
        rc = NK_E_UNAVAILABLE;
    } else {
        *p = (struct nk_place){ .set = nk__replicas_ref(r->set),
                                .idx = idx,
                                .n_ctx = r->replicas[idx].n_ctx,
                                .n_share = r->replicas[idx].n_share };
        r->replicas[idx].running++;
        r->n_places++;
        nk__affinity_note(&r->affinity, prompt, idx);
    }
    pthread_mutex_unlock(&r->mutex);
    return rc;
}

void nk__readiness_give_back(struct nk_readiness *r, struct nk_place *p)
{
    struct nk_replicas *set = p->set;

    if (!set)
        return;
    p->set = NULL;
    pthread_mutex_lock(&r->mutex);
    if (set == r->set)
        r->replicas[p->idx].running--;
    r->n_places--;
    tell_apart(r);
    pthread_mutex_unlock(&r->mutex);
    nk__replicas_unref(set);
}

bool nk__readiness_in_force(struct nk_readiness *r, const struct nk_place *p)
{
    return p->set && p->set == atomic_load(&r->set);
}

struct nk_admission_counts nk__readiness_counts(struct nk_readiness *r)
{
    struct nk_admission_counts c;
    int here = 0;

    pthread_mutex_lock(&r->mutex);
    c = nk__admission_counts(r->admission);
    for (int i = 0; i < n_replicas(r); i++)
        here += r->replicas[i].running;
    c.ending = r->n_places - here;
    c.running = c.running > c.ending ? c.running - c.ending : 0;
    pthread_mutex_unlock(&r->mutex);
    return c;
}

/* ---- what requests are told ---- */

int nk__readiness_n_ctx(struct nk_readiness *r, int *n_ctx, struct nk_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&r->mutex);
    *n_ctx = r->n_ctx;
    if (!r->n_ctx || r->unfit ||
        (r->away_ns && nk_clock_now_ns(r->clock) - r->away_ns >= r->waiting_ms * 1000000ull))
        rc = nk_fail(err, nk_code_http(r->why.code) >= 500 ? r->why.code : NK_E_UNAVAILABLE,
                     r->why.reason, "%s", r->why.msg);
    pthread_mutex_unlock(&r->mutex);
    return rc;
}

bool nk__readiness_paused(struct nk_readiness *r, struct nk_error *err)
{
    bool paused;

    pthread_mutex_lock(&r->mutex);
    paused = r->paused;
    if (paused)
        nk_fail(err, NK_E_UNAVAILABLE, r->why.reason, "%s", r->why.msg);
    pthread_mutex_unlock(&r->mutex);
    return paused;
}
