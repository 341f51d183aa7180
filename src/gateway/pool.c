#include "gateway/pool.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/thread.h"

enum { THREADS_MAX = 16 };

struct nk_pool {
    struct nk_clock *clock;
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t some, idle;
    STAILQ_HEAD(, nk_task) tasks;
    bool stop;
    int n_threads, n_busy;
    uint64_t none_free_ns; /* since when all threads run the tasks that they run; 0: one is free */
    pthread_t threads[THREADS_MAX];
};

static void *loop(void *arg)
{
    nk_pool *p = arg;

    pthread_mutex_lock(&p->mutex);
    while (!STAILQ_EMPTY(&p->tasks) || !p->stop) {
        struct nk_task *t = STAILQ_FIRST(&p->tasks);

        if (!t) {
            pthread_cond_wait(&p->some, &p->mutex);
            continue;
        }
        STAILQ_REMOVE_HEAD(&p->tasks, link);
        if (++p->n_busy == p->n_threads)
            p->none_free_ns = nk_clock_now_ns(p->clock);
        pthread_mutex_unlock(&p->mutex);
        t->run(t);
        pthread_mutex_lock(&p->mutex);
        p->none_free_ns = 0;
        if (!--p->n_busy && STAILQ_EMPTY(&p->tasks))
            pthread_cond_broadcast(&p->idle);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

int nk__pool_start(nk_pool **out, int n_threads, struct nk_clock *clock, struct nk_error *err)
{
    nk_pool *p = calloc(1, sizeof *p);

    *out = NULL;
    if (!p)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for helper threads");
    p->clock = clock;
    STAILQ_INIT(&p->tasks);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->some, NULL);
    nk_cond_init(&p->idle);
    while (p->n_threads < n_threads && p->n_threads < THREADS_MAX &&
           !nk_thread_start(&p->threads[p->n_threads], loop, p))
        p->n_threads++;
    if (!p->n_threads) {
        nk__pool_stop(p);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "no helper thread could be started");
    }
    *out = p;
    return 0;
}

void nk__pool_stop(nk_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_cond_broadcast(&p->some);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->some);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

void nk__pool_post(nk_pool *p, struct nk_task *t)
{
    pthread_mutex_lock(&p->mutex);
    STAILQ_INSERT_TAIL(&p->tasks, t, link);
    pthread_cond_signal(&p->some);
    pthread_mutex_unlock(&p->mutex);
}

bool nk__pool_wait_idle(nk_pool *p, uint64_t ns)
{
    bool idle;

    pthread_mutex_lock(&p->mutex);
    while (
        (p->n_busy || !STAILQ_EMPTY(&p->tasks)) &&
        (nk_clock_wait_until(p->clock, &p->idle, &p->mutex, ns) || nk_clock_now_ns(p->clock) < ns))
        ;
    idle = !p->n_busy && STAILQ_EMPTY(&p->tasks);
    pthread_mutex_unlock(&p->mutex);
    return idle;
}

uint64_t nk__pool_stuck_ms(nk_pool *p)
{
    uint64_t now = nk_clock_now_ns(p->clock), ms;

    pthread_mutex_lock(&p->mutex);
    ms = p->none_free_ns && now > p->none_free_ns ? (now - p->none_free_ns) / 1000000 : 0;
    pthread_mutex_unlock(&p->mutex);
    return ms;
}
