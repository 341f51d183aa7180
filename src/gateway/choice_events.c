#include "gateway/job_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"

/* Of Ollama's context: more than any model's context holds. */
enum { CONTEXT_IDS_MAX = 1 << 24 };
/* How often a reader hears of its prompt, first and last beside. */
enum { PROGRESS_MAX = 100 };

struct nk_job_event *nk__job_event_new(int choice, size_t n_text)
{
    struct nk_job_event *e = malloc(sizeof *e + n_text);

    if (e) {
        e->choice = choice;
        e->bytes = sizeof *e + n_text;
        e->kind = NK_EVENT_TOKEN;
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

bool nk__job_push(nk_job *j, struct nk_job_event *e)
{
    /* Of the prompt's tokens many come at once, however fast the reader is; they are no more than
     * the prompt. */
    if (e->kind == NK_EVENT_PROMPT)
        e->bytes = 0;
    else if (j->n_bytes + e->bytes > j->g->opts.limits.output_bytes_max && e->kind != NK_EVENT_DONE)
        return false;
    j->n_bytes += e->bytes;
    STAILQ_INSERT_TAIL(&j->events, e, link);
    return true;
}

static struct nk_job_event *token_event(int choice, const struct nk_gen_token *t)
{
    size_t n = t->text_size + t->piece_size;
    struct nk_job_event *e;
    char *at;

    for (int i = 0; i < t->n_top; i++)
        n += t->top[i].text_size;
    e = nk__job_event_new(choice, n);
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

bool nk__job_keeps_ids(const nk_job *j)
{
    return j->api == NK_API_OLLAMA_GENERATE && !j->request.raw;
}

static void keep_id(struct nk_choice *c, int32_t id)
{
    if (!nk_array_grow(c->ids, c->ids_capacity, c->n_ids + 1, CONTEXT_IDS_MAX, NULL))
        c->ids[c->n_ids++] = id;
}

void nk__choice_replaying(void *user, const char *worker_id, int done, int total)
{
    struct nk_choice *c = user;

    nk__recovery_replaying(&c->j->g->recoveries, &c->recovery, worker_id, done, total);
}

void nk__choice_opened(void *user)
{
    struct nk_choice *c = user;

    nk__recovery_opened(&c->j->g->recoveries, &c->recovery);
    if (!c->opened_ns)
        c->opened_ns = nk_clock_now_ns(c->j->g->clock);
    pthread_mutex_lock(&c->j->mutex);
    c->opened = true;
    pthread_mutex_unlock(&c->j->mutex);
}

/* The reader gets the first, the last and some of those in between: a prompt may have thousands of
 * chunks. One that does not fit is left out: it loses nothing of the text. */
void nk__choice_prefilled(void *user, int n_done, int n_reused)
{
    struct nk_choice *c = user;
    nk_job *j = c->j;
    int n_prompt = (int)j->prepared.prompts[c->index / j->request.n].n;
    int64_t step = n_prompt / PROGRESS_MAX;
    uint64_t now = nk_clock_now_ns(j->g->clock);
    struct nk_job_event *e;
    bool said;

    c->n_reused = n_reused;
    if (!j->request.progress)
        return;
    /* Of a choice that begins anew what was said already is no news. */
    if (n_done <= c->n_progress ||
        (c->n_progress >= 0 && n_done < n_prompt && n_done - c->n_progress < step))
        return;
    e = nk__job_event_new(c->index, 0);
    if (!e)
        return;
    e->kind = NK_EVENT_PROGRESS;
    e->progress = (struct nk_reply_progress){ .n_total = n_prompt,
                                              .n_reused = n_reused,
                                              .n_done = n_done,
                                              .time_ms = (now - c->opened_ns) / 1000000 };
    c->n_progress = n_done;
    pthread_mutex_lock(&j->mutex);
    said = !c->ended && !j->failed && !j->ending && nk__job_push(j, e);
    pthread_mutex_unlock(&j->mutex);
    if (said)
        nk__job_wake(j);
    else
        free(e);
}

bool nk__job_wants_prompt(const nk_job *j)
{
    return j->api == NK_API_COMPLETION && j->request.repeats_prompt && j->request.n_logprobs >= 0;
}

/* A token of the prompt, with what of it is in the request's text: the vocabulary's pieces begin
 * with a space that the text may not have. */
static void tell_prompt_token(struct nk_choice *c, const struct nk_gen_token *told)
{
    nk_job *j = c->j;
    const struct nk_prompt *p = &j->request.prompts[c->index / j->request.n];
    struct nk_buf text = NK_BUF_INIT(1 << 16);
    struct nk_gen_token t = *told;
    struct nk_error err = { .code = 0 };
    struct nk_job_event *e = NULL;
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
        e->kind = NK_EVENT_PROMPT;
    pthread_mutex_lock(&j->mutex);
    if (rc || j->failed || j->ending)
        free(e);
    else if (j->request.stream) {
        overflow = !e || !nk__job_push(j, e);
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
        nk__job_cancel_choices(j);
        nk__job_fail(j, &err, "");
    } else if (j->request.stream)
        nk__job_wake(j);
}

/* The prompt's first token: nothing is before it. */
static void tell_first_of_prompt(struct nk_choice *c)
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

void nk__choice_prompted(void *user, const struct nk_gen_token *t)
{
    struct nk_choice *c = user;

    if (t->index == 1)
        tell_first_of_prompt(c);
    tell_prompt_token(c, t);
}

void nk__choice_token(void *user, const struct nk_gen_token *t)
{
    struct nk_choice *c = user;
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    uint64_t now = nk_clock_now_ns(g->clock);
    bool first, stream = j->request.stream, ended = false, overflow = false;
    struct nk_job_event *e = stream ? token_event(c->index, t) : NULL;
    struct nk_error err = { .code = 0 };

    if (!t->index && nk__job_wants_prompt(j) && j->prepared.prompts[c->index / j->request.n].n == 1)
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
    if (nk__job_keeps_ids(j))
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
        overflow = !e || !nk__job_push(j, e);
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
        nk__job_cancel_choices(j);
        nk__job_fail(j, &err, "");
    } else if (stream)
        nk__job_wake(j);
}
