#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "gateway/keys.h"

static void test_keys__only_whole_keys_open(void **state)
{
    char digest[NK_SHA256_HEX] = "none", first[NK_SHA256_HEX];
    nk_keys *k;

    (void)state;
    assert_int_equal(nk__keys_new(&k, "# comment\n  key-number-one\t\r\n\nkey-number-two", NULL),
                     0);
    assert_true(nk__keys_allow(k, "Bearer key-number-one", NULL, digest));
    memcpy(first, digest, sizeof first);
    assert_true(nk__keys_allow(k, "bearer  key-number-two", NULL, digest));
    assert_string_not_equal(first, digest);
    assert_int_equal(strlen(digest), 64);
    assert_false(nk__keys_allow(k, NULL, NULL, digest));
    assert_false(nk__keys_allow(k, "", NULL, digest));
    assert_false(nk__keys_allow(k, "Bearer ", NULL, digest));
    assert_false(nk__keys_allow(k, "key-number-one", NULL, digest));
    assert_false(nk__keys_allow(k, "Bearer key-number-on", NULL, digest));
    assert_false(nk__keys_allow(k, "Bearer key-number-one ", NULL, digest));
    assert_false(nk__keys_allow(k, "Bearer # comment", NULL, digest));
    assert_true(nk__keys_allow(k, "Bearer key-number-one", NULL, digest));
    assert_string_equal(first, digest);
    nk__keys_free(k);
}

static void test_keys__unusable_files_are_refused_without_showing_keys(void **state)
{
    static const char *const bad[] = { "", "# nothing\n\n", "short\n", "with some space\n" };
    struct nk_error err;
    nk_keys *k;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(nk__keys_new(&k, bad[i], &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_key_file");
        assert_null(k);
        assert_null(strstr(err.msg, "some"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys__only_whole_keys_open),
        cmocka_unit_test(test_keys__unusable_files_are_refused_without_showing_keys),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
