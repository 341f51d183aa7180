/* The reference for embeddings: libllama alone, as llama.cpp's own embedding program uses it, with
 * the whole model. Reads a JSON list of lists of token ids from standard input; prints a JSON list
 * of the vectors as the model gives them, in digits that read back as the same floats.
 *
 * usage: pooled MODEL.gguf [mean|cls|last|rank] (else as the file says) */
#include <jansson.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stage/stage.h"

static int fail(const char *what)
{
    fprintf(stderr, "pooled: %s\n", what);
    return 1;
}

static enum llama_pooling_type pooling_of(const char *name)
{
    static const char *const names[] = { "none", "mean", "cls", "last", "rank" };

    for (int i = 0; name && i < 5; i++)
        if (!strcmp(name, names[i]))
            return (enum llama_pooling_type)i;
    return LLAMA_POOLING_TYPE_UNSPECIFIED;
}

int main(int argc, char **argv)
{
    struct llama_model_params mp = llama_model_default_params();
    struct llama_context_params cp = llama_context_default_params();
    json_t *texts = json_loadf(stdin, 0, NULL);
    struct llama_model *model;
    struct llama_context *ctx;
    int n_out;

    if (argc < 2 || !json_is_array(texts))
        return fail("pooled MODEL.gguf < [[1, 2], ...]");
    nk_stage_global_init("CPU");
    mp.n_gpu_layers = 0;
    model = llama_model_load_from_file(argv[1], mp);
    if (!model)
        return fail("no model");
    cp.embeddings = true;
    cp.pooling_type = pooling_of(argc > 2 ? argv[2] : NULL);
    cp.n_ctx = (uint32_t)llama_model_n_ctx_train(model);
    cp.n_batch = cp.n_ubatch = cp.n_ctx;
    cp.n_seq_max = 1;
    cp.n_threads = cp.n_threads_batch = 1;
    ctx = llama_init_from_model(model, cp);
    if (!ctx)
        return fail("no context");
    n_out = llama_pooling_type(ctx) == LLAMA_POOLING_TYPE_RANK ? (int)llama_model_n_cls_out(model)
                                                               : llama_model_n_embd_out(model);
    printf("[");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *ids = json_array_get(texts, i);
        int n = (int)json_array_size(ids);
        struct llama_batch batch = llama_batch_init(n, 0, 1);
        const float *v;

        for (int k = 0; k < n; k++) {
            batch.token[k] = (llama_token)json_integer_value(json_array_get(ids, (size_t)k));
            batch.pos[k] = k;
            batch.n_seq_id[k] = 1;
            batch.seq_id[k][0] = 0;
            batch.logits[k] = 1;
        }
        batch.n_tokens = n;
        llama_memory_clear(llama_get_memory(ctx), true);
        if (llama_decode(ctx, batch) || !(v = llama_get_embeddings_seq(ctx, 0)))
            return fail("llama_decode");
        printf("%s[", i ? "," : "");
        for (int k = 0; k < n_out; k++)
            printf("%s%.9g", k ? "," : "", (double)v[k]);
        printf("]");
        llama_batch_free(batch);
    }
    printf("]\n");
    json_decref(texts);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
