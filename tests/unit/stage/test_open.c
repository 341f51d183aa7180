/* Opening stages. */
#include "unit/stage/models.h"

#include <pthread.h>
#include <stdatomic.h>

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
    /* In the header, in the layers, and in the embedding rows behind what llama.cpp knows of. */
    for (int cut = 0; cut < 3; cut++) {
        static const char *const sizes[] = { "1000", "300000", "-1000" };

        snprintf(command, sizeof command, "head -c %s '%s' >'%s'", sizes[cut], path, copy);
        assert_int_equal(system(command), 0);
        assert_not_opened(copy, &o, cut < 2 ? NK_E_INVALID : NK_E_DATA_LOSS,
                          cut < 2 ? "bad_gguf" : "truncated");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open__weights_that_are_read_or_moved_give_the_same),
        cmocka_unit_test(test_open__what_is_no_slice_is_not_opened),
    };

    return cmocka_run_group_tests_name("open", tests, setup, teardown);
}
