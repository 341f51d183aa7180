/* Messages in OpenAI's shape, which templates get, from dialects that have blocks or items. */
#include "gateway/request_int.h"

#include <string.h>

int nk__build_text(struct nk_parse *p, struct nk_buf *to, const json_t *text)
{
    int rc = to->size ? nk_buf_adds(to, "\n", NULL) : 0;

    if (!rc)
        rc = nk_buf_add(to, json_string_value(text), json_string_length(text), NULL);
    return rc ? nk__build_no_memory(p) : 0;
}

int nk__build_no_memory(struct nk_parse *p)
{
    return nk__bad(p, NK_E_EXHAUSTED, "no_memory", "", "no memory for the messages");
}

static json_t *last_message(const struct nk_parse *p)
{
    size_t n = json_array_size(p->r->messages);

    return n ? json_array_get(p->r->messages, n - 1) : NULL;
}

int nk__build_end(struct nk_parse *p)
{
    json_t *m = p->joining;

    p->joining = NULL;
    return m && json_object_set_new(m, "content",
                                    json_stringn(nk_buf_str(&p->joined), p->joined.size))
               ? nk__build_no_memory(p)
               : 0;
}

static int join(struct nk_parse *p, json_t *last, const struct nk_buf *content)
{
    int rc = 0;

    if (p->joining != last) {
        p->joining = last;
        nk_buf_reset(&p->joined);
        rc = nk__build_text(p, &p->joined, json_object_get(last, "content"));
    }
    if (!rc && p->joined.size)
        rc = nk_buf_adds(&p->joined, "\n", NULL);
    if (!rc)
        rc = nk_buf_add(&p->joined, nk_buf_str(content), content->size, NULL);
    return rc ? nk__build_no_memory(p) : 0;
}

int nk__build_message(struct nk_parse *p, const char *role, const struct nk_buf *content)
{
    json_t *last = last_message(p), *m;
    const char *last_role = json_string_value(json_object_get(last, "role"));
    int rc;

    /* Two of one role in a row are one turn: many templates want turns to alternate. */
    if (last && !strcmp(last_role, role) && (!strcmp(role, "user") || !strcmp(role, "system")))
        return join(p, last, content);
    rc = nk__build_end(p);
    if (rc)
        return rc;
    if (json_array_size(p->r->messages) >= (size_t)p->limits->messages_max) {
        p->path[0] = '\0';
        return nk__bad(p, NK_E_INVALID, "too_many", nk__api_input(p->r->api),
                       "more than %d messages; that many are possible", p->limits->messages_max);
    }
    m = json_pack("{s:s, s:o}", "role", role, "content",
                  json_stringn(nk_buf_str(content), content->size));
    return !m || json_array_append_new(p->r->messages, m) ? nk__build_no_memory(p) : 0;
}

int nk__build_tool_result(struct nk_parse *p, const char *call_id, const struct nk_buf *content)
{
    int rc = nk__build_message(p, "tool", content);

    if (!rc && json_object_set_new(last_message(p), "tool_call_id",
                                   json_string(nk__call_id_plain(call_id))))
        rc = nk__build_no_memory(p);
    return rc;
}

int nk__build_reasoning(struct nk_parse *p, const struct nk_buf *reasoning)
{
    if (!reasoning->size)
        return 0;
    return json_object_set_new(last_message(p), "reasoning_content",
                               json_stringn(reasoning->data, reasoning->size))
               ? nk__build_no_memory(p)
               : 0;
}

int nk__build_call(struct nk_parse *p, const char *id, const char *name, const char *arguments)
{
    json_t *m = last_message(p), *calls = json_object_get(m, "tool_calls");

    if (!calls) {
        calls = json_array();
        if (!calls || json_object_set_new(m, "tool_calls", calls))
            return nk__build_no_memory(p);
    }
    return json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id",
                                                  nk__call_id_plain(id), "type", "function",
                                                  "function", "name", name, "arguments", arguments))
               ? nk__build_no_memory(p)
               : 0;
}

const char *nk__call_id_plain(const char *id)
{
    static const char *const prefixes[] = { "toolu_", "call_" };

    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        size_t n = strlen(prefixes[i]);

        if (!strncmp(id, prefixes[i], n) && strlen(id + n) == 9 &&
            strspn(id + n, "abcdefghijklmnopqrstuvwxyz0123456789") == 9)
            return id + n;
    }
    return id;
}

bool nk__is_one_of(const json_t *v, const char *const *words)
{
    for (; json_is_string(v) && *words; words++)
        if (!strcmp(json_string_value(v), *words))
            return true;
    return false;
}

int nk__build_tool(struct nk_parse *p, const json_t *tool, const char *schema_name)
{
    static const struct nk_field_rule name_rule = { .name = "name" };
    json_t *name = json_object_get(tool, "name"), *schema = json_object_get(tool, schema_name);
    json_t *text = json_object_get(tool, "description"), *strict = json_object_get(tool, "strict");
    json_t *function, *other = NULL, *made;
    size_t i;
    int rc;

    /* Also those that are given twice: each is compared with all before it. */
    if (p->n_tools++ == NK_TOOLS_MAX) {
        p->path[0] = '\0';
        return nk__bad(p, NK_E_INVALID, "too_many", "tools",
                       "more than %d tools; that many are possible", NK_TOOLS_MAX);
    }
    if (!name || json_is_null(name))
        return nk__bad(p, NK_E_INVALID, "missing_field", "name", "is required");
    rc = nk__check_tool_name(p, &name_rule, name);
    if (rc)
        return rc;
    if (text && !json_is_null(text) && !json_is_string(text))
        return nk__bad(p, NK_E_INVALID, "bad_value", "description", "must be a string, not %s",
                       nk__json_type(text));
    if (schema && !json_is_null(schema) && !json_is_object(schema))
        return nk__bad(p, NK_E_INVALID, "bad_value", schema_name,
                       "must be an object (a JSON schema), not %s", nk__json_type(schema));
    if (strict && !json_is_null(strict) && !json_is_boolean(strict))
        return nk__bad(p, NK_E_INVALID, "bad_value", "strict", "must be true or false, not %s",
                       nk__json_type(strict));
    function = json_pack("{s:O}", "name", name);
    rc = !function;
    if (!rc && json_is_string(text))
        rc = json_object_set(function, "description", text);
    if (!rc && json_is_object(schema))
        rc = json_object_set(function, "parameters", schema);
    if (!rc && json_is_true(strict)) {
        p->r->tools_strict = true;
        rc = json_object_set(function, "strict", strict);
    }
    if (!rc && !p->r->tools)
        rc = !(p->r->tools = json_array());
    if (rc) {
        json_decref(function);
        return nk__build_no_memory(p);
    }
    made = json_pack("{s:s, s:o}", "type", "function", "function", function);
    json_array_foreach(p->r->tools, i, other)
    {
        if (json_equal(json_object_get(json_object_get(other, "function"), "name"), name))
            break;
    }
    if (i < json_array_size(p->r->tools)) { /* clients that gather tools send some twice */
        bool same = json_equal(other, made);

        json_decref(made);
        return same ? 0
                    : nk__bad(p, NK_E_INVALID, "bad_value", "name",
                              "\"%s\" is given twice, and not as the same tool",
                              json_string_value(name));
    }
    return json_array_append_new(p->r->tools, made) ? nk__build_no_memory(p) : 0;
}
