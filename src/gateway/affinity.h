/* Which replica has lately had a prompt that begins like this one, and so keeps its KV. Pure.
 *
 * Prompts are remembered by hashes of their beginnings at a few lengths (32, 48, 64, 96, 128, ...
 * tokens): a conversation that goes on begins with what it was. A hash that two prompts share by
 * chance costs a prefill, never more. */
#ifndef NK_GATEWAY_AFFINITY_H
#define NK_GATEWAY_AFFINITY_H

#include <stddef.h>
#include <stdint.h>

enum { NK_PREFIXES_MAX = 40, NK_AFFINITY_SLOTS = 4096 };

struct nk_prefixes { /* of one prompt, from the shortest */
    uint64_t hashes[NK_PREFIXES_MAX];
    int n;      /* how many of them */
    int n_half; /* from this one on they are half of the prompt or more */
};

struct nk_affinity {
    uint64_t hashes[NK_AFFINITY_SLOTS]; /* 0: none */
    unsigned char replicas[NK_AFFINITY_SLOTS];
};

/* salt: whose KV may be reused ("": everybody's without). */
void nk__prefixes_of(struct nk_prefixes *p, const char *salt, const int32_t *ids, size_t n);
void nk__affinity_reset(struct nk_affinity *a);
/* The prompt has gone to this replica. */
void nk__affinity_note(struct nk_affinity *a, const struct nk_prefixes *p, int replica);
/* The replica that has half of the prompt or more, the longest part of it; -1: none is known. */
int nk__affinity_find(const struct nk_affinity *a, const struct nk_prefixes *p);

#endif
