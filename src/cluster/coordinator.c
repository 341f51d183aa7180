#include "cluster/coordinator.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/log.h"
#include "base/visible.h"
#include "cluster/facts.h"
#include "cluster/identity.h"
#include "rpc/arena.h"
#include "rpc/proto.h"
#include "rpc/unary.h"

enum {
    REQUEST_MS = 10000, /* a call that has begun says what it wants within this */
    HOLDINGS_READ_MAX = NK_FLEET_HOLDINGS_MAX,
    STATUS_BYTES_MAX = 16 << 20,
    TOKEN_TTL_S = 3600,
    /* A member has one call; others of its are dead ones that nobody has noticed yet. */
    CALLS_OF_ONE_MAX = 4,
    /* Of one call: an honest member sends a fact for each model, and a beat every two seconds and
     * whenever a worker changes. One that sends more would keep this thread busy for itself. */
    MESSAGES_MAX = 256, /* in each WINDOW_MS */
    WINDOW_MS = 10000,
    FACTS_MAX = 64,
    /* Of a member's message, which is mostly a measurement (1 MiB at most), and of what it becomes
     * when it is unpacked: empty submessages of two bytes each become a hundred each. */
    MESSAGE_BYTES_MAX = (1 << 20) + (64 << 10),
    UNPACKED_BYTES_MAX = 4 << 20,
};

/* A member's call. */
struct attendee {
    nk_coordinator *c;
    nk_call *call;
    nk_timer *timer; /* until it has said Attending */
    char id[NK_MEMBER_ID_SIZE];
    uint64_t boot;
    bool attends;
    /* It is the member's no more: that has another call, or its lease is over. */
    bool overtaken;
    uint64_t window_ns; /* when it began to count messages */
    int n_messages, n_facts;
    LIST_ENTRY(attendee) link;
};

struct nk_coordinator {
    struct nk_coordinator_opts o;
    nk_fleet *fleet;
    char addresses[NK_COORDINATOR_ADDRESSES_MAX][46]; /* as they are now */
    int n_addresses;
    LIST_HEAD(, attendee) attendees;
    nk_timer *timer; /* nk_fleet_step's */
    bool step_posted, stopping;
    uint64_t roster_told;   /* the revision that all were told of */
    bool roster_due;        /* it could not be written, and is again at the next step */
    nk_arena *arena;        /* what members send is unpacked into it */
    pthread_mutex_t mutex;  /* of what follows; held for copies only */
    struct nk_buf snapshot; /* the state as JSON, for whoever must not wait for this thread */
    uint64_t asked_ns, snapshot_ns;
};

/* ---- on the net thread, from others ---- */

struct errand {
    nk_coordinator *c;
    int (*run)(nk_coordinator *c, void *arg, struct nk_error *err);
    void *arg;
    struct nk_error *err;
    int rc;
    pthread_mutex_t mutex;
    pthread_cond_t done_cond;
    bool done;
};

static void run_errand(void *arg)
{
    struct errand *e = arg;
    int rc = e->run(e->c, e->arg, e->err);

    pthread_mutex_lock(&e->mutex);
    e->rc = rc;
    e->done = true;
    pthread_cond_signal(&e->done_cond);
    pthread_mutex_unlock(&e->mutex);
}

static int on_net(nk_coordinator *c, int (*run)(nk_coordinator *c, void *arg, struct nk_error *err),
                  void *arg, struct nk_error *err)
{
    struct errand e = { .c = c, .run = run, .arg = arg, .err = err };

    if (nk_net_is_current(c->o.net))
        return run(c, arg, err);
    pthread_mutex_init(&e.mutex, NULL);
    pthread_cond_init(&e.done_cond, NULL);
    nk_net_post(c->o.net, run_errand, &e);
    pthread_mutex_lock(&e.mutex);
    while (!e.done)
        pthread_cond_wait(&e.done_cond, &e.mutex);
    pthread_mutex_unlock(&e.mutex);
    pthread_cond_destroy(&e.done_cond);
    pthread_mutex_destroy(&e.mutex);
    return e.rc;
}

/* ---- steps of the fleet ---- */

static void step(nk_coordinator *c);

static void on_timer(void *arg)
{
    nk_coordinator *c = arg;

    c->timer = NULL;
    step(c);
}

static int status_text(nk_coordinator *c, void *arg, struct nk_error *err);

/* A new snapshot, twice a second at most while somebody asks for them, else now and then. */
static void take_snapshot(nk_coordinator *c, uint64_t now)
{
    enum { EVERY_MS = 500, IDLE_MS = 2000, ASKED_MS = 30000 };
    struct nk_buf text = NK_BUF_INIT(STATUS_BYTES_MAX);
    struct nk_error err;
    uint64_t ms;
    bool due;

    pthread_mutex_lock(&c->mutex);
    ms = now - c->asked_ns < ASKED_MS * UINT64_C(1000000) ? EVERY_MS : IDLE_MS;
    due = !c->snapshot_ns || now - c->snapshot_ns >= ms * 1000000;
    pthread_mutex_unlock(&c->mutex);
    if (!due || status_text(c, &text, &err)) {
        nk_buf_release(&text);
        return;
    }
    pthread_mutex_lock(&c->mutex);
    nk_buf_release(&c->snapshot);
    c->snapshot = text;
    c->snapshot_ns = now;
    pthread_mutex_unlock(&c->mutex);
}

static int publish_roster(nk_coordinator *c, struct nk_error *err);

static void step(nk_coordinator *c)
{
    struct nk_error err;
    uint64_t now = nk_clock_now_ns(c->o.clock), next = nk_fleet_step(c->fleet, now);
    uint64_t ms = next > now ? (next - now + 999999) / 1000000 : 1;

    if (c->roster_due)
        (void)publish_roster(c, &err); /* that it fails was said the first time */
    take_snapshot(c, now);
    if (ms > c->o.beat_ms)
        ms = c->o.beat_ms; /* the snapshot's sake */

    nk_timer_cancel(c->timer);
    c->timer = nk_timer_start(c->o.net, (uint32_t)ms, on_timer, c);
}

static void posted_step(void *arg)
{
    nk_coordinator *c = arg;

    c->step_posted = false;
    if (!c->stopping)
        step(c);
}

/* After something was told to the fleet: what follows is done once for all that came together. */
static void step_soon(nk_coordinator *c)
{
    if (c->step_posted)
        return;
    c->step_posted = true;
    nk_net_post(c->o.net, posted_step, c);
}

/* ---- what members are told ---- */

static void tell(struct attendee *a, Nakshatra__V1__CoordinatorMessage *m)
{
    struct nk_error err;

    /* A member that does not read what it is told ends with its call, and is told all at its next.
     * (A status would wait behind what it does not read.) */
    if (nk_call_send_pb(a->call, &m->base, &err))
        nk_call_cancel(a->call);
}

static struct attendee *attendee_of(nk_coordinator *c, const char *id)
{
    struct attendee *a;

    LIST_FOREACH(a, &c->attendees, link)
    if (a->attends && !a->overtaken && !strcmp(a->id, id))
        return a;
    return NULL;
}

static void want(void *user, const char *id, const struct nk_want *w)
{
    nk_coordinator *c = user;
    struct attendee *a = attendee_of(c, id);
    Nakshatra__V1__CoordinatorMessage m = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__Want pw = NAKSHATRA__V1__WANT__INIT;
    Nakshatra__V1__Assignment pa[NK_FLEET_HOLDINGS_MAX], *list[NK_FLEET_HOLDINGS_MAX];
    enum { SOURCES_MAX = 16 };
    char sources[SOURCES_MAX][256], *source_list[SOURCES_MAX];
    char *addresses[NK_COORDINATOR_ADDRESSES_MAX];
    struct nk_fleet_peer peers[NK_FLEET_PEERS_MAX];
    Nakshatra__V1__Peer pp[NK_FLEET_PEERS_MAX], *peer_list[NK_FLEET_PEERS_MAX];
    int n_sources, n_peers;

    if (!a)
        return;
    n_sources = nk_fleet_sources(c->fleet, id, sources, SOURCES_MAX);
    for (int i = 0; i < n_sources; i++)
        source_list[i] = sources[i];
    for (int i = 0; i < w->n_assignments; i++) {
        nakshatra__v1__assignment__init(&pa[i]);
        pa[i].epoch = w->assignments[i].epoch;
        pa[i].layer_begin = (uint32_t)w->assignments[i].layer_begin;
        pa[i].layer_end = (uint32_t)w->assignments[i].layer_end;
        pa[i].n_sources = (size_t)n_sources;
        pa[i].sources = source_list;
        list[i] = &pa[i];
    }
    n_peers = nk_fleet_peers(c->fleet, id, peers, NK_FLEET_PEERS_MAX);
    for (int i = 0; i < n_peers; i++) {
        nakshatra__v1__peer__init(&pp[i]);
        pp[i].id = peers[i].id;
        pp[i].address = peers[i].address;
        peer_list[i] = &pp[i];
    }
    pw.n_peers = (size_t)n_peers;
    pw.peers = peer_list;
    pw.catalogue = (char *)(uintptr_t)c->o.catalogue;
    for (int i = 0; i < c->n_addresses; i++)
        addresses[i] = c->addresses[i];
    pw.n_addresses = (size_t)c->n_addresses;
    pw.addresses = addresses;
    pw.n_ctx = (uint32_t)c->o.n_ctx;
    pw.n_seq_max = (uint32_t)c->o.n_seq_max;
    pw.deterministic = c->o.deterministic;
    pw.cache_type_k = (char *)(uintptr_t)(c->o.cache_type_k ? c->o.cache_type_k : "");
    pw.cache_type_v = (char *)(uintptr_t)(c->o.cache_type_v ? c->o.cache_type_v : "");
    pw.no_flash_attn = c->o.no_flash_attn;
    pw.n_assignments = (size_t)w->n_assignments;
    pw.assignments = list;
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WANT;
    m.want = &pw;
    tell(a, &m);
}

/* Its lease is over. If it is there all the same it shall attend anew: what it said by this call
 * would not be heard any more. */
static void gone(void *user, const char *id)
{
    struct attendee *a = attendee_of(user, id);
    struct nk_error why;

    if (!a)
        return;
    a->overtaken = true;
    nk_fail(&why, NK_E_UNAVAILABLE, "lease_ended", "nothing was heard of this machine for %u ms",
            a->c->o.beat_ms * a->c->o.beats_missed_max);
    nk_call_finish(a->call, &why);
}

static void deploy(void *user, const struct nk_deployment *d)
{
    nk_coordinator *c = user;

    c->o.deploy(c->o.user, d);
}

static void event(void *user, const char *sentence)
{
    nk_coordinator *c = user;

    c->o.event(c->o.user, sentence);
}

static void send_roster(struct attendee *a, const struct nk_buf *text)
{
    Nakshatra__V1__CoordinatorMessage m = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__RosterText r = NAKSHATRA__V1__ROSTER_TEXT__INIT;

    r.text = (ProtobufCBinaryData){ text->size, (uint8_t *)text->data };
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_ROSTER;
    m.roster = &r;
    tell(a, &m);
}

/* The roster into the file that this machine's servers and channels look at, and to everybody. */
static int publish_roster(nk_coordinator *c, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    struct nk_roster roster = { 0 };
    struct attendee *a;
    int rc = nk_fleet_roster(c->fleet, &roster, err);

    if (!rc)
        rc = nk_roster_format(&roster, &text, err);
    /* The members are told in any case: that this machine's disk is full does not let in a machine
     * elsewhere that was removed. */
    if (!rc) {
        LIST_FOREACH(a, &c->attendees, link)
        {
            if (a->attends && !a->overtaken && roster.revision != c->roster_told)
                send_roster(a, &text);
        }
        c->roster_told = roster.revision;
        rc = nk_members_write(c->o.identity, &roster, err);
    }
    if (rc && !c->roster_due) {
        char sentence[512];

        snprintf(sentence, sizeof sentence,
                 "the roster could not be written, and is tried again: %.300s", err->msg);
        c->o.event(c->o.user, sentence);
    }
    c->roster_due = rc != 0;
    nk_roster_release(&roster);
    nk_buf_release(&text);
    return rc;
}

static void tell_roster(nk_coordinator *c, struct attendee *a)
{
    struct nk_buf text = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    struct nk_roster roster;
    struct nk_error err;

    if (nk_fleet_roster(c->fleet, &roster, &err))
        return; /* no memory: it has the one of before */
    if (!nk_roster_format(&roster, &text, &err))
        send_roster(a, &text);
    nk_roster_release(&roster);
    nk_buf_release(&text);
}

/* ---- Attend ---- */

/* "ipv4:10.0.0.2:41234", "ipv6:[fe80::1]:41234" (its brackets perhaps as %5B and %5D): the host, of
 * an IPv4 address that came in over IPv6 as IPv4, and "" for this machine by loopback. */
static void host_of_peer(const char *peer, char out[200])
{
    char text[256];
    size_t n = 0;
    const char *p = strchr(peer, ':');
    char *end, *begin = text;

    out[0] = '\0';
    if (!p || (strncmp(peer, "ipv4:", 5) != 0 && strncmp(peer, "ipv6:", 5) != 0))
        return;
    for (p++; *p && n + 1 < sizeof text; p++) {
        if (!strncmp(p, "%5B", 3) || !strncmp(p, "%5D", 3)) {
            text[n++] = p[2] == 'B' ? '[' : ']';
            p += 2;
        } else {
            text[n++] = *p;
        }
    }
    text[n] = '\0';
    end = strrchr(text, ':');
    if (!end)
        return;
    *end = '\0';
    if (*begin == '[') {
        begin++;
        end = strchr(begin, ']');
        if (end)
            *end = '\0';
    }
    if (!strncmp(begin, "::ffff:", 7))
        begin += 7;
    if (!strncmp(begin, "127.", 4) || !strcmp(begin, "::1"))
        return;
    snprintf(out, 200, "%.199s", begin);
}

static void refuse(struct attendee *a, const struct nk_error *why)
{
    nk_call_finish(a->call, why);
}

static bool read_text(char *out, size_t size, const char *in)
{
    if (strlen(in) >= size)
        return false;
    for (const unsigned char *p = (const unsigned char *)in; *p; p++)
        if (*p < ' ' || *p == 0x7f)
            return false;
    strcpy(out, in);
    return true;
}

static int attending(struct attendee *a, const Nakshatra__V1__Attending *m, struct nk_error *err)
{
    nk_coordinator *c = a->c;
    Nakshatra__V1__CoordinatorMessage out = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__Welcome welcome = NAKSHATRA__V1__WELCOME__INIT;
    char version[32], reached[200], host[200];
    struct attendee *before;
    bool known;
    int rc;

    if (a->attends)
        return nk_fail(err, NK_E_INVALID, "bad_message", "it attends already");
    if (m->protocol != 1)
        return nk_fail(
            err, NK_E_PRECONDITION, "bad_version",
            "the member speaks protocol %u (Nakshatra %.20s), this one 1 (Nakshatra " NK_VERSION
            ")",
            m->protocol, m->version);
    if (!read_text(version, sizeof version, m->version) ||
        !read_text(reached, sizeof reached, m->reached) || m->pieces_port > 65535)
        return nk_fail(err, NK_E_INVALID, "bad_message",
                       "Attending has a field that is too long, or not text");
    before = attendee_of(c, a->id);
    if (before && before->boot != m->boot)
        return nk_fail(err, NK_E_PRECONDITION, "already_attending",
                       "another process attends as this member; is its state folder in use twice?");
    /* Others are told to use it: a member's word alone is no address of ours. */
    known = false;
    for (int i = 0; i < c->n_addresses; i++)
        known |= !strcmp(reached, c->addresses[i]);
    if (!known)
        reached[0] = '\0';
    host_of_peer(nk_call_peer(a->call), host);
    rc = nk_fleet_attend(c->fleet, a->id, m->boot, version, host, reached, (int)m->pieces_port,
                         nk_clock_now_ns(c->o.clock), err);
    if (rc)
        return rc;
    if (before) { /* its old call is dead, and nobody has noticed yet */
        before->overtaken = true;
        nk_call_cancel(before->call);
    }
    a->attends = true;
    a->boot = m->boot;
    nk_timer_cancel(a->timer);
    a->timer = NULL;
    welcome.beat_ms = c->o.beat_ms;
    welcome.beats_missed_max = c->o.beats_missed_max;
    out.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_WELCOME;
    out.welcome = &welcome;
    tell(a, &out);
    tell_roster(c, a);
    return 0;
}

/* A member's words, on their way to a log and a terminal. */
static void copy_words(char out[256], const char *words)
{
    nk_visible_line(out, 256, words);
}

static int facts(struct attendee *a, const Nakshatra__V1__Facts *m, struct nk_error *err)
{
    nk_coordinator *c = a->c;
    struct nk_plan_member pm;
    struct nk_error why;
    uint64_t now = nk_clock_now_ns(c->o.clock);

    if (++a->n_facts > FACTS_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many_messages",
                       "more than %d measurements by one call", FACTS_MAX);
    if (strcmp(m->catalogue, c->o.catalogue) != 0)
        return 0; /* of the model that was served before */
    if (m->error[0]) {
        char text[256];

        copy_words(text, m->error);
        nk_fleet_facts(c->fleet, a->id, NULL, text, now);
    } else if (nk_facts_parse(m->json, c->o.model, &pm, &why)) {
        char text[256];

        copy_words(text, why.msg);
        nk_fleet_facts(c->fleet, a->id, NULL, text, now);
    } else {
        nk_fleet_facts(c->fleet, a->id, &pm, NULL, now);
    }
    return 0;
}

static int beat(struct attendee *a, const Nakshatra__V1__Beat *m, struct nk_error *err)
{
    struct nk_holding holdings[HOLDINGS_READ_MAX];
    int n = 0;

    if (m->n_holdings > HOLDINGS_READ_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_message", "a beat with %zu holdings; %d is the most",
                       m->n_holdings, HOLDINGS_READ_MAX);
    for (size_t i = 0; i < m->n_holdings; i++) {
        const Nakshatra__V1__Holding *h = m->holdings[i];
        struct nk_holding *out = &holdings[n++];

        *out = (struct nk_holding){ .epoch = h->epoch,
                                    .layer_begin = (int)h->layer_begin,
                                    .layer_end = (int)h->layer_end,
                                    .state = (enum nk_holding_state)h->state,
                                    .port = (int)h->port,
                                    .bytes_done = h->bytes_done,
                                    .bytes_total = h->bytes_total,
                                    .bytes_per_s = h->bytes_per_s,
                                    .failures = h->failures < 1000 ? (int)h->failures : 1000 };
        if (h->port > 65535 || (unsigned)h->state > NK_HOLDING_FAILED ||
            h->layer_end > NK_PLAN_LAYERS_MAX || h->layer_begin >= h->layer_end ||
            h->epoch > INT64_MAX || h->bytes_done > INT64_MAX || h->bytes_total > INT64_MAX ||
            h->bytes_per_s > INT64_MAX ||
            !read_text(out->catalogue, sizeof out->catalogue, h->catalogue))
            return nk_fail(err, NK_E_INVALID, "bad_message",
                           "a beat with an epoch, layers, a state, a port, bytes or a catalogue "
                           "that there cannot be");
        copy_words(out->error, h->error);
    }
    if (!nk_fleet_beat(a->c->fleet, a->id, holdings, n, nk_clock_now_ns(a->c->o.clock)))
        return nk_fail(err, NK_E_PRECONDITION, "lease_over",
                       "this member was not heard of for too long; it attends anew");
    return 0;
}

static int links(struct attendee *a, const Nakshatra__V1__Links *m, struct nk_error *err)
{
    if (m->n_links > NK_FLEET_PEERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_message", "%zu links; %d are the most", m->n_links,
                       NK_FLEET_PEERS_MAX);
    for (size_t i = 0; i < m->n_links; i++)
        nk_fleet_link(a->c->fleet, a->id, m->links[i]->peer, m->links[i]->rtt_ms,
                      m->links[i]->bytes_per_s, nk_clock_now_ns(a->c->o.clock));
    return 0;
}

/* Does it send no more than there can be to say? */
static int check_amount(struct attendee *a, size_t size, struct nk_error *err)
{
    uint64_t now = nk_clock_now_ns(a->c->o.clock);

    if (size > MESSAGE_BYTES_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "message_too_large",
                       "a message of %zu bytes; %d is the most", size, MESSAGE_BYTES_MAX);
    if (now - a->window_ns >= (uint64_t)WINDOW_MS * 1000000) {
        a->window_ns = now;
        a->n_messages = 0;
    }
    if (++a->n_messages > MESSAGES_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many_messages",
                       "more than %d messages in %d seconds", MESSAGES_MAX, WINDOW_MS / 1000);
    return 0;
}

static void attend_message(nk_call *call, void *user, struct nk_bytes msg)
{
    struct attendee *a = user;
    Nakshatra__V1__MemberMessage *m;
    struct nk_error err;
    int rc = 0;

    (void)call;
    if (a->overtaken)
        return;
    if (check_amount(a, msg.size, &err)) {
        refuse(a, &err);
        return;
    }
    nk_arena_reset(a->c->arena);
    m = nakshatra__v1__member_message__unpack(nk_arena_allocator(a->c->arena), msg.size, msg.data);
    if (!m) {
        nk_fail(&err, NK_E_INVALID, "bad_message", "not a MemberMessage");
        refuse(a, &err);
        return;
    }
    if (!a->attends && m->kind_case != NAKSHATRA__V1__MEMBER_MESSAGE__KIND_ATTENDING)
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "the first message is not Attending");
    else
        switch (m->kind_case) {
        case NAKSHATRA__V1__MEMBER_MESSAGE__KIND_ATTENDING:
            rc = attending(a, m->attending, &err);
            break;
        case NAKSHATRA__V1__MEMBER_MESSAGE__KIND_FACTS:
            rc = facts(a, m->facts, &err);
            break;
        case NAKSHATRA__V1__MEMBER_MESSAGE__KIND_BEAT:
            rc = beat(a, m->beat, &err);
            break;
        case NAKSHATRA__V1__MEMBER_MESSAGE__KIND_LINKS:
            rc = links(a, m->links, &err);
            break;
        case NAKSHATRA__V1__MEMBER_MESSAGE__KIND_LEAVING:
            nk_fleet_leaving(a->c->fleet, a->id, nk_clock_now_ns(a->c->o.clock));
            break;
        default: /* of a newer member */
            break;
        }
    if (rc)
        refuse(a, &err);
    step_soon(a->c);
}

static void attend_end(nk_call *call, void *user, const struct nk_error *status)
{
    struct attendee *a = user;

    (void)call, (void)status;
    if (a->attends && !a->overtaken)
        nk_fleet_lost(a->c->fleet, a->id, nk_clock_now_ns(a->c->o.clock));
    nk_timer_cancel(a->timer);
    LIST_REMOVE(a, link);
    step_soon(a->c);
    free(a);
}

static void attend_overdue(void *arg)
{
    struct attendee *a = arg;
    struct nk_error err;

    a->timer = NULL;
    nk_fail(&err, NK_E_DEADLINE, "no_request", "no Attending came within %d ms", REQUEST_MS);
    refuse(a, &err);
}

static void attend_half_closed(nk_call *call, void *user)
{
    (void)user;
    nk_call_finish(call, NULL);
}

void nk_coordinator_attend(nk_coordinator *c, nk_call *call)
{
    static const struct nk_call_handlers handlers = { .message = attend_message,
                                                      .half_closed = attend_half_closed,
                                                      .end = attend_end };
    struct attendee *a;
    struct nk_error err;
    int n = 0;

    LIST_FOREACH(a, &c->attendees, link)
    {
        n += !strcmp(a->id, nk_call_identity(call));
    }
    if (n >= CALLS_OF_ONE_MAX) {
        nk_fail(&err, NK_E_EXHAUSTED, "too_many_calls", "this member has %d calls already", n);
        nk_call_finish(call, &err);
        return;
    }
    a = calloc(1, sizeof *a);
    if (!a) {
        nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory for a call");
        nk_call_finish(call, &err);
        return;
    }
    a->c = c;
    a->call = call;
    snprintf(a->id, sizeof a->id, "%s", nk_call_identity(call));
    a->timer = nk_timer_start(c->o.net, REQUEST_MS, attend_overdue, a);
    LIST_INSERT_HEAD(&c->attendees, a, link);
    nk_call_accept(call, &handlers, a);
}

/* ---- Status, Token, Remove ---- */

/* recovery: the gateway's member is added; taken; NULL: there is none. */
static int state_text(nk_coordinator *c, json_t *recovery, struct nk_buf *out, struct nk_error *err)
{
    json_t *j = nk_fleet_json(c->fleet, nk_clock_now_ns(c->o.clock));
    char *text;
    int rc;

    if (j)
        json_object_set_new(j, "id", json_string(c->o.cluster));
    if (j && recovery)
        json_object_set(j, "recovery", recovery);
    json_decref(recovery);
    text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    rc =
        text ? nk_buf_adds(out, text, err) : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    free(text);
    json_decref(j);
    return rc;
}

/* For /cluster, which has the gateway's member itself. */
static int status_text(nk_coordinator *c, void *out, struct nk_error *err)
{
    return state_text(c, NULL, out, err);
}

static void status_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__StatusReply reply = NAKSHATRA__V1__STATUS_REPLY__INIT;
    struct nk_buf text = NK_BUF_INIT(STATUS_BYTES_MAX);
    struct nk_error err;

    (void)msg;
    if (state_text(c, c->o.recovery ? c->o.recovery(c->o.user) : NULL, &text, &err)) {
        nk_call_finish(call, &err);
    } else {
        reply.json = text.data;
        nk_unary_reply(call, &reply.base);
    }
    nk_buf_release(&text);
}

void nk_coordinator_status(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, REQUEST_MS, status_handle, c);
}

static void token_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__TokenRequest *m = nakshatra__v1__token_request__unpack(NULL, msg.size, msg.data);
    Nakshatra__V1__TokenReply reply = NAKSHATRA__V1__TOKEN_REPLY__INIT;
    struct nk_error err;
    char token[256] = "";
    char *text = NULL;
    json_t *list;
    int rc = 0;

    if (!m) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "not a TokenRequest");
    } else if (!c->o.create_token) {
        rc = nk_fail(&err, NK_E_UNIMPLEMENTED, "no_tokens", "nobody can join this cluster");
    } else if (m->uses > INT_MAX) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument", "a token for %u uses", m->uses);
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__CREATE) {
        rc = c->o.create_token(c->o.user, m->uses ? (int)m->uses : 1,
                               m->ttl_s ? m->ttl_s : TOKEN_TTL_S, token, &err);
        reply.token = token;
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__LIST) {
        list = c->o.list_tokens(c->o.user);
        text = list ? json_dumps(list, JSON_COMPACT) : NULL;
        json_decref(list);
        if (!text)
            rc = nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory");
        reply.json = text;
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__REVOKE) {
        rc = c->o.revoke_token(c->o.user, m->id, &err);
    } else {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "TokenRequest.what is %d", (int)m->what);
    }
    if (rc)
        nk_call_finish(call, &err);
    else
        nk_unary_reply(call, &reply.base);
    free(text);
    if (m)
        nakshatra__v1__token_request__free_unpacked(m, NULL);
}

void nk_coordinator_token(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, REQUEST_MS, token_handle, c);
}

static void remove_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__RemoveRequest *m =
        nakshatra__v1__remove_request__unpack(NULL, msg.size, msg.data);
    Nakshatra__V1__RemoveReply reply = NAKSHATRA__V1__REMOVE_REPLY__INIT;
    char id[NK_MEMBER_ID_SIZE];
    struct nk_error err, why;
    struct attendee *a;
    int rc;

    if (!m) {
        nk_fail(&err, NK_E_INVALID, "bad_message", "not a RemoveRequest");
        nk_call_finish(call, &err);
        return;
    }
    rc = nk_fleet_remove(c->fleet, m->member, id, nk_clock_now_ns(c->o.clock), &err);
    if (!rc) {
        a = attendee_of(c, id);
        if (a) {
            nk_fail(&why, NK_E_DENIED, "removed", "this machine was removed from the cluster");
            nk_call_finish(a->call, &why);
        }
        rc = publish_roster(c, &err);
        if (rc)
            nk_wrap(rc, &err,
                    "%.70s was removed, but this machine lets it in until its roster is "
                    "written, which is tried again",
                    m->member);
        step_soon(c);
    }
    if (rc)
        nk_call_finish(call, &err);
    else
        nk_unary_reply(call, &reply.base);
    nakshatra__v1__remove_request__free_unpacked(m, NULL);
}

void nk_coordinator_remove(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, REQUEST_MS, remove_handle, c);
}

/* ---- from other threads ---- */

struct admission {
    const char *id;
    bool gateway;
    char *name;
    struct nk_roster *roster;
};

static int admit(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct admission *a = arg;
    int rc = nk_fleet_admit(c->fleet, a->id, a->gateway, a->name, nk_clock_now_ns(c->o.clock), err);

    if (!rc)
        rc = publish_roster(c, err);
    return rc || !a->roster ? rc : nk_fleet_roster(c->fleet, a->roster, err);
}

int nk_coordinator_admit(nk_coordinator *c, const char *id, bool gateway,
                         char name[NK_MEMBER_NAME_SIZE], struct nk_roster *roster,
                         struct nk_error *err)
{
    return on_net(c, admit, &(struct admission){ id, gateway, name, roster }, err);
}

struct question {
    const char *id;
    bool answer;
};

static int is_removed(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct question *q = arg;

    (void)err;
    q->answer = !nk_fleet_has(c->fleet, q->id);
    return 0;
}

bool nk_coordinator_is_removed(nk_coordinator *c, const char *id)
{
    struct question q = { .id = id };

    on_net(c, is_removed, &q, NULL);
    return q.answer;
}

struct unreached {
    const char *id, *why;
};

static int unreachable(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct unreached *u = arg;

    (void)err;
    nk_fleet_unreachable(c->fleet, u->id, u->why, nk_clock_now_ns(c->o.clock));
    step_soon(c);
    return 0;
}

void nk_coordinator_unreachable(nk_coordinator *c, const char *id, const char *why)
{
    on_net(c, unreachable, &(struct unreached){ id, why }, NULL);
}

struct hosts {
    const char *const *addresses;
    int n;
};

static int set_addresses(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct hosts *h = arg;

    (void)err;
    c->n_addresses = 0;
    for (int i = 0; i < h->n && c->n_addresses < NK_COORDINATOR_ADDRESSES_MAX; i++)
        if (strlen(h->addresses[i]) < sizeof c->addresses[0])
            strcpy(c->addresses[c->n_addresses++], h->addresses[i]);
    if (c->fleet) {
        nk_fleet_want_again(c->fleet);
        step_soon(c);
    }
    return 0;
}

void nk_coordinator_set_addresses(nk_coordinator *c, const char *const *addresses, int n)
{
    on_net(c, set_addresses, &(struct hosts){ addresses, n }, NULL);
}

static int measured(nk_coordinator *c, void *arg, struct nk_error *err)
{
    (void)err;
    nk_fleet_measured(c->fleet, *(double *)arg);
    return 0;
}

void nk_coordinator_measured(nk_coordinator *c, double ms_per_token)
{
    on_net(c, measured, &ms_per_token, NULL);
}

struct stage_time {
    const char *name;
    int begin, end;
    double ms;
};

static int stage_measured(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct stage_time *s = arg;

    (void)err;
    nk_fleet_stage_measured(c->fleet, s->name, s->begin, s->end, s->ms,
                            nk_clock_now_ns(c->o.clock));
    return 0;
}

void nk_coordinator_stage_measured(nk_coordinator *c, const char *name, int layer_begin,
                                   int layer_end, double ms)
{
    on_net(c, stage_measured, &(struct stage_time){ name, layer_begin, layer_end, ms }, NULL);
}

int nk_coordinator_json(nk_coordinator *c, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    pthread_mutex_lock(&c->mutex);
    c->asked_ns = nk_clock_now_ns(c->o.clock);
    rc = nk_buf_add(out, nk_buf_str(&c->snapshot), c->snapshot.size, err);
    pthread_mutex_unlock(&c->mutex);
    return rc;
}

/* ---- life ---- */

static int start(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct nk_fleet_opts fo = { .beat_ms = c->o.beat_ms,
                                .beats_missed_max = c->o.beats_missed_max,
                                .settle_ms = c->o.settle_ms,
                                .store = c->o.store,
                                .catalogue = c->o.catalogue,
                                .model = c->o.model,
                                .plan = c->o.plan,
                                .by_hand = c->o.by_hand,
                                .own = c->o.own,
                                .want = want,
                                .deploy = deploy,
                                .gone = gone,
                                .event = event,
                                .user = c };
    int rc = nk_fleet_open(&c->fleet, &fo, nk_clock_now_ns(c->o.clock), err);

    (void)arg;
    if (!rc)
        rc = publish_roster(c, err);
    if (!rc)
        take_snapshot(c, nk_clock_now_ns(c->o.clock)); /* there is one from the beginning on */
    if (!rc)
        step_soon(c);
    return rc;
}

int nk_coordinator_start(nk_coordinator **out, const struct nk_coordinator_opts *opts,
                         struct nk_error *err)
{
    nk_coordinator *c = calloc(1, sizeof *c);
    int rc;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    c->o = *opts;
    if (!c->o.beat_ms)
        c->o.beat_ms = 2000;
    if (!c->o.beats_missed_max)
        c->o.beats_missed_max = 3;
    if (!c->o.settle_ms)
        c->o.settle_ms = 2000;
    set_addresses(c, &(struct hosts){ opts->addresses, opts->n_addresses }, NULL);
    LIST_INIT(&c->attendees);
    nk_buf_init(&c->snapshot, STATUS_BYTES_MAX);
    pthread_mutex_init(&c->mutex, NULL);
    c->arena = nk_arena_new(UNPACKED_BYTES_MAX);
    rc = c->arena ? on_net(c, start, NULL, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (rc) {
        nk_coordinator_stop(c);
        return rc;
    }
    *out = c;
    return 0;
}

static int stop(nk_coordinator *c, void *arg, struct nk_error *err)
{
    (void)arg, (void)err;
    c->stopping = true;
    nk_timer_cancel(c->timer);
    c->timer = NULL;
    return 0;
}

static int nothing(nk_coordinator *c, void *arg, struct nk_error *err)
{
    (void)c, (void)arg, (void)err;
    return 0;
}

void nk_coordinator_stop(nk_coordinator *c)
{
    if (!c)
        return;
    on_net(c, stop, NULL, NULL);
    on_net(c, nothing, NULL, NULL); /* behind a step that was posted */
    nk_fleet_close(c->fleet);
    nk_buf_release(&c->snapshot);
    nk_arena_free(c->arena);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}
