/* The decision: what is best, what is kept, who is spare and why, and what else there was. */
#include "plan/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan_int.h"

enum { ALTERNATIVES_MAX = 16, EXPLAINED_MAX = 16, SEARCH_STATES = 1000000 };

struct nk_plan_opts nk_plan_opts_default(void)
{
    return (struct nk_plan_opts){
        .n_ctx = 4096,
        .sequences = 1,
        .streams = 1,
        .headroom = 0.2,
        .keep = 0.1,
        .hop_ms = 0.1,
        .plausible = 64,
    };
}

const char *nk_plan_kind_text(enum nk_plan_kind kind)
{
    static const char *const texts[] = { "one_machine", "chain", "replicas", "does_not_fit" };

    return texts[kind];
}

/* ---- plans as such ---- */

int nk_plan_new(struct nk_plan **out, struct nk_error *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

void nk_plan_free(struct nk_plan *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_chains; i++)
        free(p->chains[i].stages);
    free(p->chains);
    free(p->spares);
    free(p->alternatives);
    free(p);
}

int nk_plan_chain_add(struct nk_plan *p, const struct nk_plan_stage *stages, int n,
                      struct nk_error *err)
{
    struct nk_plan_chain *chains;
    struct nk_plan_stage *own;

    if (n < 1 || n > NK_PLAN_LAYERS_MAX || p->n_chains == NK_PLAN_CHAINS_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "a plan has up to %d chains of 1 to %d stages", NK_PLAN_CHAINS_MAX,
                       NK_PLAN_LAYERS_MAX);
    chains = realloc(p->chains, ((size_t)p->n_chains + 1) * sizeof *chains);
    if (chains)
        p->chains = chains;
    own = chains ? malloc((size_t)n * sizeof *own) : NULL;
    if (!own)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    memcpy(own, stages, (size_t)n * sizeof *own);
    p->chains[p->n_chains++] = (struct nk_plan_chain){ .stages = own, .n_stages = n };
    p->kind = p->n_chains > 1 ? NK_PLAN_REPLICAS : n > 1 ? NK_PLAN_CHAIN : NK_PLAN_ONE_MACHINE;
    return 0;
}

static bool same_chain(const struct nk_plan_chain *x, const struct nk_plan_chain *y)
{
    if (x->n_stages != y->n_stages)
        return false;
    for (int i = 0; i < x->n_stages; i++)
        if (strcmp(x->stages[i].id, y->stages[i].id) || x->stages[i].begin != y->stages[i].begin ||
            x->stages[i].end != y->stages[i].end)
            return false;
    return true;
}

bool nk_plan_same(const struct nk_plan *a, const struct nk_plan *b)
{
    if (a->n_chains != b->n_chains)
        return false;
    for (int i = 0; i < a->n_chains; i++) {
        bool found = false;

        for (int j = 0; j < b->n_chains && !found; j++)
            found = same_chain(&a->chains[i], &b->chains[j]);
        if (!found)
            return false;
    }
    return true;
}

/* ---- a choice: chains by index, with their streams ---- */

struct choice {
    struct nk__chain *chains; /* NK_PLAN_CHAINS_MAX; owned */
    int streams[NK_PLAN_CHAINS_MAX];
    int n;
    double ms, rate; /* ms per token on the best chain, tokens per second of all */
    double ttft;
};

static int choice_init(struct choice *c, struct nk_error *err)
{
    *c = (struct choice){ .chains = malloc(NK_PLAN_CHAINS_MAX * sizeof *c->chains) };
    return c->chains ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

static void choice_set(const struct nk__problem *p, struct choice *c, const struct nk__chain *chain,
                       int streams)
{
    c->n = chain->n > 0 && nk__no_way(p, chain) < 0;
    if (c->n)
        c->chains[0] = *chain;
    c->streams[0] = streams;
}

/* Its times; and the quickest chain goes to the front. */
static void choice_evaluate(const struct nk__problem *p, struct choice *c)
{
    int best = 0;

    c->ms = INFINITY;
    c->rate = 0;
    for (int i = 0; i < c->n; i++) {
        struct nk__times t;

        nk__evaluate(p, &c->chains[i], c->streams[i], &t);
        c->rate += t.tokens_per_s;
        if (t.ms_per_token < c->ms) {
            c->ms = t.ms_per_token;
            c->ttft = t.ttft_ms;
            best = i;
        }
    }
    if (best) {
        struct nk__chain t = c->chains[0];
        int streams = c->streams[0];

        c->chains[0] = c->chains[best];
        c->streams[0] = c->streams[best];
        c->chains[best] = t;
        c->streams[best] = streams;
    }
}

/* How much better is a than b? 1.1: by 10 %. */
static double gain(const struct nk__problem *p, const struct choice *a, const struct choice *b)
{
    if (p->opts->objective == NK_PLAN_RATE)
        return a->rate / b->rate;
    return a->ms > 0 ? b->ms / a->ms : 1;
}

static int n_machines(const struct choice *c)
{
    int n = 0;

    for (int i = 0; i < c->n; i++)
        n += c->chains[i].n;
    return n;
}

static enum nk_plan_kind kind_of(const struct choice *c)
{
    return !c->n                ? NK_PLAN_DOES_NOT_FIT
           : c->n > 1           ? NK_PLAN_REPLICAS
           : c->chains[0].n > 1 ? NK_PLAN_CHAIN
                                : NK_PLAN_ONE_MACHINE;
}

/* A plan that is there already, against the problem: its chains, with all of the machines' memory
 * to use. */
static int read_plan(const struct nk__problem *p, const struct nk_plan *plan, struct choice *out,
                     struct nk_error *err)
{
    bool used[NK_PLAN_MEMBERS_MAX] = { false };

    if (plan->n_chains < 1 || plan->n_chains > NK_PLAN_CHAINS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_plan", "a plan has 1 to %d chains, not %d",
                       NK_PLAN_CHAINS_MAX, plan->n_chains);
    for (int i = 0; i < plan->n_chains; i++) {
        const struct nk_plan_chain *from = &plan->chains[i];
        struct nk__chain *to = &out->chains[i];
        int layer = 0;

        if (from->n_stages < 1 || from->n_stages > p->n_blocks)
            return nk_fail(err, NK_E_INVALID, "bad_plan",
                           "a chain of %d stages; by its legal cuts the model has 1 to %d",
                           from->n_stages, p->n_blocks);
        to->n = 0;
        for (int j = 0; j < from->n_stages; j++) {
            const struct nk_plan_stage *s = &from->stages[j];
            int m = memchr(s->id, '\0', sizeof s->id) ? nk__machine_find(p, s->id) : -1;
            int begin = to->n ? to->end[to->n - 1] : 0, end = begin;

            if (m < 0)
                return nk_fail(err, NK_E_INVALID, "bad_plan",
                               "%.63s is no member that may hold layers", s->id);
            if (used[m])
                return nk_fail(err, NK_E_INVALID, "bad_plan", "%s is in the plan twice", s->id);
            used[m] = true;
            if (s->begin != layer || s->end <= s->begin || s->end > p->model->n_layer)
                return nk_fail(err, NK_E_INVALID, "bad_plan",
                               "%s has layers %d-%d; they must begin at %d and end by %d", s->id,
                               s->begin, s->end, layer, p->model->n_layer);
            while (end < p->n_blocks && p->at[end] < s->end)
                end++;
            if (p->at[end] != s->end)
                return nk_fail(err, NK_E_INVALID, "bad_plan",
                               "%s ends before layer %d, where the model may not be cut", s->id,
                               s->end);
            if (nk__need(p, m, begin, end) > p->machines[m].memory)
                return nk_fail(err, NK_E_INVALID, "bad_plan",
                               "%s needs %llu bytes for layers %d-%d and has %llu free", s->id,
                               (unsigned long long)nk__need(p, m, begin, end), s->begin, s->end,
                               (unsigned long long)p->machines[m].memory);
            to->machine[to->n] = (int16_t)m;
            to->end[to->n++] = (int16_t)end;
            layer = s->end;
        }
        if (layer != p->model->n_layer)
            return nk_fail(err, NK_E_INVALID, "bad_plan", "a chain ends before layer %d of %d",
                           layer, p->model->n_layer);
    }
    for (int i = 0; i < plan->n_chains; i++) {
        int at = nk__no_way(p, &out->chains[i]);

        if (at >= 0)
            return nk_fail(err, NK_E_INVALID, "bad_plan",
                           "%s cannot connect to %s, which has the layers after its own",
                           plan->chains[i].stages[at].id, plan->chains[i].stages[at + 1].id);
    }
    out->n = plan->n_chains;
    if (nk__share_streams(p, out->chains, out->n, out->streams) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    choice_evaluate(p, out);
    return 0;
}

/* ---- what is told of it ---- */

static void fill_stage(const struct nk__problem *p, const struct nk__chain *c, int i,
                       struct nk_plan_stage *out)
{
    int begin = i ? c->end[i - 1] : 0, end = c->end[i], m = c->machine[i];
    const struct nk__machine *x = &p->machines[m];
    struct nk__load one = nk__load_of(1, 1);
    struct nk__price price = nk__price_of(p, &one, m);
    uint64_t need = nk__need(p, m, begin, end);

    *out = (struct nk_plan_stage){ .begin = p->at[begin], .end = p->at[end] };
    memcpy(out->id, x->member->id, sizeof out->id);
    out->kv_bytes = p->kv[end] - p->kv[begin];
    out->overhead_bytes = end == p->n_blocks ? x->overhead_last : x->overhead;
    out->weight_bytes = need - out->kv_bytes - out->overhead_bytes;
    out->free_bytes = x->memory > need ? x->memory - need : 0;
    out->ms = price.fixed + price.slope * (p->cost[end] - p->cost[begin]) +
              (begin ? 0 : price.embd) + (end == p->n_blocks ? price.head : 0);
    if (i < c->n - 1)
        out->hop_ms = nk__hop(p, &one, m, c->machine[i + 1]);
}

static int fill_chains(const struct nk__problem *p, const struct choice *c, struct nk_plan *plan,
                       struct nk_error *err)
{
    plan->chains = calloc((size_t)c->n + !c->n, sizeof *plan->chains);
    if (!plan->chains)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < c->n; i++) {
        struct nk_plan_chain *to = &plan->chains[i];
        struct nk__times t;

        to->stages = calloc((size_t)c->chains[i].n, sizeof *to->stages);
        if (!to->stages)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        plan->n_chains = i + 1;
        to->n_stages = c->chains[i].n;
        for (int j = 0; j < to->n_stages; j++)
            fill_stage(p, &c->chains[i], j, &to->stages[j]);
        nk__evaluate(p, &c->chains[i], c->streams[i], &t);
        to->streams = c->streams[i];
        to->ms_per_token = t.ms_per_token;
        to->tokens_per_s = t.tokens_per_s;
        to->ttft_ms = t.ttft_ms;
    }
    plan->kind = kind_of(c);
    if (c->n) {
        plan->ms_per_token = c->ms;
        plan->tokens_per_s = c->rate;
        plan->ttft_ms = c->ttft;
    }
    return 0;
}

/* The best of all chains that m is in, where that can be had; else the best that the first chain
 * could be with m somewhere in it. INFINITY: there is none. */
static int value_with(struct nk__problem *p, const struct nk__chain *chain, int m, int streams,
                      double *value, struct nk_error *err)
{
    int order[NK_PLAN_LAYERS_MAX + 1], places = chain->n + 1, rc = 0;
    struct nk__chain *c = malloc(sizeof *c);
    struct nk__load load =
        nk__load_of(p->opts->objective == NK_PLAN_RATE ? streams : 1, chain->n + 1);

    *value = INFINITY;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (p->n <= NK_PLAN_EXACT_MAX && p->opts->objective == NK_PLAN_ONE_STREAM) {
        for (int i = 0; i < p->n; i++)
            order[i] = i;
        *value = nk__exact(p, &load, INFINITY, order, p->n, 1, p->n, m, c);
        if (*value < 0)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        places = 0;
    }
    /* In long chains first, second, last but one and last stand for all. */
    for (int at = 0; at < places && places <= p->n_blocks && !rc; at++) {
        double limit = INFINITY;

        if (places > 9 && at > 1 && at < places - 2)
            continue;
        for (int i = 0, j = 0; i < places; i++)
            order[i] = i == at ? m : chain->machine[j++];
        for (int round = 0; round < 8 && !rc; round++) {
            if (nk__cut(p, &load, limit, order, places, c) < 0)
                rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
            if (rc || !c->n)
                break;
            *value = fmin(*value, nk__value(p, c, p->opts->objective, streams));
            if (p->opts->objective != NK_PLAN_RATE)
                break;
            limit = 0.9 * nk__value(p, c, NK_PLAN_RATE, streams);
        }
    }
    free(c);
    return rc;
}

static void say(char why[256], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(char why[256], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, 256, format, args);
    va_end(args);
}

/* Bytes for a sentence. */
static const char *size_text(char out[32], uint64_t bytes)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double n = (double)bytes;
    int unit = 0;

    for (; n >= 1024 && unit < 4; unit++)
        n /= 1024;
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", n, units[unit]);
    return out;
}

static const char *name_of(const struct nk__problem *p, int m)
{
    const struct nk_plan_member *member = p->machines[m].member;

    return member->name[0] ? member->name : member->id;
}

/* The least that m would need for any stage. */
static uint64_t least_need(const struct nk__problem *p, int m)
{
    uint64_t least = UINT64_MAX;

    for (int b = 0; b < p->n_blocks; b++) {
        uint64_t need = nk__need(p, m, b, b + 1);

        least = need < least ? need : least;
    }
    return least;
}

static int explain_spare(struct nk__problem *p, const struct choice *c, int m, int n_explained,
                         struct nk_plan_spare *out, struct nk_error *err)
{
    char needs[32], has[32];
    uint64_t least = least_need(p, m);
    const char *than = p->opts->objective == NK_PLAN_RATE ? "all streams together" : "one stream";
    double value, now;
    int rc;

    if (least > p->machines[m].room) {
        say(out->why, "too little memory for a stage: the smallest needs %s, and it has %s to give",
            size_text(needs, least), size_text(has, p->machines[m].room));
        return 0;
    }
    if (!c->n) {
        say(out->why, "the model does not fit, with it or without");
        return 0;
    }
    if (!p->rates_known) {
        say(out->why, "not needed, and no machine's speed is known");
        return 0;
    }
    if (n_explained >= EXPLAINED_MAX) {
        say(out->why, "the others are as fast or faster without it");
        return 0;
    }
    rc = value_with(p, &c->chains[0], m, c->streams[0], &value, err);
    if (rc)
        return rc;
    if (isfinite(value) && value >= NK__NO_WAY_MS / 2) {
        say(out->why, "machines that would be next to it in a chain do not reach it, or it them");
        return 0;
    }
    now = nk__value(p, &c->chains[0], p->opts->objective, c->streams[0]);
    value = (p->opts->objective == NK_PLAN_RATE ? c->streams[0] : 1) * 1e3 / value;
    now = (p->opts->objective == NK_PLAN_RATE ? c->streams[0] : 1) * 1e3 / now;
    if (value <= 0)
        say(out->why,
            "no place for it: the model has no further legal cut, or a neighbour no room");
    else if (value > now)
        say(out->why, "it would gain too little: %s would get %.4g tokens/s with it, %.4g without",
            than, value, now);
    else
        say(out->why,
            "%s would get %.4g tokens/s, not %.4g, in the best chain that was found with it", than,
            value, now);
    return 0;
}

static int compare_spares(const void *a, const void *b)
{
    return strcmp(((const struct nk_plan_spare *)a)->id, ((const struct nk_plan_spare *)b)->id);
}

static int fill_spares(struct nk__problem *p, const struct nk_plan_facts *facts,
                       const struct choice *c, struct nk_plan *plan, struct nk_error *err)
{
    bool used[NK_PLAN_MEMBERS_MAX] = { false };
    int n_explained = 0, rc = 0;

    plan->spares = calloc((size_t)facts->n_members, sizeof *plan->spares);
    if (!plan->spares)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < c->n; i++)
        for (int j = 0; j < c->chains[i].n; j++)
            used[c->chains[i].machine[j]] = true;
    for (int i = 0; i < p->n && !rc; i++)
        if (!used[i]) {
            struct nk_plan_spare *s = &plan->spares[plan->n_spares++];

            memcpy(s->id, p->machines[i].member->id, sizeof s->id);
            rc = explain_spare(p, c, i, n_explained++, s, err);
        }
    for (int i = 0; i < facts->n_members && !rc; i++)
        if (facts->members[i].no_layers) {
            struct nk_plan_spare *s = &plan->spares[plan->n_spares++];

            memcpy(s->id, facts->members[i].id, sizeof s->id);
            say(s->why, "it is to hold no layers");
        }
    qsort(plan->spares, (size_t)plan->n_spares, sizeof *plan->spares, compare_spares);
    return rc;
}

static void add_alternative(const struct nk__problem *p, struct nk_plan *plan, struct choice *c,
                            const char *what)
{
    struct nk_plan_alternative *to;

    if (!plan->alternatives)
        return;
    choice_evaluate(p, c);
    for (int i = 0; i < plan->n_alternatives; i++) {
        const struct nk_plan_alternative *a = &plan->alternatives[i];

        if (c->n && a->kind == kind_of(c) && a->n_machines == n_machines(c) &&
            a->ms_per_token == c->ms && a->tokens_per_s == c->rate)
            return;
    }
    if (plan->n_alternatives == ALTERNATIVES_MAX)
        return;
    to = &plan->alternatives[plan->n_alternatives++];
    *to = (struct nk_plan_alternative){ .kind = kind_of(c), .n_machines = n_machines(c) };
    snprintf(to->what, sizeof to->what, "%s", what);
    if (c->n) {
        to->ms_per_token = c->ms;
        to->tokens_per_s = c->rate;
        to->ttft_ms = c->ttft;
    }
}

/* ---- it does not fit ---- */

static int compare_bytes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int fits_with(struct nk__problem *p, uint64_t room, int k_min, bool *fits,
                     struct nk__found *found, int *list, struct nk_error *err)
{
    int rc;

    p->machines[p->n].room = p->machines[p->n].memory = room;
    rc = nk__solve(p, NK_PLAN_ONE_STREAM, 1, list, p->n + 1, k_min, found, err);
    *fits = !rc && found->chain.n;
    return rc;
}

/* What one more machine must have. */
static int find_shortfall(struct nk__problem *p, int k_min, uint64_t *bytes, struct nk_error *err)
{
    uint64_t *overheads = calloc((size_t)p->n + 1, sizeof *overheads), low = 0, high;
    int *list = malloc(((size_t)p->n + 1) * sizeof *list), rc = 0;
    struct nk__found *found = malloc(sizeof *found);
    struct nk__machine *more = &p->machines[p->n];
    int64_t budget = p->search_states;
    bool fits = false;

    *bytes = 0;
    if (!overheads || !list || !found) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    p->search_states = 0; /* whether, not how well */
    for (int i = 0; i <= p->n; i++)
        list[i] = i;
    if (p->n)
        *more = p->machines[p->n - 1];
    else
        *more = (struct nk__machine){ .layer = { 1, 4, 32 }, .chunk = 64 };
    for (int i = 0; i < p->n; i++)
        overheads[i] = p->machines[i].overhead_last;
    qsort(overheads, (size_t)p->n, sizeof *overheads, compare_bytes);
    more->overhead = more->overhead_last = overheads[p->n / 2];
    high = nk__need(p, p->n, 0, p->n_blocks) + p->model->embd_bytes;
    rc = fits_with(p, high, k_min, &fits, found, list, err);
    if (rc || !fits)
        goto out;
    while (high - low > 1 && !rc) {
        uint64_t middle = low + (high - low) / 2;

        rc = fits_with(p, middle, k_min, &fits, found, list, err);
        if (fits)
            high = middle;
        else
            low = middle;
    }
    /* So much that what is left without the headroom is enough. */
    *bytes = (uint64_t)((double)high / (1 - p->opts->headroom));
    while ((uint64_t)((double)*bytes * (1 - p->opts->headroom)) < high)
        ++*bytes;
out:
    p->search_states = budget;
    free(overheads);
    free(list);
    free(found);
    return rc;
}

/* chain: the best that there would be, if there were a way; none: n is 0. */
static int fill_misfit(struct nk__problem *p, struct nk_plan *plan, const struct nk__chain *chain,
                       bool proven, struct nk_error *err)
{
    int k_min = p->opts->spread > 1 ? p->opts->spread : 1, at = nk__no_way(p, chain), rc;
    char needs[32], has[32], more[32];

    if (at >= 0) {
        say(plan->why,
            "%sthe machines that have room for it cannot all connect to each other: %s does not "
            "reach %s",
            proven ? "" : "no way to place it was found: ", name_of(p, chain->machine[at]),
            name_of(p, chain->machine[at + 1]));
        return 0;
    }

    if (!p->n) {
        say(plan->why, "no machine may hold layers");
        return 0;
    }
    if (k_min > p->n || k_min > p->n_blocks) {
        say(plan->why,
            k_min > p->n
                ? "%d machines are asked for, and %d may hold layers"
                : "%d machines are asked for, and by its legal cuts the model has %d parts",
            k_min, k_min > p->n ? p->n : p->n_blocks);
        return 0;
    }
    rc = find_shortfall(p, k_min, &plan->short_bytes, err);
    if (rc)
        return rc;
    size_text(needs, plan->needed_bytes);
    size_text(has, plan->available_bytes);
    if (plan->short_bytes)
        say(plan->why,
            "%sthe model needs %s and the machines can give %s; one more with %s free would do",
            proven ? "" : "no way to place it was found: ", needs, has,
            size_text(more, plan->short_bytes));
    else
        say(plan->why, "%sthe model needs %s and the machines can give %s",
            proven ? "" : "no way to place it was found: ", needs, has);
    return 0;
}

static void fill_memory(const struct nk__problem *p, struct nk_plan *plan)
{
    int n = p->n_blocks;

    plan->needed_bytes = p->weights[n] + p->kv[n] + p->model->head_bytes;
    if (!p->model->tied)
        plan->needed_bytes += p->model->embd_bytes;
    for (int i = 0; i < p->n; i++) {
        uint64_t fixed = p->machines[i].overhead + p->model->other_bytes;

        if (p->machines[i].room > fixed)
            plan->available_bytes += p->machines[i].room - fixed;
    }
}

/* ---- the decision ---- */

struct decision {
    struct nk__problem p;
    struct nk_plan *plan;
    struct choice best, other;
    struct nk__found *found;
    int *list;
    bool proven; /* that it does not fit */
};

/* What else there was: always the fastest machine alone, and chains of more and more machines. */
static int consider(struct decision *d, struct nk_error *err)
{
    struct nk__problem *p = &d->p;
    int streams = p->opts->streams, rc = 0;
    struct nk__chain alone = { .n = 0 };
    double least = INFINITY;
    char what[64];

    d->plan->alternatives = calloc(ALTERNATIVES_MAX, sizeof *d->plan->alternatives);
    if (!d->plan->alternatives)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < p->n; i++) {
        struct nk__chain one = { .n = 1,
                                 .machine = { (int16_t)i },
                                 .end = { (int16_t)p->n_blocks } };
        double value;

        if (nk__need(p, i, 0, p->n_blocks) > p->machines[i].room)
            continue;
        value = nk__value(p, &one, p->opts->objective, streams);
        if (value < least) {
            least = value;
            alone = one;
        }
    }
    choice_set(p, &d->other, &alone, streams);
    add_alternative(p, d->plan, &d->other, "one machine alone");
    for (int k = 2;
         k <= p->n && k <= p->n_blocks && k <= (p->n > 64 ? 2 : NK_PLAN_EXACT_MAX) && !rc; k++) {
        int64_t budget = p->search_states;

        p->search_states = budget / 16;
        rc = nk__solve(p, p->opts->objective, streams, d->list, p->n, k, d->found, err);
        p->search_states = budget;
        choice_set(p, &d->other, &d->found->chain, streams);
        snprintf(what, sizeof what, "a chain of at least %d machines", k);
        if (!rc)
            add_alternative(p, d->plan, &d->other, what);
        if (!d->other.n)
            break;
    }
    return rc;
}

static int consider_replicas(struct decision *d, struct nk_error *err)
{
    struct nk__problem *p = &d->p;
    bool by_rate = p->opts->objective == NK_PLAN_RATE;
    double copies = nk__copies(p), rate;
    int rc;

    if (copies < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (p->opts->streams < 2 || p->opts->spread > 1 || copies < 2)
        return 0;
    rc = nk__replicas(p, d->other.chains, d->other.streams, &d->other.n, &rate, err);
    for (int i = 0; !rc && i < d->other.n; i++)
        if (nk__no_way(p, &d->other.chains[i]) >= 0)
            d->other.n = 0;
    if (!rc && d->other.n)
        add_alternative(p, d->plan, &d->other, "chains side by side");
    if (rc || !by_rate)
        return rc;
    if (d->other.n && d->other.rate > d->best.rate * (1 + 1e-9)) {
        struct choice t = d->best;

        d->best = d->other;
        d->other = t;
    }
    rc = nk__solve(p, NK_PLAN_ONE_STREAM, 1, d->list, p->n, 1, d->found, err);
    d->plan->exact = false;
    d->plan->bound = fmax(d->plan->bound, nk__rate_bound(p, d->found->bound));
    return rc;
}

static int decide(struct decision *d, struct nk_error *err)
{
    struct nk__problem *p = &d->p;
    const struct nk_plan_opts *o = p->opts;
    int rc;

    if (o->by_hand) {
        rc = read_plan(p, o->by_hand, &d->best, err);
        d->plan->bound = o->objective == NK_PLAN_RATE ? d->best.rate : d->best.ms;
        return rc ? rc : consider(d, err);
    }
    rc = nk__solve(p, o->objective, o->streams, d->list, p->n, o->spread > 1 ? o->spread : 1,
                   d->found, err);
    if (rc)
        return rc;
    choice_set(p, &d->best, &d->found->chain, o->streams);
    choice_evaluate(p, &d->best);
    d->proven = d->found->exact;
    d->plan->exact = d->found->exact;
    d->plan->bound =
        o->objective == NK_PLAN_RATE ? o->streams * 1e3 / d->found->bound : d->found->bound;
    if (!d->best.n)
        return 0;
    rc = consider(d, err);
    return rc ? rc : consider_replicas(d, err);
}

/* The plan in force stays where it can and a better one would not gain enough. */
static void keep(struct decision *d)
{
    const struct nk__problem *p = &d->p;
    const struct nk_plan_opts *o = p->opts;
    struct choice t;
    double by;

    if (!o->in_force || o->by_hand || !o->in_force->n_chains ||
        read_plan(p, o->in_force, &d->other, NULL))
        return;
    if (o->spread > 1 && (d->other.n > 1 || d->other.chains[0].n < o->spread))
        return;
    by = d->best.n ? gain(p, &d->best, &d->other) : 0;
    if (by >= 1 + o->keep && by > 1 + 1e-9)
        return;
    t = d->best;
    d->best = d->other;
    d->other = t;
    d->plan->kept = true;
    d->plan->exact &= by <= 1 + 1e-9;
    if (t.n)
        add_alternative(p, d->plan, &d->other, "the best plan without the one in force");
    if (t.n && by > 1 + 1e-9)
        say(d->plan->why,
            "the plan in force stays: the best one would be %.1f %% faster, less than "
            "the %.0f %% that a change must gain",
            (by - 1) * 100, o->keep * 100);
    else
        say(d->plan->why, "the plan in force stays: there is no better one");
}

static int finish(struct decision *d, const struct nk_plan_facts *facts, struct nk_error *err)
{
    struct nk_plan *plan = d->plan;
    double own;
    int rc;

    rc = fill_chains(&d->p, &d->best, plan, err);
    if (!rc)
        rc = fill_spares(&d->p, facts, &d->best, plan, err);
    fill_memory(&d->p, plan);
    plan->rates_known = d->p.rates_known;
    if (!rc && !d->best.n)
        rc = fill_misfit(&d->p, plan, &d->found->chain, d->proven, err);
    if (!rc && d->best.n) {
        own = d->p.opts->objective == NK_PLAN_RATE ? plan->bound / plan->tokens_per_s
                                                   : plan->ms_per_token / plan->bound;
        plan->gap = own > 1 + 1e-9 ? own - 1 : 0;
        plan->exact |= own <= 1 + 1e-9;
    } else {
        plan->bound = 0;
        plan->exact = d->proven;
    }
    plan->n_states = d->p.n_states;
    return rc;
}

int nk_plan_make(struct nk_plan **out, const struct nk_plan_facts *facts,
                 const struct nk_plan_opts *opts, struct nk_error *err)
{
    struct decision *d = calloc(1, sizeof *d);
    int rc;

    *out = NULL;
    if (!d)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = nk__problem_init(&d->p, facts, opts, err);
    d->p.search_states = SEARCH_STATES;
    if (!rc)
        rc = nk_plan_new(&d->plan, err);
    if (!rc)
        rc = choice_init(&d->best, err);
    if (!rc)
        rc = choice_init(&d->other, err);
    d->found = malloc(sizeof *d->found);
    d->list = malloc(((size_t)d->p.n + 1) * sizeof *d->list);
    if (!rc && (!d->found || !d->list))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < d->p.n && !rc; i++)
        d->list[i] = i;
    if (!rc)
        rc = decide(d, err);
    if (!rc)
        keep(d);
    if (!rc)
        rc = finish(d, facts, err);
    if (!rc) {
        *out = d->plan;
        d->plan = NULL;
    }
    nk_plan_free(d->plan);
    free(d->best.chains);
    free(d->other.chains);
    free(d->found);
    free(d->list);
    nk__problem_release(&d->p);
    free(d);
    return rc;
}
