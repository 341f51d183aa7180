/* Writing one slice, with progress. */
#ifndef NK_SLICE_WRITE_INT_H
#define NK_SLICE_WRITE_INT_H

#include "slice/slice.h"
#include "slice/stream_int.h"

/* INVALID `not_a_model` when m is itself a slice. */
int nk__model_check_whole(const nk_model *m, struct nk_error *err);

/* range 0-0: the vocabulary file. The range was checked. tick: see stream_int.h. May run in several
 * threads at once, for different paths. */
int nk__slice_write(const nk_model *m, struct nk_range range, const char *model_sha256,
                    const char *path, char *sha256, uint64_t *size_bytes, nk__tick tick, void *user,
                    struct nk_error *err);
/* Bytes of weights that the slice takes on disk (its holes take none). */
uint64_t nk__slice_bytes(const nk_model *m, struct nk_range range);

#endif
