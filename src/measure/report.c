/* A measurement as JSON and back: one table of fields for both. docs/measuring.md tells them. */
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "measure/measure_int.h"

enum kind { TEXT, FLAG, COUNT, BYTES, MILLISECONDS, TIMES };

static const struct field {
    const char *name;
    enum kind kind;
    size_t offset, size;
    int64_t min; /* of a COUNT */
} fields[] = {
#define FIELD(name, kind, min)                                                                     \
    {                                                                                              \
#name, kind, offsetof(struct nk_measured, name),                                           \
            sizeof(((struct nk_measured *)NULL)->name), min                                        \
    }
    FIELD(key, TEXT, 0),
    FIELD(cached, FLAG, 0),
    FIELD(version, TEXT, 0),
    FIELD(llama_version, TEXT, 0),
    FIELD(ggml_version, TEXT, 0),
    FIELD(device, TEXT, 0),
    FIELD(device_description, TEXT, 0),
    FIELD(backend, TEXT, 0),
    FIELD(cpu, TEXT, 0),
    FIELD(is_gpu, FLAG, 0),
    FIELD(n_cores, COUNT, 1),
    FIELD(n_threads, COUNT, 1),
    FIELD(n_threads_batch, COUNT, 1),
    FIELD(device_total_bytes, BYTES, 0),
    FIELD(device_free_bytes, BYTES, 0),
    FIELD(memory_total_bytes, BYTES, 0),
    FIELD(memory_free_bytes, BYTES, 0),
    FIELD(disk_free_bytes, BYTES, 0),
    FIELD(architecture, TEXT, 0),
    FIELD(shape, TEXT, 0),
    FIELD(n_layer, COUNT, 1),
    FIELD(n_embd, COUNT, 1),
    FIELD(n_vocab, COUNT, 1),
    FIELD(n_ctx, COUNT, 1),
    FIELD(n_sequences, COUNT, 1),
    FIELD(n_batch, COUNT, 1),
    FIELD(cache_type_k, TEXT, 0),
    FIELD(cache_type_v, TEXT, 0),
    FIELD(flash_attn, FLAG, 0),
    FIELD(one_sequence_per_run, FLAG, 0),
    FIELD(fixed_ms, TIMES, 0),
    FIELD(head_ms, TIMES, 0),
    FIELD(embd_ms, TIMES, 0),
    FIELD(head_bytes, BYTES, 0),
    FIELD(embd_bytes, BYTES, 0),
    FIELD(other_bytes, BYTES, 0),
    FIELD(compute_bytes, BYTES, 0),
    FIELD(compute_host_bytes, BYTES, 0),
    FIELD(head_compute_bytes, BYTES, 0),
    FIELD(head_compute_host_bytes, BYTES, 0),
    FIELD(process_bytes, BYTES, 0),
    FIELD(took_ms, MILLISECONDS, 0),
#undef FIELD
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static const int64_t bytes_max = (int64_t)1 << 53; /* what JSON's readers keep exactly */
static const double ms_max = 1e9, ms_min = 1e-9;   /* less is nothing */

/* ---- out ---- */

static int add_times(struct nk_buf *out, const double ms[NK_RUN_KINDS], struct nk_error *err)
{
    int rc = nk_buf_adds(out, "[", err);

    for (int k = 0; k < NK_RUN_KINDS && !rc; k++) {
        double x = ms[k] < ms_min ? 0 : ms[k], scale = x > 0 ? pow(10, 4 - floor(log10(x))) : 1;

        rc = nk_buf_adds(out, k ? ", " : "", err);
        if (!rc) /* five digits: more were not measured */
            rc = nk_json_num(out, round(x * scale) / scale, err);
    }
    return rc ? rc : nk_buf_adds(out, "]", err);
}

static int add_field(const struct nk_measured *r, const struct field *f, struct nk_buf *out,
                     struct nk_error *err)
{
    const char *at = (const char *)r + f->offset;
    uint64_t bytes;
    uint32_t ms;
    bool flag;
    int n;

    switch (f->kind) {
    case TEXT:
        return nk_json_str(out, at, err);
    case FLAG:
        memcpy(&flag, at, sizeof flag);
        return nk_buf_adds(out, flag ? "true" : "false", err);
    case COUNT:
        memcpy(&n, at, sizeof n);
        return nk_json_num(out, n, err);
    case BYTES:
        memcpy(&bytes, at, sizeof bytes);
        return nk_json_num(out, (double)bytes, err);
    case MILLISECONDS:
        memcpy(&ms, at, sizeof ms);
        return nk_json_num(out, ms, err);
    default:
        return add_times(out, (const double *)(const void *)at, err);
    }
}

int nk_measured_format(const struct nk_measured *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; i < N_FIELDS && !rc; i++) {
        rc = nk_buf_addf(out, err, "%s\"%s\": ", i ? ", " : "{", fields[i].name);
        if (!rc)
            rc = add_field(r, &fields[i], out, err);
    }
    if (!rc)
        rc = nk_buf_addf(out, err, ", \"rows\": [%d, %d, %d], \"layers\": [", r->rows[NK_RUN_ONE],
                         r->rows[NK_RUN_EIGHT], r->rows[NK_RUN_CHUNK]);
    for (int i = 0; i < r->n_layer && !rc; i++) {
        const struct nk_measured_layer *l = &r->layers[i];

        rc = nk_buf_addf(out, err,
                         "%s{\"weights_bytes\": %llu, \"kv_bytes\": %llu, \"ms\": ", i ? ", " : "",
                         (unsigned long long)l->weights_bytes, (unsigned long long)l->kv_bytes);
        if (!rc)
            rc = add_times(out, l->ms, err);
        if (!rc)
            rc = nk_buf_adds(out, "}", err);
    }
    return rc ? rc : nk_buf_adds(out, "]}", err);
}

/* ---- in ---- */

static int bad(const char *name, const char *want, struct nk_error *err)
{
    return nk_fail(err, NK_E_INVALID, "bad_measurement",
                   "a machine's measurement is unusable: '%s' should be %s", name, want);
}

static int get_bytes(const json_t *v, const char *name, uint64_t *out, struct nk_error *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > bytes_max)
        return bad(name, "a number of bytes", err);
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

static int get_times(const json_t *v, const char *name, double out[NK_RUN_KINDS],
                     struct nk_error *err)
{
    for (size_t k = 0; k < NK_RUN_KINDS; k++) {
        const json_t *x = json_array_get(v, k);

        out[k] = json_number_value(x);
        if (json_array_size(v) != NK_RUN_KINDS || !json_is_number(x) ||
            !(out[k] >= 0 && out[k] <= ms_max))
            return bad(name, "three times in milliseconds", err);
    }
    return 0;
}

static int get_field(struct nk_measured *r, const struct field *f, const json_t *v,
                     struct nk_error *err)
{
    char *at = (char *)r + f->offset;
    uint64_t bytes = 0;
    uint32_t ms;
    bool flag;
    int n, rc;

    switch (f->kind) {
    case TEXT:
        if (!json_is_string(v) || json_string_length(v) >= f->size)
            return bad(f->name, "a text, and shorter", err);
        memcpy(at, json_string_value(v), json_string_length(v) + 1);
        return 0;
    case FLAG:
        if (!json_is_boolean(v))
            return bad(f->name, "true or false", err);
        flag = json_is_true(v);
        memcpy(at, &flag, sizeof flag);
        return 0;
    case COUNT:
        if (!json_is_integer(v) || json_integer_value(v) < f->min ||
            json_integer_value(v) > INT32_MAX)
            return bad(f->name, "a positive number", err);
        n = (int)json_integer_value(v);
        memcpy(at, &n, sizeof n);
        return 0;
    case BYTES:
        rc = get_bytes(v, f->name, &bytes, err);
        memcpy(at, &bytes, sizeof bytes);
        return rc;
    case MILLISECONDS:
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > UINT32_MAX)
            return bad(f->name, "a time in milliseconds", err);
        ms = (uint32_t)json_integer_value(v);
        memcpy(at, &ms, sizeof ms);
        return 0;
    default:
        return get_times(v, f->name, (double *)(void *)at, err);
    }
}

static int get_layers(struct nk_measured *r, const json_t *layers, struct nk_error *err)
{
    int rc = 0;

    if (r->n_layer > NK_LAYERS_MAX || json_array_size(layers) != (size_t)r->n_layer)
        return bad("layers", "a list of n_layer layers", err);
    r->layers = calloc((size_t)r->n_layer, sizeof *r->layers);
    if (!r->layers)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < r->n_layer && !rc; i++) {
        const json_t *l = json_array_get(layers, (size_t)i);

        rc = get_bytes(json_object_get(l, "weights_bytes"), "weights_bytes",
                       &r->layers[i].weights_bytes, err);
        if (!rc)
            rc = get_bytes(json_object_get(l, "kv_bytes"), "kv_bytes", &r->layers[i].kv_bytes, err);
        if (!rc)
            rc = get_times(json_object_get(l, "ms"), "ms", r->layers[i].ms, err);
    }
    return rc;
}

int nk_measured_parse(const char *text, size_t size, struct nk_measured *out, struct nk_error *err)
{
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL), *rows;
    int rc = 0;

    *out = (struct nk_measured){ 0 };
    if (!json_is_object(root))
        rc = nk_fail(err, NK_E_INVALID, "bad_measurement",
                     "a machine's measurement should be one JSON object");
    for (int i = 0; i < N_FIELDS && !rc; i++)
        rc = get_field(out, &fields[i], json_object_get(root, fields[i].name), err);
    rows = json_object_get(root, "rows");
    for (size_t k = 0; k < NK_RUN_KINDS && !rc; k++) {
        const json_t *n = json_array_get(rows, k);

        if (!json_is_integer(n) || json_integer_value(n) < 1 || json_integer_value(n) > 1 << 20)
            rc = bad("rows", "three positive numbers", err);
        else
            out->rows[k] = (int)json_integer_value(n);
    }
    if (!rc)
        rc = get_layers(out, json_object_get(root, "layers"), err);
    json_decref(root);
    if (rc)
        nk_measured_release(out);
    return rc;
}
