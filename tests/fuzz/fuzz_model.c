/* layer: slice
 *
 * Bytes as a GGUF: opened, described, cut at every legal place and written (into a hash only).
 * Whatever the bytes are, the answer is a model or an error. */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "slice/model_int.h"
#include "slice/slice.h"
#include "slice/write_int.h"

enum { LAYERS_CUT_MAX = 16 }; /* more would only be slower */

static void check(int rc, const struct nk_error *err)
{
    if (rc && (err->code != rc || !err->reason[0] || !err->msg[0]))
        abort();
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    static const char hash[] = "0000000000000000000000000000000000000000000000000000000000000000";
    struct nk_range ranges[3];
    struct nk_error err = { 0 };
    char sha256[NK_SHA256_HEX];
    struct nk_type_share types[4];
    nk_model *m;
    int rc = nk__model_open_memory(&m, data, size, &err);
    int n;

    check(rc, &err);
    if (rc)
        return;
    n = nk_model_info(m)->n_layer;
    nk_model_types(m, types, 4);
    for (int at = 1; at < n && at < LAYERS_CUT_MAX; at++) {
        rc = nk_model_cut_check(m, at, &err);
        check(rc, &err);
        ranges[0] = (struct nk_range){ 0, at };
        ranges[1] = (struct nk_range){ at, n };
        if (rc || nk_model_info(m)->is_slice)
            continue;
        for (int i = 0; i < 2; i++) {
            rc = nk__slice_write(m, ranges[i], hash, NULL, sha256, NULL, NULL, NULL, &err);
            check(rc, &err);
        }
    }
    if (n <= LAYERS_CUT_MAX)
        check(nk_ranges_balance(m, n > 3 ? 3 : n, ranges, &err), &err);
    rc = nk__slice_write(m, (struct nk_range){ 0, 0 }, hash, NULL, sha256, NULL, NULL, NULL, &err);
    check(rc, &err);
    nk_model_close(m);
}
