/* Are the workers there? Where they were and are not, admission pauses, they are asked until they
 * are back, and who waits goes on waiting: a worker that is started again is nobody's error. */
#ifndef NK_GATEWAY_READINESS_H
#define NK_GATEWAY_READINESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "gateway/admission.h"
#include "gateway/monitor.h"

struct nk_readiness {
    struct nk_clock *clock;
    nk_admission *admission;
    nk_monitor *monitor;   /* set before the first nk__readiness_lost */
    uint32_t waiting_ms;   /* so long a request may come while they are away */
    int running_max;       /* of all; 0: as many as the workers have sequences */
    pthread_mutex_t mutex; /* what follows */
    bool paused;
    uint64_t paused_ns; /* the last time that it was said */
    uint64_t away_ns;   /* since when they are away; 0: they are there */
    bool unfit;         /* the last look saw one that is there, and cannot serve this chain */
    int n_ctx;          /* of the chain when it was last there; 0: it never was */
    struct nk_error why;
};

/* All but the mutex is the caller's to set. */
void nk__readiness_init(struct nk_readiness *r);
void nk__readiness_release(struct nk_readiness *r);

/* What the monitor saw: sets the capacity, or pauses. [monitor's thread] */
void nk__readiness_seen(struct nk_readiness *r, const struct nk_snapshot *s);
/* A generation failed since a worker is gone: pauses until a look that began after it says that all
 * are there. [any thread, as below] */
void nk__readiness_lost(struct nk_readiness *r, const struct nk_error *why);
/* The context of the chain, tokens; of when it was last there, if that is no longer ago than
 * waiting_ms. Else, and when a worker is there that does not fit or is asleep (which does not mend
 * itself), fails with what is in the way: UNAVAILABLE, or as the monitor's look said. *n_ctx is
 * set in either way. */
int nk__readiness_n_ctx(struct nk_readiness *r, int *n_ctx, struct nk_error *err);
/* True: nothing starts at present, and err says why (UNAVAILABLE, the failure's reason). */
bool nk__readiness_paused(struct nk_readiness *r, struct nk_error *err);

#endif
