/* Generations that go on after the loss of a worker: what one of them keeps while it waits, and
 * what people see of all of them: the log, metrics, and the last events (docs/recovery.md).
 *
 * One that is lost keeps its nk_gen, and its ticket waits again before all others. When a chain is
 * there it is resumed from it. Between the loss and the next token the reader sees a pause.
 *
 *   lost     it waits for a chain
 *   chosen   it has one; stages replay what others lack
 *   opened   all stages are at one position
 *   resumed  the next token has come; or it ended otherwise: given up, cancelled, done
 *
 * An event is of one worker that was lost, and of all generations that were lost with it. */
#ifndef NK_GATEWAY_RECOVER_H
#define NK_GATEWAY_RECOVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/clock.h"
#include "chain/chain.h"
#include "gateway/metrics.h"
#include "gateway/replicas.h"

enum {
    NK_RECOVERY_EVENTS = 16, /* the last ones, which are told */
};

struct nk_recovery_event {
    uint64_t number; /* 0: there is none */
    int64_t time_s;  /* since 1970 */
    uint64_t lost_ns;
    struct nk_cluster_worker lost; /* who it was */
    char cause[16], message[300];
    char chosen[400]; /* what took its place, for people; "": nothing yet */
    int n_lost, n_resumed, n_given_up, n_ended;
    uint64_t chosen_ms, opened_ms; /* from the loss to the last of each; 0: none yet */
    uint64_t pause_ms;             /* the longest */
    /* Positions that stages got again from the ones before them, and how many they lack. */
    int replay_done, replay_total;
    char replay_worker[64]; /* who gets them, at last; "": nobody did */
};

struct nk_recoveries {
    struct nk_clock *clock;
    nk_metrics *metrics;
    uint32_t hold_ms;      /* for so long one waits for a chain; 0: none goes on */
    pthread_mutex_t mutex; /* what follows */
    struct nk_recovery_event events[NK_RECOVERY_EVENTS]; /* by number, in a ring */
    uint64_t n_events;
    char stand_in[256], unlike[200]; /* the last spare that came in */
};

/* Of one generation. Whoever has its ticket has this: one thread at a time. */
struct nk_recovery {
    const char *request; /* the request's id, for the log; borrowed */
    int choice;
    nk_gen *lost;      /* to go on from; owned; NULL: it does not wait */
    uint64_t until_ns; /* and waits no longer than until then */
    /* Whose workers hold what was lost: a reference, and which of its chains; NULL: nobody. They
     * are told when nobody comes for it any more. */
    struct nk_replicas *held_by;
    int held_idx;
    struct nk_gen_name held;
    const struct nk_cluster
        *chosen;  /* of the chain that goes on; borrowed for as long as it does */
    bool pending; /* since a loss no token has come */
    int n_losses, n_resumed;
    uint64_t lost_ns, chosen_ns, opened_ns, pause_us; /* pause_us: all of them */
    uint64_t event;                                   /* its number */
    int replay_done, replay_total;
    char replay_worker[64];
    struct nk_error why;    /* what was lost */
    int n_prompt, n_reused; /* as far as known when it was */
};

enum nk_recovery_end {
    NK_RECOVERY_GIVEN_UP,  /* with an error */
    NK_RECOVERY_CANCELLED, /* nobody wants it any more */
    NK_RECOVERY_DONE,      /* it has come to its end: there was nothing left to say */
};

void nk__recoveries_init(struct nk_recoveries *r, struct nk_clock *clock, nk_metrics *metrics,
                         uint32_t hold_ms);
void nk__recoveries_release(struct nk_recoveries *r);

/* Generations whose readers see a pause. */
int nk__recoveries_pending(struct nk_recoveries *r);
/* A spare has taken a worker's place; unlike: in what it is not as that one was; "": in nothing. */
void nk__recoveries_stands_in(struct nk_recoveries *r, const char *address, const char *unlike);

/* Whether a generation that failed with err may go on: a worker was lost, and not too often. lost:
 * NULL where it never began. */
bool nk__recovery_may(const struct nk_recoveries *r, const struct nk_recovery *g,
                      const nk_gen *lost, const struct nk_error *err);
/* It was lost on this chain, with the worker that is to blame, and waits: takes `lost`. stats: its
 * own. */
void nk__recovery_lost(struct nk_recoveries *r, struct nk_recovery *g, nk_gen *lost,
                       struct nk_replicas *set, int idx, const struct nk_gen_stats *stats,
                       const struct nk_error *err);
/* It goes on with the workers of c. Returns what from, which is its caller's then. */
nk_gen *nk__recovery_chosen(struct nk_recoveries *r, struct nk_recovery *g,
                            const struct nk_cluster *c, uint64_t epoch);
/* It failed on the chain that was chosen, and begins anew: nothing that was held is of use. The
 * pause goes on. */
void nk__recovery_anew(struct nk_recovery *g);
void nk__recovery_replaying(struct nk_recoveries *r, struct nk_recovery *g, const char *worker_id,
                            int done, int total);
void nk__recovery_opened(struct nk_recoveries *r, struct nk_recovery *g);
/* A token has come. True: it was waited for, and the pause is over. */
bool nk__recovery_token(struct nk_recoveries *r, struct nk_recovery *g);
/* It is over, in the pause or not; frees what it kept. why: NULL but for GIVEN_UP. */
void nk__recovery_ended(struct nk_recoveries *r, struct nk_recovery *g, enum nk_recovery_end end,
                        const struct nk_error *why);
/* The error of one that has waited until its end: what was lost, and what was in the way since. */
void nk__recovery_too_late(const struct nk_recoveries *r, const struct nk_recovery *g,
                           const struct nk_error *in_the_way, struct nk_error *err);

/* One JSON object for /cluster: {"hold_ms":...,"pending":...,"events":[...]}, the last event first.
 * EXHAUSTED: it does not fit. */
int nk__recoveries_json(struct nk_recoveries *r, struct nk_buf *out, struct nk_error *err);

#endif
