/* Which paths there are, and the short answers: models, versions, what is known of the cluster. */
#ifndef NK_GATEWAY_ROUTES_H
#define NK_GATEWAY_ROUTES_H

#include "gateway/assets.h"
#include "gateway/gateway_int.h"
#include "gateway/request.h"

enum nk_route_kind {
    NK_ROUTE_SHORT,    /* answered at once by `answer` */
    NK_ROUTE_LOOK,     /* the same, after a fresh look at the workers */
    NK_ROUTE_EVENTS,   /* /cluster/events */
    NK_ROUTE_GENERATE, /* a job */
    NK_ROUTE_ASSET,    /* the page's files */
    NK_ROUTE_REFUSED,  /* known from elsewhere; 501, and `what` says why or what to use */
};

struct nk_route_answer { /* of a short route; body is filled, status 200 is there already */
    bool trusted;        /* who asks may see what lets a machine join */
    const char *key;     /* the digest of the key that asks; "": none */
    int status;
    const char *type;
    struct nk_buf *body;
    struct nk_error err; /* code not 0: the answer is this error */
    char param[64];
};

struct nk_route {
    const char *path;   /* ending in "/": and what follows, which answer gets as rest */
    const char *method; /* "GET" (and HEAD), "POST" or "DELETE"; a path has a line for each */
    enum nk_route_kind kind;
    bool openai;     /* the shape of its errors */
    bool open;       /* no key is needed */
    bool probe;      /* LOOK: a token goes through the chain */
    uint32_t age_ms; /* LOOK: how old what is known may be */
    enum nk_api api; /* GENERATE, and SHORT ones with a request */
    void (*answer)(nk_gateway *g, const char *rest, const struct nk_buf *request,
                   const struct nk_snapshot *s, struct nk_route_answer *a);
    const char *what; /* for docs/api.md, and for a refusal */
};

/* The routes one after the other, idx from 0; NULL past the last. */
const struct nk_route *nk__route_at(int idx);

/* The route of a path, whatever the method; NULL: there is none. page: with the page's files.
 * *allowed: its methods, for 405. When the method does not fit, *fits is false. */
const struct nk_route *nk__route_find(const char *path, const char *method, bool page, bool *fits,
                                      const char **allowed);
/* Whose errors a route's are; NULL: of a path that there is not. */
enum nk_dialect nk__route_dialect(const struct nk_route *r);
const struct nk_asset *nk__asset_find(const char *path);

/* One JSON object about the whole cluster (docs/api.md). s may be NULL: nothing is known yet.
 * trusted: with the join line. EXHAUSTED too_large. */
int nk__cluster_json(nk_gateway *g, const struct nk_snapshot *s, bool trusted, struct nk_buf *out,
                     struct nk_error *err);

#endif
