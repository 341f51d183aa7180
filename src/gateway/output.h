/* What a model wrote, taken apart while it comes: reasoning, content, tool calls. Pure.
 *
 * A state machine over text: feed() it pieces of any size and the sequence of events' texts is the
 * same, however the pieces were cut; text that may be the beginning of a marker is held back until
 * it is clear. What cannot be understood as a tool call is content: nothing is lost.
 *
 *   reasoning   first in the text, between the template's marks (<think> and </think> ...), or from
 *               the beginning when the prompt ended with the opening mark. White space next to the
 *               marks is dropped.
 *   tool calls  in the words of the template (enum nk_tool_format), only when the request has
 *               tools. */
#ifndef NK_GATEWAY_OUTPUT_H
#define NK_GATEWAY_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "gateway/output_sink.h"

/* How templates teach a model to write a call: N is the function's name. */
enum nk_tool_format {
    NK_TOOL_FORMAT_NONE,
    /* <tool_call>{"name": N, "arguments": {...}}</tool_call>: Qwen 2.5 and 3, Hermes */
    NK_TOOL_FORMAT_HERMES,
    /* {"name": N, "parameters": {...}} as the whole text, perhaps after <|python_tag|>: Llama 3 */
    NK_TOOL_FORMAT_LLAMA,
    /* [TOOL_CALLS][{"name": N, "arguments": {...}}, ...]: Mistral, Nemo */
    NK_TOOL_FORMAT_MISTRAL,
    /* [TOOL_CALLS]N[ARGS]{...}: Mistral Small 3.2, Magistral */
    NK_TOOL_FORMAT_ARGS,
    /* marks around N and a JSON object: DeepSeek V3, R1 */
    NK_TOOL_FORMAT_DEEPSEEK,
};
/* From the template's text. NONE: no format that is known. */
enum nk_tool_format nk__tool_format_detect(const char *chat_template);

/* The reasoning marks that a template uses; both NULL when it has none that are known. */
struct nk_think_marks {
    const char *open, *close;
    /* gpt-oss begins a new message after its reasoning, and marks what is content; both are
     * dropped. NULL: none. */
    const char *turn, *answer;
};
struct nk_think_marks nk__think_marks_detect(const char *chat_template);
/* Does the prompt end inside of reasoning? */
bool nk__prompt_opens_think(const char *prompt, size_t size, struct nk_think_marks marks);

struct nk_output_opts {
    struct nk_think_marks think;
    bool starts_thinking;
    enum nk_tool_format tools;
    /* For LLAMA, where a call has no mark. Borrowed as long as the object. */
    const char *const *tool_names;
    int n_tool_names;
    bool one_call; /* what follows the first call is dropped, and nk__output_ended says so */
    nk_output_sink *sink;
    void *user;
};

typedef struct nk_output nk_output;

nk_output *nk__output_new(const struct nk_output_opts *opts); /* NULL: no memory */
void nk__output_free(nk_output *o);
/* Takes more text, or (finish) knows that there is no more. 0, or an error of the sink or of memory
 * (EXHAUSTED). */
int nk__output_feed(nk_output *o, const char *text, size_t size, struct nk_error *err);
int nk__output_finish(nk_output *o, struct nk_error *err);
bool nk__output_ended(const nk_output *o);        /* with one_call: there is nothing more to come */
bool nk__output_is_reasoning(const nk_output *o); /* what comes now is reasoning */

#endif
