/* The model as OpenAI's and Ollama's routes list and show it. */
#include "gateway/routes_int.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "gateway/model.h"

static uint64_t weights_bytes(const struct nk_snapshot *s)
{
    const struct nk_chain_report *r = nk__routes_report(s);
    uint64_t sum = 0;

    for (int i = 0; r && i < r->n_workers; i++)
        sum += r->workers[i].answered ? r->workers[i].weights_bytes : 0;
    return sum;
}

/* Ollama's words; "rerank" is ours. */
static void write_capabilities(struct out *o, nk_gateway *g)
{
    const struct nk_prompter_caps caps = nk__prompter_caps(g->prompter);

    if (g->pooling[0]) {
        raw(o, !strcmp(g->pooling, "rank") ? "[\"rerank\"]" : "[\"embedding\"]");
        return;
    }
    raw(o, "[\"completion\"");
    if (caps.tools)
        raw(o, ",\"tools\"");
    if (caps.thinking)
        raw(o, ",\"thinking\"");
    raw(o, "]");
}

/* ---- OpenAI ---- */

static void write_model(struct out *o, nk_gateway *g, const char *name, const struct nk_snapshot *s)
{
    raw(o, "{");
    str(o, "id", name);
    str(o, "object", "model");
    num(o, "created", (double)g->started);
    str(o, "owned_by", "nakshatra");
    key(o, "aliases");
    raw(o, "[");
    for (int i = 0; i < g->n_names && !o->rc; i++) {
        raw(o, i ? "," : "");
        o->rc = nk_json_str(o->b, g->names[i], NULL);
    }
    raw(o, "]");
    if (s && s->ok)
        num(o, "context_length", s->n_ctx);
    key(o, "capabilities");
    write_capabilities(o, g);
    raw(o, "}");
}

NK__ANSWER(models)
{
    struct out o = { a->body, 0 };

    (void)request;
    if (rest[0] && nk__model_check(g, rest, &a->err))
        return;
    if (rest[0]) {
        write_model(&o, g, rest, s);
        return;
    }
    raw(&o, "{\"object\":\"list\",\"data\":[");
    write_model(&o, g, nk__model_name(g), s);
    raw(&o, "]}");
}

/* ---- Ollama ---- */

/* As Ollama writes it ("7.6B", "2.10M"): what the file's author says, else from the bytes of the
 * weights, which for mixed types is about right. */
static void parameter_size(char out[32], nk_gateway *g, const struct nk_snapshot *s)
{
    static const struct {
        const char *type;
        double bits; /* per weight */
    } types[] = {
        { "F32", 32 },     { "all F32", 32 }, { "F16", 16 },   { "BF16", 16 },  { "Q8_0", 8.5 },
        { "Q6_K", 6.56 },  { "Q5_K", 5.7 },   { "Q5_1", 6 },   { "Q5_0", 5.5 }, { "Q4_K", 4.85 },
        { "Q4_1", 5 },     { "Q4_0", 4.5 },   { "Q3_K", 3.9 }, { "Q2_K", 3 },   { "IQ4_XS", 4.25 },
        { "IQ4_NL", 4.5 }, { "MXFP4", 4.25 },
    };
    const struct nk_worker_report *w = nk__model_worker(s);
    double n = 0;

    if (nk_vocab_meta(g->vocab, "general.size_label", out, 32))
        return;
    for (size_t i = 0; w && i < sizeof types / sizeof types[0] && !n; i++)
        if (!strncmp(w->quantisation, types[i].type, strlen(types[i].type)))
            n = (double)weights_bytes(s) * 8 / types[i].bits;
    if (n >= 1e9)
        snprintf(out, 32, "%.1fB", n / 1e9);
    else if (n > 0)
        snprintf(out, 32, "%.2fM", n / 1e6);
}

static void write_details(struct out *o, nk_gateway *g, const struct nk_snapshot *s)
{
    char size[32];

    const struct nk_worker_report *w = nk__model_worker(s);

    key(o, "details");
    raw(o, "{");
    str(o, "parent_model", "");
    str(o, "format", "gguf");
    str(o, "family", w ? w->architecture : "");
    key(o, "families");
    raw(o, "[");
    if (w && !o->rc)
        o->rc = nk_json_str(o->b, w->architecture, NULL);
    raw(o, "]");
    parameter_size(size, g, s);
    str(o, "parameter_size", size);
    str(o, "quantization_level", w ? w->quantisation : "");
    raw(o, "}");
}

static void format_time(char out[32], int64_t unix_s)
{
    time_t t = (time_t)unix_s;
    struct tm tm;

    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void write_tag(struct out *o, nk_gateway *g, const char *name, const struct nk_snapshot *s)
{
    char tagged[200];

    snprintf(tagged, sizeof tagged, "%.180s%s", name, strchr(name, ':') ? "" : ":latest");
    str(o, "name", tagged);
    str(o, "model", tagged);
    num(o, "size", (double)weights_bytes(s));
    str(o, "digest", g->model_sha256);
    write_details(o, g, s);
}

NK__ANSWER(tags)
{
    struct out o = { a->body, 0 };
    char when[32];

    (void)rest, (void)request;
    format_time(when, g->started);
    raw(&o, "{\"models\":[{");
    write_tag(&o, g, nk__model_name(g), s);
    str(&o, "modified_at", when);
    raw(&o, "}]}");
}

/* The model is there as long as its workers: there is no time at which it would go. */
NK__ANSWER(ps)
{
    const struct nk_chain_report *r = nk__routes_report(s);
    struct out o = { a->body, 0 };

    (void)rest, (void)request;
    raw(&o, "{\"models\":[");
    if (s && s->ok) {
        uint64_t vram = 0;

        for (int k = 0; k < r->n_workers; k++)
            if (strcmp(r->workers[k].backend, "CPU"))
                vram += r->workers[k].weights_bytes + r->workers[k].kv_bytes;
        raw(&o, "{");
        write_tag(&o, g, nk__model_name(g), s);
        str(&o, "expires_at", "9999-12-31T23:59:59Z");
        num(&o, "size_vram", (double)vram);
        num(&o, "context_length", s->n_ctx);
        raw(&o, "}");
    }
    raw(&o, "]}");
}

NK__ANSWER(version)
{
    struct out o = { a->body, 0 };

    (void)g, (void)rest, (void)request, (void)s;
    raw(&o, "{");
    str(&o, "version", NK_VERSION);
    raw(&o, "}");
}

static void info(struct out *o, const char *architecture, const char *name, double value)
{
    char full[128];

    snprintf(full, sizeof full, "%.60s.%s", architecture, name);
    num(o, full, value);
}

/* What Ollama would make this model of. */
static void write_modelfile(struct out *o, nk_gateway *g, const char *chat_template)
{
    struct nk_buf text = NK_BUF_INIT(1 << 20);
    int rc = nk_buf_addf(&text, NULL, "# Served by nakshatra\nFROM %s\n", g->names[0]);

    if (!rc && chat_template)
        rc = nk_buf_addf(&text, NULL, "TEMPLATE \"\"\"%s\"\"\"\n", chat_template);
    str(o, "modelfile", rc ? "" : nk_buf_str(&text));
    nk_buf_release(&text);
}

NK__ANSWER(show)
{
    char parameters[40], license[4096];
    const struct nk_request_limits limits = { .messages_max = 1,
                                              .n_max = 1,
                                              .strict = g->opts.strict };
    const struct nk_prompter_caps caps = nk__prompter_caps(g->prompter);
    const struct nk_worker_report *w = nk__model_worker(s);
    struct out o = { a->body, 0 };
    struct nk_request_error e;
    struct nk_request r;
    char when[32];

    (void)rest;
    if (nk__request_parse(&r, NK_API_OLLAMA_SHOW, nk_buf_str(request), request->size, &limits,
                          &e)) {
        a->err = e.err;
        snprintf(a->param, sizeof a->param, "%.60s", e.param);
        return;
    }
    if (r.model)
        nk__model_check(g, r.model, &a->err);
    nk__request_release(&r);
    if (a->err.code)
        return;
    format_time(when, g->started);
    raw(&o, "{");
    write_modelfile(&o, g, caps.chat_template);
    snprintf(parameters, sizeof parameters, "num_ctx %d", s && s->ok ? s->n_ctx : 0);
    str(&o, "parameters", s && s->ok ? parameters : "");
    nk_vocab_meta(g->vocab, "general.license", license, sizeof license);
    str(&o, "license", license);
    str(&o, "template", caps.chat_template ? caps.chat_template : "");
    write_details(&o, g, s);
    key(&o, "model_info");
    raw(&o, "{");
    if (w) {
        str(&o, "general.architecture", w->architecture);
        info(&o, w->architecture, "context_length", w->n_ctx_train);
        info(&o, w->architecture, "block_count", w->layer_count);
        info(&o, w->architecture, "embedding_length", w->n_embd);
        info(&o, w->architecture, "vocab_size", w->n_vocab);
        if (g->pooling[0]) {
            char name[128];

            snprintf(name, sizeof name, "%.60s.pooling", w->architecture);
            str(&o, name, g->pooling);
        }
    }
    raw(&o, "}");
    key(&o, "capabilities");
    write_capabilities(&o, g);
    str(&o, "modified_at", when);
    raw(&o, "}");
}
