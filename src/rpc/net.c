#include "rpc/rpc_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/log.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/thread.h"

static _Thread_local const nk_net *current_net;

void *nk__alloc(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (!p) {
        fprintf(stderr, "nakshatra: no memory for %zu bytes\n", n * size);
        abort();
    }
    return p;
}

gpr_timespec nk__deadline(const nk_net *net, uint64_t at_ns)
{
    if (!nk_clock_runs(net->clock)) /* clock_moved wakes */
        return at_ns <= nk_clock_now_ns(net->clock) ? gpr_inf_past(GPR_CLOCK_MONOTONIC)
                                                    : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return (gpr_timespec){ (int64_t)(at_ns / 1000000000u), (int32_t)(at_ns % 1000000000u),
                           GPR_CLOCK_MONOTONIC };
}

/* ---- posting ---- */

static void inbox_add(struct nk__inbox *in, struct nk__posted item)
{
    if (in->n == in->capacity) {
        size_t capacity = in->capacity ? in->capacity * 2 : 64;
        struct nk__posted *items = nk__alloc(capacity, sizeof *items);

        if (in->n)
            memcpy(items, in->items, in->n * sizeof *items);
        free(in->items);
        in->items = items;
        in->capacity = capacity;
    }
    in->items[in->n++] = item;
}

/* net->mu held. True: net_kick must follow when it is released. */
static bool post_locked(nk_net *net, void (*fn)(void *arg), void *arg)
{
    bool kick = !net->kicked;

    inbox_add(&net->inbox, (struct nk__posted){ fn, arg });
    net->kicked = true;
    return kick;
}

static void net_kick(nk_net *net)
{
    grpc_call_error e;

    nk__op_started(&net->kick_op);
    pthread_mutex_lock(&net->kick_mu);
    e = grpc_call_start_batch(net->kick_call, NULL, 0, &net->kick_op, NULL);
    pthread_mutex_unlock(&net->kick_mu);
    NK_ASSERT(e == GRPC_CALL_OK);
}

void nk_net_post(nk_net *net, void (*fn)(void *arg), void *arg)
{
    bool kick;

    pthread_mutex_lock(&net->mu);
    kick = post_locked(net, fn, arg);
    pthread_mutex_unlock(&net->mu);
    if (kick)
        net_kick(net);
}

static void kicked(struct nk__op *op, bool ok)
{
    nk_net *net = nk__container(op, nk_net, kick_op);
    struct nk__inbox full;

    (void)ok;
    pthread_mutex_lock(&net->mu);
    full = net->inbox;
    net->inbox = net->running;
    net->inbox.n = 0;
    net->kicked = false;
    pthread_mutex_unlock(&net->mu);
    for (size_t i = 0; i < full.n; i++)
        full.items[i].fn(full.items[i].arg);
    net->running = full;
}

bool nk_net_is_current(const nk_net *net)
{
    return current_net == net;
}

/* ---- timers: a binary heap by time; timers that ran are used again ---- */

static bool earlier(const nk_timer *a, const nk_timer *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void heap_put(nk_net *net, size_t i, nk_timer *t)
{
    net->heap[i] = t;
    t->heap_idx = i;
}

static void heap_fix(nk_net *net, size_t i)
{
    nk_timer *t = net->heap[i];

    while (i > 0 && earlier(t, net->heap[(i - 1) / 2])) {
        heap_put(net, i, net->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * i + 1;

        if (child + 1 < net->n_timers && earlier(net->heap[child + 1], net->heap[child]))
            child++;
        if (child >= net->n_timers || !earlier(net->heap[child], t))
            break;
        heap_put(net, i, net->heap[child]);
        i = child;
    }
    heap_put(net, i, t);
}

static void timer_remove(nk_timer *t)
{
    nk_net *net = t->net;
    size_t i = t->heap_idx;

    NK_ASSERT(i < net->n_timers && net->heap[i] == t);
    net->n_timers--;
    if (i < net->n_timers) {
        heap_put(net, i, net->heap[net->n_timers]);
        heap_fix(net, i);
    }
    SLIST_INSERT_HEAD(&net->free_timers, t, link);
}

nk_timer *nk__timer_at(nk_net *net, uint64_t at_ns, void (*fn)(void *arg), void *arg)
{
    nk_timer *t = SLIST_FIRST(&net->free_timers);

    NK_ASSERT(nk_net_is_current(net));
    if (t)
        SLIST_REMOVE_HEAD(&net->free_timers, link);
    else
        t = nk__alloc(1, sizeof *t);
    if (net->n_timers == net->heap_capacity) {
        size_t capacity = net->heap_capacity ? net->heap_capacity * 2 : 16;
        nk_timer **heap = nk__alloc(capacity, sizeof *heap);

        if (net->n_timers)
            memcpy(heap, net->heap, net->n_timers * sizeof *heap);
        free(net->heap);
        net->heap = heap;
        net->heap_capacity = capacity;
    }
    *t = (nk_timer){
        .net = net, .at_ns = at_ns, .number = net->next_timer_number++, .fn = fn, .arg = arg
    };
    heap_put(net, net->n_timers++, t);
    heap_fix(net, t->heap_idx);
    return t;
}

nk_timer *nk_timer_start(nk_net *net, uint32_t ms, void (*fn)(void *arg), void *arg)
{
    return nk__timer_at(net, nk_clock_now_ns(net->clock) + (uint64_t)ms * 1000000u, fn, arg);
}

void nk_timer_cancel(nk_timer *t)
{
    if (!t)
        return;
    NK_ASSERT(nk_net_is_current(t->net));
    timer_remove(t);
}

static void run_timers(nk_net *net)
{
    uint64_t now = net->n_timers ? nk_clock_now_ns(net->clock) : 0;
    uint64_t end = net->next_timer_number;

    /* One that starts another with 0 ms gets it run in the next round, after what else happened. */
    while (net->n_timers && net->heap[0]->at_ns <= now && net->heap[0]->number < end) {
        nk_timer t = *net->heap[0];

        timer_remove(net->heap[0]);
        t.fn(t.arg);
    }
}

/* ---- the thread ---- */

static void nothing(void *arg)
{
    (void)arg;
}

void nk__net_call_gone(nk_net *net, nk_call *c)
{
    bool kick;

    pthread_mutex_lock(&net->mu);
    LIST_REMOVE(c, link);
    net->n_calls--;
    /* The net thread may be waiting for just this (check_end). */
    kick = net->stopping && post_locked(net, nothing, NULL);
    pthread_mutex_unlock(&net->mu);
    if (kick)
        net_kick(net);
}

/* Once the owner has asked for the end: when nothing is left, no event can come any more. */
static void check_end(nk_net *net)
{
    const nk_server *s;
    bool empty;

    if (!net->stop_begun || net->cq_shut)
        return;
    pthread_mutex_lock(&net->mu);
    empty = net->n_calls == 0 && net->inbox.n == 0 && !net->kicked;
    LIST_FOREACH(s, &net->servers, link)
    {
        empty = empty && s->gone;
    }
    pthread_mutex_unlock(&net->mu);
    if (empty) {
        net->cq_shut = true;
        grpc_completion_queue_shutdown(net->cq);
    }
}

static void *net_main(void *arg)
{
    nk_net *net = arg;

    current_net = net;
    nk_cpu_prefer_prompt();
    for (;;) {
        gpr_timespec until = net->n_timers ? nk__deadline(net, net->heap[0]->at_ns)
                                           : gpr_inf_future(GPR_CLOCK_MONOTONIC);
        grpc_event ev = grpc_completion_queue_next(net->cq, until, NULL);

        if (ev.type == GRPC_QUEUE_SHUTDOWN)
            break;
        if (ev.type == GRPC_OP_COMPLETE) {
            struct nk__op *op = ev.tag;

            nk__op_completed(op);
            op->done(op, ev.success != 0);
        }
        run_timers(net);
        check_end(net);
    }
    current_net = NULL;
    return NULL;
}

/* Any event brings the net thread to its timers. */
static void clock_moved(void *arg)
{
    nk_net_post(arg, nothing, NULL);
}

static void begin_stop(void *arg)
{
    nk_net *net = arg;
    nk_server *s;
    nk_call *c;

    net->stop_begun = true;
    /* Cancelling does not end a call at once: the list cannot change here but by other threads' new
     * calls, which `stopping` refuses. */
    pthread_mutex_lock(&net->mu);
    LIST_FOREACH(c, &net->calls, link)
    {
        nk_call_cancel(c);
    }
    pthread_mutex_unlock(&net->mu);
    for (;;) {
        pthread_mutex_lock(&net->mu);
        LIST_FOREACH(s, &net->servers, link)
        {
            if (!s->stopping)
                break;
        }
        pthread_mutex_unlock(&net->mu);
        if (!s)
            break;
        s->grace_ms = 0;
        nk__server_begin_stop(s);
    }
}

/* gRPC's own lines: what it calls errors is mostly the weather (a peer that went away), and our
 * statuses say it too. Where members are known by their IDs, every handshake is an "error", since
 * their certificates name no host. */
#ifdef NK_HAVE_GPR_LOG
static void gpr_line(gpr_log_func_args *args)
{
    static struct nk_log_limit limit;
    unsigned long n_suppressed = 0;
    char quoted[1024];

    if (strstr(args->message, "No match found for server name"))
        return;
    if (args->severity == GPR_LOG_SEVERITY_ERROR) {
        if (!nk_log_enabled(NK_LOG_RPC, NK_LOG_DEBUG) || !nk_log_allow(&limit, &n_suppressed))
            return;
        nk_log(NK_LOG_RPC, NK_LOG_DEBUG, "grpc=%s suppressed=%lu",
               nk_log_quote(quoted, sizeof quoted, args->message), n_suppressed);
    } else {
        nk_log(NK_LOG_RPC, NK_LOG_TRACE, "grpc=%s",
               nk_log_quote(quoted, sizeof quoted, args->message));
    }
}
#endif

static void release_grpc(nk_net *net)
{
    grpc_completion_queue_destroy(net->cq);
    grpc_resource_quota_unref(net->server_quota);
    grpc_resource_quota_unref(net->channel_quota);
    grpc_shutdown_blocking();
}

int nk_net_start(nk_net **out, struct nk_clock *clock, struct nk_error *err)
{
    nk_net *net = nk__alloc(1, sizeof *net);
    sigset_t old;
    grpc_slice method;
    grpc_event ev;
    int sys;

    *out = NULL;
    net->clock = clock;
    net->listener = (struct nk_clock_listener){ .moved = clock_moved, .arg = net };
    /* Names are looked up as every other program on this machine does it. */
    setenv("GRPC_DNS_RESOLVER", "native", 0);
#ifdef NK_HAVE_GPR_LOG
    gpr_set_log_function(gpr_line);
#endif
    nk_signals_hold(&old); /* gRPC starts threads of its own */
    grpc_init();
    atomic_init(&net->refs, 1);
    pthread_mutex_init(&net->mu, NULL);
    pthread_mutex_init(&net->kick_mu, NULL);
    pthread_cond_init(&net->changed, NULL);
    net->cq = grpc_completion_queue_create_for_next(NULL);
    net->server_quota = grpc_resource_quota_create("server");
    net->channel_quota = grpc_resource_quota_create("channel");
    grpc_resource_quota_resize(net->server_quota, NK_RPC_MEMORY_BYTES_MAX);
    grpc_resource_quota_resize(net->channel_quota, NK_RPC_MEMORY_BYTES_MAX);
    net->kick_op.done = kicked;
    net->kick_channel =
        grpc_lame_client_channel_create("kick", GRPC_STATUS_INTERNAL, "goes nowhere");
    method = grpc_slice_from_static_string("/kick");
    net->kick_call =
        grpc_channel_create_call(net->kick_channel, NULL, GRPC_PROPAGATE_DEFAULTS, net->cq, method,
                                 NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    sys = nk_thread_start(&net->thread, net_main, net);
    nk_signals_release(&old);
    if (sys) {
        grpc_call_unref(net->kick_call);
        grpc_channel_destroy(net->kick_channel);
        grpc_completion_queue_shutdown(net->cq);
        do
            ev = grpc_completion_queue_next(net->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        while (ev.type != GRPC_QUEUE_SHUTDOWN);
        release_grpc(net);
        nk__net_unref(net);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the network thread cannot be started: %s",
                       strerror(sys));
    }
    nk_clock_listen(clock, &net->listener);
    *out = net;
    return 0;
}

void nk_net_stop(nk_net *net)
{
    if (!net)
        return;
    NK_ASSERT(!nk_net_is_current(net));
    nk_clock_unlisten(net->clock, &net->listener);
    pthread_mutex_lock(&net->mu);
    net->stopping = true;
    pthread_mutex_unlock(&net->mu);
    nk_net_post(net, begin_stop, net);
    pthread_join(net->thread, NULL);

    while (!LIST_EMPTY(&net->channels)) {
        nk_channel *ch = LIST_FIRST(&net->channels);

        LIST_REMOVE(ch, link);
        nk__channel_unref(ch);
    }
    while (!LIST_EMPTY(&net->memberships)) {
        struct nk__membership *m = LIST_FIRST(&net->memberships);

        LIST_REMOVE(m, link);
        nk__membership_free(m);
    }
    while (!LIST_EMPTY(&net->servers)) {
        nk_server *s = LIST_FIRST(&net->servers);

        LIST_REMOVE(s, link);
        nk__server_free(s);
    }
    pthread_mutex_lock(&net->kick_mu); /* whoever kicked last is out of gRPC */
    grpc_call_unref(net->kick_call);
    pthread_mutex_unlock(&net->kick_mu);
    grpc_channel_destroy(net->kick_channel);
    release_grpc(net);
    while (net->n_timers)
        timer_remove(net->heap[0]);
    while (!SLIST_EMPTY(&net->free_timers)) {
        nk_timer *t = SLIST_FIRST(&net->free_timers);

        SLIST_REMOVE_HEAD(&net->free_timers, link);
        free(t);
    }
    free(net->heap);
    free(net->inbox.items);
    free(net->running.items);
    nk__net_unref(net);
}

void nk__net_unref(nk_net *net)
{
    if (atomic_fetch_sub(&net->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&net->mu);
    pthread_mutex_destroy(&net->kick_mu);
    pthread_cond_destroy(&net->changed);
    free(net);
}
