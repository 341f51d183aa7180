#include <math.h>
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

static const struct nk_request_limits strict_limits = { .messages_max = 8,
                                                        .n_max = 4,
                                                        .strict = true };

static int parse_by(const struct nk_request_limits *l, enum nk_api api, const char *body)
{
    nk__request_release(&r);
    memset(&e, 0, sizeof e);
    return nk__request_parse(&r, api, body, strlen(body), l, &e);
}

static int parse(enum nk_api api, const char *body)
{
    return parse_by(&limits, api, body);
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
        { NK_API_CHAT, "{" CHAT ",\"temprature\":1}", "unknown_field", "temprature" },
        { NK_API_CHAT, "{" CHAT ",\"maxTokens\":1}", "unknown_field", "maxTokens" },
        { NK_API_CHAT, "{" CHAT ",\"web_search_options\":{}}", "refused_field",
          "web_search_options" },
        { NK_API_CHAT, "{" CHAT ",\"features\":{\"web_search\":true}}", "refused_field",
          "features" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":[[1]]}", "bad_value", "logit_bias" },
        { NK_API_CHAT, "{" CHAT ",\"response_format\":{\"type\":\"json_object\",\"schema\":1}}",
          "bad_value", "response_format.schema" },
        { NK_API_CHAT, "{" CHAT ",\"tools\":[{\"type\":\"custom\",\"custom\":{\"name\":\"x\"}}]}",
          "bad_value", "tools[0].type" },
        { NK_API_CHAT,
          "{" CHAT ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"}},"
          "{\"type\":\"function\",\"function\":{\"name\":\"a\",\"description\":\"b\"}}]}",
          "bad_value", "tools[1].function.name" },
        { NK_API_CHAT, "{" CHAT ",\"functions\":[]}", "refused_field", "functions" },
        { NK_API_CHAT, "{" CHAT ",\"temperature\":\"hot\"}", "bad_value", "temperature" },
        { NK_API_CHAT, "{" CHAT ",\"temperature\":-1}", "bad_value", "temperature" },
        { NK_API_CHAT, "{" CHAT ",\"top_p\":1.5}", "bad_value", "top_p" },
        { NK_API_CHAT, "{" CHAT ",\"n\":0}", "bad_value", "n" },
        { NK_API_CHAT, "{" CHAT ",\"n\":5}", "too_many", "n" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":0}", "bad_value", "max_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":1.5}", "bad_value", "max_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"max_tokens\":3,\"max_completion_tokens\":4}", "bad_value",
          "max_completion_tokens" },
        { NK_API_CHAT, "{" CHAT ",\"stop\":[1]}", "bad_value", "stop" },
        { NK_API_CHAT, "{" CHAT ",\"seed\":\"x\"}", "bad_value", "seed" },
        { NK_API_CHAT, "{" CHAT ",\"top_logprobs\":3}", "bad_value", "top_logprobs" },
        { NK_API_CHAT, "{" CHAT ",\"logprobs\":true,\"top_logprobs\":21}", "bad_value",
          "top_logprobs" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":{\"\":1}}", "bad_value", "logit_bias" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":[[\" word\",101]]}", "bad_value", "logit_bias" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":[[1.5,1]]}", "bad_value", "logit_bias" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,\"a\",-1]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,\"a\",[2]]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[1,\"a\"],[\"b\",true]]}", "bad_value",
          "prompt" },
        { NK_API_CHAT,
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
          "\"content\":"
          "\"b\"},{\"role\":\"assistant\",\"content\":\"c\"}]}",
          "bad_value", "messages" },
        { NK_API_CHAT, "{" CHAT ",\"logit_bias\":{\"1\":101}}", "bad_value", "logit_bias" },
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
        { NK_API_COMPLETION, "{\"model\":\"m\"}", "missing_field", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,null]}", "bad_value", "prompt" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":2}", "too_many",
          "n" },
        { NK_API_COMPLETION, "{\"prompt\":\"a\",\"echo\":true,\"suffix\":\"b\"}", "refused_field",
          "echo" },
        { NK_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":0}",
          "bad_value", "max_tokens" },
        { NK_API_COMPLETION, "{\"prompt\":\"a\",\"suffix\":1}", "bad_value", "suffix" },
        { NK_API_LLAMA_COMPLETION, "{}", "missing_field", "prompt" },
        { NK_API_LLAMA_COMPLETION, "{\"prompt\":\"a\",\"post_sampling_probs\":true}",
          "refused_field", "post_sampling_probs" },
        { NK_API_LLAMA_COMPLETION, "{\"prompt\":\"a\",\"response_fields\":[1]}", "bad_value",
          "response_fields" },
        { NK_API_INFILL, "{\"input_suffix\":\"a\"}", "missing_field", "input_prefix" },
        { NK_API_INFILL, "{\"input_prefix\":\"a\"}", "missing_field", "input_suffix" },
        { NK_API_INFILL,
          "{\"input_prefix\":\"a\",\"input_suffix\":\"b\",\"input_extra\":[{\"filename\":\"c\"}]}",
          "bad_value", "input_extra" },
        { NK_API_COMPLETION, "{\"model\":\"m\",\"prompt\":\"a\",\"logprobs\":true}", "bad_value",
          "logprobs" },
        { NK_API_OLLAMA_CHAT,
          "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"images\":[\"aa\"]}"
          "]}",
          "refused_field", "messages[0].images" },
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
    };

    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        refuses(&bads[i]);
}

/* Of the tables of whole requests. */
static bool find_api(const char *title, enum nk_api *api)
{
#define XX(name, path, dialect, input) NK_API_##name,
    static const enum nk_api all[] = { NK_API_MAP(XX) };
#undef XX

    for (size_t i = 0; !strncmp(title, "POST ", 5) && i < sizeof all / sizeof all[0]; i++) {
        size_t n = strlen(nk__api_path(all[i]));

        if (!strncmp(nk__api_path(all[i]), title + 5, n) && strchr(" ", title[5 + n])) {
            *api = all[i];
            return true;
        }
    }
    return false;
}

/* A value that no field of these tables can have is refused by its name, but for hints: they are
 * taken and named. null is as good as nothing. */
static void test_request__every_field_of_the_tables_does_what_its_word_says(void **state)
{
    struct nk_field_table t;
    enum nk_api api;

    (void)state;
    for (int i = 0; nk__field_table(i, &t); i++) {
        assert_true(t.n > 0);
        for (int k = 0; k < t.n; k++) {
            struct nk_field f = nk__field(i, k);
            /* What is missing in a body with nothing but this field. */
            char body[200];

            for (int j = 0; j < k; j++)
                if (!strcmp(nk__field(i, j).name, f.name))
                    fail_msg("%s has %s twice", t.title, f.name);
            if (!find_api(t.title, &api) || f.use == NK_FIELD_YES)
                continue;
            snprintf(body, sizeof body, "{\"%s\":[[7]],\"model\":5}", f.name);
            assert_int_not_equal(parse(api, body), 0);
            if (f.use == NK_FIELD_IGNORED) {
                assert_string_equal(e.param, "model");
            } else {
                assert_string_equal(e.err.reason, strcmp(f.name, "thread")
                                                      ? "refused_field"
                                                      : "thread_unsupported_request");
                assert_string_equal(e.param, f.name);
            }
            assert_int_not_equal(parse_by(&strict_limits, api, body), 0);
            if (f.use == NK_FIELD_IGNORED)
                assert_string_equal(e.err.reason, "refused_field");
            assert_string_equal(e.param, f.name);
            snprintf(body, sizeof body, "{\"%s\":null,\"model\":5}", f.name);
            assert_int_not_equal(parse_by(&strict_limits, api, body), 0);
            assert_string_equal(e.param, "model");
        }
    }
}

static void takes(enum nk_api api, const char *body, const char *ignored)
{
    if (parse(api, body))
        fail_msg("%s\n  gives %s, param '%s'", body, e.err.msg, e.param);
    if (strcmp(r.ignored, ignored))
        fail_msg("%s\n  ignores '%s'; wanted '%s'", body, r.ignored, ignored);
}

static void test_request__hints_and_labels_are_taken_and_named(void **state)
{
    (void)state;
    takes(NK_API_CHAT, "{" CHAT "}", "");
    takes(NK_API_CHAT, "{" CHAT ",\"store\":true,\"metadata\":{\"a\":\"b\"},\"made_up\":7}",
          "store,metadata,made_up");
    takes(NK_API_CHAT, "{" CHAT ",\"store\":false,\"metadata\":{},\"id_slot\":-1,\"n_keep\":0}",
          "");
    takes(NK_API_CHAT, "{" CHAT ",\"id_slot\":0,\"service_tier\":\"flex\"}",
          "id_slot,service_tier");
    takes(NK_API_CHAT, "{" CHAT ",\"stream_options\":{\"x_y\":1}}", "stream_options.x_y");
    takes(NK_API_OLLAMA_CHAT, "{\"options\":{\"num_gpu\":99,\"sorcery\":1}}",
          "options.num_gpu,options.sorcery");
    takes(NK_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"mood\":1}]}", "");
    /* Its names are strangers' and go into a header. */
    takes(NK_API_CHAT, "{" CHAT ",\"a\\r\\nSet-Cookie: b\":1,\"\xc3\xa9\":1}",
          "a??Set-Cookie:?b,\?\?");
    takes(NK_API_CHAT, "{" CHAT ",\",x\":1,\"y,,z\":1}", "?x,y?\?z");
    takes(NK_API_CHAT,
          "{" CHAT
          ",\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\":1}",
          "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
}

/* Whoever sends another dialect's field expects what it does there. */
static void
test_request__fields_of_chats_have_an_effect_in_other_dialects_or_are_refused(void **state)
{
#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
    static const char *const refused[] = { "\"response_format\":{\"type\":\"json_object\"}",
                                           "\"max_completion_tokens\":1", "\"n_predict\":1",
                                           "\"enable_thinking\":false", "\"n\":2" };
    static const struct {
        enum nk_api api;
        const char *body;
    } apis[] = { { NK_API_MESSAGES, MESSAGES ",\"max_tokens\":9" },
                 { NK_API_RESPONSES, "\"input\":\"x\"" } };
    char body[300], name[60];

    (void)state;
    for (size_t a = 0; a < 2; a++) {
        for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
            snprintf(body, sizeof body, "{%s,%s}", apis[a].body, refused[i]);
            snprintf(name, sizeof name, "%.*s", (int)strcspn(refused[i] + 1, "\""), refused[i] + 1);
            assert_int_not_equal(parse(apis[a].api, body), 0);
            assert_string_equal(e.err.reason, "unknown_field");
            assert_string_equal(e.param, name);
        }
        snprintf(body, sizeof body,
                 "{%s,\"presence_penalty\":0.5,\"cache_salt\":\"s\",\"logit_bias\":{\"5\":1},"
                 "\"xtc_probability\":0.5,\"n\":1,\"logprobs\":false}",
                 apis[a].body);
        takes(apis[a].api, body, "n,logprobs");
        assert_true(r.sampling.presence_penalty == 0.5f && r.sampling.xtc_probability == 0.5f);
        assert_string_equal(r.cache_salt, "s");
        assert_int_equal(r.sampling.n_logit_bias, 1);
    }
    /* A prompt is not sampled from, but what it looks like depends on these. */
    takes(NK_API_APPLY_TEMPLATE, "{" MESSAGES ",\"enable_thinking\":false,\"temperature\":1}",
          "temperature");
    assert_int_equal(r.think, NK_THINK_OFF);
#undef MESSAGES
}

static void test_request__a_misspelt_field_is_refused_with_the_nearest_name(void **state)
{
    static const char *const spellings[][2] = {
        { "temprature", "temperature" },
        { "temperatur", "temperature" },
        { "max_tokes", "max_tokens" },
        { "MaxTokens", "max_tokens" },
        { "top-p", "top_p" },
        { "frequency_penality", "frequency_penalty" },
        { "respone_format", "response_format" },
        { "web_search_option", "web_search_options" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        char body[200];

        snprintf(body, sizeof body, "{" CHAT ",\"%s\":1}", spellings[i][0]);
        assert_int_not_equal(parse(NK_API_CHAT, body), 0);
        assert_string_equal(e.err.reason, "unknown_field");
        assert_string_equal(e.param, spellings[i][0]);
        if (!strstr(e.err.msg, spellings[i][1]))
            fail_msg("%s: %s", spellings[i][0], e.err.msg);
    }
    takes(NK_API_CHAT, "{" CHAT ",\"metadat\":1}", "metadat"); /* of a hint: no harm */
}

static void test_request__strict_refuses_what_has_no_effect(void **state)
{
    static const struct bad bads[] = {
        { NK_API_CHAT, "{" CHAT ",\"store\":true}", "refused_field", "store" },
        { NK_API_CHAT, "{" CHAT ",\"made_up\":1}", "unknown_field", "made_up" },
        { NK_API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"mood\":1}]}",
          "unknown_field", "messages[0].mood" },
        { NK_API_CHAT,
          "{" CHAT ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"},\"x\":1}]}",
          "unknown_field", "tools[0].x" },
        { NK_API_OLLAMA_CHAT, "{\"options\":{\"num_gpu\":1}}", "refused_field", "options.num_gpu" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++) {
        assert_int_not_equal(parse_by(&strict_limits, bads[i].api, bads[i].body), 0);
        assert_string_equal(e.err.reason, bads[i].reason);
        assert_string_equal(e.param, bads[i].param);
    }
    assert_int_equal(parse_by(&strict_limits, NK_API_CHAT, "{" CHAT ",\"store\":false}"), 0);
}

/* As other servers have the same thing. */
static void test_request__other_names_and_spellings_of_values_are_read(void **state)
{
    (void)state;
    takes(NK_API_CHAT, "{" CHAT ",\"max_tokens\":16.0,\"seed\":3.0,\"top_k\":-1,\"stop\":\"\"}",
          "");
    assert_int_equal(r.n_predict, 16);
    assert_int_equal(r.sampling.seed, 3);
    assert_int_equal(r.sampling.top_k, 0);
    assert_int_equal(r.n_stop, 0);
    takes(NK_API_CHAT, "{" CHAT ",\"n_predict\":5,\"repetition_penalty\":1.5}", "");
    assert_int_equal(r.n_predict, 5);
    assert_true(r.sampling.repeat_penalty == 1.5f);
    takes(NK_API_CHAT, "{" CHAT ",\"logit_bias\":[[5,false],[\"6\",1.5]]}", "");
    assert_int_equal(r.sampling.n_logit_bias, 2);
    assert_true(r.sampling.logit_bias[0].bias == -INFINITY && r.sampling.logit_bias[1].id == 6);
    takes(NK_API_CHAT,
          "{" CHAT ",\"response_format\":{\"type\":\"json_object\",\"schema\":{\"const\":1}}}", "");
    assert_int_equal(r.format, NK_FORMAT_SCHEMA);
    takes(NK_API_CHAT, "{" CHAT ",\"guided_json\":{\"const\":1}}", "");
    assert_int_equal(r.format, NK_FORMAT_SCHEMA);
    takes(NK_API_OLLAMA_CHAT,
          "{\"tool_choice\":\"required\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
          "\"w\"}}],\"truncate\":true,\"template\":\"\"}",
          "");
    assert_int_equal(r.tool_choice, NK_TOOLS_REQUIRED);
    assert_null(r.model);
}

static void test_request__a_prompt_is_ids_and_texts_in_turn(void **state)
{
    (void)state;
    takes(NK_API_LLAMA_COMPLETION, "{\"prompt\":[1,\"a\",2]}", "");
    assert_int_equal(r.n_prompts, 1);
    assert_int_equal(json_array_size(r.prompts[0].mixed), 3);
    assert_true(!r.prompts[0].text && !r.prompts[0].ids);
    takes(NK_API_LLAMA_COMPLETION, "{\"prompt\":[\"a\",2]}", "");
    assert_int_equal(r.n_prompts, 1);
    assert_non_null(r.prompts[0].mixed);
    takes(NK_API_LLAMA_COMPLETION, "{\"prompt\":[[1,2],\"a\",[\"b\",3]]}", "");
    assert_int_equal(r.n_prompts, 3);
    assert_int_equal(r.prompts[0].n_ids, 2);
    assert_string_equal(r.prompts[1].text, "a");
    assert_int_equal(json_array_size(r.prompts[2].mixed), 2);
    takes(NK_API_LLAMA_COMPLETION, "{\"prompt\":[\"a\",\"b\"]}", "");
    assert_int_equal(r.n_prompts, 2);
}

static void test_request__a_bias_is_of_an_id_or_a_text(void **state)
{
    (void)state;
    takes(NK_API_CHAT, "{" CHAT ",\"logit_bias\":{\"5\":1,\" a word\":-100}}", "");
    assert_int_equal(r.sampling.n_logit_bias, 1);
    assert_int_equal(r.n_text_bias, 1);
    assert_string_equal(r.text_bias[0].text, " a word");
    assert_true(r.text_bias[0].size == 7 && r.text_bias[0].bias == -INFINITY);
    takes(NK_API_CHAT, "{" CHAT ",\"logit_bias\":[[\"x\",2],[5,false]]}", "");
    assert_true(r.n_text_bias == 1 && r.text_bias[0].bias == 2);
    assert_int_equal(r.sampling.n_logit_bias, 1);
}

/* The lines of parts are a message's; what is continued is one text. */
static void test_request__the_parts_of_what_is_continued_are_one_text(void **state)
{
#define PARTS "[{\"type\":\"text\",\"text\":\"Wh\"},{\"type\":\"text\",\"text\":\"at\"}]"
    (void)state;
    takes(NK_API_CHAT,
          "{\"messages\":[{\"role\":\"user\",\"content\":" PARTS "},{\"role\":\"assistant\","
          "\"content\":" PARTS "}]}",
          "");
    assert_string_equal(json_string_value(json_object_get(r.prefill, "content")), "What");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(r.messages, 0), "content")), "Wh\nat");
#undef PARTS
}

/* Those that take no part are switched off, whatever they are told. */
static void test_request__samplers_are_chosen_in_the_order_there_is(void **state)
{
    static const struct bad bads[] = {
        { NK_API_CHAT, "{" CHAT ",\"samplers\":[\"top_p\",\"top_k\"]}", "refused_field",
          "samplers" },
        { NK_API_CHAT, "{" CHAT ",\"samplers\":[\"top_a\"]}", "bad_value", "samplers" },
        { NK_API_CHAT, "{" CHAT ",\"samplers\":\"kfypmt\"}", "bad_value", "samplers" },
        { NK_API_CHAT, "{" CHAT ",\"dry_sequence_breakers\":[\"x\"]}", "refused_field",
          "dry_sequence_breakers" },
    };

    (void)state;
    takes(NK_API_CHAT,
          "{" CHAT ",\"samplers\":[\"top_k\",\"min_p\"],\"top_p\":0.5,\"repeat_penalty\":2,"
          "\"xtc_probability\":0.5,\"temperature\":0.1,\"dynatemp_range\":1,"
          "\"dry_sequence_breakers\":[\"\\n\",\":\",\"\\\"\",\"*\"]}",
          "");
    assert_true(r.sampling.top_k == 40 && r.sampling.min_p == 0.05f);
    assert_true(r.sampling.top_p == 1 && r.sampling.repeat_penalty == 1 &&
                r.sampling.xtc_probability == 0 && r.sampling.temperature == 1 &&
                r.sampling.dynatemp_range == 0);
    takes(NK_API_CHAT, "{" CHAT ",\"xtc_probability\":0.5,\"top_n_sigma\":-1}", "");
    assert_true(r.sampling.xtc_probability == 0.5f && r.sampling.top_n_sigma == 0);
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        refuses(&bads[i]);
}

static void test_request__thinking_is_asked_for_in_many_ways(void **state)
{
    static const struct {
        const char *field;
        enum nk_think think;
        const char *effort;
    } ways[] = {
        { "\"reasoning_effort\":\"none\"", NK_THINK_OFF, "none" },
        { "\"reasoning\":{\"effort\":\"low\"}", NK_THINK_ON, "low" },
        { "\"reasoning\":{\"enabled\":false}", NK_THINK_OFF, NULL },
        { "\"thinking\":{\"type\":\"disabled\"}", NK_THINK_OFF, NULL },
        { "\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":100}", NK_THINK_ON, NULL },
        { "\"enable_thinking\":false", NK_THINK_OFF, NULL },
        { "\"think\":\"high\"", NK_THINK_ON, "high" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        char body[200];

        snprintf(body, sizeof body, "{" CHAT ",%s}", ways[i].field);
        takes(NK_API_CHAT, body, "");
        assert_int_equal(r.think, ways[i].think);
        assert_string_equal(r.reasoning_effort ? r.reasoning_effort : "",
                            ways[i].effort ? ways[i].effort : "");
    }
}

/* A client whose history is refused can never go on. */
static void test_request__histories_come_back_as_clients_keep_them(void **state)
{
    static const struct {
        const char *messages, *wanted; /* as they are read, compact */
    } histories[] = {
        { "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"cache_control\":{}}]"
          "}",
          "[{\"role\":\"user\",\"content\":\"a\"}]" },
        { "{\"role\":\"assistant\",\"content\":null,\"reasoning\":\"b\",\"refusal\":null}",
          "[{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"b\"}]" },
        { "{\"role\":\"assistant\",\"content\":null,\"refusal\":\"no\",\"annotations\":[1]}",
          "[{\"role\":\"assistant\",\"content\":\"no\"}]" },
        { "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":null,\"index\":0,\"function\":{\"name\":"
          "\"w\",\"arguments\":{\"x\":1}}}]},{\"role\":\"tool\",\"tool_call_id\":null,"
          "\"content\":\"c\"}",
          "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"type\":\"function\","
          "\"function\":{\"name\":\"w\",\"arguments\":\"{\\\"x\\\":1}\"}}]},"
          "{\"role\":\"tool\",\"content\":\"c\"}]" },
        { "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\","
          "\"function\":"
          "{\"name\":\"w\",\"arguments\":\"{\\\"x\\\": 1}\"}}]},"
          "{\"role\":\"tool\",\"content\":\"c\"}",
          "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"1\",\"type\":"
          "\"function\",\"function\":{\"name\":\"w\",\"arguments\":\"{\\\"x\\\": 1}\"}}]},"
          "{\"role\":\"tool\",\"content\":\"c\",\"tool_call_id\":\"1\"}]" },
        { "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"w\","
          "\"arguments\":\"{\\\"x\\\": \\\"Ro\"}}]}",
          "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"1\",\"type\":"
          "\"function\",\"function\":{\"name\":\"w\",\"arguments\":"
          "\"{\\\"not_json\\\":\\\"{\\\\\\\"x\\\\\\\": \\\\\\\"Ro\\\"}\"}}]}]" },
        { "{\"role\":\"assistant\",\"content\":null,\"function_call\":{\"name\":\"w\","
          "\"arguments\":\"\"}},{\"role\":\"function\",\"name\":\"w\",\"content\":\"c\"}",
          "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"type\":\"function\","
          "\"function\":{\"name\":\"w\",\"arguments\":\"{}\"}}]},"
          "{\"role\":\"tool\",\"content\":\"c\",\"name\":\"w\"}]" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof histories / sizeof histories[0]; i++) {
        char body[1000], *text;

        snprintf(body, sizeof body, "{\"messages\":[%s]}", histories[i].messages);
        takes(NK_API_CHAT, body, "");
        text = json_dumps(r.messages, JSON_COMPACT);
        assert_string_equal(text, histories[i].wanted);
        free(text);
    }
    takes(
        NK_API_OLLAMA_CHAT,
        "{\"messages\":[{\"role\":\"assistant\",\"reasoning\":\"b\",\"tool_calls\":[{\"function\":"
        "{\"name\":\"w\",\"arguments\":\"{\\\"x\\\":1}\"}}]},{\"role\":\"tool\"}]}",
        "");
}

/* An assistant's message at the end is the beginning of the reply, unless the request says so. */
static void test_request__a_last_message_of_the_assistant_is_continued(void **state)
{
#define TRAILING                                                                                   \
    "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":"    \
    "\"And\"}]"
    static const struct {
        const char *body;
        bool continues, begins;
    } cases[] = {
        { "{" TRAILING "}", true, true },
        { "{" TRAILING ",\"continue_final_message\":true}", true, true },
        { "{" TRAILING ",\"continue_final_message\":true,\"add_generation_prompt\":false}", true,
          true },
        { "{" TRAILING ",\"continue_final_message\":false}", false, true },
        { "{" TRAILING ",\"add_generation_prompt\":true}", false, true },
        { "{" TRAILING ",\"add_generation_prompt\":false}", false, false },
        { "{" CHAT "}", false, true },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
          "\"tool_calls\":[{\"function\":{\"name\":\"w\"}}]}]}",
          false, true },
    };
    static const struct bad bads[] = {
        { NK_API_CHAT, "{" CHAT ",\"continue_final_message\":true}", "bad_value",
          "continue_final_message" },
        { NK_API_CHAT,
          "{" TRAILING ",\"continue_final_message\":true,\"add_generation_prompt\":true}",
          "bad_value", "continue_final_message" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        takes(NK_API_CHAT, cases[i].body, "");
        if ((r.prefill != NULL) != cases[i].continues || r.begins_no_reply == cases[i].begins)
            fail_msg("%s", cases[i].body);
        if (r.prefill)
            assert_int_equal(json_array_size(r.messages), 1);
    }
    takes(NK_API_OLLAMA_CHAT, "{" TRAILING "}", "");
    assert_non_null(r.prefill);
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        refuses(&bads[i]);
#undef TRAILING
}

static void test_request__tools_come_with_marks_twice_and_under_long_names(void **state)
{
    char *text;

    (void)state;
    takes(NK_API_CHAT,
          "{" CHAT ",\"tools\":[{\"type\":\"function\",\"cache_control\":{\"type\":\"ephemeral\"},"
          "\"function\":{\"name\":\"srv:tool/x\",\"returns\":{}}},"
          "{\"type\":\"function\",\"function\":{\"name\":\"srv:tool/x\",\"returns\":{}}}]}",
          "");
    text = json_dumps(r.tools, JSON_COMPACT);
    assert_string_equal(text, "[{\"type\":\"function\",\"function\":{\"name\":\"srv:tool/x\","
                              "\"returns\":{}}}]");
    free(text);
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

/* ---- large bodies: what they cost grows as they do, or they are refused ---- */

/* before, so often unit, after; units are parted by commas. Owned by the caller. */
static char *body_of(const char *before, const char *unit, int n, const char *after)
{
    size_t size = strlen(unit) + 1;
    char *text = malloc(strlen(before) + size * (size_t)n + strlen(after) + 1), *p;

    assert_non_null(text);
    p = stpcpy(text, before);
    for (int i = 0; i < n; i++)
        p += sprintf(p, "%s%s", i ? "," : "", unit);
    strcpy(p, after);
    return text;
}

static size_t n_allocated;

static void *count(size_t size)
{
    n_allocated += size;
    return malloc(size);
}

/* Jansson's bytes are the oracle: joined one by one, all before are copied for each. */
static void test_request__messages_that_are_joined_are_copied_once(void **state)
{
    enum { N = 20000 };
    static const struct {
        enum nk_api api;
        const char *before;
    } cases[] = { { NK_API_MESSAGES, "{\"model\":\"m\",\"max_tokens\":9,\"messages\":[" },
                  { NK_API_RESPONSES, "{\"model\":\"m\",\"input\":[" } };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *body =
            body_of(cases[i].before, "{\"role\":\"user\",\"content\":\"abcdefghij\"}", N, "]}");

        n_allocated = 0;
        json_set_alloc_funcs(count, free);
        assert_int_equal(parse(cases[i].api, body), 0);
        json_set_alloc_funcs(malloc, free);
        assert_int_equal(json_array_size(r.messages), 1);
        assert_int_equal(
            json_string_length(json_object_get(json_array_get(r.messages, 0), "content")),
            N * 11 - 1);
        if (n_allocated > 100 * strlen(body))
            fail_msg("%zu bytes of memory for a body of %zu", n_allocated, strlen(body));
        free(body);
    }
}

static void test_request__what_is_compared_with_all_others_has_a_ceiling(void **state)
{
    static const struct {
        enum nk_api api;
        const char *before, *unit, *after, *param;
        int n_max;
    } cases[] = {
        { NK_API_MESSAGES,
          "{\"model\":\"m\",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
          "\"tools\":[",
          "{\"name\":\"f\",\"input_schema\":{}}", "]}", "tools", NK_TOOLS_MAX },
        { NK_API_RESPONSES, "{\"model\":\"m\",\"input\":\"hi\",\"tools\":[",
          "{\"type\":\"function\",\"name\":\"f\",\"parameters\":{}}", "]}", "tools", NK_TOOLS_MAX },
        { NK_API_RESPONSES,
          "{\"model\":\"m\",\"input\":\"hi\",\"tools\":[{\"type\":\"function\",\"name\":\"f\","
          "\"parameters\":{}}],\"tool_choice\":{\"type\":\"allowed_tools\",\"mode\":\"auto\","
          "\"tools\":[",
          "{\"type\":\"function\",\"name\":\"g\"}", "]}}", "tool_choice", NK_TOOLS_MAX },
    };
    char *body, *p;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int more = 0; more < 2; more++) {
            body = body_of(cases[i].before, cases[i].unit, cases[i].n_max + more, cases[i].after);
            assert_int_equal(parse(cases[i].api, body), more ? NK_E_INVALID : 0);
            if (more)
                assert_string_equal(e.err.reason, "too_many");
            if (more)
                assert_string_equal(e.param, cases[i].param);
            free(body);
        }
    /* A name that nobody knows is compared with all that are known, letter by letter. */
    for (int n = 256; n < 258; n++) {
        body = malloc(8192);
        p = stpcpy(body, "{" CHAT);
        for (int i = 0; i < n; i++)
            p += sprintf(p, ",\"zq%d\":1", i);
        strcpy(p, "}");
        assert_int_equal(parse(NK_API_CHAT, body), n > 256 ? NK_E_INVALID : 0);
        if (n > 256)
            assert_string_equal(e.err.reason, "too_many");
        free(body);
    }
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
    assert_int_equal(r.n_prompts, 0);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.sampling.logit_bias[0].id, 5);
    takes(NK_API_COMPLETION, "{\"prompt\":[\"a\",\"bc\"],\"echo\":true}", "");
    assert_int_equal(nk__request_shrink(&r, NULL), 0);
    assert_string_equal(r.prompts[1].text, "bc"); /* it is to come again */
}

/* What the operator wants of requests that do not say it themselves. */
static void test_request__defaults_are_for_what_is_not_said(void **state)
{
    static const struct {
        enum nk_api api;
        const char *body;
        uint32_t seed;
        float temperature;
        int n_predict;
    } all[] = {
        { NK_API_COMPLETION, "{\"prompt\":\"a\"}", 42, 0.5f, 7 },
        { NK_API_COMPLETION, "{\"prompt\":\"a\",\"seed\":3,\"max_tokens\":9}", 3, 0.5f, 9 },
        { NK_API_COMPLETION, "{\"prompt\":\"a\",\"seed\":null,\"max_tokens\":900}", 42, 0.5f, 64 },
        { NK_API_CHAT,
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"temperature\":1,"
          "\"max_completion_tokens\":8}",
          42, 1, 8 },
        { NK_API_LLAMA_COMPLETION, "{\"prompt\":\"a\",\"n_predict\":-1}", 42, 0.5f, 64 },
        { NK_API_OLLAMA_GENERATE, "{\"prompt\":\"a\"}", 42, 0.5f, 7 },
        { NK_API_OLLAMA_GENERATE, "{\"prompt\":\"a\",\"options\":{\"seed\":3}}", 3, 0.5f, 7 },
        { NK_API_OLLAMA_GENERATE, "{\"prompt\":\"a\",\"options\":{\"num_predict\":-2}}", 42, 0.5f,
          64 },
        { NK_API_OLLAMA_GENERATE,
          "{\"prompt\":\"a\",\"temperature\":0,\"max_output_tokens\":9,\"options\":{}}", 42, 0, 9 },
        { NK_API_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", 42, 0.5f, 7 },
        { NK_API_RESPONSES, "{\"input\":\"a\"}", 42, 0.5f, 7 },
        { NK_API_RESPONSES, "{\"input\":\"a\",\"max_output_tokens\":9}", 42, 0.5f, 9 },
    };
    static const char *const wrong[][2] = {
        { "[1]", "JSON object" },
        { "{", "JSON object" },
        { "{\"prompt\":\"a\"}", "prompt" },
        { "{\"temprature\":1}", "temprature" },
        { "{\"seed\":\"x\"}", "seed" },
        /* Right for /completion alone: the others would be refused for ever. */
        { "{\"n_predict\":0}", "/v1/chat/completions" },
        { "{\"top_k\":-1}", "/v1/messages" },
        { "{\"grammar\":\"root ::= [a]\",\"json_schema\":{}}", "grammar" },
    };
    struct nk_request_limits ours = { .messages_max = 9, .n_max = 9, .n_predict_max = 64 };
    struct nk_error err;
    json_t *defaults;

    (void)state;
    assert_int_equal(
        nk__defaults_read(&defaults, "{\"seed\":42,\"temperature\":0.5,\"n_predict\":7}", &err), 0);
    ours.defaults = defaults;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (nk__request_parse(&r, all[i].api, all[i].body, strlen(all[i].body), &ours, &e))
            fail_msg("%s: %s", all[i].body, e.err.msg);
        assert_int_equal(r.sampling.seed, all[i].seed);
        assert_true(r.sampling.temperature == all[i].temperature);
        assert_int_equal(r.n_predict, all[i].n_predict);
        nk__request_release(&r);
    }
    json_decref(defaults);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(nk__defaults_read(&defaults, wrong[i][0], &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_defaults");
        if (!strstr(err.msg, wrong[i][1]))
            fail_msg("%s: %s", wrong[i][0], err.msg);
        assert_null(defaults);
    }
}

static const char *grammar_of(enum nk_api api, const char *body, const json_t *defaults)
{
    const struct nk_request_limits ours = { .messages_max = 9, .n_max = 9, .defaults = defaults };
    static char text[80];

    if (nk__request_parse(&r, api, body, strlen(body), &ours, &e))
        fail_msg("%s: %s", body, e.err.msg);
    snprintf(text, sizeof text, "%s", r.sampling.grammar ? r.sampling.grammar : "");
    nk__request_release(&r);
    return text;
}

/* A constraint of its own that a request has, whatever its name, or a tool that it may call. */
static void test_request__a_default_grammar_gives_way_to_what_is_asked_for(void **state)
{
#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"
#define TOOLS "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
    static const struct {
        enum nk_api api;
        const char *body;
        bool is_default;
    } all[] = {
        { NK_API_COMPLETION, "{\"prompt\":\"a\"}", true },
        { NK_API_COMPLETION, "{\"prompt\":\"a\",\"grammar\":\"\"}", false },
        { NK_API_LLAMA_COMPLETION, "{\"prompt\":\"a\",\"json_schema\":{}}", false },
        { NK_API_CHAT, HELLO "}", true },
        { NK_API_CHAT, HELLO ",\"response_format\":{\"type\":\"text\"}}", true },
        { NK_API_CHAT, HELLO ",\"response_format\":{\"type\":\"json_object\"}}", false },
        { NK_API_CHAT, HELLO "," TOOLS "}", false },
        { NK_API_CHAT, HELLO "," TOOLS ",\"tool_choice\":\"none\"}", true },
        { NK_API_MESSAGES, HELLO ",\"tools\":[{\"name\":\"f\",\"input_schema\":{}}]}", false },
        { NK_API_RESPONSES, "{\"input\":\"a\",\"text\":{\"format\":{\"type\":\"json_object\"}}}",
          false },
        { NK_API_OLLAMA_CHAT, HELLO ",\"format\":\"json\"}", false },
    };
    struct nk_error err;
    json_t *defaults;

    (void)state;
    assert_int_equal(nk__defaults_read(&defaults, "{\"grammar\":\"root ::= [a]\"}", &err), 0);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if ((strcmp(grammar_of(all[i].api, all[i].body, defaults), "root ::= [a]") == 0) !=
            all[i].is_default)
            fail_msg("%s", all[i].body);
    json_decref(defaults);
}

/* 0 is one: nothing is generated. */
static void test_request__two_limits_that_differ_are_refused(void **state)
{
    (void)state;
    takes(NK_API_COMPLETION, "{\"prompt\":\"a\",\"max_tokens\":0,\"n_predict\":0}", "");
    assert_true(r.only_prompt);
    assert_int_equal(
        parse(NK_API_COMPLETION, "{\"prompt\":\"a\",\"max_tokens\":0,\"n_predict\":1}"),
        NK_E_INVALID);
    assert_non_null(strstr(e.err.msg, "says 0"));
    assert_int_equal(
        parse(NK_API_COMPLETION, "{\"prompt\":\"a\",\"max_tokens\":1,\"n_predict\":0}"),
        NK_E_INVALID);
    assert_non_null(strstr(e.err.msg, "says 1"));
}

/* What says nothing has the share of a session, which is the workers' to know. */
static void test_request__the_most_tokens_are_no_wish_for_so_many(void **state)
{
    static const struct nk_request_limits ours = { .messages_max = 9,
                                                   .n_max = 9,
                                                   .n_predict_max = 64 };
    static const char body[] = "{\"prompt\":\"a\"}";

    (void)state;
    assert_int_equal(nk__request_parse(&r, NK_API_COMPLETION, body, strlen(body), &ours, &e), 0);
    assert_int_equal(r.n_predict, 0);
    nk__request_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request__defaults_are_for_what_is_not_said),
        cmocka_unit_test(test_request__a_default_grammar_gives_way_to_what_is_asked_for),
        cmocka_unit_test(test_request__two_limits_that_differ_are_refused),
        cmocka_unit_test(test_request__the_most_tokens_are_no_wish_for_so_many),
        cmocka_unit_test(test_request__names_what_is_wrong),
        cmocka_unit_test(test_request__every_field_of_the_tables_does_what_its_word_says),
        cmocka_unit_test(test_request__hints_and_labels_are_taken_and_named),
        cmocka_unit_test(
            test_request__fields_of_chats_have_an_effect_in_other_dialects_or_are_refused),
        cmocka_unit_test(test_request__a_misspelt_field_is_refused_with_the_nearest_name),
        cmocka_unit_test(test_request__strict_refuses_what_has_no_effect),
        cmocka_unit_test(test_request__other_names_and_spellings_of_values_are_read),
        cmocka_unit_test(test_request__a_prompt_is_ids_and_texts_in_turn),
        cmocka_unit_test(test_request__a_bias_is_of_an_id_or_a_text),
        cmocka_unit_test(test_request__the_parts_of_what_is_continued_are_one_text),
        cmocka_unit_test(test_request__samplers_are_chosen_in_the_order_there_is),
        cmocka_unit_test(test_request__thinking_is_asked_for_in_many_ways),
        cmocka_unit_test(test_request__histories_come_back_as_clients_keep_them),
        cmocka_unit_test(test_request__a_last_message_of_the_assistant_is_continued),
        cmocka_unit_test(test_request__tools_come_with_marks_twice_and_under_long_names),
        cmocka_unit_test(test_request__chat_is_read),
        cmocka_unit_test(test_request__messages_come_in_one_shape),
        cmocka_unit_test(test_request__prompts_are_texts_or_ids),
        cmocka_unit_test(test_request__seeds_of_64_bits_fold_and_minus_one_is_random),
        cmocka_unit_test(test_request__ollama_options_and_defaults),
        cmocka_unit_test(test_request__shrunk_it_has_its_strings_and_no_json),
        cmocka_unit_test(test_request__too_deep_json_is_refused),
        cmocka_unit_test(test_request__messages_that_are_joined_are_copied_once),
        cmocka_unit_test(test_request__what_is_compared_with_all_others_has_a_ceiling),
    };

    return cmocka_run_group_tests(tests, NULL, teardown);
}
