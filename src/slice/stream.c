#include "slice/stream_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/progress.h"
#include "base/thread.h"
#include "slice/seal_int.h"
#include "slice/slice.h"

/* ---- ticks ---- */

static _Atomic bool interrupted;

void nk_split_interrupt(void)
{
    atomic_store(&interrupted, true);
}

bool nk_split_interrupted(void)
{
    return atomic_load(&interrupted);
}

int nk__tick_bar(void *user, uint64_t bytes, struct nk_error *err)
{
    if (atomic_load(&interrupted))
        return nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted");
    nk_progress_add(user, bytes);
    return 0;
}

/* ---- the stream ---- */

enum { WHOLE, PARTS, HASHERS };

struct chunk {
    uint8_t *data;
    uint64_t size;
    bool zeros; /* without data: so many zeros */
    int part;   /* -1: of none */
};

/* A thread that takes digests of what is queued. */
struct hasher {
    nk__stream *stream;
    pthread_t thread;
    bool running;
    uint64_t n_done; /* under the lock: chunks that it is through with */
    nk_sha256 *hash;
    int part; /* whose digest is being taken; -1: none */
    bool no_memory;
};

/* A ring of chunks. The caller fills a free one, writes it to the file and queues it; it is free
 * again when every hasher is through with it. */
struct nk__stream {
    struct nk_newfile *file;
    nk__tick tick;
    void *user;
    uint64_t size_bytes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct chunk chunks[NK__CHUNKS]; /* number i is at i % NK__CHUNKS */
    uint64_t n_queued;               /* under the lock */
    bool closing;
    struct hasher hashers[HASHERS];
    struct nk__seal_part *parts; /* under the lock: a hasher fills in digests */
    int n_parts, parts_capacity;
    bool sealed;
};

static void hash_zeros(nk_sha256 *h, uint64_t n)
{
    static const uint8_t zeros[1 << 16];

    for (; n > sizeof zeros; n -= sizeof zeros)
        nk_sha256_add(h, zeros, sizeof zeros);
    nk_sha256_add(h, zeros, (size_t)n);
}

static void hash_chunk(struct hasher *h, const struct chunk *c)
{
    if (c->zeros)
        hash_zeros(h->hash, c->size);
    else
        nk_sha256_add(h->hash, c->data, (size_t)c->size);
}

/* The digest of the part that it was at is known. */
static void end_part(struct hasher *h)
{
    nk__stream *s = h->stream;
    char hex[NK_SHA256_HEX];

    if (h->hash) {
        nk_sha256_finish(h->hash, hex);
        pthread_mutex_lock(&s->lock);
        memcpy(s->parts[h->part].sha256, hex, sizeof hex);
        pthread_mutex_unlock(&s->lock);
    }
    h->hash = NULL;
    h->part = -1;
}

static void hash_in_parts(struct hasher *h, const struct chunk *c)
{
    nk__stream *s = h->stream;
    bool is_hole;

    if (c->part != h->part) {
        end_part(h);
        h->part = c->part;
        pthread_mutex_lock(&s->lock);
        is_hole = c->part < 0 || s->parts[c->part].is_hole;
        pthread_mutex_unlock(&s->lock);
        h->hash = is_hole ? NULL : nk_sha256_new();
        h->no_memory |= !is_hole && !h->hash;
    }
    if (h->hash)
        hash_chunk(h, c);
}

static void *hash_loop(void *arg)
{
    struct hasher *h = arg;
    nk__stream *s = h->stream;

    pthread_mutex_lock(&s->lock);
    for (;;) {
        const struct chunk *c;

        while (h->n_done == s->n_queued && !s->closing)
            pthread_cond_wait(&s->changed, &s->lock);
        if (h->n_done == s->n_queued)
            break;
        c = &s->chunks[h->n_done % NK__CHUNKS];
        pthread_mutex_unlock(&s->lock);
        if (h == &s->hashers[WHOLE])
            hash_chunk(h, c);
        else
            hash_in_parts(h, c);
        pthread_mutex_lock(&s->lock);
        h->n_done++;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void join(nk__stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < HASHERS; i++)
        if (s->hashers[i].running)
            pthread_join(s->hashers[i].thread, NULL);
    for (int i = 0; i < HASHERS; i++)
        s->hashers[i].running = false;
}

void nk__stream_free(nk__stream *s)
{
    if (!s)
        return;
    join(s);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    for (int i = 0; i < NK__CHUNKS; i++)
        free(s->chunks[i].data);
    for (int i = 0; i < HASHERS; i++)
        nk_sha256_free(s->hashers[i].hash);
    free(s->parts);
    free(s);
}

int nk__stream_new(nk__stream **out, struct nk_newfile *file, int hash, nk__tick tick, void *user,
                   struct nk_error *err)
{
    nk__stream *s = calloc(1, sizeof *s);
    bool ok = s != NULL;

    *out = NULL;
    if (!s)
        goto fail;
    s->file = file;
    s->tick = tick;
    s->user = user;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    for (int i = 0; i < NK__CHUNKS && ok; i++)
        ok = (s->chunks[i].data = malloc(NK__CHUNK)) != NULL;
    if (ok && hash & NK__HASH_WHOLE)
        ok = (s->hashers[WHOLE].hash = nk_sha256_new()) != NULL;
    for (int i = 0; i < HASHERS && ok; i++) {
        struct hasher *h = &s->hashers[i];

        h->stream = s;
        h->part = -1;
        if (hash & (i == WHOLE ? NK__HASH_WHOLE : NK__HASH_PARTS))
            ok = h->running = !nk_thread_start(&h->thread, hash_loop, h);
    }
    if (ok) {
        *out = s;
        return 0;
    }
    nk__stream_free(s);
fail:
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory, or no thread, for copying");
}

/* The lock is held: chunks that a hasher is not through with. */
static uint64_t n_in_use(const nk__stream *s)
{
    uint64_t most = 0;

    for (int i = 0; i < HASHERS; i++)
        if (s->hashers[i].running && s->n_queued - s->hashers[i].n_done > most)
            most = s->n_queued - s->hashers[i].n_done;
    return most;
}

/* Waits for a free chunk; it stays the caller's until queue(). */
static struct chunk *free_chunk(nk__stream *s)
{
    struct chunk *c;

    pthread_mutex_lock(&s->lock);
    while (n_in_use(s) == NK__CHUNKS)
        pthread_cond_wait(&s->changed, &s->lock);
    c = &s->chunks[s->n_queued % NK__CHUNKS];
    pthread_mutex_unlock(&s->lock);
    return c;
}

static int queue(nk__stream *s, struct chunk *c, uint64_t size, bool zeros, struct nk_error *err)
{
    pthread_mutex_lock(&s->lock);
    c->size = size;
    c->zeros = zeros;
    c->part = s->sealed ? -1 : s->n_parts - 1;
    if (c->part >= 0)
        s->parts[c->part].size += size;
    s->n_queued++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    s->size_bytes += size;
    return s->tick ? s->tick(s->user, size, err) : 0;
}

int nk__stream_part(nk__stream *s, const char *name, bool is_hole, struct nk_error *err)
{
    bool ok = true;

    pthread_mutex_lock(&s->lock);
    if (s->n_parts == s->parts_capacity) {
        int capacity = s->parts_capacity ? 2 * s->parts_capacity : 64;
        struct nk__seal_part *parts = realloc(s->parts, (size_t)capacity * sizeof *parts);

        ok = parts != NULL;
        if (ok) {
            s->parts = parts;
            s->parts_capacity = capacity;
        }
    }
    if (ok)
        s->parts[s->n_parts++] =
            (struct nk__seal_part){ .begin = s->size_bytes, .name = name, .is_hole = is_hole };
    pthread_mutex_unlock(&s->lock);
    return ok ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

int nk__stream_seal(nk__stream *s, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK__SEAL_MAX);
    int rc;

    pthread_mutex_lock(&s->lock);
    while (n_in_use(s))
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    end_part(&s->hashers[PARTS]); /* it waits for more, and none comes */
    s->sealed = true;
    rc = s->hashers[PARTS].no_memory ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory")
                                     : nk__seal_format(s->parts, s->n_parts, &text, err);
    if (!rc)
        rc = nk__stream_add(s, text.data, text.size, err);
    nk_buf_release(&text);
    return rc;
}

/* How much of n goes into the next chunk; a part that is full is continued by another. */
static int chunk_size(nk__stream *s, uint64_t n, size_t *size, struct nk_error *err)
{
    const struct nk__seal_part *p = s->n_parts && !s->sealed ? &s->parts[s->n_parts - 1] : NULL;
    int rc = 0;

    *size = n < NK__CHUNK ? (size_t)n : NK__CHUNK;
    if (p && p->size >= NK__SEAL_PART_MAX)
        rc = nk__stream_part(s, p->name, p->is_hole, err);
    else if (p && *size > NK__SEAL_PART_MAX - p->size)
        *size = (size_t)(NK__SEAL_PART_MAX - p->size);
    return rc;
}

int nk__stream_add(nk__stream *s, const void *data, size_t n, struct nk_error *err)
{
    const struct nk__source memory = { .fd = -1, .data = data, .size = n };

    return nk__stream_copy(s, &memory, 0, n, err);
}

int nk__stream_copy(nk__stream *s, const struct nk__source *from, uint64_t offset, uint64_t n,
                    struct nk_error *err)
{
    int rc = 0;

    while (n && !rc) {
        struct chunk *c = free_chunk(s);
        size_t size;

        rc = chunk_size(s, n, &size, err);
        if (!rc)
            rc = nk__source_read(from, offset, c->data, size, err);
        if (!rc && s->file)
            rc = nk_newfile_write(s->file, c->data, size, err);
        if (!rc)
            rc = queue(s, c, size, false, err);
        offset += size;
        n -= size;
    }
    return rc;
}

int nk__stream_zeros(nk__stream *s, uint64_t n, struct nk_error *err)
{
    if (!n)
        return 0;
    if (s->file && lseek(s->file->fd, (off_t)n, SEEK_CUR) < 0)
        return nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", s->file->path,
                       strerror(errno));
    return queue(s, free_chunk(s), n, true, err);
}

uint64_t nk__stream_size(const nk__stream *s)
{
    return s->size_bytes;
}

int nk__stream_finish(nk__stream *s, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    char digest[NK_SHA256_HEX] = "";

    join(s);
    if (s->hashers[WHOLE].hash)
        nk_sha256_finish(s->hashers[WHOLE].hash, digest);
    s->hashers[WHOLE].hash = NULL;
    if (hex)
        memcpy(hex, digest, sizeof digest);
    if (s->file && ftruncate(s->file->fd, (off_t)s->size_bytes) < 0) {
        int e = errno;

        return nk_fail(err, e == ENOSPC || e == EFBIG ? NK_E_EXHAUSTED : NK_E_DATA_LOSS,
                       e == ENOSPC || e == EFBIG ? "no_space" : "write_failed", "%s: %s",
                       s->file->path, strerror(e));
    }
    return 0;
}
