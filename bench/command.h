/* The subcommands of nakshatra-bench: one file each (cmd_NAME.c), one line each
 * here and in the table of main.c. Each returns the exit code; argv[0] is its name. */
#ifndef NK_BENCH_COMMAND_H
#define NK_BENCH_COMMAND_H

#include "base/args.h"
#include "base/error.h"

/* 0 done; 1 it could not be done, or the answer is no; 2 the command line or a file is unusable. */
enum { NK_EXIT_OK = 0, NK_EXIT_FAILED = 1, NK_EXIT_USAGE = 2 };

/* Prints "nakshatra-bench: MESSAGE" on standard error and returns the exit code for it: 2 for
 * INVALID, NOT_FOUND and OUT_OF_RANGE, else 1. */
int nk_command_report(const struct nk_error *err);

/* Parses the arguments; on a negative return the error was reported. Returns 0 to go on, else the
 * caller returns *exit_code. */
int nk_command_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                     int *exit_code);

int nk_cmd_run(int argc, char **argv);
int nk_cmd_report(int argc, char **argv);
int nk_cmd_compare(int argc, char **argv);
int nk_cmd_synth(int argc, char **argv);
int nk_cmd_load(int argc, char **argv);
int nk_cmd_echo(int argc, char **argv);
int nk_cmd_link(int argc, char **argv);

#endif
