/* A bump allocator that protobuf-c unpacks into: reset per message, so that a steady stream of
 * messages of one size allocates nothing. It has a ceiling; past it allocations return NULL
 * (protobuf-c then fails to unpack). One thread. */
#ifndef NK_RPC_ARENA_H
#define NK_RPC_ARENA_H

#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

typedef struct nk_arena nk_arena;

nk_arena *nk_arena_new(size_t max_bytes); /* NULL when out of memory */
void nk_arena_free(nk_arena *a);
/* Forgets everything allocated, keeps the memory (as one block large enough for what was used). */
void nk_arena_reset(nk_arena *a);
/* Freeing through it does nothing. Valid as long as the arena. */
ProtobufCAllocator *nk_arena_allocator(nk_arena *a);

#endif
