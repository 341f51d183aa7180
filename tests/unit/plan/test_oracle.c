/* One stream, equal blocks, equal arrivals: the planner's dynamic program against an integer
 * program that GLPK solves. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glpk.h>

#include "scenario.h"

enum { MID, FIRST, LAST, ROLES };

/* The most layers that m can hold with or without an end of the model. */
static int cap_of(const struct scenario *s, const struct nk_plan_member *m, int role)
{
    int n = s->model.n_layer, most = 0;
    uint64_t room = (uint64_t)((double)m->memory_bytes * (1 - s->opts.headroom));

    for (int k = 1; k < n; k++) {
        int begin = role == FIRST ? 0 : role == LAST ? n - k : 1;

        if (role == MID && k > n - 2)
            break;
        if (expect_need(s, m, begin, begin + k) <= room)
            most = k;
    }
    return most;
}

/* The least ms of a chain of two machines or more; INFINITY: there is none. */
static double solve(const struct scenario *s)
{
    int n = s->facts.n_members, n_vars = 2 * ROLES * n, at = 0;
    glp_prob *lp = glp_create_prob();
    int *row = calloc((size_t)n_vars * 8, sizeof *row),
        *col = calloc((size_t)n_vars * 8, sizeof *col);
    double *value = calloc((size_t)n_vars * 8, sizeof *value), best = INFINITY;
    glp_iocp how;

    /* Rows: all layers; one first; one last; each machine once; then layers only where it is used,
     * at least one and at most what it can hold. */
    glp_set_obj_dir(lp, GLP_MIN);
    glp_add_rows(lp, 3 + n + 2 * ROLES * n);
    glp_add_cols(lp, n_vars);
    glp_set_row_bnds(lp, 1, GLP_FX, s->model.n_layer, s->model.n_layer);
    glp_set_row_bnds(lp, 2, GLP_FX, 1, 1);
    glp_set_row_bnds(lp, 3, GLP_FX, 1, 1);
#define ENTRY(r, c, v) (at++, row[at] = (r), col[at] = (c), value[at] = (v))
    for (int i = 0; i < n; i++) {
        const struct nk_plan_member *m = &s->members[i];
        const struct nk_plan_link *l = scenario_link(s, s->members[i ? 0 : 1].id, m->id);
        double rtt = l ? l->rtt_ms : s->facts.default_rtt_ms;
        double rate = l ? l->bytes_per_s : s->facts.default_bytes_per_s;
        double arrive = rtt + (double)s->model.row_bytes / rate * 1e3 + s->opts.hop_ms;

        glp_set_row_bnds(lp, 4 + i, GLP_UP, 0, 1);
        for (int role = 0; role < ROLES; role++) {
            int used = 1 + 2 * (i * ROLES + role), layers = used + 1;
            int least = 4 + n + 2 * (i * ROLES + role), most = least + 1;
            int cap = cap_of(s, m, role);

            glp_set_col_kind(lp, used, GLP_BV);
            glp_set_col_kind(lp, layers, GLP_IV);
            glp_set_col_bnds(lp, layers, GLP_DB, 0, s->model.n_layer);
            glp_set_obj_coef(lp, layers, m->layer_ms_1);
            glp_set_obj_coef(lp, used,
                             m->step_ms + (role == FIRST ? m->embd_ms : arrive) +
                                 (role == LAST ? m->head_ms_1 : 0));
            ENTRY(1, layers, 1);
            if (role != MID)
                ENTRY(role == FIRST ? 2 : 3, used, 1);
            ENTRY(4 + i, used, 1);
            glp_set_row_bnds(lp, least, GLP_LO, 0, 0); /* layers - used >= 0 */
            ENTRY(least, layers, 1);
            ENTRY(least, used, -1);
            glp_set_row_bnds(lp, most, GLP_UP, 0, 0); /* layers - cap * used <= 0 */
            ENTRY(most, layers, 1);
            ENTRY(most, used, -cap);
        }
    }
#undef ENTRY
    glp_load_matrix(lp, at, row, col, value);
    glp_init_iocp(&how);
    how.presolve = GLP_ON;
    how.msg_lev = GLP_MSG_OFF;
    if (!glp_intopt(lp, &how) && glp_mip_status(lp) == GLP_OPT)
        best = glp_mip_obj_val(lp);
    glp_delete_prob(lp);
    free(row);
    free(col);
    free(value);
    return best;
}

static double alone(const struct scenario *s)
{
    double best = INFINITY;

    for (int i = 0; i < s->facts.n_members; i++) {
        const struct nk_plan_member *m = &s->members[i];
        uint64_t room = (uint64_t)((double)m->memory_bytes * (1 - s->opts.headroom));

        if (expect_need(s, m, 0, s->model.n_layer) <= room)
            best = fmin(best,
                        m->step_ms + m->embd_ms + m->head_ms_1 + s->model.n_layer * m->layer_ms_1);
    }
    return best;
}

static void test_oracle__says_the_same_of_many_equal_links(void **state)
{
    uint64_t seed = seed_begin();
    int n_fit = 0;

    (void)state;
    glp_term_out(GLP_OFF);
    for (int round = 0; round < 40; round++) {
        int n = 9 + (int)seed_below(&seed, 7);
        struct nk_error err = { 0 };
        struct scenario s;
        struct nk_plan *p;
        double best;

        scenario_init(&s, &seed, n, 6 + (int)seed_below(&seed, 20),
                      round % 2 ? UNEQUAL_ARRIVALS : 0, uniform(&seed, 0.1, 0.9));
        if (nk_plan_make(&p, &s.facts, &s.opts, &err))
            fail_msg("%s", err.msg);
        best = fmin(solve(&s), alone(&s));
        assert_true(p->exact);
        if (isfinite(best) != (p->n_chains > 0) ||
            (p->n_chains && fabs(p->ms_per_token - best) > 1e-6 * best))
            fail_msg("round %d: %g ms, and GLPK says %g", round, p->ms_per_token, best);
        n_fit += p->n_chains > 0;
        nk_plan_free(p);
        scenario_release(&s);
    }
    assert_in_range(n_fit, 10, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle__says_the_same_of_many_equal_links),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
