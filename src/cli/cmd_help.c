/* nakshatra help: the subcommands, one subcommand's help, and the same as a man page or as what
 * shells complete by. */
#include "cli/cli.h"

#include <stdio.h>

#include "cli/reference.h"

int nk_cmd_help(int argc, char **argv);

int nk_cmd_help(int argc, char **argv)
{
    bool man = false, bash = false, zsh = false, fish = false;
    const struct nk_arg args[] = {
        NK_OPT_FLAG("man", 0, &man, "the manual as a man page"),
        NK_OPT_FLAG("bash", 0, &bash, "a script by which bash completes commands and options"),
        NK_OPT_FLAG("zsh", 0, &zsh, "the same for zsh"),
        NK_OPT_FLAG("fish", 0, &fish, "and for fish"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "help [COMMAND | --man | --bash | --zsh | --fish]",
        .summary = "Lists the commands, or prints the help of one of them, as COMMAND --help does. "
                   "make install puts the man page and the scripts where they are looked for; "
                   "without it, source <(nakshatra help --bash) does for one shell.",
        .args = args,
        .n_max = 1,
    };
    char help[] = "--help";
    struct nk_error err;
    int first, exit_code;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if ((first < argc) + man + bash + zsh + fish > 1) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "give one of COMMAND, --man, --bash, --zsh and --fish");
        return nk_cli_report(&err);
    }
    if (first < argc)
        return nk_cli_run(2, (char *[]){ argv[first], help, NULL });
    if (man)
        nk_reference_man(stdout);
    else if (bash)
        nk_reference_bash(stdout);
    else if (zsh)
        nk_reference_zsh(stdout);
    else if (fish)
        nk_reference_fish(stdout);
    else
        nk_cli_print_commands(stdout);
    return nk_cli_flush(NK_EXIT_OK);
}
