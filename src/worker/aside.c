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
    struct nk_session *s;    /* a reference; or */
    void (*work)(void *arg); /* what is of no step */
    void *arg;
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

static void count_threads(struct nk_aside *a, int more)
{
    pthread_mutex_lock(&a->mutex);
    a->n_threads += more;
    pthread_cond_broadcast(&a->cond);
    pthread_mutex_unlock(&a->mutex);
}

static void *aside_main(void *arg)
{
    struct errand e = *(struct errand *)arg;

    free(arg);
    yield_to_others();
    if (e.work) {
        e.work(e.arg);
    } else {
        run_all(e.a, e.s);
        nk__session_unref(e.s);
    }
    count_threads(e.a, -1);
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

/* Takes what e has, on a thread; false: there is none to be had. */
static bool start_thread(struct errand e)
{
    struct errand *own = malloc(sizeof *own);
    pthread_t thread;

    if (!own)
        return false;
    *own = e;
    if (nk_thread_start(&thread, aside_main, own)) {
        free(own);
        return false;
    }
    pthread_detach(thread);
    return true;
}

void nk__aside_do(struct nk_aside *a, void (*work)(void *arg), void *arg)
{
    count_threads(a, 1);
    if (start_thread((struct errand){ .a = a, .work = work, .arg = arg }))
        return;
    work(arg);
    count_threads(a, -1);
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
    if (!begins)
        return;
    atomic_fetch_add(&s->refs, 1); /* the job's may be the last */
    if (start_thread((struct errand){ .a = a, .s = s }))
        return;
    run_all(a, s);
    count_threads(a, -1);
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
