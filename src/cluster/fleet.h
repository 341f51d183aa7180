/* The machines of a cluster, and which of them holds which layers now: what the coordinator knows
 * and decides, without the network.
 *
 * In: who attends, what a machine can do, what it holds and does, that it is gone, and the time.
 * Out, by two callbacks: what a machine shall have (`want`), and over which workers requests shall
 * go (`deploy`). Both are whole states, said again whenever they change.
 *
 * A member's lease. It attends with a call, and beats. A call that breaks ends nothing by itself:
 * the lease does, when beats_missed_max beats have not come. Who is back before that, from the same
 * start of its agent, was never away; from another start it is the same member that has lost what
 * it held. Where it was this process that slept, which a step that comes much too late tells, no
 * lease ends before the members had time to come back.
 *
 * Epochs. Each plan that is put in force has a number of its own, larger than all before, kept in
 * the store before anybody is told. A worker is started for one epoch and refuses others, so a
 * machine that was away cannot serve with what it once was told. Where a new plan gives a machine
 * just the layers that it serves already, its worker stays, with the epoch that it has.
 *
 * Two plans at most are at work. `next` is being made ready: machines fetch and load. When all its
 * stages are, requests go there, and what was in force before is given up; its workers finish what
 * they run. A machine that has not the memory for both gives up the old one first. `next` is
 * changed only when it cannot be finished any more, so that no fetch is cut off for a plan that is
 * a little better.
 *
 * One thread at a time. Times are of nk_clock_now_ns. */
#ifndef NK_CLUSTER_FLEET_H
#define NK_CLUSTER_FLEET_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"
#include "cluster/roster.h"
#include "cluster/store.h"
#include "plan/plan.h"

typedef struct nk_fleet nk_fleet;

enum {
    NK_FLEET_MEMBERS_MAX = 4096,
    NK_FLEET_HOLDINGS_MAX = 8, /* of one member */
    NK_FLEET_CHAINS_MAX = 16,
    NK_FLEET_PEERS_MAX = 32,  /* to which a member measures the way */
    NK_FLEET_STAGES_MAX = 64, /* of one chain */
};

/* An agent's way back to a coordinator: so long it waits for its welcome at each address, and so
 * long at most before it tries them all anew. */
enum { NK_ATTEND_WELCOME_MS = 6000, NK_ATTEND_PAUSE_MAX_MS = 5000 };

/* What a machine has told that it holds. */
enum nk_holding_state {
    NK_HOLDING_FETCHING = 1,
    NK_HOLDING_LOADING,
    NK_HOLDING_READY,
    NK_HOLDING_FAILED, /* it tries again after a pause */
};
const char *nk_holding_state_text(enum nk_holding_state s); /* "fetching", ... */
struct nk_holding {
    uint64_t epoch;
    char catalogue[65];
    int layer_begin, layer_end;
    enum nk_holding_state state;
    int port; /* of the worker, when ready */
    uint64_t bytes_done, bytes_total, bytes_per_s;
    int failures; /* so often in a row */
    char error[256];
};

/* What a machine shall have. */
struct nk_want {
    int n_assignments;
    struct nk_want_assignment {
        uint64_t epoch;
        int layer_begin, layer_end;
    } assignments[NK_FLEET_HOLDINGS_MAX];
    uint64_t peers_hash; /* of nk_fleet_peers: another when these have changed */
};

/* Over which workers requests go from now on. */
struct nk_deployment {
    uint64_t epoch;
    int n_chains; /* 0: there is nothing to serve with; `waiting` says for what it waits */
    struct nk_deployed_chain {
        int n_stages;
        struct nk_deployed_stage {
            char member[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE], address[256];
            int layer_begin, layer_end;
            uint64_t epoch; /* that the worker was started for */
        } stages[NK_FLEET_STAGES_MAX];
    } * chains; /* borrowed for the call */
    char waiting[256];
};

struct nk_fleet_opts {
    uint32_t beat_ms, beats_missed_max;
    /* What has changed is left alone for so long before a plan is made of it, so that machines that
     * come together are planned together. */
    uint32_t settle_ms;
    nk_store *store;       /* borrowed until the end, as are the next two */
    const char *catalogue; /* id of the model */
    const struct nk_plan_model *model;
    struct nk_plan_opts plan; /* copied */
    /* A plan by hand: its stages name members by their names, not ids. NULL: plans are made. */
    const struct nk_plan *by_hand;
    const char *own; /* id of this machine's own member, which cannot be removed; NULL: none */
    /* A member's `want` has changed. */
    void (*want)(void *user, const char *id, const struct nk_want *w);
    void (*deploy)(void *user, const struct nk_deployment *d);
    /* A member's lease has ended: what comes by its call is not heard any more; it may attend
     * anew. NULL: nobody wants to know. */
    void (*gone)(void *user, const char *id);
    /* A sentence for the log of the one who serves: what changed. */
    void (*event)(void *user, const char *sentence);
    void *user;
};

/* Reads what the store knows: members, and the plan that was in force, which goes on when its
 * machines are back. *out owned by the caller.
 *   DATA_LOSS  bad_store   something in it is not what was written
 *   EXHAUSTED  no_memory */
int nk_fleet_open(nk_fleet **out, const struct nk_fleet_opts *opts, uint64_t now_ns,
                  struct nk_error *err);
void nk_fleet_close(nk_fleet *f);

/* ---- who belongs to it ---- */
/* A new member of this id, or the same again, whose name may be another. A member of the same name
 * that is not attending and has another id is taken to be this machine, installed anew: it is
 * forgotten. Where one with the name attends, the new one is called NAME-2: name is what it is
 * called from now on. It is in the store when this returns.
 *   EXHAUSTED  too_many_members
 *   DENIED     removed */
int nk_fleet_admit(nk_fleet *f, const char *id, bool gateway, char name[NK_MEMBER_NAME_SIZE],
                   uint64_t now_ns, struct nk_error *err);
/* By id or by name. From now on it is none; what it held is planned anew.
 *   NOT_FOUND     unknown_member
 *   PRECONDITION  is_coordinator   it is the serving machine, or its own member */
int nk_fleet_remove(nk_fleet *f, const char *who, char id[NK_MEMBER_ID_SIZE], uint64_t now_ns,
                    struct nk_error *err);
/* True: was a member and was removed. */
bool nk_fleet_is_removed(const nk_fleet *f, const char *id);
bool nk_fleet_has(const nk_fleet *f, const char *id);
/* *out is the caller's (nk_roster_release). */
int nk_fleet_roster(const nk_fleet *f, struct nk_roster *out, struct nk_error *err);

/* ---- what its machines say ---- */
/* host: where others reach it, as seen here ("" for this machine, by loopback); reached: the host
 * by which it came to us. Its `want` follows.
 *   DENIED  not_a_member */
int nk_fleet_attend(nk_fleet *f, const char *id, uint64_t boot, const char *version,
                    const char *host, const char *reached, int pieces_port, uint64_t now_ns,
                    struct nk_error *err);
/* facts NULL: it could not measure itself, for that reason. Its id is set here. */
void nk_fleet_facts(nk_fleet *f, const char *id, const struct nk_plan_member *facts,
                    const char *why_not, uint64_t now_ns);
/* The way from it to peer, measured. Impossible values are not taken. */
void nk_fleet_link(nk_fleet *f, const char *id, const char *peer, double rtt_ms, double bytes_per_s,
                   uint64_t now_ns);
/* It cannot connect to peer, for that reason: no chain is planned that would need it to, until the
 * way is measured after all. Not taken of a way that tokens are going. */
void nk_fleet_no_way(nk_fleet *f, const char *id, const char *peer, const char *why,
                     uint64_t now_ns);
/* False: its lease is over (it stood still, or its cable was out), and its beats count no more. Its
 * call must end, so that it attends anew and is told what it is to have now. */
bool nk_fleet_beat(nk_fleet *f, const char *id, const struct nk_holding *holdings, int n,
                   uint64_t now_ns);
/* The gateway cannot reach its worker, though it says that it is ready: a firewall, or a network
 * that lets connections out only. It is planned without for a while. */
void nk_fleet_unreachable(nk_fleet *f, const char *id, const char *why, uint64_t now_ns);
/* Its call has broken: perhaps it comes back. */
void nk_fleet_lost(nk_fleet *f, const char *id, uint64_t now_ns);
/* It says that it goes: planned without it at once. */
void nk_fleet_leaving(nk_fleet *f, const char *id, uint64_t now_ns);

/* Does what is due. Returns when it wants to be called again at the latest. */
uint64_t nk_fleet_step(nk_fleet *f, uint64_t now_ns);

/* Addresses of members that may have pieces of the model, but `id`'s: at most max. */
int nk_fleet_sources(const nk_fleet *f, const char *id, char (*out)[256], int max);
/* To whom `id` measures the way: at most max other members, by id, and where they are reached. They
 * change only when members come and go. */
struct nk_fleet_peer {
    char id[NK_MEMBER_ID_SIZE], address[256];
};
int nk_fleet_peers(const nk_fleet *f, const char *id, struct nk_fleet_peer *out, int max);
/* Where this machine is reached by the others: what most of them came by; "" none has. */
const char *nk_fleet_own_host(const nk_fleet *f);
/* Something that is told with every `want` has changed: each is called again at the next step. */
void nk_fleet_want_again(nk_fleet *f);
/* What is measured of what serves: ms per token of one stream that runs alone. epoch: of the plan
 * that it was measured of; where another one is in force by now it is not taken. Far from what was
 * predicted it is said, and again only when it was near meanwhile. */
void nk_fleet_measured(nk_fleet *f, uint64_t epoch, double ms_per_token);
/* What a stage of what serves takes for one token of one stream: the member (by its name) that
 * holds these layers; epoch: as above. Where that is far from what was predicted, for a minute, the
 * member is planned with what was measured; half an hour after it has nothing to do any more it is
 * believed again. */
void nk_fleet_stage_measured(nk_fleet *f, uint64_t epoch, const char *name, int layer_begin,
                             int layer_end, double ms, uint64_t now_ns);
/* Everything, for people, as docs/api.md has it ("cluster"). NULL: no memory. */
json_t *nk_fleet_json(const nk_fleet *f, uint64_t now_ns);

#endif
