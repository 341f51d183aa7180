/* What the agent's own files share.
 *
 *   agent.c    the main thread: what is wanted and what there is are made the same
 *   attend.c   the call to the coordinator; on the net thread
 *   model.c    a thread: the catalogue of the model that is served, and measuring for it
 *   links.c    a thread: the ways to the other members
 *   hold.c     a thread per assignment: fetches its slice, runs its worker */
#ifndef NK_AGENT_AGENT_INT_H
#define NK_AGENT_AGENT_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "agent/agent.h"
#include "cluster/fleet.h"
#include "cluster/identity.h"
#include "pieces/catalogue.h"
#include "pieces/fetch.h"
#include "pieces/service.h"
#include "rpc/link.h"
#include "rpc/proto.h"
#include "rpc/rpc.h"

enum {
    NK__SOURCES_MAX = 16,
    NK__ASSIGNMENTS_MAX = NK_FLEET_HOLDINGS_MAX,
    NK__FACTS_BYTES_MAX = 1 << 20,
};

struct nk__assignment {
    uint64_t epoch;
    int layer_begin, layer_end;
};
typedef struct nk_agent nk_agent;

/* What the coordinator wants of this machine. */
struct nk__wanted {
    char catalogue[65]; /* "": nothing was said yet */
    int n_ctx, n_seq_max;
    bool deterministic, no_flash_attn;
    char cache_type_k[16], cache_type_v[16];
    int n_assignments;
    struct nk__assignment assignments[NK__ASSIGNMENTS_MAX];
    int n_sources;
    char sources[NK__SOURCES_MAX][256];
    int n_peers; /* measure the ways to these */
    struct nk_fleet_peer peers[NK_FLEET_PEERS_MAX];
};

/* Is a worker to be started in the same way, and measured for the same? */
bool nk__wanted_alike(const struct nk__wanted *a, const struct nk__wanted *b);

/* An assignment that is being carried out. */
struct nk__hold {
    nk_agent *agent;
    struct nk__assignment assignment;
    struct nk__wanted how; /* as it was when it began: how the worker is started */
    nk_catalogue *catalogue;
    pthread_t thread;
    int stop[2]; /* a pipe: readable once it shall end */
    atomic_bool stopping, ended;
    LIST_ENTRY(nk__hold) link; /* the main thread's */
    /* Guarded by the agent's mutex. */
    enum nk_holding_state state;
    int port, failures;
    struct nk_fetch_progress progress;
    char error[256];
};

struct nk_agent {
    struct nk_agent_opts o;
    char identity[4096], joined_path[4096];
    struct nk_credentials credentials; /* by identity */
    nk_net *net;
    nk_server *server;
    int flows; /* rpc/link.h's */
    nk_pieces_service *pieces;
    int life[2]; /* of workers and other children: they end when the write end is closed */
    int wake[2]; /* a pipe to the main thread */
    LIST_HEAD(, nk__hold) holds; /* changed by the main thread, under the mutex */

    pthread_mutex_t roster_mutex; /* of the file */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct nk_joined joined;
    struct nk__wanted wanted;
    nk_catalogue *catalogue; /* of wanted.catalogue, once it is there */
    char facts_of[65];       /* the catalogue that the next two are for */
    char *facts, facts_error[256];
    uint64_t facts_number; /* grows with each */
    struct {
        char peer[NK_MEMBER_ID_SIZE];
        struct nk_link link; /* no_way "" */
        int n_failed;        /* tries in a row, of this peer at this address */
        char no_way[256];    /* why it cannot be connected to */
    } ways[NK_FLEET_PEERS_MAX];
    int n_ways;
    bool ways_changed;         /* since the coordinator was told of them */
    bool attending;            /* the coordinator is there */
    atomic_bool ending, hurry; /* the agent ends; and at once */
    bool leaving, stopping;
    int rc; /* why it must end */
    struct nk_error err;
    bool unsure; /* nobody could be reached for a while: the endpoint is to be asked why */

    struct nk__attend *attend; /* the net thread's */
};

/* Wakes the main thread. Any thread. */
void nk__agent_wake(nk_agent *a);
void nk__agent_say(nk_agent *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* It cannot go on: nk_agent_run returns this. Any thread. */
void nk__agent_fail(nk_agent *a, const struct nk_error *err);

/* Keeps the cluster's roster. from_renewal: it came beside the coordinator's own messages, and may
 * be older than what these have told since: then it is not taken, or a machine that was removed
 * would be let in again. Any thread. */
int nk__agent_roster_write(nk_agent *a, const struct nk_roster *r, bool from_renewal,
                           struct nk_error *err);

/* ---- attend.c; called on any thread but the net's ---- */
int nk__attend_start(nk_agent *a, struct nk_error *err);
void nk__attend_stop(nk_agent *a);
/* Something that the coordinator is to be told has changed. Any thread. */
void nk__attend_changed(nk_agent *a);
/* HOST:PORT of the coordinator as it was last reached; "" never. Any thread. */
void nk__attend_address(nk_agent *a, char out[256]);

/* ---- model.c ---- */
/* The thread's function: until a->stopping. */
void *nk__model_run(void *agent);

/* ---- links.c ---- */
/* The thread's function: until a->stopping. */
void *nk__links_run(void *agent);

/* ---- hold.c ---- */
/* *out belongs to the caller until it has ended and nk__hold_free was called. */
int nk__hold_start(struct nk__hold **out, nk_agent *a, const struct nk__assignment *as,
                   const struct nk__wanted *how, nk_catalogue *catalogue, struct nk_error *err);
/* Its worker drains and ends, or its fetch. `ended` follows. */
void nk__hold_stop(struct nk__hold *h);
void nk__hold_free(struct nk__hold *h); /* waits for the end */

#endif
