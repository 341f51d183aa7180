/* Servers and channels with identities: real handshakes, rosters that change, certificates that are
 * renewed. */
#include "rpc_test.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include "base/log.h"
#include "identity_test.h"

#define HEAD  "nakshatra-members 1 1\n"
#define SERVE ID_A " member server\n"
#define CALLS ID_B " gateway client\n"
#define URI_A "URI:spiffe://" CLUSTER_A "/member/" ID_A
#define URI_B "URI:spiffe://" CLUSTER_A "/member/" ID_B

/* The server is member A, the client gateway B, each with a roster of its own; two nets, as two
 * machines have. */
static struct {
    struct authority ca, stranger;
    char server[FOLDER_MAX], client[FOLDER_MAX];
    int64_t now_s;
} machines;

static struct nk_credentials of(const char *folder)
{
    return (struct nk_credentials){ .identity = folder };
}

static void serve(struct fixture *f)
{
    struct nk_server_opts opts = test_opts(f);
    struct nk_credentials c = of(machines.client);
    struct nk_error e;

    opts.credentials = of(machines.server);
    if (nk_server_start(&f->server, f->net, &opts, &e))
        fail_msg("%s", e.msg);
    fixture_connect(f, &c);
}

static int setup(void **state)
{
    struct fixture *f;

    if (fixture_setup_empty(state))
        return -1;
    f = *state;
    /* As if the test had begun a moment ago: gRPC's own verification goes by the system's clock. */
    atomic_store(&f->clock.unix_begin_s, (long long)time(NULL) - 1000);
    machines.now_s = nk_clock_unix_s(&f->clock.clock);
    machines.ca = authority_make(machines.now_s);
    machines.stranger = authority_make(machines.now_s);
    folder_make(machines.server, &machines.ca, URI_A, HEAD SERVE CALLS, machines.now_s);
    folder_make(machines.client, &machines.ca, URI_B, HEAD SERVE CALLS, machines.now_s);
    return nk_net_start(&f->client_net, &f->clock.clock, NULL);
}

static int teardown(void **state)
{
    fixture_teardown(state);
    folder_remove(machines.server);
    folder_remove(machines.client);
    authority_release(&machines.ca);
    authority_release(&machines.stranger);
    return 0;
}

/* The channel anew: what comes is a handshake. */
static void reconnect(struct fixture *f)
{
    struct nk_credentials c = of(machines.client);

    nk_channel_close(f->channel);
    f->channel = NULL;
    fixture_connect(f, &c);
}

static struct record *call(struct fixture *f, const char *path)
{
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, path, 0), 0);
    return r;
}

static void let_in(struct fixture *f)
{
    struct record *r = call(f, "/t.T/Echo");

    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

static void refused(struct fixture *f, const char *part)
{
    struct record *r = call(f, "/t.T/Echo");

    assert_ended(r, NK_E_UNAVAILABLE, "unreachable");
    if (!strstr(r->status.msg, part))
        fail_msg("%s; expected: %s", r->status.msg, part);
}

/* ---- who talks to whom ---- */

struct asked {
    nk_call *call;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    int done;
    char id[NK_MEMBER_ID_CHARS + 1];
    enum nk_role role;
};

static void ask(void *arg)
{
    struct asked *a = arg;

    pthread_mutex_lock(&a->mu);
    snprintf(a->id, sizeof a->id, "%s", nk_call_identity(a->call));
    a->role = nk_call_role(a->call);
    a->done = 1;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->mu);
}

static void assert_peer(nk_net *net, nk_call *c, const char *id, enum nk_role role)
{
    static struct asked a;

    a = (struct asked){ .call = c };
    pthread_mutex_init(&a.mu, NULL);
    pthread_cond_init(&a.changed, NULL);
    nk_net_post(net, ask, &a);
    pthread_mutex_lock(&a.mu);
    while (!a.done)
        pthread_cond_wait(&a.changed, &a.mu);
    pthread_mutex_unlock(&a.mu);
    assert_string_equal(a.id, id);
    assert_int_equal(a.role, role);
}

static void count_pass(void *arg)
{
    struct record *r = arg;

    record_enter(r);
    r->n_opens++;
    record_leave(r);
}

/* What is due on the net has run: its timers come after what was posted. */
static void net_turn(struct fixture *f, nk_net *net)
{
    for (int i = 0; i < 2; i++) {
        struct record *r = fixture_record(f);

        nk_net_post(net, count_pass, r);
        assert_true(record_wait(r, &r->n_opens, 1));
    }
}

static void test_membership__two_members_talk_and_each_knows_the_other(void **state)
{
    struct fixture *f = *state;
    struct record *r;

    serve(f);
    r = call(f, "/t.T/Record");
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    assert_peer(f->net, f->seen->call, ID_B, NK_ROLE_GATEWAY);
    assert_int_equal(nk_call_send(f->seen->call, "hello", 5, NULL), 0);
    assert_true(record_wait(r, &r->n_messages, 1));
    assert_peer(f->client_net, r->call, ID_A, NK_ROLE_MEMBER);
    nk_call_finish(f->seen->call, NULL);
    assert_ended(r, 0, "");
}

static void test_membership__without_an_identity_there_is_no_member(void **state)
{
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct record *r;

    fixture_start(f, &opts);
    r = call(f, "/t.T/Record");
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    assert_peer(f->net, f->seen->call, "", NK_ROLE_NONE);
    nk_call_finish(f->seen->call, NULL);
    assert_ended(r, 0, "");
    r = call(f, "/t.T/Gateway"); /* there are no roles: everybody may */
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

static void test_membership__methods_are_for_the_roles_that_they_name(void **state)
{
    struct fixture *f = *state;
    struct record *r;

    serve(f);
    r = call(f, "/t.T/Gateway");
    echo(r);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    r = call(f, "/t.T/Member");
    assert_ended(r, NK_E_DENIED, "not_allowed");
    assert_string_equal(r->status.msg, "/t.T/Member: member " ID_B " may not call it: its role is "
                                       "gateway, and member is needed");
    r = call(f, "/t.T/None");
    assert_ended(r, NK_E_UNIMPLEMENTED, "unknown_method");
    r = call(f, "/grpc.health.v1.Health/Check");
    assert_int_equal(nk_call_send(r->call, "", 0, NULL), 0);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    assert_int_equal(r->n_messages, 1);
    folder_roster(machines.server, HEAD SERVE ID_B " member client\n");
    r = call(f, "/t.T/Gateway");
    assert_ended(r, NK_E_DENIED, "not_allowed");
    r = call(f, "/t.T/Member");
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

static void test_membership__who_loses_the_role_for_a_method_loses_its_open_calls(void **state)
{
    struct fixture *f = *state;
    struct record *r, *other;

    serve(f);
    r = call(f, "/t.T/Gateway");
    other = call(f, "/t.T/Echo");
    echo(r);
    echo(other);
    folder_roster(machines.server, HEAD SERVE ID_B " member client\n");
    virtual_clock_advance_ms(&f->clock, 1000);
    assert_ended(r, NK_E_DENIED, "not_allowed");
    echo(other);
    nk_call_send_done(other->call);
    assert_ended(other, 0, "");
}

/* ---- who is refused ---- */

static void test_membership__who_is_not_on_the_servers_roster_is_refused_until_it_is(void **state)
{
    struct fixture *f = *state;

    folder_roster(machines.server, HEAD SERVE);
    serve(f);
    refused(f, "that machine may have refused this one, and says why in its log");
    assert_int_equal(f->n_ends, 0);
    folder_roster(machines.server, HEAD SERVE CALLS);
    reconnect(f);
    let_in(f);
}

static void
test_membership__who_is_not_on_the_clients_roster_is_not_spoken_to_until_it_is(void **state)
{
    struct fixture *f = *state;

    folder_roster(machines.client, HEAD CALLS);
    serve(f);
    refused(f, "member " ID_A ": it is not on this cluster's roster");
    folder_roster(machines.client, HEAD SERVE CALLS);
    reconnect(f);
    let_in(f);
}

static void test_membership__a_certificate_that_is_no_members_is_refused_by_clients(void **state)
{
    int64_t now = machines.now_s;
    const struct {
        const struct authority *a;
        const char *names;
        int64_t begin_s, end_s;
        const char *part;
    } cases[] = {
        { &machines.ca, "URI:spiffe://" CLUSTER_B "/member/" ID_A, now - 60, now + DAY_S,
          "its cluster is " CLUSTER_B },
        { &machines.ca, URI_A, now - DAY_S, now - 60, "the certificate was good until" },
        { &machines.ca, URI_A, now + 60, now + DAY_S, "the certificate is good from" },
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        folder_renew(machines.server, cases[i].a, cases[i].names, cases[i].begin_s, cases[i].end_s);
        serve(f);
        refused(f, cases[i].part);
        nk_server_stop(f->server, 0);
        nk_channel_close(f->channel);
        nk_net_stop(f->net);
        assert_int_equal(nk_net_start(&f->net, &f->clock.clock, NULL), 0);
    }
    f->server = NULL;
    f->channel = NULL;
}

/* A server that shows what it will, as PEM texts, and a client that wants a member. */
static void test_membership__another_ca_and_no_uri_are_refused_by_clients(void **state)
{
    const struct {
        const struct authority *a;
        const char *names, *part;
    } cases[] = {
        { &machines.stranger, URI_A, "not of this cluster's CA" },
        { &machines.ca, "DNS:localhost", "no URI" },
        { &machines.ca, URI_A "," URI_B, "several URIs" },
    };
    struct nk_credentials c = of(machines.client);
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_server_opts opts = test_opts(f);
        struct nk_buf ca = { 0 }, certificate = { 0 }, key = { 0 };
        char path[PATHS_MAX];
        struct nk_error e;

        folder_renew(machines.server, cases[i].a, cases[i].names, machines.now_s - 60,
                     machines.now_s + DAY_S);
        snprintf(path, sizeof path, "%s/ca.pem", machines.server);
        assert_int_equal(nk_file_read(path, 1 << 16, &ca, NULL), 0);
        snprintf(path, sizeof path, "%s/current/certificate.pem", machines.server);
        assert_int_equal(nk_file_read(path, 1 << 16, &certificate, NULL), 0);
        snprintf(path, sizeof path, "%s/current/key.pem", machines.server);
        assert_int_equal(nk_file_read(path, 1 << 16, &key, NULL), 0);
        opts.credentials = (struct nk_credentials){ .ca = ca.data,
                                                    .certificate = certificate.data,
                                                    .key = key.data };
        if (nk_server_start(&f->server, f->net, &opts, &e))
            fail_msg("%s", e.msg);
        fixture_connect(f, &c);
        refused(f, cases[i].part);
        nk_channel_close(f->channel);
        nk_server_stop(f->server, 0);
        f->channel = NULL;
        f->server = NULL;
        nk_buf_release(&ca);
        nk_buf_release(&certificate);
        nk_buf_release(&key);
    }
}

/* Likewise a client; what the server finds it tells its log (test_identity.c has the sentences). */
static void
test_membership__another_ca_no_uri_and_old_certificates_are_refused_by_servers(void **state)
{
    int64_t now = machines.now_s;
    const struct {
        const struct authority *a;
        const char *names;
        int64_t begin_s, end_s;
    } cases[] = {
        { &machines.ca, URI_B, now - 60, now + DAY_S }, /* a good one */
        { &machines.stranger, URI_B, now - 60, now + DAY_S },
        { &machines.ca, NULL, now - 60, now + DAY_S },
        { &machines.ca, "URI:spiffe://" CLUSTER_B "/member/" ID_B, now - 60, now + DAY_S },
        { &machines.ca, "URI:spiffe://" CLUSTER_A "/member/" ID_C, now - 60, now + DAY_S },
        { &machines.ca, URI_B, now - DAY_S, now - 60 },
        { &machines.ca, URI_B, now + 60, now + DAY_S },
    };
    EVP_PKEY *key = EVP_EC_gen("P-256");
    BIO *key_pem = BIO_new(BIO_s_mem());
    struct fixture *f = *state;
    struct nk_buf ca = { 0 };
    char path[PATHS_MAX], *key_text;

    snprintf(path, sizeof path, "%s/ca.pem", machines.server);
    assert_int_equal(nk_file_read(path, 1 << 16, &ca, NULL), 0);
    PEM_write_bio_PrivateKey(key_pem, key, NULL, NULL, 0, NULL, NULL);
    assert_int_equal(BIO_write(key_pem, "", 1), 1);
    BIO_get_mem_data(key_pem, &key_text);
    /* So that the client, which checks names, has nothing against the server. */
    folder_renew(machines.server, &machines.ca, "IP:127.0.0.1," URI_A, now - 60, now + DAY_S);
    serve(f);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        X509 *x = authority_sign(cases[i].a, key, cases[i].names, cases[i].begin_s, cases[i].end_s);
        BIO *pem = BIO_new(BIO_s_mem());
        char *text;

        PEM_write_bio_X509(pem, x);
        assert_int_equal(BIO_write(pem, "", 1), 1);
        BIO_get_mem_data(pem, &text);
        nk_channel_close(f->channel);
        f->channel = NULL;
        fixture_connect(
            f, &(struct nk_credentials){ .ca = ca.data, .certificate = text, .key = key_text });
        if (i == 0)
            let_in(f);
        else
            refused(f, "");
        BIO_free(pem);
        X509_free(x);
    }
    assert_int_equal(f->n_ends, 1); /* the good one's */
    BIO_free(key_pem);
    EVP_PKEY_free(key);
    nk_buf_release(&ca);
}

static void test_membership__plain_text_and_other_machines_tls_do_not_get_in(void **state)
{
    struct fixture *f = *state;

    serve(f);
    nk_channel_close(f->channel);
    f->channel = NULL;
    fixture_connect(f, NULL);
    refused(f, "");
    assert_int_equal(f->n_ends, 0);
}

/* ---- the roster changes ---- */

static void
test_membership__calls_of_a_member_that_is_taken_off_end_and_no_new_ones_begin(void **state)
{
    struct fixture *f = *state;
    struct record *r, *quiet, *again;

    serve(f);
    r = call(f, "/t.T/Echo");
    quiet = call(f, "/t.T/Record"); /* waits for an answer */
    echo(r);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    folder_roster(machines.server, HEAD SERVE);
    /* On the connection that there is, at once: */
    again = call(f, "/t.T/Echo");
    assert_ended(again, NK_E_DENIED, "removed");
    assert_string_equal(again->status.msg,
                        "/t.T/Echo: member " ID_B " was taken off this cluster's roster");
    virtual_clock_advance_ms(&f->clock, 1000);
    assert_ended(r, NK_E_DENIED, "removed");
    assert_string_equal(r->status.msg, "member " ID_B " was taken off this cluster's roster");
    assert_ended(quiet, NK_E_DENIED, "removed");
    assert_ended(f->seen, NK_E_DENIED, "removed");
    reconnect(f);
    refused(f, "");
    folder_roster(machines.server, HEAD CALLS SERVE);
    reconnect(f);
    let_in(f);
}

static void
test_membership__calls_to_a_member_that_is_taken_off_end_and_no_new_ones_begin(void **state)
{
    struct fixture *f = *state;
    struct record *r, *quiet;

    serve(f);
    r = call(f, "/t.T/Echo");
    quiet = call(f, "/t.T/Record");
    echo(r);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    folder_roster(machines.client, HEAD CALLS);
    refused(f, "member " ID_A ": it is not on this cluster's roster"); /* no word on the old one */
    virtual_clock_advance_ms(&f->clock, 1000);
    assert_ended(r, NK_E_DENIED, "removed");
    assert_non_null(strstr(r->status.msg, "member " ID_A " was taken off"));
    assert_ended(quiet, NK_E_DENIED, "removed");
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    folder_roster(machines.client, HEAD CALLS SERVE);
    reconnect(f);
    let_in(f);
}

static void test_membership__a_removed_member_that_reads_nothing_is_cut_a_second_later(void **state)
{
    struct fixture *f = *state;
    char *data = calloc(1, 16 << 20);
    struct record *r = fixture_record(f);
    int n_ends;

    serve(f);
    r->pause = true;
    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    /* More than flow control lets through to one who does not read. */
    for (int i = 0; i < 8; i++)
        assert_int_equal(nk_call_send(f->seen->call, data, 16 << 20, NULL), 0);
    assert_true(record_wait(r, &r->n_messages, 1));
    folder_roster(machines.server, HEAD SERVE);
    virtual_clock_advance_ms(&f->clock, 1000);
    net_turn(f, f->net);
    virtual_clock_advance_ms(&f->clock, 999);
    net_turn(f, f->net);
    pthread_mutex_lock(&f->seen->mu);
    n_ends = f->seen->n_ends;
    pthread_mutex_unlock(&f->seen->mu);
    assert_int_equal(n_ends, 0);
    virtual_clock_advance_ms(&f->clock, 1);
    assert_ended(f->seen, NK_E_DENIED, "removed");
    nk_call_cancel(r->call);
    assert_true(record_wait(r, &r->n_ends, 1));
    free(data);
}

static void
test_membership__while_the_roster_is_torn_nobody_gets_in_and_open_calls_go_on(void **state)
{
    struct fixture *f = *state;
    struct record *r, *next;

    serve(f);
    r = call(f, "/t.T/Echo");
    echo(r);
    folder_roster(machines.server, HEAD SERVE ID_B " gateway clie");
    virtual_clock_advance_ms(&f->clock, 1000);
    virtual_clock_advance_ms(&f->clock, 1000);
    echo(r);
    next = call(f, "/t.T/Echo");
    assert_ended(next, NK_E_DENIED, "not_a_member");
    assert_non_null(strstr(next->status.msg, "roster cannot be read"));
    reconnect(f);
    refused(f, "");
    echo(r);
    folder_roster(machines.server, HEAD SERVE CALLS);
    reconnect(f);
    let_in(f);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

/* ---- renewal ---- */

/* New handshakes, until one is good: gRPC looks for other files once a second, by its own clock. */
static void let_in_soon(struct fixture *f)
{
    for (int i = 0; i < PATIENCE_MS / 20; i++) {
        struct record *r;

        reconnect(f);
        r = call(f, "/t.T/Echo");
        nk_call_send_done(r->call);
        assert_true(record_wait(r, &r->n_ends, 1));
        if (r->ok)
            return;
        nk_sleep_ms(20);
    }
    fail_msg("the renewed certificate was never used");
}

static void test_membership__a_renewed_certificate_is_used_without_a_restart(void **state)
{
    struct fixture *f = *state;
    struct record *r;

    folder_renew(machines.server, &machines.ca, URI_A, machines.now_s - 60, machines.now_s + 3600);
    serve(f);
    r = call(f, "/t.T/Echo");
    echo(r);
    virtual_clock_advance_ms(&f->clock, 7200 * 1000);
    reconnect(f);
    refused(f, "the certificate was good until");
    folder_renew(machines.server, &machines.ca, URI_A, machines.now_s - 60,
                 machines.now_s + 30 * DAY_S);
    let_in_soon(f);
    echo(r); /* what was open has gone on */
    /* The client's, likewise. */
    virtual_clock_advance_ms(&f->clock, 8 * DAY_S * 1000ull);
    reconnect(f);
    refused(f, "");
    folder_renew(machines.client, &machines.ca, URI_B, machines.now_s - 60,
                 machines.now_s + 30 * DAY_S);
    let_in_soon(f);
    echo(r);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

/* ---- the rest ---- */

static void test_membership__a_folder_and_pem_texts_together_are_refused(void **state)
{
    struct nk_credentials c = { .identity = machines.client, .ca = "x" };
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct nk_error e;

    assert_int_equal(nk_channel_open(&f->channel, f->net, "127.0.0.1:1", &c, &e), NK_E_INVALID);
    assert_string_equal(e.reason, "bad_credentials");
    opts.credentials = c;
    assert_int_equal(nk_server_start(&f->server, f->net, &opts, &e), NK_E_INVALID);
    assert_string_equal(e.reason, "bad_credentials");
    opts.credentials = of("/nonexistent");
    assert_int_equal(nk_server_start(&f->server, f->net, &opts, &e), NK_E_NOT_FOUND);
    assert_non_null(strstr(e.msg, "/nonexistent/"));
    c = of("/nonexistent");
    assert_int_equal(nk_channel_open(&f->channel, f->net, "127.0.0.1:1", &c, &e), NK_E_NOT_FOUND);
}

static void test_membership__the_ipv6_wildcard_takes_ipv4_too(void **state)
{
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct nk_credentials c = of(machines.client);
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 loopback = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    bool has_ipv6 = probe >= 0 && !bind(probe, (struct sockaddr *)&loopback, sizeof loopback);

    if (probe >= 0)
        close(probe);
    opts.listen = "[::]:0";
    opts.credentials = of(machines.server);
    assert_int_equal(nk_server_start(&f->server, f->net, &opts, NULL), 0);
    fixture_connect(f, &c);
    let_in(f);
    if (!has_ipv6)
        return;
    nk_channel_close(f->channel);
    snprintf(f->address, sizeof f->address, "[::1]:%d", nk_server_port(f->server));
    assert_int_equal(nk_channel_open(&f->channel, f->client_net, f->address, &c, NULL), 0);
    let_in(f);
}

#define test(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_membership__two_members_talk_and_each_knows_the_other),
        test(test_membership__without_an_identity_there_is_no_member),
        test(test_membership__methods_are_for_the_roles_that_they_name),
        test(test_membership__who_loses_the_role_for_a_method_loses_its_open_calls),
        test(test_membership__who_is_not_on_the_servers_roster_is_refused_until_it_is),
        test(test_membership__who_is_not_on_the_clients_roster_is_not_spoken_to_until_it_is),
        test(test_membership__a_certificate_that_is_no_members_is_refused_by_clients),
        test(test_membership__another_ca_and_no_uri_are_refused_by_clients),
        test(test_membership__another_ca_no_uri_and_old_certificates_are_refused_by_servers),
        test(test_membership__plain_text_and_other_machines_tls_do_not_get_in),
        test(test_membership__calls_of_a_member_that_is_taken_off_end_and_no_new_ones_begin),
        test(test_membership__calls_to_a_member_that_is_taken_off_end_and_no_new_ones_begin),
        test(test_membership__a_removed_member_that_reads_nothing_is_cut_a_second_later),
        test(test_membership__while_the_roster_is_torn_nobody_gets_in_and_open_calls_go_on),
        test(test_membership__a_renewed_certificate_is_used_without_a_restart),
        test(test_membership__a_folder_and_pem_texts_together_are_refused),
        test(test_membership__the_ipv6_wildcard_takes_ipv4_too),
    };

    return cmocka_run_group_tests_name("membership", tests, NULL, NULL);
}
