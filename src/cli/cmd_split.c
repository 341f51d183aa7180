/* nakshatra split: a model into slices, a vocabulary file and a manifest. */
#include "cli/cli.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/interrupt.h"
#include "cli/model_source.h"
#include "slice/slice.h"
#include "stage/trial.h"

int nk_cmd_split(int argc, char **argv);

static volatile sig_atomic_t signal_seen;

static void on_signal(int sig)
{
    signal_seen = sig;
    nk_split_interrupt();
}

/* The first ^C ends it cleanly, temporary files removed; the second one at once. */
static void catch_signals(void)
{
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
}

static void print_files(const struct nk_manifest *manifest, const char *dir)
{
    for (int i = 0; i < manifest->n_files; i++) {
        const struct nk_manifest_file *f = &manifest->files[i];
        char size[24];

        printf("%s%s%s  %s%s\n", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", f->name,
               nk_size_format(size, f->size_bytes), f->kept ? "  (was there already)" : "");
    }
}

static int split(const char *path, int64_t into, const char *layers, const char *dir, bool no_trial,
                 struct nk_error *err)
{
    struct nk_range ranges[NK_LAYERS_MAX];
    struct nk_manifest *manifest = NULL;
    nk_model *m = NULL;
    int n = (int)into, rc;

    rc = nk_model_open(&m, path, err);
    if (!rc) {
        rc = layers ? nk_ranges_parse(layers, ranges, NK_LAYERS_MAX, &n, err)
                    : nk_ranges_balance(m, n, ranges, err);
        if (!rc)
            rc = nk_ranges_check(m, ranges, n, false, err);
        if (!rc && !no_trial)
            rc = nk_trial_ranges(m, ranges, n, err);
        nk_wrap(rc, err, "%s", path);
    }
    if (!rc)
        rc = nk_split(m, ranges, n, dir, &manifest, err);
    if (!rc)
        print_files(manifest, dir);
    else if (!strcmp(err->reason, "interrupted"))
        nk_fail(err, rc, "interrupted", "interrupted; the same command goes on from here");
    free(manifest);
    nk_model_close(m);
    return rc;
}

int nk_cmd_split(int argc, char **argv)
{
    const char *layers = NULL, *out = NULL;
    int64_t into = 0;
    bool no_trial = false;
    const struct nk_arg args[] = {
        NK_OPT_INT("into", 'k', &into, "K", 1, NK_LAYERS_MAX, "K slices, their bytes balanced"),
        NK_OPT_STRING("layers", 'l', &layers, "RANGES",
                      "these slices, e.g. 0-14,14-28 (each up to, not including, its last number)"),
        NK_OPT_STRING("out", 'o', &out, "DIR", "the folder to write to; made if missing"),
        NK_OPT_FLAG("no-trial", 0, &no_trial,
                    "without loading the slices once, which shows whether the llama.cpp of this "
                    "machine can run them (tried where the architecture was never compared, or "
                    "layers are of several kinds)"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "split MODEL.gguf (--into K | --layers RANGES) --out DIR",
        .summary =
            "Cuts a model into slices that workers load: NAME.000-014.gguf ..., "
            "NAME.vocab.gguf (metadata and tokenizer) and manifest.json (sizes and SHA-256 "
            "of each). Run again, it redoes only what is missing or damaged. " NK_MODEL_SOURCE_HELP,
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct nk_error err;
    char *path;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!into == !layers) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "give either --into or --layers");
        return nk_cli_report(&err);
    }
    if (!out) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "--out is missing: the folder to write to");
        return nk_cli_report(&err);
    }
    if (nk_model_source(&path, argv[first], &err)) /* until here a signal ends it at once */
        return nk_cli_report(&err);
    catch_signals();
    rc = split(path, into, layers, out, no_trial, &err);
    free(path);
    if (rc)
        exit_code = nk_cli_report(&err);
    return signal_seen && rc ? nk_interrupt_exit_code(signal_seen) : exit_code;
}
