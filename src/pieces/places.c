#include "pieces/places.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

nk__places *nk__places_ref(nk__places *p)
{
    atomic_fetch_add(&p->refs, 1);
    return p;
}

void nk__places_unref(nk__places *p)
{
    if (!p || atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    nk_model_close(p->model);
    if (p->fd >= 0)
        close(p->fd);
    free(p->tensors);
    free((void *)p->has);
    nk_catalogue_unref(p->c);
    free(p);
}

static nk__places *places_new(nk_catalogue *c, nk_model *m, int fd, const char *path)
{
    nk__places *p = calloc(1, sizeof *p);

    if (!p) {
        nk_model_close(m);
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    atomic_init(&p->refs, 1);
    p->c = nk_catalogue_ref(c);
    p->model = m;
    p->fd = fd;
    snprintf(p->path, sizeof p->path, "%s", path);
    p->tensors = calloc((size_t)c->n_tensors, sizeof *p->tensors);
    p->has = calloc((size_t)c->n_parts + 1, sizeof *p->has);
    if (!p->tensors || !p->has) {
        nk__places_unref(p);
        return NULL;
    }
    return p;
}

static int set_has(nk__places *p)
{
    int n = 0;

    for (int i = 0; i < p->c->n_parts; i++)
        if (nk__places_whole(p, i)) {
            atomic_store(&p->has[i], 1);
            n++;
        }
    return n;
}

struct named {
    struct nk_tensor_place place;
    int tensor;
};

static int compare_named(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->place.name, ((const struct named *)b)->place.name);
}

int nk__places_of_model(nk__places **out, nk_catalogue *c, nk_model *m, struct nk_error *err)
{
    int n = nk_model_n_tensors(m);
    struct named *sorted = malloc((size_t)n * sizeof *sorted);
    nk__places *p = places_new(c, m, -1, nk_model_info(m)->path);

    *out = NULL;
    if (!sorted || !p) {
        free(sorted);
        nk__places_unref(p);
        return no_memory(err);
    }
    for (int i = 0; i < n; i++)
        nk_model_tensor_place(m, i, &sorted[i].place);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_named);
    for (int i = 0; i < c->n_tensors; i++) {
        struct named want;
        const struct named *found;

        nk_model_tensor_place(c->model, i, &want.place);
        found = bsearch(&want, sorted, (size_t)n, sizeof *sorted, compare_named);
        if (found && found->place.type == want.place.type &&
            !memcmp(found->place.ne, want.place.ne, sizeof want.place.ne))
            p->tensors[i] = (struct nk__place){ found->place.shard, found->place.offset,
                                                found->place.size_bytes };
    }
    free(sorted);
    if (!set_has(p)) {
        nk__places_unref(p);
        return nk_fail(err, NK_E_NOT_FOUND, "no_part", "another model");
    }
    *out = p;
    return 0;
}

int nk__places_of_slice(nk__places **out, nk_catalogue *c, const struct nk_slice_layout *l, int fd,
                        const char *path, bool complete, struct nk_error *err)
{
    nk__places *p = places_new(c, NULL, fd, path);

    *out = NULL;
    if (!p)
        return no_memory(err);
    for (int i = 0; i < l->n_tensors; i++)
        p->tensors[l->tensors[i].tensor] =
            (struct nk__place){ 0, l->tensors[i].at, l->tensors[i].copy_bytes };
    if (complete)
        set_has(p);
    *out = p;
    return 0;
}

/* So many of the segment's bytes have a place. */
static uint32_t here(const nk__places *p, const struct nk__segment *s)
{
    uint64_t size = p->tensors[s->tensor].size;

    return size <= s->from ? 0 : size - s->from < s->size ? (uint32_t)(size - s->from) : s->size;
}

bool nk__places_whole(const nk__places *p, int part)
{
    struct nk__segment s = { .c = p->c, .part = part };

    while (nk__segment_next(&s))
        if (here(p, &s) < s.size)
            return false;
    return true;
}

bool nk__places_any(const nk__places *p, int part)
{
    struct nk__segment s = { .c = p->c, .part = part };

    while (nk__segment_next(&s))
        if (here(p, &s))
            return true;
    return false;
}

static int read_fd(int fd, uint64_t at, uint8_t *out, size_t size, const char *path,
                   struct nk_error *err)
{
    while (size) {
        ssize_t n = pread(fd, out, size, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return nk_fail(err, NK_E_DATA_LOSS, "read_failed", "%s: reading: %s", path,
                           strerror(errno));
        if (n == 0)
            return nk_fail(err, NK_E_DATA_LOSS, "truncated", "%s is shorter than it was", path);
        out += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static int write_fd(int fd, uint64_t at, const uint8_t *p, size_t size, const char *path,
                    struct nk_error *err)
{
    while (size) {
        ssize_t n = pwrite(fd, p, size, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;

            return nk_fail(err, full ? NK_E_EXHAUSTED : NK_E_DATA_LOSS,
                           full ? "no_space" : "write_failed", "%s: writing: %s", path,
                           strerror(errno));
        }
        p += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* The disk begins with it now, while the next parts come: else all of a slice would wait to be
 * written when it is complete, and the fetch with it (nk__journal_commit). Only a hint. */
static void write_back(int fd, uint64_t at, uint32_t size)
{
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(fd, (off_t)at, (off_t)size, SYNC_FILE_RANGE_WRITE);
#else
    (void)fd, (void)at, (void)size;
#endif
}

int nk__places_read(const nk__places *p, int part, uint8_t *buf, struct nk_error *err)
{
    struct nk__segment s = { .c = p->c, .part = part };
    int rc = 0;

    while (!rc && nk__segment_next(&s)) {
        const struct nk__place *t = &p->tensors[s.tensor];
        uint32_t n = here(p, &s);

        if (n && p->model)
            rc = nk_model_read(p->model, t->shard, t->offset + s.from, buf + s.at, n, err);
        else if (n)
            rc = read_fd(p->fd, t->offset + s.from, buf + s.at, n, p->path, err);
    }
    return rc;
}

int nk__places_write(const nk__places *p, int part, const uint8_t *buf, struct nk_error *err)
{
    struct nk__segment s = { .c = p->c, .part = part };
    int rc = 0;

    while (!rc && nk__segment_next(&s)) {
        uint64_t at = p->tensors[s.tensor].offset + s.from;
        uint32_t n = here(p, &s);

        if (n)
            rc = write_fd(p->fd, at, buf + s.at, n, p->path, err);
        if (n && !rc)
            write_back(p->fd, at, n);
    }
    return rc;
}

int nk__places_digest(const nk__places *p, int part, const uint8_t *buf, char hex[NK_SHA256_HEX],
                      struct nk_error *err)
{
    struct nk__segment s = { .c = p->c, .part = part };
    nk_sha256 *h = nk_sha256_new();

    if (!h)
        return no_memory(err);
    while (nk__segment_next(&s))
        nk_sha256_add(h, buf + s.at, here(p, &s));
    nk_sha256_finish(h, hex);
    return 0;
}

int nk__part_check(const nk_catalogue *c, int part, const uint8_t *buf, bool *ok,
                   struct nk_error *err)
{
    uint8_t found[NK_DIGEST_BYTES];

    if (!nk__digest(buf, c->parts[part].size_bytes, found))
        return no_memory(err);
    *ok = !memcmp(found, c->parts[part].sha256, sizeof found);
    return 0;
}

/* ---- what is on this machine ---- */

/* A slice whose header is what ours would be is laid out as ours would be. */
static int open_slice(nk__places **out, nk_catalogue *c, struct nk_range range, const char *path,
                      struct nk_error *err)
{
    struct nk_slice_layout *l;
    uint8_t *found = NULL;
    struct stat st;
    int rc = nk_slice_layout_new(&l, c->model, range, err), fd;

    if (rc)
        return rc;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    found = malloc(l->header.size);
    if (!found)
        rc = no_memory(err);
    else if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
             (uint64_t)st.st_size < l->seal_at ||
             read_fd(fd, 0, found, l->header.size, path, NULL) ||
             memcmp(found, l->header.data, l->header.size) != 0)
        rc = nk_fail(err, NK_E_NOT_FOUND, "no_part", "%s is laid out in another way", path);
    if (!rc)
        rc = nk__places_of_slice(out, c, l, fd, path, true, err);
    else if (fd >= 0)
        close(fd);
    free(found);
    nk_slice_layout_free(l);
    return rc;
}

int nk__places_open(nk__places **out, nk_catalogue *c, const char *path, struct nk_error *err)
{
    const struct nk_model_info *in;
    nk_model *m;
    int rc = nk_model_open(&m, path, err);

    *out = NULL;
    if (rc)
        return rc;
    in = nk_model_info(m);
    if (!in->is_slice)
        return nk__places_of_model(out, c, m, err);
    rc = strcmp(in->model_sha256, c->model_sha256) != 0
             ? nk_fail(err, NK_E_NOT_FOUND, "no_part", "%s is a slice of another model", path)
             : open_slice(out, c, (struct nk_range){ in->layer_begin, in->layer_end }, path, err);
    nk_model_close(m);
    return rc;
}

static int is_candidate(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    const char *of = n > 20 ? e->d_name + n - 20 : NULL; /* -00001-of-00003.gguf */
    int idx, count, used = 0;

    if (e->d_name[0] == '.' || n < 6 || strcmp(e->d_name + n - 5, ".gguf") != 0)
        return 0;
    return !of || sscanf(of, "-%5d-of-%5d.gguf%n", &idx, &count, &used) != 2 || used != 20 ||
           idx == 1;
}

int nk__places_find(nk__places **out, int max, nk_catalogue *c, const char *folder, const char *but)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, is_candidate, alphasort), found = 0;

    for (int i = 0; i < n; i++) {
        char path[4096];
        int size = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);

        if (found < max && size < (int)sizeof path && (!but || strcmp(path, but) != 0) &&
            !nk__places_open(&out[found], c, path, NULL))
            found++;
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return found;
}
