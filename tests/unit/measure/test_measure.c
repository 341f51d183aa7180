/* Measuring a real model, of five small layers, and what is kept of it. */
#include "measure/measure_int.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];
static nk_model *model;

static int set_up(void **state)
{
    const char *source = getenv("NK_SOURCE");
    struct nk_error err = { 0 };
    char path[4096];

    (void)state;
    snprintf(path, sizeof path, "%s/tests/data/stories260K-q8_0.gguf", source ? source : "../..");
    if (nk_model_open(&model, path, &err))
        fail_msg("%s", err.msg);
    snprintf(dir, sizeof dir, "/tmp/nk-measure-XXXXXX");
    assert_non_null(mkdtemp(dir));
    nk_stage_global_init("CPU");
    return 0;
}

static int tear_down(void **state)
{
    char command[128];

    (void)state;
    nk_model_close(model);
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    return system(command);
}

/* Quick: what the figures are is no test's business. */
static struct nk_measure_opts quick(void)
{
    struct nk_measure_opts o = nk_measure_opts_default();

    o.stage.device = "CPU";
    o.stage.n_ctx = 256;
    o.stage.n_threads = 1;
    o.budget_ms = 1;
    o.cache_dir = dir;
    return o;
}

static int n_open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void test_measure__says_what_every_part_takes(void **state)
{
    const struct nk_model_info *in = nk_model_info(model);
    struct nk_measure_opts o = quick();
    struct nk_error err = { 0 };
    int n_files = n_open_files();
    struct nk_measured r;

    (void)state;
    o.cache_dir = NULL;
    if (nk_measure(model, &o, &r, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(n_open_files(), n_files);
    assert_false(r.cached);
    assert_int_equal(r.n_layer, in->n_layer);
    assert_int_equal(r.rows[NK_RUN_ONE], 1);
    assert_int_equal(r.rows[NK_RUN_EIGHT], 8);
    assert_int_equal(r.rows[NK_RUN_CHUNK], NK_CHUNK_CPU);
    assert_int_equal(r.n_ctx, 256);
    assert_int_equal(r.n_threads, 1);
    assert_string_equal(r.device, "CPU");
    assert_string_equal(r.backend, "CPU");
    assert_true(r.memory_free_bytes > 0 && r.memory_free_bytes <= r.memory_total_bytes);
    assert_true(r.device_free_bytes == r.memory_free_bytes);
    assert_true(r.process_bytes > 0);
    assert_true(r.compute_bytes > 0 && r.head_compute_bytes >= r.compute_bytes);
    for (int k = 0; k < NK_RUN_KINDS; k++) {
        assert_true(nk_measured_stage_ms(&r, (struct nk_range){ 0, r.n_layer }, k) > 0);
        assert_true(r.embd_ms[k] > 0);
    }
    for (int i = 0; i < r.n_layer; i++) {
        assert_int_equal(r.layers[i].weights_bytes, in->layer_bytes[i]);
        assert_int_equal(r.layers[i].kv_bytes, in->kv_bytes_per_token[i] * 256);
        assert_true(r.layers[i].ms[NK_RUN_ONE] > 0);
    }
    nk_measured_release(&r);
}

static void test_measure__is_kept(void **state)
{
    struct nk_measure_opts o = quick();
    struct nk_measured first, second, third;
    struct nk_error err = { 0 };

    (void)state;
    if (nk_measure(model, &o, &first, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(nk_measure(model, &o, &second, &err), 0);
    assert_true(!first.cached && second.cached);
    assert_string_equal(first.key, second.key);
    /* To the digits that are kept. */
    for (int k = 0; k < NK_RUN_KINDS; k++) {
        double a = first.layers[0].ms[k], b = second.layers[0].ms[k];

        assert_true(a - b <= 1e-4 * a && b - a <= 1e-4 * a);
    }
    assert_true(second.memory_free_bytes > 0 && second.disk_free_bytes > 0);
    o.again = true;
    assert_int_equal(nk_measure(model, &o, &third, &err), 0);
    assert_false(third.cached);
    nk_measured_release(&first);
    nk_measured_release(&second);
    nk_measured_release(&third);
}

static void test_measure__a_damaged_file_is_measured_again(void **state)
{
    struct nk_measure_opts o = quick();
    struct nk_error err = { 0 };
    struct nk_measured r;
    char path[256];

    (void)state;
    if (nk_measure(model, &o, &r, &err))
        fail_msg("%s", err.msg);
    snprintf(path, sizeof path, "%s/%s.json", dir, r.key);
    assert_int_equal(truncate(path, 100), 0);
    nk_measured_release(&r);
    assert_int_equal(nk_measure(model, &o, &r, &err), 0);
    assert_false(r.cached);
    nk_measured_release(&r);
}

static void test_measure__a_cache_that_cannot_be_written_is_no_error(void **state)
{
    struct nk_measure_opts o = quick();
    struct nk_error err = { 0 };
    struct nk_measured r;

    (void)state;
    o.cache_dir = "/proc/no/such/folder";
    assert_int_equal(nk_measure(model, &o, &r, &err), 0);
    assert_false(r.cached);
    assert_int_equal(r.disk_free_bytes, 0);
    nk_measured_release(&r);
}

static void test_measure__too_little_memory_gets_both_sizes(void **state)
{
    struct nk_measure_opts o = quick();
    struct nk_error err = { 0 };
    int n_files = n_open_files();
    struct nk_measured r;

    (void)state;
    o.cache_dir = NULL;
    o.memory_max = 1 << 20;
    assert_int_equal(nk_measure(model, &o, &r, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "no_memory");
    assert_non_null(strstr(err.msg, "1.0 MiB may be used"));
    assert_null(r.layers);
    assert_int_equal(n_open_files(), n_files);
}

static void test_measure__bad_options_are_the_stages_errors(void **state)
{
    struct nk_measure_opts o = quick();
    struct nk_error err = { 0 };
    struct nk_measured r;

    (void)state;
    o.cache_dir = NULL;
    o.stage.device = "Abacus0";
    assert_int_equal(nk_measure(model, &o, &r, &err), NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "no_device");
    o = quick();
    o.cache_dir = NULL;
    o.stage.cache_type_k = "q9";
    assert_int_equal(nk_measure(model, &o, &r, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_option");
    assert_null(strstr(err.msg, "/proc/"));
    o = quick();
    o.stage.n_seq_max = 0;
    assert_int_equal(nk_measure(model, &o, &r, &err), NK_E_INVALID);
}

/* ---- the key ---- */

static void key_of(const struct nk_measured *r, const struct nk_measure_opts *o, char *key)
{
    struct nk_error err = { 0 };

    assert_int_equal(nk__measured_key(r, o, key, &err), 0);
}

static void test_key__changes_with_each_ingredient(void **state)
{
    enum { N_MEASURED = 10, N_OPTIONS = 9, N = 1 + N_MEASURED + N_OPTIONS };
    char keys[N][NK_SHA256_HEX], same[NK_SHA256_HEX];

    (void)state;
    for (int i = 0; i < N; i++) {
        struct nk_measured r = { .version = "1",
                                 .llama_version = "2",
                                 .ggml_version = "3",
                                 .device = "CPU",
                                 .device_description = "d",
                                 .cpu = "c",
                                 .shape = "s",
                                 .n_cores = 1,
                                 .n_threads = 2,
                                 .n_threads_batch = 3 };
        struct nk_measure_opts o = nk_measure_opts_default();

        switch (i) {
        case 1:
            strcpy(r.version, "9");
            break;
        case 2:
            strcpy(r.llama_version, "9");
            break;
        case 3:
            strcpy(r.ggml_version, "9");
            break;
        case 4:
            strcpy(r.device, "9");
            break;
        case 5:
            strcpy(r.device_description, "9");
            break;
        case 6:
            strcpy(r.cpu, "9");
            break;
        case 7:
            strcpy(r.shape, "9");
            break;
        case 8:
            r.n_cores = 9;
            break;
        case 9:
            r.n_threads = 9;
            break;
        case 10:
            r.n_threads_batch = 9;
            break;
        case 11:
            o.stage.n_ctx = 9;
            break;
        case 12:
            o.stage.n_seq_max = 9;
            break;
        case 13:
            o.stage.n_batch = 9;
            break;
        case 14:
            o.stage.cache_type_k = "q8_0";
            break;
        case 15:
            o.stage.cache_type_v = "q8_0";
            break;
        case 16:
            o.stage.no_flash_attn = true;
            break;
        case 17:
            o.stage.separate_kv = true;
            break;
        case 18:
            o.chunk = 9;
            break;
        case 19:
            o.stage.weights = NK_WEIGHTS_AUTO;
            break;
        default:
            break;
        }
        key_of(&r, &o, keys[i]);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(keys[k], keys[i]);
        /* Not with what says nothing of how long it takes. */
        o.budget_ms++;
        o.again = true;
        r.memory_free_bytes = 9;
        key_of(&r, &o, same);
        assert_string_equal(same, keys[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure__says_what_every_part_takes),
        cmocka_unit_test(test_measure__is_kept),
        cmocka_unit_test(test_measure__a_damaged_file_is_measured_again),
        cmocka_unit_test(test_measure__a_cache_that_cannot_be_written_is_no_error),
        cmocka_unit_test(test_measure__too_little_memory_gets_both_sizes),
        cmocka_unit_test(test_measure__bad_options_are_the_stages_errors),
        cmocka_unit_test(test_key__changes_with_each_ingredient),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
