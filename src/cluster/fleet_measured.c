#include "cluster/fleet_int.h"

#include <string.h>

void nk__fleet_believe_again(nk_fleet *f, uint64_t now_ns, uint64_t *wake)
{
    for (size_t i = 0; i < f->n; i++) {
        struct nk__member *m = f->members[i];
        uint64_t at;

        if (!m->facts.stage_layers)
            continue;
        if (m->n_holdings)
            m->stage_ns = now_ns;
        at = m->stage_ns + MS(BELIEVED_MS);
        if (at > now_ns) {
            *wake = at < *wake ? at : *wake;
            continue;
        }
        m->facts.stage_layers = 0;
        nk__fleet_dirty(f, now_ns, f->o.settle_ms);
    }
}

static bool differs(double ms, double predicted, double times)
{
    return predicted > 0 && ms > 0 && (ms > times * predicted || ms < predicted / times);
}

static bool is_far(double ms, double predicted)
{
    return differs(ms, predicted, FAR_OFF);
}

void nk_fleet_stage_measured(nk_fleet *f, uint64_t epoch, const char *name, int layer_begin,
                             int layer_end, double ms, uint64_t now_ns)
{
    struct nk__member *m = NULL;
    const struct nk_plan_stage *s;
    uint64_t stage_epoch;

    if (epoch != f->serving.epoch)
        return;
    for (size_t i = 0; !m && i < f->n; i++)
        if (!f->members[i]->removed && !strcmp(f->members[i]->name, name))
            m = f->members[i];
    s = m && m->has_facts ? nk__fleet_stage_of(&f->serving, m->id, &stage_epoch) : NULL;
    if (!s || s->begin != layer_begin || s->end != layer_end)
        return;
    if (!f->serving.plan->rates_known || !is_far(ms, s->ms)) {
        m->far_since = 0;
        return;
    }
    if (!m->far_since || now_ns - m->far_seen > MS(FAR_GAP_MS))
        m->far_since = now_ns;
    m->far_seen = now_ns;
    if (now_ns - m->far_since < MS(FAR_MS))
        return;
    nk__fleet_event(
        f, "%s takes %.1f ms for a token with layers %d-%d, not %.1f: that is planned with",
        m->name, ms, s->begin, s->end, s->ms);
    m->far_since = 0;
    m->stage_ns = now_ns;
    m->facts.stage_layers = s->end - s->begin;
    m->facts.stage_rows = 1;
    m->facts.stage_last = s->end == f->o.model->n_layer;
    m->facts.stage_ms = ms;
    nk__fleet_dirty(f, now_ns, f->o.settle_ms);
}

static double predicted_ms(const nk_fleet *f)
{
    return f->serving.epoch && f->serving.plan->rates_known ? f->serving.plan->ms_per_token : 0;
}

bool nk__fleet_is_far_off(const nk_fleet *f)
{
    return is_far(f->measured_ms, predicted_ms(f));
}

void nk_fleet_measured(nk_fleet *f, uint64_t epoch, double ms_per_token)
{
    if (epoch != f->serving.epoch)
        return;
    f->measured_ms = ms_per_token;
    /* What goes to and fro about the bound is said once. */
    if (!differs(ms_per_token, predicted_ms(f), NEAR))
        f->far_off_said = false;
    if (!nk__fleet_is_far_off(f) || f->far_off_said)
        return;
    f->far_off_said = true;
    nk__fleet_event(f, "plan %llu gives one stream %.1f tokens/s; %.1f were predicted",
                    (unsigned long long)f->serving.epoch, 1000 / ms_per_token,
                    1000 / f->serving.plan->ms_per_token);
}
