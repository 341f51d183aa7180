#include "rpc_test.h"

#include <fcntl.h>
#include <signal.h>

#include "base/log.h"

/* ---- posting ---- */

enum { POSTERS = 4, POSTS = 5000 };

struct post {
    nk_net *net;
    int poster, i;
};

static struct {
    int next[POSTERS];
    _Atomic int n;
    _Atomic bool broken;
} posts;

static void posted(void *arg)
{
    struct post *p = arg;

    if (p->i != posts.next[p->poster]++ || !nk_net_is_current(p->net))
        posts.broken = true;
    posts.n++;
    free(p);
}

struct poster {
    nk_net *net;
    int id;
};

static void *post_many(void *arg)
{
    struct poster *me = arg;

    for (int i = 0; i < POSTS; i++) {
        struct post *p = malloc(sizeof *p);

        *p = (struct post){ me->net, me->id, i };
        nk_net_post(me->net, posted, p);
    }
    return NULL;
}

static void test_net__what_is_posted_runs_on_the_net_thread_in_the_order_of_posting(void **state)
{
    struct poster posters[POSTERS];
    pthread_t threads[POSTERS];
    nk_net *net;

    (void)state;
    memset(&posts, 0, sizeof posts);
    assert_int_equal(nk_net_start(&net, nk_clock_system(), NULL), 0);
    assert_false(nk_net_is_current(net));
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){ net, i };
        pthread_create(&threads[i], NULL, post_many, &posters[i]);
    }
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    nk_net_stop(net); /* after what was posted before */
    assert_int_equal(posts.n, POSTERS * POSTS);
    assert_false(posts.broken);
}

static void post_again(void *arg)
{
    struct post *p = arg;

    posts.n++;
    if (++p->i < 1000)
        nk_net_post(p->net, post_again, p);
}

static void test_net__what_runs_may_post(void **state)
{
    struct post p = { 0 };

    (void)state;
    memset(&posts, 0, sizeof posts);
    assert_int_equal(nk_net_start(&p.net, nk_clock_system(), NULL), 0);
    nk_net_post(p.net, post_again, &p);
    nk_net_stop(p.net);
    assert_int_equal(posts.n, 1000);
}

/* ---- timers ---- */

enum { TIMERS = 200, DELAYS = 97 };

static struct {
    struct virtual_clock clock;
    nk_net *net;
    nk_timer *timers[TIMERS];
    uint64_t begin_ns, due_ns[TIMERS];
    int order[TIMERS];
    int n; /* that fired; net thread */
    bool wrong, done;
} t;

static void timers_begin(void)
{
    memset(&t, 0, sizeof t);
    virtual_clock_init(&t.clock);
    t.begin_ns = nk_clock_now_ns(&t.clock.clock);
    assert_int_equal(nk_net_start(&t.net, &t.clock.clock, NULL), 0);
}

static void timers_end(void)
{
    nk_net_stop(t.net);
    virtual_clock_release(&t.clock);
    assert_false(t.wrong);
}

static int delay_of(int i)
{
    return (i * 7919) % DELAYS; /* no order, with equal ones */
}

static void fire(void *arg)
{
    int i = (int)(intptr_t)arg;

    if (nk_clock_now_ns(&t.clock.clock) != t.begin_ns + (uint64_t)delay_of(i) * 1000000)
        t.wrong = true;
    t.order[t.n++] = i;
}

static void start_timers(void *arg)
{
    (void)arg;
    for (int i = 0; i < TIMERS; i++)
        t.timers[i] = nk_timer_start(t.net, (uint32_t)delay_of(i), fire, (void *)(intptr_t)i);
    for (int i = 0; i < TIMERS; i += 3)
        nk_timer_cancel(t.timers[i]);
    nk_timer_cancel(NULL);
}

static void test_net__timers_fire_at_their_time_in_order_and_never_when_cancelled(void **state)
{
    int n = 0;

    (void)state;
    timers_begin();
    run_on(t.net, start_timers, NULL);
    for (int ms = 0; ms < DELAYS; ms++) {
        settle(t.net);
        for (int i = 0; i < TIMERS; i++) { /* those of one time in the order of their starts */
            if (i % 3 == 0 || delay_of(i) != ms)
                continue;
            assert_true(n < t.n);
            assert_int_equal(t.order[n], i);
            n++;
        }
        assert_int_equal(t.n, n); /* and no others */
        virtual_clock_advance_ms(&t.clock, 1);
    }
    settle(t.net);
    assert_int_equal(t.n, n);
    assert_int_equal(n, TIMERS - (TIMERS + 2) / 3);
    timers_end();
}

static void never(void *arg)
{
    (void)arg;
    t.wrong = true;
}

static void restart(void *arg)
{
    nk_timer **other = arg;

    nk_timer_cancel(*other); /* due at the same time, but started later */
    *other = NULL;
    if (++t.n < 5)
        nk_timer_start(t.net, 0, restart, arg);
}

static void start_restart(void *arg)
{
    static nk_timer *other;

    (void)arg;
    nk_timer_start(t.net, 5, restart, &other);
    other = nk_timer_start(t.net, 5, never, NULL);
    nk_timer_start(t.net, 3600000, never, NULL); /* left when the net stops */
}

static void test_net__a_timer_may_start_and_cancel_others(void **state)
{
    (void)state;
    timers_begin();
    run_on(t.net, start_restart, NULL);
    virtual_clock_advance_ms(&t.clock, 5);
    for (int i = 0; i < 5; i++)
        settle(t.net);
    assert_int_equal(t.n, 5);
    virtual_clock_advance_ms(&t.clock, 3599994);
    settle(t.net);
    timers_end();
}

static void again_at_once(void *arg)
{
    t.n++;
    if (!t.done)
        nk_timer_start(t.net, 0, again_at_once, arg);
}

static void set_done(void *arg)
{
    (void)arg;
    t.done = true;
}

static void test_net__a_timer_that_starts_itself_again_at_once_holds_up_nobody(void **state)
{
    (void)state;
    timers_begin();
    run_on(t.net, again_at_once, NULL);
    settle(t.net);
    run_on(t.net, set_done, NULL);
    settle(t.net);
    assert_true(t.n >= 2);
    timers_end();
}

struct real {
    nk_net *net;
    uint64_t due_ns;
    bool early;
    struct record *r; /* n_messages: how many fired */
};

static void fire_real(void *arg)
{
    struct real *real = arg;

    record_enter(real->r);
    real->early = real->early || nk_clock_now_ns(nk_clock_system()) < real->due_ns;
    real->r->n_messages++;
    record_leave(real->r);
}

static void start_real(void *arg)
{
    struct real *real = arg;

    real->due_ns = nk_clock_now_ns(nk_clock_system()) + 20 * 1000000ull;
    nk_timer_start(real->net, 20, fire_real, real);
    nk_timer_start(real->net, 21, fire_real, real);
}

static void test_net__on_the_systems_clock_timers_fire_by_themselves_and_not_early(void **state)
{
    struct fixture *f = *state;
    struct real real = { .r = fixture_record(f) };

    assert_int_equal(nk_net_start(&real.net, nk_clock_system(), NULL), 0);
    nk_net_post(real.net, start_real, &real);
    assert_true(record_wait(real.r, &real.r->n_messages, 2));
    nk_net_stop(real.net);
    assert_false(real.early);
}

/* ---- stopping ---- */

static void test_net__stops_with_everything_still_open(void **state)
{
    struct fixture *f = *state;
    struct record *r[20];

    f->seen = fixture_record(f);
    for (int i = 0; i < 20; i++) {
        r[i] = fixture_record(f);
        assert_int_equal(record_start(r[i], f->channel, i % 2 ? "/t.T/Echo" : "/t.T/Nonesuch", 0),
                         0);
        nk_call_send(r[i]->call, "x", 1, NULL);
    }
    for (int i = 1; i < 20; i += 2)
        assert_true(record_wait(r[i], &r[i]->n_messages, 1));
    nk_net_stop(f->net); /* the server and the channel go with it */
    for (int i = 0; i < 20; i++) {
        assert_int_equal(r[i]->n_ends, 1);
        assert_false(r[i]->after_end);
        assert_int_equal(nk_call_send(r[i]->call, "x", 1, NULL), NK_E_UNAVAILABLE);
    }
    assert_int_equal(f->n_open, 0);
    assert_int_equal(f->n_ends, 10);
    f->net = f->client_net = NULL;
    f->server = NULL;
    f->channel = NULL;
}

static struct fixture *late_fixture;
static int late_rc;

static void start_late(void *arg)
{
    struct record *r = arg;

    late_rc = record_start(r, late_fixture->channel, "/t.T/Echo", 0);
}

static void end_and_start(nk_call *c, void *user, const struct nk_error *status)
{
    struct fixture *f = late_fixture;

    (void)c;
    (void)user;
    (void)status;
    start_late(f->seen);
}

static void test_net__refuses_calls_while_it_stops(void **state)
{
    static const struct nk_call_handlers handlers = { .message = record_message,
                                                      .end = end_and_start };
    struct fixture *f = *state;
    nk_call *c;

    late_fixture = f;
    late_rc = 0;
    assert_int_equal(nk_call_start(&c, f->channel, "/t.T/Echo", 0, &handlers, f->seen, NULL), 0);
    nk_net_stop(f->net);
    assert_int_equal(late_rc, NK_E_UNAVAILABLE);
    assert_string_equal(f->seen->status.reason, "net_stopped");
    f->net = f->client_net = NULL;
    f->server = NULL;
    f->channel = NULL;
}

static void test_net__signals_stay_with_the_threads_that_were_there(void **state)
{
    nk_net *net;
    sigset_t before, after;

    (void)state;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(nk_net_start(&net, nk_clock_system(), NULL), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int s = 1; s < 32; s++)
        assert_int_equal(sigismember(&before, s), sigismember(&after, s));
    nk_net_stop(net);
}

static void test_net__two_nets_in_one_process_talk_to_each_other(void **state)
{
    struct fixture *f = *state;
    struct nk_server_opts opts = test_opts(f);
    struct record *r = fixture_record(f);

    assert_int_equal(nk_net_start(&f->client_net, &f->clock.clock, NULL), 0);
    fixture_start(f, &opts);
    assert_int_equal(record_start(r, f->channel, "/t.T/Echo", 0), 0);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(nk_call_send(r->call, &i, sizeof i, NULL), 0);
        assert_true(record_wait(r, &r->n_messages, i + 1));
    }
    nk_call_send_done(r->call);
    assert_ended(r, 0, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_net__what_is_posted_runs_on_the_net_thread_in_the_order_of_posting),
        cmocka_unit_test(test_net__what_runs_may_post),
        cmocka_unit_test(test_net__timers_fire_at_their_time_in_order_and_never_when_cancelled),
        cmocka_unit_test(test_net__a_timer_may_start_and_cancel_others),
        cmocka_unit_test(test_net__a_timer_that_starts_itself_again_at_once_holds_up_nobody),
        cmocka_unit_test_setup_teardown(
            test_net__on_the_systems_clock_timers_fire_by_themselves_and_not_early,
            fixture_setup_empty, fixture_teardown),
        cmocka_unit_test_setup_teardown(test_net__stops_with_everything_still_open, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(test_net__refuses_calls_while_it_stops, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test(test_net__signals_stay_with_the_threads_that_were_there),
        cmocka_unit_test_setup_teardown(test_net__two_nets_in_one_process_talk_to_each_other,
                                        fixture_setup_empty, fixture_teardown),
    };

    nk_log_init();
    return cmocka_run_group_tests_name("net", tests, NULL, NULL);
}
