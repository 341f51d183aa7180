/* Info, Forward, Sleep and Wake. Each is one message in, one out. */
#include "worker/service.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "rpc/unary.h"

/* The message may take as long as a session's call has for Open. */
static void open_unary(nk_call *c, nk_worker *w,
                       void (*handle)(void *worker, nk_call *c, struct nk_bytes msg))
{
    nk_unary_open(c, w->net, NK_OPEN_DEADLINE_MS, handle, w);
}

static const char *state_name(const nk_worker *w)
{
    switch (w->state) {
    case NK_WORKER_SERVING:
        return "serving";
    case NK_WORKER_ASLEEP:
        return "asleep";
    case NK_WORKER_WAKING:
        return "waking";
    case NK_WORKER_DRAINING:
        return "draining";
    }
    return "unknown";
}

/* ---- Info ---- */

static void fill_device(Nakshatra__V1__InfoReply *m, const struct nk_stage_info *info)
{
    struct nk_device devices[32];
    int n = nk_device_list(devices, 32);

    for (int i = 0; i < n && i < 32; i++)
        if (strcmp(devices[i].name, info->device) == 0) {
            m->device_memory_bytes = devices[i].memory_total_bytes;
            m->device_memory_free_bytes = devices[i].memory_free_bytes;
        }
}

static void info_handle(void *worker, nk_call *c, struct nk_bytes msg)
{
    nk_worker *w = worker;
    const struct nk_stage_info *info = nk__engine_info(w->engine);
    struct nk_engine_counters *n = nk__engine_counters(w->engine);
    Nakshatra__V1__InfoReply m = NAKSHATRA__V1__INFO_REPLY__INIT;
    Nakshatra__V1__Counters counters = NAKSHATRA__V1__COUNTERS__INIT;
    Nakshatra__V1__Dtype dtypes[] = { NAKSHATRA__V1__DTYPE__DTYPE_F32,
                                      NAKSHATRA__V1__DTYPE__DTYPE_F16 };
    Nakshatra__V1__Fact facts[NK_FACTS], *fact_list[NK_FACTS];
    struct nk_computed computed;
    char *capabilities[10];
    size_t n_capabilities = 0;
    int active = nk__session_n_active(w), kept = w->sessions[NK_SESSION_KEPT].n;

    (void)msg; /* InfoRequest has no fields; a newer client's are not ours to judge */
    m.protocol = 1;
    m.worker_id = w->id;
    m.version = (char *)(uintptr_t)NK_VERSION;
    m.llama_version = (char *)(uintptr_t)info->llama_version;
    m.model_id = (char *)(uintptr_t)info->model_name;
    m.model_sha256 = (char *)(uintptr_t)info->model_sha256;
    m.architecture = (char *)(uintptr_t)info->architecture;
    m.quantisation = (char *)(uintptr_t)info->quantisation;
    m.layer_begin = (uint32_t)info->layer_begin;
    m.layer_end = (uint32_t)info->layer_end;
    m.layer_count = (uint32_t)info->layer_count;
    m.n_embd = (uint32_t)info->n_embd;
    m.n_vocab = (uint32_t)info->n_vocab;
    m.dtypes = dtypes;
    m.n_dtypes = 2;
    m.n_ctx = (uint32_t)info->n_ctx;
    m.n_ctx_seq = (uint32_t)info->n_ctx_seq;
    m.n_ctx_train = (uint32_t)info->n_ctx_train;
    m.n_seq_max = (uint32_t)info->n_seq_max;
    m.n_batch = (uint32_t)info->n_batch;
    m.kv_tokens_free = (uint32_t)(info->n_ctx - w->kv_reserved);
    m.sequences_free = (uint32_t)(w->n_seq_free + kept);
    m.backend = (char *)(uintptr_t)info->backend;
    m.device = (char *)(uintptr_t)info->device;
    m.device_description = (char *)(uintptr_t)info->device_description;
    fill_device(&m, info);
    m.host_memory_bytes = nk_memory_total();
    m.host_memory_free_bytes = nk_memory_available();
    m.weights_bytes = w->unloaded ? 0 : info->weights_bytes;
    m.kv_bytes = w->unloaded ? 0 : info->kv_bytes;
    m.n_threads = (uint32_t)info->n_threads;
    m.cache_type_k = (char *)(uintptr_t)info->cache_type_k;
    m.cache_type_v = (char *)(uintptr_t)info->cache_type_v;
    nk__wire_computed(&computed, w);
    m.n_computed = nk_computed_pack(&computed, facts, fact_list);
    m.computed = fact_list;
    m.verified = (char *)(uintptr_t)nk_slice_verified_text(
        (enum nk_slice_verified)atomic_load(&n->verified));
    m.state = (char *)(uintptr_t)state_name(w);
    m.deterministic = w->opts.deterministic;
    m.epoch = w->opts.epoch;
    if (info->can_rollback)
        capabilities[n_capabilities++] = (char *)(uintptr_t) "rollback";
    if (!w->opts.deterministic)
        capabilities[n_capabilities++] = (char *)(uintptr_t) "prefix_reuse";
    capabilities[n_capabilities++] = (char *)(uintptr_t) "sleep";
    capabilities[n_capabilities++] = (char *)(uintptr_t) "resume";
    if (info->pooling)
        capabilities[n_capabilities++] = (char *)(uintptr_t) "embedding";
    if (info->is_last && !info->pooling) {
        capabilities[n_capabilities++] = (char *)(uintptr_t) "sampling";
        capabilities[n_capabilities++] = (char *)(uintptr_t) "logprobs";
        capabilities[n_capabilities++] = (char *)(uintptr_t) "grammar";
    }
    m.capabilities = capabilities;
    m.n_capabilities = n_capabilities;
    counters.sessions_opened = w->n_opened;
    /* A stream whose Open has not come is none yet: whoever counts sessions must not be ahead of
     * the queue. */
    counters.sessions_open = (uint64_t)(active - w->sessions[NK_SESSION_NEW].n);
    counters.sessions_kept = (uint64_t)kept;
    counters.sessions_failed = w->n_failed;
    counters.sessions_held = (uint64_t)w->sessions[NK_SESSION_HELD].n;
    counters.sessions_resumed = w->n_resumed;
    counters.tokens_replayed = w->n_tokens_replayed;
    counters.journal_bytes = atomic_load(&w->journals.memory_bytes);
    counters.journal_spilled_bytes = atomic_load(&w->journals.spilled_bytes);
    counters.checkpoints = atomic_load(&w->checkpoints.n);
    counters.checkpoint_bytes = atomic_load(&w->checkpoints.bytes);
    counters.checkpoints_made = atomic_load(&w->checkpoints.n_made);
    counters.checkpoints_used = atomic_load(&w->checkpoints.n_used);
    counters.tokens_prefilled = atomic_load(&n->tokens_prefilled);
    counters.tokens_decoded = atomic_load(&n->tokens_decoded);
    counters.tokens_reused = w->n_tokens_reused;
    counters.runs = atomic_load(&n->runs);
    counters.rows_in_runs = atomic_load(&n->rows);
    counters.steps = atomic_load(&n->steps);
    counters.wire_us = w->wire_ns / 1000;
    counters.wire_steps = w->n_wire_steps;
    counters.compute_us = atomic_load(&n->compute_ns) / 1000;
    counters.queue_us = atomic_load(&n->queue_ns) / 1000;
    counters.uptime_ms = (nk__worker_now_ns(w) - w->started_ns) / 1000000;
    counters.streams_open = (uint64_t)w->n_streams;
    counters.jobs_queued = (uint64_t)atomic_load(&n->jobs_queued);
    m.counters = &counters;
    nk_unary_reply(c, (ProtobufCMessage *)&m);
}

static void info_open(nk_call *c, void *worker)
{
    open_unary(c, worker, info_handle);
}

/* ---- what the compute thread does for a call ---- */

/* Ends the call that asked for j with what came of it (msg NULL: it went already), and frees the
 * job. */
static void answer_job(struct nk_compute_job *j, const ProtobufCMessage *msg)
{
    nk_worker *w = j->worker;

    if (j->rc) {
        nk_wrap(j->rc, &j->err, "worker %s", w->id);
        nk_call_finish(j->call, &j->err);
    } else if (msg) {
        nk_unary_reply(j->call, msg);
    } else {
        nk_call_finish(j->call, NULL);
    }
    nk__engine_job_free(w->engine, j);
}

/* ---- Forward ---- */

/* Of the texts that wait to be pooled; one alone may have more. */
static const size_t POOLED_BYTES_MAX = 256u << 20;

static size_t pooled_bytes(const nk_worker *w, int n)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);

    return (size_t)n * (sizeof(int32_t) + (info->is_first ? 0 : (size_t)info->n_embd * 4));
}

static void forward_done(struct nk_compute_job *j)
{
    nk_worker *w = j->worker;

    if (j->pooled) {
        w->n_pooled--;
        w->pooled_bytes -= pooled_bytes(w, j->sched.n);
    } else {
        nk__room_return_seq(w, j->seq);
    }
    answer_job(j, NULL);
}

/* Nothing of a pooled one is kept, so that no sequence bounds how many wait. */
static int check_queue(const nk_worker *w, int n, struct nk_error *err)
{
    if (w->n_pooled > w->opts.queue_max ||
        (w->n_pooled && w->pooled_bytes + pooled_bytes(w, n) > POOLED_BYTES_MAX))
        return nk_fail(err, NK_E_EXHAUSTED, "queue_full",
                       "%d texts of %zu bytes wait to be computed already; try again later",
                       w->n_pooled, w->pooled_bytes);
    return 0;
}

/* Does it want what this worker's model computes? */
static int check_pooling(const nk_worker *w, const Nakshatra__V1__ForwardRequest *m,
                         struct nk_error *err)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);
    const char *mine = info->pooling ? nk_pooling_text(info->pooling) : "";

    if (strcmp(m->pooling, mine) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "pooling_mismatch",
                       "the request is for %.16s%s, this worker's model gives %s%s",
                       m->pooling[0] ? "pooling " : "logits", m->pooling,
                       mine[0] ? "pooling " : "logits", mine);
    if (m->model_sha256[0] && strcmp(m->model_sha256, info->model_sha256) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "the request is for model %.12s..., this worker has %.12s...",
                       m->model_sha256, info->model_sha256);
    if (info->pooling && m->n_ids > (size_t)info->n_ctx_seq)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                       "the text has %zu tokens; this worker's context holds %d", m->n_ids,
                       info->n_ctx_seq);
    return 0;
}

static int forward(nk_worker *w, nk_call *c, const Nakshatra__V1__ForwardRequest *m,
                   struct nk_error *err)
{
    const struct nk_stage_info *info = nk__engine_info(w->engine);
    uint64_t out_width = (uint64_t)(info->is_last ? info->n_vocab : info->n_embd);
    struct nk_compute_job *j;
    int rc;

    if (w->state == NK_WORKER_ASLEEP || w->state == NK_WORKER_WAKING)
        return nk_fail(err, NK_E_UNAVAILABLE, "asleep", "the worker is asleep; rpc Wake wakes it");
    rc = check_pooling(w, m, err);
    if (rc)
        return rc;
    if (m->n_ids == 0 || m->n_ids > (size_t)info->n_batch)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "%zu rows; 1 to %d are possible in one Forward", m->n_ids, info->n_batch);
    if (info->is_first && m->rows)
        return nk_fail(err, NK_E_INVALID, "bad_rows",
                       "the first stage takes token ids alone; rows came with them");
    for (size_t i = 0; i < m->n_ids; i++)
        if (m->ids[i] < 0 || m->ids[i] >= info->n_vocab)
            return nk_fail(err, NK_E_INVALID, "bad_token",
                           "token id %d is outside the vocabulary of %d", m->ids[i], info->n_vocab);
    if ((!info->is_last || m->all_logits) &&
        m->n_ids * out_width * 4 > NK_RPC_MESSAGE_BYTES_MAX / 2)
        return nk_fail(err, NK_E_INVALID, "too_large",
                       "the answer of %zu rows of %llu floats is over the limit of %u bytes",
                       m->n_ids, (unsigned long long)out_width, NK_RPC_MESSAGE_BYTES_MAX / 2);
    if (info->pooling)
        rc = check_queue(w, (int)m->n_ids, err);
    if (!rc)
        rc = nk__engine_job(w->engine, &j, (int)m->n_ids, !info->is_first, err);
    if (rc)
        return rc;
    if (!info->is_first)
        rc = nk__wire_rows(j->rows, m->rows, (int)m->n_ids, info->n_embd, err);
    /* Runs on the compute thread come one after the other, and nothing of a pooled one is kept. */
    j->pooled = info->pooling != NK_POOLING_NONE;
    if (j->pooled)
        j->seq = 0;
    else if (!rc && (j->seq = nk__room_borrow_seq(w, (int)m->n_ids)) < 0)
        rc =
            nk_fail(err, NK_E_EXHAUSTED, "kv_full", "all %d sequences are in use", info->n_seq_max);
    if (rc) {
        nk__engine_job_free(w->engine, j);
        return rc;
    }
    memcpy(j->ids, m->ids, m->n_ids * sizeof *j->ids);
    j->kind = NK_COMPUTE_FORWARD;
    j->done = forward_done;
    j->all_logits = m->all_logits;
    j->call = nk_call_ref(c);
    j->worker = w;
    if (j->pooled) {
        w->n_pooled++;
        w->pooled_bytes += pooled_bytes(w, j->sched.n);
    }
    nk__engine_submit(w->engine, j);
    return 0;
}

static void forward_handle(void *worker, nk_call *c, struct nk_bytes msg)
{
    nk_worker *w = worker;
    Nakshatra__V1__ForwardRequest *m;
    struct nk_error err;
    int rc;

    nk_arena_reset(w->arena);
    m = nakshatra__v1__forward_request__unpack(nk_arena_allocator(w->arena), msg.size, msg.data);
    rc =
        m ? forward(w, c, m, &err)
          : nk_fail(&err, NK_E_INVALID, "bad_message", "%zu bytes are no ForwardRequest", msg.size);
    if (rc) {
        nk_wrap(rc, &err, "worker %s", w->id);
        nk_call_finish(c, &err);
    }
}

static void forward_open(nk_call *c, void *worker)
{
    open_unary(c, worker, forward_handle);
}

/* ---- Sleep, Wake ---- */

static int submit_control(nk_worker *w, nk_call *c, enum nk_compute_kind kind,
                          void (*done)(struct nk_compute_job *), struct nk_error *err)
{
    struct nk_compute_job *j;
    int rc = nk__engine_job(w->engine, &j, 0, false, err);

    if (rc)
        return rc;
    j->kind = kind;
    j->done = done;
    j->worker = w;
    j->call = nk_call_ref(c);
    nk__engine_submit(w->engine, j);
    return 0;
}

static void sleep_done(struct nk_compute_job *j)
{
    const struct nk_stage_info *info = nk__engine_info(j->worker->engine);
    Nakshatra__V1__SleepReply m = NAKSHATRA__V1__SLEEP_REPLY__INIT;

    j->worker->unloaded = true;
    m.freed_bytes = info->weights_bytes + info->kv_bytes;
    answer_job(j, (ProtobufCMessage *)&m);
}

static void wake_done(struct nk_compute_job *j)
{
    nk_worker *w = j->worker;
    Nakshatra__V1__WakeReply m = NAKSHATRA__V1__WAKE_REPLY__INIT;

    if (!j->rc)
        w->unloaded = false;
    if (w->state == NK_WORKER_WAKING) {
        w->state = j->rc ? NK_WORKER_ASLEEP : NK_WORKER_SERVING;
        nk_server_set_serving(w->server, !j->rc);
    }
    m.load_ms = (j->end_ns - j->begin_ns) / 1000000;
    answer_job(j, (ProtobufCMessage *)&m);
}

static void asleep_status(const nk_worker *w, struct nk_error *out)
{
    nk_fail(out, NK_E_UNAVAILABLE, "asleep", "worker %s goes to sleep", w->id);
}

static void go_to_sleep(void *worker)
{
    nk_worker *w = worker;
    nk_call *c = w->sleep_call;
    struct nk_error err;

    w->sleep_timer = NULL;
    w->sleep_call = NULL;
    if (nk__session_n_active(w)) {
        asleep_status(w, &err);
        nk__session_end_all(w, &err, false);
    }
    nk__session_end_all(w, NULL, true);
    if (submit_control(w, c, NK_COMPUTE_SLEEP, sleep_done, &err))
        nk_call_finish(c, &err);
    nk_call_unref(c);
}

static void sleep_handle(void *worker, nk_call *c, struct nk_bytes msg)
{
    nk_worker *w = worker;
    Nakshatra__V1__SleepRequest *m;
    struct nk_error err;
    uint32_t grace;

    nk_arena_reset(w->arena);
    m = nakshatra__v1__sleep_request__unpack(nk_arena_allocator(w->arena), msg.size, msg.data);
    if (!m)
        nk_fail(&err, NK_E_INVALID, "bad_message", "%zu bytes are no SleepRequest", msg.size);
    else if (w->state != NK_WORKER_SERVING)
        nk_fail(&err, NK_E_PRECONDITION, "not_serving",
                "worker %s is %s; only one that serves can be put to sleep", w->id, state_name(w));
    if (!m || w->state != NK_WORKER_SERVING) {
        nk_call_finish(c, &err);
        return;
    }
    grace = m->grace_ms < 600000 ? m->grace_ms : 600000;
    w->state = NK_WORKER_ASLEEP;
    nk_server_set_serving(w->server, false);
    w->sleep_call = nk_call_ref(c);
    w->sleep_timer = nk_timer_start(w->net, grace, go_to_sleep, w);
    asleep_status(w, &err);
    nk__session_end_waiting(w, &err);
    nk__service_idle(w);
}

void nk__service_idle(nk_worker *w)
{
    if (!w->sleep_timer || nk__session_n_active(w))
        return;
    /* As its own event: this may be called in the middle of a session's end. */
    nk_timer_cancel(w->sleep_timer);
    w->sleep_timer = nk_timer_start(w->net, 0, go_to_sleep, w);
}

static void sleep_open(nk_call *c, void *worker)
{
    open_unary(c, worker, sleep_handle);
}

static void wake_handle(void *worker, nk_call *c, struct nk_bytes msg)
{
    nk_worker *w = worker;
    struct nk_error err;

    (void)msg;
    if (w->state == NK_WORKER_SERVING) {
        Nakshatra__V1__WakeReply m = NAKSHATRA__V1__WAKE_REPLY__INIT;

        nk_unary_reply(c, (ProtobufCMessage *)&m);
        return;
    }
    if (w->state != NK_WORKER_ASLEEP || w->sleep_timer) {
        nk_fail(&err, NK_E_PRECONDITION, "not_asleep",
                "worker %s is %s; only one that sleeps can be woken", w->id,
                w->sleep_timer ? "going to sleep" : state_name(w));
        nk_call_finish(c, &err);
        return;
    }
    w->state = NK_WORKER_WAKING;
    if (submit_control(w, c, NK_COMPUTE_WAKE, wake_done, &err)) {
        w->state = NK_WORKER_ASLEEP;
        nk_call_finish(c, &err);
    }
}

static void wake_open(nk_call *c, void *worker)
{
    open_unary(c, worker, wake_handle);
}

const struct nk_method *nk__service_methods(int *n)
{
    /* A member that is no gateway has a session only as the stage before this one: Open (open.c)
     * sees to that. */
    enum { MEMBERS = NK_ROLES_MEMBER | NK_ROLES_GATEWAY };
    static const struct nk_method methods[] = {
        { "/nakshatra.v1.Nakshatra/Info", info_open, MEMBERS },
        { "/nakshatra.v1.Nakshatra/Forward", forward_open, NK_ROLES_GATEWAY },
        { "/nakshatra.v1.Nakshatra/Inference", nk__session_open_call, MEMBERS },
        { "/nakshatra.v1.Nakshatra/Sleep", sleep_open, NK_ROLES_GATEWAY },
        { "/nakshatra.v1.Nakshatra/Wake", wake_open, NK_ROLES_GATEWAY },
    };

    *n = sizeof methods / sizeof methods[0];
    return methods;
}
