/* nakshatra-bench synth: writes a synthetic model. */
#include "bench/command.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/synth.h"

/* -1: not given. */
static void copy_int(int *dest, int64_t value)
{
    if (value >= 0)
        *dest = (int)value;
}

int nk_cmd_synth(int argc, char **argv)
{
    const char *shape_name = NULL, *out = NULL, *type = NULL, *embd_type = NULL;
    int64_t layers = -1, width = -1, ff = -1, heads = -1, kv_heads = -1, vocab = -1, ctx = -1,
            experts = -1, used = -1;
    int64_t seed = 1;
    bool untied = false, no_rope_freqs = false, force = false;
    const struct nk_arg args[] = {
        NK_OPT_STRING(
            "shape", 0, &shape_name, "NAME",
            "llama-1b (1.2 B parameters, the default), tiny (0.15 B), moe (0.5 B, 8 experts)"),
        NK_OPT_INT("layers", 0, &layers, "N", 1, 1024,
                   "layers; this and the next change the shape"),
        NK_OPT_INT("width", 0, &width, "N", 32, 65536,
                   "floats per row, a multiple of 32 (of 256 for K-quants)"),
        NK_OPT_INT("ff", 0, &ff, "N", 32, 262144,
                   "feed-forward size (of one expert where there are experts)"),
        NK_OPT_INT("heads", 0, &heads, "N", 1, 1024, "attention heads"),
        NK_OPT_INT("kv-heads", 0, &kv_heads, "N", 1, 1024, "heads of keys and values"),
        NK_OPT_INT("vocab", 0, &vocab, "N", 1024, 1048576, "tokens in the vocabulary"),
        NK_OPT_INT("ctx", 0, &ctx, "N", 16, 16777216, "the context length that the model states"),
        NK_OPT_INT("experts", 0, &experts, "N", 0, 256, "experts per layer; 0: none"),
        NK_OPT_INT("experts-used", 0, &used, "N", 0, 256, "experts that a token uses"),
        NK_OPT_STRING("type", 0, &type, "TYPE",
                      "type of the layers' matrices: Q4_K, Q8_0, F16, ..."),
        NK_OPT_STRING("embedding-type", 0, &embd_type, "TYPE",
                      "type of the embedding (Q6_K with K-quants, else as --type)"),
        NK_OPT_FLAG("untied", 0, &untied, "an output matrix of its own, not the embedding"),
        NK_OPT_FLAG("no-rope-freqs", 0, &no_rope_freqs, "without Llama 3's rope_freqs tensor"),
        NK_OPT_INT("seed", 0, &seed, "N", 0, 9007199254740992.0,
                   "the same seed and shape give the same bytes"),
        NK_OPT_STRING("out", 'o', &out, "FILE", "where to"),
        NK_OPT_FLAG("force", 'f', &force, "replace FILE where it is there already"),
        { 0 },
    };
    const struct nk_command cmd = {
        "synth [--shape NAME] [--layers N ...] [--type TYPE] --out FILE.gguf",
        "Writes a model of the given shape and quantisation with random weights. It loads in any "
        "program that runs GGUF,\n"
        "computes at the speed of a real model of that shape, and generates noise.",
        args, 0, 0
    };
    struct nk_synth_shape shape;
    struct nk_synth_result result;
    struct nk_error err;
    uint64_t start_ns = nk_now_ns();
    char size[24], layer[24];
    int first, exit_code, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_synth_preset(shape_name ? shape_name : "llama-1b", &shape, &err);
    if (rc)
        return nk_command_report(&err);
    if (!out) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "synth: --out FILE is missing");
        return nk_command_report(&err);
    }
    if (!force && access(out, F_OK) == 0) {
        nk_fail(&err, NK_E_EXISTS, "exists", "%s is there already; --force replaces it", out);
        return nk_command_report(&err);
    }
    if (layers >= 0 || width >= 0 || ff >= 0 || heads >= 0 || kv_heads >= 0 || vocab >= 0 ||
        experts >= 0)
        shape.name = "custom";
    copy_int(&shape.n_layers, layers);
    copy_int(&shape.n_embd, width);
    copy_int(&shape.n_ff, ff);
    copy_int(&shape.n_head, heads);
    copy_int(&shape.n_head_kv, kv_heads);
    copy_int(&shape.n_vocab, vocab);
    copy_int(&shape.n_ctx, ctx);
    copy_int(&shape.n_expert, experts);
    copy_int(&shape.n_expert_used, used);
    if (experts == 0 && used < 0)
        shape.n_expert_used = 0;
    shape.untied = untied;
    shape.no_rope_freqs = no_rope_freqs;
    shape.seed = (uint64_t)seed;
    if (type) {
        shape.type = type;
        shape.embd_type = NULL;
    }
    if (embd_type)
        shape.embd_type = embd_type;
    rc = nk_synth_write(out, &shape, &result, &err);
    if (rc)
        return nk_command_report(&err);
    printf("%s: %d layers of %s, %.2f B parameters", out, shape.n_layers,
           nk_size_format(layer, result.weights_bytes_layer), (double)result.n_params / 1e9);
    if (result.n_params_active != result.n_params)
        printf(" (%.2f B per token)", (double)result.n_params_active / 1e9);
    printf(", %s in %.1f s\n", nk_size_format(size, result.file_bytes),
           (double)(nk_now_ns() - start_ns) / 1e9);
    return NK_EXIT_OK;
}
