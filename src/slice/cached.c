/* Slices made when they are first wanted, kept in the cache folder:
 * slices/HASH-FORMAT/NAME.014-028.gguf (HASH: the model's). A file there is complete, since it
 * appears by rename; its keys and its digests are checked before it is used again. */
#include "slice/slice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/args.h"
#include "base/log.h"
#include "base/progress.h"
#include "slice/model_int.h"
#include "slice/write_int.h"

static bool has_keys(const char *path, struct nk_range range, const char *model_sha256)
{
    struct nk__gguf g;
    uint64_t begin = 0, end = 0, format = 0;
    const char *hash;
    bool ok = !nk__gguf_open(&g, path, NULL);

    if (ok) {
        hash = nk__kv_string(g.ctx, "nakshatra.model_sha256");
        nk__kv_uint(g.ctx, "nakshatra.layer_range_start", &begin);
        nk__kv_uint(g.ctx, "nakshatra.layer_range_end", &end);
        ok = nk__kv_uint(g.ctx, "nakshatra.slice_format", &format) && format == NK__SLICE_FORMAT &&
             hash && !strcmp(hash, model_sha256) && begin == (uint64_t)range.begin &&
             end == (uint64_t)range.end;
    }
    nk__gguf_close(&g);
    return ok;
}

/* Is the file there, and whole? What cannot be read is made again, too. */
static int is_there(const char *path, struct nk_range range, const char *model_sha256,
                    enum nk_slice_verify how, bool *there, struct nk_error *err)
{
    struct nk_error why;
    char quoted[512];
    int rc;

    *there = false;
    if (!has_keys(path, range, model_sha256))
        return 0;
    rc = nk_slice_check_file(path, how, NULL, &why);
    if (rc == NK_E_EXHAUSTED) { /* which says nothing of the file */
        if (err)
            *err = why;
        return rc;
    }
    if (rc)
        nk_log(NK_LOG_SLICE, NK_LOG_WARN, "event=cut_again msg=%s",
               nk_log_quote(quoted, sizeof quoted, why.msg));
    *there = !rc;
    return 0;
}

int nk_slice_cache_path(const nk_model *m, struct nk_range range, char **out, struct nk_error *err)
{
    struct nk_buf path = NK_BUF_INIT(8192);
    char sub[NK_SHA256_HEX + 32], *dir = NULL;
    int rc;

    NK_ASSERT(m->hash[0]);
    *out = NULL;
    snprintf(sub, sizeof sub, "slices/%s-%d", m->hash, NK__SLICE_FORMAT);
    rc = nk_cache_dir(&dir, sub, err);
    if (!rc)
        rc = range.end ? nk_buf_addf(&path, err, "%s/%s.%03d-%03d.gguf", dir, m->name, range.begin,
                                     range.end)
                       : nk_buf_addf(&path, err, "%s/%s.vocab.gguf", dir, m->name);
    if (!rc)
        *out = nk_buf_take(&path, NULL);
    nk_buf_release(&path);
    free(dir);
    return rc;
}

int nk_slice_cache_find(const nk_model *m, struct nk_range range, enum nk_slice_verify how,
                        char **path, struct nk_error *err)
{
    bool there = false;
    int rc = nk_slice_cache_path(m, range, path, err);

    if (!rc)
        rc = is_there(*path, range, m->hash, how, &there, err);
    if (!there) {
        free(*path);
        *path = NULL;
    }
    return rc;
}

int nk__cache_room(const nk_model *m, const struct nk_range *ranges, int n, uint64_t free_bytes,
                   struct nk_error *err)
{
    uint64_t needed = 0, bytes;
    char a[24], b[24];
    int rc = 0;

    for (int i = 0; !rc && i < n; i++) {
        char *path;

        rc = nk_slice_cache_path(m, ranges[i], &path, err);
        if (!rc && !has_keys(path, ranges[i], m->hash)) {
            rc = nk__slice_bytes(m, ranges[i], &bytes, err);
            needed += bytes;
        }
        if (!rc && needed > free_bytes)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_space",
                         "%s: the slices that are not there yet need %s, %s are free there "
                         "(nakshatra cache lists and empties it)",
                         path, nk_size_format(a, needed), nk_size_format(b, free_bytes));
        free(path);
    }
    return rc;
}

int nk_slice_cache_room(const nk_model *m, const struct nk_range *ranges, int n,
                        struct nk_error *err)
{
    struct statvfs fs;
    char *dir;
    int rc = nk_cache_dir(&dir, "slices", err);

    if (rc)
        return rc;
    if (!statvfs(dir, &fs))
        rc = nk__cache_room(m, ranges, n, (uint64_t)fs.f_bavail * fs.f_frsize, err);
    free(dir);
    return rc;
}

static int cached(nk_model *m, struct nk_range range, enum nk_slice_verify how, char **out,
                  struct nk_error *err)
{
    struct nk_progress bar;
    char hash[NK_SHA256_HEX], *path = NULL;
    uint64_t bytes = 0;
    bool there = false;
    int rc = nk_model_hash(m, hash, err);

    *out = NULL;
    if (!rc)
        rc = nk_slice_cache_path(m, range, &path, err);
    if (!rc)
        rc = is_there(path, range, hash, how, &there, err);
    if (!rc && !there) {
        rc = range.end ? nk__slice_bytes(m, range, &bytes, err) : 0;
        if (!rc) {
            nk_progress_start(&bar, "slicing", bytes);
            rc = nk__slice_write(m, range, hash, path, NULL, NULL, nk__tick_bar, &bar, err);
            nk_progress_end(&bar);
        }
    }
    if (rc)
        free(path);
    else
        *out = path;
    return rc;
}

int nk_slice_cached(nk_model *m, struct nk_range range, enum nk_slice_verify how, char **path,
                    struct nk_error *err)
{
    int rc = nk__model_check_whole(m, err);

    *path = NULL;
    if (!rc)
        rc = nk_ranges_check(m, &range, 1, false, err);
    return rc ? rc : cached(m, range, how, path, err);
}

int nk_vocab_cached(nk_model *m, enum nk_slice_verify how, char **path, struct nk_error *err)
{
    int rc = nk__model_check_whole(m, err);

    *path = NULL;
    return rc ? rc : cached(m, (struct nk_range){ 0, 0 }, how, path, err);
}
