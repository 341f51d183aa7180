#include "cluster/fleet_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/record.h"

/* Which epoch each stage's worker is of: that of the plan, or where the machine holds just these
 * layers already, ready, the one that it holds them for. NULL: no memory. */
static uint64_t *choose_epochs(const nk_fleet *f, struct nk_plan *plan, uint64_t epoch)
{
    int n = nk__fleet_n_stages(plan);
    uint64_t *epochs = calloc((size_t)n + 1, sizeof *epochs);
    struct nk__target t = { .epoch = epoch, .plan = plan, .stage_epochs = epochs };

    for (int i = 0; epochs && i < n; i++) {
        uint64_t now, held;
        const struct nk_plan_stage *s = nk__fleet_stage_at(&t, i, &now), *old;

        epochs[i] = epoch;
        old = nk__fleet_stage_of(&f->serving, s->id, &held);
        if (old && old->begin == s->begin && old->end == s->end &&
            nk__fleet_stage_is_ready(f, held, old))
            epochs[i] = held;
    }
    return epochs;
}

static void adopt(nk_fleet *f, struct nk_plan *plan, uint64_t now_ns)
{
    uint64_t *epochs = choose_epochs(f, plan, f->epoch + 1);
    struct nk_error err;
    char text[256];
    size_t n = 0;

    if (!epochs ||
        nk_record_put_plan(f->o.store, f->o.catalogue, f->epoch + 1, plan, epochs, &err)) {
        nk__fleet_event(f, "the plan could not be put into the store, and is tried again: %s",
                        epochs ? err.msg : "no memory");
        free(epochs);
        nk_plan_free(plan);
        nk__fleet_dirty(f, now_ns, RETRY_MS);
        return;
    }
    nk__fleet_drop(&f->next);
    f->epoch++;
    f->next = (struct nk__target){
        .epoch = f->epoch, .plan = plan, .stage_epochs = epochs, .since_ns = now_ns
    };
    if (f->serving.epoch && nk__fleet_collide(f))
        nk__fleet_drop(&f->serving);
    text[0] = '\0';
    for (int i = 0; i < plan->n_chains; i++)
        for (int k = 0; k < plan->chains[i].n_stages && n < sizeof text; k++) {
            const struct nk_plan_stage *s = &plan->chains[i].stages[k];
            const struct nk__member *m = nk__fleet_find(f, s->id);

            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s %d-%d",
                                  n ? k ? " -> " : " | " : "", m ? m->name : s->id, s->begin,
                                  s->end);
        }
    if (plan->rates_known)
        nk__fleet_event(f, "plan %llu: %s (predicted %.1f tokens/s for one stream)",
                        (unsigned long long)f->epoch, text,
                        plan->ms_per_token > 0 ? 1000 / plan->ms_per_token : 0.0);
    else
        nk__fleet_event(f, "plan %llu: %s", (unsigned long long)f->epoch, text);
}

static bool can_be_planned(const struct nk__member *m)
{
    return !m->removed && !m->gateway && m->attending && !m->leaving && m->has_facts &&
           !m->excluded_until;
}

/* Is somebody of it still measuring itself? It must not be planned without only for that. Until
 * when that is waited for; 0: nobody is. */
static uint64_t waits_for_facts(const nk_fleet *f, const struct nk__target *t, uint64_t now_ns)
{
    uint64_t until = 0;

    for (int i = 0; t->epoch && i < t->plan->n_chains; i++)
        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct nk__member *m = nk__fleet_stage_member(f, &t->plan->chains[i].stages[k]);

            if (m && !m->has_facts && !m->why_no_facts[0] && m->came_ns + MS(FACTS_MS) > now_ns &&
                m->came_ns + MS(FACTS_MS) > until)
                until = m->came_ns + MS(FACTS_MS);
        }
    return until;
}

/* What was measured of the ways between those that can be planned. NULL: none. */
static struct nk_plan_link *collect_links(const nk_fleet *f, int *n)
{
    struct nk_plan_link *links;
    size_t max = 0;

    *n = 0;
    for (size_t i = 0; i < f->n; i++)
        max += (size_t)f->members[i]->n_ways;
    links = max ? calloc(max, sizeof *links) : NULL;
    for (size_t i = 0; links && i < f->n; i++)
        for (int k = 0; can_be_planned(f->members[i]) && k < f->members[i]->n_ways; k++) {
            const struct nk__way *w = &f->members[i]->ways[k];
            const struct nk__member *peer = nk__fleet_find_present(f, w->peer);
            struct nk_plan_link *l = &links[*n];

            if (!peer || !can_be_planned(peer))
                continue;
            ++*n;
            if (w->no_way) {
                snprintf(l->from, sizeof l->from, "%s", f->members[i]->id);
                snprintf(l->to, sizeof l->to, "%s", w->peer);
                l->no_way = true;
                continue;
            }
            /* The rate is of what comes from the peer. */
            snprintf(l->from, sizeof l->from, "%s", w->peer);
            snprintf(l->to, sizeof l->to, "%s", f->members[i]->id);
            l->rtt_ms = w->rtt_ms;
            l->bytes_per_s = w->bytes_per_s;
        }
    return links;
}

/* The plan by hand with ids for names; *out NULL: somebody of it is not there yet, and f->waiting
 * says who. */
static int translate(nk_fleet *f, struct nk_plan **out, struct nk_error *err)
{
    const struct nk_plan *by_hand = f->o.by_hand;
    int rc = nk_plan_new(out, err);

    for (int i = 0; !rc && i < by_hand->n_chains; i++) {
        const struct nk_plan_chain *c = &by_hand->chains[i];
        struct nk_plan_stage *stages = calloc((size_t)c->n_stages, sizeof *stages);

        if (!stages)
            rc = nk__fleet_no_memory(err);
        for (int k = 0; !rc && k < c->n_stages; k++) {
            const struct nk__member *m = NULL;

            for (size_t q = 0; q < f->n && !m; q++)
                if (can_be_planned(f->members[q]) && !strcmp(f->members[q]->name, c->stages[k].id))
                    m = f->members[q];
            if (!m) {
                snprintf(f->waiting, sizeof f->waiting,
                         "the plan by hand needs %s, which is not here or not measured",
                         c->stages[k].id);
                free(stages);
                nk_plan_free(*out);
                *out = NULL;
                return 0;
            }
            stages[k] = c->stages[k];
            strcpy(stages[k].id, m->id);
        }
        if (!rc)
            rc = nk_plan_chain_add(*out, stages, c->n_stages, err);
        free(stages);
    }
    if (rc) {
        nk_plan_free(*out);
        *out = NULL;
    }
    return rc;
}

/* What is predicted of the plan in force by the facts as they are now. */
static void take_predictions(struct nk__target *t, const struct nk_plan *now)
{
    t->plan->ms_per_token = now->ms_per_token;
    t->plan->tokens_per_s = now->tokens_per_s;
    t->plan->ttft_ms = now->ttft_ms;
    t->plan->rates_known = now->rates_known;
    t->plan->kind = now->kind;
    for (int i = 0; i < nk__fleet_n_stages(t->plan); i++) {
        uint64_t epoch;
        struct nk_plan_stage *s =
            (struct nk_plan_stage *)(uintptr_t)nk__fleet_stage_at(t, i, &epoch);

        for (int c = 0; c < now->n_chains; c++)
            for (int k = 0; k < now->chains[c].n_stages; k++)
                if (!strcmp(now->chains[c].stages[k].id, s->id))
                    s->ms = now->chains[c].stages[k].ms;
    }
}

/* Why there is no machine to make a plan with. */
static void say_nobody(nk_fleet *f)
{
    const struct nk__member *out = NULL;

    for (size_t i = 0; !out && i < f->n; i++)
        if (f->members[i]->attending && !f->members[i]->leaving &&
            (f->members[i]->excluded_until || f->members[i]->why_no_facts[0]))
            out = f->members[i];
    if (out)
        snprintf(f->waiting, sizeof f->waiting, "no machine can be planned with; %s: %.150s",
                 out->name, out->excluded_until ? out->why_excluded : out->why_no_facts);
    else
        snprintf(f->waiting, sizeof f->waiting,
                 "no machine is ready to be planned: each measures itself first");
}

/* A chain longer than what can be told and kept: *plan becomes NULL. */
static void check_size(nk_fleet *f, struct nk_plan **plan)
{
    for (int i = 0; *plan && i < (*plan)->n_chains; i++)
        if ((*plan)->chains[i].n_stages > NK_FLEET_STAGES_MAX) {
            snprintf(f->waiting, sizeof f->waiting,
                     "the plan has a chain of %d machines; %d is the most",
                     (*plan)->chains[i].n_stages, NK_FLEET_STAGES_MAX);
            nk__fleet_event(f, "%s", f->waiting);
            nk_plan_free(*plan);
            *plan = NULL;
        }
}

void nk__fleet_replan(nk_fleet *f, uint64_t now_ns)
{
    struct nk_plan_opts opts = f->o.plan;
    struct nk_plan_facts facts = { .model = f->o.model };
    struct nk_plan_member *members = calloc(f->n + 1, sizeof *members);
    struct nk__target *in_force;
    struct nk_plan *plan = NULL, *by_hand = NULL;
    struct nk_plan_link *links;
    struct nk_error err;
    uint64_t until;
    int n = 0, rc = 0;

    f->dirty_since = f->plan_at = 0;
    if (!nk__fleet_target_is_possible(f, &f->next))
        nk__fleet_drop(&f->next); /* what serves is in force again, if it still can */
    in_force = f->next.epoch ? &f->next : &f->serving;
    until = nk__fleet_target_is_possible(f, in_force) ? waits_for_facts(f, in_force, now_ns) : 0;
    if (until) {
        free(members);
        f->plan_at = until; /* they come, or why there are none: both make a plan due earlier */
        return;
    }
    if (!members) {
        nk__fleet_dirty(f, now_ns, RETRY_MS);
        return;
    }
    for (size_t i = 0; i < f->n; i++)
        if (can_be_planned(f->members[i]))
            members[n++] = f->members[i]->facts;
    facts.members = members;
    facts.n_members = n;
    links = collect_links(f, &facts.n_links);
    facts.links = links;
    opts.in_force = nk__fleet_target_is_possible(f, in_force) ? in_force->plan : NULL;
    if (f->o.by_hand)
        rc = translate(f, &by_hand, &err);
    opts.by_hand = by_hand;
    if (rc || (f->o.by_hand && !by_hand)) {
        ;
    } else if (n == 0) {
        say_nobody(f);
    } else {
        rc = nk_plan_make(&plan, &facts, &opts, &err);
    }
    free(members);
    free(links);
    nk_plan_free(by_hand);
    if (rc) {
        snprintf(f->waiting, sizeof f->waiting, "no plan could be made: %.200s", err.msg);
        nk__fleet_event(f, "%s", f->waiting);
        if (rc == NK_E_EXHAUSTED)
            nk__fleet_dirty(f, now_ns, RETRY_MS);
        return;
    }
    check_size(f, &plan);
    if (plan && plan->kind == NK_PLAN_DOES_NOT_FIT) {
        if (strcmp(f->waiting, plan->why) != 0)
            nk__fleet_event(f, "%s", plan->why);
        snprintf(f->waiting, sizeof f->waiting, "%s", plan->why);
    }
    nk_plan_free(f->considered);
    f->considered = plan;
    if (!plan || plan->kind == NK_PLAN_DOES_NOT_FIT)
        return;
    f->waiting[0] = '\0';
    if (opts.in_force && nk_plan_same(plan, opts.in_force)) {
        take_predictions(in_force, plan);
        return;
    }
    /* What is being fetched is not cut off for something better: that is looked at when it is
     * there. */
    if (f->next.epoch && !f->next.ready)
        return;
    f->considered = NULL;
    adopt(f, plan, now_ns);
}
