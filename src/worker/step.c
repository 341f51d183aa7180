/* Steps of a session, from its position to its answer. Everything here runs on the net thread.
 *
 * The first stage drives: it cuts the prompt into chunks, at most NK_WINDOW of them under way, and
 * starts the next step as soon as a token is back. The other stages answer steps. */
#include "worker/session_int.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"

typedef struct nk_session session;

/* ---- steps ---- */

/* Steps under way: those whose answer passes through this thread, or (last stage of several) those
 * that the compute thread has not answered. */
int nk__step_n_under_way(const session *s)
{
    return s->is_last && !s->is_first ? atomic_load(&s->shared.n_unanswered) : s->n_steps_out;
}

int nk__step_window_push(session *s, uint64_t step, struct nk_error *err)
{
    if (nk__step_n_under_way(s) == NK_STEPS_OUT_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "window_exceeded",
                       "step %" PRIu64 " came while %d steps are unanswered", step,
                       NK_STEPS_OUT_MAX);
    if (s->is_last && !s->is_first) {
        atomic_fetch_add(&s->shared.n_unanswered, 1);
        return 0;
    }
    s->steps_out[s->n_steps_out++] =
        (struct nk_step_out){ step, nk__worker_now_ns(s->w), s->n_submitted };
    atomic_store(&s->shared.sent_ns[step % NK_STEPS_OUT_MAX], 0);
    return 0;
}

/* Steps are answered in their order. */
int nk__step_window_pop(session *s, uint64_t step, struct nk_step_out *out, struct nk_error *err)
{
    if (!s->n_steps_out || s->steps_out[0].step != step)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                       "an answer to step %" PRIu64 " came, which was not waited for", step);
    *out = s->steps_out[0];
    s->n_steps_out--;
    memmove(s->steps_out, s->steps_out + 1, (size_t)s->n_steps_out * sizeof s->steps_out[0]);
    return 0;
}

void nk__step_send_step_done(session *s, uint64_t step, uint64_t spent_us)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone done = NAKSHATRA__V1__STEP_DONE__INIT;

    done.step = step;
    done.spent_us = spent_us;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    reply.step_done = &done;
    if (s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
}

/* A stage between others ran a step of a resumed session whose rows the next one has. */
static int through_here(session *s, uint64_t step, struct nk_error *err)
{
    struct nk_step_out out;
    int rc = nk__step_window_pop(s, step, &out, err);

    if (!rc)
        nk__step_send_step_done(s, step, nk__us(nk__worker_now_ns(s->w) - out.received_ns));
    return rc;
}

/* A step was run, or failed, and its result goes on from here. Takes the job. */
static void step_done(struct nk_compute_job *j)
{
    session *s = j->session;
    struct nk_error err;
    int rc = 0;

    if (!s->closed && j->rc) {
        nk__session_fail(s, &j->err);
    } else if (!s->closed && !s->is_first) {
        rc = through_here(s, j->step, &err);
        if (rc)
            nk__session_fail(s, &err);
    } else if (!s->closed) {
        rc = j->sched.sample ? nk__step_drive(s, j->step, j->sampled.id, j->finish, &err)
                             : nk__step_drive_chunk_done(s, j->step, &err);
        if (rc)
            nk__session_fail(s, &err);
    }
    nk__engine_job_free(s->w->engine, j);
}

/* Whether the state after these rows is kept: the first stage decides. */
static enum nk_checkpoint_kind checkpoint_of(const session *s, int pos, int n,
                                             const Nakshatra__V1__Step *msg)
{
    if (!msg)
        return nk__checkpoint_kind(pos, pos + n, s->n_prompt, s->chunk,
                                   s->w->checkpoints.limits.every);
    return msg->checkpoint > NK_CHECKPOINT_PROMPT ? NK_CHECKPOINT_REGULAR
                                                  : (enum nk_checkpoint_kind)msg->checkpoint;
}

/* Gives ids[pos .. pos + n) to the engine; with rows on a later stage. */
static int submit_step(session *s, uint64_t step, int pos, int n, bool sample,
                       const Nakshatra__V1__Step *msg, struct nk_error *err)
{
    struct nk_compute_job *j;
    int rc;

    rc = nk__step_window_push(s, step, err);
    if (rc)
        return rc;
    rc = nk__engine_job(s->w->engine, &j, n, !s->is_first, err);
    if (rc)
        return rc;
    if (!s->is_first) {
        rc = nk__wire_rows(j->rows, msg->rows, n, nk__stage_info(s->w)->n_embd, err);
        if (rc) {
            nk__engine_job_free(s->w->engine, j);
            return rc;
        }
        j->sched.group = msg->group;
        j->sched.group_size = msg->group_size;
    }
    if (s->checkpoints)
        j->checkpoint = checkpoint_of(s, pos, n, msg);
    memcpy(j->ids, s->ids + pos, (size_t)n * sizeof *j->ids);
    j->done = step_done;
    j->session = nk__session_ref(s);
    j->seq = s->seq;
    j->step = step;
    j->pos = pos;
    j->send_from = s->next_has <= pos ? 0 : s->next_has - pos < n ? s->next_has - pos : n;
    if (s->next_has < pos + n)
        s->next_has = pos + n;
    j->sched.sample = sample;
    j->sched.solo = s->deterministic;
    j->received_ns = nk__worker_now_ns(s->w);
    s->heard_ns = j->received_ns;
    nk_trace_event(s->w->trace, j->received_ns, "received", s->name, step, pos, n);
    nk__engine_submit(s->w->engine, j);
    return 0;
}

bool nk__step_ids_valid(const int32_t *ids, size_t n, int n_vocab, struct nk_error *err)
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
int nk__step_receive(session *s, const Nakshatra__V1__Step *m, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(s->w);

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
    if (!nk__step_ids_valid(m->ids, m->n_ids, info->n_vocab, err))
        return err ? err->code : NK_E_INVALID;
    if (nk__resume_has(s, (int)m->pos, m->ids, (int)m->n_ids)) {
        s->last_step = m->step;
        return nk__resume_relay(s, m->step, (int)m->pos, (int)m->n_ids, m->sample, err);
    }
    if (m->pos > (uint32_t)s->n_ids)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "gap", "position %u is past the session's %d tokens",
                       m->pos, s->n_ids);
    if (m->pos + m->n_ids > (size_t)s->n_tokens_max)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                       "%zu rows at position %u are over the session's %d tokens", m->n_ids, m->pos,
                       s->n_tokens_max);
    if (s->next_has > (int)m->pos && m->pos < (uint32_t)s->n_ids)
        s->next_has = (int)m->pos; /* what is forgotten here is to be forgotten there */
    if (m->pos < (uint32_t)s->n_ids) {
        if (nk__step_n_under_way(s))
            return nk_fail(err, NK_E_PRECONDITION, "steps_in_flight",
                           "position %u goes back behind token %d while steps are unanswered",
                           m->pos, s->n_ids);
        if (!info->can_rollback && m->pos && !nk__checkpoints_pin(s->checkpoints, (int)m->pos))
            return nk_fail(err, NK_E_OUT_OF_RANGE, "no_rollback",
                           "a recurrent model cannot go back to position %u, of which this worker "
                           "has no checkpoint",
                           m->pos);
    }
    s->last_step = m->step;
    memcpy(s->ids + m->pos, m->ids, m->n_ids * sizeof *m->ids);
    s->n_ids = (int)(m->pos + m->n_ids);
    return submit_step(s, m->step, (int)m->pos, (int)m->n_ids, m->sample, m, err);
}

/* First stage: how many of the ids that are fed go into the next step. In the shapes that they were
 * computed in: the prompt in chunks, and each token that was said alone. */
static int feed_rows(const session *s)
{
    int pos = s->n_submitted, n_feed = nk__session_n_feed(s), end = n_feed;

    if (s->resumed && s->exact)
        end = pos < s->n_prompt ? s->n_prompt : pos + 1;
    return end - pos < s->chunk ? end - pos : s->chunk;
}

/* First stage: the next chunks of the prompt, as far as the window allows. */
int nk__step_pump_prompt(session *s, struct nk_error *err)
{
    int n_feed = nk__session_n_feed(s);

    /* All of a resumed session is here already: only the token that follows is to be asked for. */
    if (s->resumed && s->n_submitted == n_feed && !s->n_steps_out)
        return nk__resume_relay(s, ++s->last_step, n_feed - 1, 1, true, err);
    while (s->n_submitted < n_feed && s->n_steps_out < NK_WINDOW) {
        int pos = s->n_submitted, n = feed_rows(s), rc;

        memcpy(s->ids + pos, s->feed + pos, (size_t)n * sizeof *s->ids);
        s->n_ids = s->n_submitted = pos + n;
        rc = submit_step(s, ++s->last_step, pos, n, s->n_submitted == n_feed, NULL, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- Done ---- */

/* Sends Done up: this stage's timing before those of the later stages (theirs: NULL on the
 * last). */
void nk__step_send_done(session *s, const Nakshatra__V1__Done *theirs)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Done done = NAKSHATRA__V1__DONE__INIT;
    Nakshatra__V1__StageTiming own = NAKSHATRA__V1__STAGE_TIMING__INIT, *stages[NK_ROUTE_MAX + 1];
    size_t n = 0;

    own.worker_id = s->w->id;
    own.compute_us = nk__us(atomic_load(&s->shared.compute_ns));
    own.queue_us = nk__us(atomic_load(&s->shared.queue_ns));
    own.wire_us = nk__us(s->wire_ns);
    own.runs = atomic_load(&s->shared.runs);
    stages[n++] = &own;
    for (size_t i = 0; theirs && i < theirs->n_stages && n < NK_ROUTE_MAX; i++)
        stages[n++] = theirs->stages[i];
    done.stages = stages;
    done.n_stages = n;
    done.stop_string.data = (uint8_t *)s->compute.stop;
    done.stop_string.len = s->compute.stop_size;
    if (theirs && theirs->stop_string.len)
        done.stop_string = theirs->stop_string;
    done.finish = s->finish;
    if (s->is_first) {
        done.n_prompt = (uint32_t)s->n_prompt;
        done.n_reused = (uint32_t)s->n_reused;
        done.n_generated = (uint32_t)s->n_generated;
        done.prefill_us = s->first_token_ns ? nk__us(s->first_token_ns - s->opened_ns) : 0;
        done.decode_us = nk__us(s->last_token_ns - s->first_token_ns);
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

    nk__session_set_decoding(s, false);
    nk__engine_leave_group(s->w->engine, s);
    if (s->is_last) {
        nk__step_send_done(s, NULL);
        nk__session_retire(s, s->reuse ? s->n_ids : 0);
        return;
    }
    msg.keep = s->reuse;
    msg.keep_tokens = (uint32_t)s->n_ids;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH;
    req.finish = &msg;
    nk__session_set_state(s, NK_SESSION_FINISHING);
    if (s->down) {
        nk_call_send_pb(s->down, (ProtobufCMessage *)&req, NULL);
        nk_call_send_done(s->down);
    }
}

/* A later stage is told that there will be no more steps. */
int nk__step_receive_finish(session *s, const Nakshatra__V1__Finish *m, struct nk_error *err)
{
    if (s->state != NK_SESSION_RUNNING || s->is_first || nk__step_n_under_way(s))
        return nk_fail(err, NK_E_INVALID, "unexpected_message",
                       "Finish was sent while the session was not idle");
    s->keep_tokens = m->keep && m->keep_tokens <= (uint32_t)s->n_ids ? (int)m->keep_tokens : 0;
    if (s->is_last) {
        nk__step_send_done(s, NULL);
        nk__session_retire(s, s->keep_tokens);
        return 0;
    }
    if (s->down) {
        Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
        Nakshatra__V1__Finish msg = NAKSHATRA__V1__FINISH__INIT;

        msg.keep = m->keep;
        msg.keep_tokens = m->keep_tokens;
        req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH;
        req.finish = &msg;
        nk__session_set_state(s, NK_SESSION_FINISHING);
        nk_call_send_pb(s->down, (ProtobufCMessage *)&req, NULL);
        nk_call_send_done(s->down);
    }
    return 0;
}

/* ---- the first stage drives ---- */

/* Every step but the prompt's chunks before its last asks for a token. */
static bool is_sampling_step(const session *s, uint64_t step)
{
    return step == s->last_step && s->n_submitted >= nk__session_n_feed(s);
}

/* A token came back for the outstanding step. */
int nk__step_drive(session *s, uint64_t step, int32_t id, int finish_reason, struct nk_error *err)
{
    struct nk_step_out out;
    uint64_t now = nk__worker_now_ns(s->w);
    int rc = nk__step_window_pop(s, step, &out, err), pos;

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
    pos = s->n_submitted;
    if (id < 0 || id >= nk__stage_info(s->w)->n_vocab || pos >= s->n_tokens_max)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                       "token id %d at position %d of %d is not possible", id, pos,
                       s->n_tokens_max);
    nk__session_set_decoding(s, true);
    s->n_submitted = pos + 1;
    if (nk__resume_has(s, pos, &id, 1))
        return nk__resume_relay(s, ++s->last_step, pos, 1, true, err);
    s->ids[pos] = id;
    s->n_ids = pos + 1;
    return submit_step(s, ++s->last_step, pos, 1, true, NULL, err);
}

/* A chunk of the prompt is through, which the client may want to know. Not one of what was said
 * before a loss. */
static void tell_progress(session *s, const struct nk_step_out *out)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone done = NAKSHATRA__V1__STEP_DONE__INIT;

    if (!s->progress || !s->up || out->end > s->n_prompt)
        return;
    done.step = out->step;
    done.spent_us = nk__us(nk__worker_now_ns(s->w) - out->received_ns);
    done.n_done = (uint32_t)out->end;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    reply.step_done = &done;
    nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
}

int nk__step_drive_chunk_done(session *s, uint64_t step, struct nk_error *err)
{
    struct nk_step_out out;
    int rc = nk__step_window_pop(s, step, &out, err);

    if (!rc && is_sampling_step(s, step))
        rc = nk_fail(err, NK_E_INTERNAL, "bad_peer",
                     "no token came for step %" PRIu64 ", which asked for one", step);
    if (rc)
        return rc;
    tell_progress(s, &out);
    return nk__step_pump_prompt(s, err);
}
