/* Renders chat templates for tests/system/test_templates.py. Input: JSON objects, one a line:
 * template, messages, tools, extra, add_generation_prompt, now. Output: {"text": ...} or
 * {"error": ...}, one a line. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"

static char *member(const json_t *v, const char *key)
{
    const json_t *m = json_object_get(v, key);

    return m && !json_is_null(m) ? json_dumps(m, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
}

/* The template of the line before is often this one's, too. */
static nk_jinja *parsed;
static char *parsed_text;

static int parse(const char *text, struct nk_error *err)
{
    if (parsed && !strcmp(parsed_text, text))
        return 0;
    nk_jinja_free(parsed);
    free(parsed_text);
    parsed = NULL;
    parsed_text = strdup(text);
    return nk_jinja_new(&parsed, text, "<s>", "</s>", err);
}

static int render(const json_t *v, struct nk_buf *out, struct nk_error *err)
{
    char *messages = member(v, "messages"), *tools = member(v, "tools"),
         *extra = member(v, "extra");
    int rc = parse(json_string_value(json_object_get(v, "template")), err);

    if (!rc)
        rc = nk_jinja_render(
            parsed,
            &(struct nk_jinja_input){ .messages = messages,
                                      .tools = tools,
                                      .extra = extra,
                                      .add_generation_prompt =
                                          json_is_true(json_object_get(v, "add_generation_prompt")),
                                      .now = json_integer_value(json_object_get(v, "now")) },
            out, err);
    free(messages);
    free(tools);
    free(extra);
    return rc;
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        json_t *v = json_loads(line, 0, NULL), *answer;
        struct nk_buf out = NK_BUF_INIT(1 << 20);
        struct nk_error err = { 0 };

        if (!v)
            return 1;
        answer = render(v, &out, &err) ? json_pack("{s:s}", "error", err.msg)
                                       : json_pack("{s:s}", "text", nk_buf_str(&out));
        json_dumpf(answer, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(answer);
        json_decref(v);
        nk_buf_release(&out);
    }
    free(line);
    nk_jinja_free(parsed);
    free(parsed_text);
    return 0;
}
