#include "gateway/origin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

bool nk__address_is_loopback(const struct sockaddr *a)
{
    const struct in6_addr *six;

    if (a->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    if (a->sa_family != AF_INET6)
        return false;
    six = &((const struct sockaddr_in6 *)a)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

int nk__listen_parse(struct nk_listen *out, const char *text, struct nk_error *err)
{
    const char *colon = strrchr(text, ':'), *host = text;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV },
                    *found = NULL;
    size_t n = colon ? (size_t)(colon - text) : 0;
    char *end;
    long port = colon ? strtol(colon + 1, &end, 10) : -1;
    int rc;

    *out = (struct nk_listen){ .host = "" };
    if (!colon || !colon[1] || *end || port < 0 || port > 65535)
        return nk_fail(err, NK_E_INVALID, "bad_listen",
                       "\"%s\" is no HOST:PORT such as 127.0.0.1:8080", text);
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        host++;
        n -= 2;
    } else if (memchr(host, ':', n))
        return nk_fail(err, NK_E_INVALID, "bad_listen",
                       "\"%s\": an IPv6 address stands in brackets: [::1]:%ld", text, port);
    if (n >= sizeof out->host)
        return nk_fail(err, NK_E_INVALID, "bad_listen", "\"%.60s...\": the host's name is too long",
                       text);
    memcpy(out->host, host, n);
    rc = getaddrinfo(n ? out->host : NULL, colon + 1, &hints, &found);
    if (rc)
        return nk_fail(err, NK_E_INVALID, "bad_listen", "\"%s\": %s", text, gai_strerror(rc));
    memcpy(&out->address, found->ai_addr, found->ai_addrlen);
    out->size = found->ai_addrlen;
    out->loopback = nk__address_is_loopback(found->ai_addr);
    freeaddrinfo(found);
    return 0;
}

int nk__listen_try(const struct nk_listen *l, const char *text, struct nk_error *err)
{
    int fd = socket(l->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, sys = 0;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        (l->address.ss_family == AF_INET6 && /* as libmicrohttpd does */
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) < 0) ||
        bind(fd, (const struct sockaddr *)&l->address, l->size) < 0 || listen(fd, 1) < 0)
        sys = errno;
    if (fd >= 0)
        close(fd);
    if (sys)
        nk_fail(err, NK_E_UNAVAILABLE, "cannot_listen", "cannot listen on %s: %s", text,
                strerror(sys));
    return sys ? NK_E_UNAVAILABLE : 0;
}

/* The host of "HOST:PORT" in out; false: too long. */
static bool host_of(char out[256], const char *text)
{
    size_t n = text[0] == '[' ? strcspn(text, "]") : strcspn(text, ":");
    bool bracket = text[0] == '[';

    text += bracket;
    n -= bracket;
    if (n >= 256)
        return false;
    memcpy(out, text, n);
    out[n] = '\0';
    if (n && out[n - 1] == '.')
        out[n - 1] = '\0';
    return true;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);

    return n >= m && !strcasecmp(s + n - m, tail);
}

bool nk__host_allowed(const char *host, const char *const *allowed, int n_allowed)
{
    char name[256], own[256];
    unsigned char address[16];

    if (!host_of(name, host))
        return false;
    for (int i = 0; i < n_allowed; i++) {
        char one[256];

        if (!strcmp(allowed[i], "*") || (host_of(one, allowed[i]) && !strcasecmp(one, name)))
            return true;
    }
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
        return true;
    if (!strcasecmp(name, "localhost") || ends_with(name, ".localhost"))
        return true;
    if (!name[0] || gethostname(own, sizeof own))
        return false;
    own[sizeof own - 1] = '\0';
    if (!strcasecmp(name, own))
        return true;
    own[strcspn(own, ".")] = '\0';
    return !strcasecmp(name, own);
}

/* Browsers keep these names to the machine (RFC 6761), so nobody else serves pages from there. */
static bool is_of_this_machine(const char *host)
{
    unsigned char six[16], four[4];
    char name[256];

    if (!host_of(name, host))
        return false;
    if (inet_pton(AF_INET, name, four) == 1)
        return four[0] == 127;
    if (inet_pton(AF_INET6, name, six) == 1)
        return IN6_IS_ADDR_LOOPBACK((const struct in6_addr *)(const void *)six);
    return !strcasecmp(name, "localhost") || ends_with(name, ".localhost");
}

bool nk__origin_allowed(const char *origin, const char *host, const char *const *allowed,
                        int n_allowed)
{
    const char *at = strstr(origin, "://");

    if (at && host && !strcasecmp(at + 3, host))
        return true;
    if (is_of_this_machine(at ? at + 3 : origin))
        return true;
    for (int i = 0; i < n_allowed; i++)
        if (!strcmp(allowed[i], "*") || !strcasecmp(allowed[i], origin))
            return true;
    return false;
}
