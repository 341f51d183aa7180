#include "gateway/repair.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/thread.h"
#include "gateway/gateway_int.h"

void nk__repairer_init(struct nk_repairer *r, struct nk_gateway *g)
{
    r->g = g;
    atomic_init(&r->n_in_vain, 0);
    r->set = NULL;
    r->repair = NULL;
    r->stop = false;
    pthread_mutex_init(&r->mutex, NULL);
    nk_cond_init(&r->idle);
}

void nk__repairer_stop(struct nk_repairer *r)
{
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    if (r->repair)
        nk_repair_cancel(r->repair);
    while (r->set)
        pthread_cond_wait(&r->idle, &r->mutex);
    pthread_mutex_unlock(&r->mutex);
}

void nk__repairer_release(struct nk_repairer *r)
{
    nk__repairer_stop(r);
    pthread_cond_destroy(&r->idle);
    pthread_mutex_destroy(&r->mutex);
}

/* The chain with spares in it takes the place of the one that was repaired. */
static void replace(nk_gateway *g, struct nk_replicas *set, const struct nk_repaired *to,
                    uint64_t begun_ns)
{
    const struct nk_chain_opts opts = { .clock = g->clock, .chance = g->chance };
    struct nk_replicas *repaired = NULL;
    nk_chain *c = NULL;
    struct nk_error err;
    char quoted[600];
    int rc = nk_chain_open(&c, &to->cluster, &opts, &err);

    if (!rc && !(repaired = nk__replicas_new(g->reaper, &c, 1, set->epoch)))
        rc = nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory for the chain");
    if (rc) {
        nk_chain_close(c);
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN, "event=not_repaired reason=%s msg=%s", err.reason,
               nk_log_quote(quoted, sizeof quoted, err.msg));
        return;
    }
    for (int i = 0; i < to->n_replaced; i++)
        nk__recoveries_stands_in(&g->recoveries, to->cluster.workers[to->replaced[i].idx].address,
                                 to->replaced[i].unlike);
    nk__readiness_repair(&g->readiness, set, repaired, begun_ns);
}

/* [the chain's net thread] */
static void on_done(void *user, struct nk_repaired *to, const struct nk_error *err)
{
    struct nk_repairer *r = user;
    struct nk_replicas *set;
    nk_repair *repair;

    if (to && to->n_replaced)
        replace(r->g, r->set, to, r->begun_ns);
    else if (to)
        nk__readiness_repair(&r->g->readiness, r->set, nk__replicas_ref(r->set), r->begun_ns);
    else
        nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "event=not_repaired reason=%s", err->reason);
    free(to);
    pthread_mutex_lock(&r->mutex);
    set = r->set;
    repair = r->repair;
    r->set = NULL;
    r->repair = NULL;
    pthread_cond_broadcast(&r->idle);
    pthread_mutex_unlock(&r->mutex);
    nk_repair_free(repair);
    nk__replicas_unref(set);
}

/* lost: -1: not known. */
static void begin(struct nk_repairer *r, struct nk_replicas *set, int lost, bool again)
{
    static const struct nk_repair_handlers handlers = { .done = on_done };
    struct nk_repair_opts o = {
        .wish = { .lost = lost, .avoid_lost = again, .deterministic = r->g->opts.deterministic },
        .n_in_vain = again ? atomic_load(&r->n_in_vain) : 0,
        .quiet = true /* each generation that goes on tells it */
    };
    nk_repair *repair;

    pthread_mutex_lock(&r->mutex);
    if (!r->stop && !r->set) {
        atomic_fetch_add(&r->n_in_vain, again);
        r->set = nk__replicas_ref(set);
        r->begun_ns = nk_clock_now_ns(r->g->clock);
        /* `done` waits for the mutex, so that it knows the handle. */
        if (nk_repair_start(&repair, set->chains[0], &o, &handlers, r, NULL)) {
            r->set = NULL;
            nk__replicas_unref(set);
        } else
            r->repair = repair;
    }
    pthread_mutex_unlock(&r->mutex);
}

/* Of several chains those that are there go on alone; what a planned cluster lacks it plans. */
static bool has_spares(const struct nk_replicas *set)
{
    return set && set->n == 1 && nk_chain_cluster(set->chains[0])->n_spares;
}

void nk__repairer_lost(struct nk_repairer *r, const struct nk_place *p, int worker, bool again)
{
    if (has_spares(p->set) && nk__readiness_in_force(&r->g->readiness, p))
        begin(r, p->set, worker, again);
}

void nk__repairer_seen(struct nk_repairer *r, const struct nk_snapshot *s)
{
    if (has_spares(s->set) && s->n == 1 && !s->views[0].report->ok)
        begin(r, s->set, -1, false);
}

void nk__repairer_succeeded(struct nk_repairer *r)
{
    atomic_store(&r->n_in_vain, 0);
}
