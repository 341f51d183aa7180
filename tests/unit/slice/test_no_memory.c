/* Models opened, cut and written when memory runs out (no_memory.h). */
#include "unit/no_memory.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "slice/slice.h"
#include "slice/write_int.h"

static char model_path[4096];
static const char sha256[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static int open_model(void *arg, struct nk_error *err)
{
    nk_model *m;
    int rc = nk_model_open(&m, model_path, err);

    (void)arg;
    assert_true(!rc == !!m);
    nk_model_close(m);
    return rc;
}

static void test_model__opening(void **state)
{
    (void)state;
    each_allocation_refused(open_model, NULL, 8);
}

static int balance(void *m, struct nk_error *err)
{
    struct nk_range ranges[3];

    return nk_ranges_balance(m, 3, ranges, err);
}

static int write_slice(void *m, struct nk_error *err)
{
    char digest[NK_SHA256_HEX];
    int rc = nk_slice_write(m, (struct nk_range){ 2, 5 }, sha256, "no-memory.gguf", digest, err);

    if (rc)
        assert_int_not_equal(access("no-memory.gguf", F_OK), 0);
    else
        unlink("no-memory.gguf");
    return rc;
}

static int write_vocab(void *m, struct nk_error *err)
{
    char digest[NK_SHA256_HEX];
    int rc = nk__slice_write(m, (struct nk_range){ 0, 0 }, sha256, "no-memory.gguf", digest, NULL,
                             NULL, NULL, err);

    if (rc)
        assert_int_not_equal(access("no-memory.gguf", F_OK), 0);
    else
        unlink("no-memory.gguf");
    return rc;
}

static int map_embd(void *m, struct nk_error *err)
{
    nk_embd *e;
    int rc = nk_embd_open(&e, m, false, err);

    assert_true(!rc == !!e);
    nk_embd_close(e);
    return rc;
}

static int copy_embd(void *m, struct nk_error *err)
{
    nk_embd *e;
    int rc = nk_embd_open(&e, m, true, err);

    assert_true(!rc == !!e);
    nk_embd_close(e);
    return rc;
}

static int check_file(void *path, struct nk_error *err)
{
    return nk_slice_check_file(path, NK_VERIFY_ALWAYS, NULL, err);
}

/* What failed may leave whole files behind, and a list of them, as when it is interrupted. */
static int split(void *m, struct nk_error *err)
{
    static const char *const names[] = { "kjv-tiny.000-003.gguf", "kjv-tiny.003-008.gguf",
                                         "kjv-tiny.vocab.gguf", ".kjv-tiny.partial.json",
                                         "manifest.json" };
    const struct nk_range ranges[] = { { 0, 3 }, { 3, 8 } };
    struct nk_manifest *manifest;
    int rc = nk_split(m, ranges, 2, "no-memory", &manifest, err);

    assert_true(!rc == !!manifest);
    if (rc)
        assert_int_not_equal(access("no-memory/manifest.json", F_OK), 0);
    free(manifest);
    for (int i = 0; i < 5; i++) {
        char path[64];

        snprintf(path, sizeof path, "no-memory/%s", names[i]);
        unlink(path);
    }
    if (access("no-memory", F_OK) == 0)
        assert_int_equal(rmdir("no-memory"), 0); /* no temporary files */
    return rc;
}

static void with_model(no_memory_op *op, long at_least)
{
    struct nk_error err = { 0 };
    char hash[NK_SHA256_HEX];
    nk_model *m;

    if (nk_model_open(&m, model_path, &err))
        fail_msg("%s", err.msg);
    /* Remembered by m from here on; where hashes are kept for other runs, a failure is none. */
    assert_int_equal(nk_model_hash(m, hash, &err), 0);
    each_allocation_refused(op, m, at_least);
    nk_model_close(m);
}

static void test_ranges__balancing(void **state)
{
    (void)state;
    with_model(balance, 3);
}

static void test_slice__is_complete_or_not_there(void **state)
{
    (void)state;
    with_model(write_slice, 8);
    with_model(write_vocab, 6);
}

static void test_embd__mapping(void **state)
{
    (void)state;
    with_model(map_embd, 1);
    with_model(copy_embd, 2);
}

static void test_check__says_that_there_is_no_memory_not_that_it_is_damaged(void **state)
{
    static char path[] = "no-memory-check.gguf";
    struct nk_error err = { 0 };
    nk_model *m;

    (void)state;
    assert_int_equal(nk_model_open(&m, model_path, &err), 0);
    assert_int_equal(nk_slice_write(m, (struct nk_range){ 2, 5 }, sha256, path, NULL, &err), 0);
    nk_model_close(m);
    each_allocation_refused(check_file, path, 6);
    unlink(path);
}

static void test_split__no_manifest_and_no_temporary_file(void **state)
{
    (void)state;
    with_model(split, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model__opening),
        cmocka_unit_test(test_ranges__balancing),
        cmocka_unit_test(test_slice__is_complete_or_not_there),
        cmocka_unit_test(test_embd__mapping),
        cmocka_unit_test(test_check__says_that_there_is_no_memory_not_that_it_is_damaged),
        cmocka_unit_test(test_split__no_manifest_and_no_temporary_file),
    };
    const char *models = getenv("NK_MODELS");
    char dir[] = "nk-no-memory-XXXXXX";
    int rc;

    if (!realpath(models ? models : "models", model_path) || !mkdtemp(dir) || chdir(dir))
        return 1;
    strncat(model_path, "/kjv-tiny.gguf", sizeof model_path - strlen(model_path) - 1);
    setenv("XDG_CACHE_HOME", "/dev/null", 1); /* no hash is kept: every run is the same */
    rc = cmocka_run_group_tests_name("no_memory", tests, NULL, NULL);
    if (chdir("..") || rmdir(dir))
        return 1;
    return rc;
}
