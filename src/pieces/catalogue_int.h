/* What this layer's own files see of a catalogue. */
#ifndef NK_PIECES_CATALOGUE_INT_H
#define NK_PIECES_CATALOGUE_INT_H

#include <stdatomic.h>

#include "pieces/catalogue.h"
#include "slice/layout.h"

struct nk__tensor_in {
    int piece; /* -1: of none (a layer that is never run) */
    uint64_t offset, size;
};

struct nk_catalogue {
    atomic_int refs;
    uint8_t *bytes;
    size_t size;
    char id[NK_SHA256_HEX], model_sha256[NK_SHA256_HEX];
    nk_model *model;
    struct nk_piece *pieces;
    char (*names)[80]; /* of pieces */
    int n_pieces;
    struct nk_part *parts;
    int n_parts;
    struct nk__tensor_in *tensors; /* of each of the model's */
    int n_tensors;
    int *members;       /* the tensors of piece 0 in the file's order, those of piece 1, ... */
    int *first_members; /* n_pieces + 1: where each piece's begin */
};

/* Where a part's bytes are: they are those of one or more tensors. Zero it, set the two, and call
 * _next until it answers false. */
struct nk__segment {
    const nk_catalogue *c;
    int part;
    int member;    /* its own */
    int tensor;    /* of the model */
    uint64_t from; /* in the tensor */
    uint32_t at;   /* in the part */
    uint32_t size;
};
bool nk__segment_next(struct nk__segment *s);

/* So many bytes of each of the model's tensors, from its first on, are copied into the slice. Owned
 * by the caller; NULL: no memory. */
uint64_t *nk__layout_wants(const nk_catalogue *c, const struct nk_slice_layout *l);
bool nk__part_is_wanted(const nk_catalogue *c, int part, const uint64_t *wants);

/* hash.c: reads the model once and fills in all digests of c, whose pieces and parts are listed.
 * CANCELLED interrupted, EXHAUSTED no_memory, and read errors. */
int nk__catalogue_hash(nk_catalogue *c, const nk_model *m, struct nk_error *err);

/* The SHA-256 of bytes. False: no memory. */
bool nk__digest(const void *data, size_t size, uint8_t out[NK_DIGEST_BYTES]);
void nk__digest_text(const uint8_t digest[NK_DIGEST_BYTES], char hex[NK_SHA256_HEX]);
bool nk__digest_parse(const char *hex, uint8_t digest[NK_DIGEST_BYTES]);
bool nk__is_id(const char *text); /* 64 hex digits */

#endif
