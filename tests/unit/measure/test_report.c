/* A measurement as JSON, and back. */
#include "measure/measure_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct nk_measured example(void)
{
    struct nk_measured r = {
        .key = "0123",
        .version = "1.2",
        .llama_version = "0.7",
        .ggml_version = "0.27",
        .device = "CPU",
        .device_description = "A \"fast\" one",
        .backend = "CPU",
        .cpu = "Cpu",
        .n_cores = 4,
        .n_threads = 3,
        .n_threads_batch = 4,
        .device_total_bytes = (uint64_t)1 << 40,
        .device_free_bytes = 12345678901,
        .memory_total_bytes = 3,
        .memory_free_bytes = 2,
        .disk_free_bytes = 1,
        .architecture = "llama",
        .shape = "ab",
        .n_layer = 2,
        .n_embd = 64,
        .n_vocab = 100,
        .n_ctx = 512,
        .n_sequences = 8,
        .n_batch = 256,
        .cache_type_k = "f16",
        .cache_type_v = "q8_0",
        .flash_attn = true,
        .rows = { 1, 8, 64 },
        .fixed_ms = { 0.001, 0.25, 0 },
        .head_ms = { 10, 20, 1e-7 },
        .embd_ms = { 0.5, 1, 2 },
        .head_bytes = 7,
        .embd_bytes = 8,
        .other_bytes = 9,
        .compute_bytes = 10,
        .compute_host_bytes = 11,
        .head_compute_bytes = 12,
        .head_compute_host_bytes = 13,
        .process_bytes = 14,
        .took_ms = 15,
    };

    r.layers = calloc(2, sizeof *r.layers);
    assert_non_null(r.layers);
    r.layers[0] = (struct nk_measured_layer){ 100, 200, { 1, 2, 3 } };
    r.layers[1] = (struct nk_measured_layer){ 101, 201, { 1.5, 2.5, 3.5 } };
    return r;
}

static char *format(const struct nk_measured *r)
{
    struct nk_buf text = NK_BUF_INIT(1 << 20);

    assert_int_equal(nk_measured_format(r, &text, NULL), 0);
    return nk_buf_take(&text, NULL);
}

static void test_report__is_read_as_it_was_written(void **state)
{
    struct nk_measured a = example(), b;
    struct nk_error err = { 0 };
    char *text = format(&a), *again;

    (void)state;
    if (nk_measured_parse(text, strlen(text), &b, &err))
        fail_msg("%s", err.msg);
    again = format(&b);
    assert_string_equal(text, again);
    /* Everything, byte for byte, but for where the layers are. */
    assert_memory_equal(a.layers, b.layers, 2 * sizeof *a.layers);
    assert_string_equal(b.device_description, "A \"fast\" one");
    assert_int_equal(b.device_free_bytes, 12345678901);
    assert_int_equal(b.rows[NK_RUN_CHUNK], 64);
    assert_true(b.flash_attn && !b.cached && !b.is_gpu);
    assert_true(b.head_ms[NK_RUN_CHUNK] == 1e-7 && b.fixed_ms[NK_RUN_EIGHT] == 0.25);
    free(text);
    free(again);
    nk_measured_release(&a);
    nk_measured_release(&b);
}

/* With `from` replaced by `to` it is refused, and the sentence names `what`. */
static void refuse(const char *from, const char *to, const char *what)
{
    struct nk_measured r = example();
    struct nk_error err = { 0 };
    char *text = format(&r), *at = strstr(text, from), changed[8192];

    nk_measured_release(&r);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_int_equal(nk_measured_parse(changed, strlen(changed), &r, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_measurement");
    assert_non_null(strstr(err.msg, what));
    assert_null(r.layers);
    free(text);
}

static void test_report__what_another_machine_sends_is_checked(void **state)
{
    (void)state;
    refuse("\"n_layer\": 2", "\"n_layer\": 3", "layers");
    refuse("\"n_layer\": 2", "\"n_layer\": 100000", "layers");
    refuse("\"n_layer\": 2", "\"n_layer\": 0", "n_layer");
    refuse("\"n_cores\": 4", "\"n_cores\": -4", "n_cores");
    refuse("\"n_cores\": 4", "\"n_cores\": 4.5", "n_cores");
    refuse("\"n_cores\": 4", "\"n_cores\": \"4\"", "n_cores");
    refuse("\"n_cores\": 4", "\"no_cores\": 4", "n_cores");
    refuse("\"head_bytes\": 7", "\"head_bytes\": -1", "head_bytes");
    refuse("\"head_bytes\": 7", "\"head_bytes\": 9007199254740993", "head_bytes");
    refuse("\"weights_bytes\": 101", "\"weights_bytes\": null", "weights_bytes");
    refuse("[1.5, 2.5, 3.5]", "[1.5, 2.5]", "ms");
    refuse("[1.5, 2.5, 3.5]", "[1.5, -2.5, 3.5]", "ms");
    refuse("[1.5, 2.5, 3.5]", "[1.5, 1e300, 3.5]", "ms");
    refuse("[1, 8, 64]", "[1, 8, 0]", "rows");
    refuse("[1, 8, 64]", "[1, 8]", "rows");
    refuse("\"cached\": false", "\"cached\": 0", "cached");
    refuse("\"key\": \"0123\"",
           "\"key\": \"012345678901234567890123456789012345678901234567890123"
           "45678901234567890123456789012345678901234567890123456789\"",
           "key");
    refuse("{", "", "object");
    refuse("\"took_ms\": 15", "\"took_ms\": 5000000000", "took_ms");
}

static void test_report__a_stage_is_the_sum_of_its_parts(void **state)
{
    struct nk_measured r = example();

    (void)state;
    assert_true(nk_measured_stage_ms(&r, (struct nk_range){ 0, 1 }, NK_RUN_EIGHT) == 0.25 + 1 + 2);
    assert_true(nk_measured_stage_ms(&r, (struct nk_range){ 1, 2 }, NK_RUN_EIGHT) ==
                0.25 + 2.5 + 20);
    assert_true(nk_measured_stage_ms(&r, (struct nk_range){ 0, 2 }, NK_RUN_EIGHT) ==
                0.25 + 1 + 2 + 2.5 + 20);
    nk_measured_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_report__is_read_as_it_was_written),
        cmocka_unit_test(test_report__what_another_machine_sends_is_checked),
        cmocka_unit_test(test_report__a_stage_is_the_sum_of_its_parts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
