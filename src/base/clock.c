#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

enum { WAIT_MS_MAX = 60000 };

/* ---- the system's ---- */

static uint64_t system_now_ns(struct nk_clock *clock)
{
    struct timespec ts;

    (void)clock;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int64_t system_unix_s(struct nk_clock *clock)
{
    (void)clock;
    return time(NULL);
}

static bool system_wait_until(struct nk_clock *clock, pthread_cond_t *cond, pthread_mutex_t *mutex,
                              uint64_t ns)
{
#ifdef __APPLE__
    uint64_t now = system_now_ns(clock), left = ns > now ? ns - now : 0;
    struct timespec ts = { (time_t)(left / 1000000000u), (long)(left % 1000000000u) };

    return pthread_cond_timedwait_relative_np(cond, mutex, &ts) != ETIMEDOUT;
#else
    struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

    (void)clock;
    return pthread_cond_timedwait(cond, mutex, &ts) != ETIMEDOUT;
#endif
}

struct nk_clock *nk_clock_system(void)
{
    static struct nk_clock clock = { .now_ns = system_now_ns,
                                     .unix_s = system_unix_s,
                                     .wait_until = system_wait_until };

    return &clock;
}

uint64_t nk_now_ns(void)
{
    return system_now_ns(nk_clock_system());
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

/* ---- any clock ---- */

uint64_t nk_clock_now_ns(struct nk_clock *clock)
{
    return clock->now_ns(clock);
}

int64_t nk_clock_unix_s(struct nk_clock *clock)
{
    return clock->unix_s(clock);
}

bool nk_clock_wait_until(struct nk_clock *clock, pthread_cond_t *cond, pthread_mutex_t *mutex,
                         uint64_t ns)
{
    return clock->wait_until(clock, cond, mutex, ns);
}

bool nk_clock_runs(const struct nk_clock *clock)
{
    return !clock->listen;
}

int nk_clock_wait_ms(struct nk_clock *clock, uint64_t ns)
{
    uint64_t now, ms;

    if (!nk_clock_runs(clock))
        return -1;
    now = clock->now_ns(clock);
    if (now >= ns)
        return 0;
    ms = (ns - now - 1) / 1000000u + 1;
    return ms < WAIT_MS_MAX ? (int)ms : WAIT_MS_MAX;
}

void nk_clock_listen(struct nk_clock *clock, struct nk_clock_listener *l)
{
    if (clock->listen)
        clock->listen(clock, l);
}

void nk_clock_unlisten(struct nk_clock *clock, struct nk_clock_listener *l)
{
    if (clock->unlisten)
        clock->unlisten(clock, l);
}
