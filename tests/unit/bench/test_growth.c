/* Curves: the sentence that says whether the cost grows as expected. */
#include "bench/growth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum said { AS_EXPECTED, NOT_AS_EXPECTED, TOO_NOISY };

static enum said what_is_said(const char *figure, const struct nk_curve *c)
{
    const struct nk_figure *f = nk_figure_find(figure);
    char sentence[512];

    assert_non_null(f);
    nk_growth_format(f, c, sentence, sizeof sentence);
    if (strstr(sentence, "too noisy to tell"))
        return TOO_NOISY;
    assert_non_null(strstr(sentence, "as expected"));
    return strstr(sentence, "not as expected") ? NOT_AS_EXPECTED : AS_EXPECTED;
}

/* Five runs with this median that differ by so much of it, all in all. */
static struct nk_summary runs(double median, double spread)
{
    return (struct nk_summary){ .n_ok = 5,
                                .median = median,
                                .low = median * (1 - spread / 2),
                                .high = median * (1 + spread / 2) };
}

static struct nk_curve curve(int n, const double *x, const double *y, double spread)
{
    struct nk_curve c = { .n = n };

    for (int i = 0; i < n; i++) {
        c.at[i].x = x[i];
        c.at[i].y = runs(y[i], spread);
    }
    return c;
}

static void add_whole(struct nk_curve *c, const double *y)
{
    for (int i = 0; i < c->n; i++)
        c->at[i].whole = runs(y[i], 0.2); /* its own spread is nobody's fault */
}

static void test_growth__a_stage_more_costs_a_hop(void **state)
{
    const double x[] = { 1, 2, 4 }, cheap[] = { 10, 9.9, 9.7 }, dear[] = { 10, 9, 7 };
    struct nk_curve c = curve(3, x, cheap, 0.02), d = curve(3, x, dear, 0.02);

    (void)state;
    assert_int_equal(what_is_said("stages", &c), AS_EXPECTED);
    assert_int_equal(what_is_said("stages", &d), NOT_AS_EXPECTED);
    /* 14 % a stage of runs that differ by 12 % is too much; 5 % a stage could be noise, and so
     * could 1 %. */
    d = curve(3, x, dear, 0.12);
    assert_int_equal(what_is_said("stages", &d), NOT_AS_EXPECTED);
    d = curve(3, x, (const double[]){ 10, 9.5, 8.7 }, 0.12);
    assert_int_equal(what_is_said("stages", &d), TOO_NOISY);
    c = curve(3, x, cheap, 0.12);
    assert_int_equal(what_is_said("stages", &c), TOO_NOISY);
}

static void test_growth__stages_asked_in_turn_with_the_whole_model_are_held_against_it(void **state)
{
    const double x[] = { 1, 4 };
    struct nk_curve c = curve(2, x, (const double[]){ 40, 30 }, 0.3); /* a slow hour */

    (void)state;
    c.at[0].ratios = runs(1, 0.04);
    c.at[1].ratios = runs(0.97, 0.04);
    assert_int_equal(what_is_said("stages", &c), AS_EXPECTED);
    c.at[1].ratios = runs(0.8, 0.04);
    assert_int_equal(what_is_said("stages", &c), NOT_AS_EXPECTED);
    c.at[1].ratios = runs(0.9, 0.15);
    assert_int_equal(what_is_said("stages", &c), TOO_NOISY);
}

static void test_growth__more_streams_are_never_slower(void **state)
{
    const double x[] = { 1, 2, 4, 8 };
    struct nk_curve grows = curve(4, x, (const double[]){ 9, 16, 15.8, 40 }, 0.02),
                    falls = curve(4, x, (const double[]){ 9, 16, 12, 40 }, 0.02);

    (void)state;
    assert_int_equal(what_is_said("streams", &grows), AS_EXPECTED);
    assert_int_equal(what_is_said("streams", &falls), NOT_AS_EXPECTED);
    falls = curve(4, x, (const double[]){ 9, 16, 15, 40 }, 0.15);
    assert_int_equal(what_is_said("streams", &falls), TOO_NOISY);
}

static void test_growth__what_the_whole_model_loses_is_not_held_against_the_chain(void **state)
{
    const double x[] = { 4, 8, 32, 64 }, y[] = { 58, 49, 78, 67 };
    struct nk_curve c = curve(4, x, y, 0.02);
    char sentence[512];

    (void)state;
    add_whole(&c, (const double[]){ 51, 43, 83, 72 });
    assert_int_equal(what_is_said("streams", &c), AS_EXPECTED);
    /* The deepest fall is the whole model's, too, but not the other one. */
    add_whole(&c, (const double[]){ 51, 43, 83, 88 });
    nk_growth_format(nk_figure_find("streams"), &c, sentence, sizeof sentence);
    assert_non_null(strstr(sentence, "from 32 to 64 streams it fell by 14 % (the whole model's "
                                     "grew by 6 %), **not as expected**."));
}

static void test_growth__context_costs_a_line(void **state)
{
    /* 50 ms and 10 ms per 1,000 tokens; and one that grows with the square. */
    const double x[] = { 1000, 2000, 4000 }, line[] = { 1e3 / 60, 1e3 / 70, 1e3 / 90 },
                 square[] = { 1e3 / 60, 1e3 / 90, 1e3 / 210 };
    struct nk_curve c = curve(3, x, line, 0.02), d = curve(3, x, square, 0.02);

    (void)state;
    assert_int_equal(what_is_said("context", &c), AS_EXPECTED);
    assert_int_equal(what_is_said("context", &d), NOT_AS_EXPECTED);
    add_whole(&d, line);
    assert_int_equal(what_is_said("context", &d), NOT_AS_EXPECTED);
    add_whole(&d, square);
    assert_int_equal(what_is_said("context", &d), AS_EXPECTED);
    c = curve(3, x, line, 0.3);
    assert_int_equal(what_is_said("context", &c), TOO_NOISY);
}

static void test_growth__the_network_is_held_against_its_limit(void **state)
{
    const double x[] = { 1, 75 };
    struct nk_curve c = curve(2, x, (const double[]){ 9.8, 6.5 }, 0.3);

    (void)state;
    c.at[0].ratios = runs(0.98, 0.01);
    c.at[1].ratios = runs(0.985, 0.01);
    assert_int_equal(what_is_said("network-1g", &c), AS_EXPECTED);
    c.at[1].ratios = runs(0.91, 0.01);
    assert_int_equal(what_is_said("network-1g", &c), NOT_AS_EXPECTED);
    c.at[1].ratios = runs(0.94, 0.12);
    assert_int_equal(what_is_said("network-1g", &c), TOO_NOISY);
}

static void test_growth__one_place_is_no_curve(void **state)
{
    struct nk_curve one = curve(1, (const double[]){ 1 }, (const double[]){ 10 }, 0);
    char sentence[512];

    (void)state;
    nk_growth_format(nk_figure_find("stages"), &one, sentence, sizeof sentence);
    assert_non_null(strstr(sentence, "Too few places"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growth__a_stage_more_costs_a_hop),
        cmocka_unit_test(
            test_growth__stages_asked_in_turn_with_the_whole_model_are_held_against_it),
        cmocka_unit_test(test_growth__more_streams_are_never_slower),
        cmocka_unit_test(test_growth__what_the_whole_model_loses_is_not_held_against_the_chain),
        cmocka_unit_test(test_growth__context_costs_a_line),
        cmocka_unit_test(test_growth__the_network_is_held_against_its_limit),
        cmocka_unit_test(test_growth__one_place_is_no_curve),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
