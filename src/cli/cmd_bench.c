/* nakshatra bench SUBCOMMAND ...: the figures, and what is needed to take them. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "bench/load.h"
#include "bench/machine.h"
#include "bench/ping.h"
#include "bench/report.h"
#include "bench/run.h"
#include "bench/synth.h"
#include "bench/table.h"

int nk_cmd_bench(int argc, char **argv);

/* -1: not given. */
static void copy_int(int *dest, int64_t value)
{
    if (value >= 0)
        *dest = (int)value;
}

static int cmd_synth(int argc, char **argv)
{
    const char *shape_name = NULL, *out = NULL, *type = NULL, *embd_type = NULL;
    int64_t layers = -1, width = -1, ff = -1, heads = -1, kv_heads = -1, vocab = -1, ctx = -1,
            experts = -1, used = -1;
    int64_t seed = 1;
    bool untied = false, no_rope_freqs = false, force = false;
    /* clang-format off */
    const struct nk_arg args[] = {
        { "shape", 0, NK_ARG_STRING, &shape_name, "NAME", "llama-1b (1.2 B parameters; the default), tiny (0.15 B), moe (0.5 B, 8 experts)", 0, 0 },
        { "layers", 0, NK_ARG_INT, &layers, "N", "layers; this and the next change the shape", 1, 1024 },
        { "width", 0, NK_ARG_INT, &width, "N", "floats per row, a multiple of 32 (of 256 for K-quants)", 32, 65536 },
        { "ff", 0, NK_ARG_INT, &ff, "N", "feed-forward size (of one expert where there are experts)", 32, 262144 },
        { "heads", 0, NK_ARG_INT, &heads, "N", "attention heads", 1, 1024 },
        { "kv-heads", 0, NK_ARG_INT, &kv_heads, "N", "heads of keys and values", 1, 1024 },
        { "vocab", 0, NK_ARG_INT, &vocab, "N", "tokens in the vocabulary", 1024, 1048576 },
        { "ctx", 0, NK_ARG_INT, &ctx, "N", "the context length that the model states", 16, 16777216 },
        { "experts", 0, NK_ARG_INT, &experts, "N", "experts per layer; 0: none", 0, 256 },
        { "experts-used", 0, NK_ARG_INT, &used, "N", "experts that a token uses", 0, 256 },
        { "type", 0, NK_ARG_STRING, &type, "TYPE", "type of the layers' matrices: Q4_K, Q8_0, F16, ...", 0, 0 },
        { "embedding-type", 0, NK_ARG_STRING, &embd_type, "TYPE", "type of the embedding (Q6_K with K-quants, else as --type)", 0, 0 },
        { "untied", 0, NK_ARG_FLAG, &untied, NULL, "an output matrix of its own, not the embedding", 0, 0 },
        { "no-rope-freqs", 0, NK_ARG_FLAG, &no_rope_freqs, NULL, "without Llama 3's rope_freqs tensor", 0, 0 },
        { "seed", 0, NK_ARG_INT, &seed, "N", "the same seed and shape give the same bytes (1)", 0, 9007199254740992.0 },
        { "out", 'o', NK_ARG_STRING, &out, "FILE", "where to", 0, 0 },
        { "force", 'f', NK_ARG_FLAG, &force, NULL, "replace FILE where it is there already", 0, 0 },
        { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 },
    };
    /* clang-format on */
    const struct nk_command cmd = {
        "bench synth [--shape NAME] [--layers N ...] [--type TYPE] --out FILE.gguf",
        "Writes a model of the given shape and quantisation with random weights. It loads in any "
        "program that runs GGUF,\n"
        "computes at the speed of a real model of that shape, and generates noise.",
        args, 0, 0
    };
    struct nk_synth_shape shape;
    struct nk_synth_result result;
    struct nk_error err;
    uint64_t start_ns = nk_now_ns();
    char size[24], layer[24];
    int first, exit_code, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_synth_preset(shape_name ? shape_name : "llama-1b", &shape, &err);
    if (rc)
        return nk_cli_report(&err);
    if (!out) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "bench synth: --out FILE is missing");
        return nk_cli_report(&err);
    }
    if (!force && access(out, F_OK) == 0) {
        nk_fail(&err, NK_E_EXISTS, "exists", "%s is there already; --force replaces it", out);
        return nk_cli_report(&err);
    }
    if (layers >= 0 || width >= 0 || ff >= 0 || heads >= 0 || kv_heads >= 0 || vocab >= 0 ||
        experts >= 0)
        shape.name = "custom";
    copy_int(&shape.n_layers, layers);
    copy_int(&shape.n_embd, width);
    copy_int(&shape.n_ff, ff);
    copy_int(&shape.n_head, heads);
    copy_int(&shape.n_head_kv, kv_heads);
    copy_int(&shape.n_vocab, vocab);
    copy_int(&shape.n_ctx, ctx);
    copy_int(&shape.n_expert, experts);
    copy_int(&shape.n_expert_used, used);
    if (experts == 0 && used < 0)
        shape.n_expert_used = 0;
    shape.untied = untied;
    shape.no_rope_freqs = no_rope_freqs;
    shape.seed = (uint64_t)seed;
    if (type) {
        shape.type = type;
        shape.embd_type = NULL;
    }
    if (embd_type)
        shape.embd_type = embd_type;
    rc = nk_synth_write(out, &shape, &result, &err);
    if (rc)
        return nk_cli_report(&err);
    printf("%s: %d layers of %s, %.2f B parameters", out, shape.n_layers,
           nk_size_format(layer, result.weights_bytes_layer), (double)result.n_params / 1e9);
    if (result.n_params_active != result.n_params)
        printf(" (%.2f B per token)", (double)result.n_params_active / 1e9);
    printf(", %s in %.1f s\n", nk_size_format(size, result.file_bytes),
           (double)(nk_now_ns() - start_ns) / 1e9);
    return NK_EXIT_OK;
}

/* ---- run ---- */

enum { PAGE_BYTES_MAX = 4 << 20, CSV_NAME_MAX = 4096 };

/* Writes the page that belongs to a table: to path, with its plots in the folder "benchmarks" beside it. */
static int write_page(const struct nk_table *t, const char *path, struct nk_error *err)
{
    struct nk_buf page = NK_BUF_INIT(PAGE_BYTES_MAX);
    const char *slash = strrchr(path, '/');
    char dir[CSV_NAME_MAX];
    struct nk_report_opts opts = { .plot_dir = dir, .plot_link = "benchmarks" };
    int rc;

    snprintf(dir, sizeof dir, "%.*sbenchmarks", slash ? (int)(slash - path + 1) : 0, path);
    rc = nk_report_format(t, &opts, &page, err);
    if (!rc)
        rc = nk_file_write(path, nk_buf_str(&page), page.size, err);
    nk_buf_release(&page);
    return rc;
}

/* The model to measure: --model, or a preset that is made in the work folder when it is not there. */
static int find_model(const char *shape_name, const char *work_dir, char *path, size_t size,
                      char *name, size_t name_size, struct nk_error *err)
{
    struct nk_synth_shape shape;
    int rc = nk_synth_preset(shape_name, &shape, err);

    if (rc)
        return rc;
    snprintf(path, size, "%s/%s.gguf", work_dir, shape_name);
    snprintf(name, name_size, "synthetic %s, %s", shape_name, shape.type);
    if (access(path, F_OK) == 0)
        return 0;
    rc = nk_dir_make(work_dir, err);
    return rc ? rc : nk_synth_write(path, &shape, NULL, err);
}

static int cmd_run(int argc, char **argv)
{
    const char *shape = "llama-1b", *model = NULL, *out = "bench-out", *csv = NULL, *page = NULL,
               *figures = "table", *places = NULL;
    const char *systems = "ours,whole,rpc,ping,cold,serve,chain,alone", *cpus = NULL,
               *commit = "unknown", *device = "CPU", *real_model = "models/kjv-tiny.gguf";
    int64_t runs = 5, retries = 3, threads = 0;
    bool quick = false;
    /* clang-format off */
    const struct nk_arg args[] = {
        { "shape", 0, NK_ARG_STRING, &shape, "NAME", "the synthetic model: llama-1b (default), tiny, moe", 0, 0 },
        { "model", 'm', NK_ARG_STRING, &model, "FILE", "measure this GGUF instead", 0, 0 },
        { "figures", 0, NK_ARG_STRING, &figures, "LIST", "names and groups: table (default), hop, gateway, network, wire, cache, curves, all, decode-1, ...", 0, 0 },
        { "places", 0, NK_ARG_STRING, &places, "LIST", "of curves, only these: 4096,8192 (all)", 0, 0 },
        { "systems", 0, NK_ARG_STRING, &systems, "LIST", "of ours,whole,rpc,ping,cold,serve,chain,alone (all)", 0, 0 },
        { "real-model", 0, NK_ARG_STRING, &real_model, "FILE", "a trained one, for what f16 rows cost (models/kjv-tiny.gguf)", 0, 0 },
        { "runs", 'r', NK_ARG_INT, &runs, "N", "that count, of each figure and system (5)", 1, 1000 },
        { "retries", 0, NK_ARG_INT, &retries, "N", "how often a noisy run is repeated (3)", 0, 1000 },
        { "threads", 't', NK_ARG_INT, &threads, "N", "cores to use in all (those there are)", 1, 1024 },
        { "cpus", 0, NK_ARG_STRING, &cpus, "LIST", "run everything on these cores: 0-3,6", 0, 0 },
        { "device", 'd', NK_ARG_STRING, &device, "NAME", "where our workers compute (CPU); peers stay on the CPU", 0, 0 },
        { "quick", 0, NK_ARG_FLAG, &quick, NULL, "fewer tokens and places: a look, not a figure to publish", 0, 0 },
        { "out", 'o', NK_ARG_STRING, &out, "DIR", "models, logs and tables go here (bench-out)", 0, 0 },
        { "csv", 0, NK_ARG_STRING, &csv, "FILE", "rows are appended to it (DIR/bench.csv)", 0, 0 },
        { "page", 0, NK_ARG_STRING, &page, "FILE", "write the page too: docs/benchmarks.md", 0, 0 },
        { "commit", 0, NK_ARG_STRING, &commit, "NAME", "what was measured, for the rows", 0, 0 },
        { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 },
    };
    /* clang-format on */
    const struct nk_command cmd = {
        "bench run [--shape NAME | --model FILE] [--figures LIST] [options]",
        "Measures Nakshatra and llama.cpp side by side and keeps every run in a CSV file. Leave "
        "the machine alone meanwhile:\n"
        "runs while others compute are set aside and repeated.",
        args, 0, 0
    };
    char path[CSV_NAME_MAX], name[64], csv_path[CSV_NAME_MAX], *self = NULL;
    struct nk_table t = NK_TABLE_INIT, all = NK_TABLE_INIT;
    struct nk_bench_opts opts;
    struct nk_error err;
    int first, exit_code, n_failed = 0, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = cpus ? nk_machine_pin(cpus, &err) : 0;
    if (!rc)
        rc = nk_process_self(&self, &err);
    if (!rc && model) {
        const char *slash = strrchr(model, '/');

        snprintf(path, sizeof path, "%s", model);
        snprintf(name, sizeof name, "%.63s", slash ? slash + 1 : model);
    } else if (!rc) {
        rc = find_model(shape, out, path, sizeof path, name, sizeof name, &err);
    }
    snprintf(csv_path, sizeof csv_path, csv ? "%s" : "%s/bench.csv", csv ? csv : out);
    opts = (struct nk_bench_opts){ .model = path,
                                   .model_name = name,
                                   .work_dir = out,
                                   .csv = csv_path,
                                   .self = self,
                                   .device = device,
                                   .real_model = real_model,
                                   .commit = commit,
                                   .figures = figures,
                                   .systems = systems,
                                   .places = places,
                                   .n_runs = (int)runs,
                                   .n_retries = (int)retries,
                                   .n_threads = threads ? (int)threads : nk_cpu_count(),
                                   .quick = quick };
    if (!rc)
        rc = nk_bench_run(&opts, &t, &err);
    if (!rc && page) /* from the whole file: other runs may have added to it */
        rc = nk_table_read(&all, csv_path, &err);
    if (!rc && page)
        rc = write_page(&all, page, &err);
    for (size_t i = 0; i < t.n; i++)
        n_failed += t.rows[i].status == NK_ROW_FAILED;
    if (!rc)
        printf("%zu runs, %d failed: %s\n", t.n, n_failed, csv_path);
    nk_table_release(&t);
    nk_table_release(&all);
    free(self);
    return rc ? nk_cli_report(&err) : n_failed ? NK_EXIT_FAILED : NK_EXIT_OK;
}

/* ---- report, compare, load ---- */

static int cmd_report(int argc, char **argv)
{
    const char *out = "docs/benchmarks.md";
    const struct nk_arg args[] = {
        { "page", 'p', NK_ARG_STRING, &out, "FILE", "the page (docs/benchmarks.md)", 0, 0 },
        { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 },
    };
    const struct nk_command cmd = { "bench report FILE.csv [--page FILE.md]",
                                    "Makes the page with its plots from a table that was kept.",
                                    args, 1, 1 };
    struct nk_table t = NK_TABLE_INIT;
    struct nk_error err;
    int first, exit_code, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_table_read(&t, argv[first], &err);
    if (!rc)
        rc = write_page(&t, out, &err);
    nk_table_release(&t);
    return rc ? nk_cli_report(&err) : NK_EXIT_OK;
}

static int cmd_compare(int argc, char **argv)
{
    const struct nk_arg args[] = { { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 } };
    const struct nk_command cmd = { "bench compare BEFORE.csv AFTER.csv",
                                    "Says what became better, what became worse and what is within "
                                    "the noise of the runs. Exit code 1 when something\n"
                                    "became worse.",
                                    args, 2, 2 };
    struct nk_table a = NK_TABLE_INIT, b = NK_TABLE_INIT;
    struct nk_buf text = NK_BUF_INIT(PAGE_BYTES_MAX);
    struct nk_error err;
    int first, exit_code, n_worse = 0, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_table_read(&a, argv[first], &err);
    if (!rc)
        rc = nk_table_read(&b, argv[first + 1], &err);
    if (!rc)
        rc = nk_table_compare(&a, &b, &text, &n_worse, &err);
    if (!rc)
        fputs(nk_buf_str(&text), stdout);
    nk_table_release(&a);
    nk_table_release(&b);
    nk_buf_release(&text);
    return rc ? nk_cli_report(&err) : n_worse ? NK_EXIT_FAILED : NK_EXIT_OK;
}

static void print_ready(void *arg)
{
    (void)arg;
    printf("ready\n");
    fflush(stdout);
}

static int cmd_load(int argc, char **argv)
{
    int64_t threads = 1, ctx = 4096;
    const struct nk_arg args[] = {
        { "threads", 't', NK_ARG_INT, &threads, "N", "threads (1)", 1, 1024 },
        { "ctx", 'c', NK_ARG_INT, &ctx, "N", "KV cells (4096)", 1, 16777216 },
        { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 },
    };
    const struct nk_command cmd = {
        "bench load FILE.gguf",
        "Loads a model or slice with stock llama.cpp on the CPU, prints 'ready' and ends: what a\n"
        "worker's start is compared with.",
        args, 1, 1
    };
    struct nk_error err;
    int first, exit_code, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_load_plain(argv[first], (int)ctx, (int)threads, print_ready, NULL, &err);
    return rc ? nk_cli_report(&err) : NK_EXIT_OK;
}

static void print_port(int port, void *arg)
{
    (void)arg;
    printf("ready %d\n", port);
    fflush(stdout);
}

static int cmd_echo(int argc, char **argv)
{
    const struct nk_arg args[] = { { NULL, 0, NK_ARG_FLAG, NULL, NULL, NULL, 0, 0 } };
    const struct nk_command cmd = { "bench echo",
                                    "Answers gRPC messages with one of a token's size until it is "
                                    "ended: the other side of the\n"
                                    "ping-pong that a hop is compared with. Prints 'ready PORT'.",
                                    args, 0, 0 };
    struct nk_error err;
    int first, exit_code, rc = nk_cli_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    nk_ping_serve(print_port, NULL, &err);
    return nk_cli_report(&err);
}

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} subcommands[] = {
    { "run", "measure ours and the peers, side by side", cmd_run },
    { "report", "make the page and the plots from a table", cmd_report },
    { "compare", "two tables: what became better, what worse", cmd_compare },
    { "synth", "write a model of any shape with random weights", cmd_synth },
    { "load", "load a file with stock llama.cpp (for comparing starts)", cmd_load },
    { "echo", "answer gRPC messages (for comparing a hop)", cmd_echo },
};
static const int n_subcommands = sizeof subcommands / sizeof subcommands[0];

static void print_help(FILE *out)
{
    fprintf(
        out,
        "usage: nakshatra bench SUBCOMMAND ...\n\nMeasures, and compares what was measured.\n\n");
    for (int i = 0; i < n_subcommands; i++)
        fprintf(out, "  %-8s %s\n", subcommands[i].name, subcommands[i].summary);
    fprintf(out, "\nnakshatra bench SUBCOMMAND --help tells more.\n");
}

int nk_cmd_bench(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return NK_EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_help(stdout);
        return NK_EXIT_OK;
    }
    for (int i = 0; i < n_subcommands; i++)
        if (!strcmp(argv[1], subcommands[i].name))
            return subcommands[i].run(argc - 1, argv + 1);
    fprintf(stderr,
            "nakshatra: '%s' is no subcommand of bench; nakshatra bench --help lists them\n",
            argv[1]);
    return NK_EXIT_USAGE;
}
