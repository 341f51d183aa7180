/* For the tests of this layer: a server with small methods, and a client that writes down what its
 * handlers are told. */
#ifndef NK_TESTS_RPC_TEST_H
#define NK_TESTS_RPC_TEST_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc/proto.h"
#include "rpc/rpc_int.h"
#include "unit/settle.h"
#include "unit/virtual_clock.h"

enum { PATIENCE_MS = 240000 }; /* a test that waits so long, in real time, has failed */

/* ---- what a call's handlers were told ---- */

struct record {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    int n_opens, n_messages, n_half_closed, n_ends; /* opens: of the server's side */
    struct nk_buf last;                             /* the last message */
    size_t bytes;
    bool ok, after_end; /* something came after the end */
    struct nk_error status;
    enum nk_ending ending;
    nk_call *call; /* referenced */
    bool pause;    /* pause after each message */
    bool in_handler, nested;
};

static inline void record_init(struct record *r)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->mu, NULL);
    nk_cond_init(&r->changed);
    nk_buf_init(&r->last, 2 * (size_t)NK_RPC_MESSAGE_BYTES_MAX);
}

/* When nothing can call its handlers any more. */
static inline void record_release(struct record *r)
{
    nk_call_unref(r->call);
    nk_buf_release(&r->last);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->mu);
}

static inline void record_enter(struct record *r)
{
    pthread_mutex_lock(&r->mu);
    r->nested = r->nested || r->in_handler;
    r->after_end = r->after_end || r->n_ends > 0;
    r->in_handler = true;
}

static inline void record_leave(struct record *r)
{
    r->in_handler = false;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->mu);
}

static inline void record_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct record *r = user;

    record_enter(r);
    r->n_messages++;
    r->bytes += msg.size;
    nk_buf_reset(&r->last);
    nk_buf_add(&r->last, msg.data, msg.size, NULL);
    if (r->pause)
        nk_call_pause(c);
    record_leave(r);
}

static inline void record_half_closed(nk_call *c, void *user)
{
    struct record *r = user;

    (void)c;
    record_enter(r);
    r->n_half_closed++;
    record_leave(r);
}

static inline void record_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct record *r = user;

    record_enter(r);
    r->n_ends++;
    r->ending = nk_call_ending(c);
    r->ok = status == NULL;
    if (status)
        r->status = *status;
    record_leave(r);
}

static const struct nk_call_handlers record_handlers = { record_message, record_half_closed,
                                                         record_end };

/* Waits until *value >= at_least; false after PATIENCE_MS. */
static inline bool record_wait(struct record *r, const int *value, int at_least)
{
    struct nk_clock *clock = nk_clock_system();
    uint64_t until = nk_clock_now_ns(clock) + PATIENCE_MS * 1000000ull;
    bool ok;

    pthread_mutex_lock(&r->mu);
    while (*value < at_least && nk_clock_wait_until(clock, &r->changed, &r->mu, until))
        ;
    ok = *value >= at_least;
    pthread_mutex_unlock(&r->mu);
    return ok;
}

/* Starts a call with r as its record; r->call is referenced, and so may be used after the end. */
static inline int record_start(struct record *r, nk_channel *ch, const char *path,
                               uint32_t deadline_ms)
{
    nk_call *c;
    int rc;

    pthread_mutex_lock(&r->mu);
    rc = nk_call_start(&c, ch, path, deadline_ms, &record_handlers, r, &r->status);
    if (!rc)
        r->call = nk_call_ref(c);
    pthread_mutex_unlock(&r->mu);
    return rc;
}

/* A message there and back on a call to Echo. */
static inline void echo(struct record *r)
{
    int n = r->n_messages;

    assert_int_equal(nk_call_send(r->call, "echo", 4, NULL), 0);
    assert_true(record_wait(r, &r->n_messages, n + 1));
}

/* The end came, once and last, with this code and reason ("" and 0: OK). */
#define assert_ended(r, code_, reason_)                                                            \
    do {                                                                                           \
        assert_true(record_wait(r, &(r)->n_ends, 1));                                              \
        if ((r)->ok ? (code_) != 0                                                                 \
                    : (r)->status.code != (code_) || strcmp((r)->status.reason, reason_))          \
            fail_msg("ended with %d %s (%s), not %d %s", (r)->ok ? 0 : (r)->status.code,           \
                     (r)->ok ? "" : (r)->status.reason, (r)->ok ? "" : (r)->status.msg, code_,     \
                     reason_);                                                                     \
        assert_false((r)->after_end);                                                              \
        assert_false((r)->nested);                                                                 \
        assert_int_equal((r)->n_ends, 1);                                                          \
    } while (0)

/* ---- the server ---- */

enum { RECORDS_MAX = 4096 };

/* Everything that handlers touch is in here and not on a test's stack: a test that fails is left by
 * longjmp, and its calls end in the teardown. The nets' time stands still until a test moves it. */
struct fixture {
    struct virtual_clock clock;
    nk_net *net, *client_net; /* the same, unless a test wants two */
    nk_server *server;
    nk_channel *channel;
    char address[64];
    struct record *seen; /* of the next or last call to a method that records */
    struct record *records[RECORDS_MAX];
    int n_records;
    _Atomic int n_open; /* server calls whose end has not come */
    _Atomic int n_ends;
};

static inline struct record *fixture_record(struct fixture *f)
{
    struct record *r = malloc(sizeof *r);

    assert_non_null(r);
    assert_true(f->n_records < RECORDS_MAX);
    record_init(r);
    f->records[f->n_records++] = r;
    return r;
}

static inline void echo_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk_error e;

    (void)user;
    if (nk_call_send(c, msg.data, msg.size, &e))
        nk_call_finish(c, &e);
}

static inline void echo_half_closed(nk_call *c, void *user)
{
    (void)user;
    nk_call_finish(c, NULL);
}

static inline void count_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct fixture *f = user;

    (void)c;
    (void)status;
    atomic_fetch_sub(&f->n_open, 1);
    atomic_fetch_add(&f->n_ends, 1);
}

static inline void open_echo(nk_call *c, void *user)
{
    static const struct nk_call_handlers handlers = { echo_message, echo_half_closed, count_end };
    struct fixture *f = user;

    atomic_fetch_add(&f->n_open, 1);
    nk_call_accept(c, &handlers, f);
}

static inline void open_record(nk_call *c, void *user) /* answers nothing by itself */
{
    struct fixture *f = user;
    struct record *r = f->seen;

    pthread_mutex_lock(&r->mu);
    r->call = nk_call_ref(c);
    r->n_opens++;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->mu);
    nk_call_accept(c, &record_handlers, r);
}

static inline void open_refuse(nk_call *c, void *user)
{
    struct nk_error e;

    (void)user;
    nk_fail(&e, NK_E_EXHAUSTED, "kv_full", "no room for %d tokens, r\303\244ally", 17);
    nk_call_finish(c, &e);
}

static inline void open_nothing(nk_call *c, void *user)
{
    (void)c;
    (void)user;
}

static inline void open_paused(nk_call *c, void *user)
{
    open_record(c, user);
    nk_call_pause(c);
}

static const struct nk_method test_methods[] = {
    { "/t.T/Echo", open_echo, 0 },
    { "/t.T/Record", open_record, 0 },
    { "/t.T/Refuse", open_refuse, 0 },
    { "/t.T/Nothing", open_nothing, 0 },
    { "/t.T/Paused", open_paused, 0 },
    { "/t.T/Gateway", open_echo, NK_ROLES_GATEWAY },
    { "/t.T/Member", open_echo, NK_ROLES_MEMBER },
};

static inline struct nk_server_opts test_opts(struct fixture *f)
{
    return (struct nk_server_opts){
        .listen = "127.0.0.1:0",
        .methods = test_methods,
        .n_methods = sizeof test_methods / sizeof test_methods[0],
        .user = f,
        .descriptors = nk_proto_descriptors(),
    };
}

static inline void fixture_connect(struct fixture *f, const struct nk_credentials *credentials)
{
    struct nk_error e;

    snprintf(f->address, sizeof f->address, "127.0.0.1:%d", nk_server_port(f->server));
    if (nk_channel_open(&f->channel, f->client_net, f->address, credentials, &e))
        fail_msg("%s", e.msg);
}

static inline void fixture_start(struct fixture *f, const struct nk_server_opts *opts)
{
    struct nk_error e;

    if (nk_server_start(&f->server, f->net, opts, &e))
        fail_msg("%s", e.msg);
    fixture_connect(f, NULL);
}

/* A net, and no server yet. */
static inline int fixture_setup_empty(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f)
        return -1;
    virtual_clock_init(&f->clock);
    if (nk_net_start(&f->net, &f->clock.clock, NULL))
        return -1;
    f->client_net = f->net;
    f->seen = fixture_record(f);
    *state = f;
    return 0;
}

static inline int fixture_setup(void **state)
{
    struct nk_server_opts opts;

    if (fixture_setup_empty(state))
        return -1;
    opts = test_opts(*state);
    fixture_start(*state, &opts);
    return 0;
}

static inline int fixture_teardown(void **state)
{
    struct fixture *f = *state;

    nk_channel_close(f->channel);
    nk_server_stop(f->server, 0);
    if (f->client_net != f->net)
        nk_net_stop(f->client_net);
    nk_net_stop(f->net);
    for (int i = 0; i < f->n_records; i++) {
        record_release(f->records[i]);
        free(f->records[i]);
    }
    virtual_clock_release(&f->clock);
    free(f);
    return 0;
}

#endif
