#include "base/visible.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

static bool is_hidden(uint32_t cp)
{
    return (cp >= 0x80 && cp < 0xa0) || (cp >= 0x202a && cp <= 0x202e) ||
           (cp >= 0x2066 && cp <= 0x2069);
}

/* How a character is shown, if not as it is; else "". */
static const char *name_of(char out[16], uint32_t cp, bool one_line)
{
    out[0] = '\0';
    if (cp < 0x20 && (one_line || (cp != '\n' && cp != '\t')))
        snprintf(out, 16, "^%c", (char)(cp + '@'));
    else if (cp == 0x7f)
        snprintf(out, 16, "^?");
    else if (is_hidden(cp))
        snprintf(out, 16, "<U+%04X>", (unsigned)cp);
    return out;
}

static const char replacement[] = "\xef\xbf\xbd";

int nk_visible_add(struct nk_visible *v, const char *text, size_t size, struct nk_buf *out,
                   struct nk_error *err)
{
    int rc = 0;

    while (size && !rc) {
        char name[16];
        const char *at = text;
        size_t taken, n = size;
        uint32_t cp = 0;
        int used;

        if (v->n_rest) { /* one byte more of it */
            v->rest[v->n_rest++] = *text;
            at = v->rest;
            n = v->n_rest;
        }
        used = nk_utf8_next(at, n, &cp);
        if (used == 0) {
            if (!v->n_rest) {
                memcpy(v->rest, text, size); /* 3 bytes at most, or it would be whole or wrong */
                v->n_rest = size;
                return 0;
            }
            text++;
            size--;
            continue;
        }
        taken = (size_t)(used > 0 ? used : -used);
        if (v->n_rest) {
            /* A byte that cannot follow is looked at again. */
            bool again = used < 0 && taken < v->n_rest;

            rc = used < 0                      ? nk_buf_adds(out, replacement, err)
                 : name_of(name, cp, false)[0] ? nk_buf_adds(out, name, err)
                                               : nk_buf_add(out, v->rest, taken, err);
            v->n_rest = 0;
            text += !again;
            size -= !again;
            continue;
        }
        rc = used < 0                      ? nk_buf_adds(out, replacement, err)
             : name_of(name, cp, false)[0] ? nk_buf_adds(out, name, err)
                                           : nk_buf_add(out, text, taken, err);
        text += taken;
        size -= taken;
    }
    return rc;
}

int nk_visible_end(struct nk_visible *v, struct nk_buf *out, struct nk_error *err)
{
    int rc = v->n_rest ? nk_buf_adds(out, replacement, err) : 0;

    v->n_rest = 0;
    return rc;
}

const char *nk_visible_line(char *out, size_t size, const char *text)
{
    size_t left = strlen(text), n = 0;

    while (left) {
        char name[16];
        const char *shown = text;
        uint32_t cp = 0;
        int used = nk_utf8_next(text, left, &cp);
        size_t taken = used > 0 ? (size_t)used : used < 0 ? (size_t)-used : left, length = taken;

        if (used <= 0)
            shown = replacement;
        else if (name_of(name, cp, true)[0])
            shown = name;
        if (shown != text)
            length = strlen(shown);
        if (n + length + 1 > size)
            break;
        memcpy(out + n, shown, length);
        n += length;
        text += taken;
        left -= taken;
    }
    if (size)
        out[n] = '\0';
    return out;
}
