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

const struct nk_worker_report *nk__model_worker(const struct nk_snapshot *s)
{
    for (int k = 0; s && k < s->n; k++)
        for (int i = 0; i < s->views[k].report->n_workers; i++)
            if (s->views[k].report->workers[i].answered)
                return &s->views[k].report->workers[i];
    return NULL;
}

void nk__model_fingerprint(nk_gateway *g, char out[96])
{
    struct nk_snapshot *s = nk__monitor_peek(g->monitor);
    const struct nk_worker_report *w = nk__model_worker(s);

    snprintf(out, 96, "nakshatra-%.12s-%s", g->model_sha256, w ? w->llama_version : "unknown");
    nk__snapshot_unref(s);
}
