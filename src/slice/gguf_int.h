/* One GGUF file, opened for reading: its metadata as llama.cpp's own gguf_context, its tensors'
 * places in the file.
 *
 * The file is a stranger's. llama.cpp's reader answers a bad file with NULL and a line on standard
 * error, and its getters abort on a wrong type; so the header is first walked here with every
 * count, length, type, shape and offset checked against ceilings and against the file's size, and
 * the error says where and what. gguf.h then parses what passed.
 *
 * The tokenizer's arrays (the tokens, merges and scores of a large vocabulary are 10 MB in the file
 * and several times that as parsed strings) are left out of the gguf_context: only their bytes'
 * place is kept, and they are copied as bytes into the files that need them.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little
 * endian. */
#ifndef NK_SLICE_GGUF_INT_H
#define NK_SLICE_GGUF_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/file.h"

struct gguf_context;

enum {
    NK__KV_MAX = 16384,
    NK__TENSORS_MAX = 65536,
    NK__STRING_MAX = 1 << 24, /* of one metadata string; a chat template is some 10 KB */
    NK__LIGHT_MAX = 1 << 26,  /* of all metadata but the tokenizer's arrays, and the tensor list */
    NK__KEY_MAX = 65535,      /* the format's own limit */
    NK__HEAVY_MAX = 64,       /* arrays of the tokenizer */
};

/* Where bytes come from: a descriptor, or memory when fd is -1. */
struct nk__source {
    int fd;
    const uint8_t *data;
    uint64_t size;
};
/* n bytes from offset.
 *   DATA_LOSS  truncated    the source ends before that
 *   DATA_LOSS  read_failed */
int nk__source_read(const struct nk__source *s, uint64_t offset, void *out, size_t n,
                    struct nk_error *err);

struct nk__heavy {
    uint64_t begin, end; /* the whole key-value pair, in the file */
    uint64_t n;          /* elements */
    bool is_tokens;      /* tokenizer.ggml.tokens */
};

struct nk__gguf {
    char *path;
    struct nk__source source;
    struct nk_file_id id;     /* of a file that was opened by path */
    struct gguf_context *ctx; /* without the heavy arrays; its data offset is not the file's */
    uint64_t header_end;      /* of the file: the last byte of the tensor list */
    uint64_t data_offset;     /* of the file: where tensor offsets count from */
    struct nk__heavy heavy[NK__HEAVY_MAX];
    int n_heavy;
};
#define NK__GGUF_INIT                                                                              \
    {                                                                                              \
        .source = {.fd = -1 }                                                                      \
    }

/* See nk_model_open for the errors; messages begin with the path. */
int nk__gguf_open(struct nk__gguf *g, const char *path, struct nk_error *err);
/* The same over borrowed bytes; path is for messages. with_data false: a header without the tensor
 * data. */
int nk__gguf_open_memory(struct nk__gguf *g, const char *path, const void *data, size_t size,
                         bool with_data, struct nk_error *err);
void nk__gguf_close(struct nk__gguf *g); /* harmless on NK__GGUF_INIT */

/* Metadata, whatever the file holds: false (NULL) when the key is missing or of another type. */
/* Of any integer type, not negative. */
bool nk__kv_uint(const struct gguf_context *c, const char *key, uint64_t *value);
const char *nk__kv_string(const struct gguf_context *c, const char *key);
/* The element idx of an integer or bool array; false when there is none. */
bool nk__kv_array_int(const struct gguf_context *c, const char *key, size_t idx, int64_t *value);
/* The number of elements of an array of any type; -1: not an array, or missing. */
int64_t nk__kv_array_n(const struct gguf_context *c, const char *key);

#endif
