#include "text/vocab.h"

#include "unit/text/text_test.h"

/* Tokenizes, and gives the text of the ids' pieces back. */
static void tokenize(const nk_vocab *v, const char *text, bool add_special, bool parse_special,
                     struct nk_tokens *t)
{
    struct nk_error err = { 0 };

    if (nk_vocab_tokenize(v, text, strlen(text), add_special, parse_special, 100000, NULL, t, &err))
        fail_msg("\"%s\": %s", text, err.msg);
}

static void assert_pieces(const nk_vocab *v, const struct nk_tokens *t, bool special,
                          const char *text)
{
    struct nk_buf buf = NK_BUF_INIT(1 << 20);
    struct nk_error err;

    for (size_t i = 0; i < t->n; i++)
        assert_int_equal(nk_vocab_piece(v, t->ids[i], special, &buf, &err), 0);
    assert_string_equal(nk_buf_str(&buf), text);
    nk_buf_release(&buf);
}

static const char mixed[] =
    "hello the world\n  x \xF0\x9F\x98\x80 \xE4\xB8\xAD\xE6\x96\x87\ttab\r\n\n\n q";

static void test_vocab__pieces_of_a_text_are_the_text(void **state)
{
    static const int kinds[] = { VOCAB_BPE, VOCAB_RWKV, VOCAB_KJV };

    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        nk_vocab *v = test_vocab(kinds[i]);
        struct nk_tokens t;
        char expected[sizeof mixed + 1];

        tokenize(v, mixed, false, false, &t);
        /* SPM puts a space before the text; it is the tokenizer's, and shown. */
        snprintf(expected, sizeof expected, "%s%s", kinds[i] == VOCAB_KJV ? " " : "", mixed);
        assert_pieces(v, &t, false, expected);
        free(t.ids);
        nk_vocab_close(v);
    }
}

static void test_vocab__special_text_becomes_its_token_only_when_asked(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct nk_tokens t;

    (void)state;
    tokenize(v, "<|im_start|>he<|im_end|>", false, true, &t);
    assert_int_equal(t.n, 3);
    assert_true(nk_vocab_is_eog(v, t.ids[2]));
    assert_pieces(v, &t, false, "he"); /* control tokens have no text of their own */
    assert_pieces(v, &t, true, "<|im_start|>he<|im_end|>");
    free(t.ids);
    tokenize(v, "<|im_start|>he<|im_end|>", false, false, &t);
    assert_true(t.n > 10);
    assert_pieces(v, &t, false, "<|im_start|>he<|im_end|>");
    free(t.ids);
    nk_vocab_close(v);
}

static void test_vocab__bos_is_added_where_the_model_wants_it(void **state)
{
    nk_vocab *spm = test_vocab(VOCAB_KJV), *bpe = test_vocab(VOCAB_BPE);
    struct nk_tokens t;

    (void)state;
    tokenize(spm, "", true, false, &t);
    assert_int_equal(t.n, 1);
    assert_int_equal(t.ids[0], nk_vocab_bos(spm));
    free(t.ids);
    tokenize(bpe, "", true, false, &t);
    assert_int_equal(t.n, 0);
    free(t.ids);
    nk_vocab_close(spm);
    nk_vocab_close(bpe);
}

static void test_vocab__names_the_character_it_cannot_express(void **state)
{
    static const struct {
        int kind;
        const char *text, *named;
    } cases[] = {
        { VOCAB_SPM_HOLES, "abc 1", "U+0031, at byte 4" },
        { VOCAB_SPM_HOLES, "a\xF0\x9F\x98\x80", "U+1F600, at byte 1" },
        { VOCAB_BPE_HOLES, "a q", "U+0071, at byte 2" },
        { VOCAB_BPE_HOLES, "abc \xE4\xB8\xAD", "U+4E2D, at byte 4" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nk_vocab *v = test_vocab(cases[i].kind);
        struct nk_error err = { 0 };
        struct nk_tokens t;

        assert_int_equal(nk_vocab_tokenize(v, cases[i].text, strlen(cases[i].text), true, true, 100,
                                           NULL, &t, &err),
                         NK_E_INVALID);
        assert_string_equal(err.reason, "bad_text");
        if (!strstr(err.msg, cases[i].named))
            fail_msg("%s", err.msg);
        assert_null(t.ids);
        /* and goes on working */
        tokenize(v, "abc", false, true, &t);
        assert_true(t.n >= 1);
        free(t.ids);
        nk_vocab_close(v);
    }
}

static void test_vocab__every_tokenizer_takes_every_character(void **state)
{
    (void)state;
    for (int kind = 0; kind <= VOCAB_KJV; kind++) {
        nk_vocab *v;

        if (kind == VOCAB_STUB)
            continue;
        v = test_vocab(kind);
        for (uint32_t cp = 0; cp <= 0x10FFFF; cp += cp < 0x3000 ? 1 : 61) {
            char text[4];
            struct nk_error err = { 0 };
            struct nk_tokens t;
            int rc;

            if (cp >= 0xD800 && cp <= 0xDFFF)
                continue;
            rc = nk_vocab_tokenize(v, text, (size_t)utf8_bytes(cp, text), true, true, 100, NULL, &t,
                                   &err);
            if (rc && (rc != NK_E_INVALID || strcmp(err.reason, "bad_text") != 0))
                fail_msg("U+%04X: %d %s", cp, rc, err.msg);
            free(t.ids);
        }
        nk_vocab_close(v);
    }
}

static void test_vocab__says_where_text_is_not_utf8(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_error err = { 0 };
    struct nk_tokens t;

    (void)state;
    assert_int_equal(nk_vocab_tokenize(v,
                                       "ab\xFF"
                                       "c",
                                       4, true, true, 100, NULL, &t, &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "bad_text");
    assert_non_null(strstr(err.msg, "0xff at position 2"));
    nk_vocab_close(v);
}

static void test_vocab__holds_the_limit_on_tokens(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct nk_error err = { 0 };
    struct nk_tokens t;

    (void)state;
    assert_int_equal(nk_vocab_tokenize(v, "xyzxyz", 6, false, false, 5, NULL, &t, &err),
                     NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_non_null(strstr(err.msg, "6 tokens; at most 5"));
    assert_null(t.ids);
    assert_int_equal(nk_vocab_tokenize(v, "xyzxyz", 6, false, false, 6, NULL, &t, &err), 0);
    assert_int_equal(t.n, 6);
    free(t.ids);
    assert_int_equal(nk_vocab_tokenize(v, "x", 1, false, false, 0, NULL, &t, &err), NK_E_EXHAUSTED);
    nk_vocab_close(v);
}

static void test_vocab__nul_is_a_character_like_any_other(void **state)
{
    static const int kinds[] = { VOCAB_BPE, VOCAB_KJV };

    (void)state;
    for (int i = 0; i < 2; i++) {
        nk_vocab *v = test_vocab(kinds[i]);
        struct nk_buf buf = NK_BUF_INIT(100);
        struct nk_error err;
        struct nk_tokens t;

        assert_int_equal(nk_vocab_tokenize(v, "a\0b", 3, false, false, 100, NULL, &t, &err), 0);
        for (size_t j = 0; j < t.n; j++)
            assert_int_equal(nk_vocab_piece(v, t.ids[j], false, &buf, &err), 0);
        assert_true(buf.size >= 3);
        assert_memory_equal(buf.data + buf.size - 3, "a\0b", 3);
        nk_buf_release(&buf);
        free(t.ids);
        nk_vocab_close(v);
    }
}

static void test_vocab__refuses_ids_it_does_not_have(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    static const int32_t ids[] = { -1, INT32_MIN, INT32_MAX, 1024 };
    struct nk_buf buf = NK_BUF_INIT(100);

    (void)state;
    assert_int_equal(nk_vocab_size(v), 1024);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        struct nk_error err = { 0 };

        assert_int_equal(nk_vocab_piece(v, ids[i], true, &buf, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_token");
        assert_false(nk_vocab_is_eog(v, ids[i]));
    }
    assert_int_equal(buf.size, 0);
    nk_buf_release(&buf);
    nk_vocab_close(v);
}

static void test_vocab__a_piece_that_does_not_fit_leaves_the_buffer_alone(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    struct nk_buf buf = NK_BUF_INIT(9);
    struct nk_error err = { 0 };
    int32_t start = nk_vocab_size(v) - 6; /* <|im_start|> */

    (void)state;
    assert_int_equal(nk_buf_adds(&buf, "12345678", &err), 0);
    assert_int_equal(nk_vocab_piece(v, start, true, &buf, &err), NK_E_EXHAUSTED);
    assert_string_equal(buf.data, "12345678");
    assert_int_equal(nk_vocab_piece(v, 'a', false, &buf, &err), 0); /* one byte does */
    assert_int_equal(buf.size, 9);
    nk_buf_release(&buf);
    nk_vocab_close(v);
}

static void assert_refused(const char *path, int code, const char *reason)
{
    struct nk_error err = { 0 };
    nk_vocab *v = (nk_vocab *)path;

    assert_int_equal(nk_vocab_open(&v, path, &err), code);
    assert_string_equal(err.reason, reason);
    assert_non_null(strstr(err.msg, path));
    assert_null(v);
}

static void test_vocab__says_what_is_wrong_with_a_file(void **state)
{
    char path[256];
    FILE *f;

    (void)state;
    assert_refused("/nonexistent/x.gguf", NK_E_NOT_FOUND, "no_file");
    assert_refused(test_dir, NK_E_INVALID, "not_a_file");
    assert_refused("/dev/null", NK_E_INVALID, "not_a_file");
    vocab_file_path(path, test_dir, VOCAB_STUB);
    assert_true(vocab_file_write(path, VOCAB_STUB));
    assert_refused(path, NK_E_INVALID, "no_vocab");
    f = fopen(path, "wb");
    assert_non_null(f);
    fputs("GGUF but not really", f);
    fclose(f);
    assert_refused(path, NK_E_INVALID, "bad_gguf");
}

/* Every prefix of a vocabulary file, and the same file with one key's type or length changed, opens
 * or is refused. */
static void test_vocab__survives_files_cut_anywhere(void **state)
{
    char path[256], whole[1 << 15];
    size_t size;
    FILE *f;

    (void)state;
    vocab_file_path(path, test_dir, VOCAB_BPE);
    assert_true(vocab_file_write(path, VOCAB_BPE));
    f = fopen(path, "rb");
    assert_non_null(f);
    size = fread(whole, 1, sizeof whole, f);
    fclose(f);
    assert_true(size > 5000 && size < sizeof whole);
    for (size_t cut = 0; cut < size - 64; cut += cut < 512 ? 1 : 97) {
        f = fopen(path, "wb");
        assert_non_null(f);
        fwrite(whole, 1, cut, f);
        fclose(f);
        assert_refused(path, NK_E_INVALID, "bad_gguf");
    }
}

static void test_vocab__refuses_arrays_that_llama_would_misread(void **state)
{
    char path[256];

    (void)state;
    vocab_file_path(path, test_dir, VOCAB_BPE);
    for (int variant = 0; variant < 8; variant++) {
        /* 6: two that are equal; 7: a byte's token where the tokenizer has none. On both libllama
         * aborts. */
        const char *tokens[] = { "a", "b", "c", variant == 6 ? "b" : "d" }, *merges[] = { "a b" };
        const float scores[] = { 0, 0, 0, 0 };
        const int32_t types[] = { 1, 1, 1, variant == 7 ? LLAMA_TOKEN_TYPE_BYTE : 1 };
        struct gguf_context *g = gguf_init_empty();

        gguf_set_val_str(g, "general.architecture", "llama");
        gguf_set_val_str(g, "tokenizer.ggml.model", variant == 7 ? "bert" : "gpt2");
        if (variant == 0)
            gguf_set_arr_data(g, "tokenizer.ggml.tokens", GGUF_TYPE_INT32, types, 4);
        else
            gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, 4);
        gguf_set_arr_data(g, "tokenizer.ggml.scores",
                          variant == 1 ? GGUF_TYPE_UINT8 : GGUF_TYPE_FLOAT32, scores,
                          variant == 2 ? 2 : 4);
        if (variant == 3)
            gguf_set_val_u32(g, "tokenizer.ggml.token_type", 1);
        else
            gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types,
                              variant == 4 ? 1 : 4);
        if (variant == 5)
            gguf_set_arr_data(g, "tokenizer.ggml.merges", GGUF_TYPE_INT32, types, 1);
        else
            gguf_set_arr_str(g, "tokenizer.ggml.merges", merges, 1);
        assert_true(gguf_write_to_file(g, path, true));
        gguf_free(g);
        assert_refused(path, NK_E_INVALID, "bad_gguf");
    }
}

/* A vocabulary of these tokens alone, with the ids that libllama takes for it. */
static void write_tokens(char path[256], const char *kind, const char **tokens, int32_t type0,
                         const char *more)
{
    struct gguf_context *g = gguf_init_empty();
    float scores[8] = { 0 };
    int32_t types[8];
    size_t n = 0;

    while (tokens[n])
        types[n++] = 1;
    types[0] = type0;
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "tokenizer.ggml.model", kind);
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, n);
    gguf_set_arr_str(g, "tokenizer.ggml.merges", (const char *[]){ "a b" }, 1);
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores, n);
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types, n);
    if (more)
        gguf_set_val_bool(g, more, true);
    vocab_file_path(path, test_dir, VOCAB_BPE);
    assert_true(gguf_write_to_file(g, path, true));
    gguf_free(g);
}

/* libllama asserts that there is a token where it adds one, also where the file names none. */
static void test_vocab__tokens_that_are_added_must_be_there(void **state)
{
    const char *words[] = { "[UNK]", "a", "##b", NULL }, *one[] = { "a", NULL },
               *some[] = { "b", "a", NULL }, *gap[] = { "a", "th", NULL };
    char path[256];

    (void)state;
    write_tokens(path, "bert", words, LLAMA_TOKEN_TYPE_UNKNOWN, NULL);
    assert_refused(path, NK_E_INVALID, "bad_gguf");
    write_tokens(path, "llama", one, LLAMA_TOKEN_TYPE_NORMAL, "tokenizer.ggml.add_bos_token");
    assert_refused(path, NK_E_INVALID, "bad_gguf");
    write_tokens(path, "rwkv", gap, LLAMA_TOKEN_TYPE_NORMAL, NULL); /* and never ends on "to" */
    assert_refused(path, NK_E_INVALID, "bad_gguf");
    write_tokens(path, "rwkv", some, LLAMA_TOKEN_TYPE_NORMAL, NULL);
    {
        struct nk_error err = { 0 };
        struct nk_tokens t;
        nk_vocab *v;

        assert_int_equal(nk_vocab_open(&v, path, &err), 0);
        assert_int_equal(nk_vocab_tokenize(v, "aa", 2, false, false, 10, NULL, &t, &err), 0);
        assert_int_equal(t.n, 2);
        free(t.ids);
        /* It has no token for x, and none for what is unknown. */
        assert_int_equal(nk_vocab_tokenize(v, "axa", 3, false, false, 10, NULL, &t, &err),
                         NK_E_INVALID);
        assert_string_equal(err.reason, "bad_text");
        assert_non_null(strstr(err.msg, "U+0078"));
        assert_null(t.ids);
        nk_vocab_close(v);
    }
    write_tokens(path, "gpt2", one, LLAMA_TOKEN_TYPE_NORMAL, NULL);
    {
        struct nk_error err = { 0 };
        nk_vocab *v;

        assert_int_equal(nk_vocab_open(&v, path, &err), 0); /* libllama's usual one is 11 */
        assert_int_equal(nk_vocab_bos(v), LLAMA_TOKEN_NULL);
        assert_int_equal(nk_vocab_eos(v), LLAMA_TOKEN_NULL);
        nk_vocab_close(v);
    }
}

static void test_vocab__a_borrowed_stub_answers_with_an_error(void **state)
{
    char path[256];
    struct llama_model_params params = llama_model_default_params();
    struct llama_model *model;
    struct nk_buf buf = NK_BUF_INIT(100);
    struct nk_error err = { 0 };
    struct nk_tokens t;
    nk_vocab *v;

    (void)state;
    vocab_file_path(path, test_dir, VOCAB_STUB);
    assert_true(vocab_file_write(path, VOCAB_STUB));
    params.vocab_only = true;
    model = llama_model_load_from_file(path, params);
    assert_non_null(model);
    v = nk_vocab_borrow(llama_model_get_vocab(model));
    assert_non_null(v);
    assert_int_equal(nk_vocab_tokenize(v, "a", 1, true, true, 10, NULL, &t, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "no_vocab");
    assert_int_equal(nk_vocab_piece(v, 0, true, &buf, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "no_vocab");
    assert_false(nk_vocab_is_eog(v, 0));
    assert_int_equal(nk_vocab_bos(v), -1);
    assert_null(nk_vocab_chat_template(v));
    nk_vocab_close(v);
    llama_model_free(model);
    nk_buf_release(&buf);
}

static void test_chat__renders_what_llama_knows(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    const struct nk_chat_message messages[] = { { "system", "be brief" },
                                                { "user", "hi \xF0\x9F\x98\x80" } };
    struct nk_buf buf = NK_BUF_INIT(1 << 16);
    struct nk_error err = { 0 };
    const char expected[] =
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi \xF0\x9F\x98\x80<|im_end|>\n"
        "<|im_start|>assistant\n";

    (void)state;
    assert_non_null(nk_vocab_chat_template(v));
    assert_int_equal(
        nk_chat_render_builtin(nk_vocab_chat_template(v), messages, 2, true, &buf, &err), 0);
    assert_string_equal(nk_buf_str(&buf), expected);
    nk_buf_reset(&buf);
    assert_int_equal(nk_chat_render_builtin("chatml", messages, 2, true, &buf, &err), 0);
    assert_string_equal(nk_buf_str(&buf), expected);
    nk_buf_reset(&buf);
    assert_int_equal(nk_chat_render_builtin("chatml", NULL, 0, false, &buf, &err), 0);
    assert_int_equal(buf.size, 0);
    nk_buf_release(&buf);
    nk_vocab_close(v);
}

static void test_chat__names_what_it_knows_when_asked_for_something_else(void **state)
{
    const struct nk_chat_message message = { "user", "hi" };
    struct nk_buf buf = NK_BUF_INIT(1 << 16);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_chat_render_builtin("no-such-template", &message, 1, true, &buf, &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, "unknown_template");
    assert_non_null(strstr(err.msg, "no-such-template"));
    assert_non_null(strstr(err.msg, "chatml"));
    assert_int_equal(buf.size, 0);
    nk_buf_release(&buf);
}

static void test_chat__a_buffer_that_is_too_small_is_an_error(void **state)
{
    const struct nk_chat_message message = { "user", "hi" };
    struct nk_buf buf = NK_BUF_INIT(16);
    struct nk_error err = { 0 };

    (void)state;
    assert_int_equal(nk_chat_render_builtin("chatml", &message, 1, true, &buf, &err),
                     NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    nk_buf_release(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocab__pieces_of_a_text_are_the_text),
        cmocka_unit_test(test_vocab__special_text_becomes_its_token_only_when_asked),
        cmocka_unit_test(test_vocab__bos_is_added_where_the_model_wants_it),
        cmocka_unit_test(test_vocab__names_the_character_it_cannot_express),
        cmocka_unit_test(test_vocab__every_tokenizer_takes_every_character),
        cmocka_unit_test(test_vocab__says_where_text_is_not_utf8),
        cmocka_unit_test(test_vocab__holds_the_limit_on_tokens),
        cmocka_unit_test(test_vocab__nul_is_a_character_like_any_other),
        cmocka_unit_test(test_vocab__refuses_ids_it_does_not_have),
        cmocka_unit_test(test_vocab__a_piece_that_does_not_fit_leaves_the_buffer_alone),
        cmocka_unit_test(test_vocab__says_what_is_wrong_with_a_file),
        cmocka_unit_test(test_vocab__survives_files_cut_anywhere),
        cmocka_unit_test(test_vocab__refuses_arrays_that_llama_would_misread),
        cmocka_unit_test(test_vocab__tokens_that_are_added_must_be_there),
        cmocka_unit_test(test_vocab__a_borrowed_stub_answers_with_an_error),
        cmocka_unit_test(test_chat__renders_what_llama_knows),
        cmocka_unit_test(test_chat__names_what_it_knows_when_asked_for_something_else),
        cmocka_unit_test(test_chat__a_buffer_that_is_too_small_is_an_error),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
