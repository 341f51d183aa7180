/* Command-line arguments of one subcommand, described by a table: parsing (over getopt_long), help
 * and errors.
 *
 * Every option writes through `dest`, whose type follows the kind. What `dest` holds when the table
 * is handed over is the option's default, and the help tells it from there. Bad input is a sentence
 * and exit code 2. */
#ifndef NK_BASE_ARGS_H
#define NK_BASE_ARGS_H

#include <stdbool.h>
#include <stddef.h>
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

/* A row; made by the macros below, { 0 } ends a table. */
struct nk_arg {
    const char *name; /* long option without dashes */
    char letter;      /* short option, or 0 */
    enum nk_arg_kind kind;
    void *dest;
    /* "FILE", "DIR", "N", ...; "a|b" where these words are all there are; NULL for flags. Shells
     * complete by it. */
    const char *value_name;
    const char *help; /* without the default */
    double min, max;  /* for INT and FLOAT; both 0 means no bounds */
};

/* Rows of a table. The type of dest is checked when it is compiled. A number that is outside its
 * bounds before the parsing means "not given". */
/* clang-format off */
#define NK__OPT(name, letter, kind, type, dest, value_name, help, min, max)                        \
    { name, letter, kind, _Generic((dest), type: (dest)), value_name, help, min, max }
#define NK_OPT_FLAG(name, letter, dest, help)                                                      \
    NK__OPT(name, letter, NK_ARG_FLAG, bool *, dest, NULL, help, 0, 0)
#define NK_OPT_STRING(name, letter, dest, value_name, help)                                        \
    NK__OPT(name, letter, NK_ARG_STRING, const char **, dest, value_name, help, 0, 0)
#define NK_OPT_LIST(name, letter, dest, value_name, help)                                          \
    NK__OPT(name, letter, NK_ARG_LIST, struct nk_arg_list *, dest, value_name, help, 0, 0)
#define NK_OPT_INT(name, letter, dest, value_name, min, max, help)                                 \
    NK__OPT(name, letter, NK_ARG_INT, int64_t *, dest, value_name, help, min, max)
#define NK_OPT_FLOAT(name, letter, dest, value_name, min, max, help)                               \
    NK__OPT(name, letter, NK_ARG_FLOAT, double *, dest, value_name, help, min, max)
/* clang-format on */

struct nk_command {
    const char *usage;   /* "split MODEL.gguf (--into K | --layers RANGES) --out DIR" */
    const char *summary; /* a sentence or more; the help breaks its lines */
    const struct nk_arg *args;
    int n_min, n_max; /* positional arguments */
};

/* What usage lines and errors call the program; another program's main sets its own before it
 * parses. */
extern const char *nk_args_program; /* "nakshatra" */

/* argv[0] is the subcommand's name. On success positional arguments are argv[*first .. argc).
 * Returns 0; 1 when --help was given and printed on standard output (exit 0 then); or
 *   INVALID  bad_argument  an unknown option, a missing or unusable value, too few or too many
 *                          arguments
 * A --help is answered before anything is set, so that it tells the defaults. Not thread-safe. */
int nk_args_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                  struct nk_error *err);
void nk_args_help(const struct nk_command *cmd);
/* The default that dest holds, as text. False when there is none to tell: a flag, a list, what is
 * not given by default. */
bool nk_arg_default(const struct nk_arg *a, char *out, size_t size);

/* Which of two words a person meant with `word`: candidate if it is near to it and nearer than
 * best, else best. best may be NULL: none so far. */
const char *nk_word_nearer(const char *word, const char *best, const char *candidate);
/* Prints text on standard output with its lines broken between words at column 79. The cursor is
 * at `column`; further lines begin at `indent`. Any white space separates words. No newline ends
 * it. */
void nk_print_wrapped(const char *text, int column, int indent);

/* "1.5 GiB", "12.3 MiB", "17 B" */
const char *nk_size_format(char out[24], uint64_t bytes);

#endif
