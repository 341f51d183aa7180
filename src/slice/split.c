/* A model into a folder: slices, vocabulary, manifest. */
#include "slice/slice.h"

#include <ggml.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/progress.h"
#include "slice/model_int.h"
#include "slice/write_int.h"

int nk__model_check_whole(const nk_model *m, struct nk_error *err)
{
    if (m->info.is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s is a slice (layers %d-%d of %d), not a whole model; give the model that "
                       "it was cut from",
                       m->info.path, m->info.layer_begin, m->info.layer_end, m->info.layer_count);
    return 0;
}

static int draw(void *user, uint64_t bytes, struct nk_error *err)
{
    (void)err;
    nk_progress_add(user, bytes);
    return 0;
}

static int manifest_write(const struct nk_manifest *mf, const char *path, struct nk_error *err)
{
    json_t *root, *files = json_array();
    char *text = NULL;
    int rc;

    for (int i = 0; i < mf->n_files; i++) {
        const struct nk_manifest_file *f = &mf->files[i];

        json_array_append_new(files, json_pack("{s:s, s:[i, i], s:I, s:s}", "name", f->name,
                                               "layers", f->range.begin, f->range.end, "size_bytes",
                                               (json_int_t)f->size_bytes, "sha256", f->sha256));
    }
    root = json_pack("{s:s, s:s, s:s, s:i, s:i, s:o}", "model_id", mf->model_id, "model_sha256",
                     mf->model_sha256, "architecture", mf->architecture, "n_layer", mf->n_layer,
                     "n_embd", mf->n_embd, "files", files);
    text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory, or a name that is not UTF-8");
    rc = nk_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

int nk_split(nk_model *m, const struct nk_range *ranges, int n, const char *dir,
             struct nk_manifest **out, struct nk_error *err)
{
    struct nk_manifest *mf = calloc(1, sizeof *mf);
    struct nk_progress bar;
    uint64_t total = 0;
    char path[4608];
    int rc;

    if (out)
        *out = NULL;
    if (!mf)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = nk__model_check_whole(m, err);
    if (!rc)
        rc = nk_ranges_check(m, ranges, n, false, err);
    if (!rc)
        rc = nk_dir_make(dir, err);
    if (!rc)
        rc = nk_model_hash(m, mf->model_sha256, err);
    if (rc)
        goto out;
    snprintf(mf->model_id, sizeof mf->model_id, "%.127s", m->name);
    snprintf(mf->architecture, sizeof mf->architecture, "%s", m->info.architecture);
    mf->n_layer = m->info.n_layer;
    mf->n_embd = m->info.n_embd;
    for (int i = 0; i < n; i++)
        total += nk__slice_bytes(m, ranges[i]);
    nk_progress_start(&bar, "splitting", total);
    for (int i = 0; i <= n && !rc; i++) {
        struct nk_manifest_file *f = &mf->files[mf->n_files++];

        f->range = i < n ? ranges[i] : (struct nk_range){ 0, 0 };
        if (i < n)
            snprintf(f->name, sizeof f->name, "%.200s.%03d-%03d.gguf", m->name, f->range.begin,
                     f->range.end);
        else
            snprintf(f->name, sizeof f->name, "%.200s.vocab.gguf", m->name);
        snprintf(path, sizeof path, "%s/%s", dir, f->name);
        rc = nk__slice_write(m, f->range, mf->model_sha256, path, f->sha256, &f->size_bytes, draw,
                             &bar, err);
    }
    nk_progress_end(&bar);
    if (!rc) {
        snprintf(path, sizeof path, "%s/manifest.json", dir);
        rc = manifest_write(mf, path, err);
    }
out:
    if (!rc && out) {
        *out = mf;
        mf = NULL;
    }
    free(mf);
    return rc;
}
