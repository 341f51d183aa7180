#include "bench/system.h"

#include <string.h>

#include "base/clock.h"

#define AGAIN_NS_MAX 600000000000ull

bool nk_ask_again(int rc, const struct nk_error *err, uint64_t begin_ns)
{
    return rc && !strcmp(err->reason, NK_TOO_LATE) && nk_now_ns() - begin_ns < AGAIN_NS_MAX;
}
