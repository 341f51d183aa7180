/* Slices of a real model, loaded by stock llama.cpp. What they compute is the stage layer's and the
 * conformance run's. */
#include "slice/slice.h"

#include <ggml-backend.h>
#include <llama.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/nk-slice-XXXXXX";

static const char *model_path(void)
{
    static char path[4096];
    const char *models = getenv("NK_MODELS");

    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    return path;
}

static nk_model *open_model(const char *path)
{
    struct nk_error err = { 0 };
    nk_model *m;

    if (nk_model_open(&m, path, &err))
        fail_msg("%s", err.msg);
    return m;
}

static const char *slice_path(const char *name)
{
    static char path[4096];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static struct nk_manifest *split(const char *ranges_text)
{
    struct nk_range ranges[8];
    struct nk_error err = { 0 };
    struct nk_manifest *manifest = NULL;
    nk_model *m = open_model(model_path());
    int n;

    if (nk_ranges_parse(ranges_text, ranges, 8, &n, &err) ||
        nk_split(m, ranges, n, dir, &manifest, &err))
        fail_msg("%s", err.msg);
    nk_model_close(m);
    return manifest;
}

static void test_slice__every_slice_loads_and_decodes_in_stock_llama(void **state)
{
    struct nk_manifest *manifest = split("0-3,3-5,5-8");

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct llama_model_params mp = llama_model_default_params();
        struct llama_context_params cp = llama_context_default_params();
        llama_token ids[3] = { 1, 5, 9 };
        struct llama_model *m = llama_model_load_from_file(slice_path(manifest->files[i].name), mp);
        struct llama_context *c;

        assert_non_null(m);
        assert_int_equal(llama_model_n_layer(m),
                         manifest->files[i].range.end - manifest->files[i].range.begin);
        assert_int_equal(llama_vocab_n_tokens(llama_model_get_vocab(m)), i == 2 ? 1024 : 32);
        cp.n_ctx = 64;
        cp.n_threads = cp.n_threads_batch = 1;
        c = llama_init_from_model(m, cp);
        assert_non_null(c);
        assert_int_equal(llama_decode(c, llama_batch_get_one(ids, 3)), 0);
        llama_free(c);
        llama_model_free(m);
    }
    free(manifest);
}

static void test_slice__vocabulary_file_loads_and_tokenises(void **state)
{
    struct nk_manifest *manifest = split("0-4,4-8");
    struct llama_model_params mp = llama_model_default_params();
    struct llama_model *whole, *vocab;
    llama_token a[32], b[32];
    const char *text = "And it came to pass";
    int n;

    (void)state;
    mp.vocab_only = true;
    whole = llama_model_load_from_file(model_path(), mp);
    vocab = llama_model_load_from_file(slice_path("kjv-tiny.vocab.gguf"), mp);
    assert_non_null(whole);
    assert_non_null(vocab);
    n = llama_tokenize(llama_model_get_vocab(whole), text, (int)strlen(text), a, 32, true, true);
    assert_true(n > 1);
    assert_int_equal(
        llama_tokenize(llama_model_get_vocab(vocab), text, (int)strlen(text), b, 32, true, true),
        n);
    assert_memory_equal(a, b, (size_t)n * sizeof a[0]);
    llama_model_free(whole);
    llama_model_free(vocab);
    free(manifest);
}

static void test_slice__first_slice_has_every_embedding_row_of_the_model(void **state)
{
    struct nk_manifest *manifest = split("0-4,4-8");
    nk_model *whole = open_model(model_path()),
             *first = open_model(slice_path(manifest->files[0].name));
    nk_model *last = open_model(slice_path(manifest->files[1].name));
    struct nk_error err = { 0 };
    nk_embd *a, *b;
    float x[128], y[128];
    double sum = 0;

    (void)state;
    assert_int_equal(nk_embd_open(&a, whole, false, &err), 0);
    assert_int_equal(nk_embd_open(&b, first, false, &err), 0);
    for (int id = 0; id < 1024; id++) {
        nk_embd_row(a, id, x);
        nk_embd_row(b, id, y);
        assert_memory_equal(x, y, sizeof x);
        for (int i = 0; i < 128; i++)
            sum += fabs((double)x[i]);
    }
    assert_true(sum > 100); /* they are numbers, not a hole */
    nk_embd_close(b);
    assert_int_equal(nk_embd_open(&b, last, false, &err), NK_E_PRECONDITION);
    assert_string_equal(err.reason, "no_embd");
    nk_embd_close(a);
    nk_model_close(whole);
    nk_model_close(first);
    nk_model_close(last);
    free(manifest);
}

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

static int setup(void **state)
{
    (void)state;
    llama_log_set(quiet, NULL);
    if (NK_BACKEND_DIR[0])
        ggml_backend_load_all_from_path(NK_BACKEND_DIR);
    else
        ggml_backend_load_all();
    llama_backend_init();
    return mkdtemp(dir) ? 0 : 1;
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
        cmocka_unit_test(test_slice__every_slice_loads_and_decodes_in_stock_llama),
        cmocka_unit_test(test_slice__vocabulary_file_loads_and_tokenises),
        cmocka_unit_test(test_slice__first_slice_has_every_embedding_row_of_the_model),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
