/* What a stage's result becomes: rows go to the next stage as a Step, logits become a token
 * (sampled, detokenised, looked at for stop strings) that goes to whoever opened the session.
 * Messages are packed straight into the call (sending is thread-safe), so that a decode step
 * allocates nothing. It is the compute thread's, but for what is aside (aside.h):
 * that is a session's own thread's. */
#ifndef NK_WORKER_ANSWER_H
#define NK_WORKER_ANSWER_H

#include "worker/worker_int.h"

/* What answering needs, beside the job. */
struct nk_answering {
    struct nk_clock *clock;           /* borrowed */
    struct nk_trace *trace;           /* borrowed; or NULL */
    const struct nk_stage_info *info; /* borrowed */
    nk_vocab *vocab;                  /* last stage, while the stage is open: set by the engine */
    uint16_t *f16;        /* n_batch x n_embd: rows on their way out; not on the last stage */
    struct nk_buf pieces; /* the bytes of a token and its alternatives */
};

/* a is all 0, but for vocab; info is final and stays where it is. EXHAUSTED `no_memory`: to be
 * released all the same. */
int nk__answer_init(struct nk_answering *a, struct nk_clock *clock, struct nk_trace *trace,
                    const struct nk_stage_info *info, struct nk_error *err);
void nk__answer_release(struct nk_answering *a); /* harmless on one that is all 0 */

/* Whether the log-probability of the token after the k-th row of a step is to be told. */
static inline bool nk__answer_tells(const struct nk_compute_job *j, int k)
{
    return j->session->n_prompt_logprobs >= 0 && j->pos + k + 1 < j->session->n_prompt;
}

/* Whether the logits of the k-th row of a step are wanted, on the last stage: to choose a token,
 * to tell how probable the prompt's next one was, or, where a session is resumed, to let its
 * sampler see what it saw before. */
static inline bool nk__answer_wants(const struct nk_compute_job *j, int k)
{
    return nk__answer_tells(j, k) || (j->sched.sample && k == j->sched.n - 1) ||
           (j->session->resumed && j->pos + k >= j->session->n_prompt - 1);
}

/* A step was run: its rows are row_idx and those behind in the stage's last run. Sends the answer.
 * *back: the job has to go back to the net thread, which queues the next step (the only stage of a
 * route) or answers (a step whose rows the next stage has); else it is through.
 * Errors: nk_sampler_sample's and nk_detok_add's; EXHAUSTED `send_queue_full`. A call that has
 * ended says so to the net thread itself and is no error.
 *   DEADLINE  later  a token takes long to choose: nk__answer_keep, and then nk__answer_aside */
int nk__answer_step(struct nk_answering *a, struct nk_compute_job *j, nk_stage *stage, int row_idx,
                    bool *back, struct nk_error *err);
/* The bytes of what nk__answer_keep would copy: n_vocab floats of each row from the first on that
 * was not looked at yet, up to a chunk's. */
size_t nk__answer_keep_bytes(const struct nk_answering *a, struct nk_compute_job *j);
/* Copies these logits, for nk__answer_aside; what is to be told of the prompt is told before.
 * EXHAUSTED `no_memory`; INTERNAL `decode_failed`. */
int nk__answer_keep(struct nk_answering *a, struct nk_compute_job *j, nk_stage *stage, int row_idx,
                    struct nk_error *err);
/* Tells the stages before that this step's token takes long. */
void nk__answer_tell_aside(const struct nk_compute_job *j);
/* nk__answer_step, or what is left of it, from those. Any thread, one at a time for a session.
 * CANCELLED: the session was dropped meanwhile. */
int nk__answer_aside(const struct nk_answering *a, struct nk_compute_job *j, bool *back,
                     struct nk_error *err);
/* A Forward was run, and took so long: sends its rows or logits to j->call. */
int nk__answer_forward(struct nk_answering *a, struct nk_compute_job *j, nk_stage *stage,
                       uint64_t compute_ns, struct nk_error *err);

#endif
