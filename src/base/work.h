/* Work that somebody else's input makes: counted, with a ceiling, and ended when nobody wants its
 * result any more.
 *
 * What turns a client's input into something else (a schema into a grammar, a template into text,
 * text into tokens) is given one of these and spends from it as it goes. A step is a piece of work
 * of some 20 ns: a byte looked at, a key found, an element compared. So the ceiling is a fraction
 * of a second on any machine, tests count steps instead of time, and an input whose work grows
 * faster than its size is refused instead of keeping a thread.
 *
 * A struct nk_work is one thread's; the flag that cancels it is anybody's. */
#ifndef NK_BASE_WORK_H
#define NK_BASE_WORK_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/error.h"

enum { NK_WORK_STEPS_MAX = 16000000 }; /* of one request: about a third of a second */

struct nk_work {
    int64_t n_steps;              /* spent so far */
    int64_t n_steps_max;          /* the ceiling */
    const atomic_bool *cancelled; /* nobody wants the result; NULL: it is always wanted */
};
#define NK_WORK_INIT(cancelled_at)                                                                 \
    {                                                                                              \
        .n_steps_max = NK_WORK_STEPS_MAX, .cancelled = (cancelled_at)                              \
    }

/* Spends so many steps on what ("the JSON schema"). work NULL: nothing is counted.
 *   INVALID    too_much_work   the ceiling is reached; names what and the ceiling
 *   CANCELLED  cancelled       nobody wants the result */
int nk_work_spend(struct nk_work *work, int64_t n_steps, const char *what, struct nk_error *err);

#endif
