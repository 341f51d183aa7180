/* What the text layer's tests share: cmocka, a folder of tiny vocabularies, random numbers that are
 * the same each time. */
#ifndef NK_TESTS_TEXT_TEST_H
#define NK_TESTS_TEXT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <llama.h>
#include <unistd.h>

#include "text/vocab.h"
#include "unit/text/vocab_file.h"

static char test_dir[64];

static inline void test_quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

static inline int test_setup(void **state)
{
    (void)state;
    llama_log_set(test_quiet, NULL);
    snprintf(test_dir, sizeof test_dir, "/tmp/nk-text-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int test_teardown(void **state)
{
    char path[256];

    (void)state;
    for (int k = 0; k < VOCAB_KINDS; k++)
        unlink(vocab_file_path(path, test_dir, (enum vocab_kind)k));
    return rmdir(test_dir);
}

/* kjv-tiny: SPM with byte tokens, a real model's vocabulary. */
enum { VOCAB_KJV = VOCAB_KINDS };

static inline nk_vocab *test_vocab(int kind)
{
    char path[256];
    struct nk_error err = { 0 };
    nk_vocab *v = NULL;

    if (kind == VOCAB_KJV) {
        snprintf(path, sizeof path, "%s/kjv-tiny.gguf",
                 getenv("NK_MODELS") ? getenv("NK_MODELS") : "models");
    } else {
        vocab_file_path(path, test_dir, (enum vocab_kind)kind);
        assert_true(vocab_file_write(path, (enum vocab_kind)kind));
    }
    if (nk_vocab_open(&v, path, &err))
        fail_msg("%s", err.msg);
    return v;
}

/* xorshift64*: the same everywhere. (With other draws test_grammar.c finds grammars on which
 * libllama, with which it compares, takes hours.) */
struct test_random {
    uint64_t state;
};

static inline uint32_t test_next(struct test_random *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return (uint32_t)((r->state * 0x2545F4914F6CDD1Dull) >> 32);
}

static inline int test_below(struct test_random *r, int n)
{
    return (int)(test_next(r) % (uint32_t)n);
}

#endif
