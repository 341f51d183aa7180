#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json_writer.h"

static void test_json_writer__commas_stand_between_values(void **state)
{
    struct nk_buf b = NK_BUF_INIT(1024);
    struct nk_json_writer w = NK_JSON_WRITER(&b, NULL);

    (void)state;
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "a", "x\"y");
    nk_json_begin(&w, "b", '[');
    nk_json_end(&w, ']');
    nk_json_begin(&w, "c", '[');
    nk_json_put_int(&w, NULL, -3);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_bool(&w, "d", true);
    nk_json_put_bool(&w, "e", false);
    nk_json_end(&w, '}');
    nk_json_put_num(&w, NULL, 0.5);
    nk_json_put_raw(&w, NULL, "");
    nk_json_put_raw(&w, NULL, "1,2");
    nk_json_end(&w, ']');
    nk_json_put_null(&w, "f");
    nk_json_put_str(&w, "g", NULL);
    nk_json_put_strn(&w, "h", "ab", 1);
    nk_json_put_raw(&w, "i", "{}");
    nk_json_end(&w, '}');
    assert_int_equal(w.rc, 0);
    assert_string_equal(nk_buf_str(&b),
                        "{\"a\":\"x\\\"y\",\"b\":[],\"c\":[-3,{\"d\":true,\"e\":false},0.5,1,2],"
                        "\"f\":null,\"g\":null,\"h\":\"a\",\"i\":{}}");
    nk_buf_release(&b);
}

static void test_json_writer__the_first_error_stays(void **state)
{
    struct nk_buf b = NK_BUF_INIT(8);
    struct nk_error err = { .code = 0 };
    struct nk_json_writer w = NK_JSON_WRITER(&b, &err);

    (void)state;
    nk_json_begin(&w, NULL, '[');
    nk_json_put_str(&w, NULL, "longer than that");
    nk_json_end(&w, ']');
    assert_int_equal(w.rc, NK_E_EXHAUSTED);
    assert_int_equal(err.code, NK_E_EXHAUSTED);
    assert_true(b.size <= 8);
    nk_buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_writer__commas_stand_between_values),
        cmocka_unit_test(test_json_writer__the_first_error_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
