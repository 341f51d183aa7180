/* All digests of a model in one pass over its files: the caller's thread reads, and three others
 * hash what it read: the whole, the pieces, and the parts. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/progress.h"
#include "base/thread.h"
#include "pieces/catalogue_int.h"

enum { CHUNK = 1 << 20, CHUNKS = 8, WHOLE = 0, PIECES, PARTS, HASHERS };

struct chunk {
    uint8_t *data;
    int shard;
    uint64_t offset; /* in the shard */
    size_t size;
};

struct hasher {
    struct pass *pass;
    int what;
    pthread_t thread;
    bool running;
    uint64_t n_done; /* under the lock */
    bool no_memory;
    nk_sha256 *whole;
    nk_sha256 **of_piece; /* of its bytes so far, or of its part so far */
    uint64_t *piece_done; /* bytes */
    int tensor;           /* none before it has bytes in chunks to come */
};

/* A ring of chunks. The reader fills a free one; it is free again when all are through with it. */
struct pass {
    nk_catalogue *c;
    const nk_model *m;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct chunk chunks[CHUNKS]; /* number i is at i % CHUNKS */
    uint64_t n_queued;           /* under the lock */
    bool closing;
    struct hasher hashers[HASHERS];
};

static void finish(nk_sha256 **h, uint8_t out[NK_DIGEST_BYTES])
{
    char hex[NK_SHA256_HEX];

    nk_sha256_finish(*h, hex);
    *h = NULL;
    nk__digest_parse(hex, out);
}

/* The piece's next bytes; where the digest ends with them, it is written down. */
static void hash_piece(struct hasher *h, int piece, const uint8_t *data, uint64_t n)
{
    struct nk_piece *p = &h->pass->c->pieces[piece];
    nk_sha256 **sha = &h->of_piece[piece];

    while (n && !h->no_memory) {
        uint64_t done = h->piece_done[piece], now = n;

        if (h->what == PARTS && now > NK_PART_BYTES - done % NK_PART_BYTES)
            now = NK_PART_BYTES - done % NK_PART_BYTES;
        if (!*sha && !(*sha = nk_sha256_new())) {
            h->no_memory = true;
            return;
        }
        nk_sha256_add(*sha, data, (size_t)now);
        h->piece_done[piece] = done + now;
        if (h->what == PARTS && ((done + now) % NK_PART_BYTES == 0 || done + now == p->size_bytes))
            finish(sha, h->pass->c->parts[p->first_part + (int)(done / NK_PART_BYTES)].sha256);
        else if (h->what == PIECES && done + now == p->size_bytes)
            finish(sha, p->sha256);
        data += now;
        n -= now;
    }
}

static void hash_chunk(struct hasher *h, const struct chunk *k)
{
    const nk_catalogue *c = h->pass->c;
    uint64_t end = k->offset + k->size;

    if (h->what == WHOLE) {
        nk_sha256_add(h->whole, k->data, k->size);
        return;
    }
    for (int i = h->tensor; i < c->n_tensors; i++) {
        struct nk_tensor_place t;
        uint64_t from, to;

        nk_model_tensor_place(h->pass->m, i, &t);
        if (t.shard > k->shard || (t.shard == k->shard && t.offset >= end))
            break;
        if (t.shard < k->shard || t.offset + t.size_bytes <= k->offset) {
            h->tensor = i + 1;
            continue;
        }
        from = t.offset > k->offset ? t.offset : k->offset;
        to = t.offset + t.size_bytes < end ? t.offset + t.size_bytes : end;
        if (c->tensors[i].piece >= 0)
            hash_piece(h, c->tensors[i].piece, k->data + (from - k->offset), to - from);
    }
}

static void *hash_loop(void *arg)
{
    struct hasher *h = arg;
    struct pass *p = h->pass;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        const struct chunk *k;

        while (h->n_done == p->n_queued && !p->closing)
            pthread_cond_wait(&p->changed, &p->lock);
        if (h->n_done == p->n_queued)
            break;
        k = &p->chunks[h->n_done % CHUNKS];
        pthread_mutex_unlock(&p->lock);
        hash_chunk(h, k);
        pthread_mutex_lock(&p->lock);
        h->n_done++;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static bool start(struct pass *p)
{
    size_t n = (size_t)p->c->n_pieces;
    bool ok = true;

    for (int i = 0; i < CHUNKS && ok; i++)
        ok = (p->chunks[i].data = malloc(CHUNK)) != NULL;
    for (int i = 0; i < HASHERS && ok; i++) {
        struct hasher *h = &p->hashers[i];

        h->pass = p;
        h->what = i;
        if (i == WHOLE) {
            ok = (h->whole = nk_sha256_new()) != NULL;
        } else {
            h->of_piece = calloc(n, sizeof(nk_sha256 *));
            h->piece_done = calloc(n, sizeof *h->piece_done);
            ok = h->of_piece && h->piece_done;
        }
        ok = ok && (h->running = !nk_thread_start(&h->thread, hash_loop, h));
    }
    return ok;
}

static void join(struct pass *p)
{
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < HASHERS; i++) {
        if (p->hashers[i].running)
            pthread_join(p->hashers[i].thread, NULL);
        p->hashers[i].running = false;
    }
}

static void release(struct pass *p)
{
    join(p);
    for (int i = 0; i < CHUNKS; i++)
        free(p->chunks[i].data);
    for (int i = 0; i < HASHERS; i++) {
        struct hasher *h = &p->hashers[i];

        nk_sha256_free(h->whole);
        for (int k = 0; h->of_piece && k < p->c->n_pieces; k++)
            nk_sha256_free(h->of_piece[k]);
        free(h->of_piece);
        free(h->piece_done);
    }
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
}

/* Waits for a free chunk; it stays the reader's until it is queued. */
static struct chunk *free_chunk(struct pass *p)
{
    struct chunk *k;

    pthread_mutex_lock(&p->lock);
    for (int i = 0; i < HASHERS; i++)
        while (p->n_queued - p->hashers[i].n_done == CHUNKS)
            pthread_cond_wait(&p->changed, &p->lock);
    k = &p->chunks[p->n_queued % CHUNKS];
    pthread_mutex_unlock(&p->lock);
    return k;
}

static int read_shard(struct pass *p, int shard, struct nk_progress *bar, struct nk_error *err)
{
    uint64_t size = nk_model_shard_bytes(p->m, shard);
    int rc = 0;

    for (uint64_t at = 0; at < size && !rc; at += CHUNK) {
        struct chunk *k = free_chunk(p);

        k->shard = shard;
        k->offset = at;
        k->size = size - at < CHUNK ? (size_t)(size - at) : CHUNK;
        rc = nk_model_read(p->m, shard, at, k->data, k->size, err);
        if (!rc && nk_split_interrupted())
            rc = nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted");
        if (rc)
            break;
        pthread_mutex_lock(&p->lock);
        p->n_queued++;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        nk_progress_add(bar, k->size);
    }
    return rc;
}

int nk__catalogue_hash(nk_catalogue *c, const nk_model *m, struct nk_error *err)
{
    struct pass p = { .c = c, .m = m };
    struct nk_progress bar;
    int rc;

    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    rc = start(&p) ? 0
                   : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory, or no thread, to hash");
    if (!rc) {
        nk_progress_start(&bar, "hashing", nk_model_info(m)->file_bytes);
        for (int i = 0; i < nk_model_info(m)->n_shards && !rc; i++)
            rc = read_shard(&p, i, &bar, err);
        join(&p);
        nk_progress_end(&bar);
    }
    for (int i = 0; i < HASHERS && !rc; i++)
        if (p.hashers[i].no_memory)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < c->n_pieces && !rc; i++) /* a layer without tensors */
        if (!c->pieces[i].size_bytes && !nk__digest("", 0, c->pieces[i].sha256))
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc) {
        nk_sha256_finish(p.hashers[WHOLE].whole, c->model_sha256);
        p.hashers[WHOLE].whole = NULL;
    }
    release(&p);
    return rc;
}
