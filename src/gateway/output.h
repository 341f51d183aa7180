/* What a model wrote, taken apart while it comes: reasoning, content, tool calls. Pure.
 *
 * A state machine over text: feed() it pieces of any size and the sequence of events' texts is the
 * same, however the pieces were cut; text that may be the beginning of a marker is held back until
 * it is clear. What cannot be understood as a tool call is content: nothing is lost.
 *
 *   reasoning   first in the text, between the template's marks (<think> and </think> ...), or from
 * the beginning when the prompt ended with the opening mark. White space next to the marks is
 * dropped. tool calls  in the words of the template (enum nk_tool_format), only when the request
 * has tools. */
#ifndef NK_GATEWAY_OUTPUT_H
#define NK_GATEWAY_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* clang-format off */
/* How templates teach a model to write a call.
 *   HERMES    <tool_call>{"name": N, "arguments": {...}}</tool_call>            Qwen 2.5/3, Hermes
 *   LLAMA     {"name": N, "parameters": {...}} as the whole text, perhaps after <|python_tag|>   Llama 3.x
 *   MISTRAL   [TOOL_CALLS][{"name": N, "arguments": {...}}, ...]                Mistral, Nemo
 *   ARGS      [TOOL_CALLS]N[ARGS]{...}                                          Mistral Small 3.2, Magistral
 *   DEEPSEEK  marks around N and a JSON object                                  DeepSeek V3, R1 */
#define NK_TOOL_FORMAT_MAP(XX) \
    XX(NONE, "none") XX(HERMES, "hermes") XX(LLAMA, "llama") XX(MISTRAL, "mistral") XX(ARGS, "mistral-args") \
    XX(DEEPSEEK, "deepseek")
/* clang-format on */
enum nk_tool_format {
#define XX(name, text) NK_TOOL_FORMAT_##name,
    NK_TOOL_FORMAT_MAP(XX)
#undef XX
};
const char *nk__tool_format_name(enum nk_tool_format f);
/* From the template's text. NONE: no format that is known. */
enum nk_tool_format nk__tool_format_detect(const char *chat_template);

/* The reasoning marks that a template uses; both NULL when it has none that are known. */
struct nk_think_marks {
    const char *open, *close;
    /* gpt-oss begins a new message after its reasoning, and marks what is content; both are dropped. NULL: none. */
    const char *turn, *answer;
};
struct nk_think_marks nk__think_marks_detect(const char *chat_template);
/* Does the prompt end inside of reasoning? */
bool nk__prompt_opens_think(const char *prompt, size_t size, struct nk_think_marks marks);

enum nk_output_kind {
    NK_OUTPUT_CONTENT,
    NK_OUTPUT_REASONING,
    NK_OUTPUT_TOOL,      /* a call begins: text is the function's name */
    NK_OUTPUT_ARGUMENTS, /* more of the current call's arguments (JSON) */
};
/* text is borrowed for the call. Returns 0, or an error that feed and finish pass on. */
typedef int nk_output_sink(void *user, enum nk_output_kind kind, const char *text, size_t size,
                           struct nk_error *err);

struct nk_output_opts {
    struct nk_think_marks think;
    bool starts_thinking;
    enum nk_tool_format tools;
    const char *const
        *tool_names; /* borrowed as long as the object; for LLAMA, where a call has no mark */
    int n_tool_names;
    bool one_call; /* what follows the first call is dropped, and nk__output_ended says so */
    nk_output_sink *sink;
    void *user;
};

typedef struct nk_output nk_output;

nk_output *nk__output_new(const struct nk_output_opts *opts); /* NULL: no memory */
void nk__output_free(nk_output *o);
int nk__output_feed(nk_output *o, const char *text, size_t size, struct nk_error *err);
int nk__output_finish(nk_output *o, struct nk_error *err); /* the text is over */
int nk__output_calls(const nk_output *o);                  /* tool calls so far */
bool nk__output_ended(const nk_output *o);        /* with one_call: there is nothing more to come */
bool nk__output_is_reasoning(const nk_output *o); /* what comes now is reasoning */

#endif
