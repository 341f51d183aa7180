/* pattern, of ECMA 262's regular expressions: literals, ., classes with ranges, \d \w \s and their
 * negations, \n \t \r \f \v \0 \xHH \uHHHH and escaped punctuation, groups (?:...), (...) and
 * (?<name>...), |, * + ? {m} {m,} {m,n} and their lazy forms, ^ and $ at the ends of the pattern or
 * of its topmost alternatives. Refused: look-around, back references, \b, \p, anchors elsewhere.
 * Where ^ or $ is missing, anything may come before or after, as JSON Schema has it. */
#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

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

/* The characters as they stand in a JSON string: most as they are, quotes, backslashes and control
 * characters escaped. */
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
    struct nk__conversion *c;
    struct nk_buf *b;
    const char *p, *end;
    int depth;
};

static int bad_pattern(struct pattern *x, const char *why)
{
    return nk__schema_refuse(x->c, "pattern", why);
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

/* One character, after a backslash or not; *is_set when it was \d and the like, which were added
 * to s. */
static int pattern_char(struct pattern *x, struct set *s, uint32_t *cp, bool *is_set)
{
    static const char plain[] = "tnrfv0", meaning[] = "\t\n\r\f\v\0";
    const char *at;
    int rc = nk__schema_spend(x->c, 1);

    *is_set = false;
    if (rc)
        return rc;
    if (*x->p != '\\') {
        int n = nk_utf8_next(x->p, (size_t)(x->end - x->p), cp);

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
        int n = nk_utf8_next(x->p, (size_t)(x->end - x->p), cp);

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

    if (++x->depth > NK__SCHEMA_DEPTH_MAX)
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
        if (*end != '}' || min > NK__SCHEMA_REPEAT_MAX || max > NK__SCHEMA_REPEAT_MAX ||
            (max >= 0 && min > max))
            return bad_pattern(x, "{} is not closed, too large or reversed");
        x->p = end + 1;
        rc = nk__schema_add_counts(x->b, min, max, x->c->err);
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
    int rc = nk__schema_spend(x->c, 128); /* a set is some KiB, looked at several times */

    if (rc)
        return rc;
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

int nk__schema_add_pattern(struct nk__conversion *c, struct nk_buf *b, const char *pattern)
{
    struct pattern x = { c, b, pattern, pattern + strlen(pattern), 0 };
    int rc = nk_buf_adds(b, "\"\\\"\" (", c->err);

    if (!rc)
        rc = pattern_alternatives(&x, true);
    if (!rc && *x.p)
        rc = bad_pattern(&x, "a ) has no (");
    return rc ? rc : nk_buf_adds(b, ") \"\\\"\" ", c->err);
}
