#include "cli/spinning.h"

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/* How long ggml's threads spin at a barrier before they sleep, in OpenMP's rounds: about half a
 * millisecond. Barriers within a run are microseconds apart, and a thread that sleeps there is late
 * for the next ones, too. But they wait for the next run in the same way, on cores that another
 * worker may need as soon as this one has run; libgomp's own 300000 are several milliseconds of
 * them (docs/performance.md has the measurements; docs/internals/llama.md, "Threads that spin"). */
#define SPINS "20000"

void nk_cli_bound_spinning(char **argv)
{
    /* Whoever sets one of these knows better. */
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    setenv("GOMP_SPINCOUNT", SPINS, 1);
    argv[-1] = (char *)(uintptr_t) "nakshatra";
    execv("/proc/self/exe", argv - 1);
}
