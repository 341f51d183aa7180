#include "cluster/coordinator_int.h"

#include <stdio.h>
#include <string.h>

#include "cluster/identity.h"

void nk__coordinator_tell(struct nk__attendee *a, Nakshatra__V1__CoordinatorMessage *m)
{
    struct nk_error err;

    /* A member that does not read what it is told ends with its call, and is told all at its next.
     * (A status would wait behind what it does not read.) */
    if (nk_call_send_pb(a->call, &m->base, &err))
        nk_call_cancel(a->call);
}

struct nk__attendee *nk__coordinator_attendee_of(nk_coordinator *c, const char *id)
{
    struct nk__attendee *a;

    LIST_FOREACH(a, &c->attendees, link)
    if (a->attends && !a->overtaken && !strcmp(a->id, id))
        return a;
    return NULL;
}

void nk__coordinator_want(void *user, const char *id, const struct nk_want *w)
{
    nk_coordinator *c = user;
    struct nk__attendee *a = nk__coordinator_attendee_of(c, id);
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
    nk__coordinator_tell(a, &m);
}

void nk__coordinator_gone(void *user, const char *id)
{
    struct nk__attendee *a = nk__coordinator_attendee_of(user, id);
    struct nk_error why;

    if (!a)
        return;
    a->overtaken = true;
    nk_fail(&why, NK_E_UNAVAILABLE, "lease_ended", "nothing was heard of this machine for %u ms",
            a->c->o.beat_ms * a->c->o.beats_missed_max);
    nk_call_finish(a->call, &why);
}

void nk__coordinator_deploy(void *user, const struct nk_deployment *d)
{
    nk_coordinator *c = user;

    c->o.deploy(c->o.user, d);
}

void nk__coordinator_event(void *user, const char *sentence)
{
    nk_coordinator *c = user;

    c->o.event(c->o.user, sentence);
}

static void send_roster(struct nk__attendee *a, const struct nk_buf *text)
{
    Nakshatra__V1__CoordinatorMessage m = NAKSHATRA__V1__COORDINATOR_MESSAGE__INIT;
    Nakshatra__V1__RosterText r = NAKSHATRA__V1__ROSTER_TEXT__INIT;

    r.text = (ProtobufCBinaryData){ text->size, (uint8_t *)text->data };
    m.kind_case = NAKSHATRA__V1__COORDINATOR_MESSAGE__KIND_ROSTER;
    m.roster = &r;
    nk__coordinator_tell(a, &m);
}

int nk__coordinator_publish_roster(nk_coordinator *c, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    struct nk_roster roster = { 0 };
    struct nk__attendee *a;
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

void nk__coordinator_tell_roster(nk_coordinator *c, struct nk__attendee *a)
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
