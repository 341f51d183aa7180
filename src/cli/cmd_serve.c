/* nakshatra serve: the HTTP gateway in front of a cluster. */
#include "cli/serve.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chain/cluster.h"
#include "cli/cli.h"
#include "cli/generate.h"
#include "cli/interrupt.h"

int nk_cmd_serve(int argc, char **argv);

/* Waits for a signal, or for the end of whoever started it. Returns the signal, or 0. */
static int wait_for_end(int parent_fd)
{
    struct pollfd fds[2] = { { nk_interrupt_fd(), POLLIN, 0 }, { parent_fd, POLLIN, 0 } };
    char c;

    while (!nk_interrupt_signal()) {
        if (poll(fds, parent_fd >= 0 ? 2 : 1, -1) < 0 && errno != EINTR)
            break;
        if (parent_fd >= 0 && fds[1].revents && read(parent_fd, &c, 1) <= 0)
            break;
    }
    return nk_interrupt_signal();
}

static int serve(const struct nk_serve *s, const char *cluster_path, bool deterministic,
                 int parent_fd, struct nk_error *err)
{
    struct nk_gateway_opts what = nk_gateway_opts_default();
    struct nk_cluster *cluster = NULL;
    nk_vocab *v = NULL;
    nk_gateway *g = NULL;
    int rc = nk_cluster_read(&cluster, cluster_path, err);

    if (!rc)
        rc = nk_cluster_vocab_open(&v, cluster, err);
    if (!rc)
        rc = nk_chain_open(&what.chain, cluster, NULL, err);
    what.vocab = v;
    what.deterministic = deterministic;
    if (!rc)
        rc = nk_serve_start(&g, s, &what, err);
    if (rc)
        nk_chain_close(what.chain);
    else {
        nk_serve_print_url(g);
        wait_for_end(parent_fd);
        /* A second Ctrl-C ends it at once. */
        nk_serve_stop(g, (uint32_t)s->drain_ms, NK_EXIT_OK, NULL, NULL);
    }
    nk_vocab_close(v);
    free(cluster);
    return rc;
}

int nk_cmd_serve(int argc, char **argv)
{
    struct nk_serve s = nk_serve_default();
    const char *cluster = NULL;
    bool deterministic = false;
    int64_t parent_fd = -1;
    const struct nk_arg args[] = {
        NK_OPT_STRING("cluster", 'c', &cluster, "FILE",
                      "cluster.yaml: the workers and their layers"),
        NK_SERVE_ARGS(s),
        NK_OPT_FLAG("deterministic", 0, &deterministic,
                    "every request is; needs workers with --deterministic"),
        NK_OPT_INT("parent-fd", 0, &parent_fd, "N", 0, 1 << 20,
                   "end when this file descriptor reads end-of-file"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "serve --cluster FILE [--listen HOST:PORT] ...",
        .summary =
            "An HTTP gateway in front of a cluster: OpenAI's and Ollama's APIs, a page at /, "
            "metrics. See docs/api.md. SIGTERM or Ctrl-C ends it after the requests that run.",
        .args = args,
    };
    struct nk_error err;
    int first, exit_code;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!cluster) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--cluster FILE is missing. usage: nakshatra %s", cmd.usage);
        return nk_cli_report(&err);
    }
    nk_vocab_global_init();
    nk_interrupt_init();
    if (serve(&s, cluster, deterministic, (int)parent_fd, &err))
        return nk_cli_report(&err);
    return NK_EXIT_OK;
}
