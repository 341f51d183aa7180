/* A chain: the workers of a cluster as one model, and generations over it.
 *
 * The chain talks to the first stage only (and to each worker for Info): the token loop lives in
 * the cluster. All functions may be called on any thread but the chain's own (its net thread),
 * except where said otherwise; handlers run on the net thread, must not block, and may call
 * nk_gen_cancel and nk_gen_free. */
#ifndef NK_CHAIN_CHAIN_H
#define NK_CHAIN_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"
#include "chain/cluster.h"
#include "rpc/computed.h"
#include "text/sampler.h"
#include "text/sampling.h"

typedef struct nk_chain nk_chain;
typedef struct nk_gen nk_gen;

struct nk_chain_opts {
    /* Both borrowed until the chain is closed. NULL: the system's. Stalls, deadlines and everything
     * that is timed here go by the clock; sessions draw their names from chance. */
    struct nk_clock *clock;
    struct nk_chance *chance;
    /* A worker that is not heard of for so long while it has calls is lost, whatever it computes;
     * 0: only to gRPC's pings (nk_channel_watch). */
    uint32_t silence_ms;
};
/* Does not connect yet. The cluster is copied, the files of its tls or identity are read. opts
 * NULL: the system's clock and chance, and NK_RPC_SILENCE_MS. *out owned by the caller.
 *   INVALID    bad_address, bad_credentials, bad_identity
 *   NOT_FOUND  no_file
 *   EXHAUSTED  no_memory, no_thread */
int nk_chain_open(nk_chain **out, const struct nk_cluster *cluster,
                  const struct nk_chain_opts *opts, struct nk_error *err);
/* Cancels what runs (their `done` is called), waits for it, frees. */
void nk_chain_close(nk_chain *c);
const struct nk_cluster *nk_chain_cluster(const nk_chain *c); /* borrowed until close */

/* ---- what the workers are ---- */
struct nk_worker_report {
    char id[64], address[256];  /* a spare has no id */
    int layer_begin, layer_end; /* as the cluster file says; a spare's: those of stands_for */
    int stands_for; /* of a spare: the index of the worker that has the same layers; -1: none */
    int rc;         /* 0, or why there is no report or it does not fit */
    struct nk_error err; /* names the worker and both values */
    /* What the worker says of itself; set whenever it answered, also when it does not fit. */
    bool answered;
    char worker_id[64], model_id[128], model_sha256[65], architecture[64], quantisation[32];
    char version[32], llama_version[64], backend[64], device[64], device_description[128],
        state[16], cache_type_k[16], cache_type_v[16],
        verified[16]; /* InfoReply's word; "unknown" of an older worker */
    int has_begin, has_end, layer_count, n_embd, n_vocab, n_ctx, n_ctx_train, n_seq_max, n_batch;
    int n_ctx_seq; /* the most of n_ctx that one session can have */
    int n_threads, kv_tokens_free, sequences_free;
    uint64_t device_memory_bytes, device_memory_free_bytes, host_memory_bytes;
    uint64_t host_memory_free_bytes, weights_bytes, kv_bytes;
    uint64_t sessions_opened, sessions_open, sessions_kept, sessions_failed, tokens_prefilled;
    uint64_t tokens_decoded, tokens_reused, runs, rows_in_runs, compute_us, queue_us, uptime_ms;
    uint64_t streams_open, jobs_queued, steps, wire_us, wire_steps;
    uint64_t sessions_held, sessions_resumed, tokens_replayed;
    uint64_t journal_bytes, journal_spilled_bytes;
    uint64_t checkpoints, checkpoint_bytes, checkpoints_made, checkpoints_used;
    uint64_t epoch; /* of the plan that it was started for; 0: none */
    bool deterministic, takes_f32, takes_f16;
    uint32_t protocol;
    struct nk_computed computed;
    double rtt_us; /* of a small call, the best of a few */
    /* When certificates end, in seconds since 1970: the worker's, this machine's, the CA's; 0:
     * plain text. near: the worker's is one to warn of (rpc.h, nk_certificate_warning). */
    int64_t certificate_end_s, own_end_s, ca_end_s;
    bool certificate_is_near;
};
struct nk_chain_report {
    int n_workers;
    struct nk_worker_report workers[NK_CLUSTER_WORKERS_MAX];
    int n_spares; /* they stand in the way of no request */
    struct nk_worker_report spares[NK_CLUSTER_SPARES_MAX];
    bool ok;             /* a request would run */
    struct nk_error err; /* the first thing in the way, when not ok */
    int n_ctx;           /* the most tokens a session can have: the least of the workers' */
    int n_ctx_train, n_vocab;
};
/* Asks every worker and spare (in parallel) and compares: model hash, range, width, dtype,
 * protocol, what they compute beside the model (rpc/computed.h), state; waits at most timeout_ms.
 * *out is owned by the caller: free(). Fails only for want of memory; what is wrong is in the
 * report. */
int nk_chain_check(nk_chain *c, uint32_t timeout_ms, struct nk_chain_report **out,
                   struct nk_error *err);
/* Would a deterministic request run, too? Else the report is as if its workers did not fit
 * (PRECONDITION not_deterministic). */
void nk_chain_report_want_deterministic(struct nk_chain_report *r);
/* One token through the whole chain and back, timed (the prefill of one token included); for
 * `check` and readiness. Errors: as a generation's. */
int nk_chain_probe(nk_chain *c, uint32_t timeout_ms, double *us, struct nk_error *err);

/* ---- generations ---- */
struct nk_gen_opts {
    const int32_t *ids; /* the prompt; borrowed for nk_gen_start */
    size_t n_ids;
    int n_predict; /* most tokens to generate; 0: as many as the context holds */
    struct nk_sampling sampling;
    const char *const *stop;
    size_t n_stop;
    int n_logprobs; /* -1: none; 0: the chosen token's; up to NK_LOGPROBS_MAX alternatives */
    /* The same to the bit whatever else the workers do; those that cannot refuse it. Implies
     * no_reuse. */
    bool deterministic;
    bool no_reuse; /* do not begin from a kept session, do not keep this one */
    /* Begin only from kept sessions with the same salt, at most 64 bytes; NULL or "":
     * from those without. Workers before 0.3 reuse nothing when one is given. */
    const char *reuse_salt;
    bool special;         /* control tokens appear in the text */
    uint32_t deadline_ms; /* of the whole generation; 0: none but the workers' own */
    uint32_t stall_ms; /* a worker that does not answer a step for so long is given up; 0: 30,000 */
    /* For how long each worker holds the session when another one is lost, so that nk_gen_resume
     * can go on with it; the default is 60,000. 0: not at all, and the generation is not
     * resumable. */
    uint32_t hold_ms;
    /* A resumption repeats each run in its shape, also where sessions share KV cells (where they do
     * not, and with deterministic, it does so anyhow). */
    bool exact;
    /* Log-probabilities of the prompt's tokens: -1: none; else with so many alternatives, at most
     * NK_LOGPROBS_MAX. The handler `prompted` is called; such a generation begins from no kept
     * session, and is not resumable. A chain with a worker before 0.4 fails it. */
    int n_prompt_logprobs;
    bool progress; /* the handler `prefilled` is called; workers before 0.4 tell less */
};
struct nk_gen_opts nk_gen_opts_default(void);

enum nk_finish { NK_FINISH_NONE, NK_FINISH_EOG, NK_FINISH_STOP, NK_FINISH_LENGTH };
const char *nk_finish_name(enum nk_finish f); /* "none", "eog", "stop", "length" */

struct nk_gen_top {
    int32_t id;
    float logprob;
    const char *text; /* the token's own bytes */
    size_t text_size;
};
/* A generated token; the one that ends a generation (EOG) is none. Borrowed for the handler's
 * call. */
struct nk_gen_token {
    int32_t id;
    int index; /* 0 for the first generated */
    /* What can be shown now: whole UTF-8 characters, never part of a stop string; may be empty. */
    const char *text;
    size_t text_size;
    float logprob;     /* NaN when not asked for */
    const char *piece; /* the token's own bytes, when log-probabilities were asked for */
    size_t piece_size;
    int n_top;
    struct nk_gen_top top[NK_LOGPROBS_MAX];
};
struct nk_stage_timing {
    char worker_id[64];
    uint64_t compute_us, queue_us, wire_us, runs;
};
struct nk_gen_stats {
    enum nk_finish finish;
    int n_prompt, n_reused, n_generated;
    char stop_string[257]; /* "" unless finish is NK_FINISH_STOP */
    const char *tail; /* text that was held back and came free at the end; borrowed for the call */
    size_t tail_size;
    uint64_t prefill_us, decode_us; /* as the first stage saw it */
    uint64_t ttft_us, total_us;     /* as seen here */
    int n_recovered;                /* so often it was resumed after a loss */
    uint64_t recovery_us;           /* the pauses: from a loss to the first token after it */
    uint64_t n_replayed;            /* rows that stages computed again for it, all together */
    uint32_t seed;
    int n_stages;
    struct nk_stage_timing stages[NK_CLUSTER_WORKERS_MAX];
};
struct nk_gen_handlers { /* on the net thread */
    /* Every stage has room for it, and the prompt begins: until then it waits. May be NULL. */
    void (*opened)(void *user);
    void (*token)(void *user, const struct nk_gen_token *t);
    /* With n_prompt_logprobs: a token of the prompt (index: its position, from 1 on; text is
     * empty), given those before it. In their order, all of them before the first token. */
    void (*prompted)(void *user, const struct nk_gen_token *t);
    /* With `progress`: so many of the prompt's tokens are through all stages, n_reused of them
     * were there before. First after `opened`, then for each chunk that the last stage has
     * answered; all of them before the first token. n_done rises from call to call, also over a
     * resumption. May be NULL. */
    void (*prefilled)(void *user, int n_done, int n_reused);
    /* Of a resumed generation, before `opened`: the stage before this worker gives it the rows that
     * it lacks, so many positions of so many by now. May be NULL. */
    void (*replaying)(void *user, const char *worker_id, int done, int total);
    /* Exactly once, the last call. err NULL: stats are whole. Else the generation failed or was
     * cancelled (CANCELLED); stats has what is known (n_generated, times); the message names the
     * worker that is to blame. A generation that has said its last token is done, also when its
     * end was lost on the way: then stats has no stages. */
    void (*done)(void *user, const struct nk_gen_stats *stats, const struct nk_error *err);
};
/* Starts. Two things tell how it went, and never both of them:
 *
 *   an error returned   it did not begin; *out is NULL, and no handler is ever called
 *   0 returned          it has begun, and `done` tells how it ends, be it at once: the net thread
 *                       may call it before this returns. err is untouched.
 *
 * So a caller that keeps the result where `done` writes it stores what this returns only when that
 * is an error: a 0 stored afterwards would wipe out a failure that `done` has told already.
 *
 * The handle is valid until nk_gen_free, which the caller must call after `done` (it may do so
 * inside it, where *out is set already).
 *   INVALID      bad_request   no ids, an option out of range; bad_sampling (see nk_sampling_check)
 *   UNAVAILABLE  no_entropy
 *   EXHAUSTED    no_memory */
int nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                 const struct nk_gen_handlers *handlers, void *user, struct nk_error *err);
/* [any thread] `done` follows with CANCELLED, unless it was ending anyway. */
void nk_gen_cancel(nk_gen *g);
void nk_gen_free(nk_gen *g); /* [any thread] after `done` */

/* ---- going on after a loss ---- */
/* After `done` with an error, or inside it, and before nk_gen_free: whether the generation may go
 * on where it stopped. It may when a worker was lost, be it before the first token; not when it was
 * refused, cancelled or ran into its deadline, and not without hold_ms. */
bool nk_gen_resumable(const nk_gen *g);
/* So many losses of one generation are gone on after: it may be what the workers die of. */
enum { NK_GEN_LOSSES_MAX = 3 };
/* The same time: which worker of the chain's cluster is to blame, as an index. */
int nk_gen_blamed(const nk_gen *g);
/* Goes on with a lost generation on c, which is the chain that it had or another one of the same
 * model, with the same clock (chain/repair.h finds one). What `lost` had (the prompt, the tokens so
 * far, the seed and the limit in use, what is left of its deadline, statistics) is copied: it may
 * be freed right after. Handlers are as nk_gen_start's. Tokens go on with the next index, nothing
 * comes twice; stats are of the whole generation. The new one may be lost and resumed in turn.
 *
 * What the workers still hold of the session is taken up. Where that does not fit together
 * (`no_rollback`, `gap`, `bad_resume`) it is tried once more from the ids alone, by itself.
 *   PRECONDITION not_resumable  see nk_gen_resumable
 *   INVALID      bad_request    c is of another model; or the request is larger than a message
 *   EXHAUSTED    no_memory */
int nk_gen_resume(nk_gen **out, nk_chain *c, const nk_gen *lost,
                  const struct nk_gen_handlers *handlers, void *user, struct nk_error *err);

/* What workers know a generation by. */
struct nk_gen_name {
    uint8_t session[16];
    uint32_t attempt; /* how often it was resumed */
};
struct nk_gen_name nk_gen_name(const nk_gen *g);
/* Nobody comes for a lost generation any more: c's workers free what they hold of it now, and not
 * only when the grace time is over. c is the chain that it had. but: who goes on with it after all,
 * and is left alone: the workers of another cluster; or NULL. Nothing is waited for: a worker that
 * does not hear of it within a second is left to the grace time. [any thread] */
void nk_chain_let_go(nk_chain *c, const struct nk_gen_name *lost, const struct nk_cluster *but);

#endif
