/* One generation for a person or a script: starts it, writes its text as it comes, waits for its
 * end. When a worker is lost it says so on standard error, and the text goes on when that worker is
 * back or a spare has taken its place. Ctrl-C cancels it (cli/interrupt.h). Main thread. */
#ifndef NK_CLI_ANSWER_H
#define NK_CLI_ANSWER_H

#include <jansson.h>

#include "base/buf.h"
#include "chain/chain.h"
#include "cli/local.h"

/* What generations run over. */
struct nk_route {
    nk_chain *chain;        /* owned; another one after a spare has come in */
    struct nk_local *local; /* its workers, where this program keeps them alive; NULL */
};
void nk_route_close(struct nk_route *r); /* closes the chain */

struct nk_answer {
    struct nk_buf text; /* all of it */
    int32_t *ids;       /* owned; stats.n_generated */
    int n_ids;
    json_t *logprobs;          /* owned; an array when they were asked for, else NULL */
    struct nk_gen_stats stats; /* tail is part of text already */
    int rc;                    /* 0, or how it failed */
    struct nk_error err;
    int interrupted; /* the signal that cancelled it, or 0 */
    bool out_closed; /* nobody reads the output any more; it was cancelled */
};

/* out_fd: where the text goes while it comes; -1: nowhere. On a terminal its control characters are
 * shown (base/visible.h), elsewhere it is as it is. Returns a->rc; what came before a
 * failure is in a.
 * Errors: nk_gen_start's and those of `done`; nk_repair_start's; nk_local_tend's; EXHAUSTED
 * `reader_too_slow`; DATA_LOSS `write_failed`. */
int nk_answer_run(struct nk_answer *a, struct nk_route *r, const struct nk_gen_opts *opts,
                  int out_fd);
void nk_answer_release(struct nk_answer *a);

/* As one JSON object; owned by the caller. */
json_t *nk_answer_json(const struct nk_answer *a, const nk_chain *c);
/* A table of tokens, rates and what each stage did, on standard error. */
void nk_answer_print_stats(const struct nk_answer *a);
/* All of it or an error; a signal that came ends it too (CANCELLED `interrupted`). UNAVAILABLE
 * `reader_gone`: EPIPE. */
int nk_write_all(int fd, const char *data, size_t size, struct nk_error *err);
/* The exit code for how it went, after reporting it on standard error; NK_EXIT_CLOSED for a closed
 * output. */
int nk_answer_exit(const struct nk_answer *a);

#endif
