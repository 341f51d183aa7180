#include "gateway/job_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum nk_job_state nk__job_poll(nk_job *j)
{
    enum nk_job_state state = NK_JOB_WAIT;
    const struct nk_job_event *first;

    pthread_mutex_lock(&j->mutex);
    first = STAILQ_FIRST(&j->events);
    if (j->failed)
        state = NK_JOB_ERROR;
    else if (j->prepared_ok && nk__job_answered_at_once(j))
        state = NK_JOB_WHOLE;
    else if (j->prepared_ok && j->embedding)
        state = j->embedded ? NK_JOB_WHOLE : NK_JOB_WAIT;
    else if (j->prepared_ok && j->request.stream && first) {
        if (first->kind == NK_EVENT_DONE && first->err.code) {
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

bool nk__job_streams(nk_job *j)
{
    bool stream;

    pthread_mutex_lock(&j->mutex);
    stream = j->prepared_ok && j->request.stream;
    pthread_mutex_unlock(&j->mutex);
    return stream;
}

const char *nk__job_type(nk_job *j)
{
    if (!nk__job_streams(j))
        return "application/json";
    return nk__job_dialect(j) == NK_DIALECT_OLLAMA ? "application/x-ndjson" : "text/event-stream";
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
    nk__job_wake(j);
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
    if (nk__job_streams(j) ? nk__reply_keepalive(j->reply, &j->out, NULL)
                           : nk_buf_adds(&j->out, " ", NULL))
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
        nk__error_body(nk__job_dialect(j), false, err, param, &j->out);
    nk__metrics_add(j->g->metrics, NK_METRIC_ERRORS, err->reason, 1);
    j->out_ended = true;
}

/* Writes one event. Returns false when the reply cannot go on. */
static bool write_event(nk_job *j, const struct nk_job_event *e)
{
    struct nk_choice *c = &j->choices[e->choice];
    struct nk_error err;
    bool ended = false;
    int rc;

    if (e->kind == NK_EVENT_DONE && e->err.code) {
        write_error(j, true, &e->err, "");
        return false;
    }
    if (e->kind == NK_EVENT_PROMPT) {
        rc = nk__reply_prompt_token(j->reply, e->choice, &e->token, &err);
    } else if (e->kind == NK_EVENT_PROGRESS) {
        rc = nk__reply_progress(j->reply, e->choice, &e->progress, &j->out, &err);
    } else if (e->kind == NK_EVENT_DONE) {
        rc = nk__reply_done(j->reply, e->choice, &e->done, &j->out, &err);
        if (!rc && ++j->n_written == j->n_choices) {
            rc = nk__job_end_reply(j, &err);
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
        nk__choice_end_paused(c);
    }
    if (rc) {
        write_error(j, true, &err, "");
        return false;
    }
    return true;
}

static struct nk_job_event *pop(nk_job *j)
{
    struct nk_job_event *e;

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
        write_error(j, nk__job_streams(j), &err, param);
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
        struct nk_job_event *e;

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
            } else if (!nk__job_answered_at_once(j) && nk__job_end_reply(j, &err))
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
