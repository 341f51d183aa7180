/* The subcommands: one file each (cmd_NAME.c), one line each in the table of main.c. */
#ifndef NK_CLI_CLI_H
#define NK_CLI_CLI_H

#include "base/args.h"
#include "base/error.h"

/* Exit codes: 0 done; 1 it could not be done (or the answer is no); 2 the command line or a file given is unusable. */
enum { NK_EXIT_OK = 0, NK_EXIT_FAILED = 1, NK_EXIT_USAGE = 2 };

/* Prints "nakshatra: MESSAGE" on standard error and returns the exit code for it: 2 for INVALID, NOT_FOUND and
 * OUT_OF_RANGE, else 1. */
int nk_cli_report(const struct nk_error *err);

/* Parses the arguments of a subcommand; on a negative return the error was reported. Returns 0 to go on, else the
 * caller returns *exit_code. */
int nk_cli_parse(int argc, char **argv, const struct nk_command *cmd, int *first, int *exit_code);

#endif
