/* layer: cluster. A join token as a person may have typed it: whatever is accepted says all that it
 * should, and reads back the same after being written. */
#include "fuzz/fuzz.h"
#include "cluster/token.h"

#include <stdlib.h>
#include <string.h>

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), again[NK_TOKEN_TEXT_SIZE], same[NK_TOKEN_TEXT_SIZE];
    struct nk_token t, read;
    struct nk_error err;

    NK_ASSERT(text);
    memcpy(text, data, size);
    text[size] = '\0';
    err.msg[0] = '\0';
    if (nk_token_decode(&t, text, &err)) {
        NK_ASSERT(!strcmp(err.reason, "bad_token") && err.msg[0]);
    } else {
        NK_ASSERT(t.port > 0 && t.port < 65536 && t.n_addresses > 0);
        NK_ASSERT(!nk_token_encode(&t, again, &err) && strlen(again) < 160);
        NK_ASSERT(!nk_token_decode(&read, again, &err) && read.n_addresses == t.n_addresses);
        NK_ASSERT(!nk_token_encode(&read, same, &err) && !strcmp(again, same));
    }
    free(text);
}
