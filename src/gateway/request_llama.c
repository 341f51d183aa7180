/* The fields of llama-server's own routes. llama.cpp's tools/server/README.md. */
#include "gateway/request_rules.h"

#include <stdlib.h>
#include <string.h>

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

static int read_extra(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    const json_t *chunk;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list, not %s",
                       nk__json_type(v));
    json_array_foreach((json_t *)v, i, chunk)
    {
        const json_t *name = json_object_get(chunk, "filename");

        if (!json_is_string(json_object_get(chunk, "text")) || (name && !json_is_string(name)))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "element %zu must be {\"text\": ..., \"filename\": ...} with strings; "
                           "the text is needed",
                           i);
    }
    p->r->input_extra = v;
    return 0;
}

/* Also an empty one. */
static int read_input_suffix(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return nk__read_string(p, f, v);
}

static int read_response_fields(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    const json_t *one;

    json_array_foreach((json_t *)v, i, one)
    {
        if (!json_is_string(one))
            break;
    }
    if (!json_is_array(v) || i < json_array_size(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of names");
    if (json_array_size(v))
        p->r->response_fields = json_incref((json_t *)v);
    return 0;
}

/* clang-format off */
#define LLAMA_RULES \
    { "model",           NK_FIELD_YES,     nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /v1/models lists; not needed" }, \
    { "stream",          NK_FIELD_YES,     nk__read_bool, NK_OFFSET(stream), 0, 0, \
      "server-sent events; the last one has stop: true" }, \
    { "max_tokens",      NK_FIELD_YES,     nk__read_max_tokens, 0, 0, 0, \
      "the same as n_predict" }, \
    { "n",               NK_FIELD_YES,     nk__read_n, 0, 0, 0, \
      "each is a generation of its own; more than one: the reply is a list" }, \
    NK_RULES_SAMPLING, \
    { "n_probs",         NK_FIELD_YES,     nk__read_n_probs, 0, 0, 0, "0 to 20" }, \
    { "post_sampling_probs", NK_FIELD_FIXED, nk__read_only_false, 0, 0, 0, \
      "false; log-probabilities are of the model's own distribution" }, \
    { "return_tokens",   NK_FIELD_YES,     nk__read_bool, NK_OFFSET(return_tokens), 0, 0, \
      "the ids of a text that is not streamed" }, \
    { "response_fields", NK_FIELD_YES,     read_response_fields, 0, 0, 0, \
      "the members that the reply has; a/b: b of a" }, \
    { "timings_per_token", NK_FIELD_YES,   nk__read_bool, NK_OFFSET(timings_per_token), 0, 0, \
      "each event of a stream tells how long it took by then; the last one does always" }, \
    { "return_progress", NK_FIELD_YES,     nk__read_bool, NK_OFFSET(progress), 0, 0, \
      "streams tell how far the prompt is, as prompt_progress" }, \
    NK_RULES_HINTS

const struct nk_field_rule nk__rules_llama_completion[] = {
    { "prompt",          NK_FIELD_YES,     nk__read_prompt, 0, 0, 0,
      "text, a list of texts, token ids, or a list of those; ids and texts in one list are one "
      "prompt; several: the reply is a list" },
    LLAMA_RULES,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_infill[] = {
    { "input_prefix",    NK_FIELD_YES,     nk__read_string, NK_OFFSET(input_prefix), 0, 0,
      "what comes before; models that were made to fill in text, else 400 no_fim" },
    { "input_suffix",    NK_FIELD_YES,     read_input_suffix, NK_OFFSET(suffix), 0, 0,
      "what comes after" },
    { "input_extra",     NK_FIELD_YES,     read_extra, 0, 0, 0,
      "other files: [{\"filename\": ..., \"text\": ...}]" },
    { "prompt",          NK_FIELD_YES,     nk__read_prompt, 0, 0, 0,
      "what the text begins with" },
    LLAMA_RULES,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

/* llama-server's. */
#define ANY_MODEL \
    { "model", NK_FIELD_YES, nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /v1/models lists; not needed" }

const struct nk_field_rule nk__rules_tokenize[] = {
    { "content",       NK_FIELD_YES, read_content, NK_OFFSET(prompts[0].text), 0, 0, "the text" },
    { "add_special",   NK_FIELD_YES, nk__read_bool, NK_OFFSET(add_special), 0, 0,
      "with the BOS and EOS tokens that a prompt gets; default false" },
    { "parse_special", NK_FIELD_YES, nk__read_bool, NK_OFFSET(parse_special), 0, 0,
      "marks such as <|im_start|> are one token; default true" },
    { "with_pieces",   NK_FIELD_YES, nk__read_bool, NK_OFFSET(with_pieces), 0, 0,
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
    { "continue_final_message", NK_FIELD_YES, nk__read_continue, 0, 0, 0, "as in chats" },
    { "add_generation_prompt", NK_FIELD_YES, nk__read_begin, 0, 0, 0, "as in chats" },
    { "tool_choice",          NK_FIELD_YES, nk__read_tool_choice, 0, 0, 0,
      "none: the template does not see the tools" },
    { "reasoning_effort",     NK_FIELD_YES, nk__read_reasoning_effort, 0, 0, 0,
      "for templates that use it, or enable_thinking (none: off)" },
    { "reasoning",            NK_FIELD_YES, nk__read_reasoning, 0, 0, 0, "as in chats" },
    { "thinking",             NK_FIELD_YES, nk__read_thinking, 0, 0, 0, "as in chats" },
    { "enable_thinking",      NK_FIELD_YES, nk__read_enable_thinking, 0, 0, 0, "as in chats" },
    { "think",                NK_FIELD_YES, nk__read_think, 0, 0, 0, "as in chats" },
    { "chat_template_kwargs", NK_FIELD_YES, nk__read_object_field, NK_OFFSET(template_kwargs), 0, 0,
      "variables for the template" },
    ANY_MODEL,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
