/* How long the engine's threads spin, for the commands that compute with all cores. */
#ifndef NK_CLI_SPINNING_H
#define NK_CLI_SPINNING_H

/* A second start of the program with OpenMP's spinning bounded, which libgomp reads only while it
 * is loaded. argv: of the subcommand, with the program's name before it. Returns where it is
 * bounded already, or somebody has set it otherwise, or the system is not Linux (slower, not
 * wrong). */
void nk_cli_bound_spinning(char **argv);

#endif
