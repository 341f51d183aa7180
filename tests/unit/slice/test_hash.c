/* What is remembered of a model's hash, and when. */
#include "slice/hash_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"
#include "slice/model_int.h"

enum { CHANGED_S = 1700000000 }; /* when the model was last written to, as its file says */

static char dir[64], path[128], source[4096];

static void write_model(void)
{
    const struct timespec times[2] = { { .tv_sec = CHANGED_S }, { .tv_sec = CHANGED_S } };
    struct nk_buf bytes = NK_BUF_INIT(1 << 24);

    assert_int_equal(nk_file_read(source, 1 << 24, &bytes, NULL), 0);
    assert_int_equal(nk_file_write(path, bytes.data, bytes.size, NULL), 0);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    nk_buf_release(&bytes);
}

static nk_model *open_model(void)
{
    struct nk_error err = { 0 };
    nk_model *m;

    if (nk_model_open(&m, path, &err))
        fail_msg("%s", err.msg);
    return m;
}

/* Hashes the model at a time, as a program that was just started. */
static void hash_at(int64_t now_s, char hex[NK_SHA256_HEX])
{
    nk_model *m = open_model();

    assert_int_equal(nk__model_hash(m, now_s, hex, NULL), 0);
    nk_model_close(m);
}

/* Puts another hash where the model's is remembered; false: it is not remembered. */
static bool plant(const char *hex)
{
    char command[512];

    snprintf(command, sizeof command,
             "set -- '%s'/nakshatra/hashes/*; [ -f \"$1\" ] && printf %s >\"$1\"", dir, hex);
    return system(command) == 0;
}

static int reset(void **state)
{
    char command[256];

    (void)state;
    write_model();
    snprintf(command, sizeof command, "rm -rf '%s/nakshatra'", dir);
    return system(command);
}

static void test_hash__is_read_from_the_cache_and_not_from_the_model(void **state)
{
    static const char other[] = "00000000000000000000000000000000"
                                "00000000000000000000000000000000";
    char first[NK_SHA256_HEX], second[NK_SHA256_HEX];

    (void)state;
    hash_at(CHANGED_S + 1000, first);
    assert_true(nk__is_sha256(first));
    assert_true(plant(other));
    hash_at(CHANGED_S + 1000, second);
    assert_string_equal(second, other);
    assert_true(plant("not-a-hash"));
    hash_at(CHANGED_S + 1000, second);
    assert_string_equal(second, first);
}

/* A file that was written to just now may be written to again without a new time of change. */
static void test_hash__is_not_remembered_of_a_model_that_was_written_to_just_now(void **state)
{
    char hex[NK_SHA256_HEX];

    (void)state;
    hash_at(CHANGED_S, hex);
    assert_false(plant(hex));
    hash_at(CHANGED_S + 2, hex);
    assert_false(plant(hex));
    hash_at(CHANGED_S - 1000, hex); /* the file's clock is another one */
    assert_false(plant(hex));
    hash_at(CHANGED_S + 3, hex);
    assert_true(plant(hex));
}

/* ... and what is remembered is not believed of one either. */
static void test_hash__of_a_model_that_was_written_to_just_now_is_computed(void **state)
{
    static const char other[] = "00000000000000000000000000000000"
                                "00000000000000000000000000000000";
    char first[NK_SHA256_HEX], second[NK_SHA256_HEX];

    (void)state;
    hash_at(CHANGED_S + 3, first);
    assert_true(plant(other));
    hash_at(CHANGED_S + 2, second);
    assert_string_equal(second, first);
}

static void test_hash__of_a_file_that_changes_meanwhile_is_an_error(void **state)
{
    const struct timespec later[2] = { { .tv_sec = CHANGED_S + 1 }, { .tv_sec = CHANGED_S + 1 } };
    nk_model *m = open_model();
    struct nk_error err = { 0 };
    char hex[NK_SHA256_HEX];

    (void)state;
    assert_int_equal(nk_model_check_unchanged(m, &err), 0);
    assert_int_equal(utimensat(AT_FDCWD, path, later, 0), 0);
    assert_int_equal(nk__model_hash(m, CHANGED_S + 1000, hex, &err), NK_E_ABORTED);
    assert_string_equal(err.reason, "file_changed");
    assert_false(plant("0")); /* nothing was remembered */
    nk_model_close(m);
}

static void test_hash__sha256_is_64_hex_digits(void **state)
{
    char text[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0";

    (void)state;
    assert_false(nk__is_sha256(text));
    text[64] = '\0';
    assert_true(nk__is_sha256(text));
    text[5] = 'F';
    assert_false(nk__is_sha256(text));
    text[5] = '5';
    text[63] = '\0';
    assert_false(nk__is_sha256(text));
    assert_false(nk__is_sha256(""));
}

static int setup(void **state)
{
    const char *models = getenv("NK_MODELS");

    (void)state;
    snprintf(source, sizeof source, "%s/kjv-tiny.gguf", models ? models : "models");
    snprintf(dir, sizeof dir, "/tmp/nk-test-hash-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    return setenv("XDG_CACHE_HOME", dir, 1);
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_hash__is_read_from_the_cache_and_not_from_the_model, reset),
        cmocka_unit_test_setup(test_hash__is_not_remembered_of_a_model_that_was_written_to_just_now,
                               reset),
        cmocka_unit_test_setup(test_hash__of_a_model_that_was_written_to_just_now_is_computed,
                               reset),
        cmocka_unit_test_setup(test_hash__of_a_file_that_changes_meanwhile_is_an_error, reset),
        cmocka_unit_test(test_hash__sha256_is_64_hex_digits),
    };

    return cmocka_run_group_tests_name("hash", tests, setup, teardown);
}
