#include "gateway/http.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"
#include "gateway/exchange.h"

/* Beside the places for connections: spare ones for probes, those that close (they are counted
 * until libmicrohttpd has seen their end), and files that are not connections. */
enum { SPARE_PLACES = 16, CLOSING_MAX = 64, OTHER_FILES = 128 };

static void close_connection(struct nk_connection *c)
{
    if (c && c->guest)
        nk__door_leave(c->guest);
    if (c && c->watched)
        nk__watch_drop(c->watched);
    free(c);
}

static struct nk_connection *new_connection(nk_gateway *g, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *fd = MHD_get_connection_info(connection,
                                                                 MHD_CONNECTION_INFO_CONNECTION_FD),
                                   *address = MHD_get_connection_info(
                                       connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    struct nk_connection *c = calloc(1, sizeof *c);

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
    static const struct nk_watch_handlers handlers = { .gone = nk__exchange_gone,
                                                       .half_closed = nk__exchange_half_closed,
                                                       .ref = nk__exchange_ref,
                                                       .unref = nk__exchange_unref };
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
        flags, 0, NULL, NULL, nk__exchange_access, g, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_SOCK_ADDR, &g->listen.address, MHD_OPTION_NOTIFY_COMPLETED,
        nk__exchange_completed, g, MHD_OPTION_NOTIFY_CONNECTION, on_connection, g,
        MHD_OPTION_URI_LOG_CALLBACK, nk__exchange_target, g, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
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
