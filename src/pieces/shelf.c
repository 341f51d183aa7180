#include "pieces/shelf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/array.h"
#include "base/file.h"
#include "base/log.h"
#include "pieces/catalogue_int.h"

struct list {
    struct nk_shelf_file *files;
    size_t n, capacity;
};

/* ".NAME.014-028.gguf.part", "NAME.014-028.gguf", "NAME.vocab.gguf". */
static bool parse_name(const char *name, struct nk_shelf_file *f)
{
    char text[300];
    int used = 0;
    size_t n;

    f->is_partial = name[0] == '.';
    n = strlen(name + f->is_partial);
    if (n >= sizeof text)
        return false;
    memcpy(text, name + f->is_partial, n + 1);
    if (f->is_partial) {
        if (n < 5 || strcmp(text + n - 5, ".part") != 0)
            return false;
        text[n -= 5] = '\0';
    }
    if (n > 11 && !strcmp(text + n - 11, ".vocab.gguf")) {
        n -= 11;
    } else if (n > 13 &&
               sscanf(text + n - 13, ".%3d-%3d.gguf%n", &f->range.begin, &f->range.end, &used) ==
                   2 &&
               used == 13) {
        n -= 13;
    } else {
        return false;
    }
    snprintf(f->model, sizeof f->model, "%.*s", (int)(n < 255 ? n : 255), text);
    return true;
}

/* A lease for writing is granted when nobody else has the file open, mapped files among them. Where
 * there are no leases nothing is known to be in use; who reads a file that is removed goes on. */
static bool is_open(const char *path, bool is_partial)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool in_use = false;

    if (fd < 0)
        return errno == EWOULDBLOCK; /* another one is looking in this way just now */
    if (is_partial) {
        in_use = flock(fd, LOCK_EX | LOCK_NB) < 0;
    } else {
#ifdef F_SETLEASE
        if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0)
            fcntl(fd, F_SETLEASE, F_UNLCK);
        else
            in_use = errno == EAGAIN;
#endif
    }
    close(fd);
    return in_use;
}

static void list_folder(struct list *l, const char *dir, const char *sha256)
{
    DIR *d = opendir(dir);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        struct nk_shelf_file f = { .size_bytes = 0 };
        struct stat st;

        if (!parse_name(e->d_name, &f) ||
            snprintf(f.path, sizeof f.path, "%s/%s", dir, e->d_name) >= (int)sizeof f.path ||
            stat(f.path, &st) || !S_ISREG(st.st_mode) ||
            nk_array_grow(l->files, l->capacity, l->n + 1, NK_SHELF_MAX, NULL))
            continue;
        memcpy(f.model_sha256, sha256, NK_SHA256_HEX);
        f.size_bytes = (uint64_t)st.st_size;
        f.disk_bytes = (uint64_t)st.st_blocks * 512;
        f.used_s = st.st_atim.tv_sec > st.st_mtim.tv_sec ? st.st_atim.tv_sec : st.st_mtim.tv_sec;
        f.in_use = is_open(f.path, f.is_partial);
        l->files[l->n++] = f;
    }
    if (d)
        closedir(d);
}

static int compare_use(const void *a, const void *b)
{
    const struct nk_shelf_file *x = a, *y = b;

    if (x->used_s != y->used_s)
        return x->used_s > y->used_s ? -1 : 1;
    return strcmp(x->path, y->path);
}

int nk_shelf_list(struct nk_shelf_file **out, int *n, char **folder, struct nk_error *err)
{
    struct list l = { .files = NULL };
    struct dirent *e;
    char *dir;
    DIR *d;
    int rc = nk_cache_dir(&dir, "slices", err);

    *out = NULL;
    *n = 0;
    if (folder)
        *folder = NULL;
    if (rc)
        return rc;
    d = opendir(dir);
    while (d && (e = readdir(d))) { /* HASH-FORMAT */
        char hash[NK_SHA256_HEX], path[4096];

        snprintf(hash, sizeof hash, "%.64s", e->d_name);
        if (nk__is_id(hash) && e->d_name[64] == '-' &&
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < (int)sizeof path)
            list_folder(&l, path, hash);
    }
    if (d)
        closedir(d);
    if (l.n)
        qsort(l.files, l.n, sizeof *l.files, compare_use);
    *out = l.files;
    *n = (int)l.n;
    if (folder)
        *folder = dir;
    else
        free(dir);
    return 0;
}

bool nk_shelf_remove(const struct nk_shelf_file *f)
{
    size_t n = strlen(f->path);

    if (is_open(f->path, f->is_partial) || unlink(f->path))
        return false;
    if (f->is_partial && n > 5) {
        char journal[4200];

        snprintf(journal, sizeof journal, "%.*s.journal", (int)(n - 5), f->path);
        unlink(journal);
    }
    return true;
}

static bool is_wanted(const struct nk_shelf_file *f, const char *name,
                      const struct nk_range *ranges, int n)
{
    if (strcmp(f->model, name) != 0)
        return false;
    if (!f->range.end)
        return true;
    for (int i = 0; i < n; i++)
        if (f->range.begin == ranges[i].begin && f->range.end == ranges[i].end)
            return true;
    return false;
}

/* Of the model, and not among the ranges. */
static bool is_spare(const struct nk_shelf_file *f, const nk_model *m, const char *hash,
                     const struct nk_range *ranges, int n)
{
    return !strcmp(f->model_sha256, hash) && !is_wanted(f, nk_model_file_name(m), ranges, n);
}

static void remove_least_used(const nk_model *m, const char *hash, const struct nk_range *ranges,
                              int n)
{
    const struct nk_model_info *in = nk_model_info(m);
    /* Twice, less what headers, stubs and digests take beside the weights. */
    uint64_t ceiling = 2 * in->file_bytes - in->file_bytes / 8, sum = 0;
    struct nk_shelf_file *files;
    char quoted[512];
    int n_files;

    if (nk_shelf_list(&files, &n_files, NULL, NULL))
        return;
    for (int i = 0; i < n; i++)
        for (int k = ranges[i].begin; k < ranges[i].end && k < in->n_layer; k++)
            sum += in->layer_bytes[k];
    sum += in->embd_bytes + in->head_bytes + in->other_bytes;
    /* What is in use stays, however long ago it was read; of the rest, what was used last. */
    for (int i = 0; i < n_files; i++)
        if (files[i].in_use && is_spare(&files[i], m, hash, ranges, n))
            sum += files[i].size_bytes;
    for (int i = 0; i < n_files; i++) {
        const struct nk_shelf_file *f = &files[i];

        if (f->in_use || !is_spare(f, m, hash, ranges, n))
            continue;
        if (sum + f->size_bytes <= ceiling || !nk_shelf_remove(f))
            sum += f->size_bytes;
        else
            nk_log(NK_LOG_PIECES, NK_LOG_DEBUG, "event=cache_removed file=%s",
                   nk_log_quote(quoted, sizeof quoted, f->path));
    }
    if (sum > ceiling)
        nk_log(NK_LOG_PIECES, NK_LOG_DEBUG, /* nothing is wrong: it is what runs */
               "event=cache_over_ceiling why=in_use model=%s bytes=%llu ceiling=%llu",
               nk_log_quote(quoted, sizeof quoted, nk_model_file_name(m)), (unsigned long long)sum,
               (unsigned long long)ceiling);
    free(files);
}

int nk_shelf_make_room(const nk_model *m, const struct nk_range *ranges, int n)
{
    char hash[NK_SHA256_HEX];
    struct nk_error ignored;
    char *path;
    int fd = -1;

    if (nk_slice_cache_path(m, (struct nk_range){ 0, 0 }, &path, NULL))
        return -1;
    snprintf(hash, sizeof hash, "%.64s", strstr(path, "/slices/") + 8);
    *strrchr(path, '/') = '\0'; /* the model's folder */
    if (!nk_dir_make(path, &ignored))
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(path);
    if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB))
        remove_least_used(m, hash, ranges, n);
    if (fd >= 0)
        (void)flock(fd, LOCK_SH); /* who has it alone has it for a moment */
    return fd;
}
