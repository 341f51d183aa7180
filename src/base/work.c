#include "base/work.h"

int nk_work_spend(struct nk_work *work, int64_t n_steps, const char *what, struct nk_error *err)
{
    if (!work)
        return 0;
    if (work->cancelled && atomic_load_explicit(work->cancelled, memory_order_relaxed))
        return nk_fail(err, NK_E_CANCELLED, "cancelled", "%s: nobody waits for it any more", what);
    /* Never beyond the ceiling by more than a step, so that no sum overflows. */
    if (n_steps > work->n_steps_max - work->n_steps) {
        work->n_steps = work->n_steps_max;
        return nk_fail(err, NK_E_INVALID, "too_much_work",
                       "%s: more than %lld steps of work would be needed for it; a smaller or "
                       "simpler one is taken",
                       what, (long long)work->n_steps_max);
    }
    work->n_steps += n_steps;
    return 0;
}
