/* nakshatra COMMAND ...: finds the subcommand and runs it. */
#include "cli/cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

/* clang-format off */
#define COMMANDS(XX)                                                                                \
    /* name      what it does                                              */                       \
    XX(inspect,  "architecture, layers, bytes per layer, legal cuts of a GGUF")                     \
    XX(split,    "a model into slices, a vocabulary file and a manifest")                           \
    XX(verify,   "chain of slices against the whole model, in one process; exit 0 if exact")        \
    XX(worker,   "one stage, served over gRPC")                                                     \
    XX(check,    "is a cluster what its file says, and would a request run?")                       \
    XX(run,      "one generation, or a conversation, through a cluster")                           \
    XX(serve,    "the HTTP gateway: OpenAI's and Ollama's APIs, a page, metrics")                     \
    XX(up,       "all of it on this machine, in one command")                                       \
    XX(bench,    "the figures, against peers; synthetic models")
/* clang-format on */

#define XX(name, summary) int nk_cmd_##name(int argc, char **argv);
COMMANDS(XX)
#undef XX

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
#define XX(name, summary) { #name, summary, nk_cmd_##name },
    COMMANDS(XX)
#undef XX
};
static const int n_commands = sizeof commands / sizeof commands[0];

static void print_help(FILE *out)
{
    fprintf(out, "Nakshatra runs one large language model over many unequal machines.\n\nusage: "
                 "nakshatra COMMAND ...\n\n");
    for (int i = 0; i < n_commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nnakshatra COMMAND --help tells more.\n");
}

int main(int argc, char **argv)
{
    nk_log_init();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file past the shell's limit is an error message, not a death */
    if (argc < 2) {
        print_help(stderr);
        return NK_EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return NK_EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("nakshatra %s\n", NK_VERSION);
        return NK_EXIT_OK;
    }
    for (int i = 0; i < n_commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "nakshatra: '%s' is no command; nakshatra --help lists them\n", argv[1]);
    return NK_EXIT_USAGE;
}
