/* Is a file what was written? Its parts are read and hashed by a few threads, beside whatever the
 * caller does meanwhile: a stage is loaded from the same pages of the system's cache. In the wait
 * the caller's thread helps. */
#include "slice/check_int.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/progress.h"
#include "base/thread.h"
#include "slice/mark_int.h"
#include "slice/model_int.h"
#include "slice/seal_int.h"
#include "slice/write_int.h"

enum {
    WINDOW = 1 << 18, /* stays in a core's own cache between reading and hashing */
    /* Besides the caller's. They share the memory's bandwidth with what loads. */
    THREADS_MAX = 7,
};

struct nk_slice_check {
    const struct nk__source *source; /* borrowed, with the file */
    struct nk_file_watch watch;      /* its descriptor is the file's */
    char path[4096];
    struct nk__seal seal;
    enum nk_slice_verify how;
    int64_t began_s;
    struct nk_slice_checked checked;
    bool *is_damaged;                  /* of each part; written by the thread that took the part */
    uint8_t *windows[THREADS_MAX + 1]; /* one for each thread, and the last used by the wait */
    atomic_int next_window;
    pthread_t threads[THREADS_MAX];
    int n_threads;
    atomic_int next; /* the part to be taken */
    atomic_ullong done_bytes;
    atomic_bool stop;
    pthread_mutex_t lock; /* of the first failure */
    int rc;
    struct nk_error err;
};

/* ---- words ---- */

static const char *const verify_names[] = { "always", "once", "never" };
static const char *const verified_names[] = { "no", "no digests", "earlier", "yes" };

int nk_slice_verify_parse(const char *text, enum nk_slice_verify *out, struct nk_error *err)
{
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, verify_names[i])) {
            *out = (enum nk_slice_verify)i;
            return 0;
        }
    return nk_fail(err, NK_E_INVALID, "bad_argument",
                   "'%s' is not known; always, once and never are", text);
}

const char *nk_slice_verify_text(enum nk_slice_verify how)
{
    return verify_names[how];
}

const char *nk_slice_verified_text(enum nk_slice_verified v)
{
    return verified_names[v];
}

/* ---- the work ---- */

static bool is_zero(const uint8_t *bytes, size_t n)
{
    return !n || (!bytes[0] && !memcmp(bytes, bytes + 1, n - 1));
}

static int check_part(nk_slice_check *c, int idx, uint8_t *window, struct nk_error *err)
{
    const struct nk__seal_part *p = &c->seal.parts[idx];
    nk_sha256 *h = nk_sha256_new();
    char hex[NK_SHA256_HEX];
    bool zero = true;
    int rc = h ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    for (uint64_t at = 0; at < p->size && !rc && !atomic_load(&c->stop); at += WINDOW) {
        size_t n = p->size - at < WINDOW ? (size_t)(p->size - at) : WINDOW;

        rc = nk__source_read(c->source, p->begin + at, window, n, err);
        if (rc)
            break;
        if (p->is_hole)
            zero &= is_zero(window, n);
        else
            nk_sha256_add(h, window, n);
        atomic_fetch_add(&c->done_bytes, n);
    }
    if (rc) {
        nk_sha256_free(h);
        return rc;
    }
    nk_sha256_finish(h, hex);
    c->is_damaged[idx] = p->is_hole ? !zero : strcmp(hex, p->sha256) != 0;
    return 0;
}

/* The next part; false: there is none, or one failed. */
static bool check_next(nk_slice_check *c, uint8_t *window)
{
    int idx = atomic_fetch_add(&c->next, 1), rc;
    struct nk_error err;

    if (idx >= c->seal.n_parts || atomic_load(&c->stop))
        return false;
    rc = check_part(c, idx, window, &err);
    if (!rc)
        return true;
    pthread_mutex_lock(&c->lock);
    if (!c->rc) {
        c->rc = rc;
        c->err = err;
    }
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->stop, true);
    return false;
}

static void *check_loop(void *arg)
{
    nk_slice_check *c = arg;
    uint8_t *window = c->windows[atomic_fetch_add(&c->next_window, 1)];

    nk_cpu_unpin();
    while (check_next(c, window))
        ;
    return NULL;
}

static void check_free(nk_slice_check *c)
{
    for (int i = 0; i <= THREADS_MAX; i++)
        free(c->windows[i]);
    pthread_mutex_destroy(&c->lock);
    nk__seal_release(&c->seal);
    free(c->is_damaged);
    free(c);
}

/* What was found so far; without damage in all of it, the mark. */
static int report(nk_slice_check *c, struct nk_error *err)
{
    struct nk_slice_checked *r = &c->checked;

    for (int i = 0; i < c->seal.n_parts; i++) {
        const struct nk__seal_part *p = &c->seal.parts[i];

        if (!c->is_damaged[i])
            continue;
        if (r->n_damaged < NK_DAMAGED_MAX) {
            snprintf(r->damaged[r->n_damaged].name, sizeof r->damaged[0].name, "%.127s", p->name);
            r->damaged[r->n_damaged].begin = p->begin;
            r->damaged[r->n_damaged].size = p->size;
        }
        r->n_damaged++;
    }
    if (nk_file_watch_written(&c->watch))
        return nk_fail(err, NK_E_ABORTED, "file_changed", "%s was changed while it was read",
                       c->path);
    if (r->n_damaged)
        return nk_fail(
            err, NK_E_DATA_LOSS, "damaged",
            "%s is damaged: %d of its %d parts %s not what was written, first %s (bytes %llu to "
            "%llu); copy it again, or split again",
            c->path, r->n_damaged, r->n_parts, r->n_damaged > 1 ? "are" : "is", r->damaged[0].name,
            (unsigned long long)r->damaged[0].begin,
            (unsigned long long)(r->damaged[0].begin + r->damaged[0].size));
    if (c->how == NK_VERIFY_ONCE && atomic_load(&c->next) >= c->seal.n_parts)
        nk__mark_set(&c->watch.id, c->seal.sha256, c->path, c->began_s);
    return 0;
}

/* The header at once: libllama aborts on some that contradict themselves. Then the others beside
 * the caller, who is left one core. Where a thread cannot be had, there is one less. */
static int begin(nk_slice_check *c, struct nk_error *err)
{
    int n = nk_cpu_count() - 1, rc;

    n = n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
    n = n < c->seal.n_parts ? n : c->seal.n_parts;
    c->is_damaged = calloc((size_t)c->seal.n_parts, sizeof *c->is_damaged);
    for (int i = 0; i <= n; i++)
        c->windows[i] = malloc(WINDOW);
    for (int i = 0; i <= n; i++)
        if (!c->windows[i] || !c->is_damaged)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    c->checked.verified = NK_VERIFIED_NOW;
    rc = nk_wrap(check_part(c, atomic_fetch_add(&c->next, 1), c->windows[0], err), err, "%s",
                 c->path);
    if (!rc && c->is_damaged[0])
        rc = report(c, err);
    if (rc)
        return rc;
    while (c->n_threads < n && !nk_thread_start(&c->threads[c->n_threads], check_loop, c))
        c->n_threads++;
    return 0;
}

static void join(nk_slice_check *c)
{
    for (int i = 0; i < c->n_threads; i++)
        pthread_join(c->threads[i], NULL);
    c->n_threads = 0;
}

int nk__slice_check_start(nk_slice_check **out, const struct nk__gguf *g, enum nk_slice_verify how,
                          int64_t now_s, struct nk_slice_checked *failed, struct nk_error *err)
{
    nk_slice_check *c = calloc(1, sizeof *c);
    uint64_t format = 0;
    int rc = 0;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    pthread_mutex_init(&c->lock, NULL);
    c->source = &g->source;
    c->watch = (struct nk_file_watch){ g->source.fd, g->id };
    snprintf(c->path, sizeof c->path, "%s", g->path);
    c->how = how;
    c->began_s = now_s;
    nk__kv_uint(g->ctx, "nakshatra.slice_format", &format);
    if (how == NK_VERIFY_NEVER)
        c->checked.verified = NK_VERIFIED_NO;
    else
        rc = nk_wrap(nk__seal_read(&c->seal, &g->source, format >= NK__SLICE_FORMAT_SEALED, err),
                     err, "%s", g->path);
    c->checked.n_parts = c->seal.n_parts;
    if (!rc && how != NK_VERIFY_NEVER) {
        if (!c->seal.n_parts)
            c->checked.verified = NK_VERIFIED_NO_DIGESTS;
        else if (how == NK_VERIFY_ONCE && nk__mark_find(&g->id, c->seal.sha256))
            c->checked.verified = NK_VERIFIED_EARLIER;
        else
            rc = begin(c, err);
    }
    if (rc) {
        if (failed)
            *failed = c->checked;
        check_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

int nk_slice_check_start(nk_slice_check **out, const nk_model *m, enum nk_slice_verify how,
                         struct nk_error *err)
{
    return nk__slice_check_start(out, &m->shards[0], how, time(NULL), NULL, err);
}

/* ---- the end ---- */

/* bar: NULL for none. */
static int wait_for(nk_slice_check *c, struct nk_progress *bar, struct nk_slice_checked *out,
                    struct nk_error *err)
{
    uint64_t shown = 0, done;
    uint8_t *window;
    int rc = 0;

    if (c->checked.verified == NK_VERIFIED_NOW) {
        window = c->windows[atomic_fetch_add(&c->next_window, 1)];
        while (check_next(c, window)) {
            done = atomic_load(&c->done_bytes);
            if (bar)
                nk_progress_add(bar, done - shown);
            shown = done;
        }
        join(c);
        rc = c->rc;
        if (rc) {
            if (err)
                *err = c->err;
            nk_wrap(rc, err, "%s", c->path);
        } else {
            rc = report(c, err);
        }
    }
    if (out)
        *out = c->checked;
    check_free(c);
    return rc;
}

int nk_slice_check_wait(nk_slice_check *c, struct nk_slice_checked *out, struct nk_error *err)
{
    if (out)
        *out = (struct nk_slice_checked){ 0 };
    return c ? wait_for(c, NULL, out, err) : 0;
}

int nk_slice_check_file(const char *path, enum nk_slice_verify how, struct nk_slice_checked *out,
                        struct nk_error *err)
{
    struct nk_progress bar;
    nk_slice_check *c;
    struct nk__gguf g;
    int rc = nk__gguf_open(&g, path, err);

    if (out)
        *out = (struct nk_slice_checked){ 0 };
    if (rc)
        return rc;
    rc = nk__slice_check_start(&c, &g, how, time(NULL), out, err);
    if (!rc) {
        nk_progress_start(&bar, "checking", g.source.size);
        rc = wait_for(c, &bar, out, err);
        nk_progress_end(&bar);
    }
    nk__gguf_close(&g);
    return rc;
}
