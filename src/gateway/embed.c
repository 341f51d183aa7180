#include "gateway/embed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chain/embed.h"
#include "gateway/reply_embed.h"

enum {
    LOST_MAX = 3, /* losses of a worker: it may be what they die of */
    STEPS = 10,   /* a whole text may take so often what a generation's chunk may: --stall-ms */
};

struct nk_embedding {
    atomic_int refs; /* the owner's; while it is in the queue or runs; while it is started */
    nk_gateway *g;
    const struct nk_request *r;
    uint64_t begin_ns;
    void (*over)(void *user, const struct nk_error *err, const char *param);
    void *user;
    struct nk_embed_text *texts; /* ids are owned, too */
    size_t n_texts, n_tokens;
    struct nk_ticket ticket;
    struct nk_place place; /* where it runs */
    nk_embed *handle;      /* from its start to its end; its handlers' */
    int n_lost;
    float *vectors; /* n_texts x width */
    size_t width;
    struct nk_error refused; /* code not 0: what came is not kept, and it was cancelled for that */
    struct nk_task task;
    struct nk_buf reply;

    pthread_mutex_t mutex; /* what follows */
    nk_embed *known;       /* the handle, once others may know it */
    bool ended;            /* the run that was begun last has */
    bool cancelled;
};

static void unref(nk_embedding *x)
{
    if (atomic_fetch_sub(&x->refs, 1) != 1)
        return;
    for (size_t i = 0; i < x->n_texts; i++)
        free((int32_t *)(uintptr_t)x->texts[i].ids);
    free(x->texts);
    free(x->vectors);
    nk_buf_release(&x->reply);
    pthread_mutex_destroy(&x->mutex);
    free(x);
}

void nk__embedding_free(nk_embedding *x)
{
    if (x)
        unref(x);
}

size_t nk__embedding_n_tokens(const nk_embedding *x)
{
    return x->n_tokens;
}

struct nk_buf *nk__embedding_reply(nk_embedding *x)
{
    return &x->reply;
}

/* ---- tokens [helper thread] ---- */

static const char *name_of(const struct nk_request *r, size_t idx, char out[128])
{
    const char *name = r->input_name;

    if (r->n_inputs > 1 || r->api == NK_API_RERANK)
        snprintf(out, 128, "%s[%zu]", name, idx);
    else
        snprintf(out, 128, "%s", name);
    return out;
}

/* Token ids that a client sent. */
static int copy_ids(const nk_vocab *v, const struct nk_prompt *p, struct nk_tokens *out,
                    const char *name, struct nk_error *err)
{
    for (size_t i = 0; i < p->n_ids; i++)
        if (p->ids[i] >= nk_vocab_size(v))
            return nk_fail(err, NK_E_INVALID, "bad_value",
                           "%s: token id %d; this model has 0 to %d", name, (int)p->ids[i],
                           nk_vocab_size(v) - 1);
    out->ids = malloc(p->n_ids * sizeof *out->ids);
    if (!out->ids)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
    memcpy(out->ids, p->ids, p->n_ids * sizeof *out->ids);
    out->n = p->n_ids;
    return 0;
}

static int tokens_of(nk_embedding *x, size_t idx, struct nk_work *work, struct nk_tokens *out,
                     struct nk_request_error *e)
{
    const struct nk_request *r = x->r;
    const struct nk_prompt *p = &r->inputs[idx];
    size_t max = NK_INPUT_TOKENS_MAX - x->n_tokens;
    int rc;

    name_of(r, idx, e->param);
    if (p->ids)
        return copy_ids(x->g->vocab, p, out, e->param, &e->err);
    if (r->api == NK_API_RERANK)
        rc = nk_vocab_tokenize_pair(
            x->g->vocab, (struct nk_bytes){ (const uint8_t *)r->query, r->query_size },
            (struct nk_bytes){ (const uint8_t *)p->text, p->size }, max, work, out, &e->err);
    else
        rc = nk_vocab_tokenize(x->g->vocab, p->text, p->size, true, true, max, work, out, &e->err);
    if (rc == NK_E_EXHAUSTED && !strcmp(e->err.reason, "too_large"))
        return nk_fail(&e->err, rc, "too_many",
                       "%s: the texts up to here are more than %d tokens; at most so many are "
                       "possible in one request",
                       e->param, NK_INPUT_TOKENS_MAX);
    return rc;
}

/* One run has all of a text. */
static int fit(nk_embedding *x, int n_ctx, struct nk_tokens *t, struct nk_request_error *e)
{
    size_t max = (size_t)n_ctx;

    if (x->r->num_ctx && (size_t)x->r->num_ctx < max)
        max = (size_t)x->r->num_ctx;
    if (!t->n)
        return nk_fail(&e->err, NK_E_INVALID, "bad_value", "%s: has no tokens; a text is needed",
                       e->param);
    if (t->n <= max)
        return 0;
    if (!x->r->truncate) {
        nk_fail(&e->err, NK_E_INVALID, "context_length_exceeded",
                "%s: %zu tokens; a text of this model may have %zu", e->param, t->n, max);
        e->err.n_found = (long)t->n;
        e->err.n_max = (long)max;
        return e->err.code;
    }
    if (nk_vocab_is_end(x->g->vocab, t->ids[t->n - 1]))
        t->ids[max - 1] = t->ids[t->n - 1];
    t->n = max;
    return 0;
}

int nk__embedding_new(nk_embedding **out, nk_gateway *g, const struct nk_request *r, int n_ctx,
                      uint64_t begin_ns, struct nk_work *work, struct nk_request_error *e)
{
    nk_embedding *x = calloc(1, sizeof *x);
    int rc = 0;

    *out = NULL;
    if (x)
        x->texts = calloc(r->n_inputs, sizeof *x->texts);
    if (!x || !x->texts) {
        free(x);
        e->param[0] = '\0';
        return nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
    }
    atomic_init(&x->refs, 1);
    pthread_mutex_init(&x->mutex, NULL);
    nk_buf_init(&x->reply, g->opts.limits.reply_bytes_max);
    x->g = g;
    x->r = r;
    x->begin_ns = begin_ns;
    for (size_t i = 0; i < r->n_inputs && !rc; i++) {
        struct nk_tokens t = { NULL, 0 };

        rc = tokens_of(x, i, work, &t, e);
        if (!rc)
            rc = fit(x, n_ctx, &t, e);
        x->texts[i] = (struct nk_embed_text){ t.ids, t.n };
        x->n_texts++;
        x->n_tokens += t.n;
        if (!rc && x->n_tokens > NK_INPUT_TOKENS_MAX)
            rc = nk_fail(&e->err, NK_E_EXHAUSTED, "too_many",
                         "%s: the texts up to here have %zu tokens; at most %d are possible in one "
                         "request",
                         e->param, x->n_tokens, NK_INPUT_TOKENS_MAX);
    }
    if (rc) {
        unref(x);
        return rc;
    }
    *out = x;
    return 0;
}

/* ---- the end ---- */

/* Gives up the reference of what was in the queue or ran. */
static void end(nk_embedding *x, const struct nk_error *err, const char *param)
{
    x->over(x->user, err, param);
    unref(x);
}

/* [helper thread] */
static void write_reply(struct nk_task *task)
{
    nk_embedding *x = (nk_embedding *)((char *)task - offsetof(nk_embedding, task));
    struct nk_embed_result result = {
        .r = x->r,
        .vectors = x->vectors,
        .width = x->width,
        .n_tokens = x->n_tokens,
        .total_ns = nk_clock_now_ns(x->g->clock) - x->begin_ns,
    };
    struct nk_request_error e = { .param = "" };
    int rc = nk__reply_embed(&result, &x->reply, &e);

    /* A reader may take long for the reply, which has all of them. */
    free(x->vectors);
    x->vectors = NULL;
    end(x, rc ? &e.err : NULL, e.param);
}

static void end_cancelled(nk_embedding *x)
{
    struct nk_error err;

    nk_fail(&err, NK_E_CANCELLED, "cancelled", "it was cancelled");
    end(x, &err, "");
}

/* It ran, and does no more. */
static void leave(nk_embedding *x, const struct nk_error *err)
{
    nk_gateway *g = x->g;
    struct nk_error ours;

    nk__readiness_give_back(&g->readiness, &x->place);
    nk__admission_leave(g->admission, &x->ticket);
    if (!err) {
        nk__metrics_add(g->metrics, NK_METRIC_PROMPT, NULL, (double)x->n_tokens);
        x->task.run = write_reply; /* much to write is not the net thread's */
        nk__pool_post(g->pool, &x->task);
        return;
    }
    ours = *err;
    /* A worker that does not fit is not this request's fault. */
    if (ours.code == NK_E_PRECONDITION || ours.code == NK_E_NOT_FOUND || ours.code == NK_E_DENIED ||
        ours.code == NK_E_UNAUTHENTICATED || ours.code == NK_E_UNIMPLEMENTED ||
        ours.code == NK_E_ABORTED)
        ours.code = NK_E_UNAVAILABLE;
    end(x, &ours, "");
}

/* It waits for a chain again, before all others. False: the gateway ends. x may be gone after
 * true. */
static bool go_back(nk_embedding *x)
{
    nk_gateway *g = x->g;
    bool again, cancelled;

    atomic_fetch_add(&x->refs, 1);
    /* Once it is in the queue another thread may end it, and with its job the gateway, whose
     * admission is asked below. */
    nk__presence_enter(&g->presence, NK_PRESENT_HELD);
    free(x->vectors); /* all texts are computed again */
    x->vectors = NULL;
    nk__readiness_give_back(&g->readiness, &x->place);
    again = nk__admission_return(g->admission, &x->ticket, 0);
    pthread_mutex_lock(&x->mutex);
    cancelled = x->cancelled;
    pthread_mutex_unlock(&x->mutex);
    /* Meanwhile: who cancelled it saw no ticket in the queue. */
    if (again && cancelled && nk__admission_withdraw(g->admission, &x->ticket))
        end_cancelled(x);
    unref(x);
    nk__presence_leave(&g->presence, NK_PRESENT_HELD); /* the last that this thread does with g */
    return again;
}

/* ---- on the chain's net thread ---- */

/* Room for all vectors, once the first one tells how wide they are: which is the worker's word. */
static int make_room(nk_embedding *x, size_t width)
{
    size_t max = x->g->opts.limits.reply_bytes_max;

    /* The shortest that a number is in a reply, "0,", is half of what it takes here. */
    if (width > max / sizeof *x->vectors * 2 / x->n_texts)
        return nk__embed_too_large(x->n_texts, width, max, &x->refused);
    x->width = width;
    x->vectors = calloc(x->n_texts, width * sizeof *x->vectors);
    return x->vectors ? 0
                      : nk_fail(&x->refused, NK_E_EXHAUSTED, "no_memory",
                                "no memory for %zu vectors", x->n_texts);
}

static void on_vector(void *user, size_t text, const float *data, size_t n)
{
    nk_embedding *x = user;

    if (x->r->api == NK_API_RERANK)
        n = 1; /* the score; what else a classifier says is not asked for */
    if (x->refused.code)
        return;
    if (!x->vectors && make_room(x, n)) {
        nk_embed_cancel(x->handle); /* the others would be computed in vain */
        return;
    }
    if (n == x->width)
        memcpy(x->vectors + text * n, data, n * sizeof *data);
}

static void on_done(void *user, const struct nk_error *err)
{
    nk_embedding *x = user;
    nk_gateway *g = x->g;
    int blamed = nk_embed_blamed(x->handle);
    bool cancelled, again;

    pthread_mutex_lock(&x->mutex);
    x->known = NULL;
    x->ended = true;
    cancelled = x->cancelled;
    pthread_mutex_unlock(&x->mutex);
    nk_embed_free(x->handle);
    x->handle = NULL;
    if (x->refused.code && !cancelled)
        err = &x->refused;
    if (!err && nk__readiness_in_force(&g->readiness, &x->place))
        nk__monitor_progress(g->monitor);
    if (!err)
        nk__repairer_succeeded(&g->repairer);
    if (!err || err->code == NK_E_CANCELLED || cancelled) {
        leave(x, err);
        return;
    }
    if (err->code == NK_E_INTERNAL)
        nk__monitor_doubt(g->monitor);
    again = (err->code == NK_E_UNAVAILABLE || !strcmp(err->reason, "stale_epoch") ||
             !strcmp(err->reason, "removed")) &&
            strcmp(err->reason, "asleep") != 0;
    if (again || err->code == NK_E_DEADLINE || err->code == NK_E_DATA_LOSS) {
        nk__readiness_lost(&g->readiness, &x->place, err);
        nk__repairer_lost(&g->repairer, &x->place, blamed, false);
    }
    again = again && (!strcmp(err->reason, "unreachable") || ++x->n_lost < LOST_MAX);
    if (again)
        nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "msg=\"embeddings are tried again\" reason=%s",
               err->reason);
    if (!again || !go_back(x))
        leave(x, err);
}

/* ---- starting [admission's thread] ---- */

static void start(nk_embedding *x)
{
    static const struct nk_embed_handlers handlers = { .vector = on_vector, .done = on_done };
    uint64_t step_ms = STEPS * (uint64_t)x->g->opts.limits.stall_ms;
    const struct nk_embed_opts o = {
        .texts = x->texts,
        .n_texts = x->n_texts,
        .pooling = x->g->pooling,
        .step_ms = step_ms < UINT32_MAX ? (uint32_t)step_ms : UINT32_MAX,
    };
    struct nk_prefixes prefixes = { .n = 0 };
    struct nk_replicas *set;
    struct nk_error err;

    if (nk__readiness_take(&x->g->readiness, &prefixes, &x->place, &err)) {
        /* The chains went just now, and admission is paused: it waits for others. */
        if (!go_back(x))
            leave(x, &err);
        return;
    }
    pthread_mutex_lock(&x->mutex);
    x->ended = false;
    pthread_mutex_unlock(&x->mutex);
    set = nk__replicas_ref(x->place.set); /* `done` gives up the other one */
    if (nk_embed_start(&x->handle, set->chains[x->place.idx], &o, &handlers, x, &err)) {
        nk__replicas_unref(set);
        leave(x, &err);
        return;
    }
    pthread_mutex_lock(&x->mutex);
    if (!x->ended) {
        x->known = x->handle;
        if (x->cancelled)
            nk_embed_cancel(x->known);
    }
    pthread_mutex_unlock(&x->mutex);
    nk__replicas_unref(set);
}

static void start_ticket(struct nk_ticket *t)
{
    nk_embedding *x = t->user;

    atomic_fetch_add(&x->refs, 1);
    start(x);
    unref(x);
}

static void expire_ticket(struct nk_ticket *t, const struct nk_error *err)
{
    end(t->user, err, "");
}

int nk__embedding_enter(nk_embedding *x,
                        void (*over)(void *user, const struct nk_error *err, const char *param),
                        void *user, struct nk_error *err)
{
    struct nk_ticket *ticket = &x->ticket;
    int rc;

    x->over = over;
    x->user = user;
    x->ticket = (struct nk_ticket){ .start = start_ticket, .expire = expire_ticket, .user = x };
    atomic_fetch_add(&x->refs, 1);
    rc = nk__admission_enter(x->g->admission, &ticket, 1, err);
    if (rc)
        unref(x);
    return rc;
}

void nk__embedding_cancel(nk_embedding *x)
{
    pthread_mutex_lock(&x->mutex);
    x->cancelled = true;
    if (x->known)
        nk_embed_cancel(x->known);
    pthread_mutex_unlock(&x->mutex);
    if (nk__admission_withdraw(x->g->admission, &x->ticket))
        end_cancelled(x);
}
