/* When to start a program again that has ended: at once if it ran for a while, after a pause that
 * grows if it did not, and not at all after the tenth time in a row. Times are the caller's (ns of
 * its clock), so that this has none of its own. */
#ifndef NK_CLI_RESTART_H
#define NK_CLI_RESTART_H

#include <stdbool.h>
#include <stdint.h>

enum {
    NK_RESTART_RAN_MS = 10000, /* ready for so long, it did not fail at the start */
    /* More than one request can cost: it is given up before (NK_GEN_LOSSES_MAX). */
    NK_RESTART_IN_A_ROW_MAX = 10,
    NK_RESTART_PAUSE_MS = 250, /* after the second failure in a row; doubled with each, up to: */
    NK_RESTART_PAUSE_MS_MAX = 1000,
};

struct nk_restart { /* all 0: never started */
    int n_in_a_row; /* failures at the start */
    bool is_ready;
    uint64_t ready_ns;
};

/* It runs, and does what it is for. */
void nk_restart_ready(struct nk_restart *r, uint64_t now_ns);
/* It has ended. How many ms to wait before it is started again; -1: not any more. */
int nk_restart_pause_ms(struct nk_restart *r, uint64_t now_ns);

#endif
