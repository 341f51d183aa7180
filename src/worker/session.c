/* Sessions: the calls of rpc Inference, from Open to Done. Everything here runs on the net thread.
 *
 *   NEW -> [WAITING] -> OPENING -> RUNNING -> FINISHING -> (KEPT) -> gone
 *
 * The first stage drives: it cuts the prompt into chunks, at most NK_WINDOW of them under way, and starts the next step
 * as soon as a token is back. The other stages answer steps. Whatever ends a session (an error, a cancelled call, a lost
 * connection) goes through session_close, which cancels the next stage's call and forgets the sequence; the stage before
 * learns it from its own call's status. So KV is freed along the whole chain, in both directions, without a message of
 * its own.
 *
 * References: the list that a session is in, its calls, and its jobs hold one each. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/service.h"
#include "worker/worker_int.h"

enum { TICK_MS = 25, STALL_MARGIN_MS_MAX = 500 };

typedef struct nk_session session;

static void try_admit(nk_worker *w);
static int begin(session *s, struct nk_error *err);

static const struct nk_stage_info *stage_info(const nk_worker *w)
{
    return nk__engine_info(w->engine);
}

/* ---- life ---- */

static session *session_ref(session *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void nk__session_unref(session *s)
{
    if (atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    if (s->down_ref)
        nk_call_unref(s->down_ref);
    if (s->up_ref)
        nk_call_unref(s->up_ref);
    nk_sampler_free(s->sampler);
    nk_detok_free(s->detok);
    nk_buf_release(&s->text);
    free(s->next_address);
    free(s->ids);
    free(s->prompt);
    free(s->open_bytes);
    free(s);
}

static void list_remove(struct nk_session_list *l, session *s)
{
    if (s->prev)
        s->prev->next = s->next;
    else
        l->head = s->next;
    if (s->next)
        s->next->prev = s->prev;
    else
        l->tail = s->prev;
    s->prev = s->next = NULL;
    l->n--;
}

static void list_push(struct nk_session_list *l, session *s)
{
    s->prev = l->tail;
    s->next = NULL;
    if (l->tail)
        l->tail->next = s;
    else
        l->head = s;
    l->tail = s;
    l->n++;
}

static void set_state(session *s, enum nk_session_state state)
{
    list_remove(&s->w->sessions[s->state], s);
    s->state = state;
    list_push(&s->w->sessions[state], s);
    s->state_ns = nk_now_ns();
}

static const char *state_name(enum nk_session_state state)
{
    static const char *const names[] = {
        "new", "waiting", "opening", "running", "finishing", "kept"
    };

    return names[state];
}

int nk__session_n_active(const nk_worker *w)
{
    int n = 0;

    for (int i = 0; i < NK_SESSION_STATES; i++)
        if (i != NK_SESSION_KEPT)
            n += w->sessions[i].n;
    return n;
}

/* Tells whoever waits for the last session to end: nk_worker_stop, or rpc Sleep. */
static void note_idle(nk_worker *w)
{
    if (nk__session_n_active(w))
        return;
    nk__service_idle(w);
    pthread_mutex_lock(&w->mutex);
    w->idle = true;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void set_decoding(session *s, bool decoding)
{
    if (s->decoding == decoding)
        return;
    s->decoding = decoding;
    s->w->n_decoding += decoding ? 1 : -1;
    nk__engine_set_decoding(s->w->engine, s->w->n_decoding, s->n_route);
}

/* ---- sequences and KV room ---- */

static void submit_clear(nk_worker *w, int seq)
{
    struct nk_job *j;
    struct nk_error err;

    if (nk__engine_job(w->engine, &j, 0, false, &err)) {
        /* Positions are authoritative: what is left in the sequence is forgotten when it is used again. */
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "seq=%d reason=%s msg=\"its KV is freed at its next use\"", seq, err.reason);
        return;
    }
    j->kind = NK_JOB_CLEAR;
    j->seq = seq;
    nk__engine_submit(w->engine, j);
}

static void free_seq(nk_worker *w, int seq)
{
    if (seq < 0)
        return;
    submit_clear(w, seq);
    w->seq_used[seq] = 0;
    w->n_seq_free++;
}

static int take_free_seq(nk_worker *w)
{
    for (int i = 0; i < stage_info(w)->n_seq_max; i++)
        if (!w->seq_used[i]) {
            w->seq_used[i] = 1;
            w->n_seq_free--;
            return i;
        }
    return -1;
}

/* Out of all lists and books; the list's reference is dropped. */
static void forget_kept(session *k, bool clear)
{
    nk_worker *w = k->w;

    NK_ASSERT(k->state == NK_SESSION_KEPT);
    w->kv_kept -= k->n_ids;
    list_remove(&w->sessions[NK_SESSION_KEPT], k);
    if (clear)
        free_seq(w, k->seq);
    k->seq = -1;
    nk__session_unref(k);
}

static bool evict_one(nk_worker *w, const session *but)
{
    session *k =
        w->sessions[NK_SESSION_KEPT].head; /* the longest kept is the least recently used */

    if (k && k == but)
        k = k->next;
    if (!k)
        return false;
    nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "session=%s tokens=%d msg=\"kept session evicted\"",
           k->name, k->n_ids);
    forget_kept(k, true);
    return true;
}

int nk__session_borrow_seq(nk_worker *w, int n_tokens)
{
    int seq;

    while (w->kv_reserved + w->kv_kept + n_tokens > stage_info(w)->n_ctx && evict_one(w, NULL))
        ;
    seq = take_free_seq(w);
    if (seq < 0 && evict_one(w, NULL))
        seq = take_free_seq(w);
    return seq;
}

void nk__session_return_seq(nk_worker *w, int seq)
{
    w->seq_used[seq] = 0;
    w->n_seq_free++;
    try_admit(w);
}

/* ---- ending ---- */

/* Ends the session's part here. Its up call has been finished, or is gone. */
static void session_close(session *s)
{
    nk_worker *w = s->w;

    if (s->closed)
        return;
    s->closed = true;
    atomic_store(&s->dead, true);
    if (s->down)
        nk_call_cancel(s->down);
    set_decoding(s, false);
    nk__engine_leave_group(w->engine, s);
    if (s->reserved) {
        w->kv_reserved -= s->n_tokens_max;
        s->reserved = false;
    }
    free_seq(w, s->seq);
    s->seq = -1;
    list_remove(&w->sessions[s->state], s);
    try_admit(w);
    note_idle(w);
    nk__session_unref(s);
}

/* Ends it with a status for whoever opened it. */
static void session_end(session *s, const struct nk_error *status)
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
    session_close(s);
}

/* An error that arose here: the message names this worker. */
static void session_fail(session *s, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);

    nk_wrap(err->code, err, "worker %s (layers %d-%d)", s->w->id, info->layer_begin,
            info->layer_end);
    session_end(s, err);
}

static void fail_next(session *s, const struct nk_error *status)
{
    struct nk_error err = *status;

    /* What a worker says of itself begins with its name; the transport's sentences do not. */
    if (strncmp(err.msg, "worker ", 7) != 0)
        nk_wrap(err.code, &err, "worker at %s", s->next_address);
    session_end(s, &err);
}

/* After Done was sent up: keeps the KV or forgets it. */
static void session_retire(session *s, int keep_tokens)
{
    nk_worker *w = s->w;

    nk_log(NK_LOG_WORKER, NK_LOG_INFO,
           "session=%s event=done prompt=%d reused=%d generated=%d tokens=%d ms=%" PRIu64, s->name,
           s->n_prompt, s->n_reused, s->n_generated, s->n_ids,
           (nk_now_ns() - s->opened_ns) / 1000000);
    if (s->up)
        nk_call_finish(s->up, NULL);
    if (keep_tokens <= 0 || keep_tokens > s->n_ids || s->deterministic ||
        w->state != NK_WORKER_SERVING || (keep_tokens < s->n_ids && !stage_info(w)->can_rollback)) {
        session_close(s);
        return;
    }
    set_decoding(s, false);
    nk__engine_leave_group(w->engine, s);
    w->kv_reserved -= s->n_tokens_max;
    s->reserved = false;
    s->n_ids = keep_tokens;
    w->kv_kept += s->n_ids;
    s->closed = true; /* its calls have no more say in it */
    set_state(s, NK_SESSION_KEPT);
    try_admit(w);
    note_idle(w);
}

void nk__session_end_all(nk_worker *w, const struct nk_error *status, bool kept_only)
{
    while (w->sessions[NK_SESSION_KEPT].head)
        forget_kept(w->sessions[NK_SESSION_KEPT].head, true);
    for (int i = 0; i < NK_SESSION_KEPT && !kept_only; i++)
        while (w->sessions[i].head)
            session_end(w->sessions[i].head, status);
}

void nk__session_end_waiting(nk_worker *w, const struct nk_error *status)
{
    while (w->sessions[NK_SESSION_NEW].head)
        session_end(w->sessions[NK_SESSION_NEW].head, status);
    while (w->sessions[NK_SESSION_WAITING].head)
        session_end(w->sessions[NK_SESSION_WAITING].head, status);
}

/* ---- steps ---- */

/* Steps under way: those whose answer passes through this thread, or (last stage of several) those that the compute
 * thread has not answered. */
static int n_steps_under_way(const session *s)
{
    return s->is_last && !s->is_first ? atomic_load(&s->n_unanswered) : s->n_steps_out;
}

static int window_push(session *s, uint64_t step, struct nk_error *err)
{
    if (n_steps_under_way(s) == NK_STEPS_OUT_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "window_exceeded",
                       "step %" PRIu64 " came while %d steps are unanswered", step,
                       NK_STEPS_OUT_MAX);
    if (s->is_last && !s->is_first) {
        atomic_fetch_add(&s->n_unanswered, 1);
        return 0;
    }
    s->steps_out[s->n_steps_out++] = (struct nk_step_out){ step, nk_now_ns() };
    atomic_store(&s->sent_ns[step % NK_STEPS_OUT_MAX], 0);
    return 0;
}

/* Steps are answered in their order. */
static int window_pop(session *s, uint64_t step, struct nk_step_out *out, struct nk_error *err)
{
    if (!s->n_steps_out || s->steps_out[0].step != step)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                       "an answer to step %" PRIu64 " came, which was not waited for", step);
    *out = s->steps_out[0];
    s->n_steps_out--;
    memmove(s->steps_out, s->steps_out + 1, (size_t)s->n_steps_out * sizeof s->steps_out[0]);
    return 0;
}

/* Gives ids[pos .. pos + n) to the engine; with rows on a later stage. */
static int submit_step(session *s, uint64_t step, int pos, int n, bool sample,
                       const Nakshatra__V1__Step *msg, struct nk_error *err)
{
    struct nk_job *j;
    int rc;

    rc = window_push(s, step, err);
    if (rc)
        return rc;
    rc = nk__engine_job(s->w->engine, &j, n, !s->is_first, err);
    if (rc)
        return rc;
    if (!s->is_first) {
        rc = nk__wire_rows(j->rows, msg->rows, n, stage_info(s->w)->n_embd, err);
        if (rc) {
            nk__engine_job_free(s->w->engine, j);
            return rc;
        }
        j->group = msg->group;
        j->group_size = msg->group_size;
    }
    memcpy(j->ids, s->ids + pos, (size_t)n * sizeof *j->ids);
    j->session = session_ref(s);
    j->seq = s->seq;
    j->step = step;
    j->pos = pos;
    j->sample = sample;
    j->solo = s->deterministic;
    j->received_ns = nk_now_ns();
    s->heard_ns = j->received_ns;
    nk_trace_event(s->w->trace, j->received_ns, "received", s->name, step, pos, n);
    nk__engine_submit(s->w->engine, j);
    return 0;
}

static bool ids_valid(const int32_t *ids, size_t n, int n_vocab, struct nk_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab) {
            nk_fail(err, NK_E_INVALID, "bad_token", "token id %d is outside the vocabulary of %d",
                    ids[i], n_vocab);
            return false;
        }
    return true;
}

/* A later stage is sent a step. */
static int on_step(session *s, const Nakshatra__V1__Step *m, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);

    if (s->state != NK_SESSION_RUNNING || s->is_first)
        return nk_fail(err, NK_E_INVALID, "unexpected_message",
                       s->is_first ? "a Step was sent to the first stage, which makes them itself"
                                   : "a Step was sent before Opened was received");
    if (m->step <= s->last_step)
        return nk_fail(err, NK_E_INVALID, "bad_step",
                       "step %" PRIu64 " follows step %" PRIu64 "; steps count up", m->step,
                       s->last_step);
    if (m->n_ids == 0 || m->n_ids > (size_t)info->n_batch)
        return nk_fail(err, NK_E_INVALID, "bad_step", "a step of %zu rows; 1 to %d are possible",
                       m->n_ids, info->n_batch);
    if (!ids_valid(m->ids, m->n_ids, info->n_vocab, err))
        return err ? err->code : NK_E_INVALID;
    if (m->pos > (uint32_t)s->n_ids)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "gap", "position %u is past the session's %d tokens",
                       m->pos, s->n_ids);
    if (m->pos + m->n_ids > (size_t)s->n_tokens_max)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                       "%zu rows at position %u are over the session's %d tokens", m->n_ids, m->pos,
                       s->n_tokens_max);
    if (m->pos < (uint32_t)s->n_ids) {
        if (n_steps_under_way(s))
            return nk_fail(err, NK_E_PRECONDITION, "steps_in_flight",
                           "position %u goes back behind token %d while steps are unanswered",
                           m->pos, s->n_ids);
        if (!info->can_rollback && m->pos)
            return nk_fail(err, NK_E_OUT_OF_RANGE, "no_rollback",
                           "a recurrent model cannot go back to position %u", m->pos);
    }
    s->last_step = m->step;
    memcpy(s->ids + m->pos, m->ids, m->n_ids * sizeof *m->ids);
    s->n_ids = (int)(m->pos + m->n_ids);
    return submit_step(s, m->step, (int)m->pos, (int)m->n_ids, m->sample, m, err);
}

/* First stage: the next chunks of the prompt, as far as the window allows. */
static int pump_prompt(session *s, struct nk_error *err)
{
    while (s->n_submitted < s->n_prompt && s->n_steps_out < NK_WINDOW) {
        int pos = s->n_submitted, n = s->n_prompt - pos, rc;

        if (n > s->chunk)
            n = s->chunk;
        memcpy(s->ids + pos, s->prompt + pos, (size_t)n * sizeof *s->ids);
        s->n_ids = s->n_submitted = pos + n;
        rc = submit_step(s, ++s->last_step, pos, n, s->n_submitted == s->n_prompt, NULL, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- Done ---- */

static uint64_t us(uint64_t ns)
{
    return ns / 1000;
}

/* Sends Done up: this stage's timing before those of the later stages (theirs: NULL on the last). */
static void send_done(session *s, const Nakshatra__V1__Done *theirs)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Done done = NAKSHATRA__V1__DONE__INIT;
    Nakshatra__V1__StageTiming own = NAKSHATRA__V1__STAGE_TIMING__INIT, *stages[NK_ROUTE_MAX + 1];
    size_t n = 0;

    own.worker_id = s->w->id;
    own.compute_us = us(atomic_load(&s->compute_ns));
    own.queue_us = us(atomic_load(&s->queue_ns));
    own.wire_us = us(s->wire_ns);
    own.runs = atomic_load(&s->runs);
    stages[n++] = &own;
    for (size_t i = 0; theirs && i < theirs->n_stages && n < NK_ROUTE_MAX; i++)
        stages[n++] = theirs->stages[i];
    done.stages = stages;
    done.n_stages = n;
    done.stop_string.data = (uint8_t *)s->stop_string;
    done.stop_string.len = s->stop_string_size;
    if (theirs && theirs->stop_string.len)
        done.stop_string = theirs->stop_string;
    done.finish = s->finish;
    if (s->is_first) {
        done.n_prompt = (uint32_t)s->n_prompt;
        done.n_reused = (uint32_t)s->n_reused;
        done.n_generated = (uint32_t)s->n_generated;
        done.prefill_us = s->first_token_ns ? us(s->first_token_ns - s->opened_ns) : 0;
        done.decode_us = us(s->last_token_ns - s->first_token_ns);
    }
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_DONE;
    reply.done = &done;
    if (s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
}

/* First stage, after the last token. */
static void finish(session *s)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Finish msg = NAKSHATRA__V1__FINISH__INIT;

    set_decoding(s, false);
    nk__engine_leave_group(s->w->engine, s);
    if (s->is_last) {
        send_done(s, NULL);
        session_retire(s, s->reuse ? s->n_ids : 0);
        return;
    }
    msg.keep = s->reuse;
    msg.keep_tokens = (uint32_t)s->n_ids;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH;
    req.finish = &msg;
    set_state(s, NK_SESSION_FINISHING);
    if (s->down) {
        nk_call_send_pb(s->down, (ProtobufCMessage *)&req, NULL);
        nk_call_send_done(s->down);
    }
}

/* A later stage is told that there will be no more steps. */
static int on_finish(session *s, const Nakshatra__V1__Finish *m, struct nk_error *err)
{
    if (s->state != NK_SESSION_RUNNING || s->is_first || n_steps_under_way(s))
        return nk_fail(err, NK_E_INVALID, "unexpected_message",
                       "Finish was sent while the session was not idle");
    s->keep_tokens = m->keep && m->keep_tokens <= (uint32_t)s->n_ids ? (int)m->keep_tokens : 0;
    if (s->is_last) {
        send_done(s, NULL);
        session_retire(s, s->keep_tokens);
        return 0;
    }
    if (s->down) {
        Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
        Nakshatra__V1__Finish msg = NAKSHATRA__V1__FINISH__INIT;

        msg.keep = m->keep;
        msg.keep_tokens = m->keep_tokens;
        req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH;
        req.finish = &msg;
        set_state(s, NK_SESSION_FINISHING);
        nk_call_send_pb(s->down, (ProtobufCMessage *)&req, NULL);
        nk_call_send_done(s->down);
    }
    return 0;
}

/* ---- the first stage drives ---- */

/* Every step but the prompt's chunks before its last asks for a token. */
static bool is_sampling_step(const session *s, uint64_t step)
{
    return step == s->last_step && s->n_submitted == s->n_prompt;
}

/* A token came back for the outstanding step. */
static int drive(session *s, uint64_t step, int32_t id, int finish_reason, struct nk_error *err)
{
    struct nk_step_out out;
    uint64_t now = nk_now_ns();
    int rc = window_pop(s, step, &out, err);

    if (!rc && !is_sampling_step(s, step))
        rc = nk_fail(err, NK_E_INTERNAL, "bad_peer",
                     "a token came for step %" PRIu64 ", which is a chunk of the prompt", step);
    if (rc)
        return rc;
    if (!s->first_token_ns)
        s->first_token_ns = now;
    s->last_token_ns = now;
    if (finish_reason != NAKSHATRA__V1__FINISH_REASON__FINISH_EOG)
        s->n_generated++;
    if (finish_reason) {
        s->finish = (Nakshatra__V1__FinishReason)finish_reason;
        finish(s);
        return 0;
    }
    if (id < 0 || id >= stage_info(s->w)->n_vocab || s->n_ids >= s->n_tokens_max)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                       "token id %d at position %d of %d is not possible", id, s->n_ids,
                       s->n_tokens_max);
    set_decoding(s, true);
    s->ids[s->n_ids++] = id;
    return submit_step(s, ++s->last_step, s->n_ids - 1, 1, true, NULL, err);
}

static int drive_chunk_done(session *s, uint64_t step, struct nk_error *err)
{
    struct nk_step_out out;
    int rc = window_pop(s, step, &out, err);

    if (!rc && is_sampling_step(s, step))
        rc = nk_fail(err, NK_E_INTERNAL, "bad_peer",
                     "no token came for step %" PRIu64 ", which asked for one", step);
    return rc ? rc : pump_prompt(s, err);
}

void nk__session_result(struct nk_job *j)
{
    session *s = j->session;
    struct nk_error err;
    int rc = 0;

    if (!s->closed && j->rc) {
        session_fail(s, &j->err);
    } else if (!s->closed) {
        rc = j->sample ? drive(s, j->step, j->sampled.id, j->finish, &err)
                       : drive_chunk_done(s, j->step, &err);
        if (rc)
            session_fail(s, &err);
    }
    nk__engine_job_free(s->w->engine, j);
}

/* ---- Open ---- */

static void route_describe(char *out, size_t size, const Nakshatra__V1__Open *m)
{
    size_t at = 0;

    out[0] = '\0';
    for (size_t i = 0; i < m->n_route && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%u-%u", i ? "," : "",
                               m->route[i]->layer_begin, m->route[i]->layer_end);
}

static int check_route(const nk_worker *w, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(w);
    char text[256];

    route_describe(text, sizeof text, m);
    if (m->n_route == 0 || m->n_route > NK_ROUTE_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_route",
                       "a route of %zu stages; 1 to %d are possible", m->n_route, NK_ROUTE_MAX);
    if (m->stage_idx >= m->n_route)
        return nk_fail(err, NK_E_INVALID, "bad_route", "stage %u of a route of %zu", m->stage_idx,
                       m->n_route);
    if (m->model_sha256[0] && info->model_sha256[0] &&
        strcmp(m->model_sha256, info->model_sha256) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "the request is for model %.12s..., this worker has %.12s...",
                       m->model_sha256, info->model_sha256);
    if (m->route[m->stage_idx]->layer_begin != (uint32_t)info->layer_begin ||
        m->route[m->stage_idx]->layer_end != (uint32_t)info->layer_end)
        return nk_fail(err, NK_E_PRECONDITION, "range_mismatch",
                       "the route has layers %u-%u here, this worker has %d-%d",
                       m->route[m->stage_idx]->layer_begin, m->route[m->stage_idx]->layer_end,
                       info->layer_begin, info->layer_end);
    if (m->route[0]->layer_begin != 0 ||
        m->route[m->n_route - 1]->layer_end != (uint32_t)info->layer_count)
        return nk_fail(err, NK_E_PRECONDITION, "bad_route",
                       "the route %s does not cover layers 0-%d", text, info->layer_count);
    for (size_t i = 1; i < m->n_route; i++)
        if (m->route[i]->layer_begin != m->route[i - 1]->layer_end ||
            m->route[i]->layer_end <= m->route[i]->layer_begin)
            return nk_fail(err, NK_E_PRECONDITION, "bad_route",
                           "the route %s has a gap or an overlap", text);
    return 0;
}

static int parse_limits(session *s, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);
    const Nakshatra__V1__Limits *l = m->limits;
    uint32_t n_predict = l ? l->n_predict : 0,
             stall_ms = l && l->stall_ms ? l->stall_ms : s->w->opts.stall_ms, margin;

    if (s->is_first) {
        int share = info->n_ctx / info->n_seq_max, room;

        if (m->n_prompt_ids == 0)
            return nk_fail(err, NK_E_INVALID, "no_prompt", "the prompt has no tokens");
        if (m->n_prompt_ids >= (size_t)info->n_ctx_seq)
            return nk_fail(
                err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                "the prompt has %zu tokens; the context holds %d, prompt and answer together",
                m->n_prompt_ids, info->n_ctx_seq);
        s->n_prompt = (int)m->n_prompt_ids;
        room = info->n_ctx_seq - s->n_prompt;
        /* Without a limit a session gets the share of one, or half as much for an answer to a long prompt. */
        if (n_predict == 0)
            n_predict = (uint32_t)(share - s->n_prompt > share / 2 ? share - s->n_prompt
                                   : share / 2                     ? share / 2
                                                                   : 1);
        if (n_predict > (uint32_t)room)
            n_predict = (uint32_t)room;
        /* The last token's row is never needed. */
        s->n_tokens_max = s->n_prompt + (int)n_predict;
    } else {
        if (m->n_tokens_max == 0 || m->n_tokens_max > (uint32_t)info->n_ctx_seq)
            return nk_fail(err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                           "the session may need %u tokens of KV; this worker's context holds %d",
                           m->n_tokens_max, info->n_ctx_seq);
        s->n_tokens_max = (int)m->n_tokens_max;
        if (n_predict == 0 || n_predict > m->n_tokens_max)
            n_predict = m->n_tokens_max;
    }
    s->n_predict = (int)n_predict;
    /* The stage nearest to the one that is silent gives up first, so that the right worker is named; all of them within
     * stall_ms. */
    margin = stall_ms / 10 < STALL_MARGIN_MS_MAX ? stall_ms / 10 : STALL_MARGIN_MS_MAX;
    s->stall_ms = stall_ms - margin * (m->stage_idx < 9 ? m->stage_idx : 9);
    if (l && l->deadline_ms)
        s->deadline_ns = s->opened_ns + l->deadline_ms * 1000000ull;
    return 0;
}

static int make_last_stage(session *s, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const nk_vocab *vocab = nk__engine_vocab(s->w->engine);
    struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];
    const char *stops[NK_STOP_MAX];
    char texts[NK_STOP_MAX][NK_STOP_BYTES_MAX + 1];
    struct nk_sampling sampling;
    int rc;

    if (!vocab)
        return nk_fail(err, NK_E_UNAVAILABLE, "asleep", "the worker is asleep");
    if (m->n_stop > NK_STOP_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_stop", "%zu stop strings; at most %d are possible",
                       m->n_stop, NK_STOP_MAX);
    for (size_t i = 0; i < m->n_stop; i++) {
        if (m->stop[i].len == 0 || m->stop[i].len > NK_STOP_BYTES_MAX ||
            memchr(m->stop[i].data, 0, m->stop[i].len))
            return nk_fail(err, NK_E_INVALID, "bad_stop",
                           "stop string %zu has %zu bytes; 1 to %d without NUL are possible", i,
                           m->stop[i].len, NK_STOP_BYTES_MAX);
        memcpy(texts[i], m->stop[i].data, m->stop[i].len);
        texts[i][m->stop[i].len] = '\0';
        stops[i] = texts[i];
    }
    rc = nk__wire_sampling(&sampling, bias, m->sampling, err);
    if (!rc)
        rc = nk_sampler_new(&s->sampler, nk_vocab_llama(vocab), &sampling, stage_info(s->w)->n_ctx,
                            err);
    if (!rc)
        rc = nk_detok_new(&s->detok, vocab, stops, m->n_stop, s->special, err);
    return rc;
}

static int on_open(session *s, const Nakshatra__V1__Open *m, struct nk_bytes bytes,
                   struct nk_error *err)
{
    nk_worker *w = s->w;
    const struct nk_stage_info *info = stage_info(w);
    int rc;

    if (s->state != NK_SESSION_NEW || s->opened_ns)
        return nk_fail(err, NK_E_INVALID, "unexpected_message", "Open was sent twice");
    if (w->state != NK_WORKER_SERVING)
        return nk_fail(
            err, NK_E_UNAVAILABLE, w->state == NK_WORKER_DRAINING ? "draining" : "asleep",
            w->state == NK_WORKER_DRAINING ? "the worker is shutting down and takes no new sessions"
                                           : "the worker is asleep; rpc Wake wakes it");
    if (m->session.len != NK_SESSION_ID_BYTES)
        return nk_fail(err, NK_E_INVALID, "bad_session", "a session id of %zu bytes; %d are right",
                       m->session.len, NK_SESSION_ID_BYTES);
    rc = check_route(w, m, err);
    if (rc)
        return rc;
    s->opened_ns = nk_now_ns();
    for (int i = 0; i < NK_SESSION_STATES; i++)
        for (session *other = w->sessions[i].head; other; other = other->next)
            if (other != s && other->opened_ns &&
                memcmp(other->id, m->session.data, NK_SESSION_ID_BYTES) == 0)
                return nk_fail(
                    err, NK_E_EXISTS, "session_exists",
                    "a session with this id is open or kept already; ids are random and used once");
    memcpy(s->id, m->session.data, NK_SESSION_ID_BYTES);
    snprintf(s->name, sizeof s->name, "%02x%02x%02x%02x", s->id[0], s->id[1], s->id[2], s->id[3]);
    s->n_route = (int)m->n_route;
    s->stage_idx = (int)m->stage_idx;
    s->is_first = m->stage_idx == 0;
    s->is_last = m->stage_idx == m->n_route - 1;
    s->deterministic = m->deterministic || w->opts.deterministic;
    s->reuse = m->reuse && !s->deterministic;
    s->special = m->special;
    s->chunk = w->opts.chunk;
    if (m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_UNSPECIFIED &&
        m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_F32 && m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_F16)
        return nk_fail(err, NK_E_INVALID, "bad_dtype",
                       "dtype %d is unknown; f32 (1) and f16 (2) are possible", (int)m->dtype);
    s->f16 = m->dtype == NAKSHATRA__V1__DTYPE__DTYPE_F16;
    if (m->n_logprobs < 0 || m->n_logprobs > NK_LOGPROBS_MAX + 1)
        return nk_fail(err, NK_E_INVALID, "bad_request", "n_logprobs is %d; 0 to %d are possible",
                       m->n_logprobs, NK_LOGPROBS_MAX + 1);
    s->n_logprobs = m->n_logprobs - 1;
    rc = parse_limits(s, m, err);
    if (rc)
        return rc;
    if (s->is_first && !ids_valid(m->prompt_ids, m->n_prompt_ids, info->n_vocab, err))
        return err->code;
    if (!s->is_last) {
        s->next_address = strdup(m->route[m->stage_idx + 1]->address);
        if (!s->next_address)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    if (m->resume_session.len == NK_SESSION_ID_BYTES && !s->is_first) {
        memcpy(s->resume_id, m->resume_session.data, NK_SESSION_ID_BYTES);
        s->n_resume = (int)(m->resume_tokens < m->n_tokens_max ? m->resume_tokens : 0);
        s->resume_hash = m->resume_hash;
    }
    s->ids = calloc((size_t)s->n_tokens_max + 1, sizeof *s->ids);
    if (s->is_first)
        s->prompt = malloc((size_t)s->n_prompt * sizeof *s->prompt);
    if (!s->is_last)
        s->open_bytes = malloc(bytes.size);
    if (!s->ids || (s->is_first && !s->prompt) || (!s->is_last && !s->open_bytes))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a session of %d tokens",
                       s->n_tokens_max);
    if (s->is_first)
        memcpy(s->prompt, m->prompt_ids, (size_t)s->n_prompt * sizeof *s->prompt);
    if (!s->is_last) {
        memcpy(s->open_bytes, bytes.data, bytes.size);
        s->open_size = bytes.size;
    }
    if (s->is_last) {
        rc = make_last_stage(s, m, err);
        if (rc)
            return rc;
    }
    w->n_opened++;
    set_state(s, NK_SESSION_WAITING);
    try_admit(w);
    if (s->closed || s->state != NK_SESSION_WAITING)
        return 0;
    if (s->is_first && w->sessions[NK_SESSION_WAITING].n > w->opts.queue_max)
        return nk_fail(err, NK_E_EXHAUSTED, "queue_full",
                       "%d sessions wait for room already; try again later",
                       w->sessions[NK_SESSION_WAITING].n - 1);
    return 0;
}

/* ---- admission ---- */

/* FNV-1a over the ids' bytes, little-endian (http://www.isthe.com/chongo/tech/comp/fnv/): both ends of a resumed session
 * must mean the same tokens. */
static uint64_t ids_hash(const int32_t *ids, int n)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (int i = 0; i < n; i++)
        for (int b = 0; b < 4; b++)
            h = (h ^ ((uint32_t)ids[i] >> (8 * b) & 0xff)) * 0x100000001b3u;
    return h;
}

static int common_prefix(const session *k, const session *s)
{
    int n = 0, max = k->n_ids < s->n_prompt ? k->n_ids : s->n_prompt;

    while (n < max && k->ids[n] == s->prompt[n])
        n++;
    return n;
}

/* The kept session that s should continue, or NULL; *n_tokens: how many of its tokens are of use. */
static session *find_kept(const session *s, int *n_tokens)
{
    session *best = NULL;
    bool can_rollback = stage_info(s->w)->can_rollback;

    *n_tokens = 0;
    if (!s->reuse && s->is_first)
        return NULL;
    for (session *k = s->w->sessions[NK_SESSION_KEPT].head; k; k = k->next) {
        int n;

        if (!s->is_first) {
            if (s->n_resume && memcmp(k->id, s->resume_id, NK_SESSION_ID_BYTES) == 0 &&
                k->n_ids >= s->n_resume && (can_rollback || k->n_ids == s->n_resume) &&
                ids_hash(k->ids, s->n_resume) == s->resume_hash) {
                *n_tokens = s->n_resume;
                return k;
            }
            continue;
        }
        if (k->is_last != s->is_last || k->f16 != s->f16)
            continue;
        n = common_prefix(k, s);
        if (n == s->n_prompt) /* the last token's logits are needed: its row is computed again */
            n--;
        if (!can_rollback && n != k->n_ids)
            continue;
        if (n > *n_tokens) {
            *n_tokens = n;
            best = k;
        }
    }
    return best;
}

static bool copy_seq(nk_worker *w, int from, int to)
{
    struct nk_job *j;

    if (nk__engine_job(w->engine, &j, 0, false, NULL))
        return false;
    j->kind = NK_JOB_COPY;
    j->seq = from;
    j->seq_to = to;
    nk__engine_submit(w->engine, j);
    return true;
}

/* Room for s, by evicting kept sessions if need be. A kept session with a common beginning is taken over when that is
 * most of it; else its beginning is copied (cells of a unified KV cache are shared, not copied) and it stays kept. */
static bool make_room(session *s)
{
    nk_worker *w = s->w;
    int n_ctx = stage_info(w)->n_ctx, n_resume;
    session *k;

    /* What runs yields to nobody; then kept sessions are not evicted in vain. */
    if (w->kv_reserved + s->n_tokens_max > n_ctx ||
        (w->n_seq_free == 0 && !w->sessions[NK_SESSION_KEPT].head))
        return false;
    k = find_kept(s, &n_resume);
    while (w->kv_reserved + s->n_tokens_max + w->kv_kept - (k ? k->n_ids : 0) > n_ctx)
        if (!evict_one(w, k))
            return false;
    if (k && n_resume * 2 < k->n_ids && w->kv_reserved + s->n_tokens_max + w->kv_kept <= n_ctx &&
        (s->seq = take_free_seq(w)) >= 0 && !copy_seq(w, k->seq, s->seq)) {
        nk__session_return_seq(w, s->seq); /* no memory for the job: from the beginning, then */
        s->seq = -1;
        k = NULL;
        n_resume = 0;
    }
    if (k) {
        if (s->is_first)
            memcpy(s->resume_id, k->id, NK_SESSION_ID_BYTES);
        memcpy(s->ids, k->ids, (size_t)n_resume * sizeof *s->ids);
    }
    if (k && s->seq < 0) {
        s->seq = k->seq;
        forget_kept(k, false);
    } else if (s->seq < 0) {
        s->seq = take_free_seq(w);
        if (s->seq < 0) {
            if (!evict_one(w, NULL))
                return false;
            s->seq = take_free_seq(w);
        }
    }
    s->n_resume = n_resume;
    s->n_ids = n_resume;
    w->kv_reserved += s->n_tokens_max;
    s->reserved = true;
    return true;
}

static void try_admit(nk_worker *w)
{
    session *s;

    if (w->admitting) /* called again from below: the loop goes on anyway */
        return;
    w->admitting = true;
    while ((s = w->sessions[NK_SESSION_WAITING].head) && w->state == NK_WORKER_SERVING &&
           make_room(s)) {
        struct nk_error err;

        set_state(s, NK_SESSION_OPENING);
        if (begin(s, &err))
            session_fail(s, &err);
    }
    w->admitting = false;
}

/* ---- opening the next stage ---- */

static const struct nk_call_handlers down_handlers;

static nk_channel *peer_channel(nk_worker *w, const char *address, struct nk_error *err)
{
    for (int i = 0; i < w->n_peers; i++) {
        struct nk_peer *p = &w->peers[i];

        if (strcmp(p->address, address) != 0)
            continue;
        if (!p->channel &&
            nk_channel_open(&p->channel, w->net, address, w->ca ? &w->opts.credentials : NULL, err))
            return NULL;
        return p->channel;
    }
    nk_fail(err, NK_E_DENIED, "peer_not_allowed",
            "the route names %s, which this worker was not told of (--allow-peer or --cluster)",
            address);
    return NULL;
}

static int send_open(session *s, struct nk_error *err)
{
    nk_worker *w = s->w;
    nk_channel *channel = peer_channel(w, s->next_address, err);
    Nakshatra__V1__InferenceRequest *req;
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    nk_arena *arena;
    int rc;

    if (!channel)
        return err->code;
    arena = nk_arena_new(2 * NK_RPC_MESSAGE_BYTES_MAX);
    if (!arena)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    req = nakshatra__v1__inference_request__unpack(nk_arena_allocator(arena), s->open_size,
                                                   s->open_bytes);
    if (!req || req->kind_case != NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory to open the next stage");
        goto out;
    }
    if (req->open->limits)
        limits = *req->open->limits;
    limits.n_predict = (uint32_t)s->n_predict;
    req->open->limits = &limits;
    req->open->stage_idx++;
    req->open->n_prompt_ids = 0;
    req->open->n_tokens_max = (uint32_t)s->n_tokens_max;
    req->open->reuse = s->reuse;
    req->open->resume_session.data = s->resume_id;
    req->open->resume_session.len = s->n_resume ? NK_SESSION_ID_BYTES : 0;
    req->open->resume_tokens = (uint32_t)s->n_resume;
    req->open->resume_hash = ids_hash(s->ids, s->n_resume);
    rc = nk_call_start(&s->down, channel, "/nakshatra.v1.Nakshatra/Inference", 0, &down_handlers, s,
                       err);
    if (rc)
        goto out;
    session_ref(s); /* the call's */
    w->n_streams++;
    s->down_ref = nk_call_ref(s->down);
    rc = nk_call_send_pb(s->down, (ProtobufCMessage *)req, err);
out:
    nk_arena_free(arena);
    free(s->open_bytes);
    s->open_bytes = NULL;
    return rc;
}

/* Tells the opener, and begins. theirs: what the next stage said (NULL on the last). */
static int opened(session *s, const Nakshatra__V1__Opened *theirs, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Opened msg = NAKSHATRA__V1__OPENED__INIT;
    Nakshatra__V1__StageInfo own = NAKSHATRA__V1__STAGE_INFO__INIT, *stages[NK_ROUTE_MAX + 1];
    size_t n = 0;

    own.worker_id = s->w->id;
    own.model_sha256 = (char *)(uintptr_t)info->model_sha256;
    own.layer_begin = (uint32_t)info->layer_begin;
    own.layer_end = (uint32_t)info->layer_end;
    own.layer_count = (uint32_t)info->layer_count;
    own.n_embd = (uint32_t)info->n_embd;
    own.n_ctx = (uint32_t)info->n_ctx;
    own.llama_version = (char *)(uintptr_t)info->llama_version;
    own.n_batch = (uint32_t)info->n_batch;
    stages[n++] = &own;
    for (size_t i = 0; theirs && i < theirs->n_stages && n < NK_ROUTE_MAX; i++)
        stages[n++] = theirs->stages[i];
    if (theirs && theirs->resume_tokens < (uint32_t)s->n_resume)
        s->n_resume = s->n_ids = (int)theirs->resume_tokens;
    msg.resume_tokens = (uint32_t)s->n_resume;
    msg.stages = stages;
    msg.n_stages = n;
    msg.seed = s->is_last ? nk_sampler_seed(s->sampler) : theirs->seed;
    if (s->is_first) {
        s->n_reused = s->n_submitted = s->n_resume;
        s->w->n_tokens_reused += (uint64_t)s->n_reused;
        msg.n_prompt = (uint32_t)s->n_prompt;
        msg.n_reused = (uint32_t)s->n_reused;
    }
    set_state(s, NK_SESSION_RUNNING);
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED;
    reply.opened = &msg;
    if (s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
    return s->is_first ? pump_prompt(s, err) : 0;
}

/* The session has its sequence: goes on to the next stage, or is open when this is the last. */
static int begin(session *s, struct nk_error *err)
{
    return s->is_last ? opened(s, NULL, err) : send_open(s, err);
}

/* ---- what the next stage says ---- */

static int on_opened(session *s, const Nakshatra__V1__Opened *m, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);
    int begin_layer = info->layer_end;

    if (s->state != NK_SESSION_OPENING)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer", "Opened came twice");
    if ((int)m->n_stages != s->n_route - s->stage_idx - 1)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer", "%zu stages answered where %d were asked",
                       m->n_stages, s->n_route - s->stage_idx - 1);
    for (size_t i = 0; i < m->n_stages; i++) {
        const Nakshatra__V1__StageInfo *t = m->stages[i];

        if (strcmp(t->model_sha256, info->model_sha256) != 0)
            return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                           "worker %s has model %.12s..., worker %s has %.12s...", s->w->id,
                           info->model_sha256, t->worker_id, t->model_sha256);
        if (t->n_embd != (uint32_t)info->n_embd)
            return nk_fail(err, NK_E_PRECONDITION, "width_mismatch",
                           "worker %s has rows of %d, worker %s of %u", s->w->id, info->n_embd,
                           t->worker_id, t->n_embd);
        if (t->layer_begin != (uint32_t)begin_layer ||
            t->layer_count != (uint32_t)info->layer_count)
            return nk_fail(err, NK_E_PRECONDITION, "range_mismatch",
                           "worker %s has layers %u-%u of %u where %d-... of %d is next",
                           t->worker_id, t->layer_begin, t->layer_end, t->layer_count, begin_layer,
                           info->layer_count);
        begin_layer = (int)t->layer_end;
        if (t->n_batch && t->n_batch < (uint32_t)s->chunk)
            s->chunk = (int)t->n_batch;
    }
    if (begin_layer != info->layer_count)
        return nk_fail(err, NK_E_PRECONDITION, "range_mismatch", "the stages end at layer %d of %d",
                       begin_layer, info->layer_count);
    return opened(s, m, err);
}

/* Takes the answered step out of the window and counts the time on the wire. */
static int answered(session *s, uint64_t step, uint64_t spent_us, struct nk_step_out *out,
                    struct nk_error *err)
{
    uint64_t now = nk_now_ns(), sent = atomic_load(&s->sent_ns[step % NK_STEPS_OUT_MAX]);
    int rc = window_pop(s, step, out, err);

    if (rc)
        return rc;
    if (sent && now - sent > spent_us * 1000)
        s->wire_ns += now - sent - spent_us * 1000;
    return 0;
}

static int on_down(session *s, Nakshatra__V1__InferenceReply *m, struct nk_bytes bytes,
                   struct nk_error *err)
{
    struct nk_step_out out;
    uint64_t now = nk_now_ns(), sent;
    int rc;

    switch (m->kind_case) {
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED:
        return on_opened(s, m->opened, err);
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN:
        if (s->state != NK_SESSION_RUNNING)
            break;
        if (!s->is_first) {
            rc = answered(s, m->token->step, m->token->spent_us, &out, err);
            if (rc)
                return rc;
            m->token->spent_us = us(now - out.received_ns);
            return s->up ? nk_call_send_pb(s->up, (ProtobufCMessage *)m, err) : 0;
        }
        sent = atomic_load(&s->sent_ns[m->token->step % NK_STEPS_OUT_MAX]);
        if (sent && now - sent > m->token->spent_us * 1000)
            s->wire_ns += now - sent - m->token->spent_us * 1000;
        /* The client's copy goes first only when it is the last one: the next step waits for nobody. */
        if (m->token->finish && s->up)
            nk_call_send(s->up, bytes.data, bytes.size, NULL);
        rc = drive(s, m->token->step, m->token->id, (int)m->token->finish, err);
        if (!rc && !m->token->finish && s->up)
            rc = nk_call_send(s->up, bytes.data, bytes.size, err);
        return rc;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE:
        if (s->state != NK_SESSION_RUNNING)
            break;
        if (s->is_first) {
            sent = atomic_load(&s->sent_ns[m->step_done->step % NK_STEPS_OUT_MAX]);
            if (sent && now - sent > m->step_done->spent_us * 1000)
                s->wire_ns += now - sent - m->step_done->spent_us * 1000;
            return drive_chunk_done(s, m->step_done->step, err);
        }
        rc = answered(s, m->step_done->step, m->step_done->spent_us, &out, err);
        if (rc)
            return rc;
        m->step_done->spent_us = us(now - out.received_ns);
        return s->up ? nk_call_send_pb(s->up, (ProtobufCMessage *)m, err) : 0;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_DONE:
        if (s->state != NK_SESSION_FINISHING)
            break;
        send_done(s, m->done);
        session_retire(s, s->is_first ? (s->reuse ? s->n_ids : 0) : s->keep_tokens);
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
    s->heard_ns = nk_now_ns();
    nk_arena_reset(s->w->arena);
    m = nakshatra__v1__inference_reply__unpack(nk_arena_allocator(s->w->arena), bytes.size,
                                               bytes.data);
    if (!m)
        rc = nk_fail(&err, NK_E_INTERNAL, "bad_peer",
                     "the next stage sent %zu bytes that are no message", bytes.size);
    else
        rc = on_down(s, m, bytes, &err);
    if (rc && rc != NK_E_UNAVAILABLE)
        session_fail(s, &err);
}

static void down_end(nk_call *c, void *user, const struct nk_error *status)
{
    session *s = user;

    (void)c;
    s->w->n_streams--;
    s->down = NULL;
    if (!s->closed) {
        struct nk_error err;

        if (!status) {
            nk_fail(&err, NK_E_INTERNAL, "bad_peer",
                    "the stage ended the session before it was done");
            status = &err;
        }
        fail_next(s, status);
    }
    nk__session_unref(s);
}

static const struct nk_call_handlers down_handlers = { .message = down_message, .end = down_end };

/* ---- what the opener says ---- */

static void up_message(nk_call *c, void *user, struct nk_bytes bytes)
{
    session *s = user;
    Nakshatra__V1__InferenceRequest *m;
    struct nk_error err;
    int rc;

    (void)c;
    if (s->closed)
        return;
    s->heard_ns = nk_now_ns();
    nk_arena_reset(s->w->arena);
    m = nakshatra__v1__inference_request__unpack(nk_arena_allocator(s->w->arena), bytes.size,
                                                 bytes.data);
    if (!m) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "%zu bytes are no InferenceRequest",
                     bytes.size);
    } else {
        switch (m->kind_case) {
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN:
            rc = on_open(s, m->open, bytes, &err);
            break;
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP:
            rc = on_step(s, m->step, &err);
            break;
        case NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH:
            rc = on_finish(s, m->finish, &err);
            break;
        default:
            rc = nk_fail(&err, NK_E_INVALID, "bad_message",
                         "the message is neither Open nor Step nor Finish");
        }
    }
    if (rc)
        session_fail(s, &err);
}

static void up_end(nk_call *c, void *user, const struct nk_error *status)
{
    session *s = user;

    (void)c;
    s->w->n_streams--;
    s->up = NULL;
    if (!s->closed) {
        nk_log(NK_LOG_WORKER, NK_LOG_INFO, "session=%s event=cancelled tokens=%d reason=%s",
               s->name, s->n_ids, status ? status->reason : "ok");
        session_close(s);
    }
    nk__session_unref(s);
}

static const struct nk_call_handlers up_handlers = { .message = up_message, .end = up_end };

static void tick(void *worker);

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
    s->heard_ns = s->state_ns = nk_now_ns();
    nk_buf_init(&s->text, 1 << 20);
    snprintf(s->name, sizeof s->name, "-");
    s->up = c;
    s->up_ref = nk_call_ref(c);
    list_push(&w->sessions[NK_SESSION_NEW], s);
    w->n_streams++;
    pthread_mutex_lock(&w->mutex);
    w->idle = false;
    pthread_mutex_unlock(&w->mutex);
    nk_call_accept(c, &up_handlers, s);
    if (!w->tick && !w->no_tick)
        w->tick = nk_timer_start(w->net, TICK_MS, tick, w);
}

/* ---- deadlines ---- */

/* A later stage with less room than those before it, or where a cancelled session has not ended yet: a wait that stays
 * well within the patience of the stages before. */
static bool waited_for_room(const session *s, uint64_t now, struct nk_error *err)
{
    const struct nk_stage_info *info = stage_info(s->w);

    if (now - s->state_ns <= s->stall_ms * 1000000ull / 4)
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
    uint64_t since = s->state_ns, ms = 0;

    if (s->deadline_ns && now > s->deadline_ns) {
        nk_fail(err, NK_E_DEADLINE, "deadline",
                "the generation's deadline has passed after %d tokens", s->n_generated);
        return true;
    }
    switch (s->state) {
    case NK_SESSION_NEW:
        if (now - since <= NK_OPEN_DEADLINE_MS * 1000000ull)
            return false;
        nk_fail(err, NK_E_DEADLINE, "no_open", "no Open came within %d ms", NK_OPEN_DEADLINE_MS);
        return true;
    case NK_SESSION_WAITING:
        if (!s->is_first)
            return waited_for_room(s, now, err);
        if (now - since <= s->w->opts.queue_ms * 1000000ull)
            return false;
        nk_fail(err, NK_E_EXHAUSTED, "queue_timeout", "no room came free within %u ms",
                s->w->opts.queue_ms);
        return true;
    case NK_SESSION_OPENING:
    case NK_SESSION_FINISHING:
        break;
    case NK_SESSION_RUNNING:
        if (n_steps_under_way(s) == 0) {
            if (s->is_first || now < s->heard_ns ||
                now - s->heard_ns <= s->w->opts.idle_ms * 1000000ull)
                return false;
            nk_fail(err, NK_E_DEADLINE, "idle", "no step came for %u ms", s->w->opts.idle_ms);
            return true;
        }
        if (s->is_last)
            return false;
        /* The oldest unanswered step counts from when its rows went out, so a busy queue here is nobody's stall. */
        since = atomic_load(&s->sent_ns[s->steps_out[0].step % NK_STEPS_OUT_MAX]);
        if (!since)
            return false;
        break;
    case NK_SESSION_KEPT:
    case NK_SESSION_STATES:
        return false;
    }
    if (s->is_last || now < since || now - since <= s->stall_ms * 1000000ull)
        return false;
    ms = (now - since) / 1000000;
    nk_fail(err, NK_E_DEADLINE, "stalled",
            "worker at %s has not answered for %" PRIu64 " ms (session %s, %s, token %d)",
            s->next_address, ms, s->name, state_name(s->state), s->n_ids);
    return true;
}

void nk__session_tick(nk_worker *w, uint64_t now)
{
    for (int i = 0; i < NK_SESSION_KEPT; i++) {
        for (session *s = w->sessions[i].head; s;) {
            struct nk_error err;

            if (!overdue(s, now, &err)) {
                s = s->next;
                continue;
            }
            if (strcmp(err.reason, "stalled") == 0)
                session_end(s, &err);
            else
                session_fail(s, &err);
            s = w->sessions[i].head; /* ending one may have moved or ended others */
        }
    }
}

static void tick(void *worker)
{
    nk_worker *w = worker;

    w->tick = NULL;
    nk__session_tick(w, nk_now_ns());
    if (nk__session_n_active(w) && !w->tick && !w->no_tick)
        w->tick = nk_timer_start(w->net, TICK_MS, tick, w);
}
