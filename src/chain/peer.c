/* What peers say, and who they are, for people to read. */
#include "chain/chain_int.h"

#include <string.h>

int nk__wrap_worker(int code, struct nk_error *err, const struct nk_cluster_worker *w)
{
    return nk_wrap(code, err, "worker %s (%s)", w->id, w->address);
}

int nk__stage_compare(const struct nk_cluster *c, int idx, const Nakshatra__V1__StageInfo *s,
                      uint32_t n_embd, struct nk_error *err)
{
    const struct nk_cluster_worker *w = &c->workers[idx];
    int n_layers = c->workers[c->n_workers - 1].layer_end;

    if (strcmp(s->model_sha256, c->model_sha256))
        return nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                       "it has the model %.64s, the cluster file wants %s", s->model_sha256,
                       c->model_sha256);
    if (s->layer_begin != (uint32_t)w->layer_begin || s->layer_end != (uint32_t)w->layer_end)
        return nk_fail(err, NK_E_PRECONDITION, "layers_mismatch",
                       "it has layers %u-%u, the cluster file says %d-%d", s->layer_begin,
                       s->layer_end, w->layer_begin, w->layer_end);
    if (s->layer_count != (uint32_t)n_layers)
        return nk_fail(err, NK_E_PRECONDITION, "layers_mismatch",
                       "its model has %u layers, the cluster file's ranges end at %d",
                       s->layer_count, n_layers);
    if (s->n_embd != n_embd)
        return nk_fail(err, NK_E_PRECONDITION, "width_mismatch",
                       "its rows have %u floats, those of worker %s have %u", s->n_embd,
                       c->workers[0].id, n_embd);
    return 0;
}
