#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cli/restart.h"

#define MS 1000000ull

static void test_restart__the_pause_grows_while_it_fails_at_the_start_and_then_it_ends(void **state)
{
    static const int pauses_ms[] = { 0, 250, 500, 1000, 1000, 1000, 1000, 1000, 1000, -1 };
    struct nk_restart r = { .n_in_a_row = 0 };

    (void)state;
    for (int i = 0; i < NK_RESTART_IN_A_ROW_MAX; i++) {
        if (i % 2) /* whether it was ready for a moment makes no difference */
            nk_restart_ready(&r, (uint64_t)i * MS);
        assert_int_equal(nk_restart_pause_ms(&r, (uint64_t)i * MS), pauses_ms[i]);
    }
}

static void test_restart__one_that_ran_for_a_while_begins_anew(void **state)
{
    struct nk_restart r = { .n_in_a_row = 0 };

    (void)state;
    for (int i = 0; i < 20; i++) {
        nk_restart_ready(&r, 1000 * MS);
        assert_int_equal(nk_restart_pause_ms(&r, (1000 + NK_RESTART_RAN_MS) * MS), 0);
    }
    nk_restart_ready(&r, 1000 * MS);
    assert_int_equal(nk_restart_pause_ms(&r, (1000 + NK_RESTART_RAN_MS) * MS - 1), 250);
    /* A start that fails is not the time before it. */
    assert_int_equal(nk_restart_pause_ms(&r, (2000 + NK_RESTART_RAN_MS) * MS), 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_restart__the_pause_grows_while_it_fails_at_the_start_and_then_it_ends),
        cmocka_unit_test(test_restart__one_that_ran_for_a_while_begins_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
