/* Whether a curve grows as it should, as a sentence with the figures that decide it. Pure
 * functions. */
#ifndef NK_BENCH_GROWTH_H
#define NK_BENCH_GROWTH_H

#include "bench/figure.h"
#include "bench/table.h"

enum { NK_CURVE_PLACES_MAX = 64 };

/* One place of a curve. A summary without runs that count (n_ok 0): not measured there. */
struct nk_curve_place {
    double x;
    struct nk_summary y;     /* of the system whose curve it is; n_ok is at least 1 */
    struct nk_summary whole; /* the whole model's */
    /* y over what a run asks in turn with it or tells beside it: the whole model, the limit. */
    struct nk_summary ratios;
};

struct nk_curve {
    int n;                                         /* places without a figure are left out */
    struct nk_curve_place at[NK_CURVE_PLACES_MAX]; /* x ascending */
};

/* What the whole model's own curve does is not held against the chain: a rate may fall, or lie off
 * the line, where that of the whole model does, and as much. Where low and high differ by more than
 * NK_SPREAD_MAX, and the best that they allow would give another answer than the worst, it is too
 * noisy to tell. Fewer than two places: says that. */
void nk_growth_format(const struct nk_figure *f, const struct nk_curve *c, char *out,
                      unsigned long size);

#endif
