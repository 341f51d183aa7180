/* Tokens and text, through libllama's vocabulary. A vocabulary is read-only after opening: any
 * thread may use it. Calls of libllama that abort on bad input are guarded here. */
#ifndef NK_TEXT_VOCAB_H
#define NK_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/work.h"

struct llama_vocab;
typedef struct nk_vocab nk_vocab;

/* libllama's log into ours, for a program that has vocabularies and no stage (nk_stage_global_init
 * does it too). From the main thread, before threads start. */
void nk_vocab_global_init(void);

/* From NAME.vocab.gguf or any GGUF with a tokenizer. *out owned by the caller.
 *   NOT_FOUND  no_file
 *   INVALID    bad_gguf
 *   INVALID    no_vocab   a slice other than the last has a stub */
int nk_vocab_open(nk_vocab **out, const char *path, struct nk_error *err);
/* Over a vocabulary that somebody else (a stage) holds and that must outlive this. NULL when out of
 * memory. */
nk_vocab *nk_vocab_borrow(const struct llama_vocab *vocab);
void nk_vocab_close(nk_vocab *v);

const struct llama_vocab *nk_vocab_llama(const nk_vocab *v);
int nk_vocab_size(const nk_vocab *v);
/* The SHA-256 of the model that it was cut from, as the file says; "" for a whole model and a
 * borrowed one. Borrowed. */
const char *nk_vocab_model_sha256(const nk_vocab *v);
bool nk_vocab_is_eog(const nk_vocab *v, int32_t id); /* end of generation: EOS, EOT ... */
int32_t nk_vocab_bos(const nk_vocab *v);             /* -1: none */
int32_t nk_vocab_eos(const nk_vocab *v);
/* Is it what a text ends with (EOS, or an encoder's separator)? */
bool nk_vocab_is_end(const nk_vocab *v, int32_t id);
bool nk_vocab_adds_bos(const nk_vocab *v); /* a prompt begins with it */

/* The tokens of a model that was trained to fill in what is between two texts; -1: it has none. */
struct nk_fim_tokens {
    int32_t prefix, suffix, middle;
    int32_t repository, separator; /* before a repository's and a file's name */
};
struct nk_fim_tokens nk_vocab_fim(const nk_vocab *v);

enum { NK_TEXT_BYTES_MAX = 64 << 20 }; /* of one nk_vocab_tokenize */

/* Owned; release with free(ids). */
struct nk_tokens {
    int32_t *ids;
    size_t n;
};
/* Text to ids. add_special: BOS/EOS as the model wants them. parse_special: "<|im_start|>" and its
 * like become their tokens (templates), otherwise they are plain text. max_tokens bounds the
 * result: what has more bytes than so many of the longest token is refused before anything is done,
 * and a text is given up where it has too many. work: what it may cost, and whether it is still
 * wanted; NULL: anything. A long text is tokenized in parts where that gives the same (text/cut.h).
 *   INVALID    bad_text     not UTF-8 (position named), or a character that this vocabulary cannot
 *                           express and has no "unknown" token for (named); or so many letters,
 *                           digits, spaces or signs in a row that libllama would overflow its stack
 *   INVALID    no_vocab     a borrowed stub
 *   INVALID    too_much_work, or CANCELLED
 *   EXHAUSTED  too_large    more than max_tokens, or than NK_TEXT_BYTES_MAX */
int nk_vocab_tokenize(const nk_vocab *v, const char *text, size_t size, bool add_special,
                      bool parse_special, size_t max_tokens, struct nk_work *work,
                      struct nk_tokens *out, struct nk_error *err);
/* A query and a document as a reranker reads them: the model's own template for it
 * (tokenizer.chat_template.rerank), else query and document with the tokens before, between and
 * after them that the vocabulary adds. As nk_vocab_tokenize. */
int nk_vocab_tokenize_pair(const nk_vocab *v, struct nk_bytes query, struct nk_bytes document,
                           size_t max_tokens, struct nk_work *work, struct nk_tokens *out,
                           struct nk_error *err);
/* The bytes of one token, appended to out; special: also those of control tokens. INVALID
 * `bad_token`. */
int nk_vocab_piece(const nk_vocab *v, int32_t id, bool special, struct nk_buf *out,
                   struct nk_error *err);

/* A text of the file's metadata ("general.license"), cut off at size. False: there is none, or the
 * vocabulary is a borrowed one; out is "" then. */
bool nk_vocab_meta(const nk_vocab *v, const char *key, char *out, size_t size);

/* ---- chat templates ---- */
struct nk_chat_message {
    const char *role, *content;
};
/* The model's own template (tokenizer.chat_template), or NULL. Borrowed until close. Only for an
 * opened vocabulary. */
const char *nk_vocab_chat_template(const nk_vocab *v);
/* Renders through llama_chat_apply_template. tmpl: Jinja text that libllama recognises, or the name
 * of a built-in one. INVALID `unknown_template` with what would be known. */
int nk_chat_render_builtin(const char *tmpl, const struct nk_chat_message *messages, size_t n,
                           bool add_assistant, struct nk_buf *out, struct nk_error *err);

#endif
