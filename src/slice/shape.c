/* What a machine has to do for a model or one of its layers, whatever the weights are. */
#include "slice/slice.h"

#include <gguf.h>
#include <string.h>

#include "slice/model_int.h"

static void add_tensor(nk_sha256 *h, const struct nk__tensor *t)
{
    const char *name = t->rest ? t->rest : t->name;

    nk_sha256_add(h, name, strlen(name) + 1);
    nk_sha256_add(h, &t->type, sizeof t->type);
    nk_sha256_add(h, t->ne, sizeof t->ne);
}

/* The architecture's keys: widths, heads, experts, windows. Not names, not the tokenizer. */
static void add_keys(nk_sha256 *h, const nk_model *m)
{
    const char *arch = m->info.architecture;
    size_t prefix = strlen(arch);

    nk_sha256_add(h, arch, prefix + 1);
    nk_sha256_add(h, &m->info.n_vocab, sizeof m->info.n_vocab);
    for (int64_t i = 0; i < gguf_get_n_kv(m->kv); i++) {
        const char *key = gguf_get_key(m->kv, i);
        enum gguf_type type = gguf_get_kv_type(m->kv, i);
        int64_t v;

        if (strncmp(key, arch, prefix) != 0 || key[prefix] != '.')
            continue;
        nk_sha256_add(h, key, strlen(key) + 1);
        nk_sha256_add(h, &type, sizeof type);
        if (type == GGUF_TYPE_STRING) {
            const char *text = gguf_get_val_str(m->kv, i);

            nk_sha256_add(h, text, strlen(text) + 1);
        } else if (type == GGUF_TYPE_ARRAY) {
            for (size_t k = 0; nk__kv_array_int(m->kv, key, k, &v); k++)
                nk_sha256_add(h, &v, sizeof v);
        } else {
            static const size_t sizes[GGUF_TYPE_COUNT] = {
                [GGUF_TYPE_UINT8] = 1,   [GGUF_TYPE_INT8] = 1,    [GGUF_TYPE_UINT16] = 2,
                [GGUF_TYPE_INT16] = 2,   [GGUF_TYPE_UINT32] = 4,  [GGUF_TYPE_INT32] = 4,
                [GGUF_TYPE_FLOAT32] = 4, [GGUF_TYPE_BOOL] = 1,    [GGUF_TYPE_UINT64] = 8,
                [GGUF_TYPE_INT64] = 8,   [GGUF_TYPE_FLOAT64] = 8,
            };

            nk_sha256_add(h, gguf_get_val_data(m->kv, i), sizes[type]);
        }
    }
}

int nk_model_shape(const nk_model *m, int layer, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    nk_sha256 *h = nk_sha256_new();

    NK_ASSERT(layer >= -1 && layer < m->info.n_layer);
    if (!h)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (layer < 0)
        add_keys(h, m);
    else
        nk_sha256_add(h, &m->kinds[layer], sizeof m->kinds[layer]);
    for (int i = 0; i < m->n_tensors; i++) {
        if (layer < 0)
            nk_sha256_add(h, &m->tensors[i].layer, sizeof m->tensors[i].layer);
        if (layer < 0 || m->tensors[i].layer == layer)
            add_tensor(h, &m->tensors[i]);
    }
    nk_sha256_finish(h, hex);
    return 0;
}

uint64_t nk_model_bytes_per_row(const nk_model *m, int layer)
{
    uint64_t n_expert = 0, n_used = 0, bytes = 0;

    nk__kv_uint(m->kv, nk__model_key(m, "expert_count").text, &n_expert);
    nk__kv_uint(m->kv, nk__model_key(m, "expert_used_count").text, &n_used);
    for (int i = 0; i < m->n_tensors; i++) {
        const struct nk__tensor *t = &m->tensors[i];

        if (t->layer != layer)
            continue;
        /* Of experts there are as many matrices as the model has experts, one behind the other. */
        if (n_expert > 1 && n_used < n_expert && (uint64_t)t->ne[2] == n_expert)
            bytes += t->size_bytes / n_expert * (n_used ? n_used : 1);
        else
            bytes += t->size_bytes;
    }
    return bytes;
}
