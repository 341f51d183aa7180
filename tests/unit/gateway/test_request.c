#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/request.h"

static const struct nk_request_limits limits = { .messages_max = 8, .n_max = 4 };
static struct nk_request r;
static struct nk_request_error e;

static int parse(enum nk_api api, const char *body)
{
    nk__request_release(&r);
    memset(&e, 0, sizeof e);
    return nk__request_parse(&r, api, body, strlen(body), &limits, &e);
}

/* Every bad request below: what is sent, and what the answer must name. */
struct bad {
    enum nk_api api;
    const char *body, *reason, *param;
};

static void refuses(const struct bad *b)
{
    int rc = parse(b->api, b->body);

    if (rc == 0 || strcmp(e.err.reason, b->reason) || strcmp(e.param, b->param))
        fail_msg("%s\n  gives %d %s, param '%s' (%s)\n  wanted %s, param '%s'", b->body, rc,
                 e.err.reason, e.param, e.err.msg, b->reason, b->param);
    assert_null(r.root);
    assert_true(e.err.msg[0]);
}

#define CHAT "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void test_request__names_what_is_wrong(void **state)
{
    static const struct bad bads[] = {
        { NK_API_CHAT, "", "bad_json", "" },
        { NK_API_CHAT, "{", "bad_json", "" },
        { NK_API_CHAT, "{} x", "bad_json", "" },
        { NK_API_CHAT, "[]", "not_an_object", "" },
        { NK_API_CHAT, "{\"model\":\"m\",\"model\":\"m\"}", "bad_json", "" },
        { NK_API_CHAT, "{\"model\":\"\xff\"}", "bad_json", "" },
        { NK_API_CHAT, "{" CHAT ",\"nonsense\":1}", "unknown_field", "nonsense" },
        { NK_API_CHAT, "{" CHAT ",\"functions\":[]}", "refused_field", "functions" },
        { NK_API_CHAT, "{" CHAT ",\"store\":true}", "refused_field", "store" },
        { NK_API_CHAT, "{" CHAT ",\"temperature\":\"hot\"}", "bad_value", "temperature" },
        { NK_API_CHAT, "{" CHAT ",\"temperature\":-1}", "bad_value", "temperature" },
        { NK_API_CHAT, "{" CHAT ",\"top_p\":1.5}", "bad_value", "top_p" },
        { NK_API_CHAT, "{" CHAT ",\"n\":0}", "bad_value", "n" },
        { NK_API_CHAT, "{" CHAT ",\"n\":5}", "too_many", "n" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":0}", "bad_value", "max_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":1.5}", "bad_value", "max_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":3,\"max_completion_tokens\":4}", "bad_value",
          "max_completion_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"stop\":\"\"}", "bad_value", "stop" },
        { NK_API_CHAT, "{" CHAT ",\"stop\":[1]}", "bad_value", "stop" },
        { NK_API_CHAT, "{" CHAT ",\"seed\":\"x\"}", "bad_value", "seed" },
        { NK_API_CHAT, "{" CHAT ",\"top_logprobs\":3}", "bad_value", "top_logprobs" },
        { NK_API_CHAT, "{" CHAT ",\"logprobs\":true,\"top_logprobs\":21}", "bad_value",
          "top_logprobs" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":{\"x\":1}}", "bad_value", "logit_bias" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":{\"1\":101}}", "bad_value", "logit_bias" },
        { NK_API_CHAT, "{" CHAT ",\"stream_options\":{\"include_usage\":true}}", "bad_value",
          "stream_options" },
        { NK_API_CHAT, "{" CHAT ",\"stream\":true,\"stream_options\":{\"x\":true}}",
          "unknown_field", "stream_options.x" },
        { NK_API_CHAT, "{" CHAT ",\"response_format\":{\"type\":\"yaml\"}}", "bad_value",
          "response_format" },
        { NK_API_CHAT, "{" CHAT ",\"response_format\":{\"type\":\"json_schema\"}}", "missing_field",
          "response_format.json_schema.schema" },
        { NK_API_CHAT,
          "{" CHAT
          ",\"response_format\":{\"type\":\"json_object\"},\"grammar\":\"root ::= \\\"a\\\"\"}",
          "bad_value", "grammar" },
        { NK_API_CHAT, "{" CHAT ",\"tool_choice\":\"required\"}", "bad_value", "tool_choice" },
        { NK_API_CHAT,
          "{" CHAT ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]}",
          "bad_value", "tools[0].function.name" },
        { NK_API_CHAT,
          "{" CHAT ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"}}],\"tool_"
          "choice\":{\"type\":\"function\",\"function\":{\"name\":\"b\"}}}",
          "bad_value", "tool_choice" },
        { NK_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "missing_field",
          "model" },
        { NK_API_CHAT, "{\"model\":\"m\"}", "missing_field", "messages" },
        { NK_API_CHAT, "{\"model\":\"m\",\"messages\":[]}", "bad_value", "messages" },
        { NK_API_CHAT, "{\"model\":\"m\",\"messages\":[1]}", "bad_value", "messages[0]." },
        { NK_API_CHAT, "{\"model\":\"m\",\"messages\":[{\"content\":\"x\"}]}", "missing_field",
          "messages[0].role" },
        { NK_API_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"robot\",\"content\":\"x\"}]}",
          "bad_value", "messages[0].role" },
        { NK_API_CHAT,
          "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\"}"
          "]}",
          "missing_field", "messages[1].content" },
        { NK_API_CHAT,
          "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]"
          "}]}",
          "refused_field", "messages[0].content" },
        { NK_API_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}",
          "missing_field", "messages[0].tool_call_id" },
        { NK_API_CHAT,
          "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"mood\":1}]}",
          "unknown_field", "messages[0].mood" },
        { NK_API_COMPLETION, "{\"model\":\"m\"}", "missing_field", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":2}", "too_many",
          "n" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"a\",\"echo\":true}", "refused_field",
          "echo" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"a\",\"suffix\":\"b\"}", "refused_field",
          "suffix" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"a\",\"logprobs\":true}", "bad_value",
          "logprobs" },
        { NK_API_OLLAMA_CHAT,
          "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"images\":[\"aa\"]}"
          "]}",
          "refused_field", "messages[0].images" },
        { NK_API_OLLAMA_CHAT, "{\"model\":\"m\",\"options\":{\"num_gpu\":1}}", "refused_field",
          "options.num_gpu" },
        { NK_API_OLLAMA_CHAT, "{\"model\":\"m\",\"options\":{\"num_predikt\":1}}", "unknown_field",
          "options.num_predikt" },
        { NK_API_OLLAMA_CHAT, "{\"model\":\"m\",\"keep_alive\":\"5 minutes\"}", "bad_value",
          "keep_alive" },
        { NK_API_OLLAMA_CHAT, "{\"model\":\"m\",\"format\":\"xml\"}", "bad_value", "format" },
        { NK_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"prompt\":\"a\",\"raw\":true,\"context\":[1]}",
          "bad_value", "context" },
        { NK_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"prompt\":\"a\",\"context\":[-1]}",
          "bad_value", "context" },
        { NK_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"prompt\":\"a\",\"think\":\"hard\"}",
          "bad_value", "think" },
        { NK_API_OLLAMA_SHOW, "{}", "missing_field", "model" },
        { NK_API_OLLAMA_SHOW, "{\"model\":\"m\",\"verbose\":true}", "refused_field", "verbose" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        refuses(&bads[i]);
}

static void test_request__every_known_field_is_read_or_refused(void **state)
{
    struct nk_field_table t;
    static const enum nk_api apis[] = { [0] = NK_API_CHAT,        [4] = NK_API_COMPLETION,
                                        [5] = NK_API_OLLAMA_CHAT, [7] = NK_API_OLLAMA_GENERATE,
                                        [9] = NK_API_OLLAMA_SHOW, [10] = NK_API_MESSAGES,
                                        [11] = NK_API_RESPONSES };

    (void)state;
    for (int i = 0; nk__field_table(i, &t); i++) {
        assert_true(t.n > 0);
        for (int k = 0; k < t.n; k++) {
            struct nk_field f = nk__field(i, k);
            /* What is missing in a body with nothing but this field. */
            const char *next = strstr(t.title, "responses") ? "input" : "model";
            char body[200];

            for (int j = 0; j < k; j++)
                if (!strcmp(nk__field(i, j).name, f.name))
                    fail_msg("%s has %s twice", t.title, f.name);
            if (strncmp(t.title, "POST ", 5) || f.use == NK_FIELD_YES)
                continue;
            /* A value that no field of these tables can have. */
            snprintf(body, sizeof body, "{\"%s\":[[7]]}", f.name);
            assert_int_not_equal(parse(apis[i], body), 0);
            assert_string_equal(e.err.reason, f.use == NK_FIELD_IGNORED  ? "missing_field"
                                              : strcmp(f.name, "thread") ? "refused_field"
                                                                         : "thread_unsupported_"
                                                                           "request");
            assert_string_equal(e.param, f.use == NK_FIELD_IGNORED ? next : f.name);
            /* null is as good as nothing: the next complaint is about something else. */
            snprintf(body, sizeof body, "{\"%s\":null}", f.name);
            assert_int_not_equal(parse(apis[i], body), 0);
            assert_string_equal(e.param, next);
        }
    }
}

static void test_request__chat_is_read(void **state)
{
    (void)state;
    assert_int_equal(parse(NK_API_CHAT, "{" CHAT ",\"stream\":true,\"stream_options\":{\"include_"
                                        "usage\":true},\"max_tokens\":7,\"temperature\":0,"
                                        "\"top_p\":0.5,\"seed\":42,\"stop\":[\"a\",\"b\"],\"n\":2,"
                                        "\"presence_penalty\":0.1,\"frequency_penalty\":0.2,"
                                        "\"logit_bias\":{\"5\":-100},\"logprobs\":true,\"top_"
                                        "logprobs\":3,\"top_k\":9,\"min_p\":0.25,"
                                        "\"repeat_penalty\":1.5,\"user\":\"u\",\"grammar\":\"root "
                                        "::= [a-z]+\",\"cache_prompt\":false}"),
                     0);
    assert_true(r.stream && r.include_usage && r.no_reuse);
    assert_int_equal(r.n_predict, 7);
    assert_int_equal(r.n, 2);
    assert_true(r.sampling.temperature == 0 && r.sampling.top_p == 0.5f &&
                r.sampling.min_p == 0.25f && r.sampling.repeat_penalty == 1.5f);
    assert_int_equal(r.sampling.top_k, 9);
    assert_int_equal(r.sampling.seed, 42);
    assert_int_equal(r.n_stop, 2);
    assert_string_equal(r.stop[1], "b");
    assert_int_equal(r.sampling.n_logit_bias, 1);
    assert_int_equal(r.sampling.logit_bias[0].id, 5);
    assert_int_equal(r.n_logprobs, 3);
    assert_string_equal(r.sampling.grammar, "root ::= [a-z]+");
    assert_string_equal(r.user, "u");
}

static void test_request__messages_come_in_one_shape(void **state)
{
    const json_t *m, *call;

    (void)state;
    assert_int_equal(
        parse(NK_API_CHAT,
              "{\"model\":\"m\",\"messages\":["
              "{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
              "\"text\",\"text\":\"b\"}]},"
              "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":"
              "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}}]},"
              "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"2\"}]}"),
        0);
    m = json_array_get(r.messages, 0);
    assert_string_equal(json_string_value(json_object_get(m, "role")), "system");
    assert_string_equal(json_string_value(json_object_get(m, "content")), "a\nb");
    call = json_array_get(json_object_get(json_array_get(r.messages, 1), "tool_calls"), 0);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(call, "function"), "arguments")),
        "{\"x\":1}");

    assert_int_equal(parse(NK_API_OLLAMA_CHAT,
                           "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
                           "{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"hm\",\"tool_"
                           "calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1}}}]},"
                           "{\"role\":\"tool\",\"tool_name\":\"f\",\"content\":\"2\"}]}"),
                     0);
    assert_true(r.stream);
    m = json_array_get(r.messages, 1);
    call = json_array_get(json_object_get(m, "tool_calls"), 0);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(call, "function"), "arguments")),
        "{\"x\":1}");
    assert_string_equal(json_string_value(json_object_get(m, "reasoning_content")), "hm");
    assert_string_equal(json_string_value(json_object_get(json_array_get(r.messages, 2), "name")),
                        "f");
}

static void test_request__prompts_are_texts_or_ids(void **state)
{
    (void)state;
    assert_int_equal(parse(NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"a\"}"), 0);
    assert_int_equal(r.n_prompts, 1);
    assert_string_equal(r.prompts[0].text, "a");
    assert_int_equal(parse(NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",\"bc\"]}"), 0);
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].size, 2);
    assert_int_equal(parse(NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,2,3]}"), 0);
    assert_int_equal(r.n_prompts, 1);
    assert_int_equal(r.prompts[0].n_ids, 3);
    assert_int_equal(parse(NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[1,2],[3]]}"), 0);
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].ids[0], 3);
}

static void test_request__seeds_of_64_bits_fold_and_minus_one_is_random(void **state)
{
    (void)state;
    assert_int_equal(parse(NK_API_CHAT, "{" CHAT ",\"seed\":-1}"), 0);
    assert_int_equal(r.sampling.seed, UINT32_MAX);
    assert_int_equal(parse(NK_API_CHAT, "{" CHAT ",\"seed\":4294967296}"), 0);
    assert_int_equal(r.sampling.seed, 1);
    assert_int_equal(parse(NK_API_CHAT, "{" CHAT ",\"seed\":-2}"), 0);
    assert_int_not_equal(r.sampling.seed, UINT32_MAX);
    assert_int_equal(parse(NK_API_CHAT, "{" CHAT "}"), 0);
    assert_int_equal(r.sampling.seed, UINT32_MAX);
}

static void test_request__ollama_options_and_defaults(void **state)
{
    (void)state;
    assert_int_equal(
        parse(
            NK_API_OLLAMA_GENERATE,
            "{\"model\":\"m\",\"prompt\":\"a\",\"options\":{\"num_predict\":3,\"num_ctx\":64,"
            "\"stop\":\"x\",\"seed\":1},"
            "\"format\":{\"type\":\"object\"},\"keep_alive\":0,\"think\":false,\"context\":[1,2]}"),
        0);
    assert_true(r.stream && r.no_reuse && !r.only_load);
    assert_int_equal(r.n_predict, 3);
    assert_int_equal(r.num_ctx, 64);
    assert_int_equal(r.format, NK_FORMAT_SCHEMA);
    assert_int_equal(r.think, NK_THINK_OFF);
    assert_int_equal(r.n_context, 2);
    assert_true(r.sampling.top_p == 0.9f && r.sampling.repeat_penalty == 1.1f &&
                r.sampling.min_p == 0);
    assert_int_equal(parse(NK_API_OLLAMA_GENERATE, "{\"model\":\"m\"}"), 0);
    assert_true(r.only_load && !r.only_unload);
    assert_int_equal(parse(NK_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"keep_alive\":0}"), 0);
    assert_true(r.only_unload);
    for (int i = 0; i < 6; i++) {
        static const char *const good[] = { "\"5m\"", "\"1h30m\"", "\"-1s\"",
                                            "-1",     "\"0.5s\"",  "\"100ms\"" };
        char body[100];

        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"a\",\"keep_alive\":%s}",
                 good[i]);
        assert_int_equal(parse(NK_API_OLLAMA_GENERATE, body), 0);
        assert_false(r.no_reuse);
    }
    assert_int_equal(
        parse(NK_API_OLLAMA_GENERATE, "{\"model\":\"m\",\"prompt\":\"a\",\"keep_alive\":\"0s\"}"),
        0);
    assert_true(r.no_reuse);
}

static void test_request__too_deep_json_is_refused(void **state)
{
    char *deep = malloc(100001);

    (void)state;
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    assert_int_not_equal(parse(NK_API_CHAT, deep), 0);
    assert_string_equal(e.err.reason, "bad_json");
    free(deep);
}

static int teardown(void **state)
{
    (void)state;
    nk__request_release(&r);
    return 0;
}

static void test_request__shrunk_it_has_its_strings_and_no_json(void **state)
{
    static const char body[] = "{\"model\":\"m\",\"user\":\"u\",\"stop\":[\"one\",\"two\"],\"n\":2,"
                               "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],"
                               "\"grammar\":\"root ::= \\\"a\\\"\","
                               "\"logit_bias\":{\"5\":1}}";

    (void)state;
    if (parse(NK_API_CHAT, body))
        fail_msg("%s", e.err.msg);
    assert_int_equal(nk__request_shrink(&r, NULL), 0);
    assert_int_equal(nk__request_shrink(&r, NULL), 0);
    assert_null(r.root);
    assert_null(r.messages);
    assert_string_equal(r.model, "m");
    assert_string_equal(r.user, "u");
    assert_int_equal(r.n_stop, 2);
    assert_string_equal(r.stop[0], "one");
    assert_string_equal(r.stop[1], "two");
    assert_non_null(r.sampling.grammar);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.sampling.logit_bias[0].id, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request__names_what_is_wrong),
        cmocka_unit_test(test_request__every_known_field_is_read_or_refused),
        cmocka_unit_test(test_request__chat_is_read),
        cmocka_unit_test(test_request__messages_come_in_one_shape),
        cmocka_unit_test(test_request__prompts_are_texts_or_ids),
        cmocka_unit_test(test_request__seeds_of_64_bits_fold_and_minus_one_is_random),
        cmocka_unit_test(test_request__ollama_options_and_defaults),
        cmocka_unit_test(test_request__shrunk_it_has_its_strings_and_no_json),
        cmocka_unit_test(test_request__too_deep_json_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, teardown);
}
