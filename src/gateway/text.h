/* The answers that need the vocabulary and the chat template only: /tokenize, /detokenize and
 * /apply-template, with the shapes that llama-server gives them. */
#ifndef NK_GATEWAY_TEXT_H
#define NK_GATEWAY_TEXT_H

#include "gateway/prompt.h"

/* r->api: one of those three. Appends the whole reply. work: nk__prepare's. On failure out is not
 * to be used.
 *   INVALID    bad_text, bad_value, and what nk__prompt_render says
 *   EXHAUSTED  too_large   the reply */
int nk__text_answer(const nk_prompter *p, const nk_vocab *v, const struct nk_request *r,
                    struct nk_work *work, struct nk_buf *out, struct nk_request_error *e);

#endif
