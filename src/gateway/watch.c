#include "gateway/watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/thread.h"

enum { TICK_MS = NK_WATCH_TICK_MS, EVENTS = 64 };
enum { ID_WAKE = 0 }; /* what epoll tells of wake_fd; connections begin at 1 */

struct nk_watched {
    nk_watch *w;
    LIST_ENTRY(nk_watched) link;
    int fd;
    uint64_t id;          /* what epoll tells: a pointer could be another connection's by then */
    uint64_t deadline_ns; /* 0: none */
    bool reply_408, half_closed;
    void *request;
};

struct nk_watch {
    struct nk_clock *clock;
    struct nk_clock_listener clock_moved;
    struct nk_watch_handlers handlers;
    bool tls;
    int epoll_fd, wake_fd;
    pthread_t thread;
    uint64_t last_ns; /* when the thread last looked; its own */
    pthread_mutex_t mutex;
    LIST_HEAD(, nk_watched) list;
    uint64_t last_id;
    bool stop;
};

/* Under the mutex. */
static nk_watched *find(nk_watch *w, uint64_t id)
{
    nk_watched *c;

    LIST_FOREACH(c, &w->list, link)
    {
        if (c->id == id)
            break;
    }
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
        /* Level-triggered: it would be told again and again. Resets are told whatever the mask
         * is. */
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
    nk_watched *c;

    pthread_mutex_lock(&w->mutex);
    LIST_FOREACH(c, &w->list, link)
    {
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

/* This process did not run for so long, or the whole machine did not: what clients sent meanwhile
 * lies unread. */
static void forgive_pause(nk_watch *w, uint64_t late_ns)
{
    nk_watched *c;

    pthread_mutex_lock(&w->mutex);
    LIST_FOREACH(c, &w->list, link)
    {
        if (c->deadline_ns)
            c->deadline_ns += late_ns;
    }
    pthread_mutex_unlock(&w->mutex);
}

static void wake(nk_watch *w)
{
    uint64_t one = 1;

    while (write(w->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void on_clock_moved(void *arg)
{
    wake(arg);
}

/* Somebody woke the thread: is it over? */
static bool must_stop(nk_watch *w)
{
    uint64_t n;
    bool stop;

    (void)!read(w->wake_fd, &n, sizeof n);
    pthread_mutex_lock(&w->mutex);
    stop = w->stop;
    pthread_mutex_unlock(&w->mutex);
    return stop;
}

static void *loop(void *arg)
{
    nk_watch *w = arg;
    struct epoll_event events[EVENTS];

    for (;;) {
        int n = epoll_wait(w->epoll_fd, events, EVENTS,
                           nk_clock_wait_ms(w->clock, w->last_ns + TICK_MS * 1000000ull));
        uint64_t now_ns = nk_clock_now_ns(w->clock);

        /* The whole round, and nobody is late by a clock read after this: a pause can come at any
         * line. */
        if (now_ns - w->last_ns > 2 * TICK_MS * 1000000ull)
            forgive_pause(w, now_ns - w->last_ns - TICK_MS * 1000000ull);
        w->last_ns = now_ns;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 != ID_WAKE)
                on_event(w, events[i].data.u64, events[i].events);
            else if (must_stop(w))
                return NULL;
        }
        end_late_ones(w, now_ns);
    }
}

int nk__watch_start(nk_watch **out, struct nk_clock *clock,
                    const struct nk_watch_handlers *handlers, bool tls, struct nk_error *err)
{
    nk_watch *w = calloc(1, sizeof *w);
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = ID_WAKE };

    *out = NULL;
    if (!w)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the watch");
    w->clock = clock;
    w->clock_moved = (struct nk_clock_listener){ .moved = on_clock_moved, .arg = w };
    w->last_ns = nk_clock_now_ns(clock);
    LIST_INIT(&w->list);
    w->handlers = *handlers;
    w->tls = tls;
    w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    w->wake_fd = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&w->mutex, NULL);
    nk_clock_listen(clock, &w->clock_moved);
    if (w->epoll_fd < 0 || w->wake_fd < 0 ||
        epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->wake_fd, &e) ||
        nk_thread_start(&w->thread, loop, w)) {
        int rc = nk_fail(err, NK_E_EXHAUSTED, "no_resources", "cannot watch connections: %s",
                         strerror(errno));

        nk_clock_unlisten(clock, &w->clock_moved);
        if (w->epoll_fd >= 0)
            close(w->epoll_fd);
        if (w->wake_fd >= 0)
            close(w->wake_fd);
        pthread_mutex_destroy(&w->mutex);
        free(w);
        return rc;
    }
    *out = w;
    return 0;
}

void nk__watch_stop(nk_watch *w)
{
    if (!w)
        return;
    NK_ASSERT(LIST_EMPTY(&w->list));
    nk_clock_unlisten(w->clock, &w->clock_moved);
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_mutex_unlock(&w->mutex);
    wake(w);
    pthread_join(w->thread, NULL);
    close(w->epoll_fd);
    close(w->wake_fd);
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
    LIST_INSERT_HEAD(&w->list, c, link);
    c->deadline_ns = nk_clock_now_ns(w->clock) + deadline_ms * 1000000ull;
    pthread_mutex_unlock(&w->mutex);
    return c;
}

void nk__watch_drop(nk_watched *c)
{
    nk_watch *w = c->w;

    nk__watch_request(c, NULL);
    pthread_mutex_lock(&w->mutex);
    LIST_REMOVE(c, link);
    pthread_mutex_unlock(&w->mutex);
    free(c);
}

void nk__watch_deadline(nk_watched *c, uint32_t ms, bool reply_408)
{
    pthread_mutex_lock(&c->w->mutex);
    c->deadline_ns = ms ? nk_clock_now_ns(c->w->clock) + ms * 1000000ull : 0;
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

void nk__watch_shutdown_all(nk_watch *w)
{
    nk_watched *c;

    pthread_mutex_lock(&w->mutex);
    LIST_FOREACH(c, &w->list, link)
    {
        shutdown(c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&w->mutex);
}
