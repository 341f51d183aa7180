#include "rpc/unary.h"

#include <stdlib.h>

struct unary {
    nk_call *call;
    void (*handle)(void *user, nk_call *c, struct nk_bytes msg);
    void *user;
    uint32_t deadline_ms;
    nk_timer *timer; /* until it is handled */
    bool handled;
};

static void overdue(void *arg)
{
    struct unary *u = arg;
    struct nk_error err;

    u->timer = NULL;
    u->handled = true;
    nk_fail(&err, NK_E_DEADLINE, "no_request", "no request came within %u ms", u->deadline_ms);
    nk_call_finish(u->call, &err);
}

/* Is this the first that comes of the call? */
static bool take(struct unary *u)
{
    bool first = !u->handled;

    u->handled = true;
    nk_timer_cancel(u->timer);
    u->timer = NULL;
    return first;
}

static void message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct unary *u = user;

    if (take(u))
        u->handle(u->user, c, msg);
}

static void half_closed(nk_call *c, void *user)
{
    struct unary *u = user;
    struct nk_error err;

    if (!take(u))
        return;
    nk_fail(&err, NK_E_INVALID, "bad_message", "the request is missing");
    nk_call_finish(c, &err);
}

static void end(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c, (void)status;
    take(user);
    free(user);
}

static const struct nk_call_handlers handlers = { .message = message,
                                                  .half_closed = half_closed,
                                                  .end = end };

void nk_unary_open(nk_call *c, nk_net *net, uint32_t deadline_ms,
                   void (*handle)(void *user, nk_call *c, struct nk_bytes msg), void *user)
{
    struct unary *u = calloc(1, sizeof *u);
    struct nk_error err;

    if (!u) {
        nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory for a call");
        nk_call_finish(c, &err);
        return;
    }
    u->call = c;
    u->handle = handle;
    u->user = user;
    u->deadline_ms = deadline_ms;
    u->timer = nk_timer_start(net, deadline_ms, overdue, u);
    nk_call_accept(c, &handlers, u);
}

void nk_unary_reply(nk_call *c, const ProtobufCMessage *msg)
{
    struct nk_error err;

    nk_call_finish(c, nk_call_send_pb(c, msg, &err) ? &err : NULL);
}
