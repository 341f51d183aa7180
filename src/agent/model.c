/* The model that is served: its catalogue, and what this machine can do for it. */
#include "agent/agent_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/process.h"

enum {
    FETCH_MS = 60000,   /* a catalogue of 10 MB over a slow line */
    PAUSE_MS = 2000,    /* between tries */
    AGAIN_MS = 300000,  /* after measuring has failed */
    MEASURE_MS = 600000 /* a slow machine with a large model */
};

/* Waits ms, or until something else is wanted or it ends. */
static void pause_for(nk_agent *a, const struct nk__wanted *w, uint32_t ms)
{
    uint64_t end = nk_clock_now_ns(a->o.clock) + (uint64_t)ms * 1000000;

    pthread_mutex_lock(&a->mutex);
    while (!a->stopping && nk__wanted_alike(&a->wanted, w) &&
           nk_clock_wait_until(a->o.clock, &a->cond, &a->mutex, end))
        ;
    pthread_mutex_unlock(&a->mutex);
}

static bool still_wanted(nk_agent *a, const struct nk__wanted *w)
{
    bool is;

    pthread_mutex_lock(&a->mutex);
    is = !a->stopping && nk__wanted_alike(&a->wanted, w);
    pthread_mutex_unlock(&a->mutex);
    return is;
}

static int get_catalogue(nk_agent *a, const char *id, nk_catalogue **out, struct nk_error *err)
{
    char address[256];
    int rc = nk_catalogue_find(out, id, err);

    if (rc) {
        nk__attend_address(a, address);
        rc = nk_catalogue_fetch(out, id, a->net, address, &a->credentials, FETCH_MS, err);
    }
    if (!rc)
        rc = nk_pieces_service_add(a->pieces, *out, err);
    if (rc) {
        nk_catalogue_unref(*out);
        *out = NULL;
    }
    return rc;
}

/* Everything that the child prints, until it ends. */
static int read_all(nk_agent *a, const struct nk__wanted *w, struct nk_process *p,
                    struct nk_buf *out, struct nk_error *err)
{
    uint64_t end = nk_clock_now_ns(a->o.clock) + (uint64_t)MEASURE_MS * 1000000;

    for (;;) {
        struct pollfd fd = { p->out_fd, POLLIN, 0 };
        char *where;
        ssize_t n;
        int rc;

        if (!still_wanted(a, w))
            return nk_fail(err, NK_E_CANCELLED, "cancelled", "cancelled");
        if (nk_clock_now_ns(a->o.clock) > end)
            return nk_fail(err, NK_E_DEADLINE, "measure_silent",
                           "measuring has not ended after %d s", MEASURE_MS / 1000);
        if (poll(&fd, 1, 200) <= 0)
            continue;
        rc = nk_buf_reserve(out, 4096, &where, err);
        if (rc)
            return rc;
        n = read(p->out_fd, where, 4096);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        nk_buf_commit(out, (size_t)n);
    }
}

static int measure(nk_agent *a, const struct nk__wanted *w, struct nk_buf *out,
                   struct nk_error *err)
{
    struct nk_process p = NK_PROCESS_INIT;
    char numbers[3][16], how[96];
    const char *argv[24];
    int n = 0, rc;

    argv[n++] = a->o.program;
    argv[n++] = "measure";
    argv[n++] = "--catalogue";
    argv[n++] = w->catalogue;
    argv[n++] = "--json";
#define OPTION(k, name, value)                                                                     \
    do {                                                                                           \
        snprintf(numbers[k], sizeof numbers[k], "%d", value);                                      \
        argv[n++] = name;                                                                          \
        argv[n++] = numbers[k];                                                                    \
    } while (0)
    if (w->n_ctx)
        OPTION(0, "--ctx", w->n_ctx);
    if (w->n_seq_max)
        OPTION(1, "--sequences", w->n_seq_max);
    if (a->o.n_threads)
        OPTION(2, "--threads", a->o.n_threads);
#undef OPTION
    if (a->o.device) {
        argv[n++] = "--device";
        argv[n++] = a->o.device;
    }
    if (w->cache_type_k[0]) {
        argv[n++] = "--cache-type-k";
        argv[n++] = w->cache_type_k;
    }
    if (w->cache_type_v[0]) {
        argv[n++] = "--cache-type-v";
        argv[n++] = w->cache_type_v;
    }
    if (w->no_flash_attn)
        argv[n++] = "--no-flash-attn";
    if (w->deterministic)
        argv[n++] = "--deterministic";
    argv[n] = NULL;
    rc = nk_process_start(&p, &(struct nk_process_opts){ .argv = argv, .capture_out = true }, err);
    if (rc)
        return rc;
    rc = read_all(a, w, &p, out, err);
    if (!rc && nk_process_wait(&p, 5000) && p.status != 0)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "measure_failed", "measuring %s",
                     nk_process_status_format(how, sizeof how, p.status));
    nk_process_stop(&p, 2000);
    return rc;
}

/* 0, CANCELLED, or why it could not; the last is told, too. */
static int facts(nk_agent *a, const struct nk__wanted *w)
{
    struct nk_buf text = NK_BUF_INIT(NK__FACTS_BYTES_MAX);
    struct nk_error err;
    int rc;

    nk__agent_say(a, "measuring this machine");
    rc = measure(a, w, &text, &err);
    if (rc == NK_E_CANCELLED) {
        nk_buf_release(&text);
        return rc;
    }
    if (rc)
        nk__agent_say(a, "%s", err.msg);
    pthread_mutex_lock(&a->mutex);
    free(a->facts);
    a->facts = rc ? NULL : nk_buf_take(&text, NULL);
    snprintf(a->facts_error, sizeof a->facts_error, "%.255s", rc ? err.msg : "");
    snprintf(a->facts_of, sizeof a->facts_of, "%s", w->catalogue);
    a->facts_number++;
    pthread_cond_broadcast(&a->cond); /* the ways can be measured now */
    pthread_mutex_unlock(&a->mutex);
    nk_buf_release(&text);
    nk__attend_changed(a);
    return rc;
}

void *nk__model_run(void *arg)
{
    nk_agent *a = arg;
    struct nk__wanted w = { 0 };
    bool done = false; /* both were got for w */

    for (;;) {
        nk_catalogue *c = NULL, *old;
        struct nk_error err;
        bool stopping;
        int rc;

        pthread_mutex_lock(&a->mutex);
        while (!a->stopping &&
               (!a->wanted.catalogue[0] || (done && nk__wanted_alike(&a->wanted, &w))))
            pthread_cond_wait(&a->cond, &a->mutex);
        w = a->wanted;
        stopping = a->stopping;
        pthread_mutex_unlock(&a->mutex);
        if (stopping)
            return NULL;
        done = false;
        if (get_catalogue(a, w.catalogue, &c, &err)) {
            nk__agent_say(a, "the model's catalogue did not come: %s; trying on", err.msg);
            pause_for(a, &w, PAUSE_MS);
            continue;
        }
        pthread_mutex_lock(&a->mutex);
        old = a->catalogue;
        a->catalogue = c;
        pthread_mutex_unlock(&a->mutex);
        nk_catalogue_unref(old);
        nk__agent_wake(a);
        rc = facts(a, &w);
        done = !rc;
        if (rc && rc != NK_E_CANCELLED) /* what ended it need not last: it was killed for memory */
            pause_for(a, &w, AGAIN_MS);
    }
}
