#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"

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
    while (nk_cond_wait_until(&cond, &mutex, until)) /* true: woken for nothing */
        ;
    assert_true(nk_now_ns() >= until);
    assert_false(nk_cond_wait_until(&cond, &mutex, 0)); /* long past */
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
        assert_true(nk_cond_wait_until(&cond, &mutex, until));
    pthread_mutex_unlock(&mutex);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&cond);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cond__waits_until_a_time_of_the_monotonic_clock),
        cmocka_unit_test(test_cond__ends_when_signalled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
