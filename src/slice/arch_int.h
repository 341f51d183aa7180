/* What is peculiar about each architecture when its models are cut: one table (arch.c), rows of
 * data, no code per architecture. Everybody else asks here. */
#ifndef NK_SLICE_ARCH_INT_H
#define NK_SLICE_ARCH_INT_H

#include <stdbool.h>

#include "slice/slice.h"

/* What a row says. `key` is a metadata key without the architecture's prefix (or a tensor's name
 * where said so); where a pattern is allowed, one that ends in '*' means all that begin so. `n` and
 * `from` are explained with the rules. */
enum nk__rule {
    /* Cannot be cut at all: why. */
    NK__REFUSE,
    /* An encoder: it needs a pooling. n: 1: it can be cut; 0: it is served whole, and why. */
    NK__ENCODER,
    /* Cannot be cut when the integer `key` is not zero (n > 0: is n or more) and there is no array
     * `from`: why. */
    NK__REFUSE_IF,
    /* llama.cpp does something else for a model of exactly n layers (unless it has the key `key`,
     * where one is given), so neither a slice of that model nor a slice that happens to have n
     * layers would compute the same: refused, why. from (may be NULL): what such a model is called
     * by its size. */
    NK__COUNT_MATTERS,
    /* The slices of that model do not need it, but other models' slices of n layers would fall into
     * it (when the model has `key`). */
    NK__COUNT_AVOID,
    /* llama.cpp's code treats layers by index modulo n and has no key for it: cut at multiples of
     * n. */
    NK__PERIOD,
    /* The same; the period is the integer `key` (missing or 0: n; n 0 or 1: no period). */
    NK__PERIOD_KEY,
    /* Layers are of two kinds by index modulo a period: the integer `from`, or else n. llama.cpp
     * takes an array `key`, one element per layer, as well: slices get that array, so that any cut
     * is legal. n > 0: 1 for every layer but the last of each period; n < 0 (period -n): for every
     * one but the first. A source that has the array is simply cut. The two kinds count as in
     * KIND_KEY. */
    NK__PATTERN,
    /* Per-layer integers in `key`: zero and not zero (n > 0: n and not n) are different kinds of
     * layers. llama.cpp keeps a cache per kind and fails on an empty one: every range must have all
     * kinds that the model has. */
    NK__KIND_KEY,
    /* The same, by whether a tensor blk.<i>.<key> exists (pattern allowed). */
    NK__KIND_TENSOR,
    /* The same for the layers whose index modulo n is n - 1, in the code and without a key. */
    NK__KIND_PERIOD,
    /* Cut only before layers whose element of the array `key` is not zero (no array: anywhere). */
    NK__CUT_WHERE,
    /* An integer that counts layers from the model's first: minus begin, within [0, count]. */
    NK__SHIFT,
    /* An array that is not per layer, whatever its length (pattern allowed). */
    NK__NOT_PER_LAYER,
    /* An array per layer although its key has no architecture prefix: `key` is the whole key
     * (pattern allowed). */
    NK__PER_LAYER,
    /* llama.cpp takes sizes from the first layer's element of the array `key`, also where that
     * layer has no use for it and says 0: the slice's first element is then what the model's first
     * one is. */
    NK__FILL_FIRST,
    /* The integer is set to n in every slice that has it. */
    NK__SET,
    /* The integer `key` is n where the model does not have it: written into every slice. */
    NK__DEFAULT,
    /* The float `key` is n / 10 / sqrt(the model's number of layers) where the model does not have
     * it. */
    NK__DEFAULT_SCALE,
    /* Recurrent or hybrid, and a batch with the same number of rows of several sequences keeps its
     * order. */
    NK__EQUAL_ROWS,
};

struct nk__arch_row {
    const char *arch; /* general.architecture; "*": every one */
    enum nk__rule rule;
    const char *key;
    int n;
    const char *from;
    const char *why; /* what follows the colon in the sentence that refuses a cut */
};

/* The first row of this rule for the architecture (own rows before "*" rows) and, where key is
 * given, for this key; NULL: none. `after` (may be NULL): continues behind that row. */
const struct nk__arch_row *nk__arch_find(const char *arch, enum nk__rule rule, const char *key,
                                         const struct nk__arch_row *after);

/* Does this llama.cpp know the architecture at all? True also when that cannot be found out. Not
 * thread-safe: llama.cpp's log is silenced meanwhile, and that is global. */
bool nk__arch_is_known(const char *arch);

/* Reads off the model which layer is of which kind (the KIND rules); once, when it is opened. */
void nk__arch_learn(nk_model *m);

/* The elements of a PATTERN row's array for a model that does not have it; false when the pattern
 * is not in use. */
bool nk__arch_pattern(const nk_model *m, const struct nk__arch_row *row, int layer, bool *value);

/* Are layers [begin, end) a loadable slice? nk_model_cut_check's errors. */
int nk__arch_check_range(const nk_model *m, struct nk_range range, struct nk_error *err);

#endif
