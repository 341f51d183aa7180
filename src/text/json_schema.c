/* Each schema becomes one rule, r0, r1 ...; a rule's body is written into a buffer of its own while
 * its parts become rules, and then goes out as one line.
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

static int convert(struct nk__conversion *c, const json_t *schema, struct nk__schema_rule *rule);

/* Converts a part of a schema, whose place is c->path followed by the given steps. */
static int convert_part(struct nk__conversion *c, const json_t *schema, const char *key,
                        const char *sub, struct nk__schema_rule *rule)
{
    size_t size = strlen(c->path);
    int rc;

    snprintf(c->path + size, sizeof c->path - size, "/%s%s%s", key, sub ? "/" : "", sub ? sub : "");
    rc = convert(c, schema, rule);
    c->path[size] = '\0';
    return rc;
}

static int convert_element(struct nk__conversion *c, const json_t *schema, const char *key,
                           size_t i, struct nk__schema_rule *rule)
{
    char sub[24];

    snprintf(sub, sizeof sub, "%zu", i);
    return convert_part(c, schema, key, sub, rule);
}

/* ---- lists and objects ---- */

static int add_array(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *items = json_object_get(schema, "items"),
                 *prefix = json_object_get(schema, "prefixItems");
    struct nk__schema_rule item = { "value" };
    bool closed = json_is_false(items);
    size_t n_prefix = json_array_size(prefix);
    int64_t min, max;
    int rc = nk__schema_get_range(c, schema, "minItems", "maxItems", &min, &max);

    if (rc)
        return rc;
    if (prefix && !json_is_array(prefix))
        return nk__schema_refuse(c, "prefixItems", "a list of schemas is wanted");
    if (closed && (max < 0 || (size_t)max > n_prefix))
        max = (int64_t)n_prefix;
    if (max >= 0 && min > max)
        return nk__schema_refuse(c, "minItems",
                                 "larger than what the items allow: nothing is valid");
    if (max >= 0 && (size_t)max < n_prefix)
        n_prefix = (size_t)max;
    if (items && !closed) {
        rc = convert_part(c, items, "items", NULL, &item);
        if (rc)
            return rc;
    }
    rc = nk_buf_adds(b, "\"[\" ws ", c->err);
    /* Prefix items beyond min may be left out from the right: each opens a group that may be
     * missing. */
    for (size_t i = 0; !rc && i < n_prefix; i++) {
        struct nk__schema_rule one;

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
                rc = nk__schema_add_counts(b, from, to, c->err);
        } else {
            rc =
                nk_buf_addf(b, c->err, "%s%s (\",\" ws %s)", from ? "" : "(", item.text, item.text);
            if (!rc)
                rc =
                    nk__schema_add_counts(b, from > 1 ? from - 1 : 0, to < 0 ? -1 : to - 1, c->err);
            if (!rc && !from)
                rc = nk_buf_adds(b, ")? ", c->err);
        }
    }
    for (size_t i = 0; !rc && i < n_prefix; i++)
        if ((int64_t)i >= min)
            rc = nk_buf_adds(b, ")? ", c->err);
    return rc ? rc : nk_buf_adds(b, "ws \"]\" ", c->err);
}

static bool is_required(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!strcmp(json_string_value(json_array_get(required, i)), name))
            return true;
    return false;
}

/* The properties one after the other, from the last one on. */
static int add_properties(struct nk__conversion *c, struct nk_buf *b, const json_t *properties,
                          const json_t *required, const struct nk__schema_rule *other)
{
    size_t n = json_object_size(properties), i = 0;
    struct property {
        const char *name;
        const json_t *schema;
    } *list = calloc(n + 1, sizeof *list);
    struct nk__members members;
    const char *key;
    json_t *value;
    int rc;

    if (!list)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    json_object_foreach((json_t *)(uintptr_t)properties, key, value)
    {
        list[i++] = (struct property){ key, value };
    }
    rc = nk__schema_begin_members(c, &members, other);
    while (!rc && i-- > 0) {
        struct nk__schema_rule rule;

        rc = convert_part(c, list[i].schema, "properties", list[i].name, &rule);
        if (!rc)
            rc = nk__schema_spend(c, 1 + json_array_size(required));
        if (!rc)
            rc = nk__schema_add_member(c, &members, list[i].name, &rule,
                                       is_required(required, list[i].name));
    }
    free(list);
    return rc ? rc : nk__schema_end_members(c, b, &members);
}

static int add_object(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *required = json_object_get(schema, "required");
    const json_t *additional = json_object_get(schema, "additionalProperties");
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__schema_rule other, value = { "value" };
    bool open = additional ? !json_is_false(additional) : !json_object_size(properties);
    int rc = nk__schema_check_required(c, properties, required);

    if (!rc && properties && !json_is_object(properties))
        rc = nk__schema_refuse(c, "properties", "an object of schemas is wanted");
    if (rc || !open)
        return rc ? rc : add_properties(c, b, properties, required, NULL);
    if (!json_object_size(properties) && (!additional || json_is_true(additional)))
        return nk_buf_adds(b, "object ", c->err);
    if (additional && !json_is_true(additional))
        rc = convert_part(c, additional, "additionalProperties", NULL, &value);
    if (!rc)
        rc = nk__schema_new_rule(c, &other);
    if (!rc)
        rc = nk__schema_add_other_name(c, &body, properties);
    if (!rc)
        rc = nk_buf_addf(&body, c->err, "\":\" ws %s ", value.text);
    if (!rc)
        rc = nk__schema_add_rule(c, &other, &body);
    nk_buf_release(&body);
    return rc ? rc : add_properties(c, b, properties, required, &other);
}

/* ---- references and combinations ---- */

/* The rule of a schema that may be referred to several times, or by itself. */
static int convert_ref(struct nk__conversion *c, const json_t *schema, struct nk__schema_rule *rule)
{
    const json_t *target = NULL;
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__schema_rule inner;
    int rc = nk__schema_follow(c, schema, &target);

    if (!rc)
        rc = nk__schema_spend(c, 1 + c->n_targets / 4);
    if (rc)
        return rc;
    for (size_t i = 0; i < c->n_targets; i++)
        if (c->targets[i].schema == target) {
            *rule = c->targets[i].rule;
            return 0;
        }
    rc = nk__schema_new_rule(c, rule);
    if (!rc)
        rc = nk_array_grow(c->targets, c->targets_capacity, c->n_targets + 1, NK__SCHEMA_RULES_MAX,
                           c->err);
    if (rc)
        return rc;
    /* Before it is converted, which may lead back here. */
    c->targets[c->n_targets++] = (struct nk__target){ target, *rule };
    rc = convert(c, target, &inner);
    if (!rc)
        rc = nk_buf_adds(&body, inner.text, c->err);
    if (!rc)
        rc = nk__schema_add_rule(c, rule, &body);
    nk_buf_release(&body);
    return rc;
}

static int add_all_of(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *parts = json_object_get(schema, "allOf");
    json_t *merged;
    struct nk__schema_rule rule;
    int rc;

    if (!json_is_array(parts) || !json_array_size(parts))
        return nk__schema_refuse(c, "allOf", "a list of schemas is wanted");
    if (json_array_size(parts) == 1 && !nk__schema_types(schema) &&
        !json_object_get(schema, "type")) {
        /* The usual way to describe a $ref. */
        rc = convert_element(c, json_array_get(parts, 0), "allOf", 0, &rule);
        return rc ? rc : nk_buf_adds(b, rule.text, c->err);
    }
    merged = json_pack("{s:s, s:{}, s:[]}", "type", "object", "properties", "required");
    rc = merged ? nk__schema_join(c, schema, merged)
                : nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc)
        rc = add_object(c, b, merged);
    json_decref(merged);
    return rc;
}

static int add_any_of(struct nk__conversion *c, struct nk_buf *b, const json_t *schema,
                      const char *key)
{
    static const char *const others[] = { "type", "enum", "const", "allOf", NULL };
    const json_t *parts = json_object_get(schema, key);
    int rc = 0;

    if (!json_is_array(parts) || !json_array_size(parts))
        return nk__schema_refuse(c, key, "a list of schemas is wanted");
    if (nk__schema_types(schema) || nk__schema_has(schema, others) ||
        (json_object_get(schema, "anyOf") && json_object_get(schema, "oneOf")))
        return nk__schema_refuse(c, key, "not together with other keywords");
    for (size_t i = 0; !rc && i < json_array_size(parts); i++) {
        struct nk__schema_rule rule;

        rc = convert_element(c, json_array_get(parts, i), key, i, &rule);
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
    if (!type)
        return true;
    if (json_is_string(type))
        return is_of_type(v, json_string_value(type));
    for (size_t i = 0; i < json_array_size(type); i++) {
        const json_t *one = json_array_get(type, i);

        if (json_is_string(one) && is_of_type(v, json_string_value(one)))
            return true;
    }
    return false;
}

static int add_values(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    static const char *const others[] = { "anyOf", "oneOf", "allOf", NULL };
    const json_t *constant = json_object_get(schema, "const"),
                 *values = json_object_get(schema, "enum"), *type = json_object_get(schema, "type");
    const char *key = constant ? "const" : "enum";
    bool first = true;
    int rc = 0;

    if ((constant && values) || nk__schema_types(schema) || nk__schema_has(schema, others))
        return nk__schema_refuse(c, key, "not together with keywords other than type");
    if (values && !json_is_array(values))
        return nk__schema_refuse(c, "enum", "a list of values is wanted");
    if (constant && type_allows(type, constant)) {
        first = false;
        rc = nk__schema_add_value(b, constant, c->err);
    }
    for (size_t i = 0; !rc && i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);

        rc = nk__schema_spend_value(c, v);
        if (!rc)
            rc = nk__schema_spend(c, json_array_size(type));
        if (rc)
            break;
        if (!type_allows(type, v))
            continue;
        if (!first)
            rc = nk_buf_adds(b, "| ", c->err);
        first = false;
        if (!rc)
            rc = nk__schema_add_value(b, v, c->err);
    }
    if (!rc && first)
        return nk__schema_refuse(c, key, "no value of the wanted type: nothing is valid");
    return rc;
}

static int add_type(struct nk__conversion *c, struct nk_buf *b, const json_t *schema,
                    const char *type)
{
    if (!strcmp(type, "object"))
        return add_object(c, b, schema);
    if (!strcmp(type, "array"))
        return add_array(c, b, schema);
    if (!strcmp(type, "string"))
        return nk__schema_add_string(c, b, schema);
    if (!strcmp(type, "integer") || !strcmp(type, "number"))
        return nk__schema_add_number(c, b, schema, type);
    if (!strcmp(type, "boolean") || !strcmp(type, "null"))
        return nk_buf_addf(b, c->err, "%s ", type);
    return nk__schema_refuse(c, "type",
                             "known are object, array, string, number, integer, boolean and null");
}

static int add_types(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type");
    int types = nk__schema_types(schema), rc = 0;

    if (json_is_string(type))
        return add_type(c, b, schema, json_string_value(type));
    if (type && (!json_is_array(type) || !json_array_size(type)))
        return nk__schema_refuse(c, "type", "a name or a list of names is wanted");
    for (size_t i = 0; !rc && i < json_array_size(type); i++) {
        const json_t *one = json_array_get(type, i);

        if (!json_is_string(one))
            return nk__schema_refuse(c, "type", "a name or a list of names is wanted");
        if (i)
            rc = nk_buf_adds(b, "| ", c->err);
        if (!rc)
            rc = add_type(c, b, schema, json_string_value(one));
    }
    if (type || rc)
        return rc;
    /* Without a type a keyword tells which is meant; where several do, it is not clear. */
    switch (types) {
    case 0:
        return nk_buf_adds(b, "value ", c->err);
    case NK__SCHEMA_OBJECT:
        return add_type(c, b, schema, "object");
    case NK__SCHEMA_ARRAY:
        return add_type(c, b, schema, "array");
    case NK__SCHEMA_STRING:
        return add_type(c, b, schema, "string");
    case NK__SCHEMA_NUMBER:
        return add_type(c, b, schema, "number");
    default:
        return nk__schema_refuse(c, "type",
                                 "it is missing, and the other keywords belong to several types");
    }
}

static int convert(struct nk__conversion *c, const json_t *schema, struct nk__schema_rule *rule)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    int rc = 0;

    if (json_is_true(schema)) {
        *rule = (struct nk__schema_rule){ "value" };
        return 0;
    }
    if (!json_is_object(schema))
        return nk__schema_refuse(c, json_is_false(schema) ? "false" : "a schema must be an object",
                                 json_is_false(schema) ? "nothing is valid" : NULL);
    if (c->depth >= NK__SCHEMA_DEPTH_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                       "the JSON schema is nested more than %d deep", NK__SCHEMA_DEPTH_MAX);
    c->depth++;
    rc = nk__schema_check_keywords(c, schema);
    if (!rc && json_object_get(schema, "$ref")) {
        rc = convert_ref(c, schema, rule);
        goto out;
    }
    if (!rc)
        rc = nk__schema_new_rule(c, rule);
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
        rc = nk__schema_add_rule(c, rule, &body);
out:
    c->depth--;
    nk_buf_release(&body);
    return rc;
}

int nk_json_schema_to_grammar(const json_t *schema, struct nk_work *work, struct nk_buf *out,
                              struct nk_error *err)
{
    struct nk__conversion c = { .root = schema, .work = work, .out = out, .err = err, .path = "#" };
    size_t before = out->size;
    struct nk__schema_rule rule;
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
