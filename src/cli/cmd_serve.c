/* nakshatra serve: the HTTP gateway in front of a cluster. */
#include "cli/serve.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "chain/cluster.h"
#include "cli/cache_args.h"
#include "cli/cli.h"
#include "cli/generate.h"
#include "cli/host.h"
#include "cli/interrupt.h"
#include "cli/model_source.h"
#include "cluster/fleet.h"

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

/* ---- a cluster that this machine makes ---- */

/* A plan by hand: a line "NAME BEGIN-END" for each stage, a line of dashes between chains; '#'
 * begins a comment. *out is owned by the caller: nk_plan_free(). */
static int read_plan(struct nk_plan **out, const char *path, struct nk_error *err)
{
    enum { BYTES_MAX = 1 << 16 };
    struct nk_plan_stage *stages = calloc(NK_FLEET_STAGES_MAX, sizeof *stages);
    struct nk_buf text = NK_BUF_INIT(BYTES_MAX);
    char *line, *rest;
    int n = 0, number = 0, rc = nk_file_read(path, BYTES_MAX, &text, err);

    *out = NULL;
    if (!rc && !stages)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc)
        rc = nk_plan_new(out, err);
    rest = text.data;
    while (!rc && (line = rest ? strsep(&rest, "\n") : NULL)) {
        char name[NK_MEMBER_NAME_SIZE], more;
        int begin, end;

        number++;
        line[strcspn(line, "#\r")] = '\0';
        if (!line[strspn(line, " \t")])
            continue;
        if (line[0] == '-') {
            rc = n ? nk_plan_chain_add(*out, stages, n, err) : 0;
            n = 0;
        } else if (sscanf(line, " %63s %d-%d %c", name, &begin, &end, &more) != 3 ||
                   !nk_member_name_is(name) || begin < 0 || end <= begin ||
                   n == NK_FLEET_STAGES_MAX) {
            rc = nk_fail(err, NK_E_INVALID, "bad_plan",
                         "%s:%d: not NAME BEGIN-END, as in 'attic 0-14' (layers, half open), or "
                         "more than %d stages",
                         path, number, NK_FLEET_STAGES_MAX);
        } else {
            stages[n] = (struct nk_plan_stage){ .begin = begin, .end = end };
            strcpy(stages[n++].id, name);
        }
    }
    if (!rc && n)
        rc = nk_plan_chain_add(*out, stages, n, err);
    if (!rc && !(*out)->n_chains)
        rc = nk_fail(err, NK_E_INVALID, "bad_plan", "%s names no stage", path);
    if (rc) {
        nk_plan_free(*out);
        *out = NULL;
    }
    nk_buf_release(&text);
    free(stages);
    return rc;
}

static int serve_model(const struct nk_serve *s, struct nk_host_opts *ho, bool no_join,
                       int parent_fd, struct nk_error *err)
{
    struct nk_gateway_opts what = nk_gateway_opts_default();
    char token[NK_TOKEN_TEXT_SIZE];
    char *path = NULL;
    nk_host *h = NULL;
    nk_gateway *g = NULL;
    int rc = nk_serve_check(s, err);

    if (!rc)
        rc = nk_model_source(&path, ho->model, err);
    ho->model = path;
    if (!rc)
        rc = nk_host_start(&h, ho, err);
    if (rc) {
        free(path);
        return rc;
    }
    nk_host_gateway_opts(h, &what);
    rc = nk_serve_start(&g, s, &what, err);
    if (!rc) {
        nk_serve_print_url(g);
        if (!no_join && nk_host_token(h, token, err))
            fprintf(stderr, "nakshatra: other machines cannot join: %s\n", err->msg);
        else if (!no_join)
            printf("another machine joins with: nakshatra join %s\n", token);
        fflush(stdout);
        nk_host_serve(h, g);
        rc = nk_host_run(h, parent_fd, err);
        nk_host_unserve(h);
        nk_serve_stop(g, (uint32_t)s->drain_ms, NK_EXIT_OK, NULL, NULL);
    }
    nk_host_stop(h);
    free(path);
    return rc;
}

int nk_cmd_serve(int argc, char **argv)
{
    struct nk_serve s = nk_serve_default();
    struct nk_host_opts ho = { .plan = nk_plan_opts_default() };
    struct nk_cache_args cache = NK_CACHE_ARGS_INIT;
    struct nk_plan *by_hand = NULL;
    const char *cluster = NULL, *plan_file = NULL, *objective = "stream";
    bool deterministic = false, no_join = false;
    int64_t parent_fd = -1, ctx = 0, sequences = 4, streams = 1, spread = 1, threads = 0, port = -1;
    const struct nk_arg args[] = {
        NK_OPT_STRING("cluster", 'c', &cluster, "FILE",
                      "cluster.yaml: the workers and their layers, by hand; instead of MODEL"),
        NK_SERVE_ARGS(s),
        NK_OPT_INT("stall-ms", 0, &s.stall_ms, "MS", 0, 3600000,
                   "give up a worker that does not answer a step for so long; 0: 30000 here, and "
                   "--stall-ms of the workers between them"),
        NK_OPT_FLAG("deterministic", 0, &deterministic,
                    "every request is; with --cluster, its workers need --deterministic, too"),
        NK_OPT_INT("ctx", 0, &ctx, "N", 0, 1 << 24,
                   "KV tokens, shared by all sequences; 0: 4096, or the model's context if less"),
        NK_OPT_INT("sequences", 0, &sequences, "N", 1, 256, "generations at once"),
        NK_CACHE_ARGS(cache),
        NK_OPT_STRING("objective", 0, &objective, "stream|rate",
                      "plan for the time per token of one stream, or for all streams' rate"),
        NK_OPT_INT("streams", 0, &streams, "N", 1, 1024, "requests at a time that are planned for"),
        NK_OPT_INT("spread", 0, &spread, "N", 1, 64,
                   "use at least so many machines, whatever is faster"),
        NK_OPT_STRING("plan", 0, &plan_file, "FILE",
                      "a plan by hand: a line 'NAME BEGIN-END' for each stage, members by their "
                      "names, a line of dashes between chains"),
        NK_OPT_FLAG("not-here", 0, &ho.not_here, "this machine holds no layers"),
        NK_OPT_FLAG("no-join", 0, &no_join,
                    "make no join line; nakshatra token does, when one is wanted"),
        NK_OPT_STRING("device", 'd', &ho.device, "NAME", "of this machine's own worker"),
        NK_OPT_INT("threads", 't', &threads, "N", 1, 1024,
                   "of this machine's own worker; else all cores"),
        NK_OPT_STRING("member-name", 0, &ho.name, "NAME",
                      "of this machine in the cluster; else the host's"),
        NK_OPT_STRING("member-address", 0, &ho.listen, "ADDRESS",
                      "members are listened for there only; else on all of this machine's"),
        NK_OPT_INT("member-port", 0, &port, "N", 1, 65535,
                   "for members; else the one of the last time, at first a free one"),
        NK_OPT_STRING("state", 0, &ho.state, "DIR",
                      "where the cluster's state is kept; else $XDG_STATE_HOME/nakshatra or "
                      "~/.local/state/nakshatra"),
        NK_OPT_INT("parent-fd", 0, &parent_fd, "N", 0, 1 << 20,
                   "end when this file descriptor reads end-of-file"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "serve (MODEL.gguf | --cluster FILE) [--listen HOST:PORT] ...",
        .summary =
            "Serves a model: OpenAI's and Ollama's APIs, a page at /, metrics (docs/api.md). With "
            "MODEL this machine makes a cluster, which others join with the line that is printed; "
            "who holds which layers is planned (docs/cluster.md). With --cluster the workers are "
            "those of the file. SIGTERM or Ctrl-C ends it after the requests that "
            "run. " NK_MODEL_SOURCE_HELP,
        .args = args,
        .n_max = 1,
    };
    struct nk_error err;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!cluster == (first == argc)) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                cluster ? "MODEL and --cluster were both given; one of them says what to serve"
                        : "what to serve is missing: MODEL.gguf, or --cluster FILE. usage: "
                          "nakshatra %s",
                cmd.usage);
        return nk_cli_report(&err);
    }
    rc = nk_cache_args_check(&cache, &err);
    if (!rc && strcmp(objective, "stream") != 0 && strcmp(objective, "rate") != 0)
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument",
                     "--objective: '%.40s' is not stream or rate", objective);
    if (!rc && plan_file)
        rc = read_plan(&by_hand, plan_file, &err);
    if (rc)
        return nk_cli_report(&err);
    nk_vocab_global_init();
    nk_interrupt_init();
    if (cluster) {
        rc = serve(&s, cluster, deterministic, (int)parent_fd, &err);
    } else {
        ho.model = argv[first];
        ho.no_join = no_join;
        ho.n_ctx = (int)ctx;
        ho.n_seq_max = (int)sequences;
        ho.deterministic = deterministic;
        ho.no_flash_attn = cache.no_flash_attn;
        ho.cache_type_k = cache.type_k;
        ho.cache_type_v = cache.type_v;
        ho.n_threads = (int)threads;
        ho.port = port < 0 ? 0 : (int)port;
        ho.plan.objective = strcmp(objective, "rate") ? NK_PLAN_ONE_STREAM : NK_PLAN_RATE;
        ho.plan.streams = (int)streams;
        ho.plan.spread = (int)spread;
        ho.plan.sequences = (int)sequences;
        ho.by_hand = by_hand;
        rc = serve_model(&s, &ho, no_join, (int)parent_fd, &err);
    }
    nk_plan_free(by_hand);
    return rc ? nk_cli_report(&err) : NK_EXIT_OK;
}
