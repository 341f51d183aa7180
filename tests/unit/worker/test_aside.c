/* A grammar is made where it is in nobody's way: a worker with the whole model in this process, a
 * client with a grammar that the test holds up while it is made (the linker wraps nk_sampler_new:
 * tests/CMakeLists.txt), and another client that is served meanwhile. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "nakshatra.pb-c.h"
#include "slice/slice.h"
#include "worker/worker_int.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* ---- samplers, as far as the test lets them be made ---- */

static nk_worker *worker;
static bool hold; /* those with a grammar wait */
static int n_held, n_made_on_net;

int __real_nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                          const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                          struct nk_error *err);
int __wrap_nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                          const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                          struct nk_error *err);

int __wrap_nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                          const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                          struct nk_error *err)
{
    if (sampling->grammar || sampling->dry_multiplier != 0) {
        pthread_mutex_lock(&mutex);
        if (nk_net_is_current(worker->net)) /* which must go on: it is never held up here */
            n_made_on_net++;
        else {
            n_held++;
            pthread_cond_broadcast(&changed);
            while (hold)
                pthread_cond_wait(&changed, &mutex);
            n_held--;
        }
        pthread_mutex_unlock(&mutex);
    }
    return __real_nk_sampler_new(out, vocab, sampling, n_ctx, chance, err);
}

static void set_hold(bool to)
{
    pthread_mutex_lock(&mutex);
    hold = to;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* ---- clients ---- */

struct client {
    nk_call *call; /* a reference */
    int n_messages;
    bool ended;
    struct nk_error status;
};

static nk_net *net;
static nk_channel *channel;

static void message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct client *cl = user;

    (void)c, (void)msg;
    pthread_mutex_lock(&mutex);
    cl->n_messages++;
    pthread_mutex_unlock(&mutex);
}

static void end(nk_call *c, void *user, const struct nk_error *status)
{
    struct client *cl = user;

    (void)c;
    pthread_mutex_lock(&mutex);
    cl->ended = true;
    if (status)
        cl->status = *status;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void begin(struct client *cl, uint8_t id, const char *grammar, float dry)
{
    static const struct nk_call_handlers handlers = { .message = message, .end = end };
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Stage stage = NAKSHATRA__V1__STAGE__INIT, *route[1] = { &stage };
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    Nakshatra__V1__Sampling sampling = NAKSHATRA__V1__SAMPLING__INIT;
    int32_t ids[] = { 1, 300, 360 };
    uint8_t session[16] = { id };
    char address[] = "127.0.0.1:1";

    *cl = (struct client){ 0 };
    stage.address = address;
    stage.layer_end = 8;
    open.session.data = session;
    open.session.len = sizeof session;
    open.route = route;
    open.n_route = 1;
    open.prompt_ids = ids;
    open.n_prompt_ids = 3;
    limits.n_predict = 2;
    open.limits = &limits;
    sampling.grammar = (char *)(uintptr_t)(grammar ? grammar : "");
    sampling.dry_multiplier = dry;
    open.sampling = &sampling;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    req.open = &open;
    pthread_mutex_lock(&mutex); /* its end waits for this, so the handle is there */
    assert_int_equal(nk_call_start(&cl->call, channel, "/nakshatra.v1.Nakshatra/Inference", 0,
                                   &handlers, cl, NULL),
                     0);
    nk_call_ref(cl->call);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(nk_call_send_pb(cl->call, (ProtobufCMessage *)&req, NULL), 0);
}

/* Under the mutex: until there was a change. */
static void wait_change(const char *what)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 300;
    if (pthread_cond_timedwait(&changed, &mutex, &end))
        fail_msg("not within five minutes: %s", what);
}

static void wait_held(int n)
{
    pthread_mutex_lock(&mutex);
    while (n_held + n_made_on_net < n)
        wait_change("a sampler is made");
    pthread_mutex_unlock(&mutex);
}

static void wait_end(struct client *cl)
{
    pthread_mutex_lock(&mutex);
    while (!cl->ended)
        wait_change("a client's end");
    pthread_mutex_unlock(&mutex);
    nk_call_unref(cl->call);
}

static int n_messages(const struct client *cl)
{
    int n;

    pthread_mutex_lock(&mutex);
    n = cl->n_messages;
    pthread_mutex_unlock(&mutex);
    return n;
}

static const char grammar[] = "root ::= \"a\"+";

static void test_aside__others_are_served_while_a_grammar_is_made(void **state)
{
    struct client slow, dry, quick;

    (void)state;
    set_hold(true);
    begin(&slow, 1, grammar, 0);
    begin(&dry, 2, NULL, 1);
    wait_held(2);
    begin(&quick, 3, NULL, 0);
    wait_end(&quick);
    if (quick.status.code)
        fail_msg("%s", quick.status.msg);
    assert_true(quick.n_messages >= 3); /* Opened, tokens, Done */
    assert_int_equal(n_messages(&slow) + n_messages(&dry), 0);
    set_hold(false);
    wait_end(&slow);
    wait_end(&dry);
    assert_int_equal(n_made_on_net, 0);
    if (slow.status.code || dry.status.code)
        fail_msg("%s%s", slow.status.msg, dry.status.msg);
    assert_true(slow.n_messages >= 3 && dry.n_messages >= 3);
}

static void test_aside__who_goes_meanwhile_is_not_opened(void **state)
{
    struct client gone, again;

    (void)state;
    set_hold(true);
    begin(&gone, 4, grammar, 0);
    wait_held(1);
    nk_call_cancel(gone.call);
    wait_end(&gone);
    begin(&again, 4, NULL, 0); /* its id is free */
    wait_end(&again);
    if (again.status.code)
        fail_msg("%s", again.status.msg);
    set_hold(false);
}

static void test_aside__a_grammar_that_is_none_is_refused_with_its_sentence(void **state)
{
    struct client c;

    (void)state;
    begin(&c, 5, "root ::= \"a", 0);
    wait_end(&c);
    assert_int_equal(c.status.code, NK_E_INVALID);
    assert_string_equal(c.status.reason, "bad_grammar");
    assert_non_null(strstr(c.status.msg, "line 1"));
    assert_int_equal(c.n_messages, 0);
}

/* ---- the worker goes while a sampler is made ---- */

static void ask(struct client *cl, const char *path, const ProtobufCMessage *msg)
{
    static const struct nk_call_handlers handlers = { .message = message, .end = end };

    *cl = (struct client){ 0 };
    pthread_mutex_lock(&mutex);
    assert_int_equal(nk_call_start(&cl->call, channel, path, 0, &handlers, cl, NULL), 0);
    nk_call_ref(cl->call);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(nk_call_send_pb(cl->call, msg, NULL), 0);
    nk_call_send_done(cl->call);
}

static void ends_well(struct client *cl)
{
    wait_end(cl);
    if (cl->status.code)
        fail_msg("%s", cl->status.msg);
}

static void test_aside__a_worker_that_sleeps_ends_who_waits_for_a_sampler(void **state)
{
    Nakshatra__V1__SleepRequest sleep = NAKSHATRA__V1__SLEEP_REQUEST__INIT;
    Nakshatra__V1__WakeRequest wake = NAKSHATRA__V1__WAKE_REQUEST__INIT;
    struct client slow, asleep, awake, again;

    (void)state;
    set_hold(true);
    begin(&slow, 6, grammar, 0);
    wait_held(1);
    ask(&asleep, "/nakshatra.v1.Nakshatra/Sleep", &sleep.base);
    wait_end(&slow); /* while it is still being made, of a vocabulary that has to stay for it */
    assert_string_equal(slow.status.reason, "asleep");
    assert_int_equal(slow.n_messages, 0);
    set_hold(false);
    ends_well(&asleep);
    ask(&awake, "/nakshatra.v1.Nakshatra/Wake", &wake.base);
    ends_well(&awake);
    begin(&again, 6, grammar, 0); /* with the vocabulary that is there now */
    ends_well(&again);
    assert_true(again.n_messages >= 3);
}

static void *stop(void *arg)
{
    nk_worker_stop(arg, 0);
    return NULL;
}

/* The last test: the group has no worker after it. */
static void test_aside__a_worker_that_stops_ends_who_waits_for_a_sampler(void **state)
{
    struct client slow;
    pthread_t stopping;

    (void)state;
    set_hold(true);
    begin(&slow, 7, grammar, 0);
    wait_held(1);
    assert_int_equal(pthread_create(&stopping, NULL, stop, worker), 0);
    wait_end(&slow); /* while it is still being made */
    assert_int_equal(slow.status.code, NK_E_UNAVAILABLE);
    assert_int_equal(slow.n_messages, 0);
    set_hold(false);
    pthread_join(stopping, NULL); /* what is made is freed: LeakSanitizer */
    worker = NULL;
}

static char dir[] = "nk-aside-XXXXXX", file[64];

static int set_up(void **state)
{
    const char *models = getenv("NK_MODELS");
    struct nk_worker_opts opts = nk_worker_opts_default();
    char path[4096], sha256[NK_SHA256_HEX], address[32];
    nk_model *m;

    (void)state;
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    memset(sha256, 'a', sizeof sha256 - 1);
    sha256[sizeof sha256 - 1] = '\0';
    nk_stage_global_init(NULL);
    if (!mkdtemp(dir) || nk_model_open(&m, path, NULL))
        return -1;
    snprintf(file, sizeof file, "%s/whole.gguf", dir);
    if (nk_slice_write(m, (struct nk_range){ 0, 8 }, sha256, file, NULL, NULL))
        return -1;
    nk_model_close(m);
    opts.slice_path = file;
    opts.listen = "127.0.0.1:0";
    opts.stage.device = "CPU";
    opts.stage.n_threads = 1;
    if (nk_worker_start(&worker, &opts, NULL) || nk_net_start(&net, nk_clock_system(), NULL))
        return -1;
    snprintf(address, sizeof address, "127.0.0.1:%d", nk_worker_port(worker));
    return nk_channel_open(&channel, net, address, NULL, NULL);
}

static int tear_down(void **state)
{
    (void)state;
    nk_channel_close(channel);
    nk_worker_stop(worker, 1000); /* none, when all went well */
    nk_net_stop(net);
    unlink(file);
    rmdir(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_aside__others_are_served_while_a_grammar_is_made),
        cmocka_unit_test(test_aside__who_goes_meanwhile_is_not_opened),
        cmocka_unit_test(test_aside__a_grammar_that_is_none_is_refused_with_its_sentence),
        cmocka_unit_test(test_aside__a_worker_that_sleeps_ends_who_waits_for_a_sampler),
        cmocka_unit_test(test_aside__a_worker_that_stops_ends_who_waits_for_a_sampler),
    };

    return cmocka_run_group_tests_name("aside", tests, set_up, tear_down);
}
