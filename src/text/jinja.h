/* Chat templates: the Jinja text that a model carries (tokenizer.chat_template) or an operator
 * gives, rendered by minja (a header library; C++, kept behind this header).
 *
 * Whom we distrust: messages, tools and variables come from clients and are hostile; the template
 * comes from a file that the operator chose, and who made that is not known. So sizes and depths of
 * the input are bounded, and so are the output, range(), the number of steps and the depth of
 * recursion of a render. Nothing here throws; but a template can divide by zero, build a string
 * larger than the memory, or overflow the stack while it is parsed: see text/template.h.
 *
 * A template that cannot be rendered is an error, never a silent fallback. Three things that
 * templates cannot agree on are settled as in llama.cpp: a tool call's `arguments` are handed over
 * as the template wants them (an object, or JSON text); a string `content` becomes a list of typed
 * parts where the template only knows these; and where it has no system role, the system text goes
 * in front of the next user message. */
#ifndef NK_TEXT_JINJA_H
#define NK_TEXT_JINJA_H

#ifdef __cplusplus
extern "C" {
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum {
    NK_JINJA_TEMPLATE_MAX = 256 << 10, /* bytes; the largest in use have 30 KiB */
    NK_JINJA_INPUT_MAX = 16 << 20,     /* bytes of messages, tools and extra together */
    NK_JINJA_DEPTH_MAX = 64,           /* of JSON values */
};

typedef struct nk_jinja nk_jinja;

/* What the template does with its input, found out by rendering small examples when it is
 * opened. */
struct nk_jinja_caps {
    bool system_role;      /* has one; else system text is put in front of the next user message */
    bool tools;            /* shows the tools; a request with tools is pointless otherwise */
    bool tool_calls;       /* shows an assistant message's tool_calls */
    bool object_arguments; /* wants a tool call's arguments as an object rather than as JSON text */
    bool typed_content;    /* wants content as a list of {"type": "text", "text": ...} */
};

/* Parses. bos, eos: the text of these tokens ("" or NULL where the model has none). *out is owned
 * by the caller; any thread may use it, several at once.
 *   INVALID    bad_template   not UTF-8, too large, or the engine's sentence */
int nk_jinja_new(nk_jinja **out, const char *tmpl, const char *bos, const char *eos,
                 struct nk_error *err);
void nk_jinja_free(nk_jinja *j);
struct nk_jinja_caps nk_jinja_describe(const nk_jinja *j);

struct nk_jinja_input {
    /* JSON: an array of {role, content, tool_calls, tool_call_id, name, reasoning_content}. */
    const char *messages;
    /* JSON: an array; NULL: none. */
    const char *tools;
    /* JSON: an object of further variables ({"enable_thinking": false}); NULL: none. */
    const char *extra;
    bool add_generation_prompt;
    int64_t now; /* seconds since 1970, UTC, for strftime_now() */
};

/* Renders into out (appended; its ceiling is the output's).
 *   INVALID    reserved_name  extra has a name that is set here (messages, tools, range ...) or is
 *                             one of the engine's functions
 *   INVALID    bad_messages   not JSON, too deep, too large, or not of the shape above
 *   INVALID    bad_template   the engine's sentence, raise_exception()'s text included; or too many
 *                             steps
 *   EXHAUSTED  too_large      the output */
int nk_jinja_render(const nk_jinja *j, const struct nk_jinja_input *input, struct nk_buf *out,
                    struct nk_error *err);

#ifdef __cplusplus
}
#endif
#endif
