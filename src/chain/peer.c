/* What peers say, and who they are, for people to read. */
#include "chain/chain_int.h"

int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w)
{
    return nk_wrap(code, err, "worker %s (%s)", w->id, w->address);
}
