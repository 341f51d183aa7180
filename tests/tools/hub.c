/* build/tools/hub SOURCE [TRIES [PAUSE_MS [STALL_S [CONNECT_MS]]]]: nk_hub_get with times of the
 * test's own. Prints the path; what is said goes to standard error, and so does the error, its
 * reason first. SIGTERM interrupts. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "hub/hub.h"

static volatile sig_atomic_t signalled;

static void on_signal(int number)
{
    signalled = number;
}

static void say(void *arg, const char *line)
{
    (void)arg;
    fprintf(stderr, "%s\n", line);
}

static bool interrupted(void *arg)
{
    (void)arg;
    return signalled != 0;
}

int main(int argc, char **argv)
{
    struct nk_hub_opts opts = { .say = say, .interrupted = interrupted };
    int *const numbers[] = { &opts.tries, &opts.pause_ms, &opts.stall_s, &opts.connect_ms };
    struct nk_error err;
    char *path;

    if (argc < 2)
        return 2;
    for (int i = 2; i < argc && i < 6; i++)
        *numbers[i - 2] = atoi(argv[i]);
    opts.pause_ms_max = 8 * opts.pause_ms;
    signal(SIGTERM, on_signal);
    if (nk_hub_get(&path, argv[1], &opts, &err)) {
        fprintf(stderr, "%s: %s\n", err.reason, err.msg);
        return 1;
    }
    puts(path);
    free(path);
    return 0;
}
