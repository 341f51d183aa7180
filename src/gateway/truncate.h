/* A chat that is longer than its context goes to the model without its oldest turns, as Ollama does
 * it. */
#ifndef NK_GATEWAY_TRUNCATE_H
#define NK_GATEWAY_TRUNCATE_H

#include "gateway/prompt.h"

/* nk__prepare, but where r->truncate says so a chat that does not fit is prepared without as many
 * of its first messages as it must, from one user's message to another's. The system's messages and
 * the last one stay. *n_dropped: so many; 0: it fitted. The errors are
 * nk__prepare's; context_length_exceeded: not even the last message fits. */
int nk__prepare_truncated(struct nk_prepared *out, const nk_prompter *p, struct nk_request *r,
                          int n_ctx, struct nk_work *work, size_t *n_dropped,
                          struct nk_request_error *e);

#endif
