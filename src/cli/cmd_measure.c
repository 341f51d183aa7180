/* nakshatra measure: what this machine could do for a model. */
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/visible.h"
#include "cli/cache_args.h"
#include "cli/cli.h"
#include "cli/model_source.h"
#include "cli/spinning.h"
#include "measure/measure.h"
#include "pieces/catalogue.h"

int nk_cmd_measure(int argc, char **argv);

enum { JSON_BYTES_MAX = 1 << 20 };

static void print_json(const struct nk_measured *r, struct nk_error *err, int *rc)
{
    struct nk_buf text = NK_BUF_INIT(JSON_BYTES_MAX);

    *rc = nk_measured_format(r, &text, err);
    if (!*rc)
        puts(text.data);
    nk_buf_release(&text);
}

static void print_time(const char *what, const double ms[NK_RUN_KINDS])
{
    printf("  %-22s", what);
    for (int k = 0; k < NK_RUN_KINDS; k++)
        printf(" %10.3f", ms[k]);
    putchar('\n');
}

/* Layers that take equally long in one row each. */
static void print_layers(const struct nk_measured *r)
{
    for (int begin = 0, end; begin < r->n_layer; begin = end) {
        char what[32];

        end = begin + 1;
        while (end < r->n_layer && r->layers[end].ms[0] == r->layers[begin].ms[0] &&
               r->layers[end].weights_bytes == r->layers[begin].weights_bytes)
            end++;
        snprintf(what, sizeof what, end - begin > 1 ? "layers %d-%d, each" : "layer %d", begin,
                 end);
        print_time(what, r->layers[begin].ms);
    }
}

static void print_table(const struct nk_measured *r, const struct nk_model_info *in)
{
    char a[24], b[24], line[1024], quoted[4 * sizeof line];
    double all[NK_RUN_KINDS];
    uint64_t kv = 0, weights = r->other_bytes + r->embd_bytes;
    struct nk_range whole = { 0, r->n_layer };

    for (int k = 0; k < NK_RUN_KINDS; k++)
        all[k] = nk_measured_stage_ms(r, whole, (enum nk_measure_run)k);
    for (int i = 0; i < r->n_layer; i++) {
        kv += r->layers[i].kv_bytes;
        weights += r->layers[i].weights_bytes;
    }
    weights += in->tied_embeddings ? 0 : r->head_bytes;
    snprintf(line, sizeof line, "%.500s on %s (%s; %d of %d cores)",
             in->name[0] ? in->name : in->path, r->device, r->device_description, r->n_threads,
             r->n_cores);
    printf("%s%s\n", nk_visible_line(quoted, sizeof quoted, line),
           r->cached ? ", as measured before" : "");
    printf("  %-22s %10d %10d %10d\n", "ms per run of rows", r->rows[0], r->rows[1], r->rows[2]);
    print_time("every run", r->fixed_ms);
    print_time("embedding", r->embd_ms);
    print_layers(r);
    print_time("head", r->head_ms);
    print_time("the whole model", all);
    printf("Alone it would make %.1f tokens per second of one stream, %.1f of %d, and read %.0f of "
           "a prompt.\n",
           1e3 / all[NK_RUN_ONE], 1e3 * r->rows[NK_RUN_EIGHT] / all[NK_RUN_EIGHT],
           r->rows[NK_RUN_EIGHT], 1e3 * r->rows[NK_RUN_CHUNK] / all[NK_RUN_CHUNK]);
    printf("  %-22s %s free of %s\n", "memory of the device",
           nk_size_format(a, r->device_free_bytes), nk_size_format(b, r->device_total_bytes));
    printf("  %-22s %s\n", "all weights", nk_size_format(a, weights));
    printf("  %-22s %s for %d tokens and %d sequences\n", "all caches", nk_size_format(a, kv),
           r->n_ctx, r->n_sequences);
    printf("  %-22s %s, %s with the head\n", "buffers of a stage",
           nk_size_format(a, r->compute_bytes + r->compute_host_bytes),
           nk_size_format(b, r->head_compute_bytes + r->head_compute_host_bytes));
    printf("  %-22s %s\n", "a process", nk_size_format(a, r->process_bytes));
}

int nk_cmd_measure(int argc, char **argv)
{
    struct nk_measure_opts opts = nk_measure_opts_default();
    struct {
        const char *device, *catalogue;
        int64_t ctx, sequences, batch, chunk, threads, threads_batch, budget_ms;
        struct nk_cache_args cache;
        bool deterministic, again, json;
    } o = { .ctx = opts.stage.n_ctx,
            .sequences = NK_SEQUENCES,
            .batch = opts.stage.n_batch,
            .budget_ms = opts.budget_ms,
            .cache = NK_CACHE_ARGS_INIT };
    const struct nk_arg args[] = {
        NK_OPT_STRING("catalogue", 0, &o.catalogue, "ID",
                      "instead of MODEL: a model that the cache folder has the catalogue of"),
        NK_OPT_STRING(
            "device", 'd', &o.device, "NAME",
            "CPU, Vulkan0, CUDA0, ...; else the first GPU, or the CPU where there is none"),
        NK_OPT_INT("ctx", 'c', &o.ctx, "N", 0, 1 << 24,
                   "KV tokens, shared by all sequences; 0: the model's context"),
        NK_OPT_INT("sequences", 's', &o.sequences, "N", 1, 256, "sessions at once"),
        NK_OPT_INT("batch", 'b', &o.batch, "N", 1, 8192, "most rows of one run"),
        NK_OPT_INT("chunk", 0, &o.chunk, "N", 1, 8192,
                   "rows of a prefill chunk; else 64 on the CPU, 256 elsewhere"),
        NK_OPT_INT("threads", 't', &o.threads, "N", 1, 1024, "for decode; else all cores"),
        NK_OPT_INT("threads-batch", 0, &o.threads_batch, "N", 1, 1024,
                   "for prefill; else as --threads"),
        NK_OPT_FLAG("deterministic", 0, &o.deterministic,
                    "sessions do not touch each other; each has a share of --ctx"),
        NK_CACHE_ARGS(o.cache),
        NK_OPT_INT("budget-ms", 0, &o.budget_ms, "N", 1, 600000, "about how long it may take"),
        NK_OPT_FLAG("again", 0, &o.again, "although it was measured before"),
        NK_OPT_FLAG("json", 0, &o.json, "all of it as one JSON object"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "measure (MODEL.gguf | --catalogue ID) [--device NAME] [--ctx N] [--sequences N] "
                 "[--threads N] "
                 "[--again] [--json]",
        .summary = "Measures what this machine could do for a model: time per layer, for the head "
                   "and for an embedding, and the memory that a worker would need. Only the "
                   "model's head is read: layers of its shapes and types are made with random "
                   "weights. The options are those of a worker. Kept in the cache folder until "
                   "hardware, build, model or options change.",
        .args = args,
        .n_max = 1,
    };
    struct nk_measured r = { 0 };
    struct nk_error err;
    char *dir = NULL, *path = NULL;
    nk_catalogue *catalogue = NULL;
    nk_model *file = NULL;
    const nk_model *m = NULL;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!o.catalogue == (first == argc)) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                o.catalogue ? "MODEL and --catalogue were both given; one of them says which model"
                            : "which model is missing: MODEL.gguf, or --catalogue ID");
        return nk_cli_report(&err);
    }
    if (nk_cache_args_check(&o.cache, &err))
        return nk_cli_report(&err);
    nk_cli_bound_spinning(argv);
    opts.stage.device = o.device;
    opts.stage.n_ctx = (int)o.ctx;
    opts.stage.n_seq_max = (int)o.sequences;
    opts.stage.n_batch = (int)o.batch;
    opts.stage.n_threads = (int)o.threads;
    opts.stage.n_threads_batch = (int)o.threads_batch;
    opts.stage.weights = NK_WEIGHTS_AUTO;
    opts.stage.cache_type_k = o.cache.type_k;
    opts.stage.cache_type_v = o.cache.type_v;
    opts.stage.no_flash_attn = o.cache.no_flash_attn;
    opts.stage.separate_kv = o.deterministic;
    opts.chunk = (int)o.chunk;
    opts.again = o.again;
    opts.budget_ms = (uint32_t)o.budget_ms;
    if (o.catalogue) {
        rc = nk_catalogue_find(&catalogue, o.catalogue, &err);
        m = rc ? NULL : nk_catalogue_model(catalogue);
    } else {
        rc = nk_model_source(&path, argv[first], &err);
        if (!rc)
            rc = nk_model_open(&file, path, &err);
        m = file;
    }
    if (!rc && !nk_cache_dir(&dir, "measured", NULL)) /* without a home nothing is kept */
        opts.cache_dir = dir;
    if (!rc) {
        nk_stage_global_init(o.device);
        rc = nk_measure(m, &opts, &r, &err);
    }
    if (!rc && o.json)
        print_json(&r, &err, &rc);
    else if (!rc)
        print_table(&r, nk_model_info(m));
    nk_measured_release(&r);
    nk_model_close(file);
    nk_catalogue_unref(catalogue);
    free(dir);
    free(path);
    return rc ? nk_cli_report(&err) : nk_cli_flush(NK_EXIT_OK);
}
