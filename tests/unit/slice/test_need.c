/* What layers need beside their weights, and whether there is so much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "unit/slice/make.h"

static void add(struct gguf_context *g, int layer, const char *what)
{
    char name[64];

    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, what);
    make_tensor(g, name, MAKE_WIDTH, 1);
}

/* Three layers with a state, then one that attends: the first three have tensors that are called as
 * attention's. */
static struct made hybrid(void)
{
    struct gguf_context *g = make_gguf("qwen3next", 4, NULL);

    make_u32(g, "qwen3next", "attention.head_count_kv", 2);
    make_u32(g, "qwen3next", "attention.key_length", 16);
    make_u32(g, "qwen3next", "attention.value_length", 16);
    make_u32(g, "qwen3next", "ssm.conv_kernel", 4);
    make_u32(g, "qwen3next", "ssm.inner_size", 64);
    make_u32(g, "qwen3next", "ssm.state_size", 8);
    make_u32(g, "qwen3next", "ssm.group_count", 2);
    for (int i = 0; i < 3; i++) {
        add(g, i, "attn_qkv");
        add(g, i, "ssm_out");
    }
    add(g, 3, "attn_k");
    return make_model(g);
}

static void test_need__a_layer_with_a_state_has_no_keys(void **state)
{
    struct made made = hybrid();
    const struct nk_model_info *in = nk_model_info(made.m);

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(in->kv_bytes_per_token[i], 0);
        assert_int_equal(in->state_bytes[i], 4 * (3 * (64 + 2 * 2 * 8) + 8 * 64));
    }
    assert_int_equal(in->kv_bytes_per_token[3], 2 * (16 + 16) * 2);
    assert_int_equal(in->state_bytes[3], 0);
    made_free(made);
}

/* Of falcon-h1 every layer has both. */
static void test_need__a_layer_may_have_keys_and_a_state(void **state)
{
    struct gguf_context *g = make_gguf("falcon-h1", 2, NULL);
    struct made made;

    (void)state;
    make_u32(g, "falcon-h1", "ssm.conv_kernel", 4);
    make_u32(g, "falcon-h1", "ssm.inner_size", 64);
    make_u32(g, "falcon-h1", "ssm.state_size", 8);
    for (int i = 0; i < 2; i++) {
        add(g, i, "attn_k");
        add(g, i, "ssm_in");
    }
    made = make_model(g);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nk_model_info(made.m)->kv_bytes_per_token[i], 4 * (8 + 8) * 2);
        assert_int_equal(nk_model_info(made.m)->state_bytes[i], 4 * (3 * 64 + 8 * 64));
    }
    made_free(made);
}

/* Layers that predict further tokens are not run, and the last ones may use others' keys. */
static void test_need__layers_without_a_cache_count_none(void **state)
{
    struct gguf_context *g = make_gguf("llama", 5, NULL);
    struct made made;

    (void)state;
    make_u32(g, "llama", "nextn_predict_layers", 1);
    make_u32(g, "llama", "attention.shared_kv_layers", 2);
    for (int i = 0; i < 5; i++)
        add(g, i, "attn_k");
    made = make_model(g);
    assert_int_equal(nk_model_info(made.m)->n_layer, 4);
    for (int i = 0; i < 5; i++)
        assert_int_equal(nk_model_info(made.m)->kv_bytes_per_token[i], i < 2 ? 128 : 0);
    made_free(made);
}

/* An embedding model that is causal has one: it is a model like others. */
static void test_need__an_encoder_has_no_cache(void **state)
{
    static const struct {
        const char *arch;
        uint64_t bytes;
    } cases[] = { { "bert", 0 }, { "nomic-bert", 0 }, { "gemma-embedding", 0 }, { "llama", 128 } };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gguf_context *g = make_gguf(cases[i].arch, 2, NULL);
        struct made made;

        make_u32(g, cases[i].arch, "pooling_type", 1);
        add(g, 0, "attn_k");
        add(g, 1, "attn_qkv");
        made = make_model(g);
        assert_int_equal(nk_model_info(made.m)->kv_bytes_per_token[0], cases[i].bytes);
        assert_int_equal(nk_model_info(made.m)->kv_bytes_per_token[1], cases[i].bytes);
        made_free(made);
    }
}

/* deepseek2's latent vector, of a file that says anything. */
static void test_need__a_latent_vector_of_any_size_is_a_figure(void **state)
{
    struct gguf_context *g = make_gguf("llama", 1, NULL);
    struct made made;

    (void)state;
    make_u32(g, "llama", "attention.kv_lora_rank", INT32_MAX);
    make_u32(g, "llama", "attention.key_length_mla", 1);
    make_u32(g, "llama", "rope.dimension_count", INT32_MAX);
    add(g, 0, "attn_k");
    made = make_model(g);
    assert_int_equal(nk_model_info(made.m)->kv_bytes_per_token[0], 4 * (uint64_t)INT32_MAX);
    made_free(made);
}

static void test_need__figures_that_no_memory_has_stay_figures(void **state)
{
    static const uint32_t most = INT32_MAX;
    const struct nk_need_opts o = {
        .n_ctx = 1 << 27, .n_seq = 256, .n_batch = 8192, .kv_scale = 2
    };
    struct gguf_context *g = make_gguf("llama", 2, NULL);
    struct nk_need need;
    struct made made;

    (void)state;
    make_u32(g, "llama", "attention.key_length", most);
    make_u32(g, "llama", "attention.value_length", most);
    make_u32(g, "llama", "feed_forward_length", most);
    add(g, 0, "attn_k");
    add(g, 1, "attn_k");
    made = make_model(g);
    nk_model_need(made.m, (struct nk_range){ 0, 2 }, &o, &need);
    assert_true(need.cache_bytes == (uint64_t)1e18);
    assert_true(nk_need_sum(&need) > need.cache_bytes);
    made_free(made);
}

static void test_need__more_than_is_free_is_refused_with_both_figures(void **state)
{
    const struct nk_need_opts o = { .n_ctx = 1 << 20, .n_seq = 2, .n_batch = 1, .kv_scale = 1 };
    struct made made = hybrid();
    struct nk_error err = { 0 };
    struct nk_need need;

    (void)state;
    nk_model_need(made.m, (struct nk_range){ 0, 4 }, &o, &need);
    assert_int_equal(need.cache_bytes, (128ull << 20) + 2ull * 3 * 3200);
    assert_int_equal(nk_need_check(&need, &o, nk_need_sum(&need), "x.gguf", "CPU", &err), 0);
    assert_int_equal(nk_need_check(&need, &o, 0, "x.gguf", "CPU", &err), 0); /* unknown */
    assert_int_equal(nk_need_check(&need, &o, 100 << 20, "x.gguf", "CPU", &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "no_memory");
    assert_non_null(strstr(err.msg, "130.0 MiB of memory are needed"));
    assert_non_null(strstr(err.msg, "1048576 tokens of context 128.0 MiB"));
    assert_non_null(strstr(err.msg, "100.0 MiB are free on CPU"));
    /* A slice of the layer that attends alone needs less. */
    nk_model_need(made.m, (struct nk_range){ 0, 3 }, &o, &need);
    assert_int_equal(need.cache_bytes, 2 * 3 * 3200);
    made_free(made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_need__a_layer_with_a_state_has_no_keys),
        cmocka_unit_test(test_need__a_layer_may_have_keys_and_a_state),
        cmocka_unit_test(test_need__layers_without_a_cache_count_none),
        cmocka_unit_test(test_need__an_encoder_has_no_cache),
        cmocka_unit_test(test_need__a_latent_vector_of_any_size_is_a_figure),
        cmocka_unit_test(test_need__figures_that_no_memory_has_stay_figures),
        cmocka_unit_test(test_need__more_than_is_free_is_refused_with_both_figures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
