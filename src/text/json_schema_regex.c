/* Regular expressions of ECMA 262, parsed into a tree: literals, ., classes with ranges, \d \w \s
 * and their negations, \n \t \r \f \v \0 \cX \xHH \uHHHH \u{H...} and escaped punctuation, groups
 * (?:...), (...) and (?<name>...), |, * + ? {m} {m,} {m,n} and their lazy forms, ^ and $; and
 * look-ahead where the whole pattern begins with it, after a ^. Refused: other look-around, back
 * references, \b, \p. */
#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/utf8.h"

/* ---- sets of characters ---- */

static void set_add(struct nk__chars *s, uint32_t low, uint32_t high)
{
    if (s->n == NK__CHARS_MAX) {
        s->overflow = true;
        return;
    }
    s->r[s->n++] = (struct nk__range){ low, high };
}

static int by_low(const void *a, const void *b)
{
    const struct nk__range *x = a, *y = b;

    return x->low < y->low ? -1 : x->low > y->low;
}

static void set_normalise(struct nk__chars *s)
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

static void set_negate(struct nk__chars *s)
{
    struct nk__chars out = { .n = 0 };
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

/* \d, \w, \s and their negations. False for another letter. */
static bool set_add_escape(struct nk__chars *s, char letter)
{
    static const uint32_t spaces[][2] = { { 0x09, 0x0D },     { 0x20, 0x20 },
                                          { 0xA0, 0xA0 },     { 0x1680, 0x1680 },
                                          { 0x2000, 0x200A }, { 0x2028, 0x2029 },
                                          { 0x202F, 0x202F }, { 0x205F, 0x205F },
                                          { 0x3000, 0x3000 }, { 0xFEFF, 0xFEFF } };
    struct nk__chars t = { .n = 0 };

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

/* ---- the tree ---- */

struct parser {
    struct nk__conversion *c;
    struct nk__regex *re;
    const char *p, *end;
    int depth;
};

static int bad_pattern(struct parser *x, const char *why)
{
    return nk__schema_refuse(x->c, "pattern", why);
}

static int add_node(struct parser *x, enum nk__regex_type type, uint32_t *at)
{
    struct nk__regex *re = x->re;
    int rc = nk_array_grow(re->nodes, re->nodes_capacity, (size_t)re->n_nodes + 1,
                           NK__REGEX_NODES_MAX, x->c->err);

    if (rc)
        return rc;
    re->nodes[re->n_nodes] = (struct nk__regex_node){ .type = type };
    *at = re->n_nodes++;
    return 0;
}

/* A node for the set. 128 steps: a set is some KiB, looked at several times. */
static int add_set(struct parser *x, struct nk__chars *s, uint32_t *at)
{
    struct nk__regex *re = x->re;
    int rc = nk__schema_spend(x->c, 128);

    set_normalise(s);
    if (!rc && (s->overflow || !s->n))
        rc = nk__schema_refuse(x->c, "pattern", "a class of it is empty or too large");
    if (!rc)
        rc = nk_array_grow(re->ranges, re->ranges_capacity, re->n_ranges + (size_t)s->n,
                           NK__REGEX_NODES_MAX, x->c->err);
    if (!rc)
        rc = add_node(x, NK__REGEX_SET, at);
    if (rc)
        return rc;
    re->nodes[*at].child = re->n_ranges;
    re->nodes[*at].n = (uint32_t)s->n;
    memcpy(re->ranges + re->n_ranges, s->r, (size_t)s->n * sizeof s->r[0]);
    re->n_ranges += (uint32_t)s->n;
    return 0;
}

/* ---- characters ---- */

static int digit_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static int parse_hex(struct parser *x, int n, uint32_t *cp)
{
    bool braces = n == 4 && *x->p == '{';

    *cp = 0;
    if (braces) {
        x->p++;
        for (n = 0; n < 6 && digit_of(x->p[n]) >= 0; n++)
            ;
    }
    for (int i = 0; i < n; i++, x->p++) {
        int digit = digit_of(*x->p);

        if (digit < 0)
            return bad_pattern(x, "hexadecimal digits are wanted after \\x and \\u");
        *cp = *cp << 4 | (uint32_t)digit;
    }
    if ((braces && (n == 0 || *x->p++ != '}')) || *cp > 0x10FFFF)
        return bad_pattern(x, "\\u{} wants the digits of a character");
    return 0;
}

/* One character, after a backslash or not; *is_set when it was \d and the like, which were added
 * to s. */
static int parse_char(struct parser *x, struct nk__chars *s, bool in_class, uint32_t *cp,
                      bool *is_set)
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

        return parse_hex(x, n, cp);
    }
    if (*x->p == 'c' && ((x->p[1] | 0x20) >= 'a' && (x->p[1] | 0x20) <= 'z')) {
        *cp = (uint32_t)x->p[1] & 0x1F;
        x->p += 2;
        return 0;
    }
    at = strchr(plain, *x->p);
    if (in_class && *x->p == 'b') {
        *cp = '\b';
    } else if (at && !(*x->p == '0' && x->p[1] >= '0' && x->p[1] <= '9')) {
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
static int parse_class(struct parser *x, uint32_t *at)
{
    struct nk__chars s = { .n = 0 };
    bool negated = *x->p == '^';
    int rc;

    x->p += negated;
    while (*x->p && *x->p != ']') {
        uint32_t low, high;
        bool is_set;

        rc = parse_char(x, &s, true, &low, &is_set);
        if (rc)
            return rc;
        if (is_set)
            continue;
        high = low;
        if (x->p[0] == '-' && x->p[1] && x->p[1] != ']') {
            x->p++;
            rc = parse_char(x, &s, true, &high, &is_set);
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
    return add_set(x, &s, at);
}

/* ---- sequences ---- */

static int parse_alternatives(struct parser *x, bool top, uint32_t *at);

/* After "(". *is_look: it was look-ahead, which is kept apart. */
static int parse_group(struct parser *x, bool at_begin, bool *is_look, uint32_t *at)
{
    struct nk__regex *re = x->re;
    bool negated = false;
    int rc;

    *is_look = false;
    if (++x->depth > NK__SCHEMA_DEPTH_MAX)
        return bad_pattern(x, "its groups are nested too deeply");
    if (*x->p == '?') {
        if (x->p[1] == ':') {
            x->p += 2;
        } else if (x->p[1] == '<' && x->p[2] != '=' && x->p[2] != '!' && strchr(x->p, '>')) {
            x->p = strchr(x->p, '>') + 1;
        } else if (at_begin && (x->p[1] == '=' || x->p[1] == '!') &&
                   re->n_looks < NK__REGEX_LOOKS_MAX) {
            *is_look = true;
            negated = x->p[1] == '!';
            x->p += 2;
        } else {
            return bad_pattern(x, "look-around is supported only as look-ahead right after the ^ "
                                  "that begins the pattern");
        }
    }
    rc = parse_alternatives(x, false, at);
    if (!rc && *x->p++ != ')')
        rc = bad_pattern(x, "a group is not closed");
    x->depth--;
    if (!rc && *is_look) {
        re->looks[re->n_looks].node = *at;
        re->looks[re->n_looks++].negated = negated;
    }
    return rc;
}

/* What repeats the node: it becomes another's only child. */
static int parse_quantifier(struct parser *x, uint32_t *at)
{
    long min = 0, max = -1;
    uint32_t repeat;
    int rc;

    if (*x->p == '*' || *x->p == '+' || *x->p == '?') {
        min = *x->p == '+';
        max = *x->p == '?' ? 1 : -1;
        x->p++;
    } else if (*x->p == '{') {
        char *end;

        min = strtol(x->p + 1, &end, 10);
        max = min;
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
    } else {
        return 0;
    }
    if (*x->p == '?') /* lazy: the same texts */
        x->p++;
    if (*x->p == '*' || *x->p == '+' || *x->p == '?' || *x->p == '{')
        return bad_pattern(x, "a repetition is repeated");
    rc = add_node(x, NK__REGEX_REPEAT, &repeat);
    if (rc)
        return rc;
    x->re->nodes[repeat].child = *at;
    x->re->nodes[repeat].min = (int32_t)min;
    x->re->nodes[repeat].max = (int32_t)max;
    *at = repeat;
    return 0;
}

static int parse_atom(struct parser *x, uint32_t *at)
{
    struct nk__chars s = { .n = 0 };
    uint32_t cp;
    bool is_set;
    int rc;

    switch (*x->p) {
    case '[':
        x->p++;
        return parse_class(x, at);
    case '.':
        x->p++;
        set_add(&s, '\n', '\n');
        set_add(&s, '\r', '\r');
        set_add(&s, 0x2028, 0x2029);
        set_negate(&s);
        return add_set(x, &s, at);
    case '*':
    case '+':
    case '?':
    case '{':
        return bad_pattern(x, "there is nothing to repeat");
    default:
        rc = parse_char(x, &s, false, &cp, &is_set);
        if (!rc && !is_set)
            set_add(&s, cp, cp);
        return rc ? rc : add_set(x, &s, at);
    }
}

/* Up to | or ). */
static int parse_sequence(struct parser *x, bool top, uint32_t *at)
{
    uint32_t last = 0, item = 0;
    bool begun = false; /* by ^, with nothing but look-ahead since */
    int rc = add_node(x, NK__REGEX_SEQUENCE, at);

    while (!rc && *x->p && *x->p != '|' && *x->p != ')') {
        bool is_look = false;

        if (*x->p == '^' || *x->p == '$') {
            /* In the middle they are for an automaton only. */
            bool at_end = *x->p == '$' ? x->p[1] == '\0' || x->p[1] == '|' : !last;

            x->re->has_inner_anchor |= !top || !at_end;
            begun = *x->p == '^' && top && !last;
            rc = add_node(x, *x->p == '^' ? NK__REGEX_BEGIN : NK__REGEX_END, &item);
            x->p++;
            if (!rc && *x->p && strchr("*+?{", *x->p))
                rc = bad_pattern(x, "there is nothing to repeat");
        } else if (*x->p == '(') {
            x->p++;
            rc = parse_group(x, begun, &is_look, &item);
            if (!rc && !is_look)
                rc = parse_quantifier(x, &item);
            begun &= is_look;
        } else {
            rc = parse_atom(x, &item);
            if (!rc)
                rc = parse_quantifier(x, &item);
            begun = false;
        }
        if (rc || is_look)
            continue;
        if (last)
            x->re->nodes[last].next = item;
        else
            x->re->nodes[*at].child = item;
        last = item;
    }
    return rc;
}

static int parse_alternatives(struct parser *x, bool top, uint32_t *at)
{
    uint32_t last = 0, item;
    int rc = add_node(x, NK__REGEX_ALTERNATIVES, at);

    for (int n = 0; !rc; n++) {
        rc = parse_sequence(x, top, &item);
        if (rc)
            break;
        if (last)
            x->re->nodes[last].next = item;
        else
            x->re->nodes[*at].child = item;
        last = item;
        if (*x->p != '|')
            break;
        if (top && x->re->n_looks)
            return bad_pattern(x, "look-around is not supported together with alternatives");
        x->p++;
    }
    if (!rc && top && x->re->n_looks && x->re->nodes[*at].child != last)
        return bad_pattern(x, "look-around is not supported together with alternatives");
    return rc;
}

int nk__regex_parse(struct nk__conversion *c, struct nk__regex *re, const char *pattern)
{
    struct parser x = { c, re, pattern, pattern + strlen(pattern), 0 };
    uint32_t none;
    int rc;

    *re = (struct nk__regex){ 0 };
    rc = add_node(&x, NK__REGEX_SEQUENCE, &none); /* 0: no node */
    if (!rc)
        rc = parse_alternatives(&x, true, &re->root);
    if (!rc && *x.p)
        rc = bad_pattern(&x, "a ) has no (");
    if (rc)
        nk__regex_release(re);
    return rc;
}

bool nk__regex_is_anchored(const struct nk__regex *re, bool both)
{
    for (uint32_t i = re->nodes[re->root].child; i; i = re->nodes[i].next) {
        uint32_t first = re->nodes[i].child, last = first;

        while (last && re->nodes[last].next)
            last = re->nodes[last].next;
        if (!first || re->nodes[first].type != NK__REGEX_BEGIN ||
            (both && re->nodes[last].type != NK__REGEX_END))
            return false;
    }
    return true;
}

void nk__regex_release(struct nk__regex *re)
{
    free(re->nodes);
    free(re->ranges);
    *re = (struct nk__regex){ 0 };
}
