#include "rpc_test.h"

static void test_call__echoes_messages_of_all_sizes_in_order(void **state)
{
    const size_t sizes[] = { 0, 1, 23, 24, 64, 16384, 65536, 1 << 20, 5 << 20 };
    struct fixture *f = *state;
    struct record *r = fixture_record(f);
    char *data = malloc(5 << 20);

    for (size_t i = 0; i < 5 << 20; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    for (int i = 0; i < (int)(sizeof sizes / sizeof sizes[0]); i++) {
        assert_int_equal(nk_call_send(r->call, data, sizes[i], NULL), 0);
        assert_true(record_wait(r, &r->n_messages, i + 1));
        assert_int_equal(r->last.size, sizes[i]);
        if (sizes[i])
            assert_memory_equal(r->last.data, data, sizes[i]);
    }
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    free(data);
}

static void test_call__a_message_of_the_greatest_size_passes_and_a_larger_is_refused(void **state)
{
    struct fixture *f = *state;
    struct nk_error e;
    struct record *r = fixture_record(f);
    char *data = calloc(1, (size_t)NK_RPC_MESSAGE_BYTES_MAX + 1);

    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    data[NK_RPC_MESSAGE_BYTES_MAX - 1] = 7;
    assert_int_equal(nk_call_send(r->call, data, (size_t)NK_RPC_MESSAGE_BYTES_MAX + 1, &e),
                     NK_E_EXHAUSTED);
    assert_string_equal(e.reason, "message_too_large");
    assert_int_equal(nk_call_send(r->call, data, NK_RPC_MESSAGE_BYTES_MAX, NULL), 0);
    assert_true(record_wait(r, &r->n_messages, 1));
    assert_int_equal(r->last.size, NK_RPC_MESSAGE_BYTES_MAX);
    assert_int_equal(r->last.data[NK_RPC_MESSAGE_BYTES_MAX - 1], 7);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    free(data);
}

static void test_call__packs_protobuf_messages(void **state)
{
    struct fixture *f = *state;
    Nakshatra__V1__Stage stage = NAKSHATRA__V1__STAGE__INIT, *back;
    struct record *r = fixture_record(f);

    stage.address = (char *)"10.0.0.3:5530";
    stage.layer_begin = 14;
    stage.layer_end = 28;
    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    assert_int_equal(nk_call_send_pb(r->call, &stage.base, NULL), 0);
    assert_true(record_wait(r, &r->n_messages, 1));
    back = nakshatra__v1__stage__unpack(NULL, r->last.size, (uint8_t *)r->last.data);
    assert_non_null(back);
    assert_string_equal(back->address, stage.address);
    assert_int_equal(back->layer_end, 28);
    nakshatra__v1__stage__free_unpacked(back, NULL);
    nk_call_cancel(r->call);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
}

static void test_call__a_status_travels_with_code_reason_and_sentence(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Refuse", 0), 0);
    assert_ended(r, NK_E_EXHAUSTED, "kv_full");
    assert_string_equal(r->status.msg, "no room for 17 tokens, r\303\244ally");
}

static void test_call__an_unknown_method_and_one_that_does_not_accept_are_answered(void **state)
{
    struct fixture *f = *state;
    struct record *a = fixture_record(f), *b = fixture_record(f);

    assert_int_equal(record_start(a, f->channel, "/t.T/Nonesuch", 0), 0);
    assert_int_equal(record_start(b, f->channel, "/t.T/Nothing", 0), 0);
    assert_ended(a, NK_E_UNIMPLEMENTED, "unknown_method");
    assert_non_null(strstr(a->status.msg, "/t.T/Nonesuch"));
    assert_ended(b, NK_E_INTERNAL, "not_accepted");
}

static void test_call__half_closing_tells_the_server_and_leaves_the_other_side_open(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    nk_call_send(r->call, "a", 1, NULL);
    nk_call_send(r->call, "b", 1, NULL);
    nk_call_send_done(r->call);
    assert_true(record_wait(f->seen, &f->seen->n_half_closed, 1));
    assert_int_equal(f->seen->n_messages, 2);
    assert_int_equal(nk_call_send(r->call, "c", 1, &r->status), NK_E_UNAVAILABLE);
    assert_string_equal(r->status.reason, "call_ended");
    for (int i = 0; i < 10; i++)
        assert_int_equal(nk_call_send(f->seen->call, "answer", 6, NULL), 0);
    nk_call_finish(f->seen->call, NULL);
    assert_int_equal(nk_call_send(f->seen->call, "late", 4, &r->status), NK_E_UNAVAILABLE);
    assert_string_equal(r->status.reason, "call_ended");
    assert_ended(r, 0, "");
    assert_int_equal(r->n_messages, 10); /* what was queued before the end came before it */
    assert_ended(f->seen, 0, "");
    assert_int_equal(f->seen->n_half_closed, 1);
}

static void test_call__finishing_twice_keeps_the_first_status(void **state)
{
    struct fixture *f = *state;
    struct nk_error first, second;
    struct record *r = fixture_record(f);

    nk_fail(&first, NK_E_PRECONDITION, "model_mismatch", "first");
    nk_fail(&second, NK_E_INTERNAL, "other", "second");
    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    nk_call_finish(f->seen->call, &first);
    nk_call_finish(f->seen->call, &second);
    assert_ended(r, NK_E_PRECONDITION, "model_mismatch");
    assert_ended(f->seen, NK_E_PRECONDITION, "model_mismatch");
    nk_call_finish(f->seen->call, NULL); /* after the end: nothing happens */
    nk_call_cancel(f->seen->call);
}

static void test_call__cancelling_on_the_client_ends_both_sides(void **state)
{
    struct fixture *f = *state;
    struct nk_error e;
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    nk_call_cancel(r->call);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(f->seen->n_half_closed, 0); /* it is no half-close */
    assert_int_equal(nk_call_send(f->seen->call, "x", 1, &e), NK_E_UNAVAILABLE);
    assert_string_equal(e.reason, "call_ended");
    assert_int_equal(nk_call_send(r->call, "x", 1, &e), NK_E_UNAVAILABLE);
    assert_string_equal(e.reason, "call_ended");
}

static void test_call__cancelling_on_the_server_ends_both_sides(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    nk_call_cancel(f->seen->call);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_ended(r, NK_E_CANCELLED, "cancelled");
}

/* ---- deadlines ---- */

static void count_timers(void *arg)
{
    struct fixture *f = arg;

    f->seen->bytes = f->client_net->n_timers;
}

static void assert_timers(struct fixture *f, size_t n)
{
    run_on(f->client_net, count_timers, f);
    assert_int_equal(f->seen->bytes, n);
}

static void test_call__a_deadline_ends_it_exactly_then_and_names_address_and_time(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f), *s = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 1000), 0);
    assert_int_equal(record_start(s, f->channel, "/t.T/Record", 1001), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    virtual_clock_advance_ms(&f->clock, 999);
    settle(f->net);
    echo(r); /* it lives */
    virtual_clock_advance_ms(&f->clock, 1);
    assert_ended(r, NK_E_DEADLINE, "deadline");
    assert_non_null(strstr(r->status.msg, f->address));
    assert_non_null(strstr(r->status.msg, "1000 ms"));
    assert_int_equal(nk_call_send(s->call, "x", 1, NULL), 0); /* it has a millisecond left */
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    virtual_clock_advance_ms(&f->clock, 1);
    assert_ended(s, NK_E_DEADLINE, "deadline");
    assert_non_null(strstr(s->status.msg, "1001 ms"));
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
}

static void test_call__one_that_has_ended_leaves_no_deadline(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f), *refused = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 1000), 0);
    echo(r);
    assert_timers(f, 1);
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    assert_int_equal(record_start(refused, f->channel, "/t.T/Refuse", 1000), 0);
    assert_ended(refused, NK_E_EXHAUSTED, "kv_full");
    assert_timers(f, 0);
    virtual_clock_advance_ms(&f->clock, 5000);
    settle(f->net);
    assert_int_equal(r->n_ends, 1);
    assert_true(r->ok);
}

/* Whether a message waits for the reader to go on. */
struct held {
    nk_call *call;
    bool yes;
};

static void look_at_held(void *arg)
{
    struct held *h = arg;

    h->yes = h->call->held != NULL;
}

static void wait_held(nk_net *net, nk_call *call)
{
    struct held h = { .call = call };

    while (!h.yes)
        run_on(net, look_at_held, &h);
}

static void pause_call(void *call)
{
    nk_call_pause(call);
}

static void resume_call(void *call)
{
    nk_call_resume(call);
}

/* A call that reads on both sides: each has had a message ("a"), and waits for the next. */
static struct record *start_reading(struct fixture *f, uint32_t deadline_ms)
{
    struct record *r = fixture_record(f);

    assert_int_equal(record_start(r, f->channel, "/t.T/Record", deadline_ms), 0);
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    nk_call_send(f->seen->call, "a", 1, NULL);
    assert_true(record_wait(r, &r->n_messages, 1));
    return r;
}

static void test_call__a_deadline_ends_a_paused_call_too(void **state)
{
    struct fixture *f = *state;
    struct record *r = start_reading(f, 50);

    run_on(f->net, pause_call, r->call);
    nk_call_send(f->seen->call, "x", 1, NULL);
    wait_held(f->net, r->call);
    virtual_clock_advance_ms(&f->clock, 49);
    settle(f->net);
    assert_int_equal(nk_call_send(r->call, "b", 1, NULL), 0);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 2));
    virtual_clock_advance_ms(&f->clock, 1);
    assert_ended(r, NK_E_DEADLINE, "deadline");
    assert_int_equal(r->n_messages, 1);
}

/* The server learns the client's deadline from gRPC, as what is left of it; from there on its own
 * clock tells. */
static void test_call__the_server_tells_a_deadline_that_passed_from_a_cancellation(void **state)
{
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct record *r = fixture_record(f), *late = fixture_record(f);

    assert_int_equal(nk_net_start(&f->client_net, nk_clock_system(), NULL), 0);
    fixture_start(f, &opts);
    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 3600000), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    nk_call_cancel(r->call);
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");

    f->seen = fixture_record(f);
    run_on(f->net, NULL, NULL); /* which reads it next */
    assert_int_equal(record_start(late, f->channel, "/t.T/Record", 3600000), 0);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    virtual_clock_advance_ms(&f->clock, 2 * 3600000); /* gRPC rounds up what it tells */
    nk_call_cancel(late->call);
    assert_ended(f->seen, NK_E_DEADLINE, "deadline");
}

/* The one in real time. */
static void test_call__a_deadline_on_the_systems_clock_ends_both_sides(void **state)
{
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct record *r = fixture_record(f);
    uint64_t begin_ns;

    assert_int_equal(nk_net_start(&f->client_net, nk_clock_system(), NULL), 0);
    fixture_start(f, &opts);
    begin_ns = nk_clock_now_ns(nk_clock_system());
    assert_int_equal(record_start(r, f->channel, "/t.T/Paused", 100), 0);
    assert_ended(r, NK_E_DEADLINE, "deadline");
    assert_true(nk_clock_now_ns(nk_clock_system()) - begin_ns >= 100000000);
    assert_non_null(strstr(r->status.msg, "100 ms"));
    /* On a slow machine the time is over before the call has come to the server. */
    nk_server_stop(f->server, 0);
    f->server = NULL;
    assert_int_equal(f->seen->n_ends, f->seen->n_opens);
}

/* ---- pausing ---- */

/* Whether anything waits to be sent on this call. */
static bool queued(nk_call *c)
{
    bool yes;

    pthread_mutex_lock(&c->mu);
    yes = c->out.n > 0;
    pthread_mutex_unlock(&c->mu);
    return yes;
}

static void test_call__pausing_stops_reading_and_the_sender_and_resuming_loses_nothing(void **state)
{
    enum { N = 400, SIZE = 100000 }; /* 40 MB: more than any window */
    struct fixture *f = *state;
    char *data = calloc(1, SIZE);
    struct record *r = fixture_record(f), *other = fixture_record(f);
    int got;

    assert_int_equal(record_start(other, f->channel, "/t.T/Echo", 0), 0);
    assert_int_equal(record_start(r, f->channel, "/t.T/Paused", 0), 0);
    assert_int_equal(nk_call_send(r->call, "", 0, NULL), 0);
    for (int i = 1; i < N; i++) {
        memcpy(data, &i, sizeof i);
        assert_int_equal(nk_call_send(r->call, data, SIZE, NULL), 0);
    }
    nk_call_send_done(r->call);
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    /* What comes back over the same connection came after the first message, which is small. */
    echo(other);
    pthread_mutex_lock(&f->seen->mu);
    assert_int_equal(f->seen->n_messages, 0);
    f->seen->pause = true; /* after each message from now on */
    pthread_mutex_unlock(&f->seen->mu);
    for (got = 0; got < 3; got++) {
        nk_net_post(f->net, resume_call, f->seen->call);
        assert_true(record_wait(f->seen, &f->seen->n_messages, got + 1));
        echo(other);
        assert_true(queued(r->call));
    }
    pthread_mutex_lock(&f->seen->mu);
    assert_int_equal(f->seen->n_messages, 3);
    assert_memory_equal(f->seen->last.data, (&(int){ 2 }), sizeof(int));
    f->seen->pause = false;
    pthread_mutex_unlock(&f->seen->mu);
    nk_net_post(f->net, resume_call, f->seen->call);
    assert_true(record_wait(f->seen, &f->seen->n_half_closed, 1));
    assert_int_equal(f->seen->n_messages, N);
    assert_memory_equal(f->seen->last.data, (&(int){ N - 1 }), sizeof(int));
    assert_false(queued(r->call));
    nk_call_finish(f->seen->call, NULL);
    assert_ended(r, 0, "");
    free(data);
}

static void test_call__a_message_that_was_being_read_when_paused_waits_for_resume(void **state)
{
    struct fixture *f = *state;
    struct record *r = start_reading(f, 0);

    /* On the client: two messages and the end wait. */
    run_on(f->net, pause_call, r->call);
    nk_call_send(f->seen->call, "x", 1, NULL);
    nk_call_send(f->seen->call, "y", 1, NULL);
    nk_call_finish(f->seen->call, NULL);
    wait_held(f->net, r->call);
    assert_ended(f->seen, 0, "");
    settle(f->net);
    pthread_mutex_lock(&r->mu);
    assert_int_equal(r->n_messages, 1);
    assert_int_equal(r->n_ends, 0);
    pthread_mutex_unlock(&r->mu);
    nk_net_post(f->net, resume_call, r->call);
    assert_ended(r, 0, "");
    assert_int_equal(r->n_messages, 3);
    assert_string_equal(r->last.data, "y");
}

static void test_call__cancelling_a_paused_call_ends_it_without_what_was_held(void **state)
{
    struct fixture *f = *state;
    struct record *r = start_reading(f, 0);

    run_on(f->net, pause_call, r->call);
    run_on(f->net, pause_call, f->seen->call);
    nk_call_send(f->seen->call, "x", 1, NULL);
    nk_call_send(r->call, "b", 1, NULL);
    wait_held(f->net, r->call);
    wait_held(f->net, f->seen->call);
    nk_call_cancel(r->call);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    assert_int_equal(r->n_messages, 1);
    assert_int_equal(f->seen->n_messages, 1);
}

static void test_call__a_send_queue_has_a_ceiling_in_messages_and_bytes(void **state)
{
    struct fixture *f = *state;
    struct nk_error e = { 0 };
    struct record *r = fixture_record(f);
    char *data = calloc(1, NK_RPC_MESSAGE_BYTES_MAX);
    int rc = 0, n;

    assert_int_equal(record_start(r, f->channel, "/t.T/Paused", 0), 0);
    nk_call_send(r->call, data, 16 << 20, NULL); /* more than the window of a paused reader */
    assert_true(record_wait(f->seen, &f->seen->n_opens, 1));
    for (n = 0; n < 100000 && !rc; n++)
        rc = nk_call_send(r->call, "", 0, &e);
    assert_int_equal(rc, NK_E_EXHAUSTED);
    assert_string_equal(e.reason, "send_queue_full");
    assert_in_range(n, 65536, 65538);
    nk_call_cancel(r->call);
    assert_ended(r, NK_E_CANCELLED, "cancelled");

    assert_ended(f->seen, NK_E_CANCELLED, "cancelled");
    r = fixture_record(f);
    f->seen = fixture_record(f);
    assert_int_equal(record_start(r, f->channel, "/t.T/Paused", 0), 0);
    for (n = 0, rc = 0; n < 10 && !rc; n++)
        rc = nk_call_send(r->call, data, NK_RPC_MESSAGE_BYTES_MAX, &e);
    assert_int_equal(rc, NK_E_EXHAUSTED);
    assert_string_equal(e.reason, "send_queue_full");
    assert_int_equal(n, 5);
    nk_call_cancel(r->call);
    assert_ended(r, NK_E_CANCELLED, "cancelled");
    free(data);
}

struct sender {
    nk_call *call;
    int id;
};

enum { SENDERS = 4, PER_SENDER = 2000 };

static void *send_many(void *arg)
{
    struct sender *s = arg;

    for (int i = 0; i < PER_SENDER; i++) {
        int message[2] = { s->id, i };

        assert_int_equal(nk_call_send(s->call, message, sizeof message, NULL), 0);
    }
    return NULL;
}

struct order {
    int next[SENDERS];
    _Atomic bool broken;
    struct record *r;
};

static void order_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct order *o = user;
    int message[2];

    memcpy(message, msg.data, sizeof message);
    if (msg.size != sizeof message || message[1] != o->next[message[0]]++)
        o->broken = true;
    record_message(c, o->r, msg);
}

static void order_end(nk_call *c, void *user, const struct nk_error *status)
{
    record_end(c, ((struct order *)user)->r, status);
}

static void test_call__several_threads_may_send_and_each_ones_messages_stay_in_order(void **state)
{
    static const struct nk_call_handlers handlers = { .message = order_message, .end = order_end };
    struct fixture *f = *state;
    static struct order o;
    struct sender senders[SENDERS];
    pthread_t threads[SENDERS];
    nk_call *c;

    o.r = fixture_record(f);
    pthread_mutex_lock(&o.r->mu);
    assert_int_equal(nk_call_start(&c, f->channel, "/t.T/Echo", 0, &handlers, &o, NULL), 0);
    o.r->call = nk_call_ref(c);
    pthread_mutex_unlock(&o.r->mu);
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){ o.r->call, i };
        pthread_create(&threads[i], NULL, send_many, &senders[i]);
    }
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    nk_call_send_done(o.r->call);
    assert_ended(o.r, 0, "");
    assert_int_equal(o.r->n_messages, SENDERS * PER_SENDER);
    assert_false(o.broken);
}

static void *send_until_ended(void *arg)
{
    struct nk_error e;
    int rc;

    while ((rc = nk_call_send(arg, "row", 3, &e)) != NK_E_UNAVAILABLE)
        if (rc) /* the queue is full: the others need the lock, too */
            nk_sleep_ms(1);
    assert_string_equal(e.reason, "call_ended");
    nk_call_unref(arg);
    return NULL;
}

/* What a compute thread does whose session is cancelled under it. */
static void test_call__ending_while_other_threads_send_is_safe(void **state)
{
    struct fixture *f = *state;

    for (int round = 0; round < 50; round++) {
        pthread_t threads[2];
        struct record *r = fixture_record(f);

        assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, send_until_ended, nk_call_ref(r->call));
        for (int i = 0; i < round * 20; i++) /* another moment each time */
            nk_call_send(r->call, "row", 3, NULL);
        nk_call_cancel(r->call);
        assert_ended(r, NK_E_CANCELLED, "cancelled");
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
    }
}

static void note_peer(void *arg)
{
    struct fixture *f = arg;

    snprintf((char *)f->seen->status.msg, sizeof f->seen->status.msg, "%s",
             nk_call_peer(f->seen->call));
    nk_call_finish(f->seen->call, &(struct nk_error){ .code = NK_E_ABORTED, .reason = "peer" });
}

static void test_call__knows_its_peer(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f);
    char peer[512];

    assert_int_equal(record_start(r, f->channel, "/t.T/Record", 0), 0);
    nk_call_send(r->call, "a", 1, NULL);
    assert_true(record_wait(f->seen, &f->seen->n_messages, 1));
    nk_net_post(f->net, note_peer, f);
    assert_ended(r, NK_E_ABORTED, "peer");
    memcpy(peer, f->seen->status.msg, sizeof peer);
    assert_int_equal(strncmp(peer, "ipv4:127.0.0.1:", 15) && peer[0], 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_call__echoes_messages_of_all_sizes_in_order),
        T(test_call__a_message_of_the_greatest_size_passes_and_a_larger_is_refused),
        T(test_call__packs_protobuf_messages),
        T(test_call__a_status_travels_with_code_reason_and_sentence),
        T(test_call__an_unknown_method_and_one_that_does_not_accept_are_answered),
        T(test_call__half_closing_tells_the_server_and_leaves_the_other_side_open),
        T(test_call__finishing_twice_keeps_the_first_status),
        T(test_call__cancelling_on_the_client_ends_both_sides),
        T(test_call__cancelling_on_the_server_ends_both_sides),
        T(test_call__a_deadline_ends_it_exactly_then_and_names_address_and_time),
        T(test_call__one_that_has_ended_leaves_no_deadline),
        T(test_call__a_deadline_ends_a_paused_call_too),
        cmocka_unit_test_setup_teardown(
            test_call__the_server_tells_a_deadline_that_passed_from_a_cancellation,
            fixture_setup_empty, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_call__a_deadline_on_the_systems_clock_ends_both_sides,
                                        fixture_setup_empty, fixture_teardown),
        T(test_call__pausing_stops_reading_and_the_sender_and_resuming_loses_nothing),
        T(test_call__a_message_that_was_being_read_when_paused_waits_for_resume),
        T(test_call__cancelling_a_paused_call_ends_it_without_what_was_held),
        T(test_call__a_send_queue_has_a_ceiling_in_messages_and_bytes),
        T(test_call__several_threads_may_send_and_each_ones_messages_stay_in_order),
        T(test_call__ending_while_other_threads_send_is_safe),
        T(test_call__knows_its_peer),
    };

    return cmocka_run_group_tests_name("call", tests, NULL, NULL);
}
