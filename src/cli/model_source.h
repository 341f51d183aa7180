/* MODEL on the command line: a file, or something to be downloaded first. */
#ifndef NK_CLI_MODEL_SOURCE_H
#define NK_CLI_MODEL_SOURCE_H

#include "base/error.h"

/* For the summary of a command that takes one. */
#define NK_MODEL_SOURCE_HELP                                                                       \
    "The model may be an address (https://HOST/.../FILE.gguf) or a file of the Hugging Face hub "  \
    "(hf:ORG/REPO/FILE.gguf, @REVISION behind it if need be): it is downloaded once, into the "    \
    "cache."

/* The file that an argument means: itself, or for a source (hub/hub.h: https://..., hf:...) the
 * copy in the cache folder, downloaded first if need be, with progress on standard error. Ends soon
 * after a signal where nk_interrupt_init() was called. *path is owned by the caller.
 * Errors: nk_hub_get's. */
int nk_model_source(char **path, const char *argument, struct nk_error *err);

#endif
