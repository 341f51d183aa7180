/* Models as GGUF files, and the slices cut from them.
 *
 * A *model* is one GGUF file or several shards (-00001-of-0000N). A *slice* is a file with the
 * layers [begin, end) of a model that stock llama.cpp loads as a small complete model
 * (docs/internals/llama.md, "A slice is a model" and "Only the last stage pays for the head").
 * Which rewrites an architecture needs, where it may be cut and what cannot be cut at all is in one
 * table: slice/arch.c.
 *
 * Every byte of a file is distrusted: sizes, offsets and types are checked before use. Objects have
 * one owner thread. */
#ifndef NK_SLICE_SLICE_H
#define NK_SLICE_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/sha256.h"

struct gguf_context;
typedef struct nk_model nk_model;

enum { NK_LAYERS_MAX = 1024 };

/* How an embedding model makes one vector of a text's rows: GGUF's numbers. A model that has none
 * generates text. */
enum nk_pooling {
    NK_POOLING_NONE,
    NK_POOLING_MEAN, /* of all rows */
    NK_POOLING_CLS,  /* the first row */
    NK_POOLING_LAST, /* the last row */
    NK_POOLING_RANK, /* a row through a classifier: a score, or several */
};
/* "none", "mean", "cls", "last", "rank". */
const char *nk_pooling_text(enum nk_pooling p);
/* The number's name, or what it is; false: there is none of this number. */
bool nk_pooling_find(uint64_t number, enum nk_pooling *out);

struct nk_model_info {
    char path[4096]; /* as given (of shards: the first) */
    char architecture[64], name[128], quantisation[32];
    int n_shards;
    int n_layer, n_embd, n_head, n_head_kv, n_vocab, n_ctx_train;
    /* The context of the model's first training; n_ctx_train where it says nothing else. */
    int n_ctx_orig;
    bool
        has_rope_lists; /* RoPE factors for contexts up to n_ctx_orig, and others for longer ones */
    enum nk_pooling pooling;
    bool tied_embeddings;
    uint64_t file_bytes, embd_bytes, head_bytes, other_bytes;
    uint64_t layer_bytes[NK_LAYERS_MAX];
    /* Of each layer, with an f16 cache; 0 where it has none: layers that are recurrent, have no
     * attention, or use what another has cached. Sliding windows are cached whole. */
    uint64_t kv_bytes_per_token[NK_LAYERS_MAX];
    /* Of each layer for each sequence, whatever its length; 0: it is not recurrent. */
    uint64_t state_bytes[NK_LAYERS_MAX];
    /* Of a recurrent or hybrid architecture: rows of several sequences keep their order in one
     * batch when each has as many (arch.c: found out by trying). */
    bool equal_rows;
    /* A slice is a model too; these are set from its nakshatra.* keys. */
    bool is_slice;
    int layer_begin, layer_end, layer_count;
    bool has_token_embd, has_lm_head;
    char model_sha256[NK_SHA256_HEX]; /* "" for a whole model (see nk_model_hash) */
};

/* Reads headers only. *out owned by the caller.
 *   NOT_FOUND  no_file        cannot open
 *   INVALID    bad_magic      not GGUF
 *   INVALID    bad_gguf       a header that contradicts itself, or that libllama would not survive
 *   DATA_LOSS  truncated      shorter than its header says
 *   NOT_FOUND  shard_missing  names the shard
 *   INVALID    bad_arch       no architecture, or no layers; a pooling that there is not */
int nk_model_open(nk_model **out, const char *path, struct nk_error *err);
void nk_model_close(nk_model *m);
const struct nk_model_info *nk_model_info(const nk_model *m); /* borrowed until close */
/* SHA-256 over the file's bytes (shards one after the other), as hex: the model's id. Reads
 * everything; shows a bar. Kept in the cache folder by path, size, mtime and inode. */
int nk_model_hash(nk_model *m, char hex[NK_SHA256_HEX], struct nk_error *err);

/* How much of the weights is of which type ("q4_K"), largest first. Fills up to max, returns how
 * many there are. */
struct nk_type_share {
    const char *type; /* static */
    uint64_t bytes;
    int n_tensors;
};
int nk_model_types(const nk_model *m, struct nk_type_share *out, int max);

/* May the model be cut before layer `at` (0 < at < n_layer), so that both sides can be slices, or
 * be cut further into slices? (A few architectures also forbid slices of a certain number of
 * layers: nk_ranges_check.)
 *   UNIMPLEMENTED  illegal_cut   with the reason
 *   UNIMPLEMENTED  cannot_split  the model cannot be cut at all */
int nk_model_cut_check(const nk_model *m, int at, struct nk_error *err);

/* Are the cuts of this model known to be right? So they are where `make conformance` has compared
 * its architecture, with that llama.cpp, and all layers are of one shape, so that no slice lacks
 * what another one has. Of other models the rules of arch.c are all there is, and a trial
 * (stage/trial.h) says what they forget. */
bool nk_model_is_compared(const nk_model *m, const char *llama_version);

struct nk_range {
    int begin, end;
};
/* "0-14,14-28": contiguous half-open ranges. Fills ranges, sets *n.
 *   INVALID bad_ranges   not of that form, empty, overlapping, with a gap, or too many */
int nk_ranges_parse(const char *text, struct nk_range *ranges, int max, int *n,
                    struct nk_error *err);
/* Ranges against a model: they begin at 0 (when whole is set), end at n_layer, and every cut is
 * legal. */
int nk_ranges_check(const nk_model *m, const struct nk_range *ranges, int n, bool whole,
                    struct nk_error *err);
/* The splits that a model is tried with, one after the other: every legal cut in two, then one
 * split in four, or else three, pieces, where there are cuts for it. ranges has room for four; *n
 * 0: the first split; else ranges and *n are those of the split before. False: there are no
 * more. */
bool nk_ranges_next(const nk_model *m, struct nk_range ranges[4], int *n);
/* k ranges with bytes balanced over legal cuts (the head counts for the last, the embedding lookup
 * is free). INVALID `bad_ranges` when there are not enough legal cuts. */
int nk_ranges_balance(const nk_model *m, int k, struct nk_range *ranges, struct nk_error *err);

/* What a stage of these layers needs of the memory that it computes in. */
struct nk_need_opts {
    int n_ctx, n_seq, n_batch;
    double kv_scale; /* bytes of the cache's types for one of f16 */
};
struct nk_need {
    uint64_t weights_bytes, cache_bytes;
    uint64_t batch_bytes; /* an estimate, rather too small */
};
/* Of a slice: range 0 to its n_layer. The cache is what llama.cpp takes for it, but for
 * architectures that cache other things than keys, values and states as well. */
void nk_model_need(const nk_model *m, struct nk_range range, const struct nk_need_opts *o,
                   struct nk_need *out);
uint64_t nk_need_sum(const struct nk_need *n);
/* EXHAUSTED no_memory, with both figures, when that is more than is free (0: unknown, which is no
 * error). what: whose need it is; where: whose memory. */
int nk_need_check(const struct nk_need *n, const struct nk_need_opts *o, uint64_t free_bytes,
                  const char *what, const char *where, struct nk_error *err);

/* Writes one slice, atomically, with the digests of its parts; *sha256 (may be NULL) gets the hash
 * of the whole file. model_sha256: of the source. */
int nk_slice_write(nk_model *m, struct nk_range range, const char *model_sha256, const char *path,
                   char *sha256, struct nk_error *err);

/* ---- is a file what was written? ----
 *
 * Every file that this program writes ends with the SHA-256 of its header and of each of its
 * tensors, so that whoever has it can tell, without the model. That finds what happened to the file
 * on its way or on its disk. It is no proof against somebody who wants to deceive: who can write
 * the file can write digests, too. */
enum nk_slice_verify {
    NK_VERIFY_ALWAYS,
    /* What was whole before, and was not changed since by its device, inode, size and times, is not
     * read again: a mark in the cache folder says so. */
    NK_VERIFY_ONCE,
    NK_VERIFY_NEVER,
};
/* "always", "once", "never". INVALID bad_argument. */
int nk_slice_verify_parse(const char *text, enum nk_slice_verify *out, struct nk_error *err);
const char *nk_slice_verify_text(enum nk_slice_verify how);

enum nk_slice_verified {
    NK_VERIFIED_NO, /* nobody asked */
    /* The file has none: written by an earlier version, or not by this program. */
    NK_VERIFIED_NO_DIGESTS,
    NK_VERIFIED_EARLIER, /* a mark says so */
    NK_VERIFIED_NOW,
};
const char *
nk_slice_verified_text(enum nk_slice_verified v); /* "no", "no digests", "earlier", "yes" */

enum { NK_DAMAGED_MAX = 16 };
struct nk_slice_checked {
    enum nk_slice_verified verified;
    int n_parts;   /* the header, and tensors (large ones are several) */
    int n_damaged; /* of them */
    struct {
        char name[128]; /* as in the model; "header" */
        uint64_t begin, size;
    } damaged[NK_DAMAGED_MAX]; /* the first ones, in the file's order */
};

/* Begins to check m's file, with threads of its own, so that something else can be done meanwhile;
 * m stays open until the wait. A whole model has no digests. *out is owned until
 * nk_slice_check_wait.
 *   DATA_LOSS  damaged     the list of digests itself
 *   EXHAUSTED  no_memory */
typedef struct nk_slice_check nk_slice_check;
int nk_slice_check_start(nk_slice_check **out, const nk_model *m, enum nk_slice_verify how,
                         struct nk_error *err);
/* Helps, waits for the end and frees c (takes it; NULL: does nothing). *out (may be NULL) is filled
 * in either way.
 *   DATA_LOSS  damaged        with the file, how many parts and which
 *   ABORTED    file_changed   it was written to meanwhile
 *   and read errors */
int nk_slice_check_wait(nk_slice_check *c, struct nk_slice_checked *out, struct nk_error *err);
/* Both, of any file that this program writes: the vocabulary file, too. Shows a bar. Also
 * nk_model_open's errors of a header that cannot be read. */
int nk_slice_check_file(const char *path, enum nk_slice_verify how, struct nk_slice_checked *out,
                        struct nk_error *err);

/* The embedding rows of a first slice (or a whole model), dequantised exactly as llama.cpp's
 * GET_ROWS does on the CPU.
 *
 * A first slice that is not the last has a stub vocabulary: its token_embd.weight declares 32 rows.
 * The source's rows are all there nevertheless: it is the last tensor, and the file goes on with
 * the rest of its nakshatra.n_vocab rows. llama.cpp does not look there. */
typedef struct nk_embd nk_embd;
/* Maps the rows, or reads them into memory (in_memory), so that the file is not needed any more. m
 * may be closed before e. *out owned by the caller.
 *   PRECONDITION  no_embd     not a first slice
 *   DATA_LOSS     truncated   the file ends within the rows
 *   EXHAUSTED     no_memory */
int nk_embd_open(nk_embd **out, const nk_model *m, bool in_memory, struct nk_error *err);
void nk_embd_close(nk_embd *e);
/* id in [0, n_vocab), which the caller has checked; row: n_embd floats. Any thread. */
void nk_embd_row(const nk_embd *e, int32_t id, float *row);

struct nk_manifest_file {
    char name[256];        /* within the folder; never with a slash */
    struct nk_range range; /* 0-0: the vocabulary file */
    uint64_t size_bytes;
    char sha256[NK_SHA256_HEX];
    bool kept; /* nk_split found it complete and did not write it again; not in the file */
};
struct nk_manifest {
    char model_id[128], model_sha256[NK_SHA256_HEX], architecture[64];
    int n_layer, n_embd;
    int slice_format; /* of the files; reading: NK__SLICE_FORMAT is written (slice/write_int.h) */
    int n_files;
    struct nk_manifest_file files[NK_LAYERS_MAX + 1]; /* slices in order, then the vocabulary */
};
/* Splits into dir (made if missing): NAME.000-014.gguf ..., NAME.vocab.gguf, manifest.json. Each
 * file appears complete or not at all, the manifest last. What an earlier run left complete is
 * kept: a file is written again only when it is missing or its hash is wrong. Shows bars. *out (may
 * be NULL) is owned by the caller (free).
 *   INVALID    not_a_model   m is itself a slice
 *   EXHAUSTED  no_space      with what is needed and what there is
 *   DENIED     cannot_create
 *   CANCELLED  interrupted   nk_split_interrupt() was called; temporary files are removed
 *   and those of nk_ranges_check */
int nk_split(nk_model *m, const struct nk_range *ranges, int n, const char *dir,
             struct nk_manifest **out, struct nk_error *err);
/* Makes a running nk_split, nk_model_hash or nk_*_cached end soon with CANCELLED, and every later
 * one. Any thread, and signal handlers. */
void nk_split_interrupt(void);
bool nk_split_interrupted(void); /* for others that take as long */

/* A manifest.json. *out owned by the caller (free).
 *   NOT_FOUND  no_file
 *   INVALID    bad_manifest   says what is wrong with it */
int nk_manifest_read(struct nk_manifest **out, const char *path, struct nk_error *err);

/* The path of a slice (or the vocabulary) in the cache folder, written first if missing or, as far
 * as `how` says that it is looked at, damaged: what `worker --model` and `up` use. *path owned by
 * the caller. */
int nk_slice_cached(nk_model *m, struct nk_range range, enum nk_slice_verify how, char **path,
                    struct nk_error *err);
int nk_vocab_cached(nk_model *m, enum nk_slice_verify how, char **path, struct nk_error *err);

/* ---- a model without its weights, for measuring: nothing here reads the data of a tensor ---- */

/* What makes layers take equally long, as a digest: names, shapes and types of a layer's tensors,
 * and of which kinds it is. layer -1: of the whole model, with the keys that say how it is computed
 * (a digest of what a machine has to do for it, whatever its weights are). EXHAUSTED no_memory. */
int nk_model_shape(const nk_model *m, int layer, char hex[NK_SHA256_HEX], struct nk_error *err);
/* Bytes of the layer's weights that one row reads: of experts, those that it uses. */
uint64_t nk_model_bytes_per_row(const nk_model *m, int layer);

/* Writes to fd, an empty file, the slice that nk_slice_write would write, but for the weights,
 * which are random, and the digests, which it has none of. Numbers stay within what a model's are,
 * so that it runs as the slice would; what it says is noise. The same model and range give the same
 * bytes. path is for messages.
 *   INVALID  not_a_model; EXHAUSTED no_space, no_memory; and those of nk_ranges_check */
int nk_slice_write_random(const nk_model *m, struct nk_range range, int fd, const char *path,
                          struct nk_error *err);
/* The same with zeros for all weights, as holes in the file: it takes no space, and no time. For
 * what loads it without computing (stage/trial.h). */
int nk_slice_write_hollow(const nk_model *m, struct nk_range range, int fd, const char *path,
                          struct nk_error *err);
/* As nk_embd_open, with random rows, at most max of them: *n_rows. */
int nk_embd_open_random(nk_embd **out, const nk_model *m, int max, int *n_rows,
                        struct nk_error *err);

#endif
