#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
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
    static const char *const own[] = { "localhost",    "LOCALHOST:8080",
                                       "127.0.0.1:80", "10.1.2.3",
                                       "[::1]:80",     "a.localhost:1",
                                       "nas.local",    "host.docker.internal:8080",
                                       "localhost." };
    static const char *const foreign[] = {
        "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "", "xlocalhost",
        "1.2.3"
    };

    (void)state;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!nk__host_is_own(own[i]))
            fail_msg("%s", own[i]);
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (nk__host_is_own(foreign[i]))
            fail_msg("%s", foreign[i]);
}

static void test_origin__pages_that_may_call(void **state)
{
    const char *const allowed[] = { "https://a.example" }, *const all[] = { "*" };

    (void)state;
    assert_true(nk__origin_allowed("http://127.0.0.1:8080", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("http://127.0.0.1:8081", "127.0.0.1:8080", NULL, 0));
    assert_false(nk__origin_allowed("null", "127.0.0.1:8080", allowed, 1));
    assert_true(nk__origin_allowed("https://A.example", "127.0.0.1:8080", allowed, 1));
    assert_false(nk__origin_allowed("https://a.example.evil", "127.0.0.1:8080", allowed, 1));
    assert_true(nk__origin_allowed("null", NULL, all, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_origin__addresses_to_listen_at),
        cmocka_unit_test(test_origin__hosts_that_are_this_machine),
        cmocka_unit_test(test_origin__pages_that_may_call),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
