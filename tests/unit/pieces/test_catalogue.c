#include <fcntl.h>

#include "unit/pieces/pieces_test.h"
#include "unit/seed.h"

/* ---- what it says ---- */

static void hash_extent(const char *path, uint64_t offset, uint64_t size, nk_sha256 *h)
{
    FILE *f = fopen(path, "rb");

    assert_non_null(f);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    for (; size; size--) {
        char c = (char)getc(f);

        nk_sha256_add(h, &c, 1);
    }
    fclose(f);
}

static void test_catalogue__pieces_are_named_by_their_bytes(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-f32.gguf"), hex[NK_SHA256_HEX],
         found[NK_SHA256_HEX], hash[NK_SHA256_HEX];
    nk_catalogue *c = catalogue_of(path);
    nk_model *m = open_model(path);
    int n_layer = nk_model_info(m)->n_layer, n = nk_model_n_tensors(m), other = n_layer;

    (void)state;
    for (int i = 0; i < n_layer; i++) {
        nk_sha256 *h = nk_sha256_new();

        for (int k = 0; k < n; k++) {
            struct nk_tensor_place t;

            nk_model_tensor_place(m, k, &t);
            if (t.layer == i)
                hash_extent(path, t.offset, t.size_bytes, h);
        }
        nk_sha256_finish(h, hex);
        nk__digest_text(nk_catalogue_piece(c, i)->sha256, found);
        assert_string_equal(hex, found);
        /* Of a piece of one part, the part's is the piece's. */
        nk__digest_text(nk_catalogue_part(c, nk_catalogue_piece(c, i)->first_part)->sha256, found);
        assert_string_equal(hex, found);
    }
    for (int k = 0; k < n; k++) {
        struct nk_tensor_place t;
        nk_sha256 *h;

        nk_model_tensor_place(m, k, &t);
        if (t.layer >= 0)
            continue;
        h = nk_sha256_new();
        hash_extent(path, t.offset, t.size_bytes, h);
        nk_sha256_finish(h, hex);
        nk__digest_text(nk_catalogue_piece(c, other)->sha256, found);
        assert_string_equal(hex, found);
        assert_string_equal(nk_catalogue_piece(c, other)->name, t.name);
        other++;
    }
    assert_int_equal(other, nk_catalogue_n_pieces(c));
    use_cache("another");
    ok(nk_model_hash(m, hash, err));
    assert_string_equal(nk_catalogue_model_sha256(c), hash);
    nk_model_close(m);
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__large_pieces_have_parts_of_4_mib(void **state)
{
    char *path = make_model("parts", false, 7);
    nk_catalogue *c = catalogue_of(path);
    uint64_t bytes;
    int n = 0;

    (void)state;
    for (int i = 0; i < nk_catalogue_n_pieces(c); i++) {
        const struct nk_piece *p = nk_catalogue_piece(c, i);
        uint64_t sum = 0;

        assert_int_equal(p->first_part, n);
        for (int k = 0; k < p->n_parts; k++, n++) {
            assert_int_equal(nk_catalogue_part(c, n)->piece, i);
            sum += nk_catalogue_part(c, n)->size_bytes;
            if (k + 1 < p->n_parts)
                assert_int_equal(nk_catalogue_part(c, n)->size_bytes, NK_PART_BYTES);
        }
        assert_int_equal(sum, p->size_bytes);
    }
    assert_int_equal(n, nk_catalogue_n_parts(c));
    assert_int_equal(nk_catalogue_piece(c, 0)->n_parts, 2);
    /* A middle slice: its layer, the small tensors, and one part each of the embedding and the
     * head, whose first 32 rows it has. */
    ok(nk_catalogue_range_bytes(c, (struct nk_range){ 1, 2 }, &bytes, err));
    assert_int_equal(bytes,
                     nk_catalogue_piece(c, 1)->size_bytes + 2 * NK_PART_BYTES + 32 * 4 + WIDTH * 4);
    ok(nk_catalogue_range_bytes(c, (struct nk_range){ 0, 0 }, &bytes, err));
    assert_int_equal(bytes, 0);
    refused(nk_catalogue_range_bytes(c, (struct nk_range){ 3, 2 }, &bytes, err), NK_E_INVALID,
            "bad_ranges");
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__what_is_parsed_is_what_was_made(void **state)
{
    char *path = make_shards("round", 3);
    nk_catalogue *c = catalogue_of(path), *again;
    struct nk_bytes a = nk_catalogue_bytes(c), b;
    const struct nk_model_info *x, *y;
    nk_model *m = open_model(path);

    (void)state;
    ok(nk_catalogue_parse(&again, a.data, a.size, err));
    b = nk_catalogue_bytes(again);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    assert_string_equal(nk_catalogue_id(c), nk_catalogue_id(again));
    for (int i = 0; i < nk_catalogue_n_parts(c); i++)
        assert_memory_equal(nk_catalogue_part(c, i)->sha256, nk_catalogue_part(again, i)->sha256,
                            NK_DIGEST_BYTES);
    /* The heads alone say of the model what the files do. */
    x = nk_model_info(m);
    y = nk_model_info(nk_catalogue_model(again));
    assert_int_equal(x->n_layer, y->n_layer);
    assert_int_equal(x->n_shards, y->n_shards);
    assert_int_equal(x->file_bytes, y->file_bytes);
    assert_memory_equal(x->layer_bytes, y->layer_bytes, sizeof x->layer_bytes);
    assert_int_equal(x->head_bytes, y->head_bytes);
    for (int at = 1; at < x->n_layer; at++)
        assert_int_equal(nk_model_cut_check(m, at, NULL),
                         nk_model_cut_check(nk_catalogue_model(again), at, NULL));
    nk_model_close(m);
    nk_catalogue_unref(c);
    nk_catalogue_unref(again);
    free(path);
}

static void test_catalogue__the_second_time_reads_no_weights(void **state)
{
    char *path = make_model("second", true, 5), hash[NK_SHA256_HEX];
    struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
    nk_catalogue *a, *b;
    nk_model *m;
    FILE *f;

    (void)state;
    utimensat(AT_FDCWD, path, old, 0); /* a new file's times are not trusted */
    a = catalogue_of(path);
    /* Who read the weights would notice. */
    f = fopen(path, "r+b");
    fseek(f, -100, SEEK_END);
    fputc('x', f);
    fclose(f);
    utimensat(AT_FDCWD, path, old, 0);
    m = open_model(path);
    ok(nk_catalogue_make(&b, m, err));
    assert_string_equal(nk_catalogue_id(a), nk_catalogue_id(b));
    ok(nk_model_hash(m, hash, err));
    assert_string_equal(hash, nk_catalogue_model_sha256(a));
    nk_model_close(m);
    nk_catalogue_unref(b);
    utimensat(AT_FDCWD, path,
              (struct timespec[2]){ { .tv_sec = 1000000001 }, { .tv_sec = 1000000001 } }, 0);
    b = catalogue_of(path);
    assert_string_not_equal(nk_catalogue_id(a), nk_catalogue_id(b));
    nk_catalogue_unref(a);
    nk_catalogue_unref(b);
    free(path);
}

static void test_catalogue__is_found_by_its_id(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf"), file[256],
         id[NK_SHA256_HEX];
    nk_catalogue *c, *found;
    FILE *f;

    (void)state;
    use_cache("found");
    c = catalogue_of(path);
    ok(nk_catalogue_find(&found, nk_catalogue_id(c), err));
    assert_string_equal(nk_catalogue_id(c), nk_catalogue_id(found));
    nk_catalogue_unref(found);
    refused(nk_catalogue_find(&found, "../../etc/passwd", err), NK_E_NOT_FOUND, "no_catalogue");
    snprintf(id, sizeof id, "%s", nk_catalogue_id(c));
    snprintf(file, sizeof file, "%s/found/nakshatra/catalogues/%s", test_dir, id);
    f = fopen(file, "r+b");
    fseek(f, -1, SEEK_END);
    fputc(0, f);
    fclose(f);
    refused(nk_catalogue_find(&found, id, err), NK_E_NOT_FOUND, "no_catalogue");
    assert_int_equal(access(file, F_OK), -1); /* it was not what it is named */
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__the_cache_keeps_the_last_32(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf"), first[NK_SHA256_HEX];
    nk_catalogue *c, *other;
    struct nk_bytes b;
    uint8_t *copy;

    (void)state;
    use_cache("many");
    c = catalogue_of(path);
    snprintf(first, sizeof first, "%s", nk_catalogue_id(c));
    b = nk_catalogue_bytes(c);
    copy = malloc(b.size);
    memcpy(copy, b.data, b.size);
    for (int i = 0; i < 32; i++) {
        copy[b.size - 1] = (uint8_t)(b.data[b.size - 1] + 1 + i);
        ok(nk_catalogue_find(&other, first, err)); /* until the last of them came */
        nk_catalogue_unref(other);
        ok(nk_catalogue_parse(&other, copy, b.size, err));
        nk_catalogue_keep(other);
        nk_catalogue_unref(other);
    }
    refused(nk_catalogue_find(&other, first, err), NK_E_NOT_FOUND, "no_catalogue");
    free(copy);
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__a_slice_has_none(void **state)
{
    char *model = given_model("NK_SOURCE", ".", "stories260K-f32.gguf"),
         *slice = true_slice(model, (struct nk_range){ 0, 2 });
    nk_model *m = open_model(slice);
    nk_catalogue *c;

    (void)state;
    refused(nk_catalogue_make(&c, m, err), NK_E_INVALID, "not_a_model");
    nk_model_close(m);
    free(slice);
    free(model);
}

/* ---- hostile bytes ---- */

/* Whatever it is: a catalogue or an error; and what was taken can be used. */
static void parse_any(const uint8_t *data, size_t size)
{
    struct nk_error err = { 0 };
    struct nk_range whole = { 0, 1 };
    nk_catalogue *c;
    uint64_t bytes;

    if (nk_catalogue_parse(&c, data, size, &err)) {
        assert_null(c);
        assert_true(err.reason[0] && err.msg[0]);
        return;
    }
    nk_catalogue_range_bytes(c, whole, &bytes, NULL);
    nk_catalogue_unref(c);
}

static void test_catalogue__every_short_prefix_is_refused(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf");
    nk_catalogue *c = catalogue_of(path), *none;
    struct nk_bytes b = nk_catalogue_bytes(c);
    size_t step = b.size > 4000 ? 97 : 1;
    uint8_t *copy;

    (void)state;
    for (size_t n = 0; n < b.size; n += n < 300 ? 1 : step) {
        copy = malloc(n + 1); /* so that a sanitizer sees who reads on */
        memcpy(copy, b.data, n);
        if (!nk_catalogue_parse(&none, copy, n, NULL))
            fail_msg("%zu of %zu bytes were a catalogue", n, b.size);
        free(copy);
    }
    copy = malloc(b.size + 1);
    memcpy(copy, b.data, b.size);
    copy[b.size] = 0;
    refused(nk_catalogue_parse(&none, copy, b.size + 1, err), NK_E_INVALID, "bad_catalogue");
    free(copy);
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__any_change_is_a_catalogue_or_refused(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf");
    nk_catalogue *c = catalogue_of(path);
    struct nk_bytes b = nk_catalogue_bytes(c);
    uint64_t seed = seed_begin();
    uint8_t *copy = malloc(b.size);

    (void)state;
    for (int i = 0; i < 1500; i++) {
        size_t n_changes = 1 + seed_next(&seed) % 3;

        memcpy(copy, b.data, b.size);
        for (size_t k = 0; k < n_changes; k++) {
            /* Mostly where numbers are. */
            size_t reach = seed_next(&seed) % 3 ? 200 : b.size,
                   at = seed_next(&seed) % (reach < b.size ? reach : b.size);

            copy[at] = (uint8_t)seed_next(&seed);
        }
        parse_any(copy, b.size);
    }
    free(copy);
    nk_catalogue_unref(c);
    free(path);
}

static void test_catalogue__a_name_that_leaves_the_folder_is_refused(void **state)
{
    char *path = given_model("NK_SOURCE", ".", "stories260K-q8_0.gguf");
    nk_catalogue *c = catalogue_of(path), *none;
    struct nk_bytes b = nk_catalogue_bytes(c);
    uint8_t *copy = malloc(b.size);

    (void)state;
    memcpy(copy, b.data, b.size);
    assert_memory_equal(copy + 60, "stories", 7);
    memcpy(copy + 60, "../stor", 7);
    refused(nk_catalogue_parse(&none, copy, b.size, err), NK_E_INVALID, "bad_name");
    memcpy(copy + 60, "sto/ies", 7);
    refused(nk_catalogue_parse(&none, copy, b.size, err), NK_E_INVALID, "bad_name");
    free(copy);
    nk_catalogue_unref(c);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_catalogue__pieces_are_named_by_their_bytes),
        cmocka_unit_test(test_catalogue__large_pieces_have_parts_of_4_mib),
        cmocka_unit_test(test_catalogue__what_is_parsed_is_what_was_made),
        cmocka_unit_test(test_catalogue__the_second_time_reads_no_weights),
        cmocka_unit_test(test_catalogue__is_found_by_its_id),
        cmocka_unit_test(test_catalogue__the_cache_keeps_the_last_32),
        cmocka_unit_test(test_catalogue__a_slice_has_none),
        cmocka_unit_test(test_catalogue__every_short_prefix_is_refused),
        cmocka_unit_test(test_catalogue__any_change_is_a_catalogue_or_refused),
        cmocka_unit_test(test_catalogue__a_name_that_leaves_the_folder_is_refused),
    };

    test_dir_make(NULL);
    use_cache("cache");
    return cmocka_run_group_tests(tests, NULL, test_dir_remove);
}
