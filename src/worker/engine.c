/* The engine: the one thread that owns the stage, and what it runs next.
 *
 * Three queues: control jobs go first, then decode rows and prefill chunks take turns, so that a long prompt delays
 * other people's tokens by one chunk at most, and tokens do not starve a prompt.
 *
 * Which decode rows run together decides the speed (docs/internals/llama.md, "Rows per run"): ggml's CPU kernels are worth little under four
 * rows, and a stage that waits for rows of a half-filled pipeline is idle. So the *first* stage forms groups: as many
 * groups in flight as stages of the route can compute at once (all of them, but for those that share cores: open.c) and no
 * more, each at most ceil(sessions / groups) rows, on a CPU four where that is between four and 16, and under 64. A group is in flight
 * until every one of its sessions has its token (and has queued its next row) or has ended; so a group that comes back
 * leaves again together. Later stages run a group as the first one formed it: they wait until all its rows are there,
 * for NK_GROUP_WAIT_MS at most. Rows that belong to no group (clients that drive a stage themselves) are merged as they
 * come. Deterministic sessions always run alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <time.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/thread.h"
#include "rpc/rows.h"
#include "worker/service.h"
#include "worker/worker_int.h"

/* Jobs that wait to be used again: of one row (decode), and larger ones, which keep their room for a chunk. */
enum { POOL_SMALL_MAX = 1024, POOL_LARGE_MAX = 32, TOKEN_TEXT_MAX = 1 << 20 };
enum { CPU_ROWS_SMALL = 4, CPU_ROWS_LARGE = 16, CPU_ROWS_MAX = 63 }; /* see group_size_for_cpu */

struct job_list {
    struct nk_job *head, *tail;
    int n;
};

struct group {
    uint64_t id;
    int n_outstanding;
};

struct nk_engine {
    nk_worker *w;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct nk_engine_counters counters;
    struct nk_stage_info info; /* a copy that outlives a closed stage */

    /* under the mutex */
    struct job_list control, decode, prefill, pool_small, pool_large;
    bool started, stop, joined, prefill_next;
    int start_rc; /* of opening the stage */
    struct nk_error *start_err;
    struct group groups[NK_ROUTE_MAX];
    int n_groups, n_decoding, n_at_once;
    uint64_t next_group;

    /* compute thread */
    nk_stage *stage;
    nk_vocab *vocab;
    struct nk_job **run; /* n_batch */
    int32_t *ids, *pos, *seq;
    int8_t *want;
    float *rows;   /* n_batch x n_embd: rows of several jobs side by side */
    uint16_t *f16; /* n_batch x n_embd: rows on their way out */
    struct nk_buf pieces;
    pthread_t pages; /* moves the stage's memory into huge pages; runs while pages_running */
    bool pages_running;
    atomic_bool pages_stop;
};

/* ---- job lists ---- */

static void list_push(struct job_list *l, struct nk_job *j)
{
    j->next = NULL;
    if (l->tail)
        l->tail->next = j;
    else
        l->head = j;
    l->tail = j;
    l->n++;
}

/* Removes j, whose predecessor is prev (NULL: the head). */
static void list_remove(struct job_list *l, struct nk_job *prev, struct nk_job *j)
{
    if (prev)
        prev->next = j->next;
    else
        l->head = j->next;
    if (l->tail == j)
        l->tail = prev;
    l->n--;
    j->next = NULL;
}

static struct nk_job *list_pop(struct job_list *l)
{
    struct nk_job *j = l->head;

    if (j)
        list_remove(l, NULL, j);
    return j;
}

/* ---- the pool ---- */

static void job_destroy(struct nk_job *j)
{
    free(j->ids);
    free(j->rows);
    free(j);
}

int nk__engine_job(nk_engine *e, struct nk_job **out, int n, bool with_rows, struct nk_error *err)
{
    size_t n_floats = with_rows ? (size_t)n * (size_t)e->info.n_embd : 0;
    struct nk_job *j;

    *out = NULL;
    pthread_mutex_lock(&e->mutex);
    j = list_pop(n <= 1 ? &e->pool_small : &e->pool_large);
    pthread_mutex_unlock(&e->mutex);
    if (!j && !(j = calloc(1, sizeof *j)))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a step");
    if (n > j->ids_capacity) {
        int32_t *ids = realloc(j->ids, (size_t)n * sizeof *ids);

        if (!ids)
            goto no_memory;
        j->ids = ids;
        j->ids_capacity = n;
    }
    if (n_floats > j->rows_capacity) {
        float *rows = realloc(j->rows, n_floats * sizeof *rows);

        if (!rows)
            goto no_memory;
        j->rows = rows;
        j->rows_capacity = n_floats;
    }
    *j = (struct nk_job){ .ids = j->ids,
                          .ids_capacity = j->ids_capacity,
                          .rows = j->rows,
                          .rows_capacity = j->rows_capacity,
                          .n = n,
                          .has_rows = with_rows,
                          .seq = -1 };
    *out = j;
    return 0;
no_memory:
    job_destroy(j);
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a step of %d rows", n);
}

void nk__engine_job_free(nk_engine *e, struct nk_job *j)
{
    struct job_list *pool;
    bool pooled;

    if (j->session)
        nk__session_unref(j->session);
    if (j->call)
        nk_call_unref(j->call);
    j->session = NULL;
    j->call = NULL;
    pthread_mutex_lock(&e->mutex);
    pool = j->ids_capacity <= 1 ? &e->pool_small : &e->pool_large;
    pooled = pool->n < (pool == &e->pool_small ? POOL_SMALL_MAX : POOL_LARGE_MAX);
    if (pooled)
        list_push(pool, j);
    pthread_mutex_unlock(&e->mutex);
    if (!pooled)
        job_destroy(j);
}

/* ---- groups in flight (first stage); the mutex is held ---- */

static void leave_group(nk_engine *e, struct nk_session *s)
{
    if (!s->group)
        return;
    for (int i = 0; i < e->n_groups; i++) {
        if (e->groups[i].id != s->group)
            continue;
        if (--e->groups[i].n_outstanding == 0)
            e->groups[i] = e->groups[--e->n_groups];
        break;
    }
    s->group = 0;
}

void nk__engine_leave_group(nk_engine *e, struct nk_session *s)
{
    pthread_mutex_lock(&e->mutex);
    leave_group(e, s);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->mutex);
}

void nk__engine_set_decoding(nk_engine *e, int n_sessions, int n_at_once)
{
    pthread_mutex_lock(&e->mutex);
    e->n_decoding = n_sessions;
    e->n_at_once = n_at_once;
    pthread_mutex_unlock(&e->mutex);
}

static bool is_decode(const struct nk_job *j)
{
    return j->n == 1 && j->sample;
}

/* Steps of one session are run in their order: the last chunk of a prompt may be a single row, and must not overtake the
 * chunks before it; nor may a chunk overtake rows that wait for their group (see pick). */
static void queue_step(nk_engine *e, struct nk_job *j)
{
    if (is_decode(j) && !j->session->n_prefill_queued) {
        list_push(&e->decode, j);
        j->session->n_decode_queued++;
    } else {
        list_push(&e->prefill, j);
        j->session->n_prefill_queued++;
    }
}

void nk__engine_submit(nk_engine *e, struct nk_job *j)
{
    j->queued_ns = nk_now_ns();
    pthread_mutex_lock(&e->mutex);
    if (j->kind != NK_JOB_STEP)
        list_push(&e->control, j);
    else
        queue_step(e, j);
    atomic_fetch_add(&e->counters.jobs_queued, 1);
    /* In one go with queueing the next row: a group that is complete again finds all its rows ready. */
    if (j->session)
        leave_group(e, j->session);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->mutex);
}

/* ---- choosing what to run; the mutex is held ---- */

/* Takes the jobs of dead sessions out. */
static void drop_dead(nk_engine *e, struct job_list *l, struct job_list *dead)
{
    struct nk_job *prev = NULL, *next;

    for (struct nk_job *j = l->head; j; j = next) {
        next = j->next;
        if (atomic_load(&j->session->dead)) {
            list_remove(l, prev, j);
            list_push(dead, j);
            atomic_fetch_sub(&e->counters.jobs_queued, 1);
        } else {
            prev = j;
        }
    }
}

/* Moves up to max jobs for which `same` holds from the decode queue to e->run; returns how many. */
static int take(nk_engine *e, int max, bool (*same)(const struct nk_job *, const struct nk_job *),
                const struct nk_job *like)
{
    struct nk_job *prev = NULL, *next;
    int n = 0;

    for (struct nk_job *j = e->decode.head; j && n < max; j = next) {
        next = j->next;
        if (!same(j, like)) {
            prev = j;
            continue;
        }
        list_remove(&e->decode, prev, j);
        j->session->n_decode_queued--;
        e->run[n++] = j;
    }
    return n;
}

static bool same_job(const struct nk_job *j, const struct nk_job *like)
{
    return j == like;
}
static bool same_group(const struct nk_job *j, const struct nk_job *like)
{
    return !j->solo && j->group == like->group;
}
static bool any_mergeable(const struct nk_job *j, const struct nk_job *like)
{
    (void)like;
    return !j->solo;
}

static int run_max(const nk_engine *e)
{
    return e->info.one_sequence_per_run || e->info.equal_rows_per_run ? 1 : e->info.n_batch;
}

/* Between four and 16 rows a run on a CPU costs no less per row than with four, and with eight more; from 16 on it costs much
 * less. Measured (docs/performance.md), as if ggml's kernels of repacked weights took 16 rows at once and fewer by fours.
 * From 64 on attention is slow: as if it then took all sequences' KV for each row. Larger groups are made of equal parts. */
static int group_size_for_cpu(int size)
{
    int n_parts = (size + CPU_ROWS_MAX - 1) / CPU_ROWS_MAX;

    if (size > CPU_ROWS_SMALL && size < CPU_ROWS_LARGE)
        return CPU_ROWS_SMALL;
    return n_parts > 1 ? (size + n_parts - 1) / n_parts : size;
}

static int pick_decode_first_stage(nk_engine *e)
{
    int n_at_once = e->n_at_once > 0 ? e->n_at_once : 1, size, n;

    for (struct nk_job *j = e->decode.head; j; j = j->next)
        if (j->solo)
            return take(e, 1, same_job, j);
    if (!e->decode.head || e->n_groups >= n_at_once || e->n_groups >= NK_ROUTE_MAX)
        return 0;
    size = (e->n_decoding + n_at_once - 1) / n_at_once;
    if (size < 1)
        size = 1;
    if (size > e->info.n_batch)
        size = e->info.n_batch;
    if (!strcmp(e->info.backend, "CPU"))
        size = group_size_for_cpu(size);
    n = take(e, size, any_mergeable, NULL);
    e->groups[e->n_groups++] = (struct group){ e->next_group, n };
    for (int i = 0; i < n; i++) {
        e->run[i]->group = e->next_group;
        e->run[i]->group_size = (uint32_t)n;
        e->run[i]->session->group = e->next_group;
    }
    e->next_group++;
    return n;
}

/* Later stages. *wait_until: when an incomplete group is to be run without its missing rows. */
static int pick_decode_later_stage(nk_engine *e, uint64_t now, uint64_t *wait_until)
{
    for (struct nk_job *j = e->decode.head; j; j = j->next) {
        uint64_t until = j->queued_ns + NK_GROUP_WAIT_MS * 1000000ull;
        uint32_t n = 0;

        if (j->solo)
            return take(e, 1, same_job, j);
        if (j->group && j->group_size > 1 && now < until) {
            for (struct nk_job *k = e->decode.head; k; k = k->next)
                n += same_group(k, j);
            if (n < j->group_size) {
                if (!*wait_until || until < *wait_until)
                    *wait_until = until;
                continue;
            }
        }
        return take(e, e->info.n_batch, same_group, j);
    }
    return 0;
}

/* Fills e->run; returns how many jobs, 0 when there is nothing to do now. */
static int pick(nk_engine *e, uint64_t now, uint64_t *wait_until)
{
    bool prefill;
    int n = 0;

    *wait_until = 0;
    if ((e->run[0] = list_pop(&e->control)))
        return 1;
    if (!e->stage)
        return 0;
    prefill = e->prefill.head && !e->prefill.head->session->n_decode_queued;
    if (!(e->prefill_next && prefill))
        n = e->info.is_first ? pick_decode_first_stage(e)
                             : pick_decode_later_stage(e, now, wait_until);
    if (n) {
        e->prefill_next = true;
        return n;
    }
    e->prefill_next = false;
    if (!prefill)
        return 0;
    e->run[0] = list_pop(&e->prefill);
    e->run[0]->session->n_prefill_queued--;
    return 1;
}

/* ---- answers ---- */

static void post_result(void *job)
{
    struct nk_job *j = job;

    if (j->kind == NK_JOB_STEP)
        nk__session_result(j);
    else
        nk__service_result(j);
}

/* Hands the job back to the net thread with rc and err in it. */
static void give_back(nk_engine *e, struct nk_job *j)
{
    nk_net_post(e->w->net, post_result, j);
}

static void give_back_error(nk_engine *e, struct nk_job *j, int rc, const struct nk_error *err)
{
    j->rc = rc;
    j->err = *err;
    give_back(e, j);
}

static void send_rows(nk_engine *e, struct nk_job *j, const float *rows)
{
    struct nk_session *s = j->session;
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Step step = NAKSHATRA__V1__STEP__INIT;
    Nakshatra__V1__Rows r = NAKSHATRA__V1__ROWS__INIT;
    size_t n_floats = (size_t)j->n * (size_t)e->info.n_embd;
    struct nk_error err;
    uint64_t now;
    int rc;

    r.n_rows = (uint32_t)j->n;
    r.width = (uint32_t)e->info.n_embd;
    if (s->f16) {
        nk_f16_from_f32(e->f16, rows, n_floats);
        r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F16;
        r.data.data = (uint8_t *)e->f16;
        r.data.len = n_floats * 2;
    } else {
        r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
        r.data.data = (uint8_t *)(uintptr_t)rows;
        r.data.len = n_floats * 4;
    }
    step.step = j->step;
    step.pos = (uint32_t)j->pos;
    step.n_ids = (size_t)j->n;
    step.ids = j->ids;
    step.rows = &r;
    step.sample = j->sample;
    step.group = j->group;
    step.group_size = j->group_size;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP;
    req.step = &step;
    now = nk_now_ns();
    atomic_store(&s->sent_ns[j->step % NK_STEPS_OUT_MAX], now);
    rc = nk_call_send_pb(s->down_ref, (ProtobufCMessage *)&req, &err);
    nk_trace_event(e->w->trace, now, "sent", s->name, j->step, j->pos, j->n);
    /* A call that has ended says so to the net thread itself. */
    if (rc && rc != NK_E_UNAVAILABLE) {
        give_back_error(e, j, rc, &err);
        return;
    }
    nk__engine_job_free(e, j);
}

static int send_step_done(struct nk_job *j, struct nk_error *err)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone done = NAKSHATRA__V1__STEP_DONE__INIT;
    int rc;

    done.step = j->step;
    done.spent_us = (nk_now_ns() - j->received_ns) / 1000;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    reply.step_done = &done;
    rc = nk_call_send_pb(j->session->up_ref, (ProtobufCMessage *)&reply, err);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* The bytes of a token, for log-probabilities; empty for one that has none. */
static ProtobufCBinaryData piece(nk_engine *e, int32_t id, size_t *offset)
{
    ProtobufCBinaryData out = { 0, NULL };

    *offset = e->pieces.size;
    if (nk_vocab_piece(e->vocab, id, true, &e->pieces, NULL) == 0)
        out.len = e->pieces.size - *offset;
    return out;
}

/* Sends a sampled token and its text (s->text). A call that has ended says so to the net thread itself and is no error;
 * a client that does not read what is waiting for it must not be given a text with a hole. */
static int send_token(nk_engine *e, struct nk_session *s, nk_call *to, uint64_t step,
                      uint64_t spent_us, const struct nk_sampled *t, int index, int finish,
                      struct nk_error *err)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Token token = NAKSHATRA__V1__TOKEN__INIT;
    Nakshatra__V1__TokenProb prob = NAKSHATRA__V1__TOKEN_PROB__INIT, tops[NK_LOGPROBS_MAX];
    Nakshatra__V1__TokenProb *top_ptrs[NK_LOGPROBS_MAX];
    size_t offset, offsets[NK_LOGPROBS_MAX];
    int rc;

    token.step = step;
    token.id = t->id;
    token.text.data = (uint8_t *)s->text.data;
    token.text.len = s->text.size;
    token.index = (uint32_t)index;
    token.finish = (Nakshatra__V1__FinishReason)finish;
    token.spent_us = spent_us;
    if (s->n_logprobs >= 0) {
        nk_buf_reset(&e->pieces);
        prob.id = t->id;
        prob.logprob = t->logprob;
        prob.text = piece(e, t->id, &offset);
        for (int i = 0; i < t->n_top; i++) {
            nakshatra__v1__token_prob__init(&tops[i]);
            tops[i].id = t->top[i].id;
            tops[i].logprob = t->top[i].logprob;
            tops[i].text = piece(e, t->top[i].id, &offsets[i]);
            top_ptrs[i] = &tops[i];
        }
        /* The buffer may have moved while it grew: pointers are set last. */
        prob.text.data = (uint8_t *)e->pieces.data + offset;
        for (int i = 0; i < t->n_top; i++)
            tops[i].text.data = (uint8_t *)e->pieces.data + offsets[i];
        token.prob = &prob;
        token.top = top_ptrs;
        token.n_top = (size_t)t->n_top;
    }
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN;
    reply.token = &token;
    rc = nk_call_send_pb(to, (ProtobufCMessage *)&reply, err);
    return rc == NK_E_UNAVAILABLE ? 0 : rc;
}

/* Last stage: logits to a token and its text. Sets *finish. */
static int sample(nk_engine *e, struct nk_job *j, const float *logits, int *finish,
                  struct nk_error *err)
{
    struct nk_session *s = j->session;
    bool stopped = false;
    int rc;

    /* The penalties look at the whole text so far; generated tokens were accepted when they were chosen. */
    if (s->n_sampled == 0) {
        for (; s->n_sampler_seen < j->pos + j->n; s->n_sampler_seen++)
            nk_sampler_prompt(s->sampler, s->ids[s->n_sampler_seen]);
    }
    rc = nk_sampler_sample(s->sampler, logits, s->n_logprobs, &j->sampled, err);
    if (rc)
        return rc;
    nk_buf_reset(&s->text);
    *finish = NAKSHATRA__V1__FINISH_REASON__FINISH_NONE;
    if (nk_vocab_is_eog(e->vocab, j->sampled.id)) {
        *finish = NAKSHATRA__V1__FINISH_REASON__FINISH_EOG;
        if (s->special)
            rc = nk_detok_add(s->detok, j->sampled.id, &s->text, &stopped, err);
    } else {
        rc = nk_detok_add(s->detok, j->sampled.id, &s->text, &stopped, err);
        s->n_sampled++;
        if (stopped)
            *finish = NAKSHATRA__V1__FINISH_REASON__FINISH_STOP;
        else if (s->n_sampled >= s->n_predict || j->pos + j->n >= s->n_tokens_max)
            *finish = NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH;
    }
    if (!rc && *finish && !stopped)
        rc = nk_detok_finish(s->detok, &s->text, err);
    if (*finish == NAKSHATRA__V1__FINISH_REASON__FINISH_STOP && nk_detok_stop(s->detok)) {
        s->stop_string_size = strlen(nk_detok_stop(s->detok));
        memcpy(s->stop_string, nk_detok_stop(s->detok), s->stop_string_size);
    }
    return rc;
}

static void answer_step(nk_engine *e, struct nk_job *j, int row_idx)
{
    struct nk_session *s = j->session;
    struct nk_error err;
    int finish = 0, rc = 0;

    atomic_fetch_add(&s->runs, 1);
    atomic_fetch_add(&s->compute_ns, j->end_ns - j->begin_ns);
    atomic_fetch_add(&s->queue_ns, j->begin_ns - j->queued_ns);
    if (!s->is_last) {
        send_rows(e, j, nk_stage_rows(e->stage) + (size_t)row_idx * (size_t)e->info.n_embd);
        return;
    }
    if (j->sample) {
        rc = sample(e, j, nk_stage_logits(e->stage, row_idx + j->n - 1), &finish, &err);
        if (rc) {
            give_back_error(e, j, rc, &err);
            return;
        }
        j->finish = finish;
        j->index = s->n_sampled - (finish != NAKSHATRA__V1__FINISH_REASON__FINISH_EOG);
    }
    nk_trace_event(e->w->trace, nk_now_ns(), "answered", s->name, j->step, j->pos, j->n);
    if (s->is_first) {
        /* The only stage: the client gets its token from here, the net thread queues the next step. */
        if (j->sample)
            rc = send_token(e, s, s->up_ref, j->step, 0, &j->sampled, j->index, finish, &err);
        if (rc)
            give_back_error(e, j, rc, &err);
        else
            give_back(e, j);
        return;
    }
    atomic_fetch_sub(&s->n_unanswered,
                     1); /* before the answer: the next step may be here at once */
    if (j->sample)
        rc = send_token(e, s, s->up_ref, j->step, (nk_now_ns() - j->received_ns) / 1000,
                        &j->sampled, j->index, finish, &err);
    else
        rc = send_step_done(j, &err);
    if (rc)
        give_back_error(e, j, rc, &err);
    else
        nk__engine_job_free(e, j);
}

/* ---- running ---- */

/* Runs jobs[0..n) as one batch. On success every job was answered. */
static int run_steps(nk_engine *e, struct nk_job **jobs, int n, struct nk_error *err)
{
    struct nk_stage_batch batch = { 0 };
    int n_tokens = 0, rc;
    uint64_t end_ns;

    for (int i = 0; i < n; i++) {
        struct nk_job *j = jobs[i];

        for (int k = 0; k < j->n; k++, n_tokens++) {
            e->ids[n_tokens] = j->ids[k];
            e->pos[n_tokens] = j->pos + k;
            e->seq[n_tokens] = j->seq;
            e->want[n_tokens] = j->sample && k == j->n - 1;
        }
    }
    batch.n_tokens = n_tokens;
    batch.ids = e->ids;
    batch.pos = e->pos;
    batch.seq = e->seq;
    batch.want = e->want;
    if (!e->info.is_first) {
        batch.rows = jobs[0]->rows;
        if (n > 1) {
            size_t at = 0;

            for (int i = 0; i < n; i++) {
                size_t size = (size_t)jobs[i]->n * (size_t)e->info.n_embd;

                memcpy(e->rows + at, jobs[i]->rows, size * sizeof(float));
                at += size;
            }
            batch.rows = e->rows;
        }
    }
    for (int i = 0; i < n; i++) {
        jobs[i]->begin_ns = nk_now_ns();
        nk_trace_event(e->w->trace, jobs[i]->begin_ns, "computing", jobs[i]->session->name,
                       jobs[i]->step, jobs[i]->pos, jobs[i]->n);
    }
    rc = nk_stage_run(e->stage, &batch, err);
    end_ns = nk_now_ns(); /* before the first row goes out: the next stage may begin with it */
    if (rc)
        return rc;
    atomic_fetch_add(&e->counters.runs, 1);
    atomic_fetch_add(&e->counters.rows, (unsigned)n_tokens);
    for (int i = 0, at = 0; i < n; i++) {
        struct nk_job *j = jobs[i];
        int rows = j->n;

        j->end_ns = end_ns;
        if (i == 0)
            atomic_fetch_add(&e->counters.compute_ns, j->end_ns - j->begin_ns);
        atomic_fetch_add(&e->counters.queue_ns, j->begin_ns - j->queued_ns);
        atomic_fetch_add(&e->counters.steps, 1);
        atomic_fetch_add(is_decode(j) ? &e->counters.tokens_decoded : &e->counters.tokens_prefilled,
                         (unsigned)rows);
        nk_trace_event(e->w->trace, j->end_ns, "computed", j->session->name, j->step, j->pos, rows);
        answer_step(e, j, at);
        at += rows;
    }
    return 0;
}

static void run_batch(nk_engine *e, int n)
{
    int max = run_max(e);
    struct nk_error err;
    int rc;

    if (n > 1 && max > 1) {
        rc = run_steps(e, e->run, n, &err);
        if (!rc)
            return;
        /* One of them is at fault (its rows, or its share of the KV): each alone finds out which. Positions are
         * authoritative, so running a step again is harmless. */
        nk_log(NK_LOG_WORKER, NK_LOG_DEBUG,
               "merged=%d reason=%s msg=\"a merged run failed; each alone\"", n, err.reason);
    }
    for (int i = 0; i < n; i++) {
        struct nk_job *j = e->run[i];

        rc = run_steps(e, &j, 1, &err);
        if (rc)
            give_back_error(e, j, rc, &err);
    }
}

/* The stage's pointer changes under the mutex: nk__engine_stop_thread cancels through it. */
static void stage_set(nk_engine *e, nk_stage *stage)
{
    pthread_mutex_lock(&e->mutex);
    e->stage = stage;
    pthread_mutex_unlock(&e->mutex);
}

static void *pages_main(void *arg)
{
    nk_engine *e = arg;
    uint64_t begin_ns = nk_now_ns(), bytes;

    nk_cpu_unpin();
    bytes = nk_stage_use_huge_pages(e->stage, &e->pages_stop);
    nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "event=huge_pages mib=%.0f seconds=%.2f",
           (double)bytes / (1 << 20), (double)(nk_now_ns() - begin_ns) / 1e9);
    return NULL;
}

/* Beside the work, which may begin meanwhile: a worker is ready before this is through. */
static void pages_start(nk_engine *e)
{
    atomic_store(&e->pages_stop, false);
    e->pages_running = !nk_thread_start(&e->pages, pages_main, e);
}

static void pages_end(nk_engine *e)
{
    if (!e->pages_running)
        return;
    atomic_store(&e->pages_stop, true);
    pthread_join(e->pages, NULL);
    e->pages_running = false;
}

static void stage_close(nk_engine *e)
{
    nk_stage *stage = e->stage;

    pages_end(e);
    stage_set(e, NULL);
    nk_vocab_close(e->vocab);
    e->vocab = NULL;
    nk_stage_close(stage);
}

static int stage_open(nk_engine *e, struct nk_error *err)
{
    const struct nk_stage_info *info;
    nk_stage *stage;
    int rc = nk_stage_open(&stage, e->w->opts.slice_path, &e->w->opts.stage, err);

    if (rc)
        return rc;
    stage_set(e, stage);
    info = nk_stage_info(stage);
    /* Awake again: the net thread reads the copy, which stays as it is. */
    if (e->info.n_embd &&
        (strcmp(info->model_sha256, e->info.model_sha256) != 0 ||
         info->layer_begin != e->info.layer_begin || info->layer_end != e->info.layer_end)) {
        rc = nk_fail(err, NK_E_PRECONDITION, "slice_changed",
                     "%s is not the slice that it was: model %.12s..., layers %d-%d",
                     e->w->opts.slice_path, info->model_sha256, info->layer_begin, info->layer_end);
        stage_close(e);
        return rc;
    }
    if (!e->info.n_embd)
        e->info = *info;
    if (info->is_last && !(e->vocab = nk_vocab_borrow(nk_stage_vocab(stage)))) {
        stage_close(e);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    pages_start(e);
    return 0;
}

static void run_forward(nk_engine *e, struct nk_job *j)
{
    Nakshatra__V1__ForwardReply reply = NAKSHATRA__V1__FORWARD_REPLY__INIT;
    Nakshatra__V1__Rows r = NAKSHATRA__V1__ROWS__INIT;
    struct nk_stage_batch batch = { .n_tokens = j->n,
                                    .ids = j->ids,
                                    .rows = j->has_rows ? j->rows : NULL };
    int n_out = !e->info.is_last || j->all_logits ? j->n : 1;
    int width = e->info.is_last ? e->info.n_vocab : e->info.n_embd;
    float *logits = NULL;
    uint64_t begin;

    for (int i = 0; i < j->n; i++) {
        e->pos[i] = i;
        e->seq[i] = j->seq;
        e->want[i] = j->all_logits || i == j->n - 1;
    }
    batch.pos = e->pos;
    batch.seq = e->seq;
    batch.want = e->want;
    begin = nk_now_ns();
    j->rc = nk_stage_run(e->stage, &batch, &j->err);
    if (j->rc)
        goto out;
    reply.compute_us = (nk_now_ns() - begin) / 1000;
    r.n_rows = (uint32_t)n_out;
    r.width = (uint32_t)width;
    r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
    r.data.len = (size_t)n_out * (size_t)width * sizeof(float);
    if (e->info.is_last) {
        logits = malloc(r.data.len);
        if (!logits) {
            j->rc = nk_fail(&j->err, NK_E_EXHAUSTED, "no_memory", "no memory for %d rows of logits",
                            n_out);
            goto out;
        }
        for (int i = 0; i < n_out; i++)
            memcpy(logits + (size_t)i * (size_t)width, nk_stage_logits(e->stage, j->n - n_out + i),
                   (size_t)width * sizeof(float));
        r.data.data = (uint8_t *)logits;
    } else {
        r.data.data = (uint8_t *)(uintptr_t)nk_stage_rows(e->stage);
    }
    reply.rows = &r;
    j->rc = nk_call_send_pb(j->call, (ProtobufCMessage *)&reply, &j->err);
out:
    nk_stage_seq_clear(e->stage, j->seq);
    free(logits);
    give_back(e, j);
}

static void run_control(nk_engine *e, struct nk_job *j)
{
    switch (j->kind) {
    case NK_JOB_STEP:
        NK_ASSERT(false);
        break;
    case NK_JOB_CLEAR:
        if (e->stage)
            nk_stage_seq_clear(e->stage, j->seq);
        nk__engine_job_free(e, j);
        break;
    case NK_JOB_COPY: {
        struct nk_error err;

        /* Failing leaves seq_to empty, and the first step's position then is a gap, which ends the session. */
        if (e->stage && nk_stage_seq_copy(e->stage, j->seq, j->seq_to, &err))
            nk_log(NK_LOG_WORKER, NK_LOG_WARN,
                   "seq=%d reason=%s msg=\"a kept session could not be copied\"", j->seq,
                   err.reason);
        nk__engine_job_free(e, j);
        break;
    }
    case NK_JOB_FORWARD:
        if (!e->stage) {
            j->rc = nk_fail(&j->err, NK_E_UNAVAILABLE, "asleep", "the worker is asleep");
            give_back(e, j);
        } else {
            run_forward(e, j);
        }
        break;
    case NK_JOB_SLEEP:
        stage_close(e);
        give_back(e, j);
        break;
    case NK_JOB_WAKE:
        j->begin_ns = nk_now_ns();
        if (!e->stage)
            j->rc = stage_open(e, &j->err);
        j->end_ns = nk_now_ns();
        give_back(e, j);
        break;
    }
}

static void wait_for_work(nk_engine *e, uint64_t until_ns)
{
    if (until_ns)
        nk_clock_wait_until(nk_clock_system(), &e->cond, &e->mutex, until_ns);
    else
        pthread_cond_wait(&e->cond, &e->mutex);
}

/* With the mutex held, but for the computing. */
static void compute(nk_engine *e)
{
    while (!e->stop) {
        struct job_list dead = { 0 };
        uint64_t wait_until;
        int n;

        drop_dead(e, &e->decode, &dead);
        drop_dead(e, &e->prefill, &dead);
        n = pick(e, nk_now_ns(), &wait_until);
        if (!n && !dead.head) {
            wait_for_work(e, wait_until);
            continue;
        }
        atomic_fetch_sub(&e->counters.jobs_queued, n);
        pthread_mutex_unlock(&e->mutex);
        for (struct nk_job *j; (j = list_pop(&dead));)
            nk__engine_job_free(e, j);
        if (n && e->run[0]->kind == NK_JOB_STEP)
            run_batch(e, n);
        else if (n)
            run_control(e, e->run[0]);
        pthread_mutex_lock(&e->mutex);
    }
}

/* ---- life ---- */

struct nk_engine_counters *nk__engine_counters(nk_engine *e)
{
    return &e->counters;
}

const struct nk_stage_info *nk__engine_info(const nk_engine *e)
{
    return &e->info;
}

const nk_vocab *nk__engine_vocab(const nk_engine *e)
{
    return e->vocab;
}

static void engine_free(nk_engine *e)
{
    struct job_list *lists[] = { &e->control, &e->decode, &e->prefill, &e->pool_small,
                                 &e->pool_large };

    for (int i = 0; i < 5; i++)
        for (struct nk_job *j; (j = list_pop(lists[i]));) {
            if (j->session)
                nk__session_unref(j->session);
            if (j->call)
                nk_call_unref(j->call);
            job_destroy(j);
        }
    stage_close(e);
    free(e->run);
    free(e->ids);
    free(e->pos);
    free(e->seq);
    free(e->want);
    free(e->rows);
    free(e->f16);
    nk_buf_release(&e->pieces);
    pthread_cond_destroy(&e->cond);
    pthread_mutex_destroy(&e->mutex);
    free(e);
}

/* Two jobs a sequence: the next step may be queued before the last one's job is back. */
static int fill_pool(nk_engine *e, int n, struct nk_error *err)
{
    for (int i = 0; i < n; i++) {
        struct nk_job *j = calloc(1, sizeof *j);

        if (!j)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        j->ids = malloc(sizeof *j->ids);
        j->ids_capacity = j->ids ? 1 : 0;
        j->rows_capacity = e->info.is_first ? 0 : (size_t)e->info.n_embd;
        j->rows = j->rows_capacity ? malloc(j->rows_capacity * sizeof *j->rows) : NULL;
        list_push(&e->pool_small, j);
        if (!j->ids || (j->rows_capacity && !j->rows)) {
            j->rows_capacity = 0;
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        }
    }
    return 0;
}

/* What a stage of this size needs beside it. */
static int allocate(nk_engine *e, struct nk_error *err)
{
    size_t n = (size_t)e->info.n_batch, width = (size_t)e->info.n_embd;

    e->run = calloc(n, sizeof *e->run);
    e->ids = calloc(n, sizeof *e->ids);
    e->pos = calloc(n, sizeof *e->pos);
    e->seq = calloc(n, sizeof *e->seq);
    e->want = calloc(n, sizeof *e->want);
    e->rows = e->info.is_first ? NULL : calloc(n * width, sizeof *e->rows);
    e->f16 = e->info.is_last ? NULL : calloc(n * width, sizeof *e->f16);
    if (!e->run || !e->ids || !e->pos || !e->seq || !e->want || (!e->rows && !e->info.is_first) ||
        (!e->f16 && !e->info.is_last))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for batches of %zu rows", n);
    return fill_pool(e, 2 * e->info.n_seq_max, err);
}

/* The stage is opened by the thread that will compute with it. Opening computes too, and OpenMP gives every thread that
 * computes a team of its own: with a second team, even an idle one, libgomp counts more threads than cores and lets
 * all of them sleep at every barrier instead of spinning, which cost a fifth of the speed. */
static void *compute_main(void *arg)
{
    nk_engine *e = arg;
    int rc = stage_open(e, e->start_err);

    if (!rc)
        rc = allocate(e, e->start_err);
    if (!rc)
        nk_stage_place_threads(e->stage);
    pthread_mutex_lock(&e->mutex);
    e->start_rc = rc;
    e->started = true;
    pthread_cond_broadcast(&e->cond);
    if (!rc)
        compute(e);
    pthread_mutex_unlock(&e->mutex);
    return NULL;
}

int nk__engine_start(nk_engine **out, nk_worker *w, struct nk_error *err)
{
    nk_engine *e = calloc(1, sizeof *e);
    int rc;

    *out = NULL;
    if (!e)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    e->w = w;
    e->start_err = err;
    pthread_mutex_init(&e->mutex, NULL);
    nk_cond_init(&e->cond);
    nk_buf_init(&e->pieces, TOKEN_TEXT_MAX);
    /* Group ids of two senders do not meet: they begin at the time of start. */
    e->next_group = nk_now_ns() << 8 | 1;
    if (nk_thread_start(&e->thread, compute_main, e)) {
        engine_free(e);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the compute thread could not be started");
    }
    pthread_mutex_lock(&e->mutex);
    while (!e->started)
        pthread_cond_wait(&e->cond, &e->mutex);
    rc = e->start_rc;
    pthread_mutex_unlock(&e->mutex);
    if (rc) {
        pthread_join(e->thread, NULL);
        engine_free(e);
        return rc;
    }
    *out = e;
    return 0;
}

void nk__engine_stop_thread(nk_engine *e)
{
    pthread_mutex_lock(&e->mutex);
    e->stop = true;
    pthread_cond_signal(&e->cond);
    if (e->stage)
        nk_stage_cancel(e->stage);
    pthread_mutex_unlock(&e->mutex);
    pthread_join(e->thread, NULL);
    e->joined = true;
}

void nk__engine_stop(nk_engine *e)
{
    if (!e)
        return;
    if (!e->joined)
        nk__engine_stop_thread(e);
    engine_free(e);
}
