#include "gateway/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/request_int.h"

/* ---- the tables, for the documentation ---- */

static const struct {
    const char *title;
    const struct nk_field_rule *rules;
} tables[] = {
    { "POST /v1/chat/completions", nk__rules_chat },
    { "messages[] of /v1/chat/completions", nk__rules_message },
    { "tools[].function", nk__rules_tool_function },
    { "stream_options", nk__rules_stream_options },
    { "POST /v1/completions", nk__rules_completion },
    { "POST /api/chat", nk__rules_ollama_chat },
    { "messages[] of /api/chat", nk__rules_ollama_message },
    { "POST /api/generate", nk__rules_ollama_generate },
    { "options of /api/chat and /api/generate", nk__rules_ollama_options },
    { "POST /api/show", nk__rules_ollama_show },
    { "POST /v1/messages and /v1/messages/count_tokens", nk__rules_anthropic },
    { "POST /v1/responses", nk__rules_responses },
    { "POST /completion and /completions", nk__rules_llama_completion },
    { "POST /infill", nk__rules_infill },
    { "POST /v1/embeddings", nk__rules_embeddings },
    { "POST /embedding and /embeddings", nk__rules_llama_embedding },
    { "POST /api/embed", nk__rules_ollama_embed },
    { "POST /api/embeddings", nk__rules_ollama_embeddings },
    { "POST /v1/rerank", nk__rules_rerank },
    { "POST /tokenize", nk__rules_tokenize },
    { "POST /detokenize", nk__rules_detokenize },
    { "POST /apply-template", nk__rules_apply_template },
};

bool nk__field_table(int idx, struct nk_field_table *out)
{
    if (idx < 0 || idx >= (int)(sizeof tables / sizeof tables[0]))
        return false;
    *out = (struct nk_field_table){ .title = tables[idx].title };
    while (tables[idx].rules[out->n].name)
        out->n++;
    return true;
}

struct nk_field nk__field(int table_idx, int field_idx)
{
    const struct nk_field_rule *f = &tables[table_idx].rules[field_idx];

    return (struct nk_field){ .name = f->name, .use = f->use, .note = f->note };
}

/* ---- the whole ---- */

/* Ollama's defaults differ from llama.cpp's (its api/types.go, DefaultOptions). */
static struct nk_sampling defaults(enum nk_api api)
{
    struct nk_sampling s = nk_sampling_default();

    s.seed = NK_SEED_RANDOM;
    if (!nk__api_is_openai(api)) {
        s.top_p = 0.9f;
        s.min_p = 0.0f;
        s.repeat_penalty = 1.1f;
    }
    return s;
}

/* What concerns several fields at once. */
static int check_together(struct nk_parse *p)
{
    struct nk_request *r = p->r;
    int rc, n_constraints = (p->grammar != NULL) + (r->format != NK_FORMAT_TEXT);

    if (r->model && !r->model[0])
        r->model = NULL;
    if (r->api == NK_API_OLLAMA_SHOW)
        return 0;
    if (nk__api_is_embed(r->api))
        return nk__embed_check_together(p);
    if (n_constraints > 1)
        return nk__bad(p, NK_E_INVALID, "bad_value", "grammar",
                       "cannot be combined with %s: each of them decides alone what the text "
                       "may be",
                       nk__api_format(r->api));
    if (n_constraints && r->tools && r->tool_choice != NK_TOOLS_NONE)
        return nk__bad(p, NK_E_INVALID, "bad_value",
                       p->grammar ? "grammar" : nk__api_format(r->api),
                       "cannot be combined with tools unless tool_choice is \"none\": a tool call "
                       "would not fit it");
    r->sampling.grammar = p->grammar;
    nk__samplers_apply(p);
    if ((r->tool_choice == NK_TOOLS_REQUIRED || r->tool_choice == NK_TOOLS_NAMED) && !r->tools)
        return nk__bad(p, NK_E_INVALID, "bad_value", "tool_choice",
                       "asks for a tool call, but there are no tools");
    if (r->tool_choice == NK_TOOLS_NAMED) {
        size_t i;
        const json_t *tool;

        json_array_foreach(r->tools, i, tool)
        {
            if (!strcmp(
                    json_string_value(json_object_get(json_object_get(tool, "function"), "name")),
                    r->tool_name))
                break;
        }
        if (i == json_array_size(r->tools))
            return nk__bad(p, NK_E_INVALID, "bad_value", "tool_choice",
                           "there is no tool named \"%s\"", r->tool_name);
    }
    if (r->api != NK_API_COMPLETION && nk__api_dialect(r->api) != NK_DIALECT_LLAMA) {
        if (p->seen_top_logprobs && p->top_logprobs && !p->want_logprobs)
            return nk__bad(p, NK_E_INVALID, "bad_value", "top_logprobs",
                           "needs logprobs to be true");
        r->n_logprobs = p->want_logprobs ? p->top_logprobs : -1;
    }
    switch (r->api) {
    case NK_API_CHAT:
    case NK_API_APPLY_TEMPLATE:
        if (!r->messages)
            return nk__bad(p, NK_E_INVALID, "missing_field", "messages",
                           "is required: a list of messages");
        break;
    case NK_API_MESSAGES:
    case NK_API_COUNT_TOKENS:
        if (!p->seen_messages)
            return nk__bad(p, NK_E_INVALID, "missing_field", "messages",
                           "is required: a list of messages");
        break;
    case NK_API_INFILL:
        if (!r->input_prefix || !r->suffix)
            return nk__bad(p, NK_E_INVALID, "missing_field",
                           r->input_prefix ? "input_suffix" : "input_prefix", "is required");
        if (!r->n_prompts)
            r->n_prompts = 1; /* an empty one */
        break;
    case NK_API_COMPLETION:
    case NK_API_LLAMA_COMPLETION:
        if (r->repeats_prompt && r->suffix)
            return nk__bad(p, NK_E_INVALID, "refused_field", "echo", "is not possible with suffix");
        if (!r->n_prompts)
            return nk__bad(p, NK_E_INVALID, "missing_field", "prompt",
                           "is required: a string, a list of strings, or token ids");
        if ((int64_t)r->n * r->n_prompts > p->limits->n_max)
            return nk__bad(p, NK_E_INVALID, "too_many", "n",
                           "%d choices for %d prompts; at most %d together are possible", r->n,
                           r->n_prompts, p->limits->n_max);
        break;
    case NK_API_OLLAMA_CHAT:
        if (!r->messages)
            r->only_load = true;
        break;
    case NK_API_OLLAMA_GENERATE:
        if (!r->n_prompts ||
            (r->prompts[0].text && !r->prompts[0].size && !r->system && !r->n_context))
            r->only_load = true;
        if (r->raw && (r->system || r->n_context))
            return nk__bad(p, NK_E_INVALID, "bad_value", r->system ? "system" : "context",
                           "is not possible with raw: the prompt is taken as it is");
        break;
    case NK_API_TOKENIZE:
    case NK_API_DETOKENIZE:
        if (!r->n_prompts)
            return nk__bad(p, NK_E_INVALID, "missing_field", nk__api_input(r->api), "is required");
        break;
    default:
        break;
    }
    if (r->messages && nk__api_dialect(r->api) != NK_DIALECT_RESPONSES &&
        (rc = nk__take_prefill(p)))
        return rc;
    if (r->only_load && r->no_reuse)
        r->only_unload = true;
    if (nk_sampling_check(&r->sampling, &p->e->err)) {
        p->e->param[0] = '\0';
        return p->e->err.code;
    }
    return 0;
}

/* ---- what the operator wants of requests that say nothing ---- */

static const struct nk_field_rule *find_rule(const struct nk_field_rule *rules, const char *name)
{
    for (; rules->name; rules++)
        if (!strcmp(rules->name, name))
            return rules->use == NK_FIELD_YES ? rules : NULL;
    return NULL;
}

/* The dialects' names for the most tokens of a reply. */
static const char *const limit_names[] = { "n_predict", "max_tokens", "max_completion_tokens",
                                           "max_output_tokens", "num_predict" };
/* What decides alone what the text may be. */
static const char *const constraint_names[] = { "grammar", "json_schema", "guided_json" };

enum {
    N_LIMIT_NAMES = sizeof limit_names / sizeof limit_names[0],
    N_CONSTRAINT_NAMES = sizeof constraint_names / sizeof constraint_names[0],
};

static bool is_one_of(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

/* The request says it, perhaps by another name for the same. */
static bool says(const json_t *o, const char *name)
{
    const json_t *given = json_object_get(o, name);

    if (is_one_of(limit_names, N_LIMIT_NAMES, name))
        for (int i = 0; i < N_LIMIT_NAMES; i++)
            if (json_is_number(json_object_get(o, limit_names[i])))
                return true;
    return given && !json_is_null(given);
}

/* The field that the default is for in these rules; NULL: there is none. */
static const struct nk_field_rule *rule_of_default(const struct nk_parse *p,
                                                   const struct nk_field_rule *rules,
                                                   const char *name, const json_t *value)
{
    enum nk_dialect dialect = nk__api_dialect(p->r->api);
    const struct nk_field_rule *f = find_rule(rules, name);

    if (!is_one_of(limit_names, N_LIMIT_NAMES, name))
        return f;
    /* These have no number for "as many as the context holds". */
    if ((dialect == NK_DIALECT_ANTHROPIC || dialect == NK_DIALECT_RESPONSES) &&
        json_integer_value(value) == -1)
        return NULL;
    for (int i = 0; i < N_LIMIT_NAMES && !f; i++)
        f = find_rule(rules, limit_names[i]);
    return f;
}

static int apply_defaults(struct nk_parse *p, const struct nk_field_rule *rules)
{
    bool ollama = nk__api_dialect(p->r->api) == NK_DIALECT_OLLAMA;
    json_t *root = p->r->root, *into = root, *value;
    const struct nk_field_rule *f;
    const char *name;
    int rc = 0;

    if (!p->limits->defaults || p->r->api == NK_API_OLLAMA_SHOW)
        return 0;
    if (ollama) {
        into = json_object_get(root, "options");
        rules = nk__rules_ollama_options;
        if (!into || json_is_null(into)) {
            into = json_object();
            if (json_object_set_new(root, "options", into))
                return nk__build_no_memory(p); /* `into` is freed */
        }
    }
    if (!json_is_object(into)) /* which its reader says */
        return 0;
    json_object_foreach((json_t *)p->limits->defaults, name, value)
    {
        if (rc || is_one_of(constraint_names, N_CONSTRAINT_NAMES, name))
            continue;
        f = rule_of_default(p, rules, name, value);
        /* Some of Ollama's clients say at the root what belongs into `options`. */
        if (f && !says(into, name) && !says(root, name))
            rc = json_object_set_new(into, f->name, json_deep_copy(value));
    }
    return rc ? nk__build_no_memory(p) : 0;
}

/* A constraint is the default only where the request has none of its own, whatever it is called
 * there, and where no tool call may come. The request is read. */
static int apply_constraint(struct nk_parse *p, const struct nk_field_rule *rules)
{
    const struct nk_request *r = p->r;
    const struct nk_field_rule *f;
    json_t *value;
    const char *name;
    int rc = 0;

    if (!p->limits->defaults || r->api == NK_API_OLLAMA_SHOW || p->grammar ||
        r->format != NK_FORMAT_TEXT || (r->tools && r->tool_choice != NK_TOOLS_NONE))
        return 0;
    for (int i = 0; i < N_CONSTRAINT_NAMES; i++)
        if (says(r->root, constraint_names[i])) /* "": none */
            return 0;
    json_object_foreach((json_t *)p->limits->defaults, name, value)
    {
        if (rc || json_is_null(value) || !is_one_of(constraint_names, N_CONSTRAINT_NAMES, name) ||
            !(f = find_rule(rules, name)))
            continue;
        if (json_object_set_new(r->root, name, json_deep_copy(value)))
            return nk__build_no_memory(p);
        rc = f->read(p, f, json_object_get(r->root, name));
    }
    return rc;
}

/* The defaults are right for a request of this kind that says nothing else. */
static int try_defaults(const json_t *defaults, enum nk_api api, const char *body,
                        struct nk_error *err)
{
    const struct nk_request_limits limits = { .messages_max = 1, .n_max = 1, .defaults = defaults };
    struct nk_request_error e;
    struct nk_request r;

    if (nk__request_parse(&r, api, body, strlen(body), &limits, &e))
        return nk_fail(err, NK_E_INVALID, "bad_defaults",
                       "the defaults are not possible for %s: %s", nk__api_path(api), e.err.msg);
    nk__request_release(&r);
    return 0;
}

int nk__defaults_read(json_t **out, const char *text, struct nk_error *err)
{
    static const char chat[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}";
    static const struct {
        enum nk_api api;
        const char *body;
    } all[] = {
        { NK_API_LLAMA_COMPLETION, "{\"prompt\":\"\"}" },
        { NK_API_COMPLETION, "{\"prompt\":\"\"}" },
        { NK_API_CHAT, chat },
        { NK_API_MESSAGES, chat },
        { NK_API_RESPONSES, "{\"input\":\"a\"}" },
        { NK_API_OLLAMA_CHAT, chat },
    };
    json_error_t at;
    json_t *value;
    const char *name;
    int rc = 0;

    *out = json_loads(text, JSON_REJECT_DUPLICATES, &at);
    if (!json_is_object(*out))
        rc = nk_fail(err, NK_E_INVALID, "bad_defaults",
                     "the defaults are a JSON object, as in {\"seed\": 42}; %s",
                     *out ? "this is none" : at.text);
    json_object_foreach(*out, name, value)
    {
        if (!rc && (!find_rule(nk__rules_llama_completion, name) || !strcmp(name, "prompt") ||
                    !strcmp(name, "model")))
            rc = nk_fail(err, NK_E_INVALID, "bad_defaults",
                         "\"%.40s\" is no field of /completion that can have a default", name);
    }
    /* Else each request of a dialect that cannot have them would be refused. */
    for (size_t i = 0; i < sizeof all / sizeof all[0] && !rc; i++)
        rc = try_defaults(*out, all[i].api, all[i].body, err);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

int nk__request_parse(struct nk_request *r, enum nk_api api, const char *body, size_t size,
                      const struct nk_request_limits *limits, struct nk_request_error *e)
{
    static const struct nk_field_rule *const rules[] = {
        [NK_API_CHAT] = nk__rules_chat,
        [NK_API_COMPLETION] = nk__rules_completion,
        [NK_API_OLLAMA_CHAT] = nk__rules_ollama_chat,
        [NK_API_OLLAMA_GENERATE] = nk__rules_ollama_generate,
        [NK_API_OLLAMA_SHOW] = nk__rules_ollama_show,
        [NK_API_TOKENIZE] = nk__rules_tokenize,
        [NK_API_DETOKENIZE] = nk__rules_detokenize,
        [NK_API_APPLY_TEMPLATE] = nk__rules_apply_template,
        [NK_API_MESSAGES] = nk__rules_anthropic,
        [NK_API_COUNT_TOKENS] = nk__rules_anthropic,
        [NK_API_RESPONSES] = nk__rules_responses,
        [NK_API_LLAMA_COMPLETION] = nk__rules_llama_completion,
        [NK_API_INFILL] = nk__rules_infill,
        [NK_API_EMBEDDINGS] = nk__rules_embeddings,
        [NK_API_LLAMA_EMBEDDING] = nk__rules_llama_embedding,
        [NK_API_OLLAMA_EMBED] = nk__rules_ollama_embed,
        [NK_API_OLLAMA_EMBEDDINGS] = nk__rules_ollama_embeddings,
        [NK_API_RERANK] = nk__rules_rerank,
    };
    struct nk_parse p = {
        .r = r,
        .limits = limits,
        .e = e,
        .message_rules = nk__api_is_openai(api) ? nk__rules_message : nk__rules_ollama_message,
        .joined = NK_BUF_INIT(SIZE_MAX / 4),
    };
    bool other_dialect =
        api == NK_API_MESSAGES || api == NK_API_COUNT_TOKENS || api == NK_API_RESPONSES;
    json_error_t at_error;
    int rc;

    p.others = other_dialect ? nk__rules_chat : NULL;
    *r = (struct nk_request){
        .api = api,
        .n = 1,
        .n_logprobs = -1,
        .sampling = defaults(api),
        .stream = api == NK_API_OLLAMA_CHAT || api == NK_API_OLLAMA_GENERATE,
        .truncate = api == NK_API_OLLAMA_CHAT || api == NK_API_OLLAMA_EMBED ||
                    api == NK_API_OLLAMA_EMBEDDINGS,
        .normalize = api == NK_API_OLLAMA_EMBEDDINGS ? -1 : 2,
        .parallel_tool_calls = true,
        .store = api == NK_API_RESPONSES,
        .parse_special = true,
    };
    e->param[0] = '\0';
    if (!size)
        return nk__bad(&p, NK_E_INVALID, "bad_json", "",
                       "the body is empty; a JSON object is needed");
    r->root = json_loadb(body, size, JSON_REJECT_DUPLICATES, &at_error);
    if (!r->root)
        return nk__bad(&p, NK_E_INVALID, "bad_json", "",
                       "the body is not JSON: line %d, column %d: %s", at_error.line,
                       at_error.column, at_error.text);
    if (!json_is_object(r->root))
        rc = nk__bad(&p, NK_E_INVALID, "not_an_object", "",
                     "the body is %s; a JSON object is needed", nk__json_type(r->root));
    else
        rc = apply_defaults(&p, rules[api]);
    if (!rc)
        rc = nk__read_object(&p, rules[api], r->root);
    /* 0 stays the share: a session reserves what it may come to need. */
    if (limits->n_predict_max && (r->n_predict == -1 || r->n_predict > limits->n_predict_max))
        r->n_predict = limits->n_predict_max;
    if (!rc && api == NK_API_RESPONSES) {
        r->store = r->store && limits->items;
        rc = nk__responses_build(&p);
    }
    if (!rc)
        rc = apply_constraint(&p, rules[api]);
    if (!rc)
        rc = check_together(&p);
    nk_buf_release(&p.joined);
    if (rc)
        nk__request_release(r);
    return rc;
}

void nk__request_fit(struct nk_request *r, int n_ctx)
{
    struct nk_parse p = { .r = r, .path = "options." };

    if (r->num_ctx <= n_ctx)
        return;
    r->num_ctx = 0;
    nk__ignore(&p, "num_ctx");
}

void nk__request_release(struct nk_request *r)
{
    for (int i = 0; i < r->n_prompts; i++)
        free(r->prompts[i].ids);
    for (size_t i = 0; i < r->n_inputs; i++)
        free(r->inputs[i].ids);
    free(r->inputs);
    free(r->context);
    free(r->logit_bias);
    free(r->text_bias);
    json_decref(r->messages);
    json_decref(r->prefill);
    json_decref(r->response_fields);
    json_decref(r->tools);
    json_decref(r->items);
    json_decref(r->root);
    free(r->echo);
    free(r->kept);
    *r = (struct nk_request){ 0 };
}

/* A copy at *at, which moves on; NULL stays NULL. */
static const char *copy_to(char **at, const char *text)
{
    char *copy = *at;

    if (!text)
        return NULL;
    *at += strlen(text) + 1;
    return memcpy(copy, text, strlen(text) + 1);
}

static size_t size_of(const char *text)
{
    return text ? strlen(text) + 1 : 0;
}

int nk__request_shrink(struct nk_request *r, struct nk_error *err)
{
    size_t size = size_of(r->model) + size_of(r->user) + 1;
    char *kept, *at;

    if (!r->root)
        return 0;
    for (size_t i = 0; i < r->n_stop; i++)
        size += size_of(r->stop[i]);
    for (int i = 0; i < r->n_prompts && r->repeats_prompt; i++)
        size += size_of(r->prompts[i].text);
    kept = at = malloc(size);
    if (!kept)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
    r->model = copy_to(&at, r->model);
    r->user = copy_to(&at, r->user);
    for (size_t i = 0; i < r->n_stop; i++)
        r->stop[i] = copy_to(&at, r->stop[i]);
    r->sampling.grammar = r->sampling.grammar ? "" : NULL;
    for (int i = 0; i < r->n_prompts; i++) {
        r->prompts[i].text = r->repeats_prompt ? copy_to(&at, r->prompts[i].text) : NULL;
        r->prompts[i].mixed = NULL;
    }
    for (int i = 0; i < r->n_prompts && !r->repeats_prompt; i++)
        free(r->prompts[i].ids);
    if (!r->repeats_prompt) {
        memset(r->prompts, 0, sizeof r->prompts);
        r->n_prompts = 0;
    }
    free(r->context);
    r->context = NULL;
    r->n_context = 0;
    free(r->text_bias);
    r->text_bias = NULL;
    r->n_text_bias = 0;
    json_decref(r->messages);
    json_decref(r->tools);
    json_decref(r->prefill);
    json_decref(r->items);
    r->messages = r->tools = r->prefill = r->items = NULL;
    r->previous = NULL;
    r->schema = r->template_kwargs = r->input_extra = NULL;
    r->suffix = r->input_prefix = NULL;
    r->tool_name = r->cache_salt = r->reasoning_effort = r->system = NULL;
    json_decref(r->root);
    r->root = NULL;
    r->kept = kept;
    return 0;
}
