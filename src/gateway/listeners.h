/* The readers of /cluster/events: each snapshot is sent to all of them, and who did not read the
 * one before gets only the newest. */
#ifndef NK_GATEWAY_LISTENERS_H
#define NK_GATEWAY_LISTENERS_H

#include <microhttpd.h>

#include "gateway/gateway_int.h"

/* One event for all of them. */
struct nk_event_blob {
    atomic_int refs;
    size_t size;
    char *data;
};
void nk__event_blob_unref(struct nk_event_blob *b); /* NULL: nothing */

/* A new snapshot is there. Any thread. */
void nk__listeners_publish(nk_gateway *g, const struct nk_snapshot *s);
/* They look whether the gateway stops. Any thread. */
void nk__listeners_wake(nk_gateway *g);
/* The exchange becomes one. [HTTP thread] */
enum MHD_Result nk__listener_answer(nk_exchange *x);
/* It is none any more. [HTTP thread] */
void nk__listener_stop(nk_exchange *x);

#endif
