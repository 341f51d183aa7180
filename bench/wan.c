#include "bench/wan.h"

#include <stdio.h>

#ifdef __linux__

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "bench/relay.h"

enum { DIRECTIONS = 4, FAST_THERE = 0, FAST_BACK, SLOW_THERE, SLOW_BACK };

struct nk_wan {
    struct nk_wan_shape shape;
    char address[NK_WAN_HOSTS][32], client[32], middle[32];
    int hosts[NK_WAN_HOSTS];                /* namespaces */
    int devices[4];                         /* here, host 0's two, host 1's */
    int ready[2], end[2];                   /* pipes: the thread has set up; it shall end */
    struct nk_relay_line lines[DIRECTIONS]; /* the thread's */
    pthread_t thread;
    bool has_thread;
    int rc; /* of setting up */
    struct nk_error err;
};

/* ---- setting up, on the thread: namespaces are a thread's own ---- */

static int no_namespace(struct nk_error *err, const char *what)
{
    int sys = errno;

    return nk_fail(err, NK_E_DENIED, "no_namespace",
                   "a network of our own needs root and /dev/net/tun: %s: %s", what, strerror(sys));
}

/* A device with an address and, at its other end, a peer. */
static int open_device(int *fd, const char *address, const char *peer, struct nk_error *err)
{
    struct ifreq r;
    struct sockaddr_in *in = (struct sockaddr_in *)&r.ifr_addr;
    int s = -1, rc = 0;

    memset(&r, 0, sizeof r);
    *fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return no_namespace(err, "/dev/net/tun");
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(r.ifr_name, "nkbench%d"); /* the kernel counts */
    if (ioctl(*fd, TUNSETIFF, &r) < 0)
        return no_namespace(err, "TUNSETIFF");
    s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memset(&r.ifr_ifru, 0, sizeof r.ifr_ifru);
    in->sin_family = AF_INET;
    inet_pton(AF_INET, address, &in->sin_addr);
    if (s < 0 || ioctl(s, SIOCSIFADDR, &r) < 0)
        rc = no_namespace(err, "SIOCSIFADDR");
    inet_pton(AF_INET, peer, &in->sin_addr);
    if (!rc && ioctl(s, SIOCSIFDSTADDR, &r) < 0)
        rc = no_namespace(err, "SIOCSIFDSTADDR");
    memset(&r.ifr_ifru, 0, sizeof r.ifr_ifru);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (!rc && ioctl(s, SIOCSIFFLAGS, &r) < 0)
        rc = no_namespace(err, "SIOCSIFFLAGS");
    if (s >= 0)
        close(s);
    return rc;
}

/* For the namespace of this thread. BBR, which some machines are set to, spreads a row's packets
 * over a part of the round trip, as if the line were slow. Linux's own default, cubic, may not be
 * allowed in a namespace; Reno always is. */
static int use_reno(struct nk_error *err)
{
    int fd = open("/proc/sys/net/ipv4/tcp_congestion_control", O_WRONLY | O_CLOEXEC), rc = 0;

    if (fd < 0 || write(fd, "reno", 4) < 0)
        rc = no_namespace(err, "tcp_congestion_control");
    if (fd >= 0)
        close(fd);
    return rc;
}

static int new_host(int *fd, struct nk_error *err)
{
    struct ifreq r;
    int s, rc = 0;

    if (unshare(CLONE_NEWNET) < 0)
        return no_namespace(err, "unshare");
    *fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return no_namespace(err, "/proc/thread-self/ns/net");
    memset(&r, 0, sizeof r);
    strcpy(r.ifr_name, "lo");
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || ioctl(s, SIOCSIFFLAGS, &r) < 0)
        rc = no_namespace(err, "lo");
    if (s >= 0)
        close(s);
    return rc ? rc : use_reno(err);
}

static int set_up(nk_wan *w, struct nk_error *err)
{
    int rc = open_device(&w->devices[0], w->client, w->address[0], err);

    if (!rc)
        rc = new_host(&w->hosts[0], err);
    if (!rc)
        rc = open_device(&w->devices[1], w->address[0], w->client, err);
    if (!rc)
        rc = open_device(&w->devices[2], w->middle, w->address[1], err);
    if (!rc)
        rc = new_host(&w->hosts[1], err);
    if (!rc)
        rc = open_device(&w->devices[3], w->address[1], w->middle, err);
    for (int i = 0; !rc && i < DIRECTIONS; i++) {
        struct nk_relay_line *d = &w->lines[i];
        int left = i < SLOW_THERE ? 0 : 2;

        d->from = w->devices[left + i % 2];
        d->to = w->devices[left + 1 - i % 2];
        if (i < SLOW_THERE)
            continue;
        rc = nk_relay_slow(d, &w->shape, (uint64_t)i, err);
    }
    return rc;
}

static void *link_main(void *arg)
{
    nk_wan *w = arg;
    struct sched_param p = { .sched_priority = 1 };

    /* It stands for wires: what computes here must not hold it up. Where that is not allowed, the
     * link is a little slower. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &p);
    prctl(PR_SET_TIMERSLACK, 1);
    w->rc = set_up(w, &w->err);
    if (write(w->ready[1], "", 1) == 1 && !w->rc)
        nk_relay_run(w->lines, DIRECTIONS, w->end[0]);
    return NULL;
}

/* ---- outside ---- */

int nk_wan_open(nk_wan **out, const struct nk_wan_shape *shape, struct nk_error *err)
{
    nk_wan *w = calloc(1, sizeof *w);
    unsigned block = (unsigned)getpid() % 256;
    char byte;
    int rc = 0;

    *out = NULL;
    if (!w)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    w->shape = *shape;
    for (int i = 0; i < 4; i++)
        w->devices[i] = -1;
    w->hosts[0] = w->hosts[1] = w->ready[0] = w->ready[1] = w->end[0] = w->end[1] = -1;
    /* 198.18.0.0/15 is set aside for benchmarks (RFC 2544). */
    snprintf(w->client, sizeof w->client, "198.18.%u.1", block);
    snprintf(w->address[0], sizeof w->address[0], "198.18.%u.2", block);
    snprintf(w->middle, sizeof w->middle, "198.19.%u.1", block);
    snprintf(w->address[1], sizeof w->address[1], "198.19.%u.2", block);
    if (pipe2(w->ready, O_CLOEXEC) < 0 || pipe2(w->end, O_CLOEXEC) < 0 ||
        nk_thread_start(&w->thread, link_main, w))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no pipe or thread for a link");
    w->has_thread = !rc;
    if (!rc && read(w->ready[0], &byte, 1) == 1 && w->rc) {
        rc = w->rc;
        *err = w->err;
    }
    if (rc)
        nk_wan_close(w);
    else
        *out = w;
    return rc;
}

void nk_wan_close(nk_wan *w)
{
    if (!w)
        return;
    if (w->end[1] >= 0)
        close(w->end[1]); /* the thread's end reads as ended */
    if (w->has_thread)
        pthread_join(w->thread, NULL);
    for (int i = 0; i < 4; i++)
        if (w->devices[i] >= 0)
            close(w->devices[i]);
    for (int i = 0; i < NK_WAN_HOSTS; i++)
        if (w->hosts[i] >= 0)
            close(w->hosts[i]);
    for (int i = 0; i < 2; i++)
        if (w->ready[i] >= 0)
            close(w->ready[i]);
    if (w->end[0] >= 0)
        close(w->end[0]);
    for (int i = 0; i < DIRECTIONS; i++)
        nk_relay_release(&w->lines[i]);
    free(w);
}

const char *nk_wan_address(const nk_wan *w, int i)
{
    return w->address[i];
}

void *nk_wan_host(nk_wan *w, int i)
{
    return &w->hosts[i];
}

int nk_wan_enter(void *host)
{
    return setns(*(const int *)host, CLONE_NEWNET) < 0 ? errno : 0;
}

#else

int nk_wan_open(nk_wan **out, const struct nk_wan_shape *shape, struct nk_error *err)
{
    (void)shape;
    *out = NULL;
    return nk_fail(err, NK_E_UNIMPLEMENTED, "no_namespace",
                   "only Linux has network namespaces to measure in");
}

void nk_wan_close(nk_wan *w)
{
    (void)w;
}

const char *nk_wan_address(const nk_wan *w, int i)
{
    (void)w, (void)i;
    return "";
}

void *nk_wan_host(nk_wan *w, int i)
{
    (void)w, (void)i;
    return NULL;
}

int nk_wan_enter(void *host)
{
    (void)host;
    return 1;
}

#endif
