/* A clock that stands still until the test moves it. Who waits on it wakes when the time it waits
 * for has come, and not before: "1 ms before the limit nothing, at the limit this" is then exact,
 * and takes no time. */
#ifndef NK_TESTS_VIRTUAL_CLOCK_H
#define NK_TESTS_VIRTUAL_CLOCK_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/clock.h"

struct virtual_waiter {
    pthread_cond_t *cond;
    pthread_mutex_t *mutex; /* the waiter's own */
    uint64_t ns;
    LIST_ENTRY(virtual_waiter) link;
};

struct virtual_clock {
    struct nk_clock clock; /* first: what is handed in is &v->clock */
    pthread_mutex_t mutex;
    pthread_mutex_t moving; /* held while listeners are told */
    pthread_cond_t changed;
    atomic_ullong ns;
    atomic_llong unix_begin_s;
    LIST_HEAD(, virtual_waiter) waiters;
    LIST_HEAD(, nk_clock_listener) listeners;
};

static inline uint64_t virtual_now_ns(struct nk_clock *clock)
{
    return atomic_load(&((struct virtual_clock *)clock)->ns);
}

static inline int64_t virtual_unix_s(struct nk_clock *clock)
{
    struct virtual_clock *v = (struct virtual_clock *)clock;

    return atomic_load(&v->unix_begin_s) + (int64_t)(virtual_now_ns(clock) / 1000000000u);
}

static inline bool virtual_wait_until(struct nk_clock *clock, pthread_cond_t *cond,
                                      pthread_mutex_t *mutex, uint64_t ns)
{
    struct virtual_clock *v = (struct virtual_clock *)clock;
    struct virtual_waiter w = { .cond = cond, .mutex = mutex, .ns = ns };

    pthread_mutex_lock(&v->mutex);
    if (virtual_now_ns(clock) >= ns) {
        pthread_mutex_unlock(&v->mutex);
        return false;
    }
    LIST_INSERT_HEAD(&v->waiters, &w, link);
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->mutex);
    pthread_cond_wait(cond, mutex);
    pthread_mutex_lock(&v->mutex);
    LIST_REMOVE(&w, link);
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->mutex);
    return virtual_now_ns(clock) < ns;
}

static inline void virtual_listen(struct nk_clock *clock, struct nk_clock_listener *l)
{
    struct virtual_clock *v = (struct virtual_clock *)clock;

    pthread_mutex_lock(&v->moving);
    LIST_INSERT_HEAD(&v->listeners, l, link);
    pthread_mutex_unlock(&v->moving);
}

static inline void virtual_unlisten(struct nk_clock *clock, struct nk_clock_listener *l)
{
    struct virtual_clock *v = (struct virtual_clock *)clock;

    pthread_mutex_lock(&v->moving);
    LIST_REMOVE(l, link);
    pthread_mutex_unlock(&v->moving);
}

static inline void virtual_clock_init(struct virtual_clock *v)
{
    *v = (struct virtual_clock){ .clock = { .now_ns = virtual_now_ns,
                                            .unix_s = virtual_unix_s,
                                            .wait_until = virtual_wait_until,
                                            .listen = virtual_listen,
                                            .unlisten = virtual_unlisten } };
    pthread_mutex_init(&v->mutex, NULL);
    pthread_mutex_init(&v->moving, NULL);
    pthread_cond_init(&v->changed, NULL);
    atomic_init(&v->ns, 1000000000000u); /* not 0, which means "never" in places */
    atomic_init(&v->unix_begin_s, 1700000000);
}

static inline void virtual_clock_release(struct virtual_clock *v)
{
    pthread_cond_destroy(&v->changed);
    pthread_mutex_destroy(&v->moving);
    pthread_mutex_destroy(&v->mutex);
}

/* Moves the time and wakes everybody whose time has come. When it returns, those have been
 * signalled; that they have done something with it is for the test to wait for. */
static inline void virtual_clock_advance_ns(struct virtual_clock *v, uint64_t ns)
{
    struct nk_clock_listener *l;
    bool again;

    pthread_mutex_lock(&v->mutex);
    atomic_fetch_add(&v->ns, ns);
    pthread_mutex_unlock(&v->mutex);
    /* A waiter lets go of its mutex only by waiting: who can take it signals nobody too early. */
    do {
        struct virtual_waiter *w;

        again = false;
        pthread_mutex_lock(&v->mutex);
        LIST_FOREACH(w, &v->waiters, link)
        {
            if (w->ns > atomic_load(&v->ns))
                continue;
            if (pthread_mutex_trylock(w->mutex)) {
                again = true;
                continue;
            }
            pthread_cond_broadcast(w->cond);
            pthread_mutex_unlock(w->mutex);
        }
        pthread_mutex_unlock(&v->mutex);
        if (again)
            sched_yield();
    } while (again);
    pthread_mutex_lock(&v->moving);
    LIST_FOREACH(l, &v->listeners, link)
    {
        l->moved(l->arg);
    }
    pthread_mutex_unlock(&v->moving);
}

static inline void virtual_clock_advance_ms(struct virtual_clock *v, uint64_t ms)
{
    virtual_clock_advance_ns(v, ms * 1000000u);
}

/* Waits until somebody waits on a condition for this very time (from now, in ms): it has then seen
 * all that was before. */
static inline void virtual_clock_wait_for_waiter(struct virtual_clock *v, uint64_t ms)
{
    struct virtual_waiter *w;

    pthread_mutex_lock(&v->mutex);
    for (;;) {
        LIST_FOREACH(w, &v->waiters, link)
        {
            if (w->ns == atomic_load(&v->ns) + ms * 1000000u)
                break;
        }
        if (w)
            break;
        pthread_cond_wait(&v->changed, &v->mutex);
    }
    pthread_mutex_unlock(&v->mutex);
}

#endif
