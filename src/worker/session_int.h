/* What the files of a session tell each other: session.c (life, calls, deadlines), open.c (Open
 * along the route), step.c (steps and the loop), room.c (sequences, KV, kept sessions), resume.c
 * (held sessions, and going on after a loss). All of it is the net thread's. */
#ifndef NK_WORKER_SESSION_INT_H
#define NK_WORKER_SESSION_INT_H

#include "worker/worker_int.h"

static inline const struct nk_stage_info *nk__stage_info(const nk_worker *w)
{
    return nk__engine_info(w->engine);
}

static inline uint64_t nk__us(uint64_t ns)
{
    return ns / 1000;
}

/* How many ids are fed: the prompt's, and of a session that is resumed those that were said. */
static inline int nk__session_n_feed(const struct nk_session *s)
{
    return s->n_prompt + s->n_said;
}

/* ---- session.c ---- */

struct nk_session *nk__session_ref(struct nk_session *s);
/* Out of its state's list, and into none: it is over. */
void nk__session_list_remove(struct nk_session *s);
void nk__session_set_state(struct nk_session *s, enum nk_session_state state);
/* First stage: whether it counts as one that decodes, for the size of groups. */
void nk__session_set_decoding(struct nk_session *s, bool decoding);
/* An error that arose here ends it; the message comes to name this worker. */
void nk__session_fail(struct nk_session *s, struct nk_error *err);
/* After Done was sent up: keeps the KV of so many tokens, or forgets it (0). */
void nk__session_retire(struct nk_session *s, int keep_tokens);
extern const struct nk_call_handlers nk__session_down_handlers;
/* Ends its part here: who calls has ended the up call, or it is gone. */
void nk__session_close(struct nk_session *s);
/* The same, with a status for whoever opened it. */
void nk__session_end(struct nk_session *s, const struct nk_error *status);
/* One session less that is active: tells whoever waits for the last one. */
void nk__session_note_idle(nk_worker *w);

/* ---- resume.c ---- */

/* Whether this is the loss of a worker, and not what one has decided. */
bool nk__resume_is_loss(const struct nk_error *status);
/* A neighbour of s is lost: holds it, and ends its calls in such a way that its other neighbour
 * does the same. status: for whoever opened it. Where it cannot be held it is ended. */
void nk__resume_hold(struct nk_session *s, const struct nk_error *status);
/* A held session is forgotten. */
void nk__resume_forget(struct nk_session *h);
/* The same of the one with this id, if there is one, of that attempt or an earlier one. */
void nk__resume_forget_held(nk_worker *w, const uint8_t *id, uint32_t attempt);
/* Nobody comes any more for the session that m names: what is here of it is freed, if it is of that
 * attempt or an earlier one. */
void nk__resume_let_go(nk_worker *w, const Nakshatra__V1__Cancel *m);
/* Forgets those whose time is over. */
void nk__resume_tick(nk_worker *w, uint64_t now);
/* s, which is to be resumed, was opened: takes up what the session with its id holds (h; NULL:
 * nothing is here). */
void nk__resume_receive(struct nk_session *s, struct nk_session *h, bool forget);
/* s does not wait for a held session any more. */
void nk__resume_leave(struct nk_session *s);
/* A resumed session, whose next stage needs rows from `need` on: replays them, and says Opened when
 * that is through. */
int nk__resume_opened(struct nk_session *s, const Nakshatra__V1__Opened *theirs,
                      struct nk_error *err);
/* A step of a replay was answered. */
int nk__resume_replayed(struct nk_session *s, uint64_t step, struct nk_error *err);
/* Whether [pos, pos + n) with these ids was computed here before, so that the step only has to be
 * passed on. */
bool nk__resume_has(const struct nk_session *s, int pos, const int32_t *ids, int n);
/* Passes such a step on, or answers it. */
int nk__resume_relay(struct nk_session *s, uint64_t step, int pos, int n, bool sample,
                     struct nk_error *err);

/* ---- open.c ---- */

/* Tells the opener that the session is open, and begins. theirs: what the next stage said; NULL:
 * there is none. */
int nk__open_opened(struct nk_session *s, const Nakshatra__V1__Opened *theirs,
                    struct nk_error *err);

/* The session with this id (NK_SESSION_ID_BYTES), or NULL; one that has not said Open has none. */
struct nk_session *nk__session_find(const nk_worker *w, const uint8_t *id);
/* Open came. */
int nk__open_receive(struct nk_session *s, const Nakshatra__V1__Open *m, struct nk_bytes bytes,
                     struct nk_error *err);
/* Whether the one that calls may open a first stage: in a cluster with identities, a gateway.
 *   DENIED  not_allowed */
int nk__open_check_gateway(const struct nk_session *s, struct nk_error *err);
/* The session has its room: goes on to the next stage, or is open when this is the last. */
int nk__open_begin(struct nk_session *s, struct nk_error *err);
/* The next stage said Opened. */
int nk__open_receive_opened(struct nk_session *s, const Nakshatra__V1__Opened *m,
                            struct nk_error *err);

/* ---- step.c ---- */

bool nk__step_ids_valid(const int32_t *ids, size_t n, int n_vocab, struct nk_error *err);
/* Steps under way: those whose answer passes through this thread, or (last stage of several) those
 * that the compute thread has not answered. */
int nk__step_n_under_way(const struct nk_session *s);
/* Takes the oldest step out of the window, which must be this one. */
int nk__step_window_pop(struct nk_session *s, uint64_t step, struct nk_step_out *out,
                        struct nk_error *err);
/* A step is under way; its answer is waited for. */
int nk__step_window_push(struct nk_session *s, uint64_t step, struct nk_error *err);
/* Says up that a step without sampling is through. */
void nk__step_send_step_done(struct nk_session *s, uint64_t step, uint64_t spent_us);
/* A later stage was sent a step; was told that there are no more. */
int nk__step_receive(struct nk_session *s, const Nakshatra__V1__Step *m, struct nk_error *err);
int nk__step_receive_finish(struct nk_session *s, const Nakshatra__V1__Finish *m,
                            struct nk_error *err);
/* First stage: the next chunks of the prompt, as far as the window allows. */
int nk__step_pump_prompt(struct nk_session *s, struct nk_error *err);
/* First stage: a token came back; a chunk is through. */
int nk__step_drive(struct nk_session *s, uint64_t step, int32_t id, int finish_reason,
                   struct nk_error *err);
int nk__step_drive_chunk_done(struct nk_session *s, uint64_t step, struct nk_error *err);
/* Sends Done up: this stage's timing before those of the later stages (theirs: NULL on the
 * last). */
void nk__step_send_done(struct nk_session *s, const Nakshatra__V1__Done *theirs);

/* ---- room.c ---- */

void nk__room_free_seq(nk_worker *w, int seq); /* seq -1: nothing */
/* A kept session out of all lists and books; the list's reference is dropped. clear: its KV as
 * well. */
void nk__room_forget_kept(struct nk_session *k, bool clear);
/* Lets waiting sessions begin, as far as there is room. */
void nk__room_admit(nk_worker *w);
/* Of a session's first n ids: both ends of a resumed session must mean the same tokens. */
uint64_t nk__room_ids_hash(const int32_t *ids, int n);

#endif
