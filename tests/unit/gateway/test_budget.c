#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "gateway/budget.h"

static void test_budget__what_is_held_is_held_once_and_never_above_the_ceiling(void **state)
{
    struct nk_budget b;
    size_t one = 0, two = 0;

    (void)state;
    nk__budget_init(&b, 100);
    assert_true(nk__budget_hold(&b, &one, 60, 100));
    assert_false(nk__budget_hold(&b, &two, 41, 100));
    assert_int_equal(two, 0);
    assert_true(nk__budget_hold(&b, &two, 40, 100));
    assert_false(nk__budget_hold(&b, &two, 41, 100));
    assert_true(nk__budget_hold(&b, &one, 10, 0)); /* less is always possible */
    assert_true(nk__budget_hold(&b, &two, 50, 60));
    assert_false(nk__budget_hold(&b, &two, 51, 60));
    assert_false(nk__budget_hold(&b, &two, SIZE_MAX, 100));
    assert_true(nk__budget_hold(&b, &one, 0, 0));
    assert_true(nk__budget_hold(&b, &two, 0, 0));
    assert_int_equal(atomic_load(&b.used), 0);
}

/* ---- the price of JSON, and what jansson really takes ---- */

static size_t allocated;

static void *counting_malloc(size_t n)
{
    size_t *p = malloc(n + 16);

    /* malloc's own: rounded up to 16 with 8 of its own, and at least 32 */
    n = (n + 8 + 15) / 16 * 16;
    *p = n < 32 ? 32 : n;
    allocated += *p;
    return p + 2;
}

static void counting_free(void *p)
{
    if (!p)
        return;
    allocated -= ((size_t *)p)[-2];
    free((size_t *)p - 2);
}

static void test_budget__json_costs_at_least_what_jansson_takes_and_not_far_more(void **state)
{
    enum { N = 5000 };
    static const struct {
        const char *begin, *each, *end; /* each N times */
        double at_most;                 /* of what it takes */
    } all[] = {
        { "[1", ",[]", "]", 2 },
        { "[1", ",{}", "]", 2 },
        { "[1", ",1", "]", 2.5 },
        { "[1", ",-1.5e+3", "]", 3 },
        { "[1", ",true", "]", 8 },
        { "[1", ",\"\"", "]", 2 },
        { "[1", ",\"some words of a text\"", "]", 3 },
        { "[1", ",{\"a\":1}", "]", 2.5 },
        { "[1", ",{\"a\":[{\"b\":\"c\"}],\"d\":null}", "]", 2.5 },
        { "{\"messages\":\"", "a [text] with {commas}, and: \\\"quotes\\\" ", "\"}", 5 },
        /* Deep, as far as jansson goes. */
        { "[1,", "[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]],", "1]", 2.5 },
    };

    (void)state;
    json_set_alloc_funcs(counting_malloc, counting_free);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        size_t each = strlen(all[i].each), size = strlen(all[i].begin), cost, took;
        char *text = malloc(size + N * each + strlen(all[i].end) + 1);
        json_t *root;

        memcpy(text, all[i].begin, size);
        for (int n = 0; n < N; n++, size += each)
            memcpy(text + size, all[i].each, each);
        strcpy(text + size, all[i].end);
        size += strlen(all[i].end);
        root = json_loadb(text, size, 0, NULL);
        assert_non_null(root);
        took = allocated + 2 * size; /* with the body's buffer */
        cost = nk__json_cost(text, size);
        if (cost < took || (double)cost > all[i].at_most * (double)took)
            fail_msg("%s: takes %zu bytes, is taken to cost %zu", all[i].each, took, cost);
        json_decref(root);
        free(text);
    }
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(allocated, 0);
}

static void test_budget__a_member_costs_what_it_takes_in_one_object(void **state)
{
    enum { N = 20000 };
    char *text = malloc(N * 16 + 8);
    size_t size = 1, cost;
    json_t *root;

    (void)state;
    text[0] = '{';
    for (int i = 0; i < N; i++)
        size += (size_t)sprintf(text + size, "%s\"%d\":%d", i ? "," : "", i, i);
    size += (size_t)sprintf(text + size, "}");
    json_set_alloc_funcs(counting_malloc, counting_free);
    root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    cost = nk__json_cost(text, size);
    if (cost < allocated + 2 * size || cost > 3 * allocated)
        fail_msg("takes %zu bytes, is taken to cost %zu", allocated + 2 * size, cost);
    json_decref(root);
    json_set_alloc_funcs(malloc, free);
    free(text);
}

static void test_budget__what_is_no_json_has_a_price_too(void **state)
{
    (void)state;
    assert_int_equal(nk__json_cost("", 0), 0);
    assert_true(nk__json_cost("\"\\", 2) > 0); /* ends in the middle of an escape */
    assert_true(nk__json_cost("]}\"", 3) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget__what_is_held_is_held_once_and_never_above_the_ceiling),
        cmocka_unit_test(test_budget__json_costs_at_least_what_jansson_takes_and_not_far_more),
        cmocka_unit_test(test_budget__a_member_costs_what_it_takes_in_one_object),
        cmocka_unit_test(test_budget__what_is_no_json_has_a_price_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
