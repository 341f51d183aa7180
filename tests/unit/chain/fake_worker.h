/* Workers that say whatever a test wants, for what a real one never says: the chain must not trust
 * its peers. Each is a server of its own; Info answers with `info`, Inference is answered by
 * `script` once Open is there. */
#ifndef NK_TESTS_FAKE_WORKER_H
#define NK_TESTS_FAKE_WORKER_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chain/chain_int.h"
#include "unit/seed.h"
#include "unit/settle.h"
#include "unit/virtual_clock.h"

#define SHA "1f0e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0"
/* FAKES: the stages of their cluster; behind them SPARE, which has the same layers as the last.
 * PATIENCE_MS: in real time; a test that waits so long has failed. */
enum { FAKES = 2, SPARE = FAKES, FAKES_ALL, PATIENCE_MS = 240000 };

struct fake;
typedef void (*fake_script)(struct fake *f, nk_call *c);

struct fake {
    nk_server *server;
    Nakshatra__V1__InfoReply info;
    Nakshatra__V1__Dtype dtypes[2];
    const char *info_bytes; /* sent instead, when not NULL */
    /* How far the clock moves while an Info is on its way: the first, and each of the others. */
    uint32_t info_first_ms, info_ms;
    atomic_bool info_silent; /* Info waits until the test says fake_answer_info */
    nk_call *info_held;      /* a reference */
    fake_script script;
    Nakshatra__V1__InferenceRequest *request; /* the last Open; owned */
    atomic_int n_calls, n_ended, n_infos, n_held, n_cancels;
    uint8_t cancelled[16]; /* the session that the last Cancel names, and its attempt */
    uint32_t cancelled_attempt;
    nk_call *held; /* by the script that leaves all to the test; a reference */
};

/* The fakes and the chains share a clock that stands still until a test moves it, and chance with a
 * seed. */
static struct virtual_clock fake_clock;
static struct seeded fake_chance;
static nk_net *fake_net;
static pthread_mutex_t fake_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fake_changed; /* one of the counts rose */
static struct fake fakes[FAKES_ALL];
static atomic_int fake_turns;

/* The test and the fakes take turns with what is above: what one wrote the other reads after a
 * message came over TCP, which ThreadSanitizer does not see. Called where a turn begins and where
 * it ends. */
static inline void fake_turn(void)
{
    atomic_fetch_add(&fake_turns, 1);
}

static void fake_count(atomic_int *count)
{
    pthread_mutex_lock(&fake_mutex);
    atomic_fetch_add(count, 1);
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_mutex);
}

/* Until a fake's count is n. */
static inline void fake_wait(atomic_int *count, int n)
{
    struct nk_clock *clock = nk_clock_system();
    uint64_t until = nk_clock_now_ns(clock) + PATIENCE_MS * 1000000ull;
    bool ok = true;

    pthread_mutex_lock(&fake_mutex);
    while (*count < n && ok)
        ok = nk_clock_wait_until(clock, &fake_changed, &fake_mutex, until);
    pthread_mutex_unlock(&fake_mutex);
    if (!ok)
        fail_msg("%d came of %d", *count, n);
    fake_turn();
}

static void fake_nothing(nk_call *c, void *user, struct nk_bytes msg)
{
    (void)c, (void)user, (void)msg;
}

static void fake_info_ended(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c, (void)user, (void)status;
}

static void fake_send_info(struct fake *f, nk_call *c)
{
    if (f->info_bytes)
        nk_call_send(c, f->info_bytes, strlen(f->info_bytes), NULL);
    else
        nk_call_send_pb(c, &f->info.base, NULL);
    fake_turn();
    nk_call_finish(c, NULL);
}

static void fake_info(nk_call *c, void *server_user)
{
    static const struct nk_call_handlers handlers = { .message = fake_nothing,
                                                      .end = fake_info_ended };
    struct fake *f = server_user;

    fake_turn();
    nk_call_accept(c, &handlers, f);
    if (f->info_silent) {
        nk_call_unref(f->info_held);
        f->info_held = nk_call_ref(c);
        fake_count(&f->n_infos);
    } else {
        uint32_t ms = f->n_infos ? f->info_ms : f->info_first_ms;

        fake_count(&f->n_infos);
        if (ms)
            virtual_clock_advance_ms(&fake_clock, ms);
        fake_send_info(f, c);
    }
}

static void fake_answer_info_now(void *arg)
{
    struct fake *f = arg;

    fake_turn();
    fake_send_info(f, f->info_held);
}

/* From here on Info is answered again, and the last one that was not is. */
static inline void fake_answer_info(struct fake *f)
{
    f->info_silent = false;
    fake_turn();
    run_on(fake_net, fake_answer_info_now, f);
}

static void fake_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct fake *f = user;
    fake_script script;

    Nakshatra__V1__InferenceRequest *m;

    fake_turn();
    m = nakshatra__v1__inference_request__unpack(NULL, msg.size, msg.data);
    /* As a worker does; the Open is still looked at. */
    if (m && m->kind_case == NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL) {
        struct nk_error e;

        if (m->cancel->session.len == sizeof f->cancelled)
            memcpy(f->cancelled, m->cancel->session.data, sizeof f->cancelled);
        f->cancelled_attempt = m->cancel->attempt;
        nakshatra__v1__inference_request__free_unpacked(m, NULL);
        fake_turn();
        fake_count(&f->n_cancels);
        nk_fail(&e, NK_E_CANCELLED, "cancelled", "as you like");
        nk_call_finish(c, &e);
        return;
    }
    if (f->request)
        nakshatra__v1__inference_request__free_unpacked(f->request, NULL);
    f->request = m;
    script = f->script;
    fake_turn();
    /* A script that ends the call ends this turn: the test may go on before it returns, and write
     * what was read here. */
    if (f->request && f->request->open && script)
        script(f, c);
    fake_turn();
}

static void fake_ended(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c, (void)status;
    fake_count(&((struct fake *)user)->n_ended);
}

static void fake_inference(nk_call *c, void *server_user)
{
    static const struct nk_call_handlers handlers = { .message = fake_message, .end = fake_ended };

    fake_count(&((struct fake *)server_user)->n_calls);
    nk_call_accept(c, &handlers, server_user);
}

/* ---- replies ---- */

static inline void send_reply(nk_call *c, Nakshatra__V1__InferenceReply *r)
{
    nk_call_send_pb(c, &r->base, NULL);
}

/* Opened as it should be; change says what is different. */
static inline void send_opened(struct fake *f, nk_call *c, void (*change)(Nakshatra__V1__Opened *o))
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Opened o = NAKSHATRA__V1__OPENED__INIT;
    Nakshatra__V1__StageInfo stages[FAKES + 1], *ptrs[FAKES + 1];
    Nakshatra__V1__Fact apart = NAKSHATRA__V1__FACT__INIT, *facts[FAKES + 1];

    apart.name = (char *)(uintptr_t) "sessions";
    apart.value = (char *)(uintptr_t)NK_SESSIONS_APART;
    for (int i = 0; i < FAKES + 1; i++) {
        nakshatra__v1__stage_info__init(&stages[i]);
        stages[i].model_sha256 = (char *)(uintptr_t)SHA;
        stages[i].layer_begin = 4 * (uint32_t)i;
        stages[i].layer_end = 4 * (uint32_t)i + 4;
        stages[i].layer_count = 4 * FAKES;
        stages[i].n_embd = 64;
        stages[i].n_ctx = 512;
        stages[i].llama_version = (char *)(uintptr_t) "0.7.0";
        facts[i] = &apart;
        stages[i].computed = &facts[i];
        stages[i].n_computed = 1;
        ptrs[i] = &stages[i];
    }
    o.stages = ptrs;
    o.n_stages = FAKES;
    o.n_prompt = (uint32_t)f->request->open->n_prompt_ids;
    o.seed = 5;
    if (change)
        change(&o);
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED;
    r.opened = &o;
    send_reply(c, &r);
}

static inline void send_token_with(nk_call *c, uint32_t index, int32_t id, const char *text,
                                   size_t size, Nakshatra__V1__FinishReason finish,
                                   const Nakshatra__V1__TokenProb *prob, size_t n_top)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Token t = NAKSHATRA__V1__TOKEN__INIT;
    Nakshatra__V1__TokenProb *top[64];

    for (size_t i = 0; i < n_top; i++)
        top[i] = (Nakshatra__V1__TokenProb *)(uintptr_t)prob;
    t.index = index;
    t.id = id;
    t.text = (ProtobufCBinaryData){ size, (uint8_t *)(uintptr_t)text };
    t.finish = finish;
    t.prob = (Nakshatra__V1__TokenProb *)(uintptr_t)prob;
    t.top = top;
    t.n_top = n_top;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN;
    r.token = &t;
    send_reply(c, &r);
}

static inline void send_token(nk_call *c, uint32_t index, const char *text)
{
    send_token_with(c, index, (int32_t)index + 10, text, strlen(text),
                    NAKSHATRA__V1__FINISH_REASON__FINISH_NONE, NULL, 0);
}

static inline void send_done(nk_call *c, uint32_t n_generated,
                             void (*change)(Nakshatra__V1__Done *d))
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Done d = NAKSHATRA__V1__DONE__INIT;
    Nakshatra__V1__StageTiming timing = NAKSHATRA__V1__STAGE_TIMING__INIT, *timings[FAKES + 1];

    timing.worker_id = (char *)(uintptr_t) "attic\x1b[2J";
    timing.compute_us = 7;
    for (int i = 0; i < FAKES + 1; i++)
        timings[i] = &timing;
    d.finish = NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH;
    d.n_generated = n_generated;
    d.stages = timings;
    d.n_stages = FAKES;
    d.prefill_us = 1000;
    if (change)
        change(&d);
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_DONE;
    r.done = &d;
    send_reply(c, &r);
}

/* ---- a script that leaves all to the test ---- */

static inline void fake_hold(struct fake *f, nk_call *c)
{
    nk_call_unref(f->held);
    f->held = nk_call_ref(c);
    fake_count(&f->n_held);
}

struct fake_saying {
    struct fake *f;
    fake_script script;
};

static void fake_say_now(void *arg)
{
    struct fake_saying *s = arg;

    fake_turn();
    s->script(s->f, s->f->held);
    fake_turn();
}

/* Says this on the call that is held. */
static inline void fake_say(struct fake *f, fake_script script)
{
    struct fake_saying s = { f, script };

    fake_turn();
    run_on(fake_net, fake_say_now, &s);
}

/* ---- life ---- */

static inline void fake_reset(void)
{
    for (int i = 0; i < FAKES_ALL; i++) /* the test before may have left a call that ends */
        fake_wait(&fakes[i].n_ended, fakes[i].n_calls);
    fake_turn();
    for (int i = 0; i < FAKES_ALL; i++) {
        struct fake *f = &fakes[i];
        uint32_t stage = i == SPARE ? FAKES - 1 : (uint32_t)i;

        nakshatra__v1__info_reply__init(&f->info);
        f->dtypes[0] = NAKSHATRA__V1__DTYPE__DTYPE_F32;
        f->dtypes[1] = NAKSHATRA__V1__DTYPE__DTYPE_F16;
        f->info.protocol = 1;
        f->info.worker_id = (char *)(uintptr_t) "me";
        f->info.llama_version = (char *)(uintptr_t) "0.7.0";
        f->info.model_id = (char *)(uintptr_t) "tiny";
        f->info.model_sha256 = (char *)(uintptr_t)SHA;
        f->info.architecture = (char *)(uintptr_t) "llama";
        f->info.layer_begin = 4 * stage;
        f->info.layer_end = 4 * stage + 4;
        f->info.layer_count = 4 * FAKES;
        f->info.n_embd = 64;
        f->info.n_vocab = 100;
        f->info.dtypes = f->dtypes;
        f->info.n_dtypes = 2;
        f->info.n_ctx = 512 + (uint32_t)i;
        f->info.state = (char *)(uintptr_t) "serving";
        f->info_bytes = NULL;
        f->info_silent = false;
        f->info_first_ms = f->info_ms = 0;
        f->script = NULL;
        f->n_calls = f->n_ended = f->n_infos = f->n_held = f->n_cancels = 0;
    }
}

static inline int fake_start(void **state)
{
    static const struct nk_method methods[] = {
        { "/nakshatra.v1.Nakshatra/Info", fake_info, 0 },
        { "/nakshatra.v1.Nakshatra/Inference", fake_inference, 0 },
    };
    struct nk_error err;

    (void)state;
    seeded_init(&fake_chance, seed_begin());
    virtual_clock_init(&fake_clock);
    nk_cond_init(&fake_changed);
    if (nk_net_start(&fake_net, &fake_clock.clock, &err))
        return -1;
    for (int i = 0; i < FAKES_ALL; i++) {
        struct nk_server_opts o = {
            .listen = "127.0.0.1:0", .methods = methods, .n_methods = 2, .user = &fakes[i]
        };

        if (nk_server_start(&fakes[i].server, fake_net, &o, &err))
            return -1;
    }
    fake_reset();
    return 0;
}

static inline int fake_stop(void **state)
{
    (void)state;
    for (int i = 0; i < FAKES_ALL; i++) {
        nk_call_unref(fakes[i].held);
        nk_call_unref(fakes[i].info_held);
        nk_server_stop(fakes[i].server, 0);
        if (fakes[i].request)
            nakshatra__v1__inference_request__free_unpacked(fakes[i].request, NULL);
    }
    nk_net_stop(fake_net);
    virtual_clock_release(&fake_clock);
    return 0;
}

static inline struct nk_cluster *fake_cluster(void)
{
    static _Thread_local struct nk_cluster c; /* scripts make one too */

    memset(&c, 0, sizeof c);
    strcpy(c.model_id, "tiny");
    strcpy(c.model_sha256, SHA);
    c.n_workers = FAKES;
    for (int i = 0; i < FAKES; i++) {
        strcpy(c.workers[i].id, i ? "cellar" : "attic");
        snprintf(c.workers[i].address, sizeof c.workers[i].address, "127.0.0.1:%d",
                 nk_server_port(fakes[i].server));
        c.workers[i].layer_begin = 4 * i;
        c.workers[i].layer_end = 4 * i + 4;
    }
    return &c;
}

static inline void fake_address(char out[256], int i)
{
    snprintf(out, 256, "127.0.0.1:%d", nk_server_port(fakes[i].server));
}

static inline nk_chain *fake_chain_of(const struct nk_cluster *cluster)
{
    struct nk_chain_opts opts = { .clock = &fake_clock.clock, .chance = &fake_chance.chance };
    struct nk_error err;
    nk_chain *c;

    fake_turn();
    if (nk_chain_open(&c, cluster, &opts, &err))
        fail_msg("%s", err.msg);
    return c;
}

static inline nk_chain *fake_chain(void)
{
    return fake_chain_of(fake_cluster());
}

/* The time goes on, and what the chain does of itself by then is begun. */
static inline void fake_pass_ms(nk_chain *c, uint64_t ms)
{
    virtual_clock_advance_ms(&fake_clock, ms);
    settle(c->net);
}

#endif
