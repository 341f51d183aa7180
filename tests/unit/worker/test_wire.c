/* Between protobuf and ours: what absent fields mean, and sizes that do not fit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "rpc/rows.h"
#include "worker/worker_int.h"

typedef Nakshatra__V1__Sampling wire_sampling;
typedef Nakshatra__V1__Rows wire_rows;

static struct nk_logit_bias bias[NK_LOGIT_BIAS_MAX];

/* ---- sampling ---- */

static void test_wire__no_sampling_is_greedy(void **state)
{
    wire_sampling in = NAKSHATRA__V1__SAMPLING__INIT;
    struct nk_sampling a, b;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk__wire_sampling(&a, bias, NULL, &err), 0);
    assert_true(a.temperature == 0);
    assert_int_equal(nk__wire_sampling(&b, bias, &in, &err), 0);
    assert_true(b.temperature == 0 && b.seed == NK_SEED_RANDOM && !b.grammar && !b.n_logit_bias);
}

static void test_wire__zero_is_off_or_libllamas_default(void **state)
{
    wire_sampling in = NAKSHATRA__V1__SAMPLING__INIT;
    struct nk_sampling s, d = nk_sampling_default();
    struct nk_error err;

    (void)state;
    in.temperature = 0.5f;
    in.grammar = (char *)(uintptr_t) "";
    assert_int_equal(nk__wire_sampling(&s, bias, &in, &err), 0);
    assert_true(s.temperature == 0.5f);
    assert_true(s.top_k == 0 && s.top_p == 1 && s.min_p == 0 && s.typical_p == 1);
    assert_true(s.repeat_penalty == 1 && s.presence_penalty == 0 && s.frequency_penalty == 0);
    assert_int_equal(s.penalty_last_n, d.penalty_last_n);
    assert_true(s.dry_multiplier == 0 && s.dry_base == d.dry_base);
    assert_int_equal(s.dry_allowed_length, d.dry_allowed_length);
    assert_int_equal(s.dry_penalty_last_n, d.dry_penalty_last_n);
    assert_true(s.mirostat == 0 && s.mirostat_tau == d.mirostat_tau &&
                s.mirostat_eta == d.mirostat_eta);
    assert_null(s.grammar);
}

static void test_wire__every_field_arrives(void **state)
{
    wire_sampling in = NAKSHATRA__V1__SAMPLING__INIT;
    Nakshatra__V1__LogitBias b0 = NAKSHATRA__V1__LOGIT_BIAS__INIT, b1 = b0,
                             *biases[] = { &b0, &b1 };
    struct nk_sampling s;
    struct nk_error err;

    (void)state;
    b0.id = 7, b0.bias = -INFINITY;
    b1.id = 9, b1.bias = 2.5f;
    in.temperature = 0.7f, in.top_k = 3, in.top_p = 0.4f, in.min_p = 0.05f, in.typical_p = 0.6f;
    in.repeat_penalty = 1.1f, in.presence_penalty = 0.2f, in.frequency_penalty = 0.3f;
    in.penalty_last_n = -1, in.dry_multiplier = 0.8f, in.dry_base = 1.5f, in.dry_allowed_length = 4;
    in.dry_penalty_last_n = 99, in.mirostat = 2, in.mirostat_tau = 4, in.mirostat_eta = 0.2f;
    in.top_n_sigma = 1.5f, in.xtc_probability = 0.6f, in.xtc_threshold = 0.15f;
    in.dynatemp_range = 0.25f, in.dynatemp_exponent = 2;
    in.seed_given_case = NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED, in.seed = 0;
    in.logit_bias = biases, in.n_logit_bias = 2;
    in.grammar = (char *)(uintptr_t) "root ::= \"a\"", in.ignore_eos = true;
    assert_int_equal(nk__wire_sampling(&s, bias, &in, &err), 0);
    assert_true(s.temperature == 0.7f && s.top_k == 3 && s.top_p == 0.4f && s.min_p == 0.05f &&
                s.typical_p == 0.6f);
    assert_true(s.repeat_penalty == 1.1f && s.presence_penalty == 0.2f &&
                s.frequency_penalty == 0.3f && s.penalty_last_n == -1);
    assert_true(s.dry_multiplier == 0.8f && s.dry_base == 1.5f && s.dry_allowed_length == 4 &&
                s.dry_penalty_last_n == 99);
    assert_true(s.mirostat == 2 && s.mirostat_tau == 4 && s.mirostat_eta == 0.2f);
    assert_true(s.top_n_sigma == 1.5f && s.xtc_probability == 0.6f && s.xtc_threshold == 0.15f &&
                s.dynatemp_range == 0.25f && s.dynatemp_exponent == 2);
    assert_true(s.seed == 0 && s.ignore_eos);
    assert_string_equal(s.grammar, "root ::= \"a\"");
    assert_int_equal(s.n_logit_bias, 2);
    assert_true(s.logit_bias[0].id == 7 && s.logit_bias[0].bias == -INFINITY &&
                s.logit_bias[1].id == 9 && s.logit_bias[1].bias == 2.5f);
}

static void test_wire__too_many_biases_are_counted_before_they_are_copied(void **state)
{
    wire_sampling in = NAKSHATRA__V1__SAMPLING__INIT;
    struct nk_sampling s;
    struct nk_error err;

    (void)state;
    in.n_logit_bias = NK_LOGIT_BIAS_MAX + 1; /* the array itself must not be looked at */
    assert_int_equal(nk__wire_sampling(&s, bias, &in, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_sampling");
    assert_non_null(strstr(err.msg, "1025"));
}

/* ---- rows ---- */

enum { N = 3, WIDTH = 5 };

static wire_rows rows_of(void *data, size_t size, Nakshatra__V1__Dtype dtype)
{
    wire_rows r = NAKSHATRA__V1__ROWS__INIT;

    r.n_rows = N;
    r.width = WIDTH;
    r.dtype = dtype;
    r.data.data = data;
    r.data.len = size;
    return r;
}

static void test_wire__rows_of_both_dtypes_from_any_address(void **state)
{
    float in[N * WIDTH], out[N * WIDTH];
    uint16_t half[N * WIDTH];
    unsigned char odd[sizeof in + 1];
    struct nk_error err;
    wire_rows r;

    (void)state;
    for (int i = 0; i < N * WIDTH; i++)
        in[i] = (float)(i - 7) * 0.25f;
    nk_f16_from_f32(half, in, N * WIDTH);
    for (int shift = 0; shift < 2; shift++) {
        memcpy(odd + shift, in, sizeof in);
        r = rows_of(odd + shift, sizeof in, NAKSHATRA__V1__DTYPE__DTYPE_F32);
        memset(out, 0, sizeof out);
        assert_int_equal(nk__wire_rows(out, &r, N, WIDTH, &err), 0);
        assert_memory_equal(out, in, sizeof in);
        r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_UNSPECIFIED;
        assert_int_equal(nk__wire_rows(out, &r, N, WIDTH, &err), 0);
        memcpy(odd + shift, half, sizeof half);
        r = rows_of(odd + shift, sizeof half, NAKSHATRA__V1__DTYPE__DTYPE_F16);
        memset(out, 0, sizeof out);
        assert_int_equal(nk__wire_rows(out, &r, N, WIDTH, &err), 0);
        assert_memory_equal(out, in, sizeof in); /* quarters are exact in half precision */
    }
}

static void refused(const wire_rows *r, const char *reason, const char *word)
{
    float out[N * WIDTH];
    struct nk_error err;

    assert_int_equal(nk__wire_rows(out, r, N, WIDTH, &err), NK_E_INVALID);
    assert_string_equal(err.reason, reason);
    if (!strstr(err.msg, word))
        fail_msg("\"%s\" does not say %s", err.msg, word);
}

static void test_wire__rows_whose_sizes_do_not_fit_are_refused(void **state)
{
    float in[N * WIDTH] = { 0 };
    const wire_rows good = rows_of(in, sizeof in, NAKSHATRA__V1__DTYPE__DTYPE_F32);
    wire_rows r;

    (void)state;
    refused(NULL, "bad_rows", "missing");
    r = good, r.n_rows = N + 1;
    refused(&r, "bad_rows", "4");
    r = good, r.width = WIDTH - 1;
    refused(&r, "bad_rows", "width 4");
    r = good, r.n_rows = r.width = 0xffffffffu;
    refused(&r, "bad_rows", "4294967295");
    r = good, r.n_rows = 0x80000000u + N;
    refused(&r, "bad_rows", "2147483651");
    r = good, r.data.len = 0, r.data.data = NULL;
    refused(&r, "bad_rows", "0 came");
    r = good, r.data.len--;
    refused(&r, "bad_rows", "59 came");
    r = good, r.data.len++;
    refused(&r, "bad_rows", "61 came");
    r = good, r.dtype = NAKSHATRA__V1__DTYPE__DTYPE_F16;
    refused(&r, "bad_rows", "30 bytes");
    r = good, r.dtype = (Nakshatra__V1__Dtype)77;
    refused(&r, "bad_dtype", "77");
    r = good, r.dtype = (Nakshatra__V1__Dtype)-1;
    refused(&r, "bad_dtype", "-1");
}

static void test_wire__rows_that_are_no_numbers_are_refused_by_their_row(void **state)
{
    const float bad[] = { NAN, INFINITY, -INFINITY };
    const uint16_t bad_half[] = { 0x7e00, 0x7c00, 0xfc00, 0x7c01 };
    float in[N * WIDTH] = { 0 };
    uint16_t half[N * WIDTH] = { 0 };
    wire_rows r;

    (void)state;
    for (int i = 0; i < 3; i++) {
        in[2 * WIDTH] = bad[i];
        r = rows_of(in, sizeof in, NAKSHATRA__V1__DTYPE__DTYPE_F32);
        refused(&r, "not_finite", "row 2");
    }
    for (int i = 0; i < 4; i++) {
        half[N * WIDTH - 1] = bad_half[i];
        r = rows_of(half, sizeof half, NAKSHATRA__V1__DTYPE__DTYPE_F16);
        refused(&r, "not_finite", "row 2");
    }
}

/* A chunk of more was once refused at every long prompt, by the ceiling of a message. */
static void test_wire__the_largest_chunk_fits_a_message(void **state)
{
    static const int widths[] = { 128, 2048, 4096, 8191, 8192, 18432, 65536 };
    enum { BATCH_MAX = 8192 };
    int32_t *ids = malloc(BATCH_MAX * sizeof *ids);

    (void)state;
    for (int i = 0; i < BATCH_MAX; i++)
        ids[i] = INT32_MAX;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        Nakshatra__V1__InferenceRequest req = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
        Nakshatra__V1__Step step = NAKSHATRA__V1__STEP__INIT;
        Nakshatra__V1__Rows rows = NAKSHATRA__V1__ROWS__INIT;
        int n = nk__wire_rows_max(widths[i]);

        assert_true(n >= 256); /* a GPU's chunk, whatever the width */
        if (n > BATCH_MAX)
            n = BATCH_MAX;
        rows.n_rows = (uint32_t)n;
        rows.width = (uint32_t)widths[i];
        rows.data.len = (size_t)n * (size_t)widths[i] * sizeof(float); /* only counted */
        step.step = step.group = UINT64_MAX;
        step.pos = UINT32_MAX;
        step.ids = ids;
        step.n_ids = (size_t)n;
        step.rows = &rows;
        req.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_STEP;
        req.step = &step;
        assert_true(nakshatra__v1__inference_request__get_packed_size(&req) <=
                    NK_RPC_MESSAGE_BYTES_MAX);
    }
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire__no_sampling_is_greedy),
        cmocka_unit_test(test_wire__zero_is_off_or_libllamas_default),
        cmocka_unit_test(test_wire__every_field_arrives),
        cmocka_unit_test(test_wire__too_many_biases_are_counted_before_they_are_copied),
        cmocka_unit_test(test_wire__rows_of_both_dtypes_from_any_address),
        cmocka_unit_test(test_wire__rows_whose_sizes_do_not_fit_are_refused),
        cmocka_unit_test(test_wire__rows_that_are_no_numbers_are_refused_by_their_row),
        cmocka_unit_test(test_wire__the_largest_chunk_fits_a_message),
    };

    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
