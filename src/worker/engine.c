/* The engine: the one thread that owns the stage. What it runs next is schedule.c's to say, what
 * becomes of the result answer.c's; here are the thread, the stage's life, and a batch's run. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/thread.h"
#include "worker/answer.h"
#include "worker/aside.h"
#include "worker/schedule.h"
#include "worker/worker_int.h"

/* Jobs that wait to be used again: of one row (decode), and larger ones, which keep their room for
 * a chunk. */
enum { POOL_SMALL_MAX = 1024, POOL_LARGE_MAX = 32 };
/* Logits that are kept for steps aside, of all sessions. A step that would need more is done with
 * on the compute thread. */
enum { KEPT_BYTES_MAX = 64 << 20 };

typedef struct nk_compute_job job;

struct pool {
    struct nk_schedule_list list;
    int n, max;
};

struct nk_engine {
    nk_worker *w;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct nk_engine_counters counters;
    struct nk_stage_info info; /* a copy that outlives a closed stage */

    /* under the mutex */
    struct nk_schedule schedule;
    struct pool small, large;
    bool started, stop, joined;
    int start_rc; /* of opening the stage */
    struct nk_error *start_err;

    /* compute thread */
    nk_stage *stage;
    struct nk_answering answering;
    struct nk_aside aside;
    atomic_size_t kept_bytes;     /* more of them only by the compute thread */
    struct nk_schedule_job **run; /* n_batch */
    int32_t *ids, *pos, *seq;
    int8_t *want;
    float *rows;     /* n_batch x n_embd: rows of several jobs side by side */
    pthread_t pages; /* moves the stage's memory into huge pages; runs while pages_running */
    bool pages_running;
    atomic_bool pages_stop;
};

static uint64_t now_ns(const nk_engine *e)
{
    return nk__worker_now_ns(e->w);
}

static job *job_of(struct nk_schedule_job *j)
{
    return (job *)j; /* its first member */
}

/* ---- the pool ---- */

static void pool_init(struct pool *p, int max)
{
    TAILQ_INIT(&p->list);
    p->max = max;
}

static job *pool_take(struct pool *p)
{
    struct nk_schedule_job *j = TAILQ_FIRST(&p->list);

    if (!j)
        return NULL;
    TAILQ_REMOVE(&p->list, j, link);
    p->n--;
    return job_of(j);
}

/* False: it is full. */
static bool pool_put(struct pool *p, job *j)
{
    if (p->n >= p->max)
        return false;
    TAILQ_INSERT_HEAD(&p->list, &j->sched, link);
    p->n++;
    return true;
}

static void job_destroy(job *j)
{
    free(j->ids);
    free(j->rows);
    free(j);
}

static int job_reserve(job *j, int n, size_t n_floats, struct nk_error *err)
{
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
    return 0;
no_memory:
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a step of %d rows", n);
}

int nk__engine_job(nk_engine *e, job **out, int n, bool with_rows, struct nk_error *err)
{
    job *j;
    int rc;

    *out = NULL;
    pthread_mutex_lock(&e->mutex);
    j = pool_take(n <= 1 ? &e->small : &e->large);
    pthread_mutex_unlock(&e->mutex);
    if (!j && !(j = calloc(1, sizeof *j)))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a step");
    rc = job_reserve(j, n, with_rows ? (size_t)n * (size_t)e->info.n_embd : 0, err);
    if (rc) {
        job_destroy(j);
        return rc;
    }
    *j = (job){ .sched = { .n = n },
                .ids = j->ids,
                .ids_capacity = j->ids_capacity,
                .rows = j->rows,
                .rows_capacity = j->rows_capacity,
                .has_rows = with_rows,
                .seq = -1 };
    *out = j;
    return 0;
}

static void drop_references(job *j)
{
    if (j->session)
        nk__session_unref(j->session);
    if (j->settles)
        nk__session_unref(j->settles);
    if (j->call)
        nk_call_unref(j->call);
    free(j->logits);
    j->session = j->settles = NULL;
    j->call = NULL;
    j->logits = NULL;
    j->logits_bytes = 0;
}

void nk__engine_job_free(nk_engine *e, job *j)
{
    bool pooled = false;

    atomic_fetch_sub(&e->kept_bytes, j->logits_bytes);
    drop_references(j);
    if (j->ids_capacity <= NK_POOL_ROWS_MAX) {
        pthread_mutex_lock(&e->mutex);
        pooled = pool_put(j->ids_capacity <= 1 ? &e->small : &e->large, j);
        pthread_mutex_unlock(&e->mutex);
    }
    if (!pooled)
        job_destroy(j);
}

/* ---- the net thread's side ---- */

/* The mutex is held: the schedule has changed. */
static void schedule_changed(nk_engine *e)
{
    atomic_store(&e->counters.jobs_queued, e->schedule.n_jobs);
    pthread_cond_signal(&e->cond);
}

void nk__engine_submit(nk_engine *e, job *j)
{
    uint64_t now = now_ns(e);

    j->sched.lane = j->session ? &j->session->lane : NULL;
    pthread_mutex_lock(&e->mutex);
    nk__schedule_add(&e->schedule, &j->sched, now);
    schedule_changed(e);
    pthread_mutex_unlock(&e->mutex);
}

void nk__engine_leave_group(nk_engine *e, struct nk_session *s)
{
    pthread_mutex_lock(&e->mutex);
    nk__schedule_leave_group(&e->schedule, &s->lane);
    schedule_changed(e);
    pthread_mutex_unlock(&e->mutex);
}

void nk__engine_drop(nk_engine *e, struct nk_session *s)
{
    struct nk_schedule_list dropped = TAILQ_HEAD_INITIALIZER(dropped);
    struct nk_schedule_job *j;

    pthread_mutex_lock(&e->mutex);
    nk__schedule_remove(&e->schedule, &s->lane, &dropped);
    schedule_changed(e);
    pthread_mutex_unlock(&e->mutex);
    while ((j = TAILQ_FIRST(&dropped))) {
        TAILQ_REMOVE(&dropped, j, link);
        nk__engine_job_free(e, job_of(j));
    }
}

void nk__engine_set_decoding(nk_engine *e, int n_sessions, int n_at_once)
{
    pthread_mutex_lock(&e->mutex);
    nk__schedule_set_decoding(&e->schedule, n_sessions, n_at_once);
    pthread_mutex_unlock(&e->mutex);
}

/* ---- results ---- */

static void call_done(void *arg)
{
    job *j = arg;

    j->done(j);
}

/* The job is through, with rc and err in it. */
static void give_back(nk_engine *e, job *j)
{
    if (j->done)
        nk_net_post(e->w->net, call_done, j);
    else
        nk__engine_job_free(e, j);
}

static void give_back_error(nk_engine *e, job *j, int rc, const struct nk_error *err)
{
    j->rc = rc;
    j->err = *err;
    give_back(e, j);
}

/* ---- running steps ---- */

/* Jobs side by side as one batch, which lives in e. */
static struct nk_stage_batch make_batch(nk_engine *e, struct nk_schedule_job **jobs, int n)
{
    struct nk_stage_batch batch = { .ids = e->ids, .pos = e->pos, .seq = e->seq, .want = e->want };
    size_t width = (size_t)e->info.n_embd;

    /* Of one job they are where they are. */
    if (!e->info.is_first)
        batch.rows = n == 1 ? job_of(jobs[0])->rows : e->rows;
    for (int i = 0; i < n; i++) {
        const job *j = job_of(jobs[i]);
        int begin = batch.n_tokens;

        if (!e->info.is_first && n > 1)
            memcpy(e->rows + (size_t)begin * width, j->rows,
                   (size_t)j->sched.n * width * sizeof(float));
        for (int k = 0; k < j->sched.n; k++) {
            e->ids[begin + k] = j->ids[k];
            e->pos[begin + k] = j->pos + k;
            e->seq[begin + k] = j->seq;
            e->want[begin + k] = nk__answer_wants(j, k);
        }
        batch.n_tokens += j->sched.n;
    }
    return batch;
}

static void count_step(nk_engine *e, const job *j)
{
    struct nk_engine_counters *c = &e->counters;
    struct nk_session_shared *s = &j->session->shared;
    uint64_t compute_ns = j->end_ns - j->begin_ns, queue_ns = j->begin_ns - j->sched.queued_ns;

    atomic_fetch_add(&c->steps, 1);
    atomic_fetch_add(&c->queue_ns, queue_ns);
    atomic_fetch_add(nk__schedule_is_decode(&j->sched) ? &c->tokens_decoded : &c->tokens_prefilled,
                     (unsigned)j->sched.n);
    atomic_fetch_add(&s->runs, 1);
    atomic_fetch_add(&s->compute_ns, compute_ns);
    atomic_fetch_add(&s->queue_ns, queue_ns);
}

static void answered(nk_engine *e, job *j, bool back, int rc, const struct nk_error *err)
{
    if (rc)
        give_back_error(e, j, rc, err);
    else if (back)
        give_back(e, j);
    else
        nk__engine_job_free(e, j);
}

/* ---- checkpoints ---- */

/* A state that is to be run again from a position which is not its end is put back to what it was
 * there. Where there is no checkpoint, the run itself says so. */
static int go_back(nk_engine *e, const job *j, struct nk_error *err)
{
    nk__checkpoints *c = j->session->checkpoints;
    nk__state *state;
    int rc;

    if (!c || j->pos == nk_stage_seq_length(e->stage, j->seq))
        return 0;
    nk__checkpoints_truncate(c, j->pos);
    state = nk__checkpoints_get(c, j->pos);
    if (!state)
        return 0;
    rc = nk_stage_state_restore(e->stage, j->seq, j->pos, nk__state_data(state),
                                nk__state_size(state), err);
    nk__checkpoints_release(c, state);
    return rc;
}

/* Before the rows go on: who is told that the step is through finds it there. */
static void keep_state(nk_engine *e, const job *j)
{
    nk__checkpoints *c = j->session->checkpoints;
    int pos = j->pos + j->sched.n;
    uint64_t begin_ns = now_ns(e);
    struct nk_error err;
    nk__state *state;
    size_t size;

    if (!c || !j->checkpoint)
        return;
    size = nk_stage_state_size(e->stage, j->seq);
    if (!nk__checkpoints_could(c, size) || !(state = nk__state_new(size)))
        return;
    if (nk_stage_state_save(e->stage, j->seq, nk__state_data(state), size, &err)) {
        nk_log(NK_LOG_WORKER, NK_LOG_WARN, "session=%s reason=%s msg=\"no checkpoint at %d\"",
               j->session->name, err.reason, pos);
        nk__checkpoints_put(NULL, pos, j->checkpoint, state);
        return;
    }
    nk__checkpoints_put(c, pos, j->checkpoint, state);
    nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "session=%s event=checkpoint pos=%d bytes=%zu us=%" PRIu64,
           j->session->name, pos, size, (now_ns(e) - begin_ns) / 1000);
}

/* Its logits are kept, and it is aside from now on. */
static int put_aside(nk_engine *e, job *j, int row_idx, struct nk_error *err)
{
    int rc = nk__answer_keep(&e->answering, j, e->stage, row_idx, err);

    if (rc)
        return rc;
    atomic_fetch_add(&e->kept_bytes, j->logits_bytes);
    if (j->session->is_first)
        nk__engine_leave_group(e, j->session);
    else if (j->sched.sample && j->session->up_takes_aside)
        nk__answer_tell_aside(j);
    nk__aside_add(&e->aside, j->session, j);
    return 0;
}

static void answer_step(nk_engine *e, job *j, int row_idx)
{
    struct nk_session *s = j->session;
    struct nk_error err;
    bool back = false;
    int rc = NK_E_DEADLINE;

    if (!s->is_last || !nk__aside_has(&e->aside, s))
        rc = nk__answer_step(&e->answering, j, e->stage, row_idx, &back, &err);
    if (rc == NK_E_DEADLINE) {
        size_t bytes = nk__answer_keep_bytes(&e->answering, j);

        if (atomic_load(&e->kept_bytes) + bytes <= KEPT_BYTES_MAX) {
            rc = put_aside(e, j, row_idx, &err);
            if (!rc)
                return;
        } else {
            nk__aside_wait_for(&e->aside, s);
            j->unhurried = true;
            rc = nk__answer_step(&e->answering, j, e->stage, row_idx, &back, &err);
        }
    }
    answered(e, j, back, rc, &err);
}

void nk__engine_do_aside(nk_engine *e, void (*work)(void *arg), void *arg)
{
    if (e->w->opts.by_hand)
        work(arg);
    else
        nk__aside_do(&e->aside, work, arg);
}

/* On a thread of the session (aside.h). */
static void answer_aside(void *user, job *j)
{
    nk_engine *e = user;
    struct nk_error err;
    bool back;
    int rc;

    if (j->kind == NK_COMPUTE_SETTLE) {
        give_back(e, j);
        return;
    }
    if (atomic_load(&j->session->dropped)) {
        nk__engine_job_free(e, j);
        return;
    }
    rc = nk__answer_aside(&e->answering, j, &back, &err);
    answered(e, j, back, rc, &err);
}

/* Runs jobs[0..n) as one batch. On success every job was answered. */
static int run_steps(nk_engine *e, struct nk_schedule_job **jobs, int n, struct nk_error *err)
{
    struct nk_stage_batch batch = make_batch(e, jobs, n);
    uint64_t begin_ns = now_ns(e), end_ns;
    int rc = 0;

    for (int i = 0; i < n && !rc; i++)
        rc = go_back(e, job_of(jobs[i]), err);
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        job *j = job_of(jobs[i]);

        j->begin_ns = begin_ns;
        nk_trace_event(e->w->trace, begin_ns, "computing", j->session->name, j->step, j->pos,
                       j->sched.n);
    }
    rc = nk_stage_run(e->stage, &batch, err);
    end_ns = now_ns(e); /* before the first row goes out: the next stage may begin with it */
    if (rc)
        return rc;
    atomic_fetch_add(&e->counters.runs, 1);
    atomic_fetch_add(&e->counters.rows, (unsigned)batch.n_tokens);
    atomic_fetch_add(&e->counters.compute_ns, end_ns - begin_ns);
    for (int i = 0, at = 0; i < n; i++) {
        job *j = job_of(jobs[i]);
        int rows = j->sched.n;

        j->end_ns = end_ns;
        count_step(e, j);
        atomic_store(&j->session->shared.n_computed, j->pos + rows);
        nk_trace_event(e->w->trace, end_ns, "computed", j->session->name, j->step, j->pos, rows);
        keep_state(e, j);
        answer_step(e, j, at);
        at += rows;
    }
    return 0;
}

/* Whether one run may hold rows of several sessions. */
static bool can_merge(const nk_engine *e)
{
    return !e->info.one_sequence_per_run && !e->info.equal_rows_per_run;
}

static void run_batch(nk_engine *e, int n)
{
    struct nk_error err;
    int rc;

    NK_ASSERT(e->stage); /* sessions end before the stage is closed */
    if (n > 1 && can_merge(e)) {
        rc = run_steps(e, e->run, n, &err);
        if (!rc)
            return;
        /* One of them is at fault (its rows, or its share of the KV): each alone finds out which.
         * Positions are authoritative, so running a step again is harmless. */
        nk_log(NK_LOG_WORKER, NK_LOG_DEBUG,
               "merged=%d reason=%s msg=\"a merged run failed; each alone\"", n, err.reason);
    }
    for (int i = 0; i < n; i++) {
        job *j = job_of(e->run[i]);

        rc = run_steps(e, &e->run[i], 1, &err);
        if (rc)
            give_back_error(e, j, rc, &err);
    }
}

/* ---- the stage's life ---- */

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
    uint64_t begin_ns = now_ns(e), bytes;

    nk_cpu_unpin();
    bytes = nk_stage_use_huge_pages(e->stage, &e->pages_stop);
    nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "event=huge_pages mib=%.0f seconds=%.2f",
           (double)bytes / (1 << 20), (double)(now_ns(e) - begin_ns) / 1e9);
    return NULL;
}

/* Beside the work, which may begin meanwhile: a worker is ready before this is through. */
static void pages_start(nk_engine *e)
{
    if (e->w->opts.by_hand)
        return;
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
    nk__aside_wait(&e->aside); /* samplers use the stage's vocabulary */
    stage_set(e, NULL);
    nk_vocab_close(e->answering.vocab);
    e->answering.vocab = NULL;
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
    atomic_store(&e->counters.verified, (unsigned)info->verified);
    if (info->is_last && !(e->answering.vocab = nk_vocab_borrow(nk_stage_vocab(stage)))) {
        stage_close(e);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    pages_start(e);
    return 0;
}

/* ---- control jobs ---- */

static int run_forward(nk_engine *e, job *j)
{
    struct nk_stage_batch batch = { .n_tokens = j->sched.n,
                                    .ids = j->ids,
                                    .rows = j->has_rows ? j->rows : NULL,
                                    .pos = e->pos,
                                    .seq = e->seq,
                                    .want = e->want };
    uint64_t begin_ns = now_ns(e);
    int rc;

    if (!e->stage)
        return nk_fail(&j->err, NK_E_UNAVAILABLE, "asleep", "the worker is asleep");
    for (int i = 0; i < j->sched.n; i++) {
        e->pos[i] = i;
        e->seq[i] = j->seq;
        e->want[i] = j->all_logits || i == j->sched.n - 1;
    }
    rc = nk_stage_run(e->stage, &batch, &j->err);
    if (!rc)
        rc = nk__answer_forward(&e->answering, j, e->stage, now_ns(e) - begin_ns, &j->err);
    nk_stage_seq_clear(e->stage, j->seq);
    return rc;
}

static void run_copy(nk_engine *e, const job *j)
{
    struct nk_error err;

    /* Failing leaves seq_to empty, and the first step's position then is a gap, which ends the
     * session. */
    if (e->stage && nk_stage_seq_copy(e->stage, j->seq, j->seq_to, &err))
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "seq=%d reason=%s msg=\"a kept session could not be copied\"", j->seq, err.reason);
}

static void run_control(nk_engine *e, job *j)
{
    j->begin_ns = now_ns(e);
    switch (j->kind) {
    case NK_COMPUTE_STEP:
        NK_ASSERT(false);
        break;
    case NK_COMPUTE_CLEAR:
        if (e->stage)
            nk_stage_seq_clear(e->stage, j->seq);
        break;
    case NK_COMPUTE_COPY:
        run_copy(e, j);
        break;
    case NK_COMPUTE_FORWARD:
        j->rc = run_forward(e, j);
        break;
    case NK_COMPUTE_SETTLE:
        if (nk__aside_has(&e->aside, j->settles)) {
            j->end_ns = now_ns(e);
            nk__aside_add(&e->aside, j->settles, j);
            return;
        }
        break;
    case NK_COMPUTE_SLEEP:
        stage_close(e);
        break;
    case NK_COMPUTE_WAKE:
        if (!e->stage)
            j->rc = stage_open(e, &j->err);
        break;
    }
    j->end_ns = now_ns(e);
    give_back(e, j);
}

/* ---- the thread ---- */

static void wait_for_work(nk_engine *e, uint64_t until_ns)
{
    if (until_ns)
        nk_clock_wait_until(e->w->opts.clock, &e->cond, &e->mutex, until_ns);
    else
        pthread_cond_wait(&e->cond, &e->mutex);
}

/* Under the mutex. */
static int pick(nk_engine *e, uint64_t *wait_until)
{
    int n = nk__schedule_pick(&e->schedule, now_ns(e), e->run, wait_until);

    if (n)
        atomic_store(&e->counters.jobs_queued, e->schedule.n_jobs);
    return n;
}

int nk__engine_pick(nk_engine *e, uint64_t *wait_until)
{
    int n;

    pthread_mutex_lock(&e->mutex);
    n = pick(e, wait_until);
    pthread_mutex_unlock(&e->mutex);
    return n;
}

void nk__engine_run(nk_engine *e, int n)
{
    if (e->run[0]->lane)
        run_batch(e, n);
    else
        run_control(e, job_of(e->run[0]));
}

/* With the mutex held, but for the computing. */
static void compute(nk_engine *e)
{
    while (!e->stop) {
        uint64_t wait_until;
        int n = pick(e, &wait_until);

        if (!n) {
            wait_for_work(e, wait_until);
            continue;
        }
        pthread_mutex_unlock(&e->mutex);
        nk__engine_run(e, n);
        pthread_mutex_lock(&e->mutex);
    }
}

/* Two jobs a sequence: the next step may be queued before the last one's job is back. */
static int fill_pool(nk_engine *e, int n, struct nk_error *err)
{
    for (int i = 0; i < n; i++) {
        job *j = calloc(1, sizeof *j);
        int rc;

        if (!j)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        rc = job_reserve(j, 1, e->info.is_first ? 0 : (size_t)e->info.n_embd, err);
        if (rc || !pool_put(&e->small, j))
            job_destroy(j);
        if (rc)
            return rc;
    }
    return 0;
}

/* What a stage of this size needs beside it. */
static int allocate(nk_engine *e, struct nk_error *err)
{
    size_t n = (size_t)e->info.n_batch, width = (size_t)e->info.n_embd;
    int rc;

    e->run = calloc(n, sizeof *e->run);
    e->ids = calloc(n, sizeof *e->ids);
    e->pos = calloc(n, sizeof *e->pos);
    e->seq = calloc(n, sizeof *e->seq);
    e->want = calloc(n, sizeof *e->want);
    e->rows = e->info.is_first ? NULL : calloc(n * width, sizeof *e->rows);
    if (!e->run || !e->ids || !e->pos || !e->seq || !e->want || (!e->rows && !e->info.is_first))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for batches of %zu rows", n);
    rc = nk__answer_init(&e->answering, e->w->opts.clock, e->w->trace, &e->info, err);
    return rc ? rc : fill_pool(e, 2 * e->info.n_seq_max, err);
}

/* Needs to know the stage. */
static int schedule_init(nk_engine *e, struct nk_error *err)
{
    struct nk_schedule_opts opts = { .is_first = e->info.is_first,
                                     .on_cpu = strcmp(e->info.backend, "CPU") == 0,
                                     .n_batch = e->info.n_batch };
    int rc = nk_chance_fill(e->w->opts.chance, &opts.group, sizeof opts.group, err);

    if (!rc)
        nk__schedule_init(&e->schedule, &opts);
    return rc;
}

/* The stage is opened by the thread that will compute with it. Opening computes too, and OpenMP
 * gives every thread that computes a team of its own: with a second team, even an idle one, libgomp
 * counts more threads than cores and lets all of them sleep at every barrier instead of spinning,
 * which cost a fifth of the speed. */
static int begin(nk_engine *e)
{
    int rc = stage_open(e, e->start_err);

    if (!rc)
        rc = schedule_init(e, e->start_err);
    return rc ? rc : allocate(e, e->start_err);
}

static void *compute_main(void *arg)
{
    nk_engine *e = arg;
    int rc = begin(e);

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

/* ---- life ---- */

struct nk_engine_counters *nk__engine_counters(nk_engine *e)
{
    return &e->counters;
}

const struct nk_stage_info *nk__engine_info(const nk_engine *e)
{
    return &e->info;
}

int nk__engine_check(nk_engine *e, struct nk_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&e->mutex); /* the stage is not closed meanwhile */
    if (e->stage)
        rc = nk_stage_file_check(e->stage, err);
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

const nk_vocab *nk__engine_vocab(const nk_engine *e)
{
    return e->answering.vocab;
}

static void engine_free(nk_engine *e)
{
    struct nk_schedule_job *queued;
    job *j;

    while ((queued = nk__schedule_pop(&e->schedule))) {
        drop_references(job_of(queued));
        job_destroy(job_of(queued));
    }
    while ((j = pool_take(&e->small)) || (j = pool_take(&e->large)))
        job_destroy(j);
    stage_close(e);
    nk__answer_release(&e->answering);
    nk__aside_release(&e->aside);
    free(e->run);
    free(e->ids);
    free(e->pos);
    free(e->seq);
    free(e->want);
    free(e->rows);
    pthread_cond_destroy(&e->cond);
    pthread_mutex_destroy(&e->mutex);
    free(e);
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
    nk__aside_init(&e->aside, answer_aside, e);
    pool_init(&e->small, POOL_SMALL_MAX);
    pool_init(&e->large, POOL_LARGE_MAX);
    /* Empty until the stage is known. */
    nk__schedule_init(&e->schedule, &(struct nk_schedule_opts){ 0 });
    if (w->opts.by_hand) {
        rc = begin(e);
    } else if (nk_thread_start(&e->thread, compute_main, e)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the compute thread could not be started");
    } else {
        pthread_mutex_lock(&e->mutex);
        while (!e->started)
            pthread_cond_wait(&e->cond, &e->mutex);
        rc = e->start_rc;
        pthread_mutex_unlock(&e->mutex);
        if (rc)
            pthread_join(e->thread, NULL);
    }
    if (rc) {
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
    if (!e->w->opts.by_hand)
        pthread_join(e->thread, NULL);
    nk__aside_wait(&e->aside);
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
