/* How a token is chosen from logits: plain data, with the field's names and libllama's meaning.
 * Defaults: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, penalty_last_n 64, everything else
 * off. */
#ifndef NK_TEXT_SAMPLING_H
#define NK_TEXT_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum { NK_LOGIT_BIAS_MAX = 1024, NK_LOGPROBS_MAX = 20, NK_GRAMMAR_BYTES_MAX = 65536 };
#define NK_SEED_RANDOM     0xffffffffu /* libllama's LLAMA_DEFAULT_SEED */
#define NK_TEMPERATURE_MAX 100.0f
#define NK_PENALTY_MAX     1000.0f /* of each penalty and DRY; beyond it logits only overflow */

struct nk_logit_bias {
    int32_t id;
    float bias;
};

struct nk_sampling {
    float temperature; /* 0: greedy; penalties, DRY, bias and grammar still count */
    int top_k;         /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    float typical_p;   /* 1: off */
    float top_n_sigma; /* 0: off; only tokens within so many deviations of the largest logit */

    /* XTC: with this probability the most probable tokens are left out, but for the last of those
     * above the threshold. 0: off. */
    float xtc_probability, xtc_threshold;
    /* The temperature varies by so much around its value, with the entropy. 0: off. */
    float dynatemp_range, dynatemp_exponent;

    /* 1, 0, 0: off. */
    float repeat_penalty, presence_penalty, frequency_penalty;
    int penalty_last_n; /* tokens looked at; -1: all of n_ctx */

    float dry_multiplier;   /* 0: off. Breakers: newline : " * */
    float dry_base;         /* default 1.75 */
    int dry_allowed_length; /* default 2 */
    int dry_penalty_last_n; /* -1: all of n_ctx */

    int mirostat; /* 0: off; 1, 2: instead of top-k, typical, top-p and min-p */
    float mirostat_tau, mirostat_eta;

    uint32_t seed; /* NK_SEED_RANDOM: one that is drawn, which nk_sampler_seed tells */
    const struct nk_logit_bias *logit_bias; /* borrowed */
    int n_logit_bias;
    const char *grammar; /* GBNF, root rule "root"; NULL: none. borrowed */
    bool ignore_eos;     /* never choose an end-of-generation token */
};

struct nk_sampling nk_sampling_default(void);
/* INVALID `bad_sampling`: names the field, what was found and what would be right. Does not parse
 * the grammar. */
int nk_sampling_check(const struct nk_sampling *s, struct nk_error *err);

#endif
