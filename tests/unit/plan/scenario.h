/* A made-up cluster and model, from a seed: unequal in whatever is asked for. */
#ifndef NK_TESTS_PLAN_SCENARIO_H
#define NK_TESTS_PLAN_SCENARIO_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"
#include "unit/seed.h"

enum { SCENARIO_MEMBERS = 1000, SCENARIO_LAYERS = 128 };

enum {
    UNEQUAL_LINKS = 1,   /* a table of round trips and rates */
    UNEQUAL_LAYERS = 2,  /* in bytes, KV and time */
    SOME_CUTS = 4,       /* legal at some places only */
    UNEQUAL_ARRIVALS = 8 /* links that differ by the receiver alone */
};

struct scenario {
    struct nk_plan_model model;
    struct nk_plan_facts facts;
    struct nk_plan_opts opts;
    uint64_t layer_bytes[SCENARIO_LAYERS], kv[SCENARIO_LAYERS], state[SCENARIO_LAYERS];
    double cost[SCENARIO_LAYERS];
    bool cut[SCENARIO_LAYERS];
    struct nk_plan_member *members;
    struct nk_plan_link *links;
};

static inline double uniform(uint64_t *seed, double low, double high)
{
    return low + (high - low) * (double)(seed_next(seed) >> 11) / 9007199254740992.0;
}

/* fits: about how many of the machines are needed to hold the model, as a share of all; above 1 it
 * will rarely fit. */
static inline void scenario_init(struct scenario *s, uint64_t *seed, int n, int n_layer,
                                 unsigned how, double fits)
{
    uint64_t mib = 1 << 20, total = 0;
    size_t n_links = how & (UNEQUAL_LINKS | UNEQUAL_ARRIVALS) ? (size_t)n * (size_t)(n - 1) : 0;

    memset(s, 0, sizeof *s);
    s->members = calloc((size_t)n, sizeof *s->members);
    s->links = calloc(n_links + 1, sizeof *s->links);
    for (int i = 0; i < n_layer; i++) {
        s->layer_bytes[i] = 10 * mib;
        s->kv[i] = 1024;
        s->state[i] = 64 * 1024;
        s->cost[i] = 1;
        if (how & UNEQUAL_LAYERS) {
            s->layer_bytes[i] = mib * (1 + seed_below(seed, 30));
            s->kv[i] = 256 * seed_below(seed, 16);
            s->state[i] = 4096 * seed_below(seed, 64);
            s->cost[i] = uniform(seed, 0.2, 3);
        }
        s->cut[i] = !(how & SOME_CUTS) || seed_below(seed, 3) > 0;
    }
    s->model = (struct nk_plan_model){
        .n_layer = n_layer,
        .layer_bytes = s->layer_bytes,
        .kv_bytes_per_token = s->kv,
        .state_bytes = seed_below(seed, 2) ? s->state : NULL,
        .layer_cost = s->cost,
        .legal_cut = how & SOME_CUTS ? s->cut : NULL,
        .embd_bytes = mib * seed_below(seed, 20),
        .head_bytes = mib * seed_below(seed, 20),
        .other_bytes = mib / 16 * seed_below(seed, 20),
        .row_bytes = 1024 * (1 + seed_below(seed, 32)),
    };
    if (seed_below(seed, 4) == 0) {
        s->model.tied = true;
        s->model.head_bytes = s->model.embd_bytes;
    }
    s->opts = nk_plan_opts_default();
    s->opts.n_ctx = 128 << seed_below(seed, 6);
    s->opts.sequences = 1 + (int)seed_below(seed, 8);
    s->opts.streams = 1 + (int)seed_below(seed, 16);
    s->opts.hop_ms = uniform(seed, 0, 0.5);
    s->opts.seed = seed_next(seed);
    for (int i = 0; i < n_layer; i++)
        total += s->layer_bytes[i] + s->kv[i] * (uint64_t)s->opts.n_ctx +
                 s->state[i] * (uint64_t)s->opts.sequences;
    for (int i = 0; i < n; i++) {
        struct nk_plan_member *m = &s->members[i];
        double share = (double)total / (fits * n);

        snprintf(m->id, sizeof m->id, "m%04d", i);
        m->memory_bytes = (uint64_t)(share * uniform(seed, 0.4, 2.2)) + 30 * mib;
        m->overhead_bytes = mib * seed_below(seed, 10);
        m->overhead_last_bytes = m->overhead_bytes + mib * seed_below(seed, 10);
        m->step_ms = uniform(seed, 0, 0.3);
        m->layer_ms_1 = uniform(seed, 0.5, 5) * uniform(seed, 0.3, 1);
        m->layer_ms_8 = m->layer_ms_1 * uniform(seed, 1, 8);
        m->chunk_rows = 16 << seed_below(seed, 5);
        m->layer_ms_chunk = m->layer_ms_8 * uniform(seed, 1, m->chunk_rows / 8.0);
        m->head_ms_1 = uniform(seed, 0, 4);
        m->head_ms_8 = m->head_ms_1 * uniform(seed, 1, 8);
        m->embd_ms = uniform(seed, 0, 0.1);
        m->gateway_rtt_ms = uniform(seed, 0, 20);
    }
    s->facts = (struct nk_plan_facts){
        .model = &s->model,
        .members = s->members,
        .n_members = n,
        .links = s->links,
        .default_rtt_ms = uniform(seed, 0.05, 3),
        .default_bytes_per_s = uniform(seed, 1e6, 1e9),
    };
    if (!n_links)
        return;
    for (int to = 0; to < n; to++) {
        double rtt = uniform(seed, 0.1, 10), rate = uniform(seed, 1e6, 1e9);

        for (int from = 0; from < n; from++) {
            struct nk_plan_link *l = &s->links[s->facts.n_links];

            if (from == to)
                continue;
            memcpy(l->from, s->members[from].id, sizeof l->from);
            memcpy(l->to, s->members[to].id, sizeof l->to);
            l->rtt_ms = how & UNEQUAL_LINKS ? uniform(seed, 0.05, 10) : rtt;
            l->bytes_per_s = how & UNEQUAL_LINKS ? uniform(seed, 1e5, 1e9) : rate;
            s->facts.n_links++;
        }
    }
}

static inline void scenario_release(struct scenario *s)
{
    free(s->members);
    free(s->links);
}

static inline const struct nk_plan_member *scenario_member(const struct scenario *s, const char *id)
{
    for (int i = 0; i < s->facts.n_members; i++)
        if (!strcmp(s->members[i].id, id))
            return &s->members[i];
    return NULL;
}

static inline const struct nk_plan_link *scenario_link(const struct scenario *s, const char *from,
                                                       const char *to)
{
    for (int i = 0; i < s->facts.n_links; i++)
        if (!strcmp(s->links[i].from, from) && !strcmp(s->links[i].to, to))
            return &s->links[i];
    return NULL;
}

/* ---- the model of time and memory, written down a second time, from plan.h's words ---- */

static inline double line(double one, double eight, double many, double chunk, double rows)
{
    return rows <= 8 ? one + (rows - 1) / 7 * (eight - one)
                     : eight + (rows - 8) / (chunk - 8) * (many - eight);
}

static inline uint64_t expect_need(const struct scenario *s, const struct nk_plan_member *m,
                                   int begin, int end)
{
    uint64_t bytes = s->model.other_bytes;

    for (int i = begin; i < end; i++)
        bytes += s->layer_bytes[i] + s->kv[i] * (uint64_t)s->opts.n_ctx +
                 (s->model.state_bytes ? s->state[i] * (uint64_t)s->opts.sequences : 0);
    if (end == s->model.n_layer)
        bytes += s->model.head_bytes + m->overhead_last_bytes;
    else
        bytes += m->overhead_bytes;
    if (!begin && !(end == s->model.n_layer && s->model.tied))
        bytes += s->model.embd_bytes;
    return bytes;
}

struct expected {
    double ms, cycle;
};

static inline struct expected expect_times(const struct scenario *s,
                                           const struct nk_plan_stage *stages, int n, int streams)
{
    int groups = streams < n ? streams : n, rows = (streams + groups - 1) / groups;
    struct expected out = { 0, 0 };
    double way = 0, busiest = 0;

    for (int i = 0; i < n; i++) {
        const struct nk_plan_member *m = scenario_member(s, stages[i].id);
        double layers = 0, busy = 0, one, many;

        for (int l = stages[i].begin; l < stages[i].end; l++)
            layers += s->cost[l];
#define RUN(rows)                                                                                  \
    (m->step_ms +                                                                                  \
     layers * line(m->layer_ms_1, m->layer_ms_8, m->layer_ms_chunk, m->chunk_rows, (rows)) +       \
     (i == n - 1 ? m->head_ms_1 + ((rows)-1) / 7.0 * (m->head_ms_8 - m->head_ms_1) : 0) +          \
     (i ? 0 : m->embd_ms * (rows)))
        one = RUN(1);
        many = RUN(rows);
        for (int g = 0; g < groups; g++) {
            int own = streams / groups + (g < streams % groups);

            busy += RUN(own);
        }
#undef RUN
        if (i < n - 1) {
            const struct nk_plan_link *l = scenario_link(s, stages[i].id, stages[i + 1].id);
            double rtt = l ? l->rtt_ms : s->facts.default_rtt_ms;
            double rate = l ? l->bytes_per_s : s->facts.default_bytes_per_s;
            double row = (double)s->model.row_bytes / rate * 1e3;

            one += rtt + row + s->opts.hop_ms;
            many += rtt + row * rows + s->opts.hop_ms;
            if (row * streams > busiest)
                busiest = row * streams;
        }
        out.ms += one;
        way += many;
        if (busy > busiest)
            busiest = busy;
    }
    out.cycle = way > busiest ? way : busiest;
    return out;
}

#endif
