#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/output.h"

/* Forms that are not learned here, so that this tests the parser alone (test_tool_form.c). */
#define DS_MARK(x) "<\xef\xbd\x9ctool\xe2\x96\x81" x "\xef\xbd\x9c>"
static const struct nk_tool_form hermes = { .body = NK_TOOL_JSON,
                                            .call_open = "<tool_call>\n",
                                            .call_close = "\n</tool_call>",
                                            .call_sep = "\n" };
static const struct nk_tool_form llama = { .body = NK_TOOL_JSON,
                                           .alt_open = "<|python_tag|>",
                                           .single = true };
static const struct nk_tool_form mistral = {
    .body = NK_TOOL_JSON, .section_open = "[TOOL_CALLS][", .call_sep = ", ", .section_close = "]"
};
static const struct nk_tool_form args = { .body = NK_TOOL_NAMED,
                                          .call_open = "[TOOL_CALLS]",
                                          .name_close = "[ARGS]" };
static const struct nk_tool_form harmony = { .body = NK_TOOL_NAMED,
                                             .call_open = "<|channel|>commentary to=functions.",
                                             .alt_open = "to=functions.",
                                             .name_close = " <|constrain|>json<|message|>",
                                             .call_close = "<|call|>" };
static const struct nk_tool_form deepseek = { .body = NK_TOOL_NAMED,
                                              .section_open = DS_MARK("calls\xe2\x96\x81"
                                                                      "begin"),
                                              .section_close = DS_MARK("calls\xe2\x96\x81"
                                                                       "end"),
                                              .call_open =
                                                  DS_MARK("call\xe2\x96\x81"
                                                          "begin") "function" DS_MARK("sep"),
                                              .name_close = "\n```json\n",
                                              .call_close = "\n```" DS_MARK("call\xe2\x96\x81"
                                                                            "end") };

/* Events as text: runs of one kind are joined, "R:..|C:..|T:name|A:...". */
struct trace {
    char text[4096];
    enum nk_output_kind last;
};

static int record(void *user, enum nk_output_kind kind, const char *text, size_t size,
                  struct nk_error *err)
{
    static const char letters[] = { [NK_OUTPUT_CONTENT] = 'C',
                                    [NK_OUTPUT_REASONING] = 'R',
                                    [NK_OUTPUT_TOOL] = 'T',
                                    [NK_OUTPUT_ARGUMENTS] = 'A' };
    struct trace *t = user;
    size_t n = strlen(t->text);

    (void)err;
    assert_true(size > 0);
    if (!n || t->last != kind || kind == NK_OUTPUT_TOOL)
        n +=
            (size_t)snprintf(t->text + n, sizeof t->text - n, "%s%c:", n ? "|" : "", letters[kind]);
    snprintf(t->text + n, sizeof t->text - n, "%.*s", (int)size, text);
    t->last = kind;
    return 0;
}

static const struct nk_think_marks think = { .open = "<think>", .close = "</think>" };
static const char *const own_tools[] = { "f", "get_weather" };
static const char *tools[3] = { "f", "get_weather" };
static int n_tools = 2;

static void expect_with(struct nk_think_marks marks, const struct nk_tool_form *form,
                        bool starts_thinking, const char *text, const char *want)
{
    size_t n = strlen(text);

    /* Whole, cut at every place, and byte by byte. */
    for (size_t cut = 0; cut <= n + 1; cut++) {
        struct trace t = { .text = "" };
        struct nk_output_opts opts = { .think = marks,
                                       .starts_thinking = starts_thinking,
                                       .tools = form,
                                       .tool_names = tools,
                                       .n_tool_names = n_tools,
                                       .sink = record,
                                       .user = &t };
        nk_output *o = nk__output_new(&opts);

        if (cut <= n) {
            assert_int_equal(nk__output_feed(o, text, cut, NULL), 0);
            assert_int_equal(nk__output_feed(o, text + cut, n - cut, NULL), 0);
        } else
            for (size_t i = 0; i < n; i++)
                assert_int_equal(nk__output_feed(o, text + i, 1, NULL), 0);
        assert_int_equal(nk__output_finish(o, NULL), 0);
        if (strcmp(t.text, want))
            fail_msg("%s cut at %zu\n  gives  %s\n  wanted %s", text, cut, t.text, want);
        nk__output_free(o);
    }
}

static void expect(const struct nk_tool_form *form, bool starts_thinking, const char *text,
                   const char *want)
{
    expect_with(think, form, starts_thinking, text, want);
}

static void test_output__channels_of_gpt_oss(void **state)
{
    struct nk_think_marks m = nk__think_marks_detect("x<|channel|>analysis<|message|>y");

    (void)state;
    expect_with(m, NULL, false,
                "<|channel|>analysis<|message|>We think.<|end|><|start|>assistant<|channel|>final<|"
                "message|>Hello <|x",
                "R:We think.|C:Hello <|x");
    expect_with(m, NULL, false, "<|channel|>final<|message|>Hello", "C:Hello");
    expect_with(m, NULL, false,
                "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|"
                "message|>b<|end|><|start|>assistant<|channel|>final<|message|>c",
                "R:ab|C:c");
    expect_with(m, NULL, false, "<|channel|>analysis<|message|>a<|end|> c", "R:a|C:c");
    expect_with(m, NULL, false, "<|channel|>analysis<|message|>a", "R:a");
    expect_with(m, NULL, false, "{\"a\":1}", "C:{\"a\":1}");
    /* Something is said before a call; the call's channel may stand after its name, too. */
    expect_with(m, &harmony, false,
                "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|"
                "message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
                "<|constrain|>json<|message|>{\"x\":1}<|call|>",
                "R:a|C:I look.|T:f|A:{\"x\":1}");
    expect_with(m, &harmony, false,
                "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.f<|channel|>"
                "commentary json<|message|>{}",
                "R:a|T:f|A:{}");
    assert_null(nk__think_marks_detect("<|user|>a<|end|>").open);
}

static void test_output__reasoning_comes_first_and_loses_its_marks(void **state)
{
    (void)state;
    expect(NULL, false, "hello", "C:hello");
    expect(NULL, false, "", "");
    expect(NULL, false, "  a \n", "C:  a \n");
    expect(NULL, false, "<think>\na < b </t\n</think>\n\nyes\n", "R:a < b </t|C:yes\n");
    expect(NULL, false, "<think>never closed", "R:never closed");
    expect(NULL, false, "<think></think>x", "C:x");
    expect(NULL, false, "<thinking>", "C:<thinking>");
    expect(NULL, false, "say <think>x</think>", "C:say <think>x</think>");
    expect(NULL, true, "deep\n</think>\nx </think>", "R:deep|C:x </think>");
    expect(NULL, false, "<thi", "C:<thi");
}

static void test_output__hermes_calls(void **state)
{
    (void)state;
    expect(&hermes, false,
           "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}\\\"\", \"y\": [1, "
           "{}]}}\n</tool_call>",
           "T:f|A:{\"x\": \"}\\\"\", \"y\": [1, {}]}");
    expect(&hermes, false,
           "I "
           "look.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</"
           "tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{\"a\":1}}</tool_call>\nso",
           "C:I look.|T:f|A:{}|T:g|A:{\"a\":1}|C:so");
    expect(&hermes, false,
           "<think>hm</think>\n<tool_call>{\"arguments\":{\"a\":1},\"name\":\"f\"}</tool_call>",
           "R:hm|T:f|A:{\"a\":1}");
    expect(&hermes, false, "<tool_call>{\"name\":\"f\"}</tool_call>", "T:f|A:{}");
    expect(&hermes, false,
           "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>",
           "T:f|A:{\"a\":1}");
    expect(&hermes, false,
           "<tool_call>{\"name\":\"f\",\"id\":12,\"arguments\":{\"a\":1},\"x\":null }</tool_call>",
           "T:f|A:{\"a\":1}");
}

static void test_output__what_is_no_call_is_content(void **state)
{
    (void)state;
    expect(&hermes, false, "<tool_call>nothing</tool_call>", "C:<tool_call>nothing</tool_call>");
    expect(&hermes, false, "<tool_call>{\"x\":1}</tool_call>",
           "C:<tool_call>{\"x\":1}</tool_call>");
    expect(&hermes, false, "<tool_call>{\"name\":5}", "C:<tool_call>{\"name\":5}");
    expect(&hermes, false, "<tool_call>{\"name\":\"f\"", "C:{\"name\":\"f\"");
    /* Half a mark is one: nobody wants to read it. Two bytes are text. */
    expect(&hermes, false, "a <tool_ca", "C:a");
    expect(&hermes, false, "a <t", "C:a <t");
    expect(NULL, false, "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>",
           "C:<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>");
    /* Cut off by a token limit: what is there is given. */
    expect(&hermes, false, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":", "T:f|A:{\"a\":");
}

static void test_output__llama_calls_need_no_mark_but_a_known_name(void **state)
{
    (void)state;
    expect(&llama, false, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "T:f|A:{\"a\": 1}");
    expect(&llama, false, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "T:f|A:{}");
    expect(&llama, false,
           "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": "
           "{\"a\": 2}}",
           "T:f|A:{}|T:get_weather|A:{\"a\": 2}");
    expect(&llama, false, "{\"name\": \"Bob\", \"parameters\": {}}",
           "C:{\"name\": \"Bob\", \"parameters\": {}}");
    expect(&llama, false, "so {\"name\": \"f\", \"parameters\": {}}",
           "C:so {\"name\": \"f\", \"parameters\": {}}");
    expect(&llama, false, " {\"a\": 1} x", "C: {\"a\": 1} x");
}

static void test_output__mistral_calls(void **state)
{
    (void)state;
    expect(&mistral, false,
           "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", "
           "\"arguments\": {}, \"id\": \"abc\"}\n]",
           "T:f|A:{\"a\": 1}|T:g|A:{}");
    expect(&mistral, false, "x [TOOL_CALLS] none", "C:x [TOOL_CALLS] none");
    expect(&mistral, false, "[TOOL_CALLS] [", "");
    expect(&args, false, "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}",
           "T:f|A:{\"a\": 1}|T:g|A:{}");
    expect(&args, false, "[TOOL_CALLS]f{\"a\": 1}", "C:[TOOL_CALLS]f{\"a\": 1}");
    expect(&args, false, "[TOOL_CALLS]f[ARGS]", "C:f[ARGS]");
}

#define BEGINS                                                                                     \
    "<\xef\xbd\x9ctool\xe2\x96\x81"                                                                \
    "calls\xe2\x96\x81"                                                                            \
    "begin\xef\xbd\x9c>"
#define ENDS                                                                                       \
    "<\xef\xbd\x9ctool\xe2\x96\x81"                                                                \
    "calls\xe2\x96\x81"                                                                            \
    "end\xef\xbd\x9c>"
#define BEGIN                                                                                      \
    "<\xef\xbd\x9ctool\xe2\x96\x81"                                                                \
    "call\xe2\x96\x81"                                                                             \
    "begin\xef\xbd\x9c>"
#define END                                                                                        \
    "<\xef\xbd\x9ctool\xe2\x96\x81"                                                                \
    "call\xe2\x96\x81"                                                                             \
    "end\xef\xbd\x9c>"
#define SEP "<\xef\xbd\x9ctool\xe2\x96\x81sep\xef\xbd\x9c>"

static void test_output__deepseek_calls(void **state)
{
    (void)state;
    expect(&deepseek, false,
           "ok\n" BEGINS BEGIN "function" SEP "f\n```json\n{\"a\": 1}\n```" END "\n" BEGIN
           "function" SEP "g\n```json\n{}\n```" END ENDS,
           "C:ok|T:f|A:{\"a\": 1}|T:g|A:{}");
}

/* MCP servers' tools: characters that marks have, too, and more than 64 of them. */
static void test_output__calls_of_tools_with_long_names_and_colons(void **state)
{
    static const struct nk_tool_form kimi = { .body = NK_TOOL_NAMED,
                                              .call_open = "<|call|>functions.",
                                              .name_close = ":\2<|args|>",
                                              .call_close = "<|end|>" },
                                     fields = { .body = NK_TOOL_FIELDS,
                                                .call_open = "<tool_call>\n<function=",
                                                .name_close = ">\n",
                                                .key_open = "<parameter=",
                                                .value_open = ">\n",
                                                .value_open_text = ">\n",
                                                .value_close = "\n</parameter>\n",
                                                .call_close = "</function>\n</tool_call>" };
    char name[NK_TOOL_NAME_MAX + 1], text[700], want[700];
    const char *const names[] = { "fs", "fs:read", name };

    (void)state;
    memset(name, 'n', NK_TOOL_NAME_MAX);
    memcpy(name, "@a/b#c+d:e", 10);
    name[NK_TOOL_NAME_MAX] = '\0';
    memcpy(tools, names, sizeof names);
    n_tools = 3;
    for (size_t i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "<|call|>functions.%s:0<|args|>{\"a\":1}<|end|>", names[i]);
        snprintf(want, sizeof want, "T:%s|A:{\"a\":1}", names[i]);
        expect(&kimi, false, text, want);
        snprintf(text, sizeof text,
                 "<tool_call>\n<function=%s>\n<parameter=a>\n1\n</parameter>\n</function>\n"
                 "</tool_call>",
                 names[i]);
        snprintf(want, sizeof want, "T:%s|A:{\"a\": 1}", names[i]);
        expect(&fields, false, text, want);
        snprintf(text, sizeof text, "<tool_call>{\"name\": \"%s\", \"arguments\": {}}</tool_call>",
                 names[i]);
        snprintf(want, sizeof want, "T:%s|A:{}", names[i]);
        expect(&hermes, false, text, want);
    }
    /* One that begins like a tool is none of the request's: as it is written. */
    expect(&kimi, false, "<|call|>functions.fsx:0<|args|>{}<|end|>", "T:fsx|A:{}");
    memcpy(tools, own_tools, sizeof own_tools);
    n_tools = 2;
}

static void test_output__one_call_ends_the_reply(void **state)
{
    const char *text = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</"
                       "tool_call><tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>x";
    struct trace t = { .text = "" };
    struct nk_output_opts opts = { .tools = &hermes, .one_call = true, .sink = record, .user = &t };
    nk_output *o = nk__output_new(&opts);

    (void)state;
    assert_int_equal(nk__output_feed(o, text, strlen(text), NULL), 0);
    assert_true(nk__output_ended(o));
    assert_int_equal(nk__output_finish(o, NULL), 0);
    assert_string_equal(t.text, "T:f|A:{}");
    nk__output_free(o);
}

static void test_output__reasoning_is_found_in_templates(void **state)
{
    (void)state;
    assert_string_equal(nk__think_marks_detect("a </think>").open, "<think>");
    assert_null(nk__think_marks_detect("a").open);
    assert_true(nk__prompt_opens_think("x<think>\n", 9, think));
    assert_false(nk__prompt_opens_think("<think></think>\n", 16, think));
}

static int tally(void *user, enum nk_output_kind kind, const char *text, size_t size,
                 struct nk_error *err)
{
    (void)kind, (void)text, (void)err;
    *(size_t *)user += size;
    return 0;
}

/* What is held back is looked at again with each token. */
static void test_output__what_may_be_a_mark_for_ever_is_not_held_back(void **state)
{
    static const struct nk_tool_form numbered = { .body = NK_TOOL_JSON,
                                                  .call_open = "<call \2>", /* any number */
                                                  .call_close = "</call>" };
    static const struct {
        const struct nk_tool_form *form;
        const char *begin, *unit;
    } cases[] = { { &hermes, "x", "          " },
                  { &hermes, "", "          " },
                  { &mistral, "x", "\n\n\n\n\n\n\n\n\n\n" },
                  { &llama, "", "          " },
                  { &numbered, "x<call ", "1234567890" } };
    enum { N = 2000, SIZE = 10, HELD_MAX = 5000 };

    (void)state;
    assert_int_equal(NK_TOOL_MARK_NUMBER, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t size = 0, fed = strlen(cases[i].begin);
        nk_output *o = nk__output_new(&(struct nk_output_opts){ .sink = tally,
                                                                .user = &size,
                                                                .think = think,
                                                                .tools = cases[i].form,
                                                                .tool_names = tools,
                                                                .n_tool_names = n_tools });

        assert_non_null(o);
        assert_int_equal(nk__output_feed(o, cases[i].begin, fed, NULL), 0);
        for (int k = 0; k < N; k++) {
            assert_int_equal(nk__output_feed(o, cases[i].unit, SIZE, NULL), 0);
            fed += SIZE;
            if (fed - size > HELD_MAX)
                fail_msg("case %zu: %zu bytes are held back", i, fed - size);
        }
        assert_int_equal(nk__output_finish(o, NULL), 0);
        assert_int_equal(size, fed);
        nk__output_free(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output__reasoning_comes_first_and_loses_its_marks),
        cmocka_unit_test(test_output__channels_of_gpt_oss),
        cmocka_unit_test(test_output__hermes_calls),
        cmocka_unit_test(test_output__what_may_be_a_mark_for_ever_is_not_held_back),
        cmocka_unit_test(test_output__what_is_no_call_is_content),
        cmocka_unit_test(test_output__llama_calls_need_no_mark_but_a_known_name),
        cmocka_unit_test(test_output__mistral_calls),
        cmocka_unit_test(test_output__deepseek_calls),
        cmocka_unit_test(test_output__calls_of_tools_with_long_names_and_colons),
        cmocka_unit_test(test_output__one_call_ends_the_reply),
        cmocka_unit_test(test_output__reasoning_is_found_in_templates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
