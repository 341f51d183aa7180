/* What the workers are and how they fare, asked only when somebody wants to know: a thread that has
 * the chains in force checked and probed, and publishes snapshots. How they are asked is handed
 * in. A second thread answers those who do not want to wait until the workers have answered. */
#ifndef NK_GATEWAY_MONITOR_H
#define NK_GATEWAY_MONITOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/clock.h"
#include "chain/chain.h"
#include "gateway/replicas.h"

/* NaN: not known. */
struct nk_stage_rates {
    /* Since the look before. */
    double rows_per_second, prompt_rows_per_second, busy;
    /* Means since the last look in which there was something to measure: of a run, of a step's wait
     * for its run, of a step's way into this stage and back. */
    double compute_ms, queue_ms, wire_ms;
    /* Of a run, where all since the look before were of one decoded row: one stream ran. */
    double one_row_ms;
};

struct nk_replica_view {            /* one chain of a set */
    struct nk_chain_report *report; /* owned */
    struct nk_stage_rates rates[NK_CLUSTER_WORKERS_MAX];
};

struct nk_snapshot { /* counted, constant */
    atomic_int refs;
    struct nk_replicas *set;    /* whose workers were asked, a reference; NULL: there was none */
    uint64_t begun_ns, time_ns; /* when the workers were asked, and when they had answered */
    int n;                      /* views: the set's chains; 0: there was no set */
    struct nk_replica_view *views;
    bool ok;             /* the workers of one of the chains are there and fit */
    struct nk_error err; /* the first thing in the way, when not ok */
    int n_ctx;           /* the least of those chains'; 0: there is none */
    bool ready;          /* a request would run */
    struct nk_error not_ready;
};
void nk__snapshot_unref(struct nk_snapshot *s); /* NULL is fine */

typedef struct nk_monitor nk_monitor;

struct nk_waiter {                      /* the caller's memory until ready was called */
    void (*ready)(struct nk_waiter *w); /* on a thread of the monitor's */
    /* the monitor's own */
    LIST_ENTRY(nk_waiter) link;
    uint64_t end_ns; /* it waits no longer; UINT64_MAX: as long as it takes */
};

struct nk_monitor_handlers { /* without the monitor's lock, and on its thread but for `check` */
    /* The set to look at, a reference; NULL: there is none. */
    struct nk_replicas *(*current)(void *user);
    /* Asks the workers of one of its chains; for several chains at one time, on threads of their
     * own. Not 0: no memory. */
    int (*check)(void *user, struct nk_replicas *set, int idx, struct nk_chain_report **out);
    /* Sends a token through a chain: 0, or err says what is in the way. */
    int (*probe)(void *user, struct nk_replicas *set, int idx, struct nk_error *err);
    /* Generations run, so there is no need (and perhaps no room) for a probe. */
    bool (*busy)(void *user);
    /* A new snapshot is there. */
    void (*published)(void *user, const struct nk_snapshot *s);
    void *user;
};

/* clock: borrowed until nk__monitor_stop. The workers are asked once at once.
 *   EXHAUSTED no_memory, no_thread */
int nk__monitor_start(nk_monitor **out, struct nk_clock *clock,
                      const struct nk_monitor_handlers *handlers, struct nk_error *err);
/* No more looks: who waits for one is called now. */
void nk__monitor_hurry(nk_monitor *m);
/* The same. Waits until the one that is under way has ended, or it is `ns`. False: it has
 * not. */
bool nk__monitor_quit(nk_monitor *m, uint64_t ns);
/* Waiters are called before it returns, when the look that is under way has ended. */
void nk__monitor_stop(nk_monitor *m);

/* [any thread, as all below] The latest snapshot with a reference, or NULL before the first of the
 * set in force. */
struct nk_snapshot *nk__monitor_peek(nk_monitor *m);
/* True: the latest is not older than max_age_ms (and, with probe, a token went through the chain no
 * longer ago). False: w is called when there is one, or after wait_ms (0: no limit) without one:
 * the look goes on, and what it finds is there for who asks later. */
bool nk__monitor_want(nk_monitor *m, struct nk_waiter *w, uint32_t max_age_ms, bool probe,
                      uint32_t wait_ms);
/* For how long a look that was wanted has not come; 0: none is due. */
uint64_t nk__monitor_overdue_ms(nk_monitor *m);
/* Somebody listens (1), or no more (-1): meanwhile a snapshot is made a second after the one
 * before, or a quarter of one after a doubt. */
void nk__monitor_listen(nk_monitor *m, int change);
/* A token went through the chain just now. */
void nk__monitor_progress(nk_monitor *m);
/* There is another set: what is known is of none that matters, and a look is due. A look that is
 * under way is not published. */
void nk__monitor_forget(nk_monitor *m);
/* A generation failed for the workers' sake: what is known is old. */
void nk__monitor_doubt(nk_monitor *m);

#endif
