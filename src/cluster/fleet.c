#include "cluster/fleet.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/log.h"
#include "cluster/record.h"

enum {
    /* A plan that could not be put in force is tried again after so long. */
    RETRY_MS = 5000,
    IDLE_MS = 3600000,
    /* After a start, and after a sleep of this process, machines have so long to come back: more
     * than an agent's longest pause between two tries. */
    RETURN_MS = 20000,
    COMING_MS = 20000, /* who was admitted, or known at the start, attends within this */
    /* A machine that measures itself is waited for so long: more than an agent takes. */
    FACTS_MS = 900000,
    /* A machine of the next plan that gets no further for so long is planned without. */
    STALL_MS = 900000,
    EXCLUDED_MS = 300000, /* at first; doubled each time in a row, */
    N_EXCLUDED_MAX = 8,   /* so often: to 21 hours */
    /* A stage that is far from its prediction for so long is planned with what it takes; looks that
     * are further apart are none of one time; and without layers for so long it is believed again. */
    FAR_MS = 60000,
    FAR_GAP_MS = 20000,
    BELIEVED_MS = 1800000,
};
#define MS(n) ((uint64_t)(n)*1000000)
/* Measured and predicted times that differ by more than this are told. */
#define FAR_OFF 1.4

struct member {
    char id[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE];
    bool gateway, removed; /* a removed one is remembered, so that it can be told why */
    bool attending;        /* has a lease */
    bool has_attended;     /* since this process knows it */
    uint64_t admitted_ns;  /* by this process; 0: known from the store */
    bool connected;        /* and a call */
    bool leaving;
    uint64_t boot, seen_ns;        /* when it was last heard of */
    uint64_t came_ns, progress_ns; /* when it came, and when it last got further */
    char version[32], host[200], reached[200];
    int pieces_port;
    struct nk_plan_member facts;
    bool has_facts;
    uint64_t far_since, far_seen; /* its stage is far from its prediction; 0: it is not */
    uint64_t stage_ns;            /* when facts.stage_* were set, or it last held something */
    char why_no_facts[256];
    uint64_t excluded_until; /* it could not load what it was given; 0: not excluded */
    int n_excluded;          /* so often in a row */
    char why_excluded[256];
    struct nk_holding holdings[NK_FLEET_HOLDINGS_MAX];
    int n_holdings;
    struct nk_want told; /* what `want` was last called with */
    bool was_told;
    /* The ways from here, as measured. */
    struct way {
        char peer[NK_MEMBER_ID_SIZE];
        double rtt_ms, bytes_per_s;
    } ways[NK_FLEET_PEERS_MAX];
    int n_ways;
};

/* A plan with its epoch. */
struct target {
    uint64_t epoch;       /* 0: none */
    struct nk_plan *plan; /* owned */
    /* Of each stage, one chain after the other: the epoch that its worker is started for. Not
     * always the plan's: what a machine holds already, it goes on with. Owned. */
    uint64_t *stage_epochs;
    uint64_t since_ns; /* when it was made */
    bool ready;        /* was at some time: it serves, or has served */
};

struct nk_fleet {
    struct nk_fleet_opts o;
    struct member **members; /* each allocated, so that pointers last */
    size_t n, capacity;
    uint64_t epoch;           /* the last one given out */
    uint64_t roster_revision; /* the store's, of the last change to a member */
    struct target serving, next;
    uint64_t dirty_since;   /* something changed that a plan is made of; 0: nothing */
    uint64_t plan_at;       /* when it is due */
    struct nk_buf deployed; /* what was last deployed, as text to compare */
    bool was_deployed;
    /* After a start machines come back to the plan that was in force: until then it is not given
     * up. 0: no more. */
    uint64_t returning_until;
    uint64_t due_ns;        /* when the next step is to be; 0: none was yet */
    uint64_t lenient_until; /* no lease ends before: this process has slept */
    uint64_t opened_ns;
    double measured_ms;         /* per token of one stream, on what serves; 0: not known */
    bool far_off_said;          /* that this is far from what was predicted */
    char waiting[256];          /* why nothing is in force */
    struct nk_plan *considered; /* the last answer of the planner, for people; owned */
};

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

const char *nk_holding_state_text(enum nk_holding_state s)
{
    static const char *const text[] = { "none", "fetching", "loading", "ready", "failed" };

    return text[(unsigned)s <= NK_HOLDING_FAILED ? s : 0];
}

static struct member *find(const nk_fleet *f, const char *id)
{
    for (size_t i = 0; i < f->n; i++)
        if (!strcmp(f->members[i]->id, id))
            return f->members[i];
    return NULL;
}

static struct member *find_present(const nk_fleet *f, const char *id)
{
    struct member *m = find(f, id);

    return m && !m->removed ? m : NULL;
}

static void event(nk_fleet *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void event(nk_fleet *f, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->o.event(f->o.user, text);
}

/* ---- members in the store ---- */

static int save_member(nk_fleet *f, const struct member *m, struct nk_error *err)
{
    struct nk_member_record r = { .gateway = m->gateway, .removed = m->removed };

    strcpy(r.id, m->id);
    strcpy(r.name, m->name);
    return nk_record_put_member(f->o.store, &r, &f->roster_revision, err);
}

static int add(nk_fleet *f, struct member **out, struct nk_error *err)
{
    struct member *m;
    int rc = nk_array_grow(f->members, f->capacity, f->n + 1, NK_FLEET_MEMBERS_MAX, NULL);

    *out = NULL;
    if (rc)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many_members",
                       "the cluster has %zu members already; %d is the most", f->n,
                       NK_FLEET_MEMBERS_MAX);
    m = calloc(1, sizeof *m);
    if (!m)
        return no_memory(err);
    f->members[f->n++] = *out = m;
    return 0;
}

static void drop_last(nk_fleet *f)
{
    free(f->members[--f->n]);
}

static void dirty(nk_fleet *f, uint64_t now_ns, uint32_t settle_ms)
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

static bool name_is_taken(const nk_fleet *f, const char *name, const struct member *but)
{
    for (size_t i = 0; i < f->n; i++)
        if (f->members[i] != but && !f->members[i]->removed && !strcmp(f->members[i]->name, name))
            return true;
    return false;
}

/* Could it be about to attend: just admitted, or the coordinator has just been started? */
static bool may_be_coming(const nk_fleet *f, const struct member *m, uint64_t now_ns)
{
    return !m->has_attended &&
           now_ns < (m->admitted_ns ? m->admitted_ns : f->opened_ns) + MS(COMING_MS);
}

int nk_fleet_admit(nk_fleet *f, const char *id, bool gateway, char name[NK_MEMBER_NAME_SIZE],
                   uint64_t now_ns, struct nk_error *err)
{
    struct member *m = find(f, id), *old = NULL, before;
    bool is_new = !m;
    char wanted[NK_MEMBER_NAME_SIZE];
    int rc = 0;

    if (m && m->removed)
        return nk_fail(err, NK_E_DENIED, "removed", "%s was removed from the cluster", m->name);
    /* The same machine with a new key: what was known of the old one goes. */
    for (size_t i = 0; is_new && !gateway && !old && i < f->n; i++) {
        struct member *o = f->members[i];

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
    const struct member *m = find(f, id);

    return m && m->removed;
}

bool nk_fleet_has(const nk_fleet *f, const char *id)
{
    return find_present(f, id) != NULL;
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

/* It has no lease any more. */
static void away(nk_fleet *f, struct member *m, uint64_t now_ns, uint32_t settle_ms)
{
    m->attending = m->connected = m->leaving = m->was_told = false;
    m->n_holdings = 0;
    dirty(f, now_ns, settle_ms);
}

int nk_fleet_remove(nk_fleet *f, const char *who, char id[NK_MEMBER_ID_SIZE], uint64_t now_ns,
                    struct nk_error *err)
{
    struct member *m = find_present(f, who);
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
    away(f, m, now_ns, 0);
    event(f, "%s was removed", m->name);
    return 0;
}

int nk_fleet_attend(nk_fleet *f, const char *id, uint64_t boot, const char *version,
                    const char *host, const char *reached, int pieces_port, uint64_t now_ns,
                    struct nk_error *err)
{
    struct member *m = find_present(f, id);
    bool again;

    if (!m)
        return nk_fail(err, NK_E_DENIED, "not_a_member", "%s is no member of this cluster", id);
    again = m->attending && m->boot == boot;
    if (!again) {
        m->n_holdings = 0;
        m->came_ns = m->progress_ns = now_ns;
        m->n_excluded = 0;
        m->excluded_until = 0; /* whoever has started it anew may have mended what was wrong */
        dirty(f, now_ns, f->o.settle_ms);
    } else if (strcmp(m->host, host) != 0) {
        event(f, "%s is at %s now", m->name, host[0] ? host : "this machine");
        dirty(f, now_ns, f->o.settle_ms);
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
        event(f, "%s is here", m->name);
    return 0;
}

void nk_fleet_facts(nk_fleet *f, const char *id, const struct nk_plan_member *facts,
                    const char *why_not, uint64_t now_ns)
{
    struct member *m = find_present(f, id);

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
        event(f, "%s could not measure itself: %s", m->name, why_not);
    }
    m->seen_ns = now_ns;
    dirty(f, now_ns, f->o.settle_ms);
}

/* Is this another state than what it has told before? */
static bool gets_further(const struct member *m, const struct nk_holding *holdings, int n)
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
    struct member *m = find_present(f, id);

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

void nk_fleet_link(nk_fleet *f, const char *id, const char *peer, double rtt_ms, double bytes_per_s,
                   uint64_t now_ns)
{
    struct member *m = find_present(f, id);
    struct way *w = NULL;

    if (!m || !find_present(f, peer) || !(rtt_ms >= 0 && rtt_ms < 60000) ||
        !(bytes_per_s >= 0 && bytes_per_s < 1e12))
        return;
    for (int i = 0; i < m->n_ways && !w; i++)
        if (!strcmp(m->ways[i].peer, peer))
            w = &m->ways[i];
    if (!w) {
        /* The first ones go: they are of members that have left. */
        if (m->n_ways == NK_FLEET_PEERS_MAX)
            memmove(m->ways, m->ways + 1, (size_t)--m->n_ways * sizeof m->ways[0]);
        w = &m->ways[m->n_ways++];
        *w = (struct way){ .rtt_ms = -1 };
        snprintf(w->peer, sizeof w->peer, "%s", peer);
    }
    if (w->rtt_ms < 0 || differs(w->rtt_ms, rtt_ms) || differs(w->bytes_per_s, bytes_per_s))
        dirty(f, now_ns, f->o.settle_ms);
    w->rtt_ms = rtt_ms;
    w->bytes_per_s = bytes_per_s;
}

void nk_fleet_lost(nk_fleet *f, const char *id, uint64_t now_ns)
{
    struct member *m = find_present(f, id);

    (void)now_ns;
    if (m)
        m->connected = false;
}

void nk_fleet_leaving(nk_fleet *f, const char *id, uint64_t now_ns)
{
    struct member *m = find_present(f, id);

    if (!m || !m->attending || m->leaving)
        return;
    m->leaving = true;
    event(f, "%s leaves", m->name);
    dirty(f, now_ns, 0);
}

/* ---- what a plan needs ---- */

static void drop(struct target *t)
{
    nk_plan_free(t->plan);
    free(t->stage_epochs);
    *t = (struct target){ 0 };
}

static int n_stages(const struct nk_plan *p)
{
    int n = 0;

    for (int i = 0; i < p->n_chains; i++)
        n += p->chains[i].n_stages;
    return n;
}

/* The i-th stage of all of them, and its epoch. */
static const struct nk_plan_stage *stage_at(const struct target *t, int i, uint64_t *epoch)
{
    int k = i;

    *epoch = t->stage_epochs[i];
    for (int c = 0; c < t->plan->n_chains; k -= t->plan->chains[c++].n_stages)
        if (k < t->plan->chains[c].n_stages)
            return &t->plan->chains[c].stages[k];
    return NULL;
}

static const struct nk_holding *holding_of(const nk_fleet *f, const struct member *m,
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

/* The member of a stage, if it can be counted on. */
static struct member *stage_member(const nk_fleet *f, const struct nk_plan_stage *s)
{
    struct member *m = find_present(f, s->id);

    return m && m->attending ? m : NULL;
}

static bool stage_is_ready(const nk_fleet *f, uint64_t epoch, const struct nk_plan_stage *s)
{
    const struct member *m = stage_member(f, s);
    const struct nk_holding *h = m ? holding_of(f, m, epoch, s) : NULL;

    return h && h->state == NK_HOLDING_READY && h->port > 0;
}

/* first: of the chain's stages among all. */
static bool chain_is_ready(const nk_fleet *f, const struct target *t, int chain, int first)
{
    const struct nk_plan_chain *c = &t->plan->chains[chain];

    for (int i = 0; i < c->n_stages; i++)
        if (!stage_is_ready(f, t->stage_epochs[first + i], &c->stages[i]))
            return false;
    return true;
}

static bool target_is_ready(const nk_fleet *f, const struct target *t)
{
    int first = 0;

    for (int i = 0; i < t->plan->n_chains; first += t->plan->chains[i++].n_stages)
        if (!chain_is_ready(f, t, i, first))
            return false;
    return t->plan->n_chains > 0;
}

/* Can it be finished, or go on, with the machines that there are? */
static bool target_is_possible(const nk_fleet *f, const struct target *t)
{
    if (!t->epoch)
        return false;
    for (int i = 0; i < t->plan->n_chains; i++)
        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct member *m = stage_member(f, &t->plan->chains[i].stages[k]);

            if (!m || m->leaving || m->excluded_until)
                return false;
        }
    return true;
}

/* The member's stage in it. */
static const struct nk_plan_stage *stage_of(const struct target *t, const char *id, uint64_t *epoch)
{
    int n = t->epoch ? n_stages(t->plan) : 0;

    for (int i = 0; i < n; i++) {
        const struct nk_plan_stage *s = stage_at(t, i, epoch);

        if (!strcmp(s->id, id))
            return s;
    }
    return NULL;
}

/* What a worker with these layers takes. */
static uint64_t stage_bytes(const nk_fleet *f, const struct member *m,
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

/* Is there a machine that has not the memory for its part of both? */
static bool collide(const nk_fleet *f)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct member *m = f->members[i];
        uint64_t ea, eb;
        const struct nk_plan_stage *a = stage_of(&f->serving, m->id, &ea),
                                   *b = stage_of(&f->next, m->id, &eb);

        if (a && b && ea != eb &&
            stage_bytes(f, m, a) + stage_bytes(f, m, b) > m->facts.memory_bytes)
            return true;
    }
    return false;
}

/* ---- planning ---- */

/* Which epoch each stage's worker is of: that of the plan, or where the machine holds just these
 * layers already, ready, the one that it holds them for. NULL: no memory. */
static uint64_t *choose_epochs(const nk_fleet *f, struct nk_plan *plan, uint64_t epoch)
{
    int n = n_stages(plan);
    uint64_t *epochs = calloc((size_t)n + 1, sizeof *epochs);
    struct target t = { .epoch = epoch, .plan = plan, .stage_epochs = epochs };

    for (int i = 0; epochs && i < n; i++) {
        uint64_t now, held;
        const struct nk_plan_stage *s = stage_at(&t, i, &now), *old;

        epochs[i] = epoch;
        old = stage_of(&f->serving, s->id, &held);
        if (old && old->begin == s->begin && old->end == s->end && stage_is_ready(f, held, old))
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
        event(f, "the plan could not be put into the store, and is tried again: %s",
              epochs ? err.msg : "no memory");
        free(epochs);
        nk_plan_free(plan);
        dirty(f, now_ns, RETRY_MS);
        return;
    }
    drop(&f->next);
    f->epoch++;
    f->next = (struct target){
        .epoch = f->epoch, .plan = plan, .stage_epochs = epochs, .since_ns = now_ns
    };
    if (f->serving.epoch && collide(f))
        drop(&f->serving);
    text[0] = '\0';
    for (int i = 0; i < plan->n_chains; i++)
        for (int k = 0; k < plan->chains[i].n_stages && n < sizeof text; k++) {
            const struct nk_plan_stage *s = &plan->chains[i].stages[k];
            const struct member *m = find(f, s->id);

            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s %d-%d",
                                  n ? k ? " -> " : " | " : "", m ? m->name : s->id, s->begin,
                                  s->end);
        }
    if (plan->rates_known)
        event(f, "plan %llu: %s (predicted %.1f tokens/s for one stream)",
              (unsigned long long)f->epoch, text,
              plan->ms_per_token > 0 ? 1000 / plan->ms_per_token : 0.0);
    else
        event(f, "plan %llu: %s", (unsigned long long)f->epoch, text);
}

static bool can_be_planned(const struct member *m)
{
    return !m->removed && !m->gateway && m->attending && !m->leaving && m->has_facts &&
           !m->excluded_until;
}

/* Is somebody of it still measuring itself? It must not be planned without only for that. Until
 * when that is waited for; 0: nobody is. */
static uint64_t waits_for_facts(const nk_fleet *f, const struct target *t, uint64_t now_ns)
{
    uint64_t until = 0;

    for (int i = 0; t->epoch && i < t->plan->n_chains; i++)
        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct member *m = stage_member(f, &t->plan->chains[i].stages[k]);

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
            const struct way *w = &f->members[i]->ways[k];
            const struct member *peer = find_present(f, w->peer);
            struct nk_plan_link *l = &links[*n];

            if (!peer || !can_be_planned(peer))
                continue;
            /* The rate is of what comes from the peer. */
            snprintf(l->from, sizeof l->from, "%s", w->peer);
            snprintf(l->to, sizeof l->to, "%s", f->members[i]->id);
            l->rtt_ms = w->rtt_ms;
            l->bytes_per_s = w->bytes_per_s;
            ++*n;
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
            rc = no_memory(err);
        for (int k = 0; !rc && k < c->n_stages; k++) {
            const struct member *m = NULL;

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
static void take_predictions(struct target *t, const struct nk_plan *now)
{
    t->plan->ms_per_token = now->ms_per_token;
    t->plan->tokens_per_s = now->tokens_per_s;
    t->plan->ttft_ms = now->ttft_ms;
    t->plan->rates_known = now->rates_known;
    t->plan->kind = now->kind;
    for (int i = 0; i < n_stages(t->plan); i++) {
        uint64_t epoch;
        struct nk_plan_stage *s = (struct nk_plan_stage *)(uintptr_t)stage_at(t, i, &epoch);

        for (int c = 0; c < now->n_chains; c++)
            for (int k = 0; k < now->chains[c].n_stages; k++)
                if (!strcmp(now->chains[c].stages[k].id, s->id))
                    s->ms = now->chains[c].stages[k].ms;
    }
}

/* Why there is no machine to make a plan with. */
static void say_nobody(nk_fleet *f)
{
    const struct member *out = NULL;

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
            event(f, "%s", f->waiting);
            nk_plan_free(*plan);
            *plan = NULL;
        }
}

static void replan(nk_fleet *f, uint64_t now_ns)
{
    struct nk_plan_opts opts = f->o.plan;
    struct nk_plan_facts facts = { .model = f->o.model };
    struct nk_plan_member *members = calloc(f->n + 1, sizeof *members);
    struct target *in_force;
    struct nk_plan *plan = NULL, *by_hand = NULL;
    struct nk_plan_link *links;
    struct nk_error err;
    uint64_t until;
    int n = 0, rc = 0;

    f->dirty_since = f->plan_at = 0;
    if (!target_is_possible(f, &f->next))
        drop(&f->next); /* what serves is in force again, if it still can */
    in_force = f->next.epoch ? &f->next : &f->serving;
    until = target_is_possible(f, in_force) ? waits_for_facts(f, in_force, now_ns) : 0;
    if (until) {
        free(members);
        f->plan_at = until; /* they come, or why there are none: both make a plan due earlier */
        return;
    }
    if (!members) {
        dirty(f, now_ns, RETRY_MS);
        return;
    }
    for (size_t i = 0; i < f->n; i++)
        if (can_be_planned(f->members[i]))
            members[n++] = f->members[i]->facts;
    facts.members = members;
    facts.n_members = n;
    links = collect_links(f, &facts.n_links);
    facts.links = links;
    opts.in_force = target_is_possible(f, in_force) ? in_force->plan : NULL;
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
        event(f, "%s", f->waiting);
        if (rc == NK_E_EXHAUSTED)
            dirty(f, now_ns, RETRY_MS);
        return;
    }
    check_size(f, &plan);
    if (plan && plan->kind == NK_PLAN_DOES_NOT_FIT) {
        if (strcmp(f->waiting, plan->why) != 0)
            event(f, "%s", plan->why);
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

/* ---- what follows ---- */

static void leases(nk_fleet *f, uint64_t now_ns, uint64_t *wake)
{
    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];
        uint64_t end = m->seen_ns + MS(f->o.beat_ms) * f->o.beats_missed_max;

        if (end < f->lenient_until)
            end = f->lenient_until;
        if (m->excluded_until && m->excluded_until <= now_ns) {
            m->excluded_until = 0;
            dirty(f, now_ns, 0);
        }
        if (m->excluded_until && m->excluded_until < *wake)
            *wake = m->excluded_until;
        if (!m->attending)
            continue;
        if (end > now_ns && !(m->leaving && !m->connected)) {
            *wake = end < *wake ? end : *wake;
            continue;
        }
        event(f, m->leaving ? "%s is gone" : "%s is not heard of any more", m->name);
        away(f, m, now_ns, 0);
        if (f->o.gone)
            f->o.gone(f->o.user, m->id);
    }
}

/* It is planned without for a while, longer each time in a row: its turn can cost the others what
 * they serve with. */
static void leave_out(nk_fleet *f, struct member *m, uint64_t now_ns, const char *what,
                      const char *why)
{
    m->excluded_until = now_ns + (MS(EXCLUDED_MS) << m->n_excluded);
    snprintf(m->why_excluded, sizeof m->why_excluded, "%.255s", why);
    event(f, "%s %s and is left out for %d minutes: %s", m->name, what,
          (EXCLUDED_MS / 60000) << m->n_excluded, why);
    m->n_excluded += m->n_excluded < N_EXCLUDED_MAX;
    dirty(f, now_ns, 0);
}

void nk_fleet_unreachable(nk_fleet *f, const char *id, const char *why, uint64_t now_ns)
{
    struct member *m = find_present(f, id);

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
        struct member *m = f->members[i];

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
    for (int i = 0; f->next.epoch && i < n_stages(f->next.plan); i++) {
        uint64_t epoch, at;
        const struct nk_plan_stage *s = stage_at(&f->next, i, &epoch);
        struct member *m = stage_member(f, s);

        if (!m || m->excluded_until || stage_is_ready(f, epoch, s))
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
        event(f, "%s %s and is left out for five minutes", m->name, m->why_excluded);
        dirty(f, now_ns, 0);
    }
}

/* What was measured of a stage was perhaps of an hour in which the machine had other work. */
static void believe_again(nk_fleet *f, uint64_t now_ns, uint64_t *wake)
{
    for (size_t i = 0; i < f->n; i++) {
        struct member *m = f->members[i];
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
        dirty(f, now_ns, f->o.settle_ms);
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
        const struct member *m = f->members[i];
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

static void address_of(const nk_fleet *f, const struct member *m, int port, char out[256])
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
        const struct member *m = f->members[i];

        if (!m->removed && m->attending && m->pieces_port && strcmp(m->id, id) != 0)
            address_of(f, m, m->pieces_port, out[n++]);
    }
    return n;
}

int nk_fleet_peers(const nk_fleet *f, const char *id, struct nk_fleet_peer *out, int max)
{
    int n = 0;

    for (size_t i = 0; i < f->n && n < max; i++) {
        const struct member *m = f->members[i];

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
    const struct target *t = &f->serving;
    int n_max = t->epoch ? t->plan->n_chains : 0;

    if (n_max > NK_FLEET_CHAINS_MAX)
        n_max = NK_FLEET_CHAINS_MAX;
    d.chains = calloc((size_t)n_max + 1, sizeof *d.chains);
    if (!d.chains)
        return; /* tried again at the next step */
    for (int i = 0, first = 0; i < n_max; first += t->plan->chains[i++].n_stages) {
        const struct nk_plan_chain *c = &t->plan->chains[i];
        struct nk_deployed_chain *out = &d.chains[d.n_chains];

        if (c->n_stages > NK_FLEET_STAGES_MAX || !chain_is_ready(f, t, i, first))
            continue;
        for (int k = 0; k < c->n_stages; k++) {
            const struct nk_plan_stage *s = &c->stages[k];
            const struct member *m = stage_member(f, s);
            struct nk_deployed_stage *ds = &out->stages[out->n_stages++];

            strcpy(ds->member, m->id);
            strcpy(ds->name, m->name);
            ds->epoch = t->stage_epochs[first + k];
            address_of(f, m, holding_of(f, m, ds->epoch, s)->port, ds->address);
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
        const struct target *w = f->next.epoch ? &f->next : t;
        size_t n = 0;

        for (int i = 0; i < n_stages(w->plan); i++) {
            uint64_t epoch;
            const struct nk_plan_stage *s = stage_at(w, i, &epoch);
            const struct member *m = find(f, s->id);
            const struct nk_holding *h = m && m->attending ? holding_of(f, m, epoch, s) : NULL;

            if (stage_is_ready(f, epoch, s) || n >= sizeof d.waiting)
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

static void add_assignment(struct nk_want *w, const struct target *t, const char *id)
{
    uint64_t epoch;
    const struct nk_plan_stage *s = stage_of(t, id, &epoch);

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
        struct member *m = f->members[i];
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
    believe_again(f, now_ns, &wake);
    if (f->returning_until && f->returning_until <= now_ns) {
        f->returning_until = 0;
        dirty(f, now_ns, 0);
    }
    if (f->returning_until && f->returning_until < wake)
        wake = f->returning_until;
    if (f->plan_at && f->plan_at <= now_ns && !f->returning_until)
        replan(f, now_ns);
    if (f->next.epoch && target_is_ready(f, &f->next)) {
        drop(&f->serving);
        f->serving = f->next;
        f->serving.ready = true;
        f->measured_ms = 0;
        f->far_off_said = false;
        f->next = (struct target){ 0 };
        event(f, "plan %llu is in force", (unsigned long long)f->serving.epoch);
        dirty(f, now_ns, f->o.settle_ms); /* was something better put off? */
    }
    if (f->serving.epoch && target_is_possible(f, &f->serving))
        f->returning_until = 0;
    /* What has lost a machine is no chain any more; of replicas the others go on until the next
     * plan is ready. */
    if (!f->returning_until && f->serving.epoch && !f->next.epoch &&
        !target_is_possible(f, &f->serving) && f->serving.plan->n_chains == 1)
        drop(&f->serving);
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

/* ---- for people ---- */

/* What it has in the plan that serves, else in the next one. */
static const struct nk_holding *main_holding(const nk_fleet *f, const struct member *m)
{
    const struct target *t[] = { &f->serving, &f->next };

    for (int i = 0; i < 2; i++) {
        uint64_t epoch;
        const struct nk_plan_stage *s = stage_of(t[i], m->id, &epoch);
        const struct nk_holding *h = s ? holding_of(f, m, epoch, s) : NULL;

        if (h)
            return h;
    }
    return m->n_holdings ? &m->holdings[0] : NULL;
}

static const char *state_text(const nk_fleet *f, const struct member *m)
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
        return stage_of(&f->serving, m->id, &epoch) ? "serving" : "ready";
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

static json_t *member_json(const nk_fleet *f, const struct member *m, uint64_t now_ns)
{
    const struct nk_holding *h = main_holding(f, m);
    json_t *j = json_object(), *holdings = json_array(), *o;
    char doing[96] = "";
    uint64_t epoch;
    const struct nk_plan_stage *s = stage_of(&f->serving, m->id, &epoch);

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

static bool is_far(double ms, double predicted)
{
    return predicted > 0 && ms > 0 && (ms > FAR_OFF * predicted || ms < predicted / FAR_OFF);
}

void nk_fleet_stage_measured(nk_fleet *f, const char *name, int layer_begin, int layer_end,
                             double ms, uint64_t now_ns)
{
    struct member *m = NULL;
    const struct nk_plan_stage *s;
    uint64_t epoch;

    for (size_t i = 0; !m && i < f->n; i++)
        if (!f->members[i]->removed && !strcmp(f->members[i]->name, name))
            m = f->members[i];
    s = m && m->has_facts ? stage_of(&f->serving, m->id, &epoch) : NULL;
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
    event(f, "%s takes %.1f ms for a token with layers %d-%d, not %.1f: that is planned with",
          m->name, ms, s->begin, s->end, s->ms);
    m->far_since = 0;
    m->stage_ns = now_ns;
    m->facts.stage_layers = s->end - s->begin;
    m->facts.stage_rows = 1;
    m->facts.stage_last = s->end == f->o.model->n_layer;
    m->facts.stage_ms = ms;
    dirty(f, now_ns, f->o.settle_ms);
}

/* Is what serves much slower, or much faster, than it was predicted to be? */
static bool is_far_off(const nk_fleet *f)
{
    double predicted =
        f->serving.epoch && f->serving.plan->rates_known ? f->serving.plan->ms_per_token : 0;

    return is_far(f->measured_ms, predicted);
}

static json_t *target_json(const nk_fleet *f, const struct target *t)
{
    json_t *chains = json_array(), *all = json_array(), *j;
    double ms = t->plan->ms_per_token;

    for (int i = 0; i < t->plan->n_chains; i++) {
        json_t *ids = json_array(), *stages = json_array();

        for (int k = 0; k < t->plan->chains[i].n_stages; k++) {
            const struct nk_plan_stage *s = &t->plan->chains[i].stages[k];
            const struct member *m = find(f, s->id);

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
    if (t == &f->serving && is_far_off(f)) {
        char text[160];

        snprintf(text, sizeof text, "one stream gets %.2f of the tokens/s that were predicted",
                 ms / f->measured_ms);
        json_object_set_new(j, "warning", json_string(text));
    }
    return j;
}

void nk_fleet_measured(nk_fleet *f, double ms_per_token)
{
    f->measured_ms = ms_per_token;
    if (!is_far_off(f) || f->far_off_said)
        return;
    f->far_off_said = true;
    event(f, "plan %llu gives one stream %.1f tokens/s; %.1f were predicted",
          (unsigned long long)f->serving.epoch, 1000 / ms_per_token,
          1000 / f->serving.plan->ms_per_token);
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
        const struct member *m = find(f, p->spares[i].id);

        json_array_append_new(spares,
                              json_pack("{s:s,s:s,s:s}", "id", p->spares[i].id, "name",
                                        m ? m->name : p->spares[i].id, "reason", p->spares[i].why));
    }
    for (size_t i = 0; i < f->n; i++)
        for (int k = 0;
             !f->members[i]->removed && f->members[i]->attending && k < f->members[i]->n_ways;
             k++) {
            const struct way *w = &f->members[i]->ways[k];

            if (find_present(f, w->peer))
                json_array_append_new(links, json_pack("{s:s,s:s,s:f,s:f}", "a", f->members[i]->id,
                                                       "b", w->peer, "rtt_ms", w->rtt_ms, "rate",
                                                       w->bytes_per_s));
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

/* ---- life ---- */

static int load(nk_fleet *f, uint64_t now_ns, struct nk_error *err)
{
    struct nk_member_record *records = NULL;
    size_t n = 0;
    int rc = nk_record_members(f->o.store, &records, &n, &f->roster_revision, err);

    for (size_t i = 0; !rc && i < n; i++) {
        struct member *m;

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
        return no_memory(err);
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
    drop(&f->serving);
    drop(&f->next);
    nk_plan_free(f->considered);
    nk_buf_release(&f->deployed);
    free(f);
}
