/* A conversation on the terminal: the model's own chat template, line editing and a history
 * (libedit), Ctrl-C for the answer that runs. What is said goes to standard error's terminal for
 * prompts and to standard output for answers. */
#ifndef NK_CLI_CHAT_H
#define NK_CLI_CHAT_H

#include "cli/answer.h"
#include "text/vocab.h"

struct nk_chat_opts {
    const char *system; /* the system message; NULL: none */
    /* Jinja text, or the name of one that libllama has built in; NULL: the model's own. */
    const char *chat_template;
    bool stats;
    /* The context of the chain: the oldest exchanges are left out when the conversation outgrows
     * it. */
    int n_ctx;
};
/* Until /exit, the end of standard input, or Ctrl-C at the prompt. opts: without a prompt. Returns
 * an exit code. */
int nk_chat_run(struct nk_route *r, const nk_vocab *v, const struct nk_gen_opts *opts,
                const struct nk_chat_opts *chat);

#endif
