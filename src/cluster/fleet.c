#include "cluster/fleet_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "cluster/record.h"

int nk__fleet_no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

const char *nk_holding_state_text(enum nk_holding_state s)
{
    static const char *const text[] = { "none", "fetching", "loading", "ready", "failed" };

    return text[(unsigned)s <= NK_HOLDING_FAILED ? s : 0];
}

struct nk__member *nk__fleet_find(const nk_fleet *f, const char *id)
{
    for (size_t i = 0; i < f->n; i++)
        if (!strcmp(f->members[i]->id, id))
            return f->members[i];
    return NULL;
}

struct nk__member *nk__fleet_find_present(const nk_fleet *f, const char *id)
{
    struct nk__member *m = nk__fleet_find(f, id);

    return m && !m->removed ? m : NULL;
}

void nk__fleet_event(nk_fleet *f, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->o.event(f->o.user, text);
}

/* ---- members in the store ---- */

static int save_member(nk_fleet *f, const struct nk__member *m, struct nk_error *err)
{
    struct nk_member_record r = { .gateway = m->gateway, .removed = m->removed };

    strcpy(r.id, m->id);
    strcpy(r.name, m->name);
    return nk_record_put_member(f->o.store, &r, &f->roster_revision, err);
}

static int add(nk_fleet *f, struct nk__member **out, struct nk_error *err)
{
    struct nk__member *m;
    int rc = nk_array_grow(f->members, f->capacity, f->n + 1, NK_FLEET_MEMBERS_MAX, NULL);

    *out = NULL;
    if (rc)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many_members",
                       "the cluster has %zu members already; %d is the most", f->n,
                       NK_FLEET_MEMBERS_MAX);
    m = calloc(1, sizeof *m);
    if (!m)
        return nk__fleet_no_memory(err);
    f->members[f->n++] = *out = m;
    return 0;
}

static void drop_last(nk_fleet *f)
{
    free(f->members[--f->n]);
}

void nk__fleet_dirty(nk_fleet *f, uint64_t now_ns, uint32_t settle_ms)
{
    uint64_t at = now_ns + MS(settle_ms);

    if (!f->dirty_since)
        f->dirty_since = now_ns;
    if (!f->plan_at || at < f->plan_at || settle_ms)
        f->plan_at = at;
    /* Whoever comes and goes all the time does not keep the others waiting for ever. */
    if (f->plan_at > f->dirty_since + 10 * MS(f->o.settle_ms))
        f->plan_at = f->dirty_since + 10 * MS(f->o.settle_ms);
}

static bool name_is_taken(const nk_fleet *f, const char *name, const struct nk__member *but)
{
    for (size_t i = 0; i < f->n; i++)
        if (f->members[i] != but && !f->members[i]->removed && !strcmp(f->members[i]->name, name))
            return true;
    return false;
}

/* Could it be about to attend: just admitted, or the coordinator has just been started? */
static bool may_be_coming(const nk_fleet *f, const struct nk__member *m, uint64_t now_ns)
{
    return !m->has_attended &&
           now_ns < (m->admitted_ns ? m->admitted_ns : f->opened_ns) + MS(COMING_MS);
}

int nk_fleet_admit(nk_fleet *f, const char *id, bool gateway, char name[NK_MEMBER_NAME_SIZE],
                   uint64_t now_ns, struct nk_error *err)
{
    struct nk__member *m = nk__fleet_find(f, id), *old = NULL, before;
    bool is_new = !m;
    char wanted[NK_MEMBER_NAME_SIZE];
    int rc = 0;

    if (m && m->removed)
        return nk_fail(err, NK_E_DENIED, "removed", "%s was removed from the cluster", m->name);
    /* The same machine with a new key: what was known of the old one goes. */
    for (size_t i = 0; is_new && !gateway && !old && i < f->n; i++) {
        struct nk__member *o = f->members[i];

        if (!o->removed && !o->gateway && !o->attending && !strcmp(o->name, name) &&
            !(f->o.own && !strcmp(o->id, f->o.own)) && !may_be_coming(f, o, now_ns))
            old = o;
    }
    if (is_new && !old)
        rc = add(f, &m, err);
    if (rc)
        return rc;
    if (old)
        m = old;
    before = *m;
    if (is_new) {
        memset(m, 0, sizeof *m);
        m->gateway = gateway;
        m->admitted_ns = now_ns;
        snprintf(m->id, sizeof m->id, "%s", id);
    }
    snprintf(wanted, sizeof wanted, "%s", name);
    for (int k = 2; name_is_taken(f, wanted, m); k++)
        snprintf(wanted, sizeof wanted, "%.50s-%d", name, k);
    strcpy(m->name, wanted);
    rc = save_member(f, m, err);
    /* Only now: whoever fails in between has lost nobody. */
    if (!rc && old) {
        rc = nk_record_delete_member(f->o.store, before.id, err);
        if (rc)
            (void)nk_record_delete_member(f->o.store, m->id, NULL);
    }
    if (rc) {
        if (is_new && !old)
            drop_last(f);
        else
            *m = before;
        return rc;
    }
    strcpy(name, m->name);
    return 0;
}

bool nk_fleet_is_removed(const nk_fleet *f, const char *id)
{
    const struct nk__member *m = nk__fleet_find(f, id);

    return m && m->removed;
}

bool nk_fleet_has(const nk_fleet *f, const char *id)
{
    return nk__fleet_find_present(f, id) != NULL;
}

int nk_fleet_roster(const nk_fleet *f, struct nk_roster *out, struct nk_error *err)
{
    int rc = 0;

    *out = (struct nk_roster){ .revision = f->roster_revision };
    for (size_t i = 0; !rc && i < f->n; i++)
        if (!f->members[i]->removed)
            rc = nk_roster_put(out, f->members[i]->id, f->members[i]->gateway, f->members[i]->name,
                               err);
    if (rc)
        nk_roster_release(out);
    return rc;
}

/* ---- what machines say ---- */

void nk__fleet_away(nk_fleet *f, struct nk__member *m, uint64_t now_ns, uint32_t settle_ms)
{
    m->attending = m->connected = m->leaving = m->was_told = false;
    m->n_holdings = 0;
    nk__fleet_dirty(f, now_ns, settle_ms);
}

int nk_fleet_remove(nk_fleet *f, const char *who, char id[NK_MEMBER_ID_SIZE], uint64_t now_ns,
                    struct nk_error *err)
{
    struct nk__member *m = nk__fleet_find_present(f, who);
    int rc;

    for (size_t i = 0; !m && i < f->n; i++)
        if (!f->members[i]->removed && !strcmp(f->members[i]->name, who))
            m = f->members[i];
    if (!m)
        return nk_fail(err, NK_E_NOT_FOUND, "unknown_member",
                       "there is no member %s; nakshatra members lists them", who);
    if (m->gateway)
        return nk_fail(err, NK_E_PRECONDITION, "is_coordinator",
                       "%s is the machine that serves; it cannot be removed from its own cluster",
                       m->name);
    if (f->o.own && !strcmp(m->id, f->o.own))
        return nk_fail(err, NK_E_PRECONDITION, "is_coordinator",
                       "%s is on the machine that serves; to let it hold no layers, serve with "
                       "--not-here",
                       m->name);
    m->removed = true;
    rc = save_member(f, m, err);
    if (rc) {
        m->removed = false;
        return rc;
    }
    strcpy(id, m->id);
    nk__fleet_away(f, m, now_ns, 0);
    nk__fleet_event(f, "%s was removed", m->name);
    return 0;
}

int nk_fleet_attend(nk_fleet *f, const char *id, uint64_t boot, const char *version,
                    const char *host, const char *reached, int pieces_port, uint64_t now_ns,
                    struct nk_error *err)
{
    struct nk__member *m = nk__fleet_find_present(f, id);
    bool again;

    if (!m)
        return nk_fail(err, NK_E_DENIED, "not_a_member", "%s is no member of this cluster", id);
    again = m->attending && m->boot == boot;
    if (!again) {
        m->n_holdings = 0;
        m->came_ns = m->progress_ns = now_ns;
        m->n_excluded = 0;
        m->excluded_until = 0; /* whoever has started it anew may have mended what was wrong */
        nk__fleet_dirty(f, now_ns, f->o.settle_ms);
    } else if (strcmp(m->host, host) != 0) {
        nk__fleet_event(f, "%s is at %s now", m->name, host[0] ? host : "this machine");
        nk__fleet_dirty(f, now_ns, f->o.settle_ms);
    }
    m->boot = boot;
    snprintf(m->version, sizeof m->version, "%s", version);
    snprintf(m->host, sizeof m->host, "%s", host);
    snprintf(m->reached, sizeof m->reached, "%s", reached);
    m->pieces_port = pieces_port;
    m->attending = m->connected = m->has_attended = true;
    m->leaving = m->was_told = false;
    m->seen_ns = now_ns;
    if (!again)
        nk__fleet_event(f, "%s is here", m->name);
    return 0;
}

void nk_fleet_facts(nk_fleet *f, const char *id, const struct nk_plan_member *facts,
                    const char *why_not, uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);

    if (!m)
        return;
    m->has_facts = facts != NULL;
    if (facts) {
        m->facts = *facts;
        snprintf(m->facts.id, sizeof m->facts.id, "%s", m->id);
        snprintf(m->facts.name, sizeof m->facts.name, "%s", m->name);
        m->why_no_facts[0] = '\0';
    } else if (strcmp(m->why_no_facts, why_not) != 0) {
        snprintf(m->why_no_facts, sizeof m->why_no_facts, "%s", why_not);
        nk__fleet_event(f, "%s could not measure itself: %s", m->name, why_not);
    }
    m->seen_ns = now_ns;
    nk__fleet_dirty(f, now_ns, f->o.settle_ms);
}

/* Is this another state than what it has told before? */
static bool gets_further(const struct nk__member *m, const struct nk_holding *holdings, int n)
{
    if (n != m->n_holdings)
        return true;
    for (int i = 0; i < n; i++)
        if (holdings[i].epoch != m->holdings[i].epoch ||
            holdings[i].state != m->holdings[i].state ||
            holdings[i].bytes_done != m->holdings[i].bytes_done)
            return true;
    return false;
}

bool nk_fleet_beat(nk_fleet *f, const char *id, const struct nk_holding *holdings, int n,
                   uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);

    if (!m || !m->attending)
        return false;
    m->seen_ns = now_ns;
    if (gets_further(m, holdings, n))
        m->progress_ns = now_ns;
    m->n_holdings = n < NK_FLEET_HOLDINGS_MAX ? n : NK_FLEET_HOLDINGS_MAX;
    if (m->n_holdings)
        memcpy(m->holdings, holdings, (size_t)m->n_holdings * sizeof *holdings);
    for (int i = 0; i < m->n_holdings; i++)
        if (m->holdings[i].state == NK_HOLDING_READY)
            m->n_excluded = 0;
    return true;
}

/* Differs it by more than what two measurements of the same do? */
static bool differs(double a, double b)
{
    return a > 1.25 * b || b > 1.25 * a;
}

/* The way from m to peer, made where there is none. */
static struct nk__way *way_to(struct nk__member *m, const char *peer)
{
    struct nk__way *w;

    for (int i = 0; i < m->n_ways; i++)
        if (!strcmp(m->ways[i].peer, peer))
            return &m->ways[i];
    /* The first ones go: they are of members that have left. */
    if (m->n_ways == NK_FLEET_PEERS_MAX)
        memmove(m->ways, m->ways + 1, (size_t)--m->n_ways * sizeof m->ways[0]);
    w = &m->ways[m->n_ways++];
    *w = (struct nk__way){ .rtt_ms = -1 };
    snprintf(w->peer, sizeof w->peer, "%s", peer);
    return w;
}

void nk_fleet_link(nk_fleet *f, const char *id, const char *peer, double rtt_ms, double bytes_per_s,
                   uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);
    struct nk__way *w;

    if (!m || !nk__fleet_find_present(f, peer) || !(rtt_ms >= 0 && rtt_ms < 60000) ||
        !(bytes_per_s >= 0 && bytes_per_s < 1e12))
        return;
    w = way_to(m, peer);
    if (w->no_way || w->rtt_ms < 0 || differs(w->rtt_ms, rtt_ms) ||
        differs(w->bytes_per_s, bytes_per_s))
        nk__fleet_dirty(f, now_ns, f->o.settle_ms);
    w->rtt_ms = rtt_ms;
    w->bytes_per_s = bytes_per_s;
    w->no_way = false;
}

/* Tokens go this way: whatever kept a measurement from getting through, it was not that there is
 * none. */
static bool carries_tokens(const nk_fleet *f, const char *id, const char *peer)
{
    const struct nk_plan *p = f->serving.plan;

    for (int c = 0; f->serving.epoch && f->measured_ms > 0 && c < p->n_chains; c++)
        for (int i = 0; i + 1 < p->chains[c].n_stages; i++)
            if (!strcmp(p->chains[c].stages[i].id, id) &&
                !strcmp(p->chains[c].stages[i + 1].id, peer))
                return true;
    return false;
}

void nk_fleet_no_way(nk_fleet *f, const char *id, const char *peer, const char *why,
                     uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id), *to = nk__fleet_find_present(f, peer);
    struct nk__way *w = m && to && m != to ? way_to(m, peer) : NULL;

    if (!w || w->no_way || carries_tokens(f, id, peer))
        return;
    *w = (struct nk__way){ .rtt_ms = -1, .no_way = true };
    snprintf(w->peer, sizeof w->peer, "%s", peer);
    nk__fleet_event(f, "%s cannot connect to %s: %.200s", m->name, to->name, why);
    nk__fleet_dirty(f, now_ns, f->o.settle_ms);
}

void nk_fleet_lost(nk_fleet *f, const char *id, uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);

    (void)now_ns;
    if (m)
        m->connected = false;
}

void nk_fleet_leaving(nk_fleet *f, const char *id, uint64_t now_ns)
{
    struct nk__member *m = nk__fleet_find_present(f, id);

    if (!m || !m->attending || m->leaving)
        return;
    m->leaving = true;
    nk__fleet_event(f, "%s leaves", m->name);
    nk__fleet_dirty(f, now_ns, 0);
}

/* ---- life ---- */

static int load(nk_fleet *f, uint64_t now_ns, struct nk_error *err)
{
    struct nk_member_record *records = NULL;
    size_t n = 0;
    int rc = nk_record_members(f->o.store, &records, &n, &f->roster_revision, err);

    for (size_t i = 0; !rc && i < n; i++) {
        struct nk__member *m;

        rc = add(f, &m, err);
        if (rc)
            break;
        strcpy(m->id, records[i].id);
        strcpy(m->name, records[i].name);
        m->gateway = records[i].gateway;
        m->removed = records[i].removed;
    }
    free(records);
    if (!rc)
        rc = nk_record_plan(f->o.store, f->o.catalogue, &f->epoch, &f->serving.plan,
                            &f->serving.stage_epochs, err);
    if (!rc && f->serving.plan) {
        f->serving.epoch = f->epoch;
        f->serving.ready = true;
        f->returning_until = now_ns + MS(RETURN_MS);
    }
    return rc;
}

int nk_fleet_open(nk_fleet **out, const struct nk_fleet_opts *opts, uint64_t now_ns,
                  struct nk_error *err)
{
    nk_fleet *f = calloc(1, sizeof *f);
    int rc;

    *out = NULL;
    if (!f)
        return nk__fleet_no_memory(err);
    f->o = *opts;
    f->opened_ns = now_ns;
    nk_buf_init(&f->deployed, 1 << 20);
    rc = load(f, now_ns, err);
    if (rc) {
        nk_fleet_close(f);
        return rc;
    }
    *out = f;
    return 0;
}

void nk_fleet_close(nk_fleet *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->n; i++)
        free(f->members[i]);
    free(f->members);
    nk__fleet_drop(&f->serving);
    nk__fleet_drop(&f->next);
    nk_plan_free(f->considered);
    nk_buf_release(&f->deployed);
    free(f);
}
