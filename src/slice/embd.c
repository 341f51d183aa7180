/* Rows of the embedding table, looked up in the file itself or in a copy (write.c says where they
 * are in a slice). */
#include "slice/slice.h"

#include <errno.h>
#include <ggml.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "slice/model_int.h"
#include "slice/random_int.h"

struct nk_embd {
    void *map; /* NULL: the rows are in copy */
    size_t map_bytes;
    uint8_t *copy;
    const uint8_t *rows;
    size_t row_bytes;
    int n_rows, n_embd;
    ggml_to_float_t to_float; /* NULL: the rows are f32 */
};

static int map_rows(nk_embd *e, const struct nk__source *source, uint64_t offset, uint64_t size,
                    struct nk_error *err)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), begin = offset / page * page;
    void *map;

    e->map_bytes = (size_t)(offset + size - begin);
    map = mmap(NULL, e->map_bytes, PROT_READ, MAP_SHARED, source->fd, (off_t)begin);
    if (map == MAP_FAILED)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "mapping the embedding rows: %s",
                       strerror(errno));
    e->map = map;
    e->rows = (const uint8_t *)map + (offset - begin);
    return 0;
}

static int copy_rows(nk_embd *e, const struct nk__source *source, uint64_t offset, uint64_t size,
                     struct nk_error *err)
{
    e->copy = malloc((size_t)size);
    e->rows = e->copy;
    return e->copy
               ? nk__source_read(source, offset, e->copy, (size_t)size, err)
               : nk_fail(err, NK_E_EXHAUSTED, "no_memory",
                         "no memory for %llu bytes of embedding rows", (unsigned long long)size);
}

int nk_embd_open(nk_embd **out, const nk_model *m, bool in_memory, struct nk_error *err)
{
    const struct nk__tensor *t = nk__model_tensor(m, "token_embd.weight");
    const struct nk__source *source;
    uint64_t size;
    nk_embd *e;
    int rc;

    *out = NULL;
    if (!t || !m->info.has_token_embd)
        return nk_fail(err, NK_E_PRECONDITION, "no_embd",
                       "%s: this slice has no embedding rows; the first slice has them",
                       m->info.path);
    source = &m->shards[t->shard].source;
    size = (uint64_t)m->info.n_vocab * ggml_row_size((enum ggml_type)t->type, t->ne[0]);
    if (t->offset > source->size || size > source->size - t->offset)
        return nk_fail(err, NK_E_DATA_LOSS, "truncated",
                       "%s: the file ends within its %d embedding rows", m->info.path,
                       m->info.n_vocab);
    e = calloc(1, sizeof *e);
    if (!e)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    e->to_float = ggml_get_type_traits((enum ggml_type)t->type)->to_float;
    if (!e->to_float && t->type != GGML_TYPE_F32) {
        free(e);
        return nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                       "%s: embedding rows of type %s cannot be read as numbers", m->info.path,
                       ggml_type_name((enum ggml_type)t->type));
    }
    rc = in_memory ? copy_rows(e, source, t->offset, size, err)
                   : map_rows(e, source, t->offset, size, err);
    if (rc) {
        nk_embd_close(e);
        return nk_wrap(rc, err, "%s", m->info.path);
    }
    e->row_bytes = ggml_row_size((enum ggml_type)t->type, t->ne[0]);
    e->n_rows = m->info.n_vocab;
    e->n_embd = (int)t->ne[0];
    *out = e;
    return 0;
}

int nk_embd_open_random(nk_embd **out, const nk_model *m, int max, int *n_rows,
                        struct nk_error *err)
{
    const struct nk__tensor *t = nk__model_tensor(m, "token_embd.weight");
    nk_embd *e = calloc(1, sizeof *e);
    nk__random *random = NULL;
    size_t at = 0, size, n = 1;
    int rc;

    *out = NULL;
    if (!t || !e) {
        free(e);
        return t ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory")
                 : nk_fail(err, NK_E_PRECONDITION, "no_embd", "%s has no embedding rows",
                           m->info.path);
    }
    e->to_float = ggml_get_type_traits((enum ggml_type)t->type)->to_float;
    e->row_bytes = ggml_row_size((enum ggml_type)t->type, t->ne[0]);
    e->n_rows = m->info.n_vocab < max ? m->info.n_vocab : max;
    e->n_embd = (int)t->ne[0];
    size = (size_t)e->n_rows * e->row_bytes;
    e->copy = malloc(size + NK__RANDOM_BYTES_MAX);
    e->rows = e->copy;
    rc = e->copy ? nk__random_new(&random, err)
                 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc && !e->to_float && t->type != GGML_TYPE_F32)
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "%s: embedding rows of type %s cannot be read as numbers", m->info.path,
                     ggml_type_name((enum ggml_type)t->type));
    while (!rc && n && at < size)
        at += n = nk__random_draw(random, t, size - at, e->copy + at);
    if (!rc && !n)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    nk__random_free(random);
    if (rc) {
        nk_embd_close(e);
        return rc;
    }
    *n_rows = e->n_rows;
    *out = e;
    return 0;
}

void nk_embd_close(nk_embd *e)
{
    if (!e)
        return;
    if (e->map)
        munmap(e->map, e->map_bytes);
    free(e->copy);
    free(e);
}

void nk_embd_row(const nk_embd *e, int32_t id, float *row)
{
    const uint8_t *from;

    NK_ASSERT(id >= 0 && id < e->n_rows);
    from = e->rows + (size_t)id * e->row_bytes;
    if (e->to_float)
        e->to_float(from, row, e->n_embd);
    else
        memcpy(row, from, (size_t)e->n_embd * sizeof *row);
}
