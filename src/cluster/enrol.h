/* Enrolment: how a machine that has a token, or an old certificate, gets a certificate.
 *
 * An endpoint of its own beside gRPC, TLS 1.3 with nothing else in it, because two things are
 * needed that gRPC's C API does not give: the client must see the CA before it sends a byte, and
 * both sides must have the connection's exporter (RFC 8446, 7.5).
 *
 *   1. The client connects to every address that it knows, at once, and is shown a certificate and
 *      its CA. A CA whose hash is not the one in the token (or not the one of the old certificate)
 *      ends the handshake: not one byte of application data was sent.
 *   2. On the first connection that passes it sends its request: the PKCS#10 request, its name,
 *      version and time, and a proof over "what it wants" || exporter || request. To join: HMAC by
 *      the token's secret, which never travels. To renew: a signature by the old key. A proof is
 *      good on this connection and for this key only.
 *   3. The answer is a certificate and all that is needed to go on, or a code, reason and sentence.
 *
 * One exchange for a connection; a frame is four bytes of length (big endian) and a JSON object.
 *
 * An answer may be lost. So a client keeps its new key until it has a certificate, and the token
 * knows for which key it was used (token.h): asking again with the same key gives the same id and
 * costs no use. */
#ifndef NK_CLUSTER_ENROL_H
#define NK_CLUSTER_ENROL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"
#include "cluster/ca.h"
#include "cluster/identity.h"
#include "cluster/roster.h"
#include "cluster/store.h"
#include "cluster/token.h"

enum {
    NK_ENROL_REQUEST_BYTES_MAX = 32 << 10,
    NK_ENROL_REPLY_BYTES_MAX = 2 << 20,
    NK_ENROL_STEP_MS = 5000,    /* for the handshake, for the request, for the answer, each */
    NK_ENROL_CLIENT_MS = 9000,  /* for everything that a client does */
    NK_ENROL_CONNECTIONS = 128, /* at once */
};

/* ---- server ---- */
typedef struct nk_enrol_server nk_enrol_server;

/* A machine that has proven that it may have a certificate. Borrowed for the call. */
struct nk_enrol_admission {
    const char *id;      /* its id: of its old certificate; or a new one, if it has none */
    bool renews;         /* it renews a certificate; else it joins with a token */
    bool has_old;        /* it joins with a token, but had a certificate with this id */
    const char *name;    /* what it calls itself; good (nk_member_name_is) */
    const char *version; /* its program's; printable */
    const char *peer;    /* the address that it came from, without port: "192.168.1.7" */
};
/* What the coordinator decides about it. Filled by `admit`; id and name are what was asked for
 * until it changes them. */
struct nk_enrol_admitted {
    char id[NK_MEMBER_ID_SIZE];     /* another: it takes the place of that member */
    char name[NK_MEMBER_NAME_SIZE]; /* another: NAME-2, where a live member has that name */
    struct nk_roster roster;        /* as of now, with the new member; released by the caller */
    int port;                       /* the coordinator's (gRPC) */
    int n_addresses;                /* of the serving machine, the best first */
    char addresses[NK_TOKEN_ADDRESSES_MAX][46];
};
/* Called on the endpoint's thread, one at a time. They may write to the store; while they last
 * everybody else waits. */
struct nk_enrol_handlers {
    /* Was this member removed from the cluster? Asked before anything else of who has an old
     * certificate. An unknown id counts as removed. */
    bool (*is_removed)(void *user, const char *id);
    /* 0: it is a member now, remembered before this returns, and gets a certificate. An error
     * refuses it: code, reason and sentence travel to the machine as they are. May be called again
     * for an id that was admitted before (an answer was lost): then it is the same member, unless
     * it was removed in between (DENIED `removed`). */
    int (*admit)(void *user, const struct nk_enrol_admission *who, struct nk_enrol_admitted *out,
                 struct nk_error *err);
};
struct nk_enrol_server_opts {
    const char *listen; /* "0.0.0.0:5531", "[::]:0" (then IPv4, too); port 0: a free one */
    const nk_ca *ca;    /* this and the next three are borrowed until the server has stopped */
    nk_store *store;    /* tokens */
    struct nk_clock *clock;
    struct nk_chance *chance;
    const struct nk_enrol_handlers *handlers;
    void *user;
    int connections_max;            /* 0: NK_ENROL_CONNECTIONS */
    int64_t certificate_lifetime_s; /* 0: NK_CERTIFICATE_LIFETIME_S */
};
/* Starts the endpoint and its thread. Hostile clients are expected: a step has a time, a frame a
 * size, and where connections_max are open a new one takes the place of the one that has been at it
 * longest, so that people who only hold connections keep nobody out.
 *   INVALID      bad_address
 *   UNAVAILABLE  cannot_listen  with the system's sentence */
int nk_enrol_server_start(nk_enrol_server **out, const struct nk_enrol_server_opts *opts,
                          struct nk_error *err);
int nk_enrol_server_port(const nk_enrol_server *s);
void nk_enrol_server_stop(nk_enrol_server *s); /* cuts what is open. NULL is fine */

/* ---- client ---- */
/* Why an address was of no use. */
struct nk_enrol_try {
    char address[64]; /* "192.168.1.5:5531" */
    char why[128];    /* "connection refused" */
};
struct nk_enrolled {
    struct nk_buf ca, certificate, key; /* PEM: for nk_identity_write */
    struct nk_certificate about;
    char name[NK_MEMBER_NAME_SIZE]; /* the one that the cluster gave it */
    struct nk_roster roster;
    int port; /* the coordinator's (gRPC) */
    int n_addresses;
    char addresses[NK_TOKEN_ADDRESSES_MAX][46]; /* the one that answered comes first */
    int64_t server_time_s;
    char server_version[32];
    /* On failure, too: the addresses that were tried in vain. */
    int n_tried;
    struct nk_enrol_try tried[2 * NK_TOKEN_ADDRESSES_MAX];
};
void nk_enrolled_release(struct nk_enrolled *e);

struct nk_enrol_join_opts {
    const struct nk_token *token;
    const char *name;    /* of this machine (nk_member_name_make) */
    const char *version; /* of this program */
    /* A file in which the new key is kept until there is a certificate, so that asking again after
     * a crash on either side is the same machine asking; NULL: the key is only in memory. The
     * caller removes it after nk_identity_write. */
    const char *key_path;
    const struct nk_identity_files *old; /* or NULL: keeps its id, if it is of this cluster */
    struct nk_clock *clock;
};
/* Joins with a token. Blocks, at most NK_ENROL_CLIENT_MS by the clock. The process ignores
 * SIGPIPE. out is initialised by this and the caller's in every case: nk_enrolled_release().
 *   UNAVAILABLE      unreachable    no address answered: each, and why
 *   UNAUTHENTICATED  wrong_cluster  an answer came, but from another CA: both ids
 *   DENIED           expired_token, used_token, revoked_token, removed
 *   UNAUTHENTICATED  unknown_token
 *   PRECONDITION     clock_off      by how much
 *   INVALID          bad_reply      the answer is not one; bad_name
 *   and whatever the coordinator's admit said */
int nk_enrol_join(const struct nk_enrol_join_opts *opts, struct nk_enrolled *out,
                  struct nk_error *err);

struct nk_enrol_renew_opts {
    const struct nk_identity_files
        *identity;                  /* may have expired, up to NK_CERTIFICATE_GRACE_S ago */
    const struct nk_joined *joined; /* where to ask */
    const char *name;               /* NULL: joined's */
    const char *version;
    struct nk_clock *clock;
};
/* Renews: a new key and a new certificate for the same id. As nk_enrol_join, and
 *   DENIED        removed              this machine was removed from the cluster
 *   PRECONDITION  expired_certificate  too long ago: since when; a new token is needed */
int nk_enrol_renew(const struct nk_enrol_renew_opts *opts, struct nk_enrolled *out,
                   struct nk_error *err);

#endif
