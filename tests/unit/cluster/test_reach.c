#include "cluster_test.h"

#include "cluster/reach.h"

static void assert_chosen(const struct nk_reach_interface *in, size_t n, const char *wanted)
{
    struct nk_reach_address out[16];
    size_t n_out = nk_reach_choose(in, n, out, 16);
    char text[1024] = "";

    for (size_t i = 0; i < n_out; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? " " : "",
                 out[i].text);
    assert_string_equal(text, wanted);
}
#define CHOSEN(wanted, ...)                                                                        \
    do {                                                                                           \
        const struct nk_reach_interface in[] = { __VA_ARGS__ };                                    \
        assert_chosen(in, sizeof in / sizeof *in, wanted);                                         \
    } while (0)
#define UP(name, address)                                                                          \
    {                                                                                              \
        name, address, true, false                                                                 \
    }

static void test_reach__leaves_out_what_nobody_else_can_use(void **state)
{
    (void)state;
    CHOSEN("192.168.1.5", { "lo", "127.0.0.1", true, true }, { "lo", "::1", true, true },
           { "eth1", "192.168.2.5", false, false }, UP("eth0", "169.254.3.4"),
           UP("eth0", "fe80::1"), UP("eth0", "192.168.1.5"), UP("eth0", "192.168.1.5"),
           UP("docker0", "172.17.0.1"), UP("br-3f2a", "172.18.0.1"), UP("veth12", "10.1.1.1"),
           UP("virbr0", "192.168.122.1"), UP("cni0", "10.244.0.1"), UP("flannel.1", "10.244.0.0"),
           UP("podman0", "10.88.0.1"), UP("lxdbr0", "10.5.0.1"), UP("eth0", "0.0.0.0"),
           UP("eth0", "224.0.0.1"), UP("eth0", "ff02::1"), UP("eth0", "::ffff:1.2.3.4"),
           UP("eth0", "nonsense"));
    CHOSEN("", { "lo", "127.0.0.1", true, true }, UP("docker0", "172.17.0.1"));
    CHOSEN("192.168.9.1", UP("br0", "192.168.9.1")); /* a bridge of somebody's LAN */
}

static void test_reach__the_lan_comes_first_and_tunnels_last(void **state)
{
    (void)state;
    CHOSEN("10.0.0.7 172.31.0.1 fd12::7 203.0.113.9 2001:db8::7 100.101.1.1 10.8.0.2 100.64.0.1",
           UP("tailscale0", "100.101.1.1"), UP("wg0", "10.8.0.2"), UP("eth0", "2001:db8::7"),
           UP("eth0", "203.0.113.9"), UP("eth0", "fd12::7"), UP("eth0", "10.0.0.7"),
           UP("eth1", "100.64.0.1"), UP("wlan0", "172.31.0.1"));
}

static void test_reach__two_ipv6_addresses_of_an_interface_are_enough(void **state)
{
    (void)state;
    CHOSEN("2001:db8::1 2001:db8::2 2001:db8:1::1", UP("eth0", "2001:db8::1"),
           UP("eth0", "2001:db8::2"), UP("eth0", "2001:db8::3"), UP("eth1", "2001:db8:1::1"));
}

static void test_reach__is_written_with_its_port(void **state)
{
    char out[64];

    (void)state;
    nk_reach_format(out, sizeof out, "10.0.0.1", 5531);
    assert_string_equal(out, "10.0.0.1:5531");
    nk_reach_format(out, sizeof out, "fd00::5", 5531);
    assert_string_equal(out, "[fd00::5]:5531");
}

static void test_reach__the_same_addresses_are_the_same_in_any_order(void **state)
{
    static const struct nk_reach_address a[] = { { "10.0.0.1" }, { "fd00::5" } },
                                         b[] = { { "fd00::5" }, { "10.0.0.1" } },
                                         c[] = { { "fd00::5" }, { "10.0.0.2" } };

    (void)state;
    assert_true(nk_reach_same(a, 2, b, 2));
    assert_false(nk_reach_same(a, 2, c, 2));
    assert_false(nk_reach_same(a, 2, b, 1));
    assert_false(nk_reach_same(a, 1, b, 2));
    assert_true(nk_reach_same(a, 0, b, 0));
}

static void test_reach__this_machine_has_no_loopback_among_its_own(void **state)
{
    struct nk_reach_address out[16];
    struct nk_error err;
    size_t n;

    (void)state;
    assert_ok(nk_reach_list(out, 16, &n, &err), err);
    assert_true(n <= 16);
    for (size_t i = 0; i < n; i++)
        assert_true(strncmp(out[i].text, "127.", 4) != 0 && strcmp(out[i].text, "::1") != 0 &&
                    strncmp(out[i].text, "fe80", 4) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reach__leaves_out_what_nobody_else_can_use),
        cmocka_unit_test(test_reach__the_lan_comes_first_and_tunnels_last),
        cmocka_unit_test(test_reach__two_ipv6_addresses_of_an_interface_are_enough),
        cmocka_unit_test(test_reach__is_written_with_its_port),
        cmocka_unit_test(test_reach__the_same_addresses_are_the_same_in_any_order),
        cmocka_unit_test(test_reach__this_machine_has_no_loopback_among_its_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
