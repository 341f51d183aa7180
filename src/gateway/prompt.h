/* From a request to token ids: chat templates, tokens, the grammar, and how the reply is to be
 * read. */
#ifndef NK_GATEWAY_PROMPT_H
#define NK_GATEWAY_PROMPT_H

#include "base/clock.h"
#include "gateway/gateway.h"
#include "gateway/output.h"
#include "gateway/request.h"
#include "text/vocab.h"

typedef struct nk_prompter nk_prompter; /* any thread, several at once */

struct nk_prompter_opts {
    struct nk_clock *clock; /* what a template is told the date by */
    const nk_vocab *vocab;
    /* Jinja text, or the name of one that libllama has built in; NULL: the model's own. */
    const char *chat_template;
    const char *program; /* what renders it, as nk_template_open has it; NULL: this process */
    enum nk_gateway_tools tools;
    enum nk_gateway_reasoning reasoning;
};

/* clock and vocab are borrowed until nk__prompter_free. The form of the template's tool calls is
 * learned here (tool_form.h). A model's own template that cannot be used is no error here but of
 * every chat: other requests do not need it.
 *   INVALID  bad_template, unknown_template   of one that was given */
int nk__prompter_new(nk_prompter **out, const struct nk_prompter_opts *opts, struct nk_error *err);
void nk__prompter_free(nk_prompter *p);

struct nk_prompter_caps {
    bool chat, tools, thinking, effort; /* effort: its thinking has degrees */
    bool can_think;     /* it has marks of thinking, or a switch for it; thinking: it has marks */
    bool generic_tools; /* tools are explained to the model in the system's message */
    const char *chat_template;       /* or NULL; borrowed */
    const struct nk_error *broken;   /* why the model's own template cannot be used; or NULL */
    const struct nk_error *no_tools; /* why its form of calls is not understood; or NULL */
};
struct nk_prompter_caps nk__prompter_caps(const nk_prompter *p);

/* A chat as the template writes it, for /apply-template. Appends; the errors are nk__prepare's. */
int nk__prompt_render(const nk_prompter *p, const struct nk_request *r, struct nk_work *work,
                      struct nk_buf *out, struct nk_request_error *e);

struct nk_prepared {
    struct nk_tokens prompts[NK_PROMPTS_MAX];
    int n_prompts;
    char *grammar;                    /* owned; NULL: none */
    struct nk_logit_bias *logit_bias; /* owned; the request's, and those of its texts' tokens */
    int n_logit_bias;
    bool special;                 /* marks are control tokens: the text must show them */
    bool generic_tools;           /* the template did not get the tools: a message has them */
    bool parse;                   /* the reply is a chat's: */
    struct nk_output_opts output; /* tool_names and tool_types are owned */
};
/* n_ctx: what a session holds. work: what all of it may cost, and whether it is still wanted. On
 * failure *out is empty.
 *   INVALID  context_length_exceeded, no_template, no_tools, no_thinking, template_failed,
 *            unsupported_schema, bad_text, bad_value, too_much_work; CANCELLED */
int nk__prepare(struct nk_prepared *out, const nk_prompter *p, const struct nk_request *r,
                int n_ctx, struct nk_work *work, struct nk_request_error *e);
void nk__prepared_release(struct nk_prepared *p);

#endif
