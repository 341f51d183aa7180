/* Mutual TLS with PEM texts (`worker --tls-...`, `tls:` in cluster.yaml): who is let in, and what
 * both sides say when somebody is not. */
#include "rpc_test.h"

#include <time.h>
#include <unistd.h>

#include "identity_test.h"
#include "rpc/certificate.h"

#define HOST "IP:127.0.0.1"

struct machine { /* what it shows: PEM texts, or NULLs */
    char *certificate, *key;
};
static struct {
    struct authority ca, stranger;
    char *ca_text, *stranger_text;
    int64_t now_s;
} tls;

static char *text_of(X509 *x, EVP_PKEY *key)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *data, *text;
    long size;

    if (key)
        PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
    else
        PEM_write_bio_X509(bio, x);
    size = BIO_get_mem_data(bio, &data);
    text = strndup(data, (size_t)size);
    assert_non_null(text);
    BIO_free(bio);
    return text;
}

static struct machine machine_make(const struct authority *a, const char *names, int64_t begin_s,
                                   int64_t end_s)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = authority_sign(a, key, names, begin_s, end_s);
    struct machine m = { text_of(x, NULL), text_of(NULL, key) };

    X509_free(x);
    EVP_PKEY_free(key);
    return m;
}

static void machine_release(struct machine *m)
{
    free(m->certificate);
    free(m->key);
}

static int setup(void **state)
{
    struct fixture *f;

    if (fixture_setup_empty(state))
        return -1;
    f = *state;
    atomic_store(&f->clock.unix_begin_s, (long long)time(NULL) - 1000);
    tls.now_s = nk_clock_unix_s(&f->clock.clock);
    tls.ca = authority_make(tls.now_s);
    tls.stranger = authority_make(tls.now_s);
    tls.ca_text = text_of(tls.ca.certificate, NULL);
    tls.stranger_text = text_of(tls.stranger.certificate, NULL);
    return nk_net_start(&f->client_net, &f->clock.clock, NULL);
}

static int teardown(void **state)
{
    fixture_teardown(state);
    authority_release(&tls.ca);
    authority_release(&tls.stranger);
    free(tls.ca_text);
    free(tls.stranger_text);
    return 0;
}

/* ---- the log, as lines on stderr ---- */

struct heard {
    FILE *file;
    int old;
};

static struct heard listen_begin(void)
{
    struct heard h = { tmpfile(), dup(STDERR_FILENO) };

    assert_non_null(h.file);
    assert_true(h.old >= 0);
    dup2(fileno(h.file), STDERR_FILENO);
    return h;
}

static void listen_end(struct heard *h, char *text, size_t size)
{
    ssize_t n = pread(fileno(h->file), text, size - 1, 0);

    dup2(h->old, STDERR_FILENO);
    close(h->old);
    fclose(h->file);
    text[n > 0 ? n : 0] = '\0';
}

static void assert_has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("%s; expected: %s", text, part);
}

/* One call between the two; its status, and what both have logged. */
static struct nk_error meet(struct fixture *f, const struct nk_credentials *server,
                            const struct nk_credentials *client, char *log, size_t size)
{
    struct nk_server_opts opts = test_opts(f);
    struct heard h = listen_begin();
    struct record *r = fixture_record(f);
    struct nk_error e = { 0 };

    opts.credentials = *server;
    if (nk_server_start(&f->server, f->net, &opts, &e))
        fail_msg("%s", e.msg);
    fixture_connect(f, client);
    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    nk_call_send_done(r->call);
    assert_true(record_wait(r, &r->n_ends, 1));
    nk_channel_close(f->channel);
    nk_server_stop(f->server, 0);
    f->channel = NULL;
    f->server = NULL;
    listen_end(&h, log, size);
    return r->status;
}

/* ---- who is refused ---- */

static void test_tls__a_client_is_refused_with_the_reason_in_the_servers_log(void **state)
{
    int64_t now = tls.now_s;
    const struct {
        const char *reason, *sentence, *hint; /* in the server's log, and in the client's error */
        const struct authority *a;            /* NULL: it shows nothing */
        int64_t begin_s, end_s;
    } cases[] = {
        { NULL, NULL, NULL, &tls.ca, now - 60, now + DAY_S },
        { "expired", "the certificate was good until", "this machine's certificate was good until",
          &tls.ca, now - DAY_S, now - 60 },
        { "not_yet_valid", "the certificate is good from",
          "this machine's certificate is good from", &tls.ca, now + 3600, now + DAY_S },
        { "wrong_ca", "not of the CA that this machine trusts", "may have refused this one",
          &tls.stranger, now - 60, now + DAY_S },
        { "no_certificate", "it has shown no certificate",
          "this machine has no certificate to show", NULL, 0, 0 },
    };
    struct machine server = machine_make(&tls.ca, HOST, now - 60, now + DAY_S);
    struct nk_credentials sc = { tls.ca_text, server.certificate, server.key, NULL };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct machine m = { NULL, NULL };
        char log[4096], part[64];
        struct nk_error e;

        if (cases[i].a)
            m = machine_make(cases[i].a, NULL, cases[i].begin_s, cases[i].end_s);
        e = meet(f, &sc, &(struct nk_credentials){ tls.ca_text, m.certificate, m.key, NULL }, log,
                 sizeof log);
        machine_release(&m);
        if (!cases[i].reason) {
            assert_int_equal(e.code, 0);
            assert_null(strstr(log, "event="));
            continue;
        }
        assert_string_equal(e.reason, "unreachable");
        assert_has(e.msg, "TLS");
        assert_has(e.msg, cases[i].hint);
        snprintf(part, sizeof part, "event=refused side=server reason=%s ", cases[i].reason);
        assert_has(log, part);
        assert_has(log, cases[i].sentence);
    }
    assert_int_equal(f->n_ends, 1); /* the good one's: no other call got as far as a method */
    machine_release(&server);
}

static void test_tls__a_server_is_refused_with_the_reason_in_the_clients_error(void **state)
{
    int64_t now = tls.now_s;
    const struct {
        const char *sentence;
        const struct authority *a;
        const char *names;
        int64_t begin_s, end_s;
    } cases[] = {
        { "the certificate was good until", &tls.ca, HOST, now - DAY_S, now - 60 },
        { "not of the CA that this machine trusts", &tls.stranger, HOST, now - 60, now + DAY_S },
        { "the certificate is not for 127.0.0.1, but for IP Address:192.0.2.7, DNS:attic", &tls.ca,
          "IP:192.0.2.7,DNS:attic", now - 60, now + DAY_S },
        { "the certificate is not for 127.0.0.1, but for CN:somebody", &tls.ca, NULL, now - 60,
          now + DAY_S },
    };
    struct machine client = machine_make(&tls.ca, NULL, now - 60, now + DAY_S);
    struct nk_credentials cc = { tls.ca_text, client.certificate, client.key, NULL };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct machine m =
            machine_make(cases[i].a, cases[i].names, cases[i].begin_s, cases[i].end_s);
        char log[4096];
        struct nk_error e =
            meet(f, &(struct nk_credentials){ tls.ca_text, m.certificate, m.key, NULL }, &cc, log,
                 sizeof log);

        machine_release(&m);
        assert_string_equal(e.reason, "unreachable");
        assert_has(e.msg, "(TLS: /CN=somebody: ");
        assert_has(e.msg, cases[i].sentence);
    }
    assert_int_equal(f->n_ends, 0);
    machine_release(&client);
}

static void test_tls__plain_text_on_one_side_only_is_guessed_by_the_client(void **state)
{
    struct machine m = machine_make(&tls.ca, HOST, tls.now_s - 60, tls.now_s + DAY_S);
    struct nk_credentials with = { tls.ca_text, m.certificate, m.key, NULL }, plain = { 0 };
    struct fixture *f = *state;
    char log[4096];
    struct nk_error e;

    e = meet(f, &with, &plain, log, sizeof log);
    assert_string_equal(e.reason, "unreachable");
    assert_has(e.msg, "it may want TLS, and this side was given no certificates");
    e = meet(f, &plain, &with, log, sizeof log);
    assert_string_equal(e.reason, "unreachable");
    assert_has(e.msg, "TLS: ");
    assert_int_equal(f->n_ends, 0);
    machine_release(&m);
}

/* A certificate of an intermediate CA, shown with that CA's own: known by the root. */
static void test_tls__a_chain_is_followed_and_without_its_middle_refused(void **state)
{
    int64_t now = tls.now_s;
    struct authority middle = { .key = EVP_EC_gen("P-256") };
    struct machine server = machine_make(&tls.ca, HOST, now - 60, now + DAY_S), leaf;
    struct nk_credentials sc = { tls.ca_text, server.certificate, server.key, NULL };
    struct fixture *f = *state;
    char *middle_text, whole[8192], log[4096];
    struct nk_error e;

    middle.certificate = certificate_new(middle.key, "middle", now - 60, now + DAY_S);
    X509_set_issuer_name(middle.certificate, X509_get_subject_name(tls.ca.certificate));
    certificate_extend(middle.certificate, NID_basic_constraints, "critical,CA:TRUE");
    assert_int_not_equal(X509_sign(middle.certificate, tls.ca.key, EVP_sha256()), 0);
    leaf = machine_make(&middle, NULL, now - 60, now + DAY_S);
    middle_text = text_of(middle.certificate, NULL);
    snprintf(whole, sizeof whole, "%s%s", leaf.certificate, middle_text);
    e = meet(f, &sc, &(struct nk_credentials){ tls.ca_text, whole, leaf.key, NULL }, log,
             sizeof log);
    if (e.code)
        fail_msg("%s\n%s", e.msg, log);
    e = meet(f, &sc, &(struct nk_credentials){ tls.ca_text, leaf.certificate, leaf.key, NULL }, log,
             sizeof log);
    assert_string_equal(e.reason, "unreachable");
    assert_has(log, "reason=wrong_ca");
    assert_int_equal(f->n_ends, 1);
    free(middle_text);
    machine_release(&leaf);
    machine_release(&server);
    authority_release(&middle);
}

/* ---- dates ---- */

static void test_tls__a_certificate_that_ends_soon_is_told_of_once_at_start(void **state)
{
    int64_t now = tls.now_s;
    struct machine m = machine_make(&tls.ca, HOST, now - 100 * DAY_S, now + 3 * DAY_S);
    struct nk_credentials c = { tls.ca_text, m.certificate, m.key, NULL };
    struct fixture *f = *state;
    struct nk_certificate_ends ends;
    struct nk_server_opts opts = test_opts(f);
    struct record *r = fixture_record(f);
    struct heard h = listen_begin();
    nk_channel *second = NULL;
    char log[4096], address[64];
    const char *line;

    opts.credentials = c;
    assert_int_equal(nk_server_start(&f->server, f->net, &opts, NULL), 0);
    snprintf(address, sizeof address, "127.0.0.1:%d", nk_server_port(f->server));
    assert_int_equal(nk_channel_open(&second, f->net, address, &c, NULL),
                     0); /* a worker's way on */
    listen_end(&h, log, sizeof log);
    line = strstr(log, "event=certificate of=self reason=ends_soon");
    assert_non_null(line);
    assert_has(line, "this machine's certificate is good until");
    assert_has(line, "only: 3 days from now");
    assert_null(strstr(line + 1, "event="));

    nk_channel_ends(second, &ends);
    assert_int_equal(ends.own, now + 3 * DAY_S);
    assert_int_equal(ends.ca, now + 1000 * DAY_S);
    assert_int_equal(ends.peer, 0); /* nobody was met yet */
    assert_int_equal(record_start(r, second, "/t.T/Echo", 0), 0);
    nk_call_send_done(r->call);
    assert_true(record_wait(r, &r->n_ends, 1));
    assert_int_equal(r->status.code, 0);
    nk_channel_ends(second, &ends);
    assert_int_equal(ends.peer, now + 3 * DAY_S);
    assert_true(ends.peer_is_near);
    nk_channel_close(second);
    machine_release(&m);
}

static void test_tls__what_soon_means_goes_by_the_whole_life_of_a_certificate(void **state)
{
    const struct {
        int64_t begin_s, end_s;
        const char *part; /* NULL: nothing is said */
    } cases[] = {
        { -365 * DAY_S, 31 * DAY_S, NULL },
        { -365 * DAY_S, 29 * DAY_S, "is good until" },
        { -60 * DAY_S, 29 * DAY_S, NULL }, /* of 89 days */
        { -80 * DAY_S, 10 * DAY_S, "10 days from now" },
        { -5 * DAY_S, 2 * DAY_S, NULL }, /* a cluster's own, about to be renewed */
        { -6 * DAY_S, DAY_S, "24 hours from now" },
        { -6 * DAY_S, -1, "was good until" },
        { DAY_S, 100 * DAY_S, "is good from" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct machine m =
            machine_make(&tls.ca, HOST, tls.now_s + cases[i].begin_s, tls.now_s + cases[i].end_s);
        char text[200] = "";
        bool told = nk_certificate_warning(m.certificate, "attic's", tls.now_s, text, sizeof text);

        assert_int_equal(told, cases[i].part != NULL);
        if (told)
            assert_has(text, cases[i].part);
        assert_int_equal(nk_certificate_end_s(m.certificate), tls.now_s + cases[i].end_s);
        machine_release(&m);
    }
    assert_int_equal(nk_certificate_end_s("no PEM"), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_tls__a_client_is_refused_with_the_reason_in_the_servers_log),
        TEST(test_tls__a_server_is_refused_with_the_reason_in_the_clients_error),
        TEST(test_tls__plain_text_on_one_side_only_is_guessed_by_the_client),
        TEST(test_tls__a_chain_is_followed_and_without_its_middle_refused),
        TEST(test_tls__a_certificate_that_ends_soon_is_told_of_once_at_start),
        TEST(test_tls__what_soon_means_goes_by_the_whole_life_of_a_certificate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
