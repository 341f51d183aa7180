/* The options of a generation, with llama.cpp's names: what run, up and others that generate share. */
#ifndef NK_CLI_GEN_ARGS_H
#define NK_CLI_GEN_ARGS_H

#include "base/args.h"
#include "base/buf.h"
#include "chain/chain.h"

struct nk_gen_args {
    int64_t n_predict, top_k, repeat_last_n, dry_allowed_length, dry_penalty_last_n, mirostat, seed,
        logprobs;
    int64_t timeout_ms, stall_ms;
    double temp, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty;
    double dry_multiplier, dry_base, mirostat_lr, mirostat_ent;
    bool ignore_eos, deterministic, no_reuse, special;
    struct nk_arg_list stop, logit_bias;
    const char *grammar, *grammar_file;
    /* made by nk_gen_args_opts */
    struct nk_logit_bias *bias;
    struct nk_buf grammar_text;
};

struct nk_gen_args nk_gen_args_default(void);
/* The generation's options, without a prompt. They borrow from a until nk_gen_args_release.
 *   INVALID    bad_argument   a logit bias of the wrong form, a grammar given twice; bad_sampling
 *   NOT_FOUND  no_file        the grammar's */
int nk_gen_args_opts(struct nk_gen_args *a, struct nk_gen_opts *o, struct nk_error *err);
void nk_gen_args_release(struct nk_gen_args *a);

/* clang-format off */
/* Rows of a command's table of arguments (struct nk_gen_args a). */
#define NK_GEN_ARGS(a)                                                                                                       \
    { "n-predict", 'n', NK_ARG_INT, &(a).n_predict, "N", "tokens to generate at most; 0: a session's share of the context", 0, 1 << 30 }, \
    { "temp", 't', NK_ARG_FLOAT, &(a).temp, "T", "temperature; 0: greedy (0.8)", 0, 100 },                                   \
    { "top-k", 0, NK_ARG_INT, &(a).top_k, "K", "the K most probable tokens; 0: off (40)", 0, 1 << 30 },                      \
    { "top-p", 0, NK_ARG_FLOAT, &(a).top_p, "P", "the most probable ones that make up P; 1: off (0.95)", 0, 1 },             \
    { "min-p", 0, NK_ARG_FLOAT, &(a).min_p, "P", "those at least P times as probable as the best; 0: off (0.05)", 0, 1 },    \
    { "typical-p", 0, NK_ARG_FLOAT, &(a).typical_p, "P", "locally typical sampling; 1: off (1)", 0, 1 },                     \
    { "repeat-penalty", 0, NK_ARG_FLOAT, &(a).repeat_penalty, "X", "1: off (1)", 0, 1000 },                                  \
    { "presence-penalty", 0, NK_ARG_FLOAT, &(a).presence_penalty, "X", "0: off (0)", -1000, 1000 },                          \
    { "frequency-penalty", 0, NK_ARG_FLOAT, &(a).frequency_penalty, "X", "0: off (0)", -1000, 1000 },                        \
    { "repeat-last-n", 0, NK_ARG_INT, &(a).repeat_last_n, "N", "tokens that penalties look at; -1: the context (64)", -1, 1 << 30 }, \
    { "dry-multiplier", 0, NK_ARG_FLOAT, &(a).dry_multiplier, "X", "DRY sampling; 0: off (0)", 0, 1000 },                    \
    { "dry-base", 0, NK_ARG_FLOAT, &(a).dry_base, "X", "(1.75)", 1, 1000 },                                                  \
    { "dry-allowed-length", 0, NK_ARG_INT, &(a).dry_allowed_length, "N", "(2)", 1, 1 << 30 },                                \
    { "dry-penalty-last-n", 0, NK_ARG_INT, &(a).dry_penalty_last_n, "N", "-1: the context (-1)", -1, 1 << 30 },              \
    { "mirostat", 0, NK_ARG_INT, &(a).mirostat, "N", "0: off, 1, 2 (0)", 0, 2 },                                             \
    { "mirostat-lr", 0, NK_ARG_FLOAT, &(a).mirostat_lr, "X", "learning rate, eta (0.1)", 0, 1 },                             \
    { "mirostat-ent", 0, NK_ARG_FLOAT, &(a).mirostat_ent, "X", "target entropy, tau (5)", 0, 1000 },                         \
    { "seed", 's', NK_ARG_INT, &(a).seed, "N", "the same seed gives the same text; -1: a random one (-1)", -1, 4294967294.0 }, \
    { "logit-bias", 0, NK_ARG_LIST, &(a).logit_bias, "ID+X", "adds X to a token's logit: 42+1.5, 42-3, 42-inf; may be repeated", 0, 0 }, \
    { "grammar", 0, NK_ARG_STRING, &(a).grammar, "GBNF", "the text must fit this grammar", 0, 0 },                           \
    { "grammar-file", 0, NK_ARG_STRING, &(a).grammar_file, "FILE", "the same from a file", 0, 0 },                           \
    { "ignore-eos", 0, NK_ARG_FLAG, &(a).ignore_eos, NULL, "never choose an end-of-generation token", 0, 0 },                \
    { "stop", 'r', NK_ARG_LIST, &(a).stop, "TEXT", "end before this text; may be repeated", 0, 0 },                          \
    { "special", 0, NK_ARG_FLAG, &(a).special, NULL, "show control tokens", 0, 0 },                                          \
    { "deterministic", 0, NK_ARG_FLAG, &(a).deterministic, NULL, "never compute together with other sessions' rows", 0, 0 }, \
    { "no-reuse", 0, NK_ARG_FLAG, &(a).no_reuse, NULL, "neither begin from a kept session nor keep this one", 0, 0 },        \
    { "timeout-ms", 0, NK_ARG_INT, &(a).timeout_ms, "MS", "of the whole generation; 0: none (0)", 0, 4e9 },                  \
    { "stall-ms", 0, NK_ARG_INT, &(a).stall_ms, "MS", "give up a worker that does not answer a step for so long (30000)", 0, 4e9 }
/* clang-format on */

#endif
