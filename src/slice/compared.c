/* Which models' cuts are known to be right without a trial. */
#include "slice/slice.h"

#include <gguf.h>
#include <string.h>

#include "slice/arch_int.h"
#include "slice/compared_int.h"
#include "slice/model_int.h"

static bool is_compared_arch(const char *arch)
{
    for (size_t i = 0; i < sizeof compared_archs / sizeof compared_archs[0]; i++)
        if (!strcmp(arch, compared_archs[i]))
            return true;
    return false;
}

/* Have all layers tensors of the same names? In whatever order a file has them: the sum of the
 * names' FNV-1a hashes. Layers that are never run (nextn) are others. */
static bool has_same_tensors(const nk_model *m)
{
    uint64_t sums[NK_LAYERS_MAX] = { 0 };

    for (int i = 0; i < m->n_tensors; i++) {
        const struct nk__tensor *t = &m->tensors[i];
        uint64_t hash = 0xcbf29ce484222325u;

        if (t->layer < 0)
            continue;
        if (t->layer >= m->info.n_layer)
            return false;
        for (const char *c = t->rest; *c; c++)
            hash = (hash ^ (uint8_t)*c) * 0x100000001b3u;
        sums[t->layer] += hash;
    }
    for (int i = 1; i < m->info.n_layer; i++)
        if (sums[i] != sums[0])
            return false;
    return true;
}

/* Is every number that a layer has of its own the same for all of them? */
static bool has_same_values(const nk_model *m)
{
    const char *arch = m->info.architecture;
    size_t n_arch = strlen(arch);

    for (int64_t i = 0; i < gguf_get_n_kv(m->kv); i++) {
        const char *key = gguf_get_key(m->kv, i);
        int64_t first, v;

        if (strncmp(key, arch, n_arch) != 0 || key[n_arch] != '.' ||
            gguf_get_kv_type(m->kv, i) != GGUF_TYPE_ARRAY ||
            nk__arch_find(arch, NK__NOT_PER_LAYER, key + n_arch + 1, NULL))
            continue;
        if (!nk__kv_array_int(m->kv, key, 0, &first))
            return false;
        for (size_t k = 1; k < gguf_get_arr_n(m->kv, i); k++)
            if (!nk__kv_array_int(m->kv, key, k, &v) || v != first)
                return false;
    }
    for (int i = 1; i < m->info.n_layer; i++)
        if (m->kinds[i] != m->kinds[0])
            return false;
    return !nk__arch_find(arch, NK__PERIOD, NULL, NULL) &&
           !nk__arch_find(arch, NK__PERIOD_KEY, NULL, NULL);
}

bool nk_model_is_compared(const nk_model *m, const char *llama_version)
{
    return !strcmp(llama_version, COMPARED_WITH) && is_compared_arch(m->info.architecture) &&
           has_same_tensors(m) && has_same_values(m);
}
