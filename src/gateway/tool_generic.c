#include "gateway/tool_generic.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

enum { TEXT_BYTES_MAX = 64 << 20 };

static const char *string_of(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));

    return s ? s : "";
}

static int add_json(struct nk_buf *out, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY);
    int rc = text ? nk_buf_adds(out, text, NULL) : NK_E_EXHAUSTED;

    free(text);
    return rc;
}

static int explain(struct nk_buf *out, const json_t *tools)
{
    const json_t *tool;
    size_t i;
    int rc = nk_buf_adds(out,
                         "You can call functions. Each line is one, with the JSON schema of its "
                         "parameters:\n<tools>\n",
                         NULL);

    json_array_foreach((json_t *)tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function");

        rc = rc ? rc : add_json(out, function ? function : tool);
        rc = rc ? rc : nk_buf_adds(out, "\n", NULL);
    }
    return rc ? rc
              : nk_buf_adds(
                    out,
                    "</tools>\nTo call one, write this and nothing after it, once for each "
                    "call:\n<tool_call>\n{\"name\": \"the function's name\", "
                    "\"arguments\": {\"the parameter's name\": value}}\n</tool_call>\n"
                    "The results come in <tool_response></tool_response>. If no function is "
                    "needed, answer as usual.",
                    NULL);
}

/* The assistant's text with its calls as the model is told to write them. */
static int write_calls(struct nk_buf *out, const json_t *m)
{
    const json_t *call;
    size_t i;
    int rc = nk_buf_adds(out, string_of(m, "content"), NULL);

    json_array_foreach(json_object_get(m, "tool_calls"), i, call)
    {
        const json_t *function = json_object_get(call, "function"),
                     *arguments = json_object_get(function, "arguments");

        rc = rc ? rc : nk_buf_addf(out, NULL, "%s<tool_call>\n{\"name\": ", out->size ? "\n" : "");
        rc = rc ? rc : add_json(out, json_object_get(function, "name"));
        rc = rc ? rc : nk_buf_adds(out, ", \"arguments\": ", NULL);
        if (!rc && json_is_string(arguments))
            rc = nk_buf_adds(
                out, json_string_length(arguments) ? json_string_value(arguments) : "{}", NULL);
        else if (!rc)
            rc = add_json(out, arguments);
        rc = rc ? rc : nk_buf_adds(out, "}\n</tool_call>", NULL);
    }
    return rc;
}

/* The text as the content of a new last message, with what else `from` has. */
static int end_message(json_t *list, const char *role, const json_t *from, struct nk_buf *text)
{
    json_t *m = from ? json_copy((json_t *)from) : json_object();
    int rc = 0;

    if (!m || json_object_set_new(m, "role", json_string(role)) ||
        json_object_set_new(m, "content", json_stringn(nk_buf_str(text), text->size)))
        rc = NK_E_EXHAUSTED;
    json_object_del(m, "tool_calls");
    json_object_del(m, "tool_call_id");
    if (rc)
        json_decref(m);
    else if (json_array_append_new(list, m))
        rc = NK_E_EXHAUSTED;
    nk_buf_reset(text);
    return rc;
}

json_t *nk__tool_generic_messages(const json_t *messages, const json_t *tools)
{
    json_t *list = json_array(), *m;
    struct nk_buf text = NK_BUF_INIT(TEXT_BYTES_MAX);
    size_t i, n = json_array_size(messages);
    bool first_is_system = n && !strcmp(string_of(json_array_get(messages, 0), "role"), "system");
    int rc = list ? 0 : NK_E_EXHAUSTED;

    if (!rc && tools && !first_is_system) {
        rc = explain(&text, tools);
        rc = rc ? rc : end_message(list, "system", NULL, &text);
    }
    json_array_foreach((json_t *)messages, i, m)
    {
        const char *role = string_of(m, "role");
        json_t *next = json_array_get(messages, i + 1);

        if (rc)
            break;
        if (!i && first_is_system && tools) {
            rc = nk_buf_addf(&text, NULL, "%s\n\n", string_of(m, "content"));
            rc = rc ? rc : explain(&text, tools);
            rc = rc ? rc : end_message(list, "system", m, &text);
        } else if (json_array_size(json_object_get(m, "tool_calls"))) {
            rc = write_calls(&text, m);
            rc = rc ? rc : end_message(list, "assistant", m, &text);
        } else if (!strcmp(role, "tool")) {
            rc = nk_buf_addf(&text, NULL, "%s<tool_response>\n%s\n</tool_response>",
                             text.size ? "\n" : "", string_of(m, "content"));
            /* Results one after the other are one turn: templates want roles that alternate. */
            if (!rc && strcmp(string_of(next, "role"), "tool"))
                rc = end_message(list, "user", NULL, &text);
        } else
            rc = json_array_append(list, m) ? NK_E_EXHAUSTED : 0;
    }
    nk_buf_release(&text);
    if (rc) {
        json_decref(list);
        return NULL;
    }
    return list;
}
