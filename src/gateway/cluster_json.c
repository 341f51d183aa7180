/* /cluster: all that the gateway knows of the chains it serves, as one JSON object. */
#include <math.h>

#include "gateway/job.h"
#include "gateway/model.h"
#include "gateway/routes_int.h"

enum { SESSIONS_SHOWN = 64, OF_USER_BYTES_MAX = 1 << 20 };

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
    bool ready = nk__routes_ready(g, s, &why);

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
