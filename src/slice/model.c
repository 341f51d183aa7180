/* A model that is open (open.c): what its files say, and whether they still say it. */
#include "slice/model_int.h"

#include <ggml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct nk__key nk__model_key(const nk_model *m, const char *key)
{
    struct nk__key k;

    snprintf(k.text, sizeof k.text, "%s.%s", m->info.architecture, key);
    return k;
}

const struct nk__tensor *nk__model_tensor(const nk_model *m, const char *name)
{
    for (int i = 0; i < m->n_tensors; i++)
        if (!strcmp(m->tensors[i].name, name))
            return &m->tensors[i];
    return NULL;
}

int nk__model_check_whole(const nk_model *m, struct nk_error *err)
{
    if (m->info.is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s is a slice (layers %d-%d of %d), not a whole model; give the model that "
                       "it was cut from",
                       m->info.path, m->info.layer_begin, m->info.layer_end, m->info.layer_count);
    return 0;
}

int nk_model_check_unchanged(const nk_model *m, struct nk_error *err)
{
    for (int i = 0; i < m->info.n_shards; i++) {
        const struct nk__gguf *g = &m->shards[i];
        const struct nk_file_watch watch = { g->source.fd, g->id };

        if (nk_file_watch_written(&watch))
            return nk_fail(err, NK_E_ABORTED, "file_changed", "%s was changed while it was read",
                           g->path);
    }
    return 0;
}

int nk_model_n_tensors(const nk_model *m)
{
    return m->n_tensors;
}

void nk_model_tensor_place(const nk_model *m, int tensor, struct nk_tensor_place *out)
{
    const struct nk__tensor *t = &m->tensors[tensor];

    *out = (struct nk_tensor_place){ .name = t->name,
                                     .type = t->type,
                                     .layer = t->layer,
                                     .shard = t->shard,
                                     .offset = t->offset,
                                     .size_bytes = t->size_bytes };
    memcpy(out->ne, t->ne, sizeof out->ne);
}

const char *nk_model_file_name(const nk_model *m)
{
    return m->name;
}

uint64_t nk_model_shard_bytes(const nk_model *m, int shard)
{
    return m->shards[shard].source.size;
}

uint64_t nk_model_head_bytes(const nk_model *m, int shard)
{
    return m->shards[shard].header_end;
}

int nk_model_read(const nk_model *m, int shard, uint64_t offset, void *out, size_t n,
                  struct nk_error *err)
{
    return nk_wrap(nk__source_read(&m->shards[shard].source, offset, out, n, err), err, "%s",
                   m->shards[shard].path);
}

const struct nk_model_info *nk_model_info(const nk_model *m)
{
    return &m->info;
}

int nk_model_types(const nk_model *m, struct nk_type_share *out, int max)
{
    struct nk_type_share all[GGML_TYPE_COUNT] = { { 0 } };
    int n = 0;

    for (int i = 0; i < m->n_tensors; i++) {
        all[m->tensors[i].type].bytes += m->tensors[i].size_bytes;
        all[m->tensors[i].type].n_tensors++;
    }
    for (;;) {
        int most = 0;

        for (int t = 1; t < GGML_TYPE_COUNT; t++)
            if (all[t].bytes > all[most].bytes)
                most = t;
        if (!all[most].bytes)
            return n;
        all[most].type = ggml_type_name((enum ggml_type)most);
        if (n < max)
            out[n] = all[most];
        n++;
        all[most].bytes = 0;
    }
}

void nk_model_close(nk_model *m)
{
    if (!m)
        return;
    for (int i = 0; m->shards && i < m->info.n_shards; i++)
        nk__gguf_close(&m->shards[i]);
    free(m->shards);
    free(m->tensors);
    free(m);
}
