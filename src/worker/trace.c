#include "worker/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct nk_trace {
    FILE *f;
    const char *worker_id;
};

int nk_trace_open(struct nk_trace **out, const char *path, const char *worker_id,
                  struct nk_error *err)
{
    struct nk_trace *t = calloc(1, sizeof *t);

    *out = NULL;
    if (!t)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    t->f = fopen(path, "we");
    if (!t->f) {
        bool missing = errno == ENOENT || errno == ENOTDIR;

        free(t);
        return nk_fail(err, missing ? NK_E_NOT_FOUND : NK_E_DENIED,
                       missing ? "no_file" : "cannot_create",
                       "the trace cannot be written to %s: %s", path, strerror(errno));
    }
    t->worker_id = worker_id;
    *out = t;
    return 0;
}

void nk_trace_close(struct nk_trace *t)
{
    bool failed;

    if (!t)
        return;
    failed = ferror(t->f);
    failed = fclose(t->f) || failed;
    if (failed)
        nk_log(NK_LOG_WORKER, NK_LOG_WARN, "msg=\"the trace is incomplete\"");
    free(t);
}

/* Ids come from the command line: what JSON would have to escape is left out. */
static void plain(char *out, size_t size, const char *id)
{
    size_t n = 0;

    for (; *id && n + 1 < size; id++)
        if (*id != '"' && *id != '\\' && (unsigned char)*id >= 0x20)
            out[n++] = *id;
    out[n] = '\0';
}

void nk_trace_event(struct nk_trace *t, uint64_t t_ns, const char *event, const char *session,
                    uint64_t step, int pos, int n_rows)
{
    char worker_id[128];

    if (!t)
        return;
    plain(worker_id, sizeof worker_id, t->worker_id);
    fprintf(t->f,
            "{\"t\":%" PRIu64
            ",\"ev\":\"%s\",\"worker\":\"%s\",\"session\":\"%s\",\"step\":%" PRIu64
            ",\"pos\":%d,\"rows\":%d}\n",
            t_ns, event, worker_id, session, step, pos, n_rows);
}
