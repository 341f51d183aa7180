/* The coordinator's inside; all of it on the net thread.
 *
 *   coordinator.c         its life, steps of the fleet, and what other threads ask
 *   coordinator_tell.c    what members and the one who serves are told
 *   coordinator_attend.c  what members say
 *   coordinator_calls.c   Status, Token, Remove */
#ifndef NK_CLUSTER_COORDINATOR_INT_H
#define NK_CLUSTER_COORDINATOR_INT_H

#include <pthread.h>
#include <sys/queue.h>

#include "cluster/coordinator.h"
#include "rpc/arena.h"
#include "rpc/proto.h"

enum {
    NK__REQUEST_MS = 10000, /* a call that has begun says what it wants within this */
    NK__STATUS_BYTES_MAX = 16 << 20,
};

/* A member's call. */
struct nk__attendee {
    nk_coordinator *c;
    nk_call *call;
    nk_timer *timer; /* until it has said Attending */
    char id[NK_MEMBER_ID_SIZE];
    uint64_t boot;
    bool attends;
    /* It is the member's no more: that has another call, or its lease is over. */
    bool overtaken;
    uint64_t window_ns; /* when it began to count messages */
    int n_messages, n_facts;
    LIST_ENTRY(nk__attendee) link;
};

struct nk_coordinator {
    struct nk_coordinator_opts o;
    nk_fleet *fleet;
    char addresses[NK_COORDINATOR_ADDRESSES_MAX][46]; /* as they are now */
    int n_addresses;
    LIST_HEAD(, nk__attendee) attendees;
    nk_timer *timer; /* nk_fleet_step's */
    bool step_posted, stopping;
    uint64_t roster_told;   /* the revision that all were told of */
    bool roster_due;        /* it could not be written, and is again at the next step */
    nk_arena *arena;        /* what members send is unpacked into it */
    pthread_mutex_t mutex;  /* of what follows; held for copies only */
    struct nk_buf snapshot; /* the state as JSON, for whoever must not wait for this thread */
    uint64_t asked_ns, snapshot_ns;
};

/* ---- coordinator.c ---- */
/* After something was told to the fleet: what follows is done once for all that came together. */
void nk__coordinator_step_soon(nk_coordinator *c);

/* ---- coordinator_tell.c ---- */
void nk__coordinator_tell(struct nk__attendee *a, Nakshatra__V1__CoordinatorMessage *m);
struct nk__attendee *nk__coordinator_attendee_of(nk_coordinator *c, const char *id);
void nk__coordinator_want(void *user, const char *id, const struct nk_want *w);
/* Its lease is over. If it is there all the same it shall attend anew: what it said by this call
 * would not be heard any more. */
void nk__coordinator_gone(void *user, const char *id);
void nk__coordinator_deploy(void *user, const struct nk_deployment *d);
void nk__coordinator_event(void *user, const char *sentence);
/* The roster into the file that this machine's servers and channels look at, and to everybody. */
int nk__coordinator_publish_roster(nk_coordinator *c, struct nk_error *err);
void nk__coordinator_tell_roster(nk_coordinator *c, struct nk__attendee *a);

/* ---- coordinator_calls.c ---- */
/* For /cluster, which has the gateway's member itself. */
int nk__coordinator_status_text(nk_coordinator *c, void *out, struct nk_error *err);

#endif
