/* Few machines, any links: every set of machines, in the best order, with the best cuts. A state is
 * (which machines hold something, which of them is the last so far, how many blocks are placed):
 * the order within the set does not matter for what follows. */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>

enum { SET_MAX = NK_PLAN_EXACT_MAX + 1 }; /* one more: what would have to be there to fit */

struct state {
    double ms;
    int16_t begin;  /* the last machine's blocks are [begin, ...) */
    int16_t before; /* the machine before it, in list; -1: it is the first */
};

static void trace(const struct state *states, size_t row, const int *list, int n, int set, int last,
                  int n_blocks, struct nk__chain *out)
{
    int end = n_blocks, k = 0;

    for (int s = set; s; s &= s - 1)
        k++;
    out->n = k;
    while (k--) {
        const struct state *at =
            &states[((size_t)set * (size_t)n + (size_t)last) * row + (size_t)end];

        out->machine[k] = (int16_t)list[last];
        out->end[k] = (int16_t)end;
        set &= ~(1 << last);
        end = at->begin;
        last = at->before;
    }
}

double nk__exact(struct nk__problem *p, const struct nk__load *load, double busy_max,
                 const int *list, int n, int k_min, int k_max, int must, struct nk__chain *out)
{
    size_t row = (size_t)p->n_blocks + 1;
    struct state *states;
    struct nk__price price[SET_MAX];
    bool all[SET_MAX];
    int reach[SET_MAX], *lo, *at, *queue, *who;
    double hop[SET_MAX][SET_MAX], *from, *value, best = INFINITY;
    int best_set = 0, best_last = 0;
    char *scratch;

    out->n = 0;
    NK_ASSERT(n <= SET_MAX);
    states = malloc(((size_t)n << n) * row * sizeof *states);
    scratch = malloc(row * (2 * sizeof(double) + ((size_t)n + 3) * sizeof(int)));
    if (!states || !scratch) {
        free(states);
        free(scratch);
        return -1;
    }
    from = (double *)scratch;
    value = from + row;
    at = (int *)(value + row);
    queue = at + row;
    who = queue + row;
    lo = who + row;
    for (size_t i = 0; i < ((size_t)n << n) * row; i++)
        states[i].ms = INFINITY;
    for (int i = 0; i < n; i++) {
        price[i] = nk__price_of(p, load, list[i]);
        reach[i] = nk__reach(p, &price[i], list[i], busy_max, lo + (size_t)i * row);
        all[i] = nk__holds_all(p, &price[i], list[i], busy_max);
        for (int j = 0; j < n; j++)
            hop[i][j] = i == j || nk__link_busy(p, load, list[i], list[j]) > busy_max
                            ? INFINITY
                            : nk__hop(p, load, list[i], list[j]);
    }
    for (int set = 1; set < 1 << n; set++) {
        int k = 0;

        for (int s = set; s; s &= s - 1)
            k++;
        for (int i = 0; i < n && k <= k_max; i++) {
            int rest = set & ~(1 << i);
            struct state *own = &states[((size_t)set * (size_t)n + (size_t)i) * row];

            if (!(set & 1 << i))
                continue;
            if (!rest) {
                for (int e = 1; e <= p->n_blocks; e++)
                    if (e <= reach[i] || (e == p->n_blocks && all[i]))
                        own[e] = (struct state){
                            price[i].fixed + price[i].embd + price[i].slope * p->cost[e], 0, -1
                        };
            } else {
                for (size_t b = 0; b < row; b++) {
                    from[b] = INFINITY;
                    who[b] = -1;
                }
                for (int j = 0; j < n; j++) {
                    const struct state *other =
                        &states[((size_t)rest * (size_t)n + (size_t)j) * row];

                    if (!(rest & 1 << j))
                        continue;
                    for (int b = 1; b < p->n_blocks; b++)
                        if (other[b].ms + hop[j][i] < from[b]) {
                            from[b] = other[b].ms + hop[j][i];
                            who[b] = j;
                        }
                }
                nk__advance(p, price[i].slope, from, lo + (size_t)i * row, 1, value, at, queue);
                for (int e = 2; e <= p->n_blocks; e++)
                    if (at[e] >= 0)
                        own[e] = (struct state){ value[e] + price[i].fixed, (int16_t)at[e],
                                                 (int16_t)who[at[e]] };
            }
            if (k >= k_min && (must < 0 || set & 1 << must) &&
                own[p->n_blocks].ms + price[i].head < best) {
                best = own[p->n_blocks].ms + price[i].head;
                best_set = set;
                best_last = i;
            }
        }
    }
    if (best_set)
        trace(states, row, list, n, best_set, best_last, p->n_blocks, out);
    free(states);
    free(scratch);
    return best;
}
