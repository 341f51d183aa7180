/* A model's identity: SHA-256 over its bytes. */
#include "slice/slice.h"

#include <string.h>

#include "base/progress.h"
#include "slice/model_int.h"
#include "slice/stream_int.h"

static int draw(void *user, uint64_t bytes, struct nk_error *err)
{
    (void)err;
    nk_progress_add(user, bytes);
    return 0;
}

static int compute(nk_model *m, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    struct nk_progress bar;
    nk__stream *s;
    int rc;

    nk_progress_start(&bar, "hashing", m->info.file_bytes);
    rc = nk__stream_new(&s, NULL, draw, &bar, err);
    for (int i = 0; i < m->info.n_shards && !rc; i++) {
        const struct nk__gguf *g = &m->shards[i];

        rc = nk__stream_copy(s, &g->source, 0, g->source.size, err);
        if (rc)
            nk_wrap(rc, err, "%s", g->path);
    }
    if (!rc)
        rc = nk__stream_finish(s, hex, err);
    nk__stream_free(s);
    nk_progress_end(&bar);
    return rc;
}

int nk_model_hash(nk_model *m, char hex[NK_SHA256_HEX], struct nk_error *err)
{
    int rc = m->hash[0] ? 0 : compute(m, m->hash, err);

    if (rc)
        m->hash[0] = '\0';
    else
        memcpy(hex, m->hash, NK_SHA256_HEX);
    return rc;
}
