#include "rpc/rpc_int.h"

#include <arpa/inet.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

void nk__args_int(struct nk__args *a, const char *key, int value)
{
    size_t n = a->args.num_args++;

    NK_ASSERT(n < sizeof a->items / sizeof a->items[0]);
    a->args.args = a->items;
    a->items[n] =
        (grpc_arg){ .type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value };
}

void nk__args_common(struct nk__args *a, const nk_net *net, grpc_resource_quota *quota)
{
    size_t n;

    /* Sizes are checked in call.c, so that the status has our reason. gRPC 1.51 checks no earlier
     * either, but after the whole message has arrived: what bounds memory is the quota. When it
     * fills, windows shrink; when it is full, streams are reset (EXHAUSTED). */
    n = a->args.num_args++;
    a->args.args = a->items;
    a->items[n] = (grpc_arg){ .type = GRPC_ARG_POINTER,
                              .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
                              .value.pointer = { quota, grpc_resource_quota_arg_vtable() } };
    nk__args_int(a, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1);
    nk__args_int(a, GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1);
    /* No compression: rows do not compress, and 64 KiB of zeros must not become 64 MiB here. A
     * compressed message is answered UNIMPLEMENTED by gRPC itself. */
    nk__args_int(a, GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1u << GRPC_COMPRESS_NONE);
    nk__args_int(a, GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
    nk__args_int(a, GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
    /* A peer whose packets are dropped is noticed after 10 + 5 seconds, by both sides. These are of
     * the system's clock: where the net's stands still, no time passes in which to give up a peer.
     * (In a test, whose machine may stand still for 5 seconds, that would be a live one.) */
    if (nk_clock_runs(net->clock)) {
        nk__args_int(a, GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
        nk__args_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
        nk__args_int(a, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
        nk__args_int(a, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
    nk__args_int(a, GRPC_ARG_ENABLE_CHANNELZ, 0);
}

int nk_address_check(const char *address, int port_min, struct nk_error *err)
{
    const char *colon = strrchr(address, ':');
    size_t host_size = colon ? (size_t)(colon - address) : 0;
    bool ok = colon && host_size && strlen(address) < NK__ADDRESS_MAX;
    char *end = NULL;
    long port = -1;

    if (ok && address[0] == '[')
        ok = address[host_size - 1] == ']' && host_size > 2 &&
             strspn(address + 1, "0123456789abcdefABCDEF:.") == host_size - 2;
    else if (ok)
        ok = strspn(address, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") ==
             host_size;
    if (ok && colon[1] >= '0' && colon[1] <= '9')
        port = strtol(colon + 1, &end, 10);
    if (!ok || !end || *end || port < port_min || port > 65535)
        return nk_fail(err, NK_E_INVALID, "bad_address",
                       "\"%.300s\" is not HOST:PORT with a port from %d to 65535 (an IPv6 address "
                       "goes in brackets: [::1]:5530)",
                       address, port_min);
    return 0;
}

bool nk_address_is_loopback(const char *address)
{
    const char *colon = strrchr(address, ':');
    char host[NK__ADDRESS_MAX];
    size_t size = colon ? (size_t)(colon - address) : 0;
    struct in6_addr v6;
    struct in_addr v4;

    if (size == 0 || size >= sizeof host)
        return false;
    memcpy(host, address, size);
    host[size] = '\0';
    if (host[0] == '[' && host[size - 1] == ']') {
        host[size - 1] = '\0';
        return inet_pton(AF_INET6, host + 1, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
    }
    /* A name that only begins with 127. is any machine. */
    return inet_pton(AF_INET, host, &v4) == 1 ? ntohl(v4.s_addr) >> 24 == 127
                                              : strcmp(host, "localhost") == 0;
}
