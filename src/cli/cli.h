/* The subcommands: one file each (cmd_NAME.c), one line each in the table of cli.c. */
#ifndef NK_CLI_CLI_H
#define NK_CLI_CLI_H

#include <stddef.h>
#include <stdio.h>

#include "base/args.h"
#include "base/error.h"

/* Exit codes. 0: done. 1: it could not be done, or the answer is no. 2: the command line or a file
 * given is unusable. 3: a cluster refuses this machine, and asking again will not change that; for
 * services, which try again after the others. Beside these, 128 + N: signal N ended it; as filters
 * do, a command whose output nobody reads any more is ended by SIGPIPE (nk_cli_flush,
 * cli/generate.h). */
enum { NK_EXIT_OK = 0, NK_EXIT_FAILED = 1, NK_EXIT_USAGE = 2, NK_EXIT_REFUSED = 3 };

/* For json_dump: on a terminal nothing but ASCII, so that no control character reaches it as
 * itself. */
size_t nk_cli_json_flags(void);
/* Prints "nakshatra: MESSAGE" on standard error, control characters shown, and returns the exit
 * code for it: 2 for INVALID, NOT_FOUND and OUT_OF_RANGE, else 1. */
int nk_cli_report(const struct nk_error *err);

/* The last thing of a command that prints: exit_code. When nobody reads standard output any more,
 * SIGPIPE ends the process; when it could not be written otherwise, that is reported and it is
 * NK_EXIT_FAILED. */
int nk_cli_flush(int exit_code);

/* The first thing that a subcommand does: parses its arguments; what is wrong with them was
 * reported. Returns 0 to go on, else the caller returns *exit_code. */
int nk_cli_parse(int argc, char **argv, const struct nk_command *cmd, int *first, int *exit_code);

/* Runs subcommand argv[0]; an unknown one is reported. Returns the exit code. */
int nk_cli_run(int argc, char **argv);

/* Calls f with every subcommand and its table of options, which hold their defaults. Nothing else
 * of a subcommand is run. */
typedef void nk_cli_described(void *user, const char *name, const char *summary,
                              const struct nk_command *cmd);
void nk_cli_describe(nk_cli_described *f, void *user);

/* What `nakshatra --help` prints: the subcommands. */
void nk_cli_print_commands(FILE *out);

#endif
