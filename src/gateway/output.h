/* What a model wrote, taken apart while it comes: reasoning, content, tool calls. Pure.
 *
 * A state machine over text: feed() it pieces of any size and the sequence of events' texts is the
 * same, however the pieces were cut; text that may be the beginning of a marker is held back until
 * it is clear. What cannot be understood as a tool call is content: nothing is lost.
 *
 *   reasoning   first in the text, between the template's marks (<think> and </think> ...), or from
 *               the beginning when the prompt ended with the opening mark. White space next to the
 *               marks is dropped.
 *   tool calls  in the form of the template (struct nk_tool_form), only when the request has tools.
 *               Arguments go out as JSON, whatever they are written in; where that does not say
 *               what a value is, the tool's parameters do (tool_types).
 *
 * A call that is cut off: what is there of its arguments is given, without an end. Cut off before
 * its name is known, its text is content, without the marks. */
#ifndef NK_GATEWAY_OUTPUT_H
#define NK_GATEWAY_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "base/error.h"
#include "gateway/output_sink.h"
#include "gateway/tool_form.h"

/* The reasoning marks that a template uses; both NULL when it has none that are known. */
struct nk_think_marks {
    const char *open, *close;
    /* gpt-oss begins a new message after its reasoning, and after what it says before a call, and
     * marks what is content, in two ways; all are dropped. NULL: none. */
    const char *turn, *answer, *preamble;
};
struct nk_think_marks nk__think_marks_detect(const char *chat_template);
/* Does the prompt end inside of reasoning? */
bool nk__prompt_opens_think(const char *prompt, size_t size, struct nk_think_marks marks);

struct nk_output_opts {
    struct nk_think_marks think;
    bool starts_thinking;
    const struct nk_tool_form *tools; /* NULL: no calls. Borrowed as long as the object, as: */
    /* What the functions are called: for forms whose calls have no mark of their own, or whose
     * names stand between marks. */
    const char *const *tool_names;
    int n_tool_names;
    /* {N: {key: "string" or "string?"}}: which arguments are text, or text or null; what is not in
     * it is what it looks like. NULL: nothing is known. */
    const json_t *tool_types;
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
