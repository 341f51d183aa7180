/* Bytes into a new file, into its SHA-256 and into those of its parts in one pass: the caller's
 * thread reads and writes, another takes the digest of the whole, and another those of the
 * parts. */
#ifndef NK_SLICE_STREAM_INT_H
#define NK_SLICE_STREAM_INT_H

#include <stdint.h>

#include "base/file.h"
#include "base/sha256.h"
#include "slice/gguf_int.h"

enum { NK__CHUNK = 1 << 20, NK__CHUNKS = 4 };

/* Called for every piece done, from the caller's thread. An error stops the work with it. */
typedef int (*nk__tick)(void *user, uint64_t bytes, struct nk_error *err);
/* One whose user is a struct nk_progress. Fails with CANCELLED after nk_split_interrupt(). */
int nk__tick_bar(void *user, uint64_t bytes, struct nk_error *err);

typedef struct nk__stream nk__stream;

enum { NK__HASH_WHOLE = 1, NK__HASH_PARTS = 2 };

/* file: borrowed until the stream is freed; NULL: nothing is written. hash: of the two, what is
 * hashed. tick may be NULL. */
int nk__stream_new(nk__stream **out, struct nk_newfile *file, int hash, nk__tick tick, void *user,
                   struct nk_error *err);
void nk__stream_free(nk__stream *s);
/* Each appends to what was added before. */
int nk__stream_add(nk__stream *s, const void *data, size_t n, struct nk_error *err);
int nk__stream_copy(nk__stream *s, const struct nk__source *from, uint64_t offset, uint64_t n,
                    struct nk_error *err);
int nk__stream_zeros(nk__stream *s, uint64_t n, struct nk_error *err); /* a hole in the file */
uint64_t nk__stream_size(const nk__stream *s);
/* What is added from here on is this part (seal_int.h); name is borrowed until the stream is freed.
 * Only where parts are hashed: the first part begins before anything is added. */
int nk__stream_part(nk__stream *s, const char *name, bool is_hole, struct nk_error *err);
/* Appends the seal of all parts; nothing is added after it. */
int nk__stream_seal(nk__stream *s, struct nk_error *err);
/* Sets the file's length (it may end in a hole) and waits for the hash. The stream can only be
 * freed afterwards. */
int nk__stream_finish(nk__stream *s, char hex[NK_SHA256_HEX], struct nk_error *err);

#endif
