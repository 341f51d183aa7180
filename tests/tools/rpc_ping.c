/* What a hop costs: round trips of messages through the rpc layer between two processes on loopback.
 *
 *   rpc_ping serve [thread]                  listens on a free port, prints it
 *   rpc_ping PORT BYTES COUNT [thread]       median, p99 and greatest round trip in microseconds
 *
 * With `thread`, a side hands each message to another thread, which answers: as a worker's net thread hands rows to
 * its compute thread. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/rpc.h"

static bool threaded;

/* A hand-over of one message at a time. */
static struct {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    nk_call *call;
    char *data;
    size_t size;
    bool full;
} box = { .mu = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static uint64_t *times;
static int n_times, n_wanted;
static uint64_t sent_ns;
static pthread_mutex_t end_mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t end_changed = PTHREAD_COND_INITIALIZER;
static bool ended;

static void answer(nk_call *c, const void *data, size_t size)
{
    uint64_t now = nk_now_ns();

    if (n_wanted) { /* the client: that was a round trip */
        times[n_times++] = now - sent_ns;
        if (n_times == n_wanted) {
            nk_call_send_done(c);
            return;
        }
        sent_ns = nk_now_ns();
    }
    nk_call_send(c, data, size, NULL);
}

static void *box_main(void *arg)
{
    char *own = malloc(NK_RPC_MESSAGE_BYTES_MAX);

    (void)arg;
    for (;;) {
        nk_call *c;
        size_t size;

        pthread_mutex_lock(&box.mu);
        while (!box.full)
            pthread_cond_wait(&box.changed, &box.mu);
        c = box.call;
        size = box.size;
        memcpy(own, box.data, size);
        box.full = false;
        pthread_mutex_unlock(&box.mu);
        answer(c, own, size);
        nk_call_unref(c);
    }
    return NULL;
}

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    (void)user;
    if (!threaded) {
        answer(c, msg.data, msg.size);
        return;
    }
    pthread_mutex_lock(&box.mu);
    box.call = nk_call_ref(c);
    memcpy(box.data, msg.data, msg.size);
    box.size = msg.size;
    box.full = true;
    pthread_cond_signal(&box.changed);
    pthread_mutex_unlock(&box.mu);
}

static void on_half_closed(nk_call *c, void *user)
{
    (void)user;
    nk_call_finish(c, NULL);
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c;
    (void)user;
    if (status)
        fprintf(stderr, "rpc_ping: %s\n", status->msg);
    pthread_mutex_lock(&end_mu);
    ended = true;
    pthread_cond_signal(&end_changed);
    pthread_mutex_unlock(&end_mu);
}

static const struct nk_call_handlers handlers = { on_message, on_half_closed, on_end };

static void open_ping(nk_call *c, void *user)
{
    nk_call_accept(c, &handlers, user);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    static const struct nk_method methods[] = { { "/ping.Ping/Ping", open_ping } };
    struct nk_error e;
    nk_net *net;
    pthread_t thread;

    nk_log_init();
    if (argc < 2 || (strcmp(argv[1], "serve") && argc < 4)) {
        fprintf(stderr, "usage: rpc_ping serve [thread] | rpc_ping PORT BYTES COUNT [thread]\n");
        return 2;
    }
    threaded = !strcmp(argv[argc - 1], "thread");
    box.data = malloc(NK_RPC_MESSAGE_BYTES_MAX);
    if (threaded)
        pthread_create(&thread, NULL, box_main, NULL);
    if (nk_net_start(&net, &e))
        goto failed;
    if (!strcmp(argv[1], "serve")) {
        struct nk_server_opts opts = { .listen = "127.0.0.1:0",
                                       .methods = methods,
                                       .n_methods = 1 };
        nk_server *server;

        if (nk_server_start(&server, net, &opts, &e))
            goto failed;
        printf("%d\n", nk_server_port(server));
        fflush(stdout);
        pause();
    } else {
        char address[64];
        size_t size = (size_t)atol(argv[2]);
        char *data = calloc(1, size + 1);
        nk_channel *ch;
        nk_call *c;

        n_wanted = atoi(argv[3]);
        times = calloc((size_t)n_wanted, sizeof *times);
        snprintf(address, sizeof address, "127.0.0.1:%s", argv[1]);
        if (nk_channel_open(&ch, net, address, NULL, &e) ||
            nk_call_start(&c, ch, "/ping.Ping/Ping", 0, &handlers, NULL, &e))
            goto failed;
        sent_ns = nk_now_ns();
        nk_call_send(c, data, size, NULL);
        pthread_mutex_lock(&end_mu);
        while (!ended)
            pthread_cond_wait(&end_changed, &end_mu);
        pthread_mutex_unlock(&end_mu);
        if (n_times < n_wanted)
            return 1;
        qsort(times, (size_t)n_times, sizeof *times, by_value);
        printf("%zu bytes, %d round trips%s: median %.1f us, p99 %.1f us, most %.1f us\n", size,
               n_times, threaded ? " over two threads" : "", (double)times[n_times / 2] / 1e3,
               (double)times[n_times - 1 - n_times / 100] / 1e3, (double)times[n_times - 1] / 1e3);
        free(data);
        nk_channel_close(ch);
        nk_net_stop(net);
    }
    return 0;
failed:
    fprintf(stderr, "rpc_ping: %s\n", e.msg);
    return 1;
}
