/* A model's identity: SHA-256 over its bytes, remembered between runs.
 *
 * The cache folder holds one small file per model, named by a hash of what identifies the model's
 * files without reading them: full path, size, time of change, device and inode of each shard. A
 * model that was written to within the last NK__RACY_S seconds is not remembered. */
#include "slice/hash_int.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/progress.h"
#include "slice/model_int.h"
#include "slice/stream_int.h"

static int compute(const nk_model *m, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    struct nk_progress bar;
    nk__stream *s;
    int rc;

    nk_progress_start(&bar, "hashing", m->info.file_bytes);
    rc = nk__stream_new(&s, NULL, NK__HASH_WHOLE, nk__tick_bar, &bar, err);
    for (int i = 0; i < m->info.n_shards && !rc; i++) {
        rc = nk__stream_copy(s, &m->shards[i].source, 0, m->shards[i].source.size, err);
        if (rc)
            nk_wrap(rc, err, "%s", m->shards[i].path);
    }
    if (!rc)
        rc = nk__stream_finish(s, hex, err);
    nk__stream_free(s);
    nk_progress_end(&bar);
    return rc;
}

/* What identifies the model's files without reading them; false: nothing does. */
static bool identify(const nk_model *m, int64_t now_s, char hex[NK_SHA256_HEX])
{
    nk_sha256 *h = nk_sha256_new();

    if (!h)
        return false;
    for (int i = 0; i < m->info.n_shards; i++) {
        const struct nk__gguf *g = &m->shards[i];
        char *full = realpath(g->path, NULL), line[PATH_MAX + 128];
        int n;

        if (!full || now_s - g->id.mtime_s < NK__RACY_S) {
            free(full);
            nk_sha256_free(h);
            return false;
        }
        n = snprintf(line, sizeof line, "%s\n%llu %lld.%09lld %llu:%llu\n", full,
                     (unsigned long long)g->source.size, (long long)g->id.mtime_s,
                     (long long)g->id.mtime_ns, (unsigned long long)g->id.dev,
                     (unsigned long long)g->id.ino);
        nk_sha256_add(h, line, n < (int)sizeof line ? (size_t)n : sizeof line - 1);
        free(full);
    }
    nk_sha256_finish(h, hex);
    return true;
}

bool nk_model_identity(const nk_model *m, char hex[NK_SHA256_HEX])
{
    return identify(m, time(NULL), hex);
}

/* The cache's file for this model; NULL when there can be none. Owned by the caller. */
static char *memory_path(const nk_model *m, int64_t now_s)
{
    char hex[NK_SHA256_HEX], *dir = NULL, *path = NULL;

    if (!identify(m, now_s, hex))
        return NULL;
    if (!nk_cache_dir(&dir, "hashes", NULL)) {
        size_t size = strlen(dir) + sizeof hex + 1;

        path = malloc(size);
        if (path)
            snprintf(path, size, "%s/%s", dir, hex);
    }
    free(dir);
    return path;
}

static bool recall(const char *path, char hex[NK_SHA256_HEX])
{
    struct nk_buf b = NK_BUF_INIT(NK_SHA256_HEX);
    bool ok = !nk_file_read(path, NK_SHA256_HEX, &b, NULL) && nk__is_sha256(nk_buf_str(&b));

    if (ok)
        memcpy(hex, b.data, NK_SHA256_HEX);
    nk_buf_release(&b);
    return ok;
}

bool nk__is_sha256(const char *text)
{
    return strspn(text, "0123456789abcdef") == NK_SHA256_HEX - 1 &&
           strlen(text) == NK_SHA256_HEX - 1;
}

int nk__model_hash(nk_model *m, int64_t now_s, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    char *memory = m->hash[0] ? NULL : memory_path(m, now_s);
    int rc = 0;

    if (!m->hash[0] && !(memory && recall(memory, m->hash))) {
        rc = compute(m, m->hash, err);
        if (!rc)
            rc = nk_model_check_unchanged(m, err);
        if (!rc && memory)
            nk_file_write(memory, m->hash, strlen(m->hash), NULL); /* best effort */
    }
    free(memory);
    if (rc)
        m->hash[0] = '\0';
    else
        memcpy(hex, m->hash, NK_SHA256_HEX);
    return rc;
}

void nk_model_hash_known(nk_model *m, const char *hex)
{
    char *memory = memory_path(m, time(NULL));

    NK_ASSERT(nk__is_sha256(hex));
    memcpy(m->hash, hex, sizeof m->hash);
    if (memory)
        nk_file_write(memory, m->hash, strlen(m->hash), NULL); /* best effort */
    free(memory);
}

int nk_model_hash(nk_model *m, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    return nk__model_hash(m, time(NULL), hex, err);
}
