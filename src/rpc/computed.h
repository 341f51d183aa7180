/* What a worker computes with its layers, as far as the model's files leave it open: a list of
 * named facts, told in Info and at Open. Workers whose facts differ compute parts of different
 * models, or the same model to other last bits. The first is refused before the first token; the
 * second is what unequal machines do. Which fact is of which kind, and why, is one table
 * (nk_fact_row; docs/architecture.md, "What is computed"). */
#ifndef NK_RPC_COMPUTED_H
#define NK_RPC_COMPUTED_H

#include <stddef.h>

#include "base/error.h"
#include "nakshatra.pb-c.h"

enum nk_fact {
    NK_FACT_LLAMA,
    NK_FACT_ROPE_FACTORS,
    NK_FACT_POOLING,
    NK_FACT_GGML,
    NK_FACT_BACKEND,
    NK_FACT_THREADS,
    NK_FACT_FLASH_ATTN,
    NK_FACT_CACHE_K,
    NK_FACT_CACHE_V,
    NK_FACT_SESSIONS,
    NK_FACTS
};

struct nk_fact_row {
    const char *name;  /* on the wire and in JSON; never changes */
    const char *title; /* for people */
    /* Workers of a chain must agree: the error's reason. NULL: they may differ. */
    const char *reason;
    const char *why;  /* of either */
    const char *mend; /* how they come to agree; NULL where they need not */
};
const struct nk_fact_row *nk_fact_row(enum nk_fact f);

/* Of NK_FACT_SESSIONS: sessions have KV cells of their own, and what one computes is the same to
 * the bit whatever the others do; or they share all cells. */
#define NK_SESSIONS_APART  "apart"
#define NK_SESSIONS_SHARED "shared"

struct nk_computed {
    /* value: what is compared; "": not told, or the model has no such thing. note: where it comes
     * from, for people; "": nowhere in particular. */
    struct {
        char value[64], note[128];
    } facts[NK_FACTS];
};

/* printf into a fact. */
void nk_computed_set(struct nk_computed *c, enum nk_fact f, const char *value, const char *note,
                     ...) __attribute__((format(printf, 4, 5)));

/* As messages, which borrow from c. Returns how many; message and list have room for NK_FACTS. */
size_t nk_computed_pack(const struct nk_computed *c, Nakshatra__V1__Fact *message,
                        Nakshatra__V1__Fact **list);
/* What a peer tells, not trusted: cut to size, control characters as '?'; facts of names that are
 * unknown here are left out. llama_version: what peers told before there were facts. */
void nk_computed_unpack(struct nk_computed *out, Nakshatra__V1__Fact *const *facts, size_t n,
                        const char *llama_version);

/* May two workers compute parts of one model? What only one of them tells does not agree either:
 * the other one is too old to know. The message is about the first, whose name the caller puts
 * before it; it names the fact, both values and what to do.
 *   PRECONDITION  the row's reason */
int nk_computed_compare(const struct nk_computed *mine, const struct nk_computed *other,
                        const char *other_name, struct nk_error *err);

#endif
