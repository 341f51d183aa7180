#include "base/cpu.h"

#include <sched.h>
#include <stdint.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

/* Asked of the main thread, which nobody pins: the calling one may have been. */
int nk_cpu_count(void)
{
    long n;
#ifdef __linux__
    cpu_set_t set;

    if (sched_getaffinity(getpid(), sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
#endif
    n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 1024 ? 1024 : (int)n;
}

void nk_cpu_pin(int idx)
{
#ifdef __linux__
    cpu_set_t set, one;

    if (sched_getaffinity(getpid(), sizeof set, &set) < 0)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set) || idx-- > 0)
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
#else
    (void)idx;
#endif
}

void nk_cpu_unpin(void)
{
#ifdef __linux__
    cpu_set_t set;

    if (sched_getaffinity(getpid(), sizeof set, &set) == 0)
        sched_setaffinity(0, sizeof set, &set);
#endif
}

void nk_cpu_prefer_prompt(void)
{
#if defined(__linux__) && defined(SYS_sched_setattr)
    /* sched_setattr(2), first version of the struct; the C library has had it only since glibc
     * 2.41. For the ordinary policy `runtime` is the slice, 0.1 ms at least; a waking thread of a
     * shorter slice goes before one that computes. */
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = { .size = 48, .policy = SCHED_OTHER, .runtime = 100000 };

    _Static_assert(sizeof attr == 48, "the kernel's layout");
    attr.nice = getpriority(PRIO_PROCESS, 0); /* it is set along with the rest */
    syscall(SYS_sched_setattr, 0, &attr, 0);
#endif
}
