/* How often something is run, by a clock that stands still but for what the runs take. */
#include "measure/measure_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "unit/virtual_clock.h"

struct runs {
    struct virtual_clock clock;
    const unsigned *ms; /* what each takes; the last of them for ever */
    int n_ms, n, fail_at;
};

static int run(void *arg, struct nk_error *err)
{
    struct runs *r = arg;

    virtual_clock_advance_ms(&r->clock, r->ms[r->n < r->n_ms ? r->n : r->n_ms - 1]);
    if (++r->n == r->fail_at)
        return nk_fail(err, NK_E_INTERNAL, "decode_failed", "it failed");
    return 0;
}

/* The median of runs that may go on for budget_ms. */
static double timed(struct runs *r, int n_min, unsigned budget_ms, int *rc, struct nk_error *err)
{
    const struct nk__timed t = { run, r };
    double ms = -1;

    virtual_clock_init(&r->clock);
    *rc = nk__time(&r->clock.clock, &t, n_min,
                   nk_clock_now_ns(&r->clock.clock) + budget_ms * 1000000ull, &ms, err);
    virtual_clock_release(&r->clock);
    return ms;
}

static void test_time__the_first_run_only_warms_up(void **state)
{
    static const unsigned ms[] = { 500, 10, 30, 20 };
    struct runs r = { .ms = ms, .n_ms = 4 };
    int rc;

    (void)state;
    /* Three are asked for, and their time is not up: 10, 30, 20, then 20s until 1 s is over. */
    assert_true(timed(&r, 3, 1000, &rc, NULL) == 20);
    assert_int_equal(rc, 0);
    assert_int_equal(r.n, 1 + 3 + 22); /* 500 + 60 + 22 * 20 = 1000 */
}

static void test_time__too_slow_for_the_budget_is_run_as_often_as_it_must(void **state)
{
    static const unsigned ms[] = { 900, 300, 100, 200, 700 };
    struct runs r = { .ms = ms, .n_ms = 5 };
    int rc;

    (void)state;
    assert_true(timed(&r, 3, 1000, &rc, NULL) == 200);
    assert_int_equal(r.n, 4);
}

static void test_time__what_takes_all_of_it_is_run_once(void **state)
{
    static const unsigned ms[] = { 5000, 1 };
    struct runs r = { .ms = ms, .n_ms = 2 };
    int rc;

    (void)state;
    assert_true(timed(&r, 3, 1000, &rc, NULL) == 5000);
    assert_int_equal(r.n, 1);
}

static void test_time__no_more_runs_than_tell_something(void **state)
{
    static const unsigned ms[] = { 1, 1, 3 };
    struct runs r = { .ms = ms, .n_ms = 3 };
    int rc;

    (void)state;
    assert_true(timed(&r, 3, 1000000, &rc, NULL) == 3);
    assert_int_equal(r.n, 1 + NK__RUNS_MAX);
}

static void test_time__an_even_number_has_its_median_between(void **state)
{
    static const unsigned ms[] = { 1, 10, 20, 30, 40 };
    struct runs r = { .ms = ms, .n_ms = 5 };
    int rc;

    (void)state;
    assert_true(timed(&r, 2, 101, &rc, NULL) == 25);
    assert_int_equal(r.n, 5);
}

static void test_time__a_run_that_fails_ends_it(void **state)
{
    static const unsigned ms[] = { 1 };
    struct runs r = { .ms = ms, .n_ms = 1, .fail_at = 3 };
    struct nk_error err = { 0 };
    int rc;

    (void)state;
    timed(&r, 3, 1000, &rc, &err);
    assert_int_equal(rc, NK_E_INTERNAL);
    assert_string_equal(err.reason, "decode_failed");
    assert_int_equal(r.n, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time__the_first_run_only_warms_up),
        cmocka_unit_test(test_time__too_slow_for_the_budget_is_run_as_often_as_it_must),
        cmocka_unit_test(test_time__what_takes_all_of_it_is_run_once),
        cmocka_unit_test(test_time__no_more_runs_than_tell_something),
        cmocka_unit_test(test_time__an_even_number_has_its_median_between),
        cmocka_unit_test(test_time__a_run_that_fails_ends_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
