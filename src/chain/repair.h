/* Repairing a chain: which workers make one that works, after some of its workers were lost.
 *
 * A worker that answers and fits stays. In the place of one that does not, a spare of the cluster
 * (`spares` in cluster.yaml) comes that answers, has the same layers of the same model, and agrees
 * in what workers of a chain must agree in (rpc/computed.h). Who was replaced is a spare from then
 * on, so that it may come back. */
#ifndef NK_CHAIN_REPAIR_H
#define NK_CHAIN_REPAIR_H

#include "chain/chain.h"

typedef struct nk_repair nk_repair;

struct nk_repair_wish {
    int lost; /* the worker that was lost last, as an index (nk_gen_blamed); -1: not known */
    /* It was lost before and answered all the same: a spare is better, if there is one. */
    bool avoid_lost;
    bool deterministic; /* only workers whose sessions do not touch each other */
};

struct nk_replaced {
    int idx; /* of the cluster's workers */
    /* Both as "worker attic (127.0.0.1:5530)" or "spare 127.0.0.1:5532". */
    char was[400], now[400];
    /* What is not as before: "backend CUDA instead of CPU", "a context of 512 tokens instead of
     * 4096"; "": nothing known. */
    char unlike[200];
};
struct nk_repaired {
    struct nk_cluster cluster; /* of the workers that are there and fit */
    int n_replaced;            /* 0: of the same ones as before */
    struct nk_replaced replaced[NK_CLUSTER_WORKERS_MAX];
};
/* What a worker was as long as it was there; "" and 0: was never heard. */
struct nk_known {
    struct nk_computed computed;
    int n_ctx_seq, n_batch, n_seq_max;
};
/* The choice, from a report of all that were asked. known: of each worker (n_workers), or NULL.
 * Among the spares that fit one is preferred that computes as the worker before did (same backend,
 * same build) and has as much room: as large a context, as large batches, as many sessions at once.
 * Where there is none, another one is taken, and named (`unlike`): long sessions may not go on with
 * it. *out is owned by the caller: free().
 *   UNAVAILABLE  worker_lost  nobody has some worker's layers; says which, and why
 *   EXHAUSTED    no_memory */
int nk_repair_choose(struct nk_repaired **out, const struct nk_cluster *c,
                     const struct nk_chain_report *r, const struct nk_known *known,
                     const struct nk_repair_wish *wish, struct nk_error *err);

/* ---- asking and choosing, until there is a chain ---- */
struct nk_repair_opts {
    struct nk_repair_wish wish;
    /* How long to wait for one to come: the worker itself, or a spare. 0: all are asked once. */
    uint32_t wait_ms;
    /* So many repairs in a row have led to another loss before a token came: there is a pause
     * before the first look, which grows with them. */
    int n_in_vain;
    bool quiet; /* no line in the log for who was chosen: the user tells it otherwise */
};
struct nk_repair_handlers { /* on the net thread */
    /* Nobody has some worker's layers yet, and it is waited for; after each look. May be NULL. */
    void (*waiting)(void *user, const struct nk_error *why);
    /* Exactly once, the last call. Either r, which is the handler's: free(); or err: choosing's, or
     * CANCELLED. */
    void (*done)(void *user, struct nk_repaired *r, const struct nk_error *err);
};
/* Looks for a chain of c's cluster, asking by c's connections. The handle is valid until
 * nk_repair_free, which the caller must call after `done` or inside it. What nk_gen_start says of 0
 * and errors holds here, too; nk_chain_close cancels and waits. [any thread]
 *   EXHAUSTED  no_memory */
int nk_repair_start(nk_repair **out, nk_chain *c, const struct nk_repair_opts *opts,
                    const struct nk_repair_handlers *handlers, void *user, struct nk_error *err);
/* [any thread] `done` follows with CANCELLED, unless it was ending anyway. */
void nk_repair_cancel(nk_repair *r);
void nk_repair_free(nk_repair *r); /* [any thread] after `done`; NULL: does nothing */

#endif
