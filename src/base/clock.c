#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

uint64_t nk_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void nk_utc_format(char *out, size_t size)
{
    struct timespec ts;
    struct tm tm;
    size_t n;

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    n = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &tm);
    if (n)
        snprintf(out + n, size - n, ".%03ldZ", ts.tv_nsec / 1000000);
}

void nk_sleep_ms(unsigned ms)
{
    struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

    nanosleep(&ts, NULL);
}

void nk_cond_init(pthread_cond_t *cond)
{
#ifdef __APPLE__
    pthread_cond_init(cond, NULL); /* which has no clock to choose */
#else
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
#endif
}

bool nk_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t ns)
{
#ifdef __APPLE__
    uint64_t now = nk_now_ns(), left = ns > now ? ns - now : 0;
    struct timespec ts = { (time_t)(left / 1000000000u), (long)(left % 1000000000u) };

    return pthread_cond_timedwait_relative_np(cond, mutex, &ts) != ETIMEDOUT;
#else
    struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

    return pthread_cond_timedwait(cond, mutex, &ts) != ETIMEDOUT;
#endif
}
