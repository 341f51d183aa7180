/* Writing manifest.json; reading is public (slice.h). */
#ifndef NK_SLICE_MANIFEST_INT_H
#define NK_SLICE_MANIFEST_INT_H

#include "slice/slice.h"

int nk__manifest_write(const struct nk_manifest *mf, const char *path, struct nk_error *err);

#endif
