#include "gateway/admission.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/thread.h"

struct nk_admission {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
    bool stop;
    int capacity, running, waiting, waiting_max;
    uint32_t waiting_ms;
    struct nk_ticket *head, *tail;
    double mean_s; /* how long generations take: an average that forgets */
    void (*tick)(void *user);
    void *user;
};

static void unlink_ticket(nk_admission *a, struct nk_ticket *t)
{
    if (t->prev)
        t->prev->next = t->next;
    else
        a->head = t->next;
    if (t->next)
        t->next->prev = t->prev;
    else
        a->tail = t->prev;
    t->prev = t->next = NULL;
    a->waiting--;
}

static void *loop(void *arg)
{
    nk_admission *a = arg;
    uint64_t next_tick = nk_now_ns() + 1000000000u;

    pthread_mutex_lock(&a->mutex);
    while (!a->stop) {
        struct nk_ticket *t = a->head;
        uint64_t now = nk_now_ns(),
                 late = t ? t->entered_ns + a->waiting_ms * 1000000ull : UINT64_MAX;

        if (now >= next_tick) {
            next_tick = now + 1000000000u;
            pthread_mutex_unlock(&a->mutex);
            if (a->tick)
                a->tick(a->user);
            pthread_mutex_lock(&a->mutex);
        } else if (t && a->running < a->capacity) {
            unlink_ticket(a, t);
            t->state = NK_TICKET_RUNNING;
            t->started_ns = now;
            a->running++;
            pthread_mutex_unlock(&a->mutex);
            t->start(t);
            pthread_mutex_lock(&a->mutex);
        } else if (t && now >= late) {
            struct nk_error err;

            unlink_ticket(a, t);
            t->state = NK_TICKET_OUT;
            nk_fail(&err, NK_E_EXHAUSTED, "queue_timeout",
                    "no sequence came free within %u ms: %d generations run, %d wait",
                    a->waiting_ms, a->running, a->waiting);
            pthread_mutex_unlock(&a->mutex);
            t->expire(t, &err);
            pthread_mutex_lock(&a->mutex);
        } else
            nk_clock_wait_until(nk_clock_system(), &a->changed, &a->mutex,
                                late < next_tick ? late : next_tick);
    }
    pthread_mutex_unlock(&a->mutex);
    return NULL;
}

int nk__admission_start(nk_admission **out, int waiting_max, uint32_t waiting_ms,
                        void (*tick)(void *user), void *user, struct nk_error *err)
{
    nk_admission *a = calloc(1, sizeof *a);

    *out = NULL;
    if (!a)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the queue");
    a->waiting_max = waiting_max;
    a->waiting_ms = waiting_ms;
    a->tick = tick;
    a->user = user;
    a->mean_s = 1;
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
    NK_ASSERT(!a->head && !a->running);
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
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

int nk__admission_enter(nk_admission *a, struct nk_ticket *const *tickets, int n,
                        struct nk_error *err)
{
    int rc = 0, room;

    pthread_mutex_lock(&a->mutex);
    room = a->waiting_max + (a->capacity > a->running ? a->capacity - a->running : 0) - a->waiting;
    if (n > room)
        rc = nk_fail(err, NK_E_EXHAUSTED, "queue_full",
                     "%d generations run and %d wait, of at most %d and %d; try again later",
                     a->running, a->waiting, a->capacity, a->waiting_max);
    for (int i = 0; i < n && !rc; i++) {
        struct nk_ticket *t = tickets[i];

        t->state = NK_TICKET_WAITING;
        t->entered_ns = nk_now_ns();
        t->next = NULL;
        t->prev = a->tail;
        if (a->tail)
            a->tail->next = t;
        else
            a->head = t;
        a->tail = t;
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
    a->mean_s += 0.1 * ((double)(nk_now_ns() - t->started_ns) / 1e9 - a->mean_s);
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

struct nk_admission_counts nk__admission_counts(nk_admission *a)
{
    struct nk_admission_counts c;
    double s;

    pthread_mutex_lock(&a->mutex);
    c = (struct nk_admission_counts){ .running = a->running,
                                      .waiting = a->waiting,
                                      .capacity = a->capacity,
                                      .waiting_max = a->waiting_max };
    s = a->mean_s * (a->waiting + 1) / (a->capacity > 0 ? a->capacity : 1);
    c.retry_after_s = s < 1 ? 1 : s > 60 ? 60 : (int)(s + 0.999);
    pthread_mutex_unlock(&a->mutex);
    return c;
}
