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
#include "text/vocab.h"

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

static int32_t some_token(const void *user, const char *text)
{
    (void)user;
    return !strcmp(text, "</think>") || !strcmp(text, "[TOOL_CALLS]")
               ? 2
               : -1; /* any id will do: this one is EOS */
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
        cmocka_unit_test(test_tool_grammar__marks_that_are_tokens_are_written_as_tokens),
        cmocka_unit_test(test_tool_grammar__rules_are_renamed_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
