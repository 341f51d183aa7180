/* The one model that a gateway serves: its names, and what its replies say it is. */
#ifndef NK_GATEWAY_MODEL_H
#define NK_GATEWAY_MODEL_H

#include "gateway/api.h"
#include "gateway/gateway_int.h"

/* Is it one of the model's names? Ollama's ":latest" means nothing, there and here. */
bool nk__model_is_here(const nk_gateway *g, const char *name);
/* The same; NOT_FOUND model_not_found with the names that there are. */
int nk__model_check(const nk_gateway *g, const char *name, struct nk_error *err);
/* The name that lists of models show: the first that the gateway was given, else the cluster's. The
 * others are its aliases: one model is one entry. */
const char *nk__model_name(const nk_gateway *g);
/* The first worker that answered, or NULL. s may be NULL. */
const struct nk_worker_report *nk__model_worker(const struct nk_snapshot *s);
/* What an embedding model makes of a text's rows ("mean", "cls", "last", or "rank": a reranker);
 * "": it generates text. Static. */
const char *nk__model_pooling(const nk_vocab *v);
/* Can it answer such a request? INVALID not_an_embedding_model, not_a_reranker, embedding_model:
 * what it is, and what would be right. */
int nk__model_check_kind(const nk_gateway *g, enum nk_api api, struct nk_error *err);
/* The model's truth in one word: its content and the engine's version, as far as the workers have
 * told it. */
void nk__model_fingerprint(nk_gateway *g, char out[96]);

#endif
