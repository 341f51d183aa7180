/* nakshatra status: what the machines of the cluster hold and do. */
#include "cli/cli.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "cli/cluster_view.h"
#include "cli/interrupt.h"

int nk_cmd_status(int argc, char **argv);

enum { WATCH_MS = 1000 };

static int once(const char *state, bool json, bool clear, struct nk_error *err)
{
    json_t *j;
    int rc = nk_cluster_view_get(state, &j, err);

    if (rc)
        return rc;
    if (clear && isatty(1))
        printf("\033[H\033[2J");
    if (json) {
        json_dumpf(j, stdout, nk_cli_json_flags() | (clear ? JSON_COMPACT : JSON_INDENT(2)));
        printf("\n");
    } else {
        nk_cluster_view_print(stdout, j);
    }
    json_decref(j);
    return 0;
}

int nk_cmd_status(int argc, char **argv)
{
    const char *state = NULL;
    bool json = false, watch = false;
    const struct nk_arg args[] = {
        NK_OPT_FLAG("json", 0, &json, "as JSON"),
        NK_OPT_FLAG("watch", 'w', &watch, "once a second, until Ctrl-C"),
        NK_OPT_STRING("state", 0, &state, "DIR",
                      "where the cluster's state is; else $XDG_STATE_HOME/nakshatra or "
                      "~/.local/state/nakshatra"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "status [--json] [--watch]",
        .summary = "The cluster that this machine serves or is a member of: its machines, what "
                   "each holds and does, the plan and what it is predicted to do, and who is a "
                   "spare and why.",
        .args = args,
    };
    struct nk_error err;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (watch)
        nk_interrupt_init();
    rc = once(state, json, watch, &err);
    while (!rc && watch && !nk_interrupt_signal()) {
        struct pollfd p = { nk_interrupt_fd(), POLLIN, 0 };

        exit_code = nk_cli_flush(NK_EXIT_OK);
        if (exit_code)
            return exit_code;
        if (poll(&p, 1, WATCH_MS) <= 0)
            rc = once(state, json, true, &err);
    }
    return rc ? nk_cli_report(&err) : nk_cli_flush(NK_EXIT_OK);
}
