/* What a whole model answers to the script, and chains compared with it: the right one, and wrong
 * ones of several kinds. */
#include "unit/stage/models.h"

#include "stage/reference.h"

static const struct nk_script script = {
    .n_tokens = 8, .n_steps = 3, .n_sequences = 3, .n_batch = N_BATCH
};

static nk_reference *make_reference(const struct nk_script *s)
{
    nk_stage *whole = open_whole();
    struct nk_error err = { 0 };
    nk_reference *r;

    if (nk_reference_new(&r, whole, s, &err))
        fail_msg("%s", err.msg);
    nk_stage_close(whole); /* it is not needed again */
    assert_true(nk_reference_n_runs(r) > 0);
    return r;
}

static struct nk_difference compare(const nk_reference *r, nk_stage **stages, int n)
{
    struct nk_error err = { 0 };
    struct nk_difference d;

    if (nk_reference_compare(r, stages, n, &d, &err))
        fail_msg("%s", err.msg);
    return d;
}

static void assert_exact(const struct nk_difference *d)
{
    assert_true(d->n_rows > 0);
    assert_int_equal(d->n_identical, d->n_rows);
    assert_int_equal(d->n_top1, d->n_rows);
    assert_int_equal(d->n_not_finite, 0);
    assert_true(d->worst_nmse == 0);
}

static void test_reference__the_chain_is_the_model(void **state)
{
    nk_stage *stages[3];
    struct nk_difference d, again;
    nk_reference *r;

    (void)state;
    use_kjv();
    r = make_reference(&script);
    stages[0] = open_slice(0, 3);
    stages[1] = open_slice(3, 5);
    stages[2] = open_slice(5, 8);
    d = compare(r, stages, 3);
    assert_exact(&d);
    again = compare(r, stages, 3); /* what the stages hold by now is overwritten */
    assert_exact(&again);
    assert_int_equal(again.n_rows, d.n_rows);
    close_all(stages, 3);
    nk_reference_free(r);
}

/* The whole model too, as a chain of one stage. */
static void test_reference__is_what_the_model_answers_again(void **state)
{
    nk_stage *whole;
    struct nk_difference d;
    nk_reference *r;

    (void)state;
    use_kjv();
    r = make_reference(&script);
    whole = open_whole();
    d = compare(r, &whole, 1);
    assert_exact(&d);
    nk_stage_close(whole);
    nk_reference_free(r);
}

static void test_reference__a_chain_without_some_layers_is_another_model(void **state)
{
    nk_stage *stages[2];
    struct nk_difference d;
    nk_reference *r;

    (void)state;
    use_kjv();
    r = make_reference(&script);
    stages[0] = open_slice(0, 3);
    stages[1] = open_slice(5, 8);
    d = compare(r, stages, 2);
    assert_true(d.n_rows > 0 && d.worst_nmse > 1e-4);
    assert_int_equal(d.n_identical, 0);
    close_all(stages, 2);
    nk_reference_free(r);
}

/* A cache of another type is a rounding: almost the same, and found nevertheless. */
static void test_reference__a_rounded_cache_is_seen(void **state)
{
    struct nk_stage_opts o = opts();
    struct nk_error err = { 0 };
    nk_stage *stages[2];
    struct nk_difference d;
    nk_reference *r;
    char path[4200];

    (void)state;
    use_kjv();
    r = make_reference(&script);
    stages[0] = open_slice(0, 3);
    make_slice(3, 8);
    slice_path(path, 3, 8);
    o.cache_type_k = "bf16";
    if (nk_stage_open(&stages[1], path, &o, &err))
        fail_msg("%s", err.msg);
    d = compare(r, stages, 2);
    assert_true(d.n_identical < d.n_rows);
    assert_true(d.worst_nmse > 0 && d.worst_nmse < 1e-2);
    close_all(stages, 2);
    nk_reference_free(r);
}

/* mamba: one sequence per run, and no going back; falcon-h1: as many rows of each sequence. */
static void test_reference__is_written_as_the_architecture_wants_its_batches(void **state)
{
    static const char *const names[] = { "mamba-dense", "falcon-h1-dense" };

    (void)state;
    for (int i = 0; i < 2; i++) {
        nk_stage *stages[2];
        struct nk_difference d;
        nk_reference *r;

        use_generated(names[i]);
        r = make_reference(&script);
        stages[0] = open_slice(0, 1);
        stages[1] = open_slice(1, 2);
        d = compare(r, stages, 2);
        assert_exact(&d);
        close_all(stages, 2);
        nk_reference_free(r);
    }
}

/* Every shape that the options allow fits in what nk_script_length_max says, in exact batches. */
static void test_reference__any_script_fits_in_the_context_that_it_asks_for(void **state)
{
    static const struct nk_script scripts[] = {
        { .n_tokens = 1, .n_steps = 1, .n_sequences = 1, .n_batch = 1 },
        { .n_tokens = 20, .n_steps = 1, .n_sequences = 2, .n_batch = 4 },
        { .n_tokens = 2, .n_steps = 2, .n_sequences = NK_SCRIPT_SEQUENCES_MAX, .n_batch = 16 },
        { .n_tokens = 12, .n_steps = 4, .n_sequences = 5, .n_batch = 7 },
    };

    (void)state;
    use_kjv();
    make_slice(0, 5);
    make_slice(5, 8);
    for (size_t i = 0; i < sizeof scripts / sizeof scripts[0]; i++) {
        const struct nk_script *s = &scripts[i];
        struct nk_stage_opts o = opts(), whole = opts();
        nk_stage *stages[2];
        struct nk_difference d;
        struct nk_error err = { 0 };
        nk_reference *r;
        char path[4200];

        o.n_ctx = nk_script_length_max(s) * s->n_sequences;
        o.n_seq_max = s->n_sequences;
        o.n_batch = s->n_batch;
        whole = o;
        whole.whole_model = true;
        if (nk_stage_open(&stages[0], model_path, &whole, &err) ||
            nk_reference_new(&r, stages[0], s, &err))
            fail_msg("script %zu: %s", i, err.msg);
        nk_stage_close(stages[0]);
        for (int k = 0; k < 2; k++) {
            slice_path(path, k ? 5 : 0, k ? 8 : 5);
            if (nk_stage_open(&stages[k], path, &o, &err))
                fail_msg("script %zu: %s", i, err.msg);
        }
        d = compare(r, stages, 2);
        assert_exact(&d);
        close_all(stages, 2);
        nk_reference_free(r);
    }
}

/* A stage that cannot run the script says so, with its layers. */
static void test_reference__a_stage_without_room_is_an_error(void **state)
{
    struct nk_stage_opts o = opts();
    struct nk_error err = { 0 };
    struct nk_difference d;
    nk_stage *stages[2];
    nk_reference *r;
    char path[4200];

    (void)state;
    use_kjv();
    r = make_reference(&script);
    stages[0] = open_slice(0, 3);
    make_slice(3, 8);
    slice_path(path, 3, 8);
    o.n_batch = 4;
    assert_int_equal(nk_stage_open(&stages[1], path, &o, &err), 0);
    assert_int_equal(nk_reference_compare(r, stages, 2, &d, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_batch");
    assert_non_null(strstr(err.msg, "layers 3-8"));
    close_all(stages, 2);
    nk_reference_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference__the_chain_is_the_model),
        cmocka_unit_test(test_reference__is_what_the_model_answers_again),
        cmocka_unit_test(test_reference__a_chain_without_some_layers_is_another_model),
        cmocka_unit_test(test_reference__a_rounded_cache_is_seen),
        cmocka_unit_test(test_reference__is_written_as_the_architecture_wants_its_batches),
        cmocka_unit_test(test_reference__any_script_fits_in_the_context_that_it_asks_for),
        cmocka_unit_test(test_reference__a_stage_without_room_is_an_error),
    };

    return cmocka_run_group_tests_name("reference", tests, setup_generated, teardown);
}
