/* Writing one slice. */
#ifndef NK_SLICE_WRITE_INT_H
#define NK_SLICE_WRITE_INT_H

#include "slice/slice.h"
#include "slice/stream_int.h"

/* Counted up when a slice of the same model and range comes out otherwise than before: what an
 * older version wrote is then written anew. Also the key nakshatra.slice_format. */
enum {
    NK__SLICE_FORMAT = 2,
    NK__SLICE_FORMAT_OLDEST = 1, /* that is still read */
    NK__SLICE_FORMAT_SEALED = 2, /* from this one on, a file has its digests (seal_int.h) */
};

/* range 0-0: the vocabulary file, metadata and tokenizer without weights. The range was checked.
 * path NULL: only hashed. sha256 NULL: not hashed. size_bytes may be NULL. tick: see stream_int.h.
 * May run in several threads at once, for different paths. */
int nk__slice_write(const nk_model *m, struct nk_range range, const char *model_sha256,
                    const char *path, char *sha256, uint64_t *size_bytes, nk__tick tick, void *user,
                    struct nk_error *err);
/* Bytes of weights that the slice takes on disk (its holes take none). */
int nk__slice_bytes(const nk_model *m, struct nk_range range, uint64_t *bytes,
                    struct nk_error *err);
/* nk_slice_cache_room, on a disk with so much free. */
int nk__cache_room(const nk_model *m, const struct nk_range *ranges, int n, uint64_t free_bytes,
                   struct nk_error *err);

#endif
