/* The planner's inside. Facts become a problem: machines that may hold layers, in an order that
 * depends on what they are and not on where they stood; the model as blocks, which are what lies
 * between two legal cuts; links as a table, or none where all are equal. All functions below work
 * on it, with machines and blocks by index. */
#ifndef NK_PLAN_PLAN_INT_H
#define NK_PLAN_PLAN_INT_H

#include "plan/plan.h"

/* The round trip where there is no way: so long that any other chain is better; a chain that still
 * has one is none (nk__no_way). */
#define NK__NO_WAY_MS 1e15
enum { NK__PREFILL_WINDOW = 2 }; /* chunks under way (worker/service.h: the credit window) */

struct nk__machine {
    const struct nk_plan_member *member;
    uint64_t memory, room; /* room: without the headroom */
    uint64_t overhead, overhead_last;
    double step, layer[3], head[2], embd; /* ms; at 1, 8 and chunk rows */
    int chunk;
    double gateway_rtt;
};

struct nk__problem {
    const struct nk_plan_model *model;
    const struct nk_plan_opts *opts;
    int n; /* machines that may hold layers */
    /* With room for one more at [n], which links know as any other (nk__shortfall). */
    struct nk__machine *machines;
    int n_blocks;
    int *at;                /* block i is layers [at[i], at[i + 1]) */
    double *cost;           /* of all blocks before i, in layers' layer_ms */
    uint64_t *weights, *kv; /* bytes of all blocks before i */
    /* Blocks of as many layers and of one cost each; and what the smallest and the largest weighs,
     * with its KV. */
    bool equal_costs;
    uint64_t block_min, block_max;
    double *rtt, *per_byte; /* ms, [from * n + to]; NULL: the default for all */
    double default_rtt, default_per_byte;
    bool rates_known;
    int64_t n_states;
    int64_t search_states; /* how many a search may look at */
};

/* Stages by machine; stage i holds blocks [i ? end[i - 1] : 0, end[i]). */
struct nk__chain {
    int n;
    int16_t machine[NK_PLAN_LAYERS_MAX], end[NK_PLAN_LAYERS_MAX];
};

/* What runs at a time: n_big groups of rows_big rows and n_small of rows_small; what a group waits
 * for is counted at rows. */
struct nk__load {
    int streams, rows, n_big, rows_big, n_small, rows_small;
};
/* So many streams through so many stages. */
struct nk__load nk__load_of(int streams, int n_stages);

/* A machine under a load: the time that one group waits for it, and how long it is busy with all
 * groups. Of a run: fixed + cost * slope, and at the ends head and embd. */
struct nk__price {
    double slope, fixed, head, embd;
    double busy_slope, busy_fixed, busy_head, busy_embd;
};
struct nk__price nk__price_of(const struct nk__problem *p, const struct nk__load *load, int m);
double nk__hop(const struct nk__problem *p, const struct nk__load *load, int from, int to);
double nk__link_busy(const struct nk__problem *p, const struct nk__load *load, int from, int to);

double nk__layer_ms(const struct nk__machine *m, double rows);
double nk__head_ms(const struct nk__machine *m, double rows);

struct nk__times {
    double ms_per_token, tokens_per_s, ttft_ms;
    double cycle_ms; /* for one token of each stream */
};
void nk__evaluate(const struct nk__problem *p, const struct nk__chain *c, int streams,
                  struct nk__times *out);
/* What is made small: ms_per_token, or cycle_ms. */
double nk__value(const struct nk__problem *p, const struct nk__chain *c,
                 enum nk_plan_objective objective, int streams);

/* Bytes that machine m needs for blocks [b, e). */
uint64_t nk__need(const struct nk__problem *p, int m, int b, int e);

/* facts.c. *p is filled; release also after a failure. */
int nk__problem_init(struct nk__problem *p, const struct nk_plan_facts *facts,
                     const struct nk_plan_opts *opts, struct nk_error *err);
void nk__problem_release(struct nk__problem *p);
/* The machine with this id, or -1. */
int nk__machine_find(const struct nk__problem *p, const char *id);

/* lo[e], for e from 1 to n_blocks: the first block b of at least 1 so that m can hold [b, e) and is
 * busy for at most busy_max with it; e where there is none. Returns the last e before n_blocks for
 * which m can hold [0, e). */
int nk__reach(const struct nk__problem *p, const struct nk__price *price, int m, double busy_max,
              int *lo);
bool nk__holds_all(const struct nk__problem *p, const struct nk__price *price, int m,
                   double busy_max);
/* For e from first + 1 to n_blocks: value[e] = the least from[b] + slope * (cost[e] - cost[b]) over
 * b in [max(lo[e], first), e), and at[e] where that is; INFINITY and -1 where none is. queue: room
 * for n_blocks + 1. lo never falls. */
void nk__advance(struct nk__problem *p, double slope, const double *from, const int *lo, int first,
                 double *value, int *at, int *queue);

/* The solvers below choose among the n machines in list, and answer with the chain whose one group
 * waits the least (returned; INFINITY: there is none) under `load`, with no machine and no link
 * busy for more than busy_max, of k_min to k_max stages. A negative return: no memory for that. */
/* must: list[must] is in it; -1: whoever. */
double nk__exact(struct nk__problem *p, const struct nk__load *load, double busy_max,
                 const int *list, int n, int k_min, int k_max, int must, struct nk__chain *out);

/* Arriving at list[i] costs arrive[i], wherever one comes from, and each block weighs block_bytes,
 * with its KV. p->equal_costs must hold. The stages between the first and the last are in the order
 * of list. One machine alone is no case of this. */
double nk__equal(struct nk__problem *p, const struct nk__load *load, uint64_t block_bytes,
                 const int *list, int n, const double *arrive, int k_min, struct nk__chain *out);

/* In the order of list, each machine used or left out; not always the best when links differ. */
double nk__sequence(struct nk__problem *p, const struct nk__load *load, double busy_max,
                    const int *list, int n, int k_min, struct nk__chain *out);
/* In the order of list, each used: the best cuts. */
double nk__cut(struct nk__problem *p, const struct nk__load *load, double busy_max, const int *list,
               int n, struct nk__chain *out);

/* The best chain of at least k_min stages among the n machines of list, by opts' objective for so
 * many streams. */
struct nk__found {
    struct nk__chain chain; /* n 0: none */
    double value;           /* nk__value, INFINITY without a chain */
    double bound;           /* no chain's value is less */
    bool exact;             /* none is better, or none is possible */
};
/* EXHAUSTED no_memory. */
int nk__solve(struct nk__problem *p, enum nk_plan_objective objective, int streams, const int *list,
              int n, int k_min, struct nk__found *out, struct nk_error *err);

/* The most that m can hold, in layers' layer_ms. lo: room for n_blocks + 1. */
double nk__most_cost(const struct nk__problem *p, const struct nk__price *price, int m, int *lo);
/* The least ms per row of a layer, with any number of rows up to the streams'. */
double nk__least_each(const struct nk__problem *p, int m, int streams);

/* The first stage of a chain that has no way to the next one; -1: none. */
int nk__no_way(const struct nk__problem *p, const struct nk__chain *c);
/* One stream for each chain, and the others one after the other (many: some at a time) to where
 * they gain the most. Returns the rate of all, or -1: no memory. */
double nk__share_streams(const struct nk__problem *p, const struct nk__chain *chains, int n,
                         int *streams);
/* Several chains at a time: takes the best chain out of the machines, and again, as long as one is
 * left; then as many of these as give the highest rate for all streams. Sets as many chains as
 * there are, and the streams of each; *n 0: there are not two. *rate: tokens per second. */
int nk__replicas(struct nk__problem *p, struct nk__chain chains[NK_PLAN_CHAINS_MAX],
                 int streams[NK_PLAN_CHAINS_MAX], int *n, double *rate, struct nk_error *err);
/* No plan has a higher rate, in tokens per second, where no chain needs less than least_ms for a
 * token of one stream. */
double nk__rate_bound(const struct nk__problem *p, double least_ms);
/* How often the machines could hold the model by their memory, each on its own; below 2 there are
 * no two chains. -1: no memory. */
double nk__copies(const struct nk__problem *p);

#endif
