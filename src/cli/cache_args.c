#include "cli/cache_args.h"

#include "stage/stage.h"

int nk_cache_args_check(const struct nk_cache_args *c, struct nk_error *err)
{
    int rc = nk_cache_type_check(c->type_k, NULL, false, err);

    if (rc)
        return nk_wrap(rc, err, "--cache-type-k");
    rc = nk_cache_type_check(NULL, c->type_v, c->no_flash_attn, err);
    return rc ? nk_wrap(rc, err, "--cache-type-v") : 0;
}
