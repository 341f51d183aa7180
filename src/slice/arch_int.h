/* What is peculiar about each architecture when its models are cut: one table (arch.c), rows of
 * data, no code per architecture. Everybody else asks here. */
#ifndef NK_SLICE_ARCH_INT_H
#define NK_SLICE_ARCH_INT_H

#include <stdbool.h>

#include "slice/slice.h"

/* What a row says. `key` is a metadata key without the architecture's prefix, or a tensor's name
 * where said so. */
enum nk__rule {
    NK__REFUSE, /* cannot be cut at all: why */
    NK__PERIOD, /* llama.cpp's code gives layers their kind by index modulo n: cut at multiples of n
                   only */
    NK__PERIOD_KEY, /* the same; the period is the integer `key` (a missing key or 0: n; n 0: no
                       period) */
    NK__KIND_KEY,   /* per-layer integers in `key`: zero and not zero are different kinds of layers.
                       llama.cpp keeps a   cache per kind and fails on an empty one: every range must
                       have all kinds that the model has */
    NK__KIND_TENSOR, /* the same, by whether blk.<i>.<key> exists (key may end in '*': a prefix) */
    NK__KIND_PERIOD, /* the same, by whether the layer is the last of its period of n (to go with
                        NK__PERIOD) */
    NK__SHIFT, /* an integer that counts layers from the model's first: minus begin, within [0,
                  count] */
    NK__NOT_PER_LAYER, /* an array that is not per layer, whatever its length (key may end in '*')
                        */
    NK__LAYER_LIST,    /* an array of layer numbers: those in range stay, minus begin */
    NK__SET,           /* the integer is set to n in every slice */
    NK__WITH_FIRST, /* the non-layer tensor `key` is needed by the first slice only; the others drop
                       it */
    NK__WITH_LAST,  /* by the last slice only */
};

struct nk__arch_row {
    const char *arch; /* general.architecture; "*": every one */
    enum nk__rule rule;
    const char *key;
    int n;
    const char *why; /* REFUSE, PERIOD and KIND: for the person whose cut is refused */
};

/* The first row of this rule for the architecture (own rows before "*" rows) and, where key is
 * given, for this key; NULL: none. `after` (may be NULL): continues behind that row. */
const struct nk__arch_row *nk__arch_find(const char *arch, enum nk__rule rule, const char *key,
                                         const struct nk__arch_row *after);

/* Reads off the model which layer is of which kind (the KIND rules); once, when it is opened. */
void nk__arch_learn(nk_model *m);

/* May the model be cut before layer `at`, and are layers [begin, end) a loadable slice? 0, or
 * UNIMPLEMENTED `cannot_split`, `illegal_cut`, with a sentence. */
int nk__arch_check_cut(const nk_model *m, int at, struct nk_error *err);
int nk__arch_check_range(const nk_model *m, struct nk_range range, struct nk_error *err);

#endif
