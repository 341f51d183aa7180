#include "cli/cli.h"

int nk_cmd_inspect(int argc, char **argv);
int nk_cmd_inspect(int argc, char **argv)
{
    (void)argc, (void)argv;
    return 1;
}
