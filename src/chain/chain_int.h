/* The chain's inside. The shape, each calling only what stands below it:
 *
 *   chain.c    opening and closing: the net thread, a channel to each worker
 *   report.c   what the workers are; the probe
 *   gen.c      a generation, from Open to its end
 *   open.c     the options of a generation, checked and packed into Open
 *   peer.c     what peers say, for people
 *   cluster.c  cluster.yaml
 *
 * Threads: everything of a generation but its reference count, its `lock` and what the lock guards
 * belongs to the net thread; callers' threads reach it with nk_net_post. The list of generations is
 * guarded by the chain's mutex. */
#ifndef NK_CHAIN_CHAIN_INT_H
#define NK_CHAIN_CHAIN_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

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
    struct nk_clock *clock;
    struct nk_chance *chance;
    nk_net *net;
    nk_channel *channels[NK_CLUSTER_WORKERS_MAX];
    nk_arena *arena; /* net thread: what one message unpacks into */
    pthread_mutex_t mutex;
    pthread_cond_t idle; /* n_gens fell to 0, or a barrier was passed */
    LIST_HEAD(, nk_gen) gens;
    int n_gens;
    bool barrier;
};

/* ---- peer.c ---- */
/* "worker attic (127.0.0.1:5530)" before the message. Returns code. */
int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w);

/* ---- open.c ---- */
/*   INVALID  bad_request, bad_sampling  what is out of range, and the range */
int nk__open_check(const struct nk_cluster *c, const struct nk_gen_opts *o, struct nk_error *err);
/* A copy of all that options say, which is shared: the generation and those that resume it. */
struct nk__asked {
    atomic_int refs;
    struct nk_gen_opts opts;
};
struct nk__asked *nk__asked_new(const struct nk_gen_opts *o); /* NULL: no memory */
struct nk__asked *nk__asked_ref(struct nk__asked *a);
void nk__asked_unref(struct nk__asked *a); /* NULL: does nothing */
/* What Open says of a session that goes on after a loss. */
struct nk__resumption {
    uint32_t attempt;
    const int32_t *ids; /* generated so far */
    size_t n_ids;
    bool forget_held;
};
/* The InferenceRequest that opens a session of this name over the whole cluster, as bytes. r: it is
 * resumed; NULL: it is new. *out is owned by the caller: free(). The options have passed
 * nk__open_check.
 *   INVALID    bad_request  larger than a message may be
 *   EXHAUSTED  no_memory */
int nk__open_pack(uint8_t **out, size_t *size, const struct nk_cluster *c,
                  const uint8_t session[16], const struct nk_gen_opts *o,
                  const struct nk__resumption *r, struct nk_error *err);

/* ---- gen.c ---- */
/* Cancels all that run; their `done` will come. [net thread] */
void nk__gens_cancel(nk_chain *c);

#endif
