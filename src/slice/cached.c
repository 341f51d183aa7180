/* Slices in the cache folder: $XDG_CACHE_HOME/nakshatra/slices/MODEL_SHA256/NAME.000-014.gguf. The folder's name is the
 * source's hash and files appear complete or not at all, so a file that is there is the right one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "slice/slice.h"

/* The model's file name without folder, extension and shard number. */
static void stem(char out[128], const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dot;

    snprintf(out, 128, "%.127s", slash ? slash + 1 : path);
    dot = strstr(out, "-00001-of-");
    if (!dot)
        dot = strrchr(out, '.');
    if (dot && dot != out)
        *dot = '\0';
}

static int cached(nk_model *m, const struct nk_range *range, char **path, struct nk_error *err)
{
    char sha256[NK_SHA256_HEX], sub[16 + NK_SHA256_HEX], name[128];
    struct nk_buf b = NK_BUF_INIT(8192);
    char *dir = NULL;
    int rc;

    *path = NULL;
    rc = nk_model_hash(m, sha256, err);
    if (rc)
        return rc;
    snprintf(sub, sizeof sub, "slices/%s", sha256);
    stem(name, nk_model_info(m)->path);
    rc = nk_cache_dir(&dir, sub, err);
    if (!rc && range)
        rc = nk_buf_addf(&b, err, "%s/%s.%03d-%03d.gguf", dir, name, range->begin, range->end);
    else if (!rc)
        rc = nk_buf_addf(&b, err, "%s/%s.vocab.gguf", dir, name);
    if (!rc && access(b.data, R_OK) != 0)
        rc = range ? nk_slice_write(m, *range, sha256, b.data, NULL, err)
                   : nk_vocab_write(m, sha256, b.data, NULL, err);
    if (!rc)
        *path = nk_buf_take(&b, NULL);
    nk_buf_release(&b);
    free(dir);
    return rc;
}

int nk_slice_cached(nk_model *m, struct nk_range range, char **path, struct nk_error *err)
{
    return cached(m, &range, path, err);
}

int nk_vocab_cached(nk_model *m, char **path, struct nk_error *err)
{
    return cached(m, NULL, path, err);
}
