/* nakshatra-bench load: loads a file with stock llama.cpp. */
#include "bench/command.h"

#include <stdio.h>

#include "bench/load.h"

static void print_ready(void *arg)
{
    (void)arg;
    printf("ready\n");
    fflush(stdout);
}

int nk_cmd_load(int argc, char **argv)
{
    int64_t threads = 1, ctx = 4096;
    const struct nk_arg args[] = {
        NK_OPT_INT("threads", 't', &threads, "N", 1, 1024, "threads"),
        NK_OPT_INT("ctx", 'c', &ctx, "N", 1, 16777216, "KV cells"),
        { 0 },
    };
    const struct nk_command cmd = {
        "load FILE.gguf",
        "Loads a model or slice with stock llama.cpp on the CPU, prints 'ready' and ends: what a\n"
        "worker's start is compared with.",
        args, 1, 1
    };
    struct nk_error err;
    int first, exit_code, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_load_plain(argv[first], (int)ctx, (int)threads, print_ready, NULL, &err);
    return rc ? nk_command_report(&err) : NK_EXIT_OK;
}
