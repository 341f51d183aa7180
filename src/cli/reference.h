/* All subcommands and their options, for other programs: made from the same tables that the
 * arguments are parsed by, so that neither knows an option that the other does not. */
#ifndef NK_CLI_REFERENCE_H
#define NK_CLI_REFERENCE_H

#include <stdio.h>

/* nakshatra(1) in man's macros. */
void nk_reference_man(FILE *out);

/* What shells complete by: subcommands, options, and for an option's value files, folders or the
 * words that its value_name lists ("f32|f16"). */
void nk_reference_bash(FILE *out);
void nk_reference_zsh(FILE *out);
void nk_reference_fish(FILE *out);

#endif
