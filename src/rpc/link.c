#include "rpc/link.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/rpc_int.h"

enum {
    REQUEST_MS = 10000,
    MESSAGE_BYTES = 256 << 10,
    FLOW_BYTES = 8 << 20, /* that is asked for: a second at 64 Mbit/s */
};

/* ---- server ---- */

struct echo {
    nk_call *call;
    nk_timer *timer;
};

static void echo_overdue(void *arg)
{
    struct echo *e = arg;
    struct nk_error err;

    e->timer = NULL;
    nk_fail(&err, NK_E_DEADLINE, "no_request", "nothing to echo came for %d ms", REQUEST_MS);
    nk_call_finish(e->call, &err);
}

static void echo_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk_error err;

    (void)user;
    if (msg.size > NK_LINK_ECHO_BYTES_MAX) {
        nk_fail(&err, NK_E_INVALID, "bad_message", "%zu bytes to echo; at most %d are", msg.size,
                NK_LINK_ECHO_BYTES_MAX);
        nk_call_finish(c, &err);
    } else if (nk_call_send(c, msg.data, msg.size, &err)) {
        nk_call_finish(c, &err);
    }
}

static void echo_half_closed(nk_call *c, void *user)
{
    (void)user;
    nk_call_finish(c, NULL);
}

static void echo_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct echo *e = user;

    (void)c, (void)status;
    nk_timer_cancel(e->timer);
    free(e);
}

void nk_link_echo(nk_call *c, nk_net *net)
{
    static const struct nk_call_handlers handlers = { .message = echo_message,
                                                      .half_closed = echo_half_closed,
                                                      .end = echo_end };
    struct echo *e = calloc(1, sizeof *e);
    struct nk_error err;

    if (!e) {
        nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory for a call");
        nk_call_finish(c, &err);
        return;
    }
    e->call = c;
    e->timer = nk_timer_start(net, REQUEST_MS, echo_overdue, e); /* of all of it */
    nk_call_accept(c, &handlers, e);
}

struct flow {
    nk_call *call;
    nk_timer *timer;
    int *flows;
};

static void flow_overdue(void *arg)
{
    struct flow *f = arg;
    struct nk_error err;

    f->timer = NULL;
    nk_fail(&err, NK_E_DEADLINE, "too_slow", "the bytes were not taken within %d ms", REQUEST_MS);
    nk_call_finish(f->call, &err);
    nk_call_cancel(f->call); /* what is queued goes with it */
}

static void flow_message(nk_call *c, void *user, struct nk_bytes msg)
{
    static const uint8_t nothing[MESSAGE_BYTES];
    struct nk_error err;
    uint32_t n = 0;

    (void)user;
    for (int i = 0; i < 4 && msg.size == 4; i++)
        n |= (uint32_t)msg.data[i] << (8 * i);
    if (n < 1 || n > NK_LINK_FLOW_BYTES_MAX) {
        nk_fail(&err, NK_E_INVALID, "bad_message",
                "a flow is asked for by a number of bytes from 1 to %d", NK_LINK_FLOW_BYTES_MAX);
        nk_call_finish(c, &err);
        return;
    }
    for (uint32_t sent = 0; sent < n; sent += MESSAGE_BYTES)
        if (nk_call_send(c, nothing, n - sent < MESSAGE_BYTES ? n - sent : MESSAGE_BYTES, &err)) {
            nk_call_finish(c, &err);
            return;
        }
    nk_call_finish(c, NULL);
}

static void flow_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct flow *f = user;

    (void)c, (void)status;
    nk_timer_cancel(f->timer);
    --*f->flows;
    free(f);
}

static void flow_half_closed(nk_call *c, void *user)
{
    (void)c, (void)user; /* the client has nothing more to say while it listens */
}

void nk_link_flow(nk_call *c, nk_net *net, int *flows)
{
    static const struct nk_call_handlers handlers = { .message = flow_message,
                                                      .half_closed = flow_half_closed,
                                                      .end = flow_end };
    struct flow *f = *flows < NK_LINK_FLOWS_MAX ? calloc(1, sizeof *f) : NULL;
    struct nk_error err;

    if (!f) {
        nk_fail(&err, NK_E_EXHAUSTED, "busy", "the way to here is being measured by %d others",
                *flows);
        nk_call_finish(c, &err);
        return;
    }
    f->call = c;
    f->flows = flows;
    ++*flows;
    f->timer = nk_timer_start(net, REQUEST_MS, flow_overdue, f);
    nk_call_accept(c, &handlers, f);
}

/* ---- client ---- */

struct measuring {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool ended;
    struct nk_clock *clock;
    struct nk_error *err;
    int rc;
    /* Echo: when each was sent, and how long it took. */
    int n;
    uint64_t sent_ns;
    double ms[NK_LINK_ECHOES];
    /* Flow. */
    uint64_t first_ns, last_ns, bytes, first_bytes;
};

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct measuring *m = user;

    (void)c;
    pthread_mutex_lock(&m->mutex);
    if (status) {
        *m->err = *status;
        m->rc = status->code;
    }
    m->ended = true;
    pthread_cond_signal(&m->cond);
    pthread_mutex_unlock(&m->mutex);
}

static void on_echo(nk_call *c, void *user, struct nk_bytes msg)
{
    struct measuring *m = user;
    struct nk_error err;

    (void)msg;
    if (m->n < NK_LINK_ECHOES)
        m->ms[m->n++] = (double)(nk_clock_now_ns(m->clock) - m->sent_ns) / 1e6;
    if (m->n == NK_LINK_ECHOES) {
        nk_call_send_done(c);
        return;
    }
    m->sent_ns = nk_clock_now_ns(m->clock);
    if (nk_call_send(c, "echo", 4, &err))
        nk_call_cancel(c);
}

static void on_flow(nk_call *c, void *user, struct nk_bytes msg)
{
    struct measuring *m = user;

    (void)c;
    m->last_ns = nk_clock_now_ns(m->clock);
    if (!m->first_ns) {
        m->first_ns = m->last_ns;
        m->first_bytes = msg.size;
    }
    m->bytes += msg.size;
}

/* One call to its end. first: what is sent at first. */
static int call(struct measuring *m, nk_channel *ch, const char *path, uint32_t timeout_ms,
                void (*message)(nk_call *c, void *user, struct nk_bytes msg), const void *first,
                size_t size, bool done, struct nk_error *err)
{
    const struct nk_call_handlers handlers = { .message = message, .end = on_end };
    struct nk_error refused;
    nk_call *c;
    int rc;

    m->err = err;
    m->rc = 0;
    m->ended = false;
    pthread_mutex_lock(&m->mutex); /* on_end waits: the handle is good until then */
    m->sent_ns = nk_clock_now_ns(m->clock);
    rc = nk_call_start(&c, ch, path, timeout_ms, &handlers, m, err);
    if (!rc) {
        if (nk_call_send(c, first, size, &refused))
            nk_call_cancel(c);
        else if (done)
            nk_call_send_done(c);
        while (!m->ended)
            pthread_cond_wait(&m->cond, &m->mutex);
        rc = m->rc;
    }
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int nk_link_measure(struct nk_link *out, nk_net *net, const char *address,
                    const struct nk_credentials *credentials, uint32_t timeout_ms,
                    struct nk_error *err)
{
    static const uint8_t ask[4] = { FLOW_BYTES & 0xff, FLOW_BYTES >> 8 & 0xff,
                                    FLOW_BYTES >> 16 & 0xff, FLOW_BYTES >> 24 };
    struct measuring m = { .clock = net->clock };
    nk_channel *ch;
    int rc = nk_channel_open(&ch, net, address, credentials, err);

    *out = (struct nk_link){ 0 };
    if (rc)
        return rc;
    pthread_mutex_init(&m.mutex, NULL);
    pthread_cond_init(&m.cond, NULL);
    rc = call(&m, ch, NK_LINK_ECHO, timeout_ms / 2, on_echo, "echo", 4, false, err);
    if (!rc && m.n != NK_LINK_ECHOES)
        rc =
            nk_fail(err, NK_E_INTERNAL, "bad_message", "%d of %d echoes came", m.n, NK_LINK_ECHOES);
    if (!rc) {
        /* The first one has made the connection. */
        qsort(m.ms + 1, NK_LINK_ECHOES - 1, sizeof m.ms[0], by_value);
        out->rtt_ms = m.ms[NK_LINK_ECHOES / 2];
        rc = call(&m, ch, NK_LINK_FLOW, timeout_ms / 2, on_flow, ask, sizeof ask, true, err);
    }
    if (!rc && m.last_ns > m.first_ns)
        out->bytes_per_s =
            (double)(m.bytes - m.first_bytes) / ((double)(m.last_ns - m.first_ns) / 1e9);
    nk_channel_close(ch);
    pthread_cond_destroy(&m.cond);
    pthread_mutex_destroy(&m.mutex);
    return rc;
}
