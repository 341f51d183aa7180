#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"

static void test_log__levels_are_per_component(void **state)
{
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_log_configure("warn,rpc=trace", &err), 0);
    assert_false(nk_log_enabled(NK_LOG_WORKER, NK_LOG_INFO));
    assert_true(nk_log_enabled(NK_LOG_WORKER, NK_LOG_WARN));
    assert_true(nk_log_enabled(NK_LOG_RPC, NK_LOG_TRACE));
    assert_false(nk_log_enabled(NK_LOG_LLAMA, NK_LOG_WARN));
    assert_int_equal(nk_log_configure("loud", &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_log_spec");
    assert_int_equal(nk_log_configure("nobody=info", &err), NK_E_INVALID);
    assert_true(strstr(err.msg, "nobody=info") != NULL);
}

static void test_log__a_line_is_time_level_component_and_pairs(void **state)
{
    char line[300] = { 0 };
    int fds[2], old;

    (void)state;
    assert_int_equal(pipe(fds), 0);
    old = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    nk_log(NK_LOG_WORKER, NK_LOG_ERROR, "session=%s reason=%s", "7f3a", "peer_gone");
    dup2(old, STDERR_FILENO);
    assert_true(read(fds[0], line, sizeof line - 1) > 0);
    /* 2026-03-02T10:15:04.211Z error worker  session=... */
    assert_int_equal(line[10], 'T');
    assert_int_equal(line[23], 'Z');
    assert_string_equal(line + 24, " error worker  session=7f3a reason=peer_gone\n");
    close(fds[0]);
    close(fds[1]);
    close(old);
}

static void test_log__quoting_keeps_a_line_a_line(void **state)
{
    char out[64], tiny[10];

    (void)state;
    assert_string_equal(nk_log_quote(out, sizeof out, "a \"b\"\n\\"), "\"a \\\"b\\\"\\x0a\\\\\"");
    assert_string_equal(nk_log_quote(out, sizeof out,
                                     "\xc2\x9b"
                                     "2J\xc2\xa0"),
                        "\"\\xc2\\x9b2J\xc2\xa0\"");
    assert_string_equal(nk_log_quote(tiny, sizeof tiny, "abcdefghijkl"), "\"abc\"");
}

static void test_log__what_peers_repeat_is_limited_and_counted(void **state)
{
    struct nk_log_limit limit = { 0 };
    unsigned long n = 99;

    (void)state;
    assert_true(nk_log_allow(&limit, &n));
    assert_int_equal(n, 0);
    for (int i = 0; i < 5; i++)
        assert_false(nk_log_allow(&limit, &n));
    limit.last_ns = nk_now_ns() - 2000000000ull;
    assert_true(nk_log_allow(&limit, &n));
    assert_int_equal(n, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log__levels_are_per_component),
        cmocka_unit_test(test_log__a_line_is_time_level_component_and_pairs),
        cmocka_unit_test(test_log__quoting_keeps_a_line_a_line),
        cmocka_unit_test(test_log__what_peers_repeat_is_limited_and_counted),
    };

    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
