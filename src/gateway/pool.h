/* A few threads that run tasks in the order of their coming: parsing, rendering and tokenising
 * requests, so that the HTTP thread never does anything long. The queue is as long as there are
 * connections.
 *
 * A task's work has a ceiling and can be cancelled (base/work.h); what it calls of other libraries
 * may still keep it. So it can be seen how long no thread has been free, and the end need not wait
 * for one that does not come back. */
#ifndef NK_GATEWAY_POOL_H
#define NK_GATEWAY_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/clock.h"
#include "base/error.h"

typedef struct nk_pool nk_pool;

/* No thread was free for so long, and none came back: something is wrong. What they do for one
 * request has a ceiling of a fraction of that. */
enum { NK_POOL_STUCK_MS = 5000 };

struct nk_task { /* the caller's memory until run was called */
    void (*run)(struct nk_task *t);
    STAILQ_ENTRY(nk_task) link; /* the pool's */
};

/* clock: borrowed until nk__pool_stop. EXHAUSTED no_memory, no_thread. */
int nk__pool_start(nk_pool **out, int n_threads, struct nk_clock *clock, struct nk_error *err);
void nk__pool_stop(nk_pool *p);                    /* runs what is queued first */
void nk__pool_post(nk_pool *p, struct nk_task *t); /* any thread, as the next two */
/* Waits until nothing runs and nothing is queued, or it is `ns`. False: something still is. */
bool nk__pool_wait_idle(nk_pool *p, uint64_t ns);
/* For how long no thread has been free, and none has come back from a task; 0: one is free. */
uint64_t nk__pool_stuck_ms(nk_pool *p);

#endif
