#include "slice/gguf_int.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "slice/write_int.h"
#include "unit/slice/make.h"

static void test_gguf__calls_every_short_prefix_truncated(void **state)
{
    struct gguf_context *made = make_gguf("llama", 3, NULL);
    size_t size, header = gguf_get_meta_size(made);
    char *bytes = make_bytes(made, &size);

    (void)state;
    for (size_t n = 0; n < size; n++) {
        char *prefix = malloc(n + 1); /* of its own, so that a sanitizer sees a byte too many */
        struct nk_error err = { 0 };
        struct nk__gguf g;

        memcpy(prefix, bytes, n);
        assert_int_not_equal(nk__gguf_open_memory(&g, "prefix", prefix, n, true, &err), 0);
        assert_string_equal(err.reason, n < 4 ? "bad_magic" : "truncated");
        free(prefix);
    }
    assert_true(header > 300);
    free(bytes);
}

/* One byte after another is changed: a model or an error comes out, and what is a model can be cut
 * and written. */
static void test_gguf__no_byte_of_a_header_can_crash_it(void **state)
{
    static const uint8_t masks[] = { 0x01, 0x80, 0xff };
    struct gguf_context *made = make_gguf("gemma2", 4, NULL);
    size_t size, header = gguf_get_meta_size(made);
    char *bytes = make_bytes(made, &size), hash[NK_SHA256_HEX];
    int n_good = 0, n_bad = 0;

    (void)state;
    for (size_t i = 0; i < header; i++)
        for (size_t k = 0; k < sizeof masks; k++) {
            struct nk_error err = { 0 };
            nk_model *m;

            bytes[i] = (char)(bytes[i] ^ masks[k]);
            if (nk__model_open_memory(&m, bytes, size, &err)) {
                assert_true(err.reason[0] && err.msg[0]);
                n_bad++;
            } else {
                struct nk_range all = { 0, nk_model_info(m)->n_layer };

                n_good++;
                if (!nk_ranges_check(m, &all, 1, true, NULL))
                    nk__slice_write(m, all, "", NULL, hash, NULL, NULL, NULL, &err);
                nk_model_close(m);
            }
            bytes[i] = (char)(bytes[i] ^ masks[k]);
        }
    assert_true(n_good > 100 && n_bad > 100);
    free(bytes);
}

static void test_gguf__leaves_the_tokenizers_arrays_in_the_file(void **state)
{
    size_t size;
    char *bytes = make_bytes(make_gguf("llama", 3, NULL), &size);
    struct nk__gguf g;

    (void)state;
    assert_int_equal(nk__gguf_open_memory(&g, "memory", bytes, size, true, NULL), 0);
    assert_true(gguf_find_key(g.ctx, "tokenizer.ggml.tokens") < 0);
    assert_true(gguf_find_key(g.ctx, "tokenizer.ggml.model") >= 0);
    assert_int_equal(g.n_heavy, 1);
    assert_int_equal(g.heavy[0].n, MAKE_VOCAB);
    assert_true(g.heavy[0].is_tokens);
    /* Key, type, element type, count, then a length before every string: 32 empty ones and 32
     * of three digits. */
    assert_int_equal(g.heavy[0].end - g.heavy[0].begin, 8 + 21 + 4 + 4 + 8 + 64 * 8 + 32 * 3);
    assert_memory_equal(bytes + g.heavy[0].begin + 8, "tokenizer.ggml.tokens", 21);
    nk__gguf_close(&g);
    free(bytes);
}

static void test_gguf__getters_answer_wrong_types_with_no(void **state)
{
    static const int16_t shorts[] = { 3, -4 };
    const char *strings[] = { "a" };
    struct gguf_context *c = gguf_init_empty();
    uint64_t u;
    int64_t i;

    (void)state;
    gguf_set_val_u8(c, "u8", 7);
    gguf_set_val_i64(c, "i64", 1LL << 40);
    gguf_set_val_i32(c, "minus", -1);
    gguf_set_val_f64(c, "f64", 0.25);
    gguf_set_val_bool(c, "bool", true);
    gguf_set_val_str(c, "str", "text");
    gguf_set_arr_data(c, "shorts", GGUF_TYPE_INT16, shorts, 2);
    gguf_set_arr_str(c, "strings", strings, 1);
    assert_true(nk__kv_uint(c, "u8", &u) && u == 7);
    assert_true(nk__kv_uint(c, "i64", &u) && u == 1ULL << 40);
    assert_true(nk__kv_uint(c, "bool", &u) && u == 1);
    assert_false(nk__kv_uint(c, "minus", &u) || nk__kv_uint(c, "str", &u) ||
                 nk__kv_uint(c, "f64", &u));
    assert_false(nk__kv_uint(c, "shorts", &u) || nk__kv_uint(c, "none", &u));
    assert_string_equal(nk__kv_string(c, "str"), "text");
    assert_null(nk__kv_string(c, "strings"));
    assert_true(nk__kv_array_int(c, "shorts", 1, &i) && i == -4);
    assert_false(nk__kv_array_int(c, "shorts", 2, &i) || nk__kv_array_int(c, "strings", 0, &i));
    assert_false(nk__kv_array_int(c, "u8", 0, &i) || nk__kv_array_int(c, "none", 0, &i));
    assert_int_equal(nk__kv_array_n(c, "strings"), 1);
    assert_int_equal(nk__kv_array_n(c, "u8"), -1);
    gguf_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf__calls_every_short_prefix_truncated),
        cmocka_unit_test(test_gguf__no_byte_of_a_header_can_crash_it),
        cmocka_unit_test(test_gguf__leaves_the_tokenizers_arrays_in_the_file),
        cmocka_unit_test(test_gguf__getters_answer_wrong_types_with_no),
    };

    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
