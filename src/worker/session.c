/* Sessions: the calls of rpc Inference, from Open to Done. Everything here runs on the net thread.
 *
 *   NEW -> [WAITING] -> OPENING -> RUNNING -> FINISHING -> (KEPT) -> gone
 *                                     |
 *                                     v
 *                                    HELD -> gone, or taken up by the session that resumes it
 *
 * Here: a session's life, what its two calls say, and its deadlines. What Open asks and how it
 * travels is open.c; steps, and how the first stage drives them, step.c; sequences, KV room and
 * kept sessions, room.c; what happens when a neighbour is lost,
 * resume.c.
 *
 * Whatever ends a session (an error, a cancel) goes through nk__session_close, which cancels the
 * next stage's session and forgets the sequence; the stage before learns it from its own call's
 * status. So KV is freed along the whole chain, in both directions.
 *
 * References: the list that a session is in, its calls, and its jobs hold one each. */
#include "worker/session_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/service.h"

enum {
    TICK_MS = 25,
    TOKEN_TEXT_MAX = 1 << 20,
    PAUSE_MS = 250, /* a tick that comes so much too late tells of a pause of this process */
};

typedef struct nk_session session;

/* ---- life ---- */

session *nk__session_ref(session *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void nk__session_unref(session *s)
{
    if (atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    NK_ASSERT(!s->adopts);
    if (s->down_ref)
        nk_call_unref(s->down_ref);
    if (s->up_ref)
        nk_call_unref(s->up_ref);
    nk_sampler_free(s->compute.sampler);
    nk_detok_free(s->compute.detok);
    nk_buf_release(&s->compute.text);
    for (int i = 0; i < NK_TOKENS_SAVED; i++)
        nk_buf_release(&s->compute.saved[i].message);
    nk__journal_free(s->journal);
    nk__checkpoints_free(s->checkpoints);
    free(s->next_address);
    free(s->replay_to);
    free(s->theirs);
    free(s->ids);
    free(s->feed);
    free(s->open_bytes);
    free(s);
}

/* ---- the states' lists ---- */

static session *first_of(const nk_worker *w, enum nk_session_state state)
{
    return TAILQ_FIRST(&w->sessions[state].head);
}

static void list_add(session *s, enum nk_session_state state)
{
    struct nk_session_list *l = &s->w->sessions[state];

    s->state = state;
    s->state_ns = nk__worker_now_ns(s->w);
    TAILQ_INSERT_TAIL(&l->head, s, link);
    l->n++;
}

void nk__session_list_remove(session *s)
{
    struct nk_session_list *l = &s->w->sessions[s->state];

    TAILQ_REMOVE(&l->head, s, link);
    l->n--;
}

void nk__session_set_state(session *s, enum nk_session_state state)
{
    nk__session_list_remove(s);
    list_add(s, state);
}

static const char *state_name(enum nk_session_state state)
{
    static const char *const names[] = { "new",       "waiting", "opening", "running",
                                         "finishing", "kept",    "held" };

    return names[state];
}

int nk__session_n_active(const nk_worker *w)
{
    int n = 0;

    for (int i = 0; i < NK_SESSION_KEPT; i++)
        n += w->sessions[i].n;
    return n;
}

/* Tells whoever waits for the last session to end: nk_worker_stop, or rpc Sleep. */
void nk__session_note_idle(nk_worker *w)
{
    if (nk__session_n_active(w))
        return;
    nk__service_idle(w);
    pthread_mutex_lock(&w->mutex);
    w->idle = true;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

void nk__session_set_decoding(session *s, bool decoding)
{
    if (s->decoding == decoding)
        return;
    s->decoding = decoding;
    s->w->n_decoding += decoding ? 1 : -1;
    nk__engine_set_decoding(s->w->engine, s->w->n_decoding, s->n_at_once);
}

/* ---- ending ---- */

/* Nobody wants the session any more. The next stage is told so: a call that only breaks off is
 * to it the loss of a neighbour. */
static void cancel_down(session *s)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Cancel msg = NAKSHATRA__V1__CANCEL__INIT;

    if (!s->down)
        return;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL;
    req.cancel = &msg;
    if (s->hold_ms)
        nk_call_cancel_with(s->down, (ProtobufCMessage *)&req);
    else
        nk_call_cancel(s->down);
}

void nk__session_close(session *s)
{
    nk_worker *w = s->w;

    if (s->closed)
        return;
    s->closed = true;
    cancel_down(s);
    nk__resume_leave(s);
    nk__session_set_decoding(s, false);
    atomic_store(&s->dropped, true);
    nk__engine_drop(w->engine, s);
    if (s->reserved) {
        w->kv_reserved -= s->n_tokens_max;
        s->reserved = false;
    }
    nk__room_free_seq(w, s->seq);
    s->seq = -1;
    nk__session_list_remove(s);
    nk__room_admit(w);
    nk__session_note_idle(w);
    nk__session_unref(s);
}

void nk__session_end(session *s, const struct nk_error *status)
{
    if (s->closed)
        return;
    if (status) {
        char quoted[700];

        s->w->n_failed++;
        nk_log(NK_LOG_WORKER, NK_LOG_WARN, "session=%s state=%s tokens=%d reason=%s msg=%s",
               s->name, state_name(s->state), s->n_ids, status->reason,
               nk_log_quote(quoted, sizeof quoted, status->msg));
    }
    if (s->up)
        nk_call_finish(s->up, status);
    /* This worker ends, or its neighbour is lost: those behind hold what they have. */
    if (status && s->hold_ms && s->down && nk__resume_is_loss(status))
        nk_call_cancel(s->down);
    nk__session_close(s);
}

/* An error that arose here: the message names this worker. */
void nk__session_fail(session *s, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(s->w);

    nk_wrap(err->code, err, "worker %s (layers %d-%d)", s->w->id, info->layer_begin,
            info->layer_end);
    nk__session_end(s, err);
}

/* While a session is being opened again, what is in the way of the next stage (no room there,
 * say) is not the end of what is held here: another route may do. */
static bool is_held_by(const session *s, const struct nk_error *status, bool lost)
{
    lost |= nk__resume_is_loss(status); /* of one further on */
    switch (s->state) {
    case NK_SESSION_RUNNING:
        return lost;
    case NK_SESSION_OPENING:
        return s->resumed && (lost || status->code == NK_E_EXHAUSTED);
    default:
        return false;
    }
}

static void fail_next(session *s, const struct nk_error *status, bool lost)
{
    struct nk_error err = *status;
    bool held = is_held_by(s, status, lost);

    /* What a worker says of itself begins with its name; the transport's sentences do not. */
    if (strncmp(err.msg, "worker ", 7) != 0)
        nk_wrap(err.code, &err, "worker at %s", s->next_address);
    if (held)
        nk__resume_hold(s, &err);
    else
        nk__session_end(s, &err);
}

/* After Done was sent up: keeps the KV or forgets it. */
void nk__session_retire(session *s, int keep_tokens)
{
    nk_worker *w = s->w;

    nk_log(NK_LOG_WORKER, NK_LOG_INFO,
           "session=%s event=done prompt=%d reused=%d generated=%d tokens=%d ms=%" PRIu64, s->name,
           s->n_prompt, s->n_reused, s->n_generated, s->n_ids,
           (nk__worker_now_ns(w) - s->opened_ns) / 1000000);
    if (s->up)
        nk_call_finish(s->up, NULL);
    if (keep_tokens <= 0 || keep_tokens > s->n_ids || s->deterministic ||
        w->state != NK_WORKER_SERVING ||
        (keep_tokens < s->n_ids && !nk__stage_info(w)->can_rollback)) {
        nk__session_close(s);
        return;
    }
    nk__session_set_decoding(s, false);
    nk__engine_leave_group(w->engine, s);
    w->kv_reserved -= s->n_tokens_max;
    s->reserved = false;
    s->n_ids = keep_tokens;
    w->kv_kept += s->n_ids;
    s->closed = true; /* its calls have no more say in it */
    cancel_down(s);   /* over, but for a stage that does not end it */
    nk__journal_free(s->journal);
    s->journal = NULL;
    nk__session_set_state(s, NK_SESSION_KEPT);
    nk__room_admit(w);
    nk__session_note_idle(w);
}

void nk__session_end_all(nk_worker *w, const struct nk_error *status, bool kept_only)
{
    session *s;

    while ((s = first_of(w, NK_SESSION_KEPT)))
        nk__room_forget_kept(s, true);
    while ((s = first_of(w, NK_SESSION_HELD)))
        nk__resume_forget(s);
    for (int i = 0; i < NK_SESSION_KEPT && !kept_only; i++)
        while ((s = first_of(w, (enum nk_session_state)i)))
            nk__session_end(s, status);
}

void nk__session_end_waiting(nk_worker *w, const struct nk_error *status)
{
    session *s;

    while ((s = first_of(w, NK_SESSION_NEW)) || (s = first_of(w, NK_SESSION_WAITING)))
        nk__session_end(s, status);
}

/* ---- what the next stage says ---- */

/* Counts the time that an answered step was neither here nor spent by those behind: on the wire. */
static void count_wire(session *s, uint64_t step, uint64_t spent_us, uint64_t now)
{
    uint64_t sent = atomic_load(&s->shared.sent_ns[step % NK_STEPS_OUT_MAX]);
    uint64_t wire_ns;

    if (!sent)
        return;
    wire_ns = now - sent > spent_us * 1000 ? now - sent - spent_us * 1000 : 0;
    s->wire_ns += wire_ns;
    s->w->wire_ns += wire_ns;
    s->w->n_wire_steps++;
}

/* Takes the answered step out of the window. */
static int answered(session *s, uint64_t step, uint64_t spent_us, struct nk_step_out *out,
                    struct nk_error *err)
{
    uint64_t now = nk__worker_now_ns(s->w);
    int rc = nk__step_window_pop(s, step, out, err);

    if (!rc)
        count_wire(s, step, spent_us, now);
    return rc;
}

static int on_down(session *s, Nakshatra__V1__InferenceReply *m, struct nk_bytes bytes,
                   struct nk_error *err)
{
    struct nk_step_out out;
    uint64_t now = nk__worker_now_ns(s->w);
    int rc;

    switch (m->kind_case) {
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED:
        return nk__open_receive_opened(s, m->opened, err);
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_REPLAYING:
        if (s->state != NK_SESSION_OPENING || !s->resumed)
            break;
        return s->up ? nk_call_send(s->up, bytes.data, bytes.size, err) : 0;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN:
        if (s->state != NK_SESSION_RUNNING)
            break;
        if (!s->is_first) {
            rc = answered(s, m->token->step, m->token->spent_us, &out, err);
            if (rc)
                return rc;
            m->token->spent_us = nk__us(now - out.received_ns);
            return s->up ? nk_call_send_pb(s->up, (ProtobufCMessage *)m, err) : 0;
        }
        count_wire(s, m->token->step, m->token->spent_us, now);
        /* The client's copy goes first only when it is the last one: the next step waits for
         * nobody. */
        if (m->token->finish && s->up)
            nk_call_send(s->up, bytes.data, bytes.size, NULL);
        rc = nk__step_drive(s, m->token->step, m->token->id, (int)m->token->finish, err);
        if (!rc && !m->token->finish && s->up)
            rc = nk_call_send(s->up, bytes.data, bytes.size, err);
        return rc;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_PROMPT_PROBS:
        if (s->state != NK_SESSION_RUNNING || s->n_prompt_logprobs < 0)
            break;
        return s->up ? nk_call_send(s->up, bytes.data, bytes.size, err) : 0;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE:
        if (s->replaying) {
            count_wire(s, m->step_done->step, m->step_done->spent_us, now);
            return nk__resume_replayed(s, m->step_done->step, err);
        }
        if (s->state != NK_SESSION_RUNNING)
            break;
        if (s->is_first) {
            count_wire(s, m->step_done->step, m->step_done->spent_us, now);
            return nk__step_drive_chunk_done(s, m->step_done->step, err);
        }
        rc = answered(s, m->step_done->step, m->step_done->spent_us, &out, err);
        if (rc)
            return rc;
        m->step_done->spent_us = nk__us(now - out.received_ns);
        return s->up ? nk_call_send_pb(s->up, (ProtobufCMessage *)m, err) : 0;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_ASIDE:
        if (s->state != NK_SESSION_RUNNING)
            break;
        if (s->is_first)
            nk__engine_leave_group(s->w->engine, s);
        else if (s->up && s->up_takes_aside)
            return nk_call_send(s->up, bytes.data, bytes.size, err);
        return 0;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_DONE:
        if (s->state != NK_SESSION_FINISHING)
            break;
        nk__step_send_done(s, m->done);
        nk__session_retire(s, s->is_first ? (s->reuse ? s->n_ids : 0) : s->keep_tokens);
        return 0;
    default:
        break;
    }
    return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                   "the next stage sent a message (%d) that does not fit the session's state",
                   (int)m->kind_case);
}

static void down_message(nk_call *c, void *user, struct nk_bytes bytes)
{
    session *s = user;
    Nakshatra__V1__InferenceReply *m;
    struct nk_error err;
    int rc;

    (void)c;
    if (s->closed)
        return;
    s->heard_ns = nk__worker_now_ns(s->w);
    nk_arena_reset(s->w->arena);
    m = nakshatra__v1__inference_reply__unpack(nk_arena_allocator(s->w->arena), bytes.size,
                                               bytes.data);
    if (!m)
        rc = nk_fail(&err, NK_E_INTERNAL, "bad_peer",
                     "the next stage sent %zu bytes that are no message", bytes.size);
    else
        rc = on_down(s, m, bytes, &err);
    if (rc && rc != NK_E_UNAVAILABLE)
        nk__session_fail(s, &err);
}

static void down_end(nk_call *c, void *user, const struct nk_error *status)
{
    session *s = user;

    s->w->n_streams--;
    s->down = NULL;
    if (!s->closed) {
        struct nk_error err;

        if (!status) {
            nk_fail(&err, NK_E_INTERNAL, "bad_peer",
                    "the stage ended the session before it was done");
            status = &err;
        }
        fail_next(s, status, nk_call_ending(c) == NK_ENDING_LOST);
    }
    nk__session_unref(s);
}

const struct nk_call_handlers nk__session_down_handlers = { .message = down_message,
                                                            .end = down_end };

/* ---- what the opener says ---- */

static void note_cancelled(const session *s, const char *reason)
{
    nk_log(NK_LOG_WORKER, NK_LOG_INFO, "session=%s event=cancelled tokens=%d reason=%s", s->name,
           s->n_ids, reason);
}

/* A call of its own to say that nobody comes any more for a session that is held. */
static int receive_let_go(session *s, const Nakshatra__V1__Cancel *m, struct nk_error *err)
{
    int rc = nk__open_check_gateway(s, err);

    if (!rc && m->session.len != NK_SESSION_ID_BYTES)
        rc = nk_fail(err, NK_E_INVALID, "bad_session", "a session id of %zu bytes; %d are right",
                     m->session.len, NK_SESSION_ID_BYTES);
    if (rc)
        return rc;
    nk__resume_let_go(s->w, m);
    if (s->up)
        nk_call_finish(s->up, NULL);
    nk__session_close(s);
    return 0;
}

static void receive_cancel(session *s)
{
    bool adopts = s->adopts;
    struct nk_error err;

    note_cancelled(s, "cancelled");
    nk_fail(&err, NK_E_CANCELLED, "cancelled", "the opener cancelled the session");
    if (s->up)
        nk_call_finish(s->up, &err);
    nk__session_ref(s);
    nk__session_close(s);
    if (adopts) /* what it waited for is nobody's any more, either */
        nk__resume_forget_held(s->w, s->id, s->attempt);
    nk__session_unref(s);
}

static void up_message(nk_call *c, void *user, struct nk_bytes bytes)
{
    session *s = user;
    Nakshatra__V1__InferenceRequest *m;
    struct nk_error err;
    int rc;

    (void)c;
    if (s->closed)
        return;
    s->heard_ns = nk__worker_now_ns(s->w);
    nk_arena_reset(s->w->arena);
    m = nakshatra__v1__inference_request__unpack(nk_arena_allocator(s->w->arena), bytes.size,
                                                 bytes.data);
    if (!m) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "%zu bytes are no InferenceRequest",
                     bytes.size);
    } else {
        switch (m->kind_case) {
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN:
            rc = nk__open_receive(s, m->open, bytes, &err);
            break;
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP:
            rc = nk__step_receive(s, m->step, &err);
            break;
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH:
            rc = nk__step_receive_finish(s, m->finish, &err);
            break;
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL:
            if (s->state == NK_SESSION_NEW && m->cancel->session.len) {
                rc = receive_let_go(s, m->cancel, &err);
                break;
            }
            receive_cancel(s);
            return;
        default:
            rc = nk_fail(&err, NK_E_INVALID, "bad_message",
                         "the message is neither Open nor Step nor Finish nor Cancel");
        }
    }
    if (rc)
        nk__session_fail(s, &err);
}

static void up_end(nk_call *c, void *user, const struct nk_error *status)
{
    session *s = user;
    struct nk_error err;

    s->w->n_streams--;
    s->up = NULL;
    if (!s->closed && s->hold_ms && nk_call_ending(c) == NK_ENDING_LOST &&
        (s->state == NK_SESSION_RUNNING || (s->state == NK_SESSION_OPENING && s->resumed))) {
        /* Who does not want it any more says Cancel. */
        nk_fail(&err, NK_E_UNAVAILABLE, "peer_gone", "who opened the session is gone");
        nk__resume_hold(s, &err);
    } else if (!s->closed) {
        note_cancelled(s, status ? status->reason : "ok");
        nk__session_close(s);
    }
    nk__session_unref(s);
}

static const struct nk_call_handlers up_handlers = { .message = up_message, .end = up_end };

static void arm_tick(nk_worker *w);

void nk__session_open_call(nk_call *c, void *worker)
{
    nk_worker *w = worker;
    session *s = calloc(1, sizeof *s);

    if (!s) {
        struct nk_error err;

        nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory for a session");
        nk_call_finish(c, &err);
        return;
    }
    atomic_init(&s->refs, 2); /* the list's and the call's */
    s->w = w;
    s->seq = -1;
    s->n_logprobs = -1;
    s->heard_ns = nk__worker_now_ns(w);
    nk_buf_init(&s->compute.text, TOKEN_TEXT_MAX);
    for (int i = 0; i < NK_TOKENS_SAVED; i++) {
        s->compute.saved[i].index = -1;
        nk_buf_init(&s->compute.saved[i].message, TOKEN_TEXT_MAX);
    }
    snprintf(s->name, sizeof s->name, "-");
    s->up = c;
    s->up_ref = nk_call_ref(c);
    list_add(s, NK_SESSION_NEW);
    w->n_streams++;
    pthread_mutex_lock(&w->mutex);
    w->idle = false;
    pthread_mutex_unlock(&w->mutex);
    nk_call_accept(c, &up_handlers, s);
    if (!w->tick && !w->no_tick)
        arm_tick(w);
}

/* ---- deadlines ---- */

/* A later stage with less room than those before it, or where a cancelled session has not ended
 * yet: a wait that stays well within the patience of the stages before. */
static bool waited_for_room(const session *s, uint64_t now, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(s->w);

    if (now - s->state_ns < s->stall_ms * 1000000ull / 4)
        return false;
    nk_fail(
        err, NK_E_EXHAUSTED, "kv_full",
        "no room for a session of %d tokens: %d of %d KV tokens and %d of %d sequences are in use",
        s->n_tokens_max, s->w->kv_reserved, info->n_ctx, info->n_seq_max - s->w->n_seq_free,
        info->n_seq_max);
    return true;
}

static bool overdue(const session *s, uint64_t now, struct nk_error *err)
{
    uint64_t since = s->state_ns, ms = 0, limit_ms = s->stall_ms;
    bool heard;

    if (s->deadline_ns && now >= s->deadline_ns) {
        nk_fail(err, NK_E_DEADLINE, "deadline",
                "the generation's deadline has passed after %d tokens", s->n_generated);
        return true;
    }
    switch (s->state) {
    case NK_SESSION_NEW:
        if (s->making || now - since < NK_OPEN_DEADLINE_MS * 1000000ull)
            return false;
        nk_fail(err, NK_E_DEADLINE, "no_open", "no Open came within %d ms", NK_OPEN_DEADLINE_MS);
        return true;
    case NK_SESSION_WAITING:
        if (s->adopts) /* until a run is through */
            return false;
        if (!s->is_first)
            return waited_for_room(s, now, err);
        if (now - since < s->w->opts.queue_ms * 1000000ull)
            return false;
        nk_fail(err, NK_E_EXHAUSTED, "queue_timeout", "no room came free within %u ms",
                s->w->opts.queue_ms);
        return true;
    case NK_SESSION_OPENING:
        /* Stages behind give each other rows, and say how they get on. */
        if (s->resumed && s->heard_ns > since)
            since = s->heard_ns;
        break;
    case NK_SESSION_FINISHING:
        break;
    case NK_SESSION_RUNNING:
        if (nk__step_n_under_way(s) == 0) {
            /* Until the first step of a session that is resumed, stages before it may compute
             * all that they lack. */
            if (s->is_first || (s->resumed && !s->last_step) || now < s->heard_ns ||
                now - s->heard_ns < s->w->opts.idle_ms * 1000000ull)
                return false;
            nk_fail(err, NK_E_DEADLINE, "idle", "no step came for %u ms", s->w->opts.idle_ms);
            return true;
        }
        if (s->is_last)
            return false;
        /* The oldest unanswered step counts from when its rows went out, so a busy queue here is
         * nobody's stall. */
        since = atomic_load(&s->shared.sent_ns[s->steps_out[0].step % NK_STEPS_OUT_MAX]);
        if (!since)
            return false;
        break;
    case NK_SESSION_KEPT:
    case NK_SESSION_HELD:
    case NK_SESSION_STATES:
        return false;
    }
    /* A worker that is heard of computes, as far as anybody can tell; one that is gone, or stopped,
     * was lost before. */
    heard = s->down && nk_call_is_heard(s->down);
    if (heard)
        limit_ms *= NK_RPC_PATIENCE_HEARD;
    if (s->is_last || now < since || now - since < limit_ms * 1000000ull)
        return false;
    ms = (now - since) / 1000000;
    nk_fail(err, NK_E_DEADLINE, "stalled",
            "worker at %s has not answered for %" PRIu64
            " ms%s (--stall-ms; session %s, %s, token %d)",
            s->next_address, ms, heard ? ", though it is there" : "", s->name, state_name(s->state),
            s->n_ids);
    return true;
}

/* Deadlines, stalls, waiting sessions. */
static void session_tick(nk_worker *w, uint64_t now)
{
    for (int i = 0; i < NK_SESSION_KEPT; i++) {
        for (session *s = first_of(w, (enum nk_session_state)i); s;) {
            struct nk_error err;

            if (!overdue(s, now, &err)) {
                s = TAILQ_NEXT(s, link);
                continue;
            }
            if (strcmp(err.reason, "stalled") == 0)
                fail_next(s, &err, true);
            else
                nk__session_fail(s, &err);
            /* Ending one may have moved or ended others. */
            s = first_of(w, (enum nk_session_state)i);
        }
    }
}

/* This process did not run for so long, or the whole machine did not: nobody else's silence. What
 * was waited for before may lie unread, or its sender was away as well, so every wait goes on from
 * where it was. Moved rather than begun anew, so that the stage nearest to a silent one is still
 * the first to give up. */
static void forgive_pause(nk_worker *w, uint64_t late_ns)
{
    for (int i = 0; i < NK_SESSION_STATES; i++) {
        session *s;

        TAILQ_FOREACH(s, &w->sessions[i].head, link)
        {
            s->held_until_ns += late_ns; /* of no meaning but to a held one */
            if (s->state_ns < w->tick_due_ns)
                s->state_ns += late_ns;
            if (s->heard_ns < w->tick_due_ns)
                s->heard_ns += late_ns;
            for (int k = 0; k < NK_STEPS_OUT_MAX; k++) {
                unsigned long long sent = atomic_load(&s->shared.sent_ns[k]);

                /* The compute thread may set it meanwhile: then it is of after the pause. */
                if (sent && sent < w->tick_due_ns)
                    atomic_compare_exchange_strong(&s->shared.sent_ns[k], &sent, sent + late_ns);
            }
        }
    }
}

static void tick(void *worker)
{
    nk_worker *w = worker;
    uint64_t now = nk__worker_now_ns(w);

    w->tick = NULL;
    if (now > w->tick_due_ns + PAUSE_MS * 1000000ull)
        forgive_pause(w, now - w->tick_due_ns);
    session_tick(w, now);
    nk__resume_tick(w, now);
    if ((nk__session_n_active(w) || w->sessions[NK_SESSION_HELD].n) && !w->tick && !w->no_tick)
        arm_tick(w);
}

static void arm_tick(nk_worker *w)
{
    w->tick_due_ns = nk__worker_now_ns(w) + TICK_MS * 1000000ull;
    w->tick = nk_timer_start(w->net, TICK_MS, tick, w);
}
