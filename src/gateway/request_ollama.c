/* The fields of Ollama's chat, generate and show.
 * https://github.com/ollama/ollama/blob/main/docs/api.md */
#include "gateway/request_rules.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int check_no_images(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_array(v) && !json_array_size(v))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only text is supported");
}

static int read_format(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_string(v) && !json_string_length(v))
        return 0;
    if (json_is_string(v) && !strcmp(json_string_value(v), "json"))
        p->r->format = NK_FORMAT_JSON;
    else if (json_is_object(v)) {
        p->r->format = NK_FORMAT_SCHEMA;
        p->r->schema = v;
    } else
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be \"json\" or a JSON schema (an object), not %s", nk__json_type(v));
    return 0;
}

/* A number of seconds, or Go's durations: "5m", "1h30m", "-1s". The model is always there as long
 * as the workers are; what this decides is whether the session's KV is kept for the next request:
 * not for 0. */
int nk__read_keep_alive(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const units[] = { "ns", "us", "\xc2\xb5s", "ms", "s", "m", "h" };
    const char *s = json_string_value(v), *at;
    bool zero = true, some = false;

    if (json_is_number(v)) {
        p->r->no_reuse = json_number_value(v) == 0;
        return 0;
    }
    for (at = s ? s + (s[0] == '-' || s[0] == '+') : ""; *at; some = true) {
        char *end;
        double x;
        size_t u;

        if (!isdigit((unsigned char)*at) && *at != '.')
            break;
        x = strtod(at, &end);
        for (u = 0; u < sizeof units / sizeof units[0]; u++)
            if (!strncmp(end, units[u], strlen(units[u])) &&
                (strcmp(units[u], "m") || end[1] != 's'))
                break;
        if (u == sizeof units / sizeof units[0] && (*end || some))
            break;
        zero = zero && x == 0;
        at = u == sizeof units / sizeof units[0] ? end : end + strlen(units[u]);
    }
    if (!some || *at)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a number of seconds or a duration such as \"5m\"");
    p->r->no_reuse = zero;
    return 0;
}

static int read_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string, not %s",
                       nk__json_type(v));
    p->r->prompts[0] =
        (struct nk_prompt){ .text = json_string_value(v), .size = json_string_length(v) };
    p->r->n_prompts = 1;
    return 0;
}

static int read_system(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string, not %s",
                       nk__json_type(v));
    if (json_string_length(v))
        p->r->system = json_string_value(v);
    return 0;
}

/* Ollama's own client (in Go) sends every field, those without a value as "". */
static int read_name(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return json_is_string(v) && !json_string_length(v) ? 0 : nk__read_string(p, f, v);
}

static int read_context(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a list of token ids, as an earlier reply gave it, not %s",
                       nk__json_type(v));
    return nk__read_ids(p, f->name, v, &p->r->context, &p->r->n_context);
}

static int read_num_predict(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (!nk__json_integer(v, &i) || i == 0 || i < -2 || i > INT32_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a positive integer, or -1 or -2 for as many as the context holds");
    p->r->n_predict = i < 0 ? -1 : (int)i;
    return 0;
}

int nk__read_options(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc;

    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    snprintf(p->path, sizeof p->path, "options.");
    rc = nk__read_object(p, nk__rules_ollama_options, v);
    p->path[0] = '\0';
    return rc;
}

/* clang-format off */
const struct nk_field_rule nk__rules_ollama_options[] = {
    { "num_predict",       NK_FIELD_YES,     read_num_predict, 0, 0, 0,
      "-1 or -2: as many as the context holds; not given: a share of it, the workers' context "
      "by their sequences" },
    { "num_ctx",           NK_FIELD_YES,     nk__read_int, NK_OFFSET(num_ctx), 1, INT32_MAX,
      "prompt and reply together; more than the workers have is ignored" },
    { "temperature",       NK_FIELD_YES,     nk__read_float, NK_SAMPLING(temperature), 0, 100,
      "default 0.8" },
    { "top_k",             NK_FIELD_YES,     nk__read_top_k, NK_SAMPLING(top_k), 0, INT32_MAX,
      "default 40" },
    { "top_p",             NK_FIELD_YES,     nk__read_float, NK_SAMPLING(top_p),
      0, 1, "default 0.9" },
    { "min_p",             NK_FIELD_YES,     nk__read_float, NK_SAMPLING(min_p),
      0, 1, "default 0" },
    { "typical_p",         NK_FIELD_YES,     nk__read_float, NK_SAMPLING(typical_p),
      0, 1, "1: off" },
    { "seed",              NK_FIELD_YES,     nk__read_seed, 0, 0, 0, "-1: a random one" },
    { "stop",              NK_FIELD_YES,     nk__read_stop, 0, 0, 0, "a string, or up to 16" },
    { "repeat_last_n",     NK_FIELD_YES,     nk__read_int, NK_SAMPLING(penalty_last_n),
      -1, INT32_MAX,
      "default 64; -1: all" },
    { "repeat_penalty",    NK_FIELD_YES,     nk__read_float, NK_SAMPLING(repeat_penalty), 0.01, 100,
      "default 1.1" },
    { "presence_penalty",  NK_FIELD_YES,     nk__read_float, NK_SAMPLING(presence_penalty), -2, 2,
      "" },
    { "frequency_penalty", NK_FIELD_YES,     nk__read_float, NK_SAMPLING(frequency_penalty), -2, 2,
      "" },
    { "mirostat",          NK_FIELD_YES,     nk__read_int, NK_SAMPLING(mirostat), 0, 2, "" },
    { "mirostat_tau",      NK_FIELD_YES,     nk__read_float, NK_SAMPLING(mirostat_tau),
      0, 100, "" },
    { "mirostat_eta",      NK_FIELD_YES,     nk__read_float, NK_SAMPLING(mirostat_eta), 0, 1, "" },
    { "num_keep",          NK_FIELD_IGNORED, NULL, 0, 0, 0,
      "a full context ends the reply, it is not shifted" },
    { "draft_num_predict", NK_FIELD_IGNORED, NULL, 0, 0, 0, "there is no draft model" },
    { "num_batch",         NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "num_gpu",           NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "main_gpu",          NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "num_thread",        NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "use_mmap",          NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "use_mlock",         NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "low_vram",          NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "f16_kv",            NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "numa",              NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "penalize_newline",  NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0,
      "libllama has it no more" },
    { "tfs_z",             NK_FIELD_FIXED,   nk__read_only_number, 0, 1, 1,
      "libllama has it no more" },
    { "logits_all",        NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "vocab_only",        NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0, NK_NO_LOADING },
    { "embedding_only",    NK_FIELD_FIXED,   nk__read_only_false, 0, 0, 0, NK_NO_LOADING },
    { "rope_frequency_base", NK_FIELD_REFUSED, NULL, 0, 0, 0, NK_NO_LOADING },
    { "rope_frequency_scale", NK_FIELD_REFUSED, NULL, 0, 0, 0, NK_NO_LOADING },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

#define SHARED_RULES \
    { "model",        NK_FIELD_YES,   nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /api/tags lists, with or without :latest" }, \
    { "stream",       NK_FIELD_YES,   nk__read_bool, NK_OFFSET(stream), 0, 0, \
      "default true; one JSON object per line" }, \
    { "format",       NK_FIELD_YES,   read_format, 0, 0, 0, "\"json\" or a JSON schema" }, \
    { "options",      NK_FIELD_YES,   nk__read_options, 0, 0, 0, "" }, \
    { "temperature",  NK_FIELD_YES,   nk__read_float, NK_SAMPLING(temperature), 0, 100, \
      "ollama-ai-provider's, as the next two; Ollama's own is in options" }, \
    { "top_p",        NK_FIELD_YES,   nk__read_float, NK_SAMPLING(top_p), 0, 1, "the same" }, \
    { "max_output_tokens", NK_FIELD_YES, nk__read_int, NK_OFFSET(n_predict), 1, INT32_MAX, \
      "the same; of options: num_predict" }, \
    { "think",        NK_FIELD_YES,   nk__read_think, 0, 0, 0, \
      "for templates that use enable_thinking or reasoning_effort" }, \
    { "keep_alive",   NK_FIELD_YES,   nk__read_keep_alive, 0, 0, 0, \
      "the model is always there; 0: this session's KV is not kept for the next request" }, \
    { "logprobs",     NK_FIELD_YES,   nk__read_want_logprobs, 0, 0, 0, "" }, \
    { "top_logprobs", NK_FIELD_YES,   nk__read_top_logprobs, 0, 0, 0, "0 to 20" }, \
    { "truncate",     NK_FIELD_YES,   nk__read_bool, NK_OFFSET(truncate), 0, 0, \
      "of a chat that does not fit the oldest turns are left out; false: it is an error, as a " \
      "prompt of generate always is" }, \
    { "shift",        NK_FIELD_IGNORED, NULL, 0, 0, 0, "a full context ends the reply" }, \
    { "template",     NK_FIELD_FIXED, nk__read_only_empty, 0, 0, 0, \
      "\"\"; the gateway's --chat-template decides" }

const struct nk_field_rule nk__rules_ollama_chat[] = {
    { "messages", NK_FIELD_YES, nk__read_messages, 0, 0, 0,
      "none: asks whether the model is there" },
    { "tools",    NK_FIELD_YES, nk__read_tools, 0, 0, 0, "for templates that know tools" },
    { "tool_choice", NK_FIELD_YES, nk__read_tool_choice, 0, 0, 0, "OpenAI's" },
    SHARED_RULES,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_ollama_generate[] = {
    { "prompt",   NK_FIELD_YES,     read_prompt, 0, 0, 0,
      "a user's message for the chat template; as it is where the model has none; none: asks "
      "whether the model is there" },
    { "system",   NK_FIELD_YES,     read_system, 0, 0, 0, "needs a chat template" },
    { "raw",      NK_FIELD_YES,     nk__read_bool, NK_OFFSET(raw), 0, 0, "the prompt as it is" },
    { "context",  NK_FIELD_YES,     read_context, 0, 0, 0,
      "token ids that an earlier reply gave; the prompt follows them" },
    SHARED_RULES,
    { "images",   NK_FIELD_FIXED,   check_no_images, 0, 0, 0, "null or []; only text" },
    { "suffix",   NK_FIELD_YES,     nk__read_suffix, 0, 0, 0,
      "for models that were made to fill in text, else 400; the prompt is not put into a "
      "template" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_ollama_show[] = {
    { "model",    NK_FIELD_YES,     nk__read_string, NK_OFFSET(model), 0, 0, "" },
    { "name",     NK_FIELD_YES,     read_name, NK_OFFSET(model), 0, 0, "the old word for model" },
    { "verbose",  NK_FIELD_IGNORED, NULL, 0, 0, 0, "the vocabulary is not listed" },
    { "system",   NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0, "\"\"; show changes nothing" },
    { "template", NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0, "\"\"; show changes nothing" },
    { "options",  NK_FIELD_FIXED,   nk__read_only_empty, 0, 0, 0, "{}; show changes nothing" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
