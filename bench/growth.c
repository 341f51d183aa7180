#include "bench/growth.h"

#include <math.h>
#include <stdio.h>

/* What counts as expected. A hop more costs this share of a token's time at most; a rate may fall
 * back by this share where it should only grow; a place may lie this far off the line; and the
 * network takes this share of the limit at most. */
#define HOP_SHARE_MAX  0.03
#define FALL_MAX       0.05
#define OFF_LINE_MAX   0.05
#define LIMIT_LOSS_MAX 0.05

/* How far a curve is from what is expected, by the medians and by the runs that are kindest and
 * harshest to it. */
struct excess {
    double median, kindest, harshest;
    bool spread; /* the runs that it rests on differ by more than NK_SPREAD_MAX */
};

static bool is_spread(const struct nk_summary *s)
{
    return s->high - s->low > NK_SPREAD_MAX * s->median;
}

static const char *verdict(const struct excess *e, double max)
{
    if (e->spread && (e->kindest <= max) != (e->harshest <= max))
        return "too noisy to tell";
    return e->median <= max ? "as expected" : "**not as expected**";
}

/* ---- stages ---- */

static void by_workers_beside(const struct nk_curve_place *first, const struct nk_curve_place *last,
                              char *out, unsigned long size)
{
    const struct nk_summary *a = &first->ratios, *b = &last->ratios;
    double n_more = last->x - first->x;
    struct excess e = { (1 / b->median - 1 / a->median) / n_more,
                        (1 / b->high - 1 / a->low) / n_more, (1 / b->low - 1 / a->high) / n_more,
                        is_spread(a) || is_spread(b) };

    snprintf(out, size,
             "Asked in turn with the whole model, a token took %.3g times as long with %g stage%s "
             "and %.3g times with %g: %.1f %% of a token for each stage more (at most %.0f %%), "
             "%s.",
             1 / a->median, first->x, first->x == 1 ? "" : "s", 1 / b->median, last->x,
             100 * e.median, 100 * HOP_SHARE_MAX, verdict(&e, HOP_SHARE_MAX));
}

static void by_workers(const struct nk_curve *c, char *out, unsigned long size)
{
    const struct nk_curve_place *first = &c->at[0], *last = &c->at[c->n - 1];
    double first_ms = 1e3 / first->y.median, last_ms = 1e3 / last->y.median,
           n_more = last->x - first->x;
    struct excess e = { (last_ms / first_ms - 1) / n_more,
                        (first->y.low / last->y.high - 1) / n_more,
                        (first->y.high / last->y.low - 1) / n_more,
                        is_spread(&first->y) || is_spread(&last->y) };

    if (first->ratios.n_ok && last->ratios.n_ok) {
        by_workers_beside(first, last, out, size);
        return;
    }
    snprintf(out, size,
             "From %g to %g stages a token went from %.2f to %.2f ms: %.2f ms or %.1f %% for each "
             "stage more (at most %.0f %%), %s.",
             first->x, last->x, first_ms, last_ms, (last_ms - first_ms) / n_more, 100 * e.median,
             100 * HOP_SHARE_MAX, verdict(&e, HOP_SHARE_MAX));
}

/* ---- streams ---- */

/* By which share the rate falls from one place to a later one; less than 0: it grows. */
static double fall(double from, double to)
{
    return 1 - to / from;
}

/* What of a fall the whole model has, too. */
static double fall_of_whole(const struct nk_curve_place *from, const struct nk_curve_place *to)
{
    double f = from->whole.n_ok && to->whole.n_ok ? fall(from->whole.median, to->whole.median) : 0;

    return f > 0 ? f : 0;
}

static void by_streams(const struct nk_curve *c, char *out, unsigned long size)
{
    const struct nk_curve_place *first = &c->at[0], *last = &c->at[c->n - 1];
    const struct nk_curve_place *from = first, *to = &c->at[1], *excess_from = from,
                                *excess_to = to;
    double deepest = -INFINITY, of_whole;
    struct excess e = { .median = -INFINITY };
    char beside[64] = "";

    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++) {
            double f = fall(c->at[i].y.median, c->at[k].y.median),
                   excess = f - fall_of_whole(&c->at[i], &c->at[k]);

            if (f > deepest) {
                deepest = f;
                from = &c->at[i], to = &c->at[k];
            }
            if (excess > e.median) {
                e.median = excess;
                excess_from = &c->at[i], excess_to = &c->at[k];
            }
        }
    if (deepest <= FALL_MAX || e.median > FALL_MAX)
        from = excess_from, to = excess_to;
    of_whole = fall_of_whole(from, to);
    e.median = fall(from->y.median, to->y.median) - of_whole;
    e.kindest = fall(from->y.low, to->y.high) - of_whole;
    e.harshest = fall(from->y.high, to->y.low) - of_whole;
    e.spread = is_spread(&from->y) || is_spread(&to->y);
    if (deepest <= FALL_MAX) {
        snprintf(
            out, size,
            "From %g to %g streams the rate grew from %.1f to %.1f tok/s and never fell by more "
            "than %.0f %%, %s.",
            first->x, last->x, first->y.median, last->y.median, 100 * FALL_MAX,
            verdict(&e, FALL_MAX));
        return;
    }
    if (from->whole.n_ok && to->whole.n_ok)
        snprintf(beside, sizeof beside, " (the whole model's %s by %.0f %%)",
                 from->whole.median > to->whole.median ? "fell" : "grew",
                 100 * fabs(fall(from->whole.median, to->whole.median)));
    snprintf(out, size,
             "From %g to %g streams the rate went from %.1f to %.1f tok/s, but from %g to %g "
             "streams it fell by %.0f %%%s, %s.",
             first->x, last->x, first->y.median, last->y.median, from->x, to->x,
             100 * fall(from->y.median, to->y.median), beside, verdict(&e, FALL_MAX));
}

/* ---- context ---- */

struct line {
    double base, slope; /* ms, and ms for each token before it */
    int n;              /* places that it rests on */
};

static double line_at(const struct line *l, double x)
{
    return l->base + l->slope * x;
}

/* The line of least relative errors: a machine's noise is a share of the time that it disturbs. */
static struct line fit(const struct nk_curve *c, bool is_whole)
{
    double s = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    struct line l = { 0 };

    for (int i = 0; i < c->n; i++) {
        const struct nk_summary *y = is_whole ? &c->at[i].whole : &c->at[i].y;
        double x = c->at[i].x, ms, w;

        if (!y->n_ok)
            continue;
        ms = 1e3 / y->median;
        w = 1 / (ms * ms);
        s += w, sx += w * x, sy += w * ms, sxx += w * x * x, sxy += w * x * ms;
        l.n++;
    }
    if (l.n >= 2) {
        l.slope = (s * sxy - sx * sy) / (s * sxx - sx * sx);
        l.base = (sy - l.slope * sx) / s;
    }
    return l;
}

static double off_line(const struct line *l, double x, double tok_s)
{
    return 1e3 / tok_s / line_at(l, x) - 1;
}

/* How far a place lies off the line, less what the whole model lies off its own there, to the same
 * side. */
static struct excess off_line_excess(const struct nk_curve_place *p, const struct line *ours,
                                     const struct line *whole)
{
    double off = off_line(ours, p->x, p->y.median), quick = off_line(ours, p->x, p->y.high),
           slow = off_line(ours, p->x, p->y.low),
           theirs = p->whole.n_ok && whole->n > 2 ? off_line(whole, p->x, p->whole.median) : 0,
           shared = theirs * off > 0 ? fabs(theirs) : 0;
    struct excess e = { .median = fabs(off) - shared, .spread = is_spread(&p->y) };

    e.kindest = (quick <= 0 && slow >= 0 ? 0 : fmin(fabs(quick), fabs(slow))) - shared;
    e.harshest = fmax(fabs(quick), fabs(slow)) - shared;
    return e;
}

static void by_depth(const struct nk_curve *c, char *out, unsigned long size)
{
    struct line ours = fit(c, false), whole = fit(c, true);
    struct excess worst = { .median = -INFINITY };
    double worst_at = 0, off = 0;
    char beside[96] = "";

    for (int i = 0; i < c->n; i++) {
        struct excess e = off_line_excess(&c->at[i], &ours, &whole);

        if (e.median > worst.median) {
            worst = e;
            worst_at = c->at[i].x;
            off = fabs(off_line(&ours, worst_at, c->at[i].y.median));
        }
    }
    if (whole.n >= 2)
        snprintf(beside, sizeof beside, " (of the whole model %.1f ms and %.2f ms)", whole.base,
                 1e3 * whole.slope);
    snprintf(
        out, size,
        "A token took %.1f ms and %.2f ms for each 1,000 tokens before it%s; the place farthest "
        "off that line is %g with %.1f %% (at most %.0f %% more than the whole model is off its "
        "own), %s.",
        ours.base, 1e3 * ours.slope, beside, worst_at, 100 * off, 100 * OFF_LINE_MAX,
        verdict(&worst, OFF_LINE_MAX));
}

/* ---- round trips ---- */

static void by_round_trip(const struct nk_curve *c, char *out, unsigned long size)
{
    const struct nk_curve_place *worst = NULL;

    for (int i = 0; i < c->n; i++)
        if (c->at[i].ratios.n_ok && (!worst || c->at[i].ratios.median < worst->ratios.median))
            worst = &c->at[i];
    if (!worst) {
        snprintf(out, size, "The limits were not measured.");
    } else {
        const struct nk_summary *r = &worst->ratios;
        struct excess e = { 1 - r->median, 1 - r->high, 1 - r->low, is_spread(r) };

        snprintf(out, size,
                 "At worst, with %g ms, the rate is %.3f of the limit (at least %.2f), %s.",
                 worst->x, r->median, 1 - LIMIT_LOSS_MAX, verdict(&e, LIMIT_LOSS_MAX));
    }
}

void nk_growth_format(const struct nk_figure *f, const struct nk_curve *c, char *out,
                      unsigned long size)
{
    if (c->n < 2) {
        snprintf(out, size, "Too few places were measured to tell how it grows.");
        return;
    }
    switch (f->x) {
    case NK_X_WORKERS:
        by_workers(c, out, size);
        break;
    case NK_X_STREAMS:
        by_streams(c, out, size);
        break;
    case NK_X_DEPTH:
        by_depth(c, out, size);
        break;
    case NK_X_ROUND_TRIP:
        by_round_trip(c, out, size);
        break;
    case NK_X_NONE:
        out[0] = 0;
    }
}
