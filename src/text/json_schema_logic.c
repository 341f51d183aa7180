/* not, oneOf, if and dependencies, said again as anyOf and allOf, so that everything else knows
 * only those two and a few plain forms of not.
 *
 * A negation becomes the alternatives of which one must hold: not {"type": "string", "minLength":
 * 3} is: another type, or a string of at most two characters. What has no such form (uniqueItems,
 * say) is left out of the alternatives: fewer values are let through, none of them wrong.
 *
 * oneOf is anyOf when no value keeps to two of its parts. Where that cannot be seen, each part
 * gets what keeps the others away: a property that another one requires is not there; or else the
 * other one's negation. */
#include "text/json_schema_int.h"

#include <string.h>

#include "base/array.h"

enum { GATHERED_MAX = 32, DISJOINT_DEPTH_MAX = 3, CONDITIONS_MAX = 4096 };

/* ---- what was made ---- */

static const json_t *find_made(struct nk__conversion *c, const json_t *source, const char *what)
{
    for (size_t i = 0; i < c->n_made; i++)
        if (c->made[i].source == source && c->made[i].what == what)
            return c->made[i].schema;
    return NULL;
}

/* Takes schema, also on failure. */
static int keep_made(struct nk__conversion *c, const json_t *source, const char *what,
                     json_t *schema, const json_t **made)
{
    int rc = schema
                 ? nk_array_grow(c->made, c->made_capacity, c->n_made + 1, CONDITIONS_MAX, c->err)
                 : nk__schema_no_memory(c);

    if (rc) {
        json_decref(schema);
        return rc;
    }
    c->made[c->n_made++] = (struct nk__made){ source, what, schema };
    *made = schema;
    return 0;
}

/* A borrowed value as an element of what is made. */
static json_t *shared(const json_t *v)
{
    return json_incref((json_t *)(uintptr_t)v);
}

static json_t *negation_of(const json_t *schema)
{
    return json_pack("{s:o}", "not", shared(schema));
}

static json_t *absent(const char *name)
{
    return json_pack("{s:{s:[s]}}", "not", "required", name);
}

/* ---- negations ---- */

bool nk__logic_is_plain_not(const json_t *negated)
{
    const json_t *required = json_object_get(negated, "required");

    if (json_object_size(negated) != 1)
        return false;
    return json_object_get(negated, "const") || json_is_array(json_object_get(negated, "enum")) ||
           json_is_string(json_object_get(negated, "pattern")) ||
           (json_array_size(required) == 1 && json_is_string(json_array_get(required, 0)));
}

static json_t *not_of_type(struct nk__conversion *c, const json_t *schema, int *rc)
{
    static const struct {
        int type;
        const char *name;
    } names[] = {
        { NK__SCHEMA_NULL, "null" },     { NK__SCHEMA_BOOLEAN, "boolean" },
        { NK__SCHEMA_OBJECT, "object" }, { NK__SCHEMA_ARRAY, "array" },
        { NK__SCHEMA_STRING, "string" }, { NK__SCHEMA_NUMBER, "number" },
    };
    json_t *others = json_array();
    int types;

    *rc = nk__schema_get_type(c, schema, &types);
    for (size_t i = 0; !*rc && i < sizeof names / sizeof names[0]; i++)
        if (!(types & names[i].type) && json_array_append_new(others, json_string(names[i].name)))
            *rc = nk__schema_no_memory(c);
    if (!*rc && json_array_size(others))
        return json_pack("{s:o}", "type", others);
    json_decref(others);
    return NULL;
}

/* The opposite of a limit, as another limit of values of that type. */
static json_t *not_within(const char *key, const json_t *v)
{
    static const struct {
        const char *key, *opposite, *type;
        int step; /* for counts */
    } limits[] = {
        { "minimum", "exclusiveMaximum", "number", 0 },
        { "maximum", "exclusiveMinimum", "number", 0 },
        { "exclusiveMinimum", "maximum", "number", 0 },
        { "exclusiveMaximum", "minimum", "number", 0 },
        { "minLength", "maxLength", "string", -1 },
        { "maxLength", "minLength", "string", 1 },
        { "minItems", "maxItems", "array", -1 },
        { "maxItems", "minItems", "array", 1 },
        { "minProperties", "maxProperties", "object", -1 },
        { "maxProperties", "minProperties", "object", 1 },
    };

    for (size_t i = 0; json_is_number(v) && i < sizeof limits / sizeof limits[0]; i++) {
        json_int_t n = (json_int_t)json_number_value(v) + limits[i].step;

        if (strcmp(key, limits[i].key) != 0)
            continue;
        if (!limits[i].step)
            return json_pack("{s:s, s:o}", "type", limits[i].type, limits[i].opposite, shared(v));
        if (n >= 0)
            return json_pack("{s:s, s:I}", "type", limits[i].type, limits[i].opposite, n);
    }
    return NULL;
}

/* Adds to the alternatives those of one keyword. *known: it says something of values. */
static int negate_keyword(struct nk__conversion *c, const json_t *schema, const char *key,
                          const json_t *v, json_t *either, bool *known)
{
    json_t *one = NULL, *element;
    const json_t *target;
    const char *name;
    size_t i;
    int rc = 0;

    *known = true;
    if (!strcmp(key, "$ref")) {
        rc = nk__schema_resolve(c, v, &target);
        one = rc ? NULL : negation_of(target);
    } else if (!strcmp(key, "type")) {
        one = not_of_type(c, schema, &rc);
    } else if (!strcmp(key, "const") || !strcmp(key, "enum")) {
        one = json_pack("{s:{s:o}}", "not", key, shared(v));
    } else if (!strcmp(key, "pattern")) {
        one = json_pack("{s:s, s:{s:o}}", "type", "string", "not", key, shared(v));
    } else if (!strcmp(key, "not")) {
        one = shared(v);
    } else if (!strcmp(key, "anyOf")) {
        json_t *all = json_array();

        json_array_foreach(v, i, element)
        {
            json_array_append_new(all, negation_of(element));
        }
        one = json_pack("{s:o}", "allOf", all);
    } else if (!strcmp(key, "allOf")) {
        json_array_foreach(v, i, element)
        {
            json_array_append_new(either, negation_of(element));
        }
    } else if (!strcmp(key, "required")) {
        json_array_foreach(v, i, element)
        {
            if (json_is_string(element))
                json_array_append_new(either, absent(json_string_value(element)));
        }
    } else if (!strcmp(key, "properties")) {
        json_object_foreach((json_t *)(uintptr_t)v, name, element)
        {
            json_array_append_new(either,
                                  json_pack("{s:s, s:[s], s:{s:o}}", "type", "object", "required",
                                            name, "properties", name, negation_of(element)));
        }
    } else {
        one = not_within(key, v);
        *known = one || !strcmp(key, "oneOf") || !strcmp(key, "if");
        for (const char *const *k =
                 (const char *const[]){
                     "patternProperties", "propertyNames", "additionalProperties", "minProperties",
                     "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
                     "unevaluatedProperties", "items", "additionalItems", "prefixItems",
                     "uniqueItems", "multipleOf", "format", "contains", NULL };
             *k; k++)
            *known |= !strcmp(key, *k);
    }
    if (one && json_array_append_new(either, one))
        rc = nk__schema_no_memory(c);
    return rc;
}

int nk__logic_not(struct nk__conversion *c, const json_t *schema, const json_t **made)
{
    static const char what[] = "not";
    const json_t *negated = json_object_get(schema, "not");
    json_t *either, *v;
    const char *key;
    bool any = false;
    int rc = 0;

    *made = find_made(c, schema, what);
    if (*made)
        return 0;
    if (json_is_boolean(negated))
        return keep_made(c, schema, what, json_boolean(json_is_false(negated)), made);
    if (!json_is_object(negated))
        return nk__schema_refuse(c, "not", "a schema is wanted");
    rc = nk__schema_spend_value(c, negated);
    if (rc)
        return rc;
    either = json_array();
    json_object_foreach((json_t *)(uintptr_t)negated, key, v)
    {
        bool known = false;

        if (!rc)
            rc = negate_keyword(c, negated, key, v, either, &known);
        any |= known;
    }
    if (!rc && any && !json_array_size(either))
        rc = nk__schema_nothing(c, "not", "a schema like this is not supported in it");
    if (rc) {
        json_decref(either);
        return rc;
    }
    if (any)
        return keep_made(c, schema, what, json_pack("{s:o}", "anyOf", either), made);
    json_decref(either); /* of {}: nothing */
    return keep_made(c, schema, what, json_false(), made);
}

/* ---- parts that exclude each other ---- */

/* A schema and what is joined to it, without alternatives. */
struct gathered {
    const json_t *schemas[GATHERED_MAX];
    size_t n;
};

static int gather(struct nk__conversion *c, const json_t *schema, struct gathered *g)
{
    const json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf"),
                 *target;
    json_t *part;
    size_t i;
    int rc = nk__schema_spend(c, 8 + g->n);

    for (i = 0; i < g->n; i++)
        if (g->schemas[i] == schema)
            return rc;
    if (rc || !json_is_object(schema) || g->n == GATHERED_MAX)
        return rc;
    g->schemas[g->n++] = schema;
    if (ref) {
        rc = nk__schema_resolve(c, ref, &target);
        rc = rc ? rc : gather(c, target, g);
    }
    json_array_foreach(all, i, part)
    {
        rc = rc ? rc : gather(c, part, g);
    }
    return rc;
}

static const json_t *values_of(const json_t *schema, size_t i, bool *end)
{
    const json_t *constant = json_object_get(schema, "const"),
                 *values = json_object_get(schema, "enum");

    *end = constant ? i > 0 : i >= json_array_size(values);
    return *end ? NULL : constant ? constant : json_array_get(values, i);
}

static int gathered_types(struct nk__conversion *c, const struct gathered *g, int *types)
{
    int rc = 0;

    *types = NK__SCHEMA_ANY;
    for (size_t i = 0; !rc && i < g->n; i++) {
        int own, of_values = 0;
        bool end = false;

        rc = nk__schema_get_type(c, g->schemas[i], &own);
        *types &= own;
        for (size_t k = 0; !rc && !end; k++) {
            const json_t *v = values_of(g->schemas[i], k, &end);

            rc = nk__schema_spend(c, 1);
            if (end && k)
                *types &= of_values;
            of_values |= end ? 0 : nk__schema_type_of(v);
        }
    }
    return rc;
}

/* The first list of values; their schema, or NULL. */
static const json_t *gathered_values(const struct gathered *g)
{
    for (size_t i = 0; i < g->n; i++)
        if (json_object_get(g->schemas[i], "const") ||
            json_is_array(json_object_get(g->schemas[i], "enum")))
            return g->schemas[i];
    return NULL;
}

static bool lists(const json_t *names, const char *name)
{
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *one = json_string_value(json_array_get(names, i));

        if (one && !strcmp(one, name))
            return true;
    }
    return false;
}

static bool gathered_requires(const struct gathered *g, const char *name)
{
    for (size_t i = 0; i < g->n; i++)
        if (lists(json_object_get(g->schemas[i], "required"), name))
            return true;
    return false;
}

static const json_t *gathered_property(const struct gathered *g, const char *name)
{
    for (size_t i = 0; i < g->n; i++) {
        const json_t *p = json_object_get(json_object_get(g->schemas[i], "properties"), name);

        if (p)
            return p;
    }
    return NULL;
}

/* Whether no object of the one can be of the other, which has no such property. */
static bool gathered_shuts_out(const struct gathered *closed, const struct gathered *other)
{
    for (size_t i = 0; i < closed->n; i++) {
        const json_t *s = closed->schemas[i];

        if (!json_is_false(json_object_get(s, "additionalProperties")) ||
            json_object_get(s, "patternProperties"))
            continue;
        for (size_t k = 0; k < other->n; k++) {
            const json_t *required = json_object_get(other->schemas[k], "required");

            for (size_t r = 0; r < json_array_size(required); r++) {
                const char *name = json_string_value(json_array_get(required, r));

                if (name && !json_object_get(json_object_get(s, "properties"), name))
                    return true;
            }
        }
    }
    return false;
}

static int are_disjoint(struct nk__conversion *c, const json_t *a, const json_t *b, int depth,
                        bool *yes);

/* Two objects: by a property that is there and cannot be both. */
static int are_disjoint_objects(struct nk__conversion *c, const struct gathered *a,
                                const struct gathered *b, int depth, bool *yes)
{
    int rc = 0;

    *yes = gathered_shuts_out(a, b) || gathered_shuts_out(b, a);
    for (size_t i = 0; !*yes && i < a->n; i++) {
        const char *name;
        json_t *p;

        json_object_foreach(json_object_get(a->schemas[i], "properties"), name, p)
        {
            const json_t *other = gathered_property(b, name);

            rc = rc ? rc : nk__schema_spend(c, 8);
            if (!rc && !*yes && other && depth < DISJOINT_DEPTH_MAX &&
                (gathered_requires(a, name) || gathered_requires(b, name)))
                rc = are_disjoint(c, p, other, depth + 1, yes);
        }
    }
    return rc;
}

static double limit(const struct gathered *g, const char *key, double none)
{
    for (size_t i = 0; i < g->n; i++) {
        const json_t *v = json_object_get(g->schemas[i], key);

        if (json_is_number(v))
            return json_number_value(v);
    }
    return none;
}

static bool ranges_meet(const struct gathered *a, const struct gathered *b, const char *min,
                        const char *max)
{
    return limit(a, min, -1e300) <= limit(b, max, 1e300) &&
           limit(b, min, -1e300) <= limit(a, max, 1e300);
}

/* Whether no value keeps to both. *yes false: it cannot be seen. */
static int are_disjoint(struct nk__conversion *c, const json_t *a, const json_t *b, int depth,
                        bool *yes)
{
    struct gathered g = { .n = 0 }, h = { .n = 0 };
    const json_t *values;
    int types, other, rc = gather(c, a, &g);

    *yes = json_is_false(a) || json_is_false(b);
    if (!rc)
        rc = gather(c, b, &h);
    if (!rc)
        rc = gathered_types(c, &g, &types);
    if (!rc)
        rc = gathered_types(c, &h, &other);
    if (rc || *yes)
        return rc;
    types &= other;
    *yes = !types;
    values = gathered_values(&g);
    if (!*yes && values && gathered_values(&h)) {
        bool end = false, meet = false;

        for (size_t i = 0; !rc && !end && !meet; i++) {
            const json_t *v = values_of(values, i, &end);

            if (!end) {
                bool keeps = true;

                /* Only the other list is looked at: its own schema may be large. */
                const json_t *list = gathered_values(&h), *w;
                bool ends = false, found = false;

                for (size_t k = 0; !rc && !ends && !found; k++) {
                    w = values_of(list, k, &ends);
                    rc = nk__schema_spend_value(c, v);
                    found = !ends && json_is_number(v) && json_is_number(w)
                                ? json_number_value(v) == json_number_value(w)
                                : !ends && json_equal(v, w);
                }
                keeps = found;
                meet |= keeps;
            }
        }
        *yes = !meet;
    }
    if (rc || *yes)
        return rc;
    if (types == NK__SCHEMA_OBJECT)
        return are_disjoint_objects(c, &g, &h, depth, yes);
    if (types == NK__SCHEMA_STRING)
        *yes = !ranges_meet(&g, &h, "minLength", "maxLength");
    else if (types == NK__SCHEMA_ARRAY)
        *yes = !ranges_meet(&g, &h, "minItems", "maxItems");
    else if (!(types & ~NK__SCHEMA_NUMBER))
        *yes = !ranges_meet(&g, &h, "minimum", "maximum");
    return 0;
}

/* What keeps a value of mine from being one of other's as well: NULL and 0: nothing is needed. */
static int keep_away(struct nk__conversion *c, const json_t *mine, const json_t *other,
                     json_t **condition)
{
    struct gathered g = { .n = 0 }, h = { .n = 0 };
    bool disjoint;
    int types = 0, rc = are_disjoint(c, mine, other, 0, &disjoint);

    *condition = NULL;
    if (rc || disjoint)
        return rc;
    rc = gather(c, mine, &g);
    if (!rc)
        rc = gather(c, other, &h);
    if (!rc)
        rc = gathered_types(c, &g, &types);
    /* First a property that this one does not speak of, then one that it does not require. */
    for (int pass = 0; !rc && pass < 2; pass++)
        for (size_t i = 0; i < h.n && types; i++) {
            const json_t *required = json_object_get(h.schemas[i], "required");

            for (size_t k = 0; k < json_array_size(required); k++) {
                const char *name = json_string_value(json_array_get(required, k));

                if (!name || gathered_requires(&g, name) ||
                    (pass == 0 && gathered_property(&g, name)))
                    continue;
                *condition = absent(name);
                return *condition ? 0 : nk__schema_no_memory(c);
            }
        }
    *condition = rc ? NULL : negation_of(other);
    return rc || *condition ? rc : nk__schema_no_memory(c);
}

int nk__logic_one_of(struct nk__conversion *c, const json_t *schema, const json_t **made)
{
    static const char what[] = "oneOf";
    const json_t *parts;
    json_t *any;
    int rc = nk__schema_get_list(c, schema, what, true, &parts);

    *made = rc ? NULL : find_made(c, schema, what);
    if (rc || *made)
        return rc;
    any = json_array();
    for (size_t i = 0; !rc && i < json_array_size(parts); i++) {
        const json_t *mine = json_array_get(parts, i);
        json_t *all = json_pack("[o]", shared(mine));

        for (size_t k = 0; !rc && k < json_array_size(parts); k++) {
            json_t *condition = NULL;

            if (k != i)
                rc = keep_away(c, mine, json_array_get(parts, k), &condition);
            if (condition && json_array_append_new(all, condition))
                rc = nk__schema_no_memory(c);
        }
        if (!rc &&
            json_array_append_new(any, json_array_size(all) > 1 ? json_pack("{s:O}", "allOf", all)
                                                                : shared(mine)))
            rc = nk__schema_no_memory(c);
        json_decref(all);
    }
    if (rc) {
        json_decref(any);
        return rc;
    }
    return keep_made(c, schema, what, json_pack("{s:o}", "anyOf", any), made);
}

/* ---- conditions ---- */

int nk__logic_if(struct nk__conversion *c, const json_t *schema, const json_t **made)
{
    static const char what[] = "if";
    const json_t *condition = json_object_get(schema, "if"),
                 *then = json_object_get(schema, "then"), *other = json_object_get(schema, "else");

    *made = find_made(c, schema, what);
    if (*made || (!then && !other))
        return 0;
    return keep_made(c, schema, what,
                     json_pack("{s:[{s:[O, o]}, {s:[o, o]}]}", "anyOf", "allOf", condition,
                               then ? shared(then) : json_true(), "allOf", negation_of(condition),
                               other ? shared(other) : json_true()),
                     made);
}

int nk__logic_dependent(struct nk__conversion *c, const json_t *schema, const char *key,
                        const json_t **made)
{
    const json_t *map = json_object_get(schema, key);
    const char *name;
    json_t *v, *all;

    *made = find_made(c, map, "dependent");
    if (*made)
        return 0;
    all = json_array();
    json_object_foreach((json_t *)(uintptr_t)map, name, v)
    {
        json_t *then = json_is_array(v) ? json_pack("{s:O}", "required", v) : shared(v);

        json_array_append_new(all, json_pack("{s:[o, o]}", "anyOf", absent(name), then));
    }
    return keep_made(c, map, "dependent", json_pack("{s:o}", "allOf", all), made);
}
