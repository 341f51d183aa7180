#include "gateway/affinity.h"

#include <string.h>

enum { SHORTEST = 32 }; /* tokens; less is computed again in no time */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

void nk__prefixes_of(struct nk_prefixes *p, const char *salt, const int32_t *ids, size_t n)
{
    size_t power = SHORTEST, next = SHORTEST;
    uint64_t h = 1;

    p->n = p->n_half = 0;
    for (; *salt; salt++)
        h = mix(h, (unsigned char)*salt);
    for (size_t i = 0; i < n && p->n < NK_PREFIXES_MAX; i++) {
        h = mix(h, (uint32_t)ids[i]);
        if (i + 1 < next)
            continue;
        if (2 * next < n)
            p->n_half++;
        p->hashes[p->n++] = h ? h : 1;
        next = next == power ? power + power / 2 : 2 * power; /* 32, 48, 64, 96, ... */
        power = next >= 2 * power ? next : power;
    }
}

void nk__affinity_reset(struct nk_affinity *a)
{
    memset(a, 0, sizeof *a);
}

void nk__affinity_note(struct nk_affinity *a, const struct nk_prefixes *p, int replica)
{
    for (int i = 0; i < p->n; i++) {
        size_t slot = p->hashes[i] % NK_AFFINITY_SLOTS;

        a->hashes[slot] = p->hashes[i];
        a->replicas[slot] = (unsigned char)replica;
    }
}

int nk__affinity_find(const struct nk_affinity *a, const struct nk_prefixes *p)
{
    for (int i = p->n - 1; i >= p->n_half; i--) {
        size_t slot = p->hashes[i] % NK_AFFINITY_SLOTS;

        if (a->hashes[slot] == p->hashes[i])
            return a->replicas[slot];
    }
    return -1;
}
