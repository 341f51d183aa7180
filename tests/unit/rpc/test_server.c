/* How a server stops, in a time that the test moves. */
#include "rpc_test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct stopping {
    nk_server *server;
    uint32_t grace_ms;
};

static void *stop(void *arg)
{
    struct stopping *s = arg;

    nk_server_stop(s->server, s->grace_ms);
    return NULL;
}

static void test_server__its_calls_have_exactly_the_grace_and_are_told_then(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f), *watch = fixture_record(f);
    struct stopping s = { f->server, 1000 };
    pthread_t thread;

    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    echo(r);
    assert_int_equal(record_start(watch, f->channel, "/grpc.health.v1.Health/Watch", 0), 0);
    nk_call_send(watch->call, "", 0, NULL);
    assert_true(record_wait(watch, &watch->n_messages, 1)); /* SERVING */
    f->server = NULL;
    assert_int_equal(pthread_create(&thread, NULL, stop, &s), 0);
    assert_ended(watch, NK_E_UNAVAILABLE, "shutting_down"); /* it has begun */
    assert_int_equal(watch->n_messages, 2);                 /* NOT_SERVING */
    settle(f->net);
    virtual_clock_advance_ms(&f->clock, 999);
    settle(f->net);
    echo(r); /* it lives */
    virtual_clock_advance_ms(&f->clock, 1);
    assert_ended(r, NK_E_UNAVAILABLE, "shutting_down");
    pthread_join(thread, NULL);
}

static void test_server__whose_last_call_ends_within_the_grace_waits_for_no_more(void **state)
{
    struct fixture *f = *state;
    struct record *r = fixture_record(f), *watch = fixture_record(f);
    struct stopping s = { f->server, 1000 };
    pthread_t thread;

    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    echo(r);
    assert_int_equal(record_start(watch, f->channel, "/grpc.health.v1.Health/Watch", 0), 0);
    nk_call_send(watch->call, "", 0, NULL);
    assert_true(record_wait(watch, &watch->n_messages, 1));
    f->server = NULL;
    assert_int_equal(pthread_create(&thread, NULL, stop, &s), 0);
    assert_ended(watch, NK_E_UNAVAILABLE, "shutting_down");
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
    pthread_join(thread, NULL); /* though the time stands still */
}

static void begin_stop(void *arg)
{
    struct fixture *f = arg;

    f->server->grace_ms = 0;
    nk__server_begin_stop(f->server);
}

struct state_of {
    nk_server *server;
    bool cut, shut;
};

static void look(void *arg)
{
    struct state_of *s = arg;

    s->cut = s->server->all_cancelled;
    s->shut = s->server->shut;
}

/* A client that knows HTTP/2's first bytes and answers nothing would hold up a stop for as long as
 * it likes. */
static void test_server__cuts_a_connection_that_does_not_close_when_its_time_is_over(void **state)
{
    static const char hello[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";
    struct fixture *f = *state;
    struct sockaddr_in to = { .sin_family = AF_INET };
    struct timeval patience = { .tv_sec = PATIENCE_MS / 1000 };
    struct state_of s = { .server = f->server };
    char reply[1000];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    ssize_t n;

    to.sin_port = htons((uint16_t)nk_server_port(f->server));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    assert_true(recv(fd, reply, sizeof reply, 0) > 0); /* its settings */
    run_on(f->net, begin_stop, f);
    virtual_clock_advance_ms(&f->clock, NK__LINGER_MS - 1);
    settle(f->net);
    run_on(f->net, look, &s);
    assert_false(s.cut);
    virtual_clock_advance_ms(&f->clock, 1);
    settle(f->net);
    run_on(f->net, look, &s);
    assert_true(s.cut || s.shut);
    do
        n = recv(fd, reply, sizeof reply, 0);
    while (n > 0);
    assert_true(n == 0 || errno == ECONNRESET);
    close(fd);
    nk_server_stop(f->server, 0);
    f->server = NULL;
}

struct held_stop {
    nk_server *server;
    pthread_t thread;
    _Atomic bool returned, early;
};

static void *stop_and_say(void *arg)
{
    struct held_stop *h = arg;

    nk_server_stop(h->server, 0);
    atomic_store(&h->returned, true);
    return NULL;
}

/* Holds the net thread, so that what another thread posts meanwhile waits. A pause that is too
 * short for a slow machine sees nothing; it never fails for that. */
static void hold(void *arg)
{
    struct held_stop *h = arg;

    pthread_create(&h->thread, NULL, stop_and_say, h);
    for (int i = 0; i < 100 && !atomic_load(&h->returned); i++)
        usleep(1000);
    atomic_store(&h->early, atomic_load(&h->returned));
}

static bool is_gone(struct fixture *f)
{
    bool gone;

    pthread_mutex_lock(&f->net->mu);
    gone = f->server->gone;
    pthread_mutex_unlock(&f->net->mu);
    return gone;
}

/* A server that has stopped already (its net began it) is freed by its owner: not before the net
 * thread has done what was posted with it. */
static void test_server__that_is_gone_is_freed_after_what_was_posted_with_it(void **state)
{
    struct fixture *f = *state;
    struct held_stop h = { .server = f->server };

    run_on(f->net, begin_stop, f);
    virtual_clock_advance_ms(&f->clock, NK__LINGER_MS);
    while (!is_gone(f))
        settle(f->net);
    run_on(f->net, hold, &h);
    pthread_join(h.thread, NULL);
    f->server = NULL;
    assert_false(atomic_load(&h.early));
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_server__its_calls_have_exactly_the_grace_and_are_told_then),
        T(test_server__whose_last_call_ends_within_the_grace_waits_for_no_more),
        T(test_server__cuts_a_connection_that_does_not_close_when_its_time_is_over),
        T(test_server__that_is_gone_is_freed_after_what_was_posted_with_it),
    };

    return cmocka_run_group_tests_name("server", tests, NULL, NULL);
}
