#include "pieces/catalogue.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "pieces/catalogue_int.h"

static const char magic[8] = { 'n', 'k', 'c', 'a', 't', ' ', '1', '\n' };

enum { SHARDS_MAX = 4096, NAME_MAX_BYTES = 200, CATALOGUES_KEPT_MAX = 32 };

/* ---- digests ---- */

void nk__digest_text(const uint8_t digest[NK_DIGEST_BYTES], char hex[NK_SHA256_HEX])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < NK_DIGEST_BYTES; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[2 * NK_DIGEST_BYTES] = '\0';
}

bool nk__is_id(const char *text)
{
    return strspn(text, "0123456789abcdef") == NK_SHA256_HEX - 1 &&
           strlen(text) == NK_SHA256_HEX - 1;
}

static int digit(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

bool nk__digest_parse(const char *hex, uint8_t digest[NK_DIGEST_BYTES])
{
    if (!nk__is_id(hex))
        return false;
    for (int i = 0; i < NK_DIGEST_BYTES; i++)
        digest[i] = (uint8_t)(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
    return true;
}

bool nk__digest(const void *data, size_t size, uint8_t out[NK_DIGEST_BYTES])
{
    nk_sha256 *h = nk_sha256_new();
    char hex[NK_SHA256_HEX];

    if (!h)
        return false;
    nk_sha256_add(h, data, size);
    nk_sha256_finish(h, hex);
    return nk__digest_parse(hex, out);
}

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

/* ---- life ---- */

nk_catalogue *nk_catalogue_ref(nk_catalogue *c)
{
    atomic_fetch_add(&c->refs, 1);
    return c;
}

void nk_catalogue_unref(nk_catalogue *c)
{
    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    nk_model_close(c->model); /* borrows the heads in bytes */
    free(c->bytes);
    free(c->pieces);
    free(c->names);
    free(c->parts);
    free(c->tensors);
    free(c->members);
    free(c->first_members);
    free(c);
}

struct nk_bytes nk_catalogue_bytes(const nk_catalogue *c)
{
    return (struct nk_bytes){ c->bytes, c->size };
}

const char *nk_catalogue_id(const nk_catalogue *c)
{
    return c->id;
}

const char *nk_catalogue_model_sha256(const nk_catalogue *c)
{
    return c->model_sha256;
}

const nk_model *nk_catalogue_model(const nk_catalogue *c)
{
    return c->model;
}

int nk_catalogue_n_pieces(const nk_catalogue *c)
{
    return c->n_pieces;
}

int nk_catalogue_n_parts(const nk_catalogue *c)
{
    return c->n_parts;
}

const struct nk_piece *nk_catalogue_piece(const nk_catalogue *c, int piece)
{
    NK_ASSERT(piece >= 0 && piece < c->n_pieces);
    return &c->pieces[piece];
}

const struct nk_part *nk_catalogue_part(const nk_catalogue *c, int part)
{
    NK_ASSERT(part >= 0 && part < c->n_parts);
    return &c->parts[part];
}

/* ---- what follows from the heads ---- */

/* Which tensors are in which piece. */
static int list_pieces(nk_catalogue *c, const nk_model *m, struct nk_error *err)
{
    int n_layer = nk_model_info(m)->n_layer, n = nk_model_n_tensors(m), *next;

    c->n_tensors = n;
    c->n_pieces = n_layer;
    c->tensors = calloc((size_t)n, sizeof *c->tensors);
    c->pieces = calloc((size_t)(n_layer + n), sizeof *c->pieces);
    c->names = calloc((size_t)(n_layer + n), sizeof *c->names);
    c->first_members = calloc((size_t)(n_layer + n + 2), sizeof *c->first_members);
    c->members = calloc((size_t)n, sizeof *c->members);
    if (!c->tensors || !c->pieces || !c->names || !c->first_members || !c->members)
        return no_memory(err);
    for (int i = 0; i < n_layer; i++) {
        c->pieces[i].layer = i;
        snprintf(c->names[i], sizeof c->names[i], "layer %d", i);
    }
    next = c->first_members + 2; /* counts first; then where the next member goes */
    for (int i = 0; i < n; i++) {
        struct nk__tensor_in *t = &c->tensors[i];
        struct nk_tensor_place place;
        struct nk_piece *p;

        nk_model_tensor_place(m, i, &place);
        t->size = place.size_bytes;
        t->piece = place.layer < 0 ? c->n_pieces++ : place.layer < n_layer ? place.layer : -1;
        if (t->piece < 0)
            continue;
        p = &c->pieces[t->piece];
        if (place.layer < 0) {
            p->layer = -1;
            snprintf(c->names[t->piece], sizeof *c->names, "%.79s", place.name);
        }
        t->offset = p->size_bytes;
        p->size_bytes += t->size;
        if (p->size_bytes > (uint64_t)NK_PARTS_MAX * NK_PART_BYTES)
            return nk_fail(err, NK_E_INVALID, "too_large", "%s has more than %llu bytes of weights",
                           c->names[t->piece], (unsigned long long)NK_PARTS_MAX * NK_PART_BYTES);
        next[t->piece]++;
    }
    for (int i = 0; i < c->n_pieces; i++)
        next[i] += next[i - 1];
    for (int i = 0; i < n; i++)
        if (c->tensors[i].piece >= 0)
            c->members[c->first_members[c->tensors[i].piece + 1]++] = i;
    return 0;
}

/* Which parts there are, without their digests. */
static int list_parts(nk_catalogue *c, struct nk_error *err)
{
    uint64_t n = 0;
    int part = 0;

    for (int i = 0; i < c->n_pieces; i++)
        n += (c->pieces[i].size_bytes + NK_PART_BYTES - 1) / NK_PART_BYTES;
    if (n > NK_PARTS_MAX)
        return nk_fail(err, NK_E_INVALID, "too_large",
                       "the model has %llu parts of %d MiB; at most %d are possible",
                       (unsigned long long)n, NK_PART_BYTES >> 20, NK_PARTS_MAX);
    c->parts = calloc((size_t)n + 1, sizeof *c->parts);
    if (!c->parts)
        return no_memory(err);
    c->n_parts = (int)n;
    for (int i = 0; i < c->n_pieces; i++) {
        struct nk_piece *p = &c->pieces[i];
        uint64_t left = p->size_bytes;

        p->name = c->names[i];
        p->first_part = part;
        p->n_parts = (int)((left + NK_PART_BYTES - 1) / NK_PART_BYTES);
        for (; left; part++) {
            c->parts[part].piece = i;
            c->parts[part].size_bytes = left < NK_PART_BYTES ? (uint32_t)left : NK_PART_BYTES;
            left -= c->parts[part].size_bytes;
        }
    }
    return 0;
}

bool nk__segment_next(struct nk__segment *s)
{
    const nk_catalogue *c = s->c;
    const struct nk_part *p = &c->parts[s->part];
    int first = c->first_members[p->piece], end = c->first_members[p->piece + 1];
    uint64_t begin = (uint64_t)(s->part - c->pieces[p->piece].first_part) * NK_PART_BYTES;
    const struct nk__tensor_in *t;

    if (!s->size) { /* the first: the last tensor that begins at or before the part */
        int lo = first, hi = end;

        while (hi - lo > 1) {
            int mid = lo + (hi - lo) / 2;

            if (c->tensors[c->members[mid]].offset <= begin)
                lo = mid;
            else
                hi = mid;
        }
        s->member = lo;
    } else {
        s->at += s->size;
        s->member++;
    }
    if (s->at == p->size_bytes || s->member == end)
        return false;
    s->tensor = c->members[s->member];
    t = &c->tensors[s->tensor];
    s->from = begin + s->at - t->offset;
    s->size = t->size - s->from < p->size_bytes - s->at ? (uint32_t)(t->size - s->from)
                                                        : p->size_bytes - s->at;
    return true;
}

bool nk__part_is_wanted(const nk_catalogue *c, int part, const uint64_t *wants)
{
    struct nk__segment s = { .c = c, .part = part };

    while (nk__segment_next(&s))
        if (s.from < wants[s.tensor])
            return true;
    return false;
}

/* ---- bytes ---- */

/* Numbers as they are in memory: cmake refuses machines that are not little endian. */
static int add_u32(struct nk_buf *b, uint32_t v, struct nk_error *err)
{
    return nk_buf_add(b, &v, sizeof v, err);
}

static int add_u64(struct nk_buf *b, uint64_t v, struct nk_error *err)
{
    return nk_buf_add(b, &v, sizeof v, err);
}

static int format(const nk_catalogue *c, const nk_model *m, struct nk_buf *b, struct nk_error *err)
{
    const char *name = nk_model_file_name(m);
    int n_shards = nk_model_info(m)->n_shards, rc;
    uint8_t sha256[NK_DIGEST_BYTES];

    nk__digest_parse(c->model_sha256, sha256);
    rc = nk_buf_add(b, magic, sizeof magic, err);
    if (!rc)
        rc = add_u32(b, NK_PART_BYTES, err);
    if (!rc)
        rc = add_u32(b, (uint32_t)n_shards, err);
    if (!rc)
        rc = add_u32(b, (uint32_t)c->n_pieces, err);
    if (!rc)
        rc = add_u32(b, (uint32_t)c->n_parts, err);
    if (!rc)
        rc = nk_buf_add(b, sha256, sizeof sha256, err);
    if (!rc)
        rc = add_u32(b, (uint32_t)strlen(name), err);
    if (!rc)
        rc = nk_buf_adds(b, name, err);
    for (int i = 0; i < n_shards && !rc; i++) {
        rc = add_u64(b, nk_model_shard_bytes(m, i), err);
        if (!rc)
            rc = add_u64(b, nk_model_head_bytes(m, i), err);
    }
    for (int i = 0; i < n_shards && !rc; i++) {
        uint64_t n = nk_model_head_bytes(m, i);
        char *where;

        rc = n <= NK_CATALOGUE_BYTES_MAX ? nk_buf_reserve(b, (size_t)n, &where, err)
                                         : nk_fail(err, NK_E_EXHAUSTED, "too_large", "head");
        if (!rc)
            rc = nk_model_read(m, i, 0, where, (size_t)n, err);
        if (!rc)
            nk_buf_commit(b, (size_t)n);
    }
    for (int i = 0; i < c->n_pieces && !rc; i++) {
        const struct nk_piece *p = &c->pieces[i];

        rc = nk_buf_add(b, p->sha256, NK_DIGEST_BYTES, err);
        for (int k = 0; k < p->n_parts && !rc; k++)
            rc = nk_buf_add(b, c->parts[p->first_part + k].sha256, NK_DIGEST_BYTES, err);
    }
    if (rc == NK_E_EXHAUSTED && (!err || !strcmp(err->reason, "too_large")))
        return nk_fail(err, NK_E_INVALID, "too_large",
                       "%s: its catalogue would have more than %d MiB; its metadata is too large",
                       nk_model_info(m)->path, NK_CATALOGUE_BYTES_MAX >> 20);
    return rc;
}

/* ---- parsing ---- */

struct cursor {
    const uint8_t *at;
    size_t left;
};

static bool take(struct cursor *in, void *out, size_t n)
{
    if (n > in->left)
        return false;
    memcpy(out, in->at, n);
    in->at += n;
    in->left -= n;
    return true;
}

static int bad(struct nk_error *err, const char *what)
{
    return nk_fail(err, NK_E_INVALID, "bad_catalogue", "not a model's catalogue: %s", what);
}

static int parse_model(nk_catalogue *c, struct cursor *in, const char *name, uint32_t n_shards,
                       struct nk_error *err)
{
    struct nk_bytes *heads = calloc(n_shards, sizeof *heads);
    uint64_t *sizes = calloc(n_shards, sizeof *sizes), total = 0;
    int rc = heads && sizes ? 0 : no_memory(err);

    for (uint32_t i = 0; i < n_shards && !rc; i++) {
        uint64_t head;

        if (!take(in, &sizes[i], 8) || !take(in, &head, 8))
            rc = bad(err, "it ends within the sizes of its shards");
        else if (head > NK_CATALOGUE_BYTES_MAX || sizes[i] > (uint64_t)1 << 50)
            rc = bad(err, "a shard is larger than can be");
        else
            heads[i].size = (size_t)head;
        total += sizes[i];
    }
    for (uint32_t i = 0; i < n_shards && !rc; i++) {
        if (heads[i].size > in->left) {
            rc = bad(err, "it ends within a head");
        } else {
            heads[i].data = in->at;
            in->at += heads[i].size;
            in->left -= heads[i].size;
        }
    }
    if (!rc && total > (uint64_t)1 << 50)
        rc = bad(err, "the model is larger than can be");
    if (!rc)
        rc =
            nk_model_open_heads(&c->model, name, c->model_sha256, heads, sizes, (int)n_shards, err);
    if (!rc && nk_model_info(c->model)->is_slice)
        rc = bad(err, "it is of a slice, not of a whole model");
    free(heads);
    free(sizes);
    return rc;
}

static int parse_digests(nk_catalogue *c, struct cursor *in, struct nk_error *err)
{
    if (in->left != ((size_t)c->n_pieces + (size_t)c->n_parts) * NK_DIGEST_BYTES)
        return bad(err, "it has not as many digests as the model has pieces and parts");
    for (int i = 0; i < c->n_pieces; i++) {
        struct nk_piece *p = &c->pieces[i];

        take(in, p->sha256, NK_DIGEST_BYTES);
        for (int k = 0; k < p->n_parts; k++)
            take(in, c->parts[p->first_part + k].sha256, NK_DIGEST_BYTES);
    }
    return 0;
}

/* c->bytes are all there is. */
static int parse(nk_catalogue *c, struct nk_error *err)
{
    struct cursor in = { c->bytes, c->size };
    uint8_t sha256[NK_DIGEST_BYTES];
    uint32_t part_bytes, n_shards, n_pieces, n_parts, n_name;
    char found[sizeof magic], name[NAME_MAX_BYTES + 1];
    int rc;

    if (!take(&in, found, sizeof found) || memcmp(found, magic, sizeof found) != 0)
        return bad(err, "it does not begin as one");
    if (!take(&in, &part_bytes, 4) || !take(&in, &n_shards, 4) || !take(&in, &n_pieces, 4) ||
        !take(&in, &n_parts, 4) || !take(&in, sha256, sizeof sha256) || !take(&in, &n_name, 4))
        return bad(err, "it ends within its first numbers");
    if (part_bytes != NK_PART_BYTES)
        return nk_fail(err, NK_E_INVALID, "bad_catalogue",
                       "a catalogue with parts of %u bytes; %d are understood", part_bytes,
                       NK_PART_BYTES);
    if (n_shards < 1 || n_shards > SHARDS_MAX)
        return bad(err, "it has no shards, or too many");
    if (n_name > NAME_MAX_BYTES || !take(&in, name, n_name))
        return bad(err, "its name is too long");
    name[n_name] = '\0';
    if (strlen(name) != n_name)
        return bad(err, "its name has a NUL in it");
    nk__digest_text(sha256, c->model_sha256);
    rc = parse_model(c, &in, name, n_shards, err);
    if (!rc)
        rc = list_pieces(c, c->model, err);
    if (!rc)
        rc = list_parts(c, err);
    if (!rc && ((uint32_t)c->n_pieces != n_pieces || (uint32_t)c->n_parts != n_parts))
        rc = bad(err, "it counts other pieces, or parts, than its heads do");
    return rc ? rc : parse_digests(c, &in, err);
}

/* Takes the bytes (of malloc). */
static int from_bytes(nk_catalogue **out, uint8_t *bytes, size_t size, struct nk_error *err)
{
    nk_catalogue *c = calloc(1, sizeof *c);
    nk_sha256 *h = c ? nk_sha256_new() : NULL;
    int rc;

    *out = NULL;
    if (!h) {
        free(c);
        free(bytes);
        return no_memory(err);
    }
    atomic_init(&c->refs, 1);
    c->bytes = bytes;
    c->size = size;
    nk_sha256_add(h, bytes, size);
    nk_sha256_finish(h, c->id);
    rc = parse(c, err);
    if (rc)
        nk_catalogue_unref(c);
    else
        *out = c;
    return rc;
}

int nk_catalogue_parse(nk_catalogue **out, const void *bytes, size_t size, struct nk_error *err)
{
    uint8_t *copy;

    *out = NULL;
    if (size > NK_CATALOGUE_BYTES_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_catalogue",
                       "a catalogue of %zu bytes; at most %d are possible", size,
                       NK_CATALOGUE_BYTES_MAX);
    copy = malloc(size + 1);
    if (!copy)
        return no_memory(err);
    memcpy(copy, bytes, size);
    return from_bytes(out, copy, size, err);
}

/* ---- in the cache folder ---- */

/* catalogues/ID, or catalogues/file-IDENTITY; NULL: there is no such folder. */
static char *cache_path(const char *prefix, const char *id)
{
    struct nk_buf path = NK_BUF_INIT(8192);
    char *dir;

    if (nk_cache_dir(&dir, "catalogues", NULL))
        return NULL;
    nk_buf_addf(&path, NULL, "%s/%s%s", dir, prefix, id);
    free(dir);
    return nk_buf_take(&path, NULL);
}

/* Removes the oldest catalogue, and again while there are too many: of a large vocabulary each has
 * 10 MB. */
static void remove_oldest(const char *dir)
{
    for (int n = CATALOGUES_KEPT_MAX + 1; n > CATALOGUES_KEPT_MAX;) {
        struct timespec oldest = { 0 };
        char name[NK_SHA256_HEX] = "";
        DIR *d = opendir(dir);
        struct dirent *e;

        n = 0;
        while (d && (e = readdir(d))) {
            struct stat st;

            if (!nk__is_id(e->d_name) || fstatat(dirfd(d), e->d_name, &st, 0))
                continue;
            if (!n++ || st.st_mtim.tv_sec < oldest.tv_sec ||
                (st.st_mtim.tv_sec == oldest.tv_sec && st.st_mtim.tv_nsec < oldest.tv_nsec)) {
                oldest = st.st_mtim;
                memcpy(name, e->d_name, sizeof name);
            }
        }
        if (n > CATALOGUES_KEPT_MAX && unlinkat(dirfd(d), name, 0))
            n = 0;
        if (d)
            closedir(d);
    }
}

void nk_catalogue_keep(const nk_catalogue *c)
{
    char *path = cache_path("", c->id);

    if (path && access(path, R_OK) && !nk_file_write(path, c->bytes, c->size, NULL)) {
        *strrchr(path, '/') = '\0';
        remove_oldest(path);
    }
    free(path);
}

int nk_catalogue_find(nk_catalogue **out, const char *id, struct nk_error *err)
{
    struct nk_buf b = NK_BUF_INIT(NK_CATALOGUE_BYTES_MAX);
    char *path = nk__is_id(id) ? cache_path("", id) : NULL;
    bool found = path && !nk_file_read(path, NK_CATALOGUE_BYTES_MAX, &b, NULL);

    *out = NULL;
    if (found && !nk_catalogue_parse(out, nk_buf_str(&b), b.size, NULL) &&
        strcmp((*out)->id, id) != 0) {
        nk_catalogue_unref(*out);
        *out = NULL;
    }
    if (found && !*out)
        unlink(path);
    nk_buf_release(&b);
    free(path);
    return *out ? 0
                : nk_fail(err, NK_E_NOT_FOUND, "no_catalogue",
                          "there is no catalogue %.64s on this machine", id);
}

/* Is the catalogue of a file with these heads? */
static bool is_of(const nk_catalogue *c, const nk_model *m)
{
    int n = nk_model_info(m)->n_shards;
    bool same = nk_model_info(c->model)->n_shards == n &&
                !strcmp(nk_model_file_name(c->model), nk_model_file_name(m));

    for (int i = 0; i < n && same; i++) {
        uint64_t size = nk_model_head_bytes(m, i);
        void *a = malloc((size_t)size), *b = malloc((size_t)size);

        same = size == nk_model_head_bytes(c->model, i) && a && b &&
               !nk_model_read(m, i, 0, a, (size_t)size, NULL) &&
               !nk_model_read(c->model, i, 0, b, (size_t)size, NULL) && !memcmp(a, b, (size_t)size);
        free(a);
        free(b);
    }
    return same;
}

static bool recall(nk_catalogue **out, const nk_model *m, const char *path)
{
    struct nk_buf id = NK_BUF_INIT(NK_SHA256_HEX);

    *out = NULL;
    if (!nk_file_read(path, NK_SHA256_HEX, &id, NULL) && nk__is_id(nk_buf_str(&id)) &&
        !nk_catalogue_find(out, nk_buf_str(&id), NULL) && !is_of(*out, m)) {
        nk_catalogue_unref(*out);
        *out = NULL;
    }
    nk_buf_release(&id);
    return *out != NULL;
}

/* ---- making ---- */

static int make(nk_catalogue **out, nk_model *m, struct nk_error *err)
{
    struct nk_buf bytes = NK_BUF_INIT(NK_CATALOGUE_BYTES_MAX);
    nk_catalogue *c = calloc(1, sizeof *c);
    size_t size;
    int rc;

    if (!c)
        return no_memory(err);
    atomic_init(&c->refs, 1);
    rc = list_pieces(c, m, err);
    if (!rc)
        rc = list_parts(c, err);
    if (!rc)
        rc = nk__catalogue_hash(c, m, err);
    if (!rc)
        rc = nk_model_check_unchanged(m, err);
    if (!rc)
        rc = format(c, m, &bytes, err);
    if (!rc) {
        uint8_t *data = (uint8_t *)nk_buf_take(&bytes, &size);

        rc = data ? from_bytes(out, data, size, err) : no_memory(err);
    }
    if (!rc)
        nk_model_hash_known(m, c->model_sha256);
    nk_buf_release(&bytes);
    nk_catalogue_unref(c);
    return rc;
}

int nk_catalogue_make(nk_catalogue **out, nk_model *m, struct nk_error *err)
{
    char identity[NK_SHA256_HEX], *path = NULL;
    int rc = 0;

    *out = NULL;
    if (nk_model_info(m)->is_slice)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s is a slice, not a whole model; give the model that it was cut from",
                       nk_model_info(m)->path);
    if (nk_model_identity(m, identity))
        path = cache_path("file-", identity);
    if (path && recall(out, m, path)) {
        nk_model_hash_known(m, (*out)->model_sha256);
    } else {
        rc = make(out, m, err);
        if (!rc) {
            nk_catalogue_keep(*out);
            if (path)
                nk_file_write(path, (*out)->id, NK_SHA256_HEX - 1, NULL); /* best effort */
        }
    }
    free(path);
    return rc;
}

uint64_t *nk__layout_wants(const nk_catalogue *c, const struct nk_slice_layout *l)
{
    uint64_t *wants = calloc((size_t)c->n_tensors, sizeof *wants);

    for (int i = 0; wants && i < l->n_tensors; i++)
        wants[l->tensors[i].tensor] = l->tensors[i].copy_bytes;
    return wants;
}

int nk_catalogue_range_bytes(const nk_catalogue *c, struct nk_range range, uint64_t *bytes,
                             struct nk_error *err)
{
    struct nk_slice_layout *l;
    uint64_t *wants = NULL;
    int rc = nk_slice_layout_new(&l, c->model, range, err);

    *bytes = 0;
    if (!rc) {
        wants = nk__layout_wants(c, l);
        rc = wants ? 0 : no_memory(err);
    }
    for (int i = 0; !rc && i < c->n_parts; i++)
        if (nk__part_is_wanted(c, i, wants))
            *bytes += c->parts[i].size_bytes;
    nk_slice_layout_free(l);
    free(wants);
    return rc;
}
