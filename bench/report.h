/* A table of rows as a page: ours, theirs, the ratio, and whether it is what was aimed at; and one
 * plot per curve.
 *
 * The page is made from the rows alone, so it can be made again from a kept CSV. The spread of the
 * runs is left to that. */
#ifndef NK_BENCH_REPORT_H
#define NK_BENCH_REPORT_H

#include "bench/table.h"

struct nk_report_opts {
    const char *rows;      /* the table's name, for the page */
    const char *plot_dir;  /* where the SVGs go (made if missing), or NULL: no plots */
    const char *plot_link; /* the same folder as the page names it */
};
/* The page as Markdown. Of each figure the rows of the commit and model that were measured last:
 * those before them are left out, and said so. Plots need gnuplot.
 *   INVALID    no_rows      the table is empty
 *   NOT_FOUND  no_gnuplot */
int nk_report_format(const struct nk_table *all, const struct nk_report_opts *opts,
                     struct nk_buf *out, struct nk_error *err);

/* Writes the page to path, with its plots in the folder "benchmarks" beside it. rows: the table's
 * name. nk_report_format's and nk_file_write's errors. */
int nk_report_write(const struct nk_table *t, const char *rows, const char *path,
                    struct nk_error *err);

#endif
