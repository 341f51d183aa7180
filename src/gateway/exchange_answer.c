#include "gateway/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/assets.h"
#include "gateway/reply.h"

enum { SHORT_REPLY_BYTES_MAX = 4 << 20 };

/* Nothing inline, nothing from elsewhere, and no text ever parsed as markup or script (trusted
 * types, where the browser has them): whatever a model writes stays text. */
static const char content_security[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'";

static void header(struct MHD_Response *r, const char *name, const char *value)
{
    MHD_add_response_header(r, name, value);
}

enum MHD_Result nk__exchange_answer(nk_exchange *x, int status, const char *type,
                                    struct MHD_Response *r)
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

enum MHD_Result nk__exchange_error(nk_exchange *x)
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
    return nk__exchange_answer(x, status == 499 ? 503 : status, "application/json", r);
}

enum MHD_Result nk__exchange_fail(nk_exchange *x, int code, const char *reason, const char *msg)
{
    x->failed = true;
    x->param[0] = '\0';
    nk_fail(&x->err, code, reason, "%s", msg);
    return nk__exchange_error(x);
}

enum MHD_Result nk__exchange_fail_stopping(nk_exchange *x)
{
    return nk__exchange_fail(x, NK_E_UNAVAILABLE, "shutting_down", "the gateway is shutting down");
}

/* ---- jobs ---- */

static ssize_t read_job(void *cls, uint64_t pos, char *out, size_t max)
{
    nk_exchange *x = cls;

    (void)pos;
    for (;;) {
        ssize_t n;

        nk__exchange_forget_wake(x);
        if (nk__presence_closed(&x->g->presence))
            nk__job_shut_down(x->job); /* it may have begun after the others were ended */
        nk__job_take_keepalive(x->job);
        n = nk__job_read(x->job, out, max);
        if (n > 0)
            return n;
        if (n < 0)
            return n == -1 ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
        if (nk__exchange_suspend(x))
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
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, NK_BLOCK_BYTES, read_job, x, NULL);

    if (r)
        header(r, "X-Accel-Buffering", "no"); /* nginx would collect it */
    add_ignored(x, r);
    add_tools(x, r);
    return nk__exchange_answer(x, 200, nk__job_type(x->job), r);
}

static enum MHD_Result answer_whole(nk_exchange *x)
{
    struct nk_buf body = NK_BUF_INIT(x->g->opts.limits.reply_bytes_max * 2);
    struct MHD_Response *r;
    char *where;

    for (;;) {
        ssize_t n;

        if (nk_buf_reserve(&body, NK_BLOCK_BYTES, &where, &x->err)) {
            nk_buf_release(&body);
            return nk__exchange_fail(x, NK_E_INTERNAL, "reply_too_large",
                                     "the reply is larger than this gateway allows");
        }
        n = nk__job_read(x->job, where, NK_BLOCK_BYTES);
        if (n <= 0)
            break;
        nk_buf_commit(&body, (size_t)n);
    }
    r = response_from(&body);
    add_ignored(x, r);
    add_tools(x, r);
    return nk__exchange_answer(x, 200, nk__job_type(x->job), r);
}

bool nk__exchange_answer_job(nk_exchange *x, enum MHD_Result *result)
{
    switch (nk__job_poll(x->job)) {
    case NK_JOB_ERROR:
        nk__job_error(x->job, &x->err, x->param);
        if (!strcmp(x->err.reason, "client_gone"))
            *result = MHD_NO;
        else
            *result = nk__exchange_error(x);
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

/* ---- what is short ---- */

enum MHD_Result nk__exchange_answer_short(nk_exchange *x)
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
        return nk__exchange_error(x);
    }
    if (!strcmp(a.type, "application/json"))
        nk_buf_adds(&body, "\n", NULL);
    return nk__exchange_answer(x, a.status, a.type, response_from(&body));
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

enum MHD_Result nk__exchange_answer_asset(nk_exchange *x)
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
    return nk__exchange_answer(x, same ? 304 : 200, same ? NULL : a->type, r);
}

enum MHD_Result nk__exchange_answer_options(nk_exchange *x)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    const char *wanted = nk__exchange_header(x, "Access-Control-Request-Headers");

    if (r) {
        header(r, MHD_HTTP_HEADER_ALLOW, x->allowed);
        if (x->origin[0]) {
            header(r, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
            header(r, "Access-Control-Allow-Headers",
                   wanted ? wanted : "Authorization, Content-Type");
            header(r, "Access-Control-Max-Age", "600");
        }
    }
    return nk__exchange_answer(x, 200, NULL, r);
}
