#include "gateway/reply.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/json.h"

struct tool {
    char *name;
    struct nk_buf arguments;
};

struct choice {
    nk_reply *r;
    int index;
    nk_output *output;
    /* What came since the last chunk (streamed) or from the beginning (not streamed). */
    struct nk_buf content, reasoning, calls, logprobs;
    /* completions: the four lists of log-probabilities */
    struct nk_buf lp_tokens, lp_values, lp_tops, lp_offsets;
    size_t lp_offset;
    struct tool *tools;
    size_t tools_capacity;
    int n_tools;
    bool begun, done;
    int n_reasoning;
    struct nk_reply_done result;
};

struct nk_reply {
    struct nk_reply_opts opts;
    struct choice *choices;
    int64_t n_prompt, n_reused, n_generated;
    int n_recovered;
    uint64_t recovery_us, n_replayed;
};

static bool is_chat(const nk_reply *r)
{
    return r->opts.api == NK_API_CHAT || r->opts.api == NK_API_OLLAMA_CHAT;
}

static bool is_openai(const nk_reply *r)
{
    return nk__api_is_openai(r->opts.api);
}

/* Nine letters and digits: Mistral's templates refuse any other id when it comes back. Of 46 bits,
 * so that the ids of a conversation are different ones. */
static const char *call_id(const struct choice *c, int idx, char out[10])
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

/* The sink of the output parser. */
static int collect(void *user, enum nk_output_kind kind, const char *text, size_t size,
                   struct nk_error *err)
{
    struct choice *c = user;
    nk_reply *r = c->r;
    bool deltas = r->opts.stream && is_openai(r);
    char id[10];
    int rc;

    switch (kind) {
    case NK_OUTPUT_CONTENT:
        return nk_buf_add(&c->content, text, size, err);
    case NK_OUTPUT_REASONING:
        return nk_buf_add(&c->reasoning, text, size, err);
    case NK_OUTPUT_TOOL: {
        struct tool *t;

        /* A call takes some bytes of the text, so there are fewer calls than bytes. */
        if (nk_array_grow(c->tools, c->tools_capacity, (size_t)c->n_tools + 1,
                          r->opts.text_bytes_max, NULL))
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a tool call");
        t = &c->tools[c->n_tools];
        *t = (struct tool){ .name = strndup(text, size) };
        nk_buf_init(&t->arguments, r->opts.text_bytes_max);
        if (!t->name)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a tool call");
        c->n_tools++;
        if (!deltas)
            return 0;
        rc = nk_buf_addf(&c->calls, err,
                         "%s{\"index\":%d,\"id\":\"%s\",\"type\":\"function\","
                         "\"function\":{\"name\":",
                         c->calls.size ? "," : "", c->n_tools - 1, call_id(c, c->n_tools - 1, id));
        if (!rc)
            rc = nk_json_strn(&c->calls, text, size, err);
        return rc ? rc : nk_buf_adds(&c->calls, ",\"arguments\":\"\"}}", err);
    }
    case NK_OUTPUT_ARGUMENTS:
        if (!deltas)
            return nk_buf_add(&c->tools[c->n_tools - 1].arguments, text, size, err);
        rc = nk_buf_addf(&c->calls, err,
                         "%s{\"index\":%d,\"function\":{\"arguments\":", c->calls.size ? "," : "",
                         c->n_tools - 1);
        if (!rc)
            rc = nk_json_strn(&c->calls, text, size, err);
        return rc ? rc : nk_buf_adds(&c->calls, "}}", err);
    }
    return 0;
}

nk_reply *nk__reply_new(const struct nk_reply_opts *opts)
{
    nk_reply *r = calloc(1, sizeof *r);

    if (!r)
        return NULL;
    r->opts = *opts;
    r->choices = calloc((size_t)opts->n_choices, sizeof *r->choices);
    for (int i = 0; r->choices && i < opts->n_choices; i++) {
        struct choice *c = &r->choices[i];
        struct nk_buf *bufs[] = { &c->content,   &c->reasoning, &c->calls,   &c->logprobs,
                                  &c->lp_tokens, &c->lp_values, &c->lp_tops, &c->lp_offsets };

        c->r = r;
        c->index = i;
        for (size_t k = 0; k < sizeof bufs / sizeof bufs[0]; k++)
            nk_buf_init(bufs[k], opts->text_bytes_max);
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
    if (!r)
        return;
    for (int i = 0; i < r->opts.n_choices; i++) {
        struct choice *c = &r->choices[i];
        struct nk_buf *bufs[] = { &c->content,   &c->reasoning, &c->calls,   &c->logprobs,
                                  &c->lp_tokens, &c->lp_values, &c->lp_tops, &c->lp_offsets };

        for (size_t k = 0; k < sizeof bufs / sizeof bufs[0]; k++)
            nk_buf_release(bufs[k]);
        for (int k = 0; k < c->n_tools; k++) {
            free(c->tools[k].name);
            nk_buf_release(&c->tools[k].arguments);
        }
        free(c->tools);
        nk__output_free(c->output);
    }
    free(r->choices);
    free(r);
}

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

static int add_chat_logprobs(struct choice *c, const struct nk_gen_token *t, struct nk_error *err)
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

static int add_completion_logprobs(struct choice *c, const struct nk_gen_token *t,
                                   struct nk_error *err)
{
    const char *comma = c->lp_tokens.size ? "," : "";
    int rc = nk_buf_adds(&c->lp_tokens, comma, err);

    if (!rc)
        rc = nk_json_strn(&c->lp_tokens, t->piece, t->piece_size, err);
    if (!rc)
        rc = nk_buf_adds(&c->lp_values, comma, err);
    if (!rc)
        rc = add_logprob(&c->lp_values, t->logprob, err);
    if (!rc)
        rc = nk_buf_addf(&c->lp_offsets, err, "%s%zu", comma, c->lp_offset);
    for (size_t i = 0; i < t->piece_size; i++)
        c->lp_offset += ((unsigned char)t->piece[i] & 0xc0) != 0x80; /* characters, not bytes */
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
static int write_logprobs(struct choice *c, struct nk_buf *out, struct nk_error *err)
{
    bool chat = is_chat(c->r);
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

/* ---- OpenAI ---- */

static const char *finish_word(const struct choice *c)
{
    if (c->result.finish == NK_FINISH_LENGTH)
        return "length";
    return c->n_tools ? "tool_calls" : "stop";
}

/* {"id":...,"object":...,"created":...,"model":...,"system_fingerprint":... */
static int write_head(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    bool chat = is_chat(r);
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
    int n_reasoning = 0, rc;

    for (int i = 0; i < r->opts.n_choices; i++)
        n_reasoning += r->choices[i].n_reasoning;
    rc = nk_buf_addf(
        out, err,
        ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%lld},\"completion_tokens_details\":{"
        "\"reasoning_tokens\":%d",
        (long long)r->n_prompt, (long long)r->n_generated,
        (long long)(r->n_prompt + r->n_generated), (long long)r->n_reused, n_reasoning);
    if (!rc && r->n_recovered)
        rc =
            nk_buf_addf(out, err, ",\"recovered\":%d,\"recovery_ms\":%llu,\"replayed_tokens\":%llu",
                        r->n_recovered, (unsigned long long)r->recovery_us / 1000,
                        (unsigned long long)r->n_replayed);
    return rc ? rc : nk_buf_adds(out, "}}", err);
}

/* One chunk of a stream. finish NULL: not the choice's last. */
static int write_chunk(struct choice *c, const char *finish, struct nk_buf *out,
                       struct nk_error *err)
{
    nk_reply *r = c->r;
    const char *comma = "";
    int rc = write_head(r, out, err);

    if (!rc)
        rc = nk_buf_addf(out, err, ",\"choices\":[{\"index\":%d,", c->index);
    if (!is_chat(r)) {
        if (!rc)
            rc = nk_buf_adds(out, "\"text\":", err);
        if (!rc)
            rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
    } else {
        if (!rc)
            rc = nk_buf_adds(out, "\"delta\":{", err);
        if (!rc && !c->begun) {
            rc = nk_buf_adds(out, "\"role\":\"assistant\"", err);
            comma = ",";
        }
        if (!rc && c->reasoning.size) {
            rc = nk_buf_addf(out, err, "%s\"reasoning_content\":", comma);
            if (!rc)
                rc = nk_json_strn(out, c->reasoning.data, c->reasoning.size, err);
            comma = ",";
        }
        if (!rc && (c->content.size || (!c->begun && !c->reasoning.size && !c->calls.size))) {
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
    if (!rc)
        rc = nk_buf_adds(out, "}\n\n", err);
    c->begun = true;
    nk_buf_reset(&c->content);
    nk_buf_reset(&c->reasoning);
    nk_buf_reset(&c->calls);
    return rc;
}

static int write_message(struct choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_adds(out, "\"message\":{\"role\":\"assistant\",\"content\":", err);
    char id[10];

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
                         i ? "," : ",\"tool_calls\":[", call_id(c, i, id));
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

static int write_openai(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = write_head(r, out, err);

    if (!rc)
        rc = nk_buf_adds(out, ",\"choices\":[", err);
    for (int i = 0; i < r->opts.n_choices && !rc; i++) {
        struct choice *c = &r->choices[i];

        rc = nk_buf_addf(out, err, "%s{\"index\":%d,", i ? "," : "", i);
        if (!rc && is_chat(r))
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
    return rc ? rc : nk_buf_adds(out, "}\n", err);
}

/* A whole value, compact. */
static int add_value(struct nk_buf *b, const json_t *value, struct nk_error *err)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    int rc;

    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a JSON value");
    rc = nk_buf_adds(b, text, err);
    free(text);
    return rc;
}

/* ---- Ollama ---- */

static int write_ollama(struct choice *c, bool done, struct nk_buf *out, struct nk_error *err)
{
    nk_reply *r = c->r;
    const struct nk_reply_done *d = &c->result;
    bool chat = is_chat(r);
    char now[32], id[10];
    int rc = nk_buf_adds(out, "{\"model\":", err);

    r->opts.utc(now, sizeof now);
    if (!rc)
        rc = nk_json_str(out, r->opts.model, err);
    if (!rc)
        rc = nk_buf_addf(out, err, ",\"created_at\":\"%s\",%s", now,
                         chat ? "\"message\":{\"role\":\"assistant\",\"content\":"
                              : "\"response\":");
    if (!rc)
        rc = nk_json_strn(out, nk_buf_str(&c->content), c->content.size, err);
    if (!rc && c->reasoning.size) {
        rc = nk_buf_adds(out, ",\"thinking\":", err);
        if (!rc)
            rc = nk_json_strn(out, c->reasoning.data, c->reasoning.size, err);
    }
    /* Arguments are an object here: what the model wrote must be one by now. */
    for (int i = 0; i < c->n_tools && done && !rc; i++) {
        json_t *arguments =
            json_loadb(nk_buf_str(&c->tools[i].arguments), c->tools[i].arguments.size, 0, NULL);

        rc = nk_buf_addf(out, err, "%s{\"id\":\"%s\",\"function\":{\"index\":%d,\"name\":",
                         i ? "," : ",\"tool_calls\":[", call_id(c, i, id), i);
        if (!rc)
            rc = nk_json_str(out, c->tools[i].name, err);
        if (!rc)
            rc = nk_buf_adds(out, ",\"arguments\":", err);
        if (!rc)
            rc = arguments ? add_value(out, arguments, err)
                           : nk_json_strn(out, nk_buf_str(&c->tools[i].arguments),
                                          c->tools[i].arguments.size, err);
        if (!rc)
            rc = nk_buf_adds(out, "}}", err);
        json_decref(arguments);
    }
    if (!rc && done && c->n_tools)
        rc = nk_buf_adds(out, "]", err);
    if (!rc && chat)
        rc = nk_buf_adds(out, "}", err);
    if (!rc && c->logprobs.size)
        rc = nk_buf_addf(out, err, ",\"logprobs\":[%s]", c->logprobs.data);
    if (!rc && done) {
        rc = nk_buf_addf(out, err,
                         ",\"done\":true,\"done_reason\":\"%s\",\"total_duration\":%llu,\"load_"
                         "duration\":%llu,\"prompt_eval_count\":%d,"
                         "\"prompt_eval_duration\":%llu,\"eval_count\":%d,\"eval_duration\":%llu",
                         d->finish == NK_FINISH_LENGTH ? "length" : "stop",
                         (unsigned long long)d->total_us * 1000,
                         (unsigned long long)d->waiting_us * 1000, d->n_prompt,
                         (unsigned long long)d->prefill_us * 1000, d->n_generated,
                         (unsigned long long)d->decode_us * 1000);
        for (size_t i = 0; i < d->n_context && !rc; i++)
            rc = nk_buf_addf(out, err, "%s%d", i ? "," : ",\"context\":[", d->context[i]);
        if (!rc && d->n_context)
            rc = nk_buf_adds(out, "]", err);
    } else if (!rc)
        rc = nk_buf_adds(out, ",\"done\":false", err);
    if (!rc)
        rc = nk_buf_adds(out, "}\n", err);
    nk_buf_reset(&c->content);
    nk_buf_reset(&c->reasoning);
    nk_buf_reset(&c->logprobs);
    c->begun = true;
    return rc;
}

/* ---- what comes in ---- */

static int take_text(struct choice *c, const char *text, size_t size, struct nk_error *err)
{
    return c->output ? nk__output_feed(c->output, text, size, err)
                     : nk_buf_add(&c->content, text, size, err);
}

int nk__reply_token(nk_reply *r, int choice, const struct nk_gen_token *t, struct nk_buf *out,
                    bool *ended, struct nk_error *err)
{
    struct choice *c = &r->choices[choice];
    bool was_reasoning = c->output && nk__output_is_reasoning(c->output);
    int rc = take_text(c, t->text, t->text_size, err);

    *ended = c->output && nk__output_ended(c->output);
    if (was_reasoning || (c->output && nk__output_is_reasoning(c->output)))
        c->n_reasoning++;
    if (!rc && r->opts.n_logprobs >= 0)
        rc = is_chat(r) || !is_openai(r) ? add_chat_logprobs(c, t, err)
                                         : add_completion_logprobs(c, t, err);
    if (rc || !r->opts.stream)
        return rc;
    if (!c->content.size && !c->reasoning.size && !c->calls.size && r->opts.n_logprobs < 0 &&
        (c->begun || !is_openai(r)))
        return 0;
    return is_openai(r) ? write_chunk(c, NULL, out, err) : write_ollama(c, false, out, err);
}

int nk__reply_done(nk_reply *r, int choice, const struct nk_reply_done *d, struct nk_buf *out,
                   struct nk_error *err)
{
    struct choice *c = &r->choices[choice];
    int rc = take_text(c, d->tail, d->tail_size, err);

    if (!rc && c->output)
        rc = nk__output_finish(c->output, err);
    c->result = *d;
    c->done = true;
    r->n_prompt += d->counts_prompt ? d->n_prompt : 0;
    r->n_reused += d->counts_prompt ? d->n_reused : 0;
    r->n_generated += d->n_generated;
    r->n_recovered += d->n_recovered;
    r->recovery_us += d->recovery_us;
    r->n_replayed += d->n_replayed;
    if (rc || !r->opts.stream)
        return rc;
    if (!is_openai(r)) {
        if (c->content.size || c->reasoning.size || c->logprobs.size)
            rc = write_ollama(c, false, out, err);
        return rc ? rc : write_ollama(c, true, out, err);
    }
    if (is_chat(r) && (c->content.size || c->reasoning.size || c->calls.size || !c->begun))
        rc = write_chunk(c, NULL, out, err);
    return rc ? rc : write_chunk(c, finish_word(c), out, err);
}

int nk__reply_end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    if (!is_openai(r))
        return r->opts.stream ? 0 : write_ollama(&r->choices[0], true, out, err);
    if (!r->opts.stream)
        return write_openai(r, out, err);
    if (r->opts.include_usage) {
        rc = write_head(r, out, err);
        if (!rc)
            rc = nk_buf_adds(out, ",\"choices\":[]", err);
        if (!rc)
            rc = write_usage(r, out, err);
        if (!rc)
            rc = nk_buf_adds(out, "}\n\n", err);
    }
    return rc ? rc : nk_buf_adds(out, "data: [DONE]\n\n", err);
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

int nk__error_body(bool openai, bool in_stream, const struct nk_error *err, const char *param,
                   struct nk_buf *out)
{
    int status = nk__error_status(err);
    const char *type = status == 401   ? "authentication_error"
                       : status == 403 ? "permission_error"
                       : status == 429 ? "rate_limit_error"
                       : status < 500  ? "invalid_request_error"
                                       : "server_error";
    int rc = nk_buf_adds(out,
                         openai ? in_stream ? "data: {\"error\":{\"message\":"
                                            : "{\"error\":{\"message\":"
                                : "{\"error\":",
                         NULL);

    if (!rc)
        rc = nk_json_str(out, err->msg, NULL);
    if (openai) {
        if (!rc)
            rc = nk_buf_addf(out, NULL, ",\"type\":\"%s\",\"param\":", type);
        if (!rc)
            rc = nk_json_str(out, param && param[0] ? param : NULL, NULL);
        if (!rc)
            rc = nk_buf_adds(out, ",\"code\":", NULL);
        if (!rc)
            rc = nk_json_str(out, err->reason, NULL);
        if (!rc)
            rc = nk_buf_adds(out, "}", NULL);
    }
    return rc ? rc : nk_buf_adds(out, openai && in_stream ? "}\n\n" : "}\n", NULL);
}
