/* nakshatra-bench run: measures. */
#include "bench/command.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/file.h"
#include "base/process.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "bench/run.h"
#include "bench/synth.h"

/* A synthetic model of that shape, made in the work folder where it is not there. */
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

/* This program, and the one that it measures, which lies beside it. Owned by the caller. */
static int find_programs(char **self, char **nakshatra, struct nk_error *err)
{
    char path[PATH_MAX];
    int rc = nk_process_self(self, err);

    if (rc)
        return rc;
    snprintf(path, sizeof path, "%.*s/nakshatra", (int)(strrchr(*self, '/') - *self), *self);
    if (access(path, X_OK) != 0)
        return nk_fail(err, NK_E_NOT_FOUND, "no_program",
                       "%s is not there, and it is what is measured: `make build` makes it", path);
    *nakshatra = strdup(path);
    return *nakshatra ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

int nk_cmd_run(int argc, char **argv)
{
    const char *shape = "llama-1b", *model = NULL, *out = "bench-out", *csv = NULL, *page = NULL,
               *figures = "table", *places = NULL;
    const char *systems = "ours,whole,rpc,ping,cold,serve,chain,alone", *cpus = NULL,
               *commit = "unknown", *device = "CPU", *real_model = "models/kjv-tiny.gguf";
    int64_t runs = 5, retries = 3, threads = 0;
    bool quick = false;
    const struct nk_arg args[] = {
        NK_OPT_STRING("shape", 0, &shape, "NAME", "the synthetic model: llama-1b, tiny, moe"),
        NK_OPT_STRING("model", 'm', &model, "FILE", "measure this GGUF instead"),
        NK_OPT_STRING(
            "figures", 0, &figures, "LIST",
            "names and groups: table, hop, gateway, network, wire, cache, curves, all, ..."),
        NK_OPT_STRING("places", 0, &places, "LIST", "of curves, only these: 4096,8192 (all)"),
        NK_OPT_STRING("systems", 0, &systems, "LIST", "only these"),
        NK_OPT_STRING("real-model", 0, &real_model, "FILE",
                      "a trained one, for what f16 rows cost"),
        NK_OPT_INT("runs", 'r', &runs, "N", 1, 1000, "that count, of each figure and system"),
        NK_OPT_INT("retries", 0, &retries, "N", 0, 1000, "how often a noisy run is repeated"),
        NK_OPT_INT("threads", 't', &threads, "N", 1, 1024, "cores to use in all (those there are)"),
        NK_OPT_STRING("cpus", 0, &cpus, "LIST", "run everything on these cores: 0-3,6"),
        NK_OPT_STRING("device", 'd', &device, "NAME",
                      "where our workers compute; peers stay on the CPU"),
        NK_OPT_FLAG("quick", 0, &quick, "fewer tokens and places: a look, not a figure to publish"),
        NK_OPT_STRING("out", 'o', &out, "DIR", "models, logs and tables go here"),
        NK_OPT_STRING("csv", 0, &csv, "FILE", "rows are appended to it (DIR/bench.csv)"),
        NK_OPT_STRING("page", 0, &page, "FILE", "write the page too: docs/benchmarks.md"),
        NK_OPT_STRING("commit", 0, &commit, "NAME", "what was measured, for the rows"),
        { 0 },
    };
    const struct nk_command cmd = {
        "run [--shape NAME | --model FILE] [--figures LIST] [options]",
        "Measures Nakshatra and llama.cpp side by side and keeps every run in a CSV file. Leave "
        "the machine alone meanwhile:\n"
        "runs while others compute are set aside and repeated.",
        args, 0, 0
    };
    char path[PATH_MAX], name[64], csv_path[PATH_MAX], *self = NULL, *nakshatra = NULL;
    struct nk_table t = NK_TABLE_INIT, all = NK_TABLE_INIT;
    struct nk_bench_opts opts;
    struct nk_error err;
    int first, exit_code, n_failed = 0, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = cpus ? nk_machine_pin(cpus, &err) : 0;
    if (!rc)
        rc = find_programs(&self, &nakshatra, &err);
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
                                   .nakshatra = nakshatra,
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
        rc = nk_report_write(&all, csv_path, page, &err);
    for (size_t i = 0; i < t.n; i++)
        n_failed += t.rows[i].status == NK_ROW_FAILED;
    if (!rc)
        printf("%zu runs, %d failed: %s\n", t.n, n_failed, csv_path);
    nk_table_release(&t);
    nk_table_release(&all);
    free(self);
    free(nakshatra);
    return rc ? nk_command_report(&err) : n_failed ? NK_EXIT_FAILED : NK_EXIT_OK;
}
