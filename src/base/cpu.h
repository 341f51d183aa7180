/* The processors that this process may run on. Thread-safe; the main thread is never pinned. */
#ifndef NK_BASE_CPU_H
#define NK_BASE_CPU_H

/* How many there are; at least 1. Less than the machine has where a container, or whoever started
 * us, says so. */
int nk_cpu_count(void);

/* Lets the calling thread run on the idx-th of them only, counted from 0. Where the system has no
 * such call (macOS), or has fewer of them, nothing changes: it is a matter of speed. */
void nk_cpu_pin(int idx);
/* Lets the calling thread, started by a pinned one, run on all of them again. */
void nk_cpu_unpin(void);

/* For a thread that runs for microseconds and then sleeps: asks the kernel for short time slices,
 * so that it runs at once when it is woken although all processors are busy with threads that
 * compute. Where the kernel has no such wish (Linux before 6.12, macOS), nothing changes. */
void nk_cpu_prefer_prompt(void);

#endif
