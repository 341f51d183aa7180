/* Checking a file against its seal, for the slice layer's own files and tests. */
#ifndef NK_SLICE_CHECK_INT_H
#define NK_SLICE_CHECK_INT_H

#include "slice/gguf_int.h"
#include "slice/slice.h"

/* nk_slice_check_start over a file that is open until the wait; now_s is what the clock says, in
 * seconds of time(). failed (may be NULL): what was found when it fails here. */
int nk__slice_check_start(nk_slice_check **out, const struct nk__gguf *g, enum nk_slice_verify how,
                          int64_t now_s, struct nk_slice_checked *failed, struct nk_error *err);

#endif
