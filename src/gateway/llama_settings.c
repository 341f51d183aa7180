#include "gateway/llama_settings.h"

#include <math.h>

#include "base/json.h"

struct out {
    struct nk_buf *b;
    struct nk_error *err;
    int rc;
};

static void raw(struct out *o, const char *text)
{
    if (!o->rc)
        o->rc = nk_buf_adds(o->b, text, o->err);
}

static void num(struct out *o, const char *name, double value)
{
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, o->err, ",\"%s\":", name);
    if (!o->rc)
        o->rc = nk_json_num(o->b, value, o->err);
}

static void boolean(struct out *o, const char *name, bool value)
{
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, o->err, ",\"%s\":%s", name, value ? "true" : "false");
}

/* What llama-server lets a request choose, and we do not: as it does without being asked. */
static const char fixed[] =
    ",\"n_keep\":0,\"n_discard\":0,\"min_keep\":0,\"grammar_lazy\":false,\"grammar_triggers\":[],"
    "\"preserved_tokens\":[],\"dry_sequence_breakers\":[\"\\n\",\":\",\"\\\"\",\"*\"],"
    "\"adaptive_target\":-1,\"adaptive_decay\":0.9,\"post_sampling_probs\":false,"
    "\"backend_sampling\":false,\"lora\":[],\"chat_format\":\"Content-only\","
    "\"generation_prompt\":\"\",\"reasoning_format\":\"deepseek\",\"reasoning_in_content\":false,"
    "\"speculative.types\":\"none\"";

static void put_biases(struct out *o, const struct nk_llama_settings *of, bool ignore_eos)
{
    const char *comma = "";
    int n_vocab = of->vocab && ignore_eos ? nk_vocab_size(of->vocab) : 0;

    raw(o, ",\"logit_bias\":[");
    for (int i = 0; i < of->n_logit_bias && !o->rc; i++) {
        float bias = of->logit_bias[i].bias;

        o->rc = nk_buf_addf(o->b, o->err, "%s{\"token\":%d,\"bias\":", comma,
                            (int)of->logit_bias[i].id);
        if (!o->rc)
            o->rc = isfinite(bias) ? nk_json_num(o->b, (double)bias, o->err)
                                   : nk_buf_adds(o->b, "-100", o->err);
        raw(o, "}");
        comma = ",";
    }
    for (int32_t id = 0; id < n_vocab && !o->rc; id++)
        if (nk_vocab_is_eog(of->vocab, id)) {
            /* JSON has no word for minus infinity. */
            o->rc = nk_buf_addf(o->b, o->err, "%s{\"token\":%d,\"bias\":null}", comma, (int)id);
            comma = ",";
        }
    raw(o, "]");
}

int nk__llama_settings_write(const struct nk_request *r, const struct nk_llama_settings *of,
                             struct nk_buf *out, struct nk_error *err)
{
    const struct nk_sampling *s = &r->sampling;
    struct out o = { out, err, 0 };
    int n_predict = r->only_prompt      ? 0
                    : r->n_predict      ? r->n_predict
                    : of->n_predict_max ? of->n_predict_max
                                        : -1;

    if (!o.rc)
        o.rc = nk_buf_addf(out, err, "{\"seed\":%lu", (unsigned long)s->seed);
    num(&o, "temperature", (double)s->temperature);
    num(&o, "dynatemp_range", (double)s->dynatemp_range);
    num(&o, "dynatemp_exponent", (double)s->dynatemp_exponent);
    num(&o, "top_k", s->top_k);
    num(&o, "top_p", (double)s->top_p);
    num(&o, "min_p", (double)s->min_p);
    num(&o, "top_n_sigma", s->top_n_sigma > 0 ? (double)s->top_n_sigma : -1);
    num(&o, "xtc_probability", (double)s->xtc_probability);
    num(&o, "xtc_threshold", (double)s->xtc_threshold);
    num(&o, "typical_p", (double)s->typical_p);
    num(&o, "repeat_last_n", s->penalty_last_n);
    num(&o, "repeat_penalty", (double)s->repeat_penalty);
    num(&o, "presence_penalty", (double)s->presence_penalty);
    num(&o, "frequency_penalty", (double)s->frequency_penalty);
    num(&o, "dry_multiplier", (double)s->dry_multiplier);
    num(&o, "dry_base", (double)s->dry_base);
    num(&o, "dry_allowed_length", s->dry_allowed_length);
    num(&o, "dry_penalty_last_n", s->dry_penalty_last_n);
    num(&o, "mirostat", s->mirostat);
    num(&o, "mirostat_tau", (double)s->mirostat_tau);
    num(&o, "mirostat_eta", (double)s->mirostat_eta);
    raw(&o, ",\"stop\":[");
    for (size_t i = 0; i < r->n_stop && !o.rc; i++) {
        raw(&o, i ? "," : "");
        o.rc = o.rc ? o.rc : nk_json_str(out, r->stop[i], err);
    }
    raw(&o, "]");
    num(&o, "max_tokens", n_predict);
    num(&o, "n_predict", n_predict);
    boolean(&o, "ignore_eos", s->ignore_eos);
    boolean(&o, "stream", r->stream);
    put_biases(&o, of, s->ignore_eos);
    num(&o, "n_probs", r->n_logprobs > 0 ? r->n_logprobs : 0);
    boolean(&o, "cache_prompt", !r->no_reuse);
    boolean(&o, "timings_per_token", r->timings_per_token);
    raw(&o, ",\"grammar\":");
    if (!o.rc)
        o.rc = nk_json_str(out, of->grammar ? of->grammar : "", err);
    raw(&o, fixed);
    raw(&o, ",\"samplers\":[\"penalties\",\"dry\",\"top_n_sigma\",\"top_k\",\"typ_p\",\"top_p\","
            "\"min_p\",\"xtc\",\"temperature\"]}");
    return o.rc;
}
