/* What llama.cpp's programs print, as recorded from Debian's build 11669, becomes figures; what did
 * not really run does not. */
#include "bench/peer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* clang-format off */
static const char bench_output[] =
    "load_backend: loaded CPU backend from ./libggml-cpu-zen4.so\n"
    "{\"build_commit\": \"Debian\", \"build_number\": 11669, \"cpu_info\": \"AMD EPYC\", "
    "\"gpu_info\": \"\", \"backends\": \"CPU\", "
    "\"model_filename\": \"m.gguf\", \"model_type\": \"llama 1B Q4_K - Small\", "
    "\"model_size\": 87985280, \"n_threads\": 2, "
    "\"n_prompt\": 32, \"n_gen\": 0, \"n_depth\": 0, \"test_time\": "
    "\"2026-11-23T14:57:52Z\", \"avg_ns\": 40543275, "
    "\"avg_ts\": 790.196122, \"samples_ns\": [ 41923676, 39162874 ],\"samples_ts\": [ "
    "763.292, 817.1 ]}\n"
    "{\"build_commit\": \"Debian\", \"build_number\": 11669, \"backends\": \"CPU\", "
    "\"n_threads\": 2, \"n_prompt\": 0, "
    "\"n_gen\": 8, \"n_depth\": 0, \"samples_ns\": [ 34610696, 39540815, 37000000 "
    "],\"samples_ts\": [ 231.142, 202.323, 220.5 ]}\n";
static const char batched_output[] =
    "{\"n_kv_max\": 2048, \"n_batch\": 2048, \"n_ubatch\": 512, \"flash_attn\": -1, "
    "\"is_pp_shared\": 0, \"n_gpu_layers\": -1, "
    "\"n_threads\": 2, \"n_threads_batch\": 2, \"pp\": 16, \"tg\": 16, \"pl\": 1, \"n_kv\": "
    "32, \"t_pp\": 0.019940, "
    "\"speed_pp\": 802.407227, \"t_tg\": 0.069508, \"speed_tg\": 230.189331, \"t\": "
    "0.089448, \"speed\": 357.749725}\n"
    "{\"n_kv_max\": 2048, \"pp\": 16, \"tg\": 16, \"pl\": 8, \"n_kv\": 256, \"t_pp\": "
    "0.139788, \"speed_pp\": 915.672302, "
    "\"t_tg\": 0.443449, \"speed_tg\": 288.646515, \"t\": 0.583237, \"speed\": 438.929626}\n";
/* clang-format on */

static void test_peer__llama_bench_gives_the_median_of_the_asked_test(void **state)
{
    double tok_s = 0;

    (void)state;
    assert_int_equal(nk_llama_bench_parse(bench_output, 0, 8, 0, "CPU", &tok_s, NULL), 0);
    assert_true(tok_s == 220.5);
    assert_int_equal(nk_llama_bench_parse(bench_output, 32, 0, 0, "CPU", &tok_s, NULL), 0);
    assert_true(tok_s > 790.19 && tok_s < 790.2);
}

static void test_peer__llama_bench_on_another_backend_is_no_figure(void **state)
{
    struct nk_error err;
    double tok_s;

    (void)state;
    assert_int_equal(nk_llama_bench_parse(bench_output, 0, 8, 0, "RPC", &tok_s, &err),
                     NK_E_UNKNOWN);
    assert_string_equal(err.reason, "not_run");
    assert_non_null(strstr(err.msg, "'CPU' instead of 'RPC'"));
}

static void test_peer__llama_bench_of_other_lengths_is_no_figure(void **state)
{
    struct nk_error err;
    double tok_s;

    (void)state;
    assert_int_equal(nk_llama_bench_parse(bench_output, 0, 128, 0, "CPU", &tok_s, &err),
                     NK_E_UNKNOWN);
    assert_non_null(strstr(err.msg, "2 results"));
    assert_int_equal(nk_llama_bench_parse(bench_output, 0, 8, 512, "CPU", &tok_s, &err),
                     NK_E_UNKNOWN);
    assert_int_equal(nk_llama_bench_parse("", 0, 8, 0, "CPU", &tok_s, &err), NK_E_UNKNOWN);
    assert_int_equal(
        nk_llama_bench_parse(
            "{\"n_prompt\":0,\"n_gen\":8,\"n_depth\":0,\"backends\":\"CPU\",\"samples_ts\":[]}", 0,
            8, 0, "CPU", &tok_s, &err),
        NK_E_UNKNOWN);
}

static void test_peer__batched_bench_gives_both_speeds_of_the_asked_streams(void **state)
{
    double decode = 0, prefill = 0;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_batched_bench_parse(batched_output, 8, 16, 16, &decode, &prefill, NULL), 0);
    assert_true(decode > 288.6 && decode < 288.7);
    assert_true(prefill > 915.6 && prefill < 915.7);
    assert_int_equal(nk_batched_bench_parse(batched_output, 4, 16, 16, &decode, &prefill, &err),
                     NK_E_UNKNOWN);
    assert_string_equal(err.reason, "not_run");
}

static void test_peer__server_events_count_tokens_and_name_errors(void **state)
{
    struct nk_server_event e;
    struct nk_error err;

    (void)state;
    assert_int_equal(
        nk_server_event_parse(
            "{\"index\":0,\"content\":\"x\",\"tokens\":[12935],\"stop\":false,\"id_slot\":-1,"
            "\"tokens_predicted\":1,\"tokens_evaluated\":6}",
            &e, NULL),
        0);
    assert_int_equal(e.n_tokens, 1);
    assert_false(e.stop);
    assert_int_equal(nk_server_event_parse(
                         "{\"index\":0,\"content\":\"\",\"tokens\":[],\"id_slot\":0,\"stop\":true,"
                         "\"tokens_predicted\":3,\"tokens_evaluated\":6,\"truncated\":false}",
                         &e, NULL),
                     0);
    assert_true(e.stop);
    assert_int_equal(e.n_tokens, 0);
    assert_int_equal(e.n_predicted, 3);
    assert_int_equal(e.n_prompt, 6);
    assert_int_equal(
        nk_server_event_parse(
            "{\"error\":{\"code\":400,\"message\":\"Prompt contains invalid tokens\"}}", &e, &err),
        NK_E_UNKNOWN);
    assert_non_null(strstr(err.msg, "invalid tokens"));
    assert_int_equal(nk_server_event_parse("[DONE", &e, &err), NK_E_UNKNOWN);
}

static void test_peer__a_server_has_a_part_however_long_the_other_spins(void **state)
{
    static const double all[] = { 15.316, 0.377 }, one[] = { 0.3, 0.0016 };
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_rpc_part_check(all, 2, NULL), 0);
    assert_int_equal(nk_rpc_part_check(one, 1, NULL), 0);
    assert_int_equal(nk_rpc_part_check(one, 2, &err), NK_E_UNKNOWN);
    assert_string_equal(err.reason, "not_run");
    assert_non_null(strstr(err.msg, "RPC server 2 of 2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peer__llama_bench_gives_the_median_of_the_asked_test),
        cmocka_unit_test(test_peer__llama_bench_on_another_backend_is_no_figure),
        cmocka_unit_test(test_peer__llama_bench_of_other_lengths_is_no_figure),
        cmocka_unit_test(test_peer__batched_bench_gives_both_speeds_of_the_asked_streams),
        cmocka_unit_test(test_peer__server_events_count_tokens_and_name_errors),
        cmocka_unit_test(test_peer__a_server_has_a_part_however_long_the_other_spins),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
