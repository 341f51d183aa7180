/* Several chains side by side. */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of more machines than this first only the fastest are looked at, so that a chain costs what it
 * needs and not what there is. */
enum { LOOK_FIRST = 64 };

static int peel(struct nk__problem *p, enum nk_plan_objective objective, int streams, int n_max,
                struct nk__chain *chains, int *n, struct nk_error *err)
{
    int *list = malloc((size_t)p->n * sizeof *list), n_left = p->n, rc = 0;
    struct nk__found *found = malloc(sizeof *found);

    *n = 0;
    if (!list || !found)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < p->n && !rc; i++)
        list[i] = i; /* in the order of layer_ms */
    while (!rc && *n < n_max && n_left) {
        int n_seen = n_left < LOOK_FIRST ? n_left : LOOK_FIRST, kept = 0;

        do {
            rc = nk__solve(p, objective, streams, list, n_seen, 1, found, err);
            if (rc || found->chain.n || n_seen == n_left)
                break;
            n_seen = 2 * n_seen < n_left ? 2 * n_seen : n_left;
        } while (true);
        if (rc || !found->chain.n)
            break;
        chains[(*n)++] = found->chain;
        for (int i = 0; i < n_left; i++) {
            bool used = false;

            for (int j = 0; j < found->chain.n; j++)
                used |= found->chain.machine[j] == list[i];
            if (!used)
                list[kept++] = list[i];
        }
        n_left = kept;
    }
    free(list);
    free(found);
    return rc;
}

static double rate_of(const struct nk__problem *p, const struct nk__chain *c, int streams)
{
    struct nk__times t;

    nk__evaluate(p, c, streams, &t);
    return t.tokens_per_s;
}

double nk__share_streams(const struct nk__problem *p, const struct nk__chain *chains, int n,
                         int *streams)
{
    int left = p->opts->streams - n,
        piece = p->opts->streams / 128 > 1 ? p->opts->streams / 128 : 1;
    double *now = malloc(2 * (size_t)n * sizeof *now), *next = now + n, sum = 0;

    if (!now)
        return -1;
    for (int i = 0; i < n; i++) {
        streams[i] = 1;
        now[i] = rate_of(p, &chains[i], 1);
        next[i] = rate_of(p, &chains[i], 1 + piece);
    }
    while (left > 0) {
        int own = left < piece ? left : piece, best = 0;

        for (int i = 1; i < n; i++)
            if (next[i] - now[i] > next[best] - now[best])
                best = i;
        streams[best] += own;
        left -= own;
        now[best] = rate_of(p, &chains[best], streams[best]);
        next[best] = rate_of(p, &chains[best], streams[best] + piece);
    }
    for (int i = 0; i < n; i++)
        sum += now[i];
    free(now);
    return sum;
}

/* As many of the chains as are good. */
static int choose(const struct nk__problem *p, const struct nk__chain *from, int n_from,
                  struct nk__chain *chains, int *streams, int *n, double *rate)
{
    int own[NK_PLAN_CHAINS_MAX];

    for (int k = 2; k <= n_from && k <= p->opts->streams; k += 1 + k / 8) {
        double sum = nk__share_streams(p, from, k, own);

        if (sum < 0)
            return -1;
        if (sum <= *rate)
            continue;
        *rate = sum;
        *n = k;
        memcpy(chains, from, (size_t)k * sizeof *chains);
        memcpy(streams, own, (size_t)k * sizeof *streams);
    }
    return 0;
}

int nk__replicas(struct nk__problem *p, struct nk__chain chains[NK_PLAN_CHAINS_MAX],
                 int streams[NK_PLAN_CHAINS_MAX], int *n, double *rate, struct nk_error *err)
{
    int n_max = p->opts->streams < NK_PLAN_CHAINS_MAX ? p->opts->streams : NK_PLAN_CHAINS_MAX;
    struct nk__chain *own = malloc((size_t)NK_PLAN_CHAINS_MAX * sizeof *own);
    int64_t budget = p->search_states;
    int n_own = 0, rc = 0;

    *n = 0;
    *rate = 0;
    if (!own)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    p->search_states = budget / 16;
    /* Each chain as quick as it can be; and each as good as it can be for an equal share. */
    rc = peel(p, NK_PLAN_ONE_STREAM, 1, n_max, own, &n_own, err);
    if (!rc && choose(p, own, n_own, chains, streams, n, rate) < 0)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (p->opts->objective != NK_PLAN_RATE || p->n > LOOK_FIRST)
        n_own = 0; /* only told as another possibility, or too much to look at */
    for (int k = 2; n_own && k <= n_own + 1 && k <= n_max && k <= 16 && !rc; k += 1 + k / 4) {
        int n_found = 0;

        rc = peel(p, NK_PLAN_RATE, (p->opts->streams + k - 1) / k, k, own, &n_found, err);
        if (!rc && choose(p, own, n_found, chains, streams, n, rate) < 0)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    p->search_states = budget;
    free(own);
    return rc;
}

double nk__rate_bound(const struct nk__problem *p, double least_ms)
{
    struct nk__load one = nk__load_of(1, 1);
    double *caps = malloc((size_t)p->n * sizeof *caps), most = 0, sum = 0;
    double whole = p->cost[p->n_blocks];
    int *lo = malloc(((size_t)p->n_blocks + 1) * sizeof *lo);

    for (int i = 0; caps && lo && i < p->n; i++) {
        struct nk__price price = nk__price_of(p, &one, i);

        caps[i] = nk__most_cost(p, &price, i, lo);
        most = fmax(most, caps[i]);
    }
    for (int i = 0; i < p->n; i++) {
        int n_stages = 1, rows; /* a chain with this machine has at least so many */

        if (caps && lo && most > 0)
            n_stages += (int)fmin(ceil((whole - caps[i]) / most - 1e-9), 1 << 20);
        rows = (p->opts->streams + n_stages - 1) / n_stages;
        sum += 1e3 / nk__least_each(p, i, rows);
    }
    sum /= whole;
    free(caps);
    free(lo);
    return least_ms > 0 ? fmin(sum, p->opts->streams * 1e3 / least_ms) : sum;
}

double nk__copies(const struct nk__problem *p)
{
    struct nk__load one = nk__load_of(1, 1);
    int *lo = malloc(((size_t)p->n_blocks + 1) * sizeof *lo);
    double sum = 0;

    if (!lo)
        return -1;
    for (int i = 0; i < p->n; i++) {
        struct nk__price price = nk__price_of(p, &one, i);

        sum += nk__most_cost(p, &price, i, lo);
    }
    free(lo);
    return p->cost[p->n_blocks] > 0 ? sum / p->cost[p->n_blocks] : 2;
}
