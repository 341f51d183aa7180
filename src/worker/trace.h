/* --trace FILE: one JSON object per step event, for "where did the 40 ms go?".
 *
 *   {"t":1234567,"ev":"received","worker":"attic","session":"7f3a0b11","step":12,"pos":40,"rows":1}
 *
 * t: CLOCK_MONOTONIC nanoseconds (of one machine: comparable between its processes). ev: received,
 * computing, computed, sent, answered. An id's quotes, backslashes and control characters are left
 * out. Thread-safe; a NULL trace does nothing. */
#ifndef NK_WORKER_TRACE_H
#define NK_WORKER_TRACE_H

#include <stdint.h>

#include "base/error.h"

struct nk_trace;

/* Writes to path, from its beginning. worker_id is borrowed until nk_trace_close, and may change
 * until the first event.
 *   NOT_FOUND  no_file        its folder is not there
 *   DENIED     cannot_create */
int nk_trace_open(struct nk_trace **out, const char *path, const char *worker_id,
                  struct nk_error *err);
/* What could not be written (a full disk) is logged. */
void nk_trace_close(struct nk_trace *t);
void nk_trace_event(struct nk_trace *t, uint64_t t_ns, const char *event, const char *session,
                    uint64_t step, int pos, int n_rows);

#endif
