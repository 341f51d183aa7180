/* Runs an input and counts its steps (fuzz.h). */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Any thread's: two at once may lose a step. */
static volatile uint64_t n_steps;
static double most; /* steps of an input for one of its ceiling's */

/* What is called for each edge must not have edges that are counted. */
#if defined(__clang__)
#define NOT_COUNTED __attribute__((no_sanitize("coverage")))
#else
#define NOT_COUNTED
#endif

/* Of the compiler's -fsanitize-coverage=trace-pc-guard; linked by --wrap. */
void __wrap___sanitizer_cov_trace_pc_guard(uint32_t *guard);
void __wrap___sanitizer_cov_trace_pc_guard_init(uint32_t *begin, uint32_t *end);

NOT_COUNTED void __wrap___sanitizer_cov_trace_pc_guard(uint32_t *guard)
{
    (void)guard;
    n_steps++;
}

NOT_COUNTED void __wrap___sanitizer_cov_trace_pc_guard_init(uint32_t *begin, uint32_t *end)
{
    (void)begin, (void)end;
}

/* Of the sanitizers' runtime, where there is one. */
__attribute__((weak)) int
__sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                          void (*on_free)(const volatile void *));

NOT_COUNTED static void on_malloc(const volatile void *at, size_t size)
{
    (void)at;
    n_steps += 1 + size / 64;
}

NOT_COUNTED static void on_free(const volatile void *at)
{
    (void)at;
}

static uint64_t kept;

void fuzz_work_off(void)
{
    kept = n_steps;
}

void fuzz_work_on(void)
{
    n_steps = kept;
}

void fuzz_prepared(void)
{
    n_steps = 0;
}

__attribute__((destructor)) static void report(void)
{
    if (most > 0)
        fprintf(stderr, "work: at most %.1f %% of what an input may be\n", 100 * most);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool hooked;
    uint64_t max = fuzz_ceiling.base + size * fuzz_ceiling.per_byte, n;

    if (!hooked && __sanitizer_install_malloc_and_free_hooks)
        __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    hooked = true;
    n_steps = 0;
    fuzz_one(data, size);
    n = n_steps;
    if ((double)n / (double)max > most)
        most = (double)n / (double)max;
    if (n > max) {
        fprintf(stderr, "work: %llu steps for %zu bytes; at most %llu are expected\n",
                (unsigned long long)n, size, (unsigned long long)max);
        abort();
    }
    return 0;
}
