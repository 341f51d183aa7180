/* What is drawn at random: from a number that whoever draws keeps, so that it can be repeated. */
#ifndef NK_BENCH_DRAW_H
#define NK_BENCH_DRAW_H

#include <stdint.h>

/* 64 bits, of which the upper ones are the best (Knuth's MMIX generator). *state is any number. */
uint64_t nk_draw_bits(uint64_t *state);
/* Uniform, above 0 and below 1. */
double nk_draw_unit(uint64_t *state);
/* n token ids below n_vocab less the 256 control tokens at its end. */
void nk_draw_ids(uint64_t *state, int n_vocab, int32_t *ids, int n);

#endif
