/* manifest.json: what a folder of slices holds.
 *
 *   { "model_id": "NAME", "model_sha256": "…", "architecture": "llama",
 *     "n_layer": 28, "n_embd": 2048, "slice_format": 2,
 *     "files": [ { "name": "NAME.000-014.gguf", "layers": [0, 14],
 *                  "size_bytes": 1234, "sha256": "…" },
 *                …
 *                { "name": "NAME.vocab.gguf", "layers": null,
 *                  "size_bytes": 123, "sha256": "…" } ] }
 *
 * A manifest may come from elsewhere with the slices: everything in it is checked, names above
 * all. */
#include "slice/manifest_int.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "slice/hash_int.h"
#include "slice/write_int.h"

enum { FILE_MAX = 1 << 20 };

static json_t *file_to_json(const struct nk_manifest_file *f)
{
    json_t *layers = f->range.end ? json_pack("[i, i]", f->range.begin, f->range.end) : json_null();

    return json_pack("{s:s, s:o, s:I, s:s}", "name", f->name, "layers", layers, "size_bytes",
                     (json_int_t)f->size_bytes, "sha256", f->sha256);
}

int nk__manifest_write(const struct nk_manifest *mf, const char *path, struct nk_error *err)
{
    json_t *root, *files = json_array();
    char *text = NULL;
    int rc;

    for (int i = 0; i < mf->n_files; i++)
        json_array_append_new(files, file_to_json(&mf->files[i]));
    root =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:o}", "model_id", mf->model_id, "model_sha256",
                  mf->model_sha256, "architecture", mf->architecture, "n_layer", mf->n_layer,
                  "n_embd", mf->n_embd, "slice_format", NK__SLICE_FORMAT, "files", files);
    if (root && json_array_size(files) == (size_t)mf->n_files)
        text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory",
                       "%s: no memory, or a name that is not UTF-8", path);
    rc = nk_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

/* A string member that fits; false otherwise. */
static bool get_string(const json_t *object, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (!text || strlen(text) >= size)
        return false;
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static bool get_int(const json_t *value, int min, int max, int *out)
{
    json_int_t v = json_integer_value(value);

    if (!json_is_integer(value) || v < min || v > max)
        return false;
    *out = (int)v;
    return true;
}

/* A plain file name: it is put behind a folder and opened. */
static bool is_name(const char *name)
{
    return name[0] && name[0] != '.' && !strchr(name, '/');
}

static const char *parse_file(const json_t *json, int n_layer, struct nk_manifest_file *f)
{
    const json_t *layers = json_object_get(json, "layers"),
                 *size = json_object_get(json, "size_bytes");

    if (!get_string(json, "name", f->name, sizeof f->name) || !is_name(f->name))
        return "a file's name is missing, too long, or not a plain file name";
    if (!get_string(json, "sha256", f->sha256, sizeof f->sha256) || !nk__is_sha256(f->sha256))
        return "a file's sha256 is not 64 hex digits";
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return "a file's size_bytes is not a size";
    f->size_bytes = (uint64_t)json_integer_value(size);
    if (json_is_null(layers))
        return NULL;
    if (json_array_size(layers) != 2 ||
        !get_int(json_array_get(layers, 0), 0, n_layer - 1, &f->range.begin) ||
        !get_int(json_array_get(layers, 1), f->range.begin + 1, n_layer, &f->range.end))
        return "a file's layers are not [begin, end] within the model";
    return NULL;
}

/* NULL, or what is wrong with it. */
static const char *parse(const json_t *root, struct nk_manifest *mf)
{
    const json_t *files = json_object_get(root, "files");

    if (!json_is_object(root))
        return "not an object";
    if (!get_int(json_object_get(root, "slice_format"), NK__SLICE_FORMAT_OLDEST, NK__SLICE_FORMAT,
                 &mf->slice_format))
        return "slice_format is none that this program reads";
    if (!get_string(root, "model_id", mf->model_id, sizeof mf->model_id) ||
        !get_string(root, "architecture", mf->architecture, sizeof mf->architecture))
        return "model_id or architecture is missing or too long";
    if (!get_string(root, "model_sha256", mf->model_sha256, sizeof mf->model_sha256) ||
        !nk__is_sha256(mf->model_sha256))
        return "model_sha256 is not 64 hex digits";
    if (!get_int(json_object_get(root, "n_layer"), 1, NK_LAYERS_MAX, &mf->n_layer) ||
        !get_int(json_object_get(root, "n_embd"), 1, INT32_MAX, &mf->n_embd))
        return "n_layer or n_embd is not a possible number";
    if (!json_is_array(files) || json_array_size(files) > NK_LAYERS_MAX + 1)
        return "files is not a list, or too long";
    for (size_t i = 0; i < json_array_size(files); i++) {
        const char *wrong =
            parse_file(json_array_get(files, i), mf->n_layer, &mf->files[mf->n_files++]);

        if (wrong)
            return wrong;
    }
    return NULL;
}

int nk_manifest_read(struct nk_manifest **out, const char *path, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(FILE_MAX);
    struct nk_manifest *mf;
    json_error_t where;
    json_t *root;
    const char *wrong;
    int rc = nk_file_read(path, FILE_MAX, &text, err);

    *out = NULL;
    if (rc)
        return rc;
    root = json_loadb(nk_buf_str(&text), text.size, JSON_REJECT_DUPLICATES, &where);
    nk_buf_release(&text);
    if (!root)
        return nk_fail(err, NK_E_INVALID, "bad_manifest", "%s: line %d: %s", path, where.line,
                       where.text);
    mf = calloc(1, sizeof *mf);
    wrong = mf ? parse(root, mf) : NULL;
    json_decref(root);
    if (!mf)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: no memory", path);
    if (wrong) {
        free(mf);
        return nk_fail(err, NK_E_INVALID, "bad_manifest", "%s: %s", path, wrong);
    }
    *out = mf;
    return 0;
}
