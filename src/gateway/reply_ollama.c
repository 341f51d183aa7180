/* Ollama's chat and generate: a line of JSON for each piece, or one object. */
#include "gateway/reply_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

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

static int write_line(struct nk__reply_choice *c, bool done, struct nk_buf *out,
                      struct nk_error *err)
{
    nk_reply *r = c->r;
    const struct nk_reply_done *d = &c->result;
    bool chat = nk__reply_is_chat(r);
    char now[32], id[NK__CALL_ID_SIZE];
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
                         i ? "," : ",\"tool_calls\":[", nk__reply_call_id(c, i, id), i);
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

/* ---- the table ---- */

static int flush(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    if (!c->content.size && !c->reasoning.size && c->r->opts.n_logprobs < 0)
        return 0;
    return write_line(c, false, out, err);
}

static int done(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    if (c->content.size || c->reasoning.size || c->logprobs.size)
        rc = write_line(c, false, out, err);
    return rc ? rc : write_line(c, true, out, err);
}

static int end(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    return r->opts.stream ? 0 : write_line(&r->choices[0], true, out, err);
}

/* A piece of nothing: its programs wait for a first line, and take each line for JSON. */
static int keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err)
{
    struct nk__reply_choice *c = &r->choices[0];

    return c->done ? 0 : write_line(c, false, out, err);
}

static int fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out)
{
    (void)r;
    return nk__error_body(NK_DIALECT_OLLAMA, true, err, param, out);
}

const struct nk__reply_dialect nk__reply_ollama = { .piece = nk__reply_collect,
                                                    .flush = flush,
                                                    .done = done,
                                                    .end = end,
                                                    .keepalive = keepalive,
                                                    .fail = fail };
