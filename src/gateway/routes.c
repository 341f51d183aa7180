#include "gateway/routes.h"

#include <string.h>

#include "base/clock.h"
#include "gateway/routes_int.h"

enum { LOOK_MS_MAX = 15000 }; /* two checks and a probe: 9 s */

/* ---- what is known ---- */

const struct nk_chain_report *nk__routes_report(const struct nk_snapshot *s)
{
    for (int i = 0; s && i < s->n; i++)
        if (s->views[i].report->ok)
            return s->views[i].report;
    return s && s->n ? s->views[0].report : NULL;
}

bool nk__routes_ready(nk_gateway *g, const struct nk_snapshot *s, struct nk_error *err)
{
    err->code = 0;
    if (nk__readiness_none(&g->readiness, err))
        return false;
    if (s && !s->ready)
        *err = s->not_ready;
    return s && s->ready;
}

/* ---- health ---- */

static void answer_healthz(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)g, (void)rest, (void)request, (void)s;
    nk_buf_adds(a->body, "{\"status\":\"ok\"}", NULL);
}

static void answer_readyz(nk_gateway *g, const char *rest, const struct nk_buf *request,
                          const struct nk_snapshot *s, struct nk_route_answer *a)
{
    uint64_t stuck_ms = nk__pool_stuck_ms(g->pool), overdue_ms = nk__monitor_overdue_ms(g->monitor);
    struct nk_error why;

    (void)rest, (void)request;
    if (stuck_ms >= NK_POOL_STUCK_MS) {
        nk_fail(&a->err, NK_E_UNAVAILABLE, "helpers_stuck",
                "for %.0f s no thread has been free to prepare requests, and none has finished "
                "one: what they prepare takes too long, or never ends",
                (double)stuck_ms / 1000);
        return;
    }
    /* A look has deadlines of its own; one that takes longer tells nothing. */
    if (overdue_ms >= LOOK_MS_MAX) {
        nk_fail(&a->err, NK_E_UNAVAILABLE, "not_ready",
                "for %.0f s it has not been found out how the workers are",
                (double)overdue_ms / 1000);
        return;
    }
    /* A generation has just been lost with a worker, whatever the last look said. */
    if (nk__readiness_paused(&g->readiness, &a->err))
        return;
    if (nk__routes_ready(g, s, &why))
        nk_buf_adds(a->body, "{\"status\":\"ready\"}", NULL);
    else
        nk_fail(&a->err, NK_E_UNAVAILABLE, why.code ? why.reason : "not_ready", "%s",
                why.code ? why.msg : "the workers did not answer yet");
}

static void answer_health(nk_gateway *g, const char *rest, const struct nk_buf *request,
                          const struct nk_snapshot *s, struct nk_route_answer *a)
{
    answer_readyz(g, rest, request, s, a);
    nk_buf_reset(a->body);
    nk_buf_adds(a->body, "{\"status\":\"ok\"}", NULL); /* llama-server's word */
}

/* ---- the rest ---- */

static void answer_cluster(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)rest, (void)request;
    nk__cluster_json(g, s, a->trusted, a->body, &a->err);
}

static void answer_metrics(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)rest, (void)request;
    a->type = "text/plain; version=0.0.4; charset=utf-8";
    if (!nk__metrics_write(g->metrics, a->body, &a->err))
        nk__metrics_live_write(g, s, a->body, &a->err);
}

static void answer_bare(nk_gateway *g, const char *rest, const struct nk_buf *request,
                        const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)g, (void)rest, (void)request, (void)s;
    a->type = "text/plain; charset=utf-8";
    nk_buf_adds(a->body, "Nakshatra is running\n", NULL);
}

/* ---- the table ---- */

/* clang-format off */
#define REFUSED(path, method, openai, what) \
    { path, method, NK_ROUTE_REFUSED, openai, false, false, 0, 0, NULL, what }

static const struct nk_route routes[] = {
    { "/v1/chat/completions", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_CHAT, NULL,
      "OpenAI's chat" },
    { "/v1/completions", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_COMPLETION, NULL,
      "OpenAI's text continued" },
    { "/v1/messages", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_MESSAGES, NULL,
      "Anthropic's messages" },
    { "/v1/messages/count_tokens", "POST", NK_ROUTE_GENERATE, true, false, false, 0,
      NK_API_COUNT_TOKENS, NULL, "the tokens of the prompt that such a chat becomes" },
    { "/v1/responses", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RESPONSES, NULL,
      "OpenAI's responses" },
    { "/v1/responses/", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_response,
      "a stored response by its id, or its `ID/input_items`" },
    { "/v1/responses/", "DELETE", NK_ROUTE_SHORT, true, false, false, 0, 0,
      nk__answer_response_delete, "forgets one" },
    { "/v1/responses/", "POST", NK_ROUTE_SHORT, true, false, false, 0, 0,
      nk__answer_response_cancel,
      "`ID/cancel`: ends one that is being computed" },
    { "/responses", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RESPONSES, NULL,
      "the same as /v1/responses" },
    { "/chat/completions", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_CHAT, NULL,
      "the same as /v1/chat/completions" },
    { "/completion", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_LLAMA_COMPLETION,
      NULL, "llama-server's own completion" },
    { "/completions", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_LLAMA_COMPLETION,
      NULL, "the same" },
    { "/infill", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_INFILL, NULL,
      "llama-server's: what is between two texts" },
    { "/v1/embeddings", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_EMBEDDINGS, NULL,
      "OpenAI's vectors of texts, of an embedding model" },
    { "/v1/rerank", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RERANK, NULL,
      "documents by how well they answer a query, of a reranker" },
    { "/rerank", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RERANK, NULL,
      "the same" },
    { "/v1/reranking", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RERANK, NULL,
      "the same" },
    { "/reranking", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_RERANK, NULL,
      "the same" },
    { "/embedding", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_LLAMA_EMBEDDING, NULL,
      "llama-server's vectors of texts" },
    { "/embeddings", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_LLAMA_EMBEDDING,
      NULL, "the same" },
    { "/v1/models", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_models,
      "the model, with all its names" },
    { "/v1/models/", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_models,
      "one of its names" },
    { "/models", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_models,
      "the same as /v1/models" },
    { "/models/", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_models,
      "one of its names" },
    { "/api/chat", "POST", NK_ROUTE_GENERATE, false, false, false, 0, NK_API_OLLAMA_CHAT, NULL,
      "Ollama's chat" },
    { "/api/generate", "POST", NK_ROUTE_GENERATE, false, false, false, 0, NK_API_OLLAMA_GENERATE,
      NULL, "Ollama's text" },
    { "/api/embed", "POST", NK_ROUTE_GENERATE, false, false, false, 0, NK_API_OLLAMA_EMBED, NULL,
      "Ollama's vectors of texts" },
    { "/api/embeddings", "POST", NK_ROUTE_GENERATE, false, false, false, 0,
      NK_API_OLLAMA_EMBEDDINGS, NULL, "the vector of one text, as older programs ask Ollama" },
    { "/api/tags", "GET", NK_ROUTE_LOOK, false, false, false, 10000, 0, nk__answer_tags,
      "Ollama's list of models" },
    { "/api/ps", "GET", NK_ROUTE_LOOK, false, false, false, 2000, 0, nk__answer_ps,
      "Ollama's list of models in memory" },
    { "/api/show", "POST", NK_ROUTE_LOOK, false, false, false, 10000, NK_API_OLLAMA_SHOW,
      nk__answer_show, "Ollama's view of the model" },
    { "/api/version", "GET", NK_ROUTE_SHORT, false, false, false, 0, 0, nk__answer_version,
      "the gateway's version" },
    { "/tokenize", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_TOKENIZE, NULL,
      "llama-server's: text to token ids" },
    { "/detokenize", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_DETOKENIZE, NULL,
      "llama-server's: token ids to text" },
    { "/apply-template", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_APPLY_TEMPLATE,
      NULL, "llama-server's: a chat as the prompt that it becomes" },
    { "/props", "GET", NK_ROUTE_LOOK, true, false, false, 2000, 0, nk__answer_props,
      "llama-server's: the model, its template and the defaults of a request" },
    { "/slots", "GET", NK_ROUTE_LOOK, true, false, false, 1000, 0, nk__answer_slots,
      "llama-server's: for each sequence, whether it is busy" },
    { "/version", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, nk__answer_version,
      "the gateway's version" },
    { "/cluster", "GET", NK_ROUTE_LOOK, true, false, false, 1000, 0, answer_cluster,
      "the cluster as it is, one JSON object" },
    { "/cluster/events", "GET", NK_ROUTE_EVENTS, true, false, false, 0, 0, NULL,
      "the same, once a second, as server-sent events" },
    { "/metrics", "GET", NK_ROUTE_LOOK, true, false, false, 2000, 0, answer_metrics,
      "Prometheus" },
    { "/healthz", "GET", NK_ROUTE_SHORT, true, true, false, 0, 0, answer_healthz,
      "200 while the process answers" },
    { "/readyz", "GET", NK_ROUTE_LOOK, true, true, true, 2000, 0, answer_readyz,
      "200 when a request would run, else 503 with the reason" },
    { "/health", "GET", NK_ROUTE_LOOK, true, true, true, 2000, 0, answer_health,
      "the same, by llama-server's name" },
    { "/v1/health", "GET", NK_ROUTE_LOOK, true, true, true, 2000, 0, answer_health, "the same" },
    REFUSED("/v1/moderations",  "POST", true,  "there is no model for it"),
    REFUSED("/v1/audio/",       "POST", true,  "only text"),
    REFUSED("/v1/images/",      "POST", true,  "only text"),
    REFUSED("/v1/files",        "POST", true,  "nothing is stored"),
    REFUSED("/v1/batches",      "POST", true,
      "send the requests themselves; they are computed together"),
    REFUSED("/v1/fine_tuning/", "POST", true,  "models are only read"),
    REFUSED("/api/pull",        "POST", false,
      "the model is the one that the workers loaded; nakshatra split prepares another"),
    REFUSED("/api/push",        "POST", false, "there is no registry"),
    REFUSED("/api/create",      "POST", false,
      "the model is the one that the workers loaded; nakshatra split prepares another"),
    REFUSED("/api/copy",        "POST", false, "serve --name gives the model another name"),
    REFUSED("/api/delete",      "DELETE", false, "the model is the one that the workers loaded"),
    REFUSED("/api/blobs/",      "POST", false, "nothing is stored"),
};
static const struct nk_route asset_route = {
    "/", "GET", NK_ROUTE_ASSET, true, true, false, 0, 0, NULL,
    "the page and its files; where there is none, one line of text"
};
/* Ollama's programs ask for it to see whether a server is there. */
static const struct nk_route bare_route = {
    "/", "GET", NK_ROUTE_SHORT, true, true, false, 0, 0, answer_bare, NULL
};
/* clang-format on */

const struct nk_route *nk__route_at(int idx)
{
    int n = (int)(sizeof routes / sizeof routes[0]);

    return idx < 0 || idx > n ? NULL : idx == n ? &asset_route : &routes[idx];
}

enum nk_dialect nk__route_dialect(const struct nk_route *r)
{
    if (r && r->kind == NK_ROUTE_GENERATE)
        return nk__api_dialect(r->api);
    return r && !r->openai ? NK_DIALECT_OLLAMA : NK_DIALECT_OPENAI;
}

const struct nk_asset *nk__asset_find(const char *path)
{
    for (const struct nk_asset *a = nk__assets; a->path; a++)
        if (!strcmp(a->path, path))
            return a;
    return NULL;
}

static bool fits_method(const struct nk_route *r, const char *method)
{
    return r->kind == NK_ROUTE_REFUSED || !strcmp(method, r->method) ||
           (!strcmp(method, "HEAD") && !strcmp(r->method, "GET"));
}

static bool fits_path(const struct nk_route *r, const char *path)
{
    size_t n = strlen(r->path);

    return !strcmp(r->path, path) ||
           (r->path[n - 1] == '/' && !strncmp(r->path, path, n) && path[n]);
}

const struct nk_route *nk__route_find(const char *path, const char *method, bool page, bool *fits,
                                      const char **allowed)
{
    const struct nk_route *found = page && nk__asset_find(path) ? &asset_route
                                   : !strcmp(path, "/")         ? &bare_route
                                                                : NULL;
    int n = 0; /* methods of the path */

    for (size_t i = 0; i < sizeof routes / sizeof routes[0] && (!found || n); i++) {
        if (!fits_path(&routes[i], path) || (found && strcmp(found->path, routes[i].path) != 0))
            continue;
        n++;
        if (!found || (!fits_method(found, method) && fits_method(&routes[i], method)))
            found = &routes[i];
    }
    if (!found)
        return NULL;
    *fits = fits_method(found, method);
    *allowed = n > 1                           ? "GET, HEAD, POST, DELETE, OPTIONS"
               : !strcmp(found->method, "GET") ? "GET, HEAD, OPTIONS"
                                               : "POST, OPTIONS";
    return found;
}
