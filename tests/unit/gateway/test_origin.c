#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>
#include <cmocka.h>

#include "gateway/origin.h"

static void test_origin__addresses_to_listen_at(void **state)
{
    static const struct {
        const char *text;
        bool ok, loopback;
    } all[] = {
        { "127.0.0.1:8080", true, true }, { "127.9.9.9:0", true, true },
        { "[::1]:80", true, true },       { "localhost:1", true, true },
        { "0.0.0.0:80", true, false },    { "[::]:80", true, false },
        { ":80", true, false },           { "127.0.0.1", false, false },
        { "127.0.0.1:", false, false },   { "127.0.0.1:99999", false, false },
        { "::1:80", false, false },       { "127.0.0.1:8o", false, false },
        { "256.1.1.1:80", false, false },
    };

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct nk_error err;
        struct nk_listen l;
        int rc = nk__listen_parse(&l, all[i].text, &err);

        if ((rc == 0) != all[i].ok || (!rc && l.loopback != all[i].loopback))
            fail_msg("%s: %d, loopback %d", all[i].text, rc, l.loopback);
        if (rc)
            assert_string_equal(err.reason, "bad_listen");
    }
}

static void test_origin__hosts_that_are_this_machine(void **state)
{
    static const char *const own[] = { "localhost", "LOCALHOST:8080", "127.0.0.1:80", "10.1.2.3",
                                       "[::1]:80",  "a.localhost:1",  "localhost.",   "[fe80::1]" };
    static const char *const allowed[] = { "nas.local", "Gw.example:8080", "host.docker.internal" };
    static const char *const all[] = { "*" };
    char machine[256], first_label[256];
    static const char *const foreign[] = {
        "example.com",
        "localhost.example.com:80",
        "127.0.0.1.example.com",
        "",
        "xlocalhost",
        "1.2.3",
        "nas.local",
        "gw.example",
    };

    (void)state;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!nk__host_allowed(own[i], NULL, 0))
            fail_msg("%s", own[i]);
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (nk__host_allowed(foreign[i], NULL, 0) || !nk__host_allowed(foreign[i], all, 1))
            fail_msg("%s", foreign[i]);
    assert_true(nk__host_allowed("NAS.local:80", allowed, 3));
    assert_true(nk__host_allowed("gw.example", allowed, 3));
    assert_false(nk__host_allowed("x.nas.local", allowed, 3));
    assert_false(nk__host_allowed("example.com", allowed, 3));
    assert_false(gethostname(machine, sizeof machine));
    snprintf(first_label, sizeof first_label, "%.*s", (int)strcspn(machine, "."), machine);
    assert_true(nk__host_allowed(machine, NULL, 0));
    assert_true(nk__host_allowed(first_label, NULL, 0));
}

static void test_origin__pages_that_may_call(void **state)
{
    const char *const allowed[] = { "https://a.example" }, *const all[] = { "*" };

    (void)state;
    assert_true(nk__origin_allowed("http://127.0.0.1:8080", "127.0.0.1:8080", NULL, 0));
    assert_true(nk__origin_allowed("http://127.0.0.1:8081", "127.0.0.1:8080", NULL, 0));
    assert_true(nk__origin_allowed("http://localhost:3000", "192.168.1.5:8080", NULL, 0));
    assert_true(nk__origin_allowed("https://app.localhost", "127.0.0.1:8080", NULL, 0));
    assert_true(nk__origin_allowed("http://[::1]:5173", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("http://192.168.1.5:8081", "192.168.1.5:8080", NULL, 0));
    assert_false(nk__origin_allowed("http://localhost.example", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("http://127.0.0.1.example", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("http://[::2]", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("null", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("null", "127.0.0.1:8080", allowed, 1));
    assert_true(nk__origin_allowed("https://A.example", "127.0.0.1:8080", allowed, 1));
    assert_false(nk__origin_allowed("https://a.example.evil", "127.0.0.1:8080", allowed, 1));
    assert_true(nk__origin_allowed("null", NULL, all, 1));
}

static void test_origin__addresses_of_this_machine(void **state)
{
    static const struct {
        const char *text;
        bool loopback;
    } all[] = {
        { "::1", true },     { "::ffff:127.0.0.1", true },  { "::ffff:127.9.8.7", true },
        { "::2", false },    { "::ffff:192.0.2.1", false }, { "::127.0.0.1", false },
        { "7f00::", false }, { "fe80::1", false },
    };

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct sockaddr_in6 a = { .sin6_family = AF_INET6 };

        assert_int_equal(inet_pton(AF_INET6, all[i].text, &a.sin6_addr), 1);
        if (nk__address_is_loopback((struct sockaddr *)&a) != all[i].loopback)
            fail_msg("%s", all[i].text);
    }
    assert_false(nk__address_is_loopback(&(struct sockaddr){ .sa_family = AF_UNIX }));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_origin__addresses_to_listen_at),
        cmocka_unit_test(test_origin__hosts_that_are_this_machine),
        cmocka_unit_test(test_origin__pages_that_may_call),
        cmocka_unit_test(test_origin__addresses_of_this_machine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
