/* A session's sampler: libllama's sampler chain, built from struct nk_sampling, over logits that
 * the caller has. Order as in llama.cpp's common sampler: logit bias, penalties, DRY, top-k,
 * typical, top-p, min-p, temperature, draw; a grammar is applied to the drawn token first and to
 * the whole vocabulary only when it refuses (rejection), as llama.cpp's tools do, so that the same
 * seed gives the same text. Tokens that the model itself suppresses
 * (tokenizer.ggml.suppress_tokens) are never chosen. One thread at a time. */
#ifndef NK_TEXT_SAMPLER_H
#define NK_TEXT_SAMPLER_H

#include <stdatomic.h>

#include "text/sampling.h"

struct llama_vocab;
struct nk_chance;
typedef struct nk_sampler nk_sampler;

/* *out owned by the caller. The vocabulary is borrowed until nk_sampler_free. n_ctx: what "all of
 * n_ctx" means. chance: what a seed is drawn from where sampling gives none (NK_SEED_RANDOM);
 * borrowed for the call.
 *   INVALID      bad_sampling   see nk_sampling_check
 *   INVALID      bad_grammar    with line and cause (see text/grammar.h); or the vocabulary has no
 *                               text to match (a stub)
 *   UNAVAILABLE  no_entropy     chance has none to give */
int nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                   const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                   struct nk_error *err);
void nk_sampler_free(nk_sampler *s);
uint32_t nk_sampler_seed(const nk_sampler *s); /* the one in use */

/* A prompt token: penalties see it, the grammar does not. */
void nk_sampler_prompt(nk_sampler *s, int32_t id);

struct nk_token_prob {
    int32_t id;
    float logprob; /* natural log of softmax over the unmodified logits */
};
struct nk_sampled {
    int32_t id;
    float logprob; /* NaN when no log-probabilities were asked for */
    int n_top;
    struct nk_token_prob top[NK_LOGPROBS_MAX]; /* the most probable first */
};
/* The log-probability of the token out->id, which is not chosen but given, and of n_top others:
 * out's logprob, n_top and top. INTERNAL bad_logits, as nk_sampler_sample. */
int nk_logits_look(const float *logits, int n_vocab, int n_top, struct nk_sampled *out,
                   struct nk_error *err);
/* In a hurry, what takes more than some milliseconds, which only a grammar does, is left for later:
 * the two calls below end with DEADLINE `later`. The same call with the same logits, no longer in a
 * hurry, then goes on, and gives what it would have given at once. */
void nk_sampler_hurry(nk_sampler *s, bool hurry);
/* While *cancelled, which is borrowed until the next call of this, the grammar's part in choosing a
 * token ends at once with CANCELLED `cancelled`; the sampler is then only good to be freed. */
void nk_sampler_cancel_by(nk_sampler *s, const atomic_bool *cancelled);

/* Chooses a token and accepts it. logits: n_vocab floats, left unchanged; -infinity forbids a
 * token. n_logprobs: -1 none, 0 the chosen token's only, up to NK_LOGPROBS_MAX alternatives.
 *   EXHAUSTED grammar_too_complex   see text/grammar.h
 *   CANCELLED cancelled             by nk_sampler_cancel_by's flag
 *   INTERNAL  bad_logits            one is NaN or +infinity (the computation is broken), or nothing
 *                                   can be chosen */
int nk_sampler_sample(nk_sampler *s, const float *logits, int n_logprobs, struct nk_sampled *out,
                      struct nk_error *err);
/* The same, but the token is given: one that was chosen before, by another sampler that is to be
 * followed to where it was. Draws what that one drew and accepts id. *same: id would have been
 * chosen. An id that the grammar does not allow is INTERNAL `bad_logits`, too. */
int nk_sampler_force(nk_sampler *s, const float *logits, int32_t id, bool *same,
                     struct nk_error *err);

#endif
