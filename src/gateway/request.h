/* A request for text, in a dialect's words, read from its JSON and checked. Pure: no
 * model, no network.
 *
 * The bytes come from strangers. Every field that exists is in a table (nk__field_table). One that
 * could change the answer has its effect or is refused by its name; a hint, a label or a value that
 * changes nothing is taken, and what asked for something that is not done here is named
 * (nk_request.ignored). docs/api.md shows the same tables, and a test compares. Strings of a
 * request live in its own JSON values. */
#ifndef NK_GATEWAY_REQUEST_H
#define NK_GATEWAY_REQUEST_H

#include <jansson.h>

#include "base/buf.h"
#include "base/error.h"
#include "gateway/api.h"
#include "text/detok.h"
#include "text/sampling.h"

/* What is wrong with a request: err for the program, param for the client ("messages[2].content";
 * "" for the whole). */
struct nk_request_error {
    struct nk_error err;
    char param[128];
};

/* What was said in earlier responses, for Responses' requests that go on from there: lists of that
 * dialect's items. */
struct nk_item_source {
    /* Appends all that was said up to a response. */
    int (*history)(void *user, const char *response_id, json_t *into, struct nk_error *err);
    /* One item by its id; *out owned by the caller. */
    int (*item)(void *user, const char *item_id, json_t **out, struct nk_error *err);
    void *user;
};
/* What a client gets as its reasoning's encrypted_content begins with it; the text follows. */
#define NK_REASONING_MARK "nakshatra:"

struct nk_request_limits {
    int messages_max, n_max;
    const struct nk_item_source *items; /* NULL: nothing is stored */
    bool strict;                        /* hints and unknown fields are refused, too */
    const json_t *defaults; /* what requests get that do not say it, nk__defaults_read's; or NULL */
    int n_predict_max;      /* of nk_request.n_predict where that is not 0; 0: no limit */
};

struct nk_prompt { /* text, or token ids */
    const char *text;
    size_t size;
    int32_t *ids; /* owned by the request */
    size_t n_ids;
    const json_t *mixed; /* borrowed; ids and texts in turn, and there is neither of the above */
};
struct nk_text_bias { /* of each token of a text */
    const char *text; /* borrowed */
    size_t size;
    float bias;
};

enum nk_output_format { NK_FORMAT_TEXT, NK_FORMAT_JSON, NK_FORMAT_SCHEMA };
enum nk_tool_choice { NK_TOOLS_AUTO, NK_TOOLS_NONE, NK_TOOLS_REQUIRED, NK_TOOLS_NAMED };
enum nk_think { NK_THINK_DEFAULT, NK_THINK_OFF, NK_THINK_ON };
enum { NK_INPUTS_MAX = 2048, NK_INPUT_TOKENS_MAX = 1 << 20 }; /* of a request for embeddings */
enum { NK_PROMPTS_MAX = 64, NK_TOOLS_MAX = 1024 };
enum { NK_IGNORED_BYTES_MAX = 512 };

struct nk_request {
    enum nk_api api;
    json_t *root;      /* the request as it came; NULL after nk__request_shrink */
    char *kept;        /* owned: the strings that are left then */
    const char *model; /* or NULL; all strings: borrowed from root, or from kept */
    const char *user;  /* an identifier of the end user, for the log; or NULL */
    /* Fields that were taken without effect, "store,options.num_gpu"; characters that no header
     * may have are '?'. */
    char ignored[NK_IGNORED_BYTES_MAX];
    bool stream, include_usage;
    bool timings_per_token; /* llama-server: each chunk of a stream tells how long it took */
    bool progress;          /* llama-server: streams tell how far the prompt is */
    int n;                  /* choices per prompt */
    /* 0: a session's share of the workers' context; -1: as many as the context holds. */
    int n_predict;
    int num_ctx; /* Ollama: prompt and reply together; 0: what the chain has */
    struct nk_sampling sampling;
    struct nk_logit_bias *logit_bias; /* owned; sampling points to it */
    struct nk_text_bias *text_bias;   /* owned; what says texts instead of ids */
    int n_text_bias;
    const char *stop[NK_STOP_MAX];
    size_t n_stop;
    int n_logprobs; /* -1: none */
    enum nk_output_format format;
    const json_t *schema; /* borrowed from root; for NK_FORMAT_SCHEMA */
    bool no_reuse, deterministic;
    const char *cache_salt; /* vLLM's: reuse only among requests with the same one; or NULL */
    /* chats */
    /* Owned; OpenAI's shape, content always a string, tool calls' arguments always text. */
    json_t *messages;
    json_t *prefill;      /* owned; the last message, an assistant's, that is continued; or NULL */
    bool begins_no_reply; /* the prompt ends with the messages */
    json_t *tools;        /* owned; OpenAI's shape; NULL: none */
    bool tools_strict;    /* a tool's arguments must keep to its schema */
    enum nk_tool_choice tool_choice;
    const char *tool_name; /* for NK_TOOLS_NAMED */
    bool parallel_tool_calls;
    enum nk_think think;
    const char *reasoning_effort; /* or NULL */
    /* think and reasoning_effort are taken where the template has them; else they are dropped. */
    bool think_if_able;
    bool hide_reasoning; /* what it thinks is not shown */
    /* Responses */
    bool store, summarise, encrypted_reasoning;
    const char *previous; /* the response that this one follows; or NULL */
    json_t *items;        /* owned: the request's, for the store; what they referred to is in it */
    char *echo;           /* owned: members of a response that repeat the request; stays */
    const json_t *template_kwargs; /* an object, or NULL */
    /* completions and Ollama's generate */
    struct nk_prompt prompts[NK_PROMPTS_MAX];
    int n_prompts;
    bool only_prompt;    /* nothing is generated: the token that must be is left out */
    bool repeats_prompt; /* the prompt comes before the text; its prompts stay until the end */
    const char *suffix;  /* what comes after the text; or NULL. Models that fill in the middle */
    /* llama-server's /infill: what comes before the prompt, and [{filename, text}]; or NULL */
    const char *input_prefix;
    const json_t *input_extra;
    bool return_tokens; /* llama-server: the ids of the text, too */
    json_t
        *response_fields; /* owned; llama-server: the members that the reply is to have; or NULL */
    bool raw;             /* Ollama: the prompt is not put into a template */
    const char *system;   /* Ollama; or NULL */
    int32_t *context;     /* Ollama: token ids of what came before; owned */
    size_t n_context;
    /* Ollama, Responses: of a chat that does not fit the first messages are left out. */
    bool truncate;
    bool only_load; /* Ollama: nothing to generate: is the model there? */
    bool only_unload;
    /* embeddings: texts, or a reranker's documents; owned, as their ids */
    struct nk_prompt *inputs;
    size_t n_inputs;
    const char *input_name; /* of the field that they are in; constant; NULL: there are none */
    bool base64;
    int dimensions; /* that the vectors must have; 0: not said */
    /* -1: as they are; 0: to the largest element, times 32760; else to the norm of this order */
    int normalize;
    const char *query; /* rerank; size_t below: with NULs, as texts may have them */
    size_t query_size;
    int top_n; /* 0: all */
    bool return_documents;
    bool texts; /* the documents came as TEI's `texts`, and so goes the reply */
    bool add_special, parse_special, with_pieces; /* /tokenize, whose text is the first prompt */
};

/* Fields of /completion, as a JSON object, that requests get of every dialect that has them, where
 * they do not say them: *out is the caller's to decref. INVALID bad_defaults, with what is
 * wrong. */
int nk__defaults_read(json_t **out, const char *text, struct nk_error *err);

/* Reads one. On success *r is to be released. On failure it is empty and e says what and where:
 *   INVALID        bad_json, not_an_object, unknown_field, refused_field, bad_value, missing_field
 *   NOT_FOUND      previous_response_not_found, item_not_found; and what else the source has
 *   EXHAUSTED      too_many (messages, choices), too_large */
int nk__request_parse(struct nk_request *r, enum nk_api api, const char *body, size_t size,
                      const struct nk_request_limits *limits, struct nk_request_error *e);
/* What it asks of the chain, whose sessions hold n_ctx tokens: more than that is a wish. */
void nk__request_fit(struct nk_request *r, int n_ctx);
void nk__request_release(struct nk_request *r); /* harmless on an empty one */
/* When its prompt and grammar are made: what is left are numbers, switches, model, user and the
 * stop strings; what was read as JSON is gone (its pointers are NULL; sampling.grammar, if there
 * was one, is ""). EXHAUSTED no_memory, and then it is as it was. */
int nk__request_shrink(struct nk_request *r, struct nk_error *err);

/* ---- the fields ---- */
enum nk_field_use {
    NK_FIELD_YES,     /* has the effect that the API's documentation says */
    NK_FIELD_FIXED,   /* only with the value that changes nothing */
    NK_FIELD_IGNORED, /* a hint or a label: taken, and named as ignored */
    NK_FIELD_REFUSED, /* known, and refused */
};
struct nk_field {
    const char *name;
    enum nk_field_use use;
    const char *note; /* for docs/api.md and for the refusal */
};
struct nk_field_table {
    const char *title; /* "POST /v1/chat/completions" */
    int n;
};
/* The tables one after the other, idx from 0; false past the last. */
bool nk__field_table(int idx, struct nk_field_table *out);
struct nk_field nk__field(int table_idx, int field_idx);

#endif
