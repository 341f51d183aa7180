/* Measuring: every figure asked of every system, in alternating order, each answer a row.
 *
 * Per figure all systems are started and asked once for warming up; then run by run, in the order
 * ours, whole, rpc and the other way round in turn. A run while the machine was busy otherwise is
 * kept as noisy and repeated, a few times at most. A system that fails is not asked again for that
 * figure. */
#ifndef NK_BENCH_RUN_H
#define NK_BENCH_RUN_H

#include "bench/table.h"

struct nk_bench_opts {
    const char *model, *model_name; /* the file; "llama-1b Q4_K" for the rows */
    const char *work_dir;           /* made if missing */
    const char *csv; /* rows are appended as they come; a header is written where the file is new */
    const char *self;       /* this program */
    const char *nakshatra;  /* the one that is measured */
    const char *device;     /* of ours */
    const char *real_model; /* for what only trained weights can tell */
    const char *commit;
    const char *figures; /* names and groups, separated by commas: "table,streams"; "all" */
    const char *systems; /* "ours,whole,rpc" */
    const char *places;  /* "4096,8192": curves only there; NULL: everywhere */
    int n_runs;
    int n_retries; /* of a noisy run */
    int n_threads; /* cores in all */
    bool quick; /* a quarter of the tokens, at least 8; curves only at their first three places */
};

/* Measures; rows are also added to t. Progress on standard error. What could not be measured is a
 * row with its reason, not an error.
 *   NOT_FOUND  no_figure    no such figure, group, system or place; the message lists them
 *   and what stops everything: the model, the work folder, the CSV */
int nk_bench_run(const struct nk_bench_opts *opts, struct nk_table *t, struct nk_error *err);

#endif
