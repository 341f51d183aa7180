/* Order statistics of a handful of runs. Pure functions. */
#ifndef NK_BENCH_STATS_H
#define NK_BENCH_STATS_H

#include <stddef.h>

double nk_median(double *values, size_t n); /* sorts them; 0 when there are none */

/* The value at or above the share q of n sorted ones; 0 when there are none. */
double nk_percentile(const double *sorted, size_t n, double q);

/* How many of n sorted values to leave out at either end, so that the median of what they were
 * drawn from lies between the outermost of the rest as surely as it lies between the least and the
 * greatest of five: 15 times of 16, whatever the distribution. 0 with fewer than nine; beyond a
 * thousand values as for a thousand. The sign test's interval: H. A. David, H. N. Nagaraja, Order
 * Statistics, 7.1. */
int nk_median_rank(int n);

#endif
