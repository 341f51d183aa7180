/* The messages of a chat, in OpenAI's and in Ollama's shape, as clients send them back: with
 * members that only their senders know, with contents and ids left out, and with the arguments of
 * calls in every form. What the template gets is OpenAI's shape. */
#include "gateway/request_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Content as one string: a string, or parts of type text, joined by newlines. *text: owned by the
 * caller. */
static int content_text(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v,
                        json_t **text)
{
    static const char *const kinds[][2] = { { "text", "text" },
                                            { "input_text", "text" },
                                            { "output_text", "text" },
                                            { "refusal", "refusal" } };
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
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *one = NULL;
        size_t k = 0;

        while (k < 4 && (!type || strcmp(type, kinds[k][0])))
            k++;
        if (k == 4) {
            rc = nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                         "part %zu has the type \"%.40s\"; only \"text\" is supported", i,
                         type ? type : "");
            break;
        }
        one = json_object_get(part, kinds[k][1]);
        if (!json_is_string(one)) {
            rc = nk__bad(p, NK_E_INVALID, "bad_value", f->name, "part %zu has no text", i);
            break;
        }
        if (joined.size)
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

/* ---- the members: their readers check only; take_message builds what the template gets ---- */

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

static int check_openai_role(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const roles[] = { "system",    "developer", "user",
                                         "assistant", "tool",      "function" };

    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (json_is_string(v) && !strcmp(json_string_value(v), roles[i]))
            return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"system\", \"developer\", \"user\", \"assistant\" or \"tool\"");
}

static int check_ollama_role(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const roles[] = { "system", "user", "assistant", "tool" };

    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (json_is_string(v) && !strcmp(json_string_value(v), roles[i]))
            return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"system\", \"user\", \"assistant\" or \"tool\"");
}

/* What is about an answer, not of it. */
static int check_nothing(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    (void)p, (void)f, (void)v;
    return 0;
}

/* The arguments of a call: JSON in a string (OpenAI's), or an object (Ollama's); each dialect's
 * clients send the other's, too. */
static int check_call(struct nk_parse *p, const char *field, const json_t *function, size_t i)
{
    const json_t *arguments = json_object_get(function, "arguments");

    if (!json_is_string(json_object_get(function, "name")))
        return nk__bad(p, NK_E_INVALID, "missing_field", field, "call %zu has no function.name", i);
    if (arguments && !json_is_null(arguments) && !json_is_string(arguments) &&
        !json_is_object(arguments))
        return nk__bad(p, NK_E_INVALID, "bad_value", field,
                       "call %zu: function.arguments must be a string with JSON in it, or an "
                       "object, not %s",
                       i, nk__json_type(arguments));
    return 0;
}

static int check_tool_calls(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    json_t *call;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list, not %s",
                       nk__json_type(v));
    json_array_foreach((json_t *)v, i, call)
    {
        const json_t *type = json_object_get(call, "type");
        int rc;

        if (type && !json_is_null(type) &&
            (!json_is_string(type) || strcmp(json_string_value(type), "function")))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "call %zu: the type must be \"function\"", i);
        rc = check_call(p, f->name, json_object_get(call, "function"), i);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_function_call(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return check_call(p, f->name, v, 0);
}

static int check_no_images(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_array(v) && !json_array_size(v))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only text is supported");
}

/* clang-format off */
const struct nk_field_rule nk__rules_message[] = {
    { "role",              NK_FIELD_YES,     check_openai_role,   0, 0, 0,
      "system, developer (taken as system), user, assistant, tool, function (taken as tool)" },
    { "content",           NK_FIELD_YES,     check_content,       0, 0, 0,
      "text, or parts of type text, which are joined by a newline, as llama-server does; may be " \
      "null but in a user's or a system's message" },
    { "name",              NK_FIELD_YES,     check_string,        0, 0, 0,
      "given to the template" },
    { "tool_calls",        NK_FIELD_YES,     check_tool_calls,    0, 0, 0,
      "of an assistant's message; arguments as a string or an object, also when they are no JSON" },
    { "tool_call_id",      NK_FIELD_YES,     check_string,        0, 0, 0,
      "of a tool's message; may be null after a single call" },
    { "reasoning_content", NK_FIELD_YES,     check_string,        0, 0, 0,
      "of an assistant's message; given to the template" },
    { "reasoning",         NK_FIELD_YES,     check_string,        0, 0, 0,
      "other servers' name for reasoning_content" },
    { "function_call",     NK_FIELD_YES,     check_function_call, 0, 0, 0,
      "as one of tool_calls" },
    { "refusal",           NK_FIELD_YES,     check_string,        0, 0, 0,
      "the content where there is no other" },
    { "annotations",       NK_FIELD_IGNORED, check_nothing,       0, 0, 0,
      "of an answer that is sent back" },
    { "audio",             NK_FIELD_REFUSED, NULL,                0, 0, 0, "only text" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_ollama_message[] = {
    { "role",         NK_FIELD_YES,   check_ollama_role, 0, 0, 0,
      "system, user, assistant, tool" },
    { "content",      NK_FIELD_YES,   check_string,      0, 0, 0, "" },
    { "thinking",     NK_FIELD_YES,   check_string,      0, 0, 0,
      "of an assistant's message; given to the template" },
    { "reasoning",    NK_FIELD_YES,   check_string,      0, 0, 0, "the same" },
    { "tool_calls",   NK_FIELD_YES,   check_tool_calls,  0, 0, 0,
      "of an assistant's message; arguments as an object or a string" },
    { "tool_name",    NK_FIELD_YES,   check_string,      0, 0, 0, "of a tool's message" },
    { "tool_call_id", NK_FIELD_YES,   check_string,      0, 0, 0, "of a tool's message" },
    { "images",       NK_FIELD_FIXED, check_no_images,   0, 0, 0, "null or []; only text" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */

/* ---- what the template gets ---- */

char *nk__arguments_text(const json_t *arguments)
{
    const char *text = json_string_value(arguments);
    json_t *parsed, *wrapped;
    char *out;

    if (json_is_object(arguments))
        return json_dumps(arguments, JSON_COMPACT);
    if (!text || !text[strspn(text, " \t\r\n")])
        return strdup("{}");
    parsed = json_loads(text, 0, NULL);
    if (json_is_object(parsed)) {
        json_decref(parsed);
        return strdup(text);
    }
    json_decref(parsed);
    if (!strcmp(text, "null"))
        return strdup("{}");
    wrapped = json_pack("{s:o}", "not_json", json_incref((json_t *)arguments));
    out = wrapped ? json_dumps(wrapped, JSON_COMPACT) : NULL;
    json_decref(wrapped);
    return out;
}

static bool add_call(json_t *list, const json_t *id, json_t *function)
{
    char *arguments = nk__arguments_text(json_object_get(function, "arguments"));
    bool ok = arguments &&
              !json_array_append_new(
                  list, json_pack("{s:O*, s:s, s:{s:O, s:s}}", "id", json_is_string(id) ? id : NULL,
                                  "type", "function", "function", "name",
                                  json_object_get(function, "name"), "arguments", arguments));

    free(arguments);
    return ok;
}

/* The id of the only call of the message that the last tools' messages answer; NULL: there is none,
 * or more than one. *n: how many calls. */
static const json_t *only_call_id(const struct nk_parse *p, size_t *n)
{
    const json_t *calls = json_object_get(p->asked, "tool_calls");

    *n = json_array_size(calls);
    return *n == 1 ? json_object_get(json_array_get(calls, 0), "id") : NULL;
}

/* One checked message as the template gets it. NULL: no memory. */
static json_t *take_message(struct nk_parse *p, const json_t *m)
{
    static const struct nk_field_rule content_rule = { .name = "content" };
    const char *role = json_string_value(json_object_get(m, "role"));
    const json_t *content = json_object_get(m, "content"),
                 *calls = json_object_get(m, "tool_calls"), *id;
    json_t *function = json_object_get(m, "function_call"),
           *reasoning = json_object_get(m, "reasoning");
    json_t *out = json_object(), *text = NULL, *call;
    size_t i, n_calls;
    bool ok = out != NULL, is_answer;

    role = !strcmp(role, "developer") ? "system" : !strcmp(role, "function") ? "tool" : role;
    is_answer = !strcmp(role, "tool");
    if (!content || json_is_null(content))
        content = json_object_get(m, "refusal");
    if (content && !json_is_null(content))
        ok = ok && !content_text(p, &content_rule, content, &text);
    else
        text = json_string("");
    ok = ok && text && !json_object_set_new(out, "role", json_string(role));
    ok = ok && !json_object_set(out, "content", text);
    json_decref(text);
    for (int k = 0; k < 2; k++) {
        static const char *const names[] = { "reasoning_content", "thinking" };

        if (json_is_string(json_object_get(m, names[k])))
            reasoning = json_object_get(m, names[k]);
    }
    if (json_is_string(reasoning))
        ok = ok && !json_object_set(out, "reasoning_content", reasoning);
    for (int k = 0; k < 3; k++) {
        static const char *const names[][2] = { { "name", "name" },
                                                { "tool_call_id", "tool_call_id" },
                                                { "tool_name", "name" } };
        json_t *v = json_object_get(m, names[k][0]);

        if (json_is_string(v))
            ok = ok && !json_object_set(out, names[k][1], v);
    }
    id = is_answer ? only_call_id(p, &n_calls) : NULL;
    if (id && !json_object_get(out, "tool_call_id"))
        ok = ok && !json_object_set(out, "tool_call_id", (json_t *)id);
    if (json_array_size(calls) || json_is_object(function)) {
        json_t *list = json_array();

        ok = ok && list && !json_object_set_new(out, "tool_calls", list);
        json_array_foreach((json_t *)calls, i, call)
        {
            ok = ok &&
                 add_call(list, json_object_get(call, "id"), json_object_get(call, "function"));
        }
        if (ok && !json_array_size(calls))
            ok = add_call(list, NULL, function);
    }
    if (!ok) {
        json_decref(out);
        out = NULL;
    }
    return out;
}

/* What concerns several members of a message, and those before it. */
static int check_message(struct nk_parse *p, const json_t *m)
{
    const char *role = json_string_value(json_object_get(m, "role"));
    const json_t *content = json_object_get(m, "content"),
                 *calls = json_object_get(m, "tool_calls");
    size_t n_calls;

    if ((!content || json_is_null(content)) && nk__api_is_openai(p->r->api) &&
        strcmp(role, "assistant") && strcmp(role, "tool") && strcmp(role, "function"))
        return nk__bad(p, NK_E_INVALID, "missing_field", "content", "is required");
    if (json_array_size(calls) && strcmp(role, "assistant"))
        return nk__bad(p, NK_E_INVALID, "bad_value", "tool_calls",
                       "only an assistant's message has them");
    if (!nk__api_is_openai(p->r->api) || strcmp(role, "tool") ||
        json_is_string(json_object_get(m, "tool_call_id")))
        return 0;
    only_call_id(p, &n_calls);
    return n_calls == 1 ? 0
                        : nk__bad(p, NK_E_INVALID, "missing_field", "tool_call_id",
                                  "is required in a tool's message unless it answers a single "
                                  "call; %zu calls come before it",
                                  n_calls);
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
    p->takes_unknown = true;
    json_array_foreach((json_t *)v, i, m)
    {
        json_t *taken;
        int rc = 0;

        snprintf(p->path, sizeof p->path, "messages[%zu].", i);
        if (!json_is_object(m))
            rc = nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                         nk__json_type(m));
        else if (!json_is_string(json_object_get(m, "role")))
            rc = nk__bad(p, NK_E_INVALID, "missing_field", "role", "is required: a string");
        else
            rc = nk__read_object(p, p->message_rules, m);
        if (!rc)
            rc = check_message(p, m);
        if (rc)
            return rc;
        taken = take_message(p, m);
        if (json_array_append_new(p->r->messages, taken))
            return nk__bad(p, NK_E_EXHAUSTED, "no_memory", "", "no memory for the message");
        if (strcmp(json_string_value(json_object_get(taken, "role")), "tool"))
            p->asked = taken;
    }
    p->takes_unknown = false;
    p->path[0] = '\0';
    return 0;
}

/* ---- a message that is continued ---- */

static int read_switch(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v,
                       bool *seen, bool *wants)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    *seen = true;
    *wants = json_is_true(v);
    return 0;
}

int nk__read_continue(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return read_switch(p, f, v, &p->seen_continue, &p->wants_continue);
}

int nk__read_begin(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return read_switch(p, f, v, &p->seen_begin, &p->wants_begin);
}

/* As llama-server and Ollama do it, an assistant's message at the end is the beginning of the
 * reply, unless the request says otherwise in vLLM's words. A call cannot be continued: what
 * follows it is its result. */
/* What is continued is one text, however many parts it came in: there is no line's end between
 * them. NULL: it did not come in parts, or not all have text; or no memory. */
static json_t *parts_as_one(const json_t *sent)
{
    json_t *content = json_object_get(json_array_get(sent, json_array_size(sent) - 1), "content");
    struct nk_buf all = NK_BUF_INIT(SIZE_MAX / 4);
    json_t *part, *out = NULL;
    bool ok = json_is_array(content);
    size_t i;

    json_array_foreach(content, i, part)
    {
        const json_t *text = json_object_get(part, "text");

        ok = ok && json_is_string(text) &&
             !nk_buf_add(&all, json_string_value(text), json_string_length(text), NULL);
    }
    if (ok)
        out = json_stringn(nk_buf_str(&all), all.size);
    nk_buf_release(&all);
    return out;
}

static bool is_assistants(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));

    return role && !strcmp(role, "assistant");
}

int nk__take_prefill(struct nk_parse *p)
{
    struct nk_request *r = p->r;
    size_t n = json_array_size(r->messages);
    json_t *last = n ? json_array_get(r->messages, n - 1) : NULL;
    bool possible = is_assistants(last) && !json_object_get(last, "tool_calls");
    json_t *text;

    r->begins_no_reply = p->seen_begin && !p->wants_begin;
    if (p->seen_continue && p->wants_continue && !possible)
        return nk__bad(p, NK_E_INVALID, "bad_value", "continue_final_message",
                       "the last message is no assistant's text that could be continued");
    if (p->seen_continue && p->wants_continue && p->seen_begin && p->wants_begin)
        return nk__bad(p, NK_E_INVALID, "bad_value", "continue_final_message",
                       "cannot be true together with add_generation_prompt: a reply that goes on "
                       "with a message does not begin another");
    if (!(p->seen_continue ? p->wants_continue : possible && n > 1 && !p->seen_begin))
        return 0;
    /* Which of them would go on? llama-server refuses it, too; Anthropic's are one. */
    if (nk__api_dialect(r->api) != NK_DIALECT_ANTHROPIC && n > 1 &&
        is_assistants(json_array_get(r->messages, n - 2)) &&
        !json_object_get(json_array_get(r->messages, n - 2), "tool_calls"))
        return nk__bad(p, NK_E_INVALID, "bad_value", "messages",
                       "the last two are both an assistant's: the reply goes on with the last one, "
                       "which must follow a user's or a tool's");
    r->begins_no_reply = false;
    text = parts_as_one(json_object_get(r->root, "messages"));
    if (text)
        json_object_set_new(last, "content", text);
    r->prefill = json_incref(last);
    json_array_remove(r->messages, n - 1);
    return 0;
}
