/* The fields of OpenAI's chat completions and completions, with the extras that llama-server has
 * under its names. https://platform.openai.com/docs/api-reference/chat/create and
 * .../completions/create; llama.cpp's tools/server. */
#include "gateway/request_int.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OFFSET(field) offsetof(struct nk_request, field)
#define SAMPLING(member)                                                                           \
    (offsetof(struct nk_request, sampling) + offsetof(struct nk_sampling, member))

/* ---- messages ---- */

/* Content as one string: a string, or parts of type text, joined by newlines. *text: owned by the
 * caller. */
static int content_text(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v,
                        json_t **text)
{
    struct nk_buf joined = NK_BUF_INIT(SIZE_MAX / 4);
    size_t i;
    json_t *part;
    int rc = 0;

    if (json_is_string(v)) {
        *text = json_incref((json_t *)v);
        return 0;
    }
    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string or a list of parts, not %s", nk__json_type(v));
    json_array_foreach((json_t *)v, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type")), *name;
        json_t *member, *one = json_object_get(part, "text");

        if (!type || (strcmp(type, "text") && strcmp(type, "refusal"))) {
            rc = nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                         "part %zu has the type \"%.40s\"; only \"text\" is supported", i,
                         type ? type : "");
            break;
        }
        if (!strcmp(type, "refusal"))
            one = json_object_get(part, "refusal");
        if (!json_is_string(one)) {
            rc = nk__bad(p, NK_E_INVALID, "bad_value", f->name, "part %zu has no text", i);
            break;
        }
        json_object_foreach(part, name, member)
        {
            (void)member;
            if (strcmp(name, "type") && strcmp(name, type)) {
                rc = nk__bad(p, NK_E_INVALID, "unknown_field", f->name,
                             "part %zu has the unknown field \"%.40s\"", i, name);
                break;
            }
        }
        if (!rc && joined.size)
            rc = nk_buf_adds(&joined, "\n", &p->e->err);
        if (rc ||
            (rc = nk_buf_add(&joined, json_string_value(one), json_string_length(one), &p->e->err)))
            break;
    }
    if (!rc) {
        *text = json_stringn(joined.size ? joined.data : "", joined.size);
        if (!*text)
            rc = nk__bad(p, NK_E_EXHAUSTED, "no_memory", f->name, "no memory for %zu bytes",
                         joined.size);
    }
    nk_buf_release(&joined);
    return rc;
}

/* The readers of a message's fields check only; take_message builds what the template gets. */
static int check_content(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_t *text;
    int rc = content_text(p, f, v, &text);

    if (!rc)
        json_decref(text);
    return rc;
}

static int check_string(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return json_is_string(v) ? 0
                             : nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                                       "must be a string, not %s", nk__json_type(v));
}

static int check_role(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };

    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (json_is_string(v) && !strcmp(json_string_value(v), roles[i]))
            return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"");
}

static int check_empty(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if ((json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v)))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only an empty one is supported: %s",
                   f->note);
}

/* OpenAI's calls carry the arguments as JSON in a string, Ollama's as an object; templates get
 * OpenAI's. */
static int check_tool_calls(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    json_t *call;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list, not %s",
                       nk__json_type(v));
    json_array_foreach((json_t *)v, i, call)
    {
        const json_t *function = json_object_get(call, "function");
        const json_t *type = json_object_get(call, "type"),
                     *arguments = json_object_get(function, "arguments");

        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "function")))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "call %zu: the type must be \"function\"", i);
        if (!json_is_string(json_object_get(function, "name")))
            return nk__bad(p, NK_E_INVALID, "missing_field", f->name,
                           "call %zu has no function.name", i);
        if (nk__api_is_openai(p->r->api) && !json_is_string(arguments))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "call %zu: function.arguments must be a string with JSON in it", i);
        if (!nk__api_is_openai(p->r->api) && arguments && !json_is_object(arguments))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "call %zu: function.arguments must be an object", i);
        if (json_is_string(arguments) && json_string_length(arguments)) {
            json_t *parsed = json_loadb(json_string_value(arguments), json_string_length(arguments),
                                        JSON_DECODE_ANY, NULL);

            json_decref(parsed);
            if (!parsed)
                return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                               "call %zu: function.arguments is not JSON", i);
        }
    }
    return 0;
}

/* clang-format off */
const struct nk_field_rule nk__rules_message[] = {
    { "role",              NK_FIELD_YES,     check_role,       0, 0, 0,
      "system, developer (taken as system), user, assistant, tool" },
    { "content",           NK_FIELD_YES,     check_content,    0, 0, 0,
      "text, or parts of type text, which are joined by a newline, as llama-server does" },
    { "name",              NK_FIELD_YES,     check_string,     0, 0, 0, "given to the template" },
    { "tool_calls",        NK_FIELD_YES,     check_tool_calls, 0, 0, 0,
      "of an assistant's message" },
    { "tool_call_id",      NK_FIELD_YES,     check_string,     0, 0, 0, "of a tool's message" },
    { "reasoning_content", NK_FIELD_YES,     check_string,     0, 0, 0,
      "of an assistant's message; given to the template" },
    { "refusal",           NK_FIELD_FIXED,   check_empty,      0, 0, 0, "null" },
    { "annotations",       NK_FIELD_FIXED,   check_empty,      0, 0, 0, "null or []" },
    { "audio",             NK_FIELD_REFUSED, NULL,             0, 0, 0, "only text" },
    { "function_call",     NK_FIELD_REFUSED, NULL,             0, 0, 0, "replaced by tool_calls" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */

/* One checked message as the template gets it. NULL: no memory. */
static json_t *take_message(struct nk_parse *p, const json_t *m)
{
    static const struct nk_field_rule content_rule = { .name = "content" };
    const char *role = json_string_value(json_object_get(m, "role"));
    const json_t *content = json_object_get(m, "content"),
                 *calls = json_object_get(m, "tool_calls");
    const json_t *reasoning =
        json_object_get(m, nk__api_is_openai(p->r->api) ? "reasoning_content" : "thinking");
    json_t *out = json_object(), *text = NULL, *call;
    size_t i;
    bool ok = out != NULL;

    if (content && !json_is_null(content))
        ok = ok && !content_text(p, &content_rule, content, &text);
    else
        text = json_string("");
    ok =
        ok && text &&
        !json_object_set_new(out, "role", json_string(strcmp(role, "developer") ? role : "system"));
    ok = ok && !json_object_set(out, "content", text);
    json_decref(text);
    if (json_is_string(reasoning))
        ok = ok && !json_object_set(out, "reasoning_content", (json_t *)reasoning);
    for (int k = 0; k < 3; k++) {
        static const char *const names[][2] = { { "name", "name" },
                                                { "tool_call_id", "tool_call_id" },
                                                { "tool_name", "name" } };
        json_t *v = json_object_get(m, names[k][0]);

        if (json_is_string(v))
            ok = ok && !json_object_set(out, names[k][1], v);
    }
    if (json_is_array(calls) && json_array_size(calls)) {
        json_t *list = json_array();

        ok = ok && list && !json_object_set_new(out, "tool_calls", list);
        json_array_foreach((json_t *)calls, i, call)
        {
            json_t *function = json_object_get(call, "function"),
                   *arguments = json_object_get(function, "arguments");
            json_t *id = json_object_get(call, "id");
            char *dumped = json_is_object(arguments) ? json_dumps(arguments, JSON_COMPACT) : NULL;

            ok = ok &&
                 !json_array_append_new(
                     list, json_pack("{s:O*, s:s, s:{s:O, s:s}}", "id",
                                     json_is_string(id) ? id : NULL, "type", "function", "function",
                                     "name", json_object_get(function, "name"), "arguments",
                                     dumped ? dumped
                                     : arguments && json_string_length(arguments)
                                         ? json_string_value(arguments)
                                         : "{}"));
            free(dumped);
        }
    }
    if (!ok) {
        json_decref(out);
        out = NULL;
    }
    return out;
}

int nk__read_messages(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    json_t *m;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of messages, not %s",
                       nk__json_type(v));
    if (!json_array_size(v)) {
        if (!nk__api_is_openai(p->r->api))
            return 0;
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "is empty; at least one message is needed");
    }
    if (json_array_size(v) > (size_t)p->limits->messages_max)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name,
                       "%zu messages; at most %d are possible", json_array_size(v),
                       p->limits->messages_max);
    p->r->messages = json_array();
    json_array_foreach((json_t *)v, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role"));
        const json_t *content = json_object_get(m, "content"),
                     *calls = json_object_get(m, "tool_calls");
        int rc = 0;

        snprintf(p->path, sizeof p->path, "messages[%zu].", i);
        if (!json_is_object(m))
            rc = nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                         nk__json_type(m));
        else if (!role)
            rc = nk__bad(p, NK_E_INVALID, "missing_field", "role", "is required");
        else
            rc = nk__read_object(p, p->message_rules, m);
        if (!rc && (!content || json_is_null(content)) &&
            (strcmp(role, "assistant") ||
             (nk__api_is_openai(p->r->api) && !json_array_size(calls))))
            rc = nk__bad(p, NK_E_INVALID, "missing_field", "content", "is required");
        if (!rc && json_array_size(calls) && strcmp(role, "assistant"))
            rc = nk__bad(p, NK_E_INVALID, "bad_value", "tool_calls",
                         "only an assistant's message has them");
        if (!rc && nk__api_is_openai(p->r->api) && !strcmp(role, "tool") &&
            !json_is_string(json_object_get(m, "tool_call_id")))
            rc = nk__bad(p, NK_E_INVALID, "missing_field", "tool_call_id",
                         "is required in a tool's message");
        if (rc)
            return rc;
        if (json_array_append_new(p->r->messages, take_message(p, m)))
            return nk__bad(p, NK_E_EXHAUSTED, "no_memory", "", "no memory for the message");
    }
    p->path[0] = '\0';
    return 0;
}

/* ---- tools ---- */

int nk__check_tool_name(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *name = json_string_value(v);
    size_t n = name ? strlen(name) : 0;

    if (n && n <= NK_TOOL_NAME_MAX &&
        n == strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"))
        return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be 1 to %d of the characters a-z, A-Z, 0-9, _, . and -", NK_TOOL_NAME_MAX);
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
    { "name",        NK_FIELD_YES, nk__check_tool_name, 0, 0, 0, "" },
    { "description", NK_FIELD_YES, check_string,    0, 0, 0, "given to the template" },
    { "parameters",  NK_FIELD_YES, check_object,    0, 0, 0,
      "a JSON schema; given to the template, and kept to when the call is forced or strict" },
    { "strict",      NK_FIELD_YES, read_strict,     0, 0, 0,
      "calls are held to the schema by a grammar" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */

int nk__read_tools(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i, k;
    json_t *tool, *member;
    const char *name;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of tools, not %s",
                       nk__json_type(v));
    if (json_array_size(v) > NK_TOOLS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu tools; at most %d are possible",
                       json_array_size(v), NK_TOOLS_MAX);
    if (!json_array_size(v))
        return 0;
    json_array_foreach((json_t *)v, i, tool)
    {
        json_t *function = json_object_get(tool, "function"), *type = json_object_get(tool, "type");
        int rc = 0;

        snprintf(p->path, sizeof p->path, "tools[%zu].", i);
        if (!json_is_object(tool))
            return nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                           nk__json_type(tool));
        if (!json_is_string(type) || strcmp(json_string_value(type), "function"))
            return nk__bad(p, NK_E_INVALID, "bad_value", "type", "must be \"function\"");
        json_object_foreach(tool, name, member)
        {
            (void)member;
            if (strcmp(name, "type") && strcmp(name, "function"))
                return nk__bad(p, NK_E_INVALID, "unknown_field", name,
                               "unknown field; known are type, function");
        }
        if (!json_is_object(function))
            return nk__bad(p, NK_E_INVALID, "missing_field", "function", "is required: an object");
        snprintf(p->path, sizeof p->path, "tools[%zu].function.", i);
        rc = nk__read_object(p, nk__rules_tool_function, function);
        if (rc)
            return rc;
        if (!json_object_get(function, "name"))
            return nk__bad(p, NK_E_INVALID, "missing_field", "name", "is required");
        for (k = 0; k < i; k++)
            if (json_equal(
                    json_object_get(json_object_get(json_array_get(v, k), "function"), "name"),
                    json_object_get(function, "name")))
                return nk__bad(p, NK_E_INVALID, "bad_value", "name", "\"%s\" is given twice",
                               json_string_value(json_object_get(function, "name")));
    }
    p->path[0] = '\0';
    p->r->tools = json_incref((json_t *)v);
    return 0;
}

static int read_tool_choice(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const words[] = {
        [NK_TOOLS_AUTO] = "auto", [NK_TOOLS_NONE] = "none", [NK_TOOLS_REQUIRED] = "required"
    };
    const json_t *name = json_object_get(json_object_get(v, "function"), "name"),
                 *type = json_object_get(v, "type");

    for (int i = 0; json_is_string(v) && i < 3; i++)
        if (!strcmp(json_string_value(v), words[i])) {
            p->r->tool_choice = (enum nk_tool_choice)i;
            return 0;
        }
    if (json_is_object(v) && json_object_size(v) == 2 && json_is_string(type) &&
        !strcmp(json_string_value(type), "function") && json_is_string(name)) {
        p->r->tool_choice = NK_TOOLS_NAMED;
        p->r->tool_name = json_string_value(name);
        return 0;
    }
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", "
                   "\"function\": {\"name\": ...}}");
}

/* ---- the rest ---- */

static int read_logit_bias(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *key;
    json_t *bias;
    int n = 0;

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be an object of token ids and numbers, not %s", nk__json_type(v));
    if (json_object_size(v) > NK_LOGIT_BIAS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu entries; at most %d are possible",
                       json_object_size(v), NK_LOGIT_BIAS_MAX);
    if (!json_object_size(v))
        return 0;
    p->r->logit_bias = calloc(json_object_size(v), sizeof *p->r->logit_bias);
    if (!p->r->logit_bias)
        return nk__bad(p, NK_E_EXHAUSTED, "no_memory", f->name, "no memory");
    json_object_foreach((json_t *)v, key, bias)
    {
        char *end;
        long long id = strtoll(key, &end, 10);

        if (!isdigit((unsigned char)key[0]) || *end || id > INT32_MAX)
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "\"%.40s\" is not a token id",
                           key);
        if (!json_is_number(bias) ||
            !(json_number_value(bias) >= -100 && json_number_value(bias) <= 100))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "the bias of token %lld must be a number from -100 to 100", id);
        /* -100 bans and 100 all but forces, says OpenAI; 100 is far beyond any logit's distance,
         * but not a ban. */
        p->r->logit_bias[n++] = (struct nk_logit_bias){
            .id = (int32_t)id,
            /* "-100 ... a ban", says OpenAI's reference */
            .bias = json_number_value(bias) == -100 ? -INFINITY : (float)json_number_value(bias),
        };
    }
    p->r->sampling.logit_bias = p->r->logit_bias;
    p->r->sampling.n_logit_bias = n;
    return 0;
}

static int read_max_tokens(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i = json_integer_value(v);

    if (!json_is_integer(v) || (i < 1 && i != -1) || i > INT32_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a positive integer, or -1 for as many as the context holds");
    if (p->seen_max_tokens && p->r->n_predict != (int)i)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "max_tokens and max_completion_tokens differ; give one of them");
    p->seen_max_tokens = true;
    p->r->n_predict = (int)i;
    return 0;
}

static int read_content(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc = nk__read_string(p, f, v);

    p->r->prompts[0].size = json_string_length(v);
    p->r->n_prompts = rc ? 0 : 1;
    return rc;
}

static int read_tokens(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    struct nk_prompt *ids = &p->r->prompts[0];

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of token ids, not %s",
                       nk__json_type(v));
    p->r->n_prompts = 1;
    return nk__read_ids(p, f->name, v, &ids->ids, &ids->n_ids);
}

static int read_n(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i = json_integer_value(v);

    if (!json_is_integer(v) || i < 1)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a positive integer");
    if (i > p->limits->n_max)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name,
                       "%lld choices; at most %d are possible", (long long)i, p->limits->n_max);
    p->r->n = (int)i;
    return 0;
}

static int read_response_format(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type")), *name;
    const json_t *schema = json_object_get(v, "json_schema");
    json_t *member;

    if (!json_is_object(v) || !type)
        return nk__bad(
            p, NK_E_INVALID, "bad_value", f->name,
            "must be an object with a type: \"text\", \"json_object\" or \"json_schema\"");
    json_object_foreach((json_t *)v, name, member)
    {
        (void)member;
        if (strcmp(name, "type") && (strcmp(name, "json_schema") || strcmp(type, "json_schema")))
            return nk__bad(p, NK_E_INVALID, "unknown_field", f->name,
                           "the unknown field \"%.40s\" for type \"%.40s\"", name, type);
    }
    if (!strcmp(type, "text"))
        p->r->format = NK_FORMAT_TEXT;
    else if (!strcmp(type, "json_object"))
        p->r->format = NK_FORMAT_JSON;
    else if (!strcmp(type, "json_schema")) {
        if (!json_is_object(schema) || !json_is_object(json_object_get(schema, "schema")))
            return nk__bad(p, NK_E_INVALID, "missing_field", "response_format.json_schema.schema",
                           "is required: a JSON schema (an object)");
        json_object_foreach((json_t *)schema, name, member)
        {
            /* The schema is always kept to, so that strict true and false are both true to it. */
            if (strcmp(name, "name") && strcmp(name, "description") && strcmp(name, "schema") &&
                strcmp(name, "strict"))
                return nk__bad(p, NK_E_INVALID, "unknown_field", f->name,
                               "json_schema has the unknown field \"%.40s\"", name);
        }
        p->r->format = NK_FORMAT_SCHEMA;
        p->r->schema = json_object_get(schema, "schema");
    } else
        return nk__bad(
            p, NK_E_INVALID, "bad_value", f->name,
            "the type \"%.40s\" is not known; \"text\", \"json_object\" and \"json_schema\" are",
            type);
    return 0;
}

static int read_include_obfuscation(struct nk_parse *p, const struct nk_field_rule *f,
                                    const json_t *v)
{
    return nk__read_only_false(p, f, v);
}

/* clang-format off */
const struct nk_field_rule nk__rules_stream_options[] = {
    { "include_usage",       NK_FIELD_YES,   nk__read_bool, OFFSET(include_usage), 0, 0,
      "a last chunk with the counts" },
    { "include_obfuscation", NK_FIELD_FIXED, read_include_obfuscation, 0, 0, 0,
      "false; sizes are not padded" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */

static int read_stream_options(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc;

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    snprintf(p->path, sizeof p->path, "stream_options.");
    rc = nk__read_object(p, nk__rules_stream_options, v);
    p->path[0] = '\0';
    return rc;
}

static int read_object_field(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    *(const json_t **)((char *)p->r + f->offset) = v;
    return 0;
}

static int read_reasoning_effort(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const words[] = { "none", "minimal", "low", "medium", "high", "xhigh" };

    for (size_t i = 0; json_is_string(v) && i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(json_string_value(v), words[i])) {
            p->r->reasoning_effort = words[i];
            p->r->think = i ? NK_THINK_ON : NK_THINK_OFF;
            return 0;
        }
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \"xhigh\"");
}

static int read_cache_salt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v) || !json_string_length(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string that is not empty, not %s", nk__json_type(v));
    p->r->cache_salt = json_string_value(v);
    return 0;
}

static int read_cache_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    p->r->no_reuse = json_is_false(v);
    return 0;
}

static int only_one_of(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v,
                       const char *a, const char *b)
{
    const char *s = json_string_value(v);

    if (s && (!strcmp(s, a) || !strcmp(s, b)))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only \"%s\" is supported: %s", a,
                   f->note);
}

static int read_service_tier(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return only_one_of(p, f, v, "auto", "default");
}

static int read_modalities(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *one = json_string_value(json_array_get(v, 0));

    if (json_array_size(v) == 1 && one && !strcmp(one, "text"))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only [\"text\"] is supported");
}

static int read_best_of(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_integer(v) && json_integer_value(v) == 1)
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only 1 is supported: %s", f->note);
}

static int read_completion_logprobs(struct nk_parse *p, const struct nk_field_rule *f,
                                    const json_t *v)
{
    json_int_t i = json_integer_value(v);

    if (!json_is_integer(v) || i < 0 || i > NK_LOGPROBS_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer from 0 to %d",
                       NK_LOGPROBS_MAX);
    p->r->n_logprobs = (int)i;
    return 0;
}

static int read_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t n = json_array_size(v);
    bool is_ids = json_is_array(v) && n && json_is_integer(json_array_get(v, 0));

    if (!json_is_string(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string, a list of strings, token ids, or a list of those, not %s",
                       nk__json_type(v));
    if (json_is_array(v) && !n)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "is an empty list");
    if (json_is_string(v) || is_ids)
        n = 1;
    if (n > NK_PROMPTS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu prompts; at most %d are possible",
                       n, NK_PROMPTS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_string(v) || is_ids ? v : json_array_get(v, i);
        struct nk_prompt *prompt = &p->r->prompts[i];

        if (json_is_string(one)) {
            prompt->text = json_string_value(one);
            prompt->size = json_string_length(one);
        } else if (json_is_array(one) && json_array_size(one)) {
            int rc = nk__read_ids(p, f->name, one, &prompt->ids, &prompt->n_ids);

            if (rc)
                return rc;
        } else
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "prompt %zu is neither a string nor a list of token ids", i);
        p->r->n_prompts++;
    }
    return 0;
}

/* clang-format off */
#define SHARED_RULES \
    { "model",              NK_FIELD_YES, nk__read_string, OFFSET(model), 0, 0, \
      "a name that /v1/models lists" }, \
    { "stream",             NK_FIELD_YES, nk__read_bool, OFFSET(stream), 0, 0, \
      "server-sent events, ended by [DONE]" }, \
    { "stream_options",     NK_FIELD_YES, read_stream_options, 0, 0, 0, "" }, \
    { "max_tokens",         NK_FIELD_YES, read_max_tokens, 0, 0, 0, \
      "-1: as many as the context holds; not given: a share of it, the workers' context by " \
      "their sequences" }, \
    { "temperature",        NK_FIELD_YES, nk__read_float, SAMPLING(temperature), 0, 100, \
      "0: greedy; default 0.8" }, \
    { "top_p",              NK_FIELD_YES, nk__read_float, SAMPLING(top_p), 0, 1, "default 0.95" }, \
    { "seed",               NK_FIELD_YES, nk__read_seed, 0, 0, 0, \
      "the same seed gives the same text; choice i has seed + i; -1: a random one" }, \
    { "stop",               NK_FIELD_YES, nk__read_stop, 0, 0, 0, "a string, or up to 16" }, \
    { "n",                  NK_FIELD_YES, read_n, 0, 0, 0, \
      "each choice is a generation of its own" }, \
    { "presence_penalty",   NK_FIELD_YES, nk__read_float, SAMPLING(presence_penalty), -2, 2, "" }, \
    { "frequency_penalty",  NK_FIELD_YES, nk__read_float, SAMPLING(frequency_penalty), -2, 2, \
      "" }, \
    { "logit_bias",         NK_FIELD_YES, read_logit_bias, 0, 0, 0, "by token id" }, \
    { "user",               NK_FIELD_YES, nk__read_string, OFFSET(user), 0, 0, \
      "goes to the log with the request" }, \
    { "cache_salt",         NK_FIELD_YES, read_cache_salt, 0, 0, 0, \
      "vLLM's: KV is reused only among requests with the same one (and the same key)" }, \
    { "top_k",              NK_FIELD_YES, nk__read_int, SAMPLING(top_k), 0, INT32_MAX, \
      "llama-server's; 0: off; default 40" }, \
    { "min_p",              NK_FIELD_YES, nk__read_float, SAMPLING(min_p), 0, 1, \
      "llama-server's; default 0.05" }, \
    { "typical_p",          NK_FIELD_YES, nk__read_float, SAMPLING(typical_p), 0, 1, \
      "llama-server's; 1: off" }, \
    { "repeat_penalty",     NK_FIELD_YES, nk__read_float, SAMPLING(repeat_penalty), 0.01, 100, \
      "llama-server's; 1: off" }, \
    { "repeat_last_n",      NK_FIELD_YES, nk__read_int, SAMPLING(penalty_last_n), -1, INT32_MAX, \
      "llama-server's; tokens that penalties look at; default 64; -1: all" }, \
    { "dry_multiplier",     NK_FIELD_YES, nk__read_float, SAMPLING(dry_multiplier), 0, 100, \
      "llama-server's; 0: off" }, \
    { "dry_base",           NK_FIELD_YES, nk__read_float, SAMPLING(dry_base), 1, 100, \
      "llama-server's; default 1.75" }, \
    { "dry_allowed_length", NK_FIELD_YES, nk__read_int, SAMPLING(dry_allowed_length), 0, \
      INT32_MAX, "llama-server's; default 2" }, \
    { "dry_penalty_last_n", NK_FIELD_YES, nk__read_int, SAMPLING(dry_penalty_last_n), -1, \
      INT32_MAX, "llama-server's; -1: all" }, \
    { "mirostat",           NK_FIELD_YES, nk__read_int, SAMPLING(mirostat), 0, 2, \
      "llama-server's; 0: off" }, \
    { "mirostat_tau",       NK_FIELD_YES, nk__read_float, SAMPLING(mirostat_tau), 0, 100, \
      "llama-server's" }, \
    { "mirostat_eta",       NK_FIELD_YES, nk__read_float, SAMPLING(mirostat_eta), 0, 1, \
      "llama-server's" }, \
    { "grammar",            NK_FIELD_YES, nk__read_grammar, 0, 0, 0, \
      "llama-server's; GBNF with the rule root" }, \
    { "ignore_eos",         NK_FIELD_YES, nk__read_bool, SAMPLING(ignore_eos), 0, 0, \
      "llama-server's" }, \
    { "cache_prompt",       NK_FIELD_YES, read_cache_prompt, 0, 0, 0, \
      "llama-server's; false: no kept session is used, and this one is not kept" }, \
    { "deterministic",      NK_FIELD_YES, nk__read_bool, OFFSET(deterministic), 0, 0, \
      "ours; the same to the last bit whatever else runs; workers without --deterministic refuse " \
      "it (400 not_deterministic)" }

const struct nk_field_rule nk__rules_chat[] = {
    { "messages",              NK_FIELD_YES,     nk__read_messages, 0, 0, 0, "" },
    SHARED_RULES,
    { "max_completion_tokens", NK_FIELD_YES,     read_max_tokens, 0, 0, 0,
      "the same as max_tokens" },
    { "logprobs",              NK_FIELD_YES,     nk__read_want_logprobs, 0, 0, 0, "" },
    { "top_logprobs",          NK_FIELD_YES,     nk__read_top_logprobs, 0, 0, 0, "0 to 20" },
    { "response_format",       NK_FIELD_YES,     read_response_format, 0, 0, 0,
      "text, json_object, json_schema (turned into a grammar; strict or not)" },
    { "tools",                 NK_FIELD_YES,     nk__read_tools, 0, 0, 0,
      "for templates that know tools" },
    { "tool_choice",           NK_FIELD_YES,     read_tool_choice, 0, 0, 0,
      "auto, none, required, or a function; the last two by a grammar" },
    { "parallel_tool_calls",   NK_FIELD_YES,     nk__read_bool, OFFSET(parallel_tool_calls), 0, 0,
      "false: the reply ends after the first call" },
    { "reasoning_effort",      NK_FIELD_YES,     read_reasoning_effort, 0, 0, 0,
      "for templates that use it, or enable_thinking (none: off)" },
    { "chat_template_kwargs",  NK_FIELD_YES,     read_object_field, OFFSET(template_kwargs), 0, 0,
      "llama-server's; variables for the template" },
    { "service_tier",          NK_FIELD_FIXED,   read_service_tier, 0, 0, 0,
      "auto or default; there is one tier" },
    { "modalities",            NK_FIELD_FIXED,   read_modalities, 0, 0, 0, "[\"text\"]" },
    { "store",                 NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0,
      "false; nothing is stored" },
    { "metadata",              NK_FIELD_FIXED,   check_empty, 0, 0, 0, "{}; nothing is stored" },
    { "audio",                 NK_FIELD_REFUSED, NULL, 0, 0, 0, "only text" },
    { "functions",             NK_FIELD_REFUSED, NULL, 0, 0, 0, "replaced by tools" },
    { "function_call",         NK_FIELD_REFUSED, NULL, 0, 0, 0, "replaced by tool_choice" },
    { "prediction",            NK_FIELD_REFUSED, NULL, 0, 0, 0, "predicted outputs are not used" },
    { "prompt_cache_key",      NK_FIELD_REFUSED, NULL, 0, 0, 0,
      "kept sessions are found by the prompt itself" },
    { "safety_identifier",     NK_FIELD_REFUSED, NULL, 0, 0, 0, "use user" },
    { "verbosity",             NK_FIELD_REFUSED, NULL, 0, 0, 0, "no template uses it" },
    { "web_search_options",    NK_FIELD_REFUSED, NULL, 0, 0, 0, "there is no search" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_completion[] = {
    { "prompt",   NK_FIELD_YES,     read_prompt, 0, 0, 0,
      "text, a list of texts, token ids, or a list of those" },
    SHARED_RULES,
    { "logprobs", NK_FIELD_YES,     read_completion_logprobs, 0, 0, 0, "0 to 20" },
    { "echo",     NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0,
      "false; the prompt is not repeated" },
    { "best_of",  NK_FIELD_FIXED,   read_best_of, 0, 0, 0, "1; use n" },
    { "suffix",   NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0, "\"\"; no insertion" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

/* llama-server's. */
#define ANY_MODEL \
    { "model", NK_FIELD_YES, nk__read_string, OFFSET(model), 0, 0, \
      "a name that /v1/models lists; not needed" }

const struct nk_field_rule nk__rules_tokenize[] = {
    { "content",       NK_FIELD_YES, read_content, OFFSET(prompts[0].text), 0, 0, "the text" },
    { "add_special",   NK_FIELD_YES, nk__read_bool, OFFSET(add_special), 0, 0,
      "with the BOS and EOS tokens that a prompt gets; default false" },
    { "parse_special", NK_FIELD_YES, nk__read_bool, OFFSET(parse_special), 0, 0,
      "marks such as <|im_start|> are one token; default true" },
    { "with_pieces",   NK_FIELD_YES, nk__read_bool, OFFSET(with_pieces), 0, 0,
      "each token's text too, or its bytes where they are no text" },
    ANY_MODEL,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_detokenize[] = {
    { "tokens", NK_FIELD_YES, read_tokens, 0, 0, 0, "token ids" },
    ANY_MODEL,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_apply_template[] = {
    { "messages",             NK_FIELD_YES, nk__read_messages, 0, 0, 0, "" },
    { "tools",                NK_FIELD_YES, nk__read_tools, 0, 0, 0,
      "for templates that know tools" },
    { "tool_choice",          NK_FIELD_YES, read_tool_choice, 0, 0, 0,
      "none: the template does not see the tools" },
    { "reasoning_effort",     NK_FIELD_YES, read_reasoning_effort, 0, 0, 0,
      "for templates that use it, or enable_thinking (none: off)" },
    { "chat_template_kwargs", NK_FIELD_YES, read_object_field, OFFSET(template_kwargs), 0, 0,
      "variables for the template" },
    ANY_MODEL,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
