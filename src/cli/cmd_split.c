/* nakshatra split: a model into slices, a vocabulary file and a manifest. */
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>

#include "slice/slice.h"

int nk_cmd_split(int argc, char **argv);

static int split(const char *path, int64_t into, const char *layers, const char *out,
                 struct nk_error *err)
{
    struct nk_range ranges[NK_LAYERS_MAX];
    struct nk_manifest *manifest = NULL;
    nk_model *m = NULL;
    int n = 0, rc;

    rc = nk_model_open(&m, path, err);
    if (!rc && layers)
        rc = nk_ranges_parse(layers, ranges, NK_LAYERS_MAX, &n, err);
    else if (!rc && !(rc = nk_ranges_balance(m, (int)into, ranges, err)))
        n = (int)into;
    if (!rc)
        rc = nk_split(m, ranges, n, out, &manifest, err);
    for (int i = 0; !rc && i < manifest->n_files; i++) {
        const struct nk_manifest_file *f = &manifest->files[i];
        char size[24];

        printf("%s/%s  %s\n", out, f->name, nk_size_format(size, f->size_bytes));
    }
    free(manifest);
    nk_model_close(m);
    return rc;
}

int nk_cmd_split(int argc, char **argv)
{
    const char *layers = NULL, *out = NULL;
    int64_t into = 0;
    const struct nk_arg args[] = {
        { .name = "into",
          .letter = 'k',
          .kind = NK_ARG_INT,
          .dest = &into,
          .value_name = "K",
          .min = 1,
          .max = NK_LAYERS_MAX,
          .help = "K slices, their bytes balanced" },
        { .name = "layers",
          .letter = 'l',
          .kind = NK_ARG_STRING,
          .dest = &layers,
          .value_name = "RANGES",
          .help = "these slices, e.g. 0-14,14-28 (each up to, not including, its last number)" },
        { .name = "out",
          .letter = 'o',
          .kind = NK_ARG_STRING,
          .dest = &out,
          .value_name = "DIR",
          .help = "the folder to write to; made if missing" },
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "split MODEL.gguf (--into K | --layers RANGES) --out DIR",
        .summary = "Cuts a model into slices that workers load: NAME.000-014.gguf ..., "
                   "NAME.vocab.gguf (metadata and\n"
                   "tokenizer) and manifest.json (sizes and SHA-256 of each). Run again, it redoes "
                   "only what is missing or\n"
                   "damaged.",
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct nk_error err;
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
    rc = split(argv[first], into, layers, out, &err);
    return rc ? nk_cli_report(&err) : NK_EXIT_OK;
}
