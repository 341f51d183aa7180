/* Child processes: started with what they inherit spelled out, read line by line with a deadline,
 * and ended for certain.
 *
 * A child is in a process group of its own, so that Ctrl-C on the terminal reaches the parent,
 * which then ends its children in its own order. It must not outlive the parent either: on Linux
 * the kernel sends it SIGTERM when the starting thread ends (so start children from the main
 * thread), and everywhere it may be given a life line: the read end of a pipe whose write end only
 * the parent holds, which reads as ended when the parent is gone.
 *
 * One thread at a time per object. */
#ifndef NK_BASE_PROCESS_H
#define NK_BASE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct nk_process {
    int pid;    /* 0 while there is none; a reaped child's is 0 too */
    int out_fd; /* its standard output; -1 when not captured or closed */
    int status; /* as waitpid gives it, once reaped */
    bool reaped;
    char pending[1024]; /* read and not yet handed out */
    size_t n_pending;
};
#define NK_PROCESS_INIT                                                                            \
    {                                                                                              \
        .out_fd = -1                                                                               \
    }

struct nk_process_opts {
    const char *const *argv; /* argv[0] is the program's path; NULL-terminated; borrowed */
    const char *program;     /* this is executed, and argv[0] only its name; NULL: argv[0] */
    const int *keep_fds;     /* inherited under the same numbers, besides 0 (/dev/null), 1 and 2 */
    int n_keep_fds;
    bool capture_out;     /* standard output becomes out_fd; otherwise it is inherited */
    const char *out_path; /* standard output goes (appended) to this file; not with capture_out */
    const char *err_path; /* standard error goes (appended) to this file; NULL: inherited */
    const char *cwd;      /* its working folder; NULL: inherited */
    /* Runs in the child just before exec; async-signal-safe calls only. What it returns other than
     * 0 is an errno, with which the start fails. */
    int (*in_child)(void *arg);
    void *in_child_arg;
    /* "NAME=VALUE" set over the parent's environment; NULL-terminated; NULL: none. */
    const char *const *env;
};
/*   NOT_FOUND    no_program     cannot be executed
 *   UNAVAILABLE  cannot_start   the system's sentence (too many processes, no memory) */
int nk_process_start(struct nk_process *p, const struct nk_process_opts *opts,
                     struct nk_error *err);

/* The next line of its standard output without the newline, waiting at most timeout_ms.
 *   DEADLINE     timeout
 *   UNAVAILABLE  process_ended   says how (it is reaped then)
 *   EXHAUSTED    too_large       a line longer than size - 1 */
int nk_process_read_line(struct nk_process *p, char *line, size_t size, uint32_t timeout_ms,
                         struct nk_error *err);

/* Reaps it if it has ended within timeout_ms; true: it has (p->status). */
bool nk_process_wait(struct nk_process *p, uint32_t timeout_ms);
/* SIGTERM, and SIGKILL if it is still there after grace_ms; reaps, closes out_fd. Harmless on one
 * never started. */
void nk_process_stop(struct nk_process *p, uint32_t grace_ms);
/* The first half of nk_process_stop, for ending several at once. */
void nk_process_terminate(struct nk_process *p);
/* "ended with exit code 2", "was killed by signal 9 (Killed)". Returns out. */
const char *nk_process_status_format(char *out, size_t size, int status);

/* The path of the running program. *path owned by the caller. UNAVAILABLE `no_self`. */
int nk_process_self(char **path, struct nk_error *err);

#endif
