#include "stage/difference.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

int nk_logits_top1(const float *logits, int n)
{
    int best = 0;

    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

void nk_difference_add(struct nk_difference *d, const float *want, const float *got, int n)
{
    double difference = 0, power = 0;
    bool finite = true;

    for (int i = 0; i < n; i++) {
        double e = (double)want[i] - (double)got[i];

        finite &= isfinite(want[i]) != 0;
        difference += e * e;
        power += (double)want[i] * (double)want[i];
    }
    d->n_rows++;
    d->n_identical += !memcmp(want, got, (size_t)n * sizeof *want);
    d->n_top1 += nk_logits_top1(want, n) == nk_logits_top1(got, n);
    d->n_not_finite += !finite;
    difference = power > 0 ? difference / power : difference;
    /* NaN counts as worst, and a good row after it does not make it good. */
    if (!isnan(d->worst_nmse) && !(difference <= d->worst_nmse))
        d->worst_nmse = difference;
}
