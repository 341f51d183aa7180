/* tests/data/templates/ has a small template in the form of each family. The texts below are what
 * the family's models write, not what was learned. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "gateway/output.h"
#include "gateway/tool_form.h"
#include "text/template.h"
#include "unit/gateway/learn.h"

struct family {
    const char *name;
    enum nk_tool_body body;
    const char *one, *two; /* what the model writes for one call, and for two */
    bool content;          /* may stand before */
};

/* f: {"city": "Delft", "days": 3, "tags": ["a", {"b": null}], "wet": true}; g: {} or {"q": ...} */
#define F_JSON "{\"city\": \"Delft\", \"days\": 3, \"tags\": [\"a\", {\"b\": null}], \"wet\": true}"
#define G_JSON "{\"q\": \"a < b\\n\\\"c\\\"\"}"
#define G_TEXT "a < b\n\"c\""

/* DeepSeek's marks have U+FF5C and U+2581 in them. */
#define BAR         "\357\275\234"
#define GAP         "\342\226\201"
#define CALLS_BEGIN "<" BAR "tool" GAP "calls" GAP "begin" BAR ">"
#define CALLS_END   "<" BAR "tool" GAP "calls" GAP "end" BAR ">"
#define CALL_BEGIN  "<" BAR "tool" GAP "call" GAP "begin" BAR ">"
#define CALL_END    "<" BAR "tool" GAP "call" GAP "end" BAR ">"
#define SEP         "<" BAR "tool" GAP "sep" BAR ">"
#define DSML        BAR "DSML" BAR
#define R1(n, a)    CALL_BEGIN "function" SEP n "\n```json\n" a "\n```" CALL_END
#define V31(n, a)   CALL_BEGIN n SEP a CALL_END

#define QWEN_F                                                                                     \
    "<tool_call>\n<function=f>\n<parameter=city>\nDelft\n</parameter>\n<parameter=days>\n3\n"      \
    "</parameter>\n<parameter=tags>\n[\"a\", {\"b\": null}]\n</parameter>\n<parameter=wet>\n"      \
    "true\n</parameter>\n</function>\n</tool_call>"
#define QWEN_G                                                                                     \
    "<tool_call>\n<function=g>\n<parameter=q>\n" G_TEXT "\n</parameter>\n</function>\n</"          \
    "tool_call>"
#define SEED_F                                                                                     \
    "<seed:tool_call>\n<function=f>\n<parameter=city>Delft</parameter>\n<parameter=days>3"         \
    "</parameter>\n<parameter=tags>['a', {'b': None}]</parameter>\n<parameter=wet>True"            \
    "</parameter>\n</function>\n</seed:tool_call>"
#define SEED_G                                                                                     \
    "<seed:tool_call>\n<function=g>\n<parameter=q>" G_TEXT "</parameter>\n</function>\n"           \
    "</seed:tool_call>"
#define GLM_F                                                                                      \
    "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Delft</arg_value>\n<arg_key>days"           \
    "</arg_key>\n<arg_value>3</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>[\"a\", "           \
    "{\"b\": "                                                                                     \
    "null}]</arg_value>\n<arg_key>wet</arg_key>\n<arg_value>true</arg_value>\n</tool_call>"
#define GLM_G "<tool_call>g\n<arg_key>q</arg_key>\n<arg_value>" G_TEXT "</arg_value>\n</tool_call>"
#define MM_F                                                                                       \
    "<invoke name=\"f\">\n<parameter name=\"city\">Delft</parameter>\n<parameter name=\"days\">3"  \
    "</parameter>\n<parameter name=\"tags\">[\"a\", {\"b\": null}]</parameter>\n"                  \
    "<parameter name=\"wet\">true</parameter>\n</invoke>\n"
#define MM_G "<invoke name=\"g\">\n<parameter name=\"q\">" G_TEXT "</parameter>\n</invoke>\n"
#define P(key, text, value)                                                                        \
    "<" DSML "parameter name=\"" key "\" string=\"" text "\">" value "</" DSML "parameter>\n"
#define DSML_F                                                                                     \
    "<" DSML "invoke name=\"f\">\n" P("city", "true", "Delft") P("days", "false", "3")             \
        P("tags", "false", "[\"a\", {\"b\": null}]") P("wet", "false", "true") "</" DSML           \
                                                                               "invoke>\n"
#define DSML_G "<" DSML "invoke name=\"g\">\n" P("q", "true", G_TEXT) "</" DSML "invoke>\n"
#define LFM_F  "f(city='Delft', days=3, tags=['a', {'b': None}], wet=True)"
#define LFM_G  "g(q='a < b\\n\"c\"')"
#define GEMMA_F                                                                                    \
    "<|tool_call>call:f{city:<|\"|>Delft<|\"|>,days:3,tags:[<|\"|>a<|\"|>,{b:null}],wet:true}"     \
    "<tool_call|>"
#define GEMMA_G   "<|tool_call>call:g{q:<|\"|>" G_TEXT "<|\"|>}<tool_call|>"
#define OBJ(n, a) "{\"name\": \"" n "\", \"arguments\": " a "}"
#define KIMI(n, i, a)                                                                              \
    "<|tool_call_begin|>functions." n ":" i "<|tool_call_argument_begin|>" a "<|tool_call_end|>"
#define COHERE(n, i, a)                                                                            \
    "    {\"tool_call_id\": \"" i "\", \"tool_name\": \"" n "\", \"parameters\": " a "}"

static const struct family families[] = {
    { "hermes", NK_TOOL_JSON, "<tool_call>\n" OBJ("f", F_JSON) "\n</tool_call>",
      "<tool_call>\n" OBJ("f", F_JSON) "\n</tool_call>\n<tool_call>\n" OBJ("g",
                                                                           G_JSON) "\n</tool_call>",
      true },
    { "qwen3-coder", NK_TOOL_FIELDS, QWEN_F, QWEN_F "\n" QWEN_G, true },
    { "seed-oss", NK_TOOL_FIELDS, SEED_F, SEED_F "\n" SEED_G, true },
    { "glm", NK_TOOL_FIELDS, GLM_F, GLM_F "\n" GLM_G, true },
    { "minimax", NK_TOOL_FIELDS, "<minimax:tool_call>\n" MM_F "</minimax:tool_call>",
      "<minimax:tool_call>\n" MM_F MM_G "</minimax:tool_call>", true },
    { "deepseek-v3.2", NK_TOOL_FIELDS,
      "<" DSML "function_calls>\n" DSML_F "</" DSML "function_calls>",
      "<" DSML "function_calls>\n" DSML_F DSML_G "</" DSML "function_calls>", true },
    { "lfm2", NK_TOOL_LITERAL, "<|tool_call_start|>[" LFM_F "]<|tool_call_end|>",
      "<|tool_call_start|>[" LFM_F ", " LFM_G "]<|tool_call_end|>", true },
    { "pythonic", NK_TOOL_LITERAL, "[" LFM_F "]", "[" LFM_F ", " LFM_G "]", false },
    { "gemma4", NK_TOOL_LITERAL, GEMMA_F, GEMMA_F GEMMA_G, true },
    { "nemotron", NK_TOOL_JSON, "<TOOLCALL>[" OBJ("f", F_JSON) "]</TOOLCALL>",
      "<TOOLCALL>[" OBJ("f", F_JSON) ", " OBJ("g", G_JSON) "]</TOOLCALL>", true },
    { "apriel", NK_TOOL_JSON, "<tool_calls>[" OBJ("f", F_JSON) "]</tool_calls>",
      "<tool_calls>[" OBJ("f", F_JSON) ", " OBJ("g", G_JSON) "]</tool_calls>", true },
    { "phi4-mini", NK_TOOL_JSON, "<|tool_call|>[" OBJ("f", F_JSON) "]<|/tool_call|>",
      "<|tool_call|>[" OBJ("f", F_JSON) ", " OBJ("g", G_JSON) "]<|/tool_call|>", true },
    { "granite3", NK_TOOL_JSON, "<|tool_call|>[" OBJ("f", F_JSON) "]",
      "<|tool_call|>[" OBJ("f", F_JSON) ", " OBJ("g", G_JSON) "]", true },
    { "command-r7b", NK_TOOL_JSON,
      "<|START_ACTION|>[\n" COHERE("f", "0", F_JSON) "\n]<|END_ACTION|>",
      "<|START_ACTION|>[\n" COHERE("f", "0", F_JSON) ",\n" COHERE("g", "1",
                                                                  G_JSON) "\n]<|END_ACTION|>",
      true },
    { "mistral-nemo", NK_TOOL_JSON, "[TOOL_CALLS] [" OBJ("f", F_JSON) "]",
      "[TOOL_CALLS] [" OBJ("f", F_JSON) ", {\"name\": \"g\", \"arguments\": " G_JSON
                                        ", \"id\": \"abcdefghi\"}]",
      true },
    { "mistral-small", NK_TOOL_NAMED, "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]" F_JSON,
      "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]" F_JSON "[TOOL_CALLS]g[ARGS]" G_JSON, true },
    { "devstral", NK_TOOL_NAMED, "[TOOL_CALLS]f[ARGS]" F_JSON,
      "[TOOL_CALLS]f[ARGS]" F_JSON "[TOOL_CALLS]g[ARGS]" G_JSON, true },
    { "functionary", NK_TOOL_NAMED, "<function=f>" F_JSON "</function>",
      "<function=f>" F_JSON "</function><function=g>" G_JSON "</function>", true },
    { "llama3", NK_TOOL_JSON, "{\"name\": \"f\", \"parameters\": " F_JSON "}",
      "{\"name\": \"f\", \"parameters\": " F_JSON "}; {\"name\": \"g\", \"parameters\": " G_JSON
      "}",
      false },
    { "deepseek-r1", NK_TOOL_NAMED, CALLS_BEGIN R1("f", F_JSON) CALLS_END,
      CALLS_BEGIN R1("f", F_JSON) "\n" R1("g", G_JSON) CALLS_END, true },
    { "deepseek-v3.1", NK_TOOL_NAMED, CALLS_BEGIN V31("f", F_JSON) CALLS_END,
      CALLS_BEGIN V31("f", F_JSON) V31("g", G_JSON) CALLS_END, true },
    { "gigachat", NK_TOOL_JSON, "<|message_sep|>\n\nfunction call<|role_sep|>\n" OBJ("f", F_JSON),
      "<|message_sep|>\n\nfunction call<|role_sep|>\n" OBJ(
          "f", F_JSON) "<|message_sep|>\n\nfunction call<|role_sep|>\n" OBJ("g", G_JSON),
      true },
    { "kimi-k2", NK_TOOL_NAMED,
      "<|tool_calls_section_begin|>" KIMI("f", "0", F_JSON) "<|tool_calls_section_end|>",
      "<|tool_calls_section_begin|>" KIMI("f", "0", F_JSON)
          KIMI("g", "11", G_JSON) "<|tool_calls_section_end|>",
      true },
    { "gpt-oss", NK_TOOL_NAMED,
      "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" F_JSON "<|call|>",
      "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" F_JSON "<|call|>"
      "<|channel|>commentary to=functions.g<|message|>" G_JSON "<|call|>",
      true },
};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static struct nk_tool_form learn(const struct family *f)
{
    struct nk_tool_form form;
    struct nk_error err = { 0 };
    char *text = read_template(f->name);

    if (learn_text(&form, text, &err))
        fail_msg("%s: %s", f->name, err.msg);
    free(text);
    return form;
}

/* ---- reading ---- */

struct trace {
    struct nk_buf content, calls; /* calls: "name arguments\n" */
    int n_calls;
};

static int record(void *user, enum nk_output_kind kind, const char *text, size_t size,
                  struct nk_error *err)
{
    struct trace *t = user;

    assert_true(size > 0);
    if (kind == NK_OUTPUT_TOOL)
        return nk_buf_addf(&t->calls, err, "%s%.*s ", t->n_calls++ ? "\n" : "", (int)size, text);
    return nk_buf_add(kind == NK_OUTPUT_ARGUMENTS ? &t->calls : &t->content, text, size, err);
}

static const char *const names[] = { "f", "g" };

static struct trace parse(const struct nk_tool_form *form, const char *text, size_t n, size_t cut)
{
    struct trace t = { NK_BUF_INIT(1 << 16), NK_BUF_INIT(1 << 16), 0 };
    json_t *types = json_pack("{s:{s:s}, s:{s:s}}", "f", "city", "string", "g", "q", "string");
    nk_output *o = nk__output_new(&(struct nk_output_opts){ .tools = form,
                                                            .tool_names = names,
                                                            .n_tool_names = 2,
                                                            .tool_types = types,
                                                            .sink = record,
                                                            .user = &t });

    for (size_t i = 0; cut > n && i < n; i++)
        assert_int_equal(nk__output_feed(o, text + i, 1, NULL), 0);
    if (cut <= n) {
        assert_int_equal(nk__output_feed(o, text, cut, NULL), 0);
        assert_int_equal(nk__output_feed(o, text + cut, n - cut, NULL), 0);
    }
    assert_int_equal(nk__output_finish(o, NULL), 0);
    nk__output_free(o);
    json_decref(types);
    return t;
}

static void release(struct trace *t)
{
    nk_buf_release(&t->content);
    nk_buf_release(&t->calls);
}

static void assert_arguments(const char *family, const char *line, const char *want)
{
    json_t *a = json_loads(line, 0, NULL), *b = json_loads(want, 0, NULL);

    if (!a || !json_equal(a, b))
        fail_msg("%s: arguments %s; wanted %s", family, line, want);
    json_decref(a);
    json_decref(b);
}

static void assert_calls(const char *family, const char *text, const struct trace *t, int n,
                         const char *content)
{
    char *calls = strdup(nk_buf_str(&t->calls)), *second = strchr(calls, '\n');

    if (t->n_calls != n || strcmp(nk_buf_str(&t->content), content))
        fail_msg("%s: %d calls and content \"%s\"; wanted %d and \"%s\"\n%s\n%s", family,
                 t->n_calls, nk_buf_str(&t->content), n, content, text, calls);
    if (second)
        *second++ = '\0';
    assert_memory_equal(calls, "f ", 2);
    assert_arguments(family, calls + 2, F_JSON);
    if (n == 2) {
        assert_memory_equal(second, "g ", 2);
        assert_arguments(family, second + 2, G_JSON);
    }
    free(calls);
}

/* ---- tests ---- */

static void test_tool_form__is_learned_from_each_familys_template(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        struct nk_tool_form form = learn(&families[i]);

        if (form.body != families[i].body)
            fail_msg("%s: body %d", families[i].name, form.body);
    }
}

static void test_tool_form__calls_are_read_whole_and_cut_anywhere(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        struct nk_tool_form form = learn(&families[i]);

        for (int n_calls = 1; n_calls <= 2; n_calls++)
            for (int said = 0; said <= families[i].content; said++) {
                const char *calls = n_calls == 1 ? families[i].one : families[i].two;
                char text[4096];
                size_t n =
                    (size_t)snprintf(text, sizeof text, "%s%s", said ? "I look. <b>\n" : "", calls);
                struct trace whole = parse(&form, text, n, n);

                assert_calls(families[i].name, text, &whole, n_calls, said ? "I look. <b>" : "");
                for (size_t cut = 0; cut <= n + 1; cut++) {
                    struct trace t = parse(&form, text, n, cut);

                    if (strcmp(nk_buf_str(&t.calls), nk_buf_str(&whole.calls)) ||
                        strcmp(nk_buf_str(&t.content), nk_buf_str(&whole.content)))
                        fail_msg("%s cut at %zu gives\n%s\n%s\nand whole\n%s\n%s", families[i].name,
                                 cut, nk_buf_str(&t.content), nk_buf_str(&t.calls),
                                 nk_buf_str(&whole.content), nk_buf_str(&whole.calls));
                    release(&t);
                }
                release(&whole);
            }
    }
}

/* Is every mark of the form that has a word in it absent? */
static void assert_no_marks(const struct family *f, const struct nk_tool_form *form,
                            const char *content, size_t at)
{
    const char *const marks[] = { form->section_open, form->section_close, form->call_open,
                                  form->call_close,   form->key_open,      form->value_close,
                                  form->alt_open };

    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        for (const char *p = content; *p; p++) {
            size_t used;

            if (nk__tool_mark_match(p, strlen(p), marks[i], &used) == NK_TOOL_MATCH_YES && used > 2)
                fail_msg("%s ended after %zu bytes: a mark is in the content: %s", f->name, at,
                         content);
        }
}

static void test_tool_form__a_call_that_ends_anywhere_loses_nothing_and_shows_no_mark(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        struct nk_tool_form form = learn(&families[i]);
        const char *text = families[i].two;
        struct trace whole = parse(&form, text, strlen(text), 0);

        for (size_t n = 0; n <= strlen(text); n++) {
            struct trace t = parse(&form, text, n, n);
            const char *calls = nk_buf_str(&t.calls);

            assert_no_marks(&families[i], &form, nk_buf_str(&t.content), n);
            /* What is there is what the whole begins with. */
            if (strncmp(nk_buf_str(&whole.calls), calls, strlen(calls)) &&
                form.body != NK_TOOL_FIELDS && form.body != NK_TOOL_LITERAL)
                fail_msg("%s ended after %zu bytes: %s", families[i].name, n, calls);
            /* A name that was there, with the mark after it, is a call. */
            if (t.n_calls == 0 && strstr(calls, "Delft"))
                fail_msg("%s ended after %zu bytes: %s", families[i].name, n, calls);
            if (strstr(nk_buf_str(&t.content), "Delf"))
                fail_msg("%s ended after %zu bytes: arguments are content", families[i].name, n);
            release(&t);
        }
        release(&whole);
    }
}

static void test_tool_form__text_that_only_looks_like_a_call_is_content(void **state)
{
    static const char *const texts[] = { "a <b> [c] {d} e", "x < y", "see [1].", "{\"a\": 1}",
                                         "<tool>no</tool> [TOOL] call: it (a=1)" };

    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        struct nk_tool_form form = learn(&families[i]);

        for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++) {
            struct trace t = parse(&form, texts[k], strlen(texts[k]), 1);

            if (t.n_calls || strcmp(nk_buf_str(&t.content), texts[k]))
                fail_msg("%s: \"%s\" became \"%s\" and %d calls", families[i].name, texts[k],
                         nk_buf_str(&t.content), t.n_calls);
            release(&t);
        }
    }
}

static void test_tool_form__that_cannot_be_learned_says_why(void **state)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        { "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools }}",
          "the call is not in what it renders" },
        { "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
          "<c>{{ c.function.name }}</c>{% endfor %}\n{% endfor %}",
          "arguments are not in what it renders" },
        { "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('no') }}{% endif %}"
          "{{ m.content }}{% endfor %}",
          "does not render an assistant's message with a call" },
    };
    struct nk_tool_form form;
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memset(&err, 0, sizeof err);
        assert_int_equal(learn_text(&form, cases[i].text, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "unknown_form");
        if (!strstr(err.msg, cases[i].why))
            fail_msg("\"%s\" does not say \"%s\"", err.msg, cases[i].why);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tool_form__is_learned_from_each_familys_template),
        cmocka_unit_test(test_tool_form__calls_are_read_whole_and_cut_anywhere),
        cmocka_unit_test(test_tool_form__a_call_that_ends_anywhere_loses_nothing_and_shows_no_mark),
        cmocka_unit_test(test_tool_form__text_that_only_looks_like_a_call_is_content),
        cmocka_unit_test(test_tool_form__that_cannot_be_learned_says_why),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
