#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/sha256.h"

static char dir[64];

static const char *in_dir(const char *name)
{
    static char path[256];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static int n_files(void)
{
    DIR *d = opendir(dir);
    int n = -2; /* . and .. */

    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "nk-file-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];

    (void)state;
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

static void test_file__only_regular_files_are_read(void **state)
{
    static const struct {
        const char *name, *what;
    } all[] = { { "pipe", "a pipe" }, { "link", "a pipe" }, { "folder", "a folder" } };
    struct nk_buf b = NK_BUF_INIT(100);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    assert_int_equal(symlink("pipe", in_dir("link")), 0);
    assert_int_equal(mkdir(in_dir("folder"), 0700), 0);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const char *path = in_dir(all[i].name);

        assert_int_equal(nk_file_read(path, 100, &b, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "not_a_file");
        assert_non_null(strstr(err.msg, all[i].what));
        assert_int_equal(nk_file_check(path, &err), NK_E_INVALID);
    }
    assert_int_equal(nk_file_read("/dev/zero", 100, &b, &err), NK_E_INVALID);
    assert_non_null(strstr(err.msg, "a device"));
    assert_int_equal(nk_file_read(in_dir("nothing"), 100, &b, &err), NK_E_NOT_FOUND);
    assert_int_equal(unlink(in_dir("pipe")) | unlink(in_dir("link")) | rmdir(in_dir("folder")), 0);
}

static void test_file__keys_are_their_owners_alone(void **state)
{
    static const struct {
        mode_t mode;
        bool ok;
    } all[] = { { 0600, true },  { 0400, true },  { 0700, true },  { 0640, false }, { 0620, false },
                { 0604, false }, { 0602, false }, { 0644, false }, { 0611, true } };
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_file_write(in_dir("key"), "secret", 6, NULL), 0);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct nk_buf b = NK_BUF_INIT(100);

        assert_int_equal(chmod(in_dir("key"), all[i].mode), 0);
        assert_int_equal(nk_file_read_secret(in_dir("key"), 100, &b, &err),
                         all[i].ok ? 0 : NK_E_DENIED);
        if (all[i].ok)
            assert_string_equal(nk_buf_str(&b), "secret");
        else {
            assert_string_equal(err.reason, "open_to_others");
            assert_non_null(strstr(err.msg, "chmod 600"));
        }
        nk_buf_release(&b);
    }
    assert_int_equal(unlink(in_dir("key")), 0);
}

static void test_file__appears_whole_or_not_at_all(void **state)
{
    struct nk_newfile f = NK_NEWFILE_INIT;
    struct nk_buf b = NK_BUF_INIT(100);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_newfile_open(&f, in_dir("a"), &err), 0);
    assert_int_equal(nk_newfile_write(&f, "hello", 5, &err), 0);
    assert_int_equal(access(in_dir("a"), F_OK), -1);
    nk_newfile_abort(&f);
    assert_int_equal(n_files(), 0);
    assert_int_equal(nk_file_write(in_dir("a"), "hello", 5, &err), 0);
    assert_int_equal(nk_file_write(in_dir("a"), "world", 5, &err), 0);
    assert_int_equal(n_files(), 1);
    assert_int_equal(nk_file_read(in_dir("a"), 100, &b, &err), 0);
    assert_string_equal(b.data, "world");
    nk_buf_release(&b);
}

static void test_file__a_full_disk_leaves_the_old_file_and_no_litter(void **state)
{
    struct rlimit old, small = { 1000, 1000 };
    struct nk_buf b = NK_BUF_INIT(100);
    struct nk_error err = { 0 };
    char big[5000];
    int rc;

    (void)state;
    memset(big, 'b', sizeof big);
    assert_int_equal(nk_file_write(in_dir("a"), "old", 3, &err), 0);
    /* A limit on the file's size stands in for a full disk: write(2) fails in the middle. */
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &small);
    rc = nk_file_write(in_dir("a"), big, sizeof big, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_true(rc < 0);
    assert_string_equal(err.reason, "no_space");
    assert_int_equal(n_files(), 1);
    assert_int_equal(nk_file_read(in_dir("a"), 100, &b, &err), 0);
    assert_string_equal(b.data, "old");
    nk_buf_release(&b);
}

static void test_file__what_a_killed_process_left_is_removed_and_a_living_ones_is_not(void **state)
{
    struct nk_error err = { 0 };
    pid_t dead = fork();
    char name[64];
    int n;

    (void)state;
    if (dead == 0)
        _exit(0);
    waitpid(dead, NULL, 0);
    n = n_files();
    snprintf(name, sizeof name, ".b.%ld.tmp", (long)dead);
    assert_int_equal(nk_file_write(in_dir(name), "half", 4, &err), 0);
    snprintf(name, sizeof name, ".b.%ld.tmp", (long)getppid());
    assert_int_equal(nk_file_write(in_dir(name), "half", 4, &err), 0);
    assert_int_equal(nk_file_write(in_dir(".b.x.tmp"), "not ours", 8, &err), 0);
    assert_int_equal(n_files(), n + 3);
    assert_int_equal(nk_file_write(in_dir("b"), "whole", 5, &err), 0);
    assert_int_equal(n_files(), n + 3); /* one gone, one new */
    assert_int_equal(access(in_dir(name), F_OK), 0);
    unlink(in_dir(name));
    unlink(in_dir(".b.x.tmp"));
    unlink(in_dir("b"));
}

static void test_file__what_cannot_be_read_or_made_is_named(void **state)
{
    struct nk_buf b = NK_BUF_INIT(100);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_file_read(in_dir("nope"), 100, &b, &err), NK_E_NOT_FOUND);
    assert_true(strstr(err.msg, "nope") != NULL);
    assert_int_equal(nk_file_write(in_dir("no/such/folder"), "x", 1, &err), NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "cannot_create");
    assert_int_equal(nk_file_write(in_dir("big"), "0123456789", 10, &err), 0);
    assert_int_equal(nk_file_read(in_dir("big"), 9, &b, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_int_equal(nk_dir_make(in_dir("big/sub"), &err), NK_E_DENIED);
    assert_int_equal(nk_dir_make(in_dir("x/y/z"), &err), 0);
    assert_int_equal(nk_dir_make(in_dir("x/y/z"), &err), 0);
}

static void test_file__the_cache_folder_follows_xdg(void **state)
{
    struct nk_error err = { 0 };
    char cwd[4096], want[4400], *path;

    (void)state;
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(want, sizeof want, "%s/%s", cwd, dir);
    setenv("XDG_CACHE_HOME", want, 1);
    assert_int_equal(nk_cache_dir(&path, "slices", &err), 0);
    snprintf(want, sizeof want, "%s/%s/nakshatra/slices", cwd, dir);
    assert_string_equal(path, want);
    assert_int_equal(access(path, W_OK), 0);
    free(path);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_int_equal(nk_cache_dir(&path, NULL, &err), NK_E_PRECONDITION);
    assert_null(path);
}

static void test_sha256__equals_the_standards_vector(void **state)
{
    nk_sha256 *h = nk_sha256_new();
    char hex[NK_SHA256_HEX];

    (void)state;
    /* FIPS 180-2, appendix B.1 */
    nk_sha256_add(h, "a", 1);
    nk_sha256_add(h, "bc", 2);
    nk_sha256_finish(h, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_file__only_regular_files_are_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file__keys_are_their_owners_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file__appears_whole_or_not_at_all, setup, teardown),
        cmocka_unit_test_setup_teardown(
            test_file__what_a_killed_process_left_is_removed_and_a_living_ones_is_not, setup,
            teardown),
        cmocka_unit_test_setup_teardown(test_file__a_full_disk_leaves_the_old_file_and_no_litter,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_file__what_cannot_be_read_or_made_is_named, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_file__the_cache_folder_follows_xdg, setup, teardown),
        cmocka_unit_test(test_sha256__equals_the_standards_vector),
    };

    return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
