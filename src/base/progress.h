/* A progress bar with rate and time left, on standard error when that is a terminal; silent
 * otherwise. One thread. */
#ifndef NK_BASE_PROGRESS_H
#define NK_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct nk_progress {
    const char *label; /* borrowed until the end */
    uint64_t total_bytes, done_bytes;
    uint64_t earlier_bytes; /* of done_bytes, what was done before the start: 0, or set after it */
    uint64_t start_ns, drawn_ns;
    bool tty;
};

void nk_progress_start(struct nk_progress *p, const char *label, uint64_t total_bytes);
void nk_progress_add(struct nk_progress *p, uint64_t bytes);
void nk_progress_end(struct nk_progress *p); /* removes the bar */

#endif
