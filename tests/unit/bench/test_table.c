/* Rows survive CSV, medians leave out what is no figure, and verdicts say when they cannot tell. */
#include "bench/table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "bench/stats.h"

static struct nk_row row(const char *figure, const char *system, double value,
                         enum nk_row_status status)
{
    struct nk_row r = {
        .run = 1, .status = status, .value = value, .unit = "tok/s", .slowdown = 1
    };

    snprintf(r.figure, sizeof r.figure, "%s", figure);
    snprintf(r.system, sizeof r.system, "%s", system);
    return r;
}

static void add(struct nk_table *t, const char *figure, const char *system, double value)
{
    struct nk_row r = row(figure, system, value, NK_ROW_OK);

    assert_int_equal(nk_table_add(t, &r, NULL), 0);
}

static int parse(struct nk_table *t, const char *text, struct nk_error *err)
{
    return nk_table_parse(t, (struct nk_bytes){ (const uint8_t *)text, strlen(text) }, "x.csv",
                          err);
}

static void test_table__rows_survive_csv(void **state)
{
    struct nk_row a = row("decode-1", "ours", 17.25, NK_ROW_OK),
                  b = row("hop", "rpc", 0, NK_ROW_FAILED);
    struct nk_buf out = NK_BUF_INIT(10000);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    snprintf(a.machine, sizeof a.machine, "EPYC, 2 cores, \"quiet\"");
    snprintf(b.note, sizeof b.note, "line one\nline two");
    b.x = 75;
    assert_int_equal(nk_table_format_header(&out, NULL), 0);
    assert_int_equal(nk_table_format_row(&a, &out, NULL), 0);
    assert_int_equal(nk_table_format_row(&b, &out, NULL), 0);
    assert_int_equal(parse(&t, nk_buf_str(&out), NULL), 0);
    assert_int_equal(t.n, 2);
    assert_string_equal(t.rows[0].machine, a.machine);
    assert_true(t.rows[0].value == 17.25 && t.rows[0].status == NK_ROW_OK);
    assert_string_equal(t.rows[1].note, b.note);
    assert_true(t.rows[1].x == 75 && t.rows[1].status == NK_ROW_FAILED);
    nk_table_release(&t);
    nk_buf_release(&out);
}

static void test_table__unusable_csv_is_named_by_line(void **state)
{
    static const char header[] =
        "figure,system,x,run,status,value,unit,params,model,foreign,slowdown,note,time,commit,"
        "version,llama,machine\n";
    static const struct {
        const char *line, *says;
    } bad[] = {
        { "a,b,0,1,ok,seven,tok/s,,,0,1,,,,,,\n", "x.csv:2: value: 'seven'" },
        { "a,b,0,1,fine,7,tok/s,,,0,1,,,,,,\n", "status 'fine'" },
        { "a,b,0\n", "fewer than 17" },
        { "a,b,0,1,ok,7,tok/s,,,0,1,,,,,,,\n", "more than 17" },
        { "\"a,b\n", "quote without end" },
        { "a,b,0,1,ok,nan,tok/s,,,0,1,,,,,,\n", "not a number" },
    };
    char text[1024];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nk_table t = NK_TABLE_INIT;
        struct nk_error err;

        snprintf(text, sizeof text, "%s%s", header, bad[i].line);
        assert_int_equal(parse(&t, text, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_csv");
        if (!strstr(err.msg, bad[i].says))
            fail_msg("'%s' does not say '%s'", err.msg, bad[i].says);
        nk_table_release(&t);
    }
    for (int i = 0; i < 2; i++) {
        struct nk_table t = NK_TABLE_INIT;
        struct nk_error err;

        assert_int_equal(parse(&t, i ? "" : "name,age\nme,7\n", &err), NK_E_INVALID);
        nk_table_release(&t);
    }
}

static void test_table__summary_counts_only_runs_that_are_figures(void **state)
{
    struct nk_table t = NK_TABLE_INIT;
    struct nk_row noisy = row("f", "ours", 1, NK_ROW_NOISY),
                  failed = row("f", "ours", 2, NK_ROW_FAILED);
    struct nk_summary s;

    (void)state;
    add(&t, "f", "ours", 12);
    add(&t, "f", "ours", 10);
    add(&t, "f", "ours", 14);
    add(&t, "f", "whole", 99);
    nk_table_add(&t, &noisy, NULL);
    nk_table_add(&t, &failed, NULL);
    s = nk_table_summarise(&t, "f", 0, "ours");
    assert_int_equal(s.n_ok, 3);
    assert_int_equal(s.n_noisy, 1);
    assert_int_equal(s.n_failed, 1);
    assert_true(s.median == 12 && s.min == 10 && s.max == 14);
    s = nk_table_summarise(&t, "f", 8, "ours");
    assert_int_equal(s.n_ok, 0);
    nk_table_release(&t);
}

static enum nk_verdict verdict(double ours_min, double ours, double ours_max, double theirs_min,
                               double theirs, double theirs_max, double bar, bool lower)
{
    struct nk_summary a = { .n_ok = 5, .median = ours, .low = ours_min, .high = ours_max };
    struct nk_summary b = { .n_ok = 5, .median = theirs, .low = theirs_min, .high = theirs_max };
    double ratio;

    return nk_verdict_of(&a, &b, bar, lower, &ratio);
}

static void test_table__verdict_says_when_it_cannot_tell(void **state)
{
    struct nk_summary none = { 0 }, some = { .n_ok = 5, .median = 1, .low = 1, .high = 1 };
    double ratio;

    (void)state;
    assert_int_equal(verdict(9.9, 10, 10.1, 9.9, 10, 10.1, 0.97, false), NK_VERDICT_REACHED);
    assert_int_equal(verdict(8.9, 9, 9.1, 9.9, 10, 10.1, 0.97, false), NK_VERDICT_MISSED);
    assert_int_equal(verdict(7, 10, 11, 9.9, 10, 10.1, 0.97, false), NK_VERDICT_NOISY);
    assert_int_equal(verdict(18, 20, 25, 9.9, 10, 10.1, 0.97, false),
                     NK_VERDICT_REACHED); /* spread, but far above */
    assert_int_equal(verdict(0.9, 1, 1.01, 0.99, 1, 1.01, 1.05, true), NK_VERDICT_REACHED);
    assert_int_equal(verdict(1.19, 1.2, 1.21, 0.99, 1, 1.01, 1.05, true), NK_VERDICT_MISSED);
    assert_int_equal(nk_verdict_of(&none, &some, 1, false, &ratio), NK_VERDICT_NONE);
    none.n_noisy = 3;
    assert_int_equal(nk_verdict_of(&none, &some, 1, false, &ratio), NK_VERDICT_NOISY);
}

static void add_turn(struct nk_table *t, const char *system, int run, enum nk_row_status status,
                     double value)
{
    struct nk_row r = { .figure = "f", .run = run, .status = status, .value = value };

    snprintf(r.system, sizeof r.system, "%s", system);
    assert_int_equal(nk_table_add(t, &r, NULL), 0);
}

static void test_table__ratios_are_of_the_same_run(void **state)
{
    struct nk_table t = NK_TABLE_INIT;
    struct nk_summary s;

    (void)state;
    add_turn(&t, "ours", 1, NK_ROW_OK, 11);
    add_turn(&t, "whole", 1, NK_ROW_OK, 10);
    add_turn(&t, "ours", 2, NK_ROW_NOISY, 90);
    add_turn(&t, "whole", 2, NK_ROW_NOISY, 10);
    add_turn(&t, "ours", 2, NK_ROW_OK, 24); /* once more */
    add_turn(&t, "whole", 2, NK_ROW_OK, 20);
    add_turn(&t, "ours", 3, NK_ROW_OK, 9);
    add_turn(&t, "whole", 3, NK_ROW_FAILED, 0);
    add_turn(&t, "ours", 1, NK_ROW_OK, 26); /* another sitting, another order */
    add_turn(&t, "whole", 1, NK_ROW_OK, 20);
    s = nk_table_ratios(&t, "f", 0, "ours", "whole");
    assert_int_equal(s.n_ok, 3);
    assert_int_equal(s.n_noisy, 1);
    assert_int_equal(s.n_failed, 1);
    assert_true(s.min > 1.099 && s.min < 1.101 && s.median > 1.199 && s.median < 1.201);
    assert_true(s.max > 1.299 && s.max < 1.301);
    assert_int_equal(nk_verdict_pairs(&s, 1.02, true), NK_VERDICT_MISSED);
    assert_int_equal(nk_verdict_pairs(&s, 1.25, true), NK_VERDICT_NOISY);
    assert_int_equal(nk_verdict_pairs(&s, 1.5, true), NK_VERDICT_REACHED);
    s = nk_table_ratios(&t, "f", 0, "ours", "rpc");
    assert_int_equal(nk_verdict_pairs(&s, 1, true), NK_VERDICT_NOISY);
    s = nk_table_ratios(&t, "g", 0, "ours", "whole");
    assert_int_equal(nk_verdict_pairs(&s, 1, true), NK_VERDICT_NONE);
    nk_table_release(&t);
}

static void test_table__more_runs_tell_more(void **state)
{
    static const struct {
        int n, rank;
    } known[] = { { 0, 0 },  { 1, 0 },  { 2, 0 },  { 5, 0 },  { 8, 0 },      { 9, 1 },
                  { 11, 1 }, { 12, 2 }, { 15, 3 }, { 20, 5 }, { 1000, 470 }, { 1 << 20, 470 } };
    struct nk_table t = NK_TABLE_INIT;
    struct nk_summary s;

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        assert_int_equal(nk_median_rank(known[i].n), known[i].rank);
    for (int run = 1; run <= 9; run++) {
        add_turn(&t, "ours", run, NK_ROW_OK,
                 run == 4 ? 80 : 100 + run); /* one of them was disturbed */
        add_turn(&t, "whole", run, NK_ROW_OK, 100);
        s = nk_table_ratios(&t, "f", 0, "ours", "whole");
        assert_int_equal(nk_verdict_pairs(&s, 0.97, false), run < 4   ? NK_VERDICT_REACHED
                                                            : run < 9 ? NK_VERDICT_NOISY
                                                                      : NK_VERDICT_REACHED);
    }
    assert_true(s.min < 0.81 && s.low > 1 && s.high < 1.085 && s.max > 1.085);
    assert_int_equal(nk_verdict_pairs(&s, 1.06, false), NK_VERDICT_MISSED);
    nk_table_release(&t);
}

static void test_table__verdict_against_a_limit_and_a_difference(void **state)
{
    struct nk_summary low = { .n_ok = 5, .median = 50, .low = 49, .high = 51 },
                      wide = { .n_ok = 5, .median = 58, .low = 50, .high = 70 },
                      none = { .n_failed = 1 };
    double difference;

    (void)state;
    assert_int_equal(nk_verdict_limit(&low, 60, true), NK_VERDICT_REACHED);
    assert_int_equal(nk_verdict_limit(&low, 40, true), NK_VERDICT_MISSED);
    assert_int_equal(nk_verdict_limit(&low, 50, false), NK_VERDICT_REACHED);
    assert_int_equal(nk_verdict_limit(&wide, 60, true), NK_VERDICT_NOISY);
    assert_int_equal(nk_verdict_limit(&none, 60, true), NK_VERDICT_NONE);
    assert_int_equal(nk_verdict_added(&wide, &low, 30, &difference), NK_VERDICT_REACHED);
    assert_true(difference == 8);
    assert_int_equal(nk_verdict_added(&low, &wide, 3, &difference), NK_VERDICT_REACHED);
    assert_int_equal(nk_verdict_added(&wide, &low, 3, &difference), NK_VERDICT_NOISY);
    assert_int_equal(nk_verdict_added(&low, &none, 3, &difference), NK_VERDICT_NONE);
}

static void test_table__comparison_tells_a_change_from_noise(void **state)
{
    struct nk_table a = NK_TABLE_INIT, b = NK_TABLE_INIT;
    struct nk_buf out = NK_BUF_INIT(10000);
    int n_worse;

    (void)state;
    for (int i = 0; i < 3; i++) {
        add(&a, "slower", "ours", 10 + 0.1 * i);
        add(&b, "slower", "ours", 8 + 0.1 * i);
        add(&a, "same", "ours", 10 + i);
        add(&b, "same", "ours", 9 + i);
    }
    add(&b, "new", "ours", 5);
    assert_int_equal(nk_table_compare(&a, &b, &out, &n_worse, NULL), 0);
    assert_int_equal(n_worse, 1);
    assert_non_null(strstr(out.data, "worse"));
    assert_non_null(strstr(out.data, "within noise"));
    assert_non_null(strstr(out.data, "no figure in the first"));
    assert_null(strstr(strstr(out.data, "new") + 1, "new")); /* once */
    nk_table_release(&a);
    nk_table_release(&b);
    nk_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table__rows_survive_csv),
        cmocka_unit_test(test_table__unusable_csv_is_named_by_line),
        cmocka_unit_test(test_table__summary_counts_only_runs_that_are_figures),
        cmocka_unit_test(test_table__verdict_says_when_it_cannot_tell),
        cmocka_unit_test(test_table__ratios_are_of_the_same_run),
        cmocka_unit_test(test_table__more_runs_tell_more),
        cmocka_unit_test(test_table__verdict_against_a_limit_and_a_difference),
        cmocka_unit_test(test_table__comparison_tells_a_change_from_noise),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
