#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/metrics.h"

static void test_metrics__counters_and_histograms_are_written(void **state)
{
    nk_metrics *m = nk__metrics_new();
    struct nk_buf b = NK_BUF_INIT(1 << 20);

    (void)state;
    nk__metrics_add(m, NK_METRIC_REQUESTS, "/a,200", 1);
    nk__metrics_add(m, NK_METRIC_REQUESTS, "/a,200", 2);
    nk__metrics_add(m, NK_METRIC_ERRORS, "odd\"\\\nreason", 1);
    nk__metrics_observe(m, NK_METRIC_TOKEN_TIME, NULL, 0.0015, 3);
    assert_int_equal(nk__metrics_write(m, &b, NULL), 0);
    assert_non_null(
        strstr(b.data, "# TYPE nakshatra_http_requests_total "
                       "counter\nnakshatra_http_requests_total{route=\"/a\",code=\"200\"} 3\n"));
    assert_non_null(strstr(b.data, "nakshatra_errors_total{reason=\"odd\\\"\\\\\\nreason\"} 1\n"));
    assert_non_null(strstr(b.data, "nakshatra_time_per_token_seconds_bucket{le=\"0.001\"} 0\n"));
    assert_non_null(strstr(b.data, "nakshatra_time_per_token_seconds_bucket{le=\"0.002\"} 3\n"));
    assert_non_null(strstr(b.data, "nakshatra_time_per_token_seconds_bucket{le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(b.data, "nakshatra_time_per_token_seconds_count 3\n"));
    /* Without labels it is there before anything happened. */
    assert_non_null(strstr(b.data, "\nnakshatra_prompt_tokens_total 0\n"));
    assert_true(nk__metrics_total(m, NK_METRIC_REQUESTS) == 3);
    nk_buf_release(&b);
    nk__metrics_free(m);
}

static void test_metrics__strange_labels_cannot_fill_the_memory(void **state)
{
    nk_metrics *m = nk__metrics_new();
    struct nk_buf b = NK_BUF_INIT(1 << 20);

    (void)state;
    for (int i = 0; i < 5000; i++) {
        char reason[32];

        snprintf(reason, sizeof reason, "r%d", i);
        nk__metrics_add(m, NK_METRIC_ERRORS, reason, 1);
    }
    assert_true(nk__metrics_total(m, NK_METRIC_ERRORS) == 5000);
    assert_int_equal(nk__metrics_write(m, &b, NULL), 0);
    assert_null(strstr(b.data, "\"r600\""));
    nk_buf_release(&b);
    nk__metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics__counters_and_histograms_are_written),
        cmocka_unit_test(test_metrics__strange_labels_cannot_fill_the_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
