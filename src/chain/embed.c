#include "chain/embed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chain/chain_int.h"

enum { STEP_MS = 300000, FLIGHTS_MAX = 16, WIDTH_MAX = 1 << 20 };

/* A text on its way; call NULL: none. */
struct flight {
    nk_embed *e;
    size_t text;
    int stage;
    nk_call *call;
    bool has_reply;
    struct nk_buf rows; /* what the last stage asked gave: f32 */
    uint32_t n_rows, width;
};

struct nk_embed {
    atomic_int refs; /* the caller's, the chain's, and those of cancellations under way */
    nk_chain *c;
    struct nk_embed_opts opts;
    struct nk_embed_handlers handlers;
    void *user;
    LIST_ENTRY(nk_embed) link; /* under the chain's mutex */
    pthread_mutex_t lock;
    bool ended; /* under the lock */

    /* net thread */
    nk_arena *arena; /* a reply's rows are more than the chain's own has room for */
    struct flight flights[FLIGHTS_MAX];
    int n_flights, n_flying;
    size_t next;    /* text */
    uint32_t width; /* of the vectors; 0: none has come */
    uint32_t n_embd;
    struct nk_computed first; /* what the first stage computes, once it has told */
    bool has_first;
    struct nk_error err; /* code not 0: it fails, once nothing flies */
    int blamed;
};

static void fly(struct flight *f);

static void unref(nk_embed *e)
{
    if (atomic_fetch_sub(&e->refs, 1) != 1)
        return;
    for (int i = 0; i < e->n_flights; i++)
        nk_buf_release(&e->flights[i].rows);
    nk_arena_free(e->arena);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void nk_embed_free(nk_embed *e)
{
    if (e)
        unref(e);
}

int nk_embed_blamed(const nk_embed *e)
{
    return e->blamed;
}

/* The first failure is told; what else flies is called back. [net thread, as all below] */
static void fail(nk_embed *e, int stage, const struct nk_error *err)
{
    if (e->err.code)
        return;
    e->err = *err;
    e->blamed = stage;
    if (stage >= 0)
        nk__wrap_worker(err->code, &e->err, &e->c->cluster.workers[stage]);
    for (int i = 0; i < e->n_flights; i++)
        if (e->flights[i].call)
            nk_call_cancel(e->flights[i].call);
}

static void finish(nk_embed *e)
{
    nk_chain *c = e->c;

    pthread_mutex_lock(&e->lock);
    e->ended = true;
    pthread_mutex_unlock(&e->lock);
    e->handlers.done(e->user, e->err.code ? &e->err : NULL);
    pthread_mutex_lock(&c->mutex);
    LIST_REMOVE(e, link);
    if (--c->n_running == 0)
        pthread_cond_broadcast(&c->idle);
    pthread_mutex_unlock(&c->mutex);
    unref(e);
}

/* The width of a text's vector: a rank's is that of its classes, every other one a row's, or less
 * where the model makes it smaller. */
static bool is_width(const nk_embed *e, uint32_t width)
{
    if (e->width)
        return width == e->width;
    return width && width <= (strcmp(e->opts.pooling, "rank") ? e->n_embd : WIDTH_MAX);
}

static int check_finite(const Nakshatra__V1__Rows *r, struct nk_error *err)
{
    float x;

    for (size_t i = 0; i < r->data.len / sizeof x; i++) {
        memcpy(&x, r->data.data + i * sizeof x, sizeof x);
        if (!isfinite(x))
            return nk_fail(err, NK_E_DATA_LOSS, "bad_peer",
                           "element %zu of the text's vector is %f", i, (double)x);
    }
    return 0;
}

/* Is the answer from the worker that it should be from, and are its rows what comes next? */
static int check_reply(struct flight *f, const Nakshatra__V1__ForwardReply *m, struct nk_error *err)
{
    nk_embed *e = f->e;
    const struct nk_cluster *c = &e->c->cluster;
    const Nakshatra__V1__Rows *r = m->rows;
    bool is_last = f->stage == c->n_workers - 1;
    struct nk_computed its;
    int rc;

    if (!m->stage || !r)
        return nk_fail(err, NK_E_PRECONDITION, "pooling_mismatch",
                       "its version of Nakshatra knows no embeddings");
    if (!e->has_first) {
        e->n_embd = m->stage->n_embd;
        nk_computed_unpack(&e->first, m->stage->computed, m->stage->n_computed,
                           m->stage->llama_version);
        e->has_first = true;
    }
    rc = nk__stage_compare(c, f->stage, m->stage, e->n_embd, err);
    if (rc)
        return rc;
    nk_computed_unpack(&its, m->stage->computed, m->stage->n_computed, m->stage->llama_version);
    rc = nk_computed_compare(&its, &e->first, c->workers[0].id, err);
    if (rc)
        return rc;
    if (r->dtype > NAKSHATRA__V1__DTYPE__DTYPE_F32 || !r->width || r->width > WIDTH_MAX ||
        r->n_rows != (is_last ? 1 : e->opts.texts[f->text].n) ||
        r->data.len != (size_t)r->n_rows * r->width * sizeof(float) ||
        (is_last ? !is_width(e, r->width) : r->width != e->n_embd))
        return nk_fail(err, NK_E_DATA_LOSS, "bad_peer",
                       "for %zu tokens it gave %u rows of %u floats in %zu bytes",
                       e->opts.texts[f->text].n, r->n_rows, r->width, r->data.len);
    return is_last ? check_finite(r, err) : 0; /* the next stage looks at its rows itself */
}

static void reply_message(nk_call *call, void *user, struct nk_bytes msg)
{
    struct flight *f = user;
    nk_embed *e = f->e;
    Nakshatra__V1__ForwardReply *m;
    struct nk_error err;
    int rc;

    (void)call;
    if (f->has_reply || e->err.code)
        return;
    f->has_reply = true;
    m = nakshatra__v1__forward_reply__unpack(nk_arena_allocator(e->arena), msg.size, msg.data);
    rc = m ? check_reply(f, m, &err)
           : nk_fail(&err, NK_E_DATA_LOSS, "bad_peer", "its answer is no ForwardReply");
    if (!rc) {
        f->n_rows = m->rows->n_rows;
        f->width = m->rows->width;
        nk_buf_reset(&f->rows);
        rc = nk_buf_add(&f->rows, m->rows->data.data, m->rows->data.len, &err);
    }
    nk_arena_reset(e->arena);
    if (rc)
        fail(e, f->stage, &err);
}

/* The text's vector has come, or nothing more will of it: the next one. */
static void landed(struct flight *f)
{
    nk_embed *e = f->e;

    if (!e->err.code && e->next < e->opts.n_texts) {
        f->text = e->next++;
        f->stage = 0;
        fly(f);
        return;
    }
    if (--e->n_flying == 0)
        finish(e);
}

static void reply_ended(nk_call *call, void *user, const struct nk_error *status)
{
    struct flight *f = user;
    nk_embed *e = f->e;
    struct nk_error err;

    (void)call;
    f->call = NULL;
    if (status) {
        fail(e, f->stage, status);
    } else if (!f->has_reply) {
        nk_fail(&err, NK_E_DATA_LOSS, "bad_peer", "it ended the call without an answer");
        fail(e, f->stage, &err);
    } else if (!e->err.code && f->stage + 1 < e->c->cluster.n_workers) {
        f->stage++;
        fly(f);
        return;
    } else if (!e->err.code) {
        e->width = f->width;
        e->handlers.vector(e->user, f->text, (const float *)(const void *)f->rows.data, f->width);
    }
    landed(f);
}

static void fly(struct flight *f)
{
    static const struct nk_call_handlers handlers = { .message = reply_message,
                                                      .end = reply_ended };
    nk_embed *e = f->e;
    const struct nk_embed_text *t = &e->opts.texts[f->text];
    Nakshatra__V1__ForwardRequest m = NAKSHATRA__V1__FORWARD_REQUEST__INIT;
    Nakshatra__V1__Rows rows = NAKSHATRA__V1__ROWS__INIT;
    struct nk_error err;

    m.ids = (int32_t *)(uintptr_t)t->ids;
    m.n_ids = t->n;
    m.pooling = (char *)(uintptr_t)e->opts.pooling;
    m.model_sha256 = e->c->cluster.model_sha256;
    if (f->stage > 0) {
        rows.n_rows = f->n_rows;
        rows.width = f->width;
        rows.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F32;
        rows.data.data = (uint8_t *)f->rows.data;
        rows.data.len = f->rows.size;
        m.rows = &rows;
    }
    f->has_reply = false;
    if (nk_call_start(&f->call, e->c->channels[f->stage], NK__PATH_FORWARD,
                      e->opts.step_ms ? e->opts.step_ms : STEP_MS, &handlers, f, &err)) {
        f->call = NULL;
        fail(e, f->stage, &err);
        landed(f);
        return;
    }
    if (nk_call_send_pb(f->call, &m.base, &err)) {
        fail(e, f->stage, &err);
        nk_call_cancel(f->call);
        return;
    }
    nk_call_send_done(f->call);
}

static void begin(void *arg)
{
    nk_embed *e = arg;
    int n = e->n_flights;

    e->n_flying = n + 1; /* those that fail at once do not end it under this loop */
    for (int i = 0; i < n; i++)
        landed(&e->flights[i]);
    if (--e->n_flying == 0)
        finish(e);
}

int nk_embed_start(nk_embed **out, nk_chain *c, const struct nk_embed_opts *opts,
                   const struct nk_embed_handlers *handlers, void *user, struct nk_error *err)
{
    int n = c->cluster.n_workers + 1; /* one on each stage, and one on the way */
    nk_embed *e;

    *out = NULL;
    for (size_t i = 0; i < opts->n_texts; i++)
        if (!opts->texts[i].n)
            return nk_fail(err, NK_E_INVALID, "bad_request", "text %zu has no tokens", i);
    if (!opts->n_texts)
        return nk_fail(err, NK_E_INVALID, "bad_request", "there are no texts");
    e = calloc(1, sizeof *e);
    if (e)
        e->arena = nk_arena_new(2 * (size_t)NK_RPC_MESSAGE_BYTES_MAX);
    if (!e || !e->arena) {
        free(e);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    n = n < FLIGHTS_MAX ? n : FLIGHTS_MAX;
    atomic_init(&e->refs, 2);
    e->c = c;
    e->opts = *opts;
    e->handlers = *handlers;
    e->user = user;
    e->blamed = -1;
    e->n_flights = (size_t)n < opts->n_texts ? n : (int)opts->n_texts;
    for (int i = 0; i < e->n_flights; i++) {
        e->flights[i].e = e;
        nk_buf_init(&e->flights[i].rows, NK_RPC_MESSAGE_BYTES_MAX);
    }
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_lock(&c->mutex);
    LIST_INSERT_HEAD(&c->embeds, e, link);
    c->n_running++;
    pthread_mutex_unlock(&c->mutex);
    *out = e;
    nk_net_post(c->net, begin, e);
    return 0;
}

static void cancel_now(nk_embed *e)
{
    struct nk_error err;

    nk_fail(&err, NK_E_CANCELLED, "cancelled", "it was cancelled");
    fail(e, -1, &err);
}

static void cancel_posted(void *arg)
{
    nk_embed *e = arg;
    bool ended;

    pthread_mutex_lock(&e->lock);
    ended = e->ended;
    pthread_mutex_unlock(&e->lock);
    if (!ended)
        cancel_now(e);
    unref(e);
}

void nk_embed_cancel(nk_embed *e)
{
    pthread_mutex_lock(&e->lock);
    if (!e->ended) {
        atomic_fetch_add(&e->refs, 1);
        nk_net_post(e->c->net, cancel_posted, e);
    }
    pthread_mutex_unlock(&e->lock);
}

void nk__embeds_cancel(nk_chain *c)
{
    nk_embed *e;

    pthread_mutex_lock(&c->mutex);
    LIST_FOREACH(e, &c->embeds, link)
    {
        cancel_now(e);
    }
    pthread_mutex_unlock(&c->mutex);
}

/* ---- the probe ---- */

struct probe {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    int rc;
    struct nk_error *err;
};

static void probe_vector(void *user, size_t text, const float *data, size_t n)
{
    (void)user, (void)text, (void)data, (void)n;
}

static void probe_done(void *user, const struct nk_error *err)
{
    struct probe *p = user;

    pthread_mutex_lock(&p->mutex);
    p->rc = err ? err->code : 0;
    if (err && p->err)
        *p->err = *err;
    p->over = true;
    pthread_cond_signal(&p->cond);
    pthread_mutex_unlock(&p->mutex);
}

int nk__embed_probe(nk_chain *c, uint32_t timeout_ms, double *us, struct nk_error *err)
{
    static const struct nk_embed_handlers handlers = { .vector = probe_vector, .done = probe_done };
    static const int32_t id = 0; /* every vocabulary has one */
    static const struct nk_embed_text text = { &id, 1 };
    struct probe p = { .err = err };
    char pooling[sizeof c->pooling];
    struct nk_embed_opts o = {
        .texts = &text, .n_texts = 1, .pooling = pooling, .step_ms = timeout_ms
    };
    uint64_t begin_ns = nk_clock_now_ns(c->clock);
    nk_embed *e;
    int rc;

    *us = 0;
    pthread_mutex_lock(&c->mutex);
    memcpy(pooling, c->pooling, sizeof pooling);
    pthread_mutex_unlock(&c->mutex);
    pthread_mutex_init(&p.mutex, NULL);
    pthread_cond_init(&p.cond, NULL);
    rc = nk_embed_start(&e, c, &o, &handlers, &p, err);
    if (!rc) {
        pthread_mutex_lock(&p.mutex);
        while (!p.over) /* each call has a deadline */
            pthread_cond_wait(&p.cond, &p.mutex);
        pthread_mutex_unlock(&p.mutex);
        nk_embed_free(e);
        rc = p.rc;
        *us = (double)(nk_clock_now_ns(c->clock) - begin_ns) / 1e3;
    }
    pthread_cond_destroy(&p.cond);
    pthread_mutex_destroy(&p.mutex);
    return rc;
}
