/* Arguments that are not written as JSON, as JSON: what stands bare between marks, and literals as
 * Python and other languages have them. Pure. */
#ifndef NK_GATEWAY_TOOL_VALUE_H
#define NK_GATEWAY_TOOL_VALUE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* Appends text as a JSON string; closed: with its last quote. EXHAUSTED. */
int nk__tool_value_string(const char *text, size_t n, bool closed, struct nk_buf *out,
                          struct nk_error *err);

/* Bare text. type: "string": it is one; "string?": one, or null; NULL: what it looks like: JSON, a
 * literal, else a string. */
int nk__tool_value_bare(const char *text, size_t n, const char *type, struct nk_buf *out,
                        struct nk_error *err);

/* A literal: strings between quote (a mark of any length, "" for none), ' or "; lists, dictionaries
 * whose keys may be bare, numbers, True, null; anything else is a string. One that is cut off, or
 * nested deeper than 64, gives what there is as a string. */
int nk__tool_value_literal(const char *text, size_t n, const char *quote, struct nk_buf *out,
                           struct nk_error *err);

/* Where a literal ends that comes piece by piece: before a comma or a bracket that it did not
 * open. */
struct nk_tool_scan {
    size_t at; /* so far it was looked at */
    int depth;
    enum { SCAN_NO_QUOTE, SCAN_MARK, SCAN_SINGLE, SCAN_DOUBLE } quote;
};
/* text: from the literal's beginning, at every call more of the same. true: it ends at s->at. */
bool nk__tool_value_scan(struct nk_tool_scan *s, const char *text, size_t n, const char *quote,
                         bool final);

#endif
