#include "gateway/gateway.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/gateway_int.h"
#include "gateway/http.h"
#include "gateway/listeners.h"
#include "gateway/job.h"
#include "gateway/model.h"
#include "rpc/rpc.h"

enum { HELPERS = 3, CHECK_MS = 2000, PROBE_MS = 5000 };

struct nk_gateway_opts nk_gateway_opts_default(void)
{
    return (struct nk_gateway_opts){
        .listen = "127.0.0.1:8080",
        .limits = {
            .body_bytes_max = 8u << 20,
            .requests_bytes_max = 512u << 20,
            .header_bytes_max = 32u << 10,
            .output_bytes_max = 4u << 20,
            .reply_bytes_max = 64u << 20,
            .messages_max = 4096,
            .n_max = 16,
            .connections_max = 1000,
            .waiting_max = 256,
            .waiting_ms = 60000,
            .header_ms = 20000,
            .body_ms = 60000,
            .idle_ms = 120000,
            .keepalive_ms = 15000,
            .hold_ms = 60000,
            .responses_ms = 86400000,
            .responses_bytes_max = 64u << 20,
        },
    };
}

/* ---- what the threads call ---- */

static struct nk_replicas *current_set(void *user)
{
    return nk__readiness_current(&((nk_gateway *)user)->readiness);
}

static int check_chain(void *user, struct nk_replicas *set, int idx, struct nk_chain_report **out)
{
    nk_gateway *g = user;
    int rc = nk_chain_check(set->chains[idx], CHECK_MS, out, NULL);

    if (!rc && g->opts.deterministic)
        nk_chain_report_want_deterministic(*out);
    return rc;
}

static int probe_chain(void *user, struct nk_replicas *set, int idx, struct nk_error *err)
{
    double us;

    (void)user;
    return nk_chain_probe(set->chains[idx], PROBE_MS, &us, err);
}

static bool is_busy(void *user)
{
    nk_gateway *g = user;

    return nk__readiness_counts(&g->readiness).running > 0;
}

static void on_published(void *user, const struct nk_snapshot *s)
{
    nk_gateway *g = user;

    if (!nk__readiness_seen(&g->readiness, s))
        return;
    nk__repairer_seen(&g->repairer, s);
    if (!s->ok && nk__recoveries_pending(&g->recoveries))
        nk__monitor_doubt(g->monitor); /* somebody's text stands still until they are there */
    nk__listeners_publish(g, s);
}

/* Every second. */
static void tick(void *user)
{
    nk_gateway *g = user;
    double tokens = nk__metrics_total(g->metrics, NK_METRIC_GENERATED);
    uint64_t now = nk_clock_now_ns(g->clock);
    bool stuck = nk__pool_stuck_ms(g->pool) >= NK_POOL_STUCK_MS, changed;

    pthread_mutex_lock(&g->mutex);
    changed = g->stuck != stuck;
    g->stuck = stuck;
    if (g->tick_ns) {
        double rate = (tokens - g->tokens_before) / ((double)(now - g->tick_ns) / 1e9);

        /* A mean over some three seconds; silence is zero at once when it lasts. */
        g->tokens_per_second = rate > 0 || g->tokens_per_second > 0.5
                                   ? g->tokens_per_second + 0.4 * (rate - g->tokens_per_second)
                                   : 0;
    }
    g->tokens_before = tokens;
    g->tick_ns = now;
    pthread_mutex_unlock(&g->mutex);
    if (changed)
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
               stuck ? "reason=helpers_stuck msg=\"no thread is free to prepare requests\""
                     : "reason=helpers_free msg=\"requests are prepared again\"");
    nk__jobs_tick(g);
    nk__responses_expire(g->responses);
}

/* ---- starting and stopping ---- */

static int check_opts(const struct nk_listen *listen, const struct nk_gateway_opts *o,
                      struct nk_error *err)
{
    const struct nk_gateway_limits *l = &o->limits;

    if (!l->body_bytes_max || !l->requests_bytes_max || l->header_bytes_max < 1024 ||
        l->output_bytes_max < 4096 || !l->reply_bytes_max || l->messages_max < 1 || l->n_max < 1 ||
        l->connections_max < 1 || l->connections_per_address < 0 || l->running_max < 0 ||
        l->waiting_max < 0 || l->hold_ms > NK_GATEWAY_HOLD_MS_MAX || !l->waiting_ms ||
        !l->header_ms || !l->body_ms || !l->idle_ms || !l->keepalive_ms)
        return nk_fail(err, NK_E_INVALID, "bad_limit",
                       "a limit of the gateway is zero, negative, or too large");
    if (!o->tls_certificate != !o->tls_key)
        return nk_fail(err, NK_E_INVALID, "bad_certificate",
                       "TLS needs a certificate and its key; only the %s was given",
                       o->tls_key ? "key" : "certificate");
    if (!listen->loopback && (!o->tls_certificate || !o->api_keys) && !o->insecure)
        return nk_fail(err, NK_E_PRECONDITION, "insecure",
                       "%s is reachable from other machines: give --tls-cert, --tls-key and "
                       "--api-key-file, or --insecure to let everybody in",
                       o->listen);
    return 0;
}

int nk_gateway_check(const struct nk_gateway_opts *opts, struct nk_error *err)
{
    struct nk_listen listen;
    nk_keys *keys = NULL;
    json_t *defaults = NULL;
    int rc = nk__listen_parse(&listen, opts->listen, err);

    if (!rc)
        rc = check_opts(&listen, opts, err);
    if (!rc && opts->api_keys)
        rc = nk__keys_new(&keys, opts->api_keys, err);
    nk__keys_free(keys);
    if (!rc && opts->defaults)
        rc = nk__defaults_read(&defaults, opts->defaults, err);
    json_decref(defaults);
    return rc ? rc : nk__listen_try(&listen, opts->listen, err);
}

/* Which model it is: the chain's, or the one that is named. */
static int take_model(nk_gateway *g, const struct nk_gateway_opts *o, struct nk_error *err)
{
    const struct nk_cluster *c = o->chain ? nk_chain_cluster(o->chain) : NULL;
    const char *id = c ? c->model_id : o->model_id, *sha = c ? c->model_sha256 : o->model_sha256;

    if (!id || !id[0] || !sha || strlen(sha) + 1 != sizeof g->model_sha256)
        return nk_fail(err, NK_E_INVALID, "bad_model",
                       "without a chain the gateway needs the model's id and its SHA-256 (64 hex "
                       "digits); \"%.100s\" and \"%.100s\" were given",
                       id ? id : "", sha ? sha : "");
    memcpy(g->model_sha256, sha, sizeof g->model_sha256);
    g->names[0] = strdup(id);
    g->n_names = g->names[0] != NULL;
    return g->n_names ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
}

static int copy_opts(nk_gateway *g, const struct nk_gateway_opts *o, struct nk_error *err)
{
    bool ok = true;

    g->opts = *o;
    /* Half for each: who sends slowly keeps nobody's request from being parsed. */
    nk__budget_init(&g->bodies, o->limits.requests_bytes_max / 2);
    nk__budget_init(&g->parsed, o->limits.requests_bytes_max / 2);
    g->vocab = o->vocab;
    g->pooling = nk__model_pooling(o->vocab);
    for (int i = 0; i < o->n_names; i++)
        if (!nk__model_is_here(g, o->names[i]))
            ok = (g->names[g->n_names++] = strdup(o->names[i])) && ok;
    for (int i = 0; i < o->n_origins; i++)
        ok = (g->origins[i] = strdup(o->origins[i])) && ok;
    for (int i = 0; i < o->n_hosts; i++)
        ok = (g->hosts[i] = strdup(o->hosts[i])) && ok;
    if (o->tls_certificate) {
        g->tls_certificate = strdup(o->tls_certificate);
        g->tls_key = strdup(o->tls_key);
        ok = ok && g->tls_certificate && g->tls_key;
    }
    return ok ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
}

static void free_gateway(nk_gateway *g)
{
    nk__monitor_stop(g->monitor);
    nk__admission_stop(g->admission); /* its ticks look at the pool */
    nk__pool_stop(g->pool);
    nk__repairer_release(&g->repairer);
    nk__readiness_release(&g->readiness);
    nk__reaper_stop(g->reaper); /* all chains are closed then */
    nk__prompter_free(g->prompter);
    nk__keys_free(g->keys);
    nk__recoveries_release(&g->recoveries);
    nk__metrics_free(g->metrics);
    nk__responses_free(g->responses);
    json_decref(g->defaults);
    for (int i = 0; i < g->n_names; i++)
        free(g->names[i]);
    for (int i = 0; i < g->opts.n_origins; i++)
        free(g->origins[i]);
    for (int i = 0; i < g->opts.n_hosts; i++)
        free(g->hosts[i]);
    free(g->tls_certificate);
    free(g->tls_key);
    nk__presence_release(&g->presence);
    pthread_mutex_destroy(&g->mutex);
    free(g);
}

static void looked(struct nk_waiter *w)
{
    nk_gateway *g = (nk_gateway *)((char *)w - offsetof(nk_gateway, look));

    atomic_store(&g->look_pending, false);
}

static void warn_of_certificate(const nk_gateway *g)
{
    char text[200], quoted[300];

    if (g->tls_certificate &&
        nk_certificate_warning(g->tls_certificate, "the certificate of the listener",
                               nk_clock_unix_s(g->clock), text, sizeof text))
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN, "event=certificate of=listener msg=%s",
               nk_log_quote(quoted, sizeof quoted, text));
}

int nk_gateway_start(nk_gateway **out, const struct nk_gateway_opts *opts, struct nk_error *err)
{
    nk_gateway *g = calloc(1, sizeof *g);
    const struct nk_monitor_handlers handlers = { .current = current_set,
                                                  .check = check_chain,
                                                  .probe = probe_chain,
                                                  .busy = is_busy,
                                                  .published = on_published,
                                                  .user = g };
    struct nk_admission_opts admission = { .waiting_max = opts->limits.waiting_max,
                                           .waiting_ms = opts->limits.waiting_ms,
                                           .tick = tick,
                                           .user = g };
    struct nk_error broken;
    int rc;

    *out = NULL;
    if (!g)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
    pthread_mutex_init(&g->mutex, NULL);
    g->quiesced_fd = -1;
    nk__presence_init(&g->presence);
    nk__repairer_init(&g->repairer, g);
    nk__readiness_init(&g->readiness);
    TAILQ_INIT(&g->jobs);
    LIST_INIT(&g->listeners);
    g->look.ready = looked; /* the monitor reads it without a lock of ours */
    g->clock = admission.clock = opts->clock ? opts->clock : nk_clock_system();
    g->chance = opts->chance ? opts->chance : nk_chance_system();
    g->started = nk_clock_unix_s(g->clock);
    g->started_ns = nk_clock_now_ns(g->clock);
    rc = nk__listen_parse(&g->listen, opts->listen, err);
    if (!rc)
        rc = check_opts(&g->listen, opts, err);
    if (!rc)
        rc = take_model(g, opts, err);
    if (!rc)
        rc = copy_opts(g, opts, err);
    if (!rc && opts->defaults)
        rc = nk__defaults_read(&g->defaults, opts->defaults, err);
    if (!rc && opts->api_keys)
        rc = nk__keys_new(&g->keys, opts->api_keys, err);
    if (!rc && g->keys)
        rc = nk_chance_fill(g->chance, g->salt_secret, sizeof g->salt_secret, err);
    if (!rc)
        rc = nk__prompter_new(&g->prompter,
                              &(struct nk_prompter_opts){ .clock = g->clock,
                                                          .vocab = opts->vocab,
                                                          .chat_template = opts->chat_template,
                                                          .program = opts->program,
                                                          .tools = opts->tools,
                                                          .reasoning = opts->reasoning },
                              err);
    if (!rc && !(g->metrics = nk__metrics_new()))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
    nk__recoveries_init(&g->recoveries, g->clock, g->metrics, opts->limits.hold_ms);
    if (!rc) {
        const struct nk_responses_opts o = { .clock = g->clock,
                                             .ttl_ms = opts->limits.responses_ms,
                                             .bytes_max = opts->limits.responses_bytes_max,
                                             .history_bytes_max = opts->limits.body_bytes_max };

        g->responses = nk__responses_new(&o);
        if (!g->responses)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
    }
    if (!rc)
        rc = nk__pool_start(&g->pool, HELPERS, g->clock, err);
    if (!rc)
        rc = nk__admission_start(&g->admission, &admission, err);
    g->readiness.clock = g->clock;
    g->readiness.admission = g->admission;
    g->readiness.waiting_ms = opts->limits.waiting_ms;
    g->readiness.running_max = opts->limits.running_max;
    if (!rc)
        rc = nk__reaper_start(&g->reaper, err);
    if (!rc && opts->chain)
        rc = nk_gateway_set_chains(g, &opts->chain, 1, 0, err);
    if (!rc)
        rc = nk__monitor_start(&g->monitor, g->clock, &handlers, err);
    if (!rc) {
        nk__readiness_attach(&g->readiness, g->monitor);
        rc = nk__http_start(g, err);
    }
    if (rc) {
        /* The chain stays its caller's. */
        nk__monitor_stop(g->monitor);
        g->monitor = NULL;
        nk__replicas_dissolve(atomic_exchange(&g->readiness.set, NULL));
        free_gateway(g);
        return rc;
    }
    snprintf(g->url, sizeof g->url, strchr(g->listen.host, ':') ? "%s://[%s]:%d" : "%s://%s:%d",
             g->tls_certificate ? "https" : "http",
             g->listen.host[0] ? g->listen.host : "127.0.0.1", g->port);
    nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "listen=%s tls=%s keys=%s model=%s", g->url,
           g->tls_certificate ? "yes" : "no", g->keys ? "yes" : "no", g->names[0]);
    warn_of_certificate(g);
    if (!g->listen.loopback && (!g->tls_certificate || !g->keys))
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
               "listen=%s msg=\"everybody who reaches this address can use it\"", g->url);
    if (nk__prompter_caps(g->prompter).broken) {
        char quoted[600];

        broken = *nk__prompter_caps(g->prompter).broken;
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN, "reason=%s msg=%s", broken.reason,
               nk_log_quote(quoted, sizeof quoted, broken.msg));
    }
    if (nk__prompter_caps(g->prompter).no_tools) {
        char quoted[600];

        nk_log(
            NK_LOG_GATEWAY, NK_LOG_WARN,
            "reason=unknown_form msg=\"tools are explained in the system's message: how the chat "
            "template writes calls is not understood\" because=%s",
            nk_log_quote(quoted, sizeof quoted, nk__prompter_caps(g->prompter).no_tools->msg));
    }
    *out = g;
    return 0;
}

bool nk_gateway_stop(nk_gateway *g, uint32_t grace_ms)
{
    struct nk_clock *clock = g ? g->clock : NULL;
    uint64_t end_ns;

    if (!g)
        return true;
    if (!atomic_exchange(&g->stopping, true))
        nk__http_quiesce(g);
    nk__presence_wait(&g->presence, NK_PRESENT_JOB, clock,
                      nk_clock_now_ns(clock) + grace_ms * 1000000ull);
    /* What is left ends now: who reads is told, and nobody is suspended any more. */
    nk__presence_close(&g->presence);
    nk__monitor_hurry(g->monitor);
    nk__repairer_stop(&g->repairer);
    nk__admission_close(g->admission); /* what is cancelled leaves room for nobody */
    nk__jobs_cancel(g);
    nk__listeners_wake(g);
    end_ns = nk_clock_now_ns(clock) + NK_GATEWAY_LAST_WORDS_MS * 1000000ull;
    /* Who reads slowly, or nothing, does not keep everybody. */
    if (g->daemon && !nk__presence_wait(&g->presence, NK_PRESENT_JOB, clock, end_ns))
        nk__watch_shutdown_all(g->watch);
    /* The monitor's last look, which somebody may wait for, has deadlines of its own. A helper ends
     * what it is at when it next asks whether that is wanted; what it has called may not. */
    end_ns = nk_clock_now_ns(clock) + NK_GATEWAY_GIVE_UP_MS * 1000000ull;
    /* The chain may still be ending what was cancelled, and uses the gateway until it lets go of
     * the job. */
    if (!nk__presence_wait(&g->presence, NK_PRESENT_JOB, clock, end_ns) ||
        !nk__presence_wait(&g->presence, NK_PRESENT_SUSPENDED, clock, end_ns) ||
        !nk__presence_wait(&g->presence, NK_PRESENT_HELD, clock, end_ns) ||
        !nk__pool_wait_idle(g->pool, end_ns) || !nk__monitor_quit(g->monitor, end_ns)) {
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
               "msg=\"a thread does not come back from its last request\"");
        return false;
    }
    nk__http_stop(g);
    /* A request that was on its way when `stopping` was set has come to its end with HTTP's. */
    nk__pool_wait_idle(g->pool, UINT64_MAX);
    nk__presence_wait(&g->presence, NK_PRESENT_HELD, clock, UINT64_MAX);
    free_gateway(g);
    return true;
}

const char *nk_gateway_url(const nk_gateway *g)
{
    return g->url;
}

int nk_gateway_port(const nk_gateway *g)
{
    return g->port;
}

/* ---- chains that come, change and go ---- */

static int check_chains(const nk_gateway *g, nk_chain *const *chains, int n, struct nk_error *err)
{
    if (n < 0 || n > NK_GATEWAY_CHAINS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_chains", "%d chains; 0 to %d are possible", n,
                       NK_GATEWAY_CHAINS_MAX);
    for (int i = 0; i < n; i++) {
        const char *sha = nk_chain_cluster(chains[i])->model_sha256;

        if (strcmp(sha, g->model_sha256) != 0)
            return nk_fail(err, NK_E_PRECONDITION, "wrong_model",
                           "chain %d is of the model %s; this gateway serves %s", i, sha,
                           g->model_sha256);
        for (int k = 0; k < i; k++)
            if (chains[k] == chains[i])
                return nk_fail(err, NK_E_INVALID, "bad_chains", "chains %d and %d are the same", k,
                               i);
    }
    return 0;
}

int nk_gateway_set_chains(nk_gateway *g, nk_chain *const *chains, int n, uint64_t epoch,
                          struct nk_error *err)
{
    struct nk_replicas *set = NULL;
    int rc = check_chains(g, chains, n, err);

    if (!rc && n && !(set = nk__replicas_new(g->reaper, chains, n, epoch)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the chains");
    if (!rc)
        rc = nk__readiness_set(&g->readiness, set, epoch, err);
    if (rc) {
        nk__replicas_dissolve(set);
        return rc;
    }
    pthread_mutex_lock(&g->mutex);
    g->token_epoch = n ? epoch : 0;
    g->token_s = 0;
    g->n_token_s = 0;
    pthread_mutex_unlock(&g->mutex);
    nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "chains=%d epoch=%llu", n, (unsigned long long)epoch);
    return 0;
}

void nk_gateway_set_waiting(nk_gateway *g, const char *text)
{
    nk__readiness_set_waiting(&g->readiness, text);
}

int nk_gateway_recovery_json(nk_gateway *g, struct nk_buf *out, struct nk_error *err)
{
    return nk__recoveries_json(&g->recoveries, out, err);
}

void nk__gateway_note_token(nk_gateway *g, double seconds)
{
    enum { TOKENS = 64 };

    struct nk_admission_counts c = nk__readiness_counts(&g->readiness);

    /* With others each token takes longer, which says nothing of the machines; and what ends on the
     * chains of before, on the same machines perhaps, is none of those in force. */
    if (c.running != 1 || c.ending)
        return;
    pthread_mutex_lock(&g->mutex);
    g->n_token_s += g->n_token_s < TOKENS;
    g->token_s += (seconds - g->token_s) / (double)g->n_token_s;
    pthread_mutex_unlock(&g->mutex);
}

static void stages_measured(nk_gateway *g, struct nk_gateway_measured *out)
{
    enum { LOOK_MS = 5000 };
    struct nk_snapshot *s;
    bool is_news;

    if (out->running == 1 && !out->ending && !atomic_exchange(&g->look_pending, true) &&
        nk__monitor_want(g->monitor, &g->look, LOOK_MS, false, 0))
        atomic_store(&g->look_pending, false);
    s = nk__monitor_peek(g->monitor);
    /* Each look is told once, and while it is fresh: nobody is slow for as long as nobody looks. */
    is_news = s && s->set && s->time_ns != g->look_told_ns &&
              nk_clock_now_ns(g->clock) - s->time_ns <= LOOK_MS * 1000000ull;
    if (is_news)
        g->look_told_ns = s->time_ns;
    for (int i = 0; is_news && s->set->epoch == out->epoch && i < s->n; i++) {
        const struct nk_cluster *c = nk_chain_cluster(s->set->chains[i]);

        for (int k = 0; k < c->n_workers && out->n_stages < NK_GATEWAY_STAGES_MAX; k++) {
            struct nk_gateway_stage *o = &out->stages[out->n_stages];

            if (!(s->views[i].rates[k].one_row_ms > 0))
                continue;
            snprintf(o->id, sizeof o->id, "%s", c->workers[k].id);
            o->layer_begin = c->workers[k].layer_begin;
            o->layer_end = c->workers[k].layer_end;
            o->ms = s->views[i].rates[k].one_row_ms;
            out->n_stages++;
        }
    }
    nk__snapshot_unref(s);
}

void nk_gateway_measured(nk_gateway *g, struct nk_gateway_measured *out)
{
    struct nk_admission_counts c = nk__readiness_counts(&g->readiness);

    pthread_mutex_lock(&g->mutex);
    *out = (struct nk_gateway_measured){
        .epoch = g->token_epoch,
        .running = c.running,
        .ending = c.ending,
        .waiting = c.waiting,
        .tokens_per_second = g->tokens_per_second,
        .ms_per_token = g->n_token_s >= NK_GATEWAY_TOKENS_MIN ? g->token_s * 1000 : NAN,
    };
    pthread_mutex_unlock(&g->mutex);
    stages_measured(g, out);
}
