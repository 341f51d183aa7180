#include "gateway/routes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "gateway/job.h"
#include "gateway/model.h"
#include "gateway/reply.h"

enum {
    SESSIONS_SHOWN = 64,
    LOOK_MS_MAX = 15000, /* two checks and a probe: 9 s */
    OF_USER_BYTES_MAX = 1 << 20,
};

/* ---- what is known ---- */

/* One whole model: a chain whose workers are there, or any; NULL: there is none. */
static const struct nk_chain_report *any_report(const struct nk_snapshot *s)
{
    for (int i = 0; s && i < s->n; i++)
        if (s->views[i].report->ok)
            return s->views[i].report;
    return s && s->n ? s->views[0].report : NULL;
}

static uint64_t weights_bytes(const struct nk_snapshot *s)
{
    const struct nk_chain_report *r = any_report(s);
    uint64_t sum = 0;

    for (int i = 0; r && i < r->n_workers; i++)
        sum += r->workers[i].answered ? r->workers[i].weights_bytes : 0;
    return sum;
}

/* Is it ready? Else *err says why not; code 0: that is not known yet. */
static bool is_ready(nk_gateway *g, const struct nk_snapshot *s, struct nk_error *err)
{
    err->code = 0;
    if (nk__readiness_none(&g->readiness, err))
        return false;
    if (s && !s->ready)
        *err = s->not_ready;
    return s && s->ready;
}

/* ---- small pieces of JSON ---- */

/* Out of memory is found once, at the end: the buffer then lacks its last bytes. */
struct out {
    struct nk_buf *b;
    int rc;
};

static void raw(struct out *o, const char *text)
{
    if (!o->rc)
        o->rc = nk_buf_adds(o->b, text, NULL);
}

static void key(struct out *o, const char *name)
{
    char last = o->b->size ? o->b->data[o->b->size - 1] : '{';

    raw(o, last == '{' || last == '[' ? "\"" : ",\"");
    raw(o, name);
    raw(o, "\":");
}

static void str(struct out *o, const char *name, const char *value)
{
    key(o, name);
    if (!o->rc)
        o->rc = nk_json_str(o->b, value, NULL);
}

static void num(struct out *o, const char *name, double value)
{
    key(o, name);
    if (!o->rc)
        o->rc = nk_json_num(o->b, value, NULL);
}

static void boolean(struct out *o, const char *name, bool value)
{
    key(o, name);
    raw(o, value ? "true" : "false");
}

static void null(struct out *o, const char *name)
{
    key(o, name);
    raw(o, "null");
}

static void error_member(struct out *o, const struct nk_error *err)
{
    key(o, "error");
    if (!err) {
        raw(o, "null");
        return;
    }
    raw(o, "{");
    str(o, "code", err->reason);
    str(o, "message", err->msg);
    raw(o, "}");
}

/* ---- OpenAI ---- */

static void write_model(struct out *o, nk_gateway *g, const char *name, const struct nk_snapshot *s)
{
    raw(o, "{");
    str(o, "id", name);
    str(o, "object", "model");
    num(o, "created", (double)g->started);
    str(o, "owned_by", "nakshatra");
    key(o, "aliases");
    raw(o, "[");
    for (int i = 0; i < g->n_names && !o->rc; i++) {
        raw(o, i ? "," : "");
        o->rc = nk_json_str(o->b, g->names[i], NULL);
    }
    raw(o, "]");
    if (s && s->ok)
        num(o, "context_length", s->n_ctx);
    raw(o, "}");
}

static void answer_models(nk_gateway *g, const char *rest, const struct nk_buf *request,
                          const struct nk_snapshot *s, struct nk_route_answer *a)
{
    struct out o = { a->body, 0 };

    (void)request;
    if (rest[0] && nk__model_check(g, rest, &a->err))
        return;
    if (rest[0]) {
        write_model(&o, g, rest, s);
        return;
    }
    raw(&o, "{\"object\":\"list\",\"data\":[");
    write_model(&o, g, nk__model_name(g), s);
    raw(&o, "]}");
}

/* ---- stored responses ---- */

/* The id, and what follows it: "" or a word. False: neither. */
static bool response_path(const char *rest, char id[64], const char **word)
{
    size_t n = strcspn(rest, "/");

    if (!n || n >= 64)
        return false;
    snprintf(id, 64, "%.*s", (int)n, rest);
    *word = rest[n] ? rest + n + 1 : "";
    return true;
}

static void no_such(const char *rest, struct nk_route_answer *a)
{
    nk_fail(&a->err, NK_E_NOT_FOUND, "unknown_route",
            "there is no /v1/responses/%.100s; there are ID, ID/input_items and, as POST, "
            "ID/cancel",
            rest);
}

/* The newest first, as OpenAI has them. */
static void write_input_items(nk_gateway *g, const char *id, struct nk_route_answer *a)
{
    struct nk_buf list = NK_BUF_INIT(a->body->max);
    struct nk_json_writer w = NK_JSON_WRITER(a->body, NULL);
    json_t *items;

    if (nk__responses_input(g->responses, a->key, id, &list, &a->err)) {
        nk_buf_release(&list);
        return;
    }
    items = json_loads(nk_buf_str(&list), 0, NULL);
    nk_buf_release(&list);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "object", "list");
    nk_json_begin(&w, "data", '[');
    for (size_t i = json_array_size(items); i > 0; i--) {
        char *text = json_dumps(json_array_get(items, i - 1), JSON_COMPACT);

        nk_json_put_raw(&w, NULL, text ? text : "");
        free(text);
    }
    nk_json_end(&w, ']');
    nk_json_put_null(&w, "first_id");
    nk_json_put_null(&w, "last_id");
    nk_json_put_bool(&w, "has_more", false);
    nk_json_end(&w, '}');
    json_decref(items);
}

static void answer_response(nk_gateway *g, const char *rest, const struct nk_buf *request,
                            const struct nk_snapshot *s, struct nk_route_answer *a)
{
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || (word[0] && strcmp(word, "input_items") != 0))
        no_such(rest, a);
    else if (word[0])
        write_input_items(g, id, a);
    else
        nk__responses_get(g->responses, a->key, id, a->body, &a->err);
}

static void answer_response_delete(nk_gateway *g, const char *rest, const struct nk_buf *request,
                                   const struct nk_snapshot *s, struct nk_route_answer *a)
{
    struct nk_json_writer w = NK_JSON_WRITER(a->body, NULL);
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || word[0]) {
        no_such(rest, a);
        return;
    }
    if (nk__responses_delete(g->responses, a->key, id, &a->err))
        return;
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "id", id);
    nk_json_put_str(&w, "object", "response");
    nk_json_put_bool(&w, "deleted", true);
    nk_json_end(&w, '}');
}

static void answer_response_cancel(nk_gateway *g, const char *rest, const struct nk_buf *request,
                                   const struct nk_snapshot *s, struct nk_route_answer *a)
{
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || strcmp(word, "cancel") != 0) {
        no_such(rest, a);
        return;
    }
    if (nk__responses_running(g->responses, a->key, id, &a->err))
        return;
    nk__jobs_cancel_response(g, id, a->key);
    nk__responses_end(g->responses, id, "cancelled");
    nk__responses_get(g->responses, a->key, id, a->body, &a->err);
}

/* ---- Ollama ---- */

static void write_details(struct out *o, const struct nk_snapshot *s)
{
    const struct nk_worker_report *w = nk__model_worker(s);

    key(o, "details");
    raw(o, "{");
    str(o, "parent_model", "");
    str(o, "format", "gguf");
    str(o, "family", w ? w->architecture : "");
    key(o, "families");
    raw(o, "[");
    if (w && !o->rc)
        o->rc = nk_json_str(o->b, w->architecture, NULL);
    raw(o, "]");
    str(o, "parameter_size", "");
    str(o, "quantization_level", w ? w->quantisation : "");
    raw(o, "}");
}

static void format_time(char out[32], int64_t unix_s)
{
    time_t t = (time_t)unix_s;
    struct tm tm;

    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void write_tag(struct out *o, nk_gateway *g, const char *name, const struct nk_snapshot *s)
{
    char tagged[200];

    snprintf(tagged, sizeof tagged, "%.180s%s", name, strchr(name, ':') ? "" : ":latest");
    str(o, "name", tagged);
    str(o, "model", tagged);
    num(o, "size", (double)weights_bytes(s));
    str(o, "digest", g->model_sha256);
    write_details(o, s);
}

static void answer_tags(nk_gateway *g, const char *rest, const struct nk_buf *request,
                        const struct nk_snapshot *s, struct nk_route_answer *a)
{
    struct out o = { a->body, 0 };
    char when[32];

    (void)rest, (void)request;
    format_time(when, g->started);
    raw(&o, "{\"models\":[{");
    write_tag(&o, g, nk__model_name(g), s);
    str(&o, "modified_at", when);
    raw(&o, "}]}");
}

/* The model is there as long as its workers: there is no time at which it would go. */
static void answer_ps(nk_gateway *g, const char *rest, const struct nk_buf *request,
                      const struct nk_snapshot *s, struct nk_route_answer *a)
{
    const struct nk_chain_report *r = any_report(s);
    struct out o = { a->body, 0 };

    (void)rest, (void)request;
    raw(&o, "{\"models\":[");
    if (s && s->ok) {
        uint64_t vram = 0;

        for (int k = 0; k < r->n_workers; k++)
            if (strcmp(r->workers[k].backend, "CPU"))
                vram += r->workers[k].weights_bytes + r->workers[k].kv_bytes;
        raw(&o, "{");
        write_tag(&o, g, nk__model_name(g), s);
        str(&o, "expires_at", "9999-12-31T23:59:59Z");
        num(&o, "size_vram", (double)vram);
        num(&o, "context_length", s->n_ctx);
        raw(&o, "}");
    }
    raw(&o, "]}");
}

static void answer_version(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    struct out o = { a->body, 0 };

    (void)g, (void)rest, (void)request, (void)s;
    raw(&o, "{");
    str(&o, "version", NK_VERSION);
    raw(&o, "}");
}

static void info(struct out *o, const char *architecture, const char *name, double value)
{
    char full[128];

    snprintf(full, sizeof full, "%.60s.%s", architecture, name);
    num(o, full, value);
}

static void answer_show(nk_gateway *g, const char *rest, const struct nk_buf *request,
                        const struct nk_snapshot *s, struct nk_route_answer *a)
{
    const struct nk_request_limits limits = { .messages_max = 1,
                                              .n_max = 1,
                                              .strict = g->opts.strict };
    const struct nk_prompter_caps caps = nk__prompter_caps(g->prompter);
    const struct nk_worker_report *w = nk__model_worker(s);
    struct out o = { a->body, 0 };
    struct nk_request_error e;
    struct nk_request r;
    char when[32];

    (void)rest;
    if (nk__request_parse(&r, NK_API_OLLAMA_SHOW, nk_buf_str(request), request->size, &limits,
                          &e)) {
        a->err = e.err;
        snprintf(a->param, sizeof a->param, "%.60s", e.param);
        return;
    }
    if (r.model)
        nk__model_check(g, r.model, &a->err);
    nk__request_release(&r);
    if (a->err.code)
        return;
    format_time(when, g->started);
    raw(&o, "{");
    str(&o, "modelfile", "");
    str(&o, "parameters", "");
    str(&o, "template", caps.chat_template ? caps.chat_template : "");
    write_details(&o, s);
    key(&o, "model_info");
    raw(&o, "{");
    if (w) {
        str(&o, "general.architecture", w->architecture);
        info(&o, w->architecture, "context_length", w->n_ctx_train);
        info(&o, w->architecture, "block_count", w->layer_count);
        info(&o, w->architecture, "embedding_length", w->n_embd);
        info(&o, w->architecture, "vocab_size", w->n_vocab);
    }
    raw(&o, "}");
    key(&o, "capabilities");
    raw(&o, "[\"completion\"");
    if (caps.tools)
        raw(&o, ",\"tools\"");
    if (caps.thinking)
        raw(&o, ",\"thinking\"");
    raw(&o, "]");
    str(&o, "modified_at", when);
    raw(&o, "}");
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
    if (is_ready(g, s, &why))
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

/* ---- /cluster ---- */

static void write_gateway(struct out *o, nk_gateway *g)
{
    struct nk_admission_counts c = nk__readiness_counts(&g->readiness);

    key(o, "gateway");
    raw(o, "{");
    str(o, "version", NK_VERSION);
    num(o, "uptime_s", (double)(nk_clock_now_ns(g->clock) - g->started_ns) / 1e9);
    num(o, "running", c.running);
    num(o, "running_max", c.capacity);
    num(o, "ending", c.ending);
    num(o, "waiting", c.waiting);
    num(o, "waiting_max", c.waiting_max);
    pthread_mutex_lock(&g->mutex);
    num(o, "listeners", g->n_listeners);
    num(o, "tokens_per_second", g->tokens_per_second);
    pthread_mutex_unlock(&g->mutex);
    num(o, "requests_total", nk__metrics_total(g->metrics, NK_METRIC_REQUESTS));
    num(o, "errors_total", nk__metrics_total(g->metrics, NK_METRIC_ERRORS));
    num(o, "prompt_tokens_total", nk__metrics_total(g->metrics, NK_METRIC_PROMPT));
    num(o, "generated_tokens_total", nk__metrics_total(g->metrics, NK_METRIC_GENERATED));
    raw(o, "}");
}

/* cluster: of one of the chains; NULL: there is none. */
static void write_model_of_cluster(struct out *o, nk_gateway *g, const struct nk_cluster *cluster,
                                   const struct nk_snapshot *s)
{
    const struct nk_worker_report *w = nk__model_worker(s);
    const struct nk_prompter_caps caps = nk__prompter_caps(g->prompter);

    key(o, "model");
    raw(o, "{");
    str(o, "id", g->names[0]);
    key(o, "names");
    raw(o, "[");
    for (int i = 0; i < g->n_names && !o->rc; i++) {
        raw(o, i ? "," : "");
        o->rc = nk_json_str(o->b, g->names[i], NULL);
    }
    raw(o, "]");
    str(o, "sha256", g->model_sha256);
    str(o, "architecture", w ? w->architecture : NULL);
    str(o, "quantisation", w ? w->quantisation : NULL);
    num(o, "layers", cluster ? cluster->workers[cluster->n_workers - 1].layer_end : NAN);
    num(o, "width", w ? w->n_embd : NAN);
    num(o, "vocabulary", w ? w->n_vocab : NAN);
    num(o, "context", s && s->ok ? s->n_ctx : NAN);
    num(o, "context_trained", w ? w->n_ctx_train : NAN);
    str(o, "dtype", !cluster ? NULL : cluster->f16 ? "f16" : "f32");
    boolean(o, "chat", caps.chat);
    boolean(o, "tools", caps.tools);
    boolean(o, "thinking", caps.thinking);
    raw(o, "}");
}

static void write_stage(struct out *o, int chain, const struct nk_cluster_worker *c,
                        const struct nk_worker_report *w, const struct nk_stage_rates *r)
{
    bool known = w && w->answered;

    raw(o, "{");
    str(o, "id", c->id);
    num(o, "chain", chain);
    str(o, "address", c->address);
    num(o, "layer_begin", c->layer_begin);
    num(o, "layer_end", c->layer_end);
    boolean(o, "ok", w && !w->rc);
    error_member(o, w && w->rc ? &w->err : NULL);
    str(o, "state", known ? w->state : NULL);
    str(o, "device", known ? w->device : NULL);
    str(o, "device_description", known ? w->device_description : NULL);
    str(o, "backend", known ? w->backend : NULL);
    num(o, "threads", known ? w->n_threads : NAN);
    str(o, "version", known ? w->version : NULL);
    str(o, "llama_version", known ? w->llama_version : NULL);
    if (known) {
        key(o, "memory");
        raw(o, "{");
        num(o, "device_bytes", (double)w->device_memory_bytes);
        num(o, "device_free_bytes", (double)w->device_memory_free_bytes);
        num(o, "host_bytes", (double)w->host_memory_bytes);
        num(o, "host_free_bytes", (double)w->host_memory_free_bytes);
        num(o, "weights_bytes", (double)w->weights_bytes);
        num(o, "kv_bytes", (double)w->kv_bytes);
        raw(o, "}");
    } else
        null(o, "memory");
    str(o, "cache_type_k", known ? w->cache_type_k : NULL);
    str(o, "cache_type_v", known ? w->cache_type_v : NULL);
    str(o, "verified", known ? w->verified : NULL);
    num(o, "kv_tokens", known ? w->n_ctx : NAN);
    num(o, "kv_tokens_free", known ? w->kv_tokens_free : NAN);
    num(o, "sequences", known ? w->n_seq_max : NAN);
    num(o, "sequences_free", known ? w->sequences_free : NAN);
    num(o, "sessions_open", known ? (double)w->sessions_open : NAN);
    num(o, "sessions_kept", known ? (double)w->sessions_kept : NAN);
    num(o, "sessions_held", known ? (double)w->sessions_held : NAN);
    num(o, "jobs_queued", known ? (double)w->jobs_queued : NAN);
    num(o, "tokens_per_second", r ? r->rows_per_second : NAN);
    num(o, "prompt_tokens_per_second", r ? r->prompt_rows_per_second : NAN);
    num(o, "busy", r ? r->busy : NAN);
    num(o, "compute_ms", r ? r->compute_ms : NAN);
    num(o, "queue_ms", r ? r->queue_ms : NAN);
    num(o, "wire_ms", r ? r->wire_ms : NAN);
    num(o, "uptime_s", known ? (double)w->uptime_ms / 1000 : NAN);
    raw(o, "}");
}

static void write_sessions(struct out *o, nk_gateway *g)
{
    struct nk_job_info jobs[SESSIONS_SHOWN];
    int n = nk__jobs_info(g, jobs, SESSIONS_SHOWN);

    key(o, "sessions");
    raw(o, "[");
    for (int i = 0; i < n; i++) {
        const struct nk_job_info *j = &jobs[i];

        raw(o, i ? ",{" : "{");
        str(o, "id", j->id);
        str(o, "state", j->state);
        str(o, "route", j->route);
        num(o, "age_s", j->age_s);
        num(o, "waited_s", j->waited_s);
        num(o, "prompt_tokens", j->n_prompt);
        num(o, "generated_tokens", j->n_generated);
        num(o, "tokens_per_second", j->tokens_per_second);
        raw(o, "}");
    }
    raw(o, "]");
}

static void write_stages(struct out *o, const struct nk_replicas *set, const struct nk_snapshot *s)
{
    bool first = true;

    key(o, "stages");
    raw(o, "[");
    for (int k = 0; set && k < set->n; k++) {
        const struct nk_cluster *cluster = nk_chain_cluster(set->chains[k]);
        const struct nk_replica_view *v = s ? &s->views[k] : NULL;

        for (int i = 0; i < cluster->n_workers; i++, first = false) {
            raw(o, first ? "" : ",");
            write_stage(o, k, &cluster->workers[i], v ? &v->report->workers[i] : NULL,
                        v ? &v->rates[i] : NULL);
        }
    }
    raw(o, "]");
}

static void write_links(struct out *o, const struct nk_replicas *set, const struct nk_snapshot *s)
{
    bool first = true;

    key(o, "links");
    raw(o, "[");
    for (int k = 0; set && k < set->n; k++) {
        const struct nk_cluster *cluster = nk_chain_cluster(set->chains[k]);
        const struct nk_replica_view *v = s ? &s->views[k] : NULL;

        for (int i = 0; i < cluster->n_workers; i++, first = false) {
            const struct nk_worker_report *w = v ? &v->report->workers[i] : NULL;

            raw(o, first ? "{" : ",{");
            str(o, "from", i ? cluster->workers[i - 1].id : "gateway");
            str(o, "to", cluster->workers[i].id);
            num(o, "rtt_ms", w && w->answered ? w->rtt_us / 1000 : NAN);
            num(o, "wire_ms", v ? v->rates[i].wire_ms : NAN);
            raw(o, "}");
        }
    }
    raw(o, "]");
}

/* What the callback appends; null where it has nothing to say. */
static void write_of_user(struct out *o, nk_gateway *g,
                          int (*write)(void *user, struct nk_buf *out), bool text)
{
    struct nk_buf b = NK_BUF_INIT(OF_USER_BYTES_MAX);

    if (write(g->opts.cluster_user, &b) || !b.size)
        raw(o, "null");
    else if (text)
        o->rc = o->rc ? o->rc : nk_json_str(o->b, nk_buf_str(&b), NULL);
    else {
        /* Between tokens of JSON; and a line's end would end an event. */
        for (size_t i = 0; i < b.size; i++)
            if (b.data[i] == '\n' || b.data[i] == '\r')
                b.data[i] = ' ';
        o->rc = o->rc ? o->rc : nk_buf_add(o->b, b.data, b.size, NULL);
    }
    nk_buf_release(&b);
}

int nk__cluster_json(nk_gateway *g, const struct nk_snapshot *s, bool trusted, struct nk_buf *out,
                     struct nk_error *err)
{
    struct nk_replicas *set = s ? nk__replicas_ref(s->set) : nk__readiness_current(&g->readiness);
    struct out o = { out, 0 };
    struct nk_error why;
    char now[32];
    bool ready = is_ready(g, s, &why);

    nk_utc_format(now, sizeof now);
    raw(&o, "{");
    str(&o, "time", now);
    boolean(&o, "ready", ready);
    error_member(&o, why.code ? &why : NULL);
    write_model_of_cluster(&o, g, set ? nk_chain_cluster(set->chains[0]) : NULL, s);
    write_gateway(&o, g);
    num(&o, "epoch", set ? (double)set->epoch : NAN);
    num(&o, "chains", set ? set->n : 0);
    write_stages(&o, set, s);
    write_links(&o, set, s);
    key(&o, "recovery");
    o.rc = o.rc ? o.rc : nk__recoveries_json(&g->recoveries, out, NULL);
    write_sessions(&o, g);
    if (g->opts.cluster_json) {
        key(&o, "cluster");
        write_of_user(&o, g, g->opts.cluster_json, false);
    }
    if (g->opts.join_line) {
        key(&o, "join_line");
        if (trusted)
            write_of_user(&o, g, g->opts.join_line, true);
        else
            raw(&o, "null");
    }
    raw(&o, "}");
    nk__replicas_unref(set);
    return o.rc ? nk_fail(err, NK_E_EXHAUSTED, "too_large", "the cluster's state does not fit") : 0;
}

static void answer_cluster(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)rest, (void)request;
    nk__cluster_json(g, s, a->trusted, a->body, &a->err);
}

/* ---- /metrics ---- */

static void gauge(struct out *o, const char *name, const char *help, double value)
{
    if (!o->rc)
        o->rc = nk__metrics_head(o->b, name, "gauge", help, NULL);
    if (!o->rc)
        o->rc = nk__metrics_line(o->b, name, NULL, value, NULL);
}

/* A family with one line per worker that answered (all: per worker). */
static void per_stage(struct out *o, const struct nk_snapshot *s, const char *name,
                      const char *type, const char *help, bool all,
                      double (*value)(const struct nk_worker_report *w))
{
    if (!o->rc)
        o->rc = nk__metrics_head(o->b, name, type, help, NULL);
    for (int k = 0; s && k < s->n; k++) {
        const struct nk_chain_report *r = s->views[k].report;

        for (int i = 0; i < r->n_workers && !o->rc; i++) {
            char quoted[160], label[200];

            if (!all && !r->workers[i].answered)
                continue;
            nk__metrics_quote(quoted, sizeof quoted, r->workers[i].id);
            /* A worker's id is its own in a chain only. */
            if (s->n > 1)
                snprintf(label, sizeof label, "stage=%s,chain=\"%d\"", quoted, k);
            else
                snprintf(label, sizeof label, "stage=%s", quoted);
            o->rc = nk__metrics_line(o->b, name, label, value(&r->workers[i]), NULL);
        }
    }
}

#define STAGE_VALUE(name, expression)                                                              \
    static double name(const struct nk_worker_report *w)                                           \
    {                                                                                              \
        return (double)(expression);                                                               \
    }
STAGE_VALUE(stage_up, w->rc == 0)
STAGE_VALUE(stage_kv_free, w->kv_tokens_free)
STAGE_VALUE(stage_kv, w->n_ctx)
STAGE_VALUE(stage_sequences_free, w->sequences_free)
STAGE_VALUE(stage_sessions, w->sessions_open)
STAGE_VALUE(stage_kept, w->sessions_kept)
STAGE_VALUE(stage_held, w->sessions_held)
STAGE_VALUE(stage_resumed, w->sessions_resumed)
STAGE_VALUE(stage_replayed, w->tokens_replayed)
STAGE_VALUE(stage_journal, w->journal_bytes)
STAGE_VALUE(stage_spilled, w->journal_spilled_bytes)
STAGE_VALUE(stage_jobs, w->jobs_queued)
STAGE_VALUE(stage_rtt, w->rtt_us / 1e6)
STAGE_VALUE(stage_device_free, w->device_memory_free_bytes)
STAGE_VALUE(stage_weights, w->weights_bytes)
STAGE_VALUE(stage_prefilled, w->tokens_prefilled)
STAGE_VALUE(stage_decoded, w->tokens_decoded)
STAGE_VALUE(stage_failed, w->sessions_failed)
STAGE_VALUE(stage_busy, w->compute_us / 1e6)

static int write_live_metrics(nk_gateway *g, const struct nk_snapshot *s, struct nk_buf *out,
                              struct nk_error *err)
{
    const struct nk_worker_report *w = nk__model_worker(s);
    struct nk_admission_counts c = nk__readiness_counts(&g->readiness);
    struct nk_error why;
    struct out o = { out, 0 };
    struct rusage usage;
    char model[200], version[160], label[600];

    nk__metrics_quote(model, sizeof model, g->names[0]);
    nk__metrics_quote(version, sizeof version, w ? w->llama_version : "");
    snprintf(label, sizeof label, "version=\"%s\",llama_version=%s,model=%s", NK_VERSION, version,
             model);
    o.rc =
        nk__metrics_head(out, "nakshatra_build_info", "gauge", "What runs here; always 1.", NULL);
    if (!o.rc)
        o.rc = nk__metrics_line(out, "nakshatra_build_info", label, 1, NULL);
    gauge(&o, "nakshatra_ready", "Whether a request would run, as last seen.",
          is_ready(g, s, &why));
    gauge(&o, "nakshatra_generations_running", "Generations that run.", c.running);
    gauge(&o, "nakshatra_generations_running_limit", "How many may run at one time.", c.capacity);
    gauge(&o, "nakshatra_generations_ending",
          "Generations that end on chains which others have taken the place of.", c.ending);
    gauge(&o, "nakshatra_chains", "Chains that requests go to.", s ? s->n : 0);
    gauge(&o, "nakshatra_queue_length", "Generations that wait for a sequence.", c.waiting);
    gauge(&o, "nakshatra_queue_limit", "How many may wait.", c.waiting_max);
    pthread_mutex_lock(&g->mutex);
    gauge(&o, "nakshatra_event_listeners", "Readers of /cluster/events.", g->n_listeners);
    pthread_mutex_unlock(&g->mutex);
    per_stage(&o, s, "nakshatra_stage_up", "gauge", "Whether the worker answers and fits.", true,
              stage_up);
    per_stage(&o, s, "nakshatra_stage_kv_free_tokens", "gauge",
              "Tokens of KV that no session has reserved.", false, stage_kv_free);
    per_stage(&o, s, "nakshatra_stage_kv_tokens", "gauge", "Tokens of KV in all.", false, stage_kv);
    per_stage(&o, s, "nakshatra_stage_sequences_free", "gauge", "Sequences that no session has.",
              false, stage_sequences_free);
    per_stage(&o, s, "nakshatra_stage_sessions_open", "gauge", "Sessions that run.", false,
              stage_sessions);
    per_stage(&o, s, "nakshatra_stage_sessions_kept", "gauge",
              "Sessions whose KV is kept for a later request.", false, stage_kept);
    per_stage(&o, s, "nakshatra_stage_sessions_held", "gauge",
              "Sessions that lost a worker and are held until they go on.", false, stage_held);
    per_stage(&o, s, "nakshatra_stage_sessions_resumed_total", "counter",
              "Sessions that went on here after a loss.", false, stage_resumed);
    per_stage(&o, s, "nakshatra_stage_replayed_tokens_total", "counter",
              "Positions that the stage computed again for them.", false, stage_replayed);
    per_stage(&o, s, "nakshatra_stage_journal_bytes", "gauge",
              "Rows that the stage has sent and keeps in memory.", false, stage_journal);
    per_stage(&o, s, "nakshatra_stage_journal_spilled_bytes", "gauge",
              "Rows that the stage has sent and keeps in files.", false, stage_spilled);
    per_stage(&o, s, "nakshatra_stage_jobs_queued", "gauge", "Steps that wait for the device.",
              false, stage_jobs);
    per_stage(&o, s, "nakshatra_stage_round_trip_seconds", "gauge",
              "Of a small call from the gateway.", false, stage_rtt);
    per_stage(&o, s, "nakshatra_stage_device_memory_free_bytes", "gauge",
              "Of the device that computes.", false, stage_device_free);
    per_stage(&o, s, "nakshatra_stage_weights_bytes", "gauge", "Of the loaded slice.", false,
              stage_weights);
    per_stage(&o, s, "nakshatra_stage_prefilled_tokens_total", "counter",
              "Tokens of prompts that the stage processed.", false, stage_prefilled);
    per_stage(&o, s, "nakshatra_stage_decoded_tokens_total", "counter",
              "Generated tokens that the stage processed.", false, stage_decoded);
    per_stage(&o, s, "nakshatra_stage_sessions_failed_total", "counter",
              "Sessions that ended with an error.", false, stage_failed);
    per_stage(&o, s, "nakshatra_stage_busy_seconds_total", "counter",
              "Time that the stage computed.", false, stage_busy);
    if (!o.rc && !getrusage(RUSAGE_SELF, &usage)) {
        o.rc = nk__metrics_head(out, "process_cpu_seconds_total", "counter",
                                "User and system time of the gateway's process.", NULL);
        if (!o.rc)
            o.rc = nk__metrics_line(out, "process_cpu_seconds_total", NULL,
                                    (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                                        (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) /
                                            1e6,
                                    NULL);
        gauge(&o, "process_start_time_seconds", "When the gateway started, in seconds since 1970.",
              (double)g->started);
    }
    return o.rc ? nk_fail(err, NK_E_EXHAUSTED, "too_large", "the metrics do not fit") : 0;
}

static void answer_metrics(nk_gateway *g, const char *rest, const struct nk_buf *request,
                           const struct nk_snapshot *s, struct nk_route_answer *a)
{
    (void)rest, (void)request;
    a->type = "text/plain; version=0.0.4; charset=utf-8";
    if (!nk__metrics_write(g->metrics, a->body, &a->err))
        write_live_metrics(g, s, a->body, &a->err);
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
    { "/v1/responses/", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, answer_response,
      "a stored response by its id, or its `ID/input_items`" },
    { "/v1/responses/", "DELETE", NK_ROUTE_SHORT, true, false, false, 0, 0,
      answer_response_delete, "forgets one" },
    { "/v1/responses/", "POST", NK_ROUTE_SHORT, true, false, false, 0, 0, answer_response_cancel,
      "`ID/cancel`: ends one that is being computed" },
    { "/v1/models", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, answer_models,
      "the model, with all its names" },
    { "/v1/models/", "GET", NK_ROUTE_SHORT, true, false, false, 0, 0, answer_models,
      "one of its names" },
    { "/api/chat", "POST", NK_ROUTE_GENERATE, false, false, false, 0, NK_API_OLLAMA_CHAT, NULL,
      "Ollama's chat" },
    { "/api/generate", "POST", NK_ROUTE_GENERATE, false, false, false, 0, NK_API_OLLAMA_GENERATE,
      NULL, "Ollama's text" },
    { "/api/tags", "GET", NK_ROUTE_LOOK, false, false, false, 10000, 0, answer_tags,
      "Ollama's list of models" },
    { "/api/ps", "GET", NK_ROUTE_LOOK, false, false, false, 2000, 0, answer_ps,
      "Ollama's list of models in memory" },
    { "/api/show", "POST", NK_ROUTE_LOOK, false, false, false, 10000, NK_API_OLLAMA_SHOW,
      answer_show, "Ollama's view of the model" },
    { "/api/version", "GET", NK_ROUTE_SHORT, false, false, false, 0, 0, answer_version,
      "the gateway's version" },
    { "/tokenize", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_TOKENIZE, NULL,
      "llama-server's: text to token ids" },
    { "/detokenize", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_DETOKENIZE, NULL,
      "llama-server's: token ids to text" },
    { "/apply-template", "POST", NK_ROUTE_GENERATE, true, false, false, 0, NK_API_APPLY_TEMPLATE,
      NULL, "llama-server's: a chat as the prompt that it becomes" },
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
    REFUSED("/v1/embeddings",   "POST", true,  "the workers compute tokens, not embeddings"),
    REFUSED("/v1/rerank",       "POST", true,  "the workers compute tokens, not ranks"),
    REFUSED("/v1/moderations",  "POST", true,  "there is no model for it"),
    REFUSED("/v1/audio/",       "POST", true,  "only text"),
    REFUSED("/v1/images/",      "POST", true,  "only text"),
    REFUSED("/v1/files",        "POST", true,  "nothing is stored"),
    REFUSED("/v1/batches",      "POST", true,
      "send the requests themselves; they are computed together"),
    REFUSED("/v1/fine_tuning/", "POST", true,  "models are only read"),
    REFUSED("/api/embed",       "POST", false, "the workers compute tokens, not embeddings"),
    REFUSED("/api/embeddings",  "POST", false, "the workers compute tokens, not embeddings"),
    REFUSED("/api/pull",        "POST", false,
      "the model is the one that the workers loaded; nakshatra split prepares another"),
    REFUSED("/api/push",        "POST", false, "there is no registry"),
    REFUSED("/api/create",      "POST", false,
      "the model is the one that the workers loaded; nakshatra split prepares another"),
    REFUSED("/api/copy",        "POST", false, "serve --name gives the model another name"),
    REFUSED("/api/delete",      "DELETE", false, "the model is the one that the workers loaded"),
    REFUSED("/api/blobs/",      "POST", false, "nothing is stored"),
    REFUSED("/completion",      "POST", true,  "llama-server's; use /v1/completions"),
    REFUSED("/infill",          "POST", true,  "llama-server's; there is no insertion"),
    REFUSED("/embedding",       "POST", true,
      "llama-server's; the workers compute tokens, not embeddings"),
    REFUSED("/props",           "GET",  true,
      "llama-server's; see /v1/models, /api/show and /cluster"),
    REFUSED("/slots",           "GET",  true,  "llama-server's; see /cluster"),
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
