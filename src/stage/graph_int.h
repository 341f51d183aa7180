/* A compute graph as libllama built it, seen through cb_eval: where rows enter it and where they
 * leave.
 *
 * Stock libllama has no call for "start at this residual" or "give me what leaves the last layer".
 * But the context's cb_eval is asked about every node, and nodes know their sources. So one small
 * decode at load is recorded (nk__graph_add for each node asked about), and the places are then
 * found by structure alone, without a word about architectures:
 *
 *   embd   the result of the one GET_ROWS on token_embd.weight that the output depends on
 *   entry  the residual that feeds layer 0: among the nodes from embd up to the first one that
 *          reads a weight of layer 0, the last one that all paths from embd to the output run
 *          through
 *   leave  the residual that the last layer gives out: among the nodes from the last one that reads
 *          a weight of the last layer up to the first one behind it that reads a weight of no layer
 *          (the final norm's, or the head's), the last one that all paths run through
 *
 * A norm is the business of what follows it: one that only layer 0 reads is part of layer 0, and
 * one that only the head reads is part of the head. So rows enter and leave before such a norm.
 *
 * "All paths run through it" is what makes it right to put a value there and forget everything
 * before it: nothing from before is read again behind it. Between the layers it is enough that they
 * run once and in order, and that nothing from before layer 0 goes into a later layer as well
 * (talkie adds the embedding again in each). Where that is not so, more than one row passes from
 * layer to layer, and the model is refused instead of served wrong.
 *
 * A node is found again in later graphs, of other sizes, by its `struct nk__place`. */
#ifndef NK_STAGE_GRAPH_INT_H
#define NK_STAGE_GRAPH_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ggml.h>

#include "base/error.h"

typedef struct nk__graph nk__graph;

/* Where a node is, in words that hold for graphs of any number of tokens. */
struct nk__place {
    enum ggml_op op;
    /* "" where libllama gave it none (its default, node_17, changes with the graph). */
    char name[GGML_MAX_NAME];
    /* Of the first two sources; compared for nodes without a name only. */
    enum ggml_op src_op[2];
    char src_name[2][GGML_MAX_NAME]; /* "" where it has none */
    int n_before;                    /* how many nodes before it in the graph look the same */
    int64_t width;                   /* elements per token */
    bool found;
};

nk__graph *nk__graph_new(void); /* NULL when out of memory */
void nk__graph_free(nk__graph *g);
void nk__graph_reset(nk__graph *g);
/* Called for every node in order, during the decode; keeps the pointer only. */
void nk__graph_add(nk__graph *g, const struct ggml_tensor *t);
/* Called after the decode, before the next: reads what the pointers point to. n_tokens: of that
 * decode. False when out of memory. */
bool nk__graph_finish(nk__graph *g, int n_tokens);

/* Finds the places. n_layer: the layers in this graph.
 *   UNIMPLEMENTED  unsupported  says which place does not exist
 *   EXHAUSTED      no_memory */
int nk__graph_places(const nk__graph *g, int n_layer, struct nk__place *embd,
                     struct nk__place *entry, struct nk__place *leave, struct nk_error *err);
/* Does the output depend on the token ids by another way than the embedding (experts chosen by id,
 * embeddings per layer)? EXHAUSTED `no_memory`. */
int nk__graph_needs_ids(const nk__graph *g, bool *needs, struct nk_error *err);
/* How many positions a table of learned position embeddings has; 0 when there is none. Past it
 * libllama aborts. */
int64_t nk__graph_max_positions(const nk__graph *g);
/* Is row input through llama_batch.embd the same computation as overwriting `entry`: is a's entry,
 * overwritten, followed by just what follows b's bare input? a: recorded with token ids, b: with
 * embd, both with the same number of tokens. EXHAUSTED `no_memory`. */
int nk__graph_same_after_entry(const nk__graph *a, const struct nk__place *entry,
                               const nk__graph *b, bool *same, struct nk_error *err);
/* Does it read the weight, or the cache, of this name? */
bool nk__graph_reads(const nk__graph *g, const char *name);
bool nk__graph_has_op(const nk__graph *g, enum ggml_op op);
/* Bytes of the KV cache and recurrent states. */
uint64_t nk__graph_cache_bytes(const nk__graph *g);
/* The buffer that holds the result of the node at a place, while the graph lives; NULL: none. */
struct ggml_backend_buffer *nk__graph_buffer(const nk__graph *g, const struct nk__place *p);
struct ggml_backend_buffer *nk__graph_output_buffer(const nk__graph *g);
/* The buffers of weights and caches that the graph reads, each once: fills up to max, returns how
 * many there are. */
int nk__graph_leaf_buffers(const nk__graph *g, struct ggml_backend_buffer **out, int max);
/* In the name of a buffer of weights that llama.cpp uses where the file is mapped: CPU_Mapped. */
#define NK__MAPPED "Mapped"
struct nk__span {
    void *data;
    size_t size_bytes;
};
/* The weights that the CPU reads from the mapping of the file with every run; not a table of which
 * a run looks up some rows. Fills up to max, returns how many. */
int nk__graph_mapped_weights(const nk__graph *g, struct nk__span *out, int max);
/* Do both end with the same node? A graph whose decode was cut off may lack its end. */
bool nk__graph_same_end(const nk__graph *a, const nk__graph *b);

/* Does this node look like the one at p? The first p->n_before that do are others. n_tokens: of
 * this graph. Called for every node of every decode: cheap. */
bool nk__place_matches(const struct nk__place *p, const struct ggml_tensor *t, int n_tokens);

#endif
