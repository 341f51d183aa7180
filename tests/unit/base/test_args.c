#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/args.h"

static bool flag;
static const char *text;
static int64_t number;
static double real;
static struct nk_arg_list list;

static const struct nk_arg args[] = {
    { "flag", 'f', NK_ARG_FLAG, &flag, NULL, "a flag", 0, 0 },
    { "text", 0, NK_ARG_STRING, &text, "T", "a text", 0, 0 },
    { "number", 'n', NK_ARG_INT, &number, "N", "a number", 1, 10 },
    { "real", 0, NK_ARG_FLOAT, &real, "R", "a real", 0, 2 },
    { "list", 0, NK_ARG_LIST, &list, "X", "a list", 0, 0 },
    { 0 },
};
static const struct nk_command cmd = { "try FILE", "tries.", args, 1, 2 };

static int parse(struct nk_error *err, int *first, char **argv)
{
    int argc = 0;

    while (argv[argc])
        argc++;
    return nk_args_parse(argc, argv, &cmd, first, err);
}
#define PARSE(...) parse(&err, &first, (char *[]){ (char[]){ "try" }, __VA_ARGS__, NULL })

static void test_args__options_may_stand_anywhere_and_lists_repeat(void **state)
{
    struct nk_error err = { 0 };
    int first = 0;

    (void)state;
    list.n = 0;
    assert_int_equal(PARSE((char[]){ "FILE" }, (char[]){ "-n" }, (char[]){ "7" },
                           (char[]){ "--real=0.5" }, (char[]){ "--list" }, (char[]){ "a" },
                           (char[]){ "--list=b" }, (char[]){ "-f" }),
                     0);
    assert_int_equal(number, 7);
    assert_true(flag);
    assert_true(real > 0.49 && real < 0.51);
    assert_int_equal(list.n, 2);
    assert_string_equal(list.items[1], "b");
}

static void refused(struct nk_error *err, int rc, const char *names)
{
    assert_int_equal(rc, NK_E_INVALID);
    assert_string_equal(err->reason, "bad_argument");
    if (!strstr(err->msg, names))
        fail_msg("'%s' does not name '%s'", err->msg, names);
}

static void test_args__what_is_wrong_is_named(void **state)
{
    struct nk_error err = { 0 };
    int first;

    (void)state;
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "--nope" }), "--nope");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-z" }), "-z");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-n" }), "-n");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-n" }, (char[]){ "11" }), "11");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-n" }, (char[]){ "0" }), "1 to 10");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-n" }, (char[]){ "3x" }), "3x");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "-n" }, (char[]){ "99999999999999999999" }),
            "99999999999999999999");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "--real" }, (char[]){ "nan" }), "nan");
    refused(&err, PARSE((char[]){ "-f" }), "usage");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "G" }, (char[]){ "H" }), "'H'");
}

static void test_args__sizes_have_binary_units(void **state)
{
    struct nk_error err = { 0 };
    uint64_t n;
    char out[24];

    (void)state;
    assert_int_equal(nk_size_parse("4096", &n, &err), 0);
    assert_int_equal(n, 4096);
    assert_int_equal(nk_size_parse("64K", &n, &err), 0);
    assert_int_equal(n, 65536);
    assert_int_equal(nk_size_parse("1.5GiB", &n, &err), 0);
    assert_int_equal(n, 3ull << 29);
    assert_int_equal(nk_size_parse("", &n, &err), NK_E_INVALID);
    assert_int_equal(nk_size_parse("-1", &n, &err), NK_E_INVALID);
    assert_int_equal(nk_size_parse("5 apples", &n, &err), NK_E_INVALID);
    assert_int_equal(nk_size_parse("1e30T", &n, &err), NK_E_INVALID);
    assert_string_equal(nk_size_format(out, 1536), "1.5 KiB");
    assert_string_equal(nk_size_format(out, 17), "17 B");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_args__options_may_stand_anywhere_and_lists_repeat),
        cmocka_unit_test(test_args__what_is_wrong_is_named),
        cmocka_unit_test(test_args__sizes_have_binary_units),
    };

    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
