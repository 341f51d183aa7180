/* The fields of OpenAI's chat completions and completions, with the extras that llama-server and
 * other servers have under their names.
 * https://platform.openai.com/docs/api-reference/chat/create and .../completions/create;
 * llama.cpp's tools/server. */
#include "gateway/request_rules.h"

#include <stdlib.h>
#include <string.h>

static int read_response_format(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type"));
    const json_t *schema = json_object_get(v, "schema");

    if (!json_is_object(v) || !type)
        return nk__bad(
            p, NK_E_INVALID, "bad_value", f->name,
            "must be an object with a type: \"text\", \"json_object\" or \"json_schema\"");
    if (!strcmp(type, "text"))
        return 0;
    if (!strcmp(type, "json_object") && (!schema || json_is_null(schema))) {
        p->r->format = NK_FORMAT_JSON;
        return 0;
    }
    if (strcmp(type, "json_object") && strcmp(type, "json_schema"))
        return nk__bad(
            p, NK_E_INVALID, "bad_value", f->name,
            "the type \"%.40s\" is not known; \"text\", \"json_object\" and \"json_schema\" are",
            type);
    /* llama-server has it beside the type, OpenAI one deeper. The schema is always kept to, so that
     * strict true and false are both true to it. */
    if (!strcmp(type, "json_schema") && !schema)
        schema = json_object_get(json_object_get(v, "json_schema"), "schema");
    if (!json_is_object(schema))
        return nk__bad(p, NK_E_INVALID, schema ? "bad_value" : "missing_field",
                       strcmp(type, "json_schema") ? "response_format.schema"
                                                   : "response_format.json_schema.schema",
                       "%s a JSON schema (an object)", schema ? "must be" : "is required:");
    p->r->format = NK_FORMAT_SCHEMA;
    p->r->schema = schema;
    return 0;
}

/* Open WebUI's switches for what it does itself: {"web_search": false, ...}. */
static int read_features(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *name;
    json_t *member;

    json_object_foreach((json_t *)v, name, member)
    {
        if (!json_is_false(member) && !json_is_null(member))
            return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "\"%.40s\": %s", name,
                           f->note);
    }
    return json_is_object(v) ? 0
                             : nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                                       "must be an object, not %s", nk__json_type(v));
}

int nk__read_enable_thinking(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    bool on = json_is_true(v);

    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    p->r->think = on ? NK_THINK_ON : NK_THINK_OFF;
    return 0;
}

static int read_reasoning_format(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *s = json_string_value(v);

    if (s && (!strcmp(s, "auto") || !strcmp(s, "deepseek")))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                   "only \"auto\" and \"deepseek\" are supported: %s", f->note);
}

/* A suggestion of the price, not of the answer. */
static int read_service_tier(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *s = json_string_value(v);

    return s && (!strcmp(s, "auto") || !strcmp(s, "default")) ? 0 : nk__ignore(p, f->name);
}

/* clang-format off */
const struct nk_field_rule nk__rules_stream_options[] = {
    { "include_usage",       NK_FIELD_YES,   nk__read_bool, NK_OFFSET(include_usage), 0, 0,
      "a last chunk with the counts" },
    { "include_obfuscation", NK_FIELD_FIXED, nk__read_only_false, 0, 0, 0,
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

static int read_modalities(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *one = json_string_value(json_array_get(v, 0));

    if (json_array_size(v) == 1 && one && !strcmp(one, "text"))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only [\"text\"] is supported");
}

/* clang-format off */
#define SHARED_RULES \
    { "model",              NK_FIELD_YES, nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /v1/models lists; none: the one that is there" }, \
    { "stream",             NK_FIELD_YES, nk__read_bool, NK_OFFSET(stream), 0, 0, \
      "server-sent events, ended by [DONE]" }, \
    { "stream_options",     NK_FIELD_YES, read_stream_options, 0, 0, 0, \
      "without stream it changes nothing" }, \
    { "max_tokens",         NK_FIELD_YES, nk__read_max_tokens, 0, 0, 0, \
      "-1: as many as the context holds; not given: a share of it, the workers' context by " \
      "their sequences" }, \
    { "n",                  NK_FIELD_YES, nk__read_n, 0, 0, 0, \
      "each choice is a generation of its own" }, \
    NK_RULES_SAMPLING, \
    { "best_of",            NK_FIELD_FIXED,   nk__read_only_number, 0, 1, 1, "1; use n" }, \
    { "timings_per_token",  NK_FIELD_YES,     nk__read_bool, NK_OFFSET(timings_per_token), 0, 0, \
      "llama-server's; each chunk of a stream tells how long it took by then" }, \
    { "return_progress",    NK_FIELD_YES,     nk__read_bool, NK_OFFSET(progress), 0, 0, \
      "llama-server's; streams tell how far the prompt is, as prompt_progress" }, \
    NK_RULES_HINTS, \
    { "store",              NK_FIELD_IGNORED, NULL, 0, 0, 0, "nothing is stored" }, \
    { "metadata",           NK_FIELD_IGNORED, NULL, 0, 0, 0, "nothing is stored" }, \
    { "service_tier",       NK_FIELD_IGNORED, read_service_tier, 0, 0, 0, "there is one tier" }, \
    { "prompt_cache_key",   NK_FIELD_IGNORED, NULL, 0, 0, 0, \
      "kept sessions are found by the prompt itself" }, \
    { "prompt_cache_retention", NK_FIELD_IGNORED, NULL, 0, 0, 0, "the same" }, \
    { "safety_identifier",  NK_FIELD_IGNORED, NULL, 0, 0, 0, "use user" }, \
    { "provider",           NK_FIELD_IGNORED, NULL, 0, 0, 0, "OpenRouter's" }, \
    { "transforms",         NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0, \
      "OpenRouter's; []: prompts are not shortened" }, \
    { "session_id",         NK_FIELD_IGNORED, NULL, 0, 0, 0, "Open WebUI's" }, \
    { "chat_id",            NK_FIELD_IGNORED, NULL, 0, 0, 0, "Open WebUI's" }, \
    { "id",                 NK_FIELD_IGNORED, NULL, 0, 0, 0, "Open WebUI's" }, \
    { "title",              NK_FIELD_IGNORED, NULL, 0, 0, 0, "Open WebUI's" }, \
    { "variables",          NK_FIELD_IGNORED, NULL, 0, 0, 0, "Open WebUI's" }, \
    { "features",           NK_FIELD_FIXED,   read_features, 0, 0, 0, \
      "Open WebUI's; only switched off: it is the web page's own" }

const struct nk_field_rule nk__rules_chat[] = {
    { "messages",              NK_FIELD_YES,     nk__read_messages, 0, 0, 0, "" },
    SHARED_RULES,
    { "max_completion_tokens", NK_FIELD_YES,     nk__read_max_tokens, 0, 0, 0,
      "the same as max_tokens" },
    { "logprobs",              NK_FIELD_YES,     nk__read_want_logprobs, 0, 0, 0, "" },
    { "top_logprobs",          NK_FIELD_YES,     nk__read_top_logprobs, 0, 0, 0, "0 to 20" },
    { "response_format",       NK_FIELD_YES,     read_response_format, 0, 0, 0,
      "text, json_object (with a schema, too), json_schema (turned into a grammar; strict or "
      "not)" },
    { "tools",                 NK_FIELD_YES,     nk__read_tools, 0, 0, 0,
      "for templates that know tools" },
    { "tool_choice",           NK_FIELD_YES,     nk__read_tool_choice, 0, 0, 0,
      "auto, none, required, or a function; the last two by a grammar" },
    { "parallel_tool_calls",   NK_FIELD_YES,     nk__read_bool, NK_OFFSET(parallel_tool_calls),
      0, 0, "false: the reply ends after the first call" },
    { "reasoning_effort",      NK_FIELD_YES,     nk__read_reasoning_effort, 0, 0, 0,
      "for templates that use it, or enable_thinking (none: off)" },
    { "reasoning",             NK_FIELD_YES,     nk__read_reasoning, 0, 0, 0,
      "OpenRouter's: {\"effort\": ...} or {\"enabled\": ...}" },
    { "thinking",              NK_FIELD_YES,     nk__read_thinking, 0, 0, 0,
      "{\"type\": \"enabled\"} or \"disabled\"" },
    { "enable_thinking",       NK_FIELD_YES,     nk__read_enable_thinking, 0, 0, 0, "" },
    { "think",                 NK_FIELD_YES,     nk__read_think, 0, 0, 0, "Ollama's" },
    { "chat_template_kwargs",  NK_FIELD_YES,     nk__read_object_field,
      NK_OFFSET(template_kwargs), 0, 0, "llama-server's; variables for the template" },
    { "reasoning_format",      NK_FIELD_FIXED,   read_reasoning_format, 0, 0, 0,
      "llama-server's; thoughts are in reasoning_content" },
    { "continue_final_message", NK_FIELD_YES,    nk__read_continue, 0, 0, 0,
      "vLLM's; whether a last message of the assistant is continued; default: it is" },
    { "add_generation_prompt", NK_FIELD_YES,     nk__read_begin, 0, 0, 0,
      "vLLM's; true: a new reply begins after it; false: none begins, the prompt ends with the "
      "messages" },
    { "modalities",            NK_FIELD_FIXED,   read_modalities, 0, 0, 0, "[\"text\"]" },
    { "echo",                  NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0,
      "false; of completions" },
    { "suffix",                NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0,
      "\"\"; of completions" },
    { "n_probs",               NK_FIELD_FIXED,   nk__read_only_number, 0, 0, 0,
      "0; use top_logprobs" },
    { "prediction",            NK_FIELD_IGNORED, NULL, 0, 0, 0,
      "would only make the answer faster" },
    { "verbosity",             NK_FIELD_IGNORED, NULL, 0, 0, 0, "no template uses it" },
    { "audio",                 NK_FIELD_REFUSED, NULL, 0, 0, 0, "only text" },
    { "functions",             NK_FIELD_REFUSED, NULL, 0, 0, 0, "replaced by tools" },
    { "function_call",         NK_FIELD_REFUSED, NULL, 0, 0, 0, "replaced by tool_choice" },
    { "web_search_options",    NK_FIELD_REFUSED, NULL, 0, 0, 0, "there is no search" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_completion[] = {
    { "prompt",   NK_FIELD_YES,     nk__read_prompt, 0, 0, 0,
      "text, a list of texts, token ids, or a list of those; ids and texts in one list are one "
      "prompt" },
    SHARED_RULES,
    { "logprobs", NK_FIELD_YES,     nk__read_completion_logprobs, 0, 0, 0, "0 to 20" },
    { "n_probs",  NK_FIELD_YES,     nk__read_n_probs, 0, 0, 0, "llama-server's name for logprobs" },
    { "echo",     NK_FIELD_YES,     nk__read_bool, NK_OFFSET(repeats_prompt), 0, 0,
      "with logprobs also those of the prompt, computed from its beginning; the first token has "
      "none" },
    { "suffix",   NK_FIELD_YES,     nk__read_suffix, 0, 0, 0,
      "for models that were made to fill in text, else 400 no_fim" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
