/* What a client reads: generated tokens in, bytes of a dialect's replies out. Pure; one thread at a
 * time.
 *
 * A reply is one request's: it knows the choices, takes each one's text apart (output.h) and writes
 * server-sent events (streamed; Ollama: lines of JSON) or one JSON object, as the dialect's table
 * of functions does (reply_int.h).
 * Streamed and not streamed texts are the same, because both go the same way until the last step.
 */
#ifndef NK_GATEWAY_REPLY_H
#define NK_GATEWAY_REPLY_H

#include "base/buf.h"
#include "chain/chain.h"
#include "gateway/output.h"
#include "gateway/request.h"

struct nk_reply_opts {
    enum nk_api api;
    bool stream, include_usage;
    int n_choices;
    int n_logprobs;        /* as asked for; -1: none */
    size_t text_bytes_max; /* of all that is kept of one choice; over it EXHAUSTED `too_large` */
    char id[40];           /* "chatcmpl-..." is made of it */
    char model[128];       /* the name that the request used */
    char fingerprint[96];
    bool hide_reasoning; /* that there is some is told, not what */
    /* Responses: reasoning as a summary; and as text that a client sends back. */
    bool summarise, encrypted_reasoning;
    const char *echo;                    /* Responses: what it repeats of its request; borrowed */
    int n_prompt;                        /* tokens of the prompts, each once */
    int64_t created;                     /* seconds since 1970 */
    bool parse;                          /* take reasoning and tool calls out of the text, by: */
    struct nk_output_opts output;        /* without its sink */
    void (*utc)(char *out, size_t size); /* Ollama's created_at */
    /* What a choice's text begins with (completions' echo), appended; NULL: nothing. */
    int (*before)(void *user, int choice, struct nk_buf *out, struct nk_error *err);
    /* llama-server's: members about the request, "generation_settings":{...},"prompt":"..." */
    int (*settings)(void *user, int choice, struct nk_buf *out, struct nk_error *err);
    void *user;                    /* theirs */
    bool timings_per_token;        /* llama-server's: nk__reply_timings is told before each token */
    bool no_text;                  /* what is generated is left out: only the prompt was wanted */
    bool verbose;                  /* OpenAI's replies have llama-server's own under __verbose */
    bool return_tokens;            /* llama-server's: the ids of what is not streamed, too */
    const json_t *response_fields; /* llama-server's; or NULL; borrowed */
};

typedef struct nk_reply nk_reply;

nk_reply *nk__reply_new(const struct nk_reply_opts *opts); /* NULL: no memory */
void nk__reply_free(nk_reply *r);

/* A token of a choice. Appends what is to be sent now to out (nothing, when the reply is not
 * streamed). *ended: the choice needs no more tokens (the one tool call that was wanted is
 * complete). */
int nk__reply_token(nk_reply *r, int choice, const struct nk_gen_token *t, struct nk_buf *out,
                    bool *ended, struct nk_error *err);

struct nk_reply_progress {         /* of a choice's prompt; tokens */
    int n_total, n_reused, n_done; /* n_done: with those that were reused */
    uint64_t time_ms;              /* since it began */
};
/* How far a choice's prompt is, before its first token; nothing where the dialect has no place for
 * it, or where the reply is not streamed. */
int nk__reply_progress(nk_reply *r, int choice, const struct nk_reply_progress *p,
                       struct nk_buf *out, struct nk_error *err);

/* Completions: a token of a choice's prompt (index: its position), in their order, with its
 * log-probability (NaN: the first) and in `text` what of it is in the prompt's text. Written with
 * what comes next; index 0 begins anew. */
int nk__reply_prompt_token(nk_reply *r, int choice, const struct nk_gen_token *t,
                           struct nk_error *err);

/* How long a choice took so far, for what is written of its next token. */
struct nk_reply_timings {
    int n_prompt, n_reused, n_generated;
    uint64_t prefill_us, decode_us;
};
void nk__reply_timings(nk_reply *r, int choice, const struct nk_reply_timings *t);

struct nk_reply_done { /* of one choice */
    enum nk_finish finish;
    const char *tail; /* text that came free at the end */
    size_t tail_size;
    char stop_string[257]; /* "": none ended it */
    int n_prompt, n_reused, n_generated;
    bool truncated; /* the context ended it, and no limit that somebody said */
    uint64_t prefill_us, decode_us, total_us, waiting_us;
    int n_recovered;                  /* so often it went on after the loss of a worker */
    uint64_t recovery_us, n_replayed; /* what that took; positions that were computed again */
    const int32_t *context;           /* Ollama's generate: the ids of prompt and reply */
    size_t n_context;
    bool counts_prompt; /* usage counts the prompt once for all choices over it */
};
int nk__reply_done(nk_reply *r, int choice, const struct nk_reply_done *d, struct nk_buf *out,
                   struct nk_error *err);
/* After the last choice is done: the end of the stream, or the whole object. */
int nk__reply_end(nk_reply *r, struct nk_buf *out, struct nk_error *err);

/* Responses: the response as it is now, and the items that were said, a list: for the store. */
int nk__reply_response(const nk_reply *r, struct nk_buf *out, struct nk_error *err);
int nk__reply_items(const nk_reply *r, struct nk_buf *out, struct nk_error *err);
/* Streamed: bytes in between that say nothing; where the stream has not begun, after its
 * beginning. */
int nk__reply_keepalive(nk_reply *r, struct nk_buf *out, struct nk_error *err);
/* Streamed: the stream's last event, which says that it ends with an error. param: "" for none. */
int nk__reply_fail(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out);

/* ---- errors ---- */
/* The HTTP status for an error. */
int nk__error_status(const struct nk_error *err);
/* The body, in the dialect's shape; in_stream: as an event of a stream of which nothing is known.
 * param: "" for none. */
int nk__error_body(enum nk_dialect dialect, bool in_stream, const struct nk_error *err,
                   const char *param, struct nk_buf *out);

#endif
