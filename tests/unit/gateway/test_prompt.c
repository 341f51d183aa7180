#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/prompt.h"
#include "unit/gateway/learn.h"

static nk_vocab *vocab;

static const char without_tools[] =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";
static const char with_tools[] =
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call>{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson "
    "}}}"
    "</call>{% endfor %}{% endfor %}[assistant]"
    "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}{# </think> #}";

#define TOOLS                                                                                      \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":"     \
    "\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{\"type\":[\"string\","          \
    "\"null\"]},\"c\":{\"type\":\"integer\"}}}}}]"

static nk_prompter *open_prompter(const char *text, enum nk_gateway_tools tools,
                                  enum nk_gateway_reasoning reasoning)
{
    struct nk_error err = { 0 };
    nk_prompter *p;

    if (nk__prompter_new(&p,
                         &(struct nk_prompter_opts){ .clock = nk_clock_system(),
                                                     .vocab = vocab,
                                                     .chat_template = text,
                                                     .tools = tools,
                                                     .reasoning = reasoning },
                         &err))
        fail_msg("%s", err.msg);
    return p;
}

static struct nk_request parse_as(enum nk_api api, const char *body)
{
    const struct nk_request_limits limits = { .messages_max = 100, .n_max = 4 };
    struct nk_request_error e;
    struct nk_request r;

    if (nk__request_parse(&r, api, body, strlen(body), &limits, &e))
        fail_msg("%s", e.err.msg);
    return r;
}

static struct nk_request parse(const char *body)
{
    return parse_as(NK_API_CHAT, body);
}

/* The prompt; static. */
static const char *prompt_of(const nk_prompter *p, const char *body)
{
    static char text[8192];
    struct nk_buf out = NK_BUF_INIT(sizeof text - 1);
    struct nk_request r = parse(body);
    struct nk_request_error e;

    if (nk__prompt_render(p, &r, NULL, &out, &e))
        fail_msg("%s", e.err.msg);
    snprintf(text, sizeof text, "%s", nk_buf_str(&out));
    nk_buf_release(&out);
    nk__request_release(&r);
    return text;
}

static void test_prompt__tools_are_explained_where_the_template_knows_none(void **state)
{
    nk_prompter *p = open_prompter(without_tools, NK_GATEWAY_TOOLS_NATIVE, 0);
    struct nk_prepared prepared;
    struct nk_request_error e;
    struct nk_request r =
        parse("{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
              "\"tool_choice\":\"required\"," TOOLS "}");
    const char *text;

    (void)state;
    assert_true(nk__prompter_caps(p).tools);
    assert_true(nk__prompter_caps(p).generic_tools);
    assert_int_equal(nk__prepare(&prepared, p, &r, 4096, NULL, &e), 0);
    assert_true(prepared.generic_tools);
    assert_ptr_equal(prepared.output.tools, nk__tool_form_generic());
    assert_non_null(strstr(prepared.grammar, "<tool_call>"));
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(prepared.output.tool_types, "f"), "b")),
        "string?");
    assert_null(json_object_get(json_object_get(prepared.output.tool_types, "f"), "c"));
    nk__prepared_release(&prepared);
    nk__request_release(&r);
    /* A system's message keeps its text; what was called and answered is text, one turn each. */
    text = prompt_of(
        p, "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
           "{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"I look.\","
           "\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
           "\"arguments\":\"{\\\"a\\\":1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\","
           "\"content\":\"one\"},{\"role\":\"tool\",\"tool_call_id\":\"2\",\"content\":\"two\"}]"
           "," TOOLS "}");
    assert_memory_equal(text, "[system]Be brief.\n\nYou can call functions.", 41);
    assert_non_null(strstr(text, "<tools>\n{\"name\": \"f\", \"parameters\": {"));
    assert_non_null(strstr(text,
                           "[user]x[assistant]I look.\n<tool_call>\n{\"name\": \"f\", "
                           "\"arguments\": {\"a\":1}}\n</tool_call>[user]<tool_response>\none\n"
                           "</tool_response>\n<tool_response>\ntwo\n</tool_response>"
                           "[assistant]"));
    nk__prompter_free(p);
}

/* What stands bare is text where its schema says so, wherever it says it. */
static void test_prompt__types_of_arguments_are_found_behind_references(void **state)
{
    static const struct {
        const char *key, *type;
    } wants[] = { { "ref", "string" },  { "old", "string" },   { "all", "string" },
                  { "any", "string?" }, { "const", "string" }, { "loop", NULL },
                  { "gone", NULL },     { "mixed", NULL },     { "number", NULL } };
    nk_prompter *p = open_prompter(without_tools, NK_GATEWAY_TOOLS_NATIVE, 0);
    struct nk_prepared prepared;
    struct nk_request_error e;
    struct nk_request r =
        parse("{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
              "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{"
              "\"$defs\":{\"s\":{\"enum\":[\"a\",\"1\"]},\"n\":{\"type\":\"integer\"},"
              "\"l\":{\"anyOf\":[{\"$ref\":\"#/$defs/l\"},{\"$ref\":\"#/$defs/l\"}]}},"
              "\"definitions\":{\"s\":{\"type\":\"string\"}},\"properties\":{"
              "\"ref\":{\"$ref\":\"#/$defs/s\"},\"old\":{\"$ref\":\"#/definitions/s\"},"
              "\"all\":{\"allOf\":[{\"$ref\":\"#/$defs/s\"}],\"default\":\"a\"},"
              "\"any\":{\"anyOf\":[{\"$ref\":\"#/$defs/s\"},{\"type\":\"null\"}]},"
              "\"const\":{\"const\":\"1\"},\"loop\":{\"$ref\":\"#/$defs/l\"},"
              "\"gone\":{\"$ref\":\"#/$defs/none\"},"
              "\"mixed\":{\"anyOf\":[{\"$ref\":\"#/$defs/s\"},{\"$ref\":\"#/$defs/n\"}]},"
              "\"number\":{\"$ref\":\"#/$defs/n\"}}}}}]}");

    (void)state;
    assert_int_equal(nk__prepare(&prepared, p, &r, 4096, NULL, &e), 0);
    for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
        const char *type = json_string_value(
            json_object_get(json_object_get(prepared.output.tool_types, "f"), wants[i].key));

        if (wants[i].type ? !type || strcmp(type, wants[i].type) : type != NULL)
            fail_msg("%s: %s", wants[i].key, type ? type : "nothing");
    }
    nk__prepared_release(&prepared);
    nk__request_release(&r);
    nk__prompter_free(p);
}

/* So many arguments, each of which may be any of so many words. */
static char *tool_body(int n_arguments, int n_words)
{
    char *body = malloc((size_t)(n_arguments + n_words) * 40 + 400), *at = body;

    assert_non_null(body);
    at =
        stpcpy(at, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
                   "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{"
                   "\"$defs\":{\"w\":{\"enum\":[");
    for (int i = 0; i < n_words; i++)
        at += sprintf(at, "%s\"a\"", i ? "," : "");
    at = stpcpy(at, "]}},\"properties\":{");
    for (int i = 0; i < n_arguments; i++)
        at += sprintf(at, "%s\"p%d\":{\"$ref\":\"#/$defs/w\"}", i ? "," : "", i);
    strcpy(at, "}}}}]}");
    return body;
}

static void test_prompt__arguments_that_name_one_long_list_are_counted(void **state)
{
    nk_prompter *p = open_prompter(without_tools, NK_GATEWAY_TOOLS_NATIVE, 0);
    struct nk_prepared prepared;
    struct nk_request_error e;

    (void)state;
    for (int k = 0; k < 2; k++) {
        char *body = tool_body(k ? 5000 : 50, k ? 5000 : 50);
        struct nk_work work = NK_WORK_INIT(NULL);
        struct nk_request r = parse(body);
        int rc = nk__prepare(&prepared, p, &r, 1 << 22, &work, &e);

        assert_int_equal(rc, k ? NK_E_INVALID : 0);
        if (k) {
            assert_string_equal(e.err.reason, "too_much_work");
            assert_string_equal(e.param, "tools");
        }
        nk__prepared_release(&prepared);
        nk__request_release(&r);
        free(body);
    }
    nk__prompter_free(p);
}

static void test_prompt__a_switch_without_marks_can_think(void **state)
{
    nk_prompter *p = open_prompter("{{ messages[0].content }}{% if enable_thinking %}!{% endif %}",
                                   NK_GATEWAY_TOOLS_NATIVE, 0);

    (void)state;
    assert_true(nk__prompter_caps(p).can_think);
    assert_false(nk__prompter_caps(p).thinking);
    nk__prompter_free(p);
    p = open_prompter("{{ messages[0].content }}", NK_GATEWAY_TOOLS_NATIVE, 0);
    assert_false(nk__prompter_caps(p).can_think);
    nk__prompter_free(p);
}

static void test_prompt__tools_are_the_templates_own_where_it_has_them_or_off(void **state)
{
    static const char body[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]," TOOLS "}";
    nk_prompter *p = open_prompter(with_tools, NK_GATEWAY_TOOLS_NATIVE, 0);
    struct nk_request r = parse(body);
    struct nk_request_error e;
    struct nk_prepared prepared;

    (void)state;
    assert_false(nk__prompter_caps(p).generic_tools);
    assert_int_equal(nk__prepare(&prepared, p, &r, 4096, NULL, &e), 0);
    assert_false(prepared.generic_tools);
    assert_string_equal(prepared.output.tools->call_open, "<call>");
    nk__prepared_release(&prepared);
    assert_non_null(strstr(prompt_of(p, body), "[tools]"));
    nk__prompter_free(p);
    p = open_prompter(with_tools, NK_GATEWAY_TOOLS_GENERIC, 0);
    assert_null(strstr(prompt_of(p, body), "[tools]"));
    assert_non_null(strstr(prompt_of(p, body), "<tools>"));
    nk__prompter_free(p);
    p = open_prompter(with_tools, NK_GATEWAY_TOOLS_OFF, 0);
    assert_false(nk__prompter_caps(p).tools);
    assert_int_equal(nk__prepare(&prepared, p, &r, 4096, NULL, &e), NK_E_INVALID);
    assert_string_equal(e.err.reason, "no_tools");
    assert_string_equal(e.param, "tools");
    nk__prompter_free(p);
    nk__request_release(&r);
}

static void test_prompt__ids_name_the_function_where_the_template_shows_nothing_else(void **state)
{
    static const char body[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":"
        "\"assistant\",\"tool_calls\":[{\"id\":\"call_1\",\"type\":\"function\",\"function\":"
        "{\"name\":\"f\",\"arguments\":\"{}\"}},{\"id\":\"call_2\",\"type\":\"function\","
        "\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\","
        "\"tool_call_id\":\"call_2\",\"content\":\"two\"}]," TOOLS "}";
    char *text = read_template("kimi-k2");
    nk_prompter *p = open_prompter(text, NK_GATEWAY_TOOLS_NATIVE, 0);
    const char *prompt = prompt_of(p, body);

    (void)state;
    assert_non_null(strstr(prompt,
                           "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}"
                           "<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_"
                           "begin|>{}<|tool_call_end|>"));
    assert_non_null(strstr(prompt, "functions.g:1<|im_middle|>two"));
    nk__prompter_free(p);
    free(text);
}

static void
test_prompt__thinking_is_the_requests_then_the_operators_then_the_templates(void **state)
{
#define ASK(more) "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" more "}"
    static const struct {
        enum nk_gateway_reasoning reasoning;
        const char *body, *end;
    } cases[] = {
        { NK_GATEWAY_REASONING_AUTO, ASK(""), "[assistant]" },
        { NK_GATEWAY_REASONING_ON, ASK(""), "[assistant][True]" },
        { NK_GATEWAY_REASONING_OFF, ASK(""), "[assistant][False]" },
        { NK_GATEWAY_REASONING_ON, ASK(",\"reasoning_effort\":\"none\""), "[assistant][False]" },
        { NK_GATEWAY_REASONING_OFF, ASK(",\"chat_template_kwargs\":{\"enable_thinking\":true}"),
          "[assistant][True]" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nk_prompter *p = open_prompter(with_tools, 0, cases[i].reasoning);
        const char *text = prompt_of(p, cases[i].body);

        assert_true(strlen(text) >= strlen(cases[i].end));
        assert_string_equal(text + strlen(text) - strlen(cases[i].end), cases[i].end);
        nk__prompter_free(p);
    }
#undef ASK
}

static void test_prompt__without_a_switch_an_empty_thought_turns_thinking_off(void **state)
{
#define TURN      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
#define SAY(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" more "}"
    static const char opens[] =
        TURN "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}{# </think> #}";
    static const char has_marks[] = TURN "[assistant]{# <think> </think> #}";
    static const struct {
        const char *template, *body, *prompt;
        enum nk_gateway_reasoning reasoning;
    } cases[] = {
        { opens, SAY(""), "[user]x[assistant]<think>\n", NK_GATEWAY_REASONING_AUTO },
        { opens, SAY(""), "[user]x[assistant]<think>\n</think>", NK_GATEWAY_REASONING_OFF },
        { opens, SAY(",\"enable_thinking\":false"), "[user]x[assistant]<think>\n</think>",
          NK_GATEWAY_REASONING_AUTO },
        { opens, SAY(",\"enable_thinking\":true"), "[user]x[assistant]<think>\n",
          NK_GATEWAY_REASONING_OFF },
        { opens, SAY(",\"enable_thinking\":false,\"add_generation_prompt\":false"), "[user]x",
          NK_GATEWAY_REASONING_AUTO },
        { has_marks, SAY(""), "[user]x[assistant]<think></think>", NK_GATEWAY_REASONING_OFF },
        { has_marks, SAY(""), "[user]x[assistant]", NK_GATEWAY_REASONING_ON },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nk_prompter *p = open_prompter(cases[i].template, 0, cases[i].reasoning);

        assert_string_equal(prompt_of(p, cases[i].body), cases[i].prompt);
        nk__prompter_free(p);
    }
#undef TURN
#undef SAY
}

static void append(int32_t *ids, size_t *n, const char *text, bool special)
{
    struct nk_tokens t;
    struct nk_error err = { 0 };

    if (nk_vocab_tokenize(vocab, text, strlen(text), special, true, 100, NULL, &t, &err))
        fail_msg("%s", err.msg);
    memcpy(ids + *n, t.ids, t.n * sizeof *ids);
    *n += t.n;
    free(t.ids);
}

static void test_prompt__ids_and_texts_in_turn_are_one_prompt(void **state)
{
    nk_prompter *p = open_prompter(without_tools, 0, 0);
    struct nk_request r = parse_as(
        NK_API_LLAMA_COMPLETION, "{\"prompt\":[[7,\"And it came\",8],[\"And it\",9,\"to pass\"]]}");
    struct nk_request_error e;
    struct nk_prepared got;
    int32_t want[2][64] = { { 7 } };
    size_t n[2] = { 1, 0 };

    (void)state;
    append(want[0], &n[0], "And it came", false); /* it does not begin the prompt */
    want[0][n[0]++] = 8;
    append(want[1], &n[1], "And it", true);
    want[1][n[1]++] = 9;
    append(want[1], &n[1], "to pass", false);
    assert_int_equal(nk__prepare(&got, p, &r, 512, NULL, &e), 0);
    assert_int_equal(got.n_prompts, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(got.prompts[i].n, n[i]);
        assert_memory_equal(got.prompts[i].ids, want[i], n[i] * sizeof want[i][0]);
    }
    nk__prepared_release(&got);
    assert_int_not_equal(nk__prepare(&got, p, &r, (int)n[1], NULL, &e), 0);
    assert_string_equal(e.err.reason, "context_length_exceeded");
    assert_int_equal(e.err.n_max, n[1]);
    nk__request_release(&r);
    r = parse_as(NK_API_LLAMA_COMPLETION, "{\"prompt\":[\"a\",2147483647]}");
    assert_int_not_equal(nk__prepare(&got, p, &r, 512, NULL, &e), 0);
    assert_string_equal(e.err.reason, "bad_value");
    assert_string_equal(e.param, "prompt");
    nk__request_release(&r);
    nk__prompter_free(p);
}

static void test_prompt__a_bias_of_a_text_is_that_of_its_tokens(void **state)
{
    nk_prompter *p = open_prompter(without_tools, 0, 0);
    struct nk_request r = parse_as(
        NK_API_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":[[5,1],[\" And it came\",-2]]}");
    struct nk_request_error e;
    struct nk_prepared got;
    int32_t ids[64];
    size_t n = 0;

    (void)state;
    append(ids, &n, " And it came", false);
    assert_int_equal(nk__prepare(&got, p, &r, 512, NULL, &e), 0);
    assert_int_equal(got.n_logit_bias, n + 1);
    assert_int_equal(got.logit_bias[0].id, 5);
    for (size_t i = 0; i < n; i++)
        assert_true(got.logit_bias[i + 1].id == ids[i] && got.logit_bias[i + 1].bias == -2);
    nk__prepared_release(&got);
    nk__request_release(&r);
    r = parse_as(NK_API_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":{\"2147483647\":1}}");
    assert_int_not_equal(nk__prepare(&got, p, &r, 512, NULL, &e), 0);
    assert_string_equal(e.err.reason, "bad_value");
    assert_string_equal(e.param, "logit_bias");
    nk__request_release(&r);
    nk__prompter_free(p);
}

/* A text whose tokens were not counted to the end is counted for the refusal. */
static void test_prompt__what_is_too_long_says_how_long_it_is(void **state)
{
    nk_prompter *p = open_prompter(without_tools, 0, 0);
    struct nk_request r =
        parse_as(NK_API_COMPLETION, "{\"prompt\":\"And it came to pass, that the LORD said: and "
                                    "it came to pass, that the LORD said\"}");
    struct nk_request_error e;
    struct nk_prepared got;
    int32_t ids[64];
    size_t n = 0;

    (void)state;
    append(ids, &n, r.prompts[0].text, true);
    for (int n_ctx = 2; n_ctx <= (int)n; n_ctx++) {
        assert_int_not_equal(nk__prepare(&got, p, &r, n_ctx, NULL, &e), 0);
        assert_string_equal(e.err.reason, "context_length_exceeded");
        assert_non_null(strstr(e.err.msg, "exceeds the available context size"));
        assert_int_equal(e.err.n_found, n);
        assert_int_equal(e.err.n_max, n_ctx);
    }
    nk__request_release(&r);
    nk__prompter_free(p);
}

static int open_vocab(void **state)
{
    struct nk_error err;
    char path[4096];

    (void)state;
    if (!getenv("NK_MODELS"))
        return -1;
    nk_vocab_global_init();
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", getenv("NK_MODELS"));
    return nk_vocab_open(&vocab, path, &err);
}

static int close_vocab(void **state)
{
    (void)state;
    nk_vocab_close(vocab);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt__tools_are_explained_where_the_template_knows_none),
        cmocka_unit_test(test_prompt__types_of_arguments_are_found_behind_references),
        cmocka_unit_test(test_prompt__arguments_that_name_one_long_list_are_counted),
        cmocka_unit_test(test_prompt__a_switch_without_marks_can_think),
        cmocka_unit_test(test_prompt__tools_are_the_templates_own_where_it_has_them_or_off),
        cmocka_unit_test(test_prompt__ids_name_the_function_where_the_template_shows_nothing_else),
        cmocka_unit_test(
            test_prompt__thinking_is_the_requests_then_the_operators_then_the_templates),
        cmocka_unit_test(test_prompt__without_a_switch_an_empty_thought_turns_thinking_off),
        cmocka_unit_test(test_prompt__ids_and_texts_in_turn_are_one_prompt),
        cmocka_unit_test(test_prompt__a_bias_of_a_text_is_that_of_its_tokens),
        cmocka_unit_test(test_prompt__what_is_too_long_says_how_long_it_is),
    };

    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
