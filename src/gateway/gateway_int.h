/* The gateway's inside: what the files of the layer share. */
#ifndef NK_GATEWAY_GATEWAY_INT_H
#define NK_GATEWAY_GATEWAY_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include <jansson.h>

#include "gateway/admission.h"
#include "gateway/budget.h"
#include "gateway/door.h"
#include "gateway/gateway.h"
#include "gateway/keys.h"
#include "gateway/metrics.h"
#include "gateway/monitor.h"
#include "gateway/origin.h"
#include "gateway/pool.h"
#include "gateway/presence.h"
#include "gateway/prompt.h"
#include "gateway/readiness.h"
#include "gateway/recover.h"
#include "gateway/repair.h"
#include "gateway/responses_store.h"
#include "gateway/watch.h"

struct MHD_Daemon;
typedef struct nk_job nk_job;
typedef struct nk_exchange nk_exchange;

struct nk_gateway {
    struct nk_gateway_opts opts; /* its strings: only while it starts; copies are below */
    char *names[NK_GATEWAY_NAMES_MAX + 1];
    int n_names;
    char *origins[NK_GATEWAY_ORIGINS_MAX];
    char *hosts[NK_GATEWAY_HOSTS_MAX];
    char *tls_certificate, *tls_key; /* libmicrohttpd borrows them */
    struct nk_listen listen;
    char url[300];
    int port;
    struct nk_clock *clock;
    struct nk_chance *chance;
    int64_t started; /* seconds since 1970 */
    uint64_t started_ns;

    char model_sha256[65];
    nk_reaper *reaper;
    const nk_vocab *vocab;
    const char *pooling; /* nk__model_pooling */
    nk_prompter *prompter;
    nk_keys *keys;                 /* NULL: no key is needed */
    unsigned char salt_secret[16]; /* of this run, with keys */
    nk_responses *responses;       /* that are kept */
    json_t *defaults;              /* of requests; or NULL */
    nk_metrics *metrics;
    /* Of all requests together: bodies until they are parsed, and what is parsed of them. */
    struct nk_budget bodies, parsed;
    nk_monitor *monitor;
    nk_admission *admission;
    struct nk_readiness readiness;
    struct nk_recoveries recoveries;
    struct nk_repairer repairer;
    nk_pool *pool;
    nk_watch *watch;
    struct MHD_Daemon *daemon;
    nk_door *door;      /* the daemon's thread's alone */
    bool lenient_lines; /* of the daemon: head.h */
    int quiesced_fd;    /* the socket that listened, until the daemon's thread has ended; or -1 */

    atomic_bool stopping; /* what is new is refused */
    struct nk_presence presence;

    pthread_mutex_t mutex;              /* what follows */
    TAILQ_HEAD(, nk_job) jobs;          /* the oldest first */
    LIST_HEAD(, nk_exchange) listeners; /* of /cluster/events */
    int n_listeners;
    double tokens_per_second; /* over the last seconds */
    double tokens_before;     /* the counter at the last tick */
    bool stuck;               /* the log has been told that no helper thread is free */
    uint64_t tick_ns;
    /* The mean time between two tokens of a generation that ran alone on the set in force; and of
     * how many, 64 at most. */
    uint64_t token_epoch; /* of the set that the next two are of */
    double token_s;
    uint64_t n_token_s;
    struct nk_waiter look; /* for nk_gateway_measured, as the next two */
    uint64_t look_told_ns;
    atomic_bool look_pending;
};

/* So long between two tokens of a generation on the set in force. [any thread] */
void nk__gateway_note_token(nk_gateway *g, double seconds);

#endif
