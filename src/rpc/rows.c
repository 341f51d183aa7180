#include "rpc/rows.h"

#include <string.h>

/* Portable and branch-light, so that compilers vectorise it; the method is the usual one of scaling
 * by powers of two so that the FPU does the rounding (e.g. Fabian Giesen, "Float->half variants",
 * public domain text). */
static uint32_t bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static float from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t half_of(float f)
{
    uint32_t u = bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;

    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff)); /* NaN stays one */
    if (a >= 0x477ff000)                                      /* rounds to 2^16 or more: infinity */
        return (uint16_t)(sign | 0x7c00);
    /* Below 2^-14 it is denormal; adding 0.5 puts the bits in place, rounded by the FPU. */
    if (a < 0x38800000)
        return (uint16_t)(sign | (bits(from_bits(a) + 0.5f) - bits(0.5f)));
    a += 0xc8000fff + (a >> 13 & 1); /* exponent from bias 127 to 15, round to nearest even */
    return (uint16_t)(sign | a >> 13);
}

static float float_of(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff;

    if (a >= 0x7c00)
        return from_bits(sign | 0x7f800000 | (a & 0x3ff) << 13);
    if (a >= 0x0400)
        return from_bits(sign | ((a << 13) + 0x38000000));
    return from_bits(sign | bits((float)a * 0x1p-24f));
}

void nk_f16_from_f32(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = half_of(in[i]);
}

void nk_f32_from_f16(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = float_of(in[i]);
}
