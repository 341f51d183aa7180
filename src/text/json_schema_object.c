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

int nk__schema_add_other_name(struct nk__conversion *c, struct nk_buf *b, const json_t *properties)
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
    for (i = 0; i < n; i++)
        if (strlen(names[i]) > 128) {
            rc = nk__schema_refuse(c, "additionalProperties",
                                   "not together with a property whose name is longer than 128 "
                                   "bytes");
            goto out;
        }
    rc = nk_buf_adds(b, "\"\\\"\" ", c->err);
    if (!rc)
        rc = add_other_names(c, b, names, 0, n, 0);
out:
    free(names);
    return rc;
}

int nk__schema_check_required(struct nk__conversion *c, const json_t *properties,
                              const json_t *required)
{
    int rc;

    if (required && !json_is_array(required))
        return nk__schema_refuse(c, "required", "a list of names is wanted");
    rc = nk__schema_spend(c, 4 * json_array_size(required));
    if (rc)
        return rc;
    for (size_t i = 0; i < json_array_size(required); i++) {
        const json_t *name = json_array_get(required, i);

        if (!json_is_string(name) || !json_object_get(properties, json_string_value(name)))
            return nk__schema_refuse(c, "required",
                                     "it names something that is not among the properties");
    }
    return 0;
}

/* ---- members ---- */

int nk__schema_begin_members(struct nk__conversion *c, struct nk__members *m,
                             const struct nk__schema_rule *other)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    int rc = nk__schema_new_rule(c, &m->first);

    if (!rc)
        rc = nk__schema_new_rule(c, &m->more);
    if (!rc && other)
        rc = nk_buf_addf(&body, c->err, "(%s (\",\" ws %s)*)? ", other->text, other->text);
    if (!rc)
        rc = nk__schema_add_rule(c, &m->first, &body);
    nk_buf_reset(&body);
    if (!rc && other)
        rc = nk_buf_addf(&body, c->err, "(\",\" ws %s)* ", other->text);
    if (!rc)
        rc = nk__schema_add_rule(c, &m->more, &body);
    nk_buf_release(&body);
    return rc;
}

int nk__schema_add_member(struct nk__conversion *c, struct nk__members *m, const char *name,
                          const struct nk__schema_rule *value, bool required)
{
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk__schema_rule pair, first, more;
    json_t *key = json_string(name);
    int rc = key ? 0 : nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");

    if (!rc)
        rc = nk__schema_new_rule(c, &pair);
    if (!rc)
        rc = nk__schema_new_rule(c, &first);
    if (!rc)
        rc = nk__schema_new_rule(c, &more);
    if (!rc)
        rc = nk__schema_add_value(&body, key, c->err);
    if (!rc)
        rc = nk_buf_addf(&body, c->err, "\":\" ws %s ", value->text);
    if (!rc)
        rc = nk__schema_add_rule(c, &pair, &body);
    nk_buf_reset(&body);
    if (!rc)
        rc = required ? nk_buf_addf(&body, c->err, "%s %s ", pair.text, m->more.text)
                      : nk_buf_addf(&body, c->err, "%s %s | %s ", pair.text, m->more.text,
                                    m->first.text);
    if (!rc)
        rc = nk__schema_add_rule(c, &first, &body);
    nk_buf_reset(&body);
    if (!rc)
        rc = nk_buf_addf(&body, c->err, required ? "\",\" ws %s %s " : "(\",\" ws %s)? %s ",
                         pair.text, m->more.text);
    if (!rc)
        rc = nk__schema_add_rule(c, &more, &body);
    if (!rc)
        *m = (struct nk__members){ first, more };
    json_decref(key);
    nk_buf_release(&body);
    return rc;
}

int nk__schema_end_members(struct nk__conversion *c, struct nk_buf *b, const struct nk__members *m)
{
    return nk_buf_addf(b, c->err, "\"{\" ws %s ws \"}\" ", m->first.text);
}

/* ---- joined objects ---- */

/* Adds an object's own keywords to those that were collected. */
static int join_one(struct nk__conversion *c, const json_t *schema, json_t *merged)
{
    static const char *const others[] = { "enum", "const", "anyOf", "oneOf", NULL };
    json_t *properties = json_object_get(merged, "properties"),
           *required = json_object_get(merged, "required"),
           *more = json_object_get(schema, "required");
    const json_t *type = json_object_get(schema, "type"),
                 *additional = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *value;
    int rc;

    if (!json_is_object(schema) ||
        (type && (!json_is_string(type) || strcmp(json_string_value(type), "object") != 0)) ||
        nk__schema_types(schema) & ~NK__SCHEMA_OBJECT || nk__schema_has(schema, others))
        return nk__schema_refuse(c, "allOf", "only objects can be joined");
    rc = nk__schema_spend(c, 8 * json_object_size(json_object_get(schema, "properties")) +
                                 4 * json_array_size(more));
    if (rc)
        return rc;
    json_object_foreach(json_object_get(schema, "properties"), key, value)
    {
        const json_t *other = json_object_get(properties, key);

        rc = other ? nk__schema_spend_value(c, value) : 0; /* they are compared */
        if (rc)
            return rc;
        if (other && !json_equal(other, value))
            return nk__schema_refuse(c, "allOf", "a property is described twice, differently");
        if (json_object_set(properties, key, value))
            return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    for (size_t i = 0; i < json_array_size(more); i++)
        if (json_array_append(required, json_array_get(more, i)))
            return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (additional && !json_is_boolean(additional))
        return nk__schema_refuse(c, "allOf",
                                 "additionalProperties must be true or false in what is joined");
    /* false of one forbids; true counts only where none does */
    if (additional && !json_is_false(json_object_get(merged, "additionalProperties")) &&
        json_object_set(merged, "additionalProperties", (json_t *)(uintptr_t)additional))
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    return 0;
}

int nk__schema_join(struct nk__conversion *c, const json_t *schema, json_t *merged)
{
    const json_t *parts = json_object_get(schema, "allOf");
    int rc = 0;

    if (++c->depth > NK__SCHEMA_DEPTH_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large", "the JSON schema is nested too deeply");
    rc = nk__schema_check_keywords(c, schema);
    if (!rc)
        rc = join_one(c, schema, merged);
    for (size_t i = 0; !rc && i < json_array_size(parts); i++) {
        const json_t *target = NULL;

        rc = nk__schema_follow(c, json_array_get(parts, i), &target);
        if (!rc)
            rc = json_is_object(target)
                     ? nk__schema_join(c, target, merged)
                     : nk__schema_refuse(c, "allOf", "only objects can be joined");
    }
    c->depth--;
    return rc;
}
