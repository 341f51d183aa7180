/* Where a model's text goes piece by piece once it was taken apart (output.h, tool_call.h). */
#ifndef NK_GATEWAY_OUTPUT_SINK_H
#define NK_GATEWAY_OUTPUT_SINK_H

#include <stddef.h>

#include "base/error.h"

enum nk_output_kind {
    NK_OUTPUT_CONTENT,
    NK_OUTPUT_REASONING,
    NK_OUTPUT_TOOL,      /* a call begins: text is the function's name */
    NK_OUTPUT_ARGUMENTS, /* more of the current call's arguments (JSON) */
};
/* text is borrowed for the call. Returns 0, or an error that whoever takes text apart passes on. */
typedef int nk_output_sink(void *user, enum nk_output_kind kind, const char *text, size_t size,
                           struct nk_error *err);

#endif
