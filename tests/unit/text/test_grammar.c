#include "text/gbnf.h"
#include "text/grammar.h"

#include <math.h>

#include "base/utf8.h"
#include "unit/text/text_test.h"

static nk_grammar *new_grammar(const nk_vocab *v, const char *text)
{
    struct nk_error err = { 0 };
    nk_grammar *g = NULL;

    if (nk_grammar_new(&g, nk_vocab_llama(v), text, &err))
        fail_msg("%s\n%s", err.msg, text);
    return g;
}

/* Whether the grammar takes the whole text, byte by byte (in VOCAB_BPE a byte's token is its
 * value). */
static bool takes_bytes(const nk_vocab *v, const char *grammar, const char *text)
{
    nk_grammar *g = new_grammar(v, grammar);
    bool ok = true;

    for (const char *p = text; *p && ok; p++) {
        struct nk_error err = { 0 };

        assert_int_equal(nk_grammar_allows(g, (uint8_t)*p, &ok, &err), 0);
        if (ok)
            assert_int_equal(nk_grammar_accept(g, (uint8_t)*p, &err), 0);
        else
            assert_int_equal(nk_grammar_accept(g, (uint8_t)*p, &err), NK_E_INTERNAL);
    }
    if (ok)
        assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &ok, NULL), 0);
    nk_grammar_free(g);
    return ok;
}

static void test_grammar__takes_what_it_describes_and_nothing_else(void **state)
{
    static const struct {
        const char *grammar, *good[6], *bad[6];
    } cases[] = {
        { "root ::= \"ab\"", { "ab" }, { "", "a", "abc", "b" } },
        { "root ::= \"a\" | \"b\" |\n  \"cd\"", { "a", "b", "cd" }, { "", "c", "ab" } },
        { "root ::= [a-c0]+", { "a", "c0ab" }, { "", "d", "a-" } },
        { "root ::= [^a-c\\n]",
          { "d", "\xE4\xBD\xA0", "\xF0\x9F\x98\x80" },
          { "a", "\n", "", "dd" } },
        { "root ::= [\\x41\\u00e9\\U0001F600\\]\\[\\\\\\-a-]*",
          { "", "A\xC3\xA9\xF0\x9F\x98\x80][\\-a" },
          { "B", "\xC3\xA8" } },
        { "root ::= . \"x\"", { "ax", "\nx", "\xC3\xA9x" }, { "x", "a" } },
        { "root ::= \"a\"?", { "", "a" }, { "aa" } },
        { "root ::= \"ab\"*", { "", "ab", "abab" }, { "aba" } },
        { "root ::= \"a\"{3}", { "aaa" }, { "aa", "aaaa" } },
        { "root ::= \"ab\"{2,}", { "abab", "ababab" }, { "ab", "" } },
        { "root ::= (\"a\" | \"bc\"){1,3}", { "a", "bc", "abca" }, { "", "aaaa", "b" } },
        { "root ::= \"a\"{0,2} \"b\"", { "b", "ab", "aab" }, { "aaab", "a" } },
        { "root ::= \"a\"{0}", { "" }, { "a" } },
        { "root ::= \"\"", { "" }, { "a" } },
        { "root ::= ", { "" }, { "a" } },
        { "root ::= x\nx ::= \"no\"\nx ::= \"yes\"",
          { "yes" },
          { "no" } }, /* the last definition */
        { "# c\nroot ::= # c\n \"a\" # c\n\n  b\n b ::= \"b\" # c", { NULL }, { "" } },
        { "root ::= (\n \"a\" # c\n | b )\n\nb ::= \"b\"", { "a", "b" }, { "" } },
        { "root ::= \"(\" root \")\" | \"\"", { "", "()", "((()))" }, { "(", "())" } },
        { "root ::= a-1 B2\na-1 ::= \"x\"\nB2 ::= \"y\"", { "xy" }, { "x" } },
        { "root ::= \"\\t\\r\\n\\\"\"", { "\t\r\n\"" }, { "\t" } },
        /* what libllama refuses or cannot do */
        { "root ::= root \"a\" | \"a\"", { "a", "aaa" }, { "", "b" } },
        { "root ::= e root \"x\" | \"a\"\ne ::= n\nn ::= \"\"", { "a", "axx" }, { "x", "" } },
        { "root ::= e root \"x\" | \"a\"\ne ::= \"q\"* \"r\"*", { "a", "qax", "qraxx" }, { "qa" } },
        { "root ::= ((\"a\"*)*)* (\"b\"?)+", { "", "aab", "bb" }, { "ba" } },
        { "root ::= \"a\" root root | \"a\" | \"\"", { "", "a", "aaaa" }, { "b" } },
        { "root ::= e e e \"x\" e\ne ::= \"\" | e e | \"y\"", { "x", "yyyyxyy" }, { "", "y" } },
    };
    nk_vocab *v = test_vocab(VOCAB_BPE);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (!cases[i].good[0]) { /* a comment does not end a rule's line: the rest is no grammar */
            struct nk_error err = { 0 };
            nk_grammar *g;

            if (!nk_grammar_new(&g, nk_vocab_llama(v), cases[i].grammar, &err))
                nk_grammar_free(g);
            continue;
        }
        for (int k = 0; k < 6 && cases[i].good[k]; k++)
            if (!takes_bytes(v, cases[i].grammar, cases[i].good[k]))
                fail_msg("%s\ndoes not take \"%s\"", cases[i].grammar, cases[i].good[k]);
        for (int k = 0; k < 6 && cases[i].bad[k]; k++)
            if (takes_bytes(v, cases[i].grammar, cases[i].bad[k]))
                fail_msg("%s\ntakes \"%s\"", cases[i].grammar, cases[i].bad[k]);
    }
    nk_vocab_close(v);
}

static void test_grammar__refuses_bad_notation_with_line_and_cause(void **state)
{
    static const struct {
        const char *grammar, *named;
    } cases[] = {
        { "root ::= \"a", "ends within" },
        { "root ::= [a", "ends within" },
        { "root ::= \"a\\", "escape" },
        { "root ::= \"\\q\"", "escape" },
        { "root ::= \"\\x4\"", "2 hexadecimal" },
        { "root ::= \"\\uD800\"", "U+D800" },
        { "root ::= \"\\UFFFFFFFF\"", "no character" },
        { "root ::= []", "empty" },
        { "root ::= [^]", "empty" },
        { "root ::= [z-a]", "reversed" },
        { "root ::= (\"a\"", "not closed" },
        { "root ::= \"a\")", "not understood" },
        { "root ::= *", "repeat" },
        { "root ::= \"a\" | +", "repeat" },
        { "root ::= \"a\"{", "number" },
        { "root ::= \"a\"{x}", "number" },
        { "root ::= \"a\"{1,", "number" },
        { "root ::= \"a\"{1", "} is missing" },
        { "root ::= \"a\"{1,2", "} is missing" },
        { "root ::= \"a\"{5,2}", "smaller number last" },
        { "root ::= \"a\"{1,999999999}", "65536 repetitions" },
        { "root ::= \"a\"{99999999999999999999999999}", "65536 repetitions" },
        { "root ::= ((\"ab\"{60000}){60000} \"cd\"{60000}){60000} \"e\"{60000}", "too large" },
        { "root ::= b", "\"b\" is not defined" },
        { "a ::= \"x\"", "no rule \"root\"" },
        { "", "no rule \"root\"" },
        { "# only this", "no rule \"root\"" },
        { "root", "::=" },
        { "root = \"a\"", "::=" },
        { "root ::= a_b\n", "not understood" },
        { "\n\n_ ::= \"a\"", "line 3" },
        { "root ::= <nothing>", "one token" },
        { "root ::= <[999999]>", "id from 0" },
        { "root ::= <[99999999999999999999]>", "id from 0" },
        { "root ::= <[]>", "id from 0" },
        { "root ::= <a", "a token is written" },
        { "root ::= !\"a\"", "a token is written" },
    };
    nk_vocab *v = test_vocab(VOCAB_BPE);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_error err = { 0 };
        nk_grammar *g = (nk_grammar *)&err;

        if (nk_grammar_new(&g, nk_vocab_llama(v), cases[i].grammar, &err) != NK_E_INVALID)
            fail_msg("%s", cases[i].grammar);
        assert_string_equal(err.reason, "bad_grammar");
        if (!strstr(err.msg, cases[i].named))
            fail_msg("%s\n\"%s\" does not name %s", cases[i].grammar, err.msg, cases[i].named);
        assert_null(g);
    }
    nk_vocab_close(v);
}

static char *repeated(const char *before, const char *middle, int n, const char *after)
{
    size_t size = strlen(middle);
    char *text = malloc(strlen(before) + size * (size_t)n + strlen(after) + 1),
         *p = stpcpy(text, before);

    for (int i = 0; i < n; i++)
        p = stpcpy(p, middle);
    strcpy(p, after);
    return text;
}

static void assert_refused(const nk_vocab *v, const char *text, const char *named)
{
    struct nk_error err = { 0 };
    nk_grammar *g = NULL;

    assert_int_equal(nk_grammar_new(&g, nk_vocab_llama(v), text, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_grammar");
    if (!strstr(err.msg, named))
        fail_msg("\"%s\" does not name %s", err.msg, named);
}

static void test_grammar__names_that_collide_cost_no_more_than_others(void **state)
{
    enum { NAMES = 2000, CAPACITY = 65536 };
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct nk_buf text = NK_BUF_INIT(CAPACITY);
    nk_grammar *g = NULL;
    int n = 0;

    (void)state;
    nk_buf_adds(&text, "root ::= \"a\"\n", NULL);
    for (unsigned i = 0; n < NAMES; i++) { /* all of them in a thousandth of the table */
        uint64_t h = 0xcbf29ce484222325ull;
        char name[16];

        snprintf(name, sizeof name, "r%07x", i);
        for (const char *p = name; *p; p++)
            h = (h ^ (uint8_t)*p) * 0x100000001b3ull;
        if (((h ^ h >> 29) & (CAPACITY - 1)) >= 64)
            continue;
        nk_buf_addf(&text, NULL, "%s ::= \"b\"%s\n", name, n ? "    " : "");
        n++;
    }
    assert_true(text.size > CAPACITY / 2 && text.size <= CAPACITY); /* or it has another capacity */
    assert_refused(v, nk_buf_str(&text), "names of the rules");
    /* As many ordinary ones are taken. */
    nk_buf_reset(&text);
    nk_buf_adds(&text, "root ::= \"a\"\n", NULL);
    for (int i = 0; i < NAMES; i++)
        nk_buf_addf(&text, NULL, "r%07d ::= \"b\"\n", i);
    assert_int_equal(nk_grammar_new(&g, nk_vocab_llama(v), nk_buf_str(&text), NULL), 0);
    nk_grammar_free(g);
    nk_buf_release(&text);
    nk_vocab_close(v);
}

static void test_grammar__tokens_by_their_text_are_few_and_short(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    char *many = repeated("root ::= ", "<think> ", NK_GBNF_TOKENS_MAX + 1, ""),
         *enough = repeated("root ::= ", "<think> ", NK_GBNF_TOKENS_MAX, ""),
         *longs = repeated("root ::= <", "\xE4\xB8\xAD", 80000, ">");
    nk_grammar *g = NULL;

    (void)state;
    assert_refused(v, many, "1024 tokens");
    assert_refused(v, longs, "240002 bytes");
    assert_int_equal(nk_grammar_new(&g, nk_vocab_llama(v), enough, NULL), 0);
    nk_grammar_free(g);
    free(many);
    free(enough);
    free(longs);
    nk_vocab_close(v);
}

/* Grammars that libllama crashes on, hangs on or takes gigabytes for: each ends, with or without an
 * error. */
static void test_grammar__hostile_grammars_end(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    char *grammars[32], *p;
    int n = 0;

    (void)state;
    grammars[n++] = repeated("root ::= ", "(", 60000, "");
    p = repeated("", ")", 30000, "");
    grammars[n++] = repeated("root ::= ", "(", 30000, p);
    free(p);
    grammars[n++] = repeated("root ::= ", "\"a\"? ", 13000, "");
    grammars[n++] = repeated("root ::= ", "\"a\"? ", 600, "\"b\"");
    grammars[n++] = repeated("root ::= ", "[a-z]* ", 9000, "");
    grammars[n++] = repeated("root ::= ", "(\"a\" | \"aa\")* ", 4000, "");
    grammars[n++] = repeated("root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"a\"", "", 0, "");
    grammars[n++] = repeated("root ::= root root | \"a\"", "", 0, "");
    grammars[n++] = repeated("root ::= root root root | \"a\" | \"\"", "", 0, "");
    grammars[n++] = repeated("root ::= \"a\" root root root | \"a\"", "", 0, "");
    grammars[n++] = repeated("root ::= \"a\"{65536} | \"a\"{0,60000} \"b\"", "", 0, "");
    grammars[n++] = repeated("root ::= ", "[a-b]{0,8000} ", 16, "");
    p = malloc(65536);
    strcpy(p, "root ::= r0\n");
    for (int i = 0; i < 1500; i++)
        sprintf(p + strlen(p), "r%d ::= r%d \"b\" | r%d \"c\" | r%d\n", i, i + 1, i + 1, i + 1);
    strcat(p, "r1500 ::= \"a\" r0");
    grammars[n++] = p;
    grammars[n++] = repeated("root ::= ", "\"a\"* ", 10000, "root root | \"b\"");
    grammars[n++] = repeated("root ::= [", "a-zA-Z0-9", 7000, "]");
    for (int i = 0; i < n; i++) {
        struct nk_error err = { 0 };
        nk_grammar *g;
        int rc = nk_grammar_new(&g, nk_vocab_llama(v), grammars[i], &err);

        for (int step = 0; !rc && step < 40; step++) {
            const uint8_t *mask;

            rc = nk_grammar_mask(g, &mask, &err);
            if (!rc && !mask['a'])
                break;
            if (!rc)
                rc = nk_grammar_accept(g, 'a', &err);
        }
        if (rc)
            assert_true(!strcmp(err.reason, "grammar_too_complex") ||
                        !strcmp(err.reason, "bad_grammar"));
        if (!rc || !strcmp(err.reason, "grammar_too_complex"))
            nk_grammar_free(g);
        free(grammars[i]);
    }
    nk_vocab_close(v);
}

/* Whoever asked may go while millions of steps are made for him. */
static void test_grammar__what_nobody_waits_for_ends_and_has_changed_nothing(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    char *text = repeated("root ::= ", "(\"a\" | \"aa\")* ", 4000, "");
    nk_grammar *g = new_grammar(v, text);
    struct nk_error err = { 0 };
    const uint8_t *mask;
    atomic_bool cancelled;
    bool allowed;

    (void)state;
    atomic_init(&cancelled, true);
    nk_grammar_cancel_by(g, &cancelled);
    assert_int_equal(nk_grammar_mask(g, &mask, &err), NK_E_CANCELLED);
    assert_string_equal(err.reason, "cancelled");
    assert_null(mask);
    assert_int_equal(nk_grammar_allows(g, 'a', &allowed, NULL), NK_E_CANCELLED);
    assert_int_equal(nk_grammar_accept(g, 'a', NULL), NK_E_CANCELLED);
    atomic_store(&cancelled, false);
    assert_int_equal(nk_grammar_allows(g, 'a', &allowed, NULL), 0);
    assert_true(allowed);
    assert_int_equal(nk_grammar_accept(g, 'a', NULL), 0);
    nk_grammar_free(g);
    free(text);
    nk_vocab_close(v);
}

static void test_grammar__depth_costs_memory_only_in_proportion(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    nk_grammar *g = new_grammar(v, "root ::= \"(\" root \")\" \"!\"? | \"\"");
    bool allowed;

    (void)state;
    for (int i = 0; i < 20000; i++)
        assert_int_equal(nk_grammar_accept(g, '(', NULL), 0);
    for (int i = 0; i < 20000; i++) {
        assert_int_equal(nk_grammar_accept(g, ')', NULL), 0);
        if (i % 3 == 0)
            assert_int_equal(nk_grammar_accept(g, '!', NULL), 0);
    }
    assert_int_equal(nk_grammar_allows(g, ')', &allowed, NULL), 0);
    assert_false(allowed);
    assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &allowed, NULL), 0);
    assert_true(allowed);
    nk_grammar_free(g);
    nk_vocab_close(v);
}

static int32_t token(const nk_vocab *v, const char *text)
{
    struct nk_tokens t;
    int32_t id;

    assert_int_equal(nk_vocab_tokenize(v, text, strlen(text), false, true, 10, NULL, &t, NULL), 0);
    assert_int_equal(t.n, 1);
    id = t.ids[0];
    free(t.ids);
    return id;
}

static void test_grammar__single_tokens_by_text_id_and_negation(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    int32_t think = token(v, "<think>"), end = token(v, "</think>"),
            start = token(v, "<|im_start|>");
    nk_grammar *g;
    bool allowed;

    (void)state;
    g = new_grammar(v, "root ::= <think> !</think>* </think> <[65]> \"b\"");
    {
        const int32_t walk[] = { think, 'x', start, 200, end, 65, 'b' };

        for (size_t i = 0; i < sizeof walk / sizeof walk[0]; i++) {
            const uint8_t *mask;
            struct nk_error err = { 0 };

            assert_int_equal(nk_grammar_mask(g, &mask, NULL), 0);
            for (int32_t id = 0; id < nk_vocab_size(v); id++) {
                assert_int_equal(nk_grammar_allows(g, id, &allowed, NULL), 0);
                assert_int_equal(allowed, mask[id]);
            }
            assert_true(mask[walk[i]]);
            assert_false(mask[nk_vocab_eos(v)]);
            if (nk_grammar_accept(g, walk[i], &err))
                fail_msg("%zu: %s", i, err.msg);
        }
        assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &allowed, NULL), 0);
        assert_true(allowed);
    }
    nk_grammar_free(g);
    /* A token and the same characters: both ways stay open. */
    g = new_grammar(v, "root ::= <[104]> \"x\" | \"h\" \"y\"");
    assert_int_equal(nk_grammar_accept(g, 'h', NULL), 0);
    assert_int_equal(nk_grammar_allows(g, 'x', &allowed, NULL), 0);
    assert_true(allowed);
    assert_int_equal(nk_grammar_allows(g, 'y', &allowed, NULL), 0);
    assert_true(allowed);
    nk_grammar_free(g);
    /* Control tokens are no text. */
    g = new_grammar(v, "root ::= .*");
    assert_int_equal(nk_grammar_allows(g, start, &allowed, NULL), 0);
    assert_false(allowed);
    assert_int_equal(nk_grammar_allows(g, think, &allowed, NULL), 0);
    assert_true(allowed);
    nk_grammar_free(g);
    nk_vocab_close(v);
}

static void test_grammar__characters_may_be_split_between_tokens(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    /* U+4E2D U+6587 is E4 B8 AD E6 96 87; U+1F600 is F0 9F 98 80 */
    nk_grammar *g = new_grammar(v, "root ::= [\xE4\xB8\xAD] [^\\x00-\\uFFFF]");
    static const uint8_t bytes[] = { 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80 };
    bool allowed;

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++) {
        const uint8_t *mask;

        assert_int_equal(nk_grammar_mask(g, &mask, NULL), 0);
        assert_true(mask[bytes[i]]);
        if (i < 3)
            for (int b = 0; b < 256; b++) /* there is one way only */
                assert_int_equal(mask[b], b == bytes[i]);
        else if (i == 3)
            for (int b = 0; b < 256; b++)
                assert_int_equal(mask[b], b >= 0xF0 && b <= 0xF4);
        else if (i == 4)
            for (int b = 0; b < 256; b++) /* F0 8x would be overlong */
                assert_int_equal(mask[b], b >= 0x90 && b <= 0xBF);
        assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &allowed, NULL), 0);
        assert_false(allowed);
        assert_int_equal(nk_grammar_accept(g, bytes[i], NULL), 0);
    }
    assert_int_equal(nk_grammar_allows(g, nk_vocab_eos(v), &allowed, NULL), 0);
    assert_true(allowed);
    nk_grammar_free(g);
    nk_vocab_close(v);
}

/* ---- libllama as the other opinion ---- */

/* What it may be asked about: it lets control tokens match characters, no token begin with NUL, and
 * it takes bytes that are no UTF-8 for characters: F5 and above, surrogates, overlong ones. */
static bool comparable(const nk_vocab *v, int32_t id)
{
    struct nk_buf buf = NK_BUF_INIT(1000);
    size_t at;
    bool ok;

    assert_int_equal(nk_vocab_piece(v, id, false, &buf, NULL), 0);
    ok = nk_vocab_is_eog(v, id) || (buf.size && buf.data[0]);
    if (ok && !nk_utf8_valid(buf.data, buf.size, &at))
        for (size_t i = at; i < buf.size; i++)
            ok &= (uint8_t)buf.data[i] < 0xF0 && (uint8_t)buf.data[i] != 0xE0 &&
                  (uint8_t)buf.data[i] != 0xED;
    nk_buf_release(&buf);
    return ok;
}

/* Walks at random through what both allow; the two must agree on every token at every step. */
static void compare_with_libllama(const nk_vocab *v, const char *text, struct test_random *r,
                                  int n_steps, const bool *ask)
{
    nk_grammar *g = new_grammar(v, text);
    struct llama_sampler *l = llama_sampler_init_grammar(nk_vocab_llama(v), text, "root");
    int n = nk_vocab_size(v);
    llama_token_data *data = malloc((size_t)n * sizeof *data);

    if (!l)
        fail_msg("libllama refuses\n%s", text);
    for (int step = 0; step < n_steps; step++) {
        llama_token_data_array c = { data, (size_t)n, -1, false };
        int32_t allowed[2048];
        const uint8_t *mask;
        int n_allowed = 0, pick;

        for (int32_t id = 0; id < n; id++)
            data[id] = (llama_token_data){ id, 0, 0 };
        llama_sampler_apply(l, &c);
        assert_int_equal(nk_grammar_mask(g, &mask, NULL), 0);
        for (int32_t id = 0; id < n; id++) {
            bool theirs = data[id].logit == 0, alone;

            assert_int_equal(nk_grammar_allows(g, id, &alone, NULL), 0);
            assert_int_equal(alone, mask[id]);
            if (!ask[id])
                continue;
            if (theirs != mask[id])
                fail_msg("step %d, token %d: libllama %d, we %d\n%s", step, id, theirs, mask[id],
                         text);
            if (theirs && !nk_vocab_is_eog(v, id))
                allowed[n_allowed++] = id;
        }
        if (!n_allowed)
            break;
        pick = allowed[test_below(r, n_allowed)];
        llama_sampler_accept(l, pick);
        assert_int_equal(nk_grammar_accept(g, pick, NULL), 0);
    }
    free(data);
    llama_sampler_free(l);
    nk_grammar_free(g);
}

static void test_grammar__agrees_with_libllama_on_usual_grammars(void **state)
{
    static const char *const grammars[] = {
        "root ::= [a-f]+ | \"the\" (\" in\" | \" he\")*",
        "root ::= \"{\" ws (pair (\",\" ws pair)*)? \"}\"\npair ::= string \":\" ws value\n"
        "value ::= string | number | \"{\" ws \"}\" | \"[\" (value (\",\" ws value)*)? \"]\" | "
        "\"true\" | \"null\"\n"
        "string ::= \"\\\"\" ([^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt] | \"u\" "
        "[0-9a-fA-F]{4}))* \"\\\"\"\n"
        "number ::= \"-\"? ([0-9] | [1-9] [0-9]{0,15}) (\".\" [0-9]+)? ([eE] [-+]? [0-9] "
        "[1-9]{0,15})?\nws ::= [ \\n]{0,3}",
        ("root ::= (expr \"=\" term \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= [a-z] | "
         "[0-9]+ | \"(\" expr \")\""),
        "root ::= [^a-y]{2,5} [\xC3\xA0-\xC3\xBF]?",
        "root ::= (\"he\" | \"h\" \"e\" | [h-i] .)* \"n\"",
        "root ::= line{1,3}\nline ::= [^\\n]{0,4} \"\\n\"",
    };
    static const int kinds[] = { VOCAB_BPE, VOCAB_KJV };

    (void)state;
    for (int k = 0; k < 2; k++) {
        nk_vocab *v = test_vocab(kinds[k]);
        bool ask[2048];

        for (int32_t id = 0; id < nk_vocab_size(v); id++)
            ask[id] = comparable(v, id);
        for (size_t i = 0; i < sizeof grammars / sizeof grammars[0]; i++)
            for (uint64_t seed = 1; seed <= 5; seed++)
                compare_with_libllama(v, grammars[i], &(struct test_random){ seed }, 20, ask);
        nk_vocab_close(v);
    }
}

/* A random part; calls only rules further down, or any rule behind a character, so that libllama
 * sees no left recursion. */
static void random_part(struct test_random *r, char *out, int rule, int n_rules, int depth)
{
    static const char *const terminals[] = { "\"h\"", "\"he\"", "\" the\"", "\"i\"",       "\"in\"",
                                             "[a-n]", "[^h]",   ".",        "\"\xC3\xA9\"" };
    static const char *const repeats[] = { "",  "",    "",      "",      "?",   "*",
                                           "+", "{2}", "{1,3}", "{0,2}", "{2,}" };
    int what = test_below(r, 10);

    if (what < 5 || depth > 2) {
        strcat(out, terminals[test_below(r, 9)]);
    } else if (what < 7 && rule + 1 < n_rules) {
        sprintf(out + strlen(out), "r%d", rule + 1 + test_below(r, n_rules - rule - 1));
    } else if (what == 7) {
        sprintf(out + strlen(out), "\"e\" r%d ", test_below(r, n_rules));
        return; /* not repeated: `"e" r*` would repeat r alone, and r may be left recursive then */
    } else {
        int n = 1 + test_below(r, 3);

        strcat(out, "(");
        for (int i = 0; i < n; i++) {
            random_part(r, out, rule, n_rules, depth + 1);
            strcat(out, i + 1 == n ? "" : test_below(r, 2) ? " | " : " ");
        }
        strcat(out, ")");
    }
    strcat(out, repeats[test_below(r, 11)]);
    strcat(out, " ");
}

static void test_grammar__agrees_with_libllama_on_random_grammars(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    const char *more = getenv("NK_ROUNDS"); /* by hand */
    int n_rounds = more ? atoi(more) : 150;
    bool ask[2048];

    (void)state;
    for (int32_t id = 0; id < nk_vocab_size(v); id++)
        ask[id] = comparable(v, id);
    for (int round = 1; round <= n_rounds; round++) {
        struct test_random r = { (uint64_t)round * 7919 };
        int n_rules = 2 + test_below(&r, 4);
        char text[16384] = "root ::= r0\n";

        for (int i = 0; i < n_rules; i++) {
            int n = 1 + test_below(&r, 4);

            sprintf(text + strlen(text), "r%d ::= ", i);
            for (int k = 0; k < n; k++) {
                random_part(&r, text, i, n_rules, 0);
                if (k + 1 < n && test_below(&r, 3) == 0)
                    strcat(text, "| ");
            }
            strcat(text, "\n");
        }
        compare_with_libllama(v, text, &r, 6, ask);
    }
    nk_vocab_close(v);
}

static void test_grammar__a_vocabulary_without_text_is_refused(void **state)
{
    char path[256];
    struct llama_model_params params = llama_model_default_params();
    struct llama_model *model;
    struct nk_error err = { 0 };
    nk_grammar *g;

    (void)state;
    vocab_file_path(path, test_dir, VOCAB_STUB);
    assert_true(vocab_file_write(path, VOCAB_STUB));
    params.vocab_only = true;
    model = llama_model_load_from_file(path, params);
    assert_non_null(model);
    assert_int_equal(nk_grammar_new(&g, llama_model_get_vocab(model), "root ::= \"a\"", &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "bad_grammar");
    llama_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grammar__names_that_collide_cost_no_more_than_others),
        cmocka_unit_test(test_grammar__tokens_by_their_text_are_few_and_short),
        cmocka_unit_test(test_grammar__takes_what_it_describes_and_nothing_else),
        cmocka_unit_test(test_grammar__refuses_bad_notation_with_line_and_cause),
        cmocka_unit_test(test_grammar__hostile_grammars_end),
        cmocka_unit_test(test_grammar__what_nobody_waits_for_ends_and_has_changed_nothing),
        cmocka_unit_test(test_grammar__depth_costs_memory_only_in_proportion),
        cmocka_unit_test(test_grammar__single_tokens_by_text_id_and_negation),
        cmocka_unit_test(test_grammar__characters_may_be_split_between_tokens),
        cmocka_unit_test(test_grammar__agrees_with_libllama_on_usual_grammars),
        cmocka_unit_test(test_grammar__agrees_with_libllama_on_random_grammars),
        cmocka_unit_test(test_grammar__a_vocabulary_without_text_is_refused),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
