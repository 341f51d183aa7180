/* Prompts of models that fill in what is between two texts (fill in the middle). */
#ifndef NK_GATEWAY_PROMPT_FIM_H
#define NK_GATEWAY_PROMPT_FIM_H

#include "gateway/request.h"
#include "text/vocab.h"

/* The ids of r's prompt idx, its suffix and its extra files, as llama-server's /infill arranges
 * them, and no more than fit into n_ctx with a token to generate. ids is owned by the caller.
 *   INVALID  no_fim                    the vocabulary has no such tokens
 *            context_length_exceeded, bad_text, too_much_work; CANCELLED
 *   EXHAUSTED no_memory */
int nk__prompt_fim(const nk_vocab *v, const struct nk_request *r, int idx, int n_ctx,
                   struct nk_work *work, struct nk_tokens *out, struct nk_request_error *e);

#endif
