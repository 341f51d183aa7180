/* A reference: what a whole model answers to a script, kept so that a chain of its slices can be
 * given the same batches and compared with it.
 *
 * The script is what serving does: prompts in chunks, single steps, several sequences mixed in one
 * batch, a rollback in the middle, steps again, several rows for each sequence at once. Token ids
 * are pseudo-random for prompts, always the same, and what the whole model finds most probable for
 * steps. Both sides see the same batches; when they have the same thread counts and cache layouts
 * too, nothing but a mistake can make a difference on the CPU.
 *
 * The whole model may be closed when the reference is made: model and slices need not fit in memory
 * together. */
#ifndef NK_STAGE_REFERENCE_H
#define NK_STAGE_REFERENCE_H

#include "base/error.h"
#include "stage/difference.h"
#include "stage/stage.h"

enum { NK_SCRIPT_SEQUENCES_MAX = 16 };

struct nk_script {
    int n_tokens;    /* of the first sequence's prompt; the others' are shorter; 1 or more */
    int n_steps;     /* single steps before the rollback, and after it; 1 or more */
    int n_sequences; /* interleaved; 1 to NK_SCRIPT_SEQUENCES_MAX */
    int n_batch;     /* rows of a run at most; n_sequences or more */
};
/* The most tokens that a sequence has in it: so many cells of KV cache each sequence needs. */
int nk_script_length_max(const struct nk_script *script);

typedef struct nk_reference nk_reference;

/* Runs the script on the whole model, a stage with room for it. *out owned by the caller, NULL on
 * failure. nk_stage_run's errors, and EXHAUSTED `no_memory`. */
int nk_reference_new(nk_reference **out, nk_stage *whole, const struct nk_script *script,
                     struct nk_error *err);
void nk_reference_free(nk_reference *r);
int nk_reference_n_runs(const nk_reference *r); /* the script's batches */

/* Runs the script on a chain, the stages in order from the first layer to the last, each with the
 * same room. Counts every row of logits that was wanted into *out (begins with zeros). The stages'
 * errors, with their layers. */
int nk_reference_compare(const nk_reference *r, nk_stage *const *stages, int n_stages,
                         struct nk_difference *out, struct nk_error *err);

#endif
