#include "cli/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/interrupt.h"
#include "slice/slice.h"

static int read_stdin(struct nk_buf *out, struct nk_error *err)
{
    nk_buf_init(out, NK_TEXT_BYTES_MAX);
    for (;;) {
        char chunk[65536];
        ssize_t n = read(0, chunk, sizeof chunk);
        int rc;

        if (n < 0 && errno == EINTR && !nk_interrupt_signal())
            continue;
        if (n < 0)
            return nk_fail(err, errno == EINTR ? NK_E_CANCELLED : NK_E_DATA_LOSS, "read_failed",
                           "standard input: %s", strerror(errno));
        if (n == 0)
            return 0;
        rc = nk_buf_add(out, chunk, (size_t)n, err);
        if (rc)
            return nk_wrap(rc, err, "standard input");
    }
}

int nk_prompt_read(const char *prompt, const char *file, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    nk_buf_init(out, NK_TEXT_BYTES_MAX);
    if (prompt && file)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--prompt and --file were both given; one is right");
    if (prompt)
        return nk_buf_adds(out, prompt, err);
    if (!file && isatty(0))
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "no prompt: give --prompt TEXT, --file FILE or standard input");
    rc = file && strcmp(file, "-") ? nk_file_read(file, NK_TEXT_BYTES_MAX, out, err)
                                   : read_stdin(out, err);
    if (!rc && out->size && out->data[out->size - 1] == '\n') {
        out->size--;
        if (out->size && out->data[out->size - 1] == '\r')
            out->size--;
        out->data[out->size] = '\0';
    }
    return rc;
}

/* The hash of the model that the file was cut from, or of the file itself when it is a whole model. */
static int hash_of(const nk_vocab *v, const char *path, char hex[NK_SHA256_HEX],
                   struct nk_error *err)
{
    nk_model *m = NULL;
    int rc;

    if (nk_vocab_model_sha256(v)[0]) {
        memcpy(hex, nk_vocab_model_sha256(v), NK_SHA256_HEX);
        return 0;
    }
    rc = nk_model_open(&m, path, err);
    if (!rc)
        rc = nk_model_hash(m, hex, err);
    nk_model_close(m);
    return rc;
}

int nk_cluster_vocab_open(nk_vocab **out, const struct nk_cluster *c, struct nk_error *err)
{
    char hex[NK_SHA256_HEX];
    nk_vocab *v = NULL;
    int rc;

    *out = NULL;
    if (!c->vocab_path[0])
        return nk_fail(
            err, NK_E_INVALID, "no_vocab",
            "%s: names no vocabulary file; `vocab: NAME.vocab.gguf` under model is right", c->path);
    rc = nk_vocab_open(&v, c->vocab_path, err);
    if (!rc)
        rc = hash_of(v, c->vocab_path, hex, err);
    if (!rc && strcmp(hex, c->model_sha256))
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s: is the vocabulary of model %s, the cluster file wants %s", c->vocab_path,
                     hex, c->model_sha256);
    if (rc) {
        nk_vocab_close(v);
        return rc;
    }
    *out = v;
    return 0;
}
