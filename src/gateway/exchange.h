/* One HTTP request and its reply. Everything that takes long happens on other threads; meanwhile
 * the connection is suspended. Its life:
 *
 *   judged    headers are there: route, key, origin, type and size are judged; what is wrong is
 *             kept and answered when the body was read, so that the client is not cut off while it
 *             still writes (a body that is far too large is answered at once)
 *   go        the body is there; called again after every resume, until a reply was queued
 *   read_*    the reply's bytes, when it is a stream
 *   completed libmicrohttpd is done with it, for whatever reason
 *
 * Its files: exchange.c (its life), exchange_judge.c (what its headers say), exchange_answer.c (its
 * reply), listeners.c (readers of /cluster/events).
 *
 * Safety: the exchange's mutex guards `woken`, `suspended` and `over`. wake() may be called on any
 * thread: it resumes a suspended connection, or is remembered for the next time the HTTP thread
 * wants to suspend it. Once the gateway's presence is closed nothing is suspended any more: what
 * would have to wait ends. */
#ifndef NK_GATEWAY_EXCHANGE_H
#define NK_GATEWAY_EXCHANGE_H

#include <microhttpd.h>

#include "gateway/gateway_int.h"
#include "gateway/job.h"
#include "gateway/routes.h"

/* What libmicrohttpd asks for at once of a reply that is a stream. */
enum { NK_BLOCK_BYTES = 16384 };

struct nk_connection { /* libmicrohttpd's "socket context" */
    nk_watched *watched;
    nk_guest *guest;
    /* Of the request that is being read: where its target as it was sent ends (at its first NUL),
     * and whether it has a NUL as %00. */
    const char *target_end;
    bool target_has_nul;
};

struct nk_exchange {
    atomic_int refs;
    nk_gateway *g;
    struct MHD_Connection *connection;
    nk_watched *watched;
    nk_guest *guest;
    const struct nk_route *route; /* NULL: none was found */
    const struct nk_asset *asset;
    char rest[200]; /* of the path, behind the route's */
    const char *allowed;
    uint64_t begin_ns;
    int status; /* that was answered; 0: none */

    struct nk_buf body;
    uint64_t n_body;
    size_t held;      /* of g->bodies, for the body */
    bool is_all_read; /* the daemon knows that there is no more of the request to come */
    bool failed;      /* err is the answer */
    bool at_once;     /* ... before any body, whose length is not known */
    bool closes;      /* the connection ends with the reply */
    struct nk_error err;
    char param[128];
    char key[NK_SHA256_HEX]; /* the digest of its API key; "": none */
    char origin[256];        /* that is allowed; "" for none */
    bool trusted;            /* it may see what lets a machine join */

    pthread_mutex_t mutex;
    bool woken, suspended, over;

    nk_job *job;
    struct nk_waiter waiter;
    atomic_bool looked; /* the monitor has called */
    bool asked;

    /* a listener */
    LIST_ENTRY(nk_exchange) link; /* under the gateway's mutex, as `latest` */
    bool listens;
    struct nk_event_blob *latest; /* to be sent next */
    struct nk_event_blob *sending;
    size_t n_sent;
};

/* ---- exchange.c ---- */

/* nk_watch_handlers. */
void nk__exchange_ref(void *exchange);
void nk__exchange_unref(void *exchange);
void nk__exchange_gone(void *exchange);
void nk__exchange_half_closed(void *exchange);
/* Any thread. */
void nk__exchange_wake(void *exchange);
void nk__exchange_forget_wake(nk_exchange *x);
/* False: there was a wake meanwhile, or nothing is suspended any more: look again. */
bool nk__exchange_suspend(nk_exchange *x);
/* MHD_AccessHandlerCallback and MHD_RequestCompletedCallback; cls: the gateway. */
enum MHD_Result nk__exchange_access(void *cls, struct MHD_Connection *connection, const char *path,
                                    const char *method, const char *version, const char *data,
                                    size_t *size, void **con_cls);
void nk__exchange_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode toe);

/* ---- exchange_judge.c ---- */

/* What one address may have of the connections. */
int nk__connections_per_address(const struct nk_gateway_limits *l);
const char *nk__exchange_header(nk_exchange *x, const char *name);
/* MHD_OPTION_URI_LOG_CALLBACK: the target as it was sent. Returns NULL, the request's first
 * context. */
void *nk__exchange_target(void *cls, const char *target, struct MHD_Connection *connection);
/* Judges the head; what is wrong is kept in x. fits: the route takes the method. */
void nk__exchange_judge(nk_exchange *x, const char *method, const char *target, const char *version,
                        bool fits);

/* ---- exchange_answer.c ---- */

/* Queues and gives the response up; NULL: the connection ends. */
enum MHD_Result nk__exchange_answer(nk_exchange *x, int status, const char *type,
                                    struct MHD_Response *r);
/* With x->err. */
enum MHD_Result nk__exchange_error(nk_exchange *x);
enum MHD_Result nk__exchange_fail(nk_exchange *x, int code, const char *reason, const char *msg);
enum MHD_Result nk__exchange_fail_stopping(nk_exchange *x);
/* False: the job has nothing to say yet. */
bool nk__exchange_answer_job(nk_exchange *x, enum MHD_Result *result);
/* What its route answers by itself. */
enum MHD_Result nk__exchange_answer_short(nk_exchange *x);
/* A file of the page. */
enum MHD_Result nk__exchange_answer_asset(nk_exchange *x);
/* A preflight of CORS, or a plain question. */
enum MHD_Result nk__exchange_answer_options(nk_exchange *x);

#endif
