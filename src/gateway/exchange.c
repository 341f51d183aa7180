#include "gateway/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/listeners.h"

/* Who asks whether a request would run is told what is known after so long, whatever the workers
 * do. */
enum { READY_MS_MAX = 100 };
enum { DRAIN_BYTES_MAX = 64 << 20 };

void nk__exchange_ref(void *x)
{
    atomic_fetch_add(&((nk_exchange *)x)->refs, 1);
}

void nk__exchange_unref(void *arg)
{
    nk_exchange *x = arg;

    if (atomic_fetch_sub(&x->refs, 1) != 1)
        return;
    nk_buf_release(&x->body);
    nk__budget_hold(&x->g->bodies, &x->held, 0, 0);
    nk__event_blob_unref(x->latest);
    nk__event_blob_unref(x->sending);
    pthread_mutex_destroy(&x->mutex);
    free(x);
}

void nk__exchange_wake(void *arg)
{
    nk_exchange *x = arg;

    pthread_mutex_lock(&x->mutex);
    x->woken = true;
    if (x->suspended && !x->over) {
        x->suspended = false;
        MHD_resume_connection(x->connection);
        nk__presence_leave(&x->g->presence, NK_PRESENT_SUSPENDED);
    }
    /* Its socket is full: libmicrohttpd would wait for it. */
    if (!x->over && x->job && nk__job_overflowed(x->job))
        nk__watch_shutdown(x->watched);
    pthread_mutex_unlock(&x->mutex);
}

void nk__exchange_forget_wake(nk_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    x->woken = false;
    pthread_mutex_unlock(&x->mutex);
}

bool nk__exchange_suspend(nk_exchange *x)
{
    bool ok;

    pthread_mutex_lock(&x->mutex);
    ok = !x->woken && nk__presence_suspend(&x->g->presence);
    if (ok) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->mutex);
    return ok;
}

/* ---- the watch's handlers ---- */

/* With a reference, or NULL. */
static nk_job *job_of(nk_exchange *x)
{
    nk_job *j;

    pthread_mutex_lock(&x->mutex);
    j = x->job;
    if (j)
        nk__job_ref(j);
    pthread_mutex_unlock(&x->mutex);
    return j;
}

void nk__exchange_gone(void *request)
{
    nk_job *j = job_of(request);

    if (j)
        nk__job_cancel(j, NK_E_CANCELLED, "client_gone", "the client went away");
    nk__job_unref(j);
    nk__exchange_wake(request);
}

void nk__exchange_half_closed(void *request)
{
    nk_job *j = job_of(request);

    if (j)
        nk__job_want_keepalive(j);
    nk__job_unref(j);
}

/* ---- looking at the workers ---- */

static void on_looked(struct nk_waiter *w)
{
    nk_exchange *x = (nk_exchange *)((char *)w - offsetof(nk_exchange, waiter));

    atomic_store(&x->looked, true);
    nk__exchange_wake(x);
    nk__exchange_unref(x);
}

/* True: what is known is fresh enough. */
static bool look(nk_exchange *x, uint32_t age_ms, bool probe)
{
    if (x->asked)
        return atomic_load(&x->looked);
    x->asked = true;
    x->waiter.ready = on_looked;
    nk__exchange_ref(x);
    if (nk__monitor_want(x->g->monitor, &x->waiter, age_ms, probe, probe ? READY_MS_MAX : 0)) {
        nk__exchange_unref(x);
        return true;
    }
    return atomic_load(&x->looked);
}

/* ---- the request ---- */

static nk_exchange *begin(nk_gateway *g, struct MHD_Connection *connection, const char *path,
                          const char *method, const char *version)
{
    const union MHD_ConnectionInfo *socket_context =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    nk_exchange *x = calloc(1, sizeof *x);
    bool fits = true;

    const struct nk_connection *c = socket_context ? socket_context->socket_context : NULL;

    if (!x || !c) {
        free(x);
        return NULL;
    }
    atomic_init(&x->refs, 1);
    atomic_init(&x->looked, false);
    x->g = g;
    x->connection = connection;
    x->watched = c->watched;
    x->guest = c->guest;
    x->begin_ns = nk_clock_now_ns(g->clock);
    x->allowed = "GET, HEAD, POST, OPTIONS";
    nk_buf_init(&x->body, g->opts.limits.body_bytes_max);
    pthread_mutex_init(&x->mutex, NULL);
    x->route = nk__route_find(path, method, !g->opts.no_page, &fits, &x->allowed);
    if (x->route && x->route->kind == NK_ROUTE_ASSET)
        x->asset = nk__asset_find(path);
    else if (x->route)
        snprintf(x->rest, sizeof x->rest, "%s",
                 strlen(path) > strlen(x->route->path) ? path + strlen(x->route->path) : "");
    nk__watch_deadline(x->watched, g->opts.limits.body_ms, true);
    nk__exchange_judge(x, method, path, version, fits);
    return x;
}

/* The body is there; and again after every resume. */
static enum MHD_Result go(nk_exchange *x)
{
    nk_gateway *g = x->g;

    for (;;) {
        enum MHD_Result result;

        nk__exchange_forget_wake(x);
        if (nk__presence_closed(&g->presence)) {
            if (!x->job)
                return nk__exchange_fail_stopping(x);
            nk__job_shut_down(x->job); /* it may have begun after the others were ended */
        }
        switch (x->route->kind) {
        case NK_ROUTE_ASSET:
            return nk__exchange_answer_asset(x);
        case NK_ROUTE_SHORT:
            return nk__exchange_answer_short(x);
        case NK_ROUTE_LOOK:
            if (look(x, x->route->age_ms, x->route->probe))
                return nk__exchange_answer_short(x);
            break;
        case NK_ROUTE_EVENTS:
            return nk__listener_answer(x);
        case NK_ROUTE_GENERATE:
            if (!x->job) {
                struct nk_snapshot *s = nk__monitor_peek(g->monitor);
                bool ok = s && s->ok;
                nk_job *j;

                nk__snapshot_unref(s);
                /* What is not known to be well is looked at again, half a second later at the
                 * soonest. */
                if (!ok && !nk__api_is_text(x->route->api) && !look(x, 500, false))
                    break;
                if (atomic_load(&g->stopping))
                    return nk__exchange_fail_stopping(x);
                j = nk__job_new(g, x->route->api, &x->body, &x->held, x->key, x->begin_ns,
                                nk__exchange_wake, nk__exchange_unref, x);
                if (!j)
                    return nk__exchange_fail(x, NK_E_EXHAUSTED, "no_memory",
                                             "no memory for the request");
                nk__exchange_ref(x); /* the job's; it lets go of it last */
                pthread_mutex_lock(&x->mutex);
                x->job = j;
                pthread_mutex_unlock(&x->mutex);
                nk__watch_request(x->watched, x);
                nk__job_start(j);
            }
            if (nk__exchange_answer_job(x, &result))
                return result;
            break;
        case NK_ROUTE_REFUSED: /* nk__exchange_judge() has refused it */
            return MHD_NO;
        }
        if (nk__exchange_suspend(x))
            return MHD_YES;
    }
}

static int add_to_body(nk_exchange *x, const char *data, size_t size, struct nk_error *err)
{
    enum { FREE_BYTES = 64 << 10, MIB = 1 << 20 }; /* so many each connection may well have */
    struct nk_budget *b = &x->g->bodies;
    size_t all = x->body.size + size, held = 2 * all; /* the buffer grows by doubling */

    if (all > x->g->opts.limits.body_bytes_max)
        return nk_fail(err, NK_E_EXHAUSTED, "body_too_large", "a body of more than %zu bytes",
                       x->g->opts.limits.body_bytes_max);
    if (all > FREE_BYTES && held > x->held && !nk__budget_hold(b, &x->held, held, b->max))
        return nk_fail(err, NK_E_EXHAUSTED, "requests_full",
                       "the bodies of other requests take %zu MiB of the %zu that all together may "
                       "take (half of --requests-mib); try again later",
                       atomic_load(&b->used) / MIB, b->max / MIB);
    return nk_buf_add(&x->body, data, size, err);
}

enum MHD_Result nk__exchange_access(void *cls, struct MHD_Connection *connection, const char *path,
                                    const char *method, const char *version, const char *data,
                                    size_t *size, void **con_cls)
{
    nk_exchange *x = *con_cls;

    if (!x) {
        const char *length;

        *con_cls = x = begin(cls, connection, path, method, version);
        if (!x)
            return MHD_NO;
        length = nk__exchange_header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
        /* Who waits for 100 Continue, or would send very much, is told before the body. */
        if (x->failed && (x->at_once || nk__exchange_header(x, MHD_HTTP_HEADER_EXPECT) ||
                          (length && strtoull(length, NULL, 10) > DRAIN_BYTES_MAX)))
            return nk__exchange_error(x);
        return MHD_YES;
    }
    if (*size) {
        x->n_body += *size;
        if (x->n_body > DRAIN_BYTES_MAX && x->n_body > 2 * x->g->opts.limits.body_bytes_max)
            return MHD_NO;
        if (!x->failed)
            x->failed = add_to_body(x, data, *size, &x->err) != 0;
        if (x->failed) {
            nk_buf_release(&x->body);
            nk__budget_hold(&x->g->bodies, &x->held, 0, 0);
        }
        *size = 0;
        return MHD_YES;
    }
    nk__watch_deadline(x->watched, 0, false);
    nk__door_busy(x->guest);
    if (x->failed)
        return nk__exchange_error(x);
    if (!strcmp(method, "OPTIONS"))
        return nk__exchange_answer_options(x);
    /* Suspended now, the connection would still count as one to be read from when it is resumed,
     * and the end of a client that has said all (a half-closed connection) would be taken for its
     * going. Asked once more, it no longer does. */
    if (!x->is_all_read) {
        x->is_all_read = true;
        return MHD_YES;
    }
    return go(x);
}

void nk__exchange_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                            enum MHD_RequestTerminationCode toe)
{
    nk_gateway *g = cls;
    nk_exchange *x = *con_cls;
    const char *path;
    char labels[128], user[200];
    double seconds;
    nk_job *j;

    (void)connection, (void)toe;
    if (!x)
        return;
    *con_cls = NULL;
    nk__watch_request(x->watched, NULL);
    nk__watch_deadline(x->watched, g->opts.limits.idle_ms, false);
    nk__door_idle(x->guest);
    pthread_mutex_lock(&x->mutex);
    x->over = true;
    j = x->job;
    x->job = NULL;
    pthread_mutex_unlock(&x->mutex);
    if (j)
        nk__job_end(j);
    if (x->listens)
        nk__listener_stop(x);
    path = !x->route ? "other" : x->asset ? "/" : x->route->path;
    seconds = (double)(nk_clock_now_ns(g->clock) - x->begin_ns) / 1e9;
    snprintf(labels, sizeof labels, "%s,%d", path, x->status);
    nk__metrics_add(g->metrics, NK_METRIC_REQUESTS, labels, 1);
    nk__metrics_observe(g->metrics, NK_METRIC_REQUEST_TIME, path, seconds, 1);
    if (j)
        nk_log(NK_LOG_GATEWAY, NK_LOG_INFO,
               "route=%s status=%d ms=%.1f reason=%s request=%s user=%s", path, x->status,
               seconds * 1000, x->err.code ? x->err.reason : "none", nk__job_id(j),
               nk__job_user(j, user, sizeof user));
    else
        nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "route=%s status=%d ms=%.1f reason=%s", path,
               x->status, seconds * 1000, x->err.code ? x->err.reason : "none");
    nk__job_unref(j);
    nk__exchange_unref(x);
}
