#include "base/args.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ARGS_MAX = 128,
    LONG_ONLY = 1000, /* getopt_long's number of the table's first option */
    HELP = LONG_ONLY + ARGS_MAX,
    COLUMNS = 79,
    HELP_COLUMN = 30,
    WORD_MAX = 32,
};

const char *nk_args_program = "nakshatra";

/* ---- help ---- */

void nk_print_wrapped(const char *text, int column, int indent)
{
    bool begins = true; /* nothing of the text is on this line yet */

    for (;;) {
        int n;

        text += strspn(text, " \n\t");
        n = (int)strcspn(text, " \n\t");
        if (!n)
            return;
        if (!begins && column + 1 + n > COLUMNS) {
            printf("\n%*s", indent, "");
            column = indent;
            begins = true;
        }
        printf("%s%.*s", begins ? "" : " ", n, text);
        column += n + !begins;
        begins = false;
        text += n;
    }
}

bool nk_arg_default(const struct nk_arg *a, char *out, size_t size)
{
    bool bounded = a->min != 0 || a->max != 0;
    double number;

    if (a->kind == NK_ARG_FLAG || a->kind == NK_ARG_LIST)
        return false;
    if (a->kind == NK_ARG_STRING) {
        const char *text = *(const char **)a->dest;

        snprintf(out, size, "%s", text ? text : "");
        return text;
    }
    number = a->kind == NK_ARG_INT ? (double)*(int64_t *)a->dest : *(double *)a->dest;
    if (bounded && (number < a->min || number > a->max))
        return false;
    /* Six digits: many come from a float, whose seventh is not what somebody once wrote. */
    snprintf(out, size, a->kind == NK_ARG_INT ? "%.0f" : "%.6g", number);
    return true;
}

static void print_option(const struct nk_arg *a)
{
    char left[64], value[256], text[1024];
    int n = snprintf(left, sizeof left, "%c%c%s --%s%s%s", a->letter ? '-' : ' ',
                     a->letter ? a->letter : ' ', a->letter ? "," : " ", a->name,
                     a->value_name ? " " : "", a->value_name ? a->value_name : "");

    if (n + 3 > HELP_COLUMN)
        printf("  %s\n%*s", left, HELP_COLUMN, "");
    else
        printf("  %-*s", HELP_COLUMN - 2, left);
    if (nk_arg_default(a, value, sizeof value))
        snprintf(text, sizeof text, "%s (%s)", a->help, value);
    else
        snprintf(text, sizeof text, "%s", a->help);
    nk_print_wrapped(text, HELP_COLUMN, HELP_COLUMN);
    printf("\n");
}

void nk_args_help(const struct nk_command *cmd)
{
    int column = printf("usage: %s ", nk_args_program);

    nk_print_wrapped(cmd->usage, column, column);
    printf("\n\n");
    nk_print_wrapped(cmd->summary, 0, 0);
    printf("\n");
    if (cmd->args && cmd->args[0].name)
        printf("\noptions:\n");
    for (const struct nk_arg *a = cmd->args; a && a->name; a++)
        print_option(a);
}

/* ---- words that were meant ---- */

static int least(int a, int b, int c)
{
    int ab = a < b ? a : b;

    return ab < c ? ab : c;
}

/* How many letters must be added, removed, replaced or exchanged with their neighbour to make one
 * word of the other (optimal string alignment). */
static int distance(const char *a, const char *b)
{
    int n = (int)strlen(a), m = (int)strlen(b), d[WORD_MAX + 1][WORD_MAX + 1];

    if (n > WORD_MAX || m > WORD_MAX)
        return INT_MAX;
    for (int i = 0; i <= n; i++)
        for (int k = 0; k <= m; k++) {
            if (!i || !k) {
                d[i][k] = i + k;
                continue;
            }
            d[i][k] =
                least(d[i - 1][k] + 1, d[i][k - 1] + 1, d[i - 1][k - 1] + (a[i - 1] != b[k - 1]));
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
                d[i - 2][k - 2] + 1 < d[i][k])
                d[i][k] = d[i - 2][k - 2] + 1;
        }
    return d[n][m];
}

const char *nk_word_nearer(const char *word, const char *best, const char *candidate)
{
    int limit = ((int)strlen(word) + 1) / 3, to_candidate = distance(word, candidate);

    if (to_candidate > (limit ? limit : 1) || (best && distance(word, best) <= to_candidate))
        return best;
    return candidate;
}

/* ---- parsing ---- */

static int set_value(const struct nk_arg *a, const char *value, struct nk_error *err)
{
    char *end;
    bool bounded = a->min != 0 || a->max != 0;
    double number;

    switch (a->kind) {
    case NK_ARG_FLAG:
        *(bool *)a->dest = true;
        return 0;
    case NK_ARG_STRING:
        *(const char **)a->dest = value;
        return 0;
    case NK_ARG_LIST: {
        struct nk_arg_list *list = a->dest;

        if (list->n == NK_ARG_LIST_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_argument", "--%s was given more than %d times",
                           a->name, NK_ARG_LIST_MAX);
        list->items[list->n++] = value;
        return 0;
    }
    case NK_ARG_INT:
    case NK_ARG_FLOAT:
        break;
    }
    errno = 0;
    if (a->kind == NK_ARG_INT) {
        int64_t i = strtoll(value, &end, 10);

        *(int64_t *)a->dest = i;
        number = (double)i;
    } else {
        number = strtod(value, &end);
        *(double *)a->dest = number;
    }
    if (end == value || *end || errno == ERANGE || !isfinite(number))
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--%s: '%s' is not %s", a->name, value,
                       a->kind == NK_ARG_INT ? "a whole number" : "a number");
    if (bounded && (number < a->min || number > a->max))
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--%s: %s is outside %.15g to %.15g",
                       a->name, value, a->min, a->max);
    return 0;
}

/* What getopt_long did not take: given is the word, c and optopt are its answers. */
static int refuse(const struct nk_command *cmd, const char *command, const char *given, int c,
                  struct nk_error *err)
{
    int n = (int)strcspn(given, "="), n_begin = 0;
    const char *near = NULL;
    char name[WORD_MAX + 1];

    if (c == ':')
        return nk_fail(err, NK_E_INVALID, "bad_argument", "%s needs a value; see %s %s --help",
                       given, nk_args_program, command);
    if (optopt >= LONG_ONLY)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "%.*s takes no value, and '%s' gives it one", n, given, given);
    if (optopt)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "option -%c is unknown; %s %s --help lists what there is", optopt,
                       nk_args_program, command);
    snprintf(name, sizeof name, "%.*s", n - 2, given + 2);
    for (const struct nk_arg *a = cmd->args; a && a->name; a++) {
        near = nk_word_nearer(name, near, a->name);
        n_begin += !strncmp(a->name, given + 2, (size_t)n - 2);
    }
    if (n_begin > 1)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "option %.*s is short for %d; %s %s --help lists what there is", n, given,
                       n_begin, nk_args_program, command);
    if (near)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "option %.*s is unknown; did you mean --%s? %s %s --help lists what "
                       "there is",
                       n, given, near, nk_args_program, command);
    return nk_fail(err, NK_E_INVALID, "bad_argument",
                   "option %.*s is unknown; %s %s --help lists what there is", n, given,
                   nk_args_program, command);
}

/* The options of the command line, from the first to the last; their values are set, or only looked
 * at. Returns as nk_args_parse. */
static int scan(int argc, char **argv, const struct nk_command *cmd, bool set, struct nk_error *err)
{
    struct option longs[ARGS_MAX + 2] = { { "help", no_argument, NULL, HELP } };
    char shorts[2 * ARGS_MAX + 4] = ":h";
    size_t n_short = strlen(shorts);
    int n = 0, c;

    for (const struct nk_arg *a = cmd->args; a && a->name; a++, n++) {
        bool takes = a->kind != NK_ARG_FLAG;

        NK_ASSERT(n < ARGS_MAX);
        longs[n + 1] = (struct option){ a->name, takes ? required_argument : no_argument, NULL,
                                        LONG_ONLY + n };
        if (a->letter) {
            shorts[n_short++] = a->letter;
            if (takes)
                shorts[n_short++] = ':';
        }
    }
    opterr = 0;
    optind = 0; /* from the beginning, whatever an earlier scan left */
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const struct nk_arg *a = NULL;
        int rc;

        if (c == 'h' || c == HELP) {
            nk_args_help(cmd);
            return 1;
        }
        if (c == '?' || c == ':')
            return refuse(cmd, argv[0], argv[optind - 1], c, err);
        for (int i = 0; i < n; i++)
            if (c == LONG_ONLY + i || (cmd->args[i].letter && c == cmd->args[i].letter))
                a = &cmd->args[i];
        NK_ASSERT(a);
        rc = set ? set_value(a, optarg, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

int nk_args_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                  struct nk_error *err)
{
    int rc = scan(argc, argv, cmd, false, err);

    if (!rc)
        rc = scan(argc, argv, cmd, true, err);
    if (rc)
        return rc;
    *first = optind;
    if (argc - optind < cmd->n_min)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "an argument is missing. usage: %s %s",
                       nk_args_program, cmd->usage);
    if (argc - optind > cmd->n_max)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "'%s' is one argument too many. usage: %s %s", argv[optind + cmd->n_max],
                       nk_args_program, cmd->usage);
    return 0;
}

/* ---- sizes ---- */

const char *nk_size_format(char out[24], uint64_t bytes)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double v = (double)bytes;
    int u = 0;

    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(out, 24, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}
