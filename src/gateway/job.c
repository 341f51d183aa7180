#include "gateway/job_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/responses_store.h"

void nk__job_wake(nk_job *j)
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

const char *nk__job_response_id(const nk_job *j, char out[64])
{
    snprintf(out, 64, "resp_%s", j->id);
    return out;
}

void nk__job_release_body(nk_job *j)
{
    nk_buf_release(&j->body);
    nk__budget_hold(&j->g->bodies, &j->held_body, 0, 0);
}

void nk__job_unref(nk_job *j)
{
    nk_gateway *g = j ? j->g : NULL;
    struct nk_job_event *e;

    if (!j || atomic_fetch_sub(&j->refs, 1) != 1)
        return;
    if (j->stored) { /* nothing happens where it was finished */
        char id[64];
        bool cancelled = j->err.code == NK_E_CANCELLED ||
                         (j->err.code && !strcmp(j->err.reason, "response_cancelled"));

        nk__responses_end(g->responses, nk__job_response_id(j, id),
                          cancelled ? "cancelled" : "failed");
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
    nk__job_release_body(j);
    nk_buf_release(&j->out);
    nk__budget_hold(&g->parsed, &j->held, 0, 0);
    pthread_mutex_destroy(&j->mutex);
    j->drop(j->user);
    free(j);
    nk__presence_leave(&g->presence, NK_PRESENT_HELD); /* the last that this thread does with g */
}

enum nk_dialect nk__job_dialect(const nk_job *j)
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

void nk__job_fail(nk_job *j, const struct nk_error *err, const char *param)
{
    pthread_mutex_lock(&j->mutex);
    if (!j->failed) {
        j->failed = true;
        j->err = *err;
        snprintf(j->param, sizeof j->param, "%s", param);
    }
    pthread_mutex_unlock(&j->mutex);
    nk__job_wake(j);
}

void nk__job_cancel_choices(nk_job *j)
{
    if (j->embedding)
        nk__embedding_cancel(j->embedding);
    for (int i = 0; i < j->n_choices; i++) {
        struct nk_choice *c = &j->choices[i];

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
        nk__job_cancel_choices(j);
    nk_fail(&err, code, reason, "%s", msg);
    nk__job_fail(j, &err, "");
    /* Last: a helper that stops for it fails with "cancelled", and the first failure is told. */
    atomic_store(&j->unwanted, true);
}

void nk__job_shut_down(nk_job *j)
{
    nk__job_cancel(j, NK_E_UNAVAILABLE, "shutting_down", "the gateway is shutting down");
}

void nk__job_start(nk_job *j)
{
    nk_gateway *g = j->g;

    pthread_mutex_lock(&g->mutex);
    TAILQ_INSERT_TAIL(&g->jobs, j, link);
    pthread_mutex_unlock(&g->mutex);
    nk__presence_enter(&g->presence, NK_PRESENT_JOB);
    nk__job_ref(j);
    j->task.run = nk__job_prepare;
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
        if (nk__job_streams(j) && (atomic_load(&j->began) || is_opened(j)) &&
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
        if (j->api == NK_API_RESPONSES && !strcmp(j->key, key) &&
            !strcmp(nk__job_response_id(j, its), id))
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
