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

/* clang-format off */
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
    { "chat_template_kwargs", NK_FIELD_YES, nk__read_object_field, NK_OFFSET(template_kwargs), 0, 0,
      "variables for the template" },
    ANY_MODEL,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
