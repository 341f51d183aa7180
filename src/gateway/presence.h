/* Who must have left before the gateway may: nk_gateway_stop waits for them.
 *
 * Safety: its mutex is taken last, under any other; nothing is called under it. */
#ifndef NK_GATEWAY_PRESENCE_H
#define NK_GATEWAY_PRESENCE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

enum nk_presence_kind {
    NK_PRESENT_JOB,       /* a request for text whose reply is not over */
    NK_PRESENT_HELD,      /* a job that somebody has: a generation's end may outlast its reply's */
    NK_PRESENT_SUSPENDED, /* a connection that libmicrohttpd does not look at */
    NK_PRESENCE_KINDS,
};

struct nk_presence {
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t changed;
    int n[NK_PRESENCE_KINDS];
    bool closed;
};

void nk__presence_init(struct nk_presence *p);
void nk__presence_release(struct nk_presence *p);

/* [any thread, as all below] One comes. */
void nk__presence_enter(struct nk_presence *p, enum nk_presence_kind kind);
/* One goes. Who was the last may not touch p any more: it may be gone. */
void nk__presence_leave(struct nk_presence *p, enum nk_presence_kind kind);
/* One more is suspended. False: it is closed, and nothing was counted. */
bool nk__presence_suspend(struct nk_presence *p);
/* Nothing is suspended any more that is not yet. */
void nk__presence_close(struct nk_presence *p);
bool nk__presence_closed(struct nk_presence *p);
/* Waits until there is none of the kind, or it is `ns`. False: there still is one. */
bool nk__presence_wait(struct nk_presence *p, enum nk_presence_kind kind, struct nk_clock *clock,
                       uint64_t ns);

#endif
