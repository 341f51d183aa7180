/* The fields of OpenAI's responses, with a few of llama-server's extras under its names.
 * https://platform.openai.com/docs/api-reference/responses/create
 *
 * What was said before comes from the store (previous_response_id, item_reference) as items, as the
 * request's own do, and goes the same way: into messages. */
#include "gateway/request_rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- items ---- */

struct items {
    struct nk_parse *p;
    bool open;               /* the last message is an assistant's, and calls are its */
    int n_parts;             /* reasoning and calls: what becomes a part of a message */
    struct nk_buf reasoning; /* of the assistant's message that comes next */
};

static int want_string(struct nk_parse *p, const json_t *item, const char *name, const char **out)
{
    const json_t *v = json_object_get(item, name);

    *out = json_string_value(v);
    return *out ? 0
           : v  ? nk__bad(p, NK_E_INVALID, "bad_value", name, "must be a string, not %s",
                          nk__json_type(v))
                : nk__bad(p, NK_E_INVALID, "missing_field", name, "is required");
}

/* A string, or parts that are text. name: the member's. */
static int text_of(struct nk_parse *p, const json_t *v, const char *name, struct nk_buf *to)
{
    static const char *const kinds[] = { "input_text",   "output_text",    "text",
                                         "summary_text", "reasoning_text", NULL };
    char path[sizeof p->path];
    const json_t *part, *text;
    size_t i;
    int rc = 0;

    if (json_is_string(v))
        return nk__build_text(p, to, v);
    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, v ? "bad_value" : "missing_field", name,
                       "must be a string or a list of parts, not %s",
                       v ? nk__json_type(v) : "missing");
    snprintf(path, sizeof path, "%s", p->path);
    json_array_foreach((json_t *)v, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));

        snprintf(p->path, sizeof p->path, "%.50s%.20s[%zu].", path, name, i);
        if (type && !strcmp(type, "refusal"))
            text = json_object_get(part, "refusal");
        else if (nk__is_one_of(json_object_get(part, "type"), kinds))
            text = json_object_get(part, "text");
        else
            return nk__bad(p, NK_E_INVALID, "refused_field", "type",
                           "a part of the type \"%.40s\" is not supported; only text is",
                           type ? type : "");
        rc = json_is_string(text)
                 ? nk__build_text(p, to, text)
                 : nk__bad(p, NK_E_INVALID, "missing_field", "text", "is required: a string");
        if (rc)
            return rc;
    }
    memcpy(p->path, path, sizeof path);
    return 0;
}

static int add_assistant(struct items *s, const struct nk_buf *text)
{
    int rc = nk__build_message(s->p, "assistant", text);

    if (!rc)
        rc = nk__build_reasoning(s->p, &s->reasoning);
    nk_buf_reset(&s->reasoning);
    s->open = true;
    return rc;
}

static void close_assistant(struct items *s)
{
    s->open = false;
    nk_buf_reset(&s->reasoning);
}

static int add_message(struct items *s, const json_t *item)
{
    struct nk_parse *p = s->p;
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    const char *role = json_string_value(json_object_get(item, "role"));
    int rc = 0;

    if (!role || (strcmp(role, "user") && strcmp(role, "assistant") && strcmp(role, "system") &&
                  strcmp(role, "developer")))
        rc = nk__bad(p, NK_E_INVALID, role ? "bad_value" : "missing_field", "role",
                     "must be \"user\", \"assistant\", \"system\" or \"developer\"");
    if (!rc)
        rc = text_of(p, json_object_get(item, "content"), "content", &text);
    if (!rc && !strcmp(role, "assistant"))
        rc = add_assistant(s, &text);
    else if (!rc) {
        close_assistant(s);
        rc = nk__build_message(p, strcmp(role, "developer") ? role : "system", &text);
    }
    nk_buf_release(&text);
    return rc;
}

/* One more of those that are no message of their own, and so are not counted as messages. */
static int count_part(struct items *s)
{
    struct nk_parse *p = s->p;

    if (s->n_parts++ < p->limits->messages_max)
        return 0;
    p->path[0] = '\0';
    return nk__bad(p, NK_E_INVALID, "too_many", nk__api_input(p->r->api),
                   "more than %d items of reasoning and calls; that many are possible",
                   p->limits->messages_max);
}

/* A call that a model was cut off in comes back as it was kept. */
static int add_call(struct items *s, const json_t *item)
{
    const struct nk_buf none = NK_BUF_INIT(0);
    struct nk_parse *p = s->p;
    const char *id, *name, *arguments;
    char *text;
    int rc = count_part(s);

    if (!rc)
        rc = want_string(p, item, "call_id", &id);

    if (!rc)
        rc = want_string(p, item, "name", &name);
    if (!rc)
        rc = want_string(p, item, "arguments", &arguments);
    if (rc)
        return rc;
    text = nk__arguments_text(json_object_get(item, "arguments"));
    if (!text)
        return nk__build_no_memory(p);
    if (!s->open)
        rc = add_assistant(s, &none);
    if (!rc)
        rc = nk__build_call(p, id, name, text);
    free(text);
    return rc;
}

static int add_output(struct items *s, const json_t *item)
{
    struct nk_parse *p = s->p;
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    const char *id;
    int rc = want_string(p, item, "call_id", &id);

    if (!rc)
        rc = text_of(p, json_object_get(item, "output"), "output", &text);
    if (!rc) {
        close_assistant(s);
        rc = nk__build_tool_result(p, id, &text);
    }
    nk_buf_release(&text);
    return rc;
}

/* The whole text, if it is there; else what a client that keeps nothing here got for it; else its
 * summary. */
static int add_reasoning(struct items *s, const json_t *item)
{
    const json_t *content = json_object_get(item, "content"),
                 *summary = json_object_get(item, "summary");
    const char *kept = json_string_value(json_object_get(item, "encrypted_content"));
    size_t mark = strlen(NK_REASONING_MARK);
    int rc = count_part(s);

    if (rc)
        return rc;
    s->open = false;
    if (json_array_size(content))
        return text_of(s->p, content, "content", &s->reasoning);
    if (kept && !strncmp(kept, NK_REASONING_MARK, mark))
        return nk_buf_adds(&s->reasoning, kept + mark, NULL) ? nk__build_no_memory(s->p) : 0;
    return json_array_size(summary) ? text_of(s->p, summary, "summary", &s->reasoning) : 0;
}

static int add_item(struct items *s, const json_t *item)
{
    const json_t *type = json_object_get(item, "type");
    const char *word = json_is_string(type) ? json_string_value(type) : type ? "" : "message";

    if (!json_is_object(item))
        return nk__bad(s->p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                       nk__json_type(item));
    return !strcmp(word, "message")                ? add_message(s, item)
           : !strcmp(word, "function_call")        ? add_call(s, item)
           : !strcmp(word, "function_call_output") ? add_output(s, item)
           : !strcmp(word, "reasoning")
               ? add_reasoning(s, item)
               : nk__bad(s->p, NK_E_INVALID, "refused_field", "type",
                         "an item of the type \"%.40s\" is not supported; \"message\", "
                         "\"function_call\", \"function_call_output\", \"reasoning\" and "
                         "\"item_reference\" are",
                         word);
}

/* One of the request's, as the store is to have it: what it refers to is in it. */
static int resolve(struct nk_parse *p, const json_t *item, json_t **out)
{
    const struct nk_item_source *from = p->limits->items;
    const char *type = json_string_value(json_object_get(item, "type")), *id;
    int rc;

    *out = NULL;
    if (!type || strcmp(type, "item_reference")) {
        *out = json_incref((json_t *)item);
        return 0;
    }
    rc = want_string(p, item, "id", &id);
    if (rc)
        return rc;
    rc = from ? from->item(from->user, id, out, &p->e->err)
              : nk_fail(&p->e->err, NK_E_NOT_FOUND, "item_not_found", "nothing is stored here");
    if (rc)
        snprintf(p->e->param, sizeof p->e->param, "%sid", p->path);
    return rc;
}

static int add_history(struct items *s, const char *previous)
{
    struct nk_parse *p = s->p;
    const struct nk_item_source *from = p->limits->items;
    json_t *before = json_array();
    const json_t *item;
    size_t i;
    int rc;

    if (!before)
        return nk__build_no_memory(p);
    rc = from ? from->history(from->user, previous, before, &p->e->err)
              : nk_fail(&p->e->err, NK_E_NOT_FOUND, "previous_response_not_found",
                        "nothing is stored here");
    if (rc)
        snprintf(p->e->param, sizeof p->e->param, "previous_response_id");
    json_array_foreach(before, i, item)
    {
        if (!rc)
            rc = add_item(s, item);
    }
    json_decref(before);
    return rc;
}

static int add_input(struct items *s, const json_t *input)
{
    struct nk_parse *p = s->p;
    const json_t *item;
    json_t *own = NULL;
    size_t i;
    int rc = 0;

    if (json_is_string(input)) {
        own = json_pack("[{s:s, s:s, s:[{s:s, s:O}]}]", "type", "message", "role", "user",
                        "content", "type", "input_text", "text", input);
        if (!own)
            return nk__build_no_memory(p);
        input = own;
    }
    json_array_foreach((json_t *)input, i, item)
    {
        json_t *whole;

        snprintf(p->path, sizeof p->path, "input[%zu].", i);
        rc = resolve(p, item, &whole);
        if (!rc)
            rc = add_item(s, whole);
        if (!rc && json_array_append(p->r->items, whole))
            rc = nk__build_no_memory(p);
        json_decref(whole);
        if (rc)
            break;
        p->path[0] = '\0';
    }
    json_decref(own);
    return rc;
}

/* ---- the whole, when all fields were read ---- */

/* Of what the request says, or a value that was not said. */
static json_t *said(const struct nk_parse *p, const char *name, json_t *otherwise)
{
    json_t *v = json_object_get(p->r->root, name);

    if (!v || json_is_null(v))
        return otherwise;
    json_decref(otherwise);
    return json_incref(v);
}

/* What a response repeats of its request: members, as JSON. */
static int make_echo(struct nk_parse *p)
{
    const struct nk_request *r = p->r;
    json_t *o = json_pack(
        "{s:o, s:o, s:o, s:o, s:b, s:o, s:o, s:o, s:o, s:s, s:b, s:o, s:o, s:o, s:o, s:i, s:o, "
        "s:s, s:o}",
        "instructions", said(p, "instructions", json_null()), "max_output_tokens",
        said(p, "max_output_tokens", json_null()), "max_tool_calls",
        said(p, "max_tool_calls", json_null()), "metadata", said(p, "metadata", json_object()),
        "parallel_tool_calls", r->parallel_tool_calls, "previous_response_id",
        said(p, "previous_response_id", json_null()), "prompt_cache_key",
        said(p, "prompt_cache_key", json_null()), "reasoning",
        said(p, "reasoning", json_pack("{s:n, s:n}", "effort", "summary")), "safety_identifier",
        said(p, "safety_identifier", json_null()), "service_tier", "default", "store", r->store,
        "temperature", said(p, "temperature", json_real(0.8)), "text",
        said(p, "text", json_pack("{s:{s:s}}", "format", "type", "text")), "tool_choice",
        said(p, "tool_choice", json_string("auto")), "tools", said(p, "tools", json_array()),
        "top_logprobs", p->top_logprobs, "top_p", said(p, "top_p", json_real(0.95)), "truncation",
        r->truncate ? "auto" : "disabled", "user", said(p, "user", json_null()));
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;

    json_decref(o);
    if (!text)
        return nk__build_no_memory(p);
    p->r->echo = strndup(text + 1, strlen(text) - 2); /* without its braces */
    free(text);
    return p->r->echo ? 0 : nk__build_no_memory(p);
}

/* Those of p->r->tools that are allowed. */
static int keep_allowed(struct nk_parse *p)
{
    json_t *kept;
    const json_t *tool, *allowed;
    size_t i, k;
    int rc;

    if (json_array_size(p->allowed_tools) > NK_TOOLS_MAX) /* each is compared with each tool */
        return nk__bad(p, NK_E_INVALID, "too_many", "tool_choice",
                       "allows %zu tools; at most %d are possible",
                       json_array_size(p->allowed_tools), NK_TOOLS_MAX);
    kept = json_array();
    rc = kept ? 0 : nk__build_no_memory(p);

    json_array_foreach(p->r->tools, i, tool)
    {
        json_array_foreach((json_t *)p->allowed_tools, k, allowed)
        {
            if (!json_equal(json_object_get(json_object_get(tool, "function"), "name"),
                            json_object_get(allowed, "name")))
                continue;
            if (!rc && json_array_append(kept, (json_t *)tool))
                rc = nk__build_no_memory(p);
            break; /* allowed twice is allowed */
        }
    }
    json_decref(p->r->tools);
    p->r->tools = json_array_size(kept) ? json_incref(kept) : NULL;
    json_decref(kept);
    return rc;
}

int nk__responses_build(struct nk_parse *p)
{
    struct items s = { .p = p, .reasoning = NK_BUF_INIT(SIZE_MAX / 4) };
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    int rc = 0;

    p->r->messages = json_array();
    p->r->items = json_array();
    if (!p->r->messages || !p->r->items)
        return nk__build_no_memory(p);
    if (p->instructions) {
        rc = nk__build_text(p, &text, p->instructions);
        if (!rc && text.size)
            rc = nk__build_message(p, "system", &text);
    }
    if (!rc && p->r->previous)
        rc = add_history(&s, p->r->previous);
    if (!rc && p->input)
        rc = add_input(&s, p->input);
    if (!rc)
        rc = nk__build_end(p);
    if (!rc && !json_array_size(p->r->messages))
        rc = nk__bad(p, NK_E_INVALID, p->input ? "bad_value" : "missing_field", "input",
                     "is required: a string, or a list of items");
    if (!rc && p->allowed_tools)
        rc = keep_allowed(p);
    if (!rc)
        rc = make_echo(p);
    nk_buf_release(&s.reasoning);
    nk_buf_release(&text);
    return rc;
}

/* ---- fields ---- */

static int read_input(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string or a list of items, not %s", nk__json_type(v));
    p->input = v;
    return 0;
}

static int read_instructions(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string, not %s",
                       nk__json_type(v));
    p->instructions = v;
    return 0;
}

static int read_tools(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const json_t *tool;
    size_t i;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of tools, not %s",
                       nk__json_type(v));
    json_array_foreach((json_t *)v, i, tool)
    {
        const char *type = json_string_value(json_object_get(tool, "type"));
        int rc;

        snprintf(p->path, sizeof p->path, "tools[%zu].", i);
        if (!json_is_object(tool))
            return nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                           nk__json_type(tool));
        if (!type || strcmp(type, "function"))
            return nk__bad(p, NK_E_INVALID, "refused_field", "type",
                           "the tool \"%.60s\" is not served; only functions are",
                           type ? type : "");
        rc = nk__build_tool(p, tool, "parameters");
        if (rc)
            return rc;
    }
    p->path[0] = '\0';
    return 0;
}

static bool read_mode(struct nk_parse *p, const json_t *v)
{
    static const char *const words[] = {
        [NK_TOOLS_AUTO] = "auto", [NK_TOOLS_NONE] = "none", [NK_TOOLS_REQUIRED] = "required"
    };

    for (int i = 0; json_is_string(v) && i < 3; i++)
        if (!strcmp(json_string_value(v), words[i])) {
            p->r->tool_choice = (enum nk_tool_choice)i;
            return true;
        }
    return false;
}

static int read_tool_choice(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    const json_t *name = json_object_get(v, "name"), *tools = json_object_get(v, "tools");

    if (read_mode(p, v))
        return 0;
    if (type && !strcmp(type, "function") && json_is_string(name)) {
        p->r->tool_choice = NK_TOOLS_NAMED;
        p->r->tool_name = json_string_value(name);
        return 0;
    }
    if (type && !strcmp(type, "allowed_tools") && json_is_array(tools) &&
        read_mode(p, json_object_get(v, "mode"))) {
        p->allowed_tools = tools;
        return 0;
    }
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                   "must be \"auto\", \"none\", \"required\", {\"type\": \"function\", \"name\": "
                   "...} or {\"type\": \"allowed_tools\", \"mode\": ..., \"tools\": [...]}");
}

static int read_text(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const json_t *format = json_object_get(v, "format"), *schema;
    const char *type = json_string_value(json_object_get(format, "type"));

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    if (!format || json_is_null(format) || (type && !strcmp(type, "text")))
        return 0;
    schema = json_object_get(format, "schema");
    if (type && !strcmp(type, "json_object")) {
        p->r->format = NK_FORMAT_JSON;
        return 0;
    }
    if (!type || strcmp(type, "json_schema"))
        return nk__bad(p, NK_E_INVALID, "bad_value", "text.format",
                       "must be an object whose type is \"text\", \"json_object\" or "
                       "\"json_schema\"");
    if (!json_is_object(schema))
        return nk__bad(p, NK_E_INVALID, "missing_field", "text.format.schema",
                       "is required: an object (a JSON schema)");
    p->r->format = NK_FORMAT_SCHEMA;
    p->r->schema = schema;
    return 0;
}

static int read_reasoning(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char
        *const efforts[] = { "none", "minimal", "low", "medium", "high", "xhigh", NULL },
               *const summaries[] = { "auto", "concise", "detailed", NULL };
    const json_t *effort = json_object_get(v, "effort"), *summary = json_object_get(v, "summary");

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    if (!summary || json_is_null(summary))
        summary = json_object_get(v, "generate_summary"); /* its older name */
    if (summary && !json_is_null(summary)) {
        if (!nk__is_one_of(summary, summaries))
            return nk__bad(p, NK_E_INVALID, "bad_value", "reasoning.summary",
                           "must be \"auto\", \"concise\" or \"detailed\"");
        p->r->summarise = true;
    }
    if (!effort || json_is_null(effort))
        return 0;
    if (!nk__is_one_of(effort, efforts))
        return nk__bad(p, NK_E_INVALID, "bad_value", "reasoning.effort",
                       "must be \"none\", \"minimal\", \"low\", \"medium\", \"high\" or "
                       "\"xhigh\"");
    p->r->reasoning_effort = json_string_value(effort);
    p->r->think = strcmp(p->r->reasoning_effort, "none") ? NK_THINK_ON : NK_THINK_OFF;
    p->r->think_if_able = true;
    return 0;
}

/* What is never there need not be included. */
static int read_include(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const absent[] = { "file_search_call.results",
                                          "web_search_call.results",
                                          "web_search_call.action.sources",
                                          "message.input_image.image_url",
                                          "computer_call_output.output.image_url",
                                          "code_interpreter_call.outputs",
                                          NULL };
    const json_t *one;
    size_t i;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of strings, not %s",
                       nk__json_type(v));
    json_array_foreach((json_t *)v, i, one)
    {
        const char *word = json_string_value(one);

        if (word && !strcmp(word, "reasoning.encrypted_content"))
            p->r->encrypted_reasoning = true;
        else if (word && !strcmp(word, "message.output_text.logprobs"))
            p->want_logprobs = true;
        else if (!nk__is_one_of(one, absent))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "\"%.60s\" is not known; reasoning.encrypted_content and "
                           "message.output_text.logprobs are",
                           word ? word : "");
    }
    return 0;
}

static int read_top_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc = nk__read_top_logprobs(p, f, v);

    p->want_logprobs = p->want_logprobs || p->top_logprobs > 0;
    return rc;
}

static int check_metadata(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *name;
    json_t *one;

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    json_object_foreach((json_t *)v, name, one)
    {
        if (!json_is_string(one))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "\"%.40s\" must be a string, not %s", name, nk__json_type(one));
    }
    return 0;
}

static int read_truncation(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *s = json_string_value(v);

    p->r->truncate = s && !strcmp(s, "auto");
    if (p->r->truncate || (s && !strcmp(s, "disabled")))
        return 0;
    return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be \"auto\" or \"disabled\"");
}

/* clang-format off */
const struct nk_field_rule nk__rules_responses[] = {
    { "input",                  NK_FIELD_YES,     read_input, 0, 0, 0,
      "text, or items: message, function_call, function_call_output, reasoning, item_reference; "
      "images and files are refused" },
    { "instructions",           NK_FIELD_YES,     read_instructions, 0, 0, 0,
      "the system prompt, of this response alone" },
    { "model",                  NK_FIELD_YES,     nk__read_string, NK_OFFSET(model), 0, 0,
      "a name that /v1/models lists" },
    { "stream",                 NK_FIELD_YES,     nk__read_bool, NK_OFFSET(stream), 0, 0,
      "events by name, numbered" },
    { "store",                  NK_FIELD_YES,     nk__read_bool, NK_OFFSET(store), 0, 0,
      "default true: kept in memory for --responses-ttl" },
    { "previous_response_id",   NK_FIELD_YES,     nk__read_string, NK_OFFSET(previous), 0, 0,
      "of a response that was stored" },
    { "max_output_tokens",      NK_FIELD_YES,     nk__read_int, NK_OFFSET(n_predict), 1, INT32_MAX,
      "not given: a share of the context, the workers' context by their sequences" },
    { "temperature",            NK_FIELD_YES,     nk__read_float, NK_SAMPLING(temperature), 0, 100,
      "0: greedy; default 0.8" },
    { "top_p",                  NK_FIELD_YES,     nk__read_float, NK_SAMPLING(top_p), 0, 1,
      "default 0.95" },
    { "tools",                  NK_FIELD_YES,     read_tools, 0, 0, 0,
      "functions; built-in and custom ones are refused by name; strict: held to the schema by a "
      "grammar, only where it says true" },
    { "tool_choice",            NK_FIELD_YES,     read_tool_choice, 0, 0, 0,
      "auto, none, required, a function, or allowed_tools" },
    { "parallel_tool_calls",    NK_FIELD_YES,     nk__read_bool, NK_OFFSET(parallel_tool_calls),
      0, 0, "false: the response ends after the first call" },
    { "text",                   NK_FIELD_YES,     read_text, 0, 0, 0,
      "format: text, json_object, json_schema (turned into a grammar); verbosity is not looked "
      "at" },
    { "reasoning",              NK_FIELD_YES,     read_reasoning, 0, 0, 0,
      "effort: where the template has thinking, or degrees of it (none: off); summary: what is "
      "thought comes as a summary, whole" },
    { "include",                NK_FIELD_YES,     read_include, 0, 0, 0,
      "reasoning.encrypted_content (what was thought, marked), message.output_text.logprobs" },
    { "top_logprobs",           NK_FIELD_YES,     read_top_logprobs, 0, 0, 0, "0 to 20" },
    { "metadata",               NK_FIELD_YES,     check_metadata, 0, 0, 0,
      "strings; stored with the response" },
    { "user",                   NK_FIELD_YES,     nk__read_string, NK_OFFSET(user), 0, 0,
      "goes to the log with the request" },
    { "stop",                   NK_FIELD_YES,     nk__read_stop, 0, 0, 0,
      "llama-server's; a string, or up to 16" },
    { "seed",                   NK_FIELD_YES,     nk__read_seed, 0, 0, 0,
      "llama-server's; the same seed gives the same text; -1: a random one" },
    { "top_k",                  NK_FIELD_YES,     nk__read_int, NK_SAMPLING(top_k), 0, INT32_MAX,
      "llama-server's; 0: off; default 40" },
    { "min_p",                  NK_FIELD_YES,     nk__read_float, NK_SAMPLING(min_p), 0, 1,
      "llama-server's; default 0.05" },
    NK_RULES_MORE_SAMPLING,
    { "grammar",                NK_FIELD_YES,     nk__read_grammar, 0, 0, 0,
      "llama-server's; GBNF with the rule root" },
    { "ignore_eos",             NK_FIELD_YES,     nk__read_bool, NK_SAMPLING(ignore_eos), 0, 0,
      "llama-server's" },
    { "deterministic",          NK_FIELD_YES,     nk__read_bool, NK_OFFSET(deterministic), 0, 0,
      "ours; as in /v1/chat/completions" },
    { "prompt_cache_key",       NK_FIELD_IGNORED, NULL, 0, 0, 0,
      "kept sessions are found by the prompt itself" },
    { "prompt_cache_retention", NK_FIELD_IGNORED, NULL, 0, 0, 0, "as above" },
    { "prompt_cache_options",   NK_FIELD_IGNORED, NULL, 0, 0, 0, "as above" },
    { "safety_identifier",      NK_FIELD_IGNORED, NULL, 0, 0, 0, "a label" },
    { "service_tier",           NK_FIELD_IGNORED, NULL, 0, 0, 0, "there is one tier" },
    { "stream_options",         NK_FIELD_IGNORED, NULL, 0, 0, 0, "sizes are not padded" },
    { "max_tool_calls",         NK_FIELD_IGNORED, NULL, 0, 0, 0,
      "of built-in tools, of which there are none" },
    { "client_metadata",        NK_FIELD_IGNORED, NULL, 0, 0, 0, "labels" },
    { "truncation",             NK_FIELD_YES,     read_truncation, 0, 0, 0,
      "auto: the oldest turns of what does not fit are left out; disabled (the default): an "
      "error" },
    { "background",             NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0,
      "false; a response is computed while its client waits" },
    { "conversation",           NK_FIELD_REFUSED, NULL, 0, 0, 0, "use previous_response_id" },
    { "prompt",                 NK_FIELD_REFUSED, NULL, 0, 0, 0, "no prompts are stored" },
    { "context_management",     NK_FIELD_REFUSED, NULL, 0, 0, 0, "send a shorter history" },
    { "moderation",             NK_FIELD_REFUSED, NULL, 0, 0, 0, "there is no model for it" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
