/* Time, as a value.
 *
 * What waits, or asks how late it is, is given a clock: rpc, worker, chain and gateway take one,
 * and ask no other. The program gives them the system's. Unit tests give them one that stands still
 * until the test moves it (tests/unit/virtual_clock.h), so that a stall of 30 s is tested exactly,
 * in no time, and whatever else the machine does.
 *
 * Times are nanoseconds since some moment: good for durations and deadlines. Everything here is
 * thread-safe. */
#ifndef NK_BASE_CLOCK_H
#define NK_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

/* Told when a clock that is moved by hand was moved. For threads that wait for something else than
 * a condition of their own: they wait without a limit (nk_clock_wait_ms says -1), and are woken by
 * this. */
struct nk_clock_listener {
    void (*moved)(void *arg); /* on the thread that moves it; must not block */
    void *arg;
    LIST_ENTRY(nk_clock_listener) link; /* the clock's */
};

/* A clock: its functions, with the clock itself as their first argument. Call them through those
 * below. */
struct nk_clock {
    uint64_t (*now_ns)(struct nk_clock *clock);
    int64_t (*unix_s)(struct nk_clock *clock);
    bool (*wait_until)(struct nk_clock *clock, pthread_cond_t *cond, pthread_mutex_t *mutex,
                       uint64_t ns);
    /* Both NULL: it goes on by itself, as the system's does. */
    void (*listen)(struct nk_clock *clock, struct nk_clock_listener *l);
    void (*unlisten)(struct nk_clock *clock, struct nk_clock_listener *l);
};

/* The system's clock: CLOCK_MONOTONIC, and the time of day. Lives for ever. */
struct nk_clock *nk_clock_system(void);

uint64_t nk_clock_now_ns(struct nk_clock *clock);
int64_t nk_clock_unix_s(struct nk_clock *clock); /* the time of day: seconds since 1970, UTC */

/* Waits on a condition (of nk_cond_init) until it is signalled, or it is `ns`. False: that time has
 * come. Like every wait on a condition it may return true for nothing. */
bool nk_clock_wait_until(struct nk_clock *clock, pthread_cond_t *cond, pthread_mutex_t *mutex,
                         uint64_t ns);
/* Whether time passes by itself: a system call may then be given a limit in real time. */
bool nk_clock_runs(const struct nk_clock *clock);
/* For poll() and its like: milliseconds from now until `ns`, rounded up so that it does not wake
 * too early, at most a minute at a time; -1, no limit, on a clock that does not run by itself: then
 * l (listening since before `ns` was chosen) must wake the one that waits. */
int nk_clock_wait_ms(struct nk_clock *clock, uint64_t ns);
/* From here on l is told of every move, until nk_clock_unlisten, which waits for a call that is on
 * its way. On a clock that runs by itself both do nothing. l is borrowed in between. */
void nk_clock_listen(struct nk_clock *clock, struct nk_clock_listener *l);
void nk_clock_unlisten(struct nk_clock *clock, struct nk_clock_listener *l);

void nk_cond_init(pthread_cond_t *cond); /* a condition for nk_clock_wait_until */

/* ---- the system's: for what only tells people, and for waiting for other programs ---- */
uint64_t nk_now_ns(void);
void nk_utc_format(char *out, size_t size); /* 2026-03-02T10:15:04.211Z */
void nk_sleep_ms(unsigned ms);              /* never on the token's way */

#endif
