/* Facts, checked and made plausible, as a problem. */
#include "plan/plan_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int check_text(const char *what, int idx, const char *text, struct nk_error *err)
{
    if (!memchr(text, '\0', NK_PLAN_ID_MAX))
        return nk_fail(err, NK_E_INVALID, "bad_facts", "%s %d has an id without an end", what, idx);
    return 0;
}

static int check_model(const struct nk_plan_model *m, struct nk_error *err)
{
    uint64_t total = 0;

    if (m->n_layer < 1 || m->n_layer > NK_PLAN_LAYERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_facts", "a model has 1 to %d layers, not %d",
                       NK_PLAN_LAYERS_MAX, m->n_layer);
    for (int i = 0; i < m->n_layer; i++) {
        if (m->layer_cost && !(m->layer_cost[i] >= 0 && m->layer_cost[i] <= 1e6))
            return nk_fail(err, NK_E_INVALID, "bad_facts",
                           "layer %d costs %g of a layer; 0 to 1000000 is understood", i,
                           m->layer_cost[i]);
        /* 2^48 bytes each, and 2^24 KV tokens of 2^28 each layer: sums of all stay below 2^64. */
        if (m->layer_bytes[i] >> 48 || (m->kv_bytes_per_token && m->kv_bytes_per_token[i] >> 28) ||
            (m->state_bytes && m->state_bytes[i] >> 36))
            return nk_fail(err, NK_E_INVALID, "bad_facts", "layer %d is larger than can be", i);
        total += m->layer_bytes[i];
    }
    if (m->embd_bytes >> 48 || m->head_bytes >> 48 || m->other_bytes >> 48 || m->row_bytes >> 32)
        return nk_fail(err, NK_E_INVALID, "bad_facts",
                       "embedding, head or rows are larger than can be");
    if (!total)
        return nk_fail(err, NK_E_INVALID, "bad_facts", "the model's layers have no weights");
    return 0;
}

static int check_opts(const struct nk_plan_opts *o, struct nk_error *err)
{
#define RANGE(field, low, high, format)                                                            \
    if (!(o->field >= (low) && o->field <= (high)))                                                \
        return nk_fail(err, NK_E_INVALID, "bad_opts", #field " is " format ", not in %g to %g",    \
                       o->field, (double)(low), (double)(high));
    RANGE(n_ctx, 1, 1 << 24, "%d")
    RANGE(sequences, 1, 65536, "%d")
    RANGE(streams, 1, NK_PLAN_STREAMS_MAX, "%d")
    RANGE(spread, 0, NK_PLAN_MEMBERS_MAX, "%d")
    RANGE(headroom, 0, 0.95, "%g")
    RANGE(keep, 0, 100, "%g")
    RANGE(hop_ms, 0, 1e6, "%g")
    RANGE(plausible, 0, 1e9, "%g")
#undef RANGE
    return 0;
}

/* ---- members ---- */

static bool is_known(double ms)
{
    return isfinite(ms) && ms > 0;
}

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The median of sorted[0..n) without its element idx. */
static double median_without(const double *sorted, int n, int idx)
{
    int low = (n - 2) / 2, high = (n - 1) / 2;

    low += low >= idx;
    high += high >= idx;
    return (sorted[low] + sorted[high]) / 2;
}

/* A machine's times from what was measured, each moved to where it does not contradict the others.
 * slowest: of those that have one; what a machine without any is planned with. */
static void set_times(struct nk__machine *m, double slowest)
{
    const struct nk_plan_member *f = m->member;

    m->chunk = f->chunk_rows > 8 && f->chunk_rows <= 1 << 20 ? f->chunk_rows : 64;
    m->layer[0] = is_known(f->layer_ms_1) ? fmin(f->layer_ms_1, 1e9) : slowest;
    m->layer[1] = is_known(f->layer_ms_8) ? f->layer_ms_8 : 4 * m->layer[0];
    m->layer[1] = clamp(m->layer[1], m->layer[0], 8 * m->layer[0]);
    m->layer[2] = is_known(f->layer_ms_chunk) ? f->layer_ms_chunk : m->layer[1] * m->chunk / 8;
    m->layer[2] = clamp(m->layer[2], m->layer[1], m->layer[1] * m->chunk / 8);
    m->head[0] = is_known(f->head_ms_1) ? fmin(f->head_ms_1, 1e9) : 0;
    m->head[1] = is_known(f->head_ms_8) ? f->head_ms_8 : 4 * m->head[0];
    m->head[1] = clamp(m->head[1], m->head[0], 8 * m->head[0]);
    m->step = is_known(f->step_ms) ? fmin(f->step_ms, 1e9) : 0;
    m->embd = is_known(f->embd_ms) ? fmin(f->embd_ms, 1e9) : 0;
    m->gateway_rtt = is_known(f->gateway_rtt_ms) ? fmin(f->gateway_rtt_ms, 1e9) : 0;
}

static void scale_times(struct nk__machine *m, double by)
{
    for (int i = 0; i < 3; i++)
        m->layer[i] *= by;
    m->head[0] *= by;
    m->head[1] *= by;
    m->step *= by;
    m->embd *= by;
}

/* What a running stage was measured at, over what is predicted for it. */
static double measured_over_predicted(const struct nk__machine *m)
{
    const struct nk_plan_member *f = m->member;
    double predicted;

    if (f->stage_layers < 1 || f->stage_layers > NK_PLAN_LAYERS_MAX || f->stage_rows < 1 ||
        !is_known(f->stage_ms))
        return 1;
    predicted = m->step + f->stage_layers * nk__layer_ms(m, f->stage_rows) +
                (f->stage_last ? nk__head_ms(m, f->stage_rows) : 0);
    return clamp(f->stage_ms / predicted, 1e-6, 1e6);
}

/* A liar's harm ends where the median of the others, times or over `by`, is. */
static int make_plausible(struct nk__machine *machines, int n, double by, struct nk_error *err)
{
    double *sorted = malloc(2 * (size_t)n * sizeof *sorted), *memory = sorted + n;
    int n_known = 0, rc = 0;

    if (!sorted)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < n; i++) {
        if (is_known(machines[i].member->layer_ms_1))
            sorted[n_known++] = machines[i].layer[0];
        memory[i] = (double)machines[i].memory;
    }
    qsort(sorted, (size_t)n_known, sizeof *sorted, compare_doubles);
    qsort(memory, (size_t)n, sizeof *memory, compare_doubles);
    for (int i = 0; i < n; i++) {
        double own = machines[i].layer[0], least, most;
        int idx = 0;

        if (n_known >= 3 && is_known(machines[i].member->layer_ms_1)) {
            while (sorted[idx] < own)
                idx++;
            least = median_without(sorted, n_known, idx) / by;
            if (own < least)
                scale_times(&machines[i], least / own);
        }
        idx = 0;
        if (n >= 3) {
            while (memory[idx] < (double)machines[i].memory)
                idx++;
            most = median_without(memory, n, idx) * by;
            if (most > 0 && (double)machines[i].memory > most)
                machines[i].memory = (uint64_t)most;
        }
    }
    free(sorted);
    return rc;
}

/* By what they are, and only then by id: the same machines under other ids are planned alike. */
static int compare_machines(const void *a, const void *b)
{
    const struct nk__machine *x = a, *y = b;

#define BY(field)                                                                                  \
    if (x->field != y->field)                                                                      \
        return x->field < y->field ? -1 : 1;
    BY(layer[0])
    BY(layer[1])
    BY(layer[2])
    BY(room)
    BY(overhead)
    BY(overhead_last)
    BY(step)
    BY(head[0])
    BY(head[1])
    BY(embd)
    BY(gateway_rtt)
#undef BY
    return strcmp(x->member->id, y->member->id);
}

static int compare_ids(const void *a, const void *b)
{
    const struct nk_plan_member *x = *(const struct nk_plan_member *const *)a,
                                *y = *(const struct nk_plan_member *const *)b;

    return strcmp(x->id, y->id);
}

static int check_members(const struct nk_plan_facts *facts, struct nk_error *err)
{
    const struct nk_plan_member **by_id;
    int rc = 0;

    if (facts->n_members < 1 || facts->n_members > NK_PLAN_MEMBERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_facts", "a plan has 1 to %d members, not %d",
                       NK_PLAN_MEMBERS_MAX, facts->n_members);
    by_id = malloc((size_t)facts->n_members * sizeof *by_id);
    if (!by_id)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < facts->n_members && !rc; i++) {
        const struct nk_plan_member *m = by_id[i] = &facts->members[i];

        rc = check_text("member", i, m->id, err);
        if (!rc)
            rc = check_text("member", i, m->name, err);
        if (!rc && !m->id[0])
            rc = nk_fail(err, NK_E_INVALID, "bad_facts", "member %d has no id", i);
    }
    if (!rc)
        qsort(by_id, (size_t)facts->n_members, sizeof(void *), compare_ids);
    for (int i = 1; i < facts->n_members && !rc; i++)
        if (!strcmp(by_id[i - 1]->id, by_id[i]->id))
            rc =
                nk_fail(err, NK_E_INVALID, "bad_facts", "two members have the id %s", by_id[i]->id);
    free(by_id);
    return rc;
}

static int set_machines(struct nk__problem *p, const struct nk_plan_facts *facts,
                        struct nk_error *err)
{
    double slowest = 0;
    int rc;

    p->machines = calloc((size_t)facts->n_members + 1, sizeof *p->machines);
    if (!p->machines)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < facts->n_members; i++) {
        const struct nk_plan_member *f = &facts->members[i];

        if (f->no_layers)
            continue;
        p->machines[p->n++] = (struct nk__machine){
            .member = f,
            .memory = f->memory_bytes < (uint64_t)1 << 56 ? f->memory_bytes : (uint64_t)1 << 56,
            .overhead =
                f->overhead_bytes < (uint64_t)1 << 56 ? f->overhead_bytes : (uint64_t)1 << 56,
        };
        if (is_known(f->layer_ms_1))
            slowest = fmax(slowest, fmin(f->layer_ms_1, 1e9));
    }
    p->rates_known = slowest > 0;
    for (int i = 0; i < p->n; i++) {
        struct nk__machine *m = &p->machines[i];
        uint64_t last = m->member->overhead_last_bytes;

        set_times(m, slowest > 0 ? slowest : 1);
        m->overhead_last = last > m->overhead ? last : m->overhead;
        if (m->overhead_last >> 56)
            m->overhead_last = (uint64_t)1 << 56;
    }
    if (p->opts->plausible > 0 && p->n) {
        rc = make_plausible(p->machines, p->n, fmax(p->opts->plausible, 1), err);
        if (rc)
            return rc;
    }
    for (int i = 0; i < p->n; i++) {
        struct nk__machine *m = &p->machines[i];

        scale_times(m, measured_over_predicted(m));
        m->room = (uint64_t)((double)m->memory * (1 - p->opts->headroom));
    }
    qsort(p->machines, (size_t)p->n, sizeof *p->machines, compare_machines);
    return 0;
}

/* ---- links ---- */

struct by_id {
    const char *id;
    int idx;
};

static int compare_by_id(const void *a, const void *b)
{
    return strcmp(((const struct by_id *)a)->id, ((const struct by_id *)b)->id);
}

static int find(const struct by_id *ids, int n, const char *id)
{
    struct by_id key = { .id = id };
    const struct by_id *hit = bsearch(&key, ids, (size_t)n, sizeof *ids, compare_by_id);

    return hit ? hit->idx : -1;
}

static double per_byte(double bytes_per_s, double otherwise)
{
    return is_known(bytes_per_s) ? 1e3 / bytes_per_s : otherwise;
}

static void set_link(struct nk__problem *p, int from, int to, const struct nk_plan_link *l)
{
    p->rtt[(size_t)from * (size_t)p->n + (size_t)to] =
        is_known(l->rtt_ms) ? fmin(l->rtt_ms, 1e9) : 0;
    p->per_byte[(size_t)from * (size_t)p->n + (size_t)to] =
        per_byte(l->bytes_per_s, p->default_per_byte);
}

static int set_links(struct nk__problem *p, const struct nk_plan_facts *facts, struct nk_error *err)
{
    size_t n = (size_t)p->n;
    struct by_id *ids = NULL;
    bool *told = NULL;
    int rc = 0;

    if (facts->n_links < 0 || facts->n_links > NK_PLAN_LINKS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_facts", "%d links are more than the %d understood",
                       facts->n_links, NK_PLAN_LINKS_MAX);
    p->default_rtt = is_known(facts->default_rtt_ms) ? fmin(facts->default_rtt_ms, 1e9) : 0;
    p->default_per_byte = per_byte(facts->default_bytes_per_s, 0);
    if (!facts->n_links || p->n < 2)
        return 0;
    ids = malloc(n * sizeof *ids);
    told = calloc(n * n, sizeof *told);
    p->rtt = malloc(n * n * sizeof *p->rtt);
    p->per_byte = malloc(n * n * sizeof *p->per_byte);
    if (!ids || !told || !p->rtt || !p->per_byte) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %d links", facts->n_links);
        goto out;
    }
    for (int i = 0; i < p->n; i++)
        ids[i] = (struct by_id){ p->machines[i].member->id, i };
    qsort(ids, n, sizeof *ids, compare_by_id);
    for (size_t i = 0; i < n * n; i++) {
        p->rtt[i] = p->default_rtt;
        p->per_byte[i] = p->default_per_byte;
    }
    for (int i = 0; i < facts->n_links && !rc; i++) {
        const struct nk_plan_link *l = &facts->links[i];
        int from, to;

        rc = check_text("link", i, l->from, err);
        if (!rc)
            rc = check_text("link", i, l->to, err);
        if (rc)
            break;
        from = find(ids, p->n, l->from);
        to = find(ids, p->n, l->to);
        if (from < 0 || to < 0 || from == to || l->no_way)
            continue;
        set_link(p, from, to, l);
        told[(size_t)from * n + (size_t)to] = true;
        if (!told[(size_t)to * n + (size_t)from])
            set_link(p, to, from, l);
    }
    /* Last: whatever was measured of it earlier, or the other way round. */
    for (int i = 0; i < facts->n_links && !rc; i++) {
        const struct nk_plan_link *l = &facts->links[i];
        int from = l->no_way ? find(ids, p->n, l->from) : -1, to = find(ids, p->n, l->to);

        if (from >= 0 && to >= 0 && from != to)
            p->rtt[(size_t)from * n + (size_t)to] = NK__NO_WAY_MS;
    }
out:
    free(told);
    free(ids);
    return rc;
}

/* ---- blocks ---- */

static int set_blocks(struct nk__problem *p, struct nk_error *err)
{
    const struct nk_plan_model *m = p->model;
    size_t room = (size_t)m->n_layer + 1;
    int n = 0;

    p->at = calloc(room, sizeof *p->at);
    p->cost = calloc(room, sizeof *p->cost);
    p->weights = calloc(room, sizeof *p->weights);
    p->kv = calloc(room, sizeof *p->kv);
    if (!p->at || !p->cost || !p->weights || !p->kv)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < m->n_layer; i++) {
        if (!i || !m->legal_cut || m->legal_cut[i]) {
            n++;
            p->cost[n] = p->cost[n - 1];
            p->weights[n] = p->weights[n - 1];
            p->kv[n] = p->kv[n - 1];
        }
        p->at[n] = i + 1;
        p->cost[n] += m->layer_cost ? m->layer_cost[i] : 1;
        p->weights[n] += m->layer_bytes[i];
        if (m->kv_bytes_per_token)
            p->kv[n] += m->kv_bytes_per_token[i] * (uint64_t)p->opts->n_ctx;
        if (m->state_bytes)
            p->kv[n] += m->state_bytes[i] * (uint64_t)p->opts->sequences;
    }
    p->n_blocks = n;
    p->equal_costs = true;
    p->block_min = p->block_max = p->weights[1] + p->kv[1];
    for (int i = 1; i < n; i++) {
        uint64_t bytes = p->weights[i + 1] - p->weights[i] + p->kv[i + 1] - p->kv[i];

        p->block_min = bytes < p->block_min ? bytes : p->block_min;
        p->block_max = bytes > p->block_max ? bytes : p->block_max;
        if (p->at[i + 1] - p->at[i] != p->at[1] ||
            fabs(p->cost[i + 1] - p->cost[i] - p->cost[1]) > 1e-9 * p->cost[n])
            p->equal_costs = false;
    }
    return 0;
}

int nk__problem_init(struct nk__problem *p, const struct nk_plan_facts *facts,
                     const struct nk_plan_opts *opts, struct nk_error *err)
{
    int rc;

    *p = (struct nk__problem){ .model = facts->model, .opts = opts };
    rc = check_model(facts->model, err);
    if (!rc)
        rc = check_opts(opts, err);
    if (!rc)
        rc = check_members(facts, err);
    if (!rc)
        rc = set_machines(p, facts, err);
    if (!rc)
        rc = set_links(p, facts, err);
    return rc ? rc : set_blocks(p, err);
}

void nk__problem_release(struct nk__problem *p)
{
    free(p->machines);
    free(p->at);
    free(p->cost);
    free(p->weights);
    free(p->kv);
    free(p->rtt);
    free(p->per_byte);
}

int nk__machine_find(const struct nk__problem *p, const char *id)
{
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->machines[i].member->id, id))
            return i;
    return -1;
}
