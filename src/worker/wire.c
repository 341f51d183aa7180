/* Messages from strangers into our structs: every count and size is checked before it is used. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "rpc/rows.h"
#include "worker/worker_int.h"

static float or_else(float value, float absent)
{
    return value == 0 ? absent : value;
}

int nk__wire_sampling(struct nk_sampling *out, struct nk_logit_bias *bias,
                      const Nakshatra__V1__Sampling *in, struct nk_error *err)
{
    struct nk_sampling s = nk_sampling_default();

    if (!in) {
        s.temperature = 0;
        *out = s;
        return 0;
    }
    if (in->n_logit_bias > NK_LOGIT_BIAS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_sampling",
                       "logit_bias has %zu entries; at most %d are possible", in->n_logit_bias,
                       NK_LOGIT_BIAS_MAX);
    for (size_t i = 0; i < in->n_logit_bias; i++)
        bias[i] = (struct nk_logit_bias){ in->logit_bias[i]->id, in->logit_bias[i]->bias };
    s.temperature = in->temperature;
    s.top_k = in->top_k;
    s.top_p = or_else(in->top_p, 1);
    s.min_p = in->min_p;
    s.typical_p = or_else(in->typical_p, 1);
    s.top_n_sigma = in->top_n_sigma;
    s.xtc_probability = in->xtc_probability;
    s.xtc_threshold = in->xtc_threshold;
    s.dynatemp_range = in->dynatemp_range;
    s.dynatemp_exponent = in->dynatemp_exponent;
    s.repeat_penalty = or_else(in->repeat_penalty, 1);
    s.presence_penalty = in->presence_penalty;
    s.frequency_penalty = in->frequency_penalty;
    s.penalty_last_n = in->penalty_last_n ? in->penalty_last_n : 64;
    s.dry_multiplier = in->dry_multiplier;
    s.dry_base = or_else(in->dry_base, 1.75f);
    s.dry_allowed_length = in->dry_allowed_length ? in->dry_allowed_length : 2;
    s.dry_penalty_last_n = in->dry_penalty_last_n ? in->dry_penalty_last_n : -1;
    s.mirostat = in->mirostat;
    s.mirostat_tau = or_else(in->mirostat_tau, 5);
    s.mirostat_eta = or_else(in->mirostat_eta, 0.1f);
    s.seed =
        in->seed_given_case == NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED ? in->seed : NK_SEED_RANDOM;
    s.logit_bias = in->n_logit_bias ? bias : NULL;
    s.n_logit_bias = (int)in->n_logit_bias;
    s.grammar = in->grammar && in->grammar[0] ? in->grammar : NULL;
    s.ignore_eos = in->ignore_eos;
    *out = s;
    return nk_sampling_check(out, err);
}

int nk__wire_rows(float *out, const Nakshatra__V1__Rows *in, int n_rows, int width,
                  struct nk_error *err)
{
    size_t n = (size_t)n_rows * (size_t)width, bytes;

    if (!in)
        return nk_fail(err, NK_E_INVALID, "bad_rows",
                       "rows are missing: %d rows of %d floats are wanted", n_rows, width);
    if (in->n_rows != (uint32_t)n_rows || in->width != (uint32_t)width)
        return nk_fail(err, NK_E_INVALID, "bad_rows",
                       "%u rows of width %u; %d rows of width %d are wanted", in->n_rows, in->width,
                       n_rows, width);
    switch (in->dtype) {
    case NAKSHATRA__V1__DTYPE__DTYPE_UNSPECIFIED:
    case NAKSHATRA__V1__DTYPE__DTYPE_F32:
        bytes = n * sizeof(float);
        break;
    case NAKSHATRA__V1__DTYPE__DTYPE_F16:
        bytes = n * sizeof(uint16_t);
        break;
    default:
        return nk_fail(err, NK_E_INVALID, "bad_dtype",
                       "dtype %d is unknown; f32 (1) and f16 (2) are possible", (int)in->dtype);
    }
    if (in->data.len != bytes)
        return nk_fail(err, NK_E_INVALID, "bad_rows", "%d rows of width %d are %zu bytes; %zu came",
                       n_rows, width, bytes, in->data.len);
    if (in->dtype == NAKSHATRA__V1__DTYPE__DTYPE_F16) {
        /* The bytes may lie at any address; halves are copied to where they are aligned: the end of
         * the output. */
        uint16_t *halves = (uint16_t *)(void *)out + n;

        memcpy(halves, in->data.data, bytes);
        nk_f32_from_f16(out, halves, n);
    } else {
        memcpy(out, in->data.data, bytes);
    }
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return nk_fail(err, NK_E_INVALID, "not_finite",
                           "row %zu holds NaN or infinity: the slice's file of the worker before "
                           "this one is the first thing to look at (nakshatra inspect)%s",
                           i / (size_t)width,
                           in->dtype == NAKSHATRA__V1__DTYPE__DTYPE_F16
                               ? "; or a number was too large for f16, and f32 is needed"
                               : "");
    return 0;
}

int nk__wire_rows_max(int width)
{
    return (int)((NK_RPC_MESSAGE_BYTES_MAX - (1u << 20)) / ((unsigned)width * sizeof(float)));
}

void nk__wire_computed(struct nk_computed *out, const nk_worker *w)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);
    char threads[16];

    *out = (struct nk_computed){ 0 };
    snprintf(threads, sizeof threads, "%d", info->n_threads);
    nk_computed_set(out, NK_FACT_LLAMA, info->llama_version, "%s", "");
    if (info->rope_factors != NK_ROPE_FACTORS_NONE)
        nk_computed_set(out, NK_FACT_ROPE_FACTORS,
                        info->rope_factors == NK_ROPE_FACTORS_LONG ? "long" : "short",
                        "a session has %d tokens, the original context is %d", info->n_ctx_seq,
                        info->n_ctx_orig);
    if (info->pooling)
        nk_computed_set(out, NK_FACT_POOLING, nk_pooling_text(info->pooling), "%s", "");
    nk_computed_set(out, NK_FACT_GGML, info->ggml_version, "%s", "");
    nk_computed_set(out, NK_FACT_BACKEND, info->backend, "%s", info->device_description);
    nk_computed_set(out, NK_FACT_THREADS, threads, "%s", "");
    nk_computed_set(out, NK_FACT_FLASH_ATTN, info->flash_attn ? "on" : "off", "%s", "");
    nk_computed_set(out, NK_FACT_CACHE_K, info->cache_type_k, "%s", "");
    nk_computed_set(out, NK_FACT_CACHE_V, info->cache_type_v, "%s", "");
    nk_computed_set(out, NK_FACT_SESSIONS,
                    w->opts.deterministic ? NK_SESSIONS_APART : NK_SESSIONS_SHARED, "%s", "");
}

void nk__wire_stage(struct nk__wire_stage *out, const nk_worker *w)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);
    Nakshatra__V1__StageInfo *m = &out->message;

    nakshatra__v1__stage_info__init(m);
    m->worker_id = (char *)(uintptr_t)w->id;
    m->model_sha256 = (char *)(uintptr_t)info->model_sha256;
    m->layer_begin = (uint32_t)info->layer_begin;
    m->layer_end = (uint32_t)info->layer_end;
    m->layer_count = (uint32_t)info->layer_count;
    m->n_embd = (uint32_t)info->n_embd;
    m->n_ctx = (uint32_t)info->n_ctx;
    m->llama_version = (char *)(uintptr_t)info->llama_version;
    m->n_batch = (uint32_t)info->n_batch;
    nk__wire_computed(&out->computed, w);
    m->n_computed = nk_computed_pack(&out->computed, out->facts, out->list);
    m->computed = out->list;
}
