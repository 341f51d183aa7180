/* The coordinator's service (cluster/coordinator.h), over real calls of real members: what an
 * honest one is told, and what a hostile one can do. Two nets, as two machines have; the time is
 * the test's. */
#include "cluster_test.h"

#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

#include "cluster/coordinator.h"
#include "cluster/identity.h"
#include "measure/measure.h"
#include "rpc/proto.h"
#include "unit/settle.h"
#include "unit/virtual_clock.h"

#define GIB       ((uint64_t)1 << 30)
#define CATALOGUE "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define GATEWAY   "00000000000000aa"

enum { LAYERS = 4, CALLS_MAX = 12, MEMBERS = 2 };
static const char *const ids[MEMBERS] = { "00000000000000b0", "00000000000000b1" };

/* One call, as its other side sees it. */
struct talk {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    nk_call *call;
    int n_welcome, n_want, n_roster, n_other;
    struct {
        char catalogue[80];
        int n, begin, end;
        uint64_t epoch;
        char addresses[128]; /* with a blank after each */
    } want;                  /* the last */
    char roster[2048];
    struct nk_buf reply; /* of a unary call */
    bool ended;
    struct nk_error status; /* code 0: OK */
};

struct world {
    struct virtual_clock clock;
    nk_net *net, *far; /* the coordinator's, the members' */
    nk_store *store;
    nk_ca *ca;
    nk_coordinator *c;
    nk_server *server;
    char identity[256];
    uint64_t layer_bytes[LAYERS];
    struct nk_plan_model model;
    nk_channel *member[MEMBERS], *gateway;
    struct talk talks[CALLS_MAX];
    int n_talks;
    pthread_mutex_t mutex; /* of what follows */
    int n_chains;
    char address[256], waiting[256], events[4096], revoked[64];
    int n_tokens, uses;
};

/* ---- identities ---- */

static void make_identity(struct world *w, const char *dir, const char *id)
{
    struct nk_buf key = NK_BUF_INIT(1 << 16), request = NK_BUF_INIT(1 << 16),
                  certificate = NK_BUF_INIT(1 << 16);
    struct nk_error err;

    assert_ok(nk_key_make(&key, &err), err);
    assert_ok(nk_request_make(buf_bytes(&key), &request, &err), err);
    assert_ok(
        nk_ca_issue(w->ca, buf_bytes(&request), id, (int64_t)time(NULL), 86400, &certificate, &err),
        err);
    assert_ok(nk_identity_write(in_dir(dir), text_bytes(nk_ca_certificate(w->ca)),
                                buf_bytes(&certificate), buf_bytes(&key), &err),
              err);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&certificate);
}

/* ---- the coordinator ---- */

static void on_deploy(void *user, const struct nk_deployment *d)
{
    struct world *w = user;

    pthread_mutex_lock(&w->mutex);
    w->n_chains = d->n_chains;
    snprintf(w->address, sizeof w->address, "%s",
             d->n_chains ? d->chains[0].stages[0].address : "");
    snprintf(w->waiting, sizeof w->waiting, "%s", d->waiting);
    pthread_mutex_unlock(&w->mutex);
}

static void on_event(void *user, const char *sentence)
{
    struct world *w = user;
    size_t n;

    pthread_mutex_lock(&w->mutex);
    n = strlen(w->events);
    snprintf(w->events + n, sizeof w->events - n, "%s\n", sentence);
    pthread_mutex_unlock(&w->mutex);
}

static int create_token(void *user, int uses, uint32_t ttl_s, char out[256], struct nk_error *err)
{
    struct world *w = user;

    if (uses > 1000)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "%d uses are too many", uses);
    pthread_mutex_lock(&w->mutex);
    w->n_tokens++;
    w->uses = uses;
    pthread_mutex_unlock(&w->mutex);
    snprintf(out, 256, "nk1-%d-%u", uses, ttl_s);
    return 0;
}

static json_t *list_tokens(void *user)
{
    (void)user;
    return json_pack("[{s:s}]", "id", "one");
}

static int revoke_token(void *user, const char *id, struct nk_error *err)
{
    struct world *w = user;

    if (strcmp(id, "one") != 0)
        return nk_fail(err, NK_E_NOT_FOUND, "unknown_token", "there is no token %s", id);
    pthread_mutex_lock(&w->mutex);
    snprintf(w->revoked, sizeof w->revoked, "%s", id);
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

static void open_attend(nk_call *c, void *w)
{
    nk_coordinator_attend(((struct world *)w)->c, c);
}
static void open_status(nk_call *c, void *w)
{
    nk_coordinator_status(((struct world *)w)->c, c);
}
static void open_token(nk_call *c, void *w)
{
    nk_coordinator_token(((struct world *)w)->c, c);
}
static void open_remove(nk_call *c, void *w)
{
    nk_coordinator_remove(((struct world *)w)->c, c);
}

static const struct nk_method methods[] = {
    { NK_COORDINATOR_ATTEND, open_attend, NK_ROLES_MEMBER },
    { NK_COORDINATOR_STATUS, open_status, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_COORDINATOR_TOKEN, open_token, NK_ROLES_GATEWAY },
    { NK_COORDINATOR_REMOVE, open_remove, NK_ROLES_GATEWAY },
};

static nk_channel *connect_as(struct world *w, const char *dir)
{
    struct nk_credentials credentials = { .identity = in_dir(dir) };
    char address[64];
    nk_channel *channel;
    struct nk_error err;

    snprintf(address, sizeof address, "127.0.0.1:%d", nk_server_port(w->server));
    assert_ok(nk_channel_open(&channel, w->far, address, &credentials, &err), err);
    return channel;
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct nk_coordinator_opts o = { .cluster = NULL,
                                     .catalogue = CATALOGUE,
                                     .plan = nk_plan_opts_default(),
                                     .n_ctx = 4096,
                                     .addresses = { "10.0.0.1" },
                                     .n_addresses = 1,
                                     .create_token = create_token,
                                     .list_tokens = list_tokens,
                                     .revoke_token = revoke_token,
                                     .deploy = on_deploy,
                                     .event = on_event,
                                     .user = w };
    struct nk_server_opts so = { .listen = "127.0.0.1:0",
                                 .methods = methods,
                                 .n_methods = sizeof methods / sizeof methods[0],
                                 .user = w };
    char name[NK_MEMBER_NAME_SIZE];
    struct nk_roster roster;
    struct nk_error err;

    if (dir_setup(state))
        return -1;
    virtual_clock_init(&w->clock);
    /* gRPC's own verification goes by the system's clock. */
    atomic_store(&w->clock.unix_begin_s, (long long)time(NULL) - 1000);
    pthread_mutex_init(&w->mutex, NULL);
    for (int i = 0; i < LAYERS; i++)
        w->layer_bytes[i] = GIB;
    w->model = (struct nk_plan_model){ .n_layer = LAYERS,
                                       .layer_bytes = w->layer_bytes,
                                       .row_bytes = 4096 };
    assert_ok(nk_store_open(&w->store, in_dir("store.db"), &w->clock.clock, &err), err);
    assert_ok(nk_ca_open(&w->ca, in_dir("ca"), (int64_t)time(NULL), &err), err);
    assert_ok(nk_net_start(&w->net, &w->clock.clock, &err), err);
    assert_ok(nk_net_start(&w->far, &w->clock.clock, &err), err);
    make_identity(w, "gateway", GATEWAY);
    o.net = w->net;
    o.clock = &w->clock.clock;
    o.store = w->store;
    snprintf(w->identity, sizeof w->identity, "%s", in_dir("gateway"));
    o.identity = w->identity;
    o.cluster = nk_ca_cluster(w->ca);
    o.model = &w->model;
    assert_ok(nk_coordinator_start(&w->c, &o, &err), err);
    strcpy(name, "attic-gateway");
    assert_ok(nk_coordinator_admit(w->c, GATEWAY, true, name, NULL, &err), err);
    so.credentials.identity = in_dir("gateway");
    assert_ok(nk_server_start(&w->server, w->net, &so, &err), err);
    w->gateway = connect_as(w, "gateway");
    for (int i = 0; i < MEMBERS; i++) {
        char dir[16];

        snprintf(dir, sizeof dir, "member%d", i);
        make_identity(w, dir, ids[i]);
        snprintf(name, sizeof name, "cellar%d", i);
        assert_ok(nk_coordinator_admit(w->c, ids[i], false, name, &roster, &err), err);
        assert_ok(nk_members_write(in_dir(dir), &roster, &err), err);
        nk_roster_release(&roster);
        w->member[i] = connect_as(w, dir);
    }
    for (int i = 0; i < CALLS_MAX; i++) {
        pthread_mutex_init(&w->talks[i].mutex, NULL);
        pthread_cond_init(&w->talks[i].cond, NULL);
        nk_buf_init(&w->talks[i].reply, 1 << 20);
    }
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;

    nk_server_stop(w->server, 0); /* with what calls are open */
    nk_coordinator_stop(w->c);
    nk_net_stop(w->net);
    for (int i = 0; i < MEMBERS; i++)
        nk_channel_close(w->member[i]);
    nk_channel_close(w->gateway);
    nk_net_stop(w->far);
    for (int i = 0; i < CALLS_MAX; i++) {
        assert_true(i >= w->n_talks || w->talks[i].ended);
        nk_call_unref(w->talks[i].call);
        pthread_mutex_destroy(&w->talks[i].mutex);
        pthread_cond_destroy(&w->talks[i].cond);
        nk_buf_release(&w->talks[i].reply);
    }
    nk_ca_close(w->ca);
    nk_store_close(w->store);
    pthread_mutex_destroy(&w->mutex);
    virtual_clock_release(&w->clock);
    free(w);
    return dir_teardown(state);
}

/* ---- talking ---- */

static void note(struct talk *t, const Nakshatra__V1__CoordinatorMessage *m)
{
    switch (m->kind_case) {
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WELCOME:
        assert_int_equal(m->welcome->beat_ms, 2000);
        t->n_welcome++;
        break;
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WANT:
        t->n_want++;
        snprintf(t->want.catalogue, sizeof t->want.catalogue, "%s", m->want->catalogue);
        t->want.n = (int)m->want->n_assignments;
        t->want.addresses[0] = '\0';
        for (size_t i = 0; i < m->want->n_addresses; i++)
            snprintf(t->want.addresses + strlen(t->want.addresses), 64, "%.60s ",
                     m->want->addresses[i]);
        if (t->want.n) {
            t->want.begin = (int)m->want->assignments[0]->layer_begin;
            t->want.end = (int)m->want->assignments[0]->layer_end;
            t->want.epoch = m->want->assignments[0]->epoch;
        }
        break;
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_ROSTER:
        t->n_roster++;
        snprintf(t->roster, sizeof t->roster, "%.*s", (int)m->roster->text.len,
                 (const char *)m->roster->text.data);
        break;
    default:
        t->n_other++;
    }
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct talk *t = user;
    Nakshatra__V1__CoordinatorMessage *m;

    (void)c;
    pthread_mutex_lock(&t->mutex);
    if (t->reply.max == 1) {
        m = nakshatra__v1__coordinator_message__unpack(NULL, msg.size, msg.data);
        assert_non_null(m);
        note(t, m);
        nakshatra__v1__coordinator_message__free_unpacked(m, NULL);
    } else {
        assert_int_equal(nk_buf_add(&t->reply, msg.data, msg.size, NULL), 0);
    }
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->mutex);
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct talk *t = user;

    (void)c;
    pthread_mutex_lock(&t->mutex);
    if (status)
        t->status = *status;
    t->ended = true;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->mutex);
}

static struct talk *start(struct world *w, nk_channel *channel, const char *path, bool unary)
{
    static const struct nk_call_handlers handlers = { .message = on_message, .end = on_end };
    struct talk *t;
    struct nk_error err;

    assert_true(w->n_talks < CALLS_MAX);
    t = &w->talks[w->n_talks++];
    if (!unary)
        t->reply.max = 1; /* a stream: its messages are noted, not kept */
    pthread_mutex_lock(&t->mutex);
    assert_ok(nk_call_start(&t->call, channel, path, 0, &handlers, t, &err), err);
    nk_call_ref(t->call);
    pthread_mutex_unlock(&t->mutex);
    return t;
}

#define until(t, condition)                                                                        \
    do {                                                                                           \
        pthread_mutex_lock(&(t)->mutex);                                                           \
        while (!(condition) && !(t)->ended)                                                        \
            pthread_cond_wait(&(t)->cond, &(t)->mutex);                                            \
        if (!(condition))                                                                          \
            fail_msg("%s:%d: the call ended (%s: %s) before " #condition, __FILE__, __LINE__,      \
                     (t)->status.reason, (t)->status.msg);                                         \
        pthread_mutex_unlock(&(t)->mutex);                                                         \
    } while (0)

static void assert_open(struct talk *t)
{
    pthread_mutex_lock(&t->mutex);
    assert_false(t->ended);
    pthread_mutex_unlock(&t->mutex);
}

static void assert_ended(struct talk *t, int code, const char *reason)
{
    until(t, t->ended);
    assert_int_equal(t->status.code, code);
    if (code)
        assert_string_equal(t->status.reason, reason);
}

static void say(struct talk *t, Nakshatra__V1__MemberMessage *m)
{
    struct nk_error err;

    assert_ok(nk_call_send_pb(t->call, &m->base, &err), err);
}

static void say_attending(struct talk *t, uint32_t protocol, uint64_t boot)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Attending a = NAKSHATRA__V1__ATTENDING__INIT;

    a.protocol = protocol;
    a.version = (char *)(uintptr_t) "9.9.9";
    a.boot = boot;
    a.reached = (char *)(uintptr_t) "10.0.0.1";
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_ATTENDING;
    m.attending = &a;
    say(t, &m);
}

static struct talk *attend(struct world *w, int i, uint64_t boot)
{
    struct talk *t = start(w, w->member[i], NK_COORDINATOR_ATTEND, false);

    say_attending(t, 1, boot);
    return t;
}

static struct talk *attended(struct world *w, int i, uint64_t boot)
{
    struct talk *t = attend(w, i, boot);

    until(t, t->n_want > 0 && t->n_roster > 0);
    return t;
}

static void say_facts(struct talk *t, const char *catalogue, const char *json, const char *error)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Facts f = NAKSHATRA__V1__FACTS__INIT;

    f.catalogue = (char *)(uintptr_t)catalogue;
    f.json = (char *)(uintptr_t)json;
    f.error = (char *)(uintptr_t)error;
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_FACTS;
    m.facts = &f;
    say(t, &m);
}

/* n times h. */
static void say_beat(struct talk *t, const Nakshatra__V1__Holding *h, size_t n)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Beat b = NAKSHATRA__V1__BEAT__INIT;
    Nakshatra__V1__Holding **list = calloc(n + 1, sizeof *list);

    for (size_t i = 0; i < n; i++)
        list[i] = (Nakshatra__V1__Holding *)(uintptr_t)h;
    b.n_holdings = n;
    b.holdings = list;
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_BEAT;
    m.beat = &b;
    say(t, &m);
    free(list);
}

static Nakshatra__V1__Holding ready(const struct talk *t)
{
    Nakshatra__V1__Holding h = NAKSHATRA__V1__HOLDING__INIT;

    h.epoch = t->want.epoch;
    h.catalogue = (char *)(uintptr_t)CATALOGUE;
    h.layer_begin = (uint32_t)t->want.begin;
    h.layer_end = (uint32_t)t->want.end;
    h.state = NAKSHATRA__V1__HOLDING_STATE__HOLDING_READY;
    h.port = 9000;
    return h;
}

/* What a machine with this much memory prints for a model with n_layer layers; owned. */
static char *measurement(int n_layer, uint64_t memory)
{
    struct nk_measured_layer layers[LAYERS + 1] = { { 0 } };
    struct nk_measured r = { .n_cores = 2,
                             .n_threads = 2,
                             .n_threads_batch = 2,
                             .device_free_bytes = memory,
                             .memory_free_bytes = memory,
                             .n_layer = n_layer,
                             .n_embd = 64,
                             .n_vocab = 100,
                             .n_ctx = 4096,
                             .n_sequences = 1,
                             .n_batch = 64,
                             .rows = { 1, 8, 64 },
                             .layers = layers };
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    struct nk_error err;

    for (int i = 0; i < n_layer; i++)
        for (int k = 0; k < NK_RUN_KINDS; k++)
            layers[i].ms[k] = 1 + k;
    assert_ok(nk_measured_format(&r, &text, &err), err);
    return nk_buf_take(&text, NULL);
}

/* Until both nets have nothing to do, and what is due at this time is done. */
static void pass(struct world *w, uint64_t ms)
{
    settle(w->net); /* what it began at this time has begun: its timers are of this time */
    virtual_clock_advance_ms(&w->clock, ms);
    settle(w->net);
    settle(w->far);
}

/* Asks as the gateway; the state of the cluster, which is valid JSON. */
static json_t *status(struct world *w)
{
    Nakshatra__V1__StatusRequest request = NAKSHATRA__V1__STATUS_REQUEST__INIT;
    Nakshatra__V1__StatusReply *reply;
    struct talk *t = start(w, w->gateway, NK_COORDINATOR_STATUS, true);
    struct nk_error err;
    json_t *j;

    assert_ok(nk_call_send_pb(t->call, &request.base, &err), err);
    nk_call_send_done(t->call);
    assert_ended(t, 0, "");
    reply = nakshatra__v1__status_reply__unpack(NULL, t->reply.size,
                                                (const uint8_t *)nk_buf_str(&t->reply));
    assert_non_null(reply);
    j = json_loads(reply->json, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(j);
    nakshatra__v1__status_reply__free_unpacked(reply, NULL);
    return j;
}

static const char *state_of(const json_t *j, const char *name)
{
    const json_t *list = json_object_get(j, "members");

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *m = json_array_get(list, i);

        if (!strcmp(json_string_value(json_object_get(m, "name")), name))
            return json_string_value(json_object_get(m, "state"));
    }
    return NULL;
}

/* Until the member is in this state: what it says comes by another connection. */
static void until_state(struct world *w, const char *name, const char *state)
{
    for (bool is = false; !is;) {
        int n = w->n_talks;
        json_t *j = status(w);
        struct talk *t = &w->talks[n];

        is = !strcmp(state_of(j, name), state);
        json_decref(j);
        nk_call_unref(t->call);
        t->call = NULL;
        nk_buf_reset(&t->reply);
        t->ended = false;
        w->n_talks = n;
    }
}

static void until_said(struct world *w, const char *part)
{
    for (bool said = false; !said;) {
        until_state(w, "cellar1", "gone"); /* a round trip */
        pthread_mutex_lock(&w->mutex);
        said = strstr(w->events, part) != NULL;
        pthread_mutex_unlock(&w->mutex);
    }
}

static struct talk *remove_member(struct world *w, nk_channel *channel, const char *who)
{
    Nakshatra__V1__RemoveRequest request = NAKSHATRA__V1__REMOVE_REQUEST__INIT;
    struct talk *t = start(w, channel, NK_COORDINATOR_REMOVE, true);

    request.member = (char *)(uintptr_t)who;
    (void)nk_call_send_pb(t->call, &request.base, NULL);
    nk_call_send_done(t->call);
    until(t, t->ended);
    return t;
}

static struct talk *token(struct world *w, nk_channel *channel, int what, uint32_t uses,
                          const char *id, Nakshatra__V1__TokenReply **reply)
{
    Nakshatra__V1__TokenRequest request = NAKSHATRA__V1__TOKEN_REQUEST__INIT;
    struct talk *t = start(w, channel, NK_COORDINATOR_TOKEN, true);

    request.what = (Nakshatra__V1__TokenRequest__What)what;
    request.uses = uses;
    request.id = (char *)(uintptr_t)id;
    (void)nk_call_send_pb(t->call, &request.base, NULL);
    nk_call_send_done(t->call);
    until(t, t->ended);
    *reply = t->status.code ? NULL
                            : nakshatra__v1__token_reply__unpack(
                                  NULL, t->reply.size, (const uint8_t *)nk_buf_str(&t->reply));
    return t;
}

/* ---- an honest member ---- */

static void test_coordinator__a_member_attends_is_planned_and_serves(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    char *json = measurement(LAYERS, 16 * GIB);
    Nakshatra__V1__Holding h;

    assert_int_equal(t->n_welcome, 1);
    assert_string_equal(t->want.catalogue, CATALOGUE);
    assert_int_equal(t->want.n, 0);
    assert_non_null(strstr(t->roster, "00000000000000b1 member cellar1\n"));
    until_state(w, "cellar1", "gone");
    say_facts(t, CATALOGUE, json, "");
    until_state(w, "cellar0", "spare");
    pass(w, 2000);
    until(t, t->want.n == 1);
    assert_int_equal(t->want.end, LAYERS);
    h = ready(t);
    say_beat(t, &h, 1);
    until_state(w, "cellar0", "serving");
    settle(w->net);
    pthread_mutex_lock(&w->mutex);
    assert_int_equal(w->n_chains, 1);
    pthread_mutex_unlock(&w->mutex);
    free(json);
}

static void test_coordinator__the_state_is_there_from_the_beginning(void **state)
{
    struct world *w = *state;
    struct nk_buf text = NK_BUF_INIT(1 << 20);
    struct nk_error err;
    json_t *j;

    assert_ok(nk_coordinator_json(w->c, &text, &err), err);
    j = json_loads(nk_buf_str(&text), 0, NULL);
    assert_non_null(j);
    assert_string_equal(json_string_value(json_object_get(j, "id")), nk_ca_cluster(w->ca));
    json_decref(j);
    nk_buf_release(&text);
}

static void test_coordinator__a_new_member_is_told_to_all(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    char name[NK_MEMBER_NAME_SIZE] = "loft";
    struct nk_error err;

    assert_ok(nk_coordinator_admit(w->c, "00000000000000cc", false, name, NULL, &err), err);
    until(t, strstr(t->roster, "00000000000000cc member loft\n"));
    assert_false(nk_coordinator_is_removed(w->c, "00000000000000cc"));
    assert_true(nk_coordinator_is_removed(w->c, "00000000000000dd"));
}

/* ---- how a call begins ---- */

static void test_coordinator__another_protocol_is_refused_with_both_versions(void **state)
{
    struct world *w = *state;
    struct talk *t = start(w, w->member[0], NK_COORDINATOR_ATTEND, false);

    say_attending(t, 2, 1);
    assert_ended(t, NK_E_PRECONDITION, "bad_version");
    assert_non_null(strstr(t->status.msg, "9.9.9"));
    assert_non_null(strstr(t->status.msg, NK_VERSION));
}

static void test_coordinator__the_first_message_is_attending(void **state)
{
    struct world *w = *state;
    struct talk *t = start(w, w->member[0], NK_COORDINATOR_ATTEND, false), *garbage;
    struct nk_error err;

    say_beat(t, NULL, 0);
    assert_ended(t, NK_E_INVALID, "bad_message");
    garbage = start(w, w->member[0], NK_COORDINATOR_ATTEND, false);
    assert_ok(nk_call_send(garbage->call, "\xff\xff\xff\xff", 4, &err), err);
    assert_ended(garbage, NK_E_INVALID, "bad_message");
}

static void test_coordinator__attending_comes_within_ten_seconds(void **state)
{
    struct world *w = *state;
    struct talk *good = attended(w, 1, 1),
                *t = start(w, w->member[0], NK_COORDINATOR_ATTEND, false);

    /* It is there when something else of the same connection has been answered. */
    assert_ended(remove_member(w, w->member[0], "x"), NK_E_DENIED, "not_allowed");
    pass(w, 9999);
    until_state(w, "cellar1", "measuring");
    assert_open(t);
    pass(w, 1);
    assert_ended(t, NK_E_DEADLINE, "no_request");
    assert_open(good);
}

static void test_coordinator__one_member_has_one_call(void **state)
{
    struct world *w = *state;
    struct talk *first = attended(w, 0, 1), *again, *other;

    again = attended(w, 0, 1); /* the same process: its old call is dead */
    assert_ended(first, NK_E_CANCELLED, "cancelled");
    other = attend(w, 0, 2);
    assert_ended(other, NK_E_PRECONDITION, "already_attending");
    assert_non_null(strstr(other->status.msg, "state folder"));
    assert_open(again);
}

static void test_coordinator__whose_lease_is_over_attends_anew(void **state)
{
    struct world *w = *state;
    struct talk *first = attended(w, 0, 1), *second;

    for (int i = 0; i < 4; i++)
        pass(w, 2000);
    assert_ended(first, NK_E_UNAVAILABLE, "lease_ended");
    second = attended(w, 0, 2); /* from another start, too */
    assert_open(second);
    pthread_mutex_lock(&w->mutex);
    assert_non_null(strstr(w->events, "cellar0 is not heard of any more"));
    pthread_mutex_unlock(&w->mutex);
}

/* ---- a hostile one ---- */

static void test_coordinator__beats_of_what_cannot_be_end_the_call(void **state)
{
    struct world *w = *state;
    Nakshatra__V1__Holding good, bad;
    struct talk *t;

    for (int i = 0; i < 6; i++) {
        t = attended(w, 0, 1);
        t->want.epoch = 1;
        t->want.end = LAYERS;
        good = bad = ready(t);
        switch (i) {
        case 0:
            bad.layer_begin = 65536; /* which must not become 0 */
            bad.layer_end = 65536 + LAYERS;
            break;
        case 1:
            bad.port = 65536;
            break;
        case 2:
            bad.state = (Nakshatra__V1__HoldingState)99;
            break;
        case 3:
            bad.bytes_total = UINT64_MAX;
            break;
        case 4:
            bad.catalogue = (char *)(uintptr_t) "\x1b[2J";
            break;
        }
        say_beat(t, &bad, i == 5 ? NK_FLEET_HOLDINGS_MAX + 1 : 1);
        assert_ended(t, NK_E_INVALID, "bad_message");
    }
    t = attended(w, 0, 1);
    good.error = (char *)(uintptr_t) "\x1b]0;title\a \xff";
    good.bytes_total = INT64_MAX;
    say_beat(t, &good, NK_FLEET_HOLDINGS_MAX);
    until_state(w, "cellar0", "ready");
}

static void test_coordinator__facts_that_are_none_are_said_and_harmless(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    char *other = measurement(LAYERS + 1, 16 * GIB), *good = measurement(LAYERS, 16 * GIB);

    say_facts(t, "bbbb", "", "of another model"); /* not looked at */
    say_facts(t, CATALOGUE, other, "");
    say_facts(t, CATALOGUE, "{", "");
    say_facts(t, CATALOGUE, "", "\x1b[2Jmine is \xff best");
    until_state(w, "cellar0", "failed");
    say_beat(t, NULL, 0);
    until_said(w, "mine is");
    pthread_mutex_lock(&w->mutex);
    assert_non_null(strstr(w->events, "has 4"));
    assert_null(strstr(w->events, "of another model"));
    assert_null(strchr(w->events, '\x1b'));
    pthread_mutex_unlock(&w->mutex);
    say_facts(t, CATALOGUE, good, "");
    until_state(w, "cellar0", "spare");
    pass(w, 2000);
    until(t, t->want.n == 1);
    free(other);
    free(good);
}

static void test_coordinator__a_flood_ends_the_call(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Beat b = NAKSHATRA__V1__BEAT__INIT;
    struct nk_error err;
    char *large;

    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_BEAT;
    m.beat = &b;
    for (int i = 0; i < 1000 && !nk_call_send_pb(t->call, &m.base, &err); i++)
        ;
    assert_ended(t, NK_E_EXHAUSTED, "too_many_messages");
    t = attended(w, 0, 1);
    large = calloc(1, 2 << 20);
    assert_ok(nk_call_send(t->call, large, 2 << 20, &err), err);
    assert_ended(t, NK_E_EXHAUSTED, "message_too_large");
    free(large);
    /* A million bytes that would become a hundred million. */
    t = attended(w, 0, 1);
    large = malloc(1 << 20);
    large[0] = 0x1a;                                               /* Beat */
    large[1] = (char)0x80, large[2] = (char)0x80, large[3] = 0x3c; /* of 983,040 bytes */
    for (int i = 0; i < 983040; i += 2)
        large[4 + i] = 0x0a, large[5 + i] = 0; /* an empty Holding */
    assert_ok(nk_call_send(t->call, large, 4 + 983040, &err), err);
    assert_ended(t, NK_E_INVALID, "bad_message");
    assert_string_equal(t->status.msg, "not a MemberMessage");
    free(large);
}

static void test_coordinator__calls_of_one_member_are_few(void **state)
{
    struct world *w = *state;
    struct talk *t, *one;

    for (int i = 0; i < 4; i++)
        (void)start(w, w->member[0], NK_COORDINATOR_ATTEND, false);
    /* They are there when something after them has been answered. */
    assert_ended(remove_member(w, w->member[0], "x"), NK_E_DENIED, "not_allowed");
    t = start(w, w->member[0], NK_COORDINATOR_ATTEND, false);
    assert_ended(t, NK_E_EXHAUSTED, "too_many_calls");
    one = attended(w, 1, 1); /* another's are not counted */
    assert_open(one);
}

/* ---- the gateway ---- */

static void test_coordinator__a_removed_member_is_out_at_once(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1), *other = attended(w, 1, 1);

    assert_ended(remove_member(w, w->gateway, "nobody"), NK_E_NOT_FOUND, "unknown_member");
    assert_ended(remove_member(w, w->gateway, GATEWAY), NK_E_PRECONDITION, "is_coordinator");
    assert_ended(remove_member(w, w->gateway, "cellar0"), 0, "");
    assert_ended(t, NK_E_DENIED, "removed");
    until(other, !strstr(other->roster, ids[0]));
    assert_true(nk_coordinator_is_removed(w->c, ids[0]));
    t = start(w, w->member[0], NK_COORDINATOR_ATTEND, false);
    until(t, t->ended);
    assert_int_not_equal(t->status.code, 0);
}

static void test_coordinator__tokens_are_the_gateways(void **state)
{
    struct world *w = *state;
    enum {
        CREATE = NAKSHATRA__V1__TOKEN_REQUEST__WHAT__CREATE,
        LIST = NAKSHATRA__V1__TOKEN_REQUEST__WHAT__LIST,
        REVOKE = NAKSHATRA__V1__TOKEN_REQUEST__WHAT__REVOKE
    };
    Nakshatra__V1__TokenReply *reply;

    assert_ended(token(w, w->member[0], CREATE, 1, "", &reply), NK_E_DENIED, "not_allowed");
    assert_ended(remove_member(w, w->member[0], "cellar1"), NK_E_DENIED, "not_allowed");
    pthread_mutex_lock(&w->mutex);
    assert_int_equal(w->n_tokens, 0);
    pthread_mutex_unlock(&w->mutex);
    assert_ended(token(w, w->gateway, CREATE, 0, "", &reply), 0, "");
    assert_string_equal(reply->token, "nk1-1-3600");
    nakshatra__v1__token_reply__free_unpacked(reply, NULL);
    /* 65,537 uses are not one. */
    assert_ended(token(w, w->gateway, CREATE, 65537, "", &reply), NK_E_INVALID, "bad_argument");
    assert_ended(token(w, w->gateway, LIST, 0, "", &reply), 0, "");
    assert_string_equal(reply->json, "[{\"id\":\"one\"}]");
    nakshatra__v1__token_reply__free_unpacked(reply, NULL);
    assert_ended(token(w, w->gateway, REVOKE, 0, "two", &reply), NK_E_NOT_FOUND, "unknown_token");
    assert_ended(token(w, w->gateway, REVOKE, 0, "one", &reply), 0, "");
    pthread_mutex_lock(&w->mutex);
    assert_string_equal(w->revoked, "one");
    pthread_mutex_unlock(&w->mutex);
    nakshatra__v1__token_reply__free_unpacked(reply, NULL);
    assert_ended(token(w, w->gateway, 7, 0, "", &reply), NK_E_INVALID, "bad_message");
}

/* ---- what goes wrong here ---- */

static void test_coordinator__a_roster_that_cannot_be_written_is_written_later(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    char name[NK_MEMBER_NAME_SIZE] = "loft", members[300], away[300];
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    struct nk_error err;

    snprintf(members, sizeof members, "%s", in_dir("gateway/members"));
    snprintf(away, sizeof away, "%s", in_dir("gateway/away"));
    assert_int_equal(rename(members, away), 0);
    assert_int_equal(mkdir(members, 0700), 0); /* in the way */
    assert_int_not_equal(nk_coordinator_admit(w->c, "00000000000000cc", false, name, NULL, &err),
                         0);
    until(t, strstr(t->roster, "loft")); /* the others know */
    assert_int_equal(rmdir(members), 0);
    say_beat(t, NULL, 0);
    pass(w, 2000);
    assert_ok(nk_file_read(members, 1 << 16, &text, &err), err);
    assert_non_null(strstr(nk_buf_str(&text), "loft"));
    nk_buf_release(&text);
    pthread_mutex_lock(&w->mutex);
    assert_non_null(strstr(w->events, "the roster could not be written"));
    pthread_mutex_unlock(&w->mutex);
}

static void test_coordinator__a_sleep_throws_nobody_out(void **state)
{
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);
    json_t *j;

    say_beat(t, NULL, 0);
    pass(w, 2000);
    pass(w, 60000); /* at once: nothing ran in between */
    pass(w, 2000);
    j = status(w);
    assert_string_equal(state_of(j, "cellar0"), "measuring");
    json_decref(j);
    assert_open(t);
}

static void test_coordinator__who_attends_is_told_new_addresses(void **state)
{
    static const char *const addresses[] = { "10.0.0.2", "fd00::2" };
    struct world *w = *state;
    struct talk *t = attended(w, 0, 1);

    assert_string_equal(t->want.addresses, "10.0.0.1 ");
    nk_coordinator_set_addresses(w->c, addresses, 2);
    until(t, !strcmp(t->want.addresses, "10.0.0.2 fd00::2 "));
    nk_call_cancel(t->call);
    until(t, t->ended);
}

static void test_coordinator__it_stops_while_members_attend(void **state)
{
    struct world *w = *state;

    json_decref(status(w));
    (void)attended(w, 0, 1);
    (void)attended(w, 1, 1);
    (void)start(w, w->member[1], NK_COORDINATOR_ATTEND, false);
    (void)start(w, w->gateway, NK_COORDINATOR_STATUS, true);
    /* The rest is tear_down's. */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_coordinator__a_member_attends_is_planned_and_serves),
        TEST(test_coordinator__the_state_is_there_from_the_beginning),
        TEST(test_coordinator__a_new_member_is_told_to_all),
        TEST(test_coordinator__another_protocol_is_refused_with_both_versions),
        TEST(test_coordinator__the_first_message_is_attending),
        TEST(test_coordinator__attending_comes_within_ten_seconds),
        TEST(test_coordinator__one_member_has_one_call),
        TEST(test_coordinator__whose_lease_is_over_attends_anew),
        TEST(test_coordinator__beats_of_what_cannot_be_end_the_call),
        TEST(test_coordinator__facts_that_are_none_are_said_and_harmless),
        TEST(test_coordinator__a_flood_ends_the_call),
        TEST(test_coordinator__calls_of_one_member_are_few),
        TEST(test_coordinator__a_removed_member_is_out_at_once),
        TEST(test_coordinator__tokens_are_the_gateways),
        TEST(test_coordinator__a_roster_that_cannot_be_written_is_written_later),
        TEST(test_coordinator__a_sleep_throws_nobody_out),
        TEST(test_coordinator__who_attends_is_told_new_addresses),
        TEST(test_coordinator__it_stops_while_members_attend),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
