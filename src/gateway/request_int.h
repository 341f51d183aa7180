/* What the files that read requests share: request.c, on top, knows the dialects' tables; these
 * (request_openai.c, request_ollama.c, request_anthropic.c, request_responses.c) know the readers
 * (request_read.c), and the latter two what builds messages in OpenAI's shape (request_build.c). */
#ifndef NK_GATEWAY_REQUEST_INT_H
#define NK_GATEWAY_REQUEST_INT_H

#include "gateway/request.h"

struct nk_parse {
    struct nk_request *r;
    const struct nk_request_limits *limits;
    struct nk_request_error *e;
    char path[96]; /* of the object whose fields are read, with a dot at its end: "options." */
    const struct nk_field_rule *message_rules; /* the dialect's, of a message of a chat */
    /* Another dialect's fields: one that has an effect there and is unknown here is refused, since
     * whoever sends it expects that. NULL: none. */
    const struct nk_field_rule *others;
    bool takes_unknown; /* of a message or a tool: members that nobody knows are no hints either */
    /* What is only decided when all fields were read. */
    const char *grammar;
    bool want_logprobs, seen_top_logprobs, seen_max_tokens, seen_messages;
    int top_logprobs;
    const json_t *input, *instructions, *allowed_tools; /* Responses */
    /* Explicit: is the last message, an assistant's, to be continued, and is a reply to begin? */
    bool seen_continue, wants_continue, seen_begin, wants_begin;
    bool seen_samplers;
    unsigned samplers;   /* a bit for each, as nk__read_samplers numbers them */
    int n_unknown;       /* names that nobody knows */
    int n_tools;         /* as they were given, also twice */
    const json_t *asked; /* the last of r->messages that is no tool's */
    /* The text of a message that several in a row become, which gets it when it is whole: so each
     * of them is copied once, however many there are. */
    json_t *joining;
    struct nk_buf joined;
};

struct nk_field_rule {
    const char *name;
    enum nk_field_use use;
    /* Reads a value that is not null. For REFUSED: NULL. For IGNORED: NULL, or what says by
     * nk__ignore whether the value is one that asks for something. */
    int (*read)(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
    size_t offset; /* into struct nk_request, for the readers of plain numbers and switches */
    double min, max;
    const char *note;
};

/* "a string", "an object", ... for messages. */
const char *nk__json_type(const json_t *v);
/* Fills the error: param is p->path and name; the message begins with it. Returns code. */
int nk__bad(struct nk_parse *p, int code, const char *reason, const char *name, const char *fmt,
            ...) __attribute__((format(printf, 5, 6)));
/* Takes a hint or a label that has no effect here: its name goes to the client (r->ignored). */
int nk__ignore(struct nk_parse *p, const char *name);
/* Reads every member of an object by the table (ended by a NULL name). null counts as not given.
 * A name that is in no table is taken like a hint, unless it resembles a field that has an effect:
 * then it is refused with that one's name. With limits->strict: refused, as hints are. */
int nk__read_object(struct nk_parse *p, const struct nk_field_rule *rules, const json_t *object);

/* ---- readers that dialects share ---- */
int nk__read_float(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* An integer, also as 16.0. */
bool nk__json_integer(const json_t *v, json_int_t *out);
int nk__read_int(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_bool(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_string(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_seed(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_stop(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_top_n_sigma(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Which samplers take part: what the others are told is set back by nk__samplers_apply, when all
 * fields were read. */
int nk__read_samplers(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
void nk__samplers_apply(struct nk_parse *p);
int nk__read_dry_breakers(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_top_k(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_grammar(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_json_schema(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_logit_bias(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_top_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_want_logprobs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_max_tokens(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_cache_salt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_cache_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_prompt(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Of completions: how many log-probabilities; by llama-server's name 0 is none. */
int nk__read_completion_logprobs(struct nk_parse *p, const struct nk_field_rule *f,
                                 const json_t *v);
int nk__read_n_probs(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_n(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Not "": what comes after the text. */
int nk__read_suffix(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_messages(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__check_tool_name(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_tools(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_tool_choice(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_object_field(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Whether the last message, an assistant's, is continued rather than followed by another. */
int nk__read_continue(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_begin(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Decides it, when all fields were read: takes the message out of r->messages. */
int nk__take_prefill(struct nk_parse *p);
/* How a model thinks: words for how much, true and false, or a provider's object. */
int nk__read_reasoning_effort(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_enable_thinking(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_think(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_thinking(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_reasoning(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* FIXED fields. Only false, true, the number f->min, "" or [] or {}. */
int nk__read_only_false(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_only_true(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_only_number(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_only_empty(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__check_tool_name(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* IGNORED ones: a number up to f->max asks for nothing. */
int nk__read_wish(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Ollama's; a duration. [request_ollama.c] */
int nk__read_keep_alive(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
int nk__read_options(struct nk_parse *p, const struct nk_field_rule *f, const json_t *v);
/* Of requests for embeddings: what concerns several fields at once. [request_embed.c] */
int nk__embed_check_together(struct nk_parse *p);
/* Token ids: an array of integers into owned memory. */
int nk__read_ids(struct nk_parse *p, const char *name, const json_t *v, int32_t **ids, size_t *n);

/* ---- messages in OpenAI's shape [request_build.c] ---- */
/* All of these append to p->r->messages, which is there, and return 0 or EXHAUSTED no_memory, but
 * where more is said. */

/* More text, a string, on a line of its own. */
int nk__build_text(struct nk_parse *p, struct nk_buf *to, const json_t *text);
/* A message; a user's or the system's after one of the same role becomes a part of that one, which
 * has its content from the next message of another role, or nk__build_end, on.
 * INVALID too_many. */
int nk__build_message(struct nk_parse *p, const char *role, const struct nk_buf *content);
/* There are no more messages. */
int nk__build_end(struct nk_parse *p);
int nk__build_tool_result(struct nk_parse *p, const char *call_id, const struct nk_buf *content);
/* To the last message, an assistant's: what it thought (empty: nothing), and a call. */
int nk__build_reasoning(struct nk_parse *p, const struct nk_buf *reasoning);
int nk__build_call(struct nk_parse *p, const char *id, const char *name, const char *arguments);
/* A call's arguments, a string or an object, as the template gets them: always a JSON object in
 * text. What a model was cut off in, or wrote wrongly, is kept as the only member: the template's
 * author expects an object. Owned by the caller; NULL: no memory. [request_message.c] */
char *nk__arguments_text(const json_t *arguments);
/* A call's id as it was before it got a dialect's prefix here; any other as it is. */
const char *nk__call_id_plain(const char *id);
/* Checks one tool, whose members are at p->path, and appends it to p->r->tools unless the same is
 * there. schema_name: the
 * member that holds its parameters. INVALID bad_value, missing_field, too_many. */
int nk__build_tool(struct nk_parse *p, const json_t *tool, const char *schema_name);
int nk__build_no_memory(struct nk_parse *p); /* fills the error; returns its code */
/* Is it one of the strings, whose list ends with NULL? */
bool nk__is_one_of(const json_t *v, const char *const *words);

extern const struct nk_field_rule nk__rules_chat[], nk__rules_completion[], nk__rules_ollama_chat[],
    nk__rules_ollama_generate[], nk__rules_ollama_options[], nk__rules_ollama_show[],
    nk__rules_message[], nk__rules_ollama_message[], nk__rules_stream_options[],
    nk__rules_tool_function[], nk__rules_tokenize[], nk__rules_detokenize[],
    nk__rules_apply_template[], nk__rules_anthropic[], nk__rules_responses[],
    nk__rules_llama_completion[], nk__rules_infill[], nk__rules_embeddings[],
    nk__rules_llama_embedding[], nk__rules_ollama_embed[], nk__rules_ollama_embeddings[],
    nk__rules_rerank[];

/* Responses: messages from instructions, from what was stored, and from the input. */
int nk__responses_build(struct nk_parse *p);

#endif
