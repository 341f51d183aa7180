/* What a schema may hold is looked up in one table of keywords. */
#include "text/json_schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"

/* ---- keywords ---- */

/* Keywords that say something of a value; what is not here is none, or an annotation. */
static const struct keyword {
    const char *name;
    int type; /* to which it belongs; 0: to none of them */
} keywords[] = {
    { "properties", NK__SCHEMA_OBJECT },
    { "patternProperties", NK__SCHEMA_OBJECT },
    { "propertyNames", NK__SCHEMA_OBJECT },
    { "required", NK__SCHEMA_OBJECT },
    { "additionalProperties", NK__SCHEMA_OBJECT },
    { "minProperties", NK__SCHEMA_OBJECT },
    { "maxProperties", NK__SCHEMA_OBJECT },
    { "dependentRequired", NK__SCHEMA_OBJECT },
    { "dependentSchemas", NK__SCHEMA_OBJECT },
    { "dependencies", NK__SCHEMA_OBJECT },
    { "unevaluatedProperties", NK__SCHEMA_OBJECT },
    { "items", NK__SCHEMA_ARRAY },
    { "additionalItems", NK__SCHEMA_ARRAY },
    { "prefixItems", NK__SCHEMA_ARRAY },
    { "minItems", NK__SCHEMA_ARRAY },
    { "maxItems", NK__SCHEMA_ARRAY },
    { "uniqueItems", NK__SCHEMA_ARRAY },
    { "minLength", NK__SCHEMA_STRING },
    { "maxLength", NK__SCHEMA_STRING },
    { "pattern", NK__SCHEMA_STRING },
    { "format", NK__SCHEMA_STRING },
    { "contentEncoding", NK__SCHEMA_STRING },
    { "minimum", NK__SCHEMA_NUMBER },
    { "maximum", NK__SCHEMA_NUMBER },
    { "exclusiveMinimum", NK__SCHEMA_NUMBER },
    { "exclusiveMaximum", NK__SCHEMA_NUMBER },
    { "multipleOf", NK__SCHEMA_NUMBER },
};

static const char *const unsupported[] = {
    "contains",      "minContains", "maxContains", "unevaluatedItems", "$dynamicRef",
    "$recursiveRef", "extends",     "disallow",    "divisibleBy",      NULL,
};

static bool is_map(const char *key)
{
    return !strcmp(key, "properties") || !strcmp(key, "patternProperties") ||
           !strcmp(key, "dependentSchemas") || !strcmp(key, "dependentRequired") ||
           !strcmp(key, "dependencies");
}

int nk__schema_check_keywords(struct nk__conversion *c, const json_t *schema)
{
    const char *key;
    json_t *value;
    int rc = nk__schema_spend(c, 8 + 8 * json_object_size(schema));

    if (rc)
        return rc;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        for (size_t i = 0; unsupported[i]; i++)
            if (!strcmp(key, unsupported[i])) {
                char what[80];

                snprintf(what, sizeof what, "\"%.60s\" is not supported", key);
                return nk__schema_refuse(c, what, NULL);
            }
        if (is_map(key) && !json_is_object(value))
            return nk__schema_refuse(c, key, "an object is wanted");
        if (!strcmp(key, "unevaluatedProperties") && !json_is_boolean(value))
            return nk__schema_refuse(c, key, "only true and false are supported");
    }
    return 0;
}

int nk__schema_types(const json_t *schema)
{
    const char *key;
    json_t *value;
    int types = 0;

    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
            if (!strcmp(keywords[i].name, key))
                types |= keywords[i].type;
    }
    return types;
}

static int type_named(const json_t *name)
{
    static const struct {
        const char *name;
        int type;
    } types[] = {
        { "null", NK__SCHEMA_NULL },       { "boolean", NK__SCHEMA_BOOLEAN },
        { "object", NK__SCHEMA_OBJECT },   { "array", NK__SCHEMA_ARRAY },
        { "string", NK__SCHEMA_STRING },   { "number", NK__SCHEMA_NUMBER },
        { "integer", NK__SCHEMA_INTEGER }, { "any", NK__SCHEMA_ANY },
    };

    for (size_t i = 0; json_is_string(name) && i < sizeof types / sizeof types[0]; i++)
        if (!strcmp(types[i].name, json_string_value(name)))
            return types[i].type;
    return 0;
}

int nk__schema_get_type(struct nk__conversion *c, const json_t *schema, int *types)
{
    const json_t *type = json_object_get(schema, "type");
    int rc;

    *types = type ? 0 : NK__SCHEMA_ANY;
    if (!type)
        return 0;
    if (!json_is_array(type)) {
        *types = type_named(type);
    } else {
        rc = nk__schema_spend(c, json_array_size(type));
        for (size_t i = 0; !rc && i < json_array_size(type); i++) {
            int one = type_named(json_array_get(type, i));

            *types = one ? *types | one : 0;
            if (!one)
                break;
        }
        if (rc)
            return rc;
    }
    if (!*types)
        return nk__schema_refuse(c, "type",
                                 "known are object, array, string, number, integer, boolean and "
                                 "null, or a list of them");
    if (json_is_true(json_object_get(schema, "nullable")))
        *types |= NK__SCHEMA_NULL;
    return 0;
}

int nk__schema_type_of(const json_t *v)
{
    double number;

    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return NK__SCHEMA_OBJECT;
    case JSON_ARRAY:
        return NK__SCHEMA_ARRAY;
    case JSON_STRING:
        return NK__SCHEMA_STRING;
    case JSON_INTEGER:
        return NK__SCHEMA_INTEGER;
    case JSON_REAL:
        number = json_real_value(v);
        return number == floor(number) ? NK__SCHEMA_INTEGER : NK__SCHEMA_FRACTION;
    case JSON_TRUE:
    case JSON_FALSE:
        return NK__SCHEMA_BOOLEAN;
    case JSON_NULL:
        break;
    }
    return NK__SCHEMA_NULL;
}

/* ---- counts and lists ---- */

static int get_count(struct nk__conversion *c, const json_t *schema, const char *key,
                     int64_t *value)
{
    const json_t *v = json_object_get(schema, key);
    double number = json_number_value(v);

    *value = -1;
    if (!v)
        return 0;
    if (!json_is_number(v) || number < 0 || number != floor(number))
        return nk__schema_refuse(c, key, "a whole number from 0 is wanted");
    *value = number > 1e9 ? 1000000000 : (int64_t)number;
    return 0;
}

int nk__schema_get_range(struct nk__conversion *c, const json_t *schema, const char *min_key,
                         const char *max_key, int64_t *min, int64_t *max)
{
    int64_t low, high;
    int rc = get_count(c, schema, min_key, &low);

    if (!rc)
        rc = get_count(c, schema, max_key, &high);
    if (rc)
        return rc;
    if (low > *min)
        *min = low;
    if (high >= 0 && (*max < 0 || high < *max))
        *max = high;
    if (*min > NK__SCHEMA_REPEAT_MAX)
        return nk__schema_refuse(c, min_key, "at most 65536 is supported");
    if (*max > NK__SCHEMA_REPEAT_MAX) /* fewer are as valid */
        *max = NK__SCHEMA_REPEAT_MAX;
    return *max >= 0 && *min > *max
               ? nk__schema_nothing(c, min_key, "larger than the maximum: nothing is valid")
               : 0;
}

int nk__schema_get_list(struct nk__conversion *c, const json_t *schema, const char *key, bool some,
                        const json_t **list)
{
    *list = json_object_get(schema, key);
    if (*list && (!json_is_array(*list) || (some && !json_array_size(*list))))
        return nk__schema_refuse(c, key, "a list is wanted");
    return 0;
}

/* ---- references ---- */

/* "" or "/a/b~1c/0". NULL when there is nothing. */
static const json_t *walk(const json_t *at, const char *ref)
{
    while (*ref && at) {
        char step[256];
        size_t n = 0;

        if (*ref++ != '/')
            return NULL;
        for (; *ref && *ref != '/'; ref++) {
            unsigned code;

            if (n + 1 >= sizeof step)
                return NULL;
            if (*ref == '~' && (ref[1] == '0' || ref[1] == '1')) {
                step[n++] = *++ref == '0' ? '~' : '/';
            } else if (*ref == '%' && sscanf(ref + 1, "%2x", &code) == 1 && ref[1] && ref[2]) {
                step[n++] = (char)code;
                ref += 2;
            } else {
                step[n++] = *ref;
            }
        }
        step[n] = '\0';
        at = json_is_array(at) ? json_array_get(at, (size_t)strtoul(step, NULL, 10))
                               : json_object_get(at, step);
    }
    return at;
}

static const char *id_of(const json_t *schema)
{
    const char *id = json_string_value(json_object_get(schema, "$id"));

    return id ? id : json_string_value(json_object_get(schema, "id"));
}

static bool is_resource(const json_t *schema)
{
    const char *id = json_string_value(json_object_get(schema, "$id"));

    return id && *id != '#';
}

/* Where a "$ref" stands decides what "#" means in it: the innermost schema around it that has a
 * "$id" of its own. Found once for all of them. */
static int find_refs(struct nk__conversion *c, const json_t *at, const json_t *resource, int depth)
{
    const json_t *ref = json_object_get(at, "$ref");
    const char *key;
    json_t *value;
    size_t i;
    int rc = nk__schema_spend(c, 1 + json_object_size(at) + json_array_size(at));

    if (rc || depth > NK__SCHEMA_NESTED_MAX)
        return rc;
    if (depth && is_resource(at)) {
        resource = at;
        c->has_resources = true;
    }
    if (json_is_string(ref)) {
        rc = nk_array_grow(c->refs, c->refs_capacity, c->n_refs + 1, NK__SCHEMA_PARTS_MAX, c->err);
        if (rc)
            return rc;
        c->refs[c->n_refs++] = (struct nk__ref){ ref, resource };
    }
    if (json_is_object(at))
        json_object_foreach((json_t *)(uintptr_t)at, key, value)
        {
            rc = rc ? rc : find_refs(c, value, resource, depth + 1);
        }
    json_array_foreach(at, i, value)
    {
        rc = rc ? rc : find_refs(c, value, resource, depth + 1);
    }
    return rc;
}

static int compare_refs(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct nk__ref *)a)->ref,
              y = (uintptr_t)((const struct nk__ref *)b)->ref;

    return x < y ? -1 : x > y;
}

/* NULL: it is not known, as the reference stands too deep. */
static int resource_of(struct nk__conversion *c, const json_t *ref, const json_t **resource)
{
    struct nk__ref wanted = { ref, NULL }, *found;
    int rc = 0;

    if (!c->n_refs) {
        rc = find_refs(c, c->root, c->root, 0);
        if (!rc && c->n_refs)
            qsort(c->refs, c->n_refs, sizeof *c->refs, compare_refs);
    }
    *resource = c->root;
    if (rc || !c->has_resources)
        return rc;
    found = bsearch(&wanted, c->refs, c->n_refs, sizeof *c->refs, compare_refs);
    *resource = found ? found->resource : NULL;
    return 0;
}

/* Whether an $id is this one; an empty fragment at its end says nothing. */
static bool is_id(const char *id, const char *name, size_t size)
{
    return id && !strncmp(id, name, size) && (!id[size] || !strcmp(id + size, "#"));
}

/* The definition that calls itself so, by $anchor (size bytes of name with "#") or $id. */
static int find_named(struct nk__conversion *c, const json_t *at, const char *name, size_t size,
                      int depth, const json_t **found)
{
    const char *key, *id = id_of(at), *anchor = json_string_value(json_object_get(at, "$anchor"));
    json_t *value;
    size_t i;
    int rc = nk__schema_spend(c, 2 + json_object_size(at) + json_array_size(at));

    if (rc || depth > NK__SCHEMA_DEPTH_MAX || (depth && *name == '#' && is_resource(at)))
        return rc; /* "#foo" within another one is another */
    if (is_id(id, name, size) || (anchor && *name == '#' && !strcmp(anchor, name + 1))) {
        *found = at;
        return 0;
    }
    if (json_is_object(at))
        json_object_foreach((json_t *)(uintptr_t)at, key, value)
        {
            if (!rc && !*found && strcmp(key, "enum") != 0 && strcmp(key, "const") != 0)
                rc = find_named(c, value, name, size, depth + 1, found);
        }
    json_array_foreach(at, i, value)
    {
        if (!rc && !*found)
            rc = find_named(c, value, name, size, depth + 1, found);
    }
    return rc;
}

int nk__schema_resolve(struct nk__conversion *c, const json_t *ref, const json_t **target)
{
    const char *text = json_string_value(ref);
    const json_t *resource = NULL;
    size_t size = text ? strcspn(text, "#") : 0;
    int rc = nk__schema_spend(c, 1 + json_string_length(ref) / 4);

    *target = NULL;
    if (!rc && text)
        rc = resource_of(c, ref, &resource);
    if (rc)
        return rc;
    if (resource && size) {
        const json_t *named = NULL;

        rc = is_id(id_of(c->root), text, size) ? 0 : find_named(c, c->root, text, size, 0, &named);
        resource = is_id(id_of(c->root), text, size) ? c->root : named;
    }
    if (!rc && resource) {
        text += size;
        *target = walk(resource, *text ? text + 1 : text);
        if (!*target && text[1] != '/' && !strchr(text, '/'))
            rc = find_named(c, resource, text, strlen(text), 0, target);
    }
    if (!rc && !*target)
        return nk__schema_refuse(c, "$ref",
                                 "only \"#\", places below it and names that are given there can "
                                 "be referred to, and this one is not there");
    return rc;
}
