/* Opening stages. */
#include "unit/stage/models.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include <ggml.h>
#include <gguf.h>

static void *use_huge_pages(void *stage)
{
    atomic_bool stop = false;

    nk_stage_use_huge_pages(stage, &stop);
    return NULL;
}

/* Wherever the weights are, and while they are moved. */
static void test_open__weights_that_are_read_or_moved_give_the_same(void **state)
{
    static const enum nk_stage_weights ways[] = { NK_WEIGHTS_MAPPED, NK_WEIGHTS_READ,
                                                  NK_WEIGHTS_AUTO };
    nk_stage *whole, *stages[2];
    struct nk_stage_opts o = opts();
    struct rows r = { .n = 0 };
    struct nk_error err;
    pthread_t mover;
    char path[4200];

    (void)state;
    use_kjv();
    whole = open_whole();
    make_slice(0, 3);
    make_slice(3, 8);
    for (int k = 0; k < 3; k++) {
        o.weights = ways[k];
        slice_path(path, 0, 3);
        assert_int_equal(nk_stage_open(&stages[0], path, &o, &err), 0);
        slice_path(path, 3, 8);
        assert_int_equal(nk_stage_open(&stages[1], path, &o, &err), 0);
        assert_int_equal(pthread_create(&mover, NULL, use_huge_pages, stages[1]), 0);
        for (int pos = 0; pos < 40; pos++) {
            r.n = 0;
            add(&r, 0, pos, 1, 2);
            assert_same(whole, stages, 2, &r);
        }
        pthread_join(mover, NULL);
        r.n = 0;
        add(&r, 0, 40, 20, 2);
        assert_same(whole, stages, 2, &r);
        close_all(stages, 2);
        nk_stage_seq_clear(whole, 0);
    }
    nk_stage_close(whole);
}

static void assert_not_opened(const char *path, const struct nk_stage_opts *o, int code,
                              const char *reason)
{
    struct nk_error err;
    nk_stage *s = (nk_stage *)(uintptr_t)1;

    assert_int_equal(nk_stage_open(&s, path, o, &err), code);
    assert_null(s);
    assert_string_equal(err.reason, reason);
    assert_true(err.msg[0]);
}

static void test_open__what_is_no_slice_is_not_opened(void **state)
{
    struct nk_stage_opts o = opts(), whole = opts(), device = opts();
    char path[4200], copy[4200], command[16384];

    (void)state;
    use_kjv();
    make_slice(0, 3);
    slice_path(path, 0, 3);
    whole.whole_model = true;
    device.device = "Nope0";
    assert_not_opened(kjv_path, &o, NK_E_INVALID, "not_a_slice");
    assert_not_opened(path, &whole, NK_E_INVALID, "not_a_model");
    assert_not_opened(path, &device, NK_E_NOT_FOUND, "no_device");
    assert_not_opened("/nowhere/x.gguf", &o, NK_E_NOT_FOUND, "no_file");
    o.n_seq_max = 0;
    assert_not_opened(path, &o, NK_E_INVALID, "bad_option");
    o = opts();
    snprintf(copy, sizeof copy, "%s/short.gguf", dir);
    /* In the header, in the layers, in the embedding rows behind what llama.cpp knows of, and in
     * the digests behind those. */
    for (int cut = 0; cut < 4; cut++) {
        static const char *const sizes[] = { "1000", "300000", "-10000", "-1" };

        snprintf(command, sizeof command, "head -c %s '%s' >'%s'", sizes[cut], path, copy);
        assert_int_equal(system(command), 0);
        assert_not_opened(copy, &o, cut < 2 ? NK_E_INVALID : NK_E_DATA_LOSS,
                          cut < 2 ? "bad_gguf" : "damaged");
    }
    snprintf(command, sizeof command, "head -c -10000 '%s' >'%s'", path, copy);
    assert_int_equal(system(command), 0);
    o.verify = NK_VERIFY_NEVER;
    assert_not_opened(copy, &o, NK_E_DATA_LOSS, "truncated");
}

/* A copy of a slice, which may be written to. */
static const char *copy_of(int begin, int end)
{
    static char copy[4200];
    char path[4200], command[16384];

    make_slice(begin, end);
    slice_path(path, begin, end);
    snprintf(copy, sizeof copy, "%s/copy.%d-%d.gguf", dir, begin, end);
    snprintf(command, sizeof command, "cp '%s' '%s'", path, copy);
    assert_int_equal(system(command), 0);
    return copy;
}

/* Writes over n bytes in the middle, without a change of length. */
static void write_over(const char *path, const void *bytes, size_t n)
{
    int fd = open(path, O_WRONLY);
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(pwrite(fd, bytes, n, st.st_size / 2 / 64 * 64), n);
    close(fd);
}

static void test_open__a_damaged_slice_is_not_opened_unless_nobody_looks(void **state)
{
    struct nk_stage_opts o = opts();
    const char *path;
    struct nk_error err;
    nk_stage *s;

    (void)state;
    use_kjv();
    path = copy_of(0, 3);
    assert_int_equal(nk_stage_open(&s, path, &o, &err), 0);
    assert_int_equal(nk_stage_info(s)->verified, NK_VERIFIED_NOW);
    nk_stage_close(s);
    write_over(path, "XXXXXXXXXXXXXXXX", 16);
    for (int k = 0; k < 2; k++) {
        o.verify = k ? NK_VERIFY_ONCE : NK_VERIFY_ALWAYS;
        assert_not_opened(path, &o, NK_E_DATA_LOSS, "damaged");
    }
    o.verify = NK_VERIFY_NEVER;
    assert_int_equal(nk_stage_open(&s, path, &o, &err), 0);
    assert_int_equal(nk_stage_info(s)->verified, NK_VERIFIED_NO);
    nk_stage_close(s);
}

/* Weights that are no numbers: the stage that has them says so, not the one after it. */
static void test_open__a_stage_that_computes_no_numbers_names_its_file(void **state)
{
    struct nk_stage_opts o = opts();
    struct rows r = { .n = 0 };
    uint8_t nans[1 << 16];
    struct nk_error err;
    const char *path;
    nk_stage *s;

    (void)state;
    use_kjv();
    path = copy_of(0, 3);
    memset(nans, 0xff, sizeof nans);
    write_over(path, nans, sizeof nans);
    o.verify = NK_VERIFY_NEVER;
    assert_int_equal(nk_stage_open(&s, path, &o, &err), 0);
    add(&r, 0, 0, 4, 1);
    assert_int_equal(run(&s, 1, &r, &err), NK_E_INTERNAL);
    assert_string_equal(err.reason, "not_finite");
    assert_non_null(strstr(err.msg, "nakshatra inspect copy.0-3.gguf"));
    nk_stage_close(s);
}

/* What is read into memory needs its file no more: the embedding's rows neither. What is read from
 * a mapping is nobody's model as soon as somebody writes to the file. */
static void test_open__a_file_that_is_written_over_meanwhile_gives_no_other_rows(void **state)
{
    static const enum nk_stage_weights ways[] = { NK_WEIGHTS_READ, NK_WEIGHTS_MAPPED,
                                                  NK_WEIGHTS_AUTO };
    nk_stage *whole, *stages[2];
    struct nk_stage_opts o = opts();
    static uint8_t other[1 << 19];
    struct nk_error err;
    const char *path;

    (void)state;
    use_kjv();
    whole = open_whole();
    stages[1] = open_slice(3, 8);
    memset(other, 0x11, sizeof other);
    for (int k = 0; k < 3; k++) {
        struct rows r = { .n = 0 }, next = { .n = 0 };

        path = copy_of(0, 3);
        o.weights = ways[k];
        assert_int_equal(nk_stage_open(&stages[0], path, &o, &err), 0);
        add(&r, 0, 0, 8, 1);
        assert_same(whole, stages, 2, &r);
        assert_int_equal(nk_stage_file_check(stages[0], &err), 0);
        write_over(path, other, sizeof other);
        add(&next, 0, 8, 8, 1);
        if (k == 0) {
            assert_int_equal(nk_stage_file_check(stages[0], &err), 0);
            assert_same(whole, stages, 2, &next);
            assert_int_equal(truncate(path, 0), 0);
            next.n = 0;
            add(&next, 0, 16, 8, 1);
            assert_same(whole, stages, 2, &next);
        } else {
            assert_int_equal(nk_stage_file_check(stages[0], &err), NK_E_DATA_LOSS);
            assert_string_equal(err.reason, "slice_changed");
            assert_non_null(strstr(err.msg, path));
            assert_int_equal(run(stages, 1, &next, &err), NK_E_DATA_LOSS);
            assert_string_equal(err.reason, "slice_changed");
            assert_int_equal(strncmp(err.msg, "copy.0-3.gguf ", 14), 0);
        }
        nk_stage_close(stages[0]);
        nk_stage_seq_clear(whole, 0);
        nk_stage_seq_clear(stages[1], 0);
    }
    nk_stage_close(stages[1]);
    nk_stage_close(whole);
}

/* Another file under its name is not the one that is open. */
static void
test_open__a_file_that_is_replaced_or_removed_is_still_there_for_who_has_it(void **state)
{
    nk_stage *whole, *stages[2];
    struct nk_stage_opts o = opts();
    struct rows r = { .n = 0 };
    struct nk_error err;
    char command[16384];
    const char *path;

    (void)state;
    use_kjv();
    whole = open_whole();
    stages[1] = open_slice(3, 8);
    path = copy_of(0, 3);
    assert_int_equal(nk_stage_open(&stages[0], path, &o, &err), 0);
    snprintf(command, sizeof command, "echo other >'%s.new' && mv '%s.new' '%s' && chmod 600 '%s'",
             path, path, path, path);
    assert_int_equal(system(command), 0);
    add(&r, 0, 0, 8, 1);
    assert_same(whole, stages, 2, &r);
    assert_int_equal(unlink(path), 0);
    r.n = 0;
    add(&r, 0, 8, 8, 1);
    assert_same(whole, stages, 2, &r);
    close_all(stages, 2);
    nk_stage_close(whole);
}

/* The model as a long-RoPE one, as Phi-3 128k is: other factors for contexts over 256. */
static void use_long_rope(void)
{
    static const float long_factors[] = { 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 9,
                                          9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9 };
    struct ggml_context *data = NULL, *more;
    struct gguf_context *file =
        gguf_init_from_file(kjv_path, (struct gguf_init_params){ .no_alloc = false, .ctx = &data });
    struct gguf_context *g = gguf_init_empty();
    struct ggml_tensor *list;
    int n;

    assert_non_null(file);
    gguf_set_kv(g, file);
    for (int64_t i = 0; i < gguf_get_n_tensors(file); i++)
        gguf_add_tensor(g, ggml_get_tensor(data, gguf_get_tensor_name(file, i)));
    n = (int)(gguf_get_val_u32(g, gguf_find_key(g, "llama.embedding_length")) /
              gguf_get_val_u32(g, gguf_find_key(g, "llama.attention.head_count")) / 2);
    assert_in_range(n, 1, 32);
    more = ggml_init((struct ggml_init_params){ .mem_size = 1 << 16 });
    gguf_set_val_str(g, "llama.rope.scaling.type", "longrope");
    gguf_set_val_u32(g, "llama.rope.scaling.original_context_length", 256);
    gguf_set_val_f32(g, "llama.rope.scaling.attn_factor", 1);
    for (int i = 0; i < 2; i++) {
        list = ggml_new_tensor_1d(more, GGML_TYPE_F32, n);
        for (int k = 0; k < n; k++)
            ((float *)list->data)[k] = i ? 1 : long_factors[k];
        ggml_set_name(list, i ? "rope_factors_short.weight" : "rope_factors_long.weight");
        gguf_add_tensor(g, list);
    }
    model_tag = "long";
    snprintf(model_path, sizeof model_path, "%s/long.gguf", dir);
    assert_true(gguf_write_to_file(g, model_path, false));
    gguf_free(g);
    gguf_free(file);
    ggml_free(data);
    ggml_free(more);
}

/* What a stage of this context says of its factors, and (a whole model) the logits that it has
 * after some tokens. */
static struct nk_stage_info info_of(const char *path, int n_ctx, bool whole, bool separate_kv,
                                    float *logits)
{
    struct nk_stage_opts o = opts();
    struct nk_stage_info info;
    struct rows r = { .n = 0 };
    struct nk_error err;
    nk_stage *s;

    o.n_ctx = n_ctx;
    o.n_seq_max = 2;
    o.whole_model = whole;
    o.separate_kv = separate_kv;
    if (nk_stage_open(&s, path, &o, &err))
        fail_msg("%s", err.msg);
    info = *nk_stage_info(s);
    if (logits) {
        add(&r, 0, 0, 20, 3);
        run_last(&s, 1, &r, logits);
    }
    nk_stage_close(s);
    return info;
}

/* The context's size changes what is computed where the model has two lists of factors, and a stage
 * says which one it is; elsewhere it changes nothing. */
static void test_open__long_rope_models_are_two_by_the_context_of_a_sequence(void **state)
{
    static float at[3][N_VOCAB_MAX];
    const int contexts[] = { 256, 512, 1024 };
    size_t size = sizeof at[0];
    struct nk_stage_info info;
    char path[4200];

    (void)state;
    use_long_rope();
    for (int i = 0; i < 3; i++) {
        info = info_of(model_path, contexts[i], true, false, at[i]);
        assert_int_equal(info.rope_factors, i ? NK_ROPE_FACTORS_LONG : NK_ROPE_FACTORS_SHORT);
        assert_int_equal(info.n_ctx_orig, 256);
        assert_true(info.flash_attn);
        assert_true(info.ggml_version[0]);
    }
    assert_memory_not_equal(at[0], at[1], size);
    assert_memory_equal(at[1], at[2], size);
    make_slice(3, 8);
    slice_path(path, 3, 8);
    info = info_of(path, 512, false, false, NULL);
    assert_int_equal(info.rope_factors, NK_ROPE_FACTORS_LONG);
    info = info_of(path, 512, false, true, NULL); /* 256 for each of two */
    assert_int_equal(info.rope_factors, NK_ROPE_FACTORS_SHORT);

    use_kjv();
    for (int i = 0; i < 3; i++) {
        info = info_of(model_path, contexts[i], true, false, at[i]);
        assert_int_equal(info.rope_factors, NK_ROPE_FACTORS_NONE);
    }
    assert_memory_equal(at[0], at[1], size);
    assert_memory_equal(at[1], at[2], size);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open__weights_that_are_read_or_moved_give_the_same),
        cmocka_unit_test(test_open__what_is_no_slice_is_not_opened),
        cmocka_unit_test(test_open__long_rope_models_are_two_by_the_context_of_a_sequence),
        cmocka_unit_test(test_open__a_damaged_slice_is_not_opened_unless_nobody_looks),
        cmocka_unit_test(test_open__a_stage_that_computes_no_numbers_names_its_file),
        cmocka_unit_test(test_open__a_file_that_is_written_over_meanwhile_gives_no_other_rows),
        cmocka_unit_test(
            test_open__a_file_that_is_replaced_or_removed_is_still_there_for_who_has_it),
    };

    return cmocka_run_group_tests_name("open", tests, setup, teardown);
}
