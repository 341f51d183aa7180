/* The page: ours, theirs and the ratio in a line each, what was reached is said for every bar, and
 * only what was measured last counts. */
#include "bench/report.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void add_run(struct nk_table *t, const char *figure, const char *system, double x, int run,
                    double value, const char *commit)
{
    struct nk_row r = { .x = x, .run = run, .value = value, .slowdown = 1 };

    snprintf(r.figure, sizeof r.figure, "%s", figure);
    snprintf(r.system, sizeof r.system, "%s", system);
    snprintf(r.commit, sizeof r.commit, "%s", commit);
    assert_int_equal(nk_table_add(t, &r, NULL), 0);
}

static void add(struct nk_table *t, const char *figure, const char *system, double x, double value,
                const char *commit)
{
    for (int run = 1; run <= 5; run++)
        add_run(t, figure, system, x, run, value, commit);
}

static void page(const struct nk_table *t, struct nk_buf *out)
{
    struct nk_report_opts opts = { .rows = "rows.csv" };

    assert_int_equal(nk_report_format(t, &opts, out, NULL), 0);
}

static void has(const struct nk_buf *out, const char *text)
{
    if (!strstr(out->data, text))
        fail_msg("'%s' is not in the page:\n%s", text, out->data);
}

static void test_report__every_kind_of_bar_has_its_verdict(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    add(&t, "hop", "ours", 0, 50, "c");
    add(&t, "hop", "ping", 0, 20, "c");
    add(&t, "gateway-ttft", "serve", 0, 105, "c");
    add(&t, "gateway-ttft", "chain", 0, 100, "c");
    for (int run = 1; run <= 5; run++) { /* the machine gets slower */
        add_run(&t, "gateway-token", "serve", 0, run, run * 101, "c");
        add_run(&t, "gateway-token", "chain", 0, run, run * 100, "c");
    }
    for (int run = 1; run <= 5; run++) { /* a limit comes with each run, too */
        add_run(&t, "network-1g", "ours", 75, run, run * 6, "c");
        add_run(&t, "network-1g", "limit", 75, run, run * 7, "c");
    }
    page(&t, &out);
    has(&out, "| 50.0 | | | at most 60.0: reached |\n| | | | gRPC ping-pong: 20.0 | 2.50 | |\n");
    has(&out,
        "| 105 | the chain's own client: 100 | 1.05 | at most 3 ms more: +5.00, **missed** |\n");
    has(&out, "| 303 | the chain's own client: 300 | 1.01 | at most 1.02: reached |\n");
    has(&out, "| 75 | 18.0 | limit: 21.0 | 0.857 | at least 0.95: **missed** |\n");
    nk_table_release(&t);
    nk_buf_release(&out);
}

static void test_report__one_run_has_no_verdict(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    add(&t, "prefill-512", "ours", 0, 110, "c"); /* five of ours and the whole model, one of RPC */
    add(&t, "prefill-512", "whole", 0, 100, "c");
    add_run(&t, "prefill-512", "rpc", 0, 1, 50, "c");
    add_run(&t, "gateway-token", "serve", 0, 1, 101, "c");
    add_run(&t, "gateway-token", "chain", 0, 1, 100, "c");
    add_run(&t, "hop", "ours", 0, 1, 50, "c");
    add_run(&t, "gateway-64", "serve", 0, 1, 64, "c"); /* a number, which noise does not change */
    page(&t, &out);
    has(&out, "| 110 | whole model: 100 | 1.10 | at least 0.85: reached |\n"
              "| | | | llama.cpp RPC: 50.0 (1 run) | 2.20 | at least 1.5: one run is too few to "
              "tell |\n");
    has(&out, "at most 1.02: one run is too few to tell |");
    has(&out, "at most 60.0: one run is too few to tell |");
    has(&out, "at least 64.0: reached |");
    nk_table_release(&t);
    nk_buf_release(&out);
}

static void test_report__a_curve_is_judged_beside_the_whole_model(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    /* The machine gets slower, and was slow altogether with 4 stages. */
    for (int run = 1; run <= 5; run++) {
        add_run(&t, "stages", "ours", 1, run, 40 - run, "c");
        add_run(&t, "stages", "whole", 1, run, 40 - run, "c");
        add_run(&t, "stages", "ours", 4, run, 0.97 * (30 - run), "c");
        add_run(&t, "stages", "whole", 4, run, 30 - run, "c");
    }
    add(&t, "streams", "ours", 4, 58, "c");
    add(&t, "streams", "ours", 8, 49, "c");
    add(&t, "streams", "whole", 4, 51, "c");
    add(&t, "streams", "whole", 8, 43, "c");
    page(&t, &out);
    has(&out,
        "a token took 1 times as long with 1 stage and 1.03 times with 4: 1.0 % of a token for "
        "each stage more (at most 3 %), as expected.");
    has(&out, "from 4 to 8 streams it fell by 16 % (the whole model's fell by 16 %), as expected.");
    has(&out, "| stages | ours, tok/s | theirs | ratio |\n|---|---|---|---|\n"
              "| 1 | 37.0 | whole model: 37.0 | 1.00 |\n");
    nk_table_release(&t);
    nk_buf_release(&out);
}

static void
test_report__what_gave_no_figure_is_said_and_the_spread_is_left_to_the_rows(void **state)
{
    struct nk_row failed = { .figure = "decode-8",
                             .system = "rpc",
                             .status = NK_ROW_FAILED,
                             .note = "why" },
                  noisy = { .figure = "decode-8", .system = "whole", .status = NK_ROW_NOISY };
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    for (int run = 1; run <= 5; run++)
        add_run(&t, "decode-8", "ours", 0, run, 50 + run, "");
    assert_int_equal(nk_table_add(&t, &noisy, NULL), 0);
    assert_int_equal(nk_table_add(&t, &failed, NULL), 0);
    page(&t, &out);
    has(&out, "| 53.0 | whole model: too noisy | | at least 0.85: too noisy to tell |\n"
              "| | | | llama.cpp RPC: failed | | at least 2.5: no figure |\n");
    has(&out, "- decode-8, rpc, : why\n");
    has(&out, "Made of `rows.csv`");
    assert_null(strstr(out.data, "51.0"));
    assert_null(strstr(out.data, "55.0"));
    nk_table_release(&t);
    nk_buf_release(&out);
}

static void test_report__rows_of_an_older_commit_do_not_count(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_table t = NK_TABLE_INIT;

    (void)state;
    add(&t, "decode-1", "ours", 0, 11, "old");
    add(&t, "memory", "ours", 0, 900, "old"); /* not measured since */
    add(&t, "decode-1", "ours", 0, 22, "new");
    page(&t, &out);
    has(&out, "| tok/s | 22.0 | | | |\n");
    has(&out, "| MiB | 900 | | | |\n");
    assert_null(strstr(out.data, "11.0"));
    has(&out, "commit: old; new");
    has(&out, "5 more, of older commits");
    nk_table_release(&t);
    nk_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_report__every_kind_of_bar_has_its_verdict),
        cmocka_unit_test(test_report__one_run_has_no_verdict),
        cmocka_unit_test(test_report__a_curve_is_judged_beside_the_whole_model),
        cmocka_unit_test(
            test_report__what_gave_no_figure_is_said_and_the_spread_is_left_to_the_rows),
        cmocka_unit_test(test_report__rows_of_an_older_commit_do_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
