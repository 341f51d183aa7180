#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/visible.h"

static const struct {
    const char *text, *shown, *line; /* line NULL: as shown */
} all[] = {
    { "In the beginning\n\tGod", "In the beginning\n\tGod", "In the beginning^J^IGod" },
    { "\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G", NULL },
    { "a\rb\bc\x7f", "a^Mb^Hc^?", NULL },
    { "\xc2\x9b"
      "2J\xc2\x80\xc2\x9f\xc2\xa0",
      "<U+009B>2J<U+0080><U+009F>\xc2\xa0", NULL },
    { "\xe2\x80\xae"
      "txt\xe2\x81\xa9\xe2\x80\xaa\xe2\x81\xa6",
      "<U+202E>txt<U+2069><U+202A><U+2066>", NULL },
    { "\xd7\xa9\xe2\x80\x8f \xd8\xa7\xd8\x9c", "\xd7\xa9\xe2\x80\x8f \xd8\xa7\xd8\x9c", NULL },
    { "\xe6\x97\xa5\xf0\x9f\x98\x80\xe2\x80\xa8", "\xe6\x97\xa5\xf0\x9f\x98\x80\xe2\x80\xa8",
      NULL },
    { "\x9b"
      "2J",
      "\xef\xbf\xbd"
      "2J",
      NULL },
    { "\xe6\x97"
      "a",
      "\xef\xbf\xbd"
      "a",
      NULL },
    { "\xe6\x97\x1b[", "\xef\xbf\xbd^[[", NULL },
    { "\xf0\x9f\xe6\x97\xa5", "\xef\xbf\xbd\xe6\x97\xa5", NULL },
    { "\xe6\x97", "\xef\xbf\xbd", NULL },
    { "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", NULL },
    { "", "", NULL },
};

static void test_visible__controls_are_shown_however_the_text_is_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        for (size_t step = 1; step <= 5; step++) {
            struct nk_buf b = NK_BUF_INIT(1000);
            struct nk_visible v = { .n_rest = 0 };
            size_t size = strlen(all[i].text);

            for (size_t at = 0; at < size; at += step)
                assert_int_equal(nk_visible_add(&v, all[i].text + at,
                                                size - at < step ? size - at : step, &b, NULL),
                                 0);
            assert_int_equal(nk_visible_end(&v, &b, NULL), 0);
            assert_string_equal(nk_buf_str(&b), all[i].shown);
            nk_buf_release(&b);
        }
}

static void test_visible__a_line_fits_its_buffer_and_ends_with_a_whole_character(void **state)
{
    char out[100];

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        assert_string_equal(nk_visible_line(out, sizeof out, all[i].text),
                            all[i].line ? all[i].line : all[i].shown);
    assert_string_equal(nk_visible_line(out, 6, "abc\x1b\x1b"), "abc^[");
    assert_string_equal(nk_visible_line(out, 5, "abc\x1b\x1b"), "abc");
    assert_string_equal(nk_visible_line(out, 4, "a\xe6\x97\xa5"), "a");
    assert_string_equal(nk_visible_line(out, 5, "a\xe6\x97\xa5"), "a\xe6\x97\xa5");
    assert_string_equal(nk_visible_line(out, 1, "a"), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_visible__controls_are_shown_however_the_text_is_cut),
        cmocka_unit_test(test_visible__a_line_fits_its_buffer_and_ends_with_a_whole_character),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
