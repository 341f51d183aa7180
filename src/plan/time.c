/* The model of time, and of memory (plan.h; docs/planning.md). */
#include "plan/plan_int.h"

#include <math.h>

static double at_rows(double one, double eight, double many, int chunk, double rows)
{
    if (rows <= 8)
        return one + (eight - one) * (rows - 1) / 7;
    return eight + (many - eight) * (rows - 8) / (chunk - 8);
}

double nk__layer_ms(const struct nk__machine *m, double rows)
{
    return at_rows(m->layer[0], m->layer[1], m->layer[2], m->chunk, rows);
}

double nk__head_ms(const struct nk__machine *m, double rows)
{
    return m->head[0] + (m->head[1] - m->head[0]) * (rows - 1) / 7;
}

struct nk__load nk__load_of(int streams, int n_stages)
{
    int groups = streams < n_stages ? streams : n_stages;
    int rows = streams / groups, more = streams % groups;

    return (struct nk__load){
        .streams = streams,
        .rows = rows + (more > 0),
        .n_big = more,
        .rows_big = rows + 1,
        .n_small = groups - more,
        .rows_small = rows,
    };
}

struct nk__price nk__price_of(const struct nk__problem *p, const struct nk__load *load, int m)
{
    const struct nk__machine *x = &p->machines[m];

    return (struct nk__price){
        .slope = nk__layer_ms(x, load->rows),
        .fixed = x->step,
        .head = nk__head_ms(x, load->rows),
        .embd = x->embd * load->rows,
        .busy_slope = load->n_big * nk__layer_ms(x, load->rows_big) +
                      load->n_small * nk__layer_ms(x, load->rows_small),
        .busy_fixed = x->step * (load->n_big + load->n_small),
        .busy_head = load->n_big * nk__head_ms(x, load->rows_big) +
                     load->n_small * nk__head_ms(x, load->rows_small),
        .busy_embd = x->embd * load->streams,
    };
}

static size_t link_of(const struct nk__problem *p, int from, int to)
{
    return (size_t)from * (size_t)p->n + (size_t)to;
}

static double rtt_of(const struct nk__problem *p, int from, int to)
{
    return p->rtt && from < p->n && to < p->n ? p->rtt[link_of(p, from, to)] : p->default_rtt;
}

static double bytes_ms(const struct nk__problem *p, int from, int to, double rows)
{
    double each = p->per_byte && from < p->n && to < p->n ? p->per_byte[link_of(p, from, to)]
                                                          : p->default_per_byte;

    return each * rows * (double)p->model->row_bytes;
}

double nk__hop(const struct nk__problem *p, const struct nk__load *load, int from, int to)
{
    return rtt_of(p, from, to) + bytes_ms(p, from, to, load->rows) + p->opts->hop_ms;
}

int nk__no_way(const struct nk__problem *p, const struct nk__chain *c)
{
    for (int i = 0; i + 1 < c->n; i++)
        if (rtt_of(p, c->machine[i], c->machine[i + 1]) >= NK__NO_WAY_MS)
            return i;
    return -1;
}

double nk__link_busy(const struct nk__problem *p, const struct nk__load *load, int from, int to)
{
    return bytes_ms(p, from, to, load->streams);
}

static double cost_of(const struct nk__problem *p, const struct nk__chain *c, int i)
{
    return p->cost[c->end[i]] - p->cost[i ? c->end[i - 1] : 0];
}

/* One group's way through the chain, and how long the busiest stage or link is busy. */
static void walk(const struct nk__problem *p, const struct nk__chain *c,
                 const struct nk__load *load, double *latency, double *busy)
{
    *latency = *busy = 0;
    for (int i = 0; i < c->n; i++) {
        struct nk__price x = nk__price_of(p, load, c->machine[i]);
        double own = x.busy_fixed + cost_of(p, c, i) * x.busy_slope;

        *latency += x.fixed + cost_of(p, c, i) * x.slope;
        if (!i) {
            *latency += x.embd;
            own += x.busy_embd;
        }
        if (i == c->n - 1) {
            *latency += x.head;
            own += x.busy_head;
        } else {
            *latency += nk__hop(p, load, c->machine[i], c->machine[i + 1]);
            *busy = fmax(*busy, nk__link_busy(p, load, c->machine[i], c->machine[i + 1]));
        }
        *busy = fmax(*busy, own);
    }
}

/* The prompt: chunks go after each other, at the slowest stage's pace or, where the chain is long,
 * at that of the window of chunks that are under way. */
static double first_token_ms(const struct nk__problem *p, const struct nk__chain *c)
{
    const struct nk__machine *first = &p->machines[c->machine[0]],
                             *last = &p->machines[c->machine[c->n - 1]];
    int chunk = first->chunk < NK_PLAN_PROMPT ? first->chunk : NK_PLAN_PROMPT;
    int n_chunks = (NK_PLAN_PROMPT + chunk - 1) / chunk;
    double way = 0, pace = 0, back = 0;

    for (int i = 0; i < c->n; i++) {
        const struct nk__machine *m = &p->machines[c->machine[i]];
        double own =
            m->step + cost_of(p, c, i) * nk__layer_ms(m, chunk) + (i ? 0 : m->embd * chunk);

        way += own;
        pace = fmax(pace, own);
        if (i < c->n - 1) {
            double link = bytes_ms(p, c->machine[i], c->machine[i + 1], chunk);

            way += link + rtt_of(p, c->machine[i], c->machine[i + 1]) / 2 + p->opts->hop_ms;
            back += rtt_of(p, c->machine[i], c->machine[i + 1]) / 2;
            pace = fmax(pace, link);
        }
    }
    pace = fmax(pace, (way + back) / NK__PREFILL_WINDOW);
    return first->gateway_rtt + way + (n_chunks - 1) * pace + nk__head_ms(last, 1) + back;
}

void nk__evaluate(const struct nk__problem *p, const struct nk__chain *c, int streams,
                  struct nk__times *out)
{
    struct nk__load one = nk__load_of(1, c->n), all = nk__load_of(streams, c->n);
    double busy, latency;

    walk(p, c, &one, &out->ms_per_token, &busy);
    walk(p, c, &all, &latency, &busy);
    out->cycle_ms = fmax(latency, busy);
    out->tokens_per_s = out->cycle_ms > 0 ? streams * 1e3 / out->cycle_ms : 0;
    out->ttft_ms = first_token_ms(p, c);
}

double nk__value(const struct nk__problem *p, const struct nk__chain *c,
                 enum nk_plan_objective objective, int streams)
{
    struct nk__load load = nk__load_of(objective == NK_PLAN_RATE ? streams : 1, c->n);
    double latency, busy;

    walk(p, c, &load, &latency, &busy);
    return objective == NK_PLAN_RATE ? fmax(latency, busy) : latency;
}

/* ---- memory ---- */

uint64_t nk__need(const struct nk__problem *p, int m, int b, int e)
{
    const struct nk__machine *x = &p->machines[m];
    bool first = !b, last = e == p->n_blocks;
    uint64_t need = p->weights[e] - p->weights[b] + p->kv[e] - p->kv[b] + p->model->other_bytes;

    need += last ? x->overhead_last : x->overhead;
    if (last)
        need += p->model->head_bytes;
    if (first && !(last && p->model->tied))
        need += p->model->embd_bytes;
    return need;
}

static bool can_hold(const struct nk__problem *p, const struct nk__price *price, int m, int b,
                     int e, double busy_max)
{
    double busy = price->busy_fixed + (p->cost[e] - p->cost[b]) * price->busy_slope;

    if (!b)
        busy += price->busy_embd;
    if (e == p->n_blocks)
        busy += price->busy_head;
    return busy <= busy_max && nk__need(p, m, b, e) <= p->machines[m].room;
}

int nk__reach(const struct nk__problem *p, const struct nk__price *price, int m, double busy_max,
              int *lo)
{
    int b = 1, first = 0;

    for (int e = 1; e <= p->n_blocks; e++) {
        while (b < e && !can_hold(p, price, m, b, e, busy_max))
            b++;
        lo[e] = b;
    }
    while (first + 1 < p->n_blocks && can_hold(p, price, m, 0, first + 1, busy_max))
        first++;
    return first;
}

bool nk__holds_all(const struct nk__problem *p, const struct nk__price *price, int m,
                   double busy_max)
{
    return can_hold(p, price, m, 0, p->n_blocks, busy_max);
}

void nk__advance(struct nk__problem *p, double slope, const double *from, const int *lo, int first,
                 double *value, int *at, int *queue)
{
    int head = 0, tail = 0; /* of queue: candidates for b, the best first */

    for (int e = first + 1; e <= p->n_blocks; e++) {
        int b = e - 1;
        double own = from[b] - slope * p->cost[b];

        if (isfinite(own)) {
            while (tail > head && from[queue[tail - 1]] - slope * p->cost[queue[tail - 1]] >= own)
                tail--;
            queue[tail++] = b;
        }
        while (head < tail && queue[head] < lo[e])
            head++;
        at[e] = head < tail ? queue[head] : -1;
        value[e] = head < tail ? from[at[e]] + slope * (p->cost[e] - p->cost[at[e]]) : INFINITY;
    }
    p->n_states += p->n_blocks - first;
}
