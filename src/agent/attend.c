/* The call to the coordinator. Everything here is on the net thread, but for what others ask of it
 * (the last section), which is posted to it. */
#include "agent/agent_int.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/reach.h"

enum {
    PAUSE_MS = 1000, /* when all addresses were tried; doubled each time */
    /* A call that was ended sooner than this after Welcome counts as one in vain: a coordinator
     * that welcomes and hangs up is not called without a pause. */
    GOOD_MS = 10000,
    UNSURE_ROUNDS = 2, /* all addresses in vain: why is asked at the enrolment endpoint */
    BEAT_MS = 2000,    /* until Welcome says it */
};

struct nk__attend {
    nk_agent *a;
    nk_channel *channel;
    nk_call *call;   /* NULL: none; a referenced handle */
    nk_timer *timer; /* Welcome is late, or the pause is over */
    nk_timer *beat;
    uint64_t boot;
    int next;   /* the address that comes next */
    int tried;  /* of this round */
    int rounds; /* in vain, in a row */
    uint32_t pause_ms, beat_ms;
    uint64_t welcome_ns; /* when it came */
    bool welcome;        /* it attends */
    bool stopping;
    bool changed_posted;
    char address[256]; /* under the agent's mutex: HOST:PORT, once Welcome has come */
    char trying[256], host[64];
    char last_error[256];
    uint64_t facts_sent; /* to this call: their number */
    bool leaving_sent;
};

static void try_next(struct nk__attend *t);
static void wait_a_while(struct nk__attend *t);

static void tell(struct nk__attend *t, Nakshatra__V1__MemberMessage *m)
{
    struct nk_error err;

    if (t->call && nk_call_send_pb(t->call, &m->base, &err))
        nk_call_cancel(t->call);
}

static void send_attending(struct nk__attend *t)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Attending at = NAKSHATRA__V1__ATTENDING__INIT;
    char name[NK_MEMBER_NAME_SIZE];

    pthread_mutex_lock(&t->a->mutex);
    strcpy(name, t->a->joined.name);
    pthread_mutex_unlock(&t->a->mutex);
    at.protocol = 1;
    at.version = (char *)(uintptr_t)NK_VERSION;
    at.name = name;
    at.boot = t->boot;
    at.reached = t->host;
    at.pieces_port = (uint32_t)nk_server_port(t->a->server);
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_ATTENDING;
    m.attending = &at;
    tell(t, &m);
}

static void send_beat(struct nk__attend *t)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Beat b = NAKSHATRA__V1__BEAT__INIT;
    Nakshatra__V1__Holding holdings[NK__ASSIGNMENTS_MAX], *list[NK__ASSIGNMENTS_MAX];
    char errors[NK__ASSIGNMENTS_MAX][256];
    const struct nk__hold *h;
    int n = 0;

    pthread_mutex_lock(&t->a->mutex);
    LIST_FOREACH(h, &t->a->holds, link)
    {
        Nakshatra__V1__Holding *o = &holdings[n];

        if (atomic_load(&h->stopping) || n == NK__ASSIGNMENTS_MAX)
            continue;
        nakshatra__v1__holding__init(o);
        o->epoch = h->assignment.epoch;
        o->catalogue = (char *)(uintptr_t)nk_catalogue_id(h->catalogue);
        o->layer_begin = (uint32_t)h->assignment.layer_begin;
        o->layer_end = (uint32_t)h->assignment.layer_end;
        o->state = (Nakshatra__V1__HoldingState)h->state;
        o->port = (uint32_t)h->port;
        o->bytes_done = h->progress.bytes_done;
        o->bytes_total = h->progress.bytes_total;
        o->bytes_per_s = h->progress.rate_bps;
        o->failures = (uint32_t)h->failures;
        snprintf(errors[n], sizeof errors[n], "%s",
                 h->error[0] ? h->error : h->progress.last_error);
        o->error = errors[n];
        list[n] = o;
        n++;
    }
    b.n_holdings = (size_t)n;
    b.holdings = list;
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_BEAT;
    m.beat = &b;
    tell(t, &m);
    pthread_mutex_unlock(&t->a->mutex);
}

/* Facts, if there are some that this call has not had. */
static void send_facts(struct nk__attend *t)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Facts f = NAKSHATRA__V1__FACTS__INIT;
    nk_agent *a = t->a;

    pthread_mutex_lock(&a->mutex);
    if (a->facts_of[0] && a->facts_number != t->facts_sent) {
        t->facts_sent = a->facts_number;
        f.catalogue = a->facts_of;
        f.json = a->facts ? a->facts : (char *)(uintptr_t) "";
        f.error = a->facts_error;
        m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_FACTS;
        m.facts = &f;
        tell(t, &m);
    }
    pthread_mutex_unlock(&a->mutex);
}

/* The ways, if they have changed, or this call has not had them (again). */
static void send_links(struct nk__attend *t, bool again)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Links l = NAKSHATRA__V1__LINKS__INIT;
    Nakshatra__V1__Link links[NK_FLEET_PEERS_MAX], *list[NK_FLEET_PEERS_MAX];
    nk_agent *a = t->a;

    pthread_mutex_lock(&a->mutex);
    if (a->n_ways && (a->ways_changed || again)) {
        for (int i = 0; i < a->n_ways; i++) {
            Nakshatra__V1__Link *way = &links[l.n_links];

            if (a->ways[i].n_failed && !a->ways[i].no_way[0] && !a->ways[i].link.rtt_ms)
                continue; /* not known yet */
            nakshatra__v1__link__init(way);
            way->peer = a->ways[i].peer;
            way->rtt_ms = a->ways[i].link.rtt_ms;
            way->bytes_per_s = a->ways[i].link.bytes_per_s;
            way->no_way = a->ways[i].no_way;
            list[l.n_links++] = way;
        }
        l.links = list;
        m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_LINKS;
        m.links = &l;
        a->ways_changed = false;
        tell(t, &m);
    }
    pthread_mutex_unlock(&a->mutex);
}

static void send_leaving(struct nk__attend *t)
{
    Nakshatra__V1__MemberMessage m = NAKSHATRA__V1__MEMBER_MESSAGE__INIT;
    Nakshatra__V1__Leaving l = NAKSHATRA__V1__LEAVING__INIT;
    bool leaving;

    pthread_mutex_lock(&t->a->mutex);
    leaving = t->a->leaving;
    pthread_mutex_unlock(&t->a->mutex);
    if (!leaving || t->leaving_sent)
        return;
    t->leaving_sent = true;
    m.kind_case = NAKSHATRA__V1__MEMBER_MESSAGE__KIND_LEAVING;
    m.leaving = &l;
    tell(t, &m);
}

static void on_beat(void *arg)
{
    struct nk__attend *t = arg;

    t->beat = nk_timer_start(t->a->net, t->beat_ms, on_beat, t);
    send_beat(t);
}

/* ---- what the coordinator says ---- */

static void on_welcome(struct nk__attend *t, const Nakshatra__V1__Welcome *w)
{
    struct nk_joined joined;
    struct nk_error err;
    bool changed = false;

    if (t->welcome)
        return;
    nk_timer_cancel(t->timer);
    t->timer = NULL;
    t->welcome = true;
    t->rounds = 0;
    t->welcome_ns = nk_clock_now_ns(t->a->o.clock);
    t->last_error[0] = '\0';
    t->beat_ms = w->beat_ms >= 100 && w->beat_ms <= 60000 ? w->beat_ms : BEAT_MS;
    pthread_mutex_lock(&t->a->mutex);
    t->a->attending = true;
    strcpy(t->address, t->trying);
    /* The one that answered comes first the next time, too. */
    for (int i = 1; i < t->a->joined.n_addresses; i++)
        if (!strcmp(t->a->joined.addresses[i], t->host)) {
            char first[sizeof t->a->joined.addresses[0]];

            strcpy(first, t->a->joined.addresses[0]);
            strcpy(t->a->joined.addresses[0], t->a->joined.addresses[i]);
            strcpy(t->a->joined.addresses[i], first);
            changed = true;
        }
    joined = t->a->joined;
    pthread_mutex_unlock(&t->a->mutex);
    if (changed && nk_joined_write(t->a->joined_path, &joined, &err))
        nk_log(NK_LOG_AGENT, NK_LOG_WARN, "msg=\"%s\"", err.msg);
    nk__agent_say(t->a, "attends at %s", t->trying);
    nk__agent_wake(t->a);
    send_beat(t);
    send_facts(t);
    send_links(t, true);
    send_leaving(t);
    t->beat = nk_timer_start(t->a->net, t->beat_ms, on_beat, t);
}

static bool copy_text(char *out, size_t size, const char *in)
{
    if (strlen(in) >= size)
        return false;
    strcpy(out, in);
    return true;
}

static int read_want(const Nakshatra__V1__Want *m, struct nk__wanted *w, struct nk_error *err)
{
    *w = (struct nk__wanted){ .n_ctx = (int)(m->n_ctx & 0x3fffffff),
                              .n_seq_max = (int)(m->n_seq_max & 0xffff),
                              .deterministic = m->deterministic,
                              .no_flash_attn = m->no_flash_attn };
    if (strlen(m->catalogue) != 64 || strspn(m->catalogue, "0123456789abcdef") != 64 ||
        !copy_text(w->catalogue, sizeof w->catalogue, m->catalogue) ||
        !copy_text(w->cache_type_k, sizeof w->cache_type_k, m->cache_type_k) ||
        !copy_text(w->cache_type_v, sizeof w->cache_type_v, m->cache_type_v) ||
        m->n_assignments > NK__ASSIGNMENTS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_message", "the coordinator wants what there is not");
    for (size_t i = 0; i < m->n_peers && w->n_peers < NK_FLEET_PEERS_MAX; i++)
        if (nk_member_id_is(m->peers[i]->id) && !nk_address_check(m->peers[i]->address, 1, err) &&
            copy_text(w->peers[w->n_peers].address, sizeof w->peers[0].address,
                      m->peers[i]->address))
            strcpy(w->peers[w->n_peers++].id, m->peers[i]->id);
    for (size_t i = 0; i < m->n_assignments; i++) {
        const Nakshatra__V1__Assignment *as = m->assignments[i];

        if (as->layer_begin >= as->layer_end || as->layer_end > NK_PLAN_LAYERS_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_message",
                           "the coordinator wants layers %u-%u, which there cannot be",
                           as->layer_begin, as->layer_end);
        w->assignments[w->n_assignments++] =
            (struct nk__assignment){ as->epoch, (int)as->layer_begin, (int)as->layer_end };
        for (size_t k = 0; i == 0 && k < as->n_sources && w->n_sources < NK__SOURCES_MAX; k++)
            if (!nk_address_check(as->sources[k], 1, err) &&
                copy_text(w->sources[w->n_sources], sizeof w->sources[0], as->sources[k]))
                w->n_sources++;
    }
    return 0;
}

/* What joined.json may hold: with anything else in it, it could not be read again. */
static bool is_ip_address(const char *text)
{
    unsigned char bytes[16];

    return strlen(text) < sizeof((struct nk_joined *)0)->addresses[0] &&
           (inet_pton(AF_INET, text, bytes) == 1 || inet_pton(AF_INET6, text, bytes) == 1);
}

/* The addresses by which the coordinator can be found from now on. */
static void take_addresses(nk_agent *a, const Nakshatra__V1__Want *m)
{
    struct nk_joined j;
    struct nk_error err;
    bool changed;

    pthread_mutex_lock(&a->mutex);
    j = a->joined;
    for (size_t i = 0; i < m->n_addresses; i++) {
        bool known = false;

        for (int k = 0; k < j.n_addresses; k++)
            known |= !strcmp(j.addresses[k], m->addresses[i]);
        if (known || !is_ip_address(m->addresses[i]))
            continue;
        if (j.n_addresses == NK_TOKEN_ADDRESSES_MAX)
            j.n_addresses--; /* the one that has been of no use for longest */
        memmove(j.addresses[2], j.addresses[1],
                (size_t)(j.n_addresses > 1 ? j.n_addresses - 1 : 0) * sizeof j.addresses[0]);
        strcpy(j.addresses[j.n_addresses ? 1 : 0], m->addresses[i]);
        j.n_addresses++;
    }
    changed = memcmp(&j, &a->joined, sizeof j) != 0;
    a->joined = j;
    pthread_mutex_unlock(&a->mutex);
    if (changed && nk_joined_write(a->joined_path, &j, &err))
        nk_log(NK_LOG_AGENT, NK_LOG_WARN, "msg=\"%s\"", err.msg);
}

static void on_want(struct nk__attend *t, const Nakshatra__V1__Want *m)
{
    struct nk__wanted w;
    struct nk_error err;

    if (read_want(m, &w, &err)) {
        nk_call_cancel(t->call);
        return;
    }
    take_addresses(t->a, m);
    pthread_mutex_lock(&t->a->mutex);
    t->a->wanted = w;
    pthread_cond_broadcast(&t->a->cond);
    pthread_mutex_unlock(&t->a->mutex);
    nk__agent_wake(t->a);
}

static void on_roster(struct nk__attend *t, const Nakshatra__V1__RosterText *m)
{
    struct nk_roster r;
    struct nk_error err;
    int rc = nk_roster_parse(&r, (struct nk_bytes){ m->text.data, m->text.len }, &err);

    if (!rc) {
        rc = nk__agent_roster_write(t->a, &r, false, &err);
        nk_roster_release(&r);
    }
    if (rc)
        nk_log(NK_LOG_AGENT, NK_LOG_WARN, "msg=\"the roster could not be kept: %s\"", err.msg);
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__attend *t = user;
    Nakshatra__V1__CoordinatorMessage *m;

    /* Another member may sit at that address by now: it is no coordinator by being a member. */
    if (nk_call_role(c) != NK_ROLE_GATEWAY) {
        nk_log(NK_LOG_AGENT, NK_LOG_WARN,
               "address=%s member=%s msg=\"who answers here is not the cluster's coordinator\"",
               t->trying, nk_call_identity(c));
        nk_call_cancel(c);
        return;
    }
    m = nakshatra__v1__coordinator_message__unpack(NULL, msg.size, msg.data);
    if (!m) {
        nk_call_cancel(c);
        return;
    }
    switch (m->kind_case) {
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WELCOME:
        on_welcome(t, m->welcome);
        break;
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WANT:
        on_want(t, m->want);
        break;
    case NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_ROSTER:
        on_roster(t, m->roster);
        break;
    default: /* of a newer coordinator */
        break;
    }
    nakshatra__v1__coordinator_message__free_unpacked(m, NULL);
}

/* ---- the call ---- */

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct nk__attend *t = user;
    struct nk_error why;

    (void)c;
    nk_timer_cancel(t->timer);
    nk_timer_cancel(t->beat);
    t->timer = t->beat = NULL;
    t->call = NULL;
    if (t->channel)
        nk_channel_close(t->channel);
    t->channel = NULL;
    pthread_mutex_lock(&t->a->mutex);
    t->a->attending = false;
    pthread_mutex_unlock(&t->a->mutex);
    if (t->stopping)
        return;
    if (status && !strcmp(status->reason, "removed")) {
        nk_fail(&why, NK_E_DENIED, "removed",
                "this machine was removed from the cluster; to come back it needs a new join line");
        nk__agent_fail(t->a, &why);
        return;
    }
    if (t->welcome) {
        bool good = nk_clock_now_ns(t->a->o.clock) - t->welcome_ns >= (uint64_t)GOOD_MS * 1000000;

        t->welcome = false;
        t->tried = 0;
        t->next = 0;
        if (good)
            t->pause_ms = PAUSE_MS;
        else
            wait_a_while(t);
        nk__agent_say(t->a, "lost the coordinator (%s); looking for it",
                      status ? status->msg : "it ended the call");
        if (!good)
            return;
    } else {
        snprintf(t->last_error, sizeof t->last_error, "%.60s: %.180s", t->trying,
                 status ? status->msg : "it ended the call");
    }
    try_next(t);
}

static void on_late(void *arg)
{
    struct nk__attend *t = arg;

    t->timer = NULL;
    if (t->call)
        nk_call_cancel(t->call);
}

static void on_pause(void *arg)
{
    struct nk__attend *t = arg;

    t->timer = NULL;
    try_next(t);
}

static void wait_a_while(struct nk__attend *t)
{
    t->timer = nk_timer_start(t->a->net, t->pause_ms, on_pause, t);
    t->pause_ms =
        t->pause_ms * 2 < NK_ATTEND_PAUSE_MAX_MS ? t->pause_ms * 2 : NK_ATTEND_PAUSE_MAX_MS;
}

static void pause_now(struct nk__attend *t)
{
    t->tried = 0;
    t->rounds++;
    wait_a_while(t);
    /* Once for each kind of failure, and then once in a while. */
    if (t->rounds == 1 || t->rounds % 20 == 0)
        nk__agent_say(t->a, "the coordinator is not reached (%s); trying on", t->last_error);
    if (t->rounds >= UNSURE_ROUNDS) {
        pthread_mutex_lock(&t->a->mutex);
        t->a->unsure = true;
        pthread_mutex_unlock(&t->a->mutex);
        nk__agent_wake(t->a);
    }
}

static void try_next(struct nk__attend *t)
{
    static const struct nk_call_handlers handlers = { .message = on_message, .end = on_end };
    struct nk_error err;
    int n, port, rc;

    if (t->stopping)
        return;
    pthread_mutex_lock(&t->a->mutex);
    n = t->a->joined.n_addresses;
    port = t->a->joined.port;
    if (t->next >= n)
        t->next = 0;
    if (n)
        strcpy(t->host, t->a->joined.addresses[t->next]);
    pthread_mutex_unlock(&t->a->mutex);
    if (t->tried >= n) {
        pause_now(t);
        return;
    }
    t->tried++;
    t->next++;
    nk_reach_format(t->trying, sizeof t->trying, t->host, port);
    t->facts_sent = 0;
    t->leaving_sent = false;
    rc = nk_channel_open(&t->channel, t->a->net, t->trying, &t->a->credentials, &err);
    if (!rc)
        rc = nk_call_start(&t->call, t->channel, "/nakshatra.v1.Cluster/Attend", 0, &handlers, t,
                           &err);
    if (rc) {
        snprintf(t->last_error, sizeof t->last_error, "%.60s: %.180s", t->trying, err.msg);
        if (t->channel)
            nk_channel_close(t->channel);
        t->channel = NULL;
        t->call = NULL;
        pause_now(t);
        return;
    }
    t->timer = nk_timer_start(t->a->net, NK_ATTEND_WELCOME_MS, on_late, t);
    send_attending(t);
}

/* ---- from other threads ---- */

static void posted_start(void *arg)
{
    try_next(arg);
}

int nk__attend_start(nk_agent *a, struct nk_error *err)
{
    struct nk__attend *t = calloc(1, sizeof *t);
    int rc;

    if (!t)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    t->a = a;
    t->pause_ms = PAUSE_MS;
    t->beat_ms = BEAT_MS;
    rc = nk_chance_fill(a->o.chance, &t->boot, sizeof t->boot, err);
    if (rc) {
        free(t);
        return rc;
    }
    a->attend = t;
    nk_net_post(a->net, posted_start, t);
    return 0;
}

static void posted_changed(void *arg)
{
    struct nk__attend *t = arg;

    pthread_mutex_lock(&t->a->mutex);
    t->changed_posted = false;
    pthread_mutex_unlock(&t->a->mutex);
    if (!t->welcome || t->stopping)
        return;
    send_beat(t);
    send_facts(t);
    send_links(t, false);
    send_leaving(t);
}

void nk__attend_changed(nk_agent *a)
{
    struct nk__attend *t = a->attend;
    bool post;

    if (!t)
        return;
    pthread_mutex_lock(&a->mutex);
    post = !t->changed_posted;
    t->changed_posted = true;
    pthread_mutex_unlock(&a->mutex);
    if (post)
        nk_net_post(a->net, posted_changed, t);
}

void nk__attend_address(nk_agent *a, char out[256])
{
    pthread_mutex_lock(&a->mutex);
    strcpy(out, a->attend ? a->attend->address : "");
    pthread_mutex_unlock(&a->mutex);
}

struct ending {
    struct nk__attend *t;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
};

static void posted_stop(void *arg)
{
    struct ending *e = arg;
    struct nk__attend *t = e->t;

    t->stopping = true;
    nk_timer_cancel(t->timer);
    nk_timer_cancel(t->beat);
    t->timer = t->beat = NULL;
    if (t->call)
        nk_call_cancel(t->call);
    pthread_mutex_lock(&e->mutex);
    e->done = true;
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->mutex);
}

void nk__attend_stop(nk_agent *a)
{
    struct ending e = { .t = a->attend };

    if (!a->attend)
        return;
    pthread_mutex_init(&e.mutex, NULL);
    pthread_cond_init(&e.cond, NULL);
    nk_net_post(a->net, posted_stop, &e);
    pthread_mutex_lock(&e.mutex);
    while (!e.done)
        pthread_cond_wait(&e.cond, &e.mutex);
    pthread_mutex_unlock(&e.mutex);
    pthread_cond_destroy(&e.cond);
    pthread_mutex_destroy(&e.mutex);
    /* t is freed by nk_agent_run when the net has stopped: a cancelled call's end comes yet. */
}
