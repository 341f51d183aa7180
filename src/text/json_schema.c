/* Each schema becomes one rule, r0, r1 ...; a rule's body is written into a buffer of its own while its parts become
 * rules, and then goes out as one line. What a schema may hold is looked up in one table of keywords; a keyword that is
 * not in it is refused.
 *
 * A text that the grammar lets through is always valid; not all valid texts are let through: properties come in the
 * schema's order, numbers have at most 18 digits, 29 February does not exist, keys of additional properties hold no
 * escapes. That is what a grammar that steers a generation is for.
 *
 * pattern, of ECMA 262's regular expressions: literals, ., classes with ranges, \d \w \s and their negations, \n \t \r \f
 * \v \0 \xHH \uHHHH and escaped punctuation, groups (?:...), (...) and (?<name>...), |, * + ? {m} {m,} {m,n} and their lazy
 * forms, ^ and $ at the ends of the pattern or of its topmost alternatives. Refused: look-around, back references, \b,
 * \p, anchors elsewhere. Where ^ or $ is missing, anything may come before or after, as JSON Schema has it. */
#include "text/json_schema.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { DEPTH_MAX = 64, RULES_MAX = 10000, BODY_MAX = 1 << 20, REPEAT_MAX = 65536 };

/* Any JSON, and what the others are made of. Digits are bounded so that a number ends. A \u escape is a character: no half
 * surrogate pair. */
#define BASE_RULES                                                                                 \
    "ws ::= \"\" | \" \" | \"\\n\" [ \\t]{0,32}\n"                                                 \
    "hex ::= [0-9a-fA-F]\n"                                                                        \
    "escape ::= \"\\\\\" ([\"\\\\/bfnrt] | \"u\" ([0-9abcefABCEF] hex hex hex | [dD] [0-7] hex "   \
    "hex | "                                                                                       \
    "[dD] [89abAB] hex hex \"\\\\u\" [dD] [c-fC-F] hex hex))\n"                                    \
    "char ::= [^\"\\\\\\x00-\\x1F] | escape\n"                                                     \
    "string ::= \"\\\"\" char* \"\\\"\"\n"                                                         \
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]{0,17})\n"                                             \
    "number ::= integer (\".\" [0-9]{1,18})? ([eE] [-+]? [0-9]{1,2})?\n"                           \
    "boolean ::= \"true\" | \"false\"\n"                                                           \
    "null ::= \"null\"\n"                                                                          \
    "value ::= object | array | string | number | boolean | null\n"                                \
    "object ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? ws \"}\"\n"    \
    "array ::= \"[\" ws (value (\",\" ws value)*)? ws \"]\"\n"

const char *nk_json_object_grammar(void)
{
    return "root ::= object\n" BASE_RULES;
}

/* ---- keywords ---- */

enum { ANNOTATION = 1, OBJECT = 2, ARRAY = 4, STRING = 8, NUMBER = 16, ANY = 32 };

/* To which type a keyword belongs; ANY: handled before types are looked at. */
static const struct {
    const char *name;
    int type;
} keywords[] = {
    { "$schema", ANNOTATION },
    { "$id", ANNOTATION },
    { "$comment", ANNOTATION },
    { "$defs", ANNOTATION },
    { "definitions", ANNOTATION },
    { "title", ANNOTATION },
    { "description", ANNOTATION },
    { "default", ANNOTATION },
    { "examples", ANNOTATION },
    { "example", ANNOTATION },
    { "deprecated", ANNOTATION },
    { "readOnly", ANNOTATION },
    { "writeOnly", ANNOTATION },
    { "discriminator", ANNOTATION }, /* OpenAPI: repeats what oneOf says */
    { "$ref", ANY },
    { "type", ANY },
    { "enum", ANY },
    { "const", ANY },
    { "anyOf", ANY },
    { "oneOf", ANY },
    { "allOf", ANY },
    { "properties", OBJECT },
    { "required", OBJECT },
    { "additionalProperties", OBJECT },
    { "items", ARRAY },
    { "prefixItems", ARRAY },
    { "minItems", ARRAY },
    { "maxItems", ARRAY },
    { "minLength", STRING },
    { "maxLength", STRING },
    { "pattern", STRING },
    { "format", STRING },
    { "minimum", NUMBER },
    { "maximum", NUMBER },
    { "exclusiveMinimum", NUMBER },
    { "exclusiveMaximum", NUMBER },
};
enum { N_KEYWORDS = sizeof keywords / sizeof keywords[0] };

struct name {
    char text[16]; /* of a rule */
};

struct conversion {
    const json_t *root;
    struct nk_buf *out;
    struct nk_error *err;
    int n_rules, depth;
    char path[256]; /* of the present schema, for messages */
    struct target {
        const json_t *schema;
        struct name rule;
    } * targets; /* of $ref, and the root */
    size_t n_targets;
};

static int refuse(struct conversion *c, const char *what, const char *why)
{
    return nk_fail(c->err, NK_E_INVALID, "unsupported_schema", "%s of the JSON schema: %s%s%s",
                   c->path, what, why ? ": " : "", why ? why : "");
}

static int has_type(const json_t *schema)
{
    const char *key;
    json_t *value;
    int types = 0;

    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        int i = 0;

        while (i < N_KEYWORDS && strcmp(keywords[i].name, key) != 0)
            i++;
        types |= i < N_KEYWORDS ? keywords[i].type : -1;
    }
    return types; /* negative: an unknown keyword */
}

static int check_keywords(struct conversion *c, const json_t *schema)
{
    const char *key;
    json_t *value;

    if (has_type(schema) >= 0)
        return 0;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        int i = 0;

        while (i < N_KEYWORDS && strcmp(keywords[i].name, key) != 0)
            i++;
        if (i == N_KEYWORDS) {
            char what[80];

            snprintf(what, sizeof what, "\"%.60s\" is not supported", key);
            return refuse(c, what, NULL);
        }
    }
    return 0;
}

/* ---- text of grammars ---- */

/* text as a GBNF literal. */
static int add_literal(struct nk_buf *b, const char *text, size_t size, struct nk_error *err)
{
    int rc = nk_buf_adds(b, "\"", err);

    for (size_t i = 0; !rc && i < size; i++) {
        uint8_t byte = (uint8_t)text[i];

        if (byte == '"' || byte == '\\')
            rc = nk_buf_addf(b, err, "\\%c", byte);
        else if (byte < 0x20 || byte == 0x7F)
            rc = nk_buf_addf(b, err, "\\x%02X", byte);
        else
            rc = nk_buf_add(b, text + i, 1, err);
    }
    return rc ? rc : nk_buf_adds(b, "\" ", err);
}

/* A JSON value as models write it: a space after ":" and ",", numbers as short as they can be. */
static int add_json(struct nk_buf *b, const json_t *v, struct nk_error *err)
{
    const char *key;
    json_t *element;
    size_t i;
    int rc = 0;

    switch (json_typeof(v)) {
    case JSON_OBJECT: {
        bool first = true;

        rc = nk_buf_adds(b, "{", err);
        json_object_foreach((json_t *)(uintptr_t)v, key, element)
        {
            json_t *k = json_string(key);

            if (!rc && !first)
                rc = nk_buf_adds(b, ", ", err);
            if (!rc)
                rc = k ? add_json(b, k, err)
                       : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
            json_decref(k);
            if (!rc)
                rc = nk_buf_adds(b, ": ", err);
            if (!rc)
                rc = add_json(b, element, err);
            first = false;
        }
        return rc ? rc : nk_buf_adds(b, "}", err);
    }
    case JSON_ARRAY:
        rc = nk_buf_adds(b, "[", err);
        json_array_foreach(v, i, element)
        {
            if (!rc && i)
                rc = nk_buf_adds(b, ", ", err);
            if (!rc)
                rc = add_json(b, element, err);
        }
        return rc ? rc : nk_buf_adds(b, "]", err);
    case JSON_REAL: {
        char text[32];

        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, json_real_value(v));
            if (strtod(text, NULL) == json_real_value(v))
                break;
        }
        return nk_buf_adds(b, text, err);
    }
    default: {
        char *text = json_dumps(v, JSON_ENCODE_ANY);

        rc = text ? nk_buf_adds(b, text, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        free(text);
        return rc;
    }
    }
}

static int add_json_literal(struct nk_buf *b, const json_t *v, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(BODY_MAX);
    int rc = add_json(&text, v, err);

    if (!rc)
        rc = add_literal(b, nk_buf_str(&text), text.size, err);
    nk_buf_release(&text);
    return rc;
}

static int new_rule(struct conversion *c, struct name *name)
{
    if (c->n_rules >= RULES_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                       "the JSON schema needs more than %d rules", RULES_MAX);
    snprintf(name->text, sizeof name->text, "r%d", c->n_rules++);
    return 0;
}

static int add_rule(struct conversion *c, const struct name *name, const struct nk_buf *body)
{
    return nk_buf_addf(c->out, c->err, "%s ::= %s\n", name->text,
                       body->size ? nk_buf_str(body) : "\"\"");
}

/* "{min,max}" after something that was added; max < 0: no end. */
static int add_counts(struct nk_buf *b, int64_t min, int64_t max, struct nk_error *err)
{
    if (max < 0)
        return min == 0 ? nk_buf_adds(b, "* ", err) : nk_buf_addf(b, err, "{%d,} ", (int)min);
    return nk_buf_addf(b, err, "{%d,%d} ", (int)min, (int)max);
}

/* A count among the keywords; *value stays when it is not there. */
static int get_count(struct conversion *c, const json_t *schema, const char *key, int64_t *value)
{
    const json_t *v = json_object_get(schema, key);
    double number;

    if (!v)
        return 0;
    number = json_number_value(v);
    if (!json_is_number(v) || number < 0 || number > REPEAT_MAX || number != floor(number))
        return refuse(c, key, "a whole number from 0 to 65536 is wanted");
    *value = (int64_t)number;
    return 0;
}

static int get_range(struct conversion *c, const json_t *schema, const char *min_key,
                     const char *max_key, int64_t *min, int64_t *max)
{
    int rc;

    *min = 0;
    *max = -1;
    rc = get_count(c, schema, min_key, min);
    if (!rc)
        rc = get_count(c, schema, max_key, max);
    if (!rc && *max >= 0 && *min > *max)
        rc = refuse(c, min_key, "larger than the maximum: nothing is valid");
    return rc;
}

/* ---- whole numbers in a range ---- */

#define LIMIT 1000000000000000000 /* 10^18: 18 digits */

/* Numbers of n digits from low to high, both with leading zeros to n digits. */
static int add_same_length(struct nk_buf *b, const char *low, const char *high, int n,
                           struct nk_error *err)
{
    char all[20], none[20];
    int rc = 0;
    bool first = true;

    if (n == 0)
        return 0;
    memset(all, '9', sizeof all);
    memset(none, '0', sizeof none);
    if (!memcmp(low + 1, none, (size_t)n - 1) && !memcmp(high + 1, all, (size_t)n - 1))
        return n > 1 ? nk_buf_addf(b, err, "[%c-%c] [0-9]{%d} ", *low, *high, n - 1)
                     : nk_buf_addf(b, err, "[%c-%c] ", *low, *high);
    if (*low == *high) {
        rc = nk_buf_addf(b, err, "\"%c\" ", *low);
        return rc ? rc : add_same_length(b, low + 1, high + 1, n - 1, err);
    }
    rc = nk_buf_adds(b, "(", err);
    if (!rc &&
        memcmp(low + 1, none, (size_t)n - 1) != 0) { /* low's first digit, the rest from low's on */
        rc = nk_buf_addf(b, err, "\"%c\" ", *low);
        if (!rc)
            rc = add_same_length(b, low + 1, all, n - 1, err);
        first = false;
    }
    if (!rc) {
        char from = (char)(*low + !first),
             to = (char)(*high - (memcmp(high + 1, all, (size_t)n - 1) != 0));

        if (from <= to) {
            rc = n > 1 ? nk_buf_addf(b, err, "%s[%c-%c] [0-9]{%d} ", first ? "" : "| ", from, to,
                                     n - 1)
                       : nk_buf_addf(b, err, "%s[%c-%c] ", first ? "" : "| ", from, to);
            first = false;
        }
        if (!rc && to != *high) { /* high's first digit, the rest up to high's */
            rc = nk_buf_addf(b, err, "%s\"%c\" ", first ? "" : "| ", *high);
            if (!rc)
                rc = add_same_length(b, none, high + 1, n - 1, err);
        }
    }
    return rc ? rc : nk_buf_adds(b, ") ", err);
}

/* Whole numbers from low to high, 0 <= low <= high < LIMIT. */
static int add_naturals(struct nk_buf *b, int64_t low, int64_t high, struct nk_error *err)
{
    uint64_t power = 10; /* 10^digits; the last one, 10^19, is past int64_t */
    int rc = nk_buf_adds(b, "(", err);
    bool first = true;

    for (int digits = 1; !rc && digits <= 18; digits++, power *= 10) {
        int64_t from = digits == 1 ? 0 : (int64_t)(power / 10), to = (int64_t)(power - 1);
        char a[24], z[24];

        if (from < low)
            from = low;
        if (to > high)
            to = high;
        if (from > to)
            continue;
        snprintf(a, sizeof a, "%lld", (long long)from);
        snprintf(z, sizeof z, "%lld", (long long)to);
        if (!first)
            rc = nk_buf_adds(b, "| ", err);
        if (!rc)
            rc = add_same_length(b, a, z, digits, err);
        first = false;
    }
    return rc ? rc : nk_buf_adds(b, ") ", err);
}

struct bound {
    bool given, exclusive;
    int64_t value;
};

static int get_bound(struct conversion *c, const json_t *schema, const char *key,
                     const char *exclusive_key, struct bound *b)
{
    const json_t *v = json_object_get(schema, key), *x = json_object_get(schema, exclusive_key);

    *b = (struct bound){ .given = v || x, .exclusive = x != NULL };
    if (v && x)
        return refuse(c, exclusive_key, "not together with its inclusive form");
    if (x) {
        v = x;
        key = exclusive_key;
    }
    if (!v)
        return 0;
    if (!json_is_number(v) || json_number_value(v) != floor(json_number_value(v)) ||
        fabs(json_number_value(v)) >= (double)LIMIT)
        return refuse(c, key, "a whole number of at most 18 digits is wanted");
    b->value = json_is_integer(v) ? json_integer_value(v) : (int64_t)json_real_value(v);
    return 0;
}

static int add_integer(struct conversion *c, struct nk_buf *b, const struct bound *min,
                       const struct bound *max)
{
    int64_t low = min->given ? min->value + min->exclusive : -(LIMIT - 1);
    int64_t high = max->given ? max->value - max->exclusive : LIMIT - 1;
    int rc = 0;

    if (low > high)
        return refuse(c, "minimum", "larger than the maximum: nothing is valid");
    if (low < 0) {
        rc = nk_buf_adds(b, "\"-\" ", c->err);
        if (!rc)
            rc = add_naturals(b, high < 0 ? -high : 1, -low, c->err);
        if (!rc && high >= 0)
            rc = nk_buf_adds(b, "| ", c->err);
    }
    if (!rc && high >= 0)
        rc = add_naturals(b, low > 0 ? low : 0, high, c->err);
    return rc;
}

/* Numbers of one sign, by their absolute value: from low on (but not low itself when low_out), below or at high. A
 * fraction can follow every whole number but the last. */
static int add_absolute(struct nk_buf *b, int64_t low, bool low_out, int64_t high, bool high_out,
                        struct nk_error *err)
{
    bool first = true;
    int rc = 0;

    if (low_out && low < high) {
        rc = add_naturals(b, low, low, err);
        if (!rc)
            rc = nk_buf_adds(b, "\".\" \"0\"{0,16} [1-9] [0-9]{0,16} ", err);
        first = false;
    }
    if (!rc && low + low_out <= high - 1) {
        rc = nk_buf_adds(b, first ? "" : "| ", err);
        if (!rc)
            rc = add_naturals(b, low + low_out, high - 1, err);
        if (!rc)
            rc = nk_buf_adds(b, "(\".\" [0-9]{1,18})? ", err);
        first = false;
    }
    if (!rc && !high_out && !(low_out && low == high)) {
        rc = nk_buf_adds(b, first ? "" : "| ", err);
        if (!rc)
            rc = add_naturals(b, high, high, err);
        if (!rc)
            rc = nk_buf_adds(b, "(\".\" \"0\"{1,18})? ", err);
        first = false;
    }
    return rc;
}

static int add_number(struct conversion *c, struct nk_buf *b, const struct bound *min,
                      const struct bound *max)
{
    int64_t low = min->given ? min->value : -(LIMIT - 1),
            high = max->given ? max->value : LIMIT - 1;
    int rc = 0;

    if (low > high || (low == high && (min->exclusive || max->exclusive)))
        return refuse(c, "minimum", "not below the maximum: nothing is valid");
    if (low < 0) {
        rc = nk_buf_adds(b, "\"-\" (", c->err);
        if (!rc) /* -0 is no number anybody wants: from zero on, zero itself is left to the other sign */
            rc = high < 0 ? add_absolute(b, -high, max->exclusive, -low, min->exclusive, c->err)
                          : add_absolute(b, 0, true, -low, min->exclusive, c->err);
        if (!rc)
            rc = nk_buf_adds(b, ") ", c->err);
    }
    if (rc || high < 0 || (high == 0 && max->exclusive))
        return rc;
    rc = nk_buf_adds(b, low < 0 ? "| (" : "(", c->err);
    if (!rc)
        rc = low < 0 ? add_absolute(b, 0, false, high, max->exclusive, c->err)
                     : add_absolute(b, low, min->exclusive, high, max->exclusive, c->err);
    return rc ? rc : nk_buf_adds(b, ") ", c->err);
}

/* ---- pattern ---- */

/* A set of characters as sorted, separate ranges. */
enum { SET_MAX = 256 };
struct set {
    struct {
        uint32_t low, high;
    } r[SET_MAX];
    int n;
    bool overflow;
};

static void set_add(struct set *s, uint32_t low, uint32_t high)
{
    if (s->n == SET_MAX) {
        s->overflow = true;
        return;
    }
    s->r[s->n].low = low;
    s->r[s->n++].high = high;
}

static int by_low(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return x[0] < y[0] ? -1 : x[0] > y[0];
}

static void set_normalise(struct set *s)
{
    int n = 0;

    qsort(s->r, (size_t)s->n, sizeof s->r[0], by_low);
    for (int i = 0; i < s->n; i++) {
        if (n && s->r[i].low <= s->r[n - 1].high + 1) {
            if (s->r[i].high > s->r[n - 1].high)
                s->r[n - 1].high = s->r[i].high;
        } else {
            s->r[n++] = s->r[i];
        }
    }
    s->n = n;
}

static void set_negate(struct set *s)
{
    struct set out = { .n = 0 };
    uint32_t next = 0;

    set_normalise(s);
    for (int i = 0; i < s->n; i++) {
        if (s->r[i].low > next)
            set_add(&out, next, s->r[i].low - 1);
        next = s->r[i].high + 1;
    }
    if (next <= 0x10FFFF)
        set_add(&out, next, 0x10FFFF);
    out.overflow |= s->overflow;
    *s = out;
}

static bool set_has(const struct set *s, uint32_t cp)
{
    for (int i = 0; i < s->n; i++)
        if (cp >= s->r[i].low && cp <= s->r[i].high)
            return true;
    return false;
}

/* \d, \w, \s and their negations. False for another letter. */
static bool set_add_escape(struct set *s, char letter)
{
    static const uint32_t spaces[][2] = { { 0x09, 0x0D },     { 0x20, 0x20 },
                                          { 0xA0, 0xA0 },     { 0x1680, 0x1680 },
                                          { 0x2000, 0x200A }, { 0x2028, 0x2029 },
                                          { 0x202F, 0x202F }, { 0x205F, 0x205F },
                                          { 0x3000, 0x3000 }, { 0xFEFF, 0xFEFF } };
    struct set t = { .n = 0 };

    switch (letter | 0x20) {
    case 'd':
        set_add(&t, '0', '9');
        break;
    case 'w':
        set_add(&t, '0', '9');
        set_add(&t, 'A', 'Z');
        set_add(&t, '_', '_');
        set_add(&t, 'a', 'z');
        break;
    case 's':
        for (size_t i = 0; i < sizeof spaces / sizeof spaces[0]; i++)
            set_add(&t, spaces[i][0], spaces[i][1]);
        break;
    default:
        return false;
    }
    if (letter < 'a')
        set_negate(&t);
    for (int i = 0; i < t.n; i++)
        set_add(s, t.r[i].low, t.r[i].high);
    return true;
}

/* The characters as they stand in a JSON string: most as they are, quotes, backslashes and control characters escaped. */
static int add_set(struct nk_buf *b, struct set *s, struct nk_error *err)
{
    struct set plain = { .n = 0 };
    int rc = nk_buf_adds(b, "(", err), n_alternatives = 0;

    set_normalise(s);
    for (int i = 0; i < s->n; i++) { /* without what must be escaped, and without surrogates */
        static const uint32_t keep[][2] = {
            { 0x20, 0x21 }, { 0x23, 0x5B }, { 0x5D, 0xD7FF }, { 0xE000, 0x10FFFF }
        };

        for (int k = 0; k < 4; k++) {
            uint32_t low = s->r[i].low > keep[k][0] ? s->r[i].low : keep[k][0];
            uint32_t high = s->r[i].high < keep[k][1] ? s->r[i].high : keep[k][1];

            if (low <= high)
                set_add(&plain, low, high);
        }
    }
    if (plain.n) {
        rc = rc ? rc : nk_buf_adds(b, "[", err);
        for (int i = 0; !rc && i < plain.n; i++)
            rc = plain.r[i].low == plain.r[i].high
                     ? nk_buf_addf(b, err, "\\U%08X", plain.r[i].low)
                     : nk_buf_addf(b, err, "\\U%08X-\\U%08X", plain.r[i].low, plain.r[i].high);
        rc = rc ? rc : nk_buf_adds(b, "] ", err);
        n_alternatives++;
    }
    for (uint32_t cp = 0; !rc && cp < 0x80; cp++) {
        static const char shorts[] = "\bb\ff\nn\rr\tt\"\"\\\\";
        const char *pair = shorts;

        if ((cp >= 0x20 && cp != '"' && cp != '\\') || !set_has(s, cp))
            continue;
        while (*pair && (uint32_t)*pair != cp)
            pair += 2;
        if (n_alternatives++)
            rc = nk_buf_adds(b, "| ", err);
        if (!rc && cp && *pair)
            rc = pair[1] == '"' || pair[1] == '\\' ? nk_buf_addf(b, err, "\"\\\\\\%c\" ", pair[1])
                                                   : nk_buf_addf(b, err, "\"\\\\%c\" ", pair[1]);
        else if (!rc)
            rc = nk_buf_addf(b, err, "\"\\\\u%04x\" ", cp);
    }
    if (!rc && (!n_alternatives || plain.overflow || s->overflow))
        return nk_fail(err, NK_E_INVALID, "unsupported_schema",
                       "a class of a pattern is empty or too large");
    return rc ? rc : nk_buf_adds(b, ") ", err);
}

struct pattern {
    struct conversion *c;
    struct nk_buf *b;
    const char *p;
    int depth;
};

static int bad_pattern(struct pattern *x, const char *why)
{
    return refuse(x->c, "pattern", why);
}

static int pattern_hex(struct pattern *x, int n, uint32_t *cp)
{
    *cp = 0;
    for (int i = 0; i < n; i++, x->p++) {
        int digit = *x->p >= '0' && *x->p <= '9'   ? *x->p - '0'
                    : *x->p >= 'a' && *x->p <= 'f' ? *x->p - 'a' + 10
                    : *x->p >= 'A' && *x->p <= 'F' ? *x->p - 'A' + 10
                                                   : -1;

        if (digit < 0)
            return bad_pattern(x, "hexadecimal digits are wanted after \\x and \\u");
        *cp = *cp << 4 | (uint32_t)digit;
    }
    return 0;
}

/* One character, after a backslash or not; *is_set when it was \d and the like, which were added to s. */
static int pattern_char(struct pattern *x, struct set *s, uint32_t *cp, bool *is_set)
{
    static const char plain[] = "tnrfv0", meaning[] = "\t\n\r\f\v\0";
    const char *at;

    *is_set = false;
    if (*x->p != '\\') {
        int n = nk_utf8_next(x->p, strlen(x->p), cp);

        if (n <= 0)
            return bad_pattern(x, "not UTF-8");
        x->p += n;
        return 0;
    }
    x->p++;
    if (!*x->p)
        return bad_pattern(x, "it ends with a backslash");
    if (set_add_escape(s, *x->p)) {
        *is_set = true;
        x->p++;
        return 0;
    }
    if (*x->p == 'x' || *x->p == 'u') {
        int n = *x->p++ == 'x' ? 2 : 4;

        return pattern_hex(x, n, cp);
    }
    at = strchr(plain, *x->p);
    if (at) {
        *cp = (uint8_t)meaning[at - plain];
    } else if ((*x->p >= '0' && *x->p <= '9') || (*x->p >= 'a' && *x->p <= 'z') ||
               (*x->p >= 'A' && *x->p <= 'Z')) {
        return bad_pattern(x, "back references, \\b, \\p and the like are not supported");
    } else {
        int n = nk_utf8_next(x->p, strlen(x->p), cp);

        x->p += n > 0 ? n - 1 : 0;
    }
    x->p++;
    return 0;
}

/* After "[". */
static int pattern_class(struct pattern *x)
{
    struct set s = { .n = 0 };
    bool negated = *x->p == '^';
    int rc;

    x->p += negated;
    while (*x->p && *x->p != ']') {
        uint32_t low, high;
        bool is_set;

        rc = pattern_char(x, &s, &low, &is_set);
        if (rc)
            return rc;
        if (is_set)
            continue;
        high = low;
        if (x->p[0] == '-' && x->p[1] && x->p[1] != ']') {
            x->p++;
            rc = pattern_char(x, &s, &high, &is_set);
            if (rc)
                return rc;
            if (is_set) { /* [a-\d]: the minus stands for itself */
                set_add(&s, '-', '-');
                high = low;
            }
        }
        if (low > high)
            return bad_pattern(x, "a range of a class is reversed");
        set_add(&s, low, high);
    }
    if (*x->p++ != ']')
        return bad_pattern(x, "a class is not closed");
    if (negated)
        set_negate(&s);
    return add_set(x->b, &s, x->c->err);
}

static int pattern_alternatives(struct pattern *x, bool top);

/* After "(". */
static int pattern_group(struct pattern *x)
{
    int rc;

    if (++x->depth > DEPTH_MAX)
        return bad_pattern(x, "its groups are nested too deeply");
    if (*x->p == '?') {
        if (x->p[1] == ':') {
            x->p += 2;
        } else if (x->p[1] == '<' && x->p[2] != '=' && x->p[2] != '!' && strchr(x->p, '>')) {
            x->p = strchr(x->p, '>') + 1;
        } else {
            return bad_pattern(x, "look-around is not supported");
        }
    }
    rc = nk_buf_adds(x->b, "(", x->c->err);
    if (!rc)
        rc = pattern_alternatives(x, false);
    if (!rc && *x->p++ != ')')
        rc = bad_pattern(x, "a group is not closed");
    x->depth--;
    return rc ? rc : nk_buf_adds(x->b, ")", x->c->err);
}

static int pattern_quantifier(struct pattern *x)
{
    int rc = 0;

    if (*x->p == '*' || *x->p == '+' || *x->p == '?') {
        rc = nk_buf_add(x->b, x->p++, 1, x->c->err);
    } else if (*x->p == '{') {
        char *end;
        long min = strtol(x->p + 1, &end, 10), max = min;

        if (end == x->p + 1 || x->p[1] < '0' || x->p[1] > '9')
            return bad_pattern(x, "a number is wanted after {");
        if (*end == ',') {
            char *from = end + 1;

            max = *from == '}' ? -1 : strtol(from, &end, 10);
            if (*from == '}')
                end = from;
            else if (end == from || *from < '0' || *from > '9')
                return bad_pattern(x, "a number is wanted in {}");
        }
        if (*end != '}' || min > REPEAT_MAX || max > REPEAT_MAX || (max >= 0 && min > max))
            return bad_pattern(x, "{} is not closed, too large or reversed");
        x->p = end + 1;
        rc = add_counts(x->b, min, max, x->c->err);
    } else {
        return nk_buf_adds(x->b, " ", x->c->err);
    }
    if (*x->p == '?') /* lazy: the same texts */
        x->p++;
    if (*x->p == '*' || *x->p == '+' || *x->p == '?' || *x->p == '{')
        return bad_pattern(x, "a repetition is repeated");
    return rc ? rc : nk_buf_adds(x->b, " ", x->c->err);
}

static int pattern_atom(struct pattern *x)
{
    struct set s = { .n = 0 };
    uint32_t cp;
    bool is_set;
    int rc;

    switch (*x->p) {
    case '(':
        x->p++;
        return pattern_group(x);
    case '[':
        x->p++;
        return pattern_class(x);
    case '.':
        x->p++;
        set_add(&s, '\n', '\n');
        set_add(&s, '\r', '\r');
        set_add(&s, 0x2028, 0x2029);
        set_negate(&s);
        return add_set(x->b, &s, x->c->err);
    case '^':
    case '$':
        return bad_pattern(x, "^ and $ are supported at its ends only");
    case '*':
    case '+':
    case '?':
    case '{':
        return bad_pattern(x, "there is nothing to repeat");
    default:
        rc = pattern_char(x, &s, &cp, &is_set);
        if (!rc && !is_set)
            set_add(&s, cp, cp);
        return rc ? rc : add_set(x->b, &s, x->c->err);
    }
}

/* top: the pattern's own alternatives, which may have anchors and match anywhere without them. */
static int pattern_alternatives(struct pattern *x, bool top)
{
    int rc = 0;

    for (;;) {
        bool at_end = false;

        if (top) {
            if (*x->p == '^')
                x->p++;
            else
                rc = nk_buf_adds(x->b, "char* ", x->c->err);
        }
        while (!rc && *x->p && *x->p != '|' && *x->p != ')') {
            if (top && *x->p == '$' && (x->p[1] == '\0' || x->p[1] == '|')) {
                x->p++;
                at_end = true;
                break;
            }
            rc = pattern_atom(x);
            if (!rc)
                rc = pattern_quantifier(x);
        }
        if (!rc && top && !at_end)
            rc = nk_buf_adds(x->b, "char* ", x->c->err);
        if (rc || *x->p != '|')
            return rc;
        x->p++;
        rc = nk_buf_adds(x->b, "| ", x->c->err);
    }
}

static int add_pattern(struct conversion *c, struct nk_buf *b, const char *text)
{
    struct pattern x = { c, b, text, 0 };
    int rc = nk_buf_adds(b, "\"\\\"\" (", c->err);

    if (!rc)
        rc = pattern_alternatives(&x, true);
    if (!rc && *x.p)
        rc = bad_pattern(&x, "a ) has no (");
    return rc ? rc : nk_buf_adds(b, ") \"\\\"\" ", c->err);
}

/* ---- types ---- */

#define DATE                                                                                       \
    "[0-9]{4} \"-\" ((\"0\" [13578] | \"1\" [02]) \"-\" (\"0\" [1-9] | [12] [0-9] | \"3\" [01]) "  \
    "| "                                                                                           \
    "(\"0\" [469] | \"11\") \"-\" (\"0\" [1-9] | [12] [0-9] | \"30\") | \"02-\" (\"0\" [1-9] | "   \
    "\"1\" [0-9] | \"2\" [0-8])) "
#define TIME                                                                                       \
    "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,9})? "          \
    "(\"Z\" | [+-] ([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9]) "
#define OCTET "(\"25\" [0-5] | \"2\" [0-4] [0-9] | \"1\" [0-9] [0-9] | [1-9]? [0-9]) "
#define LABEL "[a-zA-Z0-9] ([a-zA-Z0-9-]{0,30} [a-zA-Z0-9])? "

static const struct {
    const char *name, *grammar;
} formats[] = {
    { "date", DATE },
    { "time", TIME },
    { "date-time", DATE "\"T\" " TIME },
    { "duration", "\"P\" ([0-9]{1,4} \"D\" (\"T\" [0-9]{1,4} [HMS])? | \"T\" [0-9]{1,4} [HMS] | "
                  "[0-9]{1,4} [WMY]) " },
    { "email", "[a-zA-Z0-9_+-]{1,32} (\".\" [a-zA-Z0-9_+-]{1,32}){0,2} \"@\" (" LABEL
               "\".\"){1,3} [a-z]{2,10} " },
    { "hostname", LABEL "(\".\" " LABEL "){0,4} " },
    { "ipv4", OCTET "\".\" " OCTET "\".\" " OCTET "\".\" " OCTET },
    { "ipv6", "hex{1,4} (\":\" hex{1,4}){7} " },
    { "uuid", "hex{8} \"-\" hex{4} \"-\" hex{4} \"-\" hex{4} \"-\" hex{12} " },
};

static int add_string(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *pattern = json_object_get(schema, "pattern"),
                 *format = json_object_get(schema, "format");
    bool has_length = json_object_get(schema, "minLength") || json_object_get(schema, "maxLength");
    int64_t min, max;
    int rc;

    if ((pattern != NULL) + (format != NULL) + has_length > 1)
        return refuse(c, pattern ? "pattern" : "format",
                      "not together with other limits of the same string");
    if (pattern) {
        if (!json_is_string(pattern) ||
            strlen(json_string_value(pattern)) != json_string_length(pattern))
            return refuse(c, "pattern", "text without NUL is wanted");
        return add_pattern(c, b, json_string_value(pattern));
    }
    if (format) {
        for (size_t i = 0; json_is_string(format) && i < sizeof formats / sizeof formats[0]; i++)
            if (!strcmp(formats[i].name, json_string_value(format)))
                return nk_buf_addf(b, c->err, "\"\\\"\" %s\"\\\"\" ", formats[i].grammar);
        return refuse(
            c, "format",
            "known are date, time, date-time, duration, email, hostname, ipv4, ipv6, uuid");
    }
    if (!has_length)
        return nk_buf_adds(b, "string ", c->err);
    rc = get_range(c, schema, "minLength", "maxLength", &min, &max);
    if (!rc)
        rc = nk_buf_adds(b, "\"\\\"\" char", c->err);
    if (!rc)
        rc = add_counts(b, min, max, c->err);
    return rc ? rc : nk_buf_adds(b, "\"\\\"\" ", c->err);
}

static int convert(struct conversion *c, const json_t *schema, struct name *rule);

/* Converts a part of a schema, whose place is c->path followed by the given steps. */
static int convert_part(struct conversion *c, const json_t *schema, const char *key,
                        const char *sub, struct name *rule)
{
    size_t size = strlen(c->path);
    int rc;

    snprintf(c->path + size, sizeof c->path - size, "/%s%s%s", key, sub ? "/" : "", sub ? sub : "");
    rc = convert(c, schema, rule);
    c->path[size] = '\0';
    return rc;
}

static int convert_element(struct conversion *c, const json_t *schema, const char *key, size_t i,
                           struct name *rule)
{
    char sub[24];

    snprintf(sub, sizeof sub, "%zu", i);
    return convert_part(c, schema, key, sub, rule);
}

static int add_array(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *items = json_object_get(schema, "items"),
                 *prefix = json_object_get(schema, "prefixItems");
    struct name item = { "value" };
    bool closed = json_is_false(items);
    size_t n_prefix = json_array_size(prefix);
    int64_t min, max;
    int rc = get_range(c, schema, "minItems", "maxItems", &min, &max);

    if (rc)
        return rc;
    if (prefix && !json_is_array(prefix))
        return refuse(c, "prefixItems", "a list of schemas is wanted");
    if (closed && (max < 0 || (size_t)max > n_prefix))
        max = (int64_t)n_prefix;
    if (max >= 0 && min > max)
        return refuse(c, "minItems", "larger than what the items allow: nothing is valid");
    if (max >= 0 && (size_t)max < n_prefix)
        n_prefix = (size_t)max;
    if (items && !closed) {
        rc = convert_part(c, items, "items", NULL, &item);
        if (rc)
            return rc;
    }
    rc = nk_buf_adds(b, "\"[\" ws ", c->err);
    /* Prefix items beyond min may be left out from the right: each opens a group that may be missing. */
    for (size_t i = 0; !rc && i < n_prefix; i++) {
        struct name one;

        rc = convert_element(c, json_array_get(prefix, i), "prefixItems", i, &one);
        if (!rc)
            rc = nk_buf_addf(b, c->err, "%s%s%s ", (int64_t)i >= min ? "(" : "",
                             i ? "\",\" ws " : "", one.text);
    }
    if (!rc && (max < 0 || (size_t)max > n_prefix)) {
        int64_t from = min > (int64_t)n_prefix ? min - (int64_t)n_prefix : 0;
        int64_t to = max < 0 ? -1 : max - (int64_t)n_prefix;

        if (n_prefix) {
            rc = nk_buf_addf(b, c->err, "(\",\" ws %s)", item.text);
            if (!rc)
                rc = add_counts(b, from, to, c->err);
        } else {
            rc =
                nk_buf_addf(b, c->err, "%s%s (\",\" ws %s)", from ? "" : "(", item.text, item.text);
            if (!rc)
                rc = add_counts(b, from > 1 ? from - 1 : 0, to < 0 ? -1 : to - 1, c->err);
            if (!rc && !from)
                rc = nk_buf_adds(b, ")? ", c->err);
        }
    }
    for (size_t i = 0; !rc && i < n_prefix; i++)
        if ((int64_t)i >= min)
            rc = nk_buf_adds(b, ")? ", c->err);
    return rc ? rc : nk_buf_adds(b, "ws \"]\" ", c->err);
}

/* ---- objects ---- */

/* Keys other than the named ones, without escapes: a walk down the tree of their characters. names are sorted; those from
 * begin to end share their first at bytes. Adds what may follow those, up to and with the closing quote. */
static int add_other_keys(struct nk_buf *b, const char *const *names, size_t begin, size_t end,
                          size_t at, struct nk_error *err)
{
    bool is_name =
        begin < end && !names[begin][at]; /* the first of a sorted range is the shortest */
    size_t i = begin + is_name;
    int rc = nk_buf_adds(b, "(", err);

    if (!rc && !is_name && at > 0) /* the empty key is nobody's friend */
        rc = nk_buf_adds(b, "\"\\\"\" | ", err);
    while (!rc && i < end) {
        uint32_t cp;
        int n = nk_utf8_next(names[i] + at, strlen(names[i] + at), &cp);
        size_t next = i;

        NK_ASSERT(n > 0); /* jansson's strings are UTF-8 */
        while (next < end && !strncmp(names[next] + at, names[i] + at, (size_t)n))
            next++;
        if (cp >= 0x20 && cp != '"' &&
            cp != '\\') { /* others would be escapes, which these keys do not have */
            rc = add_literal(b, names[i] + at, (size_t)n, err);
            if (!rc)
                rc = add_other_keys(b, names, i, next, at + (size_t)n, err);
            if (!rc)
                rc = nk_buf_adds(b, "| ", err);
        }
        i = next;
    }
    rc = rc ? rc : nk_buf_adds(b, "[^\"\\\\\\x00-\\x1F", err);
    for (i = begin + is_name; !rc && i < end; i++) {
        uint32_t cp;

        nk_utf8_next(names[i] + at, strlen(names[i] + at), &cp);
        rc = nk_buf_addf(b, err, "\\U%08X", cp);
    }
    return rc ? rc : nk_buf_adds(b, "] [^\"\\\\\\x00-\\x1F]* \"\\\"\") ", err);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int add_other_key(struct conversion *c, struct nk_buf *b, const json_t *properties)
{
    size_t n = json_object_size(properties), i = 0;
    const char **names = calloc(n + 1, sizeof *names), *key;
    json_t *value;
    int rc;

    if (!names)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    json_object_foreach((json_t *)(uintptr_t)properties, key, value) names[i++] = key;
    qsort(names, n, sizeof *names, by_text);
    for (i = 0; i < n; i++)
        if (strlen(names[i]) > 128) {
            rc = refuse(c, "additionalProperties",
                        "not together with a property whose name is longer than 128 bytes");
            goto out;
        }
    rc = nk_buf_adds(b, "\"\\\"\" ", c->err);
    if (!rc)
        rc = add_other_keys(b, names, 0, n, 0, c->err);
out:
    free(names);
    return rc;
}

static bool is_required(const json_t *required, const char *key)
{
    const json_t *name;
    size_t i;

    json_array_foreach(required, i, name) if (json_is_string(name) &&
                                              !strcmp(json_string_value(name), key)) return true;
    return false;
}

static int check_required(struct conversion *c, const json_t *properties, const json_t *required)
{
    const json_t *name;
    size_t i;

    if (required && !json_is_array(required))
        return refuse(c, "required", "a list of names is wanted");
    json_array_foreach(
        required, i,
        name) if (!json_is_string(name) ||
                  !json_object_get(
                      properties,
                      json_string_value(name))) return refuse(c, "required",
                                                              "it names something that is not "
                                                              "among the properties");
    return 0;
}

/* Two rules per property: what may follow from it on when nothing was written yet, and when a comma is due. From the
 * last property backwards, so that what follows is known. */
static int add_members(struct conversion *c, struct nk_buf *b, const json_t *properties,
                       const json_t *required, const struct name *extra)
{
    size_t n = json_object_size(properties), i = 0;
    struct member {
        const char *key;
        const json_t *schema;
    } *members = calloc(n + 1, sizeof *members);
    struct nk_buf body = NK_BUF_INIT(BODY_MAX);
    struct name first, more;
    const char *key;
    json_t *value;
    int rc;

    if (!members)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    json_object_foreach((json_t *)(uintptr_t)properties, key, value) members[i++] =
        (struct member){ key, value };
    rc = new_rule(c, &first);
    if (!rc)
        rc = new_rule(c, &more);
    if (!rc && extra)
        rc = nk_buf_addf(&body, c->err, "(%s (\",\" ws %s)*)? ", extra->text, extra->text);
    if (!rc)
        rc = add_rule(c, &first, &body);
    nk_buf_reset(&body);
    if (!rc && extra)
        rc = nk_buf_addf(&body, c->err, "(\",\" ws %s)* ", extra->text);
    if (!rc)
        rc = add_rule(c, &more, &body);
    for (i = n; !rc && i-- > 0;) {
        bool must = is_required(required, members[i].key);
        json_t *k = json_string(members[i].key);
        struct name rule, pair, next_first = first, next_more = more;

        rc = k ? convert_part(c, members[i].schema, "properties", members[i].key, &rule)
               : nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
        if (!rc)
            rc = new_rule(c, &pair);
        if (!rc)
            rc = new_rule(c, &next_first);
        if (!rc)
            rc = new_rule(c, &next_more);
        nk_buf_reset(&body);
        if (!rc)
            rc = add_json_literal(&body, k, c->err);
        json_decref(k);
        if (!rc)
            rc = nk_buf_addf(&body, c->err, "\":\" ws %s ", rule.text);
        if (!rc)
            rc = add_rule(c, &pair, &body);
        nk_buf_reset(&body);
        if (!rc)
            rc = must ? nk_buf_addf(&body, c->err, "%s %s ", pair.text, more.text)
                      : nk_buf_addf(&body, c->err, "%s %s | %s ", pair.text, more.text, first.text);
        if (!rc)
            rc = add_rule(c, &next_first, &body);
        nk_buf_reset(&body);
        if (!rc)
            rc = nk_buf_addf(&body, c->err, must ? "\",\" ws %s %s " : "(\",\" ws %s)? %s ",
                             pair.text, more.text);
        if (!rc)
            rc = add_rule(c, &next_more, &body);
        first = next_first;
        more = next_more;
    }
    if (!rc)
        rc = nk_buf_addf(b, c->err, "\"{\" ws %s ws \"}\" ", first.text);
    free(members);
    nk_buf_release(&body);
    return rc;
}

static int add_object(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *required = json_object_get(schema, "required");
    const json_t *additional = json_object_get(schema, "additionalProperties");
    struct nk_buf body = NK_BUF_INIT(BODY_MAX);
    struct name extra, value = { "value" };
    bool open = additional ? !json_is_false(additional) : !json_object_size(properties);
    int rc = check_required(c, properties, required);

    if (!rc && properties && !json_is_object(properties))
        rc = refuse(c, "properties", "an object of schemas is wanted");
    if (rc || !open)
        return rc ? rc : add_members(c, b, properties, required, NULL);
    if (!json_object_size(properties) && (!additional || json_is_true(additional)))
        return nk_buf_adds(b, "object ", c->err);
    if (additional && !json_is_true(additional))
        rc = convert_part(c, additional, "additionalProperties", NULL, &value);
    if (!rc)
        rc = new_rule(c, &extra);
    if (!rc)
        rc = add_other_key(c, &body, properties);
    if (!rc)
        rc = nk_buf_addf(&body, c->err, "\":\" ws %s ", value.text);
    if (!rc)
        rc = add_rule(c, &extra, &body);
    nk_buf_release(&body);
    return rc ? rc : add_members(c, b, properties, required, &extra);
}

/* ---- references and combinations ---- */

/* "#" or "#/a/b~1c/0". NULL when there is nothing. */
static const json_t *resolve(const json_t *root, const char *ref)
{
    const json_t *at = root;

    if (*ref++ != '#')
        return NULL;
    while (*ref && at) {
        char step[256];
        size_t n = 0;

        if (*ref++ != '/')
            return NULL;
        for (; *ref && *ref != '/'; ref++) {
            unsigned code;

            if (n + 1 >= sizeof step)
                return NULL;
            if (*ref == '~' && (ref[1] == '0' || ref[1] == '1')) {
                step[n++] = *++ref == '0' ? '~' : '/';
            } else if (*ref == '%' && sscanf(ref + 1, "%2x", &code) == 1 && ref[1] && ref[2]) {
                step[n++] = (char)code;
                ref += 2;
            } else {
                step[n++] = *ref;
            }
        }
        step[n] = '\0';
        at = json_is_array(at) ? json_array_get(at, (size_t)strtoul(step, NULL, 10))
                               : json_object_get(at, step);
    }
    return at;
}

/* Follows $ref to a schema that is none itself. */
static int follow(struct conversion *c, const json_t *schema, const json_t **target)
{
    for (int n = 0; json_is_object(schema) && json_object_get(schema, "$ref"); n++) {
        const json_t *ref = json_object_get(schema, "$ref");
        int rc = check_keywords(c, schema);

        if (rc)
            return rc;
        if (has_type(schema) & ~(ANNOTATION | ANY) || json_object_get(schema, "type") ||
            json_object_get(schema, "enum") || json_object_get(schema, "const") ||
            json_object_get(schema, "anyOf") || json_object_get(schema, "oneOf") ||
            json_object_get(schema, "allOf"))
            return refuse(c, "$ref", "not together with other keywords");
        schema = json_is_string(ref) ? resolve(c->root, json_string_value(ref)) : NULL;
        if (!schema)
            return refuse(
                c, "$ref",
                "only \"#\" and places below it can be referred to, and this one is not there");
        if (n > DEPTH_MAX)
            return refuse(c, "$ref", "it leads back to itself");
    }
    *target = schema;
    return 0;
}

/* The rule of a schema that may be referred to several times, or by itself. */
static int convert_ref(struct conversion *c, const json_t *schema, struct name *rule)
{
    const json_t *target = NULL;
    struct target *larger;
    struct nk_buf body = NK_BUF_INIT(BODY_MAX);
    struct name inner;
    int rc = follow(c, schema, &target);

    if (rc)
        return rc;
    for (size_t i = 0; i < c->n_targets; i++)
        if (c->targets[i].schema == target) {
            *rule = c->targets[i].rule;
            return 0;
        }
    larger = realloc(c->targets, (c->n_targets + 1) * sizeof *larger);
    if (!larger)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    c->targets = larger;
    rc = new_rule(c, rule);
    if (rc)
        return rc;
    c->targets[c->n_targets++] = (struct target){ target, *rule };
    rc = convert(c, target, &inner);
    if (!rc)
        rc = nk_buf_adds(&body, inner.text, c->err);
    if (!rc)
        rc = add_rule(c, rule, &body);
    nk_buf_release(&body);
    return rc;
}

/* Adds an object's keywords to those that were collected. */
static int merge_object(struct conversion *c, const json_t *schema, json_t *merged)
{
    json_t *properties = json_object_get(merged, "properties"),
           *required = json_object_get(merged, "required");
    const json_t *type = json_object_get(schema, "type"),
                 *additional = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *value;
    size_t i;

    if (!json_is_object(schema) ||
        (type && (!json_is_string(type) || strcmp(json_string_value(type), "object") != 0)) ||
        has_type(schema) & (ARRAY | STRING | NUMBER) || json_object_get(schema, "enum") ||
        json_object_get(schema, "const") || json_object_get(schema, "anyOf") ||
        json_object_get(schema, "oneOf"))
        return refuse(c, "allOf", "only objects can be joined");
    json_object_foreach(json_object_get(schema, "properties"), key, value)
    {
        const json_t *other = json_object_get(properties, key);

        if (other && !json_equal(other, value))
            return refuse(c, "allOf", "a property is described twice, differently");
        if (json_object_set(properties, key, value))
            return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    json_array_foreach(
        json_object_get(schema, "required"), i,
        value) if (json_array_append(required, value)) return nk_fail(c->err, NK_E_EXHAUSTED,
                                                                      "no_memory", "no memory");
    if (additional && !json_is_boolean(additional))
        return refuse(c, "allOf", "additionalProperties must be true or false in what is joined");
    /* false of one forbids; true counts only where none does */
    if (additional && !json_is_false(json_object_get(merged, "additionalProperties")) &&
        json_object_set(merged, "additionalProperties", (json_t *)(uintptr_t)additional))
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    return 0;
}

static int merge_all(struct conversion *c, const json_t *schema, json_t *merged)
{
    const json_t *part;
    size_t i;
    int rc = 0;

    if (++c->depth > DEPTH_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large", "the JSON schema is nested too deeply");
    rc = check_keywords(c, schema);
    if (!rc)
        rc = merge_object(c, schema, merged);
    json_array_foreach(json_object_get(schema, "allOf"), i, part)
    {
        const json_t *target = NULL;

        if (!rc)
            rc = follow(c, part, &target);
        if (!rc)
            rc = json_is_object(target) ? merge_all(c, target, merged)
                                        : refuse(c, "allOf", "only objects can be joined");
    }
    c->depth--;
    return rc;
}

static int add_all_of(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *parts = json_object_get(schema, "allOf");
    json_t *merged;
    struct name rule;
    int rc;

    if (!json_is_array(parts) || !json_array_size(parts))
        return refuse(c, "allOf", "a list of schemas is wanted");
    if (json_array_size(parts) == 1 && !(has_type(schema) & ~(ANNOTATION | ANY)) &&
        !json_object_get(schema, "type")) {
        rc = convert_element(c, json_array_get(parts, 0), "allOf", 0,
                             &rule); /* the usual way to describe a $ref */
        return rc ? rc : nk_buf_adds(b, rule.text, c->err);
    }
    merged = json_pack("{s:s, s:{}, s:[]}", "type", "object", "properties", "required");
    rc = merged ? merge_all(c, schema, merged)
                : nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc)
        rc = add_object(c, b, merged);
    json_decref(merged);
    return rc;
}

static int add_any_of(struct conversion *c, struct nk_buf *b, const json_t *schema, const char *key)
{
    const json_t *parts = json_object_get(schema, key), *part;
    size_t i;
    int rc = 0;

    if (!json_is_array(parts) || !json_array_size(parts))
        return refuse(c, key, "a list of schemas is wanted");
    if (has_type(schema) & ~(ANNOTATION | ANY) || json_object_get(schema, "type") ||
        json_object_get(schema, "enum") || json_object_get(schema, "const") ||
        json_object_get(schema, "allOf") ||
        (json_object_get(schema, "anyOf") && json_object_get(schema, "oneOf")))
        return refuse(c, key, "not together with other keywords");
    json_array_foreach(parts, i, part)
    {
        struct name rule;

        if (!rc)
            rc = convert_element(c, part, key, i, &rule);
        if (!rc)
            rc = nk_buf_addf(b, c->err, "%s%s ", i ? "| " : "", rule.text);
    }
    return rc;
}

/* ---- values and types ---- */

static bool is_of_type(const json_t *v, const char *type)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return !strcmp(type, "object");
    case JSON_ARRAY:
        return !strcmp(type, "array");
    case JSON_STRING:
        return !strcmp(type, "string");
    case JSON_INTEGER:
        return !strcmp(type, "integer") || !strcmp(type, "number");
    case JSON_REAL:
        return !strcmp(type, "number");
    case JSON_TRUE:
    case JSON_FALSE:
        return !strcmp(type, "boolean");
    case JSON_NULL:
        return !strcmp(type, "null");
    }
    return false;
}

static bool type_allows(const json_t *type, const json_t *v)
{
    const json_t *one;
    size_t i;

    if (!type)
        return true;
    if (json_is_string(type))
        return is_of_type(v, json_string_value(type));
    json_array_foreach(type, i, one) if (json_is_string(one) &&
                                         is_of_type(v, json_string_value(one))) return true;
    return false;
}

static int add_values(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *constant = json_object_get(schema, "const"),
                 *values = json_object_get(schema, "enum");
    const json_t *type = json_object_get(schema, "type"), *v;
    bool first = true;
    size_t i;
    int rc = 0;

    if ((constant && values) || has_type(schema) & ~(ANNOTATION | ANY) ||
        json_object_get(schema, "anyOf") || json_object_get(schema, "oneOf") ||
        json_object_get(schema, "allOf"))
        return refuse(c, constant ? "const" : "enum", "not together with keywords other than type");
    if (values && !json_is_array(values))
        return refuse(c, "enum", "a list of values is wanted");
    if (constant && type_allows(type, constant)) {
        first = false;
        rc = add_json_literal(b, constant, c->err);
    }
    json_array_foreach(values, i, v)
    {
        if (rc || !type_allows(type, v))
            continue;
        if (!first)
            rc = nk_buf_adds(b, "| ", c->err);
        first = false;
        if (!rc)
            rc = add_json_literal(b, v, c->err);
    }
    return !rc && first ? refuse(c, constant ? "const" : "enum",
                                 "no value of the wanted type: nothing is valid")
                        : rc;
}

static int add_type(struct conversion *c, struct nk_buf *b, const json_t *schema, const char *type)
{
    struct bound min, max;
    int rc;

    if (!strcmp(type, "object"))
        return add_object(c, b, schema);
    if (!strcmp(type, "array"))
        return add_array(c, b, schema);
    if (!strcmp(type, "string"))
        return add_string(c, b, schema);
    if (!strcmp(type, "boolean") || !strcmp(type, "null"))
        return nk_buf_addf(b, c->err, "%s ", type);
    if (!strcmp(type, "integer") || !strcmp(type, "number")) {
        rc = get_bound(c, schema, "minimum", "exclusiveMinimum", &min);
        if (!rc)
            rc = get_bound(c, schema, "maximum", "exclusiveMaximum", &max);
        if (rc)
            return rc;
        if (!min.given && !max.given)
            return nk_buf_addf(b, c->err, "%s ", type);
        return *type == 'i' ? add_integer(c, b, &min, &max) : add_number(c, b, &min, &max);
    }
    return refuse(c, "type", "known are object, array, string, number, integer, boolean and null");
}

static int add_types(struct conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type"), *one;
    int types = has_type(schema), rc = 0;
    size_t i;

    if (json_is_string(type))
        return add_type(c, b, schema, json_string_value(type));
    if (type) {
        if (!json_is_array(type) || !json_array_size(type))
            return refuse(c, "type", "a name or a list of names is wanted");
        json_array_foreach(type, i, one)
        {
            if (!rc && !json_is_string(one))
                rc = refuse(c, "type", "a name or a list of names is wanted");
            if (!rc && i)
                rc = nk_buf_adds(b, "| ", c->err);
            if (!rc)
                rc = add_type(c, b, schema, json_string_value(one));
        }
        return rc;
    }
    /* Without a type a keyword tells which is meant; where several do, it is not clear. */
    types &= OBJECT | ARRAY | STRING | NUMBER;
    if (!types)
        return nk_buf_adds(b, "value ", c->err);
    if (types & (types - 1))
        return refuse(c, "type", "it is missing, and the other keywords belong to several types");
    return add_type(c, b, schema,
                    types == OBJECT   ? "object"
                    : types == ARRAY  ? "array"
                    : types == STRING ? "string"
                                      : "number");
}

static int convert(struct conversion *c, const json_t *schema, struct name *rule)
{
    struct nk_buf body = NK_BUF_INIT(BODY_MAX);
    int rc = 0;

    if (json_is_true(schema)) {
        *rule = (struct name){ "value" };
        return 0;
    }
    if (!json_is_object(schema))
        return refuse(c, json_is_false(schema) ? "false" : "a schema must be an object",
                      json_is_false(schema) ? "nothing is valid" : NULL);
    if (c->depth >= DEPTH_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                       "the JSON schema is nested more than %d deep", DEPTH_MAX);
    c->depth++;
    rc = check_keywords(c, schema);
    if (!rc && json_object_get(schema, "$ref")) {
        rc = convert_ref(c, schema, rule);
        goto out;
    }
    if (!rc)
        rc = new_rule(c, rule);
    if (rc)
        goto out;
    if (json_object_get(schema, "const") || json_object_get(schema, "enum"))
        rc = add_values(c, &body, schema);
    else if (json_object_get(schema, "anyOf"))
        rc = add_any_of(c, &body, schema, "anyOf");
    else if (json_object_get(schema, "oneOf"))
        rc = add_any_of(c, &body, schema, "oneOf");
    else if (json_object_get(schema, "allOf"))
        rc = add_all_of(c, &body, schema);
    else
        rc = add_types(c, &body, schema);
    if (!rc)
        rc = add_rule(c, rule, &body);
out:
    c->depth--;
    nk_buf_release(&body);
    return rc;
}

int nk_json_schema_to_grammar(const json_t *schema, struct nk_buf *out, struct nk_error *err)
{
    struct conversion c = { .root = schema, .out = out, .err = err, .path = "#" };
    size_t before = out->size;
    struct name rule;
    int rc = nk_buf_adds(out, BASE_RULES, err);

    if (!rc)
        rc = convert(&c, schema, &rule);
    if (!rc)
        rc = nk_buf_addf(out, err, "root ::= %s\n", rule.text);
    free(c.targets);
    if (rc && out->data) {
        out->size = before;
        out->data[before] = '\0';
    }
    return rc;
}
