/* The trace file: one JSON object per line, whatever the worker is called and however many threads
 * write. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/trace.h"

enum { THREADS = 4, EVENTS = 500 };

static char dir[] = "/tmp/nk-test-trace-XXXXXX", path[64];

static void test_trace__an_event_is_a_line_of_json(void **state)
{
    char id[] = "at\"tic\\\n2", line[512];
    struct nk_trace *t;
    struct nk_error err;
    FILE *f;

    (void)state;
    assert_int_equal(nk_trace_open(&t, path, id, &err), 0);
    nk_trace_event(t, 18446744073709551615u, "received", "7f3a0b11", 12, 40, 1);
    nk_trace_event(t, 2, "sent", "-", 18446744073709551615u, 0, 64);
    nk_trace_close(t);
    f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_string_equal(line,
                        "{\"t\":18446744073709551615,\"ev\":\"received\",\"worker\":\"attic2\","
                        "\"session\":\"7f3a0b11\",\"step\":12,\"pos\":40,\"rows\":1}\n");
    assert_non_null(fgets(line, sizeof line, f));
    assert_string_equal(line, "{\"t\":2,\"ev\":\"sent\",\"worker\":\"attic2\",\"session\":\"-\","
                              "\"step\":18446744073709551615,\"pos\":0,\"rows\":64}\n");
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
}

static void test_trace__none_does_nothing(void **state)
{
    (void)state;
    nk_trace_event(NULL, 1, "sent", "x", 1, 1, 1);
    nk_trace_close(NULL);
}

static void test_trace__that_cannot_be_written_names_the_file(void **state)
{
    struct nk_trace *t;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_trace_open(&t, "/no/such/folder/t", "w", &err), NK_E_NOT_FOUND);
    assert_null(t);
    assert_non_null(strstr(err.msg, "/no/such/folder/t"));
    assert_int_equal(nk_trace_open(&t, dir, "w", &err), NK_E_DENIED); /* a folder */
    assert_string_equal(err.reason, "cannot_create");
}

static void *write_events(void *trace)
{
    for (int i = 0; i < EVENTS; i++)
        nk_trace_event(trace, 1, "computed", "abcdef01", (uint64_t)i, i, 1);
    return NULL;
}

static void test_trace__lines_of_several_threads_do_not_mix(void **state)
{
    pthread_t threads[THREADS];
    struct nk_trace *t;
    struct nk_error err;
    int n = 0, step, pos;
    char line[512];
    FILE *f;

    (void)state;
    assert_int_equal(nk_trace_open(&t, path, "w", &err), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_events, t), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    nk_trace_close(t);
    f = fopen(path, "r");
    assert_non_null(f);
    for (; fgets(line, sizeof line, f); n++) {
        assert_int_equal(
            sscanf(line,
                   "{\"t\":1,\"ev\":\"computed\",\"worker\":\"w\",\"session\":\"abcdef01\","
                   "\"step\":%d,\"pos\":%d,\"rows\":1}",
                   &step, &pos),
            2);
        assert_int_equal(step, pos);
        assert_int_equal(line[strlen(line) - 2], '}');
    }
    fclose(f);
    assert_int_equal(n, THREADS * EVENTS);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/trace", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trace__an_event_is_a_line_of_json),
        cmocka_unit_test(test_trace__none_does_nothing),
        cmocka_unit_test(test_trace__that_cannot_be_written_names_the_file),
        cmocka_unit_test(test_trace__lines_of_several_threads_do_not_mix),
    };

    return cmocka_run_group_tests_name("trace", tests, setup, teardown);
}
