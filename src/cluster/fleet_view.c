#include "cluster/fleet_int.h"

#include <stdio.h>
#include <string.h>

/* What it has in the plan that serves, else in the next one. */
static const struct nk_holding *main_holding(const nk_fleet *f, const struct nk__member *m)
{
    const struct nk__target *t[] = { &f->serving, &f->next };

    for (int i = 0; i < 2; i++) {
        uint64_t epoch;
        const struct nk_plan_stage *s = nk__fleet_stage_of(t[i], m->id, &epoch);
        const struct nk_holding *h = s ? nk__fleet_holding_of(f, m, epoch, s) : NULL;

        if (h)
            return h;
    }
    return m->n_holdings ? &m->holdings[0] : NULL;
}

static const char *state_text(const nk_fleet *f, const struct nk__member *m)
{
    const struct nk_holding *h = main_holding(f, m);
    uint64_t epoch;

    if (!m->attending)
        return "gone";
    if (m->leaving)
        return "leaving";
    if (m->excluded_until || m->why_no_facts[0])
        return "failed";
    if (!m->connected)
        return "lost";
    if (h && h->state == NK_HOLDING_READY)
        return nk__fleet_stage_of(&f->serving, m->id, &epoch) ? "serving" : "ready";
    if (h)
        return nk_holding_state_text(h->state);
    return m->has_facts ? "spare" : "measuring";
}

static void set_text(json_t *j, const char *key, const char *text)
{
    json_object_set_new(j, key, json_stringn_nocheck("", 0));
    if (text[0]) {
        json_t *value = json_string(text); /* NULL: not UTF-8 */

        if (value)
            json_object_set_new(j, key, value);
    }
}

static json_t *holding_json(const struct nk_holding *h)
{
    json_t *o =
        json_pack("{s:I,s:i,s:i,s:s}", "epoch", (json_int_t)h->epoch, "begin", h->layer_begin,
                  "end", h->layer_end, "state", nk_holding_state_text(h->state));

    if (h->bytes_total && h->state == NK_HOLDING_FETCHING)
        json_object_set_new(o, "progress",
                            json_pack("{s:I,s:I,s:I}", "bytes", (json_int_t)h->bytes_done, "of",
                                      (json_int_t)h->bytes_total, "rate",
                                      (json_int_t)h->bytes_per_s));
    if (h->error[0])
        set_text(o, "error", h->error);
    return o;
}

static json_t *member_json(const nk_fleet *f, const struct nk__member *m, uint64_t now_ns)
{
    const struct nk_holding *h = main_holding(f, m);
    json_t *j = json_object(), *holdings = json_array(), *o;
    char doing[96] = "";
    uint64_t epoch;
    const struct nk_plan_stage *s = nk__fleet_stage_of(&f->serving, m->id, &epoch);

    set_text(j, "id", m->id);
    set_text(j, "name", m->name);
    set_text(j, "state", state_text(f, m));
    set_text(j, "version", m->version);
    set_text(j, "address", m->host[0] ? m->host : nk_fleet_own_host(f));
    if (m->attending)
        json_object_set_new(j, "seen_ms",
                            json_integer((json_int_t)((now_ns - m->seen_ns) / 1000000)));
    if (h) {
        json_object_set_new(j, "holds",
                            json_pack("{s:i,s:i}", "begin", h->layer_begin, "end", h->layer_end));
        if (h->state == NK_HOLDING_FETCHING || h->state == NK_HOLDING_LOADING)
            snprintf(doing, sizeof doing, "%s layers %d-%d",
                     h->state == NK_HOLDING_FETCHING ? "fetches" : "loads", h->layer_begin,
                     h->layer_end);
    }
    if (doing[0])
        set_text(j, "doing", doing);
    if (m->excluded_until || m->why_no_facts[0])
        set_text(j, "why", m->excluded_until ? m->why_excluded : m->why_no_facts);
    if (m->has_facts) {
        json_object_set_new(j, "memory", json_integer((json_int_t)m->facts.memory_bytes));
        json_object_set_new(j, "facts",
                            json_pack("{s:I,s:f,s:f,s:f,s:i,s:f,s:f}", "overhead_bytes",
                                      (json_int_t)m->facts.overhead_bytes, "layer_ms_1",
                                      m->facts.layer_ms_1, "layer_ms_8", m->facts.layer_ms_8,
                                      "layer_ms_chunk", m->facts.layer_ms_chunk, "chunk_rows",
                                      m->facts.chunk_rows, "head_ms_1", m->facts.head_ms_1,
                                      "step_ms", m->facts.step_ms));
    }
    if (s && s->ms > 0)
        json_object_set_new(j, "predicted_ms", json_real(s->ms));
    for (int i = 0; i < m->n_holdings; i++) {
        o = holding_json(&m->holdings[i]);
        if (&m->holdings[i] == h && json_object_get(o, "progress"))
            json_object_set(j, "progress", json_object_get(o, "progress"));
        json_array_append_new(holdings, o);
    }
    json_object_set_new(j, "holdings", holdings);
    return j;
}

static json_t *target_json(const nk_fleet *f, const struct nk__target *t)
{
    json_t *chains = json_array(), *all = json_array(), *j;
    double ms = t->plan->ms_per_token;

    for (int i = 0; i < t->plan->n_chains; i++) {
        json_t *ids = json_array(), *stages = json_array();

        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct nk_plan_stage *s = &t->plan->chains[i].stages[k];
            const struct nk__member *m = nk__fleet_find(f, s->id);

            json_array_append_new(ids, json_string(s->id));
            json_array_append_new(stages,
                                  json_pack("{s:s,s:s,s:i,s:i}", "id", s->id, "name",
                                            m ? m->name : s->id, "begin", s->begin, "end", s->end));
        }
        json_array_append_new(chains, ids);
        json_array_append_new(all, stages);
    }
    j = json_pack("{s:I,s:s,s:o,s:o}", "epoch", (json_int_t)t->epoch, "kind",
                  nk_plan_kind_text(t->plan->kind), "chains", chains, "stages", all);
    if (ms > 0 && t->plan->rates_known) {
        json_object_set_new(j, "predicted", json_real(1000 / ms));
        json_object_set_new(j, "predicted_all", json_real(t->plan->tokens_per_s));
        json_object_set_new(j, "predicted_ttft_ms", json_real(t->plan->ttft_ms));
    }
    if (t == &f->serving && f->measured_ms > 0)
        json_object_set_new(j, "measured", json_real(1000 / f->measured_ms));
    if (t == &f->serving && nk__fleet_is_far_off(f)) {
        char text[160];

        snprintf(text, sizeof text, "one stream gets %.2f of the tokens/s that were predicted",
                 ms / f->measured_ms);
        json_object_set_new(j, "warning", json_string(text));
    }
    return j;
}

json_t *nk_fleet_json(const nk_fleet *f, uint64_t now_ns)
{
    json_t *j = json_pack("{s:s}", "catalogue", f->o.catalogue), *members = json_array(),
           *spares = json_array(), *links = json_array();
    const struct nk_plan *p = f->considered      ? f->considered
                              : f->next.epoch    ? f->next.plan
                              : f->serving.epoch ? f->serving.plan
                                                 : NULL;

    for (size_t i = 0; i < f->n; i++)
        if (!f->members[i]->removed && !f->members[i]->gateway)
            json_array_append_new(members, member_json(f, f->members[i], now_ns));
    for (int i = 0; p && i < p->n_spares; i++) {
        const struct nk__member *m = nk__fleet_find(f, p->spares[i].id);

        json_array_append_new(spares,
                              json_pack("{s:s,s:s,s:s}", "id", p->spares[i].id, "name",
                                        m ? m->name : p->spares[i].id, "reason", p->spares[i].why));
    }
    for (size_t i = 0; i < f->n; i++)
        for (int k = 0;
             !f->members[i]->removed && f->members[i]->attending && k < f->members[i]->n_ways;
             k++) {
            const struct nk__way *w = &f->members[i]->ways[k];

            if (!nk__fleet_find_present(f, w->peer))
                continue;
            json_array_append_new(
                links, w->no_way ? json_pack("{s:s,s:s,s:b}", "a", f->members[i]->id, "b", w->peer,
                                             "no_way", 1)
                                 : json_pack("{s:s,s:s,s:f,s:f}", "a", f->members[i]->id, "b",
                                             w->peer, "rtt_ms", w->rtt_ms, "rate", w->bytes_per_s));
        }
    json_object_set_new(j, "members", members);
    json_object_set_new(j, "links", links);
    json_object_set_new(j, "spares", spares);
    if (f->serving.epoch)
        json_object_set_new(j, "plan", target_json(f, &f->serving));
    if (f->next.epoch)
        json_object_set_new(j, "next", target_json(f, &f->next));
    if (f->waiting[0])
        json_object_set_new(j, "waiting", json_string(f->waiting));
    return j;
}
