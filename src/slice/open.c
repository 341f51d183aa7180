/* Opening a model: its shards, its tensors by layer, and what its metadata says. */
#include "slice/slice.h"

#include <ctype.h>
#include <ggml.h>
#include <gguf.h>
#include <llama.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/visible.h"
#include "slice/arch_int.h"
#include "slice/model_int.h"

enum { SHARDS_MAX = 4096 };

/* "…-00002-of-00003.gguf": where the number 2 begins, with *idx and *n; NULL for another name. */
static const char *shard_suffix(const char *path, int *idx, int *n)
{
    static const size_t length = sizeof "-00001-of-00003.gguf" - 1;
    size_t size = strlen(path);
    const char *s;
    int used = 0;

    if (size <= length)
        return NULL;
    s = path + size - length;
    if (sscanf(s, "-%5d-of-%5d.gguf%n", idx, n, &used) != 2 || used != (int)length || *idx < 1 ||
        *n < 1 || *idx > *n)
        return NULL;
    return s;
}

/* The model's name: no folder, no shard number, no ".gguf". */
static void set_name(nk_model *m, const char *path)
{
    const char *base = strrchr(path, '/'), *suffix;
    int idx, n;
    size_t size;

    base = base ? base + 1 : path;
    suffix = shard_suffix(base, &idx, &n);
    size = suffix ? (size_t)(suffix - base) : strlen(base);
    if (!suffix && size > 5 && !strcmp(base + size - 5, ".gguf"))
        size -= 5;
    snprintf(m->name, sizeof m->name, "%.*s", (int)(size < 200 ? size : 200), base);
}

/* Text from a file, for people: control characters would reach their terminal. */
static void copy_printable(char *out, size_t size, const char *text)
{
    nk_visible_line(out, size, text);
}

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

/* Shard number idx (from 0) of n: does it say the same of itself? */
static int check_shard(const nk_model *m, const char *path, int idx, int n, struct nk_error *err)
{
    uint64_t no = 0, count = 0;

    nk__kv_uint(m->shards[idx].ctx, "split.no", &no);
    if (!nk__kv_uint(m->shards[idx].ctx, "split.count", &count) || count == 0)
        count = 1;
    if (n == 1 && count > 1)
        return nk_fail(
            err, NK_E_INVALID, "bad_gguf",
            "%s: this is shard %llu of %llu, but its name does not end in -%05llu-of-%05llu.gguf",
            path, (unsigned long long)no + 1, (unsigned long long)count, (unsigned long long)no + 1,
            (unsigned long long)count);
    if (n > 1 && (count != (uint64_t)n || no != (uint64_t)idx))
        return nk_fail(err, NK_E_INVALID, "bad_gguf",
                       "%s: by its name shard %d of %d, by its metadata %llu of %llu", path,
                       idx + 1, n, (unsigned long long)no + 1, (unsigned long long)count);
    return 0;
}

static int open_shard(nk_model *m, const char *path, int idx, int n, struct nk_error *err)
{
    int rc = nk__gguf_open(&m->shards[idx], path, err);

    if (rc == NK_E_NOT_FOUND && n > 1)
        return nk_fail(err, NK_E_NOT_FOUND, "shard_missing", "%s: shard %d of %d is missing", path,
                       idx + 1, n);
    return rc ? rc : check_shard(m, path, idx, n, err);
}

static int open_shards(nk_model *m, const char *path, struct nk_error *err)
{
    int idx, n = 1, rc = 0;
    const char *suffix = shard_suffix(path, &idx, &n);

    if (!suffix)
        n = 1;
    if (n > SHARDS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: %d shards; at most %d are possible",
                       path, n, SHARDS_MAX);
    m->shards = calloc((size_t)n, sizeof *m->shards);
    if (!m->shards)
        return no_memory(err);
    for (int i = 0; i < n; i++)
        m->shards[i] = (struct nk__gguf)NK__GGUF_INIT;
    m->info.n_shards = n;
    for (int i = 0; i < n && !rc; i++) {
        char p[sizeof m->info.path];

        if (suffix)
            snprintf(p, sizeof p, "%.*s-%05d-of-%05d.gguf", (int)(suffix - path), path, i + 1, n);
        else
            snprintf(p, sizeof p, "%s", path);
        if (i == 0)
            memcpy(m->info.path, p, sizeof p);
        rc = open_shard(m, p, i, n, err);
        m->info.file_bytes += m->shards[i].source.size;
    }
    return rc;
}

/* The layer of "blk.<layer>.rest", or -1. */
static int layer_of(const char *name, const char **rest)
{
    long layer = 0;
    const char *p = name + 4;

    *rest = NULL;
    if (strncmp(name, "blk.", 4) != 0 || !isdigit((unsigned char)*p))
        return -1;
    for (; isdigit((unsigned char)*p) && layer < 1000000; p++)
        layer = layer * 10 + (*p - '0');
    if (*p != '.')
        return -1;
    *rest = p + 1;
    return (int)layer;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const struct nk__tensor *const *)a)->name,
                  (*(const struct nk__tensor *const *)b)->name);
}

/* One name in two shards: gguf.h finds doubles within a file only. */
static int check_doubles(const nk_model *m, struct nk_error *err)
{
    const struct nk__tensor **sorted = malloc((size_t)m->n_tensors * sizeof *sorted);
    int rc = 0;

    if (!sorted)
        return no_memory(err);
    for (int i = 0; i < m->n_tensors; i++)
        sorted[i] = &m->tensors[i];
    qsort(sorted, (size_t)m->n_tensors, sizeof *sorted, compare_names);
    for (int i = 1; i < m->n_tensors && !rc; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: the tensor '%s' is in two shards",
                         m->info.path, sorted[i]->name);
    free(sorted);
    return rc;
}

static int collect_tensors(nk_model *m, struct nk_error *err)
{
    uint64_t said;
    int64_t n = 0;

    for (int s = 0; s < m->info.n_shards; s++)
        n += gguf_get_n_tensors(m->shards[s].ctx);
    if (n == 0)
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: no tensors: a vocabulary file, not a model", m->info.path);
    if (n > NK__TENSORS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: %lld tensors; at most %d are possible",
                       m->info.path, (long long)n, NK__TENSORS_MAX);
    if (m->info.n_shards > 1 && nk__kv_uint(m->kv, "split.tensors.count", &said) &&
        said != (uint64_t)n)
        return nk_fail(err, NK_E_INVALID, "bad_gguf",
                       "%s: the shards hold %lld tensors, not %llu as the first one says",
                       m->info.path, (long long)n, (unsigned long long)said);
    m->tensors = calloc((size_t)n, sizeof *m->tensors);
    if (!m->tensors)
        return no_memory(err);
    for (int s = 0; s < m->info.n_shards; s++) {
        const struct nk__gguf *g = &m->shards[s];

        for (int64_t i = 0; i < gguf_get_n_tensors(g->ctx); i++) {
            struct nk__tensor *t = &m->tensors[m->n_tensors++];

            t->name = gguf_get_tensor_name(g->ctx, i);
            t->type = (int)gguf_get_tensor_type(g->ctx, i);
            memcpy(t->ne, gguf_get_tensor_ne(g->ctx, i), sizeof t->ne);
            t->shard = s;
            t->offset = g->data_offset + gguf_get_tensor_offset(g->ctx, i);
            t->size_bytes = gguf_get_tensor_size(g->ctx, i);
            t->layer = layer_of(t->name, &t->rest);
        }
    }
    return m->info.n_shards > 1 ? check_doubles(m, err) : 0;
}

/* An integer of the architecture, the largest element where it is an array per layer; 0 when
 * missing. */
static int uint_or_max(const nk_model *m, const char *key)
{
    struct nk__key k = nk__model_key(m, key);
    uint64_t v = 0;
    int64_t e;

    if (!nk__kv_uint(m->kv, k.text, &v))
        for (size_t i = 0; nk__kv_array_int(m->kv, k.text, i, &e); i++)
            if (e > 0 && (uint64_t)e > v)
                v = (uint64_t)e;
    return v <= INT32_MAX ? (int)v : 0;
}

static void set_quantisation(nk_model *m)
{
    uint64_t ftype, bytes[GGML_TYPE_COUNT] = { 0 };
    int most = 0;

    if (nk__kv_uint(m->kv, "general.file_type", &ftype) && ftype < 1024) {
        const char *name = llama_ftype_name((enum llama_ftype)ftype);

        if (name && !strstr(name, "unknown")) {
            snprintf(m->info.quantisation, sizeof m->info.quantisation, "%s", name);
            return;
        }
    }
    for (int i = 0; i < m->n_tensors; i++)
        bytes[m->tensors[i].type] += m->tensors[i].size_bytes;
    for (int i = 0; i < GGML_TYPE_COUNT; i++)
        if (bytes[i] > bytes[most])
            most = i;
    snprintf(m->info.quantisation, sizeof m->info.quantisation, "%s",
             ggml_type_name((enum ggml_type)most));
}

static void count_bytes(nk_model *m)
{
    struct nk_model_info *in = &m->info;
    uint64_t head = 0;

    for (int i = 0; i < m->n_tensors; i++) {
        const struct nk__tensor *t = &m->tensors[i];

        if (t->layer >= in->n_layer) {
            in->other_bytes += t->size_bytes;
        } else if (t->layer >= 0) {
            in->layer_bytes[t->layer] += t->size_bytes;
        } else if (!strcmp(t->name, "token_embd.weight")) {
            in->embd_bytes = t->size_bytes;
        } else if (!strcmp(t->name, "output.weight") || !strcmp(t->name, "output.bias")) {
            head += t->size_bytes;
        } else {
            in->other_bytes += t->size_bytes;
        }
    }
    in->has_rope_lists = nk__model_tensor(m, "rope_factors_long.weight") != NULL;
    in->tied_embeddings = !nk__model_tensor(m, "output.weight");
    in->head_bytes = in->tied_embeddings ? in->embd_bytes : head;
    nk__model_count_caches(m);
}

static uint64_t row_bytes(const nk_model *m, const char *tensor)
{
    const struct nk__tensor *t = nk__model_tensor(m, tensor);

    return t ? ggml_row_size((enum ggml_type)t->type, t->ne[0]) : 0;
}

static int read_slice_keys(nk_model *m, struct nk_error *err)
{
    struct nk_model_info *in = &m->info;
    uint64_t begin, end, count, embd, head, n_vocab;
    const char *hash = nk__kv_string(m->kv, "nakshatra.model_sha256");

    if (gguf_find_key(m->kv, "nakshatra.layer_range_start") < 0)
        return 0;
    if (!nk__kv_uint(m->kv, "nakshatra.layer_range_start", &begin) ||
        !nk__kv_uint(m->kv, "nakshatra.layer_range_end", &end) ||
        !nk__kv_uint(m->kv, "nakshatra.layer_count", &count) ||
        !nk__kv_uint(m->kv, "nakshatra.n_vocab", &n_vocab) ||
        !nk__kv_uint(m->kv, "nakshatra.has_token_embd", &embd) ||
        !nk__kv_uint(m->kv, "nakshatra.has_lm_head", &head) || !hash ||
        strlen(hash) != NK_SHA256_HEX - 1)
        return nk_fail(err, NK_E_INVALID, "bad_gguf",
                       "%s: a slice whose nakshatra.* keys are not complete", in->path);
    if (begin >= end || end > count || count > NK_LAYERS_MAX ||
        end - begin != (uint64_t)in->n_layer || n_vocab > INT32_MAX ||
        (embd != 0) != (begin == 0) || (head != 0) != (end == count))
        return nk_fail(
            err, NK_E_INVALID, "bad_gguf",
            "%s: a slice that contradicts itself: layers %llu-%llu of %llu, %d of them in the file",
            in->path, (unsigned long long)begin, (unsigned long long)end, (unsigned long long)count,
            in->n_layer);
    in->is_slice = true;
    in->layer_begin = (int)begin;
    in->layer_end = (int)end;
    in->layer_count = (int)count;
    in->has_token_embd = embd;
    in->has_lm_head = head;
    in->n_vocab = (int)n_vocab;
    /* What the header declares there is a stub, or a hole. */
    if (!in->has_lm_head)
        in->head_bytes = 0;
    in->embd_bytes = in->has_token_embd ? n_vocab * row_bytes(m, "token_embd.weight") : 0;
    memcpy(in->model_sha256, hash, NK_SHA256_HEX);
    return 0;
}

static const char *const poolings[] = { "none", "mean", "cls", "last", "rank" };

const char *nk_pooling_text(enum nk_pooling p)
{
    return poolings[p];
}

bool nk_pooling_find(uint64_t number, enum nk_pooling *out)
{
    *out = number <= NK_POOLING_RANK ? (enum nk_pooling)number : NK_POOLING_NONE;
    return number <= NK_POOLING_RANK;
}

static int read_pooling(nk_model *m, struct nk_error *err)
{
    struct nk_model_info *in = &m->info;
    uint64_t v = 0;

    nk__kv_uint(m->kv, nk__model_key(m, "pooling_type").text, &v);
    if (v == UINT32_MAX) /* -1, as llama.cpp writes it where nothing is said */
        v = NK_POOLING_NONE;
    if (!nk_pooling_find(v, &in->pooling))
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %s.pooling_type is %llu; 0 (none) to %d (rank) are possible", in->path,
                       in->architecture, (unsigned long long)v, NK_POOLING_RANK);
    if (in->pooling == NK_POOLING_RANK && !nk__model_tensor(m, "cls.weight") &&
        !nk__model_tensor(m, "cls.output.weight"))
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %s.pooling_type is %d (rank), but there is no classifier: neither "
                       "cls.weight nor cls.output.weight",
                       in->path, in->architecture, NK_POOLING_RANK);
    return 0;
}

static int read_info(nk_model *m, struct nk_error *err)
{
    struct nk_model_info *in = &m->info;
    const char *arch = nk__kv_string(m->kv, "general.architecture");
    const char *name = nk__kv_string(m->kv, "general.name");
    const struct nk__tensor *embd;
    uint64_t n_layer, n_extra = 0;

    if (!arch || !arch[0] || strlen(arch) >= sizeof in->architecture)
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: no architecture is given (general.architecture)", in->path);
    if (strspn(arch, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") !=
        strlen(arch))
        return nk_fail(err, NK_E_INVALID, "bad_arch", "%s: general.architecture is not a name",
                       in->path);
    snprintf(in->architecture, sizeof in->architecture, "%s", arch);
    copy_printable(in->name, sizeof in->name, name && name[0] ? name : m->name);
    if (!nk__kv_uint(m->kv, nk__model_key(m, "block_count").text, &n_layer) || n_layer < 1 ||
        n_layer > NK_LAYERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %s.block_count must be a number from 1 to %d", in->path, arch,
                       NK_LAYERS_MAX);
    /* Layers for predicting several tokens at once are counted in block_count, come last and are
     * never run in ordinary generation. */
    if (nk__kv_uint(m->kv, nk__model_key(m, "nextn_predict_layers").text, &n_extra) &&
        n_extra >= n_layer)
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %llu layers, of which %llu only predict further tokens", in->path,
                       (unsigned long long)n_layer, (unsigned long long)n_extra);
    in->n_layer = (int)(n_layer - n_extra);
    in->n_embd = uint_or_max(m, "embedding_length");
    in->n_head = uint_or_max(m, "attention.head_count");
    in->n_head_kv = uint_or_max(m, "attention.head_count_kv");
    if (!in->n_head_kv)
        in->n_head_kv = in->n_head;
    in->n_ctx_train = uint_or_max(m, "context_length");
    in->n_ctx_orig = uint_or_max(m, "rope.scaling.original_context_length");
    if (!in->n_ctx_orig)
        in->n_ctx_orig = in->n_ctx_train;
    if (read_pooling(m, err))
        return NK_E_INVALID;
    embd = nk__model_tensor(m, "token_embd.weight");
    if (embd && embd->ne[1] <= INT32_MAX)
        in->n_vocab = (int)embd->ne[1];
    if (embd && embd->ne[0] != in->n_embd)
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %s.embedding_length is %d, but token_embd.weight has rows of %lld",
                       in->path, arch, in->n_embd, (long long)embd->ne[0]);
    for (int i = 0; i < m->n_tensors; i++)
        if (m->tensors[i].layer >= (int)n_layer)
            return nk_fail(err, NK_E_INVALID, "bad_arch",
                           "%s: the tensor '%s' is past the last of %llu layers", in->path,
                           m->tensors[i].name, (unsigned long long)n_layer);
    set_quantisation(m);
    in->layer_end = in->layer_count = in->n_layer;
    in->has_token_embd = in->has_lm_head = true;
    count_bytes(m);
    if (!in->layer_bytes[in->n_layer - 1])
        return nk_fail(err, NK_E_INVALID, "bad_arch",
                       "%s: %s.block_count is %llu, but there is no tensor of layer %d", in->path,
                       arch, (unsigned long long)n_layer, in->n_layer - 1);
    nk__arch_learn(m);
    m->info.equal_rows = nk__arch_find(m->info.architecture, NK__EQUAL_ROWS, NULL, NULL) != NULL;
    return read_slice_keys(m, err);
}

static int finish_open(nk_model **out, nk_model *m, int rc, struct nk_error *err)
{
    if (!rc) {
        m->kv = m->shards[0].ctx;
        rc = collect_tensors(m, err);
    }
    if (!rc)
        rc = read_info(m, err);
    if (!rc)
        rc = nk__model_check_sound(m, err);
    if (rc)
        nk_model_close(m);
    else
        *out = m;
    return rc;
}

int nk_model_open(nk_model **out, const char *path, struct nk_error *err)
{
    nk_model *m;
    int rc;

    *out = NULL;
    if (strlen(path) + 32 > sizeof m->info.path)
        return nk_fail(err, NK_E_INVALID, "no_file",
                       "the path has %zu characters; at most %zu are possible", strlen(path),
                       sizeof m->info.path - 32);
    m = calloc(1, sizeof *m);
    if (!m)
        return no_memory(err);
    set_name(m, path);
    rc = finish_open(out, m, open_shards(m, path, err), err);
    if (!rc)
        m->arch_unknown = !m->info.is_slice && !nk__arch_is_known(m->info.architecture);
    return rc;
}

int nk__model_open_memory(nk_model **out, const void *data, size_t size, struct nk_error *err)
{
    nk_model *m = calloc(1, sizeof *m);

    *out = NULL;
    if (m)
        m->shards = calloc(1, sizeof *m->shards);
    if (!m || !m->shards) {
        free(m);
        return no_memory(err);
    }
    m->info.n_shards = 1;
    m->info.file_bytes = size;
    snprintf(m->info.path, sizeof m->info.path, "memory");
    snprintf(m->name, sizeof m->name, "memory");
    return finish_open(out, m, nk__gguf_open_memory(m->shards, "memory", data, size, true, err),
                       err);
}

/* ---- without weights ---- */

/* Files are named after it. */
static int check_name(const char *name, struct nk_error *err)
{
    size_t n = strlen(name);
    bool ok = n > 0 && n <= 200 && name[0] != '.';

    for (size_t i = 0; i < n; i++)
        ok &= (unsigned char)name[i] >= 0x20 && name[i] != 0x7f && name[i] != '/';
    return ok ? 0
              : nk_fail(err, NK_E_INVALID, "bad_name",
                        "a model's name must be 1 to 200 bytes without '/' and control "
                        "characters, and not begin with '.'");
}

/* Would the tensors be within a file of that size? */
static int check_file_bytes(const struct nk__gguf *g, uint64_t file_bytes, struct nk_error *err)
{
    for (int64_t i = 0; i < gguf_get_n_tensors(g->ctx); i++) {
        uint64_t begin = g->data_offset + gguf_get_tensor_offset(g->ctx, i);

        if (begin > file_bytes || gguf_get_tensor_size(g->ctx, i) > file_bytes - begin)
            return nk_fail(err, NK_E_DATA_LOSS, "truncated",
                           "%s: the tensor '%s' begins at byte %llu and has %llu; the file is "
                           "said to have %llu bytes",
                           g->path, gguf_get_tensor_name(g->ctx, i), (unsigned long long)begin,
                           (unsigned long long)gguf_get_tensor_size(g->ctx, i),
                           (unsigned long long)file_bytes);
    }
    return 0;
}

int nk_model_open_heads(nk_model **out, const char *name, const char *sha256,
                        const struct nk_bytes *heads, const uint64_t *file_bytes, int n_shards,
                        struct nk_error *err)
{
    nk_model *m;
    int rc = check_name(name, err);

    *out = NULL;
    if (rc)
        return rc;
    if (n_shards < 1 || n_shards > SHARDS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "%d shards; 1 to %d are possible", n_shards,
                       SHARDS_MAX);
    m = calloc(1, sizeof *m);
    if (m)
        m->shards = calloc((size_t)n_shards, sizeof *m->shards);
    if (!m || !m->shards) {
        free(m);
        return no_memory(err);
    }
    for (int i = 0; i < n_shards; i++)
        m->shards[i] = (struct nk__gguf)NK__GGUF_INIT;
    m->info.n_shards = n_shards;
    snprintf(m->name, sizeof m->name, "%s", name);
    snprintf(m->info.path, sizeof m->info.path, "%s", name);
    for (int i = 0; i < n_shards && !rc; i++) {
        rc = nk__gguf_open_memory(&m->shards[i], name, heads[i].data, heads[i].size, false, err);
        if (!rc)
            rc = check_shard(m, name, i, n_shards, err);
        if (!rc)
            rc = check_file_bytes(&m->shards[i], file_bytes[i], err);
        m->info.file_bytes += file_bytes[i];
    }
    rc = finish_open(out, m, rc, err);
    if (!rc) {
        m->arch_unknown = !m->info.is_slice && !nk__arch_is_known(m->info.architecture);
        snprintf(m->hash, sizeof m->hash, "%s", sha256);
    }
    return rc;
}
