/* Tools and the choice among them, and how much a model is to think: OpenAI's shapes, which
 * Ollama's clients send, too. */
#include "gateway/request_int.h"
#include "gateway/tool_form.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_string(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return json_is_string(v) ? 0
                             : nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                                       "must be a string, not %s", nk__json_type(v));
}

/* Names of MCP servers' tools have slashes and colons, and are long. What could end a name in a
 * form of calls (JSON, XML-like elements) is not among the characters. */
int nk__check_tool_name(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *name = json_string_value(v);
    size_t n = name ? strlen(name) : 0;

    if (n && n <= NK_TOOL_NAME_MAX &&
        n == strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/:@+#"))
        return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be 1 to %d of the characters a-z, A-Z, 0-9, _ . - / : @ + and #",
                   NK_TOOL_NAME_MAX);
}

static int check_object(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return json_is_object(v)
               ? 0
               : nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                         "must be an object (a JSON schema), not %s", nk__json_type(v));
}

static int read_strict(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    p->r->tools_strict |= json_is_true(v);
    return 0;
}

/* clang-format off */
const struct nk_field_rule nk__rules_tool_function[] = {
    { "name",        NK_FIELD_YES, nk__check_tool_name, 0, 0, 0,
      "1 to 256 of a-z, A-Z, 0-9, _ . - / : @ + and #" },
    { "description", NK_FIELD_YES, check_string,    0, 0, 0, "given to the template" },
    { "parameters",  NK_FIELD_YES, check_object,    0, 0, 0,
      "a JSON schema; given to the template, and kept to when the call is forced or strict" },
    { "strict",      NK_FIELD_YES, read_strict,     0, 0, 0,
      "calls are held to the schema by a grammar" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */

static const json_t *name_of(const json_t *tool)
{
    return json_object_get(json_object_get(tool, "function"), "name");
}

/* The tool as the template gets it: without the marks that routers and agents put beside it, which
 * would stand in the prompt. NULL: no memory. */
static json_t *take_tool(const json_t *function)
{
    json_t *copy = json_copy((json_t *)function), *out;

    if (copy)
        json_object_del(copy, "cache_control");
    out = copy ? json_pack("{s:s, s:o}", "type", "function", "function", copy) : NULL;
    return out;
}

/* Adds it unless it is there already: clients that gather tools send some twice. */
static int add_tool(struct nk_parse *p, json_t *function)
{
    json_t *tool = take_tool(function), *other;
    size_t i;

    json_array_foreach(p->r->tools, i, other)
    {
        bool same;

        if (!tool || !json_equal(name_of(other), name_of(tool)))
            continue;
        same = json_equal(other, tool);
        json_decref(tool);
        return same ? 0
                    : nk__bad(p, NK_E_INVALID, "bad_value", "name",
                              "\"%s\" is given twice, and not as the same tool",
                              json_string_value(json_object_get(function, "name")));
    }
    if (json_array_append_new(p->r->tools, tool))
        return nk__bad(p, NK_E_EXHAUSTED, "no_memory", "", "no memory for the tool");
    return 0;
}

int nk__read_tools(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    json_t *tool;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of tools, not %s",
                       nk__json_type(v));
    if (json_array_size(v) > NK_TOOLS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu tools; at most %d are possible",
                       json_array_size(v), NK_TOOLS_MAX);
    if (!json_array_size(v))
        return 0;
    p->r->tools = json_array();
    p->takes_unknown = true;
    json_array_foreach((json_t *)v, i, tool)
    {
        json_t *function = json_object_get(tool, "function"), *type = json_object_get(tool, "type"),
               *member;
        const char *name;
        int rc = 0;

        snprintf(p->path, sizeof p->path, "tools[%zu].", i);
        if (!json_is_object(tool))
            return nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                           nk__json_type(tool));
        if (!json_is_string(type) || strcmp(json_string_value(type), "function"))
            return nk__bad(p, NK_E_INVALID, "bad_value", "type",
                           "is \"%.40s\"; only \"function\" is supported",
                           json_is_string(type) ? json_string_value(type) : "");
        json_object_foreach(tool, name, member)
        {
            (void)member;
            if (p->limits->strict && strcmp(name, "type") && strcmp(name, "function"))
                return nk__bad(p, NK_E_INVALID, "unknown_field", name,
                               "unknown field; known are type, function");
        }
        if (!json_is_object(function))
            return nk__bad(p, NK_E_INVALID, "missing_field", "function", "is required: an object");
        snprintf(p->path, sizeof p->path, "tools[%zu].function.", i);
        rc = nk__read_object(p, nk__rules_tool_function, function);
        if (!rc && !json_is_string(json_object_get(function, "name")))
            rc = nk__bad(p, NK_E_INVALID, "missing_field", "name", "is required");
        if (!rc)
            rc = add_tool(p, function);
        if (rc)
            return rc;
    }
    p->takes_unknown = false;
    p->path[0] = '\0';
    return 0;
}

int nk__read_tool_choice(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const struct {
        const char *word;
        enum nk_tool_choice choice;
    } words[] = { { "auto", NK_TOOLS_AUTO },
                  { "none", NK_TOOLS_NONE },
                  { "required", NK_TOOLS_REQUIRED },
                  { "any", NK_TOOLS_REQUIRED } };
    const json_t *name = json_object_get(json_object_get(v, "function"), "name"),
                 *type = json_object_get(v, "type");

    for (size_t i = 0; json_is_string(v) && i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(json_string_value(v), words[i].word)) {
            p->r->tool_choice = words[i].choice;
            return 0;
        }
    if (json_is_string(type) && !strcmp(json_string_value(type), "function") &&
        json_is_string(name)) {
        p->r->tool_choice = NK_TOOLS_NAMED;
        p->r->tool_name = json_string_value(name);
        return 0;
    }
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", "
                   "\"function\": {\"name\": ...}}");
}

/* ---- thinking ---- */

static int take_effort(struct nk_parse *p, const char *name, const json_t *v)
{
    static const char *const words[] = { "none", "minimal", "low", "medium", "high", "xhigh" };

    for (size_t i = 0; json_is_string(v) && i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(json_string_value(v), words[i])) {
            p->r->reasoning_effort = words[i];
            p->r->think = i ? NK_THINK_ON : NK_THINK_OFF;
            return 0;
        }
    return nk__bad(p, NK_E_INVALID, "bad_value", name,
                   "must be \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\"");
}

int nk__read_reasoning_effort(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return take_effort(p, f->name, v);
}

/* true and false, or a word. "high" and its like are for templates that know degrees. */
int nk__read_think(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_boolean(v)) {
        p->r->think = json_is_true(v) ? NK_THINK_ON : NK_THINK_OFF;
        return 0;
    }
    if (json_is_string(v) && !take_effort(p, f->name, v))
        return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be true, false, \"low\", \"medium\" or \"high\"");
}

/* {"type": "enabled" | "disabled"}, as several providers have it. */
int nk__read_thinking(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));

    if (json_is_boolean(v) || json_is_string(v))
        return nk__read_think(p, f, v);
    if (!type || (strcmp(type, "enabled") && strcmp(type, "disabled") && strcmp(type, "auto") &&
                  strcmp(type, "adaptive")))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be {\"type\": \"enabled\"} or {\"type\": \"disabled\"}");
    if (!strcmp(type, "enabled") || !strcmp(type, "disabled"))
        p->r->think = type[0] == 'e' ? NK_THINK_ON : NK_THINK_OFF;
    return 0;
}

/* {"effort": ...}, {"enabled": ...}: OpenRouter's, and OpenAI's in Responses. */
int nk__read_reasoning(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const json_t *effort = json_object_get(v, "effort"), *enabled = json_object_get(v, "enabled");

    if (json_is_boolean(v) || json_is_string(v))
        return nk__read_think(p, f, v);
    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be an object such as {\"effort\": \"low\"}, not %s", nk__json_type(v));
    if (json_is_boolean(enabled))
        p->r->think = json_is_true(enabled) ? NK_THINK_ON : NK_THINK_OFF;
    return effort && !json_is_null(effort) ? take_effort(p, f->name, effort) : 0;
}
