#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"

static void test_buf__grows_to_its_ceiling_and_no_further(void **state)
{
    struct nk_buf b = NK_BUF_INIT(1000);
    struct nk_error err = { 0 };
    char chunk[100];

    (void)state;
    memset(chunk, 'x', sizeof chunk);
    for (int i = 0; i < 10; i++)
        assert_int_equal(nk_buf_add(&b, chunk, sizeof chunk, &err), 0);
    assert_int_equal(b.size, 1000);
    assert_int_equal(nk_buf_add(&b, "y", 1, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_int_equal(b.size, 1000);
    assert_int_equal(b.data[1000], '\0');
    nk_buf_release(&b);
}

static void test_buf__an_absurd_size_is_refused_before_it_is_allocated(void **state)
{
    struct nk_buf b = NK_BUF_INIT(SIZE_MAX);
    struct nk_error err = { 0 };
    char *where;

    (void)state;
    assert_int_equal(nk_buf_adds(&b, "abc", &err), 0);
    assert_int_equal(nk_buf_reserve(&b, SIZE_MAX - 1, &where, &err), NK_E_EXHAUSTED);
    assert_int_equal(nk_buf_reserve(&b, SIZE_MAX - 8, &where, &err), NK_E_EXHAUSTED);
    assert_string_equal(nk_buf_str(&b), "abc");
    nk_buf_release(&b);
}

static void test_buf__is_a_string_at_every_moment(void **state)
{
    struct nk_buf b = NK_BUF_INIT(4096);
    char *taken;
    size_t size;

    (void)state;
    assert_string_equal(nk_buf_str(&b), "");
    assert_int_equal(nk_buf_addf(&b, NULL, "%d-%s", 12, "ab"), 0);
    assert_string_equal(b.data, "12-ab");
    nk_buf_consume(&b, 3);
    assert_string_equal(b.data, "ab");
    taken = nk_buf_take(&b, &size);
    assert_string_equal(taken, "ab");
    assert_int_equal(size, 2);
    assert_int_equal(b.size, 0);
    assert_null(b.data);
    free(taken);
    taken = nk_buf_take(&b, NULL);
    assert_string_equal(taken, "");
    free(taken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf__grows_to_its_ceiling_and_no_further),
        cmocka_unit_test(test_buf__an_absurd_size_is_refused_before_it_is_allocated),
        cmocka_unit_test(test_buf__is_a_string_at_every_moment),
    };

    return cmocka_run_group_tests_name("buf", tests, NULL, NULL);
}
