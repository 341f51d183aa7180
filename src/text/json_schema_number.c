/* Ranges of numbers, written as the digits that may follow one another: 1 to 120 is [1-9], or
 * [1-9][0-9], or 1([0-1][0-9]|20). They are regular expressions first, so that an automaton can
 * count what multipleOf wants of the same digits.
 *
 * Where something depends on a number's last digit, it has so few of them that whoever reads it as
 * a double still sees the digit: 0.9999999999999999999 is below 1, and 1 for most parsers. */
#include "text/json_schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#define LIMIT 1000000000000000000 /* 10^18: 18 digits */
#define EXACT 1000000000000000    /* 10^15: all that a double can tell apart */

enum { DIGITS_EXACT = 15, PLACES_MAX = 18, STATES_MAX = 3500, MODULUS_MAX = 500 };

/* ---- bounds ---- */

/* A number in digits: whole, a point, and places without zeros at their end. */
struct decimal {
    bool negative;
    int64_t whole; /* LIMIT: that or more */
    char places[PLACES_MAX + 1];
    int n_places;
};

struct bound {
    bool given, exclusive;
    struct decimal at;
};

/* From a text like -12.5e-3. False: too many places. */
static bool read_decimal(const char *text, struct decimal *d)
{
    char digits[512] = "";
    const char *p = text + (*text == '-');
    long n = 0, point = -1, begin = 0;

    *d = (struct decimal){ .negative = *text == '-' };
    for (; (*p >= '0' && *p <= '9') || *p == '.'; p++)
        if (*p == '.')
            point = n;
        else if (n < 400)
            digits[n++] = *p;
    if (point < 0)
        point = n;
    if (*p == 'e' || *p == 'E')
        point += strtol(p + 1, NULL, 10);
    while (n && digits[n - 1] == '0')
        n--;
    while (begin < n && digits[begin] == '0')
        begin++;
    if (begin == n) {
        d->negative = false;
        return true;
    }
    if (point - begin > 18) {
        d->whole = LIMIT;
        return true;
    }
    for (long i = begin; i < point; i++)
        d->whole = d->whole * 10 + (i < n ? digits[i] - '0' : 0);
    for (long i = point < begin ? point : (point > begin ? point : begin); i < n; i++) {
        if (d->n_places == PLACES_MAX)
            return false;
        d->places[d->n_places++] = i < begin || i < 0 ? '0' : digits[i];
    }
    return true;
}

static int get_decimal(struct nk__conversion *c, const json_t *v, const char *key,
                       struct decimal *d)
{
    struct nk_buf text = NK_BUF_INIT(512);
    bool fits = false;
    int rc = json_is_integer(v)
                 ? nk_buf_addf(&text, c->err, "%lld", (long long)json_integer_value(v))
                 : nk_json_num(&text, json_number_value(v), c->err);

    if (!rc)
        fits = json_is_number(v) && isfinite(json_number_value(v)) &&
               read_decimal(nk_buf_str(&text), d);
    nk_buf_release(&text);
    if (!rc && !fits)
        rc = nk__schema_refuse(c, key, "a number of at most 18 decimal places is wanted");
    return rc;
}

static int compare(const struct decimal *a, const struct decimal *b)
{
    int less = a->whole != b->whole ? (a->whole < b->whole ? -1 : 1) : strcmp(a->places, b->places);

    if (a->negative != b->negative)
        return a->negative ? -1 : 1;
    return a->negative ? -less : less;
}

/* sign: 1 for minima, of which the largest counts, -1 for maxima. */
static void add_bound(struct bound *b, const struct decimal *at, bool exclusive, int sign)
{
    int way = b->given ? sign * compare(at, &b->at) : 1;

    if (way > 0)
        *b = (struct bound){ true, exclusive, *at };
    else if (way == 0)
        b->exclusive |= exclusive;
}

static int get_bound(struct nk__conversion *c, const json_t *schema, const char *key,
                     const char *exclusive_key, int sign, struct bound *b)
{
    const json_t *v = json_object_get(schema, key), *x = json_object_get(schema, exclusive_key);
    struct decimal at;
    int rc = 0;

    if (v) {
        rc = get_decimal(c, v, key, &at);
        if (!rc) /* draft 4: the other key says whether it is exclusive */
            add_bound(b, &at, json_is_true(x), sign);
    }
    if (!rc && x && !json_is_boolean(x)) {
        rc = get_decimal(c, x, exclusive_key, &at);
        if (!rc)
            add_bound(b, &at, true, sign);
    }
    return rc;
}

/* ---- whole numbers ---- */

/* Numbers of n digits from low to high, both with leading zeros to n digits. */
static int add_same_length(struct nk_buf *b, const char *low, const char *high, int n,
                           struct nk_error *err)
{
    char all[20], none[20];
    bool first = true;
    int rc = 0;

    if (n == 0)
        return 0;
    memset(all, '9', sizeof all);
    memset(none, '0', sizeof none);
    if (!memcmp(low + 1, none, (size_t)n - 1) && !memcmp(high + 1, all, (size_t)n - 1))
        return n > 1 ? nk_buf_addf(b, err, "[%c-%c][0-9]{%d}", *low, *high, n - 1)
                     : nk_buf_addf(b, err, "[%c-%c]", *low, *high);
    if (*low == *high) {
        rc = nk_buf_addf(b, err, "%c", *low);
        return rc ? rc : add_same_length(b, low + 1, high + 1, n - 1, err);
    }
    rc = nk_buf_adds(b, "(", err);
    /* low's first digit, the rest from low's on */
    if (!rc && memcmp(low + 1, none, (size_t)n - 1) != 0) {
        rc = nk_buf_addf(b, err, "%c", *low);
        if (!rc)
            rc = add_same_length(b, low + 1, all, n - 1, err);
        first = false;
    }
    if (!rc) {
        char from = (char)(*low + !first),
             to = (char)(*high - (memcmp(high + 1, all, (size_t)n - 1) != 0));

        if (from <= to) {
            rc = nk_buf_addf(b, err, n > 1 ? "%s[%c-%c][0-9]{%d}" : "%s[%c-%c]", first ? "" : "|",
                             from, to, n - 1);
            first = false;
        }
        if (!rc && to != *high) { /* high's first digit, the rest up to high's */
            rc = nk_buf_addf(b, err, "%s%c", first ? "" : "|", *high);
            if (!rc)
                rc = add_same_length(b, none, high + 1, n - 1, err);
        }
    }
    return rc ? rc : nk_buf_adds(b, ")", err);
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
            rc = nk_buf_adds(b, "|", err);
        if (!rc)
            rc = add_same_length(b, a, z, digits, err);
        first = false;
    }
    return rc ? rc : nk_buf_adds(b, ")", err);
}

/* The next whole number inwards, for sign 1 from a minimum upwards. A double at 10^18 stands for
 * all within 64 of it. */
static int64_t inwards(const struct bound *b, int sign)
{
    int64_t value = b->at.negative ? -b->at.whole : b->at.whole;

    if (b->at.n_places)
        return value + (sign > 0 ? !b->at.negative : -(int64_t)b->at.negative);
    return b->exclusive ? value + sign * (b->at.whole < EXACT ? 1 : 256) : value;
}

static int add_integer(struct nk__conversion *c, struct nk_buf *b, const struct bound *min,
                       const struct bound *max, int64_t limit)
{
    int64_t low = min->given ? inwards(min, 1) : -(limit - 1);
    int64_t high = max->given ? inwards(max, -1) : limit - 1;
    int rc = 0;

    if (!min->given && !max->given) /* fewer states than each sign with its own digits */
        return nk_buf_adds(b, "(?:0|-?[1-9][0-9]{0,17})", c->err);
    if (low <= -limit)
        low = -(limit - 1);
    if (high >= limit)
        high = limit - 1;
    if (low > high)
        return nk__schema_nothing(c, "minimum",
                                  "larger than the maximum, or of more than 18 "
                                  "digits: nothing is valid");
    if (low < 0) {
        rc = nk_buf_adds(b, "-", c->err);
        if (!rc)
            rc = add_naturals(b, high < 0 ? -high : 1, -low, c->err);
        if (!rc && high >= 0)
            rc = nk_buf_adds(b, "|", c->err);
    }
    if (!rc && high >= 0)
        rc = add_naturals(b, low > 0 ? low : 0, high, c->err);
    return rc;
}

/* ---- fractions ---- */

/* Numbers of one sign, by their absolute value; high's not given: no end. */
struct span {
    struct bound low, high;
    int n_places; /* at most */
};

/* The places from the i-th on of a number whose digits so far are those of the low bound (at_low),
 * the high one (at_high). some: at least one place is wanted. *none: there are no such places, and
 * nothing was added. */
static int add_places(const struct span *s, struct nk_buf *b, int i, bool at_low, bool at_high,
                      bool *none, struct nk_error *err)
{
    const struct decimal *low = &s->low.at, *high = &s->high.at;
    int some = i == 0, rest = s->n_places > i ? s->n_places - i : 0, rc = 0;
    bool first = true;

    *none = false;
    at_low &= i < low->n_places || s->low.exclusive;
    if (!at_low && !at_high)
        return nk_buf_addf(b, err, "[0-9]{%d,%d}", some, rest);
    if (at_high && i >= high->n_places) { /* nothing but zeros may follow */
        *none = at_low || s->high.exclusive;
        return *none ? 0 : nk_buf_addf(b, err, "0{%d,%d}", some, rest);
    }
    *none = rest == 0;
    if (*none)
        return 0;
    if (at_low && !at_high && i >= low->n_places)
        return nk_buf_addf(b, err, "0{0,%d}[1-9][0-9]{0,%d}", (rest - 1) / 2, rest / 2);
    rc = nk_buf_adds(b, "(?:", err);
    if (!rc && !at_low && !some) { /* below the high bound's digits: it may end */
        rc = nk_buf_adds(b, "|", err);
    }
    for (int part = 0; !rc && part < 3; part++) {
        char from = at_low ? (i < low->n_places ? low->places[i] : '0') : '0' - 1,
             to = at_high ? high->places[i] : '9' + 1;
        size_t before = b->size;
        bool nothing = false;

        if (!first)
            rc = nk_buf_adds(b, "|", err);
        if (part == 1 && from + 1 <= to - 1) {
            rc = rc ? rc : nk_buf_addf(b, err, "[%c-%c][0-9]{0,%d}", from + 1, to - 1, rest - 1);
        } else if (part == 0 && at_low) {
            rc = rc ? rc : nk_buf_addf(b, err, "%c", from);
            if (!rc)
                rc = add_places(s, b, i + 1, true, at_high && from == to, &nothing, err);
        } else if (part == 2 && at_high && !(at_low && from == to)) {
            rc = rc ? rc : nk_buf_addf(b, err, "%c", to);
            if (!rc)
                rc = add_places(s, b, i + 1, false, true, &nothing, err);
        } else {
            nothing = true;
        }
        if (nothing && !rc)
            b->data[b->size = before] = '\0';
        else
            first = false;
    }
    *none = first;
    return rc ? rc : nk_buf_adds(b, ")", err);
}

/* One whole number, and which places may follow it. */
static int add_edge(const struct span *s, struct nk_buf *b, bool at_low, bool at_high, bool *first,
                    struct nk_error *err)
{
    int64_t whole = at_low ? s->low.at.whole : s->high.at.whole;
    bool bare = (!at_low || (!s->low.at.n_places && !s->low.exclusive)) &&
                (!at_high || s->high.at.n_places || !s->high.exclusive);
    struct nk_buf places = NK_BUF_INIT(1 << 16);
    bool none;
    int rc = add_places(s, &places, 0, at_low, at_high, &none, err);

    if (!rc && (bare || !none)) {
        rc = nk_buf_addf(b, err, "%s%lld", *first ? "" : "|", (long long)whole);
        if (!rc && !none)
            rc = nk_buf_addf(b, err, "(?:\\.%s)%s", nk_buf_str(&places), bare ? "?" : "");
        *first = false;
    }
    nk_buf_release(&places);
    return rc;
}

/* *none: there are no such numbers. */
static int add_span(const struct span *s, struct nk_buf *b, bool *none, struct nk_error *err)
{
    int64_t low = s->low.at.whole, high = s->high.given ? s->high.at.whole : LIMIT;
    bool first = true;
    int rc = nk_buf_adds(b, "(?:", err);

    if (!rc)
        rc = add_edge(s, b, true, low == high, &first, err);
    if (!rc && low + 1 <= high - 1) {
        rc = nk_buf_adds(b, first ? "" : "|", err);
        if (!rc)
            rc = add_naturals(b, low + 1, high - 1, err);
        if (!rc)
            rc = nk_buf_addf(b, err, "(?:\\.[0-9]{1,%d})?", s->n_places);
        first = false;
    }
    if (!rc && low < high && high < LIMIT)
        rc = add_edge(s, b, false, true, &first, err);
    *none = first;
    return rc ? rc : nk_buf_adds(b, ")", err);
}

static int n_digits(int64_t n)
{
    return snprintf(NULL, 0, "%lld", (long long)n);
}

/* Whether there were more. */
static bool cut_places(struct decimal *d, int n_places)
{
    bool more = d->n_places > n_places;

    if (more)
        d->n_places = n_places;
    while (more && d->n_places && d->places[d->n_places - 1] == '0')
        d->n_places--;
    d->places[d->n_places] = '\0';
    return more;
}

static int add_fractional(struct nk__conversion *c, struct nk_buf *b, const struct bound *min,
                          const struct bound *max, int places_max)
{
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    bool none = true, first = true;
    int rc = 0;

    for (int negative = 1; !rc && negative >= 0; negative--) {
        const struct bound *near = negative ? max : min, *far = negative ? min : max;
        /* Minus zero is no number that anybody wants. */
        struct span s = { .low = { .given = true, .exclusive = negative } };
        int n;

        if (near->given && near->at.negative == negative)
            s.low = *near;
        if (far->given && far->at.negative != negative)
            continue; /* on the other side of zero: it leaves nothing on this one */
        s.high = *far;
        if (s.high.given && s.high.at.whole >= LIMIT)
            s.high.given = false;
        if (s.low.at.whole >= LIMIT)
            continue;
        if (s.high.given &&
            (s.high.at.whole < s.low.at.whole ||
             (s.high.at.whole == s.low.at.whole && strcmp(s.high.at.places, s.low.at.places) < 0)))
            continue;
        n = n_digits(s.high.given ? s.high.at.whole : s.low.at.whole);
        s.n_places = n < DIGITS_EXACT ? DIGITS_EXACT - n : 1;
        if (s.n_places > places_max)
            s.n_places = places_max;
        if ((s.low.exclusive || s.high.exclusive) && n >= DIGITS_EXACT)
            rc = nk__schema_refuse(c, negative ? "minimum" : "maximum",
                                   "at most 14 digits are supported where a fraction may follow");
        /* With so few places what is above 1.2 is above 1.2000001, and what is above that is not
         * below 1.2. */
        s.low.exclusive |= cut_places(&s.low.at, s.n_places);
        s.high.exclusive &= !cut_places(&s.high.at, s.n_places);
        nk_buf_reset(&text);
        if (!rc)
            rc = add_span(&s, &text, &none, c->err);
        if (!rc && !none)
            rc = nk_buf_addf(b, c->err, "%s%s%s", first ? "" : "|", negative ? "-" : "",
                             nk_buf_str(&text));
        first &= none;
    }
    nk_buf_release(&text);
    return rc || !first
               ? rc
               : nk__schema_nothing(c, "minimum", "not below the maximum: nothing is valid");
}

/* ---- multiples ---- */

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

/* What the number is to be a multiple of, in units of the last place: 0.25 is 25 of 2 places. */
struct multiple {
    int64_t units; /* 0: of nothing */
    int n_places;
};

static int get_multiple(struct nk__conversion *c, const json_t *schema, struct multiple *m)
{
    const json_t *v = json_object_get(schema, "multipleOf");
    struct decimal d;
    int64_t units;
    int rc = v ? get_decimal(c, v, "multipleOf", &d) : 0;

    if (!v || rc)
        return rc;
    if (json_number_value(v) <= 0)
        return nk__schema_refuse(c, "multipleOf", "a number above 0 is wanted");
    units = d.whole;
    for (int i = 0; units < EXACT && i < d.n_places; i++)
        units = units * 10 + (d.places[i] - '0');
    if (units >= EXACT)
        return nk__schema_refuse(c, "multipleOf", "at most 15 digits are supported");
    if (m->units) { /* of both: of their least common multiple */
        while (m->n_places < d.n_places && m->units < EXACT)
            m->units *= 10, m->n_places++;
        for (; d.n_places < m->n_places && units < EXACT; d.n_places++)
            units *= 10;
        units = units / common_divisor(units, m->units);
        if (units >= EXACT / m->units)
            return nk__schema_refuse(c, "multipleOf", "at most 15 digits are supported");
        units *= m->units;
    }
    *m = (struct multiple){ units, m->units ? m->n_places : d.n_places };
    while (m->n_places && m->units % 10 == 0)
        m->units /= 10, m->n_places--;
    return 0;
}

/* Narrows lang to multiples: those have few enough digits to be seen in a double. */
static int add_multiples(struct nk__conversion *c, struct nk__language *lang,
                         const struct multiple *m)
{
    int64_t units = m->units;
    int n_zeros = 0, n_digits = DIGITS_EXACT, rc;
    char shape[96];

    /* A state for each remainder after each digit: not more of them than an automaton may have. */
    while (!m->n_places && units % 10 == 0)
        units /= 10, n_zeros++;
    if (common_divisor(units, 10) != 1) { /* 50: that 5 divides 10 and 20 says nothing */
        units = m->units;
        n_zeros = 0;
    }
    if (units <= MODULUS_MAX && n_digits > STATES_MAX / units)
        n_digits = (int)(STATES_MAX / units);
    if (m->n_places) {
        snprintf(shape, sizeof shape, "^-?[0-9]{1,%d}(\\.[0-9]{1,%d})?$",
                 n_digits > m->n_places ? n_digits - m->n_places : 1, m->n_places);
        rc = m->n_places < DIGITS_EXACT
                 ? nk__language_add(c, lang, shape, false)
                 : nk__schema_refuse(c, "multipleOf", "at most 14 decimal places are supported");
    } else {
        snprintf(shape, sizeof shape, "^(0|-?[1-9][0-9]{0,%d}0{%d})$",
                 n_digits > n_zeros ? n_digits - 1 - n_zeros : 0, n_zeros);
        rc = n_zeros < DIGITS_EXACT
                 ? nk__language_add(c, lang, shape, false)
                 : nk__schema_refuse(c, "multipleOf", "at most 15 digits are supported");
    }
    if (!rc && units > MODULUS_MAX)
        rc = nk__schema_refuse(c, "multipleOf",
                               "at most 500, zeros at its end not counted, is supported");
    if (units > 1) {
        lang->modulus = units;
        lang->n_places = m->n_places;
    }
    return rc;
}

/* ---- all of them ---- */

/* A number that it must not be, in all the ways in which it can be written here. */
static int add_other(struct nk__conversion *c, struct nk__language *lang, const json_t *v)
{
    struct decimal d;
    char text[96];
    int rc = json_is_number(v) ? get_decimal(c, v, "not", &d) : 0;

    if (rc || !json_is_number(v) || d.whole >= LIMIT)
        return rc;
    snprintf(text, sizeof text, "^-?%lld(?:\\.%s0*)?$", (long long)d.whole, d.places);
    if (d.n_places)
        snprintf(text, sizeof text, "^%s%lld\\.%s0*$", d.negative ? "-" : "", (long long)d.whole,
                 d.places);
    else if (d.whole)
        snprintf(text, sizeof text, "^%s%lld(?:\\.0*)?$", d.negative ? "-" : "",
                 (long long)d.whole);
    return nk__language_add(c, lang, text, true);
}

static int add_others(struct nk__conversion *c, struct nk__language *lang, const json_t *negated)
{
    const json_t *v = json_object_get(negated, "const"), *values = json_object_get(negated, "enum");
    int rc = v ? add_other(c, lang, v) : 0;

    for (size_t i = 0; !rc && i < json_array_size(values); i++)
        rc = add_other(c, lang, json_array_get(values, i));
    return rc;
}

int nk__schema_add_number(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                          bool whole)
{
    struct bound min = { 0 }, max = { 0 };
    struct multiple multiple = { 0, 0 };
    struct nk__language lang = NK__LANGUAGE_INIT;
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    int rc = 0;

    for (size_t i = 0; !rc && i < set->n; i++) {
        const json_t *schema = set->parts[i].schema, *format = json_object_get(schema, "format");

        rc = get_bound(c, schema, "minimum", "exclusiveMinimum", 1, &min);
        if (!rc)
            rc = get_bound(c, schema, "maximum", "exclusiveMaximum", -1, &max);
        if (!rc)
            rc = get_multiple(c, schema, &multiple);
        if (!rc && nk__logic_is_plain_not(json_object_get(schema, "not")))
            rc = add_others(c, &lang, json_object_get(schema, "not"));
        if (json_is_string(format) && !strcmp(json_string_value(format), "int32")) {
            add_bound(&min, &(struct decimal){ .negative = true, .whole = 2147483648 }, false, 1);
            add_bound(&max, &(struct decimal){ .whole = 2147483647 }, false, -1);
        }
    }
    if (!rc && !min.given && !max.given && !multiple.units && !lang.n) {
        rc = nk_buf_addf(b, c->err, "%s ", whole ? "integer" : "number");
        goto out;
    }
    /* A whole number's multiples are whole. */
    whole |= multiple.units && !multiple.n_places;
    if (whole)
        while (multiple.n_places) { /* 2.5: the whole ones are those of 5 */
            multiple.units /= common_divisor(multiple.units, 10);
            multiple.n_places--;
        }
    rc = rc ? rc : nk_buf_adds(&text, "^(?:", c->err);
    if (!rc)
        rc = whole ? add_integer(c, &text, &min, &max, multiple.units ? EXACT : LIMIT)
                   : add_fractional(c, &text, &min, &max,
                                    multiple.units ? multiple.n_places : PLACES_MAX);
    if (!rc)
        rc = nk_buf_adds(&text, ")$", c->err);
    if (!rc)
        rc = nk__language_add(c, &lang, nk_buf_str(&text), false);
    if (!rc && multiple.units)
        rc = add_multiples(c, &lang, &multiple);
    if (!rc)
        rc = lang.n > 1 ? nk__schema_add_language(c, b, &lang)
                        : nk__schema_add_pattern(c, b, lang.parts[0].regex);
out:
    nk__language_release(&lang);
    nk_buf_release(&text);
    return rc;
}
