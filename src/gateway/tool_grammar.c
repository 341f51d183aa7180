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

/* GBNF (text/gbnf.h): names stand outside of "literals", [classes], {counts}, <tokens> and #
 * comments. */
int nk__tool_grammar_prefix(const char *grammar, const char *prefix, struct nk_buf *out,
                            struct nk_error *err)
{
    int rc = 0;

    while (*grammar && !rc) {
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
            rc = nk_buf_adds(out, prefix, err);
        }
        if (!rc)
            rc = nk_buf_add(out, grammar, n, err);
        grammar += n;
    }
    return rc;
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

/* A mark: the control token, where it is one, else its characters. */
static int add_mark(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *mark,
                    struct nk_error *err)
{
    int32_t id = o->token ? o->token(o->user, mark) : -1;

    return id >= 0 ? nk_buf_addf(out, err, "<[%d]>", (int)id) : add_literal(out, mark, err);
}

/* Text in which marks stand between bytes of value 1, as a sequence. */
static int add_sequence(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *text,
                        struct nk_error *err)
{
    bool is_mark = false;
    int rc = 0;

    for (; *text && !rc; is_mark = !is_mark) {
        size_t n = strcspn(text, "\1");
        char part[128];

        snprintf(part, sizeof part, "%.*s", (int)n, text);
        if (n)
            rc = is_mark ? add_mark(o, out, part, err) : add_literal(out, part, err);
        if (n && !rc)
            rc = nk_buf_adds(out, " ", err);
        text += n + (text[n] != '\0');
    }
    return rc;
}

/* How a call is written: the mark that begins it, up to the name, between name and arguments, after
 * the arguments. */
#define DS(word)       "\1<\xef\xbd\x9ctool\xe2\x96\x81" word "\xef\xbd\x9c>\1"
#define DS_CALLS(word) DS("calls\xe2\x96\x81" word)
#define DS_CALL(word)  DS("call\xe2\x96\x81" word)
static const struct {
    const char *mark; /* NULL: what begins a call is not to be told from text */
    const char *before, *between, *after;
} words[] = {
    [NK_TOOL_FORMAT_HERMES] = { "<tool_call>", "\n{\"name\": \"",
                                "\", \"arguments\": ", "}\n\1</tool_call>\1" },
    [NK_TOOL_FORMAT_LLAMA] = { NULL, "{\"name\": \"", "\", \"parameters\": ", "}" },
    [NK_TOOL_FORMAT_MISTRAL] = { "[TOOL_CALLS]", "[{\"name\": \"", "\", \"arguments\": ", "}]" },
    [NK_TOOL_FORMAT_ARGS] = { "[TOOL_CALLS]", "", "\1[ARGS]\1", "" },
    [NK_TOOL_FORMAT_DEEPSEEK] = { NULL, DS_CALLS("begin") DS_CALL("begin") "function" DS("sep"),
                                  "\n```json\n", "\n```" DS_CALL("end") DS_CALLS("end") },
};

/* The length of the longest proper prefix of mark that is a suffix of mark[0..n) and c. */
static size_t next_state(const char *mark, size_t n, char c)
{
    for (size_t k = n + 1; k > 0; k--)
        if (mark[k - 1] == c && !memcmp(mark, mark + n + 1 - k, k - 1))
            return k;
    return 0;
}

/* Text in which the mark does not occur unless a call follows: an automaton that has seen n bytes
 * of the mark, as one rule per n. A mark that is a control token is in no text. */
static int add_free_text(const struct nk_tool_grammar_opts *o, struct nk_buf *out, const char *mark,
                         struct nk_error *err)
{
    size_t size = strlen(mark);
    char alphabet[64] = "";
    int rc = 0;

    if (o->token && o->token(o->user, mark) >= 0)
        return nk_buf_addf(out, err, "free-0 ::= (!<[%d]> | <[%d]> rest-of-call)*\n",
                           (int)o->token(o->user, mark), (int)o->token(o->user, mark));
    for (size_t i = 0; i < size; i++)
        if (!strchr(alphabet, mark[i]))
            strncat(alphabet, mark + i, 1);
    for (size_t n = 0; n < size && !rc; n++) {
        rc = nk_buf_addf(out, err, "free-%zu ::= \"\" | [^", n);
        for (const char *c = alphabet; *c && !rc; c++)
            rc = nk_buf_addf(out, err, strchr("]\\^-[", *c) ? "\\x%02x" : "%c",
                             strchr("]\\^-[", *c) ? (unsigned char)*c : *c);
        if (!rc)
            rc = nk_buf_adds(out, "] free-0", err);
        for (const char *c = alphabet; *c && !rc; c++) {
            size_t to = next_state(mark, n, *c);

            rc = to == size ? nk_buf_addf(out, err, " | \"%c\" rest-of-call free-0", *c)
                            : nk_buf_addf(out, err, " | \"%c\" free-%zu", *c, to);
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

int nk__tool_grammar_write(const struct nk_tool_grammar_opts *o, struct nk_buf *out,
                           struct nk_error *err)
{
    const char *mark = words[o->format].mark;
    struct nk_buf inner = NK_BUF_INIT(NK_GRAMMAR_BYTES_MAX);
    size_t i;
    json_t *tool;
    bool first = true;
    int rc;

    if (!o->must && !mark)
        return nk_fail(err, NK_E_INVALID, "unsupported_tools",
                       "strict tools need tool_choice \"required\" or a function with this model's "
                       "template: its calls have no mark of their own");
    rc = nk_buf_addf(out, err, "root ::= %s%s\n", o->think_close ? "think " : "",
                     o->must ? "call" : "free-0");
    if (!rc && o->think_close)
        rc = add_think(o, out, err);
    if (!rc && !o->must)
        rc = add_free_text(o, out, mark, err);
    if (!rc)
        rc = nk_buf_adds(out, o->must ? "call ::= " : "rest-of-call ::= ", err);
    json_array_foreach((json_t *)o->tools, i, tool)
    {
        const char *name =
            json_string_value(json_object_get(json_object_get(tool, "function"), "name"));

        if (!rc && (!o->only || !strcmp(o->only, name))) {
            rc = nk_buf_addf(out, err, "%scall-%zu", first ? "" : " | ", i);
            first = false;
        }
    }
    json_array_foreach((json_t *)o->tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function"),
                     *schema = json_object_get(function, "parameters");
        const char *name = json_string_value(json_object_get(function, "name"));
        char prefix[32];

        if (rc || (o->only && strcmp(o->only, name)))
            continue;
        rc = nk_buf_addf(out, err, "\ncall-%zu ::= ", i);
        if (!rc && mark && o->must)
            rc = add_mark(o, out, mark, err);
        if (!rc)
            rc = nk_buf_adds(out, " ", err);
        if (!rc)
            rc = add_sequence(o, out, words[o->format].before, err);
        if (!rc)
            rc = add_literal(out, name, err);
        if (!rc)
            rc = nk_buf_adds(out, " ", err);
        if (!rc)
            rc = add_sequence(o, out, words[o->format].between, err);
        if (!rc)
            rc = nk_buf_addf(out, err, "t%zu-root ", i);
        if (!rc)
            rc = add_sequence(o, out, words[o->format].after, err);
        if (!rc)
            rc = nk_buf_adds(out, "\n", err);
        /* A function without parameters takes an empty object. */
        nk_buf_reset(&inner);
        if (!rc && (!schema || !json_object_size(schema)))
            rc = nk_buf_adds(&inner, "root ::= \"{}\"\n", err);
        else if (!rc)
            rc = nk_json_schema_to_grammar(schema, o->work, &inner, err);
        if (rc)
            nk_wrap(rc, err, "tools[%zu].function.parameters", i);
        snprintf(prefix, sizeof prefix, "t%zu-", i);
        if (!rc)
            rc = nk__tool_grammar_prefix(nk_buf_str(&inner), prefix, out, err);
    }
    nk_buf_release(&inner);
    return rc;
}
