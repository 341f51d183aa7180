/* Any number of machines, where what arriving at one costs does not depend on where one comes from
 * and all blocks are equal. Then the order of the stages between the first and the last does not
 * matter, nor which blocks a machine holds, only how many: machine by machine, a state is (how many
 * blocks are placed, is there a first, is there a last, how many are between them, counted up to
 * what is asked for at least). */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>

enum { FIRST = 1, LAST = 2, ROLES = 4, TABLE_MAX = 16 << 20 };

/* How this machine came to a state: with how many blocks (0: it is not in it) and as what. */
struct step {
    int16_t blocks;
    uint8_t role;    /* what it added: 0, FIRST or LAST */
    uint8_t counted; /* did it raise the count? */
};

/* The most blocks that m can hold as role. */
static int most(const struct nk__problem *p, uint64_t block_bytes, int m, int role)
{
    const struct nk__machine *x = &p->machines[m];
    uint64_t fixed = p->model->other_bytes, fit;

    fixed += role == LAST ? x->overhead_last + p->model->head_bytes : x->overhead;
    fixed += role == FIRST ? p->model->embd_bytes : 0;
    if (fixed > x->room)
        return 0;
    fit = block_bytes ? (x->room - fixed) / block_bytes : UINT64_MAX;
    return fit < (uint64_t)p->n_blocks - 1 ? (int)fit : p->n_blocks - 1;
}

double nk__equal(struct nk__problem *p, const struct nk__load *load, uint64_t block_bytes,
                 const int *list, int n, const double *arrive, int k_min, struct nk__chain *out)
{
    int n_blocks = p->n_blocks, n_counts = k_min > 2 ? k_min - 2 : 0;
    size_t row = (size_t)n_blocks + 1, table = (size_t)ROLES * (size_t)(n_counts + 1) * row;
    double *now = NULL, *before = NULL, *value = NULL, best = INFINITY;
    struct step *steps = NULL;
    int *lo = NULL, *at = NULL, *queue = NULL;

    out->n = 0;
    if (n_counts + 2 > n || n_counts + 2 > n_blocks)
        return INFINITY;
    if ((size_t)n * table > TABLE_MAX)
        return -1;
    now = malloc(2 * table * sizeof *now);
    value = malloc(row * sizeof *value);
    lo = malloc(3 * row * sizeof *lo);
    steps = calloc((size_t)n * table, sizeof *steps);
    if (!now || !value || !lo || !steps) {
        best = -1;
        goto out;
    }
    before = now + table;
    at = lo + row;
    queue = at + row;
    for (size_t i = 0; i < table; i++)
        now[i] = INFINITY;
#define STATE(count, role, done) (((size_t)(count)*ROLES + (size_t)(role)) * row + (size_t)(done))
    now[STATE(0, 0, 0)] = 0;
    for (int i = 0; i < n; i++) {
        struct nk__price price = nk__price_of(p, load, list[i]);
        static const int kinds[] = { 0, FIRST, LAST };

        for (size_t s = 0; s < table; s++)
            before[s] = now[s];
        for (int kind = 0; kind < 3; kind++) {
            int cap = most(p, block_bytes, list[i], kinds[kind]);
            double fixed = price.fixed + (kinds[kind] == FIRST ? price.embd : arrive[i]) +
                           (kinds[kind] == LAST ? price.head : 0);

            if (!cap || !isfinite(fixed))
                continue;
            for (int e = 1; e <= n_blocks; e++)
                lo[e] = e > cap ? e - cap : 0;
            for (int count = 0; count <= n_counts && count <= i; count++)
                for (int role = 0; role < ROLES; role++) {
                    int to = role | kinds[kind], more = !kinds[kind] && count < n_counts;

                    if (role & kinds[kind])
                        continue;
                    nk__advance(p, price.slope, &before[STATE(count, role, 0)], lo, 0, value, at,
                                queue);
                    for (int e = 1; e <= n_blocks; e++) {
                        size_t s = STATE(count + more, to, e);

                        if (at[e] < 0 || value[e] + fixed >= now[s])
                            continue;
                        now[s] = value[e] + fixed;
                        steps[(size_t)i * table + s] =
                            (struct step){ (int16_t)(e - at[e]), (uint8_t)kinds[kind],
                                           (uint8_t)more };
                    }
                }
        }
    }
    best = now[STATE(n_counts, ROLES - 1, n_blocks)];
    if (isfinite(best)) {
        int done = n_blocks, role = ROLES - 1, count = n_counts, k = 0;
        int first = -1, last = -1;
        struct step of[3] = { { 0 } }; /* first, last */
        int16_t blocks[NK_PLAN_LAYERS_MAX];

        /* From the last machine of list back; the stages between are turned round after it. */
        for (int i = n - 1; i >= 0; i--) {
            struct step s = steps[(size_t)i * table + STATE(count, role, done)];

            if (!s.blocks)
                continue;
            if (s.role == FIRST) {
                first = list[i];
                of[0] = s;
            } else if (s.role == LAST) {
                last = list[i];
                of[1] = s;
            } else {
                blocks[k] = s.blocks;
                out->machine[++k] = (int16_t)list[i];
            }
            done -= s.blocks;
            role &= ~s.role;
            count -= s.counted;
        }
        for (int i = 1; i <= k / 2; i++) {
            int16_t machine = out->machine[i], n_own = blocks[i - 1];

            out->machine[i] = out->machine[k + 1 - i];
            out->machine[k + 1 - i] = machine;
            blocks[i - 1] = blocks[k - i];
            blocks[k - i] = n_own;
        }
        out->n = k + 2;
        out->machine[0] = (int16_t)first;
        out->end[0] = of[0].blocks;
        for (int i = 1; i <= k; i++)
            out->end[i] = (int16_t)(out->end[i - 1] + blocks[i - 1]);
        out->machine[k + 1] = (int16_t)last;
        out->end[k + 1] = (int16_t)(out->end[k] + of[1].blocks);
    }
#undef STATE
out:
    free(now);
    free(value);
    free(lo);
    free(steps);
    return best;
}
