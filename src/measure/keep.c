/* What was measured before, in a folder: KEY.json. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "measure/measure_int.h"

enum {
    /* Counted up when something is measured otherwise than before. */
    FORMAT = 1,
    KEY_BYTES_MAX = 1 << 14,
    FILE_BYTES_MAX = 1 << 20,
};

int nk__measured_key(const struct nk_measured *r, const struct nk_measure_opts *opts,
                     char key[NK_SHA256_HEX], struct nk_error *err)
{
    const struct nk_stage_opts *o = &opts->stage;
    struct nk_buf text = NK_BUF_INIT(KEY_BYTES_MAX);
    nk_sha256 *h = nk_sha256_new();
    int rc = h ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    /* Hardware, build, shape, options: each on a line, so that no two run into each other. */
    if (!rc)
        rc = nk_buf_addf(&text, err, "measured %d\n%s\n%s\n%s\n%d\n", FORMAT, r->device,
                         r->device_description, r->cpu, r->n_cores);
    if (!rc)
        rc = nk_buf_addf(&text, err, "%s\n%s\n%s\n%s\n", r->version, r->llama_version,
                         r->ggml_version, r->shape);
    if (!rc)
        rc = nk_buf_addf(&text, err, "%d %d %d %d %d %d %d\n%s %s %d %d\n", o->n_ctx, o->n_seq_max,
                         o->n_batch, r->n_threads, r->n_threads_batch, opts->chunk, o->weights,
                         o->cache_type_k ? o->cache_type_k : "f16",
                         o->cache_type_v ? o->cache_type_v : "f16", o->no_flash_attn,
                         o->separate_kv);
    if (!rc) {
        nk_sha256_add(h, text.data, text.size);
        nk_sha256_finish(h, key);
        h = NULL;
    }
    nk_sha256_free(h);
    nk_buf_release(&text);
    return rc;
}

static int path_of(struct nk_buf *path, const char *dir, const char *key, struct nk_error *err)
{
    return nk_buf_addf(path, err, "%s/%s.json", dir, key);
}

bool nk__measured_load(const char *dir, const char *key, struct nk_measured *out)
{
    struct nk_buf path = NK_BUF_INIT(8192), text = NK_BUF_INIT(FILE_BYTES_MAX);
    bool ok = !path_of(&path, dir, key, NULL) &&
              !nk_file_read(path.data, FILE_BYTES_MAX, &text, NULL) &&
              !nk_measured_parse(text.data, text.size, out, NULL);

    if (ok && strcmp(out->key, key) != 0) { /* renamed by somebody */
        nk_measured_release(out);
        ok = false;
    }
    nk_buf_release(&path);
    nk_buf_release(&text);
    return ok;
}

void nk__measured_save(const char *dir, const struct nk_measured *r)
{
    struct nk_buf path = NK_BUF_INIT(8192), text = NK_BUF_INIT(FILE_BYTES_MAX);
    struct nk_error err;
    char quoted[512];
    int rc = path_of(&path, dir, r->key, &err);

    if (!rc)
        rc = nk_dir_make(dir, &err);
    if (!rc)
        rc = nk_measured_format(r, &text, &err);
    if (!rc)
        rc = nk_file_write(path.data, text.data, text.size, &err);
    if (rc)
        nk_log(NK_LOG_CLI, NK_LOG_WARN, "event=not_kept msg=%s",
               nk_log_quote(quoted, sizeof quoted, err.msg));
    nk_buf_release(&path);
    nk_buf_release(&text);
}
