/* A growing byte buffer that is born with a ceiling, and a borrowed view of bytes.
 *
 * Everything that a stranger can make grow is an nk_buf: growth past `max` fails with EXHAUSTED
 * `too_large`, and so does a failed allocation. The bytes are always followed by a NUL that does
 * not count, so text can be used as a C string. */
#ifndef NK_BASE_BUF_H
#define NK_BASE_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Borrowed; ends with what it points into. */
struct nk_bytes {
    const uint8_t *data;
    size_t size;
};

struct nk_buf {
    char *data; /* NULL while nothing was added */
    size_t size;
    size_t capacity;
    size_t max;
};

#define NK_BUF_INIT(max_bytes)                                                                     \
    {                                                                                              \
        NULL, 0, 0, (max_bytes)                                                                    \
    }

void nk_buf_init(struct nk_buf *b, size_t max);
void nk_buf_release(struct nk_buf *b); /* harmless on an empty one */
void nk_buf_reset(struct nk_buf *b);   /* empties it, keeps the memory */

/* Appending. 0, or EXHAUSTED `too_large` with the buffer unchanged. */
int nk_buf_add(struct nk_buf *b, const void *data, size_t size, struct nk_error *err);
int nk_buf_adds(struct nk_buf *b, const char *text, struct nk_error *err);
int nk_buf_addf(struct nk_buf *b, struct nk_error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Room for size more bytes at *where (b->data + b->size); nk_buf_commit then says how many were
 * filled. */
int nk_buf_reserve(struct nk_buf *b, size_t size, char **where, struct nk_error *err);
void nk_buf_commit(struct nk_buf *b, size_t size);
/* Drops the first n bytes. */
void nk_buf_consume(struct nk_buf *b, size_t n);
/* The bytes as an owned C string (never NULL unless out of memory); the buffer is empty
 * afterwards. */
char *nk_buf_take(struct nk_buf *b, size_t *size);
/* "" while empty. */
const char *nk_buf_str(const struct nk_buf *b);

#endif
