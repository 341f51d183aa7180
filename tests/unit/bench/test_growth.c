/* Curves: the sentence that says whether the cost grows as expected. */
#include "bench/growth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static bool is_as_expected(const char *figure, const struct nk_curve *c)
{
    const struct nk_figure *f = nk_figure_find(figure);
    char sentence[512];

    assert_non_null(f);
    nk_growth_format(f, c, sentence, sizeof sentence);
    assert_non_null(strstr(sentence, "as expected"));
    return strstr(sentence, "not as expected") == NULL;
}

static void test_growth__a_stage_more_costs_a_hop(void **state)
{
    struct nk_curve cheap = { 3, { 1, 2, 4 }, { 10, 9.9, 9.7 }, { 0 } },
                    dear = { 3, { 1, 2, 4 }, { 10, 9, 7 }, { 0 } };

    (void)state;
    assert_true(is_as_expected("stages", &cheap));
    assert_false(is_as_expected("stages", &dear));
}

static void test_growth__more_streams_are_never_slower(void **state)
{
    struct nk_curve grows = { 4, { 1, 2, 4, 8 }, { 9, 16, 15.8, 40 }, { 0 } },
                    falls = { 4, { 1, 2, 4, 8 }, { 9, 16, 12, 40 }, { 0 } };

    (void)state;
    assert_true(is_as_expected("streams", &grows));
    assert_false(is_as_expected("streams", &falls));
}

static void test_growth__context_costs_a_line(void **state)
{
    /* 50 ms and 10 ms per 1,000 tokens; and one that grows with the square. */
    struct nk_curve line = { 3, { 1000, 2000, 4000 }, { 1e3 / 60, 1e3 / 70, 1e3 / 90 }, { 0 } },
                    square = { 3, { 1000, 2000, 4000 }, { 1e3 / 60, 1e3 / 90, 1e3 / 210 }, { 0 } };

    (void)state;
    assert_true(is_as_expected("context", &line));
    assert_false(is_as_expected("context", &square));
}

static void test_growth__the_network_is_held_against_its_limit(void **state)
{
    struct nk_curve near = { 2, { 1, 75 }, { 9.8, 6.5 }, { 10, 6.6 } },
                    far = { 2, { 1, 75 }, { 9.8, 6 }, { 10, 6.6 } };

    (void)state;
    assert_true(is_as_expected("network-1g", &near));
    assert_false(is_as_expected("network-1g", &far));
}

static void test_growth__one_place_is_no_curve(void **state)
{
    struct nk_curve one = { 1, { 1 }, { 10 }, { 0 } };
    char sentence[512];

    (void)state;
    nk_growth_format(nk_figure_find("stages"), &one, sentence, sizeof sentence);
    assert_non_null(strstr(sentence, "Too few places"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growth__a_stage_more_costs_a_hop),
        cmocka_unit_test(test_growth__more_streams_are_never_slower),
        cmocka_unit_test(test_growth__context_costs_a_line),
        cmocka_unit_test(test_growth__the_network_is_held_against_its_limit),
        cmocka_unit_test(test_growth__one_place_is_no_curve),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
