#include "slice/gguf_int.h"

#include <errno.h>
#include <fcntl.h>
#include <ggml.h>
#include <gguf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WINDOW = 1 << 16, HEADER_SIZE = 24, ALIGNMENT_MAX = 1 << 16 };

int nk__source_read(const struct nk__source *s, uint64_t offset, void *out, size_t n,
                    struct nk_error *err)
{
    if (offset > s->size || n > s->size - offset)
        return nk_fail(err, NK_E_DATA_LOSS, "truncated",
                       "%zu bytes are wanted at offset %llu of %llu", n, (unsigned long long)offset,
                       (unsigned long long)s->size);
    if (s->fd < 0) {
        memcpy(out, s->data + offset, n);
        return 0;
    }
    while (n) {
        ssize_t got = pread(s->fd, out, n, (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nk_fail(err, NK_E_DATA_LOSS, "read_failed", "reading: %s", strerror(errno));
        if (got == 0)
            return nk_fail(err, NK_E_DATA_LOSS, "truncated",
                           "the file became shorter while it was read");
        out = (char *)out + got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

/* A cursor over the header, with the part that is kept (all but the heavy arrays) copied into
 * `light` as it goes. */
struct walk {
    const struct nk__source *source;
    uint64_t at;
    uint8_t *window;
    uint64_t window_at;
    size_t window_size;
    struct nk_buf light;
    struct nk_buf names; /* of keys and tensors, each with a NUL and 'k' or 't' before it */
    int n_names;
    char where[128]; /* what is being read, for messages */
    struct nk_error *err;
};

static int ends(struct walk *w)
{
    return nk_fail(w->err, NK_E_DATA_LOSS, "truncated",
                   "the file ends (at %llu bytes) in its header, within %s",
                   (unsigned long long)w->source->size, w->where);
}

static int look(struct walk *w, void *out, size_t n)
{
    NK_ASSERT(n <= WINDOW);
    if (n > w->source->size - w->at)
        return ends(w);
    if (w->at < w->window_at || w->at + n > w->window_at + w->window_size) {
        uint64_t left = w->source->size - w->at;
        int rc;

        w->window_at = w->at;
        w->window_size = left < WINDOW ? (size_t)left : WINDOW;
        rc = nk__source_read(w->source, w->at, w->window, w->window_size, w->err);
        if (rc)
            return rc;
    }
    memcpy(out, w->window + (w->at - w->window_at), n);
    w->at += n;
    return 0;
}

static int skip(struct walk *w, uint64_t n)
{
    if (n > w->source->size - w->at)
        return ends(w);
    w->at += n;
    return 0;
}

/* GGUF is little endian, and so is every machine that this runs on: cmake refuses others. */
static int take_u32(struct walk *w, uint32_t *v)
{
    return look(w, v, sizeof *v);
}

static int take_u64(struct walk *w, uint64_t *v)
{
    return look(w, v, sizeof *v);
}

/* The name of a key ('k') or tensor ('t'), NUL-terminated into out, which holds max + 1 bytes. */
static int take_name(struct walk *w, char *out, size_t max, char kind)
{
    uint64_t n;
    int rc = take_u64(w, &n);

    if (rc)
        return rc;
    if (n > max)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s: a name of %llu bytes; at most %zu are allowed", w->where,
                       (unsigned long long)n, max);
    rc = look(w, out, (size_t)n);
    if (rc)
        return rc;
    out[n] = '\0';
    if (n == 0)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "%s: the name is empty", w->where);
    for (uint64_t i = 0; i < n; i++) /* names are printed, and used as C strings */
        if ((unsigned char)out[i] < 0x20 || out[i] == 0x7f)
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "%s: a control character in the name",
                           w->where);
    w->n_names++;
    rc = nk_buf_add(&w->names, &kind, 1, w->err);
    return rc ? rc : nk_buf_add(&w->names, out, (size_t)n + 1, w->err);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No key and no tensor may be there twice. */
static int check_names(struct walk *w)
{
    const char **sorted = malloc((size_t)w->n_names * sizeof *sorted + 1),
               *p = nk_buf_str(&w->names);
    int rc = 0;

    if (!sorted)
        return nk_fail(w->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; i < w->n_names; i++, p += strlen(p) + 1)
        sorted[i] = p;
    qsort(sorted, (size_t)w->n_names, sizeof *sorted, compare_names);
    for (int i = 1; i < w->n_names && !rc; i++)
        if (!strcmp(sorted[i - 1], sorted[i]))
            rc = nk_fail(w->err, NK_E_INVALID, "bad_gguf", "the %s '%.80s' is there twice",
                         sorted[i][0] == 'k' ? "metadata key" : "tensor", sorted[i] + 1);
    free(sorted);
    return rc;
}

static int skip_string(struct walk *w)
{
    uint64_t n;
    int rc = take_u64(w, &n);

    if (rc)
        return rc;
    if (n > NK__STRING_MAX)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s: a string of %llu bytes; at most %d are allowed", w->where,
                       (unsigned long long)n, NK__STRING_MAX);
    return skip(w, n);
}

/* Bytes of one value; 0 for strings, arrays and unknown types. */
static size_t value_size(uint32_t type)
{
    switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL:
        return 1;
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16:
        return 2;
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_FLOAT32:
        return 4;
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_FLOAT64:
        return 8;
    }
    return 0;
}

static int bad_type(struct walk *w, uint32_t type)
{
    return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                   "%s has the value type %u, which GGUF does not know", w->where, type);
}

static int skip_array(struct walk *w, uint64_t *n)
{
    uint32_t type;
    size_t size;
    int rc = take_u32(w, &type);

    if (!rc)
        rc = take_u64(w, n);
    if (rc)
        return rc;
    if (type == GGUF_TYPE_ARRAY)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s is an array of arrays, which no model uses", w->where);
    size = value_size(type);
    if (type != GGUF_TYPE_STRING && !size)
        return bad_type(w, type);
    /* Before anything is multiplied: even an array of empty strings has eight bytes per element in
     * the file. */
    if (*n > (w->source->size - w->at) / (size ? size : 8))
        return nk_fail(
            w->err, NK_E_DATA_LOSS, "truncated",
            "the file ends (at %llu bytes) in its header, within %s, an array of %llu elements",
            (unsigned long long)w->source->size, w->where, (unsigned long long)*n);
    if (size)
        return skip(w, *n * size);
    for (uint64_t i = 0; i < *n && !rc; i++)
        rc = skip_string(w);
    return rc;
}

static int skip_value(struct walk *w, uint32_t type, uint64_t *n)
{
    *n = 1;
    if (type == GGUF_TYPE_STRING)
        return skip_string(w);
    if (type == GGUF_TYPE_ARRAY)
        return skip_array(w, n);
    return value_size(type) ? skip(w, value_size(type)) : bad_type(w, type);
}

/* Copies what was walked since `begin` into the light header. */
static int keep(struct walk *w, uint64_t begin)
{
    char *where;
    int rc;

    if (w->at - begin > NK__LIGHT_MAX)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s is too large: more than %d MiB of metadata", w->where,
                       NK__LIGHT_MAX >> 20);
    if (w->at - begin > w->light.max - w->light.size)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "at %s there are more than %d MiB of metadata beside the tokenizer",
                       w->where, NK__LIGHT_MAX >> 20);
    rc = nk_buf_reserve(&w->light, (size_t)(w->at - begin), &where, w->err);
    if (rc)
        return rc;
    rc = nk__source_read(w->source, begin, where, (size_t)(w->at - begin), w->err);
    if (!rc)
        nk_buf_commit(&w->light, (size_t)(w->at - begin));
    return rc;
}

static int walk_kv(struct walk *w, struct nk__gguf *g, uint64_t idx, uint64_t n_kv,
                   uint64_t *alignment, uint64_t *n_kept)
{
    uint64_t begin = w->at, n;
    char key[NK__KEY_MAX + 1];
    uint32_t type;
    int rc;

    snprintf(w->where, sizeof w->where, "metadata key %llu of %llu", (unsigned long long)idx + 1,
             (unsigned long long)n_kv);
    rc = take_name(w, key, NK__KEY_MAX, 'k');
    if (rc)
        return rc;
    snprintf(w->where, sizeof w->where, "the metadata key '%.80s'", key);
    rc = take_u32(w, &type);
    if (!rc && !strcmp(key, GGUF_KEY_GENERAL_ALIGNMENT)) {
        uint32_t v;

        if (type != GGUF_TYPE_UINT32)
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "%s is not of type u32", w->where);
        rc = take_u32(w, &v);
        if (!rc && (v == 0 || v > ALIGNMENT_MAX || (v & (v - 1))))
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                           "%s is %u; a power of two up to %d is expected", w->where, v,
                           ALIGNMENT_MAX);
        *alignment = v;
    } else if (!rc) {
        rc = skip_value(w, type, &n);
    }
    if (rc)
        return rc;
    if (type == GGUF_TYPE_ARRAY && !strncmp(key, "tokenizer.", 10)) {
        if (g->n_heavy == NK__HEAVY_MAX)
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "more than %d tokenizer arrays",
                           NK__HEAVY_MAX);
        g->heavy[g->n_heavy++] = (struct nk__heavy){
            .begin = begin, .end = w->at, .n = n, .is_tokens = !strcmp(key, "tokenizer.ggml.tokens")
        };
        return 0;
    }
    ++*n_kept;
    return keep(w, begin);
}

/* A tensor's entry; *end becomes the running end of the tensor data. */
static int walk_tensor(struct walk *w, uint64_t idx, uint64_t n_tensors, uint64_t alignment,
                       uint64_t *end)
{
    uint64_t begin = w->at, offset, size, n_blocks;
    char name[GGML_MAX_NAME];
    uint32_t n_dims, type;
    int64_t ne[GGML_MAX_DIMS] = { 1, 1, 1, 1 };
    int64_t block;
    int rc;

    snprintf(w->where, sizeof w->where, "tensor %llu of %llu", (unsigned long long)idx + 1,
             (unsigned long long)n_tensors);
    rc = take_name(w, name, sizeof name - 1, 't');
    if (rc)
        return rc;
    snprintf(w->where, sizeof w->where, "the tensor '%s'", name);
    rc = take_u32(w, &n_dims);
    if (!rc && (n_dims < 1 || n_dims > GGML_MAX_DIMS))
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s has %u dimensions; 1 to %d are possible", w->where, n_dims,
                       GGML_MAX_DIMS);
    for (uint32_t i = 0; i < n_dims && !rc; i++) {
        rc = look(w, &ne[i], sizeof ne[i]);
        if (!rc && ne[i] <= 0)
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "%s has %lld elements in dimension %u",
                           w->where, (long long)ne[i], i);
    }
    if (!rc)
        rc = take_u32(w, &type);
    if (!rc)
        rc = take_u64(w, &offset);
    if (rc)
        return rc;
    block = type < GGML_TYPE_COUNT ? ggml_blck_size((enum ggml_type)type) : 0;
    if (block <= 0)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s has the data type %u, which this llama.cpp does not know", w->where,
                       type);
    if (ne[0] % block)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s has rows of %lld elements; %s comes in blocks of %lld", w->where,
                       (long long)ne[0], ggml_type_name((enum ggml_type)type), (long long)block);
    /* Everything below 2^62: sums and paddings of such numbers cannot overflow 64 bits. */
    n_blocks = (uint64_t)(ne[0] / block);
    size = ggml_type_size((enum ggml_type)type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        uint64_t factor = i == 0 ? n_blocks : (uint64_t)ne[i];

        if (factor > ((uint64_t)1 << 62) / size)
            return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                           "%s has an impossible shape: %lld x %lld x %lld x %lld", w->where,
                           (long long)ne[0], (long long)ne[1], (long long)ne[2], (long long)ne[3]);
        size *= factor;
    }
    if (offset != *end)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%s is said to be at offset %llu of the tensor data; after the tensor "
                       "before it, %llu is expected",
                       w->where, (unsigned long long)offset, (unsigned long long)*end);
    *end += (size + alignment - 1) / alignment * alignment;
    if (*end > (uint64_t)1 << 62)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf", "%s ends past every possible file",
                       w->where);
    return keep(w, begin);
}

static int walk_header(struct walk *w, struct nk__gguf *g)
{
    uint64_t n_tensors, n_kv, n_kept = 0, alignment = GGUF_DEFAULT_ALIGNMENT, end = 0;
    uint32_t magic, version;
    uint8_t *head;
    char *where;
    int rc;

    snprintf(w->where, sizeof w->where, "the first 24 bytes");
    if (w->source->size < 4)
        return nk_fail(w->err, NK_E_INVALID, "bad_magic", "not a GGUF file: it has %llu bytes",
                       (unsigned long long)w->source->size);
    rc = take_u32(w, &magic);
    if (rc)
        return rc;
    if (memcmp(&magic, GGUF_MAGIC, 4) != 0)
        return nk_fail(w->err, NK_E_INVALID, "bad_magic",
                       "not a GGUF file: it begins with %02x %02x %02x %02x, not 'GGUF'",
                       magic & 0xff, magic >> 8 & 0xff, magic >> 16 & 0xff, magic >> 24);
    rc = take_u32(w, &version);
    if (!rc && version != 2 && version != GGUF_VERSION)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "GGUF version %u; versions 2 and %d are understood%s", version, GGUF_VERSION,
                       (version & 0xffff) == 0 ? " (is it a big-endian file?)" : "");
    if (!rc)
        rc = take_u64(w, &n_tensors);
    if (!rc)
        rc = take_u64(w, &n_kv);
    if (rc)
        return rc;
    if (n_tensors > NK__TENSORS_MAX || n_kv > NK__KV_MAX)
        return nk_fail(w->err, NK_E_INVALID, "bad_gguf",
                       "%llu tensors and %llu metadata keys; at most %d and %d are allowed",
                       (unsigned long long)n_tensors, (unsigned long long)n_kv, NK__TENSORS_MAX,
                       NK__KV_MAX);
    rc = keep(w, 0);
    for (uint64_t i = 0; i < n_kv && !rc; i++)
        rc = walk_kv(w, g, i, n_kv, &alignment, &n_kept);
    for (uint64_t i = 0; i < n_tensors && !rc; i++)
        rc = walk_tensor(w, i, n_tensors, alignment, &end);
    if (!rc)
        rc = check_names(w);
    if (rc)
        return rc;
    g->header_end = w->at;
    g->data_offset = (w->at + alignment - 1) / alignment * alignment;
    /* The light header ends as a header does: padded. */
    rc = nk_buf_reserve(&w->light, (size_t)alignment, &where, w->err);
    if (rc)
        return rc;
    memset(where, 0, (size_t)alignment);
    nk_buf_commit(&w->light, (size_t)alignment);
    head = (uint8_t *)w->light.data;
    memcpy(head + 16, &n_kept, sizeof n_kept);
    return 0;
}

static int check_tensor_data(const struct nk__gguf *g, struct nk_error *err)
{
    for (int64_t i = 0; i < gguf_get_n_tensors(g->ctx); i++) {
        uint64_t end =
            g->data_offset + gguf_get_tensor_offset(g->ctx, i) + gguf_get_tensor_size(g->ctx, i);

        if (end > g->source.size)
            return nk_fail(err, NK_E_DATA_LOSS, "truncated",
                           "the tensor '%s' ends at byte %llu; the file has %llu bytes",
                           gguf_get_tensor_name(g->ctx, i), (unsigned long long)end,
                           (unsigned long long)g->source.size);
    }
    return 0;
}

/* Walks and parses the header. */
static int parse(struct nk__gguf *g, struct nk_error *err)
{
    struct walk w = { .source = &g->source,
                      .light = NK_BUF_INIT(NK__LIGHT_MAX + 2 * ALIGNMENT_MAX),
                      .names = NK_BUF_INIT(NK__LIGHT_MAX),
                      .err = err };
    int rc;

    w.window = malloc(WINDOW);
    if (!w.window)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = walk_header(&w, g);
    if (!rc) {
        g->ctx = gguf_init_from_buffer(w.light.data, w.light.size,
                                       (struct gguf_init_params){ .no_alloc = true });
        if (!g->ctx) /* the walk is meant to leave it nothing to find */
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf", "llama.cpp cannot read the metadata");
    }
    nk_buf_release(&w.light);
    nk_buf_release(&w.names);
    free(w.window);
    return rc;
}

static int finish_open(struct nk__gguf *g, int rc, const char *path, bool with_data,
                       struct nk_error *err)
{
    if (!rc) {
        g->path = strdup(path);
        if (!g->path)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    if (!rc)
        rc = parse(g, err);
    if (!rc && with_data)
        rc = check_tensor_data(g, err);
    if (rc) {
        nk__gguf_close(g);
        nk_wrap(rc, err, "%s", path);
    }
    return rc;
}

int nk__gguf_open(struct nk__gguf *g, const char *path, struct nk_error *err)
{
    struct stat st;
    int rc = 0;

    *g = (struct nk__gguf)NK__GGUF_INIT;
    g->source.fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* NONBLOCK: a FIFO must not hang us */
    if (g->source.fd < 0)
        rc = nk_fail(err, errno == ENOENT || errno == ENOTDIR ? NK_E_NOT_FOUND : NK_E_DENIED,
                     "no_file", "cannot open: %s", strerror(errno));
    else if (fstat(g->source.fd, &st) < 0)
        rc = nk_fail(err, NK_E_DENIED, "no_file", "cannot open: %s", strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = nk_fail(err, NK_E_INVALID, "bad_magic", "not a GGUF file but %s",
                     S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    else
        g->source.size = (uint64_t)st.st_size;
    if (!rc && nk_file_id_get(&g->id, g->source.fd))
        rc = nk_fail(err, NK_E_DENIED, "no_file", "cannot open: %s", strerror(errno));
    return finish_open(g, rc, path, true, err);
}

int nk__gguf_open_memory(struct nk__gguf *g, const char *path, const void *data, size_t size,
                         bool with_data, struct nk_error *err)
{
    *g = (struct nk__gguf)NK__GGUF_INIT;
    g->source.data = data;
    g->source.size = size;
    return finish_open(g, 0, path, with_data, err);
}

void nk__gguf_close(struct nk__gguf *g)
{
    gguf_free(g->ctx);
    if (g->source.fd >= 0)
        close(g->source.fd);
    free(g->path);
    *g = (struct nk__gguf)NK__GGUF_INIT;
}

bool nk__kv_uint(const struct gguf_context *c, const char *key, uint64_t *value)
{
    int64_t id = gguf_find_key(c, key), v;

    if (id < 0)
        return false;
    switch (gguf_get_kv_type(c, id)) {
    case GGUF_TYPE_UINT8:
        *value = gguf_get_val_u8(c, id);
        return true;
    case GGUF_TYPE_UINT16:
        *value = gguf_get_val_u16(c, id);
        return true;
    case GGUF_TYPE_UINT32:
        *value = gguf_get_val_u32(c, id);
        return true;
    case GGUF_TYPE_UINT64:
        *value = gguf_get_val_u64(c, id);
        return true;
    case GGUF_TYPE_BOOL:
        *value = gguf_get_val_bool(c, id);
        return true;
    case GGUF_TYPE_INT8:
        v = gguf_get_val_i8(c, id);
        break;
    case GGUF_TYPE_INT16:
        v = gguf_get_val_i16(c, id);
        break;
    case GGUF_TYPE_INT32:
        v = gguf_get_val_i32(c, id);
        break;
    case GGUF_TYPE_INT64:
        v = gguf_get_val_i64(c, id);
        break;
    default:
        return false;
    }
    if (v < 0)
        return false;
    *value = (uint64_t)v;
    return true;
}

const char *nk__kv_string(const struct gguf_context *c, const char *key)
{
    int64_t id = gguf_find_key(c, key);

    return id >= 0 && gguf_get_kv_type(c, id) == GGUF_TYPE_STRING ? gguf_get_val_str(c, id) : NULL;
}

int64_t nk__kv_array_n(const struct gguf_context *c, const char *key)
{
    int64_t id = gguf_find_key(c, key);

    return id >= 0 && gguf_get_kv_type(c, id) == GGUF_TYPE_ARRAY ? (int64_t)gguf_get_arr_n(c, id)
                                                                 : -1;
}

bool nk__kv_array_int(const struct gguf_context *c, const char *key, size_t idx, int64_t *value)
{
    int64_t id = gguf_find_key(c, key), n = nk__kv_array_n(c, key);
    const void *data;

    if (n < 0 || idx >= (size_t)n || gguf_get_arr_type(c, id) == GGUF_TYPE_STRING)
        return false;
    data = gguf_get_arr_data(c, id);
    switch (gguf_get_arr_type(c, id)) {
    case GGUF_TYPE_UINT8:
        *value = ((const uint8_t *)data)[idx];
        return true;
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL:
        *value = ((const int8_t *)data)[idx];
        return true;
    case GGUF_TYPE_UINT16:
        *value = ((const uint16_t *)data)[idx];
        return true;
    case GGUF_TYPE_INT16:
        *value = ((const int16_t *)data)[idx];
        return true;
    case GGUF_TYPE_UINT32:
        *value = ((const uint32_t *)data)[idx];
        return true;
    case GGUF_TYPE_INT32:
        *value = ((const int32_t *)data)[idx];
        return true;
    case GGUF_TYPE_UINT64:
        *value = (int64_t)((const uint64_t *)data)[idx];
        return true;
    case GGUF_TYPE_INT64:
        *value = ((const int64_t *)data)[idx];
        return true;
    default:
        return false;
    }
}
