/* A machine measures itself: which layers are tried is in shapes.c, how runs are timed in timing.c,
 * what is kept in keep.c. */
#include "measure/measure.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ggml.h>
#include <llama.h>

#include "base/args.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/thread.h"
#include "measure/measure_int.h"

enum {
    BUDGET_MS = 8000,
    SEQUENCES = 8,
    N_CTX_DEFAULT_MAX = 8192, /* as the stage takes it for 0 */
    BUFFERS_BYTES = 64 << 20, /* allowed for besides weights and caches */
    /* Weights that are tried, in sizes of the cache: of three, with random replacement, a
     * twentieth would be found there; of five hardly anything. */
    CACHES = 5,
};
/* Of weights that are tried at once, where one layer is not more. */
static const uint64_t weights_max = (uint64_t)1536 << 20;

struct nk_measure_opts nk_measure_opts_default(void)
{
    struct nk_measure_opts o = { .stage = nk_stage_opts_default(),
                                 .budget_ms = BUDGET_MS,
                                 .clock = nk_clock_system() };

    o.stage.n_seq_max = SEQUENCES;
    return o;
}

void nk_measured_release(struct nk_measured *r)
{
    free(r->layers);
    *r = (struct nk_measured){ 0 };
}

double nk_measured_stage_ms(const struct nk_measured *r, struct nk_range range,
                            enum nk_measure_run kind)
{
    double ms = r->fixed_ms[kind] + (range.begin == 0 ? r->embd_ms[kind] : 0) +
                (range.end == r->n_layer ? r->head_ms[kind] : 0);

    NK_ASSERT(range.begin >= 0 && range.begin < range.end && range.end <= r->n_layer);
    for (int i = range.begin; i < range.end; i++)
        ms += r->layers[i].ms[kind];
    return ms;
}

/* ---- what is known beforehand ---- */

static void look_at_memory(struct nk_measured *r, const struct nk_device *dev,
                           const struct nk_measure_opts *opts)
{
    r->memory_total_bytes = nk_memory_total();
    r->memory_free_bytes = nk_memory_available();
    r->device_total_bytes = dev->is_gpu ? dev->memory_total_bytes : r->memory_total_bytes;
    r->device_free_bytes = dev->is_gpu ? dev->memory_free_bytes : r->memory_free_bytes;
    r->disk_free_bytes = nk__disk_free_bytes(opts->cache_dir);
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int describe(struct nk_measured *r, const nk_model *m, const struct nk_measure_opts *opts,
                    const struct nk_device *dev, struct nk_error *err)
{
    const struct nk_model_info *in = nk_model_info(m);
    int chunk = opts->chunk ? opts->chunk : dev->is_gpu ? NK_CHUNK_GPU : NK_CHUNK_CPU;
    int rc;

    snprintf(r->version, sizeof r->version, "%s", NK_VERSION);
    snprintf(r->llama_version, sizeof r->llama_version, "%s", llama_version());
    snprintf(r->ggml_version, sizeof r->ggml_version, "%s", ggml_version());
    snprintf(r->device, sizeof r->device, "%s", dev->name);
    snprintf(r->device_description, sizeof r->device_description, "%s", dev->description);
    nk__cpu_name(r->cpu, sizeof r->cpu);
    r->is_gpu = dev->is_gpu;
    r->n_cores = nk_cpu_count();
    r->n_threads = opts->stage.n_threads ? opts->stage.n_threads : r->n_cores;
    r->n_threads_batch = opts->stage.n_threads_batch ? opts->stage.n_threads_batch : r->n_threads;
    snprintf(r->architecture, sizeof r->architecture, "%s", in->architecture);
    r->n_layer = in->n_layer;
    r->n_embd = in->n_embd;
    r->n_vocab = in->n_vocab;
    r->n_sequences = opts->stage.n_seq_max;
    r->n_batch = opts->stage.n_batch;
    r->rows[NK_RUN_ONE] = 1;
    r->rows[NK_RUN_EIGHT] = least(SEQUENCES, least(r->n_sequences, r->n_batch));
    r->rows[NK_RUN_CHUNK] = least(chunk, r->n_batch);
    r->head_bytes = in->head_bytes;
    r->embd_bytes = in->embd_bytes;
    r->other_bytes = in->other_bytes;
    look_at_memory(r, dev, opts);
    rc = nk_model_shape(m, -1, r->shape, err);
    if (!rc)
        rc = nk__measured_key(r, opts, r->key, err);
    if (rc)
        return rc;
    r->layers = calloc((size_t)r->n_layer, sizeof *r->layers);
    if (!r->layers)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < r->n_layer; i++)
        r->layers[i].weights_bytes = in->layer_bytes[i];
    return 0;
}

/* ---- the work: in a thread of its own, which is given a core (nk_stage_place_threads) ---- */

struct tried {
    struct nk_range range;
    double ms[NK_RUN_KINDS];
    uint64_t kv_bytes;
    bool done;
};

struct work {
    const nk_model *m;
    const struct nk_measure_opts *opts;
    struct nk_measured *r;
    struct nk__shapes shapes;
    uint64_t *kv_guess; /* n_layer: bytes of each layer's cache, 0 where it has a state instead */
    uint64_t limit;     /* bytes that may be used */
    struct tried tried[NK__RANGES_MAX];
    int n_tried;
    int rc;
    struct nk_error *err;
};

static uint64_t bytes_of(const struct work *w, struct nk_range range, bool with_head)
{
    uint64_t bytes = w->r->other_bytes + BUFFERS_BYTES;

    /* Weights are there twice: in the file in memory, and as the backend keeps them. */
    for (int i = range.begin; i < range.end; i++)
        bytes += 2 * w->r->layers[i].weights_bytes + w->kv_guess[i];
    if (with_head && range.end == w->r->n_layer)
        bytes += 2 * w->r->head_bytes;
    return bytes;
}

/* The engine's sentences name the file, which is nobody's. */
static int name_range(int rc, const struct work *w, struct nk_range range, const char *path,
                      struct nk_error *err)
{
    size_t n = strlen(path);
    char *at;

    if (!rc || !err)
        return rc;
    while ((at = strstr(err->msg, path))) {
        size_t skip = n + (strncmp(at + n, ": ", 2) ? 0 : 2);

        memmove(at, at + skip, strlen(at + skip) + 1);
    }
    return nk_wrap(rc, err, "%s: layers %d-%d with random weights", nk_model_info(w->m)->path,
                   range.begin, range.end);
}

static void note_stage(struct work *w, const struct nk_stage_info *info)
{
    struct nk_measured *r = w->r;

    snprintf(r->backend, sizeof r->backend, "%s", info->backend);
    r->n_ctx = info->n_ctx;
    r->rows[NK_RUN_CHUNK] = least(r->rows[NK_RUN_CHUNK], info->n_ctx_seq);
    r->n_embd = info->n_embd;
    snprintf(r->cache_type_k, sizeof r->cache_type_k, "%s", info->cache_type_k);
    snprintf(r->cache_type_v, sizeof r->cache_type_v, "%s", info->cache_type_v);
    r->flash_attn |= info->flash_attn;
    r->one_sequence_per_run = info->one_sequence_per_run;
    if (info->is_last) {
        r->head_compute_bytes = info->compute_bytes;
        r->head_compute_host_bytes = info->compute_host_bytes;
    } else {
        r->compute_bytes = info->compute_bytes;
        r->compute_host_bytes = info->compute_host_bytes;
    }
}

static int try_range(struct work *w, struct tried *t, uint64_t end_ns, struct nk_error *err)
{
    struct nk_stage_opts opts = w->opts->stage;
    struct nk__memory_file file;
    const atomic_bool stop = false;
    nk_stage *s = NULL;
    int rc = nk__memory_file_open(&file, err);

    if (rc)
        return rc;
    opts.device = w->r->device;
    opts.verify = NK_VERIFY_NEVER;
    opts.whole_model = false;
    rc = nk_slice_write_random(w->m, t->range, file.fd, file.path, err);
    if (!rc)
        rc = nk_stage_open(&s, file.path, &opts, err);
    if (!rc) {
        nk_stage_place_threads(s);
        nk_stage_use_huge_pages(s, &stop); /* as a worker does */
        note_stage(w, nk_stage_info(s));
        t->kv_bytes = nk_stage_info(s)->kv_bytes;
        rc = nk__time_stage(s, w->r->rows, w->opts->clock, end_ns, t->ms, err);
    }
    t->done = !rc;
    rc = name_range(rc, w, t->range, file.path, err);
    nk_stage_close(s);
    nk__memory_file_close(&file);
    return rc;
}

/* Of the caches: an estimate, before anything is loaded. */
static void guess_caches(struct work *w)
{
    const struct nk_model_info *in = nk_model_info(w->m);
    const struct nk_stage_opts *o = &w->opts->stage;
    int n_ctx = o->n_ctx;
    double scale = 0;

    if (!n_ctx)
        n_ctx = in->n_ctx_train > 0 && in->n_ctx_train < N_CTX_DEFAULT_MAX ? in->n_ctx_train
                                                                           : N_CTX_DEFAULT_MAX;
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        const char *name = ggml_type_name((enum ggml_type)t);

        for (int i = 0; i < 2 && name; i++) {
            const char *type = i ? o->cache_type_v : o->cache_type_k;

            if (!strcmp(name, type ? type : "f16"))
                scale += (double)ggml_type_size((enum ggml_type)t) /
                         (double)ggml_blck_size((enum ggml_type)t) / 4;
        }
    }
    for (int i = 0; i < in->n_layer; i++)
        w->kv_guess[i] = (uint64_t)((double)in->kv_bytes_per_token[i] * n_ctx * scale);
}

/* The last range is the most frequent layers'; the one before it has the head. */
static int try_all(struct work *w, uint64_t begin_ns, struct nk_error *err)
{
    uint64_t budget = w->opts->budget_ms * 1000000ull, now;
    char needs[24], may[24];

    for (int i = w->n_tried - 1; i >= 0; i--) {
        struct tried *t = &w->tried[i];
        bool is_main = i == w->n_tried - 1;
        uint64_t need = bytes_of(w, t->range, true);
        struct nk_error why;
        int rc;

        now = nk_clock_now_ns(w->opts->clock);
        if (!is_main && (need > w->limit || now - begin_ns >= budget))
            continue; /* estimated by its bytes */
        if (need > w->limit)
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory",
                           "%s: measuring layers %d-%d, the fewest that can be, takes %s of "
                           "memory, and %s may be used",
                           nk_model_info(w->m)->path, t->range.begin, t->range.end,
                           nk_size_format(needs, need), nk_size_format(may, w->limit));
        rc = try_range(w, t,
                       now + (now - begin_ns < budget ? budget - (now - begin_ns) : 0) /
                                 (uint64_t)(i + 1),
                       &why);
        if (rc && (is_main || rc != NK_E_EXHAUSTED)) {
            if (err)
                *err = why;
            return rc;
        }
    }
    return 0;
}

/* Bytes of each layer's cache: as loaded ones have it. */
static void share_caches(struct work *w)
{
    double per_shape[NK__SHAPES_MAX];
    bool told[NK__SHAPES_MAX] = { 0 };

    for (int i = 0; i < w->n_tried; i++) {
        const struct tried *t = &w->tried[i];
        double guess = 0, states = 0, rest;
        int n_states = 0;

        for (int l = t->range.begin; t->done && l < t->range.end; l++) {
            guess += (double)w->kv_guess[l];
            n_states += !w->kv_guess[l];
        }
        rest = (double)t->kv_bytes;
        if (n_states && rest > guess)
            states = (rest - guess) / n_states;
        for (int l = t->range.begin; t->done && l < t->range.end; l++) {
            int k = w->shapes.of[l];

            per_shape[k] = !w->kv_guess[l] ? states
                           : n_states      ? (double)w->kv_guess[l]
                                           : (double)w->kv_guess[l] * rest / guess;
            told[k] = true;
        }
    }
    for (int l = 0; l < w->r->n_layer; l++) {
        int k = w->shapes.of[l];

        w->r->layers[l].kv_bytes = told[k] ? (uint64_t)(per_shape[k] + 0.5) : w->kv_guess[l];
    }
}

static void share_times(struct work *w)
{
    struct nk_range ranges[NK__RANGES_MAX];
    double ms[NK__RANGES_MAX], head_bytes = (double)w->r->head_bytes;
    struct nk__shares shares;

    for (int kind = 0; kind < NK_RUN_KINDS; kind++) {
        int n = 0;

        for (int i = 0; i < w->n_tried; i++)
            if (w->tried[i].done) {
                ranges[n] = w->tried[i].range;
                ms[n++] = w->tried[i].ms[kind];
            }
        nk__shares_solve(&w->shapes, head_bytes, ranges, ms, n, &shares);
        w->r->fixed_ms[kind] = shares.fixed;
        w->r->head_ms[kind] = shares.head;
        for (int l = 0; l < w->r->n_layer; l++)
            w->r->layers[l].ms[kind] = shares.layer[w->shapes.of[l]];
    }
}

static int measure(struct work *w, struct nk_error *err)
{
    const struct nk_measure_opts *opts = w->opts;
    struct nk_measured *r = w->r;
    struct nk_range ranges[NK__RANGES_MAX];
    uint64_t begin_ns = nk_clock_now_ns(opts->clock), max, *cost;
    double embd_ms;
    int rc;

    w->kv_guess = calloc((size_t)r->n_layer, sizeof *w->kv_guess);
    cost = calloc((size_t)r->n_layer, sizeof *cost);
    if (!w->kv_guess || !cost) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    r->process_bytes = nk__process_bytes();
    guess_caches(w);
    w->limit = r->memory_free_bytes / 4 * 3;
    if (r->is_gpu && r->device_free_bytes / 4 * 3 < w->limit)
        w->limit = r->device_free_bytes / 4 * 3;
    if (opts->memory_max)
        w->limit = opts->memory_max;
    for (int i = 0; i < r->n_layer; i++)
        cost[i] = 2 * r->layers[i].weights_bytes + w->kv_guess[i];
    max = 2 * weights_max < w->limit ? 2 * weights_max : w->limit;
    max -= max > 2 * (uint64_t)BUFFERS_BYTES ? BUFFERS_BYTES : 0;
    rc = nk__shapes_find(w->m, &w->shapes, err);
    if (rc)
        goto out;
    w->n_tried =
        nk__ranges_choose(w->m, &w->shapes, cost, CACHES * nk__cpu_cache_bytes(), max, ranges, err);
    for (int i = 0; i < w->n_tried; i++)
        w->tried[i].range = ranges[i];
    if (!w->n_tried) {
        rc = NK_E_UNIMPLEMENTED;
        goto out;
    }
    rc = try_all(w, begin_ns, err);
    if (!rc)
        rc = nk__time_embd(w->m, opts->clock, &embd_ms, err);
    if (rc)
        goto out;
    share_times(w);
    share_caches(w);
    for (int kind = 0; kind < NK_RUN_KINDS; kind++)
        r->embd_ms[kind] = embd_ms * r->rows[kind];
    if (!r->compute_bytes && !r->compute_host_bytes) { /* there was no range without the head */
        r->compute_bytes = r->head_compute_bytes;
        r->compute_host_bytes = r->head_compute_host_bytes;
    } else if (!r->head_compute_bytes && !r->head_compute_host_bytes) {
        r->head_compute_bytes = r->compute_bytes;
        r->head_compute_host_bytes = r->compute_host_bytes;
    }
    r->took_ms = (uint32_t)((nk_clock_now_ns(opts->clock) - begin_ns) / 1000000);
out:
    free(w->kv_guess);
    free(cost);
    return rc;
}

static void *work_main(void *arg)
{
    struct work *w = arg;

    w->rc = measure(w, w->err);
    return NULL;
}

int nk_measure(const nk_model *m, const struct nk_measure_opts *opts, struct nk_measured *out,
               struct nk_error *err)
{
    struct nk_measured before, *r = out;
    struct work *w = NULL;
    struct nk_device dev;
    pthread_t thread;
    int rc;

    *out = (struct nk_measured){ 0 };
    if (opts->stage.n_seq_max < 1 || opts->stage.n_batch < 1 || opts->chunk < 0)
        return nk_fail(err, NK_E_INVALID, "bad_option",
                       "%d sequences, batches of %d and chunks of %d: all should be positive",
                       opts->stage.n_seq_max, opts->stage.n_batch, opts->chunk);
    if (nk_model_info(m)->is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s is a slice; give the model that it was cut from",
                       nk_model_info(m)->path);
    rc = nk_device_find(&dev, opts->stage.device, err);
    if (!rc)
        rc = describe(r, m, opts, &dev, err);
    if (!rc && opts->cache_dir && !opts->again &&
        nk__measured_load(opts->cache_dir, r->key, &before)) {
        look_at_memory(&before, &dev, opts);
        nk_measured_release(out);
        *out = before;
        out->cached = true;
        return 0;
    }
    if (!rc && !(w = calloc(1, sizeof *w)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc) {
        *w = (struct work){ .m = m, .opts = opts, .r = r, .err = err };
        rc = nk_thread_start(&thread, work_main, w)
                 ? nk_fail(err, NK_E_EXHAUSTED, "no_threads", "a thread could not be started")
                 : 0;
    }
    if (!rc) {
        pthread_join(thread, NULL);
        rc = w->rc;
    }
    free(w);
    if (rc)
        nk_measured_release(out);
    else if (opts->cache_dir)
        nk__measured_save(opts->cache_dir, out);
    return rc;
}
