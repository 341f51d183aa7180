/* Synthetic models: a GGUF of any shape and quantisation with random weights and a byte-level BPE
 * vocabulary.
 *
 * For measuring speed, memory and exactness without a download: none of them depends on what the
 * weights mean. The file loads in any llama.cpp tool and tokenises any text; what it generates is
 * noise. The same options give the same bytes. A library of its own (nk_synth), for tests, too.
 *
 * Weights are drawn so that activations keep a magnitude of about 1 whatever the depth: every
 * matrix has a standard deviation of 1/sqrt(inputs) and norms are close to 1, as in a freshly
 * initialised transformer. */
#ifndef NK_BENCH_SYNTH_H
#define NK_BENCH_SYNTH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct nk_synth_shape {
    const char *name; /* of a preset, or "custom"; borrowed */
    int n_layers;
    int n_embd; /* width */
    int n_ff;   /* per expert where there are experts */
    int n_head, n_head_kv;
    int n_vocab;
    int n_ctx;    /* what the model says it was trained with */
    int n_expert; /* 0: dense */
    int n_expert_used;
    bool untied;        /* an output matrix of its own */
    bool no_rope_freqs; /* without Llama 3's rope_freqs tensor */
    /* Names of ggml types, in any case; borrowed. Of the matrices: "Q4_K"; and of token_embd and
     * output, where NULL is Q6_K for types with blocks of 256, else the matrices' type. */
    const char *type, *embd_type;
    uint64_t seed;
};

/* A copy of a preset: "llama-1b", "tiny", "moe". NOT_FOUND `no_shape`; the message lists them. */
int nk_synth_preset(const char *name, struct nk_synth_shape *out, struct nk_error *err);

struct nk_synth_result {
    uint64_t n_params, n_params_active; /* active: what one token uses; equal without experts */
    uint64_t file_bytes;
    uint64_t weights_bytes_layer; /* of one layer */
};

/* Writes the model to path; the file appears complete or not at all. result may be NULL.
 *   INVALID  bad_shape   sizes that do not fit together; both values are in the message
 *   INVALID  bad_type    no such type (the message lists them), or none for rows of this width
 *   EXHAUSTED no_space, no_memory; DENIED cannot_create; DATA_LOSS write_failed: nk_newfile's */
int nk_synth_write(const char *path, const struct nk_synth_shape *shape,
                   struct nk_synth_result *result, struct nk_error *err);

#endif
