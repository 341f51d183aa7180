#include "gateway/admission.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/thread.h"

enum { TICK_MS = 1000 };

struct nk_admission {
    struct nk_admission_opts opts;
    pthread_t thread;
    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t changed;
    bool stop, closed, paused;
    struct nk_error why; /* it is paused */
    int capacity, running, waiting;
    int apart;                     /* of running: they take no place */
    TAILQ_HEAD(, nk_ticket) queue; /* who came first is first */
    uint64_t next_tick_ns;
    double mean_s; /* how long generations take: an average that forgets */
};

/* Free places; may be less than 0. Under the mutex. */
static int n_free(const nk_admission *a)
{
    return a->capacity + a->apart - a->running;
}

/* Out of the queue. Under the mutex. */
static void unlink_ticket(nk_admission *a, struct nk_ticket *t)
{
    TAILQ_REMOVE(&a->queue, t, link);
    a->waiting--;
}

/* The one whose wait ends first: who came back has more time than those behind it. Under the
 * mutex. */
static struct nk_ticket *next_late(nk_admission *a)
{
    struct nk_ticket *t, *next = NULL;

    TAILQ_FOREACH(t, &a->queue, link)
    {
        if (!next || t->late_ns < next->late_ns)
            next = t;
    }
    return next;
}

static void *loop(void *arg)
{
    nk_admission *a = arg;
    struct nk_clock *clock = a->opts.clock;

    pthread_mutex_lock(&a->mutex);
    while (!a->stop) {
        struct nk_ticket *t = TAILQ_FIRST(&a->queue), *last = next_late(a);
        uint64_t now = nk_clock_now_ns(clock), late = last ? last->late_ns : UINT64_MAX;

        if (now >= a->next_tick_ns) {
            a->next_tick_ns = now + TICK_MS * 1000000ull;
            pthread_mutex_unlock(&a->mutex);
            if (a->opts.tick)
                a->opts.tick(a->opts.user);
            pthread_mutex_lock(&a->mutex);
        } else if (t && !a->closed && !a->paused && n_free(a) > 0) {
            unlink_ticket(a, t);
            t->state = NK_TICKET_RUNNING;
            t->started_ns = now;
            a->running++;
            pthread_mutex_unlock(&a->mutex);
            t->start(t);
            pthread_mutex_lock(&a->mutex);
        } else if (now >= late) {
            struct nk_error err;

            t = last;
            unlink_ticket(a, t);
            t->state = NK_TICKET_OUT;
            if (t->own_end) /* its user knows how long it waited */
                nk_fail(&err, NK_E_UNAVAILABLE, "not_ready", "%s",
                        a->paused ? a->why.msg : "no sequence came free");
            else if (a->paused)
                nk_fail(&err, NK_E_UNAVAILABLE, "not_ready",
                        "the workers were not ready within %u ms: %s", a->opts.waiting_ms,
                        a->why.msg);
            else
                nk_fail(&err, NK_E_EXHAUSTED, "queue_timeout",
                        "no sequence came free within %u ms: %d generations run, %d wait",
                        a->opts.waiting_ms, a->running, a->waiting);
            pthread_mutex_unlock(&a->mutex);
            t->expire(t, &err);
            pthread_mutex_lock(&a->mutex);
        } else
            nk_clock_wait_until(clock, &a->changed, &a->mutex,
                                late < a->next_tick_ns ? late : a->next_tick_ns);
    }
    pthread_mutex_unlock(&a->mutex);
    return NULL;
}

int nk__admission_start(nk_admission **out, const struct nk_admission_opts *opts,
                        struct nk_error *err)
{
    nk_admission *a = calloc(1, sizeof *a);

    *out = NULL;
    if (!a)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the queue");
    a->opts = *opts;
    a->next_tick_ns = nk_clock_now_ns(opts->clock) + TICK_MS * 1000000ull;
    a->mean_s = 1;
    TAILQ_INIT(&a->queue);
    pthread_mutex_init(&a->mutex, NULL);
    nk_cond_init(&a->changed);
    if (nk_thread_start(&a->thread, loop, a)) {
        pthread_cond_destroy(&a->changed);
        pthread_mutex_destroy(&a->mutex);
        free(a);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the queue's thread could not be started");
    }
    *out = a;
    return 0;
}

void nk__admission_stop(nk_admission *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->mutex);
    NK_ASSERT(TAILQ_EMPTY(&a->queue) && !a->running);
    a->stop = true;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    pthread_join(a->thread, NULL);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->mutex);
    free(a);
}

void nk__admission_set_capacity(nk_admission *a, int capacity)
{
    pthread_mutex_lock(&a->mutex);
    a->capacity = capacity;
    a->paused = false;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

void nk__admission_set_apart(nk_admission *a, int n)
{
    pthread_mutex_lock(&a->mutex);
    a->apart = n;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

void nk__admission_pause(nk_admission *a, const struct nk_error *why)
{
    pthread_mutex_lock(&a->mutex);
    a->paused = true;
    a->why = *why;
    pthread_mutex_unlock(&a->mutex);
}

void nk__admission_close(nk_admission *a)
{
    pthread_mutex_lock(&a->mutex);
    a->closed = true;
    pthread_mutex_unlock(&a->mutex);
}

int nk__admission_enter(nk_admission *a, struct nk_ticket *const *tickets, int n,
                        struct nk_error *err)
{
    int rc = 0, room;

    pthread_mutex_lock(&a->mutex);
    room = a->opts.waiting_max + (n_free(a) > 0 ? n_free(a) : 0) - a->waiting;
    if (n > room)
        rc = nk_fail(err, NK_E_EXHAUSTED, "queue_full",
                     "%d generations run and %d wait, of at most %d and %d; try again later",
                     a->running, a->waiting, a->capacity, a->opts.waiting_max);
    for (int i = 0; i < n && !rc; i++) {
        struct nk_ticket *t = tickets[i];

        t->state = NK_TICKET_WAITING;
        t->entered_ns = nk_clock_now_ns(a->opts.clock);
        t->late_ns = t->entered_ns + a->opts.waiting_ms * 1000000ull;
        TAILQ_INSERT_TAIL(&a->queue, t, link);
        a->waiting++;
    }
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    return rc;
}

bool nk__admission_withdraw(nk_admission *a, struct nk_ticket *t)
{
    bool was_waiting;

    pthread_mutex_lock(&a->mutex);
    was_waiting = t->state == NK_TICKET_WAITING;
    if (was_waiting) {
        unlink_ticket(a, t);
        t->state = NK_TICKET_OUT;
    }
    pthread_mutex_unlock(&a->mutex);
    return was_waiting;
}

void nk__admission_leave(nk_admission *a, struct nk_ticket *t)
{
    pthread_mutex_lock(&a->mutex);
    NK_ASSERT(t->state == NK_TICKET_RUNNING);
    t->state = NK_TICKET_OUT;
    a->running--;
    a->mean_s += 0.1 * ((double)(nk_clock_now_ns(a->opts.clock) - t->started_ns) / 1e9 - a->mean_s);
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

bool nk__admission_return(nk_admission *a, struct nk_ticket *t, uint64_t late_ns)
{
    bool back;

    pthread_mutex_lock(&a->mutex);
    NK_ASSERT(t->state == NK_TICKET_RUNNING);
    back = !a->closed;
    if (back) {
        t->state = NK_TICKET_WAITING;
        t->own_end = late_ns > 0;
        t->late_ns =
            late_ns ? late_ns : t->late_ns + nk_clock_now_ns(a->opts.clock) - t->started_ns;
        TAILQ_INSERT_HEAD(&a->queue, t, link);
        a->waiting++;
        a->running--;
        pthread_cond_signal(&a->changed);
    }
    pthread_mutex_unlock(&a->mutex);
    return back;
}

struct nk_admission_counts nk__admission_counts(nk_admission *a)
{
    struct nk_admission_counts c;
    double s;

    pthread_mutex_lock(&a->mutex);
    c = (struct nk_admission_counts){ .running = a->running,
                                      .waiting = a->waiting,
                                      .capacity = a->capacity,
                                      .waiting_max = a->opts.waiting_max };
    s = a->mean_s * (a->waiting + 1) / (a->capacity > 0 ? a->capacity : 1);
    c.retry_after_s = s < 1 ? 1 : s > 60 ? 60 : (int)(s + 0.999);
    pthread_mutex_unlock(&a->mutex);
    return c;
}
