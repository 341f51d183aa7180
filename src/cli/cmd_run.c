/* nakshatra run: one generation, or a conversation, through the chain of a cluster file. */
#include "cli/cli.h"

#include <stdlib.h>

#include "cli/generate.h"
#include "cli/interrupt.h"

int nk_cmd_run(int argc, char **argv);

static int run(struct nk_generate *g, const char *cluster_path)
{
    struct nk_cluster *cluster = NULL;
    struct nk_route route = { .chain = NULL };
    nk_vocab *v = NULL;
    struct nk_error err;
    int code, rc = nk_cluster_read(&cluster, cluster_path, &err);

    if (!rc)
        rc = nk_cluster_vocab_open(&v, cluster, &err);
    if (!rc)
        rc = nk_generate_prepare(g, true, &err);
    if (!rc)
        rc = nk_chain_open(&route.chain, cluster, NULL, &err);
    if (!rc)
        code = nk_generate_run(g, &route, v);
    else
        code = nk_interrupt_signal() ? nk_interrupt_exit_code(nk_interrupt_signal())
                                     : nk_cli_report(&err);
    nk_route_close(&route);
    nk_vocab_close(v);
    free(cluster);
    nk_generate_release(g);
    return nk_generate_exit(code);
}

int nk_cmd_run(int argc, char **argv)
{
    struct nk_generate g = NK_GENERATE_INIT;
    const char *cluster_path = NULL;
    const struct nk_arg args[] = {
        NK_OPT_STRING("cluster", 'c', &cluster_path, "FILE",
                      "cluster.yaml: the workers and their layers"),
        NK_GENERATE_ARGS(g),
        NK_OPT_STRING("chat-template", 0, &g.chat_template, "NAME|FILE",
                      "with --chat: a built-in template, or a file with Jinja"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "run --cluster FILE [--prompt TEXT | --file FILE | --chat] [-n N] [--temp T] "
                 "[--seed N] ...",
        .summary =
            "Generates text with the model that the cluster's workers hold together, and prints it "
            "as it comes. Without --prompt and --file the prompt is read from standard input.",
        .args = args,
    };
    struct nk_error err;
    int first, exit_code;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!cluster_path) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--cluster FILE is missing. usage: nakshatra %s", cmd.usage);
        return nk_cli_report(&err);
    }
    nk_interrupt_init();
    nk_vocab_global_init();
    return run(&g, cluster_path);
}
