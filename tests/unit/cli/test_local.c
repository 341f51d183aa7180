#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cli/local.h"

static void test_local__only_a_workers_own_line_says_that_it_is_ready(void **state)
{
    static const char *const others[] = {
        "",
        "ready",
        "ready 127.0.0.1:5530",
        "ready 127.0.0.1:5530 layers",
        "ready 127.0.0.1:5530 layers 0-4 of 8",
        "ready 127.0.0.1:5530 layers 0-5 of 8 device CPU",
        "ready 127.0.0.1:5530 layers 1-4 of 8 device CPU",
        "ready nowhere layers 0-4 of 8 device CPU",
        " ready-made",
        "[New LWP 4711]",
        "ready to die: GGML_ASSERT(a == b) failed",
        "0x00007f0000000000 in __GI___wait4 () from libc.so.6",
    };
    char address[256];

    (void)state;
    assert_true(nk_local_ready("ready 127.0.0.1:5530 layers 0-4 of 8 device CPU", 0, 4, address));
    assert_string_equal(address, "127.0.0.1:5530");
    assert_true(
        nk_local_ready("ready [::1]:1 layers 4-8 of 8 device Vulkan0 (x y)", 4, 8, address));
    assert_string_equal(address, "[::1]:1");
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (nk_local_ready(others[i], 0, 4, address))
            fail_msg("%s", others[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local__only_a_workers_own_line_says_that_it_is_ready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
