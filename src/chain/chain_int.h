/* The chain's inside: what chain.c, report.c and gen.c share.
 *
 * Threads: everything of a generation but its reference count, its `lock` and what the lock guards
 * belongs to the net thread; callers' threads reach it with nk_net_post. The list of generations is
 * guarded by the chain's mutex. */
#ifndef NK_CHAIN_CHAIN_INT_H
#define NK_CHAIN_CHAIN_INT_H

#include <pthread.h>

#include "chain/chain.h"
#include "nakshatra.pb-c.h"
#include "rpc/arena.h"
#include "rpc/rpc.h"

#define NK__PATH_INFO      "/nakshatra.v1.Nakshatra/Info"
#define NK__PATH_INFERENCE "/nakshatra.v1.Nakshatra/Inference"

enum {
    NK__PROTOCOL = 1,
    /* What a reply to a client unpacks into: a Token with 20 alternatives or an Info is a few KiB;
     * what does not fit comes from a peer that does not keep to the protocol. */
    NK__ARENA_BYTES_MAX = 4 << 20,
};

struct nk_chain {
    struct nk_cluster cluster;
    nk_net *net;
    nk_channel *channels[NK_CLUSTER_WORKERS_MAX];
    nk_arena *arena; /* net thread: what one message unpacks into */
    pthread_mutex_t mutex;
    pthread_cond_t idle; /* n_gens fell to 0, or a barrier was passed */
    nk_gen *gens;
    int n_gens;
    bool barrier;
};

/* A peer's text for people: cut at size, control characters and what is not UTF-8 as '?'. */
void nk__text_copy(char *out, size_t size, const char *text);
/* "worker attic (127.0.0.1:5530)" before the message. Returns code. */
int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w);
/* Cancels it; its `done` will come. [net thread] */
void nk__gen_cancel_now(nk_gen *g);
nk_gen *nk__gen_next(const nk_gen *g);

#endif
