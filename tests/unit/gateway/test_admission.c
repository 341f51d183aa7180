#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/admission.h"
#include "unit/seed.h"
#include "unit/virtual_clock.h"

enum { TICKETS = 64, TICK_MS = 1000 };

/* What has been called so far, in its order. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_started, n_expired, n_ticks;
    int order[TICKETS]; /* of tickets that were started */
    struct nk_error err;
} seen = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static struct virtual_clock v;
static struct nk_ticket tickets[TICKETS];

static void count(int *n)
{
    pthread_mutex_lock(&seen.mutex);
    ++*n;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.mutex);
}

static void on_start(struct nk_ticket *t)
{
    pthread_mutex_lock(&seen.mutex);
    seen.order[seen.n_started] = (int)(t - tickets);
    pthread_mutex_unlock(&seen.mutex);
    count(&seen.n_started);
}

static void on_expire(struct nk_ticket *t, const struct nk_error *err)
{
    (void)t;
    pthread_mutex_lock(&seen.mutex);
    seen.err = *err;
    pthread_mutex_unlock(&seen.mutex);
    count(&seen.n_expired);
}

static void on_tick(void *user)
{
    (void)user;
    count(&seen.n_ticks);
}

/* Waits for the event itself, for ever: how fast this machine is tells nothing. */
static void wait_for(const int *n, int least)
{
    pthread_mutex_lock(&seen.mutex);
    while (*n < least)
        pthread_cond_wait(&seen.changed, &seen.mutex);
    assert_int_equal(*n, least);
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

static nk_admission *begin(int waiting_max, uint32_t waiting_ms)
{
    struct nk_admission_opts opts = {
        .clock = &v.clock, .waiting_max = waiting_max, .waiting_ms = waiting_ms, .tick = on_tick
    };
    struct nk_error err;
    nk_admission *a;

    virtual_clock_init(&v);
    seen.n_started = seen.n_expired = seen.n_ticks = 0;
    for (int i = 0; i < TICKETS; i++)
        tickets[i] = (struct nk_ticket){ .start = on_start, .expire = on_expire };
    assert_int_equal(nk__admission_start(&a, &opts, &err), 0);
    return a;
}

static void end(nk_admission *a)
{
    nk__admission_stop(a);
    virtual_clock_release(&v);
}

static int enter(nk_admission *a, int first, int n, struct nk_error *err)
{
    struct nk_ticket *list[TICKETS];

    for (int i = 0; i < n; i++)
        list[i] = &tickets[first + i];
    return nk__admission_enter(a, list, n, err);
}

/* The thread has done all there was to do, and waits: for the next second, which is never the one
 * that it waited for before. */
static void settle(void)
{
    virtual_clock_advance_ms(&v, TICK_MS);
    virtual_clock_wait_for_waiter(&v, TICK_MS);
}

static void test_admission__starts_nothing_before_the_capacity_is_known(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 60000);

    (void)state;
    assert_int_equal(enter(a, 0, 2, &err), 0);
    settle();
    assert_int_equal(now_seen(&seen.n_started), 0);
    nk__admission_set_capacity(a, 2);
    wait_for(&seen.n_started, 2);
    nk__admission_leave(a, &tickets[0]);
    nk__admission_leave(a, &tickets[1]);
    end(a);
}

static void test_admission__who_runs_apart_takes_no_place(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 60000);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 3, &err), 0);
    wait_for(&seen.n_started, 1);
    nk__admission_set_apart(a, 1);
    wait_for(&seen.n_started, 2);
    settle();
    assert_int_equal(now_seen(&seen.n_started), 2);
    assert_int_equal(nk__admission_counts(a).running, 2);
    assert_int_equal(enter(a, 3, 1, &err), 0); /* two may wait, and one does */
    assert_int_equal(enter(a, 4, 1, &err), NK_E_EXHAUSTED);
    nk__admission_set_apart(a, 0); /* it is over: told before it leaves */
    nk__admission_leave(a, &tickets[0]);
    settle();
    assert_int_equal(now_seen(&seen.n_started), 2);
    nk__admission_leave(a, &tickets[1]);
    wait_for(&seen.n_started, 3);
    nk__admission_leave(a, &tickets[2]);
    wait_for(&seen.n_started, 4);
    nk__admission_leave(a, &tickets[3]);
    end(a);
}

static void test_admission__once_closed_starts_nothing_though_room_comes_free(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 60000);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 2, &err), 0);
    wait_for(&seen.n_started, 1);
    nk__admission_close(a);
    nk__admission_leave(a, &tickets[0]);
    nk__admission_set_capacity(a, 2);
    settle();
    assert_int_equal(now_seen(&seen.n_started), 1);
    assert_true(nk__admission_withdraw(a, &tickets[1]));
    end(a);
}

static void test_admission__starts_in_order_and_only_as_many_as_fit(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(4, 60000);

    (void)state;
    nk__admission_set_capacity(a, 2);
    assert_int_equal(enter(a, 0, 5, &err), 0);
    wait_for(&seen.n_started, 2);
    settle();
    wait_for(&seen.n_started, 2);
    assert_int_equal(nk__admission_counts(a).running, 2);
    assert_int_equal(nk__admission_counts(a).waiting, 3);
    nk__admission_leave(a, &tickets[1]);
    wait_for(&seen.n_started, 3);
    nk__admission_set_capacity(a, 4);
    wait_for(&seen.n_started, 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(seen.order[i], i);
    /* Less capacity ends nobody. */
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 5, 1, &err), 0);
    nk__admission_leave(a, &tickets[0]);
    nk__admission_leave(a, &tickets[2]);
    nk__admission_leave(a, &tickets[3]);
    settle();
    wait_for(&seen.n_started, 5);
    nk__admission_leave(a, &tickets[4]);
    wait_for(&seen.n_started, 6);
    nk__admission_leave(a, &tickets[5]);
    end(a);
}

static void test_admission__a_full_queue_takes_all_of_a_request_or_none(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 60000);

    (void)state;
    nk__admission_set_capacity(a, 1);
    /* One runs, two wait. */
    assert_int_equal(enter(a, 0, 4, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "queue_full");
    assert_int_equal(nk__admission_counts(a).waiting, 0);
    assert_int_equal(enter(a, 0, 2, &err), 0);
    wait_for(&seen.n_started, 1);
    assert_int_equal(enter(a, 2, 2, &err), NK_E_EXHAUSTED);
    assert_int_equal(enter(a, 2, 1, &err), 0);
    assert_int_equal(enter(a, 3, 1, &err), NK_E_EXHAUSTED);
    assert_int_equal(nk__admission_counts(a).waiting, 2);
    nk__admission_leave(a, &tickets[0]);
    wait_for(&seen.n_started, 2);
    assert_true(nk__admission_withdraw(a, &tickets[2]));
    nk__admission_leave(a, &tickets[1]);
    end(a);
}

static void test_admission__who_withdraws_is_not_started(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(3, 60000);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 3, &err), 0);
    wait_for(&seen.n_started, 1);
    assert_false(nk__admission_withdraw(a, &tickets[0])); /* it runs */
    assert_true(nk__admission_withdraw(a, &tickets[1]));
    assert_false(nk__admission_withdraw(a, &tickets[1]));
    nk__admission_leave(a, &tickets[0]);
    wait_for(&seen.n_started, 2);
    assert_int_equal(seen.order[1], 2);
    nk__admission_leave(a, &tickets[2]);
    assert_false(nk__admission_withdraw(a, &tickets[2])); /* it is over */
    end(a);
}

/* Two enter 100 ms one after the other, and may wait for 700. */
static void test_admission__waiting_ends_at_the_limit_and_not_before(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 700);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 1, &err), 0);
    wait_for(&seen.n_started, 1);
    assert_int_equal(enter(a, 1, 1, &err), 0);
    virtual_clock_wait_for_waiter(&v, 700);
    virtual_clock_advance_ms(&v, 100);
    assert_int_equal(enter(a, 2, 1, &err), 0);
    virtual_clock_advance_ms(&v, 599);
    virtual_clock_wait_for_waiter(&v, 1);
    assert_int_equal(now_seen(&seen.n_expired), 0);
    assert_int_equal(nk__admission_counts(a).waiting, 2);
    virtual_clock_advance_ms(&v, 1);
    wait_for(&seen.n_expired, 1);
    assert_string_equal(seen.err.reason, "queue_timeout");
    assert_int_equal(seen.err.code, NK_E_EXHAUSTED);
    assert_non_null(strstr(seen.err.msg, "within 700 ms: 1 generations run, 1 wait"));
    assert_int_equal(tickets[1].state, NK_TICKET_OUT);
    virtual_clock_wait_for_waiter(&v, 100);
    virtual_clock_advance_ms(&v, 99);
    virtual_clock_wait_for_waiter(&v, 1);
    assert_int_equal(now_seen(&seen.n_expired), 1);
    virtual_clock_advance_ms(&v, 1);
    wait_for(&seen.n_expired, 2);
    assert_int_equal(now_seen(&seen.n_started), 1);
    nk__admission_leave(a, &tickets[0]);
    end(a);
}

static void test_admission__room_that_comes_at_the_limit_is_given(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(1, 700);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 1, &err), 0);
    wait_for(&seen.n_started, 1);
    assert_int_equal(enter(a, 1, 1, &err), 0);
    virtual_clock_advance_ms(&v, 699);
    virtual_clock_wait_for_waiter(&v, 1);
    nk__admission_leave(a, &tickets[0]);
    virtual_clock_advance_ms(&v, 1);
    wait_for(&seen.n_started, 2);
    assert_int_equal(now_seen(&seen.n_expired), 0);
    nk__admission_leave(a, &tickets[1]);
    end(a);
}

static const struct nk_error away = { .code = NK_E_UNAVAILABLE, .msg = "the attic is away" };

static void test_admission__paused_starts_nothing_and_goes_on_with_the_capacity(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(2, 60000);

    (void)state;
    nk__admission_set_capacity(a, 2);
    nk__admission_pause(a, &away);
    assert_int_equal(enter(a, 0, 2, &err), 0);
    settle();
    assert_int_equal(now_seen(&seen.n_started), 0);
    assert_int_equal(nk__admission_counts(a).waiting, 2);
    nk__admission_set_capacity(a, 1);
    wait_for(&seen.n_started, 1);
    nk__admission_leave(a, &tickets[0]);
    wait_for(&seen.n_started, 2);
    nk__admission_leave(a, &tickets[1]);
    end(a);
}

/* One runs for 500 ms of the 700 that each may wait, and comes back. */
static void test_admission__who_comes_back_is_first_and_has_not_waited_while_it_ran(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(1, 700);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 2, &err), 0);
    wait_for(&seen.n_started, 1);
    virtual_clock_advance_ms(&v, 500);
    nk__admission_pause(a, &away);
    assert_true(nk__admission_return(a, &tickets[0], 0));
    assert_int_equal(nk__admission_counts(a).waiting, 2);
    nk__admission_set_capacity(a, 1);
    wait_for(&seen.n_started, 2);
    assert_int_equal(seen.order[1], 0);
    nk__admission_pause(a, &away);
    assert_true(nk__admission_return(a, &tickets[0], 0));
    virtual_clock_wait_for_waiter(&v, 200);
    virtual_clock_advance_ms(&v, 200);
    wait_for(&seen.n_expired, 1);
    assert_int_equal(tickets[1].state, NK_TICKET_OUT);
    assert_int_equal(seen.err.code, NK_E_UNAVAILABLE);
    assert_string_equal(seen.err.reason, "not_ready");
    assert_non_null(strstr(seen.err.msg, "within 700 ms: the attic is away"));
    virtual_clock_wait_for_waiter(&v, 300); /* the tick */
    virtual_clock_advance_ms(&v, 499);
    virtual_clock_wait_for_waiter(&v, 1);
    assert_int_equal(now_seen(&seen.n_expired), 1);
    virtual_clock_advance_ms(&v, 1);
    wait_for(&seen.n_expired, 2);
    end(a);
}

static void test_admission__once_closed_nobody_comes_back(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(1, 700);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, 0, 1, &err), 0);
    wait_for(&seen.n_started, 1);
    nk__admission_close(a);
    assert_false(nk__admission_return(a, &tickets[0], 0));
    assert_int_equal(nk__admission_counts(a).running, 1);
    nk__admission_leave(a, &tickets[0]);
    end(a);
}

static void test_admission__ticks_every_second(void **state)
{
    nk_admission *a = begin(1, 60000);

    (void)state;
    for (int i = 0; i < 3; i++) {
        virtual_clock_wait_for_waiter(&v, TICK_MS);
        virtual_clock_advance_ms(&v, TICK_MS - 1);
        virtual_clock_wait_for_waiter(&v, 1);
        assert_int_equal(now_seen(&seen.n_ticks), i);
        virtual_clock_advance_ms(&v, 1);
        wait_for(&seen.n_ticks, i + 1);
    }
    /* Seconds that were missed are not made up for. */
    virtual_clock_wait_for_waiter(&v, TICK_MS);
    virtual_clock_advance_ms(&v, 10 * TICK_MS);
    virtual_clock_wait_for_waiter(&v, TICK_MS);
    wait_for(&seen.n_ticks, 4);
    end(a);
}

static void test_admission__says_when_to_come_again_by_the_mean_of_those_that_ended(void **state)
{
    struct nk_error err;
    nk_admission *a = begin(8, 600000);

    (void)state;
    nk__admission_set_capacity(a, 1);
    assert_int_equal(nk__admission_counts(a).retry_after_s, 1);
    assert_int_equal(enter(a, 0, 1, &err), 0);
    wait_for(&seen.n_started, 1);
    virtual_clock_advance_ms(&v, 41000); /* the mean: 1 s and a tenth of the other 40 */
    nk__admission_leave(a, &tickets[0]);
    assert_int_equal(nk__admission_counts(a).retry_after_s, 5);
    assert_int_equal(enter(a, 1, 4, &err), 0);
    wait_for(&seen.n_started, 2);
    assert_int_equal(nk__admission_counts(a).retry_after_s, 20); /* three wait, and this one */
    nk__admission_set_capacity(a, 0);
    for (int i = 2; i < 5; i++)
        assert_true(nk__admission_withdraw(a, &tickets[i]));
    nk__admission_leave(a, &tickets[1]);
    end(a);
}

/* What should have been called by now, by the same steps without a thread. */
struct model {
    uint64_t now_ms, next_tick_ms, entered_ms[TICKETS];
    int queue[TICKETS], running[TICKETS], order[TICKETS];
    int n_queue, n_running, n_started, n_expired, n_ticks;
};

static void take_out(int *list, int *n, int at)
{
    memmove(&list[at], &list[at + 1], (size_t)(--*n - at) * sizeof *list);
}

static void model_go_on(struct model *m, int capacity, uint32_t waiting_ms)
{
    if (m->now_ms >= m->next_tick_ms) {
        m->n_ticks++;
        m->next_tick_ms = m->now_ms + TICK_MS;
    }
    while (m->n_queue && m->n_running < capacity) {
        m->order[m->n_started++] = m->running[m->n_running++] = m->queue[0];
        take_out(m->queue, &m->n_queue, 0);
    }
    while (m->n_queue && m->now_ms >= m->entered_ms[m->queue[0]] + waiting_ms) {
        m->n_expired++;
        take_out(m->queue, &m->n_queue, 0);
    }
}

/* Requests come, end, are withdrawn and wait by chance. */
static void run_by_chance(uint64_t seed)
{
    enum { WAITING_MAX = 5, WAITING_MS = 1500, CAPACITY = 3 };
    uint64_t state = seed;
    nk_admission *a = begin(WAITING_MAX, WAITING_MS);
    struct model m = { .next_tick_ms = TICK_MS };
    int n_entered = 0;

    nk__admission_set_capacity(a, CAPACITY);
    while (n_entered < TICKETS || m.n_running || m.n_queue) {
        int n = 1 + (int)seed_below(&state, 3), i, rc;
        struct nk_error err;

        switch (seed_below(&state, 4)) {
        case 0:
            if (n_entered + n > TICKETS)
                n = TICKETS - n_entered;
            rc = n > WAITING_MAX + CAPACITY - m.n_running - m.n_queue ? NK_E_EXHAUSTED : 0;
            if (enter(a, n_entered, n, &err) != rc)
                fail_msg("%d enter where %d wait and %d run", n, m.n_queue, m.n_running);
            for (i = 0; i < n && !rc; i++) {
                m.entered_ms[n_entered] = m.now_ms;
                m.queue[m.n_queue++] = n_entered++;
            }
            break;
        case 1:
            n = 1 + (int)seed_below(&state, WAITING_MS / 2);
            m.now_ms += (uint64_t)n;
            virtual_clock_advance_ms(&v, (uint64_t)n);
            break;
        case 2:
            if (m.n_running) {
                i = (int)seed_below(&state, (uint64_t)m.n_running);
                nk__admission_leave(a, &tickets[m.running[i]]);
                take_out(m.running, &m.n_running, i);
            }
            break;
        default:
            if (m.n_queue && n == 1) {
                i = (int)seed_below(&state, (uint64_t)m.n_queue);
                assert_true(nk__admission_withdraw(a, &tickets[m.queue[i]]));
                take_out(m.queue, &m.n_queue, i);
            }
            break;
        }
        model_go_on(&m, CAPACITY, WAITING_MS);
        wait_for(&seen.n_ticks, m.n_ticks);
        wait_for(&seen.n_started, m.n_started);
        wait_for(&seen.n_expired, m.n_expired);
    }
    assert_memory_equal(seen.order, m.order, (size_t)m.n_started * sizeof m.order[0]);
    end(a);
}

static void test_admission__does_by_chance_what_its_rules_say(void **state)
{
    uint64_t seed = seed_begin();

    (void)state;
    for (uint64_t i = 0; i < 40; i++)
        run_by_chance(seed + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_admission__starts_nothing_before_the_capacity_is_known),
        cmocka_unit_test(test_admission__who_runs_apart_takes_no_place),
        cmocka_unit_test(test_admission__once_closed_starts_nothing_though_room_comes_free),
        cmocka_unit_test(test_admission__starts_in_order_and_only_as_many_as_fit),
        cmocka_unit_test(test_admission__a_full_queue_takes_all_of_a_request_or_none),
        cmocka_unit_test(test_admission__who_withdraws_is_not_started),
        cmocka_unit_test(test_admission__waiting_ends_at_the_limit_and_not_before),
        cmocka_unit_test(test_admission__room_that_comes_at_the_limit_is_given),
        cmocka_unit_test(test_admission__paused_starts_nothing_and_goes_on_with_the_capacity),
        cmocka_unit_test(test_admission__who_comes_back_is_first_and_has_not_waited_while_it_ran),
        cmocka_unit_test(test_admission__once_closed_nobody_comes_back),
        cmocka_unit_test(test_admission__ticks_every_second),
        cmocka_unit_test(test_admission__says_when_to_come_again_by_the_mean_of_those_that_ended),
        cmocka_unit_test(test_admission__does_by_chance_what_its_rules_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
