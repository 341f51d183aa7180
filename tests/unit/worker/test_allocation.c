/* Two workers in this process, a generation over both, and every malloc of our own code counted
 * (the linker wraps them: tests/CMakeLists.txt): a steady decode step makes none. gRPC's and ggml's
 * own do not count: they are in shared libraries, which the wrapping does not reach. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "nakshatra.pb-c.h"
#include "slice/slice.h"
#include "worker/worker.h"

enum { N_TOKENS = 120, STEADY_FROM = 40, STEADY_TO = 110 };

static atomic_long n_allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

void *__wrap_malloc(size_t size)
{
    atomic_fetch_add(&n_allocations, 1);
    return __real_malloc(size);
}
void *__wrap_calloc(size_t n, size_t size)
{
    atomic_fetch_add(&n_allocations, 1);
    return __real_calloc(n, size);
}
void *__wrap_realloc(void *p, size_t size)
{
    atomic_fetch_add(&n_allocations, 1);
    return __real_realloc(p, size);
}

/* ---- a client that listens without allocating ---- */

struct client {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int n_messages;
    long at_begin, at_end;
    bool ended;
    struct nk_error status;
};

static void message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct client *cl = user;

    (void)c, (void)msg;
    /* Opened is the first; then a message for each token. */
    cl->n_messages++;
    if (cl->n_messages == STEADY_FROM)
        cl->at_begin = atomic_load(&n_allocations);
    if (cl->n_messages == STEADY_TO)
        cl->at_end = atomic_load(&n_allocations);
}

static void end(nk_call *c, void *user, const struct nk_error *status)
{
    struct client *cl = user;

    (void)c;
    pthread_mutex_lock(&cl->mutex);
    cl->ended = true;
    if (status)
        cl->status = *status;
    pthread_cond_signal(&cl->cond);
    pthread_mutex_unlock(&cl->mutex);
}

static const struct nk_call_handlers handlers = { .message = message, .end = end };

static void generate(struct client *cl, nk_net *net, int *ports, float temperature, int attempt)
{
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Stage stages[2] = { NAKSHATRA__V1__STAGE__INIT, NAKSHATRA__V1__STAGE__INIT };
    Nakshatra__V1__Stage *route[2] = { &stages[0], &stages[1] };
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    Nakshatra__V1__Sampling sampling = NAKSHATRA__V1__SAMPLING__INIT;
    int32_t ids[] = { 1, 300, 360, 490, 292, 833 };
    uint8_t session[16] = { 7 };
    char addresses[2][32];
    nk_channel *channel;
    nk_call *call;

    for (int i = 0; i < 2; i++) {
        snprintf(addresses[i], sizeof addresses[i], "127.0.0.1:%d", ports[i]);
        stages[i].address = addresses[i];
        stages[i].layer_begin = i ? 4 : 0;
        stages[i].layer_end = i ? 8 : 4;
    }
    session[1] = (uint8_t)(temperature * 10);
    session[2] = (uint8_t)attempt;
    open.session.data = session;
    open.session.len = sizeof session;
    open.route = route;
    open.n_route = 2;
    open.prompt_ids = ids;
    open.n_prompt_ids = 6;
    limits.n_predict = N_TOKENS;
    open.limits = &limits;
    sampling.temperature = temperature;
    sampling.top_k = 40;
    sampling.repeat_penalty = 1.1f;
    sampling.seed_given_case = NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = 1;
    sampling.ignore_eos = true;
    open.sampling = &sampling;
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    req.open = &open;
    assert_int_equal(nk_channel_open(&channel, net, addresses[0], NULL, NULL), 0);
    pthread_mutex_lock(&cl->mutex); /* its end waits for this, so the handle is there */
    assert_int_equal(nk_call_start(&call, channel, "/nakshatra.v1.Nakshatra/Inference", 120000,
                                   &handlers, cl, NULL),
                     0);
    nk_call_ref(call);
    pthread_mutex_unlock(&cl->mutex);
    assert_int_equal(nk_call_send_pb(call, (ProtobufCMessage *)&req, NULL), 0);
    nk_call_unref(call);
    pthread_mutex_lock(&cl->mutex);
    while (!cl->ended)
        pthread_cond_wait(&cl->cond, &cl->mutex);
    pthread_mutex_unlock(&cl->mutex);
    nk_channel_close(channel);
}

static void test_decode__a_steady_step_allocates_nothing_of_ours(void **state)
{
    const char *models = getenv("NK_MODELS");
    char path[4096], dir[] = "nk-alloc-XXXXXX", files[2][64], peer[32];
    const char *peers[] = { peer };
    struct nk_error err = { 0 };
    nk_worker *workers[2] = { NULL, NULL };
    char sha256[NK_SHA256_HEX];
    nk_model *m;
    nk_net *net;
    int ports[2];

    (void)state;
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(nk_model_open(&m, path, &err), 0);
    memset(sha256, 'a', sizeof sha256 - 1);
    sha256[sizeof sha256 - 1] = '\0';
    nk_stage_global_init(NULL);
    for (int i = 1; i >= 0; i--) {
        struct nk_worker_opts opts = nk_worker_opts_default();

        snprintf(files[i], sizeof files[i], "%s/%d.gguf", dir, i);
        assert_int_equal(
            nk_slice_write(m, (struct nk_range){ 4 * i, 4 * i + 4 }, sha256, files[i], NULL, &err),
            0);
        opts.slice_path = files[i];
        opts.listen = "127.0.0.1:0";
        opts.stage.device = "CPU";
        opts.stage.n_threads = 1;
        if (i == 0) {
            snprintf(peer, sizeof peer, "127.0.0.1:%d", ports[1]);
            opts.peers = peers;
            opts.n_peers = 1;
        }
        if (nk_worker_start(&workers[i], &opts, &err))
            fail_msg("%s", err.msg);
        ports[i] = nk_worker_port(workers[i]);
    }
    nk_model_close(m);
    assert_int_equal(nk_net_start(&net, nk_clock_system(), &err), 0);
    for (int greedy = 0; greedy < 2; greedy++) {
        struct client cl;

        /* A queue of messages grows, once, when a thread is held up: a step that allocates does so
         * each time. */
        for (int attempt = 0; attempt < 5; attempt++) {
            cl = (struct client){ .mutex = PTHREAD_MUTEX_INITIALIZER,
                                  .cond = PTHREAD_COND_INITIALIZER };
            generate(&cl, net, ports, greedy ? 0 : 0.8f, attempt);
            if (cl.status.code)
                fail_msg("%s", cl.status.msg);
            assert_true(cl.n_messages > STEADY_TO);
            /* The counter counts: opening the session made some. */
            assert_true(cl.at_begin > 0);
            if (cl.at_end == cl.at_begin)
                break;
        }
        assert_int_equal(cl.at_end - cl.at_begin, 0);
    }
    nk_worker_stop(workers[0], 1000);
    nk_worker_stop(workers[1], 1000);
    nk_net_stop(net);
    unlink(files[0]);
    unlink(files[1]);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode__a_steady_step_allocates_nothing_of_ours),
    };

    return cmocka_run_group_tests_name("allocation", tests, NULL, NULL);
}
