/* Readers of values that the dialects share, and how a value is refused. */
#include "gateway/request_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *nk__json_type(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

int nk__bad(struct nk_parse *p, int code, const char *reason, const char *name, const char *fmt,
            ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(p->e->param, sizeof p->e->param, "%s%s", p->path, name);
    return nk_fail(&p->e->err, code, reason, "%s%s%s", p->e->param, p->e->param[0] ? ": " : "",
                   text);
}

int nk__read_object(struct nk_parse *p, const struct nk_field_rule *rules, const json_t *object)
{
    const char *name;
    json_t *v;
    int rc = 0;

    json_object_foreach((json_t *)object, name, v)
    {
        const struct nk_field_rule *f = rules;

        while (f->name && strcmp(f->name, name))
            f++;
        if (!f->name) {
            char known[300] = "";
            size_t at = 0;

            for (f = rules; f->name; f++)
                if (f->use == NK_FIELD_YES && at + strlen(f->name) + 3 < sizeof known)
                    at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "",
                                           f->name);
            return nk__bad(p, NK_E_INVALID, "unknown_field", name, "unknown field; known are %s",
                           known);
        }
        if (json_is_null(v) || f->use == NK_FIELD_IGNORED)
            continue;
        if (f->use == NK_FIELD_REFUSED)
            return nk__bad(p, NK_E_INVALID, "refused_field", name, "not supported: %s", f->note);
        rc = f->read(p, f, v);
        if (rc)
            return rc;
    }
    return 0;
}

static void *at(struct nk_parse *p, const struct nk_field_rule *f)
{
    return (char *)p->r + f->offset;
}

int nk__read_float(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    double x;

    if (!json_is_number(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a number, not %s",
                       nk__json_type(v));
    x = json_number_value(v);
    if (!(x >= f->min && x <= f->max))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "%g is outside %g to %g", x, f->min,
                       f->max);
    *(float *)at(p, f) = (float)x;
    return 0;
}

int nk__read_int(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (!json_is_integer(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer, not %s",
                       nk__json_type(v));
    i = json_integer_value(v);
    if ((double)i < f->min || (double)i > f->max)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "%lld is outside %.0f to %.0f",
                       (long long)i, f->min, f->max);
    *(int *)at(p, f) = (int)i;
    return 0;
}

int nk__read_bool(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    *(bool *)at(p, f) = json_is_true(v);
    return 0;
}

int nk__read_string(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string, not %s",
                       nk__json_type(v));
    *(const char **)at(p, f) = json_string_value(v);
    return 0;
}

int nk__read_only_false(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_false(v))
        return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only false is supported: %s",
                       f->note);
    return 0;
}

/* "" or {}. */
int nk__read_only_empty(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if ((json_is_string(v) && !json_string_length(v)) ||
        (json_is_object(v) && !json_object_size(v)))
        return 0;
    return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only %s", f->note);
}

/* libllama's seeds have 32 bits, and all ones mean "a random one"; OpenAI's have 64. Folding keeps
 * "same seed, same text"; -1 is the random one, as for llama-server. */
int nk__read_seed(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    uint64_t seed;

    if (!json_is_integer(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer, not %s",
                       nk__json_type(v));
    seed = (uint64_t)json_integer_value(v);
    if (seed == UINT64_MAX || seed == NK_SEED_RANDOM) {
        p->r->sampling.seed = NK_SEED_RANDOM;
        return 0;
    }
    p->r->sampling.seed = (uint32_t)seed ^ (uint32_t)(seed >> 32);
    if (p->r->sampling.seed == NK_SEED_RANDOM)
        p->r->sampling.seed = 0;
    return 0;
}

int nk__read_stop(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;

    if (!json_is_string(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string or a list of strings, not %s", nk__json_type(v));
    if (n > NK_STOP_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "%zu strings; at most %d are possible", n, NK_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;

        if (!json_is_string(one))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must hold strings, not %s",
                           nk__json_type(one));
        if (!json_string_length(one) || json_string_length(one) > NK_STOP_BYTES_MAX)
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "a string of %zu bytes; 1 to %d are possible", json_string_length(one),
                           NK_STOP_BYTES_MAX);
        p->r->stop[i] = json_string_value(one);
    }
    p->r->n_stop = n;
    return 0;
}

int nk__read_grammar(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string (GBNF), not %s",
                       nk__json_type(v));
    if (json_string_length(v) > NK_GRAMMAR_BYTES_MAX)
        return nk__bad(p, NK_E_EXHAUSTED, "too_large", f->name,
                       "%zu bytes; at most %d are possible", json_string_length(v),
                       NK_GRAMMAR_BYTES_MAX);
    if (json_string_length(v))
        p->grammar = json_string_value(v);
    return 0;
}

int nk__read_want_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    p->want_logprobs = json_is_true(v);
    return 0;
}

int nk__read_top_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i = json_integer_value(v);

    if (!json_is_integer(v) || i < 0 || i > NK_LOGPROBS_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer from 0 to %d",
                       NK_LOGPROBS_MAX);
    p->seen_top_logprobs = true;
    p->top_logprobs = (int)i;
    return 0;
}

int nk__read_ids(struct nk_parse *p, const char *name, const json_t *v, int32_t **ids, size_t *n)
{
    size_t size = json_array_size(v);

    *ids = NULL;
    *n = 0;
    if (!size)
        return 0;
    *ids = calloc(size, sizeof **ids);
    if (!*ids)
        return nk__bad(p, NK_E_EXHAUSTED, "no_memory", name, "no memory for %zu token ids", size);
    for (size_t i = 0; i < size; i++) {
        const json_t *one = json_array_get(v, i);

        if (!json_is_integer(one) || json_integer_value(one) < 0 ||
            json_integer_value(one) > INT32_MAX) {
            free(*ids);
            *ids = NULL;
            return nk__bad(p, NK_E_INVALID, "bad_value", name, "element %zu is not a token id", i);
        }
        (*ids)[i] = (int32_t)json_integer_value(one);
    }
    *n = size;
    return 0;
}
