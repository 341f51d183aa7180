/* stretch IN.gguf OUT.gguf N: a model with the layers of IN repeated until there are N.
 *
 * llama.cpp's generated test models have as few layers as their architecture allows, which
 * leaves few or no places to cut them. A stretched one has many. A repeated layer's tensors are
 * rotated by some elements: still the same distribution of values, but no two layers are the
 * same, so that a slice with the wrong layers in it shows. Per-layer arrays in the metadata are
 * repeated too; numbers that count layers in another way stay as they are. Where the first
 * layers are dense and the rest have experts, only the rest's feed-forward parts are repeated. */
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
    repeated = malloc(size * (size_t)p->n_out);
    for (int i = 0; i < p->n_out; i++)
        memcpy(repeated + size * (size_t)i, data + size * (size_t)source_of(p, i, is_ffn(key)),
               size);
    gguf_set_arr_data(out, key, type, repeated, (size_t)p->n_out);
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

int main(int argc, char **argv)
{
    struct ggml_context *in_ctx = NULL, *out_ctx;
    struct gguf_init_params params = { .no_alloc = false, .ctx = &in_ctx };
    struct gguf_context *in, *out = gguf_init_empty();
    struct plan p = { .n_out = argc == 4 ? atoi(argv[3]) : 0 };
    char key[256];
    const char *arch;
    int64_t id;

    if (argc != 4 || p.n_out < 1 || p.n_out > 1000) {
        fprintf(stderr, "usage: stretch IN.gguf OUT.gguf LAYERS\n");
        return 2;
    }
    in = gguf_init_from_file(argv[1], params);
    if (!in || (id = gguf_find_key(in, "general.architecture")) < 0) {
        fprintf(stderr, "stretch: %s is no GGUF model\n", argv[1]);
        return 1;
    }
    arch = gguf_get_val_str(in, id);
    p.n_in = get_int(in, arch, "block_count");
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
    /* With one dense layer and one with experts, all that are added are as large as the larger. */
    out_ctx = ggml_init((struct ggml_init_params){
        .mem_size = ggml_get_mem_size(in_ctx) * (size_t)p.n_out + (1 << 20) });
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
        for (int j = 0; j < p.n_out; j++) {
            if (source_of(&p, j, is_ffn(t->name)) != layer)
                continue;
            snprintf(name, sizeof name, "blk.%d.%.40s", j, t->name + end);
            add_tensor(out, out_ctx, t, name, turn++);
        }
    }
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
