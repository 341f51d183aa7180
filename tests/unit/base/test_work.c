#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/work.h"

static void test_work__ends_at_its_ceiling_and_says_whose(void **state)
{
    struct nk_work work = NK_WORK_INIT(NULL);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_work_spend(&work, NK_WORK_STEPS_MAX, "the text", &err), 0);
    assert_int_equal(nk_work_spend(&work, 0, "the text", &err), 0);
    assert_int_equal(nk_work_spend(&work, 1, "the text", &err), NK_E_INVALID);
    assert_string_equal(err.reason, "too_much_work");
    assert_non_null(strstr(err.msg, "the text"));
    assert_non_null(strstr(err.msg, "16000000"));
    /* Again and again, and however much. */
    assert_int_equal(nk_work_spend(&work, INT64_MAX, "the text", NULL), NK_E_INVALID);
    assert_int_equal(work.n_steps, NK_WORK_STEPS_MAX);
}

static void test_work__ends_when_its_result_is_not_wanted(void **state)
{
    atomic_bool cancelled;
    struct nk_work work = NK_WORK_INIT(&cancelled);
    struct nk_error err = { 0 };

    (void)state;
    atomic_init(&cancelled, false);
    assert_int_equal(nk_work_spend(&work, 1, "the text", &err), 0);
    atomic_store(&cancelled, true);
    assert_int_equal(nk_work_spend(&work, 0, "the text", &err), NK_E_CANCELLED);
    assert_string_equal(err.reason, "cancelled");
}

static void test_work__may_be_none(void **state)
{
    (void)state;
    assert_int_equal(nk_work_spend(NULL, INT64_MAX, "the text", NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work__ends_at_its_ceiling_and_says_whose),
        cmocka_unit_test(test_work__ends_when_its_result_is_not_wanted),
        cmocka_unit_test(test_work__may_be_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
