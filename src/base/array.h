/* A growing array: a pointer to its elements, how many there are, and for how many there is room.
 *
 *     struct place *places = NULL;
 *     size_t n = 0, capacity = 0;
 *
 *     rc = nk_array_grow(places, capacity, n + 1, PLACES_MAX, err);
 *     if (!rc)
 *         places[n++] = place;
 *
 * The three live where the owner likes to have them; free() ends the array. Like nk_buf it has a
 * ceiling, so that nothing which a stranger can feed grows without bound. */
#ifndef NK_BASE_ARRAY_H
#define NK_BASE_ARRAY_H

#include <stddef.h>

#include "base/error.h"

/* Room for n elements in all. array: a pointer to the elements, or NULL while there are none;
 * capacity: a size_t, 0 then. Both are changed when there was too little room: at least doubled, so
 * that adding one after the other stays cheap, but never above n_max elements. What was in the
 * array still is, perhaps elsewhere; what is new in it is undefined.
 *   EXHAUSTED  too_large  n is above n_max
 *   EXHAUSTED  no_memory
 * On failure nothing has changed. err may be NULL, as for a caller with words of its own. */
#define nk_array_grow(array, capacity, n, n_max, err)                                              \
    nk_array_grow_at(&(array), sizeof *(array), &(capacity), (n), (n_max), (err))

/* What nk_array_grow is made of: the address of the pointer to the elements, and their size. */
int nk_array_grow_more(void *array_at, size_t element_size, size_t *capacity, size_t n,
                       size_t n_max, struct nk_error *err);

static inline int nk_array_grow_at(void *array_at, size_t element_size, size_t *capacity, size_t n,
                                   size_t n_max, struct nk_error *err)
{
    if (n <= *capacity)
        return 0;
    return nk_array_grow_more(array_at, element_size, capacity, n, n_max, err);
}

#endif
