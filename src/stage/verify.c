#include "stage/verify.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

struct nk_verify {
    nk_model *model;
    struct nk_verify_opts opts;
    struct nk_manifest *manifest; /* of opts.slices; NULL: slices are made here */
    struct nk_range given[NK_VERIFY_STAGES_MAX];
    int n_given;
    char *dir; /* for slices that are made here */
    nk_reference *reference;
    nk_stage *stages[NK_VERIFY_STAGES_MAX]; /* of the split at hand */
    int n_stages;
};

/* The folder for slices of this process, in the cache folder; what a killed one left there is
 * removed. */
static int make_dir(nk_verify *v, struct nk_error *err)
{
    char *parent, path[4352], file[4700];
    struct dirent *e, *f;
    DIR *d, *inner;
    int rc = nk_cache_dir(&parent, "verify", err);

    if (rc)
        return rc;
    d = opendir(parent);
    while (d && (e = readdir(d))) {
        long pid = strtol(e->d_name, NULL, 10);

        if (pid <= 0 || pid == (long)getpid() || !kill((pid_t)pid, 0) || errno != ESRCH)
            continue;
        snprintf(path, sizeof path, "%s/%s", parent, e->d_name);
        inner = opendir(path);
        while (inner && (f = readdir(inner))) {
            snprintf(file, sizeof file, "%s/%s", path, f->d_name);
            unlink(file); /* fails on . and .., as it should */
        }
        if (inner)
            closedir(inner);
        rmdir(path);
    }
    if (d)
        closedir(d);
    snprintf(path, sizeof path, "%s/%ld", parent, (long)getpid());
    free(parent);
    rc = nk_dir_make(path, err);
    if (!rc && !(v->dir = strdup(path)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    return rc;
}

/* The slices in opts.slices must be all of this very model. */
static int read_slices(nk_verify *v, struct nk_error *err)
{
    char path[4500], sha256[NK_SHA256_HEX];
    int n = 0, rc;

    snprintf(path, sizeof path, "%.4200s/manifest.json", v->opts.slices);
    rc = nk_manifest_read(&v->manifest, path, err);
    if (!rc)
        rc = nk_model_hash(v->model, sha256, err);
    if (rc)
        return rc;
    if (strcmp(sha256, v->manifest->model_sha256) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "%s: the slices are of another model (%.12s...) than %s (%.12s...)", path,
                       v->manifest->model_sha256, nk_model_info(v->model)->path, sha256);
    for (; n < v->manifest->n_files && v->manifest->files[n].range.end > 0; n++) {
        if (n == NK_VERIFY_STAGES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_ranges", "%s: more than %d slices", path,
                           NK_VERIFY_STAGES_MAX);
        v->given[n] = v->manifest->files[n].range;
    }
    v->n_given = n;
    rc = n ? nk_ranges_check(v->model, v->given, n, true, err)
           : nk_fail(err, NK_E_INVALID, "bad_manifest", "it names no slices");
    return nk_wrap(rc, err, "%s", path);
}

int nk_verify_new(nk_verify **out, nk_model *m, const struct nk_verify_opts *opts,
                  struct nk_error *err)
{
    nk_verify *v = calloc(1, sizeof *v);
    int rc;

    *out = NULL;
    if (!v)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    v->model = m;
    v->opts = *opts;
    if (nk_model_info(m)->pooling) {
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "embedding_model",
                     "%s pools its rows (%s): verify compares logits, and this model gives none",
                     nk_model_info(m)->path, nk_pooling_text(nk_model_info(m)->pooling));
        free(v);
        return rc;
    }
    rc = opts->slices ? read_slices(v, err) : make_dir(v, err);
    if (rc)
        nk_verify_free(v);
    else
        *out = v;
    return rc;
}

void nk_verify_free(nk_verify *v)
{
    if (!v)
        return;
    if (v->dir)
        rmdir(v->dir);
    free(v->dir);
    nk_reference_free(v->reference);
    free(v->manifest);
    free(v);
}

const struct nk_range *nk_verify_slices(const nk_verify *v, int *n)
{
    *n = v->n_given;
    return v->manifest ? v->given : NULL;
}

static struct nk_stage_opts stage_opts(const nk_verify *v, const char *device)
{
    const struct nk_script *script = &v->opts.script;
    struct nk_stage_opts o = v->opts.stage;

    o.verify = NK_VERIFY_NEVER; /* what they compute is compared, which tells more */
    o.device = device;
    o.n_ctx = nk_script_length_max(script) * script->n_sequences;
    o.n_seq_max = script->n_sequences;
    o.n_batch = script->n_batch;
    return o;
}

int nk_verify_whole(nk_verify *v, struct nk_stage_info *info, struct nk_error *err)
{
    struct nk_stage_opts o = stage_opts(v, "CPU");
    nk_stage *whole;
    int rc;

    o.whole_model = true;
    rc = nk_stage_open(&whole, nk_model_info(v->model)->path, &o, err);
    if (rc)
        return rc;
    *info = *nk_stage_info(whole);
    rc = nk_reference_new(&v->reference, whole, &v->opts.script, err);
    nk_stage_close(whole); /* model and slices need not fit in memory together */
    return rc;
}

/* A slice of opts.slices, which may hold something else than its manifest says. */
static int open_given(nk_verify *v, int i, struct nk_range want, const struct nk_stage_opts *o,
                      struct nk_error *err)
{
    const struct nk_stage_info *info;
    char path[4500];
    int rc;

    snprintf(path, sizeof path, "%.4200s/%s", v->opts.slices, v->manifest->files[i].name);
    rc = nk_stage_open(&v->stages[i], path, o, err);
    if (rc)
        return rc;
    info = nk_stage_info(v->stages[i]);
    if (strcmp(info->model_sha256, v->manifest->model_sha256) != 0)
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s is of another model (%.12s..., not %.12s...)", path, info->model_sha256,
                     v->manifest->model_sha256);
    else if (info->layer_begin != want.begin || info->layer_end != want.end)
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s holds layers %d-%d; the manifest says %d-%d", path, info->layer_begin,
                     info->layer_end, want.begin, want.end);
    if (rc) {
        nk_stage_close(v->stages[i]);
        v->stages[i] = NULL;
    }
    return rc;
}

static int open_made(nk_verify *v, int i, struct nk_range range, const struct nk_stage_opts *o,
                     struct nk_error *err)
{
    /* The slices belong to nobody else: no need to read the model for its hash. */
    static const char no_hash[] =
        "0000000000000000000000000000000000000000000000000000000000000000";
    char path[4500];
    int rc;

    snprintf(path, sizeof path, "%s/%03d-%03d.gguf", v->dir, range.begin, range.end);
    rc = nk_slice_write(v->model, range, no_hash, path, NULL, err);
    if (!rc)
        rc = nk_stage_open(&v->stages[i], path, o, err);
    unlink(path);
    return rc;
}

static int open_stages(nk_verify *v, const struct nk_range *ranges, int n,
                       struct nk_verify_result *out, struct nk_error *err)
{
    for (int i = 0; i < n; i++) {
        const char *device = v->opts.devices[v->opts.n_devices > 1 ? i : 0];
        struct nk_stage_opts o = stage_opts(v, device);
        int rc = v->manifest ? open_given(v, i, ranges[i], &o, err)
                             : open_made(v, i, ranges[i], &o, err);

        if (rc)
            return rc;
        v->n_stages = i + 1;
        memcpy(out->devices[i], nk_stage_info(v->stages[i])->device, sizeof out->devices[i]);
        out->on_cpu &= !strcmp(out->devices[i], "CPU");
    }
    return 0;
}

int nk_verify_split(nk_verify *v, const struct nk_range *ranges, int n,
                    struct nk_verify_result *out, struct nk_error *err)
{
    int rc;

    *out = (struct nk_verify_result){ .n_stages = n, .on_cpu = true };
    rc = open_stages(v, ranges, n, out, err);
    if (!rc) {
        out->n_runs = nk_reference_n_runs(v->reference);
        rc = nk_reference_compare(v->reference, v->stages, n, &out->difference, err);
    }
    for (int i = 0; i < v->n_stages; i++)
        nk_stage_close(v->stages[i]);
    v->n_stages = 0;
    return rc;
}
