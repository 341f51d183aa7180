#include "gateway/tool_value.h"

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64 };

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static void trim(const char **text, size_t *n)
{
    while (*n && is_space(**text))
        (*text)++, (*n)--;
    while (*n && is_space((*text)[*n - 1]))
        (*n)--;
}

static int add_escaped(const char *text, size_t n, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < n && !rc;) {
        size_t plain = i;

        while (plain < n && (unsigned char)text[plain] >= 0x20 && text[plain] != '"' &&
               text[plain] != '\\')
            plain++;
        rc = nk_buf_add(out, text + i, plain - i, err);
        i = plain;
        if (rc || i == n)
            break;
        switch (text[i]) {
        case '\n':
            rc = nk_buf_adds(out, "\\n", err);
            break;
        case '\t':
            rc = nk_buf_adds(out, "\\t", err);
            break;
        case '\r':
            rc = nk_buf_adds(out, "\\r", err);
            break;
        case '"':
        case '\\':
            rc = nk_buf_addf(out, err, "\\%c", text[i]);
            break;
        default:
            rc = nk_buf_addf(out, err, "\\u%04x", (unsigned char)text[i]);
        }
        i++;
    }
    return rc;
}

int nk__tool_value_string(const char *text, size_t n, bool closed, struct nk_buf *out,
                          struct nk_error *err)
{
    int rc = nk_buf_adds(out, "\"", err);

    if (!rc)
        rc = add_escaped(text, n, out, err);
    return rc || !closed ? rc : nk_buf_adds(out, "\"", err);
}

/* ---- literals ---- */

struct literal {
    const char *at, *end, *quote;
    int depth;
    bool bad;
    struct nk_buf *out;
    struct nk_error *err;
    int rc;
};

static void add(struct literal *l, const char *text)
{
    if (!l->rc)
        l->rc = nk_buf_adds(l->out, text, l->err);
}

static void skip(struct literal *l)
{
    while (l->at < l->end && is_space(*l->at))
        l->at++;
}

static bool at_mark(const struct literal *l)
{
    size_t n = strlen(l->quote);

    return n && (size_t)(l->end - l->at) >= n && !memcmp(l->at, l->quote, n);
}

/* One escape sequence after its backslash; what is none stays as it is. */
static void escape(struct literal *l)
{
    static const char from[] = "ntrbf'\"\\/", to[] = "\n\t\r\b\f'\"\\/";
    const char *known = *l->at ? strchr(from, *l->at) : NULL;
    size_t digits = *l->at == 'u' ? 4 : *l->at == 'x' ? 2 : 0, have = 0;

    while (have < digits && l->at + 1 + have < l->end && isxdigit((unsigned char)l->at[1 + have]))
        have++;
    if (known) {
        l->rc = add_escaped(to + (known - from), 1, l->out, l->err);
    } else if (digits && have == digits) {
        l->rc = nk_buf_addf(l->out, l->err, "\\u%s%.*s", digits == 2 ? "00" : "", (int)digits,
                            l->at + 1);
        l->at += digits;
    } else {
        l->rc = nk_buf_addf(l->out, l->err, "\\\\");
        if (!l->rc)
            l->rc = add_escaped(l->at, 1, l->out, l->err);
    }
    l->at++;
}

static void quoted(struct literal *l)
{
    char q = at_mark(l) && strlen(l->quote) > 1 ? '\0' : *l->at;

    l->at += q ? 1 : strlen(l->quote);
    add(l, "\"");
    while (!l->rc && l->at < l->end && (q ? *l->at != q : !at_mark(l))) {
        if (q && *l->at == '\\' && l->at + 1 < l->end) {
            l->at++;
            escape(l);
        } else
            l->rc = add_escaped(l->at++, 1, l->out, l->err);
    }
    add(l, "\"");
    if (l->at >= l->end)
        l->bad = true;
    else
        l->at += q ? 1 : strlen(l->quote);
}

/* Text up to what ends it, as a value, or as a key. */
static void bare(struct literal *l, const char *ends, bool key)
{
    const char *from = l->at;
    size_t n;
    json_t *number;

    while (l->at < l->end && !strchr(ends, *l->at) && *l->at)
        l->at++;
    n = (size_t)(l->at - from);
    trim(&from, &n);
    if (!key && ((n == 4 && !memcmp(from, "True", 4)) || (n == 4 && !memcmp(from, "true", 4)))) {
        add(l, "true");
    } else if (!key &&
               ((n == 5 && !memcmp(from, "False", 5)) || (n == 5 && !memcmp(from, "false", 5)))) {
        add(l, "false");
    } else if (!key &&
               ((n == 4 && !memcmp(from, "None", 4)) || (n == 4 && !memcmp(from, "null", 4)))) {
        add(l, "null");
    } else {
        number = key ? NULL : json_loadb(from, n, JSON_DECODE_ANY, NULL);
        if (!l->rc)
            l->rc = json_is_number(number) ? nk_buf_add(l->out, from, n, l->err)
                                           : nk__tool_value_string(from, n, true, l->out, l->err);
        json_decref(number);
    }
}

static void value(struct literal *l);

static void list(struct literal *l, bool dictionary)
{
    bool first = true;

    l->at++;
    add(l, dictionary ? "{" : "[");
    for (;;) {
        skip(l);
        if (l->at >= l->end || l->rc || l->bad)
            break;
        if (strchr("]})", *l->at)) {
            l->at++;
            add(l, dictionary ? "}" : "]");
            return;
        }
        if (*l->at == ',') {
            l->at++;
            continue;
        }
        if (!first)
            add(l, ",");
        first = false;
        if (dictionary) {
            if (at_mark(l) || *l->at == '"' || *l->at == '\'')
                quoted(l);
            else
                bare(l, ":,}", true);
            skip(l);
            if (l->at >= l->end || *l->at != ':') {
                l->bad = true;
                return;
            }
            l->at++;
            add(l, ":");
        }
        value(l);
    }
    l->bad = true;
}

static void value(struct literal *l)
{
    skip(l);
    if (++l->depth > DEPTH_MAX || l->at >= l->end)
        l->bad = true;
    else if (at_mark(l) || *l->at == '"' || *l->at == '\'')
        quoted(l);
    else if (*l->at == '[' || *l->at == '(' || *l->at == '{')
        list(l, *l->at == '{');
    else
        bare(l, ",]})", false);
    l->depth--;
}

int nk__tool_value_literal(const char *text, size_t n, const char *quote, struct nk_buf *out,
                           struct nk_error *err)
{
    struct literal l = { .at = text, .end = text + n, .quote = quote, .out = out, .err = err };
    size_t before = out->size;

    value(&l);
    skip(&l);
    if (l.rc || (!l.bad && l.at == l.end))
        return l.rc;
    out->size = before;
    trim(&text, &n);
    return nk__tool_value_string(text, n, true, out, err);
}

int nk__tool_value_bare(const char *text, size_t n, const char *type, struct nk_buf *out,
                        struct nk_error *err)
{
    const char *inner = text;
    size_t size = n;
    json_t *v;
    int rc;

    trim(&inner, &size);
    if (type && (!strcmp(type, "string") || size != 4 ||
                 (memcmp(inner, "null", 4) && memcmp(inner, "None", 4))))
        return nk__tool_value_string(text, n, true, out, err);
    v = json_loadb(inner, size, JSON_DECODE_ANY, NULL);
    if (v)
        rc = nk_buf_add(out, inner, size, err);
    else if (size && (strchr("[{(", *inner) || (size == 4 && !memcmp(inner, "True", 4)) ||
                      (size == 5 && !memcmp(inner, "False", 5)) ||
                      (size == 4 && !memcmp(inner, "None", 4))))
        rc = nk__tool_value_literal(inner, size, "", out, err);
    else
        rc = nk__tool_value_string(text, n, true, out, err);
    json_decref(v);
    return rc;
}

bool nk__tool_value_scan(struct nk_tool_scan *s, const char *text, size_t n, const char *quote,
                         bool final)
{
    size_t mark = strlen(quote);

    while (s->at < n) {
        const char *p = text + s->at;
        size_t rest = n - s->at;
        bool is_mark = false;

        if (mark > 1 && (s->quote == SCAN_NO_QUOTE || s->quote == SCAN_MARK)) {
            is_mark = !memcmp(p, quote, rest < mark ? rest : mark);
            if (is_mark && rest < mark && !final)
                return false;
            is_mark = is_mark && rest >= mark;
        }
        if (is_mark) {
            s->quote = s->quote == SCAN_MARK ? SCAN_NO_QUOTE : SCAN_MARK;
            s->at += mark;
            continue;
        }
        if (s->quote == SCAN_SINGLE || s->quote == SCAN_DOUBLE) {
            if (*p == '\\') {
                if (rest < 2)
                    return false;
                s->at++;
            } else if (*p == (s->quote == SCAN_SINGLE ? '\'' : '"'))
                s->quote = SCAN_NO_QUOTE;
        } else if (s->quote == SCAN_NO_QUOTE) {
            if (*p == '\'' || *p == '"')
                s->quote = *p == '"' ? SCAN_DOUBLE : SCAN_SINGLE;
            else if (*p == '[' || *p == '{' || *p == '(')
                s->depth++;
            else if ((*p == ',' || *p == ']' || *p == '}' || *p == ')') && s->depth == 0)
                return true;
            else if (*p == ']' || *p == '}' || *p == ')')
                s->depth--;
        }
        s->at++;
    }
    return false;
}
