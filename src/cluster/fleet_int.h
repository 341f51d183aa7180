/* The fleet's inside.
 *
 *   fleet.c           members: who belongs to it, and what they say
 *   fleet_target.c    a plan with its epochs, and how far it is
 *   fleet_plan.c      a new plan
 *   fleet_step.c      what follows: leases, who is left out, what members and the gateway are told
 *   fleet_measured.c  what serves, held against its prediction
 *   fleet_view.c      all of it as JSON, for people */
#ifndef NK_CLUSTER_FLEET_INT_H
#define NK_CLUSTER_FLEET_INT_H

#include "base/buf.h"
#include "cluster/fleet.h"

enum {
    /* A plan that could not be put in force is tried again after so long. */
    RETRY_MS = 5000,
    IDLE_MS = 3600000,
    /* After a start, and after a sleep of this process, machines have so long to come back. A
     * machine that is well and planned without would be planned with again, and load twice. An
     * agent may just have begun with the first of two addresses when nobody could answer; the
     * second round finds whom it looks for at the second. */
    RETURN_MS = 4 * NK_ATTEND_WELCOME_MS + NK_ATTEND_PAUSE_MAX_MS + 1000,
    COMING_MS = RETURN_MS, /* who was admitted, or known at the start, attends within this */
    /* A machine that measures itself is waited for so long: more than an agent takes. */
    FACTS_MS = 900000,
    /* A machine of the next plan that gets no further for so long is planned without. */
    STALL_MS = 900000,
    EXCLUDED_MS = 300000, /* at first; doubled each time in a row, */
    N_EXCLUDED_MAX = 8,   /* so often: to 21 hours */
    /* A stage that is far from its prediction for so long is planned with what it takes; looks that
     * are further apart are none of one time; and without layers for so long it is believed
     * again. */
    FAR_MS = 60000,
    FAR_GAP_MS = 20000,
    BELIEVED_MS = 1800000,
};
#define MS(n) ((uint64_t)(n)*1000000)
/* Measured and predicted times that differ by more than the first are told, and again only when
 * they have been as near as the second meanwhile. */
#define FAR_OFF 1.4
#define NEAR    1.2

struct nk__member {
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
    struct nk__way {
        char peer[NK_MEMBER_ID_SIZE];
        double rtt_ms, bytes_per_s; /* -1: not measured */
        bool no_way;                /* ... because it cannot be connected to, as it says */
    } ways[NK_FLEET_PEERS_MAX];
    int n_ways;
};

/* A plan with its epoch. */
struct nk__target {
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
    struct nk__member **members; /* each allocated, so that pointers last */
    size_t n, capacity;
    uint64_t epoch;           /* the last one given out */
    uint64_t roster_revision; /* the store's, of the last change to a member */
    struct nk__target serving, next;
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

/* ---- fleet.c ---- */
int nk__fleet_no_memory(struct nk_error *err);
/* By id; NULL: there is none. present: nor is it one that was removed. */
struct nk__member *nk__fleet_find(const nk_fleet *f, const char *id);
struct nk__member *nk__fleet_find_present(const nk_fleet *f, const char *id);
/* A sentence for the one who serves. */
void nk__fleet_event(nk_fleet *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A new plan is due when nothing has changed for settle_ms. */
void nk__fleet_dirty(nk_fleet *f, uint64_t now_ns, uint32_t settle_ms);
/* It has no lease any more. */
void nk__fleet_away(nk_fleet *f, struct nk__member *m, uint64_t now_ns, uint32_t settle_ms);

/* ---- fleet_target.c ---- */
void nk__fleet_drop(struct nk__target *t);
int nk__fleet_n_stages(const struct nk_plan *p);
/* The i-th stage of all of them, and its epoch. */
const struct nk_plan_stage *nk__fleet_stage_at(const struct nk__target *t, int i, uint64_t *epoch);
const struct nk_holding *nk__fleet_holding_of(const nk_fleet *f, const struct nk__member *m,
                                              uint64_t epoch, const struct nk_plan_stage *s);
/* The member of a stage, if it can be counted on. */
struct nk__member *nk__fleet_stage_member(const nk_fleet *f, const struct nk_plan_stage *s);
bool nk__fleet_stage_is_ready(const nk_fleet *f, uint64_t epoch, const struct nk_plan_stage *s);
/* first: of the chain's stages among all. */
bool nk__fleet_chain_is_ready(const nk_fleet *f, const struct nk__target *t, int chain, int first);
bool nk__fleet_target_is_ready(const nk_fleet *f, const struct nk__target *t);
/* Can it be finished, or go on, with the machines that there are? */
bool nk__fleet_target_is_possible(const nk_fleet *f, const struct nk__target *t);
/* The member's stage in it. */
const struct nk_plan_stage *nk__fleet_stage_of(const struct nk__target *t, const char *id,
                                               uint64_t *epoch);
/* Is there a machine that has not the memory for its part of both? */
bool nk__fleet_collide(const nk_fleet *f);

/* ---- fleet_plan.c ---- */
void nk__fleet_replan(nk_fleet *f, uint64_t now_ns);

/* ---- fleet_measured.c ---- */
/* What was measured of a stage was perhaps of an hour in which the machine had other work. */
void nk__fleet_believe_again(nk_fleet *f, uint64_t now_ns, uint64_t *wake);
/* Is what serves much slower, or much faster, than it was predicted to be? */
bool nk__fleet_is_far_off(const nk_fleet *f);

#endif
