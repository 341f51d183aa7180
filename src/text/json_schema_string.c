#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#define DATE                                                                                       \
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"                                \
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])))"
#define TIME                                                                                       \
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?"                                 \
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define OCTET "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define LABEL "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
#define IPV4  OCTET "\\." OCTET "\\." OCTET "\\." OCTET
#define HOST  LABEL "(?:\\." LABEL "){0,4}"
#define PATH  "(?:/[a-zA-Z0-9._~@:+,=-]{0,60}){0,8}"
#define QUERY "(?:\\?[a-zA-Z0-9._~@:+,=&/-]{0,99})?(?:#[a-zA-Z0-9._~@:+,=&/-]{0,40})?"
#define EMAIL                                                                                      \
    "[a-zA-Z0-9_+-]{1,32}(?:\\.[a-zA-Z0-9_+-]{1,32}){0,2}@(?:" LABEL "\\.){1,3}[a-z]{2,10}"
#define URI                                                                                        \
    "(?:(?:https?|ftp|file|wss?)://" HOST "(?::[1-9][0-9]{0,3})?" PATH QUERY                       \
    "|mailto:[a-z0-9]{1,32}@" LABEL "\\.[a-z]{2,10}|urn:[a-z0-9]{2,16}:[a-zA-Z0-9:._-]{1,60})"

#define URL                                                                                        \
    "https?://(?:[a-zA-Z0-9]{1,30}\\.){1,3}[a-z]{2,10}(?::[1-9][0-9]{1,3})?(?:/"                   \
    "[a-zA-Z0-9._~-]{0,60}){0,8}"

#define LOOSE_LABEL "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
#define LOOSE_HOST  LOOSE_LABEL "(?:\\." LOOSE_LABEL ")*"
#define LOOSE_PATH                                                                                 \
    "(?:/[a-zA-Z0-9._~@:+,=-]*)*(?:\\?[a-zA-Z0-9._~@:+,=&/-]*)?(?:#[a-zA-Z0-9._~/-]*)?"
#define LOOSE_URI   "[a-z]{2,8}://" LOOSE_HOST LOOSE_PATH
#define LOOSE_URL   "https?://(?:[a-zA-Z0-9]+\\.)+[a-z]{2,10}(?:/[a-zA-Z0-9._~/-]*)?"
#define LOOSE_EMAIL "[a-zA-Z0-9_+-]+(?:\\.[a-zA-Z0-9_+-]+)*@(?:" LOOSE_LABEL "\\.)+[a-zA-Z]{2,10}"

/* What is written of each: less than is valid, and never anything else. Those that the standard
 * knows are all here; another name is nothing to any validator. */
static const struct {
    const char *name, *pattern;
    const char *loose; /* without counts, so that an automaton of it and other limits is small */
} formats[] = {
    { "date", "^" DATE "$", NULL },
    { "time", "^" TIME "$", NULL },
    { "date-time", "^" DATE "T" TIME "$", NULL },
    { "duration", "^P(?:[0-9]{1,4}D(?:T[0-9]{1,4}[HMS])?|T[0-9]{1,4}[HMS]|[0-9]{1,4}[WMY])$",
      NULL },
    { "email", "^" EMAIL "$", "^" LOOSE_EMAIL "$" },
    { "idn-email", "^" EMAIL "$", "^" LOOSE_EMAIL "$" },
    { "hostname", "^" HOST "$", "^" LOOSE_HOST "$" },
    { "idn-hostname", "^" HOST "$", "^" LOOSE_HOST "$" },
    { "ipv4", "^" IPV4 "$", NULL },
    { "ipv6",
      "^(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|::|::1|"
      "(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3})$",
      NULL },
    { "uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
      NULL },
    { "uri", "^" URI "$", "^" LOOSE_URI "$" },
    { "iri", "^" URI "$", "^" LOOSE_URI "$" },
    { "url", "^" URL "$", "^" LOOSE_URL "$" },
    { "uri-reference", "^(?:" URI "|" PATH QUERY ")$", "^(?:" LOOSE_URI "|" LOOSE_PATH ")$" },
    { "iri-reference", "^(?:" URI "|" PATH QUERY ")$", "^(?:" LOOSE_URI "|" LOOSE_PATH ")$" },
    { "uri-template", "^(?:" URI "|(?:/(?:[a-zA-Z0-9._~-]*|\\{[a-zA-Z0-9_]+\\}))*)$",
      "^" LOOSE_URI "$" },
    { "json-pointer", "^(?:/(?:[a-zA-Z0-9_. -]|~[01])*)*$", NULL },
    { "relative-json-pointer", "^(?:0|[1-9][0-9]{0,3})(?:#|(?:/(?:[a-zA-Z0-9_. -]|~[01])*)*)$",
      NULL },
    { "regex", "^\\^?(?:[a-zA-Z0-9_ -]|\\\\[dwsDWS.])*\\$?$", NULL },
    { "byte", "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$", NULL },
};

static const char base64[] = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

/* Its place in formats; their number: it says nothing. */
static size_t find_format(const json_t *name)
{
    size_t i = 0;

    while (i < sizeof formats / sizeof formats[0] &&
           (!json_is_string(name) || strcmp(formats[i].name, json_string_value(name)) != 0))
        i++;
    return i;
}

static int add_pattern(struct nk__conversion *c, struct nk__language *lang, const json_t *pattern,
                       bool negated)
{
    if (!json_is_string(pattern) ||
        strlen(json_string_value(pattern)) != json_string_length(pattern))
        return nk__schema_refuse(c, "pattern", "text without NUL is wanted");
    return nk__language_add(c, lang, json_string_value(pattern), negated);
}

int nk__language_exclude(struct nk__conversion *c, struct nk__language *lang, const json_t *values)
{
    struct nk_buf text = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    bool any = false;
    int rc = nk_buf_adds(&text, "^(?:", c->err);

    for (size_t i = 0; !rc && i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);
        const char *p = json_string_value(v);

        if (!p)
            continue;
        if (any)
            rc = nk_buf_adds(&text, "|", c->err);
        for (size_t k = 0; !rc && k < json_string_length(v); k++)
            rc = p[k] && strchr("\\^$.|?*+()[]{}/-", p[k])
                     ? nk_buf_addf(&text, c->err, "\\%c", p[k])
                 : (uint8_t)p[k] < 0x20 ? nk_buf_addf(&text, c->err, "\\x%02x", (uint8_t)p[k])
                                        : nk_buf_add(&text, p + k, 1, c->err);
        any = true;
    }
    if (!rc)
        rc = nk_buf_adds(&text, ")$", c->err);
    if (!rc && any)
        rc = nk__language_add(c, lang, nk_buf_str(&text), true);
    nk_buf_release(&text);
    return rc;
}

/* ---- lengths that a regular expression brings ---- */

static void get_lengths(const struct nk__regex *re, uint32_t at, int64_t *min, int64_t *max)
{
    const struct nk__regex_node *n = &re->nodes[at];
    int64_t low, high;

    *min = *max = n->type == NK__REGEX_SET;
    if (n->type == NK__REGEX_REPEAT) {
        get_lengths(re, n->child, &low, &high);
        *min = low * n->min;
        *max = n->max < 0 || high < 0 ? (high == 0 ? 0 : -1) : high * n->max;
    } else if (n->type == NK__REGEX_ALTERNATIVES || n->type == NK__REGEX_SEQUENCE) {
        bool choice = n->type == NK__REGEX_ALTERNATIVES;

        for (uint32_t i = n->child; i; i = re->nodes[i].next) {
            get_lengths(re, i, &low, &high);
            if (choice) {
                *min = i == n->child || low < *min ? low : *min;
                *max = high < 0 || *max < 0 ? -1 : high > *max ? high : *max;
            } else {
                *min += low;
                *max = high < 0 || *max < 0 ? -1 : *max + high;
            }
        }
    }
    if (*min > NK__SCHEMA_REPEAT_MAX)
        *min = NK__SCHEMA_REPEAT_MAX;
    if (*max > NK__SCHEMA_REPEAT_MAX)
        *max = -1;
}

/* Limits that the regular expressions keep to anyhow need not be counted. */
static void drop_lengths(struct nk__language *lang)
{
    /* Longer ones are as valid, but each character is a state. */
    enum { COUNTED_MAX = 1000 };
    int64_t longest = -1;

    for (size_t i = 0; i < lang->n; i++) {
        int64_t min, max;

        if (lang->parts[i].negated)
            continue;
        get_lengths(lang->parts[i].regex, lang->parts[i].regex->root, &min, &max);
        if (min >= lang->min)
            lang->min = 0;
        if (nk__regex_is_anchored(lang->parts[i].regex, true) && max >= 0 &&
            (longest < 0 || max < longest))
            longest = max;
    }
    if (longest >= 0 && longest <= lang->max)
        lang->max = -1;
    if (lang->max > COUNTED_MAX && lang->min <= COUNTED_MAX)
        lang->max = COUNTED_MAX;
}

/* ---- what is said of a string ---- */

/* The formats come last: which form of them is the smaller one depends on the rest. */
static int add_formats(struct nk__conversion *c, const struct nk__set *set,
                       struct nk__language *lang)
{
    /* No longer than this where characters are counted, nor a label of a host's name. */
    enum { LOOSE_MAX = 60 };
    int rc = 0;

    for (size_t i = 0; !rc && i < set->n; i++) {
        size_t f = find_format(json_object_get(set->parts[i].schema, "format"));
        int64_t min = 0, max = -1;
        bool loose;

        if (f == sizeof formats / sizeof formats[0])
            continue;
        rc = nk__language_add(c, lang, formats[f].pattern, false);
        if (rc)
            return rc;
        get_lengths(lang->parts[lang->n - 1].regex, lang->parts[lang->n - 1].regex->root, &min,
                    &max);
        loose =
            formats[f].loose && lang->min <= LOOSE_MAX &&
            (lang->n > 1 || lang->min > min || (lang->max >= 0 && (max < 0 || lang->max < max)));
        if (!loose)
            continue;
        lang->n--;
        nk__regex_release(lang->parts[lang->n].regex);
        free(lang->parts[lang->n].regex);
        if (lang->n == 0 || strstr(formats[f].name, "host"))
            lang->max = lang->max < 0 || lang->max > LOOSE_MAX ? LOOSE_MAX : lang->max;
        rc = nk__language_add(c, lang, formats[f].loose, false);
    }
    return rc;
}

int nk__schema_get_language(struct nk__conversion *c, const struct nk__set *set,
                            struct nk__language *lang)
{
    int rc = 0;

    for (size_t i = 0; !rc && i < set->n; i++) {
        const json_t *schema = set->parts[i].schema, *pattern = json_object_get(schema, "pattern"),
                     *encoding = json_object_get(schema, "contentEncoding"),
                     *negated = json_object_get(schema, "not");

        rc = nk__schema_get_range(c, schema, "minLength", "maxLength", &lang->min, &lang->max);
        if (!rc && pattern)
            rc = add_pattern(c, lang, pattern, false);
        if (!rc && json_is_string(encoding) && !strcmp(json_string_value(encoding), "base64"))
            rc = nk__language_add(c, lang, base64, false);
        if (rc || !negated || !nk__logic_is_plain_not(negated))
            continue;
        if (json_object_get(negated, "pattern"))
            rc = add_pattern(c, lang, json_object_get(negated, "pattern"), true);
        else if (json_object_get(negated, "enum"))
            rc = nk__language_exclude(c, lang, json_object_get(negated, "enum"));
        else if (json_is_string(json_object_get(negated, "const"))) {
            json_t *list = json_pack("[O]", json_object_get(negated, "const"));

            rc = list ? nk__language_exclude(c, lang, list) : nk__schema_no_memory(c);
            json_decref(list);
        }
    }
    return rc ? rc : add_formats(c, set, lang);
}

int nk__schema_add_text(struct nk__conversion *c, struct nk_buf *b, struct nk__language *lang)
{
    bool has_length;
    int rc = nk_buf_adds(b, "\"\\\"\" ", c->err);

    if (lang->n)
        drop_lengths(lang);
    has_length = lang->min > 0 || lang->max >= 0;
    if (rc)
        return rc;
    if (!lang->n) {
        rc = nk_buf_adds(b, "char", c->err);
        if (!rc)
            rc = nk__schema_add_counts(b, lang->min, lang->max, c->err);
    } else if (lang->n == 1 && !lang->parts[0].negated && !has_length &&
               !lang->parts[0].regex->has_inner_anchor && !lang->parts[0].regex->n_looks) {
        rc = nk__schema_add_pattern(c, b, lang->parts[0].regex);
    } else {
        rc = nk__schema_add_language(c, b, lang);
    }
    return rc ? rc : nk_buf_adds(b, "\"\\\"\" ", c->err);
}

int nk__schema_add_string(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set)
{
    struct nk__language lang = NK__LANGUAGE_INIT;
    int rc = nk__schema_get_language(c, set, &lang);

    if (!rc && !lang.n && lang.min == 0 && lang.max < 0)
        rc = nk_buf_adds(b, "string ", c->err);
    else if (!rc)
        rc = nk__schema_add_text(c, b, &lang);
    nk__language_release(&lang);
    return rc;
}
