#include "bench/draw.h"

uint64_t nk_draw_bits(uint64_t *state)
{
    return *state = *state * 6364136223846793005u + 1442695040888963407u;
}

double nk_draw_unit(uint64_t *state)
{
    return ((double)(nk_draw_bits(state) >> 11) + 0.5) / (double)(1ull << 53);
}

void nk_draw_ids(uint64_t *state, int n_vocab, int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)((nk_draw_bits(state) >> 33) % (uint64_t)(n_vocab - 256));
}
