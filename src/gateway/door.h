/* Who may hold a connection. The gateway has so many places, and one address may take so many of
 * them; beyond both a few spare places are kept for probes (/healthz, /readyz).
 *
 * A connection holds its place for certain only while a whole request of it is under way. Before
 * that (it sends a head or a body, or nothing at all) it yields to who comes when there is no place
 * left: the longest waiting one of the address that has the most. So half-sent requests, however
 * many and however slow, keep nobody out.
 *
 * An address is an IPv4 address, or the upper half of an IPv6 one: who has the network has as many
 * lower halves as he likes.
 *
 * Pure; everything on one thread. */
#ifndef NK_GATEWAY_DOOR_H
#define NK_GATEWAY_DOOR_H

#include <sys/socket.h>

#include "base/error.h"

typedef struct nk_door nk_door;
typedef struct nk_guest nk_guest; /* one connection */

struct nk_door_opts {
    int places, places_per_address, spare_places; /* each at least 1 */
    /* The connection is to be closed soon; nk__door_leave is still called for it, later. */
    void (*evict)(void *connection);
};

enum nk_door_place {
    NK_DOOR_PLACE,   /* all it asks is answered */
    NK_DOOR_ADDRESS, /* a spare one, because its address has all that it may have: probes only */
    NK_DOOR_FULL,    /* a spare one, because all are taken: probes only */
};

/* EXHAUSTED no_memory. */
int nk__door_new(nk_door **out, const struct nk_door_opts *opts, struct nk_error *err);
void nk__door_free(nk_door *d); /* after all guests have left */

/* A new connection. NULL: no memory. When not even a spare place is left it is evicted itself. */
nk_guest *nk__door_enter(nk_door *d, const struct sockaddr *address, void *connection);
enum nk_door_place nk__door_place(const nk_guest *g);
void nk__door_busy(nk_guest *g); /* a whole request is there */
void nk__door_idle(nk_guest *g); /* its reply is over */
void nk__door_leave(nk_guest *g);

#endif
