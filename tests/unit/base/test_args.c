#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/args.h"

static bool flag;
static const char *text;
static int64_t number;
static double real;
static struct nk_arg_list list;

static const struct nk_arg args[] = {
    NK_OPT_FLAG("flag", 'f', &flag, "a flag"),
    NK_OPT_STRING("text", 0, &text, "T", "a text"),
    NK_OPT_INT("number", 'n', &number, "N", 1, 10, "a number"),
    NK_OPT_FLOAT("real", 0, &real, "R", 0, 2, "a real"),
    NK_OPT_LIST("list", 0, &list, "X", "a list"),
    NK_OPT_FLAG("no-text", 0, &flag, "another flag"),
    NK_OPT_FLAG("no-number", 0, &flag, "one more"),
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
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "--txet=x" }), "did you mean --text?");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "--no" }), "--no is short for 2");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "--flag=1" }), "--flag takes no value");
    refused(&err, PARSE((char[]){ "-f" }), "usage");
    refused(&err, PARSE((char[]){ "F" }, (char[]){ "G" }, (char[]){ "H" }), "'H'");
}

/* What nk_args_parse prints, with its answer in *rc. */
static const char *printed(char **argv, int *rc)
{
    static char out[4096];
    struct nk_error err = { 0 };
    int first, old = dup(1), fds[2];
    ssize_t n;

    assert_int_equal(pipe(fds), 0);
    fflush(stdout);
    dup2(fds[1], 1);
    *rc = parse(&err, &first, argv);
    fflush(stdout);
    dup2(old, 1);
    close(old);
    close(fds[1]);
    n = read(fds[0], out, sizeof out - 1); /* less than a pipe holds */
    out[n > 0 ? n : 0] = '\0';
    close(fds[0]);
    return out;
}
#define PRINTED(...) printed((char *[]){ (char[]){ "try" }, __VA_ARGS__, NULL }, &rc)

static void test_args__help_tells_what_dest_holds_before_the_parsing(void **state)
{
    const char *help;
    int rc;

    (void)state;
    text = "by default";
    number = 7;
    real = (double)0.95f;
    help = PRINTED((char[]){ "-n" }, (char[]){ "3" }, (char[]){ "--text=x" }, (char[]){ "--help" });
    assert_int_equal(rc, 1);
    assert_int_equal(number, 7);
    assert_non_null(strstr(help, "usage: nakshatra try FILE\n\ntries.\n"));
    assert_non_null(strstr(help, "  -f, --flag                  a flag\n"));
    assert_non_null(strstr(help, "      --text T                a text (by default)\n"));
    assert_non_null(strstr(help, "  -n, --number N              a number (7)\n"));
    assert_non_null(strstr(help, "      --real R                a real (0.95)\n"));
    assert_non_null(strstr(help, "      --list X                a list\n"));
    /* What is not given has no default. */
    text = NULL;
    number = 0;
    help = PRINTED((char[]){ "-h" });
    assert_int_equal(rc, 1);
    assert_non_null(strstr(help, "      --text T                a text\n"));
    assert_non_null(strstr(help, "  -n, --number N              a number\n"));
}

static void test_args__help_comes_also_where_a_value_is_missing_or_bad(void **state)
{
    int rc;

    (void)state;
    PRINTED((char[]){ "-h" }, (char[]){ "--nope" });
    assert_int_equal(rc, 1);
    PRINTED((char[]){ "-n" }, (char[]){ "99" }, (char[]){ "-h" });
    assert_int_equal(rc, 1);
}

static void test_word__the_nearest_is_what_was_meant_if_any_is_near(void **state)
{
    static const struct {
        const char *word, *meant;
    } cases[] = {
        { "wroker", "worker" },
        { "works", "worker" },
        { "verfy", "verify" },
        { "sever", "serve" },
        { "rum", "run" },
        { "upp", "up" },
        { "p", "up" },
        { "x", NULL },
        { "benchmark", NULL },
        { "describe", NULL },
        { "", NULL },
        { "inspct", "inspect" },
        { "spilt", "split" },
        { "WORKER", NULL },
        { "a-word-of-more-than-thirty-two-letters", NULL },
    };
    static const char *const words[] = { "inspect", "split", "verify", "worker",
                                         "run",     "serve", "up" };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *near = NULL;

        for (size_t k = 0; k < sizeof words / sizeof words[0]; k++)
            near = nk_word_nearer(cases[i].word, near, words[k]);
        if (!near != !cases[i].meant || (near && strcmp(near, cases[i].meant) != 0))
            fail_msg("'%s' is near '%s'; expected '%s'", cases[i].word, near ? near : "nothing",
                     cases[i].meant ? cases[i].meant : "nothing");
    }
}

static void test_args__sizes_have_binary_units(void **state)
{
    char out[24];

    (void)state;
    assert_string_equal(nk_size_format(out, 1536), "1.5 KiB");
    assert_string_equal(nk_size_format(out, 17), "17 B");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_args__options_may_stand_anywhere_and_lists_repeat),
        cmocka_unit_test(test_args__what_is_wrong_is_named),
        cmocka_unit_test(test_args__help_tells_what_dest_holds_before_the_parsing),
        cmocka_unit_test(test_args__help_comes_also_where_a_value_is_missing_or_bad),
        cmocka_unit_test(test_word__the_nearest_is_what_was_meant_if_any_is_near),
        cmocka_unit_test(test_args__sizes_have_binary_units),
    };

    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
