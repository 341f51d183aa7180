/* Rows of logits compared and counted. */
#include "stage/difference.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { N = 4 };

static void test_difference__of_the_same_is_none(void **state)
{
    static const float row[N] = { 1, -2, 3, 0.5f }, zeros[N] = { 0 };
    struct nk_difference d = { 0 };

    (void)state;
    nk_difference_add(&d, row, row, N);
    nk_difference_add(&d, zeros, zeros, N);
    assert_int_equal(d.n_rows, 2);
    assert_int_equal(d.n_identical, 2);
    assert_int_equal(d.n_top1, 2);
    assert_int_equal(d.n_not_finite, 0);
    assert_true(d.worst_nmse == 0);
}

static void test_difference__of_one_bit_is_seen(void **state)
{
    static const float want[N] = { 1, -2, 3, 0 }, zero[N] = { 1, -2, 3, -0.0f };
    float got[N] = { 1, -2, 3, 0 };
    struct nk_difference d = { 0 };

    (void)state;
    got[1] = nextafterf(got[1], 0);
    nk_difference_add(&d, want, got, N);
    assert_int_equal(d.n_identical, 0);
    assert_int_equal(d.n_top1, 1);
    assert_true(d.worst_nmse > 0 && d.worst_nmse < 1e-14);
    nk_difference_add(&d, want, zero, N); /* equal, but not the same bits */
    assert_int_equal(d.n_identical, 0);
}

static void test_difference__keeps_the_worst_row(void **state)
{
    static const float want[N] = { 3, 4, 0, 0 }, near[N] = { 3, 4, 1, 0 }, far[N] = { 3, 4, 5, 0 };
    static const float zeros[N] = { 0 }, two[N] = { 0, 0, 0, 2 };
    struct nk_difference d = { 0 };

    (void)state;
    nk_difference_add(&d, want, near, N);
    assert_true(d.worst_nmse == 1.0 / 25);
    nk_difference_add(&d, want, far, N);
    assert_true(d.worst_nmse == 1);
    nk_difference_add(&d, want, near, N);
    assert_true(d.worst_nmse == 1);
    assert_int_equal(d.n_rows, 3);
    assert_int_equal(d.n_top1, 2);
    nk_difference_add(&d, zeros, two, N); /* nothing to divide by */
    assert_true(d.worst_nmse == 4);
}

static void test_difference__nan_is_the_worst_of_all(void **state)
{
    static const float want[N] = { 1, 2, 3, 4 }, got[N] = { 1, 2, NAN, 4 };
    static const float infinite[N] = { 1, INFINITY, 3, 4 };
    struct nk_difference d = { 0 };

    (void)state;
    nk_difference_add(&d, want, got, N);
    assert_true(isnan(d.worst_nmse));
    assert_int_equal(d.n_not_finite, 0); /* what was wanted is a number */
    nk_difference_add(&d, want, want, N);
    assert_true(isnan(d.worst_nmse));
    nk_difference_add(&d, infinite, infinite, N); /* the same, and proves nothing */
    assert_int_equal(d.n_not_finite, 1);
    assert_int_equal(d.n_identical, 2);
}

static void test_difference__of_equals_the_first_is_the_most_probable(void **state)
{
    static const float row[N] = { -1, 2, 2, 1 };

    (void)state;
    assert_int_equal(nk_logits_top1(row, N), 1);
    assert_int_equal(nk_logits_top1(row, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_difference__of_the_same_is_none),
        cmocka_unit_test(test_difference__of_one_bit_is_seen),
        cmocka_unit_test(test_difference__keeps_the_worst_row),
        cmocka_unit_test(test_difference__nan_is_the_worst_of_all),
        cmocka_unit_test(test_difference__of_equals_the_first_is_the_most_probable),
    };

    return cmocka_run_group_tests_name("difference", tests, NULL, NULL);
}
