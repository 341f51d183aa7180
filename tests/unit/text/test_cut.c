/* Texts that are tokenized in parts (text/cut.h): the same tokens as the whole, over vocabularies
 * with every trait that libllama's SPM tokenizer has, and work that grows as the text does. */
#include "unit/text/text_test.h"

#include "text/cut.h"
#include "unit/seed.h"

enum trait {
    NO_SPACE_IN_FRONT = 1, /* add_space_prefix false */
    STRIPS = 2,            /* special tokens take the white space behind them along */
    ENDS = 4,              /* EOS is added */
    TRAITS = 8,
};

/* SPM with byte tokens, tokens of several characters, user-defined and control tokens. */
static nk_vocab *spm_vocab(int traits)
{
    static const char *const words[] = { "a",
                                         "b",
                                         "c",
                                         "d",
                                         "ab",
                                         "bc",
                                         "abc",
                                         "\xE2\x96\x81",
                                         "\n",
                                         "\xE2\x96\x81"
                                         "a",
                                         "cd",
                                         "dd",
                                         "\xE2\x96\x81\xE2\x96\x81",
                                         "dddd",
                                         "d\n",
                                         "\xE4\xBD\xA0",
                                         "\xE4\xBD\xA0"
                                         "a",
                                         NULL };
    static const char *const user[] = { "[U]", "\n\n", "b[", "x y", NULL };
    static const char *const control[] = { "<|c|>", "<|cc|>", "|>", "<|endoftext|>", NULL };
    struct vocab_file *f = calloc(1, sizeof *f);
    struct gguf_context *g = gguf_init_empty();
    const char *texts[VOCAB_FILE_TOKENS_MAX];
    char path[256], byte[8];
    struct nk_error err = { 0 };
    nk_vocab *v = NULL;

    assert_non_null(f);
    vocab_file_add(f, "<unk>", 2, 0);
    vocab_file_add(f, "<s>", 3, 0);
    vocab_file_add(f, "</s>", 3, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)b);
        vocab_file_add(f, byte, 6, 0);
    }
    for (int i = 0; words[i]; i++) /* scores that make some joins win over others to their left */
        vocab_file_add(f, words[i], 1, -(float)((i * 7) % 17));
    vocab_file_add_n(f, user, 4);
    vocab_file_add_n(f, control, 3);
    gguf_set_val_str(g, "general.architecture", "llama");
    if (traits & STRIPS)
        gguf_set_val_str(g, "general.name", "phi-3");
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_val_bool(g, "tokenizer.ggml.add_space_prefix", !(traits & NO_SPACE_IN_FRONT));
    gguf_set_val_bool(g, "tokenizer.ggml.add_eos_token", traits & ENDS);
    for (int i = 0; i < f->n; i++)
        texts[i] = f->text[i];
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", texts, (size_t)f->n);
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, f->type, (size_t)f->n);
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, f->score, (size_t)f->n);
    snprintf(path, sizeof path, "%s/spm.gguf", test_dir);
    assert_true(gguf_write_to_file(g, path, true));
    gguf_free(g);
    free(f);
    if (nk_vocab_open(&v, path, &err))
        fail_msg("%s", err.msg);
    unlink(path);
    return v;
}

/* A BPE vocabulary: its regular expression, and special tokens that overlap. */
static const char *const bpe_pres[] = { "gpt-2", "llama-bpe", "qwen2", "jina-v2-code", "gpt-4o" };
enum { BPE_PRES = sizeof bpe_pres / sizeof bpe_pres[0] };

static nk_vocab *bpe_vocab(int pre)
{
    static const char *const user[] = { "[U]", "[U]a",   "]ddd",
                                        "  ",  "<mask>", /* takes space along */
                                        NULL };
    static const char *const control[] = { "<|c|>", "<|cc|>", "|>d", "<s>", "</s>", NULL };
    struct vocab_file *f = calloc(1, sizeof *f);
    struct gguf_context *g = gguf_init_empty();
    const char *texts[VOCAB_FILE_TOKENS_MAX];
    char path[256];
    struct nk_error err = { 0 };
    nk_vocab *v = NULL;

    assert_non_null(f);
    vocab_file_bpe(f, false);
    vocab_file_add_n(f, user, 4);
    vocab_file_add_n(f, control, 3);
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "tokenizer.ggml.model", "gpt2");
    gguf_set_val_str(g, "tokenizer.ggml.pre", bpe_pres[pre]);
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)f->n - 2);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)f->n - 1);
    gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", pre & 1);
    gguf_set_val_bool(g, "tokenizer.ggml.add_eos_token", pre & 2);
    for (int i = 0; i < f->n; i++)
        texts[i] = f->text[i];
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", texts, (size_t)f->n);
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, f->type, (size_t)f->n);
    gguf_set_arr_str(g, "tokenizer.ggml.merges", (const char **)f->merges, (size_t)f->n_merges);
    snprintf(path, sizeof path, "%s/bpe.gguf", test_dir);
    assert_true(gguf_write_to_file(g, path, true));
    gguf_free(g);
    free(f);
    if (nk_vocab_open(&v, path, &err))
        fail_msg("%s", err.msg);
    unlink(path);
    return v;
}

/* The other kinds that libllama has, with the same special tokens. */
static const char *const other_models[] = { "bert", "t5", "rwkv", "plamo2" };
enum { WPM, UGM, RWKV, PLAMO2, OTHERS };

static nk_vocab *other_vocab(int kind)
{
    static const char *const starts[] = { "[UNK]", "<unk>", "<unk>", "<unk>" };
    static const char *const words[] = { "\xE2\x96\x81",
                                         "\xE2\x96\x81"
                                         "a",
                                         "\xE2\x96\x81"
                                         "ab",
                                         "\xE2\x96\x81"
                                         "the",
                                         "\xE2\x96\x81x",
                                         "a",
                                         "b",
                                         "c",
                                         "abc",
                                         "cd",
                                         "dddd",
                                         "h",
                                         "e",
                                         ".",
                                         "\xE2\x96\x81.",
                                         "\xE2\x96\x81\xE4\xBD\xA0",
                                         "\xE4\xBD\xA0",
                                         "xa",
                                         NULL };
    static const char *const user[] = { "[U]", "[U]a", "]ddd", "x y", NULL };
    static const char *const control[] = { "<|c|>", "<|cc|>", "|>d", "<s>", "</s>", NULL };
    struct vocab_file *f = calloc(1, sizeof *f);
    struct gguf_context *g = gguf_init_empty();
    const char *texts[VOCAB_FILE_TOKENS_MAX];
    char path[256], byte[8];
    struct nk_error err = { 0 };
    nk_vocab *v = NULL;

    assert_non_null(f);
    vocab_file_add(f, starts[kind], 2, 0);
    for (int b = 0; b < 256 && (kind == RWKV || kind == PLAMO2); b++) {
        snprintf(byte, sizeof byte, kind == RWKV ? "\\x%02x" : "<0x%02X>", (unsigned)b);
        vocab_file_add(f, byte, kind == RWKV ? 1 : 6, 0);
    }
    for (int i = 0; words[i]; i++) /* scores that make some ways to read a text win over others */
        if (kind != RWKV || !strchr("abche.", words[i][0]) || words[i][1])
            vocab_file_add(f, words[i], 1, -(float)((i * 7) % 17) - 1);
    vocab_file_add_n(f, user, 4);
    vocab_file_add_n(f, control, 3);
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "tokenizer.ggml.model", other_models[kind]);
    gguf_set_val_u32(g, "tokenizer.ggml.unknown_token_id", 0);
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)f->n - 2);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)f->n - 1);
    gguf_set_val_u32(g, "tokenizer.ggml.seperator_token_id", (uint32_t)f->n - 1);
    gguf_set_val_u32(g, "tokenizer.ggml.padding_token_id", 0);
    gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", true);
    gguf_set_val_bool(g, "tokenizer.ggml.add_eos_token", true);
    gguf_set_val_bool(g, "tokenizer.ggml.remove_extra_whitespaces", true);
    for (int i = 0; i < f->n; i++)
        texts[i] = f->text[i];
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", texts, (size_t)f->n);
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, f->type, (size_t)f->n);
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, f->score, (size_t)f->n);
    snprintf(path, sizeof path, "%s/other.gguf", test_dir);
    assert_true(gguf_write_to_file(g, path, true));
    gguf_free(g);
    free(f);
    if (nk_vocab_open(&v, path, &err))
        fail_msg("%s: %s", other_models[kind], err.msg);
    unlink(path);
    return v;
}

/* All that are made here, one after the other. */
enum { ALL = TRAITS + BPE_PRES + OTHERS };

static nk_vocab *made_vocab(int i)
{
    return i < TRAITS              ? spm_vocab(i)
           : i < TRAITS + BPE_PRES ? bpe_vocab(i - TRAITS)
                                   : other_vocab(i - TRAITS - BPE_PRES);
}

/* A text of more than n bytes, of parts that matter here. */
static size_t draw_text(uint64_t *seed, char *out, size_t n)
{
    static const char *const parts[] = { "a",
                                         "b",
                                         "c",
                                         "d",
                                         "abc",
                                         " ",
                                         "  ",
                                         "\n",
                                         "\n\n",
                                         "\xE4\xBD\xA0",
                                         "\xE4\xB8\xAD",
                                         "\xE4\xB8\xAD\xE4\xB8\xAD\xE4\xB8\xAD",
                                         "[U]",
                                         "[U",
                                         "b[U]",
                                         "x y",
                                         "x",
                                         "<|c|>",
                                         "<|cc|>",
                                         "|>",
                                         "<|",
                                         "<s>",
                                         "</s>",
                                         "<unk>",
                                         "\t",
                                         "\r",
                                         "\xE2\x96\x81",
                                         "\xEE\x80\x80",
                                         "\xF0\x9F\x98\x80",
                                         "\xEE\x80\x81",
                                         "dddddddd",
                                         "The word of the LORD",
                                         "Z",
                                         ".",
                                         "<mask>",
                                         "|>d",
                                         "]ddd",
                                         "  [U]ddd",
                                         "[U]a",
                                         "hello",
                                         "'s" };
    const size_t n_parts = sizeof parts / sizeof parts[0];
    /* A few of them, so that all kinds of monotony come up. */
    size_t few[5], size = 0;

    for (size_t i = 0; i < 5; i++)
        few[i] = seed_below(seed, n_parts);
    while (size < n) {
        const char *part =
            parts[seed_below(seed, 20) ? few[seed_below(seed, 5)] : seed_below(seed, n_parts)];

        memcpy(out + size, part, strlen(part));
        size += strlen(part);
    }
    return size;
}

static void compare(const nk_vocab *v, const char *text, size_t size, bool add_special,
                    bool parse_special)
{
    nk_vocab *whole = nk_vocab_borrow(nk_vocab_llama(v)); /* is never cut */
    struct nk_tokens a, b;
    struct nk_error err = { 0 };

    assert_non_null(whole);
    if (nk_vocab_tokenize(v, text, size, add_special, parse_special, 1 << 20, NULL, &a, &err) ||
        nk_vocab_tokenize(whole, text, size, add_special, parse_special, 1 << 20, NULL, &b, &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < a.n || i < b.n; i++)
        if (i >= a.n || i >= b.n || a.ids[i] != b.ids[i])
            fail_msg("token %zu of %zu: %d in parts, %d in one", i, b.n, i < a.n ? a.ids[i] : -1,
                     i < b.n ? b.ids[i] : -1);
    free(a.ids);
    free(b.ids);
    nk_vocab_close(whole);
}

static nk_vocab *file_vocab(const char *dir, const char *name)
{
    char path[1024];
    struct nk_error err = { 0 };
    nk_vocab *v = NULL;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (nk_vocab_open(&v, path, &err))
        fail_msg("%s", err.msg);
    return v;
}

static void test_cut__parts_have_the_tokens_of_the_whole(void **state)
{
    uint64_t seed = seed_begin();
    char text[3 * NK_CUT_BYTES + 64];
    char data[512];

    (void)state;
    snprintf(data, sizeof data, "%s/tests/data", getenv("NK_SOURCE") ? getenv("NK_SOURCE") : ".");
    for (int kind = 0; kind < ALL + 2; kind++) {
        nk_vocab *v = kind < ALL    ? made_vocab(kind)
                      : kind == ALL ? test_vocab(VOCAB_KJV)
                                    : file_vocab(data, "stories260K-f32.gguf");
        nk_cuts *c = nk__cuts_new(nk_vocab_llama(v));
        int n_cut = 0;

        assert_non_null(c);
        for (int i = 0; i < 30; i++) {
            size_t size =
                draw_text(&seed, text, NK_CUT_BYTES + 1 + seed_below(&seed, 2 * NK_CUT_BYTES));

            n_cut += nk__cuts_next(c, text, size, NK_CUT_BYTES, i & 2) < size;
            compare(v, text, size, i & 1, i & 2);
        }
        assert_true(n_cut > 5); /* or nothing was compared */
        nk__cuts_free(c);
        nk_vocab_close(v);
    }
}

/* Every place that may be cut, not only those that are: short texts, each cut at all of them. */
static void test_cut__every_place_that_may_be_cut_is_one(void **state)
{
    uint64_t seed = seed_begin();
    char text[128], part[128 + 8];

    (void)state;
    for (int kind = 0; kind < ALL; kind++) {
        nk_vocab *v = made_vocab(kind);
        nk_cuts *c = nk__cuts_new(nk_vocab_llama(v));
        const char *mark = nk__cuts_mark(c);
        const size_t n_mark = strlen(mark), drop = nk__cuts_mark_tokens(c);

        for (int i = 0; i < 200; i++) {
            size_t size = draw_text(&seed, text, 1 + seed_below(&seed, 60)), at = 0;
            struct nk_tokens whole, first, rest;

            assert_int_equal(
                nk_vocab_tokenize(v, text, size, false, i & 1, 1000, NULL, &whole, NULL), 0);
            while ((at = nk__cuts_next(c, text, size, at, i & 1)) < size) {
                memcpy(part, mark, n_mark);
                memcpy(part + n_mark, text + at, size - at);
                assert_int_equal(
                    nk_vocab_tokenize(v, text, at, false, i & 1, 1000, NULL, &first, NULL), 0);
                assert_int_equal(nk_vocab_tokenize(v, part, n_mark + size - at, false, i & 1, 1000,
                                                   NULL, &rest, NULL),
                                 0);
                if (first.n + rest.n - drop != whole.n ||
                    memcmp(first.ids, whole.ids, first.n * sizeof *whole.ids) != 0 ||
                    memcmp(rest.ids + drop, whole.ids + first.n,
                           (rest.n - drop) * sizeof *whole.ids) != 0)
                    fail_msg("\"%.*s\", cut at %zu, traits %d", (int)size, text, at, kind);
                free(first.ids);
                free(rest.ids);
            }
            free(whole.ids);
        }
        nk__cuts_free(c);
        nk_vocab_close(v);
    }
}

/* How long the run is that libllama splits by code of its own. It is not sanitized, but its
 * allocations are watched: of each a sanitizer would keep the stack. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { RUN = 9000 };
#else
enum { RUN = 60000 };
#endif

/* libllama would recurse for each character, until the stack is full. */
static void test_cut__a_run_that_overflows_the_stack_is_refused(void **state)
{
    static const char runs[] = "a1 .";
    enum { SIZE = RUN, MAX = 8000 };
    char *text = malloc(SIZE);

    (void)state;
    assert_non_null(text);
    for (int pre = 0; pre < BPE_PRES; pre++) {
        nk_vocab *v = bpe_vocab(pre);
        bool own = pre < 3;

        for (const char *c = runs; *c; c++) {
            struct nk_tokens t;
            struct nk_error err;

            memset(text, *c, SIZE);
            if (!own) {
                assert_int_equal(
                    nk_vocab_tokenize(v, text, SIZE, false, false, SIZE, NULL, &t, &err),
                    NK_E_INVALID);
                assert_string_equal(err.reason, "bad_text");
                assert_non_null(strstr(err.msg, "until byte 8000"));
            }
            assert_int_equal(
                nk_vocab_tokenize(v, text, own ? SIZE : MAX, false, false, SIZE, NULL, &t, &err),
                0);
            free(t.ids);
        }
        nk_vocab_close(v);
    }
    free(text);
}

/* Of the unit repeated. */
static size_t longest_part(const nk_cuts *c, const char *unit)
{
    enum { SIZE = 100000 };
    char *text = malloc(SIZE + 16);
    size_t size = 0, longest = 0;

    assert_non_null(text);
    for (; size < SIZE; size += strlen(unit))
        memcpy(text + size, unit, strlen(unit));
    for (size_t at = 0, end; at < size; at = end) {
        end = nk__cuts_next(c, text, size, at + NK_CUT_BYTES, true);
        longest = end - at > longest ? end - at : longest;
    }
    free(text);
    return longest;
}

/* The oracle is the length of the parts: within one, libllama's work grows with its square. */
static void test_cut__no_part_grows_with_a_text_that_the_vocabulary_lacks(void **state)
{
    static const char *const units[] = { "\xE4\xB8\xAD",    "\xE4\xB8\xAD ",
                                         "a\xE4\xB8\xAD\n", "\xE4\xB8\xAD</s>\xE4\xB8\xAD",
                                         "a</s>",           "\xE4\xB8\xAD\xE4\xBD\xA0" };

    (void)state;
    for (int kind = 0; kind <= TRAITS; kind++) {
        nk_vocab *v = kind < TRAITS ? spm_vocab(kind) : test_vocab(VOCAB_KJV);
        nk_cuts *c = nk__cuts_new(nk_vocab_llama(v));

        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            size_t longest = longest_part(c, units[u]);

            if (longest > NK_CUT_BYTES + 32)
                fail_msg("\"%s\" repeated, traits %d: a part of %zu bytes", units[u], kind,
                         longest);
        }
        nk__cuts_free(c);
        nk_vocab_close(v);
    }
}

static void test_cut__no_part_grows_with_the_number_of_special_tokens(void **state)
{
    static const char *const units[] = { "a<|c|>", "<|cc|>b\n", "</s> ", "[U]<|c|>" };

    (void)state;
    for (int kind = TRAITS; kind < ALL; kind++) {
        nk_vocab *v = made_vocab(kind);
        nk_cuts *c = nk__cuts_new(nk_vocab_llama(v));

        assert_non_null(c);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            size_t longest = longest_part(c, units[u]);

            if (longest > NK_CUT_BYTES + 32)
                fail_msg("\"%s\" repeated, vocabulary %d: a part of %zu bytes", units[u], kind,
                         longest);
        }
        nk__cuts_free(c);
        nk_vocab_close(v);
    }
}

static void test_cut__words_are_tokenized_apart(void **state)
{
    nk_vocab *v = other_vocab(WPM);
    nk_cuts *c = nk__cuts_new(nk_vocab_llama(v));

    (void)state;
    assert_true(longest_part(c, "abc ") <= NK_CUT_BYTES + 32);
    assert_true(longest_part(c, "\xE4\xB8\xAD\n") <= NK_CUT_BYTES + 32);
    nk__cuts_free(c);
    nk_vocab_close(v);
}

static void test_cut__a_text_that_cannot_fit_is_refused_before_it_is_tokenized(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_work work = NK_WORK_INIT(NULL);
    struct nk_error err = { 0 };
    struct nk_tokens t;
    enum { SIZE = 1 << 20 };
    char *text = malloc(SIZE);

    (void)state;
    assert_non_null(text);
    memset(text, 'a', SIZE);
    assert_int_equal(nk_vocab_tokenize(v, text, SIZE, true, true, 1000, &work, &t, &err),
                     NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_non_null(strstr(err.msg, "1048576 bytes"));
    assert_int_equal(work.n_steps, 0);
    /* And where it could, as far as it goes. */
    for (size_t i = 0; i + 3 <= SIZE; i += 3)
        memcpy(text + i, "\xE4\xB8\xAD", 3);
    text[SIZE - 1] = 'a';
    assert_int_equal(nk_vocab_tokenize(v, text, SIZE, true, true, SIZE / 8, &work, &t, &err),
                     NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    assert_true(work.n_steps > 0 && work.n_steps < SIZE / 4);
    free(text);
    nk_vocab_close(v);
}

/* A query is tokenized anew with each document, and WPM makes one token of a word of any length. */
static void test_cut__a_query_before_many_documents_is_counted(void **state)
{
    enum { SIZE = 100000, STEPS = 1000000 };
    nk_vocab *v = other_vocab(WPM);
    struct nk_work work = { .n_steps_max = STEPS };
    struct nk_error err = { 0 };
    struct nk_tokens t;
    char *text = malloc(SIZE);
    int n = 0, rc;

    (void)state;
    assert_non_null(text);
    memset(text, 'z', SIZE);
    while (!(rc = nk_vocab_tokenize_pair(v, (struct nk_bytes){ (const uint8_t *)text, SIZE },
                                         (struct nk_bytes){ (const uint8_t *)"a", 1 }, 512, &work,
                                         &t, &err))) {
        free(t.ids);
        n++;
        assert_true(n <= STEPS / SIZE);
    }
    assert_int_equal(rc, NK_E_INVALID);
    assert_string_equal(err.reason, "too_much_work");
    free(text);
    nk_vocab_close(v);
}

static void test_cut__a_text_that_nobody_waits_for_is_given_up(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    atomic_bool cancelled;
    struct nk_work work = NK_WORK_INIT(&cancelled);
    struct nk_error err = { 0 };
    struct nk_tokens t;

    (void)state;
    atomic_init(&cancelled, true);
    assert_int_equal(nk_vocab_tokenize(v, "a", 1, true, true, 1000, &work, &t, &err),
                     NK_E_CANCELLED);
    assert_null(t.ids);
    nk_vocab_close(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut__parts_have_the_tokens_of_the_whole),
        cmocka_unit_test(test_cut__every_place_that_may_be_cut_is_one),
        cmocka_unit_test(test_cut__no_part_grows_with_a_text_that_the_vocabulary_lacks),
        cmocka_unit_test(test_cut__a_run_that_overflows_the_stack_is_refused),
        cmocka_unit_test(test_cut__no_part_grows_with_the_number_of_special_tokens),
        cmocka_unit_test(test_cut__words_are_tokenized_apart),
        cmocka_unit_test(test_cut__a_text_that_cannot_fit_is_refused_before_it_is_tokenized),
        cmocka_unit_test(test_cut__a_query_before_many_documents_is_counted),
        cmocka_unit_test(test_cut__a_text_that_nobody_waits_for_is_given_up),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
