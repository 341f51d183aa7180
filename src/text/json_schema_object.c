#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* ---- names ---- */

/* Names other than the given ones, without escapes: a walk down the tree of their characters. names
 * are sorted; those from begin to end share their first at bytes. Adds what may follow those, up to
 * and with the closing quote. */
static int add_other_names(struct nk__conversion *c, struct nk_buf *b, const char *const *names,
                           size_t begin, size_t end, size_t at)
{
    /* The first of a sorted range is the shortest. */
    bool is_name = begin < end && !names[begin][at];
    size_t i = begin + is_name;
    struct nk_error *err = c->err;
    int rc = nk__schema_spend(c, 8 + 2 * (end - begin));

    if (!rc)
        rc = nk_buf_adds(b, "(", err);

    if (!rc && !is_name && at > 0) /* the empty name is nobody's friend */
        rc = nk_buf_adds(b, "\"\\\"\" | ", err);
    while (!rc && i < end) {
        uint32_t cp;
        int n = nk_utf8_next(names[i] + at, strlen(names[i] + at), &cp);
        size_t next = i;

        NK_ASSERT(n > 0); /* jansson's strings are UTF-8 */
        while (next < end && !strncmp(names[next] + at, names[i] + at, (size_t)n))
            next++;
        /* Others would be escapes, which these names do not have. */
        if (cp >= 0x20 && cp != '"' && cp != '\\') {
            rc = nk__schema_add_literal(b, names[i] + at, (size_t)n, err);
            if (!rc)
                rc = add_other_names(c, b, names, i, next, at + (size_t)n);
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

static int add_other_name(struct nk__conversion *c, struct nk_buf *b, const json_t *properties)
{
    size_t n = json_object_size(properties), i = 0;
    const char **names = calloc(n + 1, sizeof *names), *key;
    json_t *value;
    int rc;

    if (!names)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    json_object_foreach((json_t *)(uintptr_t)properties, key, value)
    {
        names[i++] = key;
    }
    qsort(names, n, sizeof *names, by_text);
    rc = nk_buf_adds(b, "\"\\\"\" ", c->err);
    if (!rc)
        rc = add_other_names(c, b, names, 0, n, 0);
    free(names);
    return rc;
}

/* ---- rows ---- */

static int row_rule(struct nk__conversion *c, struct nk__schema_rule *rule, struct nk_buf *body)
{
    int rc = nk__schema_new_rule(c, rule);

    if (!rc)
        rc = nk__schema_add_rule(c, rule, body);
    nk_buf_reset(body);
    return rc;
}

int nk__row_begin(struct nk__conversion *c, struct nk__row *row, size_t n,
                  const struct nk__schema_rule *other)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    int64_t others_max = -1;
    int rc;

    /* Where there is room for all, it need not be counted which of them came. */
    if (row->max >= (int64_t)n) {
        others_max = row->max - (int64_t)n;
        row->max = -1;
    }
    if (others_max == 0)
        other = NULL;
    row->n_counted = 1;
    if (row->min > 1)
        row->n_counted = (size_t)row->min;
    if (row->max > (int64_t)row->n_counted)
        row->n_counted = (size_t)row->max;
    rc = nk__schema_spend(c, row->n_counted);
    row->rules = rc ? NULL : calloc(row->n_counted + 1, sizeof *row->rules);
    if (!rc && !row->rules)
        rc = nk__schema_no_memory(c);
    for (size_t k = 0; !rc && k <= row->n_counted; k++) {
        int64_t min = row->min > (int64_t)k ? row->min - (int64_t)k : 0;
        int64_t max = row->max < 0 ? others_max : row->max - (int64_t)k;

        /* Two others may have the same name, and then they are one. */
        if (min > (other ? 1 : 0) || (max >= 0 && min > max))
            continue;
        if (other && max != 0 && k == 0) {
            rc = nk_buf_addf(&body, c->err, "(%s (\",\" ws %s)", other->text, other->text);
            if (!rc)
                rc = nk__schema_add_counts(&body, 0, max < 0 ? -1 : max - 1, c->err);
            if (!rc)
                rc = nk_buf_adds(&body, min ? ") " : ")? ", c->err);
        } else if (other && max != 0) {
            rc = nk_buf_addf(&body, c->err, "(\",\" ws %s)", other->text);
            if (!rc)
                rc = nk__schema_add_counts(&body, min, max, c->err);
        }
        if (!rc)
            rc = row_rule(c, &row->rules[k], &body);
    }
    nk_buf_release(&body);
    return rc;
}

int nk__row_add(struct nk__conversion *c, struct nk__row *row, const struct nk__schema_rule *thing,
                bool required)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    int rc = nk__schema_spend(c, 2 * row->n_counted);

    /* From 0 on: what follows k things is what followed k + 1 of those after this one. */
    for (size_t k = 0; !rc && k <= row->n_counted; k++) {
        struct nk__schema_rule *now = &row->rules[k],
                               *then = &row->rules[k < row->n_counted ? k + 1 : k];
        bool with = then->text[0] && (row->max < 0 || (int64_t)k < row->max);
        bool without = now->text[0] && !required;

        if (!with && without)
            continue;
        if (!with)
            now->text[0] = '\0';
        else if (without && now == then)
            rc = nk_buf_addf(&body, c->err, "(\",\" ws %s)? %s ", thing->text, then->text);
        else {
            rc = nk_buf_addf(&body, c->err, "%s%s %s ", k ? "\",\" ws " : "", thing->text,
                             then->text);
            if (!rc && without)
                rc = nk_buf_addf(&body, c->err, "| %s ", now->text);
        }
        if (!rc && with)
            rc = row_rule(c, now, &body);
    }
    nk_buf_release(&body);
    return rc;
}

int nk__row_end(struct nk__conversion *c, struct nk_buf *b, const struct nk__row *row,
                const char *open, const char *close)
{
    if (!row->rules[0].text[0])
        return nk__schema_nothing(c, *open == '{' ? "minProperties" : "minItems",
                                  "more than there can be, or supported: nothing is valid");
    return nk_buf_addf(b, c->err, "\"%s\" ws %s ws \"%s\" ", open, row->rules[0].text, close);
}

void nk__row_release(struct nk__row *row)
{
    free(row->rules);
    *row = (struct nk__row){ 0 };
}

/* ---- members ---- */

/* patternProperties' key that is a pattern of some part. */
struct name_pattern {
    const char *text;
    struct nk__language lang;
};

/* What the schemas of an object say of it together. */
struct object {
    struct nk__conversion *c;
    const struct nk__set *set;
    nk__schema_convert *convert;
    json_t *names;  /* that are listed: true where it is required */
    json_t *absent; /* names that must not be there */
    struct nk__set name_rules;
    bool has_name_rules; /* of propertyNames */
    struct name_pattern patterns[NK__LANGUAGE_PARTS_MAX / 2];
    size_t n_patterns;
    bool listed, open, closed; /* some part: has properties, takes others by word, forbids them */
    bool shut;                 /* there are none but those listed, whatever patterns say */
    int64_t min, max;
};

static int add_name(struct object *o, const char *name, bool required)
{
    if (!required && json_object_get(o->names, name))
        return nk__schema_spend(o->c, 2);
    if (json_object_set_new(o->names, name, json_boolean(required)))
        return nk__schema_no_memory(o->c);
    return nk__schema_spend(o->c, 4);
}

static int add_pattern(struct object *o, const char *text)
{
    int rc = nk__schema_spend(o->c, 1 + o->n_patterns);

    for (size_t i = 0; i < o->n_patterns; i++)
        if (!strcmp(o->patterns[i].text, text))
            return rc;
    if (!rc && o->n_patterns == sizeof o->patterns / sizeof o->patterns[0])
        return nk__schema_refuse(o->c, "patternProperties", "more than 16 are not supported");
    if (rc)
        return rc;
    o->patterns[o->n_patterns] = (struct name_pattern){ text, NK__LANGUAGE_INIT };
    return nk__language_add(o->c, &o->patterns[o->n_patterns++].lang, text, false);
}

static int read_part(struct object *o, const struct nk__part *part)
{
    struct nk__conversion *c = o->c;
    const json_t *s = part->schema, *properties = json_object_get(s, "properties"),
                 *more = json_object_get(s, "additionalProperties"), *required,
                 *negated = json_object_get(s, "not");
    const char *key;
    json_t *value;
    int rc = nk__schema_get_list(c, s, "required", false, &required);

    if (!rc)
        rc = nk__schema_get_range(c, s, "minProperties", "maxProperties", &o->min, &o->max);
    json_object_foreach((json_t *)(uintptr_t)properties, key, value)
    {
        rc = rc ? rc : add_name(o, key, false);
    }
    o->listed |= json_object_size(properties) > 0;
    json_object_foreach(json_object_get(s, "patternProperties"), key, value)
    {
        rc = rc ? rc : add_pattern(o, key);
    }
    for (size_t i = 0; !rc && i < json_array_size(required); i++) {
        key = json_string_value(json_array_get(required, i));
        rc = key ? add_name(o, key, true)
                 : nk__schema_refuse(c, "required", "a list of names is wanted");
    }
    if (!rc && json_object_get(s, "propertyNames")) {
        size_t path = nk__schema_enter(c, "propertyNames", NULL);

        rc = nk__set_add(c, &o->name_rules, json_object_get(s, "propertyNames"), -1);
        nk__schema_leave(c, path);
        o->has_name_rules = true;
        if (rc == NK__SCHEMA_NOTHING) {
            o->shut = true;
            rc = 0;
        }
    }
    o->closed |= json_is_false(more) || json_is_false(json_object_get(s, "unevaluatedProperties"));
    o->open |= more && !json_is_false(more);
    if (!rc && negated && nk__logic_is_plain_not(negated)) {
        key = json_string_value(json_array_get(json_object_get(negated, "required"), 0));
        if (key && json_object_set_new(o->absent, key, json_true()))
            rc = nk__schema_no_memory(c);
    }
    return rc;
}

/* Names that propertyNames lists become members that may be there. */
static int read_listed_names(struct object *o)
{
    bool listed = false;
    int rc = 0;

    for (size_t i = 0; !rc && i < o->name_rules.n; i++) {
        const json_t *s = o->name_rules.parts[i].schema, *one = json_object_get(s, "const"),
                     *values = json_object_get(s, "enum");

        if (json_object_get(s, "anyOf"))
            return nk__schema_refuse(o->c, "propertyNames", "anyOf is not supported in it");
        if (listed || (!one && !values))
            continue;
        listed = true;
        if (json_is_string(one))
            rc = add_name(o, json_string_value(one), false);
        for (size_t k = 0; !one && !rc && k < json_array_size(values); k++)
            if (json_is_string(json_array_get(values, k)))
                rc = add_name(o, json_string_value(json_array_get(values, k)), false);
    }
    o->shut |= listed;
    return rc;
}

/* Whether the part, or one that it names, speaks of the member; for unevaluatedProperties. */
static int is_evaluated(struct object *o, size_t owner, const char *name, const bool *matched,
                        bool *yes)
{
    *yes = false;
    for (size_t i = owner; i < o->set->n; i++) {
        const json_t *s = o->set->parts[i].schema;
        int up = (int)i;

        while (up > (int)owner)
            up = o->set->parts[up].parent;
        if (up != (int)owner)
            continue;
        if (json_object_get(s, "not") && !nk__logic_is_plain_not(json_object_get(s, "not")))
            return nk__schema_refuse(o->c, "unevaluatedProperties", "not together with not");
        *yes |= (name && json_object_get(json_object_get(s, "properties"), name)) ||
                json_object_get(s, "additionalProperties");
        for (size_t k = 0; k < o->n_patterns; k++)
            *yes |= matched[k] &&
                    json_object_get(json_object_get(s, "patternProperties"), o->patterns[k].text);
    }
    return nk__schema_spend(o->c, 1 + o->set->n);
}

/* What holds of a member whose name matches these patterns, which are all that it matches. name:
 * NULL for one that is not listed. */
static int get_member(struct object *o, const char *name, const bool *matched, struct nk__set *sub)
{
    int rc = 0;

    for (size_t i = 0; !rc && i < o->set->n; i++) {
        const json_t *s = o->set->parts[i].schema,
                     *own = name ? json_object_get(json_object_get(s, "properties"), name) : NULL,
                     *more = json_object_get(s, "additionalProperties");
        bool known = own != NULL;

        if (own)
            rc = nk__set_add(o->c, sub, own, -1);
        for (size_t k = 0; !rc && k < o->n_patterns; k++) {
            const json_t *by = matched[k] ? json_object_get(json_object_get(s, "patternProperties"),
                                                            o->patterns[k].text)
                                          : NULL;

            known |= by != NULL;
            if (by)
                rc = nk__set_add(o->c, sub, by, -1);
        }
        if (!rc && !known && more)
            rc = nk__set_add(o->c, sub, more, -1);
        if (!rc && json_is_false(json_object_get(s, "unevaluatedProperties"))) {
            rc = is_evaluated(o, i, name, matched, &known);
            if (!rc && !known)
                rc = nk__schema_nothing(o->c, "unevaluatedProperties", "it is none of them");
        }
    }
    return rc ? rc : nk__schema_spend(o->c, 1 + o->set->n);
}

/* The rule of a listed member's value. */
static int convert_member(struct object *o, const char *name, struct nk__schema_rule *value)
{
    struct nk__conversion *c = o->c;
    bool matched[sizeof o->patterns / sizeof o->patterns[0]] = { false }, fits = true;
    struct nk__set sub = { 0 };
    size_t path = nk__schema_enter(c, "properties", name);
    int rc = 0;

    if (json_object_get(o->absent, name))
        rc = nk__schema_nothing(c, "not", "it must not be there");
    if (!rc && o->has_name_rules) {
        json_t *text = json_string(name);

        rc = text ? nk__value_keeps_set(c, &o->name_rules, text, &fits) : nk__schema_no_memory(c);
        json_decref(text);
        if (!rc && !fits)
            rc = nk__schema_nothing(c, "propertyNames", "such a name is not valid");
    }
    for (size_t k = 0; !rc && k < o->n_patterns; k++)
        rc = nk__language_takes(c, &o->patterns[k].lang, name, strlen(name), &matched[k]);
    if (!rc)
        rc = get_member(o, name, matched, &sub);
    if (!rc)
        rc = o->convert(c, &sub, value);
    nk__schema_leave(c, path);
    nk__set_release(&sub);
    return rc;
}

/* ---- others ---- */

/* A name's characters nest that deep, and groups of a grammar have a limit. */
enum { NAME_NESTED_MAX = 80 };

/* Adds an alternative: members whose name is not listed and matches this pattern and no other one;
 * pattern: n_patterns for none. */
static int add_others_of(struct object *o, struct nk_buf *b, size_t pattern)
{
    struct nk__conversion *c = o->c;
    bool matched[sizeof o->patterns / sizeof o->patterns[0] + 1] = { false };
    struct nk__language lang = NK__LANGUAGE_INIT;
    struct nk_buf one = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__schema_rule value;
    struct nk__set sub = { 0 };
    size_t path = pattern < o->n_patterns
                      ? nk__schema_enter(c, "patternProperties", o->patterns[pattern].text)
                      : nk__schema_enter(c, "additionalProperties", NULL);
    const char *name;
    json_t *value_of, *names = json_array();
    bool long_name = false;
    int types, rc = names ? 0 : nk__schema_no_memory(c);

    matched[pattern] = true;
    if (!rc)
        rc = get_member(o, NULL, matched, &sub);
    if (!rc)
        rc = o->convert(c, &sub, &value);
    if (!rc)
        rc = nk__set_types(c, &o->name_rules, &types);
    if (!rc && !(types & NK__SCHEMA_STRING))
        rc = NK__SCHEMA_NOTHING;
    if (!rc)
        rc = nk__schema_get_language(c, &o->name_rules, &lang);
    for (size_t k = 0; !rc && k < o->n_patterns; k++)
        rc = nk__language_add(c, &lang, o->patterns[k].text, k != pattern);
    json_object_foreach(o->names, name, value_of)
    {
        if (!rc && json_array_append_new(names, json_string(name)))
            rc = nk__schema_no_memory(c);
        long_name |= strlen(name) > NAME_NESTED_MAX;
    }
    if (rc)
        goto out;
    if (!long_name && !lang.n && lang.min == 0 && lang.max < 0) {
        rc = add_other_name(c, &one, o->names);
    } else {
        if (!lang.min) /* the empty name is nobody's friend */
            lang.min = 1;
        rc = nk__language_exclude(c, &lang, names);
        if (!rc)
            rc = nk__schema_add_text(c, &one, &lang);
    }
    if (!rc)
        rc = nk_buf_addf(&one, c->err, "\":\" ws %s ", value.text);
    if (!rc && b->size)
        rc = nk_buf_adds(b, "| ", c->err);
    if (!rc)
        rc = nk_buf_add(b, one.data, one.size, c->err);
out:
    nk__schema_leave(c, path);
    json_decref(names);
    nk__set_release(&sub);
    nk__language_release(&lang);
    nk_buf_release(&one);
    return rc;
}

/* *any: there are such members, by that rule. */
static int convert_others(struct object *o, struct nk__schema_rule *other, bool *any)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    bool plain = !o->closed && (o->open || (!o->listed && !o->n_patterns));
    int rc = 0;

    /* What must not be there is none of the others. */
    for (size_t k = 0; !rc && k <= o->n_patterns; k++) {
        if (o->shut || (k == o->n_patterns && !plain))
            continue;
        rc = add_others_of(o, &body, k);
        if (rc == NK__SCHEMA_NOTHING)
            rc = 0;
    }
    *any = body.size > 0;
    if (!rc && *any)
        rc = nk__schema_new_rule(o->c, other);
    if (!rc && *any)
        rc = nk__schema_add_rule(o->c, other, &body);
    nk_buf_release(&body);
    return rc;
}

/* ---- the whole ---- */

struct member {
    const char *name;
    bool required;
    struct nk__schema_rule pair;
};

/* The named members from the last one on, which all have their rules. */
static int add_members(struct object *o, struct nk_buf *b, const struct member *list, size_t n,
                       const struct nk__schema_rule *other)
{
    struct nk__row row = { .min = o->min, .max = o->max };
    size_t n_required = 0;
    int rc;

    for (size_t i = 0; i < n; i++)
        n_required += list[i].required;
    if (row.min <= (int64_t)n_required)
        row.min = 0;
    if (row.max >= 0 && row.max < (int64_t)n_required)
        return nk__schema_nothing(o->c, "maxProperties", "fewer than are required");
    rc = nk__row_begin(o->c, &row, n, other);
    while (!rc && n-- > 0)
        rc = nk__row_add(o->c, &row, &list[n].pair, list[n].required);
    if (!rc)
        rc = nk__row_end(o->c, b, &row, "{", "}");
    nk__row_release(&row);
    return rc;
}

static int convert_pair(struct object *o, const char *name, struct nk__schema_rule *pair)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__schema_rule value;
    json_t *key = json_string(name);
    int rc = key ? convert_member(o, name, &value) : nk__schema_no_memory(o->c);

    if (!rc)
        rc = nk__schema_new_rule(o->c, pair);
    if (!rc)
        rc = nk__schema_add_value(&body, key, o->c->err);
    if (!rc)
        rc = nk_buf_addf(&body, o->c->err, "\":\" ws %s ", value.text);
    if (!rc)
        rc = nk__schema_add_rule(o->c, pair, &body);
    json_decref(key);
    nk_buf_release(&body);
    return rc;
}

static int convert_object(struct object *o, struct nk_buf *b)
{
    struct nk__conversion *c = o->c;
    struct nk__schema_rule other;
    struct member *list = NULL;
    const char *name;
    json_t *required;
    bool any = false;
    size_t n = 0;
    int rc = 0;

    for (size_t i = 0; !rc && i < o->set->n; i++)
        rc = read_part(o, &o->set->parts[i]);
    if (!rc)
        rc = read_listed_names(o);
    if (!rc && !json_object_size(o->names) && !json_object_size(o->absent) && !o->n_patterns &&
        !o->has_name_rules && !o->open && !o->closed && !o->min && o->max < 0)
        return nk_buf_adds(b, "object ", c->err);
    list = rc ? NULL : calloc(json_object_size(o->names) + 1, sizeof *list);
    if (!rc && !list)
        rc = nk__schema_no_memory(c);
    json_object_foreach(o->names, name, required)
    {
        if (rc)
            break;
        list[n] = (struct member){ .name = name, .required = json_is_true(required) };
        rc = convert_pair(o, name, &list[n].pair);
        if (rc == NK__SCHEMA_NOTHING && !list[n].required)
            rc = 0;
        else
            n++;
    }
    /* Nor are others called like what must not be there. */
    json_object_foreach(o->absent, name, required)
    {
        rc = rc ? rc : add_name(o, name, false);
    }
    if (!rc)
        rc = convert_others(o, &other, &any);
    if (!rc)
        rc = add_members(o, b, list, n, any ? &other : NULL);
    free(list);
    return rc;
}

int nk__schema_add_object(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                          nk__schema_convert *convert)
{
    struct object o = { .c = c,
                        .set = set,
                        .convert = convert,
                        .names = json_object(),
                        .absent = json_object(),
                        .max = -1 };
    int rc = o.names && o.absent ? convert_object(&o, b) : nk__schema_no_memory(c);

    for (size_t i = 0; i < o.n_patterns; i++)
        nk__language_release(&o.patterns[i].lang);
    nk__set_release(&o.name_rules);
    json_decref(o.names);
    json_decref(o.absent);
    return rc;
}
