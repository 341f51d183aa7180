/* Will stock llama.cpp run these layers? Tried at once, rather than found out when a worker stops.
 *
 * Which cuts are legal is worked out from a model (slice/arch.c). Where an architecture was never
 * compared, or its layers are of several kinds (nk_model_is_compared), that may forget something:
 * libllama ends the process when a graph has an input that none of the layers reads, for example.
 * So each slice is loaded once, in a child process, without its weights: a file of holes is mapped,
 * contexts are made, and graphs of one row and of two are begun up to where they would compute.
 * That takes neither the slice's memory nor its space, and a fraction of a second. */
#ifndef NK_STAGE_TRIAL_H
#define NK_STAGE_TRIAL_H

#include "base/error.h"
#include "slice/slice.h"

/* The slices of m with these n ranges, which nk_ranges_check accepts; returns at once where
 * nk_model_is_compared. Forks: before other threads use libllama. The child has no signal handlers,
 * no standard streams, a minute of processor time, and ends with the caller's thread.
 *   UNIMPLEMENTED  illegal_cut  with the range and the first thing that llama.cpp said
 *   DEADLINE       trial        it had no end
 *   CANCELLED      interrupted  nk_split_interrupt
 *   UNAVAILABLE    cannot_start no child process; EXHAUSTED no_memory, no_space, no_files */
int nk_trial_ranges(const nk_model *m, const struct nk_range *ranges, int n, struct nk_error *err);
/* The same for those that are not in the cache folder, as nk_slice_cached would find them: what is
 * there was tried before it was cut. The model's hash is known. */
int nk_trial_uncached(nk_model *m, const struct nk_range *ranges, int n, struct nk_error *err);

#endif
