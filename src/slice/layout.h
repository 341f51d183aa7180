/* A model's tensors as places in files, and a slice as it will be, before anything is written: for
 * those who bring a model's bytes from elsewhere (src/pieces). */
#ifndef NK_SLICE_LAYOUT_H
#define NK_SLICE_LAYOUT_H

#include <stdatomic.h>

#include "base/buf.h"
#include "slice/slice.h"

/* ---- a model's tensors ---- */

struct nk_tensor_place {
    const char *name; /* borrowed until the model is closed */
    int type;         /* enum ggml_type */
    int64_t ne[4];
    int layer;       /* -1: not a layer's */
    int shard;       /* from 0 */
    uint64_t offset; /* in the shard's file */
    uint64_t size_bytes;
};
/* In the files' order: shard after shard, by offset. */
int nk_model_n_tensors(const nk_model *m);
void nk_model_tensor_place(const nk_model *m, int tensor, struct nk_tensor_place *out);
/* The file's name without folder, shard number and ".gguf": slices are called after it. */
const char *nk_model_file_name(const nk_model *m);
uint64_t nk_model_shard_bytes(const nk_model *m, int shard);
/* The shard's first bytes up to the end of its tensor table. */
uint64_t nk_model_head_bytes(const nk_model *m, int shard);
/* Bytes of a shard. Any thread.
 *   DATA_LOSS  truncated, read_failed */
int nk_model_read(const nk_model *m, int shard, uint64_t offset, void *out, size_t n,
                  struct nk_error *err);
/* A name for the files as they are, without reading them: of path, size, time, device and inode.
 * False: they are too new to be told from what they may become. */
bool nk_model_identity(const nk_model *m, char hex[NK_SHA256_HEX]);
/* nk_model_hash, by somebody who has read the files: it is kept as if it were its own. */
void nk_model_hash_known(nk_model *m, const char *hex);
/* ABORTED `file_changed` when the model's files are not what they were when it was opened. */
int nk_model_check_unchanged(const nk_model *m, struct nk_error *err);

/* A model of heads alone: of each shard the bytes that nk_model_head_bytes counts, borrowed until
 * close, and its file's size. Everything but the weights is there. name: nk_model_file_name, of
 * which files are made: it is checked. sha256: the model's. Nobody writes to such a model after it
 * is open: any thread may read it. nk_model_open's errors, and
 *   INVALID  bad_name */
int nk_model_open_heads(nk_model **out, const char *name, const char *sha256,
                        const struct nk_bytes *heads, const uint64_t *file_bytes, int n_shards,
                        struct nk_error *err);

/* ---- a slice's layout ---- */

struct nk_slice_tensor {
    int tensor;          /* of the model */
    uint64_t at;         /* in the slice's file */
    uint64_t size_bytes; /* that it takes there, without padding */
    /* So many of the model's bytes of it, from the first one on; 0: a hole. As size_bytes, more
     * where the rows past a stub follow. */
    uint64_t copy_bytes;
};
struct nk_slice_layout {
    const nk_model *m; /* borrowed */
    struct nk_range range;
    struct nk_buf header; /* the file's first bytes, padding and all */
    struct nk_slice_tensor *tensors;
    int n_tensors;
    uint64_t seal_at; /* where the data ends; what lies between tensors is zeros */
};
/* Range 0-0: the vocabulary file. m's hash is known. *out is owned by the caller
 * (nk_slice_layout_free); m stays open.
 *   and those of nk_ranges_check; EXHAUSTED no_memory, too_large */
int nk_slice_layout_new(struct nk_slice_layout **out, const nk_model *m, struct nk_range range,
                        struct nk_error *err);
void nk_slice_layout_free(struct nk_slice_layout *l); /* NULL: does nothing */
/* The file holds the header and all tensors, and seal_at bytes: reads it, with a few threads, and
 * writes its seal behind. Then it is what nk_slice_write would have written. cancelled may be NULL.
 *   CANCELLED  cancelled
 *   EXHAUSTED  no_space, no_memory
 *   DATA_LOSS  truncated, read_failed, write_failed */
int nk_slice_layout_seal(const struct nk_slice_layout *l, int fd, const atomic_bool *cancelled,
                         struct nk_error *err);

/* Where nk_slice_cached (0-0: nk_vocab_cached) keeps that slice; the folder is made. m's hash is
 * known. *path is owned by the caller. */
int nk_slice_cache_path(const nk_model *m, struct nk_range range, char **path,
                        struct nk_error *err);
/* The same when it is there and, as far as `how` says that it is looked at, whole; else NULL. */
int nk_slice_cache_find(const nk_model *m, struct nk_range range, enum nk_slice_verify how,
                        char **path, struct nk_error *err);
/* EXHAUSTED `no_space`, with both figures, when those of these slices that are not in the cache
 * folder yet do not fit on its disk. m's hash is known. */
int nk_slice_cache_room(const nk_model *m, const struct nk_range *ranges, int n,
                        struct nk_error *err);

#endif
