/* What a client asks of a generation: its options, held against their limits, and the Open that
 * says them to the first stage. */
#include "chain/chain_int.h"

#include <float.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "text/detok.h"

enum { PROMPT_IDS_MAX = 1 << 24 };

/* 0 means "off" or a default on the wire, so that a 0 that is meant goes as the least number above
 * it, which libllama's samplers cannot tell from it. */
static float meant(float v)
{
    return v > 0 ? v : FLT_MIN;
}

static void pack_sampling(Nakshatra__V1__Sampling *m, const struct nk_sampling *s)
{
    bool penalties = s->penalty_last_n != 0, dry = s->dry_penalty_last_n != 0;

    m->temperature = s->temperature;
    m->top_k = s->top_k;
    m->top_p = s->top_p < 1 ? meant(s->top_p) : 0;
    m->min_p = s->min_p;
    m->typical_p = s->typical_p < 1 ? meant(s->typical_p) : 0;
    m->top_n_sigma = s->top_n_sigma;
    m->xtc_probability = s->xtc_probability;
    m->xtc_threshold = s->xtc_threshold;
    m->dynatemp_range = s->dynatemp_range;
    m->dynatemp_exponent = s->dynatemp_exponent;
    m->repeat_penalty = penalties && s->repeat_penalty != 1 ? s->repeat_penalty : 0;
    m->presence_penalty = penalties ? s->presence_penalty : 0;
    m->frequency_penalty = penalties ? s->frequency_penalty : 0;
    m->penalty_last_n = s->penalty_last_n;
    m->dry_multiplier = dry ? s->dry_multiplier : 0;
    m->dry_base = s->dry_base;
    m->dry_allowed_length = s->dry_allowed_length;
    m->dry_penalty_last_n = s->dry_penalty_last_n > 0 ? s->dry_penalty_last_n : 0;
    m->mirostat = s->mirostat;
    m->mirostat_tau = meant(s->mirostat_tau);
    m->mirostat_eta = meant(s->mirostat_eta);
    if (s->seed != NK_SEED_RANDOM) {
        m->seed_given_case = NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED;
        m->seed = s->seed;
    }
    if (s->grammar)
        m->grammar = (char *)(uintptr_t)s->grammar;
    m->ignore_eos = s->ignore_eos;
}

int nk__open_check(const struct nk_cluster *c, const struct nk_gen_opts *o, struct nk_error *err)
{
    int rc;

    if (!c->n_workers)
        return nk_fail(err, NK_E_INVALID, "bad_request", "the cluster has no workers");
    if (!o->n_ids)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "the prompt has no tokens; at least one is needed");
    if (o->n_ids > PROMPT_IDS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "the prompt has %zu tokens; at most %d are taken", o->n_ids, PROMPT_IDS_MAX);
    for (size_t i = 0; i < o->n_ids; i++)
        if (o->ids[i] < 0)
            return nk_fail(err, NK_E_INVALID, "bad_request",
                           "the prompt's token %zu is %d; ids begin at 0", i, o->ids[i]);
    if (o->n_predict < 0)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "n_predict is %d; 0 (no limit) or more is right", o->n_predict);
    if (o->n_logprobs < -1 || o->n_logprobs > NK_LOGPROBS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "n_logprobs is %d; -1 (none) to %d are right", o->n_logprobs,
                       NK_LOGPROBS_MAX);
    if (o->n_prompt_logprobs < -1 || o->n_prompt_logprobs > NK_LOGPROBS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "n_prompt_logprobs is %d; -1 (none) to %d are right", o->n_prompt_logprobs,
                       NK_LOGPROBS_MAX);
    if (o->n_stop > NK_STOP_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request", "%zu stop strings; at most %d are taken",
                       o->n_stop, NK_STOP_MAX);
    for (size_t i = 0; i < o->n_stop; i++)
        if (!o->stop[i][0] || strlen(o->stop[i]) > NK_STOP_BYTES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_request",
                           "stop string %zu has %zu bytes; 1 to %d are right", i,
                           strlen(o->stop[i]), NK_STOP_BYTES_MAX);
    rc = nk_sampling_check(&o->sampling, err);
    if (!rc && o->sampling.dry_multiplier > 0 && o->sampling.dry_allowed_length < 1)
        rc = nk_fail(err, NK_E_INVALID, "bad_sampling",
                     "dry_allowed_length is %d; it must be 1 or more",
                     o->sampling.dry_allowed_length);
    return rc;
}

/* ---- the copy ---- */

/* Carves n bytes, for anything, from a block that begins at *at; what is there is copied. */
static void *carve(char **at, const void *from, size_t n)
{
    void *to = *at;

    if (n)
        memcpy(to, from, n);
    *at += (n + _Alignof(max_align_t) - 1) / _Alignof(max_align_t) * _Alignof(max_align_t);
    return to;
}

static size_t text_size(const char *text)
{
    return text ? strlen(text) + 1 : 0;
}

struct nk__asked *nk__asked_new(const struct nk_gen_opts *o)
{
    const struct nk_sampling *s = &o->sampling;
    size_t ids = o->n_ids * sizeof *o->ids, stop = o->n_stop * sizeof *o->stop;
    size_t bias = (size_t)s->n_logit_bias * sizeof *s->logit_bias;
    size_t n_pieces = 6 + o->n_stop;
    size_t size = ids + stop + bias + text_size(s->grammar) + text_size(o->reuse_salt);
    struct nk__asked *a;
    const char **strings;
    char *at;

    for (size_t i = 0; i < o->n_stop; i++)
        size += text_size(o->stop[i]);
    at = malloc(sizeof *a + size + n_pieces * _Alignof(max_align_t));
    if (!at)
        return NULL;
    a = carve(&at, &(struct nk__asked){ .opts = *o }, sizeof *a);
    atomic_init(&a->refs, 1);
    if (o->n_prompt_logprobs >= 0) /* what was said of the prompt is not said again */
        a->opts.hold_ms = 0;
    a->opts.ids = carve(&at, o->ids, ids);
    a->opts.sampling.logit_bias = carve(&at, s->logit_bias, bias);
    strings = carve(&at, o->stop, stop);
    for (size_t i = 0; i < o->n_stop; i++)
        strings[i] = carve(&at, o->stop[i], text_size(o->stop[i]));
    a->opts.stop = strings;
    if (s->grammar)
        a->opts.sampling.grammar = carve(&at, s->grammar, text_size(s->grammar));
    if (o->reuse_salt)
        a->opts.reuse_salt = carve(&at, o->reuse_salt, text_size(o->reuse_salt));
    return a;
}

struct nk__asked *nk__asked_ref(struct nk__asked *a)
{
    atomic_fetch_add(&a->refs, 1);
    return a;
}

void nk__asked_unref(struct nk__asked *a)
{
    if (a && atomic_fetch_sub(&a->refs, 1) == 1)
        free(a);
}

/* ---- the message ---- */

int nk__open_pack(uint8_t **out, size_t *size, const struct nk_cluster *c,
                  const uint8_t session[16], const struct nk_gen_opts *o,
                  const struct nk__resumption *r, struct nk_error *err)
{
    Nakshatra__V1__InferenceRequest request = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Sampling sampling = NAKSHATRA__V1__SAMPLING__INIT;
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    Nakshatra__V1__Stage stages[NK_CLUSTER_WORKERS_MAX], *route[NK_CLUSTER_WORKERS_MAX];
    size_t n_bias = (size_t)o->sampling.n_logit_bias;
    Nakshatra__V1__LogitBias *bias = calloc(n_bias + 1, sizeof *bias);
    Nakshatra__V1__LogitBias **bias_ptrs = calloc(n_bias + 1, sizeof *bias_ptrs);
    ProtobufCBinaryData stop[NK_STOP_MAX];
    int rc = 0;

    *out = NULL;
    if (!bias || !bias_ptrs) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    request.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    request.open = &open;
    open.session = (ProtobufCBinaryData){ 16, (uint8_t *)(uintptr_t)session };
    for (int i = 0; i < c->n_workers; i++) {
        nakshatra__v1__stage__init(&stages[i]);
        stages[i].address = (char *)(uintptr_t)c->workers[i].address;
        stages[i].layer_begin = (uint32_t)c->workers[i].layer_begin;
        stages[i].layer_end = (uint32_t)c->workers[i].layer_end;
        stages[i].epoch = nk_cluster_epoch(c, i);
        route[i] = &stages[i];
    }
    open.route = route;
    open.n_route = (size_t)c->n_workers;
    open.model_sha256 = (char *)(uintptr_t)c->model_sha256;
    pack_sampling(&sampling, &o->sampling);
    for (size_t i = 0; i < n_bias; i++) {
        nakshatra__v1__logit_bias__init(&bias[i]);
        bias[i].id = o->sampling.logit_bias[i].id;
        bias[i].bias = o->sampling.logit_bias[i].bias;
        bias_ptrs[i] = &bias[i];
    }
    sampling.logit_bias = bias_ptrs;
    sampling.n_logit_bias = n_bias;
    open.sampling = &sampling;
    limits.n_predict = (uint32_t)o->n_predict;
    limits.deadline_ms = o->deadline_ms;
    limits.stall_ms = o->stall_ms;
    open.limits = &limits;
    open.prompt_ids = (int32_t *)(uintptr_t)o->ids;
    open.n_prompt_ids = o->n_ids;
    for (size_t i = 0; i < o->n_stop; i++)
        stop[i] = (ProtobufCBinaryData){ strlen(o->stop[i]), (uint8_t *)(uintptr_t)o->stop[i] };
    open.stop = stop;
    open.n_stop = o->n_stop;
    open.dtype = c->f16 ? NAKSHATRA__V1__DTYPE__DTYPE_F16 : NAKSHATRA__V1__DTYPE__DTYPE_F32;
    open.deterministic = o->deterministic;
    open.n_logprobs = o->n_logprobs + 1;
    /* A kept session's KV may have been computed in runs of another shape, to other low bits. */
    open.reuse = !o->no_reuse && !o->deterministic;
    if (open.reuse && o->reuse_salt && o->reuse_salt[0]) {
        open.reuse = false; /* what a worker that does not know salts is to do */
        open.reuse_salt =
            (ProtobufCBinaryData){ strlen(o->reuse_salt), (uint8_t *)(uintptr_t)o->reuse_salt };
    }
    open.special = o->special;
    open.hold_ms = o->hold_ms;
    open.exact = o->exact;
    open.progress = o->progress;
    open.prompt_logprobs = o->n_prompt_logprobs + 1;
    if (r) {
        open.attempt = r->attempt;
        open.chunk = r->chunk;
        open.generated_ids = (int32_t *)(uintptr_t)r->ids;
        open.n_generated_ids = r->n_ids;
        open.forget_held = r->forget_held;
    }
    *size = nakshatra__v1__inference_request__get_packed_size(&request);
    if (*size > NK_RPC_MESSAGE_BYTES_MAX) {
        rc = nk_fail(err, NK_E_INVALID, "bad_request",
                     "the request has %zu bytes; at most %u are taken", *size,
                     NK_RPC_MESSAGE_BYTES_MAX);
        goto out;
    }
    *out = malloc(*size);
    if (!*out)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    else
        nakshatra__v1__inference_request__pack(&request, *out);
out:
    free(bias);
    free(bias_ptrs);
    return rc;
}
