#include "cli/gen_args.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

struct nk_gen_args nk_gen_args_default(void)
{
    struct nk_sampling s = nk_sampling_default();

    return (struct nk_gen_args){
        .top_k = s.top_k,
        .repeat_last_n = s.penalty_last_n,
        .dry_allowed_length = s.dry_allowed_length,
        .dry_penalty_last_n = s.dry_penalty_last_n,
        .mirostat = s.mirostat,
        .seed = -1,
        .logprobs = -1,
        .temp = (double)s.temperature,
        .top_p = (double)s.top_p,
        .min_p = (double)s.min_p,
        .typical_p = (double)s.typical_p,
        .repeat_penalty = (double)s.repeat_penalty,
        .presence_penalty = (double)s.presence_penalty,
        .frequency_penalty = (double)s.frequency_penalty,
        .dry_multiplier = (double)s.dry_multiplier,
        .dry_base = (double)s.dry_base,
        .mirostat_lr = (double)s.mirostat_eta,
        .mirostat_ent = (double)s.mirostat_tau,
    };
}

/* "42+1.5", "42-3", "42-inf" */
static int parse_bias(const char *text, struct nk_logit_bias *out, struct nk_error *err)
{
    char *end;
    long id;
    double bias;

    errno = 0;
    id = strtol(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno || id > INT32_MAX || (*end != '+' && *end != '-'))
        goto bad;
    text = end;
    bias = strtod(text, &end);
    if (end == text + 1 || end == text || *end || isnan(bias) || bias == (double)INFINITY)
        goto bad;
    *out = (struct nk_logit_bias){ (int32_t)id, (float)bias };
    return 0;
bad:
    return nk_fail(err, NK_E_INVALID, "bad_argument",
                   "--logit-bias: '%s' is not of the form ID+X or ID-X, like 42+1.5 or 42-inf",
                   text);
}

int nk_gen_args_opts(struct nk_gen_args *a, struct nk_gen_opts *o, struct nk_error *err)
{
    struct nk_sampling *s = &o->sampling;

    *o = nk_gen_opts_default();
    if (a->grammar && a->grammar_file)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--grammar and --grammar-file were both given; one is right");
    if (a->grammar_file) {
        int rc = nk_file_read(a->grammar_file, NK_GRAMMAR_BYTES_MAX, &a->grammar_text, err);

        if (rc)
            return nk_wrap(rc, err, "--grammar-file");
        if (memchr(nk_buf_str(&a->grammar_text), '\0', a->grammar_text.size))
            return nk_fail(err, NK_E_INVALID, "bad_argument", "--grammar-file: %s is not text",
                           a->grammar_file);
    }
    if (a->logit_bias.n) {
        a->bias = calloc((size_t)a->logit_bias.n, sizeof *a->bias);
        if (!a->bias)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        for (int i = 0; i < a->logit_bias.n; i++) {
            int rc = parse_bias(a->logit_bias.items[i], &a->bias[i], err);

            if (rc)
                return rc;
        }
    }
    s->temperature = (float)a->temp;
    s->top_k = (int)a->top_k;
    s->top_p = (float)a->top_p;
    s->min_p = (float)a->min_p;
    s->typical_p = (float)a->typical_p;
    s->repeat_penalty = (float)a->repeat_penalty;
    s->presence_penalty = (float)a->presence_penalty;
    s->frequency_penalty = (float)a->frequency_penalty;
    s->penalty_last_n = (int)a->repeat_last_n;
    s->dry_multiplier = (float)a->dry_multiplier;
    s->dry_base = (float)a->dry_base;
    s->dry_allowed_length = (int)a->dry_allowed_length;
    s->dry_penalty_last_n = (int)a->dry_penalty_last_n;
    s->mirostat = (int)a->mirostat;
    s->mirostat_tau = (float)a->mirostat_ent;
    s->mirostat_eta = (float)a->mirostat_lr;
    s->seed = a->seed < 0 ? NK_SEED_RANDOM : (uint32_t)a->seed;
    s->logit_bias = a->bias;
    s->n_logit_bias = a->logit_bias.n;
    s->grammar = a->grammar_file ? nk_buf_str(&a->grammar_text) : a->grammar;
    s->ignore_eos = a->ignore_eos;
    o->n_predict = (int)a->n_predict;
    o->stop = a->stop.items;
    o->n_stop = (size_t)a->stop.n;
    o->n_logprobs = (int)a->logprobs;
    o->deterministic = a->deterministic;
    o->no_reuse = a->no_reuse;
    o->special = a->special;
    o->deadline_ms = (uint32_t)a->timeout_ms;
    o->stall_ms = (uint32_t)a->stall_ms;
    return nk_sampling_check(s, err);
}

void nk_gen_args_release(struct nk_gen_args *a)
{
    free(a->bias);
    a->bias = NULL;
    nk_buf_release(&a->grammar_text);
}
