/* A generation: one Inference stream to the first stage. The client says Open and listens; the
 * token loop is the cluster's.
 *
 *   OPENING  Open was sent; the first stage may let the session wait for room before it answers
 *   RUNNING  Opened came; tokens follow
 *   CLOSING  Done came; the stream's end is all that may follow
 *   FAILING  something is wrong (`failure`), or it was cancelled: the call was cancelled, and its
 *            end follows
 *
 * The worker is a peer and not trusted: what it sends is held against what was asked, and the first
 * deviation ends the generation with DATA_LOSS `bad_peer`. Nothing it sends is kept but counters,
 * the last text, which is bounded, and the ids, which are what a resumption needs.
 *
 * Going on. A generation that ended by the loss of a worker (`losses`) can be resumed: another one
 * takes over its name, prompt and ids, and opens the same session with a higher attempt. It is a
 * generation of its own, so that each is on one chain and has one `done`; only the statistics are
 * of all of them.
 *
 * Silence. The first stage watches those behind it, and answers for them; we watch the first stage.
 * While tokens come, a silence of stall_ms and a margin (so that the stage can report its neighbour
 * first) ends the generation. Before the first token silence proves nothing, since a session may
 * wait for room and a long prompt takes its time: the stage is then asked for its Info, and only
 * when it does not answer that either is it given up. */
#include "chain/chain_int.h"

#include <ctype.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/chance.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "base/visible.h"

enum {
    STALL_MS = 30000,       /* the default */
    HOLD_MS = 60000,        /* the default */
    STALL_MARGIN_MS = 2000, /* the first stage's own report of a stalled neighbour comes first */
    PING_MS = 5000,         /* an Info that takes longer is no answer */
    /* With a first stage that does answer, how long it may stay silent before the first token: the
     * longest wait for room, and a prompt's chunks of at least 32 rows, each within stall_ms. */
    ROOM_WAIT_MS = 600000,
    CHUNK_ROWS_MIN = 32,
    /* A token's text: what stop strings may hold back, and the longest token that is reasonable. */
    TEXT_BYTES_MAX = 65536,
    IDS_MAX = 1 << 28,
};

enum gen_state { GEN_OPENING, GEN_RUNNING, GEN_CLOSING, GEN_FAILING };

struct nk_gen {
    /* The caller's, the net thread's until `done` was called, one per posted cancellation. */
    atomic_int refs;
    nk_chain *c;
    struct nk_gen_handlers handlers;
    void *user;
    LIST_ENTRY(nk_gen) link; /* the chain's list, under its mutex */
    struct nk__asked *asked; /* a reference */
    uint8_t session[16];
    char model_sha256[65]; /* the chain's model; the chain may be gone when this one is resumed */

    pthread_mutex_t lock;
    bool ended; /* under lock: `done` was or is being called; the chain may be gone */

    /* net thread */
    enum gen_state state;
    uint8_t *open_bytes; /* the packed request until it is sent; owned */
    size_t open_size;
    nk_call *call, *ping;
    bool ping_answered;
    nk_timer *deadline_timer, *silence_timer;
    uint32_t deadline_ms, stall_ms;
    uint64_t start_ns, heard_ns, first_token_ns, last_token_ns, last_alive_ns;
    size_t n_ids;
    int n_predict, n_logprobs, n_tokens;
    size_t n_prompted; /* with n_prompt_logprobs: the position of the next token that is told */
    int n_prefilled;   /* what `prefilled` said last; -1: nothing */
    bool deterministic, finish_seen;
    bool cancelled; /* by this side's user */
    struct nk_error failure;

    /* For a resumption, and of one. */
    uint32_t attempt; /* 0: the first */
    bool forget_held; /* what the stages held did not fit */
    bool was_opened;  /* some attempt was: seed and n_predict are those in use */
    bool told_opened; /* the user, of this attempt */
    int blamed;       /* the worker whose fault an error was, as an index */
    bool link_lost;   /* the call to the first stage ended without a word from it */
    bool lost;        /* it has ended by a loss; set before `done` */
    uint32_t chunk;   /* rows of a prefill chunk, as Opened said first; 0: not told */
    int n_before;     /* of n_tokens, those of earlier attempts */
    int32_t *said;    /* n_tokens ids; owned */
    size_t said_capacity;
    uint64_t pause_ns;  /* since when no token came because of a loss; 0: no pause */
    uint64_t paused_us; /* pauses between the first token and the last */
    struct nk_gen_stats stats;
    struct nk_buf tail;
};

struct nk_gen_opts nk_gen_opts_default(void)
{
    return (struct nk_gen_opts){ .sampling = nk_sampling_default(),
                                 .n_logprobs = -1,
                                 .n_prompt_logprobs = -1,
                                 .hold_ms = HOLD_MS };
}

const char *nk_finish_name(enum nk_finish f)
{
    static const char *const names[] = { "none", "eog", "stop", "length" };

    return (unsigned)f < sizeof names / sizeof names[0] ? names[f] : "none";
}

static uint64_t now_ns(const nk_gen *g)
{
    return nk_clock_now_ns(g->c->clock);
}

static void unref(nk_gen *g)
{
    if (atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&g->lock);
    nk_buf_release(&g->tail);
    nk__asked_unref(g->asked);
    free(g->open_bytes);
    free(g->said);
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

/* ---- what is a loss ---- */

/* The endings that are the loss of a worker, or of the way to it, or of what it had of the session.
 * The same request may fare better with another worker, or later with the same one. Everything else
 * would only be said again: that the request is wrong, that there is no room for it, that its time
 * is over, that a worker has another model or range than the route says, that what it computes is
 * broken.
 *
 * Stages pass the ending of those behind them on as it is, so these are the reasons of all of
 * them. */
static const struct loss {
    int code;
    const char *reason;
    /* Only of a session that was open: before that it is the refusal of a new one. */
    bool of_open;
} losses[] = {
    /* The connection to the first stage broke, or that of a stage to the next one. */
    { NK_E_UNAVAILABLE, "peer_gone", false },
    /* No connection: the process or the machine is gone, or comes back just now. */
    { NK_E_UNAVAILABLE, "unreachable", false },
    /* It ends in good order, and its sessions with it: the server, and the worker. */
    { NK_E_UNAVAILABLE, "shutting_down", false },
    { NK_E_UNAVAILABLE, "draining", false },
    /* It gave its memory back and with it what it had of the session; others may stand in. */
    { NK_E_UNAVAILABLE, "asleep", false },
    /* It starts, and has not loaded its slice yet. */
    { NK_E_UNAVAILABLE, "not_serving", false },
    /* Silent: hung, stopped, or behind a link that swallows everything. */
    { NK_E_DEADLINE, "stalled", false },
    /* A stage that heard nothing from the one before it, which was silent, and is back now. */
    { NK_E_DEADLINE, "idle", true },
    /* gRPC's own verdict, without a word from the other side: the stream was reset under it. */
    { NK_E_UNAVAILABLE, "unavailable", false },
    { NK_E_CANCELLED, "cancelled", false },
    { NK_E_INTERNAL, "internal_error", true },
    { NK_E_UNKNOWN, "unknown", true },
    /* A worker lost the session for want of memory, not the request for want of room. */
    { NK_E_EXHAUSTED, "no_memory", true },
    { NK_E_EXHAUSTED, "send_queue_full", true },
    /* The worker was taken out of the cluster, or started for a new plan: the route is old. */
    { NK_E_DENIED, "removed", true },
    /* What took a worker's place is one that the stage before it was not told of. */
    { NK_E_DENIED, "peer_not_allowed", true },
    { NK_E_PRECONDITION, "stale_epoch", true },
};

static bool is_loss(const nk_gen *g, const struct nk_error *e)
{
    if (g->cancelled)
        return false;
    if (g->link_lost)
        return true;
    for (size_t i = 0; i < sizeof losses / sizeof losses[0]; i++)
        if (losses[i].code == e->code && !strcmp(losses[i].reason, e->reason))
            return g->was_opened || !losses[i].of_open;
    return false;
}

/* A stage could not go on from what it and its neighbours hold. */
static bool is_misfit(const struct nk_error *e)
{
    return !strcmp(e->reason, "no_rollback") || !strcmp(e->reason, "gap") ||
           !strcmp(e->reason, "bad_resume") || !strcmp(e->reason, "bad_rows");
}

bool nk_gen_resumable(const nk_gen *g)
{
    return g->lost;
}

struct nk_gen_name nk_gen_name(const nk_gen *g)
{
    struct nk_gen_name name = { .attempt = g->attempt };

    memcpy(name.session, g->session, sizeof name.session);
    return name;
}

int nk_gen_blamed(const nk_gen *g)
{
    return g->blamed;
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

/* Not only as a part of a longer one (worker w1 of worker w10)? */
static bool has_name(const char *msg, const char *name)
{
    size_t n = strlen(name);

    for (const char *at = msg; (at = strstr(at, name)); at++)
        if (!isalnum((unsigned char)at[n]) && at[n] != '-' && at[n] != '_')
            return true;
    return false;
}

/* The message with the worker that is to blame before it, unless it names one: the one whose
 * address it has (the stages know each other by address only), else the first. */
static void name_worker(nk_gen *g, struct nk_error *e)
{
    const struct nk_cluster *c = &g->c->cluster;
    const struct nk_cluster_worker *blamed;
    /* That of who could not be dialled; the name is perhaps of the one that dialled. */
    bool by_address = !strcmp(e->reason, "unreachable") || !strcmp(e->reason, "peer_not_allowed");
    bool found = false;

    for (int i = c->n_workers - 1; i >= 0 && !found; i--)
        if (has_address(e->msg, c->workers[i].address)) {
            g->blamed = i;
            found = by_address; /* the last one; else the first */
        }
    for (int i = c->n_workers - 1; i >= 0 && !found; i--) {
        char named[80];

        snprintf(named, sizeof named, "worker %s", c->workers[i].id);
        if (has_name(e->msg, named)) {
            g->blamed = i;
            return;
        }
    }
    blamed = &c->workers[g->blamed];
    if (has_address(e->msg, blamed->address))
        nk_wrap(e->code, e, "worker %s", blamed->id);
    else
        nk__wrap_worker(e->code, e, blamed);
}

/* What comes now is what was waited for since a loss. */
static void end_pause(nk_gen *g)
{
    if (g->pause_ns)
        g->stats.recovery_us += (now_ns(g) - g->pause_ns) / 1000;
    g->pause_ns = 0;
}

/* The times by this side's clock: no stage knows those of a generation that was resumed, or lost
 * its end. */
static void take_times(nk_gen *g)
{
    uint64_t us = (g->last_token_ns - g->first_token_ns) / 1000;

    g->stats.prefill_us = g->stats.ttft_us;
    g->stats.decode_us = us > g->paused_us ? us - g->paused_us : 0;
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
    if (error && is_loss(g, error)) {
        if (g->finish_seen) { /* everything was said but the end */
            struct nk_gen_name name = nk_gen_name(g);

            error = NULL;
            take_times(g);
            if (g->asked->opts.hold_ms)
                nk_chain_let_go(c, &name, NULL);
        } else {
            g->lost = g->asked->opts.hold_ms > 0;
            if (!g->pause_ns)
                g->pause_ns = now_ns(g);
        }
    }
    if (!error)
        end_pause(g);
    g->stats.n_generated = g->n_tokens;
    g->stats.total_us = (now_ns(g) - g->start_ns) / 1000;
    g->stats.tail = nk_buf_str(&g->tail);
    g->stats.tail_size = g->tail.size;
    pthread_mutex_lock(&g->lock);
    g->ended = true;
    pthread_mutex_unlock(&g->lock);
    g->handlers.done(g->user, &g->stats, error);
    pthread_mutex_lock(&c->mutex);
    LIST_REMOVE(g, link);
    if (--c->n_running == 0)
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

/* Ends the call, because of g->failure. Stages hold a session whose call only breaks off; they are
 * told when nobody will come back for it. */
static void end_call(nk_gen *g)
{
    Nakshatra__V1__InferenceRequest request = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Cancel cancel = NAKSHATRA__V1__CANCEL__INIT;

    request.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL;
    request.cancel = &cancel;
    if (g->asked->opts.hold_ms && !is_loss(g, &g->failure))
        nk_call_cancel_with(g->call, &request.base);
    else
        nk_call_cancel(g->call);
}

/* The generation has failed with g->failure: ends the call, whose `end` does the rest. */
static void fail(nk_gen *g)
{
    g->state = GEN_FAILING;
    if (g->call)
        end_call(g);
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

static void cancel_now(nk_gen *g)
{
    if (g->state == GEN_FAILING || g->state == GEN_CLOSING)
        return;
    nk_fail(&g->failure, NK_E_CANCELLED, "cancelled", "the generation was cancelled");
    g->cancelled = true;
    g->state = GEN_FAILING;
    if (g->call)
        end_call(g);
    /* else it has not begun yet, and `begin` will see the state */
}

void nk__gens_cancel(nk_chain *c)
{
    nk_gen *g;

    pthread_mutex_lock(&c->mutex);
    LIST_FOREACH(g, &c->gens, link)
    {
        cancel_now(g);
    }
    pthread_mutex_unlock(&c->mutex);
}

static void cancel_posted(void *arg)
{
    nk_gen *g = arg;
    bool ended;

    pthread_mutex_lock(&g->lock);
    ended = g->ended;
    pthread_mutex_unlock(&g->lock);
    if (!ended)
        cancel_now(g);
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
    struct nk_computed firsts, its;

    if (o->n_stages != (size_t)c->n_workers) {
        bad_peer(g, "it opened a chain of %zu stages; the cluster file has %d", o->n_stages,
                 c->n_workers);
        return false;
    }
    first = o->stages[0];
    nk_computed_unpack(&firsts, first->computed, first->n_computed, first->llama_version);
    for (int i = 0; i < c->n_workers; i++) {
        const struct nk_cluster_worker *w = &c->workers[i];
        const Nakshatra__V1__StageInfo *s = o->stages[i];
        int code = NK_E_PRECONDITION;
        struct nk_error *e = &g->failure;

        nk_computed_unpack(&its, s->computed, s->n_computed, s->llama_version);
        if (nk__stage_compare(c, i, s, first->n_embd, e))
            ;
        else if (g->deterministic &&
                 strcmp(its.facts[NK_FACT_SESSIONS].value, NK_SESSIONS_APART) != 0)
            code = nk_fail(e, NK_E_INVALID, "not_deterministic",
                           "it does not say that its sessions share no KV cells, which a "
                           "deterministic request needs: start it with --deterministic");
        else if (!nk_computed_compare(&its, &firsts, c->workers[0].id, e))
            continue;
        nk__wrap_worker(code, e, w);
        fail(g);
        return false;
    }
    return true;
}

/* Positions that were computed by some stage before the loss, and that another one lacks. */
static void count_replayed(nk_gen *g, const Nakshatra__V1__Opened *o)
{
    uint64_t reached = 0;

    /* The last token's own position was perhaps not begun. */
    if (g->n_tokens)
        reached = (uint64_t)g->n_ids + (uint64_t)g->n_tokens - 1;
    for (size_t i = 0; i < o->n_stages && !g->n_tokens; i++)
        if (o->stages[i]->held > reached && o->stages[i]->held <= g->n_ids)
            reached = o->stages[i]->held;
    for (size_t i = 0; i < o->n_stages; i++)
        if (o->stages[i]->held < reached)
            g->stats.n_replayed += reached - o->stages[i]->held;
}

/* So much of the prompt is done. What was computed again after a loss is no news. */
static void tell_prefilled(nk_gen *g, int n_done)
{
    if (!g->asked->opts.progress || !g->handlers.prefilled || n_done <= g->n_prefilled)
        return;
    g->n_prefilled = n_done;
    g->handlers.prefilled(g->user, n_done, g->stats.n_reused);
}

/* A chunk of the prompt is through; without a count: a sign of life. */
static void step_done(nk_gen *g, const Nakshatra__V1__StepDone *d)
{
    if (d->n_done > g->n_ids)
        bad_peer(g, "it is done with %u of the prompt's %zu tokens", d->n_done, g->n_ids);
    else if (d->n_done && g->state == GEN_OPENING)
        bad_peer(g, "it is done with %u of the prompt's tokens before the session was open",
                 d->n_done);
    else if (g->state == GEN_RUNNING) /* a worker has several threads: a token may overtake this */
        tell_prefilled(g, (int)d->n_done);
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
    if (g->was_opened && o->seed != g->stats.seed) {
        bad_peer(g, "it went on with seed %u; the session has %u", o->seed, g->stats.seed);
        return;
    }
    /* Older workers do not tell the limit. */
    if (o->n_predict && g->n_predict && o->n_predict > (uint32_t)g->n_predict) {
        bad_peer(g, "it has a limit of %u tokens; %d were asked for", o->n_predict, g->n_predict);
        return;
    }
    /* Who took a lost worker's place may have less room. */
    if (o->n_predict && g->n_tokens && o->n_predict <= (uint32_t)g->n_tokens) {
        bad_peer(g, "it has a limit of %u tokens; %d came already", o->n_predict, g->n_tokens);
        return;
    }
    if (o->n_predict && o->n_predict <= INT32_MAX)
        g->n_predict = (int)o->n_predict;
    if (!g->was_opened)
        g->chunk = o->chunk;
    if (g->attempt) {
        count_replayed(g, o);
        g->stats.n_recovered += !g->told_opened; /* what did not fit is no second loss */
    } else {
        g->stats.n_reused = (int)o->n_reused;
    }
    g->stats.n_prompt = (int)o->n_prompt;
    g->stats.seed = o->seed;
    for (int i = 0; i < g->c->cluster.n_workers; i++) /* as route_fits has seen */
        nk_computed_unpack(&g->c->known[i].computed, o->stages[i]->computed,
                           o->stages[i]->n_computed, o->stages[i]->llama_version);
    g->was_opened = true;
    g->state = GEN_RUNNING;
    if (!g->told_opened && g->handlers.opened)
        g->handlers.opened(g->user);
    g->told_opened = true;
    tell_prefilled(g, g->stats.n_reused);
}

/* Before Opened of a resumed session: a stage gets the rows that it lacks. A sign of life. */
static void replaying(nk_gen *g, const Nakshatra__V1__Replaying *r)
{
    char id[64];

    if (!g->attempt || g->state != GEN_OPENING || r->total > INT32_MAX || r->done > r->total) {
        bad_peer(g, "it replays %u rows of %u %s", r->done, r->total,
                 g->attempt && g->state == GEN_OPENING ? "" : "for a session that is not resumed");
        return;
    }
    nk_visible_line(id, sizeof id, r->worker_id);
    if (g->handlers.replaying)
        g->handlers.replaying(g->user, id, (int)r->done, (int)r->total);
}

static void put_probs(struct nk_gen_token *out, const Nakshatra__V1__TokenProb *prob,
                      Nakshatra__V1__TokenProb *const *top, size_t n_top)
{
    if (prob) {
        out->logprob = prob->logprob;
        out->piece = (const char *)prob->text.data;
        out->piece_size = prob->text.len;
    }
    for (size_t i = 0; i < n_top; i++)
        out->top[out->n_top++] =
            (struct nk_gen_top){ top[i]->id, top[i]->logprob, (const char *)top[i]->text.data,
                                 top[i]->text.len };
}

/* Log-probabilities of the prompt's tokens. */
static void prompt_probs(nk_gen *g, const Nakshatra__V1__PromptProbs *m)
{
    int n_max = g->asked->opts.n_prompt_logprobs;

    if (g->state != GEN_RUNNING || n_max < 0 || g->n_tokens || m->pos != g->n_prompted ||
        m->n_probs > g->n_ids - g->n_prompted) {
        bad_peer(g, "it tells %zu log-probabilities of the prompt from token %u on; %s", m->n_probs,
                 m->pos, n_max < 0 ? "none were asked for" : "others come next");
        return;
    }
    for (size_t i = 0; i < m->n_probs && g->state == GEN_RUNNING; i++) {
        const Nakshatra__V1__PromptProb *p = m->probs[i];
        struct nk_gen_token out = { .index = (int)g->n_prompted, .text = "" };

        if (!p->prob || p->prob->id != g->asked->opts.ids[g->n_prompted] ||
            p->n_top > (size_t)n_max) {
            bad_peer(g, "it tells a log-probability of the prompt's token %zu, which is not that",
                     g->n_prompted);
            return;
        }
        out.id = p->prob->id;
        put_probs(&out, p->prob, p->top, p->n_top);
        g->n_prompted++;
        if (g->handlers.prompted)
            g->handlers.prompted(g->user, &out);
    }
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
    } else if (g->asked->opts.n_prompt_logprobs >= 0 && g->n_prompted < g->n_ids) {
        fail_with(g, NK_E_UNIMPLEMENTED, "no_prompt_logprobs",
                  "log-probabilities of %zu of the prompt's %zu tokens came: a worker of the chain "
                  "is older than this program, and tells none",
                  g->n_prompted - 1, g->n_ids);
    } else if (t->text.len > TEXT_BYTES_MAX || !nk_utf8_valid(t->text.data, t->text.len, &at)) {
        bad_peer(g, "token %d has a text of %zu bytes that is too long or not UTF-8", g->n_tokens,
                 t->text.len);
    } else if ((g->n_logprobs >= 0) != (t->prob != NULL) || t->n_top > (size_t)n_top_max) {
        bad_peer(g, "token %d has %s log-probability and %zu alternatives; %d were asked for",
                 g->n_tokens, t->prob ? "a" : "no", t->n_top, n_top_max);
    } else {
        out.text = (const char *)t->text.data;
        out.text_size = t->text.len;
        put_probs(&out, t->prob, t->top, t->n_top);
        if (!out.text)
            out.text = "";
        g->finish_seen = t->finish != NAKSHATRA__V1__FINISH_REASON__FINISH_NONE;
        /* In case that the end is lost. */
        g->stats.finish = finish_of(t->finish);
        if (t->stop_string.len && t->stop_string.len < sizeof g->stats.stop_string)
            memcpy(g->stats.stop_string, t->stop_string.data, t->stop_string.len);
        tell_prefilled(g, (int)g->n_ids);
        if (g->first_token_ns && g->pause_ns)
            g->paused_us += (g->heard_ns - g->pause_ns) / 1000;
        if (!g->first_token_ns) {
            g->first_token_ns = g->heard_ns;
            g->stats.ttft_us = (g->first_token_ns - g->start_ns) / 1000;
        }
        g->last_token_ns = g->heard_ns;
        end_pause(g);
        if (t->finish == NAKSHATRA__V1__FINISH_REASON__FINISH_EOG) {
            /* Not part of what was generated; what it brings along is text that was held back. */
            if (nk_buf_add(&g->tail, t->text.data, t->text.len, &g->failure))
                fail(g);
            return;
        }
        if (g->asked->opts.hold_ms) {
            if (nk_array_grow(g->said, g->said_capacity, (size_t)g->n_tokens + 1, IDS_MAX,
                              &g->failure)) {
                fail(g);
                return;
            }
            g->said[g->n_tokens] = t->id;
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
        memset(s->stop_string, 0, sizeof s->stop_string);
        if (d->stop_string.len) /* an empty one has no address */
            memcpy(s->stop_string, d->stop_string.data, d->stop_string.len);
        s->prefill_us = d->prefill_us;
        s->decode_us = d->decode_us;
        if (g->attempt)
            take_times(g);
        s->n_stages = (int)d->n_stages;
        for (size_t i = 0; i < d->n_stages; i++) {
            const Nakshatra__V1__StageTiming *t = d->stages[i];

            nk_visible_line(s->stages[i].worker_id, sizeof s->stages[i].worker_id, t->worker_id);
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
    g->heard_ns = g->last_alive_ns = now_ns(g);
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
        step_done(g, r->step_done);
        break;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_PROMPT_PROBS:
        prompt_probs(g, r->prompt_probs);
        break;
    case NAKSHATRA__V1__INFERENCE_REPLY__KIND_REPLAYING:
        replaying(g, r->replaying);
        break;
    default:
        bad_peer(g, "a message of %zu bytes that is no InferenceReply", msg.size);
    }
    nk_arena_reset(g->c->arena);
}

static void open_session(nk_gen *g);

static void call_ended(nk_call *call, void *user, const struct nk_error *status)
{
    nk_gen *g = user;

    g->link_lost = g->state != GEN_FAILING && nk_call_ending(call) == NK_ENDING_LOST;
    g->call = NULL;
    if (g->state == GEN_CLOSING) {
        /* Everything was said; a broken end of the stream takes nothing back. */
        finish_when_quiet(g, NULL);
        return;
    }
    if ((g->state == GEN_OPENING || g->state == GEN_RUNNING) && !g->finish_seen && g->attempt &&
        !g->forget_held && status && is_misfit(status)) {
        g->attempt++; /* whoever took the last one up refuses it a second time */
        g->forget_held = true;
        g->n_before = g->n_tokens;
        if (!g->pause_ns)
            g->pause_ns = now_ns(g);
        open_session(g);
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
        /* A stream that was reset: CANCELLED would say that somebody wanted it. */
        if (g->failure.code == NK_E_CANCELLED && is_loss(g, &g->failure)) {
            g->failure.code = NK_E_UNAVAILABLE;
            snprintf(g->failure.reason, sizeof g->failure.reason, "peer_gone");
        }
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
    g->last_alive_ns = now_ns(g);
    g->ping_answered = true;
}

static void ping_ended(nk_call *call, void *user, const struct nk_error *status)
{
    nk_gen *g = user;

    (void)call;
    g->ping = NULL;
    if (!g->call)
        finish_when_quiet(g, g->state == GEN_CLOSING ? NULL : &g->failure);
    else if (status && !g->ping_answered && g->state != GEN_FAILING && g->state != GEN_CLOSING &&
             g->n_tokens == g->n_before)
        fail_with(g, NK_E_DEADLINE, "stalled",
                  "silent for %llu ms, and it does not answer Info: %s",
                  (unsigned long long)((now_ns(g) - g->heard_ns) / 1000000), status->msg);
}

static void silence_due(void *arg)
{
    static const struct nk_call_handlers ping_handlers = { .message = ping_message,
                                                           .end = ping_ended };
    nk_gen *g = arg;
    /* A worker that is heard of computes, as far as anybody can tell. */
    bool heard = g->call && nk_call_is_heard(g->call);
    uint64_t patience = (uint64_t)g->stall_ms * (heard ? NK_RPC_PATIENCE_HEARD : 1);
    uint64_t now = now_ns(g), limit = patience + STALL_MARGIN_MS;
    uint64_t chunk = (uint64_t)g->stall_ms + STALL_MARGIN_MS;
    uint64_t silent = (now - g->heard_ns) / 1000000, quiet = (now - g->last_alive_ns) / 1000000;

    g->silence_timer = NULL;
    if (g->state == GEN_FAILING || g->state == GEN_CLOSING)
        return;
    if (quiet < limit) { /* it was heard meanwhile */
        watch_silence(g, limit - quiet);
        return;
    }
    if (g->n_tokens > g->n_before ||
        silent >= ROOM_WAIT_MS + chunk * (2 + (g->n_ids + (size_t)g->n_before) / CHUNK_ROWS_MIN)) {
        fail_with(g, NK_E_DEADLINE, "stalled", "silent for %llu ms after %d tokens%s (--stall-ms)",
                  (unsigned long long)silent, g->n_tokens, heard ? ", though it is there" : "");
        return;
    }
    if (!g->ping) {
        g->ping_answered = false;
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

/* Packs what opens this attempt of the session. */
static int pack_open(nk_gen *g, struct nk_error *err)
{
    struct nk__resumption r = { g->attempt, g->chunk, g->said, (size_t)g->n_tokens,
                                g->forget_held };
    struct nk_gen_opts o = g->asked->opts;

    if (g->was_opened) { /* no second draw, no second look at how much room there is */
        o.sampling.seed = g->stats.seed;
        o.n_predict = g->n_predict;
    }
    if (g->deadline_ms && g->attempt) {
        uint64_t past_ms = (now_ns(g) - g->start_ns) / 1000000;

        o.deadline_ms = past_ms < g->deadline_ms ? g->deadline_ms - (uint32_t)past_ms : 1;
    }
    return nk__open_pack(&g->open_bytes, &g->open_size, &g->c->cluster, g->session, &o,
                         g->attempt ? &r : NULL, err);
}

/* [net thread] Sends Open, packed before or here, on a new call. */
static void open_session(nk_gen *g)
{
    static const struct nk_call_handlers handlers = { .message = message, .end = call_ended };
    struct nk_error err;
    int rc = g->open_bytes ? 0 : pack_open(g, &err);

    g->state = GEN_OPENING;
    g->heard_ns = g->last_alive_ns = now_ns(g);
    if (!rc)
        rc = nk_call_start(&g->call, g->c->channels[0], NK__PATH_INFERENCE, 0, &handlers, g, &err);
    if (!rc)
        rc = nk_call_send(g->call, g->open_bytes, g->open_size, &err);
    free(g->open_bytes);
    g->open_bytes = NULL;
    if (rc) {
        g->failure = err;
        nk__wrap_worker(rc, &g->failure, first_worker(g));
        fail(g);
    }
}

static void begin(void *arg)
{
    nk_gen *g = arg;
    uint64_t past_ms = (now_ns(g) - g->start_ns) / 1000000;

    if (g->state == GEN_FAILING) { /* cancelled before it began */
        finish(g, &g->failure);
        return;
    }
    if (g->deadline_ms)
        g->deadline_timer = nk_timer_start(
            g->c->net, past_ms < g->deadline_ms ? g->deadline_ms - (uint32_t)past_ms : 1,
            deadline_passed, g);
    watch_silence(g, (uint64_t)g->stall_ms + STALL_MARGIN_MS);
    open_session(g);
}

/* Not yet on its way. Takes asked. */
static nk_gen *new_gen(nk_chain *c, struct nk__asked *asked, const struct nk_gen_handlers *handlers,
                       void *user)
{
    nk_gen *g = asked ? calloc(1, sizeof *g) : NULL;
    const struct nk_gen_opts *o = asked ? &asked->opts : NULL;

    if (!g) {
        nk__asked_unref(asked);
        return NULL;
    }
    atomic_init(&g->refs, 1);
    pthread_mutex_init(&g->lock, NULL);
    nk_buf_init(&g->tail, 2 * TEXT_BYTES_MAX);
    g->c = c;
    memcpy(g->model_sha256, c->cluster.model_sha256, sizeof g->model_sha256);
    g->asked = asked;
    g->handlers = *handlers;
    g->user = user;
    g->n_ids = o->n_ids;
    g->n_prefilled = -1;
    g->n_prompted = 1;
    g->n_predict = o->n_predict;
    g->n_logprobs = o->n_logprobs;
    g->deterministic = o->deterministic;
    g->deadline_ms = o->deadline_ms;
    g->stall_ms = o->stall_ms ? o->stall_ms : STALL_MS;
    g->start_ns = now_ns(g);
    g->stats.n_prompt = (int)o->n_ids;
    return g;
}

/* Packs its Open and sends it on its way; *out is set before anything can come back. On failure it
 * is freed. */
static int launch(nk_gen **out, nk_gen *g, struct nk_error *err)
{
    nk_chain *c = g->c;
    int rc = pack_open(g, err);

    if (rc) {
        unref(g);
        return rc;
    }
    atomic_fetch_add(&g->refs, 1);
    pthread_mutex_lock(&c->mutex);
    LIST_INSERT_HEAD(&c->gens, g, link);
    c->n_running++;
    pthread_mutex_unlock(&c->mutex);
    *out = g; /* before `begin`: a handler that runs at once may want it */
    nk_net_post(c->net, begin, g);
    return 0;
}

int nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                 const struct nk_gen_handlers *handlers, void *user, struct nk_error *err)
{
    uint8_t session[16];
    nk_gen *g;
    int rc;

    *out = NULL;
    rc = nk__open_check(&c->cluster, opts, err);
    if (!rc)
        rc = nk_chance_fill(c->chance, session, sizeof session, err);
    if (rc)
        return rc;
    g = new_gen(c, nk__asked_new(opts), handlers, user);
    if (!g)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    memcpy(g->session, session, sizeof session);
    return launch(out, g, err);
}

int nk_gen_resume(nk_gen **out, nk_chain *c, const nk_gen *lost,
                  const struct nk_gen_handlers *handlers, void *user, struct nk_error *err)
{
    nk_gen *g;

    *out = NULL;
    if (!lost->lost)
        return nk_fail(err, NK_E_PRECONDITION, "not_resumable",
                       "the generation did not end by the loss of a worker, or is held by none");
    if (strcmp(c->cluster.model_sha256, lost->model_sha256) != 0)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "the generation is of model %s, the chain of model %s", lost->model_sha256,
                       c->cluster.model_sha256);
    g = new_gen(c, nk__asked_ref(lost->asked), handlers, user);
    if (!g || nk_array_grow(g->said, g->said_capacity, (size_t)lost->n_tokens, IDS_MAX, NULL)) {
        if (g)
            unref(g);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    memcpy(g->session, lost->session, sizeof g->session);
    if (lost->n_tokens)
        memcpy(g->said, lost->said, (size_t)lost->n_tokens * sizeof *g->said);
    g->n_tokens = g->n_before = lost->n_tokens;
    g->n_prefilled = lost->n_prefilled;
    g->n_predict = lost->n_predict;
    g->chunk = lost->chunk;
    g->attempt = lost->attempt + 1;
    g->was_opened = lost->was_opened;
    g->start_ns = lost->start_ns;
    g->first_token_ns = lost->first_token_ns;
    g->last_token_ns = lost->last_token_ns;
    g->pause_ns = lost->pause_ns;
    g->paused_us = lost->paused_us;
    g->stats = lost->stats;
    return launch(out, g, err);
}
