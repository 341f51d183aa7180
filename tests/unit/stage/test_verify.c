/* Splits of a model, made or given, against the whole one. */
#include "unit/stage/models.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include "base/file.h"
#include "stage/verify.h"

static const char *const cpu[] = { "CPU" };
static const struct nk_range halves[] = { { 0, 3 }, { 3, 8 } };

static struct nk_verify_opts verify_opts(const char *slices)
{
    struct nk_verify_opts o = {
        .script = { .n_tokens = 6, .n_steps = 2, .n_sequences = 2, .n_batch = 8 },
        .stage = nk_stage_opts_default(),
        .devices = cpu,
        .n_devices = 1,
        .slices = slices,
    };

    o.stage.n_threads = 1;
    return o;
}

static nk_model *open_model(void)
{
    struct nk_error err = { 0 };
    nk_model *m;

    use_kjv();
    if (nk_model_open(&m, model_path, &err))
        fail_msg("%s", err.msg);
    return m;
}

static void assert_exact(const struct nk_verify_result *r, int n_stages)
{
    assert_int_equal(r->n_stages, n_stages);
    assert_true(r->n_runs > 0 && r->difference.n_rows > 0);
    assert_int_equal(r->difference.n_identical, r->difference.n_rows);
    assert_true(r->on_cpu);
    for (int i = 0; i < n_stages; i++)
        assert_string_equal(r->devices[i], "CPU");
}

/* How many files and folders the folder for slices holds, and those in it. */
static int left_over(void)
{
    char command[256];
    FILE *f;
    int n = -1;

    snprintf(command, sizeof command, "find '%s/nakshatra/verify' -mindepth 1 | wc -l", dir);
    f = popen(command, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

static void test_verify__made_slices_are_the_model_and_leave_nothing(void **state)
{
    static const struct nk_range thirds[] = { { 0, 2 }, { 2, 5 }, { 5, 8 } };
    struct nk_verify_opts o = verify_opts(NULL);
    struct nk_verify_result r;
    struct nk_error err = { 0 };
    nk_model *m = open_model();
    struct nk_stage_info whole;
    nk_verify *v;
    int n;

    (void)state;
    assert_int_equal(nk_verify_new(&v, m, &o, &err), 0);
    assert_null(nk_verify_slices(v, &n));
    assert_int_equal(n, 0);
    assert_int_equal(nk_verify_whole(v, &whole, &err), 0);
    assert_true(whole.llama_version[0]);
    assert_int_equal(nk_verify_split(v, halves, 2, &r, &err), 0);
    assert_exact(&r, 2);
    assert_int_equal(nk_verify_split(v, thirds, 3, &r, &err), 0);
    assert_exact(&r, 3);
    assert_int_equal(left_over(), 1); /* the folder */
    nk_verify_free(v);
    assert_int_equal(left_over(), 0);
    nk_model_close(m);
}

/* A killed process cannot: the next one does it. */
static void test_verify__what_a_killed_process_left_is_removed(void **state)
{
    struct nk_verify_opts o = verify_opts(NULL);
    struct nk_error err = { 0 };
    nk_model *m = open_model();
    char path[256], alive[256];
    pid_t pid = fork();
    nk_verify *v;

    (void)state;
    if (pid == 0)
        _exit(0);
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    snprintf(path, sizeof path, "%s/nakshatra/verify/%ld", dir, (long)pid);
    assert_int_equal(nk_dir_make(path, &err), 0);
    strcat(path, "/000-003.gguf");
    assert_int_equal(nk_file_write(path, "slice", 5, &err), 0);
    snprintf(alive, sizeof alive, "%s/nakshatra/verify/%ld", dir, (long)getppid());
    assert_int_equal(nk_dir_make(alive, &err), 0);
    assert_int_equal(nk_verify_new(&v, m, &o, &err), 0);
    assert_int_equal(left_over(), 2); /* ours, and that of a process that lives */
    nk_verify_free(v);
    assert_int_equal(rmdir(alive), 0);
    nk_model_close(m);
}

static void split(nk_model *m, char folder[256])
{
    struct nk_error err = { 0 };

    snprintf(folder, 256, "%s/slices", dir);
    if (nk_split(m, halves, 2, folder, NULL, &err))
        fail_msg("%s", err.msg);
}

static void test_verify__given_slices_are_taken_as_they_are(void **state)
{
    char folder[256] = "", first[512], second[512], command[1200];
    struct nk_verify_opts o = verify_opts(folder);
    const struct nk_range *ranges;
    struct nk_verify_result r;
    struct nk_error err = { 0 };
    nk_model *m = open_model();
    struct nk_stage_info whole;
    nk_verify *v;
    int n;

    (void)state;
    split(m, folder);
    assert_int_equal(nk_verify_new(&v, m, &o, &err), 0);
    ranges = nk_verify_slices(v, &n);
    assert_int_equal(n, 2);
    assert_memory_equal(ranges, halves, sizeof halves);
    assert_int_equal(nk_verify_whole(v, &whole, &err), 0);
    assert_int_equal(nk_verify_split(v, ranges, n, &r, &err), 0);
    assert_exact(&r, 2);
    /* A weight that became another one: the manifest still says the same. */
    snprintf(first, sizeof first, "%s/kjv-tiny.000-003.gguf", folder);
    snprintf(second, sizeof second, "%s/kjv-tiny.003-008.gguf", folder);
    snprintf(command, sizeof command,
             "printf '\\377\\177' | dd of='%s' bs=1 seek=$(($(stat -c %%s '%s') / 2)) "
             "conv=notrunc 2>'%s/log'",
             second, second, dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(nk_verify_split(v, ranges, n, &r, &err), 0);
    assert_true(r.difference.n_identical < r.difference.n_rows);
    /* Another slice under this one's name. */
    assert_int_equal(rename(second, first), 0);
    assert_int_equal(nk_verify_split(v, ranges, n, &r, &err), NK_E_PRECONDITION);
    assert_string_equal(err.reason, "model_mismatch");
    assert_non_null(strstr(err.msg, "holds layers 3-8; the manifest says 0-3"));
    assert_int_equal(unlink(first), 0);
    assert_int_equal(nk_verify_split(v, ranges, n, &r, &err), NK_E_NOT_FOUND);
    nk_verify_free(v);
    nk_model_close(m);
}

static void test_verify__given_slices_of_another_model_are_refused(void **state)
{
    char folder[256] = "", command[1024];
    struct nk_verify_opts o = verify_opts(folder);
    struct nk_error err = { 0 };
    nk_model *m = open_model();
    nk_verify *v = NULL;

    (void)state;
    split(m, folder);
    snprintf(command, sizeof command,
             "sed -i 's/\"model_sha256\": \"..../\"model_sha256\": \"0000/' '%s/manifest.json'",
             folder);
    assert_int_equal(system(command), 0);
    assert_int_equal(nk_verify_new(&v, m, &o, &err), NK_E_PRECONDITION);
    assert_null(v);
    assert_string_equal(err.reason, "model_mismatch");
    snprintf(command, sizeof command, "rm '%s/manifest.json'", folder);
    assert_int_equal(system(command), 0);
    assert_int_equal(nk_verify_new(&v, m, &o, &err), NK_E_NOT_FOUND);
    nk_model_close(m);
}

static int setup_cache(void **state)
{
    int rc = setup(state);

    return rc ? rc : setenv("XDG_CACHE_HOME", dir, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verify__made_slices_are_the_model_and_leave_nothing),
        cmocka_unit_test(test_verify__what_a_killed_process_left_is_removed),
        cmocka_unit_test(test_verify__given_slices_are_taken_as_they_are),
        cmocka_unit_test(test_verify__given_slices_of_another_model_are_refused),
    };

    return cmocka_run_group_tests_name("verify", tests, setup_cache, teardown);
}
