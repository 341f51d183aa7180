/* Machines in a given order: which of them, and where to cut. */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>

/* A stage of a chain that is being built, and the one before it. */
struct node {
    int before; /* in nodes; -1: none */
    int16_t machine, end;
};

struct nodes {
    struct node *at;
    int n, capacity;
};

static int add_node(struct nodes *nodes, int before, int machine, int end)
{
    if (nodes->n == nodes->capacity) {
        int capacity = nodes->capacity ? 2 * nodes->capacity : 1024;
        struct node *at = realloc(nodes->at, (size_t)capacity * sizeof *at);

        if (!at)
            return -1;
        nodes->at = at;
        nodes->capacity = capacity;
    }
    nodes->at[nodes->n] = (struct node){ before, (int16_t)machine, (int16_t)end };
    return nodes->n++;
}

static void trace(const struct nodes *nodes, int last, struct nk__chain *out)
{
    int k = 0;

    for (int i = last; i >= 0; i = nodes->at[i].before)
        k++;
    out->n = k;
    for (int i = last; i >= 0; i = nodes->at[i].before) {
        k--;
        out->machine[k] = nodes->at[i].machine;
        out->end[k] = nodes->at[i].end;
    }
}

/* A label per number of blocks placed (and of stages, up to k_min - 1): the best chain so far that
 * ends there, whichever machine is its last. */
double nk__sequence(struct nk__problem *p, const struct nk__load *load, double busy_max,
                    const int *list, int n, int k_min, struct nk__chain *out)
{
    int n_blocks = p->n_blocks, top = k_min > 1 ? k_min - 1 : 0;
    size_t row = (size_t)n_blocks + 1, table = row * (size_t)(top + 1);
    struct nodes nodes = { NULL, 0, 0 };
    double *ms = malloc((table + 2 * row) * sizeof *ms), *from = ms + table, *value = from + row;
    int *label = malloc((table + 4 * row) * sizeof *label);
    int *who = label + table, *lo = who + row, *at = lo + row, *queue = at + row;
    int best_node = -1, one = top ? 1 : 0; /* where chains of one stage are */
    double best = INFINITY;

    out->n = 0;
    if (!ms || !label) {
        best = -1;
        goto out;
    }
    for (size_t i = 0; i < table; i++) {
        ms[i] = INFINITY;
        label[i] = -1;
    }
    for (int i = 0; i < n; i++) {
        struct nk__price price = nk__price_of(p, load, list[i]);
        int reach = nk__reach(p, &price, list[i], busy_max, lo);

        /* From many stages to few, so that no machine comes after itself. */
        for (int count = top; count >= 0; count--) {
            double *here = ms + (size_t)count * row;
            int *name = label + (size_t)count * row, to = count < top ? count + 1 : top;

            for (int b = 0; b <= n_blocks; b++) {
                int last = name[b] >= 0 ? nodes.at[name[b]].machine : -1;

                from[b] = INFINITY;
                who[b] = name[b];
                if (b && b < n_blocks && last >= 0 &&
                    nk__link_busy(p, load, last, list[i]) <= busy_max)
                    from[b] = here[b] + nk__hop(p, load, last, list[i]);
            }
            nk__advance(p, price.slope, from, lo, 1, value, at, queue);
            for (int e = 2; e <= n_blocks; e++) {
                double total = value[e] + price.fixed + (e == n_blocks ? price.head : 0);
                size_t s = (size_t)to * row + (size_t)e;

                if (at[e] < 0)
                    continue;
                if (e == n_blocks ? count == top && total < best : total < ms[s]) {
                    int node = add_node(&nodes, who[at[e]], list[i], e);

                    if (node < 0) {
                        best = -1;
                        goto out;
                    }
                    if (e == n_blocks) {
                        best = total;
                        best_node = node;
                    } else {
                        ms[s] = total;
                        label[s] = node;
                    }
                }
            }
        }
        for (int e = 1; e <= reach; e++) {
            double total = price.fixed + price.embd + price.slope * p->cost[e];
            size_t s = (size_t)one * row + (size_t)e;

            if (total >= ms[s])
                continue;
            ms[s] = total;
            label[s] = add_node(&nodes, -1, list[i], e);
            if (label[s] < 0) {
                best = -1;
                goto out;
            }
        }
        if (k_min <= 1 && nk__holds_all(p, &price, list[i], busy_max)) {
            double total = price.fixed + price.embd + price.head + price.slope * p->cost[n_blocks];

            if (total < best) {
                best = total;
                best_node = add_node(&nodes, -1, list[i], n_blocks);
                if (best_node < 0) {
                    best = -1;
                    goto out;
                }
            }
        }
    }
    if (isfinite(best))
        trace(&nodes, best_node, out);
out:
    free(nodes.at);
    free(label);
    free(ms);
    return best;
}

double nk__cut(struct nk__problem *p, const struct nk__load *load, double busy_max, const int *list,
               int n, struct nk__chain *out)
{
    size_t row = (size_t)p->n_blocks + 1;
    double *from, *value, best = INFINITY;
    int *lo, *queue, *at;
    int16_t *begin; /* [i * row + e]: where stage i begins, that ends at e */

    out->n = 0;
    if (n < 1 || n > p->n_blocks)
        return INFINITY;
    from = malloc(2 * row * sizeof *from);
    lo = malloc(3 * row * sizeof *lo);
    begin = malloc((size_t)n * row * sizeof *begin);
    if (!from || !lo || !begin) {
        best = -1;
        goto out;
    }
    value = from + row;
    queue = lo + row;
    at = queue + row;

    for (int i = 0; i < n; i++) {
        struct nk__price price = nk__price_of(p, load, list[i]);
        int reach = nk__reach(p, &price, list[i], busy_max, lo);
        double arrive = 0;

        if (!i) {
            for (int e = 0; e <= p->n_blocks; e++)
                value[e] = INFINITY;
            for (int e = 1; e <= reach; e++)
                value[e] = price.fixed + price.embd + price.slope * p->cost[e];
            if (n == 1 && nk__holds_all(p, &price, list[0], busy_max))
                value[p->n_blocks] = price.fixed + price.embd + price.slope * p->cost[p->n_blocks];
            for (int e = 1; e <= p->n_blocks; e++)
                begin[e] = 0;
        } else {
            if (nk__link_busy(p, load, list[i - 1], list[i]) > busy_max)
                goto out;
            arrive = nk__hop(p, load, list[i - 1], list[i]);
            for (int b = 0; b <= p->n_blocks; b++)
                from[b] = b && b < p->n_blocks ? value[b] + arrive : INFINITY;
            nk__advance(p, price.slope, from, lo, 1, value, at, queue);
            value[0] = value[1] = INFINITY;
            for (int e = 2; e <= p->n_blocks; e++) {
                value[e] += price.fixed;
                begin[(size_t)i * row + (size_t)e] = (int16_t)at[e];
            }
        }
        if (i == n - 1)
            best = value[p->n_blocks] + price.head;
    }
    if (isfinite(best)) {
        int end = p->n_blocks;

        out->n = n;
        for (int i = n - 1; i >= 0; i--) {
            out->machine[i] = (int16_t)list[i];
            out->end[i] = (int16_t)end;
            end = begin[(size_t)i * row + (size_t)end];
        }
    }
out:
    free(from);
    free(lo);
    free(begin);
    return best;
}
