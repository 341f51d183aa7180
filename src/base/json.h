/* JSON (RFC 8259) written into an nk_buf, piece by piece: strings and numbers. What stands between
 * them is written as it is. For values that are there as a tree there is jansson. */
#ifndef NK_BASE_JSON_H
#define NK_BASE_JSON_H

#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

/* Appends text in quotes: quotes, backslashes and control characters escaped, all others as they
 * are. Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart (base/utf8.h), so that
 * what comes out is always valid. NULL becomes null. EXHAUSTED, as nk_buf_add; what was written
 * until then stays in b. */
int nk_json_str(struct nk_buf *b, const char *text, struct nk_error *err);
/* The same for size bytes, which may have NULs in them. */
int nk_json_strn(struct nk_buf *b, const char *text, size_t size, struct nk_error *err);

/* Appends a finite number in as few digits as read back the same, a whole one below 10^15 without
 * exponent; NaN and infinities, which JSON does not have, become null. EXHAUSTED, as nk_buf_add. */
int nk_json_num(struct nk_buf *b, double number, struct nk_error *err);

#endif
