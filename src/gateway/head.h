/* Judges the head of an HTTP request, its first line and its headers: can it be read in one way
 * only? Where it can be read in two, a proxy in front may have read the other one, and what it took
 * for a body is a second request here, or the reverse (request smuggling: RFC 9112, sections 2.2,
 * 3.2, 5 and 6.3). What is refused is answered with 400, and the connection is closed.
 *
 * The bytes come from strangers. libmicrohttpd has already cut them into lines and names. Before
 * 0.9.77 it does so leniently: it takes a space before the colon for a part of the name and the
 * first of several lengths for the length, ends a line at a single LF, joins folded lines, and ends
 * a value at a NUL. It leaves no note of the last three, but it cuts in place: so each name and
 * value must lie where strict reading would have found it, and all together must be as long as the
 * head was. (The target it has decoded: exchange_judge.c looks where that ended before.) One thing
 * is left that nobody can see any more: a NUL where a line's CR should be. From 0.9.77 on it
 * refuses all that by itself when it is asked to (MHD_OPTION_STRICT_FOR_CLIENT).
 *
 * Pure; one thread. */
#ifndef NK_GATEWAY_HEAD_H
#define NK_GATEWAY_HEAD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct nk_head {
    /* As libmicrohttpd gives them; borrowed. */
    const char *method, *target, *version;
    /* Whether everything lies where it was read: then the layout is judged, too. */
    bool in_place;
    /* The rest is nk__head_add's. */
    const char *end; /* where the next header must begin, if in_place */
    int n_host, n_length, n_encoding;
    bool chunked;
    bool failed; /* err is set: the first thing that is wrong */
    struct nk_error err;
};

/* Call in this order: begin, add for each header as it came, end. */
void nk__head_begin(struct nk_head *h, const char *method, const char *target, const char *version,
                    bool in_place);
/* name and value need no NUL behind them if not in_place. */
void nk__head_add(struct nk_head *h, const char *name, size_t n_name, const char *value,
                  size_t n_value);
/* size: of the head in bytes, up to and with its empty line.
 *   INVALID  bad_header   no token as a name, a control character, a folded line, a bare LF; a
 *                         target that is no path
 *            bad_host     none or more than one, or not HOST[:PORT]
 *            bad_length   more than one length, not a plain number, an encoding besides chunked, or
 *                         a length and an encoding
 * On success h->chunked tells whether the body comes in chunks. */
int nk__head_end(struct nk_head *h, size_t size, struct nk_error *err);

#endif
