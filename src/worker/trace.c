#include "worker/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct nk_trace {
    FILE *f;
    char worker_id[128];
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
        free(t);
        return nk_fail(err, NK_E_DENIED, "cannot_create", "%s: %s", path, strerror(errno));
    }
    /* Ids come from the command line: what JSON would have to escape is left out. */
    for (size_t n = 0; *worker_id && n + 1 < sizeof t->worker_id; worker_id++)
        if (*worker_id != '"' && *worker_id != '\\' && (unsigned char)*worker_id >= 0x20)
            t->worker_id[n++] = *worker_id;
    *out = t;
    return 0;
}

void nk_trace_close(struct nk_trace *t)
{
    if (!t)
        return;
    fclose(t->f);
    free(t);
}

void nk_trace_event(struct nk_trace *t, uint64_t t_ns, const char *event, const char *session,
                    uint64_t step, int pos, int n_rows)
{
    if (!t)
        return;
    fprintf(t->f,
            "{\"t\":%" PRIu64
            ",\"ev\":\"%s\",\"worker\":\"%s\",\"session\":\"%s\",\"step\":%" PRIu64
            ",\"pos\":%d,\"rows\":%d}\n",
            t_ns, event, t->worker_id, session, step, pos, n_rows);
}
