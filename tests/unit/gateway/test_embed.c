/* Requests for embeddings and ranks, and the replies' bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/reply_embed.h"

static struct nk_request r;
static struct nk_request_error e;

static int parse(enum nk_api api, const char *body)
{
    const struct nk_request_limits limits = { .messages_max = 8, .n_max = 8 };

    return nk__request_parse(&r, api, body, strlen(body), &limits, &e);
}

static void refused(enum nk_api api, const char *body, const char *reason, const char *word)
{
    assert_int_not_equal(parse(api, body), 0);
    assert_string_equal(e.err.reason, reason);
    if (!strstr(e.err.msg, word))
        fail_msg("'%s' is not in '%s'", word, e.err.msg);
    assert_null(r.inputs);
}

static void test_embed__an_input_is_a_text_ids_or_a_list_of_them(void **state)
{
    (void)state;
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"input\":\"a\\u0000b\"}"), NK_E_INVALID);
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"input\":\"ab\"}"), 0);
    assert_int_equal(r.n_inputs, 1);
    assert_string_equal(r.inputs[0].text, "ab");
    assert_int_equal(r.normalize, 2);
    nk__request_release(&r);
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"input\":[\"a\",[1,2],\"c\"]}"), 0);
    assert_int_equal(r.n_inputs, 3);
    assert_int_equal(r.inputs[1].n_ids, 2);
    assert_int_equal(r.inputs[1].ids[1], 2);
    nk__request_release(&r);
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"input\":[3,4,5],\"encoding_format\":\"base64\"}"),
                     0);
    assert_int_equal(r.n_inputs, 1);
    assert_int_equal(r.inputs[0].n_ids, 3);
    assert_true(r.base64);
    nk__request_release(&r);
}

static void test_embed__what_is_no_input_is_refused_by_its_place(void **state)
{
    (void)state;
    refused(NK_API_EMBEDDINGS, "{}", "missing_field", "input");
    refused(NK_API_EMBEDDINGS, "{\"input\":[]}", "bad_value", "empty list");
    refused(NK_API_EMBEDDINGS, "{\"input\":[\"a\",\"\"]}", "bad_value", "input[1]");
    refused(NK_API_EMBEDDINGS, "{\"input\":[[1],[]]}", "bad_value", "input[1]");
    refused(NK_API_EMBEDDINGS, "{\"input\":[\"a\",true]}", "bad_value", "input[1]");
    refused(NK_API_EMBEDDINGS, "{\"input\":[1,-1]}", "bad_value", "element 1");
    refused(NK_API_EMBEDDINGS, "{\"input\":7}", "bad_value", "an integer");
    refused(NK_API_EMBEDDINGS, "{\"input\":\"a\",\"dimensions\":0}", "bad_value", "dimensions");
    refused(NK_API_EMBEDDINGS, "{\"input\":\"a\",\"encoding_format\":\"x\"}", "bad_value",
            "base64");
    refused(NK_API_EMBEDDINGS, "{\"input\":\"a\",\"dimension\":3}", "unknown_field", "dimensions");
    refused(NK_API_LLAMA_EMBEDDING, "{\"input\":\"a\",\"content\":\"b\"}", "bad_value", "twice");
    refused(NK_API_OLLAMA_EMBEDDINGS, "{\"prompt\":[\"a\"]}", "bad_value", "a string");
    refused(NK_API_RERANK, "{\"documents\":[\"a\"]}", "missing_field", "query");
    refused(NK_API_RERANK, "{\"query\":\"a\"}", "missing_field", "documents");
    refused(NK_API_RERANK, "{\"query\":\"a\",\"documents\":[]}", "bad_value", "empty");
    refused(NK_API_RERANK, "{\"query\":\"a\",\"documents\":[{\"txt\":\"b\"}]}", "bad_value",
            "documents[0]");
    refused(NK_API_RERANK, "{\"query\":\"a\",\"documents\":[\"b\"],\"top_n\":0}", "bad_value",
            "top_n");
}

static void test_embed__ollama_asks_whether_the_model_is_there(void **state)
{
    static const char *const bodies[] = { "{}", "{\"input\":\"\"}", "{\"input\":[]}",
                                          "{\"input\":null}" };
    struct nk_buf out = NK_BUF_INIT(1000);

    (void)state;
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        assert_int_equal(parse(NK_API_OLLAMA_EMBED, bodies[i]), 0);
        assert_true(r.only_load);
        nk__request_release(&r);
    }
    assert_int_equal(parse(NK_API_OLLAMA_EMBEDDINGS, "{\"model\":\"m\",\"prompt\":\"\"}"), 0);
    assert_true(r.only_load);
    assert_int_equal(nk__reply_embed_nothing(&r, &out, NULL), 0);
    assert_string_equal(nk_buf_str(&out), "{\"embedding\":[]}\n");
    nk__request_release(&r);
    nk_buf_release(&out);
}

static void test_embed__vectors_are_normalised_by_any_norm(void **state)
{
    float v[] = { 3, -4 }, zero[] = { 0, 0 };

    (void)state;
    nk__embed_normalize(v, 2, -1);
    assert_true(v[0] == 3 && v[1] == -4);
    nk__embed_normalize(v, 2, 0);
    assert_true(fabsf(v[1] + 32760) < 0.01f && fabsf(v[0] - 24570) < 0.01f);
    nk__embed_normalize(v, 2, 2);
    assert_true(fabsf(v[0] - 0.6f) < 1e-6f && fabsf(v[1] + 0.8f) < 1e-6f);
    nk__embed_normalize(v, 2, 1);
    assert_true(fabsf(v[0] - 3 / 7.0f) < 1e-6f && fabsf(v[1] + 4 / 7.0f) < 1e-6f);
    v[0] = 1, v[1] = 2;
    nk__embed_normalize(v, 2, 3);
    assert_true(fabsf(v[0] - (float)pow(9, -1.0 / 3)) < 1e-6f);
    nk__embed_normalize(zero, 2, 2);
    assert_true(zero[0] == 0 && zero[1] == 0);
}

static void test_embed__base64_is_rfc_4648s(void **state)
{
    static const char *const pairs[][2] = {
        { "", "" },
        { "f", "Zg==" },
        { "fo", "Zm8=" },
        { "foo", "Zm9v" },
        { "foob", "Zm9vYg==" },
        { "fooba", "Zm9vYmE=" },
        { "foobar", "Zm9vYmFy" },
        { "\xff\xfe\xfd", "//79" },
    };
    struct nk_buf out = NK_BUF_INIT(100), small = NK_BUF_INIT(3);

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        nk_buf_reset(&out);
        assert_int_equal(nk__base64(pairs[i][0], strlen(pairs[i][0]), &out, NULL), 0);
        assert_string_equal(nk_buf_str(&out), pairs[i][1]);
    }
    assert_int_equal(nk__base64("f", 1, &small, NULL), NK_E_EXHAUSTED);
    nk_buf_release(&out);
    nk_buf_release(&small);
}

static void replies(enum nk_api api, const char *body, float *vectors, size_t width,
                    const char *expected)
{
    struct nk_embed_result x = {
        .r = &r, .vectors = vectors, .width = width, .n_tokens = 9, .total_ns = 7
    };
    struct nk_buf out = NK_BUF_INIT(4096);

    assert_int_equal(parse(api, body), 0);
    assert_int_equal(nk__reply_embed(&x, &out, &e), 0);
    assert_string_equal(nk_buf_str(&out), expected);
    nk_buf_release(&out);
    nk__request_release(&r);
}

static void test_embed__replies_are_each_dialects(void **state)
{
    float v[] = { 0.5f, -2, 1, 0.25f };

    (void)state;
    replies(NK_API_EMBEDDINGS, "{\"model\":\"m\",\"input\":[\"a\",\"b\"],\"embd_normalize\":-1}", v,
            2,
            "{\"object\":\"list\",\"model\":\"m\",\"data\":["
            "{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,-2]},"
            "{\"object\":\"embedding\",\"index\":1,\"embedding\":[1,0.25]}],"
            "\"usage\":{\"prompt_tokens\":9,\"total_tokens\":9}}\n");
    replies(
        NK_API_EMBEDDINGS,
        "{\"model\":\"m\",\"input\":\"a\",\"embd_normalize\":-1,\"encoding_format\":\"base64\"}", v,
        2,
        "{\"object\":\"list\",\"model\":\"m\",\"data\":["
        "{\"object\":\"embedding\",\"index\":0,\"embedding\":\"AAAAPwAAAMA=\"}],"
        "\"usage\":{\"prompt_tokens\":9,\"total_tokens\":9}}\n");
    replies(NK_API_LLAMA_EMBEDDING, "{\"content\":[\"a\",\"b\"],\"embd_normalize\":-1}", v, 2,
            "[{\"index\":0,\"embedding\":[[0.5,-2]]},{\"index\":1,\"embedding\":[[1,0.25]]}]\n");
    replies(NK_API_OLLAMA_EMBEDDINGS, "{\"prompt\":\"a\"}", v, 2, "{\"embedding\":[0.5,-2]}\n");
    v[0] = 3, v[1] = 0;
    replies(NK_API_OLLAMA_EMBED, "{\"model\":\"m\",\"input\":\"a\"}", v, 2,
            "{\"model\":\"m\",\"embeddings\":[[1,0]],\"total_duration\":7,\"load_duration\":0,"
            "\"prompt_eval_count\":9}\n");
}

static void test_embed__ranks_are_sorted_and_equal_ones_stay(void **state)
{
    float scores[] = { -1, 0.5f, 2, 0.5f };

    (void)state;
    replies(
        NK_API_RERANK,
        "{\"model\":\"m\",\"query\":\"q\",\"documents\":[\"a\",\"b\",\"c\",\"d\"],\"top_n\":3}",
        scores, 1,
        "{\"object\":\"list\",\"model\":\"m\",\"usage\":{\"prompt_tokens\":9,\"total_tokens\":9},"
        "\"results\":[{\"index\":2,\"relevance_score\":2},{\"index\":1,\"relevance_score\":0.5},"
        "{\"index\":3,\"relevance_score\":0.5}]}\n");
    replies(NK_API_RERANK, "{\"query\":\"q\",\"texts\":[\"a\",\"\\\"b\"],\"return_text\":true}",
            scores, 1,
            "[{\"index\":1,\"score\":0.5,\"text\":\"\\\"b\"},{\"index\":0,\"score\":-1,"
            "\"text\":\"a\"}]\n");
}

static void test_embed__other_dimensions_are_refused_with_both_numbers(void **state)
{
    float v[] = { 1, 2 };
    struct nk_embed_result x = { .r = &r, .vectors = v, .width = 2 };
    struct nk_buf out = NK_BUF_INIT(4096), small = NK_BUF_INIT(40);

    (void)state;
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"model\":\"m\",\"input\":\"a\",\"dimensions\":3}"),
                     0);
    assert_int_equal(nk__reply_embed(&x, &out, &e), NK_E_INVALID);
    assert_string_equal(e.param, "dimensions");
    assert_non_null(strstr(e.err.msg, "3; this model's vectors have 2"));
    nk__request_release(&r);
    assert_int_equal(parse(NK_API_EMBEDDINGS, "{\"model\":\"m\",\"input\":\"a\",\"dimensions\":2}"),
                     0);
    assert_int_equal(nk__reply_embed(&x, &small, &e), NK_E_EXHAUSTED);
    assert_non_null(strstr(e.err.msg, "fewer texts"));
    nk__request_release(&r);
    nk_buf_release(&out);
    nk_buf_release(&small);
}

/* A worker's bug, or a lie: JSON has no word for it. */
static void test_embed__what_is_no_finite_number_is_an_error(void **state)
{
    static const struct {
        enum nk_api api;
        const char *body;
        float v[2];
    } all[] = {
        { NK_API_EMBEDDINGS, "{\"input\":\"a\",\"embd_normalize\":-1}", { 1, NAN } },
        { NK_API_EMBEDDINGS, "{\"input\":\"a\",\"encoding_format\":\"base64\"}", { NAN, 1 } },
        { NK_API_LLAMA_EMBEDDING, "{\"input\":\"a\"}", { INFINITY, 1 } },
        /* Of numbers that are finite, and too small for their norm. */
        { NK_API_LLAMA_EMBEDDING, "{\"input\":\"a\",\"embd_normalize\":1}", { 1e-42f, 0 } },
        { NK_API_OLLAMA_EMBEDDINGS, "{\"prompt\":\"a\"}", { 1, -INFINITY } },
        { NK_API_RERANK, "{\"query\":\"q\",\"documents\":[\"a\",\"b\"]}", { 1, NAN } },
    };
    struct nk_buf out = NK_BUF_INIT(4096);

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        float v[2] = { all[i].v[0], all[i].v[1] };
        struct nk_embed_result x = { .r = &r,
                                     .vectors = v,
                                     .width = all[i].api == NK_API_RERANK ? 1 : 2 };

        assert_int_equal(parse(all[i].api, all[i].body), 0);
        assert_int_equal(nk__reply_embed(&x, &out, &e), NK_E_DATA_LOSS);
        assert_string_equal(e.err.reason, "bad_peer");
        assert_int_equal(out.size, 0);
        nk__request_release(&r);
    }
    nk_buf_release(&out);
}

static void test_embed__a_text_is_named_by_the_field_that_has_it(void **state)
{
    (void)state;
    assert_int_equal(parse(NK_API_LLAMA_EMBEDDING, "{\"input\":[\"a\",\"b\"]}"), 0);
    assert_string_equal(r.input_name, "input");
    nk__request_release(&r);
    refused(NK_API_LLAMA_EMBEDDING, "{\"input\":[\"a\",\"\"]}", "bad_value", "input[1]");
    refused(NK_API_LLAMA_EMBEDDING, "{\"content\":[\"a\",\"\"]}", "bad_value", "content[1]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed__an_input_is_a_text_ids_or_a_list_of_them),
        cmocka_unit_test(test_embed__what_is_no_input_is_refused_by_its_place),
        cmocka_unit_test(test_embed__ollama_asks_whether_the_model_is_there),
        cmocka_unit_test(test_embed__vectors_are_normalised_by_any_norm),
        cmocka_unit_test(test_embed__base64_is_rfc_4648s),
        cmocka_unit_test(test_embed__replies_are_each_dialects),
        cmocka_unit_test(test_embed__ranks_are_sorted_and_equal_ones_stay),
        cmocka_unit_test(test_embed__what_is_no_finite_number_is_an_error),
        cmocka_unit_test(test_embed__a_text_is_named_by_the_field_that_has_it),
        cmocka_unit_test(test_embed__other_dimensions_are_refused_with_both_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
