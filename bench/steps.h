/* The workers' step traces (worker --trace), read back: where a token's time went.
 *
 * Times are CLOCK_MONOTONIC's, so that the traces of several workers of one machine can be laid
 * beside each other. What is here are pure functions but for reading the file. */
#ifndef NK_BENCH_STEPS_H
#define NK_BENCH_STEPS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum nk_step_kind {
    NK_STEP_RECEIVED,
    NK_STEP_COMPUTING,
    NK_STEP_COMPUTED,
    NK_STEP_SENT,
    NK_STEP_ANSWERED,
    NK_STEP_KINDS
};

struct nk_step_event {
    uint64_t t_ns;
    enum nk_step_kind kind;
    char session[16];
    uint64_t step;
    int pos, n_rows;
};
struct nk_steps { /* of one worker, in the order of its file */
    struct nk_step_event *events;
    size_t n;
};

/*   INVALID    bad_trace   a line that is none of a trace's; its number is in the message
 *   EXHAUSTED  no_memory   and nk_file_read's */
int nk_steps_parse(struct nk_steps *out, struct nk_bytes text, const char *name,
                   struct nk_error *err);
int nk_steps_read(struct nk_steps *out, const char *path, struct nk_error *err);
void nk_steps_release(struct nk_steps *s);

/* What a token costs between two stages besides computing and sampling, over the one-row steps of
 * the only session in the traces, the first n_skip left out; microseconds. There: from the end of
 * the first stage's run to the beginning of the last one's. Back: from the answer to the beginning
 * of the first stage's next run.
 *   UNKNOWN  not_run   fewer than 16 such steps */
struct nk_hop_times {
    double both_median, both_p99, there_median, back_median;
};
int nk_steps_hop(const struct nk_steps *first, const struct nk_steps *last, int n_skip,
                 struct nk_hop_times *out, struct nk_error *err);

/* The longest run of more than one row, in ms; 0 when there is none. */
double nk_steps_longest_chunk_ms(const struct nk_steps *s);

#endif
