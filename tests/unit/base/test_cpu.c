#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"

struct seen {
    int n_own, n_process;
};

static int n_allowed(pid_t tid)
{
    cpu_set_t set;

    assert_int_equal(sched_getaffinity(tid, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

static void *pin(void *arg)
{
    struct seen *s = arg;

    nk_cpu_pin(0);
    s->n_own = n_allowed(0);
    s->n_process = nk_cpu_count();
    nk_cpu_pin(s->n_process); /* one that is not there: nothing changes */
    if (n_allowed(0) != s->n_own)
        s->n_own = -1;
    return NULL;
}

/* A worker that wakes up loads its stage on a pinned thread, and must get as many threads as
 * before. */
static void test_cpu__a_pinned_thread_still_counts_the_process_processors(void **state)
{
    struct seen s = { 0, 0 };
    int n = nk_cpu_count();
    pthread_t t;

    (void)state;
    assert_int_equal(n, n_allowed(getpid()));
    assert_int_equal(pthread_create(&t, NULL, pin, &s), 0);
    pthread_join(t, NULL);
    assert_int_equal(s.n_own, 1);
    assert_int_equal(s.n_process, n);
    assert_int_equal(n_allowed(getpid()), n);
}

static void test_cpu__counts_what_the_process_was_left(void **state)
{
    cpu_set_t before, one;

    (void)state;
    assert_int_equal(sched_getaffinity(getpid(), sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(getpid(), sizeof one, &one), 0);
    assert_int_equal(nk_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(getpid(), sizeof before, &before), 0);
    assert_int_equal(nk_cpu_count(), CPU_COUNT(&before));
}

static void *prefer_prompt(void *arg)
{
    int *policy = arg;

    nk_cpu_prefer_prompt();
    *policy = sched_getscheduler(0);
    return NULL;
}

static void test_cpu__a_prompt_thread_keeps_the_ordinary_policy(void **state)
{
    int policy = -1;
    pthread_t t;

    (void)state;
    assert_int_equal(pthread_create(&t, NULL, prefer_prompt, &policy), 0);
    pthread_join(t, NULL);
    assert_int_equal(policy, SCHED_OTHER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu__a_pinned_thread_still_counts_the_process_processors),
        cmocka_unit_test(test_cpu__counts_what_the_process_was_left),
        cmocka_unit_test(test_cpu__a_prompt_thread_keeps_the_ordinary_policy),
    };

    return cmocka_run_group_tests_name("cpu", tests, NULL, NULL);
}
