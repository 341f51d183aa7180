/* What the files that write replies share: reply.c, on top, takes texts apart and counts; these
 * (reply_openai.c, reply_ollama.c, reply_anthropic.c, reply_responses.c) write them, each behind
 * one table of functions. */
#ifndef NK_GATEWAY_REPLY_INT_H
#define NK_GATEWAY_REPLY_INT_H

#include "gateway/reply.h"

struct nk__reply_tool {
    char *name;
    struct nk_buf arguments;
};

/* A stretch of a reply of one kind: content, reasoning, or one call. Of the dialects that number
 * them (Anthropic's blocks, Responses' items). */
struct nk__reply_part {
    enum nk_output_kind kind; /* NK_OUTPUT_TOOL: text is the call's arguments */
    char *name;               /* of the function; else NULL */
    struct nk_buf text, logprobs;
    bool ended;
};

struct nk__reply_choice {
    nk_reply *r;
    int index;
    nk_output *output;
    /* OpenAI and Ollama. What came since the last chunk (streamed) or from the beginning (not
     * streamed). */
    struct nk_buf content, reasoning, calls;
    struct nk_buf logprobs; /* of chats, in all dialects: a list's elements */
    /* completions: the four lists of log-probabilities */
    struct nk_buf lp_tokens, lp_values, lp_tops, lp_offsets;
    size_t lp_offset;
    int32_t *ids; /* llama-server's: since the last chunk, or from the beginning */
    size_t n_ids, ids_capacity;
    int n_events;
    bool has_new_line;
    struct nk_buf raw;              /* opts.verbose: all that the model wrote */
    struct nk_reply_timings so_far; /* with opts.timings_per_token */
    bool text_begun;                /* what comes before the first token was written */
    struct nk__reply_tool *tools;
    size_t tools_capacity;
    int n_tools;
    /* the others */
    struct nk__reply_part *parts;
    size_t parts_capacity;
    int n_parts;
    bool begun, done;
    int n_reasoning;
    struct nk_reply_done result; /* its texts are gone when it was taken */
};

struct nk__reply_dialect {
    /* A piece of a choice's text, as nk_output_sink has it. What is to be sent at once goes to
     * r->out (streamed only). */
    int (*piece)(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                 size_t size, struct nk_error *err);
    /* Streamed, for those whose `piece` is nk__reply_part_piece: of the last part that there is.
     * What they say goes to r->out. */
    int (*part_begin)(struct nk__reply_choice *c, int part, struct nk_error *err);
    int (*part_delta)(struct nk__reply_choice *c, int part, const char *text, size_t size,
                      struct nk_error *err);
    int (*part_end)(struct nk__reply_choice *c, int part, struct nk_error *err);
    /* Streamed: the pieces of one token were given; and: those of the choice's last one. */
    int (*flush)(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err);
    int (*done)(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err);
    /* Streamed: how far the prompt is. NULL: it is not told. */
    int (*progress)(struct nk__reply_choice *c, const struct nk_reply_progress *p,
                    struct nk_buf *out, struct nk_error *err);
    /* All choices are done: the stream's end, or the whole object. */
    int (*end)(nk_reply *r, struct nk_buf *out, struct nk_error *err);
    /* Streamed: bytes that say nothing. */
    int (*keepalive)(nk_reply *r, struct nk_buf *out, struct nk_error *err);
    /* Streamed: it ends with an error. */
    int (*fail)(nk_reply *r, const struct nk_error *err, const char *param, struct nk_buf *out);
};
extern const struct nk__reply_dialect nk__reply_openai, nk__reply_ollama, nk__reply_anthropic,
    nk__reply_llama, nk__reply_responses;

struct nk_reply {
    struct nk_reply_opts opts;
    const struct nk__reply_dialect *dialect;
    struct nk__reply_choice *choices;
    struct nk_buf *out; /* streamed, while pieces come; else NULL */
    bool begun;         /* the stream has its first bytes */
    int64_t n_prompt, n_reused, n_generated;
    int n_recovered;
    uint64_t recovery_us, n_replayed;
    int64_t sequence; /* Responses: of the next event */
};

bool nk__reply_is_chat(const nk_reply *r);
int nk__reply_n_reasoning(const nk_reply *r);
/* `piece` of the dialects that need no more than all of each kind, in content, reasoning, tools. */
int nk__reply_collect(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                      size_t size, struct nk_error *err);
/* The pieces of one kind make a part; another kind, or another call, begins the next. */
int nk__reply_part_piece(struct nk__reply_choice *c, enum nk_output_kind kind, const char *text,
                         size_t size, struct nk_error *err);
/* The last part ends, if there is one and it has not ended yet. */
int nk__reply_part_close(struct nk__reply_choice *c, struct nk_error *err);
/* A call's id, without the prefix that some dialects give it. Nine letters and digits: Mistral's
 * templates refuse any other id when it comes back. idx: of the call among the choice's. */
enum { NK__CALL_ID_SIZE = 10 };
const char *nk__reply_call_id(const struct nk__reply_choice *c, int idx,
                              char out[NK__CALL_ID_SIZE]);
/* A token's log-probabilities as OpenAI's chats have them, after those in c->logprobs. */
int nk__reply_add_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                           struct nk_error *err);
/* The same as llama-server's own completions have them, with ids. */
int nk__reply_add_llama_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                                 struct nk_error *err);
/* ,"prompt_progress":{...}: how far the prompt is, as llama-server tells it. */
int nk__reply_write_progress(const struct nk_reply_progress *p, struct nk_buf *out,
                             struct nk_error *err);
/* ,"timings":{...}: how long it took, as llama-server tells it. */
int nk__reply_write_timings(const struct nk_reply_timings *t, struct nk_buf *out,
                            struct nk_error *err);
/* That of a choice that is done. */
struct nk_reply_timings nk__reply_timings_of(const struct nk__reply_choice *c);
/* ,"__verbose":{...}: what llama-server's own completion would say of a choice that is done, with
 * all that the model wrote. */
int nk__reply_write_verbose(struct nk__reply_choice *c, struct nk_buf *out, struct nk_error *err);
/* The same for completions, into the four lists. text: what it adds to the text. */
int nk__reply_add_completion_logprobs(struct nk__reply_choice *c, const struct nk_gen_token *t,
                                      const char *text, size_t text_size, struct nk_error *err);

#endif
