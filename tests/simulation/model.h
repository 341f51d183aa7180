/* A model without weights. It takes the place of the stage, the vocabulary and the sampler when the
 * program is linked (model.c defines their functions).
 *
 * A row is 60 bits of a hash. Each layer keeps of each position a hash of all rows that it was
 * given up to there, which is its KV, and what it gives on is a hash of that. So a token depends on
 * every id before it, and a row that is missing, doubled or of another position makes another
 * token. With `shapes` it also depends on which positions were computed together, as the last bits
 * of a real one do. */
#ifndef NK_TESTS_SIMULATION_MODEL_H
#define NK_TESTS_SIMULATION_MODEL_H

#include "stage/stage.h"

enum {
    MODEL_LAYERS = 6,
    MODEL_WIDTH = 6,
    MODEL_VOCAB = 24,
    MODEL_SEQS = 12,
    MODEL_SEQ_MAX = 53, /* tokens of one session */
    MODEL_CTX = MODEL_SEQS * MODEL_SEQ_MAX,
    MODEL_BATCH = 8,
    MODEL_TEXT_MAX = 1024,
};
#define MODEL_SHA256 "a0a1a2a3a4a5a6a7a8a9aaabacadaeafa0a1a2a3a4a5a6a7a8a9aaabacadaeaf"

struct model_kind {
    bool shapes;
    bool no_rollback; /* as a recurrent one */
};
extern struct model_kind model_kind; /* of what is opened from here on */
/* A sampler was made to take another token than it would have chosen: so often. */
extern int model_n_unlike;

struct model_asked {
    const int32_t *ids;
    int n_ids, n_predict, chunk;
    uint32_t seed;
    const char *stop; /* NULL: none */
};
struct model_said {
    int32_t ids[64];
    int n;
    char text[MODEL_TEXT_MAX];
    size_t text_size;
};
/* What a generation says that nothing disturbs. */
void model_undisturbed(struct model_said *out, const struct model_asked *asked);

#endif
