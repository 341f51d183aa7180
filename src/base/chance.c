#include "base/chance.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h> /* getentropy on macOS */
#include <unistd.h>

enum { GETENTROPY_MAX = 256 };

static int system_fill(struct nk_chance *chance, void *out, size_t size, struct nk_error *err)
{
    char *p = out;

    (void)chance;
    while (size) {
        size_t n = size < GETENTROPY_MAX ? size : GETENTROPY_MAX;

        if (getentropy(p, n))
            return nk_fail(err, NK_E_UNAVAILABLE, "no_entropy",
                           "the system gives no random bytes: %s", strerror(errno));
        p += n;
        size -= n;
    }
    return 0;
}

struct nk_chance *nk_chance_system(void)
{
    static struct nk_chance chance = { .fill = system_fill };

    return &chance;
}

int nk_chance_fill(struct nk_chance *chance, void *out, size_t size, struct nk_error *err)
{
    return chance->fill(chance, out, size, err);
}
