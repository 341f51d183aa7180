/* What half precision on the wire costs: the same tokens through two stages twice, rows between
 * them as they are and rounded to f16, and the logits compared. In this process, with the
 * conversion that the workers use. */
#ifndef NK_BENCH_QUALITY_H
#define NK_BENCH_QUALITY_H

#include <stdbool.h>

#include "base/error.h"

struct nk_quality {
    double nmse_max;      /* of one token's logits: squared difference over squared value */
    double top1_same_pct; /* tokens whose most probable next one is the same */
    int n_tokens;
};

/* Over n_tokens, in sessions as long as the context allows (2,048 at most). own_text: the model's
 * own text, drawn at temperature 1 from the f32 logits, always the same; else random ids, which is
 * quicker and all that random weights are worth. nk_model_open's, nk_slice_cached's and the stages'
 * errors. */
int nk_quality_measure(const char *model, const char *device, int n_threads, bool own_text,
                       int n_tokens, struct nk_quality *out, struct nk_error *err);

#endif
