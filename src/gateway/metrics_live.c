/* The part of /metrics that is no counter of the gateway's: what is known at this moment. */
#include <stdio.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "gateway/model.h"
#include "gateway/routes_int.h"
#include "rpc/rpc.h"

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
STAGE_VALUE(stage_checkpoints, w->checkpoint_bytes)
STAGE_VALUE(stage_gone_back, w->checkpoints_used)
STAGE_VALUE(stage_jobs, w->jobs_queued)
STAGE_VALUE(stage_rtt, w->rtt_us / 1e6)
STAGE_VALUE(stage_device_free, w->device_memory_free_bytes)
STAGE_VALUE(stage_weights, w->weights_bytes)
STAGE_VALUE(stage_prefilled, w->tokens_prefilled)
STAGE_VALUE(stage_decoded, w->tokens_decoded)
STAGE_VALUE(stage_failed, w->sessions_failed)
STAGE_VALUE(stage_busy, w->compute_us / 1e6)

static void end_of(struct out *o, const char *labels, int64_t end_s)
{
    if (!o->rc && end_s)
        o->rc = nk__metrics_line(o->b, "nakshatra_certificate_expiry_timestamp_seconds", labels,
                                 (double)end_s, NULL);
}

/* The gateway's for its clients; its own and the CA's towards workers; the workers' as it was shown
 * them. Nothing in plain text. */
static void certificates(struct out *o, const nk_gateway *g, const struct nk_snapshot *s)
{
    const struct nk_worker_report *any = NULL;
    char quoted[160], label[240];

    if (!o->rc)
        o->rc = nk__metrics_head(o->b, "nakshatra_certificate_expiry_timestamp_seconds", "gauge",
                                 "When a certificate ends, in seconds since 1970.", NULL);
    if (g->tls_certificate)
        end_of(o, "certificate=\"listener\"", nk_certificate_end_s(g->tls_certificate));
    for (int k = 0; s && k < s->n; k++) {
        const struct nk_chain_report *r = s->views[k].report;

        for (int i = 0; i < r->n_workers; i++) {
            const struct nk_worker_report *w = &r->workers[i];

            if (!any && w->own_end_s)
                any = w;
            nk__metrics_quote(quoted, sizeof quoted, w->id);
            if (s->n > 1)
                snprintf(label, sizeof label, "certificate=\"worker\",stage=%s,chain=\"%d\"",
                         quoted, k);
            else
                snprintf(label, sizeof label, "certificate=\"worker\",stage=%s", quoted);
            end_of(o, label, w->certificate_end_s);
        }
    }
    if (any) {
        end_of(o, "certificate=\"self\"", any->own_end_s);
        end_of(o, "certificate=\"ca\"", any->ca_end_s);
    }
}

int nk__metrics_live_write(nk_gateway *g, const struct nk_snapshot *s, struct nk_buf *out,
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
          nk__routes_ready(g, s, &why));
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
    per_stage(&o, s, "nakshatra_stage_checkpoint_bytes", "gauge",
              "Earlier states of sessions, of a model that has a state.", false, stage_checkpoints);
    per_stage(&o, s, "nakshatra_stage_checkpoints_used_total", "counter",
              "How often a session went back to one.", false, stage_gone_back);
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
    certificates(&o, g, s);
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
