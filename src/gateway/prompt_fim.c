#include "gateway/prompt_fim.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "gateway/prompt_parts.h"

struct ids {
    const nk_vocab *v;
    const struct nk_request *r;
    struct nk_work *work;
    struct nk_request_error *e;
    const char *param; /* what is being added, for the errors */
    size_t n_max;
    int32_t *ids;
    size_t n, capacity;
    int rc;
};

static void add_id(struct ids *t, int32_t id)
{
    if (t->rc)
        return;
    snprintf(t->e->param, sizeof t->e->param, "%s", t->param);
    if (t->n >= t->n_max)
        t->rc = nk__prompt_too_long(t->e, t->param, t->n + 1, 0, (int)t->n_max + 1);
    else if (nk_array_grow(t->ids, t->capacity, t->n + 1, SIZE_MAX / sizeof *t->ids, NULL))
        t->rc = nk_fail(&t->e->err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu tokens", t->n);
    else
        t->ids[t->n++] = id;
}

/* Nothing in it is a control token: it is somebody's file. */
static void add_text(struct ids *t, const char *text, size_t size)
{
    struct nk_tokens more = { NULL, 0 };

    if (t->rc || !size)
        return;
    snprintf(t->e->param, sizeof t->e->param, "%s", t->param);
    t->rc =
        nk_vocab_tokenize(t->v, text, size, false, false, t->n_max + 1, t->work, &more, &t->e->err);
    if (t->rc == NK_E_EXHAUSTED && !strcmp(t->e->err.reason, "too_large"))
        t->rc = nk__prompt_too_long(t->e, t->param, 0, size, (int)t->n_max + 1);
    for (size_t i = 0; i < more.n && !t->rc; i++)
        add_id(t, more.ids[i]);
    free(more.ids);
}

static void add_string(struct ids *t, const char *text)
{
    add_text(t, text, strlen(text));
}

/* The text and the end of a line, as one: apart they may be other tokens. */
static void add_line(struct ids *t, const char *text)
{
    struct nk_buf line = NK_BUF_INIT(NK_TEXT_BYTES_MAX);

    if (!t->rc && (nk_buf_adds(&line, text, &t->e->err) || nk_buf_adds(&line, "\n", &t->e->err)))
        t->rc = t->e->err.code;
    if (!t->rc)
        add_text(t, line.data, line.size);
    nk_buf_release(&line);
}

static void add_mixed(struct ids *t, const json_t *parts)
{
    const json_t *part;
    size_t i;

    json_array_foreach((json_t *)parts, i, part)
    {
        if (json_is_string(part))
            add_text(t, json_string_value(part), json_string_length(part));
        else if (!t->rc && json_integer_value(part) >= nk_vocab_size(t->v))
            t->rc = nk_fail(&t->e->err, NK_E_INVALID, "bad_value",
                            "prompt: token id %d; this model has 0 to %d",
                            (int)json_integer_value(part), nk_vocab_size(t->v) - 1);
        else
            add_id(t, (int32_t)json_integer_value(part));
    }
}

/* llama-server's own names where the request has none. */
static void add_extra(struct ids *t, struct nk_fim_tokens fim)
{
    const json_t *chunk;
    size_t i;

    t->param = "input_extra";
    if (fim.repository >= 0) {
        add_id(t, fim.repository);
        add_string(t, "myproject\n");
    }
    json_array_foreach((json_t *)t->r->input_extra, i, chunk)
    {
        const json_t *text = json_object_get(chunk, "text");
        const char *name = json_string_value(json_object_get(chunk, "filename"));

        if (fim.separator >= 0) {
            add_id(t, fim.separator);
            add_line(t, name ? name : "tmp");
        } else
            add_string(t, "\n\n--- snippet ---\n\n");
        add_text(t, json_string_value(text), json_string_length(text));
    }
    if (fim.separator >= 0) {
        add_id(t, fim.separator);
        add_string(t, "filename\n");
    }
}

int nk__prompt_fim(const nk_vocab *v, const struct nk_request *r, int idx, int n_ctx,
                   struct nk_work *work, struct nk_tokens *out, struct nk_request_error *e)
{
    struct nk_fim_tokens fim = nk_vocab_fim(v);
    struct ids t = { .v = v, .r = r, .work = work, .e = e, .n_max = (size_t)n_ctx - 1 };
    const struct nk_prompt *prompt = &r->prompts[idx];

    *out = (struct nk_tokens){ NULL, 0 };
    if (fim.prefix < 0 || fim.suffix < 0 || fim.middle < 0) {
        snprintf(e->param, sizeof e->param, "%s", r->input_prefix ? "input_suffix" : "suffix");
        return nk_fail(&e->err, NK_E_INVALID, "no_fim",
                       "%s: this model was not made to fill in text: its vocabulary has no tokens "
                       "for what is before, after and in between",
                       e->param);
    }
    if (r->input_prefix)
        add_extra(&t, fim);
    t.param = "prompt";
    if (nk_vocab_adds_bos(v) && nk_vocab_bos(v) >= 0)
        add_id(&t, nk_vocab_bos(v));
    add_id(&t, fim.prefix);
    if (r->input_prefix)
        add_string(&t, r->input_prefix);
    if (prompt->ids)
        for (size_t i = 0; i < prompt->n_ids; i++)
            add_id(&t, prompt->ids[i]);
    else if (prompt->mixed)
        add_mixed(&t, prompt->mixed);
    else
        add_text(&t, prompt->text, prompt->size);
    t.param = r->input_prefix ? "input_suffix" : "suffix";
    add_id(&t, fim.suffix);
    add_string(&t, r->suffix ? r->suffix : "");
    add_id(&t, fim.middle);
    if (t.rc) {
        free(t.ids);
        return t.rc;
    }
    e->param[0] = '\0';
    out->ids = t.ids;
    out->n = t.n;
    return 0;
}
