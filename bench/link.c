#include "bench/link.h"

#include "bench/draw.h"

enum { BURST_NS = 2000000 };

void nk_link_init(struct nk_link *l, const struct nk_wan_shape *shape, uint64_t seed)
{
    *l = (struct nk_link){ .delay_ns = shape->round_trip_ms / 2 * 1e6,
                           .jitter_ns = shape->jitter_ms / 2 * 1e6,
                           .ns_per_byte = 8e3 / shape->mbit,
                           .rng = seed };
}

uint64_t nk_link_due(struct nk_link *l, uint64_t now_ns, size_t size)
{
    uint64_t at;

    if (now_ns - l->last_ns > BURST_NS)
        l->jitter_now_ns = l->jitter_ns * (2 * nk_draw_unit(&l->rng) - 1);
    l->last_ns = now_ns;
    l->free_ns =
        (l->free_ns > now_ns ? l->free_ns : now_ns) + (uint64_t)((double)size * l->ns_per_byte);
    at = l->free_ns + (uint64_t)(l->delay_ns + l->jitter_now_ns);
    l->last_due_ns = at > l->last_due_ns ? at : l->last_due_ns;
    return l->last_due_ns;
}
