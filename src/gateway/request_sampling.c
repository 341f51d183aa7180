/* Readers of what chooses tokens: llama-server's own ways to say which samplers take part. */
#include "gateway/request_int.h"

#include <string.h>

/* 0 and all below it: off. */
int nk__read_top_n_sigma(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (json_is_number(v) && json_number_value(v) < 0) {
        p->r->sampling.top_n_sigma = 0;
        return 0;
    }
    return nk__read_float(p, f, v);
}

enum sampler { PENALTIES, DRY, TOP_N_SIGMA, TOP_K, TYP_P, TOP_P, MIN_P, XTC, TEMPERATURE };

/* In the order in which they come here, which is llama.cpp's own. */
static const struct {
    const char *name, *other;
} samplers[] = {
    [PENALTIES] = { "penalties", NULL },
    [DRY] = { "dry", NULL },
    [TOP_N_SIGMA] = { "top_n_sigma", NULL },
    [TOP_K] = { "top_k", "top-k" },
    [TYP_P] = { "typ_p", "typical_p" },
    [TOP_P] = { "top_p", "top-p" },
    [MIN_P] = { "min_p", "min-p" },
    [XTC] = { "xtc", NULL },
    [TEMPERATURE] = { "temperature", "temp" },
};
enum { N_SAMPLERS = sizeof samplers / sizeof samplers[0] };

int nk__read_samplers(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t i;
    const json_t *one;
    int last = -1;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of names, not %s",
                       nk__json_type(v));
    p->samplers = 0;
    json_array_foreach((json_t *)v, i, one)
    {
        const char *name = json_string_value(one);
        int k = 0;

        while (k < N_SAMPLERS &&
               (!name || (strcmp(name, samplers[k].name) &&
                          (!samplers[k].other || strcmp(name, samplers[k].other)))))
            k++;
        if (k == N_SAMPLERS)
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "\"%.40s\" is no sampler here; penalties, dry, top_n_sigma, top_k, "
                           "typ_p, top_p, min_p, xtc and temperature are",
                           name ? name : "");
        if (k <= last)
            return nk__bad(p, NK_E_INVALID, "refused_field", f->name,
                           "\"%s\" after \"%s\": the order here is penalties, dry, top_n_sigma, "
                           "top_k, typ_p, top_p, min_p, xtc, temperature",
                           samplers[k].name, samplers[last].name);
        last = k;
        p->samplers |= 1u << k;
    }
    p->seen_samplers = true;
    return 0;
}

void nk__samplers_apply(struct nk_parse *p)
{
    struct nk_sampling *s = &p->r->sampling;

    if (!p->seen_samplers)
        return;
    for (int k = 0; k < N_SAMPLERS; k++) {
        if (p->samplers & 1u << k)
            continue;
        switch ((enum sampler)k) {
        case PENALTIES:
            s->repeat_penalty = 1;
            s->presence_penalty = s->frequency_penalty = 0;
            break;
        case DRY:
            s->dry_multiplier = 0;
            break;
        case TOP_N_SIGMA:
            s->top_n_sigma = 0;
            break;
        case TOP_K:
            s->top_k = 0;
            break;
        case TYP_P:
            s->typical_p = 1;
            break;
        case TOP_P:
            s->top_p = 1;
            break;
        case MIN_P:
            s->min_p = 0;
            break;
        case XTC:
            s->xtc_probability = 0;
            break;
        case TEMPERATURE:
            s->temperature = 1;
            s->dynatemp_range = 0;
            break;
        }
    }
}

int nk__read_dry_breakers(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    static const char *const own[] = { "\n", ":", "\"", "*" };
    bool same = json_array_size(v) == 4;

    for (size_t i = 0; same && i < 4; i++) {
        const char *s = json_string_value(json_array_get(v, i));

        same = s && !strcmp(s, own[i]);
    }
    return same ? 0
                : nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only %s is supported",
                          f->note);
}
