#include "gateway/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

int nk__json_strn(struct nk_buf *b, const char *text, size_t size, struct nk_error *err)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t begin = 0, i = 0;
    int rc = nk_buf_add(b, "\"", 1, err);

    while (i < size && !rc) {
        int len = nk_utf8_next(s + i, size - i, NULL);
        char esc[8];
        size_t n_esc = 0;

        if (len > 1 || (len == 1 && s[i] >= 0x20 && s[i] != '"' && s[i] != '\\' && s[i] != 0x7f)) {
            i += (size_t)len;
            continue;
        }
        if (len <= 0) {
            memcpy(esc, "\xef\xbf\xbd", 3);
            n_esc = 3;
        } else {
            const char *from = "\"\\\n\r\t\b\f", *to = "\"\\nrtbf",
                       *at = s[i] ? strchr(from, s[i]) : NULL;

            n_esc = (size_t)(at ? snprintf(esc, sizeof esc, "\\%c", to[at - from])
                                : snprintf(esc, sizeof esc, "\\u%04x", s[i]));
        }
        rc = nk_buf_add(b, text + begin, i - begin, err);
        if (!rc)
            rc = nk_buf_add(b, esc, n_esc, err);
        i += len > 0 ? 1 : len < 0 ? (size_t)-len : size - i;
        begin = i;
    }
    if (!rc)
        rc = nk_buf_add(b, text + begin, i - begin, err);
    return rc ? rc : nk_buf_add(b, "\"", 1, err);
}

int nk__json_str(struct nk_buf *b, const char *text, struct nk_error *err)
{
    return text ? nk__json_strn(b, text, strlen(text), err) : nk_buf_adds(b, "null", err);
}

int nk__json_num(struct nk_buf *b, double number, struct nk_error *err)
{
    char text[40];

    if (!isfinite(number))
        return nk_buf_adds(b, "null", err);
    if (number == floor(number) && fabs(number) < 1e15)
        return nk_buf_addf(b, err, "%.0f", number);
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            break;
    }
    return nk_buf_adds(b, text, err);
}

int nk__json_value(struct nk_buf *b, const json_t *value, struct nk_error *err)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    int rc;

    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a JSON value");
    rc = nk_buf_adds(b, text, err);
    free(text);
    return rc;
}

const char *nk__json_type(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}
