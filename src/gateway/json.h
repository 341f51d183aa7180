/* JSON written into an nk_buf, piece by piece; and small questions to jansson's values. */
#ifndef NK_GATEWAY_JSON_H
#define NK_GATEWAY_JSON_H

#include <jansson.h>

#include "base/buf.h"

/* Appends "text" with quotes, escaped. Bytes that are not UTF-8 become U+FFFD. NULL is written as
 * null. */
int nk__json_str(struct nk_buf *b, const char *text, struct nk_error *err);
int nk__json_strn(struct nk_buf *b, const char *text, size_t size, struct nk_error *err);
/* A finite number in the shortest form that reads back the same; NaN and infinities become null. */
int nk__json_num(struct nk_buf *b, double number, struct nk_error *err);
/* A whole value, compact. */
int nk__json_value(struct nk_buf *b, const json_t *value, struct nk_error *err);

/* "a string", "an object", ... for messages. */
const char *nk__json_type(const json_t *v);

#endif
