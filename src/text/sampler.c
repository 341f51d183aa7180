/* What libllama has no sampler for is here: a plain argmax when nothing but the largest logit is
 * asked for, the check that logits are numbers at all, log-probabilities, and the rule that a
 * grammar first sees only the drawn token. */
#include "text/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "base/chance.h"
#include "text/grammar.h"
#include "text/guard.h"

struct nk_sampler {
    const struct llama_vocab *vocab;
    struct llama_sampler *chain;  /* NULL: the largest logit, nothing else */
    nk_grammar *grammar;          /* NULL: none */
    llama_token_data *candidates; /* n_vocab of them; NULL where neither chain nor grammar is */
    /* Where the chain does nothing but lower the logits of these and take the largest: the largest
     * of all is its choice, if it is none of these, and 128,256 candidates need not be laid out for
     * it. NULL otherwise. */
    llama_token *lowered;
    int n_lowered;
    int n_vocab;
    uint32_t seed;
    bool hurry;
    /* A token that is being chosen: the next step, and what the last ones have found. */
    enum { DRAW, MATCH, CHECK, ACCEPT } next;
    int32_t id;
    float max;
};

/* Nodes of a grammar's network in one walk, of which there are at most three for a token: about a
 * millisecond each. */
enum { HURRY_WORK_MAX = 40000 };

/* Where a repetition may begin anew (DRY): the defaults of its author and of llama.cpp. */
static const char *dry_breakers[] = { "\n", ":", "\"", "*" };

/* ---- construction ---- */

static int chain_add(nk_sampler *s, struct llama_sampler *part, struct nk_error *err)
{
    if (!s->chain)
        s->chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    if (!part || !s->chain)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a sampler");
    llama_sampler_chain_add(s->chain, part);
    return 0;
}

static int note_lowered(nk_sampler *s, const llama_logit_bias *biases, int n, struct nk_error *err)
{
    for (int i = 0; i < n; i++)
        if (!(biases[i].bias <= 0))
            return 0;
    if (n < 1)
        return 0;
    s->lowered = malloc((size_t)n * sizeof *s->lowered);
    if (!s->lowered)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the logit biases");
    for (int i = 0; i < n; i++)
        s->lowered[i] = biases[i].token;
    s->n_lowered = n;
    return 0;
}

/* The client's biases, the model's own suppressed tokens, and the ends of generation when these are
 * to be ignored. */
static int add_biases(nk_sampler *s, const struct nk_sampling *p, struct nk_error *err)
{
    int32_t n_suppressed = 0;
    const llama_token *suppressed = llama_vocab_get_suppress_tokens(s->vocab, &n_suppressed);
    llama_logit_bias *biases;
    int n = 0, rc = 0;

    biases = malloc(((size_t)p->n_logit_bias + (size_t)n_suppressed +
                     (p->ignore_eos ? (size_t)s->n_vocab : 0) + 1) *
                    sizeof *biases);
    if (!biases)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the logit biases");
    for (int i = 0; i < p->n_logit_bias; i++) {
        if (p->logit_bias[i].id >= s->n_vocab) {
            rc = nk_fail(err, NK_E_INVALID, "bad_sampling",
                         "logit_bias names the token %d; this vocabulary has 0 to %d",
                         p->logit_bias[i].id, s->n_vocab - 1);
            goto out;
        }
        biases[n++] = (llama_logit_bias){ p->logit_bias[i].id, p->logit_bias[i].bias };
    }
    for (int32_t i = 0; i < n_suppressed; i++)
        if (suppressed[i] >= 0 && suppressed[i] < s->n_vocab)
            biases[n++] = (llama_logit_bias){ suppressed[i], -INFINITY };
    if (p->ignore_eos)
        for (int32_t id = 0; id < s->n_vocab; id++)
            if (llama_vocab_is_eog(s->vocab, id))
                biases[n++] = (llama_logit_bias){ id, -INFINITY };
    if (n)
        rc = chain_add(s, llama_sampler_init_logit_bias(s->n_vocab, n, biases), err);
    if (!rc)
        rc = note_lowered(s, biases, n, err);
out:
    free(biases);
    return rc;
}

/* "-1: all of n_ctx"; and never more than that, for so much memory is taken at once. */
static int last_n(int asked, int n_ctx)
{
    return asked < 0 || asked > n_ctx ? n_ctx : asked;
}

static int add_penalties(nk_sampler *s, const struct nk_sampling *p, int n_ctx,
                         struct nk_error *err)
{
    struct llama_sampler *dry = NULL;
    int n = last_n(p->penalty_last_n, n_ctx), rc;

    if (n > 0 &&
        (p->repeat_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0)) {
        rc = chain_add(s,
                       llama_sampler_init_penalties(s->n_vocab, n, p->repeat_penalty,
                                                    p->frequency_penalty, p->presence_penalty),
                       err);
        if (rc)
            return rc;
    }
    n = last_n(p->dry_penalty_last_n, n_ctx);
    if (n == 0 || p->dry_multiplier == 0)
        return 0;
    if (llama_vocab_type(s->vocab) == LLAMA_VOCAB_TYPE_NONE)
        return nk_fail(err, NK_E_INVALID, "bad_sampling",
                       "dry_multiplier needs the text of tokens, and this vocabulary has none");
    rc = nk__guard_init_dry(&dry, s->vocab, p->dry_multiplier, p->dry_base, p->dry_allowed_length,
                            n, dry_breakers, sizeof dry_breakers / sizeof dry_breakers[0], err);
    return rc ? rc : chain_add(s, dry, err);
}

/* What chooses: everything after biases and penalties. */
static int add_choice(nk_sampler *s, const struct nk_sampling *p, struct nk_error *err)
{
    const size_t min_keep = 0; /* llama.cpp's default */
    int rc = 0;

    if (p->temperature == 0)
        return s->chain ? chain_add(s, llama_sampler_init_greedy(), err) : 0;
    if (p->mirostat) {
        rc = chain_add(s, llama_sampler_init_temp(p->temperature), err);
        if (rc)
            return rc;
        /* 100: the number of tokens that s_hat is estimated from, in the paper and in llama.cpp. */
        return chain_add(
            s,
            p->mirostat == 1
                ? llama_sampler_init_mirostat(s->n_vocab, s->seed, p->mirostat_tau, p->mirostat_eta,
                                              100)
                : llama_sampler_init_mirostat_v2(s->seed, p->mirostat_tau, p->mirostat_eta),
            err);
    }
    if (p->top_n_sigma > 0)
        rc = chain_add(s, llama_sampler_init_top_n_sigma(p->top_n_sigma), err);
    if (!rc && p->top_k > 0)
        rc = chain_add(s, llama_sampler_init_top_k(p->top_k), err);
    if (!rc && p->typical_p < 1)
        rc = chain_add(s, llama_sampler_init_typical(p->typical_p, min_keep), err);
    if (!rc && p->top_p < 1)
        rc = chain_add(s, llama_sampler_init_top_p(p->top_p, min_keep), err);
    if (!rc && p->min_p > 0)
        rc = chain_add(s, llama_sampler_init_min_p(p->min_p, min_keep), err);
    if (!rc && p->xtc_probability > 0)
        rc = chain_add(
            s, llama_sampler_init_xtc(p->xtc_probability, p->xtc_threshold, min_keep, s->seed),
            err);
    if (!rc)
        rc = chain_add(s,
                       p->dynatemp_range > 0
                           ? llama_sampler_init_temp_ext(p->temperature, p->dynatemp_range,
                                                         p->dynatemp_exponent)
                           : llama_sampler_init_temp(p->temperature),
                       err);
    if (!rc)
        rc = chain_add(s, llama_sampler_init_dist(s->seed), err);
    return rc;
}

int nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                   const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                   struct nk_error *err)
{
    nk_sampler *s;
    int rc;

    *out = NULL;
    NK_ASSERT(n_ctx > 0);
    rc = nk_sampling_check(sampling, err);
    if (rc)
        return rc;
    s = calloc(1, sizeof *s);
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a sampler");
    s->vocab = vocab;
    s->n_vocab = llama_vocab_n_tokens(vocab);
    s->seed = sampling->seed;
    if (s->n_vocab <= 0) {
        rc = nk_fail(err, NK_E_INVALID, "bad_sampling",
                     "the vocabulary has no tokens to choose from");
        goto out;
    }
    if (s->seed == NK_SEED_RANDOM) {
        rc = nk_chance_fill(chance, &s->seed, sizeof s->seed, err);
        if (s->seed == NK_SEED_RANDOM) /* which libllama would not take for a seed */
            s->seed = 0;
    }
    if (!rc)
        rc = add_biases(s, sampling, err);
    if (!rc)
        rc = add_penalties(s, sampling, n_ctx, err);
    if (!rc && (sampling->temperature != 0 || (s->chain && llama_sampler_chain_n(s->chain) != 1))) {
        free(s->lowered);
        s->lowered = NULL;
    }
    if (!rc)
        rc = add_choice(s, sampling, err);
    if (!rc && sampling->grammar)
        rc = nk_wrap(nk_grammar_new(&s->grammar, vocab, sampling->grammar, err), err, "grammar");
    if (rc)
        goto out;
    if (s->chain || s->grammar) {
        s->candidates = malloc((size_t)s->n_vocab * sizeof *s->candidates);
        if (!s->candidates) {
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %d candidates",
                         s->n_vocab);
            goto out;
        }
    }
    *out = s;
    s = NULL;
out:
    nk_sampler_free(s);
    return rc;
}

void nk_sampler_free(nk_sampler *s)
{
    if (!s)
        return;
    if (s->chain)
        llama_sampler_free(s->chain);
    nk_grammar_free(s->grammar);
    free(s->candidates);
    free(s->lowered);
    free(s);
}

uint32_t nk_sampler_seed(const nk_sampler *s)
{
    return s->seed;
}

void nk_sampler_prompt(nk_sampler *s, int32_t id)
{
    if (s->chain && id >= 0 && id < s->n_vocab)
        llama_sampler_accept(s->chain, id);
}

/* ---- choosing ---- */

/* Lanes that do not depend on each other, so that the compiler can use the vector unit without
 * -ffast-math. */
enum { LANES = 16 };

/* The largest logit. False when one is NaN or +infinity: then something before us is broken. */
static bool largest(const float *logits, int n, float *max)
{
    float lane_max[LANES];
    int lane_bad[LANES] = { 0 }, bad = 0, i = 0;

    for (int l = 0; l < LANES; l++)
        lane_max[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float v = logits[i + l];

            lane_max[l] = v > lane_max[l] ? v : lane_max[l];
            lane_bad[l] |= !(v <= FLT_MAX);
        }
    for (; i < n; i++) {
        lane_max[0] = logits[i] > lane_max[0] ? logits[i] : lane_max[0];
        bad |= !(logits[i] <= FLT_MAX);
    }
    *max = lane_max[0];
    for (int l = 0; l < LANES; l++) {
        *max = lane_max[l] > *max ? lane_max[l] : *max;
        bad |= lane_bad[l];
    }
    return !bad;
}

static int32_t first_equal(const float *logits, int n, float value)
{
    for (int32_t i = 0; i < n; i++)
        if (logits[i] == value)
            return i;
    return -1;
}

static bool is_lowered(const nk_sampler *s, int32_t id)
{
    for (int i = 0; i < s->n_lowered; i++)
        if (s->lowered[i] == id)
            return true;
    return false;
}

static llama_token_data_array all_candidates(nk_sampler *s, const float *logits)
{
    for (int32_t id = 0; id < s->n_vocab; id++)
        s->candidates[id] = (llama_token_data){ id, logits[id], 0.0f };
    return (llama_token_data_array){ s->candidates, (size_t)s->n_vocab, -1, false };
}

static int nothing_left(struct nk_error *err)
{
    return nk_fail(err, NK_E_INTERNAL, "bad_logits",
                   "no token can be chosen: grammar and biases forbid every one");
}

/* Draws from the candidates, through the chain where there is one. */
static int choose(nk_sampler *s, llama_token_data_array *c, int32_t *id, struct nk_error *err)
{
    int rc;

    if (!s->chain) {
        const llama_token_data *best = &c->data[0];

        for (size_t i = 1; i < c->size; i++)
            if (c->data[i].logit > best->logit)
                best = &c->data[i];
        if (best->logit == -INFINITY)
            return nothing_left(err);
        *id = best->id;
        return 0;
    }
    rc = nk__guard_apply(s->chain, c, err);
    if (rc)
        return rc;
    if (c->selected < 0 || (size_t)c->selected >= c->size ||
        !(c->data[c->selected].logit > -INFINITY)) /* NaN too */
        return nothing_left(err);
    *id = c->data[c->selected].id;
    return 0;
}

/* *id was drawn without regard to the grammar. When that refuses it, draws again from what it
 * allows. */
static int choose_with_grammar(nk_sampler *s, const float *logits, int32_t *id,
                               struct nk_error *err)
{
    llama_token_data_array c;
    const uint8_t *mask;
    bool allowed = false;
    size_t n_left = 0;
    int rc = nk_grammar_allows(s->grammar, *id, &allowed, err);

    if (rc || allowed)
        return rc;
    rc = nk_grammar_mask(s->grammar, &mask, err);
    if (rc)
        return rc;
    c = all_candidates(s, logits);
    for (size_t i = 0; i < c.size; i++) {
        if (!mask[i])
            c.data[i].logit = -INFINITY;
        n_left += c.data[i].logit > -INFINITY;
    }
    return n_left ? choose(s, &c, id, err) : nothing_left(err);
}

/* Natural log of softmax: logit - max - log(sum(exp(logit - max))). */
static void log_probs(const float *logits, int n, float max, int n_top, struct nk_sampled *out)
{
    double sum = 0, log_sum;

    out->n_top = 0;
    for (int32_t id = 0; id < n; id++) {
        int at = out->n_top;

        sum += (double)expf(logits[id] - max);
        if (at == n_top && (n_top == 0 || !(logits[id] > out->top[n_top - 1].logprob)))
            continue;
        if (out->n_top < n_top)
            out->n_top++;
        else
            at--;
        for (; at > 0 && logits[id] > out->top[at - 1].logprob; at--)
            out->top[at] = out->top[at - 1];
        out->top[at] = (struct nk_token_prob){ id, logits[id] };
    }
    log_sum = log(sum);
    for (int i = 0; i < out->n_top; i++)
        out->top[i].logprob = (float)((double)(out->top[i].logprob - max) - log_sum);
    out->logprob = (float)((double)(logits[out->id] - max) - log_sum);
}

static int check_logits(const float *logits, int n_vocab, float *max, struct nk_error *err)
{
    if (!largest(logits, n_vocab, max))
        return nk_fail(err, NK_E_INTERNAL, "bad_logits",
                       "a logit is not a number: the computation before is broken, and the slices' "
                       "files are the first thing to look at (nakshatra inspect)");
    if (*max == -INFINITY)
        return nk_fail(err, NK_E_INTERNAL, "bad_logits",
                       "every logit is -infinity: the slices' files are the first thing to look at "
                       "(nakshatra inspect)");
    return 0;
}

int nk_logits_look(const float *logits, int n_vocab, int n_top, struct nk_sampled *out,
                   struct nk_error *err)
{
    float max;
    int rc = check_logits(logits, n_vocab, &max, err);

    if (!rc)
        log_probs(logits, n_vocab, max, n_top, out);
    return rc;
}

/* Chooses without regard to the grammar: s->id, s->max. */
static int draw(nk_sampler *s, const float *logits, struct nk_error *err)
{
    int rc = check_logits(logits, s->n_vocab, &s->max, err);

    if (rc)
        return rc;
    s->id = first_equal(logits, s->n_vocab, s->max);
    if (s->chain && !(s->lowered && !is_lowered(s, s->id))) {
        llama_token_data_array c = all_candidates(s, logits);

        rc = choose(s, &c, &s->id, err);
    }
    return rc;
}

static int accept(nk_sampler *s, int32_t id, struct nk_error *err)
{
    int rc = s->grammar ? nk_grammar_accept(s->grammar, id, err) : 0;

    return !rc && s->chain ? nk__guard_accept(s->chain, id, err) : rc;
}

/* Does *forced (NULL: what was chosen) follow? */
static int check_forced(nk_sampler *s, const int32_t *forced, struct nk_error *err)
{
    bool allowed = true;
    int rc = 0;

    if (forced && s->id != *forced && s->grammar)
        rc = nk_grammar_allows(s->grammar, *forced, &allowed, err);
    if (!rc && !allowed)
        rc = nk_fail(err, NK_E_INTERNAL, "bad_logits",
                     "the grammar does not allow token %d, which was said before", *forced);
    return rc;
}

/* From where the last call left off. Each step is done once: a draw cannot be taken back. */
static int go_on(nk_sampler *s, const float *logits, const int32_t *forced, struct nk_error *err)
{
    int rc = 0;

    if (s->grammar)
        nk_grammar_limit(s->grammar, s->hurry ? HURRY_WORK_MAX : NK_GRAMMAR_WORK_MAX);
    if (s->next == DRAW) {
        rc = draw(s, logits, err);
        s->next = MATCH;
    }
    if (!rc && s->next == MATCH) {
        rc = s->grammar ? choose_with_grammar(s, logits, &s->id, err) : 0;
        s->next = rc ? MATCH : CHECK;
    }
    if (!rc && s->next == CHECK) {
        rc = check_forced(s, forced, err);
        s->next = rc ? CHECK : ACCEPT;
    }
    if (!rc && s->next == ACCEPT)
        rc = accept(s, forced ? *forced : s->id, err);
    if (rc != NK_E_DEADLINE)
        s->next = DRAW;
    return rc;
}

void nk_sampler_hurry(nk_sampler *s, bool hurry)
{
    s->hurry = hurry;
}

void nk_sampler_cancel_by(nk_sampler *s, const atomic_bool *cancelled)
{
    if (s->grammar)
        nk_grammar_cancel_by(s->grammar, cancelled);
}

int nk_sampler_sample(nk_sampler *s, const float *logits, int n_logprobs, struct nk_sampled *out,
                      struct nk_error *err)
{
    int rc;

    if (n_logprobs > NK_LOGPROBS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_sampling",
                       "%d log-probabilities; at most %d are given", n_logprobs, NK_LOGPROBS_MAX);
    out->logprob = NAN;
    out->n_top = 0;
    rc = go_on(s, logits, NULL, err);
    out->id = s->id;
    if (!rc && n_logprobs >= 0)
        log_probs(logits, s->n_vocab, s->max, n_logprobs, out);
    return rc;
}

int nk_sampler_force(nk_sampler *s, const float *logits, int32_t id, bool *same,
                     struct nk_error *err)
{
    int rc = go_on(s, logits, &id, err);

    *same = !rc && s->id == id;
    return rc;
}
