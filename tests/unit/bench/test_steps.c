/* Step traces: read back, and the time between two stages taken from them. */
#include "bench/steps.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void add(struct nk_buf *b, uint64_t us, const char *kind, int step, int rows)
{
    assert_int_equal(nk_buf_addf(b, NULL,
                                 "{\"t\":%llu,\"ev\":\"%s\",\"worker\":\"attic\",\"session\":"
                                 "\"7f3a0b11\",\"step\":%d,\"pos\":%d,\"rows\":%d}\n",
                                 (unsigned long long)us * 1000, kind, step, step, rows),
                     0);
}

static void parse(struct nk_steps *s, struct nk_buf *b)
{
    struct nk_bytes text = { (const uint8_t *)nk_buf_str(b), b->size };

    assert_int_equal(nk_steps_parse(s, text, "x", NULL), 0);
}

/* n steps of 1000 us each: 400 us at the first stage, 400 us at the last, and between them there us
 * and back us. */
static void chain(struct nk_steps *first, struct nk_steps *last, int n, int there, int back)
{
    struct nk_buf a = NK_BUF_INIT(1 << 20), b = NK_BUF_INIT(1 << 20);
    uint64_t t = 1000000;

    for (int i = 0; i < n; i++) {
        int slow = i == n - 2 ? 500 : 0; /* one outlier there */

        add(&a, t, "computing", i, 1);
        add(&a, t += 400, "computed", i, 1);
        add(&a, t + 1, "sent", i, 1);
        add(&b, t + 2, "received", i, 1);
        add(&b, t += (uint64_t)(there + slow), "computing", i, 1);
        add(&b, t += 400, "computed", i, 1);
        add(&b, t += 50, "answered", i, 1); /* sampling: counts nowhere */
        t += (uint64_t)back;
    }
    parse(first, &a);
    parse(last, &b);
    nk_buf_release(&a);
    nk_buf_release(&b);
}

static void test_steps__a_hop_is_what_is_neither_computing_nor_sampling(void **state)
{
    struct nk_steps first, last;
    struct nk_hop_times t;

    (void)state;
    chain(&first, &last, 100, 30, 20);
    assert_int_equal(nk_steps_hop(&first, &last, 0, &t, NULL), 0);
    assert_true(t.there_median == 30 && t.back_median == 20 && t.both_median == 50);
    assert_true(t.both_p99 == 550);
    nk_steps_release(&first);
    nk_steps_release(&last);
}

static void test_steps__too_few_steps_are_no_figure(void **state)
{
    struct nk_steps first, last;
    struct nk_hop_times t;
    struct nk_error err;

    (void)state;
    chain(&first, &last, 20, 30, 20);
    assert_int_equal(nk_steps_hop(&first, &last, 0, &t, &err), 0); /* 19: the last has no next */
    assert_int_equal(nk_steps_hop(&first, &last, 8, &t, &err), NK_E_UNKNOWN);
    assert_string_equal(err.reason, "not_run");
    nk_steps_release(&first);
    nk_steps_release(&last);
}

static void test_steps__the_longest_chunk_is_of_several_rows(void **state)
{
    struct nk_buf b = NK_BUF_INIT(1 << 20);
    struct nk_steps s;

    (void)state;
    add(&b, 1000, "computing", 1, 64);
    add(&b, 4000, "computed", 1, 64);
    add(&b, 5000, "computing", 2, 64);
    add(&b, 9000, "computed", 2, 64);
    add(&b, 10000, "computing", 3, 1);
    add(&b, 90000, "computed", 3, 1);
    parse(&s, &b);
    assert_true(nk_steps_longest_chunk_ms(&s) == 4);
    nk_steps_release(&s);
    nk_buf_release(&b);
}

static void test_steps__what_is_no_trace_is_named_by_line(void **state)
{
    static const char good[] = "{\"t\":1,\"ev\":\"sent\",\"worker\":\"a\",\"session\":\"0a\","
                               "\"step\":1,\"pos\":0,\"rows\":1}\n";
    static const char *const bad[] = { "nonsense\n",
                                       "{\"t\":1,\"ev\":\"slept\",\"worker\":\"a\","
                                       "\"session\":\"0a\",\"step\":1,\"pos\":0,"
                                       "\"rows\":1}\n",
                                       "{\"t\":1,\"ev" };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];
        struct nk_steps s;
        struct nk_error err;
        int n = snprintf(text, sizeof text, "%s%s", good, bad[i]);

        assert_int_equal(nk_steps_parse(&s, (struct nk_bytes){ (const uint8_t *)text, (size_t)n },
                                        "x.jsonl", &err),
                         NK_E_INVALID);
        assert_string_equal(err.reason, "bad_trace");
        assert_non_null(strstr(err.msg, "x.jsonl:2"));
        assert_null(s.events);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps__a_hop_is_what_is_neither_computing_nor_sampling),
        cmocka_unit_test(test_steps__too_few_steps_are_no_figure),
        cmocka_unit_test(test_steps__the_longest_chunk_is_of_several_rows),
        cmocka_unit_test(test_steps__what_is_no_trace_is_named_by_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
