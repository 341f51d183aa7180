/* Vectors and ranks as the dialects write them. Pure. */
#ifndef NK_GATEWAY_REPLY_EMBED_H
#define NK_GATEWAY_REPLY_EMBED_H

#include "gateway/request.h"

/* In place, as llama.cpp does it: nk_request.normalize says what `how` is. */
void nk__embed_normalize(float *v, size_t n, int how);
/* The bytes as base64 (RFC 4648, padded), without quotes. */
int nk__base64(const void *data, size_t size, struct nk_buf *out, struct nk_error *err);

struct nk_embed_result {
    const struct nk_request *r;
    float *vectors; /* r->n_inputs x width; are normalised in place */
    size_t width;
    size_t n_tokens; /* of all texts together */
    uint64_t total_ns;
};
/* The whole reply, appended.
 *   INVALID    bad_value  dimensions: both numbers are named
 *   DATA_LOSS  bad_peer   a number that is none, or not a finite one
 *   EXHAUSTED  too_large, no_memory */
int nk__reply_embed(const struct nk_embed_result *x, struct nk_buf *out,
                    struct nk_request_error *e);
/* Fails with too_large: n vectors of `width` numbers in a reply of at most max bytes. */
int nk__embed_too_large(size_t n, size_t width, size_t max, struct nk_error *err);
/* Ollama's answer to a request without a text. */
int nk__reply_embed_nothing(const struct nk_request *r, struct nk_buf *out, struct nk_error *err);

#endif
