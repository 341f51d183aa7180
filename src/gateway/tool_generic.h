/* Tools for models whose chat template knows none: they are explained in the system's message, and
 * calls and results of the past are text of the messages (nk__tool_form_generic). Pure. */
#ifndef NK_GATEWAY_TOOL_GENERIC_H
#define NK_GATEWAY_TOOL_GENERIC_H

#include <jansson.h>

#include "base/error.h"

/* The same messages for a template without tools; owned by the caller. tools: OpenAI's shape, or
 * NULL. NULL: no memory. */
json_t *nk__tool_generic_messages(const json_t *messages, const json_t *tools);

#endif
