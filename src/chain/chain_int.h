/* The chain's inside. The shape, each calling only what stands below it:
 *
 *   chain.c    opening and closing: the net thread, a channel to each worker and spare
 *   repair.c   which workers make a chain that works (repair.h)
 *   report.c   what the workers are; the probe
 *   gen.c      a generation, from Open to its end
 *   let_go.c   what workers hold and nobody comes for
 *   embed.c    a text's vector, stage by stage (embed.h)
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
#include "chain/repair.h"
#include "nakshatra.pb-c.h"
#include "rpc/arena.h"
#include "rpc/rpc.h"

#define NK__PATH_INFO      "/nakshatra.v1.Nakshatra/Info"
#define NK__PATH_FORWARD   "/nakshatra.v1.Nakshatra/Forward"
#define NK__PATH_INFERENCE "/nakshatra.v1.Nakshatra/Inference"

enum {
    NK__PROTOCOL = 1,
    /* What a reply to a client unpacks into: a Token with 20 alternatives or an Info is a few KiB;
     * what does not fit comes from a peer that does not keep to the protocol. */
    NK__ARENA_BYTES_MAX = 4 << 20,
    NK__ASKED_MAX = NK_CLUSTER_WORKERS_MAX + NK_CLUSTER_SPARES_MAX,
};

struct nk_repair;
struct nk_embed;
struct nk_chain {
    struct nk_cluster cluster;
    struct nk_clock *clock;
    struct nk_chance *chance;
    nk_net *net;
    nk_channel *channels[NK__ASKED_MAX]; /* the workers', then the spares' */
    nk_arena *arena;                     /* net thread: what one message unpacks into */
    pthread_mutex_t mutex;
    pthread_cond_t idle; /* n_running fell to 0, or a barrier was passed */
    LIST_HEAD(, nk_gen) gens;
    LIST_HEAD(, nk_repair) repairs;
    LIST_HEAD(, nk_embed) embeds;
    int n_running;    /* in all three lists */
    char pooling[64]; /* the workers', as they told it last; "": they generate */
    bool barrier;
    /* net thread: what each worker was when it was heard last and fitted; all empty before */
    struct nk_known known[NK_CLUSTER_WORKERS_MAX];
};

/* ---- peer.c ---- */
/* "worker attic (127.0.0.1:5530)" before the message. Returns code. */
int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w);

/* Is what a stage says of itself worker idx of the cluster, with rows of n_embd floats?
 *   PRECONDITION  model_mismatch, layers_mismatch, width_mismatch  without its name */
int nk__stage_compare(const struct nk_cluster *c, int idx, const Nakshatra__V1__StageInfo *s,
                      uint32_t n_embd, struct nk_error *err);

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
    uint32_t attempt, chunk;
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

/* ---- report.c ---- */
/* One asking of all workers and spares. Belongs to the net thread; it is gone when `done` returns,
 * which comes once. */
struct nk__look;
struct nk__look_opts {
    uint32_t timeout_ms;
    int n_rounds; /* of Info calls per worker */
    /* Somebody has answered for the first time, or will not: whether the rest need not be waited
     * for. May be NULL. In the report those that are still asked have neither `answered` nor rc. */
    bool (*enough)(void *user, const struct nk_chain_report *r);
    /* The report is whole but for who was not waited for (CANCELLED). It is the handler's:
     * free(). */
    void (*done)(void *user, struct nk_chain_report *r);
    void *user;
};
/* [any thread] EXHAUSTED no_memory: `done` is not called. */
int nk__look_start(struct nk__look **out, nk_chain *c, const struct nk__look_opts *opts,
                   struct nk_error *err);
/* [net thread] Waits for nobody any more: `done` follows. */
void nk__look_hurry(struct nk__look *k);
/* Can this worker, or spare, which has answered, be stage idx of the cluster beside `other`, which
 * has answered too? The message begins with its name. */
int nk__report_compare(const struct nk_cluster *c, int idx, const struct nk_worker_report *w,
                       const struct nk_worker_report *other, struct nk_error *err);
int nk__report_want_deterministic(const struct nk_worker_report *w, struct nk_error *err);

/* ---- repair.c ---- */
/* Cancels all that run; their `done` will come. [net thread] */
void nk__repairs_cancel(nk_chain *c);

/* ---- embed.c ---- */
/* As the next one. [net thread] */
void nk__embeds_cancel(nk_chain *c);
/* nk_chain_probe of an embedding model. */
int nk__embed_probe(nk_chain *c, uint32_t timeout_ms, double *us, struct nk_error *err);

/* ---- gen.c ---- */
/* Cancels all that run; their `done` will come. [net thread] */
void nk__gens_cancel(nk_chain *c);

#endif
