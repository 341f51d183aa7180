/* nakshatra check: is the cluster what its file says, and would a request run? */
#include "cli/cli.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain/chain.h"
#include "cli/generate.h"

int nk_cmd_check(int argc, char **argv);

struct result {
    struct nk_chain_report *report;
    double probe_us;
    bool probed;
    int rc; /* what stands in the way of a request, or 0 */
    struct nk_error err;
};

/* What the workers may have differently, and do: these are the tokens of no whole model to the last
 * bit, and with caches of different types perhaps not at all. */
static void print_differences(const struct nk_chain_report *r)
{
    for (enum nk_fact f = 0; f < NK_FACTS; f++) {
        const struct nk_fact_row *row = nk_fact_row(f);
        const char *some = "";
        bool differ = false;

        for (int i = 0; i < r->n_workers; i++) {
            const char *value = r->workers[i].computed.facts[f].value;

            differ |= *value && *some && strcmp(value, some) != 0;
            some = *value ? value : some;
        }
        if (!differ)
            continue;
        printf("The workers' %s differ:", row->title);
        for (int i = 0; i < r->n_workers; i++) {
            const char *value = r->workers[i].computed.facts[f].value;

            printf("%s %s has %s", i ? "," : "", r->workers[i].id, *value ? value : "not told");
        }
        printf(". That is allowed: %s.\n", row->why);
    }
}

/* Those whose end is near or past, while it can still be mended. */
static void print_certificates(const struct nk_chain_report *r)
{
    for (int i = 0; i < r->n_workers; i++) {
        const struct nk_worker_report *w = &r->workers[i];
        time_t end = (time_t)w->certificate_end_s;
        char date[32];
        struct tm tm;

        if (w->certificate_is_near && gmtime_r(&end, &tm) &&
            strftime(date, sizeof date, "%Y-%m-%d %H:%M", &tm))
            printf("warning: the certificate of worker %s (%s) is good until %s UTC only\n", w->id,
                   w->address, date);
    }
}

static void print_table(const struct nk_cluster *cluster, const struct result *r)
{
    int id_width = 6, address_width = 7, device_width = 6;

    for (int i = 0; i < r->report->n_workers; i++) {
        const struct nk_worker_report *w = &r->report->workers[i];
        int n;

        id_width = (n = (int)strlen(w->id)) > id_width ? n : id_width;
        address_width = (n = (int)strlen(w->address)) > address_width ? n : address_width;
        device_width = (n = (int)strlen(w->device)) > device_width ? n : device_width;
    }
    printf("model    %s  %s\n", cluster->model_id, cluster->model_sha256);
    printf("rows     %s\n\n", cluster->f16 ? "f16" : "f32");
    printf("%-*s  %-*s  %-9s  %-9s  %-10s  %-*s  %8s  %8s  %8s  %9s\n", id_width, "worker",
           address_width, "address", "layers", "state", "verified", device_width, "device",
           "context", "KV free", "sessions", "RTT us");
    for (int i = 0; i < r->report->n_workers; i++) {
        const struct nk_worker_report *w = &r->report->workers[i];
        char layers[32];

        snprintf(layers, sizeof layers, "%d-%d", w->answered ? w->has_begin : w->layer_begin,
                 w->answered ? w->has_end : w->layer_end);
        if (!w->answered)
            printf("%-*s  %-*s  %-9s  %-9s\n", id_width, w->id, address_width, w->address, layers,
                   "no answer");
        else
            printf("%-*s  %-*s  %-9s  %-9s  %-10s  %-*s  %8d  %8d  %8llu  %9.0f%s\n", id_width,
                   w->id, address_width, w->address, layers, w->state, w->verified, device_width,
                   w->device, w->n_ctx, w->kv_tokens_free, (unsigned long long)w->sessions_open,
                   w->rtt_us, w->rc ? "  does not fit" : "");
    }
    for (int i = 0; i < r->report->n_spares; i++) {
        const struct nk_worker_report *w = &r->report->spares[i];

        if (i == 0)
            printf("\n");
        if (w->rc)
            printf("spare %s  stands in for nobody\n", w->address);
        else
            printf("spare %s  stands in for worker %s, layers %d-%d, device %s\n", w->address,
                   cluster->workers[w->stands_for].id, w->layer_begin, w->layer_end, w->device);
    }
    print_certificates(r->report);
    if (r->probed && !r->rc)
        printf("\nOne token went through all %d worker%s and back in %.2f ms. A session has room "
               "for %d tokens.\n",
               r->report->n_workers, r->report->n_workers > 1 ? "s" : "", r->probe_us / 1e3,
               r->report->n_ctx);
    if (r->report->ok)
        print_differences(r->report);
    fflush(stdout);
    /* All that is wrong, not only the first. */
    for (int i = 0; i < r->report->n_workers; i++)
        if (r->report->workers[i].rc)
            nk_cli_report(&r->report->workers[i].err);
    for (int i = 0; i < r->report->n_spares; i++) /* in the way of no request */
        if (r->report->spares[i].rc)
            nk_cli_report(&r->report->spares[i].err);
    if (r->rc && r->report->ok)
        nk_cli_report(&r->err);
}

static json_t *error_json(const struct nk_error *err)
{
    json_t *o = json_object();

    json_object_set_new(o, "code", json_string(nk_code_text(err->code)));
    json_object_set_new(o, "reason", json_string(err->reason));
    json_object_set_new(o, "message", json_string(err->msg));
    return o;
}

static json_t *worker_json(const struct nk_worker_report *w)
{
    json_t *o = json_object(), *counters = json_object(), *computed = json_object();

    json_object_set_new(o, "id", json_string(w->id));
    json_object_set_new(o, "address", json_string(w->address));
    json_object_set_new(o, "layer_begin", json_integer(w->layer_begin));
    json_object_set_new(o, "layer_end", json_integer(w->layer_end));
    json_object_set_new(o, "ok", json_boolean(!w->rc));
    json_object_set_new(o, "error", w->rc ? error_json(&w->err) : json_null());
    json_object_set_new(o, "answered", json_boolean(w->answered));
    if (!w->answered)
        goto out;
#define TEXT(name)  json_object_set_new(o, #name, json_string(w->name))
#define INT(name)   json_object_set_new(o, #name, json_integer((json_int_t)w->name))
#define COUNT(name) json_object_set_new(counters, #name, json_integer((json_int_t)w->name))
    TEXT(worker_id), TEXT(version), TEXT(llama_version), TEXT(state), TEXT(model_id),
        TEXT(model_sha256);
    TEXT(architecture), TEXT(quantisation), TEXT(backend), TEXT(device), TEXT(device_description);
    json_object_set_new(o, "has_layer_begin", json_integer(w->has_begin));
    json_object_set_new(o, "has_layer_end", json_integer(w->has_end));
    INT(layer_count), INT(n_embd), INT(n_vocab), INT(n_ctx), INT(n_ctx_train), INT(n_seq_max),
        INT(n_batch);
    INT(n_threads), INT(kv_tokens_free), INT(sequences_free), INT(weights_bytes), INT(kv_bytes);
    TEXT(cache_type_k), TEXT(cache_type_v), TEXT(verified);
    INT(device_memory_bytes), INT(device_memory_free_bytes), INT(host_memory_bytes),
        INT(host_memory_free_bytes);
    json_object_set_new(o, "deterministic", json_boolean(w->deterministic));
    for (enum nk_fact f = 0; f < NK_FACTS; f++)
        if (w->computed.facts[f].value[0])
            json_object_set_new(computed, nk_fact_row(f)->name,
                                json_string(w->computed.facts[f].value));
    json_object_set_new(o, "rtt_us", json_real(w->rtt_us));
    COUNT(sessions_opened), COUNT(sessions_open), COUNT(sessions_kept), COUNT(sessions_failed);
    COUNT(tokens_prefilled), COUNT(tokens_decoded), COUNT(tokens_reused), COUNT(runs),
        COUNT(rows_in_runs);
    COUNT(compute_us), COUNT(queue_us), COUNT(uptime_ms), COUNT(streams_open), COUNT(jobs_queued);
    COUNT(steps), COUNT(wire_us), COUNT(wire_steps);
    COUNT(sessions_held), COUNT(sessions_resumed), COUNT(tokens_replayed), COUNT(journal_bytes),
        COUNT(journal_spilled_bytes);
    COUNT(checkpoints), COUNT(checkpoint_bytes), COUNT(checkpoints_made), COUNT(checkpoints_used);
#undef TEXT
#undef INT
#undef COUNT
out:
    json_object_set_new(o, "computed", computed);
    json_object_set_new(o, "counters", counters);
    return o;
}

static void print_json(const struct nk_cluster *cluster, const struct result *r)
{
    json_t *o = json_object(), *workers = json_array(), *spares = json_array();

    json_object_set_new(o, "ok", json_boolean(!r->rc));
    json_object_set_new(o, "error", r->rc ? error_json(&r->err) : json_null());
    json_object_set_new(o, "model_id", json_string(cluster->model_id));
    json_object_set_new(o, "model_sha256", json_string(cluster->model_sha256));
    json_object_set_new(o, "dtype", json_string(cluster->f16 ? "f16" : "f32"));
    json_object_set_new(o, "n_ctx", json_integer(r->report->n_ctx));
    json_object_set_new(o, "n_ctx_train", json_integer(r->report->n_ctx_train));
    json_object_set_new(o, "n_vocab", json_integer(r->report->n_vocab));
    json_object_set_new(o, "probe_us", r->probed && !r->rc ? json_real(r->probe_us) : json_null());
    for (int i = 0; i < r->report->n_workers; i++)
        json_array_append_new(workers, worker_json(&r->report->workers[i]));
    json_object_set_new(o, "workers", workers);
    for (int i = 0; i < r->report->n_spares; i++) {
        const struct nk_worker_report *w = &r->report->spares[i];
        json_t *spare = worker_json(w);

        json_object_set_new(spare, "stands_for",
                            w->rc ? json_null() : json_string(cluster->workers[w->stands_for].id));
        json_array_append_new(spares, spare);
    }
    json_object_set_new(o, "spares", spares);
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12) | nk_cli_json_flags());
    printf("\n");
    json_decref(o);
}

/* The vocabulary that run and serve would use. */
static int check_vocab(const struct nk_cluster *cluster, const struct nk_chain_report *report,
                       struct nk_error *err)
{
    nk_vocab *v;
    int rc;

    if (!cluster->vocab_path[0])
        return 0;
    rc = nk_cluster_vocab_open(&v, cluster, err);
    if (rc)
        return rc;
    if (nk_vocab_size(v) != report->n_vocab)
        rc = nk_fail(err, NK_E_PRECONDITION, "vocab_mismatch",
                     "%s: has %d tokens, the workers' model has %d", cluster->vocab_path,
                     nk_vocab_size(v), report->n_vocab);
    nk_vocab_close(v);
    return rc;
}

static int check(const char *path, bool deterministic, uint32_t timeout_ms, bool json)
{
    struct nk_cluster *cluster = NULL;
    struct result r = { 0 };
    nk_chain *c = NULL;
    struct nk_error err;
    int code, rc = nk_cluster_read(&cluster, path, &err);

    if (!rc)
        rc = nk_chain_open(&c, cluster, NULL, &err);
    if (!rc)
        rc = nk_chain_check(c, timeout_ms, &r.report, &err);
    if (rc) {
        code = nk_cli_report(&err);
        goto out;
    }
    if (deterministic)
        nk_chain_report_want_deterministic(r.report);
    if (!r.report->ok) {
        r.rc = r.report->err.code;
        r.err = r.report->err;
    } else {
        r.rc = check_vocab(cluster, r.report, &r.err);
        if (!r.rc) {
            r.rc = nk_chain_probe(c, timeout_ms, &r.probe_us, &r.err);
            r.probed = true;
        }
    }
    if (json)
        print_json(cluster, &r);
    else
        print_table(cluster, &r);
    code = r.rc ? NK_EXIT_FAILED : NK_EXIT_OK;
out:
    nk_chain_close(c);
    free(r.report);
    free(cluster);
    return code;
}

int nk_cmd_check(int argc, char **argv)
{
    const char *path = NULL;
    int64_t timeout_ms = 5000;
    bool json = false, deterministic = false;
    const struct nk_arg args[] = {
        NK_OPT_STRING("cluster", 'c', &path, "FILE", "cluster.yaml: the workers and their layers"),
        NK_OPT_INT("timeout-ms", 0, &timeout_ms, "MS", 1, 600000, "wait so long for answers"),
        NK_OPT_FLAG("deterministic", 0, &deterministic, "would a deterministic request run, too?"),
        NK_OPT_FLAG("json", 'j', &json, "the report as one JSON object"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "check --cluster FILE [--deterministic] [--timeout-ms MS] [--json]",
        .summary = "Asks every worker what it is, compares that with the cluster file and with the "
                   "other workers, and sends one token through the chain. Exit code 0 only if a "
                   "request would run.",
        .args = args,
    };
    struct nk_error err;
    int first, exit_code;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!path) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--cluster FILE is missing. usage: nakshatra %s", cmd.usage);
        return nk_cli_report(&err);
    }
    nk_vocab_global_init();
    return nk_cli_flush(check(path, deterministic, (uint32_t)timeout_ms, json));
}
