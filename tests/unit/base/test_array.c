#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/array.h"

static void test_array__keeps_what_is_in_it_while_it_grows(void **state)
{
    int64_t *a = NULL;
    size_t capacity = 0, n_moves = 0;

    (void)state;
    for (size_t n = 0; n < 100000; n++) {
        size_t before = capacity;

        assert_int_equal(nk_array_grow(a, capacity, n + 1, SIZE_MAX, NULL), 0);
        assert_true(capacity > n);
        n_moves += capacity != before;
        a[n] = (int64_t)n * 3;
    }
    assert_true(n_moves < 20); /* doubled, not moved for each */
    for (size_t n = 0; n < 100000; n++)
        assert_int_equal(a[n], n * 3);
    free(a);
}

static void test_array__room_that_is_there_is_left_alone(void **state)
{
    char *a = NULL, *before;
    size_t capacity = 0;

    (void)state;
    assert_int_equal(nk_array_grow(a, capacity, 0, 10, NULL), 0);
    assert_null(a);
    assert_int_equal(nk_array_grow(a, capacity, 5, 1000, NULL), 0);
    before = a;
    for (size_t n = 0, room = capacity; n <= room; n++) {
        assert_int_equal(nk_array_grow(a, capacity, n, 1000, NULL), 0);
        assert_ptr_equal(a, before);
        assert_int_equal(capacity, room);
    }
    free(a);
}

static void test_array__grows_to_its_ceiling_and_no_further(void **state)
{
    struct nk_error err = { 0 };
    uint16_t *a = NULL;
    size_t capacity = 0;

    (void)state;
    assert_int_equal(nk_array_grow(a, capacity, 1, 3, &err), 0);
    assert_int_equal(capacity, 3);
    assert_int_equal(nk_array_grow(a, capacity, 4, 3, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_string_equal(err.msg, "4 elements are over the limit of 3");
    assert_int_equal(capacity, 3);
    assert_int_equal(nk_array_grow(a, capacity, 4, 1000, &err), 0);
    assert_int_equal(nk_array_grow(a, capacity, 700, 1000, &err), 0); /* at once */
    assert_int_equal(capacity, 700);
    assert_int_equal(nk_array_grow(a, capacity, 701, 1000, &err), 0);
    assert_int_equal(capacity, 1000); /* and not 1400 */
    memset(a, 0x55, capacity * sizeof *a);
    free(a);
}

static void test_array__an_absurd_size_is_refused_before_it_is_allocated(void **state)
{
    struct nk_error err = { 0 };
    uint64_t *a = NULL;
    size_t capacity = 0;

    (void)state;
    assert_int_equal(nk_array_grow(a, capacity, 1, SIZE_MAX, &err), 0);
    *a = 42;
    /* Times 8 bytes that is more than a size_t holds, or more than an object may have. */
    for (size_t n = SIZE_MAX; n > SIZE_MAX / 16; n = n / 2 + 1) {
        size_t before = capacity;

        memset(&err, 0, sizeof err);
        assert_int_equal(nk_array_grow(a, capacity, n, SIZE_MAX, &err), NK_E_EXHAUSTED);
        assert_string_equal(err.reason, "no_memory");
        assert_int_equal(capacity, before);
        assert_int_equal(*a, 42);
    }
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_array__keeps_what_is_in_it_while_it_grows),
        cmocka_unit_test(test_array__room_that_is_there_is_left_alone),
        cmocka_unit_test(test_array__grows_to_its_ceiling_and_no_further),
        cmocka_unit_test(test_array__an_absurd_size_is_refused_before_it_is_allocated),
    };

    return cmocka_run_group_tests_name("array", tests, NULL, NULL);
}
