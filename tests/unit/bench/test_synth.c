/* Synthetic models: types (two slow ones left out) are finite and of the promised magnitude, the
 * bytes follow from the options, and shapes that cannot be are refused. */
#include "bench/synth.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <cmocka.h>
#include <ggml.h>
#include <gguf.h>

#include "base/buf.h"
#include "base/file.h"

static char dir[] = "/tmp/nk_synth_XXXXXX";
static char path[64];

static struct nk_synth_shape small(void)
{
    struct nk_synth_shape s = { .name = "test",
                                .n_layers = 2,
                                .n_embd = 256,
                                .n_ff = 512,
                                .n_head = 4,
                                .n_head_kv = 2,
                                .n_vocab = 1024,
                                .n_ctx = 512,
                                .type = "Q4_K",
                                .seed = 7 };

    return s;
}

static void write_shape(const struct nk_synth_shape *s)
{
    struct nk_error err = { 0 };

    if (nk_synth_write(path, s, NULL, &err))
        fail_msg("%s", err.msg);
}

static void read_all(struct nk_buf *b)
{
    nk_buf_init(b, 1 << 26);
    assert_int_equal(nk_file_read(path, 1 << 26, b, NULL), 0);
}

static void test_synth__types_are_finite_and_of_the_promised_magnitude(void **state)
{
    static const char *const types[] = { "f32",    "f16",     "bf16",  "q4_0",   "q4_1",
                                         "q5_0",   "q5_1",    "q8_0",  "q2_K",   "q3_K",
                                         "Q4_K",   "q5_K",    "q6_K",  "iq1_s",  "iq2_xxs",
                                         "iq2_xs", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs",
                                         "tq1_0",  "tq2_0",   "mxfp4" };

    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
#ifdef __SANITIZE_ADDRESS__
        /* ggml computes seconds for tables of these, and is not what a sanitizer looks at. */
        if (!strcmp(types[i], "iq1_s") || !strcmp(types[i], "iq2_xs") || !strcmp(types[i], "iq3_s"))
            continue;
#endif
        struct nk_synth_shape s = small();
        struct ggml_context *ctx = NULL;
        struct gguf_context *gguf;
        struct ggml_tensor *t;
        double sum2 = 0;
        float *values;
        int64_t n;

        s.type = types[i];
        write_shape(&s);
        gguf = gguf_init_from_file(path, (struct gguf_init_params){ false, &ctx });
        assert_non_null(gguf);
        t = ggml_get_tensor(ctx, "blk.1.ffn_down.weight");
        assert_non_null(t);
        assert_int_equal(strcasecmp(ggml_type_name(t->type), types[i]), 0);
        n = ggml_nelements(t);
        values = malloc((size_t)n * sizeof *values);
        assert_non_null(values);
        if (t->type == GGML_TYPE_F32)
            memcpy(values, t->data, (size_t)n * sizeof *values);
        else
            ggml_get_type_traits(t->type)->to_float(t->data, values, n);
        for (int64_t j = 0; j < n; j++) {
            if (!isfinite(values[j]))
                fail_msg("%s: weight %lld is %f", types[i], (long long)j, (double)values[j]);
            sum2 += (double)values[j] * (double)values[j];
        }
        /* 1/sqrt(512 inputs), less what the coarsest types lose. */
        if (!(sqrt(sum2 / (double)n * 512) > 0.5 && sqrt(sum2 / (double)n * 512) < 1.6))
            fail_msg("%s: magnitude %f instead of 1", types[i], sqrt(sum2 / (double)n * 512));
        free(values);
        gguf_free(gguf);
        ggml_free(ctx);
    }
}

static void test_synth__same_options_give_the_same_bytes_and_another_seed_others(void **state)
{
    struct nk_synth_shape s = small();
    struct nk_buf a, b, c;

    (void)state;
    write_shape(&s);
    read_all(&a);
    write_shape(&s);
    read_all(&b);
    s.seed++;
    write_shape(&s);
    read_all(&c);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    assert_int_equal(a.size, c.size);
    assert_memory_not_equal(a.data, c.data, a.size);
    nk_buf_release(&a);
    nk_buf_release(&b);
    nk_buf_release(&c);
}

static void test_synth__counts_what_it_wrote(void **state)
{
    struct nk_synth_shape s = small();
    struct nk_synth_result r;
    struct nk_buf b;

    (void)state;
    s.n_expert = 4;
    s.n_expert_used = 1;
    s.untied = true;
    assert_int_equal(nk_synth_write(path, &s, &r, NULL), 0);
    read_all(&b);
    assert_int_equal(b.size, r.file_bytes);
    nk_buf_release(&b);
    /* embedding and output, their norm, rope_freqs; per layer two norms, q and o, k and v, the
     * router, the experts */
    assert_int_equal(r.n_params, 2 * 1024 * 256 + 256 + 32 +
                                     2 * (2 * 256 + 2 * 256 * 256 + 2 * 256 * 128 + 256 * 4 +
                                          3 * 256 * 512 * 4));
    assert_int_equal(r.n_params - r.n_params_active, 2 * 3 * 256 * 512 * 3);
}

static void test_synth__refuses_shapes_that_cannot_be(void **state)
{
    struct nk_synth_shape bad[7];
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        bad[i] = small();
    bad[0].n_embd = 100;
    bad[1].n_head = 3;
    bad[2].n_head_kv = 3;
    bad[3].n_expert_used = 2;
    bad[4].n_vocab = 100;
    bad[5].n_layers = 0;
    bad[6].n_expert = 4;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        unlink(path);
        assert_int_equal(nk_synth_write(path, &bad[i], NULL, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_shape");
        assert_int_not_equal(access(path, F_OK), 0);
    }
}

static void test_synth__refuses_types_that_do_not_exist_or_fit(void **state)
{
    struct nk_synth_shape s = small();
    struct nk_error err;

    (void)state;
    s.type = "Q9_Z";
    assert_int_equal(nk_synth_write(path, &s, NULL, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_type");
    s = small();
    s.n_ff = 288; /* no multiple of a K-quant's 256 */
    assert_int_equal(nk_synth_write(path, &s, NULL, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_type");
    s.type = "Q8_0";
    assert_int_equal(nk_synth_write(path, &s, NULL, &err), 0);
}

static void test_synth__names_the_shapes_when_one_is_unknown(void **state)
{
    struct nk_synth_shape s;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_synth_preset("huge", &s, &err), NK_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "tiny"));
    assert_int_equal(nk_synth_preset("moe", &s, &err), 0);
    assert_int_equal(s.n_expert, 8);
}

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_synth__types_are_finite_and_of_the_promised_magnitude),
        cmocka_unit_test(test_synth__same_options_give_the_same_bytes_and_another_seed_others),
        cmocka_unit_test(test_synth__counts_what_it_wrote),
        cmocka_unit_test(test_synth__refuses_shapes_that_cannot_be),
        cmocka_unit_test(test_synth__refuses_types_that_do_not_exist_or_fit),
        cmocka_unit_test(test_synth__names_the_shapes_when_one_is_unknown),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
