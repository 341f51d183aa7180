/* Slices of random weights: laid out as real ones, whatever the model's data are. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <ggml.h>

#include "base/file.h"
#include "slice/random_int.h"
#include "unit/slice/make.h"

static const char no_hash[] = "0000000000000000000000000000000000000000000000000000000000000000";
static const char file_a[] = "random-a.gguf", file_b[] = "random-b.gguf";

static void read_all(const char *path, struct nk_buf *out)
{
    struct nk_error err = { 0 };

    nk_buf_init(out, 1 << 24);
    if (nk_file_read(path, 1 << 24, out, &err))
        fail_msg("%s", err.msg);
}

static void write_random(const nk_model *m, struct nk_range range, const char *path,
                         struct nk_buf *out)
{
    struct nk_error err = { 0 };
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    if (nk_slice_write_random(m, range, fileno(f), path, &err))
        fail_msg("%s", err.msg);
    fclose(f);
    read_all(path, out);
}

static nk_model *open_stories(char *path, size_t size)
{
    const char *source = getenv("NK_SOURCE");
    struct nk_error err = { 0 };
    nk_model *m;

    snprintf(path, size, "%s/tests/data/stories260K-q8_0.gguf", source ? source : "../..");
    if (nk_model_open(&m, path, &err))
        fail_msg("%s", err.msg);
    return m;
}

static void test_random__has_the_header_of_a_slice(void **state)
{
    static const struct nk_range ranges[] = { { 0, 2 }, { 1, 3 }, { 3, 5 }, { 0, 5 } };
    struct nk_error err = { 0 };
    struct nk_buf random, real;
    char path[4096];
    nk_model *m = open_stories(path, sizeof path);

    (void)state;
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        nk_model *a, *b;

        write_random(m, ranges[i], file_a, &random);
        assert_int_equal(nk_slice_write(m, ranges[i], no_hash, file_b, NULL, &err), 0);
        read_all(file_b, &real);
        assert_int_equal(nk_model_open(&a, file_a, &err), 0);
        assert_int_equal(nk_model_open(&b, file_b, &err), 0);
        /* But for its digests, which follow the data. */
        assert_true(random.size < real.size);
        assert_memory_equal(random.data, real.data, b->shards[0].data_offset);
        assert_memory_not_equal(random.data + b->shards[0].data_offset,
                                real.data + b->shards[0].data_offset, 1000);
        nk_model_close(a);
        nk_model_close(b);
        nk_buf_release(&random);
        nk_buf_release(&real);
    }
    nk_model_close(m);
    unlink(file_a);
    unlink(file_b);
}

static void test_random__reads_no_data(void **state)
{
    struct nk_buf whole, from_data, from_none;
    struct nk_error err = { 0 };
    char path[4096];
    nk_model *m = open_stories(path, sizeof path), *empty;
    size_t at = m->shards[0].data_offset;

    (void)state;
    read_all(path, &whole);
    memset(whole.data + at, 0xff, whole.size - at); /* NaN, wherever it is looked at */
    assert_int_equal(nk__model_open_memory(&empty, whole.data, whole.size, &err), 0);
    write_random(m, (struct nk_range){ 1, 5 }, file_a, &from_data);
    write_random(empty, (struct nk_range){ 1, 5 }, file_b, &from_none);
    /* Names differ: one is not a file. */
    assert_int_equal(nk_model_bytes_per_row(m, 1), nk_model_bytes_per_row(empty, 1));
    assert_true(from_data.size == from_none.size);
    assert_memory_equal(from_data.data + from_data.size / 2, from_none.data + from_none.size / 2,
                        from_data.size / 2);
    nk_model_close(m);
    nk_model_close(empty);
    nk_buf_release(&whole);
    nk_buf_release(&from_data);
    nk_buf_release(&from_none);
    unlink(file_a);
    unlink(file_b);
}

/* Every type that ggml can read as numbers: all finite, and not all the same. */
static void test_random__weights_of_every_type_are_numbers(void **state)
{
    static uint8_t data[NK__RANDOM_BYTES_MAX];
    static float numbers[4096];
    nk__random *r;
    int n_types = 0;

    (void)state;
    assert_int_equal(nk__random_new(&r, NULL), 0);
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const struct ggml_type_traits *traits = ggml_get_type_traits((enum ggml_type)type);
        struct nk__tensor t = { .name = "blk.0.ffn_up.weight",
                                .rest = "ffn_up.weight",
                                .type = type,
                                .ne = { 256, 16, 1, 1 } };
        double square = 0;
        size_t n;

        if (!traits || !traits->blck_size || !traits->type_size ||
            (!traits->to_float && type != GGML_TYPE_F32))
            continue;
        n = nk__random_draw(r, &t, 16 * ggml_row_size((enum ggml_type)type, 256), data);
        assert_int_equal(n, 16 * ggml_row_size((enum ggml_type)type, 256));
        if (traits->to_float)
            traits->to_float(data, numbers, 4096);
        else
            memcpy(numbers, data, sizeof numbers);
        for (int i = 0; i < 4096; i++) {
            assert_true(isfinite(numbers[i]));
            square += (double)numbers[i] * numbers[i];
        }
        /* Of variance 1/256, as far as so few bits can have it; or zeros. */
        assert_true(square == 0 || (square > 4096 / 256.0 / 4 && square < 4096 / 256.0 * 4));
        n_types += square > 0;
    }
    assert_true(n_types >= 25);
    nk__random_free(r);
}

static void test_random__a_slice_is_refused(void **state)
{
    struct nk_error err = { 0 };
    char path[4096];
    nk_model *m = open_stories(path, sizeof path), *slice;

    (void)state;
    assert_int_equal(nk_slice_write(m, (struct nk_range){ 1, 3 }, no_hash, file_a, NULL, &err), 0);
    assert_int_equal(nk_model_open(&slice, file_a, &err), 0);
    assert_int_equal(nk_slice_write_random(slice, (struct nk_range){ 0, 1 }, -1, "x", &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "not_a_model");
    nk_model_close(slice);
    nk_model_close(m);
    unlink(file_a);
}

static void test_shape__is_of_what_is_computed(void **state)
{
    static const int rows[] = { 1, 1, 2 };
    char a[NK_SHA256_HEX], b[NK_SHA256_HEX];
    struct nk_error err = { 0 };
    struct gguf_context *g;
    nk_model *m, *other;
    char *bytes, *more;
    size_t size;

    (void)state;
    bytes = make_bytes(make_gguf("llama", 3, rows), &size);
    assert_int_equal(nk__model_open_memory(&m, bytes, size, &err), 0);
    assert_int_equal(nk_model_shape(m, 0, a, &err), 0);
    assert_int_equal(nk_model_shape(m, 1, b, &err), 0);
    assert_string_equal(a, b);
    assert_int_equal(nk_model_shape(m, 2, b, &err), 0);
    assert_string_not_equal(a, b);
    /* Another name is no other shape; another number of heads is. */
    assert_int_equal(nk_model_shape(m, -1, a, &err), 0);
    for (int i = 0; i < 2; i++) {
        g = make_gguf("llama", 3, rows);
        if (i)
            make_u32(g, "llama", "attention.head_count", 8);
        else
            gguf_set_val_str(g, "general.name", "another");
        more = make_bytes(g, &size);
        assert_int_equal(nk__model_open_memory(&other, more, size, &err), 0);
        assert_int_equal(nk_model_shape(other, -1, b, &err), 0);
        assert_int_equal(strcmp(a, b) != 0, i);
        nk_model_close(other);
        free(more);
    }
    nk_model_close(m);
    free(bytes);
}

static void test_shape__a_row_reads_the_experts_that_it_uses(void **state)
{
    struct gguf_context *g = make_gguf("llama", 1, NULL);
    struct ggml_tensor t = { .type = GGML_TYPE_F32, .ne = { MAKE_WIDTH, 4, 8, 1 } };
    struct nk_error err = { 0 };
    char *bytes;
    size_t size;
    nk_model *m;

    (void)state;
    make_u32(g, "llama", "expert_count", 8);
    make_u32(g, "llama", "expert_used_count", 2);
    t.nb[0] = 4;
    t.nb[1] = 4 * MAKE_WIDTH;
    t.nb[2] = 4 * t.nb[1];
    t.nb[3] = 8 * t.nb[2];
    ggml_set_name(&t, "blk.0.ffn_up_exps.weight");
    gguf_add_tensor(g, &t);
    bytes = make_bytes(g, &size);
    if (nk__model_open_memory(&m, bytes, size, &err))
        fail_msg("%s", err.msg);
    /* A row of ffn_up, and two of eight experts of four rows. */
    assert_int_equal(nk_model_bytes_per_row(m, 0), 4 * MAKE_WIDTH * (1 + 2 * 4));
    nk_model_close(m);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random__has_the_header_of_a_slice),
        cmocka_unit_test(test_random__reads_no_data),
        cmocka_unit_test(test_random__weights_of_every_type_are_numbers),
        cmocka_unit_test(test_random__a_slice_is_refused),
        cmocka_unit_test(test_shape__is_of_what_is_computed),
        cmocka_unit_test(test_shape__a_row_reads_the_experts_that_it_uses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
