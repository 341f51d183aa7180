#include "gateway/tool_call.h"

#include <jansson.h>
#include <string.h>

enum { WORD_BYTES_MAX = 1 << 20, HELD_BYTES_MAX = 4 << 20 };

void nk__tool_call_init(struct nk_tool_call *c, nk_output_sink *sink, void *user)
{
    *c = (struct nk_tool_call){ .at = CALL_START, .sink = sink, .user = user };
    nk_buf_init(&c->word, WORD_BYTES_MAX);
    nk_buf_init(&c->held, HELD_BYTES_MAX);
}

void nk__tool_call_release(struct nk_tool_call *c)
{
    nk_buf_release(&c->word);
    nk_buf_release(&c->held);
}

static int announce(struct nk_tool_call *c, struct nk_error *err)
{
    c->announced = true;
    return c->sink(c->user, NK_OUTPUT_TOOL, c->name, strlen(c->name), err);
}

int nk__tool_call_named(struct nk_tool_call *c, const char *name, size_t size, struct nk_error *err)
{
    if (!size || size >= sizeof c->name || memchr(name, '\0', size))
        return nk_fail(err, NK_E_INVALID, "bad_name", "a function's name of %zu bytes", size);
    memcpy(c->name, name, size);
    c->name[size] = '\0';
    c->named = true;
    c->at = CALL_VALUE;
    c->value = VALUE_ARGUMENTS;
    return 0;
}

int nk__tool_call_flush(struct nk_tool_call *c, struct nk_error *err)
{
    int rc;

    if (!c->announced || !c->held.size)
        return 0;
    rc = c->sink(c->user, NK_OUTPUT_ARGUMENTS, c->held.data, c->held.size, err);
    nk_buf_reset(&c->held);
    return rc;
}

/* The string in c->word without its quotes and escapes; NULL: it is none. */
static json_t *word(struct nk_tool_call *c)
{
    json_t *s = json_loadb(nk_buf_str(&c->word), c->word.size, JSON_DECODE_ANY, NULL);

    nk_buf_reset(&c->word);
    if (s && !json_is_string(s)) {
        json_decref(s);
        s = NULL;
    }
    return s;
}

static bool end_key(struct nk_tool_call *c)
{
    json_t *key = word(c);
    const char *s = key ? json_string_value(key) : NULL;
    bool ok = s != NULL;

    c->value = VALUE_OTHER;
    if (ok && (!strcmp(s, "name") || (c->name_key && !strcmp(s, c->name_key)))) {
        c->value = VALUE_NAME;
        ok = !c->name[0];
    } else if (ok && (!strcmp(s, "arguments") || !strcmp(s, "parameters") ||
                      (c->args_key && !strcmp(s, c->args_key)))) {
        c->value = VALUE_ARGUMENTS;
        ok = !c->has_arguments;
    }
    json_decref(key);
    c->at = CALL_COLON;
    return ok;
}

static bool end_value(struct nk_tool_call *c, int *rc, struct nk_error *err)
{
    bool ok = true;

    if (c->value == VALUE_NAME) {
        json_t *name = word(c);

        ok = name && json_string_length(name) && json_string_length(name) < sizeof c->name;
        if (ok)
            snprintf(c->name, sizeof c->name, "%s", json_string_value(name));
        for (int i = 0; ok && c->names; i++) {
            ok = i < c->n_names;
            if (ok && !strcmp(c->names[i], c->name))
                break;
        }
        json_decref(name);
    } else if (c->value == VALUE_ARGUMENTS) {
        c->has_arguments = true;
        if (c->as_text) {
            json_t *text = word(c);

            ok = text != NULL;
            if (ok)
                *rc = nk_buf_add(&c->held, json_string_value(text), json_string_length(text), err);
            json_decref(text);
        }
    }
    nk_buf_reset(&c->word);
    c->at = CALL_NEXT;
    /* A call without arguments is only known as such at its end. */
    if (ok && !*rc && !c->announced && c->name[0] && c->has_arguments)
        *rc = announce(c, err);
    return ok;
}

static enum nk_tool_call_state end_call(struct nk_tool_call *c, int *rc, struct nk_error *err)
{
    if (!c->name[0])
        return NK_TOOL_CALL_BAD;
    if (!c->announced)
        *rc = announce(c, err);
    if (!*rc && !c->has_arguments)
        *rc = nk_buf_adds(&c->held, "{}", err);
    if (!*rc)
        *rc = nk__tool_call_flush(c, err);
    return NK_TOOL_CALL_DONE;
}

/* A byte of the value; true when it was the value's last. */
static bool value_byte(struct nk_tool_call *c, char b, int *rc, struct nk_error *err)
{
    bool keep_word = c->value == VALUE_NAME || (c->value == VALUE_ARGUMENTS && c->as_text);

    if (c->value == VALUE_ARGUMENTS && !c->as_text)
        *rc = nk_buf_add(&c->held, &b, 1, err);
    else if (keep_word)
        *rc = nk_buf_add(&c->word, &b, 1, err);
    if (c->in_string) {
        if (c->escaped)
            c->escaped = false;
        else if (b == '\\')
            c->escaped = true;
        else if (b == '"') {
            c->in_string = false;
            return c->depth == 0;
        }
        return false;
    }
    if (b == '"')
        c->in_string = true;
    else if (b == '{' || b == '[')
        c->depth++;
    else if (b == '}' || b == ']')
        return --c->depth == 0;
    return false;
}

enum nk_tool_call_state nk__tool_call_byte(struct nk_tool_call *c, char b, int *rc,
                                           struct nk_error *err)
{
    bool space = b == ' ' || b == '\n' || b == '\r' || b == '\t';

    *rc = 0;
    switch (c->at) {
    case CALL_START:
        if (b == '{')
            c->at = CALL_KEY;
        return b == '{' || space ? NK_TOOL_CALL_GOING : NK_TOOL_CALL_BAD;
    case CALL_KEY:
        if (!c->in_string) {
            if (b == '}')
                return end_call(c, rc, err);
            if (b != '"')
                return space ? NK_TOOL_CALL_GOING : NK_TOOL_CALL_BAD;
            c->in_string = true;
            *rc = nk_buf_add(&c->word, &b, 1, err);
            return NK_TOOL_CALL_GOING;
        }
        *rc = nk_buf_add(&c->word, &b, 1, err);
        if (c->escaped)
            c->escaped = false;
        else if (b == '\\')
            c->escaped = true;
        else if (b == '"') {
            c->in_string = false;
            return end_key(c) ? NK_TOOL_CALL_GOING : NK_TOOL_CALL_BAD;
        }
        return NK_TOOL_CALL_GOING;
    case CALL_COLON:
        if (b == ':')
            c->at = CALL_VALUE;
        return b == ':' || space ? NK_TOOL_CALL_GOING : NK_TOOL_CALL_BAD;
    case CALL_VALUE:
        if (space)
            return NK_TOOL_CALL_GOING;
        if ((c->value == VALUE_NAME && b != '"') ||
            (c->value == VALUE_ARGUMENTS && b != '{' && (b != '"' || c->named)))
            return NK_TOOL_CALL_BAD;
        c->as_text = c->value == VALUE_ARGUMENTS && b == '"';
        if (c->value == VALUE_ARGUMENTS && c->name[0] && !c->announced && !c->as_text)
            *rc = announce(c, err);
        if (*rc)
            return NK_TOOL_CALL_BAD;
        c->at = CALL_IN_VALUE;
        c->depth = 0;
        /* fall through */
    case CALL_IN_VALUE:
        /* A bare number or word ends with what follows it. */
        if (!c->in_string && !c->depth && (b == ',' || b == '}' || space)) {
            if (!end_value(c, rc, err))
                return NK_TOOL_CALL_BAD;
            return space ? NK_TOOL_CALL_GOING : nk__tool_call_byte(c, b, rc, err);
        }
        if (!value_byte(c, b, rc, err))
            return *rc ? NK_TOOL_CALL_BAD : NK_TOOL_CALL_GOING;
        if (!end_value(c, rc, err))
            return NK_TOOL_CALL_BAD;
        return c->named ? end_call(c, rc, err) : NK_TOOL_CALL_GOING;
    case CALL_NEXT:
        if (b == ',')
            c->at = CALL_KEY;
        else if (b == '}')
            return end_call(c, rc, err);
        return b == ',' || space ? NK_TOOL_CALL_GOING : NK_TOOL_CALL_BAD;
    }
    return NK_TOOL_CALL_BAD;
}
