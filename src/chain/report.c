/* What the workers are: Info from all of them at once, held against the cluster file and against
 * each other; and the probe, one token through the whole chain. */
#include "chain/chain_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/visible.h"

/* Calls per worker: the first pays for the connection, the best of the others is the round trip. */
enum { ROUNDS = 5 };

struct nk__look;
struct asking { /* one worker or spare */
    struct nk__look *look;
    struct nk_worker_report *w; /* what becomes known */
    int idx, round;             /* of the chain's channels */
    uint64_t sent_ns;
    bool has_reply; /* of this round */
    nk_call *call;
};
struct nk__look {
    nk_chain *c;
    struct nk__look_opts opts;
    struct nk_chain_report *report;
    uint64_t end_ns;
    struct asking asking[NK__ASKED_MAX];
    int n_asked, n_pending;
    bool hurried;
};

/* A peer's count as an int: what does not fit is as good as the largest. */
static int count(uint32_t v)
{
    return v > INT32_MAX ? INT32_MAX : (int)v;
}

#define copy(field, from) nk_visible_line(w->field, sizeof w->field, m->from)

static void take_reply(struct nk_worker_report *w, const Nakshatra__V1__InfoReply *m)
{
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
        w->checkpoints = n->checkpoints;
        w->checkpoint_bytes = n->checkpoint_bytes;
        w->checkpoints_made = n->checkpoints_made;
        w->checkpoints_used = n->checkpoints_used;
    }
    w->protocol = m->protocol;
    w->takes_f32 = w->takes_f16 = false;
    for (size_t i = 0; i < m->n_dtypes; i++) {
        w->takes_f32 |= m->dtypes[i] == NAKSHATRA__V1__DTYPE__DTYPE_F32;
        w->takes_f16 |= m->dtypes[i] == NAKSHATRA__V1__DTYPE__DTYPE_F16;
    }
    w->answered = true;
}

static void ask(struct asking *a);
static void conclude(struct nk__look *k);

/* The name of what was asked before the message. */
static int wrap_asked(const struct nk_worker_report *w, int code, struct nk_error *err)
{
    return w->id[0] ? nk_wrap(code, err, "worker %s (%s)", w->id, w->address)
                    : nk_wrap(code, err, "spare %s", w->address);
}

static void failed(struct asking *a, const struct nk_error *err)
{
    if (a->w->answered)
        return;
    a->w->err = *err;
    a->w->rc = wrap_asked(a->w, err->code, &a->w->err);
}

static void asked(struct asking *a)
{
    struct nk__look *k = a->look;

    a->call = NULL;
    if (--k->n_pending == 0)
        conclude(k);
    else if (!k->hurried && k->opts.enough && k->opts.enough(k->opts.user, k->report))
        nk__look_hurry(k);
}

static void take_ends(struct nk_worker_report *w, nk_channel *ch)
{
    struct nk_certificate_ends ends;

    nk_channel_ends(ch, &ends);
    w->certificate_end_s = ends.peer;
    w->own_end_s = ends.own;
    w->ca_end_s = ends.ca;
    w->certificate_is_near = ends.peer_is_near;
}

static void info_message(nk_call *call, void *user, struct nk_bytes msg)
{
    struct asking *a = user;
    nk_chain *c = a->look->c;
    double us = (double)(nk_clock_now_ns(c->clock) - a->sent_ns) / 1e3;
    Nakshatra__V1__InfoReply *m;

    (void)call;
    if (a->has_reply)
        return;
    m = nakshatra__v1__info_reply__unpack(nk_arena_allocator(c->arena), msg.size, msg.data);
    if (m) {
        a->has_reply = true;
        take_reply(a->w, m);
        take_ends(a->w, c->channels[a->idx]);
        if (a->round == 1 || us < a->w->rtt_us)
            a->w->rtt_us = us;
    }
    nk_arena_reset(c->arena);
}

static void info_ended(nk_call *call, void *user, const struct nk_error *status)
{
    struct asking *a = user;
    struct nk_error err;

    (void)call;
    if (!status)
        nk_fail(&err, NK_E_DATA_LOSS, "bad_peer", "its answer is no InfoReply");
    failed(a, status ? status : &err);
    /* A worker that answered once and then no more fares as its first answer says; the generation
     * will tell. */
    if (!a->has_reply || a->round == a->look->opts.n_rounds || a->look->hurried)
        asked(a);
    else
        ask(a);
}

/* [net thread] */
static void ask(struct asking *a)
{
    static const struct nk_call_handlers handlers = { .message = info_message, .end = info_ended };
    struct nk__look *k = a->look;
    Nakshatra__V1__InfoRequest request = NAKSHATRA__V1__INFO_REQUEST__INIT;
    uint64_t now = nk_clock_now_ns(k->c->clock);
    uint64_t left_ms = now < k->end_ns ? (k->end_ns - now) / 1000000 : 0;
    struct nk_error err;

    a->round++;
    a->has_reply = false;
    if (a->round > 1 && !left_ms) {
        asked(a);
        return;
    }
    a->sent_ns = now;
    if (nk_call_start(&a->call, k->c->channels[a->idx], NK__PATH_INFO,
                      left_ms ? (uint32_t)left_ms : 1, &handlers, a, &err)) {
        failed(a, &err);
        asked(a);
        return;
    }
    if (nk_call_send_pb(a->call, &request.base, &err))
        nk_call_cancel(a->call);
    else
        nk_call_send_done(a->call);
}

static void ask_all(void *arg)
{
    struct nk__look *k = arg;
    int n = k->n_asked;

    k->n_pending++; /* those that fail at once do not end it under this loop */
    for (int i = 0; i < n; i++)
        ask(&k->asking[i]);
    if (--k->n_pending == 0)
        conclude(k);
}

void nk__look_hurry(struct nk__look *k)
{
    k->hurried = true;
    for (int i = 0; i < k->n_asked; i++)
        if (k->asking[i].call)
            nk_call_cancel(k->asking[i].call);
}

/* ---- comparing ---- */

/* The worker does not fit: what it has and what would have been right, its name before it. */
#define misfit(reason, ...) wrap_asked(w, nk_fail(err, NK_E_PRECONDITION, reason, __VA_ARGS__), err)

static const char *name_of(const struct nk_worker_report *w)
{
    return w->id[0] ? w->id : w->address;
}

int nk__report_compare(const struct nk_cluster *c, int idx, const struct nk_worker_report *w,
                       const struct nk_worker_report *other, struct nk_error *err)
{
    const struct nk_cluster_worker *in_file = &c->workers[idx];
    int n_layers = c->workers[c->n_workers - 1].layer_end;

    if (w->protocol != NK__PROTOCOL)
        return misfit("protocol_mismatch", "it speaks protocol %u, this program speaks %d",
                      w->protocol, NK__PROTOCOL);
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
                      w->n_embd, name_of(other), other->n_embd);
    if (w->n_vocab != other->n_vocab)
        return misfit("vocab_mismatch", "its vocabulary has %d tokens, that of worker %s has %d",
                      w->n_vocab, name_of(other), other->n_vocab);
    if (strcmp(w->architecture, other->architecture))
        return misfit("model_mismatch", "its architecture is %s, that of worker %s is %s",
                      w->architecture, name_of(other), other->architecture);
    if (c->f16 ? !w->takes_f16 : !w->takes_f32)
        return misfit("dtype_mismatch", "it does not take rows as %s, which the cluster file wants",
                      c->f16 ? "f16" : "f32");
    if (nk_computed_compare(&w->computed, &other->computed, name_of(other), err))
        return wrap_asked(w, NK_E_PRECONDITION, err);
    if (w->n_ctx_seq < 2)
        return misfit("no_context", "it has room for %d tokens of context; at least 2 are needed",
                      w->n_ctx_seq);
    if (strcmp(w->state, "serving"))
        return wrap_asked(
            w, nk_fail(err, NK_E_UNAVAILABLE, "not_serving", "it is %s, not serving", w->state),
            err);
    return 0;
}

static void compare_spare(const struct nk_cluster *c, struct nk_worker_report *w,
                          const struct nk_worker_report *other)
{
    struct nk_error *err = &w->err;

    for (int i = 0; i < c->n_workers; i++)
        if (w->has_begin == c->workers[i].layer_begin && w->has_end == c->workers[i].layer_end) {
            w->stands_for = i;
            w->layer_begin = w->has_begin;
            w->layer_end = w->has_end;
        }
    w->rc = w->stands_for < 0 ? misfit("layers_mismatch",
                                       "it has layers %d-%d, which no worker of the cluster "
                                       "file has",
                                       w->has_begin, w->has_end)
                              : nk__report_compare(c, w->stands_for, w, other, err);
}

static void compare_all(nk_chain *c, struct nk_chain_report *r)
{
    const struct nk_worker_report *other = NULL;

    r->ok = true;
    for (int i = 0; i < r->n_workers && !other; i++)
        if (r->workers[i].answered)
            other = &r->workers[i];
    for (int i = 0; i < r->n_spares && !other; i++)
        if (r->spares[i].answered)
            other = &r->spares[i];
    for (int i = 0; i < r->n_workers; i++) {
        struct nk_worker_report *w = &r->workers[i];
        int n_ctx;

        if (w->answered) {
            w->rc = nk__report_compare(&c->cluster, i, w, other, &w->err);
            /* An embedding model's texts are each a run. */
            n_ctx = w->computed.facts[NK_FACT_POOLING].value[0] && w->n_batch < w->n_ctx_seq
                        ? w->n_batch
                        : w->n_ctx_seq;
            r->n_ctx = r->n_ctx && r->n_ctx < n_ctx ? r->n_ctx : n_ctx;
            r->n_ctx_train = w->n_ctx_train;
            r->n_vocab = w->n_vocab;
        }
        if (!w->rc) {
            c->known[i] = (struct nk_known){ w->computed, w->n_ctx_seq, w->n_batch, w->n_seq_max };
            pthread_mutex_lock(&c->mutex);
            snprintf(c->pooling, sizeof c->pooling, "%s", w->computed.facts[NK_FACT_POOLING].value);
            pthread_mutex_unlock(&c->mutex);
        }
        if (w->rc && r->ok) {
            r->ok = false;
            r->err = w->err;
        }
    }
    for (int i = 0; i < r->n_spares; i++)
        if (r->spares[i].answered)
            compare_spare(&c->cluster, &r->spares[i], other);
}

static void conclude(struct nk__look *k)
{
    struct nk__look_opts o = k->opts;
    struct nk_chain_report *r = k->report;

    compare_all(k->c, r);
    free(k);
    o.done(o.user, r);
}

/* ---- asking ---- */

int nk__look_start(struct nk__look **out, nk_chain *c, const struct nk__look_opts *opts,
                   struct nk_error *err)
{
    struct nk__look *k = calloc(1, sizeof *k);
    struct nk_chain_report *r = k ? calloc(1, sizeof *r) : NULL;

    *out = NULL;
    if (!r) {
        free(k);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    k->c = c;
    k->opts = *opts;
    k->report = r;
    k->end_ns = nk_clock_now_ns(c->clock) + (uint64_t)opts->timeout_ms * 1000000;
    r->n_workers = c->cluster.n_workers;
    r->n_spares = c->cluster.n_spares;
    k->n_asked = k->n_pending = r->n_workers + r->n_spares;
    for (int i = 0; i < k->n_asked; i++) {
        struct nk_worker_report *w =
            i < r->n_workers ? &r->workers[i] : &r->spares[i - r->n_workers];

        k->asking[i] = (struct asking){ .look = k, .idx = i, .w = w };
        w->stands_for = -1;
        if (i < r->n_workers) {
            const struct nk_cluster_worker *in_file = &c->cluster.workers[i];

            memcpy(w->id, in_file->id, sizeof w->id);
            memcpy(w->address, in_file->address, sizeof w->address);
            w->layer_begin = in_file->layer_begin;
            w->layer_end = in_file->layer_end;
        } else {
            memcpy(w->address, c->cluster.spares[i - r->n_workers], sizeof w->address);
        }
    }
    *out = k;
    nk_net_post(c->net, ask_all, k);
    return 0;
}

struct check {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct nk_chain_report *report; /* set: it is over */
};

static void check_done(void *user, struct nk_chain_report *r)
{
    struct check *k = user;

    pthread_mutex_lock(&k->mutex);
    k->report = r;
    pthread_cond_signal(&k->cond);
    pthread_mutex_unlock(&k->mutex);
}

int nk_chain_check(nk_chain *c, uint32_t timeout_ms, struct nk_chain_report **out,
                   struct nk_error *err)
{
    struct check k = { .report = NULL };
    struct nk__look_opts opts = {
        .timeout_ms = timeout_ms, .n_rounds = ROUNDS, .done = check_done, .user = &k
    };
    struct nk__look *look;
    int rc;

    *out = NULL;
    pthread_mutex_init(&k.mutex, NULL);
    pthread_cond_init(&k.cond, NULL);
    rc = nk__look_start(&look, c, &opts, err);
    pthread_mutex_lock(&k.mutex);
    while (!rc && !k.report) /* each call has a deadline */
        pthread_cond_wait(&k.cond, &k.mutex);
    pthread_mutex_unlock(&k.mutex);
    *out = k.report;
    pthread_cond_destroy(&k.cond);
    pthread_mutex_destroy(&k.mutex);
    return rc;
}

int nk__report_want_deterministic(const struct nk_worker_report *w, struct nk_error *err)
{
    if (w->deterministic)
        return 0;
    return misfit("not_deterministic", "its sessions share KV cells, which deterministic requests "
                                       "cannot: start it with --deterministic");
}

void nk_chain_report_want_deterministic(struct nk_chain_report *r)
{
    for (int i = 0; i < r->n_workers + r->n_spares; i++) {
        bool is_spare = i >= r->n_workers;
        struct nk_worker_report *w = is_spare ? &r->spares[i - r->n_workers] : &r->workers[i];

        if (!w->answered || w->rc)
            continue;
        w->rc = nk__report_want_deterministic(w, &w->err);
        if (is_spare || !w->rc)
            continue;
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
    bool embeds;
    int rc;

    pthread_mutex_lock(&c->mutex);
    embeds = c->pooling[0] != '\0';
    pthread_mutex_unlock(&c->mutex);
    if (embeds)
        return nk__embed_probe(c, timeout_ms, us, err);
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
