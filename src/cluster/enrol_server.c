/* The enrolment endpoint: one thread, poll(), connections that do not block.
 *
 * A connection is in one of three steps (handshake, request, answer), each of which has a time.
 * What a request asks for is done at once on this thread: a few writes to the store and a
 * signature, milliseconds in all, so that fifty machines that join at once wait for each other and
 * not for a limit. */
#include "cluster/enrol.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"
#include "cluster/cluster_int.h"
#include "cluster/enrol_int.h"
#include "rpc/rpc.h"

enum {
    BACKLOG = 256,
    ACCEPTS_MAX = 32, /* before those that are in get their turn */
    CONNECTIONS_MAX = 4096,
};

enum step { HANDSHAKE, REQUEST, ANSWER };

struct connection {
    int fd;
    SSL *ssl;
    enum step step;
    uint64_t end_ns; /* of this step */
    short events;    /* that it waits for */
    struct nk__frame frame;
    char peer[46];
    TAILQ_ENTRY(connection) link; /* the oldest first */
};
TAILQ_HEAD(connections, connection);

struct nk_enrol_server {
    struct nk_enrol_server_opts opts;
    int fd, port;
    struct nk__waker waker;
    bool has_thread;
    pthread_t thread;
    atomic_bool stop;
    /* the thread's: */
    SSL_CTX *ctx;
    struct nk_certificate about; /* the endpoint's own certificate */
    struct connections connections;
    size_t n_connections;
    struct pollfd *polls; /* waker, listener, connections */
};

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
}

static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)b->data, b->size };
}

static struct nk_bytes bytes_of_text(const char *text)
{
    return (struct nk_bytes){ (const uint8_t *)text, strlen(text) };
}

static int64_t now_s(const nk_enrol_server *s)
{
    return nk_clock_unix_s(s->opts.clock);
}

/* ---- its own certificate ---- */
static SSL_CTX *make_ctx(X509 *x, EVP_PKEY *key, X509 *ca)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    if (ctx && SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) &&
        SSL_CTX_use_certificate(ctx, x) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1 &&
        SSL_CTX_add1_chain_cert(ctx, ca) == 1 && SSL_CTX_set_num_tickets(ctx, 0)) {
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        return ctx;
    }
    SSL_CTX_free(ctx);
    return NULL;
}

/* A key that nobody else ever sees, and a certificate for it. */
static int make_certificate(nk_enrol_server *s, struct nk_error *err)
{
    struct nk_buf key_pem = NK_BUF_INIT(NK_PEM_BYTES_MAX), request = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    struct nk_buf pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    EVP_PKEY *key = NULL;
    X509 *x = NULL, *ca = NULL;
    SSL_CTX *ctx = NULL;
    int rc = nk_key_make(&key_pem, err);

    if (!rc)
        rc = nk_request_make(bytes_of(&key_pem), &request, err);
    if (!rc)
        rc = nk_ca_issue(s->opts.ca, bytes_of(&request), NULL, now_s(s), NK_CERTIFICATE_LIFETIME_S,
                         &pem, err);
    if (!rc)
        rc = nk_certificate_parse(&s->about, bytes_of(&pem), err);
    if (rc)
        goto out;
    key = nk__key_read(bytes_of(&key_pem), err);
    x = nk__certificate_read(bytes_of(&pem), err);
    ca = nk__certificate_read(bytes_of_text(nk_ca_certificate(s->opts.ca)), err);
    ctx = key && x && ca ? make_ctx(x, key, ca) : NULL;
    if (!ctx) {
        rc = nk_fail(err, NK_E_INTERNAL, "crypto_failed", "the enrolment endpoint's TLS: %s",
                     nk__ssl_reason());
        goto out;
    }
    SSL_CTX_free(s->ctx);
    s->ctx = ctx;
out:
    EVP_PKEY_free(key);
    X509_free(x);
    X509_free(ca);
    nk__forget(&key_pem);
    nk_buf_release(&request);
    nk_buf_release(&pem);
    return rc;
}

/* The endpoint lives longer than a certificate, and somebody may set the clock. */
static void renew_certificate(nk_enrol_server *s)
{
    struct nk_error err;

    if (now_s(s) >= s->about.not_before_s && now_s(s) < nk_certificate_renew_s(&s->about))
        return;
    if (make_certificate(s, &err))
        nk_log(NK_LOG_CLUSTER, NK_LOG_ERROR, "enrolment certificate=old reason=%s", err.reason);
}

/* ---- requests ---- */
static int check_clock(const nk_enrol_server *s, const struct nk__enrol_request *r,
                       struct nk_error *err)
{
    int64_t off = r->time_s - now_s(s);
    char span[32];

    if (off >= -NK_CLOCK_TOLERANCE_S && off <= NK_CLOCK_TOLERANCE_S)
        return 0;
    nk__span_format(span, off);
    return nk_fail(err, NK_E_PRECONDITION, "clock_off",
                   "this machine's clock is %s %s the cluster's; set it (timedatectl set-ntp true) "
                   "and try again",
                   span, off > 0 ? "ahead of" : "behind");
}

/* Whose old certificate is it, and is it the sender's? Then *about; nothing else is believed. */
static int check_old(const nk_enrol_server *s, const struct nk__enrol_request *r, SSL *ssl,
                     struct nk_certificate *about, struct nk_error *err)
{
    struct nk_buf message = NK_BUF_INIT(NK_ENROL_REQUEST_BYTES_MAX);
    int rc = nk_certificate_check(about, bytes_of(&r->old),
                                  bytes_of_text(nk_ca_certificate(s->opts.ca)), err);

    if (!rc && !*about->member)
        rc = nk_fail(err, NK_E_INVALID, "bad_certificate", "the old certificate is no member's");
    if (!rc)
        rc = nk__enrol_proof_message(&message, "renew", ssl, bytes_of(&r->request), err);
    if (!rc)
        rc = nk_certificate_verify(bytes_of(&r->old), bytes_of(&message), bytes_of(&r->old_proof),
                                   err);
    nk_buf_release(&message);
    if (!rc && s->opts.handlers->is_removed(s->opts.user, about->member))
        rc = nk_fail(err, NK_E_DENIED, "removed",
                     "this machine (member %s) was removed from the cluster; it can join again "
                     "with a new token",
                     about->member);
    return rc;
}

/* May it renew? Then its id is in member. */
static int check_renewal(const nk_enrol_server *s, const struct nk__enrol_request *r, SSL *ssl,
                         char member[NK_MEMBER_ID_SIZE], struct nk_error *err)
{
    struct nk_certificate about;
    int64_t expired_s;
    char span[32];
    int rc = check_old(s, r, ssl, &about, err);

    if (rc)
        return rc;
    expired_s = now_s(s) - about.not_after_s;
    if (expired_s > NK_CERTIFICATE_GRACE_S) {
        nk__span_format(span, expired_s);
        return nk_fail(err, NK_E_PRECONDITION, "expired_certificate",
                       "this machine's certificate expired %s ago, and after %d days it cannot be "
                       "renewed; join again with a new token",
                       span, NK_CERTIFICATE_GRACE_S / 86400);
    }
    snprintf(member, NK_MEMBER_ID_SIZE, "%s", about.member);
    return 0;
}

/* May it join? Then one use of its token was taken, and the id that it will have is in member. */
static int check_join(const nk_enrol_server *s, const struct nk__enrol_request *r, SSL *ssl,
                      char member[NK_MEMBER_ID_SIZE], bool *has_old, struct nk_error *err)
{
    struct nk_buf message = NK_BUF_INIT(NK_ENROL_REQUEST_BYTES_MAX);
    char key[NK_SHA256_HEX], id[NK_MEMBER_ID_SIZE];
    struct nk_certificate about;
    struct nk_token_claim claim;
    int rc = nk__request_key(key, bytes_of(&r->request), err);

    *has_old = !rc && r->old.size && !check_old(s, r, ssl, &about, NULL);
    if (!rc && *has_old)
        snprintf(id, sizeof id, "%s", about.member);
    else if (!rc)
        rc = nk_member_id_make(id, s->opts.chance, err);
    if (!rc)
        rc = nk__enrol_proof_message(&message, "join", ssl, bytes_of(&r->request), err);
    if (!rc) {
        claim = (struct nk_token_claim){ .id = r->token,
                                         .message = bytes_of(&message),
                                         .proof = r->proof,
                                         .key_sha256 = key,
                                         .member = id };
        rc = nk_token_consume(s->opts.store, now_s(s), &claim, member, err);
    }
    nk_buf_release(&message);
    return rc;
}

/* Fills what the machine is told; its certificate last. */
static int admit(const nk_enrol_server *s, const struct nk__enrol_request *r,
                 const struct nk_enrol_admission *who, struct nk_enrolled *out,
                 struct nk_error *err)
{
    struct nk_enrol_admitted a = { 0 };
    int64_t lifetime = s->opts.certificate_lifetime_s;
    const char *ca = nk_ca_certificate(s->opts.ca);
    int rc;

    snprintf(a.id, sizeof a.id, "%s", who->id);
    snprintf(a.name, sizeof a.name, "%s", who->name);
    rc = s->opts.handlers->admit(s->opts.user, who, &a, err);
    if (!rc)
        rc = nk_ca_issue(s->opts.ca, bytes_of(&r->request), a.id, now_s(s),
                         lifetime ? lifetime : NK_CERTIFICATE_LIFETIME_S, &out->certificate, err);
    if (!rc)
        rc = nk_buf_adds(&out->ca, ca, err);
    if (!rc) {
        snprintf(out->name, sizeof out->name, "%s", a.name);
        snprintf(out->server_version, sizeof out->server_version, "%s", NK_VERSION);
        out->server_time_s = now_s(s);
        out->port = a.port;
        out->n_addresses = a.n_addresses;
        memcpy(out->addresses, a.addresses, sizeof out->addresses);
        out->roster = a.roster; /* takes it */
        a.roster = (struct nk_roster){ 0 };
        nk_log(NK_LOG_CLUSTER, NK_LOG_INFO, "member=%s name=%s peer=%s event=%s", a.id, a.name,
               who->peer, who->renews ? "renewed" : "joined");
    }
    nk_roster_release(&a.roster);
    return rc;
}

static int decide(const nk_enrol_server *s, struct connection *c, struct nk_enrolled *out,
                  struct nk_error *err)
{
    struct nk__enrol_request r;
    struct nk_enrol_admission who = { 0 };
    char member[NK_MEMBER_ID_SIZE];
    int rc;

    nk__enrol_request_init(&r);
    rc = nk__enrol_request_parse(&r, nk__frame_message(&c->frame), err);
    if (!rc)
        rc = check_clock(s, &r, err);
    if (!rc && !*r.name)
        rc = nk_fail(err, NK_E_INVALID, "bad_name",
                     "a machine's name has 1 to %d letters, digits, '-', '_' or '.', and begins "
                     "with a letter or digit",
                     NK_MEMBER_NAME_SIZE - 1);
    if (!rc)
        rc = *r.token ? check_join(s, &r, c->ssl, member, &who.has_old, err)
                      : check_renewal(s, &r, c->ssl, member, err);
    if (!rc) {
        who.id = member;
        who.renews = !*r.token;
        who.name = r.name;
        who.version = r.version;
        who.peer = c->peer;
        rc = admit(s, &r, &who, out, err);
    }
    nk__enrol_request_release(&r);
    return rc;
}

/* A request was received: its answer is what is sent next. */
static int answer(nk_enrol_server *s, struct connection *c, struct nk_error *err)
{
    static struct nk_log_limit limit;
    struct nk_enrolled reply;
    struct nk_error refusal;
    unsigned long n;
    int rc, refused;

    nk__enrolled_init(&reply);
    rc = nk__frame_begin(&c->frame, err);
    if (!rc) {
        refused = decide(s, c, &reply, &refusal);
        if (refused && nk_log_allow(&limit, &n))
            nk_log(NK_LOG_CLUSTER, NK_LOG_WARN, "peer=%s event=refused reason=%s n_more=%lu",
                   c->peer, refusal.reason, n);
        rc = refused ? nk__enrol_refusal_format(&refusal, now_s(s), &c->frame.out, err)
                     : nk__enrol_reply_format(&reply, &c->frame.out, err);
    }
    if (!rc)
        nk__frame_end(&c->frame);
    nk_enrolled_release(&reply);
    return rc;
}

/* ---- connections ---- */
static void begin_step(const nk_enrol_server *s, struct connection *c, enum step step, short events)
{
    c->step = step;
    c->events = events;
    c->end_ns = nk_clock_now_ns(s->opts.clock) + NK_ENROL_STEP_MS * (uint64_t)1000000;
}

static void drop(nk_enrol_server *s, struct connection *c)
{
    TAILQ_REMOVE(&s->connections, c, link);
    s->n_connections--;
    SSL_free(c->ssl);
    if (c->fd >= 0)
        close(c->fd);
    nk__frame_release(&c->frame);
    free(c);
}

/* As far as it goes now. False: it is over, well or not. */
static bool go_on(nk_enrol_server *s, struct connection *c)
{
    struct nk_error err;
    int rc, answered;

    if (c->step == HANDSHAKE) {
        ERR_clear_error();
        errno = 0;
        answered = SSL_accept(c->ssl);
        if (answered != 1)
            return nk__ssl_wait(c->ssl, answered, &c->events, &err) == 0;
        begin_step(s, c, REQUEST, POLLIN);
    }
    if (c->step == REQUEST) {
        rc = nk__frame_receive(&c->frame, c->ssl, &c->events, &err);
        if (rc <= 0)
            return rc == 0;
        if (answer(s, c, &err))
            return false;
        begin_step(s, c, ANSWER, POLLOUT);
    }
    rc = nk__frame_send(&c->frame, c->ssl, &c->events, &err);
    if (rc <= 0)
        return rc == 0;
    SSL_shutdown(c->ssl);
    ERR_clear_error();
    shutdown(c->fd, SHUT_WR);
    return false;
}

static void tell_peer(char out[46], const struct sockaddr_storage *from, socklen_t size)
{
    char host[NI_MAXHOST];

    if (getnameinfo((const struct sockaddr *)from, size, host, sizeof host, NULL, 0,
                    NI_NUMERICHOST))
        snprintf(host, sizeof host, "?");
    host[strcspn(host, "%")] = '\0'; /* a zone is this machine's business */
    snprintf(out, 46, "%.45s", !strncmp(host, "::ffff:", 7) && strchr(host, '.') ? host + 7 : host);
}

/* False: nobody waits at the door. */
static bool let_in(nk_enrol_server *s)
{
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    int fd = accept4(s->fd, (struct sockaddr *)&from, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct connection *c;

    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && s->n_connections) {
        drop(s, TAILQ_FIRST(&s->connections)); /* or poll() would call again for ever, at once */
        return false;
    }
    if (fd < 0 && (errno == EMFILE || errno == ENFILE))
        nk_sleep_ms(50); /* there is none of ours to drop */
    if (fd < 0)
        return errno == EINTR || errno == ECONNABORTED;
    if (s->n_connections == (size_t)s->opts.connections_max)
        drop(s, TAILQ_FIRST(&s->connections));
    renew_certificate(s);
    c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return true;
    }
    c->fd = fd;
    nk__frame_init(&c->frame, NK_ENROL_REQUEST_BYTES_MAX, NK_ENROL_REPLY_BYTES_MAX);
    TAILQ_INSERT_TAIL(&s->connections, c, link);
    s->n_connections++;
    tell_peer(c->peer, &from, size);
    begin_step(s, c, HANDSHAKE, POLLIN);
    c->ssl = SSL_new(s->ctx);
    if (!c->ssl || SSL_set_fd(c->ssl, fd) != 1)
        drop(s, c);
    return true;
}

/* What poll() is to look at; returns when the first step is over. */
static uint64_t fill_polls(nk_enrol_server *s, size_t *n)
{
    uint64_t first = UINT64_MAX;
    struct connection *c;

    s->polls[0] = (struct pollfd){ .fd = s->waker.fds[0], .events = POLLIN };
    s->polls[1] = (struct pollfd){ .fd = s->fd, .events = POLLIN };
    *n = 2;
    TAILQ_FOREACH(c, &s->connections, link)
    {
        s->polls[(*n)++] = (struct pollfd){ .fd = c->fd, .events = c->events };
        if (c->end_ns < first)
            first = c->end_ns;
    }
    return first;
}

/* Connections come in the order in which fill_polls saw them. */
static void serve_connections(nk_enrol_server *s)
{
    struct connection *c = TAILQ_FIRST(&s->connections), *next;

    for (size_t i = 2; c; c = next, i++) {
        next = TAILQ_NEXT(c, link);
        if (s->polls[i].revents && !go_on(s, c))
            drop(s, c);
        else if (nk_clock_now_ns(s->opts.clock) >= c->end_ns)
            drop(s, c);
    }
}

static void *run(void *arg)
{
    nk_enrol_server *s = arg;

    while (!atomic_load(&s->stop)) {
        size_t n;
        uint64_t first = fill_polls(s, &n);
        int wait = first == UINT64_MAX ? -1 : nk_clock_wait_ms(s->opts.clock, first);

        if (poll(s->polls, n, wait) < 0 && errno != EINTR)
            nk_sleep_ms(10); /* out of memory in the kernel: it says so again at once */
        if (s->polls[0].revents)
            nk__waker_read(&s->waker);
        serve_connections(s);
        if (s->polls[1].revents)
            for (int i = 0; i < ACCEPTS_MAX && let_in(s); i++) {
            }
    }
    while (!TAILQ_EMPTY(&s->connections))
        drop(s, TAILQ_FIRST(&s->connections));
    return NULL;
}

/* ---- its life ---- */
static int listen_at(nk_enrol_server *s, struct nk_error *err)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV },
                    *at = NULL;
    const char *colon = strrchr(s->opts.listen, ':'), *host = s->opts.listen;
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char name[64], port[NI_MAXSERV];
    int on = 1, off = 0, rc = nk_address_check(s->opts.listen, 0, err);

    if (rc)
        return rc;
    if (*host == '[')
        snprintf(name, sizeof name, "%.*s", (int)(colon - host - 2), host + 1);
    else
        snprintf(name, sizeof name, "%.*s", (int)(colon - host), host);
    if (getaddrinfo(name, colon + 1, &hints, &at))
        return nk_fail(err, NK_E_INVALID, "bad_address",
                       "'%s' is no address to listen at: an IPv4 address, or an IPv6 address in "
                       "brackets, and :PORT",
                       s->opts.listen);
    s->fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        (at->ai_family == AF_INET6 &&
         setsockopt(s->fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0) ||
        bind(s->fd, at->ai_addr, at->ai_addrlen) < 0 || listen(s->fd, BACKLOG) < 0 ||
        getsockname(s->fd, (struct sockaddr *)&bound, &size) < 0 ||
        getnameinfo((struct sockaddr *)&bound, size, NULL, 0, port, sizeof port, NI_NUMERICSERV))
        rc = nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen", "%s: %s", s->opts.listen,
                     strerror(errno));
    else
        s->port = atoi(port);
    freeaddrinfo(at);
    return rc;
}

int nk_enrol_server_start(nk_enrol_server **out, const struct nk_enrol_server_opts *opts,
                          struct nk_error *err)
{
    nk_enrol_server *s = calloc(1, sizeof *s);
    int rc = 0, e;

    *out = NULL;
    if (!s)
        return no_memory(err);
    s->opts = *opts;
    s->fd = -1;
    s->waker.fds[0] = -1;
    TAILQ_INIT(&s->connections);
    if (s->opts.connections_max <= 0 || s->opts.connections_max > CONNECTIONS_MAX)
        s->opts.connections_max = NK_ENROL_CONNECTIONS;
    s->polls = calloc((size_t)s->opts.connections_max + 2, sizeof *s->polls);
    if (!s->polls)
        rc = no_memory(err);
    if (!rc)
        rc = make_certificate(s, err);
    if (!rc)
        rc = listen_at(s, err);
    if (!rc)
        rc = nk__waker_init(&s->waker, s->opts.clock, err);
    if (!rc) {
        e = nk_thread_start(&s->thread, run, s);
        if (e)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the enrolment endpoint's thread: %s",
                         strerror(e));
        s->has_thread = !e;
    }
    s->opts.listen = NULL; /* the caller's */
    if (rc)
        nk_enrol_server_stop(s);
    else
        *out = s;
    return rc;
}

int nk_enrol_server_port(const nk_enrol_server *s)
{
    return s->port;
}

void nk_enrol_server_stop(nk_enrol_server *s)
{
    if (!s)
        return;
    atomic_store(&s->stop, true);
    if (s->has_thread) {
        nk__waker_wake(&s->waker);
        pthread_join(s->thread, NULL);
    }
    nk__waker_release(&s->waker);
    if (s->fd >= 0)
        close(s->fd);
    SSL_CTX_free(s->ctx);
    free(s->polls);
    free(s);
}
