#include "cluster/facts.h"

#include <stdlib.h>
#include <string.h>

int nk_facts_member(const struct nk_measured *r, const struct nk_plan_model *model,
                    struct nk_plan_member *out, struct nk_error *err)
{
    double sum[NK_RUN_KINDS] = { 0 };

    if (r->n_layer != model->n_layer)
        return nk_fail(err, NK_E_INVALID, "bad_measurement",
                       "measured for a model with %d layers; this one has %d", r->n_layer,
                       model->n_layer);
    *out = (struct nk_plan_member){ 0 };
    for (int i = 0; i < r->n_layer; i++)
        for (int k = 0; k < NK_RUN_KINDS; k++)
            sum[k] += r->layers[i].ms[k];
    out->layer_ms_1 = sum[NK_RUN_ONE] / r->n_layer;
    out->layer_ms_chunk = sum[NK_RUN_CHUNK] / r->n_layer;
    out->chunk_rows = r->rows[NK_RUN_CHUNK];
    if (r->rows[NK_RUN_EIGHT] == 8) {
        out->layer_ms_8 = sum[NK_RUN_EIGHT] / r->n_layer;
        out->head_ms_8 = r->head_ms[NK_RUN_EIGHT];
    }
    out->head_ms_1 = r->head_ms[NK_RUN_ONE];
    out->embd_ms = r->embd_ms[NK_RUN_ONE];
    out->step_ms = r->fixed_ms[NK_RUN_ONE];
    /* On a GPU weights, cache and buffers are on the device; what a process needs beside it is
     * another memory, of which there is plenty or the measurement would not have run. */
    if (r->is_gpu) {
        out->memory_bytes = r->device_free_bytes;
        out->overhead_bytes = r->compute_bytes;
        out->overhead_last_bytes = r->head_compute_bytes;
    } else {
        out->memory_bytes = r->memory_free_bytes;
        out->overhead_bytes = r->compute_bytes + r->compute_host_bytes + r->process_bytes;
        out->overhead_last_bytes =
            r->head_compute_bytes + r->head_compute_host_bytes + r->process_bytes;
    }
    return 0;
}

int nk_facts_parse(const char *json, const struct nk_plan_model *model, struct nk_plan_member *out,
                   struct nk_error *err)
{
    struct nk_measured r;
    int rc = nk_measured_parse(json, strlen(json), &r, err);

    if (rc)
        return rc;
    rc = nk_facts_member(&r, model, out, err);
    nk_measured_release(&r);
    return rc;
}

int nk_facts_model(const nk_model *m, struct nk_facts_model *out, struct nk_error *err)
{
    const struct nk_model_info *info = nk_model_info(m);
    struct nk_error ignored;

    *out = (struct nk_facts_model){ 0 };
    out->legal_cut = calloc((size_t)info->n_layer, sizeof *out->legal_cut);
    out->layer_bytes = calloc((size_t)info->n_layer, sizeof *out->layer_bytes);
    out->kv_bytes_per_token = calloc((size_t)info->n_layer, sizeof *out->kv_bytes_per_token);
    out->state_bytes = calloc((size_t)info->n_layer, sizeof *out->state_bytes);
    if (!out->legal_cut || !out->layer_bytes || !out->kv_bytes_per_token || !out->state_bytes) {
        nk_facts_model_release(out);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    for (int i = 0; i < info->n_layer; i++) {
        out->layer_bytes[i] = info->layer_bytes[i];
        out->kv_bytes_per_token[i] = info->kv_bytes_per_token[i];
        out->state_bytes[i] = info->state_bytes[i];
        out->legal_cut[i] = i > 0 && !nk_model_cut_check(m, i, &ignored);
    }
    out->plan = (struct nk_plan_model){ .n_layer = info->n_layer,
                                        .layer_bytes = out->layer_bytes,
                                        .kv_bytes_per_token = out->kv_bytes_per_token,
                                        .state_bytes = out->state_bytes,
                                        .legal_cut = out->legal_cut,
                                        .embd_bytes = info->embd_bytes,
                                        .head_bytes = info->head_bytes,
                                        .tied = info->tied_embeddings,
                                        .other_bytes = info->other_bytes,
                                        .row_bytes = (uint64_t)info->n_embd * 4 };
    return 0;
}

void nk_facts_model_release(struct nk_facts_model *m)
{
    free(m->legal_cut);
    free(m->layer_bytes);
    free(m->kv_bytes_per_token);
    free(m->state_bytes);
    *m = (struct nk_facts_model){ 0 };
}
