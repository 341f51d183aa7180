#include "gateway/watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"

enum { TICK_MS = 250, EVENTS = 64 };

struct nk_watched {
    nk_watch *w;
    nk_watched *prev, *next;
    int fd;
    uint64_t id;          /* what epoll tells: a pointer could be another connection's by then */
    uint64_t deadline_ns; /* 0: none */
    bool reply_408, half_closed;
    void *request;
};

struct nk_watch {
    struct nk_watch_handlers handlers;
    bool tls;
    int epoll_fd, stop_fd;
    pthread_t thread;
    pthread_mutex_t mutex;
    nk_watched *list;
    uint64_t last_id;
};

/* Under the mutex. */
static nk_watched *find(nk_watch *w, uint64_t id)
{
    nk_watched *c = w->list;

    while (c && c->id != id)
        c = c->next;
    return c;
}

static void on_event(nk_watch *w, uint64_t id, uint32_t events)
{
    void *request = NULL;
    bool gone = events & (EPOLLHUP | EPOLLERR);
    nk_watched *c;

    pthread_mutex_lock(&w->mutex);
    c = find(w, id);
    if (c && c->request && (gone || !c->half_closed)) {
        struct epoll_event e = { .events = 0, .data.u64 = id };

        request = c->request;
        w->handlers.ref(request);
        c->half_closed = true;
        /* Level-triggered: it would be told again and again. Resets are told whatever the mask is. */
        if (gone)
            epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        else
            epoll_ctl(w->epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    }
    pthread_mutex_unlock(&w->mutex);
    if (!request)
        return;
    if (gone)
        w->handlers.gone(request);
    else
        w->handlers.half_closed(request);
    w->handlers.unref(request);
}

static void end_late_ones(nk_watch *w, uint64_t now_ns)
{
    static const char body[] = "{\"error\":{\"message\":\"the request did not arrive in "
                               "time\",\"type\":\"invalid_request_error\","
                               "\"param\":null,\"code\":\"slow_body\"}}\n";
    char reply[512];
    int n_reply = snprintf(
        reply, sizeof reply,
        "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
        "Content-Length: %zu\r\n\r\n%s",
        sizeof body - 1, body);

    pthread_mutex_lock(&w->mutex);
    for (nk_watched *c = w->list; c; c = c->next) {
        if (!c->deadline_ns || now_ns < c->deadline_ns)
            continue;
        c->deadline_ns = 0;
        /* If it cannot be sent, the client only sees the end of the connection. */
        if (c->reply_408 && !w->tls)
            (void)!send(c->fd, reply, (size_t)n_reply, MSG_DONTWAIT | MSG_NOSIGNAL);
        shutdown(c->fd, c->reply_408 && !w->tls ? SHUT_RD : SHUT_RDWR);
    }
    pthread_mutex_unlock(&w->mutex);
}

/* This process did not run for so long, or the whole machine did not: what clients sent meanwhile lies unread. */
static void forgive_pause(nk_watch *w, uint64_t late_ns)
{
    pthread_mutex_lock(&w->mutex);
    for (nk_watched *c = w->list; c; c = c->next)
        if (c->deadline_ns)
            c->deadline_ns += late_ns;
    pthread_mutex_unlock(&w->mutex);
}

static void *loop(void *arg)
{
    nk_watch *w = arg;
    struct epoll_event events[EVENTS];
    uint64_t last_ns = nk_now_ns(), next_tick = last_ns;

    for (;;) {
        int n = epoll_wait(w->epoll_fd, events, EVENTS, TICK_MS);
        uint64_t now_ns = nk_now_ns();

        /* The whole round, and nobody is late by a clock read after this: a pause can come at any line. */
        if (now_ns - last_ns > 2 * TICK_MS * 1000000ull)
            forgive_pause(w, now_ns - last_ns - TICK_MS * 1000000ull);
        last_ns = now_ns;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0)
                return NULL;
            on_event(w, events[i].data.u64, events[i].events);
        }
        if (now_ns >= next_tick) {
            end_late_ones(w, now_ns);
            next_tick = now_ns + TICK_MS * 1000000ull;
        }
    }
}

int nk__watch_start(nk_watch **out, const struct nk_watch_handlers *handlers, bool tls,
                    struct nk_error *err)
{
    nk_watch *w = calloc(1, sizeof *w);
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = 0 };

    *out = NULL;
    if (!w)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the watch");
    w->handlers = *handlers;
    w->tls = tls;
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->stop_fd = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&w->mutex, NULL);
    if (w->epoll_fd < 0 || w->stop_fd < 0 ||
        epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->stop_fd, &e) ||
        nk_thread_start(&w->thread, loop, w)) {
        int rc = nk_fail(err, NK_E_EXHAUSTED, "no_resources", "cannot watch connections: %s",
                         strerror(errno));

        if (w->epoll_fd >= 0)
            close(w->epoll_fd);
        if (w->stop_fd >= 0)
            close(w->stop_fd);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        return rc;
    }
    *out = w;
    return 0;
}

void nk__watch_stop(nk_watch *w)
{
    uint64_t one = 1;

    if (!w)
        return;
    NK_ASSERT(!w->list);
    while (write(w->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(w->thread, NULL);
    close(w->epoll_fd);
    close(w->stop_fd);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

nk_watched *nk__watch_add(nk_watch *w, int fd, uint32_t deadline_ms)
{
    nk_watched *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    *c = (nk_watched){ .w = w, .fd = fd };
    pthread_mutex_lock(&w->mutex);
    c->id = ++w->last_id;
    c->next = w->list;
    if (w->list)
        w->list->prev = c;
    w->list = c;
    c->deadline_ns = nk_now_ns() + deadline_ms * 1000000ull;
    pthread_mutex_unlock(&w->mutex);
    return c;
}

void nk__watch_drop(nk_watched *c)
{
    nk_watch *w = c->w;

    nk__watch_request(c, NULL);
    pthread_mutex_lock(&w->mutex);
    if (c->prev)
        c->prev->next = c->next;
    else
        w->list = c->next;
    if (c->next)
        c->next->prev = c->prev;
    pthread_mutex_unlock(&w->mutex);
    free(c);
}

void nk__watch_deadline(nk_watched *c, uint32_t ms, bool reply_408)
{
    pthread_mutex_lock(&c->w->mutex);
    c->deadline_ns = ms ? nk_now_ns() + ms * 1000000ull : 0;
    c->reply_408 = reply_408;
    pthread_mutex_unlock(&c->w->mutex);
}

void nk__watch_request(nk_watched *c, void *request)
{
    struct epoll_event e = { .events = EPOLLRDHUP };

    pthread_mutex_lock(&c->w->mutex);
    e.data.u64 = c->id;
    if (request && !c->request)
        epoll_ctl(c->w->epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
    else if (!request && c->request)
        epoll_ctl(c->w->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL); /* may be gone from it already */
    c->request = request;
    c->half_closed = false;
    pthread_mutex_unlock(&c->w->mutex);
}

void nk__watch_shutdown(nk_watched *c)
{
    pthread_mutex_lock(&c->w->mutex);
    shutdown(c->fd, SHUT_RDWR);
    pthread_mutex_unlock(&c->w->mutex);
}
