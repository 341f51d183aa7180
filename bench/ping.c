#include "bench/ping.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/process.h"
#include "bench/stats.h"
#include "bench/system.h"
#include "rpc/rpc.h"

enum {
    READY_MS_MAX = 300000,
    RUN_MS_MAX = 600000,
    ROUNDS_FIRST = 200,    /* for warming up */
    READ_MS = 8,           /* of the cold rally: about a stage's computing */
    READ_BYTES = 64 << 20, /* more than any cache beside it */
    READ_BYTE = 0,         /* of a message: whether it asks the other side to read, too */
    TOKEN_BYTES = 48,      /* an InferenceReply with a Token in it */
    STEP_BYTES = 48,       /* what an InferenceRequest holds besides the row */
};
#define METHOD "/nakshatra.bench.Ping/Ping"

/* Reads memory for READ_MS, as a stage reads its weights: afterwards nothing of what sends and
 * receives messages is in a cache, be it code, data or page tables. Returns the ns that it took, 0
 * when there is no memory. */
static uint64_t read_memory(void)
{
    static uint64_t *data; /* kept for the next time; only one thread comes here */
    uint64_t begin = nk_now_ns(), sum = 0;
    size_t n = READ_BYTES / sizeof *data, at = 0;

    if (!data) {
        data = malloc(READ_BYTES);
        if (!data)
            return 0;
        memset(data, 1, READ_BYTES);
    }
    while (nk_now_ns() - begin < READ_MS * 1000000ull) {
        for (size_t i = 0; i < 4096; i++)
            sum += data[at + i];
        at = (at + 4096) % n;
    }
    /* So that the reading is not left out: the sum is written, and changes nothing. */
    data[0] = sum ? data[0] : sum;
    return nk_now_ns() - begin;
}

/* ---- the other side ---- */

static void echo_message(nk_call *c, void *user, struct nk_bytes msg)
{
    char token[TOKEN_BYTES] = { 0 };
    uint64_t read_ns = 0;

    (void)user;
    if (msg.size > READ_BYTE && msg.data[READ_BYTE])
        read_ns = read_memory();
    memcpy(token, &read_ns, sizeof read_ns);
    nk_call_send(c, token, sizeof token, NULL);
}

static void echo_half_closed(nk_call *c, void *user)
{
    (void)user;
    nk_call_finish(c, NULL);
}

static void echo_end(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c, (void)user, (void)status;
}

static void echo_open(nk_call *c, void *user)
{
    static const struct nk_call_handlers handlers = { echo_message, echo_half_closed, echo_end };

    nk_call_accept(c, &handlers, user);
}

int nk_ping_serve(void (*ready)(int port, void *arg), void *arg, struct nk_error *err)
{
    static const struct nk_method methods[] = { { METHOD, echo_open, 0 } };
    struct nk_server_opts opts = { .listen = "127.0.0.1:0", .methods = methods, .n_methods = 1 };
    nk_server *server;
    nk_net *net;
    int rc = nk_net_start(&net, nk_clock_system(), err);

    if (rc)
        return rc;
    rc = nk_server_start(&server, net, &opts, err);
    if (rc) {
        nk_net_stop(net);
        return rc;
    }
    ready(nk_server_port(server), arg);
    for (;;)
        pause(); /* until a signal ends the process */
}

/* ---- this side: a system ---- */

struct nk_system {
    struct nk_system_opts opts;
    struct nk_process echo;
    char address[64];
    nk_net *net;
    nk_channel *channel;
    bool cold;
};

struct rally { /* the net thread's until `ended` */
    nk_call *call;
    bool cold; /* both sides read memory before they send */
    char *data;
    size_t size;
    double *us;
    int n, n_wanted; /* the first ROUNDS_FIRST are not kept */
    uint64_t sent_ns;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool ended;
    int rc;
    struct nk_error err;
};

static void serve(struct rally *r)
{
    if (r->cold)
        read_memory();
    r->sent_ns = nk_now_ns();
    nk_call_send(r->call, r->data, r->size, NULL);
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct rally *r = user;
    uint64_t now = nk_now_ns(), read_ns = 0;

    if (msg.size >= sizeof read_ns)
        memcpy(&read_ns, msg.data, sizeof read_ns);
    if (r->n >= ROUNDS_FIRST)
        r->us[r->n - ROUNDS_FIRST] = (double)(now - r->sent_ns - read_ns) / 1e3;
    if (++r->n == r->n_wanted) {
        nk_call_send_done(c);
        return;
    }
    r->call = c;
    serve(r);
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct rally *r = user;

    (void)c;
    pthread_mutex_lock(&r->mutex);
    r->ended = true;
    if (status) {
        r->rc = status->code;
        r->err = *status;
    }
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->mutex);
}

static int play(nk_system *s, struct rally *r, struct nk_error *err)
{
    static const struct nk_call_handlers handlers = { on_message, NULL, on_end };
    nk_call *c;
    int rc;

    pthread_mutex_lock(&r->mutex);
    rc = nk_call_start(&c, s->channel, METHOD, RUN_MS_MAX, &handlers, r, err);
    if (!rc) {
        r->sent_ns = nk_now_ns();
        nk_call_send(c, r->data, r->size, NULL);
        while (!r->ended) /* comes for certain: the call has a deadline */
            pthread_cond_wait(&r->changed, &r->mutex);
    }
    pthread_mutex_unlock(&r->mutex);
    if (!rc && r->rc) {
        *err = r->err;
        rc = r->rc;
    }
    if (!rc && r->n < r->n_wanted)
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run", "%d of %d round trips came back", r->n,
                     r->n_wanted);
    return rc;
}

static int hop(nk_system *s, int n_predict, double us[4], struct nk_error *err)
{
    struct rally r = { .cold = s->cold,
                       .size = (size_t)s->opts.n_embd * 4 + STEP_BYTES,
                       .n_wanted = ROUNDS_FIRST + (s->cold ? n_predict : 10 * n_predict) };
    size_t n = (size_t)(r.n_wanted - ROUNDS_FIRST);
    int rc;

    r.data = calloc(1, r.size);
    if (r.data)
        r.data[READ_BYTE] = s->cold;
    r.us = calloc(n, sizeof *r.us);
    pthread_mutex_init(&r.mutex, NULL);
    pthread_cond_init(&r.changed, NULL);
    rc = r.data && r.us ? play(s, &r, err) : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc) {
        us[0] = nk_median(r.us, n); /* sorts them */
        us[1] = nk_percentile(r.us, n, 0.99);
        us[2] = us[3] = NAN;
    }
    pthread_cond_destroy(&r.changed);
    pthread_mutex_destroy(&r.mutex);
    free(r.us);
    free(r.data);
    return rc;
}

static void stop(nk_system *s)
{
    if (!s)
        return;
    if (s->channel)
        nk_channel_close(s->channel);
    if (s->net)
        nk_net_stop(s->net);
    nk_process_stop(&s->echo, 2000);
    free(s);
}

static int start(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    const char *argv[] = { opts->self, "echo", NULL };
    struct nk_process_opts process = { .argv = argv, .capture_out = true };
    nk_system *s = calloc(1, sizeof *s);
    char line[64];
    int port, rc;

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->opts = *opts;
    s->echo = (struct nk_process)NK_PROCESS_INIT;
    rc = nk_process_start(&s->echo, &process, err);
    if (!rc)
        rc = nk_process_read_line(&s->echo, line, sizeof line, READY_MS_MAX, err);
    if (!rc && sscanf(line, "ready %d", &port) != 1)
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run",
                     "nakshatra-bench echo said '%s' instead of 'ready PORT'", line);
    if (!rc) {
        snprintf(s->address, sizeof s->address, "127.0.0.1:%d", port);
        rc = nk_net_start(&s->net, nk_clock_system(), err);
    }
    if (!rc)
        rc = nk_channel_open(&s->channel, s->net, s->address, NULL, err);
    if (rc)
        stop(s);
    else
        *out = s;
    return rc;
}

static int start_cold(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    int rc = start(out, opts, err);

    if (!rc)
        (*out)->cold = true;
    return rc;
}

const struct nk_system_ops nk_system_cold = {
    .name = "cold",
    .start = start_cold,
    .stop = stop,
    .hop = hop,
};
const struct nk_system_ops nk_system_ping = {
    .name = "ping",
    .start = start,
    .stop = stop,
    .hop = hop,
};
