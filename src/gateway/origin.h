/* Where the gateway listens, and from where a browser may be sent to it. Pure but for the
 * resolver. */
#ifndef NK_GATEWAY_ORIGIN_H
#define NK_GATEWAY_ORIGIN_H

#include <stdbool.h>
#include <sys/socket.h>

#include "base/error.h"

/* 127.0.0.0/8, ::1, and the former as IPv6 writes it. */
bool nk__address_is_loopback(const struct sockaddr *a);

struct nk_listen {
    struct sockaddr_storage address;
    socklen_t size;
    bool loopback;
    char host[256]; /* as it was given, without brackets */
};
/* "127.0.0.1:8080", "[::1]:0", "localhost:8080", ":8080" (all addresses).
 *   INVALID  bad_listen */
int nk__listen_parse(struct nk_listen *out, const char *text, struct nk_error *err);
/* Listens there, and no more. text: as it was given, for the message. UNAVAILABLE cannot_listen,
 * with the system's reason. */
int nk__listen_try(const struct nk_listen *l, const char *text, struct nk_error *err);

/* May a request with this Host (with or without a port) be for this gateway? DNS rebinding ends
 * here: a foreign page whose name is made to resolve to the gateway's address is of the gateway's
 * own origin for the browser, but its Host is none of these:
 *
 *   an address           no name was resolved, so none was rebound
 *   localhost, .localhost    browsers and resolvers keep them to the machine (RFC 6761)
 *   the machine's own name, whole or its first label
 *   one of the allowed, or "*" among them
 *
 * Names under .local and .internal belong to whoever announces them on the network, so they must be
 * allowed. */
bool nk__host_allowed(const char *host, const char *const *allowed, int n_allowed);

/* May a page from this origin call? It may when its host and port are the request's own (host: the
 * Host header), when it is served from this machine itself (localhost, a name under .localhost, a
 * loopback address; any port), or when one of the allowed is "*" or equal. */
bool nk__origin_allowed(const char *origin, const char *host, const char *const *allowed,
                        int n_allowed);

#endif
