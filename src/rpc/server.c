#include "rpc/rpc_int.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    CALLS_MAX_DEFAULT = 1024,
    /* Health and reflection: their streams may stay for good, and take nobody's place. */
    INTERNAL_CALLS_MAX = 128,
    BEATS_MAX = 1024, /* one for each connection */
};

/* ---- methods ---- */

static const struct nk_method *find(const struct nk_method *methods, int n, grpc_slice path)
{
    for (int i = 0; i < n; i++)
        if (grpc_slice_str_cmp(path, methods[i].path) == 0)
            return &methods[i];
    return NULL;
}

static bool is_of(const struct nk_method *m, const char *service)
{
    size_t n = strlen(service);

    return !strncmp(m->path + 1, service, n) && m->path[1 + n] == '/';
}

bool nk__server_has_service(const nk_server *s, const char *service)
{
    for (int i = 0; i < s->n_methods; i++)
        if (is_of(&s->methods[i], service))
            return true;
    for (int i = 0; i < nk__n_health_methods; i++)
        if (is_of(&nk__health_methods[i], service))
            return true;
    for (int i = 0; i < nk__n_reflection_methods; i++)
        if (is_of(&nk__reflection_methods[i], service))
            return true;
    return false;
}

/* ---- accepting ---- */

static void request_next(struct nk__incoming *r)
{
    grpc_call_error e;

    grpc_call_details_init(&r->details);
    grpc_metadata_array_init(&r->headers);
    r->g = NULL;
    e = grpc_server_request_call(r->server->g, &r->g, &r->details, &r->headers, r->server->net->cq,
                                 r->server->net->cq, &r->op);
    NK_ASSERT(e == GRPC_CALL_OK);
    r->server->n_requests++;
}

static void check_gone(nk_server *s);

static void finish_with(nk_call *c, int code, const char *reason, const char *text)
{
    struct nk_error e = { 0 };

    nk_fail(&e, code, reason, "%s", text);
    nk_call_finish(c, &e);
}

static int *counter(nk_call *c)
{
    nk_server *s = c->server;

    return c->is_beat ? &s->n_beats : c->is_internal ? &s->n_internal : &s->n_counted;
}

static void request_done(struct nk__op *op, bool ok)
{
    struct nk__incoming *r = nk__container(op, struct nk__incoming, op);
    nk_server *s = r->server;
    const struct nk_method *m;
    struct nk_error denied = { 0 };
    grpc_op close = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER };
    char path[200];
    int *count, max;
    nk_call *c;

    s->n_requests--;
    if (!ok) { /* the server stops */
        grpc_call_details_destroy(&r->details);
        grpc_metadata_array_destroy(&r->headers);
        check_gone(s);
        return;
    }
    c = nk__call_new(s->net, false);
    c->g = r->g;
    c->server = s;
    c->membership = s->membership;
    s->n_calls++;
    m = find(s->methods, s->n_methods, r->details.method);
    if (!m) {
        m = find(nk__health_methods, nk__n_health_methods, r->details.method);
        if (!m)
            m = find(nk__reflection_methods, nk__n_reflection_methods, r->details.method);
        if (!m) {
            m = find(nk__beat_methods, 1, r->details.method);
            c->is_beat = m != NULL;
        }
        c->is_internal = m != NULL;
    }
    count = counter(c);
    max = c->is_beat ? BEATS_MAX : c->is_internal ? INTERNAL_CALLS_MAX : s->calls_max;
    if (gpr_time_cmp(r->details.deadline, gpr_inf_future(r->details.deadline.clock_type)) != 0) {
        gpr_timespec left =
            gpr_time_sub(r->details.deadline, gpr_now(r->details.deadline.clock_type));
        int64_t ms = gpr_time_to_millis(left);

        c->deadline_ns = nk_clock_now_ns(s->net->clock) + (uint64_t)(ms > 0 ? ms : 0) * 1000000u;
    }
    snprintf(path, sizeof path, "%.*s", (int)GRPC_SLICE_LENGTH(r->details.method),
             (const char *)GRPC_SLICE_START_PTR(r->details.method));
    grpc_call_details_destroy(&r->details);
    grpc_metadata_array_destroy(&r->headers);

    nk__call_link(c, true);
    close.data.recv_close_on_server.cancelled = &c->peer_cancelled;
    c->n_ops++;
    nk__call_batch(c, &close, 1, &c->op_status);
    if (!s->stopping)
        request_next(r);

    if (s->membership && nk__call_check_role(c, m, path, &denied)) {
        nk_call_finish(c, &denied);
    } else if (!m) {
        struct nk_error e = { 0 };

        nk_fail(&e, NK_E_UNIMPLEMENTED, "unknown_method", "this server has no method %s", path);
        nk_call_finish(c, &e);
    } else if (s->stopping) {
        finish_with(c, NK_E_UNAVAILABLE, "shutting_down", "this server is shutting down");
    } else if (*count >= max) {
        struct nk_error e = { 0 };

        nk_fail(&e, NK_E_EXHAUSTED, "too_many_calls", "%d %scalls are open, and no more are taken",
                *count,
                c->is_beat       ? "beat "
                : c->is_internal ? "health and reflection "
                                 : "");
        nk_call_finish(c, &e);
    } else {
        c->is_counted = true;
        ++*count;
        nk_log(NK_LOG_RPC, NK_LOG_DEBUG, "call=begin side=server peer=%s method=%s",
               nk_call_peer(c), path);
        m->open(c, c->is_internal ? (void *)s : s->user);
        if (c->accepted)
            nk__call_read(c); /* unless it was paused at once */
        else
            /* Unless it has finished it. */
            finish_with(c, NK_E_INTERNAL, "not_accepted", "the method did not take the call");
    }
}

void nk_call_accept(nk_call *c, const struct nk_call_handlers *handlers, void *user)
{
    NK_ASSERT(!c->is_client && !c->accepted && nk_net_is_current(c->net));
    c->handlers = *handlers;
    c->user = user;
    c->accepted = true;
}

bool nk__server_status(nk_call *c, struct nk_error *out)
{
    if (c->lost) {
        *out = c->status;
        c->ending = NK_ENDING_LOST;
        return true;
    }
    if (c->peer_cancelled && !c->expelled) {
        c->ending = c->cancelled ? NK_ENDING_HERE : NK_ENDING_LOST;
        if (c->deadline_ns && !c->cancelled &&
            nk_clock_now_ns(c->net->clock) + 1000000u >= c->deadline_ns) {
            c->ending = NK_ENDING_HERE;
            nk_fail(out, NK_E_DEADLINE, "deadline", "the client's deadline has passed");
        } else {
            nk_fail(out, NK_E_CANCELLED, "cancelled",
                    "the client cancelled the call, or its connection broke");
        }
        return true;
    }
    c->ending = c->has_status ? NK_ENDING_STATUS : NK_ENDING_OK;
    if (c->has_status)
        *out = c->status;
    return c->has_status;
}

void nk__server_call_gone(nk_server *s, nk_call *c)
{
    s->n_calls--;
    if (c->is_counted)
        --*counter(c);
    check_gone(s);
}

/* ---- starting ---- */

/* gRPC does not tell why a port cannot be had; trying it once more does. */
static int why_not(const char *listen_at, struct nk_error *err)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *list = NULL;
    char host[NK__ADDRESS_MAX];
    const char *port = strrchr(listen_at, ':') + 1, *begin = listen_at;
    size_t size = (size_t)(port - 1 - listen_at);
    int rc, sys = 0, one = 1;

    if (*begin == '[') {
        begin++;
        size -= 2;
    }
    memcpy(host, begin, size);
    host[size] = '\0';
    rc = getaddrinfo(host, port, &hints, &list);
    if (rc)
        return nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen", "cannot listen on %s: %s", listen_at,
                       gai_strerror(rc));
    for (const struct addrinfo *a = list; a && !sys; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
            bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, 1) < 0)
            sys = errno;
        if (fd >= 0)
            close(fd);
    }
    freeaddrinfo(list);
    errno = sys;
    return nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen", "cannot listen on %s: %s", listen_at,
                   sys ? strerror(sys) : "gRPC refused, the system would not");
}

static void begin_requests(void *arg)
{
    nk_server *s = arg;

    for (int i = 0; i < NK__SERVER_REQUESTS && !s->stopping; i++)
        request_next(&s->requests[i]);
}

static void shutdown_done(struct nk__op *op, bool ok)
{
    nk_server *s = nk__container(op, nk_server, op_shutdown);

    (void)ok;
    s->shut = true;
    check_gone(s);
}

int nk_server_start(nk_server **out, nk_net *net, const struct nk_server_opts *opts,
                    struct nk_error *err)
{
    nk_server *s = nk__alloc(1, sizeof *s);
    grpc_server_credentials *creds = NULL;
    struct nk__args args = { 0 };
    int rc;

    *out = NULL;
    s->net = net;
    s->methods = opts->methods;
    s->n_methods = opts->n_methods;
    s->user = opts->user;
    s->silence_ms = opts->silence_ms;
    s->calls_max = opts->calls_max > 0 ? opts->calls_max : CALLS_MAX_DEFAULT;
    s->op_shutdown.done = shutdown_done;
    atomic_init(&s->serving, true);
    for (int i = 0; i < NK__SERVER_REQUESTS; i++)
        s->requests[i] = (struct nk__incoming){ .op.done = request_done, .server = s };

    rc = nk_address_check(opts->listen, 0, err);
    if (!rc)
        rc = nk__server_credentials(&creds, &s->membership, net, &opts->credentials, err);
    if (!rc)
        rc = nk__reflection_new(&s->reflection, opts->descriptors, err);
    if (rc)
        goto out;

    nk__args_common(&args, net, net->server_quota);
    nk__args_int(&args, GRPC_ARG_ALLOW_REUSEPORT, 0); /* a taken port is taken */
    /* Over calls_max a status tells; far over it, gRPC holds the client back. */
    nk__args_int(&args, GRPC_ARG_MAX_CONCURRENT_STREAMS,
                 s->calls_max < 50       ? 100
                 : s->calls_max < 100000 ? s->calls_max * 2
                                         : 200000);
    /* Our own clients ping every 10 s; twice as often is no attack. */
    nk__args_int(&args, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    if (nk_clock_runs(net->clock)) /* else it is two minutes */
        nk__args_int(&args, GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000);
    s->g = grpc_server_create(&args.args, NULL);
    grpc_server_register_completion_queue(s->g, net->cq, NULL);
    s->port = grpc_server_add_http2_port(s->g, opts->listen, creds);
    pthread_mutex_lock(&net->mu);
    LIST_INSERT_HEAD(&net->servers, s, link);
    pthread_mutex_unlock(&net->mu);
    if (!s->port) {
        rc = why_not(opts->listen, err);
        nk_server_stop(s, 0);
        s = NULL;
        goto out;
    }
    *out = s; /* before the first call: what handles it may use the server */
    if (opts->bound)
        opts->bound(s->user, s->port);
    grpc_server_start(s->g);
    nk_net_post(net, begin_requests, s);
out:
    if (creds)
        grpc_server_credentials_release(creds);
    if (rc && s)
        nk__server_free(s);
    return rc;
}

int nk_server_port(const nk_server *s)
{
    return s->port;
}

void nk_server_set_serving(nk_server *s, bool serving)
{
    if (atomic_exchange(&s->serving, serving) != serving)
        nk_net_post(s->net, nk__health_notify, s);
}

/* ---- stopping ---- */

static void cancel_all(nk_server *s)
{
    if (!s->all_cancelled && !s->shut) {
        s->all_cancelled = true;
        grpc_server_cancel_all_calls(s->g);
    }
}

/* Ends the server's calls, but for those that have ended already: all, or only health's and
 * reflection's, whose clients would keep them open for ever. */
static void finish_calls(nk_server *s, bool internal_only)
{
    nk_call *c;

    pthread_mutex_lock(&s->net->mu);
    LIST_FOREACH(c, &s->net->calls, link)
    {
        if (c->server == s && (c->is_internal || !internal_only))
            finish_with(c, NK_E_UNAVAILABLE, "shutting_down", "this server is shutting down");
    }
    pthread_mutex_unlock(&s->net->mu);
}

static void linger_over(void *arg)
{
    nk_server *s = arg;

    s->linger_timer = NULL;
    cancel_all(s);
}

/* From here on connections get NK__LINGER_MS to write out what is on its way. */
static void linger(nk_server *s)
{
    if (s->shut || s->linger_timer || s->all_cancelled)
        return;
    if (s->net->stop_begun && !nk_clock_runs(s->net->clock))
        cancel_all(s); /* nobody moves that clock for us any more */
    else
        s->linger_timer = nk_timer_start(s->net, NK__LINGER_MS, linger_over, s);
}

static void grace_over(void *arg)
{
    nk_server *s = arg;

    s->grace_timer = NULL;
    finish_calls(s, false);
    linger(s);
}

static void check_gone(nk_server *s)
{
    nk_net *net = s->net;

    if (!s->stopping)
        return;
    if (s->n_calls == 0)
        linger(s);
    if (!s->shut || s->n_requests || s->n_calls || s->gone)
        return;
    nk_timer_cancel(s->grace_timer);
    nk_timer_cancel(s->linger_timer);
    s->grace_timer = s->linger_timer = NULL;
    grpc_server_destroy(s->g);
    s->g = NULL;
    pthread_mutex_lock(&net->mu);
    s->gone = true;
    pthread_cond_broadcast(&net->changed);
    pthread_mutex_unlock(&net->mu);
}

void nk__server_begin_stop(void *server)
{
    nk_server *s = server;

    if (s->stopping)
        return;
    s->stopping = true;
    atomic_store(&s->serving, false);
    nk__health_notify(s);
    finish_calls(s, s->grace_ms > 0);
    grpc_server_shutdown_and_notify(s->g, s->net->cq, &s->op_shutdown);
    if (s->grace_ms)
        s->grace_timer = nk_timer_start(s->net, s->grace_ms, grace_over, s);
    else
        linger(s);
    check_gone(s);
}

/* What was posted with the server has run: it may be freed. The net may have stopped it before. */
static void stop_asked(void *arg)
{
    nk_server *s = arg;
    nk_net *net = s->net;

    nk__server_begin_stop(s);
    pthread_mutex_lock(&net->mu);
    s->stop_asked = true;
    pthread_cond_broadcast(&net->changed);
    pthread_mutex_unlock(&net->mu);
}

void nk_server_stop(nk_server *s, uint32_t grace_ms)
{
    nk_net *net;

    if (!s)
        return;
    net = s->net;
    NK_ASSERT(!nk_net_is_current(net));
    s->grace_ms = grace_ms;
    nk_net_post(net, stop_asked, s);
    pthread_mutex_lock(&net->mu);
    while (!s->gone || !s->stop_asked)
        pthread_cond_wait(&net->changed, &net->mu);
    LIST_REMOVE(s, link);
    pthread_mutex_unlock(&net->mu);
    nk__server_free(s);
}

void nk__server_free(nk_server *s)
{
    nk__reflection_free(s->reflection);
    free(s);
}
