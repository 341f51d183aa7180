#include "slice/slice.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "slice/compared_int.h"
#include "unit/slice/make.h"

/* Takes g. */
static bool is_compared(struct gguf_context *g, const char *version)
{
    struct made made = make_model(g);
    bool result = nk_model_is_compared(made.m, version);

    made_free(made);
    return result;
}

static struct gguf_context *plain(const char *arch)
{
    struct gguf_context *g = make_gguf(arch, 4, NULL);

    for (int i = 0; i < 4; i++) {
        static const char *const names[] = { "attn_k.weight", "attn_q.weight" };

        for (int k = 0; k < 2; k++) { /* in another order */
            char name[64];

            snprintf(name, sizeof name, "blk.%d.%s", i, names[(k + i) % 2]);
            make_tensor(g, name, 4, 1);
        }
    }
    return g;
}

static void test_compared__plain_models_of_architectures_that_were(void **state)
{
    (void)state;
    assert_true(is_compared(plain("llama"), COMPARED_WITH));
    assert_true(is_compared(plain("qwen2"), COMPARED_WITH));
    assert_false(is_compared(plain("llama"), "0.0.1"));
    assert_false(is_compared(plain("some-new-one"), COMPARED_WITH));
    assert_false(is_compared(plain("gemma3n"), COMPARED_WITH));
}

static void test_compared__not_where_layers_differ(void **state)
{
    static const uint32_t same[4] = { 2, 2, 2, 2 }, other[4] = { 2, 2, 1, 2 };
    struct gguf_context *g = plain("llama");

    (void)state;
    make_array(g, "llama", "attention.head_count_kv", same, 4);
    assert_true(is_compared(g, COMPARED_WITH));
    g = plain("llama");
    make_array(g, "llama", "attention.head_count_kv", other, 4);
    assert_false(is_compared(g, COMPARED_WITH));
    g = plain("llama");
    make_tensor(g, "blk.3.ffn_gate_inp.weight", 4, 1);
    assert_false(is_compared(g, COMPARED_WITH));
    g = plain("cohere2");
    make_u32(g, "cohere2", "attention.sliding_window", 512);
    assert_false(is_compared(g, COMPARED_WITH));                /* by a pattern in the code */
    assert_false(is_compared(plain("smollm3"), COMPARED_WITH)); /* by a period */
    g = plain("glm4moe");
    make_u32(g, "glm4moe", "nextn_predict_layers", 1);
    assert_false(is_compared(g, COMPARED_WITH));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compared__plain_models_of_architectures_that_were),
        cmocka_unit_test(test_compared__not_where_layers_differ),
    };

    return cmocka_run_group_tests_name("compared", tests, NULL, NULL);
}
