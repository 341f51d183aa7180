/* What a schema may hold is looked up in one table of keywords; a keyword that is not in it is
 * refused. */
#include "text/json_schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- keywords ---- */

/* type: to which one belongs. 0: to none, it is an annotation, or looked at before types are. */
static const struct keyword {
    const char *name;
    int type;
} keywords[] = {
    { "$schema", 0 },
    { "$id", 0 },
    { "$comment", 0 },
    { "$defs", 0 },
    { "definitions", 0 },
    { "title", 0 },
    { "description", 0 },
    { "default", 0 },
    { "examples", 0 },
    { "example", 0 },
    { "deprecated", 0 },
    { "readOnly", 0 },
    { "writeOnly", 0 },
    { "discriminator", 0 }, /* OpenAPI: repeats what oneOf says */
    { "$ref", 0 },
    { "type", 0 },
    { "enum", 0 },
    { "const", 0 },
    { "anyOf", 0 },
    { "oneOf", 0 },
    { "allOf", 0 },
    { "properties", NK__SCHEMA_OBJECT },
    { "required", NK__SCHEMA_OBJECT },
    { "additionalProperties", NK__SCHEMA_OBJECT },
    { "items", NK__SCHEMA_ARRAY },
    { "prefixItems", NK__SCHEMA_ARRAY },
    { "minItems", NK__SCHEMA_ARRAY },
    { "maxItems", NK__SCHEMA_ARRAY },
    { "minLength", NK__SCHEMA_STRING },
    { "maxLength", NK__SCHEMA_STRING },
    { "pattern", NK__SCHEMA_STRING },
    { "format", NK__SCHEMA_STRING },
    { "minimum", NK__SCHEMA_NUMBER },
    { "maximum", NK__SCHEMA_NUMBER },
    { "exclusiveMinimum", NK__SCHEMA_NUMBER },
    { "exclusiveMaximum", NK__SCHEMA_NUMBER },
};

static const struct keyword *find(const char *name)
{
    for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
        if (!strcmp(keywords[i].name, name))
            return &keywords[i];
    return NULL;
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
        char what[80];

        if (find(key))
            continue;
        snprintf(what, sizeof what, "\"%.60s\" is not supported", key);
        return nk__schema_refuse(c, what, NULL);
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
        const struct keyword *k = find(key);

        types |= k ? k->type : 0;
    }
    return types;
}

bool nk__schema_has(const json_t *schema, const char *const *names)
{
    for (; *names; names++)
        if (json_object_get(schema, *names))
            return true;
    return false;
}

/* ---- counts ---- */

/* *value stays when it is not there. */
static int get_count(struct nk__conversion *c, const json_t *schema, const char *key,
                     int64_t *value)
{
    const json_t *v = json_object_get(schema, key);
    double number;

    if (!v)
        return 0;
    number = json_number_value(v);
    if (!json_is_number(v) || number < 0 || number > NK__SCHEMA_REPEAT_MAX ||
        number != floor(number))
        return nk__schema_refuse(c, key, "a whole number from 0 to 65536 is wanted");
    *value = (int64_t)number;
    return 0;
}

int nk__schema_get_range(struct nk__conversion *c, const json_t *schema, const char *min_key,
                         const char *max_key, int64_t *min, int64_t *max)
{
    int rc;

    *min = 0;
    *max = -1;
    rc = get_count(c, schema, min_key, min);
    if (!rc)
        rc = get_count(c, schema, max_key, max);
    if (!rc && *max >= 0 && *min > *max)
        rc = nk__schema_refuse(c, min_key, "larger than the maximum: nothing is valid");
    return rc;
}

/* ---- references ---- */

/* "#" or "#/a/b~1c/0". NULL when there is nothing. */
static const json_t *resolve(const json_t *root, const char *ref)
{
    const json_t *at = root;

    if (*ref++ != '#')
        return NULL;
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

int nk__schema_follow(struct nk__conversion *c, const json_t *schema, const json_t **target)
{
    static const char *const others[] = {
        "type", "enum", "const", "anyOf", "oneOf", "allOf", NULL
    };

    for (int n = 0; json_is_object(schema) && json_object_get(schema, "$ref"); n++) {
        const json_t *ref = json_object_get(schema, "$ref");
        int rc = nk__schema_check_keywords(c, schema);

        if (!rc)
            rc = nk__schema_spend(c, 1 + json_string_length(ref) / 4);
        if (rc)
            return rc;
        if (nk__schema_types(schema) || nk__schema_has(schema, others))
            return nk__schema_refuse(c, "$ref", "not together with other keywords");
        schema = json_is_string(ref) ? resolve(c->root, json_string_value(ref)) : NULL;
        if (!schema)
            return nk__schema_refuse(c, "$ref",
                                     "only \"#\" and places below it can be referred to, and this "
                                     "one is not there");
        if (n > NK__SCHEMA_DEPTH_MAX)
            return nk__schema_refuse(c, "$ref", "it leads back to itself");
    }
    *target = schema;
    return 0;
}
