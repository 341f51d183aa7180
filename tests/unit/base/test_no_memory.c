/* Buffers, arrays, files and child processes when memory runs out (no_memory.h). */
#include "unit/no_memory.h"

#include <stdio.h>
#include <unistd.h>

#include "base/array.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/process.h"

static int fill(void *arg, struct nk_error *err)
{
    struct nk_buf b = NK_BUF_INIT(1 << 16);
    size_t size, before = 0;
    int rc = 0;

    (void)arg;
    for (int i = 0; i < 1000 && !rc; i++) {
        before = b.size;
        rc = nk_buf_addf(&b, err, "%d bottles, ", i);
    }
    if (rc) { /* what was there still is */
        assert_int_equal(b.size, before);
        assert_int_equal(strlen(nk_buf_str(&b)), before);
        nk_buf_release(&b);
        return rc;
    }
    free(nk_buf_take(&b, &size));
    return 0;
}

static void test_buf__refused_growth_leaves_it_as_it_was(void **state)
{
    (void)state;
    each_allocation_refused(fill, NULL, 5);
}

static int take_nothing(void *arg, struct nk_error *err)
{
    struct nk_buf b = NK_BUF_INIT(16);
    char *text = nk_buf_take(&b, NULL);

    (void)arg;
    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    free(text);
    return 0;
}

static void test_buf__taking_nothing_is_null_when_there_is_no_memory(void **state)
{
    (void)state;
    each_allocation_refused(take_nothing, NULL, 1);
}

static int grow(void *arg, struct nk_error *err)
{
    size_t capacity = 0, n = 0;
    size_t *a = NULL;
    int rc = 0;

    (void)arg;
    while (n < 200 && !(rc = nk_array_grow(a, capacity, n + 1, 1000, err))) {
        a[n] = n;
        n++;
    }
    assert_true(n <= capacity);
    for (size_t i = 0; i < n; i++) /* what was there still is */
        assert_int_equal(a[i], i);
    free(a);
    return rc;
}

static void test_array__refused_growth_leaves_it_as_it_was(void **state)
{
    (void)state;
    each_allocation_refused(grow, NULL, 5);
}

static int write_file(void *dir, struct nk_error *err)
{
    char path[256];
    int rc;

    snprintf(path, sizeof path, "%s/file", (char *)dir);
    rc = nk_file_write(path, "text", 4, err);
    if (rc)
        assert_int_not_equal(access(path, F_OK), 0);
    else
        unlink(path);
    return rc;
}

static void test_file__is_complete_or_not_there(void **state)
{
    char dir[] = "nk-no-memory-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    each_allocation_refused(write_file, dir, 4);
    assert_int_equal(rmdir(dir), 0); /* and no temporary file either */
}

static int read_file(void *path, struct nk_error *err)
{
    struct nk_buf b;
    int rc = nk_file_read(path, 1 << 20, &b, err);

    if (!rc)
        nk_buf_release(&b);
    return rc;
}

static void test_file__reading(void **state)
{
    (void)state;
    each_allocation_refused(read_file, (void *)(uintptr_t) "/proc/self/status", 1);
}

static int cache_dir(void *arg, struct nk_error *err)
{
    char *path;
    int rc = nk_cache_dir(&path, "a/b", err);

    (void)arg;
    assert_true(!rc == !!path);
    free(path);
    return rc;
}

static void test_file__the_cache_folder(void **state)
{
    char dir[] = "nk-no-memory-XXXXXX", full[4096], *cwd = getcwd(NULL, 0);

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(full, sizeof full, "%s/%s", cwd, dir);
    setenv("XDG_CACHE_HOME", full, 1);
    each_allocation_refused(cache_dir, NULL, 2);
    for (const char *const *sub =
             (const char *const[]){ "nakshatra/a/b", "nakshatra/a", "nakshatra", "", NULL };
         *sub; sub++) {
        snprintf(full, sizeof full, "%s/%s/%s", cwd, dir, *sub);
        assert_int_equal(rmdir(full), 0);
    }
    free(cwd);
}

static int start(void *arg, struct nk_error *err)
{
    const char *const argv[] = { "/bin/true", NULL };
    struct nk_process p = NK_PROCESS_INIT;
    int rc =
        nk_process_start(&p, &(struct nk_process_opts){ .argv = argv, .capture_out = true }, err);

    (void)arg;
    if (rc == NK_E_UNAVAILABLE && strstr(err->msg, "Cannot allocate memory"))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "as any other system error");
    if (!rc) {
        assert_true(nk_process_wait(&p, 60000));
        nk_process_stop(&p, 0);
    }
    return rc;
}

static void test_process__is_not_started(void **state)
{
    (void)state;
    each_allocation_refused(start, NULL, 1);
}

static int self(void *arg, struct nk_error *err)
{
    char *path;
    int rc = nk_process_self(&path, err);

    (void)arg;
    free(path);
    return rc;
}

static void test_process__its_own_path(void **state)
{
    (void)state;
    each_allocation_refused(self, NULL, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf__refused_growth_leaves_it_as_it_was),
        cmocka_unit_test(test_buf__taking_nothing_is_null_when_there_is_no_memory),
        cmocka_unit_test(test_array__refused_growth_leaves_it_as_it_was),
        cmocka_unit_test(test_file__is_complete_or_not_there),
        cmocka_unit_test(test_file__reading),
        cmocka_unit_test(test_file__the_cache_folder),
        cmocka_unit_test(test_process__is_not_started),
        cmocka_unit_test(test_process__its_own_path),
    };

    return cmocka_run_group_tests_name("no_memory", tests, NULL, NULL);
}
