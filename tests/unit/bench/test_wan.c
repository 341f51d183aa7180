/* The slow link between two network namespaces, with real TCP over it. Skipped where namespaces are
 * not allowed. */
#include "bench/wan.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "unit/missing.h"

enum { PORT = 5000, ROUNDS = 25, BULK_BYTES = 500000 };

static struct sockaddr_in address_of(const nk_wan *w, int i)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };

    inet_pton(AF_INET, nk_wan_address(w, i), &a.sin_addr);
    return a;
}

/* On host 1: answers each byte with one, and BULK_BYTES at once with one. */
static void serve(nk_wan *w, int ready)
{
    struct sockaddr_in a = address_of(w, 1);
    int s, one = 1, fd;
    static char data[65536];
    size_t n_bulk = 0;

    if (nk_wan_enter(nk_wan_host(w, 1)))
        _exit(1);
    s = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 1) || write(ready, "", 1) != 1)
        _exit(1);
    fd = accept(s, NULL, NULL);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < ROUNDS; i++)
        if (read(fd, data, 1) != 1 || write(fd, data, 1) != 1)
            _exit(1);
    while (n_bulk < BULK_BYTES) {
        ssize_t n = read(fd, data, sizeof data);

        if (n <= 0)
            _exit(1);
        n_bulk += (size_t)n;
    }
    _exit(write(fd, data, 1) != 1);
}

/* On host 0: the quickest round trip and the time for the bulk, in ms. */
static void ask(nk_wan *w, int out)
{
    struct sockaddr_in a = address_of(w, 1);
    static char data[BULK_BYTES];
    double ms[2] = { 1e9, 0 };
    int fd, one = 1;
    uint64_t begin_ns;

    if (nk_wan_enter(nk_wan_host(w, 0)))
        _exit(1);
    /* What paces (BBR) is no measure of a chain. */
    fd = open("/proc/sys/net/ipv4/tcp_congestion_control", O_RDONLY | O_CLOEXEC);
    if (read(fd, data, 5) != 5 || memcmp(data, "reno\n", 5) != 0)
        _exit(2);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&a, sizeof a))
        _exit(1);
    for (int i = 0; i < ROUNDS; i++) {
        double t;

        begin_ns = nk_now_ns();
        if (write(fd, data, 1) != 1 || read(fd, data, 1) != 1)
            _exit(1);
        t = (double)(nk_now_ns() - begin_ns) / 1e6;
        ms[0] = t < ms[0] ? t : ms[0];
    }
    begin_ns = nk_now_ns();
    for (size_t n = 0; n < BULK_BYTES;) {
        ssize_t k = write(fd, data + n, BULK_BYTES - n);

        if (k <= 0)
            _exit(1);
        n += (size_t)k;
    }
    if (read(fd, data, 1) != 1)
        _exit(1);
    ms[1] = (double)(nk_now_ns() - begin_ns) / 1e6;
    _exit(write(out, ms, sizeof ms) != sizeof ms);
}

static void test_wan__the_link_is_never_faster_than_was_asked_for(void **state)
{
    struct nk_wan_shape shape = { .round_trip_ms = 40, .mbit = 8 };
    int ready[2], out[2], status;
    struct nk_error err;
    double ms[2] = { 0, 0 };
    pid_t server, client;
    char byte;
    nk_wan *w;

    (void)state;
    if (geteuid() != 0 || access("/dev/net/tun", R_OK | W_OK))
        missing("root and /dev/net/tun, for a network of its own");
    if (nk_wan_open(&w, &shape, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(out), 0);
    if ((server = fork()) == 0)
        serve(w, ready[1]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    if ((client = fork()) == 0)
        ask(w, out[1]);
    close(out[1]);
    assert_int_equal(waitpid(client, &status, 0), client);
    assert_int_equal(status, 0);
    assert_int_equal(read(out[0], ms, sizeof ms), (int)sizeof ms);
    assert_int_equal(waitpid(server, &status, 0), server);
    assert_int_equal(status, 0);
    /* Never faster than the link; how much slower is the machine's business. When a packet is due
     * is test_link.c's. */
    if (ms[0] < 40)
        fail_msg("a round trip of 40 ms took %.2f ms", ms[0]);
    if (ms[1] < BULK_BYTES * 8 / 8e3)
        fail_msg("500,000 bytes at 8 Mbit/s took %.1f ms, not 500", ms[1]);
    nk_wan_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wan__the_link_is_never_faster_than_was_asked_for),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
