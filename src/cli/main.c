/* nakshatra COMMAND ...: finds the subcommand and runs it. */
#include "cli/cli.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/log.h"
#include "text/template.h"

int main(int argc, char **argv)
{
    /* Before a thread starts, and inherited by workers: when ggml gives up it would start a
     * debugger on this process, which waits for it, and whose output would be taken for ours. */
    setenv("GGML_NO_BACKTRACE", "1", 1);
    nk_log_init();
    nk_fault_init(NK_EXIT_FAILED);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGIO, SIG_IGN);   /* somebody opens a file whose lease is looked at (pieces/shelf.c) */
    signal(SIGXFSZ, SIG_IGN); /* a file past the shell's limit is an error message, not a death */
    if (argc < 2) {
        nk_cli_print_commands(stderr);
        return NK_EXIT_USAGE;
    }
    if (argc == 3 && !strcmp(argv[1], NK_TEMPLATE_ARG)) /* a child of the gateway's */
        return nk_template_serve(atoi(argv[2]));
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        nk_cli_print_commands(stdout);
        return NK_EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("nakshatra %s\n", NK_VERSION);
        return NK_EXIT_OK;
    }
    return nk_cli_run(argc - 1, argv + 1);
}
