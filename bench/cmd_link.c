/* nakshatra-bench link: a slow cable between two network namespaces. */
#include "bench/command.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <errno.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "bench/relay.h"

/* A TAP device NAME in the namespace NS of "NS:NAME" (as `ip netns` names them). The thread goes
 * there, and stays. */
static int open_tap(const char *where, int *fd, struct nk_error *err)
{
    const char *colon = strrchr(where, ':');
    struct ifreq r;
    char path[300];
    int ns;

    if (!colon || colon == where || !colon[1] || strlen(colon + 1) >= IFNAMSIZ ||
        colon - where > 200)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "'%.80s' is not NAMESPACE:DEVICE, as in a:eth0", where);
    snprintf(path, sizeof path, "/run/netns/%.*s", (int)(colon - where), where);
    ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) {
        int sys = errno;

        if (ns >= 0)
            close(ns);
        return nk_fail(err, NK_E_DENIED, "no_namespace", "%s cannot be entered: %s", path,
                       strerror(sys));
    }
    close(ns);
    memset(&r, 0, sizeof r);
    r.ifr_flags = IFF_TAP | IFF_NO_PI;
    strcpy(r.ifr_name, colon + 1);
    *fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0 || ioctl(*fd, TUNSETIFF, &r) < 0)
        return nk_fail(err, NK_E_DENIED, "no_namespace",
                       "the device %s cannot be made by /dev/net/tun: %s", where, strerror(errno));
    return 0;
}

static int relay(char **ends, const struct nk_wan_shape *shape, struct nk_error *err)
{
    struct nk_relay_line lines[2] = { 0 };
    struct sched_param p = { .sched_priority = 1 };
    int fds[2] = { -1, -1 }, rc = 0;

    /* It stands for a wire: what computes here must not hold it up. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &p);
    prctl(PR_SET_TIMERSLACK, 1);
    for (int i = 0; !rc && i < 2; i++)
        rc = open_tap(ends[i], &fds[i], err);
    for (int i = 0; !rc && i < 2; i++) {
        lines[i].from = fds[i];
        lines[i].to = fds[1 - i];
        rc = nk_relay_slow(&lines[i], shape, (uint64_t)i + 1, err);
    }
    if (!rc) {
        printf("ready\n");
        fflush(stdout);
        nk_relay_run(lines, 2, STDIN_FILENO);
    }
    for (int i = 0; i < 2; i++) {
        nk_relay_release(&lines[i]);
        if (fds[i] >= 0)
            close(fds[i]);
    }
    return rc;
}
#else
#include "bench/wan.h"

static int relay(char **ends, const struct nk_wan_shape *shape, struct nk_error *err)
{
    (void)ends, (void)shape;
    return nk_fail(err, NK_E_UNIMPLEMENTED, "no_namespace", "only Linux has network namespaces");
}
#endif

int nk_cmd_link(int argc, char **argv)
{
    double round_trip_ms = 0, mbit = 1000;
    const struct nk_arg args[] = {
        NK_OPT_FLOAT("round-trip", 0, &round_trip_ms, "MS", 0, 10000,
                     "milliseconds there and back (0)"),
        NK_OPT_FLOAT("mbit", 0, &mbit, "N", 0.001, 1000000, "megabits per second, each way (1000)"),
        { 0 },
    };
    const struct nk_command cmd = {
        "link [--round-trip MS] [--mbit N] NAMESPACE:DEVICE NAMESPACE:DEVICE",
        "A cable between two network namespaces (ip netns): makes a TAP device in each, prints\n"
        "'ready', and relays between them until its standard input ends. Needs root.",
        args, 2, 2
    };
    struct nk_error err;
    int first, exit_code, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = relay(argv + first, &(struct nk_wan_shape){ .round_trip_ms = round_trip_ms, .mbit = mbit },
               &err);
    return rc ? nk_command_report(&err) : NK_EXIT_OK;
}
