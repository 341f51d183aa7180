#include "cli/cli.h"

#include <stdio.h>

int nk_cli_report(const struct nk_error *err)
{
    fprintf(stderr, "nakshatra: %s\n", err->msg);
    return err->code == NK_E_INVALID || err->code == NK_E_NOT_FOUND ||
                   err->code == NK_E_OUT_OF_RANGE
               ? NK_EXIT_USAGE
               : NK_EXIT_FAILED;
}

int nk_cli_parse(int argc, char **argv, const struct nk_command *cmd, int *first, int *exit_code)
{
    struct nk_error err;
    int rc = nk_args_parse(argc, argv, cmd, first, &err);

    *exit_code = rc < 0 ? nk_cli_report(&err) : NK_EXIT_OK;
    return rc;
}
