#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void nk_buf_init(struct nk_buf *b, size_t max)
{
    *b = (struct nk_buf)NK_BUF_INIT(max);
}

void nk_buf_release(struct nk_buf *b)
{
    free(b->data);
    nk_buf_init(b, b->max);
}

void nk_buf_reset(struct nk_buf *b)
{
    b->size = 0;
    if (b->data)
        b->data[0] = '\0';
}

int nk_buf_reserve(struct nk_buf *b, size_t size, char **where, struct nk_error *err)
{
    if (size > b->max - b->size)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "%zu bytes and %zu more are over the limit of %zu", b->size, size, b->max);
    if (!b->data || size > b->capacity - b->size) {
        size_t need = b->size + size, capacity = b->capacity ? b->capacity : 64;
        char *data;

        while (capacity < need)
            capacity = capacity > b->max / 2 ? b->max : capacity * 2;
        data = capacity < SIZE_MAX ? realloc(b->data, capacity + 1) : NULL;
        if (!data)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu bytes", capacity);
        b->data = data;
        b->capacity = capacity;
        b->data[b->size] = '\0';
    }
    *where = b->data + b->size;
    return 0;
}

void nk_buf_commit(struct nk_buf *b, size_t size)
{
    NK_ASSERT(size <= b->capacity - b->size);
    b->size += size;
    b->data[b->size] = '\0';
}

int nk_buf_add(struct nk_buf *b, const void *data, size_t size, struct nk_error *err)
{
    char *where;
    int rc = nk_buf_reserve(b, size, &where, err);

    if (rc)
        return rc;
    if (size)
        memcpy(where, data, size);
    nk_buf_commit(b, size);
    return 0;
}

int nk_buf_adds(struct nk_buf *b, const char *text, struct nk_error *err)
{
    return nk_buf_add(b, text, strlen(text), err);
}

int nk_buf_addf(struct nk_buf *b, struct nk_error *err, const char *fmt, ...)
{
    char *where;
    va_list ap;
    int n, rc;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    NK_ASSERT(n >= 0);
    rc = nk_buf_reserve(b, (size_t)n, &where, err);
    if (rc)
        return rc;
    va_start(ap, fmt);
    vsnprintf(where, (size_t)n + 1, fmt, ap);
    va_end(ap);
    nk_buf_commit(b, (size_t)n);
    return 0;
}

void nk_buf_consume(struct nk_buf *b, size_t n)
{
    NK_ASSERT(n <= b->size);
    if (!n)
        return;
    memmove(b->data, b->data + n, b->size - n);
    b->size -= n;
    b->data[b->size] = '\0';
}

char *nk_buf_take(struct nk_buf *b, size_t *size)
{
    char *data = b->data ? b->data : calloc(1, 1);

    if (size)
        *size = b->size;
    nk_buf_init(b, b->max);
    return data;
}

const char *nk_buf_str(const struct nk_buf *b)
{
    return b->data ? b->data : "";
}
