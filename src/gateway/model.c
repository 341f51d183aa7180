#include "gateway/model.h"

#include <stdio.h>
#include <string.h>

/* Without the tag that Ollama adds to names that have none. */
static size_t plain_size(const char *name)
{
    size_t n = strlen(name);

    return n > 7 && !strcmp(name + n - 7, ":latest") ? n - 7 : n;
}

bool nk__model_is_here(const nk_gateway *g, const char *name)
{
    size_t n = plain_size(name);

    for (int i = 0; i < g->n_names; i++)
        if (plain_size(g->names[i]) == n && !memcmp(g->names[i], name, n))
            return true;
    return false;
}

const char *nk__model_name(const nk_gateway *g)
{
    return g->names[g->n_names > 1];
}

int nk__model_check(const nk_gateway *g, const char *name, struct nk_error *err)
{
    char names[160] = "";
    size_t at = 0;

    if (nk__model_is_here(g, name))
        return 0;
    for (int i = 0; i < g->n_names && at + 40 < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s\"%.30s\"", i ? ", " : "",
                               g->names[i]);
    return nk_fail(err, NK_E_NOT_FOUND, "model_not_found", "model \"%.40s\" is not here; %s %s",
                   name, names, g->n_names > 1 ? "are its names" : "is");
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

    snprintf(out, 96, "build-%s-nakshatra-%.12s", w ? w->llama_version : "unknown",
             g->model_sha256);
    nk__snapshot_unref(s);
}
