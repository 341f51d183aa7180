/* OpenAI's chat completions and completions: server-sent events, ended by [DONE], or an object. */
#include "gateway/reply_int.h"

#include <math.h>
#include <string.h>

#include "base/json.h"

/* ---- log-probabilities ---- */

/* OpenAI has -9999.0 for what is too improbable to be a number. */
static int add_logprob(struct nk_buf *b, float logprob, struct nk_error *err)
{
    return nk_json_num(b, isfinite(logprob) ? (double)logprob : -9999.0, err);
}

static int add_token_prob(struct nk_buf *b, const char *text, size_t size, float logprob,
                          struct nk_error *err)
{
    int rc = nk_buf_adds(b, "{\"token\":", err);

    if (!rc)
        rc = nk_json_strn(b, text, size, err);
    if (!rc)
        rc = nk_buf_adds(b, ",\"logprob\":", err);
    if (!rc)
        rc = add_logprob(b, logprob, err);
    if (!rc)
        rc = nk_buf_adds(b, ",\"bytes\":[", err);
    for (size_t i = 0; i < size && !rc; i++)
        rc = nk_buf_addf(b, err, "%s%d", i ? "," : "", (unsigned char)text[i]);
    return rc ? rc : nk_buf_adds(b, "]", err);
}

int nk__reply_add_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                           struct nk_error *err)
{
    struct nk_buf *b = &c->logprobs;
    int rc = b->size ? nk_buf_adds(b, ",", err) : 0;

    if (!rc)
        rc = add_token_prob(b, t->piece, t->piece_size, t->logprob, err);
    if (!rc)
        rc = nk_buf_adds(b, ",\"top_logprobs\":[", err);
    for (int i = 0; i < t->n_top && !rc; i++) {
        rc = i ? nk_buf_adds(b, ",", err) : 0;
        if (!rc)
            rc = add_token_prob(b, t->top[i].text, t->top[i].text_size, t->top[i].logprob, err);
        if (!rc)
            rc = nk_buf_adds(b, "}", err);
    }
    return rc ? rc : nk_buf_adds(b, "]}", err);
}

int nk__reply_add_completion_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                                      const char *text, size_t text_size, struct nk_error *err)
{
    bool has_none = isnan(t->logprob); /* the prompt's first token */
    const char *comma = c->lp_tokens.size ? "," : "";
    int rc = nk_buf_adds(&c->lp_tokens, comma, err);

    if (!rc)
        rc = nk_json_strn(&c->lp_tokens, t->piece, t->piece_size, err);
    if (!rc)
        rc = nk_buf_adds(&c->lp_values, comma, err);
    if (!rc)
        rc = has_none ? nk_buf_adds(&c->lp_values, "null", err)
                      : add_logprob(&c->lp_values, t->logprob, err);
    if (!rc)
        rc = nk_buf_addf(&c->lp_offsets, err, "%s%zu", comma, c->lp_offset);
    for (size_t i = 0; i < text_size; i++)
        c->lp_offset += ((unsigned char)text[i] & 0xc0) != 0x80; /* characters, not bytes */
    if (!rc && has_none)
        return nk_buf_addf(&c->lp_tops, err, "%snull", comma);
    if (!rc)
        rc = nk_buf_addf(&c->lp_tops, err, "%s{", comma);
    for (int i = 0; i < t->n_top && !rc; i++) {
        rc = i ? nk_buf_adds(&c->lp_tops, ",", err) : 0;
        if (!rc)
            rc = nk_json_strn(&c->lp_tops, t->top[i].text, t->top[i].text_size, err);
        if (!rc)
            rc = nk_buf_adds(&c->lp_tops, ":", err);
        if (!rc)
            rc = add_logprob(&c->lp_tops, t->top[i].logprob, err);
    }
    return rc ? rc : nk_buf_adds(&c->lp_tops, "}", err);
}

/* ,"logprobs":... and forgets them. */
static int write_logprobs(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    bool chat = nk__reply_is_chat(c->r);
    int rc;

    if (c->r->opts.n_logprobs < 0 || (chat ? !c->logprobs.size : !c->lp_tokens.size))
        return nk_buf_adds(out, ",\"logprobs\":null", err);
    if (chat)
        rc = nk_buf_addf(out, err, ",\"logprobs\":{\"content\":[%s],\"refusal\":null}",
                         nk_buf_str(&c->logprobs));
    else if (c->r->opts.n_logprobs == 0)
        rc = nk_buf_addf(out, err,
                         ",\"logprobs\":{\"tokens\":[%s],\"token_logprobs\":[%s],\"top_logprobs\":"
                         "null,\"text_offset\":[%s]}",
                         nk_buf_str(&c->lp_tokens), nk_buf_str(&c->lp_values),
                         nk_buf_str(&c->lp_offsets));
    else
        rc = nk_buf_addf(out, err,
                         ",\"logprobs\":{\"tokens\":[%s],\"token_logprobs\":[%s],\"top_logprobs\":["
                         "%s],\"text_offset\":[%s]}",
                         nk_buf_str(&c->lp_tokens), nk_buf_str(&c->lp_values),
                         nk_buf_str(&c->lp_tops), nk_buf_str(&c->lp_offsets));
    nk_buf_reset(&c->logprobs);
    nk_buf_reset(&c->lp_tokens);
    nk_buf_reset(&c->lp_values);
    nk_buf_reset(&c->lp_tops);
    nk_buf_reset(&c->lp_offsets);
    return rc;
}

/* ---- pieces ---- */

/* Streamed calls are deltas: the name first, then the arguments as they come. */
static int piece(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                 size_t size, struct nk_error *err)
{
    char id[NK__CALL_ID_SIZE];
    int rc = 0;

    if (!c->r->opts.stream || kind != NK_OUTPUT_ARGUMENTS)
        rc = nk__reply_collect(c, kind, text, size, err);
    if (rc || !c->r->opts.stream || (kind != NK_OUTPUT_TOOL && kind != NK_OUTPUT_ARGUMENTS))
        return rc;
    rc = nk_buf_addf(&c->calls, err, "%s{\"index\":%d,", c->calls.size ? "," : "", c->n_tools - 1);
    if (!rc && kind == NK_OUTPUT_TOOL)
        rc = nk_buf_addf(&c->calls, err,
                         "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                         nk__reply_call_id(c, c->n_tools - 1, id));
    else if (!rc)
        rc = nk_buf_adds(&c->calls, "\"function\":{\"arguments\":", err);
    if (!rc)
        rc = nk_json_strn(&c->calls, text, size, err);
    return rc ? rc
              : nk_buf_adds(&c->calls, kind == NK_OUTPUT_TOOL ? ",\"arguments\":\"\"}}" : "}}",
                            err);
}
/* ---- replies ---- */

static const char *finish_word(const struct nk__reply_choice *c)
{
    if (c->result.finish == NK_FINISH_LENGTH)
        return "length";
    return c->n_tools ? "tool_calls" : "stop";
}

/* {"id":...,"object":...,"created":...,"model":...,"system_fingerprint":... */
static int write_head(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    bool chat = nk__reply_is_chat(r);
    int rc =
        nk_buf_addf(out, err, "%s{\"id\":\"%s-%s\",\"object\":\"%s%s\",\"created\":%lld,\"model\":",
                    r->opts.stream ? "data: " : "", chat ? "chatcmpl" : "cmpl", r->opts.id,
                    chat ? "chat.completion" : "text_completion",
                    chat && r->opts.stream ? ".chunk" : "", (long long)r->opts.created);

    if (!rc)
        rc = nk_json_str(out, r->opts.model, err);
    if (!rc)
        rc = nk_buf_adds(out, ",\"system_fingerprint\":", err);
    return rc ? rc : nk_json_str(out, r->opts.fingerprint, err);
}

static int write_usage(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_addf(
        out, err,
        ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%lld},\"completion_tokens_details\":{"
        "\"reasoning_tokens\":%d",
        (long long)r->n_prompt, (long long)r->n_generated,
        (long long)(r->n_prompt + r->n_generated), (long long)r->n_reused,
        nk__reply_n_reasoning(r));

    if (!rc && r->n_recovered)
        rc =
            nk_buf_addf(out, err, ",\"recovered\":%d,\"recovery_ms\":%llu,\"replayed_tokens\":%llu",
                        r->n_recovered, (unsigned long long)r->recovery_us / 1000,
                        (unsigned long long)r->n_replayed);
    return rc ? rc : nk_buf_adds(out, "}}", err);
}

static int write_timings(const nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    const struct nk_reply_timings t = nk__reply_timings_of(&r->choices[0]);

    return nk__reply_write_timings(&t, out, err);
}

/* The first chunk of a chat's choice has the role alone, as OpenAI's has. */
static int write_role(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    if (c->begun || !nk__reply_is_chat(c->r))
        return 0;
    c->begun = true;
    rc = write_head(c->r, out, err);
    if (!rc)
        rc =
            nk_buf_addf(out, err,
                        ",\"choices\":[{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":"
                        "null},\"logprobs\":null,\"finish_reason\":null}]%s}\n\n",
                        c->index, c->r->opts.include_usage ? ",\"usage\":null" : "");
    return rc;
}

/* One chunk of a stream. finish NULL: not the choice's last. */
static int write_chunk(struct nk__reply_choice *c, const char *finish, struct nk_buf *out,
                       struct nk_error *err)
{
    nk_reply *r = c->r;
    const char *comma = "";
    int rc = write_head(r, out, err);

    if (!rc)
        rc = nk_buf_addf(out, err, ",\"choices\":[{\"index\":%d,", c->index);
    if (!nk__reply_is_chat(r)) {
        if (!rc)
            rc = nk_buf_adds(out, "\"text\":", err);
        if (!rc)
            rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
    } else {
        if (!rc)
            rc = nk_buf_adds(out, "\"delta\":{", err);
        if (!rc && c->reasoning.size) {
            rc = nk_buf_addf(out, err, "%s\"reasoning_content\":", comma);
            if (!rc)
                rc = nk_json_strn(out, c->reasoning.data, c->reasoning.size, err);
            comma = ",";
        }
        if (!rc && c->content.size) {
            rc = nk_buf_addf(out, err, "%s\"content\":", comma);
            if (!rc)
                rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
            comma = ",";
        }
        if (!rc && c->calls.size)
            rc = nk_buf_addf(out, err, "%s\"tool_calls\":[%s]", comma, c->calls.data);
        if (!rc)
            rc = nk_buf_adds(out, "}", err);
    }
    if (!rc)
        rc = write_logprobs(c, out, err);
    if (!rc)
        rc = finish ? nk_buf_addf(out, err, ",\"finish_reason\":\"%s\"}]", finish)
                    : nk_buf_adds(out, ",\"finish_reason\":null}]", err);
    if (!rc && r->opts.include_usage)
        rc = nk_buf_adds(out, ",\"usage\":null", err);
    if (!rc && (finish ? !r->opts.include_usage : r->opts.timings_per_token)) {
        struct nk_reply_timings t = finish ? nk__reply_timings_of(c) : c->so_far;

        rc = nk__reply_write_timings(&t, out, err);
    }
    if (!rc && finish && r->opts.verbose)
        rc = nk__reply_write_verbose(c, out, err);
    if (!rc)
        rc = nk_buf_adds(out, "}\n\n", err);
    c->begun = true;
    nk_buf_reset(&c->content);
    nk_buf_reset(&c->reasoning);
    nk_buf_reset(&c->calls);
    return rc;
}

static int write_message(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "\"message\":{\"role\":\"assistant\",\"content\":", err);
    char id[NK__CALL_ID_SIZE];

    if (!rc && !c->content.size && c->n_tools)
        rc = nk_buf_adds(out, "null", err);
    else if (!rc)
        rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
    if (!rc && c->reasoning.size) {
        rc = nk_buf_adds(out, ",\"reasoning_content\":", err);
        if (!rc)
            rc = nk_json_strn(out, c->reasoning.data, c->reasoning.size, err);
    }
    for (int i = 0; i < c->n_tools && !rc; i++) {
        rc = nk_buf_addf(out, err, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                         i ? "," : ",\"tool_calls\":[", nk__reply_call_id(c, i, id));
        if (!rc)
            rc = nk_json_str(out, c->tools[i].name, err);
        if (!rc)
            rc = nk_buf_adds(out, ",\"arguments\":", err);
        if (!rc)
            rc = nk_json_strn(out, nk_buf_str(&c->tools[i].arguments), c->tools[i].arguments.size,
                              err);
        if (!rc)
            rc = nk_buf_adds(out, "}}", err);
    }
    if (!rc && c->n_tools)
        rc = nk_buf_adds(out, "]", err);
    return rc ? rc : nk_buf_adds(out, ",\"refusal\":null}", err);
}

static int write_whole(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = write_head(r, out, err);

    if (!rc)
        rc = nk_buf_adds(out, ",\"choices\":[", err);
    for (int i = 0; i < r->opts.n_choices && !rc; i++) {
        struct nk__reply_choice *c = &r->choices[i];

        rc = nk_buf_addf(out, err, "%s{\"index\":%d,", i ? "," : "", i);
        if (!rc && nk__reply_is_chat(r))
            rc = write_message(c, out, err);
        else if (!rc) {
            rc = nk_buf_adds(out, "\"text\":", err);
            if (!rc)
                rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
        }
        if (!rc)
            rc = write_logprobs(c, out, err);
        if (!rc)
            rc = nk_buf_addf(out, err, ",\"finish_reason\":\"%s\"}", finish_word(c));
    }
    if (!rc)
        rc = nk_buf_adds(out, "]", err);
    if (!rc)
        rc = write_usage(r, out, err);
    if (!rc)
        rc = write_timings(r, out, err);
    if (!rc && r->opts.verbose)
        rc = nk__reply_write_verbose(&r->choices[0], out, err);
    return rc ? rc : nk_buf_adds(out, "}\n", err);
}

/* ---- the table ---- */

static int flush(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = write_role(c, out, err);

    if (!c->content.size && !c->reasoning.size && !c->calls.size && c->r->opts.n_logprobs < 0 &&
        c->begun)
        return rc;
    return rc ? rc : write_chunk(c, NULL, out, err);
}

/* A chunk with nothing in it but that. */
static int progress(struct nk__reply_choice *c, const struct nk_reply_progress *p,
                    struct nk_buf *out, struct nk_error *err)
{
    int rc = write_role(c, out, err);

    if (!rc)
        rc = write_head(c->r, out, err);
    if (!rc)
        rc = nk_buf_addf(
            out, err, ",\"choices\":[{\"index\":%d,%s,\"logprobs\":null,\"finish_reason\":null}]%s",
            c->index, nk__reply_is_chat(c->r) ? "\"delta\":{}" : "\"text\":\"\"",
            c->r->opts.include_usage ? ",\"usage\":null" : "");
    if (!rc)
        rc = nk__reply_write_progress(p, out, err);
    return rc ? rc : nk_buf_adds(out, "}\n\n", err);
}

static int done(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = write_role(c, out, err);

    if (!rc && nk__reply_is_chat(c->r) && (c->content.size || c->reasoning.size || c->calls.size))
        rc = write_chunk(c, NULL, out, err);
    return rc ? rc : write_chunk(c, finish_word(c), out, err);
}

static int end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    if (!r->opts.stream)
        return write_whole(r, out, err);
    if (r->opts.include_usage) {
        rc = write_head(r, out, err);
        if (!rc)
            rc = nk_buf_adds(out, ",\"choices\":[]", err);
        if (!rc)
            rc = write_usage(r, out, err);
        if (!rc)
            rc = write_timings(r, out, err);
        if (!rc)
            rc = nk_buf_adds(out, "}\n\n", err);
    }
    return rc ? rc : nk_buf_adds(out, "data: [DONE]\n\n", err);
}

static int keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    (void)r;
    return nk_buf_adds(out, ":\n\n", err);
}

static int fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    (void)r;
    return nk__error_body(NK_DIALECT_OPENAI, true, err, param, out);
}

const struct nk__reply_dialect nk__reply_openai = {
    .piece = piece,
    .flush = flush,
    .progress = progress,
    .done = done,
    .end = end,
    .keepalive = keepalive,
    .fail = fail,
};
