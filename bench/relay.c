#include "bench/relay.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    PACKET_BYTES_MAX = 1600, /* a device's MTU is 1500, and a TAP's frame has a head */
    PACKETS_MAX = 4096,
};

struct nk_relay_packet {
    uint64_t due_ns;
    uint16_t size;
    uint8_t data[PACKET_BYTES_MAX];
};

int nk_relay_slow(struct nk_relay_line *l, const struct nk_wan_shape *shape, uint64_t seed,
                  struct nk_error *err)
{
    nk_link_init(&l->link, shape, seed);
    l->packets = malloc(PACKETS_MAX * sizeof *l->packets);
    return l->packets ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a link");
}

void nk_relay_release(struct nk_relay_line *l)
{
    free(l->packets);
    l->packets = NULL;
}

static void take_packets(struct nk_relay_line *l)
{
    for (;;) {
        struct nk_relay_packet one,
            *p = l->packets ? &l->packets[(l->head + l->n) % PACKETS_MAX] : &one;
        ssize_t n;

        if (l->n == PACKETS_MAX)
            p = &one;
        n = read(l->from, p->data, sizeof p->data);
        if (n <= 0)
            return;
        if (!l->packets && write(l->to, p->data, (size_t)n) < 0)
            continue; /* a device's queue is full: dropped */
        if (!l->packets || p == &one)
            continue;
        p->size = (uint16_t)n;
        p->due_ns = nk_link_due(&l->link, nk_now_ns(), (size_t)n);
        l->n++;
    }
}

/* Delivers what is due; when the next one is, or UINT64_MAX. */
static uint64_t deliver(struct nk_relay_line *l)
{
    while (l->n) {
        struct nk_relay_packet *p = &l->packets[l->head];

        if (p->due_ns > nk_now_ns())
            return p->due_ns;
        if (write(l->to, p->data, p->size) < 0 && errno == EINTR)
            continue;
        l->head = (l->head + 1) % PACKETS_MAX;
        l->n--;
    }
    return UINT64_MAX;
}

static int wait_for_packets(struct pollfd *fds, int n, const struct timespec *wait)
{
#ifdef __linux__
    return ppoll(fds, (nfds_t)n, wait, NULL);
#else
    /* There are no links to relay: cmd_link.c and wan.c say so. */
    return poll(fds, (nfds_t)n, (int)(wait->tv_sec * 1000 + (wait->tv_nsec + 999999) / 1000000));
#endif
}

void nk_relay_run(struct nk_relay_line *lines, int n, int end_fd)
{
    struct pollfd fds[NK_RELAY_LINES_MAX + 1];

    for (int i = 0; i < n; i++)
        fds[i] = (struct pollfd){ .fd = lines[i].from, .events = POLLIN };
    fds[n] = (struct pollfd){ .fd = end_fd, .events = POLLIN };
    while (!fds[n].revents) {
        uint64_t next_ns = UINT64_MAX, now;
        struct timespec wait;

        for (int i = 0; i < n; i++) {
            uint64_t at = deliver(&lines[i]);

            next_ns = at < next_ns ? at : next_ns;
        }
        now = nk_now_ns();
        next_ns = next_ns == UINT64_MAX ? 1000000000 : next_ns > now ? next_ns - now : 0;
        wait.tv_sec = (time_t)(next_ns / 1000000000);
        wait.tv_nsec = (long)(next_ns % 1000000000);
        if (wait_for_packets(fds, n + 1, &wait) < 0)
            continue;
        for (int i = 0; i < n; i++)
            if (fds[i].revents)
                take_packets(&lines[i]);
    }
}
