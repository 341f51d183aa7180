#include "slice/stream_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/progress.h"
#include "base/thread.h"
#include "slice/slice.h"

/* ---- ticks ---- */

static _Atomic bool interrupted;

void nk_split_interrupt(void)
{
    atomic_store(&interrupted, true);
}

int nk__tick_bar(void *user, uint64_t bytes, struct nk_error *err)
{
    if (atomic_load(&interrupted))
        return nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted");
    nk_progress_add(user, bytes);
    return 0;
}

/* ---- the stream ---- */

/* A ring of chunks. The caller fills a free one, writes it to the file and queues it for the
 * hashing thread, which gives it back. A queued chunk without data stands for that many zeros. */
struct nk__stream {
    struct nk_newfile *file;
    nk__tick tick;
    void *user;
    uint64_t size_bytes;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct {
        uint8_t *data;
        uint64_t size;
        bool zeros;
    } chunks[NK__CHUNKS]; /* queued: [first, first + n_queued), counted modulo NK__CHUNKS */
    unsigned first, n_queued;
    bool closing;
    nk_sha256 *hash;
};

static void hash_zeros(nk_sha256 *h, uint64_t n)
{
    static const uint8_t zeros[1 << 16];

    for (; n > sizeof zeros; n -= sizeof zeros)
        nk_sha256_add(h, zeros, sizeof zeros);
    nk_sha256_add(h, zeros, (size_t)n);
}

static void *hash_loop(void *arg)
{
    nk__stream *s = arg;

    pthread_mutex_lock(&s->lock);
    for (;;) {
        unsigned at;

        while (!s->n_queued && !s->closing)
            pthread_cond_wait(&s->changed, &s->lock);
        if (!s->n_queued)
            break;
        at = s->first;
        pthread_mutex_unlock(&s->lock);
        if (s->chunks[at].zeros)
            hash_zeros(s->hash, s->chunks[at].size);
        else
            nk_sha256_add(s->hash, s->chunks[at].data, (size_t)s->chunks[at].size);
        pthread_mutex_lock(&s->lock);
        s->first = (s->first + 1) % NK__CHUNKS;
        s->n_queued--;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int nk__stream_new(nk__stream **out, struct nk_newfile *file, bool hash, nk__tick tick, void *user,
                   struct nk_error *err)
{
    nk__stream *s = calloc(1, sizeof *s);
    bool ok = s != NULL;

    *out = NULL;
    for (int i = 0; i < NK__CHUNKS && ok; i++)
        ok = (s->chunks[i].data = malloc(NK__CHUNK)) != NULL;
    if (ok && hash)
        ok = (s->hash = nk_sha256_new()) != NULL;
    if (ok) {
        s->file = file;
        s->tick = tick;
        s->user = user;
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->changed, NULL);
        s->closing = !hash; /* no thread to be joined */
        if (!hash || !nk_thread_start(&s->thread, hash_loop, s)) {
            *out = s;
            return 0;
        }
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
    }
    for (int i = 0; s && i < NK__CHUNKS; i++)
        free(s->chunks[i].data);
    if (s)
        nk_sha256_free(s->hash);
    free(s);
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory, or no thread, for copying");
}

static void join(nk__stream *s)
{
    if (s->closing)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
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
    nk_sha256_free(s->hash);
    free(s);
}

/* Waits for a free chunk; it stays the caller's until queue(). */
static unsigned free_chunk(nk__stream *s)
{
    unsigned at;

    pthread_mutex_lock(&s->lock);
    while (s->n_queued == NK__CHUNKS)
        pthread_cond_wait(&s->changed, &s->lock);
    at = (s->first + s->n_queued) % NK__CHUNKS;
    pthread_mutex_unlock(&s->lock);
    return at;
}

static int queue(nk__stream *s, unsigned at, uint64_t size, bool zeros, struct nk_error *err)
{
    if (s->hash) {
        pthread_mutex_lock(&s->lock);
        s->chunks[at].size = size;
        s->chunks[at].zeros = zeros;
        s->n_queued++;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
    }
    s->size_bytes += size;
    return s->tick ? s->tick(s->user, size, err) : 0;
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
        size_t size = n < NK__CHUNK ? (size_t)n : NK__CHUNK;
        unsigned at = free_chunk(s);

        rc = nk__source_read(from, offset, s->chunks[at].data, size, err);
        if (!rc && s->file)
            rc = nk_newfile_write(s->file, s->chunks[at].data, size, err);
        if (!rc)
            rc = queue(s, at, size, false, err);
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
    if (s->hash)
        nk_sha256_finish(s->hash, digest);
    s->hash = NULL;
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
