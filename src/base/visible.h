/* Text of strangers on a terminal: what would move its cursor, set its title, answer for its user
 * or turn the order of what is read is shown and not executed.
 *
 *   U+0000-001F but \n and \t    ^@ ... ^_ (ESC is ^[), as cat -v and less show them
 *   U+007F                       ^?
 *   U+0080-009F                  <U+009B>: the same controls again (ECMA-48's C1), which terminals
 *                                take in UTF-8, too
 *   U+202A-202E, 2066-2069       <U+202E>: embeddings, overrides and isolates show later text in
 *                                another order. The marks (U+200E, 200F, 061C) only say how their
 *                                neighbours run, and stay: Arabic and Hebrew need them
 *   no UTF-8                     U+FFFD: to a terminal with 8-bit characters 9B is a control, too
 *
 * Thread-safe. */
#ifndef NK_BASE_VISIBLE_H
#define NK_BASE_VISIBLE_H

#include <stddef.h>

#include "base/buf.h"

/* A stream of text, cut anywhere. {0} begins one. */
struct nk_visible {
    char rest[4]; /* the beginning of a character whose end is to come */
    size_t n_rest;
};
/* Appends to out what is to be shown. EXHAUSTED from out. */
int nk_visible_add(struct nk_visible *v, const char *text, size_t size, struct nk_buf *out,
                   struct nk_error *err);
/* There is no more: half a character is U+FFFD. */
int nk_visible_end(struct nk_visible *v, struct nk_buf *out, struct nk_error *err);

/* One line into a buffer, \n and \t as ^J and ^I; what does not fit is cut at a character. Returns
 * out. */
const char *nk_visible_line(char *out, size_t size, const char *text);

#endif
