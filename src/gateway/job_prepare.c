#include "gateway/job_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/json.h"
#include "base/log.h"
#include "gateway/llama_settings.h"
#include "gateway/model.h"
#include "gateway/reply_embed.h"
#include "gateway/responses_store.h"
#include "gateway/text.h"
#include "gateway/truncate.h"

/* The prompt of a choice again, as the request had it. */
static int write_before(void *user, int choice, struct nk_buf *out, struct nk_error *err)
{
    nk_job *j = user;
    const struct nk_prompt *p = &j->request.prompts[choice / j->request.n];
    const struct nk_tokens *became = &j->prepared.prompts[choice / j->request.n];
    const int32_t *ids = p->ids ? p->ids : became->ids; /* ids and texts in turn: what they are */
    size_t n = p->ids ? p->n_ids : became->n;
    int rc = 0;

    if (p->text)
        return nk_buf_add(out, p->text, p->size, err);
    for (size_t i = 0; i < n && !rc; i++)
        rc = nk_vocab_piece(j->g->vocab, ids[i], false, out, err);
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
        rc = nk__llama_settings_write(
            &j->request,
            &(struct nk_llama_settings){ .n_predict_max = j->g->opts.n_predict_max,
                                         .grammar = j->prepared.grammar,
                                         .logit_bias = j->prepared.logit_bias,
                                         .n_logit_bias = j->prepared.n_logit_bias,
                                         .vocab = j->g->vocab },
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
        .verbose = j->g->opts.verbose && nk__job_dialect(j) == NK_DIALECT_OPENAI,
        .return_tokens = r->return_tokens,
        .response_fields = r->response_fields,
    };
    snprintf(o->id, sizeof o->id, "%s", j->id);
    snprintf(o->model, sizeof o->model, "%s", r->model);
    nk__model_fingerprint(j->g, o->fingerprint);
}

bool nk__job_answered_at_once(const nk_job *j)
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

    nk__job_release_body(j);
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
        rc = nk__responses_begin(j->g->responses, j->key, nk__job_response_id(j, id), t->previous,
                                 t->input, nk_buf_str(&object), err);
    j->stored = !rc;
    nk_buf_release(&object);
    return rc;
}

int nk__job_end_reply(nk_job *j, struct nk_error *err)
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
            nk__responses_finish(j->g->responses, nk__job_response_id(j, id), nk_buf_str(&object),
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
        nk__job_fail(j, err, param);
    else
        nk__job_wake(j);
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
    nk__job_release_body(j);
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
        struct nk_choice *c = &j->choices[i];

        c->j = j;
        c->index = i;
        c->n_progress = -1;
        c->recovery = (struct nk_recovery){ .request = j->id, .choice = i };
        c->ticket =
            (struct nk_ticket){ .start = nk__choice_start, .expire = nk__choice_expire, .user = c };
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

            nk__responses_delete(g->responses, j->key, nk__job_response_id(j, id), NULL);
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

void nk__job_prepare(struct nk_task *task)
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
    if (rc || nk__job_answered_at_once(j))
        shrink(j, NULL);
    pthread_mutex_lock(&j->mutex);
    j->prepared_ok = !rc;
    cancelled = j->cancelled;
    pthread_mutex_unlock(&j->mutex);
    if (rc)
        nk__job_fail(j, &e.err, e.param);
    else if (cancelled)
        nk__job_cancel_choices(j);
    nk__job_wake(j); /* what came before prepared_ok was not looked at */
    nk__job_unref(j);
}
