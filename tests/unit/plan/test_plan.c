/* Plans against brute force, an oracle of another kind, and what has to hold of every plan. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "scenario.h"

static struct nk_plan *plan_of(const struct scenario *s)
{
    struct nk_error err = { 0 };
    struct nk_plan *p;

    if (nk_plan_make(&p, &s->facts, &s->opts, &err))
        fail_msg("%s: %s", err.reason, err.msg);
    return p;
}

/* Whatever a plan says, it must be possible, and cost what it says. */
static void check_plan(const struct scenario *s, const struct nk_plan *p)
{
    double rate = 0;
    int streams = 0;

    for (int c = 0; c < p->n_chains; c++) {
        const struct nk_plan_chain *chain = &p->chains[c];
        struct expected one = expect_times(s, chain->stages, chain->n_stages, 1),
                        all = expect_times(s, chain->stages, chain->n_stages, chain->streams);
        int layer = 0;

        for (int i = 0; i < chain->n_stages; i++) {
            const struct nk_plan_stage *stage = &chain->stages[i];
            const struct nk_plan_member *m = scenario_member(s, stage->id);
            uint64_t need;

            assert_non_null(m);
            assert_false(m->no_layers);
            assert_int_equal(stage->begin, layer);
            assert_true(stage->end > stage->begin);
            layer = stage->end;
            assert_true(layer == s->model.n_layer || s->cut[layer]);
            need = expect_need(s, m, stage->begin, stage->end);
            assert_int_equal(stage->weight_bytes + stage->kv_bytes + stage->overhead_bytes, need);
            if (!p->kept)
                assert_true((double)need <= (double)m->memory_bytes * (1 - s->opts.headroom));
            assert_int_equal(stage->free_bytes, m->memory_bytes - need);
            /* No machine twice, in this chain or another. */
            for (int d = 0; d <= c; d++)
                for (int j = 0; j < (d < c ? p->chains[d].n_stages : i); j++)
                    assert_string_not_equal(p->chains[d].stages[j].id, stage->id);
        }
        assert_int_equal(layer, s->model.n_layer);
        assert_true(fabs(one.ms - chain->ms_per_token) <= 1e-9 * one.ms);
        assert_true(fabs(chain->streams * 1e3 / all.cycle - chain->tokens_per_s) <=
                    1e-9 * chain->tokens_per_s);
        assert_true(chain->ttft_ms > 0);
        rate += chain->tokens_per_s;
        streams += chain->streams;
    }
    if (p->n_chains) {
        assert_true(fabs(rate - p->tokens_per_s) <= 1e-9 * rate);
        assert_true(p->ms_per_token == p->chains[0].ms_per_token);
        if (!p->kept)
            assert_int_equal(streams, s->opts.streams);
        if (s->opts.objective == NK_PLAN_RATE)
            assert_true(p->tokens_per_s <= p->bound * (1 + 1e-9));
        else
            assert_true(p->ms_per_token >= p->bound * (1 - 1e-9));
    }
}

/* ---- every chain there is ---- */

struct brute {
    const struct scenario *s;
    struct nk_plan_stage stages[8];
    bool used[8];
    double best_ms, best_cycle;
    int k_min;
};

static void try_all(struct brute *b, int n, int layer)
{
    const struct scenario *s = b->s;

    if (layer == s->model.n_layer) {
        struct expected e = expect_times(s, b->stages, n, s->opts.streams);

        if (n < b->k_min)
            return;
        b->best_ms = fmin(b->best_ms, e.ms);
        b->best_cycle = fmin(b->best_cycle, e.cycle);
        return;
    }
    for (int m = 0; m < s->facts.n_members; m++) {
        if (b->used[m])
            continue;
        b->used[m] = true;
        for (int end = layer + 1; end <= s->model.n_layer; end++) {
            if ((end < s->model.n_layer && !s->cut[end]) ||
                expect_need(s, &s->members[m], layer, end) >
                    (uint64_t)((double)s->members[m].memory_bytes * (1 - s->opts.headroom)))
                continue;
            memcpy(b->stages[n].id, s->members[m].id, sizeof s->members[m].id);
            b->stages[n].begin = layer;
            b->stages[n].end = end;
            try_all(b, n + 1, end);
        }
        b->used[m] = false;
    }
}

static struct brute brute_force(const struct scenario *s)
{
    struct brute b = { .s = s, .best_ms = INFINITY, .best_cycle = INFINITY };

    b.k_min = s->opts.spread;
    try_all(&b, 0, 0);
    return b;
}

static void test_plan__of_few_members_is_the_best_of_all_chains(void **state)
{
    uint64_t seed = seed_begin();
    int n_fit = 0, n_chains = 0, n_rounds = 400;

    (void)state;
    for (int round = 0; round < n_rounds; round++) {
        int n = 1 + (int)seed_below(&seed, 5), n_layer = 1 + (int)seed_below(&seed, 9);
        struct scenario s;
        struct brute b;

        if (round % 10 == 9) {
            n = 6 + (int)seed_below(&seed, 3);
            n_layer = 3 + (int)seed_below(&seed, 2);
        }
        scenario_init(&s, &seed, n, n_layer, (unsigned)seed_below(&seed, 16),
                      uniform(&seed, 0.2, 1.1));
        s.opts.spread = seed_below(&seed, 4) ? 0 : 1 + (int)seed_below(&seed, 3);
        b = brute_force(&s);
        for (int rate = 0; rate < 2; rate++) {
            struct nk_plan *p;

            s.opts.objective = rate ? NK_PLAN_RATE : NK_PLAN_ONE_STREAM;
            p = plan_of(&s);
            check_plan(&s, p);
            if (!isfinite(b.best_ms)) {
                assert_int_equal(p->kind, NK_PLAN_DOES_NOT_FIT);
                assert_true(p->why[0] && p->exact);
            } else if (!rate) {
                assert_true(fabs(p->ms_per_token - b.best_ms) <= 1e-9 * b.best_ms);
                assert_true(p->exact && p->gap == 0);
                n_fit++;
                n_chains += p->kind == NK_PLAN_CHAIN;
            } else {
                double best = s.opts.streams * 1e3 / b.best_cycle;

                if (p->tokens_per_s < best * (1 - 1e-8))
                    fail_msg("round %d: %s of %d members, %d layers, %d streams: %.9g tokens/s, "
                             "best is %.9g",
                             round, nk_plan_kind_text(p->kind), n, n_layer, s.opts.streams,
                             p->tokens_per_s, best);
                if (p->kind != NK_PLAN_REPLICAS)
                    assert_true(p->tokens_per_s <= best * (1 + 1e-8));
                else
                    assert_true(p->tokens_per_s > best);
            }
            nk_plan_free(p);
        }
        scenario_release(&s);
    }
    /* The scenarios are of all kinds. */
    assert_in_range(n_fit, n_rounds / 3, n_rounds - 1);
    assert_in_range(n_chains, n_rounds / 10, n_rounds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan__of_few_members_is_the_best_of_all_chains),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
