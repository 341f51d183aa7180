#include "gateway/reply.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/json_writer.h"
#include "gateway/reply_int.h"

bool nk__reply_is_chat(const nk_reply *r)
{
    return nk__api_is_chat(r->opts.api);
}

int nk__reply_n_reasoning(const nk_reply *r)
{
    int n = 0;

    for (int i = 0; i < r->opts.n_choices; i++)
        n += r->choices[i].n_reasoning;
    return n;
}

/* Of 46 bits, so that the ids of a conversation are different ones. */
const char *nk__reply_call_id(const struct nk__reply_choice *c, int idx, char out[NK__CALL_ID_SIZE])
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    uint64_t h = 14695981039346656037u ^ ((uint64_t)c->index << 32 | (uint32_t)idx);

    for (const char *p = c->r->opts.id; *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    h ^= h >> 29; /* FNV-1a's low bits know little of what came first */
    h *= 0xbf58476d1ce4e5b9u;
    h ^= h >> 32;
    for (int i = 0; i < 9; i++, h /= 36)
        out[i] = digits[h % 36];
    out[9] = '\0';
    return out;
}

/* ---- pieces ---- */

int nk__reply_collect(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                      size_t size, struct nk_error *err)
{
    size_t max = c->r->opts.text_bytes_max;
    struct nk__reply_tool *t;

    switch (kind) {
    case NK_OUTPUT_CONTENT:
        return nk_buf_add(&c->content, text, size, err);
    case NK_OUTPUT_REASONING:
        return nk_buf_add(&c->reasoning, text, size, err);
    case NK_OUTPUT_ARGUMENTS:
        return nk_buf_add(&c->tools[c->n_tools - 1].arguments, text, size, err);
    case NK_OUTPUT_TOOL:
        break;
    }
    /* A call takes some bytes of the text, so there are fewer calls than bytes. */
    if (nk_array_grow(c->tools, c->tools_capacity, (size_t)c->n_tools + 1, max, NULL))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a tool call");
    t = &c->tools[c->n_tools];
    *t = (struct nk__reply_tool){ .name = strndup(text, size) };
    nk_buf_init(&t->arguments, max);
    if (!t->name)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a tool call");
    c->n_tools++;
    return 0;
}

int nk__reply_part_close(struct nk__reply_choice *c, struct nk_error *err)
{
    struct nk__reply_part *last = c->n_parts ? &c->parts[c->n_parts - 1] : NULL;

    if (!last || last->ended)
        return 0;
    last->ended = true;
    return c->r->out ? c->r->dialect->part_end(c, c->n_parts - 1, err) : 0;
}

int nk__reply_part_piece(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                         size_t size, struct nk_error *err)
{
    size_t max = c->r->opts.text_bytes_max;
    struct nk__reply_part *last = c->n_parts ? &c->parts[c->n_parts - 1] : NULL;
    int rc = 0;

    if (kind != NK_OUTPUT_ARGUMENTS && (!last || last->kind != kind || kind == NK_OUTPUT_TOOL)) {
        rc = nk__reply_part_close(c, err);
        if (rc)
            return rc;
        /* Each takes some bytes of the text. */
        if (nk_array_grow(c->parts, c->parts_capacity, (size_t)c->n_parts + 1, max, NULL))
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply");
        last = &c->parts[c->n_parts];
        *last = (struct nk__reply_part){ .kind = kind };
        nk_buf_init(&last->text, max);
        nk_buf_init(&last->logprobs, max);
        if (kind == NK_OUTPUT_TOOL && !(last->name = strndup(text, size)))
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a tool call");
        c->n_parts++;
        if (c->r->out)
            rc = c->r->dialect->part_begin(c, c->n_parts - 1, err);
    }
    if (rc || kind == NK_OUTPUT_TOOL || !size)
        return rc;
    rc = nk_buf_add(&last->text, text, size, err);
    return !rc && c->r->out ? c->r->dialect->part_delta(c, c->n_parts - 1, text, size, err) : rc;
}

static int collect(void *user, enum nk_output_kind kind, const char *text, size_t size,
                   struct nk_error *err)
{
    struct nk__reply_choice *c = user;

    return c->r->dialect->piece(c, kind, text, size, err);
}

/* ---- life ---- */

static struct nk_buf *buf_of(struct nk__reply_choice *c, int i)
{
    struct nk_buf *bufs[] = { &c->content,  &c->reasoning,  &c->calls,
                              &c->logprobs, &c->lp_tokens,  &c->lp_values,
                              &c->lp_tops,  &c->lp_offsets, &c->raw };

    return i < (int)(sizeof bufs / sizeof bufs[0]) ? bufs[i] : NULL;
}

nk_reply *nk__reply_new(const struct nk_reply_opts *opts)
{
    static const struct nk__reply_dialect *const dialects[] = {
        [NK_DIALECT_OPENAI] = &nk__reply_openai,
        [NK_DIALECT_OLLAMA] = &nk__reply_ollama,
        [NK_DIALECT_ANTHROPIC] = &nk__reply_anthropic,
        [NK_DIALECT_RESPONSES] = &nk__reply_responses,
        [NK_DIALECT_LLAMA] = &nk__reply_llama,
    };
    nk_reply *r = calloc(1, sizeof *r);
    struct nk_buf *b;

    if (!r)
        return NULL;
    r->opts = *opts;
    r->dialect = dialects[nk__api_dialect(opts->api)];
    r->choices = calloc((size_t)opts->n_choices, sizeof *r->choices);
    for (int i = 0; r->choices && i < opts->n_choices; i++) {
        struct nk__reply_choice *c = &r->choices[i];

        c->r = r;
        c->index = i;
        for (int k = 0; (b = buf_of(c, k)); k++)
            nk_buf_init(b, opts->text_bytes_max);
        if (opts->parse) {
            struct nk_output_opts o = opts->output;

            o.sink = collect;
            o.user = c;
            c->output = nk__output_new(&o);
        }
        if (opts->parse && !c->output) {
            nk__reply_free(r);
            return NULL;
        }
    }
    if (!r->choices) {
        free(r);
        return NULL;
    }
    return r;
}

void nk__reply_free(nk_reply *r)
{
    struct nk_buf *b;

    if (!r)
        return;
    for (int i = 0; i < r->opts.n_choices; i++) {
        struct nk__reply_choice *c = &r->choices[i];

        for (int k = 0; (b = buf_of(c, k)); k++)
            nk_buf_release(b);
        for (int k = 0; k < c->n_tools; k++) {
            free(c->tools[k].name);
            nk_buf_release(&c->tools[k].arguments);
        }
        for (int k = 0; k < c->n_parts; k++) {
            free(c->parts[k].name);
            nk_buf_release(&c->parts[k].text);
            nk_buf_release(&c->parts[k].logprobs);
        }
        free(c->tools);
        free(c->ids);
        free(c->parts);
        nk__output_free(c->output);
    }
    free(r->choices);
    free(r);
}

/* ---- what comes in ---- */

static int take_text(struct nk__reply_choice *c, const char *text, size_t size,
                     struct nk_error *err)
{
    int rc = c->r->opts.verbose && size ? nk_buf_add(&c->raw, text, size, err) : 0;

    return rc          ? rc
           : c->output ? nk__output_feed(c->output, text, size, err)
           : size      ? c->r->dialect->piece(c, NK_OUTPUT_CONTENT, text, size, err)
                       : 0;
}

/* Before the first of its text. */
static int begin_text(struct nk__reply_choice *c, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(c->r->opts.text_bytes_max);
    int rc = 0;

    if (c->text_begun)
        return 0;
    c->text_begun = true;
    if (c->r->opts.before)
        rc = c->r->opts.before(c->r->opts.user, c->index, &text, err);
    if (!rc && text.size)
        rc = c->r->dialect->piece(c, NK_OUTPUT_CONTENT, text.data, text.size, err);
    nk_buf_release(&text);
    return rc;
}

int nk__reply_prompt_token(nk_reply *r, int choice, const struct nk_gen_token *t,
                           struct nk_error *err)
{
    struct nk__reply_choice *c = &r->choices[choice];

    if (!t->index) {
        nk_buf_reset(&c->lp_tokens);
        nk_buf_reset(&c->lp_values);
        nk_buf_reset(&c->lp_tops);
        nk_buf_reset(&c->lp_offsets);
        c->lp_offset = 0;
    }
    return nk__reply_add_completion_logprobs(c, t, t->text, t->text_size, err);
}

int nk__reply_token(nk_reply *r, int choice, const struct nk_gen_token *t, struct nk_buf *out,
                    bool *ended, struct nk_error *err)
{
    struct nk__reply_choice *c = &r->choices[choice];
    bool was_reasoning = c->output && nk__output_is_reasoning(c->output);
    int rc = 0;

    *ended = false;
    if (r->opts.no_text)
        return 0;
    /* Before its text: that may take them along. */
    if (r->opts.n_logprobs >= 0)
        rc = r->opts.api == NK_API_COMPLETION
                 ? nk__reply_add_completion_logprobs(c, t, t->piece, t->piece_size, err)
             : r->dialect == &nk__reply_llama ? nk__reply_add_llama_logprobs(c, t, err)
                                              : nk__reply_add_logprobs(c, t, err);
    if (!rc && r->dialect == &nk__reply_llama) {
        rc = nk_array_grow(c->ids, c->ids_capacity, c->n_ids + 1, r->opts.text_bytes_max, err);
        if (!rc)
            c->ids[c->n_ids++] = t->id;
    }
    if (!rc)
        rc = begin_text(c, err);
    r->out = r->opts.stream ? out : NULL;
    if (!rc)
        rc = take_text(c, t->text, t->text_size, err);
    *ended = c->output && nk__output_ended(c->output);
    if (was_reasoning || (c->output && nk__output_is_reasoning(c->output)))
        c->n_reasoning++;
    if (!rc && r->opts.stream)
        rc = r->dialect->flush(c, out, err);
    r->out = NULL;
    return rc;
}

void nk__reply_timings(nk_reply *r, int choice, const struct nk_reply_timings *t)
{
    r->choices[choice].so_far = *t;
}

int nk__reply_progress(nk_reply *r, int choice, const struct nk_reply_progress *p,
                       struct nk_buf *out, struct nk_error *err)
{
    return r->opts.stream && r->dialect->progress
               ? r->dialect->progress(&r->choices[choice], p, out, err)
               : 0;
}

int nk__reply_done(nk_reply *r, int choice, const struct nk_reply_done *d, struct nk_buf *out,
                   struct nk_error *err)
{
    struct nk__reply_choice *c = &r->choices[choice];
    int rc;

    r->out = r->opts.stream ? out : NULL;
    rc = begin_text(c, err);
    if (!rc && !r->opts.no_text)
        rc = take_text(c, d->tail, d->tail_size, err);
    if (!rc && c->output)
        rc = nk__output_finish(c->output, err);
    c->result = *d;
    c->result.tail = NULL;
    c->done = true;
    r->n_prompt += d->counts_prompt ? d->n_prompt : 0;
    r->n_reused += d->counts_prompt ? d->n_reused : 0;
    r->n_generated += d->n_generated;
    r->n_recovered += d->n_recovered;
    r->recovery_us += d->recovery_us;
    r->n_replayed += d->n_replayed;
    if (!rc)
        rc = nk__reply_part_close(c, err);
    if (!rc && r->opts.stream)
        rc = r->dialect->done(c, out, err);
    r->out = NULL;
    return rc;
}

int nk__reply_end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    return r->dialect->end(r, out, err);
}

int nk__reply_keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    return r->dialect->keepalive(r, out, err);
}

int nk__reply_fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    return r->dialect->fail(r, err, param, out);
}

/* ---- errors ---- */

int nk__error_status(const struct nk_error *err)
{
    /* Where HTTP has a word that gRPC's codes have not. */
    static const struct {
        const char *reason;
        int status;
    } special[] = {
        { "body_too_large", 413 },
        { "headers_too_large", 431 },
        { "slow_body", 408 },
        { "unsupported_media_type", 415 },
        { "method_not_allowed", 405 },
        { "too_many", 400 },
        { "context_length_exceeded", 400 },
        { "too_large", 400 },
        { "grammar_too_complex", 400 },
    };

    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
        if (!strcmp(err->reason, special[i].reason))
            return special[i].status;
    return nk_code_http(err->code);
}

/* OpenAI's. */
static const char *type_of(int status)
{
    return status == 401   ? "authentication_error"
           : status == 403 ? "permission_error"
           : status == 429 ? "rate_limit_error"
           : status < 500  ? "invalid_request_error"
                           : "server_error";
}

static const char *anthropic_type_of(int status)
{
    return status == 404   ? "not_found_error"
           : status == 413 ? "request_too_large"
           : status == 503 ? "overloaded_error"
           : status == 504 ? "timeout_error"
           : status < 500  ? type_of(status)
                           : "api_error";
}

int nk__error_body(enum nk_dialect dialect, bool in_stream, const struct nk_error *err,
                   const char *param, struct nk_buf *out)
{
    bool events = in_stream && dialect != NK_DIALECT_OLLAMA;
    /* llama-server's word and figures: its clients make their history shorter by them. */
    bool too_long = !strcmp(err->reason, "context_length_exceeded");
    struct nk_json_writer w = NK_JSON_WRITER(out, NULL);
    int status = nk__error_status(err), rc = 0;

    if (in_stream && (dialect == NK_DIALECT_ANTHROPIC || dialect == NK_DIALECT_RESPONSES))
        rc = nk_buf_adds(out, "event: error\n", NULL);
    if (!rc && events)
        rc = nk_buf_adds(out, "data: ", NULL);
    w.rc = rc;
    nk_json_begin(&w, NULL, '{');
    if (dialect == NK_DIALECT_OLLAMA) {
        nk_json_put_str(&w, "error", err->msg);
    } else if (dialect == NK_DIALECT_ANTHROPIC) {
        nk_json_put_str(&w, "type", "error");
        nk_json_begin(&w, "error", '{');
        nk_json_put_str(&w, "type", anthropic_type_of(status));
        nk_json_put_str(&w, "message", err->msg);
        nk_json_begin(&w, "details", '{');
        nk_json_put_str(&w, "error_code", err->reason);
        nk_json_end(&w, '}');
        nk_json_end(&w, '}');
    } else if (dialect == NK_DIALECT_RESPONSES && in_stream) {
        nk_json_put_str(&w, "type", "error");
        nk_json_put_str(&w, "code", err->reason);
        nk_json_put_str(&w, "message", err->msg);
        nk_json_put_str(&w, "param", param && param[0] ? param : NULL);
        nk_json_put_int(&w, "sequence_number", 0);
    } else {
        nk_json_begin(&w, "error", '{');
        nk_json_put_str(&w, "message", err->msg);
        nk_json_put_str(&w, "type", too_long ? "exceed_context_size_error" : type_of(status));
        nk_json_put_str(&w, "param", param && param[0] ? param : NULL);
        nk_json_put_str(&w, "code", err->reason);
        if (too_long && err->n_found)
            nk_json_put_int(&w, "n_prompt_tokens", err->n_found);
        if (too_long && err->n_max)
            nk_json_put_int(&w, "n_ctx", err->n_max);
        nk_json_end(&w, '}');
    }
    nk_json_end(&w, '}');
    return w.rc ? w.rc : nk_buf_adds(out, events ? "\n\n" : "\n", NULL);
}
