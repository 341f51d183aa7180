/* SHA-256 as the name of a model, for the slice layer's own files; hashing is public (slice.h). */
#ifndef NK_SLICE_HASH_INT_H
#define NK_SLICE_HASH_INT_H

#include "slice/slice.h"

/* A file changed within the last so many seconds could be changed again without its times moving
 * on: some file systems count whole seconds, or two. What was found out about it is not
 * remembered. */
enum { NK__RACY_S = 3 };

bool nk__is_sha256(const char *text); /* 64 hex digits, lower case */

/* nk_model_hash at a time: now_s is what the clock says, in seconds of time(). */
int nk__model_hash(nk_model *m, int64_t now_s, char hex[NK_SHA256_HEX], struct nk_error *err);

#endif
