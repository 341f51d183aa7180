/* Open: what it asks is checked, and it travels along the route; Opened comes back the same way
 * with what every stage is. Everything here runs on the net thread. */
#include "worker/session_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"

enum {
    STALL_MARGIN_MS_MAX = 500,
    /* Open is kept as it came until it has gone to the next stage, and a session may wait for room
     * before. Besides the prompt there are 16 stop strings of 256 bytes, 1,024 biases of 16, a
     * grammar of 64 KiB and a route of 64 addresses: less than half of this. */
    OPEN_REST_BYTES_MAX = 256 << 10,
    /* Logits of a chunk, where those of every row are wanted: its rows are as few as that takes. */
    CHUNK_LOGITS_BYTES_MAX = 64 << 20,
    PROMPT_ID_BYTES_MAX = 6, /* a tag, and a varint of 31 bits */
};

typedef struct nk_session session;

/* ---- what Open asks ---- */

static void route_describe(char *out, size_t size, const Nakshatra__V1__Open *m)
{
    size_t at = 0;

    out[0] = '\0';
    for (size_t i = 0; i < m->n_route && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%u-%u", i ? "," : "",
                               m->route[i]->layer_begin, m->route[i]->layer_end);
}

static int check_route(const nk_worker *w, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(w);
    char text[256];

    route_describe(text, sizeof text, m);
    if (info->pooling)
        return nk_fail(err, NK_E_INVALID, "embedding_model",
                       "this model makes vectors of texts (pooling %s) and generates none: served "
                       "(serve, up) it answers /v1/embeddings or, with pooling rank, /v1/rerank",
                       nk_pooling_text(info->pooling));
    if (m->n_route == 0 || m->n_route > NK_ROUTE_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_route",
                       "a route of %zu stages; 1 to %d are possible", m->n_route, NK_ROUTE_MAX);
    if (m->stage_idx >= m->n_route)
        return nk_fail(err, NK_E_INVALID, "bad_route", "stage %u of a route of %zu", m->stage_idx,
                       m->n_route);
    if (m->model_sha256[0] && info->model_sha256[0] &&
        strcmp(m->model_sha256, info->model_sha256) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "the request is for model %.12s..., this worker has %.12s...",
                       m->model_sha256, info->model_sha256);
    if (w->opts.epoch && m->route[m->stage_idx]->epoch != w->opts.epoch)
        return nk_fail(err, NK_E_PRECONDITION, "stale_epoch",
                       "the request is of epoch %llu of the cluster's plan, this worker of epoch "
                       "%llu",
                       (unsigned long long)m->route[m->stage_idx]->epoch,
                       (unsigned long long)w->opts.epoch);
    if (m->route[m->stage_idx]->layer_begin != (uint32_t)info->layer_begin ||
        m->route[m->stage_idx]->layer_end != (uint32_t)info->layer_end)
        return nk_fail(err, NK_E_PRECONDITION, "range_mismatch",
                       "the route has layers %u-%u here, this worker has %d-%d",
                       m->route[m->stage_idx]->layer_begin, m->route[m->stage_idx]->layer_end,
                       info->layer_begin, info->layer_end);
    if (m->route[0]->layer_begin != 0 ||
        m->route[m->n_route - 1]->layer_end != (uint32_t)info->layer_count)
        return nk_fail(err, NK_E_PRECONDITION, "bad_route",
                       "the route %s does not cover layers 0-%d", text, info->layer_count);
    for (size_t i = 1; i < m->n_route; i++)
        if (m->route[i]->layer_begin != m->route[i - 1]->layer_end ||
            m->route[i]->layer_end <= m->route[i]->layer_begin)
            return nk_fail(err, NK_E_PRECONDITION, "bad_route",
                           "the route %s has a gap or an overlap", text);
    return 0;
}

int nk__open_check_gateway(const session *s, struct nk_error *err)
{
    const nk_worker *w = s->w;

    if (w->identity && nk_call_role(s->up) != NK_ROLE_GATEWAY)
        return nk_fail(err, NK_E_DENIED, "not_allowed",
                       "member %s may not open a first stage: its role is %s, and gateway is "
                       "needed",
                       nk_call_identity(s->up), nk_role_text(nk_call_role(s->up)));
    return 0;
}

static int parse_limits(session *s, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(s->w);
    const Nakshatra__V1__Limits *l = m->limits;
    uint32_t n_predict = l ? l->n_predict : 0,
             stall_ms = l && l->stall_ms ? l->stall_ms : s->w->opts.stall_ms, margin;

    if (s->is_first || s->resumed || s->n_prompt_logprobs >= 0) {
        if (m->n_prompt_ids == 0)
            return nk_fail(err, NK_E_INVALID, "no_prompt", "the prompt has no tokens");
        if (m->n_prompt_ids >= (size_t)info->n_ctx_seq)
            return nk_fail(
                err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                "the prompt has %zu tokens; the context holds %d, prompt and answer together",
                m->n_prompt_ids, info->n_ctx_seq);
        s->n_prompt = (int)m->n_prompt_ids;
    }
    if (s->is_first) {
        int share = info->n_ctx / info->n_seq_max, room = info->n_ctx_seq - s->n_prompt;

        /* Without a limit a session gets the share of one, or half as much for an answer to a long
         * prompt. */
        if (n_predict == 0)
            n_predict = (uint32_t)(share - s->n_prompt > share / 2 ? share - s->n_prompt
                                   : share / 2                     ? share / 2
                                                                   : 1);
        if (n_predict > (uint32_t)room)
            n_predict = (uint32_t)room;
        /* The last token's row is never needed. */
        s->n_tokens_max = s->n_prompt + (int)n_predict;
    } else {
        if (m->n_tokens_max == 0 || m->n_tokens_max > (uint32_t)info->n_ctx_seq)
            return nk_fail(err, NK_E_OUT_OF_RANGE, "context_length_exceeded",
                           "the session may need %u tokens of KV; this worker's context holds %d",
                           m->n_tokens_max, info->n_ctx_seq);
        s->n_tokens_max = (int)m->n_tokens_max;
        if (n_predict == 0 || n_predict > m->n_tokens_max)
            n_predict = m->n_tokens_max;
    }
    s->n_predict = (int)n_predict;
    if (m->n_generated_ids >= n_predict || (m->n_generated_ids && !s->resumed) ||
        s->n_prompt + (int)m->n_generated_ids >= s->n_tokens_max + !s->resumed)
        return nk_fail(err, NK_E_INVALID, "bad_resume",
                       "%zu tokens of at most %u after a prompt of %d are said to be there "
                       "already%s",
                       m->n_generated_ids, n_predict, s->n_prompt,
                       s->resumed ? "" : ", and this is a new session");
    s->n_said = (int)m->n_generated_ids;
    s->hold_ms = m->hold_ms < NK_HOLD_MS_MAX ? m->hold_ms : NK_HOLD_MS_MAX;
    if (s->n_prompt_logprobs >= 0) /* what was said of the prompt is not said again */
        s->hold_ms = 0;
    /* The stage nearest to the one that is silent gives up first, so that the right worker is
     * named; all of them within stall_ms. */
    margin = stall_ms / 10 < STALL_MARGIN_MS_MAX ? stall_ms / 10 : STALL_MARGIN_MS_MAX;
    s->stall_ms = stall_ms - margin * (m->stage_idx < 9 ? m->stage_idx : 9);
    if (l && l->deadline_ms)
        s->deadline_ns = s->opened_ns + l->deadline_ms * 1000000ull;
    return 0;
}

static int check_stops(const Nakshatra__V1__Open *m, struct nk_error *err)
{
    if (m->n_stop > NK_STOP_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_stop", "%zu stop strings; at most %d are possible",
                       m->n_stop, NK_STOP_MAX);
    for (size_t i = 0; i < m->n_stop; i++)
        if (m->stop[i].len == 0 || m->stop[i].len > NK_STOP_BYTES_MAX ||
            memchr(m->stop[i].data, 0, m->stop[i].len))
            return nk_fail(err, NK_E_INVALID, "bad_stop",
                           "stop string %zu has %zu bytes; 1 to %d without NUL are possible", i,
                           m->stop[i].len, NK_STOP_BYTES_MAX);
    return 0;
}

/* What only the last stage uses is held against its ceilings by every stage: it lies in the memory
 * of each. */
static bool same_host(const char *a, const char *b)
{
    const char *colon = strrchr(a, ':'), *other = strrchr(b, ':');

    if (nk_address_is_loopback(a) && nk_address_is_loopback(b))
        return true;
    return colon && other && colon - a == other - b && !memcmp(a, b, (size_t)(colon - a));
}

/* How many stages of the route can compute at once. Where each of them has all cores of a machine,
 * those that share it with this one only take them from each other, and count as one: they take
 * turns, each with the rows of all. */
static int stages_at_once(const nk_worker *w, const Nakshatra__V1__Open *m)
{
    int n = (int)m->n_route;

    if (w->opts.shared_cores && nk__stage_info(w)->n_threads >= nk_cpu_count())
        for (size_t i = 1; i < m->n_route; i++)
            n -= same_host(m->route[0]->address, m->route[i]->address);
    return n;
}

static int check_sizes(const Nakshatra__V1__Open *m, size_t size, struct nk_error *err)
{
    struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];
    struct nk_sampling sampling;
    size_t prompt = m->stage_idx == 0 || m->attempt || m->prompt_logprobs
                        ? (m->n_prompt_ids + m->n_generated_ids) * PROMPT_ID_BYTES_MAX
                        : 0;
    int rc = check_stops(m, err);

    if (!rc)
        rc = nk__wire_sampling(&sampling, bias, m->sampling, err);
    if (!rc && size > prompt + OPEN_REST_BYTES_MAX)
        rc = nk_fail(err, NK_E_INVALID, "bad_request",
                     "Open has %zu bytes besides the prompt; at most %d are taken", size - prompt,
                     OPEN_REST_BYTES_MAX);
    return rc;
}

/* For logs. The id is one of NK_SESSION_ID_BYTES. */
static void set_name(session *s, const Nakshatra__V1__Open *m)
{
    const uint8_t *id = m->session.data;

    snprintf(s->name, sizeof s->name, "%02x%02x%02x%02x", id[0], id[1], id[2], id[3]);
}

/* ---- the sampler ---- */

/* A grammar and DRY look at the whole vocabulary, and a hostile grammar takes half a second until
 * its first state is known. So such a sampler is made aside, not on the thread that all sessions
 * and their heartbeats share; then its Open is received again, from the beginning. */
struct making {
    session *s;     /* a reference */
    uint8_t *bytes; /* the Open message */
    size_t size;
    struct nk_sampling sampling;
    struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];
    char *grammar; /* a copy */
    const struct llama_vocab *vocab;
    int n_ctx;
    nk_sampler *sampler;
    int rc;
    struct nk_error err;
};

static void making_free(struct making *m)
{
    if (!m)
        return;
    if (m->s)
        nk__session_unref(m->s);
    nk_sampler_free(m->sampler);
    free(m->grammar);
    free(m->bytes);
    free(m);
}

static int receive_again(session *s, const struct making *made, struct nk_error *err)
{
    Nakshatra__V1__InferenceRequest *m;

    nk_arena_reset(s->w->arena);
    m = nakshatra__v1__inference_request__unpack(nk_arena_allocator(s->w->arena), made->size,
                                                 made->bytes);
    if (!m)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for an Open of %zu bytes",
                       made->size);
    return nk__open_receive(s, m->open, (struct nk_bytes){ made->bytes, made->size }, err);
}

/* [net thread] */
static void sampler_made(void *arg)
{
    struct making *m = arg;
    session *s = m->s;
    int rc = m->rc;

    s->making = false;
    if (!s->closed) {
        s->compute.sampler = m->sampler;
        m->sampler = NULL;
        if (!rc)
            rc = receive_again(s, m, &m->err);
        if (rc)
            nk__session_fail(s, &m->err);
    }
    making_free(m);
}

/* [aside] */
static void make_sampler(void *arg)
{
    struct making *m = arg;

    m->rc = nk_sampler_new(&m->sampler, m->vocab, &m->sampling, m->n_ctx, NULL, &m->err);
    nk_net_post(m->s->w->net, sampler_made, m);
}

/* Here, since chance is this thread's. */
static int draw_seed(const nk_worker *w, struct nk_sampling *sampling, struct nk_error *err)
{
    int rc = 0;

    if (sampling->seed == NK_SEED_RANDOM)
        rc = nk_chance_fill(w->opts.chance, &sampling->seed, sizeof sampling->seed, err);
    if (!rc && sampling->seed == NK_SEED_RANDOM) /* which libllama would not take for a seed */
        sampling->seed = 0;
    return rc;
}

/* *later: the sampler is being made, and Open is received again when it is there. */
static int make_slow_sampler(session *s, const Nakshatra__V1__Open *open, struct nk_bytes bytes,
                             bool *later, struct nk_error *err)
{
    const nk_vocab *vocab = nk__engine_vocab(s->w->engine);
    struct making *m;
    int rc;

    *later = false;
    if (!vocab || s->compute.sampler || open->stage_idx + 1 != open->n_route)
        return 0;
    rc = check_sizes(open, bytes.size, err);
    if (rc)
        return rc;
    m = calloc(1, sizeof *m);
    if (!m)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a sampler");
    rc = nk__wire_sampling(&m->sampling, m->bias, open->sampling, err);
    if (rc || (!m->sampling.grammar && m->sampling.dry_multiplier == 0))
        goto out;
    rc = draw_seed(s->w, &m->sampling, err);
    if (rc)
        goto out;
    m->grammar = m->sampling.grammar ? strdup(m->sampling.grammar) : NULL;
    m->bytes = malloc(bytes.size);
    if (!m->bytes || (m->sampling.grammar && !m->grammar)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a sampler");
        goto out;
    }
    memcpy(m->bytes, bytes.data, bytes.size);
    m->size = bytes.size;
    m->sampling.grammar = m->grammar;
    m->vocab = nk_vocab_llama(vocab);
    m->n_ctx = nk__stage_info(s->w)->n_ctx;
    m->s = nk__session_ref(s);
    s->making = *later = true;
    set_name(s, open);
    nk__engine_do_aside(s->w->engine, make_sampler, m);
    m = NULL;
out:
    making_free(m);
    return rc;
}

/* The sampler, where it was not made before, and the detokenizer. The sizes of what goes in were
 * checked. */
static int make_last_stage(session *s, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    const nk_vocab *vocab = nk__engine_vocab(s->w->engine);
    struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];
    const char *stops[NK_STOP_MAX];
    char texts[NK_STOP_MAX][NK_STOP_BYTES_MAX + 1];
    struct nk_sampling sampling;
    int rc = 0;

    if (!vocab)
        return nk_fail(err, NK_E_UNAVAILABLE, "asleep", "the worker is asleep");
    for (size_t i = 0; i < m->n_stop; i++) {
        memcpy(texts[i], m->stop[i].data, m->stop[i].len);
        texts[i][m->stop[i].len] = '\0';
        stops[i] = texts[i];
    }
    if (!s->compute.sampler) {
        rc = nk__wire_sampling(&sampling, bias, m->sampling, err);
        if (!rc)
            rc = nk_sampler_new(&s->compute.sampler, nk_vocab_llama(vocab), &sampling,
                                nk__stage_info(s->w)->n_ctx, s->w->opts.chance, err);
    }
    if (!rc)
        rc = nk_detok_new(&s->compute.detok, vocab, stops, m->n_stop, s->special, err);
    return rc;
}

session *nk__session_find(const nk_worker *w, const uint8_t *id)
{
    session *s;

    for (int i = 0; i < NK_SESSION_STATES; i++)
        TAILQ_FOREACH(s, &w->sessions[i].head, link)
        {
            if (s->opened_ns && memcmp(s->id, id, NK_SESSION_ID_BYTES) == 0)
                return s;
        }
    return NULL;
}

/* Whether s may have the id that h has. */
static int check_id(const session *h, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    if (!h)
        return 0;
    if (!m->attempt)
        return nk_fail(
            err, NK_E_EXISTS, "session_exists",
            "a session with this id is open or kept already; ids are random and used once");
    if (m->attempt <= h->attempt)
        return nk_fail(err, NK_E_PRECONDITION, "stale_attempt",
                       "the session was resumed for the %u. time already, and this is the %u.",
                       h->attempt, m->attempt);
    return 0;
}

/* The ids that are fed: the prompt, and of a session that is resumed what was said. */
static int take_ids(session *s, const Nakshatra__V1__Open *m, struct nk_error *err)
{
    int n_vocab = nk__stage_info(s->w)->n_vocab;
    size_t n = m->n_prompt_ids + m->n_generated_ids;

    if (!nk__step_ids_valid(m->prompt_ids, m->n_prompt_ids, n_vocab, err) ||
        !nk__step_ids_valid(m->generated_ids, m->n_generated_ids, n_vocab, err))
        return err ? err->code : NK_E_INVALID;
    s->feed = malloc(n * sizeof *s->feed);
    if (!s->feed)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a prompt of %zu tokens", n);
    memcpy(s->feed, m->prompt_ids, m->n_prompt_ids * sizeof *s->feed);
    if (m->n_generated_ids)
        memcpy(s->feed + m->n_prompt_ids, m->generated_ids, m->n_generated_ids * sizeof *s->feed);
    return 0;
}

static int chunk_for_logits(const session *s)
{
    int n = (int)(CHUNK_LOGITS_BYTES_MAX / sizeof(float)) / nk__stage_info(s->w)->n_vocab;

    n = n > 1 ? n : 1;
    return n < s->chunk ? n : s->chunk;
}

/* Rows on the wire. */
static size_t row_bytes(const session *s)
{
    return (size_t)nk__stage_info(s->w)->n_embd * (s->f16 ? 2 : 4);
}

/* Whether it, or one that continues it, may have to go back. */
static bool wants_checkpoints(const session *s)
{
    return !nk__stage_info(s->w)->can_rollback && s->w->checkpoints.limits.session_bytes &&
           (s->reuse || s->hold_ms);
}

int nk__open_receive(session *s, const Nakshatra__V1__Open *m, struct nk_bytes bytes,
                     struct nk_error *err)
{
    nk_worker *w = s->w;
    session *h;
    bool later;
    int rc;

    if (s->state != NK_SESSION_NEW || s->opened_ns || s->making)
        return nk_fail(err, NK_E_INVALID, "unexpected_message", "Open was sent twice");
    if (w->state != NK_WORKER_SERVING)
        return nk_fail(
            err, NK_E_UNAVAILABLE, w->state == NK_WORKER_DRAINING ? "draining" : "asleep",
            w->state == NK_WORKER_DRAINING ? "the worker is shutting down and takes no new sessions"
                                           : "the worker is asleep; rpc Wake wakes it");
    if (m->session.len != NK_SESSION_ID_BYTES)
        return nk_fail(err, NK_E_INVALID, "bad_session", "a session id of %zu bytes; %d are right",
                       m->session.len, NK_SESSION_ID_BYTES);
    rc = m->stage_idx == 0 ? nk__open_check_gateway(s, err) : 0;
    if (!rc)
        rc = check_route(w, m, err);
    if (rc)
        return rc;
    if (m->deterministic && !w->opts.deterministic)
        return nk_fail(err, NK_E_INVALID, "not_deterministic",
                       "a deterministic request needs workers whose sessions share no KV cells: "
                       "start every worker (or `up`) with --deterministic");
    h = nk__session_find(w, m->session.data);
    rc = check_id(h, m, err);
    if (!rc)
        rc = make_slow_sampler(s, m, bytes, &later, err);
    if (rc || later)
        return rc;
    s->opened_ns = nk__worker_now_ns(w);
    s->attempt = m->attempt;
    s->resumed = m->attempt > 0;
    memcpy(s->id, m->session.data, NK_SESSION_ID_BYTES);
    set_name(s, m);
    s->n_route = (int)m->n_route;
    s->n_at_once = stages_at_once(w, m);
    s->stage_idx = (int)m->stage_idx;
    s->is_first = m->stage_idx == 0;
    s->up_takes_aside = m->takes_aside && m->takes_aside == m->stage_idx;
    s->is_last = m->stage_idx == m->n_route - 1;
    s->deterministic = w->opts.deterministic; /* with or without being asked */
    if (m->reuse_salt.len > NK_REUSE_SALT_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "a reuse_salt of %zu bytes; at most %d are possible", m->reuse_salt.len,
                       NK_REUSE_SALT_MAX);
    s->n_reuse_salt = m->reuse_salt.len;
    if (s->n_reuse_salt)
        memcpy(s->reuse_salt, m->reuse_salt.data, s->n_reuse_salt);
    /* What begins in a kept session has runs that no resumption can repeat. */
    s->reuse = (m->reuse || s->n_reuse_salt) && !s->deterministic && !m->exact;
    s->special = m->special;
    s->progress = m->progress && s->is_first;
    s->exact = s->deterministic || m->exact;
    s->chunk = w->opts.chunk;
    if (m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_UNSPECIFIED &&
        m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_F32 && m->dtype != NAKSHATRA__V1__DTYPE__DTYPE_F16)
        return nk_fail(err, NK_E_INVALID, "bad_dtype",
                       "dtype %d is unknown; f32 (1) and f16 (2) are possible", (int)m->dtype);
    s->f16 = m->dtype == NAKSHATRA__V1__DTYPE__DTYPE_F16;
    if (m->n_logprobs < 0 || m->n_logprobs > NK_LOGPROBS_MAX + 1)
        return nk_fail(err, NK_E_INVALID, "bad_request", "n_logprobs is %d; 0 to %d are possible",
                       m->n_logprobs, NK_LOGPROBS_MAX + 1);
    s->n_logprobs = m->n_logprobs - 1;
    if (m->prompt_logprobs < 0 || m->prompt_logprobs > NK_LOGPROBS_MAX + 1 ||
        (m->prompt_logprobs && m->attempt))
        return nk_fail(err, NK_E_INVALID, "bad_request",
                       "prompt_logprobs is %d; 0 to %d are possible, and 0 in a session that is "
                       "resumed",
                       m->prompt_logprobs, NK_LOGPROBS_MAX + 1);
    s->n_prompt_logprobs = m->prompt_logprobs - 1;
    if (s->n_prompt_logprobs >= 0)
        s->chunk = chunk_for_logits(s);
    rc = parse_limits(s, m, err);
    if (!rc)
        rc = check_sizes(m, bytes.size, err);
    if (rc)
        return rc;
    if (s->resumed && s->exact && m->chunk) {
        if (m->chunk > (uint32_t)nk__stage_info(w)->n_batch)
            return nk_fail(err, NK_E_PRECONDITION, "chunk_mismatch",
                           "the session's chunks have %u rows, and this worker takes %d (--batch)",
                           m->chunk, nk__stage_info(w)->n_batch);
        s->chunk = (int)m->chunk;
    }
    if (s->is_first || s->resumed || s->n_prompt_logprobs >= 0) {
        rc = take_ids(s, m, err);
        if (rc)
            return rc;
    }
    if (s->hold_ms && !s->is_last) {
        rc = nk__journal_new(&s->journal, &w->journals, row_bytes(s), err);
        if (rc)
            return rc;
    }
    if (wants_checkpoints(s)) {
        rc = nk__checkpoints_new(&s->checkpoints, &w->checkpoints, err);
        if (rc)
            return rc;
    }
    if (!s->is_last) {
        s->next_address = strdup(m->route[m->stage_idx + 1]->address);
        if (!s->next_address)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    if (m->resume_session.len == NK_SESSION_ID_BYTES && !s->is_first) {
        memcpy(s->resume_id, m->resume_session.data, NK_SESSION_ID_BYTES);
        s->n_resume = (int)(m->resume_tokens < m->n_tokens_max ? m->resume_tokens : 0);
        s->resume_hash = m->resume_hash;
    }
    s->ids = calloc((size_t)s->n_tokens_max + 1, sizeof *s->ids);
    if (!s->is_last)
        s->open_bytes = malloc(bytes.size);
    if (!s->ids || (!s->is_last && !s->open_bytes))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a session of %d tokens",
                       s->n_tokens_max);
    if (!s->is_last) {
        memcpy(s->open_bytes, bytes.data, bytes.size);
        s->open_size = bytes.size;
    }
    if (s->is_last) {
        rc = make_last_stage(s, m, err);
        if (rc)
            return rc;
    }
    w->n_opened++;
    nk__session_set_state(s, NK_SESSION_WAITING);
    if (s->resumed)
        nk__resume_receive(s, h, m->forget_held);
    nk__room_admit(w);
    if (s->closed || s->state != NK_SESSION_WAITING)
        return 0;
    if (s->is_first && w->sessions[NK_SESSION_WAITING].n > w->opts.queue_max)
        return nk_fail(err, NK_E_EXHAUSTED, "queue_full",
                       "%d sessions wait for room already; try again later",
                       w->sessions[NK_SESSION_WAITING].n - 1);
    return 0;
}

/* ---- to the next stage ---- */

/* A place for an address that this worker was not told of: a free one, or that of the one that was
 * used longest ago. Its calls live on. */
static struct nk_peer *peer_add(nk_worker *w, const char *address, struct nk_error *err)
{
    struct nk_peer *p = NULL;
    char *copy;

    if (nk_address_check(address, 1, err))
        return NULL;
    if (w->n_peers < NK_WORKER_PEERS_MAX)
        p = &w->peers[w->n_peers];
    for (int i = 0; i < w->n_peers && w->n_peers == NK_WORKER_PEERS_MAX; i++)
        if (!w->peers[i].is_told && (!p || w->peers[i].used_ns < p->used_ns))
            p = &w->peers[i];
    copy = p ? strdup(address) : NULL;
    if (!copy) {
        nk_fail(err, NK_E_EXHAUSTED, p ? "no_memory" : "too_many_peers",
                p ? "no memory" : "this worker was told of %d addresses, and knows no more",
                NK_WORKER_PEERS_MAX);
        return NULL;
    }
    if (p == &w->peers[w->n_peers])
        w->n_peers++;
    nk_channel_close(p->channel);
    free(p->address);
    *p = (struct nk_peer){ .address = copy };
    return p;
}

static nk_channel *peer_channel(nk_worker *w, const char *address, struct nk_error *err)
{
    bool secret = w->ca || w->identity;
    struct nk_peer *p = NULL;

    for (int i = 0; i < w->n_peers && !p; i++)
        if (!strcmp(w->peers[i].address, address))
            p = &w->peers[i];
    if (!p && w->identity) {
        p = peer_add(w, address, err);
        if (!p)
            return NULL;
    }
    if (p) {
        p->used_ns = nk__worker_now_ns(w);
        if (!p->channel) {
            if (nk_channel_open(&p->channel, w->net, address, secret ? &w->opts.credentials : NULL,
                                err))
                return NULL;
            nk_channel_watch(p->channel, w->opts.silence_ms);
        }
        return p->channel;
    }
    nk_fail(err, NK_E_DENIED, "peer_not_allowed",
            "the route names %s, which this worker was not told of (--allow-peer or --cluster)",
            address);
    return NULL;
}

static int send_open(session *s, struct nk_error *err)
{
    nk_worker *w = s->w;
    nk_channel *channel = peer_channel(w, s->next_address, err);
    Nakshatra__V1__InferenceRequest *req;
    Nakshatra__V1__Limits limits = NAKSHATRA__V1__LIMITS__INIT;
    nk_arena *arena;
    int rc;

    if (!channel)
        return err->code;
    arena = nk_arena_new(2 * NK_RPC_MESSAGE_BYTES_MAX);
    if (!arena)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    req = nakshatra__v1__inference_request__unpack(nk_arena_allocator(arena), s->open_size,
                                                   s->open_bytes);
    if (!req || req->kind_case != NAKSHATRA__V1__INFERENCE_REQUEST__KIND_OPEN) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory to open the next stage");
        goto out;
    }
    if (req->open->limits)
        limits = *req->open->limits;
    limits.n_predict = (uint32_t)s->n_predict;
    req->open->limits = &limits;
    req->open->takes_aside = s->is_first || s->up_takes_aside ? (uint32_t)s->stage_idx + 1 : 0;
    req->open->stage_idx++;
    if (!s->resumed && s->n_prompt_logprobs < 0)
        req->open->n_prompt_ids = 0;
    req->open->n_tokens_max = (uint32_t)s->n_tokens_max;
    req->open->reuse = s->reuse;
    req->open->reuse_salt.len = 0; /* the session to resume is known by its id */
    req->open->resume_session.data = s->resume_id;
    req->open->resume_session.len = s->n_resume ? NK_SESSION_ID_BYTES : 0;
    req->open->resume_tokens = (uint32_t)s->n_resume;
    req->open->resume_hash = nk__room_ids_hash(s->ids, s->n_resume);
    rc = nk_call_start(&s->down, channel, "/nakshatra.v1.Nakshatra/Inference", 0,
                       &nk__session_down_handlers, s, err);
    if (rc)
        goto out;
    nk__session_ref(s); /* the call's */
    w->n_streams++;
    s->down_ref = nk_call_ref(s->down);
    rc = nk_call_send_pb(s->down, (ProtobufCMessage *)req, err);
out:
    nk_arena_free(arena);
    free(s->open_bytes);
    s->open_bytes = NULL;
    return rc;
}

int nk__open_opened(session *s, const Nakshatra__V1__Opened *theirs, struct nk_error *err)
{
    Nakshatra__V1__InferenceReply reply = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Opened msg = NAKSHATRA__V1__OPENED__INIT;
    Nakshatra__V1__StageInfo *stages[NK_ROUTE_MAX + 1];
    struct nk__wire_stage own;
    size_t n = 0;

    nk__wire_stage(&own, s->w);
    own.message.held = s->resumed ? (uint32_t)s->n_held : 0;
    stages[n++] = &own.message;
    for (size_t i = 0; theirs && i < theirs->n_stages && n < NK_ROUTE_MAX; i++)
        stages[n++] = theirs->stages[i];
    /* Of a state that cannot be cut both have the same position, or begin at 0. */
    if (!s->resumed && theirs && theirs->resume_tokens < (uint32_t)s->n_resume)
        s->n_resume = s->n_ids =
            nk__stage_info(s->w)->can_rollback ? (int)theirs->resume_tokens : 0;
    if (!s->resumed)
        s->next_has = s->n_resume;
    atomic_store(&s->shared.n_computed, s->n_ids);
    msg.resume_tokens = (uint32_t)(s->resumed ? s->n_ids : s->n_resume);
    msg.last_step = s->last_step;
    msg.stages = stages;
    msg.n_stages = n;
    msg.seed = s->is_last ? nk_sampler_seed(s->compute.sampler) : theirs->seed;
    if (s->is_first) {
        s->n_submitted = s->n_ids;
        if (s->resumed && s->n_submitted > nk__session_n_feed(s))
            s->n_submitted = nk__session_n_feed(s);
        if (!s->resumed) {
            s->n_reused = s->n_resume;
            s->w->n_tokens_reused += (uint64_t)s->n_reused;
        }
        s->n_generated = s->n_said;
        msg.n_predict = (uint32_t)s->n_predict;
        msg.chunk = (uint32_t)s->chunk;
        msg.n_prompt = (uint32_t)s->n_prompt;
        msg.n_reused = (uint32_t)s->n_reused;
    }
    if (s->resumed) {
        int n_lacking = nk__session_n_feed(s) - s->n_ids;

        s->w->n_tokens_replayed += (uint64_t)(n_lacking > 0 ? n_lacking : 0);
        nk_log(NK_LOG_WORKER, NK_LOG_INFO,
               "session=%s event=resumed attempt=%u held=%d from=%d to=%d", s->name, s->attempt,
               s->n_held, s->n_ids, nk__session_n_feed(s));
    }
    nk__session_set_state(s, NK_SESSION_RUNNING);
    reply.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_OPENED;
    reply.opened = &msg;
    if (s->up)
        nk_call_send_pb(s->up, (ProtobufCMessage *)&reply, NULL);
    return s->is_first ? nk__step_pump_prompt(s, err) : 0;
}

/* The session has its sequence: goes on to the next stage, or is open when this is the last. */
int nk__open_begin(session *s, struct nk_error *err)
{
    if (!s->is_last)
        return send_open(s, err);
    return s->resumed ? nk__resume_opened(s, NULL, err) : nk__open_opened(s, NULL, err);
}

int nk__open_receive_opened(session *s, const Nakshatra__V1__Opened *m, struct nk_error *err)
{
    const struct nk_stage_info *info = nk__stage_info(s->w);
    struct nk_computed own, theirs;
    int begin_layer = info->layer_end;

    nk__wire_computed(&own, s->w);
    if (s->state != NK_SESSION_OPENING || s->replaying)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer", "Opened came twice");
    if ((int)m->n_stages != s->n_route - s->stage_idx - 1)
        return nk_fail(err, NK_E_INTERNAL, "bad_peer", "%zu stages answered where %d were asked",
                       m->n_stages, s->n_route - s->stage_idx - 1);
    for (size_t i = 0; i < m->n_stages; i++) {
        const Nakshatra__V1__StageInfo *t = m->stages[i];

        if (strcmp(t->model_sha256, info->model_sha256) != 0)
            return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                           "worker %s has model %.12s..., worker %s has %.12s...", s->w->id,
                           info->model_sha256, t->worker_id, t->model_sha256);
        if (t->n_embd != (uint32_t)info->n_embd)
            return nk_fail(err, NK_E_PRECONDITION, "width_mismatch",
                           "worker %s has rows of %d, worker %s of %u", s->w->id, info->n_embd,
                           t->worker_id, t->n_embd);
        if (t->layer_begin != (uint32_t)begin_layer ||
            t->layer_count != (uint32_t)info->layer_count)
            return nk_fail(err, NK_E_PRECONDITION, "range_mismatch",
                           "worker %s has layers %u-%u of %u where %d-... of %d is next",
                           t->worker_id, t->layer_begin, t->layer_end, t->layer_count, begin_layer,
                           info->layer_count);
        nk_computed_unpack(&theirs, t->computed, t->n_computed, t->llama_version);
        if (nk_computed_compare(&own, &theirs, t->worker_id, err))
            return err->code;
        begin_layer = (int)t->layer_end;
        if (t->n_batch && t->n_batch < (uint32_t)s->chunk) {
            if (s->resumed && s->exact && m->n_stages)
                return nk_fail(err, NK_E_PRECONDITION, "chunk_mismatch",
                               "worker %s takes steps of %u rows (--batch), and the session's "
                               "chunks have %d: it could not go on exactly",
                               t->worker_id, t->n_batch, s->chunk);
            s->chunk = (int)t->n_batch;
        }
    }
    if (begin_layer != info->layer_count)
        return nk_fail(err, NK_E_PRECONDITION, "range_mismatch", "the stages end at layer %d of %d",
                       begin_layer, info->layer_count);
    return s->resumed ? nk__resume_opened(s, m, err) : nk__open_opened(s, m, err);
}
