#include "gateway/presence.h"

void nk__presence_init(struct nk_presence *p)
{
    *p = (struct nk_presence){ .closed = false };
    pthread_mutex_init(&p->mutex, NULL);
    nk_cond_init(&p->changed);
}

void nk__presence_release(struct nk_presence *p)
{
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
}

void nk__presence_enter(struct nk_presence *p, enum nk_presence_kind kind)
{
    pthread_mutex_lock(&p->mutex);
    p->n[kind]++;
    pthread_mutex_unlock(&p->mutex);
}

void nk__presence_leave(struct nk_presence *p, enum nk_presence_kind kind)
{
    pthread_mutex_lock(&p->mutex);
    if (!--p->n[kind])
        pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

bool nk__presence_suspend(struct nk_presence *p)
{
    bool ok;

    pthread_mutex_lock(&p->mutex);
    ok = !p->closed;
    if (ok)
        p->n[NK_PRESENT_SUSPENDED]++;
    pthread_mutex_unlock(&p->mutex);
    return ok;
}

void nk__presence_close(struct nk_presence *p)
{
    pthread_mutex_lock(&p->mutex);
    p->closed = true;
    pthread_mutex_unlock(&p->mutex);
}

bool nk__presence_closed(struct nk_presence *p)
{
    bool closed;

    pthread_mutex_lock(&p->mutex);
    closed = p->closed;
    pthread_mutex_unlock(&p->mutex);
    return closed;
}

bool nk__presence_wait(struct nk_presence *p, enum nk_presence_kind kind, struct nk_clock *clock,
                       uint64_t ns)
{
    bool none;

    pthread_mutex_lock(&p->mutex);
    while (p->n[kind] &&
           (nk_clock_wait_until(clock, &p->changed, &p->mutex, ns) || nk_clock_now_ns(clock) < ns))
        ;
    none = !p->n[kind];
    pthread_mutex_unlock(&p->mutex);
    return none;
}
