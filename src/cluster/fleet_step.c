#include "cluster/fleet_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void leases(nk_fleet *f, uint64_t now_ns, uint64_t *wake)
{
    for (size_t i = 0; i < f->n; i++) {
        struct nk__member *m = f->members[i];
        uint64_t end = m->seen_ns + MS(f->o.beat_ms) * f->o.beats_missed_max;

        if (end < f->lenient_until)
            end = f->lenient_until;
        if (m->excluded_until && m->excluded_until <= now_ns) {
            m->excluded_until = 0;
            nk__fleet_dirty(f, now_ns, 0);
        }
        if (m->excluded_until && m->excluded_until < *wake)
            *wake = m->excluded_until;
        if (!m->attending)
            continue;
        if (end > now_ns && !(m->leaving && !m->connected)) {
            *wake = end < *wake ? end : *wake;
            continue;
        }
        nk__fleet_event(f, m->leaving ? "%s is gone" : "%s is not heard of any more", m->name);
        nk__fleet_away(f, m, now_ns, 0);
        if (f->o.gone)
            f->o.gone(f->o.user, m->id);
    }
}

/* It is planned without for a while, longer each time in a row: its turn can cost the others what
 * they serve with. */
static void leave_out(nk_fleet *f, struct nk__member *m, uint64_t now_ns, const char *what,
                      const char *why)
{
    m->excluded_until = now_ns + (MS(EXCLUDED_MS) << m->n_excluded);
    snprintf(m->why_excluded, sizeof m->why_excluded, "%.255s", why);
    nk__fleet_event(f, "%s %s and is left out for %d minutes: %s", m->name, what,
                    (EXCLUDED_MS / 60000) << m->n_excluded, why);
    m->n_excluded += m->n_excluded < N_EXCLUDED_MAX;
    nk__fleet_dirty(f, now_ns, 0);
}

void nk_fleet_unreachable(nk_fleet *f, const char *id, const char *why, uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);

    /* This machine's own member is not behind a firewall: it was slow, or is just gone. */
    if (m && m->attending && !m->excluded_until && !(f->o.own && !strcmp(id, f->o.own)))
        leave_out(f, m, now_ns, "is not reached", why);
}

/* A machine that cannot load what it was given is planned without for a while: it would be given
 * the same again. */
static void exclude_failing(nk_fleet *f, uint64_t now_ns)
{
    enum { FAILURES_MAX = 3 };

    for (size_t i = 0; i < f->n; i++) {
        struct nk__member *m = f->members[i];

        for (int k = 0; k < m->n_holdings && !m->excluded_until; k++) {
            const struct nk_holding *h = &m->holdings[k];

            if (h->state != NK_HOLDING_FAILED || h->failures < FAILURES_MAX)
                continue;
            leave_out(f, m, now_ns, "failed again and again", h->error);
        }
    }
}

/* Nor does one that hangs, or lies, keep the others waiting for ever. */
static void exclude_stalled(nk_fleet *f, uint64_t now_ns, uint64_t *wake)
{
    for (int i = 0; f->next.epoch && i < nk__fleet_n_stages(f->next.plan); i++) {
        uint64_t epoch, at;
        const struct nk_plan_stage *s = nk__fleet_stage_at(&f->next, i, &epoch);
        struct nk__member *m = nk__fleet_stage_member(f, s);

        if (!m || m->excluded_until || nk__fleet_stage_is_ready(f, epoch, s))
            continue;
        at = (m->progress_ns > f->next.since_ns ? m->progress_ns : f->next.since_ns) + MS(STALL_MS);
        if (at > now_ns) {
            *wake = at < *wake ? at : *wake;
            continue;
        }
        m->excluded_until = now_ns + MS(EXCLUDED_MS);
        snprintf(m->why_excluded, sizeof m->why_excluded,
                 "has not got any further with layers %d-%d for %d minutes", s->begin, s->end,
                 STALL_MS / 60000);
        nk__fleet_event(f, "%s %s and is left out for five minutes", m->name, m->why_excluded);
        nk__fleet_dirty(f, now_ns, 0);
    }
}

/* A step that comes much too late: this process was stopped, or its machine asleep. What members
 * have said meanwhile was not heard, and some have lost their call: they are not dead for that. */
static void notice_sleep(nk_fleet *f, uint64_t now_ns)
{
    if (f->due_ns && now_ns > f->due_ns + MS(f->o.beat_ms)) {
        f->lenient_until = now_ns + MS(RETURN_MS);
        if (f->returning_until && f->returning_until < f->lenient_until)
            f->returning_until = f->lenient_until;
    }
}

const char *nk_fleet_own_host(const nk_fleet *f)
{
    const char *best = "";
    int best_n = 0;

    for (size_t i = 0; i < f->n; i++) {
        const struct nk__member *m = f->members[i];
        int n = 0;

        if (!m->attending || !m->host[0] || !m->reached[0])
            continue;
        for (size_t k = 0; k < f->n; k++)
            n += f->members[k]->attending && f->members[k]->host[0] &&
                 !strcmp(f->members[k]->reached, m->reached);
        if (n > best_n) {
            best_n = n;
            best = m->reached;
        }
    }
    return best;
}

static void address_of(const nk_fleet *f, const struct nk__member *m, int port, char out[256])
{
    const char *host = m->host[0] ? m->host : nk_fleet_own_host(f);

    if (!host[0])
        host = "127.0.0.1"; /* there are no others */
    snprintf(out, 256, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, port);
}

int nk_fleet_sources(const nk_fleet *f, const char *id, char (*out)[256], int max)
{
    int n = 0;

    for (size_t i = 0; i < f->n && n < max; i++) {
        const struct nk__member *m = f->members[i];

        if (!m->removed && m->attending && m->pieces_port && strcmp(m->id, id) != 0)
            address_of(f, m, m->pieces_port, out[n++]);
    }
    return n;
}

int nk_fleet_peers(const nk_fleet *f, const char *id, struct nk_fleet_peer *out, int max)
{
    int n = 0;

    for (size_t i = 0; i < f->n && n < max; i++) {
        const struct nk__member *m = f->members[i];

        if (m->removed || m->gateway || !m->attending || !m->pieces_port || !strcmp(m->id, id))
            continue;
        strcpy(out[n].id, m->id);
        address_of(f, m, m->pieces_port, out[n++].address);
    }
    return n;
}

/* Calls deploy when it is something else than before. */
static void deploy(nk_fleet *f)
{
    struct nk_deployment d = { 0 };
    struct nk_buf text = NK_BUF_INIT(1 << 20);
    const struct nk__target *t = &f->serving;
    int n_max = t->epoch ? t->plan->n_chains : 0;

    if (n_max > NK_FLEET_CHAINS_MAX)
        n_max = NK_FLEET_CHAINS_MAX;
    d.chains = calloc((size_t)n_max + 1, sizeof *d.chains);
    if (!d.chains)
        return; /* tried again at the next step */
    for (int i = 0, first = 0; i < n_max; first += t->plan->chains[i++].n_stages) {
        const struct nk_plan_chain *c = &t->plan->chains[i];
        struct nk_deployed_chain *out = &d.chains[d.n_chains];

        if (c->n_stages > NK_FLEET_STAGES_MAX || !nk__fleet_chain_is_ready(f, t, i, first))
            continue;
        for (int k = 0; k < c->n_stages; k++) {
            const struct nk_plan_stage *s = &c->stages[k];
            const struct nk__member *m = nk__fleet_stage_member(f, s);
            struct nk_deployed_stage *ds = &out->stages[out->n_stages++];

            strcpy(ds->member, m->id);
            strcpy(ds->name, m->name);
            ds->epoch = t->stage_epochs[first + k];
            address_of(f, m, nk__fleet_holding_of(f, m, ds->epoch, s)->port, ds->address);
            ds->layer_begin = s->begin;
            ds->layer_end = s->end;
            nk_buf_addf(&text, NULL, "%s %s %d-%d;", ds->member, ds->address, s->begin, s->end);
        }
        nk_buf_adds(&text, "|", NULL);
        d.n_chains++;
    }
    if (d.n_chains) {
        d.epoch = t->epoch;
    } else if (f->next.epoch || t->epoch) {
        const struct nk__target *w = f->next.epoch ? &f->next : t;
        size_t n = 0;

        for (int i = 0; i < nk__fleet_n_stages(w->plan); i++) {
            uint64_t epoch;
            const struct nk_plan_stage *s = nk__fleet_stage_at(w, i, &epoch);
            const struct nk__member *m = nk__fleet_find(f, s->id);
            const struct nk_holding *h =
                m && m->attending ? nk__fleet_holding_of(f, m, epoch, s) : NULL;

            if (nk__fleet_stage_is_ready(f, epoch, s) || n >= sizeof d.waiting)
                continue;
            n += (size_t)snprintf(d.waiting + n, sizeof d.waiting - n, "%s%s (%s)",
                                  n ? ", " : "waiting for ", m ? m->name : s->id,
                                  !m || !m->attending ? "away"
                                  : h                 ? nk_holding_state_text(h->state)
                                                      : "not begun");
        }
    } else {
        snprintf(d.waiting, sizeof d.waiting, "%s",
                 f->waiting[0] ? f->waiting : "waiting for a machine");
    }
    nk_buf_addf(&text, NULL, "%llu %s", (unsigned long long)d.epoch, d.waiting);
    if (!f->was_deployed || strcmp(nk_buf_str(&text), nk_buf_str(&f->deployed)) != 0) {
        nk_buf_release(&f->deployed);
        f->deployed = text;
        f->was_deployed = true;
        f->o.deploy(f->o.user, &d);
    } else {
        nk_buf_release(&text);
    }
    free(d.chains);
}

static void add_assignment(struct nk_want *w, const struct nk__target *t, const char *id)
{
    uint64_t epoch;
    const struct nk_plan_stage *s = nk__fleet_stage_of(t, id, &epoch);

    if (!s || w->n_assignments == NK_FLEET_HOLDINGS_MAX)
        return;
    for (int i = 0; i < w->n_assignments; i++)
        if (w->assignments[i].epoch == epoch)
            return; /* it goes on with what it has */
    w->assignments[w->n_assignments++] = (struct nk_want_assignment){ epoch, s->begin, s->end };
}

/* Changes when those to whom the ways are measured do (FNV-1a). */
static uint64_t peers_hash(const nk_fleet *f, const char *id)
{
    struct nk_fleet_peer peers[NK_FLEET_PEERS_MAX];
    int n = nk_fleet_peers(f, id, peers, NK_FLEET_PEERS_MAX);
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    for (int i = 0; i < n; i++)
        for (int k = 0; k < 2; k++)
            for (const char *p = k ? peers[i].address : peers[i].id; *p; p++)
                h = (h ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
    return h;
}

static void tell_wants(nk_fleet *f)
{
    for (size_t i = 0; i < f->n; i++) {
        struct nk__member *m = f->members[i];
        struct nk_want w;

        if (!m->attending || !m->connected || m->removed || m->gateway)
            continue;
        memset(&w, 0, sizeof w); /* compared as bytes */
        add_assignment(&w, &f->serving, m->id);
        add_assignment(&w, &f->next, m->id);
        w.peers_hash = peers_hash(f, m->id);
        if (m->was_told && !memcmp(&w, &m->told, sizeof w))
            continue;
        m->told = w;
        m->was_told = true;
        f->o.want(f->o.user, m->id, &w);
    }
}

void nk_fleet_want_again(nk_fleet *f)
{
    for (size_t i = 0; i < f->n; i++)
        f->members[i]->was_told = false;
}

uint64_t nk_fleet_step(nk_fleet *f, uint64_t now_ns)
{
    uint64_t wake = now_ns + MS(IDLE_MS);

    notice_sleep(f, now_ns);
    leases(f, now_ns, &wake);
    exclude_failing(f, now_ns);
    exclude_stalled(f, now_ns, &wake);
    nk__fleet_believe_again(f, now_ns, &wake);
    if (f->returning_until && f->returning_until <= now_ns) {
        f->returning_until = 0;
        nk__fleet_dirty(f, now_ns, 0);
    }
    if (f->returning_until && f->returning_until < wake)
        wake = f->returning_until;
    if (f->plan_at && f->plan_at <= now_ns && !f->returning_until)
        nk__fleet_replan(f, now_ns);
    if (f->next.epoch && nk__fleet_target_is_ready(f, &f->next)) {
        nk__fleet_drop(&f->serving);
        f->serving = f->next;
        f->serving.ready = true;
        f->measured_ms = 0;
        f->far_off_said = false;
        f->next = (struct nk__target){ 0 };
        nk__fleet_event(f, "plan %llu is in force", (unsigned long long)f->serving.epoch);
        nk__fleet_dirty(f, now_ns, f->o.settle_ms); /* was something better put off? */
    }
    if (f->serving.epoch && nk__fleet_target_is_possible(f, &f->serving))
        f->returning_until = 0;
    /* What has lost a machine is no chain any more; of replicas the others go on until the next
     * plan is ready. */
    if (!f->returning_until && f->serving.epoch && !f->next.epoch &&
        !nk__fleet_target_is_possible(f, &f->serving) && f->serving.plan->n_chains == 1)
        nk__fleet_drop(&f->serving);
    deploy(f);
    tell_wants(f);
    if (f->plan_at && !f->returning_until && f->plan_at < wake)
        wake = f->plan_at;
    for (size_t i = 0; i < f->n; i++) /* so that a sleep is noticed before a lease is over */
        if (f->members[i]->attending && now_ns + MS(f->o.beat_ms) < wake)
            wake = now_ns + MS(f->o.beat_ms);
    f->due_ns = wake > now_ns ? wake : now_ns;
    return wake;
}
