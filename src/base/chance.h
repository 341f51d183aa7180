/* Chance, as a value: what draws at random is given a source. The program gives the system's; a
 * test one with a seed (tests/unit/seed.h), so that a failure can be had again. */
#ifndef NK_BASE_CHANCE_H
#define NK_BASE_CHANCE_H

#include <stddef.h>

#include "base/error.h"

struct nk_chance {
    /* Fills out with `size` random bytes; 0 or an error. Thread-safe. */
    int (*fill)(struct nk_chance *chance, void *out, size_t size, struct nk_error *err);
};

/* The system's (getentropy), which nobody can guess. Lives for ever. */
struct nk_chance *nk_chance_system(void);

/* UNAVAILABLE no_entropy: the system has none to give. */
int nk_chance_fill(struct nk_chance *chance, void *out, size_t size, struct nk_error *err);

#endif
