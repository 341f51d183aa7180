/* The figures: which questions are asked, of whom, and what ours must reach. One table, in figure.c. */
#ifndef NK_BENCH_FIGURE_H
#define NK_BENCH_FIGURE_H

#include <stdbool.h>

enum nk_question {
    NK_ASK_DECODE,
    NK_ASK_PREFILL,
    NK_ASK_TTFT,
    NK_ASK_GAP,
    NK_ASK_MEMORY,
    NK_ASK_STARTUP
};

struct nk_bar {
    const char *against; /* a system; NULL: none */
    double ratio;        /* ours over theirs: at least, or where lower is better at most */
};

struct nk_figure {
    const char *name, *group; /* group: "table" or "curves" */
    const char *title;
    enum nk_question question;
    const char *unit;
    bool lower_is_better;
    const char *systems; /* "ours whole rpc" */
    int n_streams, n_prompt, n_predict, n_depth;
    int n_workers;
    bool split_threads; /* the cores are shared out among the workers; else each may use all */
    struct nk_bar bars[2];
    /* A curve: the places, ended by -1, and what x stands for. */
    const int *places;
    enum { NK_X_NONE, NK_X_STREAMS, NK_X_DEPTH, NK_X_WORKERS, NK_X_PROMPT } x;
    const char *x_title;
    const char *expected; /* a sentence: how it should grow */
};

extern const struct nk_figure nk_figures[];               /* ended by a NULL name */
const struct nk_figure *nk_figure_find(const char *name); /* NULL when there is none */

#endif
