/* Which ranges are measured, and what their times say of single layers.
 *
 * A layer cannot always be loaded alone: some models need several kinds in every slice, or cuts at
 * multiples of a period. And a single small layer would stay in the processor's cache, where a
 * model never does: so as many layers are taken as do not fit there. What is known afterwards are
 * times of ranges, each a sum: something fixed, n layers of each shape, perhaps the head. The
 * multiplicative algebraic reconstruction technique (Gordon, Bender, Herman 1970) finds the parts:
 * all start in proportion to the bytes they read, and each equation in turn scales its parts until
 * their sum is right. Parts never become negative, as they do in a difference of two times that
 * disturbances have changed, and what no equation tells apart keeps the proportion it began
 * with. */
#include <string.h>

#include <math.h>

#include "measure/measure_int.h"

enum {
    MEASURED_SHAPES_MAX = 4, /* the most frequent; others are estimated by their bytes */
    LENGTH_MAX = 96,         /* layers of a range, except for a whole model */
    ROUNDS = 4000,
};

int nk__shapes_find(const nk_model *m, struct nk__shapes *out, struct nk_error *err)
{
    static const size_t size = NK_SHA256_HEX;
    const struct nk_model_info *in = nk_model_info(m);
    char known[NK__SHAPES_MAX][NK_SHA256_HEX], hex[NK_SHA256_HEX];

    *out = (struct nk__shapes){ .n_layer = in->n_layer };
    for (int i = 0; i < in->n_layer; i++) {
        int k = 0, rc = nk_model_shape(m, i, hex, err);

        if (rc)
            return rc;
        while (k < out->n && memcmp(known[k], hex, size) != 0)
            k++;
        if (k == NK__SHAPES_MAX)
            k--;
        if (k == out->n) {
            memcpy(known[k], hex, size);
            out->bytes_per_row[k] = (double)nk_model_bytes_per_row(m, i);
            out->n++;
        }
        out->of[i] = k;
        out->n_layers[k]++;
    }
    return 0;
}

static void count(const struct nk__shapes *s, struct nk_range r, int n[NK__SHAPES_MAX])
{
    memset(n, 0, sizeof(int) * NK__SHAPES_MAX);
    for (int i = r.begin; i < r.end; i++)
        n[s->of[i]]++;
}

/* How well a range suits; less is better, in this order. */
struct fit {
    int too_large, has_head, n_foreign;
    double distance;
};

static bool is_better(const struct fit *a, const struct fit *b)
{
    if (a->too_large != b->too_large)
        return a->too_large < b->too_large;
    if (a->has_head != b->has_head)
        return a->has_head < b->has_head;
    if (a->n_foreign != b->n_foreign)
        return a->n_foreign < b->n_foreign;
    return a->distance < b->distance;
}

struct search {
    const nk_model *m;
    const struct nk__shapes *s;
    const uint64_t *cost;
    uint64_t max_bytes;
};

/* The best range with layers of this shape (-1: that ends with the last layer) for target bytes of
 * weights (0: as few as can be). */
static bool find(const struct search *q, int shape, double target, struct nk_range *out)
{
    int n_layer = q->s->n_layer;
    bool found = false;
    struct fit best = { 0 };

    for (int begin = n_layer - 1; begin >= 0; begin--) {
        int n_of = 0, n_foreign = 0, seen[NK__SHAPES_MAX] = { 0 };
        uint64_t cost = 0;
        double bytes = 0;

        for (int end = begin + 1; end <= n_layer; end++) {
            struct nk_range r = { begin, end };
            int k = q->s->of[end - 1];
            struct fit fit;

            n_of += k == shape;
            n_foreign += k != shape && !seen[k];
            seen[k] = 1;
            cost += q->cost[end - 1];
            bytes += q->s->bytes_per_row[k];
            if (end - begin > LENGTH_MAX && end < n_layer)
                continue;
            if (shape >= 0 ? !n_of : end < n_layer)
                continue;
            fit = (struct fit){ .too_large = cost > q->max_bytes,
                                .has_head = shape >= 0 && end == n_layer,
                                .n_foreign = shape >= 0 ? n_foreign : 0,
                                .distance = bytes >= target ? bytes / target : 2 * target / bytes };
            if (!target)
                fit.distance = bytes;
            else if (bytes < target) /* short of it: worse than any that reaches it */
                fit.distance += 1e9;
            if (fit.too_large) /* then as little as there can be */
                fit.distance = (double)cost;
            if ((!found || is_better(&fit, &best)) && !nk_ranges_check(q->m, &r, 1, false, NULL)) {
                found = true;
                best = fit;
                *out = r;
            }
        }
    }
    return found;
}

static int add(struct nk_range *ranges, int n, struct nk_range r)
{
    for (int i = 0; i < n; i++)
        if (ranges[i].begin == r.begin && ranges[i].end == r.end)
            return n;
    ranges[n] = r;
    return n + 1;
}

int nk__ranges_choose(const nk_model *m, const struct nk__shapes *s, const uint64_t *cost,
                      uint64_t target_bytes, uint64_t max_bytes, struct nk_range *ranges,
                      struct nk_error *err)
{
    const struct search q = { m, s, cost, max_bytes };
    struct nk_range whole = { 0, s->n_layer }, r, few, main_range = whole;
    bool done[NK__SHAPES_MAX] = { 0 };
    int n = 0, n_shapes = s->n < MEASURED_SHAPES_MAX ? s->n : MEASURED_SHAPES_MAX;

    /* The last equation is right to the end: that of the most frequent shape. */
    for (int k = 0; k < n_shapes; k++) {
        int most = -1;

        for (int i = 0; i < s->n; i++)
            if (!done[i] && (most < 0 || s->n_layers[i] > s->n_layers[most]))
                most = i;
        done[most] = true;
        if (!find(&q, most, target_bytes ? (double)target_bytes : 1, &r)) {
            int rc = nk_ranges_check(m, &whole, 1, true, err);

            NK_ASSERT(rc); /* else it would have been found */
            return 0;
        }
        if (k == 0)
            main_range = r;
        else
            n = add(ranges, n, r);
        if (k == 0 && find(&q, most, 0, &few) &&
            2 * (few.end - few.begin) <= main_range.end - main_range.begin)
            n = add(ranges, n, few);
    }
    if (find(&q, -1, 0, &r))
        n = add(ranges, n, r);
    for (int i = 0; i < n; i++) /* so that it comes last */
        if (ranges[i].begin == main_range.begin && ranges[i].end == main_range.end)
            ranges[i] = ranges[--n];
    ranges[n++] = main_range;
    return n;
}

void nk__shares_solve(const struct nk__shapes *s, double head_bytes, const struct nk_range *ranges,
                      const double *ms, int n, struct nk__shares *out)
{
    const double fixed_ms = 0.01; /* to begin with: little beside anything that takes time */
    int counts[NK__RANGES_MAX][NK__SHAPES_MAX];
    bool heads[NK__RANGES_MAX], told[NK__SHAPES_MAX] = { 0 }, head_told = false;
    double bytes = 0, total = 0, rate;

    for (int i = 0; i < n; i++) {
        count(s, ranges[i], counts[i]);
        heads[i] = ranges[i].end == s->n_layer;
        head_told |= heads[i];
        for (int k = 0; k < s->n; k++) {
            bytes += counts[i][k] * s->bytes_per_row[k];
            told[k] |= counts[i][k] > 0;
        }
        bytes += heads[i] ? head_bytes : 0;
        total += ms[i];
    }
    rate = total / (bytes > 0 ? bytes : 1);
    out->fixed = fixed_ms;
    out->head = head_bytes * rate;
    for (int k = 0; k < s->n; k++)
        out->layer[k] = (s->bytes_per_row[k] > 0 ? s->bytes_per_row[k] : 1) * rate;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < n; i++) {
            double sum = out->fixed + (heads[i] ? out->head : 0), ratio, most = 1;

            for (int k = 0; k < s->n; k++) {
                sum += counts[i][k] * out->layer[k];
                if (counts[i][k] > most)
                    most = counts[i][k];
            }
            ratio = sum > 0 && ms[i] > 0 ? ms[i] / sum : 1;
            out->fixed *= pow(ratio, 1 / most);
            if (heads[i])
                out->head *= pow(ratio, 1 / most);
            for (int k = 0; k < s->n; k++)
                if (counts[i][k])
                    out->layer[k] *= pow(ratio, counts[i][k] / most);
        }
    /* What was in no range: by its bytes, at the speed of those that were. */
    bytes = total = 0;
    for (int k = 0; k < s->n; k++)
        if (told[k]) {
            bytes += s->bytes_per_row[k];
            total += out->layer[k];
        }
    for (int k = 0; k < s->n; k++)
        if (!told[k])
            out->layer[k] = bytes > 0 ? s->bytes_per_row[k] * total / bytes : 0;
    if (!head_told)
        out->head = bytes > 0 ? head_bytes * total / bytes : 0;
}
