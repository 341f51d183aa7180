/* What a command does that generates (run, up): its options, the prompt, the vocabulary that fits
 * the cluster, and the output as text, ids or JSON, or a conversation. */
#ifndef NK_CLI_GENERATE_H
#define NK_CLI_GENERATE_H

#include "base/buf.h"
#include "chain/chain.h"
#include "cli/answer.h"
#include "cli/gen_args.h"
#include "text/vocab.h"

/* Nobody reads the output any more: what a filter's exit code looks like that SIGPIPE ended. */
enum { NK_EXIT_CLOSED = 141 };

struct nk_generate {
    const char *prompt, *file, *system; /* borrowed from argv */
    const char *chat_template;          /* a built-in one's name or a file; NULL: the model's own */
    bool json, stats, ids, chat;
    struct nk_gen_args gen;
    /* made by nk_generate_prepare */
    struct nk_gen_opts opts;
    struct nk_buf text; /* the prompt */
    struct nk_buf template_text;
};
#define NK_GENERATE_INIT                                                                           \
    {                                                                                              \
        .gen = nk_gen_args_default()                                                               \
    }

/* Rows of a command's table of arguments (struct nk_generate g). */
#define NK_GENERATE_ARGS(g)                                                                        \
    NK_OPT_STRING("prompt", 'p', &(g).prompt, "TEXT",                                              \
                  "the prompt (seen in the process list, where --file is not)"),                   \
        NK_OPT_STRING("file", 'f', &(g).file, "FILE",                                              \
                      "the prompt from a file; -: standard input"),                                \
        NK_OPT_FLAG("chat", 0, &(g).chat,                                                          \
                    "a conversation on the terminal, with the model's chat template"),             \
        NK_OPT_STRING("system", 0, &(g).system, "TEXT", "the conversation's system message"),      \
        NK_GEN_ARGS((g).gen),                                                                      \
        NK_OPT_FLAG("json", 'j', &(g).json,                                                        \
                    "one JSON object with text, ids and timings at the end"),                      \
        NK_OPT_INT("logprobs", 0, &(g).gen.logprobs, "K", 0, NK_LOGPROBS_MAX,                      \
                   "with --json: each token's log-probability and K alternatives"),                \
        NK_OPT_FLAG("ids", 0, &(g).ids, "print the generated tokens' ids instead of their text"),  \
        NK_OPT_FLAG("stats", 0, &(g).stats,                                                        \
                    "tokens, rates and each worker's times on standard error")

/* Options against each other, and the prompt from --prompt, from --file ("-": standard input) or,
 * when neither is given and need_prompt is set, from standard input unless that is a terminal. One
 * newline at the end of a file is not part of the prompt (editors and echo put it there).
 *   INVALID    bad_argument, bad_sampling
 *   NOT_FOUND  no_file; EXHAUSTED too_large (over NK_TEXT_BYTES_MAX); DATA_LOSS read_failed;
 *              CANCELLED interrupted */
int nk_generate_prepare(struct nk_generate *g, bool need_prompt, struct nk_error *err);
/* Generates or converses; reports what goes wrong on standard error. Returns the exit code. */
int nk_generate_run(struct nk_generate *g, struct nk_route *r, const nk_vocab *v);
void nk_generate_release(struct nk_generate *g);
/* The last thing of a command: returns code, but for NK_EXIT_CLOSED ends the process by SIGPIPE as
 * filters end. */
int nk_generate_exit(int code);

/* A chat template as options give it: the name of a built-in one, which is never a path, or a
 * file's text, read into b.
 *   NOT_FOUND no_file; EXHAUSTED too_large */
int nk_chat_template_read(const char *given, struct nk_buf *b, const char **text,
                          struct nk_error *err);

/* The cluster's vocabulary file, which must be of the cluster's model: ids of another vocabulary
 * would give wrong text without anybody noticing. *out owned by the caller.
 *   INVALID       no_vocab        the cluster file names none
 *   PRECONDITION  model_mismatch  it was cut from another model; both hashes are named
 *   DATA_LOSS     damaged         it is not what was written
 * and nk_vocab_open's, nk_model_open's. */
int nk_cluster_vocab_open(nk_vocab **out, const struct nk_cluster *c, struct nk_error *err);

#endif
