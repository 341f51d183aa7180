#include "bench/growth.h"

#include <math.h>
#include <stdio.h>

/* What counts as expected. A hop more costs this share of a token's time at most; a rate may fall back by this share where
 * it should only grow; a place may lie this far off the line; and the network takes this share of the limit at most. */
#define HOP_SHARE_MAX  0.03
#define FALL_MAX       0.05
#define OFF_LINE_MAX   0.05
#define LIMIT_LOSS_MAX 0.05

static const char *verdict(int good)
{
    return good ? "as expected" : "**not as expected**";
}

static void by_workers(const struct nk_curve *c, char *out, unsigned long size)
{
    double first_ms = 1e3 / c->y[0], last_ms = 1e3 / c->y[c->n - 1],
           each_ms = (last_ms - first_ms) / (c->x[c->n - 1] - c->x[0]);

    snprintf(out, size,
             "From %g to %g stages a token went from %.2f to %.2f ms: %.2f ms or %.1f %% for each "
             "stage more (at most %.0f %%), %s.",
             c->x[0], c->x[c->n - 1], first_ms, last_ms, each_ms, 100 * each_ms / first_ms,
             100 * HOP_SHARE_MAX, verdict(each_ms <= HOP_SHARE_MAX * first_ms));
}

static void by_streams(const struct nk_curve *c, char *out, unsigned long size)
{
    double best = c->y[0], worst_fall = 0, from = c->x[0], fell_at = c->x[0];
    double best_at = c->x[0];

    for (int i = 1; i < c->n; i++) {
        if (1 - c->y[i] / best > worst_fall) {
            worst_fall = 1 - c->y[i] / best;
            from = best_at;
            fell_at = c->x[i];
        }
        if (c->y[i] > best) {
            best = c->y[i];
            best_at = c->x[i];
        }
    }
    if (worst_fall <= FALL_MAX)
        snprintf(
            out, size,
            "From %g to %g streams the rate grew from %.1f to %.1f tok/s and never fell by more "
            "than %.0f %%, %s.",
            c->x[0], c->x[c->n - 1], c->y[0], c->y[c->n - 1], 100 * FALL_MAX, verdict(1));
    else
        snprintf(out, size,
                 "From %g to %g streams the rate went from %.1f to %.1f tok/s, but from %g to %g "
                 "streams it fell by %.0f %%, %s.",
                 c->x[0], c->x[c->n - 1], c->y[0], c->y[c->n - 1], from, fell_at, 100 * worst_fall,
                 verdict(0));
}

static void by_depth(const struct nk_curve *c, char *out, unsigned long size)
{
    double sx = 0, sy = 0, sxx = 0, sxy = 0, slope, base, worst = 0, worst_at = 0, n = c->n;

    for (int i = 0; i < c->n; i++) {
        double ms = 1e3 / c->y[i];

        sx += c->x[i], sy += ms, sxx += c->x[i] * c->x[i], sxy += c->x[i] * ms;
    }
    slope = (n * sxy - sx * sy) / (n * sxx - sx * sx);
    base = (sy - slope * sx) / n;
    for (int i = 0; i < c->n; i++) {
        double off = fabs(1e3 / c->y[i] / (base + slope * c->x[i]) - 1);

        if (off > worst) {
            worst = off;
            worst_at = c->x[i];
        }
    }
    snprintf(
        out, size,
        "A token took %.1f ms and %.2f ms for each 1,000 tokens before it; the place farthest off "
        "that line is %g with %.1f %%, %s.",
        base, 1e3 * slope, worst_at, 100 * worst, verdict(worst <= OFF_LINE_MAX));
}

static void by_round_trip(const struct nk_curve *c, char *out, unsigned long size)
{
    double worst = INFINITY, worst_at = 0;

    for (int i = 0; i < c->n; i++)
        if (c->limit[i] > 0 && c->y[i] / c->limit[i] < worst) {
            worst = c->y[i] / c->limit[i];
            worst_at = c->x[i];
        }
    if (isinf(worst))
        snprintf(out, size, "The limits were not measured.");
    else
        snprintf(out, size,
                 "At worst, with %g ms, the rate is %.3f of the limit (at least %.2f), %s.",
                 worst_at, worst, 1 - LIMIT_LOSS_MAX, verdict(worst >= 1 - LIMIT_LOSS_MAX));
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
