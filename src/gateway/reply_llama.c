/* llama-server's own completions (/completion, /infill): an event for each token, the last of which
 * tells everything, or one object; a list of objects where there are several choices. */
#include "gateway/reply_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_writer.h"

/* ---- log-probabilities ---- */

/* OpenAI has -9999.0 for what is too improbable to be a number, and so have we. */
static void put_prob(struct nk_json_writer *w, int32_t id, const char *text, size_t size,
                     float logprob)
{
    nk_json_put_int(w, "id", id);
    nk_json_put_strn(w, "token", text, size);
    nk_json_begin(w, "bytes", '[');
    for (size_t i = 0; i < size; i++)
        nk_json_put_int(w, NULL, (unsigned char)text[i]);
    nk_json_end(w, ']');
    nk_json_put_num(w, "logprob", isfinite(logprob) ? (double)logprob : -9999.0);
}

int nk__reply_add_llama_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                                 struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(&c->logprobs, err);

    w.comma = c->logprobs.size != 0;
    nk_json_begin(&w, NULL, '{');
    put_prob(&w, t->id, t->piece, t->piece_size, t->logprob);
    nk_json_begin(&w, "top_logprobs", '[');
    for (int i = 0; i < t->n_top; i++) {
        nk_json_begin(&w, NULL, '{');
        put_prob(&w, t->top[i].id, t->top[i].text, t->top[i].text_size, t->top[i].logprob);
        nk_json_end(&w, '}');
    }
    nk_json_end(&w, ']');
    nk_json_end(&w, '}');
    return w.rc;
}

/* ---- timings ---- */

static void put_rate(struct nk_json_writer *w, const char *prefix, int n, uint64_t us)
{
    char key[32];
    double ms = (double)us / 1000, per_token = n ? ms / n : 0;

    snprintf(key, sizeof key, "%s_n", prefix);
    nk_json_put_int(w, key, n);
    snprintf(key, sizeof key, "%s_ms", prefix);
    nk_json_put_num(w, key, ms);
    snprintf(key, sizeof key, "%s_per_token_ms", prefix);
    nk_json_put_num(w, key, per_token);
    snprintf(key, sizeof key, "%s_per_second", prefix);
    nk_json_put_num(w, key, per_token > 0 ? 1000 / per_token : 0);
}

struct nk_reply_timings nk__reply_timings_of(const struct nk__reply_choice *c)
{
    const struct nk_reply_done *d = &c->result;

    return (struct nk_reply_timings){ .n_prompt = d->n_prompt,
                                      .n_reused = d->n_reused,
                                      .n_generated = d->n_generated,
                                      .prefill_us = d->prefill_us,
                                      .decode_us = d->decode_us };
}

int nk__reply_write_timings(const struct nk_reply_timings *t, struct nk_buf *out,
                            struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);

    w.comma = true;
    nk_json_begin(&w, "timings", '{');
    nk_json_put_int(&w, "cache_n", t->n_reused);
    put_rate(&w, "prompt", t->n_prompt - t->n_reused, t->prefill_us);
    put_rate(&w, "predicted", t->n_generated, t->decode_us);
    nk_json_end(&w, '}');
    return w.rc;
}

int nk__reply_write_progress(const struct nk_reply_progress *p, struct nk_buf *out,
                             struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);

    w.comma = true;
    nk_json_begin(&w, "prompt_progress", '{');
    nk_json_put_int(&w, "total", p->n_total);
    nk_json_put_int(&w, "cache", p->n_reused);
    nk_json_put_int(&w, "processed", p->n_done);
    nk_json_put_int(&w, "time_ms", (int64_t)p->time_ms);
    nk_json_end(&w, '}');
    return w.rc;
}

/* ---- replies ---- */

static void put_ids(struct nk_json_writer *w, struct nk__reply_choice *c, bool wanted)
{
    nk_json_begin(w, "tokens", '[');
    for (size_t i = 0; i < c->n_ids && wanted; i++)
        nk_json_put_int(w, NULL, c->ids[i]);
    nk_json_end(w, ']');
    c->n_ids = 0;
}

static void put_probs(struct nk_json_writer *w, struct nk__reply_choice *c)
{
    if (c->logprobs.size) {
        nk_json_begin(w, "completion_probabilities", '[');
        nk_json_put_raw(w, NULL, c->logprobs.data);
        nk_json_end(w, ']');
    }
    nk_buf_reset(&c->logprobs);
}

/* from: what is not written yet. */
static void put_content(struct nk_json_writer *w, struct nk__reply_choice *c, struct nk_buf *from)
{
    c->has_new_line = c->has_new_line || (from->size && memchr(from->data, '\n', from->size));
    nk_json_put_strn(w, "content", nk_buf_str(from), from->size);
    nk_buf_reset(from);
}

/* progress: of the prompt; or NULL: of a token. */
static int write_event(struct nk__reply_choice *c, const struct nk_reply_progress *progress,
                       struct nk_buf *out, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);

    c->n_events += !progress;
    w.rc = nk_buf_adds(out, "data: ", err);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_int(&w, "index", c->index);
    put_content(&w, c, &c->content);
    put_ids(&w, c, true);
    nk_json_put_bool(&w, "stop", false);
    nk_json_put_int(&w, "id_slot", -1);
    nk_json_put_int(&w, "tokens_predicted", c->n_events);
    nk_json_put_int(&w, "tokens_evaluated", c->r->opts.n_prompt);
    put_probs(&w, c);
    if (!w.rc && progress)
        w.rc = nk__reply_write_progress(progress, out, err);
    else if (!w.rc && c->r->opts.timings_per_token)
        w.rc = nk__reply_write_timings(&c->so_far, out, err);
    nk_json_end(&w, '}');
    return w.rc ? w.rc : nk_buf_adds(out, "\n\n", err);
}

static const char *stop_type(enum nk_finish finish)
{
    return finish == NK_FINISH_LENGTH ? "limit" : finish == NK_FINISH_STOP ? "word" : "eos";
}

/* Everything that is known of a choice that is done. content: what is not written yet. */
static int write_all(struct nk__reply_choice *c, struct nk_buf *content, struct nk_buf *out,
                     struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);
    struct nk_buf settings = NK_BUF_INIT(c->r->opts.text_bytes_max);
    const struct nk_reply_opts *o = &c->r->opts;
    const struct nk_reply_done *d = &c->result;
    const struct nk_reply_timings timings = nk__reply_timings_of(c);

    if (o->settings)
        w.rc = o->settings(o->user, c->index, &settings, err);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_int(&w, "index", c->index);
    put_content(&w, c, content);
    put_ids(&w, c, o->return_tokens && !o->stream);
    nk_json_put_int(&w, "id_slot", -1);
    nk_json_put_bool(&w, "stop", true);
    nk_json_put_str(&w, "model", o->model);
    nk_json_put_int(&w, "tokens_predicted", d->n_generated);
    nk_json_put_int(&w, "tokens_evaluated", d->n_prompt);
    if (settings.size)
        nk_json_put_raw(&w, NULL, settings.data);
    nk_json_put_bool(&w, "has_new_line", c->has_new_line);
    nk_json_put_bool(&w, "truncated", d->truncated);
    nk_json_put_str(&w, "stop_type", stop_type(d->finish));
    nk_json_put_str(&w, "stopping_word", d->stop_string);
    /* The last token is nobody's input yet, unless it ended the text. */
    nk_json_put_int(&w, "tokens_cached",
                    d->n_prompt + d->n_generated - (d->n_generated && d->finish != NK_FINISH_EOG));
    if (c->r->dialect == &nk__reply_llama)
        put_probs(&w, c);
    if (!w.rc)
        w.rc = nk__reply_write_timings(&timings, out, err);
    nk_json_end(&w, '}');
    nk_buf_release(&settings);
    return w.rc;
}

int nk__reply_write_verbose(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, ",\"__verbose\":", err);

    return rc ? rc : write_all(c, &c->raw, out, err);
}

/* Only the members that were asked for: "a/b" is b of a, under that name. */
static int write_chosen(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    const json_t *fields = c->r->opts.response_fields, *name;
    struct nk_buf whole = NK_BUF_INIT(c->r->opts.text_bytes_max * 2);
    json_t *all = NULL, *chosen = json_object();
    char *text = NULL;
    size_t i;
    int rc = write_all(c, &c->content, &whole, err);

    if (!rc)
        all = json_loadb(whole.data, whole.size, 0, NULL);
    json_array_foreach((json_t *)fields, i, name)
    {
        const char *at = json_string_value(name);
        const json_t *v = all;

        while (v && *at) {
            char part[64];
            size_t n = strcspn(at, "/");

            snprintf(part, sizeof part, "%.*s", (int)(n < sizeof part ? n : sizeof part - 1), at);
            v = json_object_get(v, part);
            at += n + (at[n] == '/');
        }
        if (v)
            json_object_set(chosen, json_string_value(name), (json_t *)v);
    }
    text = all && chosen ? json_dumps(chosen, JSON_COMPACT) : NULL;
    if (!rc)
        rc = text ? nk_buf_adds(out, text, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply");
    free(text);
    json_decref(all);
    json_decref(chosen);
    nk_buf_release(&whole);
    return rc;
}

static int write_last(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    return c->r->opts.response_fields ? write_chosen(c, out, err)
                                      : write_all(c, &c->content, out, err);
}

/* ---- the table ---- */

static int flush(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    return write_event(c, NULL, out, err);
}

static int progress(struct nk__reply_choice *c, const struct nk_reply_progress *p,
                    struct nk_buf *out, struct nk_error *err)
{
    return write_event(c, p, out, err);
}

static int done(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "data: ", err);

    if (!rc)
        rc = write_last(c, out, err);
    return rc ? rc : nk_buf_adds(out, "\n\n", err);
}

static int end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    bool list = r->opts.n_choices > 1;
    int rc = 0;

    if (r->opts.stream)
        return 0;
    if (list)
        rc = nk_buf_adds(out, "[", err);
    for (int i = 0; i < r->opts.n_choices && !rc; i++) {
        rc = i ? nk_buf_adds(out, ",", err) : 0;
        if (!rc)
            rc = write_last(&r->choices[i], out, err);
    }
    return rc ? rc : nk_buf_adds(out, list ? "]\n" : "\n", err);
}

static int keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    (void)r;
    return nk_buf_adds(out, ":\n\n", err);
}

static int fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    (void)r;
    return nk__error_body(NK_DIALECT_LLAMA, true, err, param, out);
}

const struct nk__reply_dialect nk__reply_llama = { .piece = nk__reply_collect,
                                                   .flush = flush,
                                                   .progress = progress,
                                                   .done = done,
                                                   .end = end,
                                                   .keepalive = keepalive,
                                                   .fail = fail };
