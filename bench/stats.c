#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>

enum { RANKED_MAX = 1000 };

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double nk_median(double *values, size_t n)
{
    if (!n)
        return 0;
    qsort(values, n, sizeof *values, compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double nk_percentile(const double *sorted, size_t n, double q)
{
    size_t i = (size_t)(q * (double)n);

    return n ? sorted[i < n ? i : n - 1] : 0;
}

int nk_median_rank(int n)
{
    /* Of 2^n ways in which n values can lie on the two sides of the median: those in which at most
     * `rank` are below it. */
    double below = 1, ways = 1, all;
    int rank = 0;

    n = n < RANKED_MAX ? n : RANKED_MAX;
    for (all = ldexp(1, n); 2 * rank + 2 < n; rank++) {
        ways *= (double)(n - rank) / (rank + 1);
        below += ways;
        if (2 * below > all / 16)
            break;
    }
    return rank;
}
