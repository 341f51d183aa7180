/* nakshatra-bench SUBCOMMAND ...: the figures, and what is needed to take them. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/command.h"

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
    { "run", "measure ours and the peers, side by side", nk_cmd_run },
    { "report", "make the page and the plots from a table", nk_cmd_report },
    { "compare", "two tables: what became better, what worse", nk_cmd_compare },
    { "synth", "write a model of any shape with random weights", nk_cmd_synth },
    { "load", "load a file with stock llama.cpp (for comparing starts)", nk_cmd_load },
    { "echo", "answer gRPC messages (for comparing a hop)", nk_cmd_echo },
    { "link", "a slow cable between two network namespaces", nk_cmd_link },
};
static const int n_commands = sizeof commands / sizeof commands[0];

static void print_help(FILE *out)
{
    fprintf(out, "nakshatra-bench measures Nakshatra beside llama.cpp, and compares what was "
                 "measured.\n\nusage: nakshatra-bench SUBCOMMAND ...\n\n");
    for (int i = 0; i < n_commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nnakshatra-bench SUBCOMMAND --help tells more.\n");
}

int nk_command_report(const struct nk_error *err)
{
    fprintf(stderr, "nakshatra-bench: %s\n", err->msg);
    return err->code == NK_E_INVALID || err->code == NK_E_NOT_FOUND ||
                   err->code == NK_E_OUT_OF_RANGE
               ? NK_EXIT_USAGE
               : NK_EXIT_FAILED;
}

int nk_command_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                     int *exit_code)
{
    struct nk_error err;
    int rc = nk_args_parse(argc, argv, cmd, first, &err);

    *exit_code = rc < 0 ? nk_command_report(&err) : NK_EXIT_OK;
    return rc;
}

int main(int argc, char **argv)
{
    nk_args_program = "nakshatra-bench";
    setenv("GGML_NO_BACKTRACE", "1", 1); /* as the product does */
    nk_log_init();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file past the shell's limit is an error message, not a death */
    if (argc < 2) {
        print_help(stderr);
        return NK_EXIT_USAGE;
    }
    if (!strcmp(argv[1], "help") && argc > 2) { /* help SUBCOMMAND */
        static char help[] = "--help";

        argv[1] = argv[2];
        argv[2] = help;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return NK_EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("nakshatra-bench %s\n", NK_VERSION);
        return NK_EXIT_OK;
    }
    for (int i = 0; i < n_commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "nakshatra-bench: '%s' is no subcommand; nakshatra-bench --help lists them\n",
            argv[1]);
    return NK_EXIT_USAGE;
}
