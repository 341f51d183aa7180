/* OpenAI's responses: items that are numbered as they come (reasoning, a message, a call), and a
 * numbered event for each thing that happens to one.
 * https://platform.openai.com/docs/api-reference/responses and .../responses-streaming */
#include "gateway/reply_int.h"

#include <string.h>

#include "base/json_writer.h"

/* What a client that keeps nothing here gets back as encrypted_content, and sends again: there is
 * nobody to hide it from. */
static const char plain_mark[] = NK_REASONING_MARK;

static struct nk_json_writer begin_event(nk_reply *r, const char *type, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(r->out, err);

    w.rc = nk_buf_addf(r->out, err, "event: %s\ndata: ", type);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "type", type);
    nk_json_put_int(&w, "sequence_number", r->sequence++);
    return w;
}

static int end_event(struct nk_json_writer *w)
{
    nk_json_end(w, '}');
    return w->rc ? w->rc : nk_buf_adds(w->b, "\n\n", w->err);
}

static void put_item_id(struct nk_json_writer *w, const char *key, const struct nk__reply_choice *c,
                        int part)
{
    char id[64];

    snprintf(id, sizeof id, "%s_%s_%d",
             c->parts[part].kind == NK_OUTPUT_REASONING ? "rs"
             : c->parts[part].kind == NK_OUTPUT_CONTENT ? "msg"
                                                        : "fc",
             c->r->opts.id, part);
    nk_json_put_str(w, key, id);
}

static void put_call_id(struct nk_json_writer *w, const struct nk__reply_choice *c, int part)
{
    char plain[NK__CALL_ID_SIZE], id[32];
    int n = 0;

    for (int i = 0; i < part; i++)
        n += c->parts[i].kind == NK_OUTPUT_TOOL;
    snprintf(id, sizeof id, "call_%s", nk__reply_call_id(c, n, plain));
    nk_json_put_str(w, "call_id", id);
}

static void put_text_part(struct nk_json_writer *w, const char *key, const struct nk__reply_part *p,
                          bool empty)
{
    nk_json_begin(w, key, '{');
    nk_json_put_str(w, "type", "output_text");
    nk_json_begin(w, "annotations", '[');
    nk_json_end(w, ']');
    nk_json_begin(w, "logprobs", '[');
    nk_json_put_raw(w, NULL, empty ? "" : nk_buf_str(&p->logprobs));
    nk_json_end(w, ']');
    nk_json_put_strn(w, "text", nk_buf_str(&p->text), empty ? 0 : p->text.size);
    nk_json_end(w, '}');
}

/* Who asked for a summary gets what was thought as one; it is not made shorter. */
static void put_thought(struct nk_json_writer *w, const char *key, const struct nk__reply_choice *c,
                        int part, bool empty)
{
    const struct nk_buf *text = &c->parts[part].text;

    nk_json_begin(w, key, '{');
    nk_json_put_str(w, "type", c->r->opts.summarise ? "summary_text" : "reasoning_text");
    nk_json_put_strn(w, "text", nk_buf_str(text), empty ? 0 : text->size);
    nk_json_end(w, '}');
}

static void put_reasoning(struct nk_json_writer *w, const struct nk__reply_choice *c, int part,
                          bool empty)
{
    const struct nk_reply_opts *o = &c->r->opts;
    struct nk_buf marked = NK_BUF_INIT(o->text_bytes_max);

    nk_json_put_str(w, "type", "reasoning");
    nk_json_begin(w, "summary", '[');
    if (!empty && o->summarise)
        put_thought(w, NULL, c, part, false);
    nk_json_end(w, ']');
    if (!o->summarise) {
        nk_json_begin(w, "content", '[');
        if (!empty)
            put_thought(w, NULL, c, part, false);
        nk_json_end(w, ']');
    }
    if (o->encrypted_reasoning && !empty) {
        if (!w->rc)
            w->rc = nk_buf_adds(&marked, plain_mark, w->err);
        if (!w->rc)
            w->rc = nk_buf_add(&marked, c->parts[part].text.data, c->parts[part].text.size, w->err);
        nk_json_put_str(w, "encrypted_content", nk_buf_str(&marked));
    }
    nk_buf_release(&marked);
}

/* An item: as it begins (empty), or as it is. */
static void put_item(struct nk_json_writer *w, const char *key, const struct nk__reply_choice *c,
                     int part, bool empty)
{
    const struct nk__reply_part *p = &c->parts[part];
    bool cut = c->done && part == c->n_parts - 1 && c->result.finish == NK_FINISH_LENGTH;

    nk_json_begin(w, key, '{');
    put_item_id(w, "id", c, part);
    switch (p->kind) {
    case NK_OUTPUT_REASONING:
        put_reasoning(w, c, part, empty);
        break;
    case NK_OUTPUT_CONTENT:
        nk_json_put_str(w, "type", "message");
        nk_json_put_str(w, "role", "assistant");
        nk_json_begin(w, "content", '[');
        if (!empty)
            put_text_part(w, NULL, p, false);
        nk_json_end(w, ']');
        break;
    default:
        nk_json_put_str(w, "type", "function_call");
        put_call_id(w, c, part);
        nk_json_put_str(w, "name", p->name);
        nk_json_put_strn(w, "arguments", nk_buf_str(&p->text), empty ? 0 : p->text.size);
        break;
    }
    nk_json_put_str(w, "status", !p->ended ? "in_progress" : cut ? "incomplete" : "completed");
    nk_json_end(w, '}');
}

static void put_items(struct nk_json_writer *w, const char *key, const nk_reply *r)
{
    const struct nk__reply_choice *c = &r->choices[0];

    nk_json_begin(w, key, '[');
    for (int i = 0; i < c->n_parts; i++)
        put_item(w, NULL, c, i, false);
    nk_json_end(w, ']');
}

static const char *status_of(const nk_reply *r)
{
    const struct nk__reply_choice *c = &r->choices[0];

    return !c->done                               ? "in_progress"
           : c->result.finish == NK_FINISH_LENGTH ? "incomplete"
                                                  : "completed";
}

static void put_usage(struct nk_json_writer *w, const nk_reply *r)
{
    nk_json_begin(w, "usage", '{');
    nk_json_put_int(w, "input_tokens", r->n_prompt);
    nk_json_begin(w, "input_tokens_details", '{');
    nk_json_put_int(w, "cached_tokens", r->n_reused);
    nk_json_end(w, '}');
    nk_json_put_int(w, "output_tokens", r->n_generated);
    nk_json_begin(w, "output_tokens_details", '{');
    nk_json_put_int(w, "reasoning_tokens", nk__reply_n_reasoning(r));
    nk_json_end(w, '}');
    nk_json_put_int(w, "total_tokens", r->n_prompt + r->n_generated);
    nk_json_end(w, '}');
}

/* The whole response. status NULL: as it is. */
static void put_response(struct nk_json_writer *w, const char *key, const nk_reply *r,
                         const char *status, const struct nk_error *why)
{
    const struct nk__reply_choice *c = &r->choices[0];
    char id[64];

    status = status ? status : status_of(r);
    snprintf(id, sizeof id, "resp_%s", r->opts.id);
    nk_json_begin(w, key, '{');
    nk_json_put_str(w, "id", id);
    nk_json_put_str(w, "object", "response");
    nk_json_put_int(w, "created_at", r->opts.created);
    nk_json_put_str(w, "status", status);
    nk_json_put_bool(w, "background", false);
    if (why) {
        nk_json_begin(w, "error", '{');
        nk_json_put_str(w, "code", why->reason);
        nk_json_put_str(w, "message", why->msg);
        nk_json_end(w, '}');
    } else
        nk_json_put_null(w, "error");
    if (!strcmp(status, "incomplete")) {
        nk_json_begin(w, "incomplete_details", '{');
        nk_json_put_str(w, "reason", "max_output_tokens");
        nk_json_end(w, '}');
    } else
        nk_json_put_null(w, "incomplete_details");
    nk_json_put_str(w, "model", r->opts.model);
    put_items(w, "output", r);
    nk_json_put_raw(w, NULL, r->opts.echo ? r->opts.echo : "");
    if (c->done)
        put_usage(w, r);
    else
        nk_json_put_null(w, "usage");
    nk_json_end(w, '}');
}

/* ---- streamed ---- */

static int state_event(nk_reply *r, const char *type, const char *status,
                       const struct nk_error *why, struct nk_error *err)
{
    struct nk_json_writer w = begin_event(r, type, err);

    put_response(&w, "response", r, status, why);
    return end_event(&w);
}

static int begin(nk_reply *r, struct nk_error *err)
{
    int rc;

    if (r->begun)
        return 0;
    r->begun = true;
    rc = state_event(r, "response.created", NULL, NULL, err);
    return rc ? rc : state_event(r, "response.in_progress", NULL, NULL, err);
}

/* What all events of a part begin with. */
static struct nk_json_writer part_event(struct nk__reply_choice *c, int part, const char *type,
                                        const char *index, struct nk_error *err)
{
    struct nk_json_writer w = begin_event(c->r, type, err);

    put_item_id(&w, "item_id", c, part);
    nk_json_put_int(&w, "output_index", part);
    if (index)
        nk_json_put_int(&w, index, 0);
    return w;
}

static int item_event(struct nk__reply_choice *c, int part, const char *type, bool empty,
                      struct nk_error *err)
{
    struct nk_json_writer w = begin_event(c->r, type, err);

    nk_json_put_int(&w, "output_index", part);
    put_item(&w, "item", c, part, empty);
    return end_event(&w);
}

static int part_begin(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    struct nk_json_writer w;
    int rc = begin(c->r, err);

    if (!rc)
        rc = item_event(c, part, "response.output_item.added", true, err);
    if (rc || c->parts[part].kind == NK_OUTPUT_TOOL)
        return rc;
    if (c->parts[part].kind == NK_OUTPUT_REASONING && c->r->opts.summarise) {
        w = part_event(c, part, "response.reasoning_summary_part.added", "summary_index", err);
        put_thought(&w, "part", c, part, true);
    } else {
        w = part_event(c, part, "response.content_part.added", "content_index", err);
        if (c->parts[part].kind == NK_OUTPUT_REASONING)
            put_thought(&w, "part", c, part, true);
        else
            put_text_part(&w, "part", &c->parts[part], true);
    }
    return end_event(&w);
}

static int part_delta(struct nk__reply_choice *c, int part, const char *text, size_t size,
                      struct nk_error *err)
{
    bool summary = c->r->opts.summarise, content = c->parts[part].kind == NK_OUTPUT_CONTENT;
    struct nk_json_writer w;

    if (c->parts[part].kind == NK_OUTPUT_REASONING)
        w = part_event(c, part,
                       summary ? "response.reasoning_summary_text.delta"
                               : "response.reasoning_text.delta",
                       summary ? "summary_index" : "content_index", err);
    else
        w = part_event(c, part,
                       content ? "response.output_text.delta"
                               : "response.function_call_arguments.delta",
                       content ? "content_index" : NULL, err);
    nk_json_put_strn(&w, "delta", text, size);
    if (content) {
        nk_json_begin(&w, "logprobs", '[');
        nk_json_put_raw(&w, NULL, nk_buf_str(&c->logprobs));
        nk_json_end(&w, ']');
    }
    return end_event(&w);
}

static int end_text(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    const struct nk__reply_part *p = &c->parts[part];
    struct nk_json_writer w =
        part_event(c, part, "response.output_text.done", "content_index", err);
    int rc;

    nk_json_put_strn(&w, "text", nk_buf_str(&p->text), p->text.size);
    nk_json_begin(&w, "logprobs", '[');
    nk_json_put_raw(&w, NULL, nk_buf_str(&p->logprobs));
    nk_json_end(&w, ']');
    rc = end_event(&w);
    if (rc)
        return rc;
    w = part_event(c, part, "response.content_part.done", "content_index", err);
    put_text_part(&w, "part", p, false);
    return end_event(&w);
}

static int end_reasoning(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    const struct nk__reply_part *p = &c->parts[part];
    bool summary = c->r->opts.summarise;
    const char *index = summary ? "summary_index" : "content_index";
    struct nk_json_writer w = part_event(
        c, part, summary ? "response.reasoning_summary_text.done" : "response.reasoning_text.done",
        index, err);
    int rc;

    nk_json_put_strn(&w, "text", nk_buf_str(&p->text), p->text.size);
    rc = end_event(&w);
    if (rc)
        return rc;
    w = part_event(c, part,
                   summary ? "response.reasoning_summary_part.done" : "response.content_part.done",
                   index, err);
    put_thought(&w, "part", c, part, false);
    return end_event(&w);
}

static int end_call(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    const struct nk__reply_part *p = &c->parts[part];
    struct nk_json_writer w =
        part_event(c, part, "response.function_call_arguments.done", NULL, err);

    nk_json_put_str(&w, "name", p->name);
    nk_json_put_strn(&w, "arguments", nk_buf_str(&p->text), p->text.size);
    return end_event(&w);
}

static int part_end(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    int rc = c->parts[part].kind == NK_OUTPUT_CONTENT     ? end_text(c, part, err)
             : c->parts[part].kind == NK_OUTPUT_REASONING ? end_reasoning(c, part, err)
                                                          : end_call(c, part, err);

    return rc ? rc : item_event(c, part, "response.output_item.done", false, err);
}

/* Log-probabilities go with the text that their tokens have become. */
static int piece(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                 size_t size, struct nk_error *err)
{
    int rc = nk__reply_part_piece(c, kind, text, size, err);
    struct nk_buf *all = c->n_parts ? &c->parts[c->n_parts - 1].logprobs : NULL;

    if (!rc && kind == NK_OUTPUT_CONTENT && c->logprobs.size) {
        rc = all->size ? nk_buf_adds(all, ",", err) : 0;
        if (!rc)
            rc = nk_buf_add(all, c->logprobs.data, c->logprobs.size, err);
    }
    nk_buf_reset(&c->logprobs);
    return rc;
}

static int flush(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    (void)out;
    return begin(c->r, err);
}

static int done(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    (void)out;
    return begin(c->r, err);
}

static int keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    r->out = out;
    rc = begin(r, err);
    r->out = NULL;
    return rc ? rc : nk_buf_adds(out, ":\n\n", err);
}

static int fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    bool cancelled = !strcmp(err->reason, "response_cancelled");
    int rc;

    (void)param;
    r->out = out;
    rc = begin(r, NULL);
    if (!rc)
        rc = state_event(r, "response.failed", cancelled ? "cancelled" : "failed", err, NULL);
    r->out = NULL;
    return rc;
}

/* ---- whole ---- */

int nk__reply_response(const nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);

    put_response(&w, NULL, r, NULL, NULL);
    return w.rc;
}

int nk__reply_items(const nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);

    put_items(&w, NULL, r);
    return w.rc;
}

static int end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    if (!r->opts.stream) {
        rc = nk__reply_response(r, out, err);
        return rc ? rc : nk_buf_adds(out, "\n", err);
    }
    r->out = out;
    rc = state_event(
        r, strcmp(status_of(r), "incomplete") ? "response.completed" : "response.incomplete", NULL,
        NULL, err);
    r->out = NULL;
    return rc;
}

const struct nk__reply_dialect nk__reply_responses = { .piece = piece,
                                                       .part_begin = part_begin,
                                                       .part_delta = part_delta,
                                                       .part_end = part_end,
                                                       .flush = flush,
                                                       .done = done,
                                                       .end = end,
                                                       .keepalive = keepalive,
                                                       .fail = fail };
