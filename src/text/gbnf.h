/* GBNF text, compiled: llama.cpp's grammar notation as a network that text/grammar.c walks.
 *
 *     root  ::= "yes" | "no" (" " why)? | [0-9]{1,3} | <think> !</think>* </think>
 *     why   ::= [^.\n]+   # a comment
 *
 * rule ::= alternatives with |, literals, character classes ([a-z], [^a-z], . for any character),
 * groups, * + ? {m} {m,} {m,n}, escapes \n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH, and single
 * tokens by text (<think>) or id (<[100]>), negated with !. A rule that is defined twice has its
 * last definition. As llama.cpp's src/llama-grammar.cpp reads it, but what that lets pass in
 * silence (an empty or reversed class, more than 2000 repetitions made endless) is refused or done.
 *
 * The text comes from any HTTP client: nesting, repetitions, the network's size and the work for
 * each byte have ceilings. */
#ifndef NK_TEXT_GBNF_H
#define NK_TEXT_GBNF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct llama_vocab;

enum {
    NK_GBNF_DEPTH_MAX = 100,     /* groups within groups */
    NK_GBNF_REPEAT_MAX = 65536,  /* m and n of {m,n} */
    NK_GBNF_NODES_MAX = 1 << 18, /* of the network; 12 bytes each */
    NK_GBNF_TOKENS_MAX = 1024,   /* that are named by their text: each is tokenized */
    NK_GBNF_TOKEN_BYTES_MAX = 1024,
};

/* A recursive transition network: nodes with one successor (a SPLIT has two), a start node per
 * rule. Node 0 is the only MATCH: there a rule ends. No EPS is left after compiling. */
enum nk_gbnf_type {
    NK_GBNF_MATCH,
    NK_GBNF_EPS,
    NK_GBNF_SPLIT,     /* next and arg: two ways on */
    NK_GBNF_CALL,      /* arg: a rule, then next */
    NK_GBNF_CHAR,      /* arg: a code point */
    NK_GBNF_CLASS,     /* arg: an index into classes */
    NK_GBNF_TOKEN,     /* arg: a token's id */
    NK_GBNF_NOT_TOKEN, /* any token but arg */
};

struct nk_gbnf_node {
    uint8_t type;
    /* Of a CALL: nothing follows in its own rule, so that it needs no place to return to. */
    bool tail;
    uint32_t arg, next;
};

struct nk_gbnf_range {
    uint32_t low, high; /* inclusive */
};

struct nk_gbnf_class {
    uint32_t first, n; /* ranges, sorted and apart from each other */
};

struct nk_gbnf_rule {
    uint32_t start;
    bool defined, nullable;
    uint32_t name_at, name_size; /* in the grammar's text; 0, 0 for groups */
};

struct nk_gbnf {
    struct nk_gbnf_node *nodes;
    struct nk_gbnf_range *ranges;
    struct nk_gbnf_class *classes;
    struct nk_gbnf_rule *rules;
    uint32_t n_nodes, n_ranges, n_classes, n_rules;
    size_t nodes_capacity, ranges_capacity, classes_capacity, rules_capacity;
    uint32_t root;
};

/* Compiles text (size bytes of UTF-8). vocab: for single tokens; borrowed for the call.
 *   INVALID    bad_grammar   with the line and what is wrong there
 *   EXHAUSTED  no_memory
 * On failure g is empty. */
int nk__gbnf_compile(struct nk_gbnf *g, const char *text, uint32_t size,
                     const struct llama_vocab *vocab, struct nk_error *err);
void nk__gbnf_release(struct nk_gbnf *g);

bool nk__gbnf_class_has(const struct nk_gbnf *g, uint32_t class_idx, uint32_t cp);
/* Whether any code point in [low, high] is in it. */
bool nk__gbnf_class_meets(const struct nk_gbnf *g, uint32_t class_idx, uint32_t low, uint32_t high);

#endif
