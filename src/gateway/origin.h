/* Where the gateway listens, and from where a browser may be sent to it. Pure but for the
 * resolver. */
#ifndef NK_GATEWAY_ORIGIN_H
#define NK_GATEWAY_ORIGIN_H

#include <stdbool.h>
#include <sys/socket.h>

#include "base/error.h"

struct nk_listen {
    struct sockaddr_storage address;
    socklen_t size;
    bool loopback;
    char host[256]; /* as it was given, without brackets */
};
/* "127.0.0.1:8080", "[::1]:0", "localhost:8080", ":8080" (all addresses).
 *   INVALID  bad_listen */
int nk__listen_parse(struct nk_listen *out, const char *text, struct nk_error *err);

/* Is this Host (with or without a port) this machine's own? An address, localhost, the machine's
 * name, or a name that is never anybody else's on the internet (.localhost, .local, .internal). DNS
 * rebinding ends here: a foreign page's name that resolves to 127.0.0.1 is none of these. */
bool nk__host_is_own(const char *host);

/* May a page from this origin call? It may when its host and port are the request's own (host: the
 * Host header), or when one of the allowed is "*" or equal. */
bool nk__origin_allowed(const char *origin, const char *host, const char *const *allowed,
                        int n_allowed);

#endif
