#include "base/thread.h"

void nk_signals_hold(sigset_t *old)
{
    static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
    sigset_t held;

    sigfillset(&held);
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigdelset(&held, faults[i]);
    pthread_sigmask(SIG_BLOCK, &held, old);
}

void nk_signals_release(const sigset_t *old)
{
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

int nk_thread_start(pthread_t *out, void *(*run)(void *), void *arg)
{
    sigset_t old;
    int e;

    nk_signals_hold(&old);
    e = pthread_create(out, NULL, run, arg);
    nk_signals_release(&old);
    return e;
}
