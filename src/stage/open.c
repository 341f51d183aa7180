/* Opening a stage: the slice is loaded, and one small decode shows where rows enter its graph and
 * where they leave (graph_int.h). */
#include "stage/stage_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <ggml-backend.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/device_int.h"

enum { THREADS_MAX = 512 }; /* GGML_MAX_N_THREADS */
enum { MAPPED_MAX = 4096 };
enum { ANSWER_ABORTED = 2 }; /* of llama_decode (llama.h) */

struct nk_stage_opts nk_stage_opts_default(void)
{
    return (struct nk_stage_opts){ .n_seq_max = 4, .n_batch = 512 };
}

/* A worker's neighbours on the machine may be starting, too. */
static bool has_plenty_of_memory(const char *path)
{
    struct stat st;

    return !stat(path, &st) && nk_memory_available() / 3 > (uint64_t)st.st_size;
}

static int load_model(nk_stage *s, const char *path, const struct nk_stage_opts *opts,
                      struct nk_error *err)
{
    struct llama_model_params mp = llama_model_default_params();
    ggml_backend_dev_t devices[2] = { NULL, NULL }, device;
    int rc = nk__device_find(&device, opts->device, err);

    if (rc)
        return rc;
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        devices[0] = device;
        mp.n_gpu_layers = -1;
        s->on_device = true;
        s->keeps_mapping = true;
    } else {
        mp.n_gpu_layers = 0;
        if (opts->weights == NK_WEIGHTS_READ)
            mp.load_mode = LLAMA_LOAD_MODE_NONE;
        if (opts->trial) { /* neither read nor put into another order */
            mp.load_mode = LLAMA_LOAD_MODE_MMAP;
            mp.use_extra_bufts = false;
        }
        s->keeps_mapping = opts->weights != NK_WEIGHTS_AUTO || !has_plenty_of_memory(path);
    }
    mp.devices = devices;
    nk__llama_error_reset();
    s->model = llama_model_load_from_file(path, mp);
    if (!s->model) {
        const char *why = nk__llama_error();

        if (strstr(why, "alloc") || strstr(why, "memory"))
            return nk_fail(err, NK_E_EXHAUSTED, "no_memory",
                           "%s: no memory for the weights on %s: %s", path,
                           ggml_backend_dev_name(device), why);
        return nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                       "%s: llama.cpp %s cannot load it%s%s", path, llama_version(),
                       *why ? ": " : "", why);
    }
    /* Weights that ggml keeps in an order of its own, or on a device, were read through the mapping
     * once and are not used there again; the others come back with the graphs that find_places
     * runs. */
    if (mp.load_mode != LLAMA_LOAD_MODE_NONE)
        nk_memory_release_file(path);
    return 0;
}

/* Those that llama.cpp's own programs offer for a cache. */
static const enum ggml_type cache_types[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,
                                              GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0,
                                              GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL };
enum { N_CACHE_TYPES = sizeof cache_types / sizeof cache_types[0] };

static int find_cache_type(const char *name, enum ggml_type *out, struct nk_error *err)
{
    char list[160] = "";

    *out = GGML_TYPE_F16;
    if (!name)
        return 0;
    for (int i = 0; i < N_CACHE_TYPES; i++) {
        const char *known = ggml_type_name(cache_types[i]);

        if (!strcmp(name, known)) {
            *out = cache_types[i];
            return 0;
        }
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s",
                 !i                      ? ""
                 : i + 1 < N_CACHE_TYPES ? ", "
                                         : " and ",
                 known);
    }
    return nk_fail(err, NK_E_INVALID, "bad_option", "'%s' is no type of a KV cache; there are %s",
                   name, list);
}

int nk_cache_type_check(const char *type_k, const char *type_v, bool no_flash_attn,
                        struct nk_error *err)
{
    enum ggml_type k, v;
    int rc = find_cache_type(type_k, &k, err);

    if (!rc)
        rc = find_cache_type(type_v, &v, err);
    if (!rc && ggml_is_quantized(v) && no_flash_attn)
        rc = nk_fail(
            err, NK_E_INVALID, "bad_option",
            "values of type %s can only be read by flash attention; without it f32, f16 and "
            "bf16 are possible",
            type_v);
    return rc;
}

static int context_size(const struct nk_stage_opts *opts, int n_ctx_train)
{
    if (opts->n_ctx)
        return opts->n_ctx;
    return n_ctx_train > 0 && n_ctx_train < 8192 ? n_ctx_train : 8192;
}

static int batch_size(int n_batch, int n_seq_max)
{
    return n_batch > n_seq_max ? n_batch : n_seq_max;
}

/* Rows of a run at most: a text that is pooled is one run. */
static int rows_max(const struct nk_stage_opts *opts, enum nk_pooling pooling, int n_ctx)
{
    int text = n_ctx < NK_TEXT_ROWS ? n_ctx : NK_TEXT_ROWS;

    return pooling && opts->n_batch < text ? text : opts->n_batch;
}

/* Bytes of an element, where it is f16 one. */
static double type_scale(enum ggml_type type)
{
    return (double)ggml_type_size(type) / (double)ggml_blck_size(type) / 2;
}

int nk_stage_memory(const nk_model *m, struct nk_range range, const struct nk_stage_opts *opts,
                    struct nk_need_opts *o, struct nk_need *out, struct nk_error *err)
{
    int n_ctx = context_size(opts, nk_model_info(m)->n_ctx_train);
    int n_rows = rows_max(opts, nk_model_info(m)->pooling, n_ctx);
    enum ggml_type k, v;
    int rc = find_cache_type(opts->cache_type_k, &k, err);

    if (!rc)
        rc = find_cache_type(opts->cache_type_v, &v, err);
    if (rc)
        return rc;
    *o = (struct nk_need_opts){ .n_ctx = n_ctx,
                                .n_seq = opts->n_seq_max,
                                .n_batch = batch_size(n_rows, opts->n_seq_max),
                                .kv_scale = (type_scale(k) + type_scale(v)) / 2 };
    nk_model_need(m, range, o, out);
    return 0;
}

/* Linux gives memory before there is any, and then ends whoever uses it, or somebody else: what
 * cannot fit is found out before. Weights that stay in the file's mapping are not counted. */
static int check_memory(const nk_model *m, const char *path, const struct nk_stage_opts *opts,
                        struct nk_error *err)
{
    struct nk_range all = { 0, nk_model_info(m)->n_layer };
    struct nk_need_opts o;
    struct nk_device device;
    struct nk_need need;
    int rc = nk_device_find(&device, opts->device, err);

    if (!rc)
        rc = nk_stage_memory(m, all, opts, &o, &need, err);
    if (rc)
        return rc;
    if (!device.is_gpu && (opts->weights == NK_WEIGHTS_MAPPED || opts->whole_model))
        need.weights_bytes = 0;
    return nk_need_check(&need, &o,
                         device.is_gpu ? device.memory_free_bytes : nk_memory_available(), path,
                         device.name, err);
}

static int make_context(nk_stage *s, const char *path, const struct nk_stage_opts *opts,
                        struct nk_error *err)
{
    struct llama_context_params cp = llama_context_default_params();
    int n_ctx = context_size(opts, s->info.n_ctx_train);
    enum ggml_type type_k, type_v;
    int rc = find_cache_type(opts->cache_type_k, &type_k, err);

    if (!rc)
        rc = find_cache_type(opts->cache_type_v, &type_v, err);
    if (rc)
        return rc;
    s->info.n_batch = rows_max(opts, s->info.pooling, n_ctx);
    if (s->info.pooling)
        s->info.n_ctx_seq = n_ctx; /* libllama makes it a multiple of 256 */
    cp.n_ctx = (uint32_t)n_ctx;
    /* One decode is one graph: rows go in and come out once. libllama aborts where a batch could
     * not hold a row of each sequence. */
    cp.n_batch = cp.n_ubatch = (uint32_t)batch_size(s->info.n_batch, opts->n_seq_max);
    /* Pooling is as the file says where the last stage is; rows leave the others as they are. */
    if (s->info.pooling) {
        cp.embeddings = true;
        cp.pooling_type =
            s->info.is_last ? LLAMA_POOLING_TYPE_UNSPECIFIED : LLAMA_POOLING_TYPE_NONE;
    }
    /* One text at a time, which has all of the context. */
    cp.n_seq_max = s->info.pooling ? 1 : (uint32_t)opts->n_seq_max;
    cp.n_threads = opts->n_threads ? opts->n_threads : nk_cpu_count();
    if (cp.n_threads > THREADS_MAX)
        cp.n_threads = THREADS_MAX;
    cp.n_threads_batch = opts->n_threads_batch ? opts->n_threads_batch : cp.n_threads;
    cp.flash_attn_type =
        opts->no_flash_attn ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
    cp.type_k = type_k;
    cp.type_v = type_v;
    cp.kv_unified = !opts->separate_kv; /* separate streams reorder rows across sequences */
    cp.swa_full = true;                 /* a sliding window that forgets cannot be rolled back */
    cp.no_perf = true;
    cp.cb_eval = nk__stage_eval;
    cp.cb_eval_user_data = s;
    cp.abort_callback = nk__stage_aborted;
    cp.abort_callback_data = s;
    nk__llama_error_reset();
    nk__llama_compute_reset();
    nk__llama_hush(ggml_is_quantized(type_k) || ggml_is_quantized(type_v)); /* told below */
    s->ctx = llama_init_from_model(s->model, cp);
    nk__llama_hush(false);
    /* A quantised type's blocks do not fit this model's heads. */
    if (!s->ctx && strstr(nk__llama_error(), "cache type"))
        return nk_fail(err, NK_E_INVALID, "bad_option", "%s: %s", path, nk__llama_error());
    if (!s->ctx)
        return nk_fail(
            err, NK_E_EXHAUSTED, "no_memory",
            "%s: no context of %d tokens, %d sequences and batches of %d could be made: %s", path,
            n_ctx, opts->n_seq_max, opts->n_batch, nk__llama_error());
    s->info.n_threads = cp.n_threads;
    snprintf(s->info.cache_type_k, sizeof s->info.cache_type_k, "%s", ggml_type_name(type_k));
    snprintf(s->info.cache_type_v, sizeof s->info.cache_type_v, "%s", ggml_type_name(type_v));
    s->n_threads_batch = cp.n_threads_batch;
    return 0;
}

static int allocate(nk_stage *s, struct nk_error *err)
{
    size_t n = (size_t)s->info.n_batch, n_seq = (size_t)s->info.n_seq_max;

    s->zero_ids = calloc(n, sizeof *s->zero_ids);
    s->one_seq = malloc(n * sizeof *s->one_seq);
    s->seq_ptrs = malloc((n + 1) * sizeof *s->seq_ptrs);
    s->all_wanted = malloc(n);
    s->first_pos = malloc(n_seq * sizeof *s->first_pos);
    s->next_pos = malloc(n_seq * sizeof *s->next_pos);
    if (!s->zero_ids || !s->one_seq || !s->seq_ptrs || !s->all_wanted || !s->first_pos ||
        !s->next_pos)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for batches of %zu rows", n);
    for (size_t i = 0; i < n; i++)
        s->one_seq[i] = s->all_wanted[i] = 1;
    return 0;
}

/* Decodes n tokens (or, with embd, n rows of ones) at positions 0.. of sequence 0 and forgets them
 * again; the graph is left in g. quick: the decode may be cut off when the graph is known. */
static int record(nk_stage *s, nk__graph *g, int n, bool embd, bool quick, struct nk_error *err)
{
    struct llama_batch batch = { 0 };
    size_t width = (size_t)llama_model_n_embd_inp(s->model);
    int32_t *pos = calloc((size_t)n, sizeof *pos), *seq = calloc((size_t)n, sizeof *seq);
    float *rows = embd ? malloc((size_t)n * width * sizeof *rows) : NULL;
    int rc = 0, answer;

    if (!pos || !seq || (embd && !rows)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        goto out;
    }
    for (size_t i = 0; embd && i < (size_t)n * width; i++)
        rows[i] = 1;
    for (int i = 0; i < n; i++) {
        pos[i] = i;
        s->seq_ptrs[i] = &seq[i];
    }
    batch.n_tokens = n;
    batch.token = embd ? NULL : s->zero_ids;
    batch.embd = rows;
    batch.pos = pos;
    batch.n_seq_id = s->one_seq;
    batch.seq_id = s->seq_ptrs;
    batch.logits = s->all_wanted;
    nk__graph_reset(g);
    nk__llama_error_reset();
    s->recording = g;
    s->quick = quick;
    s->polled = s->in_pieces = false;
    nk__llama_hush(quick);
    answer = llama_decode(s->ctx, batch);
    nk__llama_hush(false);
    s->recording = NULL;
    if (answer && !(quick && answer == ANSWER_ABORTED))
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "llama.cpp cannot run it: llama_decode answers %d%s%s", answer,
                     *nk__llama_error() ? ": " : "", nk__llama_error());
    else if (!nk__graph_finish(g, n))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    llama_memory_clear(llama_get_memory(s->ctx), true);
out:
    free(pos);
    free(seq);
    free(rows);
    return rc;
}

/* A second graph. Where llama.cpp tells all of a graph before it begins to compute, as `known`'s
 * decode has shown, nothing is computed for it. */
static int record_like(nk_stage *s, const nk__graph *known, bool in_pieces, nk__graph *g, int n,
                       bool embd, struct nk_error *err)
{
    int rc = record(s, g, n, embd, !in_pieces, err);

    if (!rc && !in_pieces && !s->trial && !nk__graph_same_end(known, g))
        rc = record(s, g, n, embd, false, err);
    return rc;
}

static void describe_device(nk_stage *s, struct ggml_backend_buffer *buffer)
{
    ggml_backend_dev_t dev =
        buffer ? ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer)) : NULL;

    if (!dev) /* a buffer type of no device is the CPU's own */
        dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!dev)
        return;
    snprintf(s->info.device, sizeof s->info.device, "%s", ggml_backend_dev_name(dev));
    snprintf(s->info.device_description, sizeof s->info.device_description, "%s",
             ggml_backend_dev_description(dev));
    snprintf(s->info.backend, sizeof s->info.backend, "%s",
             ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)));
}

/* What nk_stage_use_huge_pages moves. */
static int keep_memory(nk_stage *s, const nk__graph *g, struct nk_error *err)
{
    struct ggml_backend_buffer *all[NK__BUFFERS_MAX];
    int n = nk__graph_leaf_buffers(g, all, NK__BUFFERS_MAX);

    for (int i = 0; i < n && i < NK__BUFFERS_MAX; i++) {
        ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(all[i]));

        /* Of a whole mapping the kernel would read in what was released. */
        if ((!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) &&
            !strstr(ggml_backend_buffer_name(all[i]), NK__MAPPED))
            s->buffers[s->n_buffers++] = all[i];
    }
    if (s->keeps_mapping)
        return 0;
    s->mapped = calloc(MAPPED_MAX, sizeof *s->mapped);
    if (!s->mapped)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    s->n_mapped = nk__graph_mapped_weights(g, s->mapped, MAPPED_MAX);
    return 0;
}

uint64_t nk_stage_use_huge_pages(const nk_stage *s, const atomic_bool *stop)
{
    uint64_t total = 0;

    for (int i = 0; i < s->n_buffers; i++)
        total += nk_memory_use_huge_pages(ggml_backend_buffer_get_base(s->buffers[i]),
                                          ggml_backend_buffer_get_size(s->buffers[i]), stop);
    for (int i = 0; i < s->n_mapped; i++)
        total += nk_memory_replace_mapping(s->mapped[i].data, s->mapped[i].size_bytes, stop);
    return total;
}

static bool same_place(const struct nk__place *a, const struct nk__place *b)
{
    return a->op == b->op && a->n_before == b->n_before && a->width == b->width &&
           !strcmp(a->name, b->name);
}

/* What libllama chose by itself. */
static void note_choices(nk_stage *s, const nk__graph *g, const struct nk_model_info *mi)
{
    s->info.flash_attn = nk__graph_has_op(g, GGML_OP_FLASH_ATTN_EXT);
    s->info.n_ctx_orig = mi->n_ctx_orig;
    if (!mi->has_rope_lists)
        return;
    if (nk__graph_reads(g, "rope_factors_long.weight"))
        s->info.rope_factors = NK_ROPE_FACTORS_LONG;
    else if (nk__graph_reads(g, "rope_factors_short.weight"))
        s->info.rope_factors = NK_ROPE_FACTORS_SHORT;
    else /* no layer of these turns anything; others of the chain do */
        s->info.rope_factors =
            s->info.n_ctx_seq > mi->n_ctx_orig ? NK_ROPE_FACTORS_LONG : NK_ROPE_FACTORS_SHORT;
}

/* Finds where rows enter and leave, in graphs of one token and of two: what is not the same in both
 * would not be found again. */
static int find_places(nk_stage *s, const struct nk_model_info *mi, struct nk_error *err)
{
    nk__graph *g = nk__graph_new(), *g2 = nk__graph_new();
    int n_layer = s->info.layer_end - s->info.layer_begin, n = s->info.n_batch > 1 ? 2 : 1, rc = 0;
    struct nk__place embd[2], entry[2], leave[2];
    enum llama_rope_type rope = llama_model_rope_type(s->model);
    bool needs_ids, same = false, in_pieces;

    if (!g || !g2) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        goto out;
    }
    rc = record(s, g, n, false, s->trial, err);
    if (rc)
        goto out;
    /* Several backends tell their parts of the graph one after the other, and a trial sees the
     * first one only. */
    if (s->trial && ggml_backend_dev_count() > 1)
        goto out;
    in_pieces = s->in_pieces;
    rc = keep_memory(s, g, err);
    if (rc)
        goto out;
    note_choices(s, g, mi);
    s->info.kv_bytes = nk__graph_cache_bytes(g);
    s->max_positions = nk__graph_max_positions(g);
    if (s->info.pooling && s->max_positions && s->info.n_ctx_seq > s->max_positions)
        s->info.n_ctx_seq = (int)s->max_positions;
    rc = nk__graph_places(g, n_layer, &embd[0], &entry[0], &leave[0], err);
    /* A whole model needs no places. */
    if (rc == NK_E_UNIMPLEMENTED && s->info.is_first && s->info.is_last) {
        rc = 0;
        describe_device(s, nk__graph_output_buffer(g));
        goto out;
    }
    if (rc)
        goto out;
    describe_device(s, nk__graph_buffer(g, &leave[0]));
    if (s->info.is_first && s->info.is_last)
        goto out;
    rc = record_like(s, g, in_pieces, g2, 1, false, err);
    if (!rc)
        rc = nk__graph_places(g2, n_layer, &embd[1], &entry[1], &leave[1], err);
    if (rc)
        goto out;
    if (!same_place(&embd[0], &embd[1]) || !same_place(&entry[0], &entry[1]) ||
        (!(s->info.is_last && s->info.pooling) && !same_place(&leave[0], &leave[1]))) {
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "rows enter or leave at different nodes in graphs of one token and of more");
        goto out;
    }
    rc = nk__graph_needs_ids(g, &needs_ids, err);
    if (rc)
        goto out;
    if (!s->real_ids && needs_ids) {
        rc = nk_fail(
            err, NK_E_UNIMPLEMENTED, "unsupported",
            "its layers read the token ids, but the slice was written without the vocabulary");
        goto out;
    }
    if (!s->info.is_last)
        s->out = leave[0];
    if (s->info.is_first && s->real_ids) {
        s->enter = NK__ENTER_IDS;
    } else {
        s->enter = NK__ENTER_OVERWRITE;
        s->in = s->info.is_first ? embd[0] : entry[0];
        /* Row input does the same work with one piece of graph less, where nothing stands between
         * it and layer 0. M-RoPE wants four positions for a row, and one for a token. */
        if ((!s->info.is_first || same_place(&embd[0], &entry[0])) && !needs_ids &&
            rope != LLAMA_ROPE_TYPE_MROPE && rope != LLAMA_ROPE_TYPE_IMROPE &&
            llama_model_n_embd_inp(s->model) == entry[0].width) {
            rc = record_like(s, g, in_pieces, g2, n, true, err);
            if (!rc)
                rc = nk__graph_same_after_entry(g, &entry[0], g2, &same, err);
            if (rc == NK_E_EXHAUSTED)
                goto out;
            rc = 0; /* llama.cpp takes no rows for this model */
        }
        if (same) {
            s->enter = NK__ENTER_EMBD;
            s->in.found = false;
        }
    }
    s->info.n_embd = (int)(s->info.is_last ? entry[0].width : leave[0].width);
    if (!s->info.is_first && entry[0].width != s->info.n_embd)
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "rows of %lld floats enter it, rows of %d leave it", (long long)entry[0].width,
                     s->info.n_embd);
out:
    nk__graph_free(g);
    nk__graph_free(g2);
    return rc;
}

/* What the file says of itself, against what the caller wants it to be. */
static int read_file_info(nk_stage *s, nk_model **out, const char *path,
                          const struct nk_stage_opts *opts, struct nk_error *err)
{
    const struct nk_model_info *mi;
    int rc = nk_model_open(out, path, err);

    if (rc == NK_E_DATA_LOSS || (rc == NK_E_INVALID && err)) {
        if (err) {
            err->code = NK_E_INVALID;
            snprintf(err->reason, sizeof err->reason, "bad_gguf");
        }
        return NK_E_INVALID;
    }
    if (rc)
        return rc;
    mi = nk_model_info(*out);
    if (mi->is_slice && opts->whole_model)
        rc = nk_fail(err, NK_E_INVALID, "not_a_model",
                     "%s holds layers %d-%d of %d: a whole model is wanted here", path,
                     mi->layer_begin, mi->layer_end, mi->layer_count);
    else if (!mi->is_slice && !opts->whole_model)
        rc = nk_fail(err, NK_E_INVALID, "not_a_slice",
                     "%s is a whole model, or no slice of ours: a slice is wanted here (`nakshatra "
                     "split` writes them)",
                     path);
    snprintf(s->info.model_sha256, sizeof s->info.model_sha256, "%s", mi->model_sha256);
    snprintf(s->info.model_name, sizeof s->info.model_name, "%s", mi->name);
    snprintf(s->info.architecture, sizeof s->info.architecture, "%s", mi->architecture);
    snprintf(s->info.quantisation, sizeof s->info.quantisation, "%s", mi->quantisation);
    s->info.layer_begin = mi->is_slice ? mi->layer_begin : 0;
    s->info.layer_end = mi->is_slice ? mi->layer_end : mi->n_layer;
    s->info.layer_count = mi->is_slice ? mi->layer_count : mi->n_layer;
    s->info.is_first = s->info.layer_begin == 0;
    s->info.is_last = s->info.layer_end == s->info.layer_count;
    s->info.n_embd = mi->n_embd;
    s->info.n_vocab = mi->n_vocab;
    s->info.pooling = mi->pooling;
    return rc;
}

/* The slice is loaded: is it what was written, and what this process has read? */
static int finish_check(nk_stage *s, nk_slice_check *check, struct nk_error *err)
{
    struct nk_slice_checked checked;
    char quoted[512];
    int rc = nk_slice_check_wait(check, &checked, err);

    if (!rc && !s->trial &&
        (nk_file_watch_written(&s->file) ||
         (s->file.fd >= 0 && !nk_file_watch_is_at(&s->file, s->path))))
        rc = nk_fail(err, NK_E_ABORTED, "file_changed", "%s was changed while it was loaded",
                     s->path);
    s->info.verified = checked.verified;
    if (!rc && checked.verified == NK_VERIFIED_NO_DIGESTS && s->file.fd >= 0)
        nk_log(NK_LOG_STAGE, NK_LOG_WARN,
               "slice=%s msg=\"an earlier version wrote this slice, without digests: whether it is "
               "damaged cannot be told; a new split has them\"",
               nk_log_quote(quoted, sizeof quoted, s->path));
    return rc;
}

static int check_opts(const struct nk_stage_opts *o, struct nk_error *err)
{
    if (o->n_seq_max < 1 || o->n_seq_max > (int)llama_max_parallel_sequences())
        return nk_fail(err, NK_E_INVALID, "bad_option", "n_seq_max is %d; 1 to %zu is possible",
                       o->n_seq_max, llama_max_parallel_sequences());
    if (o->n_batch < 1 || o->n_batch > 65536)
        return nk_fail(err, NK_E_INVALID, "bad_option", "n_batch is %d; 1 to 65536 is possible",
                       o->n_batch);
    if (o->n_ctx < 0 || o->n_ctx > 1 << 27)
        return nk_fail(err, NK_E_INVALID, "bad_option", "n_ctx is %d; 0 to %d is possible",
                       o->n_ctx, 1 << 27);
    if (o->n_threads < 0 || o->n_threads > THREADS_MAX || o->n_threads_batch < 0 ||
        o->n_threads_batch > THREADS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_option", "threads: %d and %d; 0 to 512 is possible",
                       o->n_threads, o->n_threads_batch);
    return nk_cache_type_check(o->cache_type_k, o->cache_type_v, o->no_flash_attn, err);
}

int nk_stage_open(nk_stage **out, const char *path, const struct nk_stage_opts *opts,
                  struct nk_error *err)
{
    nk_stage *s = calloc(1, sizeof *s);
    nk_slice_check *check = NULL;
    nk_model *m = NULL;
    struct nk_error why;
    size_t rows;
    int rc;

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    s->file = (struct nk_file_watch)NK_FILE_WATCH_INIT;
    s->trial = opts->trial;
    rc = check_opts(opts, err);
    if (!rc && !(s->path = strdup(path)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    /* Before anybody else opens it. */
    if (!rc && !opts->whole_model)
        rc = nk_file_watch_open(&s->file, path, err);
    if (!rc)
        rc = read_file_info(s, &m, path, opts, err);
    if (!rc)
        rc = check_memory(m, path, opts, err);
    if (!rc && !opts->whole_model)
        rc = nk_slice_check_start(&check, m, opts->verify, err);
    if (!rc)
        rc = load_model(s, path, opts, err);
    if (rc)
        goto out;
    s->info.n_ctx_train = llama_model_n_ctx_train(s->model);
    if (s->info.pooling && s->info.is_last)
        s->info.n_pooled = s->info.pooling == NK_POOLING_RANK ? (int)llama_model_n_cls_out(s->model)
                                                              : llama_model_n_embd_out(s->model);
    s->info.weights_bytes = llama_model_size(s->model);
    s->info.can_rollback = !llama_model_is_recurrent(s->model) && !llama_model_is_hybrid(s->model);
    s->info.equal_rows_per_run =
        !s->info.can_rollback && nk_model_info(m)->equal_rows && !opts->separate_kv;
    s->info.one_sequence_per_run = s->info.pooling || opts->separate_kv ||
                                   (!s->info.can_rollback && !s->info.equal_rows_per_run);
    s->info.n_seq_max = opts->n_seq_max;
    s->info.n_batch = opts->n_batch;
    snprintf(s->info.llama_version, sizeof s->info.llama_version, "%s", llama_version());
    snprintf(s->info.ggml_version, sizeof s->info.ggml_version, "%s", ggml_version());
    s->n_swa = llama_model_n_swa(s->model);
    s->real_ids = llama_vocab_n_tokens(llama_model_get_vocab(s->model)) >= s->info.n_vocab;
    if (s->info.is_first && !s->real_ids) {
        rc = nk_embd_open(&s->embd, m, opts->weights == NK_WEIGHTS_READ, err);
        s->embd_width = (size_t)nk_model_info(m)->n_embd;
    }
    if (rc)
        goto out;
    /* Before it computes: the other threads would be in the way of libllama's. */
    rc = finish_check(s, check, err);
    check = NULL;
    if (!rc)
        rc = make_context(s, path, opts, err);
    if (rc)
        goto out;
    s->info.n_ctx = (int)llama_n_ctx(s->ctx);
    if (!s->info.pooling || s->info.n_ctx_seq > (int)llama_n_ctx_seq(s->ctx))
        s->info.n_ctx_seq = (int)llama_n_ctx_seq(s->ctx);
    rc = allocate(s, err);
    if (rc)
        goto out;
    rc = find_places(s, nk_model_info(m), err);
    if (rc) {
        nk_wrap(rc, err, "%s", path);
        goto out;
    }
    nk__llama_compute_bytes(s->info.device, &s->info.compute_bytes, &s->info.compute_host_bytes);
    rows = (size_t)s->info.n_batch * (size_t)s->info.n_embd;
    if (!s->info.is_last)
        s->out_rows = malloc(rows * sizeof(float));
    if (s->embd)
        s->embd_rows = malloc((size_t)s->info.n_batch * s->embd_width * sizeof(float));
    if ((!s->info.is_last && !s->out_rows) || (s->embd && !s->embd_rows)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for batches of %d rows",
                     s->info.n_batch);
        goto out;
    }
    if (opts->weights == NK_WEIGHTS_READ && !s->on_device)
        nk_file_watch_close(&s->file);
    nk_log(NK_LOG_STAGE, NK_LOG_DEBUG,
           "event=loaded arch=%s layers=%d-%d/%d device=%s n_ctx=%d enter=%s", s->info.architecture,
           s->info.layer_begin, s->info.layer_end, s->info.layer_count, s->info.device,
           s->info.n_ctx,
           s->enter == NK__ENTER_IDS    ? "ids"
           : s->enter == NK__ENTER_EMBD ? "embd"
                                        : "overwrite");
    *out = s;
    s = NULL;
out:
    /* A damaged file is why, whatever else it has led to. */
    if (nk_slice_check_wait(check, NULL, &why) == NK_E_DATA_LOSS) {
        rc = why.code;
        if (err)
            *err = why;
    }
    nk_model_close(m);
    nk_stage_close(s);
    return rc;
}

void nk_stage_close(nk_stage *s)
{
    if (!s)
        return;
    if (s->ctx)
        llama_free(s->ctx);
    if (s->model)
        llama_model_free(s->model);
    nk_embd_close(s->embd);
    nk_file_watch_close(&s->file);
    free(s->path);
    free(s->mapped);
    free(s->zero_ids);
    free(s->one_seq);
    free(s->seq_ptrs);
    free(s->all_wanted);
    free(s->embd_rows);
    free(s->out_rows);
    free(s->first_pos);
    free(s->next_pos);
    free(s);
}

const struct nk_stage_info *nk_stage_info(const nk_stage *s)
{
    return &s->info;
}

const struct llama_vocab *nk_stage_vocab(const nk_stage *s)
{
    return s->info.is_last ? llama_model_get_vocab(s->model) : NULL;
}
