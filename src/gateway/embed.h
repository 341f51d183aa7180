/* A request for vectors or ranks, from its texts to its reply's bytes: tokens, a place among what
 * runs, the chain, and once more where a worker was lost: nobody has seen anything of it, and
 * nothing of it is kept there.
 *
 *   helper thread   nk__embedding_new, nk__embedding_enter; writes the reply
 *   admission's     starts it when there is room
 *   chain's net     vectors come */
#ifndef NK_GATEWAY_EMBED_H
#define NK_GATEWAY_EMBED_H

#include "gateway/gateway_int.h"
#include "gateway/request.h"

typedef struct nk_embedding nk_embedding;

/* Tokenises. r: borrowed as long as this lives, JSON and all. n_ctx: the most tokens of a text.
 *   INVALID    context_length_exceeded, bad_text, bad_value, too_much_work; CANCELLED
 *   EXHAUSTED  too_many, no_memory */
int nk__embedding_new(nk_embedding **out, nk_gateway *g, const struct nk_request *r, int n_ctx,
                      uint64_t begin_ns, struct nk_work *work, struct nk_request_error *e);
void nk__embedding_free(nk_embedding *x); /* after `over`, or where it never began; NULL is fine */
/* Waits its turn. On 0 over(user, err, param) comes once, on any thread; e's err NULL: the reply is
 * there. Else EXHAUSTED queue_full, and it never comes. */
int nk__embedding_enter(nk_embedding *x,
                        void (*over)(void *user, const struct nk_error *err, const char *param),
                        void *user, struct nk_error *err);
/* Any thread, after it has entered: `over` comes soon. */
void nk__embedding_cancel(nk_embedding *x);
size_t nk__embedding_n_tokens(const nk_embedding *x);
/* After `over` without an error; borrowed, but its bytes may be taken. */
struct nk_buf *nk__embedding_reply(nk_embedding *x);

#endif
