/* The fields of requests for embeddings (OpenAI's, llama-server's, Ollama's) and for ranks (Jina's
 * and Cohere's, as llama-server takes them, and TEI's `texts`). */
#include "gateway/request_rules.h"

#include <stdlib.h>
#include <string.h>

/* One text or list of ids. what: "input[3]", for a message. */
static int read_one(struct nk_parse *p, const char *what, const json_t *v)
{
    struct nk_prompt *one = &p->r->inputs[p->r->n_inputs];
    int rc = 0;

    if (json_is_string(v)) {
        one->text = json_string_value(v);
        one->size = json_string_length(v);
    } else if (json_is_array(v)) {
        rc = nk__read_ids(p, what, v, &one->ids, &one->n_ids);
    } else {
        rc = nk__bad(p, NK_E_INVALID, "bad_value", what,
                     "must be a string or a list of token ids, not %s", nk__json_type(v));
    }
    if (!rc)
        p->r->n_inputs++;
    return rc;
}

static int make_room(struct nk_parse *p, const char *name, size_t n)
{
    if (p->r->inputs)
        return nk__bad(p, NK_E_INVALID, "bad_value", name,
                       "the texts are given twice, under another name as well");
    if (n > NK_INPUTS_MAX)
        return nk__bad(p, NK_E_EXHAUSTED, "too_many", name,
                       "%zu texts; at most %d are possible in one request", n, NK_INPUTS_MAX);
    p->r->input_name = name;
    p->r->inputs = calloc(n + 1, sizeof *p->r->inputs);
    return p->r->inputs
               ? 0
               : nk__bad(p, NK_E_EXHAUSTED, "no_memory", name, "no memory for %zu texts", n);
}

/* A string, a list of strings, a list of token ids, or a list of such lists. */
static int read_input(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    bool many = json_is_array(v) && !json_is_number(json_array_get(v, 0));
    size_t n = many ? json_array_size(v) : 1;
    int rc;

    if (!json_is_array(v) && !json_is_string(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                       "must be a string, a list of strings, token ids, or a list of lists of "
                       "token ids, not %s",
                       nk__json_type(v));
    rc = make_room(p, f->name, n);
    if (!rc && !many)
        return read_one(p, f->name, v);
    for (size_t i = 0; i < n && !rc; i++) {
        char what[64];

        snprintf(what, sizeof what, "%s[%zu]", f->name, i);
        rc = read_one(p, what, json_array_get(v, i));
    }
    return rc;
}

/* A list of strings, or of objects with a `text` (Jina's). */
static int read_documents(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc;

    if (!json_is_array(v))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be a list of texts, not %s",
                       nk__json_type(v));
    rc = make_room(p, f->name, json_array_size(v));
    p->r->texts = !strcmp(f->name, "texts");
    for (size_t i = 0; i < json_array_size(v) && !rc; i++) {
        const json_t *one = json_array_get(v, i);
        char what[64];

        if (json_is_object(one))
            one = json_object_get(one, "text");
        snprintf(what, sizeof what, "%s[%zu]", f->name, i);
        rc = json_is_string(one) ? read_one(p, what, one)
                                 : nk__bad(p, NK_E_INVALID, "bad_value", what,
                                           "must be a string, or an object whose text is one");
    }
    return rc;
}

static int read_query(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    p->r->query_size = json_string_length(v);
    return nk__read_string(p, f, v);
}

static int read_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    int rc = json_is_string(v) ? make_room(p, f->name, 1)
                               : nk__bad(p, NK_E_INVALID, "bad_value", f->name,
                                         "must be a string, not %s", nk__json_type(v));

    return rc ? rc : read_one(p, f->name, v);
}

static int read_encoding(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v)
{
    const char *s = json_string_value(v);

    if (!s || (strcmp(s, "float") != 0 && strcmp(s, "base64") != 0))
        return nk__bad(p, NK_E_INVALID, "bad_value", f->name, "must be \"float\" or \"base64\"");
    p->r->base64 = s[0] == 'b';
    return 0;
}

static bool is_ollama(const struct nk_request *r)
{
    return r->api == NK_API_OLLAMA_EMBED || r->api == NK_API_OLLAMA_EMBEDDINGS;
}

int nk__embed_check_together(struct nk_parse *p)
{
    struct nk_request *r = p->r;
    const char *name = r->input_name ? r->input_name : nk__api_input(r->api);
    char what[64];

    if (r->api == NK_API_RERANK && !r->query)
        return nk__bad(p, NK_E_INVALID, "missing_field", "query", "is required: a string");
    if (!r->n_inputs && is_ollama(r)) {
        r->only_load = true; /* as Ollama: is the model there? */
        return 0;
    }
    if (!r->inputs)
        return nk__bad(p, NK_E_INVALID, "missing_field", name, "is required: one or several texts");
    if (!r->n_inputs)
        return nk__bad(p, NK_E_INVALID, "bad_value", name, "is an empty list; a text is needed");
    if (r->api == NK_API_RERANK)
        return 0; /* an empty document has a score, too: the query is there */
    if (is_ollama(r) && r->n_inputs == 1 && r->inputs[0].text && !r->inputs[0].size) {
        r->only_load = true;
        return 0;
    }
    for (size_t i = 0; i < r->n_inputs; i++)
        if (!r->inputs[i].size && !r->inputs[i].n_ids) {
            snprintf(what, sizeof what, r->n_inputs > 1 ? "%s[%zu]" : "%s", name, i);
            return nk__bad(p, NK_E_INVALID, "bad_value", what, "is empty; a text is needed");
        }
    return 0;
}

/* clang-format off */
#define ANY_MODEL \
    { "model", NK_FIELD_YES, nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /v1/models lists; not needed" }
#define INPUT_NOTE \
    "a text, a list of texts, token ids, or a list of lists of them; each at most as long as the " \
    "workers' runs (/v1/models, context_length), at most 2048 of them"
#define DIMENSIONS \
    { "dimensions", NK_FIELD_YES, nk__read_int, NK_OFFSET(dimensions), 1, INT32_MAX, \
      "only the model's own number: a vector is not cut" }
#define HINTS \
    { "truncate_prompt_tokens", NK_FIELD_REFUSED, NULL, 0, 0, 0, "send a shorter text" }, \
    { "input_type", NK_FIELD_IGNORED, NULL, 0, 0, 0, \
      "texts are taken as they are; what the model wants before them belongs into them" }

const struct nk_field_rule nk__rules_embeddings[] = {
    { "input",           NK_FIELD_YES, read_input, 0, 0, 0, INPUT_NOTE },
    ANY_MODEL,
    { "encoding_format", NK_FIELD_YES, read_encoding, 0, 0, 0,
      "float, or base64 of little-endian 32-bit floats" },
    DIMENSIONS,
    { "user",            NK_FIELD_YES, nk__read_string, NK_OFFSET(user), 0, 0,
      "goes to the log with the request" },
    { "embd_normalize",  NK_FIELD_YES, nk__read_int, NK_OFFSET(normalize), -1, 100,
      "llama-server's: -1: not at all; 0: to the largest element; 2, the default: to length 1; "
      "else by the norm of that order" },
    HINTS,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_llama_embedding[] = {
    { "content",         NK_FIELD_YES, read_input, 0, 0, 0, INPUT_NOTE },
    { "input",           NK_FIELD_YES, read_input, 0, 0, 0, "the same" },
    ANY_MODEL,
    { "embd_normalize",  NK_FIELD_YES, nk__read_int, NK_OFFSET(normalize), -1, 100,
      "as for /v1/embeddings" },
    { "encoding_format", NK_FIELD_YES, read_encoding, 0, 0, 0, "as for /v1/embeddings" },
    DIMENSIONS,
    HINTS,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

#define OLLAMA_RULES \
    { "model",      NK_FIELD_YES, nk__read_string, NK_OFFSET(model), 0, 0, \
      "a name that /api/tags lists, with or without :latest" }, \
    { "truncate",   NK_FIELD_YES, nk__read_bool, NK_OFFSET(truncate), 0, 0, \
      "a text that is too long is cut off, its end token stays; false: it is an error; default " \
      "true" }, \
    { "options",    NK_FIELD_YES, nk__read_options, 0, 0, 0, \
      "num_ctx: texts are cut there; others are of generation" }, \
    { "keep_alive", NK_FIELD_YES, nk__read_keep_alive, 0, 0, 0, "the model is always there" }

const struct nk_field_rule nk__rules_ollama_embed[] = {
    { "input",      NK_FIELD_YES, read_input, 0, 0, 0,
      "a text or a list of them; none, or an empty one: asks whether the model is there" },
    OLLAMA_RULES,
    DIMENSIONS,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_ollama_embeddings[] = {
    { "prompt",     NK_FIELD_YES, read_prompt, 0, 0, 0,
      "a text, whose vector is not normalised; none: asks whether the model is there" },
    OLLAMA_RULES,
    { NULL, 0, NULL, 0, 0, 0, NULL },
};

const struct nk_field_rule nk__rules_rerank[] = {
    { "query",            NK_FIELD_YES, read_query, NK_OFFSET(query), 0, 0, "a text" },
    { "documents",        NK_FIELD_YES, read_documents, 0, 0, 0,
      "a list of texts, or of objects with a text; at most 2048" },
    { "texts",            NK_FIELD_YES, read_documents, 0, 0, 0,
      "TEI's name for documents; the reply is then TEI's, too" },
    ANY_MODEL,
    { "top_n",            NK_FIELD_YES, nk__read_int, NK_OFFSET(top_n), 1, INT32_MAX,
      "so many results, the best ones; default all" },
    { "return_documents", NK_FIELD_YES, nk__read_bool, NK_OFFSET(return_documents), 0, 0,
      "each result has its document" },
    { "return_text",      NK_FIELD_YES, nk__read_bool, NK_OFFSET(return_documents), 0, 0,
      "TEI's name for it" },
    { "raw_scores",       NK_FIELD_FIXED, nk__read_only_true, 0, 0, 0,
      "true; scores are what the model gives" },
    { "max_tokens_per_doc", NK_FIELD_REFUSED, NULL, 0, 0, 0, "send shorter documents" },
    { "max_chunks_per_doc", NK_FIELD_REFUSED, NULL, 0, 0, 0, "send shorter documents" },
    { "truncate",         NK_FIELD_FIXED, nk__read_only_false, 0, 0, 0, "false" },
    { "user",             NK_FIELD_YES, nk__read_string, NK_OFFSET(user), 0, 0,
      "goes to the log with the request" },
    { NULL, 0, NULL, 0, 0, 0, NULL },
};
/* clang-format on */
