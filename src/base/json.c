#include "base/json.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* DEL too: JSON would not mind, terminals do. */
static bool is_plain(unsigned char c)
{
    return c >= 0x20 && c != '"' && c != '\\' && c != 0x7F;
}

static int add_escaped(struct nk_buf *b, unsigned char c, struct nk_error *err)
{
    static const char chars[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    const char *at = c ? strchr(chars, c) : NULL;

    return at ? nk_buf_addf(b, err, "\\%c", letters[at - chars])
              : nk_buf_addf(b, err, "\\u%04x", c);
}

int nk_json_strn(struct nk_buf *b, const char *text, size_t size, struct nk_error *err)
{
    size_t begin = 0, i = 0; /* text[begin .. i) is to be copied */
    int rc = nk_buf_adds(b, "\"", err);

    while (!rc && i < size) {
        int n = nk_utf8_next(text + i, size - i, NULL);

        if (n > 1 || (n == 1 && is_plain((unsigned char)text[i]))) {
            i += (size_t)n;
            continue;
        }
        rc = nk_buf_add(b, text + begin, i - begin, err);
        if (!rc)
            rc = n == 1 ? add_escaped(b, (unsigned char)text[i], err)
                        : nk_buf_adds(b, "\xEF\xBF\xBD", err);
        i += n == 1 ? 1 : n < 0 ? (size_t)-n : size - i;
        begin = i;
    }
    if (!rc)
        rc = nk_buf_add(b, text + begin, i - begin, err);
    return rc ? rc : nk_buf_adds(b, "\"", err);
}

int nk_json_str(struct nk_buf *b, const char *text, struct nk_error *err)
{
    return text ? nk_json_strn(b, text, strlen(text), err) : nk_buf_adds(b, "null", err);
}

int nk_json_num(struct nk_buf *b, double number, struct nk_error *err)
{
    char text[40];

    if (!isfinite(number))
        return nk_buf_adds(b, "null", err);
    if (number == floor(number) && fabs(number) < 1e15)
        return nk_buf_addf(b, err, "%.0f", number);
    /* 15 digits are kept by every double (DBL_DIG), and %g leaves zeros at the end out. */
    for (int digits = DBL_DIG; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            break;
    }
    return nk_buf_adds(b, text, err);
}
