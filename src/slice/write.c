/* Writing slices: the general recipe. What is peculiar to an architecture is in arch.c.
 *
 * A slice holds the layers [begin, end) of a model as layers 0 .. end-begin of a small complete
 * model:
 *
 *   - blk.<i> is renamed to blk.<i-begin>; <arch>.block_count is the count; arrays with one element
 *     per layer are cut.
 *   - Tensors that belong to no layer are in every slice: llama.cpp wants them to be there, layers
 *     read some of them (rope_freqs: without it RoPE is wrong past the original context, and nobody
 *     notices on short prompts), and they are small. Not so token_embd and output, whose size goes
 *     with the vocabulary:
 *   - Only the last slice has the vocabulary. The others have the tokenizer "none" with STUB_ROWS
 *     tokens, and token_embd, output and output.bias cut to that many rows.
 *   - token_embd.weight is the last tensor of every slice. In the first slice the *file* goes on
 *     with the rows past the stub: all of the source's rows are there, one after the other, from
 *     the tensor's offset on, nakshatra.n_vocab of them. llama.cpp reads the rows that the header
 *     declares and does not look at bytes behind the last tensor; we look embeddings up in all of
 *     them (slice/embd.c). So a slice is one file, and no row is in it twice.
 *   - The last slice's token_embd is complete where the output layer shares it (tied embeddings).
 *     Elsewhere only its shape matters, since rows enter behind it: a hole in the file, which takes
 *     no space.
 *   - A range that is the whole model is the whole model: nothing is cut.
 *   - The file ends with its seal, the digests of its parts (seal_int.h).
 *
 * Every slice has these keys:
 *
 *   nakshatra.layer_range_start, .layer_range_end   u32     begin and end
 *   nakshatra.layer_count, .n_vocab                 u32     the source's
 *   nakshatra.slice_format                          u32     NK__SLICE_FORMAT
 *   nakshatra.has_token_embd, .has_lm_head          bool
 *   nakshatra.model_sha256, .model_name             string  the source's */
#include "slice/slice.h"

#include <ggml.h>
#include <gguf.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slice/arch_int.h"
#include "slice/model_int.h"
#include "slice/random_int.h"
#include "slice/write_int.h"

enum { STUB_ROWS = 32, META_MAX = 1 << 27, HEADER_MAX = 1 << 29 };

struct piece {
    const struct nk__tensor *source;
    char name[GGML_MAX_NAME];
    int64_t ne[4];       /* as declared */
    uint64_t size_bytes; /* as declared */
    uint64_t copy_bytes; /* of the source's data; 0: a hole */
};

/* A file about to be written: its header, and what follows. */
struct plan {
    const nk_model *m;
    struct nk_range range; /* 0-0: the vocabulary file */
    bool first, last, vocab;
    int n_stub; /* rows of the stub vocabulary */
    struct gguf_context *kv;
    struct piece *pieces;
    int n_pieces;
    uint64_t alignment;
};

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

static void remove_prefix(struct gguf_context *kv, const char *prefix)
{
    for (int64_t i = gguf_get_n_kv(kv) - 1; i >= 0; i--) {
        const char *key = gguf_get_key(kv, i);

        if (!strncmp(key, prefix, strlen(prefix)) &&
            strcmp(key, "tokenizer.ggml.token_type_count") != 0) {
            char copy[256];

            snprintf(copy, sizeof copy, "%s", key);
            gguf_remove_key(kv, copy);
        }
    }
}

static void set_u32(struct plan *p, const char *key, int value)
{
    gguf_set_val_u32(p->kv, nk__model_key(p->m, key).text, (uint32_t)value);
}

static void cut_array(struct plan *p, const char *key, int64_t id)
{
    const struct gguf_context *from = p->m->kv;
    enum gguf_type type = gguf_get_arr_type(from, id);
    size_t count = (size_t)(p->range.end - p->range.begin);

    NK_ASSERT((size_t)p->range.end <= gguf_get_arr_n(from, id));

    if (type == GGUF_TYPE_STRING) {
        const char *strings[NK_LAYERS_MAX];

        for (size_t i = 0; i < count; i++)
            strings[i] = gguf_get_arr_str(from, id, (size_t)p->range.begin + i);
        gguf_set_arr_str(p->kv, key, strings, count);
    } else {
        const char *data = gguf_get_arr_data(from, id);
        size_t size;

        switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            size = 1;
            break;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            size = 2;
            break;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64:
            size = 8;
            break;
        default:
            size = 4;
        }
        gguf_set_arr_data(p->kv, key, type, data + (size_t)p->range.begin * size, count);
    }
}

/* Is this an array with one element per layer? Under the architecture's own prefix, one that is as
 * long as block_count says. */
static bool is_per_layer(const nk_model *m, int64_t id)
{
    const char *key = gguf_get_key(m->kv, id), *arch = m->info.architecture;
    size_t prefix = strlen(arch), n;
    uint64_t n_block = 0;

    if (gguf_get_kv_type(m->kv, id) != GGUF_TYPE_ARRAY)
        return false;
    n = gguf_get_arr_n(m->kv, id);
    nk__kv_uint(m->kv, nk__model_key(m, "block_count").text, &n_block);
    if (n != n_block && n != (size_t)m->info.n_layer)
        return false;
    if (nk__arch_find(arch, NK__PER_LAYER, key, NULL))
        return true;
    return !strncmp(key, arch, prefix) && key[prefix] == '.' &&
           !nk__arch_find(arch, NK__NOT_PER_LAYER, key + prefix + 1, NULL);
}

static void cut_arrays(struct plan *p)
{
    for (int64_t i = 0; i < gguf_get_n_kv(p->m->kv); i++)
        if (is_per_layer(p->m, i))
            cut_array(p, gguf_get_key(p->m->kv, i), i);
}

/* Elements that llama.cpp derives sizes from although the layer itself has none. */
static void fill_first(struct plan *p)
{
    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(p->m->info.architecture, NK__FILL_FIRST, NULL, row));) {
        struct nk__key key = nk__model_key(p->m, row->key);
        size_t n = (size_t)(p->range.end - p->range.begin);
        uint32_t values[NK_LAYERS_MAX];
        int64_t v, first, here;

        if (!nk__kv_array_int(p->m->kv, key.text, (size_t)p->range.begin, &here) || here ||
            !nk__kv_array_int(p->m->kv, key.text, 0, &first))
            continue;
        for (size_t i = 0; i < n; i++)
            values[i] = nk__kv_array_int(p->m->kv, key.text, (size_t)p->range.begin + i, &v)
                            ? (uint32_t)v
                            : 0;
        values[0] = (uint32_t)first;
        gguf_set_arr_data(p->kv, key.text, GGUF_TYPE_UINT32, values, n);
    }
}

/* Patterns by layer number, said layer by layer; the whole model needs no such help. */
static void write_patterns(struct plan *p)
{
    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(p->m->info.architecture, NK__PATTERN, NULL, row)) &&
         !(p->first && p->last);) {
        struct nk__key key = nk__model_key(p->m, row->key);
        uint32_t values[NK_LAYERS_MAX];
        bool in_use = nk__kv_array_n(p->m->kv, key.text) < 0;

        for (int i = p->range.begin; i < p->range.end && in_use; i++) {
            bool value = false; /* set where the pattern is in use */

            in_use = nk__arch_pattern(p->m, row, i, &value);
            values[i - p->range.begin] = value;
        }
        if (in_use)
            gguf_set_arr_data(p->kv, key.text, GGUF_TYPE_UINT32, values,
                              (size_t)(p->range.end - p->range.begin));
    }
}

static void shift_keys(struct plan *p)
{
    const char *arch = p->m->info.architecture;
    int count = p->range.end - p->range.begin;

    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(arch, NK__SHIFT, NULL, row));) {
        uint64_t v;
        int64_t shifted;

        if (!nk__kv_uint(p->m->kv, nk__model_key(p->m, row->key).text, &v))
            continue;
        shifted = (v > NK_LAYERS_MAX ? NK_LAYERS_MAX : (int64_t)v) - p->range.begin;
        set_u32(p, row->key, shifted < 0 ? 0 : shifted > count ? count : (int)shifted);
    }
    for (const struct nk__arch_row *row = NULL; (row = nk__arch_find(arch, NK__SET, NULL, row));)
        if (gguf_find_key(p->m->kv, nk__model_key(p->m, row->key).text) >= 0)
            set_u32(p, row->key, row->n);
}

/* What llama.cpp would take for granted of a slice otherwise than of the model. */
static void write_defaults(struct plan *p)
{
    const char *arch = p->m->info.architecture;

    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(arch, NK__DEFAULT, NULL, row));)
        if (gguf_find_key(p->m->kv, nk__model_key(p->m, row->key).text) < 0)
            set_u32(p, row->key, row->n);
    for (const struct nk__arch_row *row = NULL;
         (row = nk__arch_find(arch, NK__DEFAULT_SCALE, NULL, row));) {
        struct nk__key key = nk__model_key(p->m, row->key);

        /* In single precision, as llama.cpp computes it. */
        if (gguf_find_key(p->m->kv, key.text) < 0)
            gguf_set_val_f32(p->kv, key.text,
                             (float)row->n / 10.0f / sqrtf((float)p->m->info.n_layer));
    }
}

static void plan_kv(struct plan *p, const char *model_sha256)
{
    const struct nk_model_info *in = &p->m->info;

    gguf_set_kv(p->kv, p->m->kv);
    remove_prefix(p->kv, "split.");
    remove_prefix(p->kv, "nakshatra.");
    gguf_set_val_u32(p->kv, "nakshatra.slice_format", NK__SLICE_FORMAT);
    gguf_set_val_u32(p->kv, "nakshatra.layer_count", (uint32_t)in->n_layer);
    gguf_set_val_u32(p->kv, "nakshatra.n_vocab", (uint32_t)in->n_vocab);
    gguf_set_val_str(p->kv, "nakshatra.model_sha256", model_sha256);
    gguf_set_val_str(p->kv, "nakshatra.model_name", in->name);
    if (p->vocab)
        return;
    gguf_set_val_u32(p->kv, "nakshatra.layer_range_start", (uint32_t)p->range.begin);
    gguf_set_val_u32(p->kv, "nakshatra.layer_range_end", (uint32_t)p->range.end);
    gguf_set_val_bool(p->kv, "nakshatra.has_token_embd", p->first);
    gguf_set_val_bool(p->kv, "nakshatra.has_lm_head", p->last);
    set_u32(p, "block_count", p->range.end - p->range.begin);
    cut_arrays(p);
    fill_first(p);
    write_patterns(p);
    shift_keys(p);
    write_defaults(p);
    if (!p->last) {
        remove_prefix(p->kv, "tokenizer.");
        gguf_set_val_str(p->kv, "tokenizer.ggml.model", "none");
        set_u32(p, "vocab_size", p->n_stub);
    }
}

/* The declared size, from shape and type. */
static uint64_t declared_bytes(const struct piece *p)
{
    uint64_t rows = 1;

    for (int i = 1; i < 4; i++)
        rows *= (uint64_t)p->ne[i];
    return rows * ggml_row_size((enum ggml_type)p->source->type, p->ne[0]);
}

static bool is_in(const struct plan *p, const struct nk__tensor *t)
{
    return t->layer < 0 || (t->layer >= p->range.begin && t->layer < p->range.end);
}

static void plan_tensor(struct plan *p, const struct nk__tensor *t)
{
    struct piece *q = &p->pieces[p->n_pieces++];
    bool embd = !strcmp(t->name, "token_embd.weight");

    q->source = t;
    memcpy(q->ne, t->ne, sizeof q->ne);
    if (t->layer >= 0)
        snprintf(q->name, sizeof q->name, "blk.%d.%s", t->layer - p->range.begin, t->rest);
    else
        snprintf(q->name, sizeof q->name, "%s", t->name);
    if (!p->last) {
        if (embd || !strcmp(t->name, "output.weight"))
            q->ne[1] = p->n_stub;
        else if (!strcmp(t->name, "output.bias"))
            q->ne[0] = p->n_stub;
    }
    q->size_bytes = declared_bytes(q);
    q->copy_bytes = q->size_bytes;
    if (embd && p->first)
        q->copy_bytes = t->size_bytes; /* the rows past the stub follow */
    else if (embd && p->last && !p->m->info.tied_embeddings)
        q->copy_bytes = 0;
}

/* In the source's order, token_embd.weight last. */
static int plan_tensors(struct plan *p, struct nk_error *err)
{
    const struct nk__tensor *embd = nk__model_tensor(p->m, "token_embd.weight");

    p->pieces = calloc((size_t)p->m->n_tensors, sizeof *p->pieces);
    if (!p->pieces)
        return no_memory(err);
    for (int i = 0; i < p->m->n_tensors; i++)
        if (&p->m->tensors[i] != embd && is_in(p, &p->m->tensors[i]))
            plan_tensor(p, &p->m->tensors[i]);
    plan_tensor(p, embd);
    for (int i = 0; i < p->n_pieces; i++) {
        struct ggml_tensor t = { .type = (enum ggml_type)p->pieces[i].source->type };

        memcpy(t.ne, p->pieces[i].ne, sizeof t.ne);
        t.nb[0] = ggml_type_size(t.type);
        t.nb[1] = ggml_row_size(t.type, t.ne[0]);
        for (int d = 2; d < GGML_MAX_DIMS; d++)
            t.nb[d] = t.nb[d - 1] * (size_t)t.ne[d - 1];
        ggml_set_name(&t, p->pieces[i].name);
        gguf_add_tensor(p->kv, &t);
    }
    return 0;
}

static void plan_release(struct plan *p)
{
    gguf_free(p->kv);
    free(p->pieces);
}

static int plan_make(struct plan *p, const nk_model *m, struct nk_range range,
                     const char *model_sha256, struct nk_error *err)
{
    uint64_t alignment;

    *p = (struct plan){ .m = m, .range = range, .vocab = range.end == 0 };
    p->first = !p->vocab && range.begin == 0;
    p->last = !p->vocab && range.end == m->info.n_layer;
    p->n_stub = m->info.n_vocab < STUB_ROWS ? m->info.n_vocab : STUB_ROWS;
    p->kv = gguf_init_empty();
    if (!p->kv)
        return no_memory(err);
    plan_kv(p, model_sha256);
    p->alignment =
        nk__kv_uint(p->kv, "general.alignment", &alignment) ? alignment : GGUF_DEFAULT_ALIGNMENT;
    return p->vocab ? 0 : plan_tensors(p, err);
}

static int add_padding(nk__stream *s, uint64_t alignment, struct nk_error *err)
{
    return nk__stream_zeros(s, (alignment - nk__stream_size(s) % alignment) % alignment, err);
}

/* Where a header goes: into a file, as a stream that takes no memory, or into memory. */
struct sink {
    nk__stream *stream;
    struct nk_buf *buf;
};

static int put(const struct sink *k, const void *data, size_t n, struct nk_error *err)
{
    return k->stream ? nk__stream_add(k->stream, data, n, err) : nk_buf_add(k->buf, data, n, err);
}

static int put_source(const struct sink *k, const struct nk__source *source, uint64_t begin,
                      uint64_t n, struct nk_error *err)
{
    char *where;
    int rc;

    if (k->stream)
        return nk__stream_copy(k->stream, source, begin, n, err);
    rc = nk_buf_reserve(k->buf, (size_t)n, &where, err);
    if (!rc)
        rc = nk__source_read(source, begin, where, (size_t)n, err);
    if (!rc)
        nk_buf_commit(k->buf, (size_t)n);
    return rc;
}

static int put_padding(const struct sink *k, uint64_t alignment, struct nk_error *err)
{
    static const uint8_t zeros[64];
    size_t left;
    int rc = 0;

    if (k->stream)
        return add_padding(k->stream, alignment, err);
    left = (size_t)((alignment - k->buf->size % alignment) % alignment);
    for (size_t n; left && !rc; left -= n) {
        n = left < sizeof zeros ? left : sizeof zeros;
        rc = nk_buf_add(k->buf, zeros, n, err);
    }
    return rc;
}

/* The header: what gguf.h makes of the plan, with the tokenizer's arrays, as the bytes they are in
 * the source, put before the other keys where the file has a vocabulary. */
static int put_header(const struct plan *p, const struct sink *k, struct nk_error *err)
{
    const struct nk__gguf *source = &p->m->shards[0];
    size_t size = gguf_get_meta_size(p->kv);
    uint8_t *meta = size <= META_MAX ? malloc(size) : NULL;
    struct nk__gguf g = NK__GGUF_INIT;
    uint64_t n_kv;
    int rc;

    if (!meta)
        return no_memory(err);
    gguf_get_meta_data(p->kv, meta);
    /* Finds where its padding begins. */
    rc = nk__gguf_open_memory(&g, "the new slice's header", meta, size, false, err);
    if (!rc && (p->last || p->vocab)) {
        memcpy(&n_kv, meta + 16, sizeof n_kv);
        n_kv += (uint64_t)source->n_heavy;
        memcpy(meta + 16, &n_kv, sizeof n_kv);
    }
    if (!rc)
        rc = put(k, meta, 24, err);
    for (int i = 0; i < source->n_heavy && (p->last || p->vocab) && !rc; i++)
        rc = put_source(k, &source->source, source->heavy[i].begin,
                        source->heavy[i].end - source->heavy[i].begin, err);
    if (!rc)
        rc = put(k, meta + 24, (size_t)g.header_end - 24, err);
    if (!rc)
        rc = put_padding(k, p->alignment, err);
    nk__gguf_close(&g);
    free(meta);
    return rc;
}

static int header_bytes(const struct plan *p, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    nk_buf_init(out, HEADER_MAX);
    rc = put_header(p, &(struct sink){ .buf = out }, err);
    if (rc)
        nk_buf_release(out);
    return rc;
}

static int write_header(const struct plan *p, nk__stream *s, struct nk_error *err)
{
    int rc = nk__stream_part(s, "header", false, err);

    return rc ? rc : put_header(p, &(struct sink){ .stream = s }, err);
}

static int write_pieces(const struct plan *p, nk__stream *s, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; i < p->n_pieces && !rc; i++) {
        const struct piece *q = &p->pieces[i];

        rc = nk__stream_part(s, q->source->name, !q->copy_bytes, err);
        if (!rc && q->copy_bytes)
            rc = nk__stream_copy(s, &p->m->shards[q->source->shard].source, q->source->offset,
                                 q->copy_bytes, err);
        else if (!rc)
            rc = nk__stream_zeros(s, q->size_bytes, err);
        if (!rc)
            rc = add_padding(s, p->alignment, err);
        if (rc)
            nk_wrap(rc, err, "copying the tensor '%s'", q->source->name);
    }
    return rc;
}

int nk__slice_bytes(const nk_model *m, struct nk_range range, uint64_t *bytes, struct nk_error *err)
{
    struct plan p;
    int rc = plan_make(&p, m, range, "", err);

    *bytes = 0;
    for (int i = 0; !rc && i < p.n_pieces; i++)
        *bytes += p.pieces[i].copy_bytes;
    plan_release(&p);
    return rc;
}

int nk__slice_write(const nk_model *m, struct nk_range range, const char *model_sha256,
                    const char *path, char *sha256, uint64_t *size_bytes, nk__tick tick, void *user,
                    struct nk_error *err)
{
    struct nk_newfile file = NK_NEWFILE_INIT;
    nk__stream *s = NULL;
    struct plan p;
    int rc = plan_make(&p, m, range, model_sha256, err);

    if (!rc && path)
        rc = nk_newfile_open(&file, path, err);
    if (!rc)
        rc = nk__stream_new(&s, path ? &file : NULL, NK__HASH_PARTS | (sha256 ? NK__HASH_WHOLE : 0),
                            tick, user, err);
    if (!rc)
        rc = write_header(&p, s, err);
    if (!rc)
        rc = write_pieces(&p, s, err);
    if (!rc)
        rc = nk__stream_seal(s, err);
    if (!rc)
        rc = nk__stream_finish(s, sha256, err);
    if (!rc)
        rc = nk_model_check_unchanged(m, err);
    if (!rc && path)
        rc = nk_newfile_commit(&file, err);
    if (!rc && size_bytes)
        *size_bytes = nk__stream_size(s);
    nk__stream_free(s);
    nk_newfile_abort(&file);
    plan_release(&p);
    return rc;
}

int nk_slice_write(nk_model *m, struct nk_range range, const char *model_sha256, const char *path,
                   char *sha256, struct nk_error *err)
{
    int rc = nk__model_check_whole(m, err);

    if (!rc)
        rc = nk_ranges_check(m, &range, 1, false, err);
    return rc ? rc : nk__slice_write(m, range, model_sha256, path, sha256, NULL, NULL, NULL, err);
}

/* ---- without the weights ---- */

static int write_hollow(const struct plan *p, nk__stream *s, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; i < p->n_pieces && !rc; i++) {
        const struct piece *q = &p->pieces[i];

        rc = nk__stream_zeros(s, q->copy_bytes ? q->copy_bytes : q->size_bytes, err);
        if (!rc)
            rc = add_padding(s, p->alignment, err);
    }
    return rc;
}

static int write_random(const struct plan *p, nk__stream *s, struct nk_error *err)
{
    uint8_t *data = malloc(NK__RANDOM_BYTES_MAX);
    nk__random *random = NULL;
    int rc = data ? nk__random_new(&random, err) : no_memory(err);

    for (int i = 0; i < p->n_pieces && !rc; i++) {
        const struct piece *q = &p->pieces[i];
        uint64_t left = q->copy_bytes ? q->size_bytes : 0;

        while (left && !rc) {
            size_t n = nk__random_draw(random, q->source, left, data);

            rc = n ? nk__stream_add(s, data, n, err) : no_memory(err);
            left -= n;
        }
        /* A hole's bytes, or the rows past the stub, which libllama does not read. */
        if (!rc && !q->copy_bytes)
            rc = nk__stream_zeros(s, q->size_bytes, err);
        else if (!rc)
            rc = nk__stream_zeros(s, q->copy_bytes - q->size_bytes, err);
        if (!rc)
            rc = add_padding(s, p->alignment, err);
    }
    nk__random_free(random);
    free(data);
    return rc;
}

static int write_weightless(const nk_model *m, struct nk_range range, int fd, const char *path,
                            int (*write)(const struct plan *, nk__stream *, struct nk_error *),
                            struct nk_error *err)
{
    static const char no_hash[] =
        "0000000000000000000000000000000000000000000000000000000000000000"; /* of no model */
    struct nk_newfile file = { fd, (char *)(uintptr_t)path, NULL };
    nk__stream *s = NULL;
    struct plan p = { 0 };
    int rc = nk__model_check_whole(m, err);

    if (!rc)
        rc = nk_ranges_check(m, &range, 1, false, err);
    if (rc)
        return rc;
    rc = plan_make(&p, m, range, no_hash, err);
    if (!rc)
        rc = nk__stream_new(&s, &file, 0, NULL, NULL, err);
    if (!rc)
        rc = write_header(&p, s, err);
    if (!rc)
        rc = write(&p, s, err);
    if (!rc)
        rc = nk__stream_finish(s, NULL, err);
    nk__stream_free(s);
    plan_release(&p);
    return rc;
}

int nk_slice_write_random(const nk_model *m, struct nk_range range, int fd, const char *path,
                          struct nk_error *err)
{
    return write_weightless(m, range, fd, path, write_random, err);
}

int nk_slice_write_hollow(const nk_model *m, struct nk_range range, int fd, const char *path,
                          struct nk_error *err)
{
    return write_weightless(m, range, fd, path, write_hollow, err);
}

/* ---- layout ---- */

int nk_slice_layout_new(struct nk_slice_layout **out, const nk_model *m, struct nk_range range,
                        struct nk_error *err)
{
    struct nk_slice_layout *l;
    struct plan p;
    int rc = nk__model_check_whole(m, err);

    *out = NULL;
    NK_ASSERT(m->hash[0]);
    if (!rc && range.end)
        rc = nk_ranges_check(m, &range, 1, false, err);
    if (rc)
        return rc;
    l = calloc(1, sizeof *l);
    if (!l)
        return no_memory(err);
    l->m = m;
    l->range = range;
    rc = plan_make(&p, m, range, m->hash, err);
    if (!rc)
        rc = header_bytes(&p, &l->header, err);
    if (!rc) {
        l->tensors = calloc((size_t)p.n_pieces + 1, sizeof *l->tensors);
        rc = l->tensors ? 0 : no_memory(err);
    }
    l->seal_at = l->header.size;
    for (int i = 0; i < p.n_pieces && !rc; i++) {
        const struct piece *q = &p.pieces[i];
        uint64_t size = q->copy_bytes ? q->copy_bytes : q->size_bytes;

        l->tensors[l->n_tensors++] = (struct nk_slice_tensor){
            .tensor = (int)(q->source - m->tensors),
            .at = l->seal_at,
            .size_bytes = size,
            .copy_bytes = q->copy_bytes,
        };
        l->seal_at += (size + p.alignment - 1) / p.alignment * p.alignment;
    }
    plan_release(&p);
    if (rc)
        nk_slice_layout_free(l);
    else
        *out = l;
    return rc;
}
