/* A stage: one slice, loaded by stock llama.cpp on one device. Rows (or token ids) in, rows (or
 * logits) out.
 *
 * This layer is the only place that computes with llama.h. A stage has one owner thread: every
 * function here, but for nk_stage_info(), nk_stage_cancel(), nk_stage_file_check() and
 * nk_stage_use_huge_pages(), is called by that thread alone.
 *
 * How rows get in and out of an unpatched libllama (docs/internals/llama.md, "Rows out" and "Rows
 * in"): a *token* batch is decoded and the context's cb_eval overwrites the residual that feeds
 * layer 0 with the given rows; on the way out it copies the tensor that leaves the last layer.
 * Where `embd` input is as exact and faster for the architecture, that is used instead.
 *
 * Positions are authoritative: running rows of a sequence at position p first forgets whatever the
 * sequence holds from p on. A retry, a rejected draft and a rollback are thereby the same thing.
 * Recurrent architectures cannot forget a part: for them a position other than 0 or the end is
 * refused (OUT_OF_RANGE `no_rollback`), but a state that was saved before can be put back. */
#ifndef NK_STAGE_STAGE_H
#define NK_STAGE_STAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "slice/slice.h"

typedef struct nk_stage nk_stage;
struct llama_vocab;

/* One-time process set-up: llama_backend_init, ggml's backends from where the build says,
 * llama.cpp's log into ours. With device "CPU" only the CPU's backend is loaded where that is
 * possible, and nk_device_list then knows no other device; otherwise (NULL: not known yet) all are.
 * Call before any other function here and in text/, from the main thread; may be called again,
 * which does nothing. */
void nk_stage_global_init(const char *device);
/* Loads all of ggml's backends, for a program that wants nothing else of a stage. */
void nk_stage_load_backends(void);

/* A computing device that ggml knows. */
struct nk_device {
    char name[64]; /* "CPU", "Vulkan0", "CUDA0": what --device takes (case does not matter) */
    char description[128];
    uint64_t memory_total_bytes, memory_free_bytes; /* 0: unknown */
    bool is_gpu;
};
/* Fills up to max entries; returns how many there are. */
int nk_device_list(struct nk_device *out, int max);
/* The one that a stage with this name in its options gets (NULL: the first GPU, else the CPU).
 * NOT_FOUND no_device, as nk_stage_open. */
int nk_device_find(struct nk_device *out, const char *name, struct nk_error *err);

/* How a stage on the CPU comes to its weights; on other devices they are mapped, and copied from
 * there. */
enum nk_stage_weights {
    NK_WEIGHTS_MAPPED, /* what ggml does not keep in an order of its own stays in the page cache */
    NK_WEIGHTS_READ,   /* into memory of the process, before nk_stage_open returns */
    /* Mapped, but where there is plenty of memory, three times the file, nk_stage_use_huge_pages
     * takes them out of the mapping. */
    NK_WEIGHTS_AUTO,
};

struct nk_stage_opts {
    const char *device; /* a name of nk_device_list; NULL: the first GPU, else the CPU */
    /* KV cells, shared by all sequences; 0: the model's training context (at most 8192). */
    int n_ctx;
    int n_seq_max; /* sequences at once */
    /* The most rows of one nk_stage_run; also n_ubatch, so that one run is one graph. An embedding
     * model's texts are each a run: there it is at least a sequence's context, up to
     * NK_TEXT_ROWS. */
    int n_batch;
    int n_threads;       /* for runs of at most n_seq_max rows, which is decode; 0: all cores */
    int n_threads_batch; /* for prefill; 0: n_threads */
    enum nk_stage_weights weights;
    enum nk_slice_verify
        verify; /* a slice against its own digests, while it is loaded (slice/slice.h) */
    /* The KV cache's types and how attention is computed: parts of what a model computes, so the
     * whole model's tokens are those of a whole model with the same three. */
    const char *cache_type_k, *cache_type_v; /* nk_cache_type_check's names; NULL: "f16" */
    bool no_flash_attn;
    /* Each sequence has KV cells of its own, n_ctx / n_seq_max of them. Else they share all cells,
     * and where the others' lie decides in which order a sequence's own are summed up: the last
     * bits depend on the load. One sequence per run then (one_sequence_per_run). */
    bool separate_kv;
    bool whole_model; /* PATH is a whole model, not a slice: what `verify` and tests compare with */
    /* Nothing is computed, and no weight is read: can it be loaded, and do its graphs begin? What
     * is open then runs nothing (stage/trial.h). */
    bool trial;
};
struct nk_stage_opts nk_stage_opts_default(void); /* n_ctx 0, n_seq_max 4, n_batch 512, threads 0 */

/* 0 when a KV cache can be so: both NULL or among f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 and
 * iq4_nl, and values that are quantised only with flash attention, which alone reads them.
 *   INVALID  bad_option  the message says what there is, without the name of an option */
int nk_cache_type_check(const char *type_k, const char *type_v, bool no_flash_attn,
                        struct nk_error *err);

/* Rows of a prefill chunk, where nobody says otherwise. Small ones let the stages of a chain begin
 * soon after each other. Where they share their cores nothing is won by that, and larger ones keep
 * the cores busier (docs/performance.md). */
enum { NK_CHUNK_CPU = 64, NK_CHUNK_CPU_SHARED = 128, NK_CHUNK_GPU = 256 };

/* Rows of a text for which an embedding model's stage has room, where its context is not less. */
enum { NK_TEXT_ROWS = 2048 };

enum nk_rope_factors { NK_ROPE_FACTORS_NONE, NK_ROPE_FACTORS_SHORT, NK_ROPE_FACTORS_LONG };

struct nk_stage_info {
    char model_sha256[65]; /* of the source model; "": a whole model, which was not hashed */
    char model_name[128], architecture[64], quantisation[32];
    int layer_begin, layer_end; /* this stage's range */
    int layer_count;            /* of the whole model */
    bool is_first, is_last;
    /* The width: floats per row. More than the model's embedding_length where layers exchange
     * several streams (hyper-connections). */
    int n_embd;
    /* An embedding model's: what its last stage makes of a text's rows. NONE: it gives logits. */
    enum nk_pooling pooling;
    int n_pooled; /* floats of such a vector (RANK: the classifier's outputs); last stage only */
    int n_vocab;  /* of the whole model, on every stage */
    int n_ctx, n_ctx_train, n_seq_max, n_batch;
    int n_ctx_seq; /* the most of n_ctx that one sequence can have */
    /* A long-RoPE model has two lists of factors: libllama takes the long one where n_ctx_seq is
     * more than n_ctx_orig, for every position. */
    enum nk_rope_factors rope_factors;
    int n_ctx_orig;    /* the context that the model was first trained with */
    bool flash_attn;   /* what libllama made of no_flash_attn */
    bool can_rollback; /* false for recurrent and hybrid architectures */
    /* Where layers have a state, libllama keeps the order of rows only (docs/internals/llama.md,
     * "The order of rows") when a run has rows of one sequence ... */
    bool one_sequence_per_run;
    /* ... or the same number of rows of each of its sequences, one sequence after the other.
     * Anything else is a bad_batch. */
    bool equal_rows_per_run;
    char device[64], device_description[128], backend[32]; /* what really runs it, from ggml */
    char llama_version[64], ggml_version[64];
    uint64_t weights_bytes, kv_bytes; /* on the device */
    /* Buffers that libllama computes in, as it tells them: on the device, and beside it in the
     * machine's memory. Hardly less for fewer layers. */
    uint64_t compute_bytes, compute_host_bytes;
    char cache_type_k[16], cache_type_v[16];
    int n_threads;
    enum nk_slice_verified verified; /* whether the slice is what was written */
};

/* What a stage of these layers of m would need with these options (slice.h); *o: for what. A stage
 * that cannot have so much is not opened, but that weights on the CPU may stay in the file's
 * mapping (NK_WEIGHTS_MAPPED, and whole_model): those are not counted. The errors are those of
 * nk_cache_type_check.
 */
int nk_stage_memory(const nk_model *m, struct nk_range range, const struct nk_stage_opts *opts,
                    struct nk_need_opts *o, struct nk_need *out, struct nk_error *err);

/* Loads. On success *out is owned by the caller; on failure it is NULL.
 *   NOT_FOUND     no_file          cannot open
 *   INVALID       bad_gguf         not a GGUF, truncated, or inconsistent
 *   INVALID       not_a_slice      a whole model was given where a slice is wanted (whole_model)
 *   INVALID       not_a_model      a slice was given where a whole model is wanted
 *   NOT_FOUND     no_device        no such device; the message lists what there is
 *   EXHAUSTED     no_memory        what is needed and what is free, before anything is loaded
 *   INVALID       bad_option       an option out of bounds
 *   DATA_LOSS     damaged          the slice is not what was written
 *   ABORTED       file_changed     the file was changed while it was loaded
 *   UNIMPLEMENTED unsupported      llama.cpp cannot load it, or its graph has no place to enter or
 *                                  leave */
int nk_stage_open(nk_stage **out, const char *path, const struct nk_stage_opts *opts,
                  struct nk_error *err);
void nk_stage_close(nk_stage *s);

/* Gives each of the CPU backend's threads a core of its own where there are as many as cores
 * (place.c says why). To be called by the thread that will run the stage: it gets one of the cores,
 * and what it starts later stays there too. */
void nk_stage_place_threads(const nk_stage *s);

/* Moves the weights and the KV cache of a stage on the CPU into huge pages, where the system can do
 * it (base/memory.h). Takes seconds per GB; another thread than the one that runs the stage, which
 * may run it meanwhile. The stage is not closed before this returns; *stop makes it return soon.
 * Returns how many bytes are in huge pages. */
uint64_t nk_stage_use_huge_pages(const nk_stage *s, const atomic_bool *stop);

/* Borrowed until nk_stage_close; constant, any thread. */
const struct nk_stage_info *nk_stage_info(const nk_stage *s);
/* The full vocabulary; the last stage (and a whole model) only, else NULL. Borrowed until
 * nk_stage_close. */
const struct llama_vocab *nk_stage_vocab(const nk_stage *s);

/* The rows of one run, possibly of several sequences. Borrowed for the call. Rows of one sequence
 * are in the order of their positions, without gaps. */
struct nk_stage_batch {
    int n_tokens;
    const int32_t *ids; /* n_tokens token ids; on every stage */
    /* n_tokens x n_embd, row-major; NULL on the first stage and a whole model. */
    const float *rows;
    const int32_t *pos; /* n_tokens */
    const int32_t *seq; /* n_tokens, each in [0, n_seq_max); 0 where rows are pooled */
    /* Last stage: the rows whose logits are wanted; NULL: all. Ignored elsewhere. */
    const int8_t *want;
};

/* Runs the stage's layers. Bad input (INVALID, OUT_OF_RANGE) changes nothing. After any other error
 * no sequence of the batch holds anything from its first position on; where that cannot be (a
 * recurrent state), it holds nothing.
 *   INVALID       bad_batch      counts, ids outside the vocabulary, positions that do not follow,
 *                                a sequence out of range
 *   INVALID       not_finite     a row holds NaN or infinity
 *   OUT_OF_RANGE  no_rollback    the sequence cannot go back to that position: a recurrent model,
 *                                or a sliding window whose cells were taken for other rows when
 *                                the cache ran full
 *   OUT_OF_RANGE  gap            the position is past the sequence's end
 *   EXHAUSTED     kv_full        no room in the KV cache
 *   CANCELLED     cancelled      nk_stage_cancel
 *   INTERNAL      decode_failed  llama_decode's answer is in the message
 *   INTERNAL      not_finite     the rows that leave hold NaN or infinity
 *   DATA_LOSS     slice_changed  nk_stage_file_check */
int nk_stage_run(nk_stage *s, const struct nk_stage_batch *batch, struct nk_error *err);
/* Fails when somebody has written to the slice's file since it was opened and the stage still reads
 * from it: what it computes is then nobody's model. Each run ends with it, so that nothing is given
 * out that was computed afterwards; there is no way back but to open the stage again. Never where
 * the weights were read into memory (NK_WEIGHTS_READ on the CPU). The message names the path, that
 * of a run the file's name only. Any thread.
 *   DATA_LOSS  slice_changed */
int nk_stage_file_check(const nk_stage *s, struct nk_error *err);
/* Any thread: makes a running nk_stage_run end soon with CANCELLED. Does not affect a later run. */
void nk_stage_cancel(nk_stage *s);

/* What the last run gave, valid until the next call on the stage. Rows: n_tokens x n_embd, in the
 * batch's order; NULL on the last stage. */
const float *nk_stage_rows(const nk_stage *s);
/* An embedding model's last stage: info.n_pooled floats of the whole text that is the sequence's
 * part of the last run, which must have begun at position 0; NULL on every other stage. */
const float *nk_stage_pooled(nk_stage *s, int seq);
/* Logits: n_vocab floats, of a row that was wanted; NULL on every other stage, and where rows are
 * pooled. */
float *nk_stage_logits(nk_stage *s, int token_idx);

/* Makes sequence seq_dst hold what seq_src holds, and nothing else. INVALID `bad_batch`: there is
 * no such sequence. */
int nk_stage_seq_copy(nk_stage *s, int seq_src, int seq_dst, struct nk_error *err);
/* Forgets all of it. */
void nk_stage_seq_clear(nk_stage *s, int seq);
/* How many tokens a sequence holds; 0 when there is no such sequence. */
int nk_stage_seq_length(const nk_stage *s, int seq);

/* Where there is no rollback: what cannot be cut of a sequence, the states of its recurrent layers
 * as they are now, goes out and comes back. Bytes; 0: there is nothing. They hardly depend on how
 * long the sequence is. */
size_t nk_stage_state_size(nk_stage *s, int seq);
/* INTERNAL `no_state`: libllama writes another number of bytes. */
int nk_stage_state_save(nk_stage *s, int seq, void *out, size_t size, struct nk_error *err);
/* The sequence is as it was when it held `length` tokens and the state was saved; attention's part,
 * which is cut, must still be there up to it (it is as long as nothing before it was run again).
 * After an error it holds nothing.
 *   INTERNAL  no_state  libllama does not take it */
int nk_stage_state_restore(nk_stage *s, int seq, int length, const void *data, size_t size,
                           struct nk_error *err);

#endif
