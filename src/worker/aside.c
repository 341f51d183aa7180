#include "worker/aside.h"

#include <stdatomic.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/cpu.h"
#include "base/thread.h"

struct errand {
    struct nk_aside *a;
    struct nk_session *s; /* a reference */
};

/* On Linux a thread has a priority of its own (setpriority(2), "C library/kernel differences"). */
static void yield_to_others(void)
{
    nk_cpu_unpin();
#ifdef __linux__
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
#endif
}

/* NULL: none is left, and the session has no thread any more. */
static struct nk_compute_job *take(struct nk_aside *a, struct nk_session *s)
{
    struct nk_compute_job *j;

    pthread_mutex_lock(&a->mutex);
    j = s->aside_first;
    if (j) {
        s->aside_first = j->aside_next;
    } else {
        s->is_aside = false;
        pthread_cond_broadcast(&a->cond);
    }
    pthread_mutex_unlock(&a->mutex);
    return j;
}

static void run_all(struct nk_aside *a, struct nk_session *s)
{
    struct nk_compute_job *j;

    while ((j = take(a, s)))
        a->run(a->user, j);
}

static void *aside_main(void *arg)
{
    struct errand e = *(struct errand *)arg;

    free(arg);
    yield_to_others();
    run_all(e.a, e.s);
    nk__session_unref(e.s);
    pthread_mutex_lock(&e.a->mutex);
    e.a->n_threads--;
    pthread_cond_broadcast(&e.a->cond);
    pthread_mutex_unlock(&e.a->mutex);
    return NULL;
}

void nk__aside_init(struct nk_aside *a, void (*run)(void *user, struct nk_compute_job *j),
                    void *user)
{
    a->run = run;
    a->user = user;
    a->n_threads = 0;
    pthread_mutex_init(&a->mutex, NULL);
    pthread_cond_init(&a->cond, NULL);
}

void nk__aside_release(struct nk_aside *a)
{
    pthread_cond_destroy(&a->cond);
    pthread_mutex_destroy(&a->mutex);
}

bool nk__aside_has(struct nk_aside *a, struct nk_session *s)
{
    bool has;

    pthread_mutex_lock(&a->mutex);
    has = s->is_aside;
    pthread_mutex_unlock(&a->mutex);
    return has;
}

static bool start_thread(struct nk_aside *a, struct nk_session *s)
{
    struct errand *e = malloc(sizeof *e);
    pthread_t thread;

    if (!e)
        return false;
    *e = (struct errand){ a, s };
    atomic_fetch_add(&s->refs, 1);
    if (!nk_thread_start(&thread, aside_main, e)) {
        pthread_detach(thread);
        return true;
    }
    atomic_fetch_sub(&s->refs, 1); /* the caller has one */
    free(e);
    return false;
}

void nk__aside_add(struct nk_aside *a, struct nk_session *s, struct nk_compute_job *j)
{
    struct nk_compute_job **end;
    bool begins;

    j->aside_next = NULL;
    pthread_mutex_lock(&a->mutex);
    for (end = &s->aside_first; *end; end = &(*end)->aside_next)
        ;
    *end = j;
    begins = !s->is_aside;
    s->is_aside = true;
    a->n_threads += begins;
    pthread_mutex_unlock(&a->mutex);
    if (!begins || start_thread(a, s))
        return;
    atomic_fetch_add(&s->refs, 1); /* the job's may be the last */
    run_all(a, s);
    pthread_mutex_lock(&a->mutex);
    a->n_threads--;
    pthread_mutex_unlock(&a->mutex);
    nk__session_unref(s);
}

void nk__aside_wait_for(struct nk_aside *a, struct nk_session *s)
{
    pthread_mutex_lock(&a->mutex);
    while (s->is_aside)
        pthread_cond_wait(&a->cond, &a->mutex);
    pthread_mutex_unlock(&a->mutex);
}

void nk__aside_wait(struct nk_aside *a)
{
    pthread_mutex_lock(&a->mutex);
    while (a->n_threads)
        pthread_cond_wait(&a->cond, &a->mutex);
    pthread_mutex_unlock(&a->mutex);
}
