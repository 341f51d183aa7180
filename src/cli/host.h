/* The serving machine of a cluster: CA, store, coordinator, enrolment, the model's pieces, and the
 * member that this machine itself is (a child process, `nakshatra join`). Main thread. */
#ifndef NK_CLI_HOST_H
#define NK_CLI_HOST_H

#include <stdbool.h>

#include "base/error.h"
#include "cluster/token.h"
#include "gateway/gateway.h"
#include "plan/plan.h"

typedef struct nk_host nk_host;

struct nk_host_opts {   /* strings: borrowed until the stop */
    const char *model;  /* the GGUF */
    const char *state;  /* --state; NULL: the usual folder */
    const char *name;   /* of this machine in the cluster; NULL: the host's */
    const char *listen; /* address for members, without port; NULL: all */
    int port;           /* for members; 0: the one of the last time, or a free one */
    const char *device; /* of this machine's own worker */
    int n_threads;
    bool not_here; /* this machine holds no layers */
    bool no_join;  /* no join line is made, for nobody */
    int n_ctx, n_seq_max;
    bool deterministic, no_flash_attn;
    const char *cache_type_k, *cache_type_v;
    struct nk_plan_opts plan;
    const struct nk_plan *by_hand; /* stages by names; NULL: plans are made */
};

/* Everything but the gateway. Takes as long as reading the model, the first time. *out is the
 * caller's: nk_host_stop().
 *   PRECONDITION store_in_use   another `serve` has the state folder
 *   and what is wrong with the model, the folder, ports */
int nk_host_start(nk_host **out, const struct nk_host_opts *opts, struct nk_error *err);
/* What the gateway is started with: model, vocabulary, the cluster's state. */
void nk_host_gateway_opts(nk_host *h, struct nk_gateway_opts *out);
/* From now on the gateway is given the chains. */
void nk_host_serve(nk_host *h, nk_gateway *g);
/* A join line: a token, made now. */
int nk_host_token(nk_host *h, char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err);
const char *nk_host_cluster(const nk_host *h); /* the cluster's id; borrowed */
/* Does what is due until a signal comes or parent_fd (-1: none) reads as ended. */
int nk_host_run(nk_host *h, int parent_fd, struct nk_error *err);
/* Before the gateway is stopped: it is given no chains any more. */
void nk_host_unserve(nk_host *h);
void nk_host_stop(nk_host *h); /* NULL: does nothing */

#endif
