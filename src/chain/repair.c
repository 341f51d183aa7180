/* Looks, chooses, and looks again after a pause. Everything but the reference count, the lock and
 * what it guards belongs to the net thread.
 *
 * A look does not wait for a lost worker's silence where a spare has answered: a machine that is
 * gone refuses nothing, so that each question to it would take LOOK_MS. */
#include "chain/repair.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chain/chain_int.h"

enum {
    LOOK_MS = 2000, /* who does not answer Info within this is not there */
    PAUSE_MS = 100, /* between looks, and at most so long: */
    PAUSE_MS_MAX = 1000,
    VAIN_PAUSES_MAX = 6, /* doublings of PAUSE_MS after repairs in vain */
};

/* ---- choosing ---- */

struct choice {                       /* of one stage */
    const struct nk_worker_report *w; /* NULL: nobody */
    bool is_spare;
    char unlike[200];
};
struct attempt { /* with one worker as the one to agree with */
    struct choice choices[NK_CLUSTER_WORKERS_MAX];
    int n_missing, n_replaced, n_unlike;
};

/* The facts in which a stand-in should be like the worker before. Beside them it should have as
 * much room: else sessions that the chain has taken, or would take, do not fit there. */
static const enum nk_fact alike[] = { NK_FACT_BACKEND, NK_FACT_GGML, NK_FACT_LLAMA };

static void note_unlike(const struct nk_known *was, const struct nk_worker_report *is, char *out,
                        size_t size)
{
    const struct {
        const char *title, *unit;
        int was, is;
    } sizes[] = {
        { "a context of", " tokens", was->n_ctx_seq, is->n_ctx_seq },
        { "batches of", " rows", was->n_batch, is->n_batch },
        { "at once", " sessions", was->n_seq_max, is->n_seq_max },
    };
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; i < sizeof alike / sizeof alike[0]; i++) {
        const char *a = was->computed.facts[alike[i]].value,
                   *b = is->computed.facts[alike[i]].value;

        if (!a[0] || !strcmp(a, b) || used >= size)
            continue;
        used += (size_t)snprintf(out + used, size - used, "%s%s %s instead of %s", used ? ", " : "",
                                 nk_fact_row(alike[i])->title, b, a);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].is < sizes[i].was && used < size)
            used += (size_t)snprintf(out + used, size - used, "%s%s %d%s instead of %d",
                                     used ? ", " : "", sizes[i].title, sizes[i].is, sizes[i].unit,
                                     sizes[i].was);
}

static bool fits(const struct nk_cluster *c, int idx, const struct nk_worker_report *w,
                 const struct nk_worker_report *other, bool deterministic, struct nk_error *err)
{
    return w->answered && !nk__report_compare(c, idx, w, other, err) &&
           (!deterministic || !nk__report_want_deterministic(w, err));
}

static void try(struct attempt *a, const struct nk_cluster *c, const struct nk_chain_report *r,
                const struct nk_worker_report *other, const struct nk_known *known,
                const struct nk_repair_wish *wish)
{
    *a = (struct attempt){ 0 };
    for (int i = 0; i < c->n_workers; i++) {
        struct choice *k = &a->choices[i];
        bool avoid = wish->avoid_lost && wish->lost == i;
        bool own = fits(c, i, &r->workers[i], other, wish->deterministic, NULL);

        for (int s = 0; (!own || avoid) && s < r->n_spares; s++) {
            char unlike[sizeof k->unlike] = "";

            if (!fits(c, i, &r->spares[s], other, wish->deterministic, NULL))
                continue;
            if (known)
                note_unlike(&known[i], &r->spares[s], unlike, sizeof unlike);
            if (k->w && (unlike[0] || !k->unlike[0]))
                continue;
            k->w = &r->spares[s];
            k->is_spare = true;
            memcpy(k->unlike, unlike, sizeof unlike);
        }
        if (!k->w && own)
            k->w = &r->workers[i];
        a->n_missing += !k->w;
        a->n_replaced += k->is_spare;
        a->n_unlike += k->unlike[0] != '\0';
    }
}

static bool is_better(const struct attempt *a, const struct attempt *b)
{
    if (a->n_missing != b->n_missing)
        return a->n_missing < b->n_missing;
    if (a->n_replaced != b->n_replaced)
        return a->n_replaced < b->n_replaced;
    return a->n_unlike < b->n_unlike;
}

/* Why nobody has the layers of worker idx, beside the one that the others agree with. */
static int worker_lost(const struct nk_cluster *c, int idx, const struct nk_chain_report *r,
                       const struct nk_worker_report *other, bool deterministic,
                       struct nk_error *err)
{
    const struct nk_cluster_worker *w = &c->workers[idx];
    const struct nk_worker_report *its = &r->workers[idx];
    struct nk_error why = its->err;
    char spares[80] = "the cluster file has no spares";
    const char *text;

    if (its->answered && other)
        fits(c, idx, its, other, deterministic, &why);
    text = strstr(why.msg, w->address); /* without the name, which stands before it already */
    text = text && text[strlen(w->address)] == ')' ? text + strlen(w->address) + 3 : why.msg;
    if (r->n_spares)
        snprintf(spares, sizeof spares, "none of the %d spares stands in", r->n_spares);
    return nk_fail(err, NK_E_UNAVAILABLE, "worker_lost",
                   "worker %s (%s, layers %d-%d) is lost, and %s: %.100s", w->id, w->address,
                   w->layer_begin, w->layer_end, spares, text);
}

/* The id under which a spare takes a worker's place: its own, unless somebody has it, or the
 * cluster file could not have it. */
static void take_id(struct nk_cluster *c, int idx, const struct nk_worker_report *w)
{
    if (!w->worker_id[0] || strpbrk(w->worker_id, " =\"'\\"))
        return;
    for (int i = 0; i < c->n_workers; i++)
        if (i != idx && !strcmp(c->workers[i].id, w->worker_id))
            return;
    memcpy(c->workers[idx].id, w->worker_id, sizeof c->workers[idx].id);
}

static void replace(struct nk_repaired *to, int idx, const struct choice *k)
{
    struct nk_cluster *c = &to->cluster;
    struct nk_cluster_worker *w = &c->workers[idx];
    struct nk_replaced *said = &to->replaced[to->n_replaced++];

    said->idx = idx;
    snprintf(said->was, sizeof said->was, "worker %s (%s)", w->id, w->address);
    snprintf(said->now, sizeof said->now, "spare %s", k->w->address);
    memcpy(said->unlike, k->unlike, sizeof said->unlike);
    for (int i = 0; i < c->n_spares; i++)
        if (!strcmp(c->spares[i], k->w->address))
            memcpy(c->spares[i], w->address, sizeof c->spares[i]);
    memcpy(w->address, k->w->address, sizeof w->address);
    take_id(c, idx, k->w);
}

int nk_repair_choose(struct nk_repaired **out, const struct nk_cluster *c,
                     const struct nk_chain_report *r, const struct nk_known *known,
                     const struct nk_repair_wish *wish, struct nk_error *err)
{
    struct attempt *best = calloc(2, sizeof *best), *now = best ? best + 1 : NULL;
    const struct nk_worker_report *other = NULL;
    struct nk_repaired *to = NULL;
    int rc = 0;

    *out = NULL;
    if (!best || !(to = calloc(1, sizeof *to))) {
        free(best);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    best->n_missing = NK_CLUSTER_WORKERS_MAX + 1;
    /* Who is to agree with whom? Whoever leaves most workers where they are. */
    for (int i = 0; i < r->n_workers + r->n_spares; i++) {
        const struct nk_worker_report *w =
            i < r->n_workers ? &r->workers[i] : &r->spares[i - r->n_workers];

        if (!w->answered)
            continue;
        try(now, c, r, w, known, wish);
        if (is_better(now, best)) {
            *best = *now;
            other = w;
        }
    }
    to->cluster = *c;
    for (int i = 0; !rc && i < c->n_workers; i++) {
        const struct choice *k = &best->choices[i];

        if (!k->w)
            rc = worker_lost(c, i, r, other, wish->deterministic, err);
        else if (k->is_spare)
            replace(to, i, k);
    }
    free(best);
    if (rc)
        free(to);
    else
        *out = to;
    return rc;
}

/* ---- the repair ---- */

struct nk_repair {
    atomic_int refs; /* the caller's, the net thread's until `done`, one per posted cancellation */
    nk_chain *c;
    struct nk_repair_opts opts;
    struct nk_repair_handlers handlers;
    void *user;
    LIST_ENTRY(nk_repair) link; /* the chain's list, under its mutex */

    pthread_mutex_t lock;
    bool ended; /* under lock */

    /* net thread */
    struct nk__look *look;
    nk_timer *timer;
    uint64_t end_ns;
    uint32_t pause_ms; /* before the next look */
    bool cancelled;
};

static void unref(nk_repair *r)
{
    if (atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&r->lock);
    free(r);
}

void nk_repair_free(nk_repair *r)
{
    if (r)
        unref(r);
}

static void finish(nk_repair *r, struct nk_repaired *to, const struct nk_error *err)
{
    nk_chain *c = r->c;

    pthread_mutex_lock(&r->lock);
    r->ended = true;
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; to && !r->opts.quiet && i < to->n_replaced; i++) {
        const struct nk_replaced *k = &to->replaced[i];
        char was[500], now[500], unlike[300];

        nk_log(NK_LOG_CHAIN, NK_LOG_INFO, "event=chosen instead_of=%s chosen=%s layers=%d-%d%s%s",
               nk_log_quote(was, sizeof was, k->was), nk_log_quote(now, sizeof now, k->now),
               c->cluster.workers[k->idx].layer_begin, c->cluster.workers[k->idx].layer_end,
               k->unlike[0] ? " unlike=" : "",
               k->unlike[0] ? nk_log_quote(unlike, sizeof unlike, k->unlike) : "");
    }
    r->handlers.done(r->user, to, err);
    pthread_mutex_lock(&c->mutex);
    LIST_REMOVE(r, link);
    if (--c->n_running == 0)
        pthread_cond_broadcast(&c->idle);
    pthread_mutex_unlock(&c->mutex);
    unref(r);
}

static void finish_cancelled(nk_repair *r)
{
    struct nk_error err = { 0 };

    nk_fail(&err, NK_E_CANCELLED, "cancelled", "the repair was cancelled");
    finish(r, NULL, &err);
}

static void look(void *arg);

static void pause_then_look(nk_repair *r, uint32_t ms)
{
    r->timer = nk_timer_start(r->c->net, ms, look, r);
}

static int choose(nk_repair *r, struct nk_repaired **out, const struct nk_chain_report *report,
                  struct nk_error *err)
{
    return nk_repair_choose(out, &r->c->cluster, report, r->c->known, &r->opts.wish, err);
}

/* All workers but the lost one have answered, or will not, and there is a chain. One that lives and
 * is slow is not replaced before its time is over. */
static bool enough(void *user, const struct nk_chain_report *report)
{
    nk_repair *r = user;
    struct nk_repaired *to;
    bool ok;

    for (int i = 0; i < report->n_workers; i++)
        if (i != r->opts.wish.lost && !report->workers[i].answered && !report->workers[i].rc)
            return false;
    if (choose(r, &to, report, NULL))
        return false;
    ok = true; /* a spare that is more alike may be about to answer */
    for (int i = 0; i < to->n_replaced; i++)
        ok &= !to->replaced[i].unlike[0];
    free(to);
    return ok;
}

static void looked(void *user, struct nk_chain_report *report)
{
    nk_repair *r = user;
    struct nk_repaired *to = NULL;
    struct nk_error err = { 0 };
    uint64_t now = nk_clock_now_ns(r->c->clock);
    int rc = choose(r, &to, report, &err);

    r->look = NULL;
    free(report);
    if (r->cancelled) {
        free(to);
        finish_cancelled(r);
    } else if (!rc || rc != NK_E_UNAVAILABLE || now >= r->end_ns) {
        finish(r, to, rc ? &err : NULL);
    } else {
        uint64_t left_ms = (r->end_ns - now + 999999) / 1000000;

        pause_then_look(r, left_ms < r->pause_ms ? (uint32_t)left_ms : r->pause_ms);
        r->pause_ms = r->pause_ms * 2 < PAUSE_MS_MAX ? r->pause_ms * 2 : PAUSE_MS_MAX;
        if (r->handlers.waiting)
            r->handlers.waiting(r->user, &err);
    }
}

static void look(void *arg)
{
    nk_repair *r = arg;
    struct nk__look_opts o = {
        .timeout_ms = LOOK_MS, .n_rounds = 1, .enough = enough, .done = looked, .user = r
    };
    struct nk_error err;

    r->timer = NULL;
    if (r->cancelled)
        finish_cancelled(r);
    else if (nk__look_start(&r->look, r->c, &o, &err))
        finish(r, NULL, &err);
}

static void begin(void *arg)
{
    nk_repair *r = arg;
    int n = r->opts.n_in_vain < VAIN_PAUSES_MAX ? r->opts.n_in_vain : VAIN_PAUSES_MAX;

    r->end_ns = nk_clock_now_ns(r->c->clock) + r->opts.wait_ms * 1000000ull;
    r->pause_ms = PAUSE_MS;
    if (n > 0 && !r->cancelled)
        pause_then_look(r, (uint32_t)PAUSE_MS << n);
    else
        look(r);
}

int nk_repair_start(nk_repair **out, nk_chain *c, const struct nk_repair_opts *opts,
                    const struct nk_repair_handlers *handlers, void *user, struct nk_error *err)
{
    nk_repair *r = calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    atomic_init(&r->refs, 2);
    pthread_mutex_init(&r->lock, NULL);
    r->c = c;
    r->opts = *opts;
    r->handlers = *handlers;
    r->user = user;
    pthread_mutex_lock(&c->mutex);
    LIST_INSERT_HEAD(&c->repairs, r, link);
    c->n_running++;
    pthread_mutex_unlock(&c->mutex);
    *out = r;
    nk_net_post(c->net, begin, r);
    return 0;
}

/* ---- cancelling ---- */

static void cancel_now(nk_repair *r)
{
    r->cancelled = true;
    if (r->look) {
        nk__look_hurry(r->look);
    } else if (r->timer) {
        nk_timer_cancel(r->timer);
        pause_then_look(r, 0); /* ends there: here the chain's list may be walked */
    }
    /* else it has not begun yet, and `begin` will see it */
}

void nk__repairs_cancel(nk_chain *c)
{
    nk_repair *r;

    pthread_mutex_lock(&c->mutex);
    LIST_FOREACH(r, &c->repairs, link)
    {
        cancel_now(r);
    }
    pthread_mutex_unlock(&c->mutex);
}

static void cancel_posted(void *arg)
{
    nk_repair *r = arg;
    bool ended;

    pthread_mutex_lock(&r->lock);
    ended = r->ended;
    pthread_mutex_unlock(&r->lock);
    if (!ended)
        cancel_now(r);
    unref(r);
}

void nk_repair_cancel(nk_repair *r)
{
    pthread_mutex_lock(&r->lock);
    if (!r->ended) {
        atomic_fetch_add(&r->refs, 1);
        nk_net_post(r->c->net, cancel_posted, r);
    }
    pthread_mutex_unlock(&r->lock);
}
