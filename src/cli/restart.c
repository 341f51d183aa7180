#include "cli/restart.h"

void nk_restart_ready(struct nk_restart *r, uint64_t now_ns)
{
    r->is_ready = true;
    r->ready_ns = now_ns;
}

int nk_restart_pause_ms(struct nk_restart *r, uint64_t now_ns)
{
    int ms = NK_RESTART_PAUSE_MS;

    if (r->is_ready && now_ns - r->ready_ns >= NK_RESTART_RAN_MS * 1000000ull)
        r->n_in_a_row = 0;
    r->is_ready = false;
    r->n_in_a_row++;
    if (r->n_in_a_row >= NK_RESTART_IN_A_ROW_MAX)
        return -1;
    for (int i = 2; i < r->n_in_a_row && ms < NK_RESTART_PAUSE_MS_MAX; i++)
        ms *= 2;
    return r->n_in_a_row == 1 ? 0 : ms;
}
