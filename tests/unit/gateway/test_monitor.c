/* The chain is asked by functions of the test's: what workers say, and when they are late, is the
 * test's to say. That a real chain is asked so is system.gateway's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/monitor.h"
#include "unit/virtual_clock.h"

enum { ANSWERS = 8 };

/* How the workers answer, one look after the other; the last one for ever. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int codes[ANSWERS]; /* 0: all is well */
    int n_codes, n_checks, n_probes, n_published, n_ready;
    int probe_code;
    bool busy;
    uint64_t takes_ms; /* a check, by the test's clock */
    void (*during)(nk_monitor *m);
    struct nk_worker_report worker;
} seen = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static struct virtual_clock v;
static nk_monitor *monitor;

static void count(int *n)
{
    pthread_mutex_lock(&seen.mutex);
    ++*n;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.mutex);
}

static void wait_for(const int *n, int value)
{
    pthread_mutex_lock(&seen.mutex);
    while (*n < value)
        pthread_cond_wait(&seen.changed, &seen.mutex);
    assert_int_equal(*n, value);
    pthread_mutex_unlock(&seen.mutex);
}

static nk_reaper *reaper;
static struct nk_replicas *set; /* of a chain that nobody looks at */

static struct nk_replicas *current(void *user)
{
    (void)user;
    return nk__replicas_ref(set);
}

static int check(void *user, struct nk_replicas *s, int idx, struct nk_chain_report **out)
{
    struct nk_chain_report *r = calloc(1, sizeof *r);
    void (*during)(nk_monitor * m);
    int code;

    (void)user, (void)s, (void)idx;
    assert_non_null(r);
    pthread_mutex_lock(&seen.mutex);
    code = seen.codes[seen.n_checks < seen.n_codes ? seen.n_checks : seen.n_codes - 1];
    r->n_workers = 1;
    r->workers[0] = seen.worker;
    r->workers[0].answered = !code;
    r->ok = !code;
    if (code)
        nk_fail(&r->err, code, "why", "a worker's reason");
    during = seen.during;
    pthread_mutex_unlock(&seen.mutex);
    if (during)
        during(monitor);
    virtual_clock_advance_ms(&v, seen.takes_ms);
    *out = r;
    count(&seen.n_checks);
    return 0;
}

static int probe(void *user, struct nk_replicas *s, int idx, struct nk_error *err)
{
    int code;

    (void)user, (void)s, (void)idx;
    pthread_mutex_lock(&seen.mutex);
    code = seen.probe_code;
    pthread_mutex_unlock(&seen.mutex);
    count(&seen.n_probes);
    return code ? nk_fail(err, code, "no_way", "no token came back") : 0;
}

static bool busy(void *user)
{
    bool is;

    (void)user;
    pthread_mutex_lock(&seen.mutex);
    is = seen.busy;
    pthread_mutex_unlock(&seen.mutex);
    return is;
}

static void published(void *user, const struct nk_snapshot *s)
{
    (void)user, (void)s;
    count(&seen.n_published);
}

static void on_ready(struct nk_waiter *w)
{
    (void)w;
    count(&seen.n_ready);
}

/* Starts, and waits for the look that every monitor begins with. */
static void begin(const int *codes, int n)
{
    static const struct nk_monitor_handlers handlers = {
        .current = current, .check = check, .probe = probe, .busy = busy, .published = published
    };
    struct nk_error err;

    assert_int_equal(nk__reaper_start(&reaper, &err), 0);
    set = nk__replicas_new(reaper, (nk_chain *[]){ NULL }, 1, 1);
    virtual_clock_init(&v);
    memcpy(seen.codes, codes, (size_t)n * sizeof *codes);
    seen.n_codes = n;
    seen.n_checks = seen.n_probes = seen.n_published = seen.n_ready = seen.probe_code = 0;
    seen.busy = false;
    seen.takes_ms = 0;
    seen.during = NULL;
    seen.worker = (struct nk_worker_report){ .id = "attic" };
    assert_int_equal(nk__monitor_start(&monitor, &v.clock, &handlers, &err), 0);
    wait_for(&seen.n_published, 1);
}

static void end(void)
{
    nk__monitor_stop(monitor);
    nk__replicas_unref(set);
    nk__reaper_stop(reaper);
    virtual_clock_release(&v);
}

/* Asks for what is not older than that. False: it was there; else waits for a new look. */
static bool ask(uint32_t max_age_ms, bool with_probe)
{
    static struct nk_waiter w;
    int n_ready = seen.n_ready;

    w = (struct nk_waiter){ .ready = on_ready };
    if (nk__monitor_want(monitor, &w, max_age_ms, with_probe, 0))
        return false;
    wait_for(&seen.n_ready, n_ready + 1);
    return true;
}

static void test_monitor__an_answer_is_good_until_its_age_and_no_longer(void **state)
{
    (void)state;
    begin((int[]){ 0 }, 1);
    assert_false(ask(2000, false));
    virtual_clock_advance_ms(&v, 2000);
    assert_false(ask(2000, false));
    assert_true(ask(1999, false));
    assert_int_equal(seen.n_checks, 2);
    assert_false(ask(0, false)); /* it is of now */
    virtual_clock_advance_ms(&v, 1);
    assert_true(ask(0, false));
    assert_int_equal(seen.n_checks, 3);
    end();
}

static void test_monitor__nobody_asks_when_nobody_wants_to_know(void **state)
{
    (void)state;
    begin((int[]){ 0 }, 1);
    virtual_clock_advance_ms(&v, 3600000);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 2); /* the first, and this one */
    end();
}

static void test_monitor__what_is_doubted_is_asked_again_whatever_its_age(void **state)
{
    (void)state;
    begin((int[]){ 0, NK_E_UNAVAILABLE }, 2);
    assert_false(ask(2000, false));
    nk__monitor_doubt(monitor);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 2);
    assert_false(ask(2000, false));
    end();
}

/* What a look found was perhaps asked before the doubt. */
static void test_monitor__a_doubt_during_a_look_outlives_it(void **state)
{
    (void)state;
    begin((int[]){ 0 }, 1);
    seen.during = nk__monitor_doubt;
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(2000, false));
    seen.during = NULL;
    assert_true(ask(2000, false));
    assert_false(ask(2000, false));
    end();
}

static void test_monitor__a_late_answer_is_asked_for_once_more(void **state)
{
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0, NK_E_DEADLINE, 0, NK_E_DEADLINE, NK_E_DEADLINE, NK_E_DEADLINE }, 6);
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 3);
    s = nk__monitor_peek(monitor);
    assert_true(s->ready && s->ok);
    nk__snapshot_unref(s);
    /* Late twice is late. */
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 5);
    s = nk__monitor_peek(monitor);
    assert_false(s->ready);
    assert_int_equal(s->not_ready.code, NK_E_DEADLINE);
    assert_string_equal(s->not_ready.reason, "why");
    nk__snapshot_unref(s);
    /* And where it was late before, it is not asked for again. */
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 6);
    end();
}

static void test_monitor__what_is_gone_is_not_asked_for_again(void **state)
{
    (void)state;
    begin((int[]){ 0, NK_E_UNAVAILABLE }, 2);
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(2000, false));
    assert_int_equal(seen.n_checks, 2);
    end();
}

static void test_monitor__readiness_takes_a_token_through_the_chain_once_in_a_while(void **state)
{
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0 }, 1);
    assert_true(ask(2000, true)); /* no token went through it yet */
    assert_int_equal(seen.n_probes, 1);
    virtual_clock_advance_ms(&v, 2000);
    assert_false(ask(2000, true));
    virtual_clock_advance_ms(&v, 1);
    assert_true(ask(2000, true));
    assert_int_equal(seen.n_probes, 2);
    /* A generation's token is as good. */
    virtual_clock_advance_ms(&v, 1999);
    nk__monitor_progress(monitor);
    virtual_clock_advance_ms(&v, 2);
    assert_true(ask(2000, true)); /* the workers' answer is old, the token is not */
    assert_int_equal(seen.n_probes, 2);
    seen.probe_code = NK_E_UNAVAILABLE;
    virtual_clock_advance_ms(&v, 2001);
    assert_true(ask(2000, true));
    s = nk__monitor_peek(monitor);
    assert_true(s->ok && !s->ready);
    assert_string_equal(s->not_ready.reason, "no_way");
    nk__snapshot_unref(s);
    end();
}

static struct nk_replicas *old;

/* Another set is in force while the old one is asked; once. */
static void replace(nk_monitor *m)
{
    pthread_mutex_lock(&seen.mutex);
    seen.during = NULL;
    old = set;
    set = nk__replicas_new(reaper, (nk_chain *[]){ NULL, NULL }, 2, 2);
    pthread_mutex_unlock(&seen.mutex);
    nk__monitor_forget(m);
}

static void test_monitor__what_was_seen_of_another_set_is_told_to_nobody(void **state)
{
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0 }, 1);
    virtual_clock_advance_ms(&v, 10000);
    seen.during = replace;
    assert_true(ask(2000, true)); /* has waited for the look at the new set */
    assert_int_equal(seen.n_checks, 1 + 1 + 2);
    assert_int_equal(seen.n_published, 2);
    assert_int_equal(seen.n_probes, 1); /* one chain is enough to be ready */
    s = nk__monitor_peek(monitor);
    assert_ptr_equal(s->set, set);
    assert_int_equal(s->n, 2);
    nk__snapshot_unref(s);
    nk__replicas_unref(old);
    end();
}

static void test_monitor__a_new_set_is_looked_at_unasked(void **state)
{
    (void)state;
    begin((int[]){ 0 }, 1);
    nk__monitor_forget(monitor);
    wait_for(&seen.n_published, 2);
    end();
}

/* There may be no room for a probe, and what runs is proof enough. */
static void test_monitor__no_probe_while_generations_run(void **state)
{
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0 }, 1);
    seen.busy = true;
    assert_true(ask(2000, true));
    assert_int_equal(seen.n_probes, 0);
    s = nk__monitor_peek(monitor);
    assert_true(s->ready);
    nk__snapshot_unref(s);
    end();
}

static void test_monitor__listeners_get_a_snapshot_a_second_after_the_one_before(void **state)
{
    (void)state;
    begin((int[]){ 0 }, 1);
    seen.takes_ms = 300;
    nk__monitor_listen(monitor, 1);
    for (int i = 2; i < 6; i++) {
        virtual_clock_wait_for_waiter(&v, 1000);
        virtual_clock_advance_ms(&v, 999);
        virtual_clock_wait_for_waiter(&v, 1);
        wait_for(&seen.n_published, i - 1);
        virtual_clock_advance_ms(&v, 1);
        wait_for(&seen.n_published, i);
    }
    /* Who asks meanwhile does not wait for the second. */
    virtual_clock_wait_for_waiter(&v, 1000);
    virtual_clock_advance_ms(&v, 10);
    assert_true(ask(9, false));
    wait_for(&seen.n_published, 6);
    nk__monitor_listen(monitor, -1);
    virtual_clock_advance_ms(&v, 10000);
    assert_true(ask(9, false));
    wait_for(&seen.n_published, 7);
    /* The first one who listens after a long time gets one at once. */
    virtual_clock_advance_ms(&v, 10000);
    nk__monitor_listen(monitor, 1);
    wait_for(&seen.n_published, 8);
    end();
}

static void test_monitor__rates_are_of_the_time_between_two_looks(void **state)
{
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0, 0, 0, NK_E_UNAVAILABLE, 0 }, 5);
    s = nk__monitor_peek(monitor);
    assert_true(isnan(s->views[0].rates[0].rows_per_second) &&
                isnan(s->views[0].rates[0].compute_ms));
    nk__snapshot_unref(s);
    seen.worker.uptime_ms = 1000;
    virtual_clock_advance_ms(&v, 1);
    assert_true(ask(0, false));
    seen.worker = (struct nk_worker_report){
        .uptime_ms = 3000,
        .tokens_decoded = 10,
        .tokens_prefilled = 40,
        .runs = 4,
        .steps = 5,
        .compute_us = 1000000,
        .queue_us = 20000,
    };
    virtual_clock_advance_ms(&v, 1);
    assert_true(ask(0, false));
    s = nk__monitor_peek(monitor);
    assert_true(s->views[0].rates[0].rows_per_second == 5 &&
                s->views[0].rates[0].prompt_rows_per_second == 20);
    assert_true(s->views[0].rates[0].busy == 0.5 && s->views[0].rates[0].compute_ms == 250);
    assert_true(s->views[0].rates[0].queue_ms == 4);
    nk__snapshot_unref(s);
    /* A worker that is away has no rates, but what a run took is still known. */
    virtual_clock_advance_ms(&v, 1);
    assert_true(ask(0, false));
    s = nk__monitor_peek(monitor);
    assert_true(isnan(s->views[0].rates[0].busy) && s->views[0].rates[0].compute_ms == 250);
    nk__snapshot_unref(s);
    end();
}

static void
test_monitor__a_row_alone_is_known_from_looks_in_which_there_was_nothing_else(void **state)
{
    static const struct {
        uint64_t runs, rows, prefilled;
        bool alone;
    } looks[] = { { 0, 0, 0, false },   { 10, 10, 0, true }, { 10, 10, 0, false }, /* nothing ran */
                  { 15, 18, 0, false }, /* two streams in one run */
                  { 20, 23, 5, false }, /* prompts of one row each */
                  { 30, 33, 5, true } };
    struct nk_snapshot *s;

    (void)state;
    begin((int[]){ 0 }, 1);
    for (size_t i = 0; i < sizeof looks / sizeof looks[0]; i++) {
        seen.worker = (struct nk_worker_report){ .uptime_ms = 1000 * (i + 1),
                                                 .runs = looks[i].runs,
                                                 .rows_in_runs = looks[i].rows,
                                                 .tokens_decoded = looks[i].rows,
                                                 .tokens_prefilled = looks[i].prefilled,
                                                 .compute_us = looks[i].runs * 20000 };
        virtual_clock_advance_ms(&v, 1);
        assert_true(ask(0, false));
        s = nk__monitor_peek(monitor);
        if (looks[i].alone)
            assert_true(s->views[0].rates[0].one_row_ms == 20);
        else
            assert_true(isnan(s->views[0].rates[0].one_row_ms));
        nk__snapshot_unref(s);
    }
    end();
}

/* During a look that takes long: who waits for 100 ms is called then, and not before. */
static void look_for_long(nk_monitor *m)
{
    pthread_mutex_lock(&seen.mutex);
    seen.during = NULL; /* the next one does not */
    pthread_mutex_unlock(&seen.mutex);
    virtual_clock_wait_for_waiter(&v, 100);
    virtual_clock_advance_ms(&v, 99);
    virtual_clock_wait_for_waiter(&v, 1);
    assert_int_equal(seen.n_ready, 0);
    assert_int_equal(nk__monitor_overdue_ms(m), 99);
    virtual_clock_advance_ms(&v, 1);
    wait_for(&seen.n_ready, 1);
    virtual_clock_advance_ms(&v, 8000);
    assert_int_equal(nk__monitor_overdue_ms(m), 8100);
}

static void test_monitor__who_waits_no_longer_is_called_without_an_answer(void **state)
{
    struct nk_waiter w = { .ready = on_ready }, other = { .ready = on_ready };

    (void)state;
    begin((int[]){ 0 }, 1);
    virtual_clock_advance_ms(&v, 10000);
    assert_int_equal(nk__monitor_overdue_ms(monitor), 0); /* nobody asked */
    seen.during = look_for_long;
    assert_false(nk__monitor_want(monitor, &w, 0, false, 100));
    /* Others wait for the look, which goes on. */
    assert_false(nk__monitor_want(monitor, &other, 0, false, 0));
    wait_for(&seen.n_ready, 2);
    assert_int_equal(nk__monitor_overdue_ms(monitor), 0);
    end();
}

static void test_monitor__who_waits_is_called_when_it_stops(void **state)
{
    struct nk_waiter w = { .ready = on_ready };

    (void)state;
    begin((int[]){ 0 }, 1);
    virtual_clock_advance_ms(&v, 10000);
    assert_false(nk__monitor_want(monitor, &w, 0, false, 0));
    nk__monitor_stop(monitor);
    assert_int_equal(seen.n_ready, 1);
    virtual_clock_release(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_monitor__an_answer_is_good_until_its_age_and_no_longer),
        cmocka_unit_test(test_monitor__nobody_asks_when_nobody_wants_to_know),
        cmocka_unit_test(test_monitor__what_is_doubted_is_asked_again_whatever_its_age),
        cmocka_unit_test(test_monitor__a_doubt_during_a_look_outlives_it),
        cmocka_unit_test(test_monitor__a_late_answer_is_asked_for_once_more),
        cmocka_unit_test(test_monitor__what_is_gone_is_not_asked_for_again),
        cmocka_unit_test(test_monitor__readiness_takes_a_token_through_the_chain_once_in_a_while),
        cmocka_unit_test(test_monitor__what_was_seen_of_another_set_is_told_to_nobody),
        cmocka_unit_test(test_monitor__a_new_set_is_looked_at_unasked),
        cmocka_unit_test(test_monitor__no_probe_while_generations_run),
        cmocka_unit_test(test_monitor__listeners_get_a_snapshot_a_second_after_the_one_before),
        cmocka_unit_test(test_monitor__rates_are_of_the_time_between_two_looks),
        cmocka_unit_test(
            test_monitor__a_row_alone_is_known_from_looks_in_which_there_was_nothing_else),
        cmocka_unit_test(test_monitor__who_waits_no_longer_is_called_without_an_answer),
        cmocka_unit_test(test_monitor__who_waits_is_called_when_it_stops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
