/* Each set of schemas that holds of one value becomes one rule, r0, r1 ...; a rule's body is
 * written into a buffer of its own while its parts become rules, and then goes out as one line.
 *
 * A set is made (json_schema_set.c) of a schema and all that it refers to and joins; of its anyOf
 * one after the other is chosen from, each choice a larger set, until only such keywords are left
 * as say something of the value itself. Then its type decides.
 *
 * A text that the grammar lets through is always valid; not all valid texts are let through:
 * properties come in the schema's order, numbers have at most 18 digits, 29 February does not
 * exist, names of additional properties hold no escapes. That is what a grammar that steers a
 * generation is for. */
#include "text/json_schema_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"

/* Any JSON, and what the others are made of. Digits are bounded so that a number ends. A \u escape
 * is a character: no half surrogate pair. */
#define BASE_RULES                                                                                 \
    "ws ::= \"\" | \" \" | \"\\n\" [ \\t]{0,32}\n"                                                 \
    "hex ::= [0-9a-fA-F]\n"                                                                        \
    "escape ::= \"\\\\\" ([\"\\\\/bfnrt] | "                                                       \
    "\"u\" ([0-9abcefABCEF] hex hex hex | [dD] [0-7] hex hex | "                                   \
    "[dD] [89abAB] hex hex \"\\\\u\" [dD] [c-fC-F] hex hex))\n"                                    \
    "escaped ::= \"\\\\\" ([\"\\\\bfnrt] | \"u00\" (\"0\" [0-7bB] | \"0\" [eEfF] | \"1\" hex))\n"  \
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

const char *nk_json_base_rules(void)
{
    return BASE_RULES;
}

static int convert(struct nk__conversion *c, const struct nk__set *set,
                   struct nk__schema_rule *rule);

/* ---- lists ---- */

/* What the schemas of a list say of it together. */
struct list {
    int64_t min, max;
    size_t n_prefix; /* items that have schemas of their own */
    bool unique;
};

static const json_t *prefix_of(const json_t *schema, const json_t **rest)
{
    const json_t *items = json_object_get(schema, "items");

    *rest = json_is_array(items) ? json_object_get(schema, "additionalItems") : items;
    return json_is_array(items) ? items : json_object_get(schema, "prefixItems");
}

/* What holds of the item at i; of those after the last prefix item: SIZE_MAX. */
static int get_item(struct nk__conversion *c, const struct nk__set *set, size_t i,
                    struct nk__set *sub)
{
    int rc = nk__schema_spend(c, 1 + set->n);

    for (size_t k = 0; !rc && k < set->n; k++) {
        const json_t *rest, *prefix = prefix_of(set->parts[k].schema, &rest);

        if (i < json_array_size(prefix))
            rc = nk__set_add(c, sub, json_array_get(prefix, i), -1);
        else if (rest)
            rc = nk__set_add(c, sub, rest, -1);
    }
    return rc;
}

static int convert_inner(struct nk__conversion *c, const struct nk__set *set,
                         struct nk__schema_rule *rule)
{
    int rc;

    if (c->depth >= NK__SCHEMA_DEPTH_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                       "the JSON schema is nested more than %d deep", NK__SCHEMA_DEPTH_MAX);
    c->depth++;
    rc = convert(c, set, rule);
    c->depth--;
    return rc;
}

static int convert_item(struct nk__conversion *c, const struct nk__set *set, size_t i,
                        struct nk__schema_rule *rule)
{
    size_t path = i == SIZE_MAX ? nk__schema_enter(c, "items", NULL)
                                : nk__schema_enter_element(c, "prefixItems", i);
    struct nk__set sub = { 0 };
    int rc = get_item(c, set, i, &sub);

    if (!rc)
        rc = convert_inner(c, &sub, rule);
    nk__schema_leave(c, path);
    nk__set_release(&sub);
    return rc;
}

/* The values of enum or const, of true and false, or null, that keep to the set, each once. NULL
 * when there may be others. */
static int get_values(struct nk__conversion *c, const struct nk__set *set, json_t **values)
{
    json_t *all = NULL, *v;
    int types, rc = nk__set_types(c, set, &types);
    size_t i;

    *values = NULL;
    for (i = 0; !rc && !all && i < set->n; i++) {
        const json_t *one = json_object_get(set->parts[i].schema, "const"),
                     *list = json_object_get(set->parts[i].schema, "enum");

        if (!one && list && !json_is_array(list))
            return nk__schema_refuse(c, "enum", "a list of values is wanted");
        if (one || list)
            all = one ? json_pack("[O]", one) : json_incref((json_t *)(uintptr_t)list);
    }
    if (!rc && !all && !(types & ~(NK__SCHEMA_BOOLEAN | NK__SCHEMA_NULL)))
        all = json_pack("[b, b, n]", 1, 0);
    if (rc || !all)
        return rc;
    *values = json_array();
    json_array_foreach(all, i, v)
    {
        bool keeps = true;

        rc = rc ? rc : nk__value_keeps_set(c, set, v, &keeps);
        for (size_t k = 0; !rc && keeps && k < json_array_size(*values); k++) {
            rc = nk__schema_spend(c, 1);
            keeps = !nk__value_is_same(v, json_array_get(*values, k));
        }
        rc = rc ? rc : nk__schema_spend_value(c, v);
        if (!rc && keeps && json_array_append(*values, v))
            rc = nk__schema_no_memory(c);
    }
    json_decref(all);
    return rc;
}

/* Items that differ: those of a few values come in their order, each once at most. */
static int add_unique(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                      const struct list *l)
{
    struct nk__row row = { .min = l->min, .max = l->max };
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__set sub = { 0 };
    json_t *values = NULL;
    int rc = l->n_prefix ? 0 : get_item(c, set, SIZE_MAX, &sub);

    if (!rc && sub.n)
        rc = get_values(c, &sub, &values);
    if (!rc && !values)
        rc = nk__schema_refuse(c, "uniqueItems",
                               "supported where the items are of enum, const, boolean or null, or "
                               "where there is one at most");
    if (!rc)
        rc = nk__row_begin(c, &row, json_array_size(values), NULL);
    for (size_t i = json_array_size(values); !rc && i-- > 0;) {
        struct nk__schema_rule rule;

        nk_buf_reset(&body);
        rc = nk__schema_new_rule(c, &rule);
        if (!rc)
            rc = nk__schema_add_value(&body, json_array_get(values, i), c->err);
        if (!rc)
            rc = nk__schema_add_rule(c, &rule, &body);
        if (!rc)
            rc = nk__row_add(c, &row, &rule, false);
    }
    if (!rc)
        rc = nk__row_end(c, b, &row, "[", "]");
    nk__row_release(&row);
    nk_buf_release(&body);
    nk__set_release(&sub);
    json_decref(values);
    return rc;
}

static int read_list(struct nk__conversion *c, const struct nk__set *set, struct list *l)
{
    int rc = 0;

    *l = (struct list){ .max = -1 };
    for (size_t i = 0; !rc && i < set->n; i++) {
        const json_t *s = set->parts[i].schema, *rest, *prefix = prefix_of(s, &rest);

        if (prefix && !json_is_array(prefix))
            return nk__schema_refuse(c, "prefixItems", "a list of schemas is wanted");
        if (json_array_size(prefix) > l->n_prefix)
            l->n_prefix = json_array_size(prefix);
        l->unique |= json_is_true(json_object_get(s, "uniqueItems"));
        rc = nk__schema_get_range(c, s, "minItems", "maxItems", &l->min, &l->max);
    }
    return rc;
}

/* The items after those with schemas of their own. */
static int add_rest(struct nk__conversion *c, struct nk_buf *b, const struct list *l,
                    const char *item)
{
    int64_t n_prefix = (int64_t)l->n_prefix, from = l->min > n_prefix ? l->min - n_prefix : 0,
            to = l->max < 0 ? -1 : l->max - n_prefix;
    int rc;

    if (n_prefix) {
        rc = nk_buf_addf(b, c->err, "(\",\" ws %s)", item);
        return rc ? rc : nk__schema_add_counts(b, from, to, c->err);
    }
    rc = nk_buf_addf(b, c->err, "%s%s (\",\" ws %s)", from ? "" : "(", item, item);
    if (!rc)
        rc = nk__schema_add_counts(b, from > 1 ? from - 1 : 0, to < 0 ? -1 : to - 1, c->err);
    return rc || from ? rc : nk_buf_adds(b, ")? ", c->err);
}

static int add_array(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set)
{
    /* Each item that may be missing opens a group. */
    enum { OPTIONAL_MAX = 60 };
    struct nk__schema_rule item = { "" };
    struct nk_buf items = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct list l;
    int rc = read_list(c, set, &l);

    if (rc)
        return rc;
    if (l.max < 0 || l.max > (int64_t)l.n_prefix) {
        rc = convert_item(c, set, SIZE_MAX, &item);
        if (rc == NK__SCHEMA_NOTHING) {
            l.max = (int64_t)l.n_prefix;
            rc = 0;
        }
    }
    if (!rc && l.unique && (l.max < 0 || l.max > 1))
        return add_unique(c, b, set, &l);
    if (l.max >= 0 && (size_t)l.max < l.n_prefix)
        l.n_prefix = (size_t)l.max;
    if ((int64_t)l.n_prefix > l.min + OPTIONAL_MAX) {
        l.max = l.min + OPTIONAL_MAX;
        l.n_prefix = (size_t)l.max;
    }
    /* Prefix items beyond min may be left out from the right: each opens a group that may be
     * missing. */
    for (size_t i = 0; !rc && i < l.n_prefix; i++) {
        struct nk__schema_rule one;

        rc = convert_item(c, set, i, &one);
        if (rc == NK__SCHEMA_NOTHING) {
            l.max = (int64_t)i;
            l.n_prefix = i;
            rc = 0;
        } else if (!rc) {
            rc = nk_buf_addf(&items, c->err, "%s%s%s ", (int64_t)i >= l.min ? "(" : "",
                             i ? "\",\" ws " : "", one.text);
        }
    }
    if (!rc && l.max >= 0 && l.min > l.max)
        rc =
            nk__schema_nothing(c, "minItems", "larger than what the items allow: nothing is valid");
    if (!rc)
        rc = nk_buf_addf(b, c->err, "\"[\" ws %s", nk_buf_str(&items));
    if (!rc && (l.max < 0 || l.max > (int64_t)l.n_prefix))
        rc = add_rest(c, b, &l, item.text);
    for (size_t i = 0; !rc && i < l.n_prefix; i++)
        if ((int64_t)i >= l.min)
            rc = nk_buf_adds(b, ")? ", c->err);
    nk_buf_release(&items);
    return rc ? rc : nk_buf_adds(b, "ws \"]\" ", c->err);
}

/* ---- values and types ---- */

static int add_values(struct nk__conversion *c, struct nk_buf *b, const json_t *values)
{
    int rc = 0;

    if (!json_array_size(values))
        return nk__schema_nothing(c, "enum or const",
                                  "no value of the wanted type and within the other limits: "
                                  "nothing is valid");
    for (size_t i = 0; !rc && i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);

        rc = nk__schema_spend_value(c, v);
        if (!rc && i)
            rc = nk_buf_adds(b, "| ", c->err);
        if (!rc)
            rc = nk__schema_add_value(b, v, c->err);
    }
    return rc;
}

/* Types some of whose values are ruled out one by one, which only strings and numbers can be. */
static int without_ruled_out(const struct nk__set *set, int types)
{
    for (size_t i = 0; i < set->n; i++) {
        const json_t *negated = json_object_get(set->parts[i].schema, "not"),
                     *one = json_object_get(negated, "const"),
                     *values = json_object_get(negated, "enum");

        if (!negated || !nk__logic_is_plain_not(negated))
            continue;
        for (size_t k = 0; one ? k < 1 : k < json_array_size(values); k++) {
            int type = nk__schema_type_of(one ? one : json_array_get(values, k));

            if (!(type & (NK__SCHEMA_STRING | NK__SCHEMA_NUMBER)))
                types &= ~type;
        }
    }
    return types;
}

/* Without a type the keywords tell which are meant. */
static int meant_types(const struct nk__set *set, int types)
{
    int meant = 0;

    for (size_t i = 0; i < set->n; i++) {
        if (json_object_get(set->parts[i].schema, "type"))
            return types;
        meant |= nk__schema_types(set->parts[i].schema);
    }
    return meant ? types & meant : types;
}

static int add_type(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set, int type)
{
    switch (type) {
    case NK__SCHEMA_OBJECT:
        return nk__schema_add_object(c, b, set, convert_inner);
    case NK__SCHEMA_ARRAY:
        return add_array(c, b, set);
    case NK__SCHEMA_STRING:
        return nk__schema_add_string(c, b, set);
    case NK__SCHEMA_NULL:
        return nk_buf_adds(b, "null ", c->err);
    case NK__SCHEMA_BOOLEAN:
        return nk_buf_adds(b, "boolean ", c->err);
    default:
        return nk__schema_add_number(c, b, set, type == NK__SCHEMA_INTEGER);
    }
}

static int add_types(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                     int types)
{
    static const int order[] = { NK__SCHEMA_OBJECT, NK__SCHEMA_ARRAY,   NK__SCHEMA_STRING,
                                 NK__SCHEMA_NUMBER, NK__SCHEMA_BOOLEAN, NK__SCHEMA_NULL };
    struct nk_buf one = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    bool any = false;
    int rc = 0;

    types = without_ruled_out(set, meant_types(set, types));
    for (size_t i = 0; !rc && i < sizeof order / sizeof order[0]; i++) {
        int type = types & order[i];

        if (!type)
            continue;
        if (type == NK__SCHEMA_FRACTION) {
            rc = nk__schema_nothing(c, "type",
                                    "numbers that are not whole are not supported "
                                    "alone");
        } else {
            nk_buf_reset(&one);
            rc = add_type(c, &one, set, type);
        }
        if (rc == NK__SCHEMA_NOTHING) {
            rc = 0;
            continue;
        }
        if (!rc)
            rc = nk_buf_addf(b, c->err, "%s%s", any ? "| " : "", nk_buf_str(&one));
        any = true;
    }
    nk_buf_release(&one);
    return rc || any ? rc : nk__schema_nothing(c, "type", "no type fits: nothing is valid");
}

/* ---- alternatives ---- */

/* Whether a property that must be there can have none of its values: a choice that was made of one
 * schema's alternatives often leaves but one of another's. */
static int contradicts(struct nk__conversion *c, const struct nk__set *set, bool *yes)
{
    int rc = 0;

    *yes = false;
    for (size_t i = 0; i < set->n; i++) {
        const json_t *required = json_object_get(set->parts[i].schema, "required");

        for (size_t k = 0; !rc && !*yes && k < json_array_size(required); k++) {
            const char *name = json_string_value(json_array_get(required, k));
            struct nk__set sub = { 0 };
            json_t *values = NULL;
            bool listed = false;

            for (size_t p = 0; name && !rc && p < set->n; p++) {
                const json_t *own =
                    json_object_get(json_object_get(set->parts[p].schema, "properties"), name);

                listed |= json_object_get(own, "const") || json_object_get(own, "enum");
                if (own)
                    rc = nk__set_add(c, &sub, own, -1);
            }
            if (!rc && listed)
                rc = get_values(c, &sub, &values);
            *yes = rc == NK__SCHEMA_NOTHING || (!rc && values && !json_array_size(values));
            rc = rc == NK__SCHEMA_NOTHING ? 0 : rc;
            json_decref(values);
            nk__set_release(&sub);
        }
    }
    return rc;
}

static int add_choice(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                      size_t part)
{
    const json_t *parts;
    bool any = false, contradictory;
    int rc = nk__schema_get_list(c, set->parts[part].schema, "anyOf", true, &parts);

    if (!rc)
        rc = contradicts(c, set, &contradictory);
    if (!rc && contradictory)
        return nk__schema_nothing(c, "required", "a property can have none of its values");
    for (size_t i = 0; !rc && i < json_array_size(parts); i++) {
        struct nk__set with = { 0 };
        struct nk__schema_rule rule;
        size_t path = nk__schema_enter_element(c, "anyOf", i);

        rc = nk__set_copy(c, &with, set);
        if (!rc) {
            with.parts[part].chosen = true;
            rc = nk__set_add(c, &with, json_array_get(parts, i), (int)part);
        }
        if (!rc)
            rc = convert(c, &with, &rule);
        nk__schema_leave(c, path);
        nk__set_release(&with);
        if (rc == NK__SCHEMA_NOTHING) {
            rc = 0;
            continue;
        }
        if (!rc)
            rc = nk_buf_addf(b, c->err, "%s%s ", any ? "| " : "", rule.text);
        any = true;
    }
    return rc || any ? rc : nk__schema_nothing(c, "anyOf", "none of it fits: nothing is valid");
}

/* Whether nothing is said of the value. */
static bool is_open(const struct nk__set *set)
{
    for (size_t i = 0; i < set->n; i++)
        if (json_object_get(set->parts[i].schema, "type") ||
            json_object_get(set->parts[i].schema, "not") || nk__schema_types(set->parts[i].schema))
            return false;
    return true;
}

static int add_set(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set)
{
    json_t *values = NULL;
    int types, rc = nk__set_types(c, set, &types);

    if (!rc && !types)
        return nk__schema_nothing(c, "type", "no type fits: nothing is valid");
    for (size_t i = 0; !rc && i < set->n; i++)
        if (json_object_get(set->parts[i].schema, "const") ||
            json_object_get(set->parts[i].schema, "enum")) {
            rc = get_values(c, set, &values);
            if (!rc)
                rc = add_values(c, b, values);
            json_decref(values);
            return rc;
        }
    for (size_t i = 0; !rc && i < set->n; i++)
        if (json_object_get(set->parts[i].schema, "anyOf") && !set->parts[i].chosen)
            return add_choice(c, b, set, i);
    if (!rc && is_open(set))
        return nk_buf_adds(b, "value ", c->err);
    return rc ? rc : add_types(c, b, set, types);
}

/* ---- rules ---- */

static uint32_t hash(const struct nk__set *set)
{
    uint64_t h = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < set->n; i++)
        h = (h ^ ((uint64_t)(uintptr_t)set->parts[i].schema + set->parts[i].chosen)) *
            0x9E3779B97F4A7C15ull,
        h ^= h >> 29;
    return (uint32_t)(h % 1024);
}

static bool is_equal(const struct nk__set *a, const struct nk__set *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->parts[i].schema != b->parts[i].schema || a->parts[i].parent != b->parts[i].parent ||
            a->parts[i].chosen != b->parts[i].chosen)
            return false;
    return true;
}

/* The one whose rule is that of the set; *at is its number. */
static int find_target(struct nk__conversion *c, const struct nk__set *set, uint32_t bucket,
                       size_t *at)
{
    int rc = nk__schema_spend(c, 1);

    for (uint32_t i = c->buckets[bucket]; !rc && i; i = c->targets[i - 1].next) {
        rc = nk__schema_spend(c, 1);
        *at = i - 1;
        if (is_equal(&c->targets[i - 1].set, set))
            return rc;
    }
    *at = SIZE_MAX;
    return rc;
}

/* Before it is converted, which may lead back to it. */
static int add_target(struct nk__conversion *c, const struct nk__set *set, uint32_t bucket,
                      const struct nk__schema_rule *rule)
{
    struct nk__set copy = { 0 };
    int rc = nk_array_grow(c->targets, c->targets_capacity, c->n_targets + 1, NK__SCHEMA_RULES_MAX,
                           c->err);

    c->n_parts += set->n;
    if (!rc && c->n_parts > NK__SCHEMA_PARTS_MAX)
        rc = nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                     "the JSON schema has too many alternatives");
    if (!rc)
        rc = nk__set_copy(c, &copy, set);
    if (rc) {
        nk__set_release(&copy);
        return rc;
    }
    c->targets[c->n_targets] =
        (struct nk__target){ .set = copy, .rule = *rule, .next = c->buckets[bucket] };
    c->buckets[bucket] = (uint32_t)++c->n_targets;
    return 0;
}

/* The rule of what all of the set hold of. */
static int convert(struct nk__conversion *c, const struct nk__set *set,
                   struct nk__schema_rule *rule)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    uint32_t bucket = hash(set);
    size_t at = SIZE_MAX;
    int rc = 0;

    if (!set->n) {
        *rule = (struct nk__schema_rule){ "value" };
        return 0;
    }
    rc = find_target(c, set, bucket, &at);
    if (rc)
        return rc;
    if (at != SIZE_MAX) {
        c->targets[at].used |= !c->targets[at].done;
        *rule = c->targets[at].rule;
        return c->targets[at].nothing ? NK__SCHEMA_NOTHING : 0;
    }
    if (c->nested >= NK__SCHEMA_NESTED_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large", "the JSON schema is nested too deeply");
    rc = nk__schema_new_rule(c, rule);
    if (!rc)
        rc = add_target(c, set, bucket, rule);
    if (rc)
        return rc;
    at = c->n_targets - 1;
    c->nested++;
    rc = add_set(c, &body, set);
    c->nested--;
    c->targets[at].done = true;
    c->targets[at].nothing = rc == NK__SCHEMA_NOTHING;
    if (rc == NK__SCHEMA_NOTHING && c->targets[at].used)
        rc = nk__schema_refuse(c, "$ref", "it leads back here, where nothing is valid");
    if (!rc)
        rc = nk__schema_add_rule(c, rule, &body);
    nk_buf_release(&body);
    return rc;
}

static void release(struct nk__conversion *c)
{
    for (size_t i = 0; i < c->n_targets; i++)
        nk__set_release(&c->targets[i].set);
    for (size_t i = 0; i < c->n_made; i++)
        json_decref(c->made[i].schema);
    free(c->targets);
    free(c->made);
    free(c->refs);
}

int nk_json_schema_to_grammar(const json_t *schema, struct nk_work *work, struct nk_buf *out,
                              struct nk_error *err)
{
    struct nk__conversion c = { .root = schema, .work = work, .out = out, .err = err, .path = "#" };
    size_t before = out->size;
    struct nk__schema_rule rule;
    struct nk__set set = { 0 };
    int rc = nk_buf_adds(out, BASE_RULES, err);

    if (!rc)
        rc = nk__set_add(&c, &set, schema, -1);
    if (!rc)
        rc = convert(&c, &set, &rule);
    if (!rc)
        rc = nk_buf_addf(out, err, "root ::= %s\n", rule.text);
    if (rc == NK__SCHEMA_NOTHING)
        rc = nk_fail(err, NK_E_INVALID, "unsupported_schema", "%s", c.nothing);
    nk__set_release(&set);
    release(&c);
    if (rc && out->data) {
        out->size = before;
        out->data[before] = '\0';
    }
    return rc;
}
