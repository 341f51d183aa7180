/* The chains that requests go to: an immutable, counted set with an epoch. Who uses one of its
 * chains holds a reference to the set. When the last is given up the reaper closes the chains, on a
 * thread of its own: closing waits for the chain's net thread, on which the last user often
 * ends. */
#ifndef NK_GATEWAY_REPLICAS_H
#define NK_GATEWAY_REPLICAS_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/error.h"
#include "chain/chain.h"
#include "gateway/gateway.h"

typedef struct nk_reaper nk_reaper;

struct nk_replicas {
    uint64_t epoch;
    int n; /* at least 1 */
    nk_chain *chains[NK_GATEWAY_CHAINS_MAX];
    /* the reaper's own */
    atomic_int refs;
    nk_reaper *reaper;
    STAILQ_ENTRY(nk_replicas) link;
};

/* EXHAUSTED no_memory, no_thread. */
int nk__reaper_start(nk_reaper **out, struct nk_error *err);
/* When no set has a reference any more: waits until the chains of all are closed. */
void nk__reaper_stop(nk_reaper *r);

/* Takes the chains, which are closed with the last reference; the first is the caller's. NULL: no
 * memory, and nothing is taken. */
struct nk_replicas *nk__replicas_new(nk_reaper *r, nk_chain *const *chains, int n, uint64_t epoch);
struct nk_replicas *nk__replicas_ref(struct nk_replicas *s); /* returns s; NULL is fine */
void nk__replicas_unref(struct nk_replicas *s);              /* NULL is fine; never waits */
/* Gives the only reference up, and the chains back to who handed them in. */
void nk__replicas_dissolve(struct nk_replicas *s);

#endif
