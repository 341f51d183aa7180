#include "bench/load.h"

#include <stddef.h>

#include <ggml-backend.h>
#include <llama.h>

#include "stage/stage.h"

int nk_load_plain(const char *path, int n_ctx, int n_threads, void (*ready)(void *arg), void *arg,
                  struct nk_error *err)
{
    struct llama_model_params mp = llama_model_default_params();
    struct llama_context_params cp = llama_context_default_params();
    ggml_backend_dev_t none[] = { NULL };
    struct llama_model *model;
    struct llama_context *context = NULL;
    int rc = 0;

    llama_backend_init();
    nk_stage_load_backends();
    mp.devices = none;
    mp.n_gpu_layers = 0;
    model = llama_model_load_from_file(path, mp);
    if (!model)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: llama.cpp cannot load it", path);
    cp.n_ctx = (uint32_t)n_ctx;
    cp.n_threads = cp.n_threads_batch = n_threads;
    context = llama_init_from_model(model, cp);
    if (context)
        ready(arg);
    else
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: no context of %d tokens", path, n_ctx);
    if (context)
        llama_free(context);
    llama_model_free(model);
    return rc;
}
