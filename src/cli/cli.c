#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/visible.h"

/* clang-format off */
#define COMMANDS(XX)                                                                               \
    /* name      what it does */                                                                   \
    XX(inspect,  "architecture, layers, legal cuts of a GGUF; whether a slice is whole")           \
    XX(split,    "a model into slices, a vocabulary file and a manifest")                          \
    XX(plan,     "which machine would get which layers, and how fast that would be")               \
    XX(verify,   "chain of slices against the whole model, in one process; exit 0 if exact")       \
    XX(measure,  "what this machine could do for a model, without its weights")                    \
    XX(worker,   "one stage, served over gRPC")                                                    \
    XX(check,    "is a cluster what its file says, and would a request run?")                      \
    XX(run,      "one generation, or a conversation, through a cluster")                           \
    XX(serve,    "the HTTP gateway: OpenAI's and Ollama's APIs, a page, metrics")                  \
    XX(join,     "this machine works in somebody's cluster")                                       \
    XX(token,    "join tokens of the cluster that this machine serves")                            \
    XX(members,  "who belongs to the cluster, and removing one")                                   \
    XX(status,   "what the machines of the cluster hold and do")                                   \
    XX(up,       "all of it on this machine, in one command")                                      \
    XX(cache,    "what the cache folder holds, and its emptying")                                  \
    XX(help,     "this list, or a command's help")
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

/* While nk_cli_describe runs a subcommand. */
static const struct description {
    nk_cli_described *f;
    void *user;
    const char *name, *summary;
} * describing;

void nk_cli_print_commands(FILE *out)
{
    fprintf(out, "Nakshatra runs one large language model over many unequal machines.\n\n"
                 "usage: nakshatra COMMAND ...\n\n");
    for (int i = 0; i < n_commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nnakshatra help COMMAND tells more; nakshatra --version says which this is.\n");
}

size_t nk_cli_json_flags(void)
{
    return isatty(1) ? JSON_ENSURE_ASCII : 0;
}

int nk_cli_report(const struct nk_error *err)
{
    char line[4 * sizeof err->msg];

    /* It may quote a file or another machine. */
    fprintf(stderr, "nakshatra: %s\n", nk_visible_line(line, sizeof line, err->msg));
    return err->code == NK_E_INVALID || err->code == NK_E_NOT_FOUND ||
                   err->code == NK_E_OUT_OF_RANGE
               ? NK_EXIT_USAGE
               : NK_EXIT_FAILED;
}

int nk_cli_flush(int exit_code)
{
    struct nk_error err;

    if (!fflush(stdout) && !ferror(stdout))
        return exit_code;
    if (errno == EPIPE) { /* nobody reads any more */
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    nk_fail(&err, NK_E_DATA_LOSS, "write_failed", "standard output cannot be written");
    return nk_cli_report(&err);
}

int nk_cli_parse(int argc, char **argv, const struct nk_command *cmd, int *first, int *exit_code)
{
    struct nk_error err;
    int rc;

    *exit_code = NK_EXIT_OK;
    if (describing) {
        describing->f(describing->user, describing->name, describing->summary, cmd);
        return 1;
    }
    rc = nk_args_parse(argc, argv, cmd, first, &err);
    if (rc < 0)
        *exit_code = nk_cli_report(&err);
    return rc;
}

int nk_cli_run(int argc, char **argv)
{
    const char *near = NULL;

    for (int i = 0; i < n_commands; i++) {
        if (!strcmp(argv[0], commands[i].name))
            return commands[i].run(argc, argv);
        near = nk_word_nearer(argv[0], near, commands[i].name);
    }
    if (near)
        fprintf(stderr,
                "nakshatra: '%s' is no command; did you mean %s? nakshatra help lists them\n",
                argv[0], near);
    else
        fprintf(stderr, "nakshatra: '%s' is no command; nakshatra help lists them\n", argv[0]);
    return NK_EXIT_USAGE;
}

void nk_cli_describe(nk_cli_described *f, void *user)
{
    const struct description *outer = describing; /* f may call this, too */

    for (int i = 0; i < n_commands; i++) {
        struct description d = { f, user, commands[i].name, commands[i].summary };
        char name[16], *argv[] = { name, NULL };

        snprintf(name, sizeof name, "%s", commands[i].name);
        describing = &d;
        commands[i].run(1, argv);
        describing = outer;
    }
}
