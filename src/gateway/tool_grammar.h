/* Grammars (GBNF) that make a model call a tool, in the form of its template (tool_form.h).
 * Pure. */
#ifndef NK_GATEWAY_TOOL_GRAMMAR_H
#define NK_GATEWAY_TOOL_GRAMMAR_H

#include <stdint.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/work.h"
#include "gateway/tool_form.h"

/* The id of the control token whose text this is, or -1: control tokens are never matched by
 * characters. */
typedef int32_t nk_tool_grammar_token(const void *user, const char *text);

struct nk_tool_grammar_opts {
    const json_t *tools; /* OpenAI's shape */
    const char *only;    /* the one function that may be called; NULL: any */
    const struct nk_tool_form *form;
    bool must; /* exactly one call and nothing else; false: text with calls in it */
    /* The text begins inside of reasoning, which this ends; NULL: it does not. */
    const char *think_close;
    nk_tool_grammar_token *token; /* NULL: there are no control tokens */
    const void *user;             /* token's */
    struct nk_work *work;         /* what all of it may cost; NULL: anything */
};

/* Appends the grammar to out. What the form cannot hold a value to (a pattern of text that stands
 * bare) is refused of a function that is strict, and let go otherwise.
 *   INVALID    unsupported_schema   a tool's parameters cannot be expressed; named. Without `must`
 *                                   only for one that is strict: the others' are any object then
 *   INVALID    too_much_work        the same; or CANCELLED
 *   INVALID    unsupported_tools    `must` false and a format whose calls have no mark of their own
 *   EXHAUSTED  too_large */
int nk__tool_grammar_write(const struct nk_tool_grammar_opts *opts, struct nk_buf *out,
                           struct nk_error *err);

/* Appends a grammar whose root is reasoning up to opts->think_close, and then inner's root. Of opts
 * only think_close and token with its user are used. EXHAUSTED too_large. */
int nk__tool_grammar_after_think(const char *inner, const struct nk_tool_grammar_opts *opts,
                                 struct nk_buf *out, struct nk_error *err);

/* Appends a grammar with the prefix before the name of each of its rules. EXHAUSTED too_large. */
int nk__tool_grammar_prefix(const char *grammar, const char *prefix, struct nk_buf *out,
                            struct nk_error *err);

#endif
