#include "text/sampling.h"

#include <math.h>
#include <string.h>

#include "base/utf8.h"

struct nk_sampling nk_sampling_default(void)
{
    return (struct nk_sampling){
        .temperature = 0.8f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.05f,
        .typical_p = 1.0f,
        .xtc_threshold = 0.1f,
        .dynatemp_exponent = 1.0f,
        .repeat_penalty = 1.0f,
        .penalty_last_n = 64,
        .dry_base = 1.75f,
        .dry_allowed_length = 2,
        .dry_penalty_last_n = -1,
        .mirostat_tau = 5.0f,
        .mirostat_eta = 0.1f,
        .seed = NK_SEED_RANDOM,
    };
}

static int bad(struct nk_error *err, const char *field, double found, const char *right)
{
    return nk_fail(err, NK_E_INVALID, "bad_sampling", "%s is %g; it must be %s", field, found,
                   right);
}

static bool within(float v, float min, float max)
{
    return v >= min && v <= max; /* false for NaN */
}

int nk_sampling_check(const struct nk_sampling *s, struct nk_error *err)
{
    if (!within(s->temperature, 0, NK_TEMPERATURE_MAX))
        return bad(err, "temperature", (double)s->temperature, "from 0 to 100");
    if (s->top_k < 0)
        return bad(err, "top_k", s->top_k, "0 (off) or more");
    if (!within(s->top_p, 0, 1))
        return bad(err, "top_p", (double)s->top_p, "from 0 to 1");
    if (!within(s->min_p, 0, 1))
        return bad(err, "min_p", (double)s->min_p, "from 0 to 1");
    if (!within(s->typical_p, 0, 1))
        return bad(err, "typical_p", (double)s->typical_p, "from 0 to 1");
    if (!within(s->top_n_sigma, 0, NK_PENALTY_MAX))
        return bad(err, "top_n_sigma", (double)s->top_n_sigma, "from 0 (off) to 1000");
    if (!within(s->xtc_probability, 0, 1))
        return bad(err, "xtc_probability", (double)s->xtc_probability, "from 0 (off) to 1");
    if (!within(s->xtc_threshold, 0, 1))
        return bad(err, "xtc_threshold", (double)s->xtc_threshold, "from 0 to 1");
    if (!within(s->dynatemp_range, 0, NK_TEMPERATURE_MAX))
        return bad(err, "dynatemp_range", (double)s->dynatemp_range, "from 0 (off) to 100");
    if (!within(s->dynatemp_exponent, 0, NK_TEMPERATURE_MAX))
        return bad(err, "dynatemp_exponent", (double)s->dynatemp_exponent, "from 0 to 100");
    if (!(s->repeat_penalty > 0) || !within(s->repeat_penalty, 0, NK_PENALTY_MAX))
        return bad(err, "repeat_penalty", (double)s->repeat_penalty, "above 0 and at most 1000");
    if (!within(s->presence_penalty, -NK_PENALTY_MAX, NK_PENALTY_MAX))
        return bad(err, "presence_penalty", (double)s->presence_penalty, "from -1000 to 1000");
    if (!within(s->frequency_penalty, -NK_PENALTY_MAX, NK_PENALTY_MAX))
        return bad(err, "frequency_penalty", (double)s->frequency_penalty, "from -1000 to 1000");
    if (s->penalty_last_n < -1)
        return bad(err, "penalty_last_n", s->penalty_last_n, "-1 (all of the context) or more");
    if (!within(s->dry_multiplier, 0, NK_PENALTY_MAX))
        return bad(err, "dry_multiplier", (double)s->dry_multiplier, "from 0 (off) to 1000");
    if (!within(s->dry_base, 1, NK_PENALTY_MAX))
        return bad(err, "dry_base", (double)s->dry_base, "from 1 to 1000");
    if (s->dry_allowed_length < 0)
        return bad(err, "dry_allowed_length", s->dry_allowed_length, "0 or more");
    if (s->dry_penalty_last_n < -1)
        return bad(err, "dry_penalty_last_n", s->dry_penalty_last_n,
                   "-1 (all of the context) or more");
    if (s->mirostat < 0 || s->mirostat > 2)
        return bad(err, "mirostat", s->mirostat, "0 (off), 1 or 2");
    if (!within(s->mirostat_tau, 0, NK_PENALTY_MAX))
        return bad(err, "mirostat_tau", (double)s->mirostat_tau, "from 0 to 1000");
    if (!within(s->mirostat_eta, 0, 1))
        return bad(err, "mirostat_eta", (double)s->mirostat_eta, "from 0 to 1");
    if (s->n_logit_bias < 0 || s->n_logit_bias > NK_LOGIT_BIAS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_sampling",
                       "logit_bias has %d entries; at most %d are taken", s->n_logit_bias,
                       NK_LOGIT_BIAS_MAX);
    if (s->n_logit_bias && !s->logit_bias)
        return nk_fail(err, NK_E_INVALID, "bad_sampling",
                       "logit_bias has no entries where %d are announced", s->n_logit_bias);
    for (int i = 0; i < s->n_logit_bias; i++) {
        const struct nk_logit_bias *b = &s->logit_bias[i];

        if (b->id < 0)
            return nk_fail(err, NK_E_INVALID, "bad_sampling",
                           "logit_bias names the token %d; ids begin at 0", b->id);
        if (!(b->bias < INFINITY)) /* NaN too; -inf means never */
            return nk_fail(err, NK_E_INVALID, "bad_sampling",
                           "logit_bias of token %d is %g; it must be a number or -inf", b->id,
                           (double)b->bias);
    }
    if (s->grammar) {
        size_t size = strnlen(s->grammar, NK_GRAMMAR_BYTES_MAX + 1), at;

        if (size == 0)
            return nk_fail(err, NK_E_INVALID, "bad_sampling", "the grammar is empty");
        if (size > NK_GRAMMAR_BYTES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_sampling", "the grammar is longer than %d bytes",
                           NK_GRAMMAR_BYTES_MAX);
        if (!nk_utf8_valid(s->grammar, size, &at))
            return nk_fail(err, NK_E_INVALID, "bad_sampling",
                           "the grammar is not UTF-8 at byte %zu", at);
    }
    return 0;
}
