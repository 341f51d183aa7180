/* The stage against a whole model in the same process, and against stock llama.cpp: kjv-tiny (8 layers, tied embeddings),
 * and of recurrent and hybrid architectures the tiny models that llama.cpp's own test-llama-archs writes (2 layers). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <llama.h>
#include <unistd.h>

#include "unit/missing.h"
#include "slice/slice.h"
#include "stage/stage.h"

enum { N_VOCAB_MAX = 1024, MAX_STAGES = 4, N_BATCH = 32, ROWS_MAX = 64 };

static char dir[] = "/tmp/nk-test-stage-XXXXXX";
static char model_path[4096], kjv_path[4096];
static const char *model_tag = "kjv"; /* in the names of its slices */
static bool have_generated;

static struct nk_stage_opts opts(void)
{
    struct nk_stage_opts o = nk_stage_opts_default();

    o.device = "CPU";
    o.n_ctx = 512;
    o.n_seq_max = 4;
    o.n_batch = N_BATCH;
    o.n_threads = 1;
    return o;
}

static void slice_path(char out[4200], int begin, int end)
{
    snprintf(out, 4200, "%s/%s.%d-%d.gguf", dir, model_tag, begin, end);
}

static void make_slice(int begin, int end)
{
    char path[4200], sha[NK_SHA256_HEX];
    struct nk_error err;
    nk_model *m;

    slice_path(path, begin, end);
    if (!access(path, R_OK))
        return;
    memset(sha, 'a', sizeof sha - 1);
    sha[sizeof sha - 1] = '\0';
    assert_int_equal(nk_model_open(&m, model_path, &err), 0);
    assert_int_equal(nk_slice_write(m, (struct nk_range){ begin, end }, sha, path, NULL, &err), 0);
    nk_model_close(m);
}

static nk_stage *open_slice(int begin, int end)
{
    struct nk_stage_opts o = opts();
    struct nk_error err;
    char path[4200];
    nk_stage *s;
    int rc;

    make_slice(begin, end);
    slice_path(path, begin, end);
    rc = nk_stage_open(&s, path, &o, &err);
    if (rc)
        fail_msg("%s", err.msg);
    return s;
}

static nk_stage *open_whole(void)
{
    struct nk_stage_opts o = opts();
    struct nk_error err;
    nk_stage *s;
    int rc;

    o.whole_model = true;
    rc = nk_stage_open(&s, model_path, &o, &err);
    if (rc)
        fail_msg("%s", err.msg);
    return s;
}

/* A batch of n rows of one sequence from pos on; token ids from a seed. */
struct rows {
    int32_t ids[ROWS_MAX], pos[ROWS_MAX], seq[ROWS_MAX];
    int n;
};

static void add(struct rows *r, int seq, int pos, int n, unsigned seed)
{
    for (int i = 0; i < n; i++, r->n++) {
        r->ids[r->n] =
            (int32_t)(((unsigned)(pos + i) * 7919u + (unsigned)seq * 104729u + seed * 31u) %
                      120u); /* ids that every one of these models has */
        r->pos[r->n] = pos + i;
        r->seq[r->n] = seq;
    }
}

static int run(nk_stage **stages, int n, const struct rows *r, struct nk_error *err)
{
    const float *rows = NULL;

    for (int i = 0; i < n; i++) {
        struct nk_stage_batch b = {
            .n_tokens = r->n, .ids = r->ids, .pos = r->pos, .seq = r->seq, .rows = rows
        };
        int rc = nk_stage_run(stages[i], &b, err);

        if (rc)
            return rc;
        rows = nk_stage_rows(stages[i]);
    }
    return 0;
}

static void assert_same(nk_stage *whole, nk_stage **stages, int n, const struct rows *r)
{
    struct nk_error err;

    if (run(&whole, 1, r, &err) || run(stages, n, r, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < r->n; i++)
        assert_memory_equal(nk_stage_logits(whole, i), nk_stage_logits(stages[n - 1], i),
                            (size_t)nk_stage_info(whole)->n_vocab * sizeof(float));
}

/* Runs one sequence's rows and keeps the last one's logits. */
static void run_last(nk_stage **stages, int n, const struct rows *r, float *out)
{
    struct nk_error err;

    if (run(stages, n, r, &err))
        fail_msg("%s", err.msg);
    memcpy(out, nk_stage_logits(stages[n - 1], r->n - 1),
           (size_t)nk_stage_info(stages[n - 1])->n_vocab * sizeof *out);
}

/* The same numbers, as far as another place in the cache or another batch leaves them the same. */
static void assert_near(const float *want, const float *got, int n)
{
    double difference = 0, power = 0;

    for (int i = 0; i < n; i++) {
        difference += ((double)want[i] - (double)got[i]) * ((double)want[i] - (double)got[i]);
        power += (double)want[i] * (double)want[i];
    }
    if (!(power > 0 && difference / power < 1e-5))
        fail_msg("nmse %g", difference / power);
}

static void use_kjv(void)
{
    model_tag = "kjv";
    memcpy(model_path, kjv_path, sizeof model_path);
}

/* A model that test-llama-archs wrote. */
static void use_generated(const char *name)
{
    model_tag = name;
    snprintf(model_path, sizeof model_path, "%s/%s.gguf", dir, name);
    if (!have_generated)
        missing("llama.cpp's test-llama-archs is needed (package llama.cpp-tests)");
    if (access(model_path, R_OK))
        fail_msg("test-llama-archs wrote no %s", name);
}

static void close_all(nk_stage **stages, int n)
{
    for (int i = 0; i < n; i++)
        nk_stage_close(stages[i]);
}

static void test_stage__any_split_gives_the_logits_of_the_whole_model(void **state)
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

static void *use_huge_pages(void *stage)
{
    atomic_bool stop = false;

    nk_stage_use_huge_pages(stage, &stop);
    return NULL;
}

/* Wherever the weights are, and while they are moved. */
static void test_stage__weights_that_are_read_or_moved_give_the_same(void **state)
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

static void test_stage__a_whole_model_is_stock_llama_cpp(void **state)
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

static void test_stage__rows_keep_their_order_in_full_batches_of_mixed_sequences(void **state)
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

static void
test_stage__copied_truncated_and_cleared_sequences_go_on_as_the_whole_models(void **state)
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
    /* Truncated, it is what it was at that length. */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nk_stage_seq_truncate(all[i], 2, 20, &err), 0);
        assert_int_equal(nk_stage_seq_length(all[i], 2), 20);
        assert_int_equal(nk_stage_seq_truncate(all[i], 2, 30, &err), 0); /* nothing is there */
        assert_int_equal(nk_stage_seq_length(all[i], 2), 20);
    }
    run_last(stages, 2, &r, got);
    assert_near(want, got, n_vocab);
    for (int i = 0; i < 3; i++) {
        nk_stage_seq_clear(all[i], 2);
        assert_int_equal(nk_stage_seq_length(all[i], 2), 0);
        assert_int_equal(nk_stage_seq_length(all[i], 0), i ? 25 : 23);
        assert_int_equal(nk_stage_seq_copy(all[i], 2, 0, &err), 0); /* of nothing: nothing */
        assert_int_equal(nk_stage_seq_length(all[i], 0), 0);
        assert_int_equal(nk_stage_seq_copy(all[i], 0, 4, &err), NK_E_INVALID);
        assert_int_equal(nk_stage_seq_truncate(all[i], -1, 0, &err), NK_E_INVALID);
        assert_int_equal(nk_stage_seq_truncate(all[i], 0, -1, &err), NK_E_INVALID);
    }
    r.n = 0;
    add(&r, 2, 0, 20, 1);
    assert_same(whole, stages, 2, &r);
    close_all(all, 3);
}

/* Saves sequence 0 of the first two stages, loads it as sequence `seq` of the others, and goes on with both. */
static void move_sequence(nk_stage **from, nk_stage **to, int length, int seq)
{
    float want[N_VOCAB_MAX], got[N_VOCAB_MAX];
    struct rows r = { .n = 0 };
    struct nk_error err;

    for (int at = 0; at < length; at += r.n) {
        r.n = 0;
        add(&r, 0, at, length - at < N_BATCH ? length - at : N_BATCH, 1);
        assert_int_equal(run(from, 2, &r, &err), 0);
    }
    for (int i = 0; i < 2; i++) {
        struct nk_buf b = NK_BUF_INIT(1 << 24);

        assert_int_equal(nk_stage_seq_save(from[i], 0, &b, &err), 0);
        assert_int_equal(
            nk_stage_seq_load(to[i], seq, (struct nk_bytes){ (uint8_t *)b.data, b.size }, &err), 0);
        assert_int_equal(nk_stage_seq_length(to[i], seq), length);
        nk_buf_release(&b);
    }
    for (int at = length; at < length + 4; at++) {
        r.n = 0;
        add(&r, 0, at, 1, 2);
        run_last(from, 2, &r, want);
        r.seq[0] = seq;
        run_last(to, 2, &r, got);
        assert_memory_equal(want, got, (size_t)nk_stage_info(from[1])->n_vocab * sizeof *want);
    }
}

static void test_stage__a_saved_sequence_goes_on_in_another_stage(void **state)
{
    nk_stage *from[2], *to[2];

    (void)state;
    use_kjv();
    from[0] = open_slice(0, 3);
    from[1] = open_slice(3, 8);
    to[0] = open_slice(0, 3);
    to[1] = open_slice(3, 8);
    move_sequence(from, to, 40, 3);
    close_all(from, 2);
    close_all(to, 2);
}

static void test_stage__bytes_that_are_no_saved_sequence_are_refused(void **state)
{
    nk_stage *s, *other;
    struct nk_buf b = NK_BUF_INIT(1 << 24), small = NK_BUF_INIT(100);
    struct rows r = { .n = 0 };
    struct nk_error err;
    struct nk_bytes bytes;

    (void)state;
    use_kjv();
    s = open_slice(0, 3);
    other = open_slice(0, 5);
    add(&r, 0, 0, 20, 1);
    assert_int_equal(run(&s, 1, &r, &err), 0);
    assert_int_equal(run(&other, 1, &r, &err), 0);
    assert_int_equal(nk_stage_seq_save(s, 0, &small, &err), NK_E_EXHAUSTED);
    assert_int_equal(nk_stage_seq_save(s, 0, &b, &err), 0);
    bytes = (struct nk_bytes){ (uint8_t *)b.data, b.size };
    for (size_t n = 0; n < b.size; n += b.size / 23) {
        assert_int_equal(nk_stage_seq_load(s, 1, (struct nk_bytes){ bytes.data, n }, &err),
                         NK_E_INVALID);
        assert_string_equal(err.reason, "bad_state");
        assert_int_equal(nk_stage_seq_length(s, 1), 0);
    }
    for (size_t at = 0; at < b.size; at += b.size / 23) {
        b.data[at] ^= 64;
        assert_int_equal(nk_stage_seq_load(s, 1, bytes, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_state");
        b.data[at] ^= 64;
    }
    assert_int_equal(nk_stage_seq_load(other, 0, bytes, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_state");
    assert_int_equal(nk_stage_seq_length(other, 0),
                     0); /* a load replaces: what was there is gone */
    assert_int_equal(nk_stage_seq_load(s, 1, bytes, &err), 0);
    assert_int_equal(nk_stage_seq_length(s, 1), 20);
    nk_buf_release(&b);
    nk_buf_release(&small);
    nk_stage_close(s);
    nk_stage_close(other);
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

static void test_stage__what_is_no_slice_is_not_opened(void **state)
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

static void test_stage__bad_batches_change_nothing(void **state)
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

static void test_stage__a_full_cache_is_an_error_and_leaves_what_was_there(void **state)
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
static void
test_stage__a_recurrent_model_takes_one_sequence_per_run_and_cannot_go_back(void **state)
{
    nk_stage *whole, *stages[2], *to[2];
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
    assert_int_equal(nk_stage_seq_truncate(stages[0], 0, 20, &err), NK_E_OUT_OF_RANGE);
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
    to[0] = open_slice(0, 1);
    to[1] = open_slice(1, 2);
    move_sequence(stages, to, 40, 1);
    close_all(stages, 2);
    close_all(to, 2);
    nk_stage_close(whole);
}

/* falcon-h1: every layer has attention and a state. */
static void test_stage__a_hybrid_model_keeps_the_order_of_equally_many_rows_of_each(void **state)
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

/* llama.cpp's own tool writes the models with a state. */
static void generate(void)
{
    const char *libexec = getenv("NK_LLAMA_LIBEXEC"), *loader = getenv("NK_LLAMA_LOADER"),
               *lib = getenv("NK_LLAMA_LIB");
    char tool[4096], command[16384];

    snprintf(tool, sizeof tool, "%s/test-llama-archs", libexec ? libexec : "");
    if (access(tool, X_OK))
        return;
    if (loader && *loader) /* the private llama.cpp; its tools want to be told of one backend */
        snprintf(command, sizeof command,
                 "GGML_BACKEND_PATH=$(ls %s/libggml-cpu-*x64.so %s/libggml-cpu-armv8.0*.so "
                 "2>/dev/null | head -1) '%s' --library-path '%s:%s/llama:%s/ggml' "
                 "'%s' -a '^(mamba|falcon-h1)$' -o '%s' >'%s/log' 2>&1",
                 NK_BACKEND_DIR, NK_BACKEND_DIR, loader, lib, lib, lib, tool, dir, dir);
    else
        snprintf(command, sizeof command, "'%s' -a '^(mamba|falcon-h1)$' -o '%s' >'%s/log' 2>&1",
                 tool, dir, dir);
    have_generated = system(command) == 0;
}

static int setup(void **state)
{
    const char *models = getenv("NK_MODELS");

    (void)state;
    nk_stage_global_init(NULL);
    snprintf(kjv_path, sizeof kjv_path, "%s/kjv-tiny.gguf", models ? models : "../../models");
    if (!mkdtemp(dir))
        return -1;
    generate();
    return 0;
}

static int teardown(void **state)
{
    char command[4300];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage__any_split_gives_the_logits_of_the_whole_model),
        cmocka_unit_test(test_stage__weights_that_are_read_or_moved_give_the_same),
        cmocka_unit_test(test_stage__a_whole_model_is_stock_llama_cpp),
        cmocka_unit_test(test_stage__rows_keep_their_order_in_full_batches_of_mixed_sequences),
        cmocka_unit_test(
            test_stage__copied_truncated_and_cleared_sequences_go_on_as_the_whole_models),
        cmocka_unit_test(test_stage__a_saved_sequence_goes_on_in_another_stage),
        cmocka_unit_test(test_stage__bytes_that_are_no_saved_sequence_are_refused),
        cmocka_unit_test(test_stage__what_is_no_slice_is_not_opened),
        cmocka_unit_test(test_stage__bad_batches_change_nothing),
        cmocka_unit_test(test_stage__a_full_cache_is_an_error_and_leaves_what_was_there),
        cmocka_unit_test(
            test_stage__a_recurrent_model_takes_one_sequence_per_run_and_cannot_go_back),
        cmocka_unit_test(test_stage__a_hybrid_model_keeps_the_order_of_equally_many_rows_of_each),
    };

    return cmocka_run_group_tests_name("stage", tests, setup, teardown);
}
