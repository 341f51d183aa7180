/* Threads. Signals are the main thread's: its handlers set what it waits for, and a signal ends its
 * system call, not one of a thread that knows nothing of it. */
#ifndef NK_BASE_THREAD_H
#define NK_BASE_THREAD_H

#include <pthread.h>
#include <signal.h>

/* Every thread of the program is started by this, or by a library between the two calls below it.
 * The thread has all signals blocked but those that its own faults raise. Returns 0, or what
 * pthread_create returns (an errno). Any thread. */
int nk_thread_start(pthread_t *out, void *(*run)(void *), void *arg);

/* What is started in between, by whatever library, inherits the mask. */
void nk_signals_hold(sigset_t *old);
void nk_signals_release(const sigset_t *old);

#endif
