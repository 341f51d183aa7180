/* Waiting for a net thread. */
#ifndef NK_TESTS_SETTLE_H
#define NK_TESTS_SETTLE_H

#include <pthread.h>

#include "rpc/rpc.h"

struct run_on {
    void (*fn)(void *arg);
    void *arg;
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool done;
};

static inline void run_on_posted(void *arg)
{
    struct run_on *r = arg;

    if (r->fn)
        r->fn(r->arg);
    pthread_mutex_lock(&r->mu);
    r->done = true;
    pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->mu);
}

/* fn(arg) on the net thread, and waits for it. */
static inline void run_on(nk_net *net, void (*fn)(void *arg), void *arg)
{
    struct run_on r = { .fn = fn, .arg = arg, .mu = PTHREAD_MUTEX_INITIALIZER };

    pthread_cond_init(&r.cond, NULL);
    nk_net_post(net, run_on_posted, &r);
    pthread_mutex_lock(&r.mu);
    while (!r.done)
        pthread_cond_wait(&r.cond, &r.mu);
    pthread_mutex_unlock(&r.mu);
    pthread_cond_destroy(&r.cond);
    pthread_mutex_destroy(&r.mu);
}

/* Until the timers that are due have run: they come between what is posted and what is posted after
 * that has run. */
static inline void settle(nk_net *net)
{
    run_on(net, NULL, NULL);
    run_on(net, NULL, NULL);
}

#endif
