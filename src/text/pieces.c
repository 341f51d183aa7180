/* Tables are found again by their vocabulary's content, not by its address: a model may be closed
 * and another one opened at the same place. The content's hash costs a few milliseconds for 128k
 * tokens, making a table about 100. */
#include "text/pieces.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "base/array.h"
#include "text/guard.h"

struct table {
    struct nk_pieces view; /* first: what callers hold points here */
    uint64_t hash;
    int n_users;
    uint64_t used_at; /* of the clock below */
    uint32_t *offset, *shared;
    uint8_t *bytes, *is_eog;
    int32_t *order;
};

/* How many vocabularies are kept: a process serves one or two models. Those in use are kept
 * whatever their number. */
enum { TABLES_MAX = 4 };
static struct table *tables[TABLES_MAX];
static uint64_t clock_now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t hash_vocab(const struct llama_vocab *vocab)
{
    uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */

    for (int32_t id = 0; id < llama_vocab_n_tokens(vocab); id++) {
        for (const char *p = llama_vocab_get_text(vocab, id); *p; p++)
            h = (h ^ (uint8_t)*p) * 0x100000001b3ull;
        h = (h ^ 0x100u ^ (uint32_t)llama_vocab_get_attr(vocab, id)) * 0x100000001b3ull;
        h = (h ^ llama_vocab_is_eog(vocab, id)) * 0x100000001b3ull;
    }
    return h;
}

static void table_free(struct table *t)
{
    if (!t)
        return;
    free(t->offset);
    free(t->shared);
    free(t->bytes);
    free(t->is_eog);
    free(t->order);
    free(t);
}

/* One token while they are sorted. */
struct piece {
    const uint8_t *bytes;
    uint32_t size;
    int32_t id;
};

static int by_bytes(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    int c = memcmp(x->bytes, y->bytes, x->size < y->size ? x->size : y->size);

    if (!c && x->size != y->size)
        c = x->size < y->size ? -1 : 1;
    return c ? c : (x->id > y->id) - (x->id < y->id);
}

/* Fills order and shared. */
static bool sort(struct table *t, size_t n)
{
    struct piece *pieces = malloc((n + 1) * sizeof *pieces);

    if (!pieces)
        return false;
    for (size_t id = 0; id < n; id++)
        pieces[id] = (struct piece){ t->bytes + t->offset[id], t->offset[id + 1] - t->offset[id],
                                     (int32_t)id };
    qsort(pieces, n, sizeof *pieces, by_bytes);
    for (size_t i = 0; i < n; i++) {
        uint32_t k = 0;

        if (i > 0)
            while (k < pieces[i - 1].size && k < pieces[i].size &&
                   pieces[i - 1].bytes[k] == pieces[i].bytes[k])
                k++;
        t->order[i] = pieces[i].id;
        t->shared[i] = k;
    }
    free(pieces);
    return true;
}

static int fill(struct table *t, const struct llama_vocab *vocab, struct nk_error *err)
{
    size_t n = (size_t)llama_vocab_n_tokens(vocab), size = 0, capacity = n * 8 + 256;
    int rc;

    t->offset = malloc((n + 1) * sizeof *t->offset);
    t->shared = malloc((n + 1) * sizeof *t->shared);
    t->order = malloc((n + 1) * sizeof *t->order);
    t->is_eog = malloc(n + 1);
    t->bytes = malloc(capacity);
    if (!t->offset || !t->shared || !t->order || !t->is_eog || !t->bytes)
        goto no_memory;
    for (size_t id = 0; id < n; id++) {
        int32_t got = 0;

        t->offset[id] = (uint32_t)size;
        t->is_eog[id] = llama_vocab_is_eog(vocab, (int32_t)id);
        rc = nk__guard_piece(vocab, (int32_t)id, (char *)t->bytes + size,
                             (int32_t)(capacity - size), false, &got, err);
        if (rc)
            return rc;
        if (got < 0) {
            if (nk_array_grow(t->bytes, capacity, size + (size_t)-got, INT32_MAX, NULL))
                goto no_memory;
            id--;
            continue;
        }
        size += (size_t)got;
    }
    t->offset[n] = (uint32_t)size;
    if (!sort(t, n))
        goto no_memory;
    t->view = (struct nk_pieces){ (int)n, t->offset, t->bytes, t->is_eog, t->order, t->shared };
    return 0;
no_memory:
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the text of %zu tokens", n);
}

/* With the lock held: a place for a new table, made free if need be; NULL when all are in use. */
static struct table **free_place(void)
{
    struct table **oldest = NULL;

    for (int i = 0; i < TABLES_MAX; i++) {
        if (!tables[i])
            return &tables[i];
        if (!tables[i]->n_users && (!oldest || tables[i]->used_at < (*oldest)->used_at))
            oldest = &tables[i];
    }
    if (oldest) {
        table_free(*oldest);
        *oldest = NULL;
    }
    return oldest;
}

/* With the lock held. */
static struct table *find(uint64_t hash, int n)
{
    for (int i = 0; i < TABLES_MAX; i++)
        if (tables[i] && tables[i]->hash == hash && tables[i]->view.n == n) {
            tables[i]->n_users++;
            tables[i]->used_at = ++clock_now;
            return tables[i];
        }
    return NULL;
}

int nk__pieces_acquire(const struct nk_pieces **out, const struct llama_vocab *vocab,
                       struct nk_error *err)
{
    uint64_t hash = hash_vocab(vocab);
    struct table *t, *made, **place;
    int rc;

    *out = NULL;
    pthread_mutex_lock(&lock);
    t = find(hash, llama_vocab_n_tokens(vocab));
    pthread_mutex_unlock(&lock);
    if (t) {
        *out = &t->view;
        return 0;
    }
    made = calloc(1, sizeof *made);
    if (!made)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    /* Outside the lock: others need not wait; at worst it is made twice. */
    rc = fill(made, vocab, err);
    if (rc) {
        table_free(made);
        return rc;
    }
    made->hash = hash;
    made->n_users = 1;
    pthread_mutex_lock(&lock);
    t = find(hash, made->view.n);
    if (!t && (place = free_place())) {
        made->used_at = ++clock_now;
        *place = made;
    }
    pthread_mutex_unlock(&lock);
    if (t)
        table_free(made);
    *out = t ? &t->view : &made->view;
    return 0;
}

void nk__pieces_release(const struct nk_pieces *p)
{
    struct table *t = (struct table *)(uintptr_t)p;
    bool kept = false;

    if (!p)
        return;
    pthread_mutex_lock(&lock);
    t->n_users--;
    for (int i = 0; i < TABLES_MAX; i++)
        kept |= tables[i] == t;
    pthread_mutex_unlock(&lock);
    if (!kept)
        table_free(t);
}
