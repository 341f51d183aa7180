#include "cluster/reach.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "cluster/cluster_int.h"

enum { INTERFACES_MAX = 4096, V6_OF_ONE_MAX = 2 };

int nk__address_bytes(uint8_t out[16], const char *text)
{
    if (inet_pton(AF_INET, text, out) == 1)
        return 4;
    return inet_pton(AF_INET6, text, out) == 1 ? 16 : 0;
}

void nk_reach_format(char *out, size_t size, const char *address, int port)
{
    bool v6 = strchr(address, ':');

    snprintf(out, size, "%s%s%s:%d", v6 ? "[" : "", address, v6 ? "]" : "", port);
}

static bool named(const char *name, const char *const *prefixes)
{
    for (; *prefixes; prefixes++)
        if (!strncmp(name, *prefixes, strlen(*prefixes)))
            return true;
    return false;
}

static bool is_container(const char *name)
{
    static const char *const prefixes[] = { "docker", "br-",     "veth",   "virbr", "vnet",
                                            "cni",    "flannel", "podman", "lxcbr", "lxdbr",
                                            "cali",   "kube",    NULL };

    return named(name, prefixes);
}

static bool is_tunnel(const char *name)
{
    static const char *const prefixes[] = { "tun", "tap", "wg", "tailscale", "zt", "ppp", NULL };

    return named(name, prefixes);
}

enum rank { PRIVATE_V4, LOCAL_V6, PUBLIC_V4, PUBLIC_V6, FAR, NEVER };

static enum rank rank_v4(const uint8_t *a)
{
    if (a[0] == 0 || a[0] == 127 || a[0] >= 224 || (a[0] == 169 && a[1] == 254))
        return NEVER;
    if (a[0] == 100 && (a[1] & 0xc0) == 64)
        return FAR;
    if (a[0] == 10 || (a[0] == 172 && (a[1] & 0xf0) == 16) || (a[0] == 192 && a[1] == 168))
        return PRIVATE_V4;
    return PUBLIC_V4;
}

static enum rank rank_v6(const uint8_t *a)
{
    static const uint8_t zeros[15];

    if (a[0] == 0xff || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80))
        return NEVER;
    if (!memcmp(a, zeros, 15) && a[15] <= 1) /* :: and ::1 */
        return NEVER;
    if (!memcmp(a, zeros, 10) && a[10] == 0xff && a[11] == 0xff) /* IPv4 in disguise */
        return NEVER;
    return (a[0] & 0xfe) == 0xfc ? LOCAL_V6 : PUBLIC_V6;
}

static enum rank rank_of(const struct nk_reach_interface *i)
{
    uint8_t bytes[16];
    int size = nk__address_bytes(bytes, i->address);
    enum rank rank;

    if (!size || !i->up || i->loopback || is_container(i->name))
        return NEVER;
    rank = size == 4 ? rank_v4(bytes) : rank_v6(bytes);
    return rank != NEVER && is_tunnel(i->name) ? FAR : rank;
}

/* Is in[at] one too many: there before, or the third IPv6 address of its interface and kind? */
static bool is_surplus(const struct nk_reach_interface *in, size_t at, enum rank rank)
{
    int n = 0;

    for (size_t i = 0; i < at; i++) {
        if (!strcmp(in[i].address, in[at].address) && rank_of(&in[i]) != NEVER)
            return true;
        n += !strcmp(in[i].name, in[at].name) && strchr(in[i].address, ':') &&
             rank_of(&in[i]) == rank;
    }
    return strchr(in[at].address, ':') && n >= V6_OF_ONE_MAX;
}

size_t nk_reach_choose(const struct nk_reach_interface *in, size_t n, struct nk_reach_address *out,
                       size_t max)
{
    size_t n_out = 0;

    for (int rank = PRIVATE_V4; rank < NEVER; rank++)
        for (size_t i = 0; i < n && n_out < max; i++)
            if (rank_of(&in[i]) == (enum rank)rank && !is_surplus(in, i, (enum rank)rank))
                snprintf(out[n_out++].text, sizeof out->text, "%s", in[i].address);
    return n_out;
}

/* Writes an interface's address into text; false: it has none of those that are used here. */
static bool text_of(const struct ifaddrs *a, char text[46])
{
    const void *bytes;

    if (!a->ifa_addr)
        return false;
    if (a->ifa_addr->sa_family == AF_INET)
        bytes = &((const struct sockaddr_in *)(const void *)a->ifa_addr)->sin_addr;
    else if (a->ifa_addr->sa_family == AF_INET6)
        bytes = &((const struct sockaddr_in6 *)(const void *)a->ifa_addr)->sin6_addr;
    else
        return false;
    return inet_ntop(a->ifa_addr->sa_family, bytes, text, 46);
}

int nk_reach_list(struct nk_reach_address *out, size_t max, size_t *n, struct nk_error *err)
{
    struct nk_reach_interface *in = NULL;
    struct nk_reach_address *texts = NULL;
    size_t n_in = 0, capacity = 0, texts_capacity = 0;
    struct ifaddrs *all;
    int rc = 0;

    *n = 0;
    if (getifaddrs(&all) < 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "no_interfaces",
                       "this machine's network interfaces cannot be listed: %s", strerror(errno));
    for (const struct ifaddrs *a = all; !rc && a; a = a->ifa_next) {
        char text[46];

        if (!text_of(a, text))
            continue;
        rc = nk_array_grow(in, capacity, n_in + 1, INTERFACES_MAX, err);
        if (!rc)
            rc = nk_array_grow(texts, texts_capacity, n_in + 1, INTERFACES_MAX, err);
        if (rc)
            break;
        memcpy(texts[n_in].text, text, sizeof text);
        in[n_in++] = (struct nk_reach_interface){
            .name = a->ifa_name,
            .up = (a->ifa_flags & IFF_UP) && (a->ifa_flags & IFF_RUNNING),
            .loopback = a->ifa_flags & IFF_LOOPBACK,
        };
    }
    if (!rc) {
        for (size_t i = 0; i < n_in; i++)
            in[i].address = texts[i].text; /* they have stopped moving */
        *n = nk_reach_choose(in, n_in, out, max);
    }
    free(in);
    free(texts);
    freeifaddrs(all);
    return rc;
}

bool nk_reach_same(const struct nk_reach_address *a, size_t n_a, const struct nk_reach_address *b,
                   size_t n_b)
{
    for (size_t i = 0; n_a == n_b && i < n_a; i++) {
        size_t k = 0;

        while (k < n_b && strcmp(a[i].text, b[k].text) != 0)
            k++;
        if (k == n_b)
            return false;
    }
    return n_a == n_b;
}
