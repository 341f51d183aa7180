/* Packets from one network device to another, at once or as slowly as a link (link.h). Devices are
 * TUN or TAP; a packet is what one read of them gives. Linux only. */
#ifndef NK_BENCH_RELAY_H
#define NK_BENCH_RELAY_H

#include <stddef.h>

#include "base/error.h"
#include "bench/link.h"

struct nk_relay_packet;
struct nk_relay_line {               /* one direction */
    int from, to;                    /* of devices, non-blocking; borrowed */
    struct nk_relay_packet *packets; /* a ring; NULL: each at once */
    size_t head, n;
    struct nk_link link; /* where there are packets */
};

/* The line is slow from now on. At most 4096 packets are on their way; more are dropped, as a
 * router does. EXHAUSTED no_memory. */
int nk_relay_slow(struct nk_relay_line *l, const struct nk_wan_shape *shape, uint64_t seed,
                  struct nk_error *err);
void nk_relay_release(struct nk_relay_line *l); /* harmless on zeros */
/* Relays until end_fd is readable or closed at its other end. n: at most NK_RELAY_LINES_MAX. */
enum { NK_RELAY_LINES_MAX = 4 };
void nk_relay_run(struct nk_relay_line *lines, int n, int end_fd);

#endif
