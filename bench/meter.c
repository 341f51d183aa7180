#include "bench/meter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/thread.h"

enum { PAIRS_MAX = 64, BUFFER_BYTES = 256 << 10 };

struct nk_meter {
    char address[32];
    struct sockaddr_in target;
    int listener, end[2];
    struct pollfd fds[2 + 2 * PAIRS_MAX]; /* the pipe, the listener, then pairs: client, target */
    int n_pairs;
    atomic_ullong bytes[2]; /* there, back */
    uint8_t *buffer;
    pthread_t thread;
};

static void set_no_delay(int fd)
{
    int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void accept_pair(nk_meter *m)
{
    int client = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC), target;

    if (client < 0)
        return;
    target = m->n_pairs < PAIRS_MAX ? socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (target < 0 || connect(target, (struct sockaddr *)&m->target, sizeof m->target) < 0) {
        close(client);
        if (target >= 0)
            close(target);
        return;
    }
    set_no_delay(client);
    set_no_delay(target);
    m->fds[2 + 2 * m->n_pairs] = (struct pollfd){ .fd = client, .events = POLLIN };
    m->fds[3 + 2 * m->n_pairs] = (struct pollfd){ .fd = target, .events = POLLIN };
    m->n_pairs++;
}

static void close_pair(nk_meter *m, int i)
{
    close(m->fds[2 + 2 * i].fd);
    close(m->fds[3 + 2 * i].fd);
    m->n_pairs--;
    memcpy(&m->fds[2 + 2 * i], &m->fds[2 + 2 * m->n_pairs], 2 * sizeof m->fds[0]);
}

/* Passes on what came; false: the connection is over. Writes block: a slow side slows the other
 * down, as without us. */
static bool pass(nk_meter *m, int from, int to, int direction)
{
    ssize_t n = read(from, m->buffer, BUFFER_BYTES), done = 0;

    if (n <= 0)
        return n < 0 && errno == EINTR;
    while (done < n) {
        ssize_t k = write(to, m->buffer + done, (size_t)(n - done));

        if (k < 0 && errno != EINTR)
            return false;
        done += k > 0 ? k : 0;
    }
    atomic_fetch_add(&m->bytes[direction], (unsigned long long)n);
    return true;
}

static void *meter_main(void *arg)
{
    nk_meter *m = arg;

    while (!m->fds[0].revents) {
        if (poll(m->fds, (nfds_t)(2 + 2 * m->n_pairs), -1) < 0)
            continue;
        for (int i = m->n_pairs - 1; i >= 0; i--) {
            struct pollfd *p = &m->fds[2 + 2 * i];

            if ((p[0].revents && !pass(m, p[0].fd, p[1].fd, 0)) ||
                (p[1].revents && !pass(m, p[1].fd, p[0].fd, 1)))
                close_pair(m, i);
        }
        if (m->fds[1].revents)
            accept_pair(m);
    }
    while (m->n_pairs)
        close_pair(m, m->n_pairs - 1);
    return NULL;
}

int nk_meter_open(nk_meter **out, const char *target, struct nk_error *err)
{
    nk_meter *m = calloc(1, sizeof *m);
    struct sockaddr_in a = { .sin_family = AF_INET };
    socklen_t size = sizeof a;
    char host[32];
    unsigned port;

    *out = NULL;
    if (!m || !(m->buffer = malloc(BUFFER_BYTES))) {
        free(m);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    m->target.sin_family = AF_INET;
    m->end[0] = m->end[1] = -1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    m->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sscanf(target, "%31[0-9.]:%u", host, &port) != 2 ||
        inet_pton(AF_INET, host, &m->target.sin_addr) != 1 || m->listener < 0 ||
        bind(m->listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(m->listener, 16) < 0 ||
        getsockname(m->listener, (struct sockaddr *)&a, &size) < 0 ||
        pipe2(m->end, O_CLOEXEC) < 0) {
        int rc = nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen",
                         "bytes towards %s cannot be counted: %s", target, strerror(errno));

        if (m->listener >= 0)
            close(m->listener);
        free(m->buffer);
        free(m);
        return rc;
    }
    m->target.sin_port = htons((uint16_t)port);
    snprintf(m->address, sizeof m->address, "127.0.0.1:%d", ntohs(a.sin_port));
    m->fds[0] = (struct pollfd){ .fd = m->end[0], .events = POLLIN };
    m->fds[1] = (struct pollfd){ .fd = m->listener, .events = POLLIN };
    if (nk_thread_start(&m->thread, meter_main, m)) {
        close(m->listener);
        close(m->end[0]);
        close(m->end[1]);
        free(m->buffer);
        free(m);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no thread");
    }
    *out = m;
    return 0;
}

void nk_meter_close(nk_meter *m)
{
    if (!m)
        return;
    close(m->end[1]); /* the other end reads as ended */
    pthread_join(m->thread, NULL);
    close(m->end[0]);
    close(m->listener);
    free(m->buffer);
    free(m);
}

const char *nk_meter_address(const nk_meter *m)
{
    return m->address;
}

void nk_meter_read(nk_meter *m, uint64_t *there, uint64_t *back)
{
    *there = atomic_load(&m->bytes[0]);
    *back = atomic_load(&m->bytes[1]);
}
