/* Whether a value keeps to a schema: for those that enum and const list, and for names of
 * properties. */
#include "text/json_schema_int.h"

#include <math.h>
#include <string.h>

#include "base/utf8.h"

/* As JSON Schema has it: 1 is 1.0. */
bool nk__value_is_same(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *element;
    size_t i;

    if (json_is_number(a) && json_is_number(b))
        return json_is_integer(a) && json_is_integer(b)
                   ? json_integer_value(a) == json_integer_value(b)
                   : json_number_value(a) == json_number_value(b);
    if (json_typeof(a) != json_typeof(b) || json_array_size(a) != json_array_size(b) ||
        json_object_size(a) != json_object_size(b))
        return false;
    json_array_foreach(a, i, element)
    {
        if (!nk__value_is_same(element, json_array_get(b, i)))
            return false;
    }
    if (json_is_object(a))
        json_object_foreach((json_t *)(uintptr_t)a, key, element)
        {
            const json_t *other = json_object_get(b, key);

            if (!other || !nk__value_is_same(element, other))
                return false;
        }
    return json_is_object(a) || json_is_array(a) || json_equal(a, b);
}

static int keeps_number(struct nk__conversion *c, const json_t *schema, const json_t *v,
                        bool *keeps)
{
    const json_t *min = json_object_get(schema, "minimum"),
                 *max = json_object_get(schema, "maximum"),
                 *above = json_object_get(schema, "exclusiveMinimum"),
                 *below = json_object_get(schema, "exclusiveMaximum"),
                 *of = json_object_get(schema, "multipleOf");
    double x = json_number_value(v), m = json_number_value(of);

    if (min)
        *keeps &= json_is_true(above) ? x > json_number_value(min) : x >= json_number_value(min);
    if (max)
        *keeps &= json_is_true(below) ? x < json_number_value(max) : x <= json_number_value(max);
    if (json_is_number(above))
        *keeps &= x > json_number_value(above);
    if (json_is_number(below))
        *keeps &= x < json_number_value(below);
    if (m > 0)
        *keeps &= fabs(x / m - round(x / m)) < 1e-9;
    return nk__schema_spend(c, 8);
}

static int keeps_string(struct nk__conversion *c, const json_t *schema, const json_t *v,
                        bool *keeps)
{
    struct nk__part part = { .schema = schema, .parent = -1 };
    struct nk__set own = { .parts = &part, .n = 1 };
    struct nk__language lang = NK__LANGUAGE_INIT;
    size_t n_chars = 0, size = json_string_length(v);
    const char *text = json_string_value(v);
    int rc = nk__schema_get_language(c, &own, &lang);

    for (size_t i = 0; i < size; n_chars++)
        i += (size_t)nk_utf8_next(text + i, size - i, NULL);
    if (rc == NK__SCHEMA_NOTHING) {
        *keeps = false;
        rc = 0;
    }
    if ((int64_t)n_chars < lang.min || (lang.max >= 0 && (int64_t)n_chars > lang.max))
        *keeps = false;
    lang.min = 0;
    lang.max = -1;
    if (!rc && *keeps && lang.n)
        rc = nk__language_takes(c, &lang, text, size, keeps);
    nk__language_release(&lang);
    return rc;
}

static int keeps_array(struct nk__conversion *c, const json_t *schema, const json_t *v, bool *keeps)
{
    const json_t *items = json_object_get(schema, "items"),
                 *prefix = json_object_get(schema, "prefixItems");
    int64_t min = 0, max = -1, n = (int64_t)json_array_size(v);
    size_t i;
    json_t *element;
    int rc = nk__schema_get_range(c, schema, "minItems", "maxItems", &min, &max);

    if (rc == NK__SCHEMA_NOTHING) {
        *keeps = false;
        return 0;
    }
    if (json_is_array(items)) {
        prefix = items;
        items = json_object_get(schema, "additionalItems");
    }
    *keeps &= n >= min && (max < 0 || n <= max);
    json_array_foreach(v, i, element)
    {
        const json_t *one = i < json_array_size(prefix) ? json_array_get(prefix, i) : items;
        bool own = true;

        if (!rc && *keeps && one)
            rc = nk__value_keeps(c, one, element, &own);
        *keeps &= own;
        for (size_t k = 0;
             !rc && *keeps && json_is_true(json_object_get(schema, "uniqueItems")) && k < i; k++) {
            rc = nk__schema_spend_value(c, element);
            *keeps &= !nk__value_is_same(element, json_array_get(v, k));
        }
    }
    return rc;
}

static int keeps_member(struct nk__conversion *c, const json_t *schema, const char *name,
                        const json_t *v, bool *keeps)
{
    const json_t *own = json_object_get(json_object_get(schema, "properties"), name),
                 *names = json_object_get(schema, "propertyNames"),
                 *more = json_object_get(schema, "additionalProperties");
    const char *pattern;
    json_t *s;
    bool known = own != NULL, fits = true;
    int rc = own ? nk__value_keeps(c, own, v, keeps) : 0;

    json_object_foreach(json_object_get(schema, "patternProperties"), pattern, s)
    {
        struct nk__language lang = NK__LANGUAGE_INIT;
        bool takes = false, right = true;

        rc = rc ? rc : nk__language_add(c, &lang, pattern, false);
        rc = rc ? rc : nk__language_takes(c, &lang, name, strlen(name), &takes);
        nk__language_release(&lang);
        known |= takes;
        if (!rc && takes)
            rc = nk__value_keeps(c, s, v, &right);
        *keeps &= right;
    }
    if (!rc && !known && more)
        rc = nk__value_keeps(c, more, v, &fits);
    *keeps &= fits;
    if (!rc && names) {
        json_t *text = json_string(name);

        rc = text ? nk__value_keeps(c, names, text, &fits) : nk__schema_no_memory(c);
        json_decref(text);
    }
    *keeps &= fits;
    return rc;
}

static int keeps_object(struct nk__conversion *c, const json_t *schema, const json_t *v,
                        bool *keeps)
{
    static const char *const dependent[] = { "dependentRequired", "dependentSchemas",
                                             "dependencies" };
    const json_t *required = json_object_get(schema, "required");
    int64_t min = 0, max = -1, n = (int64_t)json_object_size(v);
    const char *name;
    json_t *element;
    int rc = nk__schema_get_range(c, schema, "minProperties", "maxProperties", &min, &max);

    if (rc == NK__SCHEMA_NOTHING) {
        *keeps = false;
        return 0;
    }
    if (!rc && json_is_false(json_object_get(schema, "unevaluatedProperties")))
        rc = nk__schema_refuse(c, "unevaluatedProperties", "not supported for enum and const");
    *keeps &= n >= min && (max < 0 || n <= max);
    for (size_t i = 0; i < json_array_size(required); i++) {
        name = json_string_value(json_array_get(required, i));
        *keeps &= name && json_object_get(v, name);
    }
    json_object_foreach((json_t *)(uintptr_t)v, name, element)
    {
        bool own = true;

        if (!rc && *keeps)
            rc = keeps_member(c, schema, name, element, &own);
        *keeps &= own;
    }
    for (size_t i = 0; i < sizeof dependent / sizeof dependent[0]; i++)
        json_object_foreach(json_object_get(schema, dependent[i]), name, element)
        {
            bool own = true;

            if (!json_object_get(v, name) || rc || !*keeps)
                continue;
            for (size_t k = 0; k < json_array_size(element); k++) {
                const char *other = json_string_value(json_array_get(element, k));

                own &= other && json_object_get(v, other);
            }
            if (!json_is_array(element))
                rc = nk__value_keeps(c, element, v, &own);
            *keeps &= own;
        }
    return rc;
}

/* How many of the list's schemas it keeps to. */
static int count_kept(struct nk__conversion *c, const json_t *list, const json_t *v, size_t *n)
{
    json_t *one;
    size_t i;
    int rc = 0;

    *n = 0;
    json_array_foreach(list, i, one)
    {
        bool keeps = true;

        rc = rc ? rc : nk__value_keeps(c, one, v, &keeps);
        *n += keeps;
    }
    return rc;
}

static int keeps_joined(struct nk__conversion *c, const json_t *schema, const json_t *v,
                        bool *keeps)
{
    const json_t *ref = json_object_get(schema, "$ref"), *any = json_object_get(schema, "anyOf"),
                 *one = json_object_get(schema, "oneOf"), *all = json_object_get(schema, "allOf"),
                 *negated = json_object_get(schema, "not"), *target;
    size_t n;
    int rc = 0;

    if (ref) {
        rc = nk__schema_resolve(c, ref, &target);
        rc = rc ? rc : nk__value_keeps(c, target, v, keeps);
    }
    if (!rc && any && *keeps) {
        rc = count_kept(c, any, v, &n);
        *keeps &= n > 0;
    }
    if (!rc && one && *keeps) {
        rc = count_kept(c, one, v, &n);
        *keeps &= n == 1;
    }
    if (!rc && all && *keeps) {
        rc = count_kept(c, all, v, &n);
        *keeps &= n == json_array_size(all);
    }
    if (!rc && negated && *keeps) {
        bool other = true;

        rc = nk__value_keeps(c, negated, v, &other);
        *keeps &= !other;
    }
    if (!rc && json_object_get(schema, "if") && *keeps) {
        bool holds = true;
        const json_t *then;

        rc = nk__value_keeps(c, json_object_get(schema, "if"), v, &holds);
        then = json_object_get(schema, holds ? "then" : "else");
        if (!rc && then)
            rc = nk__value_keeps(c, then, v, keeps);
    }
    return rc;
}

/* *keeps becomes false when it does not, and stays what it was when it does. */
static int check(struct nk__conversion *c, const json_t *schema, const json_t *v, bool *keeps)
{
    const json_t *constant = json_object_get(schema, "const"),
                 *values = json_object_get(schema, "enum");
    int type = nk__schema_type_of(v), types, rc = nk__schema_get_type(c, schema, &types);

    if (!(types & type))
        *keeps = false;
    if (!rc && *keeps && constant) {
        rc = nk__schema_spend_value(c, v);
        *keeps = nk__value_is_same(constant, v);
    }
    if (!rc && *keeps && values) {
        bool any = false;

        for (size_t i = 0; !rc && !any && i < json_array_size(values); i++) {
            rc = nk__schema_spend_value(c, v);
            any = nk__value_is_same(json_array_get(values, i), v);
        }
        *keeps = any;
    }
    if (!rc && *keeps)
        rc = keeps_joined(c, schema, v, keeps);
    if (rc || !*keeps)
        return rc;
    if (type & NK__SCHEMA_NUMBER)
        return keeps_number(c, schema, v, keeps);
    if (type == NK__SCHEMA_STRING)
        return keeps_string(c, schema, v, keeps);
    if (type == NK__SCHEMA_ARRAY)
        return keeps_array(c, schema, v, keeps);
    return type == NK__SCHEMA_OBJECT ? keeps_object(c, schema, v, keeps) : 0;
}

int nk__value_keeps(struct nk__conversion *c, const json_t *schema, const json_t *v, bool *keeps)
{
    struct nk__keeping now = { schema, v, c->keeping };
    bool own = true;
    int rc;

    if (json_is_boolean(schema)) {
        *keeps &= json_is_true(schema);
        return 0;
    }
    if (!json_is_object(schema))
        return nk__schema_refuse(c, "a schema must be an object", NULL);
    if (c->nested > NK__SCHEMA_NESTED_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large", "the JSON schema is nested too deeply");
    /* What leads back to itself is not what makes it right. */
    for (const struct nk__keeping *k = c->keeping; k && k->v == v; k = k->outer)
        if (k->schema == schema) {
            *keeps = false;
            return 0;
        }
    c->keeping = &now;
    c->nested++;
    rc = nk__schema_check_keywords(c, schema);
    if (!rc)
        rc = check(c, schema, v, &own);
    c->nested--;
    c->keeping = now.outer;
    *keeps &= own;
    return rc;
}

int nk__value_keeps_set(struct nk__conversion *c, const struct nk__set *set, const json_t *v,
                        bool *keeps)
{
    int rc = 0;

    *keeps = true;
    for (size_t i = 0; !rc && *keeps && i < set->n; i++)
        rc = nk__value_keeps(c, set->parts[i].schema, v, keeps);
    return rc;
}
