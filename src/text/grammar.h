/* Which tokens a grammar lets follow: GBNF, matched over a vocabulary.
 *
 * Not libllama's grammar sampler, though the notation is the same: that one keeps every way in
 * which the text so far can be read as a stack of its own and follows each on its own. Grammars of
 * a few lines make it take all memory or hours, and they come from HTTP clients:
 *
 *     root ::= "a"? "a"? ...                       with 600 parts
 *     root ::= "a" root "b" | "a" root "c" | "a"
 *     root ::= "a"{5,2}
 *
 * and so does left recursion behind an empty rule; "(" 30,000 times ends the process. Here stacks
 * share their common parts (a graph-structured stack, as in GLL parsing: Scott and Johnstone, "GLL
 * Parsing", 2010), so that work is polynomial, left recursion is no special case, and both work and
 * memory are counted and end with an error. Tests compare the tokens allowed with libllama's on
 * grammars that it can do.
 *
 * One difference: the text of control tokens is not part of a generation's text, so that they never
 * match characters; a grammar names them as tokens (<|tool|>). One thread at a time. */
#ifndef NK_TEXT_GRAMMAR_H
#define NK_TEXT_GRAMMAR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct llama_vocab;
typedef struct nk_grammar nk_grammar;

enum {
    /* Nodes of the network that are visited for one token: about half a second. */
    NK_GRAMMAR_WORK_MAX = 20000000,
    /* Positions in the network at once, and as many places to return to. */
    NK_GRAMMAR_STATES_MAX = 1 << 16,
};

/* Starts at the rule "root". *out is owned by the caller; the vocabulary is borrowed until
 * nk_grammar_free.
 *   INVALID    bad_grammar   with line and cause; or the vocabulary has no text */
int nk_grammar_new(nk_grammar **out, const struct llama_vocab *vocab, const char *text,
                   struct nk_error *err);
void nk_grammar_free(nk_grammar *g);

/* From now on a call has so much work at most (NK_GRAMMAR_WORK_MAX: all that it may ever have): one
 * that needs more fails with DEADLINE `later`, has changed nothing, and can be made again. */
void nk_grammar_limit(nk_grammar *g, int work);
/* Whenever *cancelled, which is borrowed until nk_grammar_free, a call ends within a step of its
 * work, with CANCELLED `cancelled`, and has changed nothing. */
void nk_grammar_cancel_by(nk_grammar *g, const atomic_bool *cancelled);

/* May token id follow? End-of-generation tokens may when the text is complete. All of these:
 *   EXHAUSTED  grammar_too_complex   too ambiguous: one of the ceilings above was reached */
int nk_grammar_allows(nk_grammar *g, int32_t id, bool *allowed, struct nk_error *err);
/* The same for all tokens: *allowed points to a byte per token, valid until the next call. */
int nk_grammar_mask(nk_grammar *g, const uint8_t **allowed, struct nk_error *err);
/* The token follows. INTERNAL bad_token when it may not: the grammar is as before. */
int nk_grammar_accept(nk_grammar *g, int32_t id, struct nk_error *err);

#endif
