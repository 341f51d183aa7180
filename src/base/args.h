/* Command-line arguments of one subcommand, described by a table: parsing (over getopt_long), help and errors.
 *
 * Every option writes through `dest`, whose type follows the kind. Bad input is a sentence and exit code 2. */
#ifndef NK_BASE_ARGS_H
#define NK_BASE_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum nk_arg_kind {
    NK_ARG_FLAG,   /* bool *: set to true */
    NK_ARG_STRING, /* const char **: borrowed from argv */
    NK_ARG_LIST,   /* struct nk_arg_list *: may be given several times */
    NK_ARG_INT,    /* int64_t *: within [min, max] */
    NK_ARG_FLOAT,  /* double *: within [min, max] */
};

#define NK_ARG_LIST_MAX 64
struct nk_arg_list {
    const char *items[NK_ARG_LIST_MAX]; /* borrowed from argv */
    int n;
};

struct nk_arg {
    const char *name; /* long option without dashes; NULL ends the table */
    char letter;      /* short option, or 0 */
    enum nk_arg_kind kind;
    void *dest;
    const char *value_name; /* "FILE"; NULL for flags */
    const char *help;       /* one line; "" hides the option from the help */
    double min, max;        /* for INT and FLOAT; both 0 means no bounds */
};

struct nk_command {
    const char *usage;   /* "split MODEL.gguf (--into K | --layers RANGES) --out DIR" */
    const char *summary; /* a sentence or more */
    const struct nk_arg *args;
    int n_min, n_max; /* positional arguments */
};

/* argv[0] is the subcommand's name. On success positional arguments are argv[*first .. argc).
 * Returns 0; 1 when --help was given and printed on standard output (exit 0 then); or
 *   INVALID  bad_argument   an unknown option, a missing or unusable value, too few or too many arguments */
int nk_args_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                  struct nk_error *err);
void nk_args_help(const struct nk_command *cmd);

/* "64Ki", "1.5G", "300M", "4096" as bytes. INVALID bad_size. */
int nk_size_parse(const char *text, uint64_t *bytes, struct nk_error *err);
/* "1.5 GiB", "12.3 MiB", "17 B" */
const char *nk_size_format(char out[24], uint64_t bytes);

#endif
