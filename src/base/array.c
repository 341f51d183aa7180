#include "base/array.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY_MIN = 16 };

int nk_array_grow_more(void *array_at, size_t element_size, size_t *capacity, size_t n,
                       size_t n_max, struct nk_error *err)
{
    size_t larger = *capacity > n_max / 2 ? n_max : *capacity * 2;
    void *array, *grown = NULL;

    if (n > n_max)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large", "%zu elements are over the limit of %zu",
                       n, n_max);
    if (larger < CAPACITY_MIN)
        larger = n_max < CAPACITY_MIN ? n_max : CAPACITY_MIN;
    if (larger < n)
        larger = n;
    /* The pointer is copied: through a void ** it would be read as a type that it is not. */
    memcpy(&array, array_at, sizeof array);
    if (larger <= PTRDIFF_MAX / element_size)
        grown = realloc(array, larger * element_size);
    if (!grown)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu elements of %zu bytes",
                       larger, element_size);
    memcpy(array_at, &grown, sizeof grown);
    *capacity = larger;
    return 0;
}
