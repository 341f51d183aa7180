/* What a schema may hold is looked up in one table of keywords. */
#include "text/json_schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* The definition that calls itself so, by $anchor (size bytes of name without "#") or $id. */
static int find_named(struct nk__conversion *c, const json_t *at, const char *name, int depth,
                      const json_t **found)
{
    const char *key, *id = id_of(at), *anchor = json_string_value(json_object_get(at, "$anchor"));
    json_t *value;
    size_t i;
    int rc = nk__schema_spend(c, 2 + json_object_size(at) + json_array_size(at));

    if (rc || depth > NK__SCHEMA_DEPTH_MAX)
        return rc;
    if ((id && !strcmp(id, name)) || (anchor && *name == '#' && !strcmp(anchor, name + 1))) {
        *found = at;
        return 0;
    }
    if (json_is_object(at))
        json_object_foreach((json_t *)(uintptr_t)at, key, value)
        {
            if (!rc && !*found && strcmp(key, "enum") != 0 && strcmp(key, "const") != 0)
                rc = find_named(c, value, name, depth + 1, found);
        }
    json_array_foreach(at, i, value)
    {
        if (!rc && !*found)
            rc = find_named(c, value, name, depth + 1, found);
    }
    return rc;
}

int nk__schema_resolve(struct nk__conversion *c, const json_t *ref, const json_t **target)
{
    const char *text = json_string_value(ref), *id = id_of(c->root);
    int rc = nk__schema_spend(c, 1 + json_string_length(ref) / 4);

    *target = NULL;
    if (rc)
        return rc;
    if (text && id && *text != '#' && !strncmp(text, id, strcspn(id, "#"))) {
        const char *rest = text + strcspn(id, "#");

        if (*rest == '#' || !*rest)
            text = *rest ? rest : "#";
    }
    if (text && *text == '#')
        *target = walk(c->root, text + 1);
    if (text && !*target && *text != '/' && text[strcspn(text, "/")] != '/')
        rc = find_named(c, c->root, text, 0, target);
    if (!rc && !*target)
        return nk__schema_refuse(c, "$ref",
                                 "only \"#\", places below it and names that are given there can "
                                 "be referred to, and this one is not there");
    return rc;
}
