#include "gateway/model.h"

#include <stdio.h>
#include <stdlib.h>
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

    if (g->opts.any_model || nk__model_is_here(g, name))
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

const char *nk__model_pooling(const nk_vocab *v)
{
    static const char *const names[] = { "", "mean", "cls", "last", "rank" }; /* GGUF's numbers */
    char arch[80], key[100], value[32];
    unsigned long n = 0;

    if (nk_vocab_meta(v, "general.architecture", arch, sizeof arch)) {
        snprintf(key, sizeof key, "%s.pooling_type", arch);
        if (nk_vocab_meta(v, key, value, sizeof value))
            n = strtoul(value, NULL, 10);
    }
    return n < sizeof names / sizeof names[0] ? names[n] : "";
}

int nk__model_check_kind(const nk_gateway *g, enum nk_api api, struct nk_error *err)
{
    bool ranks = !strcmp(g->pooling, "rank");

    if (api == NK_API_OLLAMA_SHOW || nk__api_is_text(api))
        return 0;
    if (!nk__api_is_embed(api) && g->pooling[0])
        return nk_fail(err, NK_E_INVALID, "embedding_model",
                       "this is %s: it generates no text. It answers %s",
                       ranks ? "a reranker" : "an embedding model",
                       ranks ? "/v1/rerank" : "/v1/embeddings, /embedding and /api/embed");
    if (api == NK_API_RERANK && !ranks)
        return nk_fail(err, NK_E_INVALID, "not_a_reranker",
                       "this is %s, not a reranker (a model whose file says pooling rank): it has "
                       "no ranks to give",
                       g->pooling[0] ? "an embedding model" : "a model that generates text");
    if (api != NK_API_RERANK && nk__api_is_embed(api) && (ranks || !g->pooling[0]))
        return nk_fail(err, NK_E_INVALID, "not_an_embedding_model",
                       "this is %s: the workers compute %s, not embeddings. A model whose file "
                       "says how its rows are pooled (mean, cls or last) gives them",
                       ranks ? "a reranker" : "a model that generates text",
                       ranks ? "ranks" : "tokens");
    return 0;
}

void nk__model_fingerprint(nk_gateway *g, char out[96])
{
    struct nk_snapshot *s = nk__monitor_peek(g->monitor);
    const struct nk_worker_report *w = nk__model_worker(s);

    snprintf(out, 96, "build-%s-nakshatra-%.12s", w ? w->llama_version : "unknown",
             g->model_sha256);
    nk__snapshot_unref(s);
}
