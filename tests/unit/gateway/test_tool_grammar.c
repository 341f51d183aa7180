#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/tool_grammar.h"
#include "text/grammar.h"
#include "text/sampling.h"
#include "text/vocab.h"
#include "unit/gateway/learn.h"

static const struct nk_tool_form llama = { .body = NK_TOOL_JSON,
                                           .object_open = "{\"name\": \"",
                                           .name_close = "\", \"parameters\": ",
                                           .object_close = "}" };
static const struct nk_tool_form mistral = { .body = NK_TOOL_JSON,
                                             .section_open = "[TOOL_CALLS][",
                                             .section_close = "]",
                                             .call_sep = ", ",
                                             .object_open = "{\"name\": \"",
                                             .name_close = "\", \"arguments\": ",
                                             .object_close = "}" };

static nk_vocab *vocab;

/* Does the grammar take the whole text, and then let it end? */
static bool fits(const char *grammar, const char *text)
{
    struct nk_error err;
    struct nk_tokens t;
    nk_grammar *g;
    bool ok = true;

    if (nk_grammar_new(&g, nk_vocab_llama(vocab), grammar, &err))
        fail_msg("%s\n%s", err.msg, grammar);
    assert_int_equal(
        nk_vocab_tokenize(vocab, text, strlen(text), false, false, 4096, NULL, &t, &err), 0);
    for (size_t i = 0; i < t.n && ok; i++) {
        /* This tokenizer begins with a space of its own. */
        if (i == 0) {
            struct nk_buf piece = NK_BUF_INIT(64);

            nk_vocab_piece(vocab, t.ids[0], false, &piece, NULL);
            if (piece.size == 1 && piece.data[0] == ' ' && text[0] != ' ') {
                nk_buf_release(&piece);
                continue;
            }
            nk_buf_release(&piece);
        }
        assert_int_equal(nk_grammar_allows(g, t.ids[i], &ok, &err), 0);
        if (ok)
            assert_int_equal(nk_grammar_accept(g, t.ids[i], &err), 0);
    }
    if (ok)
        assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(vocab), &ok, &err), 0);
    free(t.ids);
    nk_grammar_free(g);
    return ok;
}

static json_t *tools(const char *text)
{
    json_t *v = json_loads(text, 0, NULL);

    assert_non_null(v);
    return v;
}

#define TWO                                                                                        \
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","    \
    "\"properties\":{\"root\":{\"enum\":[1,2]}},\"required\":[\"root\"]}}},"                       \
    "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]"

static char *grammar_of(const struct nk_tool_grammar_opts *o)
{
    struct nk_buf b = NK_BUF_INIT(1 << 20);
    struct nk_error err;

    if (nk__tool_grammar_write(o, &b, &err))
        fail_msg("%s", err.msg);
    return nk_buf_take(&b, NULL);
}

static void test_tool_grammar__forced_calls_fit_and_nothing_else(void **state)
{
    json_t *two = tools(TWO);
    char *g = grammar_of(&(struct nk_tool_grammar_opts){
        .tools = two, .form = nk__tool_form_generic(), .must = true });

    (void)state;
    assert_true(
        fits(g, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"root\": 2}}\n</tool_call>"));
    assert_true(fits(g, "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>"));
    assert_false(
        fits(g, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"root\": 3}}\n</tool_call>"));
    assert_false(fits(g, "<tool_call>\n{\"name\": \"h\", \"arguments\": {}}\n</tool_call>"));
    assert_false(fits(g, "hello"));
    free(g);
    g = grammar_of(&(struct nk_tool_grammar_opts){
        .tools = two, .only = "g", .form = &llama, .must = true, .think_close = "</think>" });
    assert_true(fits(g, "a < b\n</think>\n\n{\"name\": \"g\", \"parameters\": {}}"));
    assert_false(fits(g, "a</think>{\"name\": \"f\", \"parameters\": {\"root\": 1}}"));
    free(g);
    json_decref(two);
}

static void test_tool_grammar__free_text_may_hold_calls_that_fit(void **state)
{
    json_t *two = tools(TWO);
    char *g =
        grammar_of(&(struct nk_tool_grammar_opts){ .tools = two, .form = nk__tool_form_generic() });

    (void)state;
    assert_true(fits(g, "hello <tool_cal <tool_calm> <<tool"));
    assert_true(fits(
        g, "so <<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call> "
           "and\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"root\": 1}}\n</tool_call>x"));
    assert_false(fits(g, "so <tool_call>{}"));
    assert_false(fits(g, "<t<tool_call>x"));
    free(g);
    json_decref(two);
}

/* f: city (a string, needed), days (an integer), wet (a boolean), kind (one of two); g: none. */
#define MANY                                                                                       \
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","    \
    "\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"},"              \
    "\"wet\":{\"type\":\"boolean\"},\"kind\":{\"enum\":[\"a\",\"b\"],\"type\":\"string\"}},"       \
    "\"required\":[\"city\",\"days\"]}}},"                                                         \
    "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]"

static void test_tool_grammar__forced_calls_are_in_the_form_of_the_template(void **state)
{
    static const struct {
        const char *name, *fits[3], *not_fits[3];
    } cases[] = {
        { "qwen3-coder",
          { "<tool_call>\n<function=f>\n<parameter=city>\n< Delft >\n\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "<tool_call>\n<function=f>\n<parameter=city>\n\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n<parameter=kind>\nb\n</parameter>\n</function>\n</tool_call>",
            "<tool_call>\n<function=g>\n</function>\n</tool_call>" },
          { "<tool_call>\n<function=f>\n<parameter=city>\nx\n</parameter>\n</function>\n"
            "</tool_call>",
            "<tool_call>\n<function=f>\n<parameter=city>\nx\n</parameter>\n<parameter=days>\nx",
            "<tool_call>\n<function=h>" } },
        { "glm",
          { "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Delft</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>wet</arg_key>\n"
            "<arg_value>true</arg_value>\n</tool_call>",
            "<tool_call>g\n</tool_call>" },
          { "<tool_call>f\n</tool_call>", "<tool_call>f\n<arg_key>days" } },
        { "minimax",
          { "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"city\">Delft</parameter>\n"
            "<parameter name=\"days\">3</parameter>\n</invoke>\n</minimax:tool_call>" },
          { "<minimax:tool_call>\n<invoke name=\"x" } },
        { "lfm2",
          { "<|tool_call_start|>[f(city=\"Del'ft\", days=3, wet=True)]<|tool_call_end|>",
            "<|tool_call_start|>[g()]<|tool_call_end|>" },
          { "<|tool_call_start|>[f(city=Delft", "<|tool_call_start|>[f(days=3" } },
        { "gemma4",
          { "<|tool_call>call:f{city:<|\"|>Delft<|\"|>,days:3,kind:<|\"|>a<|\"|>}<tool_call|>",
            "<|tool_call>call:g{}<tool_call|>" },
          { "<|tool_call>call:f{city:Delft", "<|tool_call>call:f{city:<|\"|>x<|\"|>,days:3,"
                                             "kind:<|\"|>c" } },
        { "kimi-k2",
          { "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
            "<|tool_call_argument_begin|>{\"city\": \"Delft\", \"days\": 3}<|tool_call_end|>"
            "<|tool_calls_section_end|>" },
          { "<|tool_calls_section_begin|><|tool_call_begin|>f:0" } },
        { "command-r7b",
          { "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"f\", "
            "\"parameters\": {\"city\": \"Delft\", \"days\": 3}}\n]<|END_ACTION|>" },
          { "<|START_ACTION|>{" } },
        { "mistral-nemo",
          { "[TOOL_CALLS][{\"name\": \"g\", \"arguments\": {}, \"id\": \"abcdef012\"}]" },
          { "[TOOL_CALLS][{\"name\": \"g\", \"arguments\": {}, \"id\": \"abcdef0\"}]" } },
    };
    json_t *many = tools(MANY);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = read_template(cases[i].name);
        struct nk_tool_form form;
        struct nk_error err;
        char *g;

        assert_int_equal(learn_text(&form, text, &err), 0);
        g = grammar_of(
            &(struct nk_tool_grammar_opts){ .tools = many, .form = &form, .must = true });
        for (int k = 0; k < 3; k++) {
            if (cases[i].fits[k] && !fits(g, cases[i].fits[k]))
                fail_msg("%s does not fit\n%s", cases[i].fits[k], g);
            if (cases[i].not_fits[k] && fits(g, cases[i].not_fits[k]))
                fail_msg("%s fits", cases[i].not_fits[k]);
        }
        free(g);
        /* And calls in text, where they have a mark. */
        g = grammar_of(&(struct nk_tool_grammar_opts){ .tools = many, .form = &form });
        if (cases[i].fits[0] && !fits(g, cases[i].fits[0]))
            fail_msg("%s does not fit after text\n%s", cases[i].fits[0], g);
        assert_true(fits(g, "only text < [ {"));
        free(g);
        free(text);
    }
    json_decref(many);
}

static void
test_tool_grammar__text_that_cannot_be_held_to_its_schema_is_refused_if_strict(void **state)
{
    json_t *one = tools("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{"
                        "\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\","
                        "\"pattern\":\"^x$\"}},\"required\":[\"a\"]}}}]");
    char *text = read_template("glm");
    struct nk_tool_form form;
    struct nk_error err = { 0 };
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_tool_grammar_opts o = { .tools = one, .form = &form, .must = true };

    (void)state;
    assert_int_equal(learn_text(&form, text, &err), 0);
    assert_int_equal(nk__tool_grammar_write(&o, &out, &err), 0);
    /* Another one that is strict does not ask it of this one. */
    assert_int_equal(json_array_append_new(
                         one, json_pack("{s:{s:s, s:b}}", "function", "name", "g", "strict", true)),
                     0);
    nk_buf_reset(&out);
    assert_int_equal(nk__tool_grammar_write(&o, &out, &err), 0);
    json_object_set_new(json_object_get(json_array_get(one, 0), "function"), "strict", json_true());
    assert_int_equal(nk__tool_grammar_write(&o, &out, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "unsupported_schema");
    assert_non_null(strstr(err.msg, "tools[0].function.parameters: \"a\": "));
    assert_non_null(strstr(err.msg, "\"pattern\""));
    nk_buf_release(&out);
    free(text);
    json_decref(one);
}

/* JSON's own rules are there once, not with each argument. */
static void test_tool_grammar__a_hundred_arguments_fit(void **state)
{
    json_t *one = tools("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{"
                        "\"type\":\"object\",\"properties\":{}}}}]");
    json_t *properties = json_object_get(
        json_object_get(json_object_get(json_array_get(one, 0), "function"), "parameters"),
        "properties");
    char *text = read_template("glm");
    struct nk_tool_form form;
    struct nk_error err = { 0 };
    struct nk_tool_grammar_opts o = { .tools = one, .form = &form, .must = true };
    char *g, key[16];

    (void)state;
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof key, "a%d", i);
        json_object_set_new(properties, key,
                            json_pack("{s:s, s:{s:s}}", "type", "array", "items", "type",
                                      i % 2 ? "integer" : "string"));
    }
    assert_int_equal(learn_text(&form, text, &err), 0);
    g = grammar_of(&o);
    assert_true(strlen(g) < NK_GRAMMAR_BYTES_MAX);
    assert_true(fits(g, "<tool_call>f\n<arg_key>a7</arg_key>\n<arg_value>[1, 2]</arg_value>\n"
                        "<arg_key>a8</arg_key>\n<arg_value>[\"x\"]</arg_value>\n</tool_call>"));
    assert_false(fits(g, "<tool_call>f\n<arg_key>a7</arg_key>\n<arg_value>[\"x\"]</arg_value>\n"
                         "</tool_call>"));
    free(g);
    free(text);
    json_decref(one);
}

static int32_t some_token(const void *user, const char *text)
{
    (void)user;
    return !strcmp(text, "</think>") || !strcmp(text, "[TOOL_CALLS]")
               ? 2
               : -1; /* any id will do: this one is EOS */
}

#define HELLO_F(args) "hello <tool_call>\n{\"name\": \"f\", \"arguments\": " args "}\n</tool_call>"
#define HELLO_G(args) "hello <tool_call>\n{\"name\": \"g\", \"arguments\": " args "}\n</tool_call>"

/* One of two tools has a schema that is not supported, the other one is strict. */
static void test_tool_grammar__one_unsupported_schema_leaves_the_other_tools(void **state)
{
    json_t *two = tools("[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{"
                        "\"type\":\"object\",\"properties\":{\"x\":{\"contains\":{}}}}}},"
                        "{\"type\":\"function\",\"function\":{\"name\":\"g\",\"strict\":true,"
                        "\"parameters\":{\"type\":\"object\",\"properties\":{\"n\":{\"enum\":[1]}},"
                        "\"required\":[\"n\"]}}}]");
    struct nk_tool_grammar_opts o = { .tools = two, .form = nk__tool_form_generic() };
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    char *g = grammar_of(&o);

    (void)state;
    assert_true(fits(g, HELLO_F("{\"any\": [1]}")));
    assert_false(fits(g, HELLO_F("1")));
    assert_true(fits(g, HELLO_G("{\"n\": 1}")));
    assert_false(fits(g, HELLO_G("{\"n\": 2}")));
    free(g);
    o.must = true;
    assert_int_equal(nk__tool_grammar_write(&o, &out, &err), NK_E_INVALID);
    assert_non_null(strstr(err.msg, "tools[0].function.parameters"));
    assert_non_null(strstr(err.msg, "contains"));
    o.must = false;
    json_object_set_new(json_object_get(json_array_get(two, 0), "function"), "strict", json_true());
    assert_int_equal(nk__tool_grammar_write(&o, &out, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "unsupported_schema");
    nk_buf_release(&out);
    json_decref(two);
}

static void test_tool_grammar__marks_that_are_tokens_are_written_as_tokens(void **state)
{
    json_t *two = tools(TWO);
    char *g = grammar_of(&(struct nk_tool_grammar_opts){
        .tools = two, .form = &mistral, .think_close = "</think>", .token = some_token });

    (void)state;
    assert_non_null(strstr(g, "think ::= !<[2]>* <[2]>"));
    assert_non_null(strstr(g, "free-0 ::= (!<[2]> | <[2]> rest-of-call)*"));
    assert_null(strstr(g, "TOOL_CALLS"));
    assert_non_null(strstr(g, "rest-of-call ::= \"[\" call (\", \" call)* \"]\""));
    free(g);
    json_decref(two);
}

static void test_tool_grammar__rules_are_renamed_and_nothing_else(void **state)
{
    struct nk_buf b = NK_BUF_INIT(4096);

    (void)state;
    assert_int_equal(
        nk__tool_grammar_prefix(
            "root ::= a-b \"root\\\"a\" [root\\]a] x{1,2} <root> !<[5]> # root\nx ::= .", "p-", &b,
            NULL),
        0);
    assert_string_equal(
        b.data,
        "p-root ::= p-a-b \"root\\\"a\" [root\\]a] p-x{1,2} <root> !<[5]> # root\np-x ::= .");
    nk_buf_release(&b);
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
        cmocka_unit_test(test_tool_grammar__forced_calls_fit_and_nothing_else),
        cmocka_unit_test(test_tool_grammar__free_text_may_hold_calls_that_fit),
        cmocka_unit_test(test_tool_grammar__forced_calls_are_in_the_form_of_the_template),
        cmocka_unit_test(
            test_tool_grammar__text_that_cannot_be_held_to_its_schema_is_refused_if_strict),
        cmocka_unit_test(test_tool_grammar__a_hundred_arguments_fit),
        cmocka_unit_test(test_tool_grammar__one_unsupported_schema_leaves_the_other_tools),
        cmocka_unit_test(test_tool_grammar__marks_that_are_tokens_are_written_as_tokens),
        cmocka_unit_test(test_tool_grammar__rules_are_renamed_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
