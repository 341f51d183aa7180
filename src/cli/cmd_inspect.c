/* nakshatra inspect: what a model is, layer by layer, and where it may be cut. */
#include "cli/cli.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "cli/model_source.h"
#include "slice/slice.h"

enum { TYPES_MAX = 64, TEXT_MAX = 1 << 16 };

int nk_cmd_inspect(int argc, char **argv);

/* "1-3, 7, 9-12": the members of a set of small numbers. */
static void format_set(struct nk_buf *b, const bool *set, int n)
{
    for (int i = 0; i < n; i++) {
        int end = i;

        if (!set[i])
            continue;
        while (end + 1 < n && set[end + 1])
            end++;
        nk_buf_addf(b, NULL,
                    end > i + 1 ? "%s%d-%d"
                    : end > i   ? "%s%d, %d"
                                : "%s%d",
                    b->size ? ", " : "", i, end);
        i = end;
    }
}

/* What follows the first colon: the part of the sentence that is the same for all cuts of a
 * kind. */
static const char *reason_of(const struct nk_error *err)
{
    const char *colon = strstr(err->msg, ": ");

    return colon ? colon + 2 : err->msg;
}

static void print_cuts(const nk_model *m)
{
    const struct nk_model_info *in = nk_model_info(m);
    bool legal[NK_LAYERS_MAX] = { false }, done[NK_LAYERS_MAX] = { false };
    struct nk_buf text = NK_BUF_INIT(TEXT_MAX);
    struct nk_error err;

    if (in->is_slice || in->n_layer == 1) {
        printf("\nCannot be cut: %s.\n",
               in->is_slice ? "it is a slice already" : "it has one layer");
        return;
    }
    for (int at = 1; at < in->n_layer; at++)
        legal[at] = done[at] = !nk_model_cut_check(m, at, NULL);
    format_set(&text, legal, in->n_layer);
    printf("\nLegal cuts: %s%s\n", text.size ? "before layers " : "none", nk_buf_str(&text));
    for (int at = 1; at < in->n_layer; at++) {
        bool same[NK_LAYERS_MAX] = { false };
        struct nk_error other;

        if (done[at])
            continue;
        nk_model_cut_check(m, at, &err);
        for (int i = at; i < in->n_layer; i++)
            if (!done[i] && nk_model_cut_check(m, i, &other) &&
                !strcmp(reason_of(&err), reason_of(&other)))
                same[i] = done[i] = true;
        nk_buf_reset(&text);
        format_set(&text, same, in->n_layer);
        printf("Not before %s: %s\n", nk_buf_str(&text), reason_of(&err));
    }
    nk_buf_release(&text);
}

static void print_row(const char *what, uint64_t bytes, const char *kv, const char *state)
{
    char size[24];

    printf(state ? "  %-18s %12s %16s %20s\n" : "  %-18s %12s %16s\n", what,
           nk_size_format(size, bytes), kv, state);
}

static const char *size_or_dash(char out[24], uint64_t bytes)
{
    return bytes ? nk_size_format(out, bytes) : "-";
}

static void print_layers(const struct nk_model_info *in)
{
    char what[48], kv[24], state[24];
    bool has_states = false;

    for (int i = 0; i < in->n_layer; i++)
        has_states |= in->state_bytes[i] != 0;
    printf("\n  %-18s %12s %16s%s\n", "layers", "bytes each", "KV per token",
           has_states ? "   state per sequence" : "");
    for (int i = 0; i < in->n_layer; i++) {
        int end = i;

        while (end + 1 < in->n_layer && in->layer_bytes[end + 1] == in->layer_bytes[i] &&
               in->kv_bytes_per_token[end + 1] == in->kv_bytes_per_token[i] &&
               in->state_bytes[end + 1] == in->state_bytes[i])
            end++;
        snprintf(what, sizeof what, end > i ? "%d-%d" : "%d", in->layer_begin + i,
                 in->layer_begin + end);
        print_row(what, in->layer_bytes[i], size_or_dash(kv, in->kv_bytes_per_token[i]),
                  has_states ? size_or_dash(state, in->state_bytes[i]) : NULL);
        i = end;
    }
    if (in->has_token_embd)
        print_row("embedding", in->embd_bytes, "", NULL);
    if (in->tied_embeddings && in->has_token_embd && in->has_lm_head)
        printf("  %-18s %12s\n", "head", "(embedding)");
    else if (in->has_lm_head)
        print_row("head", in->head_bytes, "", NULL);
    print_row("other", in->other_bytes, "", NULL);
}

/* What a slice's digests say of it. */
struct whole {
    struct nk_slice_checked checked;
    int rc; /* not whole: why */
    struct nk_error err;
};

static void print_whole(const struct whole *w)
{
    const struct nk_slice_checked *c = &w->checked;

    if (w->rc)
        printf("  %-18s no\n", "whole");
    else if (c->verified == NK_VERIFIED_NOW)
        printf("  %-18s yes: %d parts, each as it was written\n", "whole", c->n_parts);
    else
        printf("  %-18s not known: an earlier version wrote this file, without digests\n", "whole");
    for (int i = 0; i < c->n_damaged && i < NK_DAMAGED_MAX; i++)
        printf("  %-18s %s, bytes %" PRIu64 " to %" PRIu64 "\n", "damaged", c->damaged[i].name,
               c->damaged[i].begin, c->damaged[i].begin + c->damaged[i].size);
    if (c->n_damaged > NK_DAMAGED_MAX)
        printf("  %-18s and %d more\n", "", c->n_damaged - NK_DAMAGED_MAX);
}

static void print_table(const nk_model *m, const struct whole *w)
{
    const struct nk_model_info *in = nk_model_info(m);
    struct nk_type_share types[TYPES_MAX];
    int n_types = nk_model_types(m, types, TYPES_MAX);
    uint64_t weights = 0, kv = 0, state = 0;
    char size[24];

    for (int i = 0; i < n_types; i++)
        weights += types[i].bytes;
    for (int i = 0; i < in->n_layer; i++)
        kv += in->kv_bytes_per_token[i];
    for (int i = 0; i < in->n_layer; i++)
        state += in->state_bytes[i];
    printf("%s\n", in->name);
    printf("  %-18s %s\n", "architecture", in->architecture);
    if (in->is_slice)
        printf("  %-18s layers %d-%d of %d of the model %.16s…\n", "slice", in->layer_begin,
               in->layer_end, in->layer_count, in->model_sha256);
    if (in->is_slice)
        print_whole(w);
    printf("  %-18s %s", "size", nk_size_format(size, in->file_bytes));
    printf(in->n_shards > 1 ? " in %d shards\n" : "\n", in->n_shards);
    printf("  %-18s %d\n", "layers", in->n_layer);
    printf("  %-18s %d\n", "width", in->n_embd);
    printf("  %-18s %d, %d for keys and values\n", "heads", in->n_head, in->n_head_kv);
    printf("  %-18s %d tokens\n", "vocabulary", in->n_vocab);
    printf("  %-18s %d tokens\n", "context", in->n_ctx_train);
    if (in->pooling)
        printf("  %-18s %s: it gives %s\n", "pooling", nk_pooling_text(in->pooling),
               in->pooling == NK_POOLING_RANK ? "ranks of texts" : "vectors of texts");
    printf("  %-18s %s:", "quantisation", in->quantisation);
    for (int i = 0; i < n_types && i < TYPES_MAX; i++)
        printf(" %s %.3g %%%s", types[i].type, 100.0 * (double)types[i].bytes / (double)weights,
               i + 1 < n_types ? "," : "\n");
    printf("  %-18s %s\n", "embeddings",
           in->tied_embeddings ? "tied: the head is the embedding" : "not tied");
    printf("  %-18s %s per token (f16)\n", "KV cache", nk_size_format(size, kv));
    if (state)
        printf("  %-18s %s per sequence\n", "state", nk_size_format(size, state));
    print_layers(in);
    print_cuts(m);
}

static json_t *cuts_to_json(const nk_model *m)
{
    const struct nk_model_info *in = nk_model_info(m);
    json_t *cuts = json_array();

    for (int at = 1; at < in->n_layer && !in->is_slice; at++) {
        struct nk_error err;

        json_array_append_new(
            cuts, nk_model_cut_check(m, at, &err)
                      ? json_pack("{s:i, s:b, s:s}", "at", at, "legal", 0, "reason", err.msg)
                      : json_pack("{s:i, s:b}", "at", at, "legal", 1));
    }
    return cuts;
}

/* Text from a file may be anything; JSON is UTF-8. */
static json_t *text_to_json(const char *text)
{
    json_t *s = json_string(text);

    return s ? s : json_string("(not UTF-8)");
}

static json_t *slice_to_json(const struct nk_model_info *in, const struct whole *w)
{
    json_t *damaged = json_array(), *whole = w->rc ? json_false() : json_null();

    if (!in->is_slice) {
        json_decref(damaged);
        return json_null();
    }
    if (!w->rc && w->checked.verified == NK_VERIFIED_NOW)
        whole = json_true();
    for (int i = 0; i < w->checked.n_damaged && i < NK_DAMAGED_MAX; i++)
        json_array_append_new(damaged, text_to_json(w->checked.damaged[i].name));
    return json_pack("{s:[i, i], s:i, s:b, s:b, s:s, s:o, s:o}", "layers", in->layer_begin,
                     in->layer_end, "layer_count", in->layer_count, "has_token_embd",
                     in->has_token_embd, "has_lm_head", in->has_lm_head, "model_sha256",
                     in->model_sha256, "whole", whole, "damaged", damaged);
}

static int print_json(const nk_model *m, const struct whole *w, struct nk_error *err)
{
    const struct nk_model_info *in = nk_model_info(m);
    struct nk_type_share types[TYPES_MAX];
    int n_types = nk_model_types(m, types, TYPES_MAX);
    json_t *root, *type_list = json_array(), *layers = json_array();

    for (int i = 0; i < n_types && i < TYPES_MAX; i++)
        json_array_append_new(type_list,
                              json_pack("{s:s, s:I, s:i}", "type", types[i].type, "bytes",
                                        (json_int_t)types[i].bytes, "tensors", types[i].n_tensors));
    for (int i = 0; i < in->n_layer; i++)
        json_array_append_new(layers,
                              json_pack("{s:I, s:I, s:I}", "bytes", (json_int_t)in->layer_bytes[i],
                                        "kv_bytes_per_token", (json_int_t)in->kv_bytes_per_token[i],
                                        "state_bytes", (json_int_t)in->state_bytes[i]));
    root = json_pack("{s:o, s:o, s:o, s:s, s:i, s:I}", "path", text_to_json(in->path), "name",
                     text_to_json(in->name), "architecture", text_to_json(in->architecture),
                     "quantisation", in->quantisation, "shards", in->n_shards, "file_bytes",
                     (json_int_t)in->file_bytes);
    if (root)
        json_object_update_new(
            root,
            json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:I, s:I, s:I, s:o, s:o, s:o, s:o}",
                      "n_layer", in->n_layer, "n_embd", in->n_embd, "n_head", in->n_head,
                      "n_head_kv", in->n_head_kv, "n_vocab", in->n_vocab, "n_ctx_train",
                      in->n_ctx_train, "tied_embeddings", in->tied_embeddings, "embd_bytes",
                      (json_int_t)in->embd_bytes, "head_bytes", (json_int_t)in->head_bytes,
                      "other_bytes", (json_int_t)in->other_bytes, "types", type_list, "layers",
                      layers, "cuts", cuts_to_json(m), "slice", slice_to_json(in, w)));
    if (root)
        json_object_set_new(root, "pooling", json_string(nk_pooling_text(in->pooling)));
    if (!root || json_dumpf(root, stdout, JSON_INDENT(2) | nk_cli_json_flags()) < 0) {
        json_decref(root);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory, or standard output is closed");
    }
    putchar('\n');
    json_decref(root);
    return 0;
}

/* A file of ours without tensors is a vocabulary: of it there is only to say whether it is whole.
 * False: it is none. */
static bool inspect_vocab(const char *path, bool json, int *exit_code)
{
    struct whole w;

    w.rc = nk_slice_check_file(path, NK_VERIFY_ALWAYS, &w.checked, &w.err);
    if (!w.checked.n_parts)
        return false;
    if (json) {
        json_t *o = json_pack("{s:o, s:b, s:b}", "path", text_to_json(path), "vocabulary", 1,
                              "whole", !w.rc);

        json_dumpf(o, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(o);
    } else {
        printf("%s\n  %-18s for run and serve\n", path, "vocabulary");
        print_whole(&w);
    }
    *exit_code = nk_cli_flush(w.rc ? nk_cli_report(&w.err) : NK_EXIT_OK);
    return true;
}

int nk_cmd_inspect(int argc, char **argv)
{
    bool json = false;
    const struct nk_arg args[] = {
        NK_OPT_FLAG("json", 0, &json, "all of it as one JSON object"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "inspect MODEL.gguf [--json]",
        .summary = "Shows what a model (or a slice) is: architecture, size, bytes and KV cache per "
                   "layer, and before which layers it may be cut. Of a model in several files "
                   "(-00001-of-0000N.gguf) any one can be given. Of a slice, or a vocabulary file, "
                   "it tells whether it is whole: exit code 1 when a part of it is not what was "
                   "written. " NK_MODEL_SOURCE_HELP,
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct whole w = { .rc = 0 };
    struct nk_error err;
    char *path;
    nk_model *m;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (nk_model_source(&path, argv[first], &err))
        return nk_cli_report(&err);
    rc = nk_model_open(&m, path, &err);
    if (rc && !strcmp(err.reason, "bad_arch") && inspect_vocab(path, json, &exit_code)) {
        free(path);
        return exit_code;
    }
    if (!rc && nk_model_info(m)->is_slice)
        w.rc = nk_slice_check_file(path, NK_VERIFY_ALWAYS, &w.checked, &w.err);
    free(path);
    if (!rc && json)
        rc = print_json(m, &w, &err);
    else if (!rc)
        print_table(m, &w);
    nk_model_close(m);
    if (!rc && w.rc) {
        nk_cli_flush(NK_EXIT_OK);
        return nk_cli_report(&w.err);
    }
    return rc ? nk_cli_report(&err) : nk_cli_flush(NK_EXIT_OK);
}
