/* What was measured, one row per run: kept as CSV, summed up as medians, compared.
 *
 * A *figure* is a question with a name ("decode-1") and, on a curve, a place x. A *system* answers
 * it: "ours", or a peer. A run that did not really run is kept, with its reason, and does not
 * count; neither does one while the machine was busy otherwise, which is kept as "noisy". */
#ifndef NK_BENCH_TABLE_H
#define NK_BENCH_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum nk_row_status { NK_ROW_OK, NK_ROW_NOISY, NK_ROW_FAILED };

struct nk_row {
    char figure[32], system[16];
    double x; /* the place on a curve; 0 for a single figure */
    int run;  /* from 1 */
    enum nk_row_status status;
    double value;
    char unit[16];    /* "tok/s", "ms", "us", "s", "MiB", "bytes" */
    char params[160]; /* "streams=8 predict=64 workers=2 threads=1" */
    char model[64];   /* "llama-1b Q4_K" */
    double foreign;   /* bench/machine.h */
    double slowdown;  /* the calibration over its best: 1 is as fast as ever */
    char note[200];   /* why it failed */
    char time[32];    /* UTC */
    char commit[48], version[24], llama[48], machine[160];
};

struct nk_table {
    struct nk_row *rows;
    size_t n, capacity;
};
#define NK_TABLE_INIT                                                                              \
    {                                                                                              \
        NULL, 0, 0                                                                                 \
    }
void nk_table_release(struct nk_table *t);
int nk_table_add(struct nk_table *t, const struct nk_row *row,
                 struct nk_error *err); /* EXHAUSTED no_memory */

/* CSV with a header line, fields in the order of struct nk_row. RFC 4180's quoting. */
int nk_table_format_header(struct nk_buf *out, struct nk_error *err);
int nk_table_format_row(const struct nk_row *row, struct nk_buf *out, struct nk_error *err);
/*   INVALID  bad_csv   name and line, what was found and what would be right */
int nk_table_parse(struct nk_table *t, struct nk_bytes text, const char *name,
                   struct nk_error *err);
int nk_table_read(struct nk_table *t, const char *path, struct nk_error *err);

/* The runs that count of one system at one place. */
struct nk_summary {
    int n_ok, n_noisy, n_failed;
    double median, min, max; /* 0 when n_ok is 0 */
    double low, high; /* between them lies the median that more runs would come to (stats.h) */
    const struct nk_row *last; /* borrowed from the table; NULL when there is none */
};
struct nk_summary nk_table_summarise(const struct nk_table *t, const char *figure, double x,
                                     const char *system);
/* Of the runs that count of both systems: ours over theirs, run by run.
 * A run's rows stand next to each other in the table. */
struct nk_summary nk_table_ratios(const struct nk_table *t, const char *figure, double x,
                                  const char *ours, const char *theirs);

/* How two summaries compare. */
enum nk_verdict {
    NK_VERDICT_NONE,    /* one of them has no figure */
    NK_VERDICT_NOISY,   /* the runs spread too much to tell */
    NK_VERDICT_REACHED, /* at least (lower is better: at most) bar times theirs */
    NK_VERDICT_MISSED,
};
/* ratio: of the medians, ours over theirs. It cannot be told when the best that the runs allow (low
 * and high) would give another answer than the worst, and either side's low and high differ by more
 * than NK_SPREAD_MAX of its median. */
#define NK_SPREAD_MAX 0.10
enum nk_verdict nk_verdict_of(const struct nk_summary *ours, const struct nk_summary *theirs,
                              double bar, bool lower_is_better, double *ratio);

/* The same by the ratios of runs in which both were asked in turn (nk_table_ratios): it cannot be
 * told when they differ by more than NK_SPREAD_MAX and lie on both sides of the bar. */
enum nk_verdict nk_verdict_pairs(const struct nk_summary *ratios, double bar, bool lower_is_better);

/* The same where ours may be at most `added` more than theirs; *difference: of the medians. */
enum nk_verdict nk_verdict_added(const struct nk_summary *ours, const struct nk_summary *theirs,
                                 double added, double *difference);
/* The same against a fixed limit. */
enum nk_verdict nk_verdict_limit(const struct nk_summary *ours, double limit, bool lower_is_better);

/* Two tables side by side, as text: one line per figure, place and system with both medians and the
 * change; a change is only called one when what the runs allow (low to high) does not overlap.
 * *n_worse counts those for the worse. Rows of different machines or models are compared too, and
 * said so. */
int nk_table_compare(const struct nk_table *a, const struct nk_table *b, struct nk_buf *out,
                     int *n_worse, struct nk_error *err);

#endif
