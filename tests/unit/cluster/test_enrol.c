#include "cluster_test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "cluster/cluster_int.h"
#include "cluster/enrol.h"
#include "cluster/enrol_int.h"
#include "unit/missing.h"
#include "unit/virtual_clock.h"

static struct virtual_clock server_clock, client_clock;
static nk_ca *ca;
static nk_store *store;
static nk_enrol_server *server;
/* What the coordinator's part saw, and does. */
static pthread_mutex_t seen_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct seen {
    int n_admitted;
    char id[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE], peer[64];
    bool renews, has_old;
    char removed[NK_MEMBER_ID_SIZE]; /* this member was */
    const char *rename;              /* everybody is called so */
    struct nk_error refuse;          /* if it has a code */
} seen;

static struct seen look(void)
{
    struct seen copy;

    pthread_mutex_lock(&seen_mutex);
    copy = seen;
    pthread_mutex_unlock(&seen_mutex);
    return copy;
}

static void remove_member(const char *id)
{
    pthread_mutex_lock(&seen_mutex);
    snprintf(seen.removed, sizeof seen.removed, "%s", id);
    pthread_mutex_unlock(&seen_mutex);
}

static bool is_removed(void *user, const char *id)
{
    struct seen now = look();

    (void)user;
    return !strcmp(id, now.removed);
}

static int admit(void *user, const struct nk_enrol_admission *who, struct nk_enrol_admitted *out,
                 struct nk_error *err)
{
    int rc = 0;

    (void)user;
    pthread_mutex_lock(&seen_mutex);
    seen.n_admitted++;
    snprintf(seen.id, sizeof seen.id, "%s", who->id);
    snprintf(seen.name, sizeof seen.name, "%s", who->name);
    snprintf(seen.peer, sizeof seen.peer, "%s", who->peer);
    seen.renews = who->renews;
    seen.has_old = who->has_old;
    if (seen.refuse.code)
        rc = nk_fail(err, seen.refuse.code, seen.refuse.reason, "%s", seen.refuse.msg);
    if (seen.rename)
        snprintf(out->name, sizeof out->name, "%s", seen.rename);
    pthread_mutex_unlock(&seen_mutex);
    if (!rc)
        rc = nk_roster_put(&out->roster, out->id, false, out->name, err);
    out->roster.revision = 5;
    out->port = 5530;
    out->n_addresses = 2;
    snprintf(out->addresses[0], sizeof out->addresses[0], "10.9.9.9");
    snprintf(out->addresses[1], sizeof out->addresses[1], "127.0.0.1");
    return rc;
}

static const struct nk_enrol_handlers handlers = { is_removed, admit };

static void start_server(int connections_max)
{
    struct nk_enrol_server_opts opts = { .listen = "127.0.0.1:0",
                                         .ca = ca,
                                         .store = store,
                                         .clock = &server_clock.clock,
                                         .chance = nk_chance_system(),
                                         .handlers = &handlers,
                                         .connections_max = connections_max };
    struct nk_error err;

    assert_ok(nk_enrol_server_start(&server, &opts, &err), err);
}

static int setup(void **state)
{
    struct nk_error err;

    signal(SIGPIPE, SIG_IGN);
    virtual_clock_init(&server_clock);
    virtual_clock_init(&client_clock);
    seen.n_admitted = 0;
    seen.removed[0] = '\0';
    seen.rename = NULL;
    seen.refuse = (struct nk_error){ 0 };
    if (dir_setup(state))
        return -1;
    assert_ok(nk_ca_open(&ca, in_dir("ca"), nk_clock_unix_s(&server_clock.clock), &err), err);
    assert_ok(nk_store_open(&store, in_dir("store.db"), &server_clock.clock, &err), err);
    start_server(0);
    return 0;
}

static int teardown(void **state)
{
    nk_enrol_server_stop(server);
    nk_store_close(store);
    nk_ca_close(ca);
    virtual_clock_release(&server_clock);
    virtual_clock_release(&client_clock);
    return dir_teardown(state);
}

static void advance_both_s(int64_t s)
{
    virtual_clock_advance_ms(&server_clock, (uint64_t)s * 1000);
    virtual_clock_advance_ms(&client_clock, (uint64_t)s * 1000);
}

static struct nk_token make_token_at(int uses, int port, int n, const char *const *addresses)
{
    struct nk_token_opts opts = { .cluster = nk_ca_cluster(ca),
                                  .uses = uses,
                                  .port = port,
                                  .n_addresses = n,
                                  .addresses = addresses };
    struct nk_error err;
    struct nk_token t;

    assert_ok(nk_token_create(store, nk_chance_system(), nk_clock_unix_s(&server_clock.clock),
                              &opts, &t, &err),
              err);
    return t;
}

static struct nk_token make_token(int uses)
{
    static const char *const here[] = { "127.0.0.1" };

    return make_token_at(uses, nk_enrol_server_port(server), 1, here);
}

static int join(const struct nk_token *t, const char *key_path, struct nk_enrolled *out,
                struct nk_error *err)
{
    struct nk_enrol_join_opts opts = { .token = t,
                                       .name = "cellar",
                                       .version = "0.3.0",
                                       .key_path = key_path,
                                       .clock = &client_clock.clock };

    return nk_enrol_join(&opts, out, err);
}

/* Joins in vain. */
static void refuse_join(const struct nk_token *t, int code, const char *reason,
                        struct nk_error *err)
{
    struct nk_enrolled out;
    int rc = join(t, NULL, &out, err);

    nk_enrolled_release(&out);
    assert_reason(rc, *err, code, reason);
}

/* ---- joining ---- */
static void test_enrol__a_token_makes_a_member(void **state)
{
    struct nk_token t = make_token(1);
    struct nk_enrolled out;
    struct nk_identity_files id;
    struct nk_error err;

    (void)state;
    assert_ok(join(&t, NULL, &out, &err), err);
    assert_string_equal(out.about.cluster, nk_ca_cluster(ca));
    assert_string_equal(out.about.member, look().id);
    assert_string_equal(out.name, "cellar");
    assert_string_equal(look().peer, "127.0.0.1");
    assert_false(look().renews || look().has_old);
    assert_int_equal(out.port, 5530);
    assert_int_equal(out.n_addresses, 2);
    assert_string_equal(out.addresses[0], "127.0.0.1"); /* the one that has answered */
    assert_string_equal(out.addresses[1], "10.9.9.9");
    assert_int_equal(out.roster.revision, 5);
    assert_non_null(nk_roster_find(&out.roster, look().id));
    assert_int_equal(out.about.not_after_s,
                     nk_clock_unix_s(&server_clock.clock) + NK_CERTIFICATE_LIFETIME_S);
    assert_ok(nk_identity_write(in_dir("identity"), buf_bytes(&out.ca), buf_bytes(&out.certificate),
                                buf_bytes(&out.key), &err),
              err);
    assert_ok(nk_identity_read(&id, in_dir("identity"), &err), err);
    nk_identity_release(&id);
    nk_enrolled_release(&out);
}

static void test_enrol__the_coordinator_may_name_it_otherwise_or_refuse(void **state)
{
    struct nk_token t = make_token(2);
    struct nk_enrolled out;
    struct nk_error err;

    (void)state;
    pthread_mutex_lock(&seen_mutex);
    seen.rename = "cellar-2";
    pthread_mutex_unlock(&seen_mutex);
    assert_ok(join(&t, NULL, &out, &err), err);
    assert_string_equal(out.name, "cellar-2");
    nk_enrolled_release(&out);
    pthread_mutex_lock(&seen_mutex);
    nk_fail(&seen.refuse, NK_E_UNAVAILABLE, "draining", "it is\nbeing ended just now");
    pthread_mutex_unlock(&seen_mutex);
    refuse_join(&t, NK_E_UNAVAILABLE, "draining", &err);
    assert_non_null(strstr(err.msg, "being ended just now"));
    assert_null(strchr(err.msg, '\n'));
}

static void test_enrol__refusals_say_why(void **state)
{
    struct nk_token used = make_token(1), revoked = make_token(1), wrong = make_token(1);
    struct nk_token expired = make_token(1);
    struct nk_enrolled out;
    struct nk_error err;

    (void)state;
    assert_ok(join(&used, NULL, &out, &err), err);
    nk_enrolled_release(&out);
    refuse_join(&used, NK_E_DENIED, "used_token", &err);
    assert_ok(nk_token_revoke(store, revoked.id, &err), err);
    refuse_join(&revoked, NK_E_DENIED, "revoked_token", &err);
    wrong.secret[0] ^= 1;
    refuse_join(&wrong, NK_E_UNAUTHENTICATED, "unknown_token", &err);
    advance_both_s(3600);
    refuse_join(&expired, NK_E_DENIED, "expired_token", &err);
    assert_int_equal(look().n_admitted, 1);
}

static void test_enrol__an_answer_that_was_lost_is_asked_for_again(void **state)
{
    struct nk_token t = make_token(1);
    struct nk_enrolled first, second;
    struct nk_error err;

    (void)state;
    assert_ok(join(&t, in_dir("joining.key.pem"), &first, &err), err);
    assert_ok(join(&t, in_dir("joining.key.pem"), &second, &err), err);
    assert_string_equal(first.about.member, second.about.member);
    nk_enrolled_release(&first);
    nk_enrolled_release(&second);
    unlink(in_dir("joining.key.pem"));
    refuse_join(&t, NK_E_DENIED, "used_token", &err);
}

static void test_enrol__a_clock_that_is_off_is_told_by_how_much(void **state)
{
    static const struct {
        int64_t off_s;
        const char *says;
    } cases[] = { { 86400, "24 h ahead of" },
                  { -86400, "24 h behind" },
                  { 301, "5 min ahead of" },
                  { -301, "5 min behind" },
                  { 300, NULL },
                  { -300, NULL } };
    struct nk_token t = make_token(2);
    struct nk_enrolled out;
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        atomic_store(&client_clock.unix_begin_s, 1700000000 + cases[i].off_s);
        if (cases[i].says) {
            refuse_join(&t, NK_E_PRECONDITION, "clock_off", &err);
            assert_non_null(strstr(err.msg, cases[i].says));
        } else { /* and the refusals have cost no use */
            assert_ok(join(&t, NULL, &out, &err), err);
            nk_enrolled_release(&out);
        }
    }
}

/* A join on a thread of its own. */
struct joiner {
    const struct nk_token *token;
    struct nk_enrolled out;
    struct nk_error err;
    int rc;
    pthread_t thread;
};

static void *run_joiner(void *arg)
{
    struct joiner *j = arg;

    j->rc = join(j->token, NULL, &j->out, &j->err);
    return NULL;
}

static void begin_join(struct joiner *j, const struct nk_token *t)
{
    *j = (struct joiner){ .token = t };
    assert_int_equal(pthread_create(&j->thread, NULL, run_joiner, j), 0);
}

static void test_enrol__many_at_once_all_become_members(void **state)
{
    enum { MACHINES = 24 };
    struct nk_token t = make_token(MACHINES);
    static struct joiner all[MACHINES];

    (void)state;
    for (int i = 0; i < MACHINES; i++)
        begin_join(&all[i], &t);
    for (int i = 0; i < MACHINES; i++) {
        pthread_join(all[i].thread, NULL);
        assert_ok(all[i].rc, all[i].err);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(all[i].out.about.member, all[j].out.about.member);
    }
    for (int i = 0; i < MACHINES; i++)
        nk_enrolled_release(&all[i].out);
    assert_int_equal(look().n_admitted, MACHINES);
}

/* ---- addresses that are of no use ---- */
static int listen_at(const char *address, int port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    inet_pton(AF_INET, address, &at.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

/* Takes a connection and the first byte of the client's hello. */
static int take_hello(int listener)
{
    int fd = accept(listener, NULL, NULL);
    char c;

    assert_true(fd >= 0);
    assert_int_equal(read(fd, &c, 1), 1);
    return fd;
}

static void test_enrol__the_first_good_address_is_taken(void **state)
{
    static const char *const addresses[] = { "127.0.0.2", "127.0.0.3", "127.0.0.1" };
    int port = nk_enrol_server_port(server), listener = listen_at("127.0.0.3", port), fd;
    struct nk_token t = make_token_at(1, port, 3, addresses);
    struct joiner j;

    (void)state;
    begin_join(&j, &t); /* refused at 127.0.0.2, so the next one follows at once */
    fd = take_hello(listener);
    virtual_clock_advance_ms(&client_clock, 250); /* which says nothing: now the third */
    pthread_join(j.thread, NULL);
    assert_ok(j.rc, j.err);
    assert_int_equal(j.out.n_tried, 1);
    assert_string_equal(j.out.tried[0].why, "Connection refused");
    assert_string_equal(j.out.addresses[0], "127.0.0.1");
    nk_enrolled_release(&j.out);
    close(fd);
    close(listener);
}

static void test_enrol__every_address_in_vain_is_named_with_its_reason(void **state)
{
    static const char *const addresses[] = { "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5" };
    int port = nk_enrol_server_port(server);
    int silent = listen_at("127.0.0.3", port), closes = listen_at("127.0.0.4", port);
    int talks = listen_at("127.0.0.5", port), fds[3];
    struct nk_token t = make_token_at(1, port, 4, addresses);
    char wanted[64];
    struct joiner j;

    (void)state;
    begin_join(&j, &t);
    fds[0] = take_hello(silent);
    virtual_clock_advance_ms(&client_clock, 250);
    fds[1] = take_hello(closes);
    shutdown(fds[1], SHUT_WR);
    fds[2] = take_hello(talks); /* at once, as the one before it has failed */
    assert_int_equal(write(fds[2], "HTTP/1.1 400 Bad Request\r\n\r\n", 28), 28);
    /* A byte now and then does not count as an answer. It is written until this end is let go. */
    for (int i = 0; i < 30 && write(fds[0], i ? "\x01" : "\x16", 1) == 1; i++)
        virtual_clock_advance_ms(&client_clock, 200);
    pthread_join(j.thread, NULL);
    assert_reason(j.rc, j.err, NK_E_UNAVAILABLE, "unreachable");
    assert_int_equal(j.out.n_tried, 4);
    for (int i = 0; i < 4; i++) {
        snprintf(wanted, sizeof wanted, "%s:%d: %.20s", addresses[i], port, j.out.tried[i].why);
        assert_non_null(strstr(j.err.msg, wanted));
    }
    assert_string_equal(j.out.tried[0].why, "Connection refused");
    assert_non_null(strstr(j.err.msg, "closed the connection"));
    assert_non_null(strstr(j.out.tried[3].why, "TLS"));
    nk_enrolled_release(&j.out);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(silent);
    close(closes);
    close(talks);
}

/* ---- a man in the middle ---- */
/* What he has made for his key: the leaf and the CA that he shows with it. */
struct disguise {
    X509 *leaf, *shown_ca;
    EVP_PKEY *key;
};

static X509 *issue(const nk_ca *by, const char *member, EVP_PKEY **key)
{
    struct nk_buf pem = NK_BUF_INIT(NK_PEM_BYTES_MAX), request = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    struct nk_buf certificate = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    struct nk_error err;
    X509 *x;

    assert_ok(nk_key_make(&pem, &err), err);
    assert_ok(nk_request_make(buf_bytes(&pem), &request, &err), err);
    assert_ok(nk_ca_issue(by, buf_bytes(&request), member, nk_clock_unix_s(&server_clock.clock),
                          86400, &certificate, &err),
              err);
    x = nk__certificate_read(buf_bytes(&certificate), &err);
    if (key)
        *key = nk__key_read(buf_bytes(&pem), &err);
    nk_buf_release(&pem);
    nk_buf_release(&request);
    nk_buf_release(&certificate);
    return x;
}

static X509 *read_ca(const nk_ca *of)
{
    struct nk_error err;

    return nk__certificate_read(text_bytes(nk_ca_certificate(of)), &err);
}

/* Shows the disguise to one client. Returns whether its handshake went through, and whether a byte
 * of application data came. */
static bool deceive(int listener, const struct disguise *d, bool *got_byte)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL *ssl = SSL_new(ctx);
    int fd = accept(listener, NULL, NULL);
    char byte;
    bool through;

    assert_int_equal(SSL_use_certificate(ssl, d->leaf), 1);
    assert_int_equal(SSL_use_PrivateKey(ssl, d->key), 1);
    if (d->shown_ca)
        assert_int_equal(SSL_add1_chain_cert(ssl, d->shown_ca), 1);
    SSL_set_fd(ssl, fd);
    through = SSL_accept(ssl) == 1;
    *got_byte = SSL_read(ssl, &byte, 1) == 1;
    ERR_clear_error();
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
    return through;
}

static void test_enrol__a_man_in_the_middle_gets_not_one_byte(void **state)
{
    static const char *const addresses[] = { "127.0.0.6" };
    int port = nk_enrol_server_port(server), listener = listen_at("127.0.0.6", port);
    struct nk_token t = make_token_at(1, port, 1, addresses);
    X509 *own, *right_ca, *other_ca, *member, *forged, *good;
    EVP_PKEY *key, *member_key, *good_key;
    struct nk_error err;
    bool got_byte;
    nk_ca *other;
    struct joiner j;

    (void)state;
    assert_ok(nk_ca_open(&other, in_dir("other"), nk_clock_unix_s(&server_clock.clock), &err), err);
    right_ca = read_ca(ca);
    other_ca = read_ca(other);
    own = issue(other, NULL, &key);
    good = issue(ca, NULL, &good_key);
    member = issue(ca, "0123456789abcdef", &member_key);
    forged = issue(ca, NULL, NULL); /* says all that it should, but for his own key */
    X509_set_pubkey(forged, key);
    assert_true(X509_sign(forged, key, EVP_sha256()) > 0);
    const struct {
        struct disguise d;
        const char *reason, *says;
    } cases[] = {
        { { own, other_ca, key }, "wrong_cluster", nk_ca_cluster(other) },
        { { own, NULL, key }, "unreachable", "shows no cluster's CA" },
        { { own, right_ca, key }, "unreachable", nk_ca_cluster(other) },
        { { forged, right_ca, key }, "unreachable", "not signed by the CA" },
        { { member, right_ca, member_key }, "unreachable", "is a member of the cluster" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin_join(&j, &t);
        assert_false(deceive(listener, &cases[i].d, &got_byte));
        assert_false(got_byte);
        pthread_join(j.thread, NULL);
        assert_string_equal(j.err.reason, cases[i].reason);
        if (!strstr(j.err.msg, cases[i].says))
            fail_msg("%zu: '%s' is not in: %s", i, cases[i].says, j.err.msg);
        if (i == 0)
            assert_non_null(strstr(j.err.msg, t.cluster));
        nk_enrolled_release(&j.out);
    }
    /* Who has the right ones gets the request: a byte would have been seen above. */
    begin_join(&j, &t);
    assert_true(deceive(listener, &(struct disguise){ good, right_ca, good_key }, &got_byte));
    assert_true(got_byte);
    pthread_join(j.thread, NULL);
    assert_reason(j.rc, j.err, NK_E_UNAVAILABLE, "unreachable"); /* as no answer came */
    nk_enrolled_release(&j.out);
    X509_free(own);
    X509_free(good);
    X509_free(member);
    X509_free(forged);
    X509_free(right_ca);
    X509_free(other_ca);
    EVP_PKEY_free(key);
    EVP_PKEY_free(good_key);
    EVP_PKEY_free(member_key);
    close(listener);
    nk_ca_close(other);
}

/* ---- clients that mean no good ---- */
static int connect_to_server(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)nk_enrol_server_port(server)) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

/* The server's time goes on, in steps of ms, until it has closed this connection. */
static void wait_until_closed(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    char bytes[4096];

    for (;;) {
        if (poll(&p, 1, ms ? 5 : -1) && read(fd, bytes, sizeof bytes) <= 0)
            return;
        if (ms)
            virtual_clock_advance_ms(&server_clock, (uint64_t)ms);
    }
}

static void assert_still_serves(void)
{
    struct nk_token t = make_token(1);
    struct nk_enrolled out;
    struct nk_error err;

    assert_ok(join(&t, NULL, &out, &err), err);
    nk_enrolled_release(&out);
}

static void test_enrol__who_says_nothing_or_trickles_is_let_go(void **state)
{
    int silent = connect_to_server(), trickles = connect_to_server();

    (void)state;
    wait_until_closed(silent, 1000);
    close(silent);
    for (int i = 0;; i++) { /* the length of a record, and then its bytes one by one */
        static const char head[] = { 0x16, 0x03, 0x01, 0x02, 0x00 };
        struct pollfd p = { .fd = trickles, .events = POLLIN };

        if (write(trickles, i < 5 ? &head[i] : "", 1) != 1 || poll(&p, 1, 1) == 1)
            break;
        virtual_clock_advance_ms(&server_clock, 500);
    }
    close(trickles);
    assert_still_serves();
}

static void test_enrol__who_only_holds_connections_keeps_nobody_out(void **state)
{
    enum { HELD = 12 };
    int fds[HELD];

    (void)state;
    nk_enrol_server_stop(server);
    start_server(4);
    for (int i = 0; i < HELD; i++)
        fds[i] = connect_to_server();
    for (int i = 0; i < HELD - 4; i++) /* the oldest went, without any time having passed */
        wait_until_closed(fds[i], 0);
    assert_still_serves();
    for (int i = 0; i < HELD; i++)
        close(fds[i]);
}

/* A TLS client without manners. */
static SSL *connect_tls(int *fd)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);

    SSL_CTX_free(ctx);
    *fd = connect_to_server();
    SSL_set_fd(ssl, *fd);
    assert_int_equal(SSL_connect(ssl), 1);
    return ssl;
}

/* Sends a frame of this text, and reads the answer's text; "" if there is none. */
static void exchange_frames(SSL *ssl, const char *text, char *answer, size_t size)
{
    uint8_t head[4];
    size_t length = strlen(text), n = 0;
    int got;

    for (int i = 0; i < 4; i++)
        head[i] = (uint8_t)(length >> 8 * (3 - i));
    assert_int_equal(SSL_write(ssl, head, 4), 4);
    assert_int_equal(SSL_write(ssl, text, (int)length), (int)length);
    while (n < size - 1 && (got = SSL_read(ssl, answer + n, (int)(size - 1 - n))) > 0)
        n += (size_t)got;
    ERR_clear_error();
    answer[n] = '\0';
    memmove(answer, answer + (n < 4 ? n : 4), n < 4 ? 1 : n - 3);
}

static void test_enrol__frames_that_are_none_are_refused(void **state)
{
    static const char *const bad[] = { "x", "[]", "{}", "{\"v\":1}", "{\"v\":2,\"name\":\"x\"}" };
    static const uint8_t lengths[][4] = { { 0xff, 0xff, 0xff, 0xff }, { 0, 0, 0, 0 }, { 1, 0 } };
    char answer[4096];
    SSL *ssl;
    int fd;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ssl = connect_tls(&fd);
        exchange_frames(ssl, bad[i], answer, sizeof answer);
        assert_non_null(strstr(answer, "\"reason\":\"bad_frame\""));
        SSL_free(ssl);
        close(fd);
    }
    for (size_t i = 0; i < 3; i++) {
        ssl = connect_tls(&fd);
        assert_int_equal(SSL_write(ssl, lengths[i], 4), 4);
        assert_true(SSL_read(ssl, answer, 1) <= 0);
        SSL_free(ssl);
        close(fd);
    }
    ERR_clear_error();
    assert_int_equal(look().n_admitted, 0);
    assert_still_serves();
}

static void test_enrol__older_tls_is_not_spoken(void **state)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(ctx);
    int fd = connect_to_server();

    (void)state;
    SSL_set_max_proto_version(ssl, TLS1_2_VERSION);
    SSL_set_fd(ssl, fd);
    assert_true(SSL_connect(ssl) <= 0);
    ERR_clear_error();
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
}

/* A request that was made for one connection, sent on another. */
static void test_enrol__a_proof_is_good_on_its_own_connection_only(void **state)
{
    struct nk_buf key = NK_BUF_INIT(NK_PEM_BYTES_MAX),
                  text = NK_BUF_INIT(NK_ENROL_REQUEST_BYTES_MAX);
    struct nk_buf message = NK_BUF_INIT(NK_ENROL_REQUEST_BYTES_MAX);
    struct nk_token t = make_token(1);
    struct nk__enrol_request r;
    char answer[16384];
    struct nk_error err;
    SSL *ssl[2];
    int fds[2];

    (void)state;
    nk__enrol_request_init(&r);
    snprintf(r.name, sizeof r.name, "cellar");
    snprintf(r.version, sizeof r.version, "1");
    snprintf(r.token, sizeof r.token, "%s", t.id);
    r.time_s = nk_clock_unix_s(&server_clock.clock);
    assert_ok(nk_key_make(&key, &err), err);
    assert_ok(nk_request_make(buf_bytes(&key), &r.request, &err), err);
    for (int i = 0; i < 2; i++)
        ssl[i] = connect_tls(&fds[i]);
    assert_ok(nk__enrol_proof_message(&message, "join", ssl[0], buf_bytes(&r.request), &err), err);
    assert_ok(nk_token_prove(t.secret, buf_bytes(&message), r.proof, &err), err);
    assert_ok(nk__enrol_request_format(&r, &text, &err), err);
    exchange_frames(ssl[1], nk_buf_str(&text), answer, sizeof answer);
    assert_non_null(strstr(answer, "\"reason\":\"unknown_token\""));
    exchange_frames(ssl[0], nk_buf_str(&text), answer, sizeof answer);
    assert_non_null(strstr(answer, "\"certificate\""));
    for (int i = 0; i < 2; i++) {
        SSL_free(ssl[i]);
        close(fds[i]);
    }
    /* And the secret is in nothing of it. */
    for (int i = 0; i < NK_TOKEN_SECRET_BYTES; i++)
        snprintf(answer + 2 * i, 3, "%02x", t.secret[i]);
    assert_null(strstr(nk_buf_str(&text), answer));
    nk__enrol_request_release(&r);
    nk_buf_release(&key);
    nk_buf_release(&text);
    nk_buf_release(&message);
}

/* ---- renewal ---- */
static void become_member(struct nk_identity_files *id, struct nk_joined *j)
{
    struct nk_token t = make_token(1);
    struct nk_enrolled out;
    struct nk_error err;

    assert_ok(join(&t, NULL, &out, &err), err);
    assert_ok(nk_identity_write(in_dir("identity"), buf_bytes(&out.ca), buf_bytes(&out.certificate),
                                buf_bytes(&out.key), &err),
              err);
    assert_ok(nk_identity_read(id, in_dir("identity"), &err), err);
    *j = (struct nk_joined){ .port = out.port,
                             .enrolment_port = nk_enrol_server_port(server),
                             .n_addresses = 1,
                             .addresses = { "127.0.0.1" } };
    snprintf(j->name, sizeof j->name, "%s", out.name);
    nk_enrolled_release(&out);
}

static int renew(const struct nk_identity_files *id, const struct nk_joined *j,
                 struct nk_enrolled *out, struct nk_error *err)
{
    struct nk_enrol_renew_opts opts = {
        .identity = id, .joined = j, .version = "0.3.0", .clock = &client_clock.clock
    };

    return nk_enrol_renew(&opts, out, err);
}

static void refuse_renewal(const struct nk_identity_files *id, const struct nk_joined *j, int code,
                           const char *reason)
{
    struct nk_enrolled out;
    struct nk_error err;
    int rc = renew(id, j, &out, &err);

    nk_enrolled_release(&out);
    assert_reason(rc, err, code, reason);
}

static void test_enrol__a_certificate_is_renewed_before_and_after_it_has_expired(void **state)
{
    static const int days[] = { 5, 7 + 29 };
    struct nk_identity_files id;
    struct nk_enrolled out;
    struct nk_joined j;
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        become_member(&id, &j);
        advance_both_s(days[i] * 86400);
        assert_ok(renew(&id, &j, &out, &err), err);
        assert_string_equal(out.about.member, id.about.member);
        assert_true(look().renews);
        assert_string_equal(look().id, id.about.member);
        assert_string_not_equal(nk_buf_str(&out.key), nk_buf_str(&id.key));
        assert_int_equal(out.about.not_after_s,
                         nk_clock_unix_s(&server_clock.clock) + NK_CERTIFICATE_LIFETIME_S);
        assert_ok(nk_identity_write(in_dir("identity"), buf_bytes(&out.ca),
                                    buf_bytes(&out.certificate), buf_bytes(&out.key), &err),
                  err);
        nk_enrolled_release(&out);
        nk_identity_release(&id);
    }
}

static void test_enrol__after_30_days_it_is_too_late(void **state)
{
    struct nk_identity_files id;
    struct nk_joined j;

    (void)state;
    become_member(&id, &j);
    advance_both_s((7 + 30) * 86400 + 1);
    refuse_renewal(&id, &j, NK_E_PRECONDITION, "expired_certificate");
    assert_int_equal(look().n_admitted, 1);
    nk_identity_release(&id);
}

static void test_enrol__who_was_removed_cannot_renew(void **state)
{
    struct nk_identity_files id;
    struct nk_joined j;

    (void)state;
    become_member(&id, &j);
    remove_member(id.about.member);
    refuse_renewal(&id, &j, NK_E_DENIED, "removed");
    assert_int_equal(look().n_admitted, 1);
    nk_identity_release(&id);
}

static void test_enrol__a_certificate_alone_renews_nothing(void **state)
{
    struct nk_identity_files id;
    struct nk_joined j;
    struct nk_error err;

    (void)state;
    become_member(&id, &j);
    nk_buf_reset(&id.key); /* a stranger has the certificate, which is no secret, and his own key */
    assert_ok(nk_key_make(&id.key, &err), err);
    refuse_renewal(&id, &j, NK_E_UNAUTHENTICATED, "bad_signature");
    remove_member(id.about.member);
    refuse_renewal(&id, &j, NK_E_UNAUTHENTICATED, "bad_signature"); /* and learns nothing */
    nk_identity_release(&id);
}

static void test_enrol__a_renewal_goes_to_its_own_cluster_only(void **state)
{
    struct nk_identity_files id;
    struct nk_joined j;
    struct nk_error err;
    nk_ca *other, *own = ca;

    (void)state;
    become_member(&id, &j);
    nk_enrol_server_stop(server);
    assert_ok(nk_ca_open(&other, in_dir("other"), nk_clock_unix_s(&server_clock.clock), &err), err);
    ca = other;
    start_server(0);
    j.enrolment_port = nk_enrol_server_port(server);
    refuse_renewal(&id, &j, NK_E_UNAUTHENTICATED, "wrong_cluster");
    nk_enrol_server_stop(server);
    server = NULL;
    refuse_renewal(&id, &j, NK_E_UNAVAILABLE, "unreachable");
    j.n_addresses = 0;
    refuse_renewal(&id, &j, NK_E_UNAVAILABLE, "unreachable");
    nk_ca_close(other);
    ca = own;
    nk_identity_release(&id);
}

static void test_enrol__who_joins_again_keeps_its_id_by_its_old_certificate(void **state)
{
    struct nk_token t = make_token(3);
    struct nk_enrol_join_opts opts = {
        .token = &t, .name = "cellar", .version = "1", .clock = &client_clock.clock
    };
    struct nk_identity_files id;
    struct nk_enrolled out;
    struct nk_joined j;
    struct nk_error err;

    (void)state;
    become_member(&id, &j);
    opts.old = &id;
    assert_ok(nk_enrol_join(&opts, &out, &err), err);
    assert_true(look().has_old);
    assert_string_equal(out.about.member, id.about.member);
    nk_enrolled_release(&out);
    /* Not when it was removed: then it is a new member. */
    remove_member(id.about.member);
    assert_ok(nk_enrol_join(&opts, &out, &err), err);
    assert_false(look().has_old);
    assert_string_not_equal(out.about.member, id.about.member);
    nk_enrolled_release(&out);
    nk_identity_release(&id);
}

/* ---- answers ---- */
static void test_enrol__answers_that_are_none_are_refused(void **state)
{
    static const char *const bad[] = {
        "x",
        "[]",
        "{}",
        "{\"v\":1}",
        "{\"v\":1,\"error\":{}}",
        "{\"v\":1,\"error\":{\"code\":0,\"reason\":\"x\",\"message\":\"x\"}}",
        "{\"v\":1,\"error\":{\"code\":-7,\"reason\":\"\\u001b[2J\",\"message\":\"x\"}}",
        "{\"v\":1,\"error\":{\"code\":-7,\"reason\":\"x\",\"message\":\"\\u001b[2J\"}}",
    };
    struct nk_enrolled out;
    struct nk_error err;

    (void)state;
    nk__enrolled_init(&out);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_reason(nk__enrol_reply_parse(&out, text_bytes(bad[i]), &err), err, NK_E_INVALID,
                      "bad_reply");
    nk_enrolled_release(&out);
}

static void test_enrol__names_that_are_none_are_refused(void **state)
{
    struct nk_token t = make_token(1);
    struct nk_enrol_join_opts opts = {
        .token = &t, .name = "a name", .version = "1", .clock = &client_clock.clock
    };
    struct nk_enrolled out;
    struct nk_error err;
    int rc;

    (void)state;
    rc = nk_enrol_join(&opts, &out, &err);
    nk_enrolled_release(&out);
    assert_reason(rc, err, NK_E_INVALID, "bad_name");
    opts.name = "name"; /* and the token is still good */
    assert_ok(nk_enrol_join(&opts, &out, &err), err);
    nk_enrolled_release(&out);
}

static void test_enrol__ipv6_alone_is_enough(void **state)
{
    static const char *const addresses[] = { "::1" };
    struct nk_enrol_server_opts opts = { .listen = "[::1]:0",
                                         .ca = ca,
                                         .store = store,
                                         .clock = &server_clock.clock,
                                         .chance = nk_chance_system(),
                                         .handlers = &handlers };
    struct nk_enrolled out;
    struct nk_token t;
    struct nk_error err;

    (void)state;
    nk_enrol_server_stop(server);
    if (nk_enrol_server_start(&server, &opts, &err)) {
        assert_string_equal(err.reason, "cannot_listen");
        missing("no IPv6 here: nothing can listen on [::1]");
    }
    t = make_token_at(1, nk_enrol_server_port(server), 1, addresses);
    assert_ok(join(&t, NULL, &out, &err), err);
    assert_string_equal(look().peer, "::1");
    assert_string_equal(out.addresses[0], "::1");
    nk_enrolled_release(&out);
}

static void test_enrol__listens_only_at_addresses(void **state)
{
    static const char *const bad[] = { "", "127.0.0.1", "localhost.example:1", "127.0.0.1:x" };
    struct nk_enrol_server_opts opts = { .ca = ca,
                                         .store = store,
                                         .clock = &server_clock.clock,
                                         .chance = nk_chance_system(),
                                         .handlers = &handlers };
    struct nk_error err;
    nk_enrol_server *s;
    char taken[64];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        opts.listen = bad[i];
        assert_reason(nk_enrol_server_start(&s, &opts, &err), err, NK_E_INVALID, "bad_address");
        assert_null(s);
    }
    snprintf(taken, sizeof taken, "127.0.0.1:%d", nk_enrol_server_port(server));
    opts.listen = taken;
    assert_reason(nk_enrol_server_start(&s, &opts, &err), err, NK_E_UNAVAILABLE, "cannot_listen");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_enrol__a_token_makes_a_member),
        TEST(test_enrol__the_coordinator_may_name_it_otherwise_or_refuse),
        TEST(test_enrol__refusals_say_why),
        TEST(test_enrol__an_answer_that_was_lost_is_asked_for_again),
        TEST(test_enrol__a_clock_that_is_off_is_told_by_how_much),
        TEST(test_enrol__many_at_once_all_become_members),
        TEST(test_enrol__the_first_good_address_is_taken),
        TEST(test_enrol__every_address_in_vain_is_named_with_its_reason),
        TEST(test_enrol__a_man_in_the_middle_gets_not_one_byte),
        TEST(test_enrol__who_says_nothing_or_trickles_is_let_go),
        TEST(test_enrol__who_only_holds_connections_keeps_nobody_out),
        TEST(test_enrol__frames_that_are_none_are_refused),
        TEST(test_enrol__older_tls_is_not_spoken),
        TEST(test_enrol__a_proof_is_good_on_its_own_connection_only),
        TEST(test_enrol__a_certificate_is_renewed_before_and_after_it_has_expired),
        TEST(test_enrol__after_30_days_it_is_too_late),
        TEST(test_enrol__who_was_removed_cannot_renew),
        TEST(test_enrol__a_certificate_alone_renews_nothing),
        TEST(test_enrol__a_renewal_goes_to_its_own_cluster_only),
        TEST(test_enrol__who_joins_again_keeps_its_id_by_its_old_certificate),
        TEST(test_enrol__answers_that_are_none_are_refused),
        TEST(test_enrol__names_that_are_none_are_refused),
        TEST(test_enrol__ipv6_alone_is_enough),
        TEST(test_enrol__listens_only_at_addresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
