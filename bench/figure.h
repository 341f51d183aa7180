/* The figures: which questions are asked, of whom, and what ours must reach. One table, in
 * figure.c. */
#ifndef NK_BENCH_FIGURE_H
#define NK_BENCH_FIGURE_H

#include <stdbool.h>

#include "bench/wan.h"

enum nk_question {
    NK_ASK_DECODE,
    NK_ASK_PREFILL,
    NK_ASK_TTFT,
    NK_ASK_GAP,
    NK_ASK_MEMORY,
    NK_ASK_STARTUP,
    NK_ASK_HOP,
    NK_ASK_TOKEN,
    NK_ASK_CROWD,
    NK_ASK_NETWORK,
    NK_ASK_WIRE,
    NK_ASK_QUALITY,
    NK_ASK_AFTER_PROMPT,
    NK_ASK_NOTHING, /* its rows come with another figure's answer */
};

struct nk_bar {
    const char *against; /* a system; NULL: none */
    double ratio;        /* ours over theirs: at least, or where lower is better at most */
    double added;        /* or, where ratio is 0: ours less theirs, at most */
};

/* What an answer tells besides its first value: a row of another figure, or of another system. */
struct nk_part {
    const char *figure; /* NULL: none */
    const char *system; /* NULL: the one that was asked */
};
enum { NK_PARTS_MAX = 4, NK_VALUES_MAX = 1 + NK_PARTS_MAX };

struct nk_figure {
    const char *name, *group; /* group: one of nk_groups */
    const char *title;
    enum nk_question question;
    const char *unit;
    bool lower_is_better;
    const char *systems; /* "ours whole rpc": the first one is who must reach the bars */
    int n_streams;
    int n_prompt, n_predict; /* tokens, of each */
    int n_depth;             /* tokens that are there before; not measured */
    int n_clients;           /* listeners, or streams that ask at once */
    /* What is looked for is smaller than the machine's drift: a run asks its systems this often in
     * turn, takes the median of each, and the verdict is on the ratios of the runs. No parts. 0:
     * each is asked once, after the other. */
    int n_turns;
    int n_workers;
    bool split_threads; /* the cores are shared out among the workers; else each may use all */
    bool f16;           /* rows in half precision on the wire */
    const char *cache;  /* the KV cache's type; NULL: what all have unless told otherwise */
    bool no_flash_attn;
    bool real_model; /* asked of --real-model */
    bool is_count;   /* bytes or a number, no time: noise does not change it */
    int n_runs_max;  /* of a slow figure, which a short question warms up; 0: as many as wanted */
    struct nk_wan_shape wan; /* mbit 0: loopback. On a curve by round trip, x is that */
    struct nk_bar bars[2];
    /* The first system's value itself must be at least this, or at most; 0: no limit. */
    double limit;
    struct nk_part parts[NK_PARTS_MAX];
    /* A curve: the places, ended by -1, and what x stands for. */
    const int *places;
    enum { NK_X_NONE, NK_X_STREAMS, NK_X_DEPTH, NK_X_WORKERS, NK_X_ROUND_TRIP } x;
    const char *x_title;
    const char *expected; /* a sentence: how it should grow */
};

enum { NK_TURNS_MAX = 16 };

extern const struct nk_figure nk_figures[];               /* ended by a NULL name */
const struct nk_figure *nk_figure_find(const char *name); /* NULL when there is none */

struct nk_group {
    const char *name, *title, *text; /* text: what the page says about it */
};
extern const struct nk_group nk_groups[]; /* in the order of the page; ended by a NULL name */

#endif
