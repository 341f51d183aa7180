/* Incremental detokenizer: token ids to text, never half a UTF-8 character, no byte, newline or
 * leading space lost.
 *
 * The text is the pieces (nk_vocab_piece) one after the other, but that bytes which can never
 * become a UTF-8 character come out as U+FFFD, at once or at the end. That is the text of the whole
 * sequence as llama_detokenize gives it, except that it strips the first token's leading space
 * (here the text continues a prompt) and, for the few vocabularies that ask for it, removes spaces
 * before punctuation afterwards (no streaming program can).
 *
 * Also finds stop strings across token borders: text that may be the beginning of one is held back.
 * The stop string that ends first counts, the longest of those that end together: where tokens
 * begin and end makes no difference. One thread at a time. */
#ifndef NK_TEXT_DETOK_H
#define NK_TEXT_DETOK_H

#include "text/vocab.h"

enum { NK_STOP_MAX = 16, NK_STOP_BYTES_MAX = 256 };

typedef struct nk_detok nk_detok;

/* The vocabulary is borrowed. stops: n_stop non-empty strings (copied). special: control tokens are
 * written out too. The text continues a prompt: a leading space is kept.
 *   INVALID  bad_stop  an empty or too long stop string, not UTF-8, or too many */
int nk_detok_new(nk_detok **out, const nk_vocab *v, const char *const *stops, size_t n_stop,
                 bool special, struct nk_error *err);
void nk_detok_free(nk_detok *d);

/* Adds a token; appends to out what can now be shown. *stopped: a stop string was completed: what
 * precedes it was appended, it and what follows was not; no more tokens are to be added. */
int nk_detok_add(nk_detok *d, int32_t id, struct nk_buf *out, bool *stopped, struct nk_error *err);
/* The generation is over: appends what was held back. */
int nk_detok_finish(nk_detok *d, struct nk_buf *out, struct nk_error *err);
/* Which stop string ended it, or NULL. Borrowed. */
const char *nk_detok_stop(const nk_detok *d);

#endif
