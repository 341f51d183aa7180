/* Random weights of any type, as fast as they are copied (random.c). */
#ifndef NK_SLICE_RANDOM_INT_H
#define NK_SLICE_RANDOM_INT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "slice/model_int.h"

enum { NK__RANDOM_BYTES_MAX = 1 << 20 };

typedef struct nk__random nk__random;

int nk__random_new(nk__random **out, struct nk_error *err); /* EXHAUSTED no_memory */
void nk__random_free(nk__random *r);                        /* NULL: does nothing */
/* The next bytes of such a tensor's data, of which `left` are still to come: fills at most
 * NK__RANDOM_BYTES_MAX of them in out and returns how many; 0: no memory. */
size_t nk__random_draw(nk__random *r, const struct nk__tensor *t, uint64_t left, uint8_t *out);

#endif
