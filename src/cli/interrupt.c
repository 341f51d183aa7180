#include "cli/interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static int fds[2] = { -1, -1 };
static atomic_int came;

static void handle(int sig)
{
    int e = errno;

    if (atomic_exchange(&came, sig))
        _exit(128 + sig);
    if (write(fds[1], "", 1) < 0) {
        /* the pipe is full, so it is readable already */
    }
    errno = e;
}

void nk_interrupt_init(void)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction sa = { .sa_handler = handle }; /* no SA_RESTART: a read or write ends */
    struct sigaction old;

    if (fds[0] >= 0 || pipe(fds) < 0)
        return;
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
        /* Who started us with SIGHUP ignored (nohup) wants it ignored. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(signals[i], &sa, NULL);
}

int nk_interrupt_signal(void)
{
    return atomic_load(&came);
}

int nk_interrupt_fd(void)
{
    return fds[0];
}

void nk_interrupt_clear(void)
{
    char c;

    while (read(fds[0], &c, 1) == 1)
        ;
    atomic_store(&came, 0);
}

int nk_interrupt_exit_code(int sig)
{
    return 128 + sig;
}
