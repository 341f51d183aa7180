/* Whether a curve grows as it should, as a sentence with the figures that decide it. Pure functions. */
#ifndef NK_BENCH_GROWTH_H
#define NK_BENCH_GROWTH_H

#include "bench/figure.h"
#include "bench/table.h"

/* The curve of one system: places ascending, one summary each (places without a figure left out); where the figure has
 * limits, theirs. Fewer than two places: says that. n is at most 64. */
struct nk_curve {
    int n;
    double x[64], y[64], limit[64]; /* limit 0: none */
};
void nk_growth_format(const struct nk_figure *f, const struct nk_curve *c, char *out,
                      unsigned long size);

#endif
