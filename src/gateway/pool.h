/* A few threads that run tasks in the order of their coming: parsing, rendering and tokenising
 * requests, so that the HTTP thread never does anything long. The queue is as long as there are
 * connections. */
#ifndef NK_GATEWAY_POOL_H
#define NK_GATEWAY_POOL_H

#include <sys/queue.h>

#include "base/error.h"

typedef struct nk_pool nk_pool;

struct nk_task { /* the caller's memory until run was called */
    void (*run)(struct nk_task *t);
    STAILQ_ENTRY(nk_task) link; /* the pool's */
};

/* EXHAUSTED no_memory, no_thread. */
int nk__pool_start(nk_pool **out, int n_threads, struct nk_error *err);
void nk__pool_stop(nk_pool *p);                    /* runs what is queued first */
void nk__pool_post(nk_pool *p, struct nk_task *t); /* any thread */

#endif
