/* Rows of the embedding table, looked up in the file itself (write.c says where they are in a
 * slice). */
#include "slice/slice.h"

#include <errno.h>
#include <ggml.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "slice/model_int.h"

struct nk_embd {
    void *map;
    size_t map_bytes;
    const uint8_t *rows;
    size_t row_bytes;
    int n_rows, n_embd;
    ggml_to_float_t to_float; /* NULL: the rows are f32 */
};

int nk_embd_open(nk_embd **out, const nk_model *m, struct nk_error *err)
{
    const struct nk__tensor *t = nk__model_tensor(m, "token_embd.weight");
    const struct nk__source *source;
    uint64_t begin, size, page = (uint64_t)sysconf(_SC_PAGESIZE);
    nk_embd *e;

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
    begin = t->offset / page * page;
    e->map_bytes = (size_t)(t->offset + size - begin);
    e->map = mmap(NULL, e->map_bytes, PROT_READ, MAP_SHARED, source->fd, (off_t)begin);
    if (e->map == MAP_FAILED) {
        free(e);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: mapping the embedding rows: %s",
                       m->info.path, strerror(errno));
    }
    e->rows = (const uint8_t *)e->map + (t->offset - begin);
    e->row_bytes = ggml_row_size((enum ggml_type)t->type, t->ne[0]);
    e->n_rows = m->info.n_vocab;
    e->n_embd = (int)t->ne[0];
    *out = e;
    return 0;
}

void nk_embd_close(nk_embd *e)
{
    if (!e)
        return;
    munmap(e->map, e->map_bytes);
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
