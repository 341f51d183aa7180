/* The fields of Anthropic's messages, with a few of llama-server's extras under its names.
 * https://docs.anthropic.com/en/api/messages */
#include "gateway/request_rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- blocks ---- */

static int refuse_block(struct nk_parse *p, const char *type, const char *where)
{
    return nk__bad(p, NK_E_INVALID, "refused_field", "type",
                   "a block of the type \"%.40s\" is not supported %s", type ? type : "", where);
}

static int want_string(struct nk_parse *p, const json_t *block, const char *name,
                       const json_t **out)
{
    *out = json_object_get(block, name);
    return json_is_string(*out) ? 0
           : *out ? nk__bad(p, NK_E_INVALID, "bad_value", name, "must be a string, not %s",
                            nk__json_type(*out))
                  : nk__bad(p, NK_E_INVALID, "missing_field", name, "is required");
}

/* A document is taken where its source is the text itself. */
static int add_document(struct nk_parse *p, const json_t *block, struct nk_buf *to)
{
    const json_t *source = json_object_get(block, "source"), *text;
    const char *type = json_string_value(json_object_get(source, "type"));

    if (!type || strcmp(type, "text"))
        return nk__bad(p, NK_E_INVALID, "refused_field", "source",
                       "a document of the type \"%.40s\" is not supported; only \"text\" is",
                       type ? type : "");
    for (int i = 0; i < 2; i++) {
        const json_t *more = json_object_get(block, i ? "context" : "title");

        if (json_is_string(more) && nk__build_text(p, to, more))
            return NK_E_EXHAUSTED;
    }
    text = json_object_get(source, "data");
    if (!json_is_string(text))
        return nk__bad(p, NK_E_INVALID, "missing_field", "source.data", "is required: a string");
    return nk__build_text(p, to, text);
}

/* Text alone: a string, or a list of blocks of text. path: of it, with a dot at its end. */
static int text_of(struct nk_parse *p, const json_t *v, const char *path, const char *where,
                   struct nk_buf *to)
{
    const json_t *block, *text;
    size_t i;
    int rc = 0;

    if (json_is_string(v))
        return nk__build_text(p, to, v);
    json_array_foreach((json_t *)v, i, block)
    {
        const char *type = json_string_value(json_object_get(block, "type"));

        snprintf(p->path, sizeof p->path, "%s[%zu].", path, i);
        if (type && !strcmp(type, "text")) {
            rc = want_string(p, block, "text", &text);
            if (!rc)
                rc = nk__build_text(p, to, text);
        } else if (type && !strcmp(type, "document"))
            rc = add_document(p, block, to);
        else
            rc = refuse_block(p, type, where);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_content(struct nk_parse *p, const json_t *v, const char *name)
{
    return json_is_string(v) || json_is_array(v)
               ? 0
               : nk__bad(p, NK_E_INVALID, v ? "bad_value" : "missing_field", name,
                         "must be a string or a list of blocks, not %s",
                         v ? nk__json_type(v) : "missing");
}

static int add_tool_result(struct nk_parse *p, const json_t *block)
{
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    const json_t *id, *content = json_object_get(block, "content");
    char path[sizeof p->path];
    int rc = want_string(p, block, "tool_use_id", &id);

    /* Templates have no place for it, so the model reads it. */
    if (!rc && json_is_true(json_object_get(block, "is_error")))
        rc = nk_buf_adds(&text, "Error:", NULL) ? nk__build_no_memory(p) : 0;
    if (!rc && content && !json_is_null(content)) {
        rc = check_content(p, content, "content");
        snprintf(path, sizeof path, "%.70scontent", p->path);
        if (!rc)
            rc = text_of(p, content, path, "in a tool's result; only \"text\" is", &text);
    }
    if (!rc)
        rc = nk__build_tool_result(p, json_string_value(id), &text);
    nk_buf_release(&text);
    return rc;
}

/* A user's: results of tools and text, in their order. */
static int read_user(struct nk_parse *p, const json_t *content, const char *path)
{
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    const json_t *block, *v;
    bool any = false;
    size_t i;
    int rc = 0;

    if (json_is_string(content)) {
        rc = nk__build_text(p, &text, content);
        any = true;
    }
    json_array_foreach((json_t *)content, i, block)
    {
        const char *type = json_string_value(json_object_get(block, "type"));

        snprintf(p->path, sizeof p->path, "%s[%zu].", path, i);
        if (type && !strcmp(type, "tool_result")) {
            if (any)
                rc = nk__build_message(p, "user", &text);
            any = false;
            nk_buf_reset(&text);
            if (!rc)
                rc = add_tool_result(p, block);
        } else {
            any = true;
            if (type && !strcmp(type, "text")) {
                rc = want_string(p, block, "text", &v);
                if (!rc)
                    rc = nk__build_text(p, &text, v);
            } else if (type && !strcmp(type, "document"))
                rc = add_document(p, block, &text);
            else
                rc = refuse_block(
                    p, type, "in a user's message; \"text\", \"tool_result\" and \"document\" are");
        }
        if (rc)
            break;
    }
    if (!rc && any)
        rc = nk__build_message(p, "user", &text);
    nk_buf_release(&text);
    return rc;
}

static int add_tool_use(struct nk_parse *p, const json_t *block)
{
    const json_t *id, *name, *input = json_object_get(block, "input");
    char *arguments;
    int rc = want_string(p, block, "id", &id);

    if (!rc)
        rc = want_string(p, block, "name", &name);
    if (!rc && input && !json_is_object(input))
        rc = nk__bad(p, NK_E_INVALID, "bad_value", "input", "must be an object, not %s",
                     nk__json_type(input));
    if (rc)
        return rc;
    arguments = input ? json_dumps(input, JSON_COMPACT) : strdup("{}");
    rc = arguments ? nk__build_call(p, json_string_value(id), json_string_value(name), arguments)
                   : nk__build_no_memory(p);
    free(arguments);
    return rc;
}

/* An assistant's: what it thought, said and called. Thinking that another server has encrypted says
 * nothing here. */
static int read_assistant(struct nk_parse *p, const json_t *content, const char *path)
{
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4), thinking = NK_BUF_INIT(SIZE_MAX / 4);
    const json_t *block, *v;
    size_t i;
    int rc = json_is_string(content) ? nk__build_text(p, &text, content) : 0;

    json_array_foreach((json_t *)content, i, block)
    {
        const char *type = json_string_value(json_object_get(block, "type"));

        snprintf(p->path, sizeof p->path, "%s[%zu].", path, i);
        if (type && (!strcmp(type, "text") || !strcmp(type, "thinking"))) {
            rc = want_string(p, block, type, &v);
            if (!rc)
                rc = nk__build_text(p, strcmp(type, "text") ? &thinking : &text, v);
        } else if (!type || (strcmp(type, "tool_use") && strcmp(type, "redacted_thinking")))
            rc = refuse_block(p, type,
                              "in an assistant's message; \"text\", \"thinking\" and "
                              "\"tool_use\" are");
        if (rc)
            break;
    }
    if (!rc)
        rc = nk__build_message(p, "assistant", &text);
    if (!rc)
        rc = nk__build_reasoning(p, &thinking);
    json_array_foreach((json_t *)content, i, block)
    {
        const char *type = json_string_value(json_object_get(block, "type"));

        snprintf(p->path, sizeof p->path, "%s[%zu].", path, i);
        if (!rc && type && !strcmp(type, "tool_use"))
            rc = add_tool_use(p, block);
    }
    nk_buf_release(&text);
    nk_buf_release(&thinking);
    return rc;
}

static int read_system_message(struct nk_parse *p, const json_t *content, const char *path)
{
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    int rc = text_of(p, content, path, "in a system message; only \"text\" is", &text);

    if (!rc)
        rc = nk__build_message(p, "system", &text);
    nk_buf_release(&text);
    return rc;
}

/* ---- fields ---- */

static json_t *messages_of(struct nk_parse *p)
{
    if (!p->r->messages)
        p->r->messages = json_array();
    return p->r->messages;
}

static int read_messages(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const json_t *m;
    size_t i;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of messages, not %s",
                       nk__json_type(v));
    if (!json_array_size(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "is empty; at least one message is needed");
    if (!messages_of(p))
        return nk__build_no_memory(p);
    p->seen_messages = true;
    json_array_foreach((json_t *)v, i, m)
    {
        const json_t *content = json_object_get(m, "content");
        const char *role = json_string_value(json_object_get(m, "role"));
        char path[64];
        int rc = 0;

        snprintf(p->path, sizeof p->path, "messages[%zu].", i);
        snprintf(path, sizeof path, "messages[%zu].content", i);
        if (!json_is_object(m))
            rc = nk__bad(p, NK_E_INVALID, "bad_value", "", "must be an object, not %s",
                         nk__json_type(m));
        else if (!role ||
                 (strcmp(role, "user") && strcmp(role, "assistant") && strcmp(role, "system")))
            rc = nk__bad(p, NK_E_INVALID, role ? "bad_value" : "missing_field", "role",
                         "must be \"user\", \"assistant\" or \"system\"");
        if (!rc)
            rc = check_content(p, content, "content");
        if (!rc)
            rc = !strcmp(role, "user")     ? read_user(p, content, path)
                 : !strcmp(role, "system") ? read_system_message(p, content, path)
                                           : read_assistant(p, content, path);
        if (rc)
            return rc;
    }
    p->path[0] = '\0';
    return nk__build_end(p);
}

/* It comes first, wherever it stands in the request. */
static int read_system(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    struct nk_buf text = NK_BUF_INIT(SIZE_MAX / 4);
    int rc = check_content(p, v, f->name);
    json_t *m;

    if (!rc)
        rc = text_of(p, v, f->name, "in a system prompt; only \"text\" is", &text);
    if (!rc && text.size) {
        m = json_pack("{s:s, s:o}", "role", "system", "content",
                      json_stringn(text.data, text.size));
        if (!messages_of(p) || !m || json_array_insert_new(p->r->messages, 0, m))
            rc = nk__build_no_memory(p);
    }
    nk_buf_release(&text);
    if (!rc)
        p->path[0] = '\0';
    return rc;
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
        if (type && strcmp(type, "custom"))
            return nk__bad(p, NK_E_INVALID, "refused_field", "type",
                           "the built-in tool \"%.60s\" is not served; tools with a name and an "
                           "input_schema are",
                           type);
        rc = nk__build_tool(p, tool, "input_schema");
        if (rc)
            return rc;
    }
    p->path[0] = '\0';
    return 0;
}

static int read_tool_choice(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    const json_t *name = json_object_get(v, "name"),
                 *single = json_object_get(v, "disable_parallel_tool_use");

    if (type && !strcmp(type, "auto"))
        p->r->tool_choice = NK_TOOLS_AUTO;
    else if (type && !strcmp(type, "none"))
        p->r->tool_choice = NK_TOOLS_NONE;
    else if (type && !strcmp(type, "any"))
        p->r->tool_choice = NK_TOOLS_REQUIRED;
    else if (type && !strcmp(type, "tool") && json_is_string(name)) {
        p->r->tool_choice = NK_TOOLS_NAMED;
        p->r->tool_name = json_string_value(name);
    } else
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be an object whose type is \"auto\", \"any\", \"none\", or \"tool\" "
                       "with a name");
    if (single && !json_is_null(single) && !json_is_boolean(single))
        return nk__bad(p, NK_E_INVALID, "bad_value", "tool_choice.disable_parallel_tool_use",
                       "must be true or false, not %s", nk__json_type(single));
    p->r->parallel_tool_calls = !json_is_true(single);
    return 0;
}

static int read_thinking(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const types[] = { "enabled", "disabled", "adaptive", "between_tools", NULL },
                             *const displays[] = { "summarized", "omitted", NULL };
    const json_t *type = json_object_get(v, "type"), *display = json_object_get(v, "display");

    if (!nk__is_one_of(type, types))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be an object whose type is \"enabled\", \"disabled\", \"adaptive\" or "
                       "\"between_tools\"");
    if (display && !json_is_null(display) && !nk__is_one_of(display, displays))
        return nk__bad(p, NK_E_INVALID, "bad_value", "thinking.display",
                       "must be \"summarized\" or \"omitted\"");
    if (!strcmp(json_string_value(type), "enabled")) {
        p->r->think = NK_THINK_ON;
        p->r->think_if_able = true;
    } else if (!strcmp(json_string_value(type), "disabled"))
        p->r->think = NK_THINK_OFF;
    p->r->hide_reasoning =
        json_is_string(display) && !strcmp(json_string_value(display), "omitted");
    return 0;
}

static int read_format(struct nk_parse *p, const char *name, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    const json_t *schema = json_object_get(v, "schema");

    if (!type || strcmp(type, "json_schema"))
        return nk__bad(p, NK_E_INVALID, "bad_value", name,
                       "must be an object of the type \"json_schema\" with a schema");
    if (!json_is_object(schema))
        return nk__bad(p, NK_E_INVALID, "missing_field", name,
                       "has no schema, which must be an object");
    p->r->format = NK_FORMAT_SCHEMA;
    p->r->schema = schema;
    return 0;
}

static int read_output_format(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return read_format(p, f->name, v);
}

static int read_output_config(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const efforts[] = { "low", "medium", "high", "xhigh", "max", NULL };
    const json_t *effort = json_object_get(v, "effort"), *format = json_object_get(v, "format");

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    if (effort && !json_is_null(effort)) {
        if (!nk__is_one_of(effort, efforts))
            return nk__bad(p, NK_E_INVALID, "bad_value", "output_config.effort",
                           "must be \"low\", \"medium\", \"high\", \"xhigh\" or \"max\"");
        p->r->reasoning_effort =
            strcmp(json_string_value(effort), "max") ? json_string_value(effort) : "xhigh";
        p->r->think_if_able = true;
    }
    return format && !json_is_null(format) ? read_format(p, "output_config.format", format) : 0;
}

static int read_metadata(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const json_t *user = json_object_get(v, "user_id");

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    if (user && !json_is_null(user) && !json_is_string(user))
        return nk__bad(p, NK_E_INVALID, "bad_value", "metadata.user_id", "must be a string, not %s",
                       nk__json_type(user));
    p->r->user = json_string_value(user);
    return 0;
}

static int check_no_servers(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_array(v) && !json_array_size(v))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only [] is supported: %s", f->note);
}

/* Thinking of earlier turns goes by the template anyway; results of tools are not dropped here. */
static int check_context_management(struct nk_parse *p, const struct nk_field_rule *f,
                                    const json_t *v)
{
    const json_t *edit;
    size_t i;

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "must be an object: %s", f->note);
    json_array_foreach(json_object_get(v, "edits"), i, edit)
    {
        const char *type = json_string_value(json_object_get(edit, "type"));

        if (!type || strncmp(type, "clear_thinking_", 15))
            return nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                           "the edit \"%.60s\" is not supported: %s", type ? type : "", f->note);
    }
    return 0;
}

/* By the word that tells Anthropic's SDK to go on without threads. */
static int refuse_thread(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    (void)v;
    return nk__bad(p, NK_E_INVALID, "thread_unsupported_request", f->name,
                   "not supported: messages are not kept; send the whole history");
}

/* clang-format off */
const struct nk_field_rule nk__rules_anthropic[] = {
    { "messages",           NK_FIELD_YES,     read_messages, 0, 0, 0,
      "content as text or blocks: text, document with a text as its source, tool_result, tool_use, "
      "thinking; images are refused; an error of a tool begins with \"Error:\"" },
    { "system",             NK_FIELD_YES,     read_system, 0, 0, 0, "text, or blocks of text" },
    { "model",              NK_FIELD_YES,     nk__read_string, NK_OFFSET(model), 0, 0,
      "a name that /v1/models lists" },
    { "max_tokens",         NK_FIELD_YES,     nk__read_int, NK_OFFSET(n_predict), 1, INT32_MAX,
      "not given: a share of the context, the workers' context by their sequences" },
    { "stream",             NK_FIELD_YES,     nk__read_bool, NK_OFFSET(stream), 0, 0,
      "events by name, with pings in a long prefill" },
    { "stop_sequences",     NK_FIELD_YES,     nk__read_stop, 0, 0, 0, "up to 16" },
    { "temperature",        NK_FIELD_YES,     nk__read_float, NK_SAMPLING(temperature), 0, 100,
      "0: greedy; default 0.8" },
    { "top_p",              NK_FIELD_YES,     nk__read_float, NK_SAMPLING(top_p), 0, 1,
      "default 0.95" },
    { "top_k",              NK_FIELD_YES,     nk__read_int, NK_SAMPLING(top_k), 0, INT32_MAX,
      "0: off; default 40" },
    { "tools",              NK_FIELD_YES,     read_tools, 0, 0, 0,
      "with a name and an input_schema; strict: held to it by a grammar; built-in kinds are "
      "refused by name" },
    { "tool_choice",        NK_FIELD_YES,     read_tool_choice, 0, 0, 0,
      "auto, none, any, or a tool; the last two by a grammar; disable_parallel_tool_use: the reply "
      "ends after the first call" },
    { "thinking",           NK_FIELD_YES,     read_thinking, 0, 0, 0,
      "enabled: where the model can; disabled; adaptive, between_tools: as the template has it; "
      "budget_tokens is "
      "not looked at; display: omitted leaves the text out" },
    { "output_config",      NK_FIELD_YES,     read_output_config, 0, 0, 0,
      "effort: for templates that have degrees of it; format: a JSON schema, turned into a "
      "grammar" },
    { "output_format",      NK_FIELD_YES,     read_output_format, 0, 0, 0,
      "the older name of output_config.format" },
    { "metadata",           NK_FIELD_YES,     read_metadata, 0, 0, 0,
      "user_id goes to the log with the request" },
    { "seed",               NK_FIELD_YES,     nk__read_seed, 0, 0, 0,
      "llama-server's; the same seed gives the same text; -1: a random one" },
    { "min_p",              NK_FIELD_YES,     nk__read_float, NK_SAMPLING(min_p), 0, 1,
      "llama-server's; default 0.05" },
    NK_RULES_MORE_SAMPLING,
    { "grammar",            NK_FIELD_YES,     nk__read_grammar, 0, 0, 0,
      "llama-server's; GBNF with the rule root" },
    { "ignore_eos",         NK_FIELD_YES,     nk__read_bool, NK_SAMPLING(ignore_eos), 0, 0,
      "llama-server's" },
    { "deterministic",      NK_FIELD_YES,     nk__read_bool, NK_OFFSET(deterministic), 0, 0,
      "ours; as in /v1/chat/completions" },
    { "cache_control",      NK_FIELD_IGNORED, NULL, 0, 0, 0,
      "also in blocks and tools: kept sessions are found by the prompt itself" },
    { "service_tier",       NK_FIELD_IGNORED, NULL, 0, 0, 0, "there is one tier" },
    { "inference_geo",      NK_FIELD_IGNORED, NULL, 0, 0, 0, "the workers are where they are" },
    { "speed",              NK_FIELD_IGNORED, NULL, 0, 0, 0, "there is one speed" },
    { "context_management", NK_FIELD_FIXED,   check_context_management, 0, 0, 0,
      "only edits of thinking, which goes by the template" },
    { "mcp_servers",        NK_FIELD_FIXED,   check_no_servers, 0, 0, 0,
      "the gateway calls nobody" },
    { "diagnostics",        NK_FIELD_IGNORED, NULL, 0, 0, 0, "usage tells what was reused" },
    { "fallbacks",          NK_FIELD_IGNORED, NULL, 0, 0, 0, "there is one model" },
    { "user_profile_id",    NK_FIELD_IGNORED, NULL, 0, 0, 0, "a label" },
    { "workspace_id",       NK_FIELD_IGNORED, NULL, 0, 0, 0, "a label" },
    { "billing_policy",     NK_FIELD_IGNORED, NULL, 0, 0, 0, "nothing is billed" },
    { "compaction",         NK_FIELD_REFUSED, NULL, 0, 0, 0, "send a shorter history" },
    { "thread",             NK_FIELD_FIXED,   refuse_thread, 0, 0, 0,
      "null; the SDK's tool runner then sends the whole history" },
    { "container",          NK_FIELD_REFUSED, NULL, 0, 0, 0, "nothing is executed here" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
