#include "slice/manifest_int.h"
#include "slice/write_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"

#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char path[] = "manifest-test.json";

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static void test_manifest__reads_what_was_written(void **state)
{
    struct nk_manifest *a = calloc(1, sizeof *a), *b;
    struct nk_error err = { 0 };

    (void)state;
    snprintf(a->model_id, sizeof a->model_id, "a \"quoted\" näme");
    snprintf(a->model_sha256, sizeof a->model_sha256, HASH);
    snprintf(a->architecture, sizeof a->architecture, "llama");
    a->n_layer = 28;
    a->n_embd = 2048;
    a->slice_format = NK__SLICE_FORMAT;
    a->n_files = 2;
    a->files[0] = (struct nk_manifest_file){
        .name = "x.000-014.gguf", .range = { 0, 14 }, .size_bytes = 1ULL << 40, .sha256 = HASH
    };
    a->files[1] =
        (struct nk_manifest_file){ .name = "x.vocab.gguf", .size_bytes = 7, .sha256 = HASH };
    assert_int_equal(nk__manifest_write(a, path, &err), 0);
    assert_int_equal(nk_manifest_read(&b, path, &err), 0);
    assert_memory_equal(a, b, sizeof *a);
    free(a);
    free(b);
}

/* A good manifest with one piece replaced. */
static int read_changed(const char *from, const char *to, struct nk_error *err)
{
    static const char good[] = "{\"model_id\": \"m\", \"model_sha256\": \"" HASH
                               "\", \"architecture\": \"llama\", \"n_layer\": 8, \"n_embd\": 64, "
                               "\"slice_format\": 1, \"files\": [{\"name\": \"m.000-004.gguf\", "
                               "\"layers\": [0, 4], \"size_bytes\": 5, \"sha256\": \"" HASH "\"}]}";
    const char *at = strstr(good, from);
    struct nk_manifest *mf;
    char text[2048];
    int rc;

    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
    assert_int_equal(nk_file_write(path, text, strlen(text), NULL), 0);
    rc = nk_manifest_read(&mf, path, err);
    assert_int_equal(rc == 0, mf != NULL);
    free(mf);
    return rc;
}

static void test_manifest__distrusts_every_member(void **state)
{
    static const char *const changes[][2] = {
        { "{\"model_id\"", "[\"model_id\"" },
        { "\"m\", ", "7, " },
        { "\"model_sha256\": \"0", "\"model_sha256\": \"" },
        { "\"model_sha256\": \"0", "\"model_sha256\": \"G" },
        { "\"llama\"", "null" },
        { "\"n_layer\": 8", "\"n_layer\": 0" },
        { "\"n_layer\": 8", "\"n_layer\": 100000" },
        { "\"n_layer\": 8", "\"n_layer\": 8.0" },
        { "\"n_embd\": 64", "\"n_embd\": -64" },
        { "\"slice_format\": 1", "\"slice_format\": 0" },
        { "\"files\": [", "\"files\": {\"a\": [" },
        { "\"m.000-004.gguf\"", "\"../m.gguf\"" },
        { "\"m.000-004.gguf\"", "\"/etc/passwd\"" },
        { "\"m.000-004.gguf\"", "\"..\"" },
        { "\"m.000-004.gguf\"", "\"\"" },
        { "[0, 4]", "[4, 4]" },
        { "[0, 4]", "[0, 9]" },
        { "[0, 4]", "[-1, 4]" },
        { "[0, 4]", "[0]" },
        { "[0, 4]", "\"0-4\"" },
        { "\"size_bytes\": 5", "\"size_bytes\": -5" },
        { "\"size_bytes\": 5", "\"size_bytes\": \"5\"" },
        { "\"n_embd\": 64", "\"n_embd\": 64, \"n_embd\": 65" },
        { "}]}", "}]" },
    };
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(read_changed("\"size_bytes\": 5", "\"size_bytes\": 6", &err), 0);
    assert_int_equal(read_changed("[0, 4]", "null", &err), 0);
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        if (read_changed(changes[i][0], changes[i][1], &err) != NK_E_INVALID)
            fail_msg("%s was taken", changes[i][1]);
        assert_string_equal(err.reason, "bad_manifest");
        assert_true(strstr(err.msg, path) != NULL);
    }
}

static void test_manifest__that_is_not_there_or_far_too_large(void **state)
{
    struct nk_error err = { 0 };
    struct nk_manifest *mf;
    char *big = calloc(1, 2 << 20);

    (void)state;
    unlink(path);
    assert_int_equal(nk_manifest_read(&mf, path, &err), NK_E_NOT_FOUND);
    memset(big, ' ', 2 << 20);
    assert_int_equal(nk_file_write(path, big, 2 << 20, NULL), 0);
    assert_int_equal(nk_manifest_read(&mf, path, &err), NK_E_EXHAUSTED);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_manifest__reads_what_was_written),
        cmocka_unit_test(test_manifest__distrusts_every_member),
        cmocka_unit_test(test_manifest__that_is_not_there_or_far_too_large),
    };

    return cmocka_run_group_tests_name("manifest", tests, NULL, teardown);
}
