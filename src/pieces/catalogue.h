/* A model described without its weights: what there is, cut into pieces that are named by what is
 * in them.
 *
 * A *catalogue* holds the head of the model's file (of each shard: metadata and tensor table, byte
 * for byte), the files' sizes, the model's SHA-256, and the digests of its *pieces*. A piece is all
 * tensors of one layer, or one tensor that belongs to no layer (embedding, head, norms, RoPE
 * factors): their bytes one after the other in the file's order, without the padding between them.
 * It is named by the SHA-256 of these bytes. A *part* is 4 MiB of a piece (the last of a piece is
 * what is left), and has a SHA-256 of its own: it is what is fetched, verified and written. Parts
 * are numbered through all pieces, layers first.
 *
 * The catalogue's id is the SHA-256 of its bytes, and these are kept as they were: nothing is ever
 * parsed and written again. Who has an id from somebody it trusts can take the bytes from anybody.
 *
 * The bytes, all numbers little endian:
 *
 *   "nkcat 1\n"
 *   u32 bytes of a part (NK_PART_BYTES), u32 shards, u32 pieces, u32 parts
 *   32 bytes: SHA-256 of the model (its shards one after the other)
 *   u32 size and text: what the model's slices are called after
 *   of each shard: u64 size of the file, u64 size of the head
 *   of each shard: the head
 *   of each piece: 32 bytes, its SHA-256; of each of its parts: 32 bytes, its SHA-256
 *
 * Which tensors are in which piece, and how large it is, follows from the heads. A catalogue is
 * immutable and counted; any thread may read it. */
#ifndef NK_PIECES_CATALOGUE_H
#define NK_PIECES_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/sha256.h"
#include "slice/slice.h"

enum {
    NK_PART_BYTES = 4 << 20,
    NK_DIGEST_BYTES = 32,
    NK_CATALOGUE_BYTES_MAX = 256 << 20,
    /* 16 TiB of weights. */
    NK_PARTS_MAX = 1 << 22,
};

typedef struct nk_catalogue nk_catalogue;

struct nk_piece {
    uint8_t sha256[NK_DIGEST_BYTES];
    int layer;        /* -1: one tensor that is no layer's */
    const char *name; /* "layer 12", "token_embd.weight"; borrowed with the catalogue */
    uint64_t size_bytes;
    int first_part, n_parts;
};
struct nk_part {
    uint8_t sha256[NK_DIGEST_BYTES];
    int piece;
    uint32_t size_bytes; /* NK_PART_BYTES, less in the last part of a piece */
};

/* Of a whole model. Reads all of the file once, with a bar, unless the cache folder has the
 * catalogue of this very file (by path, size, time, device and inode); keeps it there. The model's
 * hash is known afterwards (nk_model_hash answers at once). *out is owned by the caller
 * (nk_catalogue_unref).
 *   INVALID    not_a_model    m is a slice
 *   INVALID    too_large      the heads, or the number of parts
 *   ABORTED    file_changed   while it was read
 *   CANCELLED  interrupted    nk_split_interrupt()
 *   EXHAUSTED  no_memory, and read errors */
int nk_catalogue_make(nk_catalogue **out, nk_model *m, struct nk_error *err);
/* From bytes that a stranger sent; copies them.
 *   INVALID    bad_catalogue   says what is wrong with it
 *   EXHAUSTED  no_memory, and nk_model_open's errors of heads that cannot be a model's */
int nk_catalogue_parse(nk_catalogue **out, const void *bytes, size_t size, struct nk_error *err);

/* A catalogue that was made or fetched is kept in the cache folder by its id, and found there after
 * a restart; the 32 that came last are. keep: best effort. find: NOT_FOUND `no_catalogue`; what is
 * there and is not what it is named is removed. */
void nk_catalogue_keep(const nk_catalogue *c);
int nk_catalogue_find(nk_catalogue **out, const char *id, struct nk_error *err);

nk_catalogue *nk_catalogue_ref(nk_catalogue *c);
void nk_catalogue_unref(nk_catalogue *c); /* NULL: does nothing */

/* All borrowed until the last reference is gone. */
struct nk_bytes nk_catalogue_bytes(const nk_catalogue *c);
const char *nk_catalogue_id(const nk_catalogue *c);           /* 64 hex digits */
const char *nk_catalogue_model_sha256(const nk_catalogue *c); /* 64 hex digits */
/* The model without its weights: nk_model_info, nk_model_cut_check and nk_ranges_* answer as for
 * the file; what reads weights fails. Only functions that take it const may be called. */
const nk_model *nk_catalogue_model(const nk_catalogue *c);

int nk_catalogue_n_pieces(const nk_catalogue *c);
int nk_catalogue_n_parts(const nk_catalogue *c);
const struct nk_piece *nk_catalogue_piece(const nk_catalogue *c, int piece);
const struct nk_part *nk_catalogue_part(const nk_catalogue *c, int part);

/* What a slice of this range needs: bytes that are fetched (whole parts) for one that has nothing.
 * 0-0: the vocabulary file, which needs none. Errors of nk_ranges_check. */
int nk_catalogue_range_bytes(const nk_catalogue *c, struct nk_range range, uint64_t *bytes,
                             struct nk_error *err);

#endif
