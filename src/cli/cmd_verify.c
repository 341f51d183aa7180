/* nakshatra verify: is the chain of slices the model?
 *
 * The slices of one split and the whole model are loaded into this process and given the same batches: prompts in chunks,
 * single steps, several sequences mixed in one batch, a rollback in the middle, steps again. The logits of every run are
 * compared. Both sides see the same batch shapes, thread counts and cache layouts, so on the CPU nothing but a mistake can
 * make a difference: one different bit is a failure. Other devices compute in another order; for them a bound on the
 * normalised mean square error is given, against the whole model on the CPU.
 *
 * Token ids: pseudo-random for prompts, what the whole model finds most probable for steps. */
#include "cli/cli.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cache_args.h"
#include "slice/slice.h"
#include "stage/stage.h"

int nk_cmd_verify(int argc, char **argv);

enum {
    SEQUENCES_MAX = 16,
    STAGES_MAX = 64,
    BURST = 3,
    RUN_LOGITS_MAX = 1 << 22, /* floats; a run with more wants what serving wants, */
    ALL_LOGITS_MAX = 1 << 28, /* and so do all once so many are kept */
};

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
    bool in_model; /* an error was the whole model's, not a split's */
    char llama_version[64];
};

struct tally {
    long n_runs, n_rows, n_top1, n_identical, n_not_finite;
    double worst_nmse;
};

/* A run of the script: rows [begin, end) of the script's arrays, and what the whole model answered. */
struct run {
    int begin, end;
    float *logits; /* of the wanted rows, one after the other */
};

struct verify {
    const struct options *opts;
    nk_model *model;
    struct nk_manifest *manifest; /* of --slices; NULL: slices are made here */
    char *dir;                    /* for those; each is unlinked as soon as it is loaded */
    const char *devices[STAGES_MAX];
    char device_list[1024];
    int n_devices;
    nk_stage *whole, *stages[STAGES_MAX];
    int n_stages, n_vocab;
    bool on_cpu, one_sequence_per_run, equal_rows_per_run, can_rollback;

    /* the script */
    int32_t *ids, *pos, *seq;
    int8_t *want;
    int n_rows, n_rows_run; /* n_rows_run: of them, those that a run has had */
    struct run *runs;
    int n_runs;
    int64_t n_logits; /* floats kept */
    /* while it is written */
    int length[SEQUENCES_MAX], target[SEQUENCES_MAX];
    int32_t next_id[SEQUENCES_MAX]; /* the whole model's choice after the sequence's last row */
    uint64_t random;

    struct tally tally; /* of the split at hand */
};

/* ---- the script ---- */

/* Knuth's MMIX generator; the same ids on every machine. */
static int32_t random_id(struct verify *v)
{
    v->random = v->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((v->random >> 33) % (uint64_t)v->n_vocab);
}

static int argmax(const float *x, int n)
{
    int best = 0;

    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Runs rows [begin, end) of the script on the whole model and keeps what it answers. */
static int add_run(struct verify *v, int begin, int end, struct nk_error *err)
{
    struct nk_stage_batch b = {
        .n_tokens = end - begin,
        .ids = v->ids + begin,
        .pos = v->pos + begin,
        .seq = v->seq + begin,
        .want = v->want + begin,
    };
    /* Every second run asks for less than all, as serving does. */
    bool all = v->n_runs % 2 == 0 && (int64_t)v->n_vocab * (end - begin) <= RUN_LOGITS_MAX &&
               v->n_logits <= ALL_LOGITS_MAX;
    struct run *run = realloc(v->runs, ((size_t)v->n_runs + 1) * sizeof *run);
    int n_wanted = 0, rc;

    if (!run)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    v->runs = run;
    for (int i = begin; i < end; i++) {
        v->want[i] = all || v->pos[i] == v->target[v->seq[i]] - 1;
        n_wanted += v->want[i];
    }
    rc = nk_stage_run(v->whole, &b, err);
    if (rc)
        return nk_wrap(rc, err, "the whole model");
    run = &v->runs[v->n_runs];
    *run = (struct run){ begin, end,
                         malloc(((size_t)n_wanted * (size_t)v->n_vocab + 1) * sizeof(float)) };
    if (!run->logits)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the logits of %d rows",
                       n_wanted);
    v->n_runs++;
    v->n_logits += (int64_t)n_wanted * v->n_vocab;
    n_wanted = 0;
    for (int i = begin; i < end; i++) {
        const float *logits = v->want[i] ? nk_stage_logits(v->whole, i - begin) : NULL;

        if (!v->want[i])
            continue;
        if (!logits)
            return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                           "the whole model gives no logits for row %d", i);
        memcpy(run->logits + (size_t)n_wanted++ * (size_t)v->n_vocab, logits,
               (size_t)v->n_vocab * sizeof(float));
        v->next_id[v->seq[i]] = argmax(logits, v->n_vocab);
    }
    return 0;
}

/* May rows [begin, end) be one run, where runs are to have the same number of rows of each sequence? (extend() puts the
 * rows of a sequence together.) */
static bool equal_rows(const struct verify *v, int begin, int end)
{
    int count[SEQUENCES_MAX] = { 0 }, each;

    for (int i = begin; i < end; i++)
        count[v->seq[i]]++;
    each = count[v->seq[begin]];
    for (int s = 0; s < SEQUENCES_MAX; s++)
        if (count[s] && count[s] != each)
            return false;
    return true;
}

/* The rows added since the last time as one run, or a run for each sequence where the architecture wants that. */
static int flush(struct verify *v, struct nk_error *err)
{
    int rc = 0;

    for (int begin = v->n_rows_run, end; !rc && begin < v->n_rows; begin = end) {
        end = v->n_rows;
        if (v->one_sequence_per_run || (v->equal_rows_per_run && !equal_rows(v, begin, end)))
            for (end = begin + 1; end < v->n_rows && v->seq[end] == v->seq[begin];)
                end++;
        rc = add_run(v, begin, end, err);
    }
    v->n_rows_run = v->n_rows;
    return rc;
}

/* Adds n rows to sequence seq, which go on where it ends. id -1: random ones. */
static void extend(struct verify *v, int seq, int n, int32_t id)
{
    for (int i = 0; i < n; i++) {
        v->ids[v->n_rows] = id < 0 ? random_id(v) : id;
        v->pos[v->n_rows] = v->length[seq]++;
        v->seq[v->n_rows++] = seq;
    }
}

/* Extends every sequence to its target, in batches that mix all of them. */
static int prompt(struct verify *v, struct nk_error *err)
{
    int chunk = (int)v->opts->n_batch / (int)v->opts->n_sequences, rc = 0;
    bool more = true;

    while (!rc && more) {
        more = false;
        for (int s = 0; s < v->opts->n_sequences; s++) {
            int left = v->target[s] - v->length[s], n = left < chunk ? left : chunk;

            extend(v, s, n, -1);
            more |= left > n;
        }
        rc = flush(v, err);
    }
    return rc;
}

/* One row for each sequence, the second time on in changing order, and every third time not for all. */
static int step(struct verify *v, int k, struct nk_error *err)
{
    int n = (int)v->opts->n_sequences;

    for (int i = 0; i < n; i++) {
        int s = (i + k) % n;

        if (k % 3 == 2 && n > 1 && s % 2 != k % 2)
            continue;
        v->target[s] = v->length[s] + 1;
        extend(v, s, 1, v->next_id[s]);
    }
    return flush(v, err);
}

/* BURST rows for each sequence at once, as when drafts are checked. */
static int burst(struct verify *v, struct nk_error *err)
{
    int n = (int)(v->opts->n_batch / v->opts->n_sequences);

    for (int s = 0; s < v->opts->n_sequences; s++) {
        extend(v, s, n < BURST ? n : BURST, -1);
        v->target[s] = v->length[s];
    }
    return flush(v, err);
}

/* Every sequence goes back and on with other tokens. A recurrent one can only start again. */
static int roll_back(struct verify *v, struct nk_error *err)
{
    for (int s = 0; s < v->opts->n_sequences; s++) {
        int length = v->length[s];
        int back = (int)v->opts->n_steps / 2 + 3 * s + (int)v->opts->n_tokens / 4;

        v->length[s] = !v->can_rollback || back >= length ? 0 : length - back;
        v->target[s] = v->length[s] + 5 + s;
    }
    return prompt(v, err);
}

static int rows_per_sequence(const struct options *o)
{
    return (int)o->n_tokens + 2 * (int)o->n_steps + 5 + SEQUENCES_MAX + BURST;
}

static int write_script(struct verify *v, struct nk_error *err)
{
    const struct nk_stage_info *info = nk_stage_info(v->whole);
    size_t n = (size_t)rows_per_sequence(v->opts) * (size_t)v->opts->n_sequences;
    int rc;

    v->ids = malloc(n * sizeof *v->ids);
    v->pos = malloc(n * sizeof *v->pos);
    v->seq = malloc(n * sizeof *v->seq);
    v->want = malloc(n);
    if (!v->ids || !v->pos || !v->seq || !v->want)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    v->n_vocab = info->n_vocab;
    v->one_sequence_per_run = info->one_sequence_per_run;
    v->equal_rows_per_run = info->equal_rows_per_run;
    v->can_rollback = info->can_rollback;
    v->random = 1;
    for (int s = 0; s < v->opts->n_sequences; s++)
        v->target[s] = v->opts->n_tokens > 3 * s ? (int)v->opts->n_tokens - 3 * s : 1;
    rc = prompt(v, err);
    for (int k = 0; !rc && k < v->opts->n_steps; k++)
        rc = step(v, k, err);
    if (!rc)
        rc = roll_back(v, err);
    for (int k = 0; !rc && k < v->opts->n_steps; k++)
        rc = step(v, k, err);
    return rc ? rc : burst(v, err);
}

/* ---- the comparison ---- */

static void compare_row(struct verify *v, const float *want, const float *got)
{
    double difference = 0, power = 0;
    bool finite = true;

    for (int i = 0; i < v->n_vocab; i++) {
        double d = (double)want[i] - (double)got[i];

        finite &= isfinite(want[i]) != 0;
        difference += d * d;
        power += (double)want[i] * (double)want[i];
    }
    v->tally.n_rows++;
    v->tally.n_identical += !memcmp(want, got, (size_t)v->n_vocab * sizeof *want);
    v->tally.n_top1 += argmax(want, v->n_vocab) == argmax(got, v->n_vocab);
    v->tally.n_not_finite += !finite;
    difference = power > 0 ? difference / power : difference;
    if (!(difference <= v->tally.worst_nmse)) /* NaN counts as worst */
        v->tally.worst_nmse = difference;
}

/* The script on the chain of stages. */
static int compare(struct verify *v, struct nk_error *err)
{
    v->tally = (struct tally){ 0 };
    for (int k = 0; k < v->n_runs; k++) {
        const struct run *run = &v->runs[k];
        const float *want = run->logits;
        struct nk_stage_batch b = {
            .n_tokens = run->end - run->begin,
            .ids = v->ids + run->begin,
            .pos = v->pos + run->begin,
            .seq = v->seq + run->begin,
            .want = v->want + run->begin,
        };

        for (int i = 0; i < v->n_stages; i++) {
            const struct nk_stage_info *info = nk_stage_info(v->stages[i]);
            int rc = nk_stage_run(v->stages[i], &b, err);

            if (rc)
                return nk_wrap(rc, err, "layers %d-%d", info->layer_begin, info->layer_end);
            b.rows = nk_stage_rows(v->stages[i]);
        }
        v->tally.n_runs++;
        for (int i = run->begin; i < run->end; i++) {
            const float *got;

            if (!v->want[i])
                continue;
            got = nk_stage_logits(v->stages[v->n_stages - 1], i - run->begin);
            if (!got)
                return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                               "the chain gives no logits for row %d", i);
            compare_row(v, want, got);
            want += v->n_vocab;
        }
    }
    return 0;
}

/* ---- slices ---- */

/* The folder for slices of this process, in the cache folder; what a killed one left there is removed. */
static int make_dir(struct verify *v, struct nk_error *err)
{
    char *parent, path[4352], file[4700];
    struct dirent *e, *f;
    DIR *d, *inner;
    int rc = nk_cache_dir(&parent, "verify", err);

    if (rc)
        return rc;
    d = opendir(parent);
    while (d && (e = readdir(d))) {
        long pid = strtol(e->d_name, NULL, 10);

        if (pid <= 0 || pid == (long)getpid() || !kill((pid_t)pid, 0) || errno != ESRCH)
            continue;
        snprintf(path, sizeof path, "%s/%s", parent, e->d_name);
        inner = opendir(path);
        while (inner && (f = readdir(inner))) {
            snprintf(file, sizeof file, "%s/%s", path, f->d_name);
            unlink(file); /* fails on . and .., as it should */
        }
        if (inner)
            closedir(inner);
        rmdir(path);
    }
    if (d)
        closedir(d);
    snprintf(path, sizeof path, "%s/%ld", parent, (long)getpid());
    free(parent);
    rc = nk_dir_make(path, err);
    if (!rc && !(v->dir = strdup(path)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    return rc;
}

static struct nk_stage_opts stage_opts(const struct verify *v, const char *device)
{
    struct nk_stage_opts o = nk_stage_opts_default();
    o.device = device;
    o.n_ctx = rows_per_sequence(v->opts) * (int)v->opts->n_sequences;
    o.n_seq_max = (int)v->opts->n_sequences;
    o.n_batch = (int)v->opts->n_batch;
    o.n_threads = (int)v->opts->n_threads;
    o.cache_type_k = v->opts->cache.type_k;
    o.cache_type_v = v->opts->cache.type_v;
    o.no_flash_attn = v->opts->cache.no_flash_attn;
    return o;
}

/* A slice of --slices, which may hold something else than its manifest says. */
static int open_given(struct verify *v, int i, struct nk_range want, const struct nk_stage_opts *o,
                      struct nk_error *err)
{
    const struct nk_stage_info *info;
    char path[4500];
    int rc;

    snprintf(path, sizeof path, "%.4200s/%s", v->opts->slices, v->manifest->files[i].name);
    rc = nk_stage_open(&v->stages[i], path, o, err);
    if (rc)
        return rc;
    info = nk_stage_info(v->stages[i]);
    if (strcmp(info->model_sha256, v->manifest->model_sha256) != 0)
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s is of another model (%.12s..., not %.12s...)", path, info->model_sha256,
                     v->manifest->model_sha256);
    else if (info->layer_begin != want.begin || info->layer_end != want.end)
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s holds layers %d-%d; the manifest says %d-%d", path, info->layer_begin,
                     info->layer_end, want.begin, want.end);
    if (rc) {
        nk_stage_close(v->stages[i]);
        v->stages[i] = NULL;
    }
    return rc;
}

static int open_made(struct verify *v, int i, struct nk_range range, const struct nk_stage_opts *o,
                     struct nk_error *err)
{
    /* The slices belong to nobody else: no need to read the model for its hash. */
    static const char no_hash[] =
        "0000000000000000000000000000000000000000000000000000000000000000";
    char path[4500];
    int rc;

    snprintf(path, sizeof path, "%s/%03d-%03d.gguf", v->dir, range.begin, range.end);
    rc = nk_slice_write(v->model, range, no_hash, path, NULL, err);
    if (!rc)
        rc = nk_stage_open(&v->stages[i], path, o, err);
    unlink(path);
    return rc;
}

static int open_stages(struct verify *v, const struct nk_range *ranges, int n, struct nk_error *err)
{
    int rc = 0;

    v->on_cpu = true;
    for (int i = 0; i < n && !rc; i++) {
        struct nk_stage_opts o = stage_opts(v, v->devices[v->n_devices > 1 ? i : 0]);

        rc = v->manifest ? open_given(v, i, ranges[i], &o, err)
                         : open_made(v, i, ranges[i], &o, err);
        if (rc)
            break;
        v->n_stages = i + 1;
        v->on_cpu &= !strcmp(nk_stage_info(v->stages[i])->device, "CPU");
    }
    return rc;
}

static void close_stages(struct verify *v)
{
    for (int i = 0; i < v->n_stages; i++)
        nk_stage_close(v->stages[i]);
    v->n_stages = 0;
}

/* ---- what is told ---- */

static bool passed(const struct verify *v)
{
    const struct tally *t = &v->tally;

    if (t->n_not_finite)
        return false;
    return v->on_cpu ? t->n_identical == t->n_rows : t->worst_nmse <= v->opts->bound;
}

static void format_ranges(char *out, size_t size, const struct nk_range *ranges, int n)
{
    size_t used = 0;

    out[0] = '\0';
    for (int i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%d-%d", i ? "," : "", ranges[i].begin,
                                 ranges[i].end);
}

static const char *verdict(const struct verify *v)
{
    const struct tally *t = &v->tally;

    return t->n_not_finite               ? "not finite"
           : t->n_identical == t->n_rows ? "exact"
           : passed(v)                   ? "within the bound"
                                         : "WRONG";
}

static void print_split(const struct verify *v, const char *ranges)
{
    const struct tally *t = &v->tally;

    printf("%-24s %-16s %ld runs, %ld rows of logits: %ld bit-identical, %ld same top-1, worst "
           "nmse %.2g\n",
           ranges, verdict(v), t->n_runs, t->n_rows, t->n_identical, t->n_top1, t->worst_nmse);
    fflush(stdout);
}

static json_t *split_json(const struct verify *v, const char *ranges)
{
    const struct tally *t = &v->tally;
    json_t *devices = json_array();

    for (int i = 0; i < v->n_stages; i++)
        json_array_append_new(devices, json_string(nk_stage_info(v->stages[i])->device));
    return json_pack("{s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:o, s:b, s:b}", "layers", ranges,
                     "result", verdict(v), "devices", devices, "runs", (json_int_t)t->n_runs,
                     "rows", (json_int_t)t->n_rows, "identical", (json_int_t)t->n_identical, "top1",
                     (json_int_t)t->n_top1, "not_finite", (json_int_t)t->n_not_finite, "worst_nmse",
                     isfinite(t->worst_nmse) ? json_real(t->worst_nmse) : json_null(),
                     "bit_identical", t->n_identical == t->n_rows, "ok", passed(v));
}

/* One split, told. out->ok becomes false when it is not the model. A split that llama.cpp cannot run is an error. */
static int verify_split(struct verify *v, const struct nk_range *ranges, int n, struct outcome *out,
                        struct nk_error *err)
{
    char text[1024];
    int rc;

    format_ranges(text, sizeof text, ranges, n);
    rc = open_stages(v, ranges, n, err);
    if (!rc)
        rc = compare(v, err);
    if (!rc) {
        out->ok &= passed(v);
        if (out->splits)
            json_array_append_new(out->splits, split_json(v, text));
        else
            print_split(v, text);
    } else {
        nk_wrap(rc, err, "layers %s", text);
    }
    close_stages(v);
    return rc;
}

/* Every legal cut in two, then once in four or three pieces, where there are cuts for it. */
static int verify_every_cut(struct verify *v, struct outcome *out, struct nk_error *err)
{
    int n_layer = nk_model_info(v->model)->n_layer, rc = 0;
    struct nk_range ranges[4];

    for (int at = 1; at < n_layer && !rc; at++) {
        ranges[0] = (struct nk_range){ 0, at };
        ranges[1] = (struct nk_range){ at, n_layer };
        if (!nk_ranges_check(v->model, ranges, 2, true, NULL))
            rc = verify_split(v, ranges, 2, out, err);
    }
    for (int k = 4; k > 2 && !rc; k--)
        if (!nk_ranges_balance(v->model, k, ranges, NULL))
            return verify_split(v, ranges, k, out, err);
    return rc;
}

/* 0 when there is a legal cut; else why the first one is not. */
static int check_any_cut(const struct verify *v, struct nk_error *err)
{
    int n_layer = nk_model_info(v->model)->n_layer;

    for (int at = 1; at < n_layer; at++) {
        struct nk_range ranges[2] = { { 0, at }, { at, n_layer } };

        if (!nk_ranges_check(v->model, ranges, 2, true, at == 1 ? err : NULL))
            return 0;
    }
    return n_layer > 1 ? NK_E_UNIMPLEMENTED
                       : nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                                 "a model of one layer cannot be cut");
}

/* ---- the command ---- */

static int check_options(struct verify *v, struct nk_error *err)
{
    const struct options *o = v->opts;
    const struct nk_model_info *mi = nk_model_info(v->model);
    int64_t most = rows_per_sequence(o);

    if (mi->is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s holds layers %d-%d of %d: a whole model is wanted here", mi->path,
                       mi->layer_begin, mi->layer_end, mi->layer_count);
    if (mi->n_ctx_train > 0 && most > mi->n_ctx_train)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--tokens %lld and the steps after it need a context of %lld; the model was "
                       "trained for %d",
                       (long long)o->n_tokens, (long long)most, mi->n_ctx_train);
    if (o->n_batch < o->n_sequences)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--batch %lld is less than --sequences %lld", (long long)o->n_batch,
                       (long long)o->n_sequences);
    return 0;
}

/* "CPU", or one for each stage: "Vulkan0,CPU". */
static int parse_devices(struct verify *v, struct nk_error *err)
{
    char *save = NULL;

    if (snprintf(v->device_list, sizeof v->device_list, "%s", v->opts->devices) >=
        (int)sizeof v->device_list)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: too long");
    for (char *name = strtok_r(v->device_list, ",", &save); name;
         name = strtok_r(NULL, ",", &save)) {
        if (v->n_devices == STAGES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: more than %d devices",
                           STAGES_MAX);
        v->devices[v->n_devices++] = name;
    }
    if (!v->n_devices)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--device: no device is named");
    return 0;
}

/* The slices in --slices must be all of this very model. */
static int read_slices(struct verify *v, struct nk_range *ranges, int *n, struct nk_error *err)
{
    const char *dir = v->opts->slices;
    char path[4500], sha256[NK_SHA256_HEX];
    int rc;

    snprintf(path, sizeof path, "%.4200s/manifest.json", dir);
    rc = nk_manifest_read(&v->manifest, path, err);
    if (!rc)
        rc = nk_model_hash(v->model, sha256, err);
    if (rc)
        return rc;
    if (strcmp(sha256, v->manifest->model_sha256) != 0)
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "%s: the slices are of another model (%.12s...) than %s (%.12s...)", path,
                       v->manifest->model_sha256, nk_model_info(v->model)->path, sha256);
    *n = 0;
    while (*n < v->manifest->n_files && v->manifest->files[*n].range.end > 0) {
        if (*n == STAGES_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_ranges", "%s: more than %d slices", path,
                           STAGES_MAX);
        ranges[*n] = v->manifest->files[*n].range;
        (*n)++;
    }
    rc = *n ? nk_ranges_check(v->model, ranges, *n, true, err)
            : nk_fail(err, NK_E_INVALID, "bad_manifest", "it names no slices");
    return nk_wrap(rc, err, "%s", path);
}

static int choose_ranges(struct verify *v, struct nk_range *ranges, int *n, struct nk_error *err)
{
    int rc;

    if (v->opts->slices)
        return read_slices(v, ranges, n, err);
    if (v->opts->layers) {
        rc = nk_ranges_parse(v->opts->layers, ranges, STAGES_MAX, n, err);
        if (!rc)
            rc = nk_ranges_check(v->model, ranges, *n, true, err);
    } else {
        *n = (int)v->opts->into;
        rc = nk_ranges_balance(v->model, *n, ranges, err);
    }
    return nk_wrap(rc, err, "%s", nk_model_info(v->model)->path);
}

static int verify(const char *path, const struct options *opts, struct outcome *out,
                  struct nk_error *err)
{
    struct verify v = { .opts = opts };
    struct nk_range ranges[STAGES_MAX];
    struct nk_stage_opts o;
    int n = 0, rc = nk_model_open(&v.model, path, err);

    if (!rc)
        rc = check_options(&v, err);
    if (!rc)
        rc = parse_devices(&v, err);
    if (!rc)
        rc = opts->every_cut ? check_any_cut(&v, err) : choose_ranges(&v, ranges, &n, err);
    if (!rc && v.n_devices > 1 && (opts->every_cut || v.n_devices != n))
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--device names %d devices for %d stages; give one, or one for each",
                     v.n_devices, n);
    if (rc)
        goto out;
    nk_stage_global_init(v.n_devices == 1 ? v.devices[0] : NULL);
    rc = make_dir(&v, err);
    if (rc)
        goto out;
    o = stage_opts(&v, "CPU");
    o.whole_model = true;
    rc = nk_stage_open(&v.whole, path, &o, err);
    if (!rc) {
        snprintf(out->llama_version, sizeof out->llama_version, "%s",
                 nk_stage_info(v.whole)->llama_version);
        rc = write_script(&v, err);
    }
    out->in_model = rc != 0;
    nk_stage_close(v.whole); /* model and slices need not fit in memory together */
    v.whole = NULL;
    if (!rc)
        rc = opts->every_cut ? verify_every_cut(&v, out, err)
                             : verify_split(&v, ranges, n, out, err);
out:
    if (v.dir)
        rmdir(v.dir);
    free(v.dir);
    free(v.ids);
    free(v.pos);
    free(v.seq);
    free(v.want);
    for (int i = 0; i < v.n_runs; i++)
        free(v.runs[i].logits);
    free(v.runs);
    free(v.manifest);
    nk_model_close(v.model);
    return rc;
}

/* Takes out->splits. err NULL: none. */
static void print_json(const char *path, const struct options *o, struct outcome *out,
                       const struct nk_error *err)
{
    json_t *report =
        json_pack("{s:s, s:s, s:b, s:f, s:o}", "model", path, "llama_version", out->llama_version,
                  "ok", !err && out->ok, "bound", o->bound, "splits", out->splits);

    if (err)
        json_object_set_new(report, "error",
                            json_pack("{s:s, s:s, s:s}", "where", out->in_model ? "model" : "split",
                                      "reason", err->reason, "message", err->msg));
    json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
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
    };
    /* clang-format off */
    const struct nk_arg args[] = {
        { .name = "layers", .letter = 'l', .kind = NK_ARG_STRING, .dest = &o.layers, .value_name = "RANGES",
          .help = "the split to verify, e.g. 0-14,14-28" },
        { .name = "into", .letter = 'k', .kind = NK_ARG_INT, .dest = &o.into, .value_name = "K", .min = 1, .max = STAGES_MAX,
          .help = "K slices, their bytes balanced" },
        { .name = "every-cut", .kind = NK_ARG_FLAG, .dest = &o.every_cut,
          .help = "every legal cut in two, and one in more" },
        { .name = "slices", .kind = NK_ARG_STRING, .dest = &o.slices, .value_name = "DIR",
          .help = "the slices that `split` wrote there, as they are now" },
        { .name = "tokens", .letter = 'n', .kind = NK_ARG_INT, .dest = &o.n_tokens, .value_name = "N", .min = 1,
          .max = 1 << 20, .help = "prompt tokens of a sequence (64)" },
        { .name = "steps", .kind = NK_ARG_INT, .dest = &o.n_steps, .value_name = "N", .min = 1, .max = 1 << 10,
          .help = "single steps before the rollback, and after it (8)" },
        { .name = "sequences", .letter = 's', .kind = NK_ARG_INT, .dest = &o.n_sequences, .value_name = "S", .min = 1,
          .max = SEQUENCES_MAX, .help = "interleaved sequences (3)" },
        { .name = "batch", .letter = 'b', .kind = NK_ARG_INT, .dest = &o.n_batch, .value_name = "ROWS", .min = 1,
          .max = 4096, .help = "rows of a batch (64)" },
        { .name = "threads", .letter = 't', .kind = NK_ARG_INT, .dest = &o.n_threads, .value_name = "T", .min = 0,
          .max = 512, .help = "threads (0: all cores)" },
        { .name = "device", .letter = 'd', .kind = NK_ARG_STRING, .dest = &o.devices, .value_name = "NAME[,NAME...]",
          .help = "what runs the slices: one device for all, or one for each (CPU); the whole model runs on the CPU" },
        { .name = "bound", .kind = NK_ARG_FLOAT, .dest = &o.bound, .value_name = "NMSE", .min = 0, .max = 1,
          .help = "worst nmse that passes when not all of the chain runs on the CPU (1e-4)" },
        NK_CACHE_ARGS(o.cache),
        { .name = "json", .kind = NK_ARG_FLAG, .dest = &o.json, .help = "for programs" },
        { 0 },
    };
    /* clang-format on */
    const struct nk_command cmd = {
        .usage = "verify MODEL.gguf (--layers RANGES | --into K | --every-cut | --slices DIR) "
                 "[--tokens N] "
                 "[--sequences S] [--device NAME]",
        .summary = "Runs the chain of slices and the whole model in this process on the same "
                   "tokens (prompts, single\n"
                   "steps, interleaved sequences, a rollback) and compares the logits of every "
                   "run. Exit code 0 when\n"
                   "they are the same to the last bit on the CPU, or within --bound on another "
                   "device; 1 when not, or\n"
                   "when the model cannot be cut so.",
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
    return out.ok ? NK_EXIT_OK : NK_EXIT_FAILED;
}
