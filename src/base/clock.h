/* Time. Monotonic for durations and deadlines, UTC for people. Thread-safe. */
#ifndef NK_BASE_CLOCK_H
#define NK_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint64_t nk_now_ns(void);                   /* CLOCK_MONOTONIC */
void nk_utc_format(char *out, size_t size); /* 2026-03-02T10:15:04.211Z */
void nk_sleep_ms(unsigned ms);              /* for tests and start-up; never on the token path */

/* A condition for nk_cond_wait_until(), which waits until nk_now_ns() is `ns` at the latest; false: that time has come. */
void nk_cond_init(pthread_cond_t *cond);
bool nk_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t ns);

#endif
