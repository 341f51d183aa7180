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
 * A BPE vocabulary's text is cut before a special token only: what stands between two of them is
 * tokenized by itself anyway. It must be one that is found whatever stands around it: no other
 * special token may reach over its ends.
 *
 * Other kinds of tokenizers are not cut here. */
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

/* What to put in front of all parts but the first, and how many tokens that is; "" and 0 for BPE.
 * Borrowed. */
const char *nk__cuts_mark(const nk_cuts *c);
size_t nk__cuts_mark_tokens(const nk_cuts *c);

/* The first place after from where text (size bytes of UTF-8) can be cut; size: there is none.
 * parse_special: control tokens are looked for, too. */
size_t nk__cuts_next(const nk_cuts *c, const char *text, size_t size, size_t from,
                     bool parse_special);

#endif
