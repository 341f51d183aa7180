#include "slice/arch_int.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "unit/slice/make.h"

static void test_arch__own_rows_come_before_general_ones(void **state)
{
    const struct nk__arch_row *row = NULL;
    bool general = false;
    int n = 0;

    (void)state;
    while ((row = nk__arch_find("qwen3next", NK__PATTERN, NULL, row))) {
        assert_string_equal(row->arch, "qwen3next");
        n++;
    }
    assert_int_equal(n, 1);
    for (row = NULL; (row = nk__arch_find("llama4", NK__PERIOD, NULL, row)); n++)
        assert_string_equal(row->arch, "llama4");
    assert_int_equal(n, 2);
    for (row = NULL; (row = nk__arch_find("gemma2", NK__KIND_KEY, NULL, row)); n++) {
        assert_true(!general || row->arch[0] == '*');
        general = row->arch[0] == '*';
    }
    assert_true(general && n > 3);
    assert_null(nk__arch_find("llama", NK__REFUSE, NULL, NULL));
    assert_non_null(nk__arch_find("llama", NK__NOT_PER_LAYER, "rope.scaling.anything", NULL));
    assert_null(nk__arch_find("llama", NK__NOT_PER_LAYER, "rope.freq_base", NULL));
}

static void check_cuts(struct made made, const char *want)
{
    for (int at = 1; at < made.m->info.n_layer; at++) {
        struct nk_error err = { 0 };
        bool legal = !nk_model_cut_check(made.m, at, &err);

        if (legal != (want[at - 1] == 'y'))
            fail_msg("%s: before layer %d: %s", made.m->info.architecture, at,
                     legal ? "legal" : err.msg);
        if (!legal)
            assert_true(strstr(err.msg, ": ") != NULL && strlen(err.msg) > 30);
    }
    made_free(made);
}

static void test_arch__plain_models_may_be_cut_anywhere(void **state)
{
    (void)state;
    check_cuts(make_model(make_gguf("llama", 5, NULL)), "yyyy");
    check_cuts(make_model(make_gguf("some-new-one", 5, NULL)), "yyyy");
}

static void test_arch__periods_in_the_code_bind_the_cuts(void **state)
{
    struct gguf_context *g = make_gguf("llama4", 12, NULL);

    (void)state;
    check_cuts(make_model(make_gguf("smollm3", 10, NULL)), "nnnynnnyn");
    make_u32(g, "llama4", "interleave_moe_layer_step", 6);
    check_cuts(make_model(g), "nnnnnnnnnnn"); /* multiples of 4 and of 6 below 12: none */
}

/* llama4 scales queries in every fourth layer, and stops where none does. The windows do not help:
 * they may be any layers', by an array. */
static void test_arch__a_slice_needs_a_layer_that_the_code_treats_specially(void **state)
{
    static const uint32_t windows[10] = { 1, 0, 1, 0, 1, 0, 1, 0, 1, 0 };
    struct gguf_context *g = make_gguf("llama4", 10, NULL);
    struct nk_error err;
    struct made made;

    (void)state;
    make_array(g, "llama4", "attention.sliding_window_pattern", windows, 10);
    made = make_model(g);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 4, 10 }, NULL), 0);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 8, 10 }, &err),
                     NK_E_UNIMPLEMENTED);
    assert_non_null(strstr(err.msg, "layers 8-10"));
    assert_non_null(strstr(err.msg, "every fourth layer"));
    check_cuts(made, "nnnynnnnn");
}

static void test_arch__every_slice_needs_every_kind_of_layer(void **state)
{
    static const uint32_t kv[6] = { 0, 0, 4, 0, 4, 0 }, same[6] = { 4, 4, 4, 4, 4, 4 };
    struct gguf_context *g = make_gguf("jamba", 6, NULL);
    struct made made;

    (void)state;
    make_array(g, "jamba", "attention.head_count_kv", kv, 6);
    made = make_model(g);
    /* Legal on its own, and the two sides of a cut are; but not a middle part without attention. */
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 1, 3 }, NULL), 0);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 2, 3 }, NULL),
                     NK_E_UNIMPLEMENTED);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 2 }, NULL),
                     NK_E_UNIMPLEMENTED);
    check_cuts(made, "nnyyn");
    g = make_gguf("jamba", 6, NULL);
    make_array(g, "jamba", "attention.head_count_kv", same, 6);
    check_cuts(make_model(g), "yyyyy");
}

static void test_arch__kinds_are_seen_by_the_tensors_too(void **state)
{
    struct gguf_context *g = make_gguf("nemotron_h", 4, NULL);

    (void)state;
    make_tensor(g, "blk.0.ssm_a", 4, 1);
    make_tensor(g, "blk.2.ssm_a", 4, 1);
    make_tensor(g, "blk.1.attn_k.weight", 4, 1);
    make_tensor(g, "blk.3.attn_k.weight", 4, 1);
    check_cuts(make_model(g), "nyn");
}

static void test_arch__patterns_are_as_llama_cpp_computes_them(void **state)
{
    static const struct {
        const char *arch;
        uint32_t scalar; /* 0: not there */
        const char *want;
    } cases[] = {
        { "gemma3", 0, "111110111110" },     { "gpt-oss", 0, "101010101010" },
        { "cohere2moe", 0, "011101110111" }, { "plamo3", 0, "111111101111" },
        { "plamo3", 4, "111011101110" },     { "smallthinker", 0, "011101110111" },
        { "gemma3", 1, "000000000000" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gguf_context *g = make_gguf(cases[i].arch, 12, NULL);
        const struct nk__arch_row *row = nk__arch_find(cases[i].arch, NK__PATTERN, NULL, NULL);
        struct made made;

        make_u32(g, cases[i].arch, "attention.sliding_window", 512);
        if (cases[i].scalar)
            make_u32(g, cases[i].arch, "attention.sliding_window_pattern", cases[i].scalar);
        made = make_model(g);
        for (int layer = 0; layer < 12; layer++) {
            bool value;

            assert_true(nk__arch_pattern(made.m, row, layer, &value));
            assert_int_equal(value, cases[i].want[layer] == '1');
        }
        made_free(made);
    }
}

static void test_arch__some_numbers_of_layers_mean_something_else(void **state)
{
    struct made made = make_model(make_gguf("gemma2", 46, NULL));
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_model_cut_check(made.m, 22, &err), NK_E_UNIMPLEMENTED);
    assert_string_equal(err.reason, "cannot_split");
    made_free(made);
    made = make_model(make_gguf("gemma2", 60, NULL));
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 45 }, NULL), 0);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 2, 48 }, &err),
                     NK_E_UNIMPLEMENTED);
    assert_string_equal(err.reason, "illegal_cut");
    made_free(made);
}

static void test_arch__a_key_can_say_what_the_number_of_layers_would(void **state)
{
    struct gguf_context *g = make_gguf("deepseek2", 47, NULL);
    struct made made = make_model(g);
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_model_cut_check(made.m, 20, &err), NK_E_UNIMPLEMENTED);
    made_free(made);
    g = make_gguf("deepseek2", 47, NULL);
    make_u32(g, "deepseek2", "expert_gating_func", 2);
    make_u32(g, "deepseek2", "attention.q_lora_rank", 768);
    made = make_model(g);
    assert_int_equal(nk_model_cut_check(made.m, 21, NULL), 0);
    /* A slice of 27 layers would be taken for DeepSeek V2 Lite. */
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 28 }, NULL), 0);
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 27 }, &err),
                     NK_E_UNIMPLEMENTED);
    assert_true(strstr(err.msg, "27 layers") != NULL);
    made_free(made);
    made = make_model(make_gguf("deepseek2", 27, NULL)); /* it is that model */
    assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 26 }, NULL), 0);
    made_free(made);
}

static void test_arch__knows_what_llama_cpp_knows(void **state)
{
    (void)state;
    assert_true(nk__arch_is_known("llama"));
    assert_true(nk__arch_is_known("gemma3"));
    assert_true(nk__arch_is_known("t5"));
    assert_false(nk__arch_is_known("zephyr9"));
}

/* An encoder gives rows; what becomes of them, the file must say. */
static void test_arch__encoders_need_a_pooling(void **state)
{
    static const char *const archs[] = { "bert", "nomic-bert", "jina-bert-v2", "gemma-embedding" };

    (void)state;
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++) {
        struct gguf_context *g = make_gguf(archs[i], 4, NULL);
        struct nk_error err;
        struct made made;

        if (i % 2)
            make_u32(g, archs[i], "pooling_type", UINT32_MAX); /* -1: not said */
        made = make_model(g);
        assert_int_equal(made.m->info.pooling, NK_POOLING_NONE);
        assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 4 }, &err),
                         NK_E_UNIMPLEMENTED);
        assert_non_null(strstr(err.msg, ".pooling_type"));
        made_free(made);
        g = make_gguf(archs[i], 4, NULL);
        make_u32(g, archs[i], "pooling_type", NK_POOLING_CLS);
        made = make_model(g);
        assert_int_equal(made.m->info.pooling, NK_POOLING_CLS);
        assert_int_equal(nk__arch_check_range(made.m, (struct nk_range){ 0, 4 }, &err), 0);
        check_cuts(made, i < 2 ? "yyy" : "nnn"); /* those that were tried in pieces */
    }
    assert_string_equal(nk_pooling_text(NK_POOLING_RANK), "rank");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arch__own_rows_come_before_general_ones),
        cmocka_unit_test(test_arch__plain_models_may_be_cut_anywhere),
        cmocka_unit_test(test_arch__periods_in_the_code_bind_the_cuts),
        cmocka_unit_test(test_arch__a_slice_needs_a_layer_that_the_code_treats_specially),
        cmocka_unit_test(test_arch__every_slice_needs_every_kind_of_layer),
        cmocka_unit_test(test_arch__kinds_are_seen_by_the_tensors_too),
        cmocka_unit_test(test_arch__encoders_need_a_pooling),
        cmocka_unit_test(test_arch__patterns_are_as_llama_cpp_computes_them),
        cmocka_unit_test(test_arch__some_numbers_of_layers_mean_something_else),
        cmocka_unit_test(test_arch__a_key_can_say_what_the_number_of_layers_would),
        cmocka_unit_test(test_arch__knows_what_llama_cpp_knows),
    };

    return cmocka_run_group_tests_name("arch", tests, NULL, NULL);
}
