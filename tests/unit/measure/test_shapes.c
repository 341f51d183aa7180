/* Which ranges are tried, and what their times say of single layers. */
#include "measure/measure_int.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "unit/slice/make.h"

struct tried_model {
    char *bytes;
    nk_model *m;
    struct nk__shapes shapes;
    uint64_t cost[NK_LAYERS_MAX];
};

static void make(struct tried_model *d, struct gguf_context *g)
{
    struct nk_error err = { 0 };
    size_t size;

    d->bytes = make_bytes(g, &size);
    if (nk__model_open_memory(&d->m, d->bytes, size, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(nk__shapes_find(d->m, &d->shapes, &err), 0);
    for (int i = 0; i < d->shapes.n_layer; i++)
        d->cost[i] = nk_model_info(d->m)->layer_bytes[i];
}

static void release(struct tried_model *d)
{
    nk_model_close(d->m);
    free(d->bytes);
}

static int choose(struct tried_model *d, uint64_t target, uint64_t max, struct nk_range *ranges)
{
    struct nk_error err = { 0 };
    int n = nk__ranges_choose(d->m, &d->shapes, d->cost, target, max, ranges, &err);

    assert_true(n <= NK__RANGES_MAX);
    for (int i = 0; i < n; i++)
        assert_int_equal(nk_ranges_check(d->m, &ranges[i], 1, false, &err), 0);
    return n;
}

static bool is(struct nk_range r, int begin, int end)
{
    return r.begin == begin && r.end == end;
}

enum { ROW = MAKE_WIDTH * 4 }; /* bytes of a row of floats */

static void test_ranges__of_equal_layers(void **state)
{
    struct nk_range r[NK__RANGES_MAX];
    struct tried_model d;

    (void)state;
    make(&d, make_gguf("llama", 8, NULL));
    assert_int_equal(d.shapes.n, 1);
    assert_int_equal(d.shapes.n_layers[0], 8);
    assert_true(d.shapes.bytes_per_row[0] == ROW);
    /* As many as there are without the head, one, and one with the head. */
    assert_int_equal(choose(&d, 100 * ROW, UINT64_MAX, r), 3);
    assert_true(is(r[2], 0, 7));
    assert_int_equal(r[1].end, 8);
    assert_int_equal(r[1].begin, 7);
    assert_int_equal(r[0].end - r[0].begin, 1);
    /* As many as the target wants; as may be had. */
    choose(&d, 4 * ROW, UINT64_MAX, r);
    assert_int_equal(r[2].end - r[2].begin, 4);
    choose(&d, 100 * ROW, 3 * ROW, r);
    assert_int_equal(r[2].end - r[2].begin, 3);
    /* Not even one may: then one. There is no shorter one. */
    assert_int_equal(choose(&d, 100 * ROW, 1, r), 2);
    assert_int_equal(r[1].end - r[1].begin, 1);
    release(&d);
}

static void test_ranges__each_kind_of_layer_has_one(void **state)
{
    const int rows[] = { 7, 7, 1, 1, 1, 1, 1, 1 }; /* two that are larger lead */
    struct nk_range r[NK__RANGES_MAX];
    bool lead = false;
    struct tried_model d;
    int n;

    (void)state;
    make(&d, make_gguf("llama", 8, rows));
    assert_int_equal(d.shapes.n, 2);
    assert_int_equal(d.shapes.of[1], d.shapes.of[0]);
    assert_int_not_equal(d.shapes.of[2], d.shapes.of[0]);
    n = choose(&d, 2 * ROW, UINT64_MAX, r);
    assert_int_equal(r[n - 1].end - r[n - 1].begin, 2);
    assert_true(r[n - 1].begin >= 2);
    for (int i = 0; i < n; i++)
        lead |= r[i].end <= 2;
    assert_true(lead);
    release(&d);
}

static void test_ranges__are_legal_where_layers_alone_are_not(void **state)
{
    struct nk_range r[NK__RANGES_MAX];
    struct tried_model d;
    int n;

    (void)state;
    /* Sliding windows but for every sixth layer: a slice needs one of each. */
    make(&d, make_gguf("gemma3", 12, NULL));
    n = choose(&d, 1, UINT64_MAX, r); /* checks that all are */
    assert_true(n >= 1);
    release(&d);
    make(&d, make_gguf("smollm3", 12, NULL)); /* only at multiples of four */
    n = choose(&d, 1, UINT64_MAX, r);
    assert_int_equal(r[n - 1].end - r[n - 1].begin, 4);
    release(&d);
}

static void test_ranges__of_a_model_that_cannot_be_cut(void **state)
{
    struct nk_range r[NK__RANGES_MAX];
    struct nk_error err = { 0 };
    struct tried_model d;

    (void)state;
    make(&d, make_gguf("rwkv7", 4, NULL));
    assert_int_equal(nk__ranges_choose(d.m, &d.shapes, d.cost, 1, UINT64_MAX, r, &err), 0);
    assert_string_equal(err.reason, "cannot_split");
    release(&d);
}

/* What stages of these ranges would take, if this were right. */
static void times_of(const struct nk__shapes *s, const struct nk__shares *right,
                     const struct nk_range *ranges, int n, double *ms)
{
    for (int i = 0; i < n; i++) {
        ms[i] = right->fixed + (ranges[i].end == s->n_layer ? right->head : 0);
        for (int l = ranges[i].begin; l < ranges[i].end; l++)
            ms[i] += right->layer[s->of[l]];
    }
}

static bool is_near(double a, double b, double share)
{
    return fabs(a - b) <= share * b;
}

static void test_shares__are_found_from_sums(void **state)
{
    const int rows[] = { 7, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    const struct nk__shares right = { .fixed = 0.5, .head = 9, .layer = { 5, 2 } };
    struct nk_range r[NK__RANGES_MAX];
    double ms[NK__RANGES_MAX];
    struct nk__shares got;
    struct tried_model d;
    int n;

    (void)state;
    make(&d, make_gguf("llama", 12, rows));
    n = choose(&d, 8 * ROW, UINT64_MAX, r);
    times_of(&d.shapes, &right, r, n, ms);
    nk__shares_solve(&d.shapes, 1000, r, ms, n, &got);
    assert_true(is_near(got.layer[0], 5, 0.02));
    assert_true(is_near(got.layer[1], 2, 0.02));
    assert_true(is_near(got.head, 9, 0.02));
    assert_true(is_near(got.fixed, 0.5, 0.1));
    release(&d);
}

static void test_shares__disturbed_times_give_no_negative_ones(void **state)
{
    struct nk_range r[NK__RANGES_MAX];
    struct nk__shares got;
    struct tried_model d;

    (void)state;
    make(&d, make_gguf("llama", 8, NULL));
    assert_int_equal(choose(&d, 100 * ROW, UINT64_MAX, r), 3);
    /* One layer, that with the head, all others: the first took too long, the head no time. */
    nk__shares_solve(&d.shapes, 1000, r, (const double[]){ 9, 2, 14 }, 3, &got);
    assert_true(got.fixed >= 0 && got.head >= 0 && got.layer[0] >= 0);
    assert_true(is_near(got.fixed + 7 * got.layer[0], 14, 1e-6)); /* most of all what most are */
    release(&d);
}

static void test_shares__what_was_not_tried_goes_by_its_bytes(void **state)
{
    const int rows[] = { 1, 3, 1, 1, 1, 1, 1, 1 };
    const struct nk_range r = { 2, 6 };
    const double ms = 8;
    struct nk__shares got;
    struct tried_model d;

    (void)state;
    make(&d, make_gguf("llama", 8, rows));
    nk__shares_solve(&d.shapes, 10 * ROW, &r, &ms, 1, &got);
    assert_true(is_near(got.layer[d.shapes.of[2]], 2, 0.01));
    assert_true(is_near(got.layer[d.shapes.of[1]], 6, 0.01));
    assert_true(is_near(got.head, 20, 0.01));
    release(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges__of_equal_layers),
        cmocka_unit_test(test_ranges__each_kind_of_layer_has_one),
        cmocka_unit_test(test_ranges__are_legal_where_layers_alone_are_not),
        cmocka_unit_test(test_ranges__of_a_model_that_cannot_be_cut),
        cmocka_unit_test(test_shares__are_found_from_sums),
        cmocka_unit_test(test_shares__disturbed_times_give_no_negative_ones),
        cmocka_unit_test(test_shares__what_was_not_tried_goes_by_its_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
