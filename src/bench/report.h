/* A table of rows as a page: what was reached, what was missed, what could not be told; and one plot per curve.
 *
 * The page is made from the rows alone, so it can be made again from a kept CSV. */
#ifndef NK_BENCH_REPORT_H
#define NK_BENCH_REPORT_H

#include "bench/table.h"

struct nk_report_opts {
    const char *plot_dir;  /* where the SVGs go (made if missing), or NULL: no plots */
    const char *plot_link; /* the same folder as the page names it */
};
/* The page as Markdown. Of each figure the rows of the commit and model that were measured last: those before them are left
 * out, and said so. Plots need gnuplot.
 *   INVALID    no_rows      the table is empty
 *   NOT_FOUND  no_gnuplot */
int nk_report_format(const struct nk_table *all, const struct nk_report_opts *opts,
                     struct nk_buf *out, struct nk_error *err);

#endif
