/* Which replica keeps a prompt's beginning. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "gateway/affinity.h"

enum { LONGEST = 5000 };

static struct nk_affinity affinity;
static int32_t ids[LONGEST], others[LONGEST];

static int find(const char *salt, const int32_t *prompt, size_t n)
{
    struct nk_prefixes p;

    nk__prefixes_of(&p, salt, prompt, n);
    return nk__affinity_find(&affinity, &p);
}

static void note(const char *salt, const int32_t *prompt, size_t n, int replica)
{
    struct nk_prefixes p;

    nk__prefixes_of(&p, salt, prompt, n);
    nk__affinity_note(&affinity, &p, replica);
}

static int reset(void **state)
{
    (void)state;
    nk__affinity_reset(&affinity);
    for (int i = 0; i < LONGEST; i++) {
        ids[i] = i;
        others[i] = i < 64 ? i : i + 1;
    }
    return 0;
}

static void test_affinity__what_goes_on_is_found_until_it_is_twice_as_long(void **state)
{
    (void)state;
    for (size_t n = 32; n <= LONGEST / 2; n = n * 9 / 8) {
        nk__affinity_reset(&affinity);
        assert_int_equal(find("", ids, n), -1);
        note("", ids, n, 5);
        assert_int_equal(find("", ids, n), 5);
        assert_int_equal(find("", ids, n + n / 4), 5);
        assert_int_equal(find("", ids, 2 * n + 2), -1);
    }
}

static void test_affinity__a_short_common_beginning_is_none(void **state)
{
    (void)state;
    note("", ids, 1000, 1);
    assert_int_equal(find("", others, 1000), -1);
    assert_int_equal(find("", others, 120), 1); /* half of it and more */
    note("", others, 1000, 2);
    assert_int_equal(find("", ids, 1000), 1);
    assert_int_equal(find("", others, 1000), 2);
}

static void test_affinity__another_salt_keeps_nothing_for_it(void **state)
{
    (void)state;
    note("a", ids, 200, 1);
    assert_int_equal(find("a", ids, 220), 1);
    assert_int_equal(find("", ids, 220), -1);
    assert_int_equal(find("b", ids, 220), -1);
}

static void test_affinity__less_than_32_tokens_are_not_kept(void **state)
{
    (void)state;
    note("", ids, 31, 1);
    assert_int_equal(find("", ids, 31), -1);
    note("", ids, 0, 1);
    assert_int_equal(find("", ids, 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_affinity__what_goes_on_is_found_until_it_is_twice_as_long,
                               reset),
        cmocka_unit_test_setup(test_affinity__a_short_common_beginning_is_none, reset),
        cmocka_unit_test_setup(test_affinity__another_salt_keeps_nothing_for_it, reset),
        cmocka_unit_test_setup(test_affinity__less_than_32_tokens_are_not_kept, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
