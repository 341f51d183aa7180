/* What peers say, and who they are, for people to read. */
#include "chain/chain_int.h"

#include <string.h>

#include "base/utf8.h"

void nk__text_copy(char *out, size_t size, const char *text)
{
    size_t n = 0;

    for (size_t left = strlen(text); left && n + 1 < size;) {
        int k = nk_utf8_next(text, left, NULL);
        size_t step = k > 0 ? (size_t)k : k < 0 ? (size_t)-k : left;

        if (k <= 0 || (unsigned char)*text < 0x20 || *text == 0x7f) {
            out[n++] = '?';
        } else {
            if (n + step >= size)
                break;
            memcpy(out + n, text, step);
            n += step;
        }
        text += step;
        left -= step;
    }
    out[n] = '\0';
}

int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w)
{
    return nk_wrap(code, err, "worker %s (%s)", w->id, w->address);
}
