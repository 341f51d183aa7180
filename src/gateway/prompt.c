#include "gateway/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "gateway/prompt_fim.h"
#include "gateway/prompt_parts.h"
#include "gateway/tool_generic.h"
#include "gateway/tool_grammar.h"
#include "text/json_schema.h"
#include "text/template.h"

struct nk_prompter {
    struct nk_clock *clock;
    const nk_vocab *vocab;
    nk_template *jinja; /* or */
    char *builtin;      /* a built-in one's name, or neither */
    char *text;         /* of the template */
    struct nk_error broken;
    struct nk_think_marks marks;
    bool has_form;
    struct nk_tool_form form;
    struct nk_error no_form; /* why it has none, though it shows tools */
    enum nk_gateway_tools tools;
    enum nk_think think; /* where a request says nothing */
    /* The template's variable that turns reasoning on and off; NULL: it has none. */
    const char *think_switch;
    bool effort;        /* it has reasoning_effort */
    bool control_marks; /* its marks are control tokens */
};

enum { RENDERED_BYTES_MAX = 64 << 20 };

/* A token's text; "" for none. Owned by the caller. */
static char *piece_of(const nk_vocab *v, int32_t id)
{
    struct nk_buf b = NK_BUF_INIT(4096);

    if (id >= 0 && nk_vocab_piece(v, id, true, &b, NULL))
        nk_buf_reset(&b);
    return nk_buf_take(&b, NULL);
}

/* The mark's id when it is one control token, which text only shows when it is asked for; -1:
 * there is none. */
static int32_t control_token(const void *user, const char *mark)
{
    const nk_prompter *p = user;
    struct nk_tokens t = { NULL, 0 };
    struct nk_buf shown = NK_BUF_INIT(4096);
    int32_t id = -1;

    if (mark && !nk_vocab_tokenize(p->vocab, mark, strlen(mark), false, true, 64, NULL, &t, NULL) &&
        t.n == 1 && !nk_vocab_piece(p->vocab, t.ids[0], false, &shown, NULL) && !shown.size)
        id = t.ids[0];
    free(t.ids);
    nk_buf_release(&shown);
    return id;
}

/* nk_tool_form_render */
static int render_example(void *user, const char *messages, const char *tools,
                          bool add_generation_prompt, struct nk_buf *out, struct nk_error *err)
{
    const nk_prompter *p = user;
    struct nk_jinja_input input = { .messages = messages,
                                    .tools = tools,
                                    .add_generation_prompt = add_generation_prompt,
                                    .now = nk_clock_unix_s(p->clock) };

    return nk_template_render(p->jinja, &input, NULL, out, err);
}

static int open_jinja(nk_prompter *p, const char *text, const char *program, struct nk_error *err)
{
    char *bos = piece_of(p->vocab, nk_vocab_bos(p->vocab)),
         *eos = piece_of(p->vocab, nk_vocab_eos(p->vocab));
    int rc = nk_template_open(&p->jinja, program, text, bos, eos, err);

    free(bos);
    free(eos);
    if (rc)
        return rc;
    p->marks = nk__think_marks_detect(text);
    if (nk_template_caps(p->jinja).tools)
        p->has_form =
            !nk__tool_form_learn(&p->form, render_example, p, text, p->marks.close, &p->no_form);
    p->think_switch = strstr(text, "enable_thinking") ? "enable_thinking"
                      : strstr(text, "thinking is defined") || strstr(text, "if thinking")
                          ? "thinking"
                          : NULL;
    p->effort = strstr(text, "reasoning_effort") != NULL;
    return 0;
}

/* Is a control token in the mark? */
static bool has_control_token(const nk_prompter *p, const char *mark)
{
    char part[65];

    for (; *mark; mark++)
        for (size_t n = 2; strchr("<[", *mark) && n < sizeof part && mark[n - 1]; n++)
            if (strchr(">]", mark[n - 1])) {
                memcpy(part, mark, n);
                part[n] = '\0';
                if (control_token(p, part) >= 0)
                    return true;
            }
    return false;
}

static bool form_has_control_token(const nk_prompter *p)
{
    const struct nk_tool_form *f = &p->form;
    const char *const marks[] = { f->section_open, f->section_close, f->call_open,
                                  f->call_close,   f->call_sep,      f->alt_open,
                                  f->name_close,   f->key_open,      f->value_open_text,
                                  f->value_open,   f->value_close,   f->quote };

    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (has_control_token(p, marks[i]))
            return true;
    return false;
}

int nk__prompter_new(nk_prompter **out, const struct nk_prompter_opts *opts, struct nk_error *err)
{
    static const enum nk_think thinks[] = { [NK_GATEWAY_REASONING_AUTO] = NK_THINK_DEFAULT,
                                            [NK_GATEWAY_REASONING_ON] = NK_THINK_ON,
                                            [NK_GATEWAY_REASONING_OFF] = NK_THINK_OFF };
    const nk_vocab *vocab = opts->vocab;
    const char *given = opts->chat_template;
    const char *text = given ? given : nk_vocab_chat_template(vocab);
    nk_prompter *p = calloc(1, sizeof *p);
    int rc = 0;

    *out = NULL;
    if (!p || (text && !(p->text = strdup(text)))) {
        free(p);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the chat template");
    }
    p->clock = opts->clock;
    p->vocab = vocab;
    p->tools = opts->tools;
    p->think = thinks[opts->reasoning];
    if (text && (strstr(text, "{%") || strstr(text, "{{") || strstr(text, "{#"))) {
        rc = open_jinja(p, text, opts->program, &p->broken);
        if (rc && given && err)
            *err = p->broken;
    } else if (text) {
        struct nk_chat_message m = { "user", "x" };
        struct nk_buf b = NK_BUF_INIT(4096);

        rc = nk_chat_render_builtin(text, &m, 1, true, &b, &p->broken);
        nk_buf_release(&b);
        if (!rc)
            p->builtin = strdup(text);
        else if (given && err)
            *err = p->broken;
    }
    if (rc && given) {
        nk__prompter_free(p);
        return rc;
    }
    if (p->jinja)
        p->control_marks = control_token(p, p->marks.open) >= 0 ||
                           control_token(p, p->marks.close) >= 0 ||
                           (p->has_form && form_has_control_token(p));
    *out = p;
    return 0;
}

void nk__prompter_free(nk_prompter *p)
{
    if (!p)
        return;
    nk_template_close(p->jinja);
    free(p->builtin);
    free(p->text);
    free(p);
}

/* Are tools explained in the system's message? */
static bool uses_generic(const nk_prompter *p)
{
    return p->tools == NK_GATEWAY_TOOLS_GENERIC ||
           (p->tools == NK_GATEWAY_TOOLS_NATIVE && !p->has_form);
}

struct nk_prompter_caps nk__prompter_caps(const nk_prompter *p)
{
    bool chat = p->jinja || p->builtin;

    return (struct nk_prompter_caps){
        .chat = chat,
        .tools = chat && p->tools != NK_GATEWAY_TOOLS_OFF,
        .generic_tools = chat && uses_generic(p),
        .thinking = p->marks.open != NULL,
        .can_think = p->marks.open || p->think_switch,
        .effort = p->effort,
        .chat_template = p->text,
        .broken = p->broken.code ? &p->broken : NULL,
        .no_tools = p->no_form.code ? &p->no_form : NULL,
    };
}

void nk__prepared_release(struct nk_prepared *p)
{
    for (int i = 0; i < p->n_prompts; i++)
        free(p->prompts[i].ids);
    free(p->grammar);
    free(p->logit_bias);
    free((void *)p->output.tool_names);
    json_decref((json_t *)p->output.tool_types);
    *p = (struct nk_prepared){ .n_prompts = 0 };
}

static int bad(struct nk_request_error *e, const char *param, const char *reason, const char *fmt,
               ...) __attribute__((format(printf, 4, 5)));
static int bad(struct nk_request_error *e, const char *param, const char *reason, const char *fmt,
               ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(e->param, sizeof e->param, "%s", param);
    return nk_fail(&e->err, NK_E_INVALID, reason, "%s", text);
}

/* ---- templates ---- */

/* What the operator wants is a wish: not every template can do it. */
static enum nk_think wanted_thinking(const nk_prompter *p, const struct nk_request *r)
{
    return r->think != NK_THINK_DEFAULT ? r->think : p->think;
}

/* A template without a switch for it: an empty thought at the reply's beginning is the end of
 * thinking, as llama-server does it (later ones than 0.7.0). Not gpt-oss's channels, which are
 * messages of their own. */
static bool closes_thought(const nk_prompter *p, const struct nk_request *r)
{
    return wanted_thinking(p, r) == NK_THINK_OFF && !p->think_switch && p->marks.open &&
           !p->marks.turn;
}

/* What the template gets beside messages and tools. */
static int extra_json(const nk_prompter *p, const struct nk_request *r, char **text,
                      struct nk_request_error *e)
{
    json_t *extra = r->template_kwargs ? json_copy((json_t *)r->template_kwargs) : json_object();
    const char *field = nk__api_think(r->api);
    enum nk_think think = wanted_thinking(p, r);

    *text = NULL;
    if (r->think == NK_THINK_ON && !p->think_switch && !p->effort && !p->marks.open) {
        json_decref(extra);
        return bad(e, field, "no_thinking", "%s: this model's chat template knows no thinking",
                   field);
    }
    if (r->think == NK_THINK_OFF && !p->think_switch && p->marks.open && !closes_thought(p, r)) {
        json_decref(extra);
        return bad(e, field, "no_thinking",
                   "%s: this model's chat template cannot turn thinking off", field);
    }
    if (r->reasoning_effort && r->think == NK_THINK_ON && !p->effort && !p->think_switch) {
        json_decref(extra);
        return bad(e, field, "no_thinking",
                   "%s: this model's chat template knows no degrees of thinking", field);
    }
    if (think != NK_THINK_DEFAULT && p->think_switch && !json_object_get(extra, p->think_switch))
        json_object_set_new(extra, p->think_switch, json_boolean(think == NK_THINK_ON));
    if (r->reasoning_effort && p->effort)
        json_object_set_new(extra, "reasoning_effort", json_string(r->reasoning_effort));
    *text = extra ? json_dumps(extra, JSON_COMPACT) : NULL;
    json_decref(extra);
    return *text ? 0 : bad(e, "", "no_memory", "no memory for the template's variables");
}

static int render_builtin(const nk_prompter *p, const json_t *messages, bool begins,
                          struct nk_buf *out, struct nk_error *err)
{
    size_t n = json_array_size(messages), i;
    struct nk_chat_message *list = calloc(n ? n : 1, sizeof *list);
    json_t *m;
    int rc;

    if (!list)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu messages", n);
    json_array_foreach((json_t *)messages, i, m)
    {
        list[i] = (struct nk_chat_message){ json_string_value(json_object_get(m, "role")),
                                            json_string_value(json_object_get(m, "content")) };
    }
    rc = nk_chat_render_builtin(p->builtin, list, n, begins, out, err);
    free(list);
    return rc;
}

/* Only thought so far: the thought goes on. */
static bool continues_thought(const nk_prompter *p, const json_t *message)
{
    return p->marks.open && json_object_get(message, "reasoning_content") &&
           !json_string_length(json_object_get(message, "content"));
}

/* What the reply begins with, after the prompt that begins the reply. Where that has begun a
 * thought the message's own ends it (none: an empty one), unless there is nothing but a thought. */
static int add_prefill(const nk_prompter *p, const json_t *message, struct nk_buf *out,
                       struct nk_error *err)
{
    const char *text = json_string_value(json_object_get(message, "content"));
    const char *thought = json_string_value(json_object_get(message, "reasoning_content"));
    bool open = nk__prompt_opens_think(nk_buf_str(out), out->size, p->marks), goes_on;
    int rc = 0;

    goes_on = continues_thought(p, message);
    if (goes_on && !open)
        rc = nk_buf_addf(out, err, "%s\n", p->marks.open);
    if (!rc && thought && (open || goes_on))
        rc = nk_buf_adds(out, thought, err);
    if (!rc && open && !goes_on)
        rc = nk_buf_addf(out, err, "\n%s\n\n", p->marks.close);
    return rc ? rc : nk_buf_adds(out, text, err);
}

static int render(const nk_prompter *p, const struct nk_request *r, const json_t *messages,
                  const json_t *tools, struct nk_work *work, struct nk_buf *out,
                  struct nk_request_error *e)
{
    char *messages_text = NULL, *tools_text = NULL, *extra = NULL;
    int rc;

    if (p->broken.code) {
        e->err = p->broken;
        return nk_wrap(
            e->err.code, &e->err,
            "this model's own chat template cannot be used (--chat-template gives another)");
    }
    if (!p->jinja && !p->builtin)
        return bad(
            e, nk__api_input(r->api), "no_template",
            "this model has no chat template, and the gateway was started without --chat-template");
    rc = nk_work_spend(work, 0, "the chat template", &e->err);
    if (!rc)
        rc = extra_json(p, r, &extra, e);
    if (rc)
        return rc;
    if (p->builtin && (r->template_kwargs)) {
        free(extra);
        return bad(e, "chat_template_kwargs", "bad_value",
                   "chat_template_kwargs: the built-in template \"%s\" has no variables",
                   p->builtin);
    }
    if (p->builtin)
        rc = render_builtin(p, messages, !r->begins_no_reply, out, &e->err);
    else {
        messages_text = json_dumps(messages, JSON_COMPACT);
        tools_text = tools ? json_dumps(tools, JSON_COMPACT) : NULL;
        if (!messages_text || (tools && !tools_text))
            rc = nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for the messages");
        else {
            struct nk_jinja_input input = { .messages = messages_text,
                                            .tools = tools_text,
                                            .extra = extra,
                                            .add_generation_prompt = !r->begins_no_reply,
                                            .now = nk_clock_unix_s(p->clock) };

            rc = nk_template_render(p->jinja, &input, work, out, &e->err);
        }
    }
    if (!rc && closes_thought(p, r) && !r->begins_no_reply &&
        !(r->prefill && json_object_get(r->prefill, "reasoning_content")))
        rc = nk_buf_addf(
            out, &e->err, "%s%s",
            nk__prompt_opens_think(nk_buf_str(out), out->size, p->marks) ? "" : p->marks.open,
            p->marks.close);
    if (!rc && r->prefill)
        rc = add_prefill(p, r->prefill, out, &e->err);
    free(messages_text);
    free(tools_text);
    free(extra);
    if (rc) {
        bool names = !strcmp(e->err.reason, "reserved_name");

        snprintf(e->param, sizeof e->param, "%s",
                 names ? "chat_template_kwargs" : nk__api_input(r->api));
        if (names) {
            snprintf(e->err.reason, sizeof e->err.reason, "bad_value");
            nk_wrap(rc, &e->err, "chat_template_kwargs");
        } else if (!strcmp(e->err.reason, "bad_template")) {
            /* What the template itself refuses (roles that must alternate ...) is the request's
             * fault. */
            snprintf(e->err.reason, sizeof e->err.reason, "template_failed");
            nk_wrap(rc, &e->err, "the chat template cannot render this");
        }
    }
    return rc;
}

/* ---- tokens ---- */

/* before: ids that the text follows. */
static int tokens_of(const nk_prompter *p, const struct nk_request *r, const char *text,
                     size_t size, const int32_t *before, size_t n_before, int n_ctx,
                     struct nk_work *work, struct nk_tokens *out, struct nk_request_error *e)
{
    int32_t bos = nk_vocab_bos(p->vocab);
    struct nk_tokens t = { NULL, 0 };
    int32_t *ids;
    size_t skip = 0;
    /* One more for a BOS that is left out below. */
    size_t n_max = n_before < (size_t)n_ctx ? (size_t)n_ctx - n_before + 1 : 1;
    int rc = size ? nk_vocab_tokenize(p->vocab, text, size, n_before == 0, true, n_max, work, &t,
                                      &e->err)
                  : 0;

    if (rc) {
        /* It was not counted to its end. */
        if (!strcmp(e->err.reason, "too_large")) {
            n_max = nk__prompt_count(p->vocab, text, size, n_before == 0, work);
            return nk__prompt_too_long(e, nk__api_input(r->api), n_max ? n_before + n_max : 0, size,
                                       n_ctx);
        }
        snprintf(e->param, sizeof e->param, "%s", nk__api_input(r->api));
        return rc;
    }
    /* A template that writes the BOS token, or a prompt that begins with it: the tokenizer's own
     * would be a second one. */
    if (t.n >= 2 && bos >= 0 && t.ids[0] == bos && t.ids[1] == bos)
        skip = 1;
    if (n_before && t.n && bos >= 0 && t.ids[0] == bos)
        skip = 1;
    if (n_before + t.n - skip >= (size_t)n_ctx) {
        free(t.ids);
        return nk__prompt_too_long(e, nk__api_input(r->api), n_before + t.n - skip, size, n_ctx);
    }
    ids = calloc(n_before + t.n + 1, sizeof *ids);
    if (!ids) {
        free(t.ids);
        return bad(e, "", "no_memory", "no memory for %zu tokens", t.n);
    }
    if (n_before)
        memcpy(ids, before, n_before * sizeof *ids);
    if (t.n > skip)
        memcpy(ids + n_before, t.ids + skip, (t.n - skip) * sizeof *ids);
    out->n = n_before + t.n - skip;
    out->ids = ids;
    free(t.ids);
    return 0;
}

static int check_ids(const nk_prompter *p, const char *field, const int32_t *ids, size_t n,
                     struct nk_request_error *e)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= nk_vocab_size(p->vocab))
            return bad(e, field, "bad_value", "%s: token id %d; this model has 0 to %d", field,
                       ids[i], nk_vocab_size(p->vocab) - 1);
    return 0;
}

/* ---- the whole ---- */

static int prepare_grammar(struct nk_prepared *out, const nk_prompter *p,
                           const struct nk_request *r, struct nk_work *work,
                           struct nk_request_error *e)
{
    const char *close = out->output.starts_thinking ? p->marks.close : NULL;
    const char *field = nk__api_format(r->api);
    struct nk_buf inner = NK_BUF_INIT(NK_GRAMMAR_BYTES_MAX),
                  whole = NK_BUF_INIT(NK_GRAMMAR_BYTES_MAX);
    bool forced = r->tool_choice == NK_TOOLS_REQUIRED || r->tool_choice == NK_TOOLS_NAMED;
    int rc = 0;

    if (out->output.tools && (forced || r->tools_strict)) {
        struct nk_tool_grammar_opts o = { .token = control_token,
                                          .user = p,
                                          .tools = r->tools,
                                          .only = r->tool_name,
                                          .form = out->output.tools,
                                          .must = forced,
                                          .think_close = close,
                                          .work = work };

        field = "tools";
        rc = nk__tool_grammar_write(&o, &whole, &e->err);
    } else {
        if (r->format == NK_FORMAT_SCHEMA)
            rc = nk_json_schema_to_grammar(r->schema, work, &inner, &e->err);
        else if (r->format == NK_FORMAT_JSON)
            rc = nk_buf_adds(&inner, nk_json_object_grammar(), &e->err);
        else if (r->sampling.grammar) {
            field = "grammar";
            rc = nk_buf_adds(&inner, r->sampling.grammar, &e->err);
        }
        if (!rc && inner.size)
            rc = close ? nk__tool_grammar_after_think(
                             inner.data,
                             &(struct nk_tool_grammar_opts){
                                 .think_close = close, .token = control_token, .user = p },
                             &whole, &e->err)
                       : nk_buf_add(&whole, inner.data, inner.size, &e->err);
    }
    if (rc) {
        snprintf(e->param, sizeof e->param, "%s", field);
        /* The schema's own sentence, where it has one; else a buffer was too small. */
        if (rc == NK_E_EXHAUSTED && strstr(e->err.msg, "the JSON schema")) {
            snprintf(e->err.reason, sizeof e->err.reason, "unsupported_schema");
            rc = nk_wrap(e->err.code = NK_E_INVALID, &e->err, "%s", field);
        } else if (rc == NK_E_EXHAUSTED)
            rc = bad(e, field, "unsupported_schema",
                     "%s: the grammar for it has more than %d bytes", field, NK_GRAMMAR_BYTES_MAX);
    } else if (whole.size)
        out->grammar = nk_buf_take(&whole, NULL);
    nk_buf_release(&inner);
    nk_buf_release(&whole);
    return rc;
}

static const json_t *tools_of(const struct nk_request *r)
{
    return r->tool_choice == NK_TOOLS_NONE ? NULL : r->tools;
}

static int check_tools(const nk_prompter *p, const json_t *tools, struct nk_request_error *e)
{
    if (tools && p->tools == NK_GATEWAY_TOOLS_OFF)
        return bad(e, "tools", "no_tools", "tools: the gateway was started with --tools off");
    return 0;
}

static bool has_calls(const json_t *messages)
{
    const json_t *m;
    size_t i;

    json_array_foreach((json_t *)messages, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role"));

        if (json_array_size(json_object_get(m, "tool_calls")) || (role && !strcmp(role, "tool")))
            return true;
    }
    return false;
}

/* The messages with ids that name the function and count the calls, as Kimi-K2 writes them: a
 * client sends those back that it was given here. Owned; NULL: no memory. */
static json_t *name_ids(const json_t *messages)
{
    json_t *list = json_deep_copy(messages), *ids = json_object(), *m, *call;
    size_t i, k, n = 0;

    json_array_foreach(list, i, m)
    {
        json_t *given = json_object_get(m, "tool_call_id"), *known;

        json_array_foreach(json_object_get(m, "tool_calls"), k, call)
        {
            json_t *id = json_sprintf(
                "functions.%s:%zu",
                json_string_value(json_object_get(json_object_get(call, "function"), "name")), n++);

            if (json_is_string(json_object_get(call, "id")))
                json_object_set(ids, json_string_value(json_object_get(call, "id")), id);
            json_object_set_new(call, "id", id);
        }
        known = json_is_string(given) ? json_object_get(ids, json_string_value(given)) : NULL;
        if (known)
            json_object_set(m, "tool_call_id", known);
    }
    json_decref(ids);
    return list;
}

/* render, with the tools as the template wants them. */
static int render_chat(const nk_prompter *p, const struct nk_request *r, const json_t *messages,
                       const json_t *tools, struct nk_work *work, struct nk_buf *out,
                       struct nk_request_error *e)
{
    /* What was called before is in the messages though this request has no tools. */
    bool shows_calls = p->jinja && nk_template_caps(p->jinja).tool_calls;
    bool native = !(tools && uses_generic(p)) && (shows_calls || p->tools == NK_GATEWAY_TOOLS_OFF);
    json_t *own;
    int rc;

    if (native ? !p->form.named_ids || !has_calls(messages)
               : !(tools && uses_generic(p)) && !has_calls(messages))
        return render(p, r, messages, tools, work, out, e);
    own = native ? name_ids(messages)
                 : nk__tool_generic_messages(messages, uses_generic(p) ? tools : NULL);
    if (!own)
        return bad(e, "", "no_memory", "no memory for the tools");
    rc = render(p, r, own, uses_generic(p) ? NULL : tools, work, out, e);
    json_decref(own);
    return rc;
}

int nk__prompt_render(const nk_prompter *p, const struct nk_request *r, struct nk_work *work,
                      struct nk_buf *out, struct nk_request_error *e)
{
    int rc;

    e->param[0] = '\0';
    rc = check_tools(p, tools_of(r), e);
    return rc ? rc : render_chat(p, r, r->messages, tools_of(r), work, out, e);
}

/* The tools' names, in one block with their texts: they outlive the request. NULL: no memory. */
static const char *const *copy_names(const json_t *tools)
{
    size_t n = json_array_size(tools), size = n * sizeof(char *), i;
    const json_t *tool;
    const char **names;
    char *at;

#define NAME_OF(tool) json_string_value(json_object_get(json_object_get(tool, "function"), "name"))
    json_array_foreach((json_t *)tools, i, tool)
    {
        size += strlen(NAME_OF(tool)) + 1;
    }
    names = malloc(size);
    at = names ? (char *)(names + n) : NULL;
    json_array_foreach((json_t *)tools, i, tool)
    {
        if (!names)
            break;
        names[i] = strcpy(at, NAME_OF(tool));
        at += strlen(at) + 1;
    }
#undef NAME_OF
    return names;
}

/* What an argument may be, as far as its text is concerned; a bit each. */
enum { KIND_TEXT = 1, KIND_NULL = 2, KIND_OTHER = 4 };

static int kind_named(const char *type)
{
    return !type                     ? KIND_OTHER
           : !strcmp(type, "string") ? KIND_TEXT
           : !strcmp(type, "null")   ? KIND_NULL
                                     : KIND_OTHER;
}

static int kind_of_value(const json_t *v)
{
    return json_is_string(v) ? KIND_TEXT : json_is_null(v) ? KIND_NULL : KIND_OTHER;
}

/* The definition that "#/$defs/NAME" or "#/definitions/NAME" names; NULL: none. */
static const json_t *definition(const json_t *root, const char *ref)
{
    static const char *const words[] = { "$defs", "definitions" };

    for (size_t i = 0; ref && i < sizeof words / sizeof words[0]; i++) {
        size_t n = strlen(words[i]);

        if (!strncmp(ref, "#/", 2) && !strncmp(ref + 2, words[i], n) && ref[2 + n] == '/')
            return json_object_get(json_object_get(root, words[i]), ref + 3 + n);
    }
    return NULL;
}

/* What is left for looking at one argument: schemas, which may name each other, and work, since
 * many arguments may name one long list. */
struct look {
    int n_schemas;
    struct nk_work *work;
    struct nk_error *err;
    int rc; /* of the first failure */
};

static bool may_look(struct look *l)
{
    if (!l->rc)
        l->rc = nk_work_spend(l->work, 1, "the tools", l->err);
    return !l->rc;
}

/* 0: nothing is said. */
static int kinds_of(const json_t *schema, const json_t *root, struct look *l)
{
    static const char *const unions[] = { "anyOf", "oneOf", "allOf" };
    const json_t *type = json_object_get(schema, "type"), *list, *v;
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    int kinds = 0;
    size_t i;

    if (!may_look(l) || --l->n_schemas < 0)
        return KIND_OTHER;
    if (json_is_string(type))
        kinds = kind_named(json_string_value(type));
    json_array_foreach((json_t *)type, i, v)
    {
        if (!may_look(l))
            break;
        kinds |= kind_named(json_string_value(v));
    }
    if (kinds)
        return kinds | (json_is_true(json_object_get(schema, "nullable")) ? KIND_NULL : 0);
    if (json_object_get(schema, "const"))
        return kind_of_value(json_object_get(schema, "const"));
    json_array_foreach(json_object_get(schema, "enum"), i, v)
    {
        if (!may_look(l))
            break;
        kinds |= kind_of_value(v);
    }
    if (!kinds && ref) {
        v = definition(root, ref);
        kinds = v ? kinds_of(v, root, l) : KIND_OTHER;
    }
    for (size_t u = 0; u < sizeof unions / sizeof unions[0] && !kinds; u++) {
        list = json_object_get(schema, unions[u]);
        if (!strcmp(unions[u], "allOf") && json_array_size(list) != 1)
            continue;
        json_array_foreach((json_t *)list, i, v)
        {
            int one = kinds_of(v, root, l);

            if (l->rc)
                break;
            kinds |= one ? one : KIND_OTHER;
        }
    }
    if (kinds && json_is_true(json_object_get(schema, "nullable")))
        kinds |= KIND_NULL;
    return kinds;
}

/* "string", "string?" (or null), or NULL: what the argument's text says. */
static const char *type_of(const json_t *schema, const json_t *root, struct look *l)
{
    enum { SCHEMAS_MAX = 64 };
    int kinds;

    l->n_schemas = SCHEMAS_MAX;
    kinds = kinds_of(schema, root, l);

    return !(kinds & KIND_TEXT) || kinds & KIND_OTHER ? NULL
           : kinds & KIND_NULL                        ? "string?"
                                                      : "string";
}

/* nk_output_opts' tool_types. *out is owned by the caller; NULL: no memory. */
static int types_of(json_t **out, const json_t *tools, struct nk_work *work, struct nk_error *err)
{
    struct look l = { .work = work, .err = err };
    json_t *types = json_object(), *tool, *schema;
    const char *key;
    size_t i;

    json_array_foreach((json_t *)tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function"),
                     *root = json_object_get(function, "parameters");
        json_t *of = json_object();

        json_object_foreach(json_object_get(root, "properties"), key, schema)
        {
            const char *type = l.rc ? NULL : type_of(schema, root, &l);

            if (type)
                json_object_set_new(of, key, json_string(type));
        }
        json_object_set_new(types, json_string_value(json_object_get(function, "name")), of);
    }
    *out = types;
    return l.rc;
}

static int prepare_chat(struct nk_prepared *out, const nk_prompter *p, const struct nk_request *r,
                        int n_ctx, struct nk_work *work, struct nk_request_error *e)
{
    struct nk_buf text = NK_BUF_INIT(RENDERED_BYTES_MAX);
    json_t *own = NULL, *types; /* own: generate's prompt as messages */
    const json_t *messages = r->messages, *tools = tools_of(r);
    int rc = 0;

    rc = check_tools(p, tools, e);
    if (rc)
        return rc;
    if (!messages) {
        own = json_array();
        if (r->system)
            json_array_append_new(own,
                                  json_pack("{s:s, s:s}", "role", "system", "content", r->system));
        json_array_append_new(own, json_pack("{s:s, s:s}", "role", "user", "content",
                                             r->n_prompts ? r->prompts[0].text : ""));
        messages = own;
    }
    rc = render_chat(p, r, messages, tools, work, &text, e);
    json_decref(own);
    if (!rc)
        rc = tokens_of(p, r, nk_buf_str(&text), text.size, r->context, r->n_context, n_ctx, work,
                       &out->prompts[0], e);
    if (!rc) {
        out->n_prompts = 1;
        out->parse = true;
        out->output.think = p->marks;
        out->output.starts_thinking =
            r->prefill ? continues_thought(p, r->prefill)
                       : nk__prompt_opens_think(nk_buf_str(&text), text.size, p->marks);
        out->output.one_call = !r->parallel_tool_calls;
        out->special = p->control_marks && (tools || p->marks.open);
    }
    nk_buf_release(&text);
    if (rc || !tools)
        return rc;
    out->generic_tools = uses_generic(p);
    out->output.tools = out->generic_tools ? nk__tool_form_generic() : &p->form;
    out->output.n_tool_names = (int)json_array_size(tools);
    out->output.tool_names = copy_names(tools);
    rc = types_of(&types, tools, work, &e->err);
    out->output.tool_types = types;
    if (rc) {
        snprintf(e->param, sizeof e->param, "tools");
        return rc;
    }
    if (!out->output.tool_names || !out->output.tool_types)
        return bad(e, "", "no_memory", "no memory for the tools");
    return 0;
}

int nk__prepare(struct nk_prepared *out, const nk_prompter *p, const struct nk_request *r,
                int n_ctx, struct nk_work *work, struct nk_request_error *e)
{
    bool chat = nk__api_is_chat(r->api);
    int rc = 0;

    *out = (struct nk_prepared){ .n_prompts = 0 };
    e->param[0] = '\0';
    if (r->num_ctx && r->num_ctx < n_ctx)
        n_ctx = r->num_ctx;
    rc = nk__prompt_biases(p->vocab, r, work, &out->logit_bias, &out->n_logit_bias, e);
    if (!rc)
        rc = check_ids(p, "context", r->context, r->n_context, e);
    /* As in Ollama, generate takes a model without a template for one whose template is the prompt
     * itself. */
    if (!rc && (chat || (r->api == NK_API_OLLAMA_GENERATE && !r->raw && !r->suffix &&
                         (p->jinja || p->builtin || p->broken.code || r->system))))
        rc = prepare_chat(out, p, r, n_ctx, work, e);
    else if (!rc)
        for (int i = 0; i < r->n_prompts && !rc; i++) {
            const struct nk_prompt *in = &r->prompts[i];

            if (r->suffix) {
                rc = in->ids ? check_ids(p, "prompt", in->ids, in->n_ids, e) : 0;
                if (!rc)
                    rc = nk__prompt_fim(p->vocab, r, i, n_ctx, work, &out->prompts[i], e);
            } else if (in->ids) {
                rc = check_ids(p, "prompt", in->ids, in->n_ids, e);
                if (!rc && in->n_ids >= (size_t)n_ctx)
                    rc = nk__prompt_too_long(e, nk__api_input(r->api), in->n_ids, 0, n_ctx);
                if (!rc)
                    rc = tokens_of(p, r, "", 0, in->ids, in->n_ids, n_ctx, work, &out->prompts[i],
                                   e);
            } else if (in->mixed)
                rc = nk__prompt_mixed(p->vocab, in->mixed, n_ctx, work, &out->prompts[i], e);
            else
                rc = tokens_of(p, r, in->text, in->size, r->context, r->n_context, n_ctx, work,
                               &out->prompts[i], e);
            if (!rc)
                out->n_prompts++;
            if (!rc && !out->prompts[i].n)
                rc = bad(e, "prompt", "bad_value",
                         "prompt: is empty, and this model's tokenizer adds nothing to it: there "
                         "is no token to begin with");
        }
    if (!rc && r->think != NK_THINK_DEFAULT && !out->parse && r->think == NK_THINK_ON)
        rc = bad(e, "think", "no_thinking",
                 "think: there is no chat template here that could turn it on");
    if (!rc)
        rc = prepare_grammar(out, p, r, work, e);
    if (rc)
        nk__prepared_release(out);
    return rc;
}
