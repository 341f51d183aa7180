/* Small models in memory, made with gguf.h, for the slice layer's tests. */
#ifndef NK_TEST_SLICE_MAKE_H
#define NK_TEST_SLICE_MAKE_H

#include <ggml.h>
#include <gguf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slice/model_int.h"

enum { MAKE_WIDTH = 32, MAKE_VOCAB = 64 };

static inline void make_tensor(struct gguf_context *g, const char *name, int64_t ne0, int64_t ne1)
{
    struct ggml_tensor t = { .type = GGML_TYPE_F32, .ne = { ne0, ne1, 1, 1 } };

    t.nb[0] = 4;
    t.nb[1] = 4 * (size_t)ne0;
    t.nb[2] = t.nb[3] = t.nb[1] * (size_t)ne1;
    ggml_set_name(&t, name);
    gguf_add_tensor(g, &t);
}

static inline void make_u32(struct gguf_context *g, const char *arch, const char *key,
                            uint32_t value)
{
    char k[128];

    snprintf(k, sizeof k, "%s.%s", arch, key);
    gguf_set_val_u32(g, k, value);
}

static inline void make_array(struct gguf_context *g, const char *arch, const char *key,
                              const uint32_t *values, size_t n)
{
    char k[128];

    snprintf(k, sizeof k, "%s.%s", arch, key);
    gguf_set_arr_data(g, k, GGUF_TYPE_UINT32, values, n);
}

/* Metadata and tensors of a model; layer i has a tensor of rows[i] rows (NULL: one each). More can
 * be added. */
static inline struct gguf_context *make_gguf(const char *arch, int n_layer, const int *rows)
{
    struct gguf_context *g = gguf_init_empty();
    const char *tokens[MAKE_VOCAB];
    char odd[MAKE_VOCAB][16];
    char name[64];

    for (int i = 0; i < MAKE_VOCAB; i++) {
        snprintf(odd[i], sizeof odd[i], "%03d", i);
        tokens[i] = i % 2 ? odd[i] : "";
    }
    gguf_set_val_str(g, "general.architecture", arch);
    make_u32(g, arch, "block_count", (uint32_t)n_layer);
    make_u32(g, arch, "embedding_length", MAKE_WIDTH);
    make_u32(g, arch, "attention.head_count", 4);
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, MAKE_VOCAB);
    make_tensor(g, "token_embd.weight", MAKE_WIDTH, MAKE_VOCAB);
    for (int i = 0; i < n_layer; i++) {
        snprintf(name, sizeof name, "blk.%d.ffn_up.weight", i);
        make_tensor(g, name, MAKE_WIDTH, rows ? rows[i] : 1);
    }
    return g;
}

/* The file's bytes, weights all zero; takes g. Owned by the caller (free). */
static inline char *make_bytes(struct gguf_context *g, size_t *size)
{
    size_t meta = gguf_get_meta_size(g), data = 0;
    char *bytes;

    for (int64_t i = 0; i < gguf_get_n_tensors(g); i++)
        data = gguf_get_tensor_offset(g, i) +
               GGML_PAD(gguf_get_tensor_size(g, i), gguf_get_alignment(g));
    *size = meta + data;
    bytes = calloc(1, *size);
    gguf_get_meta_data(g, bytes);
    gguf_free(g);
    return bytes;
}

struct made {
    char *bytes;
    nk_model *m;
};

/* Opened; takes g. */
static inline struct made make_model(struct gguf_context *g)
{
    struct nk_error err = { 0 };
    struct made made;
    size_t size;

    made.bytes = make_bytes(g, &size);
    if (nk__model_open_memory(&made.m, made.bytes, size, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    return made;
}

static inline void made_free(struct made made)
{
    nk_model_close(made.m);
    free(made.bytes);
}

#endif
