/* Plans against brute force, an oracle of another kind, and what has to hold of every plan. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <time.h>

#include "scenario.h"

static struct nk_plan *plan_of(const struct scenario *s)
{
    struct nk_error err = { 0 };
    struct nk_plan *p;

    if (nk_plan_make(&p, &s->facts, &s->opts, &err))
        fail_msg("%s: %s", err.reason, err.msg);
    return p;
}

static bool has_no_way(const struct scenario *s, const char *from, const char *to)
{
    for (int i = 0; i < s->facts.n_links; i++)
        if (s->links[i].no_way && !strcmp(s->links[i].from, from) && !strcmp(s->links[i].to, to))
            return true;
    return false;
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
            assert_false(i && has_no_way(s, chain->stages[i - 1].id, stage->id));
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
        if (b->used[m] || (n && has_no_way(s, b->stages[n - 1].id, s->members[m].id)))
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
    int n_fit = 0, n_chains = 0, n_cut_off = 0, n_rounds = 400;

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
        for (int i = 0; round % 3 == 0 && i < s.facts.n_links; i++)
            s.links[i].no_way = seed_below(&seed, 3) == 0;
        b = brute_force(&s);
        n_cut_off += !isfinite(b.best_ms) && s.facts.n_links && s.links[0].no_way;
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
    assert_true(n_cut_off);
}

/* A room for guests: its two machines reach the others, and nobody reaches them. */
static void test_plan__goes_no_way_that_there_is_not(void **state)
{
    uint64_t seed = seed_begin();
    struct nk_plan_link links[3] = { { .no_way = true }, { .no_way = true }, { .rtt_ms = 1 } };
    struct nk_error err = { 0 };
    struct scenario s;
    struct nk_plan *p, *hand;

    (void)state;
    scenario_init(&s, &seed, 2, 8, 0, 1);
    s.members[0].memory_bytes = s.members[1].memory_bytes = (uint64_t)1 << 40;
    memcpy(links[0].from, s.members[0].id, sizeof links[0].from);
    memcpy(links[0].to, s.members[1].id, sizeof links[0].to);
    memcpy(links[2].from, s.members[1].id, sizeof links[2].from);
    memcpy(links[2].to, s.members[0].id, sizeof links[2].to);
    s.facts.links = links;
    s.facts.n_links = 3;
    s.opts.spread = 2;
    /* One way is left, though the other one was measured from that side, too. */
    links[1] = links[0];
    p = plan_of(&s);
    assert_int_equal(p->kind, NK_PLAN_CHAIN);
    assert_string_equal(p->chains[0].stages[0].id, s.members[1].id);
    assert_true(p->ms_per_token < 1e6);
    /* By hand the other way round. */
    assert_int_equal(nk_plan_new(&hand, &err), 0);
    {
        struct nk_plan_stage stages[2] = { p->chains[0].stages[1], p->chains[0].stages[0] };

        stages[1].end = 8;
        stages[1].begin = stages[0].end = p->chains[0].stages[0].end;
        stages[0].begin = 0;
        assert_int_equal(nk_plan_chain_add(hand, stages, 2, &err), 0);
    }
    nk_plan_free(p);
    s.opts.by_hand = hand;
    assert_int_equal(nk_plan_make(&p, &s.facts, &s.opts, &err), NK_E_INVALID);
    assert_non_null(strstr(err.msg, "cannot connect to"));
    s.opts.by_hand = NULL;
    nk_plan_free(hand);
    /* None is left: it says so, and who. */
    memcpy(links[1].from, s.members[1].id, sizeof links[1].from);
    memcpy(links[1].to, s.members[0].id, sizeof links[1].to);
    p = plan_of(&s);
    assert_int_equal(p->kind, NK_PLAN_DOES_NOT_FIT);
    assert_non_null(strstr(p->why, "does not reach"));
    nk_plan_free(p);
    /* One alone may well be. The other one, too small for all, is told why it is a spare. */
    s.opts.spread = 0;
    s.members[0].memory_bytes = 2 * expect_need(&s, &s.members[0], 1, 7);
    s.opts.headroom = 0.5;
    p = plan_of(&s);
    assert_int_equal(p->kind, NK_PLAN_ONE_MACHINE);
    assert_string_equal(p->spares[0].id, s.members[0].id);
    assert_non_null(strstr(p->spares[0].why, "do not reach it"));
    nk_plan_free(p);
    scenario_release(&s);
}

/* ---- what has to hold of every plan ---- */

/* A corpus: clusters of 2 to 1,000 members, unequal in everything, each with its own seed. */
enum { N_CORPUS = 25 }; /* the last one is that of 1,000 */

static void corpus(uint64_t *seed, int round, struct scenario *s)
{
    static const int sizes[] = { 2, 3, 5, 8, 9, 12, 16, 30 };
    int n = round == N_CORPUS - 1 ? 1000 : sizes[round % 8],
        n_layer = 2 + (int)seed_below(seed, 40);
    double fits = uniform(seed, 0.5, 6) / n;

    scenario_init(s, seed, n, n_layer,
                  (unsigned)seed_below(seed, round == N_CORPUS - 1 ? 8 : 16) & ~8u,
                  fits < 1.1 ? fits : 1.1);
    if (round == N_CORPUS - 1)
        s->facts.n_links = 0;
    s->opts.objective = round / 8 % 2 ? NK_PLAN_RATE : NK_PLAN_ONE_STREAM;
}

static double value_of(const struct scenario *s, const struct nk_plan *p)
{
    if (!p->n_chains)
        return INFINITY;
    return s->opts.objective == NK_PLAN_RATE ? 1e3 / p->tokens_per_s : p->ms_per_token;
}

static double best_alone(const struct scenario *s)
{
    double best = INFINITY;

    for (int i = 0; i < s->facts.n_members; i++) {
        struct nk_plan_stage stage = { .begin = 0, .end = s->model.n_layer };
        struct expected e;

        if (expect_need(s, &s->members[i], 0, s->model.n_layer) >
            (uint64_t)((double)s->members[i].memory_bytes * (1 - s->opts.headroom)))
            continue;
        memcpy(stage.id, s->members[i].id, sizeof stage.id);
        e = expect_times(s, &stage, 1, s->opts.streams);
        best = fmin(best, s->opts.objective == NK_PLAN_RATE ? e.cycle / s->opts.streams : e.ms);
    }
    return best;
}

static void test_corpus__is_possible_and_never_worse_than_a_machine_alone(void **state)
{
    uint64_t seed = seed_begin();
    int n_kinds[4] = { 0 };

    (void)state;
    for (int round = 0; round < N_CORPUS; round++) {
        struct scenario s;
        struct nk_plan *p;
        int n_used;

        corpus(&seed, round, &s);
        p = plan_of(&s);
        check_plan(&s, p);
        assert_true(value_of(&s, p) <= best_alone(&s) * (1 + 1e-9));
        n_used = p->n_spares;
        for (int i = 0; i < p->n_chains; i++)
            n_used += p->chains[i].n_stages;
        assert_int_equal(n_used, s.facts.n_members);
        for (int i = 0; i < p->n_spares; i++) {
            assert_true(p->spares[i].why[0]);
            assert_non_null(scenario_member(&s, p->spares[i].id));
        }
        n_kinds[p->kind]++;
        nk_plan_free(p);
        scenario_release(&s);
    }
    printf("one machine %d, chain %d, replicas %d, does not fit %d\n", n_kinds[0], n_kinds[1],
           n_kinds[2], n_kinds[3]);
    assert_true(n_kinds[NK_PLAN_CHAIN] > 0);
}

static void shuffle_members(uint64_t *seed, struct nk_plan_facts *facts,
                            struct nk_plan_member *members)
{
    for (int i = facts->n_members - 1; i > 0; i--) {
        int j = (int)seed_below(seed, (uint64_t)i + 1);
        struct nk_plan_member t = members[i];

        members[i] = members[j];
        members[j] = t;
    }
}

static void test_corpus__is_planned_alike_in_any_order_and_under_other_ids(void **state)
{
    uint64_t seed = seed_begin();

    (void)state;
    for (int round = 0; round < N_CORPUS - 1; round += 3) {
        struct scenario s;
        struct nk_plan *p, *q;

        corpus(&seed, round, &s);
        p = plan_of(&s);
        shuffle_members(&seed, &s.facts, s.members);
        q = plan_of(&s);
        assert_true(nk_plan_same(p, q));
        assert_true(value_of(&s, p) == value_of(&s, q) || !p->n_chains);
        nk_plan_free(q);
        /* The same machines, called otherwise. */
        for (int i = 0; i < s.facts.n_members; i++) {
            char old[NK_PLAN_ID_MAX];

            memcpy(old, s.members[i].id, sizeof old);
            snprintf(s.members[i].id, sizeof s.members[i].id, "x%08llx-%.20s",
                     (unsigned long long)seed_next(&seed) & 0xffffffff, old);
            for (int l = 0; l < s.facts.n_links; l++) {
                if (!strcmp(s.links[l].from, old))
                    memcpy(s.links[l].from, s.members[i].id, sizeof old);
                if (!strcmp(s.links[l].to, old))
                    memcpy(s.links[l].to, s.members[i].id, sizeof old);
            }
        }
        q = plan_of(&s);
        assert_int_equal(p->kind, q->kind);
        if (p->n_chains)
            assert_true(value_of(&s, p) == value_of(&s, q));
        nk_plan_free(q);
        nk_plan_free(p);
        scenario_release(&s);
    }
}

static void test_plan__is_never_worse_with_another_machine(void **state)
{
    uint64_t seed = seed_begin();

    (void)state;
    for (int round = 0; round < 100; round++) {
        /* The exact cases: few machines with any links, many with equal blocks and arrivals. */
        int n = round % 4 ? 2 + (int)seed_below(&seed, 7) : 10 + (int)seed_below(&seed, 20);
        double worse = INFINITY;
        struct scenario s;

        scenario_init(&s, &seed, n, 1 + (int)seed_below(&seed, 12),
                      round % 4 ? (unsigned)seed_below(&seed, 16) : 0, uniform(&seed, 0.1, 0.8));
        for (int k = 1; k <= n; k++) {
            struct nk_plan *p;
            double now;

            s.facts.n_members = k;
            p = plan_of(&s);
            now = value_of(&s, p);
            assert_true(now <= worse * (1 + 1e-9) || isinf(worse));
            assert_true(p->exact);
            worse = now;
            nk_plan_free(p);
        }
        scenario_release(&s);
    }
}

static void test_search__is_never_worse_than_the_plan_in_force(void **state)
{
    uint64_t seed = seed_begin();

    (void)state;
    for (int round = 0; round < 6; round++) {
        struct scenario s;
        struct nk_plan *p, *q;
        double before;

        scenario_init(&s, &seed, 14, 12, UNEQUAL_LINKS | UNEQUAL_LAYERS, 0.3);
        s.opts.objective = round % 2 ? NK_PLAN_RATE : NK_PLAN_ONE_STREAM;
        s.facts.n_members = 11;
        p = plan_of(&s);
        before = value_of(&s, p);
        s.facts.n_members = 14;
        s.opts.in_force = p;
        s.opts.keep = 0;
        q = plan_of(&s);
        check_plan(&s, q);
        assert_true(value_of(&s, q) <= before * (1 + 1e-9) || !p->n_chains);
        nk_plan_free(p);
        nk_plan_free(q);
        scenario_release(&s);
    }
}

/* ---- does not fit ---- */

static void test_misfit__the_shortfall_is_what_one_more_machine_needs(void **state)
{
    uint64_t seed = seed_begin();
    int n_short = 0;

    (void)state;
    for (int round = 0; round < 300 && n_short < 40; round++) {
        int n = round % 3 ? 1 + (int)seed_below(&seed, 7) : 10;
        struct nk_plan_member *more;
        struct scenario s;
        struct nk_plan *p;

        scenario_init(&s, &seed, n + 1, 1 + (int)seed_below(&seed, 10),
                      round % 3 ? UNEQUAL_LAYERS | SOME_CUTS : 0, uniform(&seed, 1, 3));
        s.facts.n_members = n;
        /* So that the median is known. */
        for (int i = 0; i <= n; i++)
            s.members[i].overhead_bytes = s.members[i].overhead_last_bytes = 1 << 20;
        s.opts.plausible = 0;
        p = plan_of(&s);
        if (p->kind == NK_PLAN_DOES_NOT_FIT) {
            uint64_t bytes = p->short_bytes;

            assert_true(bytes > 0);
            assert_true(p->needed_bytes > 0 && strstr(p->why, "one more with"));
            more = &s.members[n];
            s.facts.n_members = n + 1;
            more->memory_bytes = bytes;
            nk_plan_free(p);
            p = plan_of(&s);
            assert_int_not_equal(p->kind, NK_PLAN_DOES_NOT_FIT);
            check_plan(&s, p);
            more->memory_bytes = bytes - 2; /* what the headroom is taken from is rounded */
            nk_plan_free(p);
            p = plan_of(&s);
            assert_int_equal(p->kind, NK_PLAN_DOES_NOT_FIT);
            n_short++;
        }
        nk_plan_free(p);
        scenario_release(&s);
    }
    assert_int_equal(n_short, 40);
}

/* ---- small clusters by hand ---- */

static const uint64_t eight_layers[8] = { 100, 100, 100, 100, 100, 100, 100, 100 };

static const struct nk_plan_model eight = {
    .n_layer = 8,
    .layer_bytes = eight_layers,
    .row_bytes = 4096,
};

static struct nk_plan_member machine(const char *id, uint64_t memory, double ms)
{
    struct nk_plan_member m = { .memory_bytes = memory,
                                .layer_ms_1 = ms,
                                .layer_ms_8 = 2 * ms,
                                .layer_ms_chunk = 8 * ms,
                                .chunk_rows = 64 };

    snprintf(m.id, sizeof m.id, "%s", id);
    return m;
}

static struct nk_plan *plan_members(const struct nk_plan_member *members, int n,
                                    const struct nk_plan_opts *opts)
{
    struct nk_plan_facts facts = { .model = &eight,
                                   .members = members,
                                   .n_members = n,
                                   .default_rtt_ms = 1,
                                   .default_bytes_per_s = 1e9 };
    struct nk_error err = { 0 };
    struct nk_plan *p;

    if (nk_plan_make(&p, &facts, opts, &err))
        fail_msg("%s: %s", err.reason, err.msg);
    return p;
}

static void test_plan__one_stream_stays_on_the_fastest_machine_that_holds_all(void **state)
{
    struct nk_plan_member m[] = { machine("slow", 4000, 4), machine("fast", 1000, 1),
                                  machine("faster", 900, 0.5) };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *p = plan_members(m, 3, &o);

    (void)state;
    /* 800 of 900 is more than the headroom leaves. */
    assert_int_equal(p->kind, NK_PLAN_CHAIN);
    assert_int_equal(p->chains[0].n_stages, 2);
    nk_plan_free(p);
    o.hop_ms = 4; /* now the way between costs more than it gains */
    p = plan_members(m, 3, &o);
    assert_int_equal(p->kind, NK_PLAN_ONE_MACHINE);
    assert_string_equal(p->chains[0].stages[0].id, "fast");
    assert_true(p->ms_per_token == 8);
    assert_int_equal(p->n_spares, 2);
    assert_string_equal(p->spares[0].id, "faster");
    assert_non_null(strstr(p->spares[0].why, "tokens/s"));
    nk_plan_free(p);
}

static void test_plan__replicas_beat_a_chain_where_the_model_fits_twice(void **state)
{
    struct nk_plan_member m[] = { machine("a", 2000, 1), machine("b", 2000, 1) };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *p;

    (void)state;
    o.objective = NK_PLAN_RATE;
    o.streams = 2;
    p = plan_members(m, 2, &o);
    assert_int_equal(p->kind, NK_PLAN_REPLICAS);
    assert_int_equal(p->n_chains, 2);
    assert_int_equal(p->chains[0].streams, 1);
    assert_true(fabs(p->tokens_per_s - 250) < 1e-9);
    nk_plan_free(p);
    o.spread = 2; /* a chain of two is what was asked for */
    p = plan_members(m, 2, &o);
    assert_int_equal(p->kind, NK_PLAN_CHAIN);
    nk_plan_free(p);
}

static void test_plan__spread_uses_as_many_machines_as_were_asked_for(void **state)
{
    struct nk_plan_member m[12];
    struct nk_plan_opts o = nk_plan_opts_default();

    (void)state;
    for (int i = 0; i < 12; i++) {
        char id[8];

        snprintf(id, sizeof id, "m%d", i);
        m[i] = machine(id, 2000, 1 + i * 0.1);
    }
    for (int n = 4; n <= 12; n += 8)
        for (int spread = 1; spread <= 9; spread++) {
            struct nk_plan *p;

            o.spread = spread;
            p = plan_members(m, n, &o);
            if (spread <= 8 && spread <= n) {
                assert_int_equal(p->chains[0].n_stages, spread);
            } else {
                assert_int_equal(p->kind, NK_PLAN_DOES_NOT_FIT);
                assert_int_equal(p->short_bytes, 0);
                assert_non_null(strstr(p->why, "asked for"));
            }
            nk_plan_free(p);
        }
}

static void test_keep__a_plan_in_force_yields_to_one_that_gains_enough(void **state)
{
    struct nk_plan_member m[] = { machine("a", 2000, 1), machine("b", 2000, 0.95) };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *now = plan_members(m, 1, &o), *next;

    (void)state;
    o.in_force = now;
    next = plan_members(m, 2, &o);
    assert_true(next->kept && nk_plan_same(now, next) && !next->exact);
    assert_true(next->gap > 0.05 && next->gap < 0.053);
    assert_non_null(strstr(next->why, "10 %"));
    nk_plan_free(next);
    m[1].layer_ms_1 = 0.9; /* 1 / 0.9: 11 % */
    next = plan_members(m, 2, &o);
    assert_false(next->kept);
    assert_string_equal(next->chains[0].stages[0].id, "b");
    nk_plan_free(next);
    /* Gone, or without the memory for it: there is nothing to keep. */
    m[1].layer_ms_1 = 1;
    next = plan_members(&m[1], 1, &o);
    assert_false(next->kept);
    nk_plan_free(next);
    m[0].memory_bytes = 799;
    next = plan_members(m, 2, &o);
    assert_false(next->kept);
    nk_plan_free(next);
    /* The headroom may be used by what is loaded already. */
    m[0].memory_bytes = 801;
    next = plan_members(m, 2, &o);
    assert_true(next->kept);
    nk_plan_free(next);
    nk_plan_free(now);
}

/* A plan of two stages is taken (sentence NULL) or refused with this. */
static void expect_by_hand(const char *id, int begin, int end, const char *id_2, int begin_2,
                           int end_2, const char *sentence)
{
    struct nk_plan_stage stages[2] = { { .begin = begin, .end = end },
                                       { .begin = begin_2, .end = end_2 } };
    struct nk_plan_member m[] = { machine("a", 600, 1), machine("b", 600, 2),
                                  machine("c", 600, 3) };
    bool cut[8] = { true, true, true, true, true, false, true, true };
    struct nk_plan_model model = eight;
    struct nk_plan_facts facts = { .model = &model, .members = m, .n_members = 3 };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *hand, *p;
    struct nk_error err = { 0 };

    strcpy(stages[0].id, id);
    strcpy(stages[1].id, id_2);
    model.legal_cut = cut;
    m[2].no_layers = true;
    assert_int_equal(nk_plan_new(&hand, NULL), 0);
    assert_int_equal(nk_plan_chain_add(hand, stages, 2, NULL), 0);
    o.by_hand = hand;
    if (sentence) {
        assert_int_equal(nk_plan_make(&p, &facts, &o, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_plan");
        if (!strstr(err.msg, sentence))
            fail_msg("'%s' is not in '%s'", sentence, err.msg);
        assert_null(p);
    } else {
        assert_int_equal(nk_plan_make(&p, &facts, &o, &err), 0);
        assert_true(nk_plan_same(p, hand));
        nk_plan_free(p);
    }
    nk_plan_free(hand);
}

static void test_hand__a_plan_of_ones_own_is_checked(void **state)
{
    (void)state;
    expect_by_hand("b", 0, 6, "a", 6, 8, NULL);
    expect_by_hand("b", 0, 6, "d", 6, 8, "d is no member");
    expect_by_hand("b", 0, 6, "c", 6, 8, "c is no member");
    expect_by_hand("b", 0, 6, "b", 6, 8, "twice");
    expect_by_hand("b", 0, 5, "a", 5, 8, "may not be cut");
    expect_by_hand("b", 0, 4, "a", 6, 8, "must begin at 4");
    expect_by_hand("b", 0, 4, "a", 4, 9, "end by 8");
    expect_by_hand("b", 0, 4, "a", 4, 7, "layer 7 of 8");
    expect_by_hand("b", 0, 7, "a", 7, 8, "needs 700 bytes");
}

/* ---- facts that cannot be, or are lies ---- */

static void test_facts__a_liars_harm_is_bounded_and_what_was_measured_wins(void **state)
{
    struct nk_plan_member m[] = { machine("a", 1000, 10), machine("b", 1000, 12),
                                  machine("liar", 1u << 30, 1e-9) };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *p = plan_members(m, 3, &o);

    (void)state;
    /* 11 ms over 64 a layer. */
    assert_string_equal(p->chains[0].stages[0].id, "liar");
    assert_true(fabs(p->ms_per_token - 8 * 11.0 / 64) < 1e-9);
    assert_int_equal(p->chains[0].stages[0].free_bytes, 64000 - 800);
    nk_plan_free(p);
    /* Its stage of 8 layers ran, and took 400 ms. */
    m[2].stage_layers = 8;
    m[2].stage_rows = 1;
    m[2].stage_ms = 400;
    p = plan_members(m, 3, &o);
    assert_string_equal(p->chains[0].stages[0].id, "a");
    assert_true(fabs(p->ms_per_token - 80) < 1e-9);
    nk_plan_free(p);
    /* With two there is no majority to ask. */
    m[2].stage_layers = 0;
    p = plan_members(&m[1], 2, &o);
    assert_true(p->ms_per_token < 1e-6);
    nk_plan_free(p);
}

static void test_facts__without_measurements_it_goes_by_memory(void **state)
{
    struct nk_plan_member m[] = { { .id = "a", .memory_bytes = 500 },
                                  { .id = "b", .memory_bytes = 1500 } };
    struct nk_plan_opts o = nk_plan_opts_default();
    struct nk_plan *p = plan_members(m, 2, &o);

    (void)state;
    assert_false(p->rates_known);
    assert_string_equal(p->chains[0].stages[0].id, "b");
    nk_plan_free(p);
    m[0].layer_ms_1 = NAN;
    m[0].layer_ms_8 = -1;
    m[1].layer_ms_chunk = INFINITY;
    m[1].stage_layers = 1 << 30;
    m[1].stage_ms = -3;
    p = plan_members(m, 2, &o);
    assert_false(p->rates_known);
    nk_plan_free(p);
}

static void expect_bad(const struct nk_plan_facts *f, const struct nk_plan_opts *o,
                       const char *reason)
{
    struct nk_error err = { 0 };
    struct nk_plan *p;

    assert_int_equal(nk_plan_make(&p, f, o, &err), NK_E_INVALID);
    assert_string_equal(err.reason, reason);
    assert_null(p);
}

static void test_facts__that_cannot_be_are_refused(void **state)
{
    struct nk_plan_member m[] = { machine("a", 1000, 1), machine("a", 1000, 1) };
    struct nk_plan_model model = eight;
    struct nk_plan_facts f = { .model = &model, .members = m, .n_members = 2 };
    struct nk_plan_opts o = nk_plan_opts_default();
    uint64_t huge[8] = { UINT64_MAX, 1 };

    (void)state;
    expect_bad(&f, &o, "bad_facts"); /* two of one id */
    m[1].id[0] = '\0';
    expect_bad(&f, &o, "bad_facts");
    memset(m[1].id, 'x', sizeof m[1].id); /* no end */
    expect_bad(&f, &o, "bad_facts");
    strcpy(m[1].id, "b");
    f.n_members = 0;
    expect_bad(&f, &o, "bad_facts");
    f.n_members = 2;
    model.n_layer = 0;
    expect_bad(&f, &o, "bad_facts");
    model.n_layer = 8;
    model.layer_bytes = huge;
    expect_bad(&f, &o, "bad_facts");
    model.layer_bytes = eight_layers;
    o.headroom = 1;
    expect_bad(&f, &o, "bad_opts");
    o.headroom = NAN;
    expect_bad(&f, &o, "bad_opts");
    o = nk_plan_opts_default();
    o.streams = 0;
    expect_bad(&f, &o, "bad_opts");
}

/* ---- how much is looked at ---- */

static void test_work__of_a_thousand_members_grows_as_members_times_layers(void **state)
{
    uint64_t seed = 1;
    struct scenario s;
    struct nk_plan *p;
    int64_t n_states[2];
    double ms[2]; /* printed, and no more: docs/planning.md */

    (void)state;
    for (int big = 0; big < 2; big++) {
        int n = big ? 1000 : 100;
        clock_t begin;

        scenario_init(&s, &seed, n, 128, 0, 20.0 / n);
        begin = clock();
        p = plan_of(&s);
        ms[big] = (double)(clock() - begin) * 1e3 / CLOCKS_PER_SEC;
        assert_int_equal(p->kind, NK_PLAN_CHAIN);
        assert_true(p->exact);
        n_states[big] = p->n_states;
        nk_plan_free(p);
        scenario_release(&s);
    }
    for (int big = 0; big < 2; big++)
        printf("%d members, 128 layers: %lld states, %.0f ms of processor time\n", big ? 1000 : 100,
               (long long)n_states[big], ms[big]);
    /* Two solutions (with and without a second machine), 8 ways each to add one to a chain. */
    assert_true(n_states[1] <= 2 * 8 * 1000 * 128 + 2000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan__of_few_members_is_the_best_of_all_chains),
        cmocka_unit_test(test_plan__goes_no_way_that_there_is_not),
        cmocka_unit_test(test_corpus__is_possible_and_never_worse_than_a_machine_alone),
        cmocka_unit_test(test_corpus__is_planned_alike_in_any_order_and_under_other_ids),
        cmocka_unit_test(test_plan__is_never_worse_with_another_machine),
        cmocka_unit_test(test_search__is_never_worse_than_the_plan_in_force),
        cmocka_unit_test(test_misfit__the_shortfall_is_what_one_more_machine_needs),
        cmocka_unit_test(test_plan__one_stream_stays_on_the_fastest_machine_that_holds_all),
        cmocka_unit_test(test_plan__replicas_beat_a_chain_where_the_model_fits_twice),
        cmocka_unit_test(test_plan__spread_uses_as_many_machines_as_were_asked_for),
        cmocka_unit_test(test_keep__a_plan_in_force_yields_to_one_that_gains_enough),
        cmocka_unit_test(test_hand__a_plan_of_ones_own_is_checked),
        cmocka_unit_test(test_facts__a_liars_harm_is_bounded_and_what_was_measured_wins),
        cmocka_unit_test(test_facts__without_measurements_it_goes_by_memory),
        cmocka_unit_test(test_facts__that_cannot_be_are_refused),
        cmocka_unit_test(test_work__of_a_thousand_members_grows_as_members_times_layers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
