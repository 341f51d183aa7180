/* HTTP in front of the gateway: libmicrohttpd (one thread, epoll), its connections, and the watch
 * over them. What a connection asks is an exchange (exchange.h). */
#ifndef NK_GATEWAY_HTTP_H
#define NK_GATEWAY_HTTP_H

#include "gateway/gateway_int.h"

/* Listens at g->listen and fills g->port. UNAVAILABLE cannot_listen; EXHAUSTED no_memory,
 * no_resources. */
int nk__http_start(nk_gateway *g, struct nk_error *err);
void nk__http_quiesce(nk_gateway *g); /* accepts nothing more */
void nk__http_stop(nk_gateway *g);    /* when nothing is suspended */

#endif
