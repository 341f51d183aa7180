/* layer: slice. manifest.json as a stranger may write it: what is accepted names plain files of
 * layers that the model has, and reads back the same after being written. */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory_file.h"
#include "slice/manifest_int.h"

const struct fuzz_ceiling fuzz_ceiling = { .base = 40000, .per_byte = 100 };

static void check(const struct nk_manifest *mf)
{
    NK_ASSERT(mf->n_layer > 0 && mf->n_layer <= NK_LAYERS_MAX && mf->n_embd > 0);
    NK_ASSERT(strlen(mf->model_sha256) == 64 && mf->n_files <= NK_LAYERS_MAX + 1);
    for (int i = 0; i < mf->n_files; i++) {
        const struct nk_manifest_file *f = &mf->files[i];

        NK_ASSERT(f->name[0] && f->name[0] != '.' && !strchr(f->name, '/'));
        NK_ASSERT(strlen(f->sha256) == 64 && f->size_bytes <= INT64_MAX);
        NK_ASSERT(
            (!f->range.begin && !f->range.end) ||
            (f->range.begin >= 0 && f->range.begin < f->range.end && f->range.end <= mf->n_layer));
    }
}

/* Into the folder that the tests run in. */
static void check_again(const struct nk_manifest *mf)
{
    char path[64];
    struct nk_manifest *again;
    struct nk_error err;

    snprintf(path, sizeof path, "manifest-%d.json", (int)getpid());
    NK_ASSERT(!nk__manifest_write(mf, path, &err));
    NK_ASSERT(!nk_manifest_read(&again, path, &err));
    unlink(path);
    NK_ASSERT(!strcmp(mf->model_id, again->model_id) && mf->n_files == again->n_files &&
              !strcmp(mf->architecture, again->architecture) && mf->n_layer == again->n_layer);
    for (int i = 0; i < mf->n_files; i++)
        NK_ASSERT(!strcmp(mf->files[i].name, again->files[i].name) &&
                  mf->files[i].size_bytes == again->files[i].size_bytes &&
                  mf->files[i].range.begin == again->files[i].range.begin &&
                  mf->files[i].range.end == again->files[i].range.end);
    free(again);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    struct nk_manifest *mf;
    struct nk_error err = { 0 };

    if (nk_manifest_read(&mf, memory_file(data, size), &err)) {
        NK_ASSERT(!mf && err.code && err.reason[0] && err.msg[0]);
        return;
    }
    check(mf);
    fuzz_work_off();
    check_again(mf);
    fuzz_work_on();
    free(mf);
}
