#include "gateway/replicas.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/thread.h"

struct nk_reaper {
    pthread_t thread;
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t some;
    STAILQ_HEAD(, nk_replicas) ended;
    bool stop;
};

static void *loop(void *arg)
{
    nk_reaper *r = arg;

    pthread_mutex_lock(&r->mutex);
    while (!STAILQ_EMPTY(&r->ended) || !r->stop) {
        struct nk_replicas *s = STAILQ_FIRST(&r->ended);

        if (!s) {
            pthread_cond_wait(&r->some, &r->mutex);
            continue;
        }
        STAILQ_REMOVE_HEAD(&r->ended, link);
        pthread_mutex_unlock(&r->mutex);
        for (int i = 0; i < s->n; i++)
            nk_chain_close(s->chains[i]);
        free(s);
        pthread_mutex_lock(&r->mutex);
    }
    pthread_mutex_unlock(&r->mutex);
    return NULL;
}

static void free_reaper(nk_reaper *r)
{
    pthread_cond_destroy(&r->some);
    pthread_mutex_destroy(&r->mutex);
    free(r);
}

int nk__reaper_start(nk_reaper **out, struct nk_error *err)
{
    nk_reaper *r = calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
    STAILQ_INIT(&r->ended);
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->some, NULL);
    if (nk_thread_start(&r->thread, loop, r)) {
        free_reaper(r);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread",
                       "the thread that closes chains could not be started");
    }
    *out = r;
    return 0;
}

void nk__reaper_stop(nk_reaper *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    pthread_cond_signal(&r->some);
    pthread_mutex_unlock(&r->mutex);
    pthread_join(r->thread, NULL);
    free_reaper(r);
}

struct nk_replicas *nk__replicas_new(nk_reaper *r, nk_chain *const *chains, int n, uint64_t epoch)
{
    struct nk_replicas *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    NK_ASSERT(n > 0 && n <= NK_GATEWAY_CHAINS_MAX);
    atomic_init(&s->refs, 1);
    s->reaper = r;
    s->epoch = epoch;
    s->n = n;
    for (int i = 0; i < n; i++)
        s->chains[i] = chains[i];
    return s;
}

struct nk_replicas *nk__replicas_ref(struct nk_replicas *s)
{
    if (s)
        atomic_fetch_add(&s->refs, 1);
    return s;
}

void nk__replicas_unref(struct nk_replicas *s)
{
    nk_reaper *r = s ? s->reaper : NULL;

    if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    pthread_mutex_lock(&r->mutex);
    STAILQ_INSERT_TAIL(&r->ended, s, link);
    pthread_cond_signal(&r->some);
    pthread_mutex_unlock(&r->mutex);
}

void nk__replicas_dissolve(struct nk_replicas *s)
{
    if (!s)
        return;
    NK_ASSERT(atomic_load(&s->refs) == 1);
    free(s);
}
