/* Of what a request says as ids and texts in turn, the ids; and what is said of too many. */
#ifndef NK_GATEWAY_PROMPT_PARTS_H
#define NK_GATEWAY_PROMPT_PARTS_H

#include "gateway/request.h"
#include "text/vocab.h"

/* nk_prompt.mixed, [1, 2, "text", 3], as llama-server has it: only a text that comes first gets the
 * tokens that a prompt begins with. Ids above the vocabulary, and more than n_ctx leaves with a
 * token to generate, are refused. ids is owned by the caller.
 *   INVALID   bad_value, context_length_exceeded, bad_text, too_much_work; CANCELLED
 *   EXHAUSTED no_memory */
int nk__prompt_mixed(const nk_vocab *v, const json_t *parts, int n_ctx, struct nk_work *work,
                     struct nk_tokens *out, struct nk_request_error *e);

/* What r has of biases: its ids', and those of the tokens of its texts. *out is owned by the
 * caller; NULL: there are none.
 *   INVALID   bad_value, bad_text, too_much_work; CANCELLED
 *   EXHAUSTED too_many, no_memory */
int nk__prompt_biases(const nk_vocab *v, const struct nk_request *r, struct nk_work *work,
                      struct nk_logit_bias **out, int *n, struct nk_request_error *e);

/* INVALID context_length_exceeded: field has n_tokens, or, where they were not counted (0), n_bytes
 * that are too many tokens. */
int nk__prompt_too_long(struct nk_request_error *e, const char *field, size_t n_tokens,
                        size_t n_bytes, int n_ctx);
/* The tokens of a text that was given up because it has too many; 0: it is too long to count. */
size_t nk__prompt_count(const nk_vocab *v, const char *text, size_t size, bool add_special,
                        struct nk_work *work);

#endif
