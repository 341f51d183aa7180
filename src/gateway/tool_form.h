/* How a model writes tool calls, as its chat template shows it.
 *
 * No list of families: the template is rendered with an assistant's message whose calls have marked
 * names, keys and values, and the text around these is the form. What was learned is checked: the
 * parser (gateway/output.h) must read the rendered calls back as what they were. Parser and grammar
 * (gateway/tool_grammar.h) both work from the struct below. A few forms cannot be learned, because
 * the model writes what its template does not: they are in a table here, with the reason.
 *
 * Whom we distrust: the template. It is rendered by the caller's function, which has limits; the
 * number of renders, the text and every mark are bounded here. */
#ifndef NK_GATEWAY_TOOL_FORM_H
#define NK_GATEWAY_TOOL_FORM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

/* What a call looks like between its marks; N is the function's name. */
enum nk_tool_body {
    NK_TOOL_JSON,    /* {"name": N, "arguments": {...}}, with these or other keys */
    NK_TOOL_NAMED,   /* N, a mark, {...} */
    NK_TOOL_FIELDS,  /* N, then each argument between marks of its own: elements, key and value */
    NK_TOOL_LITERAL, /* N(key=value, ...) or N{key:value,...}: values as literals */
};

enum { NK_TOOL_MARK_BYTES = 160, NK_TOOL_KEY_BYTES = 32 };
enum { NK_TOOL_NAME_MAX = 256 }; /* bytes of a function's name, in requests and in calls */
typedef char nk_tool_mark[NK_TOOL_MARK_BYTES];

/* In a mark these stand for what varies from call to call. */
#define NK_TOOL_MARK_NUMBER '\2' /* digits */
#define NK_TOOL_MARK_ID     '\3' /* letters and digits */

/* Marks are as the template writes them, with its white space; "" is none. */
struct nk_tool_form {
    enum nk_tool_body body;
    nk_tool_mark section_open, section_close; /* around all calls of a message */
    nk_tool_mark call_open, call_close;       /* around each: up to N or the object */
    nk_tool_mark call_sep;                    /* between two */
    nk_tool_mark alt_open; /* what models write instead of section_open and call_open */
    /* JSON: the object's text before N, after its arguments. */
    nk_tool_mark object_open, object_close;
    char name_key[NK_TOOL_KEY_BYTES], args_key[NK_TOOL_KEY_BYTES];
    nk_tool_mark name_close; /* between N and the arguments */
    /* FIELDS, LITERAL: before a key, between key and value (of strings; of others), after a value,
     * between two arguments. */
    nk_tool_mark key_open, value_open_text, value_open, value_close, field_sep;
    nk_tool_mark quote; /* around strings; "": they are written bare */
    bool single;        /* the template takes one call a message */
    bool named_ids;     /* it writes a call's id, "functions.N:0", in N's place */
};

/* Renders messages (JSON) and tools (JSON, or NULL) with the template into out (appended). */
typedef int nk_tool_form_render(void *user, const char *messages, const char *tools,
                                bool add_generation_prompt, struct nk_buf *out,
                                struct nk_error *err);

/* think_close: the mark that ends reasoning, or NULL. text: the template, for the table.
 *   INVALID unknown_form   with the reason: what was rendered, and what is missing in it */
int nk__tool_form_learn(struct nk_tool_form *out, nk_tool_form_render *render, void *user,
                        const char *text, const char *think_close, struct nk_error *err);

/* The form that is explained to models whose template knows no tools:
 * <tool_call>{"name": N, "arguments": {...}}</tool_call> */
const struct nk_tool_form *nk__tool_form_generic(void);

/* Is there no word in what begins a call, so that it could be any text? */
bool nk__tool_form_is_weak(const struct nk_tool_form *f);

/* ---- for those who read marks ---- */

enum nk_tool_match { NK_TOOL_MATCH_NO, NK_TOOL_MATCH_PART, NK_TOOL_MATCH_YES };
/* Does text[0..n) begin with the mark? White space is no difference where the mark has some, and
 * before a bracket; a mark's own at its ends is not asked for. YES: *used of text is the mark.
 * PART: the text is too short to tell. "" never matches. */
enum nk_tool_match nk__tool_mark_match(const char *text, size_t n, const char *mark, size_t *used);
bool nk__tool_mark_is_empty(const char *mark); /* but for white space */

#endif
