#include "gateway/tool_grammar.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "text/json_schema.h"
#include "text/sampling.h"

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_';
}

/* Is it one of JSON's own rules? */
static bool is_base(const char *name, size_t size)
{
    const char *line = nk_json_base_rules();

    while (*line && (strncmp(line, name, size) != 0 || strncmp(line + size, " ::=", 4) != 0))
        line = strchr(line, '\n') + 1;
    return *line != '\0';
}

/* GBNF (text/gbnf.h): names stand outside of "literals", [classes], {counts}, <tokens> and #
 * comments. base: what is before the names of JSON's own rules. */
static int add_prefixed(const char *grammar, const char *end, const char *prefix, const char *base,
                        struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    while (grammar < end && !rc) {
        size_t n = 1;
        char close = *grammar == '"'   ? '"'
                     : *grammar == '[' ? ']'
                     : *grammar == '{' ? '}'
                     : *grammar == '<' ? '>'
                     : *grammar == '#' ? '\n'
                                       : '\0';

        if (close) {
            while (grammar[n] && grammar[n] != close)
                n += grammar[n] == '\\' && grammar[n + 1] && close != '\n' ? 2 : 1;
            n += grammar[n] != '\0';
        } else if (is_word(*grammar)) {
            while (is_word(grammar[n]))
                n++;
            rc = nk_buf_adds(out, base && is_base(grammar, n) ? base : prefix, err);
        }
        if (!rc)
            rc = nk_buf_add(out, grammar, n, err);
        grammar += n;
    }
    return rc;
}

int nk__tool_grammar_prefix(const char *grammar, const char *prefix, struct nk_buf *out,
                            struct nk_error *err)
{
    return add_prefixed(grammar, strchr(grammar, '\0'), prefix, NULL, out, err);
}

/* A literal: "..." */
static int add_literal(struct nk_buf *out, const char *text, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "\"", err);

    for (; *text && !rc; text++)
        rc = *text == '\n'
                 ? nk_buf_adds(out, "\\n", err)
                 : nk_buf_addf(out, err, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    return rc ? rc : nk_buf_adds(out, "\"", err);
}

enum { TOKEN_BYTES_MAX = 64 };

/* The control token that text begins with, and its length; -1: none. */
static int32_t token_at(const struct nk_tool_grammar_opts *o, const char *text, size_t *size)
{
    char part[TOKEN_BYTES_MAX + 1];

    if (!o->token || !*text || !strchr("<[", *text))
        return -1;
    for (size_t n = 1; text[n - 1] && n <= TOKEN_BYTES_MAX; n++) {
        int32_t id;

        if (!strchr(">]", text[n - 1]))
            continue;
        memcpy(part, text, n);
        part[n] = '\0';
        id = o->token(o->user, part);
        *size = n;
        if (id >= 0)
            return id;
    }
    return -1;
}

/* Text of the form as a sequence: control tokens are never matched by characters. */
static int add_text(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *text,
                    struct nk_error *err)
{
    char part[2 * NK_TOOL_MARK_BYTES];
    size_t n = 0, size = 0;
    int rc = 0;

    for (;; text++) {
        int32_t id = token_at(o, text, &size);
        bool varies = *text == NK_TOOL_MARK_NUMBER || *text == NK_TOOL_MARK_ID;

        if (n && (!*text || id >= 0 || varies || n == sizeof part - 1)) {
            part[n] = '\0';
            n = 0;
            rc = add_literal(out, part, err);
            if (!rc)
                rc = nk_buf_adds(out, " ", err);
        }
        if (!*text || rc)
            return rc;
        if (id >= 0) {
            rc = nk_buf_addf(out, err, "<[%d]> ", (int)id);
            text += size - 1;
        } else if (varies)
            rc = nk_buf_adds(out, *text == NK_TOOL_MARK_ID ? "[a-zA-Z0-9]{9} " : "[0-9] ", err);
        else
            part[n++] = *text;
        if (rc)
            return rc;
    }
}

/* A mark: the control token, where it is one, else its characters. */
static int add_mark(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *mark,
                    struct nk_error *err)
{
    int32_t id = o->token ? o->token(o->user, mark) : -1;

    return id >= 0 ? nk_buf_addf(out, err, "<[%d]>", (int)id) : add_literal(out, mark, err);
}

/* The length of the longest proper prefix of mark that is a suffix of mark[0..n) and c. */
static size_t next_state(const char *mark, size_t n, char c)
{
    for (size_t k = n + 1; k > 0; k--)
        if (mark[k - 1] == c && !memcmp(mark, mark + n + 1 - k, k - 1))
            return k;
    return 0;
}

/* Text up to a mark: an automaton that has seen n bytes of the mark, as one rule NAME-n per n. Once
 * the mark is complete, `then` follows. ends: the text may end without the mark, and goes on after
 * it. A mark that is a control token is in no text. */
static int add_text_until(const struct nk_tool_grammar_opts *o, struct nk_buf *out,
                          const char *name, const char *mark, const char *then, bool ends,
                          struct nk_error *err)
{
    size_t size = strlen(mark), spaces = strspn(mark, " \n\r\t"), n_token = 0;
    char alphabet[NK_TOOL_MARK_BYTES] = "";
    int32_t id = token_at(o, mark + spaces, &n_token);
    int rc = 0;

    if (mark[spaces + n_token + strspn(mark + spaces + n_token, " \n\r\t")])
        id = -1; /* more than a token */
    if (id >= 0 && ends)
        return nk_buf_addf(out, err, "%s-0 ::= (!<[%d]> | <[%d]> %s)*\n", name, (int)id, (int)id,
                           then);
    if (id >= 0)
        return nk_buf_addf(out, err, "%s-0 ::= !<[%d]>* <[%d]> %s\n", name, (int)id, (int)id, then);
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)mark[i] >= 0x80)
            return nk_fail(err, NK_E_INVALID, "unsupported_tools",
                           "strict tools need tool_choice \"required\" or a function with this "
                           "model's template: its marks are no tokens, and not of ASCII");
        if (!strchr(alphabet, mark[i]))
            strncat(alphabet, mark + i, 1);
    }
    for (size_t n = 0; n < size && !rc; n++) {
        rc = nk_buf_addf(out, err, "%s-%zu ::= %s[^", name, n, ends ? "\"\" | " : "");
        for (const char *c = alphabet; *c && !rc; c++)
            rc = *c == '\n' ? nk_buf_adds(out, "\\n", err)
                            : nk_buf_addf(out, err, strchr("]\\^-[", *c) ? "\\x%02x" : "%c",
                                          strchr("]\\^-[", *c) ? (unsigned char)*c : *c);
        if (!rc)
            rc = nk_buf_addf(out, err, "] %s-0", name);
        for (const char *c = alphabet; *c && !rc; c++) {
            size_t to = next_state(mark, n, *c);
            char one[2] = { *c, '\0' };

            rc = nk_buf_adds(out, " | ", err);
            if (!rc)
                rc = add_literal(out, one, err);
            if (!rc && to != size)
                rc = nk_buf_addf(out, err, " %s-%zu", name, to);
            else if (!rc)
                rc = nk_buf_addf(out, err, ends ? " %s %s-0" : " %s", then, name);
        }
        if (!rc)
            rc = nk_buf_adds(out, "\n", err);
    }
    return rc;
}

/* Reasoning up to its mark. */
static int add_think(const struct nk_tool_grammar_opts *o, struct nk_buf *out, struct nk_error *err)
{
    const char *close = o->think_close;
    int32_t id = o->token ? o->token(o->user, close) : -1;
    int rc = id >= 0 ? nk_buf_addf(out, err, "think ::= !<[%d]>* ", (int)id)
                     : nk_buf_addf(out, err, "think ::= ([^%c] | \"%c\" [^%c])* ", close[0],
                                   close[0], close[1]);

    if (!rc)
        rc = add_mark(o, out, close, err);
    return rc ? rc : nk_buf_adds(out, " [ \\n]*\n", err);
}

int nk__tool_grammar_after_think(const char *inner, const struct nk_tool_grammar_opts *opts,
                                 struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "root ::= think inner-root\n", err);

    if (!rc)
        rc = add_think(opts, out, err);
    return rc ? rc : nk__tool_grammar_prefix(inner, "inner-", out, err);
}

/* ---- arguments ---- */

/* What the parameters' schema says of the k-th of them. */
struct property {
    const char *key;
    const json_t *schema;
    bool required, lenient, strict;
};

static bool is_type(const json_t *schema, const char *type)
{
    const char *is = json_string_value(json_object_get(schema, "type"));

    return is && !strcmp(is, type);
}

/* Is the schema of an argument that stands bare held by the text alone? */
static const char *not_held(const json_t *schema)
{
    static const char *const free_words[] = { "type",    "title",   "description",
                                              "default", "example", "examples" };
    const char *key;
    const json_t *member;

    if (!is_type(schema, "string"))
        return "type";
    json_object_foreach((json_t *)schema, key, member)
    {
        bool is_free = false;

        for (size_t i = 0; i < sizeof free_words / sizeof free_words[0]; i++)
            is_free = is_free || !strcmp(key, free_words[i]);
        if (!is_free)
            return key;
    }
    return NULL;
}

static bool may_be_text(const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type"), *t;
    size_t i;

    if (json_is_string(type))
        return is_type(schema, "string");
    json_array_foreach((json_t *)type, i, t)
    {
        if (json_is_string(t) && !strcmp(json_string_value(t), "string"))
            return true;
    }
    return !type && !json_object_get(schema, "$ref");
}

static const json_t *choices(const json_t *schema)
{
    const json_t *list = json_object_get(schema, "enum"), *v;
    size_t i;

    json_array_foreach((json_t *)list, i, v)
    {
        if (!json_is_string(v))
            return NULL;
    }
    return json_array_size(list) ? list : NULL;
}

/* The schema of one argument with the definitions that it may refer to. */
static json_t *with_definitions(const json_t *schema, const json_t *root)
{
    static const char *const words[] = { "$defs", "definitions" };
    json_t *copy = json_copy((json_t *)schema);

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        json_t *defs = json_object_get(root, words[i]);

        if (copy && json_is_object(copy) && defs && !json_object_get(copy, words[i]))
            json_object_set(copy, words[i], defs);
    }
    return copy;
}

/* May a schema that is not supported stand for any JSON? Where no call is asked for it is no reason
 * to refuse the other tools, unless the function itself is strict. */
static bool is_lenient(const struct nk_tool_grammar_opts *o, const json_t *function)
{
    return !o->must && !json_is_true(json_object_get(function, "strict"));
}

static bool is_unsupported(const struct nk_error *e)
{
    return !strcmp(e->reason, "unsupported_schema") || !strcmp(e->reason, "too_large");
}

/* Before the names of JSON's own rules, which are there once for all schemas. */
static const char base_prefix[] = "json-";

/* Appends the JSON of a schema as rules whose names begin with prefix. any: what it is where it is
 * not supported, a grammar; NULL: then it is an error. */
static int add_schema(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *prefix,
                      const json_t *schema, const char *any, struct nk_error *err)
{
    struct nk_buf inner = NK_BUF_INIT(NK_GRAMMAR_BYTES_MAX);
    struct nk_error own = { 0 };
    int rc = nk_json_schema_to_grammar(schema, o->work, &inner, &own);

    if (rc && any && is_unsupported(&own)) {
        nk_buf_reset(&inner);
        rc = nk_buf_adds(&inner, any, &own);
    }
    if (rc && err)
        *err = own;

    if (!rc)
        rc = nk_buf_adds(out, "\n", err);
    if (!rc) {
        const char *text = nk_buf_str(&inner), *base = strstr(text, nk_json_base_rules()),
                   *after = base + strlen(nk_json_base_rules());

        rc = add_prefixed(text, base, prefix, base_prefix, out, err);
        if (!rc)
            rc = add_prefixed(after, strchr(after, '\0'), prefix, base_prefix, out, err);
    }
    nk_buf_release(&inner);
    return rc;
}

/* A value, with what ends it: the rule PREFIXvalue. */
static int add_value(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *prefix,
                     const struct property *p, const json_t *root, struct nk_error *err)
{
    const struct nk_tool_form *f = o->form;
    bool bare = f->body == NK_TOOL_FIELDS && !f->quote[0], marked = strlen(f->quote) > 1;
    const json_t *list = choices(p->schema), *v;
    const char *word =
        may_be_text(p->schema) && (bare || marked) && !list ? not_held(p->schema) : NULL;
    json_t *schema;
    char name[80];
    size_t i;
    int rc = nk_buf_addf(out, err, "%svalue ::= ", prefix);

    if (word && p->strict)
        return nk_fail(err, NK_E_INVALID, "unsupported_schema",
                       "\"%s\": this model writes text as it is, which cannot be held to \"%s\"; "
                       "leave strict out",
                       p->key, word);
    if (list && (bare || marked)) {
        rc = rc ? rc : nk_buf_adds(out, "(", err);
        json_array_foreach((json_t *)list, i, v)
        {
            if (!rc && i)
                rc = nk_buf_adds(out, " | ", err);
            if (!rc && marked)
                rc = add_text(o, out, f->quote, err);
            if (!rc)
                rc = add_literal(out, json_string_value(v), err);
            if (!rc)
                rc = nk_buf_adds(out, " ", err);
            if (!rc && marked)
                rc = add_text(o, out, f->quote, err);
        }
        rc = rc ? rc : nk_buf_adds(out, ") ", err);
        rc = rc ? rc : add_text(o, out, f->value_close, err);
        return rc ? rc : nk_buf_adds(out, "\n", err);
    }
    if (may_be_text(p->schema) && (bare || marked)) {
        snprintf(name, sizeof name, marked ? "quoted" : "bare"); /* one for all */
        if (!rc && marked)
            rc = add_text(o, out, f->quote, err);
        return rc ? rc : nk_buf_addf(out, err, "%s-0\n", name);
    }
    if (f->body == NK_TOOL_LITERAL && is_type(p->schema, "boolean"))
        return rc ? rc : nk_buf_adds(out, "\"True\" | \"False\" | \"true\" | \"false\"\n", err);
    if (marked && (is_type(p->schema, "array") || is_type(p->schema, "object")))
        return rc ? rc : nk_buf_adds(out, "literal\n", err);
    schema = with_definitions(p->schema, root);
    if (!schema)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a grammar");
    rc = rc ? rc : nk_buf_addf(out, err, "%sjson-root ", prefix);
    rc = rc ? rc : add_text(o, out, f->value_close, err);
    snprintf(name, sizeof name, "%sjson-", prefix);
    if (!rc) {
        struct nk_error own = { 0 };

        rc = add_schema(o, out, name, schema, NULL, &own);
        if (rc && p->lenient && is_unsupported(&own)) {
            json_decref(schema);
            schema = json_object(); /* any JSON */
            rc = add_schema(o, out, name, schema, NULL, &own);
        }
        if (rc && err)
            *err = own;
        if (rc)
            nk_wrap(rc, err, "\"%s\"", p->key);
    }
    json_decref(schema);
    return rc ? rc : nk_buf_adds(out, "\n", err);
}

static bool is_required(const json_t *root, const char *key)
{
    const json_t *v;
    size_t i;

    json_array_foreach(json_object_get(root, "required"), i, v)
    {
        if (json_is_string(v) && !strcmp(json_string_value(v), key))
            return true;
    }
    return false;
}

/* The rules of a tool's arguments between marks, in the order of its properties: PREFIXfirst-k
 * where none was written before, PREFIXmore-k where one was, for what stands between two. */
static int add_fields(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *prefix,
                      const json_t *function, struct nk_error *err)
{
    const json_t *root = json_object_get(function, "parameters");
    bool strict = json_is_true(json_object_get(function, "strict"));
    const struct nk_tool_form *f = o->form;
    const char *key;
    json_t *schema;
    size_t k = 0;
    int rc = 0;

    json_object_foreach(json_object_get(root, "properties"), key, schema)
    {
        struct property p = { key, schema, is_required(root, key), is_lenient(o, function),
                              strict };
        char name[64];

        snprintf(name, sizeof name, "%sp%zu-", prefix, k);
        rc = nk_buf_addf(out, err, "%sfield-%zu ::= ", prefix, k);
        rc = rc ? rc : add_text(o, out, f->key_open, err);
        rc = rc ? rc : add_literal(out, key, err);
        rc = rc ? rc : nk_buf_adds(out, " ", err);
        rc = rc ? rc
                : add_text(o, out, may_be_text(schema) ? f->value_open_text : f->value_open, err);
        rc = rc ? rc : nk_buf_addf(out, err, "%svalue\n", name);
        rc = rc ? rc : add_value(o, out, name, &p, root, err);
        for (int more = 0; more < 2 && !rc; more++) {
            const char *what = more ? "more" : "first";

            rc = nk_buf_addf(out, err, "%s%s-%zu ::= ", prefix, what, k);
            if (!rc && more)
                rc = add_text(o, out, f->field_sep, err);
            rc =
                rc ? rc : nk_buf_addf(out, err, "%sfield-%zu %smore-%zu", prefix, k, prefix, k + 1);
            if (!rc && !p.required)
                rc = nk_buf_addf(out, err, " | %s%s-%zu", prefix, what, k + 1);
            rc = rc ? rc : nk_buf_adds(out, "\n", err);
        }
        if (rc)
            return rc;
        k++;
    }
    return nk_buf_addf(out, err, "%sfirst-%zu ::= \"\"\n%smore-%zu ::= \"\"\n", prefix, k, prefix,
                       k);
}

/* What the values of a form with marks around text refer to. */
static int add_shared(const struct nk_tool_grammar_opts *o, struct nk_buf *out,
                      struct nk_error *err)
{
    const struct nk_tool_form *f = o->form;
    int rc = 0;

    if (f->body == NK_TOOL_FIELDS && !f->quote[0])
        return add_text_until(o, out, "bare", f->value_close, "", false, err);
    if (strlen(f->quote) < 2)
        return 0;
    rc = add_text_until(o, out, "quoted", f->quote, "", false, err);
    rc = rc ? rc : nk_buf_adds(out, "literal ::= ", err);
    rc = rc ? rc : add_text(o, out, f->quote, err);
    return rc ? rc
              : nk_buf_adds(out,
                            "quoted-0 | \"-\"? [0-9]+ (\".\" [0-9]+)? | \"true\" | \"false\" | "
                            "\"null\" | \"[\" (literal (\",\" literal)*)? \"]\" | "
                            "\"{\" (member (\",\" member)*)? \"}\"\n"
                            "member ::= [a-zA-Z0-9_-]+ \":\" literal\n",
                            err);
}

/* The text that begins a call, without white space in front; the part of it that tells a call from
 * text: *n bytes. */
static void opener(const struct nk_tool_grammar_opts *o, char out[2 * NK_TOOL_MARK_BYTES],
                   size_t *n)
{
    const struct nk_tool_form *f = o->form;
    const char *first = f->section_open + strspn(f->section_open, " \n\r\t");
    char close;

    snprintf(out, 2 * NK_TOOL_MARK_BYTES, "%s%s", first,
             *first ? f->call_open : f->call_open + strspn(f->call_open, " \n\r\t"));
    if (token_at(o, out, n) >= 0)
        return;
    close = *out == '<' ? '>' : *out == '[' ? ']' : '\0';
    *n = close && strchr(out, close) ? (size_t)(strchr(out, close) - out) + 1
                                     : strcspn(out, " \n\r\t");
}

int nk__tool_grammar_write(const struct nk_tool_grammar_opts *o, struct nk_buf *out,
                           struct nk_error *err)
{
    const struct nk_tool_form *f = o->form;
    char open[2 * NK_TOOL_MARK_BYTES], mark[2 * NK_TOOL_MARK_BYTES];
    size_t i, n_mark;
    json_t *tool;
    bool first = true;
    int rc;

    opener(o, open, &n_mark);
    snprintf(mark, sizeof mark, "%.*s", (int)n_mark, open);
    if (!o->must && (nk__tool_form_is_weak(f) || !n_mark))
        return nk_fail(err, NK_E_INVALID, "unsupported_tools",
                       "strict tools need tool_choice \"required\" or a function with this model's "
                       "template: its calls have no mark of their own");
    rc = nk_buf_addf(out, err, "root ::= %s%s\n", o->think_close ? "think " : "",
                     o->must ? "forced" : "free-0");
    if (!rc && o->think_close)
        rc = add_think(o, out, err);
    if (!rc && !o->must)
        rc = add_text_until(o, out, "free", mark, "rest-of-call", true, err);
    if (!rc)
        rc = nk_buf_adds(out, o->must ? "forced ::= " : "rest-of-call ::= ", err);
    if (!rc)
        rc = add_text(o, out, o->must ? open : open + n_mark, err);
    if (!rc)
        rc = nk_buf_adds(out, "call ", err);
    /* Further ones in the same section. */
    if (!rc && !o->must && !nk__tool_mark_is_empty(f->section_close)) {
        rc = nk_buf_adds(out, "(", err);
        rc = rc ? rc : add_text(o, out, f->call_sep, err);
        rc = rc ? rc : add_text(o, out, f->call_open, err);
        rc = rc ? rc : nk_buf_adds(out, "call)* ", err);
    }
    rc = rc ? rc : add_text(o, out, f->section_close, err);
    rc = rc ? rc : nk_buf_adds(out, "\ncall ::= ", err);
    json_array_foreach((json_t *)o->tools, i, tool)
    {
        const char *name =
            json_string_value(json_object_get(json_object_get(tool, "function"), "name"));

        if (!rc && (!o->only || !strcmp(o->only, name))) {
            rc = nk_buf_addf(out, err, "%scall-%zu", first ? "" : " | ", i);
            first = false;
        }
    }
    rc = rc ? rc : nk_buf_adds(out, "\n", err);
    rc = rc ? rc : add_shared(o, out, err);
    rc = rc ? rc : nk__tool_grammar_prefix(nk_json_base_rules(), base_prefix, out, err);
    json_array_foreach((json_t *)o->tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function"),
                     *schema = json_object_get(function, "parameters");
        const char *name = json_string_value(json_object_get(function, "name"));
        bool object = f->body == NK_TOOL_JSON || f->body == NK_TOOL_NAMED;
        char prefix[32];

        if (rc || (o->only && strcmp(o->only, name)))
            continue;
        snprintf(prefix, sizeof prefix, "t%zu-", i);
        rc = nk_buf_addf(out, err, "call-%zu ::= ", i);
        rc = rc ? rc : add_text(o, out, f->object_open, err);
        rc = rc ? rc : add_literal(out, name, err);
        rc = rc ? rc : nk_buf_adds(out, " ", err);
        rc = rc ? rc : add_text(o, out, f->name_close, err);
        rc = rc ? rc : nk_buf_addf(out, err, object ? "%sroot " : "%sfirst-0 ", prefix);
        rc = rc ? rc : add_text(o, out, f->object_close, err);
        rc = rc ? rc : add_text(o, out, f->call_close, err);
        rc = rc ? rc : nk_buf_adds(out, "\n", err);
        if (rc)
            break;
        /* A function without parameters takes an empty object. */
        if (!object)
            rc = add_fields(o, out, prefix, function, err);
        else if (!schema || !json_object_size(schema))
            rc = nk_buf_addf(out, err, "%sroot ::= \"{}\"\n", prefix);
        else
            rc = add_schema(o, out, prefix, schema,
                            is_lenient(o, function) ? nk_json_object_grammar() : NULL, err);
        if (rc)
            nk_wrap(rc, err, "tools[%zu].function.parameters", i);
    }
    return rc;
}
