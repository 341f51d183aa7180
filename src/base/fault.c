/* Everything here but nk_fault_init runs in a signal handler: system calls and the stack only. */
#include "base/fault.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = PATH_MAX + 128 };

static int exit_code_of_fault;

static const char *take_hex(const char *at, uintptr_t *out)
{
    *out = 0;
    for (;; at++) {
        if (*at >= '0' && *at <= '9')
            *out = *out * 16 + (uintptr_t)(*at - '0');
        else if (*at >= 'a' && *at <= 'f')
            *out = *out * 16 + (uintptr_t)(*at - 'a' + 10);
        else
            return at;
    }
}

/* proc_pid_maps(5), "BEGIN-END perms offset device inode   PATH": the path, when it is a file's and
 * the address is within. */
static const char *path_at(const char *line, uintptr_t address)
{
    uintptr_t begin, end;
    const char *at = take_hex(line, &begin);

    if (*at != '-')
        return NULL;
    take_hex(at + 1, &end);
    return address >= begin && address < end ? strchr(line, '/') : NULL;
}

/* Into path; false: no mapped file is there. */
static bool find_file(uintptr_t address, char path[LINE_MAX_BYTES])
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    char line[LINE_MAX_BYTES], chunk[512];
    bool found = false;
    size_t n = 0;
    ssize_t got;

    while (fd >= 0 && !found && (got = read(fd, chunk, sizeof chunk)) > 0)
        for (ssize_t i = 0; i < got && !found; i++) {
            const char *name;

            if (chunk[i] != '\n') {
                n += n < sizeof line - 1;
                line[n - 1] = chunk[i];
                continue;
            }
            line[n] = '\0';
            n = 0;
            name = path_at(line, address);
            found = name != NULL;
            if (found)
                memcpy(path, name, strlen(name) + 1);
        }
    if (fd >= 0)
        close(fd);
    return found;
}

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    char path[LINE_MAX_BYTES];

    (void)context;
    if (info->si_code == BUS_ADRERR && find_file((uintptr_t)info->si_addr, path)) {
        say("nakshatra: ");
        say(path);
        say(": a part of this file that is in use is not there any more: it was made shorter or "
            "written over meanwhile, or its disk fails\n");
        _exit(exit_code_of_fault);
    }
    signal(sig, SIG_DFL); /* the fault comes again */
    if (info->si_code <= 0)
        raise(sig); /* it was sent */
}

void nk_fault_init(int exit_code)
{
    struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

    exit_code_of_fault = exit_code;
    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, NULL);
}
