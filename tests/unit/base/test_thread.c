#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/thread.h"

static void *own_mask(void *mask)
{
    pthread_sigmask(SIG_SETMASK, NULL, mask);
    return NULL;
}

static void test_thread__leaves_signals_to_the_main_thread(void **state)
{
    sigset_t before, held, after;
    pthread_t thread;

    (void)state;
    own_mask(&before);
    assert_int_equal(nk_thread_start(&thread, own_mask, &held), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    own_mask(&after);
    assert_true(sigismember(&held, SIGTERM));
    assert_true(sigismember(&held, SIGINT));
    assert_true(sigismember(&held, SIGHUP));
    assert_true(sigismember(&held, SIGPIPE));
    assert_false(sigismember(
        &held, SIGSEGV)); /* a fault's handler (AddressSanitizer's) runs where it happens */
    assert_false(sigismember(&held, SIGABRT));
    for (int sig = 1; sig < 32; sig++)
        assert_int_equal(sigismember(&before, sig), sigismember(&after, sig));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread__leaves_signals_to_the_main_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
