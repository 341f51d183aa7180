/* layer: pieces
 *
 * Bytes as a model's catalogue: parsed, asked what the slices of its layers need, and its parts
 * walked through. Whatever the bytes are, the answer is a catalogue or an error. */
#include <stdlib.h>

#include "fuzz/fuzz.h"
#include "pieces/catalogue_int.h"

enum { LAYERS_MAX = 16 }; /* more would only be slower */

static void check(int rc, const struct nk_error *err)
{
    if (rc && (err->code != rc || !err->reason[0] || !err->msg[0]))
        abort();
}

/* Every byte of a part is in exactly one segment. */
static void walk(const nk_catalogue *c, int part)
{
    struct nk__segment s = { .c = c, .part = part };
    uint32_t sum = 0;

    while (nk__segment_next(&s)) {
        if (s.at != sum || !s.size || s.from + s.size > c->tensors[s.tensor].size)
            abort();
        sum += s.size;
    }
    if (sum != c->parts[part].size_bytes)
        abort();
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    struct nk_error err = { 0 };
    nk_catalogue *c;
    uint64_t bytes;
    int rc = nk_catalogue_parse(&c, data, size, &err), n;

    check(rc, &err);
    if (rc)
        return;
    n = nk_model_info(nk_catalogue_model(c))->n_layer;
    for (int i = 0; i < n && i < LAYERS_MAX; i++)
        check(nk_catalogue_range_bytes(c, (struct nk_range){ i, i + 1 }, &bytes, &err), &err);
    check(nk_catalogue_range_bytes(c, (struct nk_range){ 0, n }, &bytes, &err), &err);
    for (int i = 0; i < nk_catalogue_n_parts(c) && i < 1000; i++)
        walk(c, i);
    nk_catalogue_unref(c);
}
