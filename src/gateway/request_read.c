/* Readers of values that the dialects share, and how a value is refused. */
#include "gateway/request_int.h"

#include <ctype.h>
#include <math.h>
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

/* ---- names ---- */

int nk__ignore(struct nk_parse *p, const char *name)
{
    char *all = p->r->ignored;
    size_t n = strlen(all);
    int more =
        snprintf(all + n, sizeof p->r->ignored - n, "%s%s%.60s", n ? "," : "", p->path, name);

    if (n + (size_t)more >= sizeof p->r->ignored) { /* the first ones say enough */
        all[n] = '\0';
        return 0;
    }
    for (n += n > 0; all[n]; n++) /* a comma is between two */
        if (all[n] <= ' ' || all[n] > '~' || all[n] == ',')
            all[n] = '?';
    return 0;
}

enum { NAME_MAX_SHOWN = 40, UNKNOWN_MAX = 256 };

/* "topP" and "top-p" are ways to write "top_p". Returns how many characters are left. */
static size_t plain_name(char out[NAME_MAX_SHOWN + 1], const char *name)
{
    size_t n = 0;

    for (; *name && n < NAME_MAX_SHOWN; name++)
        if (*name != '_' && *name != '-')
            out[n++] = (char)tolower((unsigned char)*name);
    out[n] = '\0';
    return n;
}

/* How many letters are missing, superfluous, other ones, or in the place of their neighbour. */
static size_t name_distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    size_t rows[3][NAME_MAX_SHOWN + 1];
    size_t *before = rows[0], *last = rows[1], *now = rows[2];

    for (size_t k = 0; k <= n_b; k++)
        last[k] = k;
    for (size_t i = 1; i <= n_a; i++) {
        size_t *spare = before;

        now[0] = i;
        for (size_t k = 1; k <= n_b; k++) {
            size_t least = last[k - 1] + (a[i - 1] != b[k - 1]);

            least = last[k] + 1 < least ? last[k] + 1 : least;
            least = now[k - 1] + 1 < least ? now[k - 1] + 1 : least;
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
                before[k - 2] + 1 < least)
                least = before[k - 2] + 1;
            now[k] = least;
        }
        before = last;
        last = now;
        now = spare;
    }
    return last[n_b];
}

/* The field that was probably meant; NULL: none. Short names differ by a letter too easily. */
static const struct nk_field_rule *nearest(const struct nk_field_rule *rules, const char *name)
{
    char asked[NAME_MAX_SHOWN + 1], known[NAME_MAX_SHOWN + 1];
    size_t n_asked = plain_name(asked, name), least = n_asked < 5 ? 0 : n_asked < 8 ? 1 : 2;
    const struct nk_field_rule *found = NULL;

    for (const struct nk_field_rule *f = rules; f->name; f++) {
        size_t n = plain_name(known, f->name), d;

        /* Lengths alone tell most of them apart; a body may have a million names. */
        if (n > n_asked + least || n_asked > n + least)
            continue;
        d = name_distance(asked, n_asked, known, n);
        if (d < least || (d == least && !found)) {
            least = d;
            found = f;
        }
    }
    return found;
}

/* Asks for nothing. */
static bool is_empty(const json_t *v)
{
    return json_is_false(v) || (json_is_string(v) && !json_string_length(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

/* Does a name that is unknown here change the answer in the other dialect, and does the value ask
 * for that? */
static bool is_others(const struct nk_parse *p, const char *name, const json_t *v)
{
    const struct nk_field_rule *f = p->others;

    if (!f || p->path[0] || (is_empty(v) && !json_is_false(v)) || !strcmp(name, "user"))
        return false;
    while (f->name && strcmp(f->name, name))
        f++;
    return f->name && f->use == NK_FIELD_YES &&
           !(!strcmp(name, "n") && json_is_integer(v) && json_integer_value(v) == 1) &&
           !(!strcmp(name, "logprobs") && json_is_false(v));
}

static int read_unknown(struct nk_parse *p, const struct nk_field_rule *rules, const char *name,
                        const json_t *v)
{
    const struct nk_field_rule *meant;
    char known[300] = "";
    size_t at = 0;

    if (!p->limits->strict && p->takes_unknown)
        return 0;
    if (p->n_unknown++ == UNKNOWN_MAX) /* each is compared with all that are known */
        return nk__bad(p, NK_E_INVALID, "too_many", name,
                       "is one of more than %d fields that nobody knows; that many are taken",
                       UNKNOWN_MAX);
    meant = nearest(rules, name);
    if (!p->limits->strict) {
        if ((!meant || meant->use == NK_FIELD_IGNORED) && is_others(p, name, v))
            return nk__bad(p, NK_E_INVALID, "unknown_field", name,
                           "is a field of /v1/chat/completions that changes the answer; this "
                           "route has no such field");
        if (!meant || meant->use == NK_FIELD_IGNORED)
            return nk__ignore(p, name);
    }
    if (meant)
        return nk__bad(p, NK_E_INVALID, "unknown_field", name, "unknown field; is \"%s\" meant?",
                       meant->name);
    for (const struct nk_field_rule *f = rules; f->name; f++)
        if (f->use == NK_FIELD_YES && at + strlen(f->name) + 3 < sizeof known)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", f->name);
    return nk__bad(p, NK_E_INVALID, "unknown_field", name, "unknown field; known are %s", known);
}

static int read_ignored(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t before = strlen(p->r->ignored);
    int rc = f->read ? f->read(p, f, v) : is_empty(v) ? 0 : nk__ignore(p, f->name);

    if (!rc && p->limits->strict && p->r->ignored[before])
        return nk__bad(p, NK_E_INVALID, "refused_field", f->name, "has no effect here: %s",
                       f->note);
    return rc;
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
        if (json_is_null(v) && (f->name || !p->limits->strict))
            continue;
        if (!f->name)
            rc = read_unknown(p, rules, name, v);
        else if (f->use == NK_FIELD_REFUSED)
            rc = nk__bad(p, NK_E_INVALID, "refused_field", f->name, "not supported: %s", f->note);
        else if (f->use == NK_FIELD_IGNORED)
            rc = read_ignored(p, f, v);
        else
            rc = f->read(p, f, v);
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- plain values ---- */

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

bool nk__json_integer(const json_t *v, json_int_t *out)
{
    double x = json_number_value(v);

    *out = 0;
    if (json_is_integer(v))
        *out = json_integer_value(v);
    else if (json_is_real(v) && fabs(x) < 9e15 && floor(x) == x)
        *out = (json_int_t)x;
    else
        return false;
    return true;
}

int nk__read_int(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (!nk__json_integer(v, &i))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer, not %s",
                       nk__json_type(v));
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

static int only(struct nk_parse *p, const struct nk_field_rule *f, bool ok, const char *what)
{
    return ok ? 0
              : nk__bad(p, NK_E_INVALID, "refused_field", f->name, "only %s is supported: %s", what,
                        f->note);
}

int nk__read_only_false(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return only(p, f, json_is_false(v), "false");
}

int nk__read_only_true(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return only(p, f, json_is_true(v), "true");
}

int nk__read_only_number(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    char what[32];

    snprintf(what, sizeof what, "%g", f->min);
    return only(p, f, json_is_number(v) && json_number_value(v) == f->min, what);
}

int nk__read_only_empty(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return only(p, f, is_empty(v) && !json_is_false(v), "an empty value");
}

int nk__read_wish(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    return json_is_number(v) && json_number_value(v) <= f->max ? 0 : nk__ignore(p, f->name);
}

/* libllama's seeds have 32 bits, and all ones mean "a random one"; OpenAI's have 64. Folding keeps
 * "same seed, same text"; -1 is the random one, as for llama-server. */
int nk__read_seed(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;
    uint64_t seed;

    if (!nk__json_integer(v, &i))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer, not %s",
                       nk__json_type(v));
    seed = (uint64_t)i;
    if (seed == UINT64_MAX || seed == NK_SEED_RANDOM) {
        p->r->sampling.seed = NK_SEED_RANDOM;
        return 0;
    }
    p->r->sampling.seed = (uint32_t)seed ^ (uint32_t)(seed >> 32);
    if (p->r->sampling.seed == NK_SEED_RANDOM)
        p->r->sampling.seed = 0;
    return 0;
}

/* Empty strings stop nothing. */
int nk__read_stop(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;

    if (!json_is_string(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string or a list of strings, not %s", nk__json_type(v));
    p->r->n_stop = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;

        if (!json_is_string(one))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must hold strings, not %s",
                           nk__json_type(one));
        if (!json_string_length(one))
            continue;
        if (p->r->n_stop == NK_STOP_MAX)
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "%zu strings; at most %d are possible", n, NK_STOP_MAX);
        if (json_string_length(one) > NK_STOP_BYTES_MAX)
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "a string of %zu bytes; 1 to %d are possible", json_string_length(one),
                           NK_STOP_BYTES_MAX);
        p->r->stop[p->r->n_stop++] = json_string_value(one);
    }
    return 0;
}

/* 0 and all below it: off. */
int nk__read_top_k(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (nk__json_integer(v, &i) && i < 0) {
        p->r->sampling.top_k = 0;
        return 0;
    }
    return nk__read_int(p, f, v);
}

int nk__read_json_schema(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a JSON schema (an object), not %s", nk__json_type(v));
    p->r->format = NK_FORMAT_SCHEMA;
    p->r->schema = v;
    return 0;
}

int nk__read_object_field(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_object(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an object, not %s",
                       nk__json_type(v));
    *(const json_t **)at(p, f) = v;
    return 0;
}

int nk__read_max_tokens(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    bool may_be_0 =
        p->r->api == NK_API_COMPLETION || nk__api_dialect(p->r->api) == NK_DIALECT_LLAMA;

    if (!nk__json_integer(v, &i) || (i < 1 && i != -1 && (i || !may_be_0)) || i > INT32_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a positive integer, or -1 for as many as the context holds");
    if (p->seen_max_tokens && (p->r->only_prompt != !i || (i && p->r->n_predict != (int)i)))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "%lld, but another field for the same says %d; give one of them",
                       (long long)i, p->r->only_prompt ? 0 : p->r->n_predict);
    p->seen_max_tokens = true;
    p->r->only_prompt = !i;
    p->r->n_predict = i ? (int)i : 1; /* the token that must be */
    return 0;
}

int nk__read_cache_salt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v) || !json_string_length(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string that is not empty, not %s", nk__json_type(v));
    p->r->cache_salt = json_string_value(v);
    return 0;
}

int nk__read_cache_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_boolean(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be true or false, not %s",
                       nk__json_type(v));
    p->r->no_reuse = json_is_false(v);
    return 0;
}

/* Ids, or ids and texts: one prompt. Texts alone are prompts of their own. */
static bool is_one_prompt(const json_t *list)
{
    size_t i;
    const json_t *v;

    json_array_foreach((json_t *)list, i, v)
    {
        if (json_is_integer(v))
            return true;
    }
    return false;
}

static int read_mixed(struct nk_parse *p, const char *name, const json_t *v,
                      struct nk_prompt *prompt)
{
    size_t i;
    const json_t *part;

    json_array_foreach((json_t *)v, i, part)
    {
        if (!json_is_string(part) && (!json_is_integer(part) || json_integer_value(part) < 0 ||
                                      json_integer_value(part) > INT32_MAX))
            return nk__bad(p, NK_E_INVALID, "bad_value", name,
                           "element %zu is neither a token id nor a string", i);
    }
    prompt->mixed = v;
    return 0;
}

int nk__read_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t n = json_array_size(v);
    bool is_one = json_is_string(v) || is_one_prompt(v);

    if (!json_is_string(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string, a list of strings, token ids, or a list of those, not %s",
                       nk__json_type(v));
    if (json_is_array(v) && !n)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "is an empty list");
    if (is_one)
        n = 1;
    if (n > NK_PROMPTS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu prompts; at most %d are possible",
                       n, NK_PROMPTS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = is_one ? v : json_array_get(v, i), *part;
        struct nk_prompt *prompt = &p->r->prompts[i];
        bool has_text = false;
        size_t k;
        int rc;

        json_array_foreach((json_t *)one, k, part)
        {
            has_text = has_text || json_is_string(part);
        }
        if (json_is_string(one)) {
            prompt->text = json_string_value(one);
            prompt->size = json_string_length(one);
        } else if (json_is_array(one) && json_array_size(one)) {
            rc = has_text ? read_mixed(p, f->name, one, prompt)
                          : nk__read_ids(p, f->name, one, &prompt->ids, &prompt->n_ids);
            if (rc)
                return rc;
        } else
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "prompt %zu is neither a string nor a list of token ids", i);
        p->r->n_prompts++;
    }
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

/* -100 bans and 100 all but forces, says OpenAI; llama-server's false bans. */
static int read_bias(struct nk_parse *p, const char *name, const char *of, const json_t *bias,
                     float *out)
{
    bool bans = json_is_false(bias) || json_number_value(bias) == -100;

    if (!json_is_false(bias) && (!json_is_number(bias) || !(json_number_value(bias) >= -100 &&
                                                            json_number_value(bias) <= 100)))
        return nk__bad(p, NK_E_INVALID, "bad_value", name,
                       "the bias of token %.40s must be a number from -100 to 100", of);
    *out = bans ? -INFINITY : (float)json_number_value(bias);
    return 0;
}

static int add_id_bias(struct nk_parse *p, const char *name, long long id, const json_t *bias)
{
    char of[24];
    float value;
    int rc;

    if (id < 0 || id > INT32_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", name, "%lld is not a token id", id);
    snprintf(of, sizeof of, "%lld", id);
    rc = read_bias(p, name, of, bias, &value);
    if (!rc)
        p->r->logit_bias[p->r->sampling.n_logit_bias++] =
            (struct nk_logit_bias){ .id = (int32_t)id, .bias = value };
    return rc;
}

/* A number is an id. What else it is, is text. */
static int add_bias_of(struct nk_parse *p, const char *name, const char *key, size_t size,
                       const json_t *bias)
{
    struct nk_request *r = p->r;
    char *end, of[48];
    long long id = strtoll(key, &end, 10);
    float value;
    int rc;

    if (isdigit((unsigned char)key[0]) && !*end)
        return add_id_bias(p, name, id, bias);
    if (!size)
        return nk__bad(p, NK_E_INVALID, "bad_value", name,
                       "\"\" is neither a token id nor text that has tokens");
    snprintf(of, sizeof of, "\"%.40s\"", key);
    rc = read_bias(p, name, of, bias, &value);
    if (!rc)
        r->text_bias[r->n_text_bias++] =
            (struct nk_text_bias){ .text = key, .size = size, .bias = value };
    return rc;
}

/* {"15043": 1, " word": -5}, or llama-server's [[15043, 1], ["15043", false], [" word", -5]]. */
int nk__read_logit_bias(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    size_t n = json_is_array(v) ? json_array_size(v) : json_object_size(v), i;
    const char *key;
    json_t *bias;
    int rc;

    if (!json_is_object(v) && !json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be an object of token ids and numbers, or a list of such pairs, not "
                       "%s",
                       nk__json_type(v));
    if (n > NK_LOGIT_BIAS_MAX)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name, "%zu entries; at most %d are possible",
                       n, NK_LOGIT_BIAS_MAX);
    if (!n)
        return 0;
    p->r->logit_bias = calloc(n, sizeof *p->r->logit_bias);
    p->r->text_bias = calloc(n, sizeof *p->r->text_bias);
    if (!p->r->logit_bias || !p->r->text_bias)
        return nk__bad(p, NK_E_EXHAUSTED, "no_memory", f->name, "no memory");
    p->r->sampling.logit_bias = p->r->logit_bias;
    json_object_foreach((json_t *)v, key, bias)
    {
        rc = add_bias_of(p, f->name, key, strlen(key), bias);
        if (rc)
            return rc;
    }
    json_array_foreach((json_t *)v, i, bias)
    {
        const json_t *id = json_array_get(bias, 0), *value = json_array_get(bias, 1);

        if (json_array_size(bias) != 2 || (!json_is_integer(id) && !json_is_string(id)))
            return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                           "entry %zu is not a pair of a token id or a text, and a number", i);
        rc = json_is_string(id)
                 ? add_bias_of(p, f->name, json_string_value(id), json_string_length(id), value)
                 : add_id_bias(p, f->name, json_integer_value(id), value);
        if (rc)
            return rc;
    }
    return 0;
}

int nk__read_n(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (!nk__json_integer(v, &i) || i < 1)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a positive integer");
    if (i > p->limits->n_max)
        return nk__bad(p, NK_E_INVALID, "too_many", f->name,
                       "%lld choices; at most %d are possible", (long long)i, p->limits->n_max);
    p->r->n = (int)i;
    return 0;
}

int nk__read_completion_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    if (!nk__json_integer(v, &i) || i < 0 || i > NK_LOGPROBS_MAX)
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be an integer from 0 to %d",
                       NK_LOGPROBS_MAX);
    p->r->n_logprobs = (int)i;
    return 0;
}

/* 0: none. */
int nk__read_n_probs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    json_int_t i;

    return nk__json_integer(v, &i) && i == 0 ? 0 : nk__read_completion_logprobs(p, f, v);
}

int nk__read_suffix(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    if (!json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a string, not %s",
                       nk__json_type(v));
    if (json_string_length(v))
        p->r->suffix = json_string_value(v);
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
    json_int_t i;

    if (!nk__json_integer(v, &i) || i < 0 || i > NK_LOGPROBS_MAX)
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
