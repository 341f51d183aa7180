#include "text/detok.h"

#include "base/utf8.h"
#include "unit/text/text_test.h"

/* What a whole sequence should become: all bytes at once, bad ones replaced, cut at the first stop
 * string. Written naively and independent of the detokenizer, to compare with. */
static void expected_text(const nk_vocab *v, const int32_t *ids, size_t n, bool special,
                          const char *const *stops, size_t n_stop, struct nk_buf *out,
                          const char **stop)
{
    struct nk_buf bytes = NK_BUF_INIT(1 << 22);
    size_t pos = 0, best_end = SIZE_MAX, best_begin = 0;

    for (size_t i = 0; i < n; i++)
        assert_int_equal(nk_vocab_piece(v, ids[i], special, &bytes, NULL), 0);
    while (pos < bytes.size) {
        int m = nk_utf8_next(bytes.data + pos, bytes.size - pos, NULL);

        if (m > 0)
            nk_buf_add(out, bytes.data + pos, (size_t)m, NULL);
        else
            nk_buf_adds(out, "\xEF\xBF\xBD", NULL);
        pos += m > 0 ? (size_t)m : m < 0 ? (size_t)-m : bytes.size - pos;
    }
    *stop = NULL;
    for (size_t i = 0; i < n_stop; i++) {
        const char *at =
            out->data ? memmem(out->data, out->size, stops[i], strlen(stops[i])) : NULL;
        size_t begin, end;

        if (!at)
            continue;
        begin = (size_t)(at - out->data);
        end = begin + strlen(stops[i]);
        if (end < best_end || (end == best_end && begin < best_begin)) {
            best_end = end;
            best_begin = begin;
            *stop = stops[i];
        }
    }
    if (*stop) {
        out->size = best_begin;
        out->data[best_begin] = '\0';
    }
    nk_buf_release(&bytes);
}

/* Feeds the ids one by one; what has come out is whole characters at every step. */
static void stream(const nk_vocab *v, const int32_t *ids, size_t n, bool special,
                   const char *const *stops, size_t n_stop, struct nk_buf *out, const char **stop)
{
    struct nk_error err = { 0 };
    nk_detok *d;
    bool stopped = false;
    size_t at;

    if (nk_detok_new(&d, v, stops, n_stop, special, &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < n && !stopped; i++) {
        assert_int_equal(nk_detok_add(d, ids[i], out, &stopped, &err), 0);
        assert_true(nk_utf8_valid(nk_buf_str(out), out->size, &at));
    }
    assert_int_equal(nk_detok_finish(d, out, &err), 0);
    *stop = nk_detok_stop(d);
    assert_int_equal(stopped, *stop != NULL);
    if (*stop)
        for (size_t i = 0; i < n_stop; i++) /* the caller's own string, to compare pointers with */
            if (!strcmp(stops[i], *stop)) {
                *stop = stops[i];
                break;
            }
    nk_detok_free(d);
}

static void assert_stream(const nk_vocab *v, const int32_t *ids, size_t n, bool special,
                          const char *const *stops, size_t n_stop)
{
    struct nk_buf expected = NK_BUF_INIT(1 << 22), found = NK_BUF_INIT(1 << 22);
    const char *stop_expected, *stop_found;

    expected_text(v, ids, n, special, stops, n_stop, &expected, &stop_expected);
    stream(v, ids, n, special, stops, n_stop, &found, &stop_found);
    assert_int_equal(found.size, expected.size);
    assert_memory_equal(nk_buf_str(&found), nk_buf_str(&expected), found.size);
    assert_string_equal(stop_found ? stop_found : "(none)",
                        stop_expected ? stop_expected : "(none)");
    nk_buf_release(&expected);
    nk_buf_release(&found);
}

static void test_detok__a_stream_is_the_whole_text_on_random_ids(void **state)
{
    static const int kinds[] = { VOCAB_KJV, VOCAB_BPE, VOCAB_RWKV, VOCAB_WPM, VOCAB_UGM };

    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        nk_vocab *v = test_vocab(kinds[k]);
        struct test_random r = { 42 + k };

        for (int round = 0; round < 400; round++) {
            int32_t ids[200];
            size_t n = (size_t)test_below(&r, 200);

            for (size_t i = 0; i < n; i++) /* byte tokens more often than not */
                ids[i] = test_below(&r, 3)
                             ? test_below(&r, nk_vocab_size(v) < 259 ? nk_vocab_size(v) : 259)
                             : test_below(&r, nk_vocab_size(v));
            assert_stream(v, ids, n, round & 1, NULL, 0);
        }
        nk_vocab_close(v);
    }
}

/* Stop strings over a small alphabet, so that they overlap, contain each other and nearly happen
 * all the time. */
static void test_detok__finds_stop_strings_wherever_tokens_end(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct test_random r = { 7 };
    int n_stopped = 0;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        char text[NK_STOP_MAX][12];
        const char *stops[NK_STOP_MAX];
        int n_stop = 1 + test_below(&r, NK_STOP_MAX);
        int32_t ids[60];

        for (int i = 0; i < n_stop; i++) {
            int size = 1 + test_below(&r, 9), at = 0;

            while (at < size)
                text[i][at++] = "hen "[test_below(&r, 4)];
            text[i][at] = '\0';
            stops[i] = text[i];
        }
        for (int i = 0; i < 60; i++) {
            static const int32_t some[] = { 'h', 'e', 'n' };
            int pick = test_below(&r, 8);

            /* single letters, " ", "he", " the", "in" ...; see vocab_file.h */
            ids[i] = pick < 3 ? some[pick] : pick == 3 ? ' ' : 256 + test_below(&r, 8);
        }
        assert_stream(v, ids, 60, false, stops, (size_t)n_stop);
        {
            struct nk_buf out = NK_BUF_INIT(1 << 16);
            const char *stop;

            stream(v, ids, 60, false, stops, (size_t)n_stop, &out, &stop);
            n_stopped += stop != NULL;
            nk_buf_release(&out);
        }
    }
    assert_in_range(n_stopped, 500, 2990); /* both kinds of ending were tried */
    nk_vocab_close(v);
}

static void test_detok__keeps_leading_spaces_newlines_emoji_and_chinese(void **state)
{
    static const char text[] = "  two spaces\n\n\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9 "
                               "\xE4\xBD\xA0\xE5\xA5\xBD\r\n\ttab ";
    static const int kinds[] = { VOCAB_KJV, VOCAB_BPE, VOCAB_RWKV };

    (void)state;
    for (size_t k = 0; k < 3; k++) {
        nk_vocab *v = test_vocab(kinds[k]);
        struct nk_buf out = NK_BUF_INIT(1000);
        struct nk_tokens t;
        const char *stop;

        assert_int_equal(
            nk_vocab_tokenize(v, text, strlen(text), false, false, 1000, NULL, &t, NULL), 0);
        stream(v, t.ids, t.n, false, NULL, 0, &out, &stop);
        assert_string_equal(nk_buf_str(&out) + (kinds[k] == VOCAB_KJV),
                            text); /* SPM's own first space */
        nk_buf_release(&out);
        free(t.ids);
        nk_vocab_close(v);
    }
}

static void test_detok__agrees_with_libllamas_detokenizer(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct test_random r = { 99 };

    (void)state;
    for (int round = 0; round < 300; round++) {
        int32_t ids[50];
        char whole[8192];
        struct nk_buf out = NK_BUF_INIT(8192);
        const char *stop, *found;
        int n;

        for (int i = 0; i < 50; i++)
            ids[i] =
                259 + test_below(&r, nk_vocab_size(v) - 259); /* no byte tokens: whole characters */
        n = llama_detokenize(nk_vocab_llama(v), ids, 50, whole, sizeof whole, false, false);
        assert_true(n > 0);
        stream(v, ids, 50, false, NULL, 0, &out, &stop);
        found = nk_buf_str(&out);
        /* llama_detokenize drops the first token's leading space. */
        if (out.size == (size_t)n + 1 && found[0] == ' ')
            found++;
        assert_int_equal(out.size - (size_t)(found - nk_buf_str(&out)), n);
        assert_memory_equal(found, whole, (size_t)n);
        nk_buf_release(&out);
    }
    nk_vocab_close(v);
}

static void test_detok__holds_back_no_more_than_it_must(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    const char *stops[] = { "he the" };
    struct nk_buf out = NK_BUF_INIT(100);
    nk_detok *d;
    bool stopped;

    (void)state;
    assert_int_equal(nk_detok_new(&d, v, stops, 1, false, NULL), 0);
    assert_int_equal(nk_detok_add(d, 'x', &out, &stopped, NULL), 0);
    assert_string_equal(nk_buf_str(&out), "x");
    assert_int_equal(nk_detok_add(d, 259, &out, &stopped, NULL),
                     0); /* "he": may begin the stop string */
    assert_string_equal(nk_buf_str(&out), "x");
    assert_int_equal(nk_detok_add(d, 'x', &out, &stopped, NULL), 0); /* did not */
    assert_string_equal(nk_buf_str(&out), "xhex");
    assert_int_equal(nk_detok_add(d, 259, &out, &stopped, NULL), 0);
    assert_int_equal(nk_detok_add(d, 258, &out, &stopped, NULL), 0); /* " the" */
    assert_true(stopped);
    assert_string_equal(nk_buf_str(&out), "xhex");
    assert_string_equal(nk_detok_stop(d), "he the");
    /* Nothing more comes after a stop. */
    assert_int_equal(nk_detok_add(d, 'x', &out, &stopped, NULL), 0);
    assert_true(stopped);
    assert_int_equal(nk_detok_finish(d, &out, NULL), 0);
    assert_string_equal(nk_buf_str(&out), "xhex");
    nk_detok_free(d);
    nk_buf_release(&out);
    nk_vocab_close(v);
}

static void test_detok__refuses_bad_stop_strings(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    char long_one[NK_STOP_BYTES_MAX + 2];
    const char *many[NK_STOP_MAX + 1], *bad[] = { "", "\xFF", long_one };
    struct nk_error err = { 0 };
    nk_detok *d;

    (void)state;
    memset(long_one, 'x', sizeof long_one - 1);
    long_one[sizeof long_one - 1] = '\0';
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nk_detok_new(&d, v, &bad[i], 1, false, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_stop");
        assert_null(d);
    }
    for (int i = 0; i <= NK_STOP_MAX; i++)
        many[i] = "x";
    assert_int_equal(nk_detok_new(&d, v, many, NK_STOP_MAX + 1, false, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_stop");
    long_one[NK_STOP_BYTES_MAX] = '\0';
    assert_int_equal(nk_detok_new(&d, v, &bad[2], 1, false, &err), 0);
    nk_detok_free(d);
    nk_vocab_close(v);
}

static void test_detok__an_id_outside_the_vocabulary_is_an_error(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct nk_buf out = NK_BUF_INIT(100);
    struct nk_error err = { 0 };
    nk_detok *d;
    bool stopped;

    (void)state;
    assert_int_equal(nk_detok_new(&d, v, NULL, 0, false, NULL), 0);
    assert_int_equal(nk_detok_add(d, -1, &out, &stopped, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_token");
    assert_int_equal(nk_detok_add(d, 'x', &out, &stopped, &err), 0);
    assert_string_equal(nk_buf_str(&out), "x");
    nk_detok_free(d);
    nk_buf_release(&out);
    nk_vocab_close(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detok__a_stream_is_the_whole_text_on_random_ids),
        cmocka_unit_test(test_detok__finds_stop_strings_wherever_tokens_end),
        cmocka_unit_test(test_detok__keeps_leading_spaces_newlines_emoji_and_chinese),
        cmocka_unit_test(test_detok__agrees_with_libllamas_detokenizer),
        cmocka_unit_test(test_detok__holds_back_no_more_than_it_must),
        cmocka_unit_test(test_detok__refuses_bad_stop_strings),
        cmocka_unit_test(test_detok__an_id_outside_the_vocabulary_is_an_error),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
