/* libllama's calls of the text layer, behind a wall: a C++ exception that libllama lets out (a
 * tokenizer without byte tokens, a broken precompiled_charsmap) becomes an error here instead of
 * ending the process. What libllama ends with GGML_ABORT no wall can hold: those inputs are checked
 * before, where the call is made.
 *
 * Every function: 0, or INTERNAL `engine_failed` with the exception's sentence (EXHAUSTED
 * `no_memory` for bad_alloc). */
#ifndef NK_TEXT_GUARD_H
#define NK_TEXT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct llama_vocab;
struct llama_sampler;
struct llama_token_data_array;

#ifdef __cplusplus
extern "C" {
#endif

#include "base/error.h"

/* *n: what llama_tokenize returns. */
int nk__guard_tokenize(const struct llama_vocab *vocab, const char *text, int32_t size,
                       int32_t *ids, int32_t n_max, bool add_special, bool parse_special,
                       int32_t *n, struct nk_error *err);
/* *n: what llama_token_to_piece returns. */
int nk__guard_piece(const struct llama_vocab *vocab, int32_t id, char *out, int32_t size,
                    bool special, int32_t *n, struct nk_error *err);
/* *n: what llama_chat_apply_template returns. roles and contents: n_messages each. */
int nk__guard_chat(const char *tmpl, const char *const *roles, const char *const *contents,
                   size_t n_messages, bool add_assistant, char *out, int32_t size, int32_t *n,
                   struct nk_error *err);
int nk__guard_init_dry(struct llama_sampler **out, const struct llama_vocab *vocab,
                       float multiplier, float base, int allowed_length, int last_n,
                       const char **breakers, size_t n_breakers, struct nk_error *err);
int nk__guard_apply(struct llama_sampler *s, struct llama_token_data_array *candidates,
                    struct nk_error *err);
int nk__guard_accept(struct llama_sampler *s, int32_t id, struct nk_error *err);

#ifdef __cplusplus
}
#endif
#endif
