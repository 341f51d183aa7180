/* What the files of a stage share: it is opened by open.c and run by run.c. */
#ifndef NK_STAGE_STAGE_INT_H
#define NK_STAGE_STAGE_INT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <llama.h>

#include "base/file.h"
#include "slice/slice.h"
#include "stage/graph_int.h"
#include "stage/stage.h"

/* How what a run is given gets into the graph. */
enum nk__enter {
    /* libllama looks up the embedding itself: a whole model, or a first slice with its
     * vocabulary. */
    NK__ENTER_IDS,
    NK__ENTER_OVERWRITE, /* token batch; nk__stage_eval overwrites the node at `in` */
    NK__ENTER_EMBD,      /* llama_batch.embd, where it was seen to be the same computation */
};

enum { NK__BUFFERS_MAX = 16 };

struct nk_stage {
    struct nk_stage_info info;
    struct llama_model *model;
    struct llama_context *ctx;
    char *path;
    struct nk_file_watch file; /* where the slice is still read from */
    nk_embd *embd; /* a first slice with a stub vocabulary: the rows of the embedding; else NULL */
    enum nk__enter enter;
    struct nk__place in, out; /* found: whether they are used */
    bool real_ids;            /* libllama knows the whole vocabulary, not a stub */
    int n_swa, n_threads_batch;
    int64_t max_positions; /* of learned position embeddings; 0: no limit */
    /* Weights and caches in the CPU's memory, for nk_stage_use_huge_pages. */
    struct ggml_backend_buffer *buffers[NK__BUFFERS_MAX];
    int n_buffers;
    bool on_device;          /* the weights are copied there */
    bool keeps_mapping;      /* there is not memory enough for more than that */
    struct nk__span *mapped; /* weights that are read from the mapping of the file */
    int n_mapped;

    /* Of the decode in progress, for the callbacks. */
    nk__graph *recording;   /* while it is opened: they record instead */
    bool quick;             /* and what comes after the recording is not computed */
    bool trial;             /* every one is quick */
    bool polled, in_pieces; /* ggml has begun to compute; was asked about nodes after that */
    const float *in_rows;
    int n_tokens, n_in_seen, n_out_seen;
    bool in_next, out_next, in_done, out_done;
    atomic_int state; /* of a run: run.c's */

    /* Allocated at load, so that a run allocates nothing. */
    llama_token *zero_ids;
    int32_t *one_seq;
    llama_seq_id **seq_ptrs;
    int8_t *all_wanted;
    float *embd_rows, *out_rows;
    size_t embd_width;             /* of embd_rows: the model's n_embd, which need not be a row's */
    int32_t *first_pos, *next_pos; /* per sequence, while a batch is checked */
};

/* The context's cb_eval and abort_callback; user: the nk_stage. */
bool nk__stage_eval(struct ggml_tensor *t, bool ask, void *user);
bool nk__stage_aborted(void *user);

#endif
