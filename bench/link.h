/* One direction of a slow link: when a packet that is sent now arrives. Pure: the time is handed
 * in. */
#ifndef NK_BENCH_LINK_H
#define NK_BENCH_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "bench/wan.h"

struct nk_link {
    double delay_ns, jitter_ns, ns_per_byte;
    uint64_t rng;
    uint64_t free_ns;              /* when the line has sent all that was given to it */
    uint64_t last_ns, last_due_ns; /* of the packet before: when it came, when it arrives */
    double jitter_now_ns;          /* of this burst */
};

/* A link of half the round trip, either way. seed: of the jitter. */
void nk_link_init(struct nk_link *l, const struct nk_wan_shape *shape, uint64_t seed);

/* When a packet of `size` bytes that comes at now_ns arrives at the other end: after those before
 * it on the line, after the delay, and never before the packet before it. Packets that come within
 * 2 ms of each other are a burst and share their jitter. now_ns never goes back. */
uint64_t nk_link_due(struct nk_link *l, uint64_t now_ns, size_t size);

#endif
