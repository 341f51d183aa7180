/* The one model that a gateway serves: its names, and what its replies say it is. */
#ifndef NK_GATEWAY_MODEL_H
#define NK_GATEWAY_MODEL_H

#include "gateway/gateway_int.h"

/* Is it one of the model's names (Ollama's ":latest" left off)? */
bool nk__model_is_here(const nk_gateway *g, const char *name);
/* The first worker that answered, or NULL. s may be NULL. */
const struct nk_worker_report *nk__model_worker(const struct nk_snapshot *s);
/* The model's truth in one word: its content and the engine's version, as far as the workers have
 * told it. */
void nk__model_fingerprint(nk_gateway *g, char out[96]);

#endif
