#include "gateway/exchange.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <stdio.h>

#include "gateway/head.h"
#include "gateway/origin.h"

const char *nk__exchange_header(nk_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static enum MHD_Result add_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                  size_t n_name, const char *value, size_t n_value)
{
    (void)kind;
    nk__head_add(cls, name, n_name, value ? value : "", value ? n_value : 0);
    return MHD_YES;
}

void *nk__exchange_target(void *cls, const char *target, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct nk_connection *c = info ? info->socket_context : NULL;

    (void)cls;
    if (c) {
        c->target_end = target + strlen(target);
        c->target_has_nul = strstr(target, "%00") != NULL;
    }
    return NULL;
}

/* A path ends at its first NUL here, and perhaps nowhere in a proxy. */
static int judge_target(nk_exchange *x, const char *version, struct nk_error *err)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    const struct nk_connection *c = info ? info->socket_context : NULL;

    /* One space, which is a NUL now, between the target and the version. */
    if (c && (c->target_has_nul || (x->g->lenient_lines && c->target_end + 1 != version)))
        return nk_fail(err, NK_E_INVALID, "bad_header",
                       "there is a NUL in the request's path, or more than one space behind it");
    return 0;
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
    if (!rc)
        rc = judge_target(x, version, err);
    /* libmicrohttpd ends a chunk's first line at whatever resembles a line's end. So what follows
     * a body in chunks is not read at all. */
    x->closes = rc || h.chunked;
    return rc;
}

int nk__connections_per_address(const struct nk_gateway_limits *l)
{
    int half = (l->connections_max + 1) / 2;

    return l->connections_per_address ? l->connections_per_address : half;
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

/* What the headers say. What is wrong is kept in x. */
static void judge(nk_exchange *x, const char *method, bool fits)
{
    nk_gateway *g = x->g;
    const char *host = nk__exchange_header(x, MHD_HTTP_HEADER_HOST),
               *origin = nk__exchange_header(x, MHD_HTTP_HEADER_ORIGIN);
    const char *type = nk__exchange_header(x, MHD_HTTP_HEADER_CONTENT_TYPE),
               *length = nk__exchange_header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *authorization = nk__exchange_header(x, MHD_HTTP_HEADER_AUTHORIZATION),
               *api_key = nk__exchange_header(x, "X-Api-Key");
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

    if (!info || !nk__address_is_loopback(info->client_addr) || nk__exchange_header(x, "Origin"))
        return false;
    for (size_t i = 0; i < sizeof forwarded / sizeof forwarded[0]; i++)
        if (nk__exchange_header(x, forwarded[i]))
            return false;
    return true;
}

void nk__exchange_judge(nk_exchange *x, const char *method, const char *target, const char *version,
                        bool fits)
{
    if (judge_head(x, method, target, version, &x->err) || judge_place(x, &x->err))
        x->failed = x->at_once = true;
    else
        judge(x, method, fits);
    x->trusted = !x->failed && (x->key[0] || (!x->g->keys && is_local(x)));
}
