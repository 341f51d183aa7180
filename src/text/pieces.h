/* The text of every token of a vocabulary at once, and the order in which tokens with the same
 * beginning are neighbours: what a grammar needs to look at a whole vocabulary quickly. Made once
 * per vocabulary and shared between samplers; read-only, counted, thread-safe. */
#ifndef NK_TEXT_PIECES_H
#define NK_TEXT_PIECES_H

#include <stdint.h>

#include "base/error.h"

struct llama_vocab;

struct nk_pieces {
    int n;                  /* tokens */
    const uint32_t *offset; /* n + 1: token id's bytes are bytes[offset[id] .. offset[id + 1]) */
    const uint8_t *bytes;   /* without the text of control tokens, as it is shown */
    const uint8_t *is_eog;  /* n */
    const int32_t *order;   /* ids sorted by their bytes */
    /* shared[i]: how many leading bytes order[i] has in common with order[i - 1]. */
    const uint32_t *shared;
};

/* *out until nk__pieces_release. Codes and reasons as nk_vocab_piece, and EXHAUSTED no_memory. */
int nk__pieces_acquire(const struct nk_pieces **out, const struct llama_vocab *vocab,
                       struct nk_error *err);
void nk__pieces_release(const struct nk_pieces *p); /* NULL is fine */

#endif
