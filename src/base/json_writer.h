/* JSON (RFC 8259) written piece by piece with the commas and the quotes in their places: whoever
 * writes says what follows what, and nothing of JSON's own.
 *
 *   struct nk_json_writer w = NK_JSON_WRITER(&buf, err);
 *
 *   nk_json_begin(&w, NULL, '{');
 *   nk_json_put_str(&w, "name", name);
 *   nk_json_put_int(&w, "n", 3);
 *   nk_json_end(&w, '}');
 *   return w.rc;
 *
 * The first error stays (w.rc, and err): what is called after it does nothing. key: the member's
 * name, which is written as it is (names of ours, without anything to escape); NULL: an element of
 * a list, or the outermost value. */
#ifndef NK_BASE_JSON_WRITER_H
#define NK_BASE_JSON_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

struct nk_json_writer {
    struct nk_buf *b; /* borrowed, as err, which may be NULL */
    struct nk_error *err;
    int rc;     /* 0, or EXHAUSTED as nk_buf_add has it */
    bool comma; /* one is due before the next value */
};
#define NK_JSON_WRITER(buf, error)                                                                 \
    {                                                                                              \
        .b = (buf), .err = (error), .rc = 0, .comma = false                                        \
    }

void nk_json_begin(struct nk_json_writer *w, const char *key, char bracket);       /* '{' or '[' */
void nk_json_end(struct nk_json_writer *w, char bracket);                          /* '}' or ']' */
void nk_json_put_str(struct nk_json_writer *w, const char *key, const char *text); /* NULL: null */
void nk_json_put_strn(struct nk_json_writer *w, const char *key, const char *text, size_t size);
void nk_json_put_int(struct nk_json_writer *w, const char *key, int64_t number);
void nk_json_put_num(struct nk_json_writer *w, const char *key, double number);
void nk_json_put_bool(struct nk_json_writer *w, const char *key, bool value);
void nk_json_put_null(struct nk_json_writer *w, const char *key);
/* A value that is JSON already, as it is. With a NULL key it may also be several elements, or
 * several members, with the commas between them; "": nothing. */
void nk_json_put_raw(struct nk_json_writer *w, const char *key, const char *json);

#endif
