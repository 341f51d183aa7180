/* A worker's life: start, drain, stop. */
#include "worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/proto.h"
#include "worker/service.h"
#include "worker/worker_int.h"

struct nk_worker_opts nk_worker_opts_default(void)
{
    return (struct nk_worker_opts){
        .listen = "127.0.0.1:5530",
        .stage = nk_stage_opts_default(),
        .queue_max = 64,
        .queue_ms = 60000,
        .stall_ms = 30000,
        .idle_ms = 300000,
        .silence_ms = NK_RPC_SILENCE_MS,
        .journal_bytes = 256ull << 20,
        .spill_bytes = 1ull << 30,
        .checkpoint_bytes = 512ull << 20,
        .checkpoint_every = 256,
        .clock = nk_clock_system(),
        .chance = nk_chance_system(),
    };
}

static int copy(char **out, const char *text, struct nk_error *err)
{
    *out = text ? strdup(text) : NULL;
    return text && !*out ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory") : 0;
}

static int copy_opts(nk_worker *w, const struct nk_worker_opts *o, struct nk_error *err)
{
    int rc;

    w->opts = *o;
    if (!nk_clock_runs(o->clock))
        w->opts.silence_ms = 0;
    if ((rc = copy(&w->slice_path, o->slice_path, err)) ||
        (rc = copy(&w->listen, o->listen, err)) || (rc = copy(&w->device, o->stage.device, err)) ||
        (rc = copy(&w->cache_type_k, o->stage.cache_type_k, err)) ||
        (rc = copy(&w->cache_type_v, o->stage.cache_type_v, err)) ||
        (rc = copy(&w->ca, o->credentials.ca, err)) ||
        (rc = copy(&w->certificate, o->credentials.certificate, err)) ||
        (rc = copy(&w->key, o->credentials.key, err)) ||
        (rc = copy(&w->identity, o->credentials.identity, err)) ||
        (rc = copy(&w->spill_folder, o->spill_folder, err)))
        return rc;
    w->opts.slice_path = w->slice_path;
    w->opts.listen = w->listen;
    w->opts.stage.device = w->device;
    w->opts.stage.cache_type_k = w->cache_type_k;
    w->opts.stage.cache_type_v = w->cache_type_v;
    w->opts.stage.separate_kv = o->deterministic;
    w->opts.credentials = (struct nk_credentials){
        .ca = w->ca, .certificate = w->certificate, .key = w->key, .identity = w->identity
    };
    if (o->n_peers > NK_WORKER_PEERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_option", "%d peers; at most %d are possible",
                       o->n_peers, NK_WORKER_PEERS_MAX);
    for (int i = 0; i < o->n_peers; i++) {
        rc = copy(&w->peers[i].address, o->peers[i], err);
        if (rc)
            return rc;
        w->peers[i].is_told = true;
        w->n_peers++;
    }
    w->opts.peers = NULL;
    return 0;
}

static void worker_free(nk_worker *w)
{
    nk_trace_close(w->trace);
    if (w->arena)
        nk_arena_free(w->arena);
    nk_buf_release(&w->replay);
    free(w->spill_folder);
    for (int i = 0; i < w->n_peers; i++)
        free(w->peers[i].address);
    free(w->slice_path);
    free(w->listen);
    free(w->device);
    free(w->cache_type_k);
    free(w->cache_type_v);
    free(w->ca);
    free(w->certificate);
    free(w->key);
    free(w->identity);
    free(w->seq_used);
    nk__checkpoints_all_release(&w->checkpoints);
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

static void set_chunk(nk_worker *w)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);

    if (w->opts.chunk <= 0)
        w->opts.chunk = strcmp(info->device, "CPU") != 0 ? NK_CHUNK_GPU
                        : w->opts.shared_cores           ? NK_CHUNK_CPU_SHARED
                                                         : NK_CHUNK_CPU;
    if (w->opts.chunk > info->n_batch)
        w->opts.chunk = info->n_batch;
    if (w->opts.chunk > nk__wire_rows_max(info->n_embd))
        w->opts.chunk = nk__wire_rows_max(info->n_embd);
}

/* One session may take a quarter of the memory, so that one long text does not push out all
 * others. */
static void set_journals(nk_worker *w)
{
    struct nk__journal_limits limits = NK_JOURNAL_LIMITS_DEFAULT;

    limits.memory_bytes = w->opts.journal_bytes;
    limits.session_bytes = w->opts.journal_bytes / 4;
    limits.spill_bytes = w->opts.spill_bytes;
    limits.folder = w->spill_folder;
    nk__journals_init(&w->journals, &limits);
}

static void set_checkpoints(nk_worker *w, const struct nk_worker_opts *o)
{
    struct nk__checkpoint_limits limits = { .session_bytes = o->checkpoint_bytes / 2,
                                            .all_bytes = o->checkpoint_bytes,
                                            .every = o->checkpoint_every };

    nk__checkpoints_all_init(&w->checkpoints, &limits);
}

static void set_id(nk_worker *w, const char *id, int port)
{
    const char *colon = strrchr(w->listen, ':');

    if (id)
        snprintf(w->id, sizeof w->id, "%s", id);
    else if (port)
        snprintf(w->id, sizeof w->id, "%.*s:%d", colon ? (int)(colon - w->listen) : 0, w->listen,
                 port);
    else
        snprintf(w->id, sizeof w->id, "%s", w->listen);
    w->opts.id = w->id;
}

/* Only now is a free port's number known. */
static void bound(void *worker, int port)
{
    set_id(worker, NULL, port);
}

int nk_worker_start(nk_worker **out, const struct nk_worker_opts *opts, struct nk_error *err)
{
    nk_worker *w = calloc(1, sizeof *w);
    struct nk_server_opts server = { 0 };
    int rc;

    *out = NULL;
    if (!w)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    pthread_mutex_init(&w->mutex, NULL);
    nk_cond_init(&w->cond);
    nk_buf_init(&w->replay, NK_RPC_MESSAGE_BYTES_MAX);
    set_checkpoints(w, opts);
    for (int i = 0; i < NK_SESSION_STATES; i++)
        TAILQ_INIT(&w->sessions[i].head);
    w->idle = true;
    rc = copy_opts(w, opts, err);
    w->started_ns = nk__worker_now_ns(w);
    if (!rc && opts->trace_path)
        rc = nk_trace_open(&w->trace, opts->trace_path, w->id, err);
    if (rc)
        goto fail;
    /* A message's bytes, and the structs around them, at most once more. */
    w->arena = nk_arena_new(2 * NK_RPC_MESSAGE_BYTES_MAX);
    if (!w->arena) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto fail;
    }
    rc = nk_net_start(&w->net, w->opts.clock, err);
    if (!rc)
        rc = nk__engine_start(&w->engine, w, err);
    if (rc)
        goto fail;
    w->n_seq_free = nk__engine_info(w->engine)->n_seq_max;
    w->seq_used = calloc((size_t)w->n_seq_free, 1);
    if (!w->seq_used) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto fail;
    }
    set_chunk(w);
    set_journals(w);
    set_id(w, opts->id, 0);
    server.listen = w->listen;
    server.credentials = w->opts.credentials;
    server.methods = nk__service_methods(&server.n_methods);
    server.user = w;
    server.silence_ms = w->opts.silence_ms;
    server.bound = opts->id ? NULL : bound;
    server.descriptors = nk_proto_descriptors();
    rc = nk_server_start(&w->server, w->net, &server, err);
    if (rc)
        goto fail;
    *out = w;
    return 0;
fail:
    nk__engine_stop(w->engine);
    if (w->net)
        nk_net_stop(w->net);
    worker_free(w);
    return rc;
}

int nk_worker_port(const nk_worker *w)
{
    return nk_server_port(w->server);
}

const struct nk_stage_info *nk_worker_stage(const nk_worker *w)
{
    return nk__engine_info(w->engine);
}

int nk_worker_check(nk_worker *w, struct nk_error *err)
{
    return nk__engine_check(w->engine, err);
}

static void draining_status(const nk_worker *w, struct nk_error *out)
{
    nk_fail(out, NK_E_UNAVAILABLE, "draining", "worker %s shuts down", w->id);
}

static void drain(void *worker)
{
    nk_worker *w = worker;
    struct nk_error err;

    w->state = NK_WORKER_DRAINING;
    draining_status(w, &err);
    nk__session_end_waiting(w, &err);
    pthread_mutex_lock(&w->mutex);
    w->drain_began = true;
    w->idle = nk__session_n_active(w) == 0;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

static void end_all(void *worker)
{
    nk_worker *w = worker;
    struct nk_error err;

    draining_status(w, &err);
    nk__session_end_all(w, &err, false);
    if (w->sleep_timer) {
        nk_timer_cancel(w->sleep_timer);
        w->sleep_timer = NULL;
        nk_call_finish(w->sleep_call, &err);
        nk_call_unref(w->sleep_call);
        w->sleep_call = NULL;
    }
    if (w->tick)
        nk_timer_cancel(w->tick);
    w->tick = NULL;
    w->no_tick = true;
}

static bool wait_idle(nk_worker *w, uint32_t ms)
{
    uint64_t until = nk__worker_now_ns(w) + ms * 1000000ull;
    bool idle;

    pthread_mutex_lock(&w->mutex);
    while (!(w->drain_began && w->idle) &&
           nk_clock_wait_until(w->opts.clock, &w->cond, &w->mutex, until))
        ;
    idle = w->drain_began && w->idle;
    pthread_mutex_unlock(&w->mutex);
    return idle;
}

void nk_worker_stop(nk_worker *w, uint32_t grace_ms)
{
    if (!w)
        return;
    nk_server_set_serving(w->server, false);
    nk_net_post(w->net, drain, w);
    if (!wait_idle(w, grace_ms))
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "event=drain msg=\"sessions are left after %u ms; they are ended\"", grace_ms);
    nk_net_post(w->net, end_all, w);
    nk_server_stop(w->server, 500);
    for (int i = 0; i < w->n_peers; i++)
        if (w->peers[i].channel)
            nk_channel_close(w->peers[i].channel);
    /* The engine posts to the net thread: it ends first, and what it had posted is still
     * handled. */
    nk__engine_stop_thread(w->engine);
    nk_net_stop(w->net);
    nk__engine_stop(w->engine);
    worker_free(w);
}
