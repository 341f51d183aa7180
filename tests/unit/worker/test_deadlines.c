/* What a worker does when time passes: a real one in this process, whose clock the test moves. The
 * stage behind it is the test's, and so is the client (or the stage before). For each limit: 1 ms
 * before it nothing, at it the reason. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <llama.h>

#include "nakshatra.pb-c.h"
#include "rpc/rpc_int.h"
#include "slice/slice.h"
#include "unit/seed.h"
#include "unit/virtual_clock.h"
#include "worker/worker_int.h"

enum {
    MS = 1000000,
    STALL_MS = 30000,
    QUEUE_MS = 5000,
    IDLE_MS = 60000,
    GRACE_MS = 4000,
    TICK_MS = 25,  /* of session.c: how often deadlines are looked at */
    STEP_MS = 200, /* how far the clock is moved at once: less than session.c calls a pause */
    MESSAGES_MAX = 64,
};

static const char inference[] = "/nakshatra.v1.Nakshatra/Inference";

/* ---- what the test sees of a call, on either side of the worker ---- */

struct seen {
    int kind; /* of the message: its kind_case */
    uint64_t step, group;
    uint32_t seed;
};

struct side {
    nk_call *call; /* a reference */
    struct seen seen[MESSAGES_MAX];
    int n;
    bool ended;
    struct nk_error status;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void see(struct side *s, struct seen what)
{
    pthread_mutex_lock(&mutex);
    if (s->n < MESSAGES_MAX)
        s->seen[s->n++] = what;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void side_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct side *s = user;

    (void)c;
    pthread_mutex_lock(&mutex);
    s->ended = true;
    s->status = status ? *status : (struct nk_error){ 0 };
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void side_release(struct side *s)
{
    if (s->call) {
        nk_call_cancel(s->call);
        pthread_mutex_lock(&mutex);
        while (!s->ended)
            pthread_cond_wait(&changed, &mutex);
        pthread_mutex_unlock(&mutex);
        nk_call_unref(s->call);
    }
    *s = (struct side){ 0 };
}

/* The n-th message (from 0), once it is there; ends the test if the call ends before. */
static struct seen wait_message(struct side *s, int n)
{
    struct seen out = { 0 };
    bool there;

    pthread_mutex_lock(&mutex);
    while (s->n <= n && !s->ended)
        pthread_cond_wait(&changed, &mutex);
    there = s->n > n;
    if (there)
        out = s->seen[n];
    pthread_mutex_unlock(&mutex);
    if (!there)
        fail_msg("the call ended before message %d: %s", n, s->status.msg);
    return out;
}

static void wait_end(struct side *s, const char *reason)
{
    pthread_mutex_lock(&mutex);
    while (!s->ended)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    assert_string_equal(s->status.reason, reason);
}

/* ---- the stage behind: layers 4-8, as far as it says anything ---- */

static char sha256[65]; /* of the model, as the slices say */
static int n_embd;
static nk_net *net; /* the test's, on the system's clock */
static nk_server *next_server;
static char next_address[32];
static struct side next[2]; /* its calls, in their order */
static atomic_int n_next;
static atomic_int next_tokens; /* how many steps it answers; the last of them ends the generation */
static atomic_bool next_opens; /* whether it answers Open */

static void next_send_opened(nk_call *c)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Opened opened = NAKSHATRA__V1__OPENED__INIT;
    Nakshatra__V1__StageInfo stage = NAKSHATRA__V1__STAGE_INFO__INIT, *stages[] = { &stage };

    stage.worker_id = (char *)(uintptr_t) "cellar";
    stage.model_sha256 = sha256;
    stage.layer_begin = 4;
    stage.layer_end = 8;
    stage.layer_count = 8;
    stage.n_embd = (uint32_t)n_embd;
    stage.llama_version = (char *)(uintptr_t)llama_version();
    opened.stages = stages;
    opened.n_stages = 1;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED;
    reply.opened = &opened;
    nk_call_send_pb(c, (ProtobufCMessage *)&reply, NULL);
}

static void next_send_token(nk_call *c, uint64_t step, bool last)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Token token = NAKSHATRA__V1__TOKEN__INIT;

    token.step = step;
    token.id = 300;
    if (last)
        token.finish = NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH;
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN;
    reply.token = &token;
    nk_call_send_pb(c, (ProtobufCMessage *)&reply, NULL);
}

static void next_message(nk_call *c, void *user, struct nk_bytes msg)
{
    Nakshatra__V1__InferenceRequest *m =
        nakshatra__v1__inference_request__unpack(NULL, msg.size, msg.data);
    struct seen seen = { .kind = (int)m->kind_case };

    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP) {
        seen.step = m->step->step;
        seen.group = m->step->group;
    }
    see(user, seen);
    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN && atomic_load(&next_opens)) {
        next_send_opened(c);
    }
    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP &&
        atomic_load(&next_tokens) > 0)
        next_send_token(c, m->step->step, atomic_fetch_sub(&next_tokens, 1) == 1);
    nakshatra__v1__inference_request__free_unpacked(m, NULL);
}

static void next_open(nk_call *c, void *user)
{
    static const struct nk_call_handlers handlers = { .message = next_message, .end = side_end };
    struct side *s = &next[atomic_fetch_add(&n_next, 1) % 2];

    (void)user;
    pthread_mutex_lock(&mutex);
    s->call = nk_call_ref(c);
    pthread_mutex_unlock(&mutex);
    nk_call_accept(c, &handlers, s);
}

/* ---- the client ---- */

static void client_message(nk_call *c, void *user, struct nk_bytes msg)
{
    Nakshatra__V1__InferenceReply *m =
        nakshatra__v1__inference_reply__unpack(NULL, msg.size, msg.data);
    struct seen seen = { .kind = (int)m->kind_case };

    (void)c;
    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED)
        seen.seed = m->opened->seed;
    if (m->kind_case == NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN)
        seen.step = m->token->step;
    see(user, seen);
    nakshatra__v1__inference_reply__free_unpacked(m, NULL);
}

static void any_message(nk_call *c, void *user, struct nk_bytes msg)
{
    (void)c, (void)msg;
    see(user, (struct seen){ 0 });
}

/* ---- the worker ---- */

static char dir[] = "nk-deadlines-XXXXXX", slices[2][64];
static struct virtual_clock v;
static struct seeded chance;
static uint64_t chance_seed;
static nk_worker *w;
static nk_channel *channel;
static struct side clients[2];

static void worker_start(bool is_first, int n_sequences, uint64_t seed)
{
    const char *peers[] = { next_address };
    struct nk_worker_opts opts = nk_worker_opts_default();
    char address[32];
    struct nk_error err;

    virtual_clock_init(&v);
    seeded_init(&chance, seed);
    opts.clock = &v.clock;
    opts.chance = &chance.chance;
    opts.slice_path = slices[!is_first];
    opts.listen = "127.0.0.1:0";
    opts.id = is_first ? "attic" : "cellar";
    opts.peers = peers;
    opts.n_peers = is_first;
    opts.stage.device = "CPU";
    opts.stage.n_threads = 1;
    opts.stage.n_ctx = 256;
    opts.stage.n_batch = 16;
    opts.stage.n_seq_max = n_sequences;
    opts.stall_ms = STALL_MS;
    opts.queue_ms = QUEUE_MS;
    opts.idle_ms = IDLE_MS;
    if (nk_worker_start(&w, &opts, &err))
        fail_msg("%s", err.msg);
    n_embd = nk_worker_stage(w)->n_embd;
    snprintf(address, sizeof address, "127.0.0.1:%d", nk_worker_port(w));
    assert_int_equal(nk_channel_open(&channel, net, address, NULL, NULL), 0);
    atomic_store(&n_next, 0);
    atomic_store(&next_opens, true);
    atomic_store(&next_tokens, 0);
}

/* Both ends of every call are through. */
static void sides_release(void)
{
    for (int i = 0; i < 2; i++)
        side_release(&clients[i]);
    for (int i = 0; i < 2; i++)
        side_release(&next[i]);
    atomic_store(&n_next, 0);
}

static void worker_stop(void)
{
    sides_release();
    nk_channel_close(channel);
    nk_worker_stop(w, 0);
    w = NULL;
    virtual_clock_release(&v);
}

/* A thread is in nk_worker_stop. */
static pthread_t stopper;
static bool stopping;

static void *stop(void *worker)
{
    nk_worker_stop(worker, GRACE_MS);
    return NULL;
}

static void stop_begin(void)
{
    stopping = true;
    pthread_create(&stopper, NULL, stop, w);
    virtual_clock_wait_for_waiter(&v, GRACE_MS);
}

static void stop_join(void)
{
    sides_release();
    nk_channel_close(channel);
    pthread_join(stopper, NULL);
    stopping = false;
    w = NULL;
    virtual_clock_release(&v);
}

/* After a test that failed. */
static int clean_up(void **state)
{
    (void)state;
    if (stopping) {
        virtual_clock_advance_ms(&v, GRACE_MS);
        stop_join();
    }
    if (w)
        worker_stop();
    return 0;
}

static void note(void *arg)
{
    pthread_mutex_lock(&mutex);
    *(bool *)arg = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* The worker's net thread has run what was due: its timers are run after each event, so after the
 * second it has run them after the first. */
static void settle(void)
{
    for (int i = 0; i < 2; i++) {
        bool done = false;

        nk_net_post(w->net, note, &done);
        pthread_mutex_lock(&mutex);
        while (!done)
            pthread_cond_wait(&changed, &mutex);
        pthread_mutex_unlock(&mutex);
    }
}

/* Time passes as it does for a process that runs. */
static void pass(uint64_t ms)
{
    while (ms) {
        uint64_t step = ms < STEP_MS ? ms : STEP_MS;

        virtual_clock_advance_ms(&v, step);
        settle();
        ms -= step;
    }
}

/* What belongs to the worker's net thread is asked for there. What the worker has done shows here
 * at once; on the other side of a call only when it has got there. */
struct question {
    int n_active; /* sessions */
    int n_waiting, n_held;
    int n_calls;
    size_t n_timers;
    enum nk_worker_state state;
    bool done;
};

static void answer(void *arg)
{
    struct question *q = arg;

    q->n_active = nk__session_n_active(w);
    q->n_waiting = w->sessions[NK_SESSION_WAITING].n;
    q->n_held = w->sessions[NK_SESSION_HELD].n;
    q->n_calls = w->server->n_calls;
    q->n_timers = w->net->n_timers;
    q->state = w->state;
    note(&q->done);
}

static struct question ask(void)
{
    struct question q = { .done = false };

    nk_net_post(w->net, answer, &q);
    pthread_mutex_lock(&mutex);
    while (!q.done)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    return q;
}

/* Time passes; its last step is of `step` ms, so that the deadlines are looked at before and after
 * it. */
static void pass_but_end_with(uint64_t ms, uint64_t step)
{
    pass(ms - step);
    pass(step);
}

static void client_start(struct side *s, const char *path,
                         void (*message)(nk_call *, void *, struct nk_bytes))
{
    static struct nk_call_handlers handlers[2];
    struct nk_call_handlers *h = &handlers[s - clients];

    *h = (struct nk_call_handlers){ .message = message, .end = side_end };
    pthread_mutex_lock(&mutex);
    assert_int_equal(nk_call_start(&s->call, channel, path, 0, h, s, NULL), 0);
    nk_call_ref(s->call);
    pthread_mutex_unlock(&mutex);
}

/* Opens a session: on the first stage with a prompt of six tokens, on the later one as the stage
 * before would. */
static uint32_t client_hold_ms; /* of those that client_open opens */

static void client_open(struct side *s, bool is_first, uint32_t deadline_ms)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Stage stages[2] = { NAKSHATRA__V1__STAGE__INIT, NAKSHATRA__V1__STAGE__INIT };
    Nakshatra__V1__Stage *route[2] = { &stages[0], &stages[1] };
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    int32_t ids[] = { 1, 300, 360, 490, 292, 833 };
    uint8_t session[16] = { (uint8_t)(1 + (s - clients)) };

    for (int i = 0; i < 2; i++) {
        stages[i].address = i ? next_address : (char *)(uintptr_t) "127.0.0.1:1";
        stages[i].layer_begin = i ? 4 : 0;
        stages[i].layer_end = i ? 8 : 4;
    }
    open.session.data = session;
    open.session.len = sizeof session;
    open.route = route;
    open.n_route = 2;
    open.stage_idx = !is_first;
    open.model_sha256 = sha256;
    limits.n_predict = 20;
    limits.deadline_ms = deadline_ms;
    open.limits = &limits;
    if (is_first) {
        open.prompt_ids = ids;
        open.n_prompt_ids = 6;
    } else {
        open.n_tokens_max = 100;
    }
    open.hold_ms = client_hold_ms;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    req.open = &open;
    client_start(s, inference, client_message);
    assert_int_equal(nk_call_send_pb(s->call, (ProtobufCMessage *)&req, NULL), 0);
}

/* As the stage before: one row that wants a token. */
static void client_step(struct side *s, uint64_t group, uint32_t group_size)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Step step = NAKSHATRA__V1__STEP__INIT;
    Nakshatra__V1__Rows rows = NAKSHATRA__V1__ROWS__INIT;
    float *row = calloc((size_t)n_embd, sizeof *row);
    int32_t id = 300;

    rows.n_rows = 1;
    rows.width = (uint32_t)n_embd;
    rows.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
    rows.data.data = (uint8_t *)row;
    rows.data.len = (size_t)n_embd * sizeof *row;
    step.step = 1;
    step.n_ids = 1;
    step.ids = &id;
    step.rows = &rows;
    step.sample = true;
    step.group = group;
    step.group_size = group_size;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP;
    req.step = &step;
    assert_int_equal(nk_call_send_pb(s->call, (ProtobufCMessage *)&req, NULL), 0);
    free(row);
}

/* ---- an opener that says that it cancels ---- */

static void
test_worker__a_session_that_is_cancelled_with_a_word_is_freed_in_good_order(void **state)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Cancel cancel = NAKSHATRA__V1__CANCEL__INIT;

    (void)state;
    worker_start(false, 2, 1);
    client_open(&clients[0], false, 0);
    wait_message(&clients[0], 0);
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL;
    req.cancel = &cancel;
    assert_int_equal(nk_call_send_pb(clients[0].call, (ProtobufCMessage *)&req, NULL), 0);
    wait_end(&clients[0], "cancelled");
    assert_string_equal(clients[0].status.msg, "the opener cancelled the session");
    while (ask().n_active)
        sched_yield();
    worker_stop();
}

/* ---- limits of a session ---- */

/* It began just now. What ends it is looked at every TICK_MS: once 1 ms too early, once in time. */
static void ends_at(void (*begin)(void), struct side *s, uint64_t limit_ms, const char *reason)
{
    int n_active;

    begin();
    n_active = ask().n_active;
    pass_but_end_with(limit_ms - 1, TICK_MS);
    assert_int_equal(ask().n_active, n_active);
    pass(TICK_MS);
    assert_int_equal(ask().n_active, n_active - 1);
    wait_end(s, reason);
    sides_release();
    while (ask().n_active) /* the next ones have the same ids */
        sched_yield();

    begin();
    pass_but_end_with(limit_ms - TICK_MS, TICK_MS);
    pass(TICK_MS - 1);
    assert_int_equal(ask().n_active, n_active);
    pass(1);
    assert_int_equal(ask().n_active, n_active - 1);
    wait_end(s, reason);
    sides_release();
}

static void begin_call(void)
{
    client_start(&clients[0], inference, client_message);
    while (!ask().n_active)
        sched_yield();
}

static void test_worker__a_call_without_open_is_ended_in_time(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    ends_at(begin_call, &clients[0], NK_OPEN_DEADLINE_MS, "no_open");
    worker_stop();
}

static void test_worker__a_call_without_its_request_is_ended_in_time(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    client_start(&clients[0], "/nakshatra.v1.Nakshatra/Info", any_message);
    while (!ask().n_calls)
        sched_yield();
    pass(NK_OPEN_DEADLINE_MS - 1);
    assert_int_equal(ask().n_timers, 1);
    pass(1);
    assert_int_equal(ask().n_timers, 0);
    wait_end(&clients[0], "no_request");
    worker_stop();
}

static void begin_opening(void)
{
    atomic_store(&next_opens, false);
    client_open(&clients[0], true, 0);
    assert_int_equal(wait_message(&next[0], 0).kind, NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN);
}

static void test_worker__a_neighbour_that_does_not_open_is_given_up_in_time(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    ends_at(begin_opening, &clients[0], STALL_MS, "stalled");
    worker_stop();
}

static void begin_step(void)
{
    client_open(&clients[0], true, 0);
    assert_int_equal(wait_message(&next[0], 1).kind, NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP);
    assert_int_equal(wait_message(&clients[0], 0).kind,
                     NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED);
}

static void test_worker__a_neighbour_that_does_not_answer_is_given_up_in_time(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    ends_at(begin_step, &clients[0], STALL_MS, "stalled");
    worker_stop();
}

static void test_worker__who_is_given_up_is_named(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    begin_step();
    pass(STALL_MS);
    pass(TICK_MS);
    wait_end(&clients[0], "stalled");
    assert_non_null(strstr(clients[0].status.msg, next_address));
    wait_end(&next[0], "cancelled"); /* and is told so */
    worker_stop();
}

static void begin_finishing(void)
{
    atomic_store(&next_tokens, 1);
    client_open(&clients[0], true, 0);
    assert_int_equal(wait_message(&next[0], 2).kind, NAKSHATRA__V1__INFERENCE_REQUEST__KIND_FINISH);
}

static void test_worker__a_neighbour_that_is_not_done_is_given_up_in_time(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    ends_at(begin_finishing, &clients[0], STALL_MS, "stalled");
    worker_stop();
}

static void begin_with_deadline(void)
{
    client_open(&clients[0], true, 7000);
    wait_message(&next[0], 1);
}

static void test_worker__a_generation_ends_at_its_deadline(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    ends_at(begin_with_deadline, &clients[0], 7000, "deadline");
    worker_stop();
}

static void begin_waiting(void)
{
    begin_step(); /* has the only sequence */
    client_open(&clients[1], true, 0);
    while (!ask().n_waiting)
        sched_yield();
}

static void test_worker__a_wait_for_room_ends_in_time(void **state)
{
    (void)state;
    worker_start(true, 1, 1);
    ends_at(begin_waiting, &clients[1], QUEUE_MS, "queue_timeout");
    worker_stop();
}

static void test_worker__who_waits_for_room_gets_it_when_it_comes_free(void **state)
{
    (void)state;
    worker_start(true, 1, 1);
    begin_waiting();
    pass(QUEUE_MS - 1);
    side_release(&clients[0]);
    wait_message(&next[1], 1);
    worker_stop();
}

static void begin_later(void)
{
    client_open(&clients[0], false, 0);
    wait_message(&clients[0], 0);
}

static void begin_later_waiting(void)
{
    begin_later();
    client_open(&clients[1], false, 0);
    while (!ask().n_waiting)
        sched_yield();
}

static void test_worker__a_later_stage_does_not_wait_for_room_for_long(void **state)
{
    (void)state;
    worker_start(false, 1, 1);
    /* A quarter of the stall time, which is 500 ms less with each stage. */
    ends_at(begin_later_waiting, &clients[1], (STALL_MS - 500) / 4, "kv_full");
    worker_stop();
}

static void test_worker__a_session_that_is_sent_nothing_ends_in_time(void **state)
{
    (void)state;
    worker_start(false, 2, 1);
    ends_at(begin_later, &clients[0], IDLE_MS, "idle");
    worker_stop();
}

/* ---- sessions whose neighbour is lost ---- */

/* A call that breaks off without a Cancel. */
static void begin_held(uint32_t hold_ms)
{
    client_hold_ms = hold_ms;
    begin_later();
    client_hold_ms = 0;
    side_release(&clients[0]);
    while (!ask().n_held)
        sched_yield();
    assert_int_equal(ask().n_active, 0);
}

static void test_worker__what_is_held_is_freed_when_its_time_is_over(void **state)
{
    (void)state;
    worker_start(false, 2, 1);
    begin_held(7000);
    pass_but_end_with(7000 - 1, TICK_MS);
    assert_int_equal(ask().n_held, 1);
    pass(TICK_MS);
    assert_int_equal(ask().n_held, 0);
    worker_stop();
}

/* Its room is its own for a time; then it yields to who needs it, and to nobody else. */
static void test_worker__what_is_held_for_long_yields(void **state)
{
    (void)state;
    worker_start(false, 1, 1);
    begin_held(NK_HOLD_MS_MAX);
    pass_but_end_with(NK_HOLD_FIRM_MS - 3000, TICK_MS);
    client_open(&clients[1], false, 0);
    while (!ask().n_waiting)
        sched_yield();
    pass_but_end_with(3000 - 2 * TICK_MS, TICK_MS);
    assert_int_equal(ask().n_waiting, 1);
    assert_int_equal(ask().n_held, 1);
    pass(3 * TICK_MS);
    assert_int_equal(wait_message(&clients[1], 0).kind,
                     NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED);
    assert_int_equal(ask().n_held, 0);
    worker_stop();

    worker_start(false, 2, 1);
    begin_held(NK_HOLD_MS_MAX);
    pass(2 * NK_HOLD_FIRM_MS);
    client_open(&clients[1], false, 0); /* there is room beside it */
    wait_message(&clients[1], 0);
    assert_int_equal(ask().n_held, 1);
    worker_stop();
}

/* ---- a pause of this process is nobody's silence ---- */

static void pause_does_not_count(void (*begin)(void), uint64_t limit_ms, const char *reason)
{
    const uint64_t before_ms = 10000, pause_ms = 100000;

    begin();
    pass(before_ms);
    virtual_clock_advance_ms(&v, pause_ms);
    settle();
    assert_int_equal(ask().n_active, 1);
    /* The pause began when the look at the deadlines was due that came late. */
    pass_but_end_with(limit_ms - before_ms - TICK_MS - 1, TICK_MS);
    assert_int_equal(ask().n_active, 1);
    pass(TICK_MS);
    assert_int_equal(ask().n_active, 0);
    wait_end(&clients[0], reason);
    sides_release();
}

static void test_worker__a_pause_does_not_count(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    pause_does_not_count(begin_opening, STALL_MS, "stalled");
    atomic_store(&next_opens, true);
    pause_does_not_count(begin_step, STALL_MS, "stalled");
    worker_stop();
    worker_start(false, 2, 1);
    pause_does_not_count(begin_later, IDLE_MS, "idle");
    worker_stop();
}

static void test_worker__a_short_delay_counts(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    begin_step();
    pass(STALL_MS - TICK_MS - 250);
    virtual_clock_advance_ms(&v, TICK_MS + 250); /* late by what is no pause yet */
    settle();
    assert_int_equal(ask().n_active, 0);
    wait_end(&clients[0], "stalled");
    sides_release();

    begin_step();
    pass(STALL_MS - TICK_MS - 250);
    virtual_clock_advance_ms(&v, TICK_MS + 251);
    settle();
    assert_int_equal(ask().n_active, 1);
    worker_stop();
}

/* ---- going to sleep, shutting down ---- */

static void send_sleep(struct side *s, uint32_t grace_ms)
{
    Nakshatra__V1__SleepRequest req = NAKSHATRA__V1__SLEEP_REQUEST__INIT;

    req.grace_ms = grace_ms;
    client_start(s, "/nakshatra.v1.Nakshatra/Sleep", any_message);
    assert_int_equal(nk_call_send_pb(s->call, (ProtobufCMessage *)&req, NULL), 0);
    while (ask().state != NK_WORKER_ASLEEP)
        sched_yield();
}

static void test_worker__sleep_lets_sessions_go_on_for_its_grace(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    begin_step();
    send_sleep(&clients[1], GRACE_MS);
    pass(GRACE_MS - 1);
    assert_int_equal(ask().n_active, 1);
    pass(1);
    assert_int_equal(ask().n_active, 0);
    wait_end(&clients[0], "asleep");
    wait_message(&clients[1], 0);
    wait_end(&clients[1], "");
    worker_stop();
}

static void test_worker__sleep_does_not_wait_for_nobody(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    send_sleep(&clients[1], GRACE_MS);
    wait_message(&clients[1], 0);
    wait_end(&clients[1], "");
    worker_stop();
}

static void test_worker__shutting_down_lets_sessions_go_on_for_its_grace(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    begin_step();
    stop_begin();
    pass(GRACE_MS - 1);
    virtual_clock_wait_for_waiter(&v, 1); /* the one that stops it still waits */
    assert_int_equal(ask().n_active, 1);
    virtual_clock_advance_ms(&v, 1);
    wait_end(&clients[0], "draining");
    stop_join();
}

static void test_worker__shutting_down_does_not_wait_for_nobody(void **state)
{
    (void)state;
    worker_start(true, 2, 1);
    begin_step();
    stop_begin();
    stop_join(); /* though no time passes: the last session has ended */
}

/* ---- a group that waits for its rows ---- */

static void test_worker__a_group_with_a_row_missing_is_run_in_time(void **state)
{
    struct nk_engine_counters *counters;

    (void)state;
    worker_start(false, 2, 1);
    counters = nk__engine_counters(w->engine);
    begin_later();
    client_step(&clients[0], 7, 2);
    virtual_clock_wait_for_waiter(&v, NK_GROUP_WAIT_MS);
    virtual_clock_advance_ns(&v, (uint64_t)NK_GROUP_WAIT_MS * MS - 1);
    settle();
    assert_int_equal(atomic_load(&counters->jobs_queued), 1);
    virtual_clock_advance_ns(&v, 1);
    assert_int_equal(wait_message(&clients[0], 1).kind, NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN);
    assert_int_equal(atomic_load(&counters->rows), 1);
    worker_stop();
}

static void test_worker__a_group_whose_rows_are_there_waits_for_nothing(void **state)
{
    (void)state;
    worker_start(false, 2, 1);
    begin_later();
    client_open(&clients[1], false, 0);
    wait_message(&clients[1], 0);
    client_step(&clients[0], 7, 2);
    virtual_clock_wait_for_waiter(&v, NK_GROUP_WAIT_MS);
    client_step(&clients[1], 7, 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(wait_message(&clients[i], 1).kind,
                         NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN);
    assert_int_equal(atomic_load(&nk__engine_counters(w->engine)->runs), 1);
    worker_stop();
}

/* ---- chance ---- */

static void test_worker__draws_from_the_chance_that_it_is_given(void **state)
{
    struct seeded same;
    uint64_t group;
    uint32_t seed;

    (void)state;
    seeded_init(&same, chance_seed);
    nk_chance_fill(&same.chance, &group, sizeof group, NULL);
    nk_chance_fill(&same.chance, &seed, sizeof seed, NULL);

    worker_start(true, 2, chance_seed);
    atomic_store(&next_tokens, 2);
    client_open(&clients[0], true, 0);
    assert_true(wait_message(&next[0], 1).group == 0); /* the prompt */
    assert_true(wait_message(&next[0], 2).group == group);
    worker_stop();

    worker_start(false, 2, chance_seed);
    client_open(&clients[0], false, 0);
    assert_int_equal(wait_message(&clients[0], 0).seed, seed);
    worker_stop();
}

/* ---- life ---- */

static int begin(void **state)
{
    static const struct nk_method methods[] = { { inference, next_open, 0 } };
    struct nk_server_opts server = { .listen = "127.0.0.1:0", .methods = methods, .n_methods = 1 };
    const char *models = getenv("NK_MODELS");
    struct nk_error err;
    char path[4096];
    nk_model *m;

    (void)state;
    chance_seed = seed_begin();
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    memset(sha256, 'a', sizeof sha256 - 1);
    nk_stage_global_init("CPU");
    if (!mkdtemp(dir) || nk_model_open(&m, path, &err))
        return -1;
    for (int i = 0; i < 2; i++) {
        snprintf(slices[i], sizeof slices[i], "%s/%d.gguf", dir, i);
        if (nk_slice_write(m, (struct nk_range){ 4 * i, 4 * i + 4 }, sha256, slices[i], NULL, &err))
            return -1;
    }
    nk_model_close(m);
    if (nk_net_start(&net, nk_clock_system(), &err) ||
        nk_server_start(&next_server, net, &server, &err))
        return -1;
    snprintf(next_address, sizeof next_address, "127.0.0.1:%d", nk_server_port(next_server));
    return 0;
}

static int end(void **state)
{
    (void)state;
    nk_server_stop(next_server, 0);
    nk_net_stop(net);
    unlink(slices[0]);
    unlink(slices[1]);
    rmdir(dir);
    return 0;
}

#define TEST(function) cmocka_unit_test_teardown(function, clean_up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_worker__what_is_held_is_freed_when_its_time_is_over),
        TEST(test_worker__what_is_held_for_long_yields),
        TEST(test_worker__a_session_that_is_cancelled_with_a_word_is_freed_in_good_order),
        TEST(test_worker__a_call_without_open_is_ended_in_time),
        TEST(test_worker__a_call_without_its_request_is_ended_in_time),
        TEST(test_worker__a_neighbour_that_does_not_open_is_given_up_in_time),
        TEST(test_worker__a_neighbour_that_does_not_answer_is_given_up_in_time),
        TEST(test_worker__a_neighbour_that_is_not_done_is_given_up_in_time),
        TEST(test_worker__who_is_given_up_is_named),
        TEST(test_worker__a_generation_ends_at_its_deadline),
        TEST(test_worker__a_wait_for_room_ends_in_time),
        TEST(test_worker__who_waits_for_room_gets_it_when_it_comes_free),
        TEST(test_worker__a_later_stage_does_not_wait_for_room_for_long),
        TEST(test_worker__a_session_that_is_sent_nothing_ends_in_time),
        TEST(test_worker__a_pause_does_not_count),
        TEST(test_worker__a_short_delay_counts),
        TEST(test_worker__sleep_lets_sessions_go_on_for_its_grace),
        TEST(test_worker__sleep_does_not_wait_for_nobody),
        TEST(test_worker__shutting_down_lets_sessions_go_on_for_its_grace),
        TEST(test_worker__shutting_down_does_not_wait_for_nobody),
        TEST(test_worker__a_group_with_a_row_missing_is_run_in_time),
        TEST(test_worker__a_group_whose_rows_are_there_waits_for_nothing),
        TEST(test_worker__draws_from_the_chance_that_it_is_given),
    };

    return cmocka_run_group_tests_name("deadlines", tests, begin, end);
}
