/* Time. Monotonic for durations and deadlines, UTC for people. Thread-safe. */
#ifndef NK_BASE_CLOCK_H
#define NK_BASE_CLOCK_H

#include <stdint.h>
#include <stddef.h>

uint64_t nk_now_ns(void);                   /* CLOCK_MONOTONIC */
void nk_utc_format(char *out, size_t size); /* 2026-03-02T10:15:04.211Z */
void nk_sleep_ms(unsigned ms);              /* for tests and start-up; never on the token path */

#endif
