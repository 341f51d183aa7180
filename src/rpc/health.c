/* grpc.health.v1.Health (https://github.com/grpc/grpc/blob/master/doc/health-checking.md). All
 * services of a server fare alike: they are one model. */
#include "rpc/rpc_int.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "health.pb-c.h"

enum { REQUEST_BYTES_MAX = 4096, SERVICE_MAX = 200 };

struct nk__health_watch {              /* an open call, Check or Watch */
    LIST_ENTRY(nk__health_watch) link; /* server->watches, once it watches */
    nk_server *server;
    nk_call *call;
    bool is_watch, listed, has_request;
    char service[SERVICE_MAX];
    int sent; /* status; -1: none yet */
};

static int status_of(const struct nk__health_watch *w)
{
    if (w->service[0] && !nk__server_has_service(w->server, w->service))
        return GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
    return atomic_load(&w->server->serving)
               ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
               : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

static void send_status(struct nk__health_watch *w)
{
    Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    int status = status_of(w);

    if (status == w->sent)
        return;
    w->sent = status;
    reply.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    /* Only a watcher that reads nothing fills its queue, and that one needs no news. */
    nk_call_send_pb(w->call, &reply.base, NULL);
}

void nk__health_notify(void *server)
{
    nk_server *s = server;
    struct nk__health_watch *w;

    LIST_FOREACH(w, &s->watches, link)
    {
        send_status(w);
    }
}

static void fail(nk_call *c, int code, const char *reason, const char *text)
{
    struct nk_error e = { 0 };

    nk_fail(&e, code, reason, "%s", text);
    nk_call_finish(c, &e);
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__health_watch *w = user;
    Grpc__Health__V1__HealthCheckRequest *request = NULL;

    if (w->has_request) {
        fail(c, NK_E_INVALID, "bad_request", "one request is expected");
        return;
    }
    w->has_request = true;
    if (msg.size <= REQUEST_BYTES_MAX)
        request = grpc__health__v1__health_check_request__unpack(NULL, msg.size, msg.data);
    if (!request) {
        fail(c, NK_E_INVALID, "bad_request", "this is not a HealthCheckRequest");
        return;
    }
    snprintf(w->service, sizeof w->service, "%s", request->service);
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
    if (!w->is_watch &&
        status_of(w) == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN) {
        struct nk_error e = { 0 };

        nk_fail(&e, NK_E_NOT_FOUND, "unknown_service", "this server has no service %s", w->service);
        nk_call_finish(c, &e);
        return;
    }
    send_status(w);
    if (!w->is_watch) {
        nk_call_finish(c, NULL);
        return;
    }
    LIST_INSERT_HEAD(&w->server->watches, w, link);
    w->listed = true;
}

static void on_half_closed(nk_call *c, void *user)
{
    struct nk__health_watch *w = user;

    if (!w->has_request)
        fail(c, NK_E_INVALID, "bad_request", "a request is expected");
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct nk__health_watch *w = user;

    (void)c;
    (void)status;
    if (w->listed)
        LIST_REMOVE(w, link);
    free(w);
}

static void open_call(nk_call *c, nk_server *s, bool is_watch)
{
    static const struct nk_call_handlers handlers = { on_message, on_half_closed, on_end };
    struct nk__health_watch *w = nk__alloc(1, sizeof *w);

    w->server = s;
    w->call = c;
    w->is_watch = is_watch;
    w->sent = -1;
    nk_call_accept(c, &handlers, w);
}

static void open_check(nk_call *c, void *server)
{
    open_call(c, server, false);
}

static void open_watch(nk_call *c, void *server)
{
    open_call(c, server, true);
}

const struct nk_method nk__health_methods[] = {
    { "/grpc.health.v1.Health/Check", open_check, 0 },
    { "/grpc.health.v1.Health/Watch", open_watch, 0 },
};
const int nk__n_health_methods = sizeof nk__health_methods / sizeof nk__health_methods[0];
