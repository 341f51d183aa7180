#include "worker/answer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "rpc/rows.h"

enum {
    TOKEN_TEXT_MAX = 1 << 20,
    PROMPT_PROBS_MAX = 64, /* of one message: what its reader unpacks is bounded */
};

typedef struct nk_answering answering;
typedef struct nk_compute_job job;

int nk__answer_init(answering *a, struct nk_clock *clock, struct nk_trace *trace,
                    const struct nk_stage_info *info, struct nk_error *err)
{
    a->clock = clock;
    a->trace = trace;
    a->info = info;
    nk_buf_init(&a->pieces, TOKEN_TEXT_MAX);
    if (info->is_last)
        return 0;
    a->f16 = calloc((size_t)info->n_batch * (size_t)info->n_embd, sizeof *a->f16);
    return a->f16 ? 0
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %d rows on their way",
                            info->n_batch);
}

void nk__answer_release(answering *a)
{
    free(a->f16);
    nk_buf_release(&a->pieces);
}

/* ---- to the next stage ---- */

/* And into the session's journal. *back as in nk__answer_step. */
static int send_rows(answering *a, const job *j, const float *rows, bool *back,
                     struct nk_error *err)
{
    struct nk_session *s = j->session;
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Step step = NAKSHATRA__V1__STEP__INIT;
    Nakshatra__V1__Rows r = NAKSHATRA__V1__ROWS__INIT;
    int from = j->send_from < j->sched.n ? j->send_from : 0, n = j->sched.n - from;
    size_t n_floats = (size_t)j->sched.n * (size_t)a->info->n_embd;
    size_t skip = (size_t)from * (size_t)a->info->n_embd;
    uint64_t now;
    int rc;

    r.n_rows = (uint32_t)n;
    r.width = (uint32_t)a->info->n_embd;
    if (s->f16) {
        nk_f16_from_f32(a->f16, rows, n_floats);
        r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F16;
        nk__journal_append(s->journal, j->pos, j->sched.n, a->f16);
        r.data.data = (uint8_t *)(a->f16 + skip);
        r.data.len = (n_floats - skip) * 2;
    } else {
        r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
        nk__journal_append(s->journal, j->pos, j->sched.n, rows);
        r.data.data = (uint8_t *)(uintptr_t)(rows + skip);
        r.data.len = (n_floats - skip) * 4;
    }
    if (j->send_from == j->sched.n && !j->sched.sample) {
        *back = true; /* the next stage has all of it */
        return 0;
    }
    step.step = j->step;
    step.pos = (uint32_t)(j->pos + from);
    step.n_ids = (size_t)n;
    step.ids = j->ids + from;
    step.rows = j->send_from == j->sched.n ? NULL : &r;
    step.sample = j->sched.sample;
    step.checkpoint = (uint32_t)j->checkpoint;
    step.group = j->sched.group;
    step.group_size = j->sched.group_size;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP;
    req.step = &step;
    now = nk_clock_now_ns(a->clock);
    atomic_store(&s->shared.sent_ns[j->step % NK_STEPS_OUT_MAX], now);
    rc = nk_call_send_pb(s->down_ref, (ProtobufCMessage *)&req, err);
    nk_trace_event(a->trace, now, "sent", s->name, j->step, j->pos, j->sched.n);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* ---- to whoever opened the session ---- */

static int send_step_done(answering *a, const job *j, struct nk_error *err)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone done = NAKSHATRA__V1__STEP_DONE__INIT;
    int rc;

    done.step = j->step;
    done.spent_us = (nk_clock_now_ns(a->clock) - j->received_ns) / 1000;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    reply.step_done = &done;
    rc = nk_call_send_pb(j->session->up_ref, (ProtobufCMessage *)&reply, err);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* The bytes of a token, for log-probabilities; empty for one that has none. */
static ProtobufCBinaryData piece(answering *a, int32_t id, size_t *offset)
{
    ProtobufCBinaryData out = { 0, NULL };

    *offset = a->pieces.size;
    if (nk_vocab_piece(a->vocab, id, true, &a->pieces, NULL) == 0)
        out.len = a->pieces.size - *offset;
    return out;
}

/* Keeps a token, to say it again where it gets lost. */
static int save_token(struct nk_session_compute *c, int index,
                      const Nakshatra__V1__InferenceReply *reply, struct nk_error *err)
{
    struct nk_saved_token *t = &c->saved[(unsigned)index % NK_TOKENS_SAVED];
    size_t size = nakshatra__v1__inference_reply__get_packed_size(reply);
    char *where;
    int rc;

    t->index = -1;
    nk_buf_reset(&t->message);
    rc = nk_buf_reserve(&t->message, size, &where, err);
    if (rc)
        return rc;
    nk_buf_commit(&t->message, nakshatra__v1__inference_reply__pack(reply, (uint8_t *)where));
    t->index = index;
    return 0;
}

/* Sends the sampled token and its text. A client that does not read what is waiting for it must not
 * be given a text with a hole. */
static int send_token(answering *a, const job *j, uint64_t spent_us, struct nk_error *err)
{
    struct nk_session *s = j->session;
    const struct nk_sampled *t = &j->sampled;
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Token token = NAKSHATRA__V1__TOKEN__INIT;
    Nakshatra__V1__TokenProb prob = NAKSHATRA__V1__TOKEN_PROB__INIT, tops[NK_LOGPROBS_MAX];
    Nakshatra__V1__TokenProb *top_ptrs[NK_LOGPROBS_MAX];
    size_t offset, offsets[NK_LOGPROBS_MAX];
    int rc;

    token.step = j->step;
    token.id = t->id;
    token.text.data = (uint8_t *)s->compute.text.data;
    token.text.len = s->compute.text.size;
    token.index = (uint32_t)j->index;
    token.finish = (Nakshatra__V1__FinishReason)j->finish;
    token.spent_us = spent_us;
    if (s->n_logprobs >= 0) {
        nk_buf_reset(&a->pieces);
        prob.id = t->id;
        prob.logprob = t->logprob;
        prob.text = piece(a, t->id, &offset);
        for (int i = 0; i < t->n_top; i++) {
            nakshatra__v1__token_prob__init(&tops[i]);
            tops[i].id = t->top[i].id;
            tops[i].logprob = t->top[i].logprob;
            tops[i].text = piece(a, t->top[i].id, &offsets[i]);
            top_ptrs[i] = &tops[i];
        }
        /* The buffer may have moved while it grew: pointers are set last. */
        prob.text.data = (uint8_t *)a->pieces.data + offset;
        for (int i = 0; i < t->n_top; i++)
            tops[i].text.data = (uint8_t *)a->pieces.data + offsets[i];
        token.prob = &prob;
        token.top = top_ptrs;
        token.n_top = (size_t)t->n_top;
    }
    if (j->finish) {
        token.stop_string.data = (uint8_t *)s->compute.stop;
        token.stop_string.len = s->compute.stop_size;
    }
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN;
    reply.token = &token;
    if (s->hold_ms) {
        rc = save_token(&s->compute, j->index, &reply, err);
        if (rc)
            return rc;
    }
    if (!j->sched.sample) /* computed again; it is asked for later */
        return 0;
    rc = nk_call_send_pb(s->up_ref, (ProtobufCMessage *)&reply, err);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* ---- sampling ---- */

/* The penalties look at the whole text so far; generated tokens were accepted when they were
 * chosen. */
static void show_prompt(const struct nk_session *s, struct nk_session_compute *c, int end)
{
    if (s->resumed)
        end = s->n_prompt;
    for (; c->n_sampled == 0 && c->n_prompt_seen < end; c->n_prompt_seen++)
        nk_sampler_prompt(c->sampler, s->ids[c->n_prompt_seen]);
}

/* Last stage: logits to a token and its text; j's sampled, finish and index. */
static int sample(const answering *a, job *j, const float *logits, struct nk_error *err)
{
    const struct nk_session *s = j->session;
    struct nk_session_compute *c = &j->session->compute;
    int end = j->pos + j->sched.n, rc;
    bool stopped = false;

    show_prompt(s, c, end);
    rc = nk_sampler_sample(c->sampler, logits, s->n_logprobs, &j->sampled, err);
    if (rc)
        return rc;
    nk_buf_reset(&c->text);
    j->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_NONE;
    j->index = c->n_sampled;
    if (nk_vocab_is_eog(a->vocab, j->sampled.id)) {
        j->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_EOG;
        if (s->special)
            rc = nk_detok_add(c->detok, j->sampled.id, &c->text, &stopped, err);
    } else {
        rc = nk_detok_add(c->detok, j->sampled.id, &c->text, &stopped, err);
        c->n_sampled++;
        c->last_id = j->sampled.id;
        if (stopped)
            j->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_STOP;
        else if (c->n_sampled >= s->n_predict || end >= s->n_tokens_max)
            j->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH;
    }
    if (!rc && j->finish && !stopped)
        rc = nk_detok_finish(c->detok, &c->text, err);
    if (j->finish == NAKSHATRA__V1__FINISH_REASON__FINISH_STOP && nk_detok_stop(c->detok)) {
        c->stop_size = strlen(nk_detok_stop(c->detok));
        memcpy(c->stop, nk_detok_stop(c->detok), c->stop_size);
    }
    return rc;
}

/* Last stage of a resumed session: a token that was said. Sampler and detokenizer come to be as
 * they were when it was: with the same draws, since these are real logits, and the same text held
 * back. */
static int say_silently(const struct nk_session *s, struct nk_session_compute *c,
                        const float *logits, struct nk_error *err)
{
    int32_t id = s->feed[s->n_prompt + c->n_sampled];
    bool same, stopped;
    int rc;

    show_prompt(s, c, 0);
    rc = nk_sampler_force(c->sampler, logits, id, &same, err);
    if (rc)
        return rc;
    if (!same && s->exact && !c->unlike) {
        c->unlike = true;
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "session=%s token=%d msg=\"computed again it is another one than was said: the "
               "workers do not compute the same bits\"",
               s->name, c->n_sampled);
    }
    nk_buf_reset(&c->text);
    rc = nk_detok_add(c->detok, id, &c->text, &stopped, err);
    c->n_sampled++;
    c->last_id = id;
    return rc;
}

/* Last stage: the logits of the k-th row of a step. */
static int look_at(const answering *a, job *j, int k, const float *logits, struct nk_error *err)
{
    const struct nk_session *s = j->session;
    struct nk_session_compute *c = &j->session->compute;
    int index = j->pos + k - (s->n_prompt - 1);

    if (s->resumed && index < c->n_sampled && index < s->n_said)
        return 0; /* what was seen already is not seen twice */
    if (s->resumed && index != c->n_sampled)
        return nk_fail(err, NK_E_PRECONDITION, "bad_resume",
                       "token %d is computed, and token %d would be next", index, c->n_sampled);
    if (s->resumed && index < s->n_said)
        return say_silently(s, c, logits, err);
    j->has_token = true;
    return sample(a, j, logits, err);
}

/* ---- the prompt's tokens ---- */

/* Rows of one message; texts are in the pieces, from these offsets on. */
struct prompt_probs {
    int n;
    Nakshatra__V1__PromptProb rows[PROMPT_PROBS_MAX], *ptrs[PROMPT_PROBS_MAX];
    Nakshatra__V1__TokenProb probs[PROMPT_PROBS_MAX][NK_LOGPROBS_MAX + 1];
    Nakshatra__V1__TokenProb *tops[PROMPT_PROBS_MAX][NK_LOGPROBS_MAX];
    size_t offsets[PROMPT_PROBS_MAX][NK_LOGPROBS_MAX + 1];
};

static void add_prompt_prob(answering *a, struct prompt_probs *p, const struct nk_sampled *t)
{
    Nakshatra__V1__PromptProb *row = &p->rows[p->n];

    nakshatra__v1__prompt_prob__init(row);
    for (int i = 0; i <= t->n_top; i++) {
        Nakshatra__V1__TokenProb *prob = &p->probs[p->n][i];

        nakshatra__v1__token_prob__init(prob);
        prob->id = i ? t->top[i - 1].id : t->id;
        prob->logprob = i ? t->top[i - 1].logprob : t->logprob;
        prob->text = piece(a, prob->id, &p->offsets[p->n][i]);
        if (i)
            p->tops[p->n][i - 1] = prob;
    }
    row->prob = &p->probs[p->n][0];
    row->top = p->tops[p->n];
    row->n_top = (size_t)t->n_top;
    p->ptrs[p->n++] = row;
}

/* The n rows that were added, of which the last is of the prompt's token before `end`. */
static int send_prompt_probs(answering *a, const struct nk_session *s, struct prompt_probs *p,
                             int end, struct nk_error *err)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__PromptProbs m = NAKSHATRA__V1__PROMPT_PROBS__INIT;
    int rc;

    /* The buffer may have moved while it grew: pointers are set last. */
    for (int k = 0; k < p->n; k++)
        for (size_t i = 0; i <= p->rows[k].n_top; i++)
            p->probs[k][i].text.data = (uint8_t *)a->pieces.data + p->offsets[k][i];
    m.pos = (uint32_t)(end - p->n);
    m.probs = p->ptrs;
    m.n_probs = (size_t)p->n;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_PROMPT_PROBS;
    reply.prompt_probs = &m;
    rc = nk_call_send_pb(s->up_ref, (ProtobufCMessage *)&reply, err);
    p->n = 0;
    nk_buf_reset(&a->pieces);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* Last stage: how probable those tokens of the prompt were that follow this step's rows, row by
 * row. */
static int tell_prompt(answering *a, job *j, nk_stage *stage, int row_idx, struct nk_error *err)
{
    const struct nk_session *s = j->session;
    struct prompt_probs *p;
    int rc = 0, k;

    if (j->told_prompt || !nk__answer_tells(j, 0))
        return 0;
    j->told_prompt = true;
    p = malloc(sizeof *p);
    if (!p)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for log-probabilities");
    p->n = 0;
    nk_buf_reset(&a->pieces);
    for (k = 0; k < j->sched.n && nk__answer_tells(j, k) && !rc; k++) {
        struct nk_sampled t = { .id = s->feed[j->pos + k + 1] };

        rc = nk_logits_look(nk_stage_logits(stage, row_idx + k), a->info->n_vocab,
                            s->n_prompt_logprobs, &t, err);
        if (!rc)
            add_prompt_prob(a, p, &t);
        if (!rc && p->n == PROMPT_PROBS_MAX)
            rc = send_prompt_probs(a, s, p, j->pos + k + 2, err);
    }
    if (!rc && p->n)
        rc = send_prompt_probs(a, s, p, j->pos + k + 1, err);
    free(p);
    return rc;
}

/* ---- a job's answer ---- */

/* Is a token chosen, or seen again, after the k-th row of a step? */
static bool is_looked_at(const job *j, int k)
{
    return nk__answer_wants(j, k) && !nk__answer_tells(j, k);
}

size_t nk__answer_keep_bytes(const answering *a, job *j)
{
    while (j->next_row < j->sched.n && !is_looked_at(j, j->next_row))
        j->next_row++;
    return (size_t)(j->sched.n - j->next_row) * (size_t)a->info->n_vocab * sizeof *j->logits;
}

int nk__answer_step(answering *a, job *j, nk_stage *stage, int row_idx, bool *back,
                    struct nk_error *err)
{
    struct nk_session *s = j->session;
    int kept = j->next_row, rc;
    uint64_t now;

    *back = false;
    if (!s->is_last)
        return send_rows(a, j, nk_stage_rows(stage) + (size_t)row_idx * (size_t)a->info->n_embd,
                         back, err);
    rc = tell_prompt(a, j, stage, row_idx, err);
    if (rc)
        return rc;
    nk_sampler_hurry(s->compute.sampler, !j->logits && !j->unhurried);
    /* Each time: a session that is resumed takes its sampler from the one that was held. */
    nk_sampler_cancel_by(s->compute.sampler, &s->dropped);
    for (; j->next_row < j->sched.n; j->next_row++) {
        const float *logits;

        if (!is_looked_at(j, j->next_row))
            continue;
        if (j->logits && atomic_load(&s->dropped))
            return nk_fail(err, NK_E_CANCELLED, "cancelled", "the session has ended");
        logits = j->logits ? j->logits + (size_t)(j->next_row - kept) * (size_t)a->info->n_vocab
                           : nk_stage_logits(stage, row_idx + j->next_row);
        rc = look_at(a, j, j->next_row, logits, err);
        if (rc)
            return rc;
    }
    now = nk_clock_now_ns(a->clock);
    nk_trace_event(a->trace, now, "answered", s->name, j->step, j->pos, j->sched.n);
    if (s->is_first) {
        /* The only stage: the client gets its token from here, the net thread queues the next
         * step. */
        *back = true;
        return j->has_token ? send_token(a, j, 0, err) : 0;
    }
    /* Before the answer: the next step may be here at once. */
    atomic_fetch_sub(&s->shared.n_unanswered, 1);
    rc = j->has_token ? send_token(a, j, (now - j->received_ns) / 1000, err) : 0;
    return rc || j->sched.sample ? rc : send_step_done(a, j, err);
}

int nk__answer_keep(answering *a, job *j, nk_stage *stage, int row_idx, struct nk_error *err)
{
    size_t n_vocab = (size_t)a->info->n_vocab, size = nk__answer_keep_bytes(a, j);
    int rc = tell_prompt(a, j, stage, row_idx, err);

    if (rc)
        return rc;
    j->logits = malloc(size ? size : 1);
    if (!j->logits)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu bytes of logits", size);
    j->logits_bytes = size;
    for (int k = j->next_row; k < j->sched.n; k++) {
        const float *logits = is_looked_at(j, k) ? nk_stage_logits(stage, row_idx + k) : NULL;

        if (!logits) /* an answer to what nobody can have asked for */
            return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                           "llama.cpp gave no logits of position %d", j->pos + k);
        memcpy(j->logits + (size_t)(k - j->next_row) * n_vocab, logits, n_vocab * sizeof *logits);
    }
    return 0;
}

void nk__answer_tell_aside(const job *j)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Aside aside = NAKSHATRA__V1__ASIDE__INIT;

    aside.step = j->step;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_ASIDE;
    reply.aside = &aside;
    nk_call_send_pb(j->session->up_ref, (ProtobufCMessage *)&reply, NULL);
}

int nk__answer_aside(const answering *a, job *j, bool *back, struct nk_error *err)
{
    /* By name: the rest is the compute thread's. */
    answering own = { .clock = a->clock, .trace = a->trace, .info = a->info, .vocab = a->vocab };
    int rc;

    nk_buf_init(&own.pieces, TOKEN_TEXT_MAX);
    rc = nk__answer_step(&own, j, NULL, 0, back, err);
    nk_buf_release(&own.pieces);
    return rc;
}

/* A text's vector, or the rows for the next stage. */
static int answer_pooled(job *j, nk_stage *stage, Nakshatra__V1__ForwardReply *reply,
                         struct nk_error *err)
{
    const struct nk_stage_info *info = nk_stage_info(stage);
    const float *data = info->is_last ? nk_stage_pooled(stage, j->seq) : nk_stage_rows(stage);
    Nakshatra__V1__Rows r = NAKSHATRA__V1__ROWS__INIT;
    struct nk__wire_stage own;

    r.n_rows = info->is_last ? 1 : (uint32_t)j->sched.n;
    r.width = (uint32_t)(info->is_last ? info->n_pooled : info->n_embd);
    r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
    r.data.len = (size_t)r.n_rows * r.width * sizeof(float);
    r.data.data = (uint8_t *)(uintptr_t)data;
    if (!data)
        return nk_fail(err, NK_E_INTERNAL, "decode_failed", "llama.cpp gave no pooled vector");
    for (uint32_t i = 0; info->is_last && i < r.width; i++)
        if (!isfinite(data[i]))
            return nk_fail(err, NK_E_INTERNAL, "not_finite",
                           "element %u of the text's vector is %f: the slice's file is the first "
                           "thing to look at (nakshatra inspect)",
                           i, (double)data[i]);
    nk__wire_stage(&own, j->worker);
    reply->stage = &own.message;
    reply->rows = &r;
    return nk_call_send_pb(j->call, (ProtobufCMessage *)reply, err);
}

int nk__answer_forward(answering *a, job *j, nk_stage *stage, uint64_t compute_ns,
                       struct nk_error *err)
{
    Nakshatra__V1__ForwardReply reply = NAKSHATRA__V1__FORWARD_REPLY__INIT;
    Nakshatra__V1__Rows r = NAKSHATRA__V1__ROWS__INIT;
    int n = j->sched.n, n_out = !a->info->is_last || j->all_logits ? n : 1;
    int width = a->info->is_last ? a->info->n_vocab : a->info->n_embd;
    float *logits = NULL;
    int rc;

    reply.compute_us = compute_ns / 1000;
    if (j->pooled)
        return answer_pooled(j, stage, &reply, err);
    r.n_rows = (uint32_t)n_out;
    r.width = (uint32_t)width;
    r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
    r.data.len = (size_t)n_out * (size_t)width * sizeof(float);
    if (a->info->is_last) {
        logits = malloc(r.data.len);
        if (!logits)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %d rows of logits",
                           n_out);
        for (int i = 0; i < n_out; i++)
            memcpy(logits + (size_t)i * (size_t)width, nk_stage_logits(stage, n - n_out + i),
                   (size_t)width * sizeof(float));
        r.data.data = (uint8_t *)logits;
    } else {
        r.data.data = (uint8_t *)(uintptr_t)nk_stage_rows(stage);
    }
    reply.rows = &r;
    rc = nk_call_send_pb(j->call, (ProtobufCMessage *)&reply, err);
    free(logits);
    return rc;
}
