/* Half-precision rows on the wire: IEEE 754 binary16, round to nearest even. Thread-safe. */
#ifndef NK_RPC_ROWS_H
#define NK_RPC_ROWS_H

#include <stddef.h>
#include <stdint.h>

void nk_f16_from_f32(uint16_t *out, const float *in, size_t n);
void nk_f32_from_f16(float *out, const uint16_t *in, size_t n);

#endif
