/* Under which addresses others can reach this machine: what goes into a join token. */
#ifndef NK_CLUSTER_REACH_H
#define NK_CLUSTER_REACH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct nk_reach_address {
    char text[46]; /* as inet_ntop writes it */
};

/* One address of one network interface, as the system tells it. */
struct nk_reach_interface {
    const char *name; /* "eth0" */
    const char *address;
    bool up, loopback;
};

/* Chooses and orders; pure. Left out: what is down, loopback, link-local (169.254/16, fe80::/10),
 * multicast and unspecified, the bridges and cables of containers and virtual machines (docker*,
 * br-*, veth*, virbr*, vnet*, cni*, flannel*, podman*, lxcbr*, lxdbr*, cali*, kube*), what was
 * there before, and more than two IPv6 addresses of one interface (temporary ones change). First
 * comes what a neighbour can use: private IPv4, then unique local IPv6 (fc00::/7), public IPv4,
 * public IPv6, last 100.64/10 and everything on a tunnel (tun*, tap*, wg*, tailscale*, zt*, ppp*).
 * Within each as the system had it. Returns how many are in out. */
size_t nk_reach_choose(const struct nk_reach_interface *in, size_t n, struct nk_reach_address *out,
                       size_t max);

/* This machine's, chosen so, now; *n may be 0: it has none but those that were left out.
 *   UNAVAILABLE  no_interfaces  the system does not tell */
int nk_reach_list(struct nk_reach_address *out, size_t max, size_t *n, struct nk_error *err);

/* The same addresses, in whatever order? */
bool nk_reach_same(const struct nk_reach_address *a, size_t n_a, const struct nk_reach_address *b,
                   size_t n_b);

/* "192.168.1.5:5531", "[fd00::5]:5531" */
void nk_reach_format(char *out, size_t size, const char *address, int port);

#endif
