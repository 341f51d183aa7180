#include "base/args.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARGS_MAX = 128, LONG_ONLY = 1000 };

void nk_args_help(const struct nk_command *cmd)
{
    printf("usage: nakshatra %s\n\n%s\n", cmd->usage, cmd->summary);
    if (cmd->args && cmd->args[0].name)
        printf("\noptions:\n");
    for (const struct nk_arg *a = cmd->args; a && a->name; a++) {
        char left[64];

        if (!a->help[0])
            continue;
        snprintf(left, sizeof left, "%c%c%s --%s%s%s", a->letter ? '-' : ' ',
                 a->letter ? a->letter : ' ', a->letter ? "," : " ", a->name,
                 a->value_name ? " " : "", a->value_name ? a->value_name : "");
        printf("  %-32s %s\n", left, a->help);
    }
}

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

int nk_args_parse(int argc, char **argv, const struct nk_command *cmd, int *first,
                  struct nk_error *err)
{
    struct option longs[ARGS_MAX + 2] = { { "help", no_argument, NULL, 'h' } };
    char shorts[3 * ARGS_MAX + 4] = ":h";
    size_t n_short = strlen(shorts);
    int n = 0, c, rc;

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
    optind = 1;
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const struct nk_arg *a = NULL;

        if (c == 'h') {
            nk_args_help(cmd);
            return 1;
        }
        if (c == '?' || c == ':') {
            const char *given = argv[optind - 1];

            if (c == ':')
                return nk_fail(err, NK_E_INVALID, "bad_argument",
                               "%s needs a value; see nakshatra %s --help", given, argv[0]);
            if (optopt && optopt < LONG_ONLY)
                return nk_fail(err, NK_E_INVALID, "bad_argument",
                               "option -%c is unknown; nakshatra %s --help lists what there is",
                               optopt, argv[0]);
            return nk_fail(err, NK_E_INVALID, "bad_argument",
                           "option %s is unknown; nakshatra %s --help lists what there is", given,
                           argv[0]);
        }
        for (int i = 0; i < n; i++)
            if (c == LONG_ONLY + i || (cmd->args[i].letter && c == cmd->args[i].letter))
                a = &cmd->args[i];
        NK_ASSERT(a);
        rc = set_value(a, optarg, err);
        if (rc)
            return rc;
    }
    *first = optind;
    if (argc - optind < cmd->n_min)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "an argument is missing. usage: nakshatra %s", cmd->usage);
    if (argc - optind > cmd->n_max)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "'%s' is one argument too many. usage: nakshatra %s",
                       argv[optind + cmd->n_max], cmd->usage);
    return 0;
}

int nk_size_parse(const char *text, uint64_t *bytes, struct nk_error *err)
{
    char *end;
    double v = strtod(text, &end), scale = 1;

    if (end == text || !isfinite(v) || v < 0)
        goto bad;
    if (*end) {
        static const char units[] = "kmgt";
        const char *unit = strchr(units, tolower((unsigned char)*end));

        if (!unit)
            goto bad;
        for (const char *u = units; u <= unit; u++)
            scale *= 1024;
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B' || *end == 'b')
            end++;
        if (*end)
            goto bad;
    }
    if (v * scale >= 9.2e18)
        goto bad;
    *bytes = (uint64_t)(v * scale);
    return 0;
bad:
    return nk_fail(err, NK_E_INVALID, "bad_size",
                   "'%s' is not a size; 4096, 64K, 300M and 1.5G are", text);
}

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
