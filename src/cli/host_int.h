/* Inside of the serving machine: what its files share.
 *
 *   host.c          identities, start, run, stop
 *   host_tokens.c   tokens, the page's join line, addresses
 *   host_servers.c  what members call
 *   host_chains.c   from the coordinator's plan to the gateway's chains
 *   host_self.c     this machine's own member */
#ifndef NK_CLI_HOST_INT_H
#define NK_CLI_HOST_INT_H

#include <pthread.h>

#include <jansson.h>

#include "base/process.h"
#include "cli/host.h"
#include "cluster/ca.h"
#include "cluster/coordinator.h"
#include "cluster/enrol.h"
#include "cluster/facts.h"
#include "cluster/identity.h"
#include "cluster/reach.h"
#include "cluster/store.h"
#include "pieces/service.h"

/* A deployment on its way from the coordinator's thread to the main one. */
struct deployed {
    struct nk_deployment d; /* its chains are owned */
    bool is_new;
};

struct nk_host {
    struct nk_host_opts o;
    char *dir;                                             /* of the cluster */
    char identity[4096], self_state[4096], self_dir[4200]; /* the child's --state, and its folder */
    nk_store *store;
    nk_ca *ca;
    nk_model *model;
    nk_catalogue *catalogue;
    struct nk_facts_model facts;
    char *vocab_path;
    nk_vocab *vocab;
    nk_net *net;
    nk_coordinator *coordinator;
    nk_pieces_service *pieces;
    nk_server *server;
    int flows; /* rpc/link.h's */
    nk_enrol_server *enrol;
    char gateway_id[NK_MEMBER_ID_SIZE], self_id[NK_MEMBER_ID_SIZE];
    char name[NK_MEMBER_NAME_SIZE], model_id[128];
    nk_gateway *gateway;
    int wake[2];
    pthread_mutex_t mutex; /* of the next six */
    /* Under which others reach this machine; they change while it runs. */
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    size_t n_addresses;
    struct deployed deployed;
    char join_line[NK_TOKEN_TEXT_SIZE + 32];
    int64_t join_expires_s;
    char join_id[NK_TOKEN_ID_SIZE];
    char moved_id[NK_TOKEN_ID_SIZE]; /* of the last one for a change of address; "": none was */
    /* This machine's member. */
    struct nk_process self;
    int life[2];
    int64_t self_started_s, self_again_s;
    int self_failures;
    bool has_chains;          /* the gateway was given some */
    uint64_t deploy_again_ns; /* a deployment that failed is tried again then; 0: none has */
    uint64_t epoch;           /* of the last ones */
};

/* ---- host.c ---- */

/* A member's id that the store keeps under key, made where there is none. */
int nk__host_id(nk_host *h, const char *key, char id[NK_MEMBER_ID_SIZE], struct nk_error *err);
/* A certificate for id into the identity folder dir, if there is none of this cluster and id, or it
 * is time for another. */
int nk__host_renew(nk_host *h, const char *dir, const char *id, struct nk_error *err);

/* ---- host_tokens.c ---- */

bool nk__host_is_wildcard(const char *address);
/* Under which this machine is reached now; list points into out. Returns how many. */
size_t nk__host_addresses(nk_host *h, struct nk_reach_address out[NK_TOKEN_ADDRESSES_MAX],
                          const char *list[NK_TOKEN_ADDRESSES_MAX]);
/* nk_coordinator_opts's; user: the host. */
int nk__host_create_token(void *user, int uses, uint32_t ttl_s, char out[256],
                          struct nk_error *err);
json_t *nk__host_list_tokens(void *user);
int nk__host_revoke_token(void *user, const char *id, struct nk_error *err);
/* The page's join line is good for whoever copies it: not used, and not about to expire. */
void nk__host_refresh_token(nk_host *h);
/* nk_gateway_opts.join_line. */
int nk__host_join_line(void *user, struct nk_buf *out);
/* Members, and the page's join line, are told addresses that have changed. */
void nk__host_look_at_addresses(nk_host *h);

/* ---- host_servers.c ---- */

/* Where this machine's own processes find it. */
const char *nk__host_own_address(const nk_host *h);
int nk__host_start_servers(nk_host *h, struct nk_error *err);
/* For `nakshatra token` and its like on this machine. */
int nk__host_write_joined(nk_host *h, struct nk_error *err);

/* ---- host_chains.c ---- */

/* nk_coordinator_opts's; user: the host. [coordinator's net thread] */
void nk__host_deploy(void *user, const struct nk_deployment *d);
void nk__host_event(void *user, const char *sentence);
json_t *nk__host_recovery(void *user);
/* The newest deployment, if there is one, becomes the gateway's chains. */
void nk__host_take_deployment(nk_host *h);
/* What the chains in force really do, beside what was predicted. */
void nk__host_tell_measured(nk_host *h);

/* ---- host_self.c ---- */

/* Its identity and where it finds the coordinator. */
int nk__host_prepare_self(nk_host *h, struct nk_error *err);
/* Starts it again, after a growing pause, when it has ended. */
void nk__host_look_after_self(nk_host *h);

#endif
