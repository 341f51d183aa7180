/* The chain of stages against a whole model in the same process, and against stock llama.cpp. */
#include "unit/stage/models.h"

#include <math.h>

#include <llama.h>

#include "stage/stage_int.h"

static void test_run__any_split_gives_the_logits_of_the_whole_model(void **state)
{
    static const int splits[][MAX_STAGES + 1] = {
        { 0, 1, 8 }, { 0, 7, 8 }, { 0, 3, 5, 8 }, { 0, 1, 2, 6, 8 }
    };

    (void)state;
    use_kjv();
    for (size_t k = 0; k < sizeof splits / sizeof splits[0]; k++) {
        nk_stage *whole = open_whole(), *stages[MAX_STAGES];
        struct rows r = { .n = 0 };
        int n = 0;

        for (; splits[k][n] != 8; n++)
            stages[n] = open_slice(splits[k][n], splits[k][n + 1]);
        add(&r, 0, 0, 20, 1);
        assert_same(whole, stages, n, &r);
        for (int pos = 20; pos < 25; pos++) {
            r.n = 0;
            add(&r, 0, pos, 1, 2);
            assert_same(whole, stages, n, &r);
        }
        r.n = 0;
        add(&r, 1, 0, 7, 3);
        add(&r, 0, 10, 3, 4); /* back by 15, in the same batch */
        add(&r, 2, 0, 11, 5);
        assert_same(whole, stages, n, &r);
        for (int i = 0; i < n; i++)
            nk_stage_close(stages[i]);
        nk_stage_close(whole);
    }
}

static void test_run__a_whole_model_is_stock_llama_cpp(void **state)
{
    struct llama_model_params mp = llama_model_default_params();
    struct llama_context_params cp = llama_context_default_params();
    struct llama_batch batch = llama_batch_init(N_BATCH, 0, 1);
    struct rows r = { .n = 0 };
    struct llama_model *model;
    struct llama_context *ctx;
    nk_stage *whole;
    struct nk_error err;

    (void)state;
    use_kjv();
    whole = open_whole();
    mp.n_gpu_layers = 0;
    cp.n_ctx = 512;
    cp.n_batch = cp.n_ubatch = N_BATCH;
    cp.n_seq_max = 4;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.kv_unified = true;
    model = llama_model_load_from_file(model_path, mp);
    assert_non_null(model);
    ctx = llama_init_from_model(model, cp);
    assert_non_null(ctx);
    add(&r, 0, 0, 20, 1);
    add(&r, 3, 0, 12, 1);
    for (int i = 0; i < r.n; i++) {
        batch.token[i] = r.ids[i];
        batch.pos[i] = r.pos[i];
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = r.seq[i];
        batch.logits[i] = 1;
    }
    batch.n_tokens = r.n;
    assert_int_equal(llama_decode(ctx, batch), 0);
    assert_int_equal(run(&whole, 1, &r, &err), 0);
    for (int i = 0; i < r.n; i++)
        assert_memory_equal(llama_get_logits_ith(ctx, i), nk_stage_logits(whole, i),
                            (size_t)nk_stage_info(whole)->n_vocab * sizeof(float));
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
    nk_stage_close(whole);
}

static void test_run__rows_keep_their_order_in_full_batches_of_mixed_sequences(void **state)
{
    nk_stage *whole, *stages[2];
    float one[N_VOCAB_MAX];
    struct rows r = { .n = 0 };
    struct nk_error err;

    (void)state;
    use_kjv();
    whole = open_whole();
    stages[0] = open_slice(0, 3);
    stages[1] = open_slice(3, 8);
    for (int i = 0; i < N_BATCH / 4; i++)
        for (int seq = 3; seq >= 0; seq--)
            add(&r, seq, i, 1, 1);
    assert_int_equal(r.n, N_BATCH);
    assert_same(whole, stages, 2, &r);
    for (int seq = 0; seq < 4; seq++) { /* each row is the right sequence's */
        struct rows alone = { .n = 0 };
        float mixed[N_VOCAB_MAX];

        memcpy(mixed, nk_stage_logits(stages[1], N_BATCH - 1 - seq), sizeof mixed);
        nk_stage_seq_clear(whole, 0);
        add(&alone, seq, 0, N_BATCH / 4, 1);
        for (int i = 0; i < alone.n; i++)
            alone.seq[i] = 0;
        run_last(&whole, 1, &alone, one);
        assert_near(one, mixed, nk_stage_info(whole)->n_vocab);
    }
    add(&r, 0, N_BATCH / 4, 1, 1);
    assert_int_equal(run(stages, 1, &r, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_batch");
    close_all(stages, 2);
    nk_stage_close(whole);
}

static void test_run__copied_and_cleared_sequences_go_on_as_the_whole_models(void **state)
{
    nk_stage *whole, *stages[2], *all[3];
    float want[N_VOCAB_MAX], got[N_VOCAB_MAX];
    struct rows r = { .n = 0 };
    struct nk_error err;
    int n_vocab;

    (void)state;
    use_kjv();
    all[0] = whole = open_whole();
    all[1] = stages[0] = open_slice(0, 5);
    all[2] = stages[1] = open_slice(5, 8);
    n_vocab = nk_stage_info(whole)->n_vocab;
    add(&r, 0, 0, 20, 1);
    assert_same(whole, stages, 2, &r);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nk_stage_seq_copy(all[i], 0, 2, &err), 0);
        assert_int_equal(nk_stage_seq_length(all[i], 2), 20);
        assert_int_equal(nk_stage_seq_length(all[i], 0), 20);
        assert_int_equal(nk_stage_seq_length(all[i], 1), 0);
    }
    /* Both go on, in one batch, each in its own way. */
    r.n = 0;
    add(&r, 0, 20, 3, 2);
    add(&r, 2, 20, 4, 3);
    assert_same(whole, stages, 2, &r);
    /* The copy with the original's tokens is the original. */
    r.n = 0;
    add(&r, 0, 20, 5, 4);
    run_last(stages, 2, &r, want);
    for (int i = 0; i < r.n; i++)
        r.seq[i] = 2;
    run_last(stages, 2, &r, got);
    assert_near(want, got, n_vocab);
    /* Run again from there, it is what it was at that length. */
    run_last(stages, 2, &r, got);
    assert_near(want, got, n_vocab);
    for (int i = 0; i < 3; i++) {
        nk_stage_seq_clear(all[i], 2);
        assert_int_equal(nk_stage_seq_length(all[i], 2), 0);
        assert_int_equal(nk_stage_seq_length(all[i], 0), i ? 25 : 23);
        assert_int_equal(nk_stage_seq_copy(all[i], 2, 0, &err), 0); /* of nothing: nothing */
        assert_int_equal(nk_stage_seq_length(all[i], 0), 0);
        assert_int_equal(nk_stage_seq_copy(all[i], 0, 4, &err), NK_E_INVALID);
        assert_int_equal(nk_stage_seq_copy(all[i], -1, 0, &err), NK_E_INVALID);
    }
    r.n = 0;
    add(&r, 2, 0, 20, 1);
    assert_same(whole, stages, 2, &r);
    close_all(all, 3);
}

static void test_run__bad_batches_change_nothing(void **state)
{
    nk_stage *s[2];
    float bad[N_BATCH * 128] = { 0 };
    struct rows r = { .n = 0 };
    struct nk_error err;
    struct nk_stage_batch b;

    (void)state;
    use_kjv();
    s[0] = open_slice(0, 3);
    s[1] = open_slice(3, 8);
    add(&r, 0, 0, 4, 1);
    assert_int_equal(run(s, 2, &r, &err), 0);
    b = (struct nk_stage_batch){ .n_tokens = 4, .ids = r.ids, .pos = r.pos, .seq = r.seq };
    assert_int_equal(nk_stage_run(s[1], &b, &err), NK_E_INVALID); /* no rows */
    b.rows = bad;
    bad[3 * 128 + 5] = NAN;
    assert_int_equal(nk_stage_run(s[1], &b, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "not_finite");
    r.pos[0] = 9;
    r.n = 1;
    assert_int_equal(run(s, 1, &r, &err), NK_E_OUT_OF_RANGE);
    assert_string_equal(err.reason, "gap");
    r.pos[0] = 4;
    r.ids[0] = 1024;
    assert_int_equal(run(s, 1, &r, &err), NK_E_INVALID);
    r.ids[0] = 1;
    r.seq[0] = 4;
    assert_int_equal(run(s, 1, &r, &err), NK_E_INVALID);
    for (int i = 0; i < 2; i++)
        assert_int_equal(nk_stage_seq_length(s[i], 0), 4);
    close_all(s, 2);
}

static void test_run__a_full_cache_is_an_error_and_leaves_what_was_there(void **state)
{
    nk_stage *s;
    struct nk_error err;

    (void)state;
    use_kjv();
    s = open_slice(0, 3);
    for (int seq = 0; seq < 2; seq++)
        for (int at = 0; at < 256; at += N_BATCH) {
            struct rows r = { .n = 0 };

            add(&r, seq, at, N_BATCH, 1);
            assert_int_equal(run(&s, 1, &r, &err), 0);
        }
    for (int i = 0; i < 2; i++) {
        struct rows r = { .n = 0 };

        add(&r, 2, 0, 1, 1);
        assert_int_equal(run(&s, 1, &r, &err), i ? 0 : NK_E_EXHAUSTED);
        if (i)
            break;
        assert_string_equal(err.reason, "kv_full");
        assert_int_equal(nk_stage_seq_length(s, 0), 256);
        assert_int_equal(nk_stage_seq_length(s, 1), 256);
        assert_int_equal(nk_stage_seq_length(s, 2), 0);
        nk_stage_seq_clear(s, 1);
    }
    nk_stage_close(s);
}

/* mamba: every layer has a state. libllama runs such a batch sequence by sequence. */
static void test_run__a_recurrent_model_takes_one_sequence_per_run_and_cannot_go_back(void **state)
{
    nk_stage *whole, *stages[2];
    struct rows r = { .n = 0 };
    struct nk_error err;

    (void)state;
    use_generated("mamba-dense");
    whole = open_whole();
    stages[0] = open_slice(0, 1);
    stages[1] = open_slice(1, 2);
    assert_true(nk_stage_info(stages[0])->one_sequence_per_run);
    assert_false(nk_stage_info(stages[0])->can_rollback);
    for (int at = 0; at < 24; at += 8)
        for (int seq = 2; seq >= 0; seq--) {
            r.n = 0;
            add(&r, seq, at, 8, 1);
            assert_same(whole, stages, 2, &r);
        }
    r.n = 0;
    add(&r, 0, 24, 1, 1);
    add(&r, 1, 24, 1, 1);
    assert_int_equal(run(stages, 1, &r, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_batch");
    r.n = 0;
    add(&r, 0, 20, 1, 1);
    assert_int_equal(run(stages, 1, &r, &err), NK_E_OUT_OF_RANGE);
    assert_string_equal(err.reason, "no_rollback");
    assert_int_equal(nk_stage_seq_length(stages[0], 0), 24);
    r.n = 0;
    add(&r, 0, 0, 12, 3); /* from the start it can */
    assert_same(whole, stages, 2, &r);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nk_stage_seq_copy(stages[i], 0, 3, &err), 0);
        nk_stage_seq_clear(stages[i], 0);
    }
    assert_int_equal(nk_stage_seq_copy(whole, 0, 3, &err), 0);
    r.n = 0;
    add(&r, 3, 12, 5, 4);
    assert_same(whole, stages, 2, &r);
    close_all(stages, 2);
    nk_stage_close(whole);
}

/* falcon-h1: every layer has attention and a state. */
static void test_run__a_hybrid_model_keeps_the_order_of_equally_many_rows_of_each(void **state)
{
    nk_stage *whole, *stages[2];
    struct rows r = { .n = 0 };
    struct nk_error err;
    int n_vocab;

    (void)state;
    use_generated("falcon-h1-dense");
    whole = open_whole();
    stages[0] = open_slice(0, 1);
    stages[1] = open_slice(1, 2);
    n_vocab = nk_stage_info(whole)->n_vocab;
    assert_true(nk_stage_info(stages[0])->equal_rows_per_run);
    for (int at = 0; at < 24; at += 8) { /* the last sequence first, then one in the middle */
        r.n = 0;
        add(&r, 3, at, 8, 1);
        add(&r, 1, at, 8, 1);
        add(&r, 2, at, 8, 1);
        assert_same(whole, stages, 2, &r);
    }
    /* A row that had gone to another sequence would be another one here. */
    for (int k = 0; k < 3; k++) {
        static const int seq[] = { 3, 1, 2 };
        float mixed[N_VOCAB_MAX], alone[N_VOCAB_MAX];

        memcpy(mixed, nk_stage_logits(stages[1], 8 * k + 7), (size_t)n_vocab * sizeof *mixed);
        for (int at = 0; at < 24; at += 8) {
            struct rows one = { .n = 0 };

            add(&one, seq[k], at, 8, 1);
            for (int i = 0; i < 8; i++)
                one.seq[i] = 0;
            run_last(&whole, 1, &one, alone);
        }
        assert_near(alone, mixed, n_vocab);
        nk_stage_seq_clear(whole, 0);
    }
    r.n = 0;
    add(&r, 3, 24, 2, 1);
    add(&r, 1, 24, 1, 1);
    assert_int_equal(run(stages, 1, &r, &err), NK_E_INVALID);
    r.n = 0;
    add(&r, 3, 24, 1, 1);
    add(&r, 1, 24, 1, 1);
    add(&r, 3, 25, 1, 1);
    add(&r, 1, 25, 1, 1);
    assert_int_equal(run(stages, 1, &r, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_batch");
    close_all(stages, 2);
    nk_stage_close(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run__any_split_gives_the_logits_of_the_whole_model),
        cmocka_unit_test(test_run__a_whole_model_is_stock_llama_cpp),
        cmocka_unit_test(test_run__rows_keep_their_order_in_full_batches_of_mixed_sequences),
        cmocka_unit_test(test_run__copied_and_cleared_sequences_go_on_as_the_whole_models),
        cmocka_unit_test(test_run__bad_batches_change_nothing),
        cmocka_unit_test(test_run__a_full_cache_is_an_error_and_leaves_what_was_there),
        cmocka_unit_test(test_run__a_recurrent_model_takes_one_sequence_per_run_and_cannot_go_back),
        cmocka_unit_test(test_run__a_hybrid_model_keeps_the_order_of_equally_many_rows_of_each),
    };

    return cmocka_run_group_tests_name("run", tests, setup_generated, teardown);
}
