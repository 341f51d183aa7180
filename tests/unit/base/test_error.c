#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static int fails(struct nk_error *err)
{
    errno = ENOENT;
    return nk_fail(err, NK_E_NOT_FOUND, "no_file", "%s is not there", "x.gguf");
}

static void test_error__carries_code_reason_sentence_and_errno(void **state)
{
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(fails(&err), NK_E_NOT_FOUND);
    assert_int_equal(err.code, NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "no_file");
    assert_string_equal(err.msg, "x.gguf is not there");
    assert_int_equal(err.sys, ENOENT);
    assert_true(strstr(err.file, "test_error.c") != NULL && err.line > 0);
    assert_int_equal(fails(NULL), NK_E_NOT_FOUND);
}

static void test_error__wrapping_puts_the_context_first_and_never_overflows(void **state)
{
    struct nk_error err = { 0 };
    char big[2000];

    (void)state;
    fails(&err);
    assert_int_equal(nk_wrap(err.code, &err, "worker %s", "a"), NK_E_NOT_FOUND);
    assert_string_equal(err.msg, "worker a: x.gguf is not there");
    assert_int_equal(nk_wrap(0, &err, "not used"), 0);
    assert_string_equal(err.msg, "worker a: x.gguf is not there");
    memset(big, 'b', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    nk_wrap(err.code, &err, "%s", big);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
}

static void test_error__the_codes_are_grpcs_negated_with_their_http_status(void **state)
{
    (void)state;
    assert_int_equal(NK_E_EXHAUSTED, -8);
    assert_int_equal(nk_code_http(NK_E_EXHAUSTED), 429);
    assert_int_equal(nk_code_http(NK_E_INVALID), 400);
    assert_int_equal(nk_code_http(NK_E_UNAVAILABLE), 503);
    assert_int_equal(nk_code_http(-999), 500);
    assert_string_equal(nk_code_text(NK_E_DEADLINE), "deadline exceeded");
    assert_string_equal(nk_code_text(-999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error__carries_code_reason_sentence_and_errno),
        cmocka_unit_test(test_error__wrapping_puts_the_context_first_and_never_overflows),
        cmocka_unit_test(test_error__the_codes_are_grpcs_negated_with_their_http_status),
    };

    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
