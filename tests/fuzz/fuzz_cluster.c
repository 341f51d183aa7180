/* layer: chain. cluster.yaml as a stranger may write it: whatever is accepted is a chain from layer
 * 0 without a gap, and reads back the same after being written. */
#include "fuzz/fuzz.h"
#include "chain/cluster.h"

#include <stdlib.h>
#include <string.h>

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    struct nk_buf text = NK_BUF_INIT(4 << 20);
    struct nk_cluster *c, *d;
    struct nk_error err;

    if (nk_cluster_parse(&c, (struct nk_bytes){ data, size }, "/x/c.yaml", &err)) {
        NK_ASSERT(!c && err.msg[0]);
        return;
    }
    for (int i = 0; i < c->n_workers; i++)
        NK_ASSERT(c->workers[i].layer_begin == (i ? c->workers[i - 1].layer_end : 0) &&
                  c->workers[i].layer_begin < c->workers[i].layer_end);
    NK_ASSERT(!nk_cluster_format(c, &text, &err));
    NK_ASSERT(!nk_cluster_parse(&d, (struct nk_bytes){ (const uint8_t *)text.data, text.size },
                                "/x/c.yaml", &err));
    NK_ASSERT(c->n_workers == d->n_workers && !strcmp(c->model_id, d->model_id) &&
              c->f16 == d->f16 && !strcmp(c->vocab_path, d->vocab_path) &&
              !strcmp(c->model_sha256, d->model_sha256));
    for (int i = 0; i < c->n_workers; i++)
        NK_ASSERT(!strcmp(c->workers[i].id, d->workers[i].id) &&
                  !strcmp(c->workers[i].address, d->workers[i].address) &&
                  c->workers[i].layer_end == d->workers[i].layer_end);
    nk_buf_release(&text);
    free(c);
    free(d);
}
