/* The best chain: by trying all, by dynamic programming, or by a search with a bound (plan.h says
 * which is when). */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STARTS = 12, LENGTHS_TRIED = 24, SEARCH_WELL = 500000 };

struct solver {
    struct nk__problem *p;
    enum nk_plan_objective objective;
    int streams;
    const int *list;
    int n, k_min;
    double *arrive; /* to list[i], from the nearest of the others */
    uint64_t chance;
    struct nk__found *best;
};

/* splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). */
static int below(struct solver *s, int n)
{
    uint64_t z = s->chance += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (int)((z ^ z >> 31) % (uint64_t)n);
}

static void offer(struct solver *s, const struct nk__chain *c)
{
    double value;

    if (!c->n || c->n < s->k_min)
        return;
    value = nk__value(s->p, c, s->objective, s->streams);
    if (value < s->best->value) {
        s->best->value = value;
        s->best->chain = *c;
    }
}

/* ---- the rate: a limit for the busiest, moved until it meets the way through the chain ---- */

/* The chain of k stages with the shortest way under a limit; among all, or in one order. */
typedef double shortest(struct solver *s, const struct nk__load *load, double busy_max,
                        const int *order, int k, struct nk__chain *out);

static double shortest_of_all(struct solver *s, const struct nk__load *load, double busy_max,
                              const int *order, int k, struct nk__chain *out)
{
    (void)order;
    return nk__exact(s->p, load, busy_max, s->list, s->n, k, k, -1, out);
}

static double shortest_in_order(struct solver *s, const struct nk__load *load, double busy_max,
                                const int *order, int k, struct nk__chain *out)
{
    return nk__cut(s->p, load, busy_max, order, k, out);
}

/* The larger of the way and the busiest is least where they cross: the way gets longer as the limit
 * falls. Offers what is met on the way there. -1: no memory. */
static int balance(struct solver *s, shortest *f, const int *order, int k, int n_rounds,
                   double not_above)
{
    struct nk__load load = nk__load_of(s->streams, k);
    struct nk__chain *c = malloc(sizeof *c);
    double low = 0, high = not_above;
    int rc = 0;

    if (!c)
        return -1;
    for (int round = 0; round <= n_rounds && (!round || high - low > 1e-9 * high); round++) {
        double limit = round ? (low + high) / 2 : high, way, value;

        way = f(s, &load, limit, order, k, c);
        if (way < 0) {
            rc = -1;
            break;
        }
        if (!isfinite(way)) {
            if (!round)
                break; /* nothing is better than not_above */
            low = limit;
            continue;
        }
        value = nk__value(s->p, c, NK_PLAN_RATE, s->streams);
        offer(s, c);
        if (way >= not_above && !round)
            break;
        if (way <= limit)
            high = fmin(high, value);
        else
            low = limit;
        if (!round && way >= value) /* the way alone decides, without a limit */
            break;
    }
    free(c);
    return rc;
}

static int solve_exactly(struct solver *s)
{
    struct nk__chain *c;
    struct nk__load one = nk__load_of(1, 1);
    int rc = 0;

    s->best->exact = true;
    if (s->objective == NK_PLAN_RATE) {
        for (int k = s->k_min > 1 ? s->k_min : 1; k <= s->n && k <= s->p->n_blocks && !rc; k++)
            rc = balance(s, shortest_of_all, NULL, k, 60,
                         isfinite(s->best->value) ? s->best->value * (1 - 1e-12) : INFINITY);
    } else {
        c = malloc(sizeof *c);
        rc = !c || nk__exact(s->p, &one, INFINITY, s->list, s->n, s->k_min, s->n, -1, c) < 0 ? -1
                                                                                             : 0;
        if (!rc)
            offer(s, c);
        free(c);
    }
    s->best->bound = s->best->value;
    return rc;
}

/* ---- bounds ---- */

double nk__most_cost(const struct nk__problem *p, const struct nk__price *price, int m, int *lo)
{
    int reach = nk__reach(p, price, m, INFINITY, lo);
    double most = p->cost[reach];

    for (int e = 1; e <= p->n_blocks; e++)
        most = fmax(most, p->cost[e] - p->cost[lo[e]]);
    return nk__holds_all(p, price, m, INFINITY) ? p->cost[p->n_blocks] : most;
}

struct share {
    double cost, each;
};

static int compare_shares(const void *a, const void *b)
{
    const struct share *x = a, *y = b;

    return (x->each > y->each) - (x->each < y->each);
}

/* Layers as a liquid, and of what a machine costs as such only the part that it is filled to: no
 * chain's way is shorter. */
static int bound_way(struct solver *s, const struct nk__load *load, double *bound)
{
    struct nk__problem *p = s->p;
    struct share *shares = malloc((size_t)s->n * sizeof *shares);
    int *lo = malloc(((size_t)p->n_blocks + 1) * sizeof *lo);
    double left = p->cost[p->n_blocks], dearest = 0, embd = INFINITY, head = INFINITY, sum = 0;

    if (!shares || !lo) {
        free(shares);
        free(lo);
        return -1;
    }
    for (int i = 0; i < s->n; i++) {
        struct nk__price price = nk__price_of(p, load, s->list[i]);
        double most = nk__most_cost(p, &price, s->list[i], lo);
        double arrive = isfinite(s->arrive[i]) ? s->arrive[i] : 0;

        shares[i] = (struct share){ most, most > 0 ? price.slope + (price.fixed + arrive) / most
                                                   : INFINITY };
        dearest = fmax(dearest, arrive);
        embd = fmin(embd, price.embd);
        head = fmin(head, price.head);
    }
    qsort(shares, (size_t)s->n, sizeof *shares, compare_shares);
    for (int i = 0; i < s->n && left > 0 && shares[i].cost > 0; i++) {
        double own = fmin(left, shares[i].cost);

        sum += own * shares[i].each;
        left -= own;
    }
    /* Nobody arrives at the first. */
    *bound = left > 1e-9 * p->cost[p->n_blocks] ? INFINITY : fmax(sum - dearest, 0) + embd + head;
    free(shares);
    free(lo);
    return 0;
}

double nk__least_each(const struct nk__problem *p, int m, int streams)
{
    const struct nk__machine *x = &p->machines[m];
    int rows[] = { 1, 8, x->chunk, streams };
    double least = INFINITY;

    for (int i = 0; i < 4; i++)
        if (rows[i] <= streams)
            least = fmin(least, nk__layer_ms(x, rows[i]) / rows[i]);
    return least;
}

/* No chain has all streams a token further sooner than the machines together have time for. */
static int bound_busy(struct solver *s, double *bound)
{
    struct nk__problem *p = s->p;
    struct share *shares = malloc((size_t)s->n * sizeof *shares);
    int *lo = malloc(((size_t)p->n_blocks + 1) * sizeof *lo);
    struct nk__load one = nk__load_of(1, 1);
    double low = 0, high = 0;

    if (!shares || !lo) {
        free(shares);
        free(lo);
        return -1;
    }
    for (int i = 0; i < s->n; i++) {
        struct nk__price price = nk__price_of(p, &one, s->list[i]);

        shares[i].cost = nk__most_cost(p, &price, s->list[i], lo);
        shares[i].each = s->streams * nk__least_each(p, s->list[i], s->streams);
        high = fmax(high, shares[i].each * p->cost[p->n_blocks]);
    }
    for (int round = 0; round < 60; round++) {
        double limit = (low + high) / 2, sum = 0;

        for (int i = 0; i < s->n; i++)
            sum +=
                fmin(shares[i].cost, shares[i].each > 0 ? limit / shares[i].each : shares[i].cost);
        if (sum < p->cost[p->n_blocks])
            low = limit;
        else
            high = limit;
    }
    *bound = low;
    free(shares);
    free(lo);
    return 0;
}

/* ---- search ---- */

static int try_order(struct solver *s, const int *order, int k)
{
    struct nk__load one = nk__load_of(1, k);
    struct nk__chain *c;
    int rc = 0;

    if (k < 1 || k < s->k_min || k > s->p->n_blocks)
        return 0;
    if (s->objective == NK_PLAN_RATE)
        return balance(s, shortest_in_order, order, k, 12,
                       isfinite(s->best->value) ? s->best->value * (1 - 1e-9) : INFINITY);
    c = malloc(sizeof *c);
    if (!c || nk__cut(s->p, &one, INFINITY, order, k, c) < 0)
        rc = -1;
    else
        offer(s, c);
    free(c);
    return rc;
}

static int try_sequence(struct solver *s, const int *order, int n)
{
    struct nk__load load = nk__load_of(1, 1);
    struct nk__chain *c = malloc(sizeof *c);
    int rc = 0, list[NK_PLAN_LAYERS_MAX];

    if (!c || nk__sequence(s->p, &load, INFINITY, order, n, s->k_min, c) < 0) {
        rc = -1;
    } else if (c->n && s->objective == NK_PLAN_RATE) {
        int k = c->n;

        for (int i = 0; i < k; i++)
            list[i] = c->machine[i];
        rc = try_order(s, list, k);
    } else {
        offer(s, c);
    }
    free(c);
    return rc;
}

static void shuffle(struct solver *s, int *order, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = below(s, i + 1), t = order[i];

        order[i] = order[j];
        order[j] = t;
    }
}

/* From a machine on, always the one that costs least for what it can hold, the way to it included;
 * k of them. */
static void nearest_first(struct solver *s, int *order, int k)
{
    struct nk__load load = nk__load_of(1, 1);

    for (int i = 1; i < k; i++) {
        int near = i;
        double least = INFINITY;

        for (int j = i; j < s->n; j++) {
            struct nk__price price = nk__price_of(s->p, &load, order[j]);
            double room = (double)s->p->machines[order[j]].room, cost;

            cost = nk__hop(s->p, &load, order[i - 1], order[j]) + price.fixed;
            cost = room > 0 ? cost / room * (double)s->p->weights[s->p->n_blocks] +
                                  price.slope * s->p->cost[s->p->n_blocks]
                            : INFINITY;
            if (cost < least) {
                least = cost;
                near = j;
            }
        }
        int t = order[i];

        order[i] = order[near];
        order[near] = t;
    }
}

/* What a machine is worth to a chain of k stages: what it can do within a limit. */
struct worth {
    double cost;
    int machine;
};

static int compare_worths(const void *a, const void *b)
{
    const struct worth *x = a, *y = b;

    if (x->cost != y->cost)
        return x->cost < y->cost ? 1 : -1;
    return x->machine - y->machine;
}

/* The sum of the k largest of v, which is put into another order (Hoare's selection). */
static double sum_largest(double *v, int n, int k)
{
    double sum = 0;

    while (k > 0 && n > 1) {
        double pivot = v[n / 2];
        int i = 0, j = n - 1;

        while (i <= j) {
            while (v[i] > pivot)
                i++;
            while (v[j] < pivot)
                j--;
            if (i <= j) {
                double t = v[i];

                v[i++] = v[j];
                v[j--] = t;
            }
        }
        if (k <= j + 1) { /* v[0..j] are not below the pivot */
            n = j + 1;
        } else {
            for (int x = 0; x < i; x++)
                sum += x < k ? v[x] : 0;
            v += i;
            n -= i;
            k -= i < k ? i : k;
        }
    }
    return k > 0 && n > 0 ? sum + v[0] : sum;
}

/* What list[i] can do within a limit. cap: what it can hold by its memory. */
static double within(const struct nk__problem *p, const struct nk__price *price, double cap,
                     double limit)
{
    double left = limit - price->busy_fixed, own = cap;

    if (left <= 0)
        return 0;
    if (price->busy_slope > 0)
        own = left / price->busy_slope;
    if (p->equal_costs && p->cost[1] > 0)
        own = floor(own / p->cost[1] + 1e-9) * p->cost[1];
    return fmin(own, cap);
}

/* How many stages, and what chains of that many cannot be better than. */
struct length {
    int k;
    double bound, limit;
};

static int compare_lengths(const void *a, const void *b)
{
    const struct length *x = a, *y = b;

    if (x->bound != y->bound)
        return x->bound < y->bound ? -1 : 1;
    return x->k - y->k;
}

/* The k machines that finish soonest by memory and time alone, ends and links for nothing: within
 * which limit, by halves. prices, work: room for n. */
static int bound_length(struct solver *s, const double *cap, struct nk__price *prices, double *work,
                        struct length *out)
{
    struct nk__problem *p = s->p;
    struct nk__load load = nk__load_of(s->streams, out->k);
    double low = 0, high = 0, whole = p->cost[p->n_blocks], way;

    for (int i = 0; i < s->n; i++) {
        prices[i] = nk__price_of(p, &load, s->list[i]);
        high = fmax(high, prices[i].busy_fixed + whole * prices[i].busy_slope);
    }
    for (int round = 0; round < 32; round++) {
        double limit = round ? (low + high) / 2 : high;

        for (int i = 0; i < s->n; i++)
            work[i] = within(p, &prices[i], cap[i], limit);
        if (sum_largest(work, s->n, out->k) >= whole * (1 - 1e-9)) {
            high = limit;
        } else if (!round) {
            out->bound = out->limit = INFINITY;
            return 0;
        } else {
            low = limit;
        }
    }
    p->n_states += s->n;
    out->limit = high;
    if (bound_way(s, &load, &way))
        return -1;
    out->bound = fmax(low, way);
    return 0;
}

static int try_length(struct solver *s, const struct length *length, const double *cap,
                      struct worth *worths, int *order)
{
    struct nk__problem *p = s->p;
    struct nk__load load = nk__load_of(s->streams, length->k);
    int rc, n = s->n;

    for (int i = 0; i < s->n; i++) {
        struct nk__price price = nk__price_of(p, &load, s->list[i]);

        worths[i] = (struct worth){ within(p, &price, cap[i], length->limit), s->list[i] };
    }
    qsort(worths, (size_t)s->n, sizeof *worths, compare_worths);
    for (int i = 0; i < s->n; i++)
        order[i] = worths[i].machine;
    rc = try_order(s, order, length->k);
    if (rc || !p->rtt)
        return rc;
    s->n = length->k; /* the same ones, each near to the one before */
    nearest_first(s, order, length->k);
    s->n = n;
    return try_order(s, order, length->k);
}

/* Chains of each length against a bound of its own, and those that promise the most tried. */
static int start_for_rate(struct solver *s, int *order)
{
    struct nk__problem *p = s->p;
    struct nk__load one = nk__load_of(1, 1);
    int k_max = s->n < p->n_blocks ? s->n : p->n_blocks, n = 0, rc = 0;
    int n_tried = p->search_states >= SEARCH_WELL ? LENGTHS_TRIED : LENGTHS_TRIED / 6;
    double *cap = malloc(2 * (size_t)s->n * sizeof *cap), *work = cap + s->n;
    struct worth *worths = malloc((size_t)s->n * sizeof *worths);
    struct nk__price *prices = malloc((size_t)s->n * sizeof *prices);
    struct length *lengths = malloc(((size_t)k_max + 1) * sizeof *lengths);
    int *lo = malloc(((size_t)p->n_blocks + 1) * sizeof *lo);

    if (!cap || !worths || !prices || !lengths || !lo)
        rc = -1;
    for (int i = 0; i < s->n && !rc; i++) {
        struct nk__price price = nk__price_of(p, &one, s->list[i]);

        cap[i] = nk__most_cost(p, &price, s->list[i], lo);
    }
    for (int k = s->k_min > 1 ? s->k_min : 1; k <= k_max && !rc; k++) {
        lengths[n] = (struct length){ .k = k };
        rc = bound_length(s, cap, prices, work, &lengths[n++]);
    }
    if (!rc) {
        qsort(lengths, (size_t)n, sizeof *lengths, compare_lengths);
        s->best->bound = fmax(s->best->bound, n ? lengths[0].bound : INFINITY);
    }
    for (int i = 0; i < n && i < n_tried && !rc && lengths[i].bound < s->best->value; i++)
        rc = try_length(s, &lengths[i], cap, worths, order);
    free(cap);
    free(worths);
    free(prices);
    free(lengths);
    free(lo);
    return rc;
}

/* One change of the best chain, or several machines thrown in between its own. order: room for
 * n_layers more than list. */
static int change(struct solver *s, const int *others, int n_others, int *order)
{
    struct nk__chain *c = &s->best->chain;
    int k = c->n, kind = below(s, 6), i = below(s, k), j = below(s, k), machine;

    for (int x = 0; x < k; x++)
        order[x] = c->machine[x];
    machine = order[i];
    if (kind == 0) { /* two change places */
        order[i] = order[j];
        order[j] = machine;
    } else if (kind == 1) { /* one goes elsewhere */
        memmove(&order[i], &order[i + 1], (size_t)(k - 1 - i) * sizeof *order);
        memmove(&order[j + 1], &order[j], (size_t)(k - 1 - j) * sizeof *order);
        order[j] = machine;
    } else if (kind == 2 && n_others) { /* one is replaced */
        order[i] = others[below(s, n_others)];
    } else if (kind == 3 && n_others) { /* one is added */
        j = below(s, k + 1);
        memmove(&order[j + 1], &order[j], (size_t)(k - j) * sizeof *order);
        order[j] = others[below(s, n_others)];
        k++;
    } else if (kind == 4 && k > 1) { /* one is left out */
        memmove(&order[i], &order[i + 1], (size_t)(k - 1 - i) * sizeof *order);
        k--;
    } else if (kind == 5 && n_others && s->objective == NK_PLAN_ONE_STREAM) {
        int n_more = n_others < 2 * k + 8 ? n_others : 2 * k + 8, first = below(s, n_others);

        for (int x = 0; x < n_more; x++, k++) {
            j = below(s, k + 1);
            memmove(&order[j + 1], &order[j], (size_t)(k - j) * sizeof *order);
            order[j] = others[(first + x) % n_others];
        }
        return try_sequence(s, order, k);
    } else {
        return 0;
    }
    return try_order(s, order, k);
}

static int improve(struct solver *s, int *order, int *others, int64_t n_states)
{
    int64_t end = s->p->n_states + n_states;
    int rc = 0;

    for (int idle = 0; s->p->n_states < end && !rc && idle < 2000; idle++) {
        double before = s->best->value;
        int n_others = 0;

        if (s->best->value <= s->best->bound * (1 + 1e-12))
            break;
        for (int i = 0; i < s->n; i++) {
            bool used = false;

            for (int j = 0; j < s->best->chain.n; j++)
                used |= s->best->chain.machine[j] == s->list[i];
            if (!used)
                others[n_others++] = s->list[i];
        }
        /* As long as the best stays, so do the others. */
        for (; s->best->value >= before && s->p->n_states < end && idle < 2000 && !rc; idle++)
            rc = change(s, others, n_others, order);
        if (s->best->value < before)
            idle = 0;
    }
    return rc;
}

static int search(struct solver *s)
{
    struct nk__found best = *s->best, start;
    int *order = malloc((2 * (size_t)s->n + NK_PLAN_LAYERS_MAX) * sizeof *order);
    int *others = order + s->n + NK_PLAN_LAYERS_MAX, rc = order ? 0 : -1;

    if (!rc && s->objective == NK_PLAN_RATE)
        rc = start_for_rate(s, order);
    for (int i = 0; i < (s->p->search_states >= SEARCH_WELL ? STARTS : 4) && !rc; i++) {
        memcpy(order, s->list, (size_t)s->n * sizeof *order); /* the fastest first */
        if (i == 1) {
            for (int a = 0; a < s->n / 2; a++) {
                int t = order[a];

                order[a] = order[s->n - 1 - a];
                order[s->n - 1 - a] = t;
            }
        } else if (i >= 2 && i % 2) {
            shuffle(s, order, s->n);
        } else if (i >= 2) {
            int first = i == 2 ? 0 : below(s, s->n), t = order[0];

            order[0] = order[first];
            order[first] = t;
            nearest_first(s, order, s->n < 128 ? s->n : 128);
        }
        rc = try_sequence(s, order, s->n);
    }
    /* From the best of these, and twice from one of the others. */
    if (!rc && s->best->chain.n)
        rc = improve(s, order, others, s->p->search_states / 2);
    best = *s->best;
    for (int i = 0; i < 2 && !rc && best.chain.n; i++) {
        if (best.value <= best.bound * (1 + 1e-12))
            break;
        start = best;
        start.value = INFINITY;
        start.chain.n = 0;
        *s->best = start;
        memcpy(order, s->list, (size_t)s->n * sizeof *order);
        shuffle(s, order, s->n);
        if (i)
            nearest_first(s, order, s->n < 128 ? s->n : 128);
        rc = try_sequence(s, order, s->n);
        if (!rc && s->best->chain.n)
            rc = improve(s, order, others, s->p->search_states / 4);
        if (s->best->value < best.value)
            best = *s->best;
    }
    *s->best = best;
    free(order);
    return rc;
}

static int solve_large(struct solver *s)
{
    struct nk__problem *p = s->p;
    struct nk__load one = nk__load_of(1, 1);
    struct nk__chain *c = malloc(sizeof *c);
    double way = INFINITY, busy = 0, alone = INFINITY;
    int rc = c ? 0 : -1;

    for (int i = 0; i < s->n && !rc; i++) {
        struct nk__price price = nk__price_of(p, &one, s->list[i]);

        if (s->k_min > 1 || !nk__holds_all(p, &price, s->list[i], INFINITY))
            continue;
        *c = (struct nk__chain){ .n = 1 };
        c->machine[0] = (int16_t)s->list[i];
        c->end[0] = (int16_t)p->n_blocks;
        alone = fmin(alone, nk__value(p, c, NK_PLAN_ONE_STREAM, 1));
        offer(s, c);
    }
    if (!rc)
        rc = bound_way(s, &one, &way);
    /* Blocks that weigh what the lightest does give a bound; the heaviest a chain that is
     * possible. */
    if (!rc && p->equal_costs && isfinite(way)) {
        double light = nk__equal(p, &one, p->block_min, s->list, s->n, s->arrive, s->k_min, c);

        way = light >= 0 ? fmax(way, light) : way;
        if (light >= 0 && p->block_max > p->block_min)
            light = nk__equal(p, &one, p->block_max, s->list, s->n, s->arrive, s->k_min, c);
        if (light >= 0 && c->n) {
            int order[NK_PLAN_LAYERS_MAX];

            if (s->objective == NK_PLAN_ONE_STREAM)
                offer(s, c);
            for (int i = 0; i < c->n; i++)
                order[i] = c->machine[i];
            rc = try_order(s, order, c->n);
        }
    }
    s->best->bound = fmin(way, alone);
    s->best->exact = !isfinite(s->best->bound);
    if (!rc && s->objective == NK_PLAN_RATE && !s->best->exact) {
        rc = bound_busy(s, &busy);
        s->best->bound = fmax(s->best->bound, busy);
    }
    if (!rc && !s->best->exact && s->best->value > s->best->bound * (1 + 1e-9))
        rc = search(s);
    if (!rc && s->best->value <= s->best->bound * (1 + 1e-9))
        s->best->exact = true;
    free(c);
    return rc;
}

static void set_arrivals(struct solver *s)
{
    struct nk__load one = nk__load_of(1, 1);

    for (int i = 0; i < s->n; i++) {
        double least = INFINITY;

        for (int j = 0; j < s->n && (s->p->rtt || j < 2); j++) {
            if (!s->p->rtt || i != j)
                least = fmin(least, nk__hop(s->p, &one, s->list[j], s->list[i]));
        }
        s->arrive[i] = least;
    }
}

int nk__solve(struct nk__problem *p, enum nk_plan_objective objective, int streams, const int *list,
              int n, int k_min, struct nk__found *out, struct nk_error *err)
{
    struct solver s = {
        .p = p,
        .objective = objective,
        .streams = objective == NK_PLAN_RATE ? streams : 1,
        .list = list,
        .n = n,
        .k_min = k_min,
        .chance = p->opts->seed,
        .best = out,
    };
    int rc;

    out->chain.n = 0;
    out->value = INFINITY;
    out->bound = 0;
    out->exact = true;
    if (!n || k_min > n || k_min > p->n_blocks) {
        out->bound = INFINITY;
        return 0;
    }
    if (n <= NK_PLAN_EXACT_MAX + (n > p->n)) {
        rc = solve_exactly(&s);
    } else {
        s.arrive = malloc((size_t)n * sizeof *s.arrive);
        if (s.arrive)
            set_arrivals(&s);
        rc = s.arrive ? solve_large(&s) : -1;
        free(s.arrive);
    }
    return rc ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a plan of %d members", n)
              : 0;
}
