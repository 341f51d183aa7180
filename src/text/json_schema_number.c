/* Ranges of whole numbers, written as the digits that may follow one another: 1 to 120 is [1-9], or
 * [1-9] [0-9], or "1" ([0-1] [0-9] | "2" "0"). Bounds are whole numbers, also where a fraction may
 * follow. */
#include "text/json_schema_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LIMIT 1000000000000000000 /* 10^18: 18 digits */

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
        return n > 1 ? nk_buf_addf(b, err, "[%c-%c] [0-9]{%d} ", *low, *high, n - 1)
                     : nk_buf_addf(b, err, "[%c-%c] ", *low, *high);
    if (*low == *high) {
        rc = nk_buf_addf(b, err, "\"%c\" ", *low);
        return rc ? rc : add_same_length(b, low + 1, high + 1, n - 1, err);
    }
    rc = nk_buf_adds(b, "(", err);
    /* low's first digit, the rest from low's on */
    if (!rc && memcmp(low + 1, none, (size_t)n - 1) != 0) {
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

static int get_bound(struct nk__conversion *c, const json_t *schema, const char *key,
                     const char *exclusive_key, struct bound *b)
{
    const json_t *v = json_object_get(schema, key), *x = json_object_get(schema, exclusive_key);

    *b = (struct bound){ .given = v || x, .exclusive = x != NULL };
    if (v && x)
        return nk__schema_refuse(c, exclusive_key, "not together with its inclusive form");
    if (x) {
        v = x;
        key = exclusive_key;
    }
    if (!v)
        return 0;
    if (!json_is_number(v) || json_number_value(v) != floor(json_number_value(v)) ||
        fabs(json_number_value(v)) >= (double)LIMIT)
        return nk__schema_refuse(c, key, "a whole number of at most 18 digits is wanted");
    b->value = json_is_integer(v) ? json_integer_value(v) : (int64_t)json_real_value(v);
    return 0;
}

static int add_integer(struct nk__conversion *c, struct nk_buf *b, const struct bound *min,
                       const struct bound *max)
{
    int64_t low = min->given ? min->value + min->exclusive : -(LIMIT - 1);
    int64_t high = max->given ? max->value - max->exclusive : LIMIT - 1;
    int rc = 0;

    if (low > high)
        return nk__schema_refuse(c, "minimum", "larger than the maximum: nothing is valid");
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

/* Numbers of one sign, by their absolute value: from low on (but not low itself when low_out),
 * below or at high. A fraction can follow every whole number but the last. */
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

static int add_fractional(struct nk__conversion *c, struct nk_buf *b, const struct bound *min,
                          const struct bound *max)
{
    int64_t low = min->given ? min->value : -(LIMIT - 1),
            high = max->given ? max->value : LIMIT - 1;
    int rc = 0;

    if (low > high || (low == high && (min->exclusive || max->exclusive)))
        return nk__schema_refuse(c, "minimum", "not below the maximum: nothing is valid");
    if (low < 0) {
        rc = nk_buf_adds(b, "\"-\" (", c->err);
        /* -0 is no number anybody wants: from zero on, zero itself is left to the other sign. */
        if (!rc)
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

int nk__schema_add_number(struct nk__conversion *c, struct nk_buf *b, const json_t *schema,
                          const char *type)
{
    struct bound min, max;
    int rc = get_bound(c, schema, "minimum", "exclusiveMinimum", &min);

    if (!rc)
        rc = get_bound(c, schema, "maximum", "exclusiveMaximum", &max);
    if (rc)
        return rc;
    if (!min.given && !max.given)
        return nk_buf_addf(b, c->err, "%s ", type);
    return *type == 'i' ? add_integer(c, b, &min, &max) : add_fractional(c, b, &min, &max);
}
