/* The KV cache's types and how attention is computed, as options of the commands that load
 * layers. */
#ifndef NK_CLI_CACHE_ARGS_H
#define NK_CLI_CACHE_ARGS_H

#include <stdbool.h>

#include "base/args.h"
#include "base/error.h"

struct nk_cache_args {
    const char *type_k, *type_v; /* nk_cache_type_check's names */
    bool no_flash_attn;
};

enum { NK_SEQUENCES = 8 }; /* sessions at once, by default */

#define NK_CACHE_ARGS_INIT                                                                         \
    {                                                                                              \
        .type_k = "f16", .type_v = "f16"                                                           \
    }

/* Rows of a command's table of arguments (struct nk_cache_args c). */
#define NK_CACHE_ARGS(c)                                                                           \
    NK_OPT_STRING("cache-type-k", 0, &(c).type_k, "TYPE",                                          \
                  "of the KV cache's keys: f32, f16, bf16, q8_0, ..."),                            \
        NK_OPT_STRING("cache-type-v", 0, &(c).type_v, "TYPE", "and of its values"),                \
        NK_OPT_FLAG("no-flash-attn", 0, &(c).no_flash_attn, "plain attention")

/*   INVALID  bad_option  names the option */
int nk_cache_args_check(const struct nk_cache_args *c, struct nk_error *err);

#endif
