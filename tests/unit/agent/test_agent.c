/* A member (agent/agent.h) without an engine: its coordinator is the test's, its program does
 * nothing. */
#include "unit/cluster/cluster_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/agent_int.h"
#include "cluster/fleet.h"
#include "cluster/identity.h"
#include "rpc/proto.h"
#include "rpc/rpc.h"
#include "unit/settle.h"
#include "unit/virtual_clock.h"

#define CATALOGUE "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define GATEWAY   "00000000000000aa"
#define MEMBER    "00000000000000b0"

/* What the coordinator does with a call that attends. */
enum answer { WELCOME, WELCOME_AND_END, REMOVED, NOTHING };

struct world {
    struct virtual_clock clock;
    nk_net *net;
    nk_ca *ca;
    nk_server *server;
    char state[256], identity[256], joined[256], gateway[256];
    pthread_t agent;
    bool runs;
    int stop[2], rc;
    struct nk_error err;
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t cond;
    enum answer answer;
    const char *want_addresses[4];
    uint32_t want_begin, want_end; /* of an assignment; 0, 0: none */
    nk_call *call;                 /* the last one, until its end */
    int n_attending, n_ended, n_leaving;
    uint64_t boot;
    char reached[64], said[4096];
};

/* ---- the coordinator ---- */

static void answer(struct world *w, nk_call *c, Nakshatra__V1__CoordinatorMessage *m)
{
    (void)w;
    (void)nk_call_send_pb(c, &m->base, NULL);
}

static void welcome(struct world *w, nk_call *c)
{
    Nakshatra__V1__CoordinatorMessage m = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__Welcome hello = NAKSHATRA__V1__WELCOME__INIT;
    Nakshatra__V1__RosterText roster = NAKSHATRA__V1__ROSTER_TEXT__INIT;
    Nakshatra__V1__Want want = NAKSHATRA__V1__WANT__INIT;
    Nakshatra__V1__Assignment as = NAKSHATRA__V1__ASSIGNMENT__INIT, *list[] = { &as };
    static const char text[] = "nakshatra-members 1 7\n" GATEWAY " gateway attic\n" MEMBER
                               " member cellar\n00000000000000cc member loft\n";

    hello.beat_ms = 2000;
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WELCOME;
    m.welcome = &hello;
    answer(w, c, &m);
    roster.text = (ProtobufCBinaryData){ sizeof text - 1, (uint8_t *)(uintptr_t)text };
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_ROSTER;
    m.roster = &roster;
    answer(w, c, &m);
    want.catalogue = (char *)(uintptr_t)CATALOGUE;
    want.addresses = (char **)(uintptr_t)w->want_addresses;
    while (want.n_addresses < 4 && w->want_addresses[want.n_addresses])
        want.n_addresses++;
    if (w->want_begin || w->want_end) {
        as.epoch = 1;
        as.layer_begin = w->want_begin;
        as.layer_end = w->want_end;
        want.n_assignments = 1;
        want.assignments = list;
    }
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WANT;
    m.want = &want;
    answer(w, c, &m);
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct world *w = user;
    Nakshatra__V1__MemberMessage *m =
        nakshatra__v1__member_message__unpack(NULL, msg.size, msg.data);
    struct nk_error err;

    assert_non_null(m);
    pthread_mutex_lock(&w->mutex);
    if (m->kind_case == NAKSHATRA__V1__MEMBER_MESSAGE__KIND_ATTENDING) {
        w->n_attending++;
        w->boot = m->attending->boot;
        snprintf(w->reached, sizeof w->reached, "%s", m->attending->reached);
        if (w->answer == WELCOME || w->answer == WELCOME_AND_END)
            welcome(w, c);
        if (w->answer == WELCOME_AND_END)
            nk_call_finish(c, NULL);
        if (w->answer == REMOVED) {
            nk_fail(&err, NK_E_DENIED, "removed", "you were removed");
            nk_call_finish(c, &err);
        }
    } else if (m->kind_case == NAKSHATRA__V1__MEMBER_MESSAGE__KIND_LEAVING) {
        w->n_leaving++;
    }
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    nakshatra__v1__member_message__free_unpacked(m, NULL);
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct world *w = user;

    (void)status;
    pthread_mutex_lock(&w->mutex);
    if (w->call == c)
        w->call = NULL;
    w->n_ended++;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void open_attend(nk_call *c, void *user)
{
    static const struct nk_call_handlers handlers = { .message = on_message, .end = on_end };
    struct world *w = user;

    pthread_mutex_lock(&w->mutex);
    w->call = c;
    pthread_mutex_unlock(&w->mutex);
    nk_call_accept(c, &handlers, w);
}

static const struct nk_method methods[] = {
    { "/nakshatra.v1.Cluster/Attend", open_attend, NK_ROLES_MEMBER },
};

static void serve(struct world *w, int port)
{
    char listen[64];
    struct nk_server_opts so = {
        .credentials.identity = w->gateway, .methods = methods, .n_methods = 1, .user = w
    };
    struct nk_error err;

    snprintf(listen, sizeof listen, "127.0.0.1:%d", port);
    so.listen = listen;
    assert_ok(nk_server_start(&w->server, w->net, &so, &err), err);
}

/* ---- the agent ---- */

static void say(void *user, const char *sentence)
{
    struct world *w = user;
    size_t n;

    pthread_mutex_lock(&w->mutex);
    n = strlen(w->said);
    snprintf(w->said + n, sizeof w->said - n, "%s\n", sentence);
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void progress(void *user, const struct nk_agent_progress *p)
{
    (void)user, (void)p;
}

static void *run_agent(void *user)
{
    struct world *w = user;
    struct nk_agent_opts o = { .state = w->state,
                               .program = "/bin/false",
                               .drain_ms = 0,
                               .clock = &w->clock.clock,
                               .chance = nk_chance_system(),
                               .say = say,
                               .progress = progress,
                               .user = w };

    w->rc = nk_agent_run(&o, w->stop[0], &w->err);
    return NULL;
}

static void start_agent(struct world *w)
{
    assert_int_equal(pthread_create(&w->agent, NULL, run_agent, w), 0);
    w->runs = true;
}

static int stop_agent(struct world *w)
{
    assert_int_equal(write(w->stop[1], "x", 1), 1);
    pthread_join(w->agent, NULL);
    w->runs = false;
    return w->rc;
}

static void set_answer(struct world *w, enum answer answer)
{
    pthread_mutex_lock(&w->mutex);
    w->answer = answer;
    pthread_mutex_unlock(&w->mutex);
}

#define until(w, condition)                                                                        \
    do {                                                                                           \
        pthread_mutex_lock(&(w)->mutex);                                                           \
        while (!(condition))                                                                       \
            pthread_cond_wait(&(w)->cond, &(w)->mutex);                                            \
        pthread_mutex_unlock(&(w)->mutex);                                                         \
    } while (0)

static void write_roster(const char *dir, bool gateway)
{
    struct nk_roster r = { .revision = 1 };
    struct nk_error err;

    assert_ok(nk_roster_put(&r, GATEWAY, gateway, "attic", &err), err);
    assert_ok(nk_roster_put(&r, MEMBER, false, "cellar", &err), err);
    assert_ok(nk_members_write(dir, &r, &err), err);
    nk_roster_release(&r);
}

static void make_identity(struct world *w, const char *dir, const char *id)
{
    struct nk_buf key = NK_BUF_INIT(1 << 16), request = NK_BUF_INIT(1 << 16),
                  certificate = NK_BUF_INIT(1 << 16);
    struct nk_error err;

    assert_ok(nk_key_make(&key, &err), err);
    assert_ok(nk_request_make(buf_bytes(&key), &request, &err), err);
    assert_ok(nk_ca_issue(w->ca, buf_bytes(&request), id, (int64_t)time(NULL),
                          NK_CERTIFICATE_LIFETIME_S, &certificate, &err),
              err);
    assert_ok(nk_identity_write(dir, text_bytes(nk_ca_certificate(w->ca)), buf_bytes(&certificate),
                                buf_bytes(&key), &err),
              err);
    write_roster(dir, true);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&certificate);
}

static void write_joined(struct world *w, const char *first, const char *second)
{
    struct nk_joined j = { .member = MEMBER, .name = "cellar", .enrolment_port = 1 };
    struct nk_error err;

    strcpy(j.cluster, nk_ca_cluster(w->ca));
    j.port = nk_server_port(w->server);
    strcpy(j.addresses[j.n_addresses++], first);
    if (second)
        strcpy(j.addresses[j.n_addresses++], second);
    assert_ok(nk_joined_write(w->joined, &j, &err), err);
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    char cache[512];
    struct nk_error err;

    if (dir_setup(state))
        return -1;
    virtual_clock_init(&w->clock);
    atomic_store(&w->clock.unix_begin_s, (long long)time(NULL) - 1000);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->cond, NULL);
    assert_int_equal(pipe2(w->stop, O_CLOEXEC), 0);
    snprintf(cache, sizeof cache, "/tmp/%s-cache", test_dir);
    setenv("XDG_CACHE_HOME", cache, 1);
    snprintf(w->state, sizeof w->state, "%s", in_dir("member"));
    snprintf(w->identity, sizeof w->identity, "%s", in_dir("member/identity"));
    snprintf(w->joined, sizeof w->joined, "%s", in_dir("member/joined.json"));
    snprintf(w->gateway, sizeof w->gateway, "%s", in_dir("gateway"));
    assert_int_equal(mkdir(w->state, 0700), 0);
    assert_ok(nk_ca_open(&w->ca, in_dir("ca"), (int64_t)time(NULL), &err), err);
    make_identity(w, w->identity, MEMBER);
    make_identity(w, w->gateway, GATEWAY);
    assert_ok(nk_net_start(&w->net, &w->clock.clock, &err), err);
    serve(w, 0);
    write_joined(w, "127.0.0.1", NULL);
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    char command[512];

    if (w->runs)
        stop_agent(w);
    if (w->server)
        nk_server_stop(w->server, 0);
    nk_net_stop(w->net);
    nk_ca_close(w->ca);
    close(w->stop[0]);
    close(w->stop[1]);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    virtual_clock_release(&w->clock);
    free(w);
    snprintf(command, sizeof command, "rm -rf '/tmp/%s-cache'", test_dir);
    assert_int_equal(system(command), 0);
    return dir_teardown(state);
}

/* ---- tests ---- */

static void test_agent__attends_keeps_what_it_is_told_and_stops(void **state)
{
    struct world *w = *state;
    struct nk_roster r;
    struct nk_joined j;
    struct nk_error err;

    pthread_mutex_lock(&w->mutex);
    w->want_addresses[0] = "10.1.2.3";
    w->want_addresses[1] = "not an address"; /* with it the file could not be read again */
    w->want_addresses[2] = "fd00::5";
    pthread_mutex_unlock(&w->mutex);
    start_agent(w);
    until(w, w->n_attending == 1 && strstr(w->said, "attends at 127.0.0.1"));
    pthread_mutex_lock(&w->mutex);
    assert_string_equal(w->reached, "127.0.0.1");
    pthread_mutex_unlock(&w->mutex);
    /* The model's catalogue is asked for where it attends, and there is none: it has read Want. */
    until(w, strstr(w->said, "catalogue did not come"));
    assert_int_equal(stop_agent(w), 0);
    assert_ok(nk_joined_read(&j, w->joined, &err), err);
    assert_int_equal(j.n_addresses, 3);
    assert_string_equal(j.addresses[0], "127.0.0.1");
    assert_ok(nk_members_read(&r, w->identity, &err), err);
    assert_non_null(nk_roster_find(&r, "00000000000000cc"));
    nk_roster_release(&r);
}

/* Another member may have the coordinator's address by now. */
static void test_agent__a_member_at_that_address_is_no_coordinator(void **state)
{
    struct world *w = *state;
    struct nk_roster r;
    struct nk_error err;

    write_roster(w->identity, false);
    start_agent(w);
    until(w, w->n_attending >= 1 && w->n_ended >= 1);
    pthread_mutex_lock(&w->mutex);
    assert_null(strstr(w->said, "attends at"));
    pthread_mutex_unlock(&w->mutex);
    assert_int_equal(stop_agent(w), 0);
    assert_ok(nk_members_read(&r, w->identity, &err), err);
    assert_null(nk_roster_find(&r, "00000000000000cc")); /* of the roster that it sent */
    nk_roster_release(&r);
}

static void test_agent__the_address_that_answered_comes_first_the_next_time(void **state)
{
    struct world *w = *state;
    struct nk_joined j;
    struct nk_error err;

    write_joined(w, "127.0.0.9", "127.0.0.1"); /* nobody listens at the first */
    start_agent(w);
    until(w, strstr(w->said, "catalogue did not come"));
    assert_int_equal(stop_agent(w), 0);
    assert_ok(nk_joined_read(&j, w->joined, &err), err);
    assert_string_equal(j.addresses[0], "127.0.0.1");
    assert_string_equal(j.addresses[1], "127.0.0.9");
}

static void test_agent__removed_is_the_end(void **state)
{
    struct world *w = *state;

    set_answer(w, REMOVED);
    start_agent(w);
    pthread_join(w->agent, NULL);
    w->runs = false;
    assert_int_equal(w->rc, NK_E_DENIED);
    assert_string_equal(w->err.reason, "removed");
    assert_non_null(strstr(w->err.msg, "new join line"));
}

static void test_agent__a_lost_coordinator_is_looked_for(void **state)
{
    struct world *w = *state;
    int port = nk_server_port(w->server);
    uint64_t boot;

    start_agent(w);
    until(w, strstr(w->said, "attends at"));
    pthread_mutex_lock(&w->mutex);
    boot = w->boot;
    pthread_mutex_unlock(&w->mutex);
    nk_server_stop(w->server, 0);
    w->server = NULL;
    until(w, strstr(w->said, "lost the coordinator")); /* and waits: the call was a short one */
    virtual_clock_advance_ms(&w->clock, 1000);
    until(w, strstr(w->said, "is not reached"));
    serve(w, port);
    virtual_clock_advance_ms(&w->clock, 2000);
    until(w, w->n_attending == 2);
    pthread_mutex_lock(&w->mutex);
    assert_int_equal(w->boot, boot); /* the same start: it was never away */
    pthread_mutex_unlock(&w->mutex);
}

static int count(const char *text, const char *part)
{
    int n = 0;

    for (; (text = strstr(text, part)); text += strlen(part))
        n++;
    return n;
}

static void test_agent__who_welcomes_and_hangs_up_is_not_called_without_a_pause(void **state)
{
    struct world *w = *state;

    set_answer(w, WELCOME_AND_END);
    start_agent(w);
    for (int i = 1; i <= 4; i++) {
        until(w, count(w->said, "lost the coordinator") == i); /* said when it waits */
        virtual_clock_advance_ms(&w->clock, (1000u << (i - 1)) - 1);
        settle(w->net);
        pthread_mutex_lock(&w->mutex);
        assert_int_equal(w->n_attending, i);
        pthread_mutex_unlock(&w->mutex);
        virtual_clock_advance_ms(&w->clock, 1);
        until(w, w->n_attending == i + 1);
    }
}

static void test_agent__layers_that_there_cannot_be_are_not_begun(void **state)
{
    struct world *w = *state;

    pthread_mutex_lock(&w->mutex);
    w->want_begin = 65536; /* which must not become 0 */
    w->want_end = 65538;
    pthread_mutex_unlock(&w->mutex);
    start_agent(w);
    until(w, w->n_ended == 1); /* it has hung up */
    pthread_mutex_lock(&w->mutex);
    assert_null(strstr(w->said, "layers"));
    w->want_begin = w->want_end = 0;
    pthread_mutex_unlock(&w->mutex);
    until(w, strstr(w->said, "lost the coordinator"));
    virtual_clock_advance_ms(&w->clock, 1000);
    until(w, w->n_attending == 2);
}

static void test_agent__it_stops_in_every_state(void **state)
{
    struct world *w = *state;

    set_answer(w, NOTHING); /* a coordinator that does not answer */
    start_agent(w);
    until(w, w->n_attending == 1);
    assert_int_equal(stop_agent(w), 0);
    nk_server_stop(w->server, 0); /* none at all: between two tries */
    w->server = NULL;
    start_agent(w);
    until(w, strstr(w->said, "is not reached"));
    assert_int_equal(stop_agent(w), 0);
    start_agent(w); /* at once */
    assert_int_equal(stop_agent(w), 0);
}

static void test_agent__a_state_folder_that_is_none_is_named(void **state)
{
    struct world *w = *state;

    assert_int_equal(unlink(w->joined), 0);
    start_agent(w);
    pthread_join(w->agent, NULL);
    w->runs = false;
    assert_int_equal(w->rc, NK_E_NOT_FOUND);
    assert_non_null(strstr(w->err.msg, "joined.json"));
}

/* What came with a renewed certificate may have been on its way for long. */
static void test_agent__a_renewals_roster_never_brings_back_who_was_removed(void **state)
{
    struct world *w = *state;
    struct nk_roster r = { .revision = 7 }, old = { .revision = 5 }, got;
    nk_agent a = { 0 };
    struct nk_error err;

    snprintf(a.identity, sizeof a.identity, "%s", w->identity);
    pthread_mutex_init(&a.roster_mutex, NULL);
    assert_ok(nk_roster_put(&old, MEMBER, false, "cellar", &err), err);
    assert_ok(nk__agent_roster_write(&a, &r, false, &err), err);
    assert_ok(nk__agent_roster_write(&a, &old, true, &err), err);
    assert_ok(nk_members_read(&got, w->identity, &err), err);
    assert_int_equal(got.revision, 7);
    nk_roster_release(&got);
    /* The coordinator's own word counts: its store may be one that was restored. */
    assert_ok(nk__agent_roster_write(&a, &old, false, &err), err);
    old.revision = 6;
    assert_ok(nk__agent_roster_write(&a, &old, true, &err), err);
    assert_ok(nk_members_read(&got, w->identity, &err), err);
    assert_int_equal(got.revision, 6);
    nk_roster_release(&got);
    nk_roster_release(&old);
    pthread_mutex_destroy(&a.roster_mutex);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_agent__attends_keeps_what_it_is_told_and_stops),
        TEST(test_agent__a_member_at_that_address_is_no_coordinator),
        TEST(test_agent__the_address_that_answered_comes_first_the_next_time),
        TEST(test_agent__removed_is_the_end),
        TEST(test_agent__a_lost_coordinator_is_looked_for),
        TEST(test_agent__who_welcomes_and_hangs_up_is_not_called_without_a_pause),
        TEST(test_agent__layers_that_there_cannot_be_are_not_begun),
        TEST(test_agent__it_stops_in_every_state),
        TEST(test_agent__a_state_folder_that_is_none_is_named),
        TEST(test_agent__a_renewals_roster_never_brings_back_who_was_removed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
