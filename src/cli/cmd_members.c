/* nakshatra members: who belongs to the cluster. */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/cluster_view.h"
#include "rpc/proto.h"

int nk_cmd_members(int argc, char **argv);

static int remove_member(const char *state, const char *who, struct nk_error *err)
{
    Nakshatra__V1__RemoveRequest request = NAKSHATRA__V1__REMOVE_REQUEST__INIT;
    struct nk_buf reply = NK_BUF_INIT(4096);
    int rc;

    request.member = (char *)(uintptr_t)who;
    rc = nk_ask(state, NK_ASK_COORDINATOR, "/nakshatra.v1.Cluster/Remove", &request.base, &reply,
                err);
    nk_buf_release(&reply);
    return rc;
}

int nk_cmd_members(int argc, char **argv)
{
    const char *state = NULL;
    const struct nk_arg args[] = {
        NK_OPT_STRING("state", 0, &state, "DIR",
                      "where the cluster's state is; else $XDG_STATE_HOME/nakshatra or "
                      "~/.local/state/nakshatra"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "members [remove MEMBER]",
        .summary = "Lists the machines of the cluster that this machine serves or is a member of. "
                   "remove, on the serving machine, takes one off, by its name or id: it is "
                   "refused everywhere at once, and comes back only with a new join line.",
        .args = args,
        .n_max = 2,
    };
    struct nk_error err;
    json_t *j = NULL;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (first == argc) {
        rc = nk_cluster_view_get(state, &j, &err);
        if (!rc)
            nk_cluster_view_members(stdout, j);
    } else if (!strcmp(argv[first], "remove") && first + 2 == argc) {
        rc = remove_member(state, argv[first + 1], &err);
        if (!rc)
            printf("%s is removed\n", argv[first + 1]);
    } else {
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument", "usage: nakshatra %s", cmd.usage);
    }
    json_decref(j);
    return rc ? nk_cli_report(&err) : nk_cli_flush(NK_EXIT_OK);
}
