/* What layers need beside their weights: the cache of keys and values of each token, the state of
 * each sequence, and room for a batch. As llama.cpp's caches have it (llama-kv-cache.cpp and
 * n_embd_r, n_embd_s of llama-hparams.cpp), with sliding windows cached whole, which is how a stage
 * runs (stage/open.c). */
#include "slice/slice.h"

#include <string.h>

#include "base/args.h"
#include "slice/arch_int.h"
#include "slice/model_int.h"

static int uint_at(const nk_model *m, const char *key, int layer, int missing)
{
    struct nk__key k = nk__model_key(m, key);
    uint64_t v;
    int64_t e;

    if (nk__kv_uint(m->kv, k.text, &v))
        return v <= INT32_MAX ? (int)v : 0;
    if (nk__kv_array_int(m->kv, k.text, (size_t)layer, &e))
        return e >= 0 && e <= INT32_MAX ? (int)e : 0;
    return missing;
}

/* The sizes are a file's, and may be anything. */
static uint64_t clamp(double bytes)
{
    return bytes < 0 ? 0 : bytes > 1e18 ? (uint64_t)1e18 : (uint64_t)bytes;
}

/* Some models have heads of another size in the layers with a sliding window. */
static bool has_window(const nk_model *m, int layer)
{
    static const char pattern[] = "attention.sliding_window_pattern";
    const struct nk__arch_row *row =
        nk__arch_find(m->info.architecture, NK__PATTERN, pattern, NULL);
    bool value = false;
    int64_t e;

    if (nk__kv_array_int(m->kv, nk__model_key(m, pattern).text, (size_t)layer, &e))
        return e != 0;
    return row && nk__arch_pattern(m, row, layer, &value) && value;
}

/* (key length + value length) x KV heads x 2. Multi-head latent attention caches one latent vector
 * instead: kv_lora_rank + the rotary part. The last shared_kv_layers use what others have cached.
 */
static uint64_t kv_bytes_of(const nk_model *m, int layer)
{
    int n_head = uint_at(m, "attention.head_count", layer, m->info.n_head);
    int n_head_kv = uint_at(m, "attention.head_count_kv", layer, n_head);
    int per_head = m->info.n_head > 0 ? m->info.n_embd / m->info.n_head : 0;
    int k = uint_at(m, "attention.key_length", layer, per_head);
    int v = uint_at(m, "attention.value_length", layer, per_head);
    int lora = uint_at(m, "attention.kv_lora_rank", layer, 0);

    if (layer >= m->info.n_layer - uint_at(m, "attention.shared_kv_layers", layer, 0))
        return 0;
    if (lora > 0 && uint_at(m, "attention.key_length_mla", layer, 0) > 0)
        return clamp(((double)lora + uint_at(m, "rope.dimension_count", layer, 0)) * 2);
    if (has_window(m, layer)) {
        k = uint_at(m, "attention.key_length_swa", layer, k);
        v = uint_at(m, "attention.value_length_swa", layer, v);
    }
    return clamp((double)n_head_kv * ((double)k + v) * 2);
}

/* Of a recurrent layer, f32: what the convolution still looks back at, and the state itself. */
static uint64_t state_bytes_of(const nk_model *m, int layer)
{
    double n_embd = m->info.n_embd, n_head = uint_at(m, "attention.head_count", layer, 0), n;
    double wkv = uint_at(m, "wkv.head_size", layer, 0);
    double shortconv = uint_at(m, "shortconv.l_cache", layer, 0);
    double kda = uint_at(m, "kda.head_dim", layer, 0);
    double conv = uint_at(m, "ssm.conv_kernel", layer, 0);
    double inner = uint_at(m, "ssm.inner_size", layer, 0);
    double state = uint_at(m, "ssm.state_size", layer, 0);
    double groups = uint_at(m, "ssm.group_count", layer, 0);

    if (n_head <= 0)
        n_head = m->info.n_head;
    if (wkv > 0)
        n = uint_at(m, "token_shift_count", layer, 2) * n_embd + n_embd * wkv;
    else if (shortconv > 0)
        n = n_embd * (shortconv - 1);
    else if (kda > 0)
        n = 3 * (conv > 0 ? conv - 1 : 3) * n_head * kda + kda * kda * n_head;
    else
        n = (conv > 0 ? conv - 1 : 0) * (inner + 2 * groups * state) + state * inner;
    return clamp(n * 4);
}

/* Layers that choose what to attend to (DeepSeek's sparse attention) cache a key for that. */
static uint64_t indexer_bytes_of(const nk_model *m, int layer)
{
    return clamp(2.0 * uint_at(m, "attention.indexer.key_length", layer, 0));
}

/* llama.cpp makes no cache for encoders: all rows of a text are computed at once (create_memory of
 * llama-model.cpp). It does for these two; a cache that is counted and not made harms nobody. */
static bool has_no_cache(const nk_model *m)
{
    const char *arch = m->info.architecture;

    return nk__arch_find(arch, NK__ENCODER, NULL, NULL) && strcmp(arch, "llama-embed") != 0 &&
           strcmp(arch, "gemma-embedding2") != 0;
}

/* Layers of recurrent architectures have tensors that no others have. Of falcon-h1 and its like
 * each layer attends as well, with keys of its own; where there is only a state, tensors that are
 * called as attention's may be there, too (qwen3next, kimi-linear). */
void nk__model_count_caches(nk_model *m)
{
    struct nk_model_info *in = &m->info;
    bool attends[NK_LAYERS_MAX] = { false }, recurs[NK_LAYERS_MAX] = { false },
         chooses[NK_LAYERS_MAX] = { false };
    bool has_other = false; /* a layer without a state */

    for (int i = 0; i < m->n_tensors; i++) {
        const struct nk__tensor *t = &m->tensors[i];

        if (t->layer < 0 || t->layer >= in->n_layer)
            continue;
        if (!strncmp(t->rest, "attn_k", 6) || !strncmp(t->rest, "attn_qkv", 8))
            attends[t->layer] = true;
        if (!strncmp(t->rest, "ssm_", 4) || !strncmp(t->rest, "shortconv.", 10) ||
            !strncmp(t->rest, "time_mix_", 9))
            recurs[t->layer] = true;
        if (!strncmp(t->rest, "indexer.", 8))
            chooses[t->layer] = true;
    }
    for (int i = 0; i < in->n_layer; i++)
        has_other |= !recurs[i];
    for (int i = 0; i < in->n_layer; i++) {
        if (recurs[i])
            in->state_bytes[i] = state_bytes_of(m, i);
        if (attends[i] && (!recurs[i] || !has_other) && !has_no_cache(m))
            in->kv_bytes_per_token[i] =
                kv_bytes_of(m, i) + (chooses[i] ? indexer_bytes_of(m, i) : 0);
    }
}

uint64_t nk_need_sum(const struct nk_need *n)
{
    return n->weights_bytes + n->cache_bytes + n->batch_bytes;
}

/* Where a batch's graph is widest: rows of the feed-forward part, the mask of which row may see
 * which cell, and the logits. */
static uint64_t batch_bytes(const nk_model *m, bool is_last, const struct nk_need_opts *o)
{
    const struct nk_model_info *in = &m->info;
    int n_ff = 0;

    for (int i = 0; i < in->n_layer; i++) {
        int one = uint_at(m, "feed_forward_length", i, 0);

        n_ff = one > n_ff ? one : n_ff;
    }
    return clamp(4.0 * o->n_batch *
                 ((double)in->n_embd + n_ff + (is_last ? in->n_vocab : 0) + o->n_ctx / 2.0));
}

void nk_model_need(const nk_model *m, struct nk_range range, const struct nk_need_opts *o,
                   struct nk_need *out)
{
    const struct nk_model_info *in = &m->info;
    bool is_last = in->is_slice ? in->has_lm_head : range.end == in->n_layer;
    double kv = 0, state = 0;

    *out = (struct nk_need){ 0 };
    for (int i = range.begin; i < range.end; i++) {
        out->weights_bytes += in->layer_bytes[i];
        kv += (double)in->kv_bytes_per_token[i];
        state += (double)in->state_bytes[i];
    }
    if (is_last)
        out->weights_bytes += in->head_bytes;
    out->cache_bytes = clamp(kv * o->kv_scale * o->n_ctx + state * o->n_seq);
    out->batch_bytes = batch_bytes(m, is_last, o);
}

int nk_need_check(const struct nk_need *n, const struct nk_need_opts *o, uint64_t free_bytes,
                  const char *what, const char *where, struct nk_error *err)
{
    char sizes[5][24];

    if (!free_bytes || nk_need_sum(n) <= free_bytes)
        return 0;
    return nk_fail(
        err, NK_E_EXHAUSTED, "no_memory",
        "%s: %s of memory are needed (weights %s, %d tokens of context %s, batches of %d "
        "about %s), %s are free on %s: fewer layers or a smaller --ctx need less%s",
        what, nk_size_format(sizes[0], nk_need_sum(n)), nk_size_format(sizes[1], n->weights_bytes),
        o->n_ctx, nk_size_format(sizes[2], n->cache_bytes), o->n_batch,
        nk_size_format(sizes[3], n->batch_bytes), nk_size_format(sizes[4], free_bytes), where,
        nk_need_sum(n) - n->weights_bytes <= free_bytes && !strcmp(where, "CPU")
            ? ", and --mmap leaves weights in the file"
            : "");
}
