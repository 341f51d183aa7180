/* nakshatra verify: is the chain of slices the model? How that is found out is in stage/verify.h
 * and stage/reference.h; here is which splits, and what is told. */
#include "cli/cli.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/cache_args.h"
#include "slice/slice.h"
#include "stage/stage.h"
#include "stage/verify.h"

int nk_cmd_verify(int argc, char **argv);

enum { SEQUENCES_MAX = NK_SCRIPT_SEQUENCES_MAX, STAGES_MAX = NK_VERIFY_STAGES_MAX };

struct options {
    const char *layers, *slices, *devices;
    int64_t into, n_tokens, n_steps, n_sequences, n_batch, n_threads;
    double bound;
    bool every_cut, json;
    struct nk_cache_args cache;
};

/* What is told in the end. */
struct outcome {
    json_t *splits; /* NULL: splits are printed as they come */
    bool ok;
    bool in_model;              /* an error was the whole model's, not a split's */
    struct nk_stage_info whole; /* of the whole model, once it was opened */
    uint64_t cache_bytes;       /* of its cache, as nk_model_need counts them */
};

/* What is verified, and with which of the options as the stage layer has them. */
struct job {
    const struct options *opts;
    nk_model *model;
    struct nk_verify_opts verify;
    const char *devices[STAGES_MAX];
    char device_list[1024];
};

/* ---- what is told ---- */

static bool passed(const struct options *o, const struct nk_verify_result *r)
{
    const struct nk_difference *d = &r->difference;

    if (d->n_not_finite)
        return false;
    return r->on_cpu ? d->n_identical == d->n_rows : d->worst_nmse <= o->bound;
}

static void format_ranges(char *out, size_t size, const struct nk_range *ranges, int n)
{
    size_t used = 0;

    out[0] = '\0';
    for (int i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%d-%d", i ? "," : "", ranges[i].begin,
                                 ranges[i].end);
}

static const char *verdict(const struct options *o, const struct nk_verify_result *r)
{
    const struct nk_difference *d = &r->difference;

    return d->n_not_finite               ? "not finite"
           : d->n_identical == d->n_rows ? "exact"
           : passed(o, r)                ? "within the bound"
                                         : "WRONG";
}

static void print_split(const struct options *o, const struct nk_verify_result *r,
                        const char *ranges)
{
    const struct nk_difference *d = &r->difference;

    printf("%-24s %-16s %d runs, %ld rows of logits: %ld bit-identical, %ld same top-1, worst "
           "nmse %.2g\n",
           ranges, verdict(o, r), r->n_runs, d->n_rows, d->n_identical, d->n_top1, d->worst_nmse);
    fflush(stdout);
}

static json_t *split_json(const struct options *o, const struct nk_verify_result *r,
                          const char *ranges)
{
    const struct nk_difference *d = &r->difference;
    json_t *devices = json_array();

    for (int i = 0; i < r->n_stages; i++)
        json_array_append_new(devices, json_string(r->devices[i]));
    return json_pack("{s:s, s:s, s:o, s:i, s:I, s:I, s:I, s:I, s:o, s:b, s:b}", "layers", ranges,
                     "result", verdict(o, r), "devices", devices, "runs", r->n_runs, "rows",
                     (json_int_t)d->n_rows, "identical", (json_int_t)d->n_identical, "top1",
                     (json_int_t)d->n_top1, "not_finite", (json_int_t)d->n_not_finite, "worst_nmse",
                     isfinite(d->worst_nmse) ? json_real(d->worst_nmse) : json_null(),
                     "bit_identical", d->n_identical == d->n_rows, "ok", passed(o, r));
}

/* One split, told. out->ok becomes false when it is not the model. A split that llama.cpp cannot
 * run is an error. */
static int verify_split(const struct job *j, nk_verify *v, const struct nk_range *ranges, int n,
                        struct outcome *out, struct nk_error *err)
{
    struct nk_verify_result r;
    char text[1024];
    int rc = nk_verify_split(v, ranges, n, &r, err);

    format_ranges(text, sizeof text, ranges, n);
    if (rc)
        return nk_wrap(rc, err, "layers %s", text);
    out->ok &= passed(j->opts, &r);
    if (out->splits)
        json_array_append_new(out->splits, split_json(j->opts, &r, text));
    else
        print_split(j->opts, &r, text);
    return 0;
}

static int verify_every_cut(const struct job *j, nk_verify *v, struct outcome *out,
                            struct nk_error *err)
{
    struct nk_range ranges[4];
    int n = 0, rc = 0;

    while (!rc && nk_ranges_next(j->model, ranges, &n))
        rc = verify_split(j, v, ranges, n, out, err);
    return rc;
}

/* ---- the command ---- */

/* 0 when there is a legal cut; else why the first one is not. */
static int check_any_cut(const struct job *j, struct nk_error *err)
{
    int n_layer = nk_model_info(j->model)->n_layer, n = 0;
    struct nk_range ranges[4], first[2] = { { 0, 1 }, { 1, n_layer } };

    if (n_layer < 2)
        return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                       "a model of one layer cannot be cut");
    if (nk_ranges_next(j->model, ranges, &n) && n == 2)
        return 0;
    return nk_ranges_check(j->model, first, 2, true, err);
}

static int check_options(const struct job *j, struct nk_error *err)
{
    const struct options *o = j->opts;
    const struct nk_model_info *mi = nk_model_info(j->model);
    int most = nk_script_length_max(&j->verify.script);

    if (mi->is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s holds layers %d-%d of %d: a whole model is wanted here", mi->path,
                       mi->layer_begin, mi->layer_end, mi->layer_count);
    if (mi->n_ctx_train > 0 && most > mi->n_ctx_train)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--tokens %lld and the steps after it need a context of %d; the model was "
                       "trained for %d",
                       (long long)o->n_tokens, most, mi->n_ctx_train);
    if (o->n_batch < o->n_sequences)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--batch %lld is less than --sequences %lld", (long long)o->n_batch,
                       (long long)o->n_sequences);
    return 0;
}

/* "CPU", or one for each stage: "Vulkan0,CPU". */
static int parse_devices(struct job *j, struct nk_error *err)
{
    char *save = NULL;
    int n = 0;

    if (snprintf(j->device_list, sizeof j->device_list, "%s", j->opts->devices) >=
        (int)sizeof j->device_list)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: too long");
    for (char *name = strtok_r(j->device_list, ",", &save); name;
         name = strtok_r(NULL, ",", &save)) {
        if (n == STAGES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: more than %d devices",
                           STAGES_MAX);
        j->devices[n++] = name;
    }
    if (!n)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: no device is named");
    j->verify.devices = j->devices;
    j->verify.n_devices = n;
    return 0;
}

/* The split of --layers, --into or --slices. */
static int choose_ranges(const struct job *j, const nk_verify *v, struct nk_range *ranges, int *n,
                         struct nk_error *err)
{
    const struct nk_range *slices = nk_verify_slices(v, n);
    int rc;

    if (slices) {
        memcpy(ranges, slices, (size_t)*n * sizeof *ranges);
        return 0;
    }
    if (j->opts->layers) {
        rc = nk_ranges_parse(j->opts->layers, ranges, STAGES_MAX, n, err);
        if (!rc)
            rc = nk_ranges_check(j->model, ranges, *n, true, err);
    } else {
        *n = (int)j->opts->into;
        rc = nk_ranges_balance(j->model, *n, ranges, err);
    }
    return nk_wrap(rc, err, "%s", nk_model_info(j->model)->path);
}

/* What its cache would be thought to take; conformance compares. */
static uint64_t count_cache(const struct job *j, const struct nk_stage_info *whole)
{
    struct nk_range all = { 0, nk_model_info(j->model)->n_layer };
    struct nk_stage_opts opts = j->verify.stage;
    struct nk_need_opts o;
    struct nk_need need;

    opts.n_ctx = whole->n_ctx;
    opts.n_seq_max = whole->n_seq_max;
    return nk_stage_memory(j->model, all, &opts, &o, &need, NULL) ? 0 : need.cache_bytes;
}

static int verify(const char *path, const struct options *opts, struct outcome *out,
                  struct nk_error *err)
{
    struct job j = { .opts = opts };
    struct nk_range ranges[STAGES_MAX];
    nk_verify *v = NULL;
    int n = 0, rc = nk_model_open(&j.model, path, err);

    j.verify.script = (struct nk_script){
        .n_tokens = (int)opts->n_tokens,
        .n_steps = (int)opts->n_steps,
        .n_sequences = (int)opts->n_sequences,
        .n_batch = (int)opts->n_batch,
    };
    j.verify.stage = nk_stage_opts_default();
    /* A model that is larger than the memory can be verified, too, slowly. */
    j.verify.stage.weights = NK_WEIGHTS_MAPPED;
    j.verify.stage.n_threads = (int)opts->n_threads;
    j.verify.stage.cache_type_k = opts->cache.type_k;
    j.verify.stage.cache_type_v = opts->cache.type_v;
    j.verify.stage.no_flash_attn = opts->cache.no_flash_attn;
    j.verify.slices = opts->slices;
    if (!rc)
        rc = check_options(&j, err);
    if (!rc)
        rc = parse_devices(&j, err);
    if (!rc)
        rc = nk_verify_new(&v, j.model, &j.verify, err);
    if (!rc)
        rc = opts->every_cut ? check_any_cut(&j, err) : choose_ranges(&j, v, ranges, &n, err);
    if (!rc && j.verify.n_devices > 1 && (opts->every_cut || j.verify.n_devices != n))
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--device names %d devices for %d stages; give one, or one for each",
                     j.verify.n_devices, n);
    if (rc)
        goto out;
    nk_stage_global_init(j.verify.n_devices == 1 ? j.devices[0] : NULL);
    rc = nk_verify_whole(v, &out->whole, err);
    out->in_model = rc != 0;
    if (!rc)
        out->cache_bytes = count_cache(&j, &out->whole);
    if (!rc)
        rc = opts->every_cut ? verify_every_cut(&j, v, out, err)
                             : verify_split(&j, v, ranges, n, out, err);
out:
    nk_verify_free(v);
    nk_model_close(j.model);
    return rc;
}

/* Takes out->splits. err NULL: none. */
static void print_json(const char *path, const struct options *o, struct outcome *out,
                       const struct nk_error *err)
{
    json_t *report =
        json_pack("{s:s, s:s, s:b, s:f, s:I, s:I, s:o}", "model", path, "llama_version",
                  out->whole.llama_version, "ok", !err && out->ok, "bound", o->bound, "cache_bytes",
                  (json_int_t)out->whole.kv_bytes, "cache_bytes_counted",
                  (json_int_t)out->cache_bytes, "splits", out->splits);

    if (err)
        json_object_set_new(report, "error",
                            json_pack("{s:s, s:s, s:s}", "where", out->in_model ? "model" : "split",
                                      "reason", err->reason, "message", err->msg));
    json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6) | nk_cli_json_flags());
    printf("\n");
    json_decref(report);
}

int nk_cmd_verify(int argc, char **argv)
{
    struct options o = {
        .devices = "CPU",
        .n_tokens = 64,
        .n_steps = 8,
        .n_sequences = 3,
        .n_batch = 64,
        .bound = 1e-4,
        .cache = NK_CACHE_ARGS_INIT,
    };
    const struct nk_arg args[] = {
        NK_OPT_STRING("layers", 'l', &o.layers, "RANGES", "the split to verify, e.g. 0-14,14-28"),
        NK_OPT_INT("into", 'k', &o.into, "K", 1, STAGES_MAX, "K slices, their bytes balanced"),
        NK_OPT_FLAG("every-cut", 0, &o.every_cut, "every legal cut in two, and one in more"),
        NK_OPT_STRING("slices", 0, &o.slices, "DIR",
                      "the slices that `split` wrote there, as they are now"),
        NK_OPT_INT("tokens", 'n', &o.n_tokens, "N", 1, 1 << 20, "prompt tokens of a sequence"),
        NK_OPT_INT("steps", 0, &o.n_steps, "N", 1, 1 << 10,
                   "single steps before the rollback, and after it"),
        NK_OPT_INT("sequences", 's', &o.n_sequences, "S", 1, SEQUENCES_MAX,
                   "interleaved sequences"),
        NK_OPT_INT("batch", 'b', &o.n_batch, "ROWS", 1, 4096, "rows of a batch"),
        NK_OPT_INT("threads", 't', &o.n_threads, "T", 0, 512, "of each stage; 0: all cores"),
        NK_OPT_STRING("device", 'd', &o.devices, "NAME[,NAME...]",
                      "what runs the slices: one device for all, or one for each; the whole model "
                      "runs on the CPU"),
        NK_OPT_FLOAT("bound", 0, &o.bound, "NMSE", 0, 1,
                     "worst nmse (normalised mean square error) that passes when not all of the "
                     "chain runs on the CPU"),
        NK_CACHE_ARGS(o.cache),
        NK_OPT_FLAG("json", 0, &o.json, "the report as one JSON object"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "verify MODEL.gguf (--layers RANGES | --into K | --every-cut | --slices DIR) "
                 "[--tokens N] [--sequences S] [--device NAME]",
        .summary =
            "Runs the chain of slices and the whole model in this process on the same tokens "
            "(prompts, single steps, interleaved sequences, a rollback) and compares the logits of "
            "every run. Exit code 0 when they are the same to the last bit on the CPU, or within "
            "--bound on another device; 1 when not, or when the model cannot be cut so.",
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct nk_error err;
    struct outcome out = { .ok = true };
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!!o.layers + !!o.into + o.every_cut + !!o.slices != 1) {
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "give one of --layers, --into, --every-cut and --slices");
        return nk_cli_report(&err);
    }
    if (nk_cache_args_check(&o.cache, &err))
        return nk_cli_report(&err);
    if (o.json)
        out.splits = json_array();
    rc = verify(argv[first], &o, &out, &err);
    if (o.json)
        print_json(argv[first], &o, &out, rc ? &err : NULL);
    if (rc)
        return nk_cli_report(&err);
    return nk_cli_flush(out.ok ? NK_EXIT_OK : NK_EXIT_FAILED);
}
