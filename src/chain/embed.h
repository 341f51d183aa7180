/* Vectors of texts over a chain of an embedding model (or scores, of a reranker).
 *
 * Each text is a run of its own on every stage, so its vector does not depend on what else is
 * asked: it is what the whole model gives for the text alone. The rows go from stage to stage
 * through this process (rpc Forward), a few texts at one time, so that all stages are busy. Nothing
 * of a text stays on a worker: one that was lost is simply asked again.
 *
 * Functions may be called on any thread but the chain's own; handlers run on that one, must not
 * block, and may call nk_embed_cancel and nk_embed_free. */
#ifndef NK_CHAIN_EMBED_H
#define NK_CHAIN_EMBED_H

#include "chain/chain.h"

typedef struct nk_embed nk_embed;

struct nk_embed_text {
    const int32_t *ids;
    size_t n;
};
struct nk_embed_opts {
    const struct nk_embed_text *texts; /* borrowed until `done`, ids too */
    size_t n_texts;
    const char *pooling; /* "mean", ...: what the workers must compute; borrowed until `done` */
    uint32_t step_ms;    /* a worker that does not answer for so long is given up; 0: 300,000 */
};
struct nk_embed_handlers {
    /* The vector of a text, in any order; borrowed for the call. */
    void (*vector)(void *user, size_t text, const float *data, size_t n);
    /* Exactly once, the last call; err NULL: all vectors have come. The message names the worker
     * that is to blame. */
    void (*done)(void *user, const struct nk_error *err);
};
/* As nk_gen_start: an error returned, and no handler is ever called; or 0, and `done` tells.
 *   INVALID    bad_request  no texts, an empty one
 *   EXHAUSTED  no_memory */
int nk_embed_start(nk_embed **out, nk_chain *c, const struct nk_embed_opts *opts,
                   const struct nk_embed_handlers *handlers, void *user, struct nk_error *err);
/* [any thread] `done` follows with CANCELLED, unless it was ending anyway. */
void nk_embed_cancel(nk_embed *e);
/* [in `done` or after it] The worker that is to blame, as an index of the chain's cluster; -1:
 * none. */
int nk_embed_blamed(const nk_embed *e);
void nk_embed_free(nk_embed *e); /* [any thread] after `done`, or inside it */

#endif
