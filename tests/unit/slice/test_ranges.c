#include "slice/slice.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "unit/slice/make.h"

static void test_ranges__reads_what_is_meant(void **state)
{
    struct nk_range r[3];
    int n;

    (void)state;
    assert_int_equal(nk_ranges_parse("0-14,14-28", r, 3, &n, NULL), 0);
    assert_int_equal(n, 2);
    assert_true(r[0].begin == 0 && r[0].end == 14 && r[1].begin == 14 && r[1].end == 28);
    assert_int_equal(nk_ranges_parse("3-4", r, 3, &n, NULL), 0);
    assert_int_equal(n, 1);
}

static void test_ranges__refuses_everything_else(void **state)
{
    static const char *const bad[] = { "",
                                       "0",
                                       "0-",
                                       "-",
                                       "0-4,",
                                       ",0-4",
                                       "0-4,,4-8",
                                       "4-4",
                                       "4-2",
                                       "0-5,4-8",
                                       "0-3,4-8",
                                       "0-4 ",
                                       "0x1-4",
                                       "0-4-8",
                                       "0-1,1-2,2-3,3-4" /* too many */,
                                       "0-100000000",
                                       "+0-4",
                                       "0 -4",
                                       "a-b" };
    struct nk_range r[3];
    int n;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nk_error err = { 0 };

        if (nk_ranges_parse(bad[i], r, 3, &n, &err) != NK_E_INVALID)
            fail_msg("'%s' was taken", bad[i]);
        assert_string_equal(err.reason, "bad_ranges");
    }
}

static void test_ranges__must_fit_the_model(void **state)
{
    struct made made = make_model(make_gguf("llama", 6, NULL));
    static const struct {
        struct nk_range r[2];
        int n;
        bool whole, good;
    } cases[] = {
        { { { 0, 3 }, { 3, 6 } }, 2, true, true },
        { { { 0, 3 }, { 3, 5 } }, 2, true, false },
        { { { 0, 3 }, { 3, 5 } }, 2, false, true },
        { { { 1, 3 }, { 3, 6 } }, 2, true, false },
        { { { 0, 3 }, { 4, 6 } }, 2, true, false },
        { { { 0, 3 }, { 3, 7 } }, 2, false, false },
        { { { 0, 6 } }, 1, true, true },
        { { { 0, 0 } }, 0, false, false },
        { { { -1, 6 } }, 1, false, false },
        { { { 3, 3 } }, 1, false, false },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_error err = { 0 };
        int rc = nk_ranges_check(made.m, cases[i].r, cases[i].n, cases[i].whole, &err);

        assert_int_equal(!rc, cases[i].good);
        if (rc)
            assert_string_equal(err.reason, "bad_ranges");
    }
    made_free(made);
}

/* The splits that nk_ranges_next gives, as text, each with a space before it. */
static void list_splits(const nk_model *m, char *out, size_t size)
{
    struct nk_range ranges[4];
    int n = 0;

    *out = '\0';
    while (nk_ranges_next(m, ranges, &n)) {
        for (int i = 0; i < n; i++) {
            size_t used = strlen(out);

            snprintf(out + used, size - used, "%s%d-%d", i ? "," : " ", ranges[i].begin,
                     ranges[i].end);
        }
    }
}

static void test_ranges__every_cut_comes_once_and_then_one_split_in_more(void **state)
{
    static const struct {
        const char *arch;
        int n_layer;
        const char *splits;
    } cases[] = {
        { "llama", 1, "" },
        { "llama", 2, "0-1,1-2" },
        { "llama", 3, "0-1,1-3 0-2,2-3 0-1,1-2,2-3" },
        { "llama", 5, "0-1,1-5 0-2,2-5 0-3,3-5 0-4,4-5 0-1,1-2,2-4,4-5" },
        { "smollm3", 8, "0-4,4-8" },
        { "smollm3", 14, "0-4,4-14 0-8,8-14 0-12,12-14 0-4,4-8,8-12,12-14" },
        { "talkie", 6, "" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct made made = make_model(make_gguf(cases[i].arch, cases[i].n_layer, NULL));
        char splits[512];

        list_splits(made.m, splits, sizeof splits);
        assert_string_equal(splits[0] ? splits + 1 : splits, cases[i].splits);
        made_free(made);
    }
}

static uint64_t largest(const nk_model *m, const struct nk_range *r, int k)
{
    const struct nk_model_info *in = nk_model_info(m);
    uint64_t most = 0;

    for (int i = 0; i < k; i++) {
        uint64_t bytes = r[i].end == in->n_layer ? in->head_bytes : 0;

        for (int l = r[i].begin; l < r[i].end; l++)
            bytes += in->layer_bytes[l];
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* The best of all ways to cut [begin, n) into k, by trying each. */
static uint64_t try_all(const nk_model *m, int begin, int k, struct nk_range *r, int at)
{
    int n = nk_model_info(m)->n_layer;
    uint64_t best = UINT64_MAX;

    if (at == k - 1) {
        r[at] = (struct nk_range){ begin, n };
        return begin < n && !nk_ranges_check(m, r, k, true, NULL) ? largest(m, r, k) : UINT64_MAX;
    }
    for (int end = begin + 1; end < n; end++) {
        uint64_t got;

        r[at] = (struct nk_range){ begin, end };
        got = try_all(m, end, k, r, at + 1);
        best = got < best ? got : best;
    }
    return best;
}

static void test_ranges__balance_is_as_good_as_the_best_of_all(void **state)
{
    static const char *const archs[] = { "llama", "smollm3", "gemma2" };
    unsigned seed = 12345;
    int n_possible = 0, n_impossible = 0;

    (void)state;
    for (int round = 0; round < 60; round++) {
        int rows[9], n_layer = 3 + round % 7, k = 1 + round % 4;
        struct nk_range mine[4], theirs[4];
        struct nk_error err = { 0 };
        struct made made;
        uint64_t best;
        int rc;

        for (int i = 0; i < 9; i++) {
            seed = seed * 1103515245 + 12345;
            rows[i] = 1 + (int)(seed >> 16) % 40;
        }
        made = make_model(make_gguf(archs[round % 3], n_layer, rows));
        best = k <= n_layer ? try_all(made.m, 0, k, theirs, 0) : UINT64_MAX;
        rc = nk_ranges_balance(made.m, k, mine, &err);
        assert_int_equal(rc ? UINT64_MAX : largest(made.m, mine, k), best);
        if (rc)
            assert_string_equal(err.reason, "bad_ranges");
        else
            assert_int_equal(nk_ranges_check(made.m, mine, k, true, NULL), 0);
        n_possible += !rc;
        n_impossible += rc != 0;
        made_free(made);
    }
    assert_true(n_possible > 20 && n_impossible > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges__reads_what_is_meant),
        cmocka_unit_test(test_ranges__refuses_everything_else),
        cmocka_unit_test(test_ranges__must_fit_the_model),
        cmocka_unit_test(test_ranges__every_cut_comes_once_and_then_one_split_in_more),
        cmocka_unit_test(test_ranges__balance_is_as_good_as_the_best_of_all),
    };

    return cmocka_run_group_tests_name("ranges", tests, NULL, NULL);
}
