/* layer: gateway. What a client may send, through libmicrohttpd as the gateway has it, and judged
 * as the gateway judges it: can it be read in one way, is it for this machine, is there such a
 * route, may this key use it.
 *
 * The first byte chooses the gateway (with keys, allowed hosts and origins, TLS) and where the
 * client is; the rest is what the connection says. What is accepted is read once more here,
 * strictly: the head must say the same, or a proxy in front may have read something else. */
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "fuzz/fuzz.h"
#include "gateway/exchange.h"

const struct fuzz_ceiling fuzz_ceiling = { .base = 30000, .per_byte = 200 };

enum { INPUT_MAX = 12000, TURNS_MAX = 64, HEADERS_MAX = 64 };

static const char *sent; /* what the connection says */
static size_t n_sent;
static int n_judged;

/* ---- read strictly (RFC 9112) ---- */

struct line {
    const char *name, *value;
    size_t n_name, n_value;
};

struct head {
    struct line lines[HEADERS_MAX];
    int n;
    const char *target; /* as it was sent */
    size_t n_target, size;
};

/* The end of a line that ends with CR LF, or with NUL LF, which an old libmicrohttpd leaves nothing
 * of that differs (head.h); NULL: there is none, or a bare LF, CR or NUL is before it. */
static const char *end_of(const char *at, const char *end)
{
    for (; at < end && *at != '\r'; at++) {
        if (!*at && at + 1 < end && at[1] == '\n')
            return at;
        if (*at == '\n' || !*at)
            return NULL;
    }
    return at + 1 < end && at[1] == '\n' ? at : NULL;
}

static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || (unsigned char)s[i] >= 127 ||
            strchr("\"(),/:;<=>?@[\\]{}", s[i]))
            return false;
    return n > 0;
}

static bool read_strictly(struct head *h, const char *text, size_t size)
{
    const char *at = text, *end = text + size, *to, *space;

    memset(h, 0, sizeof *h);
    /* An empty line before the request may be skipped (2.2). */
    while (end - at >= 2 && at[0] == '\r' && at[1] == '\n')
        at += 2;
    to = end_of(at, end);
    space = to ? memchr(at, ' ', (size_t)(to - at)) : NULL;
    if (!space || !is_token(at, (size_t)(space - at)))
        return false;
    h->target = space + 1;
    space = memchr(h->target, ' ', (size_t)(to - h->target));
    if (!space || memchr(space + 1, ' ', (size_t)(to - space - 1)))
        return false;
    h->n_target = (size_t)(space - h->target);
    for (at = to + 2; (to = end_of(at, end)) && to > at; at = to + 2) {
        struct line *l = &h->lines[h->n++];
        const char *colon = memchr(at, ':', (size_t)(to - at));

        if (h->n == HEADERS_MAX || !colon || !is_token(at, (size_t)(colon - at)))
            return false;
        l->name = at;
        l->n_name = (size_t)(colon - at);
        for (l->value = colon + 1; l->value < to && (*l->value == ' ' || *l->value == '\t');)
            l->value++;
        for (l->n_value = (size_t)(to - l->value);
             l->n_value && (l->value[l->n_value - 1] == ' ' || l->value[l->n_value - 1] == '\t');)
            l->n_value--;
    }
    return to != NULL;
}

/* How many headers of this name there are; *out: the last. */
static int find(const struct head *h, const char *name, const struct line **out)
{
    int n = 0;

    for (int i = 0; i < h->n; i++)
        if (h->lines[i].n_name == strlen(name) &&
            !strncasecmp(h->lines[i].name, name, strlen(name))) {
            n++;
            *out = &h->lines[i];
        }
    return n;
}

static void same(const struct head *h, nk_exchange *x, const char *name)
{
    const char *value = nk__exchange_header(x, name);
    const struct line *l;
    int n = find(h, name, &l);

    NK_ASSERT(n == 0 ? !value : n == 1 && value);
    /* libmicrohttpd leaves white space at a value's end where it was. */
    NK_ASSERT(!n || (strlen(value) >= l->n_value && !strncmp(value, l->value, l->n_value) &&
                     strspn(value + l->n_value, " \t") == strlen(value) - l->n_value));
}

static void check_accepted(nk_exchange *x, const char *version)
{
    const struct line *length = NULL, *encoding = NULL;
    struct head h;
    int n_length, n_encoding;

    NK_ASSERT(read_strictly(&h, sent, n_sent));
    NK_ASSERT(!memmem(h.target, h.n_target, "%00", 3));
    NK_ASSERT(h.n_target && (h.target[0] == '/' || (h.n_target == 1 && h.target[0] == '*')));
    same(&h, x, "Host");
    same(&h, x, "Content-Length");
    same(&h, x, "Transfer-Encoding");
    NK_ASSERT(nk__exchange_header(x, "Host") || !strcmp(version, "HTTP/1.0"));
    n_length = find(&h, "Content-Length", &length);
    n_encoding = find(&h, "Transfer-Encoding", &encoding);
    NK_ASSERT(n_length + n_encoding <= 1);
    if (n_length)
        NK_ASSERT(length->n_value && strspn(length->value, "0123456789") >= length->n_value);
    if (n_encoding)
        NK_ASSERT(encoding->n_value == 7 && !strncasecmp(encoding->value, "chunked", 7) &&
                  x->closes);
}

/* ---- the gateway's side ---- */

static void judge(nk_gateway *g, nk_guest *guest, struct MHD_Connection *connection,
                  const char *target, const char *method, const char *version)
{
    nk_exchange x = { .g = g, .connection = connection, .guest = guest };
    bool fits = true;

    x.allowed = "GET, HEAD, POST, OPTIONS";
    x.route = nk__route_find(target, method, !g->opts.no_page, &fits, &x.allowed);
    if (x.route && x.route->kind == NK_ROUTE_ASSET)
        NK_ASSERT(nk__asset_find(target));
    nk__exchange_judge(&x, method, target, version, fits);
    n_judged++;
    NK_ASSERT(!x.trusted || !x.failed);
    if (x.failed) {
        NK_ASSERT(x.err.code && x.err.reason[0] && x.err.msg[0]);
        return;
    }
    NK_ASSERT(x.route && (fits || !strcmp(method, "OPTIONS")));
    NK_ASSERT(!g->keys || x.route->open || x.key[0] || !strcmp(method, "OPTIONS"));
    NK_ASSERT(!x.trusted || x.key[0] || !g->keys);
    fuzz_work_off();
    check_accepted(&x, version);
    fuzz_work_on();
}

static nk_guest *guest_of_all;
static struct nk_connection connection_of_all;

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode toe)
{
    (void)cls, (void)connection, (void)toe;
    *socket_context = &connection_of_all;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *path,
                                 const char *method, const char *version, const char *data,
                                 size_t *size, void **con_cls)
{
    struct MHD_Response *r;
    enum MHD_Result rc;

    (void)data;
    if (!*con_cls) {
        *con_cls = cls;
        if (!n_judged) /* the first request: what follows it is another one's beginning */
            judge(cls, guest_of_all, connection, path, method, version);
        return MHD_YES;
    }
    if (*size) {
        *size = 0;
        return MHD_YES;
    }
    r = MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    MHD_add_response_header(r, "Connection", "close");
    rc = MHD_queue_response(connection, 200, r);
    MHD_destroy_response(r);
    return rc;
}

static void on_evict(void *connection)
{
    (void)connection;
}

enum { KEYS = 1, HOSTS = 2, TLS = 4, N_GATEWAYS = 8 };

static nk_gateway *gateway(int kind)
{
    static nk_gateway *all[N_GATEWAYS];
    static char host[] = "box.example", origin[] = "https://app.example", name[] = "k";
    int major = 0, minor = 0, patch = 0;
    nk_gateway *g = all[kind];

    if (g)
        return g;
    g = all[kind] = calloc(1, sizeof *g);
    NK_ASSERT(g);
    g->opts.limits.body_bytes_max = 8 << 20;
    g->opts.limits.connections_max = 8;
    g->clock = nk_clock_system();
    if (kind & KEYS) {
        struct nk_error err;

        NK_ASSERT(!nk__keys_new(&g->keys, "key-number-one\nkey-number-two\n", &err));
    }
    if (kind & HOSTS) {
        g->hosts[g->opts.n_hosts++] = host;
        g->origins[g->opts.n_origins++] = origin;
    }
    if (kind & TLS)
        g->tls_certificate = name;
    /* As nk__http_start does. */
    sscanf(MHD_get_version(), "%d.%d.%d", &major, &minor, &patch);
    g->lenient_lines = !major && minor == 9 && patch < 77;
    return g;
}

void fuzz_one(const uint8_t *data, size_t size)
{
    static const struct sockaddr_in local = { .sin_family = AF_INET };
    static struct MHD_Daemon *daemons[N_GATEWAYS];
    struct sockaddr_in address = local;
    nk_gateway *g;
    struct MHD_Daemon **d;
    char reply[4096];
    int fds[2];

    if (size < 1 || size > INPUT_MAX)
        return;
    g = gateway(data[0] % N_GATEWAYS);
    d = &daemons[data[0] % N_GATEWAYS];
    address.sin_addr.s_addr = htonl(data[0] & 0x80 ? 0x7f000001 : 0xc0000201);
    if (!guest_of_all) {
        struct nk_door_opts o = { 8, 8, 1, on_evict };
        static nk_door *door;
        struct nk_error err;

        NK_ASSERT(!nk__door_new(&door, &o, &err));
        guest_of_all = nk__door_enter(door, (const struct sockaddr *)&address, d);
    }
    if (!*d)
        *d = MHD_start_daemon(
            MHD_USE_NO_LISTEN_SOCKET, 0, NULL, NULL, on_access, g,
            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768, MHD_OPTION_NOTIFY_CONNECTION,
            on_connection, NULL, MHD_OPTION_URI_LOG_CALLBACK, nk__exchange_target, NULL,
            MHD_OPTION_STRICT_FOR_CLIENT, g->lenient_lines ? 0 : 1, MHD_OPTION_END);
    NK_ASSERT(*d);
    fuzz_prepared();
    sent = (const char *)data + 1;
    n_sent = size - 1;
    n_judged = 0;
    NK_ASSERT(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
    NK_ASSERT(send(fds[1], sent, n_sent, MSG_NOSIGNAL) == (ssize_t)n_sent);
    shutdown(fds[1], SHUT_WR);
    NK_ASSERT(MHD_add_connection(*d, fds[0], (struct sockaddr *)&address, sizeof address) ==
              MHD_YES);
    for (int i = 0; i < TURNS_MAX; i++) {
        ssize_t n;

        MHD_run(*d);
        n = recv(fds[1], reply, sizeof reply, 0);
        if (n == 0 || (n > 0 && i == TURNS_MAX - 1))
            break;
    }
    close(fds[1]);
    for (int i = 0; i < 4; i++) /* it notices */
        MHD_run(*d);
}
