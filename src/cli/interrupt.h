/* Ctrl-C and its like as something that can be waited for: SIGINT, SIGTERM and SIGHUP make a file
 * descriptor readable. A second one while the first was not yet cleared ends the process at once,
 * the way an unhandled signal would. */
#ifndef NK_CLI_INTERRUPT_H
#define NK_CLI_INTERRUPT_H

/* From the main thread, before other threads start. */
void nk_interrupt_init(void);
/* The signal that came, or 0. */
int nk_interrupt_signal(void);
/* Readable once a signal came; for poll(). */
int nk_interrupt_fd(void);
/* It was dealt with: the next signal is a first one again. */
void nk_interrupt_clear(void);
/* The exit code of a program that a signal ended: 128 + its number. */
int nk_interrupt_exit_code(int sig);

#endif
