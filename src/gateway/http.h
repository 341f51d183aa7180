/* HTTP in front of the gateway (http.c): libmicrohttpd and the watch over its connections. */
#ifndef NK_GATEWAY_HTTP_H
#define NK_GATEWAY_HTTP_H

#include "gateway/gateway_int.h"

/* What one address may have of the connections. */
int nk__connections_per_address(const struct nk_gateway_limits *l);
/* Listens at g->listen and fills g->port. UNAVAILABLE cannot_listen; EXHAUSTED no_memory,
 * no_resources. */
int nk__http_start(nk_gateway *g, struct nk_error *err);
void nk__http_quiesce(nk_gateway *g); /* accepts nothing more */
void nk__http_stop(nk_gateway *g);    /* when nothing is suspended */
/* A new snapshot is there: /cluster/events sends it. Any thread. */
void nk__http_publish(nk_gateway *g, const struct nk_snapshot *s);
/* The readers of /cluster/events look whether the gateway stops. Any thread. */
void nk__http_wake_listeners(nk_gateway *g);

#endif
