/* A model into a folder: slices, vocabulary, manifest.
 *
 * The manifest comes last, so a folder with one is complete. While slices are being written,
 * ".NAME.partial.json" (a manifest of what is done) is kept beside them, so that a run after an
 * interrupted one knows their hashes. Two files are written at a time: each has a thread that
 * copies and one that hashes, and hashing is what takes the time. */
#include "slice/slice.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/args.h"
#include "base/progress.h"
#include "base/thread.h"
#include "slice/manifest_int.h"
#include "slice/model_int.h"
#include "slice/write_int.h"

enum { AT_ONCE = 2 };

struct job {
    nk_model *m;
    const char *dir;
    struct nk_manifest *mf; /* all the files; those with a hash are done */
    struct nk_progress bar;
    pthread_mutex_t lock; /* of the bar and of everything below */
    int next;             /* the next file to look at */
    int rc;               /* the first failure, which stops the others */
    struct nk_error err;
};

static void file_path(const struct job *j, const char *name, char out[4608])
{
    snprintf(out, 4608, "%s/%s", j->dir, name);
}

static void partial_path(const struct job *j, char out[4608])
{
    snprintf(out, 4608, "%s/.%s.partial.json", j->dir, j->m->name);
}

/* The manifest's files that are done, as a manifest of its own. */
static int write_partial(const struct job *j, struct nk_error *err)
{
    struct nk_manifest *done = malloc(sizeof *done);
    char path[4608];
    int rc;

    if (!done)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    *done = *j->mf;
    done->n_files = 0;
    for (int i = 0; i < j->mf->n_files; i++)
        if (j->mf->files[i].sha256[0])
            done->files[done->n_files++] = j->mf->files[i];
    partial_path(j, path);
    rc = nk__manifest_write(done, path, err);
    free(done);
    return rc;
}

static int tick(void *user, uint64_t bytes, struct nk_error *err)
{
    struct job *j = user;
    int rc;

    pthread_mutex_lock(&j->lock);
    rc = nk__tick_bar(&j->bar, bytes, err);
    if (!rc && j->rc) /* another file's failure: its message is the one that counts */
        rc = nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted");
    pthread_mutex_unlock(&j->lock);
    return rc;
}

static void *write_files(void *arg)
{
    struct job *j = arg;

    for (;;) {
        struct nk_manifest_file *f = NULL;
        char path[4608], sha256[NK_SHA256_HEX];
        uint64_t size_bytes;
        struct nk_error err;
        int rc;

        pthread_mutex_lock(&j->lock);
        while (!f && !j->rc && j->next < j->mf->n_files)
            if (!j->mf->files[j->next++].sha256[0])
                f = &j->mf->files[j->next - 1];
        pthread_mutex_unlock(&j->lock);
        if (!f)
            return NULL;
        file_path(j, f->name, path);
        rc = nk__slice_write(j->m, f->range, j->mf->model_sha256, path, sha256, &size_bytes, tick,
                             j, &err);
        pthread_mutex_lock(&j->lock);
        if (!rc) {
            memcpy(f->sha256, sha256, sizeof f->sha256);
            f->size_bytes = size_bytes;
            rc = write_partial(j, &err);
        }
        if (rc && !j->rc) {
            j->rc = rc;
            j->err = err;
        }
        pthread_mutex_unlock(&j->lock);
    }
}

/* Does the file hold what the manifest says? */
static int check_file(struct job *j, const struct nk_manifest_file *f, bool *good,
                      struct nk_error *err)
{
    char path[4608], sha256[NK_SHA256_HEX];
    struct nk__source source = { .fd = -1 };
    struct nk__gguf g;
    nk__stream *s = NULL;
    int rc;

    *good = false;
    file_path(j, f->name, path);
    if (nk__gguf_open(&g, path, NULL) || g.source.size != f->size_bytes) {
        nk__gguf_close(&g);
        return 0;
    }
    source = g.source;
    rc = nk__stream_new(&s, NULL, NK__HASH_WHOLE, nk__tick_bar, &j->bar, err);
    if (!rc)
        rc = nk__stream_copy(s, &source, 0, source.size, err);
    if (!rc)
        rc = nk__stream_finish(s, sha256, err);
    nk__stream_free(s);
    nk__gguf_close(&g);
    if (rc == NK_E_DATA_LOSS) /* cannot be read: write it anew */
        return 0;
    *good = !rc && !strcmp(sha256, f->sha256);
    return rc;
}

/* Takes over what an earlier run wrote, as its manifest at path says. */
static int keep_files(struct job *j, const char *path, struct nk_error *err)
{
    struct nk_manifest *old;
    uint64_t total = 0;
    int rc = 0;

    if (nk_manifest_read(&old, path, NULL) || old->slice_format != NK__SLICE_FORMAT ||
        strcmp(old->model_sha256, j->mf->model_sha256) != 0) {
        free(old);
        return 0;
    }
    for (int i = 0; i < old->n_files; i++)
        total += old->files[i].size_bytes;
    nk_progress_start(&j->bar, "checking", total);
    for (int i = 0; i < j->mf->n_files && !rc; i++) {
        struct nk_manifest_file *f = &j->mf->files[i];

        for (int k = 0; k < old->n_files && !f->sha256[0] && !rc; k++) {
            const struct nk_manifest_file *o = &old->files[k];
            bool good;

            if (strcmp(f->name, o->name) != 0 || f->range.begin != o->range.begin ||
                f->range.end != o->range.end)
                continue;
            rc = check_file(j, o, &good, err);
            if (!rc && good) {
                *f = *o;
                f->kept = true;
            }
        }
    }
    nk_progress_end(&j->bar);
    free(old);
    return rc;
}

/* Said before anything is written, rather than after an hour. */
static int check_space(const struct job *j, uint64_t needed, struct nk_error *err)
{
    struct statvfs fs;
    uint64_t free_bytes;
    char a[24], b[24];

    if (statvfs(j->dir, &fs) < 0)
        return 0;
    free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (needed <= free_bytes)
        return 0;
    return nk_fail(err, NK_E_EXHAUSTED, "no_space", "%s: the files need %s, %s are free there",
                   j->dir, nk_size_format(a, needed), nk_size_format(b, free_bytes));
}

static int write_missing(struct job *j, struct nk_error *err)
{
    pthread_t threads[AT_ONCE];
    int n_missing = 0, n_threads = 0;
    uint64_t total = 0, bytes;
    int rc = 0;

    for (int i = 0; i < j->mf->n_files && !rc; i++)
        if (!j->mf->files[i].sha256[0]) {
            n_missing++;
            rc = nk__slice_bytes(j->m, j->mf->files[i].range, &bytes, err);
            total += bytes;
        }
    if (!rc)
        rc = check_space(j, total, err);
    if (rc || !n_missing)
        return rc;
    nk_progress_start(&j->bar, "splitting", total);
    while (n_threads < AT_ONCE - 1 && n_threads < n_missing - 1 &&
           !nk_thread_start(&threads[n_threads], write_files, j))
        n_threads++;
    write_files(j); /* this thread too */
    for (int i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    nk_progress_end(&j->bar);
    if (j->rc && err)
        *err = j->err;
    return j->rc;
}

static void name_files(struct job *j, const struct nk_range *ranges, int n)
{
    for (int i = 0; i <= n; i++) {
        struct nk_manifest_file *f = &j->mf->files[j->mf->n_files++];

        if (i < n) {
            f->range = ranges[i];
            snprintf(f->name, sizeof f->name, "%.200s.%03d-%03d.gguf", j->m->name, f->range.begin,
                     f->range.end);
        } else {
            snprintf(f->name, sizeof f->name, "%.200s.vocab.gguf", j->m->name);
        }
    }
}

static int split(struct job *j, struct nk_error *err)
{
    char manifest[4608], partial[4608];
    int rc;

    file_path(j, "manifest.json", manifest);
    partial_path(j, partial);
    rc = keep_files(j, manifest, err);
    if (!rc)
        rc = keep_files(j, partial, err);
    if (!rc)
        rc = write_missing(j, err);
    if (!rc)
        rc = nk__manifest_write(j->mf, manifest, err);
    if (!rc)
        unlink(partial);
    return rc;
}

int nk_split(nk_model *m, const struct nk_range *ranges, int n, const char *dir,
             struct nk_manifest **out, struct nk_error *err)
{
    struct job j = { .m = m, .dir = dir };
    int rc;

    if (out)
        *out = NULL;
    if (strlen(dir) > 4096)
        return nk_fail(err, NK_E_INVALID, "cannot_create", "the folder's path has %zu characters",
                       strlen(dir));
    rc = nk__model_check_whole(m, err);
    if (!rc)
        rc = nk_ranges_check(m, ranges, n, false, err);
    if (!rc)
        rc = nk_dir_make(dir, err);
    if (rc)
        return rc;
    j.mf = calloc(1, sizeof *j.mf);
    if (!j.mf)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    pthread_mutex_init(&j.lock, NULL);
    rc = nk_model_hash(m, j.mf->model_sha256, err);
    if (!rc) {
        snprintf(j.mf->model_id, sizeof j.mf->model_id, "%.127s", m->name);
        snprintf(j.mf->architecture, sizeof j.mf->architecture, "%s", m->info.architecture);
        j.mf->n_layer = m->info.n_layer;
        j.mf->n_embd = m->info.n_embd;
        j.mf->slice_format = NK__SLICE_FORMAT;
        name_files(&j, ranges, n);
        rc = split(&j, err);
    }
    pthread_mutex_destroy(&j.lock);
    if (!rc && out) {
        *out = j.mf;
        j.mf = NULL;
    }
    free(j.mf);
    return rc;
}
