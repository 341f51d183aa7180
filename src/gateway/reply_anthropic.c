/* Anthropic's messages: server-sent events by name, or one object. Blocks are numbered as they
 * come: thinking, text, and one for each call.
 * https://docs.anthropic.com/en/api/messages and .../messages-streaming */
#include "gateway/reply_int.h"

#include <jansson.h>
#include <string.h>

#include "base/json_writer.h"

/* Clients send thinking back with the signature that it came with, and want one; nothing here has
 * to be proved by it. */
static const char signature[] = "nakshatra";

/* What every event begins with; end_event ends it. */
static struct nk_json_writer begin_event(nk_reply *r, const char *type, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(r->out, err);

    w.rc = nk_buf_addf(r->out, err, "event: %s\ndata: ", type);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "type", type);
    return w;
}

static int end_event(struct nk_json_writer *w)
{
    nk_json_end(w, '}');
    return w->rc ? w->rc : nk_buf_adds(w->b, "\n\n", w->err);
}

static const char *stop_reason(const struct nk__reply_choice *c)
{
    if (c->result.finish == NK_FINISH_LENGTH)
        return "max_tokens";
    for (int i = 0; i < c->n_parts; i++)
        if (c->parts[i].kind == NK_OUTPUT_TOOL)
            return "tool_use";
    return c->result.finish == NK_FINISH_STOP && c->result.stop_string[0] ? "stop_sequence"
                                                                          : "end_turn";
}

static void put_stop(struct nk_json_writer *w, const struct nk__reply_choice *c)
{
    const char *reason = stop_reason(c);

    nk_json_put_str(w, "stop_reason", reason);
    nk_json_put_str(w, "stop_sequence",
                    strcmp(reason, "stop_sequence") ? NULL : c->result.stop_string);
}

/* What was reused is not among the input's tokens there. */
static void put_usage(struct nk_json_writer *w, int64_t n_prompt, int64_t n_reused,
                      int64_t n_generated)
{
    nk_json_begin(w, "usage", '{');
    nk_json_put_int(w, "input_tokens", n_prompt - n_reused);
    nk_json_put_int(w, "cache_creation_input_tokens", 0);
    nk_json_put_int(w, "cache_read_input_tokens", n_reused);
    nk_json_put_int(w, "output_tokens", n_generated);
    nk_json_put_str(w, "service_tier", "standard");
    nk_json_end(w, '}');
}

static void put_head(struct nk_json_writer *w, const nk_reply *r)
{
    char id[48];

    snprintf(id, sizeof id, "msg_%s", r->opts.id);
    nk_json_put_str(w, "id", id);
    nk_json_put_str(w, "type", "message");
    nk_json_put_str(w, "role", "assistant");
    nk_json_put_str(w, "model", r->opts.model);
}

/* A call's input is an object. What a model that was cut off has written of it may be none. */
static void put_input(struct nk_json_writer *w, const struct nk_buf *arguments)
{
    json_t *v = json_loadb(nk_buf_str(arguments), arguments->size, 0, NULL);

    nk_json_put_raw(w, "input", json_is_object(v) ? nk_buf_str(arguments) : "{}");
    json_decref(v);
}

static int tool_idx(const struct nk__reply_choice *c, int part)
{
    int n = 0;

    for (int i = 0; i < part; i++)
        n += c->parts[i].kind == NK_OUTPUT_TOOL;
    return n;
}

/* A block: as it begins (empty), or whole. */
static void put_block(struct nk_json_writer *w, const char *key, struct nk__reply_choice *c,
                      int part, bool empty)
{
    const struct nk__reply_part *p = &c->parts[part];
    char plain[NK__CALL_ID_SIZE], id[32];
    size_t size =
        empty || (p->kind == NK_OUTPUT_REASONING && c->r->opts.hide_reasoning) ? 0 : p->text.size;

    nk_json_begin(w, key, '{');
    switch (p->kind) {
    case NK_OUTPUT_REASONING:
        nk_json_put_str(w, "type", "thinking");
        nk_json_put_strn(w, "thinking", nk_buf_str(&p->text), size);
        nk_json_put_str(w, "signature", empty ? "" : signature);
        break;
    case NK_OUTPUT_CONTENT:
        nk_json_put_str(w, "type", "text");
        nk_json_put_strn(w, "text", nk_buf_str(&p->text), size);
        break;
    default:
        snprintf(id, sizeof id, "toolu_%s", nk__reply_call_id(c, tool_idx(c, part), plain));
        nk_json_put_str(w, "type", "tool_use");
        nk_json_put_str(w, "id", id);
        nk_json_put_str(w, "name", p->name);
        if (empty)
            nk_json_put_raw(w, "input", "{}");
        else
            put_input(w, &p->text);
        break;
    }
    nk_json_end(w, '}');
}

/* ---- streamed ---- */

static int begin(nk_reply *r, struct nk_error *err)
{
    struct nk_json_writer w;

    if (r->begun)
        return 0;
    r->begun = true;
    w = begin_event(r, "message_start", err);
    nk_json_begin(&w, "message", '{');
    put_head(&w, r);
    nk_json_begin(&w, "content", '[');
    nk_json_end(&w, ']');
    nk_json_put_null(&w, "stop_reason");
    nk_json_put_null(&w, "stop_sequence");
    /* How much of it was reused is known at the end: message_delta has it. */
    put_usage(&w, r->opts.n_prompt, 0, 0);
    nk_json_end(&w, '}');
    return end_event(&w);
}

static int part_begin(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    struct nk_json_writer w;
    int rc = begin(c->r, err);

    if (rc)
        return rc;
    w = begin_event(c->r, "content_block_start", err);
    nk_json_put_int(&w, "index", part);
    put_block(&w, "content_block", c, part, true);
    return end_event(&w);
}

static int put_delta(struct nk__reply_choice *c, int part, const char *type, const char *key,
                     const char *text, size_t size, struct nk_error *err)
{
    struct nk_json_writer w = begin_event(c->r, "content_block_delta", err);

    nk_json_put_int(&w, "index", part);
    nk_json_begin(&w, "delta", '{');
    nk_json_put_str(&w, "type", type);
    nk_json_put_strn(&w, key, text, size);
    nk_json_end(&w, '}');
    return end_event(&w);
}

static int part_delta(struct nk__reply_choice *c, int part, const char *text, size_t size,
                      struct nk_error *err)
{
    switch (c->parts[part].kind) {
    case NK_OUTPUT_REASONING:
        return c->r->opts.hide_reasoning
                   ? 0
                   : put_delta(c, part, "thinking_delta", "thinking", text, size, err);
    case NK_OUTPUT_CONTENT:
        return put_delta(c, part, "text_delta", "text", text, size, err);
    default:
        return put_delta(c, part, "input_json_delta", "partial_json", text, size, err);
    }
}

static int part_end(struct nk__reply_choice *c, int part, struct nk_error *err)
{
    struct nk_json_writer w;
    int rc = c->parts[part].kind == NK_OUTPUT_REASONING
                 ? put_delta(c, part, "signature_delta", "signature", signature,
                             sizeof signature - 1, err)
                 : 0;

    if (rc)
        return rc;
    w = begin_event(c->r, "content_block_stop", err);
    nk_json_put_int(&w, "index", part);
    return end_event(&w);
}

static int flush(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    (void)out;
    return begin(c->r, err);
}

static int done(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    nk_reply *r = c->r;
    struct nk_json_writer w;
    int rc = begin(r, err);

    (void)out;
    if (rc)
        return rc;
    w = begin_event(r, "message_delta", err);
    nk_json_begin(&w, "delta", '{');
    put_stop(&w, c);
    nk_json_end(&w, '}');
    put_usage(&w, r->n_prompt, r->n_reused, r->n_generated);
    rc = end_event(&w);
    if (rc)
        return rc;
    w = begin_event(r, "message_stop", err);
    return end_event(&w);
}

static int keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    struct nk_json_writer w;
    int rc;

    r->out = out;
    rc = begin(r, err);
    if (!rc) {
        w = begin_event(r, "ping", err);
        rc = end_event(&w);
    }
    r->out = NULL;
    return rc;
}

static int fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    (void)r;
    return nk__error_body(NK_DIALECT_ANTHROPIC, true, err, param, out);
}

/* ---- whole ---- */

static int end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, err);
    struct nk__reply_choice *c = &r->choices[0];

    if (r->opts.stream)
        return 0;
    nk_json_begin(&w, NULL, '{');
    put_head(&w, r);
    nk_json_begin(&w, "content", '[');
    for (int i = 0; i < c->n_parts; i++)
        put_block(&w, NULL, c, i, false);
    nk_json_end(&w, ']');
    put_stop(&w, c);
    put_usage(&w, r->n_prompt, r->n_reused, r->n_generated);
    nk_json_end(&w, '}');
    return w.rc ? w.rc : nk_buf_adds(out, "\n", err);
}

const struct nk__reply_dialect nk__reply_anthropic = { .piece = nk__reply_part_piece,
                                                       .part_begin = part_begin,
                                                       .part_delta = part_delta,
                                                       .part_end = part_end,
                                                       .flush = flush,
                                                       .done = done,
                                                       .end = end,
                                                       .keepalive = keepalive,
                                                       .fail = fail };
