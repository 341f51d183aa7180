/* Is the chain of slices the model? A whole model and the slices of its splits are loaded into this
 * process, one split after the other, run the same script (reference.h), and their logits are
 * compared.
 *
 * The whole model runs on the CPU. Slices on the CPU have the same thread counts and cache layouts,
 * so one different bit is a mistake there. Other devices compute in another order; what difference
 * is still right is the caller's to say.
 *
 * One thread. Call nk_stage_global_init() before nk_verify_whole(). */
#ifndef NK_STAGE_VERIFY_H
#define NK_STAGE_VERIFY_H

#include <stdbool.h>

#include "base/error.h"
#include "slice/slice.h"
#include "stage/difference.h"
#include "stage/reference.h"

enum { NK_VERIFY_STAGES_MAX = 64 };

struct nk_verify_opts {
    struct nk_script script;
    /* Cache types, flash attention and threads, of the whole model and of every stage. What depends
     * on the script (context, sequences, rows) is set from that, and the devices from below. */
    struct nk_stage_opts stage;
    const char *const *devices; /* what runs the slices: one for all, or one for each stage */
    int n_devices;              /* 1 or more */
    /* A folder that nk_split wrote: its slices as they are now. NULL: slices are made in the cache
     * folder, and each is removed as soon as it is loaded. */
    const char *slices;
};

/* What came of one split. */
struct nk_verify_result {
    struct nk_difference difference;
    int n_runs, n_stages;
    char devices[NK_VERIFY_STAGES_MAX][64]; /* n_stages: what really ran them, from ggml */
    bool on_cpu;                            /* all of them on the CPU */
};

typedef struct nk_verify nk_verify;

/* Borrows m and what opts points to until nk_verify_free. *out owned by the caller, NULL on
 * failure.
 *   PRECONDITION  model_mismatch  opts->slices are another model's
 *   UNIMPLEMENTED embedding_model it gives no logits to compare
 *   INVALID       bad_manifest    they are no slices, or more than NK_VERIFY_STAGES_MAX
 *   and those of nk_manifest_read, nk_model_hash, nk_ranges_check and nk_cache_dir */
int nk_verify_new(nk_verify **out, nk_model *m, const struct nk_verify_opts *opts,
                  struct nk_error *err);
void nk_verify_free(nk_verify *v);

/* The ranges of opts->slices, *n of them, borrowed until nk_verify_free; NULL without those. */
const struct nk_range *nk_verify_slices(const nk_verify *v, int *n);

/* Runs the script on the whole model; once, before any split. What fails here is the whole model's
 * failure, no split's. *info: of its stage. The errors of nk_stage_open and nk_reference_new. */
int nk_verify_whole(nk_verify *v, struct nk_stage_info *info, struct nk_error *err);

/* Makes or opens the slices of one split, at most NK_VERIFY_STAGES_MAX ranges that nk_ranges_check
 * accepts (with opts->slices: theirs), and runs the script on the chain of them.
 *   PRECONDITION  model_mismatch  a given slice is not what its manifest says
 *   and those of nk_slice_write, nk_stage_open and nk_reference_compare */
int nk_verify_split(nk_verify *v, const struct nk_range *ranges, int n,
                    struct nk_verify_result *out, struct nk_error *err);

#endif
