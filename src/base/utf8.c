#include "base/utf8.h"

int nk_utf8_next(const void *data, size_t size, uint32_t *cp)
{
    const uint8_t *p = data;
    uint8_t low = 0x80, high = 0xBF; /* of the second byte: narrower after some first bytes */
    uint32_t value;
    int n;

    if (p[0] < 0x80) {
        if (cp)
            *cp = p[0];
        return 1;
    }
    if (p[0] >= 0xC2 && p[0] <= 0xDF) {
        n = 2;
        value = p[0] & 0x1Fu;
    } else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
        n = 3;
        value = p[0] & 0x0Fu;
        if (p[0] == 0xE0)
            low = 0xA0; /* overlong */
        else if (p[0] == 0xED)
            high = 0x9F; /* surrogates */
    } else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
        n = 4;
        value = p[0] & 0x07u;
        if (p[0] == 0xF0)
            low = 0x90; /* overlong */
        else if (p[0] == 0xF4)
            high = 0x8F; /* above U+10FFFF */
    } else {
        return -1;
    }
    for (int i = 1; i < n; i++) {
        if ((size_t)i >= size)
            return 0;
        if (p[i] < low || p[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
        value = value << 6 | (p[i] & 0x3Fu);
    }
    if (cp)
        *cp = value;
    return n;
}

bool nk_utf8_valid(const void *data, size_t size, size_t *at)
{
    const uint8_t *p = data;
    size_t pos = 0;

    while (pos < size) {
        int n = nk_utf8_next(p + pos, size - pos, NULL);

        if (n <= 0) {
            *at = pos;
            return false;
        }
        pos += (size_t)n;
    }
    return true;
}
