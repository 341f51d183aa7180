/* The worker's inside: sessions (net thread), the engine (compute thread), and the jobs that cross
 * between them.
 *
 * A job has one owner at a time. The net thread fills it and gives it up with nk__engine_submit.
 * The compute thread runs it, and frees a step whose result went straight to a call. Else it gives
 * it back: then its `done` is called with it on the net thread.
 *
 * A session's fields belong to the net thread, but for `compute`, which is the compute thread's,
 * and `shared`. What is set before the first job and stays as it is may be read by both. Both hold
 * references; the last one frees. */
#ifndef NK_WORKER_WORKER_INT_H
#define NK_WORKER_WORKER_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "nakshatra.pb-c.h"
#include "rpc/arena.h"
#include "rpc/computed.h"
#include "text/detok.h"
#include "text/sampler.h"
#include "worker/checkpoint.h"
#include "worker/journal.h"
#include "worker/schedule.h"
#include "worker/trace.h"
#include "worker/worker.h"

typedef struct nk_engine nk_engine;

enum {
    NK_SESSION_ID_BYTES = 16,
    NK_REUSE_SALT_MAX = 64,
    NK_ROUTE_MAX = NK_GROUPS_MAX,
    /* Steps of one session that a stage may have received and not answered: two prefill chunks in
     * flight (the credit window), and two of slack for an answer that crosses with a new step. */
    NK_WINDOW = 2,
    NK_STEPS_OUT_MAX = 4,
    NK_OPEN_DEADLINE_MS = 10000, /* a call that has not said Open by then is ended */
    NK_HOLD_MS_MAX = 600000,
    /* A held session has its room for so long whoever needs it; after that it yields. */
    NK_HOLD_FIRM_MS = 10000,
    /* Tokens that the last stage can say again to a session that is resumed: those that were on
     * their way. A chain whose client is cut off goes on until the silence is noticed; what is
     * then not among these is computed again. */
    NK_TOKENS_SAVED = 64,
    NK_POOL_ROWS_MAX = 512, /* a job of more rows (a pooled text) is not used again */
};

/* ---- sessions ---- */

/* Every state has a list; nk__session_set_state moves between them. */
enum nk_session_state {
    NK_SESSION_NEW,     /* the call is there, Open is not */
    NK_SESSION_WAITING, /* no room yet */
    NK_SESSION_OPENING, /* Open went to the next stage */
    NK_SESSION_RUNNING,
    NK_SESSION_FINISHING, /* Finish went to the next stage */
    NK_SESSION_KEPT,      /* over; its KV waits for a continuation */
    NK_SESSION_HELD,      /* a neighbour was lost; all that it has waits to be resumed */
    NK_SESSION_STATES
};

/* A step that was received (or, on the first stage, made) and is not answered yet. */
struct nk_step_out {
    uint64_t step, received_ns;
    int end; /* first stage: positions up to and with its own */
};

/* The compute thread's part of a session, of use on the last stage. The net thread makes it before
 * the first job, and reads `stop` when the last is answered. */
struct nk_session_compute {
    nk_sampler *sampler;
    nk_detok *detok;
    struct nk_buf text; /* of one token */
    int n_prompt_seen;  /* ids that the sampler has been told of */
    int n_sampled;
    int32_t last_id; /* of the last of them */
    /* With hold_ms: the last tokens as they were sent (packed InferenceReply), by index modulo the
     * window; to be said again where they were lost on their way. */
    struct nk_saved_token {
        int index; /* -1: none */
        struct nk_buf message;
    } saved[NK_TOKENS_SAVED];
    bool unlike; /* resumed: what was sampled again is not what was said (the log has been told) */
    char stop[NK_STOP_BYTES_MAX + 1]; /* the stop string that ended it */
    size_t stop_size;
};

/* What both threads touch while steps are under way. */
struct nk_session_shared {
    atomic_ullong compute_ns, queue_ns, runs;
    atomic_int n_unanswered; /* last stage of several: steps received and not answered */
    atomic_int n_computed;   /* positions whose rows are in the KV */
    /* When a step's rows went to the next stage, by step modulo the window; 0: they have not. */
    atomic_ullong sent_ns[NK_STEPS_OUT_MAX];
};

struct nk_session {
    atomic_int refs;
    nk_worker *w;

    /* ---- both threads: set before the first job ---- */
    uint8_t id[NK_SESSION_ID_BYTES];
    char name[9]; /* the id's first four bytes as hex, for logs */
    /* References, which the compute thread may send to: valid as long as the session. */
    nk_call *down_ref, *up_ref;
    bool is_first, is_last, f16, special;
    int n_tokens_max; /* KV tokens reserved */
    int n_predict;    /* first and last stage: most tokens to generate */
    int n_logprobs;   /* -1: none */
    uint32_t hold_ms; /* 0: not held when a neighbour is lost */
    int n_prompt;     /* first stage; every stage of a session that is resumed */
    /* Log-probabilities of the prompt's tokens: -1: none; else with so many alternatives. */
    int n_prompt_logprobs;
    bool progress; /* first stage: the client wants to know how far the prompt is */
    /* Resumed: of the ids that are fed, prompt and what was said, so many were said. 0: none. */
    bool resumed;
    int n_said;
    int32_t *feed;        /* n_prompt + n_said ids, where n_prompt is set */
    nk__journal *journal; /* with hold_ms, not on the last stage; written by the compute thread */
    /* Of models that cannot go back, where it may have to; changed by the compute thread while a
     * step is under way. */
    nk__checkpoints *checkpoints;
    /* Tokens whose rows are in the KV (or on their way), n_tokens_max of room. Those of a step's
     * rows and before it do not change while it is under way. */
    int32_t *ids;

    struct nk_session_compute compute; /* its aside thread's, while there is one */
    /* Its steps that are aside, and whether there is a thread for them; under aside.h's mutex. They
     * stay this session's where another one takes up what it holds. */
    struct nk_compute_job *aside_first;
    bool is_aside;
    atomic_bool dropped; /* it has ended: no step of it that is aside is wanted any more */
    struct nk_session_shared shared;
    struct nk_schedule_lane lane; /* under the engine's mutex */

    /* ---- net thread ---- */
    enum nk_session_state state;
    uint64_t state_ns;            /* when it came into its state */
    TAILQ_ENTRY(nk_session) link; /* the state's list's */
    nk_call *up;                  /* from the client or the stage before; NULL once ended */
    nk_call *down;                /* to the next stage; NULL on the last one, or once ended */
    int n_route, stage_idx;
    int n_at_once;      /* first stage: how many stages of the route can compute at once */
    char *next_address; /* owned */
    int seq;            /* -1: none */
    bool closed;        /* ended, or kept: its calls have no more say */
    bool reserved;      /* n_tokens_max counts in the worker's kv_reserved */
    bool decoding;      /* first stage: counts in the worker's n_decoding */
    bool making;        /* its Open waits for a sampler that takes long to make */
    bool deterministic, reuse;
    bool up_takes_aside; /* the stage before it does; set before the first job */
    /* first stage: only what has the same salt is continued */
    uint8_t reuse_salt[NK_REUSE_SALT_MAX];
    size_t n_reuse_salt;
    int keep_tokens; /* later stages: what Finish said */
    int chunk; /* first stage: rows of a prefill chunk; every stage of the route takes so many */
    uint32_t attempt; /* how often it was resumed */
    bool exact;       /* a resumption repeats each run in its shape */
    int n_held;       /* resumed: positions that were here */
    int next_has;     /* positions that the next stage holds: their rows are not sent */
    uint32_t stall_ms;
    uint64_t opened_ns, heard_ns, deadline_ns; /* deadline 0: none */
    int n_ids;                                 /* of ids */
    struct nk_step_out steps_out[NK_STEPS_OUT_MAX];
    int n_steps_out;
    uint64_t last_step;
    uint64_t wire_ns;

    /* held, and resumed */
    struct nk_session *adopts;  /* the held session that it waits for; a reference */
    struct nk_session *adopter; /* of a held one: who waits for it */
    bool settled;               /* held: nothing of it is being computed any more */
    uint64_t held_until_ns;
    bool replaying; /* rows of the journal go to the next stage */
    int replay_at, replay_begin, replay_end;
    uint64_t replay_told_ns;
    uint8_t *theirs; /* what the next stage said in Opened, packed, until then; owned */
    size_t theirs_size;
    int replay_rows; /* the most that the next stage takes in one step */
    char *replay_to; /* whom; owned */

    /* first stage: the driver */
    int n_submitted; /* positions that steps were made of */
    int n_reused, n_generated;
    uint64_t first_token_ns, last_token_ns;
    Nakshatra__V1__FinishReason finish;
    uint8_t *open_bytes; /* the Open message as it came, until it has gone to the next stage */
    size_t open_size;
    uint8_t resume_id[NK_SESSION_ID_BYTES];
    int n_resume;
    uint64_t resume_hash;
};

struct nk_session_list {
    TAILQ_HEAD(, nk_session) head;
    int n;
};

/* ---- jobs ---- */

/* What is to be done. */
enum nk_compute_kind {
    NK_COMPUTE_STEP,
    NK_COMPUTE_CLEAR,   /* forget a sequence */
    NK_COMPUTE_COPY,    /* make seq_to hold what seq holds */
    NK_COMPUTE_FORWARD, /* rpc Forward */
    NK_COMPUTE_SETTLE,  /* nothing: what was being run before is through */
    NK_COMPUTE_SLEEP,   /* close the stage */
    NK_COMPUTE_WAKE,    /* open it again */
};

/* A job for the compute thread. */
struct nk_compute_job {
    struct nk_schedule_job sched; /* first: its rows, and how it may be run */
    enum nk_compute_kind kind;
    struct nk_session *session; /* a reference; STEP */
    int seq, seq_to;            /* seq_to: COPY */
    struct nk_session *settles; /* a reference; SETTLE */
    uint64_t step;
    int pos;
    int send_from; /* the first of its rows that the next stage has not; rows: it has all */
    enum nk_checkpoint_kind checkpoint; /* of the state after its rows */
    bool all_logits;                    /* FORWARD */
    bool pooled;                        /* FORWARD: of an embedding model; seq is nobody's */
    int32_t *ids;                       /* of the rows; owned, capacity below */
    float *rows;                        /* rows x n_embd; owned; unused on the first stage */
    int ids_capacity;
    size_t rows_capacity;
    bool has_rows;
    uint64_t received_ns, begin_ns, end_ns;

    /* Takes the job: a STEP that has failed, or whose result did not go straight to a call; the
     * others when they are through. NULL (CLEAR, COPY): the engine frees it. [net thread] */
    void (*done)(struct nk_compute_job *j);
    nk_worker *worker; /* for done */
    nk_call *call;     /* for done: a reference; FORWARD, SLEEP, WAKE */

    /* the result */
    int rc;
    struct nk_error err;
    struct nk_sampled sampled;
    bool has_token; /* one was sampled */

    /* last stage, aside: a copy of the logits that are wanted, n_vocab each, from the row next_row
     * on, which is the first that was not looked at; owned */
    float *logits;
    size_t logits_bytes;
    int next_row;
    bool unhurried;   /* its tokens may take as long as they do, on the compute thread */
    bool told_prompt; /* the log-probabilities of its prompt's tokens were sent */
    struct nk_compute_job *aside_next;

    int index, finish; /* of the sampled token */
};

/* ---- engine ---- */
struct nk_engine_counters { /* any thread */
    atomic_ullong runs, rows, steps, tokens_prefilled, tokens_decoded, compute_ns, queue_ns;
    atomic_int jobs_queued;
    atomic_uint verified; /* enum nk_slice_verified, of the stage that was opened last */
};

/* Opens the stage (on the thread that will run it) and starts to run jobs. */
int nk__engine_start(nk_engine **out, nk_worker *w, struct nk_error *err);
/* Ends the thread; what it gave back before may still come to the net thread. Then, when the net
 * thread has ended: drops what is queued, closes the stage, frees. */
void nk__engine_stop_thread(nk_engine *e);
void nk__engine_stop(nk_engine *e);
/* Instead of the thread, where the worker was started with by_hand: takes what is to be run next,
 * and runs it. pick returns how many jobs; 0: nothing now, and *wait_until is when to ask again
 * though nothing was submitted, or 0. Between the two the jobs are under way. */
int nk__engine_pick(nk_engine *e, uint64_t *wait_until);
void nk__engine_run(nk_engine *e, int n);
struct nk_engine_counters *nk__engine_counters(nk_engine *e);
/* The loaded slice; also while asleep. */
const struct nk_stage_info *nk__engine_info(const nk_engine *e);
/* nk_stage_file_check; 0 while the worker is asleep. Any thread. */
int nk__engine_check(nk_engine *e, struct nk_error *err);
/* Last stage: the vocabulary, while awake. */
const nk_vocab *nk__engine_vocab(const nk_engine *e);
/* A job from the pool with room for n ids and, if with_rows, their rows. EXHAUSTED `no_memory`.
 * [net thread] */
int nk__engine_job(nk_engine *e, struct nk_compute_job **out, int n, bool with_rows,
                   struct nk_error *err);
/* Back to the pool; drops its references. [any] */
void nk__engine_job_free(nk_engine *e, struct nk_compute_job *j);
/* Takes j. [net thread] */
void nk__engine_submit(nk_engine *e, struct nk_compute_job *j);
/* Runs work(arg) where nobody else waits for it, while the stage stays open (aside.h). [net
 * thread] */
void nk__engine_do_aside(nk_engine *e, void (*work)(void *arg), void *arg);
/* First stage: the session's row is no longer waited for: its token was handled, or takes long to
 * choose. [any] */
void nk__engine_leave_group(nk_engine *e, struct nk_session *s);
/* The session has ended, or is held: what is queued of it is dropped; with `dropped`, soon also
 * what is aside. [net thread] */
void nk__engine_drop(nk_engine *e, struct nk_session *s);
/* First stage: how many sessions are in the decode phase, and how many stages of their route can
 * compute at once. [net thread] */
void nk__engine_set_decoding(nk_engine *e, int n_sessions, int n_at_once);

/* ---- worker ---- */
enum nk_worker_state { NK_WORKER_SERVING, NK_WORKER_ASLEEP, NK_WORKER_WAKING, NK_WORKER_DRAINING };

struct nk_peer { /* a channel to a worker that a route may name */
    char *address;
    nk_channel *channel; /* opened when first needed */
    bool is_told;        /* stays; others, of routes among members, yield to newer ones */
    uint64_t used_ns;
};

struct nk_worker {
    struct nk_worker_opts opts; /* strings owned below */
    char *slice_path, *listen, *device, *cache_type_k, *cache_type_v, *ca, *certificate, *key,
        *identity, *spill_folder;
    char id[128];
    nk_net *net;
    nk_server *server;
    nk_engine *engine;
    struct nk_trace *trace;
    nk_arena *arena; /* net thread: what is unpacked from one message */
    struct nk_peer peers[NK_WORKER_PEERS_MAX];
    int n_peers;
    enum nk_worker_state state; /* net thread */
    bool unloaded;              /* the stage is closed; likewise */
    struct nk_session_list sessions[NK_SESSION_STATES];
    int n_decoding;    /* first stage: sessions in the decode phase */
    int kv_reserved;   /* tokens, of sessions that are not kept */
    int kv_kept;       /* tokens of kept ones */
    uint8_t *seq_used; /* n_seq_max */
    int n_seq_free;
    nk_timer *tick;       /* while there are active sessions: their deadlines */
    uint64_t tick_due_ns; /* when it should come */
    bool admitting, no_tick;
    nk_timer *sleep_timer; /* Sleep's grace; with the call that asked */
    nk_call *sleep_call;
    uint64_t started_ns;
    uint64_t n_opened, n_failed, n_tokens_reused, n_resumed, n_tokens_replayed;
    struct nk__journals journals;
    struct nk__checkpoints_all checkpoints;
    struct nk_buf replay;           /* net thread: rows of a journal on their way out */
    uint64_t wire_ns, n_wire_steps; /* of all sessions, as session's wire_ns */
    int n_pooled;                   /* pooled Forwards that wait, or are run */
    size_t pooled_bytes;            /* theirs */
    int n_streams; /* calls of rpc Inference that have not ended, of both directions */
    /* for nk_worker_stop, under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool drain_began;
    bool idle; /* no active session */
};

/* The time, by the worker's clock. [any] */
static inline uint64_t nk__worker_now_ns(const nk_worker *w)
{
    return nk_clock_now_ns(w->opts.clock);
}

/* session.c: the calls of rpc Inference. What its files (open.c, step.c, room.c) tell each other is
 * session_int.h. */
void nk__session_open_call(nk_call *c, void *worker);
void nk__session_unref(struct nk_session *s);
/* Ends every session: those that run with status; kept ones are forgotten. */
void nk__session_end_all(nk_worker *w, const struct nk_error *status, bool kept_only);
/* Ends those that have not begun: no Open yet, or no room yet. For a worker that takes no new
 * ones. */
void nk__session_end_waiting(nk_worker *w, const struct nk_error *status);
int nk__session_n_active(const nk_worker *w); /* all but kept and held ones */
/* room.c: a sequence for a moment (Forward): kept sessions yield to it and to its n_tokens; -1:
 * none. */
int nk__room_borrow_seq(nk_worker *w, int n_tokens);
void nk__room_return_seq(nk_worker *w, int seq);

/* wire.c: between protobuf and ours */
int nk__wire_sampling(struct nk_sampling *out, struct nk_logit_bias *bias,
                      const Nakshatra__V1__Sampling *in, struct nk_error *err);
/* Rows of a message into f32. n_rows and width must be these; sizes are checked against each other
 * first.
 *   INVALID bad_rows; not_finite */
int nk__wire_rows(float *out, const Nakshatra__V1__Rows *in, int n_rows, int width,
                  struct nk_error *err);
/* What this worker computes, from what is loaded. */
void nk__wire_computed(struct nk_computed *out, const nk_worker *w);
/* What a stage says of itself in Opened and in Forward's answer; borrows from the worker and from
 * itself. Any thread, once the worker listens. */
struct nk__wire_stage {
    Nakshatra__V1__StageInfo message;
    struct nk_computed computed;
    Nakshatra__V1__Fact facts[NK_FACTS], *list[NK_FACTS];
};
void nk__wire_stage(struct nk__wire_stage *out, const nk_worker *w);
/* The most rows that one Step can carry as f32: all of a message but the MiB for everything else in
 * it (rpc.h). */
int nk__wire_rows_max(int width);

#endif
