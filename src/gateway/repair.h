/* Spares: where a worker of the one chain in force is lost, the chain is replaced by one with a
 * spare in its place (chain/repair.h). When the lost one comes back it is a spare: nothing is
 * switched back while it runs. */
#ifndef NK_GATEWAY_REPAIR_H
#define NK_GATEWAY_REPAIR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "chain/repair.h"
#include "gateway/monitor.h"
#include "gateway/readiness.h"

struct nk_gateway;

struct nk_repairer {
    struct nk_gateway *g;
    atomic_int n_in_vain;  /* repairs since the last token of a generation that went on */
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t idle;
    struct nk_replicas *set; /* whose chain is repaired now, a reference; NULL: none */
    nk_repair *repair;       /* once it is known */
    uint64_t begun_ns;
    bool stop;
};

void nk__repairer_init(struct nk_repairer *r, struct nk_gateway *g);
/* Waits for a repair that is under way; no other begins. May be called twice. */
void nk__repairer_stop(struct nk_repairer *r);
void nk__repairer_release(struct nk_repairer *r);

/* [any thread, as all below] A generation was lost with a worker (its index in the chain's cluster)
 * at this place. again: while it went on after a loss already. */
void nk__repairer_lost(struct nk_repairer *r, const struct nk_place *p, int worker, bool again);
/* The monitor has looked. */
void nk__repairer_seen(struct nk_repairer *r, const struct nk_snapshot *s);
/* A generation that was lost has a token. */
void nk__repairer_succeeded(struct nk_repairer *r);

#endif
