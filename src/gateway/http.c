/* HTTP over libmicrohttpd: one thread, epoll. Everything that takes long happens elsewhere;
 * meanwhile the connection is suspended.
 *
 * An exchange is one request and its reply. Its life:
 *
 *   begin     headers are there: route, key, origin, type and size are judged; what is wrong is
 *             kept and answered when the body was read, so that the client is not cut off while it
 *             still writes (a body that is far too large is answered at once)
 *   go        the body is there; called again after every resume, until a reply was queued
 *   read_*    the reply's bytes, when it is a stream
 *   completed libmicrohttpd is done with it, for whatever reason
 *
 * Safety: the exchange's mutex guards `woken`, `suspended` and `over`. wake() may be called on any
 * thread: it resumes a suspended connection, or is remembered for the next time the HTTP thread
 * wants to suspend it. Once the gateway's presence is closed nothing is suspended any more: what
 * would have to wait ends. */
#include "gateway/http.h"

#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"
#include "gateway/head.h"
#include "gateway/job.h"
#include "gateway/reply.h"
#include "gateway/routes.h"

/* Beside the places for connections: spare ones for probes, those that close (they are counted
 * until libmicrohttpd has seen their end), and files that are not connections. */
enum { SPARE_PLACES = 16, CLOSING_MAX = 64, OTHER_FILES = 128 };
/* Who asks whether a request would run is told what is known after so long, whatever the workers
 * do. */
enum { READY_MS_MAX = 100 };
enum { BLOCK_BYTES = 16384, SHORT_REPLY_BYTES_MAX = 4 << 20, DRAIN_BYTES_MAX = 64 << 20 };

/* Nothing inline, nothing from elsewhere, and no text ever parsed as markup or script (trusted
 * types, where the browser has them): whatever a model writes stays text. */
static const char content_security[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'";

struct blob { /* one event for all listeners */
    atomic_int refs;
    size_t size;
    char *data;
};

struct connection { /* libmicrohttpd's "socket context" */
    nk_watched *watched;
    nk_guest *guest;
};

struct nk_exchange {
    atomic_int refs;
    nk_gateway *g;
    struct MHD_Connection *connection;
    nk_watched *watched;
    nk_guest *guest;
    const struct nk_route *route; /* NULL: none was found */
    const struct nk_asset *asset;
    char rest[200]; /* of the path, behind the route's */
    const char *allowed;
    uint64_t begin_ns;
    int status; /* that was answered; 0: none */

    struct nk_buf body;
    uint64_t n_body;
    size_t held;      /* of g->bodies, for the body */
    bool is_all_read; /* the daemon knows that there is no more of the request to come */
    bool failed;      /* err is the answer */
    bool at_once;     /* ... before any body, whose length is not known */
    bool closes;      /* the connection ends with the reply */
    struct nk_error err;
    char param[128];
    char key[NK_SHA256_HEX]; /* the digest of its API key; "": none */
    char origin[256];        /* that is allowed; "" for none */
    bool trusted;            /* it may see what lets a machine join */

    pthread_mutex_t mutex;
    bool woken, suspended, over;

    nk_job *job;
    struct nk_waiter waiter;
    atomic_bool looked; /* the monitor has called */
    bool asked;

    /* a listener */
    LIST_ENTRY(nk_exchange) link; /* under the gateway's mutex, as `latest` */
    bool listens;
    struct blob *latest; /* to be sent next */
    struct blob *sending;
    size_t n_sent;
};

static void blob_unref(struct blob *b)
{
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1)
        return;
    free(b->data);
    free(b);
}

static void exchange_ref(void *x)
{
    atomic_fetch_add(&((nk_exchange *)x)->refs, 1);
}

static void exchange_unref(void *arg)
{
    nk_exchange *x = arg;

    if (atomic_fetch_sub(&x->refs, 1) != 1)
        return;
    nk_buf_release(&x->body);
    nk__budget_hold(&x->g->bodies, &x->held, 0, 0);
    blob_unref(x->latest);
    blob_unref(x->sending);
    pthread_mutex_destroy(&x->mutex);
    free(x);
}

/* Any thread. */
static void wake(void *arg)
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

static void forget_wake(nk_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    x->woken = false;
    pthread_mutex_unlock(&x->mutex);
}

/* False: there was a wake meanwhile, or nothing is suspended any more: look again. */
static bool suspend(nk_exchange *x)
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

static void on_gone(void *request)
{
    nk_job *j = job_of(request);

    if (j)
        nk__job_cancel(j, NK_E_CANCELLED, "client_gone", "the client went away");
    nk__job_unref(j);
    wake(request);
}

static void on_half_closed(void *request)
{
    nk_job *j = job_of(request);

    if (j)
        nk__job_want_keepalive(j);
    nk__job_unref(j);
}

/* ---- replies ---- */

static void header(struct MHD_Response *r, const char *name, const char *value)
{
    MHD_add_response_header(r, name, value);
}

/* Queues and gives the response up. */
static enum MHD_Result answer(nk_exchange *x, int status, const char *type, struct MHD_Response *r)
{
    enum MHD_Result result;

    if (!r)
        return MHD_NO;
    if (type)
        header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    header(r, "X-Content-Type-Options", "nosniff");
    if (x->closes)
        header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    if (!x->asset)
        header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (x->origin[0]) {
        header(r, "Access-Control-Allow-Origin", x->origin);
        header(r, "Vary", "Origin");
        header(r, "Access-Control-Expose-Headers",
               "X-Request-Id, Retry-After, X-Nakshatra-Ignored, X-Nakshatra-Tools");
    }
    x->status = status;
    result = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return result;
}

/* The request's fields that have no effect here. */
static void add_ignored(nk_exchange *x, struct MHD_Response *r)
{
    const char *ignored = nk__job_ignored(x->job);

    if (r && ignored[0])
        header(r, "X-Nakshatra-Ignored", ignored);
}

static struct MHD_Response *response_from(struct nk_buf *b)
{
    size_t size;
    char *data = nk_buf_take(b, &size);
    struct MHD_Response *r =
        data ? MHD_create_response_from_buffer(size, data, MHD_RESPMEM_MUST_FREE) : NULL;

    if (!r)
        free(data);
    return r;
}

static enum MHD_Result answer_error(nk_exchange *x)
{
    struct nk_buf body = NK_BUF_INIT(8192);
    int status = nk__error_status(&x->err);
    struct MHD_Response *r;

    nk__error_body(nk__route_dialect(x->route), false, &x->err, x->param, &body);
    r = response_from(&body);
    if (r && status == 429) {
        char seconds[16];

        snprintf(seconds, sizeof seconds, "%d",
                 nk__admission_counts(x->g->admission).retry_after_s);
        header(r, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    }
    if (r && status == 503)
        header(r, MHD_HTTP_HEADER_RETRY_AFTER, "2");
    if (r && status == 401)
        header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (r && status == 405)
        header(r, MHD_HTTP_HEADER_ALLOW, x->allowed);
    nk__metrics_add(x->g->metrics, NK_METRIC_ERRORS, x->err.reason, 1);
    return answer(x, status == 499 ? 503 : status, "application/json", r);
}

static enum MHD_Result fail(nk_exchange *x, int code, const char *reason, const char *msg)
{
    x->failed = true;
    x->param[0] = '\0';
    nk_fail(&x->err, code, reason, "%s", msg);
    return answer_error(x);
}

static enum MHD_Result fail_shutting_down(nk_exchange *x)
{
    return fail(x, NK_E_UNAVAILABLE, "shutting_down", "the gateway is shutting down");
}

/* ---- jobs ---- */

static ssize_t read_job(void *cls, uint64_t pos, char *out, size_t max)
{
    nk_exchange *x = cls;

    (void)pos;
    for (;;) {
        ssize_t n;

        forget_wake(x);
        if (nk__presence_closed(&x->g->presence))
            nk__job_shut_down(x->job); /* it may have begun after the others were ended */
        nk__job_take_keepalive(x->job);
        n = nk__job_read(x->job, out, max);
        if (n > 0)
            return n;
        if (n < 0)
            return n == -1 ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
        if (suspend(x))
            return 0;
    }
}

/* How tools were told to the model, where that is not as its template does it. */
static void add_tools(nk_exchange *x, struct MHD_Response *r)
{
    if (r && nk__job_generic_tools(x->job))
        header(r, "X-Nakshatra-Tools", "generic");
}

static enum MHD_Result answer_stream(nk_exchange *x)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_job, x, NULL);

    if (r)
        header(r, "X-Accel-Buffering", "no"); /* nginx would collect it */
    add_ignored(x, r);
    add_tools(x, r);
    return answer(x, 200, nk__job_type(x->job), r);
}

static enum MHD_Result answer_whole(nk_exchange *x)
{
    struct nk_buf body = NK_BUF_INIT(x->g->opts.limits.reply_bytes_max * 2);
    struct MHD_Response *r;
    char *where;

    for (;;) {
        ssize_t n;

        if (nk_buf_reserve(&body, BLOCK_BYTES, &where, &x->err)) {
            nk_buf_release(&body);
            return fail(x, NK_E_INTERNAL, "reply_too_large",
                        "the reply is larger than this gateway allows");
        }
        n = nk__job_read(x->job, where, BLOCK_BYTES);
        if (n <= 0)
            break;
        nk_buf_commit(&body, (size_t)n);
    }
    r = response_from(&body);
    add_ignored(x, r);
    add_tools(x, r);
    return answer(x, 200, nk__job_type(x->job), r);
}

static bool go_job(nk_exchange *x, enum MHD_Result *result)
{
    switch (nk__job_poll(x->job)) {
    case NK_JOB_ERROR:
        nk__job_error(x->job, &x->err, x->param);
        if (!strcmp(x->err.reason, "client_gone"))
            *result = MHD_NO;
        else
            *result = answer_error(x);
        return true;
    case NK_JOB_WHOLE:
        *result = answer_whole(x);
        return true;
    case NK_JOB_STREAM:
        *result = answer_stream(x);
        return true;
    case NK_JOB_WAIT:
        break;
    }
    /* The client has closed its side: whether it is there at all shows when something is sent
     * (watch.h). The reply begins now, so its status is 200 whatever comes. Or the stream was
     * silent for long. */
    if (!nk__job_take_keepalive(x->job))
        return false;
    *result = answer_stream(x);
    return true;
}

/* ---- looking at the workers ---- */

static void on_looked(struct nk_waiter *w)
{
    nk_exchange *x = (nk_exchange *)((char *)w - offsetof(nk_exchange, waiter));

    atomic_store(&x->looked, true);
    wake(x);
    exchange_unref(x);
}

/* True: what is known is fresh enough. */
static bool look(nk_exchange *x, uint32_t age_ms, bool probe)
{
    if (x->asked)
        return atomic_load(&x->looked);
    x->asked = true;
    x->waiter.ready = on_looked;
    exchange_ref(x);
    if (nk__monitor_want(x->g->monitor, &x->waiter, age_ms, probe, probe ? READY_MS_MAX : 0)) {
        exchange_unref(x);
        return true;
    }
    return atomic_load(&x->looked);
}

static enum MHD_Result answer_short(nk_exchange *x)
{
    struct nk_buf body = NK_BUF_INIT(SHORT_REPLY_BYTES_MAX);
    struct nk_route_answer a = { .trusted = x->trusted,
                                 .key = x->key,
                                 .status = 200,
                                 .type = "application/json",
                                 .body = &body };
    struct nk_snapshot *s = nk__monitor_peek(x->g->monitor);

    x->route->answer(x->g, x->rest, &x->body, s, &a);
    nk__snapshot_unref(s);
    if (a.err.code) {
        nk_buf_release(&body);
        x->err = a.err;
        snprintf(x->param, sizeof x->param, "%s", a.param);
        return answer_error(x);
    }
    if (!strcmp(a.type, "application/json"))
        nk_buf_adds(&body, "\n", NULL);
    return answer(x, a.status, a.type, response_from(&body));
}

/* ---- the page ---- */

/* Does an Accept-Encoding take gzip? "gzip;q=0" says no. */
static bool takes_gzip(const char *value)
{
    for (const char *at = value; at && (at = strstr(at, "gzip")); at += 4) {
        const char *end = at + 4 + strspn(at + 4, " ");
        bool begins = at == value || at[-1] == ' ' || at[-1] == ',';

        if (begins && (!*end || *end == ','))
            return true;
        if (begins && *end == ';') {
            end += 1 + strspn(end + 1, " ");
            return strncmp(end, "q=", 2) || strtod(end + 2, NULL) > 0;
        }
    }
    return false;
}

static enum MHD_Result answer_asset(nk_exchange *x)
{
    const struct nk_asset *a = x->asset;
    const char *known =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_IF_NONE_MATCH);
    const char *codings = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND,
                                                      MHD_HTTP_HEADER_ACCEPT_ENCODING);
    bool packed = a->packed && takes_gzip(codings);
    const char *etag = packed ? a->packed_etag : a->etag;
    const unsigned char *data = packed ? a->packed : a->data;
    size_t size = packed ? a->packed_size : a->size;
    bool same = known && strstr(known, etag);
    struct MHD_Response *r = MHD_create_response_from_buffer(
        same ? 0 : size, (void *)(uintptr_t)data, MHD_RESPMEM_PERSISTENT);

    if (r) {
        header(r, MHD_HTTP_HEADER_ETAG, etag);
        if (packed && !same)
            header(r, MHD_HTTP_HEADER_CONTENT_ENCODING, "gzip");
        header(r, MHD_HTTP_HEADER_VARY, MHD_HTTP_HEADER_ACCEPT_ENCODING);
        header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
        header(r, "Content-Security-Policy", content_security);
        header(r, "Referrer-Policy", "no-referrer");
    }
    return answer(x, same ? 304 : 200, same ? NULL : a->type, r);
}

/* ---- /cluster/events ---- */

static ssize_t read_events(void *cls, uint64_t pos, char *out, size_t max)
{
    nk_exchange *x = cls;
    nk_gateway *g = x->g;

    (void)pos;
    for (;;) {
        forget_wake(x);
        if (atomic_load(&g->stopping))
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (!x->sending) {
            pthread_mutex_lock(&g->mutex);
            x->sending = x->latest;
            x->latest = NULL;
            pthread_mutex_unlock(&g->mutex);
            x->n_sent = 0;
        }
        if (x->sending) {
            size_t n = x->sending->size - x->n_sent;

            n = n < max ? n : max;
            memcpy(out, x->sending->data + x->n_sent, n);
            x->n_sent += n;
            if (x->n_sent == x->sending->size) {
                blob_unref(x->sending);
                x->sending = NULL;
            }
            return (ssize_t)n;
        }
        if (suspend(x))
            return 0;
    }
}

static struct blob *make_blob(nk_gateway *g, const struct nk_snapshot *s, bool trusted)
{
    struct nk_buf b = NK_BUF_INIT(SHORT_REPLY_BYTES_MAX);
    struct blob *blob = calloc(1, sizeof *blob);

    if (!blob || nk_buf_adds(&b, "event: cluster\ndata: ", NULL) ||
        nk__cluster_json(g, s, trusted, &b, NULL) || nk_buf_adds(&b, "\n\n", NULL)) {
        nk_buf_release(&b);
        free(blob);
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    blob->data = nk_buf_take(&b, &blob->size);
    if (!blob->data) {
        free(blob);
        return NULL;
    }
    return blob;
}

/* Under the gateway's mutex. A listener that did not read the one before gets only the newest. */
static void give(nk_exchange *x, struct blob *b)
{
    blob_unref(x->latest);
    x->latest = b;
    if (b)
        atomic_fetch_add(&b->refs, 1);
}

void nk__http_wake_listeners(nk_gateway *g)
{
    nk_exchange *x;

    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        wake(x);
    }
    pthread_mutex_unlock(&g->mutex);
}

void nk__http_publish(nk_gateway *g, const struct nk_snapshot *s)
{
    struct blob *blobs[2]; /* without and with the join line */
    bool wanted[2] = { false, false };
    nk_exchange *x;

    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        wanted[x->trusted] = true;
    }
    pthread_mutex_unlock(&g->mutex);
    for (int i = 0; i < 2; i++)
        blobs[i] = wanted[i] ? make_blob(g, s, i) : NULL;
    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        if (blobs[x->trusted])
            give(x, blobs[x->trusted]);
    }
    pthread_mutex_unlock(&g->mutex);
    blob_unref(blobs[0]);
    blob_unref(blobs[1]);
    if (wanted[0] || wanted[1])
        nk__http_wake_listeners(g);
}

static enum MHD_Result answer_events(nk_exchange *x)
{
    nk_gateway *g = x->g;
    struct nk_snapshot *s = nk__monitor_peek(g->monitor);
    struct blob *b = make_blob(g, s, x->trusted); /* the first one at once, with what is known */
    struct MHD_Response *r;

    nk__snapshot_unref(s);
    pthread_mutex_lock(&g->mutex);
    x->listens = true;
    LIST_INSERT_HEAD(&g->listeners, x, link);
    g->n_listeners++;
    give(x, b);
    pthread_mutex_unlock(&g->mutex);
    blob_unref(b);
    nk__monitor_listen(g->monitor, 1);
    nk__watch_request(x->watched, x);
    r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_events, x, NULL);
    if (r)
        header(r, "X-Accel-Buffering", "no");
    return answer(x, 200, "text/event-stream", r);
}

static void stop_listening(nk_exchange *x)
{
    nk_gateway *g = x->g;

    pthread_mutex_lock(&g->mutex);
    LIST_REMOVE(x, link);
    g->n_listeners--;
    pthread_mutex_unlock(&g->mutex);
    nk__monitor_listen(g->monitor, -1);
}

/* ---- the request ---- */

static const char *header_of(nk_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* A preflight of CORS, or a plain question. */
static enum MHD_Result answer_options(nk_exchange *x)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    const char *wanted = header_of(x, "Access-Control-Request-Headers");

    if (r) {
        header(r, MHD_HTTP_HEADER_ALLOW, x->allowed);
        if (x->origin[0]) {
            header(r, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
            header(r, "Access-Control-Allow-Headers",
                   wanted ? wanted : "Authorization, Content-Type");
            header(r, "Access-Control-Max-Age", "600");
        }
    }
    return answer(x, 200, NULL, r);
}

static enum MHD_Result add_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                  size_t n_name, const char *value, size_t n_value)
{
    (void)kind;
    nk__head_add(cls, name, n_name, value ? value : "", value ? n_value : 0);
    return MHD_YES;
}

/* Can the request be read in one way only? */
static int judge_head(nk_exchange *x, const char *method, const char *target, const char *version,
                      struct nk_error *err)
{
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    struct nk_head h;
    int rc;

    nk__head_begin(&h, method, target, version, x->g->lenient_lines && size);
    MHD_get_connection_values_n(x->connection, MHD_HEADER_KIND, add_header, &h);
    rc = nk__head_end(&h, size ? size->header_size : 0, err);
    /* libmicrohttpd ends a chunk's first line at whatever resembles a line's end. So what follows
     * a body in chunks is not read at all. */
    x->closes = rc || h.chunked;
    return rc;
}

/* Beyond its address's places, or all, a connection may only ask how the gateway is. */
static int judge_place(nk_exchange *x, struct nk_error *err)
{
    enum nk_door_place place = nk__door_place(x->guest);

    if (place == NK_DOOR_PLACE)
        return 0;
    x->closes = true;
    if (x->route && x->route->open && x->route->kind != NK_ROUTE_ASSET)
        return 0;
    return place == NK_DOOR_ADDRESS
               ? nk_fail(err, NK_E_EXHAUSTED, "too_many_connections",
                         "this address has all %d connections that one may have "
                         "(--connections-per-address); end one first",
                         nk__connections_per_address(&x->g->opts.limits))
               : nk_fail(err, NK_E_UNAVAILABLE, "too_many_connections",
                         "all %d connections are taken (--connections); try again later",
                         x->g->opts.limits.connections_max);
}

static bool is_json_type(const char *type)
{
    size_t n = type ? strcspn(type, "; \t") : 0;

    return n == 16 && !strncasecmp(type, "application/json", 16);
}

/* Judges what the headers say. What is wrong is kept in x. */
static void judge(nk_exchange *x, const char *method, bool fits)
{
    nk_gateway *g = x->g;
    const char *host = header_of(x, MHD_HTTP_HEADER_HOST),
               *origin = header_of(x, MHD_HTTP_HEADER_ORIGIN);
    const char *type = header_of(x, MHD_HTTP_HEADER_CONTENT_TYPE),
               *length = header_of(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *authorization = header_of(x, MHD_HTTP_HEADER_AUTHORIZATION),
               *api_key = header_of(x, "X-Api-Key");
    bool post = !strcmp(method, "POST"), guarded = g->keys || g->tls_certificate;

    x->failed = true; /* until the end */
    /* A page that got the gateway's address under another name has no key, and no certificate for
     * that name. */
    if ((!guarded || g->opts.n_hosts) && host &&
        !nk__host_allowed(host, (const char *const *)g->hosts, g->opts.n_hosts)) {
        nk_fail(&x->err, NK_E_DENIED, "foreign_host",
                "the Host \"%.100s\" is not this machine; use its address or localhost "
                "(--allowed-host allows a name)",
                host);
        return;
    }
    if (origin &&
        !nk__origin_allowed(origin, host, (const char *const *)g->origins, g->opts.n_origins)) {
        nk_fail(&x->err, NK_E_DENIED, "foreign_origin",
                "pages from %.100s may not call this gateway (--cors-origin allows one)", origin);
        return;
    }
    if (origin)
        snprintf(x->origin, sizeof x->origin, "%s", origin);
    if (!x->route) {
        nk_fail(&x->err, NK_E_NOT_FOUND, "unknown_route",
                "there is no such route; docs/api.md lists them");
        return;
    }
    if (!strcmp(method, "OPTIONS")) {
        x->failed = false;
        return;
    }
    if (!fits) {
        nk_fail(&x->err, NK_E_INVALID, "method_not_allowed", "%s is not possible here; %s are",
                method, x->allowed);
        return;
    }
    if (g->keys && !x->route->open && !nk__keys_allow(g->keys, authorization, api_key, x->key)) {
        nk_fail(&x->err, NK_E_UNAUTHENTICATED, "invalid_api_key",
                "%s; send Authorization: Bearer KEY, or X-Api-Key: KEY",
                authorization || api_key ? "this key is not known" : "a key is needed");
        return;
    }
    if (x->route->kind == NK_ROUTE_REFUSED) {
        /* No 501: SDKs send what gets a 5xx again. */
        nk_fail(&x->err, NK_E_INVALID, "not_implemented", "%s is not served here: %s",
                x->route->path, x->route->what);
        return;
    }
    /* curl -d, as in the documentation of llama-server and Ollama, says urlencoded. A page of a
     * browser could send that without having asked (CORS), but never without its Origin. */
    if (post && !is_json_type(type) &&
        ((origin && x->route->kind == NK_ROUTE_GENERATE) ||
         (type && strncasecmp(type, "application/x-www-form-urlencoded", 33)))) {
        nk_fail(&x->err, NK_E_INVALID, "unsupported_media_type",
                "the body's type is \"%.60s\"; send Content-Type: application/json",
                type ? type : "");
        return;
    }
    if (post && length && strtoull(length, NULL, 10) > g->opts.limits.body_bytes_max) {
        nk_fail(&x->err, NK_E_EXHAUSTED, "body_too_large",
                "a body of %.20s bytes; at most %zu are possible", length,
                g->opts.limits.body_bytes_max);
        return;
    }
    if (atomic_load(&g->stopping)) {
        nk_fail(&x->err, NK_E_UNAVAILABLE, "shutting_down", "the gateway is shutting down");
        return;
    }
    x->failed = false;
}

/* From this machine itself: not through a proxy that passes others' requests on, and not from a
 * page of another's that may call. */
static bool is_local(nk_exchange *x)
{
    static const char *const forwarded[] = { "Forwarded", "X-Forwarded-For", "X-Real-IP", "Via" };
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);

    if (!info || !nk__address_is_loopback(info->client_addr) || header_of(x, "Origin"))
        return false;
    for (size_t i = 0; i < sizeof forwarded / sizeof forwarded[0]; i++)
        if (header_of(x, forwarded[i]))
            return false;
    return true;
}

static nk_exchange *begin(nk_gateway *g, struct MHD_Connection *connection, const char *path,
                          const char *method, const char *version)
{
    const union MHD_ConnectionInfo *socket_context =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    nk_exchange *x = calloc(1, sizeof *x);
    bool fits = true;

    const struct connection *c = socket_context ? socket_context->socket_context : NULL;

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
    if (judge_head(x, method, path, version, &x->err) || judge_place(x, &x->err))
        x->failed = x->at_once = true;
    else
        judge(x, method, fits);
    x->trusted = !x->failed && (x->key[0] || (!g->keys && is_local(x)));
    return x;
}

/* The body is there; and again after every resume. */
static enum MHD_Result go(nk_exchange *x)
{
    nk_gateway *g = x->g;

    for (;;) {
        enum MHD_Result result;

        forget_wake(x);
        if (nk__presence_closed(&g->presence)) {
            if (!x->job)
                return fail_shutting_down(x);
            nk__job_shut_down(x->job); /* it may have begun after the others were ended */
        }
        switch (x->route->kind) {
        case NK_ROUTE_ASSET:
            return answer_asset(x);
        case NK_ROUTE_SHORT:
            return answer_short(x);
        case NK_ROUTE_LOOK:
            if (look(x, x->route->age_ms, x->route->probe))
                return answer_short(x);
            break;
        case NK_ROUTE_EVENTS:
            return answer_events(x);
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
                    return fail_shutting_down(x);
                j = nk__job_new(g, x->route->api, &x->body, &x->held, x->key, x->begin_ns, wake,
                                exchange_unref, x);
                if (!j)
                    return fail(x, NK_E_EXHAUSTED, "no_memory", "no memory for the request");
                exchange_ref(x); /* the job's; it lets go of it last */
                pthread_mutex_lock(&x->mutex);
                x->job = j;
                pthread_mutex_unlock(&x->mutex);
                nk__watch_request(x->watched, x);
                nk__job_start(j);
            }
            if (go_job(x, &result))
                return result;
            break;
        case NK_ROUTE_REFUSED: /* judge() has refused it */
            return MHD_NO;
        }
        if (suspend(x))
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

static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *path,
                                 const char *method, const char *version, const char *data,
                                 size_t *size, void **con_cls)
{
    nk_exchange *x = *con_cls;

    if (!x) {
        const char *length;

        *con_cls = x = begin(cls, connection, path, method, version);
        if (!x)
            return MHD_NO;
        length = header_of(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
        /* Who waits for 100 Continue, or would send very much, is told before the body. */
        if (x->failed && (x->at_once || header_of(x, MHD_HTTP_HEADER_EXPECT) ||
                          (length && strtoull(length, NULL, 10) > DRAIN_BYTES_MAX)))
            return answer_error(x);
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
        return answer_error(x);
    if (!strcmp(method, "OPTIONS"))
        return answer_options(x);
    /* Suspended now, the connection would still count as one to be read from when it is resumed,
     * and the end of a client that has said all (a half-closed connection) would be taken for its
     * going. Asked once more, it no longer does. */
    if (!x->is_all_read) {
        x->is_all_read = true;
        return MHD_YES;
    }
    return go(x);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
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
        stop_listening(x);
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
    exchange_unref(x);
}

static void close_connection(struct connection *c)
{
    if (c && c->guest)
        nk__door_leave(c->guest);
    if (c && c->watched)
        nk__watch_drop(c->watched);
    free(c);
}

static struct connection *new_connection(nk_gateway *g, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *fd = MHD_get_connection_info(connection,
                                                                 MHD_CONNECTION_INFO_CONNECTION_FD),
                                   *address = MHD_get_connection_info(
                                       connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    struct connection *c = calloc(1, sizeof *c);

    if (c && fd && address) {
        c->watched = nk__watch_add(g->watch, fd->connect_fd, g->opts.limits.header_ms);
        if (c->watched)
            c->guest = nk__door_enter(g->door, address->client_addr, c->watched);
    }
    if (c && c->guest)
        return c;
    close_connection(c);
    return NULL;
}

static void on_evict(void *watched)
{
    nk__watch_shutdown(watched);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode toe)
{
    if (toe == MHD_CONNECTION_NOTIFY_STARTED)
        *socket_context = new_connection(cls, connection);
    else {
        close_connection(*socket_context);
        *socket_context = NULL;
    }
}

/* As many files as connections may be open, if the system lets us. Returns for how many connections
 * there is room. */
static int make_room_for_files(int connections)
{
    int more = SPARE_PLACES + CLOSING_MAX + OTHER_FILES;
    rlim_t want = (rlim_t)connections + (rlim_t)more;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= want)
        return connections;
    limit.rlim_cur = limit.rlim_max < want ? limit.rlim_max : want;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= want)
        return connections;
    connections = limit.rlim_cur > (rlim_t)more + 1 ? (int)limit.rlim_cur - more : 1;
    nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
           "connections=%d open_files=%llu msg=\"the system allows no more open files (ulimit -n), "
           "so there are fewer connections than were asked for\"",
           connections, (unsigned long long)limit.rlim_cur);
    return connections;
}

int nk__connections_per_address(const struct nk_gateway_limits *l)
{
    int half = (l->connections_max + 1) / 2;

    return l->connections_per_address ? l->connections_per_address : half;
}

static void on_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[300], quoted[400];

    (void)cls;
    if (!nk_log_enabled(NK_LOG_GATEWAY, NK_LOG_DEBUG))
        return;
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "from=libmicrohttpd msg=%s",
           nk_log_quote(quoted, sizeof quoted, text));
}

/* Before 0.9.77 libmicrohttpd takes lines as head.h says. It would then say nothing to a request
 * without Host, or twice, when it is asked to be strict: what it is strict about is in head.c. */
static bool is_lenient(const char *version)
{
    int major, minor, patch;

    return sscanf(version, "%d.%d.%d", &major, &minor, &patch) == 3 && !major && minor == 9 &&
           patch < 77;
}

int nk__http_start(nk_gateway *g, struct nk_error *err)
{
    static const struct nk_watch_handlers handlers = {
        .gone = on_gone, .half_closed = on_half_closed, .ref = exchange_ref, .unref = exchange_unref
    };
    const struct nk_gateway_limits *l = &g->opts.limits;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                     (g->listen.address.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0) |
                     (g->tls_certificate ? MHD_USE_TLS : 0);
    struct MHD_OptionItem tls[] = {
        { MHD_OPTION_HTTPS_MEM_CERT, 0, g->tls_certificate },
        { MHD_OPTION_HTTPS_MEM_KEY, 0, g->tls_key },
        { MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t) "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1" },
        { MHD_OPTION_END, 0, NULL },
    };
    const union MHD_DaemonInfo *info;
    sigset_t old;
    struct nk_door_opts door = { .spare_places = SPARE_PLACES, .evict = on_evict };
    int rc;

    g->opts.limits.connections_max = door.places = make_room_for_files(l->connections_max);
    door.places_per_address = nk__connections_per_address(l);
    rc = nk__door_new(&g->door, &door, err);
    if (!rc)
        rc = nk__watch_start(&g->watch, g->clock, &handlers, g->tls_certificate != NULL, err);
    if (rc) {
        nk__door_free(g->door);
        g->door = NULL;
        return rc;
    }
    g->lenient_lines = is_lenient(MHD_get_version());
    nk_signals_hold(&old);
    g->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_access, g, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_SOCK_ADDR, &g->listen.address, MHD_OPTION_NOTIFY_COMPLETED, on_completed, g,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, g, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        l->header_bytes_max, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(l->connections_max + SPARE_PLACES + CLOSING_MAX), MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)(l->idle_ms + 999) / 1000, MHD_OPTION_STRICT_FOR_CLIENT, g->lenient_lines ? 0 : 1,
        MHD_OPTION_ARRAY, g->tls_certificate ? tls : tls + 3, MHD_OPTION_END);
    nk_signals_release(&old);
    if (!g->daemon) {
        nk__watch_stop(g->watch);
        nk__door_free(g->door);
        g->watch = NULL;
        g->door = NULL;
        rc = nk__listen_try(&g->listen, g->opts.listen, err);
        return rc ? rc
                  : nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen", "cannot listen on %s%s",
                            g->opts.listen,
                            g->tls_certificate
                                ? ": are certificate and key PEM, and do they belong together?"
                                : "");
    }
    info = MHD_get_daemon_info(g->daemon, MHD_DAEMON_INFO_BIND_PORT);
    g->port = info ? info->port : 0;
    return 0;
}

void nk__http_quiesce(nk_gateway *g)
{
    /* The daemon's thread may still use the socket (microhttpd.h), so it is closed after that has
     * ended. Who connects meanwhile is refused at once. */
    g->quiesced_fd = g->daemon ? MHD_quiesce_daemon(g->daemon) : MHD_INVALID_SOCKET;
    if (g->quiesced_fd >= 0)
        shutdown(g->quiesced_fd, SHUT_RDWR);
}

void nk__http_stop(nk_gateway *g)
{
    if (g->daemon)
        MHD_stop_daemon(g->daemon);
    g->daemon = NULL;
    if (g->quiesced_fd >= 0)
        close(g->quiesced_fd);
    g->quiesced_fd = -1;
    nk__watch_stop(g->watch);
    nk__door_free(g->door);
    g->watch = NULL;
    g->door = NULL;
}
