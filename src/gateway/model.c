#include "gateway/model.h"

#include <stdio.h>
#include <string.h>

bool nk__model_is_here(const nk_gateway *g, const char *name)
{
    size_t n = strlen(name);

    if (n > 7 && !strcmp(name + n - 7, ":latest"))
        n -= 7;
    for (int i = 0; i < g->n_names; i++)
        if (strlen(g->names[i]) == n && !memcmp(g->names[i], name, n))
            return true;
    return false;
}

void nk__model_fingerprint(nk_gateway *g, char out[96])
{
    struct nk_snapshot *s = nk__monitor_peek(g->monitor);
    const struct nk_worker_report *w = s && s->report->n_workers ? &s->report->workers[0] : NULL;

    snprintf(out, 96, "nakshatra-%.12s-%s", nk_chain_cluster(g->chain)->model_sha256,
             w && w->answered ? w->llama_version : "unknown");
    nk__snapshot_unref(s);
}
