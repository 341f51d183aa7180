/* Where a long text can be cut so that its parts, tokenized one after the other, are exactly the
 * tokens of the whole.
 *
 * Why: libllama's SPM tokenizer copies all tokens so far for each character that its vocabulary
 * lacks, and looks for every special token from each place where another one was found to the end
 * of the text: both grow with the square of the text's length. A part has a size that does not
 * grow, and between two parts the whole can be given up.
 *
 * Why it is exact, for an SPM vocabulary: its tokenizer begins with single characters and joins
 * neighbours only when their joined text is a token. So no token reaches over a place between two
 * characters that stand next to each other in no token's text, and what is joined on one side does
 * not change what is joined on the other. Special tokens are tokens with a text, too, and so are
 * covered; where they may take white space along, nothing is cut behind white space. After a
 * special token the tokenizer puts a space in front of what follows: nothing is cut there. It also
 * puts one in front of a text's beginning, which a part has none of: a part therefore begins with a
 * mark, a character that is in no token, and the mark's own tokens are dropped.
 *
 * All other tokenizers look for special tokens first, and what stands between two of them is
 * tokenized by itself. Their texts (BPE, WPM, UGM, RWKV, PLaMo-2) are cut before a special token
 * that is found whatever stands around it: no other special token may reach over its ends.
 *
 * A WPM text is also cut behind a space or a line end that no special token reaches over: its
 * tokenizer splits a text into words there, and white space becomes no token.
 *
 * What is left whole so is a part without special tokens (and, for WPM, without a space). These
 * tokenizers' work for it grows as its length does, times the longest token's or its logarithm;
 * libllama cannot be interrupted in it. How long such a part may be is what nk_vocab_tokenize
 * refuses beforehand: by bytes against the context. */
#ifndef NK_TEXT_CUT_H
#define NK_TEXT_CUT_H

#include <stdbool.h>
#include <stddef.h>

struct llama_vocab;
typedef struct nk_cuts nk_cuts; /* read-only, any thread */

enum { NK_CUT_BYTES = 2048 }; /* a part has at least so many bytes */

/* NULL: texts cannot be cut for this vocabulary (or there is no memory): they are tokenized
 * whole. */
nk_cuts *nk__cuts_new(const struct llama_vocab *vocab);
void nk__cuts_free(nk_cuts *c);

/* What to put in front of all parts but the first, and how many tokens that is; "" and 0 but for
 * SPM. Borrowed. */
const char *nk__cuts_mark(const nk_cuts *c);
size_t nk__cuts_mark_tokens(const nk_cuts *c);

/* The first place after from where text (size bytes of UTF-8) can be cut; size: there is none.
 * parse_special: control tokens are looked for, too. */
size_t nk__cuts_next(const nk_cuts *c, const char *text, size_t size, size_t from,
                     bool parse_special);

#endif
