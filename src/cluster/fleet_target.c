#include "cluster/fleet_int.h"

#include <stdlib.h>
#include <string.h>

void nk__fleet_drop(struct nk__target *t)
{
    nk_plan_free(t->plan);
    free(t->stage_epochs);
    *t = (struct nk__target){ 0 };
}

int nk__fleet_n_stages(const struct nk_plan *p)
{
    int n = 0;

    for (int i = 0; i < p->n_chains; i++)
        n += p->chains[i].n_stages;
    return n;
}

const struct nk_plan_stage *nk__fleet_stage_at(const struct nk__target *t, int i, uint64_t *epoch)
{
    int k = i;

    *epoch = t->stage_epochs[i];
    for (int c = 0; c < t->plan->n_chains; k -= t->plan->chains[c++].n_stages)
        if (k < t->plan->chains[c].n_stages)
            return &t->plan->chains[c].stages[k];
    return NULL;
}

const struct nk_holding *nk__fleet_holding_of(const nk_fleet *f, const struct nk__member *m,
                                              uint64_t epoch, const struct nk_plan_stage *s)
{
    for (int i = 0; i < m->n_holdings; i++) {
        const struct nk_holding *h = &m->holdings[i];

        if (h->epoch == epoch && h->layer_begin == s->begin && h->layer_end == s->end &&
            !strcmp(h->catalogue, f->o.catalogue))
            return h;
    }
    return NULL;
}

struct nk__member *nk__fleet_stage_member(const nk_fleet *f, const struct nk_plan_stage *s)
{
    struct nk__member *m = nk__fleet_find_present(f, s->id);

    return m && m->attending ? m : NULL;
}

bool nk__fleet_stage_is_ready(const nk_fleet *f, uint64_t epoch, const struct nk_plan_stage *s)
{
    const struct nk__member *m = nk__fleet_stage_member(f, s);
    const struct nk_holding *h = m ? nk__fleet_holding_of(f, m, epoch, s) : NULL;

    return h && h->state == NK_HOLDING_READY && h->port > 0;
}

bool nk__fleet_chain_is_ready(const nk_fleet *f, const struct nk__target *t, int chain, int first)
{
    const struct nk_plan_chain *c = &t->plan->chains[chain];

    for (int i = 0; i < c->n_stages; i++)
        if (!nk__fleet_stage_is_ready(f, t->stage_epochs[first + i], &c->stages[i]))
            return false;
    return true;
}

bool nk__fleet_target_is_ready(const nk_fleet *f, const struct nk__target *t)
{
    int first = 0;

    for (int i = 0; i < t->plan->n_chains; first += t->plan->chains[i++].n_stages)
        if (!nk__fleet_chain_is_ready(f, t, i, first))
            return false;
    return t->plan->n_chains > 0;
}

bool nk__fleet_target_is_possible(const nk_fleet *f, const struct nk__target *t)
{
    if (!t->epoch)
        return false;
    for (int i = 0; i < t->plan->n_chains; i++)
        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct nk__member *m = nk__fleet_stage_member(f, &t->plan->chains[i].stages[k]);

            if (!m || m->leaving || m->excluded_until)
                return false;
        }
    return true;
}

const struct nk_plan_stage *nk__fleet_stage_of(const struct nk__target *t, const char *id,
                                               uint64_t *epoch)
{
    int n = t->epoch ? nk__fleet_n_stages(t->plan) : 0;

    for (int i = 0; i < n; i++) {
        const struct nk_plan_stage *s = nk__fleet_stage_at(t, i, epoch);

        if (!strcmp(s->id, id))
            return s;
    }
    return NULL;
}

/* What a worker with these layers takes. */
static uint64_t stage_bytes(const nk_fleet *f, const struct nk__member *m,
                            const struct nk_plan_stage *s)
{
    const struct nk_plan_model *model = f->o.model;
    uint64_t n = model->other_bytes + m->facts.overhead_bytes;

    for (int i = s->begin; i < s->end && i < model->n_layer; i++) {
        n += model->layer_bytes[i];
        if (model->kv_bytes_per_token)
            n += model->kv_bytes_per_token[i] * (uint64_t)f->o.plan.n_ctx;
        if (model->state_bytes)
            n += model->state_bytes[i] * (uint64_t)f->o.plan.sequences;
    }
    if (s->begin == 0)
        n += model->embd_bytes;
    if (s->end == model->n_layer)
        n += model->head_bytes;
    return n;
}

bool nk__fleet_collide(const nk_fleet *f)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct nk__member *m = f->members[i];
        uint64_t ea, eb;
        const struct nk_plan_stage *a = nk__fleet_stage_of(&f->serving, m->id, &ea),
                                   *b = nk__fleet_stage_of(&f->next, m->id, &eb);

        if (a && b && ea != eb &&
            stage_bytes(f, m, a) + stage_bytes(f, m, b) > m->facts.memory_bytes)
            return true;
    }
    return false;
}
