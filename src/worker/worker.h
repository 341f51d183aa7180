/* A worker: one stage served over gRPC (proto/nakshatra.proto). Sessions, batching, forwarding to
 * the next stage.
 *
 * Threads: the net thread (rpc) owns every call and every session's state; the compute thread owns
 * the stage, and with it the KV and the samplers. They talk through the engine's queues
 * (worker_int.h). */
#ifndef NK_WORKER_WORKER_H
#define NK_WORKER_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"
#include "rpc/rpc.h"
#include "stage/stage.h"

typedef struct nk_worker nk_worker;

enum { NK_WORKER_PEERS_MAX = 256 };

struct nk_worker_opts {
    const char *slice_path;
    const char *id; /* NULL: "HOST:PORT" as it listens */
    const char *listen;
    struct nk_stage_opts stage;
    /* Addresses that a route may name after this worker; borrowed for nk_worker_start. Not needed
     * with an identity. */
    const char *const *peers;
    int n_peers;
    /* Sessions do not touch each other: rows are never merged, each has KV cells of its own (a
     * share of n_ctx), none is continued by another. What one computes is then the same to the bit
     * whatever the load. */
    bool deterministic;
    /* Rows of a prefill chunk; 0: 64 on the CPU, 128 on shared cores, 256 elsewhere; never over
     * n_batch. */
    int chunk;
    /* Workers of the same chain compute on the same cores: chunks are larger, and where
     * stage.n_threads is all of them, decoding stages on this host take turns. */
    bool shared_cores;
    int queue_max;     /* sessions waiting for room; over it: EXHAUSTED queue_full */
    uint32_t queue_ms; /* how long one waits: then EXHAUSTED queue_timeout */
    uint32_t stall_ms; /* a step that the next stage does not answer for so long ends the session */
    uint32_t idle_ms;  /* a session that is sent nothing for so long ends */
    /* A neighbour or client that is not heard of for so long is lost, whatever it computes; 0, or a
     * clock that stands still: only to gRPC's pings (nk_channel_watch). */
    uint32_t silence_ms;
    /* What the rows that were sent to the next stage may take, for sessions that are to outlive the
     * loss of a worker: in memory, and beyond that in files of `spill_folder` (NULL: the program's
     * cache folder; borrowed until nk_worker_stop). */
    uint64_t journal_bytes, spill_bytes;
    const char *spill_folder;
    /* Models that cannot go back: what copies of their sessions' states may take in all (one
     * session half of it), and about how many tokens lie between two (worker/checkpoint.h). */
    uint64_t checkpoint_bytes;
    int checkpoint_every;
    const char *trace_path; /* NULL: none */
    /* With an identity a first stage is opened by a gateway only, the later ones also by members,
     * and a route may name any address, since whoever is there must prove to be a member. */
    struct nk_credentials credentials;
    /* Of the plan that this worker is for; 0: none. A session of another one is refused:
     * PRECONDITION stale_epoch. */
    uint64_t epoch;
    /* There is no compute thread: whoever started the worker runs what its engine has to do, by
     * nk__engine_pick and nk__engine_run (tests/simulation). */
    bool by_hand;
    /* Every time and deadline goes by this clock; random are seeds and what tells groups of several
     * senders apart. Borrowed until nk_worker_stop has returned. */
    struct nk_clock *clock;
    struct nk_chance *chance;
};
/* n_ctx etc. as nk_stage_opts_default; queue 64 for 60 s, stall 30 s, idle 300 s, silence
 * 3 s; journals of 256 MiB and 1 GiB in files; checkpoints of 512 MiB every 256 tokens; the
 * system's clock and chance. */
struct nk_worker_opts nk_worker_opts_default(void);

/* Loads the slice, listens, serves. *out is owned by the caller. Not on a net thread.
 * Errors: nk_stage_open's and nk_server_start's; INVALID bad_option. */
int nk_worker_start(nk_worker **out, const struct nk_worker_opts *opts, struct nk_error *err);
int nk_worker_port(const nk_worker *w);
/* Of the loaded slice; borrowed until stop. */
const struct nk_stage_info *nk_worker_stage(const nk_worker *w);
/* 0, or why the worker must end: nk_stage_file_check's error. Its sessions fail with the same, so
 * nothing wrong is given out until somebody asks. Any thread. */
int nk_worker_check(nk_worker *w, struct nk_error *err);
/* Takes no new sessions, lets running ones finish for at most grace_ms, then cancels them, unloads
 * and frees. */
void nk_worker_stop(nk_worker *w, uint32_t grace_ms);

#endif
