/* The options of a generation, with llama.cpp's names: what run and up share. */
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

/* Rows of a command's table of arguments (struct nk_gen_args a). */
#define NK_GEN_ARGS(a)                                                                             \
    NK_OPT_INT("n-predict", 'n', &(a).n_predict, "N", 0, 1 << 30,                                  \
               "tokens to generate at most; 0: a session's share of the context"),                 \
        NK_OPT_FLOAT("temp", 't', &(a).temp, "T", 0, 100, "temperature; 0: greedy"),               \
        NK_OPT_INT("top-k", 0, &(a).top_k, "K", 0, 1 << 30, "the K most probable tokens; 0: off"), \
        NK_OPT_FLOAT("top-p", 0, &(a).top_p, "P", 0, 1,                                            \
                     "the most probable ones that make up P; 1: off"),                             \
        NK_OPT_FLOAT("min-p", 0, &(a).min_p, "P", 0, 1,                                            \
                     "those at least P times as probable as the best; 0: off"),                    \
        NK_OPT_FLOAT("typical-p", 0, &(a).typical_p, "P", 0, 1,                                    \
                     "locally typical sampling; 1: off"),                                          \
        NK_OPT_FLOAT("repeat-penalty", 0, &(a).repeat_penalty, "X", 0, 1000,                       \
                     "tokens that came already are less probable; 1: off"),                        \
        NK_OPT_FLOAT("presence-penalty", 0, &(a).presence_penalty, "X", -1000, 1000,               \
                     "taken from the logit of each token that came already; 0: off"),              \
        NK_OPT_FLOAT("frequency-penalty", 0, &(a).frequency_penalty, "X", -1000, 1000,             \
                     "the same, once for each time that it came; 0: off"),                         \
        NK_OPT_INT("repeat-last-n", 0, &(a).repeat_last_n, "N", -1, 1 << 30,                       \
                   "tokens that penalties look at; -1: the context"),                              \
        NK_OPT_FLOAT("dry-multiplier", 0, &(a).dry_multiplier, "X", 0, 1000,                       \
                     "DRY sampling; 0: off"),                                                      \
        NK_OPT_FLOAT("dry-base", 0, &(a).dry_base, "X", 1, 1000,                                   \
                     "the base of its penalty, which grows with the length of a repetition"),      \
        NK_OPT_INT("dry-allowed-length", 0, &(a).dry_allowed_length, "N", 1, 1 << 30,              \
                   "repetitions up to this length are free"),                                      \
        NK_OPT_INT("dry-penalty-last-n", 0, &(a).dry_penalty_last_n, "N", -1, 1 << 30,             \
                   "tokens in which it looks for them; -1: the context"),                          \
        NK_OPT_INT("mirostat", 0, &(a).mirostat, "N", 0, 2,                                        \
                   "1 or 2: Mirostat of this version instead of top-k and its like; 0: off"),      \
        NK_OPT_FLOAT("mirostat-lr", 0, &(a).mirostat_lr, "X", 0, 1, "its learning rate, eta"),     \
        NK_OPT_FLOAT("mirostat-ent", 0, &(a).mirostat_ent, "X", 0, 1000,                           \
                     "its target entropy, tau"),                                                   \
        NK_OPT_INT("seed", 's', &(a).seed, "N", -1, 4294967294.0,                                  \
                   "the same seed gives the same text; -1: a random one"),                         \
        NK_OPT_LIST("logit-bias", 0, &(a).logit_bias, "ID+X",                                      \
                    "adds X to a token's logit: 42+1.5, 42-3, 42-inf; may be repeated"),           \
        NK_OPT_STRING("grammar", 0, &(a).grammar, "GBNF", "the text must fit this grammar"),       \
        NK_OPT_STRING("grammar-file", 0, &(a).grammar_file, "FILE", "the same from a file"),       \
        NK_OPT_FLAG("ignore-eos", 0, &(a).ignore_eos, "never choose an end-of-generation token"),  \
        NK_OPT_LIST("stop", 'r', &(a).stop, "TEXT", "end before this text; may be repeated"),      \
        NK_OPT_FLAG("special", 0, &(a).special, "show control tokens"),                            \
        NK_OPT_FLAG(                                                                               \
            "deterministic", 0, &(a).deterministic,                                                \
            "the same to the last bit whatever else runs; needs workers with --deterministic (up " \
            "starts such)"),                                                                       \
        NK_OPT_FLAG("no-reuse", 0, &(a).no_reuse,                                                  \
                    "neither begin from a kept session nor keep this one"),                        \
        NK_OPT_INT("timeout-ms", 0, &(a).timeout_ms, "MS", 0, 4e9,                                 \
                   "of the whole generation; 0: none"),                                            \
        NK_OPT_INT("stall-ms", 0, &(a).stall_ms, "MS", 0, 4e9,                                     \
                   "give up a worker that does not answer a step for so long; 0: 30000 here, and " \
                   "--stall-ms of the workers between them")

#endif
