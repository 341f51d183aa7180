#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/chance.h"
#include "base/clock.h"
#include "unit/seed.h"
#include "unit/virtual_clock.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond;
static bool said;

static void *say(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&mutex);
    said = true;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void test_cond__waits_until_a_time_of_the_monotonic_clock(void **state)
{
    uint64_t until = nk_now_ns() + 50 * 1000000ull;

    (void)state;
    nk_cond_init(&cond);
    pthread_mutex_lock(&mutex);
    while (nk_clock_wait_until(nk_clock_system(), &cond, &mutex, until)) /* woken for nothing */
        ;
    assert_true(nk_now_ns() >= until);
    assert_false(nk_clock_wait_until(nk_clock_system(), &cond, &mutex, 0)); /* long past */
    pthread_mutex_unlock(&mutex);
    pthread_cond_destroy(&cond);
}

static void test_cond__ends_when_signalled(void **state)
{
    uint64_t until = nk_now_ns() + 60 * 1000000000ull;
    pthread_t thread;

    (void)state;
    nk_cond_init(&cond);
    pthread_mutex_lock(&mutex);
    assert_int_equal(pthread_create(&thread, NULL, say, NULL), 0);
    while (!said)
        assert_true(nk_clock_wait_until(nk_clock_system(), &cond, &mutex, until));
    pthread_mutex_unlock(&mutex);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&cond);
}

struct waiting {
    struct virtual_clock v;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    uint64_t until_ns, woke_ns;
};

static void *wait_for_it(void *arg)
{
    struct waiting *w = arg;

    pthread_mutex_lock(&w->mutex);
    while (nk_clock_wait_until(&w->v.clock, &w->cond, &w->mutex, w->until_ns))
        ;
    w->woke_ns = nk_clock_now_ns(&w->v.clock);
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

static void test_virtual_clock__wakes_who_waits_when_the_time_has_come_and_not_before(void **state)
{
    struct waiting w = { .mutex = PTHREAD_MUTEX_INITIALIZER };
    pthread_t thread;

    (void)state;
    virtual_clock_init(&w.v);
    nk_cond_init(&w.cond);
    w.until_ns = nk_clock_now_ns(&w.v.clock) + 30000 * 1000000ull;
    assert_int_equal(pthread_create(&thread, NULL, wait_for_it, &w), 0);
    virtual_clock_wait_for_waiter(&w.v, 30000);
    virtual_clock_advance_ms(&w.v, 29999);
    virtual_clock_wait_for_waiter(&w.v, 1);
    pthread_mutex_lock(&w.mutex);
    assert_int_equal(w.woke_ns, 0);
    pthread_mutex_unlock(&w.mutex);
    virtual_clock_advance_ms(&w.v, 1);
    pthread_join(thread, NULL);
    assert_true(w.woke_ns == w.until_ns);
    pthread_cond_destroy(&w.cond);
    virtual_clock_release(&w.v);
}

static void test_clock__says_how_long_a_system_call_may_wait(void **state)
{
    struct nk_clock *s = nk_clock_system();
    struct virtual_clock v;

    (void)state;
    virtual_clock_init(&v);
    assert_true(nk_clock_runs(s));
    assert_false(nk_clock_runs(&v.clock));
    assert_int_equal(nk_clock_wait_ms(s, 0), 0);
    assert_int_equal(nk_clock_wait_ms(s, nk_clock_now_ns(s) + 3600 * 1000000000ull), 60000);
    assert_int_equal(nk_clock_wait_ms(s, UINT64_MAX), 60000);
    assert_int_equal(nk_clock_wait_ms(&v.clock, 0), -1);
    virtual_clock_release(&v);
}

static void test_chance__gives_other_bytes_each_time_and_with_a_seed_the_same(void **state)
{
    unsigned char a[600] = { 0 }, b[600] = { 0 };
    struct seeded s;
    int n_zero = 0;

    (void)state;
    assert_int_equal(nk_chance_fill(nk_chance_system(), a, sizeof a, NULL), 0);
    assert_int_equal(nk_chance_fill(nk_chance_system(), b, sizeof b, NULL), 0);
    assert_memory_not_equal(a, b, sizeof a);
    for (size_t i = 0; i < sizeof a; i++)
        n_zero += !a[i];
    assert_in_range(n_zero, 0, 100); /* all of it was filled: 2.3 of 600 are 0 by chance */
    seeded_init(&s, 7);
    nk_chance_fill(&s.chance, a, sizeof a, NULL);
    seeded_init(&s, 7);
    nk_chance_fill(&s.chance, b, sizeof b, NULL);
    assert_memory_equal(a, b, sizeof a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cond__waits_until_a_time_of_the_monotonic_clock),
        cmocka_unit_test(test_cond__ends_when_signalled),
        cmocka_unit_test(test_virtual_clock__wakes_who_waits_when_the_time_has_come_and_not_before),
        cmocka_unit_test(test_clock__says_how_long_a_system_call_may_wait),
        cmocka_unit_test(test_chance__gives_other_bytes_each_time_and_with_a_seed_the_same),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
