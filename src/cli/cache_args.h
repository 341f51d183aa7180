/* The KV cache's types and how attention is computed, as options of the commands that load layers. */
#ifndef NK_CLI_CACHE_ARGS_H
#define NK_CLI_CACHE_ARGS_H

#include <stdbool.h>

#include "base/error.h"

struct nk_cache_args {
    const char *type_k, *type_v; /* NULL: f16 */
    bool no_flash_attn;
};

/* clang-format off */
#define NK_CACHE_ARGS(c)                                                                                                     \
    { "cache-type-k", 0, NK_ARG_STRING, &(c).type_k, "TYPE", "of the KV cache's keys: f32, f16, bf16, q8_0, ... (f16)", 0, 0 }, \
    { "cache-type-v", 0, NK_ARG_STRING, &(c).type_v, "TYPE", "and of its values (f16)", 0, 0 },                              \
    { "no-flash-attn", 0, NK_ARG_FLAG, &(c).no_flash_attn, NULL, "plain attention", 0, 0 }
/* clang-format on */

/*   INVALID  bad_option  names the option */
int nk_cache_args_check(const struct nk_cache_args *c, struct nk_error *err);

#endif
