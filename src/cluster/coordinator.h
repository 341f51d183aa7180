/* The coordinator's service (proto/nakshatra.proto, service Cluster): the fleet (cluster/fleet.h)
 * with its members' calls.
 *
 * Everything happens on the net thread of the nk_net that is handed in. Functions marked [any] may
 * be called on any other thread; they wait until that one has done it. */
#ifndef NK_CLUSTER_COORDINATOR_H
#define NK_CLUSTER_COORDINATOR_H

#include "base/clock.h"
#include "cluster/fleet.h"
#include "rpc/rpc.h"

typedef struct nk_coordinator nk_coordinator;

enum { NK_COORDINATOR_ADDRESSES_MAX = 16 };

/* Its methods. Whoever builds the server puts them into its table with a function of one line each,
 * which calls those below; who may call what is said there, too. */
#define NK_COORDINATOR_ATTEND "/nakshatra.v1.Cluster/Attend" /* members */
#define NK_COORDINATOR_STATUS "/nakshatra.v1.Cluster/Status" /* members and the gateway */
#define NK_COORDINATOR_TOKEN  "/nakshatra.v1.Cluster/Token"  /* the gateway */
#define NK_COORDINATOR_REMOVE "/nakshatra.v1.Cluster/Remove" /* the gateway */

struct nk_coordinator_opts {
    nk_net *net; /* all of these are borrowed until the end */
    struct nk_clock *clock;
    nk_store *store;
    const char *identity;  /* the coordinator's identity folder; `members` is written there */
    const char *cluster;   /* its id */
    const char *catalogue; /* id of the model that is served */
    const struct nk_plan_model *model;
    struct nk_plan_opts plan;
    const struct nk_plan *by_hand; /* as in nk_fleet_opts */
    const char *own;               /* as there */
    /* How its workers are to be started. */
    int n_ctx, n_seq_max;
    bool deterministic, no_flash_attn;
    const char *cache_type_k, *cache_type_v; /* NULL: the worker's default */
    /* The hosts (IP addresses) by which the coordinator is reached, told to members so that they
     * find it when these change. */
    const char *addresses[NK_COORDINATOR_ADDRESSES_MAX];
    int n_addresses; /* those of the start: nk_coordinator_set_addresses */
    uint32_t beat_ms, beats_missed_max, settle_ms; /* 0: 2000, 3, 2000 */
    /* For Token: makes a join token. NULL: there are none. On the net thread. */
    int (*create_token)(void *user, int uses, uint32_t ttl_s, char out[256], struct nk_error *err);
    json_t *(*list_tokens)(void *user);
    int (*revoke_token)(void *user, const char *id, struct nk_error *err);
    /* On the net thread; must not block. */
    void (*deploy)(void *user, const struct nk_deployment *d);
    void (*event)(void *user, const char *sentence);
    /* For Status, as its member "recovery": what the gateway knows of lost workers (docs/api.md,
     * "recovery"). NULL, or returns NULL: it is not there. */
    json_t *(*recovery)(void *user);
    void *user;
};

/* [any] Errors: nk_fleet_open's, and those of writing the roster. */
int nk_coordinator_start(nk_coordinator **out, const struct nk_coordinator_opts *opts,
                         struct nk_error *err);
/* [any] After the server with its methods has stopped. NULL: does nothing. */
void nk_coordinator_stop(nk_coordinator *c);

/* ---- inside nk_method.open, on the net thread ---- */
void nk_coordinator_attend(nk_coordinator *c, nk_call *call);
void nk_coordinator_status(nk_coordinator *c, nk_call *call);
void nk_coordinator_token(nk_coordinator *c, nk_call *call);
void nk_coordinator_remove(nk_coordinator *c, nk_call *call);

/* ---- from other threads ---- */

/* [any] nk_fleet_admit; everybody is told the new roster. roster (may be NULL) gets it, too, and is
 * the caller's. */
int nk_coordinator_admit(nk_coordinator *c, const char *id, bool gateway,
                         char name[NK_MEMBER_NAME_SIZE], struct nk_roster *roster,
                         struct nk_error *err);
/* [any] True for whoever is no member, be it that it never was. */
bool nk_coordinator_is_removed(nk_coordinator *c, const char *id);
/* [any] nk_fleet_unreachable. */
void nk_coordinator_unreachable(nk_coordinator *c, const char *id, const char *why);
/* [any] The hosts by which it is reached from now on; members that attend are told at once, so that
 * they find it there when the old ones are gone. Copied; those too many, or longer than an IP
 * address, are left out. */
void nk_coordinator_set_addresses(nk_coordinator *c, const char *const *addresses, int n);
/* [any] nk_fleet_measured. */
void nk_coordinator_measured(nk_coordinator *c, uint64_t epoch, double ms_per_token);
/* [any] nk_fleet_stage_measured. */
void nk_coordinator_stage_measured(nk_coordinator *c, uint64_t epoch, const char *name,
                                   int layer_begin, int layer_end, double ms);
/* [any, and it waits for nobody] The cluster's state as JSON text, as Status has it, at most some
 * seconds old. */
int nk_coordinator_json(nk_coordinator *c, struct nk_buf *out, struct nk_error *err);

#endif
