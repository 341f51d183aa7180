/* Chance with a seed. A test that draws takes its seed from seed_begin(), which prints it:
 * NK_TEST_SEED=N runs it again. */
#ifndef NK_TESTS_SEED_H
#define NK_TESTS_SEED_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/chance.h"

struct seeded {
    struct nk_chance chance; /* first: what is handed in is &s->chance */
    pthread_mutex_t mutex;
    uint64_t state;
};

/* splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). */
static inline uint64_t seed_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A number from 0 to n - 1. */
static inline uint64_t seed_below(uint64_t *state, uint64_t n)
{
    return seed_next(state) % n;
}

static inline int seeded_fill(struct nk_chance *chance, void *out, size_t size,
                              struct nk_error *err)
{
    struct seeded *s = (struct seeded *)chance;

    (void)err;
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)out)[i] = (unsigned char)seed_next(&s->state);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

static inline void seeded_init(struct seeded *s, uint64_t seed)
{
    *s = (struct seeded){ .chance = { .fill = seeded_fill }, .state = seed };
    pthread_mutex_init(&s->mutex, NULL);
}

/* The seed of this run: NK_TEST_SEED, or one of the system's. */
static inline uint64_t seed_begin(void)
{
    const char *given = getenv("NK_TEST_SEED");
    uint64_t seed = 0;

    if (given)
        seed = strtoull(given, NULL, 0);
    else
        nk_chance_fill(nk_chance_system(), &seed, sizeof seed, NULL);
    printf("NK_TEST_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

#endif
