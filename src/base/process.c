#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include "base/clock.h"

extern char **environ;

/* parent's environment with opts->env over it; NULL when out of memory. The strings are borrowed.
 */
static char **environment(const struct nk_process_opts *opts)
{
    size_t n_old = 0, n_new = 0, n = 0;
    char **env;

    while (environ[n_old])
        n_old++;
    while (opts->env && opts->env[n_new])
        n_new++;
    env = calloc(n_old + n_new + 1, sizeof *env);
    if (!env)
        return NULL;
    for (size_t i = 0; i < n_new; i++)
        env[n++] = (char *)(uintptr_t)opts->env[i];
    for (size_t i = 0; i < n_old; i++) {
        bool replaced = false;

        for (size_t j = 0; j < n_new && !replaced; j++) {
            size_t name = strcspn(opts->env[j], "=") + 1;

            replaced = !strncmp(environ[i], opts->env[j], name);
        }
        if (!replaced)
            env[n++] = environ[i];
    }
    return env;
}

/* In the child, between fork and exec: async-signal-safe calls only. Returns an errno. */
static int become(const struct nk_process_opts *opts, char **env, int out, int null_fd, int err_fd,
                  pid_t parent)
{
    sigset_t none;
    struct sigaction dfl = { .sa_handler = SIG_DFL };
    int e;

    /* What the parent blocks or ignores is no business of the child's. */
    for (int sig = 1; sig < 32; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            sigaction(sig, &dfl, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (setpgid(0, 0) < 0)
        return errno;
#ifdef __linux__
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0)
        return errno;
    if (getppid() != parent) /* it was gone before the line above */
        _exit(1);
#else
    (void)parent;
#endif
    if (dup2(null_fd, 0) < 0 || (out >= 0 && dup2(out, 1) < 0) ||
        (err_fd >= 0 && dup2(err_fd, 2) < 0))
        return errno;
    for (int i = 0; i < opts->n_keep_fds; i++)
        if (fcntl(opts->keep_fds[i], F_SETFD, 0) < 0)
            return errno;
    if (opts->cwd && chdir(opts->cwd) < 0)
        return errno;
    if (opts->in_child && (e = opts->in_child(opts->in_child_arg)))
        return e;
    execve(opts->program ? opts->program : opts->argv[0], (char *const *)(uintptr_t)opts->argv,
           env);
    return errno;
}

/* A pipe whose ends are not inherited and are none of 0, 1 and 2 (which `become` replaces). */
static int make_pipe(int fds[2])
{
#ifdef __linux__ /* two threads may start children at the same time */
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -1;
#else
    if (pipe(fds) < 0)
        return -1;
#endif
    for (int i = 0; i < 2; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
        int e = errno;

        close(fds[i]);
        fds[i] = fd;
        if (fd < 0) {
            close(fds[!i]);
            errno = e;
            return -1;
        }
    }
    return 0;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

static int start_failed(struct nk_error *err, const char *what, int e)
{
    errno = e;
    return nk_fail(err,
                   e == ENOENT || e == EACCES || e == ENOEXEC ? NK_E_NOT_FOUND : NK_E_UNAVAILABLE,
                   e == ENOENT || e == EACCES || e == ENOEXEC ? "no_program" : "cannot_start",
                   "%s: cannot be started: %s", what, strerror(e));
}

int nk_process_start(struct nk_process *p, const struct nk_process_opts *opts, struct nk_error *err)
{
    int out[2] = { -1, -1 }, report[2] = { -1, -1 }, null_fd = -1, err_fd = -1, e = 0, rc = 0;
    char **env = environment(opts);
    pid_t pid, parent = getpid();
    ssize_t n;

    *p = (struct nk_process)NK_PROCESS_INIT;
    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (opts->err_path)
        err_fd = open(opts->err_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (opts->out_path)
        out[1] = open(opts->out_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (!env || null_fd < 0 || (opts->err_path && err_fd < 0) || (opts->out_path && out[1] < 0) ||
        make_pipe(report) < 0 || (opts->capture_out && make_pipe(out) < 0)) {
        rc = start_failed(err, opts->argv[0], env ? errno : ENOMEM);
        goto out;
    }
    pid = fork();
    if (pid < 0) {
        rc = start_failed(err, opts->argv[0], errno);
        goto out;
    }
    if (pid == 0) {
        e = become(opts, env, out[1], null_fd, err_fd, parent);
        n = write(report[1], &e, sizeof e);
        _exit(n == sizeof e ? 127 : 126);
    }
    close(report[1]);
    report[1] = -1;
    do
        n = read(report[0], &e, sizeof e); /* ends with exec, which closes the other end */
    while (n < 0 && errno == EINTR);
    if (n == sizeof e) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        rc = start_failed(err, opts->argv[0], e);
        goto out;
    }
    p->pid = pid;
    p->out_fd = out[0];
    out[0] = -1;
out:
    free(env);
    close_if(null_fd);
    close_if(err_fd);
    close_if(report[0]);
    close_if(report[1]);
    close_if(out[0]);
    close_if(out[1]);
    return rc;
}

const char *nk_process_status_format(char *out, size_t size, int status)
{
    if (WIFEXITED(status))
        snprintf(out, size, "ended with exit code %d", WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        snprintf(out, size, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, size, "ended with status 0x%x", (unsigned)status);
    return out;
}

static bool reap(struct nk_process *p, int flags)
{
    int status;
    pid_t pid;

    if (p->reaped || p->pid <= 0)
        return true;
    do
        pid = waitpid(p->pid, &status, flags);
    while (pid < 0 && errno == EINTR);
    if (pid == 0)
        return false;
    p->status = pid < 0 ? 0 : status;
    p->reaped = true;
    p->pid = 0;
    return true;
}

static uint64_t end_of(uint32_t timeout_ms)
{
    return nk_now_ns() + (uint64_t)timeout_ms * 1000000u;
}

bool nk_process_wait(struct nk_process *p, uint32_t timeout_ms)
{
    uint64_t end = end_of(timeout_ms);

    /* POSIX knows no wait for a child with a deadline; nothing is in a hurry here. */
    while (!reap(p, WNOHANG)) {
        if (nk_clock_wait_ms(nk_clock_system(), end) == 0)
            return false;
        nk_sleep_ms(2);
    }
    return true;
}

int nk_process_read_line(struct nk_process *p, char *line, size_t size, uint32_t timeout_ms,
                         struct nk_error *err)
{
    uint64_t end = end_of(timeout_ms);

    for (;;) {
        char *newline = memchr(p->pending, '\n', p->n_pending);
        struct pollfd pfd = { .fd = p->out_fd, .events = POLLIN };
        ssize_t n = 0;
        int ready, wait_ms;

        if (newline) {
            size_t length = (size_t)(newline - p->pending);
            bool fits = length < size;

            if (fits) {
                memcpy(line, p->pending, length);
                line[length] = '\0';
            }
            p->n_pending -= length + 1;
            memmove(p->pending, newline + 1, p->n_pending);
            if (fits)
                return 0;
            return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                           "a line of %zu bytes where at most %zu were expected", length, size - 1);
        }
        if (p->n_pending == sizeof p->pending) {
            p->n_pending = 0; /* the rest of it comes as a line of its own */
            return nk_fail(err, NK_E_EXHAUSTED, "too_large", "a line longer than %zu bytes",
                           sizeof p->pending);
        }
        wait_ms = nk_clock_wait_ms(nk_clock_system(), end);
        ready = p->out_fd < 0 ? 1 : poll(&pfd, 1, wait_ms);
        if ((ready < 0 && errno == EINTR) || (ready == 0 && wait_ms > 0))
            continue;
        if (ready == 0)
            return nk_fail(err, NK_E_DEADLINE, "timeout", "no line within %u ms",
                           (unsigned)timeout_ms);
        if (p->out_fd >= 0)
            n = read(p->out_fd, p->pending + p->n_pending, sizeof p->pending - p->n_pending);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            char how[96] = "closed its output";

            close_if(p->out_fd);
            p->out_fd = -1;
            if (nk_process_wait(p, 1000))
                nk_process_status_format(how, sizeof how, p->status);
            return nk_fail(err, NK_E_UNAVAILABLE, "process_ended", "it %s", how);
        }
        p->n_pending += (size_t)n;
    }
}

void nk_process_terminate(struct nk_process *p)
{
    if (p->pid > 0 && !p->reaped)
        kill(p->pid, SIGTERM);
}

void nk_process_stop(struct nk_process *p, uint32_t grace_ms)
{
    if (p->pid > 0 && !p->reaped) {
        kill(p->pid, SIGTERM);
        kill(p->pid, SIGCONT); /* a stopped one would not notice */
        if (!nk_process_wait(p, grace_ms)) {
            kill(p->pid, SIGKILL);
            reap(p, 0);
        }
    }
    close_if(p->out_fd);
    p->out_fd = -1;
}

int nk_process_self(char **path, struct nk_error *err)
{
    char buf[PATH_MAX];
#ifdef __APPLE__
    uint32_t size = sizeof buf;

    *path = NULL;
    if (_NSGetExecutablePath(buf, &size) != 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "no_self", "the running program's path is not known");
#else
    ssize_t n = readlink("/proc/self/exe", buf, sizeof buf - 1);

    *path = NULL;
    if (n <= 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "no_self", "/proc/self/exe: %s", strerror(errno));
    buf[n] = '\0';
#endif
    *path = strdup(buf);
    return *path ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}
