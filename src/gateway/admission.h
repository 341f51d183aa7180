/* How many generations run at one time, and who waits. First come, first served; the queue has a
 * length and a wait has an end. While the workers are not there nothing starts, and who waits goes
 * on waiting. One thread starts what may run and ends the waiting of those who waited too long. */
#ifndef NK_GATEWAY_ADMISSION_H
#define NK_GATEWAY_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/clock.h"
#include "base/error.h"

typedef struct nk_admission nk_admission;

/* One generation; the caller's memory until it is out. */
struct nk_ticket {
    /* It may run now; nk__admission_leave when it is over. [the admission's thread, without its
     * lock, as expire] */
    void (*start)(struct nk_ticket *t);
    /* It waited too long and is out. EXHAUSTED `queue_timeout`; while paused, UNAVAILABLE
     * `not_ready` with what is in the way. Who came back with an end of its own is only told what
     * is in the way. */
    void (*expire)(struct nk_ticket *t, const struct nk_error *err);
    void *user;
    /* the admission's own */
    TAILQ_ENTRY(nk_ticket) link; /* while it waits */
    enum { NK_TICKET_OUT, NK_TICKET_WAITING, NK_TICKET_RUNNING } state;
    uint64_t entered_ns, started_ns;
    uint64_t late_ns; /* when its wait ends */
    bool own_end;     /* as nk__admission_return was told */
};

struct nk_admission_opts {
    struct nk_clock *clock; /* borrowed until nk__admission_stop */
    int waiting_max;        /* tickets that wait, beside those that can run at once */
    uint32_t waiting_ms;    /* so long */
    /* Called on the thread every second; may be NULL. */
    void (*tick)(void *user);
    void *user; /* tick's */
};

/* EXHAUSTED no_memory, no_thread. */
int nk__admission_start(nk_admission **out, const struct nk_admission_opts *opts,
                        struct nk_error *err);
void nk__admission_stop(nk_admission *a); /* when all tickets are out */

/* How many may run, from now on: it ends a pause, too. Until it is first set, nothing starts. [any
 * thread, as all below] */
void nk__admission_set_capacity(nk_admission *a, int capacity);
/* So many of those that run take none of the places: they end on workers to which nothing new
 * goes. */
void nk__admission_set_apart(nk_admission *a, int n);
/* Nothing starts until the capacity is set again. why is copied. */
void nk__admission_pause(nk_admission *a, const struct nk_error *why);
/* For the end: nothing starts any more, whatever comes free. Who waits is withdrawn, or expires. */
void nk__admission_close(nk_admission *a);
/* All of them wait, or none: EXHAUSTED `queue_full`. */
int nk__admission_enter(nk_admission *a, struct nk_ticket *const *tickets, int n,
                        struct nk_error *err);
/* Out of the queue; false: it is not waiting (it runs, or is out). */
bool nk__admission_withdraw(nk_admission *a, struct nk_ticket *t);
/* A running one is over. */
void nk__admission_leave(nk_admission *a, struct nk_ticket *t);
/* A running one goes back to the front of the queue, whatever its length, and waits until late_ns;
 * 0: the time that it ran is not of its wait. False: closed, and it still counts as running. */
bool nk__admission_return(nk_admission *a, struct nk_ticket *t, uint64_t late_ns);

struct nk_admission_counts {
    int running, waiting, capacity, waiting_max;
    int ending; /* 0: nk__readiness_counts's to say */
    /* A guess of when there will be room, 1 to 60: the queue's length by the mean time of those
     * that ended. */
    int retry_after_s;
};
struct nk_admission_counts nk__admission_counts(nk_admission *a);

#endif
