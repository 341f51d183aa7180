/* Layer ranges: parsed, checked against a model, and balanced by bytes. */
#include "slice/slice.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slice/arch_int.h"
#include "slice/model_int.h"

/* Digits only, up to 5 of them: strtol would take signs and spaces. NULL when there are none. */
static const char *parse_number(const char *p, int *v)
{
    int n = 0;

    for (*v = 0; isdigit((unsigned char)*p); p++) {
        if (++n > 5)
            return NULL;
        *v = *v * 10 + (*p - '0');
    }
    return n ? p : NULL;
}

int nk_ranges_parse(const char *text, struct nk_range *ranges, int max, int *n,
                    struct nk_error *err)
{
    const char *p = text;

    *n = 0;
    for (;;) {
        struct nk_range r;

        p = parse_number(p, &r.begin);
        if (p && *p == '-')
            p = parse_number(p + 1, &r.end);
        else
            p = NULL;
        if (!p || (*p && *p != ','))
            return nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "layers '%.100s': ranges like 0-14,14-28 are expected (from the first "
                           "layer up to, not including, the last)",
                           text);
        if (r.begin >= r.end)
            return nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "layers '%.100s': the range %d-%d is empty", text, r.begin, r.end);
        if (*n && r.begin < ranges[*n - 1].end)
            return nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "layers '%.100s': the range %d-%d overlaps %d-%d", text, r.begin, r.end,
                           ranges[*n - 1].begin, ranges[*n - 1].end);
        if (*n && r.begin > ranges[*n - 1].end)
            return nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "layers '%.100s': there is a gap between %d-%d and %d-%d", text,
                           ranges[*n - 1].begin, ranges[*n - 1].end, r.begin, r.end);
        if (*n == max)
            return nk_fail(err, NK_E_INVALID, "bad_ranges", "layers '%.100s': more than %d ranges",
                           text, max);
        ranges[(*n)++] = r;
        if (!*p)
            return 0;
        p++;
    }
}

int nk_ranges_check(const nk_model *m, const struct nk_range *ranges, int n, bool whole,
                    struct nk_error *err)
{
    int n_layer = m->info.n_layer;

    if (n < 1)
        return nk_fail(err, NK_E_INVALID, "bad_ranges", "no layers are given");
    for (int i = 0; i < n; i++)
        if (ranges[i].begin < 0 || ranges[i].begin >= ranges[i].end ||
            (i && ranges[i].begin != ranges[i - 1].end))
            return nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "the range %d-%d is empty or does not follow the one before",
                           ranges[i].begin, ranges[i].end);
    if (ranges[n - 1].end > n_layer)
        return nk_fail(err, NK_E_INVALID, "bad_ranges",
                       "layers %d-%d: the model has %d layers (0-%d)", ranges[n - 1].begin,
                       ranges[n - 1].end, n_layer, n_layer);
    if (whole && (ranges[0].begin != 0 || ranges[n - 1].end != n_layer))
        return nk_fail(err, NK_E_INVALID, "bad_ranges",
                       "layers %d-%d do not cover the model's %d layers (0-%d)", ranges[0].begin,
                       ranges[n - 1].end, n_layer, n_layer);
    for (int i = 0; i < n; i++) {
        int rc = nk__arch_check_range(m, ranges[i], err);

        if (rc)
            return rc;
    }
    return 0;
}

/* The smallest possible largest range, by dynamic programming: best[j][e] is the least largest
 * range over all ways to cut layers [0, e) into j legal ranges. k * n^2 steps with n at most
 * NK_LAYERS_MAX. */
struct balance {
    uint64_t *best; /* (k + 1) x (n_layer + 1); UINT64_MAX: impossible */
    int *from;      /* the same shape: where the last range begins */
    bool *legal;    /* (n_layer + 1) x (n_layer + 1): [begin][end] is a legal slice */
    /* Of the layers before this one; the head counts for the last layer. */
    uint64_t bytes[NK_LAYERS_MAX + 1];
};

static void fill(const nk_model *m, int k, struct balance *b)
{
    int n = m->info.n_layer, w = n + 1;

    b->bytes[0] = 0;
    for (int i = 0; i < n; i++)
        b->bytes[i + 1] =
            b->bytes[i] + m->info.layer_bytes[i] + (i == n - 1 ? m->info.head_bytes : 0);
    for (int i = 0; i < (k + 1) * w; i++)
        b->best[i] = UINT64_MAX;
    b->best[0] = 0;
    for (int begin = 0; begin < n; begin++)
        for (int end = begin + 1; end <= n; end++)
            b->legal[begin * w + end] =
                !nk__arch_check_range(m, (struct nk_range){ begin, end }, NULL);
    for (int j = 1; j <= k; j++)
        for (int end = j; end <= n; end++)
            for (int begin = j - 1; begin < end; begin++) {
                uint64_t before = b->best[(j - 1) * w + begin], bytes;

                if (before == UINT64_MAX || !b->legal[begin * w + end])
                    continue;
                bytes = b->bytes[end] - b->bytes[begin]; /* what a stage reads for every token */
                if (before > bytes)
                    bytes = before;
                if (bytes < b->best[j * w + end]) {
                    b->best[j * w + end] = bytes;
                    b->from[j * w + end] = begin;
                }
            }
}

int nk_ranges_balance(const nk_model *m, int k, struct nk_range *ranges, struct nk_error *err)
{
    int n = m->info.n_layer, w = n + 1, rc = 0;
    struct balance b;

    if (k < 1 || k > n)
        return nk_fail(err, NK_E_INVALID, "bad_ranges",
                       "the model has %d layers: 1 to %d slices are possible, not %d", n, n, k);
    b.best = calloc((size_t)(k + 1) * (size_t)w, sizeof *b.best);
    b.from = calloc((size_t)(k + 1) * (size_t)w, sizeof *b.from);
    b.legal = calloc((size_t)w * (size_t)w, sizeof *b.legal);
    if (!b.best || !b.from || !b.legal) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    fill(m, k, &b);
    if (b.best[k * w + n] == UINT64_MAX) {
        struct nk_error why = { 0 };
        int most = 1;

        for (int j = 1; j <= k; j++)
            if (b.best[j * w + n] != UINT64_MAX)
                most = j;
        if (most == 1)
            nk_model_cut_check(m, n / 2, &why);
        rc = !strcmp(why.reason, "cannot_split")
                 ? nk_fail(err, why.code, why.reason, "%s", why.msg)
                 : nk_fail(err, NK_E_INVALID, "bad_ranges",
                           "%d slices are not possible; at most %d are (nakshatra inspect lists "
                           "the legal cuts)%s%s",
                           k, most, why.msg[0] ? ": " : "", why.msg);
        goto out;
    }
    for (int j = k, end = n; j > 0; j--) {
        ranges[j - 1] = (struct nk_range){ b.from[j * w + end], end };
        end = ranges[j - 1].begin;
    }
out:
    free(b.best);
    free(b.from);
    free(b.legal);
    return rc;
}

bool nk_ranges_next(const nk_model *m, struct nk_range ranges[4], int *n)
{
    int n_layer = m->info.n_layer;

    if (*n > 2)
        return false;
    for (int at = *n ? ranges[0].end + 1 : 1; at < n_layer; at++) {
        ranges[0] = (struct nk_range){ 0, at };
        ranges[1] = (struct nk_range){ at, n_layer };
        *n = 2;
        if (!nk_ranges_check(m, ranges, 2, true, NULL))
            return true;
    }
    for (*n = 4; *n > 2; --*n)
        if (!nk_ranges_balance(m, *n, ranges, NULL))
            return true;
    return false;
}
