#include "text/jinja.h"

#include <jansson.h>
#include <pthread.h>

#include "unit/text/text_test.h"

static nk_jinja *open_template(const char *tmpl)
{
    struct nk_error err = { 0 };
    nk_jinja *j = NULL;

    if (nk_jinja_new(&j, tmpl, "<s>", "</s>", &err))
        fail_msg("%s", err.msg);
    return j;
}

static const char *render(const nk_jinja *j, const char *messages, const char *tools,
                          const char *extra)
{
    static char text[1 << 16];
    const struct nk_jinja_input in = { .messages = messages,
                                       .tools = tools,
                                       .extra = extra,
                                       .add_generation_prompt = true,
                                       .now = 86400 };
    struct nk_buf buf = NK_BUF_INIT(sizeof text - 1);
    struct nk_error err = { 0 };

    if (nk_jinja_render(j, &in, &buf, &err))
        fail_msg("%s", err.msg);
    snprintf(text, sizeof text, "%s", nk_buf_str(&buf));
    nk_buf_release(&buf);
    return text;
}

static void assert_render_fails(const nk_jinja *j, const char *messages, const char *tools,
                                const char *extra, int code, const char *reason, const char *named)
{
    const struct nk_jinja_input in = { .messages = messages, .tools = tools, .extra = extra };
    struct nk_buf buf = NK_BUF_INIT(100000);
    struct nk_error err = { 0 };

    nk_buf_adds(&buf, "before", NULL);
    assert_int_equal(nk_jinja_render(j, &in, &buf, &err), code);
    assert_string_equal(err.reason, reason);
    if (!strstr(err.msg, named))
        fail_msg("\"%s\" does not name %s", err.msg, named);
    assert_null(strchr(err.msg, '\n'));
    assert_string_equal(nk_buf_str(&buf), "before"); /* nothing half-written */
    nk_buf_release(&buf);
}

/* Templates in the manner of the families in use; each shows another way to treat tools, system
 * text and content. */
static const char chatml[] =
    "{%- if tools %}\n"
    "    {{- '<|im_start|>system\\n' }}\n"
    "    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}\n"
    "    {{- \"# Tools\\n<tools>\" }}\n"
    "    {%- for tool in tools %}{{- \"\\n\" }}{{- tool | tojson }}{%- endfor %}\n"
    "    {{- \"\\n</tools><|im_end|>\\n\" }}\n"
    "{%- elif messages[0].role == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' "
    "}}\n"
    "    {%- elif message.role == \"assistant\" %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' }}\n"
    "        {%- if message.content %}{{- message.content }}{%- endif %}\n"
    "        {%- for tool_call in message.tool_calls %}\n"
    "            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif "
    "%}\n"
    "            {{- '<tool_call>\\n{\"name\": \"' }}{{- tool_call.name }}{{- '\", \"arguments\": "
    "' }}\n"
    "            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}\n"
    "        {%- endfor %}\n"
    "        {{- '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == \"tool\" %}\n"
    "        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + "
    "'\\n</tool_response><|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}{{- "
    "'<think>\\n\\n</think>\\n\\n' }}{%- endif %}\n"
    "{%- endif %}";

static const char no_system[] =
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') "
    "}}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = "
    "message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}";

static const char text_arguments[] =
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '[' + c['function']['name'] + '|' + c['function']['arguments'] + ']' }}{% endfor %}"
    "{% else %}{{ m['role'] + ':' + m['content'] + ';' }}{% endif %}{% endfor %}";

static const char typed_content[] = "{% for m in messages %}{{ m.role }}:{% for part in m.content "
                                    "%}{% if part.type == 'text' %}{{ part.text }}"
                                    "{% endif %}{% endfor %};{% endfor %}";

static void test_jinja__renders_a_conversation(void **state)
{
    nk_jinja *j = open_template(chatml);

    (void)state;
    assert_string_equal(
        render(j,
               "[{\"role\":\"system\",\"content\":\"be brief\"},"
               "{\"role\":\"user\",\"content\":\"hi \xF0\x9F\x98\x80 \xE4\xBD\xA0\\n\\\"q\\\"\"},"
               "{\"role\":\"assistant\",\"content\":\"yes\"},{\"role\":\"user\",\"content\":"
               "\"more\"}]",
               NULL, NULL),
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\nhi \xF0\x9F\x98\x80 \xE4\xBD\xA0\n\"q\"<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"
        "<|im_start|>assistant\n");
    assert_string_equal(
        render(j, "[{\"role\":\"user\",\"content\":\"a\"}]", NULL, "{\"enable_thinking\":false}"),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    nk_jinja_free(j);
}

static void test_jinja__renders_tools_and_their_calls(void **state)
{
    nk_jinja *j = open_template(chatml);
    static const char expected[] = "<|im_start|>system\n# Tools\n<tools>\n"
                                   "{\"type\": \"function\", \"function\": {\"name\": \"add\", "
                                   "\"parameters\": {\"b\": 1, \"a\": [2, null]}}}\n"
                                   "</tools><|im_end|>\n<|im_start|>user\nsum<|im_end|>\n"
                                   "<|im_start|>assistant\n<tool_call>\n{\"name\": \"add\", "
                                   "\"arguments\": {\"x\": 1, \"y\": \"z\"}}\n</tool_call>"
                                   "<|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</"
                                   "tool_response><|im_end|>\n<|im_start|>assistant\n";
    static const char *const arguments[] = { "\"{\\\"x\\\": 1, \\\"y\\\": \\\"z\\\"}\"",
                                             "{\"x\":1,\"y\":\"z\"}" };

    (void)state;
    assert_true(nk_jinja_describe(j).tools);
    assert_true(nk_jinja_describe(j).tool_calls);
    assert_true(nk_jinja_describe(j).object_arguments);
    assert_true(nk_jinja_describe(j).system_role);
    assert_false(nk_jinja_describe(j).typed_content);
    for (int i = 0; i < 2; i++) { /* OpenAI's arguments are JSON text, Ollama's an object */
        char messages[512];

        snprintf(messages, sizeof messages,
                 "[{\"role\":\"user\",\"content\":\"sum\"},{\"role\":\"assistant\",\"content\":"
                 "null,\"tool_calls\":[{"
                 "\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"add\",\"arguments\":"
                 "%s}}]},"
                 "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"3\"}]",
                 arguments[i]);
        assert_string_equal(
            render(j, messages,
                   "[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"b\":1,"
                   "\"a\":[2,null]}}}]",
                   NULL),
            expected);
    }
    nk_jinja_free(j);
}

static void test_jinja__gives_arguments_as_text_where_the_template_wants_text(void **state)
{
    nk_jinja *j = open_template(text_arguments);

    (void)state;
    assert_true(nk_jinja_describe(j).tool_calls);
    assert_false(nk_jinja_describe(j).object_arguments);
    assert_false(nk_jinja_describe(j).tools);
    assert_string_equal(
        render(
            j,
            "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
            "{\"a\":[1]}}},{\"function\":{\"name\":\"g\",\"arguments\":\"{\\\"b\\\":2}\"}},"
            "{\"function\":{\"name\":\"h\",\"arguments\":\"\"}}]}]",
            NULL, NULL),
        "[f|{\"a\": [1]}][g|{\"b\":2}][h|{}]");
    nk_jinja_free(j);
}

static void test_jinja__puts_system_text_before_the_user_where_there_is_no_system_role(void **state)
{
    nk_jinja *j = open_template(no_system);

    (void)state;
    assert_false(nk_jinja_describe(j).system_role);
    assert_string_equal(
        render(j,
               "[{\"role\":\"system\",\"content\":\"be "
               "brief\"},{\"role\":\"user\",\"content\":\"hi\"}]",
               NULL, NULL),
        "<s><start_of_turn>user\nbe brief\nhi<end_of_turn>\n<start_of_turn>model\n");
    nk_jinja_free(j);
}

static void test_jinja__typed_content_is_made_or_flattened_as_the_template_wants(void **state)
{
    nk_jinja *typed = open_template(typed_content), *plain = open_template(chatml);

    (void)state;
    assert_true(nk_jinja_describe(typed).typed_content);
    assert_string_equal(render(typed, "[{\"role\":\"user\",\"content\":\"hi\"}]", NULL, NULL),
                        "user:hi;");
    assert_string_equal(
        render(plain,
               "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
               "{\"type\":\"text\",\"text\":\"b\"}]}]",
               NULL, NULL),
        "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n");
    assert_render_fails(
        plain, "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":\"x\"}]}]",
        NULL, NULL, NK_E_INVALID, "bad_messages", "\"text\"");
    nk_jinja_free(typed);
    nk_jinja_free(plain);
}

static void test_jinja__has_the_functions_that_templates_use(void **state)
{
    static const struct {
        const char *tmpl, *expected;
    } cases[] = {
        { "{{ bos_token }}|{{ eos_token }}", "<s>|</s>" },
        { "{{ strftime_now('%Y-%m-%d') }}", "1970-01-02" },
        { "{% for i in range(3) %}{{ i }}{% endfor %}", "012" },
        { "{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}", "531" },
        { "{% for i in range(2, 4) %}{{ i }}{% endfor %}", "23" },
        { "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor "
          "%}{{ ns.n }}",
          "1" },
        { "{%- macro f(x) -%}<{{ x }}>{%- endmacro -%}{{ f('a') }}{{ f('b') }}", "<a><b>" },
        { "{{ messages[0].content | upper | trim }}", "HI" },
        { "{{ messages | length }} {{ messages[-1]['role'] }} {{ 'x' if tools is none else 'y' }}",
          "1 user x" },
        { "{{ ' a '.strip() }}{{ 'a,b'.split(',') | join('+') }}{{ 'abc'[1:] }}", "aa+bbc" },
        { "{{ {'a': [1, 'x', none, true]} | tojson }}", "{\"a\": [1, \"x\", null, true]}" },
        { "{{ {'a': {}, 'b': [], 'c': [1, {'d': '<\xC3\xA9>'}]} | tojson(indent=2) }}",
          "{\n  \"a\": {},\n  \"b\": [],\n  \"c\": [\n    1,\n    {\n      \"d\": \"<\xC3\xA9>\"\n "
          "   }\n  ]\n}" },
        { "{{ [] | tojson(4) }}{{ {} | tojson }}{{ 'x\"' | tojson(ensure_ascii=false) }}",
          "[]{}\"x\\\"\"" },
        { "a\n{% if true %}\nb\n{% endif %}\nc", "a\nb\nc" }, /* trim_blocks, lstrip_blocks */
        { "a\n  {% if true %}\nb{% endif %}", "a\nb" },
        { " \t{% if true %} a{% endif %}", " a" },
        { "a\n \t{# gone #}\n  b", "a\n  b" },
        { "a\n  {{ 'b' }}\n  {{ 'c' }} {% if true %}d{% endif %}",
          "a\n  b\n  c d" }, /* not before {{ */
        { "a\n  {%+ if true %}b{% endif %}", "a\n  b" },
        { "a\n  {{- 'b' -}}\n  c", "abc" },
        { "{{ '{% if %}\\'' + \"  {#\" }}|{{ {'a': {'b': 1}}['a']['b'] }}\n {% if true %}x{% endif "
          "%}",
          "{% if %}'  {#|1\nx" },
        { "{% for m in messages if m.role == 'user' %}{{ loop.last }}{% else %}none{% endfor %}",
          "True" },
        { "{{ undefined_name }}|{{ messages[0].nothing }}|{% if nothing is not defined %}ok{% "
          "endif %}",
          "||ok" },
    };

    (void)state;
    setenv("TZ", "UTC", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nk_jinja *j = open_template(cases[i].tmpl);

        assert_string_equal(render(j, "[{\"role\":\"user\",\"content\":\" hi \"}]", NULL, NULL),
                            cases[i].expected);
        nk_jinja_free(j);
    }
}

static void test_jinja__a_template_that_cannot_be_parsed_is_an_error(void **state)
{
    static const char *const bad[] = { "{% for %}",   "{{ a",      "{% if x %}",
                                       "{% endif %}", "{{ 1 + }}", "{% nothing %}",
                                       "{{ 'abc }}",  "{{ a | }}", "\xFF" };
    char *large = malloc(NK_JINJA_TEMPLATE_MAX + 2);

    (void)state;
    memset(large, 'x', NK_JINJA_TEMPLATE_MAX + 1);
    large[NK_JINJA_TEMPLATE_MAX + 1] = '\0';
    for (size_t i = 0; i <= sizeof bad / sizeof bad[0]; i++) {
        const char *tmpl = i < sizeof bad / sizeof bad[0] ? bad[i] : large;
        struct nk_error err = { 0 };
        nk_jinja *j = (nk_jinja *)&err;

        if (nk_jinja_new(&j, tmpl, NULL, NULL, &err) != NK_E_INVALID)
            fail_msg("\"%.20s\" was taken", tmpl);
        assert_string_equal(err.reason, "bad_template");
        assert_null(j);
    }
    free(large);
}

static void test_jinja__what_the_template_raises_is_the_error(void **state)
{
    nk_jinja *j = open_template(no_system);

    (void)state;
    assert_render_fails(j, "[{\"role\":\"assistant\",\"content\":\"hi\"}]", NULL, NULL,
                        NK_E_INVALID, "bad_template", "Conversation roles must alternate");
    nk_jinja_free(j);
}

static void test_jinja__messages_of_another_shape_are_refused(void **state)
{
    static const struct {
        const char *messages, *tools, *extra, *named;
    } cases[] = {
        { "", NULL, NULL, "not JSON" },
        { "[", NULL, NULL, "not JSON" },
        { "{}", NULL, NULL, "not a list" },
        { "[1]", NULL, NULL, "role" },
        { "[{}]", NULL, NULL, "role" },
        { "[{\"role\":1}]", NULL, NULL, "role" },
        { "[{\"role\":\"user\",\"content\":1}]", NULL, NULL, "content" },
        { "[{\"role\":\"user\",\"content\":\"\xFF\"}]", NULL, NULL, "not JSON" },
        { "[{\"role\":\"a\",\"tool_calls\":1}]", NULL, NULL, "tool_calls" },
        { "[{\"role\":\"a\",\"tool_calls\":[1]}]", NULL, NULL, "tool_calls" },
        { "[{\"role\":\"a\",\"tool_calls\":[{\"function\":{\"name\":1}}]}]", NULL, NULL,
          "tool_calls" },
        { "[{\"role\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}]",
          NULL, NULL, "arguments: not JSON" },
        { "[{\"role\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"[]\"}}]}"
          "]",
          NULL, NULL, "arguments: not a JSON object" },
        { "[{\"role\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":7}}]}]",
          NULL, NULL, "arguments: neither" },
        { "[]", "{}", NULL, "tools" },
        { "[]", "x", NULL, "tools" },
        { "[]", NULL, "[]", "extra" },
        { "[]", NULL, "x", "extra" },
    };
    nk_jinja *j = open_template(chatml);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_render_fails(j, cases[i].messages, cases[i].tools, cases[i].extra, NK_E_INVALID,
                            "bad_messages", cases[i].named);
    nk_jinja_free(j);
}

static void test_jinja__input_is_bounded(void **state)
{
    nk_jinja *j = open_template("{{ messages | tojson }}");
    char *deep = malloc(300000), *p = deep;

    (void)state;
    for (int i = 0; i < 100000; i++)
        *p++ = '[';
    *p = '\0';
    assert_render_fails(j, deep, NULL, NULL, NK_E_INVALID, "bad_messages", "nested too deeply");
    p = deep + sprintf(deep, "[{\"role\":\"user\",\"content\":\"x\",\"a\":{");
    for (int i = 0; i < 600; i++)
        p += sprintf(p, "%s\"k%d\":1", i ? "," : "", i);
    strcpy(p, "}}]");
    assert_render_fails(j, deep, NULL, NULL, NK_E_INVALID, "bad_messages", "too many keys");
    free(deep);
    deep = malloc(NK_JINJA_INPUT_MAX + 2);
    memset(deep, ' ', NK_JINJA_INPUT_MAX + 1);
    deep[NK_JINJA_INPUT_MAX + 1] = '\0';
    assert_render_fails(j, deep, NULL, NULL, NK_E_INVALID, "bad_messages", "too large");
    free(deep);
    nk_jinja_free(j);
}

static void test_jinja__endless_templates_end(void **state)
{
    static const struct {
        const char *tmpl, *named;
        int code;
    } cases[] = {
        { "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses too deeply", NK_E_INVALID },
        { "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
          "recurses too deeply", NK_E_INVALID },
        { "{% for i in range(1000000000000) %}x{% endfor %}", "range() of more than",
          NK_E_INVALID },
        { "{% for i in range(0, 9223372036854775807, 4611686018427387904) %}{% endfor %}{{ "
          "raise_exception('end') }}",
          "end", NK_E_INVALID },
        { "{% for i in range(9, 0, 0) %}{% endfor %}", "step of 0", NK_E_INVALID },
        { "{% for i in range(90000) %}{% for j in range(90000) %}{% for k in range(90000) %}{% "
          "endfor %}{% endfor %}"
          "{% endfor %}",
          "too many steps", NK_E_INVALID },
        { "{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}{{ i }}{% "
          "endfor %}{% endfor %}"
          "{% endfor %}",
          "larger than 100000 bytes", NK_E_EXHAUSTED },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nk_jinja *j = open_template(cases[i].tmpl);

        assert_render_fails(j, "[]", NULL, NULL, cases[i].code,
                            cases[i].code == NK_E_INVALID ? "bad_template" : "too_large",
                            cases[i].named);
        nk_jinja_free(j);
    }
}

static void *render_often(void *arg)
{
    const struct nk_jinja_input in = { .messages = "[{\"role\":\"user\",\"content\":\"hi\"}]",
                                       .add_generation_prompt = true };
    long n_good = 0;

    for (int i = 0; i < 200; i++) {
        struct nk_buf buf = NK_BUF_INIT(1000);

        n_good +=
            !nk_jinja_render(arg, &in, &buf, NULL) &&
            !strcmp(nk_buf_str(&buf), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        nk_buf_release(&buf);
    }
    return (void *)n_good;
}

static void test_jinja__several_threads_may_render_at_once(void **state)
{
    nk_jinja *j = open_template(chatml);
    pthread_t threads[4];

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, render_often, j), 0);
    for (int i = 0; i < 4; i++) {
        void *n_good;

        pthread_join(threads[i], &n_good);
        assert_int_equal((long)n_good, 200);
    }
    nk_jinja_free(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jinja__renders_a_conversation),
        cmocka_unit_test(test_jinja__renders_tools_and_their_calls),
        cmocka_unit_test(test_jinja__gives_arguments_as_text_where_the_template_wants_text),
        cmocka_unit_test(
            test_jinja__puts_system_text_before_the_user_where_there_is_no_system_role),
        cmocka_unit_test(test_jinja__typed_content_is_made_or_flattened_as_the_template_wants),
        cmocka_unit_test(test_jinja__has_the_functions_that_templates_use),
        cmocka_unit_test(test_jinja__a_template_that_cannot_be_parsed_is_an_error),
        cmocka_unit_test(test_jinja__what_the_template_raises_is_the_error),
        cmocka_unit_test(test_jinja__messages_of_another_shape_are_refused),
        cmocka_unit_test(test_jinja__input_is_bounded),
        cmocka_unit_test(test_jinja__endless_templates_end),
        cmocka_unit_test(test_jinja__several_threads_may_render_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
