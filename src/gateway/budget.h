/* A ceiling for the memory of all requests together: the bodies that are being read, and what is
 * parsed of them and kept while they wait. What parsing will take is estimated before, rather too
 * much than too little (nk__json_cost). Thread-safe. */
#ifndef NK_GATEWAY_BUDGET_H
#define NK_GATEWAY_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct nk_budget {
    size_t max;
    atomic_size_t used;
};
void nk__budget_init(struct nk_budget *b, size_t max);

/* A share of it; *held is how much one request has. Makes it `wanted`, more or less than before.
 * False: so much is not free within `ceiling` (at most b->max) of all, and nothing has changed.
 * Becoming less is always possible. */
bool nk__budget_hold(struct nk_budget *b, size_t *held, size_t wanted, size_t ceiling);

/* Bytes that a body takes while it is parsed and looked at, its own included: each value has a
 * price (jansson's, on 64 bits). */
size_t nk__json_cost(const char *body, size_t size);

#endif
