#include "cluster/coordinator_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/visible.h"
#include "cluster/facts.h"

enum {
    HOLDINGS_READ_MAX = NK_FLEET_HOLDINGS_MAX,
    /* A member has one call; others of its are dead ones that nobody has noticed yet. */
    CALLS_OF_ONE_MAX = 4,
    /* Of one call: an honest member sends a fact for each model, and a beat every two seconds and
     * whenever a worker changes. One that sends more would keep this thread busy for itself. */
    MESSAGES_MAX = 256, /* in each WINDOW_MS */
    WINDOW_MS = 10000,
    FACTS_MAX = 64,
    /* Of a member's message, which is mostly a measurement (1 MiB at most). */
    MESSAGE_BYTES_MAX = (1 << 20) + (64 << 10),
};

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

static void refuse(struct nk__attendee *a, const struct nk_error *why)
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

static int attending(struct nk__attendee *a, const Nakshatra__V1__Attending *m,
                     struct nk_error *err)
{
    nk_coordinator *c = a->c;
    Nakshatra__V1__CoordinatorMessage out = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__Welcome welcome = NAKSHATRA__V1__WELCOME__INIT;
    char version[32], reached[200], host[200];
    struct nk__attendee *before;
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
    before = nk__coordinator_attendee_of(c, a->id);
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
    nk__coordinator_tell(a, &out);
    nk__coordinator_tell_roster(c, a);
    return 0;
}

/* A member's words, on their way to a log and a terminal. */
static void copy_words(char out[256], const char *words)
{
    nk_visible_line(out, 256, words);
}

static int facts(struct nk__attendee *a, const Nakshatra__V1__Facts *m, struct nk_error *err)
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

static int beat(struct nk__attendee *a, const Nakshatra__V1__Beat *m, struct nk_error *err)
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

static int links(struct nk__attendee *a, const Nakshatra__V1__Links *m, struct nk_error *err)
{
    if (m->n_links > NK_FLEET_PEERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_message", "%zu links; %d are the most", m->n_links,
                       NK_FLEET_PEERS_MAX);
    for (size_t i = 0; i < m->n_links; i++) {
        const Nakshatra__V1__Link *l = m->links[i];
        uint64_t now = nk_clock_now_ns(a->c->o.clock);
        char why[256];

        if (l->no_way[0]) {
            copy_words(why, l->no_way);
            nk_fleet_no_way(a->c->fleet, a->id, l->peer, why, now);
        } else
            nk_fleet_link(a->c->fleet, a->id, l->peer, l->rtt_ms, l->bytes_per_s, now);
    }
    return 0;
}

/* Does it send no more than there can be to say? */
static int check_amount(struct nk__attendee *a, size_t size, struct nk_error *err)
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
    struct nk__attendee *a = user;
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
    nk__coordinator_step_soon(a->c);
}

static void attend_end(nk_call *call, void *user, const struct nk_error *status)
{
    struct nk__attendee *a = user;

    (void)call, (void)status;
    if (a->attends && !a->overtaken)
        nk_fleet_lost(a->c->fleet, a->id, nk_clock_now_ns(a->c->o.clock));
    nk_timer_cancel(a->timer);
    LIST_REMOVE(a, link);
    nk__coordinator_step_soon(a->c);
    free(a);
}

static void attend_overdue(void *arg)
{
    struct nk__attendee *a = arg;
    struct nk_error err;

    a->timer = NULL;
    nk_fail(&err, NK_E_DEADLINE, "no_request", "no Attending came within %d ms", NK__REQUEST_MS);
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
    struct nk__attendee *a;
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
    a->timer = nk_timer_start(c->o.net, NK__REQUEST_MS, attend_overdue, a);
    LIST_INSERT_HEAD(&c->attendees, a, link);
    nk_call_accept(call, &handlers, a);
}
