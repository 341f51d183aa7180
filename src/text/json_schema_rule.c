#include "text/json_schema_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

int nk__schema_spend(struct nk__conversion *c, size_t n_steps)
{
    return nk_work_spend(c->work, (int64_t)n_steps, "the JSON schema", c->err);
}

int nk__schema_spend_value(struct nk__conversion *c, const json_t *v)
{
    const char *key;
    json_t *element;
    size_t i;
    int rc = nk__schema_spend(c, 1 + json_string_length(v) / 16);

    if (json_is_object(v))
        json_object_foreach((json_t *)(uintptr_t)v, key, element)
        {
            rc = rc ? rc : nk__schema_spend(c, 1 + strlen(key) / 16);
            rc = rc ? rc : nk__schema_spend_value(c, element);
        }
    json_array_foreach(v, i, element)
    {
        if (rc)
            break;
        rc = nk__schema_spend_value(c, element);
    }
    return rc;
}

int nk__schema_refuse(struct nk__conversion *c, const char *what, const char *why)
{
    return nk_fail(c->err, NK_E_INVALID, "unsupported_schema", "%s of the JSON schema: %s%s%s",
                   c->path, what, why ? ": " : "", why ? why : "");
}

int nk__schema_nothing(struct nk__conversion *c, const char *what, const char *why)
{
    if (!*c->nothing)
        snprintf(c->nothing, sizeof c->nothing, "%s of the JSON schema: %s: %s", c->path, what,
                 why);
    return NK__SCHEMA_NOTHING;
}

int nk__schema_no_memory(struct nk__conversion *c)
{
    return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory for the JSON schema");
}

size_t nk__schema_enter(struct nk__conversion *c, const char *key, const char *sub)
{
    size_t size = strlen(c->path);

    snprintf(c->path + size, sizeof c->path - size, "/%s%s%s", key, sub ? "/" : "", sub ? sub : "");
    return size;
}

size_t nk__schema_enter_element(struct nk__conversion *c, const char *key, size_t i)
{
    char sub[24];

    snprintf(sub, sizeof sub, "%zu", i);
    return nk__schema_enter(c, key, sub);
}

void nk__schema_leave(struct nk__conversion *c, size_t path_size)
{
    c->path[path_size] = '\0';
}

int nk__schema_new_rule(struct nk__conversion *c, struct nk__schema_rule *rule)
{
    if (c->n_rules >= NK__SCHEMA_RULES_MAX)
        return nk_fail(c->err, NK_E_EXHAUSTED, "too_large",
                       "the JSON schema needs more than %d rules", NK__SCHEMA_RULES_MAX);
    snprintf(rule->text, sizeof rule->text, "r%d", c->n_rules++);
    return 0;
}

int nk__schema_add_rule(struct nk__conversion *c, const struct nk__schema_rule *rule,
                        const struct nk_buf *body)
{
    int rc = nk__schema_spend(c, 1 + body->size / 16);

    return rc ? rc
              : nk_buf_addf(c->out, c->err, "%s ::= %s\n", rule->text,
                            body->size ? nk_buf_str(body) : "\"\"");
}

int nk__schema_add_literal(struct nk_buf *b, const char *text, size_t size, struct nk_error *err)
{
    int rc = nk_buf_adds(b, "\"", err);

    for (size_t i = 0; !rc && i < size; i++) {
        uint8_t byte = (uint8_t)text[i];

        if (byte == '"' || byte == '\\')
            rc = nk_buf_addf(b, err, "\\%c", byte);
        else if (byte < 0x20 || byte == 0x7F)
            rc = nk_buf_addf(b, err, "\\x%02X", byte);
        else
            rc = nk_buf_add(b, text + i, 1, err);
    }
    return rc ? rc : nk_buf_adds(b, "\" ", err);
}

static int add_json(struct nk_buf *b, const json_t *v, struct nk_error *err);

static int add_json_object(struct nk_buf *b, const json_t *v, struct nk_error *err)
{
    int rc = nk_buf_adds(b, "{", err);
    const char *key;
    json_t *element;
    bool first = true;

    json_object_foreach((json_t *)(uintptr_t)v, key, element)
    {
        json_t *k = json_string(key);

        if (!rc && !first)
            rc = nk_buf_adds(b, ", ", err);
        if (!rc)
            rc = k ? add_json(b, k, err) : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        json_decref(k);
        if (!rc)
            rc = nk_buf_adds(b, ": ", err);
        if (!rc)
            rc = add_json(b, element, err);
        first = false;
    }
    return rc ? rc : nk_buf_adds(b, "}", err);
}

static int add_json(struct nk_buf *b, const json_t *v, struct nk_error *err)
{
    char *text;
    int rc;

    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return add_json_object(b, v, err);
    case JSON_ARRAY:
        rc = nk_buf_adds(b, "[", err);
        for (size_t i = 0; !rc && i < json_array_size(v); i++) {
            if (i)
                rc = nk_buf_adds(b, ", ", err);
            if (!rc)
                rc = add_json(b, json_array_get(v, i), err);
        }
        return rc ? rc : nk_buf_adds(b, "]", err);
    case JSON_REAL:
        return nk_json_num(b, json_real_value(v), err);
    default: /* also strings: jansson escapes less than nk_json_str, and more as models do */
        text = json_dumps(v, JSON_ENCODE_ANY);
        rc = text ? nk_buf_adds(b, text, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        free(text);
        return rc;
    }
}

int nk__schema_add_value(struct nk_buf *b, const json_t *v, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    int rc = add_json(&text, v, err);

    if (!rc)
        rc = nk__schema_add_literal(b, nk_buf_str(&text), text.size, err);
    nk_buf_release(&text);
    return rc;
}

int nk__schema_add_counts(struct nk_buf *b, int64_t min, int64_t max, struct nk_error *err)
{
    if (max < 0)
        return min == 0 ? nk_buf_adds(b, "* ", err) : nk_buf_addf(b, err, "{%d,} ", (int)min);
    return nk_buf_addf(b, err, "{%d,%d} ", (int)min, (int)max);
}
