/* What the slice layer's own files see of a model. */
#ifndef NK_SLICE_MODEL_INT_H
#define NK_SLICE_MODEL_INT_H

#include "slice/gguf_int.h"
#include "slice/layout.h"
#include "slice/slice.h"

struct nk__tensor {
    const char *name; /* borrowed from the shard's gguf_context */
    int type;         /* enum ggml_type */
    int64_t ne[4];
    int shard;
    uint64_t offset; /* in the shard's file */
    uint64_t size_bytes;
    int layer;        /* of blk.<layer>.; -1: not a layer's */
    const char *rest; /* the name behind "blk.<layer>."; NULL: not a layer's */
};

enum { NK__KINDS_MAX = 16 };
struct nk__arch_row;

struct nk_model {
    struct nk_model_info info;
    struct nk__gguf *shards; /* n_shards */
    struct gguf_context *kv; /* the first shard's; borrowed */
    /* As in the files, layers that are never run (n_layer and on) too. */
    struct nk__tensor *tensors;
    int n_tensors;
    /* Of the file, without folder, shard number and .gguf: slices are called after it. */
    char name[256];
    /* The rows of the architecture table about kinds of layers that say something about this model;
     * and of each layer, bit i: it is of the kind of kind_rows[i]. */
    const struct nk__arch_row *kind_rows[NK__KINDS_MAX];
    int n_kinds;
    uint32_t kinds[NK_LAYERS_MAX];
    bool arch_unknown;        /* to this llama.cpp */
    char hash[NK_SHA256_HEX]; /* once known */
};

/* A model of one file that is in memory, borrowed until close: for tests and fuzzing. */
int nk__model_open_memory(nk_model **out, const void *data, size_t size, struct nk_error *err);

/* "ARCH.key" as a buffer; keys are shorter than that. */
struct nk__key {
    char text[192];
};
struct nk__key nk__model_key(const nk_model *m, const char *key);
/* The tensor of that name, or NULL. */
const struct nk__tensor *nk__model_tensor(const nk_model *m, const char *name);

/* need.c: fills kv_bytes_per_token and state_bytes. */
void nk__model_count_caches(nk_model *m);

/* sound.c: is there anything in the metadata that libllama would not survive? INVALID bad_gguf,
 * EXHAUSTED no_memory, ABORTED file_changed. */
int nk__model_check_sound(const nk_model *m, struct nk_error *err);
/* INVALID `not_a_model` when m is itself a slice. */
int nk__model_check_whole(const nk_model *m, struct nk_error *err);

#endif
