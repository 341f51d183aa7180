#include "slice/layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "slice/write_int.h"

static char dir[64];

static nk_model *open_model(void)
{
    const char *models = getenv("NK_MODELS");
    struct nk_error err = { 0 };
    char path[4096];
    nk_model *m;

    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    if (nk_model_open(&m, path, &err))
        fail_msg("%s", err.msg);
    return m;
}

static ino_t inode(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return st.st_ino;
}

static void test_cached__a_slice_is_written_once(void **state)
{
    nk_model *m = open_model(), *slice;
    struct nk_error err = { 0 };
    char *a, *b, *c;
    ino_t first;

    (void)state;
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 2, 5 }, NK_VERIFY_ONCE, &a, &err), 0);
    first = inode(a);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 2, 5 }, NK_VERIFY_ONCE, &b, &err), 0);
    assert_string_equal(a, b);
    assert_int_equal(inode(b), first);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 5, 8 }, NK_VERIFY_ONCE, &c, &err), 0);
    assert_string_not_equal(a, c);
    assert_int_equal(nk_model_open(&slice, a, &err), 0);
    assert_true(nk_model_info(slice)->is_slice);
    assert_int_equal(nk_model_info(slice)->layer_begin, 2);
    assert_int_equal(nk_model_info(slice)->layer_end, 5);
    nk_model_close(slice);
    nk_model_close(m);
    free(a);
    free(b);
    free(c);
}

static void test_cached__what_is_not_the_slice_is_replaced(void **state)
{
    nk_model *m = open_model();
    struct nk_error err = { 0 };
    char *a, *b;

    (void)state;
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 0, 3 }, NK_VERIFY_ONCE, &a, &err), 0);
    assert_int_equal(truncate(a, 1000), 0);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 0, 3 }, NK_VERIFY_ONCE, &b, &err), 0);
    assert_true(access(b, R_OK) == 0);
    free(b);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 3, 8 }, NK_VERIFY_ONCE, &b, &err), 0);
    assert_int_equal(rename(b, a), 0); /* another slice under this one's name */
    free(b);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 0, 3 }, NK_VERIFY_ONCE, &b, &err), 0);
    nk_model_close(m);
    assert_int_equal(nk_model_open(&m, b, &err), 0);
    assert_int_equal(nk_model_info(m)->layer_begin, 0);
    nk_model_close(m);
    free(a);
    free(b);
}

static void test_cached__vocabulary_too(void **state)
{
    nk_model *m = open_model();
    struct nk_error err = { 0 };
    char *a, *b;
    ino_t first;

    (void)state;
    assert_int_equal(nk_vocab_cached(m, NK_VERIFY_ONCE, &a, &err), 0);
    first = inode(a);
    assert_int_equal(nk_vocab_cached(m, NK_VERIFY_ONCE, &b, &err), 0);
    assert_int_equal(inode(b), first);
    nk_model_close(m);
    free(a);
    free(b);
}

static void test_cached__refuses_what_cannot_be(void **state)
{
    nk_model *m = open_model(), *slice;
    struct nk_error err = { 0 };
    char *path, *none;

    (void)state;
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 5, 9 }, NK_VERIFY_ONCE, &none, &err),
                     NK_E_INVALID);
    assert_null(none);
    assert_int_equal(nk_slice_cached(m, (struct nk_range){ 0, 2 }, NK_VERIFY_ONCE, &path, &err), 0);
    assert_int_equal(nk_model_open(&slice, path, &err), 0);
    assert_int_equal(nk_slice_cached(slice, (struct nk_range){ 0, 2 }, NK_VERIFY_ONCE, &none, &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "not_a_model");
    assert_int_equal(nk_vocab_cached(slice, NK_VERIFY_ONCE, &none, &err), NK_E_INVALID);
    assert_null(none);
    nk_model_close(slice);
    nk_model_close(m);
    free(path);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/nk-cached-XXXXXX");
    return !mkdtemp(dir) || setenv("XDG_CACHE_HOME", dir, 1);
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* Before the first of them is cut, and for those that are not there alone. */
static void test_cached__what_has_no_room_on_the_disk_is_told_before(void **state)
{
    static const struct nk_range ranges[] = { { 0, 1 }, { 1, 4 }, { 4, 8 } };
    nk_model *m = open_model();
    struct nk_error err = { 0 };
    char hash[NK_SHA256_HEX], *path;
    uint64_t all = 0, bytes;

    (void)state;
    assert_int_equal(nk_model_hash(m, hash, &err), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nk__slice_bytes(m, ranges[i], &bytes, &err), 0);
        all += bytes;
    }
    assert_int_equal(nk_slice_cache_room(m, ranges, 3, &err), 0);
    assert_int_equal(nk__cache_room(m, ranges, 3, all, &err), 0);
    assert_int_equal(nk__cache_room(m, ranges, 3, all - 1, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "no_space");
    assert_non_null(strstr(err.msg, "MiB are free there"));
    assert_int_equal(nk_slice_cached(m, ranges[2], NK_VERIFY_ONCE, &path, &err), 0);
    free(path);
    assert_int_equal(nk__cache_room(m, ranges, 3, all - bytes, &err), 0);
    assert_int_equal(nk__cache_room(m, ranges, 3, all - bytes - 1, &err), NK_E_EXHAUSTED);
    nk_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cached__a_slice_is_written_once),
        cmocka_unit_test(test_cached__what_is_not_the_slice_is_replaced),
        cmocka_unit_test(test_cached__vocabulary_too),
        cmocka_unit_test(test_cached__refuses_what_cannot_be),
        cmocka_unit_test(test_cached__what_has_no_room_on_the_disk_is_told_before),
    };

    return cmocka_run_group_tests_name("cached", tests, setup, teardown);
}
