/* Going on after a loss: what a session does when a neighbour is gone, and how it is taken up again
 * (docs/recovery.md). Everything here runs on the net thread.
 *
 * A stage that loses the one behind it or the one before it holds the session: its calls end, all
 * else stays. The client opens the session again along a repaired route, with its ids and a higher
 * attempt. Each stage then says how far it has come, from the last one to the first, and before it
 * does so gives the next one the rows that that one lacks and this one's journal has. What the
 * journal has not is computed again, from rows that the stage before gives in the same way, or at
 * the first stage from the ids. So a lost stage's layers are computed again and no others. */
#include "worker/session_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum { TELL_MS = 100 }; /* between two reports of a replay */

typedef struct nk_session session;

/* ---- held ---- */

bool nk__resume_is_loss(const struct nk_error *status)
{
    /* What the transport says of a peer that is gone, what a stage says that gave its neighbour
     * up, and what a worker says that ends. Everything else is somebody's decision. */
    static const char *const reasons[] = { "peer_gone", "unreachable",   "stalled",
                                           "draining",  "shutting_down", "asleep" };

    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (!strcmp(status->reason, reasons[i]))
            return true;
    return false;
}

static void begin_adopter(session *s);

/* What was being run when the session came to be held is through. */
static void settled(struct nk_compute_job *j)
{
    session *h = j->settles;

    h->settled = true;
    if (h->state == NK_SESSION_HELD && h->seq >= 0) {
        h->n_ids = atomic_load(&h->shared.n_computed);
        if (h->adopter)
            begin_adopter(h->adopter);
    }
    nk__engine_job_free(h->w->engine, j);
}

static int settle(session *s, struct nk_error *err)
{
    struct nk_compute_job *j;
    int rc = nk__engine_job(s->w->engine, &j, 0, false, err);

    if (rc)
        return rc;
    j->kind = NK_COMPUTE_SETTLE;
    j->settles = nk__session_ref(s);
    j->done = settled;
    nk__engine_submit(s->w->engine, j);
    return 0;
}

void nk__resume_hold(session *s, const struct nk_error *status)
{
    nk_worker *w = s->w;
    char quoted[700];

    if (s->closed)
        return;
    /* First, so that nothing of it is run after what settles it. */
    nk__engine_drop(w->engine, s);
    if (!s->hold_ms || s->seq < 0 || w->state != NK_WORKER_SERVING || settle(s, NULL)) {
        nk__session_end(s, status);
        return;
    }
    nk_log(NK_LOG_WORKER, NK_LOG_WARN, "session=%s event=held tokens=%d ms=%u reason=%s msg=%s",
           s->name, s->n_ids, s->hold_ms, status->reason,
           nk_log_quote(quoted, sizeof quoted, status->msg));
    s->closed = true; /* its calls have no more say in it */
    s->replaying = false;
    nk__session_set_decoding(s, false);
    if (s->up)
        nk_call_finish(s->up, status);
    if (s->down) /* which without a Cancel is a loss to the next stage, too */
        nk_call_cancel(s->down);
    s->held_until_ns = nk__worker_now_ns(w) + s->hold_ms * 1000000ull;
    nk__session_set_state(s, NK_SESSION_HELD);
    nk__session_note_idle(w);
}

void nk__resume_leave(session *s)
{
    session *h = s->adopts;

    if (!h)
        return;
    s->adopts = NULL;
    h->adopter = NULL;
    nk__session_unref(h);
}

void nk__resume_forget(session *h)
{
    nk_worker *w = h->w;

    NK_ASSERT(h->state == NK_SESSION_HELD);
    if (h->adopter)
        nk__resume_leave(h->adopter);
    if (h->reserved)
        w->kv_reserved -= h->n_tokens_max;
    h->reserved = false;
    atomic_store(&h->dropped, true);
    nk__room_free_seq(w, h->seq);
    h->seq = -1;
    nk__session_list_remove(h);
    nk__session_unref(h);
    nk__room_admit(w);
}

static session *find_held(const nk_worker *w, const uint8_t *id)
{
    session *h;

    TAILQ_FOREACH(h, &w->sessions[NK_SESSION_HELD].head, link)
    {
        if (!memcmp(h->id, id, NK_SESSION_ID_BYTES))
            return h;
    }
    return NULL;
}

void nk__resume_forget_held(nk_worker *w, const uint8_t *id, uint32_t attempt)
{
    session *h = find_held(w, id);

    if (h && h->attempt <= attempt)
        nk__resume_forget(h);
}

void nk__resume_let_go(nk_worker *w, const Nakshatra__V1__Cancel *m)
{
    session *h = nk__session_find(w, m->session.data);
    struct nk_error err;

    if (!h || h->attempt > m->attempt || h->state == NK_SESSION_KEPT)
        return;
    nk_log(NK_LOG_WORKER, NK_LOG_INFO, "session=%s event=let_go tokens=%d", h->name, h->n_ids);
    if (h->state != NK_SESSION_HELD) {
        /* Its call is there still (it was not seen yet that the one before is lost), or it waits
         * for the one that is held. */
        nk_fail(&err, NK_E_CANCELLED, "cancelled", "nobody wants the session any more");
        nk__session_end(h, &err);
    }
    nk__resume_forget_held(w, m->session.data, m->attempt);
}

void nk__resume_tick(nk_worker *w, uint64_t now)
{
    session *h = TAILQ_FIRST(&w->sessions[NK_SESSION_HELD].head), *next;

    for (; h; h = next) {
        next = TAILQ_NEXT(h, link);
        if (h->adopter || now < h->held_until_ns)
            continue;
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "session=%s event=given_up tokens=%d ms=%u msg=\"nobody came to resume it\"",
               h->name, h->n_ids, h->hold_ms);
        nk__resume_forget(h);
        /* Which may have let others begin, and ended them. */
        next = TAILQ_FIRST(&w->sessions[NK_SESSION_HELD].head);
    }
    nk__room_admit(w); /* those that are held for long yield */
}

/* ---- taken up ---- */

/* Whether the tokens that h's last stage has chosen are those that s goes on from: its sampler
 * has accepted one more than was ever fed. And whether it can still say the one that s has not
 * got, where it has chosen that. */
static bool fits_choice(const session *s, const session *h)
{
    const struct nk_session_compute *c = &h->compute;
    int k = c->n_sampled;

    if (!h->is_last)
        return true;
    if (k > 0 && k <= s->n_said && s->feed[s->n_prompt + k - 1] != c->last_id)
        return false;
    return h->n_ids < nk__session_n_feed(s) ||
           c->saved[(unsigned)s->n_said % NK_TOKENS_SAVED].index == s->n_said;
}

/* Whether what h holds is a part of what s is to compute. */
static bool fits(const session *s, const session *h)
{
    int n_feed = nk__session_n_feed(s), n = h->n_ids < n_feed ? h->n_ids : n_feed;

    return fits_choice(s, h) && h->seq >= 0 && h->reserved && h->is_last == s->is_last &&
           h->f16 == s->f16 && h->n_tokens_max == s->n_tokens_max &&
           (!h->n_prompt || h->n_prompt == s->n_prompt) &&
           !memcmp(h->ids, s->feed, (size_t)n * sizeof *h->ids);
}

/* What h has becomes s's; h is gone. */
static void adopt(session *s, session *h)
{
    struct nk_session_compute compute = s->compute;
    nk__journal *journal = s->journal;
    nk__checkpoints *checkpoints = s->checkpoints;

    s->seq = h->seq;
    s->reserved = h->reserved;
    h->seq = -1;
    h->reserved = false;
    s->n_ids = s->n_held = h->n_ids;
    memcpy(s->ids, h->ids, (size_t)h->n_ids * sizeof *s->ids);
    s->compute = h->compute;
    h->compute = compute;
    s->journal = h->journal;
    h->journal = journal;
    s->checkpoints = h->checkpoints;
    h->checkpoints = checkpoints;
    atomic_store(&s->shared.compute_ns, atomic_load(&h->shared.compute_ns));
    atomic_store(&s->shared.queue_ns, atomic_load(&h->shared.queue_ns));
    atomic_store(&s->shared.runs, atomic_load(&h->shared.runs));
    atomic_store(&s->shared.n_computed, h->n_ids);
    s->wire_ns = h->wire_ns;
    s->opened_ns = h->opened_ns;
    s->first_token_ns = h->first_token_ns;
    s->last_token_ns = h->last_token_ns;
    s->n_reused = h->n_reused;
    nk__session_list_remove(h);
    nk__session_unref(h);
}

/* The held session that s waits for has come to rest. */
static void begin_adopter(session *s)
{
    session *h = nk__session_ref(s->adopts);
    struct nk_error err;

    nk__resume_leave(s);
    if (fits(s, h)) {
        adopt(s, h);
        nk__session_set_state(s, NK_SESSION_OPENING);
        if (nk__open_begin(s, &err))
            nk__session_fail(s, &err);
    } else {
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "session=%s event=forgotten tokens=%d msg=\"what was held does not fit\"", h->name,
               h->n_ids);
        nk__resume_forget(h); /* lets s begin as one of which nothing is here */
    }
    nk__session_unref(h);
}

void nk__resume_receive(session *s, session *h, bool forget)
{
    bool admitting = s->w->admitting;
    struct nk_error status;

    /* What ends here makes room; s, which takes a held session's, is not to be given any. */
    s->w->admitting = true;
    if (h && h->state != NK_SESSION_HELD) {
        /* Its call lives: the one behind it does not know yet that it is replaced. */
        nk_fail(&status, NK_E_ABORTED, "superseded",
                "the session was resumed by a call that came later");
        if (h->state == NK_SESSION_KEPT)
            nk__room_forget_kept(h, true);
        else if (h->state == NK_SESSION_RUNNING || (h->state == NK_SESSION_OPENING && h->resumed))
            nk__resume_hold(h, &status);
        else
            nk__session_end(h, &status);
    }
    h = find_held(s->w, s->id);
    if (h && h->adopter) {
        nk_fail(&status, NK_E_ABORTED, "superseded",
                "the session was resumed by a call that came later");
        nk__session_end(h->adopter, &status);
    }
    s->w->admitting = admitting;
    if (h && forget) {
        nk__resume_forget(h);
        h = NULL;
    }
    if (!h || s->closed)
        return;
    s->adopts = nk__session_ref(h);
    h->adopter = s;
    if (h->settled)
        begin_adopter(s);
}

/* ---- rows that the next stage lacks ---- */

static void tell_replay(session *s, uint64_t now)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Replaying msg = NAKSHATRA__V1__REPLAYING__INIT;

    if (s->replay_told_ns && now - s->replay_told_ns < TELL_MS * 1000000ull)
        return;
    s->replay_told_ns = now;
    msg.done = (uint32_t)(s->replay_at - s->replay_begin);
    msg.total = (uint32_t)(s->replay_end - s->replay_begin);
    msg.worker_id = s->replay_to;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_REPLAYING;
    reply.replaying = &msg;
    if (s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
}

/* Sends [pos, pos + n) to the next stage, with rows from the journal or, where that stage has them,
 * without. */
static int send_step(session *s, uint64_t step, int pos, int n, bool sample, bool with_rows,
                     struct nk_error *err)
{
    size_t width = (size_t)nk__stage_info(s->w)->n_embd, row_bytes = width * (s->f16 ? 2 : 4);
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Step msg = NAKSHATRA__V1__STEP__INIT;
    Nakshatra__V1__Rows rows = NAKSHATRA__V1__ROWS__INIT;
    struct nk_buf *b = &s->w->replay;
    char *where;
    uint64_t now = nk__worker_now_ns(s->w);
    int rc;

    if (with_rows) {
        nk_buf_reset(b);
        rc = nk_buf_reserve(b, (size_t)n * row_bytes, &where, err);
        if (!rc)
            rc = nk__journal_read(s->journal, pos, n, where, err);
        if (rc) /* not the end: it can all be computed again from the ids */
            return nk_fail(err, NK_E_PRECONDITION, "bad_resume",
                           "rows %d to %d cannot be read from the journal", pos, pos + n);
        rows.n_rows = (uint32_t)n;
        rows.width = (uint32_t)width;
        rows.dtype = s->f16 ? NAKSHATRA__V1__DTYPE__DTYPE_F16 : NAKSHATRA__V1__DTYPE__DTYPE_F32;
        rows.data.data = (uint8_t *)where;
        rows.data.len = (size_t)n * row_bytes;
        msg.rows = &rows;
    }
    rc = nk__step_window_push(s, step, err);
    if (rc)
        return rc;
    msg.step = step;
    msg.pos = (uint32_t)pos;
    msg.n_ids = (size_t)n;
    msg.ids = s->ids + pos;
    msg.sample = sample;
    msg.checkpoint = (uint32_t)nk__checkpoints_kind_at(s->checkpoints, pos + n);
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP;
    req.step = &msg;
    atomic_store(&s->shared.sent_ns[step % NK_STEPS_OUT_MAX], now);
    nk_trace_event(s->w->trace, now, "replayed", s->name, step, pos, n);
    rc = s->down ? nk_call_send_pb(s->down, (ProtobufCMessage *)&req, err) : 0;
    return rc == NK_E_UNAVAILABLE ? 0 : rc; /* its end comes, and says why */
}

/* In the shapes in which they were computed, or many at once. */
static int replay_rows(const session *s)
{
    int n = s->replay_end - s->replay_at, shape;

    if (s->exact && nk__journal_step_at(s->journal, s->replay_at, &shape, NULL) && shape < n)
        n = shape;
    return n < s->replay_rows ? n : s->replay_rows;
}

static int replay_through(session *s, struct nk_error *err)
{
    Nakshatra__V1__Opened *theirs;

    s->replaying = false;
    s->next_has = s->replay_end;
    nk_log(NK_LOG_WORKER, NK_LOG_INFO,
           "session=%s event=replayed from=%d to=%d worker=%s ms=%" PRIu64, s->name,
           s->replay_begin, s->replay_end, s->replay_to,
           (nk__worker_now_ns(s->w) - s->state_ns) / 1000000);
    nk_arena_reset(s->w->arena);
    theirs =
        nakshatra__v1__opened__unpack(nk_arena_allocator(s->w->arena), s->theirs_size, s->theirs);
    if (!theirs)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    return nk__open_opened(s, theirs, err);
}

static int replay_pump(session *s, struct nk_error *err)
{
    while (s->replay_at < s->replay_end && s->n_steps_out < NK_WINDOW) {
        int n = replay_rows(s), rc;

        rc = send_step(s, ++s->last_step, s->replay_at, n, false, true, err);
        if (rc)
            return rc;
        s->replay_at += n;
    }
    tell_replay(s, nk__worker_now_ns(s->w));
    return s->n_steps_out ? 0 : replay_through(s, err);
}

int nk__resume_replayed(session *s, uint64_t step, struct nk_error *err)
{
    struct nk_step_out out;
    int rc = nk__step_window_pop(s, step, &out, err);

    return rc ? rc : replay_pump(s, err);
}

/* Keeps what the next stage said until the replay is through. */
static int replay_begin(session *s, const Nakshatra__V1__Opened *theirs, int begin, int end,
                        struct nk_error *err)
{
    const Nakshatra__V1__StageInfo *next = theirs->stages[0];
    int most = nk__wire_rows_max(nk__stage_info(s->w)->n_embd);

    free(s->theirs);
    free(s->replay_to);
    s->theirs_size = nakshatra__v1__opened__get_packed_size(theirs);
    s->theirs = malloc(s->theirs_size + 1);
    s->replay_to = strdup(next->worker_id);
    if (!s->theirs || !s->replay_to)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    nakshatra__v1__opened__pack(theirs, s->theirs);
    s->replay_begin = s->replay_at = begin;
    s->replay_end = end;
    s->replay_rows = s->chunk; /* which every stage behind takes */
    if (s->replay_rows > most)
        s->replay_rows = most;
    s->replay_told_ns = 0;
    s->replaying = true;
    return replay_pump(s, err);
}

/* Where s begins to compute again what the next stage needs from `need` on. */
static int go_back(session *s, int need)
{
    int pos;

    if (nk__stage_info(s->w)->can_rollback)
        return need;
    pos = nk__checkpoints_floor(s->checkpoints, need);
    return nk__checkpoints_pin(s->checkpoints, pos) ? pos : 0;
}

int nk__resume_opened(session *s, const Nakshatra__V1__Opened *theirs, struct nk_error *err)
{
    int n_feed = nk__session_n_feed(s), need, end = s->n_ids < n_feed ? s->n_ids : n_feed;

    s->w->n_resumed++;
    if (theirs) {
        if (theirs->resume_tokens > (uint32_t)s->n_tokens_max || !theirs->n_stages)
            return nk_fail(err, NK_E_INTERNAL, "bad_peer",
                           "the next stage holds %u tokens of a session of %d",
                           theirs->resume_tokens, s->n_tokens_max);
        /* Behind what is fed it may hold what was never said: its rows are sent all the same. */
        need = (int)theirs->resume_tokens < n_feed ? (int)theirs->resume_tokens : n_feed;
        if (theirs->last_step > s->last_step)
            s->last_step = theirs->last_step;
        s->next_has = need;
        if (need < end && nk__journal_begin(s->journal) <= need &&
            nk__journal_end(s->journal) >= end)
            return replay_begin(s, theirs, need, end, err);
        if (need < end) { /* to be computed again, of rows from further up */
            s->n_ids = go_back(s, need);
            nk__journal_truncate(s->journal, s->n_ids);
        }
    }
    return nk__open_opened(s, theirs, err);
}

/* ---- steps of which nothing is to be computed ---- */

bool nk__resume_has(const session *s, int pos, const int32_t *ids, int n)
{
    int end;

    if (!s->resumed || pos < 0 || n < 1 || pos > s->n_ids || n > s->n_ids - pos ||
        nk__step_n_under_way(s) || memcmp(s->ids + pos, ids, (size_t)n * sizeof *ids) != 0)
        return false;
    end = pos + n;
    return s->is_last || s->next_has >= end ||
           (nk__journal_begin(s->journal) <= pos && nk__journal_end(s->journal) >= end);
}

/* Last stage: the token at this index, which was sampled before. */
static int say_again(session *s, uint64_t step, int index, struct nk_error *err)
{
    const struct nk_saved_token *t = &s->compute.saved[(unsigned)index % NK_TOKENS_SAVED];
    Nakshatra__V1__InferenceReply *reply = NULL;
    int rc = 0;

    if (index >= 0 && t->index == index)
        reply = nakshatra__v1__inference_reply__unpack(
            nk_arena_allocator(s->w->arena), t->message.size, (const uint8_t *)t->message.data);
    if (!reply || reply->kind_case != NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN)
        return nk_fail(err, NK_E_PRECONDITION, "bad_resume",
                       "token %d was sampled here, and cannot be said again", index);
    reply->token->step = step;
    reply->token->spent_us = 0;
    if (s->is_first)
        rc = nk__step_window_push(s, step, err);
    if (!rc && s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)reply, NULL);
    if (!rc && s->is_first)
        rc = nk__step_drive(s, step, reply->token->id, (int)reply->token->finish, err);
    return rc;
}

int nk__resume_relay(session *s, uint64_t step, int pos, int n, bool sample, struct nk_error *err)
{
    bool with_rows = s->next_has < pos + n;
    int rc;

    if (s->is_last && sample)
        return say_again(s, step, pos + n - s->n_prompt, err);
    if (!sample && (s->is_last || !with_rows)) {
        nk__step_send_step_done(s, step, 0);
        return 0;
    }
    rc = send_step(s, step, pos, n, sample, with_rows, err);
    if (!rc && with_rows)
        s->next_has = pos + n;
    return rc;
}
