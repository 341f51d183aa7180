/* Watches the connections' sockets beside libmicrohttpd: who went away while its request runs, and
 * who lets us wait.
 *
 * While a connection is suspended libmicrohttpd does not look at its socket, so a client that goes
 * away would only be noticed at the next write. A thread with an epoll of its own sees it at once:
 *
 *   reset, or closed on both sides    `gone` is called
 *   closed on the client's side only  may be a client that sends no more but reads (half closed),
 *                                     or one that is gone altogether: TCP cannot tell until
 *                                     something is written. `half_closed` is called, once; whoever
 *                                     gets it writes a byte, and a client that is gone answers with
 *                                     a reset
 *
 * Deadlines: a connection that does not send its headers, its body or its next request in time is
 * answered with 408 where that is possible and shut down, and libmicrohttpd then closes it. Time in
 * which this process did not run is nobody's delay. */
#ifndef NK_GATEWAY_WATCH_H
#define NK_GATEWAY_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"

typedef struct nk_watch nk_watch;
typedef struct nk_watched nk_watched; /* one connection */

/* On the watch thread, without its lock; request is what nk__watch_request was given. */
struct nk_watch_handlers {
    void (*gone)(void *request);
    void (*half_closed)(void *request);
    /* Called under the watch's lock: keeps and drops the request while a handler runs. Must not
     * call back. */
    void (*ref)(void *request);
    void (*unref)(void *request);
};

/* The thread looks at the deadlines this often: a connection is ended so much late at most. */
enum { NK_WATCH_TICK_MS = 250 };

/* clock: borrowed until nk__watch_stop. tls: no reply can be written to a socket. EXHAUSTED
 * no_memory, no_resources. */
int nk__watch_start(nk_watch **out, struct nk_clock *clock,
                    const struct nk_watch_handlers *handlers, bool tls, struct nk_error *err);
void nk__watch_stop(nk_watch *w); /* after all connections were dropped */

/* [any thread, as all below] A connection begins and ends. NULL: no memory. fd stays the caller's,
 * who drops it before it is closed. */
nk_watched *nk__watch_add(nk_watch *w, int fd, uint32_t deadline_ms);
void nk__watch_drop(nk_watched *c);
/* Its deadline from now on; 0: none. reply_408: it is in the middle of a request, to which a reply
 * may be written. */
void nk__watch_deadline(nk_watched *c, uint32_t ms, bool reply_408);
/* Its request runs: tell when the client goes. NULL: it is over. */
void nk__watch_request(nk_watched *c, void *request);
/* Shuts the socket down; libmicrohttpd will see its end. */
void nk__watch_shutdown(nk_watched *c);
/* The same for all connections that there are. */
void nk__watch_shutdown_all(nk_watch *w);

#endif
