/* Who gets which layers: facts about a model, machines and the links between them in, a plan out.
 *
 * Pure: no clock, no network, no files, no chance but a seed that is handed in; the same facts and
 * options give the same plan, whatever their order. Members are named by id everywhere. Nothing
 * here is kept: a caller who plans again hands in the plan in force. Any thread; a call shares
 * nothing with another.
 *
 * The model of time (docs/planning.md). A member needs step_ms + layers * layer_ms(rows) for a run,
 * the last of a chain head_ms(rows) more, the first embd_ms a row. Between 1, 8 and chunk_rows rows
 * what was measured is interpolated, beyond them the last line goes on. A hop from one stage to the
 * next is its rows' bytes over the link's rate, half a round trip there and half a one back for
 * the token (it returns through the stages), and hop_ms.
 *   one stream   ms per token = all stages' time and all hops
 *   S streams    K stages run them as min(S, K) groups of rows, each as large as possible; one
 *                token for each stream takes as long as the largest of: the slowest stage's time
 *                for all groups; the slowest link's; the way of one group through all
 *   the prompt   chunks of chunk_rows, two of them under way at a time
 *
 * What is exact. With at most NK_PLAN_EXACT_MAX members the best single chain is found, for both
 * objectives, any links, any layers and cuts. For one stream it is also found for any number of
 * members where what arriving at a member costs does not depend on where one comes from (all links
 * equal, or one slow access line for each) and what lies between two legal cuts is equal throughout
 * the model (layers of one size, cuts at equal distances). Everything else is searched for: `bound`
 * says what no plan can beat, gap how far away the plan is; where the two meet it is the best all
 * the same. Replicas (several chains) are always searched for: they are taken when they beat the
 * best single chain that was found. Being searched for, a plan can be worse than one for fewer
 * machines, but never than the one in force (`in_force`), than the best single machine or than the
 * best chain of equal access lines that was found. */
#ifndef NK_PLAN_PLAN_H
#define NK_PLAN_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum {
    NK_PLAN_ID_MAX = 64,         /* with its NUL */
    NK_PLAN_MEMBERS_MAX = 2048,  /* 1,000 are planned in milliseconds */
    NK_PLAN_LAYERS_MAX = 1024,   /* as NK_LAYERS_MAX */
    NK_PLAN_LINKS_MAX = 1 << 20, /* measured pairs: each with each of 1,000 */
    NK_PLAN_STREAMS_MAX = 65536,
    NK_PLAN_CHAINS_MAX = 256, /* replicas */
    NK_PLAN_EXACT_MAX = 8,    /* members up to which every chain is looked at */
};

/* ---- facts ---- */

/* Arrays are borrowed for the call and have n_layer elements. */
struct nk_plan_model {
    int n_layer;
    const uint64_t *layer_bytes;        /* weights */
    const uint64_t *kv_bytes_per_token; /* NULL: none */
    /* Of recurrent layers, per sequence; NULL: none. */
    const uint64_t *state_bytes;
    /* A layer's time, in the members' layer_ms; NULL: all 1. */
    const double *layer_cost;
    /* legal_cut[i]: may the model be cut before layer i? [0] is not looked at. NULL: anywhere. */
    const bool *legal_cut;
    uint64_t embd_bytes;  /* held by the first stage */
    uint64_t head_bytes;  /* held by the last stage */
    bool tied;            /* they are one: who is both first and last holds only head_bytes */
    uint64_t other_bytes; /* held by every stage (rope factors, norms) */
    uint64_t row_bytes;   /* of one row on a link: n_embd * 4, or * 2 in f16 */
};

/* 0 ms: not measured. Without layer_ms_1 a member is planned as the slowest that has one (all 1 ms
 * when none has: result's rates_known is then false). Without the others: layer_ms_8 as 4 times
 * layer_ms_1 and a chunk as its rows at the price of 8 rows; head 0. What contradicts itself (8
 * rows cheaper than one, or dearer than 8 times one; NaN, below 0) is moved to the nearest that
 * does not.
 *
 * Bounded harm: with three members or more whose layers were measured, none is planned as more than
 * `plausible` times faster than the median of the others, or as having more than `plausible` times
 * their median of memory. What was measured on a running stage (stage_*, by whoever waited for it)
 * comes after that and wins: all ms of the member are multiplied by what was measured over what was
 * predicted. */
struct nk_plan_member {
    char id[NK_PLAN_ID_MAX];   /* not empty, unique */
    char name[NK_PLAN_ID_MAX]; /* for sentences; "": the id */
    /* What a worker could have: on a device its memory, else the machine's. A running worker's own
     * is counted as free. */
    uint64_t memory_bytes;
    uint64_t overhead_bytes; /* what it takes besides weights and KV: compute buffers, runtime */
    /* The same where it is the last stage: more, for the logits. 0: as overhead_bytes. */
    uint64_t overhead_last_bytes;
    double step_ms; /* of a run, besides its layers */
    double layer_ms_1, layer_ms_8, layer_ms_chunk;
    double head_ms_1, head_ms_8;
    double embd_ms;        /* one row */
    int chunk_rows;        /* rows of layer_ms_chunk; at most 8: 64 */
    double gateway_rtt_ms; /* gateway to here: matters for the first token only */
    bool no_layers;        /* it is to hold none: a gateway, one that leaves */
    /* Measured on a stage that runs: stage_ms for stage_rows rows through stage_layers layers (and
     * the head where stage_last). stage_layers 0: none. */
    int stage_layers, stage_rows;
    bool stage_last;
    double stage_ms;
};

/* Between two members. Where only one direction was measured it counts for both. A link of ids
 * that are no members is not looked at: members come and go. */
struct nk_plan_link {
    char from[NK_PLAN_ID_MAX], to[NK_PLAN_ID_MAX];
    double rtt_ms;
    double bytes_per_s; /* 0: the default's */
    /* `from` cannot connect to `to` (a firewall, Wi-Fi that keeps its guests apart): no chain goes
     * this way. Wins over what else is said of it, and says nothing of the way back. */
    bool no_way;
};

struct nk_plan_facts {
    const struct nk_plan_model *model;
    const struct nk_plan_member *members;
    int n_members;
    const struct nk_plan_link *links; /* those that were measured */
    int n_links;
    /* All others. An rtt below 0 counts as 0; a rate of 0 as no limit. */
    double default_rtt_ms, default_bytes_per_s;
};

/* ---- what is wanted ---- */

enum nk_plan_objective {
    NK_PLAN_ONE_STREAM, /* ms per token of one stream; the default */
    NK_PLAN_RATE,       /* tokens per second of all streams together */
};

struct nk_plan;

struct nk_plan_opts {
    enum nk_plan_objective objective;
    int n_ctx;        /* KV tokens, shared by all sequences (a worker's --ctx) */
    int sequences;    /* 1 or more */
    int streams;      /* requests at a time, for rates; 1 or more */
    int spread;       /* at least so many machines in the chain; 0 or 1: as many as are good */
    double headroom;  /* of memory_bytes that is left free; 0.2 */
    double keep;      /* what a better plan must gain to replace the one in force; 0.1 */
    double hop_ms;    /* of a hop, besides the link: 0.1 */
    double plausible; /* 64; 0: facts are believed */
    uint64_t seed;    /* of the search */
    /* A plan of one's own: its stages' ids and ranges are taken, checked and evaluated, nothing
     * else is planned. It, and the plan in force, may use the headroom. Borrowed; NULL: none. */
    const struct nk_plan *by_hand;
    /* The plan in force: kept unless it has become impossible, or a better one gains `keep`.
     * Borrowed; only chains, ids and ranges are looked at. NULL: none. */
    const struct nk_plan *in_force;
};
struct nk_plan_opts nk_plan_opts_default(void); /* n_ctx 4096, sequences and streams 1 */

/* ---- the plan ---- */

enum nk_plan_kind {
    NK_PLAN_ONE_MACHINE,
    NK_PLAN_CHAIN,
    NK_PLAN_REPLICAS, /* several chains; each of one machine or more */
    NK_PLAN_DOES_NOT_FIT,
};
const char *nk_plan_kind_text(enum nk_plan_kind kind); /* "one_machine", ..., "does_not_fit" */

struct nk_plan_stage {
    char id[NK_PLAN_ID_MAX];
    int begin, end; /* layers */
    /* Memory; weights with embedding and head; kv with recurrent states. */
    uint64_t weight_bytes, kv_bytes, overhead_bytes;
    uint64_t free_bytes; /* the member's memory_bytes less these */
    double ms;           /* of one row */
    double hop_ms;       /* to the next stage and back; 0 for the last */
};

struct nk_plan_chain {
    struct nk_plan_stage *stages;
    int n_stages;
    int streams;         /* of opts.streams; with replicas each has a share */
    double ms_per_token; /* one stream, alone */
    double tokens_per_s; /* its streams together */
    double ttft_ms;      /* a prompt of NK_PLAN_PROMPT tokens, on a chain that is idle */
};
enum { NK_PLAN_PROMPT = 512 };

struct nk_plan_spare {
    char id[NK_PLAN_ID_MAX];
    char why[256]; /* a sentence without the member's name, without a full stop */
};

/* What else was considered; what[] is a phrase ("three machines", "every machine alone"). */
struct nk_plan_alternative {
    char what[128];
    enum nk_plan_kind kind; /* DOES_NOT_FIT: the three below are 0 */
    int n_machines;
    double ms_per_token, tokens_per_s, ttft_ms;
};

struct nk_plan {
    enum nk_plan_kind kind;
    struct nk_plan_chain *chains; /* the first has the best ms_per_token */
    int n_chains;                 /* 0: does not fit */
    struct nk_plan_spare *spares; /* every member in no chain, by id */
    int n_spares;
    struct nk_plan_alternative *alternatives;
    int n_alternatives;
    double ms_per_token; /* of one stream, on the best chain */
    double tokens_per_s; /* of all streams */
    double ttft_ms;      /* on the best chain */
    bool rates_known;    /* false: no member was measured; ms and rates mean nothing */
    bool kept;           /* the plan in force; a new one would not have gained enough */
    /* No plan is better than bound: ms per token, or tokens per second, by the objective. gap: how
     * far away this one is, 0.03 for 3 %; 0: it is the best (exact: known to be so without a look
     * at the bound). For a plan by hand gap is 0 and bound its own value. */
    bool exact;
    double bound, gap;
    int64_t n_states; /* states looked at: the work, for whoever counts it */
    /* Of all layers' weights, KV and states, embedding, head: what one machine would need for it,
     * and what members can have together, both without headroom, overhead and other_bytes. */
    uint64_t needed_bytes, available_bytes;
    /* Does not fit: the memory (with headroom; overhead as the members' median) that one more
     * machine would need for it to fit. 0 where memory is not what is missing. */
    uint64_t short_bytes;
    char why[256]; /* does not fit, or kept: a sentence. Else "" */
};

/* *out is owned by the caller (nk_plan_free). A model that does not fit is a plan, too.
 *   INVALID    bad_facts   the model, a member or a link that cannot be: names it
 *   INVALID    bad_opts    an option out of its range
 *   INVALID    bad_plan    by_hand: a member that is not there or holds none, layers that do not
 *                          follow each other, an illegal cut, a member twice, too little memory, no
 *                          way from one to the next
 *   EXHAUSTED  no_memory   */
int nk_plan_make(struct nk_plan **out, const struct nk_plan_facts *facts,
                 const struct nk_plan_opts *opts, struct nk_error *err);
void nk_plan_free(struct nk_plan *p); /* NULL: nothing */

/* A plan that has only stages, to be handed in (by_hand, in_force): one chain, or with further
 * calls more. nk_plan_new, then nk_plan_chain_add with the stages in order (ids and ranges are
 * copied).
 *   EXHAUSTED  no_memory, too_large */
int nk_plan_new(struct nk_plan **out, struct nk_error *err);
int nk_plan_chain_add(struct nk_plan *p, const struct nk_plan_stage *stages, int n,
                      struct nk_error *err);

/* Do they say the same: the same chains, whatever their order, with the same ids and ranges? */
bool nk_plan_same(const struct nk_plan *a, const struct nk_plan *b);

#endif
