#include "gateway/job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/array.h"
#include "base/json.h"
#include "base/log.h"
#include "gateway/embed.h"
#include "gateway/llama_settings.h"
#include "gateway/model.h"
#include "gateway/reply.h"
#include "gateway/reply_embed.h"
#include "gateway/responses_store.h"
#include "gateway/text.h"
#include "gateway/truncate.h"

/* Of Ollama's context: more than any model's context holds. */
enum { CONTEXT_IDS_MAX = 1 << 24 };
/* How often a reader hears of its prompt, first and last beside. */
enum { PROGRESS_MAX = 100 };
/* Losses of a worker that a request without a token may be in: it may be what they die of. */
enum { LOST_MAX = 3 };

struct choice {
    nk_job *j;
    int index;
    struct nk_ticket ticket;
    struct nk_place place;       /* where it runs, from its start to its end */
    nk_gen *handle;              /* from its start to its end; its handlers' */
    nk_gen *gen;                 /* the same, once others may know it */
    struct nk_recovery recovery; /* whoever's the ticket is */
    uint64_t waiting_us;         /* before it first ran */
    bool done;                   /* no token comes any more */
    bool opened;                 /* it has its place on every stage */
    bool waited;                 /* how long it did was counted */
    bool paused;                 /* it was lost, and waits to go on */
    bool over;  /* the generation that was begun last is; set back when the next one begins */
    int n_lost; /* generations that were lost with a worker, without a token */
    bool ended; /* was ended because its one tool call is complete: the cancellation is no error */
    int n_generated;
    uint64_t started_ns; /* under the job's mutex, as gen to n_generated */
    uint64_t opened_ns;  /* its handlers', as what follows */
    uint64_t first_ns;   /* its first token */
    bool has_text;       /* of its prompt's tokens some had text, as far as they were told */
    int n_reused;        /* with `progress` asked for */
    int n_progress;      /* of its prompt, as the reader was told; -1: nothing yet */
    uint64_t last_token_ns;
    int32_t *ids; /* Ollama's context: what was generated; owned */
    size_t n_ids, ids_capacity;
};

/* What came from the chain and waits to be written. One block of memory each: texts behind the
 * struct. */
struct event {
    STAILQ_ENTRY(event) link;
    int choice;
    size_t bytes;
    enum event_kind { EVENT_PROMPT, EVENT_PROGRESS, EVENT_TOKEN, EVENT_DONE } kind;
    struct nk_gen_token token; /* or one of the prompt */
    struct nk_reply_progress progress;
    struct nk_reply_timings timings;
    struct nk_reply_done done;
    struct nk_error err; /* of `done`; code 0: none */
};

struct nk_job {
    atomic_int refs;
    nk_gateway *g;
    TAILQ_ENTRY(nk_job) link; /* the gateway's, under its mutex */
    void (*wake)(void *user);
    void (*drop)(void *user);
    void *user;
    enum nk_api api;
    char id[40];
    char key[NK_SHA256_HEX];        /* the API key's digest; "": none */
    char reuse_salt[NK_SHA256_HEX]; /* "": none */
    uint64_t begin_ns;
    struct nk_task task;
    atomic_bool unwanted; /* cancelled: the helper thread stops where it is */
    struct nk_buf body;   /* until it is parsed */
    size_t held_body;     /* of g->bodies, with it */
    size_t held;          /* of g->parsed; the helper's, then the last reference's */
    /* set by the helper thread before the first ticket, constant then */
    struct nk_request request; /* shrunk: what it was made of is gone */
    const char *grammar_param; /* where the grammar came from */
    struct nk_prepared prepared;
    struct choice *choices;
    int n_choices, n_prompt;
    bool stored;             /* Responses: the store knows that it has begun */
    nk_embedding *embedding; /* a request for vectors: instead of choices */

    pthread_mutex_t mutex; /* what follows */
    bool ending;           /* nk__job_end: nobody reads any more */
    bool prepared_ok, failed, overflowed, cancelled;
    bool embedded; /* the embedding is over */
    bool broken;   /* a choice's error is among the events: the stream ends with it */
    struct nk_error err;
    char param[128];
    /* Streamed: the HTTP thread's alone once events come; whole: under the mutex. */
    nk_reply *reply;
    STAILQ_HEAD(, event) events;
    size_t n_bytes; /* of events */
    int n_done, n_generated;
    uint64_t first_token_ns;

    /* the HTTP thread's alone */
    struct nk_buf out;
    size_t n_out;  /* of out, given away */
    int n_written; /* choices whose end was written */
    bool out_ended, cut_off;
    atomic_ullong last_read_ns; /* others look at it */
    atomic_bool keepalive;      /* others set it */
    atomic_bool began;          /* its status has been sent; others look at it */
};

static void wake(nk_job *j)
{
    bool ending;

    pthread_mutex_lock(&j->mutex);
    ending = j->ending;
    pthread_mutex_unlock(&j->mutex);
    if (!ending)
        j->wake(j->user);
}

nk_job *nk__job_new(nk_gateway *g, enum nk_api api, struct nk_buf *body, size_t *held,
                    const char *key, uint64_t begin_ns, void (*wake_fn)(void *user),
                    void (*drop)(void *user), void *user)
{
    nk_job *j = calloc(1, sizeof *j);
    unsigned char random[12] = { 0 };

    if (!j) {
        nk_buf_release(body);
        return NULL;
    }
    atomic_init(&j->refs, 1);
    j->g = g;
    nk__presence_enter(&g->presence, NK_PRESENT_HELD);
    j->api = api;
    j->wake = wake_fn;
    j->drop = drop;
    j->user = user;
    j->begin_ns = begin_ns;
    atomic_init(&j->last_read_ns, begin_ns);
    atomic_init(&j->keepalive, false);
    atomic_init(&j->began, false);
    snprintf(j->key, sizeof j->key, "%s", key);
    j->held_body = *held;
    *held = 0;
    atomic_init(&j->unwanted, false);
    j->body = *body;
    *body = (struct nk_buf)NK_BUF_INIT(0);
    STAILQ_INIT(&j->events);
    nk_buf_init(&j->out, g->opts.limits.reply_bytes_max);
    pthread_mutex_init(&j->mutex, NULL);
    if (nk_chance_fill(g->chance, random, sizeof random, NULL))
        memcpy(random, &begin_ns, sizeof begin_ns);
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(j->id + 2 * i, 3, "%02x", random[i]);
    return j;
}

void nk__job_ref(nk_job *j)
{
    atomic_fetch_add(&j->refs, 1);
}

static const char *response_id(const nk_job *j, char out[64])
{
    snprintf(out, 64, "resp_%s", j->id);
    return out;
}

static void release_body(nk_job *j)
{
    nk_buf_release(&j->body);
    nk__budget_hold(&j->g->bodies, &j->held_body, 0, 0);
}

void nk__job_unref(nk_job *j)
{
    nk_gateway *g = j ? j->g : NULL;
    struct event *e;

    if (!j || atomic_fetch_sub(&j->refs, 1) != 1)
        return;
    if (j->stored) { /* nothing happens where it was finished */
        char id[64];
        bool cancelled = j->err.code == NK_E_CANCELLED ||
                         (j->err.code && !strcmp(j->err.reason, "response_cancelled"));

        nk__responses_end(g->responses, response_id(j, id), cancelled ? "cancelled" : "failed");
    }
    while ((e = STAILQ_FIRST(&j->events))) {
        STAILQ_REMOVE_HEAD(&j->events, link);
        free(e);
    }
    for (int i = 0; i < j->n_choices; i++)
        free(j->choices[i].ids);
    free(j->choices);
    nk__embedding_free(j->embedding);
    nk__reply_free(j->reply);
    nk__prepared_release(&j->prepared);
    nk__request_release(&j->request);
    release_body(j);
    nk_buf_release(&j->out);
    nk__budget_hold(&g->parsed, &j->held, 0, 0);
    pthread_mutex_destroy(&j->mutex);
    j->drop(j->user);
    free(j);
    nk__presence_leave(&g->presence, NK_PRESENT_HELD); /* the last that this thread does with g */
}

static enum nk_dialect dialect_of(const nk_job *j)
{
    return nk__api_dialect(j->api);
}

const char *nk__job_id(const nk_job *j)
{
    return j->id;
}

const char *nk__job_ignored(nk_job *j)
{
    bool ready;

    pthread_mutex_lock(&j->mutex);
    ready = j->prepared_ok; /* the helper thread writes it before that */
    pthread_mutex_unlock(&j->mutex);
    return ready ? j->request.ignored : "";
}

bool nk__job_generic_tools(nk_job *j)
{
    bool generic;

    pthread_mutex_lock(&j->mutex);
    generic = j->prepared_ok && j->prepared.generic_tools; /* a helper writes it before that */
    pthread_mutex_unlock(&j->mutex);
    return generic;
}

const char *nk__job_user(nk_job *j, char *out, size_t size)
{
    const char *user;

    pthread_mutex_lock(&j->mutex);
    user = j->prepared_ok ? j->request.user : NULL; /* before that a helper may still read it */
    pthread_mutex_unlock(&j->mutex);
    return nk_log_quote(out, size, user ? user : "");
}

/* ---- failing and cancelling ---- */

static void fail(nk_job *j, const struct nk_error *err, const char *param)
{
    pthread_mutex_lock(&j->mutex);
    if (!j->failed) {
        j->failed = true;
        j->err = *err;
        snprintf(j->param, sizeof j->param, "%s", param);
    }
    pthread_mutex_unlock(&j->mutex);
    wake(j);
}

/* Ends what waits and what runs. The mutex is not held. */
static void cancel_choices(nk_job *j)
{
    if (j->embedding)
        nk__embedding_cancel(j->embedding);
    for (int i = 0; i < j->n_choices; i++) {
        struct choice *c = &j->choices[i];

        if (nk__admission_withdraw(j->g->admission, &c->ticket)) {
            nk__recovery_ended(&j->g->recoveries, &c->recovery, NK_RECOVERY_CANCELLED, NULL);
            pthread_mutex_lock(&j->mutex);
            c->done = true;
            j->n_done++;
            pthread_mutex_unlock(&j->mutex);
            nk__metrics_add(j->g->metrics, NK_METRIC_GENERATIONS, "cancelled", 1);
            nk__job_unref(j);
            continue;
        }
        pthread_mutex_lock(&j->mutex);
        if (c->gen)
            nk_gen_cancel(c->gen);
        pthread_mutex_unlock(&j->mutex);
    }
}

void nk__job_cancel(nk_job *j, int code, const char *reason, const char *msg)
{
    struct nk_error err;
    bool first, ready;

    pthread_mutex_lock(&j->mutex);
    first = !j->cancelled;
    j->cancelled = true;
    ready = j->prepared_ok;
    pthread_mutex_unlock(&j->mutex);
    if (!first)
        return;
    if (ready)
        cancel_choices(j);
    nk_fail(&err, code, reason, "%s", msg);
    fail(j, &err, "");
    /* Last: a helper that stops for it fails with "cancelled", and the first failure is told. */
    atomic_store(&j->unwanted, true);
}

void nk__job_shut_down(nk_job *j)
{
    nk__job_cancel(j, NK_E_UNAVAILABLE, "shutting_down", "the gateway is shutting down");
}

/* ---- from the chain [net thread] ---- */

static struct event *event_new(int choice, size_t n_text)
{
    struct event *e = malloc(sizeof *e + n_text);

    if (e) {
        e->choice = choice;
        e->bytes = sizeof *e + n_text;
        e->kind = EVENT_TOKEN;
        e->err.code = 0;
    }
    return e;
}

static const char *put(char **at, const char *text, size_t size)
{
    char *begin = *at;

    if (size)
        memcpy(begin, text, size);
    *at += size;
    return begin;
}

/* Under the mutex. False: its reader is too slow. */
static bool push(nk_job *j, struct event *e)
{
    /* Of the prompt's tokens many come at once, however fast the reader is; they are no more than
     * the prompt. */
    if (e->kind == EVENT_PROMPT)
        e->bytes = 0;
    else if (j->n_bytes + e->bytes > j->g->opts.limits.output_bytes_max && e->kind != EVENT_DONE)
        return false;
    j->n_bytes += e->bytes;
    STAILQ_INSERT_TAIL(&j->events, e, link);
    return true;
}

static struct event *token_event(int choice, const struct nk_gen_token *t)
{
    size_t n = t->text_size + t->piece_size;
    struct event *e;
    char *at;

    for (int i = 0; i < t->n_top; i++)
        n += t->top[i].text_size;
    e = event_new(choice, n);
    if (!e)
        return NULL;
    at = (char *)(e + 1);
    e->token = *t;
    e->token.text = put(&at, t->text, t->text_size);
    e->token.piece = put(&at, t->piece, t->piece_size);
    for (int i = 0; i < t->n_top; i++)
        e->token.top[i].text = put(&at, t->top[i].text, t->top[i].text_size);
    return e;
}

static bool keeps_ids(const nk_job *j)
{
    return j->api == NK_API_OLLAMA_GENERATE && !j->request.raw;
}

static void keep_id(struct choice *c, int32_t id)
{
    if (!nk_array_grow(c->ids, c->ids_capacity, c->n_ids + 1, CONTEXT_IDS_MAX, NULL))
        c->ids[c->n_ids++] = id;
}

static void on_replaying(void *user, const char *worker_id, int done, int total)
{
    struct choice *c = user;

    nk__recovery_replaying(&c->j->g->recoveries, &c->recovery, worker_id, done, total);
}

static void on_opened(void *user)
{
    struct choice *c = user;

    nk__recovery_opened(&c->j->g->recoveries, &c->recovery);
    if (!c->opened_ns)
        c->opened_ns = nk_clock_now_ns(c->j->g->clock);
    pthread_mutex_lock(&c->j->mutex);
    c->opened = true;
    pthread_mutex_unlock(&c->j->mutex);
}

/* The reader gets the first, the last and some of those in between: a prompt may have thousands of
 * chunks. One that does not fit is left out: it loses nothing of the text. */
static void on_prefilled(void *user, int n_done, int n_reused)
{
    struct choice *c = user;
    nk_job *j = c->j;
    int n_prompt = (int)j->prepared.prompts[c->index / j->request.n].n;
    int64_t step = n_prompt / PROGRESS_MAX;
    uint64_t now = nk_clock_now_ns(j->g->clock);
    struct event *e;
    bool said;

    c->n_reused = n_reused;
    if (!j->request.progress)
        return;
    /* Of a choice that begins anew what was said already is no news. */
    if (n_done <= c->n_progress ||
        (c->n_progress >= 0 && n_done < n_prompt && n_done - c->n_progress < step))
        return;
    e = event_new(c->index, 0);
    if (!e)
        return;
    e->kind = EVENT_PROGRESS;
    e->progress = (struct nk_reply_progress){ .n_total = n_prompt,
                                              .n_reused = n_reused,
                                              .n_done = n_done,
                                              .time_ms = (now - c->opened_ns) / 1000000 };
    c->n_progress = n_done;
    pthread_mutex_lock(&j->mutex);
    said = !c->ended && !j->failed && !j->ending && push(j, e);
    pthread_mutex_unlock(&j->mutex);
    if (said)
        wake(j);
    else
        free(e);
}

/* The log-probabilities of the prompt are asked for. */
static bool wants_prompt(const nk_job *j)
{
    return j->api == NK_API_COMPLETION && j->request.repeats_prompt && j->request.n_logprobs >= 0;
}

/* A token of the prompt, with what of it is in the request's text: the vocabulary's pieces begin
 * with a space that the text may not have. */
static void tell_prompt_token(struct choice *c, const struct nk_gen_token *told)
{
    nk_job *j = c->j;
    const struct nk_prompt *p = &j->request.prompts[c->index / j->request.n];
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    struct nk_gen_token t = *told;
    struct nk_error err = { .code = 0 };
    struct event *e = NULL;
    bool overflow = false;
    int rc = nk_vocab_piece(j->g->vocab, t.id, false, &text, &err);

    if (!t.index)
        c->has_text = false;
    t.text = nk_buf_str(&text);
    t.text_size = text.size;
    if (!c->has_text && text.size && p->text && p->text[0] != ' ' && text.data[0] == ' ') {
        t.text++;
        t.text_size--;
    }
    c->has_text = c->has_text || text.size;
    if (!rc && j->request.stream && (e = token_event(c->index, &t)))
        e->kind = EVENT_PROMPT;
    pthread_mutex_lock(&j->mutex);
    if (rc || j->failed || j->ending)
        free(e);
    else if (j->request.stream) {
        overflow = !e || !push(j, e);
        j->overflowed = j->overflowed || overflow;
        if (overflow)
            free(e);
    } else
        rc = nk__reply_prompt_token(j->reply, c->index, &t, &err);
    pthread_mutex_unlock(&j->mutex);
    nk_buf_release(&text);
    if (overflow) {
        nk__job_cancel(j, NK_E_CANCELLED, "slow_reader", "the reader was too slow");
    } else if (rc) {
        cancel_choices(j);
        fail(j, &err, "");
    } else if (j->request.stream)
        wake(j);
}

/* The prompt's first token: nothing is before it. */
static void tell_first_of_prompt(struct choice *c)
{
    nk_job *j = c->j;
    struct nk_gen_token t = { .id = j->prepared.prompts[c->index / j->request.n].ids[0],
                              .logprob = NAN };
    struct nk_buf piece = NK_BUF_INIT(1 << 16);

    if (!nk_vocab_piece(j->g->vocab, t.id, true, &piece, NULL)) {
        t.piece = nk_buf_str(&piece);
        t.piece_size = piece.size;
    }
    tell_prompt_token(c, &t);
    nk_buf_release(&piece);
}

static void on_prompted(void *user, const struct nk_gen_token *t)
{
    struct choice *c = user;

    if (t->index == 1)
        tell_first_of_prompt(c);
    tell_prompt_token(c, t);
}

static void on_token(void *user, const struct nk_gen_token *t)
{
    struct choice *c = user;
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    uint64_t now = nk_clock_now_ns(g->clock);
    bool first, stream = j->request.stream, ended = false, overflow = false;
    struct event *e = stream ? token_event(c->index, t) : NULL;
    struct nk_error err = { .code = 0 };

    if (!t->index && wants_prompt(j) && j->prepared.prompts[c->index / j->request.n].n == 1)
        tell_first_of_prompt(c);
    /* The first one since it was begun, or begun again. */
    if (nk__recovery_token(&g->recoveries, &c->recovery) || !c->last_token_ns)
        nk__repairer_succeeded(&g->repairer);
    if (nk__readiness_in_force(&g->readiness, &c->place)) {
        nk__monitor_progress(g->monitor);
        if (c->last_token_ns)
            nk__gateway_note_token(g, (double)(now - c->last_token_ns) / 1e9);
    }
    nk__metrics_add(g->metrics, NK_METRIC_GENERATED, NULL, 1);
    if (c->last_token_ns)
        nk__metrics_observe(g->metrics, NK_METRIC_TOKEN_TIME, NULL,
                            (double)(now - c->last_token_ns) / 1e9, 1);
    c->last_token_ns = now;
    if (keeps_ids(j))
        keep_id(c, t->id);
    pthread_mutex_lock(&j->mutex);
    first = !j->first_token_ns;
    if (first)
        j->first_token_ns = now;
    c->n_generated++;
    j->n_generated++;
    if (!c->first_ns)
        c->first_ns = now;
    if (e && j->request.timings_per_token)
        e->timings = (struct nk_reply_timings){
            .n_prompt = (int)j->prepared.prompts[c->index / j->request.n].n,
            .n_reused = c->n_reused,
            .n_generated = c->n_generated,
            .prefill_us = (c->first_ns - c->opened_ns) / 1000,
            .decode_us = (now - c->first_ns) / 1000,
        };
    if (c->ended || j->failed || j->ending)
        free(e);
    else if (stream) {
        overflow = !e || !push(j, e);
        if (overflow) {
            j->overflowed = true;
            free(e);
        }
    } else if (nk__reply_token(j->reply, c->index, t, &j->out, &ended, &err) == 0 && ended) {
        c->ended = true;
        if (c->gen)
            nk_gen_cancel(c->gen);
    }
    pthread_mutex_unlock(&j->mutex);
    if (first)
        nk__metrics_observe(g->metrics, NK_METRIC_FIRST_TOKEN, NULL,
                            (double)(now - j->begin_ns) / 1e9, 1);
    if (overflow) {
        nk__job_cancel(j, NK_E_CANCELLED, "slow_reader", "the reader was too slow");
    } else if (err.code) {
        cancel_choices(j);
        fail(j, &err, "");
    } else if (stream)
        wake(j);
}

static void note_stages(nk_gateway *g, const struct nk_cluster *cluster,
                        const struct nk_gen_stats *stats)
{

    for (int i = 0; i < stats->n_stages && i < cluster->n_workers; i++) {
        const struct nk_stage_timing *t = &stats->stages[i];
        double runs = (double)t->runs;
        const char *id = cluster->workers[i].id;

        if (!t->runs)
            continue;
        nk__metrics_observe(g->metrics, NK_METRIC_COMPUTE, id, (double)t->compute_us / 1e6 / runs,
                            t->runs);
        nk__metrics_observe(g->metrics, NK_METRIC_STAGE_WAIT, id, (double)t->queue_us / 1e6 / runs,
                            t->runs);
        /* wire_us is of the way to the next stage and back; the last one has none. */
        if (i + 1 < stats->n_stages)
            nk__metrics_observe(g->metrics, NK_METRIC_HOP, cluster->workers[i + 1].id,
                                (double)t->wire_us / 1e6 / runs, t->runs);
    }
}

/* Says of the workers, rather than of this request. */
static bool is_workers_fault(int code)
{
    return code == NK_E_UNAVAILABLE || code == NK_E_DEADLINE || code == NK_E_DATA_LOSS ||
           code == NK_E_INTERNAL;
}

static void end_choice(struct choice *c, bool runs, const struct nk_gen_stats *stats,
                       const struct nk_error *err);

/* What is known of one that waits to go on. */
static struct nk_gen_stats stats_of_paused(const struct choice *c)
{
    return (struct nk_gen_stats){ .finish = NK_FINISH_NONE,
                                  .tail = "",
                                  .n_prompt = c->recovery.n_prompt,
                                  .n_reused = c->recovery.n_reused };
}

/* Its one tool call is complete: if it waits to go on, it need not. The mutex is not held. */
static void end_paused(struct choice *c)
{
    struct nk_gen_stats known;

    if (!nk__admission_withdraw(c->j->g->admission, &c->ticket))
        return;
    known = stats_of_paused(c);
    end_choice(c, false, &known, NULL);
}

/* Its ticket waits again, before all others, until late_ns (0: for what is left of its wait).
 * False: the gateway ends, and it still counts as running. The job may be gone after true. */
static bool go_back(struct choice *c, uint64_t late_ns)
{
    nk_job *j = c->j;
    bool again, ended, enough;

    nk__job_ref(j);
    nk__readiness_give_back(&j->g->readiness, &c->place);
    again = nk__admission_return(j->g->admission, &c->ticket, late_ns);
    pthread_mutex_lock(&j->mutex);
    ended = j->failed || j->ending || j->cancelled;
    enough = c->ended;
    pthread_mutex_unlock(&j->mutex);
    if (again && enough && !ended)
        end_paused(c);
    if (again && ended) /* meanwhile: who ended it saw no ticket in the queue */
        cancel_choices(j);
    nk__job_unref(j);
    return again;
}

/* The worker may well answer us, and not be reached by the one before it: another one is better. */
static bool is_cut_off(const struct nk_error *err)
{
    return !strcmp(err->reason, "unreachable") || !strcmp(err->reason, "peer_not_allowed");
}

/* It was for a chain that is no more. */
static bool is_outdated(const struct nk_error *err)
{
    return !strcmp(err->reason, "stale_epoch") || !strcmp(err->reason, "removed");
}

/* Nothing starts on its chain until it is there again, or another one. */
static void lost_worker(struct choice *c, const struct nk_error *err, bool again)
{
    nk_gateway *g = c->j->g;

    nk__readiness_lost(&g->readiness, &c->place, err);
    nk__repairer_lost(&g->repairer, &c->place, c->handle ? nk_gen_blamed(c->handle) : -1,
                      again || is_cut_off(err));
}

/* It was lost, and is not gone on with: what workers hold of it is of no use. */
static void let_go(const struct choice *c)
{
    struct nk_gen_name name;

    if (!c->place.set || !c->handle || !nk_gen_resumable(c->handle))
        return;
    name = nk_gen_name(c->handle);
    nk_chain_let_go(c->place.set->chains[c->place.idx], &name, NULL);
}

/* A worker went away before the first token, and it is not this request's fault as far as is known:
 * nobody has seen anything of it, so it begins anew when the worker is back. False: it ends with
 * err. The job may be gone after true. */
static bool try_again(struct choice *c, const struct nk_error *err)
{
    nk_job *j = c->j;
    bool unreached = !strcmp(err->reason, "unreachable"), again;

    if (err->code != NK_E_UNAVAILABLE && strcmp(err->reason, "stalled") != 0 && !is_cut_off(err) &&
        !is_outdated(err))
        return false;
    if (!strcmp(err->reason, "asleep")) /* somebody wanted that, and it may last */
        return false;
    pthread_mutex_lock(&j->mutex);
    again = !c->n_generated && !j->failed && !j->broken && !j->ending && !j->cancelled &&
            (unreached || ++c->n_lost < LOST_MAX);
    if (again) {
        c->gen = NULL;
        c->over = true;
        c->opened = false;
        c->started_ns = 0;
    }
    pthread_mutex_unlock(&j->mutex);
    if (!again)
        return false;
    lost_worker(c, err, false);
    nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "request=%s choice=%d msg=\"tried again\" reason=%s",
           j->id, c->index, err->reason);
    let_go(c);
    nk_gen_free(c->handle); /* before its chain may be closed */
    c->handle = NULL;
    nk__recovery_anew(&c->recovery);
    return go_back(c, 0);
}

/* A worker was lost that had something of it, or the reader has: it waits, and goes on where it
 * stopped when there is a chain. False: it ends with err, or begins anew. The job may be gone after
 * true. */
static bool go_on_later(struct choice *c, const struct nk_gen_stats *stats,
                        const struct nk_error *err)
{
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    nk_gen *lost = c->handle;
    bool unreached = !strcmp(err->reason, "unreachable");
    bool may = c->place.set && nk__recovery_may(&g->recoveries, &c->recovery, lost, err);

    pthread_mutex_lock(&j->mutex);
    may = may && (c->opened || c->n_generated || c->recovery.pending) && !c->ended && !j->failed &&
          !j->broken && !j->ending && !j->cancelled &&
          (c->n_generated || unreached || ++c->n_lost < LOST_MAX);
    if (may) {
        c->gen = NULL;
        c->over = true;
        c->paused = true;
    }
    pthread_mutex_unlock(&j->mutex);
    if (!may)
        return false;
    lost_worker(c, err, c->recovery.pending);
    nk__recovery_lost(&g->recoveries, &c->recovery, lost, c->place.set, c->place.idx, stats, err);
    c->handle = NULL;
    c->last_token_ns = 0; /* the pause is no time of a token's */
    return go_back(c, c->recovery.until_ns);
}

/* Its ticket is out of the queue, or (runs) has its place: which it leaves. */
static void end_choice(struct choice *c, bool runs, const struct nk_gen_stats *stats,
                       const struct nk_error *err)
{
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    struct event *e = event_new(c->index, stats->tail_size);
    struct nk_error none = { .code = 0 };
    struct nk_error ours;
    bool aborted;

    if (err) {
        ours = *err;
        /* Whose fault it is is not known to gRPC's codes: a worker that does not fit is not this
         * request's. */
        if (ours.code == NK_E_PRECONDITION || ours.code == NK_E_NOT_FOUND ||
            ours.code == NK_E_DENIED || ours.code == NK_E_UNAUTHENTICATED ||
            ours.code == NK_E_UNIMPLEMENTED || ours.code == NK_E_ABORTED ||
            (g->opts.deterministic && !strcmp(ours.reason, "not_deterministic")))
            ours.code = NK_E_UNAVAILABLE;
        err = &ours;
    }
    /* Before there is room: the next one would be lost as well. INTERNAL may be of this request
     * alone, which must not keep the others waiting. */
    if (err && is_workers_fault(err->code)) {
        if (err->code == NK_E_INTERNAL)
            nk__monitor_doubt(g->monitor);
        else
            lost_worker(c, err, false);
    }
    /* All that is counted and doubted is so before anybody can see that it is over. */
    let_go(c);
    if (c->place.set)
        note_stages(g, nk_chain_cluster(c->place.set->chains[c->place.idx]), stats);
    nk__readiness_give_back(&g->readiness, &c->place);
    if (runs)
        nk__admission_leave(g->admission, &c->ticket);
    nk__recovery_ended(&g->recoveries, &c->recovery,
                       !err                          ? NK_RECOVERY_DONE
                       : err->code == NK_E_CANCELLED ? NK_RECOVERY_CANCELLED
                                                     : NK_RECOVERY_GIVEN_UP,
                       err);
    nk__metrics_add(g->metrics, NK_METRIC_PROMPT, NULL, stats->n_prompt);
    nk__metrics_add(g->metrics, NK_METRIC_REUSED, NULL, stats->n_reused);
    pthread_mutex_lock(&j->mutex);
    c->gen = NULL;
    c->done = c->over = true;
    c->paused = false;
    j->n_done++;
    if (err && c->ended && (err->code == NK_E_CANCELLED || is_workers_fault(err->code)))
        err = NULL; /* we had enough, whatever became of it since */
    nk__metrics_add(g->metrics, NK_METRIC_GENERATIONS,
                    err        ? err->code == NK_E_CANCELLED ? "cancelled" : "error"
                    : c->ended ? "tool_calls"
                               : nk_finish_name(stats->finish == NK_FINISH_EOG ? NK_FINISH_STOP
                                                                               : stats->finish),
                    1);
    if (e) {
        struct nk_reply_done *d = &e->done;
        int n_per_prompt = j->request.n;

        e->kind = EVENT_DONE;
        e->err = err ? *err : none;
        *d = (struct nk_reply_done){
            .finish = j->request.only_prompt            ? NK_FINISH_LENGTH
                      : stats->finish == NK_FINISH_NONE ? NK_FINISH_EOG
                                                        : stats->finish,
            .stop_string = "",
            .n_prompt = (int)j->prepared.prompts[c->index / n_per_prompt].n,
            .n_reused = stats->n_reused,
            .n_generated = j->request.only_prompt ? 0 : c->n_generated,
            .prefill_us = stats->prefill_us,
            .decode_us = stats->decode_us,
            .total_us = (nk_clock_now_ns(g->clock) - j->begin_ns) / 1000,
            .waiting_us = c->waiting_us,
            .n_recovered = c->recovery.n_resumed,
            .recovery_us = c->recovery.pause_us,
            .n_replayed = stats->n_replayed,
            .counts_prompt = c->index % n_per_prompt == 0,
        };
        snprintf(d->stop_string, sizeof d->stop_string, "%s", stats->stop_string);
        d->tail = memcpy(e + 1, c->ended ? "" : stats->tail, c->ended ? 0 : stats->tail_size);
        d->tail_size = c->ended ? 0 : stats->tail_size;
        if (keeps_ids(j)) {
            const struct nk_tokens *p = &j->prepared.prompts[0];

            int32_t *ids = malloc((p->n + c->n_ids + 1) * sizeof *ids);

            /* The ids of prompt and reply: they stay as long as the job. */
            if (ids) {
                memcpy(ids, p->ids, p->n * sizeof *ids);
                if (c->n_ids)
                    memcpy(ids + p->n, c->ids, c->n_ids * sizeof *ids);
                free(c->ids);
                c->ids = ids;
                d->context = ids;
                d->n_context = p->n + c->n_ids;
            }
        }
    }
    aborted = j->failed || j->ending || j->cancelled;
    if (!e && !aborted) {
        j->failed = true;
        nk_fail(&j->err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply's end");
    } else if (e && (aborted || (!j->request.stream && err)))
        free(e);
    else if (e && j->request.stream) {
        j->broken = j->broken || err;
        push(j, e);
    } else if (e) {
        int rc = nk__reply_done(j->reply, c->index, &e->done, &j->out, &j->err);

        j->failed = rc != 0;
        free(e);
    }
    if (err && !j->failed && !j->request.stream) {
        j->failed = true;
        j->err = *err;
    }
    pthread_mutex_unlock(&j->mutex);
    nk_gen_free(c->handle); /* once nobody knows it */
    c->handle = NULL;
    if (err && err->code != NK_E_CANCELLED && !aborted)
        cancel_choices(j); /* the others of the same request: its reply is an error now */
    nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG,
           "request=%s choice=%d finish=%s n_prompt=%d n_generated=%d reason=%s", j->id, c->index,
           nk_finish_name(stats->finish), stats->n_prompt, stats->n_generated,
           err ? err->reason : "none");
    wake(j);
    nk__job_unref(j);
}

static void on_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct choice *c = user;

    if (!err || (!go_on_later(c, stats, err) && !try_again(c, err)))
        end_choice(c, true, stats, err);
}

/* ---- starting ---- */

static const struct nk_gen_handlers handlers = {
    .opened = on_opened,
    .prefilled = on_prefilled,
    .prompted = on_prompted,
    .token = on_token,
    .replaying = on_replaying,
    .done = on_done,
};

/* The most tokens of a choice with this prompt; left: as many as the context holds. 0 is a
 * session's share of the workers' context: a session reserves what it may come to need, and one
 * that may need everything would let no other run beside it. */
static int n_predict_of(const struct choice *c, int n_prompt, int left)
{
    const struct nk_request *r = &c->j->request;
    int max = c->j->g->opts.n_predict_max, share = c->place.n_share, its = left;

    if (r->n_predict > 0 && r->n_predict < left)
        return r->n_predict;
    if (!max)
        return r->n_predict || r->num_ctx ? left : 0;
    /* As the first stage would have it (worker/open.c). */
    if (!r->n_predict && !r->num_ctx && share > 0)
        its = share - n_prompt > share / 2 ? share - n_prompt : share / 2 ? share / 2 : 1;
    its = its < left ? its : left;
    return its < max ? its : max;
}

/* On the chain of its place. */
static int begin_generation(struct choice *c, struct nk_error *err)
{
    nk_job *j = c->j;
    const struct nk_request *r = &j->request;
    const struct nk_tokens *prompt = &j->prepared.prompts[c->index / r->n];
    struct nk_gen_opts o = nk_gen_opts_default();
    int n_ctx = c->place.n_ctx, left;

    n_ctx = r->num_ctx && r->num_ctx < n_ctx ? r->num_ctx : n_ctx;
    left = n_ctx - (int)prompt->n;
    o.ids = prompt->ids;
    o.n_ids = prompt->n;
    left = left > 0 ? left : 1;
    o.n_predict = n_predict_of(c, (int)prompt->n, left);
    o.sampling = r->sampling;
    o.sampling.grammar = j->prepared.grammar;
    /* The choices of one prompt have seeds of their own, or they would all be the same. */
    if (r->sampling.seed != NK_SEED_RANDOM)
        o.sampling.seed = (r->sampling.seed + (uint32_t)(c->index % r->n)) % NK_SEED_RANDOM;
    o.stop = r->stop;
    o.n_stop = r->n_stop;
    o.n_logprobs = r->n_logprobs;
    o.n_prompt_logprobs = wants_prompt(j) ? r->n_logprobs : -1;
    o.deterministic = r->deterministic || j->g->opts.deterministic;
    o.no_reuse = r->no_reuse;
    o.reuse_salt = j->reuse_salt;
    o.special = j->prepared.special;
    o.hold_ms = j->g->opts.limits.hold_ms;
    o.stall_ms = j->g->opts.limits.stall_ms;
    o.exact = j->g->opts.exact_recovery;
    o.progress = (r->progress || r->timings_per_token) && r->stream;
    return nk_gen_start(&c->handle, c->place.set->chains[c->place.idx], &o, &handlers, c, err);
}

static int resume_generation(struct choice *c, struct nk_error *err)
{
    const struct nk_replicas *set = c->place.set;
    nk_chain *chain = set->chains[c->place.idx];
    nk_gen *lost = nk__recovery_chosen(&c->j->g->recoveries, &c->recovery, nk_chain_cluster(chain),
                                       set->epoch);
    int rc = nk_gen_resume(&c->handle, chain, lost, &handlers, c, err);

    nk_gen_free(lost);
    return rc;
}

/* [admission's thread] */
static void start_choice(struct nk_ticket *t)
{
    struct choice *c = t->user;
    nk_job *j = c->j;
    const struct nk_tokens *prompt = &j->prepared.prompts[c->index / j->request.n];
    struct nk_gen_stats none = { .finish = NK_FINISH_NONE, .tail = "" };
    struct nk_replicas *set;
    struct nk_prefixes prefixes;
    struct nk_error err;
    bool resumes = c->recovery.lost;

    nk__prefixes_of(&prefixes, j->reuse_salt, prompt->ids, prompt->n);
    if (nk__readiness_take(&j->g->readiness, &prefixes, &c->place, &err)) {
        /* The chains went just now, and admission is paused: it waits for others. */
        if (!go_back(c, resumes ? c->recovery.until_ns : 0))
            end_choice(c, true, &none, &err);
        return;
    }
    if (!c->waited)
        nk__metrics_observe(j->g->metrics, NK_METRIC_WAIT, NULL,
                            (double)(t->started_ns - t->entered_ns) / 1e9, 1);
    c->waited = true;
    pthread_mutex_lock(&j->mutex);
    if (!resumes) {
        c->started_ns = nk_clock_now_ns(j->g->clock);
        c->waiting_us = (t->started_ns - t->entered_ns) / 1000;
    }
    c->over = c->paused = false;
    pthread_mutex_unlock(&j->mutex);
    set = nk__replicas_ref(c->place.set); /* `done` gives up the choice's own */
    if (resumes ? resume_generation(c, &err) : begin_generation(c, &err)) {
        nk__replicas_unref(set);
        end_choice(c, true, &none, &err);
        return;
    }
    /* `done` may have come already, and has freed the handle. The choice is alive: the caller's
     * reference is only given up by `done`, so the job is kept here. */
    pthread_mutex_lock(&j->mutex);
    if (!c->over) {
        c->gen = c->handle;
        if (j->cancelled || j->failed || c->ended)
            nk_gen_cancel(c->gen);
    }
    pthread_mutex_unlock(&j->mutex);
    nk__replicas_unref(set);
}

static void start_ticket(struct nk_ticket *t)
{
    nk_job *j = ((struct choice *)t->user)->j;

    nk__job_ref(j);
    start_choice(t);
    nk__job_unref(j);
}

/* Nothing came to go on with: the reader is told what was lost, after all that there was. */
static void give_up(struct choice *c, const struct nk_error *in_the_way)
{
    struct nk_gen_stats known = stats_of_paused(c);
    struct nk_error err;

    nk__recovery_too_late(&c->j->g->recoveries, &c->recovery, in_the_way, &err);
    end_choice(c, false, &known, &err);
}

static void expire_ticket(struct nk_ticket *t, const struct nk_error *err)
{
    struct choice *c = t->user;
    nk_job *j = c->j;

    if (c->recovery.lost) {
        give_up(c, err);
        return;
    }
    /* It may have begun anew after a loss. */
    nk__recovery_ended(&j->g->recoveries, &c->recovery, NK_RECOVERY_GIVEN_UP, err);
    pthread_mutex_lock(&j->mutex);
    c->done = true;
    j->n_done++;
    pthread_mutex_unlock(&j->mutex);
    cancel_choices(j);
    fail(j, err, "");
    nk__job_unref(j);
}

/* The prompt of a choice again, as the request had it. */
static int write_before(void *user, int choice, struct nk_buf *out, struct nk_error *err)
{
    nk_job *j = user;
    const struct nk_prompt *p = &j->request.prompts[choice / j->request.n];
    int rc = 0;

    if (p->text)
        return nk_buf_add(out, p->text, p->size, err);
    for (size_t i = 0; i < p->n_ids && !rc; i++)
        rc = nk_vocab_piece(j->g->vocab, p->ids[i], false, out, err);
    return rc;
}

/* llama-server's: what was asked for, and the prompt as the model got it. */
static int write_settings(void *user, int choice, struct nk_buf *out, struct nk_error *err)
{
    nk_job *j = user;
    const struct nk_tokens *p = &j->prepared.prompts[choice / j->request.n];
    struct nk_buf text = NK_BUF_INIT(out->max);
    int rc = nk_buf_adds(out, "\"generation_settings\":", err);

    if (!rc)
        rc = nk__llama_settings_write(&j->request, j->g->opts.n_predict_max, j->prepared.grammar,
                                      out, err);
    for (size_t i = 0; i < p->n && !rc; i++)
        rc = nk_vocab_piece(j->g->vocab, p->ids[i], true, &text, err);
    if (!rc)
        rc = nk_buf_adds(out, ",\"prompt\":", err);
    if (!rc)
        rc = nk_json_strn(out, nk_buf_str(&text), text.size, err);
    nk_buf_release(&text);
    return rc;
}

static void reply_opts(nk_job *j, struct nk_reply_opts *o)
{
    const struct nk_request *r = &j->request;

    *o = (struct nk_reply_opts){
        .api = r->api,
        .stream = r->stream,
        .include_usage = r->include_usage,
        .n_choices = j->n_choices,
        .n_prompt = j->n_prompt,
        .n_logprobs = r->n_logprobs,
        .hide_reasoning = r->hide_reasoning,
        .summarise = r->summarise,
        .encrypted_reasoning = r->encrypted_reasoning,
        .echo = r->echo,
        .text_bytes_max = j->g->opts.limits.reply_bytes_max,
        .created = nk_clock_unix_s(j->g->clock),
        .parse = j->prepared.parse,
        .output = j->prepared.output,
        .utc = nk_utc_format,
        .before = r->repeats_prompt ? write_before : NULL,
        .settings = write_settings,
        .user = j,
        .no_text = r->only_prompt,
        .timings_per_token = r->timings_per_token,
        .verbose = j->g->opts.verbose && dialect_of(j) == NK_DIALECT_OPENAI,
        .return_tokens = r->return_tokens,
        .response_fields = r->response_fields,
    };
    snprintf(o->id, sizeof o->id, "%s", j->id);
    snprintf(o->model, sizeof o->model, "%s", r->model);
    nk__model_fingerprint(j->g, o->fingerprint);
}

/* No generation is needed for it. */
static bool is_answered_at_once(const nk_job *j)
{
    return j->request.only_load || nk__api_is_text(j->api);
}

/* Ollama: "is the model there?" is answered at once. */
static int answer_load(nk_job *j, struct nk_error *err)
{
    const struct nk_request *r = &j->request;
    char now[32];
    int rc;

    if (nk__api_is_embed(j->api))
        return nk__reply_embed_nothing(r, &j->out, err);
    nk_utc_format(now, sizeof now);
    rc = nk_buf_adds(&j->out, "{\"model\":", err);
    if (!rc)
        rc = nk_json_str(&j->out, r->model, err);
    if (!rc)
        rc = nk_buf_addf(
            &j->out, err, ",\"created_at\":\"%s\",%s,\"done\":true,\"done_reason\":\"%s\"}\n", now,
            r->api == NK_API_OLLAMA_CHAT ? "\"message\":{\"role\":\"assistant\",\"content\":\"\"}"
                                         : "\"response\":\"\"",
            r->only_unload ? "unload" : "load");
    return rc;
}

/* Requests with different keys, or with different salts of their own, continue nothing of each
 * other's: what was reused, and how fast, would tell one what the other's prompt was. The gateway's
 * secret keeps workers from guessing the keys. */
static int make_salt(nk_job *j, struct nk_error *err)
{
    const char *own = j->request.cache_salt;
    nk_sha256 *h;

    if (!j->key[0] && !own)
        return 0;
    h = nk_sha256_new();
    if (!h)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
    nk_sha256_add(h, j->g->salt_secret, sizeof j->g->salt_secret);
    nk_sha256_add(h, j->key, sizeof j->key);
    if (own)
        nk_sha256_add(h, own, strlen(own));
    nk_sha256_finish(h, j->reuse_salt);
    return 0;
}

/* What it will take to parse the request is there, or it is refused. [helper thread] */
static int hold_for_parsing(nk_job *j, struct nk_request_error *e)
{
    enum { MIB = 1 << 20, SMALL = MIB };
    struct nk_budget *b = &j->g->parsed;
    size_t cost = nk__json_cost(nk_buf_str(&j->body), j->body.size);
    size_t ceiling = cost > SMALL ? b->max - b->max / 8 : b->max; /* a part is for small ones */

    e->param[0] = '\0';
    if (cost > ceiling)
        return nk_fail(&e->err, NK_E_EXHAUSTED, "body_too_large",
                       "the body's JSON of %zu bytes would take some %zu MiB; a request may take "
                       "%zu (--requests-mib)",
                       j->body.size, cost / MIB, ceiling / MIB);
    if (!nk__budget_hold(b, &j->held, cost, ceiling))
        return nk_fail(&e->err, NK_E_EXHAUSTED, "requests_full",
                       "other requests take %zu MiB of the %zu that all together may take "
                       "(--requests-mib), and this one would take some %zu; try again later",
                       atomic_load(&b->used) / MIB, ceiling / MIB, cost / MIB);
    return 0;
}

/* The JSON is not needed any more. [helper thread] */
static int shrink(nk_job *j, struct nk_error *err)
{
    enum { WORTH_TRIMMING = 16 << 20 };
    size_t before = j->held, rest = sizeof *j;
    int rc = nk__request_shrink(&j->request, err);

    release_body(j);
    if (rc)
        return rc;
    for (int i = 0; i < j->prepared.n_prompts; i++) {
        size_t opens = j->prepared.prompts[i].n * sizeof *j->prepared.prompts[i].ids;

        opens += j->prepared.grammar ? strlen(j->prepared.grammar) : 0;
        /* Each choice keeps its own, to go on after a loss. */
        rest += opens * (size_t)(j->request.n > 1 ? j->request.n : 1);
    }
    rest += j->request.echo ? strlen(j->request.echo) : 0;
    if (!nk__budget_hold(&j->g->parsed, &j->held, rest, j->g->parsed.max) && j->request.n > 1)
        return nk_fail(err, NK_E_EXHAUSTED, "requests_full",
                       "the request's choices would take %zu bytes, and other requests have what "
                       "all together may take (--requests-mib); try again later",
                       rest);
#ifdef __GLIBC__
    /* Else many small blocks, long freed, stay this process's. */
    if (before >= WORTH_TRIMMING)
        malloc_trim(0);
#endif
    return 0;
}

/* ---- what is stored of responses ---- */

/* Who reads the store, and what it has taken. */
struct reading {
    nk_job *j;
    struct nk_responses_use use;
};

/* nk_responses_use.hold: as hold_for_parsing, of what is parsed beside the body. */
static int hold_stored(void *user, const char *json, size_t size, struct nk_error *err)
{
    struct reading *at = user;
    struct nk_budget *b = &at->j->g->parsed;
    size_t cost = nk__json_cost(json, size);

    return nk__budget_hold(b, &at->j->held, at->j->held + cost, b->max - b->max / 8)
               ? 0
               : nk_fail(err, NK_E_EXHAUSTED, "requests_full",
                         "requests take %zu MiB of what all together may take (--requests-mib), "
                         "and what is stored of this one would take some %zu KiB more; try again "
                         "later",
                         atomic_load(&b->used) >> 20, cost >> 10);
}

static int stored_history(void *user, const char *id, json_t *into, struct nk_error *err)
{
    struct reading *at = user;

    return nk__responses_history(at->j->g->responses, at->j->key, id, &at->use, into, err);
}

static int stored_item(void *user, const char *id, json_t **out, struct nk_error *err)
{
    struct reading *at = user;

    return nk__responses_item(at->j->g->responses, at->j->key, id, &at->use, out, err);
}

/* It is to be stored: what will be needed for that when the request's JSON is gone. */
struct to_store {
    char *previous, *input;
};

static int remember(const nk_job *j, struct to_store *t, struct nk_error *err)
{
    const struct nk_request *r = &j->request;

    if (!r->store)
        return 0;
    t->input = json_dumps(r->items, JSON_COMPACT);
    t->previous = r->previous ? strdup(r->previous) : NULL;
    return t->input && (t->previous || !r->previous)
               ? 0
               : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the response");
}

/* It begins. */
static int store_begin(nk_job *j, const struct to_store *t, struct nk_error *err)
{
    struct nk_buf object = NK_BUF_INIT(j->g->opts.limits.reply_bytes_max);
    char id[64];
    int rc;

    if (!t->input)
        return 0;
    rc = nk__reply_response(j->reply, &object, err);
    if (!rc)
        rc = nk__responses_begin(j->g->responses, j->key, response_id(j, id), t->previous, t->input,
                                 nk_buf_str(&object), err);
    j->stored = !rc;
    nk_buf_release(&object);
    return rc;
}

/* The reply's last bytes; what it says is stored before anybody can have read them. */
static int end_reply(nk_job *j, struct nk_error *err)
{
    struct nk_buf object = NK_BUF_INIT(j->g->opts.limits.reply_bytes_max),
                  items = NK_BUF_INIT(j->g->opts.limits.reply_bytes_max);
    char id[64];
    int rc = nk__reply_end(j->reply, &j->out, err);

    if (!rc && j->stored) {
        rc = nk__reply_response(j->reply, &object, err);
        if (!rc)
            rc = nk__reply_items(j->reply, &items, err);
        if (!rc)
            nk__responses_finish(j->g->responses, response_id(j, id), nk_buf_str(&object),
                                 nk_buf_str(&items));
    }
    nk_buf_release(&object);
    nk_buf_release(&items);
    return rc;
}

/* What was only asked for where the template has it. */
static void drop_wishes(nk_job *j)
{
    const struct nk_prompter_caps caps = nk__prompter_caps(j->g->prompter);
    struct nk_request *r = &j->request;

    if (!r->think_if_able)
        return;
    if (!caps.effort)
        r->reasoning_effort = NULL;
    if (!caps.can_think && !caps.effort && r->think == NK_THINK_ON)
        r->think = NK_THINK_DEFAULT;
}

/* Takes the reference that was got for it. */
static void embedding_over(void *user, const struct nk_error *err, const char *param)
{
    nk_job *j = user;

    pthread_mutex_lock(&j->mutex);
    j->embedded = true;
    pthread_mutex_unlock(&j->mutex);
    if (err)
        fail(j, err, param);
    else
        wake(j);
    nk__job_unref(j);
}

/* Vectors: what they are made of stays with the request. [helper thread] */
static int prepare_embedding(nk_job *j, int n_ctx, struct nk_work *work, struct nk_request_error *e)
{
    int rc = nk__embedding_new(&j->embedding, j->g, &j->request, n_ctx, j->begin_ns, work, e);

    if (rc)
        return rc;
    j->n_prompt = (int)nk__embedding_n_tokens(j->embedding);
    e->param[0] = '\0';
    nk__job_ref(j);
    rc = nk__embedding_enter(j->embedding, embedding_over, j, &e->err);
    if (rc) {
        nk__embedding_free(j->embedding);
        j->embedding = NULL;
        nk__job_unref(j);
    }
    return rc;
}

/* [helper thread] */
static int prepare(nk_job *j, struct nk_work *work, struct nk_request_error *e)
{
    nk_gateway *g = j->g;
    struct reading reading = { .j = j,
                               .use = { .work = work, .hold = hold_stored, .user = &reading } };
    const struct nk_item_source items = { .history = stored_history,
                                          .item = stored_item,
                                          .user = &reading };
    const struct nk_request_limits limits = {
        .messages_max = g->opts.limits.messages_max,
        .n_max = g->opts.limits.n_max,
        .strict = g->opts.strict,
        .defaults = g->defaults,
        .n_predict_max = g->opts.n_predict_max,
        .items = nk__responses_keeps(g->responses) ? &items : NULL,
    };
    struct to_store to_store = { NULL, NULL };
    struct nk_reply_opts o;
    struct nk_ticket **tickets;
    int n_ctx, rc = hold_for_parsing(j, e);
    size_t n_dropped;

    if (!rc)
        rc = nk__request_parse(&j->request, j->api, nk_buf_str(&j->body), j->body.size, &limits, e);
    release_body(j);
    if (rc)
        return rc;
    j->grammar_param = j->request.sampling.grammar ? "grammar"
                       : j->request.tools          ? "tools"
                                                   : nk__api_format(j->api);
    if (!j->request.model)
        j->request.model = nk__model_name(g);
    rc = nk__model_check(g, j->request.model, &e->err);
    if (rc) {
        snprintf(e->param, sizeof e->param, "model");
        return rc;
    }
    rc = nk__model_check_kind(g, j->api, &e->err);
    if (rc) {
        e->param[0] = '\0';
        return rc;
    }
    drop_wishes(j);
    if (nk__api_is_text(j->api)) {
        j->request.stream = false; /* Anthropic's count of tokens takes what its messages take */
        return 0;
    }
    rc = nk__readiness_n_ctx(&g->readiness, &n_ctx, &e->err);
    if (rc) {
        e->param[0] = '\0';
        return rc;
    }
    if (j->request.only_load) {
        j->request.stream = false;
        return 0;
    }
    nk__request_fit(&j->request, n_ctx);
    if (nk__api_is_embed(j->api))
        return prepare_embedding(j, n_ctx, work, e);
    if (j->request.ignored[0])
        nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "request=%s ignored=%s", j->id, j->request.ignored);
    rc = nk__prepare_truncated(&j->prepared, g->prompter, &j->request, n_ctx, work, &n_dropped, e);
    if (!rc && n_dropped)
        nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "request=%s msg=\"truncated\" messages_dropped=%zu",
               j->id, n_dropped);
    if (!rc)
        rc = make_salt(j, &e->err);
    if (!rc)
        rc = remember(j, &to_store, &e->err);
    if (!rc)
        rc = shrink(j, &e->err); /* before others look at the request */
    if (rc)
        goto out;
    j->n_choices = j->prepared.n_prompts * j->request.n;
    j->choices = calloc((size_t)j->n_choices, sizeof *j->choices);
    tickets = calloc((size_t)j->n_choices, sizeof(struct nk_ticket *));
    if (!j->choices || !tickets) {
        free(tickets);
        j->n_choices = j->choices ? j->n_choices : 0;
        rc = nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
        goto out;
    }
    for (int i = 0; i < j->n_choices; i++) {
        struct choice *c = &j->choices[i];

        c->j = j;
        c->index = i;
        c->n_progress = -1;
        c->recovery = (struct nk_recovery){ .request = j->id, .choice = i };
        c->ticket = (struct nk_ticket){ .start = start_ticket, .expire = expire_ticket, .user = c };
        tickets[i] = &c->ticket;
        j->n_prompt += (int)j->prepared.prompts[i / j->request.n].n;
        nk__job_ref(j); /* given up by `done`, or when the ticket leaves the queue */
    }
    reply_opts(j, &o);
    j->reply = nk__reply_new(&o);
    if (j->reply)
        rc = store_begin(j, &to_store, &e->err);
    if (j->reply && !rc)
        rc = nk__admission_enter(g->admission, tickets, j->n_choices, &e->err);
    if (!j->reply)
        rc = nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply");
    free(tickets);
    if (rc) {
        e->param[0] = '\0';
        if (j->stored) { /* nobody was told of it */
            char id[64];

            nk__responses_delete(g->responses, j->key, response_id(j, id), NULL);
            j->stored = false;
        }
        for (int i = 0; i < j->n_choices; i++) {
            j->choices[i].done = true;
            nk__job_unref(j);
        }
    }
out:
    free(to_store.previous);
    free(to_store.input);
    return rc;
}

static void run(struct nk_task *task)
{
    nk_job *j = (nk_job *)((char *)task - offsetof(nk_job, task));
    struct nk_request_error e = { .param = "" };
    struct nk_work work = NK_WORK_INIT(&j->unwanted);
    bool cancelled;
    /* It may have waited for long in the helpers' queue. */
    int rc = nk_work_spend(&work, 0, "the request", &e.err);

    if (!rc)
        rc = prepare(j, &work, &e);

    if (!rc && j->request.only_load)
        rc = answer_load(j, &e.err);
    else if (!rc && nk__api_is_text(j->api))
        rc = nk__text_answer(j->g->prompter, j->g->vocab, &j->request, &work, &j->out, &e);
    /* Whose reply is still to be read. (The others were shrunk before they entered the queue.) */
    if (rc || is_answered_at_once(j))
        shrink(j, NULL);
    pthread_mutex_lock(&j->mutex);
    j->prepared_ok = !rc;
    cancelled = j->cancelled;
    pthread_mutex_unlock(&j->mutex);
    if (rc)
        fail(j, &e.err, e.param);
    else if (cancelled)
        cancel_choices(j);
    wake(j); /* what came before prepared_ok was not looked at */
    nk__job_unref(j);
}

void nk__job_start(nk_job *j)
{
    nk_gateway *g = j->g;

    pthread_mutex_lock(&g->mutex);
    TAILQ_INSERT_TAIL(&g->jobs, j, link);
    pthread_mutex_unlock(&g->mutex);
    nk__presence_enter(&g->presence, NK_PRESENT_JOB);
    nk__job_ref(j);
    j->task.run = run;
    nk__pool_post(g->pool, &j->task);
}

void nk__job_end(nk_job *j)
{
    nk_gateway *g = j->g;

    pthread_mutex_lock(&j->mutex);
    j->ending = true;
    pthread_mutex_unlock(&j->mutex);
    nk__job_cancel(j, NK_E_CANCELLED, "client_gone", "the client went away");
    pthread_mutex_lock(&g->mutex);
    TAILQ_REMOVE(&g->jobs, j, link);
    pthread_mutex_unlock(&g->mutex);
    nk__presence_leave(&g->presence, NK_PRESENT_JOB);
}

/* ---- towards HTTP [HTTP thread] ---- */

enum nk_job_state nk__job_poll(nk_job *j)
{
    enum nk_job_state state = NK_JOB_WAIT;
    const struct event *first;

    pthread_mutex_lock(&j->mutex);
    first = STAILQ_FIRST(&j->events);
    if (j->failed)
        state = NK_JOB_ERROR;
    else if (j->prepared_ok && is_answered_at_once(j))
        state = NK_JOB_WHOLE;
    else if (j->prepared_ok && j->embedding)
        state = j->embedded ? NK_JOB_WHOLE : NK_JOB_WAIT;
    else if (j->prepared_ok && j->request.stream && first) {
        if (first->kind == EVENT_DONE && first->err.code) {
            j->failed = true;
            j->err = first->err;
            state = NK_JOB_ERROR;
        } else
            state = NK_JOB_STREAM;
    } else if (j->prepared_ok && !j->request.stream && j->n_done == j->n_choices)
        state = NK_JOB_WHOLE;
    pthread_mutex_unlock(&j->mutex);
    return state;
}

void nk__job_error(nk_job *j, struct nk_error *err, char param[128])
{
    pthread_mutex_lock(&j->mutex);
    *err = j->err;
    memcpy(param, j->param, sizeof j->param);
    pthread_mutex_unlock(&j->mutex);
    /* A grammar is only judged by the stage that samples. */
    if (!param[0] && !strcmp(err->reason, "bad_grammar"))
        snprintf(param, 128, "%s", j->grammar_param);
}

static bool streams(nk_job *j)
{
    bool stream;

    pthread_mutex_lock(&j->mutex);
    stream = j->prepared_ok && j->request.stream;
    pthread_mutex_unlock(&j->mutex);
    return stream;
}

const char *nk__job_type(nk_job *j)
{
    if (!streams(j))
        return "application/json";
    return dialect_of(j) == NK_DIALECT_OLLAMA ? "application/x-ndjson" : "text/event-stream";
}

bool nk__job_overflowed(nk_job *j)
{
    bool overflowed;

    pthread_mutex_lock(&j->mutex);
    overflowed = j->overflowed;
    pthread_mutex_unlock(&j->mutex);
    return overflowed;
}

void nk__job_want_keepalive(nk_job *j)
{
    atomic_store(&j->keepalive, true);
    wake(j);
}

bool nk__job_take_keepalive(nk_job *j)
{
    bool ready;

    pthread_mutex_lock(&j->mutex);
    /* Before that it is not known what kind of reply it will be; a wake follows. */
    ready = j->prepared_ok;
    pthread_mutex_unlock(&j->mutex);
    if (!ready || !atomic_exchange(&j->keepalive, false))
        return false;
    /* What is in `out` are whole events, so this stands between two of them. */
    if (streams(j) ? nk__reply_keepalive(j->reply, &j->out, NULL) : nk_buf_adds(&j->out, " ", NULL))
        j->cut_off = true;
    return true;
}

/* An error as the reply's end, after its status was sent: it is counted here, the others where they
 * are answered. */
static void write_error(nk_job *j, bool in_stream, const struct nk_error *err, const char *param)
{
    if (in_stream)
        nk__reply_fail(j->reply, err, param, &j->out);
    else
        nk__error_body(dialect_of(j), false, err, param, &j->out);
    nk__metrics_add(j->g->metrics, NK_METRIC_ERRORS, err->reason, 1);
    j->out_ended = true;
}

/* Writes one event. Returns false when the reply cannot go on. */
static bool write_event(nk_job *j, const struct event *e)
{
    struct choice *c = &j->choices[e->choice];
    struct nk_error err;
    bool ended = false;
    int rc;

    if (e->kind == EVENT_DONE && e->err.code) {
        write_error(j, true, &e->err, "");
        return false;
    }
    if (e->kind == EVENT_PROMPT) {
        rc = nk__reply_prompt_token(j->reply, e->choice, &e->token, &err);
    } else if (e->kind == EVENT_PROGRESS) {
        rc = nk__reply_progress(j->reply, e->choice, &e->progress, &j->out, &err);
    } else if (e->kind == EVENT_DONE) {
        rc = nk__reply_done(j->reply, e->choice, &e->done, &j->out, &err);
        if (!rc && ++j->n_written == j->n_choices) {
            rc = end_reply(j, &err);
            j->out_ended = true;
        }
    } else {
        if (j->request.timings_per_token)
            nk__reply_timings(j->reply, e->choice, &e->timings);
        rc = nk__reply_token(j->reply, e->choice, &e->token, &j->out, &ended, &err);
    }
    if (ended) {
        pthread_mutex_lock(&j->mutex);
        c->ended = true;
        if (c->gen)
            nk_gen_cancel(c->gen);
        pthread_mutex_unlock(&j->mutex);
        end_paused(c);
    }
    if (rc) {
        write_error(j, true, &err, "");
        return false;
    }
    return true;
}

static struct event *pop(nk_job *j)
{
    struct event *e;

    pthread_mutex_lock(&j->mutex);
    e = STAILQ_FIRST(&j->events);
    if (e) {
        STAILQ_REMOVE_HEAD(&j->events, link);
        j->n_bytes -= e->bytes;
    }
    pthread_mutex_unlock(&j->mutex);
    return e;
}

/* After the reply began, a failure is the stream's last event; a reader that was too slow sees the
 * connection's end. */
static void write_failure(nk_job *j)
{
    struct nk_error err;
    char param[128];

    nk__job_error(j, &err, param);
    if (err.code == NK_E_CANCELLED)
        j->cut_off = true;
    else
        write_error(j, streams(j), &err, param);
}

/* The reply of an embedding becomes what is read: two of it would stay until the reader has all. */
static int take_vectors(nk_job *j, struct nk_error *err)
{
    struct nk_buf *reply = nk__embedding_reply(j->embedding);
    int rc;

    if (j->out.size) { /* a keepalive's white space waits */
        rc = nk_buf_add(&j->out, reply->data, reply->size, err);
        nk_buf_release(reply);
        return rc;
    }
    nk_buf_release(&j->out);
    j->out = *reply;
    *reply = (struct nk_buf)NK_BUF_INIT(0);
    return 0;
}

ssize_t nk__job_read(nk_job *j, char *out, size_t max)
{
    size_t n;

    atomic_store(&j->began, true);
    atomic_store(&j->last_read_ns, nk_clock_now_ns(j->g->clock));
    while (j->out.size - j->n_out < max && !j->out_ended && !j->cut_off) {
        enum nk_job_state state = nk__job_poll(j);
        struct event *e;

        if (state == NK_JOB_WAIT)
            break;
        if (state == NK_JOB_ERROR) {
            write_failure(j);
            break;
        }
        if (state == NK_JOB_WHOLE) {
            struct nk_error err;

            if (j->embedding) {
                if (take_vectors(j, &err))
                    write_error(j, false, &err, "");
            } else if (!is_answered_at_once(j) && end_reply(j, &err))
                write_error(j, false, &err, "");
            j->out_ended = true;
            break;
        }
        e = pop(j);
        if (e && !write_event(j, e))
            nk__job_cancel(j, NK_E_CANCELLED, "failed", "the reply ended with an error");
        free(e);
    }
    if (j->cut_off)
        return -2;
    n = j->out.size - j->n_out;
    n = n < max ? n : max;
    if (n)
        memcpy(out, j->out.data + j->n_out, n);
    j->n_out += n;
    if (j->n_out == j->out.size) {
        nk_buf_reset(&j->out);
        j->n_out = 0;
    }
    if (n)
        return (ssize_t)n;
    return j->out_ended ? -1 : 0;
}

/* ---- for others ---- */

static void tell(nk_job *j, struct nk_job_info *out)
{
    uint64_t now = nk_clock_now_ns(j->g->clock), started = 0;
    bool paused = false;

    *out = (struct nk_job_info){ .route = nk__api_path(j->api),
                                 .age_s = (double)(now - j->begin_ns) / 1e9 };
    snprintf(out->id, sizeof out->id, "%s", j->id);
    pthread_mutex_lock(&j->mutex);
    for (int i = 0; j->prepared_ok && i < j->n_choices; i++)
        if (j->choices[i].started_ns && (!started || j->choices[i].started_ns < started))
            started = j->choices[i].started_ns;
    for (int i = 0; j->prepared_ok && i < j->n_choices; i++)
        paused = paused || j->choices[i].paused;
    out->state = paused ? "recovering" : started ? "running" : "waiting";
    out->waited_s = (double)((started ? started : now) - j->begin_ns) / 1e9;
    out->n_prompt = j->prepared_ok ? j->n_prompt : 0;
    out->n_generated = j->n_generated;
    if (j->first_token_ns && now > j->first_token_ns && j->n_generated > 1)
        out->tokens_per_second = (j->n_generated - 1) / ((double)(now - j->first_token_ns) / 1e9);
    pthread_mutex_unlock(&j->mutex);
}

int nk__jobs_info(nk_gateway *g, struct nk_job_info *out, int n_max)
{
    nk_job *j;
    int n = 0;

    pthread_mutex_lock(&g->mutex);
    TAILQ_FOREACH(j, &g->jobs, link)
    {
        if (n == n_max)
            break;
        if (!nk__api_is_text(j->api))
            tell(j, &out[n++]);
    }
    pthread_mutex_unlock(&g->mutex);
    return n;
}

/* One of its generations has its place. Until then its status may still be 429 or 503. */
static bool is_opened(nk_job *j)
{
    bool opened = false;

    pthread_mutex_lock(&j->mutex);
    for (int i = 0; j->prepared_ok && i < j->n_choices; i++)
        opened = opened || j->choices[i].opened;
    pthread_mutex_unlock(&j->mutex);
    return opened;
}

/* Server-sent events that were silent for long get a comment, so that nothing on the way gives the
 * connection up. */
void nk__jobs_tick(nk_gateway *g)
{
    uint64_t now = nk_clock_now_ns(g->clock), ms = g->opts.limits.keepalive_ms;
    nk_job *due[64], *j;
    int n = 0;

    pthread_mutex_lock(&g->mutex);
    TAILQ_FOREACH(j, &g->jobs, link)
    {
        if (n == 64) /* the others a second later */
            break;
        if (streams(j) && (atomic_load(&j->began) || is_opened(j)) &&
            now - atomic_load(&j->last_read_ns) >= ms * 1000000ull) {
            atomic_store(&j->last_read_ns, now);
            nk__job_ref(j);
            due[n++] = j;
        }
    }
    pthread_mutex_unlock(&g->mutex);
    while (n) {
        nk__job_want_keepalive(due[--n]);
        nk__job_unref(due[n]);
    }
}

void nk__jobs_cancel_response(nk_gateway *g, const char *id, const char *key)
{
    nk_job *found = NULL, *j;
    char its[64];

    pthread_mutex_lock(&g->mutex);
    TAILQ_FOREACH(j, &g->jobs, link)
    {
        if (j->api == NK_API_RESPONSES && !strcmp(j->key, key) && !strcmp(response_id(j, its), id))
            found = j;
    }
    if (found)
        nk__job_ref(found);
    pthread_mutex_unlock(&g->mutex);
    if (found)
        nk__job_cancel(found, NK_E_PRECONDITION, "response_cancelled",
                       "the response was cancelled by POST /v1/responses/ID/cancel");
    nk__job_unref(found);
}

void nk__jobs_cancel(nk_gateway *g)
{
    nk_job *list[64], *j;
    int n;

    do {
        n = 0;
        pthread_mutex_lock(&g->mutex);
        TAILQ_FOREACH(j, &g->jobs, link)
        {
            bool cancelled;

            if (n == 64)
                break;
            pthread_mutex_lock(&j->mutex);
            cancelled = j->cancelled;
            pthread_mutex_unlock(&j->mutex);
            if (!cancelled) {
                nk__job_ref(j);
                list[n++] = j;
            }
        }
        pthread_mutex_unlock(&g->mutex);
        for (int i = 0; i < n; i++) {
            nk__job_shut_down(list[i]);
            nk__job_unref(list[i]);
        }
    } while (n);
}
