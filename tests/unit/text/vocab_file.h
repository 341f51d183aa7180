/* Tiny vocabularies as GGUF files, written with ggml's own writer, for what kjv-tiny.gguf (SPM with
 * byte tokens) cannot show: each kind of tokenizer that libllama has, special tokens, and
 * vocabularies that lack something. */
#ifndef NK_TESTS_VOCAB_FILE_H
#define NK_TESTS_VOCAB_FILE_H

#include <gguf.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit/utf8_bytes.h"

enum vocab_kind {
    VOCAB_BPE,       /* GPT-2's: ids 0 to 255 are the bytes; some merges, special tokens */
    VOCAB_BPE_HOLES, /* without the bytes of "q" and of most non-ASCII text */
    VOCAB_SPM_HOLES, /* letters a to z, no byte tokens */
    VOCAB_WPM,
    VOCAB_UGM,
    VOCAB_RWKV,
    VOCAB_STUB, /* tokenizer.ggml.model "none", as in every slice but the last */
    VOCAB_KINDS
};

enum { VOCAB_FILE_TOKENS_MAX = 1024, VOCAB_FILE_TEXT_MAX = 160 };

struct vocab_file {
    char text[VOCAB_FILE_TOKENS_MAX][VOCAB_FILE_TEXT_MAX];
    int32_t type[VOCAB_FILE_TOKENS_MAX]; /* enum llama_token_type */
    float score[VOCAB_FILE_TOKENS_MAX];
    int n;
    const char *merges[64];
    int n_merges;
};

static inline void vocab_file_add(struct vocab_file *f, const char *text, int32_t type, float score)
{
    snprintf(f->text[f->n], VOCAB_FILE_TEXT_MAX, "%s", text);
    f->type[f->n] = type;
    f->score[f->n++] = score;
}

static inline void vocab_file_add_n(struct vocab_file *f, const char *const *texts, int32_t type)
{
    for (int i = 0; texts[i]; i++)
        vocab_file_add(f, texts[i], type, -(float)f->n);
}

/* The byte-level alphabet of GPT-2. */
static inline void vocab_file_byte_text(int byte, char out[8])
{
    int moved = 0;

    for (int b = 0; b < 256; b++) {
        bool itself =
            (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);

        if (b == byte) {
            out[utf8_bytes(itself ? (uint32_t)b : 0x100u + (uint32_t)moved, out)] = '\0';
            return;
        }
        moved += !itself;
    }
}

static inline void vocab_file_bpe(struct vocab_file *f, bool holes)
{
    /* "\xC4\xA0" is the byte-level space, U+0120; "ðŁĺĢ" are the bytes of U+1F600, an emoji. */
    static const char *const words[] = { "\xC4\xA0t",
                                         "\xC4\xA0th",
                                         "\xC4\xA0the",
                                         "he",
                                         "in",
                                         "er",
                                         "an",
                                         "\xC4\xA0\xC4\xA0",
                                         "\xC3\xB0\xC5\x81",
                                         "\xC3\xB0\xC5\x81\xC4\xBA",
                                         NULL };
    static const char *const merges[] = { "\xC4\xA0 t",
                                          "\xC4\xA0t h",
                                          "\xC4\xA0th e",
                                          "h e",
                                          "i n",
                                          "e r",
                                          "a n",
                                          "\xC4\xA0 \xC4\xA0",
                                          "\xC3\xB0 \xC5\x81",
                                          "\xC3\xB0\xC5\x81 \xC4\xBA",
                                          NULL };
    static const char *const control[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>", NULL };
    static const char *const user[] = { "<think>", "</think>", "<tool_call>", "</tool_call>",
                                        NULL };
    char text[8];

    for (int b = 0; b < 256; b++) {
        if (holes && (b == 'q' || b >= 0xC5))
            continue;
        vocab_file_byte_text(b, text);
        vocab_file_add(f, text, 1, 0);
    }
    for (int i = 0; !holes && words[i]; i++)
        vocab_file_add(f, words[i], 1, 0);
    for (int i = 0; !holes && merges[i]; i++)
        f->merges[f->n_merges++] = merges[i];
    if (holes)
        f->merges[f->n_merges++] = "h e", vocab_file_add(f, "he", 1, 0);
    vocab_file_add_n(f, control, 3);
    vocab_file_add_n(f, user, 4);
}

/* Writes the vocabulary of this kind to path. Returns false when that fails. */
static inline bool vocab_file_write(const char *path, enum vocab_kind kind)
{
    static const char *const models[] = { "gpt2", "gpt2", "llama", "bert", "t5", "rwkv", "none" };
    struct vocab_file *f = calloc(1, sizeof *f);
    struct gguf_context *g = gguf_init_empty();
    const char *texts[VOCAB_FILE_TOKENS_MAX];
    char letter[8];
    bool ok;

    if (!f || !g)
        exit(1);
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "tokenizer.ggml.model", models[kind]);
    switch (kind) {
    case VOCAB_BPE:
    case VOCAB_BPE_HOLES:
        vocab_file_bpe(f, kind == VOCAB_BPE_HOLES);
        gguf_set_val_str(g, "tokenizer.ggml.pre", "gpt-2");
        gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)f->n - 5); /* <|im_end|> */
        gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)f->n - 7);
        gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", false);
        gguf_set_val_str(g, "tokenizer.chat_template",
                         "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' "
                         "+ message['content'] + "
                         "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
                         "'<|im_start|>assistant\\n' "
                         "}}{% endif %}");
        break;
    case VOCAB_SPM_HOLES:
        vocab_file_add(f, "<unk>", 2, 0);
        vocab_file_add(f, "<s>", 3, 0);
        vocab_file_add(f, "</s>", 3, 0);
        vocab_file_add(f, "\xE2\x96\x81", 1, -1);
        for (int c = 'a'; c <= 'z'; c++) {
            snprintf(letter, sizeof letter, "%c", c);
            vocab_file_add(f, letter, 1, -2);
        }
        break;
    case VOCAB_WPM: {
        static const char *const words[] = { "\xE2\x96\x81the",
                                             "\xE2\x96\x81"
                                             "a",
                                             "b",
                                             "c",
                                             "\xE2\x96\x81"
                                             "b",
                                             ".",
                                             "\xE2\x96\x81.",
                                             NULL };

        vocab_file_add(f, "[PAD]", 3, 0);
        vocab_file_add(f, "[UNK]", 3, 0);
        vocab_file_add(f, "[CLS]", 3, 0);
        vocab_file_add(f, "[SEP]", 3, 0);
        vocab_file_add_n(f, words, 1);
        gguf_set_val_u32(g, "tokenizer.ggml.unknown_token_id", 1);
        gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", 2);
        gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 3);
        gguf_set_val_u32(g, "tokenizer.ggml.seperator_token_id", 3);
        gguf_set_val_u32(g, "tokenizer.ggml.padding_token_id", 0);
        break;
    }
    case VOCAB_UGM: {
        static const char *const words[] = {
            "\xE2\x96\x81", "\xE2\x96\x81the", "a", "b", "c", "e", "h", "t", NULL
        };

        vocab_file_add(f, "<pad>", 3, 0);
        vocab_file_add(f, "</s>", 3, 0);
        vocab_file_add(f, "<unk>", 2, 0);
        vocab_file_add_n(f, words, 1);
        gguf_set_val_u32(g, "tokenizer.ggml.unknown_token_id", 2);
        gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 1);
        gguf_set_val_u32(g, "tokenizer.ggml.padding_token_id", 0);
        break;
    }
    case VOCAB_RWKV:
        vocab_file_add(f, "<s>", 3, 0);
        for (int b = 0; b < 256; b++) { /* escaped as in RWKV's vocabulary file */
            snprintf(letter, sizeof letter, "\\x%02x", (unsigned)b);
            vocab_file_add(f, letter, 1, 0);
        }
        vocab_file_add(f, "the", 1, 0);
        vocab_file_add(f, " the", 1, 0);
        gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 0);
        break;
    case VOCAB_STUB:
    case VOCAB_KINDS:
        gguf_set_val_u32(g, "llama.vocab_size", 32);
        break;
    }
    for (int i = 0; i < f->n; i++)
        texts[i] = f->text[i];
    if (f->n) {
        gguf_set_arr_str(g, "tokenizer.ggml.tokens", texts, (size_t)f->n);
        gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, f->type, (size_t)f->n);
        gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, f->score, (size_t)f->n);
    }
    if (f->n_merges)
        gguf_set_arr_str(g, "tokenizer.ggml.merges", (const char **)f->merges, (size_t)f->n_merges);
    ok = gguf_write_to_file(g, path, true);
    gguf_free(g);
    free(f);
    return ok;
}

/* A fresh folder, and NAME in it. Both are removed by the tests' teardown. */
static inline const char *vocab_file_path(char out[256], const char *dir, enum vocab_kind kind)
{
    snprintf(out, 256, "%s/vocab-%d.gguf", dir, (int)kind);
    return out;
}

#endif
