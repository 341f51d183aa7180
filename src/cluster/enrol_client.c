/* The client's side of enrolment: every address is tried, one request is sent.
 *
 * The addresses are begun 250 ms apart (RFC 8305's way), the next one at once when one has failed.
 * The first whose handshake is through, and whose CA is the right one, gets the request. Only when
 * that connection breaks, or its answer does not come, does another: it is the same machine, and
 * the same key. */
#include "cluster/enrol.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/file.h"
#include "cluster/cluster_int.h"
#include "cluster/enrol_int.h"
#include "cluster/reach.h"

enum { TARGETS_MAX = 2 * NK_TOKEN_ADDRESSES_MAX, STAGGER_MS = 250 };
#define MS ((uint64_t)1000000)

enum state { WAITING, CONNECTING, HANDSHAKE, READY, SENDING, RECEIVING, FAILED };

struct target {
    struct enrolment *all;
    char address[46];
    int port;
    enum state state;
    uint64_t end_ns; /* of what it does now */
    int fd;
    SSL *ssl;
    short events;
    bool ready; /* poll() has seen one of them */
    struct nk__frame frame;
    char shown[NK_CA_CLUSTER_SIZE]; /* the CA that it has shown, if it is another */
    char why[128];                  /* of no use */
};

struct enrolment {
    struct nk_clock *clock;
    const char *cluster;
    SSL_CTX *ctx;
    struct nk__waker waker;
    struct target targets[TARGETS_MAX];
    int n_targets;
    struct target *active; /* has the request */
    uint64_t next_ns;      /* when the next address is begun */
    uint64_t end_ns;
    struct nk__enrol_request request;    /* without proofs */
    const struct nk_token *token;        /* NULL: it renews */
    const struct nk_identity_files *old; /* or NULL */
};

static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)b->data, b->size };
}

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
}

static uint64_t now_ns(const struct enrolment *e)
{
    return nk_clock_now_ns(e->clock);
}

/* ---- whom it believes ---- */
/* The CA among the certificates that were shown; NULL: it is not there. */
static X509 *find_ca(STACK_OF(X509) * shown, const char *cluster, char other[NK_CA_CLUSTER_SIZE])
{
    char id[NK_CA_CLUSTER_SIZE];

    for (int i = 0; i < sk_X509_num(shown); i++) {
        X509 *x = sk_X509_value(shown, i);

        if (X509_check_ca(x) != 1 || !nk__cluster_of(id, x))
            continue;
        if (!strcmp(id, cluster))
            return x;
        memcpy(other, id, sizeof id);
    }
    return NULL;
}

/* In the place of OpenSSL's own looking at the chain. Times are not looked at: a machine whose
 * clock is off shall learn that, and the hash says all there is to say. */
static int verify(X509_STORE_CTX *store, void *arg)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct target *t = SSL_get_app_data(ssl);
    struct nk_certificate about;
    struct nk_error err;
    X509 *ca = find_ca(X509_STORE_CTX_get0_untrusted(store), t->all->cluster, t->shown);

    (void)arg;
    if (!ca)
        snprintf(t->why, sizeof t->why, *t->shown ? "is of cluster %s" : "shows no cluster's CA",
                 t->shown);
    else if (nk__certificate_issued(&about, X509_STORE_CTX_get0_cert(store), ca, &err))
        snprintf(t->why, sizeof t->why, "%.127s", err.msg);
    else if (*about.member)
        snprintf(t->why, sizeof t->why, "is a member of the cluster, not where one joins it");
    else
        return 1;
    ERR_clear_error();
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_UNTRUSTED);
    return 0;
}

static SSL_CTX *make_ctx(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    if (!ctx || !SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION)) {
        SSL_CTX_free(ctx);
        return NULL;
    }
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(ctx, verify, NULL);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return ctx;
}

/* ---- one address ---- */
static void close_target(struct target *t)
{
    SSL_free(t->ssl);
    t->ssl = NULL;
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
}

/* It is of no use; why was written to t->why, unless text is given. */
static void give_up(struct target *t, const char *text)
{
    if (text)
        snprintf(t->why, sizeof t->why, "%.127s", text);
    close_target(t);
    t->state = FAILED;
    if (t->all->active == t)
        t->all->active = NULL;
    t->all->next_ns = 0; /* the next one need not wait */
}

static void enter(struct target *t, enum state state, short events)
{
    t->state = state;
    t->events = events;
    t->end_ns = now_ns(t->all) + NK_ENROL_STEP_MS * MS;
}

static void begin_handshake(struct target *t)
{
    t->ssl = SSL_new(t->all->ctx);
    if (!t->ssl || SSL_set_fd(t->ssl, t->fd) != 1) {
        ERR_clear_error();
        give_up(t, "out of memory");
        return;
    }
    SSL_set_app_data(t->ssl, t);
    enter(t, HANDSHAKE, POLLOUT);
}

static void begin_connect(struct target *t)
{
    struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons((uint16_t)t->port) };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)t->port) };
    bool is_v4 = inet_pton(AF_INET, t->address, &v4.sin_addr) == 1;

    if (!is_v4 && inet_pton(AF_INET6, t->address, &v6.sin6_addr) != 1) {
        give_up(t, "is no address");
        return;
    }
    t->fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->fd < 0) {
        give_up(t, strerror(errno));
        return;
    }
    enter(t, CONNECTING, POLLOUT);
    if (connect(t->fd, is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6,
                is_v4 ? sizeof v4 : sizeof v6) < 0 &&
        errno != EINPROGRESS)
        give_up(t, strerror(errno));
}

static void end_connect(struct target *t)
{
    socklen_t size = sizeof(int);
    int e = 0;

    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &e, &size) < 0)
        e = errno;
    if (e)
        give_up(t, strerror(e));
    else
        begin_handshake(t);
}

static void go_on_handshake(struct target *t)
{
    struct nk_error err;
    int answer;

    ERR_clear_error();
    errno = 0;
    answer = SSL_connect(t->ssl);
    if (answer == 1)
        enter(t, READY, 0);
    else if (nk__ssl_wait(t->ssl, answer, &t->events, &err))
        give_up(t, *t->why ? NULL : err.msg);
}

/* The request with the proofs that are good on this connection. */
static int write_request(struct target *t, struct nk_error *err)
{
    struct enrolment *e = t->all;
    struct nk__enrol_request *r = &e->request;
    struct nk_buf message = NK_BUF_INIT(NK_ENROL_REQUEST_BYTES_MAX);
    int rc = nk__frame_begin(&t->frame, err);

    if (!rc && e->token) {
        rc = nk__enrol_proof_message(&message, "join", t->ssl, bytes_of(&r->request), err);
        if (!rc)
            rc = nk_token_prove(e->token->secret, bytes_of(&message), r->proof, err);
    }
    nk_buf_reset(&r->old_proof);
    if (!rc && e->old) {
        rc = nk__enrol_proof_message(&message, "renew", t->ssl, bytes_of(&r->request), err);
        if (!rc)
            rc = nk_key_sign(bytes_of(&e->old->key), bytes_of(&message), &r->old_proof, err);
    }
    if (!rc)
        rc = nk__enrol_request_format(r, &t->frame.out, err);
    if (!rc)
        nk__frame_end(&t->frame);
    nk_buf_release(&message);
    return rc;
}

static void begin_request(struct target *t)
{
    struct nk_error err;

    t->all->active = t;
    if (write_request(t, &err))
        give_up(t, err.msg);
    else
        enter(t, SENDING, POLLOUT);
}

/* 1: the answer is there. */
static int go_on(struct target *t)
{
    struct nk_error err;
    int rc;

    if (t->state == CONNECTING)
        end_connect(t);
    if (t->state == HANDSHAKE)
        go_on_handshake(t);
    if (t->state == SENDING) {
        rc = nk__frame_send(&t->frame, t->ssl, &t->events, &err);
        if (rc < 0)
            give_up(t, err.msg);
        else if (rc)
            enter(t, RECEIVING, POLLIN);
    }
    if (t->state == RECEIVING) {
        rc = nk__frame_receive(&t->frame, t->ssl, &t->events, &err);
        if (rc < 0)
            give_up(t, err.msg);
        return rc == 1;
    }
    return 0;
}

static void time_out(struct target *t)
{
    static const char *const what[] = {
        [CONNECTING] = "does not answer",
        [HANDSHAKE] = "takes the connection, but does not answer on it",
        [READY] = "was not needed",
        [SENDING] = "does not take the request",
        [RECEIVING] = "does not answer the request",
    };

    snprintf(t->why, sizeof t->why, "%s within %d s", what[t->state], NK_ENROL_STEP_MS / 1000);
    give_up(t, NULL);
}

/* ---- all of them ---- */
/* The next address to be tried; NULL: all were, or there is no need now. */
static struct target *next_target(struct enrolment *e)
{
    for (int i = 0; i < e->n_targets && !e->active; i++)
        if (e->targets[i].state == WAITING)
            return &e->targets[i];
    return NULL;
}

/* Begins what is due. False: there is nothing left to wait for. */
static bool begin_due(struct enrolment *e)
{
    struct target *next;
    bool alive = false;

    while ((next = next_target(e)) && now_ns(e) >= e->next_ns) {
        e->next_ns = now_ns(e) + STAGGER_MS * MS;
        begin_connect(next);
    }
    for (int i = 0; i < e->n_targets && !e->active; i++)
        if (e->targets[i].state == READY)
            begin_request(&e->targets[i]);
    for (int i = 0; i < e->n_targets; i++)
        alive |= e->targets[i].state != FAILED;
    return alive;
}

static void wait_for_any(struct enrolment *e)
{
    struct pollfd polls[TARGETS_MAX + 1] = { { .fd = e->waker.fds[0], .events = POLLIN } };
    uint64_t first = e->end_ns;
    int wait;

    if (next_target(e) && e->next_ns < first)
        first = e->next_ns;
    for (int i = 0; i < e->n_targets; i++) {
        const struct target *t = &e->targets[i];
        bool idle = t->state == WAITING || t->state == READY || t->state == FAILED;

        polls[i + 1] = (struct pollfd){ .fd = idle ? -1 : t->fd, .events = t->events };
        if (!idle && t->end_ns < first)
            first = t->end_ns;
    }
    wait = nk_clock_wait_ms(e->clock, first);
    poll(polls, (nfds_t)e->n_targets + 1, wait);
    if (polls[0].revents)
        nk__waker_read(&e->waker);
    for (int i = 0; i < e->n_targets; i++)
        e->targets[i].ready = polls[i + 1].revents;
}

/* The target whose answer is there; NULL: none has one, and each says why. */
static struct target *exchange(struct enrolment *e)
{
    e->end_ns = now_ns(e) + NK_ENROL_CLIENT_MS * MS;
    while (begin_due(e)) {
        wait_for_any(e);
        for (int i = 0; i < e->n_targets; i++) {
            struct target *t = &e->targets[i];

            if (t->ready && go_on(t))
                return t;
            if (t->state > WAITING && t->state != READY && t->state != FAILED &&
                now_ns(e) >= t->end_ns)
                time_out(t);
        }
        if (now_ns(e) >= e->end_ns)
            break;
    }
    for (int i = 0; i < e->n_targets; i++) {
        if (e->targets[i].state == FAILED)
            continue;
        snprintf(e->targets[i].why, sizeof e->targets[i].why, "does not answer within %d s",
                 NK_ENROL_CLIENT_MS / 1000);
        e->targets[i].state = FAILED;
    }
    return NULL;
}

/* Nobody has answered: one sentence with every address in it, as far as there is room. */
static int unreachable(const struct enrolment *e, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(400);
    bool other = false;
    int told = 0;

    for (; told < e->n_targets; told++) {
        const struct target *t = &e->targets[told];
        char address[64];

        nk_reach_format(address, sizeof address, t->address, t->port);
        if (nk_buf_addf(&text, NULL, "%s%s: %s", told ? "; " : "", address, t->why))
            break;
    }
    for (int i = 0; i < e->n_targets; i++)
        other |= *e->targets[i].shown;
    if (told < e->n_targets) {
        text.max += 32;
        nk_buf_addf(&text, NULL, "; and %d more", e->n_targets - told);
    }
    if (other)
        nk_fail(err, NK_E_UNAUTHENTICATED, "wrong_cluster", "cluster %s does not answer: %s",
                e->cluster, nk_buf_str(&text));
    else
        nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "the cluster does not answer: %s",
                e->n_targets ? nk_buf_str(&text) : "no address of it is known");
    nk_buf_release(&text);
    return other ? NK_E_UNAUTHENTICATED : NK_E_UNAVAILABLE;
}

/* ---- the answer ---- */
static int check_reply(const struct enrolment *e, struct nk_enrolled *out, struct nk_error *err)
{
    struct nk_error why;
    char cluster[NK_CA_CLUSTER_SIZE];

    if (nk_certificate_cluster(cluster, bytes_of(&out->ca), &why) ||
        nk_certificate_check(&out->about, bytes_of(&out->certificate), bytes_of(&out->ca), &why) ||
        nk_certificate_fits_key(bytes_of(&out->certificate), bytes_of(&out->key), &why))
        return nk_fail(err, NK_E_INVALID, "bad_reply",
                       "the cluster's answer cannot be used: %.300s", why.msg);
    if (strcmp(cluster, e->cluster) != 0 || !*out->about.member)
        return nk_fail(err, NK_E_INVALID, "bad_reply",
                       "the cluster's answer cannot be used: a certificate of cluster %s, not of "
                       "%s",
                       cluster, e->cluster);
    return 0;
}

/* The address that has answered comes first among those that the cluster says it has. */
static void put_first(struct nk_enrolled *out, const char *address)
{
    int at = 0;

    while (at < out->n_addresses && strcmp(out->addresses[at], address) != 0)
        at++;
    if (at == out->n_addresses && out->n_addresses < NK_TOKEN_ADDRESSES_MAX)
        out->n_addresses++;
    if (at == NK_TOKEN_ADDRESSES_MAX)
        at--; /* the last one goes */
    memmove(out->addresses[1], out->addresses[0], (size_t)at * sizeof out->addresses[0]);
    snprintf(out->addresses[0], sizeof out->addresses[0], "%s", address);
}

static void note_tried(const struct enrolment *e, struct nk_enrolled *out)
{
    for (int i = 0; i < e->n_targets; i++) {
        const struct target *t = &e->targets[i];
        struct nk_enrol_try *tried = &out->tried[out->n_tried];

        if (t->state != FAILED)
            continue;
        nk_reach_format(tried->address, sizeof tried->address, t->address, t->port);
        snprintf(tried->why, sizeof tried->why, "%s", t->why);
        out->n_tried++;
    }
}

static void add_target(struct enrolment *e, const char *address, int port)
{
    struct target *t = &e->targets[e->n_targets++];

    *t = (struct target){ .all = e, .port = port, .fd = -1 };
    snprintf(t->address, sizeof t->address, "%s", address);
    nk__frame_init(&t->frame, NK_ENROL_REPLY_BYTES_MAX, NK_ENROL_REQUEST_BYTES_MAX);
}

/* e has its targets, cluster, token and old identity; out->key is the new key. */
static int enrol(struct enrolment *e, const char *name, const char *version,
                 struct nk_enrolled *out, struct nk_error *err)
{
    struct target *t;
    int rc;

    nk__enrol_request_init(&e->request);
    snprintf(e->request.name, sizeof e->request.name, "%s", name);
    snprintf(e->request.version, sizeof e->request.version, "%s", version);
    e->request.time_s = nk_clock_unix_s(e->clock);
    if (e->token)
        snprintf(e->request.token, sizeof e->request.token, "%s", e->token->id);
    rc = nk_request_make(bytes_of(&out->key), &e->request.request, err);
    if (!rc && e->old)
        rc = nk_buf_add(&e->request.old, e->old->certificate.data, e->old->certificate.size, err);
    if (!rc)
        rc = nk__waker_init(&e->waker, e->clock, err);
    if (rc)
        goto out;
    e->ctx = make_ctx();
    if (!e->ctx) {
        rc = nk_fail(err, NK_E_INTERNAL, "crypto_failed", "TLS: %s", nk__ssl_reason());
        goto out;
    }
    t = exchange(e);
    rc = t ? nk__enrol_reply_parse(out, nk__frame_message(&t->frame), err) : unreachable(e, err);
    if (!rc)
        rc = check_reply(e, out, err);
    if (!rc)
        put_first(out, t->address);
    note_tried(e, out);
out:
    for (int i = 0; i < e->n_targets; i++) {
        close_target(&e->targets[i]);
        nk__frame_release(&e->targets[i].frame);
    }
    nk__waker_release(&e->waker);
    SSL_CTX_free(e->ctx);
    nk__enrol_request_release(&e->request);
    return rc;
}

static struct enrolment *new_enrolment(struct nk_clock *clock, struct nk_error *err)
{
    struct enrolment *e = calloc(1, sizeof *e);

    if (!e) {
        no_memory(err);
        return NULL;
    }
    e->clock = clock;
    e->waker.fds[0] = -1;
    return e;
}

/* The key of a join that was begun before, or a new one, kept in path before anybody sees it. */
static int pending_key(struct nk_buf *key, const char *path, struct nk_error *err)
{
    struct nk_buf ignored = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    int rc;

    if (path && !nk_file_read_secret(path, NK_PEM_BYTES_MAX, key, NULL) &&
        !nk_request_make(bytes_of(key), &ignored, NULL)) {
        nk_buf_release(&ignored);
        return 0;
    }
    nk_buf_release(&ignored);
    nk_buf_reset(key);
    rc = nk_key_make(key, err);
    return rc || !path ? rc : nk_secret_write(path, bytes_of(key), err);
}

int nk_enrol_join(const struct nk_enrol_join_opts *opts, struct nk_enrolled *out,
                  struct nk_error *err)
{
    struct enrolment *e;
    int rc;

    nk__enrolled_init(out);
    rc = pending_key(&out->key, opts->key_path, err);
    e = rc ? NULL : new_enrolment(opts->clock, err);
    if (!e)
        return rc ? rc : NK_E_EXHAUSTED;
    e->token = opts->token;
    e->cluster = opts->token->cluster;
    if (opts->old && !strcmp(opts->old->about.cluster, e->cluster))
        e->old = opts->old;
    for (int i = 0; i < opts->token->n_addresses; i++)
        add_target(e, opts->token->addresses[i], opts->token->port);
    rc = enrol(e, opts->name, opts->version, out, err);
    free(e);
    return rc;
}

int nk_enrol_renew(const struct nk_enrol_renew_opts *opts, struct nk_enrolled *out,
                   struct nk_error *err)
{
    const struct nk_joined *j = opts->joined;
    struct enrolment *e;
    int rc;

    nk__enrolled_init(out);
    rc = nk_key_make(&out->key, err);
    e = rc ? NULL : new_enrolment(opts->clock, err);
    if (!e)
        return rc ? rc : NK_E_EXHAUSTED;
    e->old = opts->identity;
    e->cluster = opts->identity->about.cluster;
    for (int i = 0; i < j->n_addresses; i++)
        add_target(e, j->addresses[i], j->enrolment_port);
    rc = enrol(e, opts->name ? opts->name : j->name, opts->version, out, err);
    free(e);
    return rc;
}
