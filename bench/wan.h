/* A network of our own: two network namespaces, and a slow link between them.
 *
 *   this process's namespace  ==  host 0  ==slow==  host 1
 *
 * A process that is to run on host i enters it with nk_wan_enter before exec. The first link is as
 * fast as the machine; the slow one has a round trip, a rate and a jitter.
 *
 * The links are TUN devices with a thread between them that holds each packet until it would have
 * arrived: what `tc netem` does, but also on kernels that are built without it. Namespaces and
 * devices have no names that outlive us: they are gone with the last file descriptor and process,
 * however those end, Ctrl-C and SIGKILL included.
 *
 * Needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and /dev/net/tun; Linux only. */
#ifndef NK_BENCH_WAN_H
#define NK_BENCH_WAN_H

#include "base/error.h"

struct nk_wan_shape {
    double round_trip_ms;
    double jitter_ms; /* each burst of packets takes up to half of this more or less, either way */
    double mbit;      /* megabits per second, each way */
};

typedef struct nk_wan nk_wan;
enum { NK_WAN_HOSTS = 2 };

/* Fails with
 *   DENIED         no_namespace   not root, no TUN device, or the kernel has none; the message says
 *                                 which
 *   UNIMPLEMENTED  no_namespace   not Linux
 *   EXHAUSTED      no_memory */
int nk_wan_open(nk_wan **out, const struct nk_wan_shape *shape, struct nk_error *err);
/* The processes on its hosts have ended by then. NULL is fine. */
void nk_wan_close(nk_wan *w);
/* Where a process on host i listens; borrowed until close. */
const char *nk_wan_address(const nk_wan *w, int i);
/* nk_process_opts.in_child and its argument: the child goes to host i. */
int nk_wan_enter(void *host);
void *nk_wan_host(nk_wan *w, int i);

#endif
