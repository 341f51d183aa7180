#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

static void test_json__strings_are_escaped_and_always_utf8(void **state)
{
    static const struct {
        const char *text;
        size_t size;
        const char *json;
    } cases[] = {
        { "", 0, "\"\"" },
        { "plain / text's", 14, "\"plain / text's\"" },
        { "\"\\\b\f\n\r\t", 7, "\"\\\"\\\\\\b\\f\\n\\r\\t\"" },
        { "a\0b", 3, "\"a\\u0000b\"" },
        { "\x01\x1F\x7F", 3, "\"\\u0001\\u001f\\u007f\"" },
        { "\xC3\xA9\xE2\x80\xA8", 5, "\"\xC3\xA9\xE2\x80\xA8\"" },
        { "\xF0\x9F\x98\x80", 4, "\"\xF0\x9F\x98\x80\"" },
        /* not UTF-8: no beginning, overlong, a surrogate, broken off, broken off by the end */
        { "a\x80z", 3, "\"a\xEF\xBF\xBDz\"" },
        { "\xC0\xAF", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\"" },
        { "\xED\xA0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"" },
        { "\xE2\x82\"", 3, "\"\xEF\xBF\xBD\\\"\"" },
        { "ok\xF0\x9F\x98", 5, "\"ok\xEF\xBF\xBD\"" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_buf b = NK_BUF_INIT(100);
        /* as large as it is, so that AddressSanitizer sees a read past the end */
        char *text = malloc(cases[i].size + 1);

        text = realloc(memcpy(text, cases[i].text, cases[i].size), cases[i].size + !cases[i].size);
        assert_int_equal(nk_buf_adds(&b, ":", NULL), 0);
        assert_int_equal(nk_json_strn(&b, text, cases[i].size, NULL), 0);
        assert_string_equal(nk_buf_str(&b) + 1, cases[i].json);
        nk_buf_release(&b);
        free(text);
    }
}

static void test_json__no_text_is_null(void **state)
{
    struct nk_buf b = NK_BUF_INIT(100);

    (void)state;
    assert_int_equal(nk_json_str(&b, NULL, NULL), 0);
    assert_int_equal(nk_json_str(&b, "a\nb", NULL), 0);
    assert_string_equal(nk_buf_str(&b), "null\"a\\nb\"");
    nk_buf_release(&b);
}

static void test_json__numbers_read_back_the_same(void **state)
{
    static const struct {
        double number;
        const char *json;
    } cases[] = {
        { 0, "0" },
        { -17, "-17" },
        { 999999999999999, "999999999999999" },
        { 1e15, "1e+15" },
        { 0.1, "0.1" },
        { -2.5e-7, "-2.5e-07" },
        { 1234567.5, "1234567.5" },
        { 9007199254740993.0, "9007199254740992" },
        { 1.0 / 3, "0.3333333333333333" },
        { 0.1 + 0.2, "0.30000000000000004" },
        { DBL_MAX, "1.7976931348623157e+308" },
        { 5e-324, "4.94065645841247e-324" }, /* the least there is: has no 15 digits, but these */
        { NAN, "null" },
        { INFINITY, "null" },
        { -INFINITY, "null" },
    };
    uint64_t bits = 88172645463325252ull; /* xorshift64's seed */

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_buf b = NK_BUF_INIT(100);

        assert_int_equal(nk_json_num(&b, cases[i].number, NULL), 0);
        assert_string_equal(nk_buf_str(&b), cases[i].json);
        nk_buf_release(&b);
    }
    for (int i = 0; i < 20000; i++) {
        struct nk_buf b = NK_BUF_INIT(100);
        double number;

        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        memcpy(&number, &bits, sizeof number);
        if (!isfinite(number))
            continue;
        assert_int_equal(nk_json_num(&b, number, NULL), 0);
        if (strtod(nk_buf_str(&b), NULL) != number)
            fail_msg("%a is written as %s", number, nk_buf_str(&b));
        nk_buf_release(&b);
    }
}

static void test_json__a_full_buffer_is_an_error_at_every_byte(void **state)
{
    static const char text[] = "ab\n\xFF\xC3\xA9\x01z";
    struct nk_buf whole = NK_BUF_INIT(100);

    (void)state;
    assert_int_equal(nk_json_str(&whole, text, NULL), 0);
    for (size_t max = 0; max <= whole.size; max++) {
        struct nk_buf b = NK_BUF_INIT(max);
        struct nk_error err = { 0 };
        int rc = nk_json_str(&b, text, &err);

        assert_int_equal(rc, max < whole.size ? NK_E_EXHAUSTED : 0);
        if (rc)
            assert_string_equal(err.reason, "too_large");
        assert_true(b.size <= max);
        assert_memory_equal(nk_buf_str(&b), nk_buf_str(&whole), b.size);
        nk_buf_release(&b);
    }
    nk_buf_release(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json__strings_are_escaped_and_always_utf8),
        cmocka_unit_test(test_json__no_text_is_null),
        cmocka_unit_test(test_json__numbers_read_back_the_same),
        cmocka_unit_test(test_json__a_full_buffer_is_an_error_at_every_byte),
    };

    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
