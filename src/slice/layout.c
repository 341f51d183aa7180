/* The seal of a file whose parts came in any order: they are read again, by a few threads, and
 * their digests written behind them. Parts are what stream.c makes of one that is written from
 * first to last. */
#include "slice/layout.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/thread.h"
#include "slice/model_int.h"
#include "slice/seal_int.h"

enum { WINDOW = 1 << 18, THREADS_MAX = 7 };

void nk_slice_layout_free(struct nk_slice_layout *l)
{
    if (!l)
        return;
    nk_buf_release(&l->header);
    free(l->tensors);
    free(l);
}

struct sealing {
    struct nk__source source;
    struct nk__seal_part *parts;
    int n_parts;
    atomic_int next;
    const atomic_bool *cancelled;
    pthread_mutex_t lock; /* of the first failure */
    int rc;
    struct nk_error err;
};

/* The parts of `copied` bytes at `begin`, and of `zeros` behind them, which belong to the last
 * one. */
static void add_parts(struct sealing *s, const char *name, uint64_t begin, uint64_t copied,
                      uint64_t end)
{
    uint64_t at = begin;

    while (begin + copied - at > NK__SEAL_PART_MAX) {
        s->parts[s->n_parts++] =
            (struct nk__seal_part){ .begin = at, .size = NK__SEAL_PART_MAX, .name = name };
        at += NK__SEAL_PART_MAX;
    }
    s->parts[s->n_parts++] = (struct nk__seal_part){ .begin = at, .size = end - at, .name = name };
}

static int list_parts(struct sealing *s, const struct nk_slice_layout *l, struct nk_error *err)
{
    uint64_t n = l->header.size / NK__SEAL_PART_MAX + 1;

    for (int i = 0; i < l->n_tensors; i++)
        n += l->tensors[i].copy_bytes / NK__SEAL_PART_MAX + 1;
    s->parts = n <= INT32_MAX ? calloc((size_t)n, sizeof *s->parts) : NULL;
    if (!s->parts)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    add_parts(s, "header", 0, l->header.size, l->n_tensors ? l->tensors[0].at : l->seal_at);
    for (int i = 0; i < l->n_tensors; i++) {
        const struct nk_slice_tensor *t = &l->tensors[i];
        uint64_t end = i + 1 < l->n_tensors ? l->tensors[i + 1].at : l->seal_at;
        const char *name = l->m->tensors[t->tensor].name;

        if (t->copy_bytes)
            add_parts(s, name, t->at, t->copy_bytes, end);
        else
            s->parts[s->n_parts++] = (struct nk__seal_part){
                .begin = t->at, .size = end - t->at, .name = name, .is_hole = true
            };
    }
    return 0;
}

static int hash_part(struct sealing *s, struct nk__seal_part *p, uint8_t *window,
                     struct nk_error *err)
{
    nk_sha256 *h = nk_sha256_new();
    int rc = h ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    for (uint64_t at = 0; at < p->size && !rc; at += WINDOW) {
        size_t n = p->size - at < WINDOW ? (size_t)(p->size - at) : WINDOW;

        if (s->cancelled && atomic_load(s->cancelled))
            rc = nk_fail(err, NK_E_CANCELLED, "cancelled", "cancelled");
        else
            rc = nk__source_read(&s->source, p->begin + at, window, n, err);
        if (!rc)
            nk_sha256_add(h, window, n);
    }
    if (rc)
        nk_sha256_free(h);
    else
        nk_sha256_finish(h, p->sha256);
    return rc;
}

static void *hash_loop(void *arg)
{
    struct sealing *s = arg;
    uint8_t *window = malloc(WINDOW);
    struct nk_error err;
    int rc = window ? 0 : nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory"), i;

    while (!rc && (i = atomic_fetch_add(&s->next, 1)) < s->n_parts)
        if (!s->parts[i].is_hole)
            rc = hash_part(s, &s->parts[i], window, &err);
    if (rc) {
        pthread_mutex_lock(&s->lock);
        if (!s->rc) {
            s->rc = rc;
            s->err = err;
        }
        pthread_mutex_unlock(&s->lock);
        atomic_store(&s->next, s->n_parts);
    }
    free(window);
    return NULL;
}

static int hash_parts(struct sealing *s, struct nk_error *err)
{
    pthread_t threads[THREADS_MAX];
    int n = nk_cpu_count() - 1, n_started = 0;

    n = n > THREADS_MAX ? THREADS_MAX : n;
    n = n < s->n_parts - 1 ? n : s->n_parts - 1;
    pthread_mutex_init(&s->lock, NULL);
    while (n_started < n && !nk_thread_start(&threads[n_started], hash_loop, s))
        n_started++;
    hash_loop(s);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&s->lock);
    if (s->rc && err)
        *err = s->err;
    return s->rc;
}

static int write_at(int fd, uint64_t at, const char *p, size_t size, struct nk_error *err)
{
    while (size) {
        ssize_t n = pwrite(fd, p, size, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;

            return nk_fail(err, full ? NK_E_EXHAUSTED : NK_E_DATA_LOSS,
                           full ? "no_space" : "write_failed", "writing the seal: %s",
                           strerror(errno));
        }
        p += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int nk_slice_layout_seal(const struct nk_slice_layout *l, int fd, const atomic_bool *cancelled,
                         struct nk_error *err)
{
    struct sealing s = { .source = { .fd = fd, .size = l->seal_at }, .cancelled = cancelled };
    struct nk_buf text = NK_BUF_INIT(NK__SEAL_MAX);
    int rc = list_parts(&s, l, err);

    if (!rc)
        rc = hash_parts(&s, err);
    if (!rc)
        rc = nk__seal_format(s.parts, s.n_parts, &text, err);
    if (!rc)
        rc = write_at(fd, l->seal_at, text.data, text.size, err);
    nk_buf_release(&text);
    free(s.parts);
    return rc;
}
