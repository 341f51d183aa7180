/* A generation: one Inference stream to the first stage. The client says Open and listens; the
 * token loop is the cluster's.
 *
 *   OPENING  Open was sent; the first stage may let the session wait for room before it answers
 *   RUNNING  Opened came; tokens follow
 *   CLOSING  Done came; the stream's end is all that may follow
 *   FAILING  something is wrong (`failure`), or it was cancelled: the call was cancelled, its end
 * follows
 *
 * The worker is a peer and not trusted: what it sends is held against what was asked, and the first
 * deviation ends the generation with DATA_LOSS `bad_peer`. Nothing it sends is kept but counters
 * and the last text, which is bounded.
 *
 * Silence. The first stage watches those behind it, and answers for them; we watch the first stage.
 * While tokens come, a silence of stall_ms and a margin (so that the stage can report its neighbour
 * first) ends the generation. Before the first token silence proves nothing, since a session may
 * wait for room and a long prompt takes its time: the stage is then asked for its Info, and only
 * when it does not answer that either it is given up. */
#include "chain/chain_int.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "text/detok.h"

enum {
    STALL_MS = 30000,       /* the default */
    STALL_MARGIN_MS = 2000, /* the first stage's own report of a stalled neighbour comes first */
    PING_MS = 5000,         /* an Info that takes longer is no answer */
    /* With a first stage that does answer, how long it may stay silent before the first token: the
     * longest wait for room, and a prompt's chunks of at least 32 rows, each within stall_ms. */
    ROOM_WAIT_MS = 600000,
    CHUNK_ROWS_MIN = 32,
    /* A token's text: what stop strings may hold back and the longest token there can reasonably
       be. */
    TEXT_BYTES_MAX = 65536,
    PROMPT_IDS_MAX = 1 << 24,
};

enum gen_state { GEN_OPENING, GEN_RUNNING, GEN_CLOSING, GEN_FAILING };

struct nk_gen {
    atomic_int refs; /* the caller's, the net thread's until `done` was called, one per posted
                        cancellation */
    nk_chain *c;
    struct nk_gen_handlers handlers;
    void *user;
    nk_gen *prev, *next; /* the chain's list, under its mutex */

    pthread_mutex_t lock;
    bool ended; /* under lock: `done` was or is being called; the chain may be gone */

    /* net thread */
    enum gen_state state;
    uint8_t *open_bytes; /* the packed request until it is sent; owned */
    size_t open_size;
    nk_call *call, *ping;
    nk_timer *deadline_timer, *silence_timer;
    uint32_t deadline_ms, stall_ms;
    uint64_t start_ns, heard_ns, first_token_ns, last_alive_ns;
    size_t n_ids;
    int n_predict, n_logprobs, n_tokens;
    bool finish_seen;
    struct nk_error failure;
    struct nk_gen_stats stats;
    struct nk_buf tail;
};

struct nk_gen_opts nk_gen_opts_default(void)
{
    return (struct nk_gen_opts){ .sampling = nk_sampling_default(), .n_logprobs = -1 };
}

const char *nk_finish_name(enum nk_finish f)
{
    static const char *const names[] = { "none", "eog", "stop", "length" };

    return (unsigned)f < sizeof names / sizeof names[0] ? names[f] : "none";
}

nk_gen *nk__gen_next(const nk_gen *g)
{
    return g->next;
}

static void unref(nk_gen *g)
{
    if (atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&g->lock);
    nk_buf_release(&g->tail);
    free(g->open_bytes);
    free(g);
}

void nk_gen_free(nk_gen *g)
{
    if (g)
        unref(g);
}

static const struct nk_cluster_worker *first_worker(const nk_gen *g)
{
    return &g->c->cluster.workers[0];
}

/* ---- endings [net thread] ---- */

/* Has the message this address, and not only as a part of a longer one (HOST:80 of HOST:8080)? */
static bool has_address(const char *msg, const char *address)
{
    size_t n = strlen(address);

    for (const char *at = msg; (at = strstr(at, address)); at++) {
        unsigned char before = at > msg ? (unsigned char)at[-1] : ' ', after = (unsigned char)at[n];

        if (!isalnum(before) && before != '.' && before != '-' && !isdigit(after))
            return true;
    }
    return false;
}

/* The message with the worker that is to blame before it, unless it names one: the one whose address it has (the stages
 * know each other by address only), else the first. */
static void name_worker(nk_gen *g, struct nk_error *e)
{
    const struct nk_cluster *c = &g->c->cluster;
    const struct nk_cluster_worker *blamed = &c->workers[0];

    for (int i = c->n_workers - 1; i >= 0; i--) {
        char named[80];

        snprintf(named, sizeof named, "worker %s", c->workers[i].id);
        if (strstr(e->msg, named))
            return;
        if (has_address(e->msg, c->workers[i].address))
            blamed = &c->workers[i];
    }
    if (has_address(e->msg, blamed->address))
        nk_wrap(e->code, e, "worker %s", blamed->id);
    else
        nk__wrap_worker(e->code, e, blamed);
}

/* The last thing that happens to a generation. error NULL: the stats are whole. */
static void finish(nk_gen *g, const struct nk_error *error)
{
    nk_chain *c = g->c;

    if (g->deadline_timer)
        nk_timer_cancel(g->deadline_timer);
    if (g->silence_timer)
        nk_timer_cancel(g->silence_timer);
    g->deadline_timer = g->silence_timer = NULL;
    g->stats.n_generated = g->n_tokens;
    g->stats.total_us = (nk_now_ns() - g->start_ns) / 1000;
    g->stats.tail = nk_buf_str(&g->tail);
    g->stats.tail_size = g->tail.size;
    pthread_mutex_lock(&g->lock);
    g->ended = true;
    pthread_mutex_unlock(&g->lock);
    g->handlers.done(g->user, &g->stats, error);
    pthread_mutex_lock(&c->mutex);
    if (g->prev)
        g->prev->next = g->next;
    else
        c->gens = g->next;
    if (g->next)
        g->next->prev = g->prev;
    if (--c->n_gens == 0)
        pthread_cond_broadcast(&c->idle);
    pthread_mutex_unlock(&c->mutex);
    unref(g);
}

/* `end` of the call and of the ping come in any order; the generation is over after both. */
static void finish_when_quiet(nk_gen *g, const struct nk_error *error)
{
    if (g->call)
        return;
    if (g->ping) {
        nk_call_cancel(g->ping); /* its end comes back here, with the failure kept */
        return;
    }
    finish(g, error);
}

/* The generation has failed with g->failure: ends the call, whose `end` does the rest. */
static void fail(nk_gen *g)
{
    g->state = GEN_FAILING;
    if (g->call)
        nk_call_cancel(g->call);
    else
        finish_when_quiet(g, &g->failure);
}

#define fail_with(g, code, reason, ...)                                                            \
    do {                                                                                           \
        nk_fail(&(g)->failure, code, reason, __VA_ARGS__);                                         \
        nk__wrap_worker(code, &(g)->failure, first_worker(g));                                     \
        fail(g);                                                                                   \
    } while (0)
#define bad_peer(g, ...) fail_with(g, NK_E_DATA_LOSS, "bad_peer", __VA_ARGS__)

void nk__gen_cancel_now(nk_gen *g)
{
    if (g->state == GEN_FAILING || g->state == GEN_CLOSING)
        return;
    nk_fail(&g->failure, NK_E_CANCELLED, "cancelled", "the generation was cancelled");
    g->state = GEN_FAILING;
    if (g->call)
        nk_call_cancel(g->call);
    /* else it has not begun yet, and `begin` will see the state */
}

static void cancel_posted(void *arg)
{
    nk_gen *g = arg;
    bool ended;

    pthread_mutex_lock(&g->lock);
    ended = g->ended;
    pthread_mutex_unlock(&g->lock);
    if (!ended)
        nk__gen_cancel_now(g);
    unref(g);
}

void nk_gen_cancel(nk_gen *g)
{
    pthread_mutex_lock(&g->lock);
    if (!g->ended) {
        atomic_fetch_add(&g->refs, 1);
        nk_net_post(g->c->net, cancel_posted, g);
    }
    pthread_mutex_unlock(&g->lock);
}

/* ---- what the first stage says [net thread] ---- */

static enum nk_finish finish_of(Nakshatra__V1__FinishReason r)
{
    switch (r) {
    case NAKSHATRA__V1__FINISH_REASON__FINISH_EOG:
        return NK_FINISH_EOG;
    case NAKSHATRA__V1__FINISH_REASON__FINISH_STOP:
        return NK_FINISH_STOP;
    case NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH:
        return NK_FINISH_LENGTH;
    default:
        return NK_FINISH_NONE;
    }
}

/* The route as the stages see it against the route as the cluster file has it. */
static bool route_fits(nk_gen *g, const Nakshatra__V1__Opened *o)
{
    const struct nk_cluster *c = &g->c->cluster;
    const Nakshatra__V1__StageInfo *first;

    if (o->n_stages != (size_t)c->n_workers) {
        bad_peer(g, "it opened a chain of %zu stages; the cluster file has %d", o->n_stages,
                 c->n_workers);
        return false;
    }
    first = o->stages[0];
    for (int i = 0; i < c->n_workers; i++) {
        const struct nk_cluster_worker *w = &c->workers[i];
        const Nakshatra__V1__StageInfo *s = o->stages[i];
        int code = NK_E_PRECONDITION;
        struct nk_error *e = &g->failure;

        if (strcmp(s->model_sha256, c->model_sha256))
            nk_fail(e, code, "model_mismatch", "it has the model %.64s, the cluster file wants %s",
                    s->model_sha256, c->model_sha256);
        else if (s->layer_begin != (uint32_t)w->layer_begin ||
                 s->layer_end != (uint32_t)w->layer_end)
            nk_fail(e, code, "layers_mismatch", "it has layers %u-%u, the cluster file says %d-%d",
                    s->layer_begin, s->layer_end, w->layer_begin, w->layer_end);
        else if (s->layer_count != (uint32_t)c->workers[c->n_workers - 1].layer_end)
            nk_fail(e, code, "layers_mismatch",
                    "its model has %u layers, the cluster file's ranges end at %d", s->layer_count,
                    c->workers[c->n_workers - 1].layer_end);
        else if (s->n_embd != first->n_embd)
            nk_fail(e, code, "width_mismatch",
                    "its rows have %u floats, those of worker %s have %u", s->n_embd,
                    c->workers[0].id, first->n_embd);
        else if (strcmp(s->llama_version, first->llama_version))
            nk_fail(e, code, "llama_mismatch", "it runs llama.cpp %.40s, worker %s runs %.40s",
                    s->llama_version, c->workers[0].id, first->llama_version);
        else
            continue;
        nk__wrap_worker(code, e, w);
        fail(g);
        return false;
    }
    return true;
}

static void opened(nk_gen *g, const Nakshatra__V1__Opened *o)
{
    if (g->state != GEN_OPENING) {
        bad_peer(g, "it opened the session twice");
        return;
    }
    if (!route_fits(g, o))
        return;
    if (o->n_prompt != g->n_ids || o->n_reused > g->n_ids) {
        bad_peer(g, "it took %u ids and reused %u; %zu were sent", o->n_prompt, o->n_reused,
                 g->n_ids);
        return;
    }
    g->stats.n_prompt = (int)o->n_prompt;
    g->stats.n_reused = (int)o->n_reused;
    g->stats.seed = o->seed;
    g->state = GEN_RUNNING;
}

static void token(nk_gen *g, const Nakshatra__V1__Token *t)
{
    struct nk_gen_token out = { .id = t->id, .index = g->n_tokens, .logprob = NAN };
    int n_top_max = g->n_logprobs > 0 ? g->n_logprobs : 0;
    size_t at;

    if (g->state != GEN_RUNNING || g->finish_seen) {
        bad_peer(g, "a token %s",
                 g->state != GEN_RUNNING ? "before the session was open" : "after the last one");
    } else if (t->index != (uint32_t)g->n_tokens || t->id < 0) {
        bad_peer(g, "token %d with index %u; index %d comes next", t->id, t->index, g->n_tokens);
    } else if (g->n_predict && g->n_tokens >= g->n_predict) {
        bad_peer(g, "a token over the limit of %d", g->n_predict);
    } else if (t->text.len > TEXT_BYTES_MAX || !nk_utf8_valid(t->text.data, t->text.len, &at)) {
        bad_peer(g, "token %d has a text of %zu bytes that is too long or not UTF-8", g->n_tokens,
                 t->text.len);
    } else if ((g->n_logprobs >= 0) != (t->prob != NULL) || t->n_top > (size_t)n_top_max) {
        bad_peer(g, "token %d has %s log-probability and %zu alternatives; %d were asked for",
                 g->n_tokens, t->prob ? "a" : "no", t->n_top, n_top_max);
    } else {
        out.text = (const char *)t->text.data;
        out.text_size = t->text.len;
        if (t->prob) {
            out.logprob = t->prob->logprob;
            out.piece = (const char *)t->prob->text.data;
            out.piece_size = t->prob->text.len;
        }
        for (size_t i = 0; i < t->n_top; i++)
            out.top[out.n_top++] =
                (struct nk_gen_top){ t->top[i]->id, t->top[i]->logprob,
                                     (const char *)t->top[i]->text.data, t->top[i]->text.len };
        if (!out.text)
            out.text = "";
        g->finish_seen = t->finish != NAKSHATRA__V1__FINISH_REASON__FINISH_NONE;
        if (!g->first_token_ns) {
            g->first_token_ns = g->heard_ns;
            g->stats.ttft_us = (g->first_token_ns - g->start_ns) / 1000;
        }
        if (t->finish == NAKSHATRA__V1__FINISH_REASON__FINISH_EOG) {
            /* Not part of what was generated; what it brings along is text that was held back. */
            if (nk_buf_add(&g->tail, t->text.data, t->text.len, &g->failure))
                fail(g);
            return;
        }
        g->n_tokens++;
        g->handlers.token(g->user, &out);
    }
}

static void done(nk_gen *g, const Nakshatra__V1__Done *d)
{
    struct nk_gen_stats *s = &g->stats;
    size_t at;

    s->finish = finish_of(d->finish);
    if (g->state != GEN_RUNNING) {
        bad_peer(g, "it was done before the session was open");
    } else if (s->finish == NK_FINISH_NONE || d->n_generated != (uint32_t)g->n_tokens ||
               d->n_stages > (size_t)g->c->cluster.n_workers) {
        bad_peer(g, "it was done with finish reason %d, %u tokens and %zu stages; %d tokens came",
                 (int)d->finish, d->n_generated, d->n_stages, g->n_tokens);
    } else if (d->stop_string.len >= sizeof s->stop_string || d->text.len > TEXT_BYTES_MAX ||
               !nk_utf8_valid(d->text.data, d->text.len, &at)) {
        bad_peer(g, "its last text (%zu bytes) or stop string (%zu bytes) is too long or not UTF-8",
                 d->text.len, d->stop_string.len);
    } else if (nk_buf_add(&g->tail, d->text.data, d->text.len, &g->failure)) {
        fail(g);
    } else {
        if (d->stop_string.len) /* an empty one has no address */
            memcpy(s->stop_string, d->stop_string.data, d->stop_string.len);
        s->prefill_us = d->prefill_us;
        s->decode_us = d->decode_us;
        s->n_stages = (int)d->n_stages;
        for (size_t i = 0; i < d->n_stages; i++) {
            const Nakshatra__V1__StageTiming *t = d->stages[i];

            nk__text_copy(s->stages[i].worker_id, sizeof s->stages[i].worker_id, t->worker_id);
            s->stages[i].compute_us = t->compute_us;
            s->stages[i].queue_us = t->queue_us;
            s->stages[i].wire_us = t->wire_us;
            s->stages[i].runs = t->runs;
        }
        g->state = GEN_CLOSING;
    }
}

static void message(nk_call *call, void *user, struct nk_bytes msg)
{
    nk_gen *g = user;
    Nakshatra__V1__InferenceReply *r;

    (void)call;
    if (g->state == GEN_FAILING)
        return;
    g->heard_ns = g->last_alive_ns = nk_now_ns();
    if (g->state == GEN_CLOSING) {
        bad_peer(g, "it went on after being done");
        return;
    }
    r = nakshatra__v1__inference_reply__unpack(nk_arena_allocator(g->c->arena), msg.size, msg.data);
    switch (r ? r->kind_case : NAKSHATRA__V1__INFERENCE_REPLY__KIND__NOT_SET) {
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED:
        opened(g, r->opened);
        break;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN:
        token(g, r->token);
        break;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_DONE:
        done(g, r->done);
        break;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE:
        break; /* a sign of life during a long prefill */
    default:
        bad_peer(g, "a message of %zu bytes that is no InferenceReply", msg.size);
    }
    nk_arena_reset(g->c->arena);
}

static void call_ended(nk_call *call, void *user, const struct nk_error *status)
{
    nk_gen *g = user;

    (void)call;
    g->call = NULL;
    if (g->state == GEN_CLOSING) {
        /* Everything was said; a broken end of the stream takes nothing back. */
        finish_when_quiet(g, NULL);
        return;
    }
    if (g->state != GEN_FAILING) {
        g->state = GEN_FAILING;
        if (status)
            g->failure = *status;
        else
            nk_fail(&g->failure, NK_E_DATA_LOSS, "bad_peer",
                    "it ended the stream without being done");
        name_worker(g, &g->failure);
    }
    finish_when_quiet(g, &g->failure);
}

/* ---- deadlines and silence [net thread] ---- */

static void deadline_passed(void *arg)
{
    nk_gen *g = arg;

    g->deadline_timer = NULL;
    if (g->state == GEN_FAILING || g->state == GEN_CLOSING)
        return;
    fail_with(g, NK_E_DEADLINE, "deadline",
              "the generation was not done within %u ms; %d tokens had come", g->deadline_ms,
              g->n_tokens);
}

static void silence_due(void *arg);

static void watch_silence(nk_gen *g, uint64_t ms)
{
    g->silence_timer =
        nk_timer_start(g->c->net, ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX, silence_due, g);
}

static void ping_message(nk_call *call, void *user, struct nk_bytes msg)
{
    nk_gen *g = user;

    (void)call, (void)msg;
    g->last_alive_ns = nk_now_ns();
}

static void ping_ended(nk_call *call, void *user, const struct nk_error *status)
{
    nk_gen *g = user;

    (void)call;
    g->ping = NULL;
    if (!g->call)
        finish_when_quiet(g, g->state == GEN_CLOSING ? NULL : &g->failure);
    else if (status && g->state != GEN_FAILING && g->state != GEN_CLOSING && !g->n_tokens)
        fail_with(g, NK_E_DEADLINE, "stalled",
                  "silent for %llu ms, and it does not answer Info: %s",
                  (unsigned long long)((nk_now_ns() - g->heard_ns) / 1000000), status->msg);
}

static void silence_due(void *arg)
{
    static const struct nk_call_handlers ping_handlers = { .message = ping_message,
                                                           .end = ping_ended };
    nk_gen *g = arg;
    uint64_t now = nk_now_ns(), limit = (uint64_t)g->stall_ms + STALL_MARGIN_MS;
    uint64_t silent = (now - g->heard_ns) / 1000000, quiet = (now - g->last_alive_ns) / 1000000;

    g->silence_timer = NULL;
    if (g->state == GEN_FAILING || g->state == GEN_CLOSING)
        return;
    if (quiet < limit) { /* it was heard meanwhile */
        watch_silence(g, limit - quiet);
        return;
    }
    if (g->n_tokens || silent >= ROOM_WAIT_MS + limit * (2 + g->n_ids / CHUNK_ROWS_MIN)) {
        fail_with(g, NK_E_DEADLINE, "stalled", "silent for %llu ms after %d tokens",
                  (unsigned long long)silent, g->n_tokens);
        return;
    }
    if (!g->ping) {
        Nakshatra__V1__InfoRequest request = NAKSHATRA__V1__INFO_REQUEST__INIT;
        struct nk_error err;

        if (nk_call_start(&g->ping, g->c->channels[0], NK__PATH_INFO, PING_MS, &ping_handlers, g,
                          &err) ||
            nk_call_send_pb(g->ping, &request.base, &err)) {
            fail_with(g, NK_E_DEADLINE, "stalled", "silent for %llu ms: %s",
                      (unsigned long long)silent, err.msg);
            return;
        }
        nk_call_send_done(g->ping);
    }
    watch_silence(g, limit);
}

/* ---- the beginning ---- */

static void begin(void *arg)
{
    static const struct nk_call_handlers handlers = { .message = message, .end = call_ended };
    nk_gen *g = arg;
    struct nk_error err;
    int rc;

    if (g->state == GEN_FAILING) { /* cancelled before it began */
        finish(g, &g->failure);
        return;
    }
    g->heard_ns = g->last_alive_ns = nk_now_ns();
    rc = nk_call_start(&g->call, g->c->channels[0], NK__PATH_INFERENCE, 0, &handlers, g, &err);
    if (!rc)
        rc = nk_call_send(g->call, g->open_bytes, g->open_size, &err);
    free(g->open_bytes);
    g->open_bytes = NULL;
    if (rc) {
        g->failure = err;
        nk__wrap_worker(rc, &g->failure, first_worker(g));
        fail(g);
        return;
    }
    if (g->deadline_ms)
        g->deadline_timer = nk_timer_start(g->c->net, g->deadline_ms, deadline_passed, g);
    watch_silence(g, (uint64_t)g->stall_ms + STALL_MARGIN_MS);
}

/* 0 means "off" or a default on the wire, so that a 0 that is meant goes as the least number above
 * it, which libllama's samplers cannot tell from it. */
static float meant(float v)
{
    return v > 0 ? v : FLT_MIN;
}

static void pack_sampling(Nakshatra__V1__Sampling *m, const struct nk_sampling *s)
{
    bool penalties = s->penalty_last_n != 0, dry = s->dry_penalty_last_n != 0;

    m->temperature = s->temperature;
    m->top_k = s->top_k;
    m->top_p = s->top_p < 1 ? meant(s->top_p) : 0;
    m->min_p = s->min_p;
    m->typical_p = s->typical_p < 1 ? meant(s->typical_p) : 0;
    m->repeat_penalty = penalties && s->repeat_penalty != 1 ? s->repeat_penalty : 0;
    m->presence_penalty = penalties ? s->presence_penalty : 0;
    m->frequency_penalty = penalties ? s->frequency_penalty : 0;
    m->penalty_last_n = s->penalty_last_n;
    m->dry_multiplier = dry ? s->dry_multiplier : 0;
    m->dry_base = s->dry_base;
    m->dry_allowed_length = s->dry_allowed_length;
    m->dry_penalty_last_n = s->dry_penalty_last_n > 0 ? s->dry_penalty_last_n : 0;
    m->mirostat = s->mirostat;
    m->mirostat_tau = meant(s->mirostat_tau);
    m->mirostat_eta = meant(s->mirostat_eta);
    if (s->seed != NK_SEED_RANDOM) {
        m->seed_given_case = NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED;
        m->seed = s->seed;
    }
    if (s->grammar)
        m->grammar = (char *)(uintptr_t)s->grammar;
    m->ignore_eos = s->ignore_eos;
}

static int check_opts(const nk_chain *c, const struct nk_gen_opts *o, struct nk_error *err)
{
    int rc;

    if (!c->cluster.n_workers)
        return nk_fail(err, NK_E_INVALID, "bad_request", "the cluster has no workers");
    if (!o->n_ids)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "the prompt has no tokens; at least one is needed");
    if (o->n_ids > PROMPT_IDS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "the prompt has %zu tokens; at most %d are taken", o->n_ids, PROMPT_IDS_MAX);
    for (size_t i = 0; i < o->n_ids; i++)
        if (o->ids[i] < 0)
            return nk_fail(err, NK_E_INVALID, "bad_request",
                           "the prompt's token %zu is %d; ids begin at 0", i, o->ids[i]);
    if (o->n_predict < 0)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "n_predict is %d; 0 (no limit) or more is right", o->n_predict);
    if (o->n_logprobs < -1 || o->n_logprobs > NK_LOGPROBS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "n_logprobs is %d; -1 (none) to %d are right", o->n_logprobs,
                       NK_LOGPROBS_MAX);
    if (o->n_stop > NK_STOP_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request", "%zu stop strings; at most %d are taken",
                       o->n_stop, NK_STOP_MAX);
    for (size_t i = 0; i < o->n_stop; i++)
        if (!o->stop[i][0] || strlen(o->stop[i]) > NK_STOP_BYTES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_request",
                           "stop string %zu has %zu bytes; 1 to %d are right", i,
                           strlen(o->stop[i]), NK_STOP_BYTES_MAX);
    rc = nk_sampling_check(&o->sampling, err);
    if (!rc && o->sampling.dry_multiplier > 0 && o->sampling.dry_allowed_length < 1)
        rc = nk_fail(err, NK_E_INVALID, "bad_sampling",
                     "dry_allowed_length is %d; it must be 1 or more",
                     o->sampling.dry_allowed_length);
    return rc;
}

/* The Open of a generation as the bytes of its InferenceRequest. */
static int pack_open(nk_gen *g, const struct nk_gen_opts *o, struct nk_error *err)
{
    const struct nk_cluster *c = &g->c->cluster;
    Nakshatra__V1__InferenceRequest request = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Open open = NAKSHATRA__V1__OPEN__INIT;
    Nakshatra__V1__Sampling sampling = NAKSHATRA__V1__SAMPLING__INIT;
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    Nakshatra__V1__Stage stages[NK_CLUSTER_WORKERS_MAX], *route[NK_CLUSTER_WORKERS_MAX];
    size_t n_bias = (size_t)o->sampling.n_logit_bias;
    Nakshatra__V1__LogitBias *bias = calloc(n_bias + 1, sizeof *bias);
    Nakshatra__V1__LogitBias **bias_ptrs = calloc(n_bias + 1, sizeof *bias_ptrs);
    ProtobufCBinaryData stop[NK_STOP_MAX];
    uint8_t session[16];
    int rc = 0;

    if (!bias || !bias_ptrs) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    if (getentropy(session, sizeof session) < 0) {
        rc = nk_fail(err, NK_E_UNAVAILABLE, "no_random", "no random bytes: %s", strerror(errno));
        goto out;
    }
    request.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN;
    request.open = &open;
    open.session = (ProtobufCBinaryData){ sizeof session, session };
    for (int i = 0; i < c->n_workers; i++) {
        nakshatra__v1__stage__init(&stages[i]);
        stages[i].address = (char *)(uintptr_t)c->workers[i].address;
        stages[i].layer_begin = (uint32_t)c->workers[i].layer_begin;
        stages[i].layer_end = (uint32_t)c->workers[i].layer_end;
        route[i] = &stages[i];
    }
    open.route = route;
    open.n_route = (size_t)c->n_workers;
    open.model_sha256 = (char *)(uintptr_t)c->model_sha256;
    pack_sampling(&sampling, &o->sampling);
    for (size_t i = 0; i < n_bias; i++) {
        nakshatra__v1__logit_bias__init(&bias[i]);
        bias[i].id = o->sampling.logit_bias[i].id;
        bias[i].bias = o->sampling.logit_bias[i].bias;
        bias_ptrs[i] = &bias[i];
    }
    sampling.logit_bias = bias_ptrs;
    sampling.n_logit_bias = n_bias;
    open.sampling = &sampling;
    limits.n_predict = (uint32_t)o->n_predict;
    limits.deadline_ms = o->deadline_ms;
    limits.stall_ms = o->stall_ms;
    open.limits = &limits;
    open.prompt_ids = (int32_t *)(uintptr_t)o->ids;
    open.n_prompt_ids = o->n_ids;
    for (size_t i = 0; i < o->n_stop; i++)
        stop[i] = (ProtobufCBinaryData){ strlen(o->stop[i]), (uint8_t *)(uintptr_t)o->stop[i] };
    open.stop = stop;
    open.n_stop = o->n_stop;
    open.dtype = c->f16 ? NAKSHATRA__V1__DTYPE__DTYPE_F16 : NAKSHATRA__V1__DTYPE__DTYPE_F32;
    open.deterministic = o->deterministic;
    open.n_logprobs = o->n_logprobs + 1;
    /* A kept session's KV may have been computed in runs of another shape, to other low bits. */
    open.reuse = !o->no_reuse && !o->deterministic;
    open.special = o->special;
    g->open_size = nakshatra__v1__inference_request__get_packed_size(&request);
    if (g->open_size > NK_RPC_MESSAGE_BYTES_MAX) {
        rc = nk_fail(err, NK_E_INVALID, "bad_request",
                     "the request has %zu bytes; at most %u are taken", g->open_size,
                     NK_RPC_MESSAGE_BYTES_MAX);
        goto out;
    }
    g->open_bytes = malloc(g->open_size);
    if (!g->open_bytes)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    else
        nakshatra__v1__inference_request__pack(&request, g->open_bytes);
out:
    free(bias);
    free(bias_ptrs);
    return rc;
}

int nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                 const struct nk_gen_handlers *handlers, void *user, struct nk_error *err)
{
    nk_gen *g;
    int rc;

    *out = NULL;
    rc = check_opts(c, opts, err);
    if (rc)
        return rc;
    g = calloc(1, sizeof *g);
    if (!g)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    atomic_init(&g->refs, 1);
    pthread_mutex_init(&g->lock, NULL);
    nk_buf_init(&g->tail, 2 * TEXT_BYTES_MAX);
    g->c = c;
    g->handlers = *handlers;
    g->user = user;
    g->n_ids = opts->n_ids;
    g->n_predict = opts->n_predict;
    g->n_logprobs = opts->n_logprobs;
    g->deadline_ms = opts->deadline_ms;
    g->stall_ms = opts->stall_ms ? opts->stall_ms : STALL_MS;
    g->start_ns = nk_now_ns();
    g->stats.n_prompt = (int)opts->n_ids;
    rc = pack_open(g, opts, err);
    if (rc) {
        unref(g);
        return rc;
    }
    atomic_fetch_add(&g->refs, 1);
    pthread_mutex_lock(&c->mutex);
    g->next = c->gens;
    if (g->next)
        g->next->prev = g;
    c->gens = g;
    c->n_gens++;
    pthread_mutex_unlock(&c->mutex);
    *out = g;
    nk_net_post(c->net, begin, g);
    return 0;
}
