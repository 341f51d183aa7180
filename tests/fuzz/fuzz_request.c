/* layer: gateway. The first byte chooses the route, the rest is the body; a request that is taken
 * is released. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "gateway/request.h"

enum {
#define XX(name, path, openai, input) +1
    N_APIS = 0 NK_API_MAP(XX)
#undef XX
};

const struct fuzz_ceiling fuzz_ceiling = { .base = 300000, .per_byte = 4000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    static const struct nk_request_limits limits = { .messages_max = 16, .n_max = 8 };
    struct nk_request r;
    struct nk_request_error e = { .param = "" };

    if (!size)
        return;
    if (nk__request_parse(&r, (enum nk_api)(data[0] % N_APIS), (const char *)data + 1, size - 1,
                          &limits, &e)) {
        if (r.root || !e.err.code || !e.err.reason[0] || !e.err.msg[0] ||
            strlen(e.param) >= sizeof e.param)
            abort();
        return;
    }
    if ((r.model && !r.model[0]) || r.n < 1 || r.n_stop > NK_STOP_MAX ||
        nk_sampling_check(&r.sampling, NULL))
        abort();
    nk__request_release(&r);
}
