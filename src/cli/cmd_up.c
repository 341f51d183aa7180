/* nakshatra up: everything on this machine in one command. Cuts the model, starts the workers,
 * checks, and generates or serves; what it started ends with it. */
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/generate.h"
#include "cli/interrupt.h"
#include "cli/local.h"
#include "cli/model_source.h"
#include "cli/serve.h"

int nk_cmd_up(int argc, char **argv);

enum { CHECK_MS = 30000 };

static void end_local(void *l)
{
    nk_local_end(l);
}

/* Without a prompt: serves until a signal comes, or a worker cannot be kept alive. Takes the
 * chain. */
static int serve_until_end(const struct nk_serve *s, bool deterministic, struct nk_local *l,
                           nk_chain *c, const nk_vocab *v)
{
    struct nk_gateway_opts what = nk_gateway_opts_default();
    nk_gateway *gateway = NULL;
    struct nk_error err;
    int exit_code, rc;

    what.chain = c;
    what.vocab = v;
    what.deterministic = deterministic;
    rc = nk_serve_start(&gateway, s, &what, &err);
    if (rc) {
        nk_chain_close(c);
        return nk_cli_report(&err);
    }
    printf("cluster file: %s\n", l->cluster->path);
    nk_serve_print_url(gateway);
    rc = nk_local_wait(l, &err);
    exit_code = rc ? nk_cli_report(&err) : NK_EXIT_OK;
    /* A worker that dies while answers end is started again, too: they go on with it. Without one
     * that cannot be kept alive nothing that runs can end well. */
    if (!rc && nk_local_tend_start(l, &err))
        nk_cli_report(&err);
    nk_serve_stop(gateway, rc ? 0 : (uint32_t)s->drain_ms, exit_code, end_local, l);
    nk_local_tend_stop(l);
    return exit_code;
}

static int use(struct nk_generate *g, const struct nk_serve *s, struct nk_local *l)
{
    struct nk_chain_report *report = NULL;
    nk_chain *c = NULL;
    nk_vocab *v = NULL;
    struct nk_error err;
    int code, rc = nk_cluster_vocab_open(&v, l->cluster, &err);

    if (!rc)
        rc = nk_chain_open(&c, l->cluster, NULL, &err);
    if (!rc)
        rc = nk_chain_check(c, CHECK_MS, &report, &err);
    if (!rc && !report->ok) {
        err = report->err;
        rc = err.code;
    }
    free(report);
    if (!rc && s)
        code = serve_until_end(s, g->opts.deterministic, l, c, v);
    else {
        struct nk_route route = { .chain = c, .local = l };

        code = rc ? nk_cli_report(&err) : nk_generate_run(g, &route, v);
        nk_route_close(&route);
    }
    nk_vocab_close(v);
    return code;
}

/* s: NULL when there is something to generate. */
static int up(struct nk_generate *g, const struct nk_serve *s, struct nk_local_opts *o)
{
    struct nk_local_files *files = NULL;
    struct nk_local *l = NULL;
    char *path = NULL;
    struct nk_error err;
    int code, rc = nk_generate_prepare(g, false, &err);

    if (!rc && s)
        rc = nk_serve_check(s, &err);
    if (!rc)
        rc = nk_model_source(&path, o->model_path, &err);
    if (!rc)
        o->model_path = path;
    if (!rc)
        rc = nk_local_files_make(&files, o, &err);
    /* Until here Ctrl-C ends it at once: there is nothing to end before. */
    nk_interrupt_init();
    if (!rc)
        rc = nk_local_start(&l, files, o, &err);
    if (!rc)
        code = use(g, s, l);
    else
        code = nk_interrupt_signal() ? nk_interrupt_exit_code(nk_interrupt_signal())
                                     : nk_cli_report(&err);
    nk_local_stop(l);
    nk_local_files_free(files);
    free(path);
    nk_generate_release(g);
    return nk_generate_exit(code);
}

int nk_cmd_up(int argc, char **argv)
{
    struct nk_generate g = NK_GENERATE_INIT;
    struct nk_serve s = nk_serve_default();
    int64_t n_workers = 2, ctx = 0, sequences = NK_SEQUENCES, threads = 0;
    const char *layers = NULL, *device = NULL, *dtype = "f32",
               *verify = nk_slice_verify_text(NK_VERIFY_ONCE);
    struct nk_local_opts o = { .cache = NK_CACHE_ARGS_INIT };
    const struct nk_arg args[] = {
        NK_OPT_INT("workers", 'w', &n_workers, "K", 1, NK_CLUSTER_WORKERS_MAX,
                   "processes, each with a share of the layers"),
        NK_OPT_STRING("layers", 0, &layers, "RANGES",
                      "these shares, e.g. 0-14,14-28, instead of balanced ones"),
        NK_OPT_STRING("device", 'd', &device, "NAME",
                      "where the workers compute: CPU, Vulkan0, CUDA0, ..."),
        NK_OPT_INT("ctx", 0, &ctx, "N", 1, 1 << 30,
                   "KV tokens of each worker, shared by its sessions; else the model's context"),
        NK_OPT_INT("sequences", 0, &sequences, "N", 1, 4096, "sessions at once"),
        NK_OPT_INT("threads", 0, &threads, "N", 1, 1024,
                   "of each worker; else all cores, and they take turns"),
        NK_OPT_STRING("dtype", 0, &dtype, "f32|f16", "of the rows between workers; f32 is exact"),
        NK_OPT_STRING(
            "verify", 0, &verify, "always|once|never",
            "compare the slices in the cache with their own digests, and cut damaged ones "
            "again; once: only those that were changed since"),
        NK_OPT_FLAG("mmap", 0, &o.mmap,
                    "on a CPU: leave the weights in the slices' mapping: slow where there is too "
                    "little memory, and not refused"),
        NK_CACHE_ARGS(o.cache),
        NK_GENERATE_ARGS(g),
        NK_SERVE_ARGS(s),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "up MODEL.gguf [--workers K] [--prompt TEXT | --file FILE | --chat | --listen "
                 "HOST:PORT] ...",
        .summary =
            "Runs a model over several worker processes on this machine: cuts it into "
            "slices (kept in $XDG_CACHE_HOME/nakshatra, else ~/.cache/nakshatra; nakshatra "
            "cache lists and empties it), starts the workers, checks them, and generates "
            "from the prompt, or converses. Without a prompt it serves the HTTP APIs and the page, "
            "as nakshatra serve does. Ctrl-C ends everything it started. " NK_MODEL_SOURCE_HELP,
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct nk_error err;
    int first, exit_code;
    bool serve;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    s.stall_ms = g.gen.stall_ms;
    g.chat_template = g.chat ? s.chat_template : NULL;
    serve = !g.prompt && !g.file && !g.chat;
    o = (struct nk_local_opts){
        .model_path = argv[first],
        .n_workers = (int)n_workers,
        .layers = layers,
        .device = device,
        .n_ctx = (int)ctx,
        .n_sequences = (int)sequences,
        .n_threads = (int)threads,
        .cache = o.cache,
        .mmap = o.mmap,
        .f16 = !strcmp(dtype, "f16"),
        .deterministic = g.gen.deterministic,
    };
    if (!o.f16 && strcmp(dtype, "f32")) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "--dtype: '%s' is not known; f32 and f16 are",
                dtype);
        return nk_cli_report(&err);
    }
    if (nk_wrap(nk_slice_verify_parse(verify, &o.verify, &err), &err, "--verify") ||
        nk_cache_args_check(&o.cache, &err))
        return nk_cli_report(&err);
    nk_vocab_global_init();
    return up(&g, serve ? &s : NULL, &o);
}
