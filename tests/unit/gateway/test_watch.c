/* Connections are socket pairs. Time is the test's, and moves in steps in which the watch has its
 * turn: what moved it on is a connection of its own whose time is over (step). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "gateway/watch.h"
#include "unit/virtual_clock.h"

enum { TICK_MS = NK_WATCH_TICK_MS };

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_gone, n_half_closed, n_refs;
    void *request;
} seen = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static struct virtual_clock v;
static nk_watch *w;

struct connection {
    int client, server;
    nk_watched *watched;
};

static void note(int *n, int change, void *request)
{
    pthread_mutex_lock(&seen.mutex);
    *n += change;
    seen.request = request;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.mutex);
}

static int now_seen(const int *n)
{
    int value;

    pthread_mutex_lock(&seen.mutex);
    value = *n;
    pthread_mutex_unlock(&seen.mutex);
    return value;
}

static void *last_request(void)
{
    void *request;

    pthread_mutex_lock(&seen.mutex);
    request = seen.request;
    pthread_mutex_unlock(&seen.mutex);
    return request;
}

static void on_gone(void *request)
{
    note(&seen.n_gone, 1, request);
}

static void on_half_closed(void *request)
{
    note(&seen.n_half_closed, 1, request);
}

static void on_ref(void *request)
{
    note(&seen.n_refs, 1, request);
}

static void on_unref(void *request)
{
    note(&seen.n_refs, -1, request);
}

static void wait_for(const int *n, int value)
{
    pthread_mutex_lock(&seen.mutex);
    while (*n != value)
        pthread_cond_wait(&seen.changed, &seen.mutex);
    pthread_mutex_unlock(&seen.mutex);
}

static void begin(bool tls)
{
    static const struct nk_watch_handlers handlers = {
        .gone = on_gone, .half_closed = on_half_closed, .ref = on_ref, .unref = on_unref
    };
    struct nk_error err;

    virtual_clock_init(&v);
    seen.n_gone = seen.n_half_closed = seen.n_refs = 0;
    assert_int_equal(nk__watch_start(&w, &v.clock, &handlers, tls, &err), 0);
}

static void end(void)
{
    nk__watch_stop(w);
    assert_int_equal(now_seen(&seen.n_refs), 0);
    virtual_clock_release(&v);
}

static struct connection connect_for(uint32_t deadline_ms)
{
    struct connection c;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    c.client = fds[0];
    c.server = fds[1];
    c.watched = nk__watch_add(w, c.server, deadline_ms);
    assert_non_null(c.watched);
    return c;
}

static void disconnect(struct connection *c)
{
    nk__watch_drop(c->watched);
    close(c->client);
    close(c->server);
}

/* Moves time on, and waits until the watch has looked at all connections since: one whose deadline
 * is due then has come to its end. */
static void look_after(uint64_t ms, uint32_t marker_ms)
{
    struct connection marker = connect_for(marker_ms);
    char byte;

    virtual_clock_advance_ms(&v, ms);
    assert_int_equal(read(marker.client, &byte, 1), 0); /* its end */
    disconnect(&marker); /* takes the lock under which the watch looked at all of them */
}

/* In steps in which the watch has its usual turns. */
static void step(uint64_t ms)
{
    while (ms) {
        uint64_t part = ms < TICK_MS ? ms : TICK_MS;

        look_after(part, (uint32_t)part);
        ms -= part;
    }
}

/* The process stands still for so long: the watch believes that a tick has passed. */
static void pause_for(uint64_t ms)
{
    look_after(ms, TICK_MS);
}

static bool is_open(const struct connection *c)
{
    char byte;

    return recv(c->client, &byte, 1, MSG_DONTWAIT) < 0;
}

static void test_watch__a_silent_connection_is_ended_at_its_deadline_and_not_before(void **state)
{
    struct connection headers, idle, endless;

    (void)state;
    begin(false);
    headers = connect_for(20000);
    idle = connect_for(20000);
    endless = connect_for(20000);
    nk__watch_deadline(idle.watched, 120000, false);
    nk__watch_deadline(endless.watched, 0, false);
    step(19999);
    assert_true(is_open(&headers));
    step(1);
    assert_false(is_open(&headers));
    step(99999);
    assert_true(is_open(&idle));
    step(1);
    assert_false(is_open(&idle));
    assert_true(is_open(&endless));
    disconnect(&headers);
    disconnect(&idle);
    disconnect(&endless);
    end();
}

/* A new request's time counts from its beginning. */
static void test_watch__a_deadline_that_is_set_anew_counts_from_then(void **state)
{
    struct connection c;

    (void)state;
    begin(false);
    c = connect_for(1000);
    step(999);
    nk__watch_deadline(c.watched, 1000, false);
    step(999);
    assert_true(is_open(&c));
    step(1);
    assert_false(is_open(&c));
    disconnect(&c);
    end();
}

static void test_watch__a_slow_body_is_answered_with_408(void **state)
{
    struct connection c;
    char reply[1024];
    const char *body;
    ssize_t n;

    (void)state;
    begin(false);
    c = connect_for(1000);
    nk__watch_deadline(c.watched, 3000, true);
    step(2999);
    assert_true(is_open(&c));
    step(1);
    n = recv(c.client, reply, sizeof reply - 1, 0);
    assert_true(n > 0);
    reply[n] = '\0';
    assert_memory_equal(reply, "HTTP/1.1 408 Request Timeout\r\n", 30);
    assert_non_null(strstr(reply, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(reply, "\"code\":\"slow_body\""));
    body = strstr(reply, "\r\n\r\n");
    assert_non_null(body);
    assert_int_equal(atoi(strstr(reply, "Content-Length: ") + 16), strlen(body + 4));
    /* It is told once, and nothing more is read from it. */
    step(10000);
    assert_true(is_open(&c));
    assert_int_equal(send(c.client, "x", 1, MSG_NOSIGNAL), -1);
    disconnect(&c);
    end();
}

/* What is written to the socket there would not be HTTP. */
static void test_watch__behind_tls_a_slow_body_sees_the_connections_end(void **state)
{
    struct connection c;

    (void)state;
    begin(true);
    c = connect_for(1000);
    nk__watch_deadline(c.watched, 3000, true);
    step(3000);
    assert_false(is_open(&c));
    disconnect(&c);
    end();
}

static void test_watch__time_in_which_the_process_stood_still_is_forgiven(void **state)
{
    struct connection c;

    (void)state;
    begin(false);
    c = connect_for(1000);
    step(700);
    pause_for(60000); /* of which the watch counts one tick */
    assert_true(is_open(&c));
    step(1000 - 700 - TICK_MS - 1);
    assert_true(is_open(&c));
    step(1);
    assert_false(is_open(&c));
    disconnect(&c);
    end();
}

/* Late by as much as a tick is no pause: a machine that is always late would never end anybody. */
static void test_watch__a_late_turn_is_no_pause(void **state)
{
    struct connection c;

    (void)state;
    begin(false);
    c = connect_for(4 * TICK_MS);
    look_after(2 * TICK_MS, 2 * TICK_MS);
    look_after(2 * TICK_MS - 1, 2 * TICK_MS - 1);
    assert_true(is_open(&c));
    step(1);
    assert_false(is_open(&c));
    disconnect(&c);
    end();
}

static void test_watch__a_client_that_goes_is_told_while_its_request_runs(void **state)
{
    struct connection c, idle;
    int request;

    (void)state;
    begin(false);
    c = connect_for(1000);
    idle = connect_for(1000);
    nk__watch_deadline(c.watched, 0, false);
    nk__watch_request(c.watched, &request);
    close(idle.client); /* no request runs there */
    close(c.client);
    wait_for(&seen.n_gone, 1);
    wait_for(&seen.n_refs, 0);
    assert_ptr_equal(last_request(), &request);
    assert_int_equal(now_seen(&seen.n_half_closed), 0);
    nk__watch_drop(c.watched);
    nk__watch_drop(idle.watched);
    close(c.server);
    close(idle.server);
    end();
}

static void
test_watch__a_client_that_closes_its_side_is_told_once_and_then_that_it_goes(void **state)
{
    struct connection c;
    int request;

    (void)state;
    begin(false);
    c = connect_for(1000);
    nk__watch_deadline(c.watched, 0, false);
    nk__watch_request(c.watched, &request);
    assert_int_equal(shutdown(c.client, SHUT_WR), 0);
    wait_for(&seen.n_half_closed, 1);
    wait_for(&seen.n_refs, 0);
    step(TICK_MS); /* another turn tells nothing new */
    assert_int_equal(now_seen(&seen.n_half_closed), 1);
    assert_int_equal(now_seen(&seen.n_gone), 0);
    close(c.client);
    wait_for(&seen.n_gone, 1);
    wait_for(&seen.n_refs, 0);
    assert_int_equal(now_seen(&seen.n_half_closed), 1);
    nk__watch_drop(c.watched);
    close(c.server);
    end();
}

static void test_watch__the_next_request_of_a_half_closed_connection_is_told_again(void **state)
{
    struct connection c;
    int first, second;

    (void)state;
    begin(false);
    c = connect_for(1000);
    nk__watch_deadline(c.watched, 0, false);
    nk__watch_request(c.watched, &first);
    assert_int_equal(shutdown(c.client, SHUT_WR), 0);
    wait_for(&seen.n_half_closed, 1);
    wait_for(&seen.n_refs, 0);
    nk__watch_request(c.watched, NULL);
    nk__watch_request(c.watched, &second);
    wait_for(&seen.n_half_closed, 2);
    wait_for(&seen.n_refs, 0);
    assert_ptr_equal(last_request(), &second);
    disconnect(&c);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watch__a_silent_connection_is_ended_at_its_deadline_and_not_before),
        cmocka_unit_test(test_watch__a_deadline_that_is_set_anew_counts_from_then),
        cmocka_unit_test(test_watch__a_slow_body_is_answered_with_408),
        cmocka_unit_test(test_watch__behind_tls_a_slow_body_sees_the_connections_end),
        cmocka_unit_test(test_watch__time_in_which_the_process_stood_still_is_forgiven),
        cmocka_unit_test(test_watch__a_late_turn_is_no_pause),
        cmocka_unit_test(test_watch__a_client_that_goes_is_told_while_its_request_runs),
        cmocka_unit_test(
            test_watch__a_client_that_closes_its_side_is_told_once_and_then_that_it_goes),
        cmocka_unit_test(test_watch__the_next_request_of_a_half_closed_connection_is_told_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
