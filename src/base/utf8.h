/* UTF-8, as the Unicode Standard defines it (chapter 3, table 3-7): no surrogates, nothing
 * overlong, nothing above U+10FFFF. Pure functions. */
#ifndef NK_BASE_UTF8_H
#define NK_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Looks at the beginning of data[0..size), size > 0:
 *   > 0   so many bytes are one character, *cp (if not NULL) its code point
 *   0     the bytes are the beginning of a character that more bytes may complete
 *   < 0   so many bytes (negated) can never become a character: a maximal subpart, in the
 *         Standard's words, which is shown as one U+FFFD */
int nk_utf8_next(const void *data, size_t size, uint32_t *cp);

/* Whether all of it is UTF-8; if not, *at is the position of the first byte that is not. */
bool nk_utf8_valid(const void *data, size_t size, size_t *at);

#endif
