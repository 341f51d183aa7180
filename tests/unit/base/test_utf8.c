#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "unit/utf8_bytes.h"

static void test_utf8__knows_every_code_point_and_its_bytes(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        char bytes[4];
        uint32_t back = 0;
        int n;

        if (cp == 0xD800)
            cp = 0xE000;
        n = utf8_bytes(cp, bytes);
        assert_int_equal(nk_utf8_next(bytes, (size_t)n, &back), n);
        assert_int_equal(back, cp);
        for (int cut = 1; cut < n; cut++) /* every beginning can still be completed */
            assert_int_equal(nk_utf8_next(bytes, (size_t)cut, NULL), 0);
    }
}

static void test_utf8__refuses_what_the_standard_refuses(void **state)
{
    /* Table 3-8 and 3-9 of the Unicode Standard: how many bytes one U+FFFD stands for. */
    static const struct {
        const char *bytes;
        size_t size;
        int n;
    } cases[] = {
        { "\x80", 1, -1 },
        { "\xBF\x80", 2, -1 },
        { "\xC0\xAF", 2, -1 },
        { "\xC1\xBF", 2, -1 },
        { "\xE0\x80\xAF", 3, -1 },
        { "\xED\xA0\x80", 3, -1 },
        { "\xF0\x8F\x80\x80", 4, -1 },
        { "\xF4\x90\x80\x80", 4, -1 },
        { "\xF5\x80\x80\x80", 4, -1 },
        { "\xFF", 1, -1 },
        { "\xE1\x80\xE2", 3, -2 },
        { "\xF0\x91\x92\xF1", 4, -3 },
        { "\xC2"
          "A",
          2, -1 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(nk_utf8_next(cases[i].bytes, cases[i].size, NULL), cases[i].n);
}

static void test_utf8__names_the_first_bad_byte(void **state)
{
    size_t at = 99;

    (void)state;
    assert_true(nk_utf8_valid("", 0, &at));
    assert_true(nk_utf8_valid("a\0b", 3, &at));
    assert_false(nk_utf8_valid("ab\xFF", 3, &at));
    assert_int_equal(at, 2);
    assert_false(nk_utf8_valid("\xE4\xB8\xAD\xE4\xB8", 5, &at)); /* cut off */
    assert_int_equal(at, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8__knows_every_code_point_and_its_bytes),
        cmocka_unit_test(test_utf8__refuses_what_the_standard_refuses),
        cmocka_unit_test(test_utf8__names_the_first_bad_byte),
    };

    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
