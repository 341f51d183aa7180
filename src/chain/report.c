/* What the workers are: Info from all of them at once, held against the cluster file and against
 * each other; and the probe, one token through the whole chain. */
#include "chain/chain_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/visible.h"

/* Calls per worker: the first pays for the connection, the best of the others is the round trip. */
enum { ROUNDS = 5 };

struct check;
struct asking { /* one worker */
    struct check *check;
    int idx, round;
    uint64_t sent_ns;
    bool has_reply; /* of this round */
    nk_call *call;
};
struct check {
    nk_chain *c;
    struct nk_chain_report *report;
    uint64_t end_ns;
    struct asking asking[NK_CLUSTER_WORKERS_MAX];
    bool f32[NK_CLUSTER_WORKERS_MAX], f16[NK_CLUSTER_WORKERS_MAX];
    uint32_t protocol[NK_CLUSTER_WORKERS_MAX];
    pthread_mutex_t mutex;
    pthread_cond_t done;
    int n_pending;
};

/* A peer's count as an int: what does not fit is as good as the largest. */
static int count(uint32_t v)
{
    return v > INT32_MAX ? INT32_MAX : (int)v;
}

#define copy(field, from) nk_visible_line(w->field, sizeof w->field, m->from)

static void take_reply(struct asking *a, const Nakshatra__V1__InfoReply *m)
{
    struct nk_worker_report *w = &a->check->report->workers[a->idx];

    copy(worker_id, worker_id);
    copy(model_id, model_id);
    copy(model_sha256, model_sha256);
    copy(architecture, architecture);
    copy(quantisation, quantisation);
    copy(version, version);
    copy(llama_version, llama_version);
    copy(backend, backend);
    copy(device, device);
    copy(device_description, device_description);
    copy(state, state);
    copy(cache_type_k, cache_type_k);
    copy(cache_type_v, cache_type_v);
    copy(verified, verified);
    if (!w->verified[0])
        memcpy(w->verified, "unknown", sizeof "unknown");
    if (!w->cache_type_k[0] && !w->cache_type_v[0]) { /* older workers do not say */
        memcpy(w->cache_type_k, "f16", sizeof "f16");
        memcpy(w->cache_type_v, "f16", sizeof "f16");
    }
    w->has_begin = count(m->layer_begin);
    w->has_end = count(m->layer_end);
    w->layer_count = count(m->layer_count);
    w->n_embd = count(m->n_embd);
    w->n_vocab = count(m->n_vocab);
    w->n_ctx = count(m->n_ctx);
    w->n_ctx_seq = m->n_ctx_seq ? count(m->n_ctx_seq) : w->n_ctx; /* older workers do not say */
    w->n_ctx_train = count(m->n_ctx_train);
    w->n_seq_max = count(m->n_seq_max);
    w->n_batch = count(m->n_batch);
    w->n_threads = count(m->n_threads);
    w->kv_tokens_free = count(m->kv_tokens_free);
    w->sequences_free = count(m->sequences_free);
    w->device_memory_bytes = m->device_memory_bytes;
    w->device_memory_free_bytes = m->device_memory_free_bytes;
    w->host_memory_bytes = m->host_memory_bytes;
    w->host_memory_free_bytes = m->host_memory_free_bytes;
    w->weights_bytes = m->weights_bytes;
    w->kv_bytes = m->kv_bytes;
    w->deterministic = m->deterministic;
    w->epoch = m->epoch;
    nk_computed_unpack(&w->computed, m->computed, m->n_computed, m->llama_version);
    if (m->counters) {
        const Nakshatra__V1__Counters *n = m->counters;

        w->sessions_opened = n->sessions_opened;
        w->sessions_open = n->sessions_open;
        w->sessions_kept = n->sessions_kept;
        w->sessions_failed = n->sessions_failed;
        w->tokens_prefilled = n->tokens_prefilled;
        w->tokens_decoded = n->tokens_decoded;
        w->tokens_reused = n->tokens_reused;
        w->runs = n->runs;
        w->rows_in_runs = n->rows_in_runs;
        w->compute_us = n->compute_us;
        w->queue_us = n->queue_us;
        w->uptime_ms = n->uptime_ms;
        w->streams_open = n->streams_open;
        w->jobs_queued = n->jobs_queued;
        w->steps = n->steps;
        w->wire_us = n->wire_us;
        w->wire_steps = n->wire_steps;
        w->sessions_held = n->sessions_held;
        w->sessions_resumed = n->sessions_resumed;
        w->tokens_replayed = n->tokens_replayed;
        w->journal_bytes = n->journal_bytes;
        w->journal_spilled_bytes = n->journal_spilled_bytes;
    }
    a->check->protocol[a->idx] = m->protocol;
    for (size_t i = 0; i < m->n_dtypes; i++) {
        a->check->f32[a->idx] |= m->dtypes[i] == NAKSHATRA__V1__DTYPE__DTYPE_F32;
        a->check->f16[a->idx] |= m->dtypes[i] == NAKSHATRA__V1__DTYPE__DTYPE_F16;
    }
    w->answered = true;
}

static void ask(struct asking *a);

static void asked_all(struct check *k)
{
    pthread_mutex_lock(&k->mutex);
    if (--k->n_pending == 0)
        pthread_cond_signal(&k->done);
    pthread_mutex_unlock(&k->mutex);
}

static void info_message(nk_call *call, void *user, struct nk_bytes msg)
{
    struct asking *a = user;
    struct nk_worker_report *w = &a->check->report->workers[a->idx];
    double us = (double)(nk_clock_now_ns(a->check->c->clock) - a->sent_ns) / 1e3;
    Nakshatra__V1__InfoReply *m;

    (void)call;
    if (a->has_reply)
        return;
    m = nakshatra__v1__info_reply__unpack(nk_arena_allocator(a->check->c->arena), msg.size,
                                          msg.data);
    if (m) {
        a->has_reply = true;
        take_reply(a, m);
        if (a->round == 1 || us < w->rtt_us)
            w->rtt_us = us;
    }
    nk_arena_reset(a->check->c->arena);
}

static void info_ended(nk_call *call, void *user, const struct nk_error *status)
{
    struct asking *a = user;
    struct nk_worker_report *w = &a->check->report->workers[a->idx];

    (void)call;
    if (!w->answered) {
        if (status)
            w->err = *status;
        else
            nk_fail(&w->err, NK_E_DATA_LOSS, "bad_peer", "its answer is no InfoReply");
        w->rc = nk__wrap_worker(w->err.code, &w->err, &a->check->c->cluster.workers[a->idx]);
    }
    /* A worker that answered once and then no more fares as its first answer says; the generation
     * will tell. */
    if (!a->has_reply || a->round == ROUNDS)
        asked_all(a->check);
    else
        ask(a);
}

/* [net thread] */
static void ask(struct asking *a)
{
    static const struct nk_call_handlers handlers = { .message = info_message, .end = info_ended };
    struct check *k = a->check;
    Nakshatra__V1__InfoRequest request = NAKSHATRA__V1__INFO_REQUEST__INIT;
    struct nk_worker_report *w = &k->report->workers[a->idx];
    uint64_t now = nk_clock_now_ns(k->c->clock);
    uint64_t left_ms = now < k->end_ns ? (k->end_ns - now) / 1000000 : 0;
    struct nk_error err;

    a->round++;
    a->has_reply = false;
    if (a->round > 1 && !left_ms) {
        asked_all(k);
        return;
    }
    a->sent_ns = now;
    if (nk_call_start(&a->call, k->c->channels[a->idx], NK__PATH_INFO,
                      left_ms ? (uint32_t)left_ms : 1, &handlers, a, &err)) {
        if (!w->answered) {
            w->err = err;
            w->rc = nk__wrap_worker(err.code, &w->err, &k->c->cluster.workers[a->idx]);
        }
        asked_all(k);
        return;
    }
    if (nk_call_send_pb(a->call, &request.base, &err))
        nk_call_cancel(a->call);
    else
        nk_call_send_done(a->call);
}

static void ask_all(void *arg)
{
    struct check *k = arg;
    int n = k->report->n_workers;

    for (int i = 0; i < n; i++)
        ask(&k->asking[i]);
}

/* ---- comparing ---- */

/* The worker does not fit: what it has and what would have been right, its name before it. */
#define misfit(reason, ...)                                                                        \
    nk__wrap_worker(nk_fail(&w->err, NK_E_PRECONDITION, reason, __VA_ARGS__), &w->err, in_file)

/* One worker against the file, and against the first worker that answered (other). */
static int compare(const struct check *k, int idx, const struct nk_worker_report *other)
{
    const struct nk_cluster *c = &k->c->cluster;
    const struct nk_cluster_worker *in_file = &c->workers[idx];
    struct nk_worker_report *w = &k->report->workers[idx];
    int n_layers = c->workers[c->n_workers - 1].layer_end;
    bool has_dtype = c->f16 ? k->f16[idx] : k->f32[idx];

    if (k->protocol[idx] != NK__PROTOCOL)
        return misfit("protocol_mismatch", "it speaks protocol %u, this program speaks %d",
                      k->protocol[idx], NK__PROTOCOL);
    if (strcmp(w->model_sha256, c->model_sha256))
        return misfit("model_mismatch",
                      "it has the model %s (%.60s), the cluster file wants %s (%.60s)",
                      w->model_sha256, w->model_id, c->model_sha256, c->model_id);
    if (w->epoch && w->epoch != nk_cluster_epoch(c, idx))
        return misfit("stale_epoch",
                      "the cluster file is of epoch %llu of the cluster's plan, "
                      "this worker of epoch %llu",
                      (unsigned long long)nk_cluster_epoch(c, idx), (unsigned long long)w->epoch);
    if (w->has_begin != in_file->layer_begin || w->has_end != in_file->layer_end)
        return misfit("layers_mismatch", "it has layers %d-%d, the cluster file says %d-%d",
                      w->has_begin, w->has_end, in_file->layer_begin, in_file->layer_end);
    if (w->layer_count != n_layers)
        return misfit("layers_mismatch",
                      "its model has %d layers, the cluster file's ranges end at %d",
                      w->layer_count, n_layers);
    if (w->n_embd != other->n_embd)
        return misfit("width_mismatch", "its rows have %d floats, those of worker %s have %d",
                      w->n_embd, other->id, other->n_embd);
    if (w->n_vocab != other->n_vocab)
        return misfit("vocab_mismatch", "its vocabulary has %d tokens, that of worker %s has %d",
                      w->n_vocab, other->id, other->n_vocab);
    if (strcmp(w->architecture, other->architecture))
        return misfit("model_mismatch", "its architecture is %s, that of worker %s is %s",
                      w->architecture, other->id, other->architecture);
    if (!has_dtype)
        return misfit("dtype_mismatch", "it does not take rows as %s, which the cluster file wants",
                      c->f16 ? "f16" : "f32");
    if (nk_computed_compare(&w->computed, &other->computed, other->id, &w->err))
        return nk__wrap_worker(w->err.code, &w->err, in_file);
    if (w->n_ctx_seq < 2)
        return misfit("no_context", "it has room for %d tokens of context; at least 2 are needed",
                      w->n_ctx_seq);
    if (strcmp(w->state, "serving"))
        return nk__wrap_worker(
            nk_fail(&w->err, NK_E_UNAVAILABLE, "not_serving", "it is %s, not serving", w->state),
            &w->err, in_file);
    return 0;
}

static void compare_all(const struct check *k)
{
    struct nk_chain_report *r = k->report;
    const struct nk_worker_report *other = NULL;

    r->ok = true;
    for (int i = 0; i < r->n_workers && !other; i++)
        if (r->workers[i].answered)
            other = &r->workers[i];
    for (int i = 0; i < r->n_workers; i++) {
        struct nk_worker_report *w = &r->workers[i];

        if (w->answered) {
            w->rc = compare(k, i, other);
            r->n_ctx = r->n_ctx && r->n_ctx < w->n_ctx_seq ? r->n_ctx : w->n_ctx_seq;
            r->n_ctx_train = w->n_ctx_train;
            r->n_vocab = w->n_vocab;
        }
        if (w->rc && r->ok) {
            r->ok = false;
            r->err = w->err;
        }
    }
}

int nk_chain_check(nk_chain *c, uint32_t timeout_ms, struct nk_chain_report **out,
                   struct nk_error *err)
{
    struct check *k = calloc(1, sizeof *k);

    *out = NULL;
    if (!k || !(k->report = calloc(1, sizeof *k->report))) {
        free(k);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    k->c = c;
    k->end_ns = nk_clock_now_ns(c->clock) + (uint64_t)timeout_ms * 1000000;
    k->n_pending = k->report->n_workers = c->cluster.n_workers;
    pthread_mutex_init(&k->mutex, NULL);
    pthread_cond_init(&k->done, NULL);
    for (int i = 0; i < c->cluster.n_workers; i++) {
        const struct nk_cluster_worker *in_file = &c->cluster.workers[i];
        struct nk_worker_report *w = &k->report->workers[i];

        k->asking[i] = (struct asking){ .check = k, .idx = i };
        memcpy(w->id, in_file->id, sizeof w->id);
        memcpy(w->address, in_file->address, sizeof w->address);
        w->layer_begin = in_file->layer_begin;
        w->layer_end = in_file->layer_end;
    }
    nk_net_post(c->net, ask_all, k);
    pthread_mutex_lock(&k->mutex);
    while (k->n_pending) /* each call has a deadline */
        pthread_cond_wait(&k->done, &k->mutex);
    pthread_mutex_unlock(&k->mutex);
    compare_all(k);
    *out = k->report;
    pthread_cond_destroy(&k->done);
    pthread_mutex_destroy(&k->mutex);
    free(k);
    return 0;
}

void nk_chain_report_want_deterministic(struct nk_chain_report *r)
{
    for (int i = 0; i < r->n_workers; i++) {
        struct nk_worker_report *w = &r->workers[i];

        if (!w->answered || w->rc || w->deterministic)
            continue;
        w->rc = nk_fail(&w->err, NK_E_PRECONDITION, "not_deterministic",
                        "worker %s (%s): its sessions share KV cells, which deterministic requests "
                        "cannot: start it with --deterministic",
                        w->id, w->address);
        if (r->ok)
            r->err = w->err;
        r->ok = false;
    }
}

/* ---- the probe ---- */

struct probe {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    uint64_t us;
    int rc;
    struct nk_error *err;
};

static void probe_token(void *user, const struct nk_gen_token *t)
{
    (void)user, (void)t;
}

static void probe_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct probe *p = user;

    pthread_mutex_lock(&p->mutex);
    p->us = stats->ttft_us ? stats->ttft_us : stats->total_us;
    if (err) {
        p->rc = err->code;
        if (p->err)
            *p->err = *err;
    }
    p->over = true;
    pthread_cond_signal(&p->cond);
    pthread_mutex_unlock(&p->mutex);
}

int nk_chain_probe(nk_chain *c, uint32_t timeout_ms, double *us, struct nk_error *err)
{
    static const struct nk_gen_handlers handlers = { .token = probe_token, .done = probe_done };
    static const int32_t id = 0; /* every vocabulary has one */
    struct probe p = { .err = err };
    struct nk_gen_opts o = nk_gen_opts_default();
    nk_gen *g;
    int rc;

    *us = 0;
    o.ids = &id;
    o.n_ids = 1;
    o.n_predict = 1;
    o.sampling.temperature = 0;
    o.no_reuse = true;
    o.hold_ms = 0;
    o.deadline_ms = timeout_ms;
    o.stall_ms = timeout_ms;
    pthread_mutex_init(&p.mutex, NULL);
    pthread_cond_init(&p.cond, NULL);
    rc = nk_gen_start(&g, c, &o, &handlers, &p, err);
    if (!rc) {
        pthread_mutex_lock(&p.mutex);
        while (!p.over) /* the generation has a deadline */
            pthread_cond_wait(&p.cond, &p.mutex);
        pthread_mutex_unlock(&p.mutex);
        nk_gen_free(g);
        rc = p.rc;
        *us = (double)p.us;
    }
    pthread_cond_destroy(&p.cond);
    pthread_mutex_destroy(&p.mutex);
    return rc;
}
