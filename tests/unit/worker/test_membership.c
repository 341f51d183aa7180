/* A worker with an identity: who may call what, who may open which stage, and of which epoch. Real
 * workers in this process; the test is the gateway, or the stage before. */
#include <pthread.h>
#include <time.h>

#include "base/log.h"
#include "nakshatra.pb-c.h"
#include "slice/slice.h"
#include "unit/rpc/identity_test.h"
#include "unit/virtual_clock.h"
#include "worker/worker_int.h"

#define SERVICE "/nakshatra.v1.Nakshatra/"

/* The first worker was told of so many addresses that only a few places are left for others. */
enum { EPOCH = 7, TOLD = NK_WORKER_PEERS_MAX - 4, OTHERS = 10 };

static const char worker_id[] = ID_A, member_id[] = ID_B, gateway_id[] = ID_C;
static struct authority ca;
static char worker_folder[FOLDER_MAX], member_folder[FOLDER_MAX], gateway_folder[FOLDER_MAX];
static char dir[] = "/tmp/nk-worker-membership-XXXXXX", slices[2][64], sha256[65];
static char told[TOLD][32];
static struct virtual_clock v; /* stands still: nobody is given up for want of time */
static nk_net *net;            /* the test's */
static nk_worker *workers[2];
static nk_channel *member[2], *gateway[2]; /* to each worker */

/* ---- a call: the first message that comes, and its end ---- */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    nk_call *call; /* a reference */
    struct nk_buf message;
    bool has_message, ended;
    struct nk_error status;
} seen = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void see_message(nk_call *c, void *user, struct nk_bytes bytes)
{
    (void)c;
    (void)user;
    pthread_mutex_lock(&seen.mutex);
    if (!seen.has_message)
        nk_buf_add(&seen.message, bytes.data, bytes.size, NULL);
    seen.has_message = true;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.mutex);
}

static void see_end(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c;
    (void)user;
    pthread_mutex_lock(&seen.mutex);
    seen.status = status ? *status : (struct nk_error){ 0 };
    seen.ended = true;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.mutex);
}

static void call(nk_channel *ch, const char *path, const ProtobufCMessage *m)
{
    static const struct nk_call_handlers handlers = { .message = see_message, .end = see_end };
    nk_call *c;

    nk_buf_init(&seen.message, 1 << 20);
    seen.has_message = seen.ended = false;
    pthread_mutex_lock(&seen.mutex);
    assert_int_equal(nk_call_start(&c, ch, path, 0, &handlers, NULL, NULL), 0);
    seen.call = nk_call_ref(c);
    pthread_mutex_unlock(&seen.mutex);
    nk_call_send_pb(seen.call, m, NULL);
}

/* Until the end, or the first message if that does: the call is then cancelled. */
static void finish(bool message_is_enough)
{
    pthread_mutex_lock(&seen.mutex);
    while (!seen.ended && !(message_is_enough && seen.has_message))
        pthread_cond_wait(&seen.changed, &seen.mutex);
    pthread_mutex_unlock(&seen.mutex);
    nk_call_cancel(seen.call);
    pthread_mutex_lock(&seen.mutex);
    while (!seen.ended)
        pthread_cond_wait(&seen.changed, &seen.mutex);
    pthread_mutex_unlock(&seen.mutex);
    nk_call_unref(seen.call);
}

static void assert_refused(const char *reason, const char *part)
{
    finish(false);
    nk_buf_release(&seen.message);
    if (strcmp(seen.status.reason, reason) != 0 || !strstr(seen.status.msg, part))
        fail_msg("%s: %s; expected %s ... %s", seen.status.reason, seen.status.msg, reason, part);
}

/* A session over two stages; next: the address of the one that has layers 4-8. */
static void open_stage(nk_channel *ch, uint32_t stage_idx, uint64_t epoch, const char *next_address)
{
    static uint8_t id[NK_SESSION_ID_BYTES];
    Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Stage stages[2], *route[2] = { &stages[0], &stages[1] };
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    int32_t prompt[] = { 1, 2, 3 };

    for (int i = 0; i < 2; i++) {
        nakshatra__v1__stage__init(&stages[i]);
        stages[i].address = (char *)(uintptr_t)(i ? next_address : "127.0.0.1:1");
        stages[i].layer_begin = (uint32_t)(4 * i);
        stages[i].layer_end = (uint32_t)(4 * i + 4);
        /* The second one's worker is of EPOCH; what stands there of the first does not matter. */
        stages[i].epoch = i == (int)stage_idx ? epoch : i ? EPOCH : epoch + 1;
    }
    for (int i = 0; i < NK_SESSION_ID_BYTES && ++id[i] == 0; i++)
        ; /* never the same twice */
    open.session = (ProtobufCBinaryData){ sizeof id, id };
    open.route = route;
    open.n_route = 2;
    open.stage_idx = stage_idx;
    open.model_sha256 = sha256;
    open.limits = &limits;
    limits.n_predict = 4;
    open.n_tokens_max = 16;
    if (stage_idx == 0) {
        open.prompt_ids = prompt;
        open.n_prompt_ids = 3;
    }
    req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    req.open = &open;
    call(ch, SERVICE "Inference", &req.base);
}

static void assert_opened(void)
{
    Nakshatra__V1__InferenceReply *m;

    finish(true);
    if (!seen.has_message)
        fail_msg("%s: %s", seen.status.reason, seen.status.msg);
    m = nakshatra__v1__inference_reply__unpack(NULL, seen.message.size,
                                               (uint8_t *)seen.message.data);
    assert_non_null(m);
    assert_int_equal(m->kind_case, NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED);
    nakshatra__v1__inference_reply__free_unpacked(m, NULL);
    nk_buf_release(&seen.message);
}

/* ---- tests ---- */

static void test_worker__members_may_ask_what_it_is_and_gateways_may_do_everything(void **state)
{
    Nakshatra__V1__InfoRequest info = NAKSHATRA__V1__INFO_REQUEST__INIT;
    Nakshatra__V1__ForwardRequest forward = NAKSHATRA__V1__FORWARD_REQUEST__INIT;
    Nakshatra__V1__SleepRequest sleep = NAKSHATRA__V1__SLEEP_REQUEST__INIT;
    Nakshatra__V1__WakeRequest wake = NAKSHATRA__V1__WAKE_REQUEST__INIT;
    Nakshatra__V1__InfoReply *m;

    (void)state;
    call(member[1], SERVICE "Info", &info.base);
    finish(false);
    m = nakshatra__v1__info_reply__unpack(NULL, seen.message.size, (uint8_t *)seen.message.data);
    assert_non_null(m);
    assert_int_equal(m->epoch, EPOCH);
    nakshatra__v1__info_reply__free_unpacked(m, NULL);
    nk_buf_release(&seen.message);
    call(member[1], SERVICE "Forward", &forward.base);
    assert_refused("not_allowed", SERVICE "Forward: member " ID_B);
    call(member[1], SERVICE "Sleep", &sleep.base);
    assert_refused("not_allowed", SERVICE "Sleep: member " ID_B);
    call(member[1], SERVICE "Wake", &wake.base);
    assert_refused("not_allowed", SERVICE "Wake: member " ID_B);
    call(gateway[1], SERVICE "Forward", &forward.base);
    assert_refused("bad_request", "0 rows"); /* it was let in */
    call(gateway[1], SERVICE "Wake", &wake.base);
    finish(false);
    nk_buf_release(&seen.message);
    assert_string_equal(seen.status.reason, "");
}

static void test_worker__first_stages_are_opened_by_gateways_later_ones_by_members_too(void **state)
{
    (void)state;
    open_stage(member[0], 0, EPOCH, "127.0.0.1:2");
    assert_refused("not_allowed", "member " ID_B " may not open a first stage");
    open_stage(member[1], 1, EPOCH, "127.0.0.1:2");
    assert_opened();
    open_stage(gateway[1], 1, EPOCH, "127.0.0.1:2");
    assert_opened();
}

/* The next stage was not told of to the first, and proves to be a member. */
static void test_worker__a_route_goes_on_at_any_member(void **state)
{
    char address[32];

    (void)state;
    snprintf(address, sizeof address, "127.0.0.1:%d", nk_worker_port(workers[1]));
    open_stage(gateway[0], 0, EPOCH, address);
    assert_opened();
    open_stage(gateway[0], 0, EPOCH, "no address");
    assert_refused("bad_address", "\"no address\" is not HOST:PORT");
}

static void test_worker__addresses_that_nobody_answers_at_do_not_fill_it(void **state)
{
    char address[32];

    (void)state;
    for (int i = 0; i < OTHERS; i++) {
        snprintf(address, sizeof address, "127.0.0.%d:1", i + 2);
        open_stage(gateway[0], 0, EPOCH, address);
        assert_refused("unreachable", address);
    }
    assert_int_equal(workers[0]->n_peers, NK_WORKER_PEERS_MAX);
    for (int i = 0; i < TOLD; i++)
        assert_string_equal(workers[0]->peers[i].address, told[i]);
    test_worker__a_route_goes_on_at_any_member(state);
}

static void test_worker__another_epoch_is_refused_with_both(void **state)
{
    static const uint64_t others[] = { 0, EPOCH - 1, EPOCH + 1, UINT64_MAX };

    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        char part[96];

        snprintf(part, sizeof part, "of epoch %llu of the cluster's plan, this worker of epoch 7",
                 (unsigned long long)others[i]);
        open_stage(gateway[1], 1, others[i], "127.0.0.1:2");
        assert_refused("stale_epoch", part);
    }
}

/* ---- life ---- */

static int begin(void **state)
{
    static const char roster[] = "nakshatra-members 1 1\n" ID_A " member cellar\n" ID_B
                                 " member attic\n" ID_C " gateway hall\n";
    struct {
        char *folder;
        const char *id;
    } members[] = { { worker_folder, worker_id },
                    { member_folder, member_id },
                    { gateway_folder, gateway_id } };
    const char *models = getenv("NK_MODELS");
    int64_t now_s = (int64_t)time(NULL);
    struct nk_error err;
    char path[4096];
    nk_model *m;

    (void)state;
    virtual_clock_init(&v);
    atomic_store(&v.unix_begin_s, now_s - 1000);
    ca = authority_make(now_s);
    for (int i = 0; i < 3; i++) {
        char names[128];

        snprintf(names, sizeof names, "URI:spiffe://" CLUSTER_A "/member/%s", members[i].id);
        folder_make(members[i].folder, &ca, names, roster, now_s);
    }
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    memset(sha256, 'a', sizeof sha256 - 1);
    nk_stage_global_init("CPU");
    if (!mkdtemp(dir) || nk_model_open(&m, path, &err) || nk_net_start(&net, &v.clock, &err))
        return -1;
    for (int i = 0; i < 2; i++) {
        struct nk_worker_opts opts = nk_worker_opts_default();
        const char *peers[TOLD];
        char address[32];

        snprintf(slices[i], sizeof slices[i], "%s/%d.gguf", dir, i);
        if (nk_slice_write(m, (struct nk_range){ 4 * i, 4 * i + 4 }, sha256, slices[i], NULL, &err))
            return -1;
        opts.slice_path = slices[i];
        opts.listen = "127.0.0.1:0";
        opts.stage.device = "CPU";
        opts.stage.n_threads = 1;
        opts.stage.n_ctx = 256;
        opts.stage.n_batch = 16;
        opts.stage.n_seq_max = 2;
        opts.clock = &v.clock;
        opts.credentials.identity = worker_folder;
        opts.epoch = EPOCH;
        for (int k = 0; k < TOLD; k++)
            snprintf(told[k], sizeof told[k], "10.0.0.1:%d", k + 1);
        for (int k = 0; k < TOLD && i == 0; k++)
            peers[opts.n_peers++] = told[k];
        opts.peers = peers;
        if (nk_worker_start(&workers[i], &opts, &err)) {
            print_error("%s\n", err.msg);
            return -1;
        }
        snprintf(address, sizeof address, "127.0.0.1:%d", nk_worker_port(workers[i]));
        if (nk_channel_open(&member[i], net, address,
                            &(struct nk_credentials){ .identity = member_folder }, &err) ||
            nk_channel_open(&gateway[i], net, address,
                            &(struct nk_credentials){ .identity = gateway_folder }, &err))
            return -1;
    }
    nk_model_close(m);
    return 0;
}

static int end(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        nk_channel_close(member[i]);
        nk_channel_close(gateway[i]);
    }
    for (int i = 0; i < 2; i++) {
        nk_worker_stop(workers[i], 0);
        unlink(slices[i]);
    }
    nk_net_stop(net);
    rmdir(dir);
    folder_remove(worker_folder);
    folder_remove(member_folder);
    folder_remove(gateway_folder);
    authority_release(&ca);
    virtual_clock_release(&v);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker__members_may_ask_what_it_is_and_gateways_may_do_everything),
        cmocka_unit_test(
            test_worker__first_stages_are_opened_by_gateways_later_ones_by_members_too),
        cmocka_unit_test(test_worker__a_route_goes_on_at_any_member),
        cmocka_unit_test(test_worker__addresses_that_nobody_answers_at_do_not_fill_it),
        cmocka_unit_test(test_worker__another_epoch_is_refused_with_both),
    };

    nk_log_configure("error", NULL);
    return cmocka_run_group_tests_name("membership", tests, begin, end);
}
