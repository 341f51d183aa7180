/* stretch IN.gguf OUT.gguf N [VARIANT]: a model with the layers of IN repeated until there are N.
 *
 * llama.cpp's generated test models have as few layers as their architecture allows, which
 * leaves few or no places to cut them. A stretched one has many. A repeated layer's tensors are
 * rotated by some elements: still the same distribution of values, but no two layers are the
 * same, so that a slice with the wrong layers in it shows. Per-layer arrays in the metadata are
 * repeated too; numbers that count layers in another way stay as they are. Where the first
 * layers are dense and the rest have experts, only the rest's feed-forward parts are repeated.
 *
 * VARIANT is what generated models do not have, and real ones do:
 *
 *   bare      without the keys that hardly any real file has, so that llama.cpp's defaults count:
 *             which layers have windows or a state, RoPE's, and whatever is zero
 *   nextn     a further block that predicts the token after the next
 *   longrope  for models with two lists of RoPE factors, an original context that is short: the
 *             long list is used
 *   yarn, linear  scaled RoPE */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ggml.h>
#include <gguf.h>

/* Arrays whose length may happen to be the number of layers, but that are not per layer. */
static bool is_per_layer(const char *key, const char *arch)
{
    size_t n = strlen(arch);

    return !strncmp(key, arch, n) && key[n] == '.' && !strstr(key, ".rope.") &&
           !strstr(key, ".hash_");
}

/* Which layer of IN layer j of OUT is made of. */
struct plan {
    int n_in, n_out, n_dense; /* n_dense: leading dense layers */
    int n_blocks;             /* n_out, and those for further tokens */
};

static int source_of(const struct plan *p, int j, bool is_ffn)
{
    if (!is_ffn || j < p->n_dense || p->n_dense >= p->n_in)
        return j % p->n_in;
    return p->n_dense + (j - p->n_dense) % (p->n_in - p->n_dense);
}

static bool is_ffn(const char *name)
{
    return strstr(name, "ffn_") || strstr(name, "exp_probs") || strstr(name, "feed_forward") ||
           strstr(name, "expert");
}

static void repeat_array(struct gguf_context *out, const struct gguf_context *in, int64_t id,
                         const struct plan *p)
{
    const char *key = gguf_get_key(in, id);
    enum gguf_type type = gguf_get_arr_type(in, id);
    size_t size =
        type == GGUF_TYPE_BOOL || type == GGUF_TYPE_UINT8 || type == GGUF_TYPE_INT8 ? 1 : 4;
    const char *data;
    char *repeated;

    if (type == GGUF_TYPE_STRING || type == GGUF_TYPE_UINT64 || type == GGUF_TYPE_INT64 ||
        type == GGUF_TYPE_FLOAT64)
        return;
    data = gguf_get_arr_data(in, id);
    repeated = malloc(size * (size_t)p->n_blocks);
    for (int i = 0; i < p->n_blocks; i++)
        memcpy(repeated + size * (size_t)i, data + size * (size_t)source_of(p, i, is_ffn(key)),
               size);
    gguf_set_arr_data(out, key, type, repeated, (size_t)p->n_blocks);
    free(repeated);
}

static void add_tensor(struct gguf_context *out, struct ggml_context *ctx,
                       const struct ggml_tensor *t, const char *name, int turn)
{
    struct ggml_tensor *copy = ggml_dup_tensor(ctx, t);
    size_t size = ggml_nbytes(t), by = 0;

    if (turn && ggml_blck_size(t->type) == 1 && size)
        by = (size_t)turn * 1031 * ggml_type_size(t->type) % size;
    memcpy(copy->data, (const char *)t->data + by, size - by);
    memcpy((char *)copy->data + size - by, t->data, by);
    ggml_set_name(copy, name);
    gguf_add_tensor(out, copy);
}

static int get_int(const struct gguf_context *in, const char *arch, const char *name)
{
    char key[256];
    int64_t id;

    snprintf(key, sizeof key, "%s.%s", arch, name);
    id = gguf_find_key(in, key);
    return id < 0 || gguf_get_kv_type(in, id) != GGUF_TYPE_UINT32 ? 0
                                                                  : (int)gguf_get_val_u32(in, id);
}

static void set_key(char out[256], const char *arch, const char *name)
{
    snprintf(out, 256, "%s.%s", arch, name);
}

static bool is_zero(const struct gguf_context *g, int64_t id)
{
    switch (gguf_get_kv_type(g, id)) {
    case GGUF_TYPE_UINT32:
        return !gguf_get_val_u32(g, id);
    case GGUF_TYPE_FLOAT32:
        return gguf_get_val_f32(g, id) == 0;
    case GGUF_TYPE_BOOL:
        return !gguf_get_val_bool(g, id);
    default:
        return false;
    }
}

static void make_bare(struct gguf_context *g, const char *arch)
{
    static const char *const rare[] = {
        "attention.sliding_window_pattern",
        "attention.recurrent_layers",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
        "rope.freq_base",
        "rope.freq_base_swa",
        "vocab_size",
    };
    size_t n_arch = strlen(arch);
    char key[256];

    for (size_t i = 0; i < sizeof rare / sizeof rare[0]; i++) {
        set_key(key, arch, rare[i]);
        gguf_remove_key(g, key);
    }
    for (int64_t i = gguf_get_n_kv(g) - 1; i >= 0; i--) {
        snprintf(key, sizeof key, "%s", gguf_get_key(g, i));
        if (!strncmp(key, arch, n_arch) && key[n_arch] == '.' && is_zero(g, i))
            gguf_remove_key(g, key);
    }
}

static void scale_rope(struct gguf_context *g, const char *arch, const char *type, float factor,
                       int n_ctx_orig)
{
    char key[256];

    set_key(key, arch, "rope.scaling.type");
    gguf_set_val_str(g, key, type);
    set_key(key, arch, "rope.scaling.factor");
    gguf_set_val_f32(g, key, factor);
    set_key(key, arch, "rope.scaling.original_context_length");
    gguf_set_val_u32(g, key, (uint32_t)n_ctx_orig);
}

static void add_numbers(struct gguf_context *out, struct ggml_context *ctx, const char *name,
                        int64_t ne0, int64_t ne1, float from, float by)
{
    struct ggml_tensor *t = ne1 ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1)
                                : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ne0);

    for (int64_t i = 0; i < ggml_nelements(t); i++)
        ((float *)t->data)[i] = from + by * (float)(i % 7);
    ggml_set_name(t, name);
    gguf_add_tensor(out, t);
}

/* What a variant changes in the metadata; false: there is none of this name. */
static bool vary(struct gguf_context *g, const char *arch, const char *variant,
                 const struct plan *p)
{
    char key[256];

    if (!strcmp(variant, "bare")) {
        make_bare(g, arch);
    } else if (!strcmp(variant, "yarn") || !strcmp(variant, "linear")) {
        scale_rope(g, arch, variant, 4, 64);
    } else if (!strcmp(variant, "longrope")) {
        scale_rope(g, arch, variant, 1, 64);
    } else if (!strcmp(variant, "nextn")) {
        set_key(key, arch, "block_count");
        gguf_set_val_u32(g, key, (uint32_t)p->n_blocks);
        set_key(key, arch, "nextn_predict_layers");
        gguf_set_val_u32(g, key, 1);
    } else {
        return !*variant;
    }
    return true;
}

static void add_nextn(struct gguf_context *out, struct ggml_context *ctx, int n_embd, int block)
{
    char name[64];

    snprintf(name, sizeof name, "blk.%d.nextn.eh_proj.weight", block);
    add_numbers(out, ctx, name, 2 * n_embd, n_embd, -0.03f, 0.01f);
    snprintf(name, sizeof name, "blk.%d.nextn.enorm.weight", block);
    add_numbers(out, ctx, name, n_embd, 0, 1, 0.01f);
    snprintf(name, sizeof name, "blk.%d.nextn.hnorm.weight", block);
    add_numbers(out, ctx, name, n_embd, 0, 1, 0.01f);
}

int main(int argc, char **argv)
{
    struct ggml_context *in_ctx = NULL, *out_ctx;
    struct gguf_init_params params = { .no_alloc = false, .ctx = &in_ctx };
    struct gguf_context *in, *out = gguf_init_empty();
    struct plan p = { .n_out = argc >= 4 ? atoi(argv[3]) : 0 };
    char key[256];
    const char *arch, *variant = argc == 5 ? argv[4] : "";
    int64_t id;

    if (argc < 4 || argc > 5 || p.n_out < 1 || p.n_out > 1000) {
        fprintf(stderr, "usage: stretch IN.gguf OUT.gguf LAYERS [VARIANT]\n");
        return 2;
    }
    in = gguf_init_from_file(argv[1], params);
    if (!in || (id = gguf_find_key(in, "general.architecture")) < 0) {
        fprintf(stderr, "stretch: %s is no GGUF model\n", argv[1]);
        return 1;
    }
    arch = gguf_get_val_str(in, id);
    p.n_in = get_int(in, arch, "block_count");
    p.n_blocks = p.n_out + !strcmp(variant, "nextn");
    p.n_dense = get_int(in, arch, "leading_dense_block_count");
    if (p.n_in < 1 || p.n_out % p.n_in) {
        fprintf(stderr, "stretch: %s has %d layers, which do not divide %d\n", argv[1], p.n_in,
                p.n_out);
        return 1;
    }
    gguf_set_kv(out, in);
    snprintf(key, sizeof key, "%s.block_count", arch);
    gguf_set_val_u32(out, key, (uint32_t)p.n_out);
    for (int64_t i = 0; i < gguf_get_n_kv(in); i++)
        if (gguf_get_kv_type(in, i) == GGUF_TYPE_ARRAY && (int)gguf_get_arr_n(in, i) == p.n_in &&
            is_per_layer(gguf_get_key(in, i), arch))
            repeat_array(out, in, i, &p);
    if (!vary(out, arch, variant, &p)) {
        fprintf(stderr, "stretch: there is no variant %s\n", variant);
        return 2;
    }
    /* With one dense layer and one with experts, all that are added are as large as the larger. */
    out_ctx = ggml_init((struct ggml_init_params){
        .mem_size = ggml_get_mem_size(in_ctx) * (size_t)p.n_blocks + (16 << 20) });
    for (struct ggml_tensor *t = ggml_get_first_tensor(in_ctx); t;
         t = ggml_get_next_tensor(in_ctx, t)) {
        int layer, end = 0, turn = 0;
        char name[GGML_MAX_NAME];

        if (!strcmp(t->name, "GGUF tensor data binary blob"))
            continue;
        if (sscanf(t->name, "blk.%d.%n", &layer, &end) != 1 || !end) {
            add_tensor(out, out_ctx, t, t->name, 0);
            continue;
        }
        for (int j = 0; j < p.n_blocks; j++) {
            if (source_of(&p, j, is_ffn(t->name)) != layer ||
                (j >= p.n_out &&
                 strstr(t->name, "scale"))) /* llama.cpp knows none of these there */
                continue;
            snprintf(name, sizeof name, "blk.%d.%.40s", j, t->name + end);
            add_tensor(out, out_ctx, t, name, turn++);
        }
    }
    if (p.n_blocks > p.n_out)
        add_nextn(out, out_ctx, get_int(in, arch, "embedding_length"), p.n_out);
    if (!gguf_write_to_file(out, argv[2], false)) {
        fprintf(stderr, "stretch: cannot write %s\n", argv[2]);
        return 1;
    }
    gguf_free(in);
    gguf_free(out);
    ggml_free(in_ctx);
    ggml_free(out_ctx);
    return 0;
}
