/* What a machine can do for a model, found out by itself and without the model's weights: time per
 * layer, for the head and for an embedding, and memory that it has and would need.
 *
 * Of the model only the head is read (an nk_model whose files hold no tensor data will do). Layers
 * of its real shapes and types, with random weights (slice/slice.h, nk_slice_write_random), are
 * made in memory and loaded through the stage layer as a worker loads its slice, so whatever
 * decides about speed there (kernels, threads, backend, cache types) decides here, too. The file is
 * gone when the process is, however it ends.
 *
 * It computes for seconds with all cores, in the calling thread, and an abort of the engine ends
 * the process: call it in a process of its own (`nakshatra measure --json`) where that matters.
 *
 * What was measured is kept in a folder by hardware, build, shape of the model and options, and
 * answered from there the next time; memory and disk are looked at anew each time. */
#ifndef NK_MEASURE_MEASURE_H
#define NK_MEASURE_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/error.h"
#include "slice/slice.h"
#include "stage/stage.h"

/* The runs that are timed: one row; a row of each of 8 sequences (of as many as there are, where
 * they are fewer); a chunk of a prompt. */
enum nk_measure_run { NK_RUN_ONE, NK_RUN_EIGHT, NK_RUN_CHUNK, NK_RUN_KINDS };

struct nk_measure_opts {
    struct nk_stage_opts stage; /* as a worker's would be; the rest as nk_stage_opts_default */
    int chunk;                  /* rows of a chunk; 0: what a worker takes (NK_CHUNK_*) */
    const char *cache_dir;      /* where results are kept; NULL: nowhere */
    bool again;                 /* although there is one */
    uint32_t budget_ms;         /* about how long it may take */
    uint64_t memory_max;        /* bytes that it may use; 0: most of what is free */
    struct nk_clock *clock;
};
/* Stage options of a worker's defaults with 8 sequences, no cache, 8 s, the system's clock. */
struct nk_measure_opts nk_measure_opts_default(void);

struct nk_measured_layer {
    uint64_t weights_bytes;
    uint64_t kv_bytes;       /* cache or state, for n_ctx and n_sequences; on the device */
    double ms[NK_RUN_KINDS]; /* of a run, added by this layer */
};

/* All times in ms of one run of rows[kind] rows. A stage of layers [b, e) takes fixed_ms, its
 * layers' ms, head_ms if e is n_layer, and embd_ms if b is 0. */
struct nk_measured {
    char key[NK_SHA256_HEX]; /* by which it is kept */
    bool cached;             /* times were taken earlier */

    /* The machine. */
    char version[32]; /* ours */
    char llama_version[64], ggml_version[64];
    char device[64], device_description[128], backend[32], cpu[128];
    bool is_gpu;
    int n_cores, n_threads, n_threads_batch;
    /* Now, not when it was measured. Of the device (a CPU's: the machine's), and of the machine. */
    uint64_t device_total_bytes, device_free_bytes, memory_total_bytes, memory_free_bytes;
    uint64_t disk_free_bytes; /* where slices are kept; 0: not known */

    /* The model, and what was asked. */
    char architecture[64], shape[NK_SHA256_HEX]; /* shape: nk_model_shape of all of it */
    int n_layer, n_embd, n_vocab;
    int n_ctx, n_sequences, n_batch; /* n_ctx: as libllama rounds it */
    char cache_type_k[16], cache_type_v[16];
    bool flash_attn, one_sequence_per_run;

    /* Times. */
    int rows[NK_RUN_KINDS];
    double fixed_ms[NK_RUN_KINDS], head_ms[NK_RUN_KINDS], embd_ms[NK_RUN_KINDS];
    struct nk_measured_layer *layers; /* n_layer; owned */

    /* Memory of a stage besides its layers' weights and kv_bytes. */
    uint64_t head_bytes, embd_bytes; /* weights of the last stage, of the first one */
    uint64_t other_bytes;            /* weights that every stage has */
    /* Buffers that libllama computes in, on the device and beside it: of a stage without the head,
     * and of one with it. */
    uint64_t compute_bytes, compute_host_bytes, head_compute_bytes, head_compute_host_bytes;
    uint64_t process_bytes; /* of a process that has loaded nothing yet; in the machine's memory */
    uint32_t took_ms;       /* when it was measured */
};

/* *out is released by the caller; on failure it is empty. nk_stage_global_init was called.
 *   EXHAUSTED      no_memory     not even the fewest layers that can be loaded fit; with both sizes
 *   UNIMPLEMENTED  unsupported   llama.cpp does not know the architecture, or cannot run it
 *   UNIMPLEMENTED  cannot_split  no slice of it could be served
 *   INVALID        not_a_model   m is a slice
 *   and nk_stage_open's errors of the options. The cache is no reason to fail. */
int nk_measure(const nk_model *m, const struct nk_measure_opts *opts, struct nk_measured *out,
               struct nk_error *err);
void nk_measured_release(struct nk_measured *r); /* harmless on zeros */

/* What one run of a stage of these layers takes, in ms. */
double nk_measured_stage_ms(const struct nk_measured *r, struct nk_range range,
                            enum nk_measure_run kind);

/* One JSON object on one line (docs/measuring.md says what is in it), without a newline. */
int nk_measured_format(const struct nk_measured *r, struct nk_buf *out, struct nk_error *err);
/* The same back, as another machine may have sent it: every number is checked. *out as above.
 *   INVALID  bad_measurement  with what is wrong */
int nk_measured_parse(const char *text, size_t size, struct nk_measured *out, struct nk_error *err);

#endif
