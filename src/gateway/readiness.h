/* Which chains are in force, are their workers there, and where does the next generation go?
 *
 * Where workers were and are not, admission pauses, they are asked until they are back, and who
 * waits goes on waiting: a worker that is started again is nobody's error, and neither is a set of
 * chains that takes another's place. Of several chains those that are there go on alone. */
#ifndef NK_GATEWAY_READINESS_H
#define NK_GATEWAY_READINESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "gateway/admission.h"
#include "gateway/affinity.h"
#include "gateway/monitor.h"
#include "gateway/replicas.h"

struct nk_replica_state {
    bool ok;          /* a generation would run */
    uint64_t lost_ns; /* the last time that one was lost with it */
    int n_ctx;        /* when it was last there; 0: it never was */
    int n_share;      /* of its first stage's context, a sequence's; as n_ctx */
    int n_seq;
    int running;
};

/* Where a generation runs. */
struct nk_place {
    struct nk_replicas *set; /* a reference; NULL: it has none */
    int idx;
    int n_ctx, n_share;
};

struct nk_readiness {
    struct nk_clock *clock;
    nk_admission *admission;
    uint32_t waiting_ms; /* so long a request may come while they are away */
    int running_max;     /* of all; 0: as many as the workers have sequences */
    /* Is written under the mutex: pointers may be compared without it. A reference. */
    _Atomic(struct nk_replicas *) set; /* in force; NULL: none */
    pthread_mutex_t mutex;             /* what follows */
    nk_monitor *monitor;               /* NULL until nk__readiness_attach */
    uint64_t epoch;                    /* of the set, also where that is none */
    char waiting[400];                 /* what is waited for while there is no set */
    struct nk_replica_state replicas[NK_GATEWAY_CHAINS_MAX]; /* of the set */
    struct nk_affinity affinity;
    int n_places; /* that were taken and not given back, on any set */
    bool paused, listens;
    uint64_t away_ns; /* since when they are away; 0: they are there */
    bool unfit;       /* the last look saw one that is there, and cannot serve this chain */
    int n_ctx;        /* the least of the chains' when they were last there; 0: they never were */
    struct nk_error why;
};

/* All but the set and what stands behind the mutex is the caller's to set. */
void nk__readiness_init(struct nk_readiness *r);
/* By whom the workers are asked; before the first nk__readiness_lost. */
void nk__readiness_attach(struct nk_readiness *r, nk_monitor *monitor);
/* Gives the set up. */
void nk__readiness_release(struct nk_readiness *r);

/* The set in force from now on; takes the reference. NULL: none any more. PRECONDITION stale_epoch:
 * nothing has changed, and nothing is taken. [any thread, as all below] */
int nk__readiness_set(struct nk_readiness *r, struct nk_replicas *set, uint64_t epoch,
                      struct nk_error *err);
/* The chain of this set (which has one) was repaired: all workers of `repaired`, which may be the
 * same set, are there and fit. It takes the other's place, with its places and its context, until
 * the next look. begun_ns: when the repair was: of a loss since it says nothing. Takes the
 * reference; where the set is in force no more it is given up. */
void nk__readiness_repair(struct nk_readiness *r, const struct nk_replicas *set,
                          struct nk_replicas *repaired, uint64_t begun_ns);
/* What is waited for while there is no set. */
void nk__readiness_set_waiting(struct nk_readiness *r, const char *text);
/* The set in force, a reference; or NULL. */
struct nk_replicas *nk__readiness_current(struct nk_readiness *r);
/* True: there is no set, and err says what is waited for. */
bool nk__readiness_none(struct nk_readiness *r, struct nk_error *err);

/* What the monitor saw: sets the capacity, or pauses. False: it is of another set than the one in
 * force, and means nothing now. */
bool nk__readiness_seen(struct nk_readiness *r, const struct nk_snapshot *s);
/* A generation failed since a worker is gone: nothing starts there until a look that began after it
 * says that all are there. Says nothing where its set is not in force any more. */
void nk__readiness_lost(struct nk_readiness *r, const struct nk_place *p,
                        const struct nk_error *why);
/* A place for a generation that admission has started: on the chain that keeps the beginning of its
 * prompt, where that is known and has room; else on the one with the most free. Fails with what is
 * in the way; then admission is paused. */
int nk__readiness_take(struct nk_readiness *r, const struct nk_prefixes *prompt, struct nk_place *p,
                       struct nk_error *err);
/* It is over; before nk__admission_leave or _return. p has none then. */
void nk__readiness_give_back(struct nk_readiness *r, struct nk_place *p);
/* The place is on the set in force. */
bool nk__readiness_in_force(struct nk_readiness *r, const struct nk_place *p);
/* Admission's counts, but `running` without those that end on a set which is in force no more. */
struct nk_admission_counts nk__readiness_counts(struct nk_readiness *r);

/* The context of the chains, tokens; of when they were last there, if that is no longer ago than
 * waiting_ms. Else, and when a worker is there that does not fit or is asleep (which does not mend
 * itself), fails with what is in the way: UNAVAILABLE, or as the monitor's look said. *n_ctx is
 * set in either way. */
int nk__readiness_n_ctx(struct nk_readiness *r, int *n_ctx, struct nk_error *err);
/* True: nothing starts at present, and err says why (UNAVAILABLE, the failure's reason). */
bool nk__readiness_paused(struct nk_readiness *r, struct nk_error *err);

#endif
