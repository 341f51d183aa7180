#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"

static int shell(struct nk_process *p, const char *script, struct nk_error *err)
{
    const char *argv[] = { "/bin/sh", "-c", script, NULL };

    memset(err, 0, sizeof *err);
    return nk_process_start(p, &(struct nk_process_opts){ .argv = argv, .capture_out = true }, err);
}

static void test_process__hands_out_lines_one_by_one_and_then_says_how_it_ended(void **state)
{
    struct nk_process p;
    struct nk_error err;
    char line[32];

    (void)state;
    assert_int_equal(shell(&p, "printf 'one\\ntwo\\n'; exit 3", &err), 0);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), 0);
    assert_string_equal(line, "one");
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), 0);
    assert_string_equal(line, "two");
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), NK_E_UNAVAILABLE);
    assert_string_equal(err.reason, "process_ended");
    assert_non_null(strstr(err.msg, "exit code 3"));
    assert_true(p.reaped);
    nk_process_stop(&p, 0);
}

static void test_process__a_line_that_does_not_come_is_a_timeout(void **state)
{
    struct nk_process p;
    struct nk_error err;
    char line[32];

    (void)state;
    assert_int_equal(shell(&p, "printf half; exec sleep 100", &err), 0);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 50, &err), NK_E_DEADLINE);
    assert_string_equal(err.reason, "timeout");
    assert_false(nk_process_wait(&p, 0));
    nk_process_stop(&p, 5000);
    assert_true(p.reaped && WIFSIGNALED(p.status) && WTERMSIG(p.status) == SIGTERM);
    assert_int_equal(p.out_fd, -1);
}

static void test_process__a_line_too_long_is_refused(void **state)
{
    struct nk_process p;
    struct nk_error err;
    char line[8];

    (void)state;
    assert_int_equal(
        shell(&p, "echo 123456789; echo next; yes aaaaaaaaaaaaaaa | tr -d '\\n'", &err), 0);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), NK_E_EXHAUSTED);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), 0);
    assert_string_equal(line, "next");
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), NK_E_EXHAUSTED);
    nk_process_stop(&p, 5000);
}

static void test_process__one_that_ignores_sigterm_is_killed(void **state)
{
    struct nk_process p;
    struct nk_error err;
    char line[32];

    (void)state;
    assert_int_equal(shell(&p, "trap '' TERM; echo ready; while :; do sleep 1; done", &err), 0);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), 0);
    nk_process_stop(&p, 100);
    assert_true(p.reaped && WIFSIGNALED(p.status) && WTERMSIG(p.status) == SIGKILL);
}

static void test_process__a_program_that_is_not_there_is_named(void **state)
{
    const char *argv[] = { "/nonexistent/program", NULL };
    struct nk_process p;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_process_start(&p, &(struct nk_process_opts){ .argv = argv }, &err),
                     NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "no_program");
    assert_non_null(strstr(err.msg, "/nonexistent/program"));
    assert_int_equal(p.pid, 0);
    nk_process_stop(&p, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void test_process__inherits_named_files_environment_and_no_ignored_signal(void **state)
{
    const char *argv[] = { "/bin/sh", "-c",
                           "read x <&$FD; echo \"$x $HOME $NEW\"; kill -PIPE $$; echo survived",
                           NULL };
    char fd_env[32], line[256];
    const char *env[] = { fd_env, "HOME=/elsewhere", "NEW=1", NULL };
    struct nk_process p;
    struct nk_error err;
    int fds[2], other[2];

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(pipe2(other, O_CLOEXEC), 0);
    snprintf(fd_env, sizeof fd_env, "FD=%d", fds[0]);
    assert_int_equal(write(fds[1], "hello\n", 6), 6);
    assert_int_equal(
        nk_process_start(
            &p,
            &(struct nk_process_opts){
                .argv = argv, .capture_out = true, .keep_fds = fds, .n_keep_fds = 1, .env = env },
            &err),
        0);
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), 0);
    assert_string_equal(line, "hello /elsewhere 1");
    assert_int_equal(nk_process_read_line(&p, line, sizeof line, 10000, &err), NK_E_UNAVAILABLE);
    assert_true(WIFSIGNALED(p.status) && WTERMSIG(p.status) == SIGPIPE);
    /* What is kept in the child is still closed on exec here. */
    assert_int_equal(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    nk_process_stop(&p, 0);
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        close(other[i]);
    }
}

static void test_process__dies_with_its_parent(void **state)
{
    /* A process in between starts the child, tells its pid and is killed. */
    int fds[2];
    pid_t between, grandchild = 0;

    (void)state;
    assert_int_equal(pipe(fds), 0);
    between = fork();
    if (between == 0) {
        struct nk_process p;
        struct nk_error err;

        if (shell(&p, "exec sleep 100", &err))
            _exit(1);
        if (write(fds[1], &p.pid, sizeof p.pid) != sizeof p.pid)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(fds[0], &grandchild, sizeof grandchild), sizeof grandchild);
    kill(between, SIGKILL);
    waitpid(between, NULL, 0);
    close(fds[0]);
    close(fds[1]);
    /* It is nobody's child now, so it is gone or a zombie until init reaps it. */
    for (int i = 0;; i++) {
        char path[64], text[256] = "";
        FILE *f;

        snprintf(path, sizeof path, "/proc/%d/stat", (int)grandchild);
        f = fopen(path, "r");
        if (!f)
            break;
        if (!fgets(text, sizeof text, f))
            text[0] = '\0';
        fclose(f);
        if (strstr(text, ") Z") || !text[0])
            break;
        assert_true(i < 30000); /* minutes */
        nk_sleep_ms(10);
    }
}

static void test_process__knows_its_own_path(void **state)
{
    char *path;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_process_self(&path, &err), 0);
    assert_int_equal(path[0], '/');
    assert_non_null(strstr(path, "process"));
    free(path);
}

static void test_process__output_goes_to_a_file_and_the_working_folder_is_set(void **state)
{
    char path[] = "/tmp/nk_process_XXXXXX", text[16] = "";
    const char *argv[] = { "/bin/sh", "-c", "pwd", NULL };
    struct nk_process_opts opts = { .argv = argv, .out_path = path, .cwd = "/" };
    struct nk_process p;
    struct nk_error err;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(nk_process_start(&p, &opts, &err), 0);
    assert_true(nk_process_wait(&p, 10000));
    nk_process_stop(&p, 0);
    assert_int_equal(read(fd, text, sizeof text - 1), 2);
    assert_string_equal(text, "/\n");
    close(fd);
    unlink(path);
}

static int refuse(void *arg)
{
    return *(int *)arg;
}

static void test_process__a_preparation_that_fails_ends_the_start(void **state)
{
    int number = EPERM;
    const char *argv[] = { "/bin/true", NULL };
    struct nk_process_opts opts = { .argv = argv, .in_child = refuse, .in_child_arg = &number };
    struct nk_process p;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_process_start(&p, &opts, &err), NK_E_UNAVAILABLE);
    assert_int_equal(err.sys, EPERM);
    assert_int_equal(p.pid, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_process__hands_out_lines_one_by_one_and_then_says_how_it_ended),
        cmocka_unit_test(test_process__a_line_that_does_not_come_is_a_timeout),
        cmocka_unit_test(test_process__a_line_too_long_is_refused),
        cmocka_unit_test(test_process__one_that_ignores_sigterm_is_killed),
        cmocka_unit_test(test_process__a_program_that_is_not_there_is_named),
        cmocka_unit_test(test_process__inherits_named_files_environment_and_no_ignored_signal),
        cmocka_unit_test(test_process__dies_with_its_parent),
        cmocka_unit_test(test_process__knows_its_own_path),
        cmocka_unit_test(test_process__output_goes_to_a_file_and_the_working_folder_is_set),
        cmocka_unit_test(test_process__a_preparation_that_fails_ends_the_start),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
