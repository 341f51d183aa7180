/* Schemas of one value, flattened: a schema's $ref, allOf and what json_schema_logic.c makes of its
 * other keywords are parts beside it. Each is there once, however often it is named, so that work
 * does not multiply; only anyOf is left for the conversion to choose from. */
#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"

static int add_below(struct nk__conversion *c, struct nk__set *set, const json_t *schema, int at);

/* Whether it leads back to itself: the one that is there is what names this one. */
static bool is_above(const struct nk__set *set, size_t part, int from)
{
    for (; from >= 0; from = set->parts[from].parent)
        if ((size_t)from == part)
            return true;
    return false;
}

int nk__set_add(struct nk__conversion *c, struct nk__set *set, const json_t *schema, int parent)
{
    int rc;

    if (json_is_true(schema))
        return 0;
    if (json_is_false(schema))
        return nk__schema_nothing(c, "false", "nothing is valid");
    if (!json_is_object(schema))
        return nk__schema_refuse(c, "a schema must be an object", NULL);
    rc = nk__schema_spend(c, 1 + set->n / 4);
    for (size_t i = 0; !rc && i < set->n; i++)
        if (set->parts[i].schema == schema)
            return is_above(set, i, parent)
                       ? nk__schema_nothing(c, "$ref", "it leads back to itself")
                       : 0;
    if (!rc)
        rc = nk__schema_check_keywords(c, schema);
    if (!rc)
        rc = nk_array_grow(set->parts, set->capacity, set->n + 1, NK__SCHEMA_SET_MAX, c->err);
    if (rc)
        return rc;
    if (++c->nested > NK__SCHEMA_NESTED_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large", "the JSON schema is nested too deeply");
    set->parts[set->n++] = (struct nk__part){ .schema = schema, .parent = parent };
    rc = add_below(c, set, schema, (int)set->n - 1);
    c->nested--;
    return rc;
}

static int add_below(struct nk__conversion *c, struct nk__set *set, const json_t *schema, int at)
{
    static const char *const dependent[] = { "dependentRequired", "dependentSchemas",
                                             "dependencies" };
    const json_t *ref = json_object_get(schema, "$ref"), *negated = json_object_get(schema, "not"),
                 *parts, *made;
    size_t path;
    int rc = 0;

    if (ref) {
        rc = nk__schema_resolve(c, ref, &made);
        if (!rc)
            rc = nk__set_add(c, set, made, at);
    }
    if (!rc)
        rc = nk__schema_get_list(c, schema, "allOf", true, &parts);
    for (size_t i = 0; !rc && i < json_array_size(parts); i++) {
        path = nk__schema_enter_element(c, "allOf", i);
        rc = nk__set_add(c, set, json_array_get(parts, i), at);
        nk__schema_leave(c, path);
    }
    if (!rc && json_object_get(schema, "oneOf")) {
        rc = nk__logic_one_of(c, schema, &made);
        if (!rc)
            rc = nk__set_add(c, set, made, at);
    }
    if (!rc && json_object_get(schema, "if")) {
        rc = nk__logic_if(c, schema, &made);
        if (!rc && made)
            rc = nk__set_add(c, set, made, at);
    }
    for (size_t i = 0; !rc && i < sizeof dependent / sizeof dependent[0]; i++)
        if (json_object_size(json_object_get(schema, dependent[i]))) {
            rc = nk__logic_dependent(c, schema, dependent[i], &made);
            if (!rc)
                rc = nk__set_add(c, set, made, at);
        }
    if (!rc && negated && !nk__logic_is_plain_not(negated)) {
        rc = nk__logic_not(c, schema, &made);
        if (!rc)
            rc = nk__set_add(c, set, made, at);
    }
    return rc;
}

int nk__set_copy(struct nk__conversion *c, struct nk__set *to, const struct nk__set *from)
{
    int rc = nk_array_grow(to->parts, to->capacity, from->n + 1, NK__SCHEMA_SET_MAX + 1, c->err);

    if (rc)
        return rc;
    if (from->n)
        memcpy(to->parts, from->parts, from->n * sizeof *from->parts);
    to->n = from->n;
    return nk__schema_spend(c, 1 + from->n / 4);
}

void nk__set_release(struct nk__set *set)
{
    free(set->parts);
    *set = (struct nk__set){ 0 };
}

/* Those that the alternatives which are still to be chosen from leave. */
int nk__set_types(struct nk__conversion *c, const struct nk__set *set, int *types)
{
    int rc = 0;

    *types = NK__SCHEMA_ANY;
    for (size_t i = 0; !rc && i < set->n; i++) {
        const json_t *schema = set->parts[i].schema;
        const json_t *negated = json_object_get(schema, "not");
        int own;

        rc = nk__schema_get_type(c, schema, &own);
        *types &= own;
        if (negated && nk__logic_is_plain_not(negated) && json_object_get(negated, "required"))
            *types &= NK__SCHEMA_OBJECT;
        if (negated && nk__logic_is_plain_not(negated) && json_object_get(negated, "pattern"))
            *types &= NK__SCHEMA_STRING;
    }
    return rc;
}
