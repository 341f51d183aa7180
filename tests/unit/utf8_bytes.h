/* A code point's bytes: what tests make text of. */
#ifndef NK_TEST_UTF8_BYTES_H
#define NK_TEST_UTF8_BYTES_H

#include <stdint.h>

/* At most 4; returns how many. cp: any but a surrogate, up to U+10FFFF. */
static inline int utf8_bytes(uint32_t cp, char out[4])
{
    static const uint8_t first[5] = { 0, 0x00, 0xC0, 0xE0, 0xF0 };
    int n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;

    for (int i = n - 1; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)(first[n] | cp);
    return n;
}

#endif
