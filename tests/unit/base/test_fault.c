/* What a process says when a part of a mapped file is gone. */
#include "base/fault.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { EXIT_CODE = 7, SIZE = 1 << 20 };

static char dir[64];

/* In a process of its own, whose standard error is returned. */
static int in_child(void (*body)(const char *path), const char *path, char *text, size_t size)
{
    int fds[2], status;
    size_t n = 0;
    ssize_t got;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        struct rlimit no_core = { 0, 0 };

        setrlimit(RLIMIT_CORE, &no_core);
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        nk_fault_init(EXIT_CODE);
        body(path);
        _exit(0);
    }
    close(fds[1]);
    while ((got = read(fds[0], text + n, size - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void read_what_is_gone(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    volatile const char *map;

    if (fd < 0 || ftruncate(fd, SIZE) < 0)
        _exit(1);
    map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (map[SIZE - 1] != 0 || ftruncate(fd, 100) < 0)
        _exit(2);
    _exit(map[SIZE / 2] ? 3 : 4);
}

static void test_fault__names_the_file_that_was_made_shorter(void **state)
{
    char path[256], text[1024];
    int status;

    (void)state;
    /* A long path: the longest line of /proc/self/maps is no problem. */
    snprintf(path, sizeof path, "%s/%0120d.gguf", dir, 1);
    status = in_child(read_what_is_gone, path, text, sizeof text);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_CODE);
    assert_non_null(strstr(text, path));
    assert_non_null(strstr(text, "made shorter"));
    assert_non_null(strchr(text, '\n'));
    assert_int_equal(strchr(text, '\n')[1], '\0'); /* one line */
}

static void send_it(const char *path)
{
    (void)path;
    raise(SIGBUS);
}

static void test_fault__another_one_is_what_it_always_was(void **state)
{
    char text[1024];
    int status;

    (void)state;
    status = in_child(send_it, "", text, sizeof text);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
    assert_string_equal(text, "");
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/nk-fault-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
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
        cmocka_unit_test(test_fault__names_the_file_that_was_made_shorter),
        cmocka_unit_test(test_fault__another_one_is_what_it_always_was),
    };

    return cmocka_run_group_tests_name("fault", tests, setup, teardown);
}
