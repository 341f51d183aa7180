#include "rpc/arena.h"

#include <stdint.h>
#include <stdlib.h>

/* The memory is a stack of blocks, each at least twice as large as the one before; only the newest
 * is allocated from. After a message that needed several, reset replaces them by one of their total
 * size: the next message of that size fits. */

#if defined(__SANITIZE_ADDRESS__)
#define NK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NK_ASAN 1
#endif
#endif
#ifdef NK_ASAN
#include <sanitizer/asan_interface.h>
#else
/* Under AddressSanitizer what a reset forgot, or was never handed out, is poisoned: a stale pointer
 * is then found. */
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { ALIGN = 16, BLOCK_BYTES_MIN = 4096 };

struct block {
    struct block *older;
    size_t size, used;
    _Alignas(ALIGN) unsigned char data[];
};

struct nk_arena {
    ProtobufCAllocator allocator;
    struct block *newest;
    size_t held_bytes, max_bytes; /* in all blocks */
    size_t next_bytes;            /* what the next first block should hold */
};

static void free_blocks(nk_arena *a)
{
    for (struct block *b = a->newest, *older; b; b = older) {
        older = b->older;
        ASAN_UNPOISON_MEMORY_REGION(b->data, b->size);
        free(b);
    }
    a->newest = NULL;
    a->held_bytes = 0;
}

static struct block *add_block(nk_arena *a, size_t need)
{
    size_t left = a->max_bytes - a->held_bytes;
    size_t size = a->newest ? a->newest->size * 2 : a->next_bytes;
    struct block *b;

    if (need > left)
        return NULL;
    if (size < BLOCK_BYTES_MIN)
        size = BLOCK_BYTES_MIN;
    if (size < need)
        size = need;
    if (size > left)
        size = left;
    b = malloc(sizeof *b + size);
    if (!b)
        return NULL;
    ASAN_POISON_MEMORY_REGION(b->data, size);
    b->older = a->newest;
    b->size = size;
    b->used = 0;
    a->newest = b;
    a->held_bytes += size;
    return b;
}

static void *arena_alloc(void *data, size_t size)
{
    nk_arena *a = data;
    struct block *b = a->newest;
    size_t begin;

    if (size > a->max_bytes)
        return NULL;
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    if (size == 0)
        size = ALIGN; /* protobuf-c takes NULL for a failure */
    if (!b || size > b->size - b->used)
        b = add_block(a, size);
    if (!b)
        return NULL;
    begin = b->used;
    b->used += size;
    ASAN_UNPOISON_MEMORY_REGION(b->data + begin, size);
    return b->data + begin;
}

static void arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

nk_arena *nk_arena_new(size_t max_bytes)
{
    nk_arena *a = calloc(1, sizeof *a);

    if (!a)
        return NULL;
    a->allocator = (ProtobufCAllocator){ arena_alloc, arena_free, a };
    a->max_bytes = max_bytes / ALIGN * ALIGN;
    return a;
}

void nk_arena_free(nk_arena *a)
{
    if (!a)
        return;
    free_blocks(a);
    free(a);
}

void nk_arena_reset(nk_arena *a)
{
    if (!a->newest)
        return;
    if (a->newest->older) {
        size_t total = a->held_bytes;

        free_blocks(a);
        a->next_bytes = total;
        return;
    }
    a->newest->used = 0;
    ASAN_POISON_MEMORY_REGION(a->newest->data, a->newest->size);
}

ProtobufCAllocator *nk_arena_allocator(nk_arena *a)
{
    return &a->allocator;
}
